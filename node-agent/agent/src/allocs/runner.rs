//! One task per allocation: feeds the machine with what happens and performs what it decides.
//!
//! Dropping or killing the agent ends runners, not what they started: supervisors, namespaces and maps stay, and the next
//! start finds them.

use super::Shell;
use super::actions::Asked;
use super::launch::{Failure, Job, wanted};
use super::machine::{Action, Event, Expected, Machine, Memory};
use super::usage::Meter;
use crate::checks::{CheckResult, RunningCheck};
use crate::datapath::Place;
use crate::entropy::Jitter;
use drivers::{Directories, HandleError, Outcome, Phase, TaskHandle};
use model::{AllocUpdate, Allocation, DesiredStatus, NetworkMode, Task, Timestamp};
use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::future::Future;
use std::path::Path;
use std::sync::Arc;
use std::time::{Duration, SystemTime, UNIX_EPOCH};
use tokio::sync::{mpsc, oneshot};
use tokio::task::{AbortHandle, JoinSet};
use tokio::time::{Instant, sleep};

/// The network of a new allocation may have to wait for the first routing push, which brings the node its address block.
const SET_UP_PATIENCE: Duration = Duration::from_secs(30);
const SET_UP_RETRY: Duration = Duration::from_millis(250);

/// Between the last task's end and the removal of its network: FINs, RSTs and the answers to them still pass.
const LINGER: Duration = Duration::from_secs(3);

const DEFAULT_KILL_TIMEOUT: Duration = Duration::from_secs(5);
const WAIT_RETRY: Duration = Duration::from_millis(500);
const STORE_RETRY: Duration = Duration::from_secs(1);

/// The news of an allocation, as it is to be written down.
pub struct Report {
    pub update: AllocUpdate,
    pub memory: Memory,
    /// Told once all of it is on disk; dropped when it could not be written.
    pub stored: oneshot::Sender<()>,
}

pub fn now() -> Timestamp {
    let since = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    Timestamp(u64::try_from(since.as_nanos()).unwrap_or(u64::MAX))
}

/// What reaches a runner from outside.
pub enum Order {
    /// What the servers say of the allocation from now on.
    Told(Box<Allocation>),
    Asked(Asked),
}

/// The allocation's life, and where to send orders. Dropping the life lets go of everything without touching it.
pub fn new(
    shell: Arc<Shell>,
    machine: Machine,
    reports: mpsc::Sender<Report>,
) -> (impl Future<Output = ()> + Send + 'static, mpsc::UnboundedSender<Order>) {
    let (orders_to, orders) = mpsc::unbounded_channel();
    let (outbox, inbox) = mpsc::channel(64);
    let (check_results_to, check_results) = mpsc::channel(64);
    let jitter = shell.jitter.fork(machine.told().id.0.as_u128());
    let runner = Runner {
        shell,
        machine,
        jitter,
        place: Place::default(),
        set_up: None,
        work: JoinSet::new(),
        handles: BTreeMap::new(),
        starting: BTreeMap::new(),
        sought: BTreeSet::new(),
        doomed: BTreeSet::new(),
        checks: BTreeMap::new(),
        meters: BTreeMap::new(),
        is_placed: false,
        templates: BTreeMap::new(),
        reported: None,
        stored: None,
        reports,
        orders,
        inbox,
        outbox,
        check_results,
        check_results_to,
    };
    (runner.run(), orders_to)
}

enum Note {
    Event(Event),
    SetUp(Place),
    Launched { task: String, launched: Result<TaskHandle, Failure> },
    Ended { task: String, how: String, success: bool },
    Found { task: String, found: Result<Option<Found>, HandleError> },
    TornDown,
}

pub(super) struct Runner {
    pub(super) shell: Arc<Shell>,
    pub(super) machine: Machine,
    jitter: Jitter,
    place: Place,
    set_up: Option<AbortHandle>,
    pub(super) work: JoinSet<()>,
    pub(super) handles: BTreeMap<String, TaskHandle>,
    /// Tasks on their way; dropping the sender gives the start up.
    starting: BTreeMap<String, oneshot::Sender<()>>,
    /// Tasks whose supervisors did not answer.
    sought: BTreeSet<String>,
    /// Tasks that are to be killed once they are there.
    doomed: BTreeSet<String>,
    pub(super) checks: BTreeMap<String, RunningCheck>,
    pub(super) meters: BTreeMap<String, Meter>,
    is_placed: bool,
    /// Those that keep a running task's templates as their data is.
    templates: BTreeMap<String, AbortHandle>,
    reported: Option<(AllocUpdate, Memory)>,
    /// Comes when the last report is on disk.
    stored: Option<oneshot::Receiver<()>>,
    reports: mpsc::Sender<Report>,
    orders: mpsc::UnboundedReceiver<Order>,
    inbox: mpsc::Receiver<Note>,
    outbox: mpsc::Sender<Note>,
    check_results: mpsc::Receiver<CheckResult>,
    check_results_to: mpsc::Sender<CheckResult>,
}

