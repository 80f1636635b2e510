//! Deployments: started by plans, moved on by what is decided about health, promotion and failure, counted from
//! allocations. What is decided is decided elsewhere; here it takes effect, and only while the deployment lasts.

use crate::allocs::remove_member;
use crate::{At, Catalog, StoredJob};
use model::{
    AllocDeployment, AllocId, Allocation, ClientStatus, Deployment, DeploymentGroup, DeploymentId, DeploymentStatus,
    DeploymentUpdate, DesiredStatus, Evaluation, Job, JobId, Refusal, Table,
};
use std::sync::Arc;

/// Deployments that a job keeps for its history.
const KEPT_MAX: usize = 16;

impl Catalog {
    /// The newest version's own; any other one of the job that is still active has been cancelled by the registration.
    pub(crate) fn start_deployment(&mut self, at: At, job_id: &JobId, asked: &Deployment) {
        let current = self.job(job_id).map(|job| job.version);
        let known = self.deployments.contains_key(&asked.id);
        let exists =
            self.deployments_of_job(job_id).any(|other| Some(other.job_version) == current && other.is_active());
        if known || exists || asked.job_id != *job_id || Some(asked.job_version) != current {
            return;
        }
        self.put_deployment(at, Deployment { created_at: at.time, created_at_index: at.index, ..asked.clone() });
        self.prune_deployments(at, job_id);
    }

    /// What an allocation of `group` that is placed or updated now is in the job's deployment.
    pub(crate) fn part_in_deployment(&self, at: At, job: &Job, group: &str, canary: bool) -> Option<AllocDeployment> {
        let deployment = self.active_deployment(&job.id)?;
        let takes_part = deployment.job_version == job.version && deployment.groups.contains_key(group);
        takes_part.then(|| AllocDeployment { id: deployment.id, healthy: None, changed_at: at.time, canary })
    }

    pub(crate) fn update_deployment(
        &mut self,
        at: At,
        update: &DeploymentUpdate,
        eval: &Evaluation,
    ) -> Result<(), Refusal> {
        let known = self.deployments.get(&update.id).ok_or(Refusal::DeploymentUnknown { id: update.id })?.clone();
        if !known.is_active() {
            return Err(Refusal::DeploymentEnded { id: known.id, status: known.status });
        }
        if eval.job_id != known.job_id {
            return Err(Refusal::EvalMismatch { id: eval.id, job_id: eval.job_id.clone() });
        }
        self.decide_health(at, known.id, &update.healthy, true);
        self.decide_health(at, known.id, &update.unhealthy, false);
        let mut next = self.counted(&known);
        extend_deadlines(&known, &mut next, at);
        self.promote(at, &mut next, &update.promote)?;
        if let Some(status) = update.status {
            next.status = status;
        }
        if !update.status_description.is_empty() {
            next.status_description = update.status_description.clone();
        }
        self.put_deployment(at, next.clone());
        match next.status {
            DeploymentStatus::Successful => self.mark_stable(at, &next),
            DeploymentStatus::Failed if update.revert => self.revert(at, &next),
            _ => {}
        }
        self.upsert_eval(at, eval);
        Ok(())
    }

    fn decide_health(&mut self, at: At, id: DeploymentId, allocs: &[AllocId], healthy: bool) {
        let known: Vec<Arc<Allocation>> = allocs.iter().filter_map(|alloc| self.allocs.get(alloc)).cloned().collect();
        for alloc in known {
            let Some(part) = alloc.deployment.clone().filter(|part| part.id == id && part.healthy != Some(healthy))
            else {
                continue;
            };
            let part = AllocDeployment { healthy: Some(healthy), changed_at: at.time, ..part };
            self.put_alloc(at, Allocation { deployment: Some(part), ..Allocation::clone(&alloc) });
        }
    }

    /// All or nothing of what is asked for: a canary that does not work is no reason to go on.
    fn promote(&mut self, at: At, deployment: &mut Deployment, groups: &[String]) -> Result<(), Refusal> {
        let (job_id, id) = (deployment.job_id.clone(), deployment.id);
        for name in groups {
            let group = deployment.groups.get_mut(name).filter(|group| group.awaits_promotion());
            let Some(group) = group else {
                return Err(Refusal::NotPromotable {
                    reason: format!("Task group {name:?} has no canaries to promote"),
                });
            };
            let healthy = self.healthy_canaries(&job_id, id, name);
            if healthy < group.desired_canaries {
                let reason =
                    format!("Task group {name:?} has {healthy}/{} healthy allocations", group.desired_canaries);
                return Err(Refusal::NotPromotable { reason });
            }
            group.promoted = true;
            group.require_progress_by = at.time.plus(group.progress_deadline);
            self.unmark_canaries(at, &job_id, id, name);
        }
        Ok(())
    }

    fn healthy_canaries(&self, job_id: &JobId, id: DeploymentId, group: &str) -> u32 {
        let healthy = |alloc: &&Arc<Allocation>| {
            alloc.group == group
                && takes_part(alloc, id)
                && alloc.is_canary()
                && alloc.health_in(id) == Some(Some(true))
        };
        count(self.allocs_of_job(job_id).filter(healthy))
    }

    /// From here on they hold their slots like all others.
    fn unmark_canaries(&mut self, at: At, job_id: &JobId, id: DeploymentId, group: &str) {
        let canary = |alloc: &&Arc<Allocation>| alloc.group == group && takes_part(alloc, id) && alloc.is_canary();
        let canaries: Vec<Arc<Allocation>> = self.allocs_of_job(job_id).filter(canary).cloned().collect();
        for alloc in canaries {
            let deployment = alloc.deployment.clone().map(|part| AllocDeployment { canary: false, ..part });
            self.put_alloc(at, Allocation { deployment, ..Allocation::clone(&alloc) });
        }
    }

