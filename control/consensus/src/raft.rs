//! The handle: puts requests into the driver's queue and hands out futures for the answers.

use std::future::Future;
use std::pin::Pin;
use std::sync::mpsc::Sender;
use std::sync::{Arc, Mutex, PoisonError};
use std::task::{Context, Poll};

use futures_channel::oneshot;

use crate::api::{
    ChangeError, Committed, Config, MembershipChange, ProposeError, ReadError, StartError, StateMachine, Status,
    Transport,
};

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
    status: Mutex<Status>,
}

enum Input {
    Propose(Vec<u8>, oneshot::Sender<Result<Committed, ProposeError>>),
    Read(oneshot::Sender<Result<u64, ReadError>>),
    Change(MembershipChange, oneshot::Sender<Result<u64, ChangeError>>),
    Step(Vec<u8>),
    Unreachable(u64),
    TransferLeader(u64),
    Subscribe(Box<dyn Fn(&Status) + Send>),
    Stop,
}

impl Raft {
    /// Opens the log, replays the snapshot into `machine` and starts the threads.
    pub fn start(
        config: Config,
        transport: Arc<dyn Transport>,
        machine: Box<dyn StateMachine>,
    ) -> Result<Raft, StartError> {
        drop((transport, machine));
        Err(StartError::Config { reason: format!("server {} cannot start yet: the driver is not in place", config.id) })
    }

    /// Puts a command into the log; done when it is committed and applied here.
    pub fn propose(&self, data: Vec<u8>) -> Pending<Committed, ProposeError> {
        let (answer, pending) = oneshot::channel();
        self.send(Input::Propose(data, answer));
        Pending { answer: pending, stopped: ProposeError::Stopped }
    }

    /// An index that covers every write acknowledged before this call; done when the state machine here has it.
    pub fn read_index(&self) -> Pending<u64, ReadError> {
        let (answer, pending) = oneshot::channel();
        self.send(Input::Read(answer));
        Pending { answer: pending, stopped: ReadError::Stopped }
    }

    /// Changes the membership by one server (leader only); done, with the index, when the change is applied here.
    pub fn change(&self, change: MembershipChange) -> Pending<u64, ChangeError> {
        let (answer, pending) = oneshot::channel();
        self.send(Input::Change(change, answer));
        Pending { answer: pending, stopped: ChangeError::Stopped }
    }

    /// Takes in a message that a peer's transport carried here. Bytes that are no message are dropped and logged.
    pub fn step(&self, message: Vec<u8>) {
        self.send(Input::Step(message));
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
        self.shared.status.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// Calls `watcher` now and at each change of role, leader, term or membership, on the driver's thread: be brief.
    pub fn subscribe(&self, watcher: Box<dyn Fn(&Status) + Send>) {
        self.send(Input::Subscribe(watcher));
    }

    /// Stops and joins the threads; what waits is answered with `Stopped`. Blocks for as long as a write takes.
    pub fn shutdown(&self) {
        self.send(Input::Stop);
    }

    /// A driver that has gone drops the answer's sender, which the waiting side sees as `Stopped`.
    fn send(&self, input: Input) {
        let _ = self.shared.inputs.send(input);
    }
}
