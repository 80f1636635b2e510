//! The cluster itself: servers, leader, tokens, metrics.

use super::answer::{Answer, HttpError, json, show};
use super::jobs::read_body;
use super::options::{Options, parse_duration};
use crate::member::{Member, ProposeError};
use crate::membership::MembershipError;
use crate::start::{TokenRequest, create_token as make_token};
use axum::body::Bytes;
use axum::extract::State;
use axum::http::header;
use axum::response::IntoResponse;
use catalog::Catalog;
use futures::future::join_all;
use model::{ClientStatus, EvalStatus, Index, NodeStatus, Role, ServerId, ServerRecord, Table};
use serde::Deserialize;
use serde_json::{Value, json as json_value};
use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;
use tokio::net::TcpStream;
use wire::nomad;

type Shared = State<Arc<Member>>;

const PROBE_TIMEOUT: Duration = Duration::from_millis(500);

pub(super) async fn leader(State(member): Shared, options: Options) -> Answer {
    let address = member.leader_address().map(|address| address.to_string()).unwrap_or_default();
    Ok(json(&member, &options, Index::default(), &address))
}

pub(super) async fn peers(State(member): Shared, options: Options) -> Answer {
    show(&member, &options, &[Table::Servers], |catalog| {
        let voters = member.status.borrow().voters.clone();
        let servers = catalog.servers().filter(|server| voters.contains(&server.id.0));
        Ok(servers.map(|server| server.rpc_address.to_string()).collect::<Vec<_>>())
    })
    .await
}

pub(super) async fn regions(State(member): Shared, options: Options) -> Answer {
    Ok(json(&member, &options, Index::default(), &[&member.region]))
}

pub(super) async fn raft_configuration(State(member): Shared, options: Options) -> Answer {
    show(&member, &options, &[Table::Servers], |catalog| {
        let status = member.raft.status();
        let servers = catalog.servers().map(|server| raft_server(server, &status)).collect();
        Ok(nomad::RaftConfiguration { servers, index: status.applied })
    })
    .await
}

/// As Nomad: by `?id=` or `?address=`.
pub(super) async fn remove_peer(State(member): Shared, options: Options) -> Answer {
    let id = named_server(&member, &options).await?.ok_or_else(|| {
        HttpError::bad_request("Must specify either ?id with the server's ID or ?address with its address")
    })?;
    member.remove_server(id).await?;
    Ok(json(&member, &options, Index::default(), &()))
}

pub(super) async fn transfer_leadership(State(member): Shared, options: Options) -> Answer {
    let to = named_server(&member, &options).await?;
    member.transfer_leadership(to).await?;
    Ok(json(&member, &options, Index::default(), &()))
}

async fn named_server(member: &Member, options: &Options) -> Result<Option<ServerId>, HttpError> {
    match (options.get("id"), options.get("address")) {
        (Some(_), Some(_)) => Err(HttpError::bad_request("give either ?id or ?address, not both")),
        (Some(id), None) => match id.parse() {
            Ok(id) => Ok(Some(ServerId(id))),
            Err(_) => Err(HttpError::bad_request(format!("id: `{id}` is no server's id, which is a number"))),
        },
        (None, Some(address)) => {
            member.read_barrier().await?;
            let catalog = member.snapshot();
            let known = catalog.servers().find(|server| server.rpc_address.to_string() == address);
            let missing = || HttpError::not_found(format!("address: no server is at `{address}`"));
            known.map(|server| Some(server.id)).ok_or_else(missing)
        }
        (None, None) => Ok(None),
    }
}

impl From<MembershipError> for HttpError {
    fn from(error: MembershipError) -> Self {
        let text = error.to_string();
        match error {
            MembershipError::Unknown(_) => Self::not_found(text),
            MembershipError::Refused(_) => Self::bad_request(text),
            MembershipError::NotLeader | MembershipError::Unavailable(_) => Self::internal(text),
        }
    }
}

