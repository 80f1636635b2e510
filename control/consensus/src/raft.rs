//! The handle: puts requests into the driver's queue and hands out futures for the answers.

use std::collections::BTreeMap;
use std::future::Future;
use std::pin::Pin;
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};
use std::sync::mpsc::{Receiver, Sender, channel};
use std::sync::{Arc, Mutex, PoisonError};
use std::task::{Context, Poll};
use std::thread::{self, JoinHandle};

use futures_channel::oneshot;

use crate::api::{
    ChangeError, Committed, Config, MembershipChange, OnFatal, PeerState, ProposeError, ReadError, Role, StartError,
    StateMachine, Status, StoreError, Transport, Watcher,
};
use crate::applier::{Applier, Work};
use crate::core::{Core, CoreConfig};
use crate::driver::{Answer, Driver, Input, Requests, Room, lock, put_standing};
use crate::io;
use crate::store::{DiskStore, Loaded, LogStore, Write, genesis};

/// An answer that is on its way; needs no particular executor.
pub struct Pending<T, E> {
    answer: oneshot::Receiver<Result<T, E>>,
    stopped: E,
}

impl<T, E: Clone + Unpin> Future for Pending<T, E> {
    type Output = Result<T, E>;

    fn poll(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<Self::Output> {
        Pin::new(&mut self.answer).poll(context).map(|answer| answer.unwrap_or_else(|_| Err(self.stopped.clone())))
    }
}

/// A server's part in the group. Clones share it; the last one that goes stops it.
#[derive(Clone)]
pub struct Raft {
    shared: Arc<Shared>,
}

struct Shared {
    inputs: Sender<Input>,
    status: Arc<Mutex<Status>>,
    applied: Arc<AtomicU64>,
    backlog: Arc<AtomicUsize>,
    requests: Room,
    messages: Room,
    proposal_bytes_max: usize,
    threads: Mutex<Vec<JoinHandle<()>>>,
}

/// Messages of peers that may wait here; Raft repeats what is dropped.
const MESSAGES_MAX: usize = 4096;

impl Raft {
    /// Opens the log, replays the snapshot into `machine` and starts the threads.
    pub fn start(
        config: Config,
        transport: Arc<dyn Transport>,
        machine: Box<dyn StateMachine>,
    ) -> Result<Raft, StartError> {
        check(&config)?;
        let store = DiskStore::open(&config.data_dir, config.id)?;
        Raft::start_on(Box::new(store), config, transport, machine)
    }

    /// As [`Raft::start`], with a store of the caller's.
    pub fn start_on(
        mut store: Box<dyn LogStore>,
        config: Config,
        transport: Arc<dyn Transport>,
        mut machine: Box<dyn StateMachine>,
    ) -> Result<Raft, StartError> {
        check(&config)?;
        let loaded = load(store.as_mut(), &config, machine.as_mut())?;
        let core = Core::new(core_config(&config), loaded)
            .map_err(|error| StartError::Config { reason: error.to_string() })?;
        start_threads(core, store, config, transport, machine)
    }

    /// Puts a command into the log; done when it is committed and applied here.
    pub fn propose(&self, command: Vec<u8>) -> Pending<Committed, ProposeError> {
        let (bytes, bytes_max) = (command.len(), self.shared.proposal_bytes_max);
        if bytes > bytes_max {
            return refused(ProposeError::TooLarge { bytes, bytes_max }, ProposeError::Stopped);
        }
        self.ask(ProposeError::Overloaded, ProposeError::Stopped, |answer| Input::Propose { command, answer })
    }

    /// An index that covers every write acknowledged before this call; done when the state machine here has it.
    pub fn read_index(&self) -> Pending<u64, ReadError> {
        self.ask(ReadError::Overloaded, ReadError::Stopped, |answer| Input::Read { answer })
    }

    /// Changes the membership by one server (leader only); done, with the index, when the change is applied here.
    pub fn change(&self, change: MembershipChange) -> Pending<u64, ChangeError> {
        self.ask(ChangeError::Busy, ChangeError::Stopped, |answer| Input::Change { change, answer })
    }

    /// Whether [`Raft::change`] would be proposed now: for those who have to tell others first.
    pub fn may_change(&self, change: MembershipChange) -> Pending<(), ChangeError> {
        self.ask(ChangeError::Busy, ChangeError::Stopped, |answer| Input::MayChange { change, answer })
    }

