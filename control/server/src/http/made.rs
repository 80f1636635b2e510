//! Jobs made from jobs, and what is asked of a job beside registering it: dispatch, a periodic job's launch, another look,
//! a restart, the stable mark; and garbage collection.

use super::answer::{Answer, HttpError, json};
use super::jobs::{find, read_body};
use super::options::Options;
use crate::member::Member;
use crate::scheduling::garbage;
use crate::scheduling::templates::{Dispatch, dispatched, forced_launch};
use crate::sessions::new_eval;
use axum::body::Bytes;
use axum::extract::{Path, State};
use base64::Engine;
use base64::prelude::BASE64_STANDARD;
use catalog::Catalog;
use model::{Command, EvalTrigger, Job, JobId, Retention};
use serde::Deserialize;
use serde_json::json as json_value;
use std::collections::BTreeMap;
use std::sync::Arc;

type Shared = State<Arc<Member>>;

#[derive(Deserialize, Default)]
#[serde(rename_all = "PascalCase", default)]
pub(super) struct DispatchRequest {
    /// Base64.
    payload: Option<String>,
    meta: Option<BTreeMap<String, String>>,
    id_prefix_template: String,
}

#[derive(Deserialize, Default)]
#[serde(rename_all = "PascalCase", default)]
struct StableRequest {
    job_version: u64,
    stable: bool,
}

#[derive(Deserialize, Default)]
#[serde(rename_all = "PascalCase", default)]
struct EvaluateRequest {
    eval_options: EvalOptions,
}

#[derive(Deserialize, Default)]
#[serde(rename_all = "PascalCase", default)]
struct EvalOptions {
    force_reschedule: bool,
}

pub(super) async fn dispatch(State(member): Shared, Path(id): Path<String>, options: Options, body: Bytes) -> Answer {
    let request: DispatchRequest = read_body(&body)?;
    let payload = request.payload.unwrap_or_default();
    let payload = BASE64_STANDARD.decode(payload);
    let payload = payload.map_err(|_| HttpError::bad_request("Payload is not base64"))?;
    let token = options.get("idempotency_token").unwrap_or_default().to_owned();
    member.read_barrier().await?;
    let parent = find(&member.snapshot(), &id)?.clone();
    let asked = Dispatch {
        payload,
        meta: request.meta.unwrap_or_default(),
        id_prefix: request.id_prefix_template,
        token: token.clone(),
    };
    let child = dispatched(&parent, asked).map_err(HttpError::bad_request)?;
    let (child_id, priority) = (child.id.clone(), child.priority);
    let eval = new_eval(child_id.clone(), priority, EvalTrigger::JobRegister);
    let eval_id = eval.id;
    let index = member.propose(Command::DispatchJob { child: Box::new(child), eval }).await?.index;
    if !token.is_empty() {
        member.read_barrier().await?;
    }
    let known = made_with(&member.snapshot(), &parent.id, &token).filter(|known| *known != child_id);
    let repeated = known.is_some();
    let answer = json_value!({
        "DispatchedJobID": known.unwrap_or(child_id).0,
        "EvalID": if repeated { String::new() } else { eval_id.to_string() },
        "EvalCreateIndex": index.0,
        "JobCreateIndex": index.0,
        "Index": index.0,
    });
    Ok(json(&member, &options, index, &answer))
}

/// The job that a dispatch with this token has made.
fn made_with(catalog: &Catalog, parent: &JobId, token: &str) -> Option<JobId> {
    let mut children = catalog.children(parent).filter(|child| !token.is_empty() && child.dispatch_token == token);
    children.next().map(|child| child.id.clone())
}

