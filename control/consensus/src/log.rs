//! The log as raft-rs reads it: a mirror in memory of what the store was told to remember.

use std::collections::VecDeque;

use raft::eraftpb::{ConfState, Entry, HardState, Snapshot};
use raft::{GetEntriesContext, RaftState, Storage, StorageError};

use crate::store::{Base, Loaded};

/// May be ahead of the disk: who relies on an entry being remembered waits for the write's acknowledgement.
pub(crate) struct Log {
    hard_state: HardState,
    snapshot: Snapshot,
    base: Base,
    entries: VecDeque<Entry>,
    bytes: usize,
}

impl Log {
    pub(crate) fn new(loaded: Loaded) -> Log {
        Log {
            bytes: loaded.entries.iter().map(size).sum(),
            hard_state: loaded.hard_state,
            snapshot: loaded.snapshot.unwrap_or_default(),
            base: loaded.base,
            entries: loaded.entries.into(),
        }
    }

    pub(crate) fn bytes(&self) -> usize {
        self.bytes
    }

    pub(crate) fn snapshot_index(&self) -> u64 {
        self.snapshot.get_metadata().index
    }

    pub(crate) fn conf_state(&self) -> ConfState {
        self.snapshot.get_metadata().get_conf_state().clone()
    }

    pub(crate) fn base(&self) -> Base {
        self.base
    }

    pub(crate) fn entries(&self) -> impl Iterator<Item = &Entry> {
        self.entries.iter()
    }

    /// Appends, dropping first whatever contradicts.
    pub(crate) fn append(&mut self, entries: &[Entry]) {
        let Some(first) = entries.first() else { return };
        let kept = first.index.saturating_sub(self.base.index + 1) as usize;
        for dropped in self.entries.drain(kept.min(self.entries.len())..) {
            self.bytes -= size(&dropped);
        }
        self.bytes += entries.iter().map(size).sum::<usize>();
        self.entries.extend(entries.iter().cloned());
    }

    /// A leader's snapshot takes the place of everything.
    pub(crate) fn install(&mut self, snapshot: Snapshot) {
        self.base = Base { index: snapshot.get_metadata().index, term: snapshot.get_metadata().term };
        self.entries.clear();
        self.bytes = 0;
        self.snapshot = snapshot;
    }

    /// Our own snapshot lets the log begin later; `trailing` entries stay while they fit into `bytes_max`.
    pub(crate) fn compact(&mut self, snapshot: Snapshot, trailing: u64, bytes_max: usize) -> Base {
        let last_gone = snapshot.get_metadata().index;
        self.snapshot = snapshot;
        while let Some(entry) = self.entries.front() {
            let wanted = entry.index + trailing > last_gone && self.bytes <= bytes_max;
            if entry.index > last_gone || wanted {
                break;
            }
            self.base = Base { index: entry.index, term: entry.term };
            self.bytes -= size(entry);
            self.entries.pop_front();
        }
        self.base
    }

    fn last(&self) -> u64 {
        self.base.index + self.entries.len() as u64
    }

    fn at(&self, index: u64) -> Option<&Entry> {
        index.checked_sub(self.base.index + 1).and_then(|offset| self.entries.get(offset as usize))
    }
}

impl Storage for Log {
    fn initial_state(&self) -> raft::Result<RaftState> {
        Ok(RaftState::new(self.hard_state.clone(), self.conf_state()))
    }

    fn entries(
        &self,
        low: u64,
        high: u64,
        max_size: impl Into<Option<u64>>,
        _context: GetEntriesContext,
    ) -> raft::Result<Vec<Entry>> {
        if low <= self.base.index {
            return Err(StorageError::Compacted.into());
        }
        if high > self.last() + 1 {
            return Err(StorageError::Unavailable.into());
        }
        let range = (low - self.base.index - 1) as usize..(high - self.base.index - 1) as usize;
        let bytes_max = max_size.into().unwrap_or(u64::MAX);
        let mut bytes = 0;
        // The first entry goes whatever its size, or a large one would never get through.
        let fits = |entry: &&Entry| {
            bytes += size(entry) as u64;
            bytes <= bytes_max || entry.index == low
        };
        Ok(self.entries.range(range).take_while(fits).cloned().collect())
    }

    fn term(&self, index: u64) -> raft::Result<u64> {
        if index == self.base.index {
            return Ok(self.base.term);
        }
        if index < self.base.index {
            return Err(StorageError::Compacted.into());
        }
        self.at(index).map(|entry| entry.term).ok_or(StorageError::Unavailable.into())
    }

    fn first_index(&self) -> raft::Result<u64> {
        Ok(self.base.index + 1)
    }

    fn last_index(&self) -> raft::Result<u64> {
        Ok(self.last())
    }

    fn snapshot(&self, request_index: u64, to: u64) -> raft::Result<Snapshot> {
        let index = self.snapshot_index();
        let members = self.snapshot.get_metadata().get_conf_state();
        let knows_receiver = members.voters.contains(&to) || members.learners.contains(&to);
        if index == 0 || index < request_index || !knows_receiver {
            return Err(StorageError::SnapshotTemporarilyUnavailable.into());
        }
        Ok(self.snapshot.clone())
    }
}

fn size(entry: &Entry) -> usize {
    entry.data.len() + entry.context.len() + 32
}
