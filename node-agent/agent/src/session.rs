//! The agent's end of its one session: dial a server, say hello, follow the leader, report, take pushes.
//!
//! Losing it changes nothing on the node: tasks, checks and the data path go on with what they were last told, and the next
//! Hello carries everything that happened meanwhile.

use crate::allocs::{Allocs, Reports, report};
use crate::asks::SessionAsks;
use crate::datapath::DataPath;
use crate::enrol::Enrolment;
use crate::entropy::Jitter;
use crate::logs::LogReader;
use crate::store::Store;
use liveness::Report;
use model::{AllocId, AllocUpdate, Allocation, Epoch, Generation, Node, RoutingDelta, RoutingSnapshot};
use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;
use tokio::sync::{mpsc, oneshot, watch};
use tokio::time::{Instant, interval_at, sleep, sleep_until, timeout};
use tokio_stream::wrappers::ReceiverStream;
use tonic::Streaming;
use wire::pb;
use wire::session::{AgentMessage, Hello, ServerMessage};

/// Who leads may change while we dial; more redirections in a row than this count as a failure.
const REDIRECTIONS_MAX: u32 = 4;
const BACKOFF_FIRST: Duration = Duration::from_millis(100);
const BACKOFF_MAX: Duration = Duration::from_secs(1);
const HELLO_TIMEOUT: Duration = Duration::from_secs(5);
/// The level of servers that take probe reports.
const PROBES_SINCE: u32 = 2;
const HEARTBEAT_MIN: Duration = Duration::from_millis(100);

/// Between two reports: at most five a second leave a node, however many of its tasks flap.
const REPORT_SPACING: Duration = Duration::from_millis(200);

/// What the session knows of the servers; for `/v1/agent/self` and health.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct LinkStatus {
    pub connected_to: Option<SocketAddr>,
    pub servers: Vec<SocketAddr>,
    pub last_error: Option<String>,
}

pub struct Session {
    pub node: Node,
    pub credentials: Enrolment,
    pub servers: Vec<SocketAddr>,
    /// Numbers the sessions: the servers refuse what comes late out of an older one.
    pub store: Store,
    pub allocs: Allocs,
    pub data_path: Arc<dyn DataPath>,
    pub logs: LogReader,
    pub jitter: Jitter,
    pub status: watch::Sender<LinkStatus>,
    /// The newest routing goes to the data path and to whoever else looks here.
    pub routing: watch::Sender<Option<RoutingSnapshot>>,
}

/// A server would not have this node, and said why.
#[derive(Debug, thiserror::Error)]
#[error("the server {server} refused this node: {reason}")]
pub struct Refused {
    pub server: SocketAddr,
    pub reason: String,
}

/// Why one connection ended.
enum Farewell {
    Redirected(Option<SocketAddr>),
    Refused(String),
    Lost { reason: String, welcomed: bool },
}

impl Session {
    /// Runs for as long as the agent does; a refusal of the very first hello is sent to `first_refusal`.
    pub async fn run(self, first_refusal: oneshot::Sender<Refused>) {
        let (credentials, link, jitter) = (self.credentials.clone(), self.status.subscribe(), self.jitter.fork(1));
        tokio::select! {
            () = credentials.keep_fresh(link, jitter) => {}
            () = self.attend_for_ever(first_refusal) => {}
        }
    }

    async fn attend_for_ever(mut self, first_refusal: oneshot::Sender<Refused>) {
        let mut first_refusal = Some(first_refusal);
        let mut dialer = Dialer::new(self.servers.clone());
        let routes = self.routing.clone();
        forward_routing(Arc::clone(&self.data_path), routes.subscribe());
        let seed = (self.jitter.fork(2).fraction() * u64::MAX as f64) as u64;
        let probes = crate::probes::start(self.node.id, self.node.address, routes.subscribe(), seed);
        let mut routing = Newest { generation: Generation(0), to: routes };
        loop {
            let server = dialer.next();
            match self.attend(server, &mut dialer, &mut routing, probes.clone()).await {
                Farewell::Redirected(leader) => dialer.on_redirected(leader),
                Farewell::Refused(reason) => {
                    tracing::error!(%server, reason, "the server refused this node");
                    self.note(None, Some(format!("{server} refused this node: {reason}")), &dialer);
                    dialer.on_failure();
                    if !dialer.was_welcomed
                        && let Some(tell) = first_refusal.take()
                    {
                        let _ = tell.send(Refused { server, reason });
                    }
                }
                Farewell::Lost { reason, welcomed } => {
                    self.complain(server, reason, welcomed, &dialer);
                    dialer.on_failure();
                }
            }
            sleep(dialer.delay(self.jitter.fraction())).await;
        }
    }

