//! Compiles what the servers push (nodes, services, instances) into what the kernel maps of this node must hold.
//!
//! Pure: values in, values out. The agent feeds it events and writes what it returns.

pub mod image;
pub mod maglev;
pub mod tags;

pub use image::{MapDelta, MapImage, Ring, Write, diff};
