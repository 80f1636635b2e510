//! What a supervisor needs to know to run one task, written once into the task's control directory.

use nix::sys::signal::Signal;
use serde::{Deserialize, Serialize};
use std::collections::{BTreeMap, BTreeSet};
use std::fs::{self, DirBuilder, File, OpenOptions, Permissions};
use std::io::{self, Write};
use std::os::unix::fs::{DirBuilderExt, OpenOptionsExt, PermissionsExt};
use std::path::{Path, PathBuf};
use std::time::Duration;

/// The newest form of the file that this build writes and reads.
pub const FORMAT: u32 = 1;

const FILE: &str = "spec.json";

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct TaskSpec {
    pub format: u32,
    /// The node's short id; names the cgroup, so that several agents can share one machine.
    pub node: String,
    pub alloc_id: String,
    pub task: String,
    /// Never empty. A name without `/` is looked for in the task's `local` directory, then along its `PATH`.
    pub argv: Vec<String>,
    /// The whole environment; nothing of the agent's own is added but a `PATH` if there is none.
    pub env: BTreeMap<String, String>,
    /// A name from /etc/passwd or a number; `None` is `nobody` for exec and the agent's own user for raw_exec.
    pub user: Option<String>,
    pub limits: Limits,
    /// A network namespace to join; `None` is the agent's.
    pub netns: Option<PathBuf>,
    pub isolation: Isolation,
    /// Where it starts, as it sees it; `None` is `/` for exec and the task's directory for raw_exec.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub work_dir: Option<String>,
    pub dirs: Directories,
    pub logs: LogLimits,
    pub kill_signal: String,
    pub kill_timeout_ms: u64,
}

#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Limits {
    /// A share of the machine relative to other tasks, not a ceiling.
    pub cpu_mhz: u64,
    /// A ceiling: no more than this of every period, all cores together.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub cpu_quota: Option<CpuQuota>,
    /// The cores it may run on, as `0-3,6`; `None` is all.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub cpuset: Option<String>,
    pub memory_bytes: u64,
    /// With it, `memory_bytes` is what is kept for the task when memory runs short, and this where it is stopped.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub memory_max_bytes: Option<u64>,
    pub pids_max: u64,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct CpuQuota {
    pub us: u64,
    pub period_us: u64,
}

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Isolation {
    /// Own pid, mount, ipc, uts and cgroup namespaces, own root, few capabilities, no new privileges.
    Exec(RootSpec),
    /// A session and a cgroup of its own, nothing else.
    Raw,
    /// A container of an engine that speaks Docker's API.
    Container(Box<ContainerTask>),
}

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct ContainerTask {
    pub container: containers::ContainerSpec,
    /// Contents laid over files of the image, by their path in it.
    pub files: BTreeMap<String, String>,
}

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct RootSpec {
    pub hostname: String,
    /// Contents laid over the node's file; `None` leaves the node's.
    pub resolv_conf: Option<String>,
    pub hosts: Option<String>,
    /// Directories of the node that the task sees read-only; those that do not exist are left out.
    pub read_only: Vec<PathBuf>,
    /// What a task that runs as root may, by names such as `CAP_CHOWN`; `None` is the default set.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub capabilities: Option<BTreeSet<String>>,
}

/// Where a task's files are on the node, laid out as in Nomad.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Directories {
    /// State, lock and socket of the supervisor: root's alone.
    pub control: PathBuf,
    /// Shared by the allocation's tasks: `data`, `tmp`, `logs`.
    pub alloc: PathBuf,
    pub local: PathBuf,
    /// For raw_exec only: exec gives the task a tmpfs that no one else sees.
    pub secrets: PathBuf,
    /// Where the log files go; never writable by a task, because the supervisor writes there as root.
    pub logs: PathBuf,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct LogLimits {
    pub files_max: u32,
    pub file_bytes_max: u64,
}

#[derive(Debug, thiserror::Error)]
pub enum SpecError {
    #[error("task {task:?}: {problem}")]
    Invalid { task: String, problem: String },
    #[error("{path}: cannot be read as a task of format {FORMAT}: {problem}")]
    Damaged { path: PathBuf, problem: String },
    #[error("{path}: cannot be {action}")]
    Io {
        path: PathBuf,
        action: &'static str,
        #[source]
        source: io::Error,
    },
}