    /// Each reason once: without servers a node tries every second, for as long as it takes.
    fn complain(&self, server: SocketAddr, reason: String, welcomed: bool, dialer: &Dialer) {
        let error = format!("{server}: {reason}");
        if welcomed || self.status.borrow().last_error.as_ref() != Some(&error) {
            tracing::warn!(%server, reason, welcomed, "no session; tasks and data path go on");
        }
        self.note(None, Some(error), dialer);
    }

    fn note(&self, connected_to: Option<SocketAddr>, last_error: Option<String>, dialer: &Dialer) {
        let status = LinkStatus { connected_to, servers: dialer.servers.clone(), last_error };
        self.status.send_replace(status);
    }

    async fn attend(
        &mut self,
        server: SocketAddr,
        dialer: &mut Dialer,
        routing: &mut Newest,
        mut probes: watch::Receiver<Report>,
    ) -> Farewell {
        let lost = |reason: String| Farewell::Lost { reason, welcomed: false };
        let mut reports = self.allocs.reports();
        let sent = Arc::clone(&reports.borrow_and_update());
        let (mut inbound, outbound) = match timeout(HELLO_TIMEOUT, self.open(server, &sent)).await {
            Ok(Ok(streams)) => streams,
            Ok(Err(reason)) => return lost(reason),
            Err(_) => return lost(format!("no answer within {HELLO_TIMEOUT:?}")),
        };
        match timeout(HELLO_TIMEOUT, receive(&mut inbound)).await {
            Ok(Ok(ServerMessage::Welcome { heartbeat_interval, servers, server_level, .. })) => {
                dialer.on_welcome(server, servers);
                tracing::info!(%server, "session open");
                self.note(Some(server), None, dialer);
                // What is known already is told at once, to a server that understands it.
                probes.mark_changed();
                let probes = (server_level >= PROBES_SINCE).then_some(probes);
                let speaker = Speaker { outbound, sent, reports, probes };
                let reason = self.converse(inbound, speaker, heartbeat_interval, routing).await;
                Farewell::Lost { reason, welcomed: true }
            }
            Ok(Ok(ServerMessage::NotLeader { leader })) => Farewell::Redirected(leader),
            Ok(Ok(ServerMessage::Refused { reason })) => Farewell::Refused(reason),
            Ok(Ok(_)) => lost("it began with something else than an answer to the hello".to_owned()),
            Ok(Err(reason)) => lost(reason),
            Err(_) => lost(format!("no welcome within {HELLO_TIMEOUT:?}")),
        }
    }

    async fn open(
        &self,
        server: SocketAddr,
        reports: &Reports,
    ) -> Result<(Streaming<pb::ServerMessage>, mpsc::Sender<pb::AgentMessage>), String> {
        let channel = self.credentials.channel(server).map_err(|error| report(&error))?;
        let (outbound, queue) = mpsc::channel(64);
        let node = Node { epoch: self.next_epoch().await?, ..self.node.clone() };
        let hello = Hello {
            version: model::VERSION.to_owned(),
            feature_level: model::FEATURE_LEVEL,
            node,
            allocs: reports.values().map(|update| (**update).clone()).collect(),
        };
        let hello = AgentMessage::Hello(Box::new(hello));
        outbound.send(hello.into()).await.map_err(|_| "the stream closed".to_owned())?;
        let mut client = pb::agents_client::AgentsClient::new(channel)
            .max_decoding_message_size(identity::RPC_MESSAGE_BYTES_MAX)
            .max_encoding_message_size(identity::RPC_MESSAGE_BYTES_MAX);
        let reply = client.session(ReceiverStream::new(queue)).await.map_err(|status| say(&status))?;
        Ok((reply.into_inner(), outbound))
    }

    async fn next_epoch(&self) -> Result<Epoch, String> {
        let store = self.store.clone();
        let epoch = tokio::task::spawn_blocking(move || store.next_epoch()).await.map_err(|error| error.to_string())?;
        epoch.map_err(|error| report(&error))
    }

