//! Jobs: registration with versions, what is made from templates, restarting, stopping and purging.

use crate::allocs::remove_member;
use crate::services::service_names;
use crate::{At, Catalog, StoredJob};
use model::{AllocId, Evaluation, Index, Job, JobId, JobKind, JobRecord, Refusal, Table, TaskGroup, Timestamp, rules};
use std::collections::BTreeSet;
use std::sync::Arc;

/// Nomad's `job_max_count`.
const COUNT_MAX: u64 = 50_000;

impl Catalog {
    /// Decided here, where commands are in order, so that of two who planned from the same job one is told.
    pub(crate) fn check_job_index(&self, id: &JobId, enforced: Option<Index>) -> Result<(), Refusal> {
        let current = self.jobs.get(id).map_or(Index(0), |stored| stored.job_modified_at_index);
        match enforced {
            Some(expected) if expected != current => {
                Err(Refusal::JobIndexConflict { id: id.clone(), expected, current })
            }
            _ => Ok(()),
        }
    }

    pub(crate) fn register_job(&mut self, at: At, asked: &Job, eval: &Evaluation) -> Result<(), Refusal> {
        check_job(asked)?;
        check_eval(&asked.id, eval)?;
        self.check_kind(asked)?;
        self.assign_vips(asked)?;
        let stored = match self.jobs.get(&asked.id) {
            Some(known) => registered_again(known, asked, at.index),
            None => first_registration(asked, at.index),
        };
        let version = stored.newest().version;
        self.put_job(at, stored);
        self.cancel_deployments(at, &asked.id, Some(version), "a newer version of the job took its place");
        // Nothing of a template is placed.
        if !asked.is_template() {
            self.upsert_eval(at, eval);
        }
        Ok(())
    }

    /// Repeated with a token that made a job already, it changes nothing: the caller finds that job.
    pub(crate) fn dispatch_job(&mut self, at: At, child: &Job, eval: &Evaluation) -> Result<(), Refusal> {
        let refuse = |reason: &str| Err(Refusal::JobInvalid { id: child.id.clone(), reason: reason.to_owned() });
        let Some(parent) = child.parent.as_ref().and_then(|id| self.job(id)).cloned() else {
            return Err(Refusal::JobUnknown { id: child.parent.clone().unwrap_or_else(|| child.id.clone()) });
        };
        if parent.parameterized.is_none() || child.is_template() {
            return refuse("only a parameterized job can be dispatched");
        }
        if parent.stopped {
            return refuse("the parameterized job is stopped; register it again first");
        }
        if child.payload.len() > rules::PAYLOAD_BYTES_MAX {
            return refuse("the payload must not be larger than 16 KiB");
        }
        let token = &child.dispatch_token;
        let is_repeated = !token.is_empty() && self.children(&parent.id).any(|other| other.dispatch_token == *token);
        if is_repeated {
            return Ok(());
        }
        if self.jobs.contains_key(&child.id) {
            return refuse("a job with this id exists; dispatch again");
        }
        self.register_job(at, child, eval)
    }

    /// Two leaders may launch for one time: the second changes nothing.
    pub(crate) fn launch_periodic(
        &mut self,
        at: At,
        parent: &JobId,
        launch: Timestamp,
        child: Option<&Job>,
        eval: &Evaluation,
    ) -> Result<(), Refusal> {
        let known = self.jobs.get(parent).ok_or_else(|| Refusal::JobUnknown { id: parent.clone() })?.clone();
        let refuse = |reason: &str| Err(Refusal::JobInvalid { id: parent.clone(), reason: reason.to_owned() });
        if known.newest().periodic.is_none() || known.newest().stopped {
            return refuse("it is not periodic, or stopped");
        }
        if child.is_some_and(|child| child.parent.as_ref() != Some(parent) || child.is_template()) {
            return refuse("what is launched has to be a job made from it");
        }
        if launch > known.launched_for {
            self.put_job(at, StoredJob { launched_for: launch, ..StoredJob::clone(&known) });
        }
        match child.filter(|child| !self.jobs.contains_key(&child.id)) {
            Some(child) => self.register_job(at, child, eval),
            None => Ok(()),
        }
    }

    pub(crate) fn mark_version(&mut self, at: At, id: &JobId, version: u64, stable: bool) -> Result<(), Refusal> {
        let known = self.jobs.get(id).ok_or_else(|| Refusal::JobUnknown { id: id.clone() })?;
        let mut stored = StoredJob::clone(known);
        let Some(job) = stored.versions.iter_mut().find(|job| job.version == version) else {
            let reason = format!("version {version} is not kept; see `meshctl job history`");
            return Err(Refusal::JobInvalid { id: id.clone(), reason });
        };
        if job.stable != stable {
            *job = Arc::new(Job { stable, ..Job::clone(job) });
            self.put_job(at, stored);
        }
        Ok(())
    }

