//! The life of one allocation as a value: events in, actions out, and the report that the servers get.
//!
//! ```text
//!  SettingUp --SetUp--> Running --desired stop--> Draining --grace over--> Killing --all dead--> poststop --> Ended
//!      |                   |  a task fails for good, the leader or the main work ends --^  |
//!      +--SetUpFailed------+----------------------------------------------------------^    | a restart of the whole
//!                          ^---------------------------------------------------------------+
//! ```
//! Events only change what is known; [`Machine::advance`] looks at the whole and decides what follows, so that an allocation
//! that an earlier start of the agent left half way goes on from there. No clock and no randomness here: `now` and the
//! jitter are arguments. The shell (`runner`) performs the actions.

use super::health::CheckRun;
use super::lifecycle::Role;
use super::restart::{RestartCount, RestartTracker, Verdict};
use model::{
    AllocUpdate, Allocation, Check, CheckKind, ClientStatus, DesiredStatus, Health, NetworkMode, Service, Task,
    TaskEvent, TaskGroup, TaskPhase, TaskState, Timestamp,
};
use std::collections::BTreeMap;
use std::net::{IpAddr, SocketAddr};
use std::time::Duration;

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
        success: bool,
    },
    /// It ended with the machine it ran on, through no fault of its own.
    Vanished {
        task: String,
    },
    RestartDue {
        task: String,
    },
    /// A task's delay before its kill signal is over.
    KillDue {
        task: String,
    },
    /// The servers ask for something else than before.
    Told(Box<Allocation>),
    DrainOver,
    /// It ran for as long as its group may.
    RunTimeOver,
    Checked {
        id: String,
        health: Health,
        output: String,
    },
    /// A running task is to start anew, without counting as a failure.
    RestartTask {
        task: String,
        reason: String,
    },
    /// What the shell did, for the task's history.
    Note {
        task: String,
        kind: &'static str,
        message: String,
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
    KillAfter {
        task: String,
        delay: Duration,
    },
    Kill {
        task: String,
    },
    LimitRun(Duration),
    /// Every task is dead: the network may go once its last packets have left.
    TearDown,
}

/// What people ask of a running allocation.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum RestartWish {
    Task(String),
    /// Every task that runs now.
    Running,
    /// The whole allocation, prestart tasks included.
    All,
}

