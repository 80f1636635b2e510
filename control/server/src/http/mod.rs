//! The HTTP API: Nomad's routes and JSON, on loopback only. Handlers read a catalog snapshot or propose a command; what
//! is known but not built says so with 501.

mod allocs;
mod answer;
mod autopilot;
mod changes;
mod events;
mod jobs;
mod logs;
mod made;
mod operator;
mod options;
mod placement;
mod rollouts;
mod snapshot;
mod state;
mod store;
mod unbuilt;

use crate::backup::SNAPSHOT_BYTES_MAX;
use crate::member::Member;
use answer::HttpError;
use axum::Router;
use axum::extract::{DefaultBodyLimit, Request};
use axum::http::{HeaderMap, Method, StatusCode, Uri, header};
use axum::middleware::{Next, from_fn};
use axum::response::{IntoResponse, Response};
use axum::routing::{delete, get, post, put};
use std::net::IpAddr;
use std::sync::Arc;
use tokio::net::TcpListener;
use tokio::sync::watch;

/// A body is a job file at most.
const BODY_BYTES_MAX: usize = 1 << 20;

pub(crate) fn router(member: Arc<Member>) -> Router {
    let register = post(jobs::register).put(jobs::register);
    Router::new()
        .route("/v1/jobs", get(jobs::list).merge(register))
        .route("/v1/jobs/parse", post(jobs::parse).put(jobs::parse))
        .route("/v1/validate/job", post(jobs::validate).put(jobs::validate))
        .route("/v1/job/{id}", get(jobs::read).delete(jobs::deregister).post(jobs::register_at).put(jobs::register_at))
        .route("/v1/job/{id}/allocations", get(jobs::allocations))
        .route("/v1/job/{id}/evaluations", get(jobs::evaluations))
        .route("/v1/job/{id}/summary", get(jobs::summary))
        .route("/v1/job/{id}/versions", get(jobs::versions))
        .route("/v1/job/{id}/plan", post(changes::plan).put(changes::plan))
        .route("/v1/job/{id}/scale", post(changes::scale).put(changes::scale))
        .route("/v1/job/{id}/revert", post(changes::revert).put(changes::revert))
        .route("/v1/job/{id}/dispatch", post(made::dispatch).put(made::dispatch))
        .route("/v1/job/{id}/periodic/force", post(made::force_periodic).put(made::force_periodic))
        .route("/v1/job/{id}/evaluate", post(made::evaluate).put(made::evaluate))
        .route("/v1/job/{id}/stable", post(made::set_stable).put(made::set_stable))
        .route("/v1/mesh/job/{id}/restart", post(made::restart).put(made::restart))
        .route("/v1/mesh/job/{id}/scores", get(placement::scores))
        .route("/v1/mesh/rebalance", get(placement::rebalance))
        .route("/v1/system/gc", post(made::collect_garbage).put(made::collect_garbage))
        .route("/v1/job/{id}/deployments", get(rollouts::of_job))
        .route("/v1/job/{id}/deployment", get(rollouts::latest_of_job))
        .route("/v1/deployments", get(rollouts::list))
        .route("/v1/deployment/{id}", get(rollouts::read))
        .route("/v1/deployment/allocations/{id}", get(rollouts::allocations))
        .route("/v1/deployment/promote/{id}", post(rollouts::promote).put(rollouts::promote))
        .route("/v1/deployment/pause/{id}", post(rollouts::pause).put(rollouts::pause))
        .route("/v1/deployment/fail/{id}", post(rollouts::fail).put(rollouts::fail))
        .route("/v1/deployment/allocation-health/{id}", post(rollouts::set_health).put(rollouts::set_health))
        .route("/v1/allocations", get(state::allocations))
        .route("/v1/allocation/{id}", get(state::allocation))
        .route("/v1/allocation/{id}/stop", post(allocs::stop).put(allocs::stop))
        .route("/v1/allocation/{id}/checks", get(allocs::checks))
        .route("/v1/client/allocation/{id}/restart", post(allocs::restart).put(allocs::restart))
        .route("/v1/client/allocation/{id}/signal", post(allocs::signal).put(allocs::signal))
        .route("/v1/client/allocation/{id}/stats", get(allocs::stats))
        .route("/v1/client/allocation/{id}/gc", get(allocs::collect_garbage))
        .route("/v1/client/allocation/{id}/checks", get(allocs::checks))
        .route("/v1/client/allocation/{id}/check/{service}/{check}", post(allocs::set_check).put(allocs::set_check))
        .route("/v1/nodes", get(state::nodes))
        .route("/v1/node/{id}", get(state::node))
        .route("/v1/node/{id}/allocations", get(state::node_allocations))
        .route("/v1/node/{id}/drain", post(changes::drain).put(changes::drain))
        .route("/v1/node/{id}/eligibility", post(changes::eligibility).put(changes::eligibility))
        .route("/v1/evaluations", get(state::evaluations))
        .route("/v1/evaluation/{id}", get(state::evaluation))
        .route("/v1/evaluation/{id}/allocations", get(state::evaluation_allocations))
        .route("/v1/services", get(state::services))
        .route("/v1/service/{name}", get(state::service))
        .route("/v1/client/fs/logs/{id}", get(logs::read))
        .route("/v1/status/leader", get(operator::leader))
        .route("/v1/status/peers", get(operator::peers))
        .route("/v1/regions", get(operator::regions))
        .route("/v1/agent/self", get(operator::agent_self))
        .route("/v1/agent/members", get(operator::members))
        .route("/v1/operator/raft/configuration", get(operator::raft_configuration))
        .route(
            "/v1/operator/autopilot/configuration",
            get(autopilot::settings).put(autopilot::set).post(autopilot::set),
        )
        .route("/v1/operator/autopilot/health", get(autopilot::health))
        .route("/v1/event/stream", get(events::stream_events))
        .route(
            "/v1/operator/snapshot",
            get(snapshot::save)
                .merge(put(snapshot::restore).post(snapshot::restore).layer(DefaultBodyLimit::max(SNAPSHOT_BYTES_MAX))),
        )
        .route("/v1/operator/raft/peer", delete(operator::remove_peer))
        .route(
            "/v1/operator/raft/transfer-leadership",
            put(operator::transfer_leadership).post(operator::transfer_leadership),
        )
        .route("/v1/kv/", get(store::keys).delete(store::delete_all_keys))
        .route("/v1/kv/{*key}", get(store::key).put(store::set_key).delete(store::delete_key))
        .route("/v1/vars", get(store::variables))
        .route(
            "/v1/var/{*path}",
            get(store::variable).put(store::set_variable).post(store::set_variable).delete(store::delete_variable),
        )
        .route("/v1/metrics", get(operator::metrics))
        .route("/v1/mesh/tokens", post(operator::create_token).put(operator::create_token))
        .fallback(not_there)
        .method_not_allowed_fallback(wrong_method)
        .layer(DefaultBodyLimit::max(BODY_BYTES_MAX))
        .layer(from_fn(refuse_foreign_pages))
        .with_state(member)
}