    /// Returns why it ended.
    async fn converse(
        &mut self,
        mut inbound: Streaming<pb::ServerMessage>,
        mut speaker: Speaker,
        heartbeat: Duration,
        routing: &mut Newest,
    ) -> String {
        let heartbeat = heartbeat.max(HEARTBEAT_MIN);
        let mut heartbeats = interval_at(Instant::now() + heartbeat, heartbeat);
        let mut may_report = Instant::now();
        let mut logs = self.logs.for_session(speaker.outbound.clone());
        let mut asks = SessionAsks::new(self.allocs.clone(), speaker.outbound.clone());
        let mut held = Held::default();
        let mut probes = speaker.probes.take();
        loop {
            let step = tokio::select! {
                message = receive(&mut inbound) => match message {
                    Ok(message) => self.on_message(message, &mut held, routing, &mut logs, &mut asks).await,
                    Err(reason) => Err(reason),
                },
                _ = heartbeats.tick() => speaker.send(AgentMessage::Heartbeat).await,
                report = probe_report(&mut probes) => speaker.send(probe_message(report)).await,
                news = speaker.news(may_report) => {
                    may_report = Instant::now() + REPORT_SPACING;
                    match news {
                        Ok(news) => speaker.send(AgentMessage::Allocs(news)).await,
                        Err(reason) => Err(reason),
                    }
                }
            };
            if let Err(reason) = step {
                return reason;
            }
        }
    }

    async fn on_message(
        &self,
        message: ServerMessage,
        held: &mut Held,
        routing: &mut Newest,
        logs: &mut crate::logs::SessionLogs,
        asks: &mut SessionAsks,
    ) -> Result<(), String> {
        match message {
            ServerMessage::Allocations { generation, allocs } => {
                held.replace(generation, allocs);
                self.allocs.push(generation, held.to_vec()).await;
            }
            ServerMessage::AllocationsDelta { base, generation, allocs, gone } => {
                held.follow(base, generation, allocs, &gone)?;
                self.allocs.push(generation, held.to_vec()).await;
            }
            ServerMessage::Routing(snapshot) => routing.offer(snapshot),
            ServerMessage::RoutingDelta(delta) => routing.follow(delta)?,
            ServerMessage::ReadLogs { request_id, alloc_id, task, kind, offset, limit, follow } => {
                logs.open(request_id, wire::session::LogRange { alloc_id, task, kind, offset, limit, follow });
            }
            ServerMessage::CancelLogs { request_id } => logs.cancel(request_id),
            ServerMessage::Ask { request_id, request } => asks.ask(request_id, request),
            ServerMessage::Exec { request_id, request } => asks.exec(request_id, request),
            // Nothing runs that could be fed.
            ServerMessage::ExecInput { .. } => {}
            ServerMessage::NotLeader { .. } => return Err("it does not lead any more".to_owned()),
            ServerMessage::Refused { reason } => return Err(format!("it ended the session: {reason}")),
            ServerMessage::Welcome { .. } => return Err("it said welcome twice".to_owned()),
        }
        Ok(())
    }
}

async fn receive(inbound: &mut Streaming<pb::ServerMessage>) -> Result<ServerMessage, String> {
    match inbound.message().await {
        Ok(Some(message)) => ServerMessage::try_from(message).map_err(|error| format!("unreadable message: {error}")),
        Ok(None) => Err("it closed the session".to_owned()),
        Err(status) => Err(say(&status)),
    }
}

/// Without tonic's chain of causes, which says the same thing four times.
fn say(status: &tonic::Status) -> String {
    format!("{:?}: {}", status.code(), status.message())
}

fn probe_message(report: Report) -> AgentMessage {
    let (answering, unreachable) = (report.answering, report.unreachable);
    AgentMessage::Probes { answering: answering.into_iter().collect(), unreachable: unreachable.into_iter().collect() }
}

/// Waits until there is another one.
async fn probe_report(probes: &mut Option<watch::Receiver<Report>>) -> Report {
    let Some(probes) = probes else { return std::future::pending().await };
    match probes.changed().await {
        Ok(()) => probes.borrow_and_update().clone(),
        Err(_) => std::future::pending().await,
    }
}

struct Speaker {
    outbound: mpsc::Sender<pb::AgentMessage>,
    /// `None`: the server does not understand it.
    probes: Option<watch::Receiver<Report>>,
    /// What the server knows from this session: the difference to `reports` is what is still to be said.
    sent: Reports,
    reports: watch::Receiver<Reports>,
}

impl Speaker {
    async fn send(&self, message: AgentMessage) -> Result<(), String> {
        self.outbound.send(message.into()).await.map_err(|_| "the connection is gone".to_owned())
    }