pub(super) async fn force_periodic(State(member): Shared, Path(id): Path<String>, options: Options) -> Answer {
    member.read_barrier().await?;
    let job = find(&member.snapshot(), &id)?.clone();
    if job.periodic.is_none() {
        return Err(HttpError::bad_request("can't force launch non-periodic job"));
    }
    let command = forced_launch(&job);
    let Command::LaunchPeriodic { eval, .. } = &command else {
        return Err(HttpError::internal("a launch is not one"));
    };
    let eval_id = eval.id.to_string();
    evaluated(&member, &options, command, eval_id).await
}

pub(super) async fn evaluate(State(member): Shared, Path(id): Path<String>, options: Options, body: Bytes) -> Answer {
    let request: EvaluateRequest = if body.is_empty() { EvaluateRequest::default() } else { read_body(&body)? };
    if request.eval_options.force_reschedule {
        return Err(HttpError::not_built("ForceReschedule is not built yet; leave it out"));
    }
    member.read_barrier().await?;
    let job = find(&member.snapshot(), &id)?.clone();
    if job.is_template() {
        let kind = if job.periodic.is_some() { "periodic" } else { "parameterized" };
        return Err(HttpError::bad_request(format!("can't evaluate {kind} job")));
    }
    let eval = new_eval(job.id.clone(), job.priority, EvalTrigger::JobRegister);
    let eval_id = eval.id.to_string();
    evaluated(&member, &options, Command::UpsertEvals(vec![eval]), eval_id).await
}

pub(super) async fn restart(State(member): Shared, Path(id): Path<String>, options: Options) -> Answer {
    member.read_barrier().await?;
    let job = find(&member.snapshot(), &id)?.clone();
    let eval = new_eval(job.id.clone(), job.priority, EvalTrigger::JobRegister);
    let eval_id = eval.id.to_string();
    evaluated(&member, &options, Command::RestartJob { job_id: job.id.clone(), eval }, eval_id).await
}

async fn evaluated(member: &Member, options: &Options, command: Command, eval_id: String) -> Answer {
    let index = member.propose(command).await?.index;
    let answer = json_value!({
        "EvalID": eval_id,
        "EvalCreateIndex": index.0,
        "JobModifyIndex": index.0,
        "Index": index.0,
    });
    Ok(json(member, options, index, &answer))
}

pub(super) async fn set_stable(State(member): Shared, Path(id): Path<String>, options: Options, body: Bytes) -> Answer {
    let StableRequest { job_version: version, stable } = read_body(&body)?;
    let index = member.propose(Command::MarkStable { job_id: JobId(id), version, stable }).await?.index;
    Ok(json(&member, &options, index, &json_value!({ "JobModifyIndex": index.0, "Index": index.0 })))
}

pub(super) async fn collect_garbage(State(member): Shared, options: Options) -> Answer {
    member.read_barrier().await?;
    let rows = garbage::collect(&member, Retention::NONE).await?;
    tracing::info!(rows, "forgot what has ended because somebody asked");
    Ok(json(&member, &options, member.snapshot().index(), &json_value!(null)))
}

/// What a calendar or a template asks for that no other rule looks at.
pub(super) fn check(job: &Job) -> Result<(), HttpError> {
    let Some(periodic) = &job.periodic else { return Ok(()) };
    crate::scheduling::Calendar::read(periodic).map_err(HttpError::bad_request)?;
    match job.kind.ends() {
        true => Ok(()),
        false => {
            Err(HttpError::bad_request("periodic: only a batch or sysbatch job ends, so that it can be launched again"))
        }
    }
}

/// How many of the jobs made from a template wait, run and are over.
pub(super) fn children(catalog: &Catalog, id: &JobId) -> wire::nomad::JobChildrenSummary {
    let mut summary = wire::nomad::JobChildrenSummary::default();
    for child in catalog.children(id) {
        let runs = catalog.allocs_of_job(&child.id).any(|alloc| alloc.is_live());
        match (runs, catalog.is_over(child)) {
            (true, _) => summary.running += 1,
            (false, true) => summary.dead += 1,
            (false, false) => summary.pending += 1,
        }
    }
    summary
}
