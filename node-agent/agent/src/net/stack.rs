//! The actor behind [`super::NetStack`].

use super::endpoints::{self, LocalAlloc};
use super::guard::Guard;
use super::listener::Listener;
use super::report::report;
use super::{NetConfig, NetError, chain, ipam, local_ports, reserved_ports, trace};
use crate::datapath::Place;
use dataplane::{Compilation, Indices, MapImage, RouteProblem, Snapshot, compile, diff, recompile};
use dns::Zone;
use ipnet::IpNet;
use kernel::Datapath;
use model::{AllocId, AllocatedPort, Instance, RoutingSnapshot, Timestamp};
use network::{Attachment, Mac, MeshLink, Network, NextHop, Uplink};
use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::ops::RangeInclusive;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, SystemTime, UNIX_EPOCH};
use tokio::sync::{mpsc, oneshot, watch};
use tokio::time::Instant;
use wire::routes::{RouteReport, TraceQuestion, TraceReport};

/// What a tunnel adds: outer Ethernet, IPv4, UDP, Geneve and its option.
const TUNNEL_OVERHEAD: u32 = 62;
/// Of a wire that is not known: an Ethernet's.
const UPLINK_MTU: u32 = 1_500;
/// How often hops that packets were dropped for are looked at, and whatever failed is tried again.
const TICK: Duration = Duration::from_millis(250);
/// How long a `create` waits for the servers' first word.
const BLOCK_WAIT: Duration = Duration::from_secs(15);
/// How often the uplink is looked at.
const LOOK: Duration = Duration::from_secs(2);
/// Numbers that came free are looked through this often, whatever else happens.
const SWEEP: Duration = Duration::from_secs(60);
/// Neighbours are read at once when one changes, but a burst of changes is read once more at the next tick.
const REFRESH_APART: Duration = Duration::from_millis(50);
/// Any address outside: its next hop is the default router, which clients are behind.
pub const OUTSIDE: IpAddr = IpAddr::V4(Ipv4Addr::new(192, 0, 2, 1));
const OWN_NETNS: &str = "/proc/thread-self/ns/net";
const ALLOC_LINK: &str = "eth0";

type Settle = Box<dyn FnOnce(Result<(), NetError>)>;
type Reply<T> = oneshot::Sender<Result<T, NetError>>;

#[derive(Debug)]
pub enum Command {
    Create { id: AllocId, ports: Vec<AllocatedPort>, reply: Reply<Place> },
    Remove { id: AllocId, reply: Reply<()> },
    Retain { ids: BTreeSet<String>, reply: Reply<()> },
    SetRouting { routing: Box<RoutingSnapshot>, reply: Reply<()> },
    Report { reply: Reply<RouteReport> },
    Trace { asked: TraceQuestion, reply: Reply<TraceReport> },
}

/// The thread's whole life.
pub fn run(config: NetConfig, queue: mpsc::Receiver<Command>, started: oneshot::Sender<Result<(), NetError>>) {
    let runtime = match tokio::runtime::Builder::new_current_thread().enable_all().build() {
        Ok(runtime) => runtime,
        Err(error) => return drop(started.send(Err(NetError::Thread(error)))),
    };
    runtime.block_on(async {
        match Stack::start(config).await {
            Ok(stack) => {
                if started.send(Ok(())).is_ok() {
                    stack.serve(queue).await;
                }
            }
            Err(error) => drop(started.send(Err(error))),
        }
    });
}

