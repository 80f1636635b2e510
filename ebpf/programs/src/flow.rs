//! The backend node's flow table: how replies find back, shared by all CPUs.
//!
//! Two connections may look the same to a backend: a client may use one source port towards two dialled addresses. The
//! second gets another source port (an alias), and replies get the first one back.
//!
//! The table is an array of buckets of four ([`abi::FlowBucket`], rules in [`packet::flows`]). A flow is in the first of its
//! two buckets, or in the second when the first had no room at the time; it never moves.
//!
//! **Readers** take no lock. They read the bucket's sequence, then the flow, then the sequence again; when it was odd or has
//! changed they read anew. **Writers** make the sequence odd by compare-and-exchange, which is a full barrier, and add one
//! when they are done. Loads of one CPU are not reordered with each other, nor stores with each other, on the one
//! architecture this object is built for (x86-64, total store order), and volatile accesses keep the compiler from doing it;
//! for another one `read_sequence` and `Lock::release` are the places that need barriers. The kernel runs a program to its end
//! on one CPU with bottom halves off, so a writer holds a bucket for some tens of nanoseconds; who waits longer than
//! [`TURNS`] looks (a virtual CPU that was taken away) drops its packet and counts it.

use core::intrinsics::{AtomicOrdering, atomic_cxchg};

use abi::{Alias, AliasKey, Be16, Be32, FlowBucket, FlowKey, Reason, Stamp};
use aya_ebpf::{bindings::BPF_ANY, helpers::bpf_jiffies64};
use packet::{
    FlowHash, Transport,
    flows::{self, NONE},
};

use crate::{
    count,
    maps::{ALIAS_HINTS, ALIASES, FLOWS},
};

/// Buckets as a power of two. The loader sets it to what the map was made for.
#[unsafe(no_mangle)]
static FLOW_BITS: u32 = 16;

/// How often a bucket that is being written is looked at.
const TURNS: u32 = 4;
/// How long an alias may be idle before nobody asks for it any more. In jiffies: a day at the fastest tick.
const ALIAS_IDLE: u32 = 86_400_000;
/// Source ports that are tried for a flow whose own is taken. A client with 2,000 live flows to one backend finds none of
/// them free once in a million collisions.
const PROBES: u32 = 4;

/// A forward packet's flow, as the client sees it, and where it goes.
#[repr(align(8))]
pub struct Forward {
    pub client: Be32,
    pub client_port: Be16,
    pub dialled: Be32,
    pub dialled_port: Be16,
    pub backend: Be32,
    pub backend_port: Be16,
    /// Zero when the packet came in here.
    pub entry: Be32,
    pub proto: u8,
}

/// A flow that replies find back to.
/// What the table says of a flow, in long words: the verifier lets a program copy its stack by those alone.
#[derive(Clone, Copy)]
pub struct Known {
    /// Dialled address, then the entry's, as they are in memory.
    addresses: u64,
    /// Dialled port, then the client's own, as they are in memory.
    ports: u64,
    stamp: u64,
}

impl Known {
    #[inline(always)]
    fn new(stamp: Stamp, dialled: Be32, entry: Be32, [dialled_port, original_port]: [Be16; 2]) -> Self {
        Self {
            addresses: dialled.raw() as u64 | (entry.raw() as u64) << 32,
            ports: dialled_port.raw() as u64 | (original_port.raw() as u64) << 16,
            stamp: stamp.word() as u64,
        }
    }

    #[inline(always)]
    pub fn dialled(&self) -> Be32 {
        Be32::from_raw(self.addresses as u32)
    }

    /// The node that the client's packets came in by; zero when that is this one.
    #[inline(always)]
    pub fn entry(&self) -> Be32 {
        Be32::from_raw((self.addresses >> 32) as u32)
    }

    #[inline(always)]
    pub fn dialled_port(&self) -> Be16 {
        Be16::from_raw(self.ports as u16)
    }

    /// What the client used; differs from what the backend sees when that one was taken.
    #[inline(always)]
    pub fn original_port(&self) -> Be16 {
        Be16::from_raw((self.ports >> 16) as u16)
    }

