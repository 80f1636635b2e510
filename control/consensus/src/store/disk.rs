//! The log in `raft.redb`, snapshots in files beside it, and a floor that tells a database which has gone back in time.
//!
//! Tables: `meta` (format, id, vote, base, which snapshot) and `log` (index -> entry). Every record carries a checksum.
//! `raft.floor` holds this server's id, a term and an index that the database must have reached: an empty, truncated or
//! restored-from-backup database would vote twice, so it is refused. The floor is written after the database, therefore
//! never ahead of what a crash may leave.

use std::fs;
use std::path::{Path, PathBuf};

use protobuf_raft::Message;
use raft::eraftpb::{Entry, HardState, Snapshot, SnapshotMetadata};
use redb::{Builder, Database, DatabaseError, ReadableDatabase, ReadableTable, StorageError, TableDefinition};

use super::{Base, Loaded, LogStore, SnapshotWrite, Write, crc, files};
use crate::api::StoreError;

const META: TableDefinition<'_, &str, &[u8]> = TableDefinition::new("meta");
const LOG: TableDefinition<'_, u64, &[u8]> = TableDefinition::new("log");
const FORMAT: u32 = 1;
const CACHE_BYTES: usize = 16 << 20;

pub struct DiskStore {
    id: u64,
    path: PathBuf,
    database: Database,
    buffered: Vec<Write>,
    floor: Floor,
}

/// What the database must at least know.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
struct Floor {
    term: u64,
    index: u64,
}

type Boxed = Box<dyn std::error::Error + Send + Sync>;

impl DiskStore {
    /// Opens or makes the store of server `id` in `directory`, reading every page to see that it is whole.
    pub fn open(directory: &Path, id: u64) -> Result<DiskStore, StoreError> {
        fs::create_dir_all(directory).map_err(files::io("making", directory))?;
        let path = directory.join("raft.redb");
        let floor = read_floor(&floor_path(&path), id)?;
        refuse_lost_database(&path, floor)?;
        let database = open_database(&path)?;
        files::sync_parent(&path)?;
        let store = DiskStore { id, path, database, buffered: Vec::new(), floor: floor.unwrap_or_default() };
        store.claim(floor.is_some())?;
        if floor.is_none() {
            store.write_floor(Floor::default())?;
        }
        Ok(store)
    }

    /// Writes format and id into a new database, checks them in an old one.
    fn claim(&self, has_floor: bool) -> Result<(), StoreError> {
        let format = self.meta("format")?;
        let id = self.meta("id")?;
        match (format, id) {
            (None, None) if !has_floor => self.transaction(|tables| {
                tables.put_meta("format", &FORMAT.to_le_bytes())?;
                tables.put_meta("id", &self.id.to_le_bytes())
            }),
            (Some(format), Some(id)) => self.check_claim(&format, &id),
            _ => Err(self.damaged("it has lost its first records")),
        }
    }

    fn check_claim(&self, format: &[u8], id: &[u8]) -> Result<(), StoreError> {
        let found = format.try_into().map(u32::from_le_bytes).map_err(|_| self.damaged("its format record is cut"))?;
        if found != FORMAT {
            return Err(StoreError::Format { path: self.path.clone(), found, known: FORMAT });
        }
        let found = id.try_into().map(u64::from_le_bytes).map_err(|_| self.damaged("its id record is cut"))?;
        if found != self.id {
            return Err(StoreError::WrongServer { path: self.path.clone(), expected: self.id, found });
        }
        Ok(())
    }

    fn meta(&self, key: &str) -> Result<Option<Vec<u8>>, StoreError> {
        let record = self.read_meta(key).map_err(|source| self.database_error("reading", source))?;
        record
            .map(|record| crc::open(key.as_bytes(), &record).map(<[u8]>::to_vec))
            .map(|value| value.ok_or_else(|| self.damaged(&format!("the checksum of its record {key} does not match"))))
            .transpose()
    }

    fn read_meta(&self, key: &str) -> Result<Option<Vec<u8>>, Boxed> {
        let transaction = self.database.begin_read()?;
        match transaction.open_table(META) {
            Ok(table) => Ok(table.get(key)?.map(|record| record.value().to_vec())),
            Err(redb::TableError::TableDoesNotExist(_)) => Ok(None),
            Err(error) => Err(error.into()),
        }
    }

    fn decode_meta<T: Message + Default>(&self, key: &str) -> Result<Option<T>, StoreError> {
        let value = self.meta(key)?;
        value
            .map(|value| T::decode(value.as_slice()))
            .transpose()
            .map_err(|_| self.damaged(&format!("its record {key} cannot be read")))
    }

