//! Where the other servers are, the channels to them, and Raft's transport: one bounded queue and one stream per peer.

use crate::pb::RaftMessage;
use crate::pb::servers_client::ServersClient;
use catalog::Catalog;
use consensus::{Raft, Transport};
use identity::RPC_MESSAGE_BYTES_MAX;
use model::ServerId;
use std::collections::{BTreeSet, HashMap};
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
const PART_BYTES: usize = 1 << 20;
const ASSEMBLED_BYTES_MAX: usize = 1 << 30;

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

    /// The other servers, as far as they are known.
    pub fn others(&self, own: ServerId) -> Vec<ServerId> {
        let catalog = self.catalog.borrow();
        let known: BTreeSet<ServerId> =
            catalog.servers().map(|server| server.id).chain(self.seeds.keys().copied()).collect();
        known.into_iter().filter(|id| *id != own).collect()
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
        Some(client_over(channel))
    }

    /// As [`Peers::client`], over a connection that nothing else uses.
    fn client_of_its_own(&self, id: ServerId) -> Option<PeerClient> {
        let name = identity::server_name(id);
        identity::channel(self.address(id)?, &name, Arc::clone(&self.tls.client)).ok().map(client_over)
    }
}

fn client_over(channel: Channel) -> PeerClient {
    ServersClient::new(channel)
        .max_decoding_message_size(RPC_MESSAGE_BYTES_MAX)
        .max_encoding_message_size(RPC_MESSAGE_BYTES_MAX)
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
    /// Peers that are being sent a snapshot.
    snapshots: Arc<Mutex<BTreeSet<u64>>>,
}

impl RaftTransport {
    pub fn new(peers: Arc<Peers>, runtime: Handle) -> Self {
        let (queues, raft) = (Mutex::default(), Arc::default());
        Self { peers, runtime, queues, raft, told_too_large: AtomicBool::new(false), snapshots: Arc::default() }
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

    /// On a connection of its own: heartbeats must not wait behind it. One at a time; Raft repeats what is dropped.
    fn send_snapshot(&self, to: u64, message: Vec<u8>) {
        if !lock(&self.snapshots).insert(to) {
            return;
        }
        let (peers, raft, snapshots) = (Arc::clone(&self.peers), Arc::clone(&self.raft), Arc::clone(&self.snapshots));
        self.runtime.spawn(async move {
            let sent = snapshot_to(to, message, &peers).await;
            lock(&snapshots).remove(&to);
            if let (Err(status), Some(raft)) = (sent, raft.get()) {
                tracing::info!(server = to, reason = status.message(), "a snapshot did not get through");
                raft.report_unreachable(to);
            }
        });
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
        if consensus::is_snapshot(&message) {
            return self.send_snapshot(to, message);
        }
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

async fn snapshot_to(to: u64, message: Vec<u8>, peers: &Peers) -> Result<(), tonic::Status> {
    let unknown = || tonic::Status::unavailable("its address is not known yet");
    let mut client = peers.client_of_its_own(ServerId(to)).ok_or_else(unknown)?;
    client.raft(futures::stream::iter(in_parts(message))).await.map(drop)
}

/// A snapshot is as large as the state; a message of the stream is not.
fn in_parts(message: Vec<u8>) -> impl Iterator<Item = RaftMessage> {
    let parts = message.len().div_ceil(PART_BYTES);
    (0..parts).map(move |part| {
        let (start, end) = (part * PART_BYTES, ((part + 1) * PART_BYTES).min(message.len()));
        RaftMessage { message: message[start..end].to_vec(), more: end < message.len() }
    })
}

/// Puts the parts of messages together again.
#[derive(Default)]
pub(crate) struct Assembly {
    parts: Vec<u8>,
}

impl Assembly {
    /// The message that this part completes.
    pub fn add(&mut self, part: RaftMessage) -> Result<Option<Vec<u8>>, tonic::Status> {
        if self.parts.len() + part.message.len() > ASSEMBLED_BYTES_MAX {
            return Err(tonic::Status::out_of_range("the message is larger than any snapshot may be"));
        }
        if self.parts.is_empty() && !part.more {
            return Ok(Some(part.message));
        }
        self.parts.extend(part.message);
        Ok((!part.more).then(|| std::mem::take(&mut self.parts)))
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
        Some(message) => permit.send(RaftMessage { message, more: false }),
        None => return false,
    }
    true
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_sent_in_parts_is_put_together_again() {
        for bytes in [1, PART_BYTES - 1, PART_BYTES, PART_BYTES + 1, 3 * PART_BYTES + 7] {
            let message: Vec<u8> = (0..bytes).map(|at| at as u8).collect();
            let parts: Vec<RaftMessage> = in_parts(message.clone()).collect();
            assert_eq!(parts.len(), bytes.div_ceil(PART_BYTES));
            let mut assembly = Assembly::default();
            let complete: Vec<Vec<u8>> = parts.into_iter().filter_map(|part| assembly.add(part).unwrap()).collect();
            assert_eq!(complete, [message]);
        }
    }
}
