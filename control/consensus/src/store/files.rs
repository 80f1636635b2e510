//! Whole files replaced at once: write beside, fsync, rename, fsync the directory.

use std::fs::{self, File};
use std::io::Write as _;
use std::path::{Path, PathBuf};

use super::crc;
use crate::api::StoreError;

/// Replaces `path`; after a crash it holds the old or the new content, never a mixture.
pub(super) fn replace(path: &Path, content: &[u8]) -> Result<(), StoreError> {
    let beside = path.with_extension("tmp");
    let write = || {
        let mut file = File::create(&beside)?;
        file.write_all(&crc::seal(b"", content))?;
        file.sync_all()?;
        fs::rename(&beside, path)
    };
    write().map_err(io("writing", path))?;
    sync_parent(path)
}

/// The content of a file that [`replace`] wrote; `None` if there is no such file.
pub(super) fn read(path: &Path) -> Result<Option<Vec<u8>>, StoreError> {
    let sealed = match fs::read(path) {
        Ok(sealed) => sealed,
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Ok(None),
        Err(error) => return Err(io("reading", path)(error)),
    };
    match crc::open(b"", &sealed) {
        Some(content) => Ok(Some(content.to_vec())),
        None => Err(StoreError::Damaged { path: path.to_owned(), what: "its checksum does not match".to_owned() }),
    }
}

/// A new name lasts only once its directory is on disk.
pub(super) fn sync_parent(path: &Path) -> Result<(), StoreError> {
    let parent = path.parent().unwrap_or(Path::new("."));
    File::open(parent).and_then(|directory| directory.sync_all()).map_err(io("syncing", parent))
}

pub(super) fn io(operation: &'static str, path: &Path) -> impl FnOnce(std::io::Error) -> StoreError {
    let path = path.to_owned();
    move |source| StoreError::Io { operation, path, source }
}

/// Snapshots are named by what they hold, so that a new one never overwrites the one the log still refers to.
pub(super) fn snapshot_path(directory: &Path, index: u64, term: u64) -> PathBuf {
    directory.join(format!("snapshot-{term:016x}-{index:016x}"))
}

/// Removes snapshots other than `current`. What cannot be removed only takes space, so it is no error.
pub(super) fn remove_other_snapshots(directory: &Path, current: &Path) {
    let Ok(listing) = fs::read_dir(directory) else { return };
    let is_old = |path: &PathBuf| {
        let name = path.file_name().and_then(|name| name.to_str()).unwrap_or_default();
        name.starts_with("snapshot-") && path != current
    };
    for path in listing.flatten().map(|entry| entry.path()).filter(is_old) {
        if let Err(error) = fs::remove_file(&path) {
            tracing::warn!(path = %path.display(), %error, "an old snapshot stays on disk");
        }
    }
}
