//! The rules of every command, and what holds for all of them: replay equals restore, nothing panics, refusals leave no trace.

mod fixtures;
mod properties;
mod store;

use crate::Catalog;
use fixtures::*;
use model::{
    AllocDeployment, AllocId, AllocUpdate, Allocation, CheckState, ClientStatus, Command, DeploymentId, DesiredStatus,
    Epoch, EvalStatus, Evaluation, Health, Index, InstanceNetwork, Job, JobId, JobKind, JoinToken, Lifecycle,
    LifecycleHook, Network, NetworkMode, Node, NodeStatus, Parameterized, PayloadRule, Periodic, Plan, PlannedStop,
    PortRequest, Refusal, Retention, Role, Table, TaskPhase, TaskState, Timestamp,
};
use std::collections::BTreeMap;
use std::net::IpAddr;

#[test]
fn a_cluster_is_bootstrapped_once_and_before_all_else() {
    let mut catalog = Log::default();
    assert_eq!(catalog.refused(Command::UpsertEvals(Vec::new())), Refusal::NotBootstrapped);
    for (alloc, vip) in
        [("10.64.0.0/30", "10.43.0.0/16"), ("fd00::/48", "10.43.0.0/16"), ("10.0.0.0/8", "10.43.0.0/16")]
    {
        let refusal = catalog.refused(bootstrap(alloc, vip));
        assert!(matches!(refusal, Refusal::RangeInvalid { .. }), "{alloc} {vip}: {refusal}");
    }
    catalog.must(bootstrap("10.64.0.0/11", "10.43.0.0/16"));
    assert_eq!(catalog.refused(bootstrap("10.64.0.0/11", "10.43.0.0/16")), Refusal::AlreadyBootstrapped);
    assert!(catalog.state.authority().is_some());
}

#[test]
fn an_old_index_is_refused() {
    let mut catalog = Catalog::default();
    let envelope = at(1, bootstrap("10.64.0.0/11", "10.43.0.0/16"));
    catalog.apply(Index(5), &envelope).unwrap();
    assert_eq!(catalog.apply(Index(5), &envelope), Err(Refusal::OldIndex { applied: Index(5) }));
}

#[test]
fn feature_levels_grow_and_bound_commands() {
    let mut log = Log::ready();
    let mut envelope = at(1, Command::UpsertEvals(Vec::new()));
    envelope.feature_level = 2;
    let refusal = Refusal::FeatureLevelTooLow { cluster: 1, needed: 2 };
    assert_eq!(log.state.clone().apply(Index(100), &envelope), Err(refusal));
    log.must(Command::SetFeatureLevel { level: 2 });
    assert!(log.state.clone().apply(Index(100), &envelope).is_ok());
    assert!(matches!(log.refused(Command::SetFeatureLevel { level: 1 }), Refusal::FeatureLevelLowered { .. }));
}

#[test]
fn tokens_are_spent_expire_and_have_a_role() {
    let mut log = Log::ready();
    let token = |n: u8, uses_left, expires| JoinToken {
        digest: [n; 32],
        role: Role::Agent,
        uses_left,
        expires_at: Timestamp::from_secs(expires),
    };
    let using = |n: u8, role, name: &str| Command::UseToken { digest: [n; 32], role, name: name.to_owned() };
    log.must(Command::CreateToken(token(1, 2, 1000)));
    log.must(Command::CreateToken(token(2, 1, 50)));
    assert_eq!(log.refused(Command::CreateToken(token(1, 9, 0))), Refusal::TokenExists);
    assert_eq!(log.refused(using(9, Role::Agent, "n1")), Refusal::TokenUnknown);
    assert_eq!(log.refused(using(1, Role::Server, "n1")), Refusal::TokenRole { asked: Role::Server });
    assert!(matches!(log.refused(using(1, Role::Agent, "no spaces")), Refusal::NameInvalid { .. }));
    log.must(Command::RegisterNode(Box::new(node(7, "n7"))));
    assert_eq!(log.refused(using(1, Role::Agent, "n7")), Refusal::NameTaken { name: "n7".to_owned() });
    log.must(using(1, Role::Agent, "n1"));
    log.must(using(1, Role::Agent, "n2"));
    assert_eq!(log.refused(using(1, Role::Agent, "n3")), Refusal::TokenSpent);
    log.now = 50;
    assert_eq!(log.refused(using(2, Role::Agent, "n3")), Refusal::TokenExpired);
}

#[test]
fn nodes_keep_their_block_and_need_a_newer_epoch() {
    let mut log = Log::ready();
    log.must(Command::RegisterNode(Box::new(node(1, "n1"))));
    log.must(Command::RegisterNode(Box::new(node(2, "n2"))));
    let block = |log: &Log, n| log.state.node(node_id(n)).unwrap().blocks[0].to_string();
    assert_eq!((block(&log, 1), block(&log, 2)), ("10.64.0.0/26".to_owned(), "10.64.0.64/26".to_owned()));
    let refusal = Refusal::EpochNotNewer { known: Epoch(1), got: Epoch(1) };
    assert_eq!(log.refused(Command::RegisterNode(Box::new(node(1, "n1")))), refusal);
    log.must(Command::RegisterNode(Box::new(Node { epoch: Epoch(2), ..node(1, "n1") })));
    assert_eq!(block(&log, 1), "10.64.0.0/26");
    let refusal = Refusal::EpochStale { known: Epoch(2), got: Epoch(1) };
    assert_eq!(log.refused(status(1, 1, NodeStatus::Down)), refusal);
    log.must(status(1, 2, NodeStatus::Suspect));
    assert_eq!(log.state.node(node_id(1)).unwrap().status, NodeStatus::Suspect);
}

