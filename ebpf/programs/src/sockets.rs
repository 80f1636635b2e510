//! A socket that dials a service's address speaks to one of its backends: no work per packet, nor for a connection's
//! packets on the way. What it dialled is kept in the socket's own storage, and is what the program gets to see.

use abi::{Be16, Be32, PROTO_TCP, PROTO_UDP, Peer, Peers, Reason, VipKey};
use aya_ebpf::{
    EbpfContext,
    helpers::{bpf_get_netns_cookie, bpf_get_prandom_u32, bpf_get_socket_cookie, bpf_set_retval},
    macros::cgroup_sock_addr,
    programs::SockAddrContext,
};

use crate::{
    count, entry,
    maps::{PEERS, SCOPE, VIPS},
};

const ALLOW: i32 = 1;
const REFUSE: i32 = 0;
const ECONNREFUSED: i32 = 111;
/// Slots that are tried before a connect is refused, for the moment in which a backend is down and still in its ring.
const TRIES: u32 = 4;

#[cgroup_sock_addr(connect4)]
pub fn connect4(ctx: SockAddrContext) -> i32 {
    let Some((dialled, ring)) = service(&ctx) else { return ALLOW };
    // SAFETY: the helper has no preconditions.
    let chance = || unsafe { bpf_get_prandom_u32() };
    translate(&ctx, dialled, ring, chance)
}

/// A datagram that names its receiver. Those of one socket stay with one backend while the ring does.
#[cgroup_sock_addr(sendmsg4)]
pub fn sendmsg4(ctx: SockAddrContext) -> i32 {
    let Some((dialled, ring)) = service(&ctx) else { return ALLOW };
    // SAFETY: the helper takes this program type's context.
    let mut hash = unsafe { bpf_get_socket_cookie(ctx.as_ptr()) } as u32;
    let next = || {
        hash = hash.wrapping_mul(0x9e37_79b1).wrapping_add(0x7f4a_7c15);
        hash
    };
    translate(&ctx, dialled, ring, next)
}

/// Where a datagram came from: the address that was dialled, if it was.
#[cgroup_sock_addr(recvmsg4)]
pub fn recvmsg4(ctx: SockAddrContext) -> i32 {
    show_dialled(&ctx);
    ALLOW
}

#[cgroup_sock_addr(getpeername4)]
pub fn getpeername4(ctx: SockAddrContext) -> i32 {
    show_dialled(&ctx);
    ALLOW
}

/// The service that the socket dials, for namespaces that are ours: what it dialled and the ring behind it.
#[inline(always)]
fn service(ctx: &SockAddrContext) -> Option<(VipKey, u32)> {
    // SAFETY: the context is the one the program was called with; the field is readable for this program type.
    let proto = unsafe { (*ctx.sock_addr).protocol } as u8;
    if proto != PROTO_TCP && proto != PROTO_UDP {
        return None;
    }
    // SAFETY: the helper takes this program type's context.
    let cookie = unsafe { bpf_get_netns_cookie(ctx.as_ptr()) };
    // SAFETY: the value is not read.
    unsafe { SCOPE.get(cookie) }?;
    let (addr, port) = named(ctx);
    let key = VipKey { addr, port, proto, pad: 0 };
    // SAFETY: copied at once; values are replaced whole.
    let ring = unsafe { VIPS.get(key) }?.ring;
    Some((key, ring))
}

#[inline(always)]
fn named(ctx: &SockAddrContext) -> (Be32, Be16) {
    // SAFETY: readable for this program type; the port is the low half, in network order.
    unsafe { (Be32::from_raw((*ctx.sock_addr).user_ip4), Be16::from_raw((*ctx.sock_addr).user_port as u16)) }
}

#[inline(always)]
fn name(ctx: &SockAddrContext, addr: Be32, port: Be16) {
    // SAFETY: both fields are writable for this program type.
    unsafe {
        (*ctx.sock_addr).user_ip4 = addr.raw();
        (*ctx.sock_addr).user_port = port.raw() as u32;
    }
}

#[inline(always)]
fn translate(ctx: &SockAddrContext, dialled: VipKey, ring: u32, mut hash: impl FnMut() -> u32) -> i32 {
    let mut tries = 0;
    while tries < TRIES {
        match entry::from_ring(ring, hash()) {
            Ok((id, backend)) => {
                let fresh = remember(
                    ctx,
                    Peer {
                        dialled: dialled.addr,
                        backend: backend.addr,
                        dialled_port: dialled.port,
                        backend_port: backend.port,
                    },
                );
                name(ctx, backend.addr, backend.port);
                count::backend(id, 0, fresh);
                return ALLOW;
            }
            Err(Reason::BackendDown) => tries += 1,
            Err(_) => break,
        }
    }
    count::reason(Reason::ConnectRefused);
    // SAFETY: the helper has no preconditions.
    unsafe { bpf_set_retval(-ECONNREFUSED) };
    REFUSE
}

/// Says whether it was not known before.
#[inline(always)]
fn remember(ctx: &SockAddrContext, peer: Peer) -> bool {
    let mut none = Peers::default();
    // SAFETY: the socket lives as long as the call; the storage is the socket's own.
    let Some(peers) = (unsafe { PEERS.get_or_insert_ptr_mut(ctx, Some(&mut none)).as_mut() }) else { return true };
    let mut i = 0;
    while i < 4 {
        if peers.peers[i] == peer {
            return false;
        }
        i += 1;
    }
    let next = peers.next;
    peers.peers[(next & 3) as usize] = peer;
    peers.next = next.wrapping_add(1);
    true
}

#[inline(always)]
fn show_dialled(ctx: &SockAddrContext) {
    // SAFETY: as in `remember`.
    let Some(peers) = (unsafe { PEERS.get_ptr_mut(ctx).as_ref() }) else { return };
    let (addr, port) = named(ctx);
    let mut i = 0;
    while i < 4 {
        let peer = peers.peers[i];
        if peer.backend == addr && peer.backend_port == port {
            return name(ctx, peer.dialled, peer.dialled_port);
        }
        i += 1;
    }
}
