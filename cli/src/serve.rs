//! `meshctl server`, `meshctl agent`, `meshctl dev`: the processes that stay.

use crate::client::Endpoint;
use crate::operator;
use agent::{Agent, AgentConfig};
use anyhow::{Context, Result};
use clap::{Args, Subcommand};
use server::{Mode, Server, ServerConfig, TokenRequest};
use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::path::PathBuf;
use std::time::Duration;
use tokio::net::TcpListener;
use tokio::signal::unix::{SignalKind, signal};

#[derive(Subcommand)]
pub enum ServerCommand {
    /// Start the first server of a new cluster and make its certificate authority
    Init {
        #[command(flatten)]
        options: ServerOptions,
    },
    /// Start a server that joins a cluster with a token
    Join {
        #[command(flatten)]
        options: ServerOptions,
        /// RPC addresses of servers, e.g. 10.0.0.1:4647
        #[arg(long, required = true, value_delimiter = ',')]
        servers: Vec<SocketAddr>,
        /// From `meshctl token create -role server`
        #[arg(long, env = "MESHCTL_JOIN_TOKEN", hide_env_values = true)]
        token: String,
    },
    /// Start a server again from its data directory
    Run {
        #[command(flatten)]
        options: ServerOptions,
    },
    /// List the servers
    Members,
}

#[derive(Args)]
pub struct ServerOptions {
    #[arg(long, default_value = "/var/lib/meshctl/server")]
    data_dir: PathBuf,
    /// Unique among the servers [default: the host name]
    #[arg(long)]
    name: Option<String>,
    #[arg(long, default_value = "dc1")]
    datacenter: String,
    /// Where the RPC listens and other machines reach it
    #[arg(long, value_name = "IP:PORT")]
    rpc: SocketAddr,
    /// Where the HTTP API listens; loopback only
    #[arg(long, default_value = "127.0.0.1:4646", value_name = "IP:PORT")]
    http: SocketAddr,
}

impl ServerOptions {
    fn config(self, mode: Mode) -> Result<ServerConfig> {
        let name = self.name.map_or_else(hostname, Ok)?;
        let defaults = ServerConfig::new(self.data_dir, name, mode);
        Ok(ServerConfig { datacenter: self.datacenter, rpc_bind: self.rpc, http_bind: Some(self.http), ..defaults })
    }
}

pub fn server(endpoint: &Endpoint, command: ServerCommand) -> Result<()> {
    let config = match command {
        ServerCommand::Members => return operator::members(endpoint),
        ServerCommand::Init { options } => options.config(Mode::init())?,
        ServerCommand::Join { options, servers, token } => options.config(Mode::Join { servers, token })?,
        ServerCommand::Run { options } => options.config(Mode::Resume)?,
    };
    log_to_stderr();
    runtime()?.block_on(server::run(config))
}

fn hostname() -> Result<String> {
    let name = std::fs::read_to_string("/proc/sys/kernel/hostname")
        .context("name: could not read the host name; give -name")?;
    Ok(name.trim().to_owned())
}

/// RUST_LOG narrows or widens it.
fn log_to_stderr() {
    let filter = tracing_subscriber::EnvFilter::try_from_default_env().unwrap_or_else(|_| "info".into());
    tracing_subscriber::fmt().with_env_filter(filter).with_writer(std::io::stderr).init();
}

/// Many small tasks that mostly wait: one thread per core, and no more than four.
fn runtime() -> Result<tokio::runtime::Runtime> {
    let threads = std::thread::available_parallelism().map_or(2, usize::from).min(4);
    let mut builder = tokio::runtime::Builder::new_multi_thread();
    builder.worker_threads(threads).enable_all().build().context("could not start the runtime")
}

#[derive(Subcommand)]
pub enum AgentCommand {
    /// Run this node's agent; joins with a token at its first start
    Run(Box<AgentOptions>),
    /// Remove everything a stopped agent left on this machine: tasks, namespaces, cgroups, links and pins
    Purge {
        #[arg(long, default_value = AGENT_DIR)]
        data_dir: PathBuf,
        #[arg(long, default_value = PIN_ROOT)]
        pin_root: PathBuf,
    },
}

