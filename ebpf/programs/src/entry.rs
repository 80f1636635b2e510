//! The entry's choice of a backend, and its memory of it: client -> backend, nothing else, per CPU.

use abi::{BACKEND_DOWN, Backend, Bucket, Reason, RingHead, VipValue, Way};
use aya_ebpf::helpers::{bpf_get_smp_processor_id, bpf_jiffies64};
use packet::{FlowHash, Ipv4, Tcp};

use crate::{
    count,
    maps::{BACKENDS, ENTRY_FLOWS, RING_HEADS, RING_SLOTS},
};

/// Buckets of each CPU's slice, as a power of two. The loader sets it to what the map was made for.
#[unsafe(no_mangle)]
static ENTRY_BITS: u32 = 16;

pub struct Choice {
    pub id: u32,
    pub backend: &'static Backend,
    pub hash: FlowHash,
}

/// The backend of a flow: the remembered one while it lives, else the ring's. A SYN is a new connection whatever an
/// old one with its ports was sent to, so it never reads the memory; every choice is written to it.
#[inline(always)]
pub fn choose(vip: &VipValue, ip: &Ipv4, tcp: &Tcp) -> Result<Choice, Reason> {
    let hash = FlowHash::of(ip.src, tcp.src_port, ip.dst, tcp.dst_port);
    let key = Way::key_of(ip.src, tcp.src_port, vip.frontend);
    let now = now();
    let bucket = bucket(hash);
    if !tcp.opens() {
        if let Some(choice) = bucket.and_then(|bucket| remembered(bucket, key, now, hash)) {
            return Ok(choice);
        }
        count::reason(Reason::EntryMiss);
    }
    let (id, backend) = from_ring(vip.ring, hash.slot())?;
    if let Some(bucket) = bucket {
        // SAFETY: the pointer comes from a checked lookup, and the slice is this CPU's own.
        remember(unsafe { &mut *bucket }, Way { key, backend: id, seen: now });
    }
    Ok(Choice { id, backend, hash })
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

// A backend that is gone is forgotten: the flow goes to another one, whose kernel resets it.
#[inline(always)]
fn remembered(bucket: *mut Bucket, key: u64, now: u32, hash: FlowHash) -> Option<Choice> {
    // SAFETY: the pointer comes from a checked lookup, and the slice is this CPU's own.
    let ways = unsafe { &mut (*bucket).ways };
    let mut id = 0;
    let mut i = 0;
    while i < 4 {
        if ways[i].key == key {
            id = ways[i].backend;
            if ways[i].seen != now {
                ways[i].seen = now;
            }
            break;
        }
        i += 1;
    }
    let backend = BACKENDS.get(id)?;
    (!backend.addr.is_zero() && backend.flags & BACKEND_DOWN == 0).then_some(Choice { id, backend, hash })
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
