//! Fetches what a task's `artifact` blocks name and puts it into the task's directory, whole or not at all.
//!
//! ```text
//!  source ─parse─► Plan ─get─► staging/download ─checksum─► unpack ─► staging/tree ─place─► task directory
//! ```
//! Everything fetched is hostile until proven otherwise: it is collected in a staging directory that no task sees, bounded
//! in bytes, files and time, and refused by name when an entry is anything but a plain file, a directory or a link that
//! stays inside. Only then it is moved, by directory handles that follow no link, so that a task that ran before cannot
//! lead it astray.

mod archive;
pub mod beneath;
mod checksum;
mod git;
mod http;
mod source;

pub use beneath::{Beneath, BeneathError};
pub use source::{Archive, Checksum, Getter, Plan, SourceError};

use std::io;
use std::path::{Path, PathBuf};
use std::time::Duration;

/// What a node's owner lets artifacts do.
#[derive(Clone, Debug)]
pub struct Policy {
    /// Of what is downloaded, and again of what is unpacked.
    pub bytes_max: u64,
    pub files_max: usize,
    /// For one artifact from beginning to end.
    pub time_max: Duration,
    /// Directories of the node that `file://` sources may lie in; none by default.
    pub file_roots: Vec<PathBuf>,
}

impl Default for Policy {
    fn default() -> Self {
        Self { bytes_max: 10 << 30, files_max: 100_000, time_max: Duration::from_secs(30 * 60), file_roots: Vec::new() }
    }
}