struct Stack {
    config: NetConfig,
    network: Network,
    datapath: Datapath,
    uplink: Option<Uplink>,
    /// The node's own way to allocations elsewhere; none without an uplink.
    mesh_link: Option<MeshLink>,
    guard: Guard,
    allocs: BTreeMap<String, LocalAlloc>,
    blocks: Vec<IpNet>,
    mesh: Option<IpAddr>,
    last_address: Option<IpAddr>,
    routing: Option<RoutingSnapshot>,
    /// The next hop towards each node, and those that packets were dropped for.
    hops: BTreeMap<IpAddr, NextHop>,
    neighbours: BTreeMap<NextHop, Mac>,
    refreshed: Instant,
    /// Something changed since they were read.
    stale: bool,
    reserved_ports: BTreeSet<u16>,
    local_ports: Option<RangeInclusive<u16>>,
    /// What an agent before this one left, or a failed publication, until the next compilation.
    adopted: Indices,
    compilation: Option<Compilation>,
    zone: watch::Sender<Option<Arc<Zone>>>,
    _dns_extra: Option<Listener>,
    dns_mesh: Option<Listener>,
    /// All has to be compiled.
    dirty: bool,
    /// Services whose instances alone have changed.
    changed: BTreeSet<String>,
    /// It was said already that the uplink is not usable.
    uplink_missing: bool,
    swept: Instant,
    /// When the uplink was looked at.
    looked: Instant,
    /// Answers that are true once the kernel has been told.
    after_publish: Vec<Settle>,
    waiting: Vec<Waiting>,
}

/// A `create` that came before the node's address block.
struct Waiting {
    since: Instant,
    id: AllocId,
    ports: Vec<AllocatedPort>,
    reply: Reply<Place>,
}

impl Stack {
    async fn start(config: NetConfig) -> Result<Self, NetError> {
        let (zone, zones) = watch::channel(None);
        check_domain(&config)?;
        let network = Network::open(config.node_id)?;
        let uplink = find_uplink(&network, &config).await?;
        let kernel_config = kernel_config(&config)?;
        Datapath::preflight(&kernel_config).map_err(kernel::KernelError::from)?;
        // The last that may be refused: from here on the machine changes.
        let dns_extra = config.dns_bind.map(|address| Listener::bind(address, zones)).transpose()?;
        let guard = Guard::start(&network, config.uplink.as_deref()).await;
        let mut datapath = Datapath::attach(&kernel_config)?;
        datapath.allow_netns(kernel::netns_cookie(Path::new(OWN_NETNS))?)?;
        let mesh_link = match &uplink {
            Some(uplink) => Some(make_mesh_link(&network, &mut datapath, uplink).await?),
            None => None,
        };
        let image = datapath.load_image()?;
        let allocs = endpoints::adopt(&network.list().await?, &image);
        tracing::info!(adopted = allocs.len(), mode = ?datapath.uplink_mode(), "data path attached");
        let mut stack = Self {
            blocks: dataplane::own_blocks(&image),
            adopted: Indices::adopt(image, now()),
            reserved_ports: reserved_ports(&config),
            local_ports: local_ports(),
            config,
            network,
            datapath,
            uplink,
            mesh_link,
            guard,
            allocs,
            mesh: None,
            last_address: None,
            routing: None,
            hops: BTreeMap::new(),
            neighbours: BTreeMap::new(),
            refreshed: Instant::now(),
            stale: false,
            compilation: None,
            zone,
            _dns_extra: dns_extra,
            dns_mesh: None,
            dirty: false,
            changed: BTreeSet::new(),
            uplink_missing: false,
            swept: Instant::now(),
            looked: Instant::now(),
            after_publish: Vec::new(),
            waiting: Vec::new(),
        };
        stack.take_mesh_address_or_say().await;
        stack.resolve(OUTSIDE).await;
        Ok(stack)
    }

    async fn serve(mut self, mut queue: mpsc::Receiver<Command>) {
        let mut watch = self.watch_neighbours();
        let mut tick = tokio::time::interval(TICK);
        tick.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
        loop {
            tokio::select! {
                command = queue.recv() => match command {
                    Some(command) => self.handle_all(command, &mut queue).await,
                    None => return,
                },
                heard = changed(&mut watch) => if heard { self.on_neighbours().await } else { watch = None },
                _ = tick.tick() => {
                    if watch.is_none() {
                        // What was not heard meanwhile has to be read.
                        watch = self.watch_neighbours();
                        self.stale = true;
                    }
                    self.on_tick().await
                }
            }
            self.publish_if_dirty();
        }
    }

    /// Everything that waits goes into one publication.
    async fn handle_all(&mut self, first: Command, queue: &mut mpsc::Receiver<Command>) {
        let mut next = Some(first);
        while let Some(command) = next {
            self.handle(command).await;
            next = queue.try_recv().ok();
        }
    }

