//! Where the other servers are, the channels to them, and Raft's transport: one bounded queue and one stream per peer.

use crate::pb::RaftMessage;
use crate::pb::servers_client::ServersClient;
use catalog::Catalog;
use consensus::{Raft, Transport};
use identity::RPC_MESSAGE_BYTES_MAX;
use model::ServerId;
use std::collections::HashMap;
use std::net::SocketAddr;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, OnceLock, PoisonError};
use std::time::Duration;
use tokio::runtime::Handle;
use tokio::sync::{mpsc, watch};
use tokio_stream::wrappers::ReceiverStream;
use tonic::transport::Channel;

/// Raft repeats what was dropped, so a queue needs no more than what is in flight.
const QUEUE_MESSAGES_MAX: usize = 1024;
const RECONNECT_DELAY: Duration = Duration::from_millis(200);
const DRAIN_TIMEOUT: Duration = Duration::from_millis(300);

/// A client for the servers' own service.
pub(crate) type PeerClient = ServersClient<Channel>;

/// Addresses and channels of the other servers.
pub(crate) struct Peers {
    tls: identity::MtlsConfigs,
    catalog: watch::Receiver<Catalog>,
    /// From the data directory, for as long as the catalog knows nothing.
    seeds: HashMap<ServerId, SocketAddr>,
    channels: Mutex<HashMap<ServerId, (SocketAddr, Channel)>>,
    renewals: watch::Sender<u64>,
}

impl Peers {
    pub fn new(
        tls: identity::MtlsConfigs,
        catalog: watch::Receiver<Catalog>,
        seeds: HashMap<ServerId, SocketAddr>,
    ) -> Self {
        Self { tls, catalog, seeds, channels: Mutex::default(), renewals: watch::Sender::new(0) }
    }

    /// This server has a new certificate. A connection made with the old one would be refused once that has run out, so
    /// new calls get new connections; calls under way keep theirs.
    pub fn on_renewed(&self) {
        lock(&self.channels).clear();
        self.renewals.send_modify(|count| *count += 1);
    }

    pub fn tls(&self) -> &identity::MtlsConfigs {
        &self.tls
    }

    pub fn address(&self, id: ServerId) -> Option<SocketAddr> {
        let known = self.catalog.borrow().server(id).map(|server| server.rpc_address);
        known.or_else(|| self.seeds.get(&id).copied())
    }

    /// A client that talks to this server and no other; connects when it is used.
    pub fn client(&self, id: ServerId) -> Option<PeerClient> {
        let address = self.address(id)?;
        let mut channels = lock(&self.channels);
        let channel = match channels.get(&id) {
            Some((known, channel)) if *known == address => channel.clone(),
            _ => {
                let name = identity::server_name(id);
                let channel = identity::channel(address, &name, Arc::clone(&self.tls.client)).ok()?;
                channels.insert(id, (address, channel.clone()));
                channel
            }
        };
        Some(
            ServersClient::new(channel)
                .max_decoding_message_size(RPC_MESSAGE_BYTES_MAX)
                .max_encoding_message_size(RPC_MESSAGE_BYTES_MAX),
        )
    }
}

/// Raft's way to the other servers.
pub(crate) struct RaftTransport {
    peers: Arc<Peers>,
    runtime: Handle,
    queues: Mutex<HashMap<u64, mpsc::Sender<Vec<u8>>>>,
    /// Set once Raft has started; what it could not reach is reported back to it.
    raft: Arc<OnceLock<Raft>>,
    /// Raft repeats a message that never arrives; the operator is told once for each kind of reason.
    told_too_large: AtomicBool,
}

impl RaftTransport {
    pub fn new(peers: Arc<Peers>, runtime: Handle) -> Self {
        let (queues, raft) = (Mutex::default(), Arc::default());
        Self { peers, runtime, queues, raft, told_too_large: AtomicBool::new(false) }
    }

    pub fn attach(&self, raft: Raft) {
        let _ = self.raft.set(raft);
    }

