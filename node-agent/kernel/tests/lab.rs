//! The whole path between real namespaces: a client behind a router, two nodes on a bridge, an allocation on each.
//!
//! ```text
//! client 10.78.0.2 ── router ── bridge 10.77.0.0/24 ┬── n1 .11 ── a1 10.64.0.2
//!                                                   └── n2 .12 ── a2 10.64.0.66
//! ```

#![expect(clippy::unwrap_used, clippy::panic, reason = "helpers of tests fail as tests do")]

mod common;

use std::{
    fs::File,
    io::{Read, Write},
    net::{Ipv4Addr, Shutdown, SocketAddr, TcpListener, TcpStream, UdpSocket},
    path::PathBuf,
    process::{self, Command},
    thread::{self, JoinHandle},
    time::{Duration, Instant},
};

use abi::{Backend, Endpoint, Node, Reason, UPLINK_READY, Uplink};
use common::*;
use dataplane::{MapImage, diff};
use kernel::{Datapath, UplinkMode};
use nix::{
    net::if_::if_nametoindex,
    sched::{CloneFlags, setns},
};

const MTU: u16 = 1500;
const ALLOC_MTU: u16 = MTU - 62;
const MEGABYTES: usize = 4;

fn sh(command: &str) {
    let output = Command::new("sh").arg("-ec").arg(command).output().unwrap();
    assert!(output.status.success(), "{command}: {}", String::from_utf8_lossy(&output.stderr));
}

/// Namespaces named for this process, removed at the end.
struct Lab {
    prefix: String,
    pins: PathBuf,
}

impl Lab {
    fn new(tag: &str) -> Self {
        let prefix = format!("mk{}{tag}", process::id());
        let lab = Self { pins: format!("/sys/fs/bpf/{prefix}").into(), prefix };
        std::fs::create_dir(&lab.pins).unwrap();
        for ns in ["c", "r", "n1", "n2", "a1", "a2"] {
            sh(&format!("ip netns add {0}{ns}; ip -n {0}{ns} link set lo up", lab.prefix));
        }
        lab.wire();
        lab
    }

    fn ns(&self, ns: &str) -> PathBuf {
        format!("/run/netns/{}{ns}", self.prefix).into()
    }

    /// Two ends in two namespaces, which finish their checksums as a wire would want it.
    fn veth(&self, (a, name_a): (&str, &str), (b, name_b): (&str, &str)) {
        let p = &self.prefix;
        sh(&format!("ip -n {p}{a} link add {name_a} type veth peer name {name_b} netns {p}{b}"));
        for (ns, name) in [(a, name_a), (b, name_b)] {
            kernel::set_tx_checksum_offload(&self.ns(ns), name, false).unwrap();
            sh(&format!("ip -n {p}{ns} link set {name} up"));
        }
    }

    fn wire(&self) {
        let p = &self.prefix;
        self.veth(("c", "eth0"), ("r", "client"));
        sh(&format!(
            "ip -n {p}c addr add 10.78.0.2/24 dev eth0; ip -n {p}c route add default via 10.78.0.1
             ip -n {p}r addr add 10.78.0.1/24 dev client; ip -n {p}r link add br0 type bridge
             ip -n {p}r link set br0 up; ip -n {p}r addr add 10.77.0.1/24 dev br0
             ip -n {p}r route add 10.43.0.0/16 via 10.77.0.11"
        ));
        self.forward("r");
        for (node, alloc, host, block) in [("n1", "a1", 11, 0), ("n2", "a2", 12, 64)] {
            self.veth((node, "eth0"), ("r", node));
            sh(&format!(
                "ip -n {p}r link set {node} master br0; ip -n {p}{node} addr add 10.77.0.{host}/24 dev eth0
                 ip -n {p}{node} route add default via 10.77.0.1
                 ip -n {p}{node} addr add 10.64.0.{}/32 dev lo",
                block + 1
            ));
            kernel::attach_pass(&self.ns("r"), node, &self.pins.join(node)).unwrap();
            self.forward(node);
            self.allocation(node, alloc, block);
        }
    }

    fn forward(&self, ns: &str) {
        within(self.ns(ns), || std::fs::write("/proc/sys/net/ipv4/ip_forward", "1").unwrap());
    }