    fn load_snapshot(&self, metadata: &SnapshotMetadata) -> Result<Snapshot, StoreError> {
        let path = self.snapshot_path(metadata);
        match files::read(&path)? {
            Some(data) => Ok(Snapshot { data, metadata: Some(metadata.clone()) }),
            None => Err(StoreError::Damaged { path, what: "the snapshot is missing".to_owned() }),
        }
    }

    fn load_entries(&self) -> Result<Vec<Entry>, StoreError> {
        let records = self.read_log().map_err(|source| self.database_error("reading", source))?;
        records.into_iter().map(|(index, record)| self.open_entry(index, &record)).collect()
    }

    fn read_log(&self) -> Result<Vec<(u64, Vec<u8>)>, Boxed> {
        let transaction = self.database.begin_read()?;
        let table = match transaction.open_table(LOG) {
            Ok(table) => table,
            Err(redb::TableError::TableDoesNotExist(_)) => return Ok(Vec::new()),
            Err(error) => return Err(error.into()),
        };
        let records = table.iter()?.map(|row| row.map(|(index, record)| (index.value(), record.value().to_vec())));
        Ok(records.collect::<Result<_, StorageError>>()?)
    }

    fn open_entry(&self, index: u64, record: &[u8]) -> Result<Entry, StoreError> {
        crc::open(&index.to_be_bytes(), record)
            .and_then(|value| Entry::decode(value).ok())
            .filter(|entry| entry.index == index)
            .ok_or_else(|| self.damaged(&format!("the checksum of log entry {index} does not match")))
    }

    /// Runs `change` in one transaction that is on disk when this returns.
    fn transaction(&self, change: impl FnOnce(&mut Tables<'_>) -> Result<(), Boxed>) -> Result<(), StoreError> {
        self.try_transaction(change).map_err(|source| self.database_error("writing", source))
    }

    fn try_transaction(&self, change: impl FnOnce(&mut Tables<'_>) -> Result<(), Boxed>) -> Result<(), Boxed> {
        let transaction = self.database.begin_write()?;
        {
            let mut tables = Tables { meta: transaction.open_table(META)?, log: transaction.open_table(LOG)? };
            change(&mut tables)?;
        }
        Ok(transaction.commit()?)
    }

    /// Snapshots must be on disk before the log that they replace goes.
    fn write_snapshot_files(&self, writes: &[Write]) -> Result<(), StoreError> {
        writes.iter().filter_map(|write| write.snapshot.as_ref()).try_for_each(|taken| {
            files::replace(&self.snapshot_path(taken.snapshot.get_metadata()), &taken.snapshot.data)
        })
    }

    fn snapshot_path(&self, metadata: &SnapshotMetadata) -> PathBuf {
        let directory = self.path.parent().unwrap_or(Path::new("."));
        files::snapshot_path(directory, metadata.index, metadata.term)
    }

    /// Elections and snapshots only: an ordinary write costs no second fsync.
    fn raise_floor(&mut self, writes: &[Write]) -> Result<(), StoreError> {
        let mut floor = self.floor;
        for write in writes {
            floor.term = floor.term.max(write.hard_state.as_ref().map_or(0, |hard_state| hard_state.term));
            floor.index = floor.index.max(write.snapshot.as_ref().map_or(0, |s| s.snapshot.get_metadata().index));
        }
        if floor != self.floor {
            self.write_floor(floor)?;
            self.floor = floor;
        }
        Ok(())
    }

    fn write_floor(&self, floor: Floor) -> Result<(), StoreError> {
        let content: Vec<u8> =
            [self.id, floor.term, floor.index].iter().flat_map(|field| field.to_le_bytes()).collect();
        files::replace(&floor_path(&self.path), &content)
    }

    fn damaged(&self, what: &str) -> StoreError {
        StoreError::Damaged { path: self.path.clone(), what: what.to_owned() }
    }

    fn database_error(&self, operation: &'static str, source: Boxed) -> StoreError {
        match source.downcast_ref::<StorageError>() {
            Some(StorageError::Corrupted(what)) => self.damaged(what),
            _ => StoreError::Database { operation, path: self.path.clone(), source },
        }
    }
}

impl LogStore for DiskStore {
    fn load(&mut self) -> Result<Loaded, StoreError> {
        let hard_state: HardState = self.decode_meta("hard state")?.unwrap_or_default();
        let metadata: Option<SnapshotMetadata> = self.decode_meta("snapshot")?;
        // The base is kept as an entry without data: it has the two fields that matter.
        let base: Entry = self.decode_meta("base")?.unwrap_or_default();
        let loaded = Loaded {
            snapshot: metadata.map(|metadata| self.load_snapshot(&metadata)).transpose()?,
            base: Base { index: base.index, term: base.term },
            entries: self.load_entries()?,
            hard_state,
        };
        let snapshot_index = loaded.snapshot.as_ref().map_or(0, |snapshot| snapshot.get_metadata().index);
        if loaded.hard_state.term < self.floor.term || snapshot_index < self.floor.index {
            return Err(self.damaged("it is older than what this server has already promised"));
        }
        match loaded.contradiction() {
            Some(what) => Err(self.damaged(what)),
            None => Ok(loaded),
        }
    }

    fn write(&mut self, write: Write) -> Result<(), StoreError> {
        self.buffered.push(write);
        Ok(())
    }

    fn sync(&mut self) -> Result<(), StoreError> {
        let writes = std::mem::take(&mut self.buffered);
        if writes.is_empty() {
            return Ok(());
        }
        self.write_snapshot_files(&writes)?;
        self.transaction(|tables| writes.iter().try_for_each(|write| tables.take_in(write)))?;
        self.raise_floor(&writes)?;
        if let Some(taken) = writes.iter().rev().find_map(|write| write.snapshot.as_ref()) {
            let current = self.snapshot_path(taken.snapshot.get_metadata());
            files::remove_other_snapshots(current.parent().unwrap_or(Path::new(".")), &current);
        }
        Ok(())
    }
}

/// The two tables inside one write transaction.
struct Tables<'t> {
    meta: redb::Table<'t, &'static str, &'static [u8]>,
    log: redb::Table<'t, u64, &'static [u8]>,
}

impl Tables<'_> {
    fn take_in(&mut self, write: &Write) -> Result<(), Boxed> {
        if let Some(taken) = &write.snapshot {
            self.take_snapshot(taken)?;
        }
        if let Some(first) = write.entries.first() {
            self.log.retain_in(first.index.., |_, _| false)?;
        }
        for entry in &write.entries {
            let record = crc::seal(&entry.index.to_be_bytes(), &entry.encode_to_vec());
            self.log.insert(entry.index, record.as_slice())?;
        }
        match &write.hard_state {
            Some(hard_state) => self.put_meta("hard state", &hard_state.encode_to_vec()),
            None => Ok(()),
        }
    }

