//! `meshctl server` and `meshctl agent`: the processes that stay.

use crate::client::Endpoint;
use crate::operator;
use agent::AgentConfig;
use anyhow::{Context, Result, ensure};
use clap::{Args, Subcommand};
use ipnet::IpNet;
use server::{Mode, ServerConfig};
use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::path::{Path, PathBuf};
use std::time::Duration;

#[derive(Subcommand)]
pub enum ServerCommand {
    /// Start the first server of a new cluster and make its certificate authority
    Init {
        #[command(flatten)]
        options: ServerOptions,
        /// Where allocations' addresses come from; cannot be changed later
        #[arg(long, default_value = "10.64.0.0/11", value_name = "CIDR")]
        alloc_range: IpNet,
        /// Where services' virtual addresses come from; cannot be changed later
        #[arg(long, default_value = "10.43.0.0/16", value_name = "CIDR")]
        vip_range: IpNet,
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
    /// Form a cluster with other servers that share a secret, or join the one they formed; starts again from its data, too
    Form {
        #[command(flatten)]
        options: ServerOptions,
        /// How many servers are to form the cluster; the same number on each
        #[arg(long, value_name = "NUMBER")]
        bootstrap_expect: u32,
        /// RPC addresses where others may be, now or later, e.g. 10.0.0.1:4647
        #[arg(long, value_delimiter = ',')]
        retry_join: Vec<SocketAddr>,
        /// Where allocations' addresses come from; cannot be changed later
        #[arg(long, default_value = "10.64.0.0/11", value_name = "CIDR")]
        alloc_range: IpNet,
        /// Where services' virtual addresses come from; cannot be changed later
        #[arg(long, default_value = "10.43.0.0/16", value_name = "CIDR")]
        vip_range: IpNet,
    },
    /// Print a fresh secret for servers that form a cluster
    Secret,
    /// Start a server again from its data directory
    Run {
        #[command(flatten)]
        options: ServerOptions,
    },
    /// After the loss of most servers for ever: make this stopped one the only server, with all that it knew
    Recover {
        #[arg(long, default_value = "/var/lib/meshctl/server")]
        data_dir: PathBuf,
        /// The server's name [default: the host name]
        #[arg(long)]
        name: Option<String>,
        /// None of the others will ever run again: two servers recovered apart are two clusters
        #[arg(long, required = true)]
        the_others_are_lost: bool,
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
    /// Where the RPC listens
    #[arg(long, value_name = "IP:PORT")]
    rpc: SocketAddr,
    /// Where other machines reach the RPC [default: the address it listens on]
    #[arg(long, value_name = "IP:PORT")]
    rpc_advertise: Option<SocketAddr>,
    /// Where the HTTP API listens; loopback only
    #[arg(long, default_value = "127.0.0.1:4646", value_name = "IP:PORT")]
    http: SocketAddr,
    /// How long the certificates that this server signs are good for; they are renewed at half of it
    #[arg(long, default_value = "72h", value_parser = humantime::parse_duration)]
    certificate_validity: Duration,
    /// A file with the secret that servers share, from `meshctl server secret`; only its owner may read it
    #[arg(long, value_name = "FILE")]
    secret_file: Option<PathBuf>,
    /// More nodes lost at once than this share is a storm, which holds the replacement of their work
    #[arg(long, default_value_t = 0.35, value_name = "SHARE")]
    storm_share: f64,
    /// How long a storm holds it
    #[arg(long, default_value = "60s", value_parser = humantime::parse_duration)]
    storm_hold: Duration,
}

impl ServerOptions {
    fn config(self, mode: Mode) -> Result<ServerConfig> {
        let name = self.name.map_or_else(hostname, Ok)?;
        ensure!((0.0..=1.0).contains(&self.storm_share), "storm-share: {} is no share of 1", self.storm_share);
        let cluster_secret = self.secret_file.as_deref().map(read_secret).transpose()?;
        let defaults = ServerConfig::new(self.data_dir, name, mode);
        let timing = server::Timing { storm_share: self.storm_share, storm_hold: self.storm_hold, ..defaults.timing };
        Ok(ServerConfig {
            cluster_secret,
            timing,
            datacenter: self.datacenter,
            rpc_bind: self.rpc,
            rpc_advertise: self.rpc_advertise,
            http_bind: Some(self.http),
            certificate_validity: self.certificate_validity,
            ..defaults
        })
    }
}

pub fn server(endpoint: &Endpoint, command: ServerCommand) -> Result<()> {
    let config = match command {
        ServerCommand::Members => return operator::members(endpoint),
        ServerCommand::Recover { data_dir, name, the_others_are_lost } => {
            ensure!(
                the_others_are_lost,
                "say -the-others-are-lost: a server that comes back would be a second cluster"
            );
            let removed = server::recover(&data_dir, &name.map_or_else(hostname, Ok)?)?;
            println!("This server is the only one now; {} others belong no more.", removed.len());
            println!("Start it with `meshctl server run`, then let new servers join with fresh tokens.");
            return Ok(());
        }
        ServerCommand::Init { options, alloc_range, vip_range } => {
            options.config(Mode::Init { alloc_range, vip_range })?
        }
        ServerCommand::Join { options, servers, token } => options.config(Mode::Join { servers, token })?,
        ServerCommand::Form { options, bootstrap_expect: expect, retry_join: servers, alloc_range, vip_range } => {
            ensure!(
                options.secret_file.is_some(),
                "secret-file: servers that form a cluster share one; make it with `meshctl server secret`"
            );
            options.config(Mode::Form { expect, servers, alloc_range, vip_range })?
        }
        ServerCommand::Secret => {
            println!("{}", server::ClusterSecret::generate()?.reveal());
            return Ok(());
        }
        ServerCommand::Run { options } => options.config(Mode::Resume)?,
    };
    log_to_stderr();
    runtime()?.block_on(server::run(config))
}

/// A secret that others on this machine can read is none.
fn read_secret(path: &Path) -> Result<server::ClusterSecret> {
    use std::os::unix::fs::MetadataExt;
    let shown = path.display();
    let mode = std::fs::metadata(path).with_context(|| format!("secret-file: cannot read {shown}"))?.mode();
    ensure!(mode & 0o077 == 0, "secret-file: others may read {shown}; `chmod 600` it");
    let text = std::fs::read_to_string(path).with_context(|| format!("secret-file: cannot read {shown}"))?;
    server::ClusterSecret::parse(&text).with_context(|| format!("secret-file: {shown}"))
}

fn hostname() -> Result<String> {
    let name = std::fs::read_to_string("/proc/sys/kernel/hostname")
        .context("name: could not read the host name; give -name")?;
    Ok(name.trim().to_owned())
}

/// RUST_LOG narrows or widens it.
pub fn log_to_stderr() {
    let filter = tracing_subscriber::EnvFilter::try_from_default_env().unwrap_or_else(|_| "info".into());
    tracing_subscriber::fmt().with_env_filter(filter).with_writer(std::io::stderr).init();
}

/// Many small tasks that mostly wait: one thread per core, and no more than four.
pub fn runtime() -> Result<tokio::runtime::Runtime> {
    let threads = std::thread::available_parallelism().map_or(2, usize::from).min(4);
    let mut builder = tokio::runtime::Builder::new_multi_thread();
    builder.worker_threads(threads).enable_all().build().context("could not start the runtime")
}

#[derive(Subcommand)]
pub enum AgentCommand {
    /// Run this node's agent; joins with a token at its first start
    Run(Box<AgentOptions>),
    /// Take a stopped agent's data path off this machine: programs, maps, interfaces, firewall rules; tasks stay, without a
    /// network
    Detach {
        #[arg(long, default_value = AGENT_DIR)]
        data_dir: PathBuf,
        #[arg(long, default_value = PIN_ROOT)]
        pin_root: PathBuf,
    },
    /// Remove everything a stopped agent left on this machine: tasks, namespaces, cgroups, links and pins
    Purge {
        #[arg(long, default_value = AGENT_DIR)]
        data_dir: PathBuf,
        #[arg(long, default_value = PIN_ROOT)]
        pin_root: PathBuf,
    },
}

const AGENT_DIR: &str = "/var/lib/meshctl/agent";
pub const PIN_ROOT: &str = "/sys/fs/bpf/meshctl";

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
    /// The engine of the docker driver
    #[arg(long, value_name = "SOCKET", default_value = "/var/run/docker.sock")]
    docker_socket: PathBuf,
    /// The engine of the podman driver
    #[arg(long, value_name = "SOCKET", default_value = "/run/podman/podman.sock")]
    podman_socket: PathBuf,
    /// Let containers mount directories of this node and named volumes
    #[arg(long)]
    docker_volumes: bool,
    /// Let containers be privileged and have devices and namespaces of this node
    #[arg(long)]
    docker_allow_privileged: bool,
    /// A directory of this node that artifacts may be copied from; may be repeated
    #[arg(long = "artifact-dir", value_name = "DIR")]
    artifact_dirs: Vec<PathBuf>,
    /// Allow the raw_exec driver, which isolates nothing
    #[arg(long)]
    raw_exec: bool,
}

impl AgentOptions {
    fn config(self) -> Result<AgentConfig> {
        let address = self.advertise.map_or_else(|| address_of(&self.uplink), Ok)?;
        let defaults = AgentConfig::for_address(address);
        let (volumes, allow_privileged) = (self.docker_volumes, self.docker_allow_privileged);
        let engine = |options, socket| agent::DockerOptions { socket, volumes, allow_privileged, ..options };
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
            docker: engine(defaults.docker, self.docker_socket),
            podman: engine(defaults.podman, self.podman_socket),
            artifact_dirs: self.artifact_dirs,
            ..defaults
        })
    }
}

fn key_value(text: &str) -> Result<(String, String), String> {
    let pair = text.split_once('=').map(|(key, value)| (key.to_owned(), value.to_owned()));
    pair.ok_or_else(|| format!("`{text}` has no `=`; write KEY=VALUE"))
}

/// The first IPv4 address of an interface.
pub fn address_of(interface: &str) -> Result<IpAddr> {
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
        AgentCommand::Detach { data_dir, pin_root } => {
            let defaults = AgentConfig::for_address(IpAddr::V4(Ipv4Addr::LOCALHOST));
            Ok(runtime()?.block_on(agent::detach(&AgentConfig { data_dir, pin_root, ..defaults }))?)
        }
        AgentCommand::Purge { data_dir, pin_root } => {
            let defaults = AgentConfig::for_address(IpAddr::V4(Ipv4Addr::LOCALHOST));
            let config = AgentConfig { data_dir, pin_root, ..defaults };
            Ok(runtime()?.block_on(agent::purge(&config))?)
        }
    }
}
