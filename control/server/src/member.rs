//! This server as a member of its cluster: what every part of the shell shares, and the two ways to the replicated state,
//! proposing a command and reading what is committed.

use crate::asks::Asks;
use crate::clock;
use crate::disk::Disk;
use crate::events::Events;
use crate::logs::LogRequests;
use crate::peers::Peers;
use crate::sessions::Sessions;
use catalog::Catalog;
use consensus::{Raft, Role as RaftRole, Status};
use identity::{CertificateAuthority, LiveCredentials, SealKey};
use model::{Applied, Command, Envelope, Index, KvChange, Refusal, ServerId, Table, VariableChange};
use std::net::SocketAddr;
use std::sync::{Arc, Mutex, OnceLock};
use std::time::Duration;
use tokio::sync::{Semaphore, watch};
use tokio::time::Instant;
use tonic::Code;

/// From the first try to the last of one proposal; an election takes about a second.
const PROPOSE_FOR: Duration = Duration::from_secs(10);
const FORWARD_TIMEOUT: Duration = Duration::from_secs(8);
const RETRY_DELAY: Duration = Duration::from_millis(100);
const READ_FOR: Duration = Duration::from_secs(5);
/// How long an acknowledged write may take to get here.
const HOLD_FOR: Duration = Duration::from_secs(1);

pub(crate) struct Member {
    pub id: ServerId,
    pub name: String,
    pub region: String,
    pub datacenter: String,
    pub rpc_address: SocketAddr,
    pub raft: Raft,
    pub status: watch::Receiver<Status>,
    pub catalog: watch::Receiver<Catalog>,
    pub events: Arc<Events>,
    pub peers: Arc<Peers>,
    pub sessions: Sessions,
    pub routing: crate::routing::RoutingFeed,
    pub logs: LogRequests,
    pub asks: Asks,
    pub seal: SealKey,
    pub credentials: LiveCredentials,
    pub disk: Disk,
    pub certificate_validity: Duration,
    pub cluster_secret: Option<identity::ClusterSecret>,
    /// How the servers are, as seen by this one while it leads.
    pub autopilot: Mutex<Vec<crate::autopilot::ServerHealth>>,
    pub timing: crate::Timing,
    pub authority: OnceLock<CertificateAuthority>,
    /// Places for joins under way.
    pub joins: Semaphore,
    /// Set when this server is to stop.
    pub stop: watch::Receiver<bool>,
}

#[derive(Debug, thiserror::Error)]
pub enum ProposeError {
    /// Decided by the replicated state: every server answers the same.
    #[error("{0}")]
    Refused(Refusal),
    #[error("no server leads the cluster; check that a majority of the servers runs, then try again")]
    NoLeader,
    #[error("too many commands wait; try again in a moment")]
    Overloaded,
    #[error("{reason}")]
    TooLarge { reason: String },
    #[error(
        "the connection to the leader broke before it answered; look whether the change took effect, then repeat it"
    )]
    OutcomeUnknown,
    #[error("the command needs feature level {needed}, the cluster is at {cluster}; upgrade every server first")]
    FeatureLevel { cluster: u32, needed: u32 },
    #[error("the leader's answer cannot be read: {0}; run the same release on every server")]
    Answer(String),
}

#[derive(Debug, thiserror::Error)]
#[error(
    "no server leads the cluster, so nothing newer than this server's own state can be read; \
    check that a majority of the servers runs, or add ?stale to read without it"
)]
pub struct ReadUnavailable;

/// How one try to propose ended without an answer.
enum Missed {
    /// It is surely not in the log.
    NotSent,
    /// It may be in the log or still get there.
    Unknown,
    Final(ProposeError),
}

