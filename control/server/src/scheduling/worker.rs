//! A worker: takes an evaluation, has it planned on a thread, proposes the plan, plans anew what no longer fitted.

use super::desk::Desk;
use super::{ended, new_eval, parts};
use crate::clock;
use crate::member::ProposeError;
use broker::{Delivery, Done};
use model::{
    AllocId, Allocation, Applied, Command, EvalStatus, EvalTrigger, Evaluation, Index, PlacementFailure, Plan, Refusal,
};
use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::time::Duration;

/// Plans in a row that made no progress, for jobs whose tasks go on and for those that end; Nomad's limits.
const ATTEMPTS_MAX: u32 = 5;
const ATTEMPTS_MAX_BATCH: u32 = 2;
/// After a plan that came to nothing, so that what overtook it gets through.
const PAUSE: Duration = Duration::from_millis(5);
const DEFECT: &str = "planning failed; this is a defect, see the leader's log";
const OVERTAKEN: &str = "its plans were overtaken by other changes too often";

/// A plan with what it reserves until it has taken effect.
struct Planned {
    eval: Arc<Evaluation>,
    job_ends: bool,
    plan: Plan,
    reserved: Vec<Arc<Allocation>>,
}

/// How a plan ended.
enum Outcome {
    Applied(Index),
    /// Parts of it, or nothing, took effect; what did is in the state at the index.
    Overtaken {
        progress: bool,
        seen: Index,
    },
    /// The evaluation is not open any more: another one covers its job.
    Covered,
    Failed(String),
    /// No answer came; the state says what is left to do.
    Unknown,
}

pub(super) async fn work(desk: Arc<Desk>) {
    loop {
        let delivery = desk.next().await;
        match work_off(&desk, &delivery).await {
            Some(done) => desk.ack(&delivery, done),
            None => desk.nack(&delivery),
        }
    }
}

/// `None` when somebody should try again.
async fn work_off(desk: &Arc<Desk>, delivery: &Delivery) -> Option<Done> {
    let mut attempts = 0;
    loop {
        let planned = match plan(desk, delivery).await {
            Ok(Some(planned)) => planned,
            Ok(None) => return Some(Done::Concluded),
            Err(Panicked(None)) => return Some(Done::Concluded),
            Err(Panicked(Some(eval))) => return give_up(desk, delivery, &eval, DEFECT).await,
        };
        if changes_nothing(&planned) {
            return Some(Done::StillBlocked(planned.plan.snapshot_index));
        }
        let eval = Arc::clone(&planned.eval);
        let attempts_max = if planned.job_ends { ATTEMPTS_MAX_BATCH } else { ATTEMPTS_MAX };
        match carry_out(desk, planned).await {
            Outcome::Applied(index) => {
                desk.sync_to(index).await;
                return Some(Done::Concluded);
            }
            Outcome::Covered if eval.id == delivery.eval_id => return Some(Done::Concluded),
            Outcome::Covered => desk.sync_to(eval.modified_at_index.next()).await,
            Outcome::Failed(reason) => return give_up(desk, delivery, &eval, &reason).await,
            Outcome::Unknown => return None,
            Outcome::Overtaken { progress, seen } => {
                attempts = if progress { 0 } else { attempts };
                desk.sync_to(seen).await;
            }
        }
        attempts += 1;
        if attempts >= attempts_max {
            return give_up(desk, delivery, &eval, OVERTAKEN).await;
        }
        if !desk.extend(delivery) {
            return Some(Done::Concluded);
        }
        tokio::time::sleep(PAUSE * attempts).await;
    }
}

/// The thread that planned panicked.
struct Panicked(Option<Arc<Evaluation>>);

/// `None` when there is nothing to do for the evaluation any more.
async fn plan(desk: &Arc<Desk>, delivery: &Delivery) -> Result<Option<Planned>, Panicked> {
    let Ok(_permit) = desk.planning.acquire().await else { return Ok(None) };
    let (at_desk, id) = (Arc::clone(desk), delivery.eval_id);
    let planned = tokio::task::spawn_blocking(move || {
        let (now, seed) = (clock::now(), clock::random_seed());
        let planned = {
            let view = at_desk.view();
            let eval = view.representative(id, now)?;
            let job_ends = view.catalog.job(&eval.job_id).is_some_and(|job| job.kind.ends());
            let plan = view.plan(&eval, now, seed);
            let reserved = plan.placements.iter().cloned().map(Arc::new).collect();
            Planned { eval, job_ends, plan, reserved }
        };
        if !planned.reserved.is_empty() {
            at_desk.view_mut().reserve(&planned.reserved);
        }
        Some(planned)
    });
    planned.await.map_err(|_| Panicked(desk.view().catalog.eval(delivery.eval_id).cloned()))
}

