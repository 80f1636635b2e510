//! Against the kernel, in a network namespace of the test's own. Needs root; whoever lacks it is told, not passed over.

use crate::*;
use model::AllocId;
use nix::sched::CloneFlags;
use std::collections::hash_map::RandomState;
use std::fs;
use std::future::Future;
use std::hash::{BuildHasher, Hasher};
use std::net::{IpAddr, TcpListener, TcpStream};
use std::path::Path;

const MESH: &str = "10.64.9.1";

fn random() -> u128 {
    let half = || u128::from(RandomState::new().build_hasher().finish());
    half() << 64 | half()
}

fn ip(text: &str) -> IpAddr {
    text.parse().expect("an address in a test")
}

/// Removes whatever the test's node left, on a panic too.
struct Sweeper(String);

impl Drop for Sweeper {
    fn drop(&mut self) {
        let entries = fs::read_dir(NETNS_DIR).into_iter().flatten().flatten();
        for entry in entries.filter(|entry| entry.file_name().to_string_lossy().starts_with(&self.0)) {
            drop(ns::remove(&entry.path()));
        }
    }
}

/// Runs the test on a thread in a fresh network namespace: links and routes in it go with the thread.
fn in_fresh_namespace<F: Future<Output = ()>>(test: impl FnOnce(Network) -> F + Send + 'static) {
    let thread = std::thread::spawn(move || {
        nix::sched::unshare(CloneFlags::CLONE_NEWNET).expect("a network namespace: run the tests as root");
        // A fresh namespace takes over what the machine's own has.
        for all in ["all", "default"] {
            node::sysctl(&node::forwarding_path(all), "0").expect("no forwarding yet");
        }
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().expect("a runtime");
        runtime.block_on(async {
            let network = Network::open(NodeId::from_random(random())).expect("rtnetlink");
            let _sweeper = Sweeper(network.netns_prefix());
            test(network).await;
        });
    });
    if let Err(panic) = thread.join() {
        std::panic::resume_unwind(panic);
    }
}

fn attachment(address: &str) -> Attachment {
    Attachment { alloc_id: AllocId::from_random(random()), address: ip(address), gateway: ip(MESH), mtu: 1_438 }
}

async fn prepared(network: &Network) {
    network.add_mesh_address(ip(MESH)).await.expect("the mesh address");
    network.add_mesh_address(ip(MESH)).await.expect("the mesh address, again");
}

#[test]
fn an_attached_allocation_talks_to_its_node_and_back() {
    in_fresh_namespace(|network| async move {
        prepared(&network).await;
        let wanted = attachment("10.64.9.2");
        let attached = network.attach(&wanted).await.expect("attaches");
        assert!(attached.netns.exists() && ns::is_namespace(&attached.netns));
        let outside = TcpListener::bind((MESH, 0)).expect("listens on the mesh address");
        let port = outside.local_addr().expect("an address").port();
        let connect = move || TcpStream::connect((MESH, port)).map(|stream| stream.local_addr().map(|addr| addr.ip()));
        let from = network.inside(wanted.alloc_id, connect).await.expect("enters").expect("connects");
        assert_eq!(from.expect("an address"), wanted.address);
        let listen = || TcpListener::bind("10.64.9.2:8080");
        let _inside = network.inside(wanted.alloc_id, listen).await.expect("enters").expect("listens");
        TcpStream::connect("10.64.9.2:8080").expect("connects to the allocation");
        network.detach(wanted.alloc_id).await.expect("detaches");
    });
}

#[test]
fn attaching_again_adopts_what_exists() {
    in_fresh_namespace(|network| async move {
        prepared(&network).await;
        let wanted = attachment("10.64.9.3");
        let first = network.attach(&wanted).await.expect("attaches");
        let inode = fs::metadata(&first.netns).map(|meta| std::os::unix::fs::MetadataExt::ino(&meta)).expect("exists");
        assert_eq!(network.attach(&wanted).await.expect("attaches again"), first);
        let again = fs::metadata(&first.netns).map(|meta| std::os::unix::fs::MetadataExt::ino(&meta)).expect("exists");
        assert_eq!(inode, again);
        let found = network.list().await.expect("lists");
        let found = &found[&wanted.alloc_id.short()];
        assert_eq!(
            (found.address, found.link.clone()),
            (Some(wanted.address), Some((first.link.clone(), first.ifindex)))
        );
        network.detach(wanted.alloc_id).await.expect("detaches");
    });
}

#[test]
fn an_allocation_whose_id_begins_alike_is_refused_and_nothing_else_forwards() {
    in_fresh_namespace(|network| async move {
        prepared(&network).await;
        let first = attachment("10.64.9.9");
        let attached = network.attach(&first).await.expect("attaches");
        let read =
            |name: &str| fs::read_to_string(format!("/proc/sys/net/ipv4/conf/{name}/forwarding")).expect("reads");
        assert_eq!([read(&attached.link).trim(), read("lo").trim()], ["1", "0"]);
        let twin = AllocId::from_random(first.alloc_id.0.as_u128() ^ 1 << 8);
        assert_eq!(twin.short(), first.alloc_id.short());
        let refused = network.attach(&Attachment { alloc_id: twin, ..first.clone() }).await;
        assert!(matches!(refused, Err(Error::Occupied { .. })), "{refused:?}");
        assert_eq!(network.list().await.expect("lists")[&twin.short()].owner, Some(first.alloc_id));
        network.detach(first.alloc_id).await.expect("detaches");
    });
}

