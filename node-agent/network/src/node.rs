//! The node's own namespace: its mesh address, its uplink, its kernel parameters.

use crate::attach::v4;
use crate::error::{Error, unless_exists};
use crate::{Mac, Network, link_mac, link_mtu};
use futures::TryStreamExt;
use rtnetlink::packet_route::address::{AddressAttribute, AddressMessage};
use rtnetlink::{Handle, LinkUnspec};
use std::fs;
use std::net::IpAddr;
use std::ops::RangeInclusive;

/// The interface that tunnels leave by.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Uplink {
    pub name: String,
    pub ifindex: u32,
    pub mac: Mac,
    pub mtu: u32,
    pub addresses: Vec<IpAddr>,
}

const LOOPBACK: u32 = 1;

impl Network {
    /// Puts the node's mesh address on `lo`, where allocations find their resolver.
    pub async fn add_mesh_address(&self, address: IpAddr) -> Result<(), Error> {
        v4(address)?;
        set_loopback_up(&self.handle).await?;
        let mut add = self.handle.address().add(LOOPBACK, address, 32);
        add.message_mut().attributes.push(AddressAttribute::Label(self.mesh_label()));
        unless_exists(add.execute().await).map_err(Error::netlink(format!("give lo the mesh address {address}")))
    }

    /// Takes this node's mesh addresses from `lo`.
    pub async fn remove_mesh_addresses(&self) -> Result<(), Error> {
        let label = AddressAttribute::Label(self.mesh_label());
        for found in self.address_messages(LOOPBACK).await? {
            if found.attributes.contains(&label) {
                let removed = self.handle.address().del(found).execute().await;
                removed.map_err(Error::netlink("take the mesh address from lo"))?;
            }
        }
        Ok(())
    }

    /// Tells this node's address from those of others that share the kernel and its namespace.
    fn mesh_label(&self) -> String {
        format!("lo:{}", self.link_prefix())
    }

    pub async fn uplink(&self, name: &str) -> Result<Uplink, Error> {
        let link = self.find_link(name).await?.ok_or_else(|| Error::NoInterface(name.to_owned()))?;
        let mac = link_mac(&link).filter(|mac| *mac != [0; 6]).ok_or_else(|| Error::NotEthernet(name.to_owned()))?;
        let ifindex = link.header.index;
        let addresses = self.addresses(ifindex).await?;
        Ok(Uplink { name: name.to_owned(), ifindex, mac, mtu: link_mtu(&link).unwrap_or(1500), addresses })
    }

    /// The interface that packets to an address leave by.
    pub async fn outward(&self, address: IpAddr) -> Result<String, Error> {
        let hop = self.next_hop(address).await?;
        let name = nix::net::if_::if_indextoname(hop.ifindex).map_err(|_| Error::NoRoute(address))?;
        Ok(name.to_string_lossy().into_owned())
    }

    async fn addresses(&self, ifindex: u32) -> Result<Vec<IpAddr>, Error> {
        let found = self.address_messages(ifindex).await?;
        let addresses = found.iter().flat_map(|message| &message.attributes).filter_map(|attribute| match attribute {
            AddressAttribute::Address(address) => Some(*address),
            _ => None,
        });
        Ok(addresses.collect())
    }

    async fn address_messages(&self, ifindex: u32) -> Result<Vec<AddressMessage>, Error> {
        let found = self.handle.address().get().set_link_index_filter(ifindex).execute();
        found.try_collect().await.map_err(Error::netlink("list an interface's addresses"))
    }
}

pub(crate) async fn set_loopback_up(handle: &Handle) -> Result<(), Error> {
    let up = LinkUnspec::new_with_index(LOOPBACK).up().build();
    handle.link().set(up).execute().await.map_err(Error::netlink("set lo up"))
}

/// The kernel asks the interface that a packet comes in by whether to forward it.
pub(crate) fn forward_from(link: &str) -> Result<(), Error> {
    sysctl(&forwarding_path(link), "1")
}

pub(crate) fn is_forwarding(link: &str) -> bool {
    fs::read_to_string(forwarding_path(link)).is_ok_and(|value| value.trim() == "1")
}

pub(crate) fn forwarding_path(link: &str) -> String {
    format!("/proc/sys/net/ipv4/conf/{link}/forwarding")
}

/// Two ports in a kernel parameter, as the range they stand for.
pub(crate) fn port_range(path: &str) -> Option<RangeInclusive<u16>> {
    let text = fs::read_to_string(path).ok()?;
    let mut numbers = text.split_whitespace().map(str::parse);
    Some(numbers.next()?.ok()?..=numbers.next()?.ok()?)
}

/// No link-local addresses and router solicitations on our veths. A kernel without IPv6 has nothing to quiet.
pub(crate) fn quiet_ipv6(link: &str) {
    if let Err(error) = fs::write(format!("/proc/sys/net/ipv6/conf/{link}/disable_ipv6"), "1") {
        tracing::debug!(link, %error, "IPv6 not switched off");
    }
}

/// Writes only what differs: a container's own /proc/sys is often read-only and right.
pub(crate) fn sysctl(path: &str, value: &str) -> Result<(), Error> {
    if fs::read_to_string(path).is_ok_and(|present| present.trim() == value) {
        return Ok(());
    }
    fs::write(path, value).map_err(|source| Error::Sysctl { path: path.to_owned(), source })
}
