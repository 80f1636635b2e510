use super::*;
use crate::allocs::fixtures::{allocation, allocation_of, job, service, task};
use model::{CheckRestart, CheckState, Job, JobKind, Lifecycle, LifecycleHook, Task};
use std::net::Ipv4Addr;

const NODE: IpAddr = IpAddr::V4(Ipv4Addr::new(10, 77, 0, 11));
const GRACE: Duration = Duration::from_secs(1);
const KILLED: &str = "Exit Code: 137, Signal: 9";
const DONE: &str = "Exit Code: 0";

/// A machine and a clock that ticks a second per event.
struct Script {
    machine: Machine,
    now: u64,
}

impl Script {
    fn of(told: Allocation) -> Self {
        Self { machine: Machine::new(told, NODE, GRACE, Timestamp::from_secs(100)), now: 100 }
    }

    fn on(&mut self, event: Event) -> Vec<Action> {
        self.now += 1;
        self.machine.on_event(Timestamp::from_secs(self.now), 0.0, event)
    }

    fn running(told: Allocation) -> Self {
        let mut script = Self::of(told);
        for action in script.on(Event::SetUp { address: None }) {
            let Action::Start { task } = action else { panic!("{action:?}") };
            script.on(Event::Started { task });
        }
        script
    }

    fn ended(&mut self, task: &str, how: &str) -> Vec<Action> {
        self.on(Event::Ended { task: task.to_owned(), how: how.to_owned(), success: how == DONE })
    }

    fn started(&mut self, task: &str) -> Vec<Action> {
        self.on(Event::Started { task: task.to_owned() })
    }

    fn told_to_stop(&mut self) -> Vec<Action> {
        let told = Allocation { desired: DesiredStatus::Stop, ..self.machine.told().clone() };
        self.on(Event::Told(Box::new(told)))
    }

    fn status(&self) -> ClientStatus {
        self.machine.report().client
    }

    fn kinds(&self, task: &str) -> Vec<String> {
        self.machine.report().task_states[task].events.iter().map(|event| event.kind.clone()).collect()
    }

    fn check(&self) -> CheckState {
        self.machine.report().checks["web/alive"].clone()
    }
}

fn restored(last: AllocUpdate, memory: &Memory) -> Machine {
    Machine::restore(allocation(1), last, memory, NODE, GRACE)
}

fn start(task: &str) -> Action {
    Action::Start { task: task.to_owned() }
}

fn kill(task: &str) -> Action {
    Action::Kill { task: task.to_owned() }
}

fn hooked(name: &str, hook: LifecycleHook, sidecar: bool) -> Task {
    Task { lifecycle: Some(Lifecycle { hook, sidecar }), ..task(name) }
}

fn of_kind(kind: JobKind, tasks: Vec<Task>) -> Allocation {
    allocation_of(1, Job { kind, ..job(tasks, vec![]) })
}

fn server() -> String {
    "server".to_owned()
}

#[test]
fn tasks_start_once_everything_is_set_up() {
    let mut script = Script::of(allocation(1));
    assert_eq!(script.status(), ClientStatus::Pending);
    assert_eq!(script.on(Event::SetUp { address: None }), [Action::Start { task: server() }]);
    assert_eq!(script.status(), ClientStatus::Pending);
    assert_eq!(script.on(Event::Started { task: server() }), []);
    assert_eq!(script.status(), ClientStatus::Running);
    assert_eq!(script.kinds("server"), ["Received", "Task Setup", "Started"]);
}

#[test]
fn a_killed_task_makes_the_allocation_pending_and_its_check_critical_at_once() {
    let mut script = Script::running(allocation(1));
    script.on(Event::Checked { id: "web/alive".to_owned(), health: Health::Passing, output: "ok".to_owned() });
    assert_eq!(script.check().health, Health::Passing);
    let restart = Action::RestartAfter { task: server(), delay: Duration::from_secs(4) };
    assert_eq!(script.ended("server", KILLED), [restart]);
    assert_eq!((script.status(), script.check().health), (ClientStatus::Pending, Health::Critical));
    assert_eq!(script.on(Event::RestartDue { task: server() }), [Action::Start { task: server() }]);
    script.on(Event::Started { task: server() });
    assert_eq!((script.status(), script.check().health), (ClientStatus::Running, Health::Critical));
    assert_eq!(script.machine.report().task_states["server"].restarts, 1);
    assert_eq!(script.kinds("server")[3..], ["Terminated", "Restarting", "Task Setup", "Started"]);
}

