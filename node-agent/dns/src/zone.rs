//! The zone's data: what of the pushed routing names can lead to.

use hickory_proto::rr::Name;
use model::{Health, Instance, InstanceNetwork, RoutingSnapshot};
use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;
use thiserror::Error;

/// One generation of the zone. Every key is in lower case.
#[derive(Clone, Debug)]
pub struct Zone {
    /// The domain and its aliases.
    pub(crate) origins: Vec<Name>,
    pub(crate) datacenters: BTreeSet<String>,
    pub(crate) serial: u32,
    /// Where this zone is served: the address of `ns`.
    pub(crate) server: Option<IpAddr>,
    pub(crate) services: BTreeMap<String, ServiceEntry>,
    pub(crate) nodes: BTreeMap<String, NodeEntry>,
}

#[derive(Clone, Debug)]
pub(crate) struct ServiceEntry {
    pub vip: IpAddr,
    pub has_vip_port: bool,
    pub instances: Vec<InstanceEntry>,
}

/// An instance that may be named: neither critical nor to stop.
#[derive(Clone, Debug)]
pub(crate) struct InstanceEntry {
    pub address: IpAddr,
    pub port: u16,
    pub weight: u16,
    pub tags: BTreeSet<String>,
    pub node_name: String,
    pub datacenter: String,
    pub network: InstanceNetwork,
}

#[derive(Clone, Debug)]
pub(crate) struct NodeEntry {
    pub address: IpAddr,
    pub datacenter: String,
}

#[derive(Clone, Debug, PartialEq, Eq, Error)]
pub enum ZoneError {
    #[error("`{domain}` is no domain name; use letters, digits and hyphens, such as `cluster`")]
    Domain { domain: String },
}

impl Zone {
    pub fn from_routing(routing: &RoutingSnapshot, domain: &str, datacenter: &str) -> Result<Self, ZoneError> {
        let nodes = routing
            .nodes
            .iter()
            .map(|node| (lower(&node.name), NodeEntry { address: node.address, datacenter: lower(&node.datacenter) }));
        let services = routing.services.iter().map(|service| {
            let named = service.instances.iter().filter(|instance| is_named(instance));
            let entry = ServiceEntry {
                vip: service.vip,
                has_vip_port: service.instances.iter().any(|instance| instance.vip_port.is_some()),
                instances: named.map(InstanceEntry::of).collect(),
            };
            (lower(&service.name), entry)
        });
        Ok(Self {
            origins: vec![parse_domain(domain)?],
            datacenters: routing.nodes.iter().map(|node| lower(&node.datacenter)).chain([lower(datacenter)]).collect(),
            serial: routing.generation.0 as u32,
            server: None,
            services: services.collect(),
            nodes: nodes.collect(),
        })
    }

    /// Answers for another domain as well, with names in the domain that was asked.
    pub fn with_alias(mut self, domain: &str) -> Result<Self, ZoneError> {
        self.origins.push(parse_domain(domain)?);
        Ok(self)
    }

    /// Where clients reach this server: the address of the zone's name server.
    pub fn with_server(mut self, address: IpAddr) -> Self {
        self.server = Some(address);
        self
    }

    /// The longest of the zone's domains that the name lies in.
    pub(crate) fn origin_of(&self, name: &Name) -> Option<&Name> {
        let covering = self.origins.iter().filter(|origin| origin.zone_of(name));
        covering.max_by_key(|origin| origin.num_labels())
    }
}

impl InstanceEntry {
    fn of(instance: &Instance) -> Self {
        Self {
            address: instance.address,
            port: instance.port,
            weight: instance.weight,
            tags: instance.tags.iter().map(|tag| lower(tag)).collect(),
            node_name: lower(&instance.node_name),
            datacenter: lower(&instance.datacenter),
            network: instance.network,
        }
    }
}

/// A draining instance finishes what it has; a resolver must not send it more.
fn is_named(instance: &Instance) -> bool {
    instance.health != Health::Critical && !instance.draining
}

fn parse_domain(domain: &str) -> Result<Name, ZoneError> {
    let wrong = || ZoneError::Domain { domain: domain.chars().take(80).collect() };
    let mut name = Name::from_ascii(domain.trim_end_matches('.')).map_err(|_| wrong())?;
    name.set_fqdn(true);
    if name.is_root() { Err(wrong()) } else { Ok(name.to_lowercase()) }
}

pub(crate) fn lower(text: &str) -> String {
    text.to_ascii_lowercase()
}