    async fn handle(&mut self, command: Command) {
        match command {
            Command::Create { id, ports, reply } => {
                self.on_create(Waiting { since: Instant::now(), id, ports, reply }).await
            }
            Command::Remove { id, reply } => {
                let outcome = self.remove(id).await;
                answer(reply, outcome);
            }
            Command::Retain { ids, reply } => {
                let outcome = self.retain(&ids).await;
                answer(reply, outcome);
            }
            Command::SetRouting { routing, reply } => self.on_routing(*routing, reply).await,
            Command::Report { reply } => {
                let outcome = self.report();
                answer(reply, outcome);
            }
            Command::Trace { asked, reply } => {
                let outcome = self.trace(&asked);
                answer(reply, outcome);
            }
        }
    }

    async fn on_create(&mut self, asked: Waiting) {
        if self.mesh.is_none() {
            return self.waiting.push(asked);
        }
        match self.create(asked.id, asked.ports).await {
            Ok(place) => self.answer_after_publish(asked.reply, place),
            Err(error) => answer(asked.reply, Err(error)),
        }
    }

    async fn create(&mut self, id: AllocId, ports: Vec<AllocatedPort>) -> Result<Place, NetError> {
        let mesh = self.mesh.ok_or(NetError::NoBlock)?;
        let address = self.address_for(id).await?;
        let wanted = Attachment { alloc_id: id, address, gateway: mesh, mtu: self.alloc_mtu() };
        let attached = self.network.attach(&wanted).await?;
        // Frames that XDP sends into a veth arrive by its peer's NAPI, and a rewrite needs finished checksums.
        kernel::set_gro(&attached.netns, ALLOC_LINK, true)?;
        kernel::set_tx_checksum_offload(&attached.netns, ALLOC_LINK, false)?;
        self.datapath.attach_veth(attached.ifindex)?;
        let cookie = kernel::netns_cookie(&attached.netns)?;
        self.datapath.allow_netns(cookie)?;
        let place = Place { netns: Some(attached.netns.clone()), address: Some(address), resolver: Some(mesh) };
        let alloc = LocalAlloc::new(id, address, attached, cookie, ports);
        self.dirty |= self.allocs.get(&id.short()) != Some(&alloc);
        self.allocs.insert(id.short(), alloc);
        Ok(place)
    }

    /// The address it has, if anything of it exists; else a free one.
    async fn address_for(&mut self, id: AllocId) -> Result<IpAddr, NetError> {
        let short = id.short();
        if let Some(alloc) = self.allocs.get(&short) {
            return Ok(alloc.address);
        }
        let found = self.network.list().await?;
        if let Some(address) = found.get(&short).and_then(|leftover| leftover.address) {
            return Ok(address);
        }
        let used = endpoints::addresses_used(&self.allocs, &found);
        let address = ipam::choose(&self.blocks, &used, self.last_address).ok_or(NetError::AddressesExhausted)?;
        self.last_address = Some(address);
        Ok(address)
    }

    async fn remove(&mut self, id: AllocId) -> Result<(), NetError> {
        let (withdrawn, waiting) = std::mem::take(&mut self.waiting).into_iter().partition(|asked| asked.id == id);
        self.waiting = waiting;
        Vec::into_iter(withdrawn).for_each(|asked: Waiting| answer(asked.reply, Err(NetError::Withdrawn)));
        let short = &id.short();
        let found = self.network.list().await?;
        let known = self.allocs.get(short).and_then(|alloc| alloc.id);
        let owner = known.or_else(|| found.get(short).and_then(|leftover| leftover.owner));
        if owner.is_some_and(|owner| owner != id) {
            // Another allocation's, whose id begins alike.
            return Ok(());
        }
        self.forget(short)?;
        self.publish_if_dirty();
        if let Some(leftover) = found.get(short) {
            self.take_down(leftover).await?;
        }
        Ok(())
    }

