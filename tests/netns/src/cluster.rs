//! The standard lab: a client behind a router, and three servers and three nodes on one segment, running the real binary.

use crate::artifacts;
use crate::lab::Lab;
use crate::link::{pass_everything, wire};
use crate::machine::Machine;
use crate::process::Process;
use crate::{sh, wait_for};
use anyhow::{Context, Result};
use std::fs;
use std::time::Duration;

const START_LIMIT: Duration = Duration::from_secs(20);

/// How many machines of each kind.
#[derive(Clone, Copy)]
pub struct ClusterOptions {
    pub servers: usize,
    pub nodes: usize,
}

/// Machines and their processes; everything goes with the value, unless [`Lab::keep`] was called.
pub struct Cluster {
    pub client: Machine,
    pub router: Machine,
    pub servers: Vec<Server>,
    pub nodes: Vec<Node>,
    _captures: Vec<Process>,
    // Last, because fields drop in this order and it removes what the processes above made.
    pub lab: Lab,
}

pub struct Server {
    pub name: String,
    pub machine: Machine,
    pub address: String,
    pub process: Option<Process>,
}

pub struct Node {
    pub name: String,
    pub machine: Machine,
    pub address: String,
    pub agent: Option<Process>,
}

impl Cluster {
    /// Lays the wires; nothing of ours runs yet.
    pub fn lay(purpose: &str, options: ClusterOptions) -> Result<Cluster> {
        let lab = Lab::new(purpose)?;
        let router = lab.machine("router")?;
        router.sh("ip link add br0 type bridge")?;
        router.sh("ip addr add 10.77.0.1/24 dev br0")?;
        router.sh("ip link set br0 up")?;
        router.sh("sysctl -qw net.ipv4.ip_forward=1")?;
        let client = lab.machine("client")?;
        wire(&client, "eth0", &router, "client")?;
        router.sh("ip addr add 10.78.0.1/24 dev client")?;
        client.sh("ip addr add 10.78.0.2/24 dev eth0")?;
        client.sh("ip route add default via 10.78.0.1")?;
        let captures = vec![lab.capture(&router, "br0", "segment")?, lab.capture(&router, "client", "client")?];
        let (servers, nodes) = (Vec::new(), Vec::new());
        let mut cluster = Cluster { client, router, servers, nodes, _captures: captures, lab };
        for number in 1..=options.servers {
            let (name, address) = (format!("s{number}"), format!("10.77.0.{}", 20 + number));
            let machine = cluster.member(&name, &address)?;
            cluster.servers.push(Server { name, machine, address, process: None });
        }
        for number in 1..=options.nodes {
            let (name, address) = (format!("n{number}"), format!("10.77.0.{}", 10 + number));
            let machine = cluster.member(&name, &address)?;
            cluster.nodes.push(Node { name, machine, address, agent: None });
        }
        Ok(cluster)
    }

    fn member(&self, name: &str, address: &str) -> Result<Machine> {
        let machine = self.lab.machine(name)?;
        // A fresh namespace takes over what the machine's own has; most machines are no routers.
        machine.sh("sysctl -qw net.ipv4.ip_forward=0")?;
        self.connect(&machine, name, address)?;
        Ok(machine)
    }

    fn connect(&self, machine: &Machine, name: &str, address: &str) -> Result<()> {
        wire(machine, "eth0", &self.router, name)?;
        self.router.sh(&format!("ip link set {name} master br0"))?;
        pass_everything(&self.router, name)?;
        machine.sh(&format!("ip addr add {address}/24 dev eth0"))?;
        machine.sh("ip route add default via 10.77.0.1").map(drop)
    }

    /// Takes a node's interface away and gives it another one of the same name and address.
    pub fn replace_uplink(&self, node: usize) -> Result<()> {
        let Node { name, machine, address, .. } = &self.nodes[node];
        machine.sh("ip link del eth0")?;
        self.connect(machine, name, address)
    }

    /// The first server makes the cluster, the others join it by tokens.
    pub fn start_servers(&mut self) -> Result<()> {
        for index in 0..self.servers.len() {
            let mode = match index {
                0 => vec!["init".to_owned()],
                _ => {
                    let token = self.token("server")?;
                    vec!["join".to_owned(), "--servers".into(), self.rpc(0), "--token".into(), token]
                }
            };
            self.start_server(index, &mode)?;
            wait_for(&format!("{} voters", index + 1), START_LIMIT, || self.voters_are(index + 1))?;
        }
        Ok(())
    }

    /// Starts a server again from its data directory.
    pub fn resume_server(&mut self, index: usize) -> Result<()> {
        self.start_server(index, &["run".to_owned()])
    }

