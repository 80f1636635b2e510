//! What can go wrong, each with the operation that failed.

use std::io;
use std::net::IpAddr;
use std::path::PathBuf;
use thiserror::Error;

#[derive(Debug, Error)]
pub enum Error {
    #[error("cannot open rtnetlink; the agent needs CAP_NET_ADMIN")]
    Open(#[source] io::Error),
    #[error("cannot {action}")]
    Netlink {
        action: String,
        #[source]
        source: rtnetlink::Error,
    },
    #[error("cannot make the network namespace {path}; the agent needs CAP_SYS_ADMIN")]
    MakeNamespace {
        path: PathBuf,
        #[source]
        source: io::Error,
    },
    #[error("cannot enter the network namespace {path}")]
    EnterNamespace {
        path: PathBuf,
        #[source]
        source: io::Error,
    },
    #[error("cannot remove the network namespace {path}")]
    RemoveNamespace {
        path: PathBuf,
        #[source]
        source: io::Error,
    },
    #[error("cannot {action}; the kernel needs nf_tables with `nft_masq` and `nft_ct`")]
    Firewall {
        action: &'static str,
        #[source]
        source: io::Error,
    },
    #[error("cannot set the kernel parameter {path}")]
    Sysctl {
        path: String,
        #[source]
        source: io::Error,
    },
    #[error("there is no interface {0}; name the uplink with --uplink")]
    NoInterface(String),
    #[error("interface {0} has no Ethernet address, which tunnels need; name another uplink with --uplink")]
    NotEthernet(String),
    #[error(
        "{link} belongs to allocation {holder}, whose id begins alike; stop one of the two, and the other gets a new id"
    )]
    Occupied { link: String, holder: String },
    #[error("no route to {0}")]
    NoRoute(IpAddr),
    #[error("{0} is IPv6, which is not built yet")]
    Ipv6(IpAddr),
}

impl Error {
    pub(crate) fn netlink(action: impl Into<String>) -> impl FnOnce(rtnetlink::Error) -> Self {
        let action = action.into();
        move |source| Self::Netlink { action, source }
    }

    pub(crate) fn firewall(action: &'static str) -> impl FnOnce(io::Error) -> Self {
        move |source| Self::Firewall { action, source }
    }
}

/// Whether the kernel answered with this error number.
pub(crate) fn is_errno(error: &rtnetlink::Error, errno: nix::errno::Errno) -> bool {
    matches!(error, rtnetlink::Error::NetlinkError(message) if message.raw_code() == -(errno as i32))
}

/// What is there already is what was wanted.
pub(crate) fn unless_exists(result: Result<(), rtnetlink::Error>) -> Result<(), rtnetlink::Error> {
    match result {
        Err(error) if is_errno(&error, nix::errno::Errno::EEXIST) => Ok(()),
        other => other,
    }
}