    async fn retain(&mut self, ids: &BTreeSet<String>) -> Result<(), NetError> {
        let gone: Vec<String> = self.allocs.keys().filter(|short| !ids.contains(*short)).cloned().collect();
        gone.iter().try_for_each(|short| self.forget(short))?;
        self.publish_if_dirty();
        for (_, leftover) in self.network.list().await?.iter().filter(|(short, _)| !ids.contains(*short)) {
            tracing::info!(alloc = leftover.alloc, "removing the network of an allocation that is no more");
            self.take_down(leftover).await?;
        }
        self.narrow_scope()
    }

    fn forget(&mut self, short: &str) -> Result<(), NetError> {
        let Some(alloc) = self.allocs.remove(short) else { return Ok(()) };
        self.dirty = true;
        let cookie = alloc.cookie.or_else(|| kernel::netns_cookie(&alloc.netns).ok());
        cookie.map_or(Ok(()), |cookie| Ok(self.datapath.forbid_netns(cookie)?))
    }

    async fn take_down(&mut self, leftover: &network::Leftover) -> Result<(), NetError> {
        if let Some((_, ifindex)) = &leftover.link {
            self.datapath.detach_veth(*ifindex)?;
        }
        Ok(self.network.remove_leftover(leftover).await?)
    }

    /// Forbids namespaces that are none of ours any more.
    fn narrow_scope(&mut self) -> Result<(), NetError> {
        let namespaces = self.allocs.values().map(|alloc| alloc.netns.as_path()).chain([Path::new(OWN_NETNS)]);
        let ours: BTreeSet<u64> = namespaces.filter_map(|netns| kernel::netns_cookie(netns).ok()).collect();
        for cookie in self.datapath.allowed_netns()?.difference(&ours) {
            self.datapath.forbid_netns(*cookie)?;
        }
        Ok(())
    }

    async fn on_routing(&mut self, routing: RoutingSnapshot, reply: Reply<()>) {
        if self.routing.as_ref().is_some_and(|held| held.generation > routing.generation) {
            return answer(reply, Ok(()));
        }
        let own = routing.nodes.iter().find(|node| node.id == self.config.node_id);
        let blocks = own.map(|node| node.blocks.clone()).unwrap_or_default();
        if !blocks.is_empty() {
            self.blocks = blocks;
        }
        let peers: Vec<IpAddr> =
            routing.nodes.iter().filter(|node| node.id != self.config.node_id).map(|node| node.address).collect();
        match self.routing.as_ref().and_then(|held| changed_services(held, &routing)) {
            Some(changed) => self.changed.extend(changed),
            None => self.dirty = true,
        }
        self.routing = Some(routing);
        self.take_mesh_address_or_say().await;
        self.publish_zone();
        self.resolve_peers(&peers).await;
        if let Err(error) = self.route_peers().await {
            tracing::error!(error = chain(&error), "the node itself does not reach every allocation");
        }
        self.create_waiting().await;
        self.answer_after_publish(reply, ());
    }

    async fn create_waiting(&mut self) {
        for asked in std::mem::take(&mut self.waiting).into_iter().filter(|asked| !asked.reply.is_closed()) {
            self.on_create(asked).await;
        }
    }

    /// Tried again at every tick; the data path does without meanwhile.
    async fn take_mesh_address_or_say(&mut self) {
        if let Err(error) = self.take_mesh_address().await {
            tracing::error!(error = chain(&error), "no DNS on the node's mesh address yet");
        }
    }

    /// The address on `lo`, and DNS on it.
    async fn take_mesh_address(&mut self) -> Result<(), NetError> {
        let Some(mesh) = ipam::mesh_address(&self.blocks) else { return Ok(()) };
        if self.mesh != Some(mesh) {
            self.network.add_mesh_address(mesh).await?;
            self.dns_mesh = None;
            self.mesh = Some(mesh);
        }
        if self.dns_mesh.is_none() {
            self.dns_mesh = Some(Listener::bind(SocketAddr::new(mesh, 53), self.zone.subscribe())?);
        }
        Ok(())
    }

