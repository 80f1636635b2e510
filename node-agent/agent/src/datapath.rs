//! What the rest of the agent needs of the data path, so that everything else can be run and tested without one.

use futures::future::BoxFuture;
use model::{AllocId, AllocatedPort, RoutingSnapshot};
use std::net::IpAddr;
use std::path::PathBuf;
use wire::routes::{RouteReport, TraceQuestion, TraceReport};

/// Where an allocation's tasks live on the network; all `None` in network mode host.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Place {
    pub netns: Option<PathBuf>,
    pub address: Option<IpAddr>,
    pub resolver: Option<IpAddr>,
}

/// Errors are texts for people: they end up in an allocation's description or the log.
pub trait DataPath: Send + Sync {
    /// The network of an allocation in mode bridge; adopts what exists.
    fn create(&self, id: AllocId, ports: Vec<AllocatedPort>) -> BoxFuture<'_, Result<Place, String>>;
    fn remove(&self, id: AllocId) -> BoxFuture<'_, Result<(), String>>;
    /// Removes the networks of all allocations but these.
    fn retain(&self, ids: Vec<AllocId>) -> BoxFuture<'_, Result<(), String>>;
    /// Whole, so the newest is enough.
    fn set_routing(&self, routing: RoutingSnapshot) -> BoxFuture<'_, Result<(), String>>;
    /// What the kernel really does, counters included.
    fn report(&self) -> BoxFuture<'_, Result<RouteReport, String>>;
    /// What it would do with a packet.
    fn trace(&self, _asked: TraceQuestion) -> BoxFuture<'_, Result<TraceReport, String>> {
        Box::pin(async { Err("this node has no data path to ask".to_owned()) })
    }
}
