//! The replicated commands: the only way the catalog changes.
//!
//! A command carries everything its application needs, time and ids included, because applying has no clock and no
//! randomness. `feature_level` names the lowest level that understands the command; a server refuses to propose above the
//! cluster's level and halts on a committed command that it does not understand.

use crate::alloc::AllocUpdate;
use crate::deployment::DeploymentUpdate;
use crate::eval::{Evaluation, Plan};
use crate::garbage::Garbage;
use crate::ids::{AllocId, Epoch, Index, JobId, NodeId, ServerId};
use crate::image::CatalogImage;
use crate::job::Job;
use crate::node::{Drain, Eligibility, Node, NodeStatus};
use crate::store::{Autopilot, KvChange, VariableChange};
use crate::time::Timestamp;
use ipnet::IpNet;
use std::net::SocketAddr;

/// A command with the proposer's wall-clock time.
#[derive(Clone, Debug, PartialEq)]
pub struct Envelope {
    pub proposed_at: Timestamp,
    pub feature_level: u32,
    pub command: Command,
}

#[derive(Clone, Debug, PartialEq)]
pub enum Command {
    /// The first command of a cluster: its authority and its address ranges.
    Bootstrap {
        authority: Authority,
        alloc_range: IpNet,
        vip_range: IpNet,
    },
    UpsertServer(ServerRecord),
    RemoveServer {
        id: ServerId,
    },
    CreateToken(JoinToken),
    /// Spends one use of a token for the named node or server; refused when it is unknown, spent, expired or of another role.
    UseToken {
        digest: [u8; 32],
        role: Role,
        name: String,
    },
    /// A session opened: adds or renews the node, with a fresh epoch. Refused for a name that another live node holds and
    /// for an epoch that is not newer.
    RegisterNode(Box<Node>),
    SetNodeStatus {
        node_id: NodeId,
        epoch: Epoch,
        status: NodeStatus,
        evals: Vec<Evaluation>,
    },
    RegisterJob {
        job: Box<Job>,
        eval: Evaluation,
        /// Refused unless the job's specification changed last at this index; 0 is for a job that does not exist.
        enforce_index: Option<Index>,
    },
    /// Marks the job stopped; `purge` forgets it once nothing of it runs.
    DeregisterJob {
        job_id: JobId,
        purge: bool,
        eval: Evaluation,
    },
    /// Places, stops and completes or blocks the evaluation. Placements that no longer fit are left out and reported.
    ApplyPlan {
        plan: Box<Plan>,
        follow_up: Option<Evaluation>,
    },
    /// Refused when the epoch is not the node's newest; updates of allocations of other nodes are left out.
    UpdateAllocs {
        node_id: NodeId,
        epoch: Epoch,
        updates: Vec<AllocUpdate>,
        evals: Vec<Evaluation>,
    },
    /// Puts an operator's snapshot in the place of what people decided; facts (servers, authority, nodes that are there,
    /// tokens) stay. Refused for other address ranges.
    RestoreCatalog {
        image: Box<CatalogImage>,
        evals: Vec<Evaluation>,
    },
    UpsertEvals(Vec<Evaluation>),
    /// Somebody wants these allocations stopped; the evaluations place others. Since level 2.
    StopAllocs {
        alloc_ids: Vec<AllocId>,
        evals: Vec<Evaluation>,
    },
    SetFeatureLevel {
        level: u32,
    },
    SetNodeEligibility {
        node_id: NodeId,
        eligibility: Eligibility,
        evals: Vec<Evaluation>,
    },
    /// Starts, changes or, with `None`, ends a node's drain. A node that drains takes nothing new.
    SetNodeDrain {
        node_id: NodeId,
        drain: Option<Drain>,
        /// What a node that no longer drains is.
        eligibility: Eligibility,
        evals: Vec<Evaluation>,
    },
    /// Refused for a deployment that has ended.
    UpdateDeployment {
        update: DeploymentUpdate,
        eval: Evaluation,
    },
    /// As `SetNodeStatus`, with the reason in words; since level 2.
    JudgeNode {
        node_id: NodeId,
        epoch: Epoch,
        status: NodeStatus,
        reason: String,
        evals: Vec<Evaluation>,
    },
    /// Since level 2.
    ChangeKv(KvChange),
    /// Since level 2.
    ChangeVariable(VariableChange),
    /// Since level 2. `cas` refuses unless the settings changed last at this index.
    SetAutopilot {
        autopilot: Autopilot,
        cas: Option<Index>,
    },
    /// Registers a job that a dispatch made from a parameterized one, unless one with its token is there. Since level 2.
    DispatchJob {
        child: Box<Job>,
        eval: Evaluation,
    },
    /// A periodic job's time has come: registers the job made from it, or with none only notes the time. Since level 2.
    LaunchPeriodic {
        parent: JobId,
        launch: Timestamp,
        child: Option<Box<Job>>,
        eval: Evaluation,
    },
    /// A version works, or does not: a failed deployment goes back to the newest that does. Since level 2.
    MarkStable {
        job_id: JobId,
        version: u64,
        stable: bool,
    },
    /// A new version that asks for the same, so that everything of the job is replaced as its update policy says. Since
    /// level 2.
    RestartJob {
        job_id: JobId,
        eval: Evaluation,
    },
    /// Since level 2.
    CollectGarbage(Box<Garbage>),
}

impl Command {
    /// The lowest level of a cluster in which every server understands this command.
    pub fn feature_level(&self) -> u32 {
        match self {
            Command::JudgeNode { .. }
            | Command::StopAllocs { .. }
            | Command::ChangeKv(_)
            | Command::ChangeVariable(_)
            | Command::SetAutopilot { .. }
            | Command::DispatchJob { .. }
            | Command::LaunchPeriodic { .. }
            | Command::MarkStable { .. }
            | Command::RestartJob { .. }
            | Command::CollectGarbage(_) => 2,
            _ => 1,
        }
    }
}

/// The cluster's certificate authority. The key is sealed under the servers' seal key and never leaves Raft in the clear.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Authority {
    pub certificate_der: Vec<u8>,
    pub sealed_key: Vec<u8>,
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ServerRecord {
    pub id: ServerId,
    pub name: String,
    /// Where its gRPC listens, as other machines reach it.
    pub rpc_address: SocketAddr,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Role {
    Server,
    Agent,
}

/// Only the digest of a token's secret is kept.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct JoinToken {
    pub digest: [u8; 32],
    pub role: Role,
    pub uses_left: u32,
    pub expires_at: Timestamp,
}

impl Role {
    pub fn as_str(self) -> &'static str {
        match self {
            Role::Server => "server",
            Role::Agent => "agent",
        }
    }
}
