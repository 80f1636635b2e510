//! A task's directories, and which path of a job file means which place in them.

use super::{Unprepared, Wanted, fatal, passing, shown};
use crate::allocs::report;
use artifact::Beneath;
use drivers::{Directories, EnvInputs, interpolate, node_values, task_env};
use model::{AllocId, Artifact, TaskDriver};
use nix::mount::{MntFlags, MsFlags, mount, umount2};
use nix::sys::statfs::{TMPFS_MAGIC, statfs};
use std::collections::{BTreeMap, BTreeSet};
use std::io;
use std::os::unix::fs::{DirBuilderExt, PermissionsExt};
use std::path::{Path, PathBuf};

/// Secrets are never written to a disk; they take this much memory at most.
const SECRETS_BYTES_MAX: u64 = 1 << 20;

/// Whom exec's tasks run as unless they say otherwise.
const DEFAULT_USER: &str = "nobody";

/// A place below a directory that bounds it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Spot {
    pub root: PathBuf,
    pub path: PathBuf,
}

#[derive(Clone, Debug)]
pub struct Layout {
    dirs: Directories,
    user: Option<String>,
    env: BTreeMap<String, String>,
    node: BTreeMap<String, String>,
    /// The directories as the task sees them: shared, own, secret.
    seen: [PathBuf; 3],
}

impl Layout {
    pub fn of(wanted: &Wanted) -> Self {
        let Wanted { node, alloc, task, root, address } = wanted;
        let dirs = Directories::under(root, &task.name);
        let seen = match task.driver {
            TaskDriver::RawExec(_) => [dirs.alloc.clone(), dirs.local.clone(), dirs.secrets.clone()],
            _ => ["/alloc", "/local", "/secrets"].map(PathBuf::from),
        };
        let [alloc_dir, task_dir, secrets_dir] = &seen;
        let address = *address;
        let env = task_env(&EnvInputs { node, alloc, task, alloc_dir, task_dir, secrets_dir, address });
        let node = node_values(node);
        let default =
            matches!(task.driver, TaskDriver::Exec(_) | TaskDriver::Plugin(_)).then(|| DEFAULT_USER.to_owned());
        let user = task.user.as_ref().map(|user| interpolate(user, &env, &node)).or(default);
        Self { dirs, user, env, node, seen }
    }

    pub fn env(&self) -> &BTreeMap<String, String> {
        &self.env
    }

    /// With `${…}` replaced.
    pub fn filled(&self, text: &str) -> String {
        interpolate(text, &self.env, &self.node)
    }

    pub fn owner(&self) -> Result<(u32, u32), Unprepared> {
        let Some(user) = &self.user else { return Ok((0, 0)) };
        let found = drivers::resolve_user(user).map_err(|error| fatal(error.to_string()))?;
        Ok((found.uid, found.gid))
    }

    /// Without the supervisor's own: that tells whether there is one.
    pub fn create(&self) -> Result<(), Unprepared> {
        let dirs = Directories { control: self.private(), ..self.dirs.clone() };
        dirs.create().map_err(|error| passing(report(&error)))?;
        let (uid, gid) = self.owner()?;
        let secret = mount_secrets(&self.dirs.secrets, uid, gid);
        secret.map_err(|error| {
            passing(format!("{}: the secrets' tmpfs cannot be mounted: {error}", shown(&self.dirs.secrets)))
        })
    }

    /// The agent's alone; isolated tasks do not see it.
    fn private(&self) -> PathBuf {
        self.own().join("private")
    }

    pub fn staging(&self) -> PathBuf {
        self.private().join("fetch")
    }

