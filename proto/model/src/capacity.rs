//! Whether an allocation fits a node: the one check that the scheduler makes when it plans and the catalog when it applies.

use crate::alloc::Allocation;
use crate::job::{NetworkMode, TaskGroup};
use crate::node::{Node, NodeResources};
use ipnet::IpNet;
use std::collections::BTreeSet;
use std::fmt;
use std::ops::RangeInclusive;

/// The node ports that the scheduler chooses dynamic ports from.
pub const DYNAMIC_PORTS: RangeInclusive<u16> = 20_000..=32_000;

/// What allocations take from a node.
#[derive(Clone, Debug, PartialEq, Eq, Default)]
pub struct Usage {
    pub resources: NodeResources,
    /// Node ports in use.
    pub ports: BTreeSet<u16>,
    /// How many of `ports` lie in [`DYNAMIC_PORTS`].
    pub dynamic_ports: usize,
    /// Addresses of the node's blocks: one for each allocation with network mode bridge.
    pub addresses: u64,
}

/// A dimension in which a node has no room left.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Exhausted {
    Cpu,
    Memory,
    Disk,
    Port(u16),
    DynamicPorts,
    Addresses,
}

impl Usage {
    /// What the live ones among `allocs` hold: an allocation that is to stop holds its share until it has ended.
    pub fn of<'a>(allocs: impl IntoIterator<Item = &'a Allocation>) -> Self {
        let mut usage = Usage::default();
        allocs.into_iter().filter(|alloc| alloc.is_live()).for_each(|alloc| usage.add(alloc));
        usage
    }

    pub fn add(&mut self, alloc: &Allocation) {
        self.resources = self.resources.plus(demand_of(alloc));
        for port in &alloc.ports {
            let fresh = self.ports.insert(port.host_port) && DYNAMIC_PORTS.contains(&port.host_port);
            self.dynamic_ports += usize::from(fresh);
        }
        self.addresses += u64::from(alloc.task_group().is_some_and(needs_address));
    }

    /// Takes back what [`Usage::add`] of the same allocation added.
    pub fn remove(&mut self, alloc: &Allocation) {
        let share = demand_of(alloc);
        self.resources = self.resources.minus(share);
        for port in &alloc.ports {
            let held = self.ports.remove(&port.host_port) && DYNAMIC_PORTS.contains(&port.host_port);
            self.dynamic_ports -= usize::from(held);
        }
        let addresses = u64::from(alloc.task_group().is_some_and(needs_address));
        self.addresses = self.addresses.saturating_sub(addresses);
    }

    /// Whether the node's blocks have no address left for one more allocation of the group.
    pub fn lacks_address(&self, node: &Node, group: &TaskGroup) -> Option<Exhausted> {
        (needs_address(group) && self.addresses >= addresses_of(node)).then_some(Exhausted::Addresses)
    }

    /// Every dimension in which `demand` and `ports` do not fit beside this usage; empty when they fit.
    pub fn misfits(&self, node: &Node, demand: NodeResources, ports: &[u16]) -> Vec<Exhausted> {
        exceeded(self.resources.plus(demand), node.resources).chain(self.port_misfits(ports)).collect()
    }

    fn port_misfits(&self, ports: &[u16]) -> impl Iterator<Item = Exhausted> {
        let mut asked = BTreeSet::new();
        let taken = ports.iter().filter(move |port| !asked.insert(**port) || self.ports.contains(port));
        taken.map(|port| Exhausted::Port(*port)).collect::<Vec<_>>().into_iter()
    }
}

/// The dimensions in which `total` is more than `room`.
pub fn exceeded(total: NodeResources, room: NodeResources) -> impl Iterator<Item = Exhausted> {
    let over = [
        (total.cpu_mhz > room.cpu_mhz, Exhausted::Cpu),
        (total.memory_mb > room.memory_mb, Exhausted::Memory),
        (total.disk_mb > room.disk_mb, Exhausted::Disk),
    ];
    over.into_iter().filter(|(over, _)| *over).map(|(_, dimension)| dimension)
}

/// Whether an allocation of the group takes an address of its node's blocks.
pub fn needs_address(group: &TaskGroup) -> bool {
    group.network_mode() == NetworkMode::Bridge
}

/// How many allocations the node can give an address: the hosts of its blocks but the node's own.
pub fn addresses_of(node: &Node) -> u64 {
    let hosts = |block: &IpNet| {
        let size = 1u64.checked_shl(u32::from(block.max_prefix_len() - block.prefix_len())).unwrap_or(u64::MAX);
        size.saturating_sub(2)
    };
    node.blocks.iter().map(hosts).fold(0, u64::saturating_add).saturating_sub(1)
}

/// What one allocation of the group takes.
pub fn demand(group: &TaskGroup) -> NodeResources {
    let resources = group.resources();
    NodeResources { cpu_mhz: resources.cpu_mhz, memory_mb: resources.memory_mb, disk_mb: group.disk_mb }
}

