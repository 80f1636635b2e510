//! What a server must not forget: its vote, its log and its newest snapshot.
//!
//! [`LogStore`] is a sink of ordered writes and one read at the start; while the server runs, the log is read from the
//! mirror in memory ([`crate::log::Log`]), which the byte cap keeps small. Both stores pass one conformance suite.

mod crc;
mod disk;
mod files;
mod memory;

#[cfg(test)]
mod conformance;
#[cfg(test)]
mod damage;

pub use disk::DiskStore;
pub use memory::MemoryStore;
use raft::eraftpb::{ConfState, Entry, HardState, Snapshot, SnapshotMetadata};

use crate::api::StoreError;

/// One step of what must be remembered. Its parts take effect together or not at all.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Write {
    /// Grows by one with each write; [`crate::Core::persisted`] takes the last one that is on disk.
    pub id: u64,
    pub hard_state: Option<HardState>,
    pub snapshot: Option<SnapshotWrite>,
    /// Replaces whatever the log holds from the first of these on.
    pub entries: Vec<Entry>,
}

/// A snapshot and what it does to the log: entries up to `base` go, with `replaces_log` all others as well.
#[derive(Clone, Debug, PartialEq)]
pub struct SnapshotWrite {
    pub snapshot: Snapshot,
    pub base: Base,
    pub replaces_log: bool,
}

/// The last entry that is no longer in the log; its term is kept, for the next entry is matched by it.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Base {
    pub index: u64,
    pub term: u64,
}

/// What a store held when it was opened.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Loaded {
    pub hard_state: HardState,
    /// `None` only for a server that was never bootstrapped nor reached by a leader.
    pub snapshot: Option<Snapshot>,
    pub base: Base,
    pub entries: Vec<Entry>,
}

impl Loaded {
    pub fn is_new(&self) -> bool {
        *self == Loaded::default()
    }

    /// What contradicts itself, if anything. Raft would panic on it, or worse: vote.
    pub fn contradiction(&self) -> Option<&'static str> {
        let snapshot = self.snapshot.as_ref().map_or(0, |snapshot| snapshot.get_metadata().index);
        let last = self.base.index + self.entries.len() as u64;
        let terms: Vec<u64> = std::iter::once(self.base.term).chain(self.entries.iter().map(|e| e.term)).collect();
        if !self.entries.iter().zip(self.base.index + 1..).all(|(entry, index)| entry.index == index) {
            Some("the log has a gap")
        } else if !terms.is_sorted() || terms.last().is_some_and(|term| *term > self.hard_state.term) {
            Some("the terms of the log do not fit the vote")
        } else if self.base.index > snapshot || snapshot > last {
            Some("the snapshot does not fit the log")
        } else if self.hard_state.commit > last || self.hard_state.commit < snapshot {
            Some("the commit index does not fit the log")
        } else {
            None
        }
    }
}

/// Remembers writes in the order given.
pub trait LogStore: Send {
    /// What the last process that synced left behind. Called once, before any write.
    fn load(&mut self) -> Result<Loaded, StoreError>;

    /// Takes a write in. It may be lost until [`LogStore::sync`] has returned.
    fn write(&mut self, write: Write) -> Result<(), StoreError>;

    /// Everything written is on disk when this returns. After an error nothing is known, and the process must end.
    fn sync(&mut self) -> Result<(), StoreError>;
}

/// The write that founds a group: an agreed snapshot, so that whoever joins later learns of the first voters by it.
pub fn genesis(voters: &[u64], data: Vec<u8>) -> Write {
    let conf_state = ConfState { voters: voters.to_vec(), ..ConfState::default() };
    let metadata = SnapshotMetadata { conf_state: Some(conf_state), index: 1, term: 1 };
    let snapshot = Snapshot { data, metadata: Some(metadata) };
    Write {
        id: 0,
        hard_state: Some(HardState { term: 1, vote: 0, commit: 1 }),
        snapshot: Some(SnapshotWrite { snapshot, base: Base { index: 1, term: 1 }, replaces_log: true }),
        entries: Vec::new(),
    }
}
