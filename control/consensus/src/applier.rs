//! The thread that owns the state machine: applies what is committed, answers who waited for it, serializes snapshots.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};
use std::sync::mpsc::{Receiver, Sender};

use crate::api::{ChangeError, Committed, OnFatal, ProposeError, ReadError, StateMachine};
use crate::core::{Applied, Payload};
use crate::driver::{Answer, Input};

/// Done in the order sent.
pub(crate) enum Work {
    Apply { entries: Vec<(Applied, Option<Waiter>)>, bytes: Backlog },
    Restore { index: u64, data: Vec<u8> },
    Snapshot { index: u64 },
    Read { index: u64, readers: Vec<Answer<u64, ReadError>> },
}

/// Bytes that wait for the state machine; they count until this is dropped.
pub(crate) struct Backlog {
    bytes: usize,
    total: Arc<AtomicUsize>,
}

impl Backlog {
    pub(crate) fn new(entries: &[Applied], total: &Arc<AtomicUsize>) -> Backlog {
        let size = |entry: &Applied| match &entry.payload {
            Payload::Command(data) => data.len() + ENTRY_BYTES,
            Payload::Nothing | Payload::Membership => ENTRY_BYTES,
        };
        let bytes = entries.iter().map(size).sum();
        total.fetch_add(bytes, Ordering::Relaxed);
        Backlog { bytes, total: total.clone() }
    }
}

impl Drop for Backlog {
    fn drop(&mut self) {
        self.total.fetch_sub(self.bytes, Ordering::Relaxed);
    }
}

/// What an entry costs beside its data.
const ENTRY_BYTES: usize = 64;

/// Who waits for an entry.
pub(crate) enum Waiter {
    Command(Answer<Committed, ProposeError>),
    Change(Answer<u64, ChangeError>),
}

impl Waiter {
    /// Leadership is lost; what becomes of the entry is up to the next leader.
    pub(crate) fn drop_unknown(self) {
        match self {
            Waiter::Command(answer) => answer.give(Err(ProposeError::Dropped)),
            Waiter::Change(answer) => answer.give(Err(ChangeError::Dropped)),
        }
    }
}

pub(crate) struct Applier {
    pub(crate) machine: Box<dyn StateMachine>,
    pub(crate) applied: Arc<AtomicU64>,
    pub(crate) driver: Sender<Input>,
    pub(crate) on_fatal: OnFatal,
    pub(crate) readers: BTreeMap<u64, Vec<Answer<u64, ReadError>>>,
}

impl Applier {
    /// Ends when nobody can send work any more, or when the state machine refuses a snapshot.
    pub(crate) fn run(mut self, works: Receiver<Work>) {
        for work in works {
            if !self.perform(work) {
                return drop(self.driver.send(Input::Stop));
            }
        }
    }

    fn perform(&mut self, work: Work) -> bool {
        match work {
            Work::Apply { entries, bytes } => {
                entries.into_iter().for_each(|(entry, waiter)| self.apply(entry, waiter));
                drop(bytes);
            }
            Work::Restore { index, data } => return self.restore(index, &data),
            Work::Snapshot { index } => {
                let data = self.machine.snapshot();
                let _ = self.driver.send(Input::SnapshotTaken { index, data });
            }
            Work::Read { index, readers } => self.readers.entry(index).or_default().extend(readers),
        }
        self.answer_readers();
        true
    }

    fn apply(&mut self, entry: Applied, waiter: Option<Waiter>) {
        let index = entry.index;
        let response = match &entry.payload {
            Payload::Command(data) => self.machine.apply(index, data),
            Payload::Nothing | Payload::Membership => Vec::new(),
        };
        self.applied.store(index, Ordering::Release);
        match waiter {
            Some(Waiter::Command(answer)) => answer.give(Ok(Committed { index, response })),
            // raft-rs turns a change that it cannot take yet into an empty entry.
            Some(Waiter::Change(answer)) if entry.payload == Payload::Nothing => answer.give(Err(ChangeError::Busy)),
            Some(Waiter::Change(answer)) => answer.give(Ok(index)),
            None => {}
        }
    }

    fn restore(&mut self, index: u64, data: &[u8]) -> bool {
        match self.machine.restore(index, data) {
            Ok(()) => self.applied.store(index, Ordering::Release),
            Err(error) => {
                (self.on_fatal)(&format!(
                    "the leader's snapshot at index {index} cannot be read ({error}); upgrade this server"
                ));
                return false;
            }
        }
        self.answer_readers();
        true
    }

    fn answer_readers(&mut self) {
        let applied = self.applied.load(Ordering::Acquire);
        let waiting = self.readers.split_off(&(applied + 1));
        for (index, readers) in std::mem::replace(&mut self.readers, waiting) {
            readers.into_iter().for_each(|answer| answer.give(Ok(index)));
        }
    }
}
