//! Attaching an allocation: namespace, veth pair, addresses, routes, neighbours. Every step is one that may have happened
//! already, so that attaching again completes what a crash left half done.

use crate::error::{Error, is_errno, unless_exists};
use crate::{Mac, Network, link_alias, link_mac, link_name, ns, open_handle};
use futures::TryStreamExt;
use model::AllocId;
use nix::errno::Errno;
use rtnetlink::packet_route::link::{InfoData, InfoVeth, LinkAttribute, LinkMessage};
use rtnetlink::packet_route::route::{RouteAttribute, RouteScope};
use rtnetlink::{Handle, LinkMessageBuilder, LinkUnspec, LinkVeth, RouteMessageBuilder};
use std::collections::BTreeMap;
use std::fs::File;
use std::net::{IpAddr, Ipv4Addr};
use std::os::fd::AsRawFd;
use std::path::{Path, PathBuf};

/// The allocation's side of the veth.
const INNER_LINK: &str = "eth0";

#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Attachment {
    pub alloc_id: AllocId,
    pub address: IpAddr,
    /// The node's mesh address.
    pub gateway: IpAddr,
    pub mtu: u32,
}

/// An allocation's network as it exists.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Attached {
    pub netns: PathBuf,
    /// The host side of the veth.
    pub link: String,
    pub ifindex: u32,
    pub host_mac: Mac,
    /// Of the allocation's side.
    pub mac: Mac,
}

/// Something of this node that carries an allocation's short id.
#[derive(Clone, Debug, PartialEq, Eq, Default)]
pub struct Leftover {
    /// The first eight digits of the allocation's id.
    pub alloc: String,
    /// The whole id, which the link carries as its alias.
    pub owner: Option<AllocId>,
    pub netns: Option<PathBuf>,
    /// Name and index of the veth's host side.
    pub link: Option<(String, u32)>,
    /// Where the host's route for it leads.
    pub address: Option<IpAddr>,
}

impl Network {
    /// Makes or completes an allocation's network.
    pub async fn attach(&self, wanted: &Attachment) -> Result<Attached, Error> {
        let (address, gateway) = (v4(wanted.address)?, v4(wanted.gateway)?);
        let netns = self.netns_path(wanted.alloc_id);
        ns::make(&netns)?;
        let name = self.link_name(wanted.alloc_id);
        let link = self.make_veth(&name, &netns, wanted.mtu).await?;
        self.claim(&name, &link, wanted.alloc_id).await?;
        let host_mac = link_mac(&link).unwrap_or_default();
        let inner = Inner { address, gateway, gateway_mac: host_mac, mtu: wanted.mtu };
        let mac = visit_inner(&netns, inner).await?;
        let ifindex = link.header.index;
        self.set_up_host_side(&name, ifindex, address, mac, wanted.mtu).await?;
        Ok(Attached { netns, link: name, ifindex, host_mac, mac })
    }

    /// Removes an allocation's network, or what there is of it.
    pub async fn detach(&self, alloc_id: AllocId) -> Result<(), Error> {
        self.remove_link(&self.link_name(alloc_id)).await?;
        ns::remove(&self.netns_path(alloc_id))
    }

    /// Removes what a listing found.
    pub async fn remove_leftover(&self, leftover: &Leftover) -> Result<(), Error> {
        if let Some((name, _)) = &leftover.link {
            self.remove_link(name).await?;
        }
        leftover.netns.as_deref().map_or(Ok(()), ns::remove)
    }

    /// All that exists of this node's allocations, by short id.
    pub async fn list(&self) -> Result<BTreeMap<String, Leftover>, Error> {
        let mut found: BTreeMap<String, Leftover> = BTreeMap::new();
        for (alloc, path) in self.namespaces() {
            let leftover = Leftover { alloc: alloc.clone(), netns: Some(path), ..Leftover::default() };
            found.insert(alloc, leftover);
        }
        let addresses = self.host_routes().await?;
        for (alloc, owner, name, ifindex) in self.links().await? {
            let leftover = found.entry(alloc.clone()).or_insert_with(|| Leftover { alloc, ..Leftover::default() });
            leftover.owner = owner;
            leftover.address = addresses.get(&ifindex).copied();
            leftover.link = Some((name, ifindex));
        }
        Ok(found)
    }