    #[inline(always)]
    fn stamp(&self) -> Stamp {
        Stamp::from_word(self.stamp as u32)
    }
}

#[derive(Clone, Copy)]
#[repr(align(8))]
pub struct Admitted {
    /// The source port to show the backend.
    pub port: Be16,
    /// Nothing but time will take its place.
    pub confirmed: bool,
}

// What became of a claim, as a word: functions of the kernel's machine return nothing else, and of an enum with fields a
// compiler would keep parts that nobody wrote.
/// The key was this flow's already; its state is in the low byte.
const HELD: u32 = 1 << 8;
/// The key was free and is this flow's now.
const WON: u32 = 1 << 9;
/// The key is a live flow's with another dialled address.
const TAKEN: u32 = 1 << 10;
/// Nobody gives way.
const REFUSED: u32 = 1 << 11;
const BUSY: u32 = 1 << 12;

impl Forward {
    /// The flow as the table has it, if nothing of it would change: for nearly every packet.
    #[inline(always)]
    pub fn known(&self, l4: &Transport) -> Option<Admitted> {
        if l4.opens() {
            return None;
        }
        let flow = lookup(&self.key(self.client_port)).ok()??;
        (self.owns(&flow) && self.is_fresh(&flow, l4)).then_some(Admitted::of(self.client_port, flow.stamp().state()))
    }

    /// Sees to it that replies find back. None: the source port of this try is another flow's; it is to be called again with
    /// the next one, by a program that is called anew, so that the verifier walks through one try and not through all.
    #[inline(always)]
    pub fn admit(&self, l4: &Transport, tries: u32) -> Result<Option<Admitted>, Reason> {
        let port = self.candidate(tries);
        let claim = claim(self, &self.key(port), l4);
        if claim & HELD != 0 {
            return Ok(Some(self.admitted(port, claim as u8)));
        }
        match claim {
            WON => {
                self.count_won(port, tries, l4);
                Ok(Some(self.admitted(port, 0)))
            }
            TAKEN if tries < PROBES => Ok(None),
            TAKEN => Err(Reason::AliasExhausted),
            BUSY => Err(Reason::FlowTableBusy),
            _ => Err(Reason::FlowTableRefused),
        }
    }

    /// An alias goes before the own port: the flow that held that one may have ended meanwhile.
    #[inline(always)]
    fn candidate(&self, tries: u32) -> Be16 {
        if tries > 0 {
            return self.probe(tries as u16);
        }
        if self.may_have_alias()
            && let Some(port) = self.alias()
        {
            return port;
        }
        self.client_port
    }

    #[inline(always)]
    fn admitted(&self, port: Be16, state: u8) -> Admitted {
        if port != self.client_port {
            self.remember_alias(port);
        }
        Admitted::of(port, state)
    }

    #[inline(always)]
    fn count_won(&self, port: Be16, tries: u32, l4: &Transport) {
        if port != self.client_port && tries > 0 {
            count::reason(Reason::FlowAliased);
        } else if l4.is_tcp() && !l4.opens() {
            count::reason(Reason::FlowRecreated);
        }
    }

    #[inline(always)]
    fn may_have_alias(&self) -> bool {
        let Some(hint) = ALIAS_HINTS.get_ptr(self.hint_index()) else { return false };
        // SAFETY: a checked lookup; the word is written whole.
        let used = unsafe { *hint };
        used != 0 && (jiffies() as u32 | 1).wrapping_sub(used) < ALIAS_IDLE
    }

    #[inline(always)]
    fn hint_index(&self) -> u32 {
        let hash = FlowHash::of(self.client, self.client_port, self.dialled, self.dialled_port);
        hash.bucket() & (abi::maps::ALIAS_HINTS_MAX - 1)
    }

    #[inline(always)]
    fn alias(&self) -> Option<Be16> {
        // SAFETY: read at once; a torn or replaced port is checked against the flow table.
        Some(unsafe { ALIASES.get(self.alias_key()) }?.port)
    }

