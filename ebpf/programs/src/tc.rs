//! What both TC programs do to a packet: replies get the dialled address back, frames are wrapped for another node.

use abi::{Be16, FlowKey, Node, Reason, UPLINK_READY, Uplink};
use aya_ebpf::{
    bindings::{
        BPF_F_ADJ_ROOM_ENCAP_L2_ETH, BPF_F_ADJ_ROOM_ENCAP_L3_IPV4, BPF_F_ADJ_ROOM_ENCAP_L4_UDP,
        BPF_F_ADJ_ROOM_FIXED_GSO, BPF_F_MARK_MANGLED_0, BPF_F_PSEUDO_HDR,
    },
    programs::TcContext,
};
use packet::{
    Bytes, ENCAP, ETHERNET, FlowHash, IPV4, Ipv4, Kind, L3, OUTER, Outer, TCP, Target, Transport, checksum_at, find_mss,
};

use crate::{
    count,
    flow::Known,
    maps::{NODE_BY_ADDR, NODES, UPLINK},
};

const ADJ_ROOM_MAC: u32 = 1;
/// Where the length of the inner link header goes in the flags of `bpf_skb_adjust_room`.
const ENCAP_L2_SHIFT: u32 = 56;
const HEADERS: usize = ETHERNET + IPV4 + TCP;
/// With every option that a SYN may carry.
const HEADERS_MAX: usize = ETHERNET + IPV4 + 60;
const IP_CHECKSUM: usize = L3 + 10;
const IP_TTL: usize = L3 + 8;
const IP_SRC: usize = L3 + 12;
const PORTS: usize = L3 + IPV4;

/// The node's own data, once it is published.
#[inline(always)]
pub fn uplink() -> Option<&'static Uplink> {
    UPLINK.get(0).filter(|uplink| uplink.flags & UPLINK_READY != 0)
}

/// Makes the headers readable where they lie.
#[inline(always)]
pub fn pull(ctx: &TcContext) {
    if ctx.data() + HEADERS > ctx.data_end() {
        // A short packet cannot be pulled this far, and is looked at as it is.
        let _ = ctx.pull_data(HEADERS as u32);
    }
}

/// The flow that a packet from a backend belongs to.
#[inline(always)]
pub fn key_of_reply(ip: &Ipv4, l4: &Transport) -> FlowKey {
    FlowKey {
        client: ip.dst,
        backend: ip.src,
        client_port: l4.dst_port,
        backend_port: l4.src_port,
        proto: l4.proto,
        pad: [0; 3],
    }
}

// The helpers know whether the packet's checksum is finished already; `packet`'s rewrites need a finished one.
/// Makes the reply come from what was dialled, to the port that dialled it.
#[inline(always)]
pub fn restore(ctx: &TcContext, ip: &Ipv4, l4: &Transport, flow: &Known) -> Result<(), i64> {
    let sum_at = PORTS + checksum_at(l4);
    // For UDP: a checksum that is not there stays so, and one of zero is written as all ones.
    let mangled = if l4.is_tcp() { 0 } else { BPF_F_MARK_MANGLED_0 as u64 };
    let (from, to) = (ip.src.raw() as u64, flow.dialled().raw() as u64);
    ctx.l4_csum_replace(sum_at, from, to, BPF_F_PSEUDO_HDR as u64 | mangled | 4)?;
    let ports = (l4.src_port.raw() as u32 | (l4.dst_port.raw() as u32) << 16) as u64;
    let restored = flow.dialled_port().raw() as u32 | (flow.original_port().raw() as u32) << 16;
    ctx.l4_csum_replace(sum_at, ports, restored as u64, mangled | 4)?;
    ctx.l3_csum_replace(IP_CHECKSUM, from, to, 4)?;
    ctx.store(IP_SRC, &flow.dialled(), 0)?;
    ctx.store(PORTS, &restored, 0)
}

/// Lowers what a SYN of this node offers to take to what fits into the tunnel.
#[inline(always)]
pub fn clamp_mss(ctx: &TcContext, max: u16) -> Result<(), i64> {
    let len = (ctx.len() as usize).min(HEADERS_MAX);
    if ctx.data() + len > ctx.data_end() {
        let _ = ctx.pull_data(len as u32);
    }
    let Some(mss) = find_mss(&Skb { ctx }, L3).filter(|mss| mss.value.get() > max) else { return Ok(()) };
    let new = Be16::new(max);
    let (old_word, new_word) = mss.words(new);
    ctx.l4_csum_replace(PORTS + 16, old_word.raw() as u64, new_word.raw() as u64, 2)?;
    ctx.store(mss.at, &new, 0)
}

/// Takes one hop off the TTL, which the caller has checked.
#[inline(always)]
pub fn age(ctx: &TcContext, ip: &Ipv4) -> Result<(), i64> {
    let old = u16::from_ne_bytes([ip.ttl, ip.proto]);
    let new = u16::from_ne_bytes([ip.ttl.wrapping_sub(1), ip.proto]);
    ctx.l3_csum_replace(IP_CHECKSUM, old as u64, new as u64, 2)?;
    ctx.store(IP_TTL, &new, 0)
}

/// Wraps a restored reply for the node that its flow came in by.
#[inline(always)]
pub fn wrap_reply(ctx: &TcContext, ip: &Ipv4, flow: &Known, uplink: &Uplink) -> Result<(), Reason> {
    // SAFETY: copied at once.
    let node = *unsafe { NODE_BY_ADDR.get(flow.entry()) }.ok_or(Reason::NodeUnresolved)?;
    let hash = FlowHash::of(ip.dst, flow.original_port(), flow.dialled(), flow.dialled_port());
    encapsulate(ctx, ip, uplink, node, hash.tunnel_port(), Kind::Reply)
}

#[inline(always)]
pub fn encapsulate(
    ctx: &TcContext,
    ip: &Ipv4,
    uplink: &Uplink,
    node: u32,
    src_port: Be16,
    kind: Kind,
) -> Result<(), Reason> {
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
    write_headers(ctx, &outer, uplink).ok_or(Reason::HeadroomRefused)
}

/// The outer headers and the inner Ethernet header: room is made behind the frame's own, which becomes the outer one.
/// The receiver sets the inner MACs. Written where they lie: a helper would want them on the stack, where the verifier allows
/// no word at an odd address.
#[inline(always)]
fn write_headers(ctx: &TcContext, outer: &Outer, uplink: &Uplink) -> Option<()> {
    let start = ctx.data();
    if start + OUTER + ETHERNET > ctx.data_end() {
        return None;
    }
    let [m0, m1, m2, m3, m4, m5] = uplink.mac;
    // SAFETY: both arrays lie inside the linear part, checked above; the room made there is writable; byte arrays need no
    // alignment.
    unsafe {
        *(start as *mut [u8; OUTER]) = outer.bytes();
        *((start + OUTER) as *mut [u8; ETHERNET]) = [0, 0, 0, 0, 0, 0, m0, m1, m2, m3, m4, m5, 0x08, 0x00];
    }
    Some(())
}

/// The packet under TC, for reading: its first bytes are linear.
pub struct Skb<'a> {
    pub ctx: &'a TcContext,
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
