//! What the agent must know after a restart, in redb: who it is, its epoch, and its allocations as last told and last reported.
//!
//! Every record carries a CRC-32 of its own, and the file is checked when it is opened. A damaged file is refused whole: a
//! node that acts on half a memory would stop or start the wrong tasks.

use crate::allocs::{Memory, RestartCount};
use model::{AllocId, AllocUpdate, Allocation, Epoch, Generation, NodeId, Timestamp};
use prost::Message;
use redb::{Database, DatabaseError, ReadableDatabase, ReadableTable, StorageError, TableDefinition};
use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use uuid::Uuid;
use wire::pb;
use wire::session::{AgentMessage, ServerMessage};

const META: TableDefinition<'_, &str, &[u8]> = TableDefinition::new("meta");
const TOLD: TableDefinition<'_, &[u8], &[u8]> = TableDefinition::new("told");
const REPORTED: TableDefinition<'_, &[u8], &[u8]> = TableDefinition::new("reported");
/// By allocation: JSON of task -> [ends in the interval, the interval's begin, due time of the pending restart], in ns.
const RESTARTS: TableDefinition<'_, &[u8], &[u8]> = TableDefinition::new("restarts");
/// By allocation: JSON of what else of its life a later start must know; absent in files of earlier releases.
const LIVES: TableDefinition<'_, &[u8], &[u8]> = TableDefinition::new("lives");

/// Key and sealed value.
type Row = (Vec<u8>, Vec<u8>);

#[derive(Debug, thiserror::Error)]
pub enum StoreError {
    #[error(
        "the state file {path} is damaged ({problem}) and this node does not serve from it. To rejoin: run \
         `meshctl agent purge` with the same settings, which stops what still runs and removes it, move the data directory \
         away, and start with a fresh token"
    )]
    Damaged { path: PathBuf, problem: String },
    #[error("the state file {path} is in use: another agent runs with this data_dir; stop it or name another one")]
    InUse { path: PathBuf },
    #[error("the state file {path} cannot be used")]
    Io {
        path: PathBuf,
        #[source]
        source: redb::Error,
    },
}

type Restarts = BTreeMap<String, RestartCount>;

/// What was kept of one allocation.
#[derive(Clone, Debug, PartialEq)]
pub struct KeptAlloc {
    pub told: Allocation,
    pub reported: Option<AllocUpdate>,
    pub memory: Memory,
}

/// Cheap to clone; every call blocks for as long as the disk does.
#[derive(Clone)]
pub struct Store {
    database: Arc<Database>,
    path: Arc<Path>,
}

impl Store {
    /// Creates the file when there is none.
    pub fn open(path: &Path) -> Result<Self, StoreError> {
        let mut database = Database::create(path).map_err(|error| opening(path, error))?;
        database.check_integrity().map_err(|error| opening(path, error))?;
        let store = Self { database: Arc::new(database), path: path.into() };
        store.write(|tables| {
            tables.open_table(META)?;
            tables.open_table(TOLD)?;
            tables.open_table(REPORTED)?;
            tables.open_table(RESTARTS)?;
            tables.open_table(LIVES)?;
            Ok(())
        })?;
        Ok(store)
    }

    /// As [`Store::open`], but a missing file is an error.
    pub fn open_existing(path: &Path) -> Result<Self, StoreError> {
        match path.metadata() {
            Ok(_) => Self::open(path),
            Err(error) => Err(StoreError::Io { path: path.to_owned(), source: redb::Error::Io(error) }),
        }
    }

    /// The node's id, chosen at the first call from `random`.
    pub fn node_id(&self, random: u128) -> Result<NodeId, StoreError> {
        if let Some(known) = self.known_node_id()? {
            return Ok(known);
        }
        let id = NodeId::from_random(random);
        self.set_meta("node_id", id.0.as_bytes())?;
        Ok(id)
    }

    /// `None` before the first start.
    pub fn known_node_id(&self) -> Result<Option<NodeId>, StoreError> {
        let id = |bytes: Vec<u8>| Uuid::from_slice(&bytes).map_err(|_| self.damaged("the node id is not 16 bytes"));
        Ok(self.meta("node_id")?.map(id).transpose()?.map(NodeId))
    }

    /// Counts a session of this node, durably, before any server is told of it.
    pub fn next_epoch(&self) -> Result<Epoch, StoreError> {
        let last = match self.meta("epoch")? {
            Some(bytes) => u64::from_le_bytes(bytes.try_into().map_err(|_| self.damaged("the epoch is not 8 bytes"))?),
            None => 0,
        };
        let epoch = Epoch(last).next();
        self.set_meta("epoch", &epoch.0.to_le_bytes())?;
        Ok(epoch)
    }

