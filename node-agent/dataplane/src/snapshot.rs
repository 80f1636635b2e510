//! What a compilation reads: the pushed routing and what this node knows of itself and its neighbours.

use model::{AllocId, AllocatedPort, NodeId, RoutingSnapshot, Timestamp};
use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;
use std::ops::RangeInclusive;

/// A link-layer address.
pub type Mac = [u8; 6];

#[derive(Clone, Debug, PartialEq)]
pub struct Snapshot {
    pub node_id: NodeId,
    /// For the grace periods of what is no longer in use.
    pub now: Timestamp,
    pub routing: RoutingSnapshot,
    /// `None` for a node without a wire (dev mode): no tunnels, no edge, no host ports.
    pub uplink: Option<Uplink>,
    /// The node's own address inside the mesh.
    pub mesh_address: Option<IpAddr>,
    /// Local allocations with a namespace, by their address.
    pub endpoints: BTreeMap<IpAddr, LocalEndpoint>,
    /// The MAC of the next hop towards each node address, as far as it is known.
    pub neighbours: BTreeMap<IpAddr, Mac>,
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Uplink {
    pub address: IpAddr,
    pub ifindex: u32,
    pub mac: Mac,
    pub mtu: u16,
    /// TCP ports of its address that the node itself listens on: no route may take them.
    pub reserved_ports: BTreeSet<u16>,
    /// Ports that connections of the node's own leave from: their answers must not meet a route, of whatever protocol.
    pub local_ports: Option<RangeInclusive<u16>>,
}

/// A local allocation's veth and the node ports that lead to it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct LocalEndpoint {
    pub alloc_id: AllocId,
    /// Of the host side.
    pub ifindex: u32,
    /// Of the allocation's side.
    pub mac: Mac,
    /// Of the host side.
    pub host_mac: Mac,
    pub ports: Vec<AllocatedPort>,
}
