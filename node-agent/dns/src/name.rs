//! What a name inside the zone means.

use crate::zone::Zone;
use hickory_proto::rr::Name;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

/// A name's meaning, whether or not there is such a thing.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Target {
    Apex,
    /// `ns`: the zone's own server.
    Server,
    /// `service`, `node`, `addr`: there are names below, and nothing here.
    Branch,
    Vip(String),
    Service {
        name: String,
        tag: Option<String>,
        datacenter: Option<String>,
    },
    Node {
        name: String,
        datacenter: Option<String>,
    },
    Address(IpAddr),
    Unknown,
}

const BRANCHES: [&str; 3] = ["service", "node", "addr"];

pub(crate) fn parse(name: &Name, origin: &Name, zone: &Zone) -> Target {
    let depth = usize::from(name.num_labels().saturating_sub(origin.num_labels()));
    let labels: Option<Vec<String>> =
        name.iter().take(depth).map(|label| std::str::from_utf8(label).ok().map(crate::zone::lower)).collect();
    let Some(labels) = labels else { return Target::Unknown };
    let labels: Vec<&str> = labels.iter().map(String::as_str).collect();
    parse_labels(&labels, zone)
}

fn parse_labels(labels: &[&str], zone: &Zone) -> Target {
    match labels {
        [] => Target::Apex,
        ["ns"] if !zone.services.contains_key("ns") => Target::Server,
        [one] if BRANCHES.contains(one) => Target::Branch,
        [one] => Target::Vip((*one).to_owned()),
        [.., branch] if BRANCHES.contains(branch) => in_branch(&labels[..labels.len() - 1], branch, None),
        [.., branch, datacenter] if BRANCHES.contains(branch) => {
            below_datacenter(&labels[..labels.len() - 2], branch, datacenter, zone)
        }
        [first, second] if first.starts_with('_') => rfc2782(&[first, second], None),
        [first, second, datacenter] if first.starts_with('_') && zone.datacenters.contains(*datacenter) => {
            rfc2782(&[first, second], Some((*datacenter).to_owned()))
        }
        _ => Target::Unknown,
    }
}

fn below_datacenter(rest: &[&str], branch: &str, datacenter: &str, zone: &Zone) -> Target {
    match zone.datacenters.contains(datacenter) {
        true => in_branch(rest, branch, Some(datacenter.to_owned())),
        false => Target::Unknown,
    }
}

fn in_branch(rest: &[&str], branch: &str, datacenter: Option<String>) -> Target {
    match (branch, rest) {
        (_, []) => Target::Branch,
        ("node", name) => Target::Node { name: name.join("."), datacenter },
        ("addr", [hex]) => parse_hex(hex).map_or(Target::Unknown, Target::Address),
        ("addr", _) => Target::Unknown,
        (_, labels) if labels.iter().any(|label| label.starts_with('_')) => rfc2782(labels, datacenter),
        (_, [tag @ .., name]) => {
            let tag = (!tag.is_empty()).then(|| tag.join("."));
            Target::Service { name: (*name).to_owned(), tag, datacenter }
        }
    }
}

/// `_service._tag`, where the tags `_tcp` and `_udp` stand for any (RFC 2782).
fn rfc2782(labels: &[&str], datacenter: Option<String>) -> Target {
    let [service, tag] = labels else { return Target::Unknown };
    let (Some(name), Some(tag)) = (service.strip_prefix('_'), tag.strip_prefix('_')) else { return Target::Unknown };
    let tag = (!matches!(tag, "tcp" | "udp")).then(|| tag.to_owned());
    Target::Service { name: name.to_owned(), tag, datacenter }
}

/// Eight hex digits are an IPv4 address, 32 an IPv6 one.
fn parse_hex(hex: &str) -> Option<IpAddr> {
    if !hex.bytes().all(|byte| byte.is_ascii_hexdigit()) {
        return None;
    }
    match hex.len() {
        8 => u32::from_str_radix(hex, 16).ok().map(|bits| IpAddr::V4(Ipv4Addr::from(bits))),
        32 => u128::from_str_radix(hex, 16).ok().map(|bits| IpAddr::V6(Ipv6Addr::from(bits))),
        _ => None,
    }
}

pub(crate) fn hex(address: IpAddr) -> String {
    match address {
        IpAddr::V4(address) => format!("{:08x}", u32::from(address)),
        IpAddr::V6(address) => format!("{:032x}", u128::from(address)),
    }
}