    fn allocation(&self, node: &str, alloc: &str, block: u8) {
        let (p, address, mesh) = (&self.prefix, block + 2, block + 1);
        self.veth((alloc, "eth0"), (node, "v0"));
        kernel::set_gro(&self.ns(alloc), "eth0", true).unwrap();
        sh(&format!(
            "ip -n {p}{alloc} addr add 10.64.0.{address}/32 dev eth0; ip -n {p}{alloc} link set eth0 mtu {ALLOC_MTU}
             ip -n {p}{node} link set v0 mtu {ALLOC_MTU}
             ip -n {p}{alloc} route add default via 10.64.0.{mesh} dev eth0 onlink
             ip -n {p}{node} route add 10.64.0.{address}/32 dev v0"
        ));
    }

    fn mac(&self, ns: &str, interface: &str) -> [u8; 6] {
        let output = Command::new("ip")
            .args(["-n", &format!("{}{ns}", self.prefix), "-o", "link", "show", interface])
            .output()
            .unwrap();
        let text = String::from_utf8(output.stdout).unwrap();
        let mac = text.split("link/ether ").nth(1).unwrap().split(' ').next().unwrap();
        let bytes: Vec<u8> = mac.split(':').map(|byte| u8::from_str_radix(byte, 16).unwrap()).collect();
        bytes.try_into().unwrap()
    }

    /// What an agent on the node would publish.
    fn image(&self, own: &str, peer: &str) -> MapImage {
        let number = |node: &str| if node == "n1" { (11, 0, "a1") } else { (12, 64, "a2") };
        let ((host, block, alloc), (peer_host, peer_block, _)) = (number(own), number(peer));
        let index = |interface: &'static str| within(self.ns(own), move || if_nametoindex(interface).unwrap());
        let uplink = Uplink {
            addr: addr([10, 77, 0, host]),
            mesh: addr([10, 64, 0, block + 1]),
            ifindex: index("eth0"),
            flags: UPLINK_READY,
            mac: self.mac(own, "eth0"),
            mtu: MTU,
        };
        let mut image = MapImage { uplink, ..MapImage::default() };
        let peer_node = Node { addr: addr([10, 77, 0, peer_host]), dmac: self.mac(peer, "eth0"), flags: 0 };
        image.nodes.insert(1, peer_node);
        image.node_by_addr.insert(peer_node.addr, 1);
        image.blocks.insert(addr([10, 64, 0, block]), 0);
        image.blocks.insert(addr([10, 64, 0, peer_block]), 1);
        let endpoint = Endpoint { ifindex: index("v0"), mac: self.mac(alloc, "eth0"), host_mac: self.mac(own, "v0") };
        image.endpoints.insert(addr([10, 64, 0, block + 2]), endpoint);
        for (id, block_of, node) in [(1, block, 0), (2, peer_block, 1)] {
            let backend: Backend = backend([10, 64, 0, block_of + 2], 8080, node);
            image.backends.insert(id, backend);
        }
        image
    }

    fn attach(&self, node: &'static str, image: &MapImage) -> (Rig, Datapath) {
        let rig = Rig::new(Some("eth0"));
        let config = rig.config.clone();
        let veth = image.endpoints.values().next().unwrap().ifindex;
        let mut datapath = within(self.ns(node), move || {
            let mut datapath = Datapath::attach(&config).unwrap();
            datapath.attach_veth(veth).unwrap();
            datapath
        });
        datapath.publish(&diff(&MapImage::default(), image)).unwrap();
        assert_eq!(*datapath.uplink_mode(), UplinkMode::Native);
        (rig, datapath)
    }
}

impl Drop for Lab {
    fn drop(&mut self) {
        for ns in ["c", "r", "n1", "n2", "a1", "a2"] {
            let _ = Command::new("ip").args(["netns", "del", &format!("{}{ns}", self.prefix)]).status();
        }
        let _ = std::fs::remove_dir_all(&self.pins);
    }
}

fn within<T: Send + 'static>(netns: PathBuf, work: impl FnOnce() -> T + Send + 'static) -> T {
    let thread = thread::spawn(move || {
        setns(File::open(&netns).unwrap(), CloneFlags::CLONE_NEWNET).unwrap();
        work()
    });
    thread.join().unwrap()
}