#[test]
fn a_name_is_free_again_once_its_node_is_down() {
    let mut log = Log::ready();
    log.must(Command::RegisterNode(Box::new(node(1, "n1"))));
    assert!(matches!(log.refused(Command::RegisterNode(Box::new(node(2, "n1")))), Refusal::NameTaken { .. }));
    log.must(status(1, 1, NodeStatus::Down));
    log.must(Command::RegisterNode(Box::new(node(2, "n1"))));
    assert!(matches!(log.refused(status(1, 1, NodeStatus::Ready)), Refusal::NameTaken { .. }));
    let again = Node { epoch: Epoch(2), ..node(1, "n1") };
    assert!(matches!(log.refused(Command::RegisterNode(Box::new(again))), Refusal::NameTaken { .. }));
}

#[test]
fn an_address_is_free_again_once_its_node_is_down() {
    let mut log = Log::ready();
    let at_the_same = |epoch| Node { epoch: Epoch(epoch), address: node(1, "n1").address, ..node(2, "n2") };
    let taken = Refusal::AddressTaken { address: node(1, "n1").address };
    log.must(Command::RegisterNode(Box::new(node(1, "n1"))));
    assert_eq!(log.refused(Command::RegisterNode(Box::new(at_the_same(1)))), taken);
    log.must(Command::RegisterNode(Box::new(node(2, "n2"))));
    assert_eq!(log.refused(Command::RegisterNode(Box::new(at_the_same(2)))), taken);
    log.must(status(1, 1, NodeStatus::Suspect));
    assert_eq!(log.refused(Command::RegisterNode(Box::new(at_the_same(2)))), taken);
    log.must(status(1, 1, NodeStatus::Down));
    log.must(Command::RegisterNode(Box::new(at_the_same(2))));
    assert_eq!(log.refused(status(1, 1, NodeStatus::Ready)), taken);
}

#[test]
fn versions_grow_with_the_specification_alone() {
    let mut log = Log::ready();
    let version = |log: &Log| log.state.job(&JobId("web".to_owned())).map(|job| (job.version, job.stopped));
    log.register(job("web", 1));
    log.register(job("web", 1));
    assert_eq!(version(&log), Some((0, false)));
    log.deregister("web", false);
    assert_eq!(version(&log), Some((0, true)));
    log.register(job("web", 1));
    assert_eq!(version(&log), Some((0, false)));
    (2..10).for_each(|count| log.register(job("web", count)));
    assert_eq!(version(&log), Some((8, false)));
    let kept: Vec<u64> = log.state.job_versions(&JobId("web".to_owned())).iter().map(|job| job.version).collect();
    assert_eq!(kept, [8, 7, 6, 5, 4, 3]);
}

#[test]
fn jobs_that_break_the_models_promises_are_refused() {
    let mut log = Log::ready();
    let mut twice = job("web", 1);
    twice.groups.push(twice.groups[0].clone());
    let mut taskless = job("web", 1);
    taskless.groups[0].tasks.clear();
    let mut nowhere = job("web", 1);
    nowhere.datacenters.clear();
    for job in [twice, taskless, nowhere, job("web", 50_001), job("", 1)] {
        let eval = eval(1, &job.id.0);
        let refusal = log.refused(Command::RegisterJob { job: Box::new(job), eval, enforce_index: None });
        assert!(matches!(refusal, Refusal::JobInvalid { .. }), "{refusal}");
    }
    let other = Command::RegisterJob { job: Box::new(job("web", 1)), eval: eval(1, "db"), enforce_index: None };
    assert!(matches!(log.refused(other), Refusal::EvalMismatch { .. }));
    assert!(log.state.job(&JobId("web".to_owned())).is_none());
}

#[test]
fn a_purged_job_is_forgotten_once_nothing_of_it_runs() {
    let mut log = Log::running();
    log.deregister("web", true);
    assert!(log.state.job(&JobId("web".to_owned())).is_some());
    log.report(1, ClientStatus::Complete);
    assert!(log.state.job(&JobId("web".to_owned())).is_none());
    assert_eq!((log.state.allocs().count(), log.state.allocs_of_node(node_id(1)).count()), (0, 0));
    assert!(log.state.routing().services.is_empty());
    // Its evaluations can be asked for a while longer, so that whoever waits for the stop sees its end.
    assert!(log.state.evals().count() > 0);
    log.now += 3601;
    log.register(job("other", 0));
    log.deregister("other", true);
    assert!(log.state.evals_of_job(&JobId("web".to_owned())).all(|eval| eval.status == EvalStatus::Pending));
}