    fn mark_stable(&mut self, at: At, deployment: &Deployment) {
        let Some(known) = self.jobs.get(&deployment.job_id) else { return };
        let mut stored = StoredJob::clone(known);
        for job in stored.versions.iter_mut().filter(|job| job.version == deployment.job_version && !job.stable) {
            *job = Arc::new(Job { stable: true, ..Job::clone(job) });
        }
        self.put_job(at, stored);
    }

    /// Registers the newest stable version again, unless it asks for the same as the one that failed.
    fn revert(&mut self, at: At, failed: &Deployment) {
        let Some(known) = self.jobs.get(&failed.job_id) else { return };
        let newest = known.newest();
        let stable = known.versions.iter().find(|job| job.stable && job.version < failed.job_version);
        let Some(stable) = stable.filter(|job| newest.version == failed.job_version && !job.same_specification(newest))
        else {
            return;
        };
        let asked = Job { submitted_at: at.time, ..Job::clone(stable) };
        let stored = crate::jobs::registered_again(known, &asked, at.index);
        self.put_job(at, stored);
    }

    /// Cancels what is active, but for the deployment of the version `kept`.
    pub(crate) fn cancel_deployments(&mut self, at: At, job_id: &JobId, kept: Option<u64>, reason: &str) {
        let active = self.deployments_of_job(job_id).filter(|deployment| deployment.is_active());
        let others: Vec<Arc<Deployment>> =
            active.filter(|deployment| Some(deployment.job_version) != kept).cloned().collect();
        for deployment in others {
            let (status, status_description) = (DeploymentStatus::Cancelled, reason.to_owned());
            self.put_deployment(at, Deployment { status, status_description, ..Deployment::clone(&deployment) });
        }
    }

    /// Counts the job's active deployment anew after its allocations changed.
    pub(crate) fn count_deployment_of(&mut self, at: At, job_id: &JobId) {
        let Some(deployment) = self.active_deployment(job_id).cloned() else { return };
        let counted = self.counted(&deployment);
        if counted != *deployment {
            self.put_deployment(at, counted);
        }
    }

    fn counted(&self, deployment: &Deployment) -> Deployment {
        let mut counted = deployment.clone();
        let allocs: Vec<&Arc<Allocation>> =
            self.allocs_of_job(&deployment.job_id).filter(|alloc| takes_part(alloc, deployment.id)).collect();
        for (name, group) in &mut counted.groups {
            let of_group = || allocs.iter().filter(|alloc| alloc.group == *name);
            let with = |health| count(of_group().filter(|alloc| alloc.health_in(deployment.id) == Some(health)));
            group.placed = count(of_group());
            group.healthy = with(Some(true));
            group.unhealthy = with(Some(false));
            note_canaries(group, of_group().filter(|alloc| alloc.is_canary()).map(|alloc| alloc.id));
        }
        counted
    }

    fn active_deployment(&self, job_id: &JobId) -> Option<&Arc<Deployment>> {
        self.deployments_of_job(job_id).find(|deployment| deployment.is_active())
    }

    fn put_deployment(&mut self, at: At, mut deployment: Deployment) {
        deployment.modified_at = at.time;
        deployment.modified_at_index = at.index;
        self.insert_deployment(Arc::new(deployment));
        self.touch(Table::Deployments, at);
    }

    pub(crate) fn insert_deployment(&mut self, deployment: Arc<Deployment>) {
        self.deployments_by_job.entry(deployment.job_id.clone()).or_default().insert(deployment.id);
        self.deployments.insert(deployment.id, deployment);
    }

    fn prune_deployments(&mut self, at: At, job_id: &JobId) {
        let mut ended: Vec<_> = self
            .deployments_of_job(job_id)
            .filter(|deployment| !deployment.is_active())
            .map(|deployment| (deployment.created_at_index, deployment.id))
            .collect();
        ended.sort();
        let surplus = ended.len().saturating_sub(KEPT_MAX);
        ended[..surplus].iter().for_each(|(_, id)| self.forget_deployment(at, *id));
    }

    pub(crate) fn forget_deployments(&mut self, at: At, job_id: &JobId) {
        let ids: Vec<DeploymentId> = self.deployments_of_job(job_id).map(|deployment| deployment.id).collect();
        ids.into_iter().for_each(|id| self.forget_deployment(at, id));
    }

    pub(crate) fn forget_deployment(&mut self, at: At, id: DeploymentId) {
        let Some(deployment) = self.deployments.remove(&id) else { return };
        remove_member(&mut self.deployments_by_job, &deployment.job_id, id);
        self.touch(Table::Deployments, at);
    }
}

fn takes_part(alloc: &Allocation, id: DeploymentId) -> bool {
    let failed = alloc.client == ClientStatus::Failed && alloc.health_in(id) == Some(Some(false));
    alloc.health_in(id).is_some() && alloc.desired == DesiredStatus::Run && (alloc.is_live() || failed)
}

fn count<T>(items: impl Iterator<Item = T>) -> u32 {
    u32::try_from(items.count()).unwrap_or(u32::MAX)
}

/// Those that were canaries stay listed.
fn note_canaries(group: &mut DeploymentGroup, ids: impl Iterator<Item = AllocId>) {
    for id in ids {
        if !group.placed_canaries.contains(&id) {
            group.placed_canaries.push(id);
        }
    }
}

/// Only more healthy allocations are progress.
fn extend_deadlines(before: &Deployment, next: &mut Deployment, at: At) {
    for (name, group) in &mut next.groups {
        if before.groups.get(name).is_some_and(|before| before.healthy < group.healthy) {
            group.require_progress_by = at.time.plus(group.progress_deadline);
        }
    }
}
