//! What templates are told: services and nodes from the routing that the servers push, keys and variables looked up there,
//! files of the task.

use super::dirs::Layout;
use super::{Wanted, read_file};
use crate::lookup::{ClusterData, Found, Lookup};
use futures::StreamExt;
use futures::stream::FuturesUnordered;
use model::{AllocId, Health, Instance, NodeId, RoutedNode, RoutingSnapshot};
use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;
use template::{Content, Data, Dependency, Fetched, KeyValue, NodeEntry, ServiceEntry};
use tokio::sync::watch;
use tokio::time::sleep;

const LOOKUP_WAIT: Duration = Duration::from_secs(60);
const LOOKUP_RETRY: Duration = Duration::from_secs(5);

/// Where a node's templates and artifacts get what they show. A clone sees the same.
#[derive(Clone)]
pub struct Sources {
    /// `None` until the servers have pushed it.
    pub routing: watch::Receiver<Option<RoutingSnapshot>>,
    /// `None` where there are no servers to ask.
    pub cluster: Option<ClusterData>,
    pub policy: artifact::Policy,
}

/// One task's view of it all.
pub struct View {
    routing: watch::Receiver<Option<RoutingSnapshot>>,
    cluster: Option<ClusterData>,
    alloc_id: AllocId,
    node_id: NodeId,
    layout: Layout,
    known: BTreeMap<Dependency, Known>,
    /// What of the routing the last rendering was shown.
    shown: BTreeMap<Dependency, Fetched>,
}

struct Known {
    index: u64,
    fetched: Fetched,
}

impl View {
    pub fn new(sources: &Sources, wanted: &Wanted, layout: Layout) -> Self {
        Self {
            routing: sources.routing.clone(),
            cluster: sources.cluster.clone(),
            alloc_id: wanted.alloc.id,
            node_id: wanted.node.id,
            layout,
            known: BTreeMap::new(),
            shown: BTreeMap::new(),
        }
    }

    /// Asks the servers for what is not known yet; whether anything new came, so that rendering again is worth it.
    pub async fn look_up(&mut self, asked: &BTreeSet<Dependency>) -> bool {
        self.known.retain(|known, _| asked.contains(known));
        self.shown = asked
            .iter()
            .filter(|wanted| self.lookup(wanted).is_none())
            .map(|wanted| (wanted.clone(), self.of_routing(wanted)))
            .collect();
        let Some(cluster) = self.cluster.clone() else { return false };
        let mut any = false;
        for wanted in asked.iter().filter(|wanted| !self.known.contains_key(*wanted)).cloned().collect::<Vec<_>>() {
            let Some(lookup) = self.lookup(&wanted) else { continue };
            let known = match cluster.look_up(&lookup, 0, Duration::ZERO).await {
                Ok(found) => Known { index: found.index, fetched: content(&wanted, found) },
                Err(reason) => {
                    tracing::warn!(%wanted, reason, "cannot be looked up; trying again");
                    Known { index: 0, fetched: Fetched::Pending }
                }
            };
            any |= known.fetched != Fetched::Pending;
            self.known.insert(wanted, known);
        }
        any
    }

    /// With the task's `${…}` replaced.
    pub fn filled(&self, text: &str) -> String {
        self.layout.filled(text)
    }

    fn lookup(&self, wanted: &Dependency) -> Option<Lookup> {
        match wanted {
            Dependency::Key(key) => Some(Lookup::Key(key.clone())),
            Dependency::KeyPrefix(prefix) => Some(Lookup::Prefix(format!("{prefix}/"))),
            Dependency::Variable(path) => Some(Lookup::Variable { path: path.clone(), alloc_id: self.alloc_id }),
            _ => None,
        }
    }

    /// Until something that was shown is another. Dropping it forgets nothing.
    pub async fn changed(&mut self) {
        loop {
            let news = {
                let lookups = self.lookups();
                tokio::select! {
                    changed = self.routing.changed() => {
                        if changed.is_err() {
                            // The session has ended, and with it the agent.
                            return std::future::pending().await;
                        }
                        None
                    }
                    Some(news) = next_of(lookups) => Some(news),
                }
            };
            match news {
                Some((wanted, known)) => {
                    let is_new = self.known.get(&wanted).is_none_or(|old| old.fetched != known.fetched);
                    self.known.insert(wanted, known);
                    if is_new {
                        return;
                    }
                }
                None if self.shown.iter().any(|(wanted, shown)| self.of_routing(wanted) != *shown) => return,
                None => {}
            }
        }
    }

    /// Each waits at the servers for something newer.
    fn lookups(&self) -> Vec<(Dependency, Lookup, u64, ClusterData)> {
        let Some(cluster) = &self.cluster else { return Vec::new() };
        let asked = self
            .known
            .iter()
            .filter_map(|(wanted, known)| Some((wanted.clone(), self.lookup(wanted)?, known.index, cluster.clone())));
        asked.collect()
    }