fn raft_server(server: &ServerRecord, status: &consensus::Status) -> nomad::RaftServer {
    nomad::RaftServer {
        id: server.id.to_string(),
        node: server.name.clone(),
        address: server.rpc_address.to_string(),
        leader: status.leader == Some(server.id.0),
        voter: status.voters.contains(&server.id.0),
        raft_protocol: "3".to_owned(),
    }
}

pub(super) async fn members(State(member): Shared, options: Options) -> Answer {
    let catalog = options.settle(&member, &[Table::Servers]).await?;
    let servers: Vec<ServerRecord> = catalog.servers().cloned().collect();
    let members = join_all(servers.iter().map(|server| agent_member(&member, server))).await;
    let answer = nomad::AgentMembers {
        server_name: member.name.clone(),
        server_region: member.region.clone(),
        server_dc: member.datacenter.clone(),
        members,
    };
    Ok(json(&member, &options, catalog.table_index(Table::Servers), &answer))
}

pub(super) async fn agent_self(State(member): Shared, options: Options) -> Answer {
    let record = ServerRecord { id: member.id, name: member.name.clone(), rpc_address: member.rpc_address };
    let status = member.raft.status();
    let answer = json_value!({
        "config": {
            "Region": member.region,
            "Datacenter": member.datacenter,
            "NodeName": member.name,
            "Version": { "Version": model::VERSION, "VersionPrerelease": "", "VersionMetadata": "", "Revision": "" },
            "Server": { "Enabled": true },
            "ACL": { "Enabled": false },
        },
        "member": agent_member(&member, &record).await,
        "stats": {
            "raft": {
                "term": status.term.to_string(),
                "commit_index": status.commit.to_string(),
                "applied_index": status.applied.to_string(),
                "state": format!("{:?}", status.role),
                "num_peers": status.voters.len().saturating_sub(1).to_string(),
            },
        },
    });
    Ok(json(&member, &options, Index::default(), &answer))
}

/// There is no gossip yet, so whether a server is alive is found out by knocking.
async fn agent_member(member: &Member, server: &ServerRecord) -> nomad::AgentMember {
    let alive = server.id == member.id || answers(server.rpc_address).await;
    let tags = [
        ("id", server.id.to_string()),
        ("role", "nomad".to_owned()),
        ("region", member.region.clone()),
        ("dc", member.datacenter.clone()),
        ("build", model::VERSION.to_owned()),
        ("port", server.rpc_address.port().to_string()),
    ];
    nomad::AgentMember {
        name: server.name.clone(),
        addr: server.rpc_address.ip().to_string(),
        port: server.rpc_address.port(),
        tags: tags.into_iter().map(|(key, value)| (key.to_owned(), value)).collect(),
        status: if alive { "alive" } else { "failed" }.to_owned(),
        ..Default::default()
    }
}

async fn answers(address: SocketAddr) -> bool {
    matches!(tokio::time::timeout(PROBE_TIMEOUT, TcpStream::connect(address)).await, Ok(Ok(_)))
}

#[derive(Deserialize)]
#[serde(rename_all = "PascalCase", deny_unknown_fields)]
struct TokenBody {
    role: String,
    #[serde(default)]
    uses: Option<u32>,
    /// Nanoseconds, or a duration such as `1h`.
    #[serde(default, rename = "TTL")]
    ttl: Option<Value>,
}

const TOKEN_TTL_DEFAULT: Duration = Duration::from_secs(3600);

/// Answers with the token, which is shown this once and kept nowhere.
pub(super) async fn create_token(State(member): Shared, options: Options, body: Bytes) -> Answer {
    let request = token_request(read_body(&body)?)?;
    let (text, record) = make_token(&member, request).await.map_err(of_token)?;
    let answer = json_value!({
        "Token": text,
        "Role": record.role.as_str(),
        "Uses": record.uses_left,
        "ExpiresAt": nomad::rfc3339(record.expires_at),
    });
    Ok(json(&member, &options, Index::default(), &answer))
}

