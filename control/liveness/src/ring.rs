//! Who probes whom. Nodes stand in a circle, ordered by a hash of their ids, and each is probed by the next few: so every node
//! sends and gets the same small number of probes, however many nodes there are, and neighbours in a rack are no neighbours
//! here.

use model::{NodeId, NodeStatus};

/// Peers that probe a node: an odd number, so that they can disagree.
pub const PROBERS: usize = 3;

/// The nodes that are not given up, in the order of the circle.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Ring {
    /// Sorted; each with whether it can be asked to probe others.
    places: Vec<(u64, NodeId, bool)>,
}

impl Ring {
    /// Of all nodes that are not down or new; one that is disconnected is probed and probes nobody, or those whose probers were
    /// lost with them would be asked after by none.
    pub fn new(nodes: impl IntoIterator<Item = (NodeId, NodeStatus)>) -> Ring {
        let is_member = |status| !matches!(status, NodeStatus::Down | NodeStatus::Initializing);
        let members = nodes.into_iter().filter(|(_, status)| is_member(*status));
        let mut places: Vec<_> = members.map(|(id, status)| (place(id), id, status.is_reachable())).collect();
        places.sort_unstable();
        places.dedup_by_key(|place| place.1);
        Ring { places }
    }

    /// Whom `own` has to probe: those for whom it is among the next few that can.
    pub fn targets(&self, own: NodeId) -> Vec<NodeId> {
        let Some(at) = self.find(own) else { return Vec::new() };
        let mut passed = 0;
        let before = (1..self.places.len()).map(|n| self.places[(at + self.places.len() - n) % self.places.len()]);
        let not_enough = |place: &(u64, NodeId, bool)| {
            let asked = passed < PROBERS;
            passed += usize::from(place.2);
            asked
        };
        before.take_while(not_enough).map(|place| place.1).collect()
    }

    /// Who has to probe `node`.
    pub fn probers(&self, node: NodeId) -> Vec<NodeId> {
        let Some(at) = self.find(node) else { return Vec::new() };
        let after = (1..self.places.len()).map(|n| self.places[(at + n) % self.places.len()]);
        after.filter(|place| place.2).take(PROBERS).map(|place| place.1).collect()
    }

    pub fn len(&self) -> usize {
        self.places.len()
    }

    pub fn is_empty(&self) -> bool {
        self.places.is_empty()
    }

    fn find(&self, node: NodeId) -> Option<usize> {
        let key = (place(node), node);
        self.places.binary_search_by_key(&key, |(place, id, _)| (*place, *id)).ok()
    }
}

/// splitmix64's finalizer over both halves of the id.
fn place(id: NodeId) -> u64 {
    let bits = id.0.as_u128();
    let mix = |seed: u64| {
        let z = seed.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        let z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ (z >> 31)
    };
    mix(bits as u64 ^ mix((bits >> 64) as u64))
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::collections::BTreeMap;

    fn ids(count: u128) -> Vec<NodeId> {
        (1..=count).map(NodeId::from_random).collect()
    }

    fn ring(count: u128) -> Ring {
        Ring::new(ids(count).into_iter().map(|id| (id, NodeStatus::Ready)))
    }

    #[test]
    fn every_node_probes_and_is_probed_by_the_same_number() {
        for count in [2, 3, 4, 5, 100, 5000] {
            let ring = ring(count);
            let expected = PROBERS.min(count as usize - 1);
            let mut probed: BTreeMap<NodeId, usize> = BTreeMap::new();
            for own in ids(count) {
                let targets = ring.targets(own);
                assert_eq!(targets.len(), expected);
                assert!(!targets.contains(&own));
                for target in targets {
                    assert!(ring.probers(target).contains(&own), "both sides see the same circle");
                    *probed.entry(target).or_default() += 1;
                }
            }
            assert!(probed.values().all(|times| *times == expected), "{count}");
        }
    }

    #[test]
    fn one_that_goes_changes_its_neighbours_alone() {
        let (all, without) = (ring(1000), ring(999));
        let changed = ids(999).into_iter().filter(|id| all.targets(*id) != without.targets(*id)).count();
        assert!(changed <= PROBERS, "{changed}");
        assert!(ring(1).targets(ids(1)[0]).is_empty());
        assert!(Ring::default().targets(ids(1)[0]).is_empty());
    }

    #[test]
    fn the_disconnected_are_probed_and_probe_nobody() {
        let status = |n: usize| if n.is_multiple_of(3) { NodeStatus::Ready } else { NodeStatus::Disconnected };
        let nodes: Vec<_> = ids(60).into_iter().enumerate().map(|(n, id)| (id, status(n))).collect();
        let ring = Ring::new(nodes.clone());
        for (id, _) in &nodes {
            let probers = ring.probers(*id);
            assert_eq!(probers.len(), PROBERS);
            for (other, status) in &nodes {
                let asked = *status == NodeStatus::Ready && ring.targets(*other).contains(id);
                assert_eq!(asked, probers.contains(other));
            }
        }
    }
}