impl Runner {
    async fn run(mut self) {
        self.publish().await;
        self.find_tasks().await;
        self.begin_set_up();
        if self.machine.told().desired == DesiredStatus::Stop {
            let told = Box::new(self.machine.told().clone());
            self.apply(Event::Told(told)).await;
        }
        loop {
            tokio::select! {
                Some(order) = self.orders.recv() => match order {
                    Order::Told(told) => self.apply(Event::Told(told)).await,
                    Order::Asked(asked) => self.on_asked(asked).await,
                },
                Some(result) = self.check_results.recv() => self.on_check(result).await,
                Some(_) = self.work.join_next() => {}
                Some(note) = self.inbox.recv() => match note {
                    Note::Event(event) => self.apply(event).await,
                    Note::SetUp(place) => self.on_set_up(place).await,
                    Note::Launched { task, launched } => self.on_launched(task, launched).await,
                    Note::Ended { task, how, success } => self.on_ended(task, how, success).await,
                    Note::Found { task, found } => self.on_found(task, Expected::Running, found).await,
                    Note::TornDown => return,
                },
            }
        }
    }

    pub(super) async fn apply(&mut self, event: Event) {
        tracing::debug!(alloc = %self.machine.told().id, ?event);
        let jitter = self.jitter.fraction();
        let actions = self.machine.on_event(now(), jitter, event);
        self.follow(actions).await;
    }

    /// Performs, and takes in what that leads to at once.
    pub(super) async fn follow(&mut self, actions: Vec<Action>) {
        let mut left = VecDeque::from(actions);
        self.publish().await;
        while let Some(action) = left.pop_front() {
            tracing::info!(alloc = %self.machine.told().id, ?action);
            if let Some(event) = self.perform(action) {
                let jitter = self.jitter.fraction();
                left.extend(self.machine.on_event(now(), jitter, event));
                self.publish().await;
            }
        }
        self.sync_checks();
    }

    /// Sends the state when it is another than before.
    async fn publish(&mut self) {
        let news = (self.machine.report(), self.machine.memory());
        if self.reported.as_ref() != Some(&news) {
            self.reported = Some(news);
            self.send_report().await;
        }
    }

    /// The manager is gone only when the agent ends.
    async fn send_report(&mut self) {
        let (stored, when_stored) = oneshot::channel();
        let report = Report { update: self.machine.report(), memory: self.machine.memory(), stored };
        self.stored = self.reports.send(report).await.ok().map(|()| when_stored);
    }

    /// Until what was reported is on disk, however long that takes.
    async fn await_stored(&mut self) {
        while let Some(stored) = self.stored.take() {
            if stored.await.is_err() {
                sleep(STORE_RETRY).await;
                self.send_report().await;
            }
        }
    }

    fn perform(&mut self, action: Action) -> Option<Event> {
        match action {
            Action::Start { task } => self.start(task),
            Action::RestartAfter { task, delay } => self.later(delay, Event::RestartDue { task }),
            Action::DrainFor(grace) => self.later(grace, Event::DrainOver),
            Action::KillAfter { task, delay } => self.later(delay, Event::KillDue { task }),
            Action::Kill { task } => self.kill(task),
            Action::LimitRun(left) => self.later(left, Event::RunTimeOver),
            Action::TearDown => self.tear_down(),
        }
    }

    fn later(&mut self, delay: Duration, event: Event) -> Option<Event> {
        self.background(async move {
            sleep(delay).await;
            Note::Event(event)
        });
        None
    }

    fn background(&mut self, work: impl Future<Output = Note> + Send + 'static) -> AbortHandle {
        let outbox = self.outbox.clone();
        self.work.spawn(async move {
            let note = work.await;
            let _ = outbox.send(note).await;
        })
    }

    /// Everything of an earlier start of the agent, before anything new is begun.
    async fn find_tasks(&mut self) {
        for (task, expected) in self.machine.tasks_to_find() {
            let settled = (expected == Expected::Perhaps).then(|| self.machine.last_end(&task));
            let found = find(&self.directories(&task).control, settled).await;
            self.on_found(task, expected, found).await;
        }
    }

