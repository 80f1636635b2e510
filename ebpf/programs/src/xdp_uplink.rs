//! The uplink: packets for services come in and are sent on; tunnelled frames are unwrapped and delivered.

use abi::{Be16, Be32, Endpoint, NODE_SELF, Node, Reason, UPLINK_READY, Uplink, VipKey};
use aya_ebpf::{
    bindings::{
        BPF_FIB_LKUP_RET_FWD_DISABLED, BPF_FIB_LKUP_RET_NO_NEIGH, BPF_FIB_LKUP_RET_SUCCESS,
        bpf_fib_lookup as FibLookup,
        xdp_action::{XDP_DROP, XDP_PASS, XDP_TX},
    },
    helpers::{bpf_fib_lookup, bpf_redirect},
    macros::xdp,
    programs::XdpContext,
};
use packet::{
    ENCAP, FlowHash, GENEVE_PORT, Ipv4, Kind, L3, OUTER, Outer, Rewrite, Skip, TCP_RST, Target, Transport, age_ipv4,
    clamp_mss, ether_type, inner, rewrite, set_macs, swap_macs,
};

use crate::{
    count,
    entry::{self, Choice},
    flow::Forward,
    frame::Frame,
    maps::{ENDPOINTS, NEAR_ENDPOINTS, NODE_BY_ADDR, NODES, UPLINK, VIPS},
    tc_uplink::mss_max,
};

const AF_INET: u8 = 2;

#[xdp]
pub fn xdp_uplink(ctx: XdpContext) -> u32 {
    run(&ctx)
}

#[inline(always)]
pub fn run(ctx: &XdpContext) -> u32 {
    match try_xdp_uplink(ctx) {
        Ok(action) => action,
        Err(reason) => {
            count::reason(reason);
            if matches!(reason.kind(), abi::Kind::Passed) { XDP_PASS } else { XDP_DROP }
        }
    }
}

#[inline(always)]
fn try_xdp_uplink(ctx: &XdpContext) -> Result<u32, Reason> {
    let mut frame = Frame::new(ctx);
    match decide(&mut frame)? {
        Next::Done(action) => Ok(action),
        Next::Deliver(delivery) => {
            deliver(&mut frame, &delivery).or_else(|reason| refuse(&mut frame, &delivery, reason))
        }
    }
}

enum Next {
    Done(u32),
    /// One place for what both clients and nodes send here: the verifier walks through it once.
    Deliver(Delivery),
}

/// A packet for a backend of this node.
struct Delivery {
    ip: Ipv4,
    l4: Transport,
    target: Target,
    uplink: &'static Uplink,
    /// The node it came in by, and the neighbour that sent it; zero when it came in here.
    entry: Be32,
    neighbour: [u8; 6],
    /// This node's choice, when it is this one's.
    choice: Option<Choice>,
}

#[inline(always)]
fn decide(frame: &mut Frame<'_>) -> Result<Next, Reason> {
    if let Err(skip) = ether_type(frame) {
        return pass(skip);
    }
    let ip = match Ipv4::parse(frame, L3) {
        Ok(ip) => ip,
        Err(skip) => return pass(skip),
    };
    let l4 = match Transport::parse(frame, L3, &ip) {
        Ok(l4) => l4,
        Err(skip) => return pass(skip),
    };
    if l4.is_tcp() || l4.dst_port != GENEVE_PORT {
        return on_client(frame, ip, l4);
    }
    match uplink() {
        Some(uplink) if uplink.addr == ip.dst => on_tunnel(frame, &ip, uplink),
        _ => Ok(Next::Done(XDP_PASS)),
    }
}

#[inline(always)]
fn pass(skip: Skip) -> Result<Next, Reason> {
    match skip {
        Skip::NotIpv4 | Skip::Transport => Ok(Next::Done(XDP_PASS)),
        Skip::Vlan => Err(Reason::Vlan),
        Skip::Truncated => Err(Reason::Truncated),
        Skip::Options => Err(Reason::Ipv4Options),
        Skip::Fragment => Err(Reason::Fragment),
    }
}

#[inline(always)]
fn uplink() -> Option<&'static Uplink> {
    UPLINK.get(0).filter(|uplink| uplink.flags & UPLINK_READY != 0)
}

