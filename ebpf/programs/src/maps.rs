//! The maps, as `abi` names and sizes them.

use abi::{
    Alias, AliasKey, Backend, BackendCounters, Be32, Bucket, Endpoint, FlowBucket, NearEndpoint, Node, Parked, Peers,
    Uplink, VipKey, VipValue, maps as size,
};
use aya_ebpf::{
    bindings::BPF_F_MMAPABLE,
    btf_maps::{Array, HashMap, LruHashMap, PerCpuArray, ProgramArray, RingBuf, SkStorage},
    macros::btf_map,
};

const MMAPABLE: usize = BPF_F_MMAPABLE as usize;

#[btf_map(name = "vips")]
pub static VIPS: HashMap<VipKey, VipValue, { size::VIPS_MAX as usize }> = HashMap::new();
#[btf_map(name = "ring_heads")]
pub static RING_HEADS: Array<u64, { size::RING_HEADS_MAX as usize }, MMAPABLE> = Array::new();
#[btf_map(name = "ring_slots")]
pub static RING_SLOTS: Array<u32, { size::RING_SLOTS_MAX as usize }, MMAPABLE> = Array::new();
#[btf_map(name = "backends")]
pub static BACKENDS: Array<Backend, { size::BACKENDS_MAX as usize }, MMAPABLE> = Array::new();
#[btf_map(name = "nodes")]
pub static NODES: Array<Node, { size::NODES_MAX as usize }, MMAPABLE> = Array::new();
#[btf_map(name = "node_by_addr")]
pub static NODE_BY_ADDR: HashMap<Be32, u32, { size::NODE_BY_ADDR_MAX as usize }> = HashMap::new();
#[btf_map(name = "blocks")]
pub static BLOCKS: HashMap<Be32, u32, { size::BLOCKS_MAX as usize }> = HashMap::new();
#[btf_map(name = "endpoints")]
pub static ENDPOINTS: HashMap<Be32, Endpoint, { size::ENDPOINTS_MAX as usize }> = HashMap::new();
#[btf_map(name = "near_endpoints")]
pub static NEAR_ENDPOINTS: Array<NearEndpoint, { size::NEAR_ENDPOINTS_MAX as usize }, MMAPABLE> = Array::new();
#[btf_map(name = "uplink")]
pub static UPLINK: Array<Uplink, { size::UPLINK_MAX as usize }> = Array::new();
/// Mmapable for its page-aligned memory: a bucket is one cache line. The loader sets the number of entries.
#[btf_map(name = "entry_flows")]
pub static ENTRY_FLOWS: Array<Bucket, { size::ENTRY_BUCKETS as usize }, MMAPABLE> = Array::new();
#[btf_map(name = "flows")]
pub static FLOWS: Array<FlowBucket, { size::FLOW_BUCKETS as usize }, MMAPABLE> = Array::new();
#[btf_map(name = "aliases")]
pub static ALIASES: LruHashMap<AliasKey, Alias, { size::ALIASES_MAX as usize }> = LruHashMap::new();
#[btf_map(name = "alias_hints")]
pub static ALIAS_HINTS: Array<u32, { size::ALIAS_HINTS_MAX as usize }> = Array::new();
#[btf_map(name = "peers")]
pub static PEERS: SkStorage<Peers> = SkStorage::new();
#[btf_map(name = "backend_counters")]
pub static BACKEND_COUNTERS: PerCpuArray<BackendCounters, { size::BACKEND_COUNTERS_MAX as usize }> = PerCpuArray::new();
#[btf_map(name = "reasons")]
pub static REASONS: PerCpuArray<u64, { size::REASONS_MAX as usize }> = PerCpuArray::new();
#[btf_map(name = "programs")]
pub static PROGRAMS: ProgramArray<{ size::PROGRAMS_MAX as usize }> = ProgramArray::new();
#[btf_map(name = "parked")]
pub static PARKED: PerCpuArray<Parked, { size::PARKED_MAX as usize }> = PerCpuArray::new();
#[btf_map(name = "scope")]
pub static SCOPE: HashMap<u64, u32, { size::SCOPE_MAX as usize }> = HashMap::new();
#[btf_map(name = "unresolved")]
pub static UNRESOLVED: RingBuf<(), { size::UNRESOLVED_BYTES as usize }> = RingBuf::new();
