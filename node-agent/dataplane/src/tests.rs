//! Whole compilations: what a change of the snapshot does to the maps.

use crate::indices::{FLOW_GRACE, READER_GRACE};
use crate::*;
use abi::{BACKEND_DOWN, BACKEND_DRAINING, BACKEND_HOST, BACKEND_LOCAL, Be16, Be32, PROTO_TCP, VipKey};
use model::{
    AllocId, AllocatedPort, Generation, Health, Index, Instance, InstanceNetwork, JobId, NodeId, NodeStatus,
    RoutedNode, RoutedService, RoutingSnapshot, Timestamp,
};
use proptest::prelude::*;
use std::collections::{BTreeMap, BTreeSet};
use std::net::{IpAddr, Ipv4Addr};
use std::time::Duration;

const NOW: Timestamp = Timestamp(1_000_000_000_000_000);
const EDGE_TAG: &str = "urlprefix-:80 proto=tcp";

fn ip(text: &str) -> IpAddr {
    text.parse().expect("an address in a test")
}

fn addr(text: &str) -> Be32 {
    text.parse::<Ipv4Addr>().expect("an address in a test").into()
}

fn key(address: &str, port: u16) -> VipKey {
    VipKey { addr: addr(address), port: Be16::new(port), proto: PROTO_TCP, pad: 0 }
}

fn node(number: u8) -> RoutedNode {
    RoutedNode {
        id: NodeId::from_random(u128::from(number)),
        name: format!("n{number}"),
        datacenter: "dc1".to_owned(),
        address: IpAddr::V4(Ipv4Addr::new(10, 77, 0, 10 + number)),
        blocks: vec![format!("10.64.{number}.0/26").parse().expect("a block")],
        status: NodeStatus::Ready,
        zone: String::new(),
    }
}

/// The allocation `host` (2 to 62) of node `number`.
fn instance(service: &str, number: u8, host: u8) -> Instance {
    let node = node(number);
    Instance {
        service: service.to_owned(),
        job_id: JobId(service.to_owned()),
        alloc_id: AllocId::from_random(u128::from(number) << 8 | u128::from(host)),
        node_id: node.id,
        node_name: node.name,
        datacenter: node.datacenter,
        address: IpAddr::V4(Ipv4Addr::new(10, 64, number, host)),
        port: 8080,
        vip_port: Some(80),
        tags: Vec::new(),
        weight: 1,
        network: InstanceNetwork::Bridge,
        health: Health::Passing,
        draining: false,
        modified_at_index: Index(1),
        steering: model::Steering::default(),
    }
}

fn service(name: &str, vip: u8, instances: Vec<Instance>) -> RoutedService {
    RoutedService { name: name.to_owned(), vip: IpAddr::V4(Ipv4Addr::new(10, 43, 0, vip)), instances }
}

fn snapshot(services: Vec<RoutedService>) -> Snapshot {
    let neighbours = (2..=3).map(|number| (node(number).address, [2, 0, 0, 0, 0, number])).collect();
    Snapshot {
        node_id: node(1).id,
        now: NOW,
        routing: RoutingSnapshot { generation: Generation(1), nodes: (1..=3).map(node).collect(), services },
        uplink: Some(Uplink {
            address: ip("10.77.0.11"),
            ifindex: 7,
            mac: [2, 0, 0, 0, 0, 1],
            mtu: 1500,
            reserved_ports: BTreeSet::from([4646]),
            local_ports: Some(32_768..=60_999),
        }),
        mesh_address: Some(ip("10.64.1.1")),
        endpoints: BTreeMap::new(),
        neighbours,
    }
}

fn endpoint(number: u8, host: u8, ports: &[(u16, u16)]) -> LocalEndpoint {
    let port = |&(host_port, to): &(u16, u16)| AllocatedPort { label: "http".to_owned(), host_port, to };
    LocalEndpoint {
        alloc_id: instance("", number, host).alloc_id,
        ifindex: 20 + u32::from(host),
        mac: [4, 0, 0, 0, 0, host],
        host_mac: [6, 0, 0, 0, 0, host],
        ports: ports.iter().map(port).collect(),
    }
}

fn web() -> Vec<RoutedService> {
    vec![service("web", 1, vec![instance("web", 1, 2), instance("web", 2, 2), instance("web", 3, 2)])]
}

fn fresh(snapshot: &Snapshot) -> Compilation {
    compile(snapshot, &Indices::default())
}

/// The addresses a frontend's ring leads to.
fn behind(image: &MapImage, key: VipKey) -> BTreeSet<Ipv4Addr> {
    let Some(ring) = image.vips.get(&key).and_then(|value| image.rings.get(&value.ring)) else {
        return BTreeSet::new();
    };
    ring.slots.iter().map(|id| image.backends[id].addr.into()).collect()
}

