//! What applying a command answers: the index it took effect at, or why it was refused.

use crate::command::Role;
use crate::deployment::DeploymentStatus;
use crate::eval::EvalStatus;
use crate::ids::{AllocId, DeploymentId, Epoch, EvalId, Index, JobId, NodeId, ServerId};
use std::fmt;
use std::net::IpAddr;

/// The command took effect.
#[derive(Clone, Debug, PartialEq, Eq, Default)]
pub struct Applied {
    pub index: Index,
    /// Parts of a plan or report that no longer fit the newest state and were left out.
    pub dropped: Vec<AllocId>,
}

/// The command changed nothing. Every server decides alike, so a refusal is part of the replicated history.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Refusal {
    /// The log index is not newer than what was applied already.
    OldIndex {
        applied: Index,
    },
    NotBootstrapped,
    AlreadyBootstrapped,
    /// `range` as text, with what is wrong about it.
    RangeInvalid {
        range: String,
        reason: String,
    },
    /// The command needs a feature level that the cluster has not reached.
    FeatureLevelTooLow {
        cluster: u32,
        needed: u32,
    },
    /// Feature levels only grow.
    FeatureLevelLowered {
        cluster: u32,
        asked: u32,
    },
    ServerUnknown {
        id: ServerId,
    },
    TokenUnknown,
    TokenSpent,
    TokenExpired,
    /// The token is for another role than `asked`.
    TokenRole {
        asked: Role,
    },
    TokenExists,
    TooManyTokens {
        max: u32,
    },
    /// Another live node or server holds the name.
    NameTaken {
        name: String,
    },
    /// Another node that is not down has the address: packets for one would reach the other.
    AddressTaken {
        address: IpAddr,
    },
    NameInvalid {
        name: String,
    },
    NodeUnknown {
        id: NodeId,
    },
    EpochNotNewer {
        known: Epoch,
        got: Epoch,
    },
    EpochStale {
        known: Epoch,
        got: Epoch,
    },
    AddressesExhausted {
        range: String,
    },
    JobUnknown {
        id: JobId,
    },
    JobInvalid {
        id: JobId,
        reason: String,
    },
    /// Somebody changed the job in between.
    JobIndexConflict {
        id: JobId,
        expected: Index,
        current: Index,
    },
    /// A node that drains cannot take anything new.
    NodeDrains {
        id: NodeId,
    },
    DeploymentUnknown {
        id: DeploymentId,
    },
    DeploymentEnded {
        id: DeploymentId,
        status: DeploymentStatus,
    },
    /// There are no canaries to promote, or not all of them are healthy.
    NotPromotable {
        reason: String,
    },
    /// A key, path or setting is not as the caller last saw it.
    CasMismatch {
        name: String,
        expected: Index,
        current: Index,
    },
    /// What cannot be kept under this name, and why.
    StoreInvalid {
        name: String,
        reason: String,
    },
    /// The evaluation is of another job than the command.
    EvalMismatch {
        id: EvalId,
        job_id: JobId,
    },
    EvalUnknown {
        id: EvalId,
    },
    /// The plan's evaluation was canceled or finished meanwhile; a newer one covers the job.
    EvalNotPending {
        id: EvalId,
        status: EvalStatus,
    },
}

impl fmt::Display for Refusal {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Refusal::OldIndex { applied } => write!(f, "the log is applied up to index {applied} already"),
            Refusal::NotBootstrapped => f.write_str("the cluster is not bootstrapped; run `meshctl server init` first"),
            Refusal::AlreadyBootstrapped => f.write_str(
                "the cluster is bootstrapped already; join it with a token instead of initialising it again",
            ),
            Refusal::RangeInvalid { range, reason } => write!(f, "address range {range}: {reason}"),
            Refusal::FeatureLevelTooLow { cluster, needed } => {
                write!(f, "needs feature level {needed}, the cluster is at {cluster}; upgrade every server first")
            }
            Refusal::FeatureLevelLowered { cluster, asked } => {
                write!(f, "the feature level is {cluster} and cannot go back to {asked}")
            }
            Refusal::ServerUnknown { id } => write!(f, "no server has id {id}; see the list of servers"),
            Refusal::TokenUnknown => {
                f.write_str("the join token is unknown here; create one with `meshctl token create`")
            }
            Refusal::TokenSpent => f.write_str("the join token is used up; create another with `meshctl token create`"),
            Refusal::TokenExpired => {
                f.write_str("the join token has expired; create another with `meshctl token create`")
            }
            Refusal::TokenRole { asked } => {
                let role = asked.as_str();
                write!(f, "the join token is not for role {role}; create one with `meshctl token create --role {role}`")
            }
            Refusal::TokenExists => f.write_str("a join token with this digest exists already; create another"),
            Refusal::TooManyTokens { max } => {
                write!(f, "{max} join tokens are open; let some expire or be used before creating more")
            }
            Refusal::NameTaken { name } => {
                write!(
                    f,
                    "the name {name:?} is taken by a live member; choose another with `--name` or stop that member"
                )
            }
            Refusal::AddressTaken { address } => {
                write!(
                    f,
                    "the address {address} is taken by a live node; give this one its own with `--address` or stop that \
                     node"
                )
            }
            Refusal::NameInvalid { name } => {
                write!(f, "the name {name:?} is not usable; choose 1 to 63 letters, digits, `-`, `_` or `.`")
            }
            Refusal::NodeUnknown { id } => {
                write!(f, "node {id} is not registered; its agent must open a session first")
            }
            Refusal::EpochNotNewer { known, got } => {
                write!(f, "epoch {got} is not newer than the node's {known}; restart the agent")
            }
            Refusal::EpochStale { known, got } => {
                write!(f, "epoch {got} is not the node's newest, {known}; a newer agent has taken over")
            }
            Refusal::AddressesExhausted { range } => {
                write!(
                    f,
                    "no address is left in {range}; a larger range must be chosen when the cluster is initialised"
                )
            }
            Refusal::JobUnknown { id } => write!(f, "no job {:?} is registered; see `meshctl job status`", id.0),
            Refusal::JobInvalid { id, reason } => write!(f, "job {:?}: {reason}", id.0),
            Refusal::JobIndexConflict { expected, current, .. } => write!(
                f,
                "Enforcing job modify index {expected}: job exists with conflicting job modify index: {current}; look at \
                 the newer job and plan again"
            ),
            Refusal::NodeDrains { id } => {
                write!(f, "node {id} drains; end that with `meshctl node drain -disable` first")
            }
            Refusal::DeploymentUnknown { id } => {
                write!(f, "no deployment has id {id}; see `meshctl deployment list`")
            }
            Refusal::DeploymentEnded { id, status } => {
                write!(f, "deployment {id} is {} and changes no more", status.as_str())
            }
            Refusal::NotPromotable { reason } => f.write_str(reason),
            Refusal::CasMismatch { name, expected, current } => write!(
                f,
                "cas error: {name:?} changed last at index {current}, not at {expected}; read it again and decide anew"
            ),
            Refusal::StoreInvalid { name, reason } => write!(f, "{name:?} {reason}"),
            Refusal::EvalMismatch { id, job_id } => {
                write!(f, "evaluation {id} is of job {:?}, not of this command's", job_id.0)
            }
            Refusal::EvalUnknown { id } => write!(f, "evaluation {id} is not known"),
            Refusal::EvalNotPending { id, status } => {
                write!(f, "evaluation {id} is {}; a newer one covers its job", status.as_str())
            }
        }
    }
}

impl std::error::Error for Refusal {}
