//! The decisions of one server, without clock, disk, network or threads.
//!
//! Inputs change the state; [`Core::take_effects`] then says, in order, what is to be done. The shell does it and reports
//! back what takes time: writes that reached the disk ([`Core::persisted`]) and snapshots ([`Core::snapshot_taken`]).
//! Messages that promise something (a vote, "I hold these entries") are kept back here until the write that remembers the
//! promise is acknowledged, so no shell can send them early.

use std::collections::{BTreeMap, VecDeque};

use protobuf_raft::Message as _;
use raft::eraftpb::{
    ConfChange, ConfChangeSingle, ConfChangeType, ConfChangeV2, ConfState, Entry, EntryType, HardState, Message,
    MessageType, Snapshot, SnapshotMetadata,
};
use raft::{ProgressState, RawNode, SnapshotStatus, StateRole, Storage};

use crate::api::{ChangeError, MembershipChange, PeerState, ProposeError, Role};
use crate::log::Log;
use crate::reads::Reads;
use crate::store::{Loaded, SnapshotWrite, Write};

/// What a [`Core`] needs to know of its surroundings.
#[derive(Clone, Debug)]
pub struct CoreConfig {
    pub id: u64,
    /// Never the same at two starts of one server: read contexts of the last run must not match.
    pub seed: u64,
    pub election_ticks: usize,
    pub heartbeat_ticks: usize,
    pub snapshot_every: u64,
    pub trailing: u64,
    pub log_bytes_max: usize,
}

/// What the shell is to do, in the order given.
#[derive(Clone, Debug, PartialEq)]
pub enum Effect {
    /// Remember, then call [`Core::persisted`]. Writes are done in order.
    Persist(Write),
    Send {
        to: u64,
        message: Vec<u8>,
    },
    Apply(Vec<Applied>),
    /// Replace the state machine by this snapshot.
    Restore {
        index: u64,
        data: Vec<u8>,
    },
    /// Serialize the state machine as it is now, at `index`, then call [`Core::snapshot_taken`].
    TakeSnapshot {
        index: u64,
    },
    /// These reads may be answered from a state machine that has applied `index`.
    ReadReady {
        reads: Vec<u64>,
        index: u64,
    },
    ReadFailed {
        reads: Vec<u64>,
    },
    Changed(Standing),
    /// Committed entries cannot be understood: going on would diverge.
    Halt {
        reason: String,
    },
}

/// An entry that is in the log for good.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Applied {
    pub index: u64,
    pub term: u64,
    pub payload: Payload,
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Payload {
    Command(Vec<u8>),
    /// A leader's first entry; nothing for the state machine.
    Nothing,
    /// Already in force in the core.
    Membership,
}

/// Who leads and who belongs, as this server sees it.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Standing {
    pub leader: Option<u64>,
    pub term: u64,
    pub role: Option<Role>,
    pub voters: Vec<u64>,
    pub learners: Vec<u64>,
}

/// Where a proposal will be if it commits.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Position {
    pub index: u64,
    pub term: u64,
}

/// A stored state that Raft does not start from.
#[derive(Debug, thiserror::Error)]
#[error("raft refuses to start: {reason}")]
pub struct CoreError {
    pub reason: String,
}

pub struct Core {
    config: CoreConfig,
    raw: RawNode<Log>,
    now: u64,
    hard_state: HardState,
    conf_state: ConfState,
    applied: Position,
    writes: VecDeque<Outstanding>,
    last_write: u64,
    snapshot_wanted: Option<SnapshotMetadata>,
    snapshots_sent: BTreeMap<u64, u64>,
    /// When each member was heard of last.
    heard: BTreeMap<u64, u64>,
    reads: Reads,
    standing: Standing,
    role_changes: u64,
    effects: Vec<Effect>,
}

/// A write that is not acknowledged yet, and what waits for it.
struct Outstanding {
    id: u64,
    since: u64,
    ready: Option<u64>,
    installed: Option<u64>,
    held: Vec<Message>,
}

