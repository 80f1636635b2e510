//! Nodes by class and free room, so that a few good places are found without looking at every node.
//!
//! A bucket holds the nodes of one class, of about one size, with about one sixteenth of their processor and memory free.
//! How many buckets there are does not depend on how many nodes there are; within one, nodes score about alike, and any
//! of them will do. What is taken from here is scored exactly afterwards.

use crate::state::{ClassId, NodeState};
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
    pub(crate) class: ClassId,
    size: (u8, u8),
    free: (u8, u8),
}

impl FreeIndex {
    /// Nodes that take nothing new are in no bucket.
    pub(crate) fn bucket_of(&self, state: &NodeState) -> Option<Bucket> {
        let (node, used) = (&state.node, state.held.usage.resources);
        node.is_placeable().then(|| Bucket {
            class: state.class,
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
        let room = |size: u8, level: u8| {
            let top = u128::from(size / 4);
            let most = (u128::from(4 + size % 4) + 1) << top.saturating_sub(3).max(0);
            let most = if top > 2 { most } else { 8 };
            most * (u128::from(level) + 1) / u128::from(LEVELS) + 1
        };
        u128::from(demand.cpu_mhz) <= room(self.size.0, self.free.0)
            && u128::from(demand.memory_mb) <= room(self.size.1, self.free.1)
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
                let bucket = Bucket { class: ClassId(0), size: (size(total), size(total)), free: level(taken, room) };
                let demand = room.minus(taken);
                assert!(bucket.may_hold(demand), "{used} of {total}: {bucket:?}");
            }
        }
        let (room, none) = (NodeResources { cpu_mhz: 4000, memory_mb: 4000, disk_mb: 0 }, NodeResources::default());
        let full = Bucket { class: ClassId(0), size: (size(4000), size(4000)), free: level(room, room) };
        assert!(full.may_hold(none) && !full.may_hold(room));
    }
}
