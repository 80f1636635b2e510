//! What can be done with one allocation: stop, restart, signal; and what its node knows of it: figures and checks.

use super::answer::{Answer, HttpError, json, newest, show};
use super::jobs::read_body;
use super::options::Options;
use super::state::find_alloc;
use crate::asks::AskError;
use crate::member::Member;
use crate::sessions::new_eval;
use axum::body::Body;
use axum::extract::{Path, State};
use axum::http::{StatusCode, header};
use axum::response::IntoResponse;
use bytes::Bytes;
use model::{Allocation, Check, CheckState, Command, EvalTrigger, Health, Service, Table};
use serde::Deserialize;
use serde_json::{Map, Value, json as json_value};
use std::sync::Arc;
use wire::actions::{AllocAction, AllocRequest, RefusalKind};

type Shared = State<Arc<Member>>;

#[derive(Default, Deserialize)]
#[serde(rename_all = "PascalCase", default)]
struct RestartBody {
    task_name: String,
    all_tasks: bool,
}

#[derive(Default, Deserialize)]
#[serde(rename_all = "PascalCase", default)]
struct SignalBody {
    task: String,
    signal: String,
}

/// As Consul's agent takes it for a ttl check.
#[derive(Default, Deserialize)]
#[serde(rename_all = "PascalCase", default)]
struct CheckBody {
    status: String,
    output: String,
}

pub(super) async fn restart(State(member): Shared, Path(id): Path<String>, options: Options, body: Bytes) -> Answer {
    let asked: RestartBody = if body.is_empty() { RestartBody::default() } else { read_body(&body)? };
    let action = AllocAction::Restart { task: named(asked.task_name), whole: asked.all_tasks };
    done(&member, &options, ask(&member, &options, &id, action).await?)
}

pub(super) async fn signal(State(member): Shared, Path(id): Path<String>, options: Options, body: Bytes) -> Answer {
    let asked: SignalBody = read_body(&body)?;
    if asked.signal.is_empty() {
        return Err(HttpError::bad_request("Signal: name one, for example SIGHUP"));
    }
    let action = AllocAction::Signal { task: named(asked.task), signal: asked.signal };
    done(&member, &options, ask(&member, &options, &id, action).await?)
}

pub(super) async fn stats(State(member): Shared, Path(id): Path<String>, options: Options) -> Answer {
    let task = options.get("task").map(str::to_owned);
    let body = ask(&member, &options, &id, AllocAction::Stats { task }).await?;
    Ok(([(header::CONTENT_TYPE, "application/json")], Body::from(body)).into_response())
}

pub(super) async fn collect_garbage(State(member): Shared, Path(id): Path<String>, options: Options) -> Answer {
    done(&member, &options, ask(&member, &options, &id, AllocAction::CollectGarbage).await?)
}

/// A task's own word on its ttl check.
pub(super) async fn set_check(
    State(member): Shared,
    Path((id, service, check)): Path<(String, String, String)>,
    options: Options,
    body: Bytes,
) -> Answer {
    let asked: CheckBody = read_body(&body)?;
    let health = match asked.status.as_str() {
        "passing" => Health::Passing,
        "warning" => Health::Warning,
        "critical" => Health::Critical,
        other => {
            let text = format!("Status: `{other}` is none of passing, warning, critical");
            return Err(HttpError::bad_request(text));
        }
    };
    let action = AllocAction::SetCheck { check: format!("{service}/{check}"), health, output: asked.output };
    done(&member, &options, ask(&member, &options, &id, action).await?)
}

/// By check id, as Nomad lists them; what its three words for a check's state leave out stands in `Health`.
pub(super) async fn checks(State(member): Shared, Path(id): Path<String>, options: Options) -> Answer {
    show(&member, &options, &[Table::Allocs], |catalog| Ok(checks_of(find_alloc(catalog, &id)?))).await
}

/// The node stops it and the scheduler places another one.
pub(super) async fn stop(State(member): Shared, Path(id): Path<String>, options: Options) -> Answer {
    member.read_barrier().await?;
    let (command, eval_id) = {
        let catalog = member.snapshot();
        let alloc = find_alloc(&catalog, &id)?;
        let priority = alloc.job.priority;
        let eval = new_eval(alloc.job_id().clone(), priority, EvalTrigger::AllocStop);
        let eval_id = eval.id.to_string();
        (Command::StopAllocs { alloc_ids: vec![alloc.id], evals: vec![eval] }, eval_id)
    };
    let index = member.propose(command).await?.index;
    Ok(json(&member, &options, index, &json_value!({ "EvalID": eval_id, "Index": index.0 })))
}

async fn ask(member: &Member, options: &Options, id: &str, action: AllocAction) -> Result<Vec<u8>, HttpError> {
    let catalog = options.settle(member, &[]).await?;
    let alloc_id = find_alloc(&catalog, id)?.id;
    Ok(member.ask(AllocRequest { alloc_id, action }).await?)
}

fn done(member: &Member, options: &Options, _body: Vec<u8>) -> Answer {
    let index = newest(&member.snapshot(), &[Table::Allocs]);
    Ok(json(member, options, index, &json_value!({})))
}

fn named(task: String) -> Option<String> {
    Some(task).filter(|task| !task.is_empty())
}

fn checks_of(alloc: &Allocation) -> Value {
    let mut found = Map::new();
    let Some(group) = alloc.task_group() else { return Value::Object(found) };
    let of_group = group.services.iter().map(|service| ("", service));
    let of_tasks =
        group.tasks.iter().flat_map(|task| task.services.iter().map(|service| (task.name.as_str(), service)));
    for (task, service) in of_group.chain(of_tasks) {
        for check in &service.checks {
            let id = check.id(&service.name);
            found.insert(id.clone(), check_json(alloc, task, service, check, alloc.checks.get(&id)));
        }
    }
    Value::Object(found)
}

fn check_json(alloc: &Allocation, task: &str, service: &Service, check: &Check, state: Option<&CheckState>) -> Value {
    let status = match state.map(|state| state.health) {
        None => "pending",
        Some(Health::Passing) => "success",
        Some(Health::Warning | Health::Critical) => "failure",
    };
    json_value!({
        "ID": check.id(&service.name),
        "Check": check.name,
        "Group": alloc.name(),
        "Mode": "healthiness",
        "Service": service.name,
        "Task": task,
        "Status": status,
        "Health": state.map_or("pending", |state| state.health.as_str()),
        "Output": state.map_or("", |state| state.output.as_str()),
        "Timestamp": state.map_or(0, |state| state.changed_at.0 / 1_000_000_000),
    })
}

impl From<AskError> for HttpError {
    fn from(error: AskError) -> Self {
        let text = error.to_string();
        match error {
            AskError::UnknownAlloc(_) => Self::not_found("alloc not found"),
            AskError::NoSession(_) => Self::new(StatusCode::NOT_FOUND, text),
            AskError::Refused(refusal) => match refusal.kind {
                RefusalKind::NotFound => Self::not_found(text),
                RefusalKind::BadRequest => Self::bad_request(text),
                RefusalKind::Failed => Self::internal(text),
            },
            AskError::NoLeader | AskError::Silent | AskError::Leader(_) => Self::internal(text),
        }
    }
}
