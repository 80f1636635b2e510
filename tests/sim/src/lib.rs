//! A whole group of servers in one thread and in virtual time, from one seed.
//!
//! ```text
//!  seed ─> chaos (crash, cut, heal, membership) ──> world: event queue, virtual clock
//!          network (delay, loss, duplicates, cuts)    │ tick / message / fsync done / client
//!          disk (fsync delay, lost writes)            v
//!                                             node: consensus::Core + MemoryStore + machine
//!                                                     │ after every event
//!                                                     v
//!                                             invariants + the clients' oracle
//! ```
//!
//! The `Core` is the one that ships. `SEED=n` repeats one run, `SEEDS=n` sets how many are run.

pub mod chaos;
pub mod invariants;
pub mod liveness;
pub mod network;
pub mod node;
pub mod oracle;
pub mod runs;
pub mod world;

/// What a run found wrong; `seed` repeats it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Violation {
    pub invariant: &'static str,
    pub what: String,
}

/// A server deliberately built wrong: the suite must find it out.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Mutation {
    #[default]
    None,
    /// Acknowledges a write when it is handed to the disk.
    AckBeforeFsync,
    /// The disk forgets the vote, not the log.
    ForgetVote,
    /// A leader answers reads from what it has, asking nobody.
    ReadWithoutQuorum,
    /// Applies one command in a thousand twice on some server.
    ApplyTwice,
}
