//! The agent of a node: joins, keeps one session with the leading server, runs what the servers want, checks it, and says
//! what became of it.
//!
//! ```text
//!   servers <==session==> Session --pushes--> Allocs (manager) --> runner per allocation --> supervisors, checks
//!                            |                   |                        |
//!                            +---routing---> DataPath (net) <---networks--+
//! ```
//! Each piece of state has one owning task: the session its stream and where to dial, the manager the table of allocations, a
//! runner its allocation, the data path its maps. What decides (`allocs::machine`, `allocs::reconcile`, `allocs::restart`, the
//! session's dialer) is plain values.
//!
//! Ending the agent, cleanly or not, ends none of what it started: the next start finds supervisors, namespaces and pinned maps
//! and goes on. [`purge()`] is what takes everything away.

pub mod allocs;
mod asks;
pub mod checks;
pub mod config;
pub mod datadir;
pub mod datapath;
mod driver_set;
pub mod enrol;
pub mod entropy;
pub mod files;
pub mod fingerprint;
mod http;
pub mod logs;
pub mod lookup;
pub mod net;
pub mod preflight;
mod probes;
mod purge;
pub mod session;
pub mod store;

pub use config::AgentConfig;
pub use drivers::DockerOptions;
pub use http::router;
pub use purge::{PurgeError, detach, end_tasks, purge};

use allocs::{Allocs, Reports, Shell};
use anyhow::Context;
use checks::CheckPool;
use datadir::DataDir;
use datapath::DataPath;
use drivers::Launcher;
use entropy::{Jitter, entropy};
use files::Sources;
use model::{Node, NodeId};
use net::{NetConfig, NetStack};
use session::{LinkStatus, Refused, Session};
use std::collections::BTreeMap;
use std::sync::Arc;
use store::Store;
use tokio::net::TcpListener;
use tokio::signal::unix::{SignalKind, signal};
use tokio::sync::{oneshot, watch};
use tokio::task::JoinSet;

/// Runs until SIGTERM or SIGINT, which leave tasks and data path as they are, or until the servers refuse this node.
pub async fn run(config: AgentConfig) -> anyhow::Result<()> {
    let mut terminate = signal(SignalKind::terminate())?;
    let mut interrupt = signal(SignalKind::interrupt())?;
    let mut agent = tokio::select! {
        agent = Agent::start(config) => agent?,
        _ = terminate.recv() => return Ok(()),
        _ = interrupt.recv() => return Ok(()),
    };
    agent.listen().await?;
    tokio::select! {
        _ = terminate.recv() => {}
        _ = interrupt.recv() => {}
        refused = agent.refused() => return Err(refused.into()),
    }
    tracing::info!("the agent ends; tasks and data path go on");
    Ok(())
}

/// A running agent; dropping it ends the agent's own work and leaves tasks and data path as they are.
pub struct Agent {
    handle: AgentHandle,
    config: AgentConfig,
    refusal: oneshot::Receiver<Refused>,
    work: JoinSet<()>,
}

/// May look at a running agent.
#[derive(Clone)]
pub struct AgentHandle {
    pub node: Arc<Node>,
    pub data_path: Arc<dyn DataPath>,
    pub reports: watch::Receiver<Reports>,
    pub link: watch::Receiver<LinkStatus>,
}

impl Agent {
    /// Checks everything, joins if this node has not, takes over what runs, and keeps a session from then on.
    pub async fn start(config: AgentConfig) -> anyhow::Result<Self> {
        preflight::check(&config)?;
        raise_file_limit();
        let data = DataDir::open(&config.data_dir)?;
        let store = Store::open(&data.state_file())?;
        let random = entropy().context("the kernel gives no random bytes")?;
        let id = store.node_id(random)?;
        let credentials = enrol::enrol(&config, &data, id).await?;
        let node = describe(&config, id);
        let data_path: Arc<dyn DataPath> = Arc::new(NetStack::start(net_config(&config, id)).await?);
        let jitter = Jitter::seeded((random >> 64) as u64);
        tracing::info!(node = %id, name = node.name, "agent starts");
        let rebooted = store.note_boot(&boot_id().context("the kernel does not name this start of the machine")?)?;
        let (status, link) = watch::channel(LinkStatus { servers: config.servers.clone(), ..LinkStatus::default() });
        let (routing, routes) = watch::channel(None);
        let cluster = Some(lookup::ClusterData::new(credentials.clone(), link.clone()));
        let policy = artifact::Policy { file_roots: config.artifact_dirs.clone(), ..artifact::Policy::default() };
        let mut shell = shell(&config, &node, &data, &data_path, &jitter, Sources { routing: routes, cluster, policy });
        shell.rebooted = rebooted;
        let allocs = Allocs::start(shell, store.clone()).await?;
        let handle = AgentHandle {
            node: Arc::new(node.clone()),
            data_path: Arc::clone(&data_path),
            reports: allocs.reports(),
            link,
        };
        let (refusal_to, refusal) = oneshot::channel();
        let mut work = JoinSet::new();
        work.spawn(tell_contact(allocs.clone(), handle.link.clone()));
        let session = Session {
            node,
            credentials,
            servers: config.servers.clone(),
            store,
            allocs,
            data_path,
            logs: logs::LogReader::new(data),
            jitter: jitter.fork(1),
            status,
            routing,
        };
        work.spawn(session.run(refusal_to));
        Ok(Self { handle, config, refusal, work })
    }

