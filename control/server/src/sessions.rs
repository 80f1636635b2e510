//! The leader's sessions with agents. A session has two halves that share nothing but its registration: what comes in is
//! handled by a task, what goes out is a stream that makes each message when the connection can take it. So a slow agent
//! never has more than one message waiting, and always gets the newest state next.

use crate::clock;
use crate::logs::Chunk;
use crate::member::{Member, ProposeError};
use crate::pb;
use crate::routing;
use catalog::Catalog;
use futures::Stream;
use liveness::{LinkState, PROBERS, Report};
use model::{
    AllocId, AllocUpdate, Allocation, Command, DesiredStatus, Epoch, EvalId, EvalStatus, EvalTrigger, Evaluation,
    Generation, Index, JobId, Node, NodeId, NodeStatus, RoutingDelta, RoutingSnapshot, Timestamp,
};
use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::net::SocketAddr;
use std::pin::Pin;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;
use tokio::sync::{Notify, mpsc, watch};
use tokio::time::Instant;
use tonic::{Status, Streaming};
use wire::session::{AgentMessage, Hello, ServerMessage};

const HELLO_TIMEOUT: Duration = Duration::from_secs(10);
const CONTROL_MESSAGES_MAX: usize = 32;
/// Allocations that one command reports; halved when what they say is too much even so.
const UPDATES_MAX: usize = 256;
/// The level of agents that take changes instead of whole states.
const DELTAS_SINCE: u32 = 2;

pub(crate) type Outbound = Pin<Box<dyn Stream<Item = Result<pb::ServerMessage, Status>> + Send>>;

/// Which nodes have a session with this server.
#[derive(Default)]
pub(crate) struct Sessions {
    open: Mutex<Open>,
    /// A session has come or gone, or says something new of its peers.
    news: Notify,
}

/// A node's session, as it bears on whether the node is alive.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct Link {
    pub epoch: Epoch,
    pub state: LinkState,
    pub report: Option<Report>,
}

#[derive(Default)]
struct Open {
    last_serial: u64,
    by_node: HashMap<NodeId, Registration>,
}

struct Registration {
    serial: u64,
    epoch: Epoch,
    heard: Instant,
    /// What the node says of the peers that it probes.
    report: Option<Report>,
    control: mpsc::Sender<ServerMessage>,
    /// Dropped or set: the session ends.
    cancel: watch::Sender<bool>,
}

/// What the two halves of a session are made of.
struct Ticket {
    serial: u64,
    control: mpsc::Receiver<ServerMessage>,
    canceled: watch::Receiver<bool>,
}

impl Sessions {
    /// Every session; one is silent when nothing was heard of it for `silent_after`.
    pub fn links(&self, silent_after: Duration) -> BTreeMap<NodeId, Link> {
        let (now, open) = (Instant::now(), self.lock());
        let link = |registration: &Registration| Link {
            epoch: registration.epoch,
            state: match now.saturating_duration_since(registration.heard) < silent_after {
                true => LinkState::Live,
                false => LinkState::Silent,
            },
            report: registration.report.clone(),
        };
        open.by_node.iter().map(|(id, registration)| (*id, link(registration))).collect()
    }

    /// Resolves when something has changed since the last call.
    pub async fn news(&self) {
        self.news.notified().await;
    }

    fn on_heard(&self, node_id: NodeId, serial: u64) {
        self.with(node_id, serial, |registration| registration.heard = Instant::now());
    }

    fn on_report(&self, node_id: NodeId, serial: u64, report: Report) {
        self.with(node_id, serial, |registration| registration.report = Some(report));
        self.news.notify_one();
    }

    fn with(&self, node_id: NodeId, serial: u64, change: impl FnOnce(&mut Registration)) {
        let mut open = self.lock();
        if let Some(registration) = open.by_node.get_mut(&node_id).filter(|found| found.serial == serial) {
            change(registration);
        }
    }

    /// Where to put messages for the node's agent.
    pub fn control(&self, node_id: NodeId) -> Option<mpsc::Sender<ServerMessage>> {
        self.lock().by_node.get(&node_id).map(|registration| registration.control.clone())
    }