    /// Runs a closure on a thread inside an allocation's namespace, for what rtnetlink cannot do.
    pub async fn inside<T: Send + 'static>(
        &self,
        alloc_id: AllocId,
        work: impl FnOnce() -> T + Send + 'static,
    ) -> Result<T, Error> {
        let path = self.netns_path(alloc_id);
        blocking(move || ns::visit(&path, move |_| work())).await
    }

    async fn make_veth(&self, name: &str, netns: &Path, mtu: u32) -> Result<LinkMessage, Error> {
        if let Some(link) = self.find_link(name).await? {
            return Ok(link);
        }
        let failed = |source| Error::EnterNamespace { path: netns.to_owned(), source };
        let file = File::open(netns).map_err(failed)?;
        let peer = LinkMessageBuilder::<LinkUnspec>::new().name(INNER_LINK).mtu(mtu).setns_by_fd(file.as_raw_fd());
        let peer = InfoData::Veth(InfoVeth::Peer(peer.build()));
        let veth = LinkVeth::new(name, INNER_LINK).set_info_data(peer).mtu(mtu).build();
        let made = self.handle.link().add(veth).execute().await;
        unless_exists(made).map_err(Error::netlink(format!("make the veth {name}")))?;
        self.find_link(name).await?.ok_or_else(|| Error::NoInterface(name.to_owned()))
    }

    /// Names are short and may be another allocation's; the alias is the whole id.
    async fn claim(&self, name: &str, link: &LinkMessage, alloc_id: AllocId) -> Result<(), Error> {
        let id = alloc_id.to_string();
        match link_alias(link) {
            Some(holder) if holder == id => Ok(()),
            Some(holder) => Err(Error::Occupied { link: name.to_owned(), holder: holder.to_owned() }),
            None => {
                let alias = LinkUnspec::new_with_index(link.header.index);
                let alias = alias.append_extra_attribute(LinkAttribute::IfAlias(id)).build();
                self.handle.link().set(alias).execute().await.map_err(Error::netlink(format!("mark {name}")))
            }
        }
    }

    async fn set_up_host_side(
        &self,
        name: &str,
        ifindex: u32,
        address: Ipv4Addr,
        mac: Mac,
        mtu: u32,
    ) -> Result<(), Error> {
        crate::node::quiet_ipv6(name);
        crate::node::forward_from(name)?;
        let up = LinkUnspec::new_with_index(ifindex).mtu(mtu).up().build();
        self.handle.link().set(up).execute().await.map_err(Error::netlink(format!("set {name} up")))?;
        let route = RouteMessageBuilder::<Ipv4Addr>::new()
            .destination_prefix(address, 32)
            .output_interface(ifindex)
            .scope(RouteScope::Link)
            .build();
        let routed = self.handle.route().add(route).replace().execute().await;
        routed.map_err(Error::netlink(format!("route {address} to {name}")))?;
        set_neighbour(&self.handle, ifindex, address, mac).await
    }

    pub(crate) async fn find_link(&self, name: &str) -> Result<Option<LinkMessage>, Error> {
        find_link(&self.handle, name).await
    }

    pub(crate) async fn remove_link(&self, name: &str) -> Result<(), Error> {
        let Some(link) = self.find_link(name).await? else { return Ok(()) };
        match self.handle.link().del(link.header.index).execute().await {
            Err(error) if !is_errno(&error, Errno::ENODEV) => Err(Error::netlink(format!("remove {name}"))(error)),
            _ => Ok(()),
        }
    }

    fn namespaces(&self) -> Vec<(String, PathBuf)> {
        let prefix = self.netns_prefix();
        let entries = std::fs::read_dir(&self.netns_dir).into_iter().flatten().flatten();
        let ours = entries.filter_map(|entry| {
            let name = entry.file_name();
            let alloc = name.to_str()?.strip_prefix(&prefix)?.to_owned();
            Some((alloc, entry.path()))
        });
        ours.collect()
    }

    async fn links(&self) -> Result<Vec<(String, Option<AllocId>, String, u32)>, Error> {
        let prefix = self.link_prefix();
        let links: Vec<LinkMessage> =
            self.handle.link().get().execute().try_collect().await.map_err(Error::netlink("list the interfaces"))?;
        let ours = links.iter().filter_map(|link| {
            let name = link_name(link)?;
            let alloc = name.strip_prefix(&prefix).filter(|alloc| alloc.len() == 8)?;
            let owner = link_alias(link).and_then(|alias| alias.parse().ok());
            Some((alloc.to_owned(), owner, name.to_owned(), link.header.index))
        });
        Ok(ours.collect())
    }

    /// The address whose host route leads to each interface.
    async fn host_routes(&self) -> Result<BTreeMap<u32, IpAddr>, Error> {
        let all = self.handle.route().get(RouteMessageBuilder::<Ipv4Addr>::new().build()).execute();
        let routes: Vec<_> = all.try_collect().await.map_err(Error::netlink("list the routes"))?;
        let hosts = routes.iter().filter(|route| route.header.destination_prefix_length == 32);
        Ok(hosts
            .filter_map(|route| Some((output_interface(&route.attributes)?, destination(&route.attributes)?)))
            .collect())
    }
}