    fn publish_zone(&mut self) {
        let Some(routing) = &self.routing else { return };
        match Zone::from_routing(routing, &self.config.dns_domain, &self.config.datacenter) {
            Ok(zone) => {
                let server = self.mesh.unwrap_or(self.config.address);
                self.zone.send_replace(Some(Arc::new(zone.with_server(server))));
            }
            Err(error) => tracing::error!(error = chain(&error), "DNS keeps the zone it has"),
        }
    }

    async fn route_peers(&self) -> Result<(), NetError> {
        let (Some(link), Some(mesh), Some(routing)) = (&self.mesh_link, self.mesh, &self.routing) else {
            return Ok(());
        };
        let peers = routing.nodes.iter().filter(|node| node.id != self.config.node_id && node.status.is_reachable());
        let blocks = peers.flat_map(|node| node.blocks.iter().copied()).collect();
        Ok(self.network.route_blocks(link, &blocks, mesh).await?)
    }

    async fn resolve_peers(&mut self, peers: &[IpAddr]) {
        if self.uplink.is_none() {
            return;
        }
        self.release_hops(peers).await;
        for peer in peers {
            if !self.hops.contains_key(peer) {
                self.resolve(*peer).await;
            }
        }
        self.refresh_neighbours().await;
    }

    /// The kernel need not keep fresh what leads to nobody any more.
    async fn release_hops(&mut self, peers: &[IpAddr]) {
        let kept = |address: &IpAddr| *address == OUTSIDE || peers.contains(address);
        let (stay, gone): (BTreeMap<_, _>, BTreeMap<_, _>) =
            std::mem::take(&mut self.hops).into_iter().partition(|(address, _)| kept(address));
        self.hops = stay;
        for hop in gone.into_values().filter(|hop| !self.hops.values().any(|used| used == hop)) {
            if let Err(error) = self.network.release(hop).await {
                tracing::debug!(error = chain(&error), "a next hop that nobody needs stays");
            }
        }
    }

    /// Has the kernel find out and keep the link-layer address of the way to an address.
    async fn resolve(&mut self, address: IpAddr) {
        let outcome = match self.network.next_hop(address).await {
            Ok(hop) => self.network.resolve(hop).await.map(|()| self.hops.insert(address, hop)),
            Err(error) => Err(error),
        };
        if let Err(error) = outcome {
            tracing::debug!(%address, error = chain(&error), "next hop not resolved");
        }
    }

    /// A next hop that a packet was dropped for: a peer's is kept fresh, any other's only asked for.
    async fn resolve_dropped(&mut self, address: IpAddr) {
        if self.hops.contains_key(&address) {
            return self.resolve(address).await;
        }
        let outcome = match self.network.next_hop(address).await {
            // Asking for it would end its being kept.
            Ok(hop) if self.hops.values().any(|kept| *kept == hop) => Ok(()),
            Ok(hop) => self.network.resolve_once(hop).await,
            Err(error) => Err(error),
        };
        if let Err(error) = outcome {
            tracing::debug!(%address, error = chain(&error), "next hop not resolved");
        }
    }

    fn watch_neighbours(&self) -> Option<network::NeighbourWatch> {
        let watch = self.network.watch_neighbours();
        watch.inspect_err(|error| tracing::debug!(error = chain(error), "no neighbour events yet")).ok()
    }

    async fn on_neighbours(&mut self) {
        if self.refreshed.elapsed() < REFRESH_APART {
            self.stale = true;
        } else {
            self.refresh_neighbours().await;
        }
    }

    async fn refresh_neighbours(&mut self) {
        (self.refreshed, self.stale) = (Instant::now(), false);
        match self.network.neighbours().await {
            Ok(neighbours) => {
                self.dirty |= self.macs(&neighbours) != self.macs(&self.neighbours);
                self.neighbours = neighbours;
            }
            Err(error) => tracing::warn!(error = chain(&error), "neighbours not read"),
        }
    }

    /// The link-layer address of the next hop towards each node.
    fn macs(&self, neighbours: &BTreeMap<NextHop, Mac>) -> BTreeMap<IpAddr, Mac> {
        self.hops.iter().filter_map(|(address, hop)| Some((*address, *neighbours.get(hop)?))).collect()
    }

