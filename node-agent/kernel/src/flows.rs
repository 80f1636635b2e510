//! The flow table as user space reads it: beside the programs, without disturbing them.

use std::collections::BTreeMap;

use abi::{FLOW_CONFIRMED, FLOW_UDP, FLOW_USED, Flow, FlowBucket, FlowKey, PROTO_TCP, PROTO_UDP, Stamp};
use packet::flows;

use crate::mapped::Mapped;

/// Buckets that [`pressure`] looks at; of a larger table it looks at every so-manieth.
const SAMPLE: u32 = 8_192;
/// How often a bucket that a program is writing is read anew before what was seen is taken.
const TURNS: u32 = 64;

/// How full the table of flows to this node's backends is. Of a large table the counts are estimates from a part of it.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct FlowPressure {
    pub capacity: u64,
    /// Connections in use: nothing but time takes their places. When they near the capacity, new ones are refused.
    pub confirmed: u64,
    /// Half open, or with one side silent: a new flow may take their places.
    pub unconfirmed: u64,
    /// Ended or idle for too long: as good as free.
    pub ended: u64,
}

impl FlowPressure {
    /// What new flows cannot take, of one. At 0.9 one in some hundred new flows finds both its buckets full.
    pub fn ratio(&self) -> f64 {
        if self.capacity == 0 { 0.0 } else { self.confirmed as f64 / self.capacity as f64 }
    }
}

pub(crate) fn pressure(table: &Mapped<FlowBucket>) -> FlowPressure {
    let step = (table.len() / SAMPLE).max(1);
    let sampled: Vec<FlowBucket> = (0..table.len()).step_by(step as usize).filter_map(|at| bucket(table, at)).collect();
    let stamps = || sampled.iter().flat_map(held).map(|(_, flow)| Stamp::new(flow.seen, flow.state));
    let Some(now) = newest(stamps()) else { return empty(table) };
    let mut pressure = empty(table);
    for stamp in stamps() {
        let count = match flows::rank(stamp, now) {
            0 => &mut pressure.confirmed,
            _ if flows::is_live(stamp, now) && stamp.state() & FLOW_CONFIRMED == 0 => &mut pressure.unconfirmed,
            _ => &mut pressure.ended,
        };
        *count += u64::from(step);
    }
    pressure
}

fn empty(table: &Mapped<FlowBucket>) -> FlowPressure {
    FlowPressure { capacity: u64::from(table.len()) * flows::WAYS as u64, ..FlowPressure::default() }
}

/// The programs' clock, which user space cannot read, as of the newest packet. Time goes round: of two the one that is less
/// than half a turn ahead is newer.
fn newest(stamps: impl Iterator<Item = Stamp>) -> Option<u32> {
    stamps.map(Stamp::seen).reduce(|a, b| if Stamp::new(a, 0).idle(b) < 1 << 23 { b } else { a })
}

/// Every flow there is.
pub(crate) fn all(table: &Mapped<FlowBucket>) -> BTreeMap<FlowKey, Flow> {
    let buckets = (0..table.len()).filter_map(|at| bucket(table, at));
    buckets.flat_map(|bucket| held(&bucket).collect::<Vec<_>>()).collect()
}

/// One flow, wherever it is.
pub(crate) fn one(table: &Mapped<FlowBucket>, key: &FlowKey) -> Option<Flow> {
    let (first, second) = flows::hash(key).buckets(table.len().max(1).ilog2());
    [first, second].into_iter().filter_map(|at| bucket(table, at)).find_map(|bucket| {
        let way = flows::find(&bucket, key);
        (way != flows::NONE).then(|| at(&bucket, way))
    })
}

/// A bucket of one flow.
pub(crate) fn bucket_of(key: &FlowKey, flow: &Flow) -> FlowBucket {
    let mut bucket = FlowBucket::default();
    bucket.ends[0] = key.ends();
    bucket.backend[0] = key.backend;
    bucket.stamps[0] = Stamp::new(flow.seen, flow.state).word();
    bucket.dialled[0] = flow.dialled;
    bucket.entry[0] = flow.entry;
    bucket.ports[0] = [flow.dialled_port, flow.original_port];
    bucket
}

/// As it is between two writes.
fn bucket(table: &Mapped<FlowBucket>, index: u32) -> Option<FlowBucket> {
    let mut last = table.get(index)?;
    for _ in 0..TURNS {
        let again = table.get(index)?;
        if again.sequence == last.sequence && again.sequence & 1 == 0 {
            return Some(last);
        }
        last = again;
    }
    Some(last)
}

fn held(bucket: &FlowBucket) -> impl Iterator<Item = (FlowKey, Flow)> + '_ {
    (0..flows::WAYS)
        .filter(|way| Stamp::from_word(bucket.stamps[*way]).state() & FLOW_USED != 0)
        .map(|way| (key(bucket, way), at(bucket, way)))
}

fn key(bucket: &FlowBucket, way: usize) -> FlowKey {
    let ends = bucket.ends[way];
    let udp = Stamp::from_word(bucket.stamps[way]).state() & FLOW_UDP != 0;
    FlowKey {
        client: abi::Be32::new((ends >> 32) as u32),
        backend: bucket.backend[way],
        client_port: abi::Be16::new((ends >> 16) as u16),
        backend_port: abi::Be16::new(ends as u16),
        proto: if udp { PROTO_UDP } else { PROTO_TCP },
        pad: [0; 3],
    }
}

fn at(bucket: &FlowBucket, way: usize) -> Flow {
    flows::flow(Stamp::from_word(bucket.stamps[way]), bucket.dialled[way], bucket.entry[way], bucket.ports[way])
}
