//! Replicated order: a Raft group over raft-rs, its log on disk, and the handle the server drives it by.
//!
//! ```text
//!  server ── propose / read_index / change / step ──> Raft (handle)
//!                                                       │ one queue
//!                                             driver thread: Core (sans-IO)
//!                                       Persist │        │ Send      │ Apply
//!                                      IO thread      Transport    apply thread: StateMachine
//!                                  (LogStore, fsync)
//! ```
//!
//! [`Core`] decides and never touches a clock, a disk or a socket: `tests/sim` drives the same `Core` through crashes,
//! lost writes and broken networks. Everything a node promises (a vote, an entry it holds) leaves it only after the write
//! that remembers the promise is on disk.

mod api;
mod applier;
mod core;
mod driver;
mod io;
mod log;
mod raft;
mod reads;
mod recover;
mod store;

pub use api::{
    ChangeError, Committed, Config, MembershipChange, OnFatal, PeerState, ProposeError, ReadError, RestoreError, Role,
    StartError, StateMachine, Status, StoreError, Transport, Watcher,
};
pub use core::{Applied, Core, CoreConfig, CoreError, Effect, Payload, Position, Standing, StepError, is_snapshot};
pub use raft::{Pending, Raft};
pub use recover::{RecoverError, Recovered, recover};
pub use store::{Base, DiskStore, Loaded, LogStore, MemoryStore, SnapshotWrite, Write, genesis};
