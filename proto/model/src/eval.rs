//! Evaluations (requests to reconcile a job) and plans (what an evaluation wants to change).

use crate::alloc::{Allocation, ClientStatus};
use crate::deployment::Deployment;
use crate::ids::{AllocId, EvalId, Index, JobId};
use crate::time::Timestamp;
use std::collections::BTreeMap;

#[derive(Clone, Debug, PartialEq)]
pub struct Evaluation {
    pub id: EvalId,
    pub job_id: JobId,
    pub priority: u8,
    pub trigger: EvalTrigger,
    pub status: EvalStatus,
    pub status_description: String,
    /// Not to be processed before; `NEVER` is at once.
    pub wait_until: Timestamp,
    /// By group, when something could not be placed.
    pub failures: BTreeMap<String, PlacementFailure>,
    /// By group: how many allocations wait for capacity.
    pub queued: BTreeMap<String, u32>,
    /// The state that its newest plan was made from: what became free later was not seen. 0 before the first plan.
    pub snapshot_index: Index,
    pub created_at: Timestamp,
    pub modified_at: Timestamp,
    pub created_at_index: Index,
    pub modified_at_index: Index,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum EvalTrigger {
    JobRegister,
    JobDeregister,
    NodeUpdate,
    /// An allocation failed, or became healthy while older versions wait to be replaced.
    AllocUpdate,
    /// A deployment made progress, was promoted or ended.
    DeploymentWatcher,
    NodeDrain,
    /// A periodic job's time has come, or somebody forced it.
    PeriodicJob,
    /// Somebody stopped an allocation.
    AllocStop,
    /// Allocations had to make room for a job of higher priority.
    Preemption,
    /// An evaluation failed; its job is looked at again after a while.
    FailedFollowUp,
    /// An evaluation's plans were overtaken too often; its job is looked at again when something changes.
    MaxPlanAttempts,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum EvalStatus {
    Pending,
    /// Waits for capacity; any change of the nodes makes it pending again.
    Blocked,
    Complete,
    Failed,
    Canceled,
}

/// Why a group could not be placed, counted over all nodes that were looked at.
#[derive(Clone, Debug, PartialEq, Eq, Default)]
pub struct PlacementFailure {
    pub nodes_evaluated: u32,
    pub nodes_filtered: u32,
    pub nodes_exhausted: u32,
    /// By the constraint's text, e.g. `${attr.kernel.name} = linux`.
    pub constraints_filtered: BTreeMap<String, u32>,
    /// By dimension: `cpu`, `memory`, `disk`, `network: port 80`.
    pub dimensions_exhausted: BTreeMap<String, u32>,
    /// How many allocations beyond the first failed alike.
    pub coalesced: u32,
}

/// A proposal against the catalog as it was at `snapshot_index`; the catalog checks every placement again when it applies it.
#[derive(Clone, Debug, PartialEq)]
pub struct Plan {
    pub eval_id: EvalId,
    pub job_id: JobId,
    pub snapshot_index: Index,
    /// Evaluations of other jobs of which it stops allocations.
    pub victims: Vec<Evaluation>,
    /// More parts of it follow in commands of their own: the evaluation stays as it is.
    pub goes_on: bool,
    pub stops: Vec<PlannedStop>,
    /// Complete allocations, `created_at_index` and `modified_at_index` left to the catalog.
    pub placements: Vec<Allocation>,
    /// Allocations that only adopt the newest job version: services, checks, restart policy changed, nothing restarts.
    pub in_place: Vec<AllocId>,
    pub failures: BTreeMap<String, PlacementFailure>,
    pub queued: BTreeMap<String, u32>,
    /// The deployment that the job's newest version starts with this plan.
    pub deployment: Option<Deployment>,
    /// When the job should be looked at again (a reschedule delay), if anything waits.
    pub follow_up_at: Option<Timestamp>,
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PlannedStop {
    pub alloc_id: AllocId,
    pub reason: String,
    /// Set when no node will report the end: `Lost` for allocations of a node that is down.
    pub client: Option<ClientStatus>,
}

impl Plan {
    /// Whether applying it would change nothing but the evaluation.
    pub fn is_noop(&self) -> bool {
        self.stops.is_empty() && self.placements.is_empty() && self.in_place.is_empty() && self.deployment.is_none()
    }
}

impl EvalStatus {
    pub fn as_str(self) -> &'static str {
        match self {
            EvalStatus::Pending => "pending",
            EvalStatus::Blocked => "blocked",
            EvalStatus::Complete => "complete",
            EvalStatus::Failed => "failed",
            EvalStatus::Canceled => "canceled",
        }
    }
}

impl EvalTrigger {
    pub fn as_str(self) -> &'static str {
        match self {
            EvalTrigger::JobRegister => "job-register",
            EvalTrigger::JobDeregister => "job-deregister",
            EvalTrigger::NodeUpdate => "node-update",
            EvalTrigger::AllocUpdate => "alloc-failure",
            EvalTrigger::DeploymentWatcher => "deployment-watcher",
            EvalTrigger::NodeDrain => "node-drain",
            EvalTrigger::PeriodicJob => "periodic-job",
            EvalTrigger::AllocStop => "alloc-stop",
            EvalTrigger::Preemption => "preemption",
            EvalTrigger::FailedFollowUp => "failed-follow-up",
            EvalTrigger::MaxPlanAttempts => "max-plan-attempts",
        }
    }
}
