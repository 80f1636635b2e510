//! What a user asks for: job > group > task, with the defaults of Nomad's job specification.

use crate::ids::JobId;
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
    pub meta: BTreeMap<String, String>,
    /// Group names are unique and the list is not empty.
    pub groups: Vec<TaskGroup>,
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
}

#[derive(Clone, Debug, PartialEq)]
pub struct TaskGroup {
    pub name: String,
    pub count: u32,
    pub constraints: Vec<Constraint>,
    pub restart: RestartPolicy,
    pub network: Option<Network>,
    pub services: Vec<Service>,
    /// Task names are unique and the list is not empty.
    pub tasks: Vec<Task>,
    pub meta: BTreeMap<String, String>,
    /// Disk space reserved for the allocation directory, MiB.
    pub disk_mb: u64,
    /// How a new version replaces an older one. `None` replaces one at a time, as soon as the one before is healthy, and
    /// makes no deployment.
    pub update: Option<UpdatePolicy>,
    /// How many allocations at once leave a node that drains.
    pub migrate_max_parallel: u32,
}

/// Nomad's `update` block, and our `order`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct UpdatePolicy {
    /// 0 replaces everything at once, without a deployment.
    pub max_parallel: u32,
    pub health_check: HealthCheck,
    pub min_healthy_time: Duration,
    pub healthy_deadline: Duration,
    /// 0: the first unhealthy allocation fails the deployment.
    pub progress_deadline: Duration,
    pub canary: u32,
    pub auto_revert: bool,
    pub auto_promote: bool,
    /// Taken and kept, as Nomad does; deployments pace themselves by health.
    pub stagger: Duration,
    pub order: UpdateOrder,
}

/// What tells that an allocation of a deployment works.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum HealthCheck {
    /// Every task runs and every check passes.
    Checks,
    /// Every task runs.
    TaskStates,
    /// Somebody says so.
    Manual,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum UpdateOrder {
    /// The old allocation stops when the new one is placed: never more than `count`, for a while fewer healthy ones.
    StopFirst,
    /// The old allocation stops when the new one is healthy: never fewer than `count`, at most `max_parallel` more.
    StartFirst,
}

#[derive(Clone, Debug, PartialEq)]
pub struct Task {
    pub name: String,
    pub driver: TaskDriver,
    /// The user name or numeric id the task runs as; `None` leaves it to the driver (`exec`: nobody, `raw_exec`: the agent's user).
    pub user: Option<String>,
    pub env: BTreeMap<String, String>,
    pub constraints: Vec<Constraint>,
    pub resources: Resources,
    /// From the kill signal to SIGKILL.
    pub kill_timeout: Duration,
    /// A signal name such as `SIGTERM`; `None` is SIGINT, as for Nomad's exec drivers.
    pub kill_signal: Option<String>,
    pub services: Vec<Service>,
    pub logs: LogConfig,
    pub meta: BTreeMap<String, String>,
}

/// A driver with its own configuration, already checked.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum TaskDriver {
    /// Isolated: own pid, mount, ipc and uts namespaces, own root, cgroup, no new privileges.
    Exec(ExecConfig),
    /// A plain process in a cgroup of its own.
    RawExec(ExecConfig),
}

impl TaskDriver {
    pub fn name(&self) -> &'static str {
        match self {
            TaskDriver::Exec(_) => "exec",
            TaskDriver::RawExec(_) => "raw_exec",
        }
    }
}