#[test]
fn of_two_plans_for_the_same_room_the_second_is_dropped() {
    let mut log = Log::ready();
    log.must(Command::RegisterNode(Box::new(node(1, "n1"))));
    log.register(job("web", 20));
    log.register(job("db", 20));
    let web: Vec<Allocation> = (0..20).map(|n| placement(&log, "web", n, u128::from(n))).collect();
    let db: Vec<Allocation> = (0..20).map(|n| placement(&log, "db", n, 100 + u128::from(n))).collect();
    let web_dropped = log.apply_plan("web", web, Vec::new());
    let db_dropped = log.apply_plan("db", db, Vec::new());
    // 4000 MHz hold 20 allocations of 200.
    assert_eq!((web_dropped.len(), db_dropped.len()), (0, 20));
    let eval = log.state.evals_of_job(&JobId("db".to_owned())).find(|eval| eval.status == EvalStatus::Pending);
    assert!(eval.is_some(), "an evaluation whose plan was dropped has to be looked at again");
}

#[test]
fn placements_that_no_longer_hold_are_dropped() {
    let mut log = Log::running();
    log.register(job("web", 2));
    let port = |n: u16| vec![model::AllocatedPort { label: "http".to_owned(), host_port: n, to: n }];
    let same_slot = placement(&log, "web", 0, 10);
    let beyond = placement(&log, "web", 2, 11);
    let port_taken = Allocation { ports: port(20_001), ..placement(&log, "web", 1, 12) };
    let unknown_node = Allocation { node_id: node_id(9), ..placement(&log, "web", 1, 13) };
    let old_version = Allocation {
        job: std::sync::Arc::new(model::Job { version: 7, ..model::Job::clone(&same_slot.job) }),
        ..placement(&log, "web", 1, 14)
    };
    let fine = placement(&log, "web", 1, 15);
    let asked = vec![same_slot, beyond, port_taken, unknown_node, old_version, fine];
    let dropped = log.apply_plan("web", asked, Vec::new());
    assert_eq!(dropped, [10, 11, 12, 13, 14].map(alloc_id));
    assert_eq!(log.state.alloc(alloc_id(15)).unwrap().created_at_index, log.state.index());
}

#[test]
fn nothing_is_placed_on_a_node_that_is_not_ready() {
    for bad in [NodeStatus::Suspect, NodeStatus::Down] {
        let mut log = Log::ready();
        log.must(Command::RegisterNode(Box::new(node(1, "n1"))));
        log.register(job("web", 1));
        log.must(status(1, 1, bad));
        let asked = vec![placement(&log, "web", 0, 1)];
        assert_eq!(log.apply_plan("web", asked, Vec::new()), [alloc_id(1)]);
    }
}

#[test]
fn only_a_down_node_has_its_allocations_declared_lost() {
    let mut log = Log::running();
    let lost =
        || vec![PlannedStop { alloc_id: alloc_id(1), reason: "down".to_owned(), client: Some(ClientStatus::Lost) }];
    assert_eq!(log.apply_plan("web", Vec::new(), lost()), [alloc_id(1)]);
    log.must(status(1, 1, NodeStatus::Down));
    assert_eq!(
        log.state.alloc(alloc_id(1)).unwrap().client,
        ClientStatus::Running,
        "the plan marks it, not the status"
    );
    assert_eq!(log.apply_plan("web", Vec::new(), lost()), []);
    assert_eq!(log.state.alloc(alloc_id(1)).unwrap().client, ClientStatus::Lost);
}

#[test]
fn of_many_evaluations_the_oldest_and_the_newest_stay_until_a_plan_covers_them() {
    let mut log = Log::running();
    let evals: Vec<Evaluation> = (0..4).map(|_| log.new_eval("web")).collect();
    for eval in &evals {
        log.must(Command::UpsertEvals(vec![eval.clone()]));
    }
    let status = |log: &Log, at: usize| log.state.eval(evals[at].id).unwrap().status;
    use EvalStatus::{Canceled, Complete, Pending};
    assert_eq!([0, 1, 2, 3].map(|at| status(&log, at)), [Pending, Canceled, Canceled, Pending]);
    // The oldest was planned before the newest came: only what the plan has seen is covered by it.
    let seen = log.state.eval(evals[3].id).unwrap().created_at_index;
    let plan = Plan { snapshot_index: Index(seen.0 - 1), ..plan_of(&evals[0], Vec::new(), Vec::new()) };
    log.must(Command::ApplyPlan { plan: Box::new(plan), follow_up: None });
    assert_eq!([0, 3].map(|at| status(&log, at)), [Complete, Pending]);
    let late = Box::new(plan_of(&evals[1], Vec::new(), Vec::new()));
    let refusal = log.refused(Command::ApplyPlan { plan: late, follow_up: None });
    assert_eq!(refusal, Refusal::EvalNotPending { id: evals[1].id, status: Canceled });
    let newer = log.new_eval("web");
    log.must(Command::UpsertEvals(vec![newer.clone()]));
    let plan = Box::new(plan_of(&newer, Vec::new(), Vec::new()));
    log.must(Command::ApplyPlan { plan, follow_up: None });
    assert_eq!(status(&log, 3), Canceled);
}