/// From a client, perhaps for a service.
#[inline(always)]
fn on_client(frame: &mut Frame<'_>, ip: Ipv4, l4: Transport) -> Result<Next, Reason> {
    let key = VipKey { addr: ip.dst, port: l4.dst_port, proto: l4.proto, pad: 0 };
    // SAFETY: a value is replaced whole; what is read of it here is two independent words.
    let Some(vip) = (unsafe { VIPS.get(key) }) else { return Ok(Next::Done(XDP_PASS)) };
    let Some(uplink) = uplink() else { return Ok(Next::Done(XDP_PASS)) };
    let choice = match entry::choose(vip, &ip, &l4) {
        Ok(choice) => choice,
        Err(reason) => return answer_client(frame, &ip, &l4, reason).map(Next::Done),
    };
    check_ttl(&ip)?;
    let backend = choice.backend;
    let target = Target { addr: backend.addr, port: backend.port, proto: l4.proto };
    if backend.node == NODE_SELF {
        let (entry, neighbour) = (Be32::default(), [0; 6]);
        return Ok(Next::Deliver(Delivery { ip, l4, target, uplink, entry, neighbour, choice: Some(choice) }));
    }
    let node = NODES.get(backend.node).ok_or(Reason::NodeUnresolved)?;
    let action = send_to_node(frame, &ip, uplink, node, choice.hash.tunnel_port(), target)?;
    count::backend(choice.id, ip.total_len, choice.opens);
    Ok(Next::Done(action))
}

#[inline(always)]
fn refuse(frame: &mut Frame<'_>, to: &Delivery, reason: Reason) -> Result<u32, Reason> {
    if to.entry.is_zero() { answer_client(frame, &to.ip, &to.l4, reason) } else { answer_by_tunnel(frame, to, reason) }
}

/// A connection that leads nowhere is reset, so that the client need not wait to find out.
#[inline(always)]
fn answer_client(frame: &mut Frame<'_>, ip: &Ipv4, l4: &Transport, reason: Reason) -> Result<u32, Reason> {
    let answer = answer_to(l4, reason).ok_or(reason)?;
    make_reset(frame, ip, l4)?;
    swap_macs(frame).ok_or(Reason::Truncated)?;
    count::reason(answer);
    Ok(XDP_TX)
}

/// The reset goes back as any reply does.
#[inline(always)]
fn answer_by_tunnel(frame: &mut Frame<'_>, to: &Delivery, reason: Reason) -> Result<u32, Reason> {
    let Delivery { ip, l4, uplink, .. } = to;
    let answer = answer_to(l4, reason).ok_or(reason)?;
    make_reset(frame, ip, l4)?;
    let outer = Outer {
        src_mac: uplink.mac,
        dst_mac: to.neighbour,
        src: uplink.addr,
        dst: to.entry,
        src_port: FlowHash::of(ip.src, l4.src_port, ip.dst, l4.dst_port).tunnel_port(),
        inner_len: (packet::RESET_LEN - packet::ETHERNET) as u16,
        kind: Kind::Reply,
        target: Target::default(),
    };
    count::reason(answer);
    wrap(frame, &outer)
}

/// A SYN that met a ring or a node in the moment of a change gets none: sent again, it finds the new ring.
#[inline(always)]
fn answer_to(l4: &Transport, reason: Reason) -> Option<Reason> {
    if !l4.is_tcp() || l4.flags & TCP_RST != 0 {
        return None;
    }
    match reason {
        Reason::NoBackend => Some(Reason::ResetNoBackend),
        Reason::BackendDown if !l4.opens() => Some(Reason::ResetBackendGone),
        Reason::NotOurEndpoint if !l4.opens() => Some(Reason::ResetNotOurEndpoint),
        _ => None,
    }
}

#[inline(always)]
fn make_reset(frame: &mut Frame<'_>, ip: &Ipv4, l4: &Transport) -> Result<(), Reason> {
    packet::reset(frame, L3, ip, l4).ok_or(Reason::Truncated)?;
    frame.truncate(packet::RESET_LEN).ok_or(Reason::HeadroomRefused)
}

#[inline(always)]
fn check_ttl(ip: &Ipv4) -> Result<(), Reason> {
    if ip.ttl > 1 { Ok(()) } else { Err(Reason::TtlExpired) }
}

