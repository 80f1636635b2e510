//! What a server is told at its start, and the checks that need nothing but the values.

use ipnet::IpNet;
use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::path::PathBuf;
use std::time::Duration;

pub const RPC_PORT: u16 = 4647;
pub const HTTP_PORT: u16 = 4646;
/// Certificates are dated in whole seconds, and half of their life must be enough to renew them.
const CERTIFICATE_VALIDITY_MIN: Duration = Duration::from_secs(3);

#[derive(Clone)]
pub struct ServerConfig {
    pub data_dir: PathBuf,
    /// 1 to 63 letters, digits, `-`, `_`, `.`; unique among servers.
    pub name: String,
    pub region: String,
    pub datacenter: String,
    pub rpc_bind: SocketAddr,
    /// Where other machines reach `rpc_bind`; needed when that is a wildcard address.
    pub rpc_advertise: Option<SocketAddr>,
    /// Loopback only. `None` serves no HTTP: `dev` merges [`crate::Server::router`] into its own listener.
    pub http_bind: Option<SocketAddr>,
    pub mode: Mode,
    /// What servers share that form a cluster by themselves; with it, a running server lets others of them join.
    pub cluster_secret: Option<identity::ClusterSecret>,
    /// How long the certificates are good for that this server signs.
    pub certificate_validity: Duration,
    pub timing: Timing,
}

/// How the server finds its cluster.
#[derive(Clone)]
pub enum Mode {
    /// Makes a new cluster with this server as its first voter.
    Init { alloc_range: IpNet, vip_range: IpNet },
    /// Joins through any of the servers.
    Join { servers: Vec<SocketAddr>, token: String },
    /// Forms a cluster with others, or joins the one that they have formed; goes on with what the data directory holds.
    Form { expect: u32, servers: Vec<SocketAddr>, alloc_range: IpNet, vip_range: IpNet },
    /// Goes on with what the data directory holds.
    Resume,
}

#[derive(Clone, Copy, Debug)]
pub struct Timing {
    /// How often agents send a heartbeat; a session silent for four of them is lost.
    pub heartbeat_interval: Duration,
    /// From the loss of a node's session (or an election) until it is given up, if no peer can say whether it answers.
    pub node_down_after: Duration,
    /// More nodes lost at once than this share is a storm.
    pub storm_share: f64,
    /// For how long a storm holds the replacement of what was lost.
    pub storm_hold: Duration,
}

#[derive(Debug, thiserror::Error)]
pub enum ConfigError {
    #[error("name: `{0}` is not usable; choose 1 to 63 letters, digits, `-`, `_` or `.`")]
    Name(String),
    #[error(
        "http_bind: {0} is not a loopback address; TLS for HTTP is not built yet, so HTTP listens on 127.0.0.1 only"
    )]
    HttpBind(SocketAddr),
    #[error(
        "rpc_advertise: rpc_bind is {0}, which no other machine can dial; set rpc_advertise to this machine's address"
    )]
    Advertise(SocketAddr),
    #[error("certificate_validity: {0:?} is too short to renew in time; choose at least 3s")]
    CertificateValidity(Duration),
    #[error("{key}: {range} is not an IPv4 range; IPv6 is not built yet")]
    Range { key: &'static str, range: IpNet },
    #[error("bootstrap_expect: say how many servers are to form the cluster; 3 or 5 survive the loss of some")]
    Expect,
    #[error("servers: the list is empty; name at least one server's RPC address, as host:{RPC_PORT}")]
    NoServers,
    #[error("token: {0}")]
    Token(#[from] identity::TokenError),
    #[error("token: it is for agents; make one with `meshctl token create --role server`")]
    TokenRole,
}

impl ServerConfig {
    /// Defaults for everything but place and mode.
    pub fn new(data_dir: impl Into<PathBuf>, name: impl Into<String>, mode: Mode) -> Self {
        Self {
            data_dir: data_dir.into(),
            name: name.into(),
            region: "global".to_owned(),
            datacenter: "dc1".to_owned(),
            rpc_bind: SocketAddr::new(IpAddr::V4(Ipv4Addr::UNSPECIFIED), RPC_PORT),
            rpc_advertise: None,
            http_bind: Some(SocketAddr::new(IpAddr::V4(Ipv4Addr::LOCALHOST), HTTP_PORT)),
            mode,
            cluster_secret: None,
            certificate_validity: identity::VALIDITY_DEFAULT,
            timing: Timing::default(),
        }
    }

    pub(crate) fn check(&self) -> Result<(), ConfigError> {
        check_name(&self.name)?;
        if let Some(bind) = self.http_bind.filter(|bind| !bind.ip().is_loopback()) {
            return Err(ConfigError::HttpBind(bind));
        }
        if self.certificate_validity < CERTIFICATE_VALIDITY_MIN {
            return Err(ConfigError::CertificateValidity(self.certificate_validity));
        }
        let dialled = self.rpc_advertise.unwrap_or(self.rpc_bind);
        if dialled.ip().is_unspecified() {
            return Err(ConfigError::Advertise(dialled));
        }
        self.mode.check()
    }
}

impl Mode {
    /// The default address ranges: VIPs from 10.43.0.0/16, allocations from 10.64.0.0/11.
    pub fn init() -> Self {
        let range = |text: &str| text.parse().expect("a constant range");
        Mode::Init { alloc_range: range("10.64.0.0/11"), vip_range: range("10.43.0.0/16") }
    }

    fn check(&self) -> Result<(), ConfigError> {
        match self {
            Mode::Init { alloc_range, vip_range } => {
                check_range("alloc_range", *alloc_range)?;
                check_range("vip_range", *vip_range)
            }
            Mode::Join { servers, .. } if servers.is_empty() => Err(ConfigError::NoServers),
            Mode::Join { token, .. } => match identity::Token::parse(token)?.role {
                model::Role::Server => Ok(()),
                model::Role::Agent => Err(ConfigError::TokenRole),
            },
            Mode::Form { expect: 0, .. } => Err(ConfigError::Expect),
            Mode::Form { alloc_range, vip_range, .. } => {
                check_range("alloc_range", *alloc_range)?;
                check_range("vip_range", *vip_range)
            }
            Mode::Resume => Ok(()),
        }
    }
}

impl Default for Timing {
    fn default() -> Self {
        Self {
            heartbeat_interval: Duration::from_secs(2),
            node_down_after: Duration::from_secs(30),
            storm_share: 0.35,
            storm_hold: Duration::from_secs(60),
        }
    }
}

fn check_name(name: &str) -> Result<(), ConfigError> {
    match is_name(name) {
        true => Ok(()),
        false => Err(ConfigError::Name(name.to_owned())),
    }
}

/// Whether a server or node may be called so.
pub(crate) fn is_name(name: &str) -> bool {
    let usable = |byte: u8| byte.is_ascii_alphanumeric() || matches!(byte, b'-' | b'_' | b'.');
    (1..=63).contains(&name.len()) && name.bytes().all(usable)
}

fn check_range(key: &'static str, range: IpNet) -> Result<(), ConfigError> {
    match range {
        IpNet::V4(_) => Ok(()),
        IpNet::V6(_) => Err(ConfigError::Range { key, range }),
    }
}