/// Serves until `stop` is set or dropped.
pub(crate) async fn serve(member: Arc<Member>, listener: TcpListener, stop: watch::Receiver<bool>) {
    let server = axum::serve(listener, router(member));
    tokio::select! {
        ended = server.into_future() => if let Err(error) = ended { tracing::error!(%error, "the HTTP listener failed") },
        // Blocking queries would hold up a graceful end for minutes.
        () = crate::rpc::until(stop) => {}
    }
}

async fn not_there(method: Method, uri: Uri) -> HttpError {
    match unbuilt::is_known(uri.path()) {
        true => unbuilt::refusal(&method, uri.path()),
        false => HttpError::new(StatusCode::NOT_FOUND, format!("Invalid path {}: no such route", uri.path())),
    }
}

async fn wrong_method(method: Method, uri: Uri) -> HttpError {
    HttpError::new(StatusCode::METHOD_NOT_ALLOWED, format!("Invalid method: {method} is not for {}", uri.path()))
}

/// There are no tokens on loopback yet, so a web page that a browser on this machine shows must not get through: neither
/// by a name that it lets resolve to loopback nor by a form.
async fn refuse_foreign_pages(request: Request, next: Next) -> Response {
    let headers = request.headers();
    let host = request.uri().host().or_else(|| text(headers, header::HOST)).is_none_or(is_local);
    let origin = text(headers, header::ORIGIN)
        .is_none_or(|origin| origin.split_once("://").is_some_and(|(_, host)| is_local(host)));
    match host && origin {
        true => next.run(request).await,
        false => {
            let reason = "this API answers to IP addresses and localhost only, not to names that web pages may use";
            HttpError::new(StatusCode::FORBIDDEN, reason.to_owned()).into_response()
        }
    }
}

fn text(headers: &HeaderMap, name: header::HeaderName) -> Option<&str> {
    headers.get(name).map(|value| value.to_str().unwrap_or("?"))
}

fn is_local(host: &str) -> bool {
    let name = match host.strip_prefix('[') {
        Some(rest) => rest.split(']').next().unwrap_or_default(),
        None => host.rsplit_once(':').map_or(host, |(name, _)| name),
    };
    name == "localhost" || name.parse::<IpAddr>().is_ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_addresses_and_localhost_are_local() {
        for host in ["127.0.0.1:4646", "localhost", "localhost:1", "[::1]:4646", "10.0.0.1", "127.0.0.1"] {
            assert!(is_local(host), "{host}");
        }
        for host in ["evil.example", "evil.example:4646", "localhost.evil.example", "", "null", "127.0.0.1.nip.io"] {
            assert!(!is_local(host), "{host}");
        }
    }
}