/// Sends back everything it reads, after a line that says who asked.
fn serve(netns: PathBuf) -> JoinHandle<()> {
    let listener = within(netns, || TcpListener::bind("0.0.0.0:8080").unwrap());
    thread::spawn(move || {
        for stream in listener.incoming() {
            let mut stream = stream.unwrap();
            thread::spawn(move || {
                let peer = stream.peer_addr().unwrap();
                let _ = writeln!(stream, "{peer}");
                let mut reader = stream.try_clone().unwrap();
                let _ = std::io::copy(&mut reader, &mut stream);
                let _ = stream.shutdown(Shutdown::Write);
            });
        }
    })
}

/// Connects from a namespace, sends `megabytes` and reads them back; returns who the server saw, and the own address.
fn ask(netns: PathBuf, to: &str, megabytes: usize) -> std::io::Result<(SocketAddr, SocketAddr)> {
    let to: SocketAddr = to.parse().unwrap();
    within(netns, move || {
        let stream = TcpStream::connect_timeout(&to, Duration::from_secs(10))?;
        exchange(stream, megabytes)
    })
}

fn exchange(mut stream: TcpStream, megabytes: usize) -> std::io::Result<(SocketAddr, SocketAddr)> {
    stream.set_read_timeout(Some(Duration::from_secs(20)))?;
    let own = stream.local_addr()?;
    let mut writer = stream.try_clone()?;
    let sender = thread::spawn(move || {
        let data: Vec<u8> = (0..1_048_576_u32).map(|i| ((i * 31) >> 3) as u8).collect();
        for _ in 0..megabytes {
            writer.write_all(&data).unwrap();
        }
        writer.shutdown(Shutdown::Write).unwrap();
    });
    let mut all = Vec::new();
    stream.read_to_end(&mut all)?;
    sender.join().unwrap();
    let line = all.iter().position(|b| *b == b'\n').expect("a line with the peer's address");
    assert_eq!(all.len() - line - 1, megabytes * 1_048_576, "everything came back");
    let right = all[line + 1..].iter().enumerate().all(|(i, b)| *b == (((i as u32 % 1_048_576) * 31) >> 3) as u8);
    assert!(right, "nothing was damaged");
    Ok((String::from_utf8_lossy(&all[..line]).parse().unwrap(), own))
}

/// Does for unresolved next hops what an agent does: makes the kernel ask for them.
fn resolve(datapath: &mut Datapath, netns: PathBuf) -> Vec<Ipv4Addr> {
    let deadline = Instant::now() + Duration::from_secs(5);
    loop {
        let found: Vec<Ipv4Addr> = datapath.take_unresolved().into_iter().map(Into::into).collect();
        if !found.is_empty() || Instant::now() > deadline {
            for address in found.clone() {
                let probe = move || UdpSocket::bind("0.0.0.0:0").unwrap().send_to(b"", (address, 9)).map(drop);
                let _ = within(netns.clone(), probe);
            }
            return found;
        }
        thread::sleep(Duration::from_millis(20));
    }
}

