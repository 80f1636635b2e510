//! What every store must do; each test runs on the disk store and on the memory store.

use raft::eraftpb::{ConfState, Entry, HardState, Snapshot, SnapshotMetadata};

use super::{Base, DiskStore, Loaded, LogStore, MemoryStore, SnapshotWrite, Write, genesis};

/// A store that can be closed without a sync and opened again.
trait Reopen {
    fn open(&self) -> Box<dyn LogStore>;
    fn crash(&self);
}

impl Reopen for MemoryStore {
    fn open(&self) -> Box<dyn LogStore> {
        Box::new(self.clone())
    }

    fn crash(&self) {
        MemoryStore::crash(self, 0);
    }
}

impl Reopen for tempfile::TempDir {
    fn open(&self) -> Box<dyn LogStore> {
        Box::new(DiskStore::open(self.path(), 1).unwrap())
    }

    fn crash(&self) {}
}

fn on_both(test: impl Fn(&dyn Reopen)) {
    test(&MemoryStore::default());
    test(&tempfile::tempdir().unwrap());
}

/// Writes, syncs, crashes, and says what is there afterwards.
fn after(disk: &dyn Reopen, writes: Vec<Write>) -> Loaded {
    let mut store = disk.open();
    writes.into_iter().for_each(|write| store.write(write).unwrap());
    store.sync().unwrap();
    drop(store);
    disk.crash();
    disk.open().load().unwrap()
}

fn entries(range: std::ops::RangeInclusive<u64>, term: u64) -> Write {
    let entry = |index| Entry { index, term, data: format!("{index}@{term}").into_bytes(), ..Entry::default() };
    let hard_state = Some(HardState { term, vote: 1, commit: 1 });
    Write { entries: range.map(entry).collect(), hard_state, ..Write::default() }
}

fn snapshot(index: u64, base: u64, replaces_log: bool) -> Write {
    let conf_state = Some(ConfState { voters: vec![1, 2], learners: vec![3], ..ConfState::default() });
    let metadata = Some(SnapshotMetadata { conf_state, index, term: 1 });
    let snapshot = Snapshot { data: format!("state at {index}").into_bytes(), metadata };
    let taken = SnapshotWrite { snapshot, base: Base { index: base, term: 1 }, replaces_log };
    let hard_state = Some(HardState { term: 1, vote: 1, commit: index });
    Write { snapshot: Some(taken), hard_state, ..Write::default() }
}

fn indices(loaded: &Loaded) -> Vec<u64> {
    loaded.entries.iter().map(|entry| entry.index).collect()
}

#[test]
fn a_new_store_holds_nothing() {
    on_both(|disk| assert!(disk.open().load().unwrap().is_new()));
}

#[test]
fn synced_writes_survive_a_crash() {
    on_both(|disk| {
        let loaded = after(disk, vec![genesis(&[1, 2, 3], b"empty".to_vec()), entries(2..=4, 1)]);
        assert_eq!(indices(&loaded), [2, 3, 4]);
        assert_eq!(loaded.entries[2].data, b"4@1");
        assert_eq!(loaded.hard_state, HardState { term: 1, vote: 1, commit: 1 });
        let snapshot = loaded.snapshot.unwrap();
        assert_eq!(snapshot.data, b"empty");
        assert_eq!(snapshot.get_metadata().get_conf_state().voters, [1, 2, 3]);
    });
}

#[test]
fn unsynced_writes_do_not_survive_a_crash() {
    on_both(|disk| {
        after(disk, vec![genesis(&[1], Vec::new()), entries(2..=3, 1)]);
        let mut store = disk.open();
        store.write(entries(4..=9, 2)).unwrap();
        drop(store);
        disk.crash();
        let loaded = disk.open().load().unwrap();
        assert_eq!(indices(&loaded), [2, 3]);
        assert_eq!(loaded.hard_state.term, 1);
    });
}

#[test]
fn later_entries_replace_what_they_contradict() {
    on_both(|disk| {
        let loaded = after(disk, vec![genesis(&[1], Vec::new()), entries(2..=8, 1), entries(4..=5, 2)]);
        assert_eq!(indices(&loaded), [2, 3, 4, 5]);
        assert_eq!(loaded.entries.iter().map(|entry| entry.term).collect::<Vec<_>>(), [1, 1, 2, 2]);
    });
}

#[test]
fn own_snapshot_keeps_the_trailing_log() {
    on_both(|disk| {
        let loaded = after(disk, vec![genesis(&[1], Vec::new()), entries(2..=8, 1), snapshot(6, 4, false)]);
        assert_eq!(indices(&loaded), [5, 6, 7, 8]);
        assert_eq!(loaded.base, Base { index: 4, term: 1 });
        assert_eq!(loaded.snapshot.unwrap().data, b"state at 6");
    });
}

#[test]
fn leaders_snapshot_replaces_the_whole_log() {
    on_both(|disk| {
        let loaded = after(disk, vec![genesis(&[1], Vec::new()), entries(2..=30, 1), snapshot(20, 20, true)]);
        assert_eq!(indices(&loaded), [0_u64; 0]);
        assert_eq!(loaded.base, Base { index: 20, term: 1 });
        let loaded = after(disk, vec![entries(21..=22, 1)].into_iter().map(committed(20)).collect());
        assert_eq!(indices(&loaded), [21, 22]);
    });
}

fn committed(commit: u64) -> impl Fn(Write) -> Write {
    move |write| Write { hard_state: Some(HardState { term: 1, vote: 1, commit }), ..write }
}

#[test]
fn writes_in_one_sync_take_effect_in_order() {
    on_both(|disk| {
        let writes = vec![genesis(&[1], Vec::new()), entries(2..=9, 1), snapshot(9, 9, true), entries(10..=12, 1)];
        let loaded = after(disk, writes.into_iter().map(|write| commit_at_least(write, 9)).collect());
        assert_eq!(indices(&loaded), [10, 11, 12]);
    });
}

fn commit_at_least(mut write: Write, commit: u64) -> Write {
    if let Some(hard_state) = &mut write.hard_state {
        hard_state.commit = hard_state.commit.max(commit);
    }
    write
}