    async fn on_tick(&mut self) {
        for address in self.datapath.take_unresolved() {
            self.resolve_dropped(IpAddr::V4(address.into())).await;
        }
        if self.mesh.is_some() && self.dns_mesh.is_none() {
            let retried = self.take_mesh_address().await;
            retried.unwrap_or_else(|error| tracing::debug!(error = chain(&error), "DNS not yet on the mesh address"));
        }
        if self.looked.elapsed() > LOOK {
            self.looked = Instant::now();
            self.follow_uplink().await;
        }
        if self.swept.elapsed() > SWEEP {
            self.swept = Instant::now();
            self.dirty |= self.routing.is_some();
            self.retry_hops().await;
            self.guard.check(&self.network);
            self.stale = true;
        }
        if self.stale {
            self.refresh_neighbours().await;
        }
        let next_change = self.compilation.as_ref().and_then(|compilation| compilation.next_change);
        self.dirty |= next_change.is_some_and(|next| next <= now());
        let (late, waiting) =
            std::mem::take(&mut self.waiting).into_iter().partition(|asked| asked.since.elapsed() > BLOCK_WAIT);
        self.waiting = waiting;
        Vec::into_iter(late).for_each(|asked: Waiting| answer(asked.reply, Err(NetError::NoBlock)));
    }

    /// Its MAC or MTU may change, or the address it must carry; while it is gone or without that, the maps stay as they are.
    async fn follow_uplink(&mut self) {
        if self.uplink.is_none() {
            return;
        }
        match find_uplink(&self.network, &self.config).await {
            Ok(found) if found != self.uplink => {
                tracing::info!(?found, "the uplink has changed");
                let replaced =
                    found.as_ref().map(|uplink| uplink.ifindex) != self.uplink.as_ref().map(|held| held.ifindex);
                self.uplink = found;
                self.dirty = true;
                self.uplink_missing = false;
                if replaced {
                    self.reattach_uplink();
                    self.retry_hops().await;
                }
            }
            Ok(_) => self.uplink_missing = false,
            Err(error) if !self.uplink_missing => {
                self.uplink_missing = true;
                tracing::error!(
                    error = chain(&error),
                    "the uplink is not usable; traffic from outside stops until it is"
                );
            }
            Err(_) => {}
        }
    }

    /// An interface of the same name is another one.
    fn reattach_uplink(&mut self) {
        let Some(uplink) = &self.config.uplink else { return };
        if let Err(error) = self.datapath.follow_uplink(uplink) {
            tracing::error!(error = chain(&error), "the programs are not on the new uplink");
        }
        // Its kernel parameters are its own.
        self.guard.renew(&self.network);
        self.hops.clear();
    }

    /// Routes change, and a peer that could not be resolved may have come up.
    async fn retry_hops(&mut self) {
        let nodes = self.routing.iter().flat_map(|routing| &routing.nodes);
        let peers = nodes.filter(|node| node.id != self.config.node_id).map(|node| node.address);
        let peers: Vec<IpAddr> = if self.uplink.is_some() { peers.collect() } else { Vec::new() };
        for peer in peers {
            self.resolve(peer).await;
        }
    }

    /// Before the servers' first word the maps stay as an earlier agent left them.
    fn publish_if_dirty(&mut self) {
        if (self.dirty || !self.changed.is_empty()) && self.routing.is_some() {
            let outcome = self.publish_changed().and_then(|enough| if enough { Ok(()) } else { self.publish() });
            self.dirty = outcome.is_err();
            self.settle(outcome);
        } else if !self.after_publish.is_empty() {
            self.settle(Ok(()));
        }
    }

    fn settle(&mut self, outcome: Result<(), NetError>) {
        let failure = outcome.err().map(|error| chain(&error));
        if let Some(error) = &failure {
            tracing::error!(error, "the maps could not be written; trying again");
        }
        for answer in std::mem::take(&mut self.after_publish) {
            answer(failure.clone().map_or(Ok(()), |error| Err(NetError::Unpublished(error))));
        }
    }

