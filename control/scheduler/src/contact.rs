//! Allocations whose node cannot be reached: how long they are waited for, and which stays when the node is back
//! (`disconnect`).

use crate::ClusterState;
use crate::reconcile::Planner;
use crate::score::{self, Affinities, Score};
use model::{Allocation, NodeStatus, Reconcile, TaskGroup, Timestamp};

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Contact {
    /// Or its node is only suspected: nothing is done about it.
    Reached,
    /// Nobody knows how it is. What it is waited for at most, once its node is given up.
    Away { replace: bool, until: Option<Timestamp> },
    /// It counts as ended.
    Lost,
}

/// A node that nobody knows will not report the end of anything either.
pub(crate) fn contact(alloc: &Allocation, state: &ClusterState, now: Timestamp) -> Contact {
    let Some(node) = state.node(alloc.node_id) else { return Contact::Lost };
    let policy = alloc.task_group().map(|group| group.disconnect).unwrap_or_default();
    let until = node.status_changed_at.plus(policy.lost_after);
    let replace = policy.replace;
    match node.status {
        NodeStatus::Down if now >= until || policy.lost_after.is_zero() => Contact::Lost,
        NodeStatus::Down => Contact::Away { replace, until: Some(until) },
        NodeStatus::Disconnected if !policy.lost_after.is_zero() => Contact::Away { replace, until: None },
        _ => Contact::Reached,
    }
}

const RETURNED: &str = "the node of another allocation in its slot is back";

/// Of an allocation and the one that took its place while its node was away, the one that goes. `better` says whether the
/// first suits its node better than the second.
fn goes<'a>(
    group: &TaskGroup,
    original: &'a Allocation,
    replacement: &'a Allocation,
    better: impl Fn(&Allocation, &Allocation) -> bool,
) -> &'a Allocation {
    let keeps_original = match group.disconnect.reconcile {
        Reconcile::KeepOriginal => true,
        Reconcile::KeepReplacement => false,
        Reconcile::LongestRunning => running_since(original) <= running_since(replacement),
        Reconcile::BestScore => !better(replacement, original),
    };
    if keeps_original { replacement } else { original }
}

/// One that does not run has run shortest of all.
fn running_since(alloc: &Allocation) -> Timestamp {
    let started = alloc.task_states.values().map(|state| state.started_at).max();
    match alloc.is_healthy() {
        true => started.filter(|at| *at != Timestamp::NEVER).unwrap_or(alloc.created_at),
        false => Timestamp(u64::MAX),
    }
}

impl<'a> Planner<'_, 'a> {
    /// While a node is away its slots are filled elsewhere, if the group wants that.
    pub(crate) fn is_replaced_meanwhile(&mut self, alloc: &Allocation) -> bool {
        let Contact::Away { replace, until } = contact(alloc, self.fleet.state, self.now) else { return false };
        until.into_iter().for_each(|time| self.look_again_at(time));
        if replace {
            self.fleet.release_slot(alloc);
        }
        replace
    }

    /// Where a node that was away is back, one of the two in a slot goes.
    pub(crate) fn reconcile_returned(&mut self, group: &'a TaskGroup, of_group: &mut Vec<&'a Allocation>) {
        if group.disconnect.lost_after.is_zero() {
            return;
        }
        let reached = |alloc: &&Allocation| contact(alloc, self.fleet.state, self.now) == Contact::Reached;
        let present: Vec<&'a Allocation> = of_group.iter().copied().filter(reached).collect();
        for replacement in &present {
            let original = present.iter().find(|other| {
                Some(other.id) == replacement.previous
                    && other.slot == replacement.slot
                    && other.job.version == replacement.job.version
            });
            let Some(original) = original else { continue };
            let better = |a: &Allocation, b: &Allocation| self.suits(group, a) > self.suits(group, b);
            let leaves = goes(group, original, replacement, better);
            self.stop(leaves, RETURNED);
            of_group.retain(|alloc| alloc.id != leaves.id);
        }
    }

    /// How well an allocation suits the node that it is on.
    fn suits(&self, group: &'a TaskGroup, alloc: &Allocation) -> f64 {
        let Some(room) = self.fleet.room(alloc.node_id) else { return f64::MIN };
        let affinities = Affinities::of(self.spec, group);
        let affinity = affinities.score(room.node(), &|job| room.of_any_job(job));
        let room = score::room(self.settings.algorithm, room.used(), room.node().resources);
        let score = Score::NONE.with(room);
        let score = if affinity == 0.0 { score } else { score.with(affinity) };
        if alloc.is_healthy() { score.mean() } else { score.with(score::FAILED_HERE).mean() }
    }
}
