//! What a job's allocations need: which to stop, which to keep, which slots to fill and when.
//!
//! A slot is a number from 0 to count - 1 within a group; at most one allocation that is to run holds it. An allocation on
//! a suspect node keeps its slot; one on a node that is down is lost and its slot is filled at once; one that failed leaves
//! its slot empty for a delay that doubles with every failure.

use crate::ClusterView;
use crate::change::{GroupChange, group_change};
use crate::feasible::Feasibility;
use crate::place::{Fleet, Request, Spot};
use crate::random::Random;
use model::{
    AllocId, Allocation, ClientStatus, DesiredStatus, Job, Node, NodeId, NodeStatus, PlacementFailure, Plan,
    PlannedStop, TaskGroup, Timestamp,
};
use std::collections::btree_map::Entry;
use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::time::Duration;

/// Nomad's default `reschedule` for service jobs: exponential from 30 s to 1 h, without limit.
const RESCHEDULE_DELAY: Duration = Duration::from_secs(30);
const RESCHEDULE_DELAY_MAX: Duration = Duration::from_secs(3600);

/// A slot that nothing holds, with what may be known from its last allocation.
struct EmptySlot<'a> {
    slot: u32,
    last: Option<&'a Allocation>,
    /// How often its allocation will have been rescheduled.
    reschedules: u32,
    avoid: Option<NodeId>,
}

struct Planner<'p, 'a> {
    plan: &'p mut Plan,
    job: Arc<Job>,
    fleet: Fleet<'a>,
    now: Timestamp,
    seed: u64,
}

/// A group's allocations that stay, by slot, sorted by how they compare with the job's newest version.
#[derive(Default)]
struct Kept<'a> {
    by_slot: BTreeMap<u32, &'a Allocation>,
    outdated: Vec<&'a Allocation>,
}

/// Stops everything of a job that is stopped (`registered`) or gone.
pub(crate) fn stop_all(plan: &mut Plan, view: &ClusterView<'_>, registered: bool) {
    let nodes = nodes_by_id(view);
    let reason = if registered { "the job is stopped" } else { "the job is gone" };
    for alloc in live_of_job(plan, view) {
        if is_lost(alloc, &nodes) {
            plan.stops.push(lost(alloc));
        } else if alloc.desired == DesiredStatus::Run {
            plan.stops.push(stopped(alloc, reason));
        }
    }
}

/// Brings the allocations to what the job asks for.
pub(crate) fn fill(plan: &mut Plan, view: &ClusterView<'_>, job: &Job, now: Timestamp, seed: u64) {
    let nodes = nodes_by_id(view);
    let live = live_of_job(plan, view);
    plan.stops.extend(live.iter().filter(|alloc| is_lost(alloc, &nodes)).map(|alloc| lost(alloc)));
    let running: Vec<&Allocation> =
        live.into_iter().filter(|alloc| alloc.desired == DesiredStatus::Run && !is_lost(alloc, &nodes)).collect();
    let removed = running.iter().filter(|alloc| job.group(&alloc.group).is_none());
    plan.stops.extend(removed.map(|alloc| stopped(alloc, "its group is no longer part of the job")));
    let kept: Vec<Kept<'_>> = job.groups.iter().map(|group| keep(plan, group, &running)).collect();
    let holders: Vec<&Allocation> = kept.iter().flat_map(|kept| kept.by_slot.values().copied()).collect();
    let fleet = Fleet::new(&view.nodes, &view.allocs, &holders, seed);
    let mut planner = Planner { plan, job: Arc::new(job.clone()), fleet, now, seed };
    for (group, mut kept) in job.groups.iter().zip(kept) {
        planner.update_in_place(group, &mut kept, &nodes);
        planner.fill_group(job, group, &kept, view);
    }
}