    /// Ends every session; this server leads no more.
    pub fn close_all(&self) {
        self.lock().by_node.clear();
    }

    /// The newest session of a node takes the place of an older one.
    fn open(&self, node_id: NodeId, epoch: Epoch) -> Ticket {
        let mut open = self.lock();
        open.last_serial += 1;
        let serial = open.last_serial;
        let (control_sender, control) = mpsc::channel(CONTROL_MESSAGES_MAX);
        let (cancel, canceled) = watch::channel(false);
        let (heard, report) = (Instant::now(), None);
        open.by_node.insert(node_id, Registration { serial, epoch, heard, report, control: control_sender, cancel });
        drop(open);
        self.news.notify_one();
        Ticket { serial, control, canceled }
    }

    /// Whether the session was still the node's newest.
    fn close(&self, node_id: NodeId, serial: u64) -> bool {
        let mut open = self.lock();
        let newest = open.by_node.get(&node_id).is_some_and(|registration| registration.serial == serial);
        if newest && let Some(registration) = open.by_node.remove(&node_id) {
            registration.cancel.send_replace(true);
            self.news.notify_one();
        }
        newest
    }

    fn lock(&self) -> MutexGuard<'_, Open> {
        self.open.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Opens a session for the node that the caller's certificate names. The first message of the answer says whether it is
/// one: Welcome, NotLeader or Refused.
pub(crate) async fn open(member: Arc<Member>, node_id: NodeId, mut inbound: Streaming<pb::AgentMessage>) -> Outbound {
    // What the hello tells is told to the state as of now: a snapshot restored later knows nothing of it.
    let since = member.catalog.borrow().index();
    match greet(&member, node_id, &mut inbound).await {
        Ok(hello) => {
            let ticket = member.sessions.open(node_id, hello.node.epoch);
            tracing::info!(node = %hello.node.name, id = %node_id, epoch = hello.node.epoch.0, "session opened");
            let level = hello.feature_level;
            let session = Session { node_id, epoch: hello.node.epoch, serial: ticket.serial, since, level };
            let canceled = ticket.canceled.clone();
            tokio::spawn(session.listen(Arc::clone(&member), inbound, canceled));
            outbound(member, session, ticket)
        }
        Err(answer) => Box::pin(futures::stream::iter([Ok(answer.into())])),
    }
}

#[derive(Clone, Copy)]
struct Session {
    node_id: NodeId,
    epoch: Epoch,
    serial: u64,
    since: Index,
    /// What the agent understands.
    level: u32,
}

/// Reads the Hello and registers the node; `Err` is what the agent is told instead of a welcome.
async fn greet(
    member: &Member,
    node_id: NodeId,
    inbound: &mut Streaming<pb::AgentMessage>,
) -> Result<Hello, ServerMessage> {
    if !member.is_leader() {
        return Err(not_leader(member));
    }
    let hello = read_hello(inbound).await.map_err(|reason| refused(node_id, reason))?;
    check_hello(&member.snapshot(), node_id, &hello).map_err(|reason| refused(node_id, reason))?;
    let was = member.snapshot().node(node_id).map(|node| node.status);
    let node = Node { status: NodeStatus::Ready, status_changed_at: clock::now(), ..hello.node.clone() };
    let registered = member.propose(Command::RegisterNode(Box::new(node))).await;
    registered.map_err(|error| turned_away(member, node_id, error))?;
    let reported = report(member, node_id, hello.node.epoch, hello.allocs.clone()).await;
    reported.map_err(|error| turned_away(member, node_id, error))?;
    if was == Some(NodeStatus::Disconnected) {
        let evals = crate::house::evals_of_node(&member.snapshot(), node_id);
        let looked = member.propose(Command::UpsertEvals(evals)).await;
        looked.map_err(|error| turned_away(member, node_id, error))?;
    }
    Ok(hello)
}

async fn read_hello(inbound: &mut Streaming<pb::AgentMessage>) -> Result<Hello, String> {
    let first = tokio::time::timeout(HELLO_TIMEOUT, inbound.message()).await;
    let message = match first {
        Ok(Ok(Some(message))) => AgentMessage::try_from(message).map_err(|error| error.to_string())?,
        Ok(Ok(None)) => return Err("the session ended before its hello".to_owned()),
        Ok(Err(status)) => return Err(status.message().to_owned()),
        Err(_) => return Err(format!("no hello came within {} s", HELLO_TIMEOUT.as_secs())),
    };
    match message {
        AgentMessage::Hello(hello) => Ok(*hello),
        _ => Err("a session starts with a hello; run the same release on agents and servers".to_owned()),
    }
}

fn check_hello(catalog: &Catalog, node_id: NodeId, hello: &Hello) -> Result<(), String> {
    if hello.node.id != node_id {
        return Err(format!(
            "the certificate is of node {node_id}, the hello of node {}; an agent speaks for its own node only",
            hello.node.id
        ));
    }
    match catalog.feature_level() {
        // Servers are upgraded first, so agents of the release before this one are there for a while.
        cluster if hello.feature_level + 1 < cluster => Err(format!(
            "the agent knows feature level {}, the cluster is at {cluster}; upgrade the agent",
            hello.feature_level
        )),
        _ => Ok(()),
    }
}

fn not_leader(member: &Member) -> ServerMessage {
    ServerMessage::NotLeader { leader: member.leader_address() }
}

fn refused(node_id: NodeId, reason: String) -> ServerMessage {
    tracing::warn!(node = %node_id, reason, "agent refused");
    ServerMessage::Refused { reason }
}

/// A refusal is final, and so is what no log takes; anything else is answered so that the agent tries again.
fn turned_away(member: &Member, node_id: NodeId, error: ProposeError) -> ServerMessage {
    match error {
        ProposeError::Refused(refusal) => refused(node_id, refusal.to_string()),
        ProposeError::TooLarge { reason } => refused(node_id, format!("the agent's report: {reason}")),
        _ => not_leader(member),
    }
}

impl Session {
    /// Handles what the agent sends until the stream ends, goes silent or is canceled.
    async fn listen(
        self,
        member: Arc<Member>,
        mut inbound: Streaming<pb::AgentMessage>,
        mut canceled: watch::Receiver<bool>,
    ) {
        let silence_max = member.timing.heartbeat_interval * 4;
        let reason = loop {
            let message = tokio::select! {
                message = tokio::time::timeout(silence_max, inbound.message()) => message,
                _ = canceled.changed() => break "replaced or this server leads no more".to_owned(),
            };
            match message {
                Ok(Ok(Some(message))) => {
                    member.sessions.on_heard(self.node_id, self.serial);
                    if let Err(reason) = self.handle(&member, message).await {
                        break reason;
                    }
                }
                Ok(Ok(None)) => break "the agent ended it".to_owned(),
                Ok(Err(status)) => break status.message().to_owned(),
                Err(_) => break format!("nothing heard for {silence_max:?}"),
            }
        };
        self.end(&member, &reason).await;
    }

