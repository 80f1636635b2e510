//! The life of one allocation as a value: events in, actions out, and the report that the servers get.
//!
//! ```text
//!  SettingUp --SetUp--> Running --desired stop--> Draining --grace over--> Killing --all dead--> Ended
//!      |                   |  a task fails for good ------------------------^
//!      +--SetUpFailed------+---------------------------------------------------------------> Ended
//! ```
//! No clock and no randomness here: `now` and the jitter are arguments. The shell (`runner`) performs the actions.

use super::restart::{RestartCount, RestartTracker, Verdict};
use model::{
    AllocUpdate, Allocation, Check, CheckState, ClientStatus, DesiredStatus, Health, NetworkMode, Service, TaskEvent,
    TaskGroup, TaskPhase, TaskState, Timestamp,
};
use std::collections::BTreeMap;
use std::net::{IpAddr, SocketAddr};
use std::time::Duration;

/// A check's output never takes more than this of a report.
pub const CHECK_OUTPUT_BYTES_MAX: usize = 4096;

const NO_RESULT_YET: &str = "no result yet";
const NOT_RUNNING: &str = "not all tasks of the service are running";

#[derive(Clone, Debug, PartialEq)]
pub enum Event {
    /// Directories and network stand; `address` is the allocation's own in network mode bridge.
    SetUp {
        address: Option<IpAddr>,
    },
    SetUpFailed {
        reason: String,
    },
    /// A task that an earlier run of the agent started is still there.
    Adopted {
        task: String,
        started_at: Timestamp,
    },
    /// There is a supervisor that does not answer now: the task may run, and is not to be started beside itself.
    Unanswered {
        task: String,
    },
    Started {
        task: String,
    },
    /// `fatal` when trying again cannot help, such as a command that does not exist.
    StartFailed {
        task: String,
        reason: String,
        fatal: bool,
    },
    /// `how` is the driver's account of the end.
    Ended {
        task: String,
        how: String,
    },
    RestartDue {
        task: String,
    },
    /// The servers ask for something else than before.
    Told(Box<Allocation>),
    DrainOver,
    Checked {
        id: String,
        health: Health,
        output: String,
    },
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Action {
    Start {
        task: String,
    },
    RestartAfter {
        task: String,
        delay: Duration,
    },
    /// Time for the rings of all nodes to leave this allocation out before its tasks are signalled.
    DrainFor(Duration),
    Kill {
        task: String,
    },
    /// Every task is dead: the network may go once its last packets have left.
    TearDown,
}

/// A check that is to run now, and whereto.
#[derive(Clone, Debug, PartialEq)]
pub struct CheckPlan {
    pub id: String,
    pub check: Check,
    pub target: SocketAddr,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Expected {
    Running,
    /// The agent may have died between starting the task and writing that down.
    Perhaps,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Stage {
    SettingUp,
    Running,
    Draining,
    Killing,
    Ended,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Live {
    /// To be started once everything is set up.
    Idle,
    /// It may run, as an earlier start of the agent said or a mute supervisor lets suppose; not yet found.
    Unseen,
    Starting,
    Running,
    /// Waits for its restart.
    Backoff,
    Dead,
}

#[derive(Clone, Debug)]
struct TaskRun {
    state: TaskState,
    restarts: RestartTracker,
    live: Live,
    /// The next start is a restart.
    again: bool,
}

#[derive(Clone, Debug)]
pub struct Machine {
    told: Allocation,
    node_address: IpAddr,
    drain_grace: Duration,
    stage: Stage,
    address: Option<IpAddr>,
    description: String,
    tasks: BTreeMap<String, TaskRun>,
    checks: BTreeMap<String, CheckState>,
}

impl Machine {
    /// An allocation that is new on this node.
    pub fn new(told: Allocation, node_address: IpAddr, drain_grace: Duration, now: Timestamp) -> Self {
        let mut machine = Self::empty(told, node_address, drain_grace);
        for run in machine.tasks.values_mut() {
            run.note(now, "Received", "Task received by the node");
        }
        machine.refresh_checks(now);
        machine
    }

    /// An allocation that an earlier start of the agent reported like this.
    pub fn restore(
        told: Allocation,
        last: AllocUpdate,
        restarts: &BTreeMap<String, RestartCount>,
        node_address: IpAddr,
        drain_grace: Duration,
    ) -> Self {
        let mut machine = Self::empty(told, node_address, drain_grace);
        machine.address = last.address;
        machine.description = last.client_description;
        machine.checks = last.checks;
        for (name, state) in last.task_states {
            if let Some(run) = machine.tasks.get_mut(&name) {
                run.live = restored_liveness(state.phase);
                run.again = state.events.last().is_some_and(|event| event.kind == "Restarting");
                run.state = state;
                run.restarts.restore(restarts.get(&name).copied().unwrap_or_default());
            }
        }
        if last.client.is_terminal() {
            machine.stage = Stage::Ended;
        }
        machine
    }

    fn empty(told: Allocation, node_address: IpAddr, drain_grace: Duration) -> Self {
        let fresh = |policy| TaskRun {
            state: TaskState::default(),
            restarts: RestartTracker::new(policy),
            live: Live::Idle,
            again: false,
        };
        let tasks = told.task_group().into_iter();
        let tasks = tasks.flat_map(|group| group.tasks.iter().map(|task| (task.name.clone(), fresh(group.restart))));
        Self {
            node_address,
            drain_grace,
            stage: Stage::SettingUp,
            address: None,
            description: String::new(),
            tasks: tasks.collect(),
            checks: BTreeMap::new(),
            told,
        }
    }

    pub fn told(&self) -> &Allocation {
        &self.told
    }

    pub fn has_ended(&self) -> bool {
        self.stage == Stage::Ended
    }

    /// Tasks that an earlier start of the agent may have left behind, and whether it said that they run.
    pub fn tasks_to_find(&self) -> Vec<(String, Expected)> {
        let expected = |run: &TaskRun| match run.live {
            Live::Dead => None,
            Live::Unseen => Some(Expected::Running),
            _ => Some(Expected::Perhaps),
        };
        self.tasks.iter().filter_map(|(name, run)| Some((name.clone(), expected(run)?))).collect()
    }

    /// `jitter` in 0.0..1.0 spreads restarts.
    pub fn on_event(&mut self, now: Timestamp, jitter: f64, event: Event) -> Vec<Action> {
        let actions = match event {
            Event::SetUp { address } => self.on_set_up(now, address),
            Event::SetUpFailed { reason } => self.on_set_up_failed(now, &reason),
            Event::Adopted { task, started_at } => self.on_adopted(&task, started_at),
            Event::Unanswered { task } => self.on_unanswered(&task),
            Event::Started { task } => self.on_started(now, &task),
            Event::StartFailed { task, reason, fatal } => self.on_start_failed(now, jitter, &task, &reason, fatal),
            Event::Ended { task, how } => self.on_ended(now, jitter, &task, &how),
            Event::RestartDue { task } => self.on_restart_due(now, &task),
            Event::Told(told) => self.on_told(now, *told),
            Event::DrainOver => self.on_drain_over(now),
            Event::Checked { id, health, output } => self.on_checked(now, &id, health, output),
        };
        self.refresh_checks(now);
        actions
    }

    /// The whole state, as the servers take it.
    pub fn report(&self) -> AllocUpdate {
        AllocUpdate {
            alloc_id: self.told.id,
            client: self.client_status(),
            client_description: self.description.clone(),
            task_states: self.tasks.iter().map(|(name, run)| (name.clone(), run.state.clone())).collect(),
            address: self.address,
            checks: self.checks.clone(),
        }
    }

    /// What the restart policy has counted, for the next start of the agent.
    pub fn restart_counts(&self) -> BTreeMap<String, RestartCount> {
        self.tasks.iter().map(|(name, run)| (name.clone(), run.restarts.count())).collect()
    }

    /// The last end of the task that was taken note of.
    pub fn last_end(&self, task: &str) -> Timestamp {
        self.tasks.get(task).map_or(Timestamp::NEVER, |run| run.state.finished_at)
    }

    /// Checks run while the tasks they watch run, and not once the allocation is to stop.
    pub fn checks_wanted(&self) -> Vec<CheckPlan> {
        if self.stage != Stage::Running {
            return Vec::new();
        }
        let running = self.scoped_checks().into_iter().filter(|scoped| self.is_scope_running(scoped.task));
        running.filter_map(|scoped| self.plan(&scoped)).collect()
    }

    fn on_set_up(&mut self, now: Timestamp, address: Option<IpAddr>) -> Vec<Action> {
        self.address = address.or(self.address);
        if self.stage != Stage::SettingUp {
            return Vec::new();
        }
        self.stage = Stage::Running;
        let idle = self.tasks.iter().filter(|(_, run)| run.live == Live::Idle);
        let idle: Vec<String> = idle.map(|(name, _)| name.clone()).collect();
        idle.iter().map(|task| self.start_when_due(now, task)).collect()
    }

    /// A restart that an earlier start of the agent put off is put off still.
    fn start_when_due(&mut self, now: Timestamp, task: &str) -> Action {
        let waiting = self.tasks.get_mut(task).and_then(|run| Some((run.restarts.remaining(now)?, run)));
        match waiting {
            Some((delay, run)) => {
                run.live = Live::Backoff;
                Action::RestartAfter { task: task.to_owned(), delay }
            }
            None => self.start(now, task),
        }
    }

    fn start(&mut self, now: Timestamp, task: &str) -> Action {
        if let Some(run) = self.tasks.get_mut(task) {
            run.live = Live::Starting;
            run.restarts.begin();
            if std::mem::take(&mut run.again) {
                run.state.restarts = run.state.restarts.saturating_add(1);
                run.state.last_restart = now;
            }
            run.note(now, "Task Setup", "Building the task's directory");
        }
        Action::Start { task: task.to_owned() }
    }

    fn on_set_up_failed(&mut self, now: Timestamp, reason: &str) -> Vec<Action> {
        if self.stage != Stage::SettingUp {
            return Vec::new();
        }
        self.description = format!("could not be set up: {reason}");
        for run in self.tasks.values_mut().filter(|run| !run.occupies_node()) {
            run.note(now, "Setup Failure", reason);
            run.die(now, Outcome::Failed);
        }
        self.kill_all(now, "the allocation could not be set up")
    }

    fn on_adopted(&mut self, task: &str, started_at: Timestamp) -> Vec<Action> {
        if let Some(run) = self.tasks.get_mut(task) {
            if run.state.phase != TaskPhase::Running {
                run.state.phase = TaskPhase::Running;
                run.state.started_at = started_at;
            }
            run.live = Live::Running;
        }
        Vec::new()
    }

    fn on_unanswered(&mut self, task: &str) -> Vec<Action> {
        if let Some(run) = self.tasks.get_mut(task).filter(|run| run.live != Live::Dead) {
            run.live = Live::Unseen;
        }
        Vec::new()
    }

    fn on_started(&mut self, now: Timestamp, task: &str) -> Vec<Action> {
        if let Some(run) = self.tasks.get_mut(task) {
            run.live = Live::Running;
            run.state.phase = TaskPhase::Running;
            run.state.started_at = now;
            run.note(now, "Started", "Task started by the node");
        }
        Vec::new()
    }

    fn on_start_failed(&mut self, now: Timestamp, jitter: f64, task: &str, reason: &str, fatal: bool) -> Vec<Action> {
        let Some(run) = self.tasks.get_mut(task) else { return Vec::new() };
        run.note(now, "Driver Failure", reason);
        if fatal {
            return self.fail(now, task, reason);
        }
        self.after_end(now, jitter, task)
    }

    fn on_ended(&mut self, now: Timestamp, jitter: f64, task: &str, how: &str) -> Vec<Action> {
        let Some(run) = self.tasks.get_mut(task).filter(|run| run.live != Live::Dead) else { return Vec::new() };
        run.state.finished_at = now;
        run.note(now, "Terminated", how);
        self.after_end(now, jitter, task)
    }

    /// Restarts, fails or, when everything is to end anyway, lets the task rest.
    fn after_end(&mut self, now: Timestamp, jitter: f64, task: &str) -> Vec<Action> {
        if !matches!(self.stage, Stage::SettingUp | Stage::Running) {
            return self.on_killed(now, task);
        }
        let Some(run) = self.tasks.get_mut(task) else { return Vec::new() };
        match run.restarts.on_end(now, jitter) {
            Verdict::Restart { after, reason } => {
                run.back_off(now, after, &reason);
                vec![Action::RestartAfter { task: task.to_owned(), delay: after }]
            }
            Verdict::Fail { reason } => {
                run.note(now, "Not Restarting", &reason);
                self.fail(now, task, &reason)
            }
        }
    }

    fn on_killed(&mut self, now: Timestamp, task: &str) -> Vec<Action> {
        if let Some(run) = self.tasks.get_mut(task) {
            if self.stage == Stage::Killing {
                run.note(now, "Killed", "Task successfully killed");
            }
            run.die(now, Outcome::Stopped);
        }
        self.tear_down_if_dead()
    }

    /// One task that fails for good takes its siblings along.
    fn fail(&mut self, now: Timestamp, task: &str, reason: &str) -> Vec<Action> {
        if let Some(run) = self.tasks.get_mut(task) {
            run.die(now, Outcome::Failed);
        }
        self.description = format!("task {task} failed: {reason}");
        for run in self.tasks.values_mut().filter(|run| run.live != Live::Dead) {
            run.note(now, "Sibling Task Failed", &format!("Task's sibling {task} failed"));
        }
        self.kill_all(now, "a sibling task failed")
    }

    fn on_restart_due(&mut self, now: Timestamp, task: &str) -> Vec<Action> {
        let stage = self.stage;
        let Some(run) = self.tasks.get_mut(task).filter(|run| run.live == Live::Backoff) else { return Vec::new() };
        run.restarts.begin();
        if stage == Stage::SettingUp {
            run.live = Live::Idle;
            return Vec::new();
        }
        vec![self.start(now, task)]
    }

    fn on_told(&mut self, now: Timestamp, told: Allocation) -> Vec<Action> {
        self.told = told;
        let policy = self.told.task_group().map(|group| group.restart);
        for run in self.tasks.values_mut() {
            policy.into_iter().for_each(|policy| run.restarts.set_policy(policy));
        }
        let to_stop = self.told.desired == DesiredStatus::Stop;
        if to_stop && matches!(self.stage, Stage::SettingUp | Stage::Running) { self.drain(now) } else { Vec::new() }
    }

    fn drain(&mut self, now: Timestamp) -> Vec<Action> {
        self.stage = Stage::Draining;
        self.description = self.told.desired_description.clone();
        let serves = self.told.task_group().is_some_and(|group| group.all_services().next().is_some());
        let runs = self.tasks.values().any(|run| run.live == Live::Running);
        if serves && runs { vec![Action::DrainFor(self.drain_grace)] } else { self.on_drain_over(now) }
    }

    fn on_drain_over(&mut self, now: Timestamp) -> Vec<Action> {
        if self.stage != Stage::Draining {
            return Vec::new();
        }
        self.kill_all(now, "the allocation is to stop")
    }

    fn kill_all(&mut self, now: Timestamp, reason: &str) -> Vec<Action> {
        self.stage = Stage::Killing;
        let mut kills = Vec::new();
        for (name, run) in &mut self.tasks {
            if run.occupies_node() {
                run.note(now, "Killing", &format!("Sent kill signal: {reason}"));
                kills.push(Action::Kill { task: name.clone() });
            } else if run.live != Live::Dead {
                run.die(now, Outcome::Stopped);
            }
        }
        kills.extend(self.tear_down_if_dead());
        kills
    }

    fn tear_down_if_dead(&mut self) -> Vec<Action> {
        if self.stage == Stage::Ended || self.tasks.values().any(|run| run.live != Live::Dead) {
            return Vec::new();
        }
        self.stage = Stage::Ended;
        vec![Action::TearDown]
    }

    fn on_checked(&mut self, now: Timestamp, id: &str, health: Health, mut output: String) -> Vec<Action> {
        let awaited = self.checks_wanted().iter().any(|plan| plan.id == id);
        let Some(state) = self.checks.get_mut(id).filter(|_| awaited) else { return Vec::new() };
        if state.health != health || state.output == NO_RESULT_YET {
            output.truncate(output.floor_char_boundary(CHECK_OUTPUT_BYTES_MAX));
            *state = CheckState { health, output, changed_at: now };
        }
        Vec::new()
    }

    /// A check whose tasks do not all run is critical at once: its instance has to leave the maps before the next probe.
    fn refresh_checks(&mut self, now: Timestamp) {
        let scoped = self.scoped_checks();
        let wanted: BTreeMap<String, bool> =
            scoped.iter().map(|scoped| (scoped.id(), self.is_scope_running(scoped.task))).collect();
        self.checks.retain(|id, _| wanted.contains_key(id));
        for (id, runs) in wanted {
            let text = if runs { NO_RESULT_YET } else { NOT_RUNNING };
            let fresh = CheckState { health: Health::Critical, output: text.to_owned(), changed_at: now };
            let state = self.checks.entry(id).or_insert_with(|| fresh.clone());
            let restarted = runs && state.output == NOT_RUNNING;
            let stopped = !runs && state.output != NOT_RUNNING;
            if restarted || stopped {
                *state = fresh;
            }
        }
    }

    fn scoped_checks(&self) -> Vec<ScopedCheck<'_>> {
        self.told.task_group().map(scoped_checks).unwrap_or_default()
    }

    /// A group's service needs every task, a task's service its own.
    fn is_scope_running(&self, task: Option<&str>) -> bool {
        let mut runs = self.tasks.iter().filter(|(name, _)| task.is_none_or(|task| task == name.as_str()));
        runs.all(|(_, run)| run.live == Live::Running || run.live == Live::Unseen)
    }

    fn plan(&self, scoped: &ScopedCheck<'_>) -> Option<CheckPlan> {
        let label = scoped.check.port_label.as_ref().or(scoped.service.port_label.as_ref())?;
        let port = self.told.port(label)?;
        let bridged = self.told.task_group().is_some_and(|group| group.network_mode() == NetworkMode::Bridge);
        let target = match (bridged, self.address) {
            (true, Some(address)) => SocketAddr::new(address, port.to),
            (true, None) => return None,
            (false, _) => SocketAddr::new(self.node_address, port.host_port),
        };
        Some(CheckPlan { id: scoped.id(), check: scoped.check.clone(), target })
    }

    fn client_status(&self) -> ClientStatus {
        client_status(self.tasks.values().map(|run| &run.state))
    }
}

/// As Nomad derives it, but for one thing: an allocation is terminal only when every task is dead, because until then it holds
/// ports and memory of the node.
pub fn client_status<'a>(tasks: impl Iterator<Item = &'a TaskState> + Clone) -> ClientStatus {
    let all_dead = tasks.clone().all(|state| state.phase == TaskPhase::Dead);
    let failed = tasks.clone().any(|state| state.failed) || tasks.clone().next().is_none();
    let runs = tasks.clone().any(|state| state.phase == TaskPhase::Running);
    match (all_dead, failed, runs) {
        (true, true, _) => ClientStatus::Failed,
        (true, false, _) => ClientStatus::Complete,
        (false, false, true) => ClientStatus::Running,
        (false, ..) => ClientStatus::Pending,
    }
}

fn restored_liveness(phase: TaskPhase) -> Live {
    match phase {
        TaskPhase::Pending => Live::Idle,
        TaskPhase::Running => Live::Unseen,
        TaskPhase::Dead => Live::Dead,
    }
}

struct ScopedCheck<'a> {
    /// `None` for a service of the whole group.
    task: Option<&'a str>,
    service: &'a Service,
    check: &'a Check,
}

impl ScopedCheck<'_> {
    fn id(&self) -> String {
        format!("{}/{}", self.service.name, self.check.name)
    }
}

