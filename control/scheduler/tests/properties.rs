//! What must hold for any cluster and any history: never over capacity, never two in a slot or on a port, the same plan
//! for the same values, and a state that no further plan wants to change.
#![cfg(test)]

mod common;

use common::{Cluster, add_port, checked_service, group, job, node};
use model::capacity::{DYNAMIC_PORTS, Usage};
use model::{
    Affinity, Allocation, ClientStatus, Command, Constraint, DeploymentStatus, DesiredStatus, DisconnectPolicy,
    DisruptionBudget, Drain, Eligibility, Health, Job, JobId, NodeStatus, Operator, Plan, Reconcile, Spread,
    TaskDriver, TaskGroup, Timestamp, UpdateOrder, UpdatePolicy,
};
use proptest::prelude::*;
use scheduler::{ClusterState, Preemption};
use std::collections::{BTreeMap, BTreeSet};
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

/// Something that makes nodes differ.
#[derive(Clone, Debug)]
enum Wish {
    None,
    Affinity(i8),
    Spread,
    Targets(u8),
    DistinctHosts,
    DistinctProperty(u32),
    Beside(i8),
    Apart,
}

fn wish() -> impl Strategy<Value = Wish> {
    prop_oneof![
        Just(Wish::None),
        prop::sample::select(vec![-100i8, -30, 30, 100]).prop_map(Wish::Affinity),
        Just(Wish::Spread),
        (1..100u8).prop_map(Wish::Targets),
        Just(Wish::DistinctHosts),
        (1..3u32).prop_map(Wish::DistinctProperty),
        prop::sample::select(vec![-100i8, 100]).prop_map(Wish::Beside),
        Just(Wish::Apart),
    ]
}

fn wished(wish: &Wish) -> TaskGroup {
    let mut group = group("main", 1);
    let zone = || "${meta.zone}".to_owned();
    let affinity = |attribute: &str, operator, value: &str, weight| Affinity {
        attribute: attribute.to_owned(),
        operator,
        value: value.to_owned(),
        weight,
    };
    let constraint =
        |attribute: &str, operator, value: String| Constraint { attribute: attribute.to_owned(), operator, value };
    match wish {
        Wish::None => {}
        Wish::Affinity(weight) => group.affinities.push(affinity("${meta.zone}", Operator::Equal, "z1", *weight)),
        Wish::Spread => group.spreads.push(Spread { attribute: zone(), weight: 100, targets: BTreeMap::new() }),
        Wish::Targets(percent) => {
            let targets = BTreeMap::from([("z1".to_owned(), *percent)]);
            group.spreads.push(Spread { attribute: zone(), weight: 50, targets });
        }
        Wish::DistinctHosts => group.constraints.push(constraint("", Operator::DistinctHosts, String::new())),
        Wish::DistinctProperty(most) => {
            group.constraints.push(constraint("${meta.zone}", Operator::DistinctProperty, most.to_string()));
        }
        Wish::Beside(weight) => group.affinities.push(affinity("${node.jobs.db}", Operator::IsSet, "", *weight)),
        Wish::Apart => group.constraints.push(constraint("${node.jobs.db}", Operator::IsNotSet, String::new())),
    }
    group
}

fn zoned(name: &str, number: usize) -> model::Node {
    let mut node = node(name);
    node.meta.insert("zone".to_owned(), format!("z{}", number % 2));
    node.resources.cpu_mhz = 300 + 200 * number as u64;
    node
}

fn job_of(name: &str, group: TaskGroup, priority: u8) -> Job {
    Job { priority, ..job(name, vec![group]) }
}