#[test]
fn clients_sockets_and_allocations_reach_backends_on_both_nodes() {
    let lab = Lab::new("");
    let (mut first, mut second) = (lab.image("n1", "n2"), lab.image("n2", "n1"));
    for image in [&mut first, &mut second] {
        add_service(image, key(NODE, 80), 1, &[2]);
        add_service(image, key(NODE, 81), 2, &[1]);
        add_service(image, key(VIP, 80), 3, &[2]);
        add_service(image, key(VIP, 81), 4, &[]);
    }
    let (_rig1, mut n1) = lab.attach("n1", &first);
    let (_rig2, n2) = lab.attach("n2", &second);
    serve(lab.ns("a1"));
    serve(lab.ns("a2"));

    // A local backend, and a service's own address.
    for to in ["10.77.0.11:81", "10.43.0.1:80"] {
        let (seen, own) = ask(lab.ns("c"), to, MEGABYTES).unwrap();
        assert_eq!(seen, own, "{to}");
    }
    // The first reply through the tunnel may find a next hop that the kernel does not know.
    sh(&format!("ip -n {}n1 neigh flush dev eth0", lab.prefix));
    let client = lab.ns("c");
    let waiting = thread::spawn(move || ask(client, "10.77.0.11:80", MEGABYTES));
    assert_eq!(resolve(&mut n1, lab.ns("n1")), [Ipv4Addr::new(10, 77, 0, 1)]);
    let (seen, own) = waiting.join().unwrap().unwrap();
    assert_eq!((seen, own.ip()), (own, ip(CLIENT).into()), "the server sees the client itself");

    let empty = ask(lab.ns("c"), "10.77.0.11:82", 0).unwrap_err();
    assert_eq!(empty.kind(), std::io::ErrorKind::ConnectionRefused, "other ports are the node's own");

    // From an allocation: translated at the socket, carried by the overlay.
    let dialled = || within(lab.ns("a1"), || TcpStream::connect("10.43.0.1:80").unwrap().peer_addr().unwrap());
    assert_eq!(dialled(), SocketAddr::from((VIP, 80)), "left alone before its namespace is allowed");
    let cookie = kernel::netns_cookie(&lab.ns("a1")).unwrap();
    n1.allow_netns(cookie).unwrap();
    assert_eq!(dialled(), SocketAddr::from((VIP, 80)), "what it dialled is what it sees");
    let (seen, own) = ask(lab.ns("a1"), "10.43.0.1:80", MEGABYTES).unwrap();
    assert_eq!((seen, own.ip()), (own, ip(LOCAL).into()));
    let refused = ask(lab.ns("a1"), "10.43.0.1:81", 0).unwrap_err();
    assert_eq!(refused.kind(), std::io::ErrorKind::ConnectionRefused, "an empty service refuses at once");
    n1.forbid_netns(cookie).unwrap();

    assert_eq!((dropped(&n1), dropped(&n2)), (vec![], vec![]));
    let counters = n1.backend_counters().unwrap();
    assert!(counters[&2].flows >= 3 && counters[&1].flows >= 1, "{counters:?}");
}

#[test]
fn backends_in_a_nodes_own_network_are_reached_through_edge_and_tunnel() {
    let lab = Lab::new("h");
    let (mut first, mut second) = (lab.image("n1", "n2"), lab.image("n2", "n1"));
    for (image, own, other) in [(&mut first, 11, 12), (&mut second, 12, 11)] {
        image.backends.insert(3, backend([10, 77, 0, own], 8080, 0));
        image.backends.insert(4, backend([10, 77, 0, other], 8080, 1));
        add_service(image, key([10, 77, 0, own], 80), 1, &[3]);
        add_service(image, key([10, 77, 0, own], 81), 2, &[4]);
    }
    let (_rig1, n1) = lab.attach("n1", &first);
    let (_rig2, n2) = lab.attach("n2", &second);
    serve(lab.ns("n1"));
    serve(lab.ns("n2"));
    // Unfinished checksums, as a real card is handed them: the hook may not take them for finished ones.
    for offload in [false, true] {
        kernel::set_tx_checksum_offload(&lab.ns("n1"), "eth0", offload).unwrap();
        for to in ["10.77.0.11:80", "10.77.0.12:81"] {
            let (seen, own) = ask(lab.ns("c"), to, MEGABYTES).unwrap();
            assert_eq!(seen, own, "{to}, offload {offload}");
        }
    }
    let direct = ask(lab.ns("c"), "10.77.0.11:8080", 1).unwrap();
    assert_eq!(direct.0, direct.1, "dialled itself, it answers itself");
    assert_eq!(dropped(&n1), []);
    assert_eq!(dropped(&n2), []);
}

/// A network card hands all packets of a connection to one CPU, whose memory of the choice the entry relies on. Here it is
/// the sender's CPU: this thread and those it starts stay where they are.
fn stay_on_one_cpu() {
    let mut cpus = nix::sched::CpuSet::new();
    cpus.set(0).unwrap();
    nix::sched::sched_setaffinity(nix::unistd::Pid::from_raw(0), &cpus).unwrap();
}

