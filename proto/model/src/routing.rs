//! What every agent is told so that it can answer DNS and fill its data path: one consistent picture of a generation.

use crate::ids::{Generation, NodeId};
use crate::node::NodeStatus;
use crate::service::Instance;
use ipnet::IpNet;
use std::collections::BTreeSet;
use std::net::IpAddr;

#[derive(Clone, Debug, PartialEq, Default)]
pub struct RoutingSnapshot {
    pub generation: Generation,
    /// Ordered by id.
    pub nodes: Vec<RoutedNode>,
    /// Ordered by name.
    pub services: Vec<RoutedService>,
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub struct RoutedNode {
    pub id: NodeId,
    pub name: String,
    pub datacenter: String,
    pub address: IpAddr,
    pub blocks: Vec<IpNet>,
    pub status: NodeStatus,
    /// Its meta `zone`; empty for a node that says none.
    pub zone: String,
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub struct RoutedService {
    pub name: String,
    /// The service's virtual address; stays for as long as the service's name is known.
    pub vip: IpAddr,
    /// Every registered instance, ordered by allocation and port; critical and draining ones included.
    pub instances: Vec<Instance>,
}

/// What lies between two states.
#[derive(Clone, Debug, PartialEq, Default)]
pub struct RoutingDelta {
    /// The generation that it takes further.
    pub base: Generation,
    pub generation: Generation,
    /// New or different.
    pub nodes: Vec<RoutedNode>,
    pub nodes_gone: Vec<NodeId>,
    /// New or different, whole.
    pub services: Vec<RoutedService>,
    pub services_gone: Vec<String>,
}

impl RoutingSnapshot {
    /// What turns `self` into `newer`.
    pub fn delta_to(&self, newer: &RoutingSnapshot) -> RoutingDelta {
        let (nodes, nodes_gone) = difference(&self.nodes, &newer.nodes, |node| node.id);
        let (services, services_gone) = difference(&self.services, &newer.services, |service| service.name.clone());
        RoutingDelta { base: self.generation, generation: newer.generation, nodes, nodes_gone, services, services_gone }
    }

    /// False, and nothing changes, for a delta of another base.
    pub fn follow(&mut self, delta: RoutingDelta) -> bool {
        if delta.base != self.generation {
            return false;
        }
        merge(&mut self.nodes, delta.nodes, &delta.nodes_gone, |node| node.id);
        merge(&mut self.services, delta.services, &delta.services_gone, |service| service.name.clone());
        self.generation = delta.generation;
        true
    }
}

/// Both are ordered by their keys.
fn difference<T: Clone + PartialEq, K: Ord>(older: &[T], newer: &[T], key: impl Fn(&T) -> K) -> (Vec<T>, Vec<K>) {
    let at = |list: &[T], wanted: &K| list.binary_search_by(|item| key(item).cmp(wanted)).ok();
    let changed = |item: &&T| at(older, &key(item)).is_none_or(|found| older[found] != **item);
    let gone = older.iter().map(&key).filter(|key| at(newer, key).is_none()).collect();
    (newer.iter().filter(changed).cloned().collect(), gone)
}

fn merge<T, K: Ord>(list: &mut Vec<T>, changed: Vec<T>, gone: &[K], key: impl Fn(&T) -> K) {
    let replaced: BTreeSet<K> = changed.iter().map(&key).collect();
    list.retain(|item| {
        let key = key(item);
        !replaced.contains(&key) && !gone.contains(&key)
    });
    list.extend(changed);
    list.sort_by_key(key);
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::net::Ipv4Addr;

    fn state(generation: u64, services: &[(&str, u8)]) -> RoutingSnapshot {
        let service = |(name, vip): &(&str, u8)| RoutedService {
            name: (*name).to_owned(),
            vip: IpAddr::V4(Ipv4Addr::new(10, 43, 0, *vip)),
            instances: Vec::new(),
        };
        let mut services: Vec<_> = services.iter().map(service).collect();
        services.sort_by(|a, b| a.name.cmp(&b.name));
        RoutingSnapshot { generation: Generation(generation), nodes: Vec::new(), services }
    }

    #[test]
    fn a_delta_takes_one_state_to_the_other_and_no_third() {
        let (older, newer) = (state(3, &[("a", 1), ("b", 2), ("d", 4)]), state(5, &[("b", 9), ("c", 3), ("d", 4)]));
        let delta = older.delta_to(&newer);
        assert_eq!((delta.services.len(), delta.services_gone.as_slice()), (2, &["a".to_owned()][..]));
        let mut held = older.clone();
        assert!(held.follow(delta.clone()));
        assert_eq!(held, newer);
        assert!(!held.follow(delta));
        assert_eq!(held, newer);
    }
}
