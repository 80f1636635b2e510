//! Which number each frontend, ring, backend and node has in the kernel's maps, and where each ring's slab lies.
//!
//! Numbers stay as long as what they stand for, because flows remember them. A number that came free rests for a grace
//! period before it means something else. All of it can be read back out of a [`MapImage`], so a restarted agent goes on
//! where the maps are: a resting backend stands there as down, a resting ring as a head without slots.

use crate::image::{MapImage, Ring, Write};
use crate::maglev::{self, Member};
use abi::{Backend, Be16, Be32, RingHead, VipKey};
use ipnet::IpNet;
use model::Timestamp;
use std::collections::{BTreeMap, BTreeSet};
use std::net::{IpAddr, Ipv4Addr};
use std::sync::Arc;
use std::time::Duration;

/// How long flows may remember a backend or frontend that is gone.
pub const FLOW_GRACE: Duration = Duration::from_secs(15 * 60);

/// How long a packet that is being processed may still read an unpublished slab or index: microseconds, generously.
pub const READER_GRACE: Duration = Duration::from_secs(2);

/// The assignments as of the last compilation.
#[derive(Clone, Debug, PartialEq, Default)]
pub struct Indices {
    image: MapImage,
    /// What each ring was made of, so that an unchanged one is not computed again. Unknown after a restart.
    members: BTreeMap<u32, Vec<RingMember>>,
    /// Since when each backend that starts slowly takes new flows.
    taking: BTreeMap<BackendKey, Timestamp>,
    /// The image's backends, resting ones too.
    by_key: BTreeMap<BackendKey, u32>,
    resting: Resting,
}

/// When each number or slab came free.
#[derive(Clone, Debug, PartialEq, Default)]
struct Resting {
    rings: BTreeMap<u32, Timestamp>,
    backends: BTreeMap<u32, Timestamp>,
    nodes: BTreeMap<u32, Timestamp>,
    /// By base: length and time.
    slabs: BTreeMap<u32, (u32, Timestamp)>,
}

/// What makes a backend the same one.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct BackendKey {
    pub addr: Be32,
    pub port: Be16,
    pub proto: u8,
    pub service: u32,
}

/// A backend in a ring: what the ring is computed from and the id that goes into its slots.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct RingMember {
    pub member: Member,
    pub id: u32,
}

/// What a compilation of one service alone gives it.
pub(crate) struct Part {
    backends: BTreeMap<u32, Backend>,
    rings: BTreeMap<u32, Ring>,
    members: BTreeMap<u32, Vec<RingMember>>,
    taking: BTreeMap<BackendKey, Timestamp>,
    now: Timestamp,
}

impl Indices {
    /// Puts a service's new part in the place of its old one, whose backends had these numbers; returns the writes that
    /// follow, in their order.
    pub(crate) fn replace(&mut self, old: &BTreeSet<u32>, part: Part) -> Vec<Write> {
        let Part { backends, rings, members, taking, now } = part;
        let gone: Vec<u32> = old.iter().copied().filter(|id| !backends.contains_key(id)).collect();
        let keys: Vec<BackendKey> =
            old.iter().filter_map(|id| self.image.backends.get(id)).map(BackendKey::of).collect();
        for key in &keys {
            self.taking.remove(key);
        }
        self.taking.extend(taking);
        let mut writes = Vec::new();
        for (id, backend) in backends {
            self.resting.backends.remove(&id);
            self.by_key.insert(BackendKey::of(&backend), id);
            if self.image.backends.insert(id, backend) != Some(backend) {
                writes.push(Write::SetBackend(id, backend));
            }
        }
        self.replace_rings(rings, now, &mut writes);
        for index in members.keys() {
            self.members.remove(index);
        }
        self.members.extend(members);
        for id in gone {
            if let Some(backend) = self.image.backends.get_mut(&id) {
                backend.flags |= abi::BACKEND_DOWN;
                self.resting.backends.insert(id, now);
                writes.push(Write::SetBackend(id, *backend));
            }
        }
        writes
    }