    /// Waits for news and for the moment when it may be told; what it returns counts as sent. A wait that is given up loses
    /// nothing.
    async fn news(&mut self, not_before: Instant) -> Result<Vec<AllocUpdate>, String> {
        loop {
            self.reports.changed().await.map_err(|_| "the agent ends".to_owned())?;
            // Marked as seen only below, so that a wait that is given up starts over.
            self.reports.mark_changed();
            sleep_until(not_before).await;
            let newest = Arc::clone(&self.reports.borrow_and_update());
            let news = difference(&self.sent, &newest);
            self.sent = newest;
            if !news.is_empty() {
                return Ok(news);
            }
        }
    }
}

fn difference(sent: &Reports, newest: &Reports) -> Vec<AllocUpdate> {
    let is_news = |(id, update): &(&AllocId, &Arc<AllocUpdate>)| sent.get(id).is_none_or(|old| old != *update);
    newest.iter().filter(is_news).map(|(_, update)| (**update).clone()).collect()
}

/// The newest routing state, of whichever server: older ones are refused.
#[derive(Debug)]
struct Newest {
    generation: Generation,
    to: watch::Sender<Option<RoutingSnapshot>>,
}

/// The allocations that this session's server has told of: what deltas build on.
#[derive(Debug, Default)]
struct Held {
    generation: Generation,
    allocs: BTreeMap<AllocId, Allocation>,
}

impl Held {
    fn replace(&mut self, generation: Generation, allocs: Vec<Allocation>) {
        self.generation = generation;
        self.allocs = allocs.into_iter().map(|alloc| (alloc.id, alloc)).collect();
    }

    /// A delta of another state ends the session: the next one begins with the whole.
    fn follow(
        &mut self,
        base: Generation,
        generation: Generation,
        allocs: Vec<Allocation>,
        gone: &[AllocId],
    ) -> Result<(), String> {
        if base != self.generation {
            return Err(format!("it sent a change of allocations {base}, this node holds {}", self.generation));
        }
        gone.iter().for_each(|id| drop(self.allocs.remove(id)));
        self.allocs.extend(allocs.into_iter().map(|alloc| (alloc.id, alloc)));
        self.generation = generation;
        Ok(())
    }

    fn to_vec(&self) -> Vec<Allocation> {
        self.allocs.values().cloned().collect()
    }
}

impl Newest {
    /// As [`Held::follow`]. Older states are refused, as by [`Newest::offer`].
    fn follow(&mut self, delta: RoutingDelta) -> Result<(), String> {
        let held = self.to.borrow().clone();
        let mut next = held.filter(|held| held.generation == delta.base).ok_or_else(|| {
            format!("it sent a change of routing {}, this node holds {}", delta.base, self.generation)
        })?;
        next.follow(delta);
        self.offer(next);
        Ok(())
    }

    fn offer(&mut self, snapshot: RoutingSnapshot) {
        if snapshot.generation < self.generation {
            tracing::warn!(held = %self.generation, refused = %snapshot.generation, "refused an older routing state");
            return;
        }
        self.generation = snapshot.generation;
        self.to.send_replace(Some(snapshot));
    }
}

/// Publishing rings takes a while, and heartbeats must not wait for it. What comes meanwhile replaces what waits.
fn forward_routing(data_path: Arc<dyn DataPath>, mut from: watch::Receiver<Option<RoutingSnapshot>>) {
    tokio::spawn(async move {
        while from.changed().await.is_ok() {
            let Some(snapshot) = from.borrow_and_update().clone() else { continue };
            let generation = snapshot.generation;
            if let Err(reason) = data_path.set_routing(snapshot).await {
                tracing::error!(%generation, reason, "the data path does not follow yet");
            }
        }
    });
}

/// Which server to dial next, and when.
#[derive(Debug)]
struct Dialer {
    servers: Vec<SocketAddr>,
    next: usize,
    /// Said to lead, or the last to have welcomed us.
    leader: Option<SocketAddr>,
    failures: u32,
    redirections: u32,
    was_welcomed: bool,
    configured: Vec<SocketAddr>,
}

impl Dialer {
    fn new(configured: Vec<SocketAddr>) -> Self {
        let servers = configured.clone();
        Self { servers, next: 0, leader: None, failures: 0, redirections: 0, was_welcomed: false, configured }
    }

    fn next(&mut self) -> SocketAddr {
        if let Some(leader) = self.leader.take() {
            return leader;
        }
        let server = self.servers[self.next % self.servers.len()];
        self.next = (self.next + 1) % self.servers.len();
        server
    }

