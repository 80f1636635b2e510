//! The agent's own HTTP: what only this node knows. Everything else of Nomad's API is a server's to answer.

use crate::AgentHandle;
use axum::Router;
use axum::extract::{Query, State};
use axum::http::{StatusCode, Uri, header};
use axum::response::{IntoResponse, Response};
use axum::routing::get;
use model::TaskPhase;
use serde::Serialize;
use serde_json::json;
use std::net::SocketAddr;
use tokio::net::TcpListener;
use wire::routes::TraceQuestion;

/// The first word after `/v1/` of every route that servers answer.
const SERVER_ROUTES: [&str; 28] = [
    "jobs",
    "job",
    "validate",
    "allocations",
    "allocation",
    "client",
    "nodes",
    "node",
    "evaluations",
    "evaluation",
    "deployments",
    "deployment",
    "services",
    "service",
    "event",
    "operator",
    "agent",
    "status",
    "regions",
    "metrics",
    "search",
    "system",
    "namespaces",
    "namespace",
    "vars",
    "var",
    "acl",
    "scaling",
];

/// The routes that a server does not have, to be merged with a server's in `dev`.
pub fn router(agent: AgentHandle) -> Router {
    Router::new().route("/v1/mesh/routes", get(routes)).route("/v1/mesh/trace", get(trace)).with_state(agent)
}

/// Everything that an agent on its own answers.
fn standalone(agent: AgentHandle) -> Router {
    Router::new()
        .route("/v1/agent/self", get(own))
        .route("/v1/agent/health", get(health))
        .route("/v1/metrics", get(metrics))
        .with_state(agent.clone())
        .merge(router(agent))
        .fallback(elsewhere)
}

pub async fn serve(listener: TcpListener, agent: AgentHandle) -> std::io::Result<()> {
    axum::serve(listener, standalone(agent)).await
}

async fn routes(State(agent): State<AgentHandle>) -> Response {
    match agent.data_path.report().await {
        Ok(report) => json_body(StatusCode::OK, &report),
        Err(reason) => (StatusCode::INTERNAL_SERVER_ERROR, reason).into_response(),
    }
}

async fn trace(State(agent): State<AgentHandle>, Query(asked): Query<TraceQuestion>) -> Response {
    match agent.data_path.trace(asked).await {
        Ok(report) => json_body(StatusCode::OK, &report),
        Err(reason) => (StatusCode::BAD_REQUEST, reason).into_response(),
    }
}

#[derive(serde::Deserialize)]
struct MetricsQuery {
    #[serde(default)]
    format: String,
}

async fn metrics(State(agent): State<AgentHandle>, Query(asked): Query<MetricsQuery>) -> Response {
    if asked.format != "prometheus" {
        let said = "an agent tells its metrics to Prometheus only: /v1/metrics?format=prometheus";
        return (StatusCode::NOT_IMPLEMENTED, said).into_response();
    }
    match agent.data_path.report().await {
        Ok(report) => {
            let kind = "text/plain; version=0.0.4; charset=utf-8";
            (StatusCode::OK, [(header::CONTENT_TYPE, kind)], crate::net::prometheus(&report)).into_response()
        }
        Err(reason) => (StatusCode::INTERNAL_SERVER_ERROR, reason).into_response(),
    }
}

async fn own(State(agent): State<AgentHandle>) -> Response {
    let (node, link) = (&agent.node, agent.link.borrow().clone());
    let running = agent.reports.borrow().values().filter(|update| is_running(update)).count();
    let servers: Vec<String> = link.servers.iter().map(SocketAddr::to_string).collect();
    let body = json!({
        "config": {
            "Name": node.name,
            "Datacenter": node.datacenter,
            "Region": "global",
            "Version": { "Version": node.version },
            "Server": { "Enabled": false },
            "Client": { "Enabled": true },
        },
        "stats": { "client": {
            "node_id": node.id.to_string(),
            "known_servers": servers.join(","),
            "connected_to": link.connected_to.map(|server| server.to_string()).unwrap_or_default(),
            "running_allocations": running.to_string(),
        } },
    });
    json_body(StatusCode::OK, &body)
}

fn is_running(update: &model::AllocUpdate) -> bool {
    update.task_states.values().any(|state| state.phase == TaskPhase::Running)
}

/// 500 without a session, as Nomad's clients answer: tasks and data path go on, but nothing new reaches this node.
async fn health(State(agent): State<AgentHandle>) -> Response {
    let link = agent.link.borrow().clone();
    let message = link.last_error.unwrap_or_else(|| "no server reached yet".to_owned());
    let (status, ok, message) = match link.connected_to {
        Some(_) => (StatusCode::OK, true, "ok".to_owned()),
        None => (StatusCode::INTERNAL_SERVER_ERROR, false, message),
    };
    json_body(status, &json!({ "client": { "ok": ok, "message": message } }))
}

async fn elsewhere(State(()): State<()>, uri: Uri) -> (StatusCode, &'static str) {
    let first = uri.path().strip_prefix("/v1/").and_then(|rest| rest.split('/').next()).unwrap_or_default();
    match SERVER_ROUTES.contains(&first) {
        true => {
            (StatusCode::NOT_IMPLEMENTED, "an agent does not forward this yet: ask a server (-address or MESHCTL_ADDR)")
        }
        false => (StatusCode::NOT_FOUND, "no such route"),
    }
}

fn json_body(status: StatusCode, body: &impl Serialize) -> Response {
    match serde_json::to_vec(body) {
        Ok(body) => (status, [(header::CONTENT_TYPE, "application/json")], body).into_response(),
        Err(error) => (StatusCode::INTERNAL_SERVER_ERROR, error.to_string()).into_response(),
    }
}
