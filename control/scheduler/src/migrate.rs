//! Moving what runs: off nodes that drain, and to better nodes when the cluster is rebalanced. Never more at once than the
//! group's `migrate` and the job's disruption budget allow; a drain's deadline alone overrules them.

use crate::place::Request;
use crate::reconcile::{DRAINED, Held, MOVED, Planner, stopped, tally, works};
use crate::slots::EmptySlot;
use crate::stage::Rollout;
use model::{Allocation, JobKind, TaskGroup};

impl<'a> Planner<'_, 'a> {
    /// Moves what stands on draining nodes: at the deadline at once, before it as `migrate` allows; batch work may end.
    pub(crate) fn migrate(
        &mut self,
        request: &mut Request<'a>,
        group: &TaskGroup,
        held: &mut Held<'a>,
        rollout: &Rollout,
    ) {
        let leaving: Vec<(u32, &Allocation)> = (0..)
            .zip(&held.slots)
            .flat_map(|(slot, holders)| holders.holders().map(move |alloc| (slot, alloc)))
            .filter(|(_, alloc)| self.leaves(alloc))
            .collect();
        let (due, patient): (Vec<_>, Vec<_>) = leaving.into_iter().partition(|(_, alloc)| self.must_leave(alloc));
        for (slot, alloc) in due {
            match held.slots[slot as usize].alone() {
                Some(_) => self.move_away(request, group, rollout, (slot, alloc), true),
                None if self.plan.stops.iter().any(|stop| stop.alloc_id == alloc.id) => {}
                // The other one of the pair stays.
                None => self.stop(alloc, DRAINED),
            }
            held.slots[slot as usize].busy = true;
        }
        if self.job.kind == JobKind::Batch {
            return;
        }
        let alone = patient.into_iter().filter(|(slot, _)| held.slots[*slot as usize].alone().is_some());
        let (working, broken): (Vec<_>, Vec<_>) = alone.partition(|(_, alloc)| works(alloc, rollout));
        let at_once = (group.migrate_max_parallel as usize).min(self.spare() as usize);
        let room = tally(held, rollout).room(at_once, broken.len());
        let chosen = broken.into_iter().take(room.broken).chain(working.into_iter().take(room.working));
        chosen.for_each(|leaving| self.move_away(request, group, rollout, leaving, false));
    }

    fn move_away(
        &mut self,
        request: &mut Request<'a>,
        group: &TaskGroup,
        rollout: &Rollout,
        (slot, alloc): (u32, &'a Allocation),
        at_once: bool,
    ) {
        let avoid = self.drain_of(alloc).is_none().then_some(alloc.node_id);
        let empty = EmptySlot { slot, last: Some(alloc), reschedules: alloc.reschedules, avoid };
        self.fleet.release_slot(alloc);
        let job = self.job_to_refill(slot, Some(alloc), rollout);
        if self.place(request, group, &empty, &job, self.part(rollout, false)) || at_once {
            let reason = if self.drain_of(alloc).is_some() { DRAINED } else { MOVED };
            self.plan.stops.push(stopped(alloc, reason));
            self.changes(&group.name).migrate += 1;
            self.disrupted += u32::from(alloc.is_healthy());
        } else {
            self.fleet.hold_slot(alloc);
        }
    }

    pub(crate) fn drain_of(&self, alloc: &Allocation) -> Option<model::Drain> {
        self.fleet.node(alloc.node_id).and_then(|node| node.drain)
    }

    /// Whether it is to move: its node drains, or a better one was found for it.
    pub(crate) fn leaves(&self, alloc: &Allocation) -> bool {
        self.drain_of(alloc).is_some() || self.moving.contains(&alloc.id)
    }

    /// How many working allocations the job's budget lets go now.
    fn spare(&self) -> u32 {
        let Some(budget) = self.job.disruption else { return u32::MAX };
        let wanted: u32 = self.job.groups.iter().map(|group| group.count).sum();
        let unavailable = wanted.saturating_sub(self.fleet.state.working(&self.job.id)) + self.disrupted;
        budget.max_unavailable.saturating_sub(unavailable)
    }

    pub(crate) fn must_leave(&self, alloc: &Allocation) -> bool {
        self.drain_of(alloc).is_some_and(|drain| drain.is_due(self.now))
    }
}
