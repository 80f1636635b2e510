//! Nodes by size and free room, so that a few good places are found without looking at every node.
//!
//! A bucket holds the nodes of about one size with about as many sixteenths of their processor and memory free.
//! How many buckets there are does not depend on how many nodes there are; within one, nodes score about alike, and any
//! of them will do. What is taken from here is scored exactly afterwards.

use crate::state::NodeState;
use model::{NodeId, NodeResources};
use std::collections::{BTreeMap, BTreeSet};

const LEVELS: u64 = 16;

#[derive(Clone, Debug, Default)]
pub(crate) struct FreeIndex {
    buckets: BTreeMap<Bucket, BTreeSet<NodeId>>,
}

/// Sizes are in quarters of a power of two, free shares in sixteenths.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct Bucket {
    size: (u8, u8),
    free: (u8, u8),
}

impl FreeIndex {
    /// Nodes that take nothing new are in no bucket.
    pub(crate) fn bucket_of(&self, state: &NodeState) -> Option<Bucket> {
        let (node, used) = (&state.node, state.held.usage.resources);
        node.is_placeable().then(|| Bucket {
            size: (size(node.resources.cpu_mhz), size(node.resources.memory_mb)),
            free: level(used, node.resources),
        })
    }

    pub(crate) fn insert(&mut self, state: &NodeState) {
        if let Some(bucket) = self.bucket_of(state) {
            self.buckets.entry(bucket).or_default().insert(state.node.id);
        }
    }

    pub(crate) fn remove(&mut self, state: &NodeState) {
        if let Some(bucket) = self.bucket_of(state) {
            self.take(bucket, state.node.id);
        }
    }

    /// The node was in `before`.
    pub(crate) fn moved(&mut self, before: Option<Bucket>, state: &NodeState) {
        let after = self.bucket_of(state);
        if before == after {
            return;
        }
        if let Some(before) = before {
            self.take(before, state.node.id);
        }
        self.insert(state);
    }

    pub(crate) fn buckets(&self) -> impl Iterator<Item = (Bucket, &BTreeSet<NodeId>)> {
        self.buckets.iter().map(|(bucket, nodes)| (*bucket, nodes))
    }

    fn take(&mut self, bucket: Bucket, id: NodeId) {
        let Some(nodes) = self.buckets.get_mut(&bucket) else { return };
        nodes.remove(&id);
        if nodes.is_empty() {
            self.buckets.remove(&bucket);
        }
    }
}

impl Bucket {
    /// Whether a node of it may have the room; most that has no room is left out without a look at its nodes.
    pub(crate) fn may_hold(&self, demand: NodeResources) -> bool {
        let most = |size: u8, level: u8| most_of(size) * (u128::from(level) + 1) / u128::from(LEVELS) + 1;
        u128::from(demand.cpu_mhz) <= most(self.size.0, self.free.0)
            && u128::from(demand.memory_mb) <= most(self.size.1, self.free.1)
    }

    /// What a node in the middle of the bucket has, and what of it is used.
    pub(crate) fn middle(&self) -> (NodeResources, NodeResources) {
        let total = |size: u8| u64::try_from(most_of(size)).unwrap_or(u64::MAX);
        let used = |size: u8, level: u8| {
            let free = u128::from(total(size)) * (2 * u128::from(level) + 1) / (2 * u128::from(LEVELS));
            total(size).saturating_sub(u64::try_from(free).unwrap_or(u64::MAX))
        };
        let room = NodeResources { cpu_mhz: total(self.size.0), memory_mb: total(self.size.1), disk_mb: 0 };
        let taken = NodeResources {
            cpu_mhz: used(self.size.0, self.free.0),
            memory_mb: used(self.size.1, self.free.1),
            disk_mb: 0,
        };
        (taken, room)
    }
}

/// The largest total of a size.
fn most_of(size: u8) -> u128 {
    match size / 4 {
        0..3 => 8,
        top => (u128::from(4 + size % 4) + 1) << (top - 3),
    }
}

/// From a node of the bucket on, in a circle, so that plans that are made at the same time do not all meet on one node.
pub(crate) fn from<'a>(nodes: &'a BTreeSet<NodeId>, start: NodeId) -> impl Iterator<Item = NodeId> + use<'a> {
    nodes.range(start..).chain(nodes.range(..start)).copied()
}

fn size(total: u64) -> u8 {
    let top = u64::BITS - total.leading_zeros();
    let quarter = if top > 2 { (total >> (top - 3)) & 3 } else { 0 };
    (top as u8) * 4 + quarter as u8
}

fn level(used: NodeResources, total: NodeResources) -> (u8, u8) {
    let share = |used: u64, total: u64| match total {
        0 => 0,
        total => (u128::from(total.saturating_sub(used)) * u128::from(LEVELS) / u128::from(total)) as u8,
    };
    (share(used.cpu_mhz, total.cpu_mhz), share(used.memory_mb, total.memory_mb))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_bucket_never_hides_a_node_with_room() {
        for total in (0..200).chain([1000, 4000, 32_768, 100_000, u64::MAX / 2]) {
            for used in [0, total / 7, total / 3, total / 2, total] {
                let room = NodeResources { cpu_mhz: total, memory_mb: total, disk_mb: 0 };
                let taken = NodeResources { cpu_mhz: used, memory_mb: used, disk_mb: 0 };
                let bucket = Bucket { size: (size(total), size(total)), free: level(taken, room) };
                let demand = room.minus(taken);
                assert!(bucket.may_hold(demand), "{used} of {total}: {bucket:?}");
            }
        }
        let (room, none) = (NodeResources { cpu_mhz: 4000, memory_mb: 4000, disk_mb: 0 }, NodeResources::default());
        let full = Bucket { size: (size(4000), size(4000)), free: level(room, room) };
        assert!(full.may_hold(none) && !full.may_hold(room));
    }
}
