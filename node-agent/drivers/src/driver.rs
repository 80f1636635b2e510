//! The drivers themselves: what each needs of a node and what it makes of a task's description.

use crate::cgroup::Hierarchies;
use crate::env::{EnvInputs, interpolate, node_values, task_env};
use crate::spec::{self, Directories, Isolation, Limits, LogLimits, RootSpec, SpecError, TaskSpec};
use caps::{CapSet, Capability};
use model::{Allocation, DriverStatus, ExecConfig, Node, Task, TaskDriver};
use std::net::IpAddr;
use std::path::{Path, PathBuf};

/// More than this many processes and threads in one task is a fork bomb.
const PIDS_MAX: u64 = 4096;

/// A kind of task. Drivers decide; [`crate::Launcher`] acts, the same way for each.
pub trait Driver: Send + Sync {
    /// As job files write it.
    fn name(&self) -> &'static str;

    /// Looks at the machine: whether tasks of this driver can run here, and if not what is missing.
    fn fingerprint(&self) -> DriverStatus;

    /// Everything a supervisor needs. Touches nothing.
    fn prepare(&self, launch: &Launch<'_>) -> Result<TaskSpec, PrepareError>;
}

/// A task that is to start, with what the node has made ready for it.
#[derive(Clone, Debug)]
pub struct Launch<'a> {
    pub node: &'a Node,
    pub alloc: &'a Allocation,
    pub task: &'a Task,
    /// The allocation's directory on the node.
    pub root: &'a Path,
    /// The allocation's network namespace and address, in network mode bridge.
    pub netns: Option<PathBuf>,
    pub address: Option<IpAddr>,
    /// The only name server the task is to ask; `None` leaves it the node's resolv.conf.
    pub resolver: Option<IpAddr>,
}

#[derive(Debug, thiserror::Error)]
pub enum PrepareError {
    #[error("task {task:?} asks for driver {asked:?}, not {driver:?}")]
    OtherDriver { task: String, asked: &'static str, driver: &'static str },
    #[error("driver raw_exec is switched off on this node; use exec, or enable it in the agent's configuration")]
    RawExecOff,
    #[error(transparent)]
    Spec(#[from] SpecError),
}

/// Isolated tasks.
#[derive(Clone, Copy, Debug, Default)]
pub struct Exec;

/// Plain processes; off unless the node's owner wants them, because such a task can do what the agent can.
#[derive(Clone, Copy, Debug, Default)]
pub struct RawExec {
    pub enabled: bool,
}

impl Driver for Exec {
    fn name(&self) -> &'static str {
        "exec"
    }

    fn fingerprint(&self) -> DriverStatus {
        status(exec_needs(), "isolated tasks: namespaces, own root, cgroup")
    }

    fn prepare(&self, launch: &Launch<'_>) -> Result<TaskSpec, PrepareError> {
        let TaskDriver::Exec(config) = &launch.task.driver else { return Err(other_driver(self, launch)) };
        let seen = Seen { alloc: "/alloc".into(), local: "/local".into(), secrets: "/secrets".into() };
        let isolation = Isolation::Exec(root_spec(launch));
        Ok(task_spec(launch, config, &seen, isolation)?)
    }
}

impl Driver for RawExec {
    fn name(&self) -> &'static str {
        "raw_exec"
    }

    fn fingerprint(&self) -> DriverStatus {
        match self.enabled {
            true => status(raw_exec_needs(), "plain processes with a cgroup"),
            false => DriverStatus { detected: false, healthy: false, description: "switched off".to_owned() },
        }
    }

    fn prepare(&self, launch: &Launch<'_>) -> Result<TaskSpec, PrepareError> {
        let TaskDriver::RawExec(config) = &launch.task.driver else { return Err(other_driver(self, launch)) };
        if !self.enabled {
            return Err(PrepareError::RawExecOff);
        }
        let dirs = Directories::under(launch.root, &launch.task.name);
        let seen = Seen { alloc: dirs.alloc, local: dirs.local, secrets: dirs.secrets };
        Ok(task_spec(launch, config, &seen, Isolation::Raw)?)
    }
}

/// A resolv.conf that names one server: C libraries that ask all of several at once would bypass the mesh's answers.
pub fn resolv_conf(resolver: IpAddr) -> String {
    format!("nameserver {resolver}\n")
}