fn addresses<const N: usize>(texts: [&str; N]) -> BTreeSet<Ipv4Addr> {
    texts.iter().map(|text| text.parse().expect("an address in a test")).collect()
}

fn later(snapshot: &Snapshot, by: Duration) -> Snapshot {
    Snapshot { now: snapshot.now.plus(by), ..snapshot.clone() }
}

#[test]
fn a_vip_leads_to_every_instance() {
    let compilation = fresh(&snapshot(web()));
    let image = compilation.image();
    assert_eq!(behind(image, key("10.43.0.1", 80)), addresses(["10.64.1.2", "10.64.2.2", "10.64.3.2"]));
    assert_eq!(compilation.problems, []);
    let local = image.backends.values().find(|backend| backend.addr == addr("10.64.1.2")).expect("placed");
    assert_eq!((local.flags, local.node), (BACKEND_LOCAL, abi::NODE_SELF));
    let remote = image.backends.values().find(|backend| backend.addr == addr("10.64.2.2")).expect("placed");
    assert_eq!(image.nodes[&remote.node].addr, addr("10.77.0.12"));
    assert_eq!(image.nodes[&remote.node].dmac, [2, 0, 0, 0, 0, 2]);
    assert_eq!(image.blocks[&addr("10.64.1.0")], abi::NODE_SELF);
    assert_eq!(image.blocks[&addr("10.64.2.0")], remote.node);
    assert_eq!(image.node_by_addr[&addr("10.77.0.12")], remote.node);
    assert_eq!(image.uplink.flags, abi::UPLINK_READY);
}

#[test]
fn every_node_computes_the_same_ring() {
    let mut turned = snapshot(web());
    turned.node_id = node(3).id;
    turned.routing.nodes.reverse();
    turned.routing.services[0].instances.reverse();
    let slots = |snapshot: &Snapshot| {
        let compilation = fresh(snapshot);
        let image = compilation.image();
        let ring = &image.rings[&image.vips[&key("10.43.0.1", 80)].ring];
        ring.slots.iter().map(|id| image.backends[id].addr).collect::<Vec<_>>()
    };
    assert_eq!(slots(&snapshot(web())), slots(&turned));
}

#[test]
fn critical_and_draining_instances_leave_the_ring_and_keep_their_entries() {
    let mut snapshot = snapshot(web());
    snapshot.routing.services[0].instances[0].draining = true;
    snapshot.routing.services[0].instances[1].health = Health::Critical;
    let compilation = fresh(&snapshot);
    let image = compilation.image();
    assert_eq!(behind(image, key("10.43.0.1", 80)), addresses(["10.64.3.2"]));
    let flags = |text| image.backends.values().find(|b| b.addr == addr(text)).map(|b| b.flags & !BACKEND_LOCAL);
    assert_eq!(flags("10.64.1.2"), Some(BACKEND_DRAINING));
    assert_eq!(flags("10.64.2.2"), Some(BACKEND_DRAINING));
    assert_eq!(flags("10.64.3.2"), Some(0));
}

#[test]
fn draining_instances_take_flows_when_nobody_else_is_left() {
    let mut snapshot = snapshot(web());
    for instance in &mut snapshot.routing.services[0].instances {
        instance.draining = true;
    }
    snapshot.routing.services[0].instances[2].health = Health::Critical;
    let compilation = fresh(&snapshot);
    assert_eq!(behind(compilation.image(), key("10.43.0.1", 80)), addresses(["10.64.1.2", "10.64.2.2"]));
}

#[test]
fn a_service_without_working_instances_keeps_an_empty_frontend() {
    let mut snapshot = snapshot(web());
    snapshot.routing.services[0].instances.iter_mut().for_each(|instance| instance.health = Health::Critical);
    let compilation = fresh(&snapshot);
    let image = compilation.image();
    let ring = &image.rings[&image.vips[&key("10.43.0.1", 80)].ring];
    assert_eq!((ring.head.size(), ring.slots.len()), (0, 0));
}

#[test]
fn a_suspect_node_keeps_its_instances_and_a_down_node_loses_them() {
    let mut snapshot = snapshot(web());
    snapshot.routing.nodes[1].status = NodeStatus::Suspect;
    snapshot.routing.nodes[2].status = NodeStatus::Down;
    let compilation = fresh(&snapshot);
    assert_eq!(behind(compilation.image(), key("10.43.0.1", 80)), addresses(["10.64.1.2", "10.64.2.2"]));
    assert!(!compilation.image().node_by_addr.contains_key(&addr("10.77.0.13")));
    assert_eq!(compilation.problems, []);
}

