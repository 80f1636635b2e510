//! What a plan costs, without Raft or network: placements a second, and how the time grows with nodes and allocations.
//!
//! Baselines of the same run: scoring every node for every task, as a scheduler without an index has to, and copying the
//! whole state. Prints tables and writes target/bench/scheduler.json. `quick` as an argument leaves out the big clusters.

use model::{
    Affinity, Allocation, ClientStatus, DesiredStatus, DriverStatus, Eligibility, Epoch, EvalId, EvalStatus,
    EvalTrigger, Evaluation, ExecConfig, Index, Job, Node, NodeId, NodeResources, NodeStatus, Operator, Plan,
    Resources, Spread, Task, TaskDriver, TaskGroup, Timestamp,
};
use scheduler::{ClusterState, ClusterView};
use std::collections::BTreeMap;
use std::fmt::Write as _;
use std::hint::black_box;
use std::net::{IpAddr, Ipv4Addr};
use std::sync::Arc;
use std::time::{Duration, Instant};

const REPORT: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/../../target/bench/scheduler.json");

fn main() -> std::io::Result<()> {
    let quick = std::env::args().any(|argument| argument == "quick");
    let mut report = Report::default();
    placements_a_second(&mut report);
    racks(&mut report);
    growth_with_nodes(&mut report);
    growth_with_allocs(&mut report, if quick { &[1_000, 10_000, 100_000] } else { &ALLOCS });
    report.write()
}

const ALLOCS: [usize; 6] = [1_000, 10_000, 100_000, 500_000, 1_000_000, 2_000_000];

#[derive(Default)]
struct Report {
    rows: Vec<(String, f64, Option<f64>)>,
}

impl Report {
    fn row(&mut self, name: &str, value: f64, bar: Option<f64>, unit: &str) {
        let bar_text = bar.map_or(String::new(), |bar| format!("(bar {bar:.0})"));
        println!("  {name:<58} {value:>12.2} {unit:<14} {bar_text}");
        self.rows.push((format!("{name} [{unit}]"), value, bar));
    }

    fn write(&self) -> std::io::Result<()> {
        let mut text = String::from("{\n");
        for (at, (name, value, bar)) in self.rows.iter().enumerate() {
            let comma = if at + 1 < self.rows.len() { "," } else { "" };
            let bar = bar.map_or("null".to_owned(), |bar| bar.to_string());
            let _ = writeln!(text, "  {name:?}: {{\"value\": {value}, \"bar\": {bar}}}{comma}");
        }
        text.push_str("}\n");
        let path = std::path::Path::new(REPORT);
        path.parent().map_or(Ok(()), std::fs::create_dir_all)?;
        std::fs::write(path, text)
    }
}

fn placements_a_second(report: &mut Report) {
    println!("5,000 nodes of 4 CPU and 32 GiB, 10,000 tasks of 100 MHz and 500 MB, one evaluation");
    let nodes = nodes(5_000);
    let empty = ClusterState::of(Index(1), &nodes, []);
    let plain = service("web", 10_000);
    let per_second = |state: &ClusterState, job: &Job| {
        let (plan, took) = best_of(5, || plan(state, job, &[]));
        assert_eq!(plan.placements.len(), job.groups[0].count as usize);
        plan.placements.len() as f64 / took.as_secs_f64()
    };
    report.row("plain", per_second(&empty, &plain), Some(100_000.0), "placements/s");

    let mut spread = plain.clone();
    spread.spreads.push(Spread { attribute: "${meta.zone}".to_owned(), weight: 100, targets: BTreeMap::new() });
    spread.affinities.push(affinity("${meta.disk}", Operator::Equal, "ssd", 50));
    report.row("zone spread and node affinity", per_second(&empty, &spread), Some(15_000.0), "placements/s");

    let others: Vec<Arc<Allocation>> = live(&nodes, "db", 2_500, 2);
    let beside = ClusterState::of(Index(1), &nodes, &others);
    let mut apart = plain.clone();
    apart.affinities.push(affinity("${node.jobs.db}", Operator::IsSet, "", -100));
    report.row("anti-affinity to another job", per_second(&beside, &apart), Some(15_000.0), "placements/s");

    let (scored, took) = timed(|| naive(&nodes, &plain));
    report.row("baseline: every node scored for every task", scored as f64 / took.as_secs_f64(), None, "placements/s");
    let (_, took) = best_of(5, || black_box(empty.clone()));
    report.row("baseline: the state copied", 1.0 / took.as_secs_f64(), None, "copies/s");
}