    /// The same specification under a new version number.
    pub(crate) fn restart_job(&mut self, at: At, id: &JobId, eval: &Evaluation) -> Result<(), Refusal> {
        check_eval(id, eval)?;
        let known = self.jobs.get(id).ok_or_else(|| Refusal::JobUnknown { id: id.clone() })?;
        let newest = known.newest();
        let refuse = |reason: &str| Err(Refusal::JobInvalid { id: id.clone(), reason: reason.to_owned() });
        if newest.stopped || newest.is_template() {
            return refuse("nothing of it runs that could be restarted");
        }
        let restarts = newest.restarts.wrapping_add(1);
        let again = Job { version: newest.version + 1, restarts, submitted_at: at.time, ..Job::clone(newest) };
        let stored = with_version(StoredJob::clone(known), Job { stable: false, ..again }, at.index);
        let version = stored.newest().version;
        self.put_job(at, stored);
        self.cancel_deployments(at, id, Some(version), "the job was restarted");
        self.upsert_eval(at, eval);
        Ok(())
    }

    /// What a job is made of may change, not what it is.
    fn check_kind(&self, asked: &Job) -> Result<(), Refusal> {
        let Some(known) = self.job(&asked.id).filter(|known| !known.stopped) else { return Ok(()) };
        let refuse = |reason: &str| Err(Refusal::JobInvalid { id: asked.id.clone(), reason: reason.to_owned() });
        match () {
            () if known.periodic.is_some() != asked.periodic.is_some() => {
                refuse("a job that runs cannot become periodic or cease to be; stop it first, or choose another id")
            }
            () if known.parameterized.is_some() != asked.parameterized.is_some() => refuse(
                "a job that runs cannot become parameterized or cease to be; stop it first, or choose another id",
            ),
            () if known.kind != asked.kind => {
                refuse("the type of a job cannot change; stop it first, or choose another id")
            }
            () => Ok(()),
        }
    }

    pub(crate) fn deregister_job(&mut self, at: At, id: &JobId, purge: bool, eval: &Evaluation) -> Result<(), Refusal> {
        check_eval(id, eval)?;
        let known = self.jobs.get(id).ok_or_else(|| Refusal::JobUnknown { id: id.clone() })?;
        let mut stored = StoredJob { purge: known.purge || purge, ..StoredJob::clone(known) };
        if !stored.newest().stopped {
            stored.versions[0] = Arc::new(Job { stopped: true, ..Job::clone(stored.newest()) });
            stored.job_modified_at_index = at.index;
        }
        self.put_job(at, stored);
        self.cancel_deployments(at, id, None, "the job was stopped");
        self.upsert_eval(at, eval);
        self.purge_if_done(at, id);
        self.forget_orphaned_evals(at);
        Ok(())
    }

    pub(crate) fn put_job(&mut self, at: At, mut stored: StoredJob) {
        stored.modified_at_index = at.index;
        let id = stored.newest().id.clone();
        let before = self.jobs.get(&id).map(|known| declared(known.newest())).unwrap_or_default();
        if before != declared(stored.newest()) {
            self.note_services_changed(at);
        }
        self.insert_job(Arc::new(stored));
        self.touch(Table::Jobs, at);
    }

    /// The row and what is derived from it.
    pub(crate) fn insert_job(&mut self, stored: Arc<StoredJob>) {
        let job = stored.newest();
        let id = job.id.clone();
        if let Some(parent) = &job.parent {
            self.children.entry(parent.clone()).or_default().insert(id.clone());
        }
        match job.periodic {
            Some(_) => drop(self.periodic.insert(id.clone())),
            None => drop(self.periodic.remove(&id)),
        }
        self.jobs.insert(id, stored);
    }

    /// With everything that is the job's.
    pub(crate) fn forget_job(&mut self, at: At, id: &JobId) {
        let allocs: Vec<AllocId> = self.allocs_of_job(id).map(|alloc| alloc.id).collect();
        allocs.into_iter().for_each(|id| self.forget_alloc(at, id));
        self.forget_deployments(at, id);
        if let Some(parent) = self.jobs.remove(id).and_then(|stored| stored.newest().parent.clone()) {
            remove_member(&mut self.children, &parent, id.clone());
        }
        self.periodic.remove(id);
        self.touch(Table::Jobs, at);
    }