impl<'a> Planner<'_, 'a> {
    /// Adopts the newest version where nothing has to restart; the others are left in `kept.outdated`.
    fn update_in_place(&mut self, group: &TaskGroup, kept: &mut Kept<'a>, nodes: &BTreeMap<NodeId, &Node>) {
        let job = self.job.clone();
        let feasibility = Feasibility::new(&job, group);
        let older = kept.by_slot.values().filter(|alloc| alloc.job.version != job.version);
        for alloc in older {
            let in_place = group_change(&alloc.job, &job, &group.name) == GroupChange::InPlace;
            let still_allowed =
                nodes.get(&alloc.node_id).is_some_and(|node| feasibility.reasons_against(node).is_empty());
            if in_place && still_allowed {
                self.plan.in_place.push(alloc.id);
            } else {
                kept.outdated.push(alloc);
            }
        }
    }

    fn fill_group(&mut self, job: &'a Job, group: &'a TaskGroup, kept: &Kept<'a>, view: &ClusterView<'a>) {
        let missing: BTreeSet<u32> = (0..group.count).filter(|slot| !kept.by_slot.contains_key(slot)).collect();
        if missing.is_empty() && kept.outdated.is_empty() {
            return;
        }
        let request = self.fleet.request(job, group);
        let last = last_of_slots(view, job, group);
        for slot in &missing {
            match empty_slot(*slot, last.get(slot).copied(), job, self.now) {
                Ok(empty) => drop(self.place(&request, group, &empty)),
                Err(not_before) => self.look_again_at(not_before),
            }
        }
        if missing.is_empty() && kept.current_are_healthy() {
            self.replace_next(&request, group, kept);
        }
    }

    /// Replaces one outdated allocation: one that does not work anyway if there is any, else the lowest slot.
    fn replace_next(&mut self, request: &Request<'_>, group: &TaskGroup, kept: &Kept<'a>) {
        let Some(old) = kept.outdated.iter().min_by_key(|alloc| (alloc.is_healthy(), alloc.slot)) else { return };
        let empty = EmptySlot { slot: old.slot, last: Some(old), reschedules: 0, avoid: None };
        self.fleet.release_slot(old);
        // With no room for both at once the old one goes first and the slot is filled when it has ended.
        if self.place(request, group, &empty) || self.fleet.would_fit_without(request, old) {
            self.plan.stops.push(stopped(old, "a newer version of the job replaces it"));
        } else {
            self.fleet.hold_slot(old);
        }
    }

    /// Whether the slot could be filled; if not, the failure is noted.
    fn place(&mut self, request: &Request<'_>, group: &TaskGroup, empty: &EmptySlot<'_>) -> bool {
        let purpose = [self.plan.eval_id.0.as_u128(), u128::from(self.plan.snapshot_index.0), name_bits(&group.name)];
        let mut random = Random::new(self.seed.wrapping_add(u64::from(empty.slot)), &purpose);
        let id = random.alloc_id();
        match self.fleet.find(request, empty.avoid, &mut random) {
            Ok(spot) => {
                let alloc = self.allocation(id, group, empty, spot);
                self.fleet.add(&alloc);
                self.plan.placements.push(alloc);
                true
            }
            Err(failure) => {
                self.note_failure(group, failure);
                false
            }
        }
    }

    fn allocation(&self, id: AllocId, group: &TaskGroup, empty: &EmptySlot<'_>, spot: Spot<'_>) -> Allocation {
        Allocation {
            id,
            eval_id: self.plan.eval_id,
            node_id: spot.node.id,
            node_name: spot.node.name.clone(),
            job: self.job.clone(),
            group: group.name.clone(),
            slot: empty.slot,
            ports: spot.ports,
            previous: empty.last.map(|last| last.id),
            reschedules: empty.reschedules,
            desired: DesiredStatus::Run,
            desired_description: String::new(),
            client: ClientStatus::Pending,
            client_description: String::new(),
            task_states: BTreeMap::new(),
            address: None,
            checks: BTreeMap::new(),
            created_at: self.now,
            modified_at: self.now,
            created_at_index: Default::default(),
            modified_at_index: Default::default(),
        }
    }

    fn note_failure(&mut self, group: &TaskGroup, failure: PlacementFailure) {
        *self.plan.queued.entry(group.name.clone()).or_default() += 1;
        match self.plan.failures.get_mut(&group.name) {
            Some(first) => first.coalesced += 1,
            None => drop(self.plan.failures.insert(group.name.clone(), failure)),
        }
    }

    fn look_again_at(&mut self, time: Timestamp) {
        self.plan.follow_up_at = Some(self.plan.follow_up_at.map_or(time, |earlier| earlier.min(time)));
    }
}

impl Kept<'_> {
    fn current_are_healthy(&self) -> bool {
        let outdated: BTreeSet<AllocId> = self.outdated.iter().map(|alloc| alloc.id).collect();
        self.by_slot.values().all(|alloc| outdated.contains(&alloc.id) || alloc.is_healthy())
    }
}

/// One allocation for each slot of the group; surplus ones are stopped.
fn keep<'a>(plan: &mut Plan, group: &TaskGroup, running: &[&'a Allocation]) -> Kept<'a> {
    let mut kept = Kept::default();
    let mut of_group: Vec<&Allocation> = running.iter().copied().filter(|alloc| alloc.group == group.name).collect();
    // Should two hold one slot, the one that works and is newest stays.
    of_group.sort_by_key(|alloc| {
        std::cmp::Reverse((alloc.is_healthy(), alloc.job.version, alloc.created_at_index, alloc.id))
    });
    for alloc in of_group {
        if alloc.slot >= group.count {
            plan.stops.push(stopped(alloc, "the job asks for fewer"));
            continue;
        }
        match kept.by_slot.entry(alloc.slot) {
            Entry::Vacant(free) => {
                free.insert(alloc);
            }
            Entry::Occupied(_) => plan.stops.push(stopped(alloc, "another allocation holds its slot")),
        }
    }
    kept
}

