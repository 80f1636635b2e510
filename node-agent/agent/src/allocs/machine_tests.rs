use super::*;
use crate::allocs::fixtures::{allocation, allocation_of, job, service, task};
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
        self.on(Event::Ended { task: task.to_owned(), how: how.to_owned() })
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

fn restored(last: AllocUpdate, restarts: &BTreeMap<String, RestartCount>) -> Machine {
    Machine::restore(allocation(1), last, restarts, NODE, GRACE)
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
    let mut restored = restored(report.clone(), &BTreeMap::new());
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
    let mut restored = restored(report, &BTreeMap::new());
    let now = Timestamp::from_secs(200);
    let actions = restored.on_event(now, 0.0, Event::Ended { task: server(), how: KILLED.to_owned() });
    assert!(matches!(actions[..], [Action::RestartAfter { .. }]));
    assert_eq!(restored.on_event(now, 0.0, Event::RestartDue { task: server() }), [], "set-up is not done");
    let actions = restored.on_event(now, 0.0, Event::SetUp { address: None });
    assert_eq!(actions, [Action::Start { task: server() }]);
}

#[test]
fn a_restart_that_was_due_when_the_agent_ended_counts() {
    let mut script = Script::running(allocation(1));
    script.ended("server", KILLED);
    let mut restored = restored(script.machine.report(), &script.machine.restart_counts());
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
    let mut agent = restored(script.machine.report(), &script.machine.restart_counts());
    let soon = Duration::from_millis(1);
    let actions = agent.on_event(ended_at.plus(soon), 0.0, Event::SetUp { address: None });
    assert_eq!(actions, [Action::RestartAfter { task: server(), delay: delay - soon }]);
    let due = ended_at.plus(delay);
    assert_eq!(agent.on_event(due, 0.0, Event::RestartDue { task: server() }), [Action::Start { task: server() }]);
    assert_eq!(agent.restart_counts()["server"].due, Timestamp::NEVER);

    let attempts = allocation(1).task_group().expect("a group").restart.attempts;
    for end in 2..=attempts + 1 {
        agent.on_event(due, 0.0, Event::Started { task: server() });
        let counts = agent.restart_counts();
        agent = restored(agent.report(), &counts);
        let how = KILLED.to_owned();
        let actions = agent.on_event(due, 0.0, Event::Ended { task: server(), how });
        assert_eq!(actions == [Action::TearDown], end > attempts, "end {end} of {attempts} restarts: {actions:?}");
    }
}

#[test]
fn a_task_that_does_not_answer_is_neither_started_nor_given_up() {
    for (report, since) in
        [(Script::running(allocation(1)).machine.report(), 102), (Script::of(allocation(1)).machine.report(), 150)]
    {
        let mut agent = restored(report, &BTreeMap::new());
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
    assert_eq!((plans[0].id.as_str(), plans[0].target), ("web/alive", SocketAddr::new(NODE, 20_001)));
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
    assert_eq!(result(Health::Passing, &"ä".repeat(4096)).output.len(), CHECK_OUTPUT_BYTES_MAX);
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