    async fn handle(&self, member: &Member, message: pb::AgentMessage) -> Result<(), String> {
        if !member.is_leader() {
            return Err("this server leads no more".to_owned());
        }
        match AgentMessage::try_from(message).map_err(|error| error.to_string())? {
            AgentMessage::Heartbeat => Ok(()),
            AgentMessage::Probes { answering, unreachable } => {
                let unreachable: BTreeSet<NodeId> = unreachable.into_iter().take(PROBERS * 2).collect();
                let answering =
                    answering.into_iter().filter(|id| !unreachable.contains(id)).take(PROBERS * 2).collect();
                member.sessions.on_report(self.node_id, self.serial, Report { answering, unreachable });
                Ok(())
            }
            AgentMessage::Hello(_) => Err("a second hello".to_owned()),
            AgentMessage::Allocs(updates) => self.report(member, updates).await,
            AgentMessage::Answer { request_id, answer } => {
                member.asks.deliver(self.node_id, request_id, answer);
                Ok(())
            }
            // Nobody runs programs in tasks through this server.
            AgentMessage::ExecOutput { .. } => Ok(()),
            AgentMessage::LogChunk { request_id, data, eof, error } => {
                member.logs.deliver(self.node_id, request_id, Chunk { data, eof, error });
                Ok(())
            }
        }
    }

