//! The data directory: its format version, the certificate beside the state, and where allocations have their files.
//!
//! ```text
//! <data_dir>/format            meshctl-agent 1
//!            state.redb        what `store` keeps
//!            ca.pem certificate.pem         certificate and key in one file, so that a renewal replaces both at once; before
//!                                           the first renewal of an older directory the key is in key.pem
//!            alloc/<allocation id>/alloc/{data,logs,tmp}
//!                                  <task>/{control,local,secrets}     made by `drivers::Directories`
//! ```

use model::AllocId;
use std::fs::{self, DirBuilder, OpenOptions, Permissions};
use std::io::{self, Write};
use std::os::unix::fs::{DirBuilderExt, OpenOptionsExt, PermissionsExt};
use std::path::{Path, PathBuf};

const FORMAT: &str = "meshctl-agent 1";

#[derive(Debug, thiserror::Error)]
pub enum DataDirError {
    #[error("data_dir: {0} must be an absolute path")]
    NotAbsolute(PathBuf),
    #[error("data_dir: {0} is not a directory; name another one")]
    NotADirectory(PathBuf),
    #[error("data_dir: {0} has files that are no agent's; name an empty or a new directory")]
    Foreign(PathBuf),
    #[error("data_dir: {path} has format `{found}`, this build reads `{FORMAT}`; use the release that wrote it")]
    Format { path: PathBuf, found: String },
    #[error("data_dir: {path} cannot be used")]
    Io { path: PathBuf, source: io::Error },
}

#[derive(Clone, Debug)]
pub struct DataDir {
    root: PathBuf,
}

impl DataDir {
    /// Looks without changing anything: a directory that does not exist yet is fine.
    pub fn inspect(root: &Path) -> Result<Self, DataDirError> {
        let path = || root.to_owned();
        if !root.is_absolute() {
            return Err(DataDirError::NotAbsolute(path()));
        }
        if root.exists() && !root.is_dir() {
            return Err(DataDirError::NotADirectory(path()));
        }
        match fs::read_to_string(root.join("format")) {
            Ok(found) if found.trim() == FORMAT => Ok(Self { root: path() }),
            Ok(found) => Err(DataDirError::Format { path: path(), found: found.trim().to_owned() }),
            Err(error) if error.kind() == io::ErrorKind::NotFound && is_empty(root) => Ok(Self { root: path() }),
            Err(error) if error.kind() == io::ErrorKind::NotFound => Err(DataDirError::Foreign(path())),
            Err(source) => Err(DataDirError::Io { path: path(), source }),
        }
    }

    pub fn open(root: &Path) -> Result<Self, DataDirError> {
        let dir = Self::inspect(root)?;
        dir.create().map_err(|source| DataDirError::Io { path: root.to_owned(), source })?;
        Ok(dir)
    }

    /// Tasks of other users must reach their own directories below: 0711, and 0700 for what is ours.
    fn create(&self) -> io::Result<()> {
        DirBuilder::new().recursive(true).mode(0o711).create(self.allocs())?;
        fs::set_permissions(&self.root, Permissions::from_mode(0o711))?;
        if !self.root.join("format").exists() {
            write_private(&self.root.join("format"), FORMAT.as_bytes())?;
        }
        Ok(())
    }

    pub fn root(&self) -> &Path {
        &self.root
    }

    pub fn state_file(&self) -> PathBuf {
        self.root.join("state.redb")
    }

    pub fn allocs(&self) -> PathBuf {
        self.root.join("alloc")
    }

    pub fn alloc(&self, id: AllocId) -> PathBuf {
        self.allocs().join(id.to_string())
    }

    /// Where the tasks' output goes.
    pub fn logs(&self, id: AllocId) -> PathBuf {
        self.alloc(id).join("alloc/logs")
    }

    pub fn has_certificate(&self) -> bool {
        self.root.join("certificate.pem").exists()
    }

    /// CA, certificate and key, as they were written.
    pub fn read_certificate(&self) -> io::Result<CertificateFiles> {
        let read = |name: &str| fs::read_to_string(self.root.join(name));
        let certificate = read("certificate.pem")?;
        let key = if certificate.contains("PRIVATE KEY") { certificate.clone() } else { read("key.pem")? };
        Ok(CertificateFiles { ca: read("ca.pem")?, certificate, key })
    }

    /// The certificate goes last, with its key: with it the set counts as complete.
    pub fn write_certificate(&self, files: &CertificateFiles) -> io::Result<()> {
        write_private(&self.root.join("ca.pem"), files.ca.as_bytes())?;
        let pair = format!("{}{}", files.certificate, files.key);
        write_private(&self.root.join("certificate.pem"), pair.as_bytes())?;
        fs::File::open(&self.root)?.sync_all()?;
        match fs::remove_file(self.root.join("key.pem")) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => Err(error),
            _ => Ok(()),
        }
    }
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub struct CertificateFiles {
    pub ca: String,
    pub certificate: String,
    pub key: String,
}

fn is_empty(dir: &Path) -> bool {
    fs::read_dir(dir).map_or(true, |mut entries| entries.next().is_none())
}

/// Whole or not at all, readable by root only.
fn write_private(path: &Path, content: &[u8]) -> io::Result<()> {
    let scratch = path.with_extension("new");
    let mut file = OpenOptions::new().write(true).create(true).truncate(true).mode(0o600).open(&scratch)?;
    file.write_all(content)?;
    file.sync_all()?;
    fs::rename(&scratch, path)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_foreign_or_newer_directory_is_left_alone() {
        let dir = tempfile::tempdir().unwrap();
        fs::write(dir.path().join("thesis.doc"), "x").unwrap();
        assert!(matches!(DataDir::open(dir.path()), Err(DataDirError::Foreign(_))));
        fs::write(dir.path().join("format"), "meshctl-agent 2\n").unwrap();
        assert!(matches!(DataDir::open(dir.path()), Err(DataDirError::Format { .. })));
        assert!(matches!(DataDir::inspect(Path::new("data")), Err(DataDirError::NotAbsolute(_))));
    }

    #[test]
    fn keys_are_for_root_only_and_come_back() {
        let dir = tempfile::tempdir().unwrap();
        let data = DataDir::open(&dir.path().join("new")).unwrap();
        assert!(!data.has_certificate());
        // As an older release left them: the key in a file of its own.
        for (name, text) in [("ca.pem", "a"), ("certificate.pem", "b"), ("key.pem", "c")] {
            fs::write(data.root().join(name), text).unwrap();
        }
        let files = CertificateFiles { ca: "a".into(), certificate: "b".into(), key: "c".into() };
        assert_eq!(data.read_certificate().unwrap(), files);
        let renewed = CertificateFiles { key: "PRIVATE KEY d".into(), ..files };
        data.write_certificate(&renewed).unwrap();
        let again = DataDir::open(data.root()).unwrap().read_certificate().unwrap();
        assert_eq!((again.certificate.as_str(), again.key.as_str()), ("bPRIVATE KEY d", "bPRIVATE KEY d"));
        assert!(!data.root().join("key.pem").exists());
        let mode = fs::metadata(data.root().join("certificate.pem")).unwrap().permissions().mode();
        assert_eq!(mode & 0o777, 0o600);
    }
}
