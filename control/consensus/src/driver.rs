//! The thread that owns the [`Core`]: takes inputs from one queue, lets time pass, performs the effects.

use std::collections::BTreeMap;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::mpsc::{Receiver, RecvTimeoutError, Sender};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use futures_channel::oneshot;

use crate::api::{
    ChangeError, Committed, MembershipChange, OnFatal, PeerState, ProposeError, ReadError, Role, Status, Transport,
    Watcher,
};
use crate::applier::{Backlog, Waiter, Work};
use crate::core::{Applied, Core, Effect, Position, Standing, is_append};
use crate::store::Write;

pub(crate) enum Input {
    Propose { command: Vec<u8>, answer: Answer<Committed, ProposeError> },
    Read { answer: Answer<u64, ReadError> },
    Change { change: MembershipChange, answer: Answer<u64, ChangeError> },
    MayChange { change: MembershipChange, answer: Answer<(), ChangeError> },
    Peers { answer: Answer<Vec<PeerState>, ReadError> },
    Step { sender: u64, message: Vec<u8>, place: Place },
    Unreachable(u64),
    TransferLeader(u64),
    Subscribe(Watcher),
    Persisted(u64),
    SnapshotTaken { index: u64, data: Vec<u8> },
    Stop,
}

/// The way back to who asked. Holds a place in the bounded queue until it is used.
pub(crate) struct Answer<T, E> {
    sender: oneshot::Sender<Result<T, E>>,
    _place: Place,
}

impl<T, E> Answer<T, E> {
    pub(crate) fn new(sender: oneshot::Sender<Result<T, E>>, place: Place) -> Self {
        Answer { sender, _place: place }
    }

    /// Whoever asked may have gone, which is their affair.
    pub(crate) fn give(self, result: Result<T, E>) {
        let _ = self.sender.send(result);
    }
}

/// A bound that many threads share.
#[derive(Clone)]
pub(crate) struct Room {
    taken: Arc<AtomicUsize>,
    max: usize,
}

/// One taken place; dropping it gives it back.
pub(crate) struct Place(Arc<AtomicUsize>);

impl Room {
    pub(crate) fn new(max: usize) -> Room {
        Room { taken: Arc::default(), max }
    }

    pub(crate) fn take(&self) -> Option<Place> {
        let place = Place(self.taken.clone());
        (self.taken.fetch_add(1, Ordering::Relaxed) < self.max).then_some(place)
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        self.0.fetch_sub(1, Ordering::Relaxed);
    }
}

pub(crate) struct Driver {
    pub(crate) core: Core,
    pub(crate) tick: Duration,
    pub(crate) transport: Arc<dyn Transport>,
    pub(crate) writes: Sender<Write>,
    pub(crate) works: Sender<Work>,
    /// Bytes that wait for the state machine, and how many may.
    pub(crate) backlog: Arc<AtomicUsize>,
    pub(crate) apply_bytes_max: usize,
    pub(crate) status: Arc<Mutex<Status>>,
    pub(crate) on_fatal: OnFatal,
    pub(crate) requests: Requests,
}

/// Who waits for what.
#[derive(Default)]
pub(crate) struct Requests {
    batch: Vec<(Vec<u8>, Answer<Committed, ProposeError>)>,
    waiters: BTreeMap<u64, (u64, Waiter)>,
    reads: BTreeMap<u64, Answer<u64, ReadError>>,
    reads_asked: u64,
    watchers: Vec<Watcher>,
}

/// Inputs taken before effects are performed: enough to batch, few enough for heartbeats to keep time.
const INPUTS_PER_ROUND: usize = 1024;

impl Driver {
    pub(crate) fn run(mut self, inputs: Receiver<Input>) {
        let mut next_tick = Instant::now() + self.tick;
        while self.perform_effects() && self.take_inputs(&inputs, next_tick) {
            next_tick = self.pass_time(next_tick);
        }
    }

    /// A process that was stopped for a while lets one tick pass, not all: it has not heard what happened meanwhile.
    fn pass_time(&mut self, next_tick: Instant) -> Instant {
        let now = Instant::now();
        if now < next_tick {
            return next_tick;
        }
        self.core.tick();
        (next_tick + self.tick).max(now)
    }

    fn take_inputs(&mut self, inputs: &Receiver<Input>, until: Instant) -> bool {
        let mut goes_on = match inputs.recv_timeout(until.saturating_duration_since(Instant::now())) {
            Ok(input) => self.take(input),
            Err(error) => error == RecvTimeoutError::Timeout,
        };
        for input in inputs.try_iter().take(INPUTS_PER_ROUND) {
            goes_on = goes_on && self.take(input);
        }
        self.propose_batch();
        goes_on
    }

    fn take(&mut self, input: Input) -> bool {
        match input {
            Input::Propose { command, answer } => self.requests.batch.push((command, answer)),
            Input::Read { answer } => self.read(answer),
            Input::Change { change, answer } => self.change(change, answer),
            Input::MayChange { change, answer } => answer.give(self.core.may_change(change)),
            Input::Peers { answer } => answer.give(Ok(self.core.peers())),
            Input::Step { sender, message, place } => self.step(sender, &message, place),
            Input::Unreachable(peer) => self.core.report_unreachable(peer),
            Input::TransferLeader(to) => self.core.transfer_leader(to),
            Input::Subscribe(watcher) => self.subscribe(watcher),
            Input::Persisted(id) => self.core.persisted(id),
            Input::SnapshotTaken { index, data } => self.core.snapshot_taken(index, data),
            Input::Stop => return false,
        }
        true
    }

