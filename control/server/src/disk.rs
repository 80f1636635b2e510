//! The data directory: who this server is and what it proves it with. The log and its snapshots beside it belong to
//! `consensus`.
//!
//! ```text
//! format        "meshctl server 1": written last, so a directory without it was never finished
//! server.json   cluster, id, name, known peers
//! ca.pem server.pem seal.key
//!               server.pem holds certificate and key, so that a renewal replaces both at once; before the first renewal
//!               of an older directory the key is in server.key
//! recovered     only from `recover` until the lost servers are off the list
//! founding.json only from `init` until the cluster knows its own authority
//! raft/
//! ```

use identity::SealKey;
use model::{Authority, ServerId};
use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};
use std::fs::{self, DirBuilder, File, OpenOptions};
use std::io::{self, Write};
use std::net::SocketAddr;
use std::os::unix::fs::{DirBuilderExt, OpenOptionsExt};
use std::path::{Path, PathBuf};

const FORMAT: &str = "meshctl server 1";
/// More than all that a join has to write.
const TRIAL_BYTES: usize = 64 * 1024;

#[derive(Debug, thiserror::Error)]
pub enum DiskError {
    #[error(
        "data_dir: {path} holds server `{name}` of another start already; run `meshctl server` without init or join \
        to go on with it, or choose an empty directory"
    )]
    NotEmpty { path: PathBuf, name: String },
    #[error("data_dir: {path} holds files but no finished server; if nothing in it is needed, empty it and try again")]
    Unfinished { path: PathBuf },
    #[error(
        "data_dir: {path} holds no server; start a cluster with `meshctl server init` or join one with \
        `meshctl server join`"
    )]
    Empty { path: PathBuf },
    #[error("data_dir: {path} has format `{found}`, this build reads `{FORMAT}`; run the release that wrote it")]
    Format { path: PathBuf, found: String },
    #[error("data_dir: {path} belongs to server `{found}`, not `{asked}`; set `name` or data_dir right")]
    OtherName { path: PathBuf, found: String, asked: String },
    #[error("data_dir: {path} is damaged; restore it, or remove this server and join again under another name")]
    Damaged { path: PathBuf, source: serde_json::Error },
    #[error("data_dir: cannot {action} {path}; check owner, permissions and space")]
    Io { action: &'static str, path: PathBuf, source: io::Error },
    #[error(transparent)]
    Seal(#[from] identity::SealError),
}

/// `server.json`.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub(crate) struct Record {
    /// SHA-256 of the cluster's CA certificate, in hex.
    pub cluster: String,
    pub id: u64,
    pub name: String,
    pub rpc_advertise: SocketAddr,
    /// Where the other servers were when this one joined; the catalog knows better once it is replayed.
    pub peers: Vec<Peer>,
}

#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub(crate) struct Peer {
    pub id: u64,
    pub rpc_address: SocketAddr,
}

/// `founding.json`: what the first command will say, kept until it is committed.
#[derive(Serialize, Deserialize)]
pub(crate) struct FoundingFile {
    pub certificate_der: Vec<u8>,
    pub sealed_key: Vec<u8>,
    pub alloc_range: String,
    pub vip_range: String,
}

/// Everything a server proves itself with.
pub(crate) struct Papers {
    pub ca_pem: String,
    pub certificate_pem: String,
    pub key_pem: String,
    pub seal: SealKey,
}

/// A data directory whose place was checked.
#[derive(Clone)]
pub(crate) struct Disk {
    root: PathBuf,
}

impl Disk {
    /// For init and join: the directory must be empty or absent. Changes nothing.
    pub fn vacant(root: &Path) -> Result<Self, DiskError> {
        let disk = Self { root: root.to_owned() };
        match (disk.read_format()?, disk.is_empty()?) {
            (Some(_), _) => {
                let name = disk.record().map_or_else(|_| "?".to_owned(), |record| record.name);
                Err(DiskError::NotEmpty { path: root.to_owned(), name })
            }
            (None, false) => Err(DiskError::Unfinished { path: root.to_owned() }),
            (None, true) => Ok(disk),
        }
    }