#[test]
fn a_task_out_of_restarts_fails_the_allocation_and_ends_its_siblings_first() {
    let mut script = Script::running(allocation_of(1, job(vec![task("a"), task("b")], vec![])));
    script.ended("a", KILLED);
    script.on(Event::RestartDue { task: "a".to_owned() });
    script.on(Event::Started { task: "a".to_owned() });
    assert_eq!(script.ended("a", KILLED), [Action::Kill { task: "b".to_owned() }]);
    assert_eq!(script.status(), ClientStatus::Pending, "b still holds its resources");
    assert_eq!(script.ended("b", DONE), [Action::TearDown]);
    assert_eq!(script.status(), ClientStatus::Failed);
    assert!(script.machine.report().client_description.contains("task a failed"));
    assert!(script.kinds("b").contains(&"Sibling Task Failed".to_owned()));
}

#[test]
fn stopping_drains_then_signals_then_tears_down() {
    let mut script = Script::running(allocation(1));
    assert_eq!(script.told_to_stop(), [Action::DrainFor(GRACE)]);
    assert_eq!(script.status(), ClientStatus::Running);
    assert_eq!(script.on(Event::DrainOver), [Action::Kill { task: server() }]);
    assert_eq!(script.ended("server", DONE), [Action::TearDown]);
    assert_eq!(script.status(), ClientStatus::Complete);
    assert!(script.machine.has_ended());
    assert_eq!(script.told_to_stop(), []);
}

#[test]
fn nothing_to_drain_means_no_wait() {
    let mut script = Script::running(allocation_of(1, job(vec![task("server")], vec![])));
    assert_eq!(script.told_to_stop(), [Action::Kill { task: server() }]);
    let mut early = Script::of(allocation(1));
    assert_eq!(early.told_to_stop(), [Action::TearDown]);
    assert_eq!(early.status(), ClientStatus::Complete);
    assert_eq!(early.on(Event::SetUp { address: None }), [], "too late");
}

#[test]
fn a_task_that_ends_while_draining_is_not_restarted() {
    let mut script = Script::running(allocation(1));
    script.told_to_stop();
    assert_eq!(script.ended("server", KILLED), [Action::TearDown]);
    assert_eq!(script.on(Event::DrainOver), []);
    assert_eq!(script.status(), ClientStatus::Complete);
}

#[test]
fn stop_during_the_restart_delay_ends_at_once() {
    let mut script = Script::running(allocation(1));
    script.ended("server", KILLED);
    assert_eq!(script.told_to_stop(), [Action::TearDown]);
    assert_eq!(script.on(Event::RestartDue { task: server() }), []);
}

#[test]
fn failures_to_start_follow_the_policy_unless_fatal() {
    let failed = |fatal| Event::StartFailed { task: server(), reason: "no such command".to_owned(), fatal };
    let mut script = Script::of(allocation(1));
    script.on(Event::SetUp { address: None });
    assert!(matches!(script.on(failed(false))[..], [Action::RestartAfter { .. }]));
    let mut script = Script::of(allocation(1));
    script.on(Event::SetUp { address: None });
    assert_eq!(script.on(failed(true)), [Action::TearDown]);
    assert_eq!(script.status(), ClientStatus::Failed);
}

#[test]
fn an_allocation_that_cannot_be_set_up_fails_with_the_reason() {
    let mut script = Script::of(allocation(1));
    assert_eq!(script.on(Event::SetUpFailed { reason: "no address block".to_owned() }), [Action::TearDown]);
    assert_eq!(script.status(), ClientStatus::Failed);
    assert_eq!(script.machine.report().client_description, "could not be set up: no address block");
}

