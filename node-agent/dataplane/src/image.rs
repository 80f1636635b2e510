//! What the kernel maps hold, as a value: the wanted one comes from [`crate::compile()`], the present one from the maps
//! themselves, and [`diff`] is what remains to be written.

use abi::{Backend, Be32, Endpoint, Node, RingHead, Uplink, VipKey, VipValue};
use std::collections::BTreeMap;
use std::sync::Arc;

/// The contents of every map that user space fills. Array entries that are all zero are left out.
#[derive(Clone, Debug, PartialEq, Eq, Default)]
pub struct MapImage {
    pub uplink: Uplink,
    pub vips: BTreeMap<VipKey, VipValue>,
    /// By index into `ring_heads`. A ring without slots keeps its last generation.
    pub rings: BTreeMap<u32, Ring>,
    pub backends: BTreeMap<u32, Backend>,
    pub nodes: BTreeMap<u32, Node>,
    pub node_by_addr: BTreeMap<Be32, u32>,
    pub blocks: BTreeMap<Be32, u32>,
    pub endpoints: BTreeMap<Be32, Endpoint>,
}

impl MapImage {
    /// Every table with its entries in use and its room.
    pub fn fill(&self) -> [(&'static str, u32, u32); 7] {
        use abi::maps as max;
        let slots = self.rings.values().map(|ring| ring.slots.len()).sum();
        let entries = |table, used: usize, capacity| (table, u32::try_from(used).unwrap_or(u32::MAX), capacity);
        [
            entries("vips", self.vips.len(), max::VIPS_MAX),
            entries("rings", self.rings.len(), max::RING_HEADS_MAX),
            entries("ring_slots", slots, max::RING_SLOTS_MAX),
            entries("backends", self.backends.len(), max::BACKENDS_MAX),
            entries("nodes", self.nodes.len(), max::NODES_MAX),
            entries("blocks", self.blocks.len(), max::BLOCKS_MAX),
            entries("endpoints", self.endpoints.len(), max::ENDPOINTS_MAX),
        ]
    }
}

/// A published ring: its head and the backend ids in its slab, `head.size()` of them.
#[derive(Clone, Debug, PartialEq, Eq, Default)]
pub struct Ring {
    pub head: RingHead,
    pub slots: Arc<[u32]>,
}

/// Writes in an order in which no packet, at any moment, finds a reference to something that is not there yet.
#[derive(Clone, Debug, PartialEq, Eq, Default)]
pub struct MapDelta {
    pub writes: Vec<Write>,
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Write {
    SetUplink(Uplink),
    SetEndpoint(Be32, Endpoint),
    RemoveEndpoint(Be32),
    /// An all-zero value clears the index.
    SetNode(u32, Node),
    SetNodeByAddr(Be32, u32),
    RemoveNodeByAddr(Be32),
    SetBlock(Be32, u32),
    RemoveBlock(Be32),
    /// An all-zero value clears the id.
    SetBackend(u32, Backend),
    /// Fills a slab that no head points to.
    SetSlots {
        base: u32,
        slots: Arc<[u32]>,
    },
    /// Publishes a ring: one aligned 64-bit store.
    SetHead {
        ring: u32,
        head: RingHead,
    },
    SetVip(VipKey, VipValue),
    RemoveVip(VipKey),
}

impl MapDelta {
    pub fn is_empty(&self) -> bool {
        self.writes.is_empty()
    }
}

/// What turns `present` into `wanted`: what is referred to comes before what refers to it, and goes after it.
pub fn diff(present: &MapImage, wanted: &MapImage) -> MapDelta {
    let mut writes = Vec::new();
    add_targets(present, wanted, &mut writes);
    publish_rings(present, wanted, &mut writes);
    writes.extend(set(&present.vips, &wanted.vips, Write::SetVip));
    if present.uplink != wanted.uplink {
        writes.push(Write::SetUplink(wanted.uplink));
    }
    writes.extend(removed(&present.vips, &wanted.vips).map(|(key, _)| Write::RemoveVip(*key)));
    remove_targets(present, wanted, &mut writes);
    MapDelta { writes }
}

fn add_targets(present: &MapImage, wanted: &MapImage, writes: &mut Vec<Write>) {
    writes.extend(set(&present.endpoints, &wanted.endpoints, Write::SetEndpoint));
    writes.extend(set(&present.nodes, &wanted.nodes, Write::SetNode));
    writes.extend(set(&present.node_by_addr, &wanted.node_by_addr, Write::SetNodeByAddr));
    writes.extend(set(&present.blocks, &wanted.blocks, Write::SetBlock));
    writes
        .extend(changed(&present.backends, &wanted.backends).filter(|(_, backend)| !is_down(backend)).map(set_backend));
}

/// Slabs first, then the words that point to them.
fn publish_rings(present: &MapImage, wanted: &MapImage, writes: &mut Vec<Write>) {
    let changed: Vec<_> = changed(&present.rings, &wanted.rings).collect();
    let filled = changed.iter().filter(|(_, ring)| !ring.slots.is_empty());
    writes.extend(filled.map(|(_, ring)| Write::SetSlots { base: ring.head.base(), slots: ring.slots.clone() }));
    writes.extend(changed.iter().map(|(index, ring)| Write::SetHead { ring: **index, head: ring.head }));
}

fn remove_targets(present: &MapImage, wanted: &MapImage, writes: &mut Vec<Write>) {
    let no_ring = |(ring, _): (&u32, &Ring)| Write::SetHead { ring: *ring, head: RingHead::EMPTY };
    writes.extend(removed(&present.rings, &wanted.rings).map(no_ring));
    writes
        .extend(changed(&present.backends, &wanted.backends).filter(|(_, backend)| is_down(backend)).map(set_backend));
    let no_backend = |(id, _): (&u32, &Backend)| Write::SetBackend(*id, Backend::default());
    writes.extend(removed(&present.backends, &wanted.backends).map(no_backend));
    writes.extend(removed(&present.blocks, &wanted.blocks).map(|(block, _)| Write::RemoveBlock(*block)));
    writes.extend(removed(&present.node_by_addr, &wanted.node_by_addr).map(|(addr, _)| Write::RemoveNodeByAddr(*addr)));
    writes.extend(removed(&present.nodes, &wanted.nodes).map(|(index, _)| Write::SetNode(*index, Node::default())));
    writes.extend(removed(&present.endpoints, &wanted.endpoints).map(|(addr, _)| Write::RemoveEndpoint(*addr)));
}

fn set_backend((id, backend): (&u32, &Backend)) -> Write {
    Write::SetBackend(*id, *backend)
}

fn is_down(backend: &Backend) -> bool {
    backend.flags & abi::BACKEND_DOWN != 0
}

fn set<'a, K: Ord + Copy, V: PartialEq + Copy>(
    present: &'a BTreeMap<K, V>,
    wanted: &'a BTreeMap<K, V>,
    write: impl Fn(K, V) -> Write + 'a,
) -> impl Iterator<Item = Write> + 'a {
    changed(present, wanted).map(move |(key, value)| write(*key, *value))
}

fn changed<'a, K: Ord, V: PartialEq>(
    present: &'a BTreeMap<K, V>,
    wanted: &'a BTreeMap<K, V>,
) -> impl Iterator<Item = (&'a K, &'a V)> {
    wanted.iter().filter(|(key, value)| present.get(key) != Some(value))
}

fn removed<'a, K: Ord, V>(
    present: &'a BTreeMap<K, V>,
    wanted: &'a BTreeMap<K, V>,
) -> impl Iterator<Item = (&'a K, &'a V)> {
    present.iter().filter(|(key, _)| !wanted.contains_key(key))
}
