//! A store that forgets like a disk: what was not synced may be gone after a crash.

use std::collections::VecDeque;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use super::{Base, Loaded, LogStore, Write};
use crate::api::StoreError;

/// Clones share the disk, as two processes after each other would.
#[derive(Clone, Default)]
pub struct MemoryStore {
    disk: Arc<Mutex<Disk>>,
}

#[derive(Default)]
struct Disk {
    durable: Loaded,
    buffered: VecDeque<Write>,
}

impl MemoryStore {
    /// Power goes: of the writes that were not synced the disk happens to keep the first `kept`.
    pub fn crash(&self, kept: usize) {
        let mut disk = self.disk();
        let kept = kept.min(disk.buffered.len());
        for write in disk.buffered.drain(..).take(kept).collect::<Vec<_>>() {
            disk.durable.take_in(write);
        }
    }

    /// Writes that a crash now could take away.
    pub fn unsynced(&self) -> usize {
        self.disk().buffered.len()
    }

    /// Makes the oldest `count` buffered writes durable: the simulator's fsync that covers only what was there at its start.
    pub fn sync_first(&self, count: usize) {
        let mut disk = self.disk();
        let count = count.min(disk.buffered.len());
        for write in disk.buffered.drain(..count).collect::<Vec<_>>() {
            disk.durable.take_in(write);
        }
    }

    /// What is on disk for good.
    pub fn durable(&self) -> Loaded {
        self.disk().durable.clone()
    }

    fn disk(&self) -> MutexGuard<'_, Disk> {
        self.disk.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl LogStore for MemoryStore {
    fn load(&mut self) -> Result<Loaded, StoreError> {
        Ok(self.durable())
    }

    fn write(&mut self, write: Write) -> Result<(), StoreError> {
        self.disk().buffered.push_back(write);
        Ok(())
    }

    fn sync(&mut self) -> Result<(), StoreError> {
        self.sync_first(usize::MAX);
        Ok(())
    }
}

impl Loaded {
    fn take_in(&mut self, write: Write) {
        if let Some(taken) = write.snapshot {
            self.drop_entries(taken.base, taken.replaces_log);
            self.snapshot = Some(taken.snapshot);
        }
        if let Some(first) = write.entries.first() {
            self.entries.retain(|entry| entry.index < first.index);
            self.entries.extend(write.entries);
        }
        if let Some(hard_state) = write.hard_state {
            self.hard_state = hard_state;
        }
    }

    fn drop_entries(&mut self, base: Base, all: bool) {
        self.entries.retain(|entry| !all && entry.index > base.index);
        self.base = base;
    }
}
