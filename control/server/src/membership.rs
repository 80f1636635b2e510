//! Who belongs to the servers: removing one, handing leadership over, and telling a removed one that it is.
//!
//! The catalog's list of servers is what is wanted; the leader brings Raft's members in line with it ([`crate::leader`]).
//! So a removal is a command, and whichever server leads afterwards finishes it.

use crate::member::{Member, ProposeError, ReadUnavailable};
use crate::pb;
use crate::rpc;
use consensus::{ChangeError, MembershipChange, PeerState, Role};
use model::{Command, Refusal, ServerId};
use std::future::Future;
use std::sync::Arc;
use std::time::Duration;
use tokio::sync::watch;
use tokio::time::{Instant, timeout};
use tonic::{Code, Status};

const CHANGE_FOR: Duration = Duration::from_secs(15);
const CALL_TIMEOUT: Duration = Duration::from_secs(10);
const HELLO_TIMEOUT: Duration = Duration::from_secs(1);
const RETRY_DELAY: Duration = Duration::from_millis(200);
/// Raft gives a hand-over up after an election timeout of at most a second.
const HANDOVER_TRY: Duration = Duration::from_millis(1200);
const HANDOVER_TRIES: usize = 3;
/// How often a server that hears of no leader asks whether it still belongs.
const ASK_EVERY: Duration = Duration::from_secs(1);

/// What a removed server is told, and prints.
const REMOVED: &str = "this server was removed from the cluster; to bring the machine back, empty its data directory \
                       and join with a token from `meshctl token create -role server`";

#[derive(Debug, thiserror::Error)]
pub(crate) enum MembershipError {
    #[error("this server does not lead the cluster")]
    NotLeader,
    #[error("no server has the id {0}; `meshctl operator raft list-peers` shows them")]
    Unknown(ServerId),
    #[error("{0}")]
    Refused(String),
    #[error("{0}")]
    Unavailable(String),
}

impl From<ReadUnavailable> for MembershipError {
    fn from(error: ReadUnavailable) -> Self {
        Self::Unavailable(error.to_string())
    }
}

impl From<consensus::ReadError> for MembershipError {
    fn from(error: consensus::ReadError) -> Self {
        Self::Unavailable(error.to_string())
    }
}

impl From<MembershipError> for Status {
    fn from(error: MembershipError) -> Self {
        let text = error.to_string();
        match error {
            MembershipError::NotLeader => Status::failed_precondition(text),
            MembershipError::Unknown(_) => Status::not_found(text),
            MembershipError::Refused(_) => Status::invalid_argument(text),
            MembershipError::Unavailable(_) => Status::unavailable(text),
        }
    }
}

impl Member {
    /// Removes a server, by way of the leader, and returns when it is no member any more. A leader that is to go hands
    /// leadership over first.
    pub async fn remove_server(&self, id: ServerId) -> Result<(), MembershipError> {
        self.at_leader(
            || self.remove_server_here(id),
            |mut client| async move {
                let request = timed(pb::RemoveServerRequest { id: id.0 });
                client.remove_server(request).await.map(drop)
            },
        )
        .await
        .map_err(|error| match error {
            MembershipError::Unknown(_) => MembershipError::Unknown(id),
            error => error,
        })
    }

    /// Hands leadership to `to`, or to the voter that has most of the log.
    pub async fn transfer_leadership(&self, to: Option<ServerId>) -> Result<(), MembershipError> {
        self.at_leader(
            || self.transfer_leadership_here(to),
            |mut client| async move {
                let request = timed(pb::TransferLeadershipRequest { to: to.map(|id| id.0) });
                client.transfer_leadership(request).await.map(drop)
            },
        )
        .await
    }

    /// For the leader alone.
    pub async fn remove_server_here(&self, id: ServerId) -> Result<(), MembershipError> {
        self.lead_or_refuse()?;
        self.read_barrier().await?;
        self.snapshot().server(id).ok_or(MembershipError::Unknown(id))?;
        if id == self.id {
            self.transfer_leadership_here(None).await?;
            return Err(MembershipError::NotLeader);
        }
        self.check_removal(id).await?;
        match self.propose(Command::RemoveServer { id }).await {
            Ok(_) | Err(ProposeError::Refused(Refusal::ServerUnknown { .. })) => {}
            Err(ProposeError::Refused(refusal)) => return Err(MembershipError::Refused(refusal.to_string())),
            Err(error) => return Err(MembershipError::Unavailable(error.to_string())),
        }
        tracing::info!(server = id.0, "server removed");
        let mut status = self.status.clone();
        let gone = status.wait_for(|status| !status.voters.contains(&id.0) && !status.learners.contains(&id.0));
        match timeout(CALL_TIMEOUT / 2, gone).await {
            Ok(Ok(_)) => Ok(()),
            _ => Err(MembershipError::Unavailable(format!(
                "server {id} is to go, but has not left Raft yet; look at `meshctl operator raft list-peers`"
            ))),
        }
    }