/// What has to be true inside the allocation's namespace.
struct Inner {
    address: Ipv4Addr,
    gateway: Ipv4Addr,
    gateway_mac: Mac,
    mtu: u32,
}

async fn visit_inner(netns: &Path, inner: Inner) -> Result<Mac, Error> {
    let netns = netns.to_owned();
    blocking(move || ns::visit(&netns, move |runtime| runtime.block_on(inner.set_up()))?).await
}

impl Inner {
    async fn set_up(self) -> Result<Mac, Error> {
        let handle = open_handle()?;
        crate::node::set_loopback_up(&handle).await?;
        crate::node::quiet_ipv6(INNER_LINK);
        let link = find_link(&handle, INNER_LINK).await?.ok_or_else(|| Error::NoInterface(INNER_LINK.to_owned()))?;
        let index = link.header.index;
        let up = LinkUnspec::new_with_index(index).mtu(self.mtu).up().build();
        handle.link().set(up).execute().await.map_err(Error::netlink("set eth0 up"))?;
        let added = handle.address().add(index, IpAddr::V4(self.address), 32).execute().await;
        unless_exists(added).map_err(Error::netlink(format!("give eth0 the address {}", self.address)))?;
        self.add_default_route(&handle, index).await?;
        set_neighbour(&handle, index, self.gateway, self.gateway_mac).await?;
        link_mac(&link).ok_or_else(|| Error::NotEthernet(INNER_LINK.to_owned()))
    }

    async fn add_default_route(&self, handle: &Handle, index: u32) -> Result<(), Error> {
        let route = RouteMessageBuilder::<Ipv4Addr>::new()
            .destination_prefix(Ipv4Addr::UNSPECIFIED, 0)
            .gateway(self.gateway)
            .output_interface(index)
            .onlink()
            .build();
        let added = handle.route().add(route).replace().execute().await;
        added.map_err(Error::netlink(format!("set the default route to {}", self.gateway)))
    }
}

async fn set_neighbour(handle: &Handle, ifindex: u32, address: Ipv4Addr, mac: Mac) -> Result<(), Error> {
    let neighbour = handle.neighbours().add(ifindex, IpAddr::V4(address)).link_layer_address(&mac).replace();
    neighbour.execute().await.map_err(Error::netlink(format!("set the neighbour {address}")))
}

async fn find_link(handle: &Handle, name: &str) -> Result<Option<LinkMessage>, Error> {
    match handle.link().get().match_name(name.to_owned()).execute().try_next().await {
        Ok(link) => Ok(link),
        Err(error) if is_errno(&error, Errno::ENODEV) => Ok(None),
        Err(error) => Err(Error::netlink(format!("look for {name}"))(error)),
    }
}

/// Off the runtime's threads: a visit to a namespace waits for a thread.
async fn blocking<T: Send + 'static>(work: impl FnOnce() -> Result<T, Error> + Send + 'static) -> Result<T, Error> {
    match tokio::task::spawn_blocking(work).await {
        Ok(done) => done,
        Err(error) => Err(Error::EnterNamespace { path: PathBuf::new(), source: std::io::Error::other(error) }),
    }
}

pub(crate) fn v4(address: IpAddr) -> Result<Ipv4Addr, Error> {
    match address {
        IpAddr::V4(address) => Ok(address),
        IpAddr::V6(_) => Err(Error::Ipv6(address)),
    }
}

pub(crate) fn output_interface(attributes: &[RouteAttribute]) -> Option<u32> {
    attributes.iter().find_map(|attribute| match attribute {
        RouteAttribute::Oif(index) => Some(*index),
        _ => None,
    })
}

fn destination(attributes: &[RouteAttribute]) -> Option<IpAddr> {
    attributes.iter().find_map(|attribute| match attribute {
        RouteAttribute::Destination(address) => crate::neighbours::route_address(address),
        _ => None,
    })
}