    /// Only the absence of a task, or an end that its supervisor wrote down, is an end; whoever does not answer is asked again.
    async fn on_found(&mut self, task: String, expected: Expected, found: Result<Option<Found>, HandleError>) {
        self.sought.remove(&task);
        match found {
            Ok(Some(found)) => self.adopt(task, found).await,
            Ok(None) if expected == Expected::Perhaps => {}
            Ok(None) if self.shell.rebooted => self.apply(Event::Vanished { task }).await,
            Ok(None) => self.on_ended(task, "ended while the agent was away".to_owned(), false).await,
            Err(error) => {
                tracing::warn!(alloc = %self.machine.told().id, task, error = report(&error), "a task cannot be looked at; trying again");
                self.seek(&task);
                self.apply(Event::Unanswered { task }).await;
            }
        }
    }

    async fn adopt(&mut self, task: String, found: Found) {
        if found.lost && self.shell.rebooted {
            let event = Event::Vanished { task: task.clone() };
            return self.apply_and_clear(event, &task, Some(found.handle)).await;
        }
        tracing::info!(alloc = %self.machine.told().id, task, "adopted a task that was there");
        self.watch(&task, found.handle);
        let doomed = self.doomed.remove(&task);
        self.apply(Event::Adopted { task: task.clone(), started_at: found.started_at }).await;
        if doomed {
            self.kill(task);
        }
    }

    fn seek(&mut self, task: &str) {
        self.sought.insert(task.to_owned());
        let (task, control) = (task.to_owned(), self.directories(task).control);
        self.background(async move {
            sleep(WAIT_RETRY).await;
            let found = find(&control, None).await;
            Note::Found { task, found }
        });
    }

    fn watch(&mut self, task: &str, handle: TaskHandle) {
        self.handles.insert(task.to_owned(), handle.clone());
        self.watch_templates(task, handle.clone());
        let task = task.to_owned();
        self.background(async move {
            let (how, success) = end_of(&handle).await;
            Note::Ended { task, how, success }
        });
    }

    /// Those adopted wait for the network: what they were rendered with has its address in it.
    fn watch_templates(&mut self, task: &str, handle: TaskHandle) {
        if !self.is_placed {
            return;
        }
        let Some(found) = task_of(self.machine.told(), task).filter(|task| !task.templates.is_empty()) else { return };
        let (wanted, sources) =
            (wanted(&self.shell, self.machine.told(), found, &self.place), self.shell.files.clone());
        let (outbox, fraction, name) = (self.outbox.clone(), self.jitter.fraction(), task.to_owned());
        let watching = self.work.spawn(async move {
            let tell = |(kind, message)| {
                let (outbox, task) = (outbox.clone(), name.clone());
                async move { drop(outbox.send(Note::Event(Event::Note { task, kind, message })).await) }
            };
            if let Some(reason) = crate::files::watch(wanted, sources, handle, fraction, tell).await {
                let _ = outbox.send(Note::Event(Event::RestartTask { task: name, reason })).await;
            }
        });
        self.templates.insert(task.to_owned(), watching);
    }

    fn begin_set_up(&mut self) {
        if self.machine.has_ended() {
            return;
        }
        let (shell, told) = (Arc::clone(&self.shell), self.machine.told().clone());
        // Tasks that run were set up once: their network is there or will be, and failing them helps nobody.
        let patience = if self.handles.is_empty() && self.sought.is_empty() { SET_UP_PATIENCE } else { Duration::MAX };
        self.set_up = Some(self.background(async move {
            match set_up(&shell, &told, patience).await {
                Ok(place) => Note::SetUp(place),
                Err(reason) => Note::Event(Event::SetUpFailed { reason }),
            }
        }));
    }

    async fn on_set_up(&mut self, place: Place) {
        let address = place.address;
        self.place = place;
        self.is_placed = true;
        for (task, handle) in self.handles.clone() {
            self.watch_templates(&task, handle);
        }
        self.apply(Event::SetUp { address }).await;
    }

    /// In the background: fetching a task's files may take minutes, and meanwhile the servers may change their mind.
    fn start(&mut self, task: String) -> Option<Event> {
        let (cancel, canceled) = oneshot::channel();
        self.starting.insert(task.clone(), cancel);
        let job = Job {
            shell: Arc::clone(&self.shell),
            told: self.machine.told().clone(),
            task: task.clone(),
            place: self.place.clone(),
        };
        let outbox = self.outbox.clone();
        self.background(async move {
            let tell = |event| {
                let outbox = outbox.clone();
                async move { drop(outbox.send(Note::Event(event)).await) }
            };
            let launched = job.run(canceled, tell).await;
            Note::Launched { task, launched }
        });
        None
    }

