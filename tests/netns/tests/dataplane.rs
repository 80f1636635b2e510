//! The data path between real namespaces, with jobs that the real binary runs: what allocations send outside, datagrams,
//! edge addresses dialled from inside, backends in a node's own network, and what `meshctl route` says of it all.

use anyhow::{Context, Result, ensure};
use netns::echo::{Echo, Line, Told, by_tcp, by_udp};
use netns::{Cluster, ClusterOptions, Machine, wait_for};
use serde_json::Value;
use std::collections::BTreeSet;
use std::net::{Ipv4Addr, SocketAddrV4};
use std::path::{Path, PathBuf};
use std::time::Duration;

const LIMIT: Duration = Duration::from_secs(30);
const CLIENT: Ipv4Addr = Ipv4Addr::new(10, 78, 0, 2);
const NODES: [Ipv4Addr; 2] = [Ipv4Addr::new(10, 77, 0, 11), Ipv4Addr::new(10, 77, 0, 12)];
/// Where the client itself serves.
const WORLD: SocketAddrV4 = SocketAddrV4::new(CLIENT, 9000);

/// One allocation on each of two nodes. What it serves is the test's, in the allocation's namespace.
fn job(name: &str, mode: &str, port: &str, edge: u16) -> String {
    format!(
        r#"
job "{name}" {{
  group "g" {{
    count = 2
    constraint {{
      operator = "distinct_hosts"
      value    = "true"
    }}
    network {{
      mode = "{mode}"
      port "echo" {{ {port} }}
    }}
    service {{
      name = "{name}"
      port = "echo"
      tags = ["urlprefix-:{edge} proto=tcp", "urlprefix-:{edge} proto=udp"]
      meta {{
        vip_port = "7000"
      }}
    }}
    task "t" {{
      driver = "exec"
      config {{
        command = "/bin/busybox"
        args    = ["sleep", "100000"]
      }}
      resources {{
        cpu    = 20
        memory = 16
      }}
    }}
  }}
}}
"#
    )
}

struct Instance {
    /// The first eight digits of the allocation's id, by which its server calls itself.
    name: String,
    address: SocketAddrV4,
    namespace: PathBuf,
    /// Of the two.
    node: usize,
    _echo: Echo,
}

struct Lab {
    cluster: Cluster,
    bridged: Vec<Instance>,
    hosted: Vec<Instance>,
    vip: SocketAddrV4,
    _world: Echo,
}

impl Lab {
    fn lay() -> Result<Lab> {
        let mut cluster = Cluster::lay("route", ClusterOptions { servers: 1, nodes: 2 })?;
        cluster.start_servers()?;
        cluster.start_agents()?;
        let world = Echo::serve(&cluster.client.path(), WORLD.port(), "world")?;
        let bridged = run(&cluster, "bridged", &job("bridged", "bridge", "to = 7000", 7000))?;
        let hosted = run(&cluster, "hosted", &job("hosted", "host", "", 7001))?;
        let vip = frontend(&cluster, "bridged")?;
        Ok(Lab { cluster, bridged, hosted, vip, _world: world })
    }

    fn client(&self) -> PathBuf {
        self.cluster.client.path()
    }

    fn node(&self, node: usize) -> &Machine {
        &self.cluster.nodes[node].machine
    }

    fn route(&self, node: usize, words: &[&str]) -> Result<Value> {
        let said = self.cluster.meshctl_on(self.node(node), &[&["route"], words, &["--json"]].concat())?;
        serde_json::from_str(&said).with_context(|| format!("no JSON: {said}"))
    }

    fn drops(&self, node: usize, reason: &str) -> Result<u64> {
        self.route(node, &["drops"])?[reason].as_u64().with_context(|| format!("no count of {reason}"))
    }
}