const PROMOTION_LAG_MAX: u64 = 256;
const MESSAGE_BYTES_MAX: u64 = 1 << 20;
const UNCOMMITTED_BYTES_MAX: u64 = 64 << 20;
const APPLY_BYTES_MAX: u64 = 4 << 20;
const INFLIGHT_MAX: usize = 256;

impl Core {
    /// Starts from what the store holds; the shell has put `loaded.snapshot` into the state machine before.
    pub fn new(config: CoreConfig, loaded: Loaded) -> Result<Core, CoreError> {
        if let Some(reason) = loaded.contradiction() {
            return Err(CoreError { reason: reason.to_owned() });
        }
        let hard_state = loaded.hard_state.clone();
        let log = Log::new(loaded);
        let applied = log.snapshot_index();
        let term = log.term(applied).unwrap_or_default();
        let conf_state = log.conf_state();
        let logger = slog::Logger::root(slog::Discard, slog::o!());
        let raw = RawNode::new(&raft_config(&config, applied), log, &logger)
            .map_err(|error| CoreError { reason: error.to_string() })?;
        let mut core = Core {
            reads: Reads::new(mix(config.seed ^ config.id), config.election_ticks as u64),
            config,
            raw,
            now: 0,
            hard_state,
            conf_state,
            applied: Position { index: applied, term },
            writes: VecDeque::new(),
            last_write: 0,
            snapshot_wanted: None,
            snapshots_sent: BTreeMap::new(),
            heard: BTreeMap::new(),
            standing: Standing::default(),
            role_changes: 0,
            effects: Vec::new(),
        };
        core.draw_election_timeout();
        core.lead_at_once_if_alone();
        Ok(core)
    }

    /// One tick of the logical clock.
    pub fn tick(&mut self) {
        self.now += 1;
        // A server whose vote could not be written has nothing to stand for election with.
        if self.is_leader() || self.writes.is_empty() {
            self.raw.tick();
        }
        self.give_up_lost_snapshots();
        let failed = self.reads.tick(self.now);
        if !failed.is_empty() {
            self.effects.push(Effect::ReadFailed { reads: failed });
        }
        self.settle();
    }

    /// A message that `sender` brought. What is malformed, another's, or not for this server, is refused and changes nothing.
    pub fn step(&mut self, sender: u64, bytes: &[u8]) -> Result<(), StepError> {
        let message = Message::decode(bytes).map_err(|_| StepError::Malformed)?;
        if message.from != sender {
            return Err(StepError::NotTheSenders { from: message.from });
        }
        self.check(&message)?;
        if self.raw.raft.prs().get(message.from).is_some() {
            self.heard.insert(message.from, self.now);
        }
        // Campaigning while a write is under way could not count on the log; the sender's next heartbeat tries again.
        if message.msg_type() == MessageType::MsgTimeoutNow && !self.writes.is_empty() {
            return Ok(());
        }
        // An error here says that the sender is no member any more, which is no fault of the message.
        let _ = self.raw.step(message);
        self.settle();
        Ok(())
    }

    /// Puts commands into the log as one batch; the first is at the position returned, the others follow.
    pub fn propose(&mut self, commands: Vec<Vec<u8>>) -> Result<Position, ProposeError> {
        if !self.is_leader() {
            return Err(ProposeError::NotLeader { leader: self.leader() });
        }
        let index = self.last_index() + 1;
        let entries = commands.into_iter().map(|data| Entry { data, ..Entry::default() }).collect();
        let mut message = Message { from: self.config.id, entries, ..Message::default() };
        message.set_msg_type(MessageType::MsgPropose);
        // Refused while leadership is handed over or too much is uncommitted; both pass.
        let handing_over = self.raw.raft.lead_transferee.is_some();
        self.raw.raft.step(message).map_err(|_| match handing_over {
            true => ProposeError::NotLeader { leader: None },
            false => ProposeError::Overloaded,
        })?;
        Ok(Position { index, term: self.raw.raft.term })
    }

