//! A machine with an agent, as the catalog sees it.

use crate::ids::{Epoch, Index, NodeId};
use crate::time::Timestamp;
use ipnet::IpNet;
use std::collections::BTreeMap;
use std::net::IpAddr;

#[derive(Clone, Debug, PartialEq)]
pub struct Node {
    pub id: NodeId,
    /// Unique among nodes that are not down.
    pub name: String,
    pub datacenter: String,
    pub pool: String,
    pub class: String,
    /// The address of the uplink: where tunnels end and edge services may listen.
    pub address: IpAddr,
    /// `kernel.name`, `cpu.arch`, `driver.exec` …: what `${attr.…}` reads.
    pub attributes: BTreeMap<String, String>,
    /// What `${meta.…}` reads.
    pub meta: BTreeMap<String, String>,
    /// What allocations may use: the machine less what the node keeps for itself.
    pub resources: NodeResources,
    pub drivers: BTreeMap<String, DriverStatus>,
    pub status: NodeStatus,
    pub eligibility: Eligibility,
    /// Its allocations are to move elsewhere.
    pub drain: Option<Drain>,
    pub epoch: Epoch,
    /// Address blocks (/26 for IPv4) from which the node numbers its allocations. Handed out by the catalog.
    pub blocks: Vec<IpNet>,
    pub version: String,
    pub status_changed_at: Timestamp,
    pub created_at_index: Index,
    pub modified_at_index: Index,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Default)]
pub struct NodeResources {
    pub cpu_mhz: u64,
    pub memory_mb: u64,
    pub disk_mb: u64,
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub struct DriverStatus {
    pub detected: bool,
    pub healthy: bool,
    pub description: String,
}

/// Alive, suspect, disconnected or down, as the leader sees it: a suspect node keeps its flows and its allocations, a
/// disconnected one loses the flows, a down one both.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum NodeStatus {
    /// Joined, but its agent has not opened a session yet.
    Initializing,
    Ready,
    /// The agent's stream is lost; the node may well forward and serve.
    Suspect,
    /// Neither its agent nor its kernel program answers: its instances are in no map, its allocations wait for it.
    Disconnected,
    /// Given up: its allocations are lost and replaced.
    Down,
}

/// How a node is emptied: service allocations move as their job's `migrate` allows, batch ones may end, system ones go last.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Drain {
    pub started_at: Timestamp,
    /// What is left then is stopped at once; `NEVER` waits without end.
    pub deadline: Timestamp,
    /// Allocations of system jobs stay.
    pub ignore_system: bool,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Eligibility {
    Eligible,
    Ineligible,
}

impl Node {
    /// Whether new allocations may be placed here.
    pub fn is_placeable(&self) -> bool {
        self.status == NodeStatus::Ready && self.eligibility == Eligibility::Eligible
    }
}

impl Drain {
    pub fn is_due(&self, now: Timestamp) -> bool {
        self.deadline != Timestamp::NEVER && self.deadline <= now
    }
}

impl Eligibility {
    pub fn as_str(self) -> &'static str {
        match self {
            Eligibility::Eligible => "eligible",
            Eligibility::Ineligible => "ineligible",
        }
    }
}

impl NodeStatus {
    /// Whether its peers can send it anything: its instances may be in their maps.
    pub fn is_reachable(self) -> bool {
        !matches!(self, NodeStatus::Disconnected | NodeStatus::Down)
    }

    pub fn as_str(self) -> &'static str {
        match self {
            NodeStatus::Initializing => "initializing",
            NodeStatus::Ready => "ready",
            NodeStatus::Suspect => "suspect",
            NodeStatus::Disconnected => "disconnected",
            NodeStatus::Down => "down",
        }
    }
}
