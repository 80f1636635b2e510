//! What a user asks for: job > group > task, with the defaults of Nomad's job specification.

use crate::driver::TaskDriver;
use crate::files::{Artifact, Template, VolumeMount, VolumeRequest};
use crate::ids::JobId;
use crate::placement::{Affinity, Constraint, Dependency, DeviceRequest, DisruptionBudget, Spread};
use crate::policy::{DisconnectPolicy, ReschedulePolicy, RestartPolicy, UpdatePolicy};
use crate::rules;
use crate::schedule::{Parameterized, Periodic};
use crate::service::Service;
use crate::time::Timestamp;
use std::collections::BTreeMap;
use std::time::Duration;

/// A registered job. Two values that differ only in `version`, `stopped`, `stable` and the times are the same specification.
#[derive(Clone, Debug, PartialEq)]
pub struct Job {
    pub id: JobId,
    pub name: String,
    pub namespace: String,
    pub region: String,
    pub kind: JobKind,
    /// 1 to 100; higher is placed first.
    pub priority: u8,
    /// Datacenter names or globs (`*`, `eu-*`); never empty.
    pub datacenters: Vec<String>,
    pub node_pool: String,
    pub constraints: Vec<Constraint>,
    pub affinities: Vec<Affinity>,
    pub spreads: Vec<Spread>,
    pub meta: BTreeMap<String, String>,
    /// Group names are unique and the list is not empty.
    pub groups: Vec<TaskGroup>,
    /// It is a template that a calendar makes jobs from; nothing of itself is placed.
    pub periodic: Option<Periodic>,
    /// It is a template that dispatches make jobs from; nothing of itself is placed.
    pub parameterized: Option<Parameterized>,
    /// The periodic or parameterized job this one was made from.
    pub parent: Option<JobId>,
    /// What a dispatch handed over; at most [`rules::PAYLOAD_BYTES_MAX`].
    pub payload: Vec<u8>,
    /// A dispatch repeated with the same token makes no second job; empty is none.
    pub dispatch_token: String,
    /// How often all of it was asked to start anew without a change.
    pub restarts: u32,
    /// What has to work before anything of this job is placed.
    pub depends_on: Vec<Dependency>,
    /// How much drains, preemption and rebalancing may take away at once; `None` leaves it to each of them.
    pub disruption: Option<DisruptionBudget>,
    /// Grows with every registration that changes the specification. Assigned by the catalog.
    pub version: u64,
    /// A stopped job keeps no allocation running.
    pub stopped: bool,
    /// A deployment of this version succeeded: what a failed one goes back to.
    pub stable: bool,
    pub submitted_at: Timestamp,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum JobKind {
    /// Runs until it is stopped; what ends is replaced.
    Service,
    /// Runs until it has succeeded.
    Batch,
    /// One allocation of every group on every node that may run it.
    System,
    /// Once to its end on every node that may run it.
    Sysbatch,
}

#[derive(Clone, Debug, PartialEq)]
pub struct TaskGroup {
    pub name: String,
    pub count: u32,
    pub constraints: Vec<Constraint>,
    pub affinities: Vec<Affinity>,
    pub spreads: Vec<Spread>,
    pub restart: RestartPolicy,
    pub reschedule: ReschedulePolicy,
    pub disconnect: DisconnectPolicy,
    pub network: Option<Network>,
    pub services: Vec<Service>,
    /// Task names are unique and the list is not empty.
    pub tasks: Vec<Task>,
    pub meta: BTreeMap<String, String>,
    /// Names are unique.
    pub volumes: Vec<VolumeRequest>,
    /// Disk space reserved for the allocation directory, MiB.
    pub disk_mb: u64,
    /// A replacement on the same node takes over the shared data directory.
    pub disk_sticky: bool,
    /// A replacement on another node fetches the shared data directory.
    pub disk_migrate: bool,
    /// Between leaving the catalog and the first signal.
    pub shutdown_delay: Duration,
    /// After this long the allocation is stopped (batch and sysbatch).
    pub max_run_duration: Option<Duration>,
    /// How a new version replaces an older one. `None` replaces one at a time, as soon as the one before is healthy, and
    /// makes no deployment.
    pub update: Option<UpdatePolicy>,
    /// How many allocations at once leave a node that drains.
    pub migrate_max_parallel: u32,
}

#[derive(Clone, Debug, PartialEq)]
pub struct Task {
    pub name: String,
    pub driver: TaskDriver,
    /// The user name or numeric id the task runs as; `None` leaves it to the driver (`exec`: nobody, `raw_exec`: the agent's user).
    pub user: Option<String>,
    pub env: BTreeMap<String, String>,
    pub constraints: Vec<Constraint>,
    pub affinities: Vec<Affinity>,
    pub resources: Resources,
    pub devices: Vec<DeviceRequest>,
    /// `None` is the group's.
    pub restart: Option<RestartPolicy>,
    /// `None`: it runs as long as the allocation does.
    pub lifecycle: Option<Lifecycle>,
    /// When it ends, all others are stopped.
    pub leader: bool,
    /// Between leaving the catalog and the first signal.
    pub shutdown_delay: Duration,
    pub artifacts: Vec<Artifact>,
    pub templates: Vec<Template>,
    pub volume_mounts: Vec<VolumeMount>,
    /// Where, below `local/`, a dispatch's payload is written.
    pub payload_file: Option<String>,
    /// From the kill signal to SIGKILL.
    pub kill_timeout: Duration,
    /// A signal name such as `SIGTERM`; `None` is SIGINT, as for Nomad's exec drivers.
    pub kill_signal: Option<String>,
    pub services: Vec<Service>,
    pub logs: LogConfig,
    pub meta: BTreeMap<String, String>,
}

/// When a task runs that does not run all along.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Lifecycle {
    pub hook: LifecycleHook,
    /// It goes on beside the main tasks instead of ending before them.
    pub sidecar: bool,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum LifecycleHook {
    Prestart,
    Poststart,
    Poststop,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Resources {
    /// MHz, at least 1.
    pub cpu_mhz: u64,
    /// MiB, at least 10: what is reserved.
    pub memory_mb: u64,
    /// MiB a task may use while its node has room; 0 is `memory_mb`.
    pub memory_max_mb: u64,
    /// Whole cores of its own; 0 shares cores by `cpu_mhz`.
    pub cores: u32,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct LogConfig {
    pub files_max: u32,
    pub file_size_mb_max: u32,
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Network {
    pub mode: NetworkMode,
    /// Labels are unique.
    pub ports: Vec<PortRequest>,
    /// The host name inside the allocation's namespace.
    pub hostname: Option<String>,
    /// What `/etc/resolv.conf` holds instead of the node's resolver.
    pub dns: Option<DnsConfig>,
}

#[derive(Clone, Debug, PartialEq, Eq, Default)]
pub struct DnsConfig {
    pub servers: Vec<String>,
    pub searches: Vec<String>,
    pub options: Vec<String>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum NetworkMode {
    /// The node's own namespace; ports are the node's.
    Host,
    /// A namespace, veth and mesh address of the allocation's own.
    Bridge,
    /// A namespace of the allocation's own with nothing but loopback.
    None,
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PortRequest {
    pub label: String,
    /// The node port asked for; `None` lets the scheduler choose one from 20000-32000.
    pub static_port: Option<u16>,
    /// The port inside the allocation's namespace; `None` is the node port's number.
    pub to: Option<u16>,
}

impl Job {
    /// A service job with defaults, no group, and the id as its name.
    pub fn named(id: &str) -> Self {
        Self {
            id: JobId(id.to_owned()),
            name: id.to_owned(),
            namespace: "default".to_owned(),
            region: "global".to_owned(),
            kind: JobKind::Service,
            priority: rules::DEFAULT_PRIORITY,
            datacenters: vec!["*".to_owned()],
            node_pool: "default".to_owned(),
            constraints: Vec::new(),
            affinities: Vec::new(),
            spreads: Vec::new(),
            meta: BTreeMap::new(),
            groups: Vec::new(),
            periodic: None,
            parameterized: None,
            parent: None,
            payload: Vec::new(),
            dispatch_token: String::new(),
            restarts: 0,
            depends_on: Vec::new(),
            disruption: None,
            version: 0,
            stopped: false,
            stable: false,
            submitted_at: Timestamp::NEVER,
        }
    }

    /// Whether jobs are made from it instead of allocations.
    pub fn is_template(&self) -> bool {
        self.periodic.is_some() || self.parameterized.is_some()
    }

    pub fn group(&self, name: &str) -> Option<&TaskGroup> {
        self.groups.iter().find(|group| group.name == name)
    }

    /// Whether both describe the same work: everything but version, marks and submission time is equal.
    pub fn same_specification(&self, other: &Job) -> bool {
        let normal = |job: &Job| Job {
            version: 0,
            stopped: false,
            stable: false,
            submitted_at: Timestamp::NEVER,
            ..job.clone()
        };
        normal(self) == normal(other)
    }
}

impl TaskGroup {
    /// One allocation of no task, with a service job's defaults.
    pub fn named(name: &str) -> Self {
        Self {
            name: name.to_owned(),
            count: 1,
            constraints: Vec::new(),
            affinities: Vec::new(),
            spreads: Vec::new(),
            restart: RestartPolicy::SERVICE,
            reschedule: ReschedulePolicy::SERVICE,
            disconnect: DisconnectPolicy::default(),
            network: None,
            services: Vec::new(),
            tasks: Vec::new(),
            meta: BTreeMap::new(),
            volumes: Vec::new(),
            disk_mb: rules::DEFAULT_DISK_MB,
            disk_sticky: false,
            disk_migrate: false,
            shutdown_delay: Duration::ZERO,
            max_run_duration: None,
            update: None,
            migrate_max_parallel: rules::DEFAULT_MIGRATE_MAX_PARALLEL,
        }
    }

    /// The restart policy that holds for a task of the group.
    pub fn restart_of(&self, task: &Task) -> RestartPolicy {
        task.restart.unwrap_or(self.restart)
    }

    /// What one allocation of the group takes from a node.
    pub fn resources(&self) -> Resources {
        let none = Resources { cpu_mhz: 0, memory_mb: 0, memory_max_mb: 0, cores: 0 };
        self.tasks.iter().map(|task| task.resources).fold(none, |sum, task| Resources {
            cpu_mhz: sum.cpu_mhz.saturating_add(task.cpu_mhz),
            memory_mb: sum.memory_mb.saturating_add(task.memory_mb),
            memory_max_mb: sum.memory_max_mb.saturating_add(task.memory_ceiling_mb()),
            cores: sum.cores.saturating_add(task.cores),
        })
    }

    /// The group's services and its tasks' services.
    pub fn all_services(&self) -> impl Iterator<Item = &Service> {
        self.services.iter().chain(self.tasks.iter().flat_map(|task| &task.services))
    }

    pub fn network_mode(&self) -> NetworkMode {
        self.network.as_ref().map_or(NetworkMode::Host, |network| network.mode)
    }
}

impl Network {
    pub fn of(mode: NetworkMode, ports: Vec<PortRequest>) -> Self {
        Self { mode, ports, hostname: None, dns: None }
    }
}

impl Task {
    pub fn named(name: &str, driver: TaskDriver) -> Self {
        Self {
            name: name.to_owned(),
            driver,
            user: None,
            env: BTreeMap::new(),
            constraints: Vec::new(),
            affinities: Vec::new(),
            resources: Resources::default(),
            devices: Vec::new(),
            restart: None,
            lifecycle: None,
            leader: false,
            shutdown_delay: Duration::ZERO,
            artifacts: Vec::new(),
            templates: Vec::new(),
            volume_mounts: Vec::new(),
            payload_file: None,
            kill_timeout: rules::DEFAULT_KILL_TIMEOUT,
            kill_signal: None,
            services: Vec::new(),
            logs: LogConfig::default(),
            meta: BTreeMap::new(),
        }
    }
}

impl Task {
    /// Whether it runs as long as its allocation does: main tasks and sidecars.
    pub fn stays(&self) -> bool {
        self.lifecycle.is_none_or(|lifecycle| lifecycle.sidecar && lifecycle.hook != LifecycleHook::Poststop)
    }
}

impl Resources {
    /// MiB the task may use at most.
    pub fn memory_ceiling_mb(self) -> u64 {
        self.memory_max_mb.max(self.memory_mb)
    }
}

impl LifecycleHook {
    pub const ALL: [LifecycleHook; 3] = [LifecycleHook::Prestart, LifecycleHook::Poststart, LifecycleHook::Poststop];

    pub fn as_str(self) -> &'static str {
        match self {
            LifecycleHook::Prestart => "prestart",
            LifecycleHook::Poststart => "poststart",
            LifecycleHook::Poststop => "poststop",
        }
    }

    pub fn parse(text: &str) -> Option<Self> {
        Self::ALL.into_iter().find(|hook| hook.as_str() == text)
    }
}

impl JobKind {
    pub const ALL: [JobKind; 4] = [JobKind::Service, JobKind::Batch, JobKind::System, JobKind::Sysbatch];

    /// Whether its tasks are to end by themselves.
    pub fn ends(self) -> bool {
        matches!(self, JobKind::Batch | JobKind::Sysbatch)
    }

    /// Whether every node that may run it gets one allocation of each group.
    pub fn is_on_every_node(self) -> bool {
        matches!(self, JobKind::System | JobKind::Sysbatch)
    }

    pub fn as_str(self) -> &'static str {
        match self {
            JobKind::Service => "service",
            JobKind::Batch => "batch",
            JobKind::System => "system",
            JobKind::Sysbatch => "sysbatch",
        }
    }

    pub fn parse(text: &str) -> Option<Self> {
        Self::ALL.into_iter().find(|kind| kind.as_str() == text)
    }
}

impl Default for Resources {
    fn default() -> Self {
        Self { cpu_mhz: 100, memory_mb: 300, memory_max_mb: 0, cores: 0 }
    }
}

impl Default for LogConfig {
    fn default() -> Self {
        Self { files_max: 10, file_size_mb_max: 10 }
    }
}