    /// Makes the directory and tries a write, so that no token is spent for a place that cannot hold a server. What was made
    /// goes with the guard unless a server has moved in.
    pub fn try_out(&self) -> Result<Trial, DiskError> {
        let made = !self.root.exists();
        self.make()?;
        let trial = Trial { made: made.then(|| self.root.clone()) };
        self.write("trial", 0o600, &[0; TRIAL_BYTES])?;
        self.remove("trial")?;
        Ok(trial)
    }

    /// For resume: the directory must hold a server of this format and name.
    pub fn inhabited(root: &Path, name: &str) -> Result<(Self, Record), DiskError> {
        let disk = Self { root: root.to_owned() };
        match disk.read_format()? {
            Some(format) if format == FORMAT => {}
            Some(found) => return Err(DiskError::Format { path: root.to_owned(), found }),
            None if disk.is_empty()? => return Err(DiskError::Empty { path: root.to_owned() }),
            None => return Err(DiskError::Unfinished { path: root.to_owned() }),
        }
        let record = disk.record()?;
        if record.name != name {
            let (found, asked) = (record.name, name.to_owned());
            return Err(DiskError::OtherName { path: root.to_owned(), found, asked });
        }
        Ok((disk, record))
    }

    /// Moves a new server in. A crash before the end leaves an unfinished directory, which no start accepts.
    pub fn settle(&self, record: &Record, papers: &Papers, founding: Option<&FoundingFile>) -> Result<(), DiskError> {
        self.make()?;
        self.write("ca.pem", 0o600, papers.ca_pem.as_bytes())?;
        self.replace_certificate(&papers.certificate_pem, &papers.key_pem)?;
        self.write("seal.key", 0o600, papers.seal.as_bytes())?;
        if let Some(founding) = founding {
            self.write("founding.json", 0o600, &to_json(founding))?;
        }
        self.write("server.json", 0o600, &to_json(record))?;
        self.write("format", 0o600, FORMAT.as_bytes())
    }

    pub fn record(&self) -> Result<Record, DiskError> {
        self.read_json("server.json")
    }

    /// Certificate and key change in one step: half of a pair would keep the server from starting again.
    pub fn replace_certificate(&self, certificate_pem: &str, key_pem: &str) -> Result<(), DiskError> {
        self.write("server.pem", 0o600, format!("{certificate_pem}{key_pem}").as_bytes())?;
        self.remove("server.key")
    }

    pub fn papers(&self) -> Result<Papers, DiskError> {
        let certificate_pem = self.read_text("server.pem")?;
        let key_pem = match certificate_pem.contains("PRIVATE KEY") {
            true => certificate_pem.clone(),
            false => self.read_text("server.key")?,
        };
        Ok(Papers {
            ca_pem: self.read_text("ca.pem")?,
            certificate_pem,
            key_pem,
            seal: SealKey::from_bytes(&self.read("seal.key")?)?,
        })
    }

    /// What `init` wanted to found, if the cluster may not know it yet.
    pub fn founding(&self) -> Result<Option<FoundingFile>, DiskError> {
        match self.root.join("founding.json").exists() {
            true => self.read_json("founding.json").map(Some),
            false => Ok(None),
        }
    }

    /// The cluster knows its authority now.
    pub fn forget_founding(&self) -> Result<(), DiskError> {
        self.remove("founding.json")
    }

    /// This server alone is left of its cluster: the next start takes the others off the list.
    pub fn note_recovery(&self) -> Result<(), DiskError> {
        self.write("recovered", 0o600, b"")
    }

    pub fn was_recovered(&self) -> bool {
        self.root.join("recovered").exists()
    }

    pub fn forget_recovery(&self) -> Result<(), DiskError> {
        self.remove("recovered")
    }

    pub fn raft_dir(&self) -> PathBuf {
        self.root.join("raft")
    }

