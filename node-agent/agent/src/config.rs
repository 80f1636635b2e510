//! What an agent is started with. Checked by `preflight` before anything on the machine changes.

use drivers::DockerOptions;
use model::Plugin;
use std::collections::BTreeMap;
use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::path::PathBuf;
use std::time::Duration;

#[derive(Clone, Debug)]
pub struct AgentConfig {
    /// State, certificate and allocation directories.
    pub data_dir: PathBuf,
    /// Unique in the cluster; the host name unless told otherwise.
    pub name: String,
    pub datacenter: String,
    pub class: String,
    pub meta: BTreeMap<String, String>,
    /// RPC addresses of servers; further ones are learned from them.
    pub servers: Vec<SocketAddr>,
    /// Needed at the first start only: later ones have a certificate.
    pub token: Option<String>,
    /// The node's own address: where tunnels end, host ports and edge services listen.
    pub address: IpAddr,
    /// The interface that carries `address` and gets the XDP program; `None` (as `dev` has it) leaves every real interface alone.
    pub uplink: Option<String>,
    /// A directory on bpffs; what this node pins lies in a directory of its own below it.
    pub pin_root: PathBuf,
    /// Loopback only: the API has no TLS.
    /// `None` listens nowhere: `dev` has one listener for server and agent.
    pub http_bind: Option<SocketAddr>,
    /// DNS beside port 53 of the node's mesh address.
    pub dns_bind: SocketAddr,
    /// The zone, `cluster` unless told otherwise.
    pub dns_domain: String,
    /// From the wish to stop an allocation to its tasks' kill signal: every node's rings have left it out by then.
    pub drain_grace: Duration,
    /// No task gets longer than this from its kill signal to SIGKILL (Nomad's `max_kill_timeout`).
    pub kill_timeout_max: Duration,
    /// Whether jobs may run plain processes, which can do whatever the agent can.
    pub raw_exec: bool,
    /// Containers of dockerd, and of podman's service; where images are recorded is the data directory's to say.
    pub docker: DockerOptions,
    pub podman: DockerOptions,
    /// Directories of the node that `file://` artifacts may lie in.
    pub artifact_dirs: Vec<PathBuf>,
    /// The binary that has the hidden `supervise` and `task-init` commands: this one.
    pub supervisor: PathBuf,
}

impl AgentConfig {
    /// The defaults of a node with this address.
    pub fn for_address(address: IpAddr) -> Self {
        Self {
            data_dir: PathBuf::from("/var/lib/meshctl/agent"),
            name: crate::fingerprint::hostname(),
            datacenter: "dc1".to_owned(),
            class: String::new(),
            meta: BTreeMap::new(),
            servers: Vec::new(),
            token: None,
            address,
            uplink: None,
            pin_root: PathBuf::from("/sys/fs/bpf/meshctl"),
            http_bind: Some(SocketAddr::from((Ipv4Addr::LOCALHOST, 4646))),
            dns_bind: SocketAddr::from((Ipv4Addr::LOCALHOST, 8600)),
            dns_domain: "cluster".to_owned(),
            drain_grace: Duration::from_millis(800),
            kill_timeout_max: Duration::from_secs(30),
            raw_exec: false,
            docker: DockerOptions::new(Plugin::Docker, "images"),
            podman: DockerOptions::new(Plugin::Podman, "images"),
            artifact_dirs: Vec::new(),
            supervisor: PathBuf::from("/proc/self/exe"),
        }
    }
}
