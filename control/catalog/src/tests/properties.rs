//! Any sequence of commands, sensible or hostile, with ids from small sets so that they meet.

use super::fixtures::*;
use super::plan_of;
use crate::Catalog;
use model::{
    AllocUpdate, Allocation, ClientStatus, Command, DesiredStatus, Epoch, EvalStatus, Evaluation, Index, JobId,
    JoinToken, Node, NodeStatus, PlacementFailure, PlannedStop, Role, ServerId, ServerRecord, Timestamp,
};
use proptest::prelude::*;
use std::collections::BTreeMap;
use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;

const NAMES: [&str; 5] = ["web", "db", "", "no spaces", "cache"];

/// Numbers from which a command is made; what they mean depends on the command.
type Dice = (u8, u8, u8, u8, u32);

fn dice() -> impl Strategy<Value = Vec<Dice>> {
    prop::collection::vec((0..14u8, 0..5u8, 0..8u8, 0..6u8, any::<u32>()), 1..120)
}

fn command(log: &mut Log, dice: Dice) -> Command {
    let (kind, a, b, c, big) = dice;
    let (node, name) = (node_id(u128::from(a)), NAMES[usize::from(a)]);
    match kind {
        0 => bootstrap(
            ["10.64.0.0/11", "10.64.0.0/25", "0.0.0.0/0", "fd00::/8", "10.0.0.0/26"][usize::from(a)],
            "10.43.0.0/29",
        ),
        1 => {
            let rpc_address = SocketAddr::from(([10, 77, 0, a], 4647));
            Command::UpsertServer(ServerRecord { id: ServerId(u64::from(b)), name: name.to_owned(), rpc_address })
        }
        2 => Command::RemoveServer { id: ServerId(u64::from(b)) },
        3 => {
            let expires_at = Timestamp::from_secs(u64::from(big % 200));
            Command::CreateToken(JoinToken { digest: [a; 32], role: role(b), uses_left: big % 3, expires_at })
        }
        4 => Command::UseToken { digest: [a; 32], role: role(b), name: NAMES[usize::from(c % 5)].to_owned() },
        5 | 6 => {
            let mut joining =
                Node { epoch: Epoch(u64::from(big % 50)), ..super::node(u128::from(a), &format!("n{}", b % 5)) };
            joining.resources.cpu_mhz = u64::from(big % 5000);
            Command::RegisterNode(Box::new(joining))
        }
        7 => {
            let epoch = log.state.node(node).map_or(Epoch(3), |node| node.epoch);
            let evals = vec![some_eval(log, name, big)];
            Command::SetNodeStatus { node_id: node, epoch, status: node_status(b), evals }
        }
        8 => {
            let mut job = job(name, big % 9);
            job.groups[0].tasks[0].resources.cpu_mhz = if b == 0 { u64::MAX } else { 100 };
            job.groups[0].services[0].name = format!("service-{}", b % 7);
            let eval = some_eval(log, NAMES[usize::from(if c == 0 { 0 } else { a })], big);
            Command::RegisterJob { job: Box::new(job), eval, enforce_index: None }
        }
        9 => {
            let eval = some_eval(log, name, big);
            Command::DeregisterJob { job_id: JobId(name.to_owned()), purge: b % 2 == 0, eval }
        }
        10 | 11 => some_plan(log, name, dice),
        12 => {
            let epoch = log.state.node(node).map_or(Epoch(3), |node| node.epoch);
            let mut updates: Vec<AllocUpdate> =
                log.state.allocs().map(|alloc| log.update_of(alloc.id, client(big))).collect();
            // The first nodes' blocks, so that some addresses are the node's own and others are not.
            let address = IpAddr::from([10, 64, 0, (big % 256) as u8]);
            updates.iter_mut().for_each(|update| update.address = Some(address));
            Command::UpdateAllocs { node_id: node, epoch, updates, evals: Vec::new() }
        }
        _ => Command::SetFeatureLevel { level: u32::from(b % 2) },
    }
}

fn some_plan(log: &mut Log, name: &str, (_, a, b, c, big): Dice) -> Command {
    let id = JobId(name.to_owned());
    let pending = log.state.evals_of_job(&id).find(|eval| eval.status == EvalStatus::Pending).cloned();
    let eval = pending.map_or_else(|| some_eval(log, name, big), |eval| Evaluation::clone(&eval));
    let known = log.state.job(&id).cloned().unwrap_or_else(|| Arc::new(job(name, 3)));
    let place = |n: u8| Allocation {
        node_id: node_id(u128::from((a + n) % 5)),
        job: known.clone(),
        ports: vec![model::AllocatedPort { label: "http".to_owned(), host_port: u16::from(b % 3) + 1, to: 8080 }],
        slot: u32::from((b + n) % 9),
        ..allocation(&known, big.wrapping_add(u32::from(n)))
    };
    let stops = log.state.allocs().take(usize::from(c)).map(|alloc| PlannedStop {
        alloc_id: alloc.id,
        reason: "because".to_owned(),
        client: (b % 2 == 0).then_some(client(big)),
    });
    let mut plan = plan_of(&eval, (0..c).map(place).collect(), stops.collect());
    plan.in_place = log.state.allocs().map(|alloc| alloc.id).collect();
    if b == 7 {
        plan.failures.insert("main".to_owned(), PlacementFailure::default());
    }
    let follow_up = (c == 1)
        .then(|| Evaluation { wait_until: Timestamp::from_secs(u64::from(big)), ..some_eval(log, name, big ^ 9) });
    Command::ApplyPlan { plan: Box::new(plan), follow_up }
}

