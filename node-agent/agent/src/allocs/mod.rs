//! The node's allocations. One task (the manager) owns the table of them; one per allocation (`runner`) owns its life.
//!
//! ```text
//!  session --push(generation, all)--> manager --told--> runner --Launch--> supervisor
//!  session <--watch of all reports--- manager <-report-  runner <--ends---
//! ```

mod actions;
#[cfg(test)]
pub mod fixtures;
mod health;
mod launch;
mod leaks;
mod lifecycle;
mod machine;
mod reconcile;
mod restart;
mod runner;
mod usage;

pub use health::CHECK_OUTPUT_BYTES_MAX;
pub use machine::{CheckPlan, Memory};
pub use restart::RestartCount;
pub use runner::{now, report};

use crate::checks::CheckPool;
use crate::datadir::DataDir;
use crate::datapath::DataPath;
use crate::entropy::Jitter;
use crate::files::Sources;
use crate::store::{KeptAlloc, Store, StoreError};
use actions::Asked;
use drivers::{Driver, Launcher};
use machine::Machine;
use model::{AllocId, AllocUpdate, Allocation, ClientStatus, DesiredStatus, Generation, Node, TaskPhase, TaskState};
use reconcile::{Action, Held};
use runner::{Order, Report};
use std::collections::{BTreeMap, BTreeSet};
use std::path::PathBuf;
use std::sync::Arc;
use std::time::{Duration, SystemTime};
use tokio::sync::{Semaphore, mpsc, oneshot, watch};
use tokio::task::JoinSet;
use tokio::time::{Instant, MissedTickBehavior, interval};
use wire::actions::{AllocAction, AllocAnswer, AllocRefusal, AllocRequest};

/// How often what nobody owns is looked for.
const LEAK_CHECK_EVERY: Duration = Duration::from_secs(60);
/// How often it is looked at whether the servers have been away for too long.
const CONTACT_CHECK_EVERY: Duration = Duration::from_secs(1);
/// Tasks that start at the same time; each start forks and waits for a disk.
const LAUNCHES_MAX: usize = 32;

/// Directories of ended allocations that are kept for their logs, newest first.
const ENDED_KEPT_MAX: usize = 50;

/// What runners act with.
pub struct Shell {
    pub node: Node,
    pub data: DataDir,
    pub launcher: Launcher,
    pub drivers: Vec<Box<dyn Driver>>,
    pub data_path: Arc<dyn DataPath>,
    pub drain_grace: Duration,
    /// No task gets longer from its kill signal to SIGKILL, whatever its job says.
    pub kill_timeout_max: Duration,
    pub jitter: Jitter,
    pub checks: CheckPool,
    pub launches: Arc<Semaphore>,
    /// What templates and artifacts are made of.
    pub files: Sources,
    /// The machine was started anew since this agent ran last: what it ran is gone through no fault of its own.
    pub rebooted: bool,
}

impl Shell {
    pub fn launches() -> Arc<Semaphore> {
        Arc::new(Semaphore::new(LAUNCHES_MAX))
    }

    pub fn driver(&self, name: &str) -> Option<&dyn Driver> {
        self.drivers.iter().find(|driver| driver.name() == name).map(|driver| &**driver)
    }
}

/// The newest report of every allocation the node has.
pub type Reports = Arc<BTreeMap<AllocId, Arc<AllocUpdate>>>;

/// May tell the node's allocations what the servers want, and read what became of them.
#[derive(Clone)]
pub struct Allocs {
    pushes: mpsc::Sender<Push>,
    asks: mpsc::Sender<(AllocId, Asked)>,
    contact: watch::Sender<bool>,
    reports: watch::Receiver<Reports>,
    /// Manager and runners end with the last clone of this.
    _work: Arc<JoinSet<()>>,
}

struct Push {
    generation: Generation,
    allocs: Vec<Allocation>,
}

