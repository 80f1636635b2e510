//! Next hops and their link-layer addresses. The programs never ask the network; the agent has the kernel resolve and keep
//! what they need, and hears of every change.

use crate::attach::{output_interface, v4};
use crate::error::{Error, is_errno};
use crate::{Mac, Network};
use futures::channel::mpsc::UnboundedReceiver;
use futures::{StreamExt, TryStreamExt};
use nix::errno::Errno;
use rtnetlink::packet_core::{NetlinkMessage, NetlinkPayload};
use rtnetlink::packet_route::neighbour::{
    NeighbourAddress, NeighbourAttribute, NeighbourExtFlags, NeighbourFlags, NeighbourMessage, NeighbourState,
};
use rtnetlink::packet_route::route::{RouteAddress, RouteAttribute, RouteMessage};
use rtnetlink::packet_route::{AddressFamily, RouteNetlinkMessage};
use rtnetlink::{MulticastGroup, RouteMessageBuilder};
use std::collections::BTreeMap;
use std::net::{IpAddr, Ipv4Addr};

/// Where a packet to an address goes next.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct NextHop {
    pub ifindex: u32,
    /// A gateway, or the address itself on a shared link.
    pub address: IpAddr,
}

/// Hears of changed neighbours.
#[derive(Debug)]
pub struct NeighbourWatch {
    messages: UnboundedReceiver<(NetlinkMessage<RouteNetlinkMessage>, rtnetlink::sys::SocketAddr)>,
}

impl Network {
    /// Asks the kernel's routes.
    pub async fn next_hop(&self, address: IpAddr) -> Result<NextHop, Error> {
        let query = RouteMessageBuilder::<Ipv4Addr>::new().destination_prefix(v4(address)?, 32).build();
        let found = self.handle.route().get(query).execute().try_next().await;
        let route = found.map_err(Error::netlink(format!("look up the route to {address}")))?;
        route.and_then(|route| next_hop_of(&route, address)).ok_or(Error::NoRoute(address))
    }

    /// Has the kernel resolve the neighbour now and keep it fresh (5.16 and later; before, once).
    pub async fn resolve(&self, hop: NextHop) -> Result<(), Error> {
        let mut managed = self.handle.neighbours().add(hop.ifindex, hop.address).state(NeighbourState::None).replace();
        managed.message_mut().attributes.push(NeighbourAttribute::ExtFlags(NeighbourExtFlags::Managed));
        match managed.execute().await {
            Ok(()) => Ok(()),
            Err(_) => self.resolve_once(hop).await,
        }
    }

    /// Has the kernel resolve the neighbour as if it had a packet for it, and forget it as it forgets any other.
    pub async fn resolve_once(&self, hop: NextHop) -> Result<(), Error> {
        let add = self.handle.neighbours().add(hop.ifindex, hop.address).state(NeighbourState::None).replace();
        let asked = add.flags(NeighbourFlags::Use).execute().await;
        asked.map_err(Error::netlink(format!("resolve the neighbour {}", hop.address)))
    }

    /// Has the kernel forget the neighbour until something needs it again. One that is gone is fine.
    pub async fn release(&self, hop: NextHop) -> Result<(), Error> {
        let mut message = NeighbourMessage::default();
        message.header.ifindex = hop.ifindex;
        message.header.family = AddressFamily::Inet;
        message.attributes.push(NeighbourAttribute::Destination(NeighbourAddress::Inet(v4(hop.address)?)));
        match self.handle.neighbours().del(message).execute().await {
            Err(error) if is_errno(&error, Errno::ENOENT) || is_errno(&error, Errno::ENODEV) => Ok(()),
            other => other.map_err(Error::netlink(format!("forget the neighbour {}", hop.address))),
        }
    }

    /// Every neighbour whose link-layer address is known.
    pub async fn neighbours(&self) -> Result<BTreeMap<NextHop, Mac>, Error> {
        let all = self.handle.neighbours().get().set_address_family(AddressFamily::Inet).execute();
        let all: Vec<_> = all.try_collect().await.map_err(Error::netlink("list the neighbours"))?;
        Ok(all.iter().filter_map(resolved).collect())
    }

    /// From now on. Must be called in the node's namespace.
    pub fn watch_neighbours(&self) -> Result<NeighbourWatch, Error> {
        let groups = [MulticastGroup::Neigh];
        let (connection, _, messages) = rtnetlink::new_multicast_connection(&groups).map_err(Error::Open)?;
        tokio::spawn(connection);
        Ok(NeighbourWatch { messages })
    }
}

impl NeighbourWatch {
    /// Waits for a change of any neighbour, and takes all that are there as one; `false` when the kernel will tell no more.
    pub async fn changed(&mut self) -> bool {
        while let Some((message, _)) = self.messages.next().await {
            if is_change(&message.payload) {
                while self.messages.try_recv().is_ok() {}
                return true;
            }
        }
        false
    }
}

/// What the kernel could not tell for want of room may have been one.
fn is_change(payload: &NetlinkPayload<RouteNetlinkMessage>) -> bool {
    use RouteNetlinkMessage::{DelNeighbour, NewNeighbour};
    matches!(payload, NetlinkPayload::InnerMessage(NewNeighbour(_) | DelNeighbour(_)) | NetlinkPayload::Overrun(_))
}

fn next_hop_of(route: &RouteMessage, address: IpAddr) -> Option<NextHop> {
    let ifindex = output_interface(&route.attributes)?;
    let gateway = route.attributes.iter().find_map(|attribute| match attribute {
        RouteAttribute::Gateway(gateway) => route_address(gateway),
        _ => None,
    });
    Some(NextHop { ifindex, address: gateway.unwrap_or(address) })
}

pub(crate) fn route_address(address: &RouteAddress) -> Option<IpAddr> {
    match address {
        RouteAddress::Inet(address) => Some(IpAddr::V4(*address)),
        RouteAddress::Inet6(address) => Some(IpAddr::V6(*address)),
        _ => None,
    }
}

/// States in which the kernel itself would send to the address; a failed or unfinished one is none.
fn resolved(message: &NeighbourMessage) -> Option<(NextHop, Mac)> {
    use NeighbourState::{Delay, Permanent, Probe, Reachable, Stale};
    if !matches!(message.header.state, Reachable | Stale | Delay | Probe | Permanent) {
        return None;
    }
    let address = message.attributes.iter().find_map(|attribute| match attribute {
        NeighbourAttribute::Destination(NeighbourAddress::Inet(address)) => Some(IpAddr::V4(*address)),
        _ => None,
    });
    let mac = message.attributes.iter().find_map(|attribute| match attribute {
        NeighbourAttribute::LinkLayerAddress(mac) => Mac::try_from(mac.as_slice()).ok(),
        _ => None,
    });
    Some((NextHop { ifindex: message.header.ifindex, address: address? }, mac?))
}