    pub fn handle(&self) -> AgentHandle {
        self.handle.clone()
    }

    /// Serves the agent's own HTTP, where the configuration names an address; `dev` merges [`router`] into the server's.
    pub async fn listen(&mut self) -> anyhow::Result<()> {
        let Some(address) = self.config.http_bind else { return Ok(()) };
        let listener =
            TcpListener::bind(address).await.with_context(|| format!("http_bind: cannot listen on {address}"))?;
        let handle = self.handle();
        self.work.spawn(async move {
            if let Err(error) = http::serve(listener, handle).await {
                tracing::error!(%error, "HTTP has ended");
            }
        });
        Ok(())
    }

    /// Resolves if a server refuses the very first hello: this node cannot become a member as it is.
    pub async fn refused(&mut self) -> Refused {
        match (&mut self.refusal).await {
            Ok(refused) => refused,
            // The session keeps its end for as long as the agent lives once it was welcomed.
            Err(_) => std::future::pending().await,
        }
    }
}

/// Differs from one start of the machine to the next.
fn boot_id() -> std::io::Result<String> {
    std::fs::read_to_string("/proc/sys/kernel/random/boot_id").map(|id| id.trim().to_owned())
}

async fn tell_contact(allocs: Allocs, mut link: watch::Receiver<LinkStatus>) {
    loop {
        allocs.set_contact(link.borrow_and_update().connected_to.is_some());
        if link.changed().await.is_err() {
            return;
        }
    }
}

/// Shells start processes with 1024 open files at most, which a node's tasks, logs and connections soon need.
fn raise_file_limit() {
    use nix::sys::resource::{Resource, getrlimit, setrlimit};
    let raised =
        getrlimit(Resource::RLIMIT_NOFILE).and_then(|(_, hard)| setrlimit(Resource::RLIMIT_NOFILE, hard, hard));
    if let Err(error) = raised {
        tracing::warn!(%error, "cannot raise the limit of open files");
    }
}

fn net_config(config: &AgentConfig, node_id: NodeId) -> NetConfig {
    NetConfig {
        node_id,
        node_name: config.name.clone(),
        datacenter: config.datacenter.clone(),
        address: config.address,
        uplink: config.uplink.clone(),
        pin_root: config.pin_root.clone(),
        dns_bind: Some(config.dns_bind),
        dns_domain: config.dns_domain.clone(),
        binds: config.http_bind.into_iter().collect(),
    }
}

fn shell(
    config: &AgentConfig,
    node: &Node,
    data: &DataDir,
    data_path: &Arc<dyn DataPath>,
    jitter: &Jitter,
    files: Sources,
) -> Shell {
    Shell {
        node: node.clone(),
        data: data.clone(),
        launcher: Launcher::new(&config.supervisor),
        drivers: driver_set::of(config),
        data_path: Arc::clone(data_path),
        drain_grace: config.drain_grace,
        kill_timeout_max: config.kill_timeout_max,
        jitter: jitter.clone(),
        checks: CheckPool::start(),
        launches: Shell::launches(),
        files,
        rebooted: false,
    }
}

fn describe(config: &AgentConfig, id: NodeId) -> Node {
    let drivers = driver_set::of(config);
    let found: BTreeMap<_, _> = drivers.iter().map(|driver| (driver.name().to_owned(), driver.fingerprint())).collect();
    let mut node = fingerprint::node(config, id, found);
    node.attributes.extend(driver_set::attributes(&drivers));
    node
}
