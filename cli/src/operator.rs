//! `meshctl operator` and `meshctl token`: the servers about themselves, and admission to the cluster.

use crate::client::Endpoint;
use crate::json::{entries, list, print_pretty, text};
use crate::table::{block, columns, row, short};
use anyhow::{Context, Result, ensure};
use clap::{Args, Subcommand, ValueEnum};
use serde_json::{Value, json};
use server::SnapshotMeta;
use std::fs::OpenOptions;
use std::io::{Read, Write};
use std::net::SocketAddr;
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};
use std::time::Duration;

#[derive(Subcommand)]
pub enum Command {
    /// Send a GET request to the HTTP API and print the answer
    Api { path: String },
    /// Save the servers' state to a file, look at such a file, put it back
    #[command(subcommand)]
    Snapshot(SnapshotCommand),
    /// Ask about Raft
    #[command(subcommand)]
    Raft(RaftCommand),
    /// How servers are looked after, and how they are
    #[command(subcommand)]
    Autopilot(AutopilotCommand),
    /// Show nodes that are not well, why, and whether the replacement of their work is held
    Nodes,
}

#[derive(Subcommand)]
pub enum AutopilotCommand {
    /// Show the settings
    GetConfig,
    /// Change settings; what is left out stays
    SetConfig {
        /// Remove servers that are dead, as long as the others can agree on it
        #[arg(long)]
        cleanup_dead_servers: Option<bool>,
        /// A server not heard of for this long is not healthy, e.g. 200ms
        #[arg(long)]
        last_contact_threshold: Option<String>,
        /// A server that lacks more log entries is not healthy
        #[arg(long)]
        max_trailing_logs: Option<u64>,
        /// Clean-up leaves this many voters
        #[arg(long)]
        min_quorum: Option<u32>,
        /// How long a new server has to be healthy before it votes, e.g. 10s
        #[arg(long)]
        server_stabilization_time: Option<String>,
        /// A server not heard of for this long is dead, e.g. 10m
        #[arg(long)]
        dead_server_threshold: Option<String>,
    },
    /// Show how the servers are; the leader knows
    #[command(alias = "health")]
    State,
}

#[derive(Subcommand)]
pub enum RaftCommand {
    /// List the servers with their part in Raft
    ListPeers,
    /// Remove a server; one that runs ends and says why
    RemovePeer {
        #[command(flatten)]
        peer: Peer,
    },
    /// Hand leadership to another voter, by default to the one that has most of the log
    TransferLeadership {
        #[command(flatten)]
        peer: Peer,
    },
}

#[derive(Subcommand)]
pub enum SnapshotCommand {
    /// Save the state to a file that only its owner may read
    Save { file: PathBuf },
    /// Check a file and show what is in it
    Inspect { file: PathBuf },
    /// Put a file in the place of the state: jobs, allocations and addresses come back; servers, nodes and tokens stay
    Restore { file: PathBuf },
}

#[derive(Args)]
#[group(multiple = false)]
pub struct Peer {
    /// The server's id, as list-peers shows it
    #[arg(long, value_name = "ID")]
    peer_id: Option<u64>,
    /// The server's RPC address
    #[arg(long, value_name = "IP:PORT")]
    peer_address: Option<SocketAddr>,
}

impl Peer {
    /// The query that names it; `None` names nobody.
    fn query(&self) -> Option<String> {
        let by_id = self.peer_id.map(|id| format!("id={id}"));
        by_id.or_else(|| self.peer_address.map(|address| format!("address={address}")))
    }
}

#[derive(Subcommand)]
pub enum SystemCommand {
    /// Forget jobs, evaluations, allocations, deployments and nodes that have ended, without waiting for their time
    Gc,
}

#[derive(Subcommand)]
pub enum TokenCommand {
    /// Make a join token and print it; it is shown only once
    Create {
        /// What the holder may join as
        #[arg(long, value_enum)]
        role: Role,
        /// How many machines may join with it
        #[arg(long, default_value_t = 1)]
        uses: u32,
        /// How long it may be used, e.g. 10m or 24h
        #[arg(long, default_value = "1h", value_parser = humantime::parse_duration)]
        ttl: Duration,
    },
}

#[derive(Clone, Copy, ValueEnum)]
pub enum Role {
    Server,
    Agent,
}