    fn take_snapshot(&mut self, taken: &SnapshotWrite) -> Result<(), Boxed> {
        let last_gone = if taken.replaces_log { u64::MAX } else { taken.base.index };
        self.log.retain_in(..=last_gone, |_, _| false)?;
        let base = Entry { index: taken.base.index, term: taken.base.term, ..Entry::default() };
        self.put_meta("base", &base.encode_to_vec())?;
        self.put_meta("snapshot", &taken.snapshot.get_metadata().encode_to_vec())
    }

    fn put_meta(&mut self, key: &'static str, value: &[u8]) -> Result<(), Boxed> {
        self.meta.insert(key, crc::seal(key.as_bytes(), value).as_slice())?;
        Ok(())
    }
}

fn open_database(path: &Path) -> Result<Database, StoreError> {
    let mut builder = Builder::new();
    builder.set_cache_size(CACHE_BYTES).set_check_integrity_on_open(true);
    builder.create(path).map_err(|error| match error {
        DatabaseError::DatabaseAlreadyOpen => StoreError::InUse { path: path.to_owned() },
        DatabaseError::Storage(StorageError::Io(source)) if source.kind() != std::io::ErrorKind::InvalidData => {
            StoreError::Io { operation: "opening", path: path.to_owned(), source }
        }
        other => StoreError::Damaged { path: path.to_owned(), what: other.to_string() },
    })
}

/// A floor without a database means that the database was lost; redb would quietly start a new one.
fn refuse_lost_database(path: &Path, floor: Option<Floor>) -> Result<(), StoreError> {
    let has_database = fs::metadata(path).is_ok_and(|metadata| metadata.len() > 0);
    match floor {
        Some(_) if !has_database => {
            Err(StoreError::Damaged { path: path.to_owned(), what: "it is missing or empty".to_owned() })
        }
        _ => Ok(()),
    }
}

fn floor_path(database: &Path) -> PathBuf {
    database.with_extension("floor")
}

fn read_floor(path: &Path, id: u64) -> Result<Option<Floor>, StoreError> {
    let Some(content) = files::read(path)? else { return Ok(None) };
    let fields: Vec<u64> = content.as_chunks::<8>().0.iter().map(|field| u64::from_le_bytes(*field)).collect();
    match fields[..] {
        [found, ..] if found != id => Err(StoreError::WrongServer { path: path.to_owned(), expected: id, found }),
        [_, term, index] => Ok(Some(Floor { term, index })),
        _ => Err(StoreError::Damaged { path: path.to_owned(), what: "it is cut".to_owned() }),
    }
}