/// A blocked evaluation that is as blocked as before is not worth a line in the log.
fn changes_nothing(planned: &Planned) -> bool {
    let Planned { eval, plan, .. } = planned;
    let same_reasons = || {
        let of = |failures: &BTreeMap<String, PlacementFailure>| failures.values().map(reasons).collect::<Vec<_>>();
        eval.queued == plan.queued && of(&eval.failures) == of(&plan.failures)
    };
    eval.status == EvalStatus::Blocked && plan.is_noop() && plan.follow_up_at.is_none() && same_reasons()
}

/// What stands in the way, whatever the number of nodes.
fn reasons(failure: &PlacementFailure) -> (Vec<String>, Vec<String>) {
    let keys = |counts: &BTreeMap<String, u32>| counts.keys().cloned().collect();
    (keys(&failure.constraints_filtered), keys(&failure.dimensions_exhausted))
}

/// Proposes the plan, part by part, and gives back what it reserved and did not get.
async fn carry_out(desk: &Arc<Desk>, planned: Planned) -> Outcome {
    let Planned { eval, plan, reserved, .. } = planned;
    let (outcome, dropped) = propose(desk, &eval, plan).await;
    let lost: Vec<Arc<Allocation>> = match &outcome {
        Outcome::Applied(_) => Vec::new(),
        Outcome::Overtaken { .. } => reserved.into_iter().filter(|alloc| dropped.contains(&alloc.id)).collect(),
        Outcome::Covered | Outcome::Failed(_) | Outcome::Unknown => reserved,
    };
    desk.release(lost).await;
    outcome
}

async fn propose(desk: &Desk, eval: &Evaluation, plan: Plan) -> (Outcome, BTreeSet<AllocId>) {
    let mut queue: Vec<Plan> = parts::split(plan, parts::PARTS_MAX);
    queue.reverse();
    let mut applied = Index::default();
    let mut progress = false;
    while let Some(part) = queue.pop() {
        let changes = parts::size(&part);
        match desk.member.propose(parts::command(part.clone(), eval)).await {
            Ok(Applied { index, dropped }) if dropped.is_empty() => {
                applied = index;
                progress |= changes > 0;
            }
            Ok(Applied { index, dropped }) => {
                tracing::info!(eval = %eval.id, job = %eval.job_id, dropped = dropped.len(), "parts of a plan no longer fitted");
                progress |= dropped.len() < changes;
                let unsent = queue.iter().flat_map(|part| &part.placements).map(|alloc| alloc.id);
                let dropped = dropped.into_iter().chain(unsent).collect();
                return (Outcome::Overtaken { progress, seen: index }, dropped);
            }
            Err(ProposeError::TooLarge { .. }) if changes > 1 => {
                queue.extend(parts::split(part, changes.div_ceil(2)).into_iter().rev());
            }
            Err(error) => return (failure(eval, error), BTreeSet::new()),
        }
    }
    (Outcome::Applied(applied), BTreeSet::new())
}

fn failure(eval: &Evaluation, error: ProposeError) -> Outcome {
    match error {
        ProposeError::Refused(Refusal::EvalNotPending { .. } | Refusal::EvalUnknown { .. }) => Outcome::Covered,
        ProposeError::Refused(refusal) => Outcome::Failed(format!("its plan was refused: {refusal}")),
        ProposeError::TooLarge { reason } => Outcome::Failed(format!("its plan: {reason}")),
        error => {
            tracing::warn!(eval = %eval.id, job = %eval.job_id, %error, "plan not committed");
            Outcome::Unknown
        }
    }
}

/// The evaluation has failed; what was overtaken is looked at again when something changes.
async fn give_up(desk: &Desk, delivery: &Delivery, eval: &Evaluation, reason: &str) -> Option<Done> {
    let trigger = EvalTrigger::MaxPlanAttempts;
    let waiting = Evaluation {
        status: EvalStatus::Blocked,
        status_description: reason.to_owned(),
        // Whatever changed since is worth a look.
        snapshot_index: eval.modified_at_index,
        ..new_eval(eval.job_id.clone(), eval.priority, trigger)
    };
    let evals = [ended(eval, reason)].into_iter().chain((reason == OVERTAKEN).then_some(waiting)).collect();
    let committed = desk.member.propose(Command::UpsertEvals(evals)).await.is_ok();
    // Planned in the place of an older one, which then still has to be looked at.
    (committed && eval.id == delivery.eval_id).then_some(Done::Concluded)
}