#[inline(always)]
fn send_to_node(
    frame: &mut Frame<'_>,
    ip: &Ipv4,
    uplink: &Uplink,
    node: &Node,
    src_port: Be16,
    target: Target,
) -> Result<u32, Reason> {
    if node.dmac == [0; 6] {
        count::unresolved(node.addr);
        return Err(Reason::NodeUnresolved);
    }
    if ip.total_len as usize + ENCAP > uplink.mtu as usize {
        return Err(Reason::TooBig);
    }
    age_ipv4(frame, L3, ip).ok_or(Reason::Truncated)?;
    let outer = Outer {
        src_mac: uplink.mac,
        dst_mac: node.dmac,
        src: uplink.addr,
        dst: node.addr,
        src_port,
        inner_len: ip.total_len,
        kind: Kind::Forward,
        target,
    };
    wrap(frame, &outer)
}

#[inline(always)]
fn wrap(frame: &mut Frame<'_>, outer: &Outer) -> Result<u32, Reason> {
    frame.move_start(-(OUTER as i32)).ok_or(Reason::HeadroomRefused)?;
    packet::Bytes::put(frame, 0, outer.bytes()).ok_or(Reason::HeadroomRefused)?;
    Ok(XDP_TX)
}

/// Into the allocation that holds the backend, or to the node's own stack. What comes to the stack through a tunnel is told
/// to leave room for it: the node's own packets would be as large as the uplink takes.
#[inline(always)]
fn deliver(frame: &mut Frame<'_>, to: &Delivery) -> Result<u32, Reason> {
    let Delivery { ip, l4, target, uplink, .. } = to;
    let host = target.addr == uplink.addr;
    let endpoint = if host { Endpoint::default() } else { endpoint(target.addr).ok_or(Reason::NotOurEndpoint)? };
    let tunnelled = !to.entry.is_zero();
    if host && tunnelled && l4.opens() {
        clamp_mss(frame, L3, mss_max(uplink)).ok_or(Reason::Truncated)?;
    }
    let src_port = source_port(to)?;
    let ends = Rewrite { src: ip.src, dst: target.addr, src_port, dst_port: target.port };
    rewrite(frame, L3, ip, l4, &ends).ok_or(Reason::Truncated)?;
    if let Some(choice) = &to.choice {
        count::backend(choice.id, ip.total_len, choice.opens);
        if choice.port.is_zero() {
            choice.remember_port(src_port);
        }
    }
    if !host {
        set_macs(frame, endpoint.mac, endpoint.host_mac).ok_or(Reason::Truncated)?;
        return Ok(redirect(endpoint.ifindex));
    }
    if tunnelled {
        set_macs(frame, uplink.mac, uplink.mac).ok_or(Reason::Truncated)?;
    }
    Ok(XDP_PASS)
}

/// What the backend sees as the client's port; its flow table is asked once a tick for each flow.
#[inline(always)]
fn source_port(to: &Delivery) -> Result<Be16, Reason> {
    let Delivery { ip, l4, target, .. } = to;
    if let Some(choice) = &to.choice
        && !choice.port.is_zero()
        && !l4.changes_state()
    {
        return Ok(choice.port);
    }
    let forward = Forward {
        client: ip.src,
        client_port: l4.src_port,
        dialled: ip.dst,
        dialled_port: l4.dst_port,
        backend: target.addr,
        backend_port: target.port,
        entry: to.entry,
        proto: l4.proto,
    };
    forward.admit(l4)
}

#[inline(always)]
fn endpoint(addr: Be32) -> Option<Endpoint> {
    if let Some(near) = NEAR_ENDPOINTS.get(addr.get() & 0xff)
        && near.addr == addr
    {
        return Some(Endpoint { ifindex: near.ifindex, mac: near.mac, host_mac: near.host_mac });
    }
    // SAFETY: an endpoint's fields change only together with the interface they name.
    unsafe { ENDPOINTS.get(addr) }.copied()
}

#[inline(always)]
fn redirect(ifindex: u32) -> u32 {
    // SAFETY: the helper has no preconditions.
    unsafe { bpf_redirect(ifindex, 0) as u32 }
}

