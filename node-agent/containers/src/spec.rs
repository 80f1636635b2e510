//! What a container is to be, as a value that is kept beside the task until it ends.

use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;
use std::path::PathBuf;

/// By these labels the agent knows what is its own.
pub const LABEL_NODE: &str = "meshctl.node";
pub const LABEL_ALLOC: &str = "meshctl.alloc";
pub const LABEL_TASK: &str = "meshctl.task";
pub const LABEL_KIND: &str = "meshctl.kind";

#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct ContainerSpec {
    /// The engine's unix socket.
    pub socket: PathBuf,
    /// Unique on the machine, and the same at every attempt to start this task.
    pub name: String,
    pub image: String,
    pub pull: Pull,
    /// Where the node keeps locks and records of its images.
    pub images: PathBuf,
    /// Replaces the image's entry point; empty keeps it.
    pub entrypoint: Vec<String>,
    /// Replaces the image's command; empty keeps it.
    pub command: Vec<String>,
    pub env: BTreeMap<String, String>,
    pub user: Option<String>,
    pub work_dir: Option<String>,
    pub hostname: Option<String>,
    pub labels: BTreeMap<String, String>,
    pub network: Network,
    pub dns: Dns,
    pub extra_hosts: Vec<String>,
    pub mounts: Vec<Mount>,
    pub devices: Vec<Device>,
    /// Exactly these, whatever the engine's default is.
    pub capabilities: Vec<String>,
    pub privileged: bool,
    pub readonly_rootfs: bool,
    pub init: bool,
    pub tty: bool,
    pub interactive: bool,
    pub security_opt: Vec<String>,
    pub sysctls: BTreeMap<String, String>,
    pub ulimits: Vec<Ulimit>,
    pub storage_opt: BTreeMap<String, String>,
    pub group_add: Vec<String>,
    pub shm_bytes: Option<u64>,
    pub ipc_mode: Option<String>,
    pub pid_mode: Option<String>,
    pub uts_mode: Option<String>,
    pub userns_mode: Option<String>,
    pub cgroupns: Option<String>,
    pub runtime: Option<String>,
    pub oom_score_adj: Option<i64>,
    pub limits: Limits,
}

#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Pull {
    /// Ask the registry even when an image of that name is there.
    pub force: bool,
    pub timeout_ms: u64,
    pub auth: Option<Auth>,
    /// Try without the credentials when they are refused.
    pub auth_soft_fail: bool,
    /// A file of `docker save`, instead of a registry.
    pub load: Option<PathBuf>,
}

#[derive(Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Auth {
    pub username: String,
    pub password: String,
    pub email: String,
    pub server: String,
}

impl std::fmt::Debug for Auth {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "Auth({}@{})", self.username, self.server)
    }
}

#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub enum Network {
    /// A namespace of its own with loopback alone.
    #[default]
    None,
    /// The node's.
    Host,
    /// The engine's own default network, with these ports of the node leading to it.
    Engine(Vec<Published>),
    /// A network of the engine's by name.
    Named(String, Vec<Published>),
    /// One that is there, as a file of the node; podman joins such by itself.
    Namespace(PathBuf),
    /// The same, by way of a container that stands in it.
    Sandbox(crate::SandboxSpec),
}

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Published {
    pub address: String,
    pub host_port: u16,
    pub to: u16,
}

#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Dns {
    pub servers: Vec<String>,
    pub searches: Vec<String>,
    pub options: Vec<String>,
}

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Mount {
    pub kind: MountKind,
    pub target: String,
    pub read_only: bool,
}

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum MountKind {
    /// A path of the node; `propagation` as mount(8) names it.
    Bind {
        source: PathBuf,
        propagation: Option<String>,
    },
    /// A volume of the engine's; without a name it goes with the container.
    Volume {
        name: String,
    },
    Tmpfs {
        bytes: Option<u64>,
        mode: Option<u32>,
    },
}

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Device {
    pub host: String,
    pub container: String,
    /// Of `rwm`.
    pub permissions: String,
}

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Ulimit {
    pub name: String,
    pub soft: i64,
    pub hard: i64,
}

/// 0 and `None` set no limit.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Limits {
    pub cpu_shares: u64,
    /// Microseconds of every period; with it the task is held to its share even on an idle machine.
    pub cpu_quota_us: Option<u64>,
    pub cpu_period_us: Option<u64>,
    pub cpuset: Option<String>,
    pub memory_bytes: u64,
    /// What is kept for it when memory runs short; below `memory_bytes`.
    pub memory_reserved_bytes: Option<u64>,
    pub pids_max: u64,
}