    /// For the leader alone.
    pub async fn transfer_leadership_here(&self, to: Option<ServerId>) -> Result<(), MembershipError> {
        self.lead_or_refuse()?;
        let to = successor(&self.raft.peers().await?, self.id, to)?;
        let mut status = self.status.clone();
        for _ in 0..HANDOVER_TRIES {
            self.raft.transfer_leader(to);
            let moved = status.wait_for(|status| status.role != Role::Leader && status.leader.is_some());
            if let Ok(Ok(status)) = timeout(HANDOVER_TRY, moved).await {
                tracing::info!(server = self.id.0, to, leader = ?status.leader, "leadership handed over");
                return Ok(());
            }
        }
        Err(MembershipError::Unavailable(format!("server {to} did not take over leadership in time")))
    }

    /// A leader that stops says so: the others need not wait for its silence.
    pub async fn resign(&self) {
        let others = self.status.borrow().voters.iter().any(|voter| *voter != self.id.0);
        if !self.is_leader() || !others {
            return;
        }
        if let Err(error) = self.transfer_leadership_here(None).await {
            tracing::warn!(%error, "leadership is not handed over; the others elect a leader in about a second");
        }
    }

    /// Refuses a caller that has been removed. One that is not known yet has just joined: whoever got its certificate is
    /// in the state that a read with a quorum shows.
    pub async fn check_server(&self, id: ServerId) -> Result<(), Status> {
        if self.belongs(id) {
            return Ok(());
        }
        self.read_barrier().await.map_err(|error| Status::unavailable(error.to_string()))?;
        match self.belongs(id) {
            true => Ok(()),
            false => {
                tracing::warn!(server = id.0, "call refused: the server was removed");
                Err(Status::permission_denied(REMOVED))
            }
        }
    }

    /// Listed, or still a member of Raft: a removal is itself agreed on by those who are, the one that goes included.
    fn belongs(&self, id: ServerId) -> bool {
        if self.is_in_raft(id) {
            return true;
        }
        let catalog = self.catalog.borrow();
        catalog.founding().is_none() || catalog.server(id).is_some() || catalog.servers().next().is_none()
    }

    /// What this server says of itself to others.
    pub fn hello(&self) -> pb::ServerHello {
        pb::ServerHello {
            id: self.id.0,
            version: model::VERSION.to_owned(),
            feature_level: model::FEATURE_LEVEL,
            applied: self.raft.status().applied,
        }
    }

    /// What another server says of itself; `None` when it does not answer.
    pub async fn hello_of(&self, id: ServerId) -> Option<pb::ServerHello> {
        let mut client = self.peers.client(id)?;
        match timeout(HELLO_TIMEOUT, client.hello(self.hello())).await {
            Ok(Ok(reply)) => Some(reply.into_inner()),
            Ok(Err(status)) if status.code() == Code::Unimplemented => {
                Some(pb::ServerHello { id: id.0, feature_level: 1, ..pb::ServerHello::default() })
            }
            _ => None,
        }
    }

    /// The feature level of another server's build; `None` when it does not answer.
    pub async fn level_of(&self, id: ServerId) -> Option<u32> {
        self.hello_of(id).await.map(|hello| hello.feature_level)
    }

    fn lead_or_refuse(&self) -> Result<(), MembershipError> {
        if self.is_leader() { Ok(()) } else { Err(MembershipError::NotLeader) }
    }

    async fn check_removal(&self, id: ServerId) -> Result<(), MembershipError> {
        let deadline = Instant::now() + CALL_TIMEOUT / 2;
        loop {
            match self.raft.may_change(MembershipChange::Remove(id.0)).await {
                Ok(()) => return Ok(()),
                Err(ChangeError::Busy) if Instant::now() < deadline => tokio::time::sleep(RETRY_DELAY).await,
                Err(ChangeError::NotLeader { .. }) => return Err(MembershipError::NotLeader),
                Err(ChangeError::Refused { reason }) if self.is_in_raft(id) => {
                    return Err(MembershipError::Refused(format!("server {id} cannot be removed: {reason}")));
                }
                // It joined and never got so far as to be a member of Raft.
                Err(ChangeError::Refused { .. }) => return Ok(()),
                Err(error) => return Err(MembershipError::Unavailable(error.to_string())),
            }
        }
    }

    fn is_in_raft(&self, id: ServerId) -> bool {
        let status = self.status.borrow();
        status.voters.contains(&id.0) || status.learners.contains(&id.0)
    }