    /// The members as this server sees them, itself included.
    pub fn peers(&self) -> Pending<Vec<PeerState>, ReadError> {
        self.ask(ReadError::Overloaded, ReadError::Stopped, |answer| Input::Peers { answer })
    }

    /// Takes in a message that the transport carried here from `sender`, as that has proven to be. Bytes that are no message
    /// of its own are dropped and logged.
    pub fn step(&self, sender: u64, message: Vec<u8>) {
        if let Some(place) = self.shared.messages.take() {
            self.send(Input::Step { sender, message, place });
        }
    }

    /// The transport could not deliver to `peer`: the leader probes it instead of streaming, and repeats a snapshot.
    pub fn report_unreachable(&self, peer: u64) {
        self.send(Input::Unreachable(peer));
    }

    /// Asks the leader (this server) to hand over to `to`; watch [`Raft::subscribe`] for the outcome.
    pub fn transfer_leader(&self, to: u64) {
        self.send(Input::TransferLeader(to));
    }

    /// What this server knows at the moment.
    pub fn status(&self) -> Status {
        Status { applied: self.shared.applied.load(Ordering::Acquire), ..lock(&self.shared.status).clone() }
    }

    /// Bytes of committed entries that wait for the state machine here.
    pub fn apply_backlog(&self) -> usize {
        self.shared.backlog.load(Ordering::Relaxed)
    }

    /// Calls `watcher` now and at each change of role, leader, term or membership, on the driver's thread: be brief.
    pub fn subscribe(&self, watcher: Watcher) {
        self.send(Input::Subscribe(watcher));
    }

    /// Stops and joins the threads; what waits is answered with `Stopped`. Blocks for as long as a write takes, and must
    /// not be called from a watcher or the state machine.
    pub fn shutdown(&self) {
        self.send(Input::Stop);
        let threads = std::mem::take(&mut *self.shared.threads.lock().unwrap_or_else(PoisonError::into_inner));
        for thread in threads {
            // A panic has been reported through `on_fatal` already.
            let _ = thread.join();
        }
    }

    fn ask<T, E>(&self, overloaded: E, stopped: E, input: impl FnOnce(Answer<T, E>) -> Input) -> Pending<T, E> {
        let Some(place) = self.shared.requests.take() else { return refused(overloaded, stopped) };
        let (sender, answer) = oneshot::channel();
        self.send(input(Answer::new(sender, place)));
        Pending { answer, stopped }
    }