fn token_request(body: TokenBody) -> Result<TokenRequest, HttpError> {
    let role = match body.role.as_str() {
        "server" => Role::Server,
        "agent" => Role::Agent,
        other => return Err(HttpError::bad_request(format!("Role: `{other}` is neither server nor agent"))),
    };
    let ttl = match body.ttl {
        None | Some(Value::Null) => TOKEN_TTL_DEFAULT,
        Some(value) => duration_of(&value).ok_or_else(|| {
            HttpError::bad_request(format!("TTL: `{value}` is no duration; write for example \"1h\""))
        })?,
    };
    if ttl.is_zero() {
        return Err(HttpError::bad_request("TTL: a token that has expired already is of no use"));
    }
    match body.uses.unwrap_or(1) {
        0 => Err(HttpError::bad_request("Uses: a token needs at least one use")),
        uses => Ok(TokenRequest { role, uses, ttl: Some(ttl) }),
    }
}

fn duration_of(value: &Value) -> Option<Duration> {
    match value {
        Value::String(text) => parse_duration(text),
        Value::Number(nanos) => nanos.as_u64().map(Duration::from_nanos),
        _ => None,
    }
}

fn of_token(error: anyhow::Error) -> HttpError {
    match error.downcast::<ProposeError>() {
        Ok(error) => error.into(),
        Err(error) => HttpError::internal(format!("{error:#}")),
    }
}

pub(super) async fn metrics(State(member): Shared, options: Options) -> Answer {
    let catalog = member.snapshot();
    let gauges = gauges(&member, &catalog);
    match options.get("format") {
        Some("prometheus") => {
            let lines: String = gauges.iter().map(|(name, value)| format!("{name} {value}\n")).collect();
            Ok(([(header::CONTENT_TYPE, "text/plain; version=0.0.4")], lines).into_response())
        }
        Some(other) => {
            Err(HttpError::bad_request(format!("format: `{other}` is not known; leave it out or say prometheus")))
        }
        None => {
            let gauges: Vec<Value> = gauges
                .iter()
                .map(|(name, value)| json_value!({ "Name": name, "Value": value, "Labels": {} }))
                .collect();
            Ok(json(&member, &options, catalog.index(), &json_value!({ "Gauges": gauges })))
        }
    }
}

fn gauges(member: &Member, catalog: &Catalog) -> BTreeMap<String, u64> {
    let status = member.raft.status();
    let mut gauges: BTreeMap<String, u64> = BTreeMap::new();
    gauges.insert("meshctl_raft_term".to_owned(), status.term);
    gauges.insert("meshctl_raft_commit_index".to_owned(), status.commit);
    gauges.insert("meshctl_raft_applied_index".to_owned(), status.applied);
    gauges.insert("meshctl_raft_is_leader".to_owned(), u64::from(member.is_leader()));
    gauges.insert("meshctl_jobs".to_owned(), catalog.jobs().count() as u64);
    for status in [NodeStatus::Initializing, NodeStatus::Ready, NodeStatus::Suspect, NodeStatus::Down] {
        let count = catalog.nodes().filter(|node| node.status == status).count();
        gauges.insert(format!("meshctl_nodes{{status=\"{}\"}}", status.as_str()), count as u64);
    }
    for status in [EvalStatus::Pending, EvalStatus::Blocked] {
        let count = catalog.evals().filter(|eval| eval.status == status).count();
        gauges.insert(format!("meshctl_evaluations{{status=\"{}\"}}", status.as_str()), count as u64);
    }
    use ClientStatus::{Complete, Failed, Lost, Pending, Running};
    for status in [Pending, Running, Complete, Failed, Lost] {
        let count = catalog.allocs().filter(|alloc| alloc.client == status).count();
        gauges.insert(format!("meshctl_allocations{{status=\"{}\"}}", status.as_str()), count as u64);
    }
    gauges
}