#[test]
fn a_removed_backend_rests_as_down_and_its_id_means_nothing_else_for_a_while() {
    let first = fresh(&snapshot(web()));
    let (gone, _) = first.image().backends.iter().find(|(_, b)| b.addr == addr("10.64.3.2")).expect("placed");
    let mut shrunk = snapshot(web());
    shrunk.routing.services[0].instances.truncate(2);
    let second = compile(&shrunk, &first.indices);
    assert_eq!(second.image().backends[gone].flags & BACKEND_DOWN, BACKEND_DOWN);
    shrunk.routing.services[0].instances.push(instance("web", 2, 9));
    let third = compile(&later(&shrunk, Duration::from_secs(60)), &second.indices);
    assert_eq!(third.image().backends[gone].addr, addr("10.64.3.2"), "the id is not given away");
    assert!(behind(third.image(), key("10.43.0.1", 80)).contains(&Ipv4Addr::new(10, 64, 2, 9)));
    let fourth = compile(&later(&shrunk, FLOW_GRACE), &third.indices);
    assert!(!fourth.image().backends.contains_key(gone));
}

#[test]
fn a_backend_that_comes_back_gets_its_id_back() {
    let first = fresh(&snapshot(web()));
    let mut shrunk = snapshot(web());
    shrunk.routing.services[0].instances.truncate(2);
    let second = compile(&shrunk, &first.indices);
    let third = compile(&snapshot(web()), &second.indices);
    assert_eq!(third.image().backends, first.image().backends);
}

#[test]
fn only_the_changed_service_gets_a_new_slab_and_the_old_one_rests() {
    let mut services = web();
    services.push(service("api", 2, vec![instance("api", 1, 3), instance("api", 2, 3)]));
    let first = fresh(&snapshot(services.clone()));
    services[1].instances.push(instance("api", 3, 3));
    let second = compile(&snapshot(services.clone()), &first.indices);
    let ring = |c: &Compilation, vip| c.image().rings[&c.image().vips[&key(vip, 80)].ring].clone();
    assert_eq!(ring(&first, "10.43.0.1"), ring(&second, "10.43.0.1"));
    let (old, new) = (ring(&first, "10.43.0.2").head, ring(&second, "10.43.0.2").head);
    assert_ne!(old.base(), new.base());
    assert_eq!(new.generation(), old.generation() + 1);
    services[1].instances.pop();
    let third = compile(&later(&snapshot(services.clone()), READER_GRACE / 2), &second.indices);
    assert_ne!(ring(&third, "10.43.0.2").head.base(), old.base(), "still resting");
    services[1].instances.pop();
    let fourth = compile(&later(&snapshot(services), READER_GRACE * 2), &third.indices);
    assert_eq!(ring(&fourth, "10.43.0.2").head.base(), old.base(), "reused");
}

#[test]
fn edge_tags_open_the_port_on_this_nodes_own_address() {
    let mut services = web();
    services[0].instances[0].tags.push(EDGE_TAG.to_owned());
    services[0].instances[1].tags.push(EDGE_TAG.to_owned());
    let compilation = fresh(&snapshot(services));
    assert_eq!(behind(compilation.image(), key("10.77.0.11", 80)), addresses(["10.64.1.2", "10.64.2.2"]));
    assert_eq!(compilation.image().vips[&key("10.77.0.11", 80)].flags, abi::VIP_EDGE);
    let sources: Vec<_> = compilation.services[0].frontends.iter().map(|frontend| frontend.source).collect();
    assert_eq!(sources, [FrontendSource::Vip, FrontendSource::Edge]);
}

#[test]
fn datagrams_have_frontends_and_backends_of_their_own() {
    let mut services = web();
    services[0].instances[0].tags.push("urlprefix-:80 proto=udp".to_owned());
    services[0].instances[1].tags.push("proto=udp".to_owned());
    let compilation = fresh(&snapshot(services));
    let image = compilation.image();
    let udp = |address, port| VipKey { proto: abi::PROTO_UDP, ..key(address, port) };
    assert_eq!(behind(image, udp("10.77.0.11", 80)), addresses(["10.64.1.2"]));
    assert_eq!(behind(image, udp("10.43.0.1", 80)), addresses(["10.64.1.2", "10.64.2.2"]));
    assert_eq!(behind(image, key("10.43.0.1", 80)).len(), 3, "TCP as before");
    assert!(!image.vips.contains_key(&key("10.77.0.11", 80)));
    let ring = |key| &image.rings[&image.vips[&key].ring];
    let protos = |key| ring(key).slots.iter().map(|id| image.backends[id].proto).collect::<BTreeSet<_>>();
    assert_eq!((protos(udp("10.43.0.1", 80)), protos(key("10.43.0.1", 80))), ([17].into(), [6].into()));
    let shares: f64 = compilation.services[0]
        .backends
        .iter()
        .filter(|backend| backend.proto == Proto::Udp)
        .map(|backend| compilation.services[0].ring_share(backend, image))
        .sum();
    assert!((shares - 1.0).abs() < 1e-9);
}

