//! Evaluations become plans, plans become commands: the shell around `broker` and `scheduler`, for as long as this server
//! leads.
//!
//! ```text
//!   catalog ──what changed──> desk: broker (who is next) + view (nodes and what they hold, plans in flight included)
//!                               │ delivery                      ▲ provisional placements
//!                               ▼                               │
//!                             workers ── plan on a thread of its own ──> ApplyPlan, in parts ──Raft──> catalog
//! ```
//!
//! Workers plan beside each other from views that may be old. The one who decides is the catalog, which takes plans in the
//! order of the log and checks every part against the newest state, so proposals follow one another without waiting: what no
//! longer fits is left out, and the worker plans the rest anew.

mod calendar;
mod desk;
pub(crate) mod garbage;
mod parts;
pub(crate) mod templates;
mod view;
mod worker;

pub(crate) use calendar::Calendar;
pub(crate) use view::explain;

use crate::clock;
use crate::member::Member;
use crate::sessions::new_eval;
use desk::Desk;
use model::{Command, EvalStatus, EvalTrigger, Evaluation};
use std::sync::Arc;
use std::time::Duration;
use tokio::task::JoinSet;
use tokio::time::Instant;

/// Evaluations under way at once: most of them wait for the log, few plan.
const WORKERS: usize = 64;
/// The longest sleep without a look at the clock.
const NAP_MAX: Duration = Duration::from_secs(5);
/// Between two looks at evaluations that were delivered too often.
const FAILED_EVERY: Duration = Duration::from_secs(1);

/// Never returns while this server leads; to be aborted when it does no more. `term` is the term it leads in.
pub(crate) async fn run(member: Arc<Member>, term: u64) {
    while member.read_barrier().await.is_err() {}
    let desk = Arc::new(Desk::open(Arc::clone(&member), term));
    let mut workers = JoinSet::new();
    (0..WORKERS).for_each(|_| drop(workers.spawn(worker::work(Arc::clone(&desk)))));
    let mut catalog = member.catalog.clone();
    let mut followed_up = Instant::now();
    loop {
        catalog.borrow_and_update();
        desk.sync().await;
        if followed_up.elapsed() >= FAILED_EVERY {
            follow_up_failed(&member, &desk).await;
            followed_up = Instant::now();
        }
        tokio::select! {
            changed = catalog.changed() => if changed.is_err() { return },
            () = tokio::time::sleep(desk.until_next_due().min(NAP_MAX)) => {}
        }
    }
}

/// What was delivered too often has failed; its job is looked at again some minutes later.
async fn follow_up_failed(member: &Member, desk: &Desk) {
    let failed = desk.failed();
    if failed.is_empty() {
        return;
    }
    let evals = failed.into_iter().flat_map(|eval| {
        let wait_until = clock::now().plus(broker::Rules::follow_up_after(clock::random_seed()));
        let trigger = EvalTrigger::FailedFollowUp;
        let again = Evaluation { wait_until, ..new_eval(eval.job_id.clone(), eval.priority, trigger) };
        [ended(&eval, "no worker came to an end with it"), again]
    });
    if let Err(error) = member.propose(Command::UpsertEvals(evals.collect())).await {
        tracing::warn!(%error, "could not follow up on failed evaluations");
    }
}

fn ended(eval: &Evaluation, reason: &str) -> Evaluation {
    tracing::error!(eval = %eval.id, job = %eval.job_id, reason, "evaluation failed");
    let (status, status_description) = (EvalStatus::Failed, reason.to_owned());
    Evaluation { status, status_description, modified_at: clock::now(), ..eval.clone() }
}