    /// Asks for an index that covers everything acknowledged so far; answered by `ReadReady` or `ReadFailed` with `read`.
    pub fn read_index(&mut self, read: u64) {
        self.reads.ask(read, self.now);
    }

    /// Proposes one step of membership.
    pub fn change(&mut self, change: MembershipChange) -> Result<Position, ChangeError> {
        let single = self.check_change(change)?;
        let change = ConfChangeV2 { changes: vec![single], ..ConfChangeV2::default() };
        self.raw.propose_conf_change(Vec::new(), change).map_err(|_| ChangeError::Busy)?;
        Ok(Position { index: self.last_index(), term: self.raw.raft.term })
    }

    /// Whether [`Core::change`] would propose it now.
    pub fn may_change(&self, change: MembershipChange) -> Result<(), ChangeError> {
        self.check_change(change).map(drop)
    }

    /// Every member, this server included.
    pub fn peers(&self) -> Vec<PeerState> {
        let members = sorted(&[&self.conf_state.voters[..], &self.conf_state.learners[..]].concat());
        let matched = |id| match self.raw.raft.prs().get(id) {
            _ if id == self.config.id => self.last_index(),
            progress => progress.map_or(0, |progress| progress.matched),
        };
        let state = |id: u64| PeerState {
            id,
            is_voter: self.conf_state.voters.contains(&id),
            matched: matched(id),
            is_active: self.is_active(id),
            silent_ticks: match id == self.config.id {
                true => Some(0),
                false => self.heard.get(&id).map(|heard| self.now - heard),
            },
        };
        members.into_iter().map(state).collect()
    }

    /// Hands leadership to a voter that has caught up; nothing happens if this server does not lead.
    pub fn transfer_leader(&mut self, to: u64) {
        if self.is_leader() && to != self.config.id {
            self.raw.transfer_leader(to);
            self.settle();
        }
    }

    /// The transport could not deliver to `peer`.
    pub fn report_unreachable(&mut self, peer: u64) {
        self.raw.report_unreachable(peer);
        if self.snapshots_sent.remove(&peer).is_some() {
            self.raw.report_snapshot(peer, SnapshotStatus::Failure);
        }
    }

    /// All writes up to and including `id` are on disk.
    pub fn persisted(&mut self, id: u64) {
        while self.writes.front().is_some_and(|write| write.id <= id) {
            if let Some(write) = self.writes.pop_front() {
                self.on_durable(write);
            }
        }
        self.settle();
    }

    /// The state machine as it was at `index`, asked for by [`Effect::TakeSnapshot`].
    pub fn snapshot_taken(&mut self, index: u64, data: Vec<u8>) {
        let Some(metadata) = self.snapshot_wanted.take() else { return };
        if metadata.index != index || index <= self.raw.store().snapshot_index() {
            return;
        }
        let snapshot = Snapshot { data, metadata: Some(metadata) };
        let (trailing, bytes) = (self.config.trailing, self.config.log_bytes_max / 2);
        let base = self.raw.mut_store().compact(snapshot.clone(), trailing, bytes);
        let write = SnapshotWrite { snapshot, base, replaces_log: false };
        self.persist(Some(write), Vec::new(), None, Vec::new());
    }

    /// What is to be done now.
    pub fn take_effects(&mut self) -> Vec<Effect> {
        self.send_reads();
        while self.raw.has_ready() {
            self.handle_ready();
        }
        self.want_snapshot();
        self.note_standing();
        std::mem::take(&mut self.effects)
    }

    pub fn is_leader(&self) -> bool {
        self.raw.raft.state == StateRole::Leader
    }

    pub fn leader(&self) -> Option<u64> {
        (self.raw.raft.leader_id != 0).then_some(self.raw.raft.leader_id)
    }

    pub fn term(&self) -> u64 {
        self.raw.raft.term
    }

