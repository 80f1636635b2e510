//! What must hold for any cluster and any history: never over capacity, never two in a slot or on a port, the same plan
//! for the same values, and a state that no further plan wants to change.
#![cfg(test)]

mod common;

use common::{Cluster, add_port, checked_service, group, job, node};
use model::capacity::{DYNAMIC_PORTS, Usage};
use model::{
    Allocation, ClientStatus, Command, Constraint, DeploymentStatus, DesiredStatus, Health, Job, JobId, NodeStatus,
    Operator, Plan, TaskDriver, UpdateOrder, UpdatePolicy,
};
use proptest::prelude::*;
use scheduler::ClusterState;
use std::collections::BTreeSet;
use std::sync::Arc;
use std::time::Duration;

const NODES: [&str; 5] = ["n1", "n2", "n3", "n4", "n5"];
const JOBS: [&str; 3] = ["web", "db", "cache"];

#[derive(Clone, Debug)]
enum Event {
    Join { node: usize, cpu: u64, memory: u64 },
    Status { node: usize, status: NodeStatus },
    Register { job: usize, count: u32, cpu: u64, port: Option<u16>, variant: u8, distinct: bool },
    Stop { job: usize, purge: bool },
    Report { pick: usize, client: ClientStatus, health: Health },
    Advance { secs: u64 },
    Plan { job: usize },
}

fn event() -> impl Strategy<Value = Event> {
    let statuses = prop::sample::select(vec![NodeStatus::Ready, NodeStatus::Suspect, NodeStatus::Down]);
    let clients = prop::sample::select(vec![
        ClientStatus::Pending,
        ClientStatus::Running,
        ClientStatus::Running,
        ClientStatus::Complete,
        ClientStatus::Failed,
    ]);
    let healths = prop::sample::select(vec![Health::Passing, Health::Critical]);
    let ports = prop::option::of(prop::sample::select(vec![80u16, 443, 20_000]));
    prop_oneof![
        2 => (0..5usize, 500..4000u64, 500..4000u64).prop_map(|(node, cpu, memory)| Event::Join { node, cpu, memory }),
        1 => (0..5usize, statuses).prop_map(|(node, status)| Event::Status { node, status }),
        2 => (0..3usize, 0..7u32, 50..1500u64, ports, 0..3u8, any::<bool>()).prop_map(
            |(job, count, cpu, port, variant, distinct)| Event::Register { job, count, cpu, port, variant, distinct }
        ),
        1 => (0..3usize, any::<bool>()).prop_map(|(job, purge)| Event::Stop { job, purge }),
        4 => (0..64usize, clients, healths).prop_map(|(pick, client, health)| Event::Report { pick, client, health }),
        1 => (1..4000u64).prop_map(|secs| Event::Advance { secs }),
        4 => (0..3usize).prop_map(|job| Event::Plan { job }),
    ]
}

fn happen(cluster: &mut Cluster, event: &Event) {
    match event {
        Event::Join { node, cpu, memory } => {
            let mut joining = node_of(*node);
            (joining.resources.cpu_mhz, joining.resources.memory_mb) = (*cpu, *memory);
            // A node that shrinks below what it runs is over capacity by its own doing.
            if cluster.catalog.node(joining.id).is_none() {
                cluster.register_node(joining);
            }
        }
        Event::Status { node, status } => {
            if cluster.catalog.node(node_of(*node).id).is_some() {
                cluster.set_status(NODES[*node], *status);
            }
        }
        Event::Register { job, count, cpu, port, variant, distinct } => {
            cluster.register_job(described(JOBS[*job], *count, *cpu, *port, *variant, *distinct));
        }
        Event::Stop { job, purge } => {
            if cluster.catalog.job(&described(JOBS[*job], 0, 0, None, 0, false).id).is_some() {
                cluster.stop_job(JOBS[*job], *purge);
            }
        }
        Event::Report { pick, client, health } => {
            let live = cluster.live();
            if let Some(alloc) = live.get(pick % live.len().max(1)) {
                cluster.report(alloc.id, *client, *health);
            }
        }
        Event::Advance { secs } => cluster.advance(Duration::from_secs(*secs)),
        Event::Plan { job } => drop(cluster.plan_and_apply(JOBS[*job])),
    }
}

fn node_of(number: usize) -> model::Node {
    node(NODES[number])
}

fn described(name: &str, count: u32, cpu: u64, port: Option<u16>, variant: u8, distinct: bool) -> Job {
    let mut group = group("main", count);
    group.tasks[0].resources.cpu_mhz = cpu;
    if let (1, TaskDriver::Exec(config)) = (variant, &mut group.tasks[0].driver) {
        config.args.push("--other".to_owned());
    }
    if variant == 2 {
        group.services.push(checked_service(name));
    }
    add_port(&mut group, "dynamic", None, None);
    if port.is_some() {
        add_port(&mut group, "static", port, None);
    }
    let mut job = job(name, vec![group]);
    if distinct {
        job.constraints.push(Constraint {
            attribute: String::new(),
            operator: Operator::DistinctHosts,
            value: String::new(),
        });
    }
    job
}

