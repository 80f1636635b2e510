//! The kernel half as user space holds it: loads, pins and attaches the programs, writes their maps, reads their
//! counters. Also the few interface settings the data path depends on.
//!
//! ```text
//! <pin_root>/<node id>/<layout hash>/<map>      what the programs know
//! <pin_root>/<node id>/links/<link>             where they are attached
//! ```
//!
//! Everything is pinned, so that forwarding goes on while the agent is gone; the next [`Datapath::attach`] adopts the
//! maps and puts its own programs in the place of the old ones, one atomic exchange each.
//!
//! Invariant: this is the only user-space crate with `unsafe` code, in `mapped` and `sys`.

mod config;
mod datapath;
mod error;
mod flows;
mod interface;
mod mapped;
mod maps;
mod pins;
mod rehearse;
mod sys;

pub use abi::{BackendCounters, Flow, FlowKey, Kind as ReasonKind, Reason};
pub use config::{Config, PreflightError, Sizes};
pub use datapath::{Datapath, Trace, TraceAction, UplinkMode};
pub use error::KernelError;
pub use flows::FlowPressure;
pub use interface::{InterfaceError, attach_pass, netns_cookie, set_gro, set_tx_checksum_offload};
pub use pins::detach_all;
pub use rehearse::{Question, Rehearsal, Tunnel};

/// The programs, for whoever needs them apart from [`Datapath`]: tests and benchmarks.
pub fn object() -> &'static [u8] {
    &OBJECT.0
}

/// ELF structures are read in place, at their natural alignment.
#[repr(align(8))]
struct Aligned<T: ?Sized>(T);

static OBJECT: &Aligned<[u8]> = &Aligned(*include_bytes!(env!("MESHCTL_EBPF_OBJECT")));
