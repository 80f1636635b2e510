//! The flow table's rules: whose a place is, what a packet makes of a flow's state, and who gives way to a new flow.
//!
//! ```text
//! SYN ──► half open ──reply──► replied ──more──► confirmed ──FIN, FIN──► closed ──time──► free to take
//!             └────────── gives way to any other flow ─┘  └── RST ──────────────► free to take
//! ```
//!
//! A bucket holds four flows, and a flow may be in either of two buckets. What nobody confirmed gives way, oldest first, so a
//! flood of SYNs or a port scan washes out its own kind alone; a confirmed flow goes only when it has ended or was idle for
//! longer than such a flow may be.

use abi::{
    Be16, Be32, FLOW_CONFIRMED, FLOW_FIN_FORWARD, FLOW_FIN_REPLY, FLOW_REPLIED, FLOW_RST, FLOW_UDP, FLOW_USED, Flow,
    FlowBucket, FlowKey, PROTO_UDP, Stamp, Way,
};

use crate::{FlowHash, TCP_ACK, TCP_FIN, TCP_RST, TCP_SYN, Transport};

/// Places of a bucket.
pub const WAYS: usize = 4;
/// No place: a bit that no place has.
pub const NONE: usize = 4;

// In units of a stamp, at the fastest tick; up to ten times that at the slowest.
/// After both FINs or a RST: 2 s, in which late segments still find their flow.
const CLOSED: u32 = 8;
/// A flow that nobody confirmed: a minute.
const HALF_OPEN: u32 = 240;
/// With one FIN: five minutes.
const CLOSING: u32 = 1_200;
/// Of UDP, whose flows have no end that could be seen: three minutes.
const UDP_IDLE: u32 = 720;
/// Of TCP: a day. Replacing a port needlessly does no harm; taking a live flow's key does.
const IDLE: u32 = 345_600;
/// A choice that the entry remembers: five minutes.
const ENTRY_IDLE: u32 = 1_200;
/// How long the entry's choice for an idle UDP flow stands: half a minute.
const ENTRY_UDP_IDLE: u32 = 120;

/// Which two buckets a flow may be in.
#[inline(always)]
pub const fn hash(key: &FlowKey) -> FlowHash {
    FlowHash::of(key.client, key.client_port, key.backend, key.backend_port)
}

/// Whether the place with these three holds the flow.
#[inline(always)]
pub const fn is(key: &FlowKey, ends: u64, backend: Be32, stamp: Stamp) -> bool {
    difference(key, ends, backend, stamp) == 0
}

/// Zero when the place holds the flow.
#[inline(always)]
const fn difference(key: &FlowKey, ends: u64, backend: Be32, stamp: Stamp) -> u64 {
    let udp = if key.proto == PROTO_UDP { FLOW_UDP } else { 0 };
    let state = (stamp.state() ^ (udp | FLOW_USED)) & (FLOW_UDP | FLOW_USED);
    (ends ^ key.ends()) | (backend.raw() ^ key.backend.raw()) as u64 | state as u64
}

// The next functions decide without branches: each branch would double what the kernel's verifier walks through, for each of
// four places. The compiler is kept from putting them back.
/// The flow's place in a bucket that nobody writes now, or [`NONE`].
#[inline(always)]
pub fn find(bucket: &FlowBucket, key: &FlowKey) -> usize {
    let mut places = 0;
    let mut way = 0;
    while way < WAYS {
        let difference = difference(key, bucket.ends[way], bucket.backend[way], Stamp::from_word(bucket.stamps[way]));
        places |= is_zero(difference) << way;
        way += 1;
    }
    let low = (places >> 1 | places >> 3) & 1;
    let high = (places >> 2 | places >> 3) & 1;
    let none = is_zero(places as u64) * NONE;
    low | high << 1 | none
}

#[inline(always)]
fn is_zero(n: u64) -> usize {
    ((n | core::hint::black_box(n.wrapping_neg())) >> 63 ^ 1) as usize
}

/// What a bucket says of the flow at a place.
#[inline(always)]
pub const fn flow(stamp: Stamp, dialled: Be32, entry: Be32, [dialled_port, original_port]: [Be16; 2]) -> Flow {
    Flow { dialled, entry, dialled_port, original_port, seen: stamp.seen(), state: stamp.state(), pad: [0; 7] }
}

/// The place that a new flow may take: a free one, else the one that can best be spared. [`NONE`] when every flow is in use.
#[inline(always)]
pub fn spare(bucket: &FlowBucket, now: u32) -> usize {
    let mut best = 0;
    let mut way = 0;
    while way < WAYS {
        best = larger(best, rank(Stamp::from_word(bucket.stamps[way]), now) << 2 | way as u32);
        way += 1;
    }
    let none = is_zero((best >> 2) as u64);
    ((best & 3) as usize * (none ^ 1)) | (none * NONE)
}

