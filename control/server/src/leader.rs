//! What only the leader does, in one task that starts with leadership and is stopped at its loss: evaluations become
//! plans. Nodes and servers are looked after in [`crate::house`].
//!
//! Nothing here is remembered between leaders but in the replicated state. A node's time without a session counts anew
//! after every election.

use crate::member::{Member, ProposeError};
use crate::sessions::new_eval;
use crate::{clock, house};
use catalog::Catalog;
use consensus::Role;
use model::{
    Applied, Command, EvalId, EvalStatus, EvalTrigger, Evaluation, Plan, Refusal, Timestamp,
};
use scheduler::{ClusterState, ClusterView, GroupChanges};
use std::collections::{BTreeMap, HashMap};
use std::sync::Arc;
use std::time::Duration;
use tokio::sync::watch;
use tokio::task::JoinHandle;

/// How often rollouts are looked at; evaluations are looked at whenever the catalog changes.
const TICK: Duration = Duration::from_millis(500);
/// Plans of one evaluation of which parts no longer fitted; Nomad's limit for service jobs.
const ATTEMPTS_MAX: u32 = 5;
/// Stops, updates in place and placements that one command carries: a few hundred kilobytes beside the job itself.
const PLAN_PARTS_MAX: usize = 1000;

/// Starts and stops the leader's duties as leadership comes and goes.
pub(crate) async fn supervise(member: Arc<Member>, stop: watch::Receiver<bool>) {
    let mut status = member.status.clone();
    let mut duties: Option<Duties> = None;
    let stopped = crate::rpc::until(stop);
    tokio::pin!(stopped);
    loop {
        let (leads, term) = {
            let status = status.borrow_and_update();
            (status.role == Role::Leader, status.term)
        };
        if duties.as_ref().is_some_and(|duties| !leads || duties.term != term) {
            tracing::info!(server = member.id.0, "this server leads no more");
            duties = None;
            member.sessions.close_all();
        }
        if leads && duties.is_none() {
            tracing::info!(server = member.id.0, term, "this server leads the cluster");
            duties = Some(Duties::start(Arc::clone(&member), term));
        }
        tokio::select! {
            changed = status.changed() => if changed.is_err() { return },
            () = &mut stopped => return,
        }
    }
}

struct Duties {
    term: u64,
    tasks: [JoinHandle<()>; 3],
}

impl Duties {
    fn start(member: Arc<Member>, term: u64) -> Self {
        let tasks = [
            tokio::spawn(broker(Arc::clone(&member))),
            tokio::spawn(follow_rollouts(Arc::clone(&member))),
            tokio::spawn(house::keep(member)),
        ];
        Self { term, tasks }
    }
}

impl Drop for Duties {
    fn drop(&mut self) {
        self.tasks.iter().for_each(JoinHandle::abort);
    }
}

/// Works off evaluations one at a time: so no job has two under way.
async fn broker(member: Arc<Member>) {
    while member.read_barrier().await.is_err() {}
    let mut catalog = member.catalog.clone();
    let mut attempts: HashMap<EvalId, u32> = HashMap::new();
    loop {
        let snapshot = catalog.borrow_and_update().clone();
        let now = clock::now();
        match next_eval(&snapshot, now) {
            Some(eval) => {
                let attempt = attempts.get(&eval.id).map_or(1, |earlier| earlier + 1);
                match work_off(&member, snapshot, eval.clone(), attempt).await {
                    Worked::Concluded => drop(attempts.remove(&eval.id)),
                    Worked::Again => {
                        attempts.insert(eval.id, attempt);
                        tokio::time::sleep(Duration::from_millis(20)).await;
                    }
                    Worked::Interrupted => tokio::time::sleep(Duration::from_millis(200)).await,
                }
            }
            None => {
                let due = until_next_due(&snapshot, now);
                tokio::select! {
                    changed = catalog.changed() => if changed.is_err() { return },
                    () = tokio::time::sleep(due) => {}
                }
            }
        }
    }
}

