//! The nouns the server sees: configuration, the two traits it implements, status and errors.

use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

/// Called once, with what to tell the operator, when this server must not go on (a failed fsync, a damaged state).
pub type OnFatal = Arc<dyn Fn(&str) + Send + Sync>;

/// Everything a server needs to take part in the group.
#[derive(Clone)]
pub struct Config {
    /// This server's id; never 0, never reused by another server (also not by the same machine after it lost its disk).
    pub id: u64,
    /// Holds `raft.redb`, the snapshots and the floor file. Made if absent.
    pub data_dir: PathBuf,
    /// The first voters; used only when `data_dir` holds no state yet. `None` starts empty and waits for a leader that
    /// adds this server as a learner.
    pub bootstrap: Option<Vec<u64>>,
    /// Differs between servers and between starts: election timeouts and read contexts are drawn from it.
    pub seed: u64,
    /// Length of one tick of the logical clock.
    pub tick: Duration,
    /// Ticks without a leader before an election; the real timeout is drawn from one to two times this.
    pub election_ticks: usize,
    /// Ticks between heartbeats.
    pub heartbeat_ticks: usize,
    /// Take a snapshot after this many applied entries.
    pub snapshot_every: u64,
    /// Entries kept behind a snapshot for followers that lag a little.
    pub trailing: u64,
    /// Take a snapshot, and keep fewer trailing entries, when the log holds more than this many bytes.
    pub log_bytes_max: usize,
    /// Proposals and reads that may wait; more are refused with `Overloaded`.
    pub pending_max: usize,
    /// Bytes of committed entries that may wait for the state machine before this server takes no more from its leader.
    pub apply_bytes_max: usize,
    /// Largest proposal in bytes.
    pub proposal_bytes_max: usize,
    /// What to do when the process must end. The default prints the reason and aborts.
    pub on_fatal: OnFatal,
}

impl Config {
    /// Defaults under which the loss of a leader heals in about a second on a busy two-core machine.
    pub fn new(id: u64, data_dir: impl Into<PathBuf>, seed: u64) -> Self {
        Config {
            id,
            data_dir: data_dir.into(),
            bootstrap: None,
            seed,
            tick: Duration::from_millis(50),
            election_ticks: 10,
            heartbeat_ticks: 2,
            snapshot_every: 8192,
            trailing: 10240,
            log_bytes_max: 64 << 20,
            pending_max: 4096,
            apply_bytes_max: 32 << 20,
            proposal_bytes_max: 2 << 20,
            on_fatal: Arc::new(end_process),
        }
    }
}

/// The process goes at once: unwinding would let other threads answer for a log that may not be on disk.
fn end_process(reason: &str) {
    tracing::error!(reason, "consensus cannot go on");
    eprintln!("meshctl: consensus cannot go on: {reason}");
    std::process::abort();
}

/// Told of each change of role, leader, term or membership.
pub type Watcher = Box<dyn Fn(&Status) + Send>;

/// Carries messages to peers. Fire and forget: Raft repeats what matters. Never blocks; a full queue drops.
pub trait Transport: Send + Sync {
    fn send(&self, to: u64, message: Vec<u8>);
}

/// What the log is replayed into. Deterministic: same entries, same state and same responses on every server.
pub trait StateMachine: Send {
    /// Applies one committed command and returns the response its proposer gets.
    fn apply(&mut self, index: u64, data: &[u8]) -> Vec<u8>;

    /// The whole state after the last applied entry.
    fn snapshot(&self) -> Vec<u8>;

    /// Replaces the state by a snapshot taken after `index`. An error ends the process: going on would diverge.
    fn restore(&mut self, index: u64, data: &[u8]) -> Result<(), RestoreError>;
}

/// A snapshot the state machine could not read.
#[derive(Debug, thiserror::Error)]
#[error("{reason}")]
pub struct RestoreError {
    pub reason: String,
}

/// A command that is in the log for good and applied here.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Committed {
    pub index: u64,
    pub response: Vec<u8>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Role {
    Leader,
    Follower,
    /// Asks for votes, or asks whether it would get them (pre-vote).
    Candidate,
    /// Receives the log and does not vote; also a server that nobody has added yet.
    Learner,
}

