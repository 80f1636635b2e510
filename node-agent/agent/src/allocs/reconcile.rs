//! What a push of the servers means for what this node holds: a pure comparison, in order of allocation id.

use model::{AllocId, Allocation, DesiredStatus};
use std::collections::BTreeMap;

/// An allocation as this node knows it.
#[derive(Clone, Debug, PartialEq)]
pub struct Held {
    /// As the servers last told it.
    pub told: Allocation,
    /// Its tasks are over and will not start again.
    pub ended: bool,
}

#[derive(Clone, Debug, PartialEq)]
pub enum Action {
    /// New here: make it run.
    Start(Allocation),
    /// The servers tell something else of it than before, be it its end.
    Update(Allocation),
    /// The servers do not know it (any more) but it lives: it goes.
    Stop(AllocId),
    /// It is to stop but was never here, or its record was lost: say that it is over, or the servers wait for ever.
    Disown(Allocation),
    /// It is over and the servers have taken note.
    Forget(AllocId),
}

pub fn decide(held: &BTreeMap<AllocId, Held>, wanted: &[Allocation]) -> Vec<Action> {
    let wanted: BTreeMap<AllocId, &Allocation> = wanted.iter().map(|alloc| (alloc.id, alloc)).collect();
    let gone = held.iter().filter(|(id, _)| !wanted.contains_key(id)).map(|(id, held)| unlisted(*id, held));
    let told = wanted.iter().filter_map(|(id, alloc)| listed(held.get(id), alloc));
    gone.chain(told).collect()
}

fn unlisted(id: AllocId, held: &Held) -> Action {
    if held.ended { Action::Forget(id) } else { Action::Stop(id) }
}

fn listed(held: Option<&Held>, alloc: &Allocation) -> Option<Action> {
    match held {
        None if alloc.desired == DesiredStatus::Stop => Some(Action::Disown(alloc.clone())),
        None => Some(Action::Start(alloc.clone())),
        Some(held) if held.ended || same_wish(&held.told, alloc) => None,
        Some(_) => Some(Action::Update(alloc.clone())),
    }
}

/// Whether both ask for the same: the servers' copy of our own reports (states, checks, indices) is no wish.
fn same_wish(old: &Allocation, new: &Allocation) -> bool {
    old.desired == new.desired && old.ports == new.ports && (old.job.version == new.job.version || old.job == new.job)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::allocs::fixtures::allocation;
    use std::sync::Arc;

    fn held(allocs: &[(&Allocation, bool)]) -> BTreeMap<AllocId, Held> {
        allocs.iter().map(|(alloc, ended)| (alloc.id, Held { told: (*alloc).clone(), ended: *ended })).collect()
    }

    fn stopping(alloc: &Allocation) -> Allocation {
        Allocation { desired: DesiredStatus::Stop, ..alloc.clone() }
    }

    #[test]
    fn unknown_allocations_start() {
        let new = allocation(1);
        assert_eq!(decide(&held(&[]), std::slice::from_ref(&new)), [Action::Start(new)]);
    }

    #[test]
    fn what_runs_as_told_is_left_alone() {
        let alloc = allocation(1);
        let mut echoed = alloc.clone();
        echoed.client = model::ClientStatus::Running;
        echoed.modified_at_index = model::Index(99);
        assert_eq!(decide(&held(&[(&alloc, false)]), &[echoed]), []);
    }

    #[test]
    fn a_stop_and_a_new_job_version_are_updates() {
        let alloc = allocation(1);
        let mut newer = alloc.clone();
        newer.job = Arc::new(model::Job { version: 7, priority: 51, ..(*alloc.job).clone() });
        for changed in [stopping(&alloc), newer] {
            let actions = decide(&held(&[(&alloc, false)]), std::slice::from_ref(&changed));
            assert_eq!(actions, [Action::Update(changed)]);
        }
    }

    #[test]
    fn allocations_the_servers_left_out_stop_first_and_are_forgotten_when_over() {
        let alloc = allocation(1);
        assert_eq!(decide(&held(&[(&alloc, false)]), &[]), [Action::Stop(alloc.id)]);
        assert_eq!(decide(&held(&[(&alloc, true)]), &[]), [Action::Forget(alloc.id)]);
    }

    #[test]
    fn an_ended_allocation_never_starts_again() {
        let alloc = allocation(1);
        assert_eq!(decide(&held(&[(&alloc, true)]), std::slice::from_ref(&alloc)), []);
    }

    #[test]
    fn a_stop_for_something_never_seen_is_answered() {
        let gone = stopping(&allocation(1));
        assert_eq!(decide(&held(&[]), std::slice::from_ref(&gone)), [Action::Disown(gone)]);
    }
}