    /// A report that cannot be committed ends the session: the agent reports everything again in its next hello.
    async fn report(&self, member: &Member, updates: Vec<AllocUpdate>) -> Result<(), String> {
        report(member, self.node_id, self.epoch, updates).await.map_err(|error| error.to_string())
    }

    async fn end(self, member: &Member, reason: &str) {
        let newest = member.sessions.close(self.node_id, self.serial);
        tracing::info!(node = %self.node_id, epoch = self.epoch.0, reason, "session ended");
        if !newest || !member.is_leader() {
            return;
        }
        // Whether the node is suspect without it, the leader judges: an agent that restarts is soon back.
        member.logs.forget_node(self.node_id);
        member.asks.forget_node(self.node_id);
    }
}

/// Commits what a node reports of its allocations, with evaluations of the jobs that need another look.
async fn report(member: &Member, node_id: NodeId, epoch: Epoch, updates: Vec<AllocUpdate>) -> Result<(), ProposeError> {
    let mut parts: Vec<Vec<AllocUpdate>> = updates.chunks(UPDATES_MAX).rev().map(<[_]>::to_vec).collect();
    while let Some(mut part) = parts.pop() {
        match report_part(member, node_id, epoch, part.clone()).await {
            Err(ProposeError::TooLarge { .. }) if part.len() > 1 => {
                parts.push(part.split_off(part.len() / 2));
                parts.push(part);
            }
            other => other?,
        }
    }
    Ok(())
}

async fn report_part(
    member: &Member,
    node_id: NodeId,
    epoch: Epoch,
    updates: Vec<AllocUpdate>,
) -> Result<(), ProposeError> {
    let jobs = jobs_to_look_at(&member.snapshot(), &updates);
    let evals =
        jobs.into_iter().map(|(job_id, priority)| new_eval(job_id, priority, EvalTrigger::AllocUpdate)).collect();
    member.propose(Command::UpdateAllocs { node_id, epoch, updates, evals }).await.map(drop)
}

/// Jobs of which an allocation ended that should run, or became healthy while outdated ones wait for their turn.
fn jobs_to_look_at(catalog: &Catalog, updates: &[AllocUpdate]) -> BTreeMap<JobId, u8> {
    let known = updates.iter().filter_map(|update| Some((catalog.alloc(update.alloc_id)?, update)));
    known
        .filter(|(alloc, update)| ended_early(alloc, update) || turned_healthy_amid_update(catalog, alloc, update))
        .filter_map(|(alloc, _)| catalog.job(alloc.job_id()))
        .map(|job| (job.id.clone(), job.priority))
        .collect()
}

fn ended_early(alloc: &Allocation, update: &AllocUpdate) -> bool {
    alloc.desired == DesiredStatus::Run && alloc.is_live() && update.client.is_terminal()
}

fn turned_healthy_amid_update(catalog: &Catalog, alloc: &Allocation, update: &AllocUpdate) -> bool {
    let after = Allocation { client: update.client, checks: update.checks.clone(), ..alloc.clone() };
    !alloc.is_healthy() && after.is_healthy() && has_outdated(catalog, alloc.job_id())
}

fn has_outdated(catalog: &Catalog, job_id: &JobId) -> bool {
    let newest = catalog.job(job_id).map(|job| job.version);
    let mut live = catalog.allocs_of_job(job_id).filter(|alloc| alloc.is_live());
    live.any(|alloc| Some(alloc.job.version) != newest && alloc.desired == DesiredStatus::Run)
}

/// A pending evaluation, to be looked at at once.
pub(crate) fn new_eval(job_id: JobId, priority: u8, trigger: EvalTrigger) -> Evaluation {
    let now = clock::now();
    Evaluation {
        id: EvalId::from_random(clock::random_bits()),
        job_id,
        priority,
        trigger,
        status: EvalStatus::Pending,
        status_description: String::new(),
        wait_until: Timestamp::NEVER,
        failures: BTreeMap::new(),
        queued: BTreeMap::new(),
        snapshot_index: Index::default(),
        created_at: now,
        modified_at: now,
        created_at_index: Index::default(),
        modified_at_index: Index::default(),
    }
}

/// What was pushed last, so that only changes are pushed.
struct Outgoing {
    member: Arc<Member>,
    session: Session,
    ticket: Ticket,
    catalog: watch::Receiver<Catalog>,
    welcomed: bool,
    allocs_sent: Option<(Generation, BTreeMap<AllocId, Index>)>,
    routing_sent: Option<Arc<RoutingSnapshot>>,
}

fn outbound(member: Arc<Member>, session: Session, ticket: Ticket) -> Outbound {
    let catalog = member.catalog.clone();
    let state = Outgoing { member, session, ticket, catalog, welcomed: false, allocs_sent: None, routing_sent: None };
    Box::pin(futures::stream::unfold(state, |mut state| async move {
        let message = state.next().await?;
        Some((Ok(message.into()), state))
    }))
}

impl Outgoing {
    /// The next message, made from the newest state; `None` when the session is over.
    async fn next(&mut self) -> Option<ServerMessage> {
        if !std::mem::replace(&mut self.welcomed, true) {
            return Some(self.welcome());
        }
        loop {
            if self.ticket.canceled.has_changed().unwrap_or(true) {
                return None;
            }
            let catalog = self.catalog.borrow_and_update().clone();
            if catalog.restored_at() > self.session.since {
                tracing::info!(node = %self.session.node_id, "the state was restored: the agent is to report anew");
                return None;
            }
            if let Some(message) = self.allocations(&catalog).or_else(|| self.routing(&catalog)) {
                return Some(message);
            }
            tokio::select! {
                biased;
                _ = self.ticket.canceled.changed() => return None,
                message = self.ticket.control.recv() => return message,
                changed = self.catalog.changed() => changed.ok()?,
            }
        }
    }