impl Limits {
    /// Where a task is stopped for want of memory.
    pub fn memory_ceiling(&self) -> u64 {
        self.memory_max_bytes.map_or(self.memory_bytes, |most| most.max(self.memory_bytes))
    }
}

impl RootSpec {
    /// What Nomad's default `chroot_env` shows of the node.
    pub const READ_ONLY: [&'static str; 9] =
        ["/bin", "/etc", "/lib", "/lib32", "/lib64", "/run/resolvconf", "/run/systemd/resolve", "/sbin", "/usr"];

    pub fn new(hostname: impl Into<String>) -> Self {
        let read_only = Self::READ_ONLY.iter().map(PathBuf::from).collect();
        Self { hostname: hostname.into(), resolv_conf: None, hosts: None, read_only, capabilities: None }
    }
}

impl Directories {
    /// `<root>/alloc` shared and `<root>/<task>` the task's own, where `root` is the allocation's directory.
    pub fn under(root: &Path, task: &str) -> Self {
        let own = root.join(task);
        Self {
            control: own.join("control"),
            alloc: root.join("alloc"),
            local: own.join("local"),
            secrets: own.join("secrets"),
            logs: root.join("alloc/logs"),
        }
    }

    /// Makes what is missing. `alloc/data` and `alloc/tmp` are everyone's, since tasks of one group may run as different users.
    pub fn create(&self) -> Result<(), SpecError> {
        for (dir, mode) in [
            (self.alloc.clone(), 0o755),
            (self.alloc.join("data"), 0o777),
            (self.alloc.join("tmp"), 0o1777),
            (self.logs.clone(), 0o755),
            (self.local.clone(), 0o755),
            (self.secrets.clone(), 0o700),
            (self.control.clone(), 0o700),
        ] {
            make_dir(&dir, mode).map_err(|source| SpecError::Io { path: dir, action: "made", source })?;
        }
        Ok(())
    }
}

impl TaskSpec {
    pub fn kill_timeout(&self) -> Duration {
        Duration::from_millis(self.kill_timeout_ms)
    }

    /// Below every hierarchy's mount point.
    pub fn cgroup_path(&self) -> PathBuf {
        ["meshctl", &self.node, &self.alloc_id, &self.task].iter().collect()
    }

    /// Refuses what could name a file outside the task's own directories or cannot be passed to exec(2).
    pub fn check(&self) -> Result<(), SpecError> {
        let refuse = |problem: &str| Err(SpecError::Invalid { task: self.task.clone(), problem: problem.to_owned() });
        if [&self.node, &self.alloc_id, &self.task].into_iter().any(|name| !is_file_name(name)) {
            return refuse(
                "node, allocation and task must be plain names, without '/' and not '.' or '..'; rename the task",
            );
        }
        if self.task == "alloc" {
            return refuse("the name \"alloc\" is the shared directory's; rename the task");
        }
        // A container has its image's command.
        let is_container = matches!(self.isolation, Isolation::Container(_));
        if !is_container && self.argv.first().is_none_or(String::is_empty) {
            return refuse("has no command; set `command` in its config block");
        }
        let words = self.argv.iter().chain(self.env.keys()).chain(self.env.values());
        if words.into_iter().any(|word| word.contains('\0')) {
            return refuse("a NUL byte in its command, arguments or environment");
        }
        if self.env.keys().any(|key| key.is_empty() || key.contains('=')) {
            return refuse("an environment variable's name is empty or contains '='");
        }
        match parse_signal(&self.kill_signal) {
            Some(_) => Ok(()),
            None => refuse(&format!("kill_signal {:?} is no signal; write for example \"SIGTERM\"", self.kill_signal)),
        }
    }