fn nothing_is_held_twice(cluster: &Cluster) {
    for node in cluster.catalog.nodes() {
        let live: Vec<Arc<Allocation>> =
            cluster.catalog.allocs_of_node(node.id).filter(|alloc| alloc.is_live()).cloned().collect();
        let usage = Usage::of(live.iter().map(Arc::as_ref));
        assert!(usage.resources.cpu_mhz <= node.resources.cpu_mhz, "cpu of {}", node.name);
        assert!(usage.resources.memory_mb <= node.resources.memory_mb, "memory of {}", node.name);
        assert!(usage.resources.disk_mb <= node.resources.disk_mb, "disk of {}", node.name);
        let ports: usize = live.iter().map(|alloc| alloc.ports.len()).sum();
        assert_eq!(ports, usage.ports.len(), "a port of {} is held twice", node.name);
    }
    let running = cluster.live().into_iter().filter(|alloc| alloc.desired == DesiredStatus::Run);
    let names: Vec<String> = running.map(|alloc| alloc.name()).collect();
    assert_eq!(names.len(), names.iter().collect::<BTreeSet<_>>().len(), "a slot is held twice: {names:?}");
}

fn placements_are_sound(plan: &Plan) {
    for alloc in &plan.placements {
        let group = alloc.task_group().unwrap();
        assert!(alloc.slot < group.count);
        let asked = &group.network.as_ref().unwrap().ports;
        assert_eq!(alloc.ports.len(), asked.len());
        for (port, asked) in alloc.ports.iter().zip(asked) {
            match asked.static_port {
                Some(number) => assert_eq!(port.host_port, number),
                None => assert!(DYNAMIC_PORTS.contains(&port.host_port)),
            }
        }
    }
}

/// Allocations that serve, whatever is wanted of them from now on.
fn up(cluster: &Cluster) -> usize {
    let serves =
        |alloc: &&Arc<Allocation>| alloc.client == ClientStatus::Running && alloc.desired == DesiredStatus::Run;
    cluster.live().iter().filter(serves).count()
}

/// Lets everything start, prove itself and end until nothing changes any more.
fn settle(cluster: &mut Cluster, count: u32, floor: u32, surge: u32) {
    for _ in 0..200 {
        let (plan, ..) = cluster.plan_and_apply("web");
        assert!(up(cluster) >= floor as usize, "{} are up", up(cluster));
        let wanted = cluster.live().into_iter().filter(|alloc| alloc.desired == DesiredStatus::Run).count();
        assert!(wanted <= (count + surge) as usize, "{wanted} for {count}");
        for alloc in cluster.live() {
            let stopping = alloc.desired == DesiredStatus::Stop;
            let client = if stopping { ClientStatus::Complete } else { ClientStatus::Running };
            cluster.report(alloc.id, client, Health::Passing);
        }
        cluster.advance(Duration::from_secs(11));
        let stepped = take_step(cluster);
        if plan.is_noop() && plan.follow_up_at.is_none() && !stepped {
            return;
        }
    }
    panic!("the rollout does not end");
}