    fn propose_batch(&mut self) {
        let (commands, answers): (Vec<_>, Vec<_>) = std::mem::take(&mut self.requests.batch).into_iter().unzip();
        if commands.is_empty() {
            return;
        }
        match self.core.propose(commands) {
            Ok(Position { index, term }) => {
                let waiters = (index..).zip(answers.into_iter().map(|answer| (term, Waiter::Command(answer))));
                self.requests.waiters.extend(waiters);
            }
            Err(refusal) => answers.into_iter().for_each(|answer| answer.give(Err(refusal.clone()))),
        }
    }

    fn read(&mut self, answer: Answer<u64, ReadError>) {
        self.requests.reads_asked += 1;
        self.requests.reads.insert(self.requests.reads_asked, answer);
        self.core.read_index(self.requests.reads_asked);
    }

    fn change(&mut self, change: MembershipChange, answer: Answer<u64, ChangeError>) {
        match self.core.change(change) {
            Ok(Position { index, term }) => {
                self.requests.waiters.insert(index, (term, Waiter::Change(answer)));
            }
            Err(refusal) => answer.give(Err(refusal)),
        }
    }

    fn step(&mut self, sender: u64, message: &[u8], place: Place) {
        drop(place);
        // Not taken in is not acknowledged: the leader waits, and repeats after a heartbeat.
        if is_append(message) && self.backlog.load(Ordering::Relaxed) > self.apply_bytes_max {
            return;
        }
        if let Err(error) = self.core.step(sender, message) {
            tracing::warn!(sender, %error, bytes = message.len(), "a peer's message was dropped");
        }
    }

    fn subscribe(&mut self, watcher: Watcher) {
        watcher(&self.current_status());
        self.requests.watchers.push(watcher);
    }

    /// False when this server must stop.
    fn perform_effects(&mut self) -> bool {
        let goes_on = self.core.take_effects().into_iter().all(|effect| self.perform(effect));
        lock(&self.status).commit = self.core.commit();
        goes_on
    }

    /// The receiving threads end only after this one, or after telling it to stop: a failed send needs no care.
    fn perform(&mut self, effect: Effect) -> bool {
        match effect {
            Effect::Persist(write) => drop(self.writes.send(write)),
            Effect::Send { to, message } => self.transport.send(to, message),
            Effect::Apply(entries) => self.apply(entries),
            Effect::Restore { index, data } => drop(self.works.send(Work::Restore { index, data })),
            Effect::TakeSnapshot { index } => drop(self.works.send(Work::Snapshot { index })),
            Effect::ReadReady { reads, index } => self.answer_reads(&reads, index),
            Effect::ReadFailed { reads } => self.fail_reads(&reads),
            Effect::Changed(standing) => self.on_changed(standing),
            Effect::Halt { reason } => {
                (self.on_fatal)(&reason);
                return false;
            }
        }
        true
    }

    fn apply(&mut self, entries: Vec<Applied>) {
        let bytes = Backlog::new(&entries, &self.backlog);
        let entries = entries.into_iter().map(|entry| {
            let waiter = self.requests.waiter(entry.index, entry.term);
            (entry, waiter)
        });
        let _ = self.works.send(Work::Apply { entries: entries.collect(), bytes });
    }

    fn answer_reads(&mut self, reads: &[u64], index: u64) {
        let readers = reads.iter().filter_map(|read| self.requests.reads.remove(read)).collect();
        let _ = self.works.send(Work::Read { index, readers });
    }

    fn fail_reads(&mut self, reads: &[u64]) {
        let leader = self.core.leader();
        for answer in reads.iter().filter_map(|read| self.requests.reads.remove(read)) {
            answer.give(Err(ReadError::NoLeader { leader }));
        }
    }

    fn on_changed(&mut self, standing: Standing) {
        if standing.role != Some(Role::Leader) || self.requests.waiters_of_other_term(standing.term) {
            let waiters = std::mem::take(&mut self.requests.waiters);
            waiters.into_values().for_each(|(_, waiter)| waiter.drop_unknown());
        }
        put_standing(&mut lock(&self.status), standing);
        let status = self.current_status();
        self.requests.watchers.iter().for_each(|watcher| watcher(&status));
    }

    fn current_status(&self) -> Status {
        lock(&self.status).clone()
    }
}

impl Requests {
    /// Who proposed this entry here, unless another leader's entry took its place.
    fn waiter(&mut self, index: u64, term: u64) -> Option<Waiter> {
        let (proposed_in, waiter) = self.waiters.remove(&index)?;
        if proposed_in == term {
            return Some(waiter);
        }
        waiter.drop_unknown();
        None
    }

    fn waiters_of_other_term(&self, term: u64) -> bool {
        self.waiters.values().any(|(proposed_in, _)| *proposed_in != term)
    }
}

pub(crate) fn put_standing(status: &mut Status, standing: Standing) {
    status.leader = standing.leader;
    status.term = standing.term;
    status.role = standing.role.unwrap_or(Role::Learner);
    status.voters = standing.voters;
    status.learners = standing.learners;
}

/// Status is replaced field by field and never left half-way by code that can panic.
pub(crate) fn lock(status: &Mutex<Status>) -> std::sync::MutexGuard<'_, Status> {
    status.lock().unwrap_or_else(PoisonError::into_inner)
}
