//! What leaves an allocation: replies go back the way their flow came, overlay traffic goes to its node.

use abi::{Be16, Flow, FlowKey, NODE_SELF, Node, PROTO_TCP, Reason, UPLINK_READY, Uplink, block_of};
use aya_ebpf::{
    bindings::{
        BPF_F_ADJ_ROOM_ENCAP_L2_ETH, BPF_F_ADJ_ROOM_ENCAP_L3_IPV4, BPF_F_ADJ_ROOM_ENCAP_L4_UDP,
        BPF_F_ADJ_ROOM_FIXED_GSO, BPF_F_PSEUDO_HDR, TC_ACT_SHOT, TC_ACT_UNSPEC,
    },
    helpers::{bpf_redirect, bpf_redirect_neigh},
    macros::classifier,
    programs::TcContext,
};
use packet::{Bytes, ENCAP, ETHERNET, FlowHash, IPV4, Ipv4, Kind, L3, OUTER, Outer, Target, Tcp, ether_type};

use crate::{
    count, flow,
    maps::{BLOCKS, NODE_BY_ADDR, NODES, UPLINK},
};

const ADJ_ROOM_MAC: u32 = 1;
/// Where the length of the inner link header goes in the flags of `bpf_skb_adjust_room`.
const ENCAP_L2_SHIFT: u32 = 56;
const HEADERS: usize = ETHERNET + IPV4 + 20;
const IP_CHECKSUM: usize = L3 + 10;
const IP_TTL: usize = L3 + 8;
const IP_SRC: usize = L3 + 12;
const TCP: usize = L3 + IPV4;
const TCP_CHECKSUM: usize = TCP + 16;

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
    let Some(uplink) = UPLINK.get(0).filter(|uplink| uplink.flags & UPLINK_READY != 0) else {
        return Ok(TC_ACT_UNSPEC);
    };
    let skb = Skb { ctx };
    if ctx.data() + HEADERS > ctx.data_end() {
        // A short packet cannot be pulled this far, and is looked at as it is.
        let _ = ctx.pull_data(HEADERS as u32);
    }
    if ether_type(&skb).is_err() {
        return Ok(TC_ACT_UNSPEC);
    }
    if let Ok(ip) = Ipv4::parse(&skb, L3)
        && ip.proto == PROTO_TCP
        && let Ok(tcp) = Tcp::parse(&skb, L3, &ip)
        && let Some(flow) = flow::of_reply(key_of(&ip, &tcp), &tcp)
    {
        return on_reply(ctx, &ip, &tcp, &flow, uplink);
    }
    match Ipv4::parse_any(&skb, L3) {
        Ok(ip) => on_other(ctx, &ip, uplink),
        Err(_) => Ok(TC_ACT_UNSPEC),
    }
}

#[inline(always)]
fn key_of(ip: &Ipv4, tcp: &Tcp) -> FlowKey {
    FlowKey {
        client: ip.dst,
        backend: ip.src,
        client_port: tcp.dst_port,
        backend_port: tcp.src_port,
        proto: PROTO_TCP,
        pad: [0; 3],
    }
}

/// Makes the reply come from what the client dialled, and sends it back by its entry node.
#[inline(always)]
fn on_reply(ctx: &TcContext, ip: &Ipv4, tcp: &Tcp, flow: &Flow, uplink: &Uplink) -> Result<i32, Reason> {
    check_ttl(ip)?;
    restore(ctx, ip, tcp, flow).map_err(|_| Reason::HeadroomRefused)?;
    if flow.entry.is_zero() {
        // SAFETY: no parameters are given: the helper routes by the packet's destination.
        return Ok(unsafe { bpf_redirect_neigh(uplink.ifindex, core::ptr::null_mut(), 0, 0) } as i32);
    }
    // SAFETY: copied at once.
    let node = *unsafe { NODE_BY_ADDR.get(flow.entry) }.ok_or(Reason::NodeUnresolved)?;
    let hash = FlowHash::of(ip.dst, flow.original_port, flow.dialled, flow.dialled_port);
    encapsulate(ctx, ip, uplink, node, hash.tunnel_port(), Kind::Reply)
}

#[inline(always)]
fn on_other(ctx: &TcContext, ip: &Ipv4, uplink: &Uplink) -> Result<i32, Reason> {
    // SAFETY: copied at once.
    let Some(&node) = (unsafe { BLOCKS.get(block_of(ip.dst)) }) else { return Ok(TC_ACT_UNSPEC) };
    if node == NODE_SELF {
        return Ok(TC_ACT_UNSPEC);
    }
    check_ttl(ip)?;
    age(ctx, ip).map_err(|_| Reason::HeadroomRefused)?;
    let hash = FlowHash::of(ip.src, Be16::new(ip.proto as u16), ip.dst, Be16::default());
    encapsulate(ctx, ip, uplink, node, hash.tunnel_port(), Kind::Plain)
}

