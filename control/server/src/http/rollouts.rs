//! Deployments: list, read, promote, pause, resume, fail, and the health that somebody decides.

use super::answer::{Answer, HttpError, json, show};
use super::jobs::read_body;
use super::options::Options;
use super::state::find;
use crate::member::Member;
use crate::sessions::new_eval;
use axum::body::Bytes;
use axum::extract::{Path, State};
use catalog::Catalog;
use model::{AllocId, Command, Deployment, DeploymentStatus, DeploymentUpdate, EvalTrigger, JobId, Table};
use std::sync::Arc;
use wire::nomad;

type Shared = State<Arc<Member>>;

pub(super) async fn list(State(member): Shared, options: Options) -> Answer {
    show(&member, &options, &[Table::Deployments], |catalog| {
        let listed = catalog.deployments().filter(|deployment| options.admits(&deployment.id.to_string()));
        Ok(newest_first(listed.map(AsRef::as_ref)))
    })
    .await
}

pub(super) async fn read(State(member): Shared, Path(id): Path<String>, options: Options) -> Answer {
    show(&member, &options, &[Table::Deployments], |catalog| {
        Ok(nomad::Deployment::from(find_deployment(catalog, &id)?.as_ref()))
    })
    .await
}

pub(super) async fn allocations(State(member): Shared, Path(id): Path<String>, options: Options) -> Answer {
    show(&member, &options, &[Table::Deployments, Table::Allocs], |catalog| {
        let deployment = find_deployment(catalog, &id)?;
        let allocs = catalog.allocs_of_job(&deployment.job_id).filter(|alloc| alloc.health_in(deployment.id).is_some());
        Ok(allocs.map(|alloc| nomad::AllocationListStub::from(alloc.as_ref())).collect::<Vec<_>>())
    })
    .await
}

pub(super) async fn of_job(State(member): Shared, Path(id): Path<String>, options: Options) -> Answer {
    show(&member, &options, &[Table::Deployments], |catalog| {
        let job_id = JobId(id);
        let of_job = catalog.deployments_of_job(&job_id);
        Ok(newest_first(of_job.map(AsRef::as_ref)))
    })
    .await
}

/// `null` when there is none, as Nomad answers.
pub(super) async fn latest_of_job(State(member): Shared, Path(id): Path<String>, options: Options) -> Answer {
    show(&member, &options, &[Table::Deployments], |catalog| {
        Ok(catalog.latest_deployment(&JobId(id)).map(|latest| nomad::Deployment::from(latest.as_ref())))
    })
    .await
}

pub(super) async fn promote(State(member): Shared, Path(id): Path<String>, options: Options, body: Bytes) -> Answer {
    let request: nomad::DeploymentPromoteRequest = read_body(&body)?;
    let groups = request.groups.unwrap_or_default();
    change(&member, &options, &id, "promote", |deployment, update| {
        update.promote = match request.all {
            true => waiting_groups(deployment),
            false => groups,
        };
        match update.promote.is_empty() {
            true => Err(HttpError::bad_request("no canaries to promote")),
            false => Ok(()),
        }
    })
    .await
}

fn waiting_groups(deployment: &Deployment) -> Vec<String> {
    let waiting = deployment.groups.iter().filter(|(_, group)| group.awaits_promotion());
    waiting.map(|(name, _)| name.clone()).collect()
}

pub(super) async fn pause(State(member): Shared, Path(id): Path<String>, options: Options, body: Bytes) -> Answer {
    let request: nomad::DeploymentPauseRequest = read_body(&body)?;
    let (verb, status, text) = match request.pause {
        true => ("pause", DeploymentStatus::Paused, "Deployment is paused"),
        false => ("resume", DeploymentStatus::Running, "Deployment is running"),
    };
    change(&member, &options, &id, verb, |_, update| {
        update.status = Some(status);
        update.status_description = text.to_owned();
        Ok(())
    })
    .await
}

pub(super) async fn fail(State(member): Shared, Path(id): Path<String>, options: Options) -> Answer {
    change(&member, &options, &id, "fail", |deployment, update| {
        update.status = Some(DeploymentStatus::Failed);
        update.status_description = "Deployment marked as failed".to_owned();
        update.revert = deployment.groups.values().any(|group| group.auto_revert);
        Ok(())
    })
    .await
}

pub(super) async fn set_health(State(member): Shared, Path(id): Path<String>, options: Options, body: Bytes) -> Answer {
    let request: nomad::DeploymentHealthRequest = read_body(&body)?;
    let healthy = alloc_ids(request.healthy_allocation_ids)?;
    let unhealthy = alloc_ids(request.unhealthy_allocation_ids)?;
    change(&member, &options, &id, "set health of allocations for", |_, update| {
        (update.healthy, update.unhealthy) = (healthy, unhealthy);
        Ok(())
    })
    .await
}

fn alloc_ids(ids: Option<Vec<String>>) -> Result<Vec<AllocId>, HttpError> {
    let read = |id: String| id.parse().map_err(|_| HttpError::bad_request(format!("`{id}` is not an allocation's id")));
    ids.unwrap_or_default().into_iter().map(read).collect()
}

/// Clients compare the sentence about a deployment that has ended word by word.
async fn change(
    member: &Member,
    options: &Options,
    id: &str,
    verb: &str,
    fill: impl FnOnce(&Deployment, &mut DeploymentUpdate) -> Result<(), HttpError>,
) -> Answer {
    member.read_barrier().await?;
    let (command, eval_id) = {
        let catalog = member.snapshot();
        let deployment = find_deployment(&catalog, id)?;
        if !deployment.is_active() {
            return Err(HttpError::bad_request(format!("can't {verb} terminal deployment")));
        }
        let mut update = DeploymentUpdate::of(deployment.id);
        fill(deployment, &mut update)?;
        let priority = catalog.job(&deployment.job_id).map_or(model::rules::DEFAULT_PRIORITY, |job| job.priority);
        let eval = new_eval(deployment.job_id.clone(), priority, EvalTrigger::DeploymentWatcher);
        let eval_id = eval.id.to_string();
        (Command::UpdateDeployment { update, eval }, eval_id)
    };
    let index = member.propose(command).await?.index;
    let answer = nomad::DeploymentUpdateResponse {
        eval_id,
        eval_create_index: index.0,
        deployment_modify_index: index.0,
        ..Default::default()
    };
    Ok(json(member, options, index, &answer))
}

fn newest_first<'a>(deployments: impl Iterator<Item = &'a Deployment>) -> Vec<nomad::Deployment> {
    let mut sorted: Vec<&Deployment> = deployments.collect();
    sorted.sort_by_key(|deployment| std::cmp::Reverse((deployment.created_at_index, deployment.id)));
    sorted.into_iter().map(nomad::Deployment::from).collect()
}

fn find_deployment<'a>(catalog: &'a Catalog, id: &str) -> Result<&'a Arc<Deployment>, HttpError> {
    find(catalog.deployments(), |deployment| deployment.id.to_string(), id, "deployment")
}
