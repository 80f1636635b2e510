//! Allocations and what nodes report of them.
//!
//! An allocation holds its job by `Arc`; many share one. A set writes each distinct job once, and reading it shares again.

use super::scalar::{ip, time, to_ip};
use super::{
    At, ConvertError, Problem, Result, ToModel, ToPb, all, all_by_name, enum_pairs, enumeration, list, map, optional,
    port, to_uuid, uuid,
};
use crate::pb;
use model::{
    AllocUpdate, AllocatedPort, Allocation, CheckState, ClientStatus, DesiredStatus, Index, Job, TaskEvent, TaskPhase,
    TaskState,
};
use std::collections::BTreeMap;
use std::sync::Arc;

pub(crate) fn to_alloc_set<'a>(allocs: impl IntoIterator<Item = &'a Allocation>) -> pb::AllocationSet {
    let mut jobs = JobTable::default();
    let allocations = allocs.into_iter().map(|alloc| to_allocation(alloc, jobs.position(&alloc.job))).collect();
    pb::AllocationSet { jobs: jobs.jobs.iter().map(|job| job.to_pb()).collect(), allocations }
}

pub(crate) fn from_alloc_set(set: pb::AllocationSet) -> Result<Vec<Allocation>> {
    let jobs: Vec<Job> = list(set.jobs, "jobs")?;
    let jobs: Vec<Arc<Job>> = jobs.into_iter().map(Arc::new).collect();
    let convert = |(position, alloc)| from_allocation(alloc, &jobs).at(&format!("allocations[{position}]"));
    set.allocations.into_iter().enumerate().map(convert).collect()
}

/// Distinct jobs in the order of first use.
#[derive(Default)]
struct JobTable {
    jobs: Vec<Arc<Job>>,
    /// Comparing whole jobs is only worth it among those of one name and version.
    by_version: BTreeMap<(String, u64), Vec<u32>>,
}

impl JobTable {
    fn position(&mut self, job: &Arc<Job>) -> u32 {
        let known = self.by_version.entry((job.id.0.clone(), job.version)).or_default();
        let same = |at: &&u32| {
            let held = &self.jobs[**at as usize];
            Arc::ptr_eq(held, job) || held == job
        };
        if let Some(at) = known.iter().find(same) {
            return *at;
        }
        let at = u32::try_from(self.jobs.len()).unwrap_or(u32::MAX);
        known.push(at);
        self.jobs.push(job.clone());
        at
    }
}

fn to_allocation(alloc: &Allocation, job: u32) -> pb::Allocation {
    pb::Allocation {
        id: to_uuid(alloc.id.0),
        eval_id: to_uuid(alloc.eval_id.0),
        node_id: to_uuid(alloc.node_id.0),
        node_name: alloc.node_name.clone(),
        job,
        group: alloc.group.clone(),
        slot: alloc.slot,
        ports: all(&alloc.ports),
        previous: alloc.previous.map(|id| to_uuid(id.0)),
        reschedules: alloc.reschedules,
        desired: alloc.desired.to_pb().into(),
        desired_description: alloc.desired_description.clone(),
        client: alloc.client.to_pb().into(),
        client_description: alloc.client_description.clone(),
        task_states: all_by_name(&alloc.task_states),
        address: alloc.address.map(to_ip),
        checks: all_by_name(&alloc.checks),
        created_at: alloc.created_at.0,
        modified_at: alloc.modified_at.0,
        created_at_index: alloc.created_at_index.0,
        modified_at_index: alloc.modified_at_index.0,
        deployment: alloc.deployment.as_ref().map(ToPb::to_pb),
    }
}

fn from_allocation(alloc: pb::Allocation, jobs: &[Arc<Job>]) -> Result<Allocation> {
    let dangling = || ConvertError::new("job", Problem::Dangling(alloc.job));
    Ok(Allocation {
        id: uuid(&alloc.id, "id")?,
        eval_id: uuid(&alloc.eval_id, "eval_id")?,
        node_id: uuid(&alloc.node_id, "node_id")?,
        node_name: alloc.node_name,
        job: jobs.get(alloc.job as usize).cloned().ok_or_else(dangling)?,
        group: alloc.group,
        slot: alloc.slot,
        ports: list(alloc.ports, "ports")?,
        previous: alloc.previous.map(|id| uuid(&id, "previous")).transpose()?,
        reschedules: alloc.reschedules,
        desired: enumeration::<pb::DesiredStatus, _>(alloc.desired, "desired")?,
        desired_description: alloc.desired_description,
        client: enumeration::<pb::ClientStatus, _>(alloc.client, "client")?,
        client_description: alloc.client_description,
        task_states: map(alloc.task_states, "task_states")?,
        address: alloc.address.map(|bytes| ip(&bytes, "address")).transpose()?,
        checks: map(alloc.checks, "checks")?,
        deployment: optional(alloc.deployment, "deployment")?,
        created_at: time(alloc.created_at),
        modified_at: time(alloc.modified_at),
        created_at_index: Index(alloc.created_at_index),
        modified_at_index: Index(alloc.modified_at_index),
    })
}

