//! Scheduling as a pure function: [`plan`] compares what a job asks for with what exists and says what to change.
//!
//! ```text
//!   job + allocations ──slots──> what holds what ──stage, rollout──> how much may change now
//!                     ──reconcile──> stops, in-place updates, slots to fill (system: nodes to fill)
//!   slots + nodes ──place──> feasible (constraints) ──> fits (capacity, ports) ──> best score ──> allocation
//! ```
//!
//! The same values and the same seed give the same plan on every machine. Nothing here is final: the catalog checks every
//! placement again against the newest state when it applies the plan.

mod change;
mod constraint;
mod feasible;
mod health;
mod place;
mod random;
mod reconcile;
mod rollout;
mod slots;
mod stage;
mod system;

pub use change::{GroupChange, group_change};
pub use constraint::satisfies;
pub use health::watch;
pub use reconcile::GroupChanges;

use model::{Allocation, Deployment, Evaluation, Index, Job, Node, Plan, Timestamp};
use std::collections::BTreeMap;

/// The state a plan is made against.
#[derive(Clone, Debug, Default)]
pub struct ClusterView<'a> {
    /// The catalog's index; the plan carries it on.
    pub index: Index,
    pub nodes: Vec<&'a Node>,
    /// Every live allocation of the cluster, and the ended ones of the evaluated job: they say how often a slot failed.
    pub allocs: Vec<&'a Allocation>,
    /// The newest deployment of the evaluated job, whatever became of it.
    pub deployment: Option<&'a Deployment>,
}

/// What to change so that the evaluated job becomes what it asks for. `job` is its newest version, `None` when it is gone.
pub fn plan(view: &ClusterView<'_>, eval: &Evaluation, job: Option<&Job>, now: Timestamp, seed: u64) -> Plan {
    explain(view, eval, job, now, seed).0
}

/// [`plan`] with what it means for each group: for dry runs.
pub fn explain(
    view: &ClusterView<'_>,
    eval: &Evaluation,
    job: Option<&Job>,
    now: Timestamp,
    seed: u64,
) -> (Plan, BTreeMap<String, GroupChanges>) {
    let mut plan = Plan {
        eval_id: eval.id,
        job_id: eval.job_id.clone(),
        snapshot_index: view.index,
        goes_on: false,
        stops: Vec::new(),
        placements: Vec::new(),
        in_place: Vec::new(),
        failures: Default::default(),
        queued: Default::default(),
        deployment: None,
        follow_up_at: None,
    };
    let changes = match job.filter(|job| !job.stopped && job.id == eval.job_id) {
        Some(job) => reconcile::fill(&mut plan, view, job, now, seed),
        None => {
            reconcile::stop_all(&mut plan, view, job.is_some());
            BTreeMap::new()
        }
    };
    (plan, changes)
}
