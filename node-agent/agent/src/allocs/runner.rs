//! One task per allocation: feeds the machine with what happens and performs what it decides.
//!
//! Dropping or killing the agent ends runners, not what they started: supervisors, namespaces and maps stay, and the next
//! start finds them.

use super::Shell;
use super::machine::{Action, Event, Expected, Machine};
use super::restart::RestartCount;
use crate::checks::{CheckResult, RunningCheck};
use crate::datapath::Place;
use crate::entropy::Jitter;
use drivers::{Directories, HandleError, Launch, Phase, StartError, TaskHandle};
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

const WAIT_RETRY: Duration = Duration::from_millis(500);
const STORE_RETRY: Duration = Duration::from_secs(1);

/// The news of an allocation, as it is to be written down.
pub struct Report {
    pub update: AllocUpdate,
    pub restarts: BTreeMap<String, RestartCount>,
    /// Told once all of it is on disk; dropped when it could not be written.
    pub stored: oneshot::Sender<()>,
}

pub fn now() -> Timestamp {
    let since = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    Timestamp(u64::try_from(since.as_nanos()).unwrap_or(u64::MAX))
}

/// The allocation's life, and where to send what the servers say of it from now on. Dropping the life lets go of everything
/// without touching it.
pub fn new(
    shell: Arc<Shell>,
    machine: Machine,
    reports: mpsc::Sender<Report>,
) -> (impl Future<Output = ()> + Send + 'static, mpsc::UnboundedSender<Allocation>) {
    let (told_to, told) = mpsc::unbounded_channel();
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
        sought: BTreeSet::new(),
        doomed: BTreeSet::new(),
        checks: BTreeMap::new(),
        check_runs: 0,
        reported: None,
        stored: None,
        reports,
        told,
        inbox,
        outbox,
        check_results,
        check_results_to,
    };
    (runner.run(), told_to)
}

enum Note {
    Event(Event),
    SetUp(Place),
    Ended { task: String, how: String },
    Found { task: String, found: Result<Option<Found>, HandleError> },
    TornDown,
}