fn autopilot(endpoint: &Endpoint, command: AutopilotCommand) -> Result<()> {
    const CONFIGURATION: &str = "/v1/operator/autopilot/configuration";
    match command {
        AutopilotCommand::GetConfig => {
            let settings: Value = endpoint.get(CONFIGURATION)?;
            let shown = entries(&settings).filter(|(key, _)| !key.ends_with("Index"));
            let pairs: Vec<(&str, String)> = shown.map(|(key, _)| (key.as_str(), text(&settings, key))).collect();
            println!("{}", block(&pairs));
        }
        AutopilotCommand::SetConfig {
            cleanup_dead_servers,
            last_contact_threshold,
            max_trailing_logs,
            min_quorum,
            server_stabilization_time,
            dead_server_threshold,
        } => {
            let body = json!({
                "CleanupDeadServers": cleanup_dead_servers,
                "LastContactThreshold": last_contact_threshold,
                "MaxTrailingLogs": max_trailing_logs,
                "MinQuorum": min_quorum,
                "ServerStabilizationTime": server_stabilization_time,
                "DeadServerThreshold": dead_server_threshold,
            });
            let _: Value = endpoint.put(CONFIGURATION, &body)?;
            println!("Configuration updated!");
        }
        AutopilotCommand::State => println!("{}", health(&endpoint.get("/v1/operator/autopilot/health")?)),
    }
    Ok(())
}

fn health(state: &Value) -> String {
    let summary = [("Healthy", text(state, "Healthy")), ("FailureTolerance", text(state, "FailureTolerance"))];
    let mut rows =
        vec![row(["ID", "Name", "Address", "Leader", "Voter", "Healthy", "Last Contact", "Behind", "Stable For"])];
    for server in list(&state["Servers"]) {
        let cell = |field: &str| text(server, field);
        let fields = ["ID", "Name", "Address", "Leader", "Voter", "Healthy", "LastContact", "Behind", "StableFor"];
        rows.push(fields.map(cell).to_vec());
    }
    format!("{}\n\n{}", block(&summary), columns(&rows))
}

fn unwell(nodes: &Value) -> String {
    let mut rows = vec![row(["ID", "Name", "Status", "Why"])];
    for node in list(nodes).iter().filter(|node| text(node, "Status") != "ready") {
        rows.push(vec![
            short(&text(node, "ID")),
            text(node, "Name"),
            text(node, "Status"),
            text(node, "StatusDescription"),
        ]);
    }
    match rows.len() {
        1 => format!("All {} nodes are ready", list(nodes).len()),
        _ => columns(&rows),
    }
}

pub fn run(endpoint: &Endpoint, command: Command) -> Result<()> {
    match command {
        Command::Api { path } => {
            ensure!(path.starts_with("/v1/"), "the path begins with /v1/, e.g. /v1/jobs");
            let answer: Value = endpoint.get(&path)?;
            print_pretty(&answer);
        }
        Command::Snapshot(SnapshotCommand::Save { file }) => save(endpoint, &file)?,
        Command::Snapshot(SnapshotCommand::Inspect { file }) => println!("{}", described(&read(&file)?.1)),
        Command::Snapshot(SnapshotCommand::Restore { file }) => {
            let (bytes, meta) = read(&file)?;
            let answer: Value = endpoint.put_bytes("/v1/operator/snapshot", &bytes)?;
            println!("Restored the state of {} at index {}", meta.taken_at, text(&answer, "Index"));
        }
        Command::Autopilot(command) => autopilot(endpoint, command)?,
        Command::Nodes => println!("{}", unwell(&endpoint.get("/v1/nodes")?)),
        Command::Raft(RaftCommand::ListPeers) => {
            let configuration: Value = endpoint.get("/v1/operator/raft/configuration")?;
            println!("{}", peers(&configuration));
        }
        Command::Raft(RaftCommand::RemovePeer { peer }) => {
            let query = peer.query().context("name the server with -peer-id or -peer-address")?;
            let _: Value = endpoint.delete(&format!("/v1/operator/raft/peer?{query}"))?;
            println!("Removed the server with {}", query.replace('=', " "));
        }
        Command::Raft(RaftCommand::TransferLeadership { peer }) => {
            let query = peer.query().unwrap_or_default();
            let _: Value = endpoint.put(&format!("/v1/operator/raft/transfer-leadership?{query}"), &json!({}))?;
            let leader: Value = endpoint.get("/v1/status/leader")?;
            println!("The leader is now at {}", leader.as_str().unwrap_or_default());
        }
    }
    Ok(())
}

