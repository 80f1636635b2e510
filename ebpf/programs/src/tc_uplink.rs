//! What leaves by the uplink: replies of backends in the node's own network namespace, which no veth sees.
//!
//! Such a packet comes from the local stack: its checksum may be unfinished (the helpers know), it may be a bundle that is
//! cut into segments after this, and its link-layer header is already right for a client of this node's own.

use abi::{Be32, Reason, Uplink};
use aya_ebpf::{
    bindings::{TC_ACT_SHOT, TC_ACT_UNSPEC},
    macros::classifier,
    programs::TcContext,
};
use packet::{ENCAP, IPV4, Ipv4, L3, TCP, TCP_SYN, Transport, ether_type};

use crate::{
    count, flow,
    tc::{self, Skb},
};

#[classifier]
pub fn tc_uplink(ctx: TcContext) -> i32 {
    if let Err(reason) = try_tc_uplink(&ctx) {
        count::reason(reason);
        return TC_ACT_SHOT;
    }
    TC_ACT_UNSPEC
}

#[inline(always)]
fn try_tc_uplink(ctx: &TcContext) -> Result<(), Reason> {
    let Some(uplink) = tc::uplink() else { return Ok(()) };
    let skb = Skb { ctx };
    tc::pull(ctx);
    if ether_type(&skb).is_err() {
        return Ok(());
    }
    let Ok(ip) = Ipv4::parse(&skb, L3) else { return Ok(()) };
    if ip.src != uplink.addr {
        return Ok(());
    }
    let Ok(l4) = Transport::parse(&skb, L3, &ip) else { return Ok(()) };
    let Some(flow) = flow::of_live_reply(tc::key_of_reply(&ip, &l4), &l4)? else { return Ok(()) };
    tc::restore(ctx, &ip, &l4, &flow).map_err(|_| Reason::HeadroomRefused)?;
    if flow.entry() == Be32::default() {
        return Ok(());
    }
    if l4.is_tcp() && l4.flags & TCP_SYN != 0 {
        tc::clamp_mss(ctx, mss_max(uplink)).map_err(|_| Reason::HeadroomRefused)?;
    }
    tc::wrap_reply(ctx, &ip, &flow, uplink)
}

/// What a segment through the tunnel may carry.
#[inline(always)]
pub fn mss_max(uplink: &Uplink) -> u16 {
    uplink.mtu.saturating_sub((ENCAP + IPV4 + TCP) as u16)
}