    /// Whether the machine was started anew since the last call; `boot_id` names this start of it.
    pub fn note_boot(&self, boot_id: &str) -> Result<bool, StoreError> {
        let before = self.meta("boot_id")?;
        self.set_meta("boot_id", boot_id.as_bytes())?;
        Ok(before.is_some_and(|before| before != boot_id.as_bytes()))
    }

    pub fn allocs(&self) -> Result<BTreeMap<AllocId, KeptAlloc>, StoreError> {
        let (reported, restarts, lives) = (self.records(REPORTED)?, self.records(RESTARTS)?, self.records(LIVES)?);
        let mut kept = BTreeMap::new();
        for (id, bytes) in self.records(TOLD)? {
            let told = decode_told(&bytes).ok_or_else(|| self.damaged("an allocation cannot be read"))?;
            let reported = reported.get(&id).map(|bytes| decode_reported(bytes));
            let reported = reported.map(|update| update.ok_or_else(|| self.damaged("a report cannot be read")));
            let counted = restarts.get(&id).map_or(Some(Restarts::default()), |bytes| decode_restarts(bytes));
            let restarts = counted.ok_or_else(|| self.damaged("a count of restarts cannot be read"))?;
            let life = lives.get(&id).map_or(Some(Life::default()), |bytes| serde_json::from_slice(bytes).ok());
            let life = life.ok_or_else(|| self.damaged("what an allocation did cannot be read"))?;
            let running_since = Timestamp(life.running_since);
            let memory = Memory { restarts, running_since, restarting: life.restarting };
            kept.insert(id, KeptAlloc { told, reported: reported.transpose()?, memory });
        }
        Ok(kept)
    }

    pub fn keep_told(&self, alloc: &Allocation) -> Result<(), StoreError> {
        let push = ServerMessage::Allocations { generation: Generation(0), allocs: vec![alloc.clone()] };
        let bytes = sealed(&pb::ServerMessage::from(push).encode_to_vec());
        self.write(|tables| {
            tables.open_table(TOLD)?.insert(&alloc.id.0.as_bytes()[..], &bytes[..])?;
            Ok(())
        })
    }

    /// A report and the memory that belongs to it, together or not at all.
    pub fn keep_reports(&self, reports: &[(AllocUpdate, Memory)]) -> Result<(), StoreError> {
        self.write(|tables| {
            let (mut reported, mut restarts) = (tables.open_table(REPORTED)?, tables.open_table(RESTARTS)?);
            let mut lives = tables.open_table(LIVES)?;
            for (update, memory) in reports {
                let bytes = pb::AgentMessage::from(AgentMessage::Allocs(vec![update.clone()])).encode_to_vec();
                let key = &update.alloc_id.0.as_bytes()[..];
                reported.insert(key, &sealed(&bytes)[..])?;
                restarts.insert(key, &sealed(&encode_restarts(&memory.restarts))[..])?;
                lives.insert(key, &sealed(&Life::of(memory).encode())[..])?;
            }
            Ok(())
        })
    }

    pub fn forget(&self, id: AllocId) -> Result<(), StoreError> {
        self.write(|tables| {
            tables.open_table(TOLD)?.remove(&id.0.as_bytes()[..])?;
            tables.open_table(REPORTED)?.remove(&id.0.as_bytes()[..])?;
            tables.open_table(RESTARTS)?.remove(&id.0.as_bytes()[..])?;
            tables.open_table(LIVES)?.remove(&id.0.as_bytes()[..])?;
            Ok(())
        })
    }

    pub fn forget_all(&self) -> Result<(), StoreError> {
        self.write(|tables| {
            for table in [TOLD, REPORTED, RESTARTS, LIVES] {
                tables.delete_table(table)?;
                tables.open_table(table)?;
            }
            Ok(())
        })
    }

    fn meta(&self, key: &str) -> Result<Option<Vec<u8>>, StoreError> {
        let read = || -> Result<Option<Vec<u8>>, redb::Error> {
            let table = self.database.begin_read()?.open_table(META)?;
            Ok(table.get(key)?.map(|value| value.value().to_vec()))
        };
        let bytes = read().map_err(|error| self.failed(error))?;
        bytes.map(|bytes| self.unsealed(&bytes)).transpose()
    }

    fn set_meta(&self, key: &str, value: &[u8]) -> Result<(), StoreError> {
        self.write(|tables| {
            tables.open_table(META)?.insert(key, &sealed(value)[..])?;
            Ok(())
        })
    }