#[test]
fn restored_tasks_are_adopted_without_a_restart() {
    let script = Script::running(allocation(1));
    let report = script.machine.report();
    let mut restored = restored(report.clone(), &Memory::default());
    assert_eq!(restored.tasks_to_find(), [(server(), Expected::Running)]);
    let now = Timestamp::from_secs(200);
    assert_eq!(report.task_states["server"].started_at, Timestamp::from_secs(102));
    assert_eq!(
        restored.on_event(now, 0.0, Event::Adopted { task: server(), started_at: Timestamp::from_secs(102) }),
        []
    );
    assert_eq!(restored.on_event(now, 0.0, Event::SetUp { address: None }), []);
    assert_eq!(restored.report(), report);
}

#[test]
fn a_task_that_ended_while_the_agent_was_away_restarts() {
    let report = Script::running(allocation(1)).machine.report();
    let mut restored = restored(report, &Memory::default());
    let now = Timestamp::from_secs(200);
    let actions = restored.on_event(now, 0.0, Event::Ended { task: server(), how: KILLED.to_owned(), success: false });
    assert!(matches!(actions[..], [Action::RestartAfter { .. }]));
    assert_eq!(restored.on_event(now, 0.0, Event::RestartDue { task: server() }), [], "set-up is not done");
    let actions = restored.on_event(now, 0.0, Event::SetUp { address: None });
    assert_eq!(actions, [Action::Start { task: server() }]);
}

#[test]
fn a_restart_that_was_due_when_the_agent_ended_counts() {
    let mut script = Script::running(allocation(1));
    script.ended("server", KILLED);
    let mut restored = restored(script.machine.report(), &script.machine.memory());
    assert_eq!(restored.tasks_to_find(), [(server(), Expected::Perhaps)]);
    let actions = restored.on_event(Timestamp::from_secs(200), 0.0, Event::SetUp { address: None });
    assert_eq!(actions, [Action::Start { task: server() }]);
    assert_eq!(restored.report().task_states["server"].restarts, 1);
}

#[test]
fn a_pending_restart_and_the_ends_counted_survive_the_agent() {
    let mut script = Script::running(allocation(1));
    let [Action::RestartAfter { delay, .. }] = script.ended("server", KILLED)[..] else { panic!("no restart") };
    let ended_at = Timestamp::from_secs(script.now);
    let mut agent = restored(script.machine.report(), &script.machine.memory());
    let soon = Duration::from_millis(1);
    let actions = agent.on_event(ended_at.plus(soon), 0.0, Event::SetUp { address: None });
    assert_eq!(actions, [Action::RestartAfter { task: server(), delay: delay - soon }]);
    let due = ended_at.plus(delay);
    assert_eq!(agent.on_event(due, 0.0, Event::RestartDue { task: server() }), [Action::Start { task: server() }]);
    assert_eq!(agent.memory().restarts["server"].due, Timestamp::NEVER);

    let attempts = allocation(1).task_group().expect("a group").restart.attempts;
    for end in 2..=attempts + 1 {
        agent.on_event(due, 0.0, Event::Started { task: server() });
        let memory = agent.memory();
        agent = restored(agent.report(), &memory);
        let how = KILLED.to_owned();
        let actions = agent.on_event(due, 0.0, Event::Ended { task: server(), how, success: false });
        assert_eq!(actions == [Action::TearDown], end > attempts, "end {end} of {attempts} restarts: {actions:?}");
    }
}

#[test]
fn a_task_that_does_not_answer_is_neither_started_nor_given_up() {
    for (report, since) in
        [(Script::running(allocation(1)).machine.report(), 102), (Script::of(allocation(1)).machine.report(), 150)]
    {
        let mut agent = restored(report, &Memory::default());
        let now = Timestamp::from_secs(200);
        assert_eq!(agent.on_event(now, 0.0, Event::Unanswered { task: server() }), []);
        assert_eq!(agent.on_event(now, 0.0, Event::SetUp { address: None }), []);
        let started_at = Timestamp::from_secs(150);
        assert_eq!(agent.on_event(now, 0.0, Event::Adopted { task: server(), started_at }), []);
        let state = agent.report().task_states["server"].clone();
        assert_eq!((state.phase, state.started_at), (TaskPhase::Running, Timestamp::from_secs(since)));
    }
}