    async fn on_launched(&mut self, task: String, launched: Result<TaskHandle, Failure>) {
        self.starting.remove(&task);
        match launched {
            Ok(handle) => {
                self.watch(&task, handle);
                self.apply(Event::Started { task: task.clone() }).await;
                if self.doomed.remove(&task) {
                    self.kill(task);
                }
            }
            Err(Failure::Unknown(reason)) => {
                tracing::warn!(alloc = %self.machine.told().id, task, reason, "it is not known whether a task started");
                self.seek(&task);
                self.apply(Event::Unanswered { task }).await;
            }
            Err(Failure::GivenUp) => {
                self.doomed.remove(&task);
                let how = "it was stopped before it started".to_owned();
                self.apply(Event::Ended { task, how, success: false }).await;
            }
            Err(Failure::NotStarted { reason, fatal }) => {
                self.doomed.remove(&task);
                self.apply(Event::StartFailed { task, reason, fatal }).await;
            }
        }
    }

    /// The supervisor keeps the end until it is in the agent's own memory.
    async fn on_ended(&mut self, task: String, how: String, success: bool) {
        let handle = self.handles.remove(&task);
        self.meters.remove(&task);
        self.templates.remove(&task).iter().for_each(AbortHandle::abort);
        let event = Event::Ended { task: task.clone(), how, success };
        self.apply_and_clear(event, &task, handle).await;
    }

    /// What follows may start the task again, for which the supervisor that ended has to have left its place.
    async fn apply_and_clear(&mut self, event: Event, task: &str, ended: Option<TaskHandle>) {
        tracing::debug!(alloc = %self.machine.told().id, ?event);
        let jitter = self.jitter.fraction();
        let actions = self.machine.on_event(now(), jitter, event);
        self.publish().await;
        if let Some(ended) = ended {
            self.clear_away(task, ended).await;
        }
        self.follow(actions).await;
    }

    async fn clear_away(&mut self, task: &str, handle: TaskHandle) {
        self.await_stored().await;
        if let Err(error) = handle.forget().await {
            tracing::warn!(alloc = %self.machine.told().id, task, error = %report(&error), "an ended task cannot be cleared away");
        }
    }

    fn kill(&mut self, task: String) -> Option<Event> {
        let Some(handle) = self.handles.get(&task).cloned() else {
            // Whatever of its start can be given up is.
            if self.starting.remove(&task).is_some() || self.sought.contains(&task) || self.doomed.contains(&task) {
                self.doomed.insert(task);
                return None;
            }
            return Some(Event::Ended { task, how: "it did not run".to_owned(), success: false });
        };
        let (signal, timeout) = kill_policy(task_of(self.machine.told(), &task), self.shell.kill_timeout_max);
        // How it ended comes from whoever waits for it.
        self.work.spawn(async move {
            if let Err(error) = handle.kill(&signal, timeout).await {
                tracing::warn!(task, error = %report(&error), "a task could not be signalled");
            }
        });
        None
    }

    fn tear_down(&mut self) -> Option<Event> {
        self.set_up.take().iter().for_each(AbortHandle::abort);
        let (shell, told, linger) = (Arc::clone(&self.shell), self.machine.told().clone(), self.linger());
        let id = told.id;
        self.background(async move {
            crate::driver_set::release(&shell.drivers, &told).await;
            crate::files::release(&shell.data.alloc(id));
            remove_unused(&shell.data.alloc(id), &told).await;
            sleep(linger).await;
            if let Err(error) = shell.data_path.remove(id).await {
                tracing::warn!(alloc = %id, error, "the allocation's network could not be removed; the next start tries again");
            }
            Note::TornDown
        });
        None
    }

    fn linger(&self) -> Duration {
        if self.place.address.is_some() { LINGER } else { Duration::ZERO }
    }

    fn sync_checks(&mut self) {
        let wanted: BTreeMap<_, _> =
            self.machine.checks_wanted().into_iter().map(|plan| (plan.id.clone(), plan)).collect();
        self.checks.retain(|id, running| wanted.get(id) == Some(&running.plan));
        for (id, plan) in wanted {
            if !self.checks.contains_key(&id) {
                let stagger = self.jitter.fraction();
                let scripts = plan.task.as_ref().and_then(|task| self.handles.get(task)).cloned();
                let check = self.shell.checks.watch(plan, scripts, stagger, self.check_results_to.clone());
                self.checks.insert(id, check);
            }
        }
    }