    pub fn commit(&self) -> u64 {
        self.raw.raft.raft_log.committed
    }

    pub fn current_standing(&self) -> Standing {
        Standing {
            leader: self.leader(),
            term: self.term(),
            role: Some(self.role()),
            voters: sorted(&self.conf_state.voters),
            learners: sorted(&self.conf_state.learners),
        }
    }

    /// The last entry handed out by an `Apply` or `Restore` effect.
    pub fn applied(&self) -> u64 {
        self.applied.index
    }

    /// (index, term, data) of the entries this server holds in its mirror, disk or not: what the simulator compares.
    pub fn log(&self) -> impl Iterator<Item = (u64, u64, &[u8])> {
        self.raw.store().entries().map(|entry| (entry.index, entry.term, entry.data.as_slice()))
    }

    /// The last entry that is no longer in the log.
    pub fn log_base(&self) -> Position {
        let base = self.raw.store().base();
        Position { index: base.index, term: base.term }
    }

    /// The oldest write has been under way for as long as two elections: the disk hangs.
    pub fn is_stalled(&self) -> bool {
        let patience = 2 * self.config.election_ticks as u64;
        self.writes.front().is_some_and(|write| self.now - write.since > patience)
    }

    fn last_index(&self) -> u64 {
        self.raw.raft.raft_log.last_index()
    }

    fn lead_at_once_if_alone(&mut self) {
        if self.conf_state.voters == [self.config.id] && self.commit() == self.last_index() {
            let _ = self.raw.campaign();
        }
    }

    /// raft-rs draws timeouts from the thread's generator; this puts one in their place that depends on the seed alone.
    fn settle(&mut self) {
        let role = self.role();
        if self.standing.role != Some(role) || self.standing.term != self.term() {
            self.role_changes += 1;
        }
        self.draw_election_timeout();
    }

    fn draw_election_timeout(&mut self) {
        let span = self.config.election_ticks as u64;
        let drawn = mix(self.config.seed ^ mix(self.config.id) ^ mix(self.term() << 20 | self.role_changes)) % span;
        self.raw.raft.set_randomized_election_timeout((span + drawn) as usize);
    }

    fn check(&self, message: &Message) -> Result<(), StepError> {
        if message.to != self.config.id || message.from == 0 || message.from == self.config.id {
            return Err(StepError::NotForUs);
        }
        let contiguous = message.entries.iter().zip(message.index + 1..).all(|(entry, index)| entry.index == index);
        let ordered = message.entries.iter().all(|entry| entry.term <= message.term);
        match MessageType::from_i32(message.msg_type) {
            // Commands and hand-overs come through the handle of the server they are for, never from a peer.
            None | Some(MessageType::MsgPropose | MessageType::MsgTransferLeader) => Err(StepError::Unexpected),
            Some(MessageType::MsgAppend) if !contiguous || !ordered => Err(StepError::Malformed),
            Some(MessageType::MsgSnapshot) if message.get_snapshot().get_metadata().index == 0 => {
                Err(StepError::Malformed)
            }
            Some(MessageType::MsgReadIndex | MessageType::MsgReadIndexResp) if message.entries.len() != 1 => {
                Err(StepError::Malformed)
            }
            Some(_) => Ok(()),
        }
    }

    fn check_change(&self, change: MembershipChange) -> Result<ConfChangeSingle, ChangeError> {
        if !self.is_leader() {
            return Err(ChangeError::NotLeader { leader: self.leader() });
        }
        if self.raw.raft.has_pending_conf() {
            return Err(ChangeError::Busy);
        }
        let (change_type, node_id) = match change {
            MembershipChange::AddLearner(id) => (self.check_add(id)?, id),
            MembershipChange::Promote(id) => (self.check_promote(id)?, id),
            MembershipChange::Remove(id) => (self.check_remove(id)?, id),
        };
        Ok(ConfChangeSingle { change_type: change_type as i32, node_id })
    }