#[test]
fn checks_aim_at_the_node_for_host_networks() {
    let script = Script::running(allocation(1));
    let plans = script.machine.checks_wanted();
    assert_eq!(plans.len(), 1);
    assert_eq!((plans[0].id.as_str(), plans[0].target), ("web/alive", Some(SocketAddr::new(NODE, 20_001))));
}

#[test]
fn a_check_reports_changes_only_and_bounded() {
    let mut script = Script::running(allocation(1));
    let mut result = |health, output: &str| {
        script.on(Event::Checked { id: "web/alive".to_owned(), health, output: output.to_owned() });
        script.check()
    };
    let first = result(Health::Critical, "connection refused");
    assert_eq!(first.output, "connection refused");
    assert_eq!(result(Health::Critical, "another text"), first);
    assert_eq!(result(Health::Passing, &"ä".repeat(4096)).output.len(), super::super::health::CHECK_OUTPUT_BYTES_MAX);
}

#[test]
fn a_service_of_one_task_does_not_wait_for_the_others() {
    let mut serving = task("a");
    serving.services = vec![service("web", &["alive"])];
    let mut script = Script::running(allocation_of(1, job(vec![serving, task("b")], vec![])));
    script.ended("b", KILLED);
    assert_eq!(script.machine.checks_wanted().len(), 1);
    script.ended("a", KILLED);
    assert_eq!(script.machine.checks_wanted(), []);
}

#[test]
fn status_is_terminal_only_when_all_tasks_are_dead() {
    let state = |phase, failed| TaskState { phase, failed, ..TaskState::default() };
    let check = |states: &[TaskState], expect| assert_eq!(client_status(states.iter()), expect, "{states:?}");
    use TaskPhase::{Dead, Pending, Running};
    check(&[state(Running, false), state(Running, false)], ClientStatus::Running);
    check(&[state(Running, false), state(Pending, false)], ClientStatus::Running);
    check(&[state(Pending, false), state(Pending, false)], ClientStatus::Pending);
    check(&[state(Running, false), state(Dead, true)], ClientStatus::Pending);
    check(&[state(Dead, false), state(Dead, true)], ClientStatus::Failed);
    check(&[state(Dead, false)], ClientStatus::Complete);
    check(&[], ClientStatus::Failed);
}

#[test]
fn a_batch_task_that_succeeds_is_complete_and_one_that_fails_follows_the_policy() {
    for kind in [JobKind::Batch, JobKind::Sysbatch] {
        let mut script = Script::running(of_kind(kind, vec![task("work")]));
        assert_eq!(script.ended("work", DONE), [Action::TearDown]);
        assert_eq!(script.status(), ClientStatus::Complete);
        assert_eq!(script.machine.report().client_description, "All tasks have completed");
        let mut script = Script::running(of_kind(kind, vec![task("work")]));
        assert!(matches!(script.ended("work", KILLED)[..], [Action::RestartAfter { .. }]));
        script.on(Event::RestartDue { task: "work".to_owned() });
        script.started("work");
        assert_eq!(script.ended("work", KILLED), [Action::TearDown]);
        assert_eq!(script.status(), ClientStatus::Failed);
    }
}

#[test]
fn a_complete_task_is_not_rerun_by_the_next_agent() {
    let told = of_kind(JobKind::Batch, vec![task("quick"), task("slow")]);
    let mut script = Script::running(told.clone());
    assert_eq!(script.ended("quick", DONE), []);
    assert_eq!(script.status(), ClientStatus::Running);
    let last = script.machine.report();
    let mut agent = Machine::restore(told, last, &script.machine.memory(), NODE, GRACE);
    assert_eq!(agent.tasks_to_find(), [("slow".to_owned(), Expected::Running)]);
    let now = Timestamp::from_secs(300);
    agent.on_event(now, 0.0, Event::Adopted { task: "slow".to_owned(), started_at: now });
    assert_eq!(agent.on_event(now, 0.0, Event::SetUp { address: None }), []);
    let end = Event::Ended { task: "slow".to_owned(), how: DONE.to_owned(), success: true };
    assert_eq!(agent.on_event(now, 0.0, end), [Action::TearDown]);
    assert_eq!(agent.report().client, ClientStatus::Complete);
}