impl Member {
    /// Puts a command into the log, by way of the leader, and waits for what applying it answered.
    pub async fn propose(&self, command: Command) -> Result<Applied, ProposeError> {
        let envelope = Envelope { proposed_at: clock::now(), feature_level: command.feature_level(), command };
        self.check_feature_level(envelope.feature_level)?;
        let bytes = wire::command::encode(&envelope);
        check_size(&envelope.command, bytes.len())?;
        let deadline = Instant::now() + PROPOSE_FOR;
        let mut uncertain = false;
        loop {
            let missed = match self.try_propose(&bytes).await {
                Ok(Err(refusal)) if uncertain => return self.settle_repeat(&envelope.command, refusal).await,
                Ok(outcome) => {
                    let applied = outcome.map_err(ProposeError::Refused)?;
                    self.hold(applied.index).await;
                    return Ok(applied);
                }
                Err(missed) => missed,
            };
            match missed {
                Missed::Final(error) => return Err(error),
                Missed::Unknown => {
                    if let Some(applied) = self.find_applied(&envelope.command).await {
                        return Ok(applied);
                    }
                    if !is_repeatable(&envelope.command) {
                        return Err(ProposeError::OutcomeUnknown);
                    }
                    uncertain = true;
                }
                Missed::NotSent => {}
            }
            if Instant::now() >= deadline {
                return Err(ProposeError::NoLeader);
            }
            tokio::time::sleep(RETRY_DELAY).await;
        }
    }

    /// Puts an encoded command into this server's own log, which only the leader's accepts; for proposals that another
    /// server forwards.
    pub async fn propose_here(&self, bytes: Vec<u8>) -> Result<(u64, Vec<u8>), consensus::ProposeError> {
        let committed = self.raft.propose(bytes).await?;
        Ok((committed.index, committed.response))
    }

    /// Waits until the local catalog holds every write that was acknowledged before this call.
    pub async fn read_barrier(&self) -> Result<(), ReadUnavailable> {
        let deadline = Instant::now() + READ_FOR;
        // A read asked for before the first commit of a term may be lost: ask again.
        while Instant::now() < deadline {
            match tokio::time::timeout(READ_FOR / 5, self.raft.read_index()).await {
                Ok(Ok(_)) => return Ok(()),
                Ok(Err(consensus::ReadError::Stopped)) => return Err(ReadUnavailable),
                Ok(Err(_)) => tokio::time::sleep(RETRY_DELAY).await,
                Err(_) => {}
            }
        }
        Err(ReadUnavailable)
    }

    /// Waits until what a command did can be read here: a follower lags behind the leader that it asked.
    async fn hold(&self, index: Index) {
        let mut catalog = self.catalog.clone();
        let held = catalog.wait_for(|catalog| catalog.index() >= index);
        if tokio::time::timeout(HOLD_FOR, held).await.is_err() {
            tracing::debug!(index = index.0, "an acknowledged write is not here yet");
        }
    }

    pub fn snapshot(&self) -> Catalog {
        self.catalog.borrow().clone()
    }

    pub fn is_leader(&self) -> bool {
        self.status.borrow().role == RaftRole::Leader
    }

    pub fn leader(&self) -> Option<ServerId> {
        self.status.borrow().leader.filter(|id| *id != 0).map(ServerId)
    }

    pub fn leader_address(&self) -> Option<SocketAddr> {
        self.leader().and_then(|id| if id == self.id { Some(self.rpc_address) } else { self.peers.address(id) })
    }

    /// The CA, unsealed at its first use. A server that has just joined first has to hear of it.
    pub async fn authority(&self) -> anyhow::Result<&CertificateAuthority> {
        if let Some(authority) = self.authority.get() {
            return Ok(authority);
        }
        if self.catalog.borrow().authority().is_none() {
            self.read_barrier().await?;
        }
        let catalog = self.snapshot();
        let sealed = catalog.authority().ok_or_else(|| anyhow::anyhow!("{}", Refusal::NotBootstrapped))?;
        let key = self.seal.open(&sealed.sealed_key)?;
        let authority = CertificateAuthority::load(&sealed.certificate_der, &key)?;
        Ok(self.authority.get_or_init(|| authority))
    }

    fn check_feature_level(&self, needed: u32) -> Result<(), ProposeError> {
        let cluster = self.catalog.borrow().feature_level();
        match needed <= cluster {
            true => Ok(()),
            false => Err(ProposeError::FeatureLevel { cluster, needed }),
        }
    }