    /// The servers' own list wins, those of the configuration stay as a last resort.
    fn on_welcome(&mut self, server: SocketAddr, told: Vec<SocketAddr>) {
        self.was_welcomed = true;
        self.failures = 0;
        self.redirections = 0;
        self.leader = Some(server);
        let mut known: BTreeMap<SocketAddr, ()> = BTreeMap::new();
        let all = told.into_iter().chain(self.configured.iter().copied());
        self.servers = all.filter(|server| known.insert(*server, ()).is_none()).collect();
    }

    fn on_redirected(&mut self, leader: Option<SocketAddr>) {
        self.redirections += 1;
        if leader.is_none() || self.redirections > REDIRECTIONS_MAX {
            self.on_failure();
        } else {
            self.leader = leader;
        }
    }

    fn on_failure(&mut self) {
        self.failures = self.failures.saturating_add(1);
        self.redirections = 0;
    }

    /// Doubles up to a second, the upper half of it drawn: after a loss all nodes dial, but not in the same moment.
    fn delay(&self, jitter: f64) -> Duration {
        if self.failures == 0 {
            return Duration::ZERO;
        }
        let full = BACKOFF_FIRST.saturating_mul(1 << (self.failures - 1).min(8)).min(BACKOFF_MAX);
        full.mul_f64(0.5 + jitter.clamp(0.0, 1.0) / 2.0)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use model::ClientStatus;

    fn server(number: u8) -> SocketAddr {
        ([10, 77, 0, number], 4647).into()
    }

    #[test]
    fn servers_are_dialled_in_turn_and_a_named_leader_first() {
        let mut dialer = Dialer::new(vec![server(21), server(22)]);
        assert_eq!([dialer.next(), dialer.next(), dialer.next()], [server(21), server(22), server(21)]);
        dialer.on_redirected(Some(server(23)));
        assert_eq!((dialer.delay(1.0), dialer.next()), (Duration::ZERO, server(23)));
        dialer.on_welcome(server(23), vec![server(23), server(24)]);
        assert_eq!(dialer.servers, [server(23), server(24), server(21), server(22)]);
        assert_eq!(dialer.next(), server(23), "the one that welcomed us is tried first after a loss");
    }

    #[test]
    fn the_delay_grows_to_a_second_and_no_further() {
        let mut dialer = Dialer::new(vec![server(21)]);
        let mut delays = Vec::new();
        for _ in 0..100 {
            dialer.on_failure();
            delays.push(dialer.delay(1.0).as_millis());
        }
        assert_eq!(delays[..5], [100, 200, 400, 800, 1000]);
        assert_eq!(delays[99], 1000);
        assert_eq!(dialer.delay(0.0), Duration::from_millis(500));
    }

    #[test]
    fn servers_that_point_at_each_other_are_a_failure() {
        let mut dialer = Dialer::new(vec![server(21), server(22)]);
        for number in [22, 21, 22, 21] {
            dialer.on_redirected(Some(server(number)));
            assert_eq!(dialer.delay(1.0), Duration::ZERO);
            dialer.next();
        }
        dialer.on_redirected(Some(server(22)));
        assert!(dialer.delay(1.0) > Duration::ZERO);
    }

    #[test]
    fn older_routing_is_refused() {
        let (to, from) = watch::channel(None);
        let mut newest = Newest { generation: Generation(0), to };
        let held = [3, 5, 4, 5, 6].map(|number| {
            newest.offer(RoutingSnapshot { generation: Generation(number), ..RoutingSnapshot::default() });
            from.borrow().as_ref().map_or(0, |held: &RoutingSnapshot| held.generation.0)
        });
        assert_eq!(held, [3, 5, 5, 5, 6]);
    }

    #[test]
    fn only_what_changed_is_reported() {
        let update = |number: u128, client| {
            let alloc_id = AllocId::from_random(number);
            let (task_states, checks) = (BTreeMap::new(), BTreeMap::new());
            let update =
                AllocUpdate { alloc_id, client, client_description: String::new(), task_states, address: None, checks };
            (alloc_id, Arc::new(update))
        };
        let sent = Arc::new(BTreeMap::from([update(1, ClientStatus::Running), update(2, ClientStatus::Running)]));
        let newest = Arc::new(BTreeMap::from([
            update(1, ClientStatus::Running),
            update(2, ClientStatus::Pending),
            update(3, ClientStatus::Running),
        ]));
        let news: Vec<AllocId> = difference(&sent, &newest).into_iter().map(|update| update.alloc_id).collect();
        let mut expect = vec![AllocId::from_random(2), AllocId::from_random(3)];
        expect.sort();
        assert_eq!(news, expect);
    }
}
