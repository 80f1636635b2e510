//! The entry's choice of a backend, and its memory of it: client -> backend, nothing else, per CPU. Only who knows nothing asks
//! the other CPUs.

use abi::{
    BACKEND_DOWN, BACKEND_DRAINING, Backend, Be16, Bucket, FLOW_CONFIRMED, FLOW_USED, Parked, Reason, RingHead, Stamp,
    VipValue, Way,
};
use aya_ebpf::helpers::bpf_get_smp_processor_id;
use packet::{FlowHash, Ipv4, Transport, flows};

use crate::{
    count,
    flow::now,
    maps::{BACKENDS, ENTRY_FLOWS, RING_HEADS, RING_SLOTS},
};

/// Buckets of each CPU's slice, as a power of two. The loader sets it to what the map was made for.
#[unsafe(no_mangle)]
static ENTRY_BITS: u32 = 16;

pub struct Choice {
    pub id: u32,
    pub backend: &'static Backend,
    pub hash: FlowHash,
    /// No packet of it was seen before: it is a new flow.
    pub opens: bool,
    /// The source port that the backend's table gave this flow within this unit of time; zero when it was not asked.
    pub port: Be16,
    /// Where the choice is remembered. The way is searched for again when it is needed: carried along, each of its places
    /// would be another state to the verifier.
    bucket: u32,
    key: u64,
}

impl Choice {
    /// Leaves it for the next program.
    #[inline(always)]
    pub fn park(&self, parked: &mut Parked) {
        parked.backend = self.id;
        parked.opens = self.opens as u32;
        parked.bucket = self.bucket;
        parked.way = self.key;
    }
}

/// Spares the flow's next packets within this unit of time the question for their port: a confirmed flow keeps its place for
/// longer.
#[inline(always)]
pub fn remember_port(parked: &Parked) {
    if parked.confirmed != 0
        && let Some(way) = ENTRY_FLOWS.get_ptr_mut(parked.bucket).and_then(|bucket| find(bucket, parked.way))
    {
        // SAFETY: a way of this CPU's own slice, whose bucket came from a checked lookup.
        unsafe { (*way).port = parked.source_port };
    }
}