    fn records(&self, table: TableDefinition<'_, &[u8], &[u8]>) -> Result<BTreeMap<AllocId, Vec<u8>>, StoreError> {
        let read = || -> Result<Vec<Row>, redb::Error> {
            let table = self.database.begin_read()?.open_table(table)?;
            let mut rows = Vec::new();
            for row in table.iter()? {
                let (key, value) = row?;
                rows.push((key.value().to_vec(), value.value().to_vec()));
            }
            Ok(rows)
        };
        let rows = read().map_err(|error| self.failed(error))?;
        let row = |(key, value): Row| {
            let id = Uuid::from_slice(&key).map_err(|_| self.damaged("a key is no allocation id"))?;
            Ok((AllocId(id), self.unsealed(&value)?))
        };
        rows.into_iter().map(row).collect()
    }

    fn write(&self, change: impl FnOnce(&redb::WriteTransaction) -> Result<(), redb::Error>) -> Result<(), StoreError> {
        let run = || -> Result<(), redb::Error> {
            let transaction = self.database.begin_write()?;
            change(&transaction)?;
            Ok(transaction.commit()?)
        };
        run().map_err(|error| self.failed(error))
    }

    fn unsealed(&self, bytes: &[u8]) -> Result<Vec<u8>, StoreError> {
        let (body, crc) = bytes.split_last_chunk::<4>().ok_or_else(|| self.damaged("a record is too short"))?;
        if u32::from_le_bytes(*crc) != crc32(body) {
            return Err(self.damaged("a record's checksum is wrong"));
        }
        Ok(body.to_vec())
    }

    fn damaged(&self, problem: &str) -> StoreError {
        StoreError::Damaged { path: self.path.to_path_buf(), problem: problem.to_owned() }
    }

    fn failed(&self, error: redb::Error) -> StoreError {
        let path = self.path.to_path_buf();
        match error {
            redb::Error::Corrupted(problem) => StoreError::Damaged { path, problem },
            source => StoreError::Io { path, source },
        }
    }
}

fn opening(path: &Path, error: DatabaseError) -> StoreError {
    let owned = path.to_owned();
    let damaged = |problem: String| StoreError::Damaged { path: owned.clone(), problem };
    match error {
        DatabaseError::DatabaseAlreadyOpen => StoreError::InUse { path: path.to_owned() },
        DatabaseError::Storage(StorageError::Corrupted(problem)) => damaged(problem),
        DatabaseError::Storage(StorageError::Io(io)) if is_garbage(&io) => damaged(io.to_string()),
        DatabaseError::RepairAborted | DatabaseError::UpgradeRequired(_) => damaged(error.to_string()),
        other => StoreError::Io { path: path.to_owned(), source: other.into() },
    }
}

/// What redb answers for a file that is not, or no longer, one of its own.
fn is_garbage(error: &std::io::Error) -> bool {
    matches!(error.kind(), std::io::ErrorKind::InvalidData | std::io::ErrorKind::UnexpectedEof)
}

fn decode_told(bytes: &[u8]) -> Option<Allocation> {
    match ServerMessage::try_from(pb::ServerMessage::decode(bytes).ok()?).ok()? {
        ServerMessage::Allocations { mut allocs, .. } if allocs.len() == 1 => allocs.pop(),
        _ => None,
    }
}

fn decode_reported(bytes: &[u8]) -> Option<AllocUpdate> {
    match AgentMessage::try_from(pb::AgentMessage::decode(bytes).ok()?).ok()? {
        AgentMessage::Allocs(mut updates) if updates.len() == 1 => updates.pop(),
        _ => None,
    }
}

/// As JSON; unknown fields of a newer release are left alone.
#[derive(Default, Serialize, Deserialize)]
struct Life {
    #[serde(default)]
    running_since: u64,
    #[serde(default)]
    restarting: bool,
}

impl Life {
    fn of(memory: &Memory) -> Self {
        Self { running_since: memory.running_since.0, restarting: memory.restarting }
    }

    fn encode(&self) -> Vec<u8> {
        serde_json::to_vec(self).expect("a number and a truth value are JSON")
    }
}

fn encode_restarts(restarts: &Restarts) -> Vec<u8> {
    let plain = |count: &RestartCount| (count.ends, count.interval_from.0, count.due.0);
    let plain: BTreeMap<&str, _> = restarts.iter().map(|(task, count)| (task.as_str(), plain(count))).collect();
    serde_json::to_vec(&plain).expect("numbers under text keys are JSON")
}

fn decode_restarts(bytes: &[u8]) -> Option<Restarts> {
    let plain: BTreeMap<String, (u32, u64, u64)> = serde_json::from_slice(bytes).ok()?;
    let count = |(ends, from, due)| RestartCount { ends, interval_from: Timestamp(from), due: Timestamp(due) };
    Some(plain.into_iter().map(|(task, plain)| (task, count(plain))).collect())
}