#[test]
fn of_two_services_on_one_edge_port_the_first_by_name_stands() {
    let mut services = vec![service("api", 2, vec![instance("api", 1, 3)]), web().remove(0)];
    for service in &mut services {
        service.instances[0].tags.push(EDGE_TAG.to_owned());
    }
    let compilation = fresh(&snapshot(services));
    assert_eq!(behind(compilation.image(), key("10.77.0.11", 80)), addresses(["10.64.1.3"]));
    let holder = "api".to_owned();
    let kind = RouteProblemKind::PortTaken { port: 80, holder };
    assert_eq!(compilation.problems, [RouteProblem { service: "web".to_owned(), kind }]);
}

#[test]
fn the_nodes_own_ports_are_not_given_away() {
    let mut services = web();
    services[0].instances[0].tags.push("urlprefix-:4646 proto=tcp".to_owned());
    let compilation = fresh(&snapshot(services));
    assert_eq!(compilation.problems[0].kind, RouteProblemKind::PortReserved { port: 4646 });
    assert!(!compilation.image().vips.contains_key(&key("10.77.0.11", 4646)));
}

#[test]
fn host_network_backends_are_flagged_and_behind_edge_routes_as_others_are() {
    let mut services = web();
    let host = &mut services[0].instances[1];
    (host.network, host.address, host.port) = (InstanceNetwork::Host, ip("10.77.0.12"), 20_000);
    services[0].instances.iter_mut().for_each(|instance| instance.tags.push(EDGE_TAG.to_owned()));
    let compilation = fresh(&snapshot(services));
    let flagged = compilation.image().backends.values().find(|b| b.addr == addr("10.77.0.12")).expect("placed");
    assert_eq!(flagged.flags, BACKEND_HOST);
    assert!(behind(compilation.image(), key("10.43.0.1", 80)).contains(&Ipv4Addr::new(10, 77, 0, 12)));
    assert_eq!(behind(compilation.image(), key("10.77.0.11", 80)), addresses(["10.64.1.2", "10.77.0.12", "10.64.3.2"]));
    assert_eq!(compilation.problems, []);
}

#[test]
fn host_ports_of_local_allocations_are_mapped() {
    let mut snapshot = snapshot(web());
    snapshot.endpoints.insert(ip("10.64.1.2"), endpoint(1, 2, &[(23_000, 8080)]));
    let compilation = fresh(&snapshot);
    let image = compilation.image();
    assert_eq!(behind(image, key("10.77.0.11", 23_000)), addresses(["10.64.1.2"]));
    assert_eq!(image.endpoints[&addr("10.64.1.2")].ifindex, 22);
    assert_eq!(
        compilation.services[0].frontends.last().map(|f| (f.port, f.source)),
        Some((23_000, FrontendSource::HostPort))
    );
}

#[test]
fn mapped_host_ports_can_be_read_back() {
    let mut snapshot = snapshot(web());
    snapshot.endpoints.insert(ip("10.64.1.2"), endpoint(1, 2, &[(23_000, 8080), (23_001, 9090)]));
    let expected = BTreeMap::from([(ip("10.64.1.2"), vec![(23_000, 8080), (23_001, 9090)])]);
    assert_eq!(host_ports(fresh(&snapshot).image()), expected);
}

#[test]
fn an_edge_route_hides_a_host_port_and_says_so_unless_it_leads_to_the_same_allocation() {
    let mut services = web();
    services[0].instances[0].tags.push(EDGE_TAG.to_owned());
    let mut snapshot = snapshot(services);
    snapshot.endpoints.insert(ip("10.64.1.2"), endpoint(1, 2, &[(80, 8080)]));
    assert_eq!(fresh(&snapshot).problems, []);
    snapshot.endpoints.insert(ip("10.64.1.9"), endpoint(1, 9, &[(80, 9090)]));
    assert!(matches!(fresh(&snapshot).problems[0].kind, RouteProblemKind::HostPortHidden { port: 80, .. }));
}

#[test]
fn without_an_uplink_only_vips_are_there() {
    let mut services = web();
    services[0].instances[0].tags.push(EDGE_TAG.to_owned());
    let mut snapshot = snapshot(services);
    snapshot.uplink = None;
    snapshot.endpoints.insert(ip("10.64.1.2"), endpoint(1, 2, &[(23_000, 8080)]));
    let compilation = fresh(&snapshot);
    assert_eq!(compilation.image().vips.keys().copied().collect::<Vec<_>>(), [key("10.43.0.1", 80)]);
    assert_eq!(compilation.image().uplink.flags, 0);
}