    /// Such a message would break the stream at every try, and everything behind it would wait for ever in silence.
    fn refuse(&self, to: u64, bytes: usize) {
        if !self.told_too_large.swap(true, Ordering::Relaxed) {
            let limit = RPC_MESSAGE_BYTES_MAX;
            tracing::error!(
                to,
                bytes,
                limit,
                "a message of the log is too large for another server, which cannot catch up; the cluster's state has \
                 outgrown what one message carries: stop jobs and purge old ones"
            );
        }
        if let Some(raft) = self.raft.get() {
            raft.report_unreachable(to);
        }
    }

    fn start_queue(&self, to: u64) -> mpsc::Sender<Vec<u8>> {
        let (sender, queue) = mpsc::channel(QUEUE_MESSAGES_MAX);
        self.runtime.spawn(carry(to, queue, Arc::clone(&self.peers), Arc::clone(&self.raft)));
        sender
    }
}

impl Transport for RaftTransport {
    /// Drops the message when the peer's queue is full.
    fn send(&self, to: u64, message: Vec<u8>) {
        if is_too_large(message.len()) {
            return self.refuse(to, message.len());
        }
        let mut queues = lock(&self.queues);
        let queue = queues.entry(to).or_insert_with(|| self.start_queue(to));
        if queue.try_send(message).is_err() {
            tracing::debug!(to, "Raft message dropped: the peer's queue is full");
        }
    }
}

/// With room for the frame around it.
fn is_too_large(bytes: usize) -> bool {
    bytes.saturating_add(64) > RPC_MESSAGE_BYTES_MAX
}

/// Streams a peer's queue to it, again after every loss, until the transport is gone.
async fn carry(to: u64, mut queue: mpsc::Receiver<Vec<u8>>, peers: Arc<Peers>, raft: Arc<OnceLock<Raft>>) {
    let mut reachable = true;
    while let Some(first) = queue.recv().await {
        match stream_to(to, first, &mut queue, &peers).await {
            Ok(()) => reachable = true,
            Err(status) => {
                if std::mem::replace(&mut reachable, false) {
                    tracing::info!(server = to, reason = status.message(), "lost the way to another server");
                }
                if let Some(raft) = raft.get() {
                    raft.report_unreachable(to);
                }
                tokio::time::sleep(RECONNECT_DELAY).await;
                while queue.try_recv().is_ok() {} // stale by now
            }
        }
    }
}

async fn stream_to(
    to: u64,
    first: Vec<u8>,
    queue: &mut mpsc::Receiver<Vec<u8>>,
    peers: &Peers,
) -> Result<(), tonic::Status> {
    let unknown = || tonic::Status::unavailable("its address is not known yet");
    let mut client = peers.client(ServerId(to)).ok_or_else(unknown)?;
    let mut renewals = peers.renewals.subscribe();
    let (sender, receiver) = mpsc::channel(8);
    let call = client.raft(ReceiverStream::new(receiver));
    tokio::pin!(call);
    let mut next = Some(first);
    loop {
        tokio::select! {
            ended = &mut call => return ended.map(drop),
            sent = forward(&sender, &mut next, queue) => if !sent { return Ok(()) },
            _ = renewals.changed() => break,
        }
    }
    // The other side answers when it has read everything, and the next message opens a stream with the new certificate.
    drop(sender);
    match tokio::time::timeout(DRAIN_TIMEOUT, call).await {
        Ok(ended) => ended.map(drop),
        Err(_) => Ok(()),
    }
}

/// One message from the queue into the stream; false when there will be none any more. `next` keeps what was taken out
/// of the queue, so that losing the race against the stream's end loses no message silently.
async fn forward(
    sender: &mpsc::Sender<RaftMessage>,
    next: &mut Option<Vec<u8>>,
    queue: &mut mpsc::Receiver<Vec<u8>>,
) -> bool {
    if next.is_none() {
        *next = queue.recv().await;
    }
    let Ok(permit) = sender.reserve().await else { return std::future::pending().await };
    match next.take() {
        Some(message) => permit.send(RaftMessage { message }),
        None => return false,
    }
    true
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}
