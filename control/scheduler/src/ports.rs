//! Which ports of a node an allocation gets: the static ones it asked for, and free ones for the rest.

use crate::random::Random;
use model::capacity::DYNAMIC_PORTS;
use model::{AllocatedPort, Network, NetworkMode, PortRequest, TaskGroup};

/// What a group asks for.
pub(crate) struct PortDemand<'a> {
    mode: NetworkMode,
    asked: &'a [PortRequest],
    pub(crate) statics: Vec<u16>,
    /// Static ports of the range that dynamic ones are taken from.
    statics_in_range: usize,
}

/// A node's ports, with what the plan in the making has taken and given up.
pub(crate) trait Ports {
    fn is_taken(&self, port: u16) -> bool;
    /// How many of [`DYNAMIC_PORTS`] are taken.
    fn dynamic_taken(&self) -> usize;
}

impl<'a> PortDemand<'a> {
    pub(crate) fn of(group: &'a TaskGroup) -> Self {
        let asked: &[PortRequest] = group.network.as_ref().map_or(&[], |network: &Network| &network.ports);
        let statics: Vec<u16> = asked.iter().filter_map(|port| port.static_port).collect();
        let statics_in_range = statics.iter().filter(|port| DYNAMIC_PORTS.contains(port)).count();
        Self { mode: group.network_mode(), asked, statics, statics_in_range }
    }

    pub(crate) fn asks_for_the_same_twice(&self) -> Option<u16> {
        let repeats = |(at, port): (usize, &u16)| self.statics[..at].contains(port).then_some(*port);
        self.statics.iter().enumerate().find_map(repeats)
    }

    /// Whether what is free of the range is not enough for the dynamic ones.
    pub(crate) fn exceeds_dynamic(&self, ports: &impl Ports) -> bool {
        let dynamic = self.asked.len() - self.statics.len();
        dynamic > 0 && ports.dynamic_taken() + self.statics_in_range + dynamic > DYNAMIC_PORTS.len()
    }

    pub(crate) fn choose(&self, ports: &impl Ports, random: &mut Random) -> Vec<AllocatedPort> {
        let mut chosen: Vec<AllocatedPort> = Vec::with_capacity(self.asked.len());
        for asked in self.asked {
            let taken = |port: u16| {
                ports.is_taken(port)
                    || self.statics.contains(&port)
                    || chosen.iter().any(|other| other.host_port == port)
            };
            let Some(host_port) = asked.static_port.or_else(|| free_dynamic_port(taken, random)) else { continue };
            chosen.push(self.allocated(asked, host_port));
        }
        chosen
    }

    fn allocated(&self, asked: &PortRequest, host_port: u16) -> AllocatedPort {
        let to = match self.mode {
            NetworkMode::Bridge => asked.to.unwrap_or(host_port),
            NetworkMode::Host | NetworkMode::None => host_port,
        };
        AllocatedPort { label: asked.label.clone(), host_port, to }
    }
}

/// The first free port from a random one on: ports are not reused soon, which spares clients stale connections.
fn free_dynamic_port(taken: impl Fn(u16) -> bool, random: &mut Random) -> Option<u16> {
    let len = DYNAMIC_PORTS.len();
    let start = (random.next() % len as u64) as usize;
    let from_start = DYNAMIC_PORTS.skip(start).chain(DYNAMIC_PORTS.take(start));
    from_start.into_iter().find(|port| !taken(*port))
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::collections::BTreeSet;

    const FREE: [u16; 3] = [20_000, 25_000, 32_000];

    /// A node that has only [`FREE`] left.
    struct Crowded;

    impl Ports for Crowded {
        fn is_taken(&self, port: u16) -> bool {
            DYNAMIC_PORTS.contains(&port) && !FREE.contains(&port)
        }

        fn dynamic_taken(&self) -> usize {
            DYNAMIC_PORTS.len() - FREE.len()
        }
    }

    fn group(asked: &[Option<u16>]) -> TaskGroup {
        let asked =
            asked.iter().map(|static_port| PortRequest { label: String::new(), static_port: *static_port, to: None });
        let network = Network::of(NetworkMode::Host, asked.collect());
        TaskGroup { network: Some(network), ..TaskGroup::named("api") }
    }

    fn choose(asked: &[Option<u16>], seed: u64) -> Vec<u16> {
        let group = group(asked);
        let chosen = PortDemand::of(&group).choose(&Crowded, &mut Random::new(seed, &[]));
        chosen.iter().map(|port| port.host_port).collect()
    }

    #[test]
    fn the_last_free_ports_are_found_and_none_is_given_twice() {
        for seed in 0..50 {
            let all = choose(&[None, None, None], seed);
            assert_eq!(all.into_iter().collect::<BTreeSet<_>>(), FREE.into());
            let beside_static = choose(&[None, Some(25_000), None], seed);
            assert_eq!(beside_static.into_iter().collect::<BTreeSet<_>>(), FREE.into());
        }
    }

    #[test]
    fn more_dynamic_ports_than_are_free_do_not_fit() {
        let exceeds = |asked: &[Option<u16>]| PortDemand::of(&group(asked)).exceeds_dynamic(&Crowded);
        assert!(exceeds(&[None, None, None, None]) && exceeds(&[None, None, None, Some(20_000)]));
        assert!(!exceeds(&[None, None, Some(20_000)]) && !exceeds(&[Some(20_001)]));
    }
}