    fn check_add(&self, id: u64) -> Result<ConfChangeType, ChangeError> {
        if id == 0 {
            return Err(ChangeError::Refused { reason: "0 is no server id" });
        }
        if self.raw.raft.prs().get(id).is_some() {
            return Err(ChangeError::Refused { reason: "this server is a member already" });
        }
        Ok(ConfChangeType::AddLearnerNode)
    }

    fn check_promote(&self, id: u64) -> Result<ConfChangeType, ChangeError> {
        let progress = self.raw.raft.prs().get(id).filter(|_| self.conf_state.learners.contains(&id));
        let matched = progress.ok_or(ChangeError::Refused { reason: "only a learner can be promoted" })?.matched;
        let behind = self.last_index().saturating_sub(matched);
        if matched == 0 || behind > PROMOTION_LAG_MAX {
            return Err(ChangeError::NotCaughtUp { id, behind });
        }
        Ok(ConfChangeType::AddNode)
    }

    fn check_remove(&self, id: u64) -> Result<ConfChangeType, ChangeError> {
        if self.raw.raft.prs().get(id).is_none() {
            return Err(ChangeError::Refused { reason: "this server is no member" });
        }
        if id == self.config.id {
            return Err(ChangeError::Refused { reason: "the leader cannot remove itself; hand leadership over first" });
        }
        let remaining: Vec<u64> = self.conf_state.voters.iter().copied().filter(|voter| *voter != id).collect();
        if remaining.iter().filter(|voter| self.is_active(**voter)).count() <= remaining.len() / 2 {
            return Err(ChangeError::Refused {
                reason: "without it too few of the other voters answer to agree on anything; bring one of them back \
                         first",
            });
        }
        Ok(ConfChangeType::RemoveNode)
    }

    fn is_active(&self, id: u64) -> bool {
        let patience = 2 * self.config.election_ticks as u64;
        id == self.config.id || self.heard.get(&id).is_some_and(|heard| self.now - heard <= patience)
    }

    fn handle_ready(&mut self) {
        let mut ready = self.raw.ready();
        let number = ready.number();
        if let Some(hard_state) = ready.hs() {
            self.hard_state = hard_state.clone();
        }
        for message in ready.take_messages() {
            self.send(message);
        }
        for state in ready.take_read_states() {
            self.on_read_state(&state.request_ctx, state.index);
        }
        let installed = (!ready.snapshot().is_empty()).then(|| ready.snapshot().clone());
        let entries = ready.take_entries();
        let held = ready.take_persisted_messages();
        let committed = ready.take_committed_entries();
        // A commit index alone is not worth an fsync: every later write carries it.
        let must_sync = ready.must_sync();
        let snapshot = installed.map(|snapshot| self.install(snapshot));
        self.raw.mut_store().append(&entries);
        self.raw.advance_append_async(ready);
        if must_sync {
            self.persist(snapshot, entries, Some(number), held);
        } else {
            self.ride_along(number, held);
        }
        self.apply(committed);
    }

    fn install(&mut self, snapshot: Snapshot) -> SnapshotWrite {
        let metadata = snapshot.get_metadata().clone();
        self.snapshot_wanted = None;
        self.conf_state = metadata.get_conf_state().clone();
        self.applied = Position { index: metadata.index, term: metadata.term };
        self.effects.push(Effect::Restore { index: metadata.index, data: snapshot.data.clone() });
        self.raw.mut_store().install(snapshot.clone());
        SnapshotWrite { snapshot, base: self.raw.store().base(), replaces_log: true }
    }

    fn persist(
        &mut self,
        snapshot: Option<SnapshotWrite>,
        entries: Vec<Entry>,
        ready: Option<u64>,
        held: Vec<Message>,
    ) {
        self.last_write += 1;
        let id = self.last_write;
        let installed = snapshot.as_ref().filter(|s| s.replaces_log).map(|s| s.snapshot.get_metadata().index);
        self.writes.push_back(Outstanding { id, since: self.now, ready, installed, held });
        let hard_state = Some(self.hard_state.clone());
        self.effects.push(Effect::Persist(Write { id, hard_state, snapshot, entries }));
    }

