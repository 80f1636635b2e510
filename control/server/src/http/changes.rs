//! Changes of what is there already: a job's dry run, its count and its versions; a node's drain and eligibility.

use super::answer::{Answer, HttpError, json};
use super::jobs::{find, read_body, read_job};
use super::options::Options;
use super::state::find_node;
use crate::clock;
use crate::member::Member;
use crate::sessions::new_eval;
use axum::body::Bytes;
use axum::extract::{Path, State};
use catalog::Catalog;
use model::{
    Command, Drain, Eligibility, Envelope, EvalTrigger, Evaluation, Index, Job, Node, NodeId, Table, Timestamp,
};
use scheduler::GroupChanges;
use serde_json::json as json_value;
use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::time::Duration;
use wire::nomad;

type Shared = State<Arc<Member>>;

/// Registers the job on a clone of the state and plans it there: what would happen, by the code that would make it happen.
pub(super) async fn plan(State(member): Shared, Path(id): Path<String>, options: Options, body: Bytes) -> Answer {
    let request: nomad::JobPlanRequest = read_body(&body)?;
    let job = read_job(request.job)?;
    if job.id.0 != id {
        return Err(HttpError::bad_request("Job ID does not match name"));
    }
    member.read_barrier().await?;
    let (catalog, with_diff) = (member.snapshot(), request.diff || options.is_true("diff"));
    let seed = clock::random_seed();
    let planned = tokio::task::spawn_blocking(move || dry_run(catalog, &job, with_diff, clock::now(), seed)).await;
    let answer = planned.map_err(|_| HttpError::internal("planning failed; see the server's log"))??;
    Ok(json(&member, &options, member.snapshot().table_index(Table::Jobs), &answer))
}

fn dry_run(
    mut catalog: Catalog,
    job: &Job,
    with_diff: bool,
    now: Timestamp,
    seed: u64,
) -> Result<nomad::JobPlanResponse, HttpError> {
    let before = catalog.job(&job.id).filter(|job| !job.stopped).map(|job| nomad::Job::from(job.as_ref()));
    let modified = catalog.job_indices(&job.id).map_or(0, |indices| indices.job_modified.0);
    let eval = new_eval(job.id.clone(), job.priority, EvalTrigger::JobRegister);
    let command = Command::RegisterJob { job: Box::new(job.clone()), eval: eval.clone(), enforce_index: None };
    let envelope = Envelope { proposed_at: now, feature_level: 1, command };
    let refused = catalog.apply(Index(catalog.index().0 + 1), &envelope).err();
    refused.map_or(Ok(()), |refusal| Err(HttpError::bad_request(refusal.to_string())))?;
    let (plan, changes) = crate::scheduling::explain(&catalog, &eval, now, seed);
    let failures = plan.failures.iter().map(|(group, failure)| (group.clone(), failure.into()));
    let diff = with_diff.then(|| annotated(nomad::diff_jobs(before.as_ref(), &nomad::Job::from(job)), &changes));
    Ok(nomad::JobPlanResponse {
        annotations: nomad::PlanAnnotations { desired_tg_updates: changes.iter().map(desired_updates).collect() },
        failed_tg_allocs: (!plan.failures.is_empty()).then(|| failures.collect()),
        diff,
        job_modify_index: modified,
        ..Default::default()
    })
}

fn desired_updates((group, changes): (&String, &GroupChanges)) -> (String, nomad::DesiredUpdates) {
    let GroupChanges { ignore, place, migrate, stop, in_place, destructive, canary } = *changes;
    let updates = nomad::DesiredUpdates {
        ignore,
        place,
        migrate,
        stop,
        in_place_update: in_place,
        destructive_update: destructive,
        canary,
        preemptions: 0,
    };
    (group.clone(), updates)
}

/// With the words that Nomad's clients print beside a group.
fn annotated(mut diff: nomad::JobDiff, changes: &BTreeMap<String, GroupChanges>) -> nomad::JobDiff {
    for group in &mut diff.task_groups {
        let Some(changes) = changes.get(&group.name) else { continue };
        let counted = [
            ("ignore", changes.ignore),
            ("create", changes.place),
            ("destroy", changes.stop),
            ("migrate", changes.migrate),
            ("in-place update", changes.in_place),
            ("create/destroy update", changes.destructive),
            ("canary", changes.canary),
        ];
        let some = counted.into_iter().filter(|(_, count)| *count > 0);
        group.updates = some.map(|(word, count)| (word.to_owned(), u64::from(count))).collect();
    }
    diff
}

