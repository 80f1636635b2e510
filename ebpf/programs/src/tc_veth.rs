//! What leaves an allocation: replies go back the way their flow came, overlay traffic goes to its node.

use abi::{Be16, NODE_SELF, Reason, Uplink, block_of};
use aya_ebpf::{
    bindings::{TC_ACT_SHOT, TC_ACT_UNSPEC},
    helpers::{bpf_redirect, bpf_redirect_neigh},
    macros::classifier,
    programs::TcContext,
};
use packet::{FlowHash, Ipv4, Kind, L3, Transport, ether_type};

use crate::{
    count,
    flow::{self, Known},
    maps::BLOCKS,
    tc::{self, Skb},
};

#[classifier]
pub fn tc_veth(ctx: TcContext) -> i32 {
    match try_tc_veth(&ctx) {
        Ok(action) => action,
        Err(reason) => {
            count::reason(reason);
            TC_ACT_SHOT
        }
    }
}

#[inline(always)]
fn try_tc_veth(ctx: &TcContext) -> Result<i32, Reason> {
    let Some(uplink) = tc::uplink() else { return Ok(TC_ACT_UNSPEC) };
    let skb = Skb { ctx };
    tc::pull(ctx);
    if ether_type(&skb).is_err() {
        return Ok(TC_ACT_UNSPEC);
    }
    if let Ok(ip) = Ipv4::parse(&skb, L3)
        && let Ok(l4) = Transport::parse(&skb, L3, &ip)
        && let Some(flow) = flow::of_reply(tc::key_of_reply(&ip, &l4), &l4)?
    {
        return on_reply(ctx, &ip, &l4, &flow, uplink);
    }
    match Ipv4::parse_any(&skb, L3) {
        Ok(ip) => on_other(ctx, &ip, uplink),
        Err(_) => Ok(TC_ACT_UNSPEC),
    }
}

/// Makes the reply come from what the client dialled, and sends it back by its entry node.
#[inline(always)]
fn on_reply(ctx: &TcContext, ip: &Ipv4, l4: &Transport, flow: &Known, uplink: &Uplink) -> Result<i32, Reason> {
    check_ttl(ip)?;
    tc::restore(ctx, ip, l4, flow).and_then(|()| tc::age(ctx, ip)).map_err(|_| Reason::HeadroomRefused)?;
    if flow.entry().is_zero() {
        // SAFETY: no parameters are given: the helper routes by the packet's destination.
        return Ok(unsafe { bpf_redirect_neigh(uplink.ifindex, core::ptr::null_mut(), 0, 0) } as i32);
    }
    tc::wrap_reply(ctx, ip, flow, uplink).map(|()| redirect(uplink))
}

#[inline(always)]
fn on_other(ctx: &TcContext, ip: &Ipv4, uplink: &Uplink) -> Result<i32, Reason> {
    // SAFETY: copied at once.
    let Some(&node) = (unsafe { BLOCKS.get(block_of(ip.dst)) }) else { return Ok(TC_ACT_UNSPEC) };
    if node == NODE_SELF {
        return Ok(TC_ACT_UNSPEC);
    }
    check_ttl(ip)?;
    tc::age(ctx, ip).map_err(|_| Reason::HeadroomRefused)?;
    let hash = FlowHash::of(ip.src, Be16::new(ip.proto as u16), ip.dst, Be16::default());
    tc::encapsulate(ctx, ip, uplink, node, hash.tunnel_port(), Kind::Plain).map(|()| redirect(uplink))
}

#[inline(always)]
fn redirect(uplink: &Uplink) -> i32 {
    // SAFETY: the helper has no preconditions.
    unsafe { bpf_redirect(uplink.ifindex, 0) as i32 }
}

#[inline(always)]
fn check_ttl(ip: &Ipv4) -> Result<(), Reason> {
    if ip.ttl > 1 { Ok(()) } else { Err(Reason::TtlExpired) }
}