/// What is to stop ends, what is to run runs, where the node can be reached.
fn end_what_stops(cluster: &mut Cluster) {
    for alloc in cluster.live() {
        let reachable = cluster.catalog.node(alloc.node_id).is_some_and(|node| node.status == NodeStatus::Ready);
        let client = if alloc.desired == DesiredStatus::Stop { ClientStatus::Complete } else { ClientStatus::Running };
        if reachable {
            cluster.report(alloc.id, client, Health::Passing);
        }
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 64, failure_persistence: None, max_shrink_iters: 200, ..ProptestConfig::default() })]

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
    fn the_ranking_takes_what_scores_best(seed: u64, steps in prop::collection::vec((wish(), 0..4u8), 1..12)) {
        let mut cluster = Cluster::new(seed);
        for (number, name) in NODES.iter().enumerate() {
            cluster.register_node(zoned(name, number));
        }
        for (at, (wish, job)) in steps.iter().enumerate() {
            // A job grows by one at a time, so that every choice can be compared with the scores before it.
            let name = JOBS[usize::from(*job) % JOBS.len()];
            let known = cluster.catalog.job(&JobId(name.to_owned())).map(|job| job.groups[0].clone());
            let mut group = known.unwrap_or_else(|| wished(wish));
            group.count = cluster.live().iter().filter(|alloc| alloc.job_id().0 == name).count() as u32 + 1;
            cluster.register_job(job_of(name, group.clone(), 50));
            let eval = cluster.eval(name);
            let state = cluster.state();
            let job = cluster.catalog.job(&eval.job_id).unwrap().clone();
            let verdicts = scheduler::scores(&cluster.view(&state, &eval), &job, &group, seed);
            let (plan, ..) = cluster.plan_and_apply(name);
            let best = verdicts.first().and_then(|verdict| verdict.score);
            let placed = plan.placements.first();
            prop_assert_eq!(placed.is_some(), best.is_some(), "step {}: {:?}", at, verdicts);
            if let (Some(placed), Some(best)) = (placed, best) {
                let taken = verdicts.iter().find(|verdict| verdict.node == placed.node_id).unwrap();
                prop_assert!((taken.score.unwrap() - best).abs() < 1e-9, "step {}: {:?}", at, verdicts);
            }
            nothing_is_held_twice(&cluster);
        }
    }

    #[test]
    fn preemption_comes_to_an_end(
        seed: u64,
        jobs in prop::collection::vec((1..100u8, 1..4u32, 200..3000u64, prop::option::of(0..3u32)), 2..6),
    ) {
        // The broker hands out the evaluations of higher priority first.
        let mut jobs = jobs;
        jobs.sort_by_key(|(priority, ..)| std::cmp::Reverse(*priority));
        let mut cluster = Cluster::new(seed);
        let all = Preemption { service: true, batch: true, system: true, sysbatch: true };
        cluster.settings.preemption = all;
        NODES[..2].iter().for_each(|name| cluster.register_node(node(name)));
        let names: Vec<String> = (0..jobs.len()).map(|number| format!("job{number}")).collect();
        for (name, (priority, count, cpu, budget)) in names.iter().zip(&jobs) {
            let mut group = group("main", *count);
            group.tasks[0].resources.cpu_mhz = *cpu;
            let mut job = job_of(name, group, *priority);
            job.disruption = budget.map(|max_unavailable| DisruptionBudget { max_unavailable });
            cluster.register_job(job);
        }
        let mut quiet = 0;
        for round in 0..60 {
            let mut changed = false;
            for name in &names {
                let (plan, applied, _) = cluster.plan_and_apply(name);
                prop_assert!(applied.dropped.is_empty());
                for stop in &plan.stops {
                    let victim = cluster.catalog.alloc(stop.alloc_id).unwrap();
                    let preemptor = cluster.catalog.job(&plan.job_id).unwrap();
                    prop_assert!(victim.job.priority + 10 <= preemptor.priority, "{} for {name}", victim.name());
                }
                let again = cluster.eval(name);
                prop_assert!(cluster.plan(&again).is_noop(), "round {round}: {name} wants more at once");
                changed |= !plan.is_noop();
                nothing_is_held_twice(&cluster);
            }
            end_what_stops(&mut cluster);
            quiet = if changed { 0 } else { quiet + 1 };
            if quiet == 2 {
                return Ok(());
            }
        }
        prop_assert!(false, "it goes round in circles");
    }

    #[test]
    fn drains_end(seed: u64, count in 1..8u32, migrate in 1..4u32, budget in prop::option::of(1..3u32), which in 0..2usize) {
        let mut cluster = Cluster::new(seed);
        NODES[..3].iter().for_each(|name| cluster.register_node(node(name)));
        let mut group = group("main", count);
        group.migrate_max_parallel = migrate;
        let mut job = job_of("web", group, 50);
        job.disruption = budget.map(|max_unavailable| DisruptionBudget { max_unavailable });
        cluster.register_job(job);
        cluster.plan_and_apply("web");
        end_what_stops(&mut cluster);
        let node_id = cluster.node_named(NODES[which]).id;
        let drain = Some(Drain { started_at: cluster.now, deadline: Timestamp::NEVER, ignore_system: false });
        cluster.must(Command::SetNodeDrain { node_id, drain, eligibility: Eligibility::Ineligible, evals: Vec::new() });
        let at_once = budget.map_or(migrate, |budget| budget.min(migrate)) as usize;
        for _ in 0..=count {
            cluster.plan_and_apply("web");
            prop_assert!(up(&cluster) + at_once >= count as usize, "{} of {count} are up", up(&cluster));
            end_what_stops(&mut cluster);
        }
        prop_assert_eq!(cluster.state().allocs_of_node(node_id).len(), 0);
        prop_assert_eq!(up(&cluster), count as usize);
    }

    #[test]
    fn nodes_that_come_and_go_leave_one_for_each_slot(
        seed: u64,
        count in 1..5u32,
        replace: bool,
        reconcile in prop::sample::select(Reconcile::ALL.to_vec()),
        events in prop::collection::vec((0..3usize, prop::sample::select(vec![
            NodeStatus::Ready, NodeStatus::Suspect, NodeStatus::Disconnected, NodeStatus::Down,
        ]), 0..400u64), 1..12),
    ) {
        let mut cluster = Cluster::new(seed);
        NODES[..3].iter().for_each(|name| cluster.register_node(node(name)));
        let mut group = group("main", count);
        let lost_after = Duration::from_secs(600);
        group.disconnect = DisconnectPolicy { lost_after, replace, reconcile, ..DisconnectPolicy::default() };
        cluster.register_job(job_of("web", group, 50));
        for (which, status, secs) in events {
            cluster.set_status(NODES[which], status);
            cluster.plan_and_apply("web");
            let again = cluster.eval("web");
            prop_assert!(cluster.plan(&again).is_noop(), "not settled: {:?}", cluster.plan(&again));
            end_what_stops(&mut cluster);
            cluster.advance(Duration::from_secs(secs));
        }
        // All are back: one allocation for each slot, and they all work.
        NODES[..3].iter().for_each(|name| cluster.set_status(name, NodeStatus::Ready));
        for _ in 0..4 {
            cluster.plan_and_apply("web");
            end_what_stops(&mut cluster);
        }
        nothing_is_held_twice(&cluster);
        prop_assert_eq!((cluster.live().len(), up(&cluster)), (count as usize, count as usize));
    }

    #[test]
    fn hostile_constraints_never_panic(attribute in ".*", value in ".*", operator in 0..Operator::ALL.len()) {
        let constraint = Constraint { attribute, value, operator: Operator::ALL[operator].0 };
        scheduler::satisfies(&node("n1"), &constraint);
    }
}
