//! From a snapshot to a map image.
//!
//! A service's VIP, an edge port and a mapped host port are all frontends: a dialled address with a ring behind it. An
//! instance that is not to get new flows leaves the rings and keeps its backend entry, so that its flows live on.

mod one;

pub use one::recompile;

use crate::image::MapImage;
use crate::indices::{Assigner, BackendKey, Full, GivenRing, Indices, RingMember, Table};
use crate::maglev::Member;
use crate::problem::{RouteProblem, RouteProblemKind};
use crate::routes::{BackendRoute, BackendState, FrontendRoute, FrontendSource, ServiceRoutes};
use crate::shares::{self, Candidate};
use crate::snapshot::{LocalEndpoint, Mac, Snapshot, Uplink};
use crate::tags::{self, EdgePort, Excerpt, Proto};
use abi::{Backend, Be16, Be32, Endpoint, Node, VipKey, VipValue};
use ipnet::IpNet;
use model::{Health, Instance, InstanceNetwork, NodeId, RoutedNode, RoutedService, Steering, Timestamp};
use std::collections::{BTreeMap, BTreeSet};
use std::net::{IpAddr, Ipv4Addr};
use std::time::Duration;

/// What a node's maps must hold, what could not be done, and the same in words of services.
#[derive(Clone, Debug, PartialEq)]
pub struct Compilation {
    /// Holds the image ([`Indices::image`]) and goes into the next compilation.
    pub indices: Indices,
    pub services: Vec<ServiceRoutes>,
    pub problems: Vec<RouteProblem>,
    /// When the same snapshot compiles to something else: a slow start goes on.
    pub next_change: Option<Timestamp>,
}

impl Compilation {
    pub fn image(&self) -> &MapImage {
        self.indices.image()
    }
}

pub fn compile(snapshot: &Snapshot, before: &Indices) -> Compilation {
    let mut compiler = Compiler::new(snapshot, before);
    compiler.add_uplink();
    compiler.add_nodes();
    compiler.add_endpoints();
    let edges = compiler.add_services();
    compiler.add_host_ports(&edges);
    compiler.count_refused();
    let Compiler { image, assigner, problems, services, next_change, .. } = compiler;
    Compilation { indices: assigner.finish(image), services, problems, next_change }
}

struct Compiler<'a> {
    snapshot: &'a Snapshot,
    image: MapImage,
    assigner: Assigner<'a>,
    /// Nodes that are not down, with their index.
    nodes: BTreeMap<NodeId, u32>,
    zones: Zones<'a>,
    problems: Vec<RouteProblem>,
    services: Vec<ServiceRoutes>,
    /// Which service each virtual address and port is, so that a second one does not take it over.
    dialled: BTreeMap<VipKey, String>,
    /// Entries that found no room.
    refused: BTreeMap<Table, u32>,
    next_change: Option<Timestamp>,
}

/// Which nodes are as near to a client of this one as the node itself.
struct Zones<'a> {
    /// Empty: this node says none, and nothing is near or far.
    own: &'a str,
    by_node: BTreeMap<NodeId, &'a str>,
}

/// An instance with its entry in the backend map.
struct Placed<'a> {
    instance: &'a Instance,
    key: BackendKey,
    id: u32,
    proto: Proto,
}

/// The service that holds an edge port, and its allocations.
struct Edge {
    service: String,
    allocs: BTreeSet<model::AllocId>,
}

impl<'a> Compiler<'a> {
    fn new(snapshot: &'a Snapshot, before: &'a Indices) -> Self {
        Self {
            snapshot,
            image: MapImage::default(),
            assigner: Assigner::new(before, snapshot.now),
            nodes: BTreeMap::new(),
            zones: Zones::of(snapshot),
            problems: Vec::new(),
            services: Vec::new(),
            dialled: BTreeMap::new(),
            refused: BTreeMap::new(),
            next_change: None,
        }
    }

