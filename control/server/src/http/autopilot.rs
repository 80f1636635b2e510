//! How servers are looked after: the settings, under Nomad's names, and how the servers are.

use super::answer::{Answer, HttpError, json, show};
use super::jobs::read_body;
use super::options::{Options, parse_duration};
use crate::autopilot::ServerHealth;
use crate::member::{Member, ProposeError};
use axum::body::Bytes;
use axum::extract::State;
use catalog::Catalog;
use model::{Autopilot, Command, Index, Refusal, Table};
use serde::Deserialize;
use serde_json::{Value, json as json_value};
use std::sync::{Arc, PoisonError};

type Shared = State<Arc<Member>>;

pub(super) async fn settings(State(member): Shared, options: Options) -> Answer {
    show(&member, &options, &[Table::Cluster], |catalog| Ok(shown(catalog.autopilot()))).await
}

#[derive(Deserialize)]
#[serde(rename_all = "PascalCase", deny_unknown_fields)]
struct Body {
    cleanup_dead_servers: Option<bool>,
    last_contact_threshold: Option<String>,
    max_trailing_logs: Option<u64>,
    min_quorum: Option<u32>,
    server_stabilization_time: Option<String>,
    /// Ours: Nomad asks its gossip.
    dead_server_threshold: Option<String>,
    /// Of a configuration that was read before.
    #[serde(rename = "CreateIndex")]
    _created: Option<u64>,
    #[serde(rename = "ModifyIndex")]
    _modified: Option<u64>,
    /// Nomad's enterprise features: refused unless off.
    enable_redundancy_zones: Option<bool>,
    enable_custom_upgrades: Option<bool>,
    disable_upgrade_migration: Option<bool>,
}

/// What is left out stays as it is.
pub(super) async fn set(State(member): Shared, options: Options, body: Bytes) -> Answer {
    let body: Body = read_body(&body)?;
    member.read_barrier().await?;
    let known = member.snapshot().autopilot().clone();
    let cas = options.get("cas").map(|text| text.parse().map(Index)).transpose();
    let cas = cas.map_err(|_| HttpError::bad_request("cas: it is no number"))?;
    let command = Command::SetAutopilot { autopilot: merged(known, body)?, cas };
    match member.propose(command).await {
        Ok(applied) => Ok(json(&member, &options, applied.index, &true)),
        Err(ProposeError::Refused(Refusal::CasMismatch { current, .. })) => {
            Ok(json(&member, &options, current, &false))
        }
        Err(error) => Err(error.into()),
    }
}

fn merged(known: Autopilot, body: Body) -> Result<Autopilot, HttpError> {
    let unbuilt = [
        ("EnableRedundancyZones", body.enable_redundancy_zones),
        ("EnableCustomUpgrades", body.enable_custom_upgrades),
        ("DisableUpgradeMigration", body.disable_upgrade_migration),
    ];
    if let Some((name, _)) = unbuilt.iter().find(|(_, value)| *value == Some(true)) {
        return Err(HttpError::not_built(format!("{name} is not built yet; leave it out")));
    }
    let millis = |name: &str, text: Option<String>, known: u64| match text {
        None => Ok(known),
        Some(text) => parse_duration(&text)
            .and_then(|duration| u64::try_from(duration.as_millis()).ok())
            .filter(|millis| *millis > 0)
            .ok_or_else(|| HttpError::bad_request(format!("{name}: `{text}` is no duration; write for example 10s"))),
    };
    let last_contact = millis("LastContactThreshold", body.last_contact_threshold, known.last_contact_ms_max)?;
    Ok(Autopilot {
        cleanup_dead_servers: body.cleanup_dead_servers.unwrap_or(known.cleanup_dead_servers),
        last_contact_ms_max: last_contact,
        trailing_logs_max: body.max_trailing_logs.unwrap_or(known.trailing_logs_max),
        quorum_min: body.min_quorum.unwrap_or(known.quorum_min),
        stabilization_ms: millis("ServerStabilizationTime", body.server_stabilization_time, known.stabilization_ms)?,
        dead_server_after_ms: millis("DeadServerThreshold", body.dead_server_threshold, known.dead_server_after_ms)?,
        modified_at_index: known.modified_at_index,
    })
}

fn shown(settings: &Autopilot) -> Value {
    json_value!({
        "CleanupDeadServers": settings.cleanup_dead_servers,
        "LastContactThreshold": format!("{}ms", settings.last_contact_ms_max),
        "MaxTrailingLogs": settings.trailing_logs_max,
        "MinQuorum": settings.quorum_min,
        "ServerStabilizationTime": format!("{}ms", settings.stabilization_ms),
        "DeadServerThreshold": format!("{}ms", settings.dead_server_after_ms),
        "CreateIndex": settings.modified_at_index.0,
        "ModifyIndex": settings.modified_at_index.0,
    })
}

/// Only the leader hears of all the others.
pub(super) async fn health(State(member): Shared, options: Options) -> Answer {
    if !member.is_leader() {
        let leader = member.leader_address().map_or("no server leads".to_owned(), |at| format!("{at} leads"));
        return Err(HttpError::internal(format!("only the leader knows how the servers are: {leader}; ask there")));
    }
    let health = member.autopilot.lock().unwrap_or_else(PoisonError::into_inner).clone();
    let catalog = member.snapshot();
    let voters = health.iter().filter(|server| server.is_voter).count();
    let healthy = health.iter().filter(|server| server.is_voter && server.is_healthy).count();
    let servers: Vec<Value> = health.iter().map(|server| server_shown(server, &catalog)).collect();
    let answer = json_value!({
        "Healthy": !health.is_empty() && health.iter().all(|server| server.is_healthy),
        "FailureTolerance": healthy.saturating_sub(voters / 2 + 1),
        "Leader": member.id.to_string(),
        "Voters": health.iter().filter(|server| server.is_voter).map(|server| server.id.to_string()).collect::<Vec<_>>(),
        "Servers": servers,
    });
    Ok(json(&member, &options, catalog.index(), &answer))
}

fn server_shown(server: &ServerHealth, catalog: &Catalog) -> Value {
    let known = catalog.server(model::ServerId(server.id));
    json_value!({
        "ID": server.id.to_string(),
        "Name": known.map_or("", |known| known.name.as_str()),
        "Address": known.map(|known| known.rpc_address.to_string()).unwrap_or_default(),
        "Leader": server.is_leader,
        "Voter": server.is_voter,
        "Healthy": server.is_healthy,
        "LastContact": server.last_contact_ms.map_or("never".to_owned(), |millis| format!("{millis}ms")),
        "Behind": server.behind,
        "StableFor": format!("{}s", server.stable_ms / 1000),
    })
}