    fn of_routing(&self, wanted: &Dependency) -> Fetched {
        let routing = self.routing.borrow();
        let Some(routing) = routing.as_ref() else { return Fetched::Pending };
        match wanted {
            Dependency::Service { name, any } => services(routing, name, *any),
            Dependency::Services => {
                let tags = |instances: &[Instance]| {
                    let all: BTreeSet<&String> = instances.iter().flat_map(|instance| &instance.tags).collect();
                    all.into_iter().cloned().collect()
                };
                let known = routing.services.iter().filter(|service| !service.instances.is_empty());
                Fetched::Found(Content::ServiceNames(
                    known.map(|service| (service.name.clone(), tags(&service.instances))).collect(),
                ))
            }
            Dependency::Nodes => Fetched::Found(Content::Nodes(routing.nodes.iter().map(node_entry).collect())),
            Dependency::Node(name) => {
                let is_it = |node: &&RoutedNode| match name {
                    Some(name) => node.name == *name,
                    None => node.id == self.node_id,
                };
                routing
                    .nodes
                    .iter()
                    .find(is_it)
                    .map_or(Fetched::Absent, |node| Fetched::Found(Content::Nodes(vec![node_entry(node)])))
            }
            Dependency::File(path) => read_file(&self.layout, path),
            Dependency::VariablePrefix(_) => Fetched::Refused(
                "variables are not listed to tasks yet; read them by their paths with nomadVar".to_owned(),
            ),
            Dependency::Key(_) | Dependency::KeyPrefix(_) | Dependency::Variable(_) => Fetched::Pending,
        }
    }
}

impl Data for View {
    fn fetch(&self, wanted: &Dependency) -> Fetched {
        match (self.lookup(wanted), &self.cluster) {
            (Some(_), Some(_)) => self.known.get(wanted).map_or(Fetched::Pending, |known| known.fetched.clone()),
            (Some(_), None) => Fetched::Refused("this node has no servers to ask for keys and variables".to_owned()),
            // A file is read when it is asked for, whether or not servers have spoken.
            (None, _) => match wanted {
                Dependency::File(path) => read_file(&self.layout, path),
                wanted => self.of_routing(wanted),
            },
        }
    }
}

/// The first answer of any of them.
async fn next_of(lookups: Vec<(Dependency, Lookup, u64, ClusterData)>) -> Option<(Dependency, Known)> {
    let ask = |(wanted, lookup, index, cluster): (Dependency, Lookup, u64, ClusterData)| async move {
        loop {
            let wait = if index == 0 { Duration::ZERO } else { LOOKUP_WAIT };
            match cluster.look_up(&lookup, index, wait).await {
                Ok(found) if found.index != index => {
                    let known = Known { index: found.index, fetched: content(&wanted, found) };
                    return (wanted, known);
                }
                Ok(_) if wait.is_zero() => sleep(LOOKUP_RETRY).await,
                Ok(_) => {}
                Err(reason) => {
                    tracing::debug!(%wanted, reason, "cannot be looked up; trying again");
                    sleep(LOOKUP_RETRY).await;
                }
            }
        }
    };
    let mut asked: FuturesUnordered<_> = lookups.into_iter().map(ask).collect();
    asked.next().await
}

fn content(wanted: &Dependency, found: Found) -> Fetched {
    let Some(entries) = found.entries else { return Fetched::Absent };
    let text = |bytes: Vec<u8>| String::from_utf8_lossy(&bytes).into_owned();
    let content = match wanted {
        Dependency::Variable(_) => Content::Items(entries.into_iter().map(|(key, value)| (key, text(value))).collect()),
        _ => Content::Keys(entries.into_iter().map(|(path, value)| KeyValue { path, value: text(value) }).collect()),
    };
    Fetched::Found(content)
}

fn services(routing: &RoutingSnapshot, name: &str, any: bool) -> Fetched {
    let Some(service) = routing.services.iter().find(|service| service.name == name) else { return Fetched::Absent };
    let shown =
        service.instances.iter().filter(|instance| any || instance.health == Health::Passing && !instance.draining);
    Fetched::Found(Content::Services(shown.map(|instance| service_entry(routing, instance)).collect()))
}

fn service_entry(routing: &RoutingSnapshot, instance: &Instance) -> ServiceEntry {
    let node = routing.nodes.iter().find(|node| node.id == instance.node_id);
    ServiceEntry {
        id: instance.id(),
        name: instance.service.clone(),
        address: instance.address.to_string(),
        port: instance.port,
        tags: instance.tags.clone(),
        meta: BTreeMap::new(),
        status: match instance.health {
            Health::Passing => "passing",
            Health::Warning => "warning",
            Health::Critical => "critical",
        }
        .to_owned(),
        node: instance.node_name.clone(),
        node_address: node.map(|node| node.address.to_string()).unwrap_or_default(),
        node_id: instance.node_id.to_string(),
        datacenter: instance.datacenter.clone(),
        alloc_id: instance.alloc_id.to_string(),
        job_id: instance.job_id.to_string(),
    }
}

fn node_entry(node: &RoutedNode) -> NodeEntry {
    NodeEntry {
        id: node.id.to_string(),
        name: node.name.clone(),
        address: node.address.to_string(),
        datacenter: node.datacenter.clone(),
        meta: BTreeMap::new(),
    }
}