#[test]
fn clients_of_a_backend_that_is_gone_are_told_at_once() {
    stay_on_one_cpu();
    let lab = Lab::new("g");
    let (mut first, second) = (lab.image("n1", "n2"), lab.image("n2", "n1"));
    add_service(&mut first, key(NODE, 80), 1, &[2]);
    add_service(&mut first, key(NODE, 81), 2, &[1]);
    add_service(&mut first, key(NODE, 82), 3, &[]);
    let (_rig1, mut n1) = lab.attach("n1", &first);
    let (_rig2, mut n2) = lab.attach("n2", &second);
    serve(lab.ns("a1"));
    serve(lab.ns("a2"));
    let connect = |to: &'static str| {
        let stream = within(lab.ns("c"), move || TcpStream::connect_timeout(&to.parse().unwrap(), DEADLINE)).unwrap();
        stream.set_read_timeout(Some(DEADLINE)).unwrap();
        stream
    };
    let refused = ask(lab.ns("c"), "10.77.0.11:82", 0).unwrap_err();
    assert_eq!(refused.kind(), std::io::ErrorKind::ConnectionRefused, "no backend at all");

    let (mut gone, mut lost, other) = (connect("10.77.0.11:81"), connect("10.77.0.11:80"), connect("10.77.0.11:80"));
    let mut after = first.clone();
    after.backends.get_mut(&1).unwrap().flags |= abi::BACKEND_DOWN;
    after.rings.insert(2, ring_of(9_000, 2, &[2]));
    n1.publish(&diff(&first, &after)).unwrap();
    assert_reset(&mut gone);
    exchange(other, 1).expect("a flow to another backend goes on");

    // The backend's node alone knows: its allocation is gone.
    let mut bare = second.clone();
    bare.endpoints.clear();
    n2.publish(&diff(&second, &bare)).unwrap();
    assert_reset(&mut lost);
    assert_eq!((count(&n1, Reason::ResetBackendGone), count(&n2, Reason::ResetNotOurEndpoint)), (1, 1));
}

/// Answers every datagram with its own name and who asked.
fn serve_udp(netns: PathBuf, name: &'static str) {
    let socket = within(netns, || UdpSocket::bind("0.0.0.0:8080").unwrap());
    thread::spawn(move || {
        let mut buffer = [0; 64];
        while let Ok((_, peer)) = socket.recv_from(&mut buffer) {
            let _ = socket.send_to(format!("{name} {peer}").as_bytes(), peer);
        }
    });
}

fn udp_socket(netns: PathBuf) -> UdpSocket {
    let socket = within(netns, || UdpSocket::bind("0.0.0.0:0").unwrap());
    socket.set_read_timeout(Some(Duration::from_millis(500))).unwrap();
    socket
}

/// What is answered, and from where; asked again when a datagram is lost, as it may be for an unresolved neighbour.
fn ask_udp(socket: &UdpSocket, to: &str) -> (String, SocketAddr) {
    let mut buffer = [0; 64];
    for _ in 0..10 {
        socket.send_to(b"who?", to).unwrap();
        if let Ok((length, from)) = socket.recv_from(&mut buffer) {
            return (String::from_utf8_lossy(&buffer[..length]).into_owned(), from);
        }
    }
    panic!("{to} does not answer");
}