/// What this server knows of the group.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Status {
    pub id: u64,
    pub leader: Option<u64>,
    pub term: u64,
    pub role: Role,
    pub commit: u64,
    pub applied: u64,
    pub voters: Vec<u64>,
    pub learners: Vec<u64>,
}

/// Another member, or this server itself, as the leader sees it; on other servers only the membership means something.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct PeerState {
    pub id: u64,
    pub is_voter: bool,
    /// The last log entry that it is known to hold.
    pub matched: u64,
    /// Heard of within two election timeouts.
    pub is_active: bool,
    /// Ticks since it was heard of; `None`: not since this server started.
    pub silent_ticks: Option<u64>,
}

/// One step of membership; the next one waits until it is applied.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum MembershipChange {
    AddLearner(u64),
    /// Makes a learner that has caught up a voter.
    Promote(u64),
    Remove(u64),
}

/// `NotLeader` and `Overloaded` say that the command is surely not in the log; after `Dropped` and `Stopped` it may be.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum ProposeError {
    #[error("this server is not the leader{}", hint(.leader))]
    NotLeader { leader: Option<u64> },
    #[error("too many commands wait for the log; try again in a moment")]
    Overloaded,
    #[error("the command has {bytes} bytes, the limit is {bytes_max}; split it")]
    TooLarge { bytes: usize, bytes_max: usize },
    #[error(
        "leadership was lost before the command was known to be committed; look whether it took effect, then repeat"
    )]
    Dropped,
    #[error("consensus on this server has stopped; ask another server")]
    Stopped,
}

/// Why no read index could be had.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum ReadError {
    #[error("no leader confirmed the read in time{}", hint(.leader))]
    NoLeader { leader: Option<u64> },
    #[error("too many reads wait; try again in a moment")]
    Overloaded,
    #[error("consensus on this server has stopped; ask another server")]
    Stopped,
}

/// Why membership did not change.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum ChangeError {
    #[error("this server is not the leader{}", hint(.leader))]
    NotLeader { leader: Option<u64> },
    #[error("another membership change is still under way; wait for it")]
    Busy,
    #[error("server {id} lacks {behind} log entries; wait until it has caught up, then promote it")]
    NotCaughtUp { id: u64, behind: u64 },
    #[error("{reason}")]
    Refused { reason: &'static str },
    #[error("leadership was lost before the change was known to be committed; look at the membership, then repeat")]
    Dropped,
    #[error("consensus on this server has stopped; ask another server")]
    Stopped,
}

fn hint(leader: &Option<u64>) -> String {
    match leader {
        Some(id) => format!("; server {id} is"),
        None => "; there is none at the moment, try again".to_owned(),
    }
}

/// Why consensus did not start.
#[derive(Debug, thiserror::Error)]
pub enum StartError {
    #[error("configuration: {reason}")]
    Config { reason: String },
    #[error("opening the log")]
    Store(#[from] StoreError),
    #[error("the state machine does not accept the snapshot at index {index}")]
    Restore { index: u64, source: RestoreError },
    #[error("starting a thread")]
    Thread(#[source] std::io::Error),
}

/// What can go wrong with the log on disk.
#[derive(Debug, thiserror::Error)]
pub enum StoreError {
    #[error(
        "{path} is damaged ({what}). This server must not vote with it: remove it from the group \
         (`meshctl server remove`), delete its data directory and join again under a new id"
    )]
    Damaged { path: PathBuf, what: String },
    #[error(
        "{path} belongs to server {found}, this is server {expected}; point data_dir at this server's own directory"
    )]
    WrongServer { path: PathBuf, expected: u64, found: u64 },
    #[error("{path} has format {found}, this build reads {known}; run the version of meshctl that wrote it")]
    Format { path: PathBuf, found: u32, known: u32 },
    #[error("{path} is in use by another process; stop it first")]
    InUse { path: PathBuf },
    #[error("{operation} {path}; check that the disk is healthy and has space")]
    Io { operation: &'static str, path: PathBuf, source: std::io::Error },
    #[error("{operation} {path}; check that the disk is healthy and has space")]
    Database { operation: &'static str, path: PathBuf, source: Box<dyn std::error::Error + Send + Sync> },
}
