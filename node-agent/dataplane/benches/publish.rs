//! What it costs to turn a change of the catalog into the writes that the kernel's maps need: compiling the snapshot and
//! comparing images. Nothing here writes a map; a ring of 1,021 slots takes the kernel 5 us more.
//!
//! Baseline of the same run: copying the image as a whole. Prints a table and writes target/bench/publish.json.

use dataplane::{Compilation, Indices, Snapshot, Uplink, compile, diff, recompile};
use model::{
    AllocId, Generation, Health, Index, Instance, InstanceNetwork, JobId, NodeId, NodeStatus, RoutedNode,
    RoutedService, RoutingSnapshot, Steering, Timestamp,
};
use std::collections::{BTreeMap, BTreeSet};
use std::fmt::Write as _;
use std::hint::black_box;
use std::net::{IpAddr, Ipv4Addr};
use std::time::{Duration, Instant};

const REPORT: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/../../target/bench/publish.json");
const NOW: Timestamp = Timestamp(1_000_000_000_000_000);
const NODES: u32 = 100;
const SAMPLES: usize = 9;

fn main() -> std::io::Result<()> {
    let mut rows = Vec::new();
    for (services, instances) in [(100, 10), (2_000, 10), (8_000, 5)] {
        measure(services, instances, &mut rows);
    }
    needed(&mut rows);
    let mut text = String::from("{\n");
    for (at, (name, value)) in rows.iter().enumerate() {
        let comma = if at + 1 < rows.len() { "," } else { "" };
        let _ = writeln!(text, "  {name:?}: {value}{comma}");
    }
    text.push_str("}\n");
    std::fs::create_dir_all(concat!(env!("CARGO_MANIFEST_DIR"), "/../../target/bench"))?;
    std::fs::write(REPORT, text)
}

type Rows = Vec<(String, f64)>;

fn measure(services: u32, instances: u32, rows: &mut Rows) {
    let snapshot = snapshot(services, instances);
    let from_nothing = median(|| compile(&snapshot, &Indices::default()));
    let held = compile(&snapshot, &Indices::default());
    assert!(held.problems.is_empty(), "{}", held.problems[0]);
    let same = median(|| publish(&snapshot, &held));
    let mut changed = snapshot.clone();
    changed.routing.services[services as usize / 2].instances[0].draining = true;
    let one = median(|| publish(&changed, &held));
    let writes = diff(held.image(), compile(&changed, &held.indices).image()).writes.len();
    let alone = one_after_another(&mut snapshot.clone(), held.clone());
    let copy = median(|| held.image().clone());
    println!("{services} services of {instances} instances, {NODES} nodes ({writes} writes for one change)");
    for (name, took) in [
        ("everything from nothing", from_nothing),
        ("nothing has changed", same),
        ("one instance drains, all compiled", one),
        ("one instance drains, its service", alone),
        ("baseline: the image copied", copy),
    ] {
        println!("  {name:<32} {:>10.2} ms", took.as_secs_f64() * 1e3);
        rows.push((format!("{services} x {instances}: {name} [ms]"), took.as_secs_f64() * 1e3));
    }
}

/// The mean of a thousand changes within a second, each in a service of its own.
fn one_after_another(snapshot: &mut Snapshot, mut held: Compilation) -> Duration {
    const CHANGES: u32 = 1_000;
    let mut took = Duration::ZERO;
    for number in 0..CHANGES {
        snapshot.now = snapshot.now.plus(Duration::from_millis(1));
        let at = (number as usize * 7) % snapshot.routing.services.len();
        let service = &mut snapshot.routing.services[at];
        service.instances[0].draining ^= true;
        let name = service.name.clone();
        let started = Instant::now();
        black_box(recompile(snapshot, &mut held, &name).expect("one service is enough"));
        took += started.elapsed();
    }
    took / CHANGES
}

/// What of the size that is wanted has no room yet.
fn needed(rows: &mut Rows) {
    let compilation = compile(&snapshot(10_000, 10), &Indices::default());
    let mut said: Vec<String> = compilation.problems.iter().map(|problem| problem.kind.to_string()).collect();
    said.sort();
    said.dedup();
    println!("10000 services of 10 instances: {} refusals", compilation.problems.len());
    said.iter().for_each(|reason| println!("  {reason}"));
    rows.push(("10000 x 10: refusals".to_owned(), compilation.problems.len() as f64));
}

fn publish(snapshot: &Snapshot, held: &Compilation) -> (Compilation, usize) {
    let compilation = compile(snapshot, &held.indices);
    let writes = diff(held.image(), compilation.image()).writes.len();
    (compilation, writes)
}

fn median<T>(mut work: impl FnMut() -> T) -> Duration {
    let mut samples: Vec<Duration> = (0..SAMPLES)
        .map(|_| {
            let started = Instant::now();
            black_box(work());
            started.elapsed()
        })
        .collect();
    samples.sort();
    samples[SAMPLES / 2]
}

fn snapshot(services: u32, instances: u32) -> Snapshot {
    let service = |number: u32| {
        let name = format!("service-{number:05}");
        let instances = (0..instances).map(|one| instance(&name, number * instances + one)).collect();
        RoutedService { name, vip: ip(0x0a2b_0001 + number), instances }
    };
    let nodes = (0..NODES).map(node).collect();
    Snapshot {
        node_id: node_id(0),
        now: NOW,
        routing: RoutingSnapshot { generation: Generation(1), nodes, services: (0..services).map(service).collect() },
        uplink: Some(Uplink {
            address: ip(0x0a4d_0001),
            ifindex: 2,
            mac: [2; 6],
            mtu: 1_500,
            reserved_ports: BTreeSet::new(),
            local_ports: None,
        }),
        mesh_address: None,
        endpoints: BTreeMap::new(),
        neighbours: BTreeMap::new(),
    }
}

fn node(number: u32) -> RoutedNode {
    RoutedNode {
        id: node_id(number),
        name: format!("n{number}"),
        datacenter: "dc1".to_owned(),
        address: ip(0x0a4d_0001 + number),
        blocks: Vec::new(),
        status: NodeStatus::Ready,
        zone: String::new(),
    }
}

fn instance(service: &str, number: u32) -> Instance {
    let on = number % NODES;
    Instance {
        service: service.to_owned(),
        job_id: JobId(service.to_owned()),
        alloc_id: AllocId::from_random(u128::from(number)),
        node_id: node_id(on),
        node_name: format!("n{on}"),
        datacenter: "dc1".to_owned(),
        address: ip(0x0a40_0000 + number),
        port: 8_080,
        vip_port: Some(80),
        tags: Vec::new(),
        weight: 1,
        network: InstanceNetwork::Bridge,
        health: Health::Passing,
        draining: false,
        modified_at_index: Index(1),
        steering: Steering::default(),
    }
}

fn node_id(number: u32) -> NodeId {
    NodeId::from_random(u128::from(number) + 1)
}

fn ip(bits: u32) -> IpAddr {
    IpAddr::V4(Ipv4Addr::from(bits))
}
