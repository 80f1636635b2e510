//! The catalog as plain values, for snapshots: everything that cannot be derived from something else.

use crate::alloc::Allocation;
use crate::command::{Authority, JoinToken, ServerRecord};
use crate::deployment::Deployment;
use crate::eval::Evaluation;
use crate::ids::{AllocId, Index, NodeId};
use crate::job::Job;
use crate::node::Node;
use crate::store::{Autopilot, KvEntry, Variable};
use crate::time::Timestamp;
use ipnet::IpNet;
use std::net::IpAddr;

/// All lists are in the order of their keys.
#[derive(Clone, Debug, PartialEq, Default)]
pub struct CatalogImage {
    /// The log index up to which commands are contained.
    pub index: Index,
    pub feature_level: u32,
    pub founding: Option<Founding>,
    pub servers: Vec<ServerRecord>,
    pub tokens: Vec<JoinToken>,
    pub nodes: Vec<Node>,
    pub jobs: Vec<JobRecord>,
    /// Each with the job it was placed for; restoring shares equal ones again.
    pub allocs: Vec<Allocation>,
    pub evals: Vec<Evaluation>,
    pub deployments: Vec<Deployment>,
    /// Virtual addresses by service name.
    pub vips: Vec<(String, IpAddr)>,
    /// When each table changed last.
    pub tables: Vec<(Table, Index)>,
    /// When the service instances of an allocation changed last; the instances themselves are derived.
    pub instances_modified: Vec<(AllocId, Index)>,
    /// When nodes or services changed last as routing sees them.
    pub routing_modified: Index,
    pub kv: Vec<KvEntry>,
    /// When a key was deleted last.
    pub kv_deleted: Index,
    pub variables: Vec<Variable>,
    pub autopilot: Autopilot,
    /// Why a node has the status that it has, where there is something to say.
    pub node_reasons: Vec<(NodeId, String)>,
}

/// What the first command settles for good.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Founding {
    pub authority: Authority,
    pub alloc_range: IpNet,
    pub vip_range: IpNet,
}

/// A registered job with the versions that are kept.
#[derive(Clone, Debug, PartialEq)]
pub struct JobRecord {
    /// Newest first, never empty, at most [`JobRecord::VERSIONS_MAX`].
    pub versions: Vec<Job>,
    /// Forget it once nothing of it runs.
    pub purge: bool,
    pub created_at_index: Index,
    pub modified_at_index: Index,
    /// When the specification or the stop mark changed last.
    pub job_modified_at_index: Index,
    /// The newest time for which a periodic job was launched, or skipped; `NEVER` before the first.
    pub launched_for: Timestamp,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Table {
    Cluster,
    Servers,
    Tokens,
    Nodes,
    Jobs,
    Allocs,
    Evals,
    Services,
    Deployments,
    Kv,
    Variables,
}

impl JobRecord {
    pub const VERSIONS_MAX: usize = 6;
}

impl Table {
    pub const ALL: [Table; 11] = [
        Table::Cluster,
        Table::Servers,
        Table::Tokens,
        Table::Nodes,
        Table::Jobs,
        Table::Allocs,
        Table::Evals,
        Table::Services,
        Table::Deployments,
        Table::Kv,
        Table::Variables,
    ];

    pub fn as_str(self) -> &'static str {
        match self {
            Table::Cluster => "cluster",
            Table::Servers => "servers",
            Table::Tokens => "tokens",
            Table::Nodes => "nodes",
            Table::Jobs => "jobs",
            Table::Allocs => "allocs",
            Table::Evals => "evals",
            Table::Services => "services",
            Table::Deployments => "deployments",
            Table::Kv => "kv",
            Table::Variables => "variables",
        }
    }
}