    fn start_server(&mut self, index: usize, mode: &[String]) -> Result<()> {
        let server = &self.servers[index];
        let data_dir = self.lab.dir().join(format!("{}-server", server.name)).to_string_lossy().into_owned();
        let rpc = self.rpc(index);
        let binary = artifacts::binary();
        let mut words = vec![&*binary, "server"];
        words.extend(mode.iter().map(String::as_str));
        words.extend(["--data-dir", &data_dir, "--name", &server.name, "--rpc", &rpc]);
        let process = self.lab.spawn(&server.machine, &server.name, &words)?;
        self.servers[index].process = Some(process);
        Ok(())
    }

    /// Starts every agent with a token of its own and waits until all nodes are ready.
    pub fn start_agents(&mut self) -> Result<()> {
        for index in 0..self.nodes.len() {
            let token = self.token("agent")?;
            self.start_agent(index, Some(&token))?;
        }
        let names: Vec<String> = self.nodes.iter().map(|node| node.name.clone()).collect();
        wait_for("every node to be ready", START_LIMIT, || {
            let status = self.meshctl(&["node", "status"])?;
            let is_ready =
                |name: &String| status.lines().any(|line| line.contains(name.as_str()) && line.contains("ready"));
            Ok(names.iter().all(is_ready).then_some(()))
        })
    }

    /// Starts one agent; without a token it goes by the certificate in its data directory.
    pub fn start_agent(&mut self, index: usize, token: Option<&str>) -> Result<()> {
        let servers: Vec<String> = (0..self.servers.len()).map(|server| self.rpc(server)).collect();
        let node = &self.nodes[index];
        let data_dir = self.lab.dir().join(format!("{}-agent", node.name)).to_string_lossy().into_owned();
        let pin_root = self.lab.pin_root().to_string_lossy().into_owned();
        let (binary, servers) = (artifacts::binary(), servers.join(","));
        let mut words =
            vec![&*binary, "agent", "run", "--data-dir", &data_dir, "--name", &node.name, "--servers", &servers];
        words.extend(["--advertise", &node.address, "--uplink", "eth0", "--pin-root", &pin_root]);
        words.extend(token.iter().flat_map(|token| ["--token", *token]));
        let agent = self.lab.spawn(&node.machine, &node.name, &words)?;
        self.nodes[index].agent = Some(agent);
        Ok(())
    }

    /// A one-time join token.
    pub fn token(&self, role: &str) -> Result<String> {
        let token = self.meshctl(&["token", "create", "--role", role, "--uses", "1", "--ttl", "10m"])?;
        Ok(token.trim().to_owned())
    }

    /// Runs the command line on the first server whose process lives.
    pub fn meshctl(&self, words: &[&str]) -> Result<String> {
        let server = self.servers.iter().find(|server| server.process.is_some()).context("no server runs")?;
        self.meshctl_on(&server.machine, words)
    }

    /// Runs the command line on a machine.
    pub fn meshctl_on(&self, machine: &Machine, words: &[&str]) -> Result<String> {
        let binary = artifacts::binary();
        machine.run(&[&[&*binary], words].concat())
    }

    /// The index of the server that leads.
    pub fn leader(&self) -> Result<usize> {
        let leader = self.meshctl(&["operator", "api", "/v1/status/leader"])?;
        let leader = leader.trim().trim_matches('"');
        let index = self.servers.iter().position(|server| leader.starts_with(&format!("{}:", server.address)));
        index.with_context(|| format!("no server is the leader {leader:?}"))
    }

    fn voters_are(&self, wanted: usize) -> Result<Option<()>> {
        let peers: serde_json::Value =
            serde_json::from_str(&self.meshctl(&["operator", "api", "/v1/status/peers"])?)?;
        Ok((peers.as_array().map_or(0, Vec::len) == wanted).then_some(()))
    }

    fn rpc(&self, server: usize) -> String {
        format!("{}:4647", self.servers[server].address)
    }

    pub fn machines(&self) -> impl Iterator<Item = &Machine> {
        let servers = self.servers.iter().map(|server| &server.machine);
        let nodes = self.nodes.iter().map(|node| &node.machine);
        [&self.client, &self.router].into_iter().chain(servers).chain(nodes)
    }

    /// Leaves machines and processes behind when this value goes.
    pub fn keep(&mut self) -> Result<()> {
        let servers = self.servers.iter_mut().filter_map(|server| server.process.as_mut());
        servers.chain(self.nodes.iter_mut().filter_map(|node| node.agent.as_mut())).for_each(Process::detach);
        self.lab.keep()
    }

    /// The last lines of every log, for a failed run.
    pub fn logs(&self) -> String {
        let dir = self.lab.dir().to_string_lossy().into_owned();
        sh(&format!("tail -n 30 {}", self.log_files(&dir).join(" "))).unwrap_or_default()
    }

    fn log_files(&self, dir: &str) -> Vec<String> {
        let entries = fs::read_dir(dir).into_iter().flatten().flatten();
        let paths = entries.map(|entry| entry.path().to_string_lossy().into_owned());
        paths.filter(|path| path.ends_with(".log")).collect()
    }
}