    // The probes depend on the flow alone, so a flow whose alias was lost finds its port again: 1024..=65535, and never the
    // flow's own port but by chance, which the table then refuses.
    #[inline(always)]
    fn probe(&self, probe: u16) -> Be16 {
        let start = FlowHash::of(self.dialled, self.dialled_port, self.client, self.client_port).slot() as u16;
        Be16::new(1024 + start.wrapping_add(probe.wrapping_mul(7919)) % 64_512)
    }

    // One that could not be stored is found again by its probes.
    #[inline(always)]
    fn remember_alias(&self, port: Be16) {
        if self.alias() != Some(port) {
            let _ = ALIASES.insert(self.alias_key(), Alias { port, pad: 0 }, BPF_ANY as u64);
        }
        if let Some(hint) = ALIAS_HINTS.get_ptr_mut(self.hint_index()) {
            // SAFETY: a checked lookup; any CPU's value is right.
            unsafe { *hint = jiffies() as u32 | 1 };
        }
    }

    /// Makes the key this flow's, or says whose it is.
    #[inline(always)]
    fn claim(&self, place: Place<'_>, key: &FlowKey, l4: &Transport) -> u32 {
        let Place { bucket, way, found } = place;
        let (way, now) = (way & 3, now()); // known to be one of four, and told to the verifier
        if found {
            let stamp = Stamp::from_word(bucket.stamps[way]);
            if bucket.dialled[way] == self.dialled && bucket.ports[way] == [self.dialled_port, self.client_port] {
                let state = flows::forwarded(stamp.state(), l4);
                bucket.entry[way] = self.entry; // it may change under a connection: replies follow
                bucket.stamps[way] = Stamp::new(now, state).word();
                return HELD | state as u32;
            }
            if flows::is_live(stamp, now) {
                return TAKEN;
            }
        }
        self.write(bucket, way, key, l4, now);
        WON
    }

    #[inline(always)]
    fn write(&self, bucket: &mut FlowBucket, way: usize, key: &FlowKey, l4: &Transport, now: u32) {
        bucket.ends[way] = key.ends();
        bucket.backend[way] = self.backend;
        bucket.stamps[way] = Stamp::new(now, flows::opened(l4)).word();
        bucket.dialled[way] = self.dialled;
        bucket.entry[way] = self.entry;
        bucket.ports[way] = [self.dialled_port, self.client_port];
    }

    #[inline(always)]
    fn owns(&self, flow: &Known) -> bool {
        let address = flow.dialled().raw() ^ self.dialled.raw();
        let ports = (flow.dialled_port().raw() ^ self.dialled_port.raw())
            | (flow.original_port().raw() ^ self.client_port.raw());
        address | ports as u32 == 0
    }

    /// Nothing of the flow would change.
    #[inline(always)]
    fn is_fresh(&self, flow: &Known, l4: &Transport) -> bool {
        let state = flow.stamp().state();
        flow.stamp().seen() == now() && state == flows::forwarded(state, l4) && flow.entry() == self.entry
    }

    #[inline(always)]
    fn key(&self, port: Be16) -> FlowKey {
        FlowKey {
            client: self.client,
            backend: self.backend,
            client_port: port,
            backend_port: self.backend_port,
            proto: self.proto,
            pad: [0; 3],
        }
    }

    #[inline(always)]
    fn alias_key(&self) -> AliasKey {
        AliasKey {
            client: self.client,
            dialled: self.dialled,
            backend: self.backend,
            client_port: self.client_port,
            dialled_port: self.dialled_port,
            backend_port: self.backend_port,
            proto: self.proto,
            pad: 0,
        }
    }
}

/// What changes the table. Returns one of the words above.
#[inline(always)]
fn claim(forward: &Forward, key: &FlowKey, l4: &Transport) -> u32 {
    locked(key, |place| forward.claim(place, key, l4))
}

