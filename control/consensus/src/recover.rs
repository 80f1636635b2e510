//! When most voters are lost for ever: one server that is left is made the only voter, by the hand of an operator.
//!
//! What its log holds counts as committed, and changes of membership that remove all others are put behind it. So nothing that
//! this server knew is lost; what only the lost ones knew is. Two servers that are both treated so are two clusters.

use std::collections::BTreeSet;
use std::path::Path;

use protobuf_raft::Message as _;
use raft::eraftpb::{ConfChange, ConfChangeSingle, ConfChangeType, ConfChangeV2, Entry, EntryType, HardState};

use crate::api::StoreError;
use crate::store::{DiskStore, Loaded, LogStore, Write};

/// What was done.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Recovered {
    /// The servers that do not belong any more.
    pub removed: Vec<u64>,
    /// Entries that may not have been committed before and are now.
    pub last_index: u64,
}

#[derive(Debug, thiserror::Error)]
pub enum RecoverError {
    #[error(transparent)]
    Store(#[from] StoreError),
    #[error("the log is empty: this server never belonged to a cluster, so there is nothing to go on from")]
    Empty,
    #[error("the log contradicts itself ({reason}); choose another server that is left")]
    Contradiction { reason: &'static str },
}

/// Makes the server with this id the only voter. It must not run.
pub fn recover(data_dir: &Path, id: u64) -> Result<Recovered, RecoverError> {
    let mut store = DiskStore::open(data_dir, id)?;
    let loaded = store.load()?;
    if loaded.is_new() {
        return Err(RecoverError::Empty);
    }
    if let Some(reason) = loaded.contradiction() {
        return Err(RecoverError::Contradiction { reason });
    }
    let (voters, learners) = members(&loaded);
    let removed: Vec<u64> = voters.union(&learners).copied().filter(|member| *member != id).collect();
    let last = loaded.base.index + loaded.entries.len() as u64;
    let term = loaded.hard_state.term + 1;
    // A learner has to vote first: without any voter no change would be possible.
    let promotion = (!voters.contains(&id)).then_some((ConfChangeType::AddNode, id));
    let removals = removed.iter().map(|member| (ConfChangeType::RemoveNode, *member));
    let entries: Vec<Entry> = promotion
        .into_iter()
        .chain(removals)
        .zip(last + 1..)
        .map(|(change, index)| entry(change, index, term))
        .collect();
    let last_index = last + entries.len() as u64;
    let hard_state = Some(HardState { term, vote: id, commit: last_index });
    store.write(Write { id: 0, hard_state, snapshot: None, entries })?;
    store.sync()?;
    Ok(Recovered { removed, last_index })
}

fn entry((change_type, node_id): (ConfChangeType, u64), index: u64, term: u64) -> Entry {
    let single = ConfChangeSingle { change_type: change_type as i32, node_id };
    let change = ConfChangeV2 { changes: vec![single], ..ConfChangeV2::default() };
    let entry_type = EntryType::EntryConfChangeV2 as i32;
    Entry { entry_type, index, term, data: change.encode_to_vec(), ..Entry::default() }
}

/// Voters and learners once everything in the log has taken effect.
fn members(loaded: &Loaded) -> (BTreeSet<u64>, BTreeSet<u64>) {
    let snapshot = loaded.snapshot.as_ref().map(|snapshot| snapshot.get_metadata().get_conf_state().clone());
    let state = snapshot.unwrap_or_default();
    let mut voters: BTreeSet<u64> = state.voters.into_iter().collect();
    let mut learners: BTreeSet<u64> = state.learners.into_iter().collect();
    let index = loaded.snapshot.as_ref().map_or(0, |snapshot| snapshot.get_metadata().index);
    for change in loaded.entries.iter().filter(|entry| entry.index > index).flat_map(changes) {
        voters.remove(&change.node_id);
        learners.remove(&change.node_id);
        match ConfChangeType::from_i32(change.change_type) {
            Some(ConfChangeType::AddNode) => {
                voters.insert(change.node_id);
            }
            Some(ConfChangeType::AddLearnerNode) => {
                learners.insert(change.node_id);
            }
            Some(ConfChangeType::RemoveNode) | None => {}
        }
    }
    (voters, learners)
}

fn changes(entry: &Entry) -> Vec<ConfChangeSingle> {
    match EntryType::from_i32(entry.entry_type) {
        Some(EntryType::EntryConfChange) => ConfChange::decode(entry.data.as_slice())
            .map(|change| vec![ConfChangeSingle { change_type: change.change_type, node_id: change.node_id }])
            .unwrap_or_default(),
        Some(EntryType::EntryConfChangeV2) => {
            ConfChangeV2::decode(entry.data.as_slice()).map(|change| change.changes).unwrap_or_default()
        }
        _ => Vec::new(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::store::genesis;

    #[test]
    fn one_of_three_is_the_only_voter_afterwards_and_keeps_its_log() {
        let dir = tempfile::tempdir().unwrap();
        let mut store = DiskStore::open(dir.path(), 2).unwrap();
        store.write(genesis(&[1, 2, 3], b"state".to_vec())).unwrap();
        let learner = entry((ConfChangeType::AddLearnerNode, 4), 2, 1);
        store.write(Write { id: 1, entries: vec![learner], ..Write::default() }).unwrap();
        store.sync().unwrap();
        drop(store);
        let recovered = recover(dir.path(), 2).unwrap();
        assert_eq!(recovered, Recovered { removed: vec![1, 3, 4], last_index: 5 });
        let loaded = DiskStore::open(dir.path(), 2).unwrap().load().unwrap();
        assert_eq!(loaded.contradiction(), None);
        assert_eq!(members(&loaded), (BTreeSet::from([2]), BTreeSet::new()));
        assert_eq!((loaded.hard_state.commit, loaded.hard_state.term), (5, 2));
    }

    #[test]
    fn what_never_belonged_to_a_cluster_is_refused() {
        let dir = tempfile::tempdir().unwrap();
        assert!(matches!(recover(dir.path(), 1), Err(RecoverError::Empty)));
    }
}