/// What arrives is checked before it takes the place of an older file.
fn save(endpoint: &Endpoint, file: &Path) -> Result<()> {
    let mut bytes = Vec::new();
    let most = 2 * server::SNAPSHOT_BYTES_MAX as u64;
    endpoint.open("/v1/operator/snapshot")?.take(most).read_to_end(&mut bytes).context("the answer broke off")?;
    let (meta, _) = server::read_snapshot(&bytes).context("the answer is not a whole snapshot")?;
    let fresh = file.with_added_extension("new");
    let written = OpenOptions::new()
        .write(true)
        .create(true)
        .truncate(true)
        .mode(0o600)
        .open(&fresh)
        .and_then(|mut out| out.write_all(&bytes).and_then(|()| out.sync_all()))
        .and_then(|()| std::fs::rename(&fresh, file));
    written.with_context(|| format!("could not write {}", file.display()))?;
    println!("Saved the state at index {} to {}", meta.index, file.display());
    Ok(())
}

fn read(file: &Path) -> Result<(Vec<u8>, SnapshotMeta)> {
    let bytes = std::fs::read(file).with_context(|| format!("could not read {}", file.display()))?;
    let (meta, _) = server::read_snapshot(&bytes).with_context(|| file.display().to_string())?;
    Ok((bytes, meta))
}

fn described(meta: &SnapshotMeta) -> String {
    let mut rows = vec![
        vec!["Taken at".to_owned(), meta.taken_at.clone()],
        vec!["Index".to_owned(), meta.index.to_string()],
        vec!["Term".to_owned(), meta.term.to_string()],
        vec!["Version".to_owned(), meta.version.clone()],
        vec!["Feature level".to_owned(), meta.feature_level.to_string()],
        vec!["Cluster CA".to_owned(), meta.cluster.clone()],
        vec!["Bytes".to_owned(), meta.bytes.to_string()],
    ];
    rows.extend(meta.rows.iter().map(|(name, count)| vec![name.clone(), count.to_string()]));
    columns(&rows)
}

fn peers(configuration: &Value) -> String {
    let mut rows = vec![row(["Node", "ID", "Address", "State", "Voter"])];
    for server in list(&configuration["Servers"]) {
        let state = if server["Leader"] == true { "leader" } else { "follower" };
        let [node, id, address, voter] = ["Node", "ID", "Address", "Voter"].map(|field| text(server, field));
        rows.push(vec![node, id, address, state.to_owned(), voter]);
    }
    columns(&rows)
}

/// `meshctl server members`.
pub fn members(endpoint: &Endpoint) -> Result<()> {
    let answer: Value = endpoint.get("/v1/agent/members")?;
    let mut rows = vec![row(["Name", "Address", "Port", "Status", "Leader", "Build", "Datacenter", "Region"])];
    let leader: Value = endpoint.get("/v1/status/leader")?;
    for member in list(&answer["Members"]) {
        let [name, address, port, status] = ["Name", "Addr", "Port", "Status"].map(|field| text(member, field));
        let leads = leader.as_str() == Some(&format!("{address}:{port}"));
        let tags = ["build", "dc", "region"].map(|tag| text(&member["Tags"], tag));
        rows.push([vec![name, address, port, status, leads.to_string()], tags.to_vec()].concat());
    }
    println!("{}", columns(&rows));
    Ok(())
}

pub fn run_system(endpoint: &Endpoint, command: &SystemCommand) -> Result<()> {
    let SystemCommand::Gc = command;
    let _: Value = endpoint.put("/v1/system/gc", &json!({}))?;
    Ok(())
}

pub fn run_token(endpoint: &Endpoint, command: &TokenCommand) -> Result<()> {
    let TokenCommand::Create { role, uses, ttl } = command;
    let role = match role {
        Role::Server => "server",
        Role::Agent => "agent",
    };
    let nanos = u64::try_from(ttl.as_nanos()).unwrap_or(u64::MAX);
    let answer: Value = endpoint.put("/v1/mesh/tokens", &json!({ "Role": role, "Uses": uses, "TTL": nanos }))?;
    println!("{}", text(&answer, "Token"));
    Ok(())
}