impl ToPb<pb::AllocUpdate> for AllocUpdate {
    fn to_pb(&self) -> pb::AllocUpdate {
        pb::AllocUpdate {
            alloc_id: to_uuid(self.alloc_id.0),
            client: self.client.to_pb().into(),
            client_description: self.client_description.clone(),
            task_states: all_by_name(&self.task_states),
            address: self.address.map(to_ip),
            checks: all_by_name(&self.checks),
        }
    }
}

impl ToModel<AllocUpdate> for pb::AllocUpdate {
    fn to_model(self) -> Result<AllocUpdate> {
        Ok(AllocUpdate {
            alloc_id: uuid(&self.alloc_id, "alloc_id")?,
            client: enumeration::<pb::ClientStatus, _>(self.client, "client")?,
            client_description: self.client_description,
            task_states: map(self.task_states, "task_states")?,
            address: self.address.map(|bytes| ip(&bytes, "address")).transpose()?,
            checks: map(self.checks, "checks")?,
        })
    }
}

impl ToPb<pb::AllocatedPort> for AllocatedPort {
    fn to_pb(&self) -> pb::AllocatedPort {
        let (host_port, to) = (u32::from(self.host_port), u32::from(self.to));
        pb::AllocatedPort { label: self.label.clone(), host_port, to }
    }
}

impl ToModel<AllocatedPort> for pb::AllocatedPort {
    fn to_model(self) -> Result<AllocatedPort> {
        Ok(AllocatedPort { label: self.label, host_port: port(self.host_port, "host_port")?, to: port(self.to, "to")? })
    }
}

impl ToPb<pb::TaskState> for TaskState {
    fn to_pb(&self) -> pb::TaskState {
        pb::TaskState {
            phase: self.phase.to_pb().into(),
            failed: self.failed,
            restarts: self.restarts,
            last_restart: self.last_restart.0,
            started_at: self.started_at.0,
            finished_at: self.finished_at.0,
            events: all(&self.events),
        }
    }
}

impl ToModel<TaskState> for pb::TaskState {
    fn to_model(self) -> Result<TaskState> {
        Ok(TaskState {
            phase: enumeration::<pb::TaskPhase, _>(self.phase, "phase")?,
            failed: self.failed,
            restarts: self.restarts,
            last_restart: time(self.last_restart),
            started_at: time(self.started_at),
            finished_at: time(self.finished_at),
            events: list(self.events, "events")?,
        })
    }
}

impl ToPb<pb::TaskEvent> for TaskEvent {
    fn to_pb(&self) -> pb::TaskEvent {
        pb::TaskEvent { at: self.at.0, kind: self.kind.clone(), message: self.message.clone() }
    }
}

impl ToModel<TaskEvent> for pb::TaskEvent {
    fn to_model(self) -> Result<TaskEvent> {
        Ok(TaskEvent { at: time(self.at), kind: self.kind, message: self.message })
    }
}

impl ToPb<pb::CheckState> for CheckState {
    fn to_pb(&self) -> pb::CheckState {
        pb::CheckState {
            health: self.health.to_pb().into(),
            output: self.output.clone(),
            changed_at: self.changed_at.0,
        }
    }
}

impl ToModel<CheckState> for pb::CheckState {
    fn to_model(self) -> Result<CheckState> {
        Ok(CheckState {
            health: enumeration::<pb::Health, _>(self.health, "health")?,
            output: self.output,
            changed_at: time(self.changed_at),
        })
    }
}

enum_pairs!(DesiredStatus, pb::DesiredStatus, Run, Stop);
enum_pairs!(ClientStatus, pb::ClientStatus, Pending, Running, Complete, Failed, Lost);
enum_pairs!(TaskPhase, pb::TaskPhase, Pending, Running, Dead);