#[test]
fn of_a_plan_for_an_older_job_nothing_takes_effect() {
    let mut log = Log::ready();
    log.must(Command::RegisterNode(Box::new(node(1, "n1"))));
    log.register(job("web", 2));
    let old_view = log.state.index();
    let placed = placement(&log, "web", 0, 1);
    log.register(job("web", 1));
    let eval = log.new_eval("web");
    log.must(Command::UpsertEvals(vec![eval.clone()]));
    let plan = Plan { snapshot_index: old_view, ..plan_of(&eval, vec![placed], Vec::new()) };
    let applied = log.must(Command::ApplyPlan { plan: Box::new(plan), follow_up: None });
    assert_eq!((applied.dropped, log.state.allocs().count()), (vec![alloc_id(1)], 0));
    assert_eq!(log.state.eval(eval.id).unwrap().status, EvalStatus::Pending);
}

#[test]
fn a_plan_in_parts_concludes_its_evaluation_with_the_last() {
    let mut log = Log::ready();
    log.must(Command::RegisterNode(Box::new(node(1, "n1"))));
    log.register(job("web", 2));
    let eval = log.new_eval("web");
    log.must(Command::UpsertEvals(vec![eval.clone()]));
    for (slot, goes_on, status) in [(0, true, EvalStatus::Pending), (1, false, EvalStatus::Complete)] {
        let placed = placement(&log, "web", slot, 1 + u128::from(slot));
        let plan = Plan { goes_on, ..plan_of(&eval, vec![placed], Vec::new()) };
        log.must(Command::ApplyPlan { plan: Box::new(plan), follow_up: None });
        assert_eq!(log.state.eval(eval.id).unwrap().status, status);
    }
    assert_eq!(log.state.allocs().count(), 2);
}

#[test]
fn delayed_evaluations_stay_beside_immediate_ones() {
    let mut log = Log::running();
    let delayed = Evaluation { wait_until: Timestamp::from_secs(500), ..log.new_eval("web") };
    let newer_delayed = Evaluation { wait_until: Timestamp::from_secs(600), ..log.new_eval("web") };
    let immediate = log.new_eval("web");
    let ids = [delayed.id, newer_delayed.id, immediate.id];
    log.must(Command::UpsertEvals(vec![delayed, newer_delayed, immediate]));
    let statuses = ids.map(|id| log.state.eval(id).unwrap().status);
    assert_eq!(statuses, [EvalStatus::Canceled, EvalStatus::Pending, EvalStatus::Pending]);
}

#[test]
fn a_blocked_evaluation_takes_a_plan_when_there_is_room_again() {
    let mut log = Log::running();
    let eval = log.new_eval("web");
    log.must(Command::UpsertEvals(vec![eval.clone()]));
    let mut plan = plan_of(&eval, Vec::new(), Vec::new());
    plan.failures.insert("main".to_owned(), model::PlacementFailure::default());
    plan.queued.insert("main".to_owned(), 3);
    log.must(Command::ApplyPlan { plan: Box::new(plan), follow_up: None });
    let blocked = log.state.eval(eval.id).unwrap().clone();
    assert_eq!((blocked.status, blocked.queued["main"]), (EvalStatus::Blocked, 3));
    log.must(Command::RegisterNode(Box::new(node(2, "n2"))));
    assert_eq!(log.state.eval(eval.id).unwrap().status, EvalStatus::Blocked, "the leader's broker wakes it");
    log.must(Command::ApplyPlan { plan: Box::new(plan_of(&eval, Vec::new(), Vec::new())), follow_up: None });
    assert_eq!(log.state.eval(eval.id).unwrap().status, EvalStatus::Complete);
}

#[test]
fn reports_need_the_newest_epoch_and_their_own_allocations() {
    let mut log = Log::running();
    log.must(Command::RegisterNode(Box::new(node(2, "n2"))));
    let stale = Command::UpdateAllocs { node_id: node_id(1), epoch: Epoch(0), updates: Vec::new(), evals: Vec::new() };
    assert!(matches!(log.refused(stale), Refusal::EpochStale { .. }));
    let of_another = update(&log, 1, ClientStatus::Failed);
    let unknown = AllocUpdate { alloc_id: alloc_id(77), ..of_another.clone() };
    assert_eq!(log.update(2, vec![of_another, unknown]), [alloc_id(1), alloc_id(77)]);
    assert_eq!(log.state.alloc(alloc_id(1)).unwrap().client, ClientStatus::Running);
}

#[test]
fn an_end_is_final() {
    let mut log = Log::running();
    log.report(1, ClientStatus::Failed);
    let running = update(&log, 1, ClientStatus::Running);
    assert_eq!(log.update(1, vec![running]), [alloc_id(1)]);
    assert_eq!(log.state.alloc(alloc_id(1)).unwrap().client, ClientStatus::Failed);
}