    /// Durable when it returns: whoever reads finds the whole file or none, also after a power cut.
    pub(crate) fn write(&self) -> Result<(), SpecError> {
        let control = &self.dirs.control;
        let (fresh, path) = (control.join("spec.json.new"), control.join(FILE));
        let text = serde_json::to_vec_pretty(self).map_err(io::Error::other);
        text.and_then(|text| {
            // The environment may hold secrets.
            let mut file = OpenOptions::new().write(true).create(true).truncate(true).mode(0o600).open(&fresh)?;
            file.write_all(&text)?;
            file.sync_all()?;
            fs::rename(&fresh, &path)?;
            File::open(control)?.sync_all()
        })
        .map_err(|source| SpecError::Io { path, action: "written", source })
    }

    /// `None` when no task was ever prepared there.
    pub fn read(control: &Path) -> Result<Option<Self>, SpecError> {
        let path = control.join(FILE);
        let text = match fs::read(&path) {
            Ok(text) => text,
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
            Err(source) => return Err(SpecError::Io { path, action: "read", source }),
        };
        let spec: Self = serde_json::from_slice(&text)
            .map_err(|error| SpecError::Damaged { path: path.clone(), problem: error.to_string() })?;
        if spec.format != FORMAT {
            return Err(SpecError::Damaged { path, problem: format!("it has format {}", spec.format) });
        }
        Ok(Some(spec))
    }
}

/// Reads `SIGTERM` and `TERM`, in any case.
pub fn parse_signal(text: &str) -> Option<Signal> {
    let upper = text.to_ascii_uppercase();
    let name = if upper.starts_with("SIG") { upper } else { format!("SIG{upper}") };
    name.parse().ok()
}

fn is_file_name(name: &str) -> bool {
    !name.is_empty() && name.len() <= 128 && name != "." && name != ".." && !name.contains(['/', '\0'])
}

/// The mode is set apart from the creation, which the umask would cut.
fn make_dir(path: &Path, mode: u32) -> io::Result<()> {
    if path.is_dir() {
        return Ok(());
    }
    DirBuilder::new().recursive(true).mode(0o755).create(path)?;
    fs::set_permissions(path, Permissions::from_mode(mode))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn spec() -> TaskSpec {
        TaskSpec {
            format: FORMAT,
            node: "0a0b0c0d".into(),
            alloc_id: "11111111-2222-4333-8444-555555555555".into(),
            task: "web".into(),
            argv: vec!["/bin/true".into()],
            env: BTreeMap::new(),
            user: None,
            limits: Limits { cpu_mhz: 100, memory_bytes: 64 << 20, pids_max: 64, ..Limits::default() },
            netns: None,
            isolation: Isolation::Raw,
            work_dir: None,
            dirs: Directories::under(Path::new("/nowhere"), "web"),
            logs: LogLimits { files_max: 2, file_bytes_max: 1 << 20 },
            kill_signal: "SIGINT".into(),
            kill_timeout_ms: 5_000,
        }
    }

    fn refused(change: impl FnOnce(&mut TaskSpec)) -> String {
        let mut spec = spec();
        change(&mut spec);
        spec.check().expect_err("must be refused").to_string()
    }

    #[test]
    fn cgroup_path_names_node_allocation_and_task() {
        assert_eq!(spec().cgroup_path(), Path::new("meshctl/0a0b0c0d/11111111-2222-4333-8444-555555555555/web"));
    }

    #[test]
    fn names_that_leave_their_directory_are_refused() {
        assert!(spec().check().is_ok());
        for name in ["..", ".", "a/b", "", "nul\0"] {
            assert!(refused(|spec| spec.task = name.into()).contains("plain names"), "{name:?}");
        }
        assert!(refused(|spec| spec.task = "alloc".into()).contains("rename"));
    }

    #[test]
    fn what_exec_cannot_take_is_refused() {
        assert!(refused(|spec| spec.argv.clear()).contains("no command"));
        assert!(refused(|spec| spec.argv.push("a\0b".into())).contains("NUL"));
        assert!(refused(|spec| drop(spec.env.insert("A=B".into(), String::new()))).contains("'='"));
        assert!(refused(|spec| spec.kill_signal = "SIGNOPE".into()).contains("SIGNOPE"));
    }

    #[test]
    fn signals_are_read_with_and_without_prefix() {
        assert_eq!(parse_signal("SIGTERM"), Some(Signal::SIGTERM));
        assert_eq!(parse_signal("hup"), Some(Signal::SIGHUP));
        assert_eq!(parse_signal("9"), None);
    }
}