impl Allocs {
    /// Takes over what an earlier start left: adopts its tasks and removes networks that nobody needs.
    pub async fn start(shell: Shell, store: Store) -> Result<Self, StoreError> {
        let kept = blocking(&store, |store| store.allocs()).await?;
        let (pushes_to, pushes) = mpsc::channel(4);
        let (asks_to, asks) = mpsc::channel(64);
        let (contact_to, contact) = watch::channel(false);
        let (reports_to, reports_from) = mpsc::channel(256);
        let (published, reports) = watch::channel(Reports::default());
        let shell = Arc::new(shell);
        let mut manager = Manager {
            shell,
            store,
            entries: BTreeMap::new(),
            generation: Generation(0),
            published,
            pushes,
            asks,
            contact,
            contact_lost_at: Instant::now(),
            reports_from,
            reports_to,
            runners: JoinSet::new(),
        };
        manager.take_over(kept).await;
        let mut work = JoinSet::new();
        work.spawn(manager.run());
        Ok(Self { pushes: pushes_to, asks: asks_to, contact: contact_to, reports, _work: Arc::new(work) })
    }

    /// All allocations of the node as the servers see them at `generation`; older generations are refused.
    pub async fn push(&self, generation: Generation, allocs: Vec<Allocation>) {
        let _ = self.pushes.send(Push { generation, allocs }).await;
    }

    pub fn reports(&self) -> watch::Receiver<Reports> {
        self.reports.clone()
    }

    /// Whether this node has a session with a server now; groups may have asked to be stopped when it has none for long.
    pub fn set_contact(&self, connected: bool) {
        self.contact.send_replace(connected);
    }

    pub async fn ask(&self, request: AllocRequest) -> AllocAnswer {
        let AllocRequest { alloc_id, action } = request;
        self.put(alloc_id, |reply| Asked::Action { action, reply }).await?
    }

    /// The supervisor of the named task, or of the only one that runs.
    pub async fn task(&self, alloc_id: AllocId, task: Option<String>) -> Result<drivers::TaskHandle, AllocRefusal> {
        self.put(alloc_id, |reply| Asked::Handle { task, reply }).await?
    }

    async fn put<T>(&self, id: AllocId, ask: impl FnOnce(oneshot::Sender<T>) -> Asked) -> Result<T, AllocRefusal> {
        let (reply, answer) = oneshot::channel();
        let gone = || AllocRefusal::not_found(format!("allocation {id} is not on this node, or has ended"));
        self.asks.send((id, ask(reply))).await.map_err(|_| gone())?;
        answer.await.map_err(|_| gone())
    }
}

struct Entry {
    held: Held,
    report: Arc<AllocUpdate>,
    /// `None` for what had ended before this start of the agent.
    runner: Option<mpsc::UnboundedSender<Order>>,
    /// The servers do not know it: nobody waits for the news of its end.
    unlisted: bool,
}

struct Manager {
    shell: Arc<Shell>,
    store: Store,
    entries: BTreeMap<AllocId, Entry>,
    generation: Generation,
    published: watch::Sender<Reports>,
    pushes: mpsc::Receiver<Push>,
    asks: mpsc::Receiver<(AllocId, Asked)>,
    contact: watch::Receiver<bool>,
    contact_lost_at: Instant,
    reports_from: mpsc::Receiver<Report>,
    reports_to: mpsc::Sender<Report>,
    runners: JoinSet<()>,
}

impl Manager {
    async fn run(mut self) {
        let mut batch = Vec::new();
        let mut leak_checks = every(LEAK_CHECK_EVERY);
        let mut contact_checks = every(CONTACT_CHECK_EVERY);
        loop {
            tokio::select! {
                Some(push) = self.pushes.recv() => self.on_push(push).await,
                Some((id, asked)) = self.asks.recv() => {
                    self.on_asked(id, asked).await;
                    continue;
                }
                Some(_) = self.runners.join_next() => continue,
                _ = leak_checks.tick() => {
                    self.clear_leaks().await;
                    continue;
                }
                _ = contact_checks.tick() => self.stop_disconnected().await,
                count = self.reports_from.recv_many(&mut batch, 64) => match count {
                    0 => return,
                    _ => self.on_reports(std::mem::take(&mut batch)).await,
                },
                else => return,
            }
            self.publish();
        }
    }