    /// A driver that has gone drops the answer's sender, which the waiting side sees as `Stopped`.
    fn send(&self, input: Input) {
        let _ = self.shared.inputs.send(input);
    }
}

impl Drop for Shared {
    fn drop(&mut self) {
        let _ = self.inputs.send(Input::Stop);
    }
}

fn refused<T, E>(refusal: E, stopped: E) -> Pending<T, E> {
    let (sender, answer) = oneshot::channel();
    let _ = sender.send(Err(refusal));
    Pending { answer, stopped }
}

fn check(config: &Config) -> Result<(), StartError> {
    let founds_wrongly = config.bootstrap.as_ref().is_some_and(|voters| voters.is_empty() || voters.contains(&0));
    let reason = if config.id == 0 {
        "id: 0 is no server id"
    } else if config.heartbeat_ticks == 0 || config.election_ticks <= config.heartbeat_ticks {
        "election_ticks: must be larger than heartbeat_ticks, which must not be 0"
    } else if config.tick.is_zero() || config.pending_max == 0 || config.snapshot_every == 0 {
        "tick, pending_max and snapshot_every: must not be 0"
    } else if founds_wrongly {
        "bootstrap: must name the first voters by their ids"
    } else {
        return Ok(());
    };
    Err(StartError::Config { reason: reason.to_owned() })
}

/// Founds the group if this is to be done here, and brings the state machine to the stored snapshot.
fn load(store: &mut dyn LogStore, config: &Config, machine: &mut dyn StateMachine) -> Result<Loaded, StartError> {
    let loaded = store.load()?;
    if let (true, Some(voters)) = (loaded.is_new(), &config.bootstrap) {
        return Ok(found(store, voters, machine.snapshot())?);
    }
    if let Some(snapshot) = &loaded.snapshot {
        let index = snapshot.get_metadata().index;
        machine.restore(index, &snapshot.data).map_err(|source| StartError::Restore { index, source })?;
    }
    Ok(loaded)
}

fn found(store: &mut dyn LogStore, voters: &[u64], data: Vec<u8>) -> Result<Loaded, StoreError> {
    store.write(genesis(voters, data))?;
    store.sync()?;
    store.load()
}

fn core_config(config: &Config) -> CoreConfig {
    CoreConfig {
        id: config.id,
        seed: config.seed,
        election_ticks: config.election_ticks,
        heartbeat_ticks: config.heartbeat_ticks,
        snapshot_every: config.snapshot_every,
        trailing: config.trailing,
        log_bytes_max: config.log_bytes_max,
    }
}

fn start_threads(
    core: Core,
    store: Box<dyn LogStore>,
    config: Config,
    transport: Arc<dyn Transport>,
    machine: Box<dyn StateMachine>,
) -> Result<Raft, StartError> {
    let (inputs, queue) = channel();
    let (writes, write_queue) = channel();
    let (works, work_queue) = channel();
    let status = Arc::new(Mutex::new(first_status(config.id, &core)));
    let applied = Arc::new(AtomicU64::new(core.applied()));
    let backlog = Arc::<AtomicUsize>::default();
    let on_fatal = config.on_fatal.clone();
    let applier = Applier {
        machine,
        applied: applied.clone(),
        driver: inputs.clone(),
        on_fatal: on_fatal.clone(),
        readers: BTreeMap::new(),
    };
    let driver = Driver {
        core,
        tick: config.tick,
        transport,
        writes,
        works,
        backlog: backlog.clone(),
        apply_bytes_max: config.apply_bytes_max,
        status: status.clone(),
        on_fatal: on_fatal.clone(),
        requests: Requests::default(),
    };
    let threads = vec![
        spawn_io(store, write_queue, inputs.clone(), &on_fatal)?,
        spawn_applier(applier, work_queue, &on_fatal)?,
        spawn("raft-driver", &on_fatal, move || driver.run(queue))?,
    ];
    let shared = Shared {
        inputs,
        status,
        applied,
        backlog,
        requests: Room::new(config.pending_max),
        messages: Room::new(MESSAGES_MAX),
        proposal_bytes_max: config.proposal_bytes_max,
        threads: Mutex::new(threads),
    };
    Ok(Raft { shared: Arc::new(shared) })
}

fn first_status(id: u64, core: &Core) -> Status {
    let mut status = Status {
        id,
        leader: None,
        term: 0,
        role: Role::Learner,
        commit: core.commit(),
        applied: core.applied(),
        voters: Vec::new(),
        learners: Vec::new(),
    };
    put_standing(&mut status, core.current_standing());
    status
}

fn spawn_io(
    store: Box<dyn LogStore>,
    writes: Receiver<Write>,
    driver: Sender<Input>,
    on_fatal: &OnFatal,
) -> Result<JoinHandle<()>, StartError> {
    let fatal = on_fatal.clone();
    spawn("raft-io", on_fatal, move || io::run(store, writes, driver, fatal))
}

fn spawn_applier(applier: Applier, works: Receiver<Work>, on_fatal: &OnFatal) -> Result<JoinHandle<()>, StartError> {
    spawn("raft-apply", on_fatal, move || applier.run(works))
}

fn spawn(
    name: &'static str,
    on_fatal: &OnFatal,
    body: impl FnOnce() + Send + 'static,
) -> Result<JoinHandle<()>, StartError> {
    let watch = PanicWatch { name, on_fatal: on_fatal.clone() };
    let guarded = move || {
        let _watch = watch;
        body();
    };
    thread::Builder::new().name(name.to_owned()).spawn(guarded).map_err(StartError::Thread)
}

/// raft-rs asserts its invariants. A server that broke one must not linger without its consensus thread.
struct PanicWatch {
    name: &'static str,
    on_fatal: OnFatal,
}

impl Drop for PanicWatch {
    fn drop(&mut self) {
        if thread::panicking() {
            (self.on_fatal)(&format!("thread {} panicked; its message is above", self.name));
        }
    }
}