    /// What a path of the job file means. A task sees nothing but these three, and the supervisor's files are none of them.
    pub fn spot(&self, text: &str) -> Result<Spot, String> {
        let path = Path::new(text);
        let [alloc, local, secrets] = &self.seen;
        let own = |name: &str, rest: &Path| Spot { root: self.own(), path: Path::new(name).join(rest) };
        let spot = if let Ok(rest) = path.strip_prefix(local) {
            own("local", rest)
        } else if let Ok(rest) = path.strip_prefix(secrets) {
            own("secrets", rest)
        } else if let Ok(rest) = path.strip_prefix(alloc).or_else(|_| path.strip_prefix("../alloc")) {
            Spot { root: self.dirs.alloc.clone(), path: rest.to_owned() }
        } else {
            Spot { root: self.own(), path: path.to_owned() }
        };
        let in_task = spot.root == self.own();
        let is_known = ["local", "secrets"].iter().any(|name| spot.path.starts_with(name));
        let has_up = spot.path.components().any(|part| matches!(part, std::path::Component::ParentDir));
        if has_up || spot.path.is_absolute() || (in_task && !is_known) {
            let hint = "begin it with local/, secrets/ or ${NOMAD_ALLOC_DIR}/, and leave `..` out";
            return Err(format!("{text:?} is outside of what the task sees; {hint}"));
        }
        if !in_task && spot.path.starts_with("logs") {
            return Err(format!("{text:?} is where the task's output is kept; name another place"));
        }
        Ok(spot)
    }

    fn own(&self) -> PathBuf {
        self.dirs.local.parent().map(Path::to_owned).unwrap_or_default()
    }

    /// Whether these very artifacts were fetched for this allocation.
    pub fn has_fetched(&self, artifacts: &[Artifact]) -> bool {
        std::fs::read_to_string(self.mark()).is_ok_and(|mark| mark == mark_of(artifacts))
    }

    pub fn note_fetched(&self, artifacts: &[Artifact]) -> Result<(), String> {
        let private = Beneath::open(&self.private());
        let noted =
            private.and_then(|dir| dir.write(Path::new("artifacts"), mark_of(artifacts).as_bytes(), 0o600, None));
        noted.map_err(|error| report(&error))
    }

    fn mark(&self) -> PathBuf {
        self.private().join("artifacts")
    }
}

/// Another list is fetched anew.
fn mark_of(artifacts: &[Artifact]) -> String {
    format!("1 {artifacts:?}\n")
}

/// The task's alone, in memory. What is mounted there stays.
fn mount_secrets(dir: &Path, uid: u32, gid: u32) -> io::Result<()> {
    if is_tmpfs(dir) {
        return Ok(());
    }
    std::fs::DirBuilder::new().recursive(true).mode(0o700).create(dir)?;
    let flags = MsFlags::MS_NOSUID | MsFlags::MS_NODEV | MsFlags::MS_NOEXEC;
    let options = format!("mode=0700,size={SECRETS_BYTES_MAX},uid={uid},gid={gid}");
    mount(Some("tmpfs"), dir, Some("tmpfs"), flags, Some(options.as_str()))?;
    std::fs::set_permissions(dir, std::fs::Permissions::from_mode(0o700))
}

/// The directory's own mount: what is above it may be a tmpfs as well.
fn is_tmpfs(dir: &Path) -> bool {
    let device = |path: &Path| nix::sys::stat::stat(path).map(|meta| meta.st_dev).ok();
    let is_mount = dir.parent().is_some_and(|parent| device(parent) != device(dir));
    is_mount && statfs(dir).is_ok_and(|found| found.filesystem_type() == TMPFS_MAGIC)
}

/// Lets go of what is mounted below an allocation's directory; its secrets are gone with it.
pub fn release(root: &Path) {
    for task in std::fs::read_dir(root).into_iter().flatten().flatten() {
        let secrets = task.path().join("secrets");
        if is_tmpfs(&secrets)
            && let Err(error) = umount2(&secrets, MntFlags::MNT_DETACH)
        {
            tracing::warn!(path = %secrets.display(), %error, "a task's secrets are still mounted; the next look tries again");
        }
    }
}

/// The same for every allocation but the living ones.
pub fn release_ended(allocs: &Path, living: &BTreeSet<AllocId>) {
    let kept: BTreeSet<String> = living.iter().map(ToString::to_string).collect();
    for alloc in std::fs::read_dir(allocs).into_iter().flatten().flatten() {
        if !kept.contains(&*alloc.file_name().to_string_lossy()) {
            release(&alloc.path());
        }
    }
}
