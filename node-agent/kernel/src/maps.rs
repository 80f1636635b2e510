//! The programs' maps as user space writes and reads them.

use std::{
    collections::{BTreeMap, BTreeSet},
    sync::Arc,
};

use abi::{
    Backend, BackendCounters, Be32, Endpoint, FlowBucket, NearEndpoint, Node, Reason, RingHead, Unresolved, Uplink,
    VipKey, VipValue, maps as name,
};
use aya::{
    Ebpf, Pod,
    maps::{Array, HashMap, IterableMap, Map, MapData, MapError, PerCpuArray, PerCpuValues, ProgramArray, RingBuf},
    programs::ProgramFd,
};
use dataplane::{MapDelta, MapImage, Ring, Write};

use crate::{KernelError, error::on_map, mapped::Mapped};

pub(crate) struct Maps {
    vips: HashMap<MapData, VipKey, VipValue>,
    heads: Mapped<u64>,
    slots: Mapped<u32>,
    backends: Mapped<Backend>,
    nodes: Mapped<Node>,
    node_by_addr: HashMap<MapData, Be32, u32>,
    blocks: HashMap<MapData, Be32, u32>,
    endpoints: HashMap<MapData, Be32, Endpoint>,
    near_endpoints: Mapped<NearEndpoint>,
    uplink: Array<MapData, Uplink>,
    scope: HashMap<MapData, u64, u32>,
    backend_counters: PerCpuArray<MapData, BackendCounters>,
    reasons: PerCpuArray<MapData, u64>,
    unresolved: RingBuf<MapData>,
    flows: Mapped<FlowBucket>,
    programs: ProgramArray<MapData>,
}

impl Maps {
    pub fn take(object: &mut Ebpf) -> Result<Self, KernelError> {
        Ok(Self {
            vips: take(object, name::VIPS)?,
            heads: mapped(object, name::RING_HEADS)?,
            slots: mapped(object, name::RING_SLOTS)?,
            backends: mapped(object, name::BACKENDS)?,
            nodes: mapped(object, name::NODES)?,
            node_by_addr: take(object, name::NODE_BY_ADDR)?,
            blocks: take(object, name::BLOCKS)?,
            endpoints: take(object, name::ENDPOINTS)?,
            near_endpoints: mapped(object, name::NEAR_ENDPOINTS)?,
            uplink: take(object, name::UPLINK)?,
            scope: take(object, name::SCOPE)?,
            backend_counters: take(object, name::BACKEND_COUNTERS)?,
            reasons: take(object, name::REASONS)?,
            unresolved: take(object, name::UNRESOLVED)?,
            flows: mapped(object, name::FLOWS)?,
            programs: take(object, name::PROGRAMS)?,
        })
    }

    /// Makes the writes in their order; stops at the first that fails.
    pub fn publish(&mut self, delta: &MapDelta) -> Result<(), KernelError> {
        delta.writes.iter().try_for_each(|write| self.write(write))
    }

    fn write(&mut self, write: &Write) -> Result<(), KernelError> {
        match write {
            Write::SetUplink(uplink) => self.uplink.set(0, uplink, 0).map_err(on_map(name::UPLINK)),
            Write::SetEndpoint(addr, to) => self.set_endpoint(*addr, *to),
            Write::RemoveEndpoint(addr) => self.remove_endpoint(*addr),
            Write::SetNode(index, node) => self.nodes.set(*index, *node),
            Write::SetNodeByAddr(addr, to) => self.node_by_addr.insert(addr, to, 0).map_err(on_map(name::NODE_BY_ADDR)),
            Write::RemoveNodeByAddr(addr) => removed(name::NODE_BY_ADDR, self.node_by_addr.remove(addr)),
            Write::SetBlock(block, to) => self.blocks.insert(block, to, 0).map_err(on_map(name::BLOCKS)),
            Write::RemoveBlock(block) => removed(name::BLOCKS, self.blocks.remove(block)),
            Write::SetBackend(id, backend) => self.set_backend(*id, *backend),
            Write::SetSlots { base, slots } => self.slots.fill(*base, slots),
            Write::SetHead { ring, head } => self.heads.set(*ring, head.word()),
            Write::SetVip(key, value) => self.vips.insert(key, value, 0).map_err(on_map(name::VIPS)),
            Write::RemoveVip(key) => removed(name::VIPS, self.vips.remove(key)),
        }
    }

    // The newest of those that share a low byte has the near place; the others are found by hashing.
    fn set_endpoint(&mut self, addr: Be32, to: Endpoint) -> Result<(), KernelError> {
        self.endpoints.insert(addr, to, 0).map_err(on_map(name::ENDPOINTS))?;
        let Endpoint { ifindex, mac, host_mac } = to;
        self.near_endpoints.set(addr.get() & 0xff, NearEndpoint { addr, ifindex, mac, host_mac })
    }

    fn remove_endpoint(&mut self, addr: Be32) -> Result<(), KernelError> {
        let near = addr.get() & 0xff;
        if self.near_endpoints.get(near).is_some_and(|held| held.addr == addr) {
            self.near_endpoints.set(near, NearEndpoint::default())?;
        }
        removed(name::ENDPOINTS, self.endpoints.remove(&addr))
    }

    // A new backend does not inherit what an earlier one with its id was sent.
    fn set_backend(&mut self, id: u32, backend: Backend) -> Result<(), KernelError> {
        if self.backends.get(id) == Some(Backend::default()) {
            let cpus = self.backend_counters.get(&id, 0).map_err(on_map(name::BACKEND_COUNTERS))?.len();
            let zeroes = PerCpuValues::try_from(vec![BackendCounters::default(); cpus]);
            if let Ok(zeroes) = zeroes {
                self.backend_counters.set(id, zeroes, 0).map_err(on_map(name::BACKEND_COUNTERS))?;
            }
        }
        self.backends.set(id, backend)
    }

