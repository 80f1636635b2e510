//! Compiles what the servers push (nodes, services, instances) into what the kernel maps of this node must hold.
//!
//! ```text
//! Snapshot ─┐
//!           ├─ compile ─> Compilation { Indices { MapImage }, services, problems } ─ diff(present, wanted) ─> MapDelta
//! Indices ──┘
//! ```
//!
//! Pure: values in, values out. The agent feeds it events and writes what it returns.

pub mod compile;
pub mod image;
pub mod indices;
pub mod maglev;
pub mod problem;
pub mod routes;
pub mod shares;
pub mod snapshot;
pub mod tags;
#[cfg(test)]
mod tests;
pub mod trace;

pub use compile::{Compilation, compile, recompile};
pub use image::{MapDelta, MapImage, Ring, Write, diff};
pub use indices::{Indices, host_ports, own_blocks};
pub use problem::{RouteProblem, RouteProblemKind};
pub use routes::{BackendRoute, BackendState, FrontendRoute, FrontendSource, ServiceRoutes};
pub use snapshot::{LocalEndpoint, Mac, Snapshot, Uplink};
pub use tags::Proto;
pub use trace::{Observed, explain};
