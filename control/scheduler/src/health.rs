//! What becomes of a deployment: which of its allocations have proven themselves, whether its canaries are promoted,
//! whether it has succeeded or failed. A pure function of what was reported and the time.

use model::{
    AllocDeployment, Allocation, ClientStatus, Deployment, DeploymentGroup, DeploymentStatus, DeploymentUpdate,
    DesiredStatus, HealthCheck, Job, TaskPhase, Timestamp, UpdatePolicy,
};
use std::sync::Arc;

/// The step to take now; it may change nothing. `versions` are the job's, `allocs` all of the job's.
pub fn watch<'a>(
    deployment: &Deployment,
    versions: &[Arc<Job>],
    allocs: impl Iterator<Item = &'a Allocation>,
    now: Timestamp,
) -> DeploymentUpdate {
    let mut update = DeploymentUpdate::of(deployment.id);
    let parts: Vec<&Allocation> = allocs.filter(|alloc| is_part(alloc, deployment)).collect();
    for alloc in &parts {
        match verdict(alloc, now) {
            Some(true) => update.healthy.push(alloc.id),
            Some(false) => update.unhealthy.push(alloc.id),
            None => {}
        }
    }
    if deployment.status != DeploymentStatus::Running {
        return update;
    }
    let after = Outlook { deployment, parts: &parts, update: &update };
    if let Some(reason) = after.failure(now) {
        return failed(deployment, versions, update, reason);
    }
    if after.is_complete() {
        update.status = Some(DeploymentStatus::Successful);
        update.status_description = "Deployment completed successfully".to_owned();
    } else {
        update.promote = after.to_promote();
    }
    update
}

fn is_part(alloc: &Allocation, deployment: &Deployment) -> bool {
    alloc.health_in(deployment.id).is_some() && alloc.desired == DesiredStatus::Run
}

/// What is to be decided about an allocation now, if it is not what was decided before. One that was late may recover.
fn verdict(alloc: &Allocation, now: Timestamp) -> Option<bool> {
    let part = alloc.deployment.as_ref()?;
    let policy = alloc.task_group()?.update.unwrap_or_default();
    let decided = match alloc.client {
        ClientStatus::Failed | ClientStatus::Complete | ClientStatus::Lost => Some(false),
        _ if policy.health_check == HealthCheck::Manual => None,
        _ => proven(alloc, part, &policy, now),
    };
    let final_already = part.healthy == Some(true);
    decided.filter(|_| !final_already).filter(|decided| part.healthy != Some(*decided))
}

fn proven(alloc: &Allocation, part: &AllocDeployment, policy: &UpdatePolicy, now: Timestamp) -> Option<bool> {
    let joined = if part.healthy.is_none() { part.changed_at } else { Timestamp::NEVER };
    let since = works_since(alloc, policy.health_check).map(|since| since.max(joined));
    if since.is_some_and(|since| now >= since.plus(policy.min_healthy_time)) {
        return Some(true);
    }
    (part.healthy.is_none() && now >= part.changed_at.plus(policy.healthy_deadline)).then_some(false)
}

/// Since when every task that is to stay runs and, if they count, every check passes.
fn works_since(alloc: &Allocation, health_check: HealthCheck) -> Option<Timestamp> {
    let group = alloc.task_group()?;
    let staying = group.tasks.iter().filter(|task| task.stays());
    let states: Option<Vec<_>> = staying.map(|task| alloc.task_states.get(&task.name)).collect();
    let states = states?;
    let runs = alloc.client == ClientStatus::Running && states.iter().all(|state| state.phase == TaskPhase::Running);
    let checks_count = health_check == HealthCheck::Checks;
    if !runs || (checks_count && !alloc.is_healthy()) {
        return None;
    }
    let started = states.iter().map(|state| state.started_at);
    let passing = alloc.checks.values().filter(|_| checks_count).map(|check| check.changed_at);
    started.chain(passing).max()
}

/// The deployment as it will be once the verdicts in `update` are in.
struct Outlook<'a> {
    deployment: &'a Deployment,
    parts: &'a [&'a Allocation],
    update: &'a DeploymentUpdate,
}

impl Outlook<'_> {
    fn health(&self, alloc: &Allocation) -> Option<bool> {
        if self.update.healthy.contains(&alloc.id) {
            return Some(true);
        }
        if self.update.unhealthy.contains(&alloc.id) {
            return Some(false);
        }
        alloc.deployment.as_ref().and_then(|part| part.healthy)
    }

    fn count(&self, group: &str, wanted: impl Fn(&Allocation) -> bool) -> u32 {
        let of_group = self.parts.iter().filter(|alloc| alloc.group == group && wanted(alloc));
        u32::try_from(of_group.count()).unwrap_or(u32::MAX)
    }

    fn healthy(&self, group: &str) -> u32 {
        self.count(group, |alloc| alloc.is_live() && self.health(alloc) == Some(true))
    }

    fn canaries_are_healthy(&self, name: &str, group: &DeploymentGroup) -> bool {
        let healthy = |alloc: &Allocation| alloc.is_canary() && alloc.is_live() && self.health(alloc) == Some(true);
        self.count(name, healthy) >= group.desired_canaries
    }

    fn is_complete(&self) -> bool {
        let complete = |(name, group): (&String, &DeploymentGroup)| {
            !group.awaits_promotion() && self.healthy(name) >= group.desired_total
        };
        self.deployment.groups.iter().all(complete)
    }

    fn failure(&self, now: Timestamp) -> Option<&'static str> {
        self.deployment.groups.iter().find_map(|(name, group)| self.group_failure(name, group, now))
    }

    fn group_failure(&self, name: &str, group: &DeploymentGroup, now: Timestamp) -> Option<&'static str> {
        if group.progress_deadline.is_zero() {
            let unhealthy = self.count(name, |alloc| self.health(alloc) == Some(false));
            return (unhealthy > 0).then_some("Failed due to unhealthy allocations");
        }
        let waits_for_a_word = group.awaits_promotion() && self.canaries_are_healthy(name, group);
        let done = !group.awaits_promotion() && self.healthy(name) >= group.desired_total;
        let progressed = self.healthy(name) > group.healthy;
        let late = now >= group.require_progress_by && !waits_for_a_word && !done && !progressed;
        late.then_some("Failed due to progress deadline")
    }

    /// All groups at once, when every one of them may go by itself.
    fn to_promote(&self) -> Vec<String> {
        let waiting = self.deployment.groups.iter().filter(|(_, group)| group.awaits_promotion());
        let waiting: Vec<(&String, &DeploymentGroup)> = waiting.collect();
        let all = waiting.iter().all(|(name, group)| group.auto_promote && self.canaries_are_healthy(name, group));
        if all { waiting.into_iter().map(|(name, _)| name.clone()).collect() } else { Vec::new() }
    }
}

fn failed(deployment: &Deployment, versions: &[Arc<Job>], update: DeploymentUpdate, reason: &str) -> DeploymentUpdate {
    let asked = deployment.groups.values().any(|group| group.auto_revert);
    let stable = versions.iter().find(|job| job.stable && job.version < deployment.job_version);
    let newest = versions.first();
    let target = stable.filter(|stable| newest.is_some_and(|newest| !stable.same_specification(newest)));
    let status_description = match (asked, target) {
        (true, Some(stable)) => format!("{reason} - rolling back to job version {}", stable.version),
        (true, None) => format!("{reason} - no stable job version to auto revert to"),
        (false, _) => reason.to_owned(),
    };
    let status = Some(DeploymentStatus::Failed);
    DeploymentUpdate { status, status_description, revert: asked && target.is_some(), ..update }
}
