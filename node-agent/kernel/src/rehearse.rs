//! What the loaded program would do with a packet, found out by running it: over the node's own tables of services, but
//! with copies of what it remembers, so that no live flow, counter or event is touched.

use std::{
    collections::BTreeMap,
    net::{Ipv4Addr, SocketAddrV4},
    path::Path,
};

use abi::{Backend, Be16, Bucket, Flow, FlowBucket, FlowKey, PROTO_TCP, Reason, Way, maps, programs as name};
use aya::{
    Ebpf, EbpfLoader, Pod,
    maps::{Array, HashMap, MapData, PerCpuArray, ProgramArray},
    programs::Xdp,
};
use packet::{Bytes, FlowHash, Ipv4, L3, OUTER, Transport};

use crate::{
    KernelError, TraceAction,
    datapath::{action_of, run},
    error,
    error::on_map,
    flows,
    mapped::Mapped,
};

/// What programs only read: the rehearsal reads the very same.
const SHARED: [&str; 10] = [
    maps::VIPS,
    maps::RING_HEADS,
    maps::RING_SLOTS,
    maps::BACKENDS,
    maps::NODES,
    maps::NODE_BY_ADDR,
    maps::BLOCKS,
    maps::ENDPOINTS,
    maps::NEAR_ENDPOINTS,
    maps::UPLINK,
];
/// What programs write, with room for one flow.
const OWN: [(&str, u32); 3] = [(maps::FLOWS, 1), (maps::ALIASES, 1_024), (maps::BACKEND_COUNTERS, 1)];
const BUCKET_BITS: u32 = 4;