/// Runs a job and serves in the place of its tasks.
fn run(cluster: &Cluster, name: &str, text: &str) -> Result<Vec<Instance>> {
    let file = cluster.lab.dir().join(format!("{name}.nomad.hcl"));
    std::fs::write(&file, text)?;
    cluster.meshctl(&["job", "run", "-detach", &file.to_string_lossy()])?;
    let found = wait_for("two instances", LIMIT, || {
        let found: Value =
            serde_json::from_str(&cluster.meshctl(&["operator", "api", &format!("/v1/service/{name}")])?)?;
        Ok(found.as_array().filter(|found| found.len() == 2).cloned())
    })?;
    let instances = found.iter().map(|found| instance(cluster, found)).collect::<Result<Vec<_>>>()?;
    for node in &cluster.nodes {
        wait_for("the maps to hold them", LIMIT, || {
            let said = cluster.meshctl_on(&node.machine, &["route", "--json", name])?;
            let report: Value = serde_json::from_str(&said)?;
            let backends = report["services"][0]["backends"].as_array().cloned().unwrap_or_default();
            Ok((backends.iter().filter(|backend| backend["ring_share"].as_f64() > Some(0.0)).count() == 4)
                .then_some(()))
        })?;
    }
    Ok(instances)
}

fn instance(cluster: &Cluster, found: &Value) -> Result<Instance> {
    let text = |key: &str| found[key].as_str().with_context(|| format!("no {key} in {found}"));
    let (alloc, node) = (&text("AllocID")?[..8], text("NodeID")?);
    let status: Value = serde_json::from_str(&cluster.meshctl(&["operator", "api", &format!("/v1/node/{node}")])?)?;
    let node_name = status["Name"].as_str().context("a node without a name")?;
    let index = cluster.nodes.iter().position(|node| node.name == node_name).context("a node of another lab")?;
    let port = u16::try_from(found["Port"].as_u64().context("no port")?)?;
    let address = SocketAddrV4::new(text("Address")?.parse()?, port);
    let bridged = PathBuf::from(format!("/run/netns/meshctl-{}-{alloc}", &node[..8]));
    let host = NODES.contains(address.ip());
    let namespace = if host { cluster.nodes[index].machine.path() } else { bridged };
    let echo = Echo::serve(&namespace, port, alloc)?;
    Ok(Instance { name: alloc.to_owned(), address, namespace, node: index, _echo: echo })
}

fn frontend(cluster: &Cluster, service: &str) -> Result<SocketAddrV4> {
    let said = cluster.meshctl_on(&cluster.nodes[0].machine, &["route", "--json", service])?;
    let report: Value = serde_json::from_str(&said)?;
    let vip = report["services"][0]["vip"].as_str().context("no VIP")?;
    Ok(SocketAddrV4::new(vip.parse()?, 7000))
}

fn names(instances: &[Instance]) -> BTreeSet<String> {
    instances.iter().map(|instance| instance.name.clone()).collect()
}

/// Who answers when asked thirty times; the first may wait for a neighbour to be resolved.
fn answering(what: &str, mut ask: impl FnMut(u16) -> Result<Told>) -> Result<Vec<Told>> {
    wait_for(what, LIMIT, || ask(0).map(Some))?;
    (0..30).map(|number| ask(22_000 + number).with_context(|| format!("{what}, question {number}"))).collect()
}

fn served_by(told: &[Told]) -> BTreeSet<String> {
    told.iter().map(|told| told.by.clone()).collect()
}

#[test]
fn the_data_path_from_outside_from_inside_and_as_it_is_told() -> Result<()> {
    let mut lab = Lab::lay()?;
    world_sees_the_nodes_address(&mut lab).context("what allocations send outside")?;
    allocations_see_each_other(&lab).context("between allocations")?;
    nothing_comes_in_unasked(&lab).context("from outside")?;
    datagrams_of_a_service(&lab).context("a UDP service")?;
    edge_address_dialled_from_inside(&lab).context("an edge address dialled from inside")?;
    backends_in_the_nodes_network(&lab).context("backends in the node's network")?;
    trace_foretells(&lab).context("route trace")?;
    drops_are_told(&lab).context("route drops")?;
    replaced_uplink_forwards(&lab).context("a replaced uplink")?;
    nothing_is_left(&mut lab).context("after the agents")?;
    lab.cluster.lab.passed();
    Ok(())
}

