//! What runs in the kernel. One file per program; `maps` holds their shared state.
//!
//! ```text
//!            wire                          allocation                     socket
//!             │                                 │                            │
//!        xdp_uplink ── tunnel ── xdp_uplink ── veth ── tc_veth            sockets
//!         (entry)                (backend's node)    (replies, overlay)
//!                                    └─ node's own stack ── tc_uplink (replies)
//! ```
#![no_std]
#![no_main]
// Compare-and-exchange: this target's `core::sync::atomic` has none, though its instruction set does.
#![feature(core_intrinsics)]
#![expect(internal_features, reason = "see above")]

#[cfg(feature = "bench")]
mod bench;
mod count;
mod deliver;
mod entry;
mod flow;
mod frame;
mod maps;
mod sockets;
mod tc;
mod tc_uplink;
mod tc_veth;
mod xdp_pass;
mod xdp_uplink;

/// GPL-only helpers need a compatible license.
#[unsafe(link_section = "license")]
#[unsafe(no_mangle)]
static LICENSE: [u8; 13] = *b"Dual MIT/GPL\0";

/// Nothing here panics; the linker wants a handler all the same.
#[panic_handler]
fn panic(_: &core::panic::PanicInfo<'_>) -> ! {
    loop {}
}
