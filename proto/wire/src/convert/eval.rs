//! Evaluations and plans.

use super::scalar::time;
use super::{
    At, Result, ToModel, ToPb, all, all_by_name, enum_pairs, enumeration, from_alloc_set, list, map, number, optional,
    present, to_alloc_set, to_uuid, uuid,
};
use crate::pb;
use model::{AllocId, EvalStatus, EvalTrigger, Evaluation, Index, JobId, PlacementFailure, Plan, PlannedStop};

impl ToPb<pb::Evaluation> for Evaluation {
    fn to_pb(&self) -> pb::Evaluation {
        pb::Evaluation {
            id: to_uuid(self.id.0),
            job_id: self.job_id.0.clone(),
            priority: u32::from(self.priority),
            trigger: self.trigger.to_pb().into(),
            status: self.status.to_pb().into(),
            status_description: self.status_description.clone(),
            wait_until: self.wait_until.0,
            failures: all_by_name(&self.failures),
            queued: self.queued.clone(),
            snapshot_index: self.snapshot_index.0,
            created_at: self.created_at.0,
            modified_at: self.modified_at.0,
            created_at_index: self.created_at_index.0,
            modified_at_index: self.modified_at_index.0,
        }
    }
}

impl ToModel<Evaluation> for pb::Evaluation {
    fn to_model(self) -> Result<Evaluation> {
        Ok(Evaluation {
            id: uuid(&self.id, "id")?,
            job_id: JobId(self.job_id),
            priority: number(self.priority, "priority")?,
            trigger: enumeration::<pb::EvalTrigger, _>(self.trigger, "trigger")?,
            status: enumeration::<pb::EvalStatus, _>(self.status, "status")?,
            status_description: self.status_description,
            wait_until: time(self.wait_until),
            failures: map(self.failures, "failures")?,
            queued: self.queued,
            snapshot_index: Index(self.snapshot_index),
            created_at: time(self.created_at),
            modified_at: time(self.modified_at),
            created_at_index: Index(self.created_at_index),
            modified_at_index: Index(self.modified_at_index),
        })
    }
}

impl ToPb<pb::PlacementFailure> for PlacementFailure {
    fn to_pb(&self) -> pb::PlacementFailure {
        pb::PlacementFailure {
            nodes_evaluated: self.nodes_evaluated,
            nodes_filtered: self.nodes_filtered,
            nodes_exhausted: self.nodes_exhausted,
            constraints_filtered: self.constraints_filtered.clone(),
            dimensions_exhausted: self.dimensions_exhausted.clone(),
            coalesced: self.coalesced,
        }
    }
}

impl ToModel<PlacementFailure> for pb::PlacementFailure {
    fn to_model(self) -> Result<PlacementFailure> {
        Ok(PlacementFailure {
            nodes_evaluated: self.nodes_evaluated,
            nodes_filtered: self.nodes_filtered,
            nodes_exhausted: self.nodes_exhausted,
            constraints_filtered: self.constraints_filtered,
            dimensions_exhausted: self.dimensions_exhausted,
            coalesced: self.coalesced,
        })
    }
}

impl ToPb<pb::Plan> for Plan {
    fn to_pb(&self) -> pb::Plan {
        pb::Plan {
            eval_id: to_uuid(self.eval_id.0),
            job_id: self.job_id.0.clone(),
            snapshot_index: self.snapshot_index.0,
            goes_on: self.goes_on,
            victims: all(&self.victims),
            stops: all(&self.stops),
            placements: Some(to_alloc_set(&self.placements)),
            in_place: self.in_place.iter().map(|id| to_uuid(id.0)).collect(),
            failures: all_by_name(&self.failures),
            queued: self.queued.clone(),
            follow_up_at: self.follow_up_at.map(|at| at.0),
            deployment: self.deployment.as_ref().map(ToPb::to_pb),
        }
    }
}

impl ToModel<Plan> for pb::Plan {
    fn to_model(self) -> Result<Plan> {
        let in_place = |(position, id): (usize, &Vec<u8>)| uuid::<AllocId>(id, &format!("in_place[{position}]"));
        Ok(Plan {
            eval_id: uuid(&self.eval_id, "eval_id")?,
            job_id: JobId(self.job_id),
            snapshot_index: Index(self.snapshot_index),
            goes_on: self.goes_on,
            victims: list(self.victims, "victims")?,
            stops: list(self.stops, "stops")?,
            placements: from_alloc_set(present(self.placements, "placements")?).at("placements")?,
            in_place: self.in_place.iter().enumerate().map(in_place).collect::<Result<_>>()?,
            failures: map(self.failures, "failures")?,
            queued: self.queued,
            deployment: optional(self.deployment, "deployment")?,
            follow_up_at: self.follow_up_at.map(time),
        })
    }
}

impl ToPb<pb::PlannedStop> for PlannedStop {
    fn to_pb(&self) -> pb::PlannedStop {
        pb::PlannedStop {
            alloc_id: to_uuid(self.alloc_id.0),
            reason: self.reason.clone(),
            client: self.client.map(|client| client.to_pb().into()),
        }
    }
}

impl ToModel<PlannedStop> for pb::PlannedStop {
    fn to_model(self) -> Result<PlannedStop> {
        let client = |number| enumeration::<pb::ClientStatus, _>(number, "client");
        Ok(PlannedStop {
            alloc_id: uuid(&self.alloc_id, "alloc_id")?,
            reason: self.reason,
            client: self.client.map(client).transpose()?,
        })
    }
}

enum_pairs!(
    EvalTrigger,
    pb::EvalTrigger,
    JobRegister,
    JobDeregister,
    NodeUpdate,
    AllocUpdate,
    DeploymentWatcher,
    NodeDrain,
    PeriodicJob,
    AllocStop,
    FailedFollowUp,
    MaxPlanAttempts,
    Preemption
);
enum_pairs!(EvalStatus, pb::EvalStatus, Pending, Blocked, Complete, Failed, Canceled);