/// A check that is to run now, and whereto.
#[derive(Clone, Debug, PartialEq)]
pub struct CheckPlan {
    pub id: String,
    pub check: Check,
    /// `None` for those that ask no address: scripts and ttl.
    pub target: Option<SocketAddr>,
    /// The task that a script runs in.
    pub task: Option<String>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Expected {
    Running,
    /// The agent may have died between starting the task and writing that down.
    Perhaps,
}

/// What the next start of the agent has to know beside the report.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Memory {
    /// Per task what the restart policy has counted.
    pub restarts: BTreeMap<String, RestartCount>,
    /// When it was first set up; never before that.
    pub running_since: Timestamp,
    /// All tasks are being ended in order to start anew.
    pub restarting: bool,
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
enum SetUp {
    Pending,
    Done,
    Failed,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Live {
    /// To be started once its turn comes.
    Idle,
    /// It may run, as an earlier start of the agent said or a mute supervisor lets suppose; not yet found.
    Unseen,
    Starting,
    Running,
    /// Waits for its restart.
    Backoff,
    Dead,
}

/// Why a task that is being ended is to start anew.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Again {
    /// Somebody asked for it.
    Asked,
    /// It failed its checks: the restart policy has its say.
    Unhealthy,
}

/// What all tasks end for.
#[derive(Clone, Debug)]
struct Ending {
    /// As the events of tasks tell it.
    kind: &'static str,
    reason: String,
    /// Main tasks that are ended by it have failed.
    failed: bool,
    restart: bool,
}

#[derive(Clone, Debug)]
struct TaskRun {
    role: Role,
    leader: bool,
    shutdown_delay: Duration,
    state: TaskState,
    restarts: RestartTracker,
    live: Live,
    /// The next start is a restart.
    again: bool,
    /// It is being ended.
    killing: bool,
    wanted: Option<Again>,
}

#[derive(Clone, Debug)]
pub struct Machine {
    told: Allocation,
    node_address: IpAddr,
    drain_grace: Duration,
    stage: Stage,
    set_up: SetUp,
    ending: Option<Ending>,
    running_since: Timestamp,
    address: Option<IpAddr>,
    description: String,
    tasks: BTreeMap<String, TaskRun>,
    checks: BTreeMap<String, CheckRun>,
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
        memory: &Memory,
        node_address: IpAddr,
        drain_grace: Duration,
    ) -> Self {
        let mut machine = Self::empty(told, node_address, drain_grace);
        machine.address = last.address;
        machine.description = last.client_description;
        machine.checks = last.checks.into_iter().map(|(id, state)| (id, CheckRun::restore(state))).collect();
        machine.running_since = memory.running_since;
        for (name, state) in last.task_states {
            if let Some(run) = machine.tasks.get_mut(&name) {
                run.live = restored_liveness(state.phase);
                run.again = state.events.last().is_some_and(|event| event.kind == "Restarting");
                run.state = state;
                run.restarts.restore(memory.restarts.get(&name).copied().unwrap_or_default());
            }
        }
        if last.client.is_terminal() {
            machine.stage = Stage::Ended;
        } else if memory.restarting {
            machine.stage = Stage::Killing;
            machine.ending = Some(Ending::restart("the restart goes on"));
        }
        machine
    }