pub(super) async fn scale(State(member): Shared, Path(id): Path<String>, options: Options, body: Bytes) -> Answer {
    let request: nomad::JobScaleRequest = read_body(&body)?;
    let count = request.count.ok_or_else(|| HttpError::bad_request("Count must be specified"))?;
    let count = u32::try_from(count).map_err(|_| HttpError::bad_request(format!("Count {count} is out of range")))?;
    let wanted = request.target.get("Group").cloned().unwrap_or_default();
    change_job(&member, &options, &id, |catalog, job| {
        if job.stopped {
            return Err(HttpError::bad_request("the job is stopped; register it again before scaling it"));
        }
        let mut scaled = Job::clone(catalog.job(&job.id).unwrap_or(job));
        let group = match scaled.groups.as_mut_slice() {
            [only] if wanted.is_empty() => Some(only),
            groups => groups.iter_mut().find(|group| group.name == wanted),
        };
        let Some(group) = group else {
            return Err(HttpError::bad_request(format!("task group {wanted:?} specified for scaling does not exist")));
        };
        group.count = count;
        Ok(scaled)
    })
    .await
}

pub(super) async fn revert(State(member): Shared, Path(id): Path<String>, options: Options, body: Bytes) -> Answer {
    let request: nomad::JobRevertRequest = read_body(&body)?;
    change_job(&member, &options, &id, |catalog, job| {
        if request.enforce_prior_version.is_some_and(|expected| expected != job.version) {
            let text = format!(
                "Current job has version {}; enforcing version {:?}",
                job.version, request.enforce_prior_version
            );
            return Err(HttpError::bad_request(text));
        }
        if request.job_version == job.version && !job.stopped {
            return Err(HttpError::bad_request(format!("can't revert to current version: {}", job.version)));
        }
        let wanted = catalog.job_versions(&job.id).iter().find(|job| job.version == request.job_version);
        let missing = || HttpError::not_found(format!("job version {} not found", request.job_version));
        wanted.map(|job| Job::clone(job)).ok_or_else(missing)
    })
    .await
}

/// Registers a job made from what is registered now, unless somebody changes it in between.
async fn change_job(
    member: &Member,
    options: &Options,
    id: &str,
    make: impl FnOnce(&Catalog, &Arc<Job>) -> Result<Job, HttpError>,
) -> Answer {
    member.read_barrier().await?;
    let (job, index) = {
        let catalog = member.snapshot();
        let job = find(&catalog, id)?;
        let index = catalog.job_indices(&job.id).map(|indices| indices.job_modified);
        (make(&catalog, job)?, index)
    };
    super::jobs::propose_job(member, options, job, index).await
}

pub(super) async fn drain(State(member): Shared, Path(id): Path<String>, options: Options, body: Bytes) -> Answer {
    let request: nomad::NodeDrainRequest = read_body(&body)?;
    let drain = request.drain_spec.map(|spec| drain_of(&spec, clock::now()));
    let eligible = drain.is_none() && request.mark_eligible;
    let eligibility = if eligible { Eligibility::Eligible } else { Eligibility::Ineligible };
    change_node(&member, &options, &id, |node_id, evals| Command::SetNodeDrain { node_id, drain, eligibility, evals })
        .await
}

fn drain_of(spec: &nomad::DrainSpec, now: Timestamp) -> Drain {
    let deadline = match spec.deadline {
        0 => Timestamp::NEVER,
        length => now.plus(u64::try_from(length).map_or(Duration::ZERO, Duration::from_nanos)),
    };
    Drain { started_at: now, deadline, ignore_system: spec.ignore_system_jobs }
}

pub(super) async fn eligibility(
    State(member): Shared,
    Path(id): Path<String>,
    options: Options,
    body: Bytes,
) -> Answer {
    let request: nomad::NodeEligibilityRequest = read_body(&body)?;
    let eligibility = match request.eligibility.as_str() {
        "eligible" => Eligibility::Eligible,
        "ineligible" => Eligibility::Ineligible,
        other => return Err(HttpError::bad_request(format!("invalid scheduling eligibility {other:?}"))),
    };
    change_node(&member, &options, &id, |node_id, evals| Command::SetNodeEligibility { node_id, eligibility, evals })
        .await
}

async fn change_node(
    member: &Member,
    options: &Options,
    id: &str,
    command: impl FnOnce(NodeId, Vec<Evaluation>) -> Command,
) -> Answer {
    member.read_barrier().await?;
    let (command, eval_ids) = {
        let catalog = member.snapshot();
        let node = find_node(&catalog, id)?;
        let evals = evals_of_node(&catalog, node);
        let eval_ids: Vec<String> = evals.iter().map(|eval| eval.id.to_string()).collect();
        (command(node.id, evals), eval_ids)
    };
    let index = member.propose(command).await?.index;
    let answer =
        json_value!({ "EvalIDs": eval_ids, "EvalCreateIndex": index.0, "NodeModifyIndex": index.0, "Index": index.0 });
    Ok(json(member, options, index, &answer))
}

/// For every job that has something on the node.
fn evals_of_node(catalog: &Catalog, node: &Node) -> Vec<Evaluation> {
    let live = catalog.allocs_of_node(node.id).filter(|alloc| alloc.is_live());
    let jobs: BTreeSet<_> = live.map(|alloc| alloc.job_id().clone()).collect();
    let known = jobs.iter().filter_map(|id| catalog.job(id));
    known.map(|job| new_eval(job.id.clone(), job.priority, EvalTrigger::NodeDrain)).collect()
}