#[test]
fn a_restart_writes_nothing_that_is_right() {
    let first = fresh(&snapshot(web()));
    let mut shrunk = snapshot(web());
    shrunk.routing.services[0].instances.truncate(2);
    let second = compile(&shrunk, &first.indices);
    let adopted = Indices::adopt(second.image().clone(), NOW);
    let third = compile(&shrunk, &adopted);
    assert_eq!(diff(second.image(), third.image()), MapDelta::default());
}

#[test]
fn shares_sum_to_one() {
    let compilation = fresh(&snapshot(web()));
    let web = &compilation.services[0];
    let sum: f64 = web.backends.iter().map(|backend| web.ring_share(backend, compilation.image())).sum();
    assert!((sum - 1.0).abs() < 1e-9);
}

/// The maps as packets see them, one write after the other.
struct Maps {
    image: MapImage,
    slots: BTreeMap<u32, u32>,
    heads: BTreeMap<u32, abi::RingHead>,
}

impl Maps {
    fn apply(&mut self, write: &Write) {
        let image = &mut self.image;
        match write {
            Write::SetUplink(uplink) => image.uplink = *uplink,
            Write::SetEndpoint(addr, endpoint) => drop(image.endpoints.insert(*addr, *endpoint)),
            Write::RemoveEndpoint(addr) => drop(image.endpoints.remove(addr)),
            Write::SetNode(index, node) if node.addr.is_zero() => drop(image.nodes.remove(index)),
            Write::SetNode(index, node) => drop(image.nodes.insert(*index, *node)),
            Write::SetNodeByAddr(addr, index) => drop(image.node_by_addr.insert(*addr, *index)),
            Write::RemoveNodeByAddr(addr) => drop(image.node_by_addr.remove(addr)),
            Write::SetBlock(block, index) => drop(image.blocks.insert(*block, *index)),
            Write::RemoveBlock(block) => drop(image.blocks.remove(block)),
            Write::SetBackend(id, backend) if backend.addr.is_zero() => drop(image.backends.remove(id)),
            Write::SetBackend(id, backend) => drop(image.backends.insert(*id, *backend)),
            Write::SetSlots { base, slots } => self.slots.extend((*base..).zip(slots.iter().copied())),
            Write::SetHead { ring, head } => drop(self.heads.insert(*ring, *head)),
            Write::SetVip(key, value) => drop(image.vips.insert(*key, *value)),
            Write::RemoveVip(key) => drop(image.vips.remove(key)),
        }
    }

    /// Nothing dangles: every VIP has a head, every slot of it a backend that is up, every remote backend a node.
    fn check(&self) -> Result<(), TestCaseError> {
        for value in self.image.vips.values() {
            let head = self.heads.get(&value.ring);
            prop_assert!(head.is_some(), "ring {} has no head", value.ring);
            let head = head.copied().unwrap_or_default();
            for slot in head.base()..head.base() + head.size() {
                let backend = self.slots.get(&slot).and_then(|id| self.image.backends.get(id));
                prop_assert!(backend.is_some_and(|b| b.flags & BACKEND_DOWN == 0), "slot {} leads nowhere", slot);
            }
        }
        for backend in self.image.backends.values().filter(|b| b.flags & BACKEND_DOWN == 0) {
            prop_assert!(backend.node == abi::NODE_SELF || self.image.nodes.contains_key(&backend.node));
        }
        Ok(())
    }

    fn loaded(&self) -> MapImage {
        let ring = |head: &abi::RingHead| {
            let slots = (head.base()..head.base() + head.size()).map(|slot| self.slots[&slot]).collect();
            Ring { head: *head, slots }
        };
        let heads = self.heads.iter().filter(|(_, head)| head.word() != 0);
        MapImage { rings: heads.map(|(index, head)| (*index, ring(head))).collect(), ..self.image.clone() }
    }
}