/// How the slot is to be filled now, or when it may be.
fn empty_slot<'a>(
    slot: u32,
    last: Option<&'a Allocation>,
    job: &Job,
    now: Timestamp,
) -> Result<EmptySlot<'a>, Timestamp> {
    let same_work = |last: &&Allocation| group_change(&last.job, job, &last.group) == GroupChange::InPlace;
    let Some(of_this_work) = last.filter(same_work) else {
        return Ok(EmptySlot { slot, last, reschedules: 0, avoid: None });
    };
    let ended_by_itself = of_this_work.desired == DesiredStatus::Run
        && matches!(of_this_work.client, ClientStatus::Failed | ClientStatus::Complete);
    if !ended_by_itself {
        return Ok(EmptySlot { slot, last, reschedules: of_this_work.reschedules, avoid: None });
    }
    let failures = failures_in_a_row(of_this_work);
    let not_before = ended_at(of_this_work).plus(reschedule_delay(failures));
    if now < not_before {
        return Err(not_before);
    }
    Ok(EmptySlot { slot, last, reschedules: failures.saturating_add(1), avoid: Some(of_this_work.node_id) })
}

/// An allocation that ran for longer than the longest delay starts the count anew.
fn failures_in_a_row(alloc: &Allocation) -> u32 {
    let ran_for = ended_at(alloc).since(alloc.created_at);
    if ran_for > RESCHEDULE_DELAY_MAX { 0 } else { alloc.reschedules }
}

fn reschedule_delay(failures: u32) -> Duration {
    let factor = 1u32.checked_shl(failures).unwrap_or(u32::MAX);
    RESCHEDULE_DELAY.saturating_mul(factor).min(RESCHEDULE_DELAY_MAX)
}

fn ended_at(alloc: &Allocation) -> Timestamp {
    let finished = alloc.task_states.values().map(|state| state.finished_at).max();
    finished.filter(|time| *time != Timestamp::NEVER).unwrap_or(alloc.modified_at)
}

/// The newest allocation of every slot.
fn last_of_slots<'a>(view: &ClusterView<'a>, job: &Job, group: &TaskGroup) -> BTreeMap<u32, &'a Allocation> {
    let mut of_group: Vec<&Allocation> =
        view.allocs.iter().copied().filter(|alloc| *alloc.job_id() == job.id && alloc.group == group.name).collect();
    of_group.sort_by_key(|alloc| (alloc.created_at_index, alloc.created_at, alloc.id));
    of_group.into_iter().map(|alloc| (alloc.slot, alloc)).collect()
}

/// In the order of their groups, slots and ids, whatever order the view has.
fn live_of_job<'a>(plan: &Plan, view: &ClusterView<'a>) -> Vec<&'a Allocation> {
    let of_job = view.allocs.iter().copied().filter(|alloc| *alloc.job_id() == plan.job_id && alloc.is_live());
    let mut live: Vec<&Allocation> = of_job.collect();
    live.sort_by(|a, b| (&a.group, a.slot, a.id).cmp(&(&b.group, b.slot, b.id)));
    live
}

fn nodes_by_id<'a>(view: &ClusterView<'a>) -> BTreeMap<NodeId, &'a Node> {
    view.nodes.iter().map(|node| (node.id, *node)).collect()
}

/// A node that nobody knows will not report the end of anything either.
fn is_lost(alloc: &Allocation, nodes: &BTreeMap<NodeId, &Node>) -> bool {
    nodes.get(&alloc.node_id).is_none_or(|node| node.status == NodeStatus::Down)
}

fn lost(alloc: &Allocation) -> PlannedStop {
    PlannedStop { alloc_id: alloc.id, reason: "its node is down".to_owned(), client: Some(ClientStatus::Lost) }
}

fn stopped(alloc: &Allocation, reason: &str) -> PlannedStop {
    PlannedStop { alloc_id: alloc.id, reason: reason.to_owned(), client: None }
}

/// Tells groups apart; nothing but spread depends on it.
fn name_bits(name: &str) -> u128 {
    name.bytes()
        .fold(0xcbf2_9ce4_8422_2325, |bits: u128, byte| (bits ^ u128::from(byte)).wrapping_mul(0x1_0000_0000_01b3))
}