/// The backend of a flow: the remembered one while it lives, else the ring's. A SYN is a new connection whatever an
/// old one with its ports was sent to, so it never reads the memory; every choice is written to it.
#[inline(always)]
pub fn choose(vip: &VipValue, ip: &Ipv4, l4: &Transport) -> Result<Choice, Reason> {
    let hash = FlowHash::of(ip.src, l4.src_port, ip.dst, l4.dst_port);
    let key = Way::key_of(ip.src, l4.src_port, vip.frontend);
    let now = now();
    let index = bucket(hash);
    let bucket = ENTRY_FLOWS.get_ptr_mut(index);
    if !l4.opens() {
        if let Some(bucket) = bucket
            && let Some((held, backend)) = remembered(bucket, key, now, l4)?
        {
            let port = if Stamp::from_word(held.stamp).seen() == now { held.port } else { Be16::default() };
            return Ok(Choice { id: held.backend as u32, backend, hash, opens: false, port, bucket: index, key });
        }
        if l4.is_tcp() {
            let id = elsewhere(hash.bucket(), key);
            if id != NOWHERE
                && let Some(backend) = BACKENDS.get(id)
            {
                if is_gone(backend) {
                    return Err(Reason::BackendDown);
                }
                if let Some(bucket) = bucket {
                    let stamp = Stamp::new(now, FLOW_USED | FLOW_CONFIRMED).word();
                    remember(bucket, Way { key, backend: id as u16, port: Be16::default(), stamp });
                }
                return Ok(Choice { id, backend, hash, opens: false, port: Be16::default(), bucket: index, key });
            }
            count::reason(Reason::EntryMiss);
        }
    } else {
        forget_elsewhere(hash.bucket(), key);
    }
    let (id, backend) = from_ring(vip.ring, hash.slot())?;
    if let Some(bucket) = bucket {
        remember(
            bucket,
            Way { key, backend: id as u16, port: Be16::default(), stamp: Stamp::new(now, FLOW_USED).word() },
        );
    }
    Ok(Choice { id, backend, hash, opens: l4.opens() || !l4.is_tcp(), port: Be16::default(), bucket: index, key })
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

/// CPUs whose memories are asked.
const CPUS_MAX: u32 = 64;
const NOWHERE: u32 = u32::MAX;

/// The backend that another CPU remembers for a connection. A card may hand on a connection's packets to another CPU, and the
/// ring may have changed since it was opened.
#[inline(always)]
fn elsewhere(hash: u32, key: u64) -> u32 {
    // SAFETY: a static of this object, read as the loader left it.
    let bits = unsafe { core::ptr::read_volatile(&raw const ENTRY_BITS) } & 31;
    let slot = hash & ((1 << bits) - 1);
    let mut cpu = 0;
    while cpu < CPUS_MAX {
        let Some(bucket) = ENTRY_FLOWS.get_ptr_mut(cpu << bits | slot) else { return NOWHERE };
        let mut way = 0;
        while way < 4 {
            // SAFETY: a checked lookup. Its owner may write meanwhile: what was read counts if the key is the same after it.
            let (before, backend, after) = unsafe {
                let way = &raw const (*bucket).ways[way];
                let before = (&raw const (*way).key).read_volatile();
                let backend = (&raw const (*way).backend).read_volatile();
                (before, backend, (&raw const (*way).key).read_volatile())
            };
            if before == key && after == key {
                return backend as u32;
            }
            way += 1;
        }
        cpu += 1;
    }
    NOWHERE
}

/// What any CPU remembers of an older connection with the same ports is nothing that a packet of the new one may meet there.
#[inline(always)]
fn forget_elsewhere(hash: u32, key: u64) {
    // SAFETY: a static of this object, read as the loader left it.
    let bits = unsafe { core::ptr::read_volatile(&raw const ENTRY_BITS) } & 31;
    let slot = hash & ((1 << bits) - 1);
    let mut cpu = 0;
    while cpu < CPUS_MAX {
        let Some(bucket) = ENTRY_FLOWS.get_ptr_mut(cpu << bits | slot) else { return };
        let mut way = 0;
        while way < 4 {
            // SAFETY: a checked lookup. A free way is one without key and stamp, whoever writes it.
            unsafe {
                let way = &raw mut (*bucket).ways[way];
                if (&raw const (*way).key).read_volatile() == key {
                    (&raw mut (*way).key).write_volatile(0);
                    (&raw mut (*way).stamp).write_volatile(0);
                }
            }
            way += 1;
        }
        cpu += 1;
    }
}

#[inline(always)]
fn bucket(hash: FlowHash) -> u32 {
    // SAFETY: a static of this object, read as the loader left it.
    let bits = unsafe { core::ptr::read_volatile(&raw const ENTRY_BITS) } & 31;
    // SAFETY: the helper has no preconditions.
    let cpu = unsafe { bpf_get_smp_processor_id() };
    cpu << bits | hash.bucket() & ((1 << bits) - 1)
}

/// Nothing is known of the flow; or its backend; or that this one is gone, which ends a connection, while UDP goes to
/// another one at once.
#[inline(always)]
fn remembered(
    bucket: *mut Bucket,
    key: u64,
    now: u32,
    l4: &Transport,
) -> Result<Option<(Way, &'static Backend)>, Reason> {
    let Some(way) = find(bucket, key) else { return Ok(None) };
    // SAFETY: a way of this CPU's own slice, whose bucket came from a checked lookup.
    let held = unsafe { *way };
    let stamp = Stamp::from_word(held.stamp);
    let Some(backend) = BACKENDS.get(held.backend as u32) else { return Ok(None) };
    if l4.is_tcp() {
        if is_gone(backend) {
            return Err(Reason::BackendDown);
        }
    } else if is_gone(backend) || backend.flags & BACKEND_DRAINING != 0 || flows::is_stale_choice(stamp, now) {
        return Ok(None);
    }
    let port = if stamp.seen() == now { held.port } else { Be16::default() };
    let confirmed = Stamp::new(now, FLOW_USED | FLOW_CONFIRMED).word();
    if held.stamp != confirmed {
        // SAFETY: as above.
        unsafe {
            (*way).stamp = confirmed;
            (*way).port = port;
        }
    }
    Ok(Some((held, backend)))
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

// The flow's own way, when a SYN comes anew; else one that can be spared.
#[inline(always)]
fn remember(bucket: *mut Bucket, way: Way) {
    if let Some(own) = find(bucket, way.key) {
        // SAFETY: a way of this CPU's own slice, whose bucket came from a checked lookup.
        unsafe { *own = way };
        return;
    }
    // SAFETY: as above.
    let ways = unsafe { &mut (*bucket).ways };
    match flows::spare_way(ways, Stamp::from_word(way.stamp).seen()) {
        Some(spare) => ways[spare & 3] = way,
        None => count::reason(Reason::EntryFull),
    }
}

#[inline(always)]
fn is_gone(backend: &Backend) -> bool {
    backend.addr.is_zero() || backend.flags & BACKEND_DOWN != 0
}