fn arbitrary_services() -> impl Strategy<Value = Vec<RoutedService>> {
    let drawn = (1..=3_u8, 2..8_u8, 0..3_u16, any::<bool>(), 0..3_u8, any::<bool>());
    let instances = prop::collection::vec(drawn, 0..6);
    prop::collection::vec(instances, 0..4).prop_map(|services| {
        let named = services.into_iter().zip(1..).map(|(instances, number)| {
            let name = format!("s{number}");
            let instances = instances.into_iter().map(|(on, host, weight, draining, health, edge)| Instance {
                weight,
                draining,
                health: [Health::Passing, Health::Warning, Health::Critical][usize::from(health)],
                tags: if edge { vec![EDGE_TAG.to_owned()] } else { Vec::new() },
                ..instance(&name, on, host)
            });
            service(&name, number, instances.collect())
        });
        named.collect()
    })
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(48))]

    /// Through any history, at every single write, with restarts in between.
    #[test]
    fn no_packet_ever_finds_a_reference_to_nothing(
        history in prop::collection::vec((arbitrary_services(), 1..4_u8, 0..1_200_u64, any::<bool>()), 1..6),
    ) {
        let mut maps = Maps { image: MapImage::default(), slots: BTreeMap::new(), heads: BTreeMap::new() };
        let mut indices = Indices::default();
        let mut now = NOW;
        for (services, down, seconds, restart) in history {
            now = now.plus(Duration::from_secs(seconds));
            let mut snapshot = Snapshot { now, ..snapshot(services) };
            snapshot.routing.nodes[usize::from(down % 3)].status = NodeStatus::Down;
            if restart {
                indices = Indices::adopt(maps.loaded(), now);
            }
            let compilation = compile(&snapshot, &indices);
            for write in &diff(indices.image(), compilation.image()).writes {
                maps.apply(write);
                maps.check()?;
            }
            prop_assert_eq!(&maps.loaded(), compilation.image());
            indices = compilation.indices;
        }
    }

    #[test]
    fn hostile_snapshots_never_panic(tags in prop::collection::vec(any::<String>(), 0..4), name in any::<String>(), v6: u128, port: u16) {
        let mut hostile = instance(&name, 9, 2);
        hostile.tags = tags;
        (hostile.port, hostile.vip_port) = (port, Some(port));
        let six = Instance { address: IpAddr::V6(v6.into()), ..instance(&name, 1, 2) };
        let mut snapshot = snapshot(vec![service(&name, 1, vec![hostile, six])]);
        snapshot.routing.nodes[0].blocks = vec!["0.0.0.0/0".parse().expect("a range"), "10.0.0.0/30".parse().expect("a range")];
        let compilation = compile(&snapshot, &Indices::default());
        prop_assert!(compilation.problems.len() >= 2);
    }
}

fn share_of(compilation: &Compilation, number: u8) -> f64 {
    let service = &compilation.services[0];
    let backend = service.backends.iter().find(|backend| backend.node == format!("n{number}")).expect("a backend");
    service.ring_share(backend, compilation.image())
}

#[test]
fn weights_shape_the_ring_and_nothing_takes_an_instance_out() {
    let mut services = web();
    for (instance, weight) in services[0].instances.iter_mut().zip([3, 1, 0]) {
        instance.weight = weight;
    }
    let compilation = fresh(&snapshot(services));
    let shares = [1, 2, 3].map(|number| (share_of(&compilation, number) * 100.0).round());
    assert_eq!(shares, [75.0, 25.0, 0.0]);
    assert!(compilation.image().backends.values().all(|backend| backend.flags & abi::BACKEND_DRAINING == 0));
}

#[test]
fn a_zone_keeps_its_flows_while_somebody_there_takes_them() {
    let steering = model::Steering { zone_spill: Some(10), ..model::Steering::default() };
    let mut services = web();
    services[0].instances.iter_mut().for_each(|instance| instance.steering = steering);
    let mut snapshot = snapshot(services);
    for (node, zone) in snapshot.routing.nodes.iter_mut().zip(["a", "b", "b"]) {
        node.zone = zone.to_owned();
    }
    let near = fresh(&snapshot);
    assert_eq!((share_of(&near, 1) * 10.0).round(), 9.0, "nine of ten stay");
    snapshot.routing.services[0].instances[0].health = Health::Critical;
    let gone = fresh(&snapshot);
    assert_eq!((share_of(&gone, 1), (share_of(&gone, 2) * 10.0).round()), (0.0, 5.0), "nobody here: all leave");
    snapshot.routing.nodes[0].zone.clear();
    snapshot.routing.services[0].instances[0].health = Health::Passing;
    assert_eq!((share_of(&fresh(&snapshot), 1) * 3.0).round(), 1.0, "a node without a zone prefers none");
}

