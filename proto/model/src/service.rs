//! Services that groups and tasks declare, and the instances the catalog derives from running allocations.

use crate::alloc::Health;
use crate::ids::{AllocId, Index, JobId, NodeId};
use crate::steering::Steering;
use std::collections::BTreeMap;
use std::net::IpAddr;
use std::time::Duration;

#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Service {
    pub name: String,
    pub tags: Vec<String>,
    /// A label of the group's network; `None` registers no port and so no VIP.
    pub port_label: Option<String>,
    pub checks: Vec<Check>,
    /// `vip_port` chooses the VIP's port.
    pub meta: BTreeMap<String, String>,
    /// What canaries have instead of `tags`; `None` is the same.
    pub canary_tags: Option<Vec<String>>,
    /// What canaries have instead of `meta`; empty is the same.
    pub canary_meta: BTreeMap<String, String>,
    /// Shares of new flows, by health.
    pub weights: Weights,
}

/// 0 takes an instance out of rotation.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Weights {
    pub passing: u16,
    pub warning: u16,
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Check {
    /// Unique within its service.
    pub name: String,
    pub kind: CheckKind,
    /// At least one second.
    pub interval: Duration,
    /// At least one second.
    pub timeout: Duration,
    /// `None` is the service's own port.
    pub port_label: Option<String>,
    /// What it is before its first result; `None` is critical.
    pub initial: Option<Health>,
    /// Results in a row that it takes to get better: 0 and 1 are the same.
    pub successes_before_passing: u32,
    /// Results in a row beyond the first that it takes to get worse.
    pub failures_before_critical: u32,
    pub on_update: OnUpdate,
    /// Restarts the task when the check goes on failing.
    pub restart: Option<CheckRestart>,
    /// The task it belongs to, for scripts and restarts of checks of a group's service.
    pub task: Option<String>,
}

/// What of a check a deployment waits for.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Default)]
pub enum OnUpdate {
    #[default]
    RequireHealthy,
    /// Warnings are good enough.
    IgnoreWarnings,
    /// It does not matter.
    Ignore,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct CheckRestart {
    /// Failures in a row, at least 1.
    pub limit: u32,
    /// Failures that soon after the task's start do not count.
    pub grace: Duration,
    pub ignore_warnings: bool,
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub enum CheckKind {
    /// 2xx passes, 429 warns, everything else and no answer is critical.
    Http {
        method: String,
        path: String,
        headers: BTreeMap<String, Vec<String>>,
        body: String,
        /// `Some` is HTTPS.
        tls: Option<CheckTls>,
    },
    Tcp,
    /// gRPC health checking protocol version 1.
    Grpc {
        /// Empty asks for the server as a whole.
        service: String,
        tls: Option<CheckTls>,
    },
    /// A program run inside the task: 0 passes, 1 warns, all else is critical.
    Script {
        command: String,
        args: Vec<String>,
    },
    /// The task itself reports, at least once an interval.
    Ttl,
}

#[derive(Clone, Debug, PartialEq, Eq, Default)]
pub struct CheckTls {
    /// Empty is the address.
    pub server_name: String,
    pub skip_verify: bool,
}

/// One registered address of a service.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Instance {
    pub service: String,
    pub job_id: JobId,
    pub alloc_id: AllocId,
    pub node_id: NodeId,
    pub node_name: String,
    pub datacenter: String,
    pub address: IpAddr,
    /// The port the backend listens on at `address`.
    pub port: u16,
    /// The service's port on its VIP: its meta `vip_port`, else where its port label leads inside the allocation; none without both.
    pub vip_port: Option<u16>,
    pub tags: Vec<String>,
    pub weight: u16,
    pub network: InstanceNetwork,
    pub health: Health,
    /// Its allocation is to stop: it keeps its flows and gets no new ones.
    pub draining: bool,
    pub modified_at_index: Index,
    /// What its service's meta asks of the data path.
    pub steering: Steering,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum InstanceNetwork {
    /// `address` is the allocation's own, behind a veth of its node.
    Bridge,
    /// `address` is the node's.
    Host,
}

impl Service {
    /// A service of a port with defaults and no check.
    pub fn named(name: &str, port_label: Option<&str>) -> Self {
        Self {
            name: name.to_owned(),
            tags: Vec::new(),
            port_label: port_label.map(str::to_owned),
            checks: Vec::new(),
            meta: BTreeMap::new(),
            canary_tags: None,
            canary_meta: BTreeMap::new(),
            weights: Weights::default(),
        }
    }
}

impl Default for Weights {
    fn default() -> Self {
        Self { passing: 1, warning: 1 }
    }
}

impl OnUpdate {
    pub const ALL: [OnUpdate; 3] = [OnUpdate::RequireHealthy, OnUpdate::IgnoreWarnings, OnUpdate::Ignore];

    pub fn as_str(self) -> &'static str {
        match self {
            OnUpdate::RequireHealthy => "require_healthy",
            OnUpdate::IgnoreWarnings => "ignore_warnings",
            OnUpdate::Ignore => "ignore",
        }
    }

    pub fn parse(text: &str) -> Option<Self> {
        Self::ALL.into_iter().find(|rule| rule.as_str() == text)
    }
}

impl CheckKind {
    /// GET of a path, without headers, in the clear.
    pub fn http(path: &str) -> Self {
        CheckKind::Http {
            method: "GET".to_owned(),
            path: path.to_owned(),
            headers: BTreeMap::new(),
            body: String::new(),
            tls: None,
        }
    }
}

impl Check {
    /// With defaults for what most checks leave out.
    pub fn named(name: &str, kind: CheckKind, interval: Duration, timeout: Duration) -> Self {
        Self {
            name: name.to_owned(),
            kind,
            interval,
            timeout,
            port_label: None,
            initial: None,
            successes_before_passing: 0,
            failures_before_critical: 0,
            on_update: OnUpdate::RequireHealthy,
            restart: None,
            task: None,
        }
    }

    /// The key of its state in an allocation's checks: `<service>/<check name>`.
    pub fn id(&self, service: &str) -> String {
        format!("{service}/{}", self.name)
    }
}

impl Instance {
    /// Whether new flows may go to it.
    pub fn is_active(&self) -> bool {
        self.health != Health::Critical && !self.draining
    }

    /// The id under which Nomad's and Consul's APIs list it.
    pub fn id(&self) -> String {
        format!("_nomad-task-{}-{}-{}", self.alloc_id, self.service, self.port)
    }
}