const AGENT_DIR: &str = "/var/lib/meshctl/agent";
const DEV_DIR: &str = "/var/lib/meshctl/dev";
const PIN_ROOT: &str = "/sys/fs/bpf/meshctl";

#[derive(Args)]
pub struct AgentOptions {
    #[arg(long, default_value = AGENT_DIR)]
    data_dir: PathBuf,
    /// Unique in the cluster [default: the host name]
    #[arg(long)]
    name: Option<String>,
    #[arg(long, default_value = "dc1")]
    datacenter: String,
    /// What constraints read as ${node.class}
    #[arg(long, default_value = "")]
    class: String,
    /// What constraints read as ${meta.KEY}; may be given several times
    #[arg(long, value_name = "KEY=VALUE", value_parser = key_value)]
    meta: Vec<(String, String)>,
    /// RPC addresses of servers, e.g. 10.0.0.1:4647
    #[arg(long, required = true, value_delimiter = ',')]
    servers: Vec<SocketAddr>,
    /// From `meshctl token create -role agent`; needed at the first start only
    #[arg(long, env = "MESHCTL_JOIN_TOKEN", hide_env_values = true)]
    token: Option<String>,
    /// The interface that other nodes and clients are reached through; gets the XDP program
    #[arg(long)]
    uplink: String,
    /// The node's own address [default: the uplink's first IPv4 address]
    #[arg(long, value_name = "IP")]
    advertise: Option<IpAddr>,
    /// A directory on bpffs for maps and links that outlive the agent
    #[arg(long, default_value = PIN_ROOT)]
    pin_root: PathBuf,
    /// Where the node's own HTTP listens; loopback only
    #[arg(long, default_value = "127.0.0.1:4646", value_name = "IP:PORT")]
    http: SocketAddr,
    /// Where DNS listens beside port 53 of the node's mesh address
    #[arg(long, default_value = "127.0.0.1:8600", value_name = "IP:PORT")]
    dns: SocketAddr,
    /// Allow the raw_exec driver, which isolates nothing
    #[arg(long)]
    raw_exec: bool,
}

impl AgentOptions {
    fn config(self) -> Result<AgentConfig> {
        let address = self.advertise.map_or_else(|| address_of(&self.uplink), Ok)?;
        let defaults = AgentConfig::for_address(address);
        Ok(AgentConfig {
            data_dir: self.data_dir,
            name: self.name.unwrap_or(defaults.name),
            datacenter: self.datacenter,
            class: self.class,
            meta: self.meta.into_iter().collect(),
            servers: self.servers,
            token: self.token,
            uplink: Some(self.uplink),
            pin_root: self.pin_root,
            http_bind: Some(self.http),
            dns_bind: self.dns,
            raw_exec: self.raw_exec,
            ..defaults
        })
    }
}

fn key_value(text: &str) -> Result<(String, String), String> {
    let pair = text.split_once('=').map(|(key, value)| (key.to_owned(), value.to_owned()));
    pair.ok_or_else(|| format!("`{text}` has no `=`; write KEY=VALUE"))
}

/// The first IPv4 address of an interface.
fn address_of(interface: &str) -> Result<IpAddr> {
    let all = nix::ifaddrs::getifaddrs().context("uplink: could not list the interfaces")?;
    let own = all.filter(|entry| entry.interface_name == interface);
    let address = own.filter_map(|entry| Some(IpAddr::V4(entry.address?.as_sockaddr_in()?.ip()))).next();
    address.with_context(|| {
        format!(
            "uplink: {interface} is not an interface with an IPv4 address; `ip addr` lists them, or give -advertise"
        )
    })
}

