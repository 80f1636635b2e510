//! The uplink: packets for services come in and are sent on; tunnelled frames are unwrapped and delivered.

use abi::{Be16, Be32, Endpoint, NODE_SELF, Node, Parked, Reason, UPLINK_READY, Uplink, VipKey, programs};
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
    ENCAP, GENEVE_PORT, Ipv4, Kind, L3, OUTER, Outer, Skip, Target, Transport, age_ipv4, ether_type, inner, set_macs,
};

use crate::{
    count,
    deliver::{Delivery, From, word_of_mac},
    entry,
    frame::Frame,
    maps::{ENDPOINTS, NEAR_ENDPOINTS, NODE_BY_ADDR, NODES, PARKED, PROGRAMS, UPLINK, VIPS},
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
        Next::Deliver(delivery) => delivery.deliver(&mut frame),
    }
}

enum Next {
    Done(u32),
    /// One place for what both clients and nodes send here: the verifier walks through it once.
    Deliver(Delivery),
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
pub fn uplink() -> Option<&'static Uplink> {
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
        Err(reason) => {
            let parked = Parked { answer: reason as u32 + 1, ..Parked::default() };
            return hand_on(frame, programs::DELIVER, &parked).map(Next::Done);
        }
    };
    check_ttl(&ip)?;
    let backend = choice.backend;
    let target = Target { addr: backend.addr, port: backend.port, proto: l4.proto };
    if backend.node == NODE_SELF {
        let (entry, neighbour) = (Be32::default(), 0);
        return Ok(Next::Deliver(Delivery { ip, l4, target, uplink, entry, neighbour, from: From::Choice(choice) }));
    }
    let node = NODES.get(backend.node).ok_or(Reason::NodeUnresolved)?;
    let action = send_to_node(frame, &ip, uplink, node, choice.hash.tunnel_port(), target)?;
    count::backend(choice.id, ip.total_len, choice.opens);
    Ok(Next::Done(action))
}

#[inline(always)]
pub fn check_ttl(ip: &Ipv4) -> Result<(), Reason> {
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
pub fn wrap(frame: &mut Frame<'_>, outer: &Outer) -> Result<u32, Reason> {
    frame.move_start(-(OUTER as i32)).ok_or(Reason::HeadroomRefused)?;
    packet::Bytes::put(frame, 0, outer.bytes()).ok_or(Reason::HeadroomRefused)?;
    Ok(XDP_TX)
}

#[inline(always)]
pub fn endpoint(addr: Be32) -> Option<Endpoint> {
    if let Some(near) = NEAR_ENDPOINTS.get(addr.get() & 0xff)
        && near.addr == addr
    {
        return Some(Endpoint { ifindex: near.ifindex, mac: near.mac, host_mac: near.host_mac });
    }
    // SAFETY: an endpoint's fields change only together with the interface they name.
    unsafe { ENDPOINTS.get(addr) }.copied()
}

#[inline(always)]
pub fn redirect(ifindex: u32) -> u32 {
    // SAFETY: the helper has no preconditions.
    unsafe { bpf_redirect(ifindex, 0) as u32 }
}

/// From a node, perhaps.
#[inline(always)]
fn on_tunnel(frame: &mut Frame<'_>, outer: &Ipv4, uplink: &'static Uplink) -> Result<Next, Reason> {
    // SAFETY: the value is not read.
    unsafe { NODE_BY_ADDR.get(outer.src) }.ok_or(Reason::TunnelPeerUnknown)?;
    let inner = inner(frame).map_err(|_| Reason::TunnelMalformed)?;
    let neighbour = word_of_mac(packet::Bytes::get::<6>(frame, 6).ok_or(Reason::Truncated)?);
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
    neighbour: u64,
) -> Result<Next, Reason> {
    let ip = Ipv4::parse(frame, L3).map_err(|_| Reason::TunnelMalformed)?;
    let l4 = Transport::parse(frame, L3, &ip).map_err(|_| Reason::TunnelMalformed)?;
    if l4.proto != target.proto {
        return Err(Reason::TunnelMalformed);
    }
    check_ttl(&ip)?;
    Ok(Next::Deliver(Delivery { ip, l4, target, uplink, entry, neighbour, from: From::Node }))
}

/// Hands the frame on. What was parked is read before this CPU takes another frame: programs run to their end.
#[inline(always)]
pub fn hand_on(frame: &Frame<'_>, program: u32, parked: &Parked) -> Result<u32, Reason> {
    let place = PARKED.get_ptr_mut(0).ok_or(Reason::ProgramMissing)?;
    // SAFETY: this CPU's own value; the lookup checked that it is there.
    unsafe { *place = *parked };
    call(frame, program)
}

/// Hands the frame on with what is parked.
#[inline(always)]
pub fn call(frame: &Frame<'_>, program: u32) -> Result<u32, Reason> {
    // SAFETY: nothing here needs to be dropped; it returns only when there is no such program.
    unsafe { PROGRAMS.tail_call(frame.ctx(), program) };
    Err(Reason::ProgramMissing)
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
    set_macs(frame, mac(&fib.dmac), mac(&fib.smac)).ok_or(Reason::Truncated)?;
    Ok(if fib.ifindex == ingress { XDP_TX } else { redirect(fib.ifindex) })
}

/// An address out of the program's stack, which the verifier wants read at its alignment: compilers join plain reads.
#[inline(always)]
fn mac(bytes: &[u8; 6]) -> [u8; 6] {
    let words: *const u16 = bytes.as_ptr().cast();
    // SAFETY: six bytes; both addresses in `bpf_fib_lookup` lie at even offsets.
    let [a, b, c] = unsafe { [words.read_volatile(), words.add(1).read_volatile(), words.add(2).read_volatile()] };
    let ([a0, a1], [b0, b1], [c0, c1]) = (a.to_ne_bytes(), b.to_ne_bytes(), c.to_ne_bytes());
    [a0, a1, b0, b1, c0, c1]
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