fn take_step(cluster: &mut Cluster) -> bool {
    let id = JobId("web".to_owned());
    let Some(deployment) = cluster.catalog.latest_deployment(&id).filter(|latest| latest.is_active()).cloned() else {
        return false;
    };
    let allocs = cluster.catalog.allocs_of_job(&id).map(Arc::as_ref);
    let update = scheduler::watch(&deployment, cluster.catalog.job_versions(&id), allocs, cluster.now);
    let steps = !update.changes_nothing();
    if steps {
        let eval = cluster.eval("web");
        cluster.must(Command::UpdateDeployment { update, eval });
    }
    steps
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 192, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn nothing_is_ever_held_twice_and_plans_settle(seed: u64, events in prop::collection::vec(event(), 1..60)) {
        let mut cluster = Cluster::new(seed);
        for event in &events {
            happen(&mut cluster, event);
            nothing_is_held_twice(&cluster);
        }
        for job in JOBS {
            let (plan, applied, _) = cluster.plan_and_apply(job);
            placements_are_sound(&plan);
            prop_assert!(applied.dropped.is_empty(), "a fresh plan was dropped: {:?}", applied.dropped);
            let again = cluster.eval(job);
            prop_assert!(cluster.plan(&again).is_noop(), "not settled: {:?}", cluster.plan(&again));
        }
        nothing_is_held_twice(&cluster);
    }

    #[test]
    fn the_same_values_give_the_same_plan(seed: u64, events in prop::collection::vec(event(), 1..40)) {
        let (mut one, mut two) = (Cluster::new(seed), Cluster::new(seed));
        for event in &events {
            happen(&mut one, event);
            happen(&mut two, event);
        }
        prop_assert_eq!(one.catalog.image(), two.catalog.image());
        let eval = one.eval("web");
        // However the state came about: other order, rows that came and went, the changes of every command followed.
        let mut followed = ClusterState::of(one.catalog.index(), [], []);
        let allocs: Vec<_> = one.catalog.allocs().collect();
        allocs.iter().rev().for_each(|alloc| followed.change_alloc(None, Some(alloc)));
        one.catalog.nodes().for_each(|node| followed.set_node(node.id, Some(node)));
        one.catalog.nodes().for_each(|node| followed.set_node(node.id, None));
        one.catalog.nodes().for_each(|node| followed.set_node(node.id, Some(node)));
        for alloc in &allocs {
            followed.change_alloc(Some(alloc), None);
            followed.change_alloc(None, Some(alloc));
            followed.change_alloc(Some(alloc), Some(alloc));
        }
        for node in one.catalog.nodes() {
            let live: Vec<_> = one.catalog.allocs_of_node(node.id).filter(|alloc| alloc.is_live()).collect();
            prop_assert_eq!(followed.usage_of_node(node.id), Some(&Usage::of(live.into_iter().map(Arc::as_ref))));
        }
        prop_assert_eq!(one.plan_on(&followed, &eval), one.plan(&eval));
    }

    #[test]
    fn a_rollout_reaches_every_allocation_with_one_in_flight(seed: u64, count in 1..7u32) {
        let mut cluster = Cluster::new(seed);
        NODES.iter().for_each(|name| cluster.register_node(node(name)));
        cluster.register_job(described("web", count, 100, None, 0, false));
        cluster.plan_and_apply("web");
        cluster.live().iter().for_each(|alloc| cluster.report(alloc.id, ClientStatus::Running, Health::Passing));
        cluster.register_job(described("web", count, 100, None, 1, false));
        for round in 0..count {
            let (plan, ..) = cluster.plan_and_apply("web");
            prop_assert_eq!((plan.stops.len(), plan.placements.len()), (1, 1), "round {}", round);
            for alloc in cluster.live() {
                let stopping = alloc.desired == DesiredStatus::Stop;
                let client = if stopping { ClientStatus::Complete } else { ClientStatus::Running };
                cluster.report(alloc.id, client, Health::Passing);
            }
        }
        let (plan, ..) = cluster.plan_and_apply("web");
        prop_assert!(plan.is_noop());
        prop_assert!(cluster.live().iter().all(|alloc| alloc.job.version == 1));
        prop_assert_eq!(cluster.live().len(), count as usize);
    }

    #[test]
    fn a_rollout_keeps_its_floor_and_its_surge(
        seed: u64,
        count in 1..7u32,
        max_parallel in 1..4u32,
        start_first: bool,
        canary in 0..3u32,
        failures in prop::collection::vec(0..64usize, 0..4),
    ) {
        let order = if start_first { UpdateOrder::StartFirst } else { UpdateOrder::StopFirst };
        let canary = canary.min(count);
        let policy = UpdatePolicy { max_parallel, order, canary, auto_promote: canary > 0, ..UpdatePolicy::default() };
        let version = |variant| {
            let mut job = described("web", count, 100, None, variant, false);
            job.groups[0].update = Some(policy);
            job
        };
        let mut cluster = Cluster::new(seed);
        NODES.iter().for_each(|name| cluster.register_node(node(name)));
        cluster.register_job(version(0));
        settle(&mut cluster, count, 0, 0);
        cluster.register_job(version(1));
        let floor = if start_first { count } else { count.saturating_sub(max_parallel) };
        // Each failure may cost a round of waiting and one allocation that we did not stop.
        for pick in &failures {
            cluster.plan_and_apply("web");
            let fresh: Vec<_> = cluster.live().into_iter().filter(|alloc| alloc.client == ClientStatus::Pending).collect();
            if let Some(alloc) = fresh.get(pick % fresh.len().max(1)) {
                cluster.report(alloc.id, ClientStatus::Failed, Health::Critical);
            }
            prop_assert!(up(&cluster) >= floor as usize, "{} of {} are up", up(&cluster), count);
            cluster.advance(Duration::from_secs(31));
        }
        settle(&mut cluster, count, floor, canary.max(if start_first { max_parallel } else { 0 }));
        let running: Vec<_> = cluster.live();
        prop_assert!(running.iter().all(|alloc| alloc.job.version == 1), "{:?}", running.iter().map(|alloc| alloc.name()).collect::<Vec<_>>());
        prop_assert_eq!(running.len(), count as usize);
        let latest = cluster.catalog.latest_deployment(&JobId("web".to_owned())).unwrap().clone();
        prop_assert_eq!(latest.status, DeploymentStatus::Successful);
        prop_assert!(cluster.catalog.job(&JobId("web".to_owned())).unwrap().stable);
    }

    #[test]
    fn hostile_constraints_never_panic(attribute in ".*", value in ".*", operator in 0..14usize) {
        let constraint = Constraint { attribute, value, operator: Operator::ALL[operator].0 };
        scheduler::satisfies(&node("n1"), &constraint);
    }
}