    fn empty(told: Allocation, node_address: IpAddr, drain_grace: Duration) -> Self {
        let tasks = told.task_group().into_iter();
        let tasks =
            tasks.flat_map(|group| group.tasks.iter().map(|task| (task.name.clone(), TaskRun::of(group, task))));
        Self {
            node_address,
            drain_grace,
            stage: Stage::SettingUp,
            set_up: SetUp::Pending,
            ending: None,
            running_since: Timestamp::NEVER,
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
        let mut actions = match event {
            Event::SetUp { address } => self.on_set_up(now, address),
            Event::SetUpFailed { reason } => self.on_set_up_failed(now, &reason),
            Event::Adopted { task, started_at } => self.on_adopted(&task, started_at),
            Event::Unanswered { task } => self.on_unanswered(&task),
            Event::Started { task } => self.on_started(now, &task),
            Event::StartFailed { task, reason, fatal } => self.on_start_failed(now, jitter, &task, &reason, fatal),
            Event::Ended { task, how, success } => self.on_ended(now, jitter, &task, &how, success),
            Event::Vanished { task } => self.on_vanished(now, jitter, &task),
            Event::RestartDue { task } => self.on_restart_due(now, &task),
            Event::KillDue { task } => self.on_kill_due(&task),
            Event::Told(told) => self.on_told(now, *told),
            Event::DrainOver => self.on_drain_over(now),
            Event::RunTimeOver => self.on_run_time_over(now),
            Event::Checked { id, health, output } => self.on_checked(now, &id, health, output),
            Event::RestartTask { task, reason } => self.restart_running(now, &task, Again::Asked, &reason),
            Event::Note { task, kind, message } => self.on_note(now, &task, kind, &message),
        };
        actions.extend(self.advance(now));
        self.refresh_checks(now);
        actions
    }

    /// A restart that somebody asked for; the answer says why it cannot be.
    pub fn request_restart(&mut self, now: Timestamp, wish: &RestartWish) -> Result<Vec<Action>, String> {
        match self.stage {
            Stage::Running => {}
            Stage::SettingUp => return Err("the allocation is still being set up".to_owned()),
            Stage::Draining | Stage::Killing => return Err("the allocation is stopping or restarting".to_owned()),
            Stage::Ended => return Err("the allocation has ended".to_owned()),
        }
        let runs = |run: &TaskRun| run.live == Live::Running || run.live == Live::Unseen;
        let running: Vec<String> =
            self.tasks.iter().filter(|(_, run)| runs(run)).map(|(name, _)| name.clone()).collect();
        let chosen = match wish {
            RestartWish::All => {
                let ending = Ending::restart("User requested all tasks to restart");
                let mut actions = self.end_all(now, ending);
                actions.extend(self.advance(now));
                self.refresh_checks(now);
                return Ok(actions);
            }
            RestartWish::Running if running.is_empty() => return Err("no task of the allocation runs".to_owned()),
            RestartWish::Running => running,
            RestartWish::Task(name) if !self.tasks.contains_key(name) => {
                return Err(format!("the allocation has no task {name}"));
            }
            RestartWish::Task(name) if !running.contains(name) => return Err(format!("task {name} does not run")),
            RestartWish::Task(name) => vec![name.clone()],
        };
        let reason = "User requested task to restart";
        let actions = chosen.iter().flat_map(|task| self.restart_running(now, task, Again::Asked, reason)).collect();
        self.refresh_checks(now);
        Ok(actions)
    }

    /// The whole state, as the servers take it.
    pub fn report(&self) -> AllocUpdate {
        AllocUpdate {
            alloc_id: self.told.id,
            client: self.client_status(),
            client_description: self.description.clone(),
            task_states: self.tasks.iter().map(|(name, run)| (name.clone(), run.state.clone())).collect(),
            address: self.address,
            checks: self.checks.iter().map(|(id, run)| (id.clone(), run.state.clone())).collect(),
        }
    }

    pub fn memory(&self) -> Memory {
        Memory {
            restarts: self.tasks.iter().map(|(name, run)| (name.clone(), run.restarts.count())).collect(),
            running_since: self.running_since,
            restarting: self.ending.as_ref().is_some_and(|ending| ending.restart),
        }
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

    /// What follows from the state as it is now.
    fn advance(&mut self, now: Timestamp) -> Vec<Action> {
        match self.stage {
            Stage::SettingUp | Stage::Running => match self.reason_to_end() {
                Some(ending) => {
                    let mut actions = self.end_all(now, ending);
                    actions.extend(self.advance(now));
                    actions
                }
                None if self.stage == Stage::Running => self.start_idle(now),
                None => Vec::new(),
            },
            Stage::Draining if self.work().all(|run| !run.occupies_node()) => self.on_drain_over(now),
            Stage::Draining | Stage::Ended => Vec::new(),
            Stage::Killing => self.wind_down(now),
        }
    }

    /// One task that fails for good takes its siblings along, and so does the end of the leader or of the main work.
    fn reason_to_end(&self) -> Option<Ending> {
        let named = |wanted: &dyn Fn(&TaskRun) -> bool| {
            self.tasks.iter().find(|(_, run)| run.role != Role::Poststop && wanted(run)).map(|(name, _)| name)
        };
        let dead = |run: &TaskRun| run.live == Live::Dead;
        if let Some(name) = named(&|run| dead(run) && run.state.failed) {
            return Some(Ending::of("Sibling Task Failed", format!("Task's sibling {name} failed")));
        }
        if let Some(name) = named(&|run| dead(run) && run.leader) {
            return Some(Ending::of("Leader Task Dead", format!("Leader task {name} is dead")));
        }
        let mut main = self.work().filter(|run| run.role == Role::Main).peekable();
        let over = main.peek().is_some() && main.all(dead);
        let finishing =
            self.work().any(|run| run.role == Role::Poststart && !matches!(run.live, Live::Idle | Live::Dead));
        (over && !finishing).then(|| Ending::of("Main Tasks Dead", "All main tasks are over".to_owned()))
    }

    /// Starts what waits for nothing any more.
    fn start_idle(&mut self, now: Timestamp) -> Vec<Action> {
        let up = |run: &TaskRun| matches!(run.live, Live::Running | Live::Unseen);
        let prepared = self.work().all(|run| match run.role {
            Role::Prestart => run.live == Live::Dead,
            Role::PrestartSidecar => up(run),
            _ => true,
        });
        let begun = self.work().filter(|run| run.role == Role::Main).all(|run| up(run) || run.has_started());
        let turn = |role: Role| match role {
            Role::Prestart | Role::PrestartSidecar => true,
            Role::Main => prepared,
            Role::Poststart | Role::PoststartSidecar => prepared && begun,
            Role::Poststop => false,
        };
        let idle = self.tasks.iter().filter(|(_, run)| run.live == Live::Idle && turn(run.role));
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
            run.killing = false;
            run.wanted = None;
            run.restarts.begin();
            if std::mem::take(&mut run.again) {
                run.state.restarts = run.state.restarts.saturating_add(1);
                run.state.last_restart = now;
            }
            run.note(now, "Task Setup", "Building the task's directory");
        }
        Action::Start { task: task.to_owned() }
    }

    fn on_set_up(&mut self, now: Timestamp, address: Option<IpAddr>) -> Vec<Action> {
        self.address = address.or(self.address);
        self.set_up = SetUp::Done;
        if self.stage != Stage::SettingUp {
            return Vec::new();
        }
        self.stage = Stage::Running;
        if self.running_since == Timestamp::NEVER {
            self.running_since = now;
        }
        let limit = self.told.task_group().and_then(|group| group.max_run_duration);
        let left = limit.map(|limit| limit.saturating_sub(now.since(self.running_since)));
        left.map(Action::LimitRun).into_iter().collect()
    }

    fn on_set_up_failed(&mut self, now: Timestamp, reason: &str) -> Vec<Action> {
        self.set_up = SetUp::Failed;
        if self.stage != Stage::SettingUp {
            return Vec::new();
        }
        self.description = format!("could not be set up: {reason}");
        for run in self.tasks.values_mut().filter(|run| !run.occupies_node() && run.live != Live::Dead) {
            run.note(now, "Setup Failure", reason);
            run.die(now, Outcome::Failed);
        }
        let ending = Ending::of("Sibling Task Failed", "the allocation could not be set up".to_owned());
        self.end_all(now, ending)
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
        if fatal && !self.rests(task) {
            self.fail(now, task, reason);
            return Vec::new();
        }
        self.after_end(now, jitter, task, false)
    }

    fn on_ended(&mut self, now: Timestamp, jitter: f64, task: &str, how: &str, success: bool) -> Vec<Action> {
        let Some(run) = self.tasks.get_mut(task).filter(|run| run.live != Live::Dead) else { return Vec::new() };
        run.state.finished_at = now;
        run.note(now, "Terminated", how);
        self.after_end(now, jitter, task, success)
    }

    fn on_vanished(&mut self, now: Timestamp, jitter: f64, task: &str) -> Vec<Action> {
        if let Some(run) = self.tasks.get_mut(task) {
            run.wanted = Some(Again::Asked);
        }
        self.on_ended(now, jitter, task, "the machine was started anew", false)
    }

    /// Whether a task that ends now is not to start again, because all are being ended.
    fn rests(&self, task: &str) -> bool {
        let ending = !matches!(self.stage, Stage::SettingUp | Stage::Running);
        ending && self.tasks.get(task).is_some_and(|run| run.role != Role::Poststop)
    }

    /// Restarts, fails, completes or, when everything is to end anyway, lets the task rest.
    fn after_end(&mut self, now: Timestamp, jitter: f64, task: &str, success: bool) -> Vec<Action> {
        let (kind, rests) = (self.told.job.kind, self.rests(task));
        let failed = self.ending.as_ref().is_some_and(|ending| ending.failed);
        let Some(run) = self.tasks.get_mut(task) else { return Vec::new() };
        if rests {
            run.rest(now, failed);
            return Vec::new();
        }
        run.killing = false;
        match run.wanted.take() {
            Some(Again::Asked) => {
                run.again = true;
                run.live = Live::Idle;
                run.state.phase = TaskPhase::Pending;
                run.note(now, "Restarting", "Task restarting at once: it was asked for");
                return Vec::new();
            }
            Some(Again::Unhealthy) => {}
            None if success && !run.role.restarts_after_success(kind) => {
                run.die(now, Outcome::Done);
                return Vec::new();
            }
            None => {}
        }
        match run.restarts.on_end(now, jitter) {
            Verdict::Restart { after, reason } => {
                run.back_off(now, after, &reason);
                vec![Action::RestartAfter { task: task.to_owned(), delay: after }]
            }
            Verdict::Fail { reason } => {
                run.note(now, "Not Restarting", &reason);
                self.fail(now, task, &reason);
                Vec::new()
            }
        }
    }

    fn fail(&mut self, now: Timestamp, task: &str, reason: &str) {
        if let Some(run) = self.tasks.get_mut(task) {
            run.die(now, Outcome::Failed);
        }
        self.description = format!("task {task} failed: {reason}");
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
        if let Some(group) = self.told.task_group() {
            for task in &group.tasks {
                if let Some(run) = self.tasks.get_mut(&task.name) {
                    run.restarts.set_policy(group.restart_of(task));
                    run.shutdown_delay = task.shutdown_delay;
                }
            }
        }
        if self.told.desired != DesiredStatus::Stop {
            return Vec::new();
        }
        if let Some(ending) = &mut self.ending {
            ending.restart = false;
        }
        if matches!(self.stage, Stage::SettingUp | Stage::Running) { self.drain(now) } else { Vec::new() }
    }

    fn drain(&mut self, now: Timestamp) -> Vec<Action> {
        self.stage = Stage::Draining;
        self.description = self.told.desired_description.clone();
        let group = self.told.task_group();
        let serves = group.is_some_and(|group| group.all_services().next().is_some());
        let delay = group.map_or(Duration::ZERO, |group| group.shutdown_delay);
        let wait = if serves { delay.max(self.drain_grace) } else { delay };
        let running: Vec<&mut TaskRun> = self.tasks.values_mut().filter(|run| run.live == Live::Running).collect();
        if running.is_empty() || wait.is_zero() {
            return self.on_drain_over(now);
        }
        if !delay.is_zero() {
            let text = format!("Waiting for the group's shutdown_delay of {delay:?} before killing the task");
            running.into_iter().for_each(|run| run.note(now, "Waiting for shutdown delay", &text));
        }
        vec![Action::DrainFor(wait)]
    }

    fn on_drain_over(&mut self, now: Timestamp) -> Vec<Action> {
        if self.stage != Stage::Draining {
            return Vec::new();
        }
        let mut actions = self.end_all(now, Ending::of("", "the allocation is to stop".to_owned()));
        actions.extend(self.advance(now));
        actions
    }

    fn on_run_time_over(&mut self, now: Timestamp) -> Vec<Action> {
        let limit = self.told.task_group().and_then(|group| group.max_run_duration);
        let live = matches!(self.stage, Stage::SettingUp | Stage::Running | Stage::Draining);
        let Some(limit) = limit.filter(|_| live) else { return Vec::new() };
        let reason = format!("the allocation ran for its max_run_duration of {limit:?}");
        self.description.clone_from(&reason);
        self.end_all(now, Ending { failed: true, ..Ending::of("Max Run Duration Exceeded", reason) })
    }

    /// Every task is to end; which one when is decided by [`Machine::wind_down`].
    fn end_all(&mut self, now: Timestamp, ending: Ending) -> Vec<Action> {
        self.stage = Stage::Killing;
        for run in self.tasks.values_mut().filter(|run| run.live != Live::Dead && run.role != Role::Poststop) {
            if !ending.kind.is_empty() {
                run.note(now, ending.kind, &ending.reason);
            }
            if !run.occupies_node() {
                let outcome = if ending.failed && run.role == Role::Main { Outcome::Failed } else { Outcome::Stopped };
                run.die(now, outcome);
            }
        }
        if self.description.is_empty() && ending.kind == "Main Tasks Dead" {
            self.description = "All tasks have completed".to_owned();
        }
        self.ending = Some(ending);
        Vec::new()
    }

    /// The next wave of tasks to end; behind the last one the poststop tasks, a new start of all, or the end.
    fn wind_down(&mut self, now: Timestamp) -> Vec<Action> {
        let wave = |run: &TaskRun| run.role.stop_wave(run.leader);
        if let Some(current) = self.work().filter(|run| run.live != Live::Dead).map(wave).min() {
            let reason = self.ending.as_ref().map(|ending| ending.reason.clone()).unwrap_or_default();
            let in_wave = |run: &TaskRun| run.role != Role::Poststop && run.occupies_node() && wave(run) == current;
            let doomed: Vec<String> =
                self.tasks.iter().filter(|(_, run)| in_wave(run)).map(|(name, _)| name.clone()).collect();
            return doomed.iter().filter_map(|task| self.kill(now, task, &reason)).collect();
        }
        if self.ending.as_ref().is_some_and(|ending| ending.restart) {
            return self.start_over(now);
        }
        self.run_poststop(now)
    }

    fn start_over(&mut self, now: Timestamp) -> Vec<Action> {
        self.ending = None;
        for run in self.tasks.values_mut() {
            run.reset(now);
        }
        self.stage = if self.set_up == SetUp::Done { Stage::Running } else { Stage::SettingUp };
        self.advance(now)
    }

    fn run_poststop(&mut self, now: Timestamp) -> Vec<Action> {
        let began = self.work().any(TaskRun::has_started);
        let idle = |run: &TaskRun| run.role == Role::Poststop && run.live == Live::Idle;
        let waiting: Vec<String> =
            self.tasks.iter().filter(|(_, run)| idle(run)).map(|(name, _)| name.clone()).collect();
        let mut actions = Vec::new();
        for task in waiting {
            match self.set_up {
                SetUp::Done if began => actions.push(self.start_when_due(now, &task)),
                SetUp::Pending if began => {}
                // Nothing was done that could be cleaned up, or there is no place to do it in.
                _ => self.tasks.values_mut().filter(|run| idle(run)).for_each(|run| run.die(now, Outcome::Stopped)),
            }
        }
        if self.tasks.values().all(|run| run.live == Live::Dead) {
            self.stage = Stage::Ended;
            actions.push(Action::TearDown);
        }
        actions
    }

    /// Signals a task once its own delay is over; one that does not serve yet at once.
    fn kill(&mut self, now: Timestamp, task: &str, reason: &str) -> Option<Action> {
        let run = self.tasks.get_mut(task).filter(|run| !run.killing)?;
        run.killing = true;
        let delay = run.shutdown_delay;
        if run.live != Live::Starting && !delay.is_zero() {
            let text = format!("Waiting for shutdown_delay of {delay:?} before killing the task");
            run.note(now, "Waiting for shutdown delay", &text);
            return Some(Action::KillAfter { task: task.to_owned(), delay });
        }
        run.note(now, "Killing", &format!("Sent kill signal: {reason}"));
        Some(Action::Kill { task: task.to_owned() })
    }

    fn on_kill_due(&mut self, task: &str) -> Vec<Action> {
        let doomed = self.tasks.get(task).is_some_and(|run| run.killing && run.occupies_node());
        doomed.then(|| Action::Kill { task: task.to_owned() }).into_iter().collect()
    }

    fn restart_running(&mut self, now: Timestamp, task: &str, why: Again, reason: &str) -> Vec<Action> {
        let running = self.stage == Stage::Running;
        let run = self.tasks.get_mut(task).filter(|run| running && run.occupies_node() && !run.killing);
        let Some(run) = run else { return Vec::new() };
        run.wanted = Some(why);
        run.note(now, "Restart Signaled", reason);
        self.kill(now, task, reason).into_iter().collect()
    }

    fn on_note(&mut self, now: Timestamp, task: &str, kind: &str, message: &str) -> Vec<Action> {
        if let Some(run) = self.tasks.get_mut(task) {
            run.note(now, kind, message);
        }
        Vec::new()
    }

    fn on_checked(&mut self, now: Timestamp, id: &str, health: Health, output: String) -> Vec<Action> {
        if !self.checks_wanted().iter().any(|plan| plan.id == id) {
            return Vec::new();
        }
        let Some((check, tasks)) = self.scope_of(id) else { return Vec::new() };
        let started = tasks.iter().filter_map(|task| self.tasks.get(task)).map(|run| run.state.started_at).max();
        let Some(run) = self.checks.get_mut(id) else { return Vec::new() };
        run.on_result(&check, now, health, output);
        let Some(failed_for) = run.wants_restart(&check, now, started.unwrap_or_default()) else { return Vec::new() };
        let reason = format!("check {:?} unhealthy for {:.0}s", check.name, failed_for.as_secs_f64());
        tasks.iter().flat_map(|task| self.restart_running(now, task, Again::Unhealthy, &reason)).collect()
    }

    /// A check, and the tasks that its failure restarts: its own, its service's, or all main tasks of the group.
    fn scope_of(&self, id: &str) -> Option<(Check, Vec<String>)> {
        let scoped = self.scoped_checks().into_iter().find(|scoped| scoped.id() == id)?;
        let tasks = match scoped.check.task.as_deref().or(scoped.task) {
            Some(task) => vec![task.to_owned()],
            None => self.tasks.iter().filter(|(_, run)| run.role == Role::Main).map(|(name, _)| name.clone()).collect(),
        };
        Some((scoped.check.clone(), tasks))
    }

    fn refresh_checks(&mut self, now: Timestamp) {
        let scoped = self.scoped_checks();
        let wanted: BTreeMap<String, (Check, bool)> = scoped
            .iter()
            .map(|scoped| (scoped.id(), (scoped.check.clone(), self.is_scope_running(scoped.task))))
            .collect();
        self.checks.retain(|id, _| wanted.contains_key(id));
        for (id, (check, runs)) in wanted {
            let run = self.checks.entry(id).or_insert_with(|| CheckRun::new(&check, runs, now));
            run.refresh(&check, runs, now);
        }
    }

    fn scoped_checks(&self) -> Vec<ScopedCheck<'_>> {
        self.told.task_group().map(scoped_checks).unwrap_or_default()
    }