    async fn on_asked(&mut self, id: AllocId, asked: Asked) {
        let entry = self.entries.get(&id);
        match (entry.filter(|entry| !entry.held.ended).and_then(|entry| entry.runner.as_ref()), asked) {
            (Some(runner), asked) => drop(runner.send(Order::Asked(asked))),
            (None, Asked::Action { action: AllocAction::CollectGarbage, reply }) => {
                let _ = reply.send(self.collect_garbage(id).await);
            }
            // Dropping the question answers it.
            (None, _) => {}
        }
    }

    async fn collect_garbage(&self, id: AllocId) -> AllocAnswer {
        let directory = self.shell.data.alloc(id);
        let removed = tokio::task::spawn_blocking(move || std::fs::remove_dir_all(directory)).await;
        match removed.map_err(std::io::Error::other).flatten() {
            Err(error) if error.kind() != std::io::ErrorKind::NotFound => {
                Err(AllocRefusal::failed(format!("its directory cannot be removed: {error}")))
            }
            Err(_) if !self.entries.contains_key(&id) => {
                Err(AllocRefusal::not_found(format!("allocation {id} is not on this node")))
            }
            _ => Ok(Vec::new()),
        }
    }

    /// Removes what no allocation of this node owns, and says so.
    async fn clear_leaks(&self) {
        // One that has ended may still be clearing up behind itself.
        let lives =
            |entry: &Entry| !entry.held.ended || entry.runner.as_ref().is_some_and(|runner| !runner.is_closed());
        let living = self.entries.iter().filter(|(_, entry)| lives(entry)).map(|(id, _)| *id).collect();
        let known = self.entries.keys().copied().collect();
        for line in leaks::clear(&self.shell, &known, &living).await {
            tracing::warn!(line, "removed what no allocation owns");
        }
    }

    /// Groups that are not to run unwatched stop by themselves when no server was reached for as long as they say.
    async fn stop_disconnected(&mut self) {
        if *self.contact.borrow_and_update() {
            self.contact_lost_at = Instant::now();
            return;
        }
        let away = self.contact_lost_at.elapsed();
        let overdue = |entry: &Entry| {
            let limit = entry.held.told.task_group().and_then(|group| group.disconnect.stop_on_client_after);
            let runs = !entry.held.ended && entry.held.told.desired == DesiredStatus::Run;
            runs && limit.is_some_and(|limit| away >= limit)
        };
        let due: Vec<Allocation> =
            self.entries.values().filter(|entry| overdue(entry)).map(|entry| entry.held.told.clone()).collect();
        for mut told in due {
            told.desired = DesiredStatus::Stop;
            told.desired_description = "the node reached no server for stop_on_client_after".to_owned();
            self.tell(told).await;
        }
    }

    async fn take_over(&mut self, kept: BTreeMap<AllocId, KeptAlloc>) {
        for (id, kept) in kept {
            let ended = kept.reported.as_ref().is_some_and(|report| report.client.is_terminal());
            let machine = self.machine(&kept);
            let report = Arc::new(machine.report());
            let runner = (!ended).then(|| self.run_machine(machine));
            let held = Held { told: kept.told, ended };
            self.entries.insert(id, Entry { held, report, runner, unlisted: false });
        }
        self.publish();
        self.clear_leaks().await;
        self.clear_directories().await;
    }

    fn run_machine(&mut self, machine: Machine) -> mpsc::UnboundedSender<Order> {
        let (life, told) = runner::new(Arc::clone(&self.shell), machine, self.reports_to.clone());
        self.runners.spawn(life);
        told
    }