    /// Slabs first, then the words that point to them.
    fn replace_rings(&mut self, rings: BTreeMap<u32, Ring>, now: Timestamp, writes: &mut Vec<Write>) {
        self.resting.slabs.retain(|_, (_, since)| rests(Some(since), now, READER_GRACE));
        let mut heads = Vec::new();
        for (index, ring) in rings {
            let before = self.image.rings.insert(index, ring.clone());
            if before.as_ref() == Some(&ring) {
                continue;
            }
            if let Some(before) = before.filter(|before| !before.slots.is_empty() && before.head != ring.head) {
                self.resting.slabs.insert(before.head.base(), (before.slots.len() as u32, now));
            }
            if !ring.slots.is_empty() {
                writes.push(Write::SetSlots { base: ring.head.base(), slots: ring.slots });
            }
            heads.push(Write::SetHead { ring: index, head: ring.head });
        }
        writes.append(&mut heads);
    }

    /// Goes on from what the maps hold. Whatever rests there rests from now on for a whole period.
    pub fn adopt(image: MapImage, now: Timestamp) -> Self {
        let resting = Resting {
            rings: unused_rings(&image).map(|ring| (ring, now)).collect(),
            backends: image.backends.iter().filter(|(_, backend)| is_down(backend)).map(|(id, _)| (*id, now)).collect(),
            ..Resting::default()
        };
        let by_key = by_key(&image);
        Self { image, by_key, resting, ..Self::default() }
    }

    /// What the last compilation wanted in the maps.
    pub fn image(&self) -> &MapImage {
        &self.image
    }
}

/// The mapped host ports that an image holds, by the allocation's address: (host port, port of the allocation). A restarted
/// agent keeps them until it hears of the allocation.
pub fn host_ports(image: &MapImage) -> BTreeMap<IpAddr, Vec<(u16, u16)>> {
    let mut found: BTreeMap<IpAddr, Vec<(u16, u16)>> = BTreeMap::new();
    for (key, value) in &image.vips {
        let backend = image.rings.get(&value.ring).and_then(|ring| image.backends.get(ring.slots.first()?));
        if let Some(backend) = backend.filter(|backend| backend.service == crate::compile::HOST_PORT) {
            let address = IpAddr::V4(backend.addr.into());
            found.entry(address).or_default().push((key.port.get(), backend.port.get()));
        }
    }
    found
}

/// The node's own address blocks in an image, the one with the mesh address first.
pub fn own_blocks(image: &MapImage) -> Vec<IpNet> {
    let own = image.blocks.iter().filter(|(_, node)| **node == abi::NODE_SELF);
    let block = |address: Ipv4Addr| IpNet::new(IpAddr::V4(address), abi::BLOCK_PREFIX_LEN as u8).ok();
    let mut blocks: Vec<IpNet> = own.filter_map(|(address, _)| block((*address).into())).collect();
    let mesh = IpAddr::V4(image.uplink.mesh.into());
    blocks.sort_by_key(|block| !block.contains(&mesh));
    blocks
}

fn by_key(image: &MapImage) -> BTreeMap<BackendKey, u32> {
    image.backends.iter().map(|(id, backend)| (BackendKey::of(backend), *id)).collect()
}

fn unused_rings(image: &MapImage) -> impl Iterator<Item = u32> {
    let used: BTreeSet<u32> = image.vips.values().map(|value| value.ring).collect();
    image.rings.keys().copied().filter(move |ring| !used.contains(ring))
}

fn is_down(backend: &Backend) -> bool {
    backend.flags & abi::BACKEND_DOWN != 0
}

