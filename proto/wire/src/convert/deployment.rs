//! Deployments and an allocation's part in one.

use super::scalar::time;
use super::{Result, ToModel, ToPb, all_by_name, enum_pairs, enumeration, map, span, to_span, to_uuid, uuid};
use crate::pb;
use model::{AllocDeployment, AllocId, Deployment, DeploymentGroup, DeploymentStatus, DeploymentUpdate, Index, JobId};

impl ToPb<pb::Deployment> for Deployment {
    fn to_pb(&self) -> pb::Deployment {
        pb::Deployment {
            id: to_uuid(self.id.0),
            job_id: self.job_id.0.clone(),
            job_version: self.job_version,
            status: self.status.to_pb().into(),
            status_description: self.status_description.clone(),
            groups: all_by_name(&self.groups),
            created_at: self.created_at.0,
            modified_at: self.modified_at.0,
            created_at_index: self.created_at_index.0,
            modified_at_index: self.modified_at_index.0,
        }
    }
}

impl ToModel<Deployment> for pb::Deployment {
    fn to_model(self) -> Result<Deployment> {
        Ok(Deployment {
            id: uuid(&self.id, "id")?,
            job_id: JobId(self.job_id),
            job_version: self.job_version,
            status: enumeration::<pb::DeploymentStatus, _>(self.status, "status")?,
            status_description: self.status_description,
            groups: map(self.groups, "groups")?,
            created_at: time(self.created_at),
            modified_at: time(self.modified_at),
            created_at_index: Index(self.created_at_index),
            modified_at_index: Index(self.modified_at_index),
        })
    }
}

impl ToPb<pb::DeploymentGroup> for DeploymentGroup {
    fn to_pb(&self) -> pb::DeploymentGroup {
        pb::DeploymentGroup {
            auto_revert: self.auto_revert,
            auto_promote: self.auto_promote,
            progress_deadline: Some(to_span(self.progress_deadline)),
            require_progress_by: self.require_progress_by.0,
            promoted: self.promoted,
            desired_canaries: self.desired_canaries,
            desired_total: self.desired_total,
            placed_canaries: to_ids(&self.placed_canaries),
            placed: self.placed,
            healthy: self.healthy,
            unhealthy: self.unhealthy,
        }
    }
}

impl ToModel<DeploymentGroup> for pb::DeploymentGroup {
    fn to_model(self) -> Result<DeploymentGroup> {
        Ok(DeploymentGroup {
            auto_revert: self.auto_revert,
            auto_promote: self.auto_promote,
            progress_deadline: span(self.progress_deadline, "progress_deadline")?,
            require_progress_by: time(self.require_progress_by),
            promoted: self.promoted,
            desired_canaries: self.desired_canaries,
            desired_total: self.desired_total,
            placed_canaries: ids(&self.placed_canaries, "placed_canaries")?,
            placed: self.placed,
            healthy: self.healthy,
            unhealthy: self.unhealthy,
        })
    }
}

impl ToPb<pb::AllocDeployment> for AllocDeployment {
    fn to_pb(&self) -> pb::AllocDeployment {
        let (healthy, changed_at, canary) = (self.healthy, self.changed_at.0, self.canary);
        pb::AllocDeployment { id: to_uuid(self.id.0), healthy, changed_at, canary }
    }
}

impl ToModel<AllocDeployment> for pb::AllocDeployment {
    fn to_model(self) -> Result<AllocDeployment> {
        let (id, changed_at) = (uuid(&self.id, "id")?, time(self.changed_at));
        Ok(AllocDeployment { id, healthy: self.healthy, changed_at, canary: self.canary })
    }
}

impl ToPb<pb::DeploymentUpdate> for DeploymentUpdate {
    fn to_pb(&self) -> pb::DeploymentUpdate {
        pb::DeploymentUpdate {
            id: to_uuid(self.id.0),
            healthy: to_ids(&self.healthy),
            unhealthy: to_ids(&self.unhealthy),
            promote: self.promote.clone(),
            status: self.status.map(|status| status.to_pb().into()),
            status_description: self.status_description.clone(),
            revert: self.revert,
        }
    }
}

impl ToModel<DeploymentUpdate> for pb::DeploymentUpdate {
    fn to_model(self) -> Result<DeploymentUpdate> {
        let status = |number| enumeration::<pb::DeploymentStatus, _>(number, "status");
        Ok(DeploymentUpdate {
            id: uuid(&self.id, "id")?,
            healthy: ids(&self.healthy, "healthy")?,
            unhealthy: ids(&self.unhealthy, "unhealthy")?,
            promote: self.promote,
            status: self.status.map(status).transpose()?,
            status_description: self.status_description,
            revert: self.revert,
        })
    }
}

fn to_ids(ids: &[AllocId]) -> Vec<Vec<u8>> {
    ids.iter().map(|id| to_uuid(id.0)).collect()
}

fn ids(ids: &[Vec<u8>], field: &str) -> Result<Vec<AllocId>> {
    ids.iter().enumerate().map(|(position, id)| uuid(id, &format!("{field}[{position}]"))).collect()
}

enum_pairs!(DeploymentStatus, pb::DeploymentStatus, Running, Paused, Successful, Failed, Cancelled);