#[test]
fn reports_are_limited_to_what_the_job_declares() {
    let mut log = Log::running();
    let mut report = update(&log, 1, ClientStatus::Running);
    report.address = Some(IpAddr::from([8, 8, 8, 8]));
    report.task_states.insert("stranger".to_owned(), TaskState::default());
    report.client_description = "é".repeat(5000);
    let stranger = CheckState { health: Health::Passing, output: String::new(), changed_at: Timestamp::NEVER };
    report.checks.insert("stranger/check".to_owned(), stranger);
    log.update(1, vec![report]);
    let alloc = log.state.alloc(alloc_id(1)).unwrap();
    assert_eq!(alloc.address, Some(IpAddr::from([10, 64, 0, 5])), "an address outside the node's blocks is not taken");
    assert_eq!((alloc.task_states.len(), alloc.checks.len()), (1, 1));
    assert_eq!(alloc.client_description.len(), 4096);
}

#[test]
fn an_instance_lives_while_its_task_runs() {
    let mut log = Log::running();
    let health =
        |log: &Log| log.state.instances().map(|instance| (instance.health, instance.draining)).collect::<Vec<_>>();
    assert_eq!(health(&log), [(Health::Passing, false)]);
    let instance = log.state.instances().next().unwrap().clone();
    assert_eq!((instance.address, instance.port), (IpAddr::from([10, 64, 0, 5]), 8080));
    assert_eq!((instance.vip_port, instance.network), (Some(8080), InstanceNetwork::Bridge));
    // A check that has not reported counts against it.
    let unchecked = AllocUpdate { checks: BTreeMap::new(), ..update(&log, 1, ClientStatus::Running) };
    log.update(1, vec![unchecked]);
    assert_eq!(health(&log), [(Health::Critical, false)]);
    assert_eq!(log.state.routing_generation().0, log.state.index().0, "a changed health is a new generation");
    // While the task restarts there is nothing to reach.
    let mut restarting = update(&log, 1, ClientStatus::Running);
    restarting.task_states.get_mut("main").unwrap().phase = TaskPhase::Pending;
    log.update(1, vec![restarting]);
    assert_eq!(health(&log), []);
    log.report(1, ClientStatus::Running);
    // A suspect node keeps its instances, a node that is down has none.
    log.must(status(1, 1, NodeStatus::Suspect));
    assert_eq!(health(&log), [(Health::Passing, false)]);
    log.must(status(1, 1, NodeStatus::Down));
    assert_eq!(health(&log), []);
    log.must(Command::RegisterNode(Box::new(Node { epoch: Epoch(2), ..node(1, "n1") })));
    assert_eq!(health(&log), [(Health::Passing, false)]);
    // To be stopped: its flows stay, new ones go elsewhere.
    let stop = vec![PlannedStop { alloc_id: alloc_id(1), reason: "stop".to_owned(), client: None }];
    log.apply_plan("web", Vec::new(), stop);
    assert_eq!(log.state.alloc(alloc_id(1)).unwrap().desired, DesiredStatus::Stop);
    assert_eq!(health(&log), [(Health::Passing, true)]);
}

#[test]
fn a_groups_service_does_not_wait_for_tasks_that_end_or_come_later() {
    let hook = |name: &str, hook, sidecar| {
        let mut task = job("x", 1).groups[0].tasks[0].clone();
        task.name = name.to_owned();
        task.lifecycle = Some(Lifecycle { hook, sidecar });
        task
    };
    let mut web = job("web", 1);
    web.groups[0].tasks.extend([
        hook("prepare", LifecycleHook::Prestart, false),
        hook("proxy", LifecycleHook::Prestart, true),
        hook("clean", LifecycleHook::Poststop, false),
    ]);
    let mut log = Log::running_job(web);
    let report = |log: &mut Log, phases: [(&str, TaskPhase); 4]| {
        let mut report = update(log, 1, ClientStatus::Running);
        for (task, phase) in phases {
            report.task_states.entry(task.to_owned()).or_default().phase = phase;
        }
        log.update(1, vec![report]);
        log.state.instances().count()
    };
    let (dead, running, pending) = (TaskPhase::Dead, TaskPhase::Running, TaskPhase::Pending);
    assert_eq!(report(&mut log, [("main", running), ("prepare", dead), ("proxy", running), ("clean", pending)]), 1);
    assert_eq!(report(&mut log, [("main", running), ("prepare", dead), ("proxy", dead), ("clean", pending)]), 0);
}

#[test]
fn canaries_have_tags_and_meta_of_their_own() {
    let mut web = job("web", 1);
    let service = &mut web.groups[0].services[0];
    service.tags = vec!["stable".to_owned()];
    service.canary_tags = Some(vec!["canary".to_owned()]);
    service.canary_meta = BTreeMap::from([("vip_port".to_owned(), "8443".to_owned())]);
    let mut log = Log::running_job(web);
    let seen = |log: &Log| log.state.instances().map(|i| (i.tags.clone(), i.vip_port)).collect::<Vec<_>>();
    assert_eq!(seen(&log), [(vec!["stable".to_owned()], Some(8080))]);
    let mut image = log.state.image();
    let part =
        AllocDeployment { id: DeploymentId::from_random(1), healthy: None, changed_at: Timestamp(1), canary: true };
    for alloc in &mut image.allocs {
        alloc.deployment = Some(part.clone());
    }
    log.state = Catalog::from_image(image);
    assert_eq!(seen(&log), [(vec!["canary".to_owned()], Some(8443))]);
}

