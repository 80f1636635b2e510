//! System jobs: one allocation of every group on every node that may run it. A node that may not is no failure; a node
//! that has no room is one.

use crate::ClusterView;
use crate::change::GroupChange;
use crate::constraint::NO_JOBS;
use crate::feasible::{Feasibility, Memo, reason_not_placeable};
use crate::place::Request;
use crate::reconcile::{DRAINED, Planner, REPLACED, stopped};
use crate::rollout::Tally;
use crate::slots::{EmptySlot, Refill, newest_by, refill};
use model::{AllocId, Allocation, Job, JobKind, Node, NodeId, TaskGroup};
use std::collections::BTreeMap;
use std::collections::btree_map::Entry;

/// Every allocation of a system group is its node's only one.
const SLOT: u32 = 0;

impl<'a> Planner<'_, 'a> {
    pub(crate) fn fill_nodes(
        &mut self,
        job: &'a Job,
        group: &'a TaskGroup,
        running: &[&'a Allocation],
        view: &ClusterView<'a>,
    ) {
        let feasibility = Feasibility::new(job, group);
        let mut memo = Memo::default();
        let feasible: BTreeMap<NodeId, &Node> = view
            .state
            .states()
            .filter(|state| group.count > 0 && feasibility.allows_state(&mut memo, state, NO_JOBS))
            .map(|state| (state.node.id, state.node.as_ref()))
            .collect();
        let held = self.hold_nodes(group, running, &feasible, view);
        let (outdated, current) = self.sort_out(&feasibility, &held);
        let request = self.request(job, group);
        let unproven = current.values().filter(|alloc| !alloc.is_healthy()).count();
        let placed = self.fill_free_nodes(&request, job, group, &feasible, &held, view);
        let working = held.values().filter(|alloc| alloc.is_healthy()).count();
        let tally = Tally { slots: held.len() + placed, working, in_flight: unproven + placed };
        self.replace_on_nodes(&request, group, &outdated, tally);
    }

    /// One allocation per node; those on nodes that must not run it, and second ones, are stopped.
    fn hold_nodes(
        &mut self,
        group: &TaskGroup,
        running: &[&'a Allocation],
        feasible: &BTreeMap<NodeId, &Node>,
        view: &ClusterView<'a>,
    ) -> BTreeMap<NodeId, &'a Allocation> {
        let mut held = BTreeMap::new();
        let mut of_group: Vec<&Allocation> =
            running.iter().copied().filter(|alloc| alloc.group == group.name).collect();
        of_group.sort_by_key(|alloc| {
            std::cmp::Reverse((alloc.is_healthy(), alloc.job.version, alloc.created_at_index, alloc.id))
        });
        for alloc in of_group {
            if !feasible.contains_key(&alloc.node_id) {
                self.stop(alloc, "the job does not want its node");
            } else if self.leaves_last(alloc, view) {
                self.stop(alloc, DRAINED);
                self.changes(&group.name).migrate += 1;
            } else if let Entry::Vacant(place) = held.entry(alloc.node_id) {
                place.insert(alloc);
            } else {
                self.stop(alloc, "another allocation runs on its node");
            }
        }
        held
    }

    /// A node that drains loses its system allocations when all others are gone, or at the deadline.
    fn leaves_last(&self, alloc: &Allocation, view: &ClusterView<'_>) -> bool {
        let Some(drain) = self.drain_of(alloc).filter(|drain| !drain.ignore_system) else { return false };
        let on_node = view.state.allocs_of_node(alloc.node_id);
        drain.is_due(self.now) || on_node.iter().all(|other| other.job.kind == JobKind::System)
    }

    /// Adopts the newest version where nothing restarts; the first ones are left to be replaced.
    fn sort_out(
        &mut self,
        feasibility: &Feasibility<'_>,
        held: &BTreeMap<NodeId, &'a Allocation>,
    ) -> (Vec<&'a Allocation>, BTreeMap<AllocId, &'a Allocation>) {
        let (mut outdated, mut current) = (Vec::new(), BTreeMap::new());
        for alloc in held.values() {
            let change = self.change_of(feasibility, alloc);
            if change == Some(GroupChange::Destructive) {
                outdated.push(*alloc);
                self.changes(&alloc.group).destructive += 1;
                continue;
            }
            if change.is_none() {
                self.changes(&alloc.group).ignore += 1;
            }
            self.adopt(alloc);
            current.insert(alloc.id, *alloc);
        }
        (outdated, current)
    }

    /// How many were placed. A node without room is a failure, but does not hold up the others.
    fn fill_free_nodes(
        &mut self,
        request: &Request<'_>,
        job: &'a Job,
        group: &'a TaskGroup,
        feasible: &BTreeMap<NodeId, &Node>,
        held: &BTreeMap<NodeId, &'a Allocation>,
        view: &ClusterView<'a>,
    ) -> usize {
        let free =
            feasible.values().filter(|node| !held.contains_key(&node.id) && reason_not_placeable(node).is_none());
        let last = newest_by(&view.allocs, job, group, |alloc| alloc.node_id);
        let mut placed = 0;
        for node in free {
            match refill(SLOT, last.get(&node.id).copied(), &self.job, &self.history, self.now) {
                Refill::Now(empty) => {
                    self.changes(&group.name).place += 1;
                    let fits = self.place_on(request, group, &empty, node.id);
                    placed += usize::from(fits);
                    if !fits {
                        self.make_room(group, &empty, Some(node.id));
                    }
                }
                Refill::NotBefore(time) => self.look_again_at(time),
                Refill::Never => {}
            }
        }
        placed
    }

    fn replace_on_nodes(
        &mut self,
        request: &Request<'_>,
        group: &TaskGroup,
        outdated: &[&'a Allocation],
        tally: Tally,
    ) {
        let max_parallel = match group.update.map(|policy| policy.max_parallel) {
            None => 1,
            Some(0) => usize::MAX,
            Some(most) => most as usize,
        };
        let (working, broken): (Vec<&Allocation>, Vec<&Allocation>) =
            outdated.iter().copied().partition(|alloc| alloc.is_healthy());
        let room = tally.room(max_parallel, broken.len());
        let chosen = broken.into_iter().take(room.broken).chain(working.into_iter().take(room.working));
        for old in chosen {
            // A node that takes nothing new keeps what it has.
            if self.fleet.node(old.node_id).is_none_or(|node| reason_not_placeable(node).is_some()) {
                continue;
            }
            self.fleet.release_slot(old);
            let empty = EmptySlot { slot: SLOT, last: Some(old), reschedules: 0, avoid: None };
            if self.place_on(request, group, &empty, old.node_id) || request.would_fit_without(&mut self.fleet, old) {
                self.plan.stops.push(stopped(old, REPLACED));
            } else {
                self.fleet.hold_slot(old);
            }
        }
    }

    fn place_on(&mut self, request: &Request<'_>, group: &TaskGroup, empty: &EmptySlot<'_>, node: NodeId) -> bool {
        let mut random = self.random(group, node.0.as_u128() as u64);
        let id = random.alloc_id();
        let found = request.find_on(&self.fleet, node, &mut random);
        let job = self.job.clone();
        self.take(group, empty, &job, None, id, found)
    }
}
