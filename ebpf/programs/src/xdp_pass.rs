//! Passes everything. XDP frames may be sent into a veth only when its peer has a program.

use aya_ebpf::{bindings::xdp_action::XDP_PASS, macros::xdp, programs::XdpContext};

#[xdp]
pub fn xdp_pass(_: XdpContext) -> u32 {
    XDP_PASS
}
