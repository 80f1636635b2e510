//! Services that groups and tasks declare, and the instances the catalog derives from running allocations.

use crate::alloc::Health;
use crate::ids::{AllocId, Index, JobId, NodeId};
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
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub enum CheckKind {
    /// 2xx passes, 429 warns, everything else and no answer is critical.
    Http {
        method: String,
        path: String,
    },
    Tcp,
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
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum InstanceNetwork {
    /// `address` is the allocation's own, behind a veth of its node.
    Bridge,
    /// `address` is the node's.
    Host,
}

impl Check {
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