fn world_sees_the_nodes_address(lab: &mut Lab) -> Result<()> {
    for allocation in &lab.bridged {
        for told in [by_tcp(&allocation.namespace, 0, WORLD)?, by_udp(&allocation.namespace, 0, WORLD)?] {
            ensure!(told.client.ip() == NODES[allocation.node], "the world saw {told:?}");
        }
        // A port that a service of the node might have.
        let told = by_tcp(&allocation.namespace, 7000 + 1, WORLD)?;
        ensure!(told.client.port() > 32_767, "the answers would have met a route: {told:?}");
    }
    let node = lab.bridged[0].node;
    let mut held = Line::open(&lab.bridged[0].namespace, 0, WORLD)?;
    let before = held.ask()?;
    lab.cluster.nodes[node].agent.take().context("no agent runs")?.kill()?;
    ensure!(held.ask()? == before && by_tcp(&lab.bridged[0].namespace, 0, WORLD).is_ok(), "while the agent is away");
    lab.cluster.start_agent(node, None)?;
    wait_for("the agent to be back", LIMIT, || {
        Ok(lab.route(node, &[]).is_ok_and(|said| said["generation"].as_u64() > Some(0)).then_some(()))
    })?;
    ensure!(held.ask()? == before, "after the agent's restart");
    Ok(())
}

fn allocations_see_each_other(lab: &Lab) -> Result<()> {
    let (one, two) = (&lab.bridged[0], &lab.bridged[1]);
    for (from, to) in [(one, two), (two, one)] {
        for told in [by_tcp(&from.namespace, 0, to.address)?, by_udp(&from.namespace, 0, to.address)?] {
            ensure!(told.by == to.name && told.client.ip() == *from.address.ip(), "{told:?}");
        }
    }
    Ok(())
}

/// The router knows a way to allocations, as a neighbour on the segment might make one for itself.
fn nothing_comes_in_unasked(lab: &Lab) -> Result<()> {
    for allocation in &lab.bridged {
        let way = format!("{}/32 via {}", allocation.address.ip(), NODES[allocation.node]);
        lab.cluster.router.sh(&format!("ip route add {way}"))?;
        let reached = by_tcp(&lab.client(), 0, allocation.address);
        ensure!(reached.is_err(), "{reached:?}");
        ensure!(by_udp(&lab.client(), 0, allocation.address).is_err(), "a datagram came in");
        lab.cluster.router.sh(&format!("ip route del {way}"))?;
    }
    Ok(())
}

fn datagrams_of_a_service(lab: &Lab) -> Result<()> {
    for (node, address) in NODES.into_iter().enumerate() {
        let edge = SocketAddrV4::new(address, 7000);
        let told = answering("the edge", |port| by_udp(&lab.client(), port, edge))?;
        ensure!(served_by(&told) == names(&lab.bridged), "n{}: {told:?}", node + 1);
        ensure!(told.iter().all(|told| told.client.ip() == CLIENT && told.from == edge.into()), "{told:?}");
    }
    for allocation in &lab.bridged {
        let told = answering("the VIP", |_| by_udp(&allocation.namespace, 0, lab.vip))?;
        ensure!(served_by(&told) == names(&lab.bridged), "{told:?}");
        ensure!(told.iter().all(|told| told.from == lab.vip.into()), "{told:?}");
    }
    Ok(())
}

/// An allocation dials the other node's address: the connection leaves the mesh, comes in again as any client's, and may end
/// on its own node.
fn edge_address_dialled_from_inside(lab: &Lab) -> Result<()> {
    for allocation in &lab.bridged {
        let edge = SocketAddrV4::new(NODES[1 - allocation.node], 7000);
        let told = answering("the other node's edge", |port| by_tcp(&allocation.namespace, port, edge))?;
        ensure!(served_by(&told) == names(&lab.bridged), "{told:?}");
        ensure!(told.iter().all(|told| told.client.ip() == NODES[allocation.node]), "{told:?}");
    }
    Ok(())
}

fn backends_in_the_nodes_network(lab: &Lab) -> Result<()> {
    for address in NODES {
        let edge = SocketAddrV4::new(address, 7001);
        for told in [
            answering("the edge, TCP", |port| by_tcp(&lab.client(), port, edge))?,
            answering("the edge, UDP", |port| by_udp(&lab.client(), port, edge))?,
        ] {
            ensure!(served_by(&told) == names(&lab.hosted), "{told:?}");
            ensure!(told.iter().all(|told| told.client.ip() == CLIENT && told.from == edge.into()), "{told:?}");
        }
    }
    Ok(())
}