    fn machine(&self, kept: &KeptAlloc) -> Machine {
        let (told, address, grace) = (kept.told.clone(), self.shell.node.address, self.shell.drain_grace);
        match kept.reported.clone() {
            Some(last) => Machine::restore(told, last, &kept.memory, address, grace),
            None => Machine::new(told, address, grace, now()),
        }
    }

    async fn on_push(&mut self, push: Push) {
        if push.generation < self.generation {
            tracing::warn!(held = %self.generation, refused = %push.generation, "refused an older state from a server");
            return;
        }
        self.generation = push.generation;
        let held = self.entries.iter().map(|(id, entry)| (*id, entry.held.clone())).collect();
        for action in reconcile::decide(&held, &push.allocs) {
            self.perform(action).await;
        }
    }

    async fn perform(&mut self, action: Action) {
        match action {
            Action::Start(alloc) => self.start(alloc).await,
            Action::Update(alloc) => self.tell(alloc).await,
            Action::Stop(id) => self.stop_unlisted(id).await,
            Action::Disown(alloc) => self.disown(alloc),
            Action::Forget(id) => self.forget(id).await,
        }
    }

    /// Written down before anything of it exists, so that nothing can run that a later start does not know.
    async fn start(&mut self, alloc: Allocation) {
        tracing::info!(alloc = %alloc.id, name = alloc.name(), "starting an allocation");
        if !self.keep_told(&alloc).await {
            return;
        }
        let machine = Machine::new(alloc.clone(), self.shell.node.address, self.shell.drain_grace, now());
        let report = Arc::new(machine.report());
        let runner = self.run_machine(machine);
        let held = Held { told: alloc.clone(), ended: false };
        self.entries.insert(alloc.id, Entry { held, report, runner: Some(runner), unlisted: false });
    }

    async fn tell(&mut self, alloc: Allocation) {
        tracing::info!(alloc = %alloc.id, name = alloc.name(), desired = alloc.desired.as_str(), "the servers' wish changed");
        if !self.keep_told(&alloc).await {
            return;
        }
        let Some(entry) = self.entries.get_mut(&alloc.id) else { return };
        entry.held.told = alloc.clone();
        entry.unlisted = false;
        entry.runner.iter().for_each(|runner| drop(runner.send(Order::Told(Box::new(alloc.clone())))));
    }

    async fn stop_unlisted(&mut self, id: AllocId) {
        let Some(entry) = self.entries.get(&id).filter(|entry| !entry.unlisted) else { return };
        let mut told = entry.held.told.clone();
        told.desired = DesiredStatus::Stop;
        told.desired_description = "the servers do not know this allocation any more".to_owned();
        self.tell(told).await;
        if let Some(entry) = self.entries.get_mut(&id) {
            entry.unlisted = true;
        }
    }

    fn disown(&mut self, alloc: Allocation) {
        let report = Arc::new(never_seen(&alloc));
        let held = Held { told: alloc.clone(), ended: true };
        self.entries.insert(alloc.id, Entry { held, report, runner: None, unlisted: false });
    }

    async fn forget(&mut self, id: AllocId) {
        self.entries.remove(&id);
        if let Err(error) = blocking(&self.store, move |store| store.forget(id)).await {
            tracing::error!(alloc = %id, error = report(&error), "an ended allocation could not be forgotten");
        }
        self.clear_directories().await;
    }

    async fn on_reports(&mut self, reports: Vec<Report>) {
        let (updates, waiting) = self.keep_reports(reports).await;
        for stored in waiting {
            // Its runner may have ended.
            let _ = stored.send(());
        }
        for update in updates {
            let id = update.alloc_id;
            let Some(entry) = self.entries.get_mut(&id) else { continue };
            entry.held.ended = update.client.is_terminal();
            entry.report = Arc::new(update);
            if entry.held.ended && entry.unlisted {
                self.forget(id).await;
            }
        }
    }

