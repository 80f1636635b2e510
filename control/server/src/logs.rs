//! Reading a task's output: the request goes down the session of the task's node, chunks come back up. A server without
//! the session asks the leader.

use crate::member::Member;
use crate::pb;
use model::NodeId;
use std::collections::HashMap;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use tokio::sync::mpsc;
use tonic::Streaming;
use wire::session::{LogRange, ServerMessage};

/// Chunks that may wait for a slow reader before it is cut off; the node's other messages must not wait for it.
const CHUNKS_MAX: usize = 256;

#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Chunk {
    pub data: Vec<u8>,
    pub eof: bool,
    pub error: Option<String>,
}

#[derive(Debug, thiserror::Error)]
pub(crate) enum LogError {
    #[error("allocation {0} is not known")]
    UnknownAlloc(model::AllocId),
    #[error("node {0} has no session with the leader now; its output can be read when its agent is back")]
    NoSession(NodeId),
    #[error("no server leads the cluster; try again in a moment")]
    NoLeader,
    #[error("the leader cannot read the output: {0}")]
    Leader(String),
}

/// Requests that wait for chunks, by request id.
#[derive(Default)]
pub(crate) struct LogRequests {
    next_id: AtomicU64,
    waiting: Arc<Mutex<HashMap<u64, Waiting>>>,
}

struct Waiting {
    node_id: NodeId,
    chunks: mpsc::Sender<Chunk>,
}

/// The reading end; dropping it tells the node to stop.
pub(crate) struct LogReader {
    chunks: mpsc::Receiver<Chunk>,
    _cancel: Option<Cancel>,
}

struct Cancel {
    request_id: u64,
    waiting: Arc<Mutex<HashMap<u64, Waiting>>>,
    control: mpsc::Sender<ServerMessage>,
}

impl LogReader {
    pub async fn next(&mut self) -> Option<Chunk> {
        self.chunks.recv().await
    }
}

impl Drop for Cancel {
    fn drop(&mut self) {
        if lock(&self.waiting).remove(&self.request_id).is_some() {
            let _ = self.control.try_send(ServerMessage::CancelLogs { request_id: self.request_id });
        }
    }
}

impl LogRequests {
    /// A chunk that `node_id`'s agent sent. Chunks of requests that went to other nodes are ignored.
    pub fn deliver(&self, node_id: NodeId, request_id: u64, chunk: Chunk) {
        let mut waiting = lock(&self.waiting);
        let Some(request) = waiting.get(&request_id).filter(|request| request.node_id == node_id) else { return };
        let last = chunk.eof || chunk.error.is_some();
        let kept_up = request.chunks.try_send(chunk).is_ok();
        if last || !kept_up {
            waiting.remove(&request_id);
        }
    }

    /// The node's session ended: its readers see the end of their chunks without an `eof`.
    pub fn forget_node(&self, node_id: NodeId) {
        lock(&self.waiting).retain(|_, request| request.node_id != node_id);
    }

    fn register(&self, node_id: NodeId) -> (u64, mpsc::Receiver<Chunk>) {
        let request_id = self.next_id.fetch_add(1, Ordering::Relaxed) + 1;
        let (chunks, receiver) = mpsc::channel(CHUNKS_MAX);
        lock(&self.waiting).insert(request_id, Waiting { node_id, chunks });
        (request_id, receiver)
    }
}

impl Member {
    /// Starts reading from wherever the node's session is.
    pub async fn read_logs(&self, range: LogRange) -> Result<LogReader, LogError> {
        match self.leader() {
            Some(id) if id == self.id => self.read_logs_here(range).await,
            Some(_) => self.read_logs_at_leader(range).await,
            None => Err(LogError::NoLeader),
        }
    }

    /// Starts reading through a session of this very server.
    pub async fn read_logs_here(&self, range: LogRange) -> Result<LogReader, LogError> {
        let alloc_id = range.alloc_id;
        let node_id = self.snapshot().alloc(alloc_id).ok_or(LogError::UnknownAlloc(alloc_id))?.node_id;
        let control = self.sessions.control(node_id).ok_or(LogError::NoSession(node_id))?;
        let (request_id, chunks) = self.logs.register(node_id);
        let cancel = Cancel { request_id, waiting: Arc::clone(&self.logs.waiting), control: control.clone() };
        let LogRange { alloc_id, task, kind, offset, limit, follow } = range;
        let read = ServerMessage::ReadLogs { request_id, alloc_id, task, kind, offset, limit, follow };
        control.send(read).await.map_err(|_| LogError::NoSession(node_id))?;
        Ok(LogReader { chunks, _cancel: Some(cancel) })
    }

    async fn read_logs_at_leader(&self, range: LogRange) -> Result<LogReader, LogError> {
        let mut client = self.leader().and_then(|id| self.peers.client(id)).ok_or(LogError::NoLeader)?;
        let request = pb::ReadLogsRequest { range: Some((&range).into()) };
        let reply = client.read_logs(request).await.map_err(|status| LogError::Leader(status.message().to_owned()))?;
        let (sender, chunks) = mpsc::channel(8);
        tokio::spawn(pass_on(reply.into_inner(), sender));
        Ok(LogReader { chunks, _cancel: None })
    }
}

/// Ends with its reader, also while nothing is written: the leader and the node must not follow on for nobody.
async fn pass_on(mut stream: Streaming<pb::LogChunk>, sender: mpsc::Sender<Chunk>) {
    loop {
        let chunk = tokio::select! {
            received = stream.message() => match received {
                Ok(Some(chunk)) => Chunk { data: chunk.data, eof: chunk.eof, error: chunk.error },
                Ok(None) | Err(_) => return,
            },
            () = sender.closed() => return,
        };
        if sender.send(chunk).await.is_err() {
            return;
        }
    }
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}