/// One compilation's hand at the numbers: gives out old ones to what was there before and free ones to the rest.
pub(crate) struct Assigner<'a> {
    before: &'a Indices,
    now: Timestamp,
    /// Those asked for; all others are where they were.
    backends: BTreeMap<BackendKey, u32>,
    nodes: BTreeMap<Be32, u32>,
    backends_used: BTreeSet<u32>,
    rings_used: BTreeSet<u32>,
    nodes_used: BTreeSet<u32>,
    /// By base: length. Present and resting slabs.
    slabs: BTreeMap<u32, u32>,
    rings: BTreeMap<u32, Ring>,
    members: BTreeMap<u32, Vec<RingMember>>,
    taking: BTreeMap<BackendKey, Timestamp>,
    /// Below these nothing is free: numbers only get taken in one compilation.
    backend_cursor: u32,
    ring_cursor: u32,
    node_cursor: u32,
}

/// A map has no room for this many entries more.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Full {
    pub table: Table,
    pub entries: u32,
}

/// What can be full.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Table {
    Backends,
    Frontends,
    RingSlots,
    Nodes,
}

impl Table {
    pub fn name(self) -> &'static str {
        match self {
            Table::Backends => "backend",
            Table::Frontends => "frontend",
            Table::RingSlots => "ring slot",
            Table::Nodes => "node",
        }
    }

    pub fn capacity(self) -> u32 {
        match self {
            Table::Backends => abi::maps::BACKENDS_MAX,
            Table::Frontends => abi::maps::RING_HEADS_MAX.min(abi::maps::VIPS_MAX),
            Table::RingSlots => abi::maps::RING_SLOTS_MAX,
            Table::Nodes => abi::maps::NODES_MAX,
        }
    }

    fn full(self, entries: u32) -> Full {
        Full { table: self, entries }
    }
}

/// A ring's number, and whether it had to stay as it was for want of room.
pub(crate) struct GivenRing {
    pub index: u32,
    pub refused: Option<Full>,
}

impl<'a> Assigner<'a> {
    pub fn new(before: &'a Indices, now: Timestamp) -> Self {
        let nodes = before.image.node_by_addr.iter().map(|(addr, index)| (*addr, *index)).collect();
        let slabs = occupied_slabs(before, now);
        Self {
            before,
            now,
            backends: BTreeMap::new(),
            nodes,
            slabs,
            backends_used: BTreeSet::new(),
            rings_used: BTreeSet::new(),
            nodes_used: BTreeSet::new(),
            rings: BTreeMap::new(),
            members: BTreeMap::new(),
            taking: BTreeMap::new(),
            backend_cursor: 1,
            ring_cursor: 1,
            node_cursor: 1,
        }
    }

    pub fn backend(&mut self, key: BackendKey) -> Result<u32, Full> {
        let taken = |id: u32| self.before.image.backends.contains_key(&id);
        let id = match self.id_of(&key) {
            Some(id) => id,
            None => next_free(&mut self.backend_cursor, Table::Backends, taken)?,
        };
        self.backends.insert(key, id);
        self.backends_used.insert(id);
        Ok(id)
    }

    fn id_of(&self, key: &BackendKey) -> Option<u32> {
        self.backends.get(key).or_else(|| self.before.by_key.get(key)).copied()
    }

    /// How long a backend has been taking new flows; `None` for longer than is remembered.
    pub fn taking_for(&mut self, key: BackendKey) -> Option<Duration> {
        let took = |id: &u32| {
            let present = self.before.image.backends.get(id);
            present.is_some_and(|backend| backend.flags & (abi::BACKEND_DOWN | abi::BACKEND_DRAINING) == 0)
        };
        let since = match self.before.taking.get(&key) {
            Some(since) => *since,
            None if self.id_of(&key).as_ref().is_some_and(took) => return None,
            None => self.now,
        };
        self.taking.insert(key, since);
        Some(self.now.since(since))
    }

    pub fn node(&mut self, addr: Be32) -> Result<u32, Full> {
        let (before, now) = (self.before, self.now);
        let taken = |index: u32| {
            before.image.nodes.contains_key(&index) || rests(before.resting.nodes.get(&index), now, READER_GRACE)
        };
        let index = match self.nodes.get(&addr) {
            Some(index) if *index != abi::NODE_SELF => *index,
            _ => next_free(&mut self.node_cursor, Table::Nodes, taken)?,
        };
        self.nodes.insert(addr, index);
        self.nodes_used.insert(index);
        Ok(index)
    }