#[test]
fn services_and_system_jobs_restart_after_a_success() {
    for kind in [JobKind::Service, JobKind::System] {
        let mut script = Script::running(of_kind(kind, vec![task("serve")]));
        assert!(matches!(script.ended("serve", DONE)[..], [Action::RestartAfter { .. }]), "{kind:?}");
    }
}

#[test]
fn hooks_run_in_their_order_and_poststop_last() {
    use LifecycleHook::{Poststart, Poststop, Prestart};
    let tasks = vec![
        hooked("init", Prestart, false),
        hooked("proxy", Prestart, true),
        task("main"),
        hooked("warm", Poststart, false),
        hooked("tail", Poststart, true),
        hooked("sweep", Poststop, false),
    ];
    let mut script = Script::of(of_kind(JobKind::Service, tasks));
    assert_eq!(script.on(Event::SetUp { address: None }), [start("init"), start("proxy")]);
    assert_eq!(script.started("init"), []);
    assert_eq!(script.ended("init", DONE), [], "the sidecar does not run yet");
    assert_eq!(script.status(), ClientStatus::Pending);
    assert_eq!(script.started("proxy"), [start("main")]);
    assert_eq!(script.status(), ClientStatus::Pending, "what prepares the work is not the work");
    assert_eq!(script.started("main"), [start("tail"), start("warm")]);
    assert_eq!(script.status(), ClientStatus::Running);
    script.started("warm");
    script.started("tail");
    assert_eq!(script.ended("warm", DONE), [], "it has done what it had to");
    assert_eq!(script.told_to_stop(), [kill("main")]);
    assert_eq!(script.ended("main", DONE), [kill("proxy"), kill("tail")], "sidecars outlive what they serve");
    assert_eq!(script.ended("proxy", KILLED), []);
    assert_eq!(script.ended("tail", KILLED), [start("sweep")]);
    script.started("sweep");
    assert_eq!(script.status(), ClientStatus::Running);
    assert_eq!(script.ended("sweep", DONE), [Action::TearDown]);
    assert_eq!(script.status(), ClientStatus::Complete);
}

#[test]
fn a_prestart_task_that_fails_for_good_keeps_the_main_tasks_from_starting() {
    let tasks = vec![hooked("init", LifecycleHook::Prestart, false), task("main")];
    let mut script = Script::of(of_kind(JobKind::Service, tasks));
    script.on(Event::SetUp { address: None });
    script.started("init");
    assert!(matches!(script.ended("init", KILLED)[..], [Action::RestartAfter { .. }]));
    script.on(Event::RestartDue { task: "init".to_owned() });
    script.started("init");
    assert_eq!(script.ended("init", KILLED), [Action::TearDown]);
    assert_eq!(script.status(), ClientStatus::Failed);
    assert_eq!(script.machine.report().task_states["main"].started_at, Timestamp::NEVER);
}

#[test]
fn the_end_of_the_leader_ends_the_others() {
    let leader = Task { leader: true, ..task("lead") };
    let told = of_kind(JobKind::Batch, vec![leader, task("helper")]);
    let mut script = Script::running(told.clone());
    assert_eq!(script.ended("lead", DONE), [kill("helper")]);
    assert!(script.kinds("helper").contains(&"Leader Task Dead".to_owned()));
    assert_eq!(script.ended("helper", KILLED), [Action::TearDown]);
    assert_eq!(script.status(), ClientStatus::Complete);

    let mut script = Script::running(told);
    assert_eq!(script.told_to_stop(), [kill("lead")], "the leader goes first");
    assert_eq!(script.ended("lead", KILLED), [kill("helper")]);
}

