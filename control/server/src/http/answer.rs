//! Answers: JSON with Nomad's headers, errors as plain text.

use super::options::Options;
use crate::member::{Member, ProposeError, ReadUnavailable, shown_index};
use axum::body::Body;
use axum::http::{StatusCode, header};
use axum::response::{IntoResponse, Response};
use catalog::Catalog;
use model::{Index, Refusal, Table};
use serde::Serialize;

pub(crate) type Answer = Result<Response, HttpError>;

/// A status and the sentence that the user reads.
#[derive(Debug)]
pub(crate) struct HttpError {
    status: StatusCode,
    text: String,
}

impl HttpError {
    pub fn new(status: StatusCode, text: impl Into<String>) -> Self {
        Self { status, text: text.into() }
    }

    pub fn text(&self) -> &str {
        &self.text
    }

    pub fn bad_request(text: impl Into<String>) -> Self {
        Self::new(StatusCode::BAD_REQUEST, text)
    }

    pub fn not_found(text: impl Into<String>) -> Self {
        Self::new(StatusCode::NOT_FOUND, text)
    }

    pub fn not_built(text: impl Into<String>) -> Self {
        Self::new(StatusCode::NOT_IMPLEMENTED, text)
    }

    pub fn internal(text: impl Into<String>) -> Self {
        Self::new(StatusCode::INTERNAL_SERVER_ERROR, text)
    }
}

impl IntoResponse for HttpError {
    fn into_response(self) -> Response {
        (self.status, [(header::CONTENT_TYPE, "text/plain; charset=utf-8")], self.text).into_response()
    }
}

impl From<ReadUnavailable> for HttpError {
    fn from(error: ReadUnavailable) -> Self {
        Self::internal(format!("No cluster leader: {error}"))
    }
}

impl From<ProposeError> for HttpError {
    fn from(error: ProposeError) -> Self {
        let text = error.to_string();
        match error {
            ProposeError::Refused(Refusal::JobUnknown { .. }) => Self::not_found("job not found"),
            ProposeError::Refused(Refusal::NodeUnknown { .. }) => Self::not_found("node not found"),
            ProposeError::Refused(Refusal::DeploymentUnknown { .. }) => Self::not_found("deployment not found"),
            ProposeError::Refused(Refusal::JobIndexConflict { .. } | Refusal::CasMismatch { .. }) => {
                Self::new(StatusCode::CONFLICT, text)
            }
            ProposeError::Refused(_) | ProposeError::FeatureLevel { .. } => Self::bad_request(text),
            ProposeError::TooLarge { .. } => Self::new(StatusCode::PAYLOAD_TOO_LARGE, text),
            ProposeError::NoLeader => Self::internal(format!("No cluster leader: {text}")),
            ProposeError::Overloaded => Self::new(StatusCode::TOO_MANY_REQUESTS, text),
            ProposeError::OutcomeUnknown | ProposeError::Answer(_) => Self::internal(text),
        }
    }
}

/// Answers a read: waits as the options ask, then shows `view` of the newest catalog.
pub(crate) async fn show<T: Serialize>(
    member: &Member,
    options: &Options,
    tables: &[Table],
    view: impl FnOnce(&Catalog) -> Result<T, HttpError>,
) -> Answer {
    let catalog = options.settle(member, tables).await?;
    let value = view(&catalog)?;
    Ok(json(member, options, newest(&catalog, tables), &value))
}

/// When any of the tables changed last.
pub(crate) fn newest(catalog: &Catalog, tables: &[Table]) -> Index {
    tables.iter().map(|table| catalog.table_index(*table)).max().unwrap_or_default()
}

pub(crate) fn json(member: &Member, options: &Options, index: Index, value: &impl Serialize) -> Response {
    let text = match options.pretty {
        true => serde_json::to_vec_pretty(value).map(|mut text| {
            text.push(b'\n');
            text
        }),
        false => serde_json::to_vec(value),
    };
    let text = match text {
        Ok(text) => text,
        Err(error) => return HttpError::internal(error.to_string()).into_response(),
    };
    let response = Response::builder()
        .header(header::CONTENT_TYPE, "application/json")
        .header("X-Nomad-Index", shown_index(index))
        .header("X-Nomad-KnownLeader", member.leader().is_some().to_string())
        // A read that is not stale has just heard from the leader; how old a stale one is, is not measured yet.
        .header("X-Nomad-LastContact", "0")
        .body(Body::from(text));
    response.unwrap_or_else(|error| HttpError::internal(error.to_string()).into_response())
}