#[test]
fn what_a_crash_left_half_done_is_completed() {
    in_fresh_namespace(|network| async move {
        prepared(&network).await;
        let wanted = attachment("10.64.9.4");
        let path = network.netns_path(wanted.alloc_id);
        fs::write(&path, "").expect("a file that stands for no namespace");
        let attached = network.attach(&wanted).await.expect("attaches over the plain file");
        assert!(ns::is_namespace(&path));
        ns::remove(&path).expect("the namespace goes, and the veth with it");
        for _ in 0..50 {
            if network.find_link(&attached.link).await.expect("looks").is_none() {
                break;
            }
            tokio::time::sleep(std::time::Duration::from_millis(20)).await;
        }
        network.attach(&wanted).await.expect("attaches anew");
        network.detach(wanted.alloc_id).await.expect("detaches");
    });
}

#[test]
fn detaching_leaves_nothing_and_can_be_repeated() {
    in_fresh_namespace(|network| async move {
        prepared(&network).await;
        let (one, two) = (attachment("10.64.9.5"), attachment("10.64.9.6"));
        let attached = network.attach(&one).await.expect("attaches");
        network.attach(&two).await.expect("attaches");
        assert_eq!(network.list().await.expect("lists").len(), 2);
        network.detach(one.alloc_id).await.expect("detaches");
        network.detach(one.alloc_id).await.expect("detaches again");
        assert!(!Path::new(&attached.netns).exists());
        let left = network.list().await.expect("lists");
        assert_eq!(left.keys().cloned().collect::<Vec<_>>(), [two.alloc_id.short()]);
        for leftover in left.values() {
            network.remove_leftover(leftover).await.expect("removes");
        }
        assert!(network.list().await.expect("lists").is_empty());
    });
}

#[test]
fn neighbours_are_resolved_and_changes_are_heard_of() {
    in_fresh_namespace(|network| async move {
        prepared(&network).await;
        let wanted = attachment("10.64.9.7");
        let attached = network.attach(&wanted).await.expect("attaches");
        let hop = network.next_hop(wanted.address).await.expect("a route");
        assert_eq!(hop, NextHop { ifindex: attached.ifindex, address: wanted.address });
        let mut watch = network.watch_neighbours().expect("a watch");
        assert_eq!(network.neighbours().await.expect("lists").get(&hop), Some(&attached.mac));
        network.resolve_once(hop).await.expect("asks for a resolution");
        network.resolve(hop).await.expect("asks for a lasting one");
        let change = tokio::time::timeout(std::time::Duration::from_secs(5), watch.changed()).await;
        assert!(change.expect("hears of it in time"));
        for _ in 0..100 {
            if network.neighbours().await.expect("lists").contains_key(&hop) {
                break;
            }
            tokio::time::sleep(std::time::Duration::from_millis(20)).await;
        }
        assert_eq!(network.neighbours().await.expect("lists").get(&hop), Some(&attached.mac), "resolved by ARP");
        network.release(hop).await.expect("forgets it");
        network.release(hop).await.expect("again");
        assert!(!network.neighbours().await.expect("lists").contains_key(&hop), "nobody needs it");
        assert!(matches!(network.next_hop(ip("192.0.2.1")).await, Err(Error::NoRoute(_) | Error::Netlink { .. })));
        network.detach(wanted.alloc_id).await.expect("detaches");
    });
}

#[test]
fn an_uplink_has_an_ethernet_address_and_loopback_is_none() {
    in_fresh_namespace(|network| async move {
        prepared(&network).await;
        let wanted = attachment("10.64.9.8");
        let attached = network.attach(&wanted).await.expect("attaches");
        let uplink = network.uplink(&attached.link).await.expect("a link");
        assert_eq!((uplink.ifindex, uplink.mac, uplink.mtu), (attached.ifindex, attached.host_mac, 1_438));
        assert!(matches!(network.uplink("lo").await, Err(Error::NotEthernet(_))));
        assert!(matches!(network.uplink("nothing0").await, Err(Error::NoInterface(_))));
        network.detach(wanted.alloc_id).await.expect("detaches");
    });
}