fn sealed(body: &[u8]) -> Vec<u8> {
    [body, &crc32(body).to_le_bytes()].concat()
}

/// CRC-32 (IEEE 802.3), bit by bit: records are small and rare.
fn crc32(bytes: &[u8]) -> u32 {
    let step = |crc: u32| if crc & 1 == 1 { (crc >> 1) ^ 0xedb8_8320 } else { crc >> 1 };
    !bytes.iter().fold(!0, |crc, byte| (0..8).fold(crc ^ u32::from(*byte), |crc, _| step(crc)))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::allocs::fixtures::allocation;
    use model::ClientStatus;

    fn report(id: AllocId) -> AllocUpdate {
        AllocUpdate {
            alloc_id: id,
            client: ClientStatus::Running,
            client_description: "as told".to_owned(),
            task_states: BTreeMap::new(),
            address: Some([10, 64, 0, 2].into()),
            checks: BTreeMap::new(),
        }
    }

    #[test]
    fn everything_survives_a_restart_and_the_epoch_grows() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("state.redb");
        let (one, two) = (allocation(1), allocation(2));
        let store = Store::open(&path).unwrap();
        let id = store.node_id(7).unwrap();
        assert_eq!(store.next_epoch().unwrap(), Epoch(1));
        for alloc in [&one, &two] {
            store.keep_told(alloc).unwrap();
        }
        let restarts = Restarts::from([(
            "web".to_owned(),
            RestartCount { ends: 2, interval_from: Timestamp(7), due: Timestamp(9) },
        )]);
        let memory = Memory { restarts, running_since: Timestamp(5), restarting: true };
        store.keep_reports(&[(report(one.id), memory.clone())]).unwrap();
        drop(store);
        let store = Store::open(&path).unwrap();
        assert_eq!((store.node_id(8).unwrap(), store.next_epoch().unwrap()), (id, Epoch(2)));
        let expect = [
            (one.id, KeptAlloc { told: one.clone(), reported: Some(report(one.id)), memory }),
            (two.id, KeptAlloc { told: two.clone(), reported: None, memory: Memory::default() }),
        ];
        assert_eq!(store.allocs().unwrap(), BTreeMap::from(expect));
        store.forget(one.id).unwrap();
        assert_eq!(store.allocs().unwrap().into_keys().collect::<Vec<_>>(), [two.id]);
        store.forget_all().unwrap();
        drop(store);
        let store = Store::open_existing(&path).unwrap();
        assert_eq!((store.allocs().unwrap(), store.node_id(9).unwrap()), (BTreeMap::new(), id));
    }

    #[test]
    fn a_new_start_of_the_machine_is_told_from_one_of_the_agent() {
        let dir = tempfile::tempdir().unwrap();
        let store = Store::open(&dir.path().join("state.redb")).unwrap();
        let told = ["one", "one", "two", "two"].map(|boot| store.note_boot(boot).unwrap());
        assert_eq!(told, [false, false, true, false]);
    }

    #[test]
    fn a_second_agent_on_the_same_file_is_refused() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("state.redb");
        let _held = Store::open(&path).unwrap();
        assert!(matches!(Store::open(&path), Err(StoreError::InUse { .. })));
    }

    #[test]
    fn a_record_that_was_changed_is_refused_with_the_way_back() {
        let dir = tempfile::tempdir().unwrap();
        let store = Store::open(&dir.path().join("state.redb")).unwrap();
        store
            .write(|tables| {
                tables.open_table(META)?.insert("epoch", &[1, 0, 0, 0, 0, 0, 0, 0, 9, 9, 9, 9][..])?;
                Ok(())
            })
            .unwrap();
        let refusal = store.next_epoch().unwrap_err();
        assert!(matches!(refusal, StoreError::Damaged { .. }));
        assert!(refusal.to_string().contains("fresh token"), "{refusal}");
    }

    #[test]
    fn truncated_and_overwritten_files_are_refused() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("state.redb");
        Store::open(&path).unwrap().keep_told(&allocation(1)).unwrap();
        let whole = std::fs::read(&path).unwrap();
        let damaged = |bytes: &[u8]| {
            std::fs::write(&path, bytes).unwrap();
            let outcome = Store::open(&path).and_then(|store| store.allocs().map(drop));
            assert!(matches!(outcome, Err(StoreError::Damaged { .. })), "{outcome:?}");
        };
        damaged(&whole[..whole.len() / 2]);
        damaged(b"not a database at all, but long enough to look like a header of something else entirely");
        let mut flipped = whole.clone();
        flipped[64..].fill(0x5a);
        damaged(&flipped);
    }

    #[test]
    fn crc32_has_its_published_check_value() {
        assert_eq!(crc32(b"123456789"), 0xcbf4_3926);
    }
}
