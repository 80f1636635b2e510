//! What every agent is told so that it can answer DNS and fill its data path: one consistent picture of a generation.

use crate::ids::{Generation, NodeId};
use crate::node::NodeStatus;
use crate::service::Instance;
use ipnet::IpNet;
use std::net::IpAddr;

#[derive(Clone, Debug, PartialEq, Default)]
pub struct RoutingSnapshot {
    pub generation: Generation,
    /// Ordered by id.
    pub nodes: Vec<RoutedNode>,
    /// Ordered by name.
    pub services: Vec<RoutedService>,
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub struct RoutedNode {
    pub id: NodeId,
    pub name: String,
    pub datacenter: String,
    pub address: IpAddr,
    pub blocks: Vec<IpNet>,
    pub status: NodeStatus,
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub struct RoutedService {
    pub name: String,
    /// The service's virtual address; stays for as long as the service's name is known.
    pub vip: IpAddr,
    /// Every registered instance, ordered by allocation and port; critical and draining ones included.
    pub instances: Vec<Instance>,
}
