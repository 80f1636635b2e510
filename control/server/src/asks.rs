//! What people ask of one allocation: the question goes down the session of its node, the answer comes back up. A server
//! without the session asks the leader.

use crate::member::Member;
use crate::pb;
use model::{AllocId, NodeId};
use std::collections::HashMap;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;
use tokio::sync::{mpsc, oneshot};
use wire::actions::{AllocAnswer, AllocRefusal, AllocRequest, answer_from_pb};
use wire::session::ServerMessage;

/// A restart or a signal is answered when it is under way, not when it is over.
const ANSWER_WITHIN: Duration = Duration::from_secs(20);

#[derive(Debug, thiserror::Error)]
pub(crate) enum AskError {
    #[error("allocation {0} is not known")]
    UnknownAlloc(AllocId),
    #[error("node {0} has no session with the leader now; try again when its agent is back")]
    NoSession(NodeId),
    #[error("no server leads the cluster; try again in a moment")]
    NoLeader,
    #[error("the node did not answer within {} s; `meshctl alloc status` shows what came of it", ANSWER_WITHIN.as_secs())]
    Silent,
    #[error("the leader cannot ask the node: {0}")]
    Leader(String),
    #[error("{}", .0.reason)]
    Refused(AllocRefusal),
}

/// Questions that wait for their answers, by request id.
#[derive(Default)]
pub(crate) struct Asks {
    next_id: AtomicU64,
    waiting: Arc<Mutex<HashMap<u64, Waiting>>>,
}

struct Waiting {
    node_id: NodeId,
    answer: oneshot::Sender<AllocAnswer>,
}

/// Forgets the question however its asker ends.
struct Question {
    id: u64,
    waiting: Arc<Mutex<HashMap<u64, Waiting>>>,
}

impl Drop for Question {
    fn drop(&mut self) {
        lock(&self.waiting).remove(&self.id);
    }
}

impl Asks {
    /// An answer of `node_id`'s agent. Answers to questions that went to other nodes are ignored.
    pub fn deliver(&self, node_id: NodeId, request_id: u64, answer: AllocAnswer) {
        let mut waiting = lock(&self.waiting);
        if waiting.get(&request_id).is_some_and(|question| question.node_id == node_id)
            && let Some(question) = waiting.remove(&request_id)
        {
            let _ = question.answer.send(answer);
        }
    }

    /// The node's session ended: its answers will not come.
    pub fn forget_node(&self, node_id: NodeId) {
        lock(&self.waiting).retain(|_, question| question.node_id != node_id);
    }

    fn register(&self, node_id: NodeId) -> (Question, oneshot::Receiver<AllocAnswer>) {
        let id = self.next_id.fetch_add(1, Ordering::Relaxed) + 1;
        let (answer, answers) = oneshot::channel();
        lock(&self.waiting).insert(id, Waiting { node_id, answer });
        (Question { id, waiting: Arc::clone(&self.waiting) }, answers)
    }
}

impl Member {
    /// Asks from wherever the node's session is.
    pub async fn ask(&self, request: AllocRequest) -> Result<Vec<u8>, AskError> {
        match self.leader() {
            Some(id) if id == self.id => self.ask_here(request).await,
            Some(_) => self.ask_leader(request).await,
            None => Err(AskError::NoLeader),
        }
    }

    /// Asks through a session of this very server.
    pub async fn ask_here(&self, request: AllocRequest) -> Result<Vec<u8>, AskError> {
        let node_id = self.node_of(request.alloc_id)?;
        let control = self.control_of(node_id)?;
        let (question, answer) = self.asks.register(node_id);
        let ask = ServerMessage::Ask { request_id: question.id, request };
        control.send(ask).await.map_err(|_| AskError::NoSession(node_id))?;
        match tokio::time::timeout(ANSWER_WITHIN, answer).await {
            Ok(Ok(answer)) => answer.map_err(AskError::Refused),
            Ok(Err(_)) => Err(AskError::NoSession(node_id)),
            Err(_) => Err(AskError::Silent),
        }
    }

    fn node_of(&self, id: AllocId) -> Result<NodeId, AskError> {
        Ok(self.snapshot().alloc(id).ok_or(AskError::UnknownAlloc(id))?.node_id)
    }

    fn control_of(&self, id: NodeId) -> Result<mpsc::Sender<ServerMessage>, AskError> {
        self.sessions.control(id).ok_or(AskError::NoSession(id))
    }

    async fn ask_leader(&self, request: AllocRequest) -> Result<Vec<u8>, AskError> {
        let mut client = self.leader().and_then(|id| self.peers.client(id)).ok_or(AskError::NoLeader)?;
        let reply = client.ask_alloc(pb::AllocRequest::from(&request)).await;
        let reply = reply.map_err(|status| AskError::Leader(status.message().to_owned()))?;
        let answer = answer_from_pb(reply.into_inner()).map_err(|error| AskError::Leader(error.to_string()))?;
        answer.map_err(AskError::Refused)
    }
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}