    /// Service by service, where that is enough: says whether it was.
    fn publish_changed(&mut self) -> Result<bool, NetError> {
        let changed = std::mem::take(&mut self.changed);
        if self.dirty {
            return Ok(false);
        }
        let Some(mut compilation) = self.compilation.take() else { return Ok(false) };
        let Some(snapshot) = self.snapshot() else { return Ok(false) };
        let known = compilation.problems.clone();
        let outcome =
            changed.iter().try_fold(true, |enough, name| match recompile(&snapshot, &mut compilation, name) {
                Some(delta) => self.datapath.publish(&delta).map(|()| enough),
                None => Ok(false),
            });
        self.routing = Some(snapshot.routing);
        match outcome {
            Ok(enough) => {
                log_new_problems(&known, &compilation.problems);
                self.compilation = Some(compilation);
                Ok(enough)
            }
            Err(error) => {
                // Some writes were made: go on from what is there now, or at least from what was to be.
                match self.datapath.load_image() {
                    Ok(image) => self.adopted = Indices::adopt(image, now()),
                    Err(_) => self.compilation = Some(compilation),
                }
                Err(error.into())
            }
        }
    }

    fn publish(&mut self) -> Result<(), NetError> {
        let Some(snapshot) = self.snapshot() else { return Ok(()) };
        let compilation = compile(&snapshot, self.indices());
        let delta = diff(self.image(), compilation.image());
        let generation = snapshot.routing.generation;
        self.routing = Some(snapshot.routing);
        if let Err(error) = self.datapath.publish(&delta) {
            // Some writes were made: go on from what is there now.
            self.adopted = Indices::adopt(self.datapath.load_image()?, now());
            self.compilation = None;
            return Err(error.into());
        }
        tracing::debug!(%generation, writes = delta.writes.len(), "published");
        let known = self.compilation.as_ref().map(|before| before.problems.as_slice()).unwrap_or_default();
        log_new_problems(known, &compilation.problems);
        self.compilation = Some(compilation);
        self.adopted = Indices::default();
        Ok(())
    }

    /// What the next compilation goes on from.
    fn indices(&self) -> &Indices {
        self.compilation.as_ref().map_or(&self.adopted, |compilation| &compilation.indices)
    }

    fn image(&self) -> &MapImage {
        self.indices().image()
    }

    /// Takes the routing out, which is large; whoever asked puts it back.
    fn snapshot(&mut self) -> Option<Snapshot> {
        let uplink = self.uplink.as_ref().map(|uplink| dataplane::Uplink {
            address: self.config.address,
            ifindex: uplink.ifindex,
            mac: uplink.mac,
            mtu: u16::try_from(uplink.mtu).unwrap_or(u16::MAX),
            reserved_ports: self.reserved_ports.clone(),
            local_ports: self.local_ports.clone(),
        });
        Some(Snapshot {
            node_id: self.config.node_id,
            now: now(),
            routing: self.routing.take()?,
            uplink,
            mesh_address: self.mesh,
            endpoints: endpoints::snapshot(&self.allocs),
            neighbours: self.macs(&self.neighbours),
        })
    }

    fn report(&mut self) -> Result<RouteReport, NetError> {
        self.publish_if_dirty();
        let drops = self.datapath.drop_counters()?;
        let generation = self.routing.as_ref().map_or(0, |routing| routing.generation.0);
        let counters = self.datapath.backend_counters()?;
        let report = report(&self.config.node_name, generation, self.compilation.as_ref(), &counters, &drops);
        Ok(RouteReport { notices: self.guard.notices(), ..report })
    }

    fn trace(&mut self, asked: &TraceQuestion) -> Result<TraceReport, NetError> {
        self.publish_if_dirty();
        let question = trace::question(asked)?;
        let rehearsal = self.datapath.rehearse(&question)?;
        let (image, compilation) = (self.image(), self.compilation.as_ref());
        Ok(trace::report(&self.config.node_name, asked, &question, &rehearsal, image, compilation))
    }

    fn alloc_mtu(&self) -> u32 {
        self.uplink.as_ref().map_or(UPLINK_MTU, |uplink| uplink.mtu).saturating_sub(TUNNEL_OVERHEAD)
    }

