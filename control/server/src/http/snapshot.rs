//! The state as a file, and a file as the state.

use super::answer::{Answer, HttpError, json};
use super::options::Options;
use crate::backup::{self, SnapshotError};
use crate::clock;
use crate::member::{Member, shown_index};
use crate::sessions::new_eval;
use axum::body::{Body, Bytes};
use axum::extract::State;
use axum::http::{StatusCode, header};
use axum::response::Response;
use model::{CatalogImage, Command, EvalTrigger, Evaluation};
use serde_json::json as json_value;
use std::sync::Arc;
use wire::nomad;

type Shared = State<Arc<Member>>;

pub(super) async fn save(State(member): Shared, options: Options) -> Answer {
    let catalog = options.settle(&member, &[]).await?;
    let (index, term) = (catalog.index(), member.status.borrow().term);
    let taken_at = nomad::rfc3339(clock::now()).unwrap_or_default();
    let written = tokio::task::spawn_blocking(move || backup::write(&catalog, term, taken_at)).await;
    let file = written.map_err(|error| HttpError::internal(error.to_string()))??;
    let response = Response::builder()
        .header(header::CONTENT_TYPE, "application/octet-stream")
        .header("X-Nomad-Index", shown_index(index))
        .body(Body::from(file));
    response.map_err(|error| HttpError::internal(error.to_string()))
}

/// Goes through the log as one command, so that every server does it at the same index; answers when it is applied.
pub(super) async fn restore(State(member): Shared, options: Options, body: Bytes) -> Answer {
    let read = tokio::task::spawn_blocking(move || backup::read_snapshot(&body)).await;
    let (meta, image) = read.map_err(|error| HttpError::internal(error.to_string()))??;
    let cluster = member.catalog.borrow().feature_level();
    if image.feature_level > model::FEATURE_LEVEL {
        return Err(HttpError::bad_request(format!(
            "the snapshot has feature level {}, this release knows {}; upgrade the servers (they are at {cluster})",
            image.feature_level,
            model::FEATURE_LEVEL
        )));
    }
    let evals = evals_of(&image);
    tracing::warn!(of = meta.taken_at, index = meta.index, "restoring a snapshot");
    let applied = member.propose(Command::RestoreCatalog { image: Box::new(image), evals }).await?;
    Ok(json(&member, &options, applied.index, &json_value!({ "Index": applied.index.0, "Restored": meta })))
}

/// Every job is looked at again: what runs and what the snapshot says are hardly the same.
fn evals_of(image: &CatalogImage) -> Vec<Evaluation> {
    let newest = image.jobs.iter().filter_map(|record| record.versions.first());
    newest.map(|job| new_eval(job.id.clone(), job.priority, EvalTrigger::JobRegister)).collect()
}

impl From<SnapshotError> for HttpError {
    fn from(error: SnapshotError) -> Self {
        match error {
            SnapshotError::TooLarge { .. } => Self::new(StatusCode::PAYLOAD_TOO_LARGE, error.to_string()),
            error => Self::bad_request(error.to_string()),
        }
    }
}
