//! Deployments: one version of a job on its way out to its allocations, watched until it works everywhere or fails.

use crate::alloc::Allocation;
use crate::ids::{AllocId, DeploymentId, Index, JobId};
use crate::job::{Job, TaskGroup};
use crate::policy::UpdatePolicy;
use crate::time::Timestamp;
use std::collections::BTreeMap;
use std::time::Duration;

#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Deployment {
    pub id: DeploymentId,
    pub job_id: JobId,
    pub job_version: u64,
    pub status: DeploymentStatus,
    pub status_description: String,
    /// The groups with an `update` policy, by name.
    pub groups: BTreeMap<String, DeploymentGroup>,
    pub created_at: Timestamp,
    pub modified_at: Timestamp,
    pub created_at_index: Index,
    pub modified_at_index: Index,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum DeploymentStatus {
    Running,
    /// Nothing new is placed or replaced until it is resumed.
    Paused,
    Successful,
    Failed,
    /// A newer version took its place, or the job was stopped.
    Cancelled,
}

/// Counts are of allocations of the deployment that are to run; they stay as they are once it has ended.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct DeploymentGroup {
    pub auto_revert: bool,
    pub auto_promote: bool,
    pub progress_deadline: Duration,
    /// The deployment fails at this time, unless an allocation turns healthy before.
    pub require_progress_by: Timestamp,
    pub promoted: bool,
    pub desired_canaries: u32,
    pub desired_total: u32,
    pub placed_canaries: Vec<AllocId>,
    pub placed: u32,
    pub healthy: u32,
    pub unhealthy: u32,
}

/// An allocation's part in a deployment.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct AllocDeployment {
    pub id: DeploymentId,
    /// `None` until it is decided.
    pub healthy: Option<bool>,
    /// When it joined, or when its health was decided.
    pub changed_at: Timestamp,
    pub canary: bool,
}

/// One step of a deployment; what is not set stays.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct DeploymentUpdate {
    pub id: DeploymentId,
    pub healthy: Vec<AllocId>,
    pub unhealthy: Vec<AllocId>,
    /// Groups whose canaries are to be promoted.
    pub promote: Vec<String>,
    pub status: Option<DeploymentStatus>,
    pub status_description: String,
    /// Registers the newest stable version again.
    pub revert: bool,
}

impl Deployment {
    /// Whether anything may still come of it.
    pub fn is_active(&self) -> bool {
        matches!(self.status, DeploymentStatus::Running | DeploymentStatus::Paused)
    }

    /// Whether its canaries wait for somebody's word.
    pub fn awaits_promotion(&self) -> bool {
        self.is_active() && self.groups.values().any(DeploymentGroup::awaits_promotion)
    }
}

impl DeploymentGroup {
    pub fn new(group: &TaskGroup, policy: &UpdatePolicy, canaries: u32, now: Timestamp) -> Self {
        Self {
            auto_revert: policy.auto_revert,
            auto_promote: policy.auto_promote,
            progress_deadline: policy.progress_deadline,
            require_progress_by: now.plus(policy.progress_deadline),
            promoted: false,
            desired_canaries: canaries,
            desired_total: group.count,
            placed_canaries: Vec::new(),
            placed: 0,
            healthy: 0,
            unhealthy: 0,
        }
    }

    pub fn awaits_promotion(&self) -> bool {
        self.desired_canaries > 0 && !self.promoted
    }

    pub fn is_complete(&self) -> bool {
        !self.awaits_promotion() && self.healthy >= self.desired_total
    }
}

impl DeploymentUpdate {
    pub fn of(id: DeploymentId) -> Self {
        Self {
            id,
            healthy: Vec::new(),
            unhealthy: Vec::new(),
            promote: Vec::new(),
            status: None,
            status_description: String::new(),
            revert: false,
        }
    }

    pub fn changes_nothing(&self) -> bool {
        *self == Self::of(self.id)
    }
}

impl DeploymentStatus {
    pub fn as_str(self) -> &'static str {
        match self {
            DeploymentStatus::Running => "running",
            DeploymentStatus::Paused => "paused",
            DeploymentStatus::Successful => "successful",
            DeploymentStatus::Failed => "failed",
            DeploymentStatus::Cancelled => "cancelled",
        }
    }
}

impl Allocation {
    /// Its health in the deployment `id`; the outer `None` when it is not part of it.
    pub fn health_in(&self, id: DeploymentId) -> Option<Option<bool>> {
        self.deployment.as_ref().filter(|deployment| deployment.id == id).map(|deployment| deployment.healthy)
    }
}

impl Job {
    /// Whether a new version of it is rolled out by a deployment.
    pub fn deploys(&self) -> bool {
        self.kind == crate::job::JobKind::Service
            && self.groups.iter().any(|group| group.update.is_some_and(|policy| policy.deploys()))
    }
}
