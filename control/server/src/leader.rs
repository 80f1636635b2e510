//! What only the leader does, in tasks that start with leadership and are stopped at its loss: evaluations become plans in
//! [`crate::scheduling`], nodes and servers are looked after in [`crate::house`], rollouts and drains are followed here.
//!
//! Nothing of it is remembered between leaders but in the replicated state. A node's time without a session counts anew
//! after every election.

use crate::member::Member;
use crate::{clock, house, scheduling};
use consensus::Role;
use std::sync::Arc;
use std::time::Duration;
use tokio::sync::watch;
use tokio::task::JoinHandle;

/// How often rollouts are looked at.
const TICK: Duration = Duration::from_millis(500);

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
    tasks: [JoinHandle<()>; 5],
}

impl Duties {
    fn start(member: Arc<Member>, term: u64) -> Self {
        let tasks = [
            tokio::spawn(scheduling::run(Arc::clone(&member), term)),
            tokio::spawn(scheduling::templates::launch_in_time(Arc::clone(&member))),
            tokio::spawn(scheduling::garbage::collect_in_time(Arc::clone(&member))),
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