    async fn try_propose(&self, bytes: &[u8]) -> Result<wire::outcome::Outcome, Missed> {
        let response = match self.leader() {
            Some(id) if id == self.id => self.propose_here(bytes.to_vec()).await.map_err(missed_here)?.1,
            Some(id) => self.forward(id, bytes).await?,
            None => return Err(Missed::NotSent),
        };
        wire::outcome::decode(&response).map_err(|error| Missed::Final(ProposeError::Answer(error.to_string())))
    }

    async fn forward(&self, leader: ServerId, bytes: &[u8]) -> Result<Vec<u8>, Missed> {
        let mut client = self.peers.client(leader).ok_or(Missed::NotSent)?;
        let mut request = tonic::Request::new(crate::pb::ProposeRequest { envelope: bytes.to_vec() });
        request.set_timeout(FORWARD_TIMEOUT);
        match tokio::time::timeout(FORWARD_TIMEOUT, client.propose(request)).await {
            Ok(Ok(reply)) => Ok(reply.into_inner().outcome),
            Ok(Err(status)) => Err(missed_there(status)),
            Err(_) => Err(Missed::Unknown),
        }
    }

    /// A refusal may be the echo of an earlier try that took effect after all: a token exists, a job is gone.
    async fn settle_repeat(&self, command: &Command, refusal: Refusal) -> Result<Applied, ProposeError> {
        // Without a leader to ask, this server's own state may be too old to tell the echo from a refusal.
        self.read_barrier().await.map_err(|_| ProposeError::OutcomeUnknown)?;
        match trace_of(&self.snapshot(), command) {
            Some(index) => Ok(Applied { index, dropped: Vec::new() }),
            None => Err(ProposeError::Refused(refusal)),
        }
    }

    /// Whether a command whose answer was lost took effect after all, as far as the state shows it.
    async fn find_applied(&self, command: &Command) -> Option<Applied> {
        self.read_barrier().await.ok()?;
        let index = trace_of(&self.snapshot(), command)?;
        Some(Applied { index, dropped: Vec::new() })
    }
}

impl ProposeError {
    /// Whether the same command may well succeed a moment later.
    pub fn is_transient(&self) -> bool {
        matches!(self, ProposeError::NoLeader | ProposeError::Overloaded | ProposeError::OutcomeUnknown)
    }
}

/// A snapshot is as large as the state; everything else would hold up the commands behind it.
const COMMAND_BYTES_MAX: usize = 2 << 20;

pub(crate) fn check_size(command: &Command, bytes: usize) -> Result<(), ProposeError> {
    match command {
        Command::RestoreCatalog { .. } => Ok(()),
        _ if bytes <= COMMAND_BYTES_MAX => Ok(()),
        _ => {
            let reason = format!("the command has {bytes} bytes, the limit is {COMMAND_BYTES_MAX}; split it");
            Err(ProposeError::TooLarge { reason })
        }
    }
}

fn missed_here(error: consensus::ProposeError) -> Missed {
    use consensus::ProposeError as Cause;
    match error {
        Cause::NotLeader { .. } => Missed::NotSent,
        Cause::Overloaded => Missed::Final(ProposeError::Overloaded),
        Cause::TooLarge { .. } => Missed::Final(ProposeError::TooLarge { reason: error.to_string() }),
        Cause::Stopped => Missed::Final(ProposeError::NoLeader),
        Cause::Dropped => Missed::Unknown,
    }
}

/// The codes are those of [`crate::rpc`]'s Propose.
fn missed_there(status: tonic::Status) -> Missed {
    match status.code() {
        Code::FailedPrecondition => Missed::NotSent,
        Code::ResourceExhausted => Missed::Final(ProposeError::Overloaded),
        Code::OutOfRange => Missed::Final(ProposeError::TooLarge { reason: status.message().to_owned() }),
        _ if never_connected(&status) => Missed::NotSent,
        _ => Missed::Unknown,
    }
}

fn never_connected(status: &tonic::Status) -> bool {
    let mut cause = std::error::Error::source(status);
    while let Some(error) = cause {
        if error.is::<tonic::ConnectError>() {
            return true;
        }
        cause = error.source();
    }
    false
}