fn allocation(job: &Arc<model::Job>, n: u32) -> Allocation {
    let mut log = Log::ready();
    log.register(super::job("web", 1));
    Allocation { job: job.clone(), ..log.placement("web", 0, alloc_id(u128::from(n % 64))) }
}

fn some_eval(log: &mut Log, name: &str, big: u32) -> Evaluation {
    if big.is_multiple_of(5) { eval(u128::from(big % 3), name) } else { log.new_eval(name) }
}

fn role(n: u8) -> Role {
    if n.is_multiple_of(2) { Role::Agent } else { Role::Server }
}

fn node_status(n: u8) -> NodeStatus {
    [NodeStatus::Ready, NodeStatus::Suspect, NodeStatus::Down, NodeStatus::Initializing][usize::from(n % 4)]
}

fn client(n: u32) -> ClientStatus {
    use ClientStatus::*;
    [Pending, Running, Running, Complete, Failed, Lost][(n % 6) as usize]
}

/// Everything derived must be what the rows say.
fn indices_agree(catalog: &Catalog) {
    let by_job: usize = catalog.allocs_by_job.values().map(|ids| ids.len()).sum();
    let by_node: usize = catalog.allocs_by_node.values().map(|ids| ids.len()).sum();
    let evals: usize = catalog.evals_by_job.values().map(|ids| ids.len()).sum();
    assert_eq!((by_job, by_node, evals), (catalog.allocs.len(), catalog.allocs.len(), catalog.evals.len()));
    assert!(catalog.allocs().all(|alloc| catalog.allocs_of_job(alloc.job_id()).any(|other| other.id == alloc.id)));
    let derived = |id| catalog.derive_instances(id, catalog.instances_modified.get(&id).copied().unwrap_or_default());
    assert!(catalog.allocs().all(|alloc| catalog.instances_of_alloc(alloc.id) == derived(alloc.id)));
}

fn slots_and_addresses_are_unique(catalog: &Catalog) {
    let mut slots: BTreeMap<_, Vec<&Allocation>> = BTreeMap::new();
    for alloc in catalog.allocs().filter(|alloc| alloc.is_live() && alloc.desired == DesiredStatus::Run) {
        slots.entry((alloc.job_id(), &alloc.group, alloc.slot)).or_default().push(alloc);
    }
    // A second one is placed only while the first one's node is away; when it is back the scheduler chooses between them.
    let was_away = |alloc: &Allocation| {
        catalog.node(alloc.node_id).is_none_or(|node| node.modified_at_index > alloc.created_at_index)
    };
    for holders in slots.into_values() {
        let never_away = holders.iter().filter(|alloc| !was_away(alloc)).count();
        assert!(holders.len() == 1 || never_away <= 1, "a slot is held by {holders:?}");
    }
    let blocks: Vec<_> = catalog.nodes().flat_map(|node| node.blocks.clone()).collect();
    let vips: Vec<_> = catalog.vips.values().collect();
    assert_eq!(blocks.len(), blocks.iter().collect::<std::collections::BTreeSet<_>>().len());
    assert_eq!(vips.len(), vips.iter().collect::<std::collections::BTreeSet<_>>().len());
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 256, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn replay_equals_restore_and_refusals_leave_no_trace(rolls in dice(), cut in 0..120usize) {
        let mut log = Log::ready();
        let mut restored: Option<Catalog> = None;
        for (i, roll) in rolls.iter().enumerate() {
            if i == cut {
                restored = Some(Catalog::from_image(log.state.image()));
            }
            log.now += u64::from(roll.4 % 100);
            let (before, routing) = (log.state.image(), log.state.routing());
            let command = command(&mut log, *roll);
            let envelope = at(log.now, command);
            let index = Index(log.state.index().0 + 1);
            let outcome = log.state.apply(index, &envelope);
            if let Some(restored) = &mut restored {
                prop_assert_eq!(&restored.apply(index, &envelope), &outcome);
            }
            if outcome.is_err() {
                prop_assert_eq!(&log.state.image(), &model::CatalogImage { index, ..before });
            }
            let routed = log.state.routing();
            prop_assert!(routed == routing || routed.generation.0 == index.0, "routing changed without its generation");
            indices_agree(&log.state);
            slots_and_addresses_are_unique(&log.state);
        }
        if let Some(restored) = restored {
            prop_assert_eq!(restored.image(), log.state.image());
            prop_assert_eq!(restored.routing(), log.state.routing());
        }
        let again = Catalog::from_image(log.state.image());
        prop_assert_eq!(again.image(), log.state.image());
        prop_assert_eq!(again.routing(), log.state.routing());
        indices_agree(&again);
    }
}