#[test]
fn sidecars_of_a_batch_job_end_with_its_work() {
    let tasks = vec![task("work"), hooked("proxy", LifecycleHook::Prestart, true)];
    let mut script = Script::of(of_kind(JobKind::Batch, tasks));
    script.on(Event::SetUp { address: None });
    assert_eq!(script.started("proxy"), [start("work")]);
    script.started("work");
    assert_eq!(script.ended("work", DONE), [kill("proxy")]);
    assert!(script.kinds("proxy").contains(&"Main Tasks Dead".to_owned()));
    assert_eq!(script.ended("proxy", KILLED), [Action::TearDown]);
    assert_eq!(script.status(), ClientStatus::Complete);
}

#[test]
fn shutdown_delays_of_group_and_task_come_before_the_signal() {
    let (group, own) = (Duration::from_secs(7), Duration::from_secs(3));
    let mut described = job(vec![Task { shutdown_delay: own, ..task("slow") }, task("quick")], vec![]);
    described.groups[0].shutdown_delay = group;
    let mut script = Script::running(allocation_of(1, described));
    assert_eq!(script.told_to_stop(), [Action::DrainFor(group)]);
    let later = Action::KillAfter { task: "slow".to_owned(), delay: own };
    assert_eq!(script.on(Event::DrainOver), [kill("quick"), later]);
    assert_eq!(script.ended("quick", KILLED), []);
    assert_eq!(script.on(Event::KillDue { task: "slow".to_owned() }), [kill("slow")]);
    assert_eq!(script.ended("slow", KILLED), [Action::TearDown]);
    assert_eq!(script.on(Event::KillDue { task: "slow".to_owned() }), []);
    assert!(script.kinds("slow").contains(&"Waiting for shutdown delay".to_owned()));
}

#[test]
fn a_run_that_takes_too_long_fails_also_across_agents() {
    let mut described = Job { kind: JobKind::Batch, ..job(vec![task("work")], vec![]) };
    described.groups[0].max_run_duration = Some(Duration::from_secs(50));
    let told = allocation_of(1, described);
    let mut script = Script::of(told.clone());
    let limit = Action::LimitRun(Duration::from_secs(50));
    assert_eq!(script.on(Event::SetUp { address: None }), [limit, start("work")]);
    script.started("work");
    let mut agent = Machine::restore(told, script.machine.report(), &script.machine.memory(), NODE, GRACE);
    let later = Timestamp::from_secs(131);
    let left = agent.on_event(later, 0.0, Event::SetUp { address: None });
    assert_eq!(left, [Action::LimitRun(Duration::from_secs(20))], "30 s are over");
    assert_eq!(script.on(Event::RunTimeOver), [kill("work")]);
    assert_eq!(script.ended("work", KILLED), [Action::TearDown]);
    assert_eq!(script.status(), ClientStatus::Failed);
    assert!(script.machine.report().client_description.contains("max_run_duration"));
}

#[test]
fn people_restart_tasks_without_using_up_the_policy() {
    let mut script = Script::running(allocation_of(1, job(vec![task("a"), task("b")], vec![])));
    let now = Timestamp::from_secs(150);
    let wish = RestartWish::Task("a".to_owned());
    assert_eq!(script.machine.request_restart(now, &wish), Ok(vec![kill("a")]));
    assert_eq!(script.machine.request_restart(now, &wish), Ok(vec![]), "it is on its way");
    assert_eq!(script.ended("a", KILLED), [start("a")]);
    script.started("a");
    let state = script.machine.report().task_states["a"].clone();
    assert_eq!((state.restarts, script.machine.memory().restarts["a"].ends), (1, 0));
    assert_eq!(
        script.kinds("a")[3..],
        ["Restart Signaled", "Killing", "Terminated", "Restarting", "Task Setup", "Started"]
    );
    let all = script.machine.request_restart(now, &RestartWish::Running);
    assert_eq!(all, Ok(vec![kill("a"), kill("b")]));
    let unknown = script.machine.request_restart(now, &RestartWish::Task("c".to_owned()));
    assert!(unknown.unwrap_err().contains("no task c"));
    let mut early = Script::of(allocation(1));
    assert!(early.machine.request_restart(now, &RestartWish::Running).unwrap_err().contains("set up"));
}