/// How readily a flow gives way to another one; zero: not at all. Free places first, then ended flows, then those that nobody
/// confirmed, then those that were idle for too long; of a kind the one that was idle longest.
#[inline(always)]
pub const fn rank(stamp: Stamp, now: u32) -> u32 {
    let (idle, state) = (stamp.idle(now), stamp.state() as u32);
    let free = bit(state, FLOW_USED) ^ 1;
    let closed =
        (bit(state, FLOW_RST) | bit(state, FLOW_FIN_FORWARD) & bit(state, FLOW_FIN_REPLY)) & over(idle, CLOSED);
    let unconfirmed = bit(state, FLOW_CONFIRMED) ^ 1;
    let class =
        free << 3 | (closed & !free) << 2 | (unconfirmed & !free) << 1 | over(idle, idle_max(state)) & !unconfirmed;
    let gives = (class | class >> 1 | class >> 2 | class >> 3) & 1;
    (class << 24) | (idle * gives)
}

/// One bit of the state, as a number.
#[inline(always)]
const fn bit(state: u32, mask: u8) -> u32 {
    state >> mask.trailing_zeros() & 1
}

/// One when `a` is more than `b`. Both are below 2^31.
#[inline(always)]
const fn over(a: u32, b: u32) -> u32 {
    b.wrapping_sub(a) >> 31
}

/// Both are below 2^31.
#[inline(always)]
const fn larger(a: u32, b: u32) -> u32 {
    a ^ (a ^ b) & over(b, a).wrapping_neg()
}

/// Whether another flow that looks the same to the backend must stay away from its key.
#[inline(always)]
pub const fn is_live(stamp: Stamp, now: u32) -> bool {
    let (idle, state) = (stamp.idle(now), stamp.state() as u32);
    let both_fins = bit(state, FLOW_FIN_FORWARD) & bit(state, FLOW_FIN_REPLY);
    let unconfirmed = (bit(state, FLOW_CONFIRMED) ^ 1) & over(idle, HALF_OPEN);
    bit(state, FLOW_RST) | both_fins & over(idle, CLOSED) | over(idle, idle_max(state)) | unconfirmed == 0
}

#[inline(always)]
const fn idle_max(state: u32) -> u32 {
    let udp = bit(state, FLOW_UDP);
    let closing = (bit(state, FLOW_FIN_FORWARD) | bit(state, FLOW_FIN_REPLY)) & (udp ^ 1);
    IDLE - udp * (IDLE - UDP_IDLE) - closing * (IDLE - CLOSING)
}

/// The state of a flow that was not known before, after its client's packet.
#[inline(always)]
pub const fn opened(l4: &Transport) -> u8 {
    FLOW_USED | (!l4.is_tcp() as u8 * FLOW_UDP) | ending(l4, FLOW_FIN_FORWARD)
}

/// The state after a packet of the client's. A SYN begins anew what had ended, and changes nothing else: it may be forged.
#[inline(always)]
pub const fn forwarded(state: u8, l4: &Transport) -> u8 {
    let opens = (l4.flags >> 1 & 1) & (l4.flags >> 4 & 1 ^ 1);
    let ended = (state | state >> 1 | state >> 2) & 1;
    let confirmed = (state >> FLOW_REPLIED.trailing_zeros() & 1) * FLOW_CONFIRMED;
    let more = (confirmed | ending(l4, FLOW_FIN_FORWARD)) * (opens ^ 1);
    // Used, and of its protocol, it stays.
    let kept = state & !((opens & ended) * !(FLOW_USED | FLOW_UDP));
    kept | more
}

/// The state after a packet of the backend's.
#[inline(always)]
pub const fn replied(state: u8, l4: &Transport) -> u8 {
    state | FLOW_REPLIED | ending(l4, FLOW_FIN_REPLY)
}

#[inline(always)]
const fn ending(l4: &Transport, fin: u8) -> u8 {
    const { assert!(TCP_FIN == 1 && TCP_RST == FLOW_RST && TCP_SYN == 2 && TCP_ACK == 16) };
    ((l4.flags & TCP_FIN) * fin) | (l4.flags & TCP_RST)
}

/// The place of the entry's line that the choice of a flow that has none may take: a free one, one that nobody confirmed, one
/// that was idle for long. None: the ring decides for this flow until there is room.
#[inline(always)]
pub fn spare_way(ways: &[Way; WAYS], now: u32) -> Option<usize> {
    let mut best = 0;
    let mut way = 0;
    while way < WAYS {
        let stamp = Stamp::from_word(ways[way].stamp);
        let (idle, state) = (stamp.idle(now), stamp.state() as u32);
        let free = bit(state, FLOW_USED) ^ 1;
        let unconfirmed = bit(state, FLOW_CONFIRMED) ^ 1;
        let class = free << 2 | unconfirmed << 1 | over(idle, ENTRY_IDLE);
        let taken = class >> 2 | class >> 1 | class;
        best = larger(best, (class << 26) | (((idle & 0x00ff_ffff) * (taken & 1)) << 2) | way as u32);
        way += 1;
    }
    (best >> 2 != 0).then_some((best & 3) as usize)
}

/// Whether a UDP flow was idle for so long that it chooses anew.
#[inline(always)]
pub const fn is_stale_choice(stamp: Stamp, now: u32) -> bool {
    stamp.idle(now) > ENTRY_UDP_IDLE
}
