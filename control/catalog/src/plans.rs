//! Plans: the optimistic half of scheduling. A plan was made against an older snapshot, so each of its parts is checked
//! against the newest state; what no longer holds is left out and reported, the rest takes effect.

use crate::{At, Catalog};
use model::{
    AllocId, Allocation, ClientStatus, DesiredStatus, EvalStatus, Evaluation, Job, JobId, NodeId, NodeStatus, Plan,
    PlannedStop, Refusal, TaskGroup, UpdateOrder, capacity,
};
use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

/// How much lower the priority of an allocation has to be that makes room for another job; Nomad's.
const PREEMPTION_DISTANCE: u8 = 10;

impl Catalog {
    pub(crate) fn apply_plan(
        &mut self,
        at: At,
        plan: &Plan,
        follow_up: Option<&Evaluation>,
    ) -> Result<Vec<AllocId>, Refusal> {
        let eval = self.open_eval(plan)?;
        if let Some(follow_up) = follow_up.filter(|follow_up| follow_up.job_id != plan.job_id) {
            return Err(Refusal::EvalMismatch { id: follow_up.id, job_id: follow_up.job_id.clone() });
        }
        if self.is_outdated(plan) {
            return Ok(parts_of(plan));
        }
        let mut dropped = Vec::new();
        let mut ended = BTreeSet::new();
        for stop in &plan.stops {
            match self.stop_alloc(at, &plan.job_id, stop) {
                Some(alloc) if !alloc.is_live() => drop(ended.insert(alloc.job_id().clone())),
                Some(_) => {}
                None => dropped.push(stop.alloc_id),
            }
        }
        if let Some(deployment) = &plan.deployment {
            self.start_deployment(at, &plan.job_id, deployment);
        }
        dropped.extend(plan.in_place.iter().filter(|id| !self.update_in_place(at, &plan.job_id, **id)));
        let mut holders = Holders::of(plan, self);
        let left_out = plan.placements.iter().filter(|alloc| !self.place(at, plan, alloc, &mut holders));
        dropped.extend(left_out.map(|alloc| alloc.id));
        self.count_deployment_of(at, &plan.job_id);
        self.upsert_evals(at, &plan.victims);
        if !plan.goes_on || !dropped.is_empty() {
            self.conclude(at, &eval, plan, dropped.is_empty());
        }
        if let Some(follow_up) = follow_up {
            self.upsert_eval(at, follow_up);
        }
        self.after_ends(at, ended);
        Ok(dropped)
    }

    /// The job was registered anew or stopped after the state that the plan was made from: nothing of it can be trusted.
    fn is_outdated(&self, plan: &Plan) -> bool {
        self.jobs.get(&plan.job_id).is_some_and(|stored| stored.job_modified_at_index > plan.snapshot_index)
    }

    /// The evaluation that the plan answers. A blocked one is woken without a word in the log.
    fn open_eval(&self, plan: &Plan) -> Result<Arc<Evaluation>, Refusal> {
        let eval = self.evals.get(&plan.eval_id).ok_or(Refusal::EvalUnknown { id: plan.eval_id })?;
        if eval.job_id != plan.job_id {
            return Err(Refusal::EvalMismatch { id: eval.id, job_id: eval.job_id.clone() });
        }
        if !matches!(eval.status, EvalStatus::Pending | EvalStatus::Blocked) {
            return Err(Refusal::EvalNotPending { id: eval.id, status: eval.status });
        }
        Ok(eval.clone())
    }