pub fn agent(command: AgentCommand) -> Result<()> {
    log_to_stderr();
    match command {
        AgentCommand::Run(options) => runtime()?.block_on(agent::run(options.config()?)),
        AgentCommand::Purge { data_dir, pin_root } => {
            let defaults = AgentConfig::for_address(IpAddr::V4(Ipv4Addr::LOCALHOST));
            let config = AgentConfig { data_dir, pin_root, ..defaults };
            Ok(runtime()?.block_on(agent::purge(&config))?)
        }
    }
}

#[derive(Args)]
pub struct DevOptions {
    /// Emptied at the start and at the end
    #[arg(long, default_value = DEV_DIR)]
    data_dir: PathBuf,
    /// Also forward what comes in through this interface; without it no real interface is touched
    #[arg(long)]
    uplink: Option<String>,
    #[arg(long, default_value = PIN_ROOT)]
    pin_root: PathBuf,
    /// Where the HTTP API listens; loopback only
    #[arg(long, default_value = "127.0.0.1:4646", value_name = "IP:PORT")]
    http: SocketAddr,
    /// Where the servers' RPC listens; loopback is enough for one machine
    #[arg(long, default_value = "127.0.0.1:4647", value_name = "IP:PORT")]
    rpc: SocketAddr,
    /// Where DNS listens
    #[arg(long, default_value = "127.0.0.1:8600", value_name = "IP:PORT")]
    dns: SocketAddr,
}

pub fn dev(options: DevOptions) -> Result<()> {
    log_to_stderr();
    runtime()?.block_on(run_dev(options))
}

/// Everything is real but the number of machines; what it made goes with it, and what a killed one left goes first.
async fn run_dev(options: DevOptions) -> Result<()> {
    let address = options.uplink.as_deref().map_or(Ok(IpAddr::V4(Ipv4Addr::LOCALHOST)), address_of)?;
    let defaults = AgentConfig::for_address(address);
    let mut config = AgentConfig {
        data_dir: options.data_dir.join("agent"),
        servers: vec![options.rpc],
        uplink: options.uplink.clone(),
        pin_root: options.pin_root.clone(),
        http_bind: None,
        dns_bind: options.dns,
        raw_exec: true,
        ..defaults
    };
    let listener = TcpListener::bind(options.http).await;
    let listener =
        listener.with_context(|| format!("http: cannot listen on {}; is another one running?", options.http))?;
    clear(&options, &config).await?;
    let mut interrupt = signal(SignalKind::interrupt())?;
    let mut terminate = signal(SignalKind::terminate())?;
    let server_config = ServerConfig::new(options.data_dir.join("server"), &config.name, Mode::init());
    let server = Server::start(ServerConfig { rpc_bind: options.rpc, http_bind: None, ..server_config }).await?;
    let token = TokenRequest { role: model::Role::Agent, uses: 1, ttl: Some(TOKEN_TTL) };
    config.token = Some(server.create_token(token).await?);
    let agent = Agent::start(config.clone()).await?;
    let router = server.router().merge(agent::router(agent.handle()));
    println!(
        "meshctl dev: HTTP on {}, DNS on {}; try `meshctl job run examples/web.nomad.hcl`",
        options.http, options.dns
    );
    tokio::select! {
        served = axum::serve(listener, router) => served?,
        _ = interrupt.recv() => {}
        _ = terminate.recv() => {}
    }
    println!("meshctl dev: stopping, and removing what it made");
    drop(agent);
    server.shutdown().await;
    clear(&options, &config).await
}

const TOKEN_TTL: Duration = Duration::from_secs(600);

/// Tasks, namespaces, links and pins, then the files.
async fn clear(options: &DevOptions, config: &AgentConfig) -> Result<()> {
    if !options.data_dir.exists() {
        return Ok(());
    }
    agent::purge(config).await?;
    for part in ["agent", "server"] {
        let dir = options.data_dir.join(part);
        if dir.exists() {
            std::fs::remove_dir_all(&dir).with_context(|| format!("data_dir: could not empty {}", dir.display()))?;
        }
    }
    Ok(())
}