pub fn hosts_file(hostname: &str, address: Option<IpAddr>) -> String {
    let own = address.unwrap_or(IpAddr::from([127, 0, 1, 1]));
    format!("127.0.0.1 localhost\n::1 localhost ip6-localhost ip6-loopback\n{own} {hostname}\n")
}

/// The directories as the task sees them.
struct Seen {
    alloc: PathBuf,
    local: PathBuf,
    secrets: PathBuf,
}

fn other_driver(driver: &dyn Driver, launch: &Launch<'_>) -> PrepareError {
    let (task, asked) = (launch.task.name.clone(), launch.task.driver.name());
    PrepareError::OtherDriver { task, asked, driver: driver.name() }
}

fn root_spec(launch: &Launch<'_>) -> RootSpec {
    let hostname = launch.alloc.id.short();
    let hosts = Some(hosts_file(&hostname, launch.address));
    RootSpec { resolv_conf: launch.resolver.map(resolv_conf), hosts, ..RootSpec::new(hostname) }
}

fn task_spec(
    launch: &Launch<'_>,
    config: &ExecConfig,
    seen: &Seen,
    isolation: Isolation,
) -> Result<TaskSpec, SpecError> {
    let Launch { node, alloc, task, .. } = launch;
    let env = task_env(&EnvInputs {
        node,
        alloc,
        task,
        alloc_dir: &seen.alloc,
        task_dir: &seen.local,
        secrets_dir: &seen.secrets,
        address: launch.address,
    });
    let values = node_values(node);
    let words = std::iter::once(&config.command).chain(&config.args);
    let spec = TaskSpec {
        format: spec::FORMAT,
        node: node.id.short(),
        alloc_id: alloc.id.to_string(),
        task: task.name.clone(),
        argv: words.map(|word| interpolate(word, &env, &values)).collect(),
        user: task.user.as_ref().map(|user| interpolate(user, &env, &values)),
        env,
        limits: limits(task),
        netns: launch.netns.clone(),
        isolation,
        dirs: Directories::under(launch.root, &task.name),
        logs: log_limits(task),
        kill_signal: task.kill_signal.clone().unwrap_or_else(|| "SIGINT".to_owned()),
        kill_timeout_ms: u64::try_from(task.kill_timeout.as_millis()).unwrap_or(u64::MAX),
    };
    spec.check()?;
    Ok(spec)
}

fn limits(task: &Task) -> Limits {
    let memory_bytes = task.resources.memory_mb.saturating_mul(1 << 20);
    Limits { cpu_mhz: task.resources.cpu_mhz, memory_bytes, pids_max: PIDS_MAX }
}

fn log_limits(task: &Task) -> LogLimits {
    let file_bytes_max = u64::from(task.logs.file_size_mb_max.max(1)) << 20;
    LogLimits { files_max: task.logs.files_max.max(1), file_bytes_max }
}

fn status(missing: Option<String>, description: &str) -> DriverStatus {
    let ready = missing.is_none();
    DriverStatus { detected: ready, healthy: ready, description: missing.unwrap_or_else(|| description.to_owned()) }
}

fn exec_needs() -> Option<String> {
    let namespaces = ["pid", "mnt", "ipc", "uts", "net", "cgroup"];
    let absent = namespaces.into_iter().find(|name| !Path::new("/proc/self/ns").join(name).exists());
    if let Some(name) = absent {
        return Some(format!("the kernel has no {name} namespaces"));
    }
    missing_capability(&[Capability::CAP_SYS_ADMIN, Capability::CAP_SETUID, Capability::CAP_SETGID])
        .or_else(raw_exec_needs)
}

fn raw_exec_needs() -> Option<String> {
    match Hierarchies::detect() {
        Ok(found) => found.missing().map(|name| format!("no cgroup hierarchy for {name} is mounted")),
        Err(error) => Some(error.to_string()),
    }
}

fn missing_capability(needed: &[Capability]) -> Option<String> {
    let held = caps::read(None, CapSet::Effective).unwrap_or_default();
    needed.iter().find(|cap| !held.contains(cap)).map(|cap| format!("the agent lacks {cap}; run it as root"))
}
