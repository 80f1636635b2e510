//! The node's networking: allocations' namespaces, the kernel's maps and the DNS listener, kept in step with what the
//! servers push.
//!
//! ```text
//! create, remove, retain, set_routing ──> Stack (one thread) ──┬─ network: namespaces, veths, next hops
//! changed neighbours, unresolved hops ──────────┘              ├─ dataplane: compile, diff ──> kernel: publish
//!                                                              └─ zone ──> Listener: DNS
//! ```
//!
//! The stack owns its state alone and works on a thread of its own: compiling rings must not hold up anything else. What
//! came in together is published together. Ending the agent leaves everything in the kernel as it is.

mod endpoints;
mod guard;
mod ipam;
mod listener;
mod metrics;
mod report;
mod stack;
#[cfg(test)]
mod tests;
mod trace;

use crate::datapath::{DataPath, Place};
use futures::future::BoxFuture;
pub(crate) use metrics::prometheus;
use model::{AllocId, AllocatedPort, NodeId, RoutingSnapshot};
use stack::Command;
pub(crate) use stack::cgroup2_root;
use std::collections::BTreeSet;
use std::io;
use std::net::{IpAddr, SocketAddr};
use std::ops::RangeInclusive;
use std::path::{Path, PathBuf};
use thiserror::Error;
use tokio::sync::{mpsc, oneshot};
use wire::routes::{RouteReport, TraceQuestion, TraceReport};

/// Commands that wait while the stack works; a sender beyond waits itself.
const QUEUE_MAX: usize = 256;

/// Ports that an operator reaches a node by, and servers' default ones; no service may take them away with a tag.
const RESERVED_PORTS: [u16; 4] = [22, 4646, 4647, 4648];
const LOCAL_PORT_RANGE: &str = "/proc/sys/net/ipv4/ip_local_port_range";

#[derive(Clone, Debug)]
pub struct NetConfig {
    pub node_id: NodeId,
    pub node_name: String,
    pub datacenter: String,
    /// Where tunnels end, and edge services and host ports listen.
    pub address: IpAddr,
    /// The interface that carries `address`; without one only the socket hook, DNS and veths work.
    pub uplink: Option<String>,
    pub pin_root: PathBuf,
    pub dns_bind: Option<SocketAddr>,
    pub dns_domain: String,
    /// What else this agent listens on.
    pub binds: Vec<SocketAddr>,
}

