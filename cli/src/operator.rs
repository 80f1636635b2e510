//! `meshctl operator` and `meshctl token`: the servers about themselves, and admission to the cluster.

use crate::client::Endpoint;
use crate::json::{list, print_pretty, text};
use crate::table::{columns, row};
use anyhow::{Result, ensure};
use clap::{Subcommand, ValueEnum};
use serde_json::{Value, json};
use std::time::Duration;

#[derive(Subcommand)]
pub enum Command {
    /// Send a GET request to the HTTP API and print the answer
    Api { path: String },
    /// Ask about Raft
    #[command(subcommand)]
    Raft(RaftCommand),
}

#[derive(Subcommand)]
pub enum RaftCommand {
    /// List the servers with their part in Raft
    ListPeers,
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

pub fn run(endpoint: &Endpoint, command: Command) -> Result<()> {
    match command {
        Command::Api { path } => {
            ensure!(path.starts_with("/v1/"), "the path begins with /v1/, e.g. /v1/jobs");
            let answer: Value = endpoint.get(&path)?;
            print_pretty(&answer);
        }
        Command::Raft(RaftCommand::ListPeers) => {
            let configuration: Value = endpoint.get("/v1/operator/raft/configuration")?;
            println!("{}", peers(&configuration));
        }
    }
    Ok(())
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
