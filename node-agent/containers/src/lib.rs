//! Containers of engines that speak Docker's API over a unix socket: dockerd, and podman's compatible service.
//!
//! ```text
//! ContainerSpec (a value, kept with the task) ──body──> the engine's JSON
//!         |
//!       Engine ── image: one pull per name at a time over all processes of the node, use recorded for the collection
//!         |────── container: create, attach, start, wait, kill, remove, exec, stats
//!         └────── sandbox: one small container per allocation that stands in its network namespace, for tasks to join
//! ```
//!
//! Containers, sandboxes and images carry labels or records of their own, so that nothing of anybody else's is touched.

mod body;
mod engine;
mod error;
mod exec;
mod image;
mod raw;
mod sandbox;
mod spec;
mod tar;

pub use engine::{Engine, Found, Stats, Status, Version};
pub use error::EngineError;
pub use exec::{ExecSession, ExecWanted};
pub use image::{collect_images, image_name};
pub use raw::{Chunk, Frames, Output};
pub use sandbox::{SandboxSpec, sandbox_name};
pub use spec::*;
