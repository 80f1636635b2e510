//! What a node's data path does, as JSON: `GET /v1/mesh/routes` of the agent and `meshctl route -json`.

use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;
use std::net::{IpAddr, SocketAddr};

#[derive(Clone, Debug, PartialEq, Default, Serialize, Deserialize)]
pub struct RouteReport {
    pub node: String,
    /// Of the routing snapshot that the kernel's maps hold.
    pub generation: u64,
    pub services: Vec<RouteService>,
    /// By reason, since the maps were made.
    pub drops: BTreeMap<String, u64>,
    /// What became of the packets that each reason was counted for: `passed`, `dropped`, `answered`, `noted`.
    #[serde(default)]
    pub drop_kinds: BTreeMap<String, String>,
    /// What is wrong with the node as a whole, and what to do about it.
    #[serde(default)]
    pub notices: Vec<String>,
    /// How full the kernel's tables are that the agent fills.
    #[serde(default)]
    pub tables: BTreeMap<String, TableFill>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Default, Serialize, Deserialize)]
pub struct TableFill {
    pub used: u32,
    pub capacity: u32,
}

#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct RouteService {
    pub name: String,
    pub vip: Option<IpAddr>,
    pub frontends: Vec<RouteFrontend>,
    pub backends: Vec<RouteBackend>,
    /// What of the service's description was skipped, and why.
    pub problems: Vec<String>,
}

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct RouteFrontend {
    pub address: IpAddr,
    pub port: u16,
    /// `tcp` or `udp`.
    pub proto: String,
    pub source: FrontendSource,
}

/// Which packet `GET /v1/mesh/trace` is asked about, as its query.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct TraceQuestion {
    pub src: SocketAddr,
    pub dst: SocketAddr,
    /// `tcp` or `udp`.
    #[serde(default = "tcp")]
    pub proto: String,
    /// Of a connection that is there already; else a SYN.
    #[serde(default)]
    pub established: bool,
}

/// What the node's loaded program does with a packet, and by which steps it comes to that.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct TraceReport {
    pub node: String,
    pub packet: String,
    pub steps: Vec<TraceStep>,
    pub verdict: String,
    /// What asking changed.
    pub side_effects: String,
}

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct TraceStep {
    pub what: String,
    pub found: String,
}

fn tcp() -> String {
    "tcp".to_owned()
}

/// Why an address and port are served.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum FrontendSource {
    /// The service's virtual address.
    Vip,
    /// A tag asks for the port on every node's own address.
    Edge,
    /// An allocation's port on its node's address.
    Port,
}

#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct RouteBackend {
    pub alloc_id: String,
    pub node: String,
    pub address: IpAddr,
    pub port: u16,
    /// `tcp` or `udp`: one that takes both is listed for each.
    #[serde(default = "tcp")]
    pub proto: String,
    pub weight: u16,
    /// `active`, `draining` or `critical`.
    pub state: String,
    /// The part of the ring's slots that lead here, 0 to 1.
    pub ring_share: f64,
    pub packets: u64,
    pub bytes: u64,
    pub flows: u64,
}

impl FrontendSource {
    pub fn as_str(self) -> &'static str {
        match self {
            FrontendSource::Vip => "vip",
            FrontendSource::Edge => "edge",
            FrontendSource::Port => "port",
        }
    }
}