    /// What the kernel holds now.
    pub fn image(&self) -> Result<MapImage, KernelError> {
        Ok(MapImage {
            uplink: self.uplink.get(&0, 0).map_err(on_map(name::UPLINK))?,
            vips: contents(name::VIPS, &self.vips)?,
            rings: self.rings()?,
            backends: present(&self.backends),
            nodes: present(&self.nodes),
            node_by_addr: contents(name::NODE_BY_ADDR, &self.node_by_addr)?,
            blocks: contents(name::BLOCKS, &self.blocks)?,
            endpoints: contents(name::ENDPOINTS, &self.endpoints)?,
        })
    }

    fn rings(&self) -> Result<BTreeMap<u32, Ring>, KernelError> {
        let heads = present(&self.heads).into_iter().map(|(ring, word)| (ring, RingHead::from_word(word)));
        heads.map(|(ring, head)| Ok((ring, Ring { head, slots: self.slab(head)? }))).collect()
    }

    fn slab(&self, head: RingHead) -> Result<Arc<[u32]>, KernelError> {
        let (first, end) = (u64::from(head.base()), u64::from(head.base()) + u64::from(head.size()));
        let outside = || KernelError::OutOfRange { map: name::RING_SLOTS, first, end, len: self.slots.len() };
        let slots = (first..end).map(|slot| u32::try_from(slot).ok().and_then(|slot| self.slots.get(slot)));
        slots.collect::<Option<_>>().ok_or_else(outside)
    }

    pub fn allow_netns(&mut self, cookie: u64) -> Result<(), KernelError> {
        self.scope.insert(cookie, 1, 0).map_err(on_map(name::SCOPE))
    }

    pub fn forbid_netns(&mut self, cookie: u64) -> Result<(), KernelError> {
        removed(name::SCOPE, self.scope.remove(&cookie))
    }

    pub fn allowed_netns(&self) -> Result<BTreeSet<u64>, KernelError> {
        self.scope.keys().collect::<Result<_, _>>().map_err(on_map(name::SCOPE))
    }

    /// Summed over CPUs, by id, for the backends that exist.
    pub fn backend_counters(&self) -> Result<BTreeMap<u32, BackendCounters>, KernelError> {
        let ids = present(&self.backends).into_keys();
        ids.map(|id| {
            let values = self.backend_counters.get(&id, 0).map_err(on_map(name::BACKEND_COUNTERS))?;
            Ok((id, values.iter().copied().fold(BackendCounters::default(), sum)))
        })
        .collect()
    }

    /// Summed over CPUs, with those that are zero.
    pub fn reasons(&self) -> Result<BTreeMap<Reason, u64>, KernelError> {
        let count = |reason: &Reason| {
            let values = self.reasons.get(&(*reason as u32), 0).map_err(on_map(name::REASONS))?;
            Ok((*reason, values.iter().sum()))
        };
        Reason::ALL.iter().map(count).collect()
    }

    /// Lets others hand frames on to a program; the one of before is replaced.
    pub fn set_program(&mut self, index: u32, program: &ProgramFd) -> Result<(), KernelError> {
        self.programs.set(index, program, 0).map_err(on_map(name::PROGRAMS))
    }

    pub fn flows(&self) -> &Mapped<FlowBucket> {
        &self.flows
    }

    /// Next hops that packets waited for since the last call.
    pub fn take_unresolved(&mut self) -> BTreeSet<Be32> {
        let mut addresses = BTreeSet::new();
        while let Some(item) = self.unresolved.next() {
            if let Some(bytes) = item.first_chunk::<{ size_of::<Unresolved>() }>() {
                addresses.insert(Be32::from_bytes(*bytes));
            }
        }
        addresses
    }
}

fn sum(a: BackendCounters, b: BackendCounters) -> BackendCounters {
    BackendCounters { packets: a.packets + b.packets, bytes: a.bytes + b.bytes, flows: a.flows + b.flows }
}

fn take<M: TryFrom<Map, Error = MapError>>(object: &mut Ebpf, name: &'static str) -> Result<M, KernelError> {
    let map = object.take_map(name).ok_or(KernelError::Missing { what: "map", name })?;
    M::try_from(map).map_err(on_map(name))
}

fn mapped<T: Pod>(object: &mut Ebpf, name: &'static str) -> Result<Mapped<T>, KernelError> {
    match object.map(name) {
        Some(Map::Array(data)) => {
            let len = data.info().map_err(on_map(name))?.max_entries();
            Mapped::new(name, data.fd(), len)
        }
        _ => Err(KernelError::Missing { what: "array", name }),
    }
}

// Gone already is as good as removed: a delta may be applied twice.
fn removed(map: &'static str, result: Result<(), MapError>) -> Result<(), KernelError> {
    match result {
        Err(MapError::KeyNotFound) => Ok(()),
        Err(MapError::SyscallError(error)) if error.io_error.kind() == std::io::ErrorKind::NotFound => Ok(()),
        other => other.map_err(on_map(map)),
    }
}

fn contents<K: Pod + Ord, V: Pod>(
    map: &'static str,
    hash: &HashMap<MapData, K, V>,
) -> Result<BTreeMap<K, V>, KernelError>
where
    HashMap<MapData, K, V>: IterableMap<K, V>,
{
    hash.iter().collect::<Result<_, _>>().map_err(on_map(map))
}

/// The entries of an array that are not all zero.
fn present<T: Pod + Default + PartialEq>(array: &Mapped<T>) -> BTreeMap<u32, T> {
    let entry = |index| array.get(index).filter(|value| *value != T::default()).map(|value| (index, value));
    (0..array.len()).filter_map(entry).collect()
}
