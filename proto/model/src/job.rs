//! What a user asks for: job > group > task, with the defaults of Nomad's job specification.

use crate::ids::JobId;
use crate::service::Service;
use crate::time::Timestamp;
use std::collections::BTreeMap;
use std::time::Duration;

/// A registered job. Two values that differ only in `version`, `stopped` and the times are the same specification.
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
    pub submitted_at: Timestamp,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum JobKind {
    Service,
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

    /// Whether both describe the same work: everything but version, stop mark and submission time is equal.
    pub fn same_specification(&self, other: &Job) -> bool {
        let normal = |job: &Job| Job { version: 0, stopped: false, submitted_at: Timestamp::NEVER, ..job.clone() };
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

impl RestartPolicy {
    /// Nomad's default for service jobs.
    pub const SERVICE: RestartPolicy = RestartPolicy {
        attempts: 2,
        interval: Duration::from_secs(30 * 60),
        delay: Duration::from_secs(15),
        mode: RestartMode::Fail,
    };
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