fn scoped_checks(group: &TaskGroup) -> Vec<ScopedCheck<'_>> {
    let of_group = group.services.iter().map(|service| (None, service));
    let of_tasks =
        group.tasks.iter().flat_map(|task| task.services.iter().map(|service| (Some(task.name.as_str()), service)));
    let checks = |(task, service): (Option<_>, _)| {
        let service: &Service = service;
        service.checks.iter().map(move |check| ScopedCheck { task, service, check })
    };
    of_group.chain(of_tasks).flat_map(checks).collect()
}

enum Outcome {
    Failed,
    Stopped,
}

impl TaskRun {
    fn note(&mut self, at: Timestamp, kind: &str, message: &str) {
        self.state.push_event(TaskEvent { at, kind: kind.to_owned(), message: message.to_owned() });
    }

    /// Whether there is, or may be, a process.
    fn occupies_node(&self) -> bool {
        matches!(self.live, Live::Starting | Live::Running | Live::Unseen)
    }

    fn back_off(&mut self, now: Timestamp, after: Duration, reason: &str) {
        self.live = Live::Backoff;
        self.again = true;
        self.state.phase = TaskPhase::Pending;
        self.note(now, "Restarting", &format!("Task restarting in {:.1}s: {reason}", after.as_secs_f64()));
    }

    fn die(&mut self, now: Timestamp, outcome: Outcome) {
        self.live = Live::Dead;
        self.state.phase = TaskPhase::Dead;
        self.state.failed = matches!(outcome, Outcome::Failed);
        self.state.finished_at = now;
    }
}

#[cfg(test)]
#[path = "machine_tests.rs"]
mod tests;