    fn add_uplink(&mut self) {
        let Some(uplink) = &self.snapshot.uplink else { return };
        let Some(addr) = be32(uplink.address) else { return };
        self.image.uplink = abi::Uplink {
            addr,
            mesh: self.snapshot.mesh_address.and_then(be32).unwrap_or_default(),
            ifindex: uplink.ifindex,
            flags: abi::UPLINK_READY,
            mac: uplink.mac,
            mtu: uplink.mtu,
        };
    }

    fn add_nodes(&mut self) {
        let up = |node: &&RoutedNode| node.status.is_reachable() || node.id == self.snapshot.node_id;
        for node in self.snapshot.routing.nodes.iter().filter(up) {
            let Some(index) = self.add_node(node) else { continue };
            self.nodes.insert(node.id, index);
            for block in node.blocks.iter().flat_map(split_block) {
                self.image.blocks.insert(block, index);
            }
        }
    }

    fn add_node(&mut self, node: &RoutedNode) -> Option<u32> {
        if node.id == self.snapshot.node_id {
            return Some(abi::NODE_SELF);
        }
        let addr = be32(node.address)?;
        let index = self.assigner.node(addr).ok()?;
        let dmac: Mac = self.snapshot.neighbours.get(&node.address).copied().unwrap_or_default();
        self.image.nodes.insert(index, Node { addr, dmac, flags: 0 });
        self.image.node_by_addr.insert(addr, index);
        Some(index)
    }

    fn add_endpoints(&mut self) {
        for (address, endpoint) in &self.snapshot.endpoints {
            let Some(addr) = be32(*address) else { continue };
            let LocalEndpoint { ifindex, mac, host_mac, .. } = *endpoint;
            self.image.endpoints.insert(addr, Endpoint { ifindex, mac, host_mac });
        }
    }

    fn add_services(&mut self) -> BTreeMap<EdgePort, Edge> {
        let mut edges = BTreeMap::new();
        for service in &self.snapshot.routing.services {
            let placed = self.place_instances(service);
            let mut frontends = self.add_vips(service, &placed);
            frontends.extend(self.add_edges(service, &placed, &mut edges));
            let backends = placed.iter().map(|placed| placed.route()).collect();
            self.services.push(ServiceRoutes { name: service.name.clone(), vip: service.vip, frontends, backends });
        }
        edges
    }

    fn place_instances(&mut self, service: &'a RoutedService) -> Vec<Placed<'a>> {
        let tag = service_tag(&service.name);
        let mut placed = Vec::new();
        for instance in &service.instances {
            for proto in protos(instance) {
                match self.place(instance, proto, tag) {
                    Ok(entry) => placed.extend(entry),
                    Err(kind) => self.report(&service.name, kind),
                }
            }
        }
        self.flag_backends(&placed);
        placed
    }

    /// Nothing for an instance whose node is down: whatever the catalog still says, it gets no packets.
    fn place(
        &mut self,
        instance: &'a Instance,
        proto: Proto,
        tag: u32,
    ) -> Result<Option<Placed<'a>>, RouteProblemKind> {
        let addr = be32(instance.address).ok_or(RouteProblemKind::Ipv6 { address: instance.address })?;
        if addr.is_zero() || instance.port == 0 {
            return nowhere(instance);
        }
        let Some(node) = self.nodes.get(&instance.node_id).copied() else { return self.unplaced(instance) };
        let key = BackendKey { addr, port: Be16::new(instance.port), proto: proto.number(), service: tag };
        let id = self.assigner.backend(key).map_err(|full| self.full(full))?;
        let local = if node == abi::NODE_SELF { abi::BACKEND_LOCAL } else { 0 };
        let host = if instance.network == InstanceNetwork::Host { abi::BACKEND_HOST } else { 0 };
        let BackendKey { addr, port, proto: number, service } = key;
        self.image.backends.insert(id, Backend { addr, port, proto: number, flags: local | host, node, service });
        Ok(Some(Placed { instance, key, id, proto }))
    }