#[inline(always)]
fn check_ttl(ip: &Ipv4) -> Result<(), Reason> {
    if ip.ttl > 1 { Ok(()) } else { Err(Reason::TtlExpired) }
}

// The helpers know whether the packet's checksum is finished already; `packet`'s rewrites need a finished one.
#[inline(always)]
fn restore(ctx: &TcContext, ip: &Ipv4, tcp: &Tcp, flow: &Flow) -> Result<(), i64> {
    let (from, to) = (ip.src.raw() as u64, flow.dialled.raw() as u64);
    ctx.l4_csum_replace(TCP_CHECKSUM, from, to, BPF_F_PSEUDO_HDR as u64 | 4)?;
    let ports = (tcp.src_port.raw() as u32 | (tcp.dst_port.raw() as u32) << 16) as u64;
    let restored = flow.dialled_port.raw() as u32 | (flow.original_port.raw() as u32) << 16;
    ctx.l4_csum_replace(TCP_CHECKSUM, ports, restored as u64, 4)?;
    ctx.l3_csum_replace(IP_CHECKSUM, from, to, 4)?;
    ctx.store(IP_SRC, &flow.dialled, 0)?;
    ctx.store(TCP, &restored, 0)?;
    age(ctx, ip)
}

#[inline(always)]
fn age(ctx: &TcContext, ip: &Ipv4) -> Result<(), i64> {
    let old = u16::from_ne_bytes([ip.ttl, ip.proto]);
    let new = u16::from_ne_bytes([ip.ttl.wrapping_sub(1), ip.proto]);
    ctx.l3_csum_replace(IP_CHECKSUM, old as u64, new as u64, 2)?;
    ctx.store(IP_TTL, &new, 0)
}

#[inline(always)]
fn encapsulate(
    ctx: &TcContext,
    ip: &Ipv4,
    uplink: &Uplink,
    node: u32,
    src_port: Be16,
    kind: Kind,
) -> Result<i32, Reason> {
    let node: &Node = NODES.get(node).ok_or(Reason::NodeUnresolved)?;
    if node.dmac == [0; 6] {
        count::unresolved(node.addr);
        return Err(Reason::NodeUnresolved);
    }
    // SAFETY: the context is the one the program was called with.
    let segmented = unsafe { (*ctx.skb.skb).gso_size } != 0;
    if !segmented && ip.total_len as usize + ENCAP > uplink.mtu as usize {
        return Err(Reason::TooBig);
    }
    let outer = Outer {
        src_mac: uplink.mac,
        dst_mac: node.dmac,
        src: uplink.addr,
        dst: node.addr,
        src_port,
        inner_len: ip.total_len,
        kind,
        target: Target::default(),
    };
    // Segments keep their size: an allocation's MTU leaves room for the tunnel.
    let flags = (BPF_F_ADJ_ROOM_FIXED_GSO
        | BPF_F_ADJ_ROOM_ENCAP_L3_IPV4
        | BPF_F_ADJ_ROOM_ENCAP_L4_UDP
        | BPF_F_ADJ_ROOM_ENCAP_L2_ETH) as u64
        | (ETHERNET as u64) << ENCAP_L2_SHIFT;
    ctx.adjust_room(OUTER as i32, ADJ_ROOM_MAC, flags).map_err(|_| Reason::HeadroomRefused)?;
    ctx.store(0, &headers(&outer, uplink), 0).map_err(|_| Reason::HeadroomRefused)?;
    // SAFETY: the helper has no preconditions.
    Ok(unsafe { bpf_redirect(uplink.ifindex, 0) } as i32)
}

/// The outer headers and the inner Ethernet header: room is made behind the frame's own, which becomes the outer one.
/// The receiver sets the inner MACs.
#[repr(C)]
struct Headers {
    outer: [u8; OUTER],
    inner: [u8; ETHERNET],
}

#[inline(always)]
fn headers(outer: &Outer, uplink: &Uplink) -> Headers {
    let mut inner = [0; ETHERNET];
    let mut i = 0;
    while i < 6 {
        inner[6 + i] = uplink.mac[i];
        i += 1;
    }
    inner[12] = 0x08;
    Headers { outer: outer.bytes(), inner }
}

/// The packet under TC, for reading: its first bytes are linear.
struct Skb<'a> {
    ctx: &'a TcContext,
}

impl Bytes for Skb<'_> {
    #[inline(always)]
    fn get<const N: usize>(&self, offset: usize) -> Option<[u8; N]> {
        let start = self.ctx.data() + offset;
        // SAFETY: the N bytes lie inside the linear part; byte arrays need no alignment.
        (start + N <= self.ctx.data_end()).then(|| unsafe { *(start as *const [u8; N]) })
    }

    #[inline(always)]
    fn put<const N: usize>(&mut self, offset: usize, bytes: [u8; N]) -> Option<()> {
        self.ctx.store(offset, &bytes, 0).ok()
    }

    #[inline(always)]
    fn len(&self) -> usize {
        self.ctx.len() as usize
    }
}