    /// Forgets a job that was to be purged, once nothing of it runs.
    pub(crate) fn purge_if_done(&mut self, at: At, id: &JobId) {
        let asked = self.jobs.get(id).is_some_and(|stored| stored.purge && stored.newest().stopped);
        if !asked || self.allocs_of_job(id).any(|alloc| alloc.is_live()) {
            return;
        }
        self.forget_job(at, id);
    }
}

/// The service names that the job declares now.
fn declared(job: &Job) -> BTreeSet<String> {
    let names = if job.stopped { None } else { Some(service_names(job)) };
    names.into_iter().flatten().map(str::to_owned).collect()
}

fn first_registration(asked: &Job, index: Index) -> StoredJob {
    StoredJob {
        versions: vec![Arc::new(Job { version: 0, stopped: false, stable: false, ..asked.clone() })],
        purge: false,
        created_at_index: index,
        modified_at_index: index,
        job_modified_at_index: index,
        launched_for: Timestamp::NEVER,
    }
}

/// A new version only if the specification changed; otherwise the newest one, running again.
pub(crate) fn registered_again(known: &StoredJob, asked: &Job, index: Index) -> StoredJob {
    let newest = known.newest();
    // How often it was restarted is not for job files to say.
    let asked = Job { restarts: newest.restarts, ..asked.clone() };
    let mut stored = StoredJob { purge: false, ..known.clone() };
    if !newest.same_specification(&asked) {
        return with_version(
            stored,
            Job { version: newest.version + 1, stopped: false, stable: false, ..asked },
            index,
        );
    }
    if newest.stopped {
        stored.versions[0] = Arc::new(Job { stopped: false, submitted_at: asked.submitted_at, ..Job::clone(newest) });
        stored.job_modified_at_index = index;
    }
    stored
}

fn with_version(mut stored: StoredJob, job: Job, index: Index) -> StoredJob {
    stored.versions.insert(0, Arc::new(job));
    stored.versions.truncate(JobRecord::VERSIONS_MAX);
    stored.job_modified_at_index = index;
    stored
}

fn check_eval(id: &JobId, eval: &Evaluation) -> Result<(), Refusal> {
    if eval.job_id != *id {
        return Err(Refusal::EvalMismatch { id: eval.id, job_id: eval.job_id.clone() });
    }
    Ok(())
}

/// The promises that `model::job` makes and that the catalog and the scheduler rely on.
fn check_job(job: &Job) -> Result<(), Refusal> {
    let refuse = |reason: &str| Err(Refusal::JobInvalid { id: job.id.clone(), reason: reason.to_owned() });
    let count: u64 = job.groups.iter().map(|group| u64::from(group.count)).sum();
    if job.id.0.is_empty() || job.id.0.len() > 255 {
        return refuse("a job id has 1 to 255 bytes");
    }
    if !(1..=100).contains(&job.priority) {
        return refuse("the priority must be from 1 to 100");
    }
    if job.datacenters.is_empty() {
        return refuse("at least one datacenter is needed; `[\"*\"]` is all of them");
    }
    if job.groups.is_empty() {
        return refuse("at least one group is needed");
    }
    if count > COUNT_MAX {
        return refuse("the counts of its groups must not add up to more than 50000");
    }
    if has_duplicates(job.groups.iter().map(|group| group.name.as_str())) {
        return refuse("group names must differ");
    }
    match job.groups.iter().find_map(|group| group_problem(group, job.kind)) {
        Some(reason) => refuse(&reason),
        None => Ok(()),
    }
}

fn group_problem(group: &TaskGroup, kind: JobKind) -> Option<String> {
    let ports = group.network.iter().flat_map(|network| &network.ports);
    if let Some(Err(reason)) = group.update.map(|policy| rules::update(&policy, kind)) {
        return Some(format!("the update of group {:?}: {reason}", group.name));
    }
    if group.tasks.is_empty() {
        return Some(format!("group {:?} needs at least one task", group.name));
    }
    if has_duplicates(group.tasks.iter().map(|task| task.name.as_str())) {
        return Some(format!("the task names of group {:?} must differ", group.name));
    }
    if has_duplicates(ports.map(|port| port.label.as_str())) {
        return Some(format!("the port labels of group {:?} must differ", group.name));
    }
    let checks_clash =
        |service: &model::Service| has_duplicates(service.checks.iter().map(|check| check.name.as_str()));
    let service = group.all_services().find(|service| checks_clash(service))?;
    Some(format!("the check names of service {:?} must differ", service.name))
}

fn has_duplicates<'a>(names: impl Iterator<Item = &'a str>) -> bool {
    let mut seen = BTreeSet::new();
    names.into_iter().any(|name| !seen.insert(name))
}