/// What is said of a packet is what happens to it.
fn trace_foretells(lab: &Lab) -> Result<()> {
    for (proto, port) in [("tcp", 23_000_u16), ("udp", 23_100)]
        .into_iter()
        .flat_map(|(proto, first)| (first..first + 8).map(move |port| (proto, port)))
    {
        let (src, edge) = (format!("{CLIENT}:{port}"), SocketAddrV4::new(NODES[0], 7000));
        let said = lab.route(0, &["trace", "--src", &src, "--dst", &edge.to_string(), "--proto", proto])?;
        let said_of = said.to_string();
        let told = if proto == "tcp" { by_tcp(&lab.client(), port, edge)? } else { by_udp(&lab.client(), port, edge)? };
        ensure!(said_of.contains(&format!("allocation {}", told.by)), "{} served, but {said_of}", told.by);
        let local = lab.bridged.iter().any(|instance| instance.name == told.by && instance.node == 0);
        let verdict = said["verdict"].as_str().unwrap_or_default();
        ensure!(
            verdict.contains(if local { "delivered to the allocation" } else { "through the tunnel" }),
            "{verdict}"
        );
    }
    let nothing = lab.route(0, &["trace", "--src", "10.78.0.2:1", "--dst", "10.77.0.11:9", "--proto", "tcp"])?;
    ensure!(nothing["verdict"].as_str().unwrap_or_default().contains("own network stack"), "{nothing}");
    Ok(())
}

/// A stranger's tunnel packet.
fn drops_are_told(lab: &Lab) -> Result<()> {
    let before = lab.drops(0, "tunnel_peer_unknown")?;
    let send = |path: &Path| by_udp(path, 0, SocketAddrV4::new(NODES[0], 6081));
    ensure!(send(&lab.client()).is_err(), "somebody answered on the tunnel's port");
    ensure!(lab.drops(0, "tunnel_peer_unknown")? > before, "it was not counted");
    let said = lab.cluster.meshctl_on(lab.node(0), &["route", "drops"])?;
    let line = said.lines().find(|line| line.contains("tunnel_peer_unknown")).context("not told")?;
    ensure!(line.contains("dropped"), "{line}");
    Ok(())
}

/// Replies of backends elsewhere leave by it only when it forwards.
fn replaced_uplink_forwards(lab: &Lab) -> Result<()> {
    lab.cluster.replace_uplink(0)?;
    let edge = SocketAddrV4::new(NODES[0], 7000);
    wait_for("the node to follow", LIMIT, || {
        let told: Result<Vec<Told>> = (0..10).map(|port| by_udp(&lab.client(), 24_000 + port, edge)).collect();
        Ok((served_by(&told?) == names(&lab.bridged)).then_some(()))
    })?;
    let forwarding = lab.node(0).sh("sysctl -n net.ipv4.conf.eth0.forwarding")?;
    ensure!(forwarding.trim() == "1", "{forwarding}");
    Ok(())
}

fn nothing_is_left(lab: &mut Lab) -> Result<()> {
    let tables = lab.node(0).sh("nft list tables")?;
    ensure!(tables.contains("meshctl-"), "the rules were not there: {tables}");
    lab.cluster.nodes[0].agent.take().context("no agent runs")?.stop()?;
    let (data, pins) = (lab.cluster.lab.dir().join("n1-agent"), lab.cluster.lab.pin_root());
    let words = ["agent", "purge", "--data-dir", &data.to_string_lossy(), "--pin-root", &pins.to_string_lossy()];
    lab.cluster.meshctl_on(lab.node(0), &words)?;
    let tables = lab.node(0).sh("nft list tables")?;
    ensure!(tables.trim().is_empty(), "left: {tables}");
    let forwarding = lab.node(0).sh("sysctl -n net.ipv4.conf.eth0.forwarding")?;
    ensure!(forwarding.trim() == "0", "the uplink forwards still");
    Ok(())
}