#[test]
fn the_routing_generation_moves_only_when_routing_does() {
    let mut log = Log::running();
    let before = log.state.routing();
    assert_eq!(before.services.len(), 1);
    let mut event = update(&log, 1, ClientStatus::Running);
    event.client_description = "the same, with news".to_owned();
    log.update(1, vec![event]);
    log.register(job("db", 1));
    assert_eq!(log.state.table_index(Table::Jobs), log.state.index());
    let with_db = log.state.routing();
    assert!(with_db.generation > before.generation, "a newly declared service has an address to be told");
    log.must(Command::UpsertEvals(vec![eval(900, "db")]));
    assert_eq!(log.state.routing(), with_db);
    log.must(status(1, 1, NodeStatus::Suspect));
    assert_eq!(log.state.routing().generation.0, log.state.index().0);
}

#[test]
fn the_vip_port_follows_the_contract() {
    let cases = [
        (Some("443"), Some(8080), Some(80), Some(443)),
        (Some("none"), Some(8080), Some(80), Some(8080)),
        (None, None, Some(80), Some(80)),
        (None, None, None, None),
    ];
    for (meta, to, static_port, expected) in cases {
        let mut job = job("web", 1);
        let group = &mut job.groups[0];
        let ports = vec![PortRequest { label: "http".to_owned(), static_port, to }];
        group.network = Some(Network::of(NetworkMode::Host, ports));
        group.services[0].meta.extend(meta.map(|port| ("vip_port".to_owned(), port.to_owned())));
        let log = Log::running_job(job);
        let instance = log.state.instances().next().unwrap();
        assert_eq!(instance.vip_port, expected, "{meta:?} {to:?} {static_port:?}");
        assert_eq!((instance.address, instance.port), (node(1, "n1").address, 20_001));
    }
}

#[test]
fn a_service_keeps_its_address() {
    let mut log = Log::running();
    let vip = log.state.vip("web").unwrap();
    assert_eq!(vip, IpAddr::from([10, 43, 0, 1]));
    log.register(job("db", 1));
    assert_eq!(log.state.vip("db"), Some(IpAddr::from([10, 43, 0, 2])));
    log.report(1, ClientStatus::Complete);
    log.deregister("web", true);
    log.register(job("cache", 1));
    log.register(job("web", 1));
    assert_eq!(log.state.vip("web"), Some(vip));
}

#[test]
fn a_full_range_takes_addresses_from_names_that_are_gone() {
    let mut log = Log::default();
    log.must(bootstrap("10.64.0.0/11", "10.43.0.0/30"));
    log.register(job("one", 0));
    log.register(job("two", 0));
    let full = Command::RegisterJob { job: Box::new(job("three", 0)), eval: eval(50, "three"), enforce_index: None };
    assert!(matches!(log.refused(full), Refusal::AddressesExhausted { .. }));
    log.deregister("one", true);
    log.register(job("three", 0));
    assert_eq!(log.state.vip("three"), Some(IpAddr::from([10, 43, 0, 1])));
    assert_eq!(log.state.vip("one"), None);
}

#[test]
fn history_stays_bounded() {
    let mut log = Log::running();
    for n in 0..400 {
        let id = 1000 + n;
        let live = log.state.allocs().find(|alloc| alloc.is_live()).map(|alloc| alloc.id);
        live.into_iter().for_each(|id| log.report_id(id, ClientStatus::Failed));
        let next = vec![placement(&log, "web", 0, id)];
        assert_eq!(log.apply_plan("web", next, Vec::new()), []);
    }
    assert!(log.state.allocs().count() <= 200, "{}", log.state.allocs().count());
    assert!(log.state.evals().count() <= 80, "{}", log.state.evals().count());
    let of_node = log.state.allocs_of_node(node_id(1)).count();
    assert_eq!(of_node, log.state.allocs().count());
}

fn plan_of(eval: &Evaluation, placements: Vec<Allocation>, stops: Vec<PlannedStop>) -> Plan {
    Plan {
        eval_id: eval.id,
        job_id: eval.job_id.clone(),
        // As if made from the newest state.
        snapshot_index: Index(u64::MAX),
        goes_on: false,
        victims: Vec::new(),
        stops,
        placements,
        in_place: Vec::new(),
        failures: BTreeMap::new(),
        queued: BTreeMap::new(),
        deployment: None,
        follow_up_at: None,
    }
}

fn update(log: &Log, id: u128, client: ClientStatus) -> AllocUpdate {
    log.update_of(alloc_id(id), client)
}

fn placement(log: &Log, job: &str, slot: u32, id: u128) -> Allocation {
    log.placement(job, slot, alloc_id(id))
}

impl Log {
    fn apply_plan(&mut self, job: &str, placements: Vec<Allocation>, stops: Vec<PlannedStop>) -> Vec<AllocId> {
        let eval = self.new_eval(job);
        self.must(Command::UpsertEvals(vec![eval.clone()]));
        let plan = Box::new(plan_of(&eval, placements, stops));
        self.must(Command::ApplyPlan { plan, follow_up: None }).dropped
    }