fn racks(report: &mut Report) {
    println!("10,000 nodes in 500 racks, 500 allocations spread evenly");
    let state = ClusterState::of(Index(1), &nodes(10_000), []);
    let mut job = service("web", 500);
    job.spreads.push(Spread { attribute: "${meta.rack}".to_owned(), weight: 100, targets: BTreeMap::new() });
    let (plan, took) = best_of(5, || plan(&state, &job, &[]));
    let rack = |alloc: &Allocation| state.node(alloc.node_id).and_then(|node| node.meta.get("rack").cloned());
    let racks: std::collections::BTreeSet<_> = plan.placements.iter().map(rack).collect();
    assert_eq!((plan.placements.len(), racks.len()), (500, 500));
    report.row("one evaluation", took.as_secs_f64() * 1e3, Some(100.0), "ms");
}

fn growth_with_nodes(report: &mut Report) {
    println!("time of one evaluation that places 10, by nodes (median of 200)");
    let mut points = Vec::new();
    for count in [500, 1_000, 2_000, 5_000, 10_000, 20_000, 50_000] {
        let nodes = nodes(count);
        let state = ClusterState::of(Index(1), &nodes, &live(&nodes, "db", count * 2, 100));
        let times = times(&state);
        let micros = times[100].as_secs_f64() * 1e6;
        points.push((count as f64, micros));
        report.row(&format!("{count} nodes"), micros, None, "us");
    }
    plot(&points);
}

fn growth_with_allocs(report: &mut Report, counts: &[usize]) {
    println!("time of one evaluation that places 10, by live allocations on 6,100 nodes (200 runs)");
    let nodes: Vec<Arc<Node>> = nodes(6_100).iter().map(|node| Arc::new(big(node))).collect();
    let mut points = Vec::new();
    for count in counts {
        let (state, took) = timed(|| ClusterState::of(Index(1), &nodes, &live(&nodes, "fill", *count, 100)));
        let times = times(&state);
        let (median, p99) = (times[100].as_secs_f64() * 1e6, times[197].as_secs_f64() * 1e6);
        points.push((*count as f64, median));
        let bar = (*count == 1_000_000).then_some(5_000.0);
        report.row(&format!("{count} allocations, p99"), p99, bar, "us");
        report.row(&format!("{count} allocations, median"), median, None, "us");
        report.row(
            &format!("{count} allocations, state built"),
            *count as f64 / took.as_secs_f64(),
            None,
            "allocations/s",
        );
    }
    plot(&points);
}

/// Of 200 evaluations with a seed each, sorted; each is the best of three, for whatever else the machine does.
fn times(state: &ClusterState) -> Vec<Duration> {
    let job = service("web", 10);
    let mut times: Vec<Duration> = (0..200).map(|seed| best_of(3, || plan_with(state, &job, &[], seed)).1).collect();
    times.sort();
    times
}

/// Bars on a logarithmic scale.
fn plot(points: &[(f64, f64)]) {
    let top = points.iter().map(|(_, value)| *value).fold(1.0, f64::max);
    for (at, value) in points {
        let width = (value.max(1.0).ln() / top.max(2.0).ln() * 60.0) as usize;
        println!("  {at:>9} |{:<60}| {value:.0} us", "#".repeat(width));
    }
}

/// What the ranking saves: for each task all nodes are scored and the best is taken.
fn naive(nodes: &[Arc<Node>], job: &Job) -> usize {
    let demand = model::capacity::demand(&job.groups[0]);
    let mut used = vec![NodeResources::default(); nodes.len()];
    let free = |used: u64, total: u64| 10f64.powf(1.0 - used as f64 / total as f64);
    // A tenth of the tasks: it takes long enough.
    let tasks = job.groups[0].count as usize / 10;
    for _ in 0..tasks {
        let scored = nodes.iter().zip(&used).enumerate().filter_map(|(at, (node, used))| {
            let total = used.plus(demand);
            let score = free(total.cpu_mhz, node.resources.cpu_mhz) + free(total.memory_mb, node.resources.memory_mb);
            total.fits_in(node.resources).then_some((score, at))
        });
        if let Some((_, at)) = scored.min_by(|a, b| a.0.total_cmp(&b.0)) {
            used[at] = used[at].plus(demand);
        }
    }
    black_box(used);
    tasks
}

fn plan(state: &ClusterState, job: &Job, allocs: &[&Allocation]) -> Plan {
    plan_with(state, job, allocs, 7)
}

fn plan_with(state: &ClusterState, job: &Job, allocs: &[&Allocation], seed: u64) -> Plan {
    let view = ClusterView::new(state, allocs.to_vec(), None);
    scheduler::plan(&view, &evaluation(job), Some(job), Timestamp::from_secs(1_700_000_000), seed)
}

fn timed<T>(run: impl FnOnce() -> T) -> (T, Duration) {
    let start = Instant::now();
    let value = run();
    (value, start.elapsed())
}

fn best_of<T>(runs: usize, mut run: impl FnMut() -> T) -> (T, Duration) {
    let mut best = timed(&mut run);
    for _ in 1..runs {
        let next = timed(&mut run);
        if next.1 < best.1 {
            best = next;
        }
    }
    best
}

