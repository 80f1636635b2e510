//! The entry's choice of a backend, and its memory of it: client -> backend, nothing else, per CPU.

use abi::{BACKEND_DOWN, BACKEND_DRAINING, Backend, Be16, Bucket, Reason, RingHead, VipValue, Way};
use aya_ebpf::helpers::{bpf_get_smp_processor_id, bpf_jiffies64};
use packet::{FlowHash, Ipv4, Transport};

use crate::{
    count,
    maps::{BACKENDS, ENTRY_FLOWS, RING_HEADS, RING_SLOTS},
};

/// Buckets of each CPU's slice, as a power of two. The loader sets it to what the map was made for.
#[unsafe(no_mangle)]
static ENTRY_BITS: u32 = 16;

/// How long the choice for an idle UDP flow stands. In jiffies: half a minute at the fastest tick.
const UDP_IDLE: u32 = 30_000;

pub struct Choice {
    pub id: u32,
    pub backend: &'static Backend,
    pub hash: FlowHash,
    /// No packet of it was seen before: it is a new flow.
    pub opens: bool,
    /// The source port that the backend's table gave this flow within this tick; zero when it was not asked.
    pub port: Be16,
    /// Where the choice is remembered. The way is searched for again when it is needed: carried along, each of its places
    /// would be another state to the verifier.
    bucket: Option<*mut Bucket>,
    key: u64,
}

impl Choice {
    /// Spares the flow's next packets within this tick the question.
    #[inline(always)]
    pub fn remember_port(&self, port: Be16) {
        if let Some(way) = self.bucket.and_then(|bucket| find(bucket, self.key)) {
            // SAFETY: a way of this CPU's own slice, whose bucket came from a checked lookup.
            unsafe { (*way).port = port };
        }
    }
}

/// The backend of a flow: the remembered one while it lives, else the ring's. A SYN is a new connection whatever an
/// old one with its ports was sent to, so it never reads the memory; every choice is written to it.
#[inline(always)]
pub fn choose(vip: &VipValue, ip: &Ipv4, l4: &Transport) -> Result<Choice, Reason> {
    let hash = FlowHash::of(ip.src, l4.src_port, ip.dst, l4.dst_port);
    let key = Way::key_of(ip.src, l4.src_port, vip.frontend);
    let now = now();
    let bucket = bucket(hash);
    if !l4.opens() {
        if let Some(bucket) = bucket
            && let Some(choice) = remembered(bucket, key, now, hash, l4)?
        {
            return Ok(choice);
        }
        if l4.is_tcp() {
            count::reason(Reason::EntryMiss);
        }
    }
    let (id, backend) = from_ring(vip.ring, hash.slot())?;
    if let Some(bucket) = bucket {
        // SAFETY: the pointer comes from a checked lookup, and the slice is this CPU's own.
        remember(unsafe { &mut *bucket }, Way { key, backend: id as u16, port: Be16::default(), seen: now });
    }
    Ok(Choice { id, backend, hash, opens: l4.opens() || !l4.is_tcp(), port: Be16::default(), bucket, key })
}

/// The live backend that a ring's slot names.
#[inline(always)]
pub fn from_ring(ring: u32, hash: u32) -> Result<(u32, &'static Backend), Reason> {
    let head = RING_HEADS.get_ptr(ring).ok_or(Reason::RingDamaged)?;
    // SAFETY: a checked lookup; user space flips the word with one aligned store, so it is read once, whole.
    let head = RingHead::from_word(unsafe { head.read_volatile() });
    if head.size() == 0 {
        return Err(Reason::NoBackend);
    }
    let id = *RING_SLOTS.get(head.slot(hash)).ok_or(Reason::RingDamaged)?;
    let backend = BACKENDS.get(id).ok_or(Reason::RingDamaged)?;
    if backend.addr.is_zero() {
        return Err(Reason::RingDamaged);
    }
    if backend.flags & BACKEND_DOWN != 0 {
        return Err(Reason::BackendDown);
    }
    Ok((id, backend))
}

#[inline(always)]
fn bucket(hash: FlowHash) -> Option<*mut Bucket> {
    // SAFETY: a static of this object, read as the loader left it.
    let bits = unsafe { core::ptr::read_volatile(&raw const ENTRY_BITS) } & 31;
    // SAFETY: the helper has no preconditions.
    let cpu = unsafe { bpf_get_smp_processor_id() };
    ENTRY_FLOWS.get_ptr_mut(cpu << bits | hash.bucket() & ((1 << bits) - 1))
}

/// Nothing is known of the flow; or its backend; or that this one is gone, which ends a connection, while UDP goes to
/// another one at once.
#[inline(always)]
fn remembered(
    bucket: *mut Bucket,
    key: u64,
    now: u32,
    hash: FlowHash,
    l4: &Transport,
) -> Result<Option<Choice>, Reason> {
    let Some(way) = find(bucket, key) else { return Ok(None) };
    // SAFETY: a way of this CPU's own slice, whose bucket came from a checked lookup.
    let held = unsafe { *way };
    let Some(backend) = BACKENDS.get(held.backend as u32) else { return Ok(None) };
    if l4.is_tcp() {
        if is_gone(backend) {
            return Err(Reason::BackendDown);
        }
    } else if is_gone(backend) || backend.flags & BACKEND_DRAINING != 0 || now.wrapping_sub(held.seen) > UDP_IDLE {
        return Ok(None);
    }
    let port = if held.seen == now { held.port } else { Be16::default() };
    if held.seen != now {
        // SAFETY: as above.
        unsafe {
            (*way).seen = now;
            (*way).port = port;
        }
    }
    Ok(Some(Choice { id: held.backend as u32, backend, hash, opens: false, port, bucket: Some(bucket), key }))
}

#[inline(always)]
fn find(bucket: *mut Bucket, key: u64) -> Option<*mut Way> {
    let mut i = 0;
    while i < 4 {
        // SAFETY: the pointer comes from a checked lookup, and the slice is this CPU's own.
        let way = unsafe { &mut (*bucket).ways[i] };
        if way.key == key {
            return Some(way);
        }
        i += 1;
    }
    None
}

#[inline(always)]
fn is_gone(backend: &Backend) -> bool {
    backend.addr.is_zero() || backend.flags & BACKEND_DOWN != 0
}

// The flow's own way, else a free one, else the one that was idle longest.
#[inline(always)]
fn remember(bucket: &mut Bucket, way: Way) {
    let mut victim = 0;
    let mut best = 0;
    let mut i = 0;
    while i < 4 {
        let held = &bucket.ways[i];
        let score = if held.key == way.key {
            u64::MAX
        } else if held.key == 0 {
            u64::MAX - 1
        } else {
            way.seen.wrapping_sub(held.seen) as u64 + 1
        };
        if score > best {
            best = score;
            victim = i;
        }
        i += 1;
    }
    bucket.ways[victim & 3] = way;
}

/// Jiffies' low half: free to read, where a clock costs as much as a hash look-up.
#[inline(always)]
pub fn now() -> u32 {
    // SAFETY: the helper has no preconditions.
    unsafe { bpf_jiffies64() as u32 }
}