    /// One node with one running, healthy allocation of the job.
    fn running_job(job: model::Job) -> Self {
        let mut log = Self::ready();
        log.must(Command::RegisterNode(Box::new(node(1, "n1"))));
        log.register(job);
        let ports = vec![model::AllocatedPort { label: "http".to_owned(), host_port: 20_001, to: 8080 }];
        let first = Allocation { ports, ..placement(&log, "web", 0, 1) };
        assert_eq!(log.apply_plan("web", vec![first], Vec::new()), []);
        log.report(1, ClientStatus::Running);
        log
    }

    fn running() -> Self {
        Self::running_job(job("web", 1))
    }

    fn report(&mut self, id: u128, client: ClientStatus) {
        self.report_id(alloc_id(id), client);
    }

    fn report_id(&mut self, id: AllocId, client: ClientStatus) {
        let update = self.update_of(id, client);
        assert_eq!(self.update(1, vec![update]), []);
    }

    fn update(&mut self, node: u128, updates: Vec<AllocUpdate>) -> Vec<AllocId> {
        let epoch = self.state.node(node_id(node)).unwrap().epoch;
        self.must(Command::UpdateAllocs { node_id: node_id(node), epoch, updates, evals: Vec::new() }).dropped
    }
}

/// A job that a dispatch would make of `parent`.
fn child_of(parent: &str, id: &str, token: &str) -> Job {
    let parent = Some(JobId(parent.to_owned()));
    Job { parent, dispatch_token: token.to_owned(), kind: JobKind::Batch, ..job(id, 1) }
}

fn parameterized(id: &str) -> Job {
    let none = Default::default;
    let rule = Parameterized { payload: PayloadRule::Optional, meta_required: none(), meta_optional: none() };
    Job { parameterized: Some(rule), kind: JobKind::Batch, ..job(id, 1) }
}

fn periodic(id: &str) -> Job {
    let crons = vec!["* * * * *".to_owned()];
    let time_zone = "UTC".to_owned();
    let rule = Periodic { enabled: true, crons, prohibit_overlap: true, time_zone };
    Job { periodic: Some(rule), kind: JobKind::Batch, ..job(id, 1) }
}

#[test]
fn a_dispatch_makes_a_job_once_per_token() {
    let mut log = Log::ready();
    log.register(parameterized("etl"));
    assert_eq!(log.state.evals().count(), 0, "nothing of a template is placed");
    let dispatch = |log: &mut Log, id: &str, token: &str| Command::DispatchJob {
        child: Box::new(child_of("etl", id, token)),
        eval: log.new_eval(id),
    };
    let jobs = |log: &Log| log.state.children(&JobId("etl".to_owned())).map(|job| job.id.0.clone()).collect::<Vec<_>>();
    for (id, token) in [("etl/1", "a"), ("etl/2", "a"), ("etl/3", ""), ("etl/4", "")] {
        let command = dispatch(&mut log, id, token);
        log.must(command);
    }
    assert_eq!(jobs(&log), ["etl/1", "etl/3", "etl/4"]);
    assert_eq!(log.state.evals().filter(|eval| eval.status == EvalStatus::Pending).count(), 3);
    let refused = dispatch(&mut log, "etl/3", "new");
    assert!(matches!(log.refused(refused), Refusal::JobInvalid { .. }));
    log.deregister("etl", false);
    let late = dispatch(&mut log, "etl/5", "");
    assert!(matches!(log.refused(late), Refusal::JobInvalid { .. }));
    log.register(job("web", 1));
    let eval = log.new_eval("web/1");
    let not_one = Command::DispatchJob { child: Box::new(child_of("web", "web/1", "")), eval };
    assert!(matches!(log.refused(not_one), Refusal::JobInvalid { .. }));
}

#[test]
fn a_periodic_job_is_launched_once_for_each_time() {
    let mut log = Log::ready();
    log.register(periodic("cron"));
    let launch = |log: &mut Log, secs: u64, child: bool| Command::LaunchPeriodic {
        parent: JobId("cron".to_owned()),
        launch: Timestamp::from_secs(secs),
        child: child.then(|| Box::new(child_of("cron", &format!("cron/periodic-{secs}"), ""))),
        eval: log.new_eval(&format!("cron/periodic-{secs}")),
    };
    for (secs, child) in [(60, true), (60, true), (120, false), (90, true)] {
        let command = launch(&mut log, secs, child);
        log.must(command);
    }
    let (_, launched_for) = log.state.periodic_jobs().next().unwrap();
    assert_eq!(launched_for, Timestamp::from_secs(120));
    assert_eq!(log.state.children(&JobId("cron".to_owned())).count(), 2);
    let changed = Command::RegisterJob { job: Box::new(job("cron", 1)), eval: eval(9, "cron"), enforce_index: None };
    assert!(matches!(log.refused(changed), Refusal::JobInvalid { .. }));
    log.deregister("cron", false);
    assert_eq!(log.state.periodic_jobs().count(), 0);
}