    fn make(&self) -> Result<(), DiskError> {
        let mut builder = DirBuilder::new();
        builder.recursive(true).mode(0o700).create(&self.root).map_err(|error| self.io("create", "", error))
    }

    fn read_format(&self) -> Result<Option<String>, DiskError> {
        match fs::read_to_string(self.root.join("format")) {
            Ok(text) => Ok(Some(text.trim().to_owned())),
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
            Err(error) => Err(self.io("read", "format", error)),
        }
    }

    fn is_empty(&self) -> Result<bool, DiskError> {
        match fs::read_dir(&self.root) {
            Ok(mut entries) => Ok(entries.next().is_none()),
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(true),
            Err(error) => Err(self.io("list", "", error)),
        }
    }

    fn read(&self, name: &str) -> Result<Vec<u8>, DiskError> {
        fs::read(self.root.join(name)).map_err(|error| self.io("read", name, error))
    }

    fn read_text(&self, name: &str) -> Result<String, DiskError> {
        fs::read_to_string(self.root.join(name)).map_err(|error| self.io("read", name, error))
    }

    fn read_json<T: DeserializeOwned>(&self, name: &str) -> Result<T, DiskError> {
        let bytes = self.read(name)?;
        serde_json::from_slice(&bytes).map_err(|source| DiskError::Damaged { path: self.root.join(name), source })
    }

    fn remove(&self, name: &str) -> Result<(), DiskError> {
        match fs::remove_file(self.root.join(name)) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => Err(self.io("remove", name, error)),
            _ => Ok(()),
        }
    }

    /// Whole or not at all, also over a power cut.
    fn write(&self, name: &str, mode: u32, content: &[u8]) -> Result<(), DiskError> {
        let path = self.root.join(name);
        let fresh = self.root.join(format!("{name}.new"));
        let written = OpenOptions::new()
            .write(true)
            .create(true)
            .truncate(true)
            .mode(mode)
            .open(&fresh)
            .and_then(|mut file| file.write_all(content).and_then(|()| file.sync_all()))
            .and_then(|()| fs::rename(&fresh, &path))
            .and_then(|()| File::open(&self.root)?.sync_all());
        written.map_err(|error| self.io("write", name, error))
    }

    fn io(&self, action: &'static str, name: &str, source: io::Error) -> DiskError {
        DiskError::Io { action, path: self.root.join(name), source }
    }
}

/// A directory that was made to be tried.
pub(crate) struct Trial {
    made: Option<PathBuf>,
}

impl Drop for Trial {
    fn drop(&mut self) {
        if let Some(root) = &self.made {
            let _ = fs::remove_dir(root); // which only an empty one takes
        }
    }
}

impl FoundingFile {
    pub fn authority(&self) -> Authority {
        Authority { certificate_der: self.certificate_der.clone(), sealed_key: self.sealed_key.clone() }
    }
}

impl Record {
    pub fn server_id(&self) -> ServerId {
        ServerId(self.id)
    }
}

pub(crate) fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}

fn to_json(value: &impl Serialize) -> Vec<u8> {
    serde_json::to_vec_pretty(value).expect("plain structs with string keys")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_place_is_tried_before_it_is_needed_and_left_as_it_was() {
        let dir = tempfile::tempdir().unwrap();
        let disk = Disk::vacant(&dir.path().join("a/s1")).unwrap();
        let trial = disk.try_out().unwrap();
        assert!(disk.root.is_dir() && disk.is_empty().unwrap());
        drop(trial);
        assert!(!disk.root.exists());

        let trial = disk.try_out().unwrap();
        disk.write("format", 0o600, FORMAT.as_bytes()).unwrap();
        drop(trial);
        assert!(disk.root.exists());

        let file = dir.path().join("file");
        fs::write(&file, "").unwrap();
        let error = Disk { root: file.join("s2") }.try_out().err().expect("a file holds no directory");
        assert!(error.to_string().contains("data_dir"), "{error}");
    }
}
