//! The local allocations that have a network, by the short id that their interfaces carry.

use dataplane::{LocalEndpoint, MapImage};
use model::{AllocId, AllocatedPort};
use network::{Attached, Leftover};
use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;
use std::path::PathBuf;

#[derive(Clone, Debug, PartialEq, Eq)]
pub struct LocalAlloc {
    /// `None` until the agent has asked for what an earlier agent left.
    pub id: Option<AllocId>,
    pub address: IpAddr,
    pub netns: PathBuf,
    pub ifindex: u32,
    pub mac: network::Mac,
    pub host_mac: network::Mac,
    /// The namespace's cookie, by which the socket hook knows it.
    pub cookie: Option<u64>,
    pub ports: Vec<AllocatedPort>,
}

impl LocalAlloc {
    pub fn new(id: AllocId, address: IpAddr, attached: Attached, cookie: u64, ports: Vec<AllocatedPort>) -> Self {
        let Attached { netns, ifindex, host_mac, mac, .. } = attached;
        Self { id: Some(id), address, netns, ifindex, mac, host_mac, cookie: Some(cookie), ports }
    }
}

/// What is complete enough to go on serving: the kernel's interfaces and the maps agree on it. The rest waits for its
/// `create` or falls to the next `retain`.
pub fn adopt(found: &BTreeMap<String, Leftover>, image: &MapImage) -> BTreeMap<String, LocalAlloc> {
    let ports = dataplane::host_ports(image);
    let adopted = found.iter().filter_map(|(short, leftover)| {
        let address = leftover.address?;
        let IpAddr::V4(v4) = address else { return None };
        let (_, ifindex) = leftover.link.as_ref()?;
        let endpoint = image.endpoints.get(&v4.into()).filter(|endpoint| endpoint.ifindex == *ifindex)?;
        let alloc = LocalAlloc {
            id: None,
            address,
            netns: leftover.netns.clone()?,
            ifindex: *ifindex,
            mac: endpoint.mac,
            host_mac: endpoint.host_mac,
            cookie: None,
            ports: ports.get(&address).map(|ports| ports.iter().map(unlabelled).collect()).unwrap_or_default(),
        };
        Some((short.clone(), alloc))
    });
    adopted.collect()
}

fn unlabelled(&(host_port, to): &(u16, u16)) -> AllocatedPort {
    AllocatedPort { label: String::new(), host_port, to }
}

/// As the compiler takes them.
pub fn snapshot(allocs: &BTreeMap<String, LocalAlloc>) -> BTreeMap<IpAddr, LocalEndpoint> {
    let endpoint = |alloc: &LocalAlloc| LocalEndpoint {
        alloc_id: alloc.id.unwrap_or(AllocId::from_random(0)),
        ifindex: alloc.ifindex,
        mac: alloc.mac,
        host_mac: alloc.host_mac,
        ports: alloc.ports.clone(),
    };
    allocs.values().map(|alloc| (alloc.address, endpoint(alloc))).collect()
}

/// Addresses that must not be given out: those of allocations, and of what is left of others.
pub fn addresses_used(allocs: &BTreeMap<String, LocalAlloc>, found: &BTreeMap<String, Leftover>) -> BTreeSet<IpAddr> {
    let left = found.values().filter_map(|leftover| leftover.address);
    allocs.values().map(|alloc| alloc.address).chain(left).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use abi::Endpoint;
    use std::net::Ipv4Addr;

    fn leftover(address: [u8; 4], ifindex: u32) -> Leftover {
        Leftover {
            alloc: "aaaaaaaa".to_owned(),
            owner: None,
            netns: Some("/run/netns/x".into()),
            link: Some(("mcxxxxaaaaaaaa".to_owned(), ifindex)),
            address: Some(IpAddr::from(address)),
        }
    }

    fn image(address: [u8; 4], ifindex: u32) -> MapImage {
        let endpoint = Endpoint { ifindex, mac: [2; 6], host_mac: [4; 6] };
        MapImage { endpoints: BTreeMap::from([(Ipv4Addr::from(address).into(), endpoint)]), ..MapImage::default() }
    }

    #[test]
    fn only_what_kernel_and_maps_agree_on_is_adopted() {
        let found = BTreeMap::from([("aaaaaaaa".to_owned(), leftover([10, 64, 0, 2], 9))]);
        let adopted = adopt(&found, &image([10, 64, 0, 2], 9));
        assert_eq!(adopted["aaaaaaaa"].mac, [2; 6]);
        assert!(adopt(&found, &image([10, 64, 0, 2], 8)).is_empty(), "another interface has that index now");
        assert!(adopt(&found, &image([10, 64, 0, 3], 9)).is_empty(), "the maps do not know the address");
    }
}