/// What the allocation takes, by the job it was placed for.
pub fn demand_of(alloc: &Allocation) -> NodeResources {
    alloc.task_group().map(demand).unwrap_or_default()
}

/// Every reason why `alloc` does not fit `node` beside `others`; empty when it fits.
pub fn misfits<'a>(
    node: &Node,
    others: impl IntoIterator<Item = &'a Allocation>,
    alloc: &Allocation,
) -> Vec<Exhausted> {
    let ports: Vec<u16> = alloc.ports.iter().map(|port| port.host_port).collect();
    let usage = Usage::of(others);
    let address = alloc.task_group().and_then(|group| usage.lacks_address(node, group));
    usage.misfits(node, demand_of(alloc), &ports).into_iter().chain(address).collect()
}

impl NodeResources {
    pub fn fits_in(self, room: NodeResources) -> bool {
        self.cpu_mhz <= room.cpu_mhz && self.memory_mb <= room.memory_mb && self.disk_mb <= room.disk_mb
    }

    /// What is left; never below nothing.
    pub fn minus(self, other: NodeResources) -> NodeResources {
        NodeResources {
            cpu_mhz: self.cpu_mhz.saturating_sub(other.cpu_mhz),
            memory_mb: self.memory_mb.saturating_sub(other.memory_mb),
            disk_mb: self.disk_mb.saturating_sub(other.disk_mb),
        }
    }

    pub fn plus(self, other: NodeResources) -> NodeResources {
        NodeResources {
            cpu_mhz: self.cpu_mhz.saturating_add(other.cpu_mhz),
            memory_mb: self.memory_mb.saturating_add(other.memory_mb),
            disk_mb: self.disk_mb.saturating_add(other.disk_mb),
        }
    }
}

impl fmt::Display for Exhausted {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Exhausted::Cpu => f.write_str("cpu"),
            Exhausted::Memory => f.write_str("memory"),
            Exhausted::Disk => f.write_str("disk"),
            Exhausted::Port(port) => write!(f, "network: port {port}"),
            Exhausted::DynamicPorts => f.write_str("network: dynamic ports"),
            Exhausted::Addresses => f.write_str("network: addresses exhausted"),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::ids::{Epoch, Index, NodeId};
    use crate::node::{Eligibility, NodeStatus};
    use crate::time::Timestamp;
    use std::net::IpAddr;

    const ROOM: NodeResources = NodeResources { cpu_mhz: 1000, memory_mb: 1000, disk_mb: 1000 };

    fn node() -> Node {
        Node {
            id: NodeId::from_random(1),
            name: "n1".to_owned(),
            datacenter: "dc1".to_owned(),
            pool: "default".to_owned(),
            class: String::new(),
            address: IpAddr::from([10, 77, 0, 11]),
            attributes: Default::default(),
            meta: Default::default(),
            resources: ROOM,
            drivers: Default::default(),
            status: NodeStatus::Ready,
            eligibility: Eligibility::Eligible,
            drain: None,
            epoch: Epoch(1),
            blocks: Vec::new(),
            version: String::new(),
            status_changed_at: Timestamp::NEVER,
            created_at_index: Index(0),
            modified_at_index: Index(0),
        }
    }

    #[track_caller]
    fn check(used: (u64, u64, u64), ports: &[u16], expected: &[&str]) {
        let resources = NodeResources { cpu_mhz: used.0, memory_mb: used.1, disk_mb: used.2 };
        let usage = Usage { resources, ports: [80, 20_000].into(), ..Usage::default() };
        let demand = NodeResources { cpu_mhz: 400, memory_mb: 400, disk_mb: 400 };
        let misfits: Vec<String> = usage.misfits(&node(), demand, ports).iter().map(Exhausted::to_string).collect();
        assert_eq!(misfits, expected);
    }

    #[test]
    fn every_dimension_without_room_is_named() {
        check((600, 600, 600), &[], &[]);
        check((601, 600, 600), &[], &["cpu"]);
        check((600, 700, u64::MAX), &[443], &["memory", "disk"]);
        check((0, 0, 0), &[80, 443, 20_000], &["network: port 80", "network: port 20000"]);
    }

    #[test]
    fn a_block_has_an_address_for_every_host_but_the_node() {
        let with =
            |blocks: &[&str]| Node { blocks: blocks.iter().map(|block| block.parse().unwrap()).collect(), ..node() };
        assert_eq!(addresses_of(&with(&["10.64.0.0/26"])), 61);
        assert_eq!(addresses_of(&with(&["10.64.0.0/26", "10.64.1.0/26"])), 123);
        assert_eq!(addresses_of(&with(&[])), 0);
        assert_eq!(addresses_of(&with(&["10.64.0.0/31", "10.64.0.8/32"])), 0);
        assert_eq!(addresses_of(&with(&["fd00::/48"])), u64::MAX - 3);
    }

    #[test]
    fn a_port_asked_for_twice_never_fits() {
        check((0, 0, 0), &[443, 443], &["network: port 443"]);
    }
}