    fn answer_after_publish<T: 'static>(&mut self, reply: Reply<T>, value: T) {
        self.after_publish.push(Box::new(move |outcome| answer(reply, outcome.map(|()| value))));
    }
}

fn log_new_problems(known: &[RouteProblem], problems: &[RouteProblem]) {
    for problem in problems.iter().filter(|problem| !known.contains(problem)) {
        tracing::warn!(%problem, "route skipped");
    }
}

/// The services whose instances differ; none when more does. Texts are not compared: a registration that has others has a
/// newer index, too.
fn changed_services(held: &RoutingSnapshot, new: &RoutingSnapshot) -> Option<Vec<String>> {
    if held.nodes != new.nodes || held.services.len() != new.services.len() {
        return None;
    }
    let mut changed = Vec::new();
    for (old, new) in held.services.iter().zip(&new.services) {
        if old.name != new.name || old.vip != new.vip {
            return None;
        }
        let same = |(a, b): (&Instance, &Instance)| marks(a) == marks(b);
        if old.instances.len() != new.instances.len() || !old.instances.iter().zip(&new.instances).all(same) {
            changed.push(new.name.clone());
        }
    }
    Some(changed)
}

fn marks(instance: &Instance) -> impl PartialEq {
    let Instance { modified_at_index, alloc_id, node_id, address, port, vip_port, network, .. } = *instance;
    let Instance { weight, health, draining, steering, .. } = *instance;
    let place = (modified_at_index, alloc_id, node_id, address, port, vip_port, network);
    (place, weight, health, draining, steering)
}

/// Nobody may be waiting any more; the work is done all the same.
fn answer<T>(reply: Reply<T>, outcome: Result<T, NetError>) {
    drop(reply.send(outcome));
}

async fn changed(watch: &mut Option<network::NeighbourWatch>) -> bool {
    match watch {
        Some(watch) => watch.changed().await,
        None => std::future::pending().await,
    }
}

fn check_domain(config: &NetConfig) -> Result<(), NetError> {
    Zone::from_routing(&RoutingSnapshot::default(), &config.dns_domain, &config.datacenter)?;
    Ok(())
}

async fn find_uplink(network: &Network, config: &NetConfig) -> Result<Option<Uplink>, NetError> {
    let Some(name) = &config.uplink else { return Ok(None) };
    let uplink = network.uplink(name).await?;
    if !uplink.addresses.contains(&config.address) {
        return Err(NetError::ForeignAddress { uplink: name.clone(), address: config.address });
    }
    Ok(Some(uplink))
}

async fn make_mesh_link(network: &Network, datapath: &mut Datapath, uplink: &Uplink) -> Result<MeshLink, NetError> {
    let link = network.make_mesh_link(uplink.mtu.saturating_sub(TUNNEL_OVERHEAD)).await?;
    network.loosen_reverse_path(&uplink.name)?;
    kernel::set_tx_checksum_offload(Path::new(OWN_NETNS), &link.entry, false)?;
    datapath.attach_veth(link.exit_ifindex)?;
    Ok(link)
}

fn kernel_config(config: &NetConfig) -> Result<kernel::Config, NetError> {
    Ok(kernel::Config {
        pin_root: config.pin_root.clone(),
        node_id: config.node_id.to_string(),
        uplink: config.uplink.clone(),
        cgroup_root: cgroup2_root().ok_or(NetError::NoCgroup2)?,
        sizes: kernel::Sizes::default(),
    })
}

/// Wherever the distribution mounts it: `/sys/fs/cgroup`, or `/sys/fs/cgroup/unified` beside version 1 hierarchies.
pub fn cgroup2_root() -> Option<PathBuf> {
    let mounts = fs::read_to_string("/proc/self/mounts").ok()?;
    let mut fields = mounts.lines().map(|line| line.split(' ').collect::<Vec<_>>());
    fields.find_map(|fields| match fields[..] {
        [_, path, "cgroup2", ..] => Some(PathBuf::from(path)),
        _ => None,
    })
}

fn now() -> Timestamp {
    let elapsed = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    Timestamp::NEVER.plus(elapsed)
}