/// `command` and `args` may hold `${NOMAD_…}`, `${env["…"]}`-free interpolations that the agent resolves at start.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ExecConfig {
    pub command: String,
    pub args: Vec<String>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Resources {
    /// MHz, at least 1.
    pub cpu_mhz: u64,
    /// MiB, at least 10.
    pub memory_mb: u64,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct LogConfig {
    pub files_max: u32,
    pub file_size_mb_max: u32,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct RestartPolicy {
    pub attempts: u32,
    pub interval: Duration,
    pub delay: Duration,
    pub mode: RestartMode,
}

/// What happens when `attempts` restarts were used up within `interval`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum RestartMode {
    /// The task, and with it the allocation, fails.
    Fail,
    /// The next restart waits for the interval to end.
    Delay,
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Network {
    pub mode: NetworkMode,
    /// Labels are unique.
    pub ports: Vec<PortRequest>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum NetworkMode {
    /// The node's own namespace; ports are the node's.
    Host,
    /// A namespace, veth and mesh address of the allocation's own.
    Bridge,
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PortRequest {
    pub label: String,
    /// The node port asked for; `None` lets the scheduler choose one from 20000-32000.
    pub static_port: Option<u16>,
    /// The port inside the allocation's namespace; `None` is the node port's number.
    pub to: Option<u16>,
}

/// `attribute` and `value` may hold `${attr.…}`, `${node.…}`, `${meta.…}`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Constraint {
    pub attribute: String,
    pub operator: Operator,
    pub value: String,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Operator {
    Equal,
    NotEqual,
    Less,
    LessOrEqual,
    Greater,
    GreaterOrEqual,
    Regexp,
    Version,
    Semver,
    SetContains,
    SetContainsAny,
    IsSet,
    IsNotSet,
    DistinctHosts,
}

impl Operator {
    /// Every operator with the spelling that status output and JSON use.
    pub const ALL: [(Operator, &'static str); 14] = [
        (Operator::Equal, "="),
        (Operator::NotEqual, "!="),
        (Operator::Less, "<"),
        (Operator::LessOrEqual, "<="),
        (Operator::Greater, ">"),
        (Operator::GreaterOrEqual, ">="),
        (Operator::Regexp, "regexp"),
        (Operator::Version, "version"),
        (Operator::Semver, "semver"),
        (Operator::SetContains, "set_contains"),
        (Operator::SetContainsAny, "set_contains_any"),
        (Operator::IsSet, "is_set"),
        (Operator::IsNotSet, "is_not_set"),
        (Operator::DistinctHosts, "distinct_hosts"),
    ];

    pub fn as_str(self) -> &'static str {
        Self::ALL.iter().find(|(op, _)| *op == self).map_or("", |(_, text)| text)
    }

    /// Reads any spelling that job files use: `==` and `is` mean `=`, `not` means `!=`, `set_contains_all` is `set_contains`.
    pub fn parse(text: &str) -> Option<Self> {
        let text = match text {
            "" | "==" | "is" => "=",
            "not" => "!=",
            "set_contains_all" => "set_contains",
            other => other,
        };
        Self::ALL.iter().find(|(_, spelling)| *spelling == text).map(|(op, _)| *op)
    }
}

impl Job {
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
    /// What one allocation of the group takes from a node.
    pub fn resources(&self) -> Resources {
        self.tasks.iter().fold(Resources { cpu_mhz: 0, memory_mb: 0 }, |sum, task| Resources {
            cpu_mhz: sum.cpu_mhz.saturating_add(task.resources.cpu_mhz),
            memory_mb: sum.memory_mb.saturating_add(task.resources.memory_mb),
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

impl JobKind {
    pub const ALL: [JobKind; 3] = [JobKind::Service, JobKind::Batch, JobKind::System];

    pub fn as_str(self) -> &'static str {
        match self {
            JobKind::Service => "service",
            JobKind::Batch => "batch",
            JobKind::System => "system",
        }
    }

    pub fn parse(text: &str) -> Option<Self> {
        Self::ALL.into_iter().find(|kind| kind.as_str() == text)
    }
}

impl HealthCheck {
    pub const ALL: [HealthCheck; 3] = [HealthCheck::Checks, HealthCheck::TaskStates, HealthCheck::Manual];

    pub fn as_str(self) -> &'static str {
        match self {
            HealthCheck::Checks => "checks",
            HealthCheck::TaskStates => "task_states",
            HealthCheck::Manual => "manual",
        }
    }

    pub fn parse(text: &str) -> Option<Self> {
        Self::ALL.into_iter().find(|check| check.as_str() == text)
    }
}

impl UpdateOrder {
    pub const ALL: [UpdateOrder; 2] = [UpdateOrder::StopFirst, UpdateOrder::StartFirst];

    pub fn as_str(self) -> &'static str {
        match self {
            UpdateOrder::StopFirst => "stop-first",
            UpdateOrder::StartFirst => "start-first",
        }
    }

    pub fn parse(text: &str) -> Option<Self> {
        Self::ALL.into_iter().find(|order| order.as_str() == text)
    }
}

impl UpdatePolicy {
    /// Whether a deployment watches over it.
    pub fn deploys(&self) -> bool {
        self.max_parallel > 0
    }
}

impl Default for UpdatePolicy {
    fn default() -> Self {
        Self {
            max_parallel: 1,
            health_check: HealthCheck::Checks,
            min_healthy_time: Duration::from_secs(10),
            healthy_deadline: Duration::from_secs(5 * 60),
            progress_deadline: Duration::from_secs(10 * 60),
            canary: 0,
            auto_revert: false,
            auto_promote: false,
            stagger: Duration::from_secs(30),
            order: UpdateOrder::StopFirst,
        }
    }
}

impl RestartPolicy {
    /// Nomad's default for service jobs.
    pub const SERVICE: RestartPolicy = RestartPolicy {
        attempts: 2,
        interval: Duration::from_secs(30 * 60),
        delay: Duration::from_secs(15),
        mode: RestartMode::Fail,
    };

    /// Nomad's default for batch and system jobs.
    pub const BATCH: RestartPolicy = RestartPolicy {
        attempts: 3,
        interval: Duration::from_secs(24 * 3600),
        delay: Duration::from_secs(15),
        mode: RestartMode::Fail,
    };

    pub fn default_of(kind: JobKind) -> Self {
        match kind {
            JobKind::Service => Self::SERVICE,
            JobKind::Batch | JobKind::System => Self::BATCH,
        }
    }
}

impl Default for Resources {
    fn default() -> Self {
        Self { cpu_mhz: 100, memory_mb: 300 }
    }
}

impl Default for LogConfig {
    fn default() -> Self {
        Self { files_max: 10, file_size_mb_max: 10 }
    }
}