#[derive(Debug, thiserror::Error)]
pub enum ArtifactError {
    #[error(transparent)]
    Source(#[from] SourceError),
    #[error("{url}: {reason}")]
    Get { url: String, reason: String },
    #[error("{url}: the server answered {status}; check the address and who may read it")]
    Status { url: String, status: u16 },
    #[error("the checksum is {found}, not {wanted}: the artifact was changed, or the job names an older one")]
    Checksum { wanted: String, found: String },
    #[error("entry {name:?} of the archive {problem}")]
    Entry { name: String, problem: &'static str },
    #[error("the archive cannot be read: {0}")]
    Archive(String),
    #[error("{what} is larger than {bytes} bytes; the node takes no larger artifacts")]
    TooLarge { what: &'static str, bytes: u64 },
    #[error("the archive has more than {0} entries")]
    TooMany(usize),
    #[error("it took longer than {0:?}")]
    TooLong(Duration),
    #[error("there is no {0:?} in what was fetched")]
    NoSubdirectory(String),
    #[error(transparent)]
    Place(#[from] BeneathError),
    #[error("{action} {path}")]
    Io {
        action: &'static str,
        path: PathBuf,
        #[source]
        source: io::Error,
    },
}

impl ArtifactError {
    /// Trying again cannot help.
    pub fn is_final(&self) -> bool {
        match self {
            Self::Source(_) | Self::Checksum { .. } | Self::Entry { .. } | Self::TooLarge { .. } | Self::TooMany(_) => {
                true
            }
            Self::NoSubdirectory(_) | Self::Place(_) => true,
            Self::Status { status, .. } => (400..500).contains(status) && ![408, 425, 429].contains(status),
            Self::Get { .. } | Self::Archive(_) | Self::TooLong(_) | Self::Io { .. } => false,
        }
    }
}

/// What one artifact is to be.
#[derive(Clone, Copy, Debug)]
pub struct Request<'a> {
    pub artifact: &'a model::Artifact,
    /// The task's directory: nothing is written outside of it.
    pub task_dir: &'a Path,
    /// On the same file system, for this artifact alone; emptied before and after.
    pub staging: &'a Path,
    /// Who is to own what was fetched.
    pub owner: Option<(u32, u32)>,
    pub policy: &'a Policy,
}

/// How much was put into the task's directory.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Placed {
    pub files: usize,
    pub bytes: u64,
}

/// Dropping the future ends the fetch; what it staged goes with the next try.
pub async fn fetch(request: Request<'_>) -> Result<Placed, ArtifactError> {
    let plan = Plan::of(request.artifact)?;
    let limit = request.policy.time_max;
    let fetched = tokio::time::timeout(limit, staged(&request, &plan)).await;
    let cleaned = clear(request.staging);
    let placed = fetched.map_err(|_| ArtifactError::TooLong(limit))??;
    cleaned?;
    Ok(placed)
}

async fn staged(request: &Request<'_>, plan: &Plan) -> Result<Placed, ArtifactError> {
    clear(request.staging)?;
    let io = |action, path: &Path, source| ArtifactError::Io { action, path: path.to_owned(), source };
    std::fs::create_dir_all(request.staging).map_err(|source| io("making", request.staging, source))?;
    let tree = request.staging.join("tree");
    let download = request.staging.join("download");
    match &plan.getter {
        Getter::Http(url) => http::get(url, request, &download).await?,
        Getter::File(path) => copy_file(path, request.policy, &download)?,
        Getter::Git { url, reference, depth } => git::clone(url, reference.as_deref(), *depth, &tree).await?,
    }
    let (plan, task_dir, owner) = (plan.clone(), request.task_dir.to_owned(), request.owner);
    let (destination, policy) = (request.artifact.destination.clone(), request.policy.clone());
    let finish = move || finish(&plan, &download, &tree, &policy, &task_dir, &destination, owner);
    let finished = tokio::task::spawn_blocking(finish).await;
    finished.unwrap_or_else(|error| Err(ArtifactError::Archive(error.to_string())))
}

/// Everything after the network: a long chain of reads and writes on one thread.
fn finish(
    plan: &Plan,
    download: &Path,
    tree: &Path,
    policy: &Policy,
    task_dir: &Path,
    destination: &str,
    owner: Option<(u32, u32)>,
) -> Result<Placed, ArtifactError> {
    if !matches!(plan.getter, Getter::Git { .. }) {
        if let Some(wanted) = &plan.checksum {
            checksum::verify(download, wanted)?;
        }
        archive::unpack(plan, download, tree, policy)?;
    }
    archive::check_tree(tree, policy)?;
    let chosen = match &plan.subdirectory {
        None => tree.to_owned(),
        Some(inner) => Some(tree.join(inner))
            .filter(|path| path.symlink_metadata().is_ok_and(|meta| !meta.is_symlink()))
            .ok_or_else(|| ArtifactError::NoSubdirectory(inner.clone()))?,
    };
    let target = Beneath::open(task_dir)?;
    Ok(target.take_in(&chosen, destination, plan.is_one_file, owner)?)
}

fn copy_file(path: &Path, policy: &Policy, download: &Path) -> Result<(), ArtifactError> {
    let url = || format!("file://{}", path.display());
    let get = |reason: String| ArtifactError::Get { url: url(), reason };
    let real = path.canonicalize().map_err(|error| get(format!("cannot be read: {error}")))?;
    let allowed =
        policy.file_roots.iter().filter_map(|root| root.canonicalize().ok()).any(|root| real.starts_with(root));
    if !allowed {
        let reason = "this node gives out no files from there; name its directory in the agent's --artifact-dir";
        return Err(get(reason.to_owned()));
    }
    let meta = real.metadata().map_err(|error| get(error.to_string()))?;
    if !meta.is_file() {
        return Err(get("is not a plain file; pack a directory into an archive".to_owned()));
    }
    if meta.len() > policy.bytes_max {
        return Err(ArtifactError::TooLarge { what: "the file", bytes: policy.bytes_max });
    }
    std::fs::copy(&real, download).map_err(|error| get(error.to_string()))?;
    Ok(())
}

fn clear(staging: &Path) -> Result<(), ArtifactError> {
    match std::fs::remove_dir_all(staging) {
        Err(source) if source.kind() != io::ErrorKind::NotFound => {
            Err(ArtifactError::Io { action: "emptying", path: staging.to_owned(), source })
        }
        _ => Ok(()),
    }
}
