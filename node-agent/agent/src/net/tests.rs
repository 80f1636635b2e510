//! The stack against the kernel: two nodes and a client on one segment, each a network namespace. Needs root.
//!
//! ```text
//! client .50 ─┐
//! n1 .11 ─────┼─ bridge 10.77.0.0/24
//! n2 .12 ─────┘
//! ```

use super::*;
use hickory_proto::op::{Message, Query};
use hickory_proto::rr::{Name, RecordType};
use model::{Generation, Health, Index, Instance, InstanceNetwork, JobId, NodeStatus, RoutedNode, RoutedService};
use nix::sched::{CloneFlags, setns};
use std::fs::File;
use std::io::{Read, Write};
use std::net::{TcpListener, TcpStream, UdpSocket};
use std::process::Command as Process;
use std::time::{Duration, Instant};

const TAG: &str = "urlprefix-:80 proto=tcp";

fn sh(line: &str) {
    let output = Process::new("sh").arg("-ec").arg(line).output().expect("sh");
    assert!(output.status.success(), "{line}: {}", String::from_utf8_lossy(&output.stderr));
}

/// Removed when dropped, on a panic too.
struct Lab {
    prefix: String,
    nodes: [NodeId; 2],
}

impl Lab {
    fn new(tag: &str) -> Self {
        let prefix = format!("mn{}{tag}", std::process::id());
        // Told apart by the first byte, which names carry too.
        let random = |number: u8| {
            let salt = u128::from(tag.bytes().fold(number, u8::wrapping_add));
            NodeId::from_random((u128::from(std::process::id()) << 96) | (salt << 120))
        };
        let lab = Self { nodes: [random(1), random(2)], prefix };
        let p = &lab.prefix;
        sh(&format!("mkdir -p {}", lab.pins().display()));
        for machine in ["r", "c", "n1", "n2"] {
            sh(&format!("ip netns add {p}{machine}; ip -n {p}{machine} link set lo up"));
        }
        sh(&format!("ip -n {p}r link add br0 type bridge; ip -n {p}r link set br0 up"));
        for (machine, address) in [("c", "10.77.0.50"), ("n1", "10.77.0.11"), ("n2", "10.77.0.12")] {
            sh(&format!(
                "ip -n {p}r link add p{machine} type veth peer name u0 netns {p}{machine}
                 ip -n {p}r link set p{machine} master br0 up
                 ip -n {p}{machine} link set u0 up
                 ip -n {p}{machine} addr add {address}/24 dev u0"
            ));
            kernel::attach_pass(&lab.netns("r"), &format!("p{machine}"), &lab.pins().join(machine)).expect("a wire");
            kernel::set_tx_checksum_offload(&lab.netns("r"), &format!("p{machine}"), false).expect("a wire");
            kernel::set_tx_checksum_offload(&lab.netns(machine), "u0", false).expect("a wire");
        }
        lab
    }

    fn netns(&self, machine: &str) -> PathBuf {
        format!("/run/netns/{}{machine}", self.prefix).into()
    }

    fn pins(&self) -> PathBuf {
        format!("/sys/fs/bpf/{}", self.prefix).into()
    }

    /// Node 1 or 2.
    fn start(&self, number: u8) -> NetStack {
        self.start_as(number, NetConfig { uplink: Some("u0".to_owned()), ..self.config(number) })
    }

    fn start_as(&self, number: u8, config: NetConfig) -> NetStack {
        within(&self.netns(&format!("n{number}")), move || block_on(NetStack::start(config)).expect("starts"))
    }

    fn config(&self, number: u8) -> NetConfig {
        NetConfig {
            node_id: self.nodes[usize::from(number) - 1],
            node_name: format!("n{number}"),
            datacenter: "dc1".to_owned(),
            address: IpAddr::from([10, 77, 0, 10 + number]),
            uplink: None,
            pin_root: self.pins(),
            dns_bind: None,
            dns_domain: "cluster".to_owned(),
            binds: Vec::new(),
        }
    }

    fn routing(&self, generation: u64, instances: Vec<Instance>) -> RoutingSnapshot {
        let node = |number: u8| RoutedNode {
            id: self.nodes[usize::from(number) - 1],
            name: format!("n{number}"),
            datacenter: "dc1".to_owned(),
            address: IpAddr::from([10, 77, 0, 10 + number]),
            blocks: vec![format!("10.64.{number}.0/26").parse().expect("a block")],
            status: NodeStatus::Ready,
            zone: String::new(),
        };
        let web = RoutedService { name: "web".to_owned(), vip: IpAddr::from([10, 43, 0, 1]), instances };
        RoutingSnapshot { generation: Generation(generation), nodes: vec![node(1), node(2)], services: vec![web] }
    }