enum Worked {
    Concluded,
    /// Parts of the plan no longer fitted: plan anew from the newer state.
    Again,
    /// No answer came; the state says what is left to do.
    Interrupted,
}

/// The pending evaluation that is due: highest priority, then oldest.
fn next_eval(catalog: &Catalog, now: Timestamp) -> Option<Arc<Evaluation>> {
    let due = catalog.evals().filter(|eval| eval.status == EvalStatus::Pending && eval.wait_until <= now);
    due.min_by_key(|eval| (std::cmp::Reverse(eval.priority), eval.created_at_index, eval.id)).cloned()
}

fn until_next_due(catalog: &Catalog, now: Timestamp) -> Duration {
    let pending = catalog.evals().filter(|eval| eval.status == EvalStatus::Pending);
    let wait = pending.map(|eval| eval.wait_until.since(now)).min();
    wait.unwrap_or(Duration::from_secs(60)).clamp(Duration::from_millis(10), Duration::from_secs(60))
}

async fn work_off(member: &Member, catalog: Catalog, eval: Arc<Evaluation>, attempt: u32) -> Worked {
    if attempt > ATTEMPTS_MAX {
        return give_up(member, &eval, "its plans were overtaken by other changes too often").await;
    }
    let (seed, now) = (clock::random_seed(), clock::now());
    let planned = {
        let eval = Arc::clone(&eval);
        tokio::task::spawn_blocking(move || make_plan(&catalog, &eval, now, seed)).await
    };
    let Ok(plan) = planned else {
        return give_up(member, &eval, "planning failed; this is a defect, see the leader's log").await;
    };
    match member.propose(plan_command(plan, &eval)).await {
        Err(ProposeError::TooLarge { reason }) => give_up(member, &eval, &format!("its plan: {reason}")).await,
        Ok(Applied { dropped, .. }) if dropped.is_empty() => Worked::Concluded,
        Ok(Applied { dropped, .. }) => {
            tracing::info!(eval = %eval.id, job = %eval.job_id, dropped = dropped.len(), "parts of a plan no longer fitted");
            Worked::Again
        }
        // A newer evaluation of the job took its place meanwhile.
        Err(ProposeError::Refused(Refusal::EvalNotPending { .. } | Refusal::EvalUnknown { .. })) => Worked::Concluded,
        Err(ProposeError::Refused(refusal)) => {
            tracing::info!(eval = %eval.id, job = %eval.job_id, %refusal, "plan refused");
            Worked::Again
        }
        Err(error) => {
            tracing::warn!(eval = %eval.id, job = %eval.job_id, %error, "plan not committed");
            Worked::Interrupted
        }
    }
}

fn make_plan(catalog: &Catalog, eval: &Evaluation, now: Timestamp, seed: u64) -> Plan {
    explain_plan(catalog, eval, now, seed).0
}

/// The plan, and what it means for each group.
pub(crate) fn explain_plan(
    catalog: &Catalog,
    eval: &Evaluation,
    now: Timestamp,
    seed: u64,
) -> (Plan, BTreeMap<String, GroupChanges>) {
    let live = catalog.allocs().filter(|alloc| alloc.is_live());
    let state = ClusterState::of(catalog.index(), catalog.nodes(), live);
    let allocs = catalog.allocs_of_job(&eval.job_id).map(AsRef::as_ref).collect();
    let view = ClusterView::new(&state, allocs, catalog.latest_deployment(&eval.job_id).map(AsRef::as_ref));
    scheduler::explain(&view, eval, catalog.job(&eval.job_id).map(AsRef::as_ref), now, seed)
}

fn plan_command(mut plan: Plan, eval: &Evaluation) -> Command {
    // What is left out is planned anew, at once and from the state that this part has led to.
    if shorten(&mut plan) {
        plan.follow_up_at = Some(Timestamp::NEVER);
    }
    let follow_up = plan.follow_up_at.map(|wait_until| Evaluation {
        wait_until,
        ..new_eval(eval.job_id.clone(), eval.priority, EvalTrigger::AllocUpdate)
    });
    Command::ApplyPlan { plan: Box::new(plan), follow_up }
}