#[derive(Debug, Error)]
pub enum NetError {
    #[error(transparent)]
    Network(#[from] network::Error),
    #[error(transparent)]
    Kernel(#[from] kernel::KernelError),
    #[error(transparent)]
    Interface(#[from] kernel::InterfaceError),
    #[error(transparent)]
    Zone(#[from] dns::ZoneError),
    #[error("no cgroup2 hierarchy is mounted; mount one with `mount -t cgroup2 cgroup2 /sys/fs/cgroup`")]
    NoCgroup2,
    #[error("the uplink {uplink} does not carry the address {address}; give --address one of its own")]
    ForeignAddress { uplink: String, address: IpAddr },
    #[error("cannot serve DNS on {address}; stop what listens there or choose another --dns-bind")]
    DnsBind {
        address: SocketAddr,
        #[source]
        source: io::Error,
    },
    #[error("cannot start the networking thread")]
    Thread(#[source] io::Error),
    #[error("the servers have given this node no address block yet; wait until it has joined")]
    NoBlock,
    #[error("all addresses of this node's blocks are in use; stop an allocation or add a node")]
    AddressesExhausted,
    #[error("the allocation's network was taken away while it was waited for")]
    Withdrawn,
    #[error("the kernel's maps could not be written ({0}); the agent tries again")]
    Unpublished(String),
    #[error("cannot trace {0}")]
    Untraceable(String),
    #[error("the networking thread has ended; restart the agent")]
    Stopped,
}

/// Speaks to the running stack.
#[derive(Clone, Debug)]
pub struct NetStack {
    commands: mpsc::Sender<Command>,
}

impl NetStack {
    /// Attaches the data path and adopts what an earlier agent of this node left. Returns once everything serves that can
    /// before the servers have spoken.
    pub async fn start(config: NetConfig) -> Result<Self, NetError> {
        let (commands, queue) = mpsc::channel(QUEUE_MAX);
        let (started, start) = oneshot::channel();
        let thread = std::thread::Builder::new().name("net".to_owned());
        thread.spawn(move || stack::run(config, queue, started)).map_err(NetError::Thread)?;
        start.await.map_err(|_| NetError::Stopped)??;
        Ok(Self { commands })
    }

    /// Gives an allocation its network, or finds the one it has.
    pub async fn create(&self, id: AllocId, ports: Vec<AllocatedPort>) -> Result<Place, NetError> {
        self.ask(|reply| Command::Create { id, ports, reply }).await?
    }

    /// Takes an allocation's network away; one that is not there is fine.
    pub async fn remove(&self, id: AllocId) -> Result<(), NetError> {
        self.ask(|reply| Command::Remove { id, reply }).await?
    }

    /// Removes every allocation's network but these.
    pub async fn retain(&self, ids: Vec<AllocId>) -> Result<(), NetError> {
        let ids = ids.iter().map(AllocId::short).collect();
        self.ask(|reply| Command::Retain { ids, reply }).await?
    }

    /// Takes the newest picture; returns once the kernel follows it. An older one than is held is ignored.
    pub async fn set_routing(&self, routing: RoutingSnapshot) -> Result<(), NetError> {
        self.ask(|reply| Command::SetRouting { routing: Box::new(routing), reply }).await?
    }

    pub async fn report(&self) -> Result<RouteReport, NetError> {
        self.ask(|reply| Command::Report { reply }).await?
    }

    /// What the loaded program would do with a packet; changes nothing.
    pub async fn trace(&self, asked: TraceQuestion) -> Result<TraceReport, NetError> {
        self.ask(|reply| Command::Trace { asked, reply }).await?
    }

    async fn ask<T>(&self, command: impl FnOnce(oneshot::Sender<T>) -> Command) -> Result<T, NetError> {
        let (reply, answer) = oneshot::channel();
        self.commands.send(command(reply)).await.map_err(|_| NetError::Stopped)?;
        answer.await.map_err(|_| NetError::Stopped)
    }
}

impl DataPath for NetStack {
    fn create(&self, id: AllocId, ports: Vec<AllocatedPort>) -> BoxFuture<'_, Result<Place, String>> {
        Box::pin(async move { NetStack::create(self, id, ports).await.map_err(|error| chain(&error)) })
    }

    fn remove(&self, id: AllocId) -> BoxFuture<'_, Result<(), String>> {
        Box::pin(async move { NetStack::remove(self, id).await.map_err(|error| chain(&error)) })
    }

    fn retain(&self, ids: Vec<AllocId>) -> BoxFuture<'_, Result<(), String>> {
        Box::pin(async move { NetStack::retain(self, ids).await.map_err(|error| chain(&error)) })
    }

    fn set_routing(&self, routing: RoutingSnapshot) -> BoxFuture<'_, Result<(), String>> {
        Box::pin(async move { NetStack::set_routing(self, routing).await.map_err(|error| chain(&error)) })
    }

    fn report(&self) -> BoxFuture<'_, Result<RouteReport, String>> {
        Box::pin(async move { NetStack::report(self).await.map_err(|error| chain(&error)) })
    }

    fn trace(&self, asked: TraceQuestion) -> BoxFuture<'_, Result<TraceReport, String>> {
        Box::pin(async move { NetStack::trace(self, asked).await.map_err(|error| chain(&error)) })
    }
}

/// Takes everything of a node out of the kernel: links, maps, namespaces, veths, the mesh address, firewall
/// rules and the forwarding they had switched on. Its agent must not run.
pub async fn purge(node_id: NodeId, pin_root: &Path) -> Result<(), NetError> {
    kernel::detach_all(pin_root, &node_id.to_string())?;
    let network = network::Network::open(node_id)?;
    for leftover in network.list().await?.values() {
        network.remove_leftover(leftover).await?;
    }
    network.remove_mesh_link().await?;
    network.remove_mesh_addresses().await?;
    Ok(network.unguard()?)
}

/// An error with its causes, in one line.
fn chain(error: &dyn std::error::Error) -> String {
    std::iter::successors(error.source(), |cause| cause.source())
        .fold(error.to_string(), |text, cause| format!("{text}: {cause}"))
}

/// What the node listens on. Must be called in its namespace.
fn reserved_ports(config: &NetConfig) -> BTreeSet<u16> {
    let binds = config.binds.iter().chain(&config.dns_bind).map(SocketAddr::port);
    RESERVED_PORTS.into_iter().chain(binds).collect()
}

/// What the node's connections to others leave from, and allocations' that take its address: a route would swallow their
/// answers. Must be called in the node's namespace.
fn local_ports() -> Option<RangeInclusive<u16>> {
    parse_range(&std::fs::read_to_string(LOCAL_PORT_RANGE).ok()?)
}

fn parse_range(text: &str) -> Option<RangeInclusive<u16>> {
    let mut numbers = text.split_whitespace().map(str::parse);
    Some(numbers.next()?.ok()?..=numbers.next()?.ok()?)
}