    /// A group's service needs every main task and what runs beside them from the start, a task's service its own.
    fn is_scope_running(&self, task: Option<&str>) -> bool {
        let serves = |run: &TaskRun| matches!(run.role, Role::Main | Role::PrestartSidecar);
        let mut runs = self.tasks.iter().filter(|(name, run)| match task {
            Some(task) => task == name.as_str(),
            None => serves(run),
        });
        runs.all(|(_, run)| matches!(run.live, Live::Running | Live::Unseen))
    }

    fn plan(&self, scoped: &ScopedCheck<'_>) -> Option<CheckPlan> {
        let (id, check) = (scoped.id(), scoped.check.clone());
        let task = check.task.clone().or_else(|| scoped.task.map(str::to_owned));
        let target = match check.kind {
            CheckKind::Script { .. } | CheckKind::Ttl => None,
            _ => Some(self.target(scoped)?),
        };
        Some(CheckPlan { id, check, target, task })
    }

    fn target(&self, scoped: &ScopedCheck<'_>) -> Option<SocketAddr> {
        let label = scoped.check.port_label.as_ref().or(scoped.service.port_label.as_ref())?;
        let port = self.told.port(label)?;
        let bridged = self.told.task_group().is_some_and(|group| group.network_mode() == NetworkMode::Bridge);
        match (bridged, self.address) {
            (true, Some(address)) => Some(SocketAddr::new(address, port.to)),
            (true, None) => None,
            (false, _) => Some(SocketAddr::new(self.node_address, port.host_port)),
        }
    }