    /// Nothing to remember, but what it says may rest on writes that are still under way.
    fn ride_along(&mut self, number: u64, held: Vec<Message>) {
        match self.writes.back_mut() {
            Some(write) => {
                write.ready = Some(number);
                write.held.extend(held);
            }
            None => {
                self.raw.on_persist_ready(number);
                held.into_iter().for_each(|message| self.send(message));
            }
        }
    }

    fn on_durable(&mut self, write: Outstanding) {
        if let Some(number) = write.ready {
            self.raw.on_persist_ready(number);
        }
        if let Some(index) = write.installed {
            self.raw.advance_apply_to(index);
        }
        write.held.into_iter().for_each(|message| self.send(message));
    }

    /// A leader whose disk hangs falls silent, so that the others elect one that can write.
    fn send(&mut self, message: Message) {
        if self.is_stalled() {
            return;
        }
        if message.msg_type() == MessageType::MsgSnapshot {
            self.snapshots_sent.insert(message.to, self.now);
        }
        self.effects.push(Effect::Send { to: message.to, message: message.encode_to_vec() });
    }

    fn apply(&mut self, committed: Vec<Entry>) {
        let Some(last) = committed.last().map(|entry| Position { index: entry.index, term: entry.term }) else {
            return;
        };
        let applied = committed.into_iter().map(|entry| self.admit(entry)).collect();
        self.effects.push(Effect::Apply(applied));
        self.applied = last;
        self.raw.advance_apply_to(last.index);
    }

    fn admit(&mut self, entry: Entry) -> Applied {
        let payload = match EntryType::from_i32(entry.entry_type) {
            Some(EntryType::EntryNormal) if entry.data.is_empty() => Payload::Nothing,
            Some(EntryType::EntryNormal) => Payload::Command(entry.data),
            Some(EntryType::EntryConfChange) => {
                self.change_membership(entry.index, ConfChange::decode(entry.data.as_slice()).ok().map(raft_v2))
            }
            Some(EntryType::EntryConfChangeV2) => {
                self.change_membership(entry.index, ConfChangeV2::decode(entry.data.as_slice()).ok())
            }
            None => self.halt(format!("log entry {} is of an unknown kind; upgrade this server", entry.index)),
        };
        Applied { index: entry.index, term: entry.term, payload }
    }

    fn change_membership(&mut self, index: u64, change: Option<ConfChangeV2>) -> Payload {
        let Some(change) = change else {
            return self.halt(format!("the membership change at log entry {index} cannot be read"));
        };
        // Whether a change is possible depends on the membership before it, so all servers refuse the same ones.
        if let Ok(conf_state) = self.raw.apply_conf_change(&change) {
            self.conf_state = conf_state;
        }
        Payload::Membership
    }

    fn halt(&mut self, reason: String) -> Payload {
        self.effects.push(Effect::Halt { reason });
        Payload::Nothing
    }

    /// By number, by bytes, and after each change of membership: raft-rs restores no snapshot that does not name the
    /// server restoring it, so one who has just been added could not use an older one.
    fn want_snapshot(&mut self) {
        let log = self.raw.store();
        let behind = self.applied.index.saturating_sub(log.snapshot_index());
        let due = behind >= self.config.snapshot_every
            || behind > 0 && log.bytes() > self.config.log_bytes_max
            || behind > 0 && log.conf_state() != self.conf_state;
        if due && self.snapshot_wanted.is_none() {
            let Position { index, term } = self.applied;
            self.snapshot_wanted = Some(SnapshotMetadata { conf_state: Some(self.conf_state.clone()), index, term });
            self.effects.push(Effect::TakeSnapshot { index });
        }
    }

