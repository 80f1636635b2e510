//! The drivers themselves: what each needs of a node and what it makes of a task's description.

use crate::cgroup::Hierarchies;
use crate::env::{EnvInputs, interpolate, node_values, task_env};
use crate::init::DEFAULT_CAPABILITIES;
use crate::spec::{self, CpuQuota, Directories, Isolation, Limits, LogLimits, RootSpec, SpecError, TaskSpec};
use caps::{CapSet, Capability};
use futures::future::BoxFuture;
use model::{AllocId, Allocation, DriverStatus, ExecConfig, Node, Task, TaskDriver};
use std::collections::{BTreeMap, BTreeSet};
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

    /// What it adds to the node's attributes, such as `driver.docker.version`.
    fn attributes(&self) -> BTreeMap<String, String> {
        BTreeMap::new()
    }

    /// Everything a supervisor needs. Touches nothing.
    fn prepare(&self, launch: &Launch<'_>) -> Result<TaskSpec, PrepareError>;

    /// Removes what is kept for an allocation beyond its tasks; called after the last of them has ended.
    fn release(&self, _alloc: AllocId) -> BoxFuture<'_, Result<(), String>> {
        Box::pin(async { Ok(()) })
    }

    /// Removes what no allocation of these owns on the node of this short id; called at start and now and then. Gives lines
    /// for the agent's log.
    fn tidy<'a>(&'a self, _node: &'a str, _living: &'a BTreeSet<AllocId>) -> BoxFuture<'a, Vec<String>> {
        Box::pin(async { Vec::new() })
    }
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
    #[error("task {task:?}: {key} of its {driver} config: {problem}")]
    Config { task: String, driver: &'static str, key: &'static str, problem: String },
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
        let capabilities = capabilities(launch, config, &BTreeSet::new())?;
        let isolation = Isolation::Exec(RootSpec { capabilities, ..root_spec(launch) });
        Ok(exec_spec(launch, config, &seen, isolation)?)
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
        if !config.cap_add.is_empty() || !config.cap_drop.is_empty() {
            let problem = "raw_exec keeps the agent's rights; use exec".to_owned();
            let task = launch.task.name.clone();
            return Err(PrepareError::Config { task, driver: "raw_exec", key: "cap_add", problem });
        }
        let dirs = Directories::under(launch.root, &launch.task.name);
        let seen = Seen { alloc: dirs.alloc, local: dirs.local, secrets: dirs.secrets };
        Ok(exec_spec(launch, config, &seen, Isolation::Raw)?)
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
pub(crate) struct Seen {
    pub alloc: PathBuf,
    pub local: PathBuf,
    pub secrets: PathBuf,
}

pub(crate) fn other_driver(driver: &dyn Driver, launch: &Launch<'_>) -> PrepareError {
    let (task, asked) = (launch.task.name.clone(), launch.task.driver.name());
    PrepareError::OtherDriver { task, asked, driver: driver.name() }
}

pub(crate) fn root_spec(launch: &Launch<'_>) -> RootSpec {
    let hostname = launch.alloc.id.short();
    let hosts = Some(hosts_file(&hostname, launch.address));
    RootSpec { resolv_conf: launch.resolver.map(resolv_conf), hosts, ..RootSpec::new(hostname) }
}

fn exec_spec(
    launch: &Launch<'_>,
    config: &ExecConfig,
    seen: &Seen,
    isolation: Isolation,
) -> Result<TaskSpec, SpecError> {
    let env = task_env_of(launch, seen);
    let values = node_values(launch.node);
    let words = std::iter::once(&config.command).chain(&config.args);
    let argv = words.map(|word| interpolate(word, &env, &values)).collect();
    let work_dir = config.work_dir.as_ref().map(|dir| interpolate(dir, &env, &values));
    let spec = TaskSpec { work_dir, ..task_spec(launch, argv, env, "SIGINT", isolation) };
    spec.check()?;
    Ok(spec)
}