/// When the command took effect, if it has left its random id somewhere.
fn trace_of(catalog: &Catalog, command: &Command) -> Option<Index> {
    match command {
        Command::RegisterJob { eval, .. }
        | Command::DeregisterJob { eval, .. }
        | Command::DispatchJob { eval, .. }
        | Command::RestartJob { eval, .. }
        | Command::UpdateDeployment { eval, .. } => catalog.eval(eval.id).map(|known| known.created_at_index),
        Command::RestoreCatalog { evals, .. } => {
            evals.first().and_then(|eval| catalog.eval(eval.id)).map(|known| known.created_at_index)
        }
        Command::RemoveServer { id } => catalog.server(*id).is_none().then(|| catalog.table_index(Table::Servers)),
        Command::CreateToken(token) => catalog.token(&token.digest).map(|_| catalog.table_index(Table::Tokens)),
        Command::RegisterNode(node) => {
            catalog.node(node.id).filter(|known| known.epoch == node.epoch).map(|known| known.modified_at_index)
        }
        _ => None,
    }
}

/// Whether applying the command twice ends like applying it once, or the second time is refused by what
/// [`trace_of`] looks for. Spending a token does not.
fn is_repeatable(command: &Command) -> bool {
    match command {
        Command::RegisterJob { .. }
        | Command::DeregisterJob { .. }
        | Command::CreateToken(_)
        | Command::RegisterNode(_)
        | Command::UpsertServer(_)
        | Command::RemoveServer { .. }
        | Command::RestoreCatalog { .. }
        | Command::UpsertEvals(_)
        | Command::StopAllocs { .. }
        | Command::UpdateAllocs { .. }
        | Command::SetNodeStatus { .. }
        | Command::JudgeNode { .. }
        | Command::SetNodeEligibility { .. }
        | Command::SetNodeDrain { .. }
        | Command::DispatchJob { .. }
        | Command::LaunchPeriodic { .. }
        | Command::MarkStable { .. }
        | Command::RestartJob { .. }
        | Command::CollectGarbage(_)
        | Command::UpdateDeployment { .. }
        | Command::SetFeatureLevel { .. } => true,
        // Without `cas`, the same change twice is the same as once.
        Command::ChangeKv(KvChange::Set { cas, .. } | KvChange::Delete { cas, .. })
        | Command::ChangeVariable(VariableChange::Set { cas, .. } | VariableChange::Delete { cas, .. })
        | Command::SetAutopilot { cas, .. } => cas.is_none(),
        Command::ChangeKv(KvChange::DeletePrefix { .. }) => true,
        Command::Bootstrap { .. } | Command::UseToken { .. } | Command::ApplyPlan { .. } => false,
    }
}

/// Nomad's headers and clients take 0 for "no index", so an index is never 0.
pub(crate) fn shown_index(index: Index) -> u64 {
    index.0.max(1)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::sessions::new_eval;
    use model::{CatalogImage, EvalTrigger, JobId, JoinToken, Role, Timestamp};

    /// What a repeated command leaves behind, so that its refusal is not taken for the answer to the first try.
    #[test]
    fn what_took_effect_is_found_again() {
        let token =
            |n: u8| JoinToken { digest: [n; 32], role: Role::Agent, uses_left: 1, expires_at: Timestamp::NEVER };
        let job_id = JobId("gone".to_owned());
        let eval = new_eval(job_id.clone(), 50, EvalTrigger::JobDeregister);
        let purge = |eval| Command::DeregisterJob { job_id: job_id.clone(), purge: true, eval };
        let image = CatalogImage { tokens: vec![token(1)], evals: vec![eval.clone()], ..CatalogImage::default() };
        let catalog = Catalog::from_image(image);
        assert!(trace_of(&catalog, &Command::CreateToken(token(1))).is_some());
        assert!(trace_of(&catalog, &Command::CreateToken(token(2))).is_none());
        assert!(trace_of(&catalog, &purge(eval)).is_some());
        assert!(trace_of(&catalog, &purge(new_eval(job_id.clone(), 50, EvalTrigger::JobDeregister))).is_none());
    }
}