#[test]
fn a_restart_is_a_new_version_that_job_files_do_not_undo() {
    let mut log = Log::running();
    let eval = log.new_eval("web");
    log.must(Command::RestartJob { job_id: JobId("web".to_owned()), eval });
    let newest = |log: &Log| Job::clone(log.state.job(&JobId("web".to_owned())).unwrap());
    assert_eq!((newest(&log).version, newest(&log).restarts), (1, 1));
    let as_before = Job { restarts: 0, ..newest(&log) };
    log.register(as_before);
    assert_eq!((newest(&log).version, newest(&log).restarts), (1, 1));
    let mark = |version| Command::MarkStable { job_id: JobId("web".to_owned()), version, stable: true };
    log.must(mark(0));
    assert_eq!(log.state.job_versions(&JobId("web".to_owned())).iter().filter(|job| job.stable).count(), 1);
    assert!(matches!(log.refused(mark(7)), Refusal::JobInvalid { .. }));
    let lower = plan_of(&log.new_eval("web"), Vec::new(), Vec::new());
    assert!(matches!(
        log.refused(Command::ApplyPlan { plan: Box::new(lower), follow_up: None }),
        Refusal::EvalUnknown { .. }
    ));
}

#[test]
fn what_has_ended_is_forgotten_in_time_and_what_matters_stays() {
    let mut log = Log::running();
    log.register(Job { kind: JobKind::Batch, ..job("once", 1) });
    let placed = placement(&log, "once", 0, 50);
    log.apply_plan("once", vec![placed], Vec::new());
    log.report(50, ClientStatus::Complete);
    let collect = |log: &mut Log, retention| {
        let garbage = log.state.garbage(Timestamp::from_secs(log.now), retention, 1000);
        log.must(Command::CollectGarbage(Box::new(garbage.clone())));
        garbage
    };
    assert!(collect(&mut log, Retention::DEFAULT).is_empty());
    log.now += 3600;
    let garbage = collect(&mut log, Retention::DEFAULT);
    assert!(!garbage.evals.is_empty() && garbage.jobs.is_empty() && garbage.allocs.is_empty());
    assert!(log.state.job(&JobId("once".to_owned())).is_some(), "batch work can be asked for longer");
    log.now += 4 * 3600;
    assert_eq!(collect(&mut log, Retention::DEFAULT).jobs, [JobId("once".to_owned())]);
    assert!(log.state.alloc(alloc_id(50)).is_none());
    // The service is alive, and its slot's last allocation says how often it failed.
    log.report(1, ClientStatus::Failed);
    log.now += 10 * 24 * 3600;
    assert!(collect(&mut log, Retention::NONE).allocs.is_empty());
    assert!(log.state.alloc(alloc_id(1)).is_some() && log.state.job(&JobId("web".to_owned())).is_some());
    // A node that is down is forgotten once nothing is left on it.
    log.must(status(1, 1, NodeStatus::Down));
    assert_eq!(log.state.garbage(Timestamp::from_secs(log.now), Retention::DEFAULT, 10).nodes, []);
    log.now += 24 * 3600;
    assert_eq!(collect(&mut log, Retention::DEFAULT).nodes, [node_id(1)]);
    assert_eq!(log.state.nodes().count(), 0);
}

#[test]
fn garbage_that_came_to_matter_in_between_stays() {
    let mut log = Log::running();
    log.deregister("web", false);
    log.report(1, ClientStatus::Complete);
    let eval = log
        .state
        .evals_of_job(&JobId("web".to_owned()))
        .find(|eval| eval.status == EvalStatus::Pending)
        .unwrap()
        .clone();
    log.must(Command::ApplyPlan { plan: Box::new(plan_of(&eval, Vec::new(), Vec::new())), follow_up: None });
    log.now += 5 * 3600;
    let garbage = log.state.garbage(Timestamp::from_secs(log.now), Retention::DEFAULT, 10);
    assert_eq!(garbage.jobs.len(), 1);
    log.register(job("web", 2));
    log.must(Command::CollectGarbage(Box::new(garbage)));
    assert!(log.state.job(&JobId("web".to_owned())).is_some());
}

#[test]
fn only_what_is_clearly_less_important_makes_room() {
    let mut log = Log::running();
    log.register(Job { priority: 59, ..job("peer", 1) });
    log.register(Job { priority: 60, ..job("boss", 1) });
    let stop = || vec![PlannedStop { alloc_id: alloc_id(1), reason: "preempted".to_owned(), client: None }];
    assert_eq!(log.apply_plan("peer", Vec::new(), stop()), [alloc_id(1)]);
    assert_eq!(log.state.alloc(alloc_id(1)).unwrap().desired, DesiredStatus::Run);
    let eval = log.new_eval("boss");
    log.must(Command::UpsertEvals(vec![eval.clone()]));
    let victims = vec![log.new_eval("web")];
    let plan = Plan { victims: victims.clone(), ..plan_of(&eval, Vec::new(), stop()) };
    assert_eq!(log.must(Command::ApplyPlan { plan: Box::new(plan), follow_up: None }).dropped, []);
    assert_eq!(log.state.alloc(alloc_id(1)).unwrap().desired, DesiredStatus::Stop);
    assert_eq!(log.state.eval(victims[0].id).unwrap().status, EvalStatus::Pending);
}