#[test]
fn the_mesh_link_carries_exactly_the_wanted_blocks() {
    in_fresh_namespace(|network| async move {
        prepared(&network).await;
        let link = network.make_mesh_link(1_438).await.expect("makes");
        assert_eq!(network.make_mesh_link(1_438).await.expect("finds"), link);
        let block = |text: &str| text.parse::<ipnet::IpNet>().expect("a block");
        for wanted in [vec!["10.64.1.0/26", "10.64.2.0/26"], vec!["10.64.2.0/26", "10.64.3.0/26"], vec![]] {
            let blocks: std::collections::BTreeSet<_> = wanted.iter().map(|text| block(text)).collect();
            network.route_blocks(&link, &blocks, ip(MESH)).await.expect("routes");
            for (number, text) in [(1, "10.64.1.0/26"), (2, "10.64.2.0/26"), (3, "10.64.3.0/26")] {
                let hop = network.next_hop(IpAddr::from([10, 64, number, 9])).await;
                let into = hop.is_ok_and(|hop| hop.ifindex == link.entry_ifindex);
                assert_eq!(into, wanted.contains(&text), "{text} of {wanted:?}");
            }
        }
        network.remove_mesh_link().await.expect("removes");
        network.remove_mesh_addresses().await.expect("removes");
        network.remove_mesh_addresses().await.expect("removes again");
        assert!(TcpListener::bind((MESH, 0)).is_err(), "the mesh address is gone");
    });
}

fn sh(line: &str) {
    let output = std::process::Command::new("sh").args(["-ec", line]).output().expect("a shell");
    assert!(output.status.success(), "{line}: {}", String::from_utf8_lossy(&output.stderr));
}

/// A neighbour of the node's uplink `up0`, who knows a way to allocations.
fn world(network: &Network) -> std::path::PathBuf {
    let name = format!("{}world", network.netns_prefix());
    let path = Path::new(NETNS_DIR).join(&name);
    ns::make(&path).expect("a namespace");
    sh(&format!(
        "ip link add up0 type veth peer name w0 netns {name}
         ip addr add 192.0.2.1/24 dev up0; ip link set up0 up
         ip -n {name} addr add 192.0.2.2/24 dev w0; ip -n {name} link set w0 up
         ip -n {name} route add 10.64.0.0/11 via 192.0.2.1"
    ));
    path
}

fn forwards(link: &str) -> bool {
    node::is_forwarding(link)
}

#[test]
fn what_leaves_the_mesh_has_the_nodes_address_and_nothing_comes_in_unasked() {
    use std::io::{Read, Write};
    use std::time::Duration;
    in_fresh_namespace(|network| async move {
        prepared(&network).await;
        let world = world(&network);
        let (one, two) = (attachment("10.64.9.10"), attachment("10.64.9.11"));
        network.attach(&one).await.expect("attaches");
        network.attach(&two).await.expect("attaches");
        assert!(!forwards("up0"));
        network.guard(Some("up0")).expect("guards");
        assert!(forwards("up0") && network.is_guarded().expect("lists"));

        let outside = ns::visit(&world, |_| TcpListener::bind("192.0.2.2:0")).expect("enters").expect("listens");
        let address = outside.local_addr().expect("an address");
        let dial = move || TcpStream::connect_timeout(&address, Duration::from_secs(3));
        let mut inner = network.inside(one.alloc_id, dial).await.expect("enters").expect("reaches the world");
        let (mut outer, peer) = outside.accept().expect("a connection");
        assert_eq!(peer.ip(), ip("192.0.2.1"), "the node's address");
        assert!(node::port_range("/proc/sys/net/ipv4/ip_local_port_range").expect("a range").contains(&peer.port()));

        network.guard(Some("up0")).expect("guards again");
        inner.write_all(b"x").expect("sends over the connection of before");
        let mut byte = [0];
        outer.read_exact(&mut byte).expect("receives");

        let listen = || TcpListener::bind("10.64.9.10:8080");
        let inside = network.inside(one.alloc_id, listen).await.expect("enters").expect("listens");
        let neighbour = || TcpStream::connect_timeout(&"10.64.9.10:8080".parse().expect("one"), Duration::from_secs(3));
        let _held = network.inside(two.alloc_id, neighbour).await.expect("enters").expect("reaches its neighbour");
        assert_eq!(inside.accept().expect("a connection").1.ip(), two.address, "between allocations as it is");
        let intrude =
            |_: &_| TcpStream::connect_timeout(&"10.64.9.10:8080".parse().expect("one"), Duration::from_millis(400));
        assert!(ns::visit(&world, intrude).expect("enters").is_err(), "reached from outside");

        network.unguard().expect("takes the rules away");
        network.unguard().expect("again");
        assert!(!forwards("up0") && !network.is_guarded().expect("lists"), "as it was before");
    });
}

#[test]
fn rules_of_others_are_left_alone_and_told_of() {
    in_fresh_namespace(|network| async move {
        prepared(&network).await;
        let _world = world(&network);
        sh(
            "nft add table ip filter; nft add chain ip filter FORWARD '{ type filter hook forward priority 0; policy drop; }'",
        );
        sh("sysctl -qw net.ipv4.conf.up0.forwarding=1");
        network.guard(Some("up0")).expect("guards");
        assert_eq!(network.forwarding_refused_by().expect("lists"), ["chain FORWARD of table filter"]);
        sh(&format!("nft delete table ip meshctl-{}", network.node));
        assert!(!network.is_guarded().expect("lists"));
        network.guard(Some("up0")).expect("guards again");
        network.unguard().expect("takes the rules away");
        assert!(forwards("up0"), "it was on before");
        assert_eq!(network.forwarding_refused_by().expect("lists"), ["chain FORWARD of table filter"]);
    });
}
