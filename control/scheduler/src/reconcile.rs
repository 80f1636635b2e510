//! What a job's allocations need: which to stop, which to keep, which slots to fill and when.
//!
//! An allocation on a suspect node keeps its slot; one on a node that is down is lost and its slot is filled at once; one
//! that failed leaves its slot empty for a while; one on a node that drains is moved in [`crate::migrate`].

use crate::change::{GroupChange, group_change};
use crate::clear::Expected;
use crate::contact::{Contact, contact};
use crate::feasible::Feasibility;
use crate::fleet::Fleet;
use crate::place::{Request, Spot};
use crate::preempt::Victims;
use crate::random::Random;
use crate::rollout::Tally;
use crate::slots::{EmptySlot, History, Refill, Slot, newest_by, refill};
use crate::stage::{Rollout, Stage, deployment_of};
use crate::{ClusterView, Settings, depends};
use model::{
    AllocDeployment, AllocId, Allocation, ClientStatus, DeploymentId, DesiredStatus, Job, JobKind, JobRecord,
    PlacementFailure, Plan, PlannedStop, TaskGroup, Timestamp, UpdateOrder,
};
use std::collections::BTreeMap;
use std::sync::Arc;

pub(crate) const REPLACED: &str = "a newer version of the job replaces it";
pub(crate) const DRAINED: &str = "its node drains";
pub(crate) const MOVED: &str = "another node suits it better";

/// What a plan does to a group, and what it has yet to do: for dry runs.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct GroupChanges {
    pub ignore: u32,
    pub place: u32,
    pub migrate: u32,
    pub stop: u32,
    pub in_place: u32,
    /// All that the newest version replaces, now or later.
    pub destructive: u32,
    pub canary: u32,
}

pub(crate) struct Planner<'p, 'a> {
    pub(crate) plan: &'p mut Plan,
    pub(crate) changes: BTreeMap<String, GroupChanges>,
    pub(crate) job: Arc<Job>,
    pub(crate) spec: &'a Job,
    pub(crate) fleet: Fleet<'a>,
    pub(crate) settings: Settings,
    pub(crate) history: History<'a>,
    /// What the job waits for before its first allocation is placed.
    pub(crate) unmet: &'a [String],
    pub(crate) moving: &'a [AllocId],
    /// The cluster when all that is about to end has ended; made when a place has to be cleared.
    pub(crate) expected: Option<Expected<'a>>,
    pub(crate) victims: Victims,
    /// Working allocations that this plan takes away to move them.
    pub(crate) disrupted: u32,
    pub(crate) now: Timestamp,
    pub(crate) seed: u64,
}

/// A group's slots, from 0 to count - 1.
pub(crate) struct Held<'a> {
    pub(crate) slots: Vec<Slot<'a>>,
}

/// A slot that is to be filled beside or after what holds it.
struct Replacement<'a> {
    slot: u32,
    old: &'a Allocation,
    stop_old: bool,
    canary: bool,
}

/// Stops everything of a job that is stopped (`registered`) or gone.
pub(crate) fn stop_all(plan: &mut Plan, view: &ClusterView<'_>, registered: bool, now: Timestamp) {
    let reason = if registered { "the job is stopped" } else { "the job is gone" };
    for alloc in live_of_job(plan, view) {
        if contact(alloc, view.state, now) == Contact::Lost {
            plan.stops.push(lost(alloc));
        } else if alloc.desired == DesiredStatus::Run {
            plan.stops.push(stopped(alloc, reason));
        }
    }
}

/// Brings the allocations to what the job asks for.
pub(crate) fn fill<'a>(
    plan: &mut Plan,
    view: &'a ClusterView<'a>,
    job: &'a Job,
    now: Timestamp,
    seed: u64,
) -> BTreeMap<String, GroupChanges> {
    let live = live_of_job(plan, view);
    let is_lost = |alloc: &&Allocation| contact(alloc, view.state, now) == Contact::Lost;
    plan.stops.extend(live.iter().copied().filter(is_lost).map(lost));
    let stays = |alloc: &&Allocation| alloc.desired == DesiredStatus::Run && !is_lost(alloc);
    let running: Vec<&Allocation> = live.into_iter().filter(stays).collect();
    let changes = job.groups.iter().map(|group| (group.name.clone(), GroupChanges::default())).collect();
    let held_back = !view.unmet.is_empty() && !running.iter().any(|alloc| alloc.is_healthy());
    let mut planner = Planner {
        plan,
        changes,
        job: Arc::new(job.clone()),
        spec: job,
        fleet: Fleet::new(view.state, job, &running),
        settings: view.settings,
        history: view.allocs.iter().map(|alloc| (alloc.id, *alloc)).collect(),
        unmet: if held_back { &view.unmet } else { &[] },
        moving: &view.moving,
        expected: None,
        victims: Victims::default(),
        disrupted: 0,
        now,
        seed,
    };
    for alloc in running.iter().filter(|alloc| job.group(&alloc.group).is_none()) {
        planner.stop(alloc, "its group is no longer part of the job");
    }
    match job.kind {
        JobKind::System | JobKind::Sysbatch => {
            job.groups.iter().for_each(|group| planner.fill_nodes(job, group, &running, view))
        }
        JobKind::Service | JobKind::Batch => planner.fill_slots(job, &running, view),
    }
    planner.changes
}

