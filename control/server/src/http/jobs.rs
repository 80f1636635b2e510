//! Jobs: list, read, register, stop.

use super::answer::{Answer, HttpError, json, show};
use super::options::Options;
use crate::clock;
use crate::member::Member;
use crate::sessions::new_eval;
use axum::body::Bytes;
use axum::extract::{Path, State};
use catalog::Catalog;
use model::{Allocation, ClientStatus, Command, DesiredStatus, EvalStatus, EvalTrigger, Index, Job, JobId, Table};
use serde::de::DeserializeOwned;
use serde_json::json as json_value;
use std::collections::BTreeMap;
use std::sync::Arc;
use wire::nomad;

type Shared = State<Arc<Member>>;

/// A job's status and counts come from its allocations and evaluations.
const JOB_TABLES: [Table; 3] = [Table::Jobs, Table::Allocs, Table::Evals];

pub(super) async fn list(State(member): Shared, options: Options) -> Answer {
    show(&member, &options, &JOB_TABLES, |catalog| {
        let jobs = catalog.jobs().filter(|job| options.admits(&job.id.0));
        Ok(jobs.map(|job| list_stub(catalog, job)).collect::<Vec<_>>())
    })
    .await
}

pub(super) async fn read(State(member): Shared, Path(id): Path<String>, options: Options) -> Answer {
    show(&member, &options, &JOB_TABLES, |catalog| Ok(shown_job(catalog, find(catalog, &id)?))).await
}

pub(super) async fn versions(State(member): Shared, Path(id): Path<String>, options: Options) -> Answer {
    show(&member, &options, &[Table::Jobs], |catalog| {
        let job = find(catalog, &id)?;
        let versions: Vec<nomad::Job> =
            catalog.job_versions(&job.id).iter().map(|job| nomad::Job::from(job.as_ref())).collect();
        let pairs = versions.iter().zip(versions.iter().skip(1));
        let diffs: Vec<_> = pairs.map(|(newer, older)| nomad::diff_jobs(Some(older), newer)).collect();
        Ok(json_value!({ "Versions": versions, "Diffs": options.is_true("diffs").then_some(diffs) }))
    })
    .await
}

pub(super) async fn summary(State(member): Shared, Path(id): Path<String>, options: Options) -> Answer {
    show(&member, &options, &JOB_TABLES, |catalog| Ok(job_summary(catalog, find(catalog, &id)?))).await
}

pub(super) async fn allocations(State(member): Shared, Path(id): Path<String>, options: Options) -> Answer {
    show(&member, &options, &[Table::Allocs], |catalog| {
        let id = JobId(id);
        let allocs = catalog.allocs_of_job(&id);
        Ok(allocs.map(|alloc| nomad::AllocationListStub::from(alloc.as_ref())).collect::<Vec<_>>())
    })
    .await
}

pub(super) async fn evaluations(State(member): Shared, Path(id): Path<String>, options: Options) -> Answer {
    show(&member, &options, &[Table::Evals], |catalog| {
        let id = JobId(id);
        let evals = catalog.evals_of_job(&id);
        Ok(evals.map(|eval| nomad::Evaluation::from(eval.as_ref())).collect::<Vec<_>>())
    })
    .await
}

pub(super) async fn register(State(member): Shared, options: Options, body: Bytes) -> Answer {
    let request: nomad::JobRegisterRequest = read_body(&body)?;
    register_job(&member, &options, request).await
}

pub(super) async fn register_at(
    State(member): Shared,
    Path(id): Path<String>,
    options: Options,
    body: Bytes,
) -> Answer {
    let request: nomad::JobRegisterRequest = read_body(&body)?;
    match request.job.as_ref().and_then(|job| job.id.as_ref()) {
        Some(named) if *named != id => Err(HttpError::bad_request("Job ID does not match name")),
        _ => register_job(&member, &options, request).await,
    }
}