    /// The allocation afterwards; `None` when the stop no longer makes sense.
    fn stop_alloc(&mut self, at: At, job_id: &JobId, stop: &PlannedStop) -> Option<Arc<Allocation>> {
        let alloc = self.allocs.get(&stop.alloc_id).filter(|alloc| alloc.is_live()).cloned()?;
        if alloc.job_id() != job_id && !self.may_preempt(job_id, &alloc) {
            return None;
        }
        if stop.client.is_some() && !self.node_is_gone(&alloc) {
            return None;
        }
        let client = stop.client.filter(|client| client.is_terminal()).unwrap_or(alloc.client);
        let client_description = match stop.client {
            Some(ClientStatus::Lost) => "its node is down".to_owned(),
            _ => alloc.client_description.clone(),
        };
        self.put_alloc(
            at,
            Allocation {
                desired: DesiredStatus::Stop,
                desired_description: stop.reason.clone(),
                client,
                client_description,
                ..Allocation::clone(&alloc)
            },
        );
        self.allocs.get(&alloc.id).cloned()
    }

    /// Only what is clearly less important has to make room.
    fn may_preempt(&self, job_id: &JobId, victim: &Allocation) -> bool {
        self.job(job_id).is_some_and(|job| victim.job.priority.saturating_add(PREEMPTION_DISTANCE) <= job.priority)
    }

    /// What runs of the job besides is the scheduler's to see to.
    pub(crate) fn stop_for_user(&mut self, at: At, id: AllocId) {
        let running = |alloc: &&Arc<Allocation>| alloc.is_live() && alloc.desired == DesiredStatus::Run;
        let Some(alloc) = self.allocs.get(&id).filter(running).cloned() else { return };
        let desired_description = "alloc was stopped by user".to_owned();
        self.put_alloc(
            at,
            Allocation { desired: DesiredStatus::Stop, desired_description, ..Allocation::clone(&alloc) },
        );
    }

    /// Only a node that cannot report any more has its allocations ended by others.
    fn node_is_gone(&self, alloc: &Allocation) -> bool {
        self.nodes.get(&alloc.node_id).is_none_or(|node| node.status == NodeStatus::Down)
    }

    fn live_alloc_of(&self, job_id: &JobId, id: AllocId) -> Option<Arc<Allocation>> {
        self.allocs.get(&id).filter(|alloc| alloc.job_id() == job_id && alloc.is_live()).cloned()
    }

    fn update_in_place(&mut self, at: At, job_id: &JobId, id: AllocId) -> bool {
        let Some(alloc) = self.live_alloc_of(job_id, id) else { return false };
        let Some(job) = self.job(job_id).filter(|job| !job.stopped && job.group(&alloc.group).is_some()).cloned()
        else {
            return false;
        };
        // A group's new version must not ask for more room than what the node was checked for.
        let deployment = self.part_in_deployment(at, &job, &alloc.group, false);
        let grown = Allocation { job: job.clone(), deployment, ..Allocation::clone(&alloc) };
        if capacity::demand_of(&grown) != capacity::demand_of(&alloc) {
            return false;
        }
        self.put_alloc(at, grown);
        true
    }

    fn place(&mut self, at: At, plan: &Plan, asked: &Allocation, holders: &mut Holders) -> bool {
        let Some(job) = self.version_of(&plan.job_id, asked.job.version) else { return false };
        if !self.is_placeable(plan, &job, asked, holders) {
            return false;
        }
        holders.add(asked);
        let deployment = self.part_in_deployment(at, &job, &asked.group, asked.is_canary());
        let node_name = self.nodes.get(&asked.node_id).map(|node| node.name.clone()).unwrap_or_default();
        self.put_alloc(
            at,
            Allocation {
                eval_id: plan.eval_id,
                node_name,
                job,
                desired: DesiredStatus::Run,
                client: ClientStatus::Pending,
                task_states: BTreeMap::new(),
                address: None,
                checks: BTreeMap::new(),
                deployment,
                created_at: at.time,
                created_at_index: at.index,
                ..asked.clone()
            },
        );
        true
    }

    fn version_of(&self, id: &JobId, version: u64) -> Option<Arc<Job>> {
        self.job_versions(id).iter().find(|job| job.version == version).cloned()
    }