#[test]
fn datagrams_reach_backends_and_follow_a_change_at_once() {
    let lab = Lab::new("u");
    let (mut first, mut second) = (lab.image("n1", "n2"), lab.image("n2", "n1"));
    let udp = |key: abi::VipKey| abi::VipKey { proto: abi::PROTO_UDP, ..key };
    for image in [&mut first, &mut second] {
        for (id, backend) in image.backends.clone() {
            image.backends.insert(id + 10, Backend { proto: abi::PROTO_UDP, ..backend });
        }
        add_service(image, udp(key(NODE, 53)), 1, &[12]);
        add_service(image, udp(key(VIP, 53)), 2, &[12]);
    }
    let (_rig1, mut n1) = lab.attach("n1", &first);
    let (_rig2, n2) = lab.attach("n2", &second);
    serve_udp(lab.ns("a1"), "a1");
    serve_udp(lab.ns("a2"), "a2");
    let client = udp_socket(lab.ns("c"));
    let port = client.local_addr().unwrap().port();
    let edge: SocketAddr = "10.77.0.11:53".parse().unwrap();
    assert_eq!(ask_udp(&client, "10.77.0.11:53"), (format!("a2 10.78.0.2:{port}"), edge), "through the tunnel");

    n1.allow_netns(kernel::netns_cookie(&lab.ns("a1")).unwrap()).unwrap();
    let inside = udp_socket(lab.ns("a1"));
    let port = inside.local_addr().unwrap().port();
    let vip: SocketAddr = "10.43.0.1:53".parse().unwrap();
    assert_eq!(ask_udp(&inside, "10.43.0.1:53"), (format!("a2 10.64.0.2:{port}"), vip), "it sees what it asked");
    let connected = udp_socket(lab.ns("a1"));
    connected.connect(vip).unwrap();
    assert_eq!(connected.peer_addr().unwrap(), vip);
    connected.send(b"who?").unwrap();
    let mut buffer = [0; 64];
    let length = connected.recv(&mut buffer).unwrap();
    assert!(buffer[..length].starts_with(b"a2 "));

    let mut after = first.clone();
    after.backends.get_mut(&12).unwrap().flags |= abi::BACKEND_DOWN;
    after.rings.insert(1, ring_of(9_000, 2, &[11]));
    after.rings.insert(2, ring_of(9_500, 2, &[11]));
    n1.publish(&diff(&first, &after)).unwrap();
    assert_eq!(ask_udp(&client, "10.77.0.11:53").0.split(' ').next(), Some("a1"), "the very next datagram");
    assert_eq!(ask_udp(&inside, "10.43.0.1:53").0.split(' ').next(), Some("a1"));
    assert_eq!((dropped(&n1), dropped(&n2)), (vec![], vec![]));
}

const DEADLINE: Duration = Duration::from_secs(5);

/// Reads the server's first line, then finds the connection reset.
fn assert_reset(stream: &mut TcpStream) {
    let _ = stream.read(&mut [0; 64]).unwrap();
    stream.write_all(b"anybody?").unwrap();
    let error = stream.read(&mut [0; 64]).unwrap_err();
    assert_eq!(error.kind(), std::io::ErrorKind::ConnectionReset);
}

fn dropped(datapath: &Datapath) -> Vec<(&'static str, u64)> {
    let drops = datapath.drop_counters().unwrap();
    let dropped = |reason: &Reason| reason.kind() == abi::Kind::Dropped && *reason != Reason::NeighbourUnresolved;
    drops.iter().filter(|(reason, n)| dropped(reason) && **n > 0).map(|(reason, n)| (reason.name(), *n)).collect()
}

#[test]
fn connections_go_on_without_an_agent_and_through_its_restart() {
    let lab = Lab::new("x");
    let (mut first, second) = (lab.image("n1", "n2"), lab.image("n2", "n1"));
    add_service(&mut first, key(NODE, 80), 1, &[2]);
    let (rig1, n1) = lab.attach("n1", &first);
    let (_rig2, _n2) = lab.attach("n2", &second);
    serve(lab.ns("a2"));
    let stream =
        within(lab.ns("c"), || TcpStream::connect_timeout(&"10.77.0.11:80".parse().unwrap(), Duration::from_secs(10)));
    let stream = stream.unwrap();

    drop(n1);
    ask(lab.ns("c"), "10.77.0.11:80", 1).expect("new connections are served while no agent runs");
    let config = rig1.config.clone();
    let n1 = within(lab.ns("n1"), move || Datapath::attach(&config).unwrap());
    assert!(n1.adopted());
    assert_eq!(n1.load_image().unwrap(), first);
    exchange(stream, 1).expect("the connection from before still works");
    kernel::detach_all(&rig1.config.pin_root, &rig1.config.node_id).unwrap();
    drop(n1);
    // The kernel lets go of the last reference to a link in its own time.
    let until = Instant::now() + DEADLINE;
    while ask(lab.ns("c"), "10.77.0.11:80", 0).is_ok() {
        assert!(Instant::now() < until, "detached: nobody listens there");
        thread::sleep(Duration::from_millis(10));
    }
}