struct Runner {
    shell: Arc<Shell>,
    machine: Machine,
    jitter: Jitter,
    place: Place,
    set_up: Option<AbortHandle>,
    work: JoinSet<()>,
    handles: BTreeMap<String, TaskHandle>,
    /// Tasks whose supervisors did not answer; and those of them that are to be killed once they do.
    sought: BTreeSet<String>,
    doomed: BTreeSet<String>,
    checks: BTreeMap<String, RunningCheck>,
    check_runs: u64,
    reported: Option<AllocUpdate>,
    /// Comes when the last report is on disk.
    stored: Option<oneshot::Receiver<()>>,
    reports: mpsc::Sender<Report>,
    told: mpsc::UnboundedReceiver<Allocation>,
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
                Some(told) = self.told.recv() => self.apply(Event::Told(Box::new(told))).await,
                Some(result) = self.check_results.recv() => self.on_check(result).await,
                Some(_) = self.work.join_next() => {}
                Some(note) = self.inbox.recv() => match note {
                    Note::Event(event) => self.apply(event).await,
                    Note::SetUp(place) => self.on_set_up(place).await,
                    Note::Ended { task, how } => self.on_ended(task, how).await,
                    Note::Found { task, found } => self.on_found(task, Expected::Running, found).await,
                    Note::TornDown => return,
                },
            }
        }
    }

    async fn apply(&mut self, event: Event) {
        let mut events = VecDeque::from([event]);
        while let Some(event) = events.pop_front() {
            tracing::debug!(alloc = %self.machine.told().id, ?event);
            let jitter = self.jitter.fraction();
            let actions = self.machine.on_event(now(), jitter, event);
            self.publish().await;
            for action in actions {
                tracing::info!(alloc = %self.machine.told().id, ?action);
                events.extend(self.perform(action).await);
            }
        }
        self.sync_checks();
    }

    /// Sends the state when it is another than before.
    async fn publish(&mut self) {
        let report = self.machine.report();
        if self.reported.as_ref() != Some(&report) {
            self.reported = Some(report);
            self.send_report().await;
        }
    }

    /// The manager is gone only when the agent ends.
    async fn send_report(&mut self) {
        let (stored, when_stored) = oneshot::channel();
        let report = Report { update: self.machine.report(), restarts: self.machine.restart_counts(), stored };
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

    async fn perform(&mut self, action: Action) -> Option<Event> {
        match action {
            Action::Start { task } => Some(self.start(task).await),
            Action::RestartAfter { task, delay } => self.later(delay, Event::RestartDue { task }),
            Action::DrainFor(grace) => self.later(grace, Event::DrainOver),
            Action::Kill { task } => self.kill(task),
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
            Ok(None) => self.apply(Event::Ended { task, how: "ended while the agent was away".to_owned() }).await,
            Err(error) => {
                tracing::warn!(alloc = %self.machine.told().id, task, error = report(&error), "a task cannot be looked at; trying again");
                self.seek(&task);
                self.apply(Event::Unanswered { task }).await;
            }
        }
    }

    async fn adopt(&mut self, task: String, found: Found) {
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
        let task = task.to_owned();
        self.background(async move {
            let how = end_of(&handle).await;
            Note::Ended { task, how }
        });
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
        self.apply(Event::SetUp { address }).await;
    }

    async fn start(&mut self, task: String) -> Event {
        match self.try_start(&task).await {
            Ok(()) => Event::Started { task },
            Err(Failure::NotStarted { reason, fatal }) => Event::StartFailed { task, reason, fatal },
            Err(Failure::Unknown(reason)) => {
                tracing::warn!(alloc = %self.machine.told().id, task, reason, "it is not known whether a task started");
                self.seek(&task);
                Event::Unanswered { task }
            }
        }
    }

    async fn try_start(&mut self, name: &str) -> Result<(), Failure> {
        let told = self.machine.told().clone();
        let task = task_of(&told, name).ok_or_else(|| Failure::fatal("the job has no such task any more"))?;
        let root = self.shell.data.alloc(told.id);
        let launch = Launch {
            node: &self.shell.node,
            alloc: &told,
            task,
            root: &root,
            netns: self.place.netns.clone(),
            address: self.place.address,
            resolver: self.place.resolver,
        };
        let driver = self.shell.driver(task.driver.name());
        let driver =
            driver.ok_or_else(|| Failure::fatal(&format!("this node has no driver {}", task.driver.name())))?;
        let spec = driver.prepare(&launch).map_err(|error| Failure::fatal(&error.to_string()))?;
        let handle = self.shell.launcher.start(&spec).await.map_err(Failure::from)?;
        self.watch(name, handle);
        Ok(())
    }

    /// The supervisor keeps the end until it is in the agent's own memory.
    async fn on_ended(&mut self, task: String, how: String) {
        let handle = self.handles.remove(&task);
        self.apply(Event::Ended { task: task.clone(), how }).await;
        self.await_stored().await;
        if let Some(handle) = handle
            && let Err(error) = handle.forget().await
        {
            tracing::warn!(alloc = %self.machine.told().id, task, error = %report(&error), "an ended task cannot be cleared away");
        }
    }

    fn kill(&mut self, task: String) -> Option<Event> {
        let Some(handle) = self.handles.get(&task).cloned() else {
            if self.sought.contains(&task) {
                self.doomed.insert(task);
                return None;
            }
            return Some(Event::Ended { task, how: "it did not run".to_owned() });
        };
        let spec = task_of(self.machine.told(), &task);
        let signal = spec.and_then(|task| task.kill_signal.clone()).unwrap_or_else(|| "SIGINT".to_owned());
        let timeout = spec.map_or(Duration::from_secs(5), |task| task.kill_timeout);
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
        let (shell, id, linger) = (Arc::clone(&self.shell), self.machine.told().id, self.linger());
        self.background(async move {
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
                self.check_runs += 1;
                let stagger = self.jitter.fraction();
                let check = RunningCheck::spawn(plan, self.check_runs, stagger, self.check_results_to.clone());
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
}

/// The task of a control directory, running or ended; `None` when nothing was ever started there, or when its end was taken
/// note of by `settled` and only the clearing away is left to do.
async fn find(control: &Path, settled: Option<Timestamp>) -> Result<Option<Found>, HandleError> {
    let Some(handle) = TaskHandle::adopt(control).await? else { return Ok(None) };
    let started_at = match handle.status().await?.phase {
        Phase::Exited(status) if settled.is_some_and(|settled| settled.0 >= status.finished_at_ns) => {
            return handle.forget().await.map(|()| None);
        }
        Phase::Running { started_at_ns, .. } => Timestamp(started_at_ns),
        Phase::Exited(status) => Timestamp(status.started_at_ns),
        Phase::Starting => now(),
    };
    Ok(Some(Found { handle, started_at }))
}

/// Why a task did not start, if it did not.
enum Failure {
    /// `fatal` when the same job would fail the same way again.
    NotStarted { reason: String, fatal: bool },
    /// There is a supervisor, which has to be asked.
    Unknown(String),
}

impl Failure {
    fn fatal(reason: &str) -> Self {
        Self::NotStarted { reason: reason.to_owned(), fatal: true }
    }
}

impl From<StartError> for Failure {
    fn from(error: StartError) -> Self {
        let reason = report(&error);
        match error {
            StartError::Occupied(_) | StartError::Handle(_) => Self::Unknown(reason),
            StartError::Spec(_) => Self::NotStarted { reason, fatal: true },
            StartError::Spawn { .. } | StartError::NotStarted(_) => Self::NotStarted { reason, fatal: false },
        }
    }
}

fn task_of<'a>(alloc: &'a Allocation, name: &str) -> Option<&'a Task> {
    alloc.task_group()?.tasks.iter().find(|task| task.name == name)
}

/// Waits however often it takes: a supervisor that cannot be asked now is asked again.
async fn end_of(handle: &TaskHandle) -> String {
    loop {
        match handle.wait().await {
            Ok(status) => return status.to_string(),
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