impl Admitted {
    #[inline(always)]
    fn of(port: Be16, state: u8) -> Self {
        Self { port, confirmed: state & abi::FLOW_CONFIRMED != 0 }
    }
}

/// The flow that a packet from a backend replies to.
#[inline(always)]
pub fn of_reply(key: FlowKey, l4: &Transport) -> Result<Option<Known>, Reason> {
    let Some(flow) = lookup(&key)? else { return Ok(None) };
    note_reply(&key, &flow, l4)?;
    Ok(Some(flow))
}

/// As [`of_reply`], of a flow that has not ended: the node's own sockets also speak to clients that dialled them directly.
#[inline(always)]
pub fn of_live_reply(key: FlowKey, l4: &Transport) -> Result<Option<Known>, Reason> {
    let Some(flow) = lookup(&key)? else { return Ok(None) };
    if !flows::is_live(flow.stamp(), now()) {
        return Ok(None);
    }
    note_reply(&key, &flow, l4)?;
    Ok(Some(flow))
}

#[inline(always)]
fn note_reply(key: &FlowKey, flow: &Known, l4: &Transport) -> Result<(), Reason> {
    let state = flow.stamp().state();
    if flow.stamp().seen() == now() && state == flows::replied(state, l4) {
        return Ok(());
    }
    if note(key, l4) != BUSY { Ok(()) } else { Err(Reason::FlowTableBusy) }
}

#[inline(never)]
fn note(key: &FlowKey, l4: &Transport) -> u32 {
    locked(key, |place| {
        let Place { bucket, way, found } = place;
        let way = way & 3;
        if found {
            let state = flows::replied(Stamp::from_word(bucket.stamps[way]).state(), l4);
            bucket.stamps[way] = Stamp::new(now(), state).word();
        }
        WON
    })
}

/// The flow with this key, as it is at one moment.
#[inline(always)]
fn lookup(key: &FlowKey) -> Result<Option<Known>, Reason> {
    let (mut index, second) = flows::hash(key).buckets(bits());
    let mut turn = 0;
    while turn < TURNS {
        let Some(bucket) = FLOWS.get_ptr_mut(index) else { return Ok(None) };
        let before = read_sequence(bucket);
        if before & 1 == 0 {
            match read(bucket, key) {
                Some(flow) if read_sequence(bucket) == before => return Ok(Some(flow)),
                Some(_) => {}
                // SAFETY: a checked lookup.
                None if index != second && unsafe { (&raw const (*bucket).overflowed).read_volatile() } != 0 => {
                    index = second;
                }
                None => return Ok(None),
            }
        }
        turn += 1;
    }
    Err(Reason::FlowTableBusy)
}

#[inline(always)]
fn read_sequence(bucket: *mut FlowBucket) -> u32 {
    // SAFETY: a checked lookup; the word is written whole.
    unsafe { (&raw const (*bucket).sequence).read_volatile() }
}

/// A flow that may be written meanwhile: good only if the sequence says so.
#[inline(always)]
fn read(bucket: *mut FlowBucket, key: &FlowKey) -> Option<Known> {
    let mut way = 0;
    while way < flows::WAYS {
        // SAFETY: a checked lookup; `way` is a place of the bucket; every bit pattern is a value.
        unsafe {
            let ends = (&raw const (*bucket).ends[way]).read_volatile();
            if ends == key.ends() {
                let backend = (&raw const (*bucket).backend[way]).read_volatile();
                let stamp = Stamp::from_word((&raw const (*bucket).stamps[way]).read_volatile());
                if flows::is(key, ends, backend, stamp) {
                    let dialled = (&raw const (*bucket).dialled[way]).read_volatile();
                    let entry = (&raw const (*bucket).entry[way]).read_volatile();
                    let ports = (&raw const (*bucket).ports[way]).read_volatile();
                    return Some(Known::new(stamp, dialled, entry, ports));
                }
            }
        }
        way += 1;
    }
    None
}

/// A place in a bucket that this CPU alone writes: the flow's own, or one that it may take.
struct Place<'a> {
    bucket: &'a mut FlowBucket,
    way: usize,
    found: bool,
}