    async fn on_check(&mut self, result: CheckResult) {
        let current = self.checks.get(&result.id).is_some_and(|check| check.run == result.run);
        if current {
            let CheckResult { id, verdict, .. } = result;
            self.apply(Event::Checked { id, health: verdict.health, output: verdict.output }).await;
        }
    }

    fn directories(&self, task: &str) -> Directories {
        Directories::under(&self.shell.data.alloc(self.machine.told().id), task)
    }
}

/// A task with a supervisor.
struct Found {
    handle: TaskHandle,
    started_at: Timestamp,
    /// Its supervisor did not live to see its end.
    lost: bool,
}

/// The task of a control directory, running or ended; `None` when nothing was ever started there, or when its end was taken
/// note of by `settled` and only the clearing away is left to do.
async fn find(control: &Path, settled: Option<Timestamp>) -> Result<Option<Found>, HandleError> {
    let Some(handle) = TaskHandle::adopt(control).await? else { return Ok(None) };
    let mut lost = false;
    let started_at = match handle.status().await?.phase {
        Phase::Exited(status) if settled.is_some_and(|settled| settled.0 >= status.finished_at_ns) => {
            return handle.forget().await.map(|()| None);
        }
        Phase::Running { started_at_ns, .. } => Timestamp(started_at_ns),
        Phase::Exited(status) => {
            lost = matches!(status.outcome, Outcome::Lost(_));
            Timestamp(status.started_at_ns)
        }
        Phase::Starting => now(),
    };
    Ok(Some(Found { handle, started_at, lost }))
}

/// An agent that dies between making a task's place and writing down what is to run there leaves an empty one.
async fn remove_unused(root: &Path, told: &Allocation) {
    for task in told.task_group().into_iter().flat_map(|group| &group.tasks) {
        let control = Directories::under(root, &task.name).control;
        if control.is_dir() && matches!(TaskHandle::adopt(&control).await, Ok(None)) {
            let _ = std::fs::remove_dir_all(control);
        }
    }
}

/// The task's own wishes, the driver's custom and the node's limit.
fn kill_policy(task: Option<&Task>, timeout_max: Duration) -> (String, Duration) {
    let Some(task) = task else { return ("SIGINT".to_owned(), DEFAULT_KILL_TIMEOUT) };
    let custom = if matches!(task.driver.name(), "docker" | "podman") { "SIGTERM" } else { "SIGINT" };
    let signal = task.kill_signal.clone().unwrap_or_else(|| custom.to_owned());
    (signal, task.kill_timeout.min(timeout_max))
}

pub(super) fn task_of<'a>(alloc: &'a Allocation, name: &str) -> Option<&'a Task> {
    alloc.task_group()?.tasks.iter().find(|task| task.name == name)
}

/// Waits however often it takes: a supervisor that cannot be asked now is asked again.
async fn end_of(handle: &TaskHandle) -> (String, bool) {
    loop {
        match handle.wait().await {
            Ok(status) => return (status.to_string(), status.success()),
            Err(error) => {
                tracing::warn!(control = %handle.control().display(), error = %report(&error), "waiting for a task")
            }
        }
        sleep(WAIT_RETRY).await;
    }
}

async fn set_up(shell: &Shell, told: &Allocation, patience: Duration) -> Result<Place, String> {
    make_root(&shell.data.alloc(told.id)).map_err(|error| format!("its directory cannot be made: {error}"))?;
    let bridged = told.task_group().is_some_and(|group| group.network_mode() == NetworkMode::Bridge);
    if !bridged {
        return Ok(Place::default());
    }
    let began = Instant::now();
    loop {
        match shell.data_path.create(told.id, told.ports.clone()).await {
            Ok(place) => return Ok(place),
            Err(reason) if began.elapsed() >= patience => return Err(reason),
            Err(reason) => tracing::info!(alloc = %told.id, reason, "no network yet"),
        }
        sleep(SET_UP_RETRY).await;
    }
}

/// Tasks of other users pass through it to their own directories but cannot list it.
fn make_root(root: &Path) -> std::io::Result<()> {
    use std::os::unix::fs::DirBuilderExt;
    std::fs::DirBuilder::new().recursive(true).mode(0o711).create(root)
}

/// An error with its causes on one line.
pub fn report(error: &dyn std::error::Error) -> String {
    let mut text = error.to_string();
    let mut cause = error.source();
    while let Some(inner) = cause {
        text = format!("{text}: {inner}");
        cause = inner.source();
    }
    text
}