impl<'a> Planner<'_, 'a> {
    fn fill_slots(&mut self, job: &'a Job, running: &[&'a Allocation], view: &ClusterView<'a>) {
        let held: Vec<Held<'a>> = job.groups.iter().map(|group| self.hold(group, running)).collect();
        let outdated = |name: &str| {
            let of_group = job.groups.iter().zip(&held).find(|(group, _)| group.name == name);
            of_group.map_or(0, |(_, held)| held.slots.iter().filter(|slot| slot.outdated.is_some()).count())
        };
        let id = self.deployment_id();
        let deployment = deployment_of(job, view.deployment, id, outdated, self.now);
        for (group, held) in job.groups.iter().zip(held) {
            let rollout = Rollout::of(group, deployment.as_ref());
            self.fill_group(job, group, held, &rollout, view);
        }
        let is_new = deployment.as_ref().is_some_and(|deployment| deployment.id == id);
        let does_something = !self.plan.placements.is_empty() || !self.plan.in_place.is_empty();
        if is_new && (does_something || !self.plan.failures.is_empty()) {
            self.plan.deployment = deployment;
        }
    }

    fn deployment_id(&self) -> DeploymentId {
        let bits = Random::new(self.seed, &[self.plan.eval_id.0.as_u128(), name_bits("deployment")]).bits();
        DeploymentId::from_random(bits)
    }

    /// Sorts the group's allocations into slots; what has no place in one is stopped. Where nothing has to restart, the
    /// newest version is adopted.
    fn hold(&mut self, group: &'a TaskGroup, running: &[&'a Allocation]) -> Held<'a> {
        let mut slots = vec![Slot::default(); group.count as usize];
        let mut of_group: Vec<&Allocation> =
            running.iter().copied().filter(|alloc| alloc.group == group.name).collect();
        // Should two hold one place, the one that works and is newest stays; a canary only if nothing else is there.
        of_group.sort_by_key(|alloc| {
            let newest = alloc.job.version == self.job.version;
            let established = newest || !alloc.is_canary();
            std::cmp::Reverse((established, alloc.is_healthy(), alloc.job.version, alloc.created_at_index, alloc.id))
        });
        let job = self.job.clone();
        let feasibility = Feasibility::new(&job, group);
        self.reconcile_returned(group, &mut of_group);
        for alloc in of_group {
            if self.is_replaced_meanwhile(alloc) && (alloc.slot as usize) < slots.len() {
                continue;
            }
            let change = self.change_of(&feasibility, alloc);
            let Some(slot) = slots.get_mut(alloc.slot as usize) else {
                self.stop(alloc, "the job asks for fewer");
                continue;
            };
            let place = if change == Some(GroupChange::Destructive) { &mut slot.outdated } else { &mut slot.current };
            if place.is_some() {
                self.stop(alloc, "another allocation holds its slot");
                continue;
            }
            *place = Some(alloc);
        }
        slots.iter().filter_map(|slot| slot.current).for_each(|alloc| self.adopt(alloc));
        Held { slots }
    }

    /// How an allocation gets to the newest version; `None` when it is of it.
    pub(crate) fn change_of(&self, feasibility: &Feasibility<'_>, alloc: &Allocation) -> Option<GroupChange> {
        if alloc.job.version == self.job.version {
            return None;
        }
        let in_place = group_change(&alloc.job, &self.job, &alloc.group) == GroupChange::InPlace;
        let allowed = self.fleet.node(alloc.node_id).is_some_and(|node| feasibility.allows(node));
        Some(if in_place && allowed { GroupChange::InPlace } else { GroupChange::Destructive })
    }

    pub(crate) fn adopt(&mut self, alloc: &Allocation) {
        if alloc.job.version != self.job.version {
            self.plan.in_place.push(alloc.id);
            self.changes(&alloc.group).in_place += 1;
        }
    }

    fn fill_group(
        &mut self,
        job: &'a Job,
        group: &'a TaskGroup,
        mut held: Held<'a>,
        rollout: &Rollout,
        view: &ClusterView<'a>,
    ) {
        self.settle_pairs(&mut held, rollout);
        self.note_kept(group, &held);
        if held.slots.iter().all(|slot| slot.alone().is_some_and(|alloc| self.is_settled(slot, alloc))) {
            return;
        }
        if !self.unmet.is_empty() {
            return self.hold_back(group, &held);
        }
        let mut request = self.request(job, group);
        let last = newest_by(&view.allocs, job, group, |alloc| alloc.slot);
        if rollout.stage != Stage::Paused {
            self.fill_empty(&mut request, group, &mut held, rollout, &last);
        }
        match rollout.stage {
            Stage::Canaries(wanted) => self.place_canaries(&mut request, group, &mut held, rollout, wanted, &last),
            Stage::Rolling => self.roll(&mut request, group, &mut held, rollout, &last),
            Stage::Paused | Stage::Failed => {}
        }
        self.migrate(&mut request, group, &mut held, rollout);
    }

    /// Nothing is placed before what the job depends on works.
    pub(crate) fn hold_back(&mut self, group: &TaskGroup, held: &Held<'_>) {
        let nodes = u32::try_from(self.fleet.state.len()).unwrap_or(u32::MAX);
        let reasons = self.unmet.iter().map(|reason| (reason.clone(), nodes)).collect();
        let failure = PlacementFailure {
            nodes_evaluated: nodes,
            nodes_filtered: nodes,
            constraints_filtered: reasons,
            ..PlacementFailure::default()
        };
        for _ in held.slots.iter().filter(|slot| slot.is_empty()) {
            self.note_failure(group, failure.clone());
        }
        self.look_again_at(self.now.plus(depends::LOOK_AGAIN_AFTER));
    }

    fn is_settled(&self, slot: &Slot<'_>, alloc: &Allocation) -> bool {
        slot.outdated.is_none() && !self.leaves(alloc)
    }

    /// Where an old and a new allocation share a slot, the new one takes over once it has proven itself.
    fn settle_pairs(&mut self, held: &mut Held<'a>, rollout: &Rollout) {
        for slot in &mut held.slots {
            let (Some(new), Some(old)) = (slot.current, slot.outdated) else { continue };
            let adopted = new.job.version != self.job.version;
            if adopted || (!new.is_canary() && works(new, rollout)) {
                self.stop(old, REPLACED);
                slot.outdated = None;
            } else if rollout.stage == Stage::Failed || (new.is_canary() && rollout.deployment.is_none()) {
                self.stop(new, "its deployment failed");
                slot.current = None;
            }
        }
    }

    fn note_kept(&mut self, group: &TaskGroup, held: &Held<'a>) {
        let version = self.job.version;
        let unchanged = held.slots.iter().filter_map(|slot| slot.current).filter(|alloc| alloc.job.version == version);
        let (ignore, destructive) =
            (unchanged.count(), held.slots.iter().filter(|slot| slot.outdated.is_some()).count());
        let changes = self.changes(&group.name);
        changes.ignore = ignore as u32;
        changes.destructive = destructive as u32;
    }

    fn fill_empty(
        &mut self,
        request: &mut Request<'a>,
        group: &'a TaskGroup,
        held: &mut Held<'a>,
        rollout: &Rollout,
        last: &BTreeMap<u32, &'a Allocation>,
    ) {
        let empty = (0..group.count).zip(&held.slots).filter(|(_, slot)| slot.is_empty()).map(|(slot, _)| slot);
        for slot in empty.collect::<Vec<u32>>() {
            let last = last.get(&slot).copied();
            let job = self.job_to_refill(slot, last, rollout);
            match refill(slot, last, &job, &self.history, self.now) {
                Refill::Now(empty) => {
                    self.changes(&group.name).place += 1;
                    let placed = self.place(request, group, &empty, &job, self.part(rollout, false));
                    held.slots[slot as usize].busy = placed;
                    if !placed {
                        self.make_room(group, &empty, None);
                    }
                }
                Refill::NotBefore(time) => self.look_again_at(time),
                Refill::Never => {}
            }
        }
    }

    /// While canaries are tried out, what is lost comes back as it was.
    pub(crate) fn job_to_refill(&self, slot: u32, last: Option<&Allocation>, rollout: &Rollout) -> Arc<Job> {
        let before = last.filter(|last| {
            let still_kept = self.job.version.saturating_sub(last.job.version) < JobRecord::VERSIONS_MAX as u64;
            let has_slot = last.task_group().is_some_and(|group| slot < group.count);
            rollout.stage != Stage::Rolling && last.job.version < self.job.version && still_kept && has_slot
        });
        before.map_or_else(|| self.job.clone(), |last| last.job.clone())
    }

    fn place_canaries(
        &mut self,
        request: &mut Request<'a>,
        group: &'a TaskGroup,
        held: &mut Held<'a>,
        rollout: &Rollout,
        wanted: u32,
        last: &BTreeMap<u32, &'a Allocation>,
    ) {
        let placed = held.slots.iter().filter(|slot| slot.current.is_some_and(Allocation::is_canary)).count();
        let missing = (wanted as usize).saturating_sub(placed);
        self.changes(&group.name).canary = missing as u32;
        let free = outdated_alone(held).take(missing);
        for (slot, old) in free.collect::<Vec<_>>() {
            let canary = Replacement { slot, old, stop_old: false, canary: true };
            held.slots[slot as usize].busy = self.replace(request, group, rollout, &canary, last);
        }
    }

    fn roll(
        &mut self,
        request: &mut Request<'a>,
        group: &'a TaskGroup,
        held: &mut Held<'a>,
        rollout: &Rollout,
        last: &BTreeMap<u32, &'a Allocation>,
    ) {
        let (working, broken): (Vec<_>, Vec<_>) = outdated_alone(held).partition(|(_, alloc)| alloc.is_healthy());
        let room = tally(held, rollout).room(rollout.max_parallel, broken.len());
        let stop_first = rollout.order == UpdateOrder::StopFirst;
        let broken = broken.into_iter().take(room.broken).map(|chosen| (chosen, true));
        let working = working.into_iter().take(room.working).map(|chosen| (chosen, stop_first));
        for ((slot, old), stop_old) in broken.chain(working) {
            let replacement = Replacement { slot, old, stop_old, canary: false };
            held.slots[slot as usize].busy = self.replace(request, group, rollout, &replacement, last);
        }
    }

    /// Whether the new one was placed, or could be once the old one has ended, which it then is told to.
    fn replace(
        &mut self,
        request: &mut Request<'a>,
        group: &TaskGroup,
        rollout: &Rollout,
        replacement: &Replacement<'a>,
        last: &BTreeMap<u32, &'a Allocation>,
    ) -> bool {
        let Replacement { slot, old, stop_old, canary } = *replacement;
        // What was tried in this slot and failed waits as any failure does.
        let tried = last.get(&slot).copied().filter(|tried| tried.id != old.id);
        let (reschedules, avoid) = match refill(slot, tried, &self.job, &self.history, self.now) {
            Refill::NotBefore(time) => {
                self.look_again_at(time);
                return false;
            }
            Refill::Now(empty) => (empty.reschedules, empty.avoid),
            Refill::Never => return false,
        };
        let empty = EmptySlot { slot, last: Some(old), reschedules, avoid };
        if stop_old {
            self.fleet.release_slot(old);
        }
        let job = self.job.clone();
        let placed = self.place(request, group, &empty, &job, self.part(rollout, canary));
        // With no room for both at once the old one goes first and the slot is filled when it has ended.
        if stop_old && (placed || request.would_fit_without(&mut self.fleet, old)) {
            self.plan.stops.push(stopped(old, REPLACED));
            return true;
        }
        if stop_old {
            self.fleet.hold_slot(old);
        }
        placed
    }

    pub(crate) fn request(&self, job: &'a Job, group: &'a TaskGroup) -> Request<'a> {
        Request::new(&self.fleet, job, group, self.settings.algorithm, self.seed)
    }

    pub(crate) fn part(&self, rollout: &Rollout, canary: bool) -> Option<AllocDeployment> {
        rollout.deployment.map(|id| AllocDeployment { id, healthy: None, changed_at: self.now, canary })
    }

    /// Whether the slot could be filled; if not, the failure is noted.
    pub(crate) fn place(
        &mut self,
        request: &mut Request<'a>,
        group: &TaskGroup,
        empty: &EmptySlot<'_>,
        job: &Arc<Job>,
        part: Option<AllocDeployment>,
    ) -> bool {
        let mut random = self.random(group, u64::from(empty.slot));
        let id = random.alloc_id();
        let found = request.find(&self.fleet, empty.avoid, &mut random);
        self.take(group, empty, job, part, id, found)
    }

    pub(crate) fn random(&self, group: &TaskGroup, place: u64) -> Random {
        let purpose = [self.plan.eval_id.0.as_u128(), u128::from(self.plan.snapshot_index.0), name_bits(&group.name)];
        Random::new(self.seed.wrapping_add(place), &purpose)
    }

    pub(crate) fn take(
        &mut self,
        group: &TaskGroup,
        empty: &EmptySlot<'_>,
        job: &Arc<Job>,
        part: Option<AllocDeployment>,
        id: AllocId,
        found: Result<Spot<'_>, PlacementFailure>,
    ) -> bool {
        match found {
            Ok(spot) => {
                let part = part.filter(|_| job.version == self.job.version);
                let alloc = Allocation { deployment: part, ..self.allocation(id, group, empty, job, spot) };
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

    pub(crate) fn allocation(
        &self,
        id: AllocId,
        group: &TaskGroup,
        empty: &EmptySlot<'_>,
        job: &Arc<Job>,
        spot: Spot<'_>,
    ) -> Allocation {
        Allocation {
            id,
            eval_id: self.plan.eval_id,
            node_id: spot.node.id,
            node_name: spot.node.name.clone(),
            job: job.clone(),
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
            deployment: None,
            created_at: self.now,
            modified_at: self.now,
            created_at_index: Default::default(),
            modified_at_index: Default::default(),
        }
    }

    pub(crate) fn stop(&mut self, alloc: &Allocation, reason: &str) {
        self.fleet.release_slot(alloc);
        self.plan.stops.push(stopped(alloc, reason));
        self.changes(&alloc.group).stop += 1;
    }

    pub(crate) fn changes(&mut self, group: &str) -> &mut GroupChanges {
        self.changes.entry(group.to_owned()).or_default()
    }

    fn note_failure(&mut self, group: &TaskGroup, failure: PlacementFailure) {
        *self.plan.queued.entry(group.name.clone()).or_default() += 1;
        match self.plan.failures.get_mut(&group.name) {
            Some(first) => first.coalesced += 1,
            None => drop(self.plan.failures.insert(group.name.clone(), failure)),
        }
    }

    pub(crate) fn look_again_at(&mut self, time: Timestamp) {
        self.plan.follow_up_at = Some(self.plan.follow_up_at.map_or(time, |earlier| earlier.min(time)));
    }
}

/// In a deployment an allocation works when that was decided; outside of one, when it runs and its checks pass.
pub(crate) fn works(alloc: &Allocation, rollout: &Rollout) -> bool {
    match rollout.deployment.and_then(|id| alloc.health_in(id)) {
        Some(decided) => decided == Some(true),
        None => alloc.is_healthy(),
    }
}

pub(crate) fn tally(held: &Held<'_>, rollout: &Rollout) -> Tally {
    // What was replaced just now is about to stop.
    let works_at_all = |slot: &&Slot<'_>| {
        let current = slot.current.is_some_and(|alloc| works(alloc, rollout));
        !slot.busy && (current || slot.outdated.is_some_and(Allocation::is_healthy))
    };
    let in_flight =
        |slot: &&Slot<'_>| slot.busy || slot.is_empty() || slot.current.is_some_and(|alloc| !works(alloc, rollout));
    Tally {
        slots: held.slots.len(),
        working: held.slots.iter().filter(works_at_all).count(),
        in_flight: held.slots.iter().filter(in_flight).count(),
    }
}

/// Slots in which nothing newer stands beside the outdated one, by number.
fn outdated_alone<'a>(held: &Held<'a>) -> impl Iterator<Item = (u32, &'a Allocation)> {
    (0..).zip(&held.slots).filter_map(|(number, slot)| Some((number, slot.outdated_alone()?)))
}

/// In the order of their groups, slots and ids, whatever order the view has.
fn live_of_job<'a>(plan: &Plan, view: &ClusterView<'a>) -> Vec<&'a Allocation> {
    let of_job = view.allocs.iter().copied().filter(|alloc| *alloc.job_id() == plan.job_id && alloc.is_live());
    let mut live: Vec<&Allocation> = of_job.collect();
    live.sort_by(|a, b| (&a.group, a.slot, a.id).cmp(&(&b.group, b.slot, b.id)));
    live
}

fn lost(alloc: &Allocation) -> PlannedStop {
    PlannedStop { alloc_id: alloc.id, reason: "its node is down".to_owned(), client: Some(ClientStatus::Lost) }
}

pub(crate) fn stopped(alloc: &Allocation, reason: &str) -> PlannedStop {
    PlannedStop { alloc_id: alloc.id, reason: reason.to_owned(), client: None }
}

/// Tells groups apart; nothing but spread depends on it.
fn name_bits(name: &str) -> u128 {
    name.bytes()
        .fold(0xcbf2_9ce4_8422_2325, |bits: u128, byte| (bits ^ u128::from(byte)).wrapping_mul(0x1_0000_0000_01b3))
}