async fn register_job(member: &Member, options: &Options, request: nomad::JobRegisterRequest) -> Answer {
    let job = read_job(request.job)?;
    if request.preserve_counts {
        return Err(HttpError::not_built("PreserveCounts is not built yet; send the counts that you want"));
    }
    let enforce_index = request.enforce_index.then_some(Index(request.job_modify_index));
    propose_job(member, options, job, enforce_index).await
}

pub(super) async fn propose_job(
    member: &Member,
    options: &Options,
    mut job: Job,
    enforce_index: Option<Index>,
) -> Answer {
    super::made::check(&job)?;
    job.submitted_at = clock::now();
    let template = job.is_template();
    let eval = new_eval(job.id.clone(), job.priority, EvalTrigger::JobRegister);
    // Nothing of a template is placed, so there is nothing to follow.
    let eval_id = if template { String::new() } else { eval.id.to_string() };
    let index = member.propose(Command::RegisterJob { job: Box::new(job), eval, enforce_index }).await?.index;
    let answer = nomad::JobRegisterResponse {
        eval_id,
        eval_create_index: if template { 0 } else { index.0 },
        job_modify_index: index.0,
        index: index.0,
        known_leader: true,
        ..Default::default()
    };
    Ok(json(member, options, index, &answer))
}

pub(super) async fn deregister(State(member): Shared, Path(id): Path<String>, options: Options) -> Answer {
    member.read_barrier().await?;
    let (job_id, priority) = {
        let catalog = member.snapshot();
        let job = find(&catalog, &id)?;
        (job.id.clone(), job.priority)
    };
    let eval = new_eval(job_id.clone(), priority, EvalTrigger::JobDeregister);
    let eval_id = eval.id.to_string();
    let command = Command::DeregisterJob { job_id, purge: options.is_true("purge"), eval };
    let index = member.propose(command).await?.index;
    let answer = nomad::JobDeregisterResponse {
        eval_id,
        eval_create_index: index.0,
        job_modify_index: index.0,
        index: index.0,
        known_leader: true,
        ..Default::default()
    };
    Ok(json(&member, &options, index, &answer))
}

pub(super) async fn parse(State(member): Shared, options: Options, body: Bytes) -> Answer {
    let request: nomad::JobsParseRequest = read_body(&body)?;
    let mut inputs = jobspec::Inputs::default();
    let given = inputs.read_file("Variables", &request.variables);
    given.map_err(|error| HttpError::bad_request(error.to_string()))?;
    let job = jobspec::parse_hcl_with("job", &request.job_hcl, &inputs)
        .map_err(|refusal| HttpError::bad_request(refusal.to_string()))?;
    Ok(json(&member, &options, member.snapshot().table_index(Table::Jobs), &nomad::Job::from(&job)))
}

pub(super) async fn validate(State(member): Shared, options: Options, body: Bytes) -> Answer {
    let request: nomad::JobRegisterRequest = read_body(&body)?;
    let job = request.job.ok_or_else(|| HttpError::bad_request("Job must be specified"))?;
    let problems: Vec<String> = match Job::try_from(job) {
        Ok(job) => super::made::check(&job).err().map(|error| error.text().to_owned()).into_iter().collect(),
        Err(refusal) => refusal.problems.iter().map(ToString::to_string).collect(),
    };
    let answer = json_value!({
        "DriverConfigValidated": true,
        "ValidationErrors": problems,
        "Error": problems.join("\n"),
        "Warnings": "",
    });
    Ok(json(&member, &options, member.snapshot().table_index(Table::Jobs), &answer))
}

pub(super) fn read_job(job: Option<nomad::Job>) -> Result<Job, HttpError> {
    let job = job.ok_or_else(|| HttpError::bad_request("Job must be specified"))?;
    if job.stop == Some(true) {
        return Err(HttpError::not_built("Job.Stop: to register a job stopped is not built yet; leave it out"));
    }
    Job::try_from(job).map_err(|refusal| HttpError::bad_request(refusal.to_string()))
}

pub(super) fn read_body<T: DeserializeOwned>(body: &[u8]) -> Result<T, HttpError> {
    serde_json::from_slice(body)
        .map_err(|error| HttpError::bad_request(format!("the body is not the JSON expected: {error}")))
}