    /// The ring of a frontend; its number is the frontend's as well. One that was there goes on with what it had when the
    /// new one finds no room.
    pub fn ring(&mut self, key: &VipKey, members: Vec<RingMember>) -> Result<GivenRing, Full> {
        let index = self.ring_index(key)?;
        let present = self.before.image.rings.get(&index).filter(|_| self.before.image.vips.contains_key(key));
        let (ring, refused) = match present {
            Some(ring) if self.before.members.get(&index) == Some(&members) => (ring.clone(), None),
            Some(ring) => match self.fill_ring(Some(ring), &members) {
                Ok(filled) => (filled, None),
                Err(full) => (ring.clone(), Some(full)),
            },
            None => (self.fill_ring(self.before.image.rings.get(&index), &members)?, None),
        };
        self.rings_used.insert(index);
        self.rings.insert(index, ring);
        if refused.is_none() {
            self.members.insert(index, members);
        }
        Ok(GivenRing { index, refused })
    }

    fn ring_index(&mut self, key: &VipKey) -> Result<u32, Full> {
        let (before, now) = (self.before, self.now);
        let taken = |ring: u32| {
            let live = before.image.rings.contains_key(&ring) && !before.resting.rings.contains_key(&ring);
            live || rests(before.resting.rings.get(&ring), now, FLOW_GRACE)
        };
        match before.image.vips.get(key) {
            Some(value) if !self.rings_used.contains(&value.ring) => Ok(value.ring),
            _ => next_free(&mut self.ring_cursor, Table::Frontends, taken),
        }
    }

    /// The present ring when it is right, else one in a slab of its own.
    fn fill_ring(&mut self, present: Option<&Ring>, members: &[RingMember]) -> Result<Ring, Full> {
        let generation = present.map_or(0, |ring| ring.head.generation());
        let next = generation.wrapping_add(1) & 0x00ff_ffff;
        let class = abi::slab_class_for(members.iter().filter(|member| member.member.weight > 0).count() as u32);
        let slots = slots(members, class);
        if let Some(ring) = present.filter(|ring| *ring.slots == *slots && ring.head.class() == class) {
            return Ok(ring.clone());
        }
        let base = self.allocate_slab(slots.len() as u32)?;
        Ok(Ring { head: RingHead::new(base, class, next.max(1)), slots })
    }

    /// First fit: the lowest gap that is long enough.
    fn allocate_slab(&mut self, length: u32) -> Result<u32, Full> {
        if length == 0 {
            return Ok(0);
        }
        let mut base = 0_u32;
        for (taken, taken_length) in &self.slabs {
            if taken.saturating_sub(base) >= length {
                break;
            }
            base = base.max(taken.saturating_add(*taken_length));
        }
        let fits = base.checked_add(length).is_some_and(|end| end <= abi::maps::RING_SLOTS_MAX);
        fits.then(|| self.slabs.insert(base, length)).map(|_| base).ok_or(Table::RingSlots.full(length))
    }

    /// What one service alone was given.
    pub fn part(self, backends: BTreeMap<u32, Backend>) -> Part {
        Part { backends, rings: self.rings, members: self.members, taking: self.taking, now: self.now }
    }

    /// Adds what rests to the image, and remembers the whole for the next time.
    pub fn finish(self, mut image: MapImage) -> Indices {
        let mut resting = Resting::default();
        self.rest_backends(&mut image, &mut resting);
        self.rest_nodes(&mut resting);
        self.rest_slabs(&mut resting);
        let tombstones = self.rest_rings(&mut resting);
        image.rings = self.rings;
        image.rings.extend(tombstones);
        let by_key = by_key(&image);
        Indices { image, members: self.members, taking: self.taking, by_key, resting }
    }

