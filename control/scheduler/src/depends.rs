//! `depends_on`: what has to work before the first allocation of a job is placed.

use model::{Allocation, ClientStatus, Dependency, DesiredStatus, Job, JobId, TaskGroup};
use std::time::Duration;

/// How often a job that waits for others is looked at again.
pub(crate) const LOOK_AGAIN_AFTER: Duration = Duration::from_secs(5);

/// What a job waits for, a sentence each; empty when it may start. `lookup` gives another job with its allocations, the
/// ended ones too. A batch job is waited for until its work is done, any other until it works.
pub fn unmet<'a>(job: &Job, lookup: impl Fn(&JobId) -> Option<(&'a Job, Vec<&'a Allocation>)>) -> Vec<String> {
    let reason = |dependency: &Dependency| {
        let id = JobId(dependency.job.clone());
        let name = name_of(dependency);
        let Some((other, allocs)) = lookup(&id) else {
            return Some(format!("depends_on {name}: no such job is registered"));
        };
        if other.stopped {
            return Some(format!("depends_on {name}: the job is stopped"));
        }
        let groups: Vec<&TaskGroup> = other.groups.iter().filter(|group| is_meant(dependency, group)).collect();
        if groups.is_empty() {
            return Some(format!("depends_on {name}: the job has no such group"));
        }
        groups
            .into_iter()
            .find_map(|group| lacking(other, group, &allocs))
            .map(|lack| format!("depends_on {name}: {lack}"))
    };
    job.depends_on.iter().filter_map(reason).collect()
}

fn name_of(dependency: &Dependency) -> String {
    match &dependency.group {
        Some(group) => format!("{}/{group}", dependency.job),
        None => dependency.job.clone(),
    }
}

fn is_meant(dependency: &Dependency, group: &TaskGroup) -> bool {
    dependency.group.as_ref().is_none_or(|name| *name == group.name)
}

fn lacking(job: &Job, group: &TaskGroup, allocs: &[&Allocation]) -> Option<String> {
    let of_group: Vec<&&Allocation> = allocs.iter().filter(|alloc| alloc.group == group.name).collect();
    let (done, verb) = match job.kind.ends() {
        true => (of_group.iter().filter(|alloc| is_done(alloc)).count(), "are done"),
        false => (of_group.iter().filter(|alloc| alloc.is_healthy()).count(), "work"),
    };
    let wanted = match job.kind.is_on_every_node() {
        true => of_group.iter().filter(|alloc| alloc.desired == DesiredStatus::Run).count().max(1),
        false => group.count as usize,
    };
    (done < wanted).then(|| format!("{done} of {wanted} allocations of {} {verb}", group.name))
}

fn is_done(alloc: &Allocation) -> bool {
    alloc.client == ClientStatus::Complete && alloc.desired == DesiredStatus::Run
}
