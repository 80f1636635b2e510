//! Where a group's rollout stands: whether a deployment watches it, and what it allows now.

use model::{Deployment, DeploymentGroup, DeploymentId, DeploymentStatus, Job, TaskGroup, Timestamp, UpdateOrder};

/// What may be done with a group.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Stage {
    /// Fill empty slots and replace what is outdated.
    Rolling,
    /// Fill empty slots; besides, only so many canaries until somebody promotes them.
    Canaries(u32),
    /// Nothing is placed.
    Paused,
    /// Empty slots are filled, nothing is replaced, what was tried out is taken back.
    Failed,
}

/// The rollout of one group.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Rollout {
    pub(crate) deployment: Option<DeploymentId>,
    pub(crate) stage: Stage,
    pub(crate) max_parallel: usize,
    pub(crate) order: UpdateOrder,
}

impl Rollout {
    /// `deployment` is the one of the job's newest version.
    pub(crate) fn of(group: &TaskGroup, deployment: Option<&Deployment>) -> Self {
        let deployed = deployment.and_then(|deployment| Some((deployment, deployment.groups.get(&group.name)?)));
        let max_parallel = match group.update.map(|policy| policy.max_parallel) {
            None => 1,
            Some(0) => group.count as usize,
            Some(most) => most as usize,
        };
        Self {
            deployment: deployed.filter(|(deployment, _)| deployment.is_active()).map(|(deployment, _)| deployment.id),
            stage: deployed.map_or(Stage::Rolling, |(deployment, state)| stage(deployment.status, state)),
            max_parallel,
            order: group.update.map_or(UpdateOrder::StopFirst, |policy| policy.order),
        }
    }
}

fn stage(status: DeploymentStatus, group: &DeploymentGroup) -> Stage {
    match status {
        DeploymentStatus::Paused => Stage::Paused,
        DeploymentStatus::Failed => Stage::Failed,
        _ if group.awaits_promotion() => Stage::Canaries(group.desired_canaries),
        _ => Stage::Rolling,
    }
}

/// The deployment that the job's newest version has, or starts now: `outdated` counts what a group has to replace.
pub(crate) fn deployment_of(
    job: &Job,
    latest: Option<&Deployment>,
    id: DeploymentId,
    outdated: impl Fn(&str) -> usize,
    now: Timestamp,
) -> Option<Deployment> {
    let of_version =
        latest.filter(|latest| latest.job_version == job.version && latest.status != DeploymentStatus::Cancelled);
    match of_version {
        Some(known) => Some(known.clone()),
        None if job.deploys() => Some(fresh(job, id, outdated, now)),
        None => None,
    }
}

fn fresh(job: &Job, id: DeploymentId, outdated: impl Fn(&str) -> usize, now: Timestamp) -> Deployment {
    let watched = job.groups.iter().filter_map(|group| {
        let policy = group.update.filter(|policy| policy.deploys())?;
        let replaced = u32::try_from(outdated(&group.name)).unwrap_or(u32::MAX);
        Some((group.name.clone(), DeploymentGroup::new(group, &policy, policy.canary.min(replaced), now)))
    });
    Deployment {
        id,
        job_id: job.id.clone(),
        job_version: job.version,
        status: DeploymentStatus::Running,
        status_description: "Deployment is running".to_owned(),
        groups: watched.collect(),
        created_at: now,
        modified_at: now,
        created_at_index: Default::default(),
        modified_at_index: Default::default(),
    }
}