    fn unplaced(&self, instance: &Instance) -> Result<Option<Placed<'a>>, RouteProblemKind> {
        let known = self.snapshot.routing.nodes.iter().any(|node| node.id == instance.node_id);
        let (address, port, node) = (instance.address, instance.port, instance.node_name.clone());
        if known { Ok(None) } else { Err(RouteProblemKind::NodeUnknown { address, port, node }) }
    }

    /// Marks those that take no new flows. One backend may stand for two registrations; it drains when both do.
    fn flag_backends(&mut self, placed: &[Placed<'_>]) {
        let taking: BTreeSet<u32> = takers(placed.iter()).iter().map(|placed| placed.id).collect();
        for idle in placed.iter().filter(|placed| !taking.contains(&placed.id)) {
            if let Some(backend) = self.image.backends.get_mut(&idle.id) {
                backend.flags |= abi::BACKEND_DRAINING;
            }
        }
    }

    /// A frontend for each port that instances ask for on the service's VIP; nearly always one.
    fn add_vips(&mut self, service: &RoutedService, placed: &[Placed<'_>]) -> Vec<FrontendRoute> {
        let asked = |placed: &Placed<'_>| Some(EdgePort { port: placed.instance.vip_port?, proto: placed.proto });
        let ports: BTreeSet<EdgePort> = placed.iter().filter_map(asked).collect();
        let Some(vip) = be32(service.vip).filter(|vip| !vip.is_zero()) else { return Vec::new() };
        let mut frontends = Vec::new();
        for port in ports {
            if let Some(holder) = self.dialled.get(&vip_key(vip, port)) {
                let (address, port, holder) = (service.vip, port.port, holder.clone());
                self.report(&service.name, RouteProblemKind::AddressTaken { address, port, holder });
                continue;
            }
            self.dialled.insert(vip_key(vip, port), service.name.clone());
            let behind = placed.iter().filter(|placed| asked(placed) == Some(port));
            let members = self.ring_members(&takers(behind), steering(service));
            self.check_weights(service, port, &members);
            let added = self.add_frontend(&service.name, vip_key(vip, port), 0, members, FrontendSource::Vip);
            frontends.extend(self.or_report(&service.name, added));
        }
        frontends
    }

    fn add_edges(
        &mut self,
        service: &'a RoutedService,
        placed: &[Placed<'_>],
        edges: &mut BTreeMap<EdgePort, Edge>,
    ) -> Vec<FrontendRoute> {
        let ports = self.edge_ports(service);
        let Some(uplink) = &self.snapshot.uplink else { return Vec::new() };
        let Some(addr) = be32(uplink.address) else { return Vec::new() };
        let mut frontends = Vec::new();
        for (port, tags) in ports {
            if let Err(kind) = check_edge(uplink, port, edges) {
                self.report(&service.name, kind);
                continue;
            }
            let asks = |placed: &&Placed<'_>| placed.proto == port.proto && has_tag(placed.instance, &tags);
            let asking: Vec<_> = placed.iter().filter(asks).collect();
            edges.insert(port, Edge::new(service, &asking));
            let members = self.ring_members(&takers(asking.into_iter()), steering(service));
            self.check_weights(service, port, &members);
            let added =
                self.add_frontend(&service.name, vip_key(addr, port), abi::VIP_EDGE, members, FrontendSource::Edge);
            frontends.extend(self.or_report(&service.name, added));
        }
        frontends
    }

    /// The ports a service asks for, each with the tags that do; a tag that is no route is reported once.
    fn edge_ports(&mut self, service: &'a RoutedService) -> BTreeMap<EdgePort, BTreeSet<&'a str>> {
        let tags: BTreeSet<&str> =
            service.instances.iter().flat_map(|instance| &instance.tags).map(|t| t.as_str()).collect();
        let mut ports: BTreeMap<EdgePort, BTreeSet<&str>> = BTreeMap::new();
        for tag in tags {
            match tags::parse(tag) {
                None => {}
                Some(Ok(port)) => {
                    ports.entry(port).or_default().insert(tag);
                }
                Some(Err(problem)) => {
                    self.report(&service.name, RouteProblemKind::Tag { tag: Excerpt::of(tag), problem });
                }
            }
        }
        ports
    }

    /// Host ports of local allocations, each a frontend with one backend. An edge route on the same port goes first.
    fn add_host_ports(&mut self, edges: &BTreeMap<EdgePort, Edge>) {
        let snapshot = self.snapshot;
        let Some(uplink) = snapshot.uplink.as_ref().and_then(|uplink| be32(uplink.address)) else { return };
        for (address, endpoint) in &snapshot.endpoints {
            for port in &endpoint.ports {
                match (edges.get(&tcp_port(port.host_port)), be32(*address)) {
                    (Some(edge), _) => self.report_hidden(edge, endpoint, port.host_port),
                    (None, Some(addr)) => self.add_host_port(uplink, endpoint, addr, port),
                    (None, None) => {}
                }
            }
        }
    }

    fn report_hidden(&mut self, edge: &Edge, endpoint: &LocalEndpoint, port: u16) {
        if !edge.allocs.contains(&endpoint.alloc_id) {
            let alloc_id = endpoint.alloc_id;
            self.report(&edge.service, RouteProblemKind::HostPortHidden { port, alloc_id });
        }
    }

    fn add_host_port(&mut self, uplink: Be32, endpoint: &LocalEndpoint, addr: Be32, port: &model::AllocatedPort) {
        let key = BackendKey { addr, port: Be16::new(port.to), proto: Proto::Tcp.number(), service: HOST_PORT };
        let id = match self.assigner.backend(key) {
            Ok(id) => id,
            Err(full) => return self.report_host_port(endpoint, full),
        };
        let flags = abi::BACKEND_LOCAL;
        let backend =
            Backend { addr, port: key.port, proto: key.proto, flags, node: abi::NODE_SELF, service: HOST_PORT };
        self.image.backends.insert(id, backend);
        let members = vec![RingMember { member: Member { key: key.member_key(), weight: 1 }, id }];
        let added = self.add_frontend(
            &format!("allocation {}", endpoint.alloc_id.short()),
            vip_key(uplink, tcp_port(port.host_port)),
            abi::VIP_EDGE,
            members,
            FrontendSource::HostPort,
        );
        match added {
            Ok(frontend) => self.attach_host_port(endpoint, port, frontend),
            Err(full) => self.report_host_port(endpoint, full),
        }
    }

    /// Shows the mapped port on the services of the allocation that listen on its target.
    fn attach_host_port(&mut self, endpoint: &LocalEndpoint, port: &model::AllocatedPort, frontend: FrontendRoute) {
        let here = |backend: &BackendRoute| backend.alloc_id == endpoint.alloc_id && backend.port == port.to;
        for service in self.services.iter_mut().filter(|service| service.backends.iter().any(here)) {
            service.frontends.push(frontend.clone());
        }
    }

    fn report_host_port(&mut self, endpoint: &LocalEndpoint, full: Full) {
        let service = format!("allocation {}", endpoint.alloc_id.short());
        let kind = self.full(full);
        self.report(&service, kind);
    }

    /// How many are needed in all is known at the end.
    fn full(&mut self, full: Full) -> RouteProblemKind {
        *self.refused.entry(full.table).or_default() += full.entries;
        let (table, capacity) = (full.table.name(), full.table.capacity());
        RouteProblemKind::TableFull { table, needed: capacity, capacity }
    }

    fn count_refused(&mut self) {
        for problem in &mut self.problems {
            if let RouteProblemKind::TableFull { table, needed, capacity } = &mut problem.kind {
                let refused = self.refused.iter().find(|(refused, _)| refused.name() == *table);
                *needed = capacity.saturating_add(refused.map_or(0, |(_, entries)| *entries));
            }
        }
    }

    fn check_weights(&mut self, service: &RoutedService, port: EdgePort, members: &[RingMember]) {
        if !members.is_empty() && members.iter().all(|member| member.member.weight == 0) {
            self.report(&service.name, RouteProblemKind::NoWeight { port: port.port });
        }
    }

    /// Ordered by what all nodes agree on; an address registered twice counts once, by its greater
    /// weight.
    fn ring_members(&mut self, takers: &[&Placed<'_>], steering: Steering) -> Vec<RingMember> {
        let mut by_id: BTreeMap<u32, &Placed<'_>> = BTreeMap::new();
        for placed in takers {
            let held = by_id.entry(placed.id).or_insert(placed);
            if placed.instance.weight > held.instance.weight {
                *held = placed;
            }
        }
        let candidates: Vec<Candidate> =
            by_id.values().map(|placed| self.candidate(placed, steering.slow_start)).collect();
        if let Some(wait) = shares::next_step(&candidates, steering.slow_start) {
            let next = self.snapshot.now.plus(wait);
            self.next_change = Some(self.next_change.map_or(next, |known| known.min(next)));
        }
        let weights = shares::shares(&candidates, steering);
        let member = |((id, placed), weight): ((&u32, &&Placed<'_>), u16)| RingMember {
            member: Member { key: placed.key.member_key(), weight },
            id: *id,
        };
        let mut members: Vec<RingMember> = by_id.iter().zip(weights).map(member).collect();
        members.sort();
        members
    }

    fn candidate(&mut self, placed: &Placed<'_>, slow_start: Duration) -> Candidate {
        let age = (!slow_start.is_zero()).then(|| self.assigner.taking_for(placed.key)).flatten();
        Candidate { weight: placed.instance.weight, age, near: self.zones.is_near(placed.instance.node_id) }
    }

    fn add_frontend(
        &mut self,
        service: &str,
        key: VipKey,
        flags: u16,
        members: Vec<RingMember>,
        source: FrontendSource,
    ) -> Result<FrontendRoute, Full> {
        let GivenRing { index: ring, refused } = self.assigner.ring(&key, members)?;
        if let Some(full) = refused {
            let kind = self.full(full);
            self.report(service, kind);
        }
        let frontend = u16::try_from(ring).map_err(|_| Full { table: Table::Frontends, entries: 1 })?;
        self.image.vips.insert(key, VipValue { frontend, flags, ring });
        let address = IpAddr::V4(Ipv4Addr::from(key.addr));
        let proto = if key.proto == abi::PROTO_UDP { Proto::Udp } else { Proto::Tcp };
        Ok(FrontendRoute { address, port: key.port.get(), proto, ring, source })
    }

    fn or_report(&mut self, service: &str, added: Result<FrontendRoute, Full>) -> Option<FrontendRoute> {
        match added {
            Ok(frontend) => Some(frontend),
            Err(full) => {
                let kind = self.full(full);
                self.report(service, kind);
                None
            }
        }
    }

    fn report(&mut self, service: &str, kind: RouteProblemKind) {
        self.problems.push(RouteProblem { service: service.to_owned(), kind });
    }
}

/// One that registers no port asks for nothing, unless it does.
fn nowhere<'a>(instance: &Instance) -> Result<Option<Placed<'a>>, RouteProblemKind> {
    let asks = instance.vip_port.is_some() || instance.tags.iter().any(|tag| matches!(tags::parse(tag), Some(Ok(_))));
    let Instance { address, port, alloc_id, .. } = *instance;
    if asks { Err(RouteProblemKind::Nowhere { address, port, alloc_id }) } else { Ok(None) }
}

/// The service tag of backends behind mapped host ports.
pub(crate) const HOST_PORT: u32 = 0;

fn check_edge(uplink: &Uplink, edge: EdgePort, edges: &BTreeMap<EdgePort, Edge>) -> Result<(), RouteProblemKind> {
    let port = edge.port;
    match edges.get(&edge) {
        Some(edge) => Err(RouteProblemKind::PortTaken { port, holder: edge.service.clone() }),
        None if uplink.keeps(edge) => Err(RouteProblemKind::PortReserved { port }),
        None => Ok(()),
    }
}

impl Uplink {
    /// Whether a port is the node's own.
    fn keeps(&self, edge: EdgePort) -> bool {
        let listens = edge.proto == Proto::Tcp && self.reserved_ports.contains(&edge.port);
        listens || self.local_ports.as_ref().is_some_and(|ports| ports.contains(&edge.port))
    }
}

fn has_tag(instance: &Instance, tags: &BTreeSet<&str>) -> bool {
    instance.tags.iter().any(|tag| tags.contains(tag.as_str()))
}

/// Who gets new flows: the active ones; when there is none, those that drain but work, because somebody must.
fn takers<'p, 'a: 'p>(placed: impl Iterator<Item = &'p Placed<'a>>) -> Vec<&'p Placed<'a>> {
    let placed: Vec<_> = placed.collect();
    let of = |wanted: fn(&Instance) -> bool| placed.iter().copied().filter(|placed| wanted(placed.instance)).collect();
    let active: Vec<_> = of(Instance::is_active);
    if active.is_empty() { of(|instance| instance.health != Health::Critical) } else { active }
}

/// What the service's instances ask for, together.
fn steering(service: &RoutedService) -> Steering {
    service.instances.iter().map(|instance| instance.steering).reduce(Steering::merge).unwrap_or_default()
}

impl<'a> Zones<'a> {
    fn of(snapshot: &'a Snapshot) -> Self {
        let by_node: BTreeMap<NodeId, &str> =
            snapshot.routing.nodes.iter().map(|node| (node.id, node.zone.as_str())).collect();
        Self { own: by_node.get(&snapshot.node_id).copied().unwrap_or_default(), by_node }
    }

    fn is_near(&self, node: NodeId) -> bool {
        self.own.is_empty() || self.by_node.get(&node) == Some(&self.own)
    }
}

impl Placed<'_> {
    fn route(&self) -> BackendRoute {
        BackendRoute {
            id: self.id,
            alloc_id: self.instance.alloc_id,
            node: self.instance.node_name.clone(),
            address: self.instance.address,
            port: self.instance.port,
            proto: self.proto,
            weight: self.instance.weight,
            state: BackendState::of(self.instance),
        }
    }
}

impl Edge {
    fn new(service: &RoutedService, asking: &[&Placed<'_>]) -> Self {
        let allocs = asking.iter().map(|placed| placed.instance.alloc_id).collect();
        Self { service: service.name.clone(), allocs }
    }
}

fn vip_key(addr: Be32, dialled: EdgePort) -> VipKey {
    VipKey { addr, port: Be16::new(dialled.port), proto: dialled.proto.number(), pad: 0 }
}

fn tcp_port(port: u16) -> EdgePort {
    EdgePort { port, proto: Proto::Tcp }
}

/// TCP always; datagrams when a tag of the instance says so.
fn protos(instance: &Instance) -> impl Iterator<Item = Proto> + use<> {
    let udp = instance.tags.iter().any(|tag| tags::asks_for_udp(tag));
    [Some(Proto::Tcp), udp.then_some(Proto::Udp)].into_iter().flatten()
}

/// Stands for the service's name in backend entries; the same after a restart, and never [`HOST_PORT`].
fn service_tag(name: &str) -> u32 {
    (crate::maglev::member_key(name.as_bytes()) as u32).max(1)
}

/// The /26 blocks that a range consists of. A shorter one than /26 never comes from the catalog, and means nothing here.
fn split_block(range: &IpNet) -> Vec<Be32> {
    let IpNet::V4(range) = range else { return Vec::new() };
    let blocks = range.subnets(abi::BLOCK_PREFIX_LEN as u8);
    blocks
        .map(|blocks| blocks.take(BLOCKS_PER_RANGE_MAX).map(|block| block.network().into()).collect())
        .unwrap_or_default()
}

/// A /16 of one node; more would fill the map on one entry's word.
const BLOCKS_PER_RANGE_MAX: usize = 1 << 10;

fn be32(address: IpAddr) -> Option<Be32> {
    match address {
        IpAddr::V4(address) => Some(address.into()),
        IpAddr::V6(_) => None,
    }
}
