//! What no allocation of this node owns and yet is there: tasks, cgroups, networks. Looked for at every start and each
//! minute, and removed.

use super::Shell;
use super::runner::report;
use drivers::TaskHandle;
use drivers::cgroup::{Cgroup, Hierarchies};
use model::AllocId;
use std::collections::BTreeSet;
use std::path::{Path, PathBuf};
use std::time::Duration;

/// Lines for the log: what was removed, and what could not be. `known` are the allocations with a record, `living` those
/// of them that have not ended.
pub async fn clear(shell: &Shell, known: &BTreeSet<AllocId>, living: &BTreeSet<AllocId>) -> Vec<String> {
    let mut lines = end_orphans(&shell.data.allocs(), living).await;
    let (node, kept) = (shell.node.id.short(), living.clone());
    let cgroups = tokio::task::spawn_blocking(move || clear_cgroups(&node, &kept)).await;
    lines.extend(cgroups.unwrap_or_else(|error| vec![format!("cgroups were not looked at: {error}")]));
    if let Err(reason) = shell.data_path.retain(living.iter().copied().collect()).await {
        lines.push(format!("networks of ended allocations are still there: {reason}"));
    }
    crate::files::release_ended(&shell.data.allocs(), living);
    lines.extend(crate::driver_set::tidy(&shell.drivers, &shell.node.id.short(), living).await);
    tracing::debug!(known = known.len(), living = living.len(), "looked for what nobody owns");
    lines
}

/// Supervisors of allocations that this node has no living record of.
async fn end_orphans(allocs: &Path, living: &BTreeSet<AllocId>) -> Vec<String> {
    let mut lines = Vec::new();
    for control in orphans(allocs, living) {
        let ended = end(&control).await;
        match ended {
            Ok(false) => {}
            Ok(true) => lines.push(format!("the task of {}", control.display())),
            Err(reason) => lines.push(format!("the task of {} is still there: {reason}", control.display())),
        }
    }
    lines
}

fn orphans(allocs: &Path, living: &BTreeSet<AllocId>) -> Vec<PathBuf> {
    let kept: BTreeSet<String> = living.iter().map(ToString::to_string).collect();
    let foreign = children(allocs)
        .into_iter()
        .filter(|dir| dir.file_name().is_some_and(|name| !kept.contains(&*name.to_string_lossy())));
    let controls = foreign.flat_map(|alloc| children(&alloc)).map(|task| task.join("control"));
    controls.filter(|control| control.is_dir()).collect()
}

fn children(dir: &Path) -> Vec<PathBuf> {
    std::fs::read_dir(dir).into_iter().flatten().flatten().map(|entry| entry.path()).collect()
}

/// Whether there was one.
async fn end(control: &Path) -> Result<bool, String> {
    let Some(handle) = TaskHandle::adopt(control).await.map_err(|error| report(&error))? else {
        // A place that was made for a task, and no task.
        return std::fs::remove_dir_all(control).map(|()| false).map_err(|error| error.to_string());
    };
    handle.kill("SIGKILL", Duration::ZERO).await.map_err(|error| report(&error))?;
    handle.forget().await.map_err(|error| report(&error))?;
    Ok(true)
}

/// Cgroups of allocations that nothing runs of any more, with whatever is left in them.
fn clear_cgroups(node: &str, living: &BTreeSet<AllocId>) -> Vec<String> {
    let on = match Hierarchies::detect() {
        Ok(on) => on,
        Err(error) => return vec![format!("cgroups were not looked at: {error}")],
    };
    let kept: BTreeSet<String> = living.iter().map(ToString::to_string).collect();
    let mounts: BTreeSet<&PathBuf> = on.v1.values().chain(&on.v2).collect();
    let mut left: BTreeSet<(String, String)> = BTreeSet::new();
    for mount in &mounts {
        for alloc in children(&mount.join("meshctl").join(node)).into_iter().filter(|path| path.is_dir()) {
            let name = name_of(&alloc);
            if name == "supervisors" || kept.contains(&name) {
                continue;
            }
            left.extend(children(&alloc).iter().filter(|path| path.is_dir()).map(|task| (name.clone(), name_of(task))));
            // Empty: its last task left it behind.
            let _ = std::fs::remove_dir(&alloc);
        }
    }
    left.into_iter().map(|(alloc, task)| clear_cgroup(&on, node, &alloc, &task)).collect()
}

fn clear_cgroup(on: &Hierarchies, node: &str, alloc: &str, task: &str) -> String {
    let path: PathBuf = ["meshctl", node, alloc, task].iter().collect();
    let v1 = on.v1.iter().map(|(name, mount)| (name.clone(), mount.join(&path))).collect();
    let cgroup = Cgroup { v2: on.v2.as_ref().map(|mount| mount.join(&path)), v1 };
    match cgroup.kill_all().and_then(|()| cgroup.remove()) {
        Ok(()) => format!("the cgroup {}", path.display()),
        Err(error) => format!("the cgroup {} is still there: {}", path.display(), report(&error)),
    }
}

fn name_of(path: &Path) -> String {
    path.file_name().map(|name| name.to_string_lossy().into_owned()).unwrap_or_default()
}