    fn instance(&self, number: u8, alloc_id: AllocId, address: IpAddr) -> Instance {
        Instance {
            service: "web".to_owned(),
            job_id: JobId("web".to_owned()),
            alloc_id,
            node_id: self.nodes[usize::from(number) - 1],
            node_name: format!("n{number}"),
            datacenter: "dc1".to_owned(),
            address,
            port: 8080,
            vip_port: Some(80),
            tags: vec![TAG.to_owned()],
            weight: 1,
            network: InstanceNetwork::Bridge,
            health: Health::Passing,
            draining: false,
            modified_at_index: Index(1),
            steering: model::Steering::default(),
        }
    }
}

impl Drop for Lab {
    fn drop(&mut self) {
        for (number, node) in (1..).zip(self.nodes) {
            let (netns, pins) = (self.netns(&format!("n{number}")), self.pins());
            let purged = std::thread::spawn(move || within(&netns, move || block_on(purge(node, &pins)))).join();
            if !matches!(purged, Ok(Ok(()))) {
                eprintln!("n{number} left something: {purged:?}");
            }
        }
        let p = &self.prefix;
        let remove = format!("for m in r c n1 n2; do ip netns del {p}$m; done; rm -rf {}", self.pins().display());
        drop(Process::new("sh").arg("-c").arg(remove).status());
    }
}

fn block_on<T>(work: impl Future<Output = T>) -> T {
    tokio::runtime::Builder::new_current_thread().enable_all().build().expect("a runtime").block_on(work)
}

/// On a thread of its own inside a namespace.
fn within<T: Send>(netns: &Path, work: impl FnOnce() -> T + Send) -> T {
    let file = File::open(netns).expect("the namespace");
    std::thread::scope(|scope| {
        let thread = scope.spawn(|| {
            setns(file, CloneFlags::CLONE_NEWNET).expect("enters");
            work()
        });
        thread.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic))
    })
}

/// Tells every client who serves it and whom it sees.
fn serve(netns: &Path, name: &'static str) {
    let listener = within(netns, || TcpListener::bind("0.0.0.0:8080").expect("listens"));
    std::thread::spawn(move || {
        for mut stream in listener.incoming().flatten() {
            let peer = stream.peer_addr().map(|peer| peer.ip().to_string()).unwrap_or_default();
            drop(stream.write_all(format!("{name} {peer}").as_bytes()));
        }
    });
}

fn fetch(from: &Path, address: &str) -> std::io::Result<String> {
    within(from, || {
        let mut text = String::new();
        let mut stream = TcpStream::connect_timeout(&address.parse().expect("an address"), Duration::from_secs(2))?;
        stream.set_read_timeout(Some(Duration::from_secs(2)))?;
        stream.read_to_string(&mut text)?;
        Ok(text)
    })
}

/// What forty connections are told; the first may wait for a neighbour to be resolved.
fn answers(from: &Path, address: &str) -> BTreeSet<String> {
    let started = Instant::now();
    while let Err(error) = fetch(from, address) {
        assert!(started.elapsed() < Duration::from_secs(15), "{address}: {error}");
    }
    (0..40).map(|_| fetch(from, address).expect("is served")).collect()
}

fn set<const N: usize>(texts: [&str; N]) -> BTreeSet<String> {
    texts.map(str::to_owned).into()
}

fn port(host_port: u16) -> Vec<AllocatedPort> {
    vec![AllocatedPort { label: "http".to_owned(), host_port, to: 8080 }]
}

