//! A connect to a service's address becomes a connect to one of its backends: no work per packet.

use abi::{Be16, Be32, PROTO_TCP, Reason, VipKey};
use aya_ebpf::{
    EbpfContext,
    helpers::{bpf_get_netns_cookie, bpf_get_prandom_u32},
    macros::cgroup_sock_addr,
    programs::SockAddrContext,
};

use crate::{
    count, entry,
    maps::{SCOPE, VIPS},
};

const ALLOW: i32 = 1;
/// The caller's `connect` fails with EPERM.
const REFUSE: i32 = 0;
const SOCK_STREAM: u32 = 1;
/// Slots that are tried before a connect is refused, for the moment in which a backend is down and still in its ring.
const TRIES: u32 = 4;

#[cgroup_sock_addr(connect4)]
pub fn connect4(ctx: SockAddrContext) -> i32 {
    match try_connect4(&ctx) {
        Some(verdict) => verdict,
        None => ALLOW,
    }
}

#[inline(always)]
fn try_connect4(ctx: &SockAddrContext) -> Option<i32> {
    // SAFETY: the context is the one the program was called with; the fields are readable for this program type.
    let (stream, proto) = unsafe { ((*ctx.sock_addr).type_ == SOCK_STREAM, (*ctx.sock_addr).protocol) };
    if !stream || proto != PROTO_TCP as u32 {
        return None;
    }
    // SAFETY: the helper takes this program type's context.
    let cookie = unsafe { bpf_get_netns_cookie(ctx.as_ptr()) };
    // SAFETY: the value is not read.
    unsafe { SCOPE.get(cookie) }?;
    // SAFETY: as above; the port is the low half, in network order.
    let (addr, port) = unsafe { ((*ctx.sock_addr).user_ip4, (*ctx.sock_addr).user_port as u16) };
    let key = VipKey { addr: Be32::from_raw(addr), port: Be16::from_raw(port), proto: PROTO_TCP, pad: 0 };
    // SAFETY: copied at once; values are replaced whole.
    let ring = unsafe { VIPS.get(key) }?.ring;
    Some(translate(ctx, ring))
}

#[inline(always)]
fn translate(ctx: &SockAddrContext, ring: u32) -> i32 {
    let mut tries = 0;
    while tries < TRIES {
        // SAFETY: the helper has no preconditions.
        let hash = unsafe { bpf_get_prandom_u32() };
        match entry::from_ring(ring, hash) {
            Ok((id, backend)) => {
                // SAFETY: both fields are writable for this program type.
                unsafe {
                    (*ctx.sock_addr).user_ip4 = backend.addr.raw();
                    (*ctx.sock_addr).user_port = backend.port.raw() as u32;
                }
                count::backend(id, 0, true);
                return ALLOW;
            }
            Err(Reason::BackendDown) => tries += 1,
            Err(_) => break,
        }
    }
    count::reason(Reason::ConnectRefused);
    REFUSE
}
