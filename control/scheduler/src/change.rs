//! What a new job version means for an allocation of an older one: nothing restarts, or the allocation is replaced.

use model::{Job, Task, TaskGroup};
use std::collections::BTreeMap;

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum GroupChange {
    /// Counts, services, checks, constraints, policies, priority: the allocation adopts the new version as it runs.
    InPlace,
    /// What the processes were started with is different.
    Destructive,
}

/// How an allocation of `group` in `old` gets to `new`. A group that either lacks is replaced.
pub fn group_change(old: &Job, new: &Job, group: &str) -> GroupChange {
    let started_alike = old
        .group(group)
        .zip(new.group(group))
        .is_some_and(|(before, after)| started_with(old, before) == started_with(new, after));
    if started_alike { GroupChange::InPlace } else { GroupChange::Destructive }
}

/// The parts of a group that its processes see once, when they start; tasks by name, for their order does not matter.
fn started_with<'a>(job: &'a Job, group: &'a TaskGroup) -> impl PartialEq + use<'a> {
    let tasks: BTreeMap<&str, _> =
        group.tasks.iter().map(|task| (task.name.as_str(), task_started_with(job, group, task))).collect();
    (&group.network, group.disk_mb, (group.disk_sticky, group.disk_migrate), &group.volumes, tasks)
}

fn task_started_with<'a>(job: &'a Job, group: &'a TaskGroup, task: &'a Task) -> impl PartialEq + use<'a> {
    let process = (&task.driver, &task.user, &task.env, task.resources, &task.devices);
    let files = (&task.artifacts, &task.templates, &task.volume_mounts, &task.payload_file);
    (process, files, task.lifecycle, task.leader, combined_meta(job, group, task))
}

fn combined_meta<'a>(job: &'a Job, group: &'a TaskGroup, task: &'a Task) -> BTreeMap<&'a str, &'a str> {
    let all = job.meta.iter().chain(&group.meta).chain(&task.meta);
    all.map(|(key, value)| (key.as_str(), value.as_str())).collect()
}
