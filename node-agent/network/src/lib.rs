//! The node's network as netlink sees it: an allocation's namespace, veth, address and neighbours, the node's own mesh
//! address, sysctls and firewall rules, and the link-layer addresses of next hops.
//!
//! ```text
//!  node's namespace                                   allocation's namespace
//!    lo: mesh address /32                               eth0: address /32
//!    mc<node><alloc> ──────────── veth ──────────────── default via mesh address, onlink
//!    address/32 dev mc…, neighbour permanent            neighbour of the mesh address permanent
//! ```
//!
//! Nothing is remembered here: what exists is read from the kernel, so a restarted agent adopts what it finds.

mod attach;
mod error;
mod firewall;
mod mesh_link;
mod neighbours;
mod node;
mod ns;
#[cfg(test)]
mod tests;

pub use attach::{Attached, Attachment, Leftover};
pub use error::Error;
pub use mesh_link::MeshLink;
pub use neighbours::{NeighbourWatch, NextHop};
pub use node::Uplink;

use error::unless_exists;
use model::{AllocId, NodeId};
use rtnetlink::Handle;
use rtnetlink::packet_route::link::{LinkAttribute, LinkMessage};
use std::path::PathBuf;

/// A link-layer address.
pub type Mac = [u8; 6];

/// Where named namespaces live, as `ip netns` expects them.
pub const NETNS_DIR: &str = "/run/netns";

/// The network of one node, spoken to from a Tokio runtime. Everything it makes carries the node's mark in its name, so
/// that several nodes can share a kernel.
#[derive(Clone, Debug)]
pub struct Network {
    handle: Handle,
    netns_dir: PathBuf,
    node: String,
}

impl Network {
    /// Opens rtnetlink in the calling thread's network namespace.
    pub fn open(node_id: NodeId) -> Result<Self, Error> {
        Ok(Self { handle: open_handle()?, netns_dir: NETNS_DIR.into(), node: node_id.short() })
    }

    /// The file that stands for an allocation's namespace.
    pub fn netns_path(&self, alloc_id: AllocId) -> PathBuf {
        self.netns_dir.join(format!("{}{}", self.netns_prefix(), alloc_id.short()))
    }

    fn netns_prefix(&self) -> String {
        format!("meshctl-{}-", self.node)
    }

    /// The host side of an allocation's veth: 14 of the 15 characters that a name may have.
    fn link_name(&self, alloc_id: AllocId) -> String {
        format!("{}{}", self.link_prefix(), alloc_id.short())
    }

    fn link_prefix(&self) -> String {
        format!("mc{}", &self.node[..4])
    }
}

/// A connection in the calling thread's network namespace, driven by the current runtime.
fn open_handle() -> Result<Handle, Error> {
    let (connection, handle, _) = rtnetlink::new_connection().map_err(Error::Open)?;
    tokio::spawn(connection);
    Ok(handle)
}

fn link_mac(link: &LinkMessage) -> Option<Mac> {
    link.attributes.iter().find_map(|attribute| match attribute {
        LinkAttribute::Address(address) => address.as_slice().try_into().ok(),
        _ => None,
    })
}

fn link_name(link: &LinkMessage) -> Option<&str> {
    link.attributes.iter().find_map(|attribute| match attribute {
        LinkAttribute::IfName(name) => Some(name.as_str()),
        _ => None,
    })
}

fn link_alias(link: &LinkMessage) -> Option<&str> {
    link.attributes.iter().find_map(|attribute| match attribute {
        LinkAttribute::IfAlias(alias) => Some(alias.as_str()).filter(|alias| !alias.is_empty()),
        _ => None,
    })
}

fn link_mtu(link: &LinkMessage) -> Option<u32> {
    link.attributes.iter().find_map(|attribute| match attribute {
        LinkAttribute::Mtu(mtu) => Some(*mtu),
        _ => None,
    })
}
