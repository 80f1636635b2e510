//! Allocations whose node cannot be reached: how long they are waited for, and which stays when the node is back
//! (`disconnect`).

use crate::ClusterState;
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

pub(crate) const RETURNED: &str = "the node of another allocation in its slot is back";

/// Of an allocation and the one that took its place while its node was away, the one that goes. `better` says whether the
/// first suits its node better than the second.
pub(crate) fn goes<'a>(
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