    fn welcome(&self) -> ServerMessage {
        let catalog = self.member.snapshot();
        let servers: Vec<SocketAddr> = catalog.servers().map(|server| server.rpc_address).collect();
        ServerMessage::Welcome {
            feature_level: catalog.feature_level(),
            heartbeat_interval: self.member.timing.heartbeat_interval,
            servers,
            server_level: model::FEATURE_LEVEL,
        }
    }

    fn allocations(&mut self, catalog: &Catalog) -> Option<ServerMessage> {
        let live = || catalog.allocs_of_node(self.session.node_id).filter(|alloc| alloc.is_live());
        let state: BTreeMap<AllocId, Index> = live().map(|alloc| (alloc.id, alloc.modified_at_index)).collect();
        let generation = Generation(catalog.index().0);
        let sent = match &self.allocs_sent {
            Some((_, sent)) if *sent == state => return None,
            Some(sent) if self.session.level >= DELTAS_SINCE => Some(sent),
            _ => None,
        };
        let message = match sent {
            Some((base, sent)) => ServerMessage::AllocationsDelta {
                base: *base,
                generation,
                allocs: live()
                    .filter(|alloc| sent.get(&alloc.id) != Some(&alloc.modified_at_index))
                    .map(|alloc| Allocation::clone(alloc))
                    .collect(),
                gone: sent.keys().filter(|id| !state.contains_key(id)).copied().collect(),
            },
            None => ServerMessage::Allocations {
                generation,
                allocs: live().map(|alloc| Allocation::clone(alloc)).collect(),
            },
        };
        self.allocs_sent = Some((generation, state));
        Some(message)
    }

    fn routing(&mut self, catalog: &Catalog) -> Option<ServerMessage> {
        if self.routing_sent.as_ref().is_some_and(|sent| sent.generation == catalog.routing_generation()) {
            return None;
        }
        let state = self.member.routing.state(catalog);
        let sent = self.routing_sent.replace(Arc::clone(&state));
        if self.session.level < DELTAS_SINCE {
            return Some(ServerMessage::Routing(routing::in_old_words(&state)));
        }
        let step = sent.and_then(|sent| self.member.routing.step(&sent, &state));
        Some(match step {
            Some(step) => ServerMessage::RoutingDelta(RoutingDelta::clone(&step)),
            None => ServerMessage::Routing(RoutingSnapshot::clone(&state)),
        })
    }
}