    /// raft-rs waits for ever for the fate of a snapshot it has sent; a lost one must be sent again.
    fn give_up_lost_snapshots(&mut self) {
        let patience = 8 * self.config.election_ticks as u64;
        let progress = self.raw.raft.prs();
        let waiting = |peer: &u64| progress.get(*peer).is_some_and(|p| p.state == ProgressState::Snapshot);
        self.snapshots_sent.retain(|peer, _| waiting(peer));
        let lost: Vec<u64> = self
            .snapshots_sent
            .iter()
            .filter(|(_, sent)| self.now - **sent > patience)
            .map(|(peer, _)| *peer)
            .collect();
        for peer in lost {
            self.snapshots_sent.remove(&peer);
            self.raw.report_snapshot(peer, SnapshotStatus::Failure);
        }
    }

    /// raft-rs drops a read without a word while there is no leader, or before the leader's first commit in its term.
    fn send_reads(&mut self) {
        let answerable =
            if self.is_leader() { self.raw.raft.commit_to_current_term() } else { self.leader().is_some() };
        if answerable && let Some(context) = self.reads.next_round(self.now) {
            self.raw.read_index(context);
        }
    }

    fn on_read_state(&mut self, context: &[u8], index: u64) {
        let reads = self.reads.answer(context);
        if !reads.is_empty() {
            self.effects.push(Effect::ReadReady { reads, index });
        }
    }

    fn note_standing(&mut self) {
        let standing = self.current_standing();
        if standing != self.standing {
            self.standing = standing.clone();
            self.effects.push(Effect::Changed(standing));
        }
    }

    fn role(&self) -> Role {
        match self.raw.raft.state {
            StateRole::Leader => Role::Leader,
            StateRole::Candidate | StateRole::PreCandidate => Role::Candidate,
            StateRole::Follower if self.conf_state.voters.contains(&self.config.id) => Role::Follower,
            StateRole::Follower => Role::Learner,
        }
    }
}

/// Whether an encoded message carries a snapshot: the only kind that may be too large to go before a heartbeat.
pub fn is_snapshot(message: &[u8]) -> bool {
    // The type is the first field, and left out when it is 0.
    message.starts_with(&[0x08, MessageType::MsgSnapshot as u8])
}

/// Whether an encoded message carries entries or a new commit index.
pub(crate) fn is_append(message: &[u8]) -> bool {
    message.starts_with(&[0x08, MessageType::MsgAppend as u8])
}

/// Why a message was not taken in.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum StepError {
    #[error("the message cannot be decoded")]
    Malformed,
    #[error("the message is for another server")]
    NotForUs,
    #[error("the message says it is of server {from}; a server speaks for itself alone")]
    NotTheSenders { from: u64 },
    #[error("peers do not send such messages")]
    Unexpected,
}

fn raft_config(config: &CoreConfig, applied: u64) -> raft::Config {
    raft::Config {
        id: config.id,
        election_tick: config.election_ticks,
        heartbeat_tick: config.heartbeat_ticks,
        applied,
        max_size_per_msg: MESSAGE_BYTES_MAX,
        max_inflight_msgs: INFLIGHT_MAX,
        check_quorum: true,
        pre_vote: true,
        max_uncommitted_size: UNCOMMITTED_BYTES_MAX,
        max_committed_size_per_ready: APPLY_BYTES_MAX,
        ..raft::Config::default()
    }
}

fn raft_v2(change: ConfChange) -> ConfChangeV2 {
    let single = ConfChangeSingle { change_type: change.change_type, node_id: change.node_id };
    ConfChangeV2 { changes: vec![single], ..ConfChangeV2::default() }
}

fn sorted(ids: &[u64]) -> Vec<u64> {
    let mut ids = ids.to_vec();
    ids.sort_unstable();
    ids
}

/// splitmix64's finalizer: spreads neighbouring seeds over the whole range.
fn mix(seed: u64) -> u64 {
    let z = seed.wrapping_add(0x9e37_79b9_7f4a_7c15);
    let z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    let z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    z ^ (z >> 31)
}