fn nodes(count: usize) -> Vec<Arc<Node>> {
    (0..count).map(|number| Arc::new(node(number))).collect()
}

fn node(number: usize) -> Node {
    let healthy = DriverStatus { detected: true, healthy: true, description: String::new() };
    let text = |key: &str, value: String| (key.to_owned(), value);
    Node {
        id: NodeId::from_random((number as u128 + 1).wrapping_mul(0x9e37_79b9_7f4a_7c15_f39c_c060_5ced_c835)),
        name: format!("n{number}"),
        datacenter: "dc1".to_owned(),
        pool: "default".to_owned(),
        class: String::new(),
        address: IpAddr::V4(Ipv4Addr::from(0x0a00_0000 + number as u32)),
        attributes: BTreeMap::from([text("kernel.name", "linux".to_owned()), text("cpu.arch", "amd64".to_owned())]),
        meta: BTreeMap::from([
            text("zone", format!("z{}", number % 3)),
            text("rack", format!("r{}", number % 500)),
            text("disk", if number.is_multiple_of(2) { "ssd" } else { "hdd" }.to_owned()),
        ]),
        resources: NodeResources { cpu_mhz: 4 * 2_400, memory_mb: 32 * 1024, disk_mb: 1_000_000 },
        drivers: BTreeMap::from([("exec".to_owned(), healthy)]),
        status: NodeStatus::Ready,
        eligibility: Eligibility::Eligible,
        drain: None,
        epoch: Epoch(1),
        blocks: Vec::new(),
        version: String::new(),
        status_changed_at: Timestamp::NEVER,
        created_at_index: Index(0),
        modified_at_index: Index(0),
    }
}

/// Room for the most crowded of the growth tables.
fn big(node: &Node) -> Node {
    let resources = NodeResources { cpu_mhz: 96 * 2_400, memory_mb: 768 * 1024, disk_mb: 10_000_000 };
    Node { resources, ..node.clone() }
}

fn service(name: &str, count: u32) -> Job {
    let config = ExecConfig { command: "/bin/true".to_owned(), ..ExecConfig::default() };
    let resources = Resources { cpu_mhz: 100, memory_mb: 500, ..Resources::default() };
    let task = Task { resources, ..Task::named("main", TaskDriver::Exec(config)) };
    let group = TaskGroup { count, disk_mb: 10, tasks: vec![task], ..TaskGroup::named("main") };
    Job { groups: vec![group], ..Job::named(name) }
}

fn affinity(attribute: &str, operator: Operator, value: &str, weight: i8) -> Affinity {
    Affinity { attribute: attribute.to_owned(), operator, value: value.to_owned(), weight }
}

fn evaluation(job: &Job) -> Evaluation {
    Evaluation {
        id: EvalId::from_random(1),
        job_id: job.id.clone(),
        priority: job.priority,
        trigger: EvalTrigger::JobRegister,
        status: EvalStatus::Pending,
        status_description: String::new(),
        wait_until: Timestamp::NEVER,
        failures: BTreeMap::new(),
        queued: BTreeMap::new(),
        snapshot_index: Index(0),
        created_at: Timestamp::NEVER,
        modified_at: Timestamp::NEVER,
        created_at_index: Index(0),
        modified_at_index: Index(0),
    }
}

/// `count` running allocations of a job with `memory` MB each, on the nodes in turn.
fn live(nodes: &[Arc<Node>], job: &str, count: usize, memory: u64) -> Vec<Arc<Allocation>> {
    let mut job = service(job, count as u32);
    job.groups[0].tasks[0].resources = Resources { cpu_mhz: memory / 4 + 1, memory_mb: memory, ..Resources::default() };
    let job = Arc::new(job);
    let placed = |number: usize| Arc::new(allocation(&job, &nodes[number % nodes.len()], number as u32));
    (0..count).map(placed).collect()
}

fn allocation(job: &Arc<Job>, node: &Node, number: u32) -> Allocation {
    Allocation {
        id: model::AllocId::from_random(u128::from(number) + 1),
        eval_id: EvalId::from_random(1),
        node_id: node.id,
        node_name: node.name.clone(),
        job: Arc::clone(job),
        group: "main".to_owned(),
        slot: number,
        ports: Vec::new(),
        previous: None,
        reschedules: 0,
        desired: DesiredStatus::Run,
        desired_description: String::new(),
        client: ClientStatus::Running,
        client_description: String::new(),
        task_states: BTreeMap::new(),
        address: None,
        checks: BTreeMap::new(),
        deployment: None,
        created_at: Timestamp::NEVER,
        modified_at: Timestamp::NEVER,
        created_at_index: Index(1),
        modified_at_index: Index(1),
    }
}