/// From a node, perhaps.
#[inline(always)]
fn on_tunnel(frame: &mut Frame<'_>, outer: &Ipv4, uplink: &'static Uplink) -> Result<Next, Reason> {
    // SAFETY: the value is not read.
    unsafe { NODE_BY_ADDR.get(outer.src) }.ok_or(Reason::TunnelPeerUnknown)?;
    let inner = inner(frame).map_err(|_| Reason::TunnelMalformed)?;
    let neighbour = packet::Bytes::get::<6>(frame, 6).ok_or(Reason::Truncated)?;
    frame.move_start(OUTER as i32).ok_or(Reason::HeadroomRefused)?;
    ether_type(frame).map_err(|_| Reason::TunnelMalformed)?;
    match inner.kind {
        Kind::Forward => on_forward(frame, inner.target, uplink, outer.src, neighbour),
        Kind::Reply => on_reply(frame).map(Next::Done),
        Kind::Plain => on_plain(frame, uplink).map(Next::Done),
    }
}

#[inline(always)]
fn on_forward(
    frame: &mut Frame<'_>,
    target: Target,
    uplink: &'static Uplink,
    entry: Be32,
    neighbour: [u8; 6],
) -> Result<Next, Reason> {
    let ip = Ipv4::parse(frame, L3).map_err(|_| Reason::TunnelMalformed)?;
    let l4 = Transport::parse(frame, L3, &ip).map_err(|_| Reason::TunnelMalformed)?;
    if l4.proto != target.proto {
        return Err(Reason::TunnelMalformed);
    }
    check_ttl(&ip)?;
    Ok(Next::Deliver(Delivery { ip, l4, target, uplink, entry, neighbour, choice: None }))
}

/// A reply comes finished but for the last hop, which this node's routes and neighbours know.
#[inline(always)]
fn on_reply(frame: &mut Frame<'_>) -> Result<u32, Reason> {
    let ip = Ipv4::parse(frame, L3).map_err(|_| Reason::TunnelMalformed)?;
    check_ttl(&ip)?;
    let ingress = frame.ifindex();
    // SAFETY: plain integers and unions of them: all zeroes is a value.
    let mut fib: FibLookup = unsafe { core::mem::zeroed() };
    fib.family = AF_INET;
    fib.l4_protocol = ip.proto;
    fib.ifindex = ingress;
    fib.__bindgen_anon_3.ipv4_src = ip.src.raw();
    fib.__bindgen_anon_4.ipv4_dst = ip.dst.raw();
    // SAFETY: both pointers are valid for the call, the size is the structure's.
    let found =
        unsafe { bpf_fib_lookup(frame.ctx().ctx.cast(), &raw mut fib, core::mem::size_of::<FibLookup>() as i32, 0) };
    match found as u32 {
        BPF_FIB_LKUP_RET_SUCCESS => {}
        BPF_FIB_LKUP_RET_NO_NEIGH => {
            // SAFETY: the helper replaced the destination by the next hop's address.
            count::unresolved(Be32::from_raw(unsafe { fib.__bindgen_anon_4.ipv4_dst }));
            return Err(Reason::NeighbourUnresolved);
        }
        BPF_FIB_LKUP_RET_FWD_DISABLED => return Err(Reason::ForwardingDisabled),
        _ => return Err(Reason::NoRoute),
    }
    age_ipv4(frame, L3, &ip).ok_or(Reason::Truncated)?;
    set_macs(frame, fib.dmac, fib.smac).ok_or(Reason::Truncated)?;
    Ok(if fib.ifindex == ingress { XDP_TX } else { redirect(fib.ifindex) })
}

/// Between allocations, or from an allocation to this node itself.
#[inline(always)]
fn on_plain(frame: &mut Frame<'_>, uplink: &Uplink) -> Result<u32, Reason> {
    let ip = Ipv4::parse_any(frame, L3).map_err(|_| Reason::TunnelMalformed)?;
    check_ttl(&ip)?;
    if let Some(endpoint) = endpoint(ip.dst) {
        age_ipv4(frame, L3, &ip).ok_or(Reason::Truncated)?;
        set_macs(frame, endpoint.mac, endpoint.host_mac).ok_or(Reason::Truncated)?;
        return Ok(redirect(endpoint.ifindex));
    }
    if ip.dst == uplink.mesh || ip.dst == uplink.addr {
        set_macs(frame, uplink.mac, uplink.mac).ok_or(Reason::Truncated)?;
        count::reason(Reason::TunnelToHost);
        return Ok(XDP_PASS);
    }
    Err(Reason::NotOurEndpoint)
}