    /// Pending until all main tasks have started: while only what prepares them runs, nothing is there yet.
    fn client_status(&self) -> ClientStatus {
        let status = client_status(self.tasks.values().map(|run| &run.state));
        let begins = matches!(self.stage, Stage::SettingUp | Stage::Running);
        let begun = self.work().filter(|run| run.role == Role::Main).all(TaskRun::has_started);
        if status == ClientStatus::Running && begins && !begun { ClientStatus::Pending } else { status }
    }

    /// All tasks but those that clean up behind them.
    fn work(&self) -> impl Iterator<Item = &TaskRun> {
        self.tasks.values().filter(|run| run.role != Role::Poststop)
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
        self.check.id(&self.service.name)
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

impl Ending {
    fn of(kind: &'static str, reason: String) -> Self {
        Self { kind, reason, failed: false, restart: false }
    }

    fn restart(reason: &str) -> Self {
        Self { restart: true, ..Self::of("Restart Signaled", reason.to_owned()) }
    }
}

enum Outcome {
    Failed,
    Stopped,
    Done,
}

impl TaskRun {
    fn of(group: &TaskGroup, task: &Task) -> Self {
        Self {
            role: Role::of(task),
            leader: task.leader,
            shutdown_delay: task.shutdown_delay,
            state: TaskState::default(),
            restarts: RestartTracker::new(group.restart_of(task)),
            live: Live::Idle,
            again: false,
            killing: false,
            wanted: None,
        }
    }

    fn note(&mut self, at: Timestamp, kind: &str, message: &str) {
        self.state.push_event(TaskEvent { at, kind: kind.to_owned(), message: message.to_owned() });
    }

    /// Whether there is, or may be, a process.
    fn occupies_node(&self) -> bool {
        matches!(self.live, Live::Starting | Live::Running | Live::Unseen)
    }

    fn has_started(&self) -> bool {
        self.state.started_at != Timestamp::NEVER
    }

    fn back_off(&mut self, now: Timestamp, after: Duration, reason: &str) {
        self.live = Live::Backoff;
        self.again = true;
        self.state.phase = TaskPhase::Pending;
        self.note(now, "Restarting", &format!("Task restarting in {:.1}s: {reason}", after.as_secs_f64()));
    }

    /// It ended while all tasks are being ended.
    fn rest(&mut self, now: Timestamp, failed: bool) {
        if self.killing {
            self.note(now, "Killed", "Task successfully killed");
        }
        let outcome = if failed && self.role == Role::Main { Outcome::Failed } else { Outcome::Stopped };
        self.die(now, outcome);
    }

    fn die(&mut self, now: Timestamp, outcome: Outcome) {
        self.live = Live::Dead;
        self.killing = false;
        self.wanted = None;
        self.state.phase = TaskPhase::Dead;
        self.state.failed = matches!(outcome, Outcome::Failed);
        self.state.finished_at = now;
    }

    fn reset(&mut self, now: Timestamp) {
        if self.role == Role::Poststop && self.live == Live::Idle {
            return;
        }
        self.again = self.has_started();
        self.live = Live::Idle;
        self.killing = false;
        self.wanted = None;
        self.state.phase = TaskPhase::Pending;
        self.state.failed = false;
        self.state.started_at = Timestamp::NEVER;
        self.note(now, "Restarting", "Task restarting at once: the whole allocation does");
    }
}

#[cfg(test)]
#[path = "machine_tests.rs"]
mod tests;
