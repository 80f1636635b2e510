//! Scheduling as a pure function: [`plan`] compares what a job asks for with what exists and says what to change.
//!
//! ```text
//!   job + allocations ──slots──> what holds what ──stage, rollout──> how much may change now
//!                     ──reconcile──> stops, in-place updates, slots to fill (system: nodes to fill)
//!   slots + state ──place──> feasible (by class) ──> fits (capacity, ports) ──> ranking by score ──> allocation
//! ```
//!
//! The same values and the same seed give the same plan on every machine. Nothing here is final: the catalog checks every
//! placement again against the newest state when it applies the plan.

mod balance;
mod change;
mod clear;
mod constraint;
mod contact;
mod depends;
mod feasible;
mod fleet;
mod health;
mod index;
mod migrate;
mod place;
mod ports;
mod preempt;
mod random;
mod ranking;
mod rebalance;
mod reconcile;
mod rollout;
mod score;
mod settings;
mod slots;
mod stage;
mod state;
mod system;
mod why;

pub use change::{GroupChange, group_change};
pub use constraint::satisfies;
pub use depends::unmet;
pub use feasible::may_run;
pub use health::watch;
pub use rebalance::{GAIN_MIN, Move, rebalance};
pub use reconcile::GroupChanges;
pub use settings::{Algorithm, Preemption, Settings};
pub use state::ClusterState;
pub use why::{NodeVerdict, scores};

use model::{AllocId, Allocation, Deployment, Evaluation, Job, Plan, Timestamp};
use std::collections::BTreeMap;

/// What a plan is made against.
#[derive(Clone, Debug)]
pub struct ClusterView<'a> {
    pub state: &'a ClusterState,
    /// The evaluated job's allocations, the ended ones too: they say how often a slot failed.
    pub allocs: Vec<&'a Allocation>,
    /// The newest deployment of the evaluated job, whatever became of it.
    pub deployment: Option<&'a Deployment>,
    pub settings: Settings,
    /// What the job waits for before anything of it is placed, as sentences; see [`unmet`].
    pub unmet: Vec<String>,
    /// Allocations of the job that are to move to a better node, as its disruption budget allows.
    pub moving: Vec<AllocId>,
}

impl<'a> ClusterView<'a> {
    /// With default settings, and nothing to wait for.
    pub fn new(state: &'a ClusterState, allocs: Vec<&'a Allocation>, deployment: Option<&'a Deployment>) -> Self {
        Self { state, allocs, deployment, settings: Settings::default(), unmet: Vec::new(), moving: Vec::new() }
    }
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
        snapshot_index: view.state.index,
        goes_on: false,
        victims: Vec::new(),
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
            reconcile::stop_all(&mut plan, view, job.is_some(), now);
            BTreeMap::new()
        }
    };
    (plan, changes)
}