    fn is_placeable(&self, plan: &Plan, job: &Job, asked: &Allocation, holders: &Holders) -> bool {
        let runs = self.job(&plan.job_id).is_some_and(|newest| !newest.stopped);
        *asked.job_id() == plan.job_id
            && runs
            && !self.allocs.contains_key(&asked.id)
            && job.group(&asked.group).is_some_and(|group| asked.slot < group.count && holders.leave_room(group, asked))
            && self.fits(job, asked)
    }

    fn fits(&self, job: &Job, asked: &Allocation) -> bool {
        let Some(node) = self.nodes.get(&asked.node_id).filter(|node| node.is_placeable()) else { return false };
        let Some(group) = job.group(&asked.group) else { return false };
        let ports: Vec<u16> = asked.ports.iter().map(|port| port.host_port).collect();
        let idle = capacity::Usage::default();
        let usage = self.usage.get(&node.id).map_or(&idle, Arc::as_ref);
        usage.misfits(node, capacity::demand(group), &ports).is_empty() && usage.lacks_address(node, group).is_none()
    }

    /// Complete, or blocked when something waits for capacity. A plan of which parts were dropped leaves its evaluation
    /// pending: the job has to be looked at again, with the newer state.
    fn conclude(&mut self, at: At, eval: &Evaluation, plan: &Plan, whole: bool) {
        let blocked = !plan.failures.is_empty();
        let (status, status_description) = match (whole, blocked) {
            (false, _) => (EvalStatus::Pending, "parts of its plan no longer fitted".to_owned()),
            (true, true) => (EvalStatus::Blocked, "waits for capacity".to_owned()),
            (true, false) => (EvalStatus::Complete, String::new()),
        };
        let concluded = Evaluation {
            status,
            status_description,
            failures: plan.failures.clone(),
            queued: plan.queued.clone(),
            snapshot_index: plan.snapshot_index,
            ..eval.clone()
        };
        self.put_eval(at, concluded.clone());
        if whole {
            self.cancel_covered(at, &concluded, plan.snapshot_index);
        }
    }
}

/// Which versions hold the places of the plan's job: its slots, and for what runs on every node the nodes.
struct Holders {
    versions: BTreeMap<Place, Vec<u64>>,
}

type Place = (String, u32, Option<NodeId>);

impl Holders {
    /// Read once for all of a plan's placements.
    fn of(plan: &Plan, catalog: &Catalog) -> Self {
        let mut holders = Self { versions: BTreeMap::new() };
        if !plan.placements.is_empty() {
            // What cannot be reached, and may be gone, does not keep its place from being filled elsewhere.
            let reachable = |id| catalog.node(id).is_some_and(|node| node.status.is_reachable());
            let live = catalog.allocs_of_job(&plan.job_id).filter(|alloc| alloc.is_live());
            let running = live.filter(|alloc| reachable(alloc.node_id));
            running.filter(|alloc| alloc.desired == DesiredStatus::Run).for_each(|alloc| holders.add(alloc));
        }
        holders
    }

    fn add(&mut self, alloc: &Allocation) {
        self.versions.entry(place_of(alloc)).or_default().push(alloc.job.version);
    }

    /// An allocation that is to stop has given its slot up already, though not its resources. A canary, and the new one of
    /// a start-first update, runs beside the one older version that still holds the slot.
    fn leave_room(&self, group: &TaskGroup, asked: &Allocation) -> bool {
        let starts_first = group.update.is_some_and(|policy| policy.order == UpdateOrder::StartFirst);
        match self.versions.get(&place_of(asked)).map(Vec::as_slice).unwrap_or_default() {
            [] => true,
            [older] => *older < asked.job.version && (asked.is_canary() || starts_first),
            _ => false,
        }
    }
}

fn place_of(alloc: &Allocation) -> Place {
    (alloc.group.clone(), alloc.slot, alloc.job.kind.is_on_every_node().then_some(alloc.node_id))
}

fn parts_of(plan: &Plan) -> Vec<AllocId> {
    let stops = plan.stops.iter().map(|stop| stop.alloc_id);
    stops.chain(plan.in_place.iter().copied()).chain(plan.placements.iter().map(|alloc| alloc.id)).collect()
}