#[test]
fn a_new_instance_starts_slowly_and_those_of_before_do_not() {
    let steering = model::Steering { slow_start: Duration::from_secs(10), ..model::Steering::default() };
    let mut services = web();
    services[0].instances.iter_mut().for_each(|instance| instance.steering = steering);
    let third = services[0].instances.pop().expect("three");
    let mut snapshot = snapshot(services);
    let settled =
        compile(&Snapshot { now: NOW.plus(Duration::from_secs(60)), ..snapshot.clone() }, &fresh(&snapshot).indices);
    snapshot.routing.services[0].instances.push(third);
    snapshot.now = NOW.plus(Duration::from_secs(60));
    let begun = compile(&snapshot, &settled.indices);
    assert_eq!((share_of(&begun, 3) * 21.0).round(), 1.0, "a tenth of one beside two");
    assert_eq!(begun.next_change, Some(snapshot.now.plus(Duration::from_secs(1))));
    snapshot.now = snapshot.now.plus(Duration::from_secs(5));
    let half = compile(&snapshot, &begun.indices);
    assert_eq!((share_of(&half, 3) * 26.0).round(), 6.0);
    snapshot.now = snapshot.now.plus(Duration::from_secs(5));
    let whole = compile(&snapshot, &half.indices);
    assert_eq!(((share_of(&whole, 3) * 3.0).round(), whole.next_change), (1.0, None));
    let adopted = compile(&snapshot, &Indices::adopt(begun.image().clone(), snapshot.now));
    assert_eq!(adopted.next_change, None, "a restarted agent does not start them again");
}

/// What a service's frontends must lead to, as one would write it down without maps, numbers or rings.
fn naive(snapshot: &Snapshot) -> BTreeMap<VipKey, BTreeSet<Ipv4Addr>> {
    let known: BTreeSet<NodeId> = snapshot.routing.nodes.iter().map(|node| node.id).collect();
    let mut wanted = BTreeMap::new();
    for service in &snapshot.routing.services {
        let sound = |instance: &&Instance| {
            let v4 = matches!(instance.address, IpAddr::V4(address) if !address.is_unspecified());
            v4 && instance.port != 0 && known.contains(&instance.node_id)
        };
        let sound: Vec<&Instance> = service.instances.iter().filter(sound).collect();
        let mut lead = |key: VipKey, asking: Vec<&Instance>| {
            let able: Vec<_> = asking.into_iter().filter(|one| one.health != Health::Critical).collect();
            let staying: Vec<_> = able.iter().copied().filter(|one| !one.draining).collect();
            let takers = if staying.is_empty() { able } else { staying };
            let weighty = takers.into_iter().filter(|one| one.weight > 0);
            let addresses = weighty.filter_map(|one| match one.address {
                IpAddr::V4(address) => Some(address),
                IpAddr::V6(_) => None,
            });
            wanted.entry(key).or_insert_with(|| addresses.collect());
        };
        let IpAddr::V4(vip) = service.vip else { continue };
        for port in sound.iter().filter_map(|one| one.vip_port).collect::<BTreeSet<_>>() {
            let behind = sound.iter().copied().filter(|one| one.vip_port == Some(port)).collect();
            lead(key(&vip.to_string(), port), behind);
        }
        if service.instances.iter().any(|one| one.tags.contains(&EDGE_TAG.to_owned())) {
            let behind = sound.iter().copied().filter(|one| one.tags.contains(&EDGE_TAG.to_owned())).collect();
            lead(key("10.77.0.11", 80), behind);
        }
    }
    wanted
}

fn mistaken_services() -> impl Strategy<Value = Vec<RoutedService>> {
    let mistakes = prop::collection::vec((0..8_u8, 0..4_usize, 0..6_usize), 0..6);
    (arbitrary_services(), mistakes).prop_map(|(mut services, mistakes)| {
        for (mistake, service, instance) in mistakes {
            let first_vip = services.first().map(|service| service.vip);
            let Some(service) = services.get_mut(service) else { continue };
            if mistake == 0 {
                service.vip = first_vip.unwrap_or(service.vip);
            }
            let Some(instance) = service.instances.get_mut(instance) else { continue };
            match mistake {
                1 => instance.address = ip("0.0.0.0"),
                2 => instance.address = ip("fd00::1"),
                3 => instance.port = 0,
                4 => instance.node_id = NodeId::from_random(99),
                5 => instance.weight = 0,
                6 => instance.vip_port = Some(81),
                _ => instance.vip_port = None,
            }
        }
        services
    })
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(256))]

    /// One mistake costs nobody else anything.
    #[test]
    fn the_image_leads_where_the_naive_model_does(services in mistaken_services()) {
        let snapshot = snapshot(services);
        let compilation = fresh(&snapshot);
        let wanted = naive(&snapshot);
        let made: BTreeSet<VipKey> = compilation.image().vips.keys().copied().collect();
        prop_assert_eq!(&made, &wanted.keys().copied().collect::<BTreeSet<_>>());
        for (key, addresses) in &wanted {
            prop_assert_eq!(&behind(compilation.image(), *key), addresses, "{:?}", key);
        }
        let sound = |one: &Instance| {
            let behind_nothing = one.vip_port.is_none() && !one.tags.contains(&EDGE_TAG.to_owned());
            let v4 = matches!(one.address, IpAddr::V4(address) if !address.is_unspecified());
            behind_nothing || (v4 && one.port != 0)
        };
        for service in &snapshot.routing.services {
            let told = compilation.problems.iter().any(|problem| problem.service == service.name);
            prop_assert!(told || service.instances.iter().all(sound), "{} is not told of its mistake", service.name);
        }
    }
}