#[tokio::test(flavor = "current_thread")]
async fn two_nodes_serve_one_service_through_restarts_and_leave_nothing() {
    let lab = Lab::new("w");
    let (one, two) = (lab.start(1), lab.start(2));
    one.set_routing(lab.routing(1, Vec::new())).await.expect("routed");
    two.set_routing(lab.routing(1, Vec::new())).await.expect("routed");
    let ids = [AllocId::from_random(0xa1 << 120 | 1), AllocId::from_random(0xa2 << 120 | 2)];
    let first = one.create(ids[0], port(23_001)).await.expect("a network");
    let second = two.create(ids[1], port(23_002)).await.expect("a network");
    assert_eq!(
        (first.address, first.resolver),
        (Some(IpAddr::from([10, 64, 1, 2])), Some(IpAddr::from([10, 64, 1, 1])))
    );
    assert_eq!(one.create(ids[0], port(23_001)).await.expect("the same network"), first);
    let inside = |place: &Place| place.netns.clone().expect("a namespace");
    let address = |place: &Place| place.address.expect("an address");
    serve(&inside(&first), "a1");
    serve(&inside(&second), "a2");
    let instances = vec![lab.instance(1, ids[0], address(&first)), lab.instance(2, ids[1], address(&second))];
    one.set_routing(lab.routing(2, instances.clone())).await.expect("routed");
    two.set_routing(lab.routing(2, instances.clone())).await.expect("routed");

    let client = lab.netns("c");
    let both = set(["a1 10.77.0.50", "a2 10.77.0.50"]);
    assert_eq!(answers(&client, "10.77.0.11:80"), both, "the edge of n1");
    assert_eq!(answers(&client, "10.77.0.12:80"), both, "the edge of n2");
    assert_eq!(answers(&client, "10.77.0.11:23001"), set(["a1 10.77.0.50"]), "a host port");
    assert_eq!(answers(&inside(&first), "10.43.0.1:80").len(), 2, "the VIP, from an allocation");
    assert_eq!(answers(&lab.netns("n1"), "10.43.0.1:80").len(), 2, "the VIP, from the node itself");
    assert_eq!(
        resolve(&inside(&first), "10.64.1.1:53", "web.service.cluster."),
        [address(&first), address(&second)].into()
    );

    let report = one.report().await.expect("a report");
    assert_eq!((report.node.as_str(), report.generation, report.services.len()), ("n1", 2, 1));
    assert!(report.services[0].backends.iter().all(|backend| backend.flows > 0), "{report:?}");

    drop(one);
    assert_eq!(answers(&client, "10.77.0.11:80"), both, "while the agent of n1 is away");
    tokio::time::sleep(Duration::from_millis(300)).await;
    let one = lab.start(1);
    assert_eq!(one.create(ids[0], port(23_001)).await.expect("is adopted before any server speaks"), first);
    assert_eq!(answers(&client, "10.77.0.11:80"), both, "after the restart");

    let draining = Instance { draining: true, ..instances[1].clone() };
    one.set_routing(lab.routing(3, vec![instances[0].clone(), draining])).await.expect("routed");
    one.set_routing(lab.routing(1, Vec::new())).await.expect("an older picture changes nothing");
    assert_eq!(answers(&client, "10.77.0.11:80"), set(["a1 10.77.0.50"]), "the draining one gets no new flows");

    two.remove(ids[1]).await.expect("removed");
    assert!(!inside(&second).exists());
    one.retain(Vec::new()).await.expect("nothing is retained");
    assert!(!inside(&first).exists());
    assert!(fetch(&client, "10.77.0.11:23001").is_err(), "its host port went with it");
}

fn resolve(from: &Path, server: &str, name: &str) -> BTreeSet<IpAddr> {
    let mut request = Message::query();
    request.add_query(Query::query(Name::from_ascii(name).expect("a name"), RecordType::A));
    let mut buffer = [0; 512];
    let length = within(from, || {
        let socket = UdpSocket::bind("0.0.0.0:0")?;
        socket.set_read_timeout(Some(Duration::from_secs(2)))?;
        socket.send_to(&request.to_vec().expect("encodes"), server)?;
        socket.recv(&mut buffer)
    });
    let response = Message::from_vec(&buffer[..length.expect("an answer")]).expect("decodes");
    response.answers.iter().filter_map(|record| record.data.ip_addr()).collect()
}

#[tokio::test(flavor = "current_thread")]
async fn without_an_uplink_the_socket_hook_dns_and_veths_work() {
    let lab = Lab::new("d");
    let dns_bind = Some("127.0.0.1:8600".parse().expect("an address"));
    let one = lab.start_as(1, NetConfig { dns_bind, ..lab.config(1) });
    let ids = [1, 2].map(|salt| AllocId::from_random(0xd0 << 120 | salt << 100));
    let (early, routed) = tokio::join!(one.create(ids[0], port(23_001)), async {
        tokio::time::sleep(Duration::from_millis(50)).await;
        one.set_routing(lab.routing(1, Vec::new())).await
    });
    routed.expect("routed");
    let first = early.expect("a create that came before the address block waits for it");
    let second = one.create(ids[1], port(23_002)).await.expect("a network");
    let places = [&first, &second].map(|place| (place.netns.clone().expect("bridge"), place.address.expect("bridge")));
    serve(&places[0].0, "a1");
    serve(&places[1].0, "a2");
    let instances = (0..2).map(|i| lab.instance(1, ids[i], places[i].1)).collect();
    one.set_routing(lab.routing(2, instances)).await.expect("routed");
    let node = lab.netns("n1");
    assert_eq!(answers(&node, "10.43.0.1:80").len(), 2, "the VIP, from the node");
    assert_eq!(answers(&places[0].0, "10.43.0.1:80").len(), 2, "the VIP, from an allocation");
    assert_eq!(resolve(&node, "127.0.0.1:8600", "web.cluster."), [IpAddr::from([10, 43, 0, 1])].into());
    assert!(fetch(&node, "10.77.0.11:23001").is_err(), "no host ports without an uplink");
}

#[tokio::test(flavor = "current_thread")]
async fn an_uplink_without_the_nodes_address_is_refused() {
    let config = NetConfig {
        node_id: NodeId::from_random(9),
        node_name: "n9".to_owned(),
        datacenter: "dc1".to_owned(),
        address: IpAddr::from([192, 0, 2, 1]),
        uplink: Some("nothing0".to_owned()),
        pin_root: "/sys/fs/bpf/none".into(),
        dns_bind: None,
        dns_domain: "cluster".to_owned(),
        binds: Vec::new(),
    };
    assert!(matches!(NetStack::start(config).await, Err(NetError::Network(network::Error::NoInterface(_)))));
}