    fn rest_backends(&self, image: &mut MapImage, resting: &mut Resting) {
        for (id, backend) in self.before.image.backends.iter().filter(|(id, _)| !self.backends_used.contains(id)) {
            let since = *self.before.resting.backends.get(id).unwrap_or(&self.now);
            if rests(Some(&since), self.now, FLOW_GRACE) {
                resting.backends.insert(*id, since);
                image.backends.insert(*id, Backend { flags: backend.flags | abi::BACKEND_DOWN, ..*backend });
            }
        }
    }

    fn rest_nodes(&self, resting: &mut Resting) {
        let gone = self.before.image.nodes.keys().filter(|index| !self.nodes_used.contains(index));
        resting.nodes.extend(gone.map(|index| (*index, self.now)));
        let still = self.before.resting.nodes.iter().filter(|(_, since)| rests(Some(since), self.now, READER_GRACE));
        resting.nodes.extend(still.filter(|(index, _)| !self.nodes_used.contains(index)));
    }

    fn rest_slabs(&self, resting: &mut Resting) {
        let still =
            self.before.resting.slabs.iter().filter(|(_, (_, since))| rests(Some(since), self.now, READER_GRACE));
        resting.slabs.extend(still.map(|(base, rest)| (*base, *rest)));
        for (index, ring) in self.before.image.rings.iter().filter(|(_, ring)| !ring.slots.is_empty()) {
            if self.rings.get(index).is_none_or(|now| now.head != ring.head) {
                resting.slabs.insert(ring.head.base(), (ring.slots.len() as u32, self.now));
            }
        }
    }

    fn rest_rings(&self, resting: &mut Resting) -> BTreeMap<u32, Ring> {
        let gone = self.before.image.rings.iter().filter(|(index, _)| !self.rings_used.contains(index));
        gone.map(|(index, ring)| {
            resting.rings.insert(*index, *self.before.resting.rings.get(index).unwrap_or(&self.now));
            (*index, Ring { head: RingHead::new(0, 0, ring.head.generation().max(1)), slots: Arc::default() })
        })
        .collect()
    }
}

fn occupied_slabs(before: &Indices, now: Timestamp) -> BTreeMap<u32, u32> {
    let rings = before.image.rings.values().filter(|ring| !ring.slots.is_empty());
    let present = rings.map(|ring| (ring.head.base(), ring.slots.len() as u32));
    let resting = before.resting.slabs.iter().filter(|(_, (_, since))| now.since(*since) < READER_GRACE);
    present.chain(resting.map(|(base, (length, _))| (*base, *length))).collect()
}

fn slots(members: &[RingMember], class: u8) -> Arc<[u32]> {
    let weights: Vec<Member> = members.iter().map(|member| member.member).collect();
    maglev::ring(&weights, abi::slab_size(class)).into_iter().map(|slot| members[slot as usize].id).collect()
}

fn rests(since: Option<&Timestamp>, now: Timestamp, grace: Duration) -> bool {
    since.is_some_and(|since| now.since(*since) < grace)
}

/// Moves the cursor past the next number that nothing holds.
fn next_free(cursor: &mut u32, table: Table, taken: impl Fn(u32) -> bool) -> Result<u32, Full> {
    let end = table.capacity();
    let number = (*cursor..end).find(|number| !taken(*number));
    *cursor = number.map_or(end, |number| number + 1);
    number.ok_or(table.full(1))
}

impl BackendKey {
    pub fn of(backend: &Backend) -> Self {
        Self { addr: backend.addr, port: backend.port, proto: backend.proto, service: backend.service }
    }

    /// What all nodes agree on, whatever its number is here.
    pub fn member_key(&self) -> u64 {
        let mut bytes = [0; 7];
        bytes[..4].copy_from_slice(&self.addr.to_bytes());
        bytes[4..6].copy_from_slice(&self.port.to_bytes());
        bytes[6] = self.proto;
        maglev::member_key(&bytes)
    }
}
