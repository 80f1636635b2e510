//! The way from the node's own processes to allocations elsewhere. What leaves an allocation is wrapped at its veth; for
//! the node itself a veth pair of its own stands in: what is routed into one end comes out of the other, where the same
//! program sits.
//!
//! ```text
//! node's socket ─ route to a remote block, source: mesh address ─> mc<node>mesh0 ═ mc<node>mesh1 ─ program ─> tunnel
//! ```

use crate::attach::{output_interface, v4};
use crate::error::Error;
use crate::node::{forward_from, quiet_ipv6, sysctl};
use crate::{Network, unless_exists};
use futures::TryStreamExt;
use ipnet::{IpNet, Ipv4Net};
use rtnetlink::packet_route::route::{RouteAttribute, RouteMessage, RouteScope};
use rtnetlink::{LinkUnspec, LinkVeth, RouteMessageBuilder};
use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::net::{IpAddr, Ipv4Addr};

#[derive(Clone, Debug, PartialEq, Eq)]
pub struct MeshLink {
    /// The end that routes lead into.
    pub entry: String,
    pub entry_ifindex: u32,
    /// The end whose ingress the program belongs to.
    pub exit_ifindex: u32,
}

impl Network {
    /// Makes or completes the pair.
    pub async fn make_mesh_link(&self, mtu: u32) -> Result<MeshLink, Error> {
        let (entry, exit) = self.mesh_link_names();
        let made = self.handle.link().add(LinkVeth::new(&entry, &exit).build()).execute().await;
        unless_exists(made).map_err(Error::netlink(format!("make the veth {entry}")))?;
        let exit_ifindex = self.set_up_end(&exit, mtu).await?;
        let entry_ifindex = self.set_up_end(&entry, mtu).await?;
        Ok(MeshLink { entry, entry_ifindex, exit_ifindex })
    }

    pub async fn remove_mesh_link(&self) -> Result<(), Error> {
        self.remove_link(&self.mesh_link_names().0).await
    }

    /// Routes exactly these blocks into the link, with the mesh address as the source that replies come back to.
    pub async fn route_blocks(&self, link: &MeshLink, blocks: &BTreeSet<IpNet>, mesh: IpAddr) -> Result<(), Error> {
        let source = v4(mesh)?;
        let mut present = self.routes_into(link.entry_ifindex).await?;
        for block in blocks.iter().filter_map(v4_block) {
            if present.remove(&block).is_none() {
                let route = route_to(block, link.entry_ifindex).pref_source(source).build();
                let added = self.handle.route().add(route).replace().execute().await;
                added.map_err(Error::netlink(format!("route {block} into the mesh")))?;
            }
        }
        for (block, route) in present {
            let removed = self.handle.route().del(route).execute().await;
            removed.map_err(Error::netlink(format!("remove the route to {block}")))?;
        }
        Ok(())
    }

    /// Answers from the mesh come in by the uplink and would go out by the mesh link: a strict reverse path check drops them.
    pub fn loosen_reverse_path(&self, uplink: &str) -> Result<(), Error> {
        let path = |name: &str| format!("/proc/sys/net/ipv4/conf/{name}/rp_filter");
        let value = |name: &str| fs::read_to_string(path(name)).ok().and_then(|text| text.trim().parse::<u8>().ok());
        match value("all").max(value(uplink)) {
            Some(1) => sysctl(&path(uplink), "2"),
            _ => Ok(()),
        }
    }

    fn mesh_link_names(&self) -> (String, String) {
        let prefix = self.link_prefix();
        (format!("{prefix}mesh0"), format!("{prefix}mesh1"))
    }

    /// Nobody answers ARP behind it, and nobody needs to: the program makes the link-layer header anew.
    async fn set_up_end(&self, name: &str, mtu: u32) -> Result<u32, Error> {
        let link = self.find_link(name).await?.ok_or_else(|| Error::NoInterface(name.to_owned()))?;
        quiet_ipv6(name);
        forward_from(name)?;
        let up = LinkUnspec::new_with_index(link.header.index).mtu(mtu).arp(false).up().build();
        self.handle.link().set(up).execute().await.map_err(Error::netlink(format!("set {name} up")))?;
        Ok(link.header.index)
    }

    async fn routes_into(&self, ifindex: u32) -> Result<BTreeMap<Ipv4Net, RouteMessage>, Error> {
        let all = self.handle.route().get(RouteMessageBuilder::<Ipv4Addr>::new().build()).execute();
        let all: Vec<_> = all.try_collect().await.map_err(Error::netlink("list the routes"))?;
        let into = all.into_iter().filter(|route| output_interface(&route.attributes) == Some(ifindex));
        Ok(into.filter_map(|route| Some((destination(&route)?, route))).collect())
    }
}

fn route_to(block: Ipv4Net, ifindex: u32) -> RouteMessageBuilder<Ipv4Addr> {
    RouteMessageBuilder::<Ipv4Addr>::new()
        .destination_prefix(block.network(), block.prefix_len())
        .output_interface(ifindex)
        .scope(RouteScope::Link)
}

fn v4_block(block: &IpNet) -> Option<Ipv4Net> {
    match block {
        IpNet::V4(block) => Some(block.trunc()),
        IpNet::V6(_) => None,
    }
}

fn destination(route: &RouteMessage) -> Option<Ipv4Net> {
    let address = route.attributes.iter().find_map(|attribute| match attribute {
        RouteAttribute::Destination(address) => crate::neighbours::route_address(address),
        _ => None,
    });
    Ipv4Net::new(v4(address?).ok()?, route.header.destination_prefix_length).ok()
}