pub(super) fn find<'a>(catalog: &'a Catalog, id: &str) -> Result<&'a Arc<Job>, HttpError> {
    catalog.job(&JobId(id.to_owned())).ok_or_else(|| HttpError::not_found("job not found"))
}

fn shown_job(catalog: &Catalog, job: &Job) -> nomad::Job {
    let indices = catalog.job_indices(&job.id);
    nomad::Job {
        status: Some(status(catalog, job).to_owned()),
        create_index: indices.map(|indices| indices.created.0),
        modify_index: indices.map(|indices| indices.modified.0),
        job_modify_index: indices.map(|indices| indices.job_modified.0),
        ..nomad::Job::from(job)
    }
}

fn list_stub(catalog: &Catalog, job: &Job) -> nomad::JobListStub {
    let indices = catalog.job_indices(&job.id);
    nomad::JobListStub {
        id: job.id.0.clone(),
        name: job.name.clone(),
        namespace: job.namespace.clone(),
        datacenters: job.datacenters.clone(),
        node_pool: job.node_pool.clone(),
        kind: job.kind.as_str().to_owned(),
        priority: i64::from(job.priority),
        parent_id: job.parent.as_ref().map(|parent| parent.0.clone()).unwrap_or_default(),
        periodic: job.periodic.is_some(),
        parameterized_job: job.parameterized.is_some(),
        stop: job.stopped,
        status: status(catalog, job).to_owned(),
        version: job.version,
        job_summary: Some(job_summary(catalog, job)),
        create_index: indices.map_or(0, |indices| indices.created.0),
        modify_index: indices.map_or(0, |indices| indices.modified.0),
        job_modify_index: indices.map_or(0, |indices| indices.job_modified.0),
        submit_time: job.submitted_at.0,
        ..Default::default()
    }
}

/// Running while anything of it lives, dead when nothing does and nothing will, pending before that.
fn status(catalog: &Catalog, job: &Job) -> &'static str {
    let waits = |status| matches!(status, EvalStatus::Pending | EvalStatus::Blocked);
    if catalog.allocs_of_job(&job.id).any(|alloc| alloc.is_live()) {
        "running"
    } else if job.stopped {
        "dead"
    } else if job.is_template() {
        "running"
    } else if catalog.evals_of_job(&job.id).any(|eval| waits(eval.status)) {
        "pending"
    } else {
        "dead"
    }
}

fn job_summary(catalog: &Catalog, job: &Job) -> nomad::JobSummary {
    let mut groups: BTreeMap<String, nomad::TaskGroupSummary> =
        job.groups.iter().map(|group| (group.name.clone(), Default::default())).collect();
    for alloc in catalog.allocs_of_job(&job.id) {
        count(groups.entry(alloc.group.clone()).or_default(), alloc);
    }
    let newest = catalog.evals_of_job(&job.id).max_by_key(|eval| eval.modified_at_index);
    for (group, queued) in newest.into_iter().flat_map(|eval| &eval.queued) {
        groups.entry(group.clone()).or_default().queued = *queued;
    }
    let indices = catalog.job_indices(&job.id);
    nomad::JobSummary {
        job_id: job.id.0.clone(),
        namespace: job.namespace.clone(),
        summary: groups,
        children: super::made::children(catalog, &job.id),
        create_index: indices.map_or(0, |indices| indices.created.0),
        modify_index: indices.map_or(0, |indices| indices.modified.0),
    }
}

fn count(summary: &mut nomad::TaskGroupSummary, alloc: &Allocation) {
    match alloc.client {
        ClientStatus::Pending if alloc.desired == DesiredStatus::Run => summary.starting += 1,
        ClientStatus::Pending => {}
        ClientStatus::Running => summary.running += 1,
        ClientStatus::Complete => summary.complete += 1,
        ClientStatus::Failed => summary.failed += 1,
        ClientStatus::Lost => summary.lost += 1,
    }
}
