//! The uplink: packets for services come in and are sent on; tunnelled frames are unwrapped and delivered.

use abi::{BACKEND_HOST, Be16, Be32, NODE_SELF, Node, PROTO_TCP, Reason, UPLINK_READY, Uplink, VipKey};
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
    ENCAP, GENEVE_PORT, Ipv4, Kind, L3, OUTER, Outer, Rewrite, Skip, Target, Tcp, age_ipv4, ether_type, inner,
    rewrite_tcp, set_macs, udp_ports,
};

use crate::{
    count, entry,
    flow::Forward,
    frame::Frame,
    maps::{ENDPOINTS, NODE_BY_ADDR, NODES, UPLINK, VIPS},
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
    if let Err(skip) = ether_type(&frame) {
        return pass(skip);
    }
    let ip = match Ipv4::parse(&frame, L3) {
        Ok(ip) => ip,
        Err(skip) => return pass(skip),
    };
    match ip.proto {
        Ipv4::PROTO_TCP => match Tcp::parse(&frame, L3, &ip) {
            Ok(tcp) => on_tcp(&mut frame, &ip, &tcp),
            Err(skip) => pass(skip),
        },
        Ipv4::PROTO_UDP => on_udp(&mut frame, &ip),
        _ => Ok(XDP_PASS),
    }
}

#[inline(always)]
fn pass(skip: Skip) -> Result<u32, Reason> {
    match skip {
        Skip::NotIpv4 => Ok(XDP_PASS),
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
fn on_tcp(frame: &mut Frame<'_>, ip: &Ipv4, tcp: &Tcp) -> Result<u32, Reason> {
    let key = VipKey { addr: ip.dst, port: tcp.dst_port, proto: PROTO_TCP, pad: 0 };
    // SAFETY: a value is replaced whole; what is read of it here is two independent words.
    let Some(vip) = (unsafe { VIPS.get(key) }) else { return Ok(XDP_PASS) };
    let Some(uplink) = uplink() else { return Ok(XDP_PASS) };
    let choice = entry::choose(vip, ip, tcp)?;
    check_ttl(ip)?;
    let backend = choice.backend;
    let target = Target { addr: backend.addr, port: backend.port, proto: PROTO_TCP };
    let action = if backend.node != NODE_SELF {
        let node = NODES.get(backend.node).ok_or(Reason::NodeUnresolved)?;
        let src_port = choice.hash.tunnel_port();
        send_to_node(frame, ip, uplink, node, src_port, target)?
    } else if backend.flags & BACKEND_HOST != 0 {
        return Err(Reason::HostBackend);
    } else {
        deliver(frame, ip, tcp, &target, Be32::default())?
    };
    count::backend(choice.id, ip.total_len, tcp.opens());
    Ok(action)
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
    frame.move_start(-(OUTER as i32)).ok_or(Reason::HeadroomRefused)?;
    packet::Bytes::put(frame, 0, outer.bytes()).ok_or(Reason::HeadroomRefused)?;
    Ok(XDP_TX)
}

/// Into the allocation that holds the backend.
#[inline(always)]
fn deliver(frame: &mut Frame<'_>, ip: &Ipv4, tcp: &Tcp, target: &Target, entry: Be32) -> Result<u32, Reason> {
    // SAFETY: an endpoint's fields change only together with the interface they name.
    let endpoint = unsafe { ENDPOINTS.get(target.addr) }.ok_or(Reason::NotOurEndpoint)?;
    let forward = Forward {
        client: ip.src,
        client_port: tcp.src_port,
        dialled: ip.dst,
        dialled_port: tcp.dst_port,
        backend: target.addr,
        backend_port: target.port,
        entry,
        proto: PROTO_TCP,
    };
    let src_port = forward.admit(tcp)?;
    let to = Rewrite { src: ip.src, dst: target.addr, src_port, dst_port: target.port };
    rewrite_tcp(frame, L3, ip, tcp, &to).ok_or(Reason::Truncated)?;
    set_macs(frame, endpoint.mac, endpoint.host_mac).ok_or(Reason::Truncated)?;
    Ok(redirect(endpoint.ifindex))
}

#[inline(always)]
fn redirect(ifindex: u32) -> u32 {
    // SAFETY: the helper has no preconditions.
    unsafe { bpf_redirect(ifindex, 0) as u32 }
}

/// From a node, perhaps.
#[inline(always)]
fn on_udp(frame: &mut Frame<'_>, ip: &Ipv4) -> Result<u32, Reason> {
    match udp_ports(frame, L3, ip) {
        Ok((_, GENEVE_PORT)) => {}
        Ok(_) => return Ok(XDP_PASS),
        Err(skip) => return pass(skip),
    }
    match uplink() {
        Some(uplink) if uplink.addr == ip.dst => on_tunnel(frame, ip, uplink),
        _ => Ok(XDP_PASS),
    }
}

#[inline(always)]
fn on_tunnel(frame: &mut Frame<'_>, outer: &Ipv4, uplink: &Uplink) -> Result<u32, Reason> {
    // SAFETY: the value is not read.
    unsafe { NODE_BY_ADDR.get(outer.src) }.ok_or(Reason::TunnelPeerUnknown)?;
    let inner = inner(frame).map_err(|_| Reason::TunnelMalformed)?;
    frame.move_start(OUTER as i32).ok_or(Reason::HeadroomRefused)?;
    ether_type(frame).map_err(|_| Reason::TunnelMalformed)?;
    match inner.kind {
        Kind::Forward => on_forward(frame, &inner.target, outer.src),
        Kind::Reply => on_reply(frame),
        Kind::Plain => on_plain(frame, uplink),
    }
}

#[inline(always)]
fn on_forward(frame: &mut Frame<'_>, target: &Target, entry: Be32) -> Result<u32, Reason> {
    let ip = Ipv4::parse(frame, L3).map_err(|_| Reason::TunnelMalformed)?;
    if ip.proto != PROTO_TCP || target.proto != PROTO_TCP {
        return Err(Reason::TunnelMalformed);
    }
    let tcp = Tcp::parse(frame, L3, &ip).map_err(|_| Reason::TunnelMalformed)?;
    check_ttl(&ip)?;
    deliver(frame, &ip, &tcp, target, entry)
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
    // SAFETY: as in `deliver`.
    if let Some(endpoint) = unsafe { ENDPOINTS.get(ip.dst) } {
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