/// The default set with what a job adds and drops; more than that set only where the node's owner allows it.
fn capabilities(
    launch: &Launch<'_>,
    config: &ExecConfig,
    allowed: &BTreeSet<String>,
) -> Result<Option<BTreeSet<String>>, PrepareError> {
    if config.cap_add.is_empty() && config.cap_drop.is_empty() {
        return Ok(None);
    }
    let named = |text: &String| format!("CAP_{}", text.to_ascii_uppercase().trim_start_matches("CAP_"));
    let defaults: BTreeSet<String> = DEFAULT_CAPABILITIES.iter().map(ToString::to_string).collect();
    let wrong = |key, problem| PrepareError::Config { task: launch.task.name.clone(), driver: "exec", key, problem };
    let mut set = defaults.clone();
    for cap in config.cap_drop.iter().map(named) {
        match cap.as_str() {
            "CAP_ALL" => set.clear(),
            known if known.parse::<Capability>().is_ok() => drop(set.remove(known)),
            unknown => return Err(wrong("cap_drop", format!("{unknown} is no capability"))),
        }
    }
    for cap in config.cap_add.iter().map(named) {
        if cap.parse::<Capability>().is_err() {
            return Err(wrong("cap_add", format!("{cap} is no capability")));
        }
        if !defaults.contains(&cap) && !allowed.contains(&cap) {
            let problem = format!("{cap} is more than a task of this driver may have; leave it out");
            return Err(wrong("cap_add", problem));
        }
        set.insert(cap);
    }
    Ok(Some(set))
}

pub(crate) fn task_env_of(launch: &Launch<'_>, seen: &Seen) -> BTreeMap<String, String> {
    task_env(&EnvInputs {
        node: launch.node,
        alloc: launch.alloc,
        task: launch.task,
        alloc_dir: &seen.alloc,
        task_dir: &seen.local,
        secrets_dir: &seen.secrets,
        address: launch.address,
    })
}

/// What all drivers have in common.
pub(crate) fn task_spec(
    launch: &Launch<'_>,
    argv: Vec<String>,
    env: BTreeMap<String, String>,
    kill_signal: &str,
    isolation: Isolation,
) -> TaskSpec {
    let Launch { node, alloc, task, .. } = launch;
    let values = node_values(node);
    TaskSpec {
        format: spec::FORMAT,
        node: node.id.short(),
        alloc_id: alloc.id.to_string(),
        task: task.name.clone(),
        argv,
        user: task.user.as_ref().map(|user| interpolate(user, &env, &values)),
        env,
        limits: limits(task),
        netns: launch.netns.clone(),
        isolation,
        work_dir: None,
        dirs: Directories::under(launch.root, &task.name),
        logs: log_limits(task),
        kill_signal: task.kill_signal.clone().unwrap_or_else(|| kill_signal.to_owned()),
        kill_timeout_ms: u64::try_from(task.kill_timeout.as_millis()).unwrap_or(u64::MAX),
    }
}

pub(crate) fn limits(task: &Task) -> Limits {
    let bytes = |mb: u64| mb.saturating_mul(1 << 20);
    let resources = task.resources;
    let most = (resources.memory_max_mb > resources.memory_mb).then(|| bytes(resources.memory_max_mb));
    Limits {
        cpu_mhz: resources.cpu_mhz,
        memory_bytes: bytes(resources.memory_mb),
        memory_max_bytes: most,
        pids_max: PIDS_MAX,
        ..Limits::default()
    }
}

/// The part of every period, in microseconds, that a task with so much of the node may run on all cores together.
pub(crate) fn cpu_quota(node: &Node, mhz: u64, period_us: u64) -> CpuQuota {
    let number =
        |key: &str| node.attributes.get(key).and_then(|text| text.parse::<u64>().ok()).filter(|value| *value > 0);
    let (cores, total) = (number("cpu.numcores").unwrap_or(1), number("cpu.totalcompute").unwrap_or(1000));
    // The kernel takes no less than a millisecond.
    CpuQuota { us: (mhz.saturating_mul(period_us).saturating_mul(cores) / total).max(1_000), period_us }
}

fn log_limits(task: &Task) -> LogLimits {
    let file_bytes_max = u64::from(task.logs.file_size_mb_max.max(1)) << 20;
    LogLimits { files_max: task.logs.files_max.max(1), file_bytes_max }
}

pub(crate) fn status(missing: Option<String>, description: &str) -> DriverStatus {
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
