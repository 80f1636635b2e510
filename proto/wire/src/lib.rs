//! Everything that leaves a process: protobuf between our own processes and on disk, JSON towards Nomad's clients.
//!
//! ```text
//! pb (generated) <-> convert -> model          command, snapshot, outcome: bytes <-> model
//!                                              session: what agent and server say to each other
//! nomad, routes: JSON
//! ```
//!
//! Reading is strict: a missing required field, an unknown enum value or a number out of range is a [`ConvertError`] with
//! the path to it, never a default. Generated types stop here and at the gRPC handlers.

#[expect(clippy::allow_attributes, clippy::allow_attributes_without_reason, reason = "the generator writes them")]
pub mod pb {
    //! Generated from `proto/`.
    tonic::include_proto!("meshctl.v1");
}

pub mod actions;
pub mod command;
mod convert;
pub mod nomad;
pub mod outcome;
pub mod routes;
pub mod session;
pub mod snapshot;

pub use convert::{ConvertError, Problem};

#[cfg(test)]
mod tests;
