//! The server: a thin shell around `consensus`, `catalog` and `scheduler` that owns clock, dice, disk and sockets.
//!
//! ```text
//!   HTTP 4646 (loopback) ─┐                      ┌─> apply thread: catalog ──watch──> readers, sessions, broker
//!   gRPC 4647 (mTLS) ─────┼─> propose ─> Raft ───┤
//!     Join, Servers,      │      └─ a follower   └─> log on disk
//!     Agents::Session     │         forwards it
//!   leader: broker ───────┘
//! ```
//!
//! Whoever wants a change proposes a command and waits for what applying it answered; whoever wants to read takes the
//! newest catalog, which is an immutable snapshot. Only the leader holds sessions, plans and declares nodes down.

mod asks;
mod autopilot;
mod backup;
mod clock;
mod config;
mod disk;
mod doors;
mod events;
mod form;
mod house;
mod http;
mod join;
mod leader;
mod logs;
mod lookup;
mod machine;
mod member;
mod membership;
mod peers;
mod renewal;
mod routing;
mod rpc;
mod scheduling;
mod sessions;
mod start;
mod variables;
mod watch;

pub use backup::{SNAPSHOT_BYTES_MAX, SnapshotError, SnapshotMeta, read_snapshot};
pub use config::{ConfigError, HTTP_PORT, Mode, RPC_PORT, ServerConfig, Timing};
pub use disk::DiskError;
pub use identity::ClusterSecret;
pub use member::ProposeError;
pub use start::{Server, TokenRequest, recover};

pub(crate) use wire::pb;

/// Starts a server and serves until SIGINT or SIGTERM.
pub async fn run(config: ServerConfig) -> anyhow::Result<()> {
    use tokio::signal::unix::{SignalKind, signal};
    let (mut interrupt, mut terminate) = (signal(SignalKind::interrupt())?, signal(SignalKind::terminate())?);
    let mut stop = std::pin::pin!(async move {
        tokio::select! {
            _ = interrupt.recv() => {}
            _ = terminate.recv() => {}
        }
    });
    // A start may wait for other servers; nobody who stops it should have to wait as well.
    let server = tokio::select! {
        server = Server::start(config) => server?,
        () = &mut stop => return Ok(()),
    };
    let removed = tokio::select! {
        () = &mut stop => None,
        reason = server.removed() => Some(reason),
    };
    tracing::info!("stopping");
    server.shutdown().await;
    match removed {
        Some(reason) => anyhow::bail!(reason),
        None => Ok(()),
    }
}