/// Leaves out what one command does not carry; whether there was any. Stops come first: a placement may need the slot of one.
fn shorten(plan: &mut Plan) -> bool {
    let room = PLAN_PARTS_MAX;
    let (stops, in_place, placements) = (plan.stops.len(), plan.in_place.len(), plan.placements.len());
    plan.stops.truncate(room);
    plan.in_place.truncate(room - plan.stops.len());
    plan.placements.truncate(room - plan.stops.len() - plan.in_place.len());
    (stops, in_place, placements) != (plan.stops.len(), plan.in_place.len(), plan.placements.len())
}

async fn give_up(member: &Member, eval: &Evaluation, reason: &str) -> Worked {
    tracing::error!(eval = %eval.id, job = %eval.job_id, reason, "evaluation failed");
    let failed = Evaluation {
        status: EvalStatus::Failed,
        status_description: reason.to_owned(),
        modified_at: clock::now(),
        ..eval.clone()
    };
    match member.propose(Command::UpsertEvals(vec![failed])).await {
        Ok(_) => Worked::Concluded,
        Err(_) => Worked::Interrupted,
    }
}

/// Steps of rollouts and drains that only time or an earlier step brings about, at every tick.
async fn follow_rollouts(member: Arc<Member>) {
    while member.read_barrier().await.is_err() {}
    let mut ticks = tokio::time::interval(TICK);
    ticks.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
    loop {
        ticks.tick().await;
        let catalog = member.snapshot();
        for command in crate::watch::commands(&catalog, clock::now()) {
            if let Err(error) = member.propose(command).await {
                tracing::info!(%error, "a step of a rollout or drain was not taken");
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use model::{AllocId, CatalogImage, Index, JobId, PlannedStop};

    #[test]
    fn a_plan_that_no_command_carries_goes_in_parts() {
        let eval = new_eval(JobId("big".to_owned()), 50, EvalTrigger::JobRegister);
        let plan = |stops: u128| Plan {
            stops: (0..stops)
                .map(|n| PlannedStop { alloc_id: AllocId::from_random(n), reason: String::new(), client: None })
                .collect(),
            ..make_plan(&Catalog::default(), &eval, Timestamp::NEVER, 0)
        };
        let parts = |stops| match plan_command(plan(stops), &eval) {
            Command::ApplyPlan { plan, follow_up } => (plan.stops.len(), follow_up.map(|eval| eval.wait_until)),
            other => unreachable!("{other:?}"),
        };
        assert_eq!(parts(1000), (1000, None));
        assert_eq!(parts(50_000), (1000, Some(Timestamp::NEVER)));
    }

    #[test]
    fn the_broker_takes_priority_then_age_and_leaves_what_is_not_due() {
        let eval = |number: u128, priority, created: u64, wait_secs| Evaluation {
            id: EvalId::from_random(number),
            created_at_index: Index(created),
            wait_until: Timestamp::from_secs(wait_secs),
            ..new_eval(JobId(format!("job-{number}")), priority, EvalTrigger::JobRegister)
        };
        let mut evals = vec![eval(1, 50, 1, 0), eval(2, 80, 3, 0), eval(3, 80, 2, 0), eval(4, 90, 1, 100)];
        evals.push(Evaluation { status: EvalStatus::Blocked, ..eval(5, 100, 1, 0) });
        let image = |evals: &[Evaluation]| CatalogImage { evals: evals.to_vec(), ..CatalogImage::default() };
        let next = |secs| next_eval(&Catalog::from_image(image(&evals)), Timestamp::from_secs(secs)).unwrap().id;
        assert_eq!(next(99), EvalId::from_random(3));
        assert_eq!(next(100), EvalId::from_random(4));
        let waiting = Catalog::from_image(image(&evals[3..4]));
        assert!(next_eval(&waiting, Timestamp::from_secs(90)).is_none());
        assert_eq!(until_next_due(&waiting, Timestamp::from_secs(90)), Duration::from_secs(10));
    }
}