    /// Does it here or at the leader, and again where leadership moves meanwhile.
    async fn at_leader<H, T>(
        &self,
        here: impl Fn() -> H,
        there: impl Fn(crate::peers::PeerClient) -> T,
    ) -> Result<(), MembershipError>
    where
        H: Future<Output = Result<(), MembershipError>>,
        T: Future<Output = Result<(), Status>>,
    {
        let deadline = Instant::now() + CHANGE_FOR;
        loop {
            let outcome = match self.leader() {
                Some(id) if id == self.id => here().await,
                Some(id) => match self.peers.client(id) {
                    Some(client) => there(client).await.map_err(of_status),
                    None => Err(MembershipError::NotLeader),
                },
                None => Err(MembershipError::NotLeader),
            };
            match outcome {
                Err(MembershipError::NotLeader) if Instant::now() < deadline => {
                    tokio::time::sleep(RETRY_DELAY).await;
                }
                Err(MembershipError::NotLeader) => {
                    return Err(MembershipError::Unavailable("no server leads the cluster".to_owned()));
                }
                outcome => return outcome,
            }
        }
    }
}

/// Ends when another server says that this one was removed; until then it asks whenever it hears of no leader, or of its
/// own removal.
pub(crate) async fn watch(member: Arc<Member>, stop: watch::Receiver<bool>, removed: watch::Sender<Option<String>>) {
    let work = async {
        let mut ticks = tokio::time::interval(ASK_EVERY);
        ticks.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
        loop {
            ticks.tick().await;
            let listed = member.catalog.borrow().server(member.id).is_some();
            let in_doubt = member.leader().is_none() || !listed;
            if in_doubt && ask_others(&member).await {
                tracing::error!(server = member.id.0, "{REMOVED}");
                return drop(removed.send_replace(Some(REMOVED.to_owned())));
            }
        }
    };
    tokio::select! {
        () = work => {}
        () = rpc::until(stop) => {}
    }
}

/// Whether any of the others says that this server was removed.
async fn ask_others(member: &Member) -> bool {
    for id in member.peers.others(member.id) {
        let Some(mut client) = member.peers.client(id) else { continue };
        let nothing = futures::stream::empty::<pb::RaftMessage>();
        if let Ok(Err(status)) = timeout(CALL_TIMEOUT / 5, client.raft(nothing)).await
            && status.code() == Code::PermissionDenied
            && status.message() == REMOVED
        {
            return true;
        }
    }
    false
}

fn successor(peers: &[PeerState], own: ServerId, wanted: Option<ServerId>) -> Result<u64, MembershipError> {
    let refuse = |text: String| Err(MembershipError::Refused(text));
    let others = || peers.iter().filter(|peer| peer.is_voter && peer.id != own.0);
    match wanted {
        Some(id) if id == own => refuse(format!("server {id} leads the cluster already")),
        Some(id) => match others().find(|peer| peer.id == id.0) {
            Some(peer) if peer.is_active => Ok(id.0),
            Some(_) => refuse(format!("server {id} does not answer, so it cannot lead")),
            None => refuse(format!(
                "no voter has the id {id}, so it cannot lead; `meshctl operator raft list-peers` shows them"
            )),
        },
        None => match others().filter(|peer| peer.is_active).max_by_key(|peer| peer.matched) {
            Some(peer) => Ok(peer.id),
            None => refuse("there is no other voter that answers, so nobody else can lead".to_owned()),
        },
    }
}

fn timed<T>(message: T) -> tonic::Request<T> {
    let mut request = tonic::Request::new(message);
    request.set_timeout(CALL_TIMEOUT);
    request
}

fn of_status(status: Status) -> MembershipError {
    let text = status.message().to_owned();
    match status.code() {
        Code::FailedPrecondition => MembershipError::NotLeader,
        Code::NotFound => MembershipError::Unknown(ServerId(0)),
        Code::InvalidArgument | Code::PermissionDenied => MembershipError::Refused(text),
        _ => MembershipError::Unavailable(text),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn leadership_goes_to_a_voter_that_answers_and_has_most_of_the_log() {
        let peer =
            |id, is_voter, matched, is_active| PeerState { id, is_voter, matched, is_active, silent_ticks: None };
        let peers =
            [peer(1, true, 90, true), peer(2, true, 80, true), peer(3, true, 90, false), peer(4, false, 90, true)];
        let check = |wanted: Option<u64>| successor(&peers, ServerId(1), wanted.map(ServerId));
        assert_eq!(check(None).unwrap(), 2);
        assert_eq!(check(Some(2)).unwrap(), 2);
        for (wanted, reason) in [(1, "already"), (3, "does not answer"), (4, "no voter"), (9, "no voter")] {
            let error = check(Some(wanted)).unwrap_err();
            assert!(error.to_string().contains(reason), "{wanted}: {error}");
        }
        assert!(successor(&peers[..1], ServerId(1), None).unwrap_err().to_string().contains("nobody else"));
    }
}