#[test]
fn a_whole_allocation_starts_over_with_its_prestart_tasks_also_across_agents() {
    let tasks = vec![hooked("init", LifecycleHook::Prestart, false), task("main")];
    let told = of_kind(JobKind::Service, tasks);
    let mut script = Script::of(told.clone());
    script.on(Event::SetUp { address: None });
    script.started("init");
    script.ended("init", DONE);
    script.started("main");
    let now = Timestamp::from_secs(150);
    assert_eq!(script.machine.request_restart(now, &RestartWish::All), Ok(vec![kill("main")]));
    let (last, memory) = (script.machine.report(), script.machine.memory());
    assert!(memory.restarting);
    assert_eq!(script.ended("main", KILLED), [start("init")]);
    script.started("init");
    assert_eq!(script.ended("init", DONE), [start("main")]);
    script.started("main");
    assert_eq!((script.status(), script.machine.memory().restarting), (ClientStatus::Running, false));
    assert_eq!(script.machine.report().task_states["main"].restarts, 1);

    let mut agent = Machine::restore(told, last, &memory, NODE, GRACE);
    let found = Event::Adopted { task: "main".to_owned(), started_at: now };
    assert_eq!(agent.on_event(now, 0.0, found), [kill("main")], "it goes on where the other agent left it");
    let end = Event::Ended { task: "main".to_owned(), how: KILLED.to_owned(), success: false };
    assert_eq!(agent.on_event(now, 0.0, end), []);
    assert_eq!(agent.on_event(now, 0.0, Event::SetUp { address: None }), [start("init")]);
}

#[test]
fn a_failing_check_restarts_its_task_by_the_policy() {
    let mut serving = service("web", &["alive"]);
    let policy = CheckRestart { limit: 2, grace: Duration::from_secs(5), ignore_warnings: false };
    serving.checks[0].restart = Some(policy);
    let mut script = Script::running(allocation_of(1, job(vec![task("server")], vec![serving])));
    let failing = |script: &mut Script| {
        script.on(Event::Checked { id: "web/alive".to_owned(), health: Health::Critical, output: "no".to_owned() })
    };
    let before: Vec<Vec<Action>> = (0..13).map(|_| failing(&mut script)).collect();
    assert!(before.iter().all(Vec::is_empty), "5 s of grace and an interval of 10 s: {before:?}");
    let restart: Vec<Action> = (0..3).flat_map(|_| failing(&mut script)).collect();
    assert_eq!(restart, [kill("server")]);
    assert!(script.kinds("server").contains(&"Restart Signaled".to_owned()));
    let delay = Duration::from_secs(4);
    assert_eq!(script.ended("server", DONE), [Action::RestartAfter { task: server(), delay }], "it counts");
}

#[test]
fn tasks_that_went_down_with_the_machine_start_anew_without_counting() {
    let report = Script::running(allocation(1)).machine.report();
    let mut agent = restored(report, &Memory::default());
    let now = Timestamp::from_secs(200);
    assert_eq!(agent.on_event(now, 0.0, Event::Vanished { task: server() }), []);
    assert_eq!(agent.on_event(now, 0.0, Event::SetUp { address: None }), [start("server")]);
    assert_eq!(agent.memory().restarts["server"].ends, 0);
}

#[test]
fn a_failure_that_the_last_agent_could_not_act_on_is_acted_on() {
    let told = allocation_of(1, job(vec![task("a"), task("b")], vec![]));
    let mut last = Script::running(told.clone()).machine.report();
    let state = last.task_states.get_mut("a").expect("a task");
    (state.phase, state.failed) = (TaskPhase::Dead, true);
    let mut agent = Machine::restore(told, last, &Memory::default(), NODE, GRACE);
    let now = Timestamp::from_secs(200);
    let found = Event::Adopted { task: "b".to_owned(), started_at: now };
    assert_eq!(agent.on_event(now, 0.0, found), [kill("b")]);
}
