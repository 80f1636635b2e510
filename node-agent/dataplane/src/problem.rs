//! Routes that cannot be made, as data: each on its service, none touching another.

use crate::tags::{Excerpt, TagProblem};
use model::AllocId;
use std::net::IpAddr;
use thiserror::Error;

/// Why something of a service is not in the data path of this node.
#[derive(Clone, Debug, PartialEq, Eq, Error)]
#[error("{service}: {kind}")]
pub struct RouteProblem {
    pub service: String,
    #[source]
    pub kind: RouteProblemKind,
}

#[derive(Clone, Debug, PartialEq, Eq, Error)]
pub enum RouteProblemKind {
    #[error("tag `{tag}`: {problem}")]
    Tag { tag: Excerpt, problem: TagProblem },
    #[error("port {port} of every node already belongs to service `{holder}`; choose another port")]
    PortTaken { port: u16, holder: String },
    #[error(
        "port {port} is the node's own: it listens there, or its connections leave from it (net.ipv4.ip_local_port_range); \
         choose another port"
    )]
    PortReserved { port: u16 },
    #[error(
        "port {port} is also the host port of allocation {alloc_id} here; the route stands, the host port does not"
    )]
    HostPortHidden { port: u16, alloc_id: AllocId },
    #[error("{address}:{port} is already dialled for service `{holder}`; stop one of the two, and the other keeps it")]
    AddressTaken { address: IpAddr, port: u16, holder: String },
    #[error("instance {address}:{port} of allocation {alloc_id} can be sent nothing: it has no address or no port")]
    Nowhere { address: IpAddr, port: u16, alloc_id: AllocId },
    #[error("every instance behind port {port} weighs nothing, so none takes new flows; give one a weight")]
    NoWeight { port: u16 },
    #[error("address {address} is IPv6, which is not built yet")]
    Ipv6 { address: IpAddr },
    #[error(
        "the node's {table} table holds {capacity} entries and {needed} are needed; what was there goes on, the rest waits \
         until services go"
    )]
    TableFull { table: &'static str, needed: u32, capacity: u32 },
    #[error(
        "instance {address}:{port} is on node {node}, which this agent does not know; it is left out until it does"
    )]
    NodeUnknown { address: IpAddr, port: u16, node: String },
}