#[test]
fn a_second_service_at_one_address_is_told_who_has_it() {
    let twin = service("twin", 1, vec![instance("twin", 1, 9)]);
    let compilation = fresh(&snapshot([vec![twin], web()].concat()));
    assert_eq!(behind(compilation.image(), key("10.43.0.1", 80)), BTreeSet::from([Ipv4Addr::new(10, 64, 1, 9)]));
    let kind = RouteProblemKind::AddressTaken { address: ip("10.43.0.1"), port: 80, holder: "twin".to_owned() };
    assert_eq!(compilation.problems, [RouteProblem { service: "web".to_owned(), kind }]);
}

#[test]
fn a_full_table_says_how_much_is_needed_and_what_was_there_goes_on() {
    let many = |services: u32, instances: u8| -> Vec<RoutedService> {
        let named = |number: u32| {
            let name = format!("s{number:05}");
            let instances = (2..2 + instances).map(|host| Instance { port: 1, ..instance(&name, 1, host) }).collect();
            let vip = IpAddr::V4(Ipv4Addr::from(u32::from(Ipv4Addr::new(10, 43, 0, 0)) + 1 + number));
            RoutedService { vip, ..service(&name, 1, instances) }
        };
        (0..services).map(named).collect()
    };
    // 1,021 slots for each: 2,054 services fill the slots.
    let first = fresh(&snapshot(many(2_000, 6)));
    assert!(first.problems.is_empty());
    let over = compile(&snapshot(many(2_100, 6)), &first.indices);
    let needed = |problem: &RouteProblem| match problem.kind {
        RouteProblemKind::TableFull { table: "ring slot", needed, capacity } => needed - capacity,
        _ => 0,
    };
    assert_eq!(over.problems.len(), 46);
    assert!(over.problems.iter().all(|problem| needed(problem) == 46 * 1_021), "{:?}", over.problems[0]);
    assert!(first.image().vips.keys().all(|key| over.image().vips.contains_key(key)), "what was there goes on");
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(256))]

    /// Service by service or all at once: the same image, and writes that lead to it without a dangling moment.
    #[test]
    fn one_service_compiled_alone_is_as_if_all_had_been(
        first in mistaken_services(),
        changes in prop::collection::vec((mistaken_services(), 0..3_u64), 1..5),
    ) {
        let mut snapshot = snapshot(first);
        let mut held = fresh(&snapshot);
        let mut maps = Maps { image: MapImage::default(), slots: BTreeMap::new(), heads: BTreeMap::new() };
        diff(&MapImage::default(), held.image()).writes.iter().for_each(|write| maps.apply(write));
        for (drawn, seconds) in changes {
            snapshot.now = snapshot.now.plus(Duration::from_secs(seconds));
            for fresh in drawn {
                let Some(service) = snapshot.routing.services.iter_mut().find(|one| one.name == fresh.name) else { continue };
                service.instances = fresh.instances;
                let whole = compile(&snapshot, &held.indices);
                match recompile(&snapshot, &mut held, &fresh.name) {
                    Some(delta) => {
                        for write in &delta.writes {
                            maps.apply(write);
                            maps.check()?;
                        }
                        prop_assert_eq!(held.image(), whole.image());
                        prop_assert_eq!(&held.services, &whole.services);
                        let said = |compilation: &Compilation| {
                            let mut said: Vec<String> = compilation.problems.iter().map(ToString::to_string).collect();
                            said.sort();
                            said
                        };
                        prop_assert_eq!(said(&held), said(&whole));
                    }
                    None => {
                        diff(held.image(), whole.image()).writes.iter().for_each(|write| maps.apply(write));
                        held = whole;
                    }
                }
                prop_assert_eq!(&maps.loaded(), held.image());
            }
        }
    }
}

#[test]
fn a_change_of_one_instance_is_written_and_nothing_else_is_looked_at() {
    let mut snapshot = snapshot([web(), vec![service("zeta", 2, vec![instance("zeta", 2, 9)])]].concat());
    let mut held = fresh(&snapshot);
    snapshot.routing.services[0].instances[1].draining = true;
    let delta = recompile(&snapshot, &mut held, "web").expect("one service is enough");
    assert_eq!(delta.writes.len(), 3, "a flag, a slab, a head: {delta:?}");
    assert!(recompile(&snapshot, &mut held, "web").expect("again").is_empty());
    snapshot.routing.services[0].instances[2].vip_port = Some(81);
    let before = held.clone();
    assert_eq!(recompile(&snapshot, &mut held, "web"), None, "a new port may be another service's");
    assert_eq!(held, before);
}
