//! Numbering: which address of the node's blocks an allocation gets. Nothing is kept on disk; what is in use is known from
//! the kernel.

use ipnet::IpNet;
use std::collections::BTreeSet;
use std::net::{IpAddr, Ipv4Addr};

/// The node's own address inside the mesh: the first host of its first block.
pub fn mesh_address(blocks: &[IpNet]) -> Option<IpAddr> {
    hosts(blocks).next()
}

/// The next free address after `last`, around; so that an address that came free rests for as long as possible, because
/// flows and caches elsewhere may still mean the old one.
pub fn choose(blocks: &[IpNet], used: &BTreeSet<IpAddr>, last: Option<IpAddr>) -> Option<IpAddr> {
    let all: Vec<IpAddr> = hosts(blocks).skip(1).collect();
    let from = last.and_then(|last| all.iter().position(|address| *address == last)).map_or(0, |position| position + 1);
    let (before, after) = all.split_at(from.min(all.len()));
    after.iter().chain(before).copied().find(|address| !used.contains(address))
}

/// The addresses of the IPv4 blocks without their first and last; blocks are at most a /16.
fn hosts(blocks: &[IpNet]) -> impl Iterator<Item = IpAddr> {
    blocks
        .iter()
        .flat_map(|block| match block {
            IpNet::V4(block) if block.prefix_len() >= 16 => block.hosts().collect::<Vec<Ipv4Addr>>(),
            _ => Vec::new(),
        })
        .map(IpAddr::V4)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn blocks(texts: &[&str]) -> Vec<IpNet> {
        texts.iter().map(|text| text.parse().expect("a block")).collect()
    }

    fn ip(text: &str) -> IpAddr {
        text.parse().expect("an address")
    }

    #[test]
    fn the_mesh_address_is_the_first_host_and_no_allocations() {
        let blocks = blocks(&["10.64.0.0/26"]);
        assert_eq!(mesh_address(&blocks), Some(ip("10.64.0.1")));
        assert_eq!(choose(&blocks, &BTreeSet::new(), None), Some(ip("10.64.0.2")));
        assert_eq!(mesh_address(&[]), None);
    }

    #[test]
    fn addresses_go_around_before_one_is_used_again() {
        let blocks = blocks(&["10.64.0.0/29"]);
        let used = BTreeSet::from([ip("10.64.0.4")]);
        assert_eq!(choose(&blocks, &used, Some(ip("10.64.0.3"))), Some(ip("10.64.0.5")));
        assert_eq!(choose(&blocks, &used, Some(ip("10.64.0.6"))), Some(ip("10.64.0.2")));
    }

    #[test]
    fn a_second_block_continues_and_full_blocks_have_none() {
        let blocks = blocks(&["10.64.0.0/30", "10.64.1.0/30"]);
        let mut used = BTreeSet::new();
        while let Some(address) = choose(&blocks, &used, used.last().copied()) {
            used.insert(address);
        }
        assert_eq!(used, BTreeSet::from([ip("10.64.0.2"), ip("10.64.1.1"), ip("10.64.1.2")]));
    }
}