/// A packet that a client might send to this node.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Question {
    pub src: SocketAddrV4,
    pub dst: SocketAddrV4,
    pub proto: u8,
    /// Of TCP: a SYN; else a segment of a connection that is established.
    pub opens: bool,
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Rehearsal {
    /// Chooses the ring's slot.
    pub hash: u32,
    /// The backend's id by the CPU whose cache holds the flow.
    pub remembered: BTreeMap<u32, u32>,
    /// The flow as this node's table of local connections has it.
    pub flow: Option<Flow>,
    pub action: TraceAction,
    /// The nodes at both ends, and the backend that is named, when the packet left in a tunnel.
    pub tunnel: Option<Tunnel>,
    /// The packet's own ends as it left; none when they cannot be read.
    pub ends: Option<(SocketAddrV4, SocketAddrV4)>,
    /// It left as the reset that answers it.
    pub reset: bool,
    pub reasons: Vec<Reason>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Tunnel {
    pub from: Ipv4Addr,
    pub to: Ipv4Addr,
    pub backend: SocketAddrV4,
}

/// Runs the program over the maps pinned in `directory`.
pub(crate) fn rehearse(directory: &Path, question: &Question) -> Result<Rehearsal, KernelError> {
    let mut object = load(directory)?;
    let live = Live::read(directory, question)?;
    live.copy_into(&mut object, question)?;
    let before = counted(&object)?;
    for (index, handed_on) in name::HANDED_ON {
        set_program(&mut object, index, handed_on)?;
    }
    let program = object.program_mut(name::XDP_UPLINK);
    let program: &mut Xdp = program
        .ok_or(KernelError::Missing { what: "program", name: name::XDP_UPLINK })?
        .try_into()
        .map_err(|e| error::load(name::XDP_UPLINK, e))?;
    program.load().map_err(|e| error::load(name::XDP_UPLINK, e))?;
    let (value, frame) = run(program, &question.frame())?;
    let reasons = counted(&object)?.into_iter().filter(|(reason, n)| before.get(reason) != Some(n));
    let reasons = reasons.map(|(reason, _)| reason).collect();
    Ok(describe(&live, action_of(value), &frame, question, reasons))
}

fn set_program(object: &mut Ebpf, index: u32, name: &'static str) -> Result<(), KernelError> {
    let program = object.program_mut(name).ok_or(KernelError::Missing { what: "program", name })?;
    let program: &mut Xdp = program.try_into().map_err(|e| error::load(name, e))?;
    program.load().map_err(|e| error::load(name, e))?;
    let fd = program.fd().and_then(|fd| Ok(fd.try_clone()?)).map_err(|e| error::load(name, e))?;
    let mut programs: ProgramArray<_> = map_mut(object, maps::PROGRAMS)?;
    programs.set(index, &fd, 0).map_err(on_map(maps::PROGRAMS))
}

fn load(directory: &Path) -> Result<Ebpf, KernelError> {
    let mut loader = EbpfLoader::new();
    for map in SHARED {
        loader.map_pin_path(map, directory.join(map));
    }
    for (map, entries) in OWN {
        loader.map_max_entries(map, entries);
    }
    loader.map_max_entries(maps::ENTRY_FLOWS, cpus() << BUCKET_BITS);
    loader.override_global("ENTRY_BITS", &BUCKET_BITS, true).override_global("FLOW_BITS", &0_u32, true);
    Ok(loader.load(crate::object())?)
}

fn cpus() -> u32 {
    aya::util::nr_cpus().unwrap_or(1) as u32
}

/// What the node remembers of the flow in question.
struct Live {
    hash: FlowHash,
    ways: BTreeMap<u32, Way>,
    flow: Option<(FlowKey, Flow)>,
}

impl Live {
    fn read(directory: &Path, question: &Question) -> Result<Self, KernelError> {
        let hash = question.hash();
        let ways = question.frontend(directory)?.map(|frontend| question.ways(directory, hash, frontend));
        let ways = ways.transpose()?.unwrap_or_default();
        let flow = ways.values().next().map(|way| question.flow(directory, way)).transpose()?.flatten();
        Ok(Self { hash, ways, flow })
    }

    fn copy_into(&self, object: &mut Ebpf, question: &Question) -> Result<(), KernelError> {
        if question.opens {
            return Ok(()); // reads none of it
        }
        if let Some(way) = self.ways.values().next() {
            let mut entries: Array<_, Bucket> = map_mut(object, maps::ENTRY_FLOWS)?;
            let bucket = Bucket { ways: [*way, Way::default(), Way::default(), Way::default()] };
            for cpu in 0..cpus() {
                let index = cpu << BUCKET_BITS | self.hash.bucket() & ((1 << BUCKET_BITS) - 1);
                entries.set(index, bucket, 0).map_err(on_map(maps::ENTRY_FLOWS))?;
            }
        }
        if let Some((key, flow)) = self.flow {
            let mut flows: Array<_, FlowBucket> = map_mut(object, maps::FLOWS)?;
            flows.set(0, flows::bucket_of(&key, &flow), 0).map_err(on_map(maps::FLOWS))?;
        }
        Ok(())
    }
}

impl Question {
    fn hash(&self) -> FlowHash {
        let (src, dst) = (self.src, self.dst);
        FlowHash::of((*src.ip()).into(), Be16::new(src.port()), (*dst.ip()).into(), Be16::new(dst.port()))
    }

    fn frontend(&self, directory: &Path) -> Result<Option<u16>, KernelError> {
        let vips: HashMap<_, abi::VipKey, abi::VipValue> = pinned(directory, maps::VIPS)?;
        let (addr, port) = ((*self.dst.ip()).into(), Be16::new(self.dst.port()));
        let key = abi::VipKey { addr, port, proto: self.proto, pad: 0 };
        Ok(vips.get(&key, 0).ok().map(|vip| vip.frontend))
    }

    /// By CPU.
    fn ways(&self, directory: &Path, hash: FlowHash, frontend: u16) -> Result<BTreeMap<u32, Way>, KernelError> {
        let entries: Array<_, Bucket> = pinned(directory, maps::ENTRY_FLOWS)?;
        let slice = (entries.len() / cpus().max(1)).max(1);
        let key = Way::key_of((*self.src.ip()).into(), Be16::new(self.src.port()), frontend);
        let held = |cpu: u32| {
            let bucket = entries.get(&(cpu * slice + hash.bucket() % slice), 0).ok()?;
            bucket.ways.into_iter().find(|way| way.key == key).map(|way| (cpu, way))
        };
        Ok((0..cpus()).filter_map(held).collect())
    }

    fn flow(&self, directory: &Path, way: &Way) -> Result<Option<(FlowKey, Flow)>, KernelError> {
        let backends: Array<_, Backend> = pinned(directory, maps::BACKENDS)?;
        let backend = backends.get(&way.backend.into(), 0).map_err(on_map(maps::BACKENDS))?;
        let key = FlowKey {
            client: (*self.src.ip()).into(),
            backend: backend.addr,
            client_port: Be16::new(self.src.port()),
            backend_port: backend.port,
            proto: self.proto,
            pad: [0; 3],
        };
        let table = MapData::from_pin(directory.join(maps::FLOWS)).map_err(on_map(maps::FLOWS))?;
        let len = table.info().map_err(on_map(maps::FLOWS))?.max_entries();
        let table = Mapped::new(maps::FLOWS, table.fd(), len)?;
        Ok(flows::one(&table, &key).map(|flow| (key, flow)))
    }

    /// With right checksums, so that what the program makes of them can be read back.
    fn frame(&self) -> Vec<u8> {
        let tcp = self.proto == PROTO_TCP;
        let mut f = vec![0_u8; if tcp { 54 } else { 42 }];
        f[0..14].copy_from_slice(&[2, 0, 0, 0, 0, 2, 2, 0, 0, 0, 0, 1, 8, 0]);
        f[14] = 0x45;
        let total = (f.len() - L3) as u16;
        f[16..18].copy_from_slice(&total.to_be_bytes());
        f[20] = 0x40;
        (f[22], f[23]) = (64, self.proto);
        f[26..30].copy_from_slice(&self.src.ip().octets());
        f[30..34].copy_from_slice(&self.dst.ip().octets());
        f[34..36].copy_from_slice(&self.src.port().to_be_bytes());
        f[36..38].copy_from_slice(&self.dst.port().to_be_bytes());
        if tcp {
            (f[46], f[47]) = (0x50, if self.opens { packet::TCP_SYN } else { packet::TCP_ACK });
        } else {
            f[39] = 8;
        }
        let header = !sum(&f[L3..34], 0);
        f[24..26].copy_from_slice(&header.to_be_bytes());
        let pseudo = u32::from(sum(&f[26..34], u32::from(self.proto) + u32::from(total) - 20));
        let (at, whole) = (if tcp { 50 } else { 40 }, !sum(&f[34..], pseudo));
        f[at..at + 2].copy_from_slice(&whole.to_be_bytes());
        f
    }
}

fn sum(bytes: &[u8], start: u32) -> u16 {
    let words = bytes.chunks(2).map(|pair| u32::from(pair[0]) << 8 | u32::from(pair.get(1).copied().unwrap_or(0)));
    let mut sum = words.fold(start, |sum, word| sum + word);
    while sum > 0xffff {
        sum = (sum & 0xffff) + (sum >> 16);
    }
    sum as u16
}

fn describe(live: &Live, action: TraceAction, frame: &[u8], question: &Question, reasons: Vec<Reason>) -> Rehearsal {
    let tunnel = tunnel(frame, question);
    let inner = if tunnel.is_some() { frame.get(OUTER..).unwrap_or_default() } else { frame };
    let ends = ends(inner);
    Rehearsal {
        hash: live.hash.slot(),
        remembered: live.ways.iter().map(|(cpu, way)| (*cpu, way.backend.into())).collect(),
        flow: live.flow.map(|(_, flow)| flow),
        action,
        tunnel,
        ends,
        reset: reasons.iter().any(|reason| reason.kind() == abi::Kind::Answered),
        reasons,
    }
}

fn tunnel(frame: &[u8], question: &Question) -> Option<Tunnel> {
    let ip = Ipv4::parse(frame, L3).ok().filter(|ip| ip.src != (*question.src.ip()).into())?;
    let target = packet::inner(frame).ok()?.target;
    let backend = SocketAddrV4::new(target.addr.into(), target.port.get());
    Some(Tunnel { from: ip.src.into(), to: ip.dst.into(), backend })
}

fn ends(frame: &[u8]) -> Option<(SocketAddrV4, SocketAddrV4)> {
    let ip = (!Bytes::is_empty(frame)).then(|| Ipv4::parse(frame, L3).ok())??;
    let l4 = Transport::parse(frame, L3, &ip).ok()?;
    let end = |addr: abi::Be32, port: Be16| SocketAddrV4::new(addr.into(), port.get());
    Some((end(ip.src, l4.src_port), end(ip.dst, l4.dst_port)))
}

fn counted(object: &Ebpf) -> Result<BTreeMap<Reason, u64>, KernelError> {
    let map = object.map(maps::REASONS).ok_or(KernelError::Missing { what: "map", name: maps::REASONS })?;
    let counters: PerCpuArray<&MapData, u64> = map.try_into().map_err(on_map(maps::REASONS))?;
    let count = |reason: &Reason| {
        let values = counters.get(&(*reason as u32), 0).map_err(on_map(maps::REASONS))?;
        Ok((*reason, values.iter().sum()))
    };
    Reason::ALL.iter().map(count).collect()
}

fn map_mut<'a, M>(object: &'a mut Ebpf, name: &'static str) -> Result<M, KernelError>
where
    M: TryFrom<&'a mut aya::maps::Map, Error = aya::maps::MapError>,
{
    let map = object.map_mut(name).ok_or(KernelError::Missing { what: "map", name })?;
    map.try_into().map_err(on_map(name))
}

/// A map of the node's.
trait Pinned: Sized {
    fn open(data: MapData) -> Result<Self, aya::maps::MapError>;
}

impl<V: Pod> Pinned for Array<MapData, V> {
    fn open(data: MapData) -> Result<Self, aya::maps::MapError> {
        aya::maps::Map::Array(data).try_into()
    }
}

impl<K: Pod, V: Pod> Pinned for HashMap<MapData, K, V> {
    fn open(data: MapData) -> Result<Self, aya::maps::MapError> {
        aya::maps::Map::from_map_data(data)?.try_into()
    }
}

fn pinned<M: Pinned>(directory: &Path, name: &'static str) -> Result<M, KernelError> {
    MapData::from_pin(directory.join(name)).and_then(M::open).map_err(on_map(name))
}
