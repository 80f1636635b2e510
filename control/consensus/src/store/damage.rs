//! Files that are not what the store wrote: each is found at open, and nothing is voted with.

use std::fs;
use std::path::Path;

use raft::eraftpb::{Entry, HardState};

use super::{DiskStore, Loaded, LogStore, Write, genesis};
use crate::api::StoreError;

fn filled() -> tempfile::TempDir {
    let directory = tempfile::tempdir().unwrap();
    let mut store = DiskStore::open(directory.path(), 7).unwrap();
    store.load().unwrap();
    let entries = (2..200).map(|index| Entry { index, term: 3, data: vec![index as u8; 100], ..Entry::default() });
    let hard_state = Some(HardState { term: 3, vote: 7, commit: 100 });
    store.write(genesis(&[7], b"the first state".to_vec())).unwrap();
    store.write(Write { id: 1, hard_state, entries: entries.collect(), snapshot: None }).unwrap();
    store.sync().unwrap();
    directory
}

fn reopen(directory: &Path, id: u64) -> Result<Loaded, StoreError> {
    DiskStore::open(directory, id)?.load()
}

fn assert_damaged(directory: &Path) {
    match reopen(directory, 7) {
        Err(error @ StoreError::Damaged { .. }) => assert!(error.to_string().contains("join again")),
        other => panic!("expected damage, got {other:?}"),
    }
}

#[test]
fn an_empty_truncated_or_missing_database_is_refused() {
    for length in [None, Some(0), Some(1000)] {
        let directory = filled();
        let path = directory.path().join("raft.redb");
        match length {
            None => fs::remove_file(&path).unwrap(),
            Some(length) => fs::OpenOptions::new().write(true).open(&path).unwrap().set_len(length).unwrap(),
        }
        assert_damaged(directory.path());
    }
}

#[test]
fn a_database_from_an_old_backup_is_refused() {
    let directory = filled();
    let path = directory.path().join("raft.redb");
    let backup = fs::read(&path).unwrap();
    let mut store = DiskStore::open(directory.path(), 7).unwrap();
    store.write(Write { hard_state: Some(HardState { term: 4, vote: 7, commit: 100 }), ..Write::default() }).unwrap();
    store.sync().unwrap();
    drop(store);
    fs::write(&path, backup).unwrap();
    assert_damaged(directory.path());
}

#[test]
fn a_changed_snapshot_is_refused() {
    let directory = filled();
    let snapshot = fs::read_dir(directory.path())
        .unwrap()
        .map(|entry| entry.unwrap().path())
        .find(|path| path.to_string_lossy().contains("snapshot-"))
        .unwrap();
    let mut content = fs::read(&snapshot).unwrap();
    content[8] ^= 1;
    fs::write(&snapshot, content).unwrap();
    assert_damaged(directory.path());
}

/// A flipped bit is either found or was in a place that holds nothing: what loads is what was written.
#[test]
fn no_flipped_bit_changes_what_is_loaded() {
    let directory = filled();
    let path = directory.path().join("raft.redb");
    let whole = reopen(directory.path(), 7).unwrap();
    let content = fs::read(&path).unwrap();
    let mut found = 0;
    for round in 0..60_usize {
        let mut flipped = content.clone();
        flipped[round * 7919 % content.len()] ^= 1 << (round % 8);
        fs::write(&path, &flipped).unwrap();
        match reopen(directory.path(), 7) {
            Ok(loaded) => assert_eq!(loaded, whole, "round {round}"),
            Err(_) => found += 1,
        }
    }
    assert!(found > 0, "no flip was found, so the test hits nothing that is used");
}

#[test]
fn another_servers_directory_is_refused() {
    let directory = filled();
    assert!(matches!(reopen(directory.path(), 8), Err(StoreError::WrongServer { expected: 8, found: 7, .. })));
}

#[test]
fn a_store_that_is_open_is_not_opened_again() {
    let directory = filled();
    let _open = DiskStore::open(directory.path(), 7).unwrap();
    assert!(matches!(DiskStore::open(directory.path(), 7), Err(StoreError::InUse { .. })));
}
