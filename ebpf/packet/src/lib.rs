//! Frames as the data path reads and changes them: checked header views, rewrites with incremental checksums, the
//! tunnel's headers.
//!
//! Bytes are reached through [`Bytes`] alone, which `programs` implements over the XDP context and tests over a slice,
//! so the same code runs in the kernel and under proptest. Everything is inlined: the verifier must see each bounds
//! check beside its access.
//!
//! ```text
//! 0        14      34     42      50          62        76
//! | Ether  | IPv4  | UDP  | Geneve| option 12 | Ether   | IPv4 | TCP ...      a tunnelled frame
//!                                             0         14                     after `strip`
//! ```
#![no_std]

mod bytes;
mod checksum;
pub mod flows;
mod hash;
mod headers;
mod mss;
mod reset;
mod rewrite;
#[cfg(test)]
mod tests;
mod tunnel;

pub use bytes::Bytes;
pub use checksum::Checksum;
pub use hash::FlowHash;
pub use headers::{ETHERNET, IPV4, Ipv4, Skip, TCP, TCP_ACK, TCP_FIN, TCP_RST, TCP_SYN, Transport, UDP, ether_type};
pub use mss::{Mss, clamp_mss, find_mss};
pub use reset::{RESET_LEN, reset};
pub use rewrite::{Rewrite, age_ipv4, checksum_at, rewrite, set_macs, swap_macs};
pub use tunnel::{ENCAP, GENEVE_PORT, Inner, Kind, OUTER, Outer, Target, TunnelError, inner};

/// Where the network header starts in a frame that begins with Ethernet.
pub const L3: usize = ETHERNET;