    /// Gives the news back, and who waits for them to be on disk: nobody any more when they are not.
    async fn keep_reports(&self, reports: Vec<Report>) -> (Vec<AllocUpdate>, Vec<oneshot::Sender<()>>) {
        let (kept, mut waiting): (Vec<_>, Vec<_>) =
            reports.into_iter().map(|report| ((report.update, report.memory), report.stored)).unzip();
        let updates = kept.iter().map(|(update, _)| update.clone()).collect();
        if let Err(error) = blocking(&self.store, move |store| store.keep_reports(&kept)).await {
            tracing::error!(
                error = report(&error),
                "reports could not be written; a restart would repeat what they say"
            );
            waiting.clear();
        }
        (updates, waiting)
    }

    fn publish(&self) {
        let reports: BTreeMap<_, _> = self.entries.iter().map(|(id, entry)| (*id, Arc::clone(&entry.report))).collect();
        self.published.send_replace(Arc::new(reports));
    }

    async fn keep_told(&self, alloc: &Allocation) -> bool {
        let kept = alloc.clone();
        let outcome = blocking(&self.store, move |store| store.keep_told(&kept)).await;
        if let Err(error) = &outcome {
            tracing::error!(alloc = %alloc.id, error = report(error), "not acted on: it could not be written down; free the disk");
        }
        outcome.is_ok()
    }

    /// Removes the oldest directories of allocations that are over and forgotten.
    async fn clear_directories(&self) {
        let known: BTreeSet<String> = self.entries.keys().map(ToString::to_string).collect();
        let root = self.shell.data.allocs();
        let cleared = tokio::task::spawn_blocking(move || clear_directories(&root, &known)).await;
        if let Ok(Err(error)) = cleared {
            tracing::warn!(%error, "directories of ended allocations could not be removed");
        }
    }
}

fn every(period: Duration) -> tokio::time::Interval {
    let mut interval = interval(period);
    interval.set_missed_tick_behavior(MissedTickBehavior::Delay);
    interval.reset();
    interval
}

fn clear_directories(root: &std::path::Path, known: &BTreeSet<String>) -> std::io::Result<()> {
    let mut ended: Vec<(SystemTime, PathBuf)> = Vec::new();
    for entry in std::fs::read_dir(root)? {
        let entry = entry?;
        if !known.contains(&*entry.file_name().to_string_lossy()) {
            ended.push((entry.metadata()?.modified()?, entry.path()));
        }
    }
    ended.sort();
    let surplus = ended.len().saturating_sub(ENDED_KEPT_MAX);
    ended.iter().take(surplus).try_for_each(|(_, path)| std::fs::remove_dir_all(path))
}

fn never_seen(alloc: &Allocation) -> AllocUpdate {
    let dead = TaskState { phase: TaskPhase::Dead, finished_at: now(), ..TaskState::default() };
    let tasks = alloc.task_group().into_iter().flat_map(|group| &group.tasks);
    AllocUpdate {
        alloc_id: alloc.id,
        client: ClientStatus::Complete,
        client_description: "it is not on its node any more".to_owned(),
        task_states: tasks.map(|task| (task.name.clone(), dead.clone())).collect(),
        address: None,
        checks: BTreeMap::new(),
    }
}

async fn blocking<T: Send + 'static>(
    store: &Store,
    call: impl FnOnce(&Store) -> Result<T, StoreError> + Send + 'static,
) -> Result<T, StoreError> {
    let store = store.clone();
    tokio::task::spawn_blocking(move || call(&store)).await.expect("a store call neither panics nor is cancelled")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_the_oldest_directories_beyond_the_limit_go() {
        let dir = tempfile::tempdir().unwrap();
        for number in 0..ENDED_KEPT_MAX + 3 {
            std::fs::create_dir(dir.path().join(format!("alloc-{number:03}"))).unwrap();
        }
        let known = BTreeSet::from(["alloc-000".to_owned()]);
        clear_directories(dir.path(), &known).unwrap();
        let left = std::fs::read_dir(dir.path()).unwrap().count();
        assert_eq!(left, ENDED_KEPT_MAX + 1);
        assert!(dir.path().join("alloc-000").is_dir());
    }
}
