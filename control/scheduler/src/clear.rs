//! Clearing a place for what found none: who has to leave is told so, and the allocation waits for their end.

use crate::fleet::Fleet;
use crate::place::Request;
use crate::preempt;
use crate::reconcile::{Planner, stopped};
use crate::slots::EmptySlot;
use model::{AllocId, DesiredStatus, NodeId, TaskGroup};
use std::collections::BTreeSet;

/// What a group would find once everything that is to stop has stopped.
pub(crate) struct Expected<'a> {
    fleet: Fleet<'a>,
    request: Request<'a>,
}

impl<'a> Planner<'_, 'a> {
    /// Sends away what matters less, if the kind of job may and it helps; what is about to end anyway is waited for.
    pub(crate) fn make_room(&mut self, group: &'a TaskGroup, empty: &EmptySlot<'_>, only: Option<NodeId>) {
        if !self.settings.preemption.is_allowed(self.job.kind) || self.job.priority <= preempt::GAP {
            return;
        }
        let mut expected = match self.expected.take().filter(|expected| expected.request.group.name == group.name) {
            Some(expected) => expected,
            None => self.expectation(group),
        };
        let mut random = self.random(group, u64::from(empty.slot));
        let found = match only {
            Some(node) => expected.request.find_on(&expected.fleet, node, &mut random),
            None => expected.request.find(&expected.fleet, empty.avoid, &mut random),
        };
        let spot = found.ok().or_else(|| {
            let choice = preempt::choose(&mut expected.fleet, &expected.request, only, &self.victims)?;
            for victim in &choice.victims {
                expected.fleet.give_up(victim);
                self.victims.add(victim);
                let reason = format!("preempted by {}.{}[{}]", self.job.id, group.name, empty.slot);
                self.plan.stops.push(stopped(victim, &reason));
            }
            expected.request.find_on(&expected.fleet, choice.node, &mut random).ok()
        });
        if let Some(spot) = spot {
            let job = self.job.clone();
            expected.fleet.add(&self.allocation(random.alloc_id(), group, empty, &job, spot));
        }
        self.expected = Some(expected);
    }

    fn expectation(&self, group: &'a TaskGroup) -> Expected<'a> {
        let mut fleet = self.fleet.clone();
        let stops: BTreeSet<AllocId> = self.plan.stops.iter().map(|stop| stop.alloc_id).collect();
        for alloc in self.fleet.state.states().flat_map(|state| &state.held.allocs) {
            if alloc.desired == DesiredStatus::Stop || stops.contains(&alloc.id) {
                fleet.give_up(alloc);
            }
        }
        let request = Request::new(&fleet, self.spec, group, self.settings.algorithm, self.seed);
        Expected { fleet, request }
    }
}
