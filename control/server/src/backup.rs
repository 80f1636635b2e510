//! Snapshot files for operators: what `meshctl operator snapshot` saves, inspects and restores.
//!
//! ```text
//! meshctl-snapshot 1\n
//! {metadata as one line of JSON}\n
//! the catalog, as `wire::snapshot` writes it
//! SHA-256 of everything before: 32 bytes
//! ```
//!
//! A file holds the authority's key only as it is sealed, and of join tokens only digests.

use catalog::Catalog;
use model::CatalogImage;
use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;

/// The most bytes of a file that is taken in.
pub const SNAPSHOT_BYTES_MAX: usize = 48 << 20;

const MAGIC: &[u8] = b"meshctl-snapshot 1\n";
const DIGEST_BYTES: usize = 32;
const META_BYTES_MAX: usize = 64 << 10;

/// The second line of a snapshot file.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "PascalCase")]
pub struct SnapshotMeta {
    /// The log index up to which commands are contained.
    pub index: u64,
    pub term: u64,
    /// Of the release that wrote it.
    pub version: String,
    pub feature_level: u32,
    /// SHA-256 of the cluster's CA certificate, in hex.
    pub cluster: String,
    /// RFC 3339.
    pub taken_at: String,
    /// Of the catalog.
    pub bytes: u64,
    pub rows: BTreeMap<String, u64>,
}

#[derive(Debug, thiserror::Error)]
pub enum SnapshotError {
    #[error("this is no snapshot file of meshctl; make one with `meshctl operator snapshot save`")]
    Foreign,
    #[error("the snapshot file is damaged: its checksum does not fit; use another copy")]
    Checksum,
    #[error("the snapshot file's metadata cannot be read: {0}")]
    Meta(String),
    #[error("{0}")]
    Catalog(#[from] wire::snapshot::DecodeError),
    #[error("the snapshot has {bytes} bytes, the most is {SNAPSHOT_BYTES_MAX}")]
    TooLarge { bytes: usize },
}

/// The file of a catalog.
pub(crate) fn write(catalog: &Catalog, term: u64, taken_at: String) -> Result<Vec<u8>, SnapshotError> {
    let image = catalog.image();
    let body = wire::snapshot::encode(&image);
    let meta = SnapshotMeta {
        index: image.index.0,
        term,
        version: model::VERSION.to_owned(),
        feature_level: image.feature_level,
        cluster: catalog.authority().map(|ca| digest_hex(&ca.certificate_der)).unwrap_or_default(),
        taken_at,
        bytes: body.len() as u64,
        rows: rows(&image),
    };
    let meta = serde_json::to_vec(&meta).map_err(|error| SnapshotError::Meta(error.to_string()))?;
    let mut file = [MAGIC, &meta, b"\n", &body].concat();
    let digest = identity::sha256(&file);
    file.extend_from_slice(&digest);
    match file.len() {
        0..=SNAPSHOT_BYTES_MAX => Ok(file),
        bytes => Err(SnapshotError::TooLarge { bytes }),
    }
}

/// Checks a whole file and reads it.
pub fn read_snapshot(file: &[u8]) -> Result<(SnapshotMeta, CatalogImage), SnapshotError> {
    let rest = file.strip_prefix(MAGIC).ok_or(SnapshotError::Foreign)?;
    let (content, digest) =
        file.split_at_checked(file.len().saturating_sub(DIGEST_BYTES)).ok_or(SnapshotError::Checksum)?;
    if content.len() < MAGIC.len() || identity::sha256(content) != *digest {
        return Err(SnapshotError::Checksum);
    }
    let rest = &rest[..rest.len() - DIGEST_BYTES];
    let meta_end = rest.iter().take(META_BYTES_MAX).position(|byte| *byte == b'\n');
    let meta_end = meta_end.ok_or_else(|| SnapshotError::Meta("it has no end".to_owned()))?;
    let meta: SnapshotMeta =
        serde_json::from_slice(&rest[..meta_end]).map_err(|error| SnapshotError::Meta(error.to_string()))?;
    let body = &rest[meta_end + 1..];
    if meta.bytes != body.len() as u64 {
        return Err(SnapshotError::Meta(format!("it promises {} bytes, {} follow", meta.bytes, body.len())));
    }
    Ok((meta, wire::snapshot::decode(body)?))
}

fn rows(image: &CatalogImage) -> BTreeMap<String, u64> {
    let counts = [
        ("Servers", image.servers.len()),
        ("Nodes", image.nodes.len()),
        ("Jobs", image.jobs.len()),
        ("Allocations", image.allocs.len()),
        ("Evaluations", image.evals.len()),
        ("Deployments", image.deployments.len()),
    ];
    counts.into_iter().map(|(name, count)| (name.to_owned(), count as u64)).collect()
}

fn digest_hex(bytes: &[u8]) -> String {
    crate::disk::hex(&identity::sha256(bytes))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_file_comes_back_and_no_changed_byte_goes_unnoticed() {
        let file = write(&Catalog::default(), 7, "2026-01-02T03:04:05Z".to_owned()).unwrap();
        let (meta, image) = read_snapshot(&file).unwrap();
        assert_eq!((meta.term, meta.rows["Jobs"], image), (7, 0, Catalog::default().image()));
        for at in 0..file.len() {
            let mut damaged = file.clone();
            damaged[at] ^= 0x20;
            assert!(read_snapshot(&damaged).is_err(), "byte {at}");
            assert!(read_snapshot(&file[..at]).is_err(), "cut at {at}");
        }
        assert!(matches!(read_snapshot(b"PK\x03\x04"), Err(SnapshotError::Foreign)));
        assert!(matches!(read_snapshot(&[&file[..], b"x"].concat()), Err(SnapshotError::Checksum)));
    }
}
