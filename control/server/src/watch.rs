//! What time and reports bring about without anybody asking: steps of deployments, drains that go on and end, system jobs
//! on nodes that came. Decided here from a snapshot and the time; the leader proposes what comes out.

use crate::sessions::new_eval;
use catalog::Catalog;
use model::{
    Allocation, Command, Deployment, DesiredStatus, Drain, Eligibility, EvalStatus, EvalTrigger, Index, Job, JobId,
    JobKind, Node, Timestamp,
};
use std::collections::BTreeSet;
use std::sync::Arc;

pub(crate) fn commands(catalog: &Catalog, now: Timestamp) -> Vec<Command> {
    let steps = catalog.deployments().filter_map(|deployment| deployment_step(catalog, deployment, now));
    let drained = catalog.nodes().filter_map(|node| end_of_drain(catalog, node));
    let jobs =
        concerned(catalog).into_iter().filter_map(|id| catalog.job(id)).filter(|job| needs_a_look(catalog, job, now));
    let evals: Vec<_> = jobs.map(|job| new_eval(job.id.clone(), job.priority, trigger(job))).collect();
    let looks = (!evals.is_empty()).then_some(Command::UpsertEvals(evals));
    steps.chain(drained).chain(looks).collect()
}

/// The jobs that drains or new nodes may concern: all others are not worth a look at every tick.
fn concerned(catalog: &Catalog) -> BTreeSet<&JobId> {
    let draining = catalog.nodes().filter(|node| node.drain.is_some());
    let leaving = draining.flat_map(|node| catalog.allocs_of_node(node.id)).map(|alloc| alloc.job_id());
    let everywhere = catalog.jobs().filter(|job| job.kind.is_on_every_node()).map(|job| &job.id);
    leaving.chain(everywhere).collect()
}

fn trigger(job: &Job) -> EvalTrigger {
    match job.kind {
        JobKind::System | JobKind::Sysbatch => EvalTrigger::NodeUpdate,
        JobKind::Service | JobKind::Batch => EvalTrigger::NodeDrain,
    }
}

fn deployment_step(catalog: &Catalog, deployment: &Deployment, now: Timestamp) -> Option<Command> {
    if !deployment.is_active() {
        return None;
    }
    let versions = catalog.job_versions(&deployment.job_id);
    let allocs = catalog.allocs_of_job(&deployment.job_id).map(AsRef::as_ref);
    let update = scheduler::watch(deployment, versions, allocs, now);
    if update.changes_nothing() {
        return None;
    }
    let priority = versions.first().map_or(model::rules::DEFAULT_PRIORITY, |job| job.priority);
    let eval = new_eval(deployment.job_id.clone(), priority, EvalTrigger::DeploymentWatcher);
    Some(Command::UpdateDeployment { update, eval })
}

/// A drain ends when nothing that it moves is left; the node stays ineligible.
fn end_of_drain(catalog: &Catalog, node: &Node) -> Option<Command> {
    let drain = node.drain?;
    let left = catalog.allocs_of_node(node.id).any(|alloc| alloc.is_live() && is_moved(alloc, &drain));
    (!left).then_some(Command::SetNodeDrain {
        node_id: node.id,
        drain: None,
        eligibility: Eligibility::Ineligible,
        evals: Vec::new(),
    })
}

fn is_moved(alloc: &Allocation, drain: &Drain) -> bool {
    !(drain.ignore_system && alloc.job.kind == JobKind::System)
}

/// Whether something has changed since the job's last evaluation that it has to follow and nobody asked one for.
fn needs_a_look(catalog: &Catalog, job: &Job, now: Timestamp) -> bool {
    let waits = catalog.evals_of_job(&job.id).any(|eval| eval.status == EvalStatus::Pending && eval.wait_until <= now);
    if job.stopped || waits {
        return false;
    }
    let looked = catalog.evals_of_job(&job.id).filter(|eval| eval.wait_until <= now);
    let looked = looked.map(|eval| (eval.modified_at_index, eval.modified_at)).max().unwrap_or_default();
    (job.kind.is_on_every_node() && misses_a_node(catalog, job, looked.0)) || drain_goes_on(catalog, job, looked, now)
}

fn misses_a_node(catalog: &Catalog, job: &Job, looked: Index) -> bool {
    let changed = |node: &&Arc<Node>| node.is_placeable() && node.modified_at_index > looked;
    // What ends by itself has been there.
    let counts = |alloc: &Allocation| (alloc.is_live() || job.kind.ends()) && *alloc.job_id() == job.id;
    let was_on = |node: &Node| catalog.allocs_of_node(node.id).any(|alloc| counts(alloc));
    catalog.nodes().filter(changed).any(|node| !was_on(node))
}

/// Some of the job stands on a node that drains, and since the last look its allocations or that node's changed, or the
/// deadline has passed.
fn drain_goes_on(catalog: &Catalog, job: &Job, looked: (Index, Timestamp), now: Timestamp) -> bool {
    let to_move = |alloc: &&Arc<Allocation>| alloc.is_live() && alloc.desired == DesiredStatus::Run;
    let draining = catalog.allocs_of_job(&job.id).filter(to_move).filter_map(|alloc| {
        let node = catalog.node(alloc.node_id)?;
        node.drain.filter(|drain| is_moved(alloc, drain)).map(|drain| (node, drain))
    });
    let changed = |node: &Node| {
        let of_job = catalog.allocs_of_job(&job.id);
        node.modified_at_index > looked.0
            || of_job.chain(catalog.allocs_of_node(node.id)).any(|alloc| alloc.modified_at_index > looked.0)
    };
    let due = |drain: Drain| drain.is_due(now) && !drain.is_due(looked.1);
    draining.into_iter().any(|(node, drain)| changed(node) || due(drain))
}