/// Does something with the flow's place while nobody else can. The first bucket is held throughout, so no two CPUs give one
/// flow a place; the second is asked for only while the first is held, and never waited for without an end.
#[inline(always)]
fn locked(key: &FlowKey, work: impl Fn(Place<'_>) -> u32) -> u32 {
    let (first, second) = flows::hash(key).buckets(bits());
    let Some(first) = Lock::take(first) else { return BUSY };
    // SAFETY: held: no other CPU writes it, and nobody here has another reference.
    let bucket = unsafe { &mut *first.bucket };
    let (own, spare) = places(bucket, key);
    let done = if own == NONE && (spare == NONE || bucket.overflowed != 0) {
        match Lock::take(second) {
            Some(second) => {
                let done = in_either(key, bucket, spare, &second, work);
                second.release();
                done
            }
            None => BUSY,
        }
    } else {
        work(Place { bucket, way: if own == NONE { spare } else { own }, found: own != NONE })
    };
    first.release();
    done
}

/// The flow's own place and one that it may take, of a bucket that is held. Both go through the bucket's memory: what the
/// verifier remembers of how a number came about makes it walk through all that follows once for each way.
#[inline(always)]
fn places(bucket: &mut FlowBucket, key: &FlowKey) -> (usize, usize) {
    let places = flows::find(bucket, key) | flows::spare(bucket, now()) << 4;
    let note = &raw mut bucket.pad[0];
    // SAFETY: a field of the bucket, which this CPU holds.
    let places = unsafe {
        note.write_volatile(places as u32);
        note.read_volatile() as usize
    };
    (places & 7, places >> 4 & 7)
}

#[inline(always)]
fn in_either(
    key: &FlowKey,
    first: &mut FlowBucket,
    spare: usize,
    second: &Lock,
    work: impl Fn(Place<'_>) -> u32,
) -> u32 {
    // SAFETY: as in `locked`; another bucket than the first.
    let bucket = unsafe { &mut *second.bucket };
    let (own, room) = places(bucket, key);
    if own == NONE && spare != NONE {
        return work(Place { bucket: first, way: spare, found: false });
    }
    let spare = room;
    if own == NONE && spare == NONE {
        return REFUSED;
    }
    if own == NONE {
        first.overflowed = 1;
    }
    work(Place { bucket, way: if own == NONE { spare } else { own }, found: own != NONE })
}

struct Lock {
    bucket: *mut FlowBucket,
    sequence: u32,
}

impl Lock {
    #[inline(always)]
    fn take(index: u32) -> Option<Self> {
        let bucket = FLOWS.get_ptr_mut(index)?;
        let mut turn = 0;
        while turn < TURNS {
            let sequence = read_sequence(bucket);
            // SAFETY: a checked lookup; an aligned word.
            let (_, taken) = unsafe {
                atomic_cxchg::<u32, { AtomicOrdering::SeqCst }, { AtomicOrdering::SeqCst }>(
                    &raw mut (*bucket).sequence,
                    sequence & !1,
                    sequence | 1,
                )
            };
            if taken {
                return Some(Self { bucket, sequence: sequence | 1 });
            }
            turn += 1;
        }
        None
    }

    #[inline(always)]
    fn release(self) {
        // SAFETY: as in `take`; this CPU holds it.
        unsafe { (&raw mut (*self.bucket).sequence).write_volatile(self.sequence.wrapping_add(1)) };
    }
}

#[inline(always)]
fn bits() -> u32 {
    // SAFETY: a static of this object, read as the loader left it.
    unsafe { core::ptr::read_volatile(&raw const FLOW_BITS) & 31 }
}

/// In units of a stamp.
#[inline(always)]
pub fn now() -> u32 {
    Stamp::time(jiffies())
}

/// Free to read, where a clock costs as much as a hash look-up.
#[inline(always)]
fn jiffies() -> u64 {
    // SAFETY: the helper has no preconditions.
    unsafe { bpf_jiffies64() }
}
