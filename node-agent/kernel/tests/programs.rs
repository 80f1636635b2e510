//! The loaded programs on single frames, by BPF_PROG_TEST_RUN.

#![expect(clippy::unwrap_used, reason = "helpers of tests fail as tests do")]

mod common;

use std::net::SocketAddrV4;

use abi::{BACKEND_DOWN, Endpoint, Reason};
use common::*;
use dataplane::{MapImage, diff};
use kernel::{Datapath, Question, TraceAction, Tunnel};
use nix::{
    sched::{CpuSet, sched_setaffinity},
    unistd::Pid,
};
use packet::{Inner, Kind, Target};

const TC_REDIRECT: u32 = 7;
const TC_NEXT: u32 = u32::MAX;

/// On one CPU: each has an entry cache of its own.
fn published(image: &MapImage) -> (Rig, Datapath) {
    let mut cpu = CpuSet::new();
    cpu.set(0).unwrap();
    sched_setaffinity(Pid::from_raw(0), &cpu).unwrap();
    let rig = Rig::new(None);
    let mut datapath = rig.attach();
    datapath.publish(&diff(&MapImage::default(), image)).unwrap();
    (rig, datapath)
}

fn with_endpoint(mut image: MapImage) -> MapImage {
    let endpoint = Endpoint { ifindex: 1, mac: [2, 1, 0, 0, 0, 2], host_mac: [2, 1, 0, 0, 0, 1] };
    image.endpoints.insert(addr(LOCAL), endpoint);
    image
}

/// VIP:80 -> the local allocation, VIP:81 -> the same one, VIP:82 -> the peer's, VIP:83 -> nothing.
fn services() -> MapImage {
    let mut image = with_endpoint(image());
    image.backends.insert(1, backend(LOCAL, 8080, 0));
    image.backends.insert(2, backend(REMOTE, 8080, 1));
    add_service(&mut image, key(VIP, 80), 1, &[1]);
    add_service(&mut image, key(VIP, 81), 2, &[1]);
    add_service(&mut image, key(VIP, 82), 3, &[2]);
    add_service(&mut image, key(VIP, 83), 4, &[]);
    image
}

fn segment(port: u16, flags: u8) -> Segment {
    Segment::new((CLIENT, 40_000), (VIP, port), flags)
}

/// As the peer would send it: in the tunnel, with the backend it chose.
fn tunnelled(from: [u8; 4], kind: Kind, target: ([u8; 4], u16), inner: &Segment) -> Vec<u8> {
    tunnelled_frame(from, kind, target, &inner.frame())
}

fn tunnelled_frame(from: [u8; 4], kind: Kind, target: ([u8; 4], u16), inner: &[u8]) -> Vec<u8> {
    let outer = packet::Outer {
        src_mac: [2, 0, 0, 0, 0, 12],
        dst_mac: [2, 0, 0, 0, 0, 11],
        src: addr(from),
        dst: addr(NODE),
        src_port: abi::Be16::new(50_000),
        inner_len: (inner.len() - 14) as u16,
        kind,
        target: Target { addr: addr(target.0), port: abi::Be16::new(target.1), proto: TCP },
    };
    [&outer.bytes()[..], inner].concat()
}

#[test]
fn other_traffic_passes_untouched() {
    let (_rig, mut datapath) = published(&services());
    for frame in [segment(443, SYN).frame(), vec![0xff; 60]] {
        let trace = datapath.trace(&frame).unwrap();
        assert_eq!((trace.action, trace.frame), (TraceAction::ToStack, frame));
    }
}

#[test]
fn nothing_is_touched_before_the_node_is_published() {
    let rig = Rig::new(None);
    let mut datapath = rig.attach();
    let frame = segment(80, SYN).frame();
    assert_eq!(datapath.trace(&frame).unwrap().action, TraceAction::ToStack);
}

#[test]
fn a_local_backend_gets_the_packet_with_the_clients_address() {
    let (_rig, mut datapath) = published(&services());
    let trace = datapath.trace(&segment(80, SYN).frame()).unwrap();
    assert_eq!(trace.action, TraceAction::Redirected);
    let got = Segment::read(&trace.frame);
    assert_eq!((got.src, got.dst, got.ttl), ((CLIENT, 40_000), (LOCAL, 8080), 63));
    assert_eq!(trace.frame[0..12], [2, 1, 0, 0, 0, 2, 2, 1, 0, 0, 0, 1]);
    let counters = datapath.backend_counters().unwrap()[&1];
    assert_eq!((counters.packets, counters.bytes, counters.flows), (1, 40, 1));
}

#[test]
fn a_remote_backend_is_reached_through_the_tunnel() {
    let (_rig, mut datapath) = published(&services());
    let trace = datapath.trace(&Segment { payload: 7, ..segment(82, SYN) }.frame()).unwrap();
    assert_eq!(trace.action, TraceAction::SentBack);
    let outer = packet::Ipv4::parse(&trace.frame[..], packet::L3).unwrap();
    assert_eq!((outer.src, outer.dst), (addr(NODE), addr(PEER)));
    assert_eq!(trace.frame[0..6], [2, 0, 0, 0, 0, 12]);
    let target = Target { addr: addr(REMOTE), port: abi::Be16::new(8080), proto: TCP };
    assert_eq!(packet::inner(&trace.frame[..]), Ok(Inner { kind: Kind::Forward, target }));
    let inner = Segment::read(&trace.frame[packet::OUTER..]);
    assert_eq!(inner, Segment { ttl: 63, payload: 7, ..segment(82, SYN) });
}

#[test]
fn drops_have_a_counted_reason() {
    let mut image = services();
    image.nodes.insert(2, abi::Node { addr: addr([10, 77, 0, 13]), dmac: [0; 6], flags: 0 });
    image.backends.insert(3, backend([10, 64, 0, 130], 1, 2));
    image.backends.insert(4, abi::Backend { flags: BACKEND_DOWN, ..backend(REMOTE, 9, 1) });
    image.backends.insert(5, backend([10, 64, 0, 9], 9, 0));
    for (ring, port) in [(5, 84), (6, 85), (7, 86)] {
        add_service(&mut image, key(VIP, port), ring, &[ring - 2]);
    }
    let (_rig, mut datapath) = published(&image);
    let cases = [
        (segment(83, RST), Reason::NoBackend),
        (Segment { payload: 1400, ..segment(82, ACK) }, Reason::TooBig),
        (Segment { ttl: 1, ..segment(80, SYN) }, Reason::TtlExpired),
        (segment(84, SYN), Reason::NodeUnresolved),
        (segment(85, SYN), Reason::BackendDown),
        (segment(86, SYN), Reason::NotOurEndpoint),
    ];
    for (segment, reason) in cases {
        assert_eq!(datapath.trace(&segment.frame()).unwrap().action, TraceAction::Dropped, "{reason:?}");
        assert_eq!(count(&datapath, reason), 1, "{reason:?}");
    }
    assert_eq!(datapath.take_unresolved().into_iter().collect::<Vec<_>>(), [addr([10, 77, 0, 13])]);
}

#[test]
fn what_is_not_handled_goes_to_the_stack_and_is_counted() {
    let (_rig, mut datapath) = published(&services());
    let edit = |at: usize, value: u8| {
        let mut frame = segment(80, SYN).frame();
        frame[at] = value;
        frame
    };
    let cases = [
        ([&segment(80, SYN).frame()[..12], &[0x81, 0, 0, 5], &segment(80, SYN).frame()[12..]].concat(), Reason::Vlan),
        (edit(14, 0x46), Reason::Ipv4Options),
        (edit(20, 0x20), Reason::Fragment),
        (edit(17, 200), Reason::Truncated),
        (segment(80, SYN).frame()[..30].to_vec(), Reason::Truncated),
    ];
    for (frame, reason) in cases {
        let before = count(&datapath, reason);
        let trace = datapath.trace(&frame).unwrap();
        assert_eq!((trace.action, trace.frame), (TraceAction::ToStack, frame), "{reason:?}");
        assert_eq!(count(&datapath, reason), before + 1, "{reason:?}");
    }
}

#[test]
fn tunnelled_packets_are_taken_from_nodes_for_local_endpoints_only() {
    let (_rig, mut datapath) = published(&services());
    let inner = segment(82, SYN);
    let mut act = |frame: &[u8]| datapath.trace(frame).unwrap();
    let good = act(&tunnelled(PEER, Kind::Forward, (LOCAL, 8080), &inner));
    assert_eq!(good.action, TraceAction::Redirected);
    let got = Segment::read(&good.frame);
    assert_eq!((got.src, got.dst, got.ttl), ((CLIENT, 40_000), (LOCAL, 8080), 63));
    let stranger = tunnelled([10, 77, 0, 99], Kind::Forward, (LOCAL, 8080), &inner);
    let elsewhere = tunnelled(PEER, Kind::Forward, (REMOTE, 8080), &inner); // a SYN is worth another try
    let mut foreign = tunnelled(PEER, Kind::Forward, (LOCAL, 8080), &inner);
    foreign[52] = 0; // the option's class
    for frame in [stranger, elsewhere, foreign] {
        assert_eq!(act(&frame).action, TraceAction::Dropped);
    }
    for reason in [Reason::TunnelPeerUnknown, Reason::NotOurEndpoint, Reason::TunnelMalformed] {
        assert_eq!(count(&datapath, reason), 1, "{reason:?}");
    }
}

#[test]
fn a_reply_comes_from_what_was_dialled_and_returns_to_the_entry_node() {
    let (_rig, mut datapath) = published(&services());
    datapath.trace(&tunnelled(PEER, Kind::Forward, (LOCAL, 8080), &segment(82, SYN))).unwrap();
    let reply = Segment { payload: 9, ..Segment::new((LOCAL, 8080), (CLIENT, 40_000), SYN | ACK) };
    let (verdict, frame) = datapath.trace_reply(&reply.frame()).unwrap();
    assert_eq!(verdict, TC_REDIRECT);
    let outer = packet::Ipv4::parse(&frame[..], packet::L3).unwrap();
    assert_eq!((outer.src, outer.dst), (addr(NODE), addr(PEER)));
    assert_eq!(packet::inner(&frame[..]).unwrap().kind, Kind::Reply);
    let inner = Segment::read(&frame[packet::OUTER..]);
    assert_eq!(inner, Segment { src: (VIP, 82), dst: (CLIENT, 40_000), ttl: 63, ..reply });
}

#[test]
fn what_is_no_reply_is_left_alone_or_wrapped_for_its_node() {
    let (_rig, mut datapath) = published(&services());
    let outward = Segment::new((LOCAL, 50_000), ([192, 0, 2, 1], 443), SYN).frame();
    assert_eq!(datapath.trace_reply(&outward).unwrap(), (TC_NEXT, outward));
    let neighbour = Segment::new((LOCAL, 50_000), ([10, 64, 0, 5], 443), SYN).frame();
    assert_eq!(datapath.trace_reply(&neighbour).unwrap().0, TC_NEXT, "this node's own block");
    let overlay = Segment::new((LOCAL, 50_000), (REMOTE, 443), SYN);
    let (verdict, frame) = datapath.trace_reply(&overlay.frame()).unwrap();
    assert_eq!((verdict, packet::inner(&frame[..]).unwrap().kind), (TC_REDIRECT, Kind::Plain));
    assert_eq!(Segment::read(&frame[packet::OUTER..]), Segment { ttl: 63, ..overlay });
}

#[test]
fn overlay_packets_are_delivered() {
    let (_rig, mut datapath) = published(&services());
    let inner = Segment::new((REMOTE, 443), (LOCAL, 50_000), SYN | ACK);
    let trace = datapath.trace(&tunnelled(PEER, Kind::Plain, ([0; 4], 0), &inner)).unwrap();
    assert_eq!(trace.action, TraceAction::Redirected);
    assert_eq!(Segment::read(&trace.frame), Segment { ttl: 63, ..inner });
    let to_host = Segment::new((REMOTE, 443), ([10, 64, 0, 1], 53), SYN);
    let trace = datapath.trace(&tunnelled(PEER, Kind::Plain, ([0; 4], 0), &to_host)).unwrap();
    assert_eq!((trace.action, Segment::read(&trace.frame)), (TraceAction::ToStack, to_host));
}

#[test]
fn two_connections_that_look_the_same_to_a_backend_are_kept_apart() {
    let (_rig, mut datapath) = published(&services());
    let mut deliver = |port, flags| Segment::read(&datapath.trace(&segment(port, flags).frame()).unwrap().frame);
    let first = deliver(80, SYN);
    let second = deliver(81, SYN);
    assert_eq!(first.src, (CLIENT, 40_000));
    assert_eq!(second.src.0, CLIENT, "never the address");
    assert_ne!(second.src.1, 40_000);
    assert_eq!(deliver(80, ACK).src, first.src);
    assert_eq!(deliver(81, ACK).src, second.src, "for the connection's whole life");
    for (to, dialled) in [(first.src.1, 80), (second.src.1, 81)] {
        let reply = Segment::new((LOCAL, 8080), (CLIENT, to), SYN | ACK).frame();
        // Both flows came in here, so replies are routed, not wrapped.
        let (_, frame) = datapath.trace_reply(&reply).unwrap();
        let got = Segment::read(&frame);
        assert_eq!((got.src, got.dst), ((VIP, dialled), (CLIENT, 40_000)));
    }
    assert_eq!(count(&datapath, Reason::FlowAliased), 1);
}

#[test]
fn an_alias_outlives_the_connection_it_made_way_for() {
    let (_rig, mut datapath) = published(&services());
    let mut deliver = |port, flags| Segment::read(&datapath.trace(&segment(port, flags).frame()).unwrap().frame).src;
    deliver(80, SYN);
    let second = deliver(81, SYN);
    deliver(80, RST);
    assert_eq!(deliver(81, ACK), second);
}

#[test]
fn a_reset_connection_frees_its_port() {
    let (_rig, mut datapath) = published(&services());
    let mut deliver = |port, flags| Segment::read(&datapath.trace(&segment(port, flags).frame()).unwrap().frame).src.1;
    deliver(80, SYN);
    deliver(80, RST);
    assert_eq!(deliver(81, SYN), 40_000);
}

#[test]
fn a_ring_change_moves_new_connections_and_no_old_ones() {
    let mut before = with_endpoint(image());
    before.backends.insert(1, backend(REMOTE, 1, 1));
    before.backends.insert(2, backend(REMOTE, 2, 1));
    add_service(&mut before, key(VIP, 80), 1, &[1]);
    let (_rig, mut datapath) = published(&before);
    let mut after = before.clone();
    after.rings.insert(1, ring_of(5000, 2, &[2]));

    let target = |datapath: &mut Datapath, segment: Segment| {
        let trace = datapath.trace(&segment.frame()).unwrap();
        packet::inner(&trace.frame[..]).unwrap().target.port.get()
    };
    assert_eq!(target(&mut datapath, segment(80, SYN)), 1);
    datapath.publish(&diff(&before, &after)).unwrap();
    assert_eq!(target(&mut datapath, segment(80, ACK)), 1, "established");
    let other = Segment { src: (CLIENT, 41_000), ..segment(80, SYN) };
    assert_eq!(target(&mut datapath, other), 2, "new");
    assert_eq!(target(&mut datapath, segment(80, SYN)), 2, "the same ports again are a new connection");

    let mut gone = after.clone();
    gone.rings.insert(1, ring_of(6000, 3, &[1]));
    gone.backends.get_mut(&2).unwrap().flags |= BACKEND_DOWN;
    datapath.publish(&diff(&after, &gone)).unwrap();
    let reset = datapath.trace(&Segment { flags: ACK, ..other }.frame()).unwrap();
    assert_eq!(Segment::read(&reset.frame).flags, RST, "its backend is gone");
    assert_eq!(target(&mut datapath, Segment { flags: SYN, ..other }), 1);
}

/// What the entry says to the client, as an answer to the segment.
fn assert_reset(datapath: &mut Datapath, segment: &Segment, reason: Reason) {
    let before = count(datapath, reason);
    let trace = datapath.trace(&segment.frame()).unwrap();
    assert_eq!((trace.action, trace.frame.len()), (TraceAction::SentBack, packet::RESET_LEN), "{reason:?}");
    let got = Segment::read(&trace.frame);
    assert_eq!((got.src, got.dst, got.payload), (segment.dst, segment.src, 0));
    assert_eq!(got.flags & RST, RST);
    assert_eq!(trace.frame[0..12], [2, 0, 0, 0, 0, 1, 2, 0, 0, 0, 0, 11], "to whom it came from");
    assert_eq!(count(datapath, reason), before + 1, "{reason:?}");
}

#[test]
fn who_dials_a_service_without_backends_is_refused_at_once() {
    let (_rig, mut datapath) = published(&services());
    for flags in [SYN, ACK, FIN | ACK] {
        assert_reset(&mut datapath, &Segment { payload: 100, ..segment(83, flags) }, Reason::ResetNoBackend);
    }
    let silent = datapath.trace(&segment(83, RST).frame()).unwrap();
    assert_eq!(silent.action, TraceAction::Dropped, "resets are not answered");
}

#[test]
fn a_flow_whose_backend_is_gone_is_reset_and_no_other_is() {
    let before = services();
    let (_rig, mut datapath) = published(&before);
    let flow = |port: u16, client: u16, flags: u8| Segment { src: (CLIENT, client), ..segment(port, flags) };
    for (port, client) in [(80, 1), (81, 2), (82, 3)] {
        datapath.trace(&flow(port, client, SYN).frame()).unwrap();
    }
    let mut after = before.clone();
    after.backends.get_mut(&2).unwrap().flags |= BACKEND_DOWN;
    after.rings.insert(3, ring_of(9_000, 2, &[1]));
    datapath.publish(&diff(&before, &after)).unwrap();
    assert_reset(&mut datapath, &flow(82, 3, ACK), Reason::ResetBackendGone);
    for (port, client) in [(80, 1), (81, 2)] {
        let kept = datapath.trace(&flow(port, client, ACK).frame()).unwrap();
        assert_eq!(kept.action, TraceAction::Redirected);
    }
    // The allocation's network goes before the catalog's word of it has come.
    let mut bare = after.clone();
    bare.endpoints.clear();
    datapath.publish(&diff(&after, &bare)).unwrap();
    assert_reset(&mut datapath, &flow(80, 1, ACK), Reason::ResetNotOurEndpoint);
    let retried = datapath.trace(&flow(80, 9, SYN).frame()).unwrap();
    assert_eq!(retried.action, TraceAction::Dropped, "sent again, it finds the new ring");
}

#[test]
fn a_tunnelled_flow_without_an_endpoint_is_reset_by_way_of_its_entry() {
    let (_rig, mut datapath) = published(&image());
    let inner = Segment { payload: 50, ..segment(82, ACK) };
    let trace = datapath.trace(&tunnelled(PEER, Kind::Forward, (LOCAL, 8080), &inner)).unwrap();
    assert_eq!(trace.action, TraceAction::SentBack);
    assert_eq!(trace.frame[0..12], [2, 0, 0, 0, 0, 12, 2, 0, 0, 0, 0, 11]);
    let outer = packet::Ipv4::parse(&trace.frame[..], packet::L3).unwrap();
    assert_eq!((outer.src, outer.dst), (addr(NODE), addr(PEER)));
    assert_eq!(outer.total_len as usize, trace.frame.len() - packet::ETHERNET);
    assert_eq!(packet::inner(&trace.frame[..]).unwrap().kind, Kind::Reply);
    let got = Segment::read(&trace.frame[packet::OUTER..]);
    assert_eq!((got.src, got.dst, got.flags), (inner.dst, inner.src, RST));
    assert_eq!(count(&datapath, Reason::ResetNotOurEndpoint), 1);
    let again = tunnelled(PEER, Kind::Forward, (LOCAL, 8080), &Segment { flags: RST, ..inner });
    assert_eq!(datapath.trace(&again).unwrap().action, TraceAction::Dropped);
}

/// Port 80 leads to a socket of this node, 81 to one of the peer.
fn host_services() -> MapImage {
    let mut image = image();
    let host = |address: [u8; 4], node: u32| {
        let local = backend(address, 20_000, node);
        abi::Backend { flags: local.flags | abi::BACKEND_HOST, ..local }
    };
    image.backends.insert(1, host(NODE, 0));
    image.backends.insert(2, host(PEER, 1));
    add_service(&mut image, key(NODE, 80), 1, &[1]);
    add_service(&mut image, key(NODE, 81), 2, &[2]);
    image
}

#[test]
fn a_backend_in_the_nodes_own_network_gets_its_packets_by_the_stack() {
    let (_rig, mut datapath) = published(&host_services());
    let dialled = Segment::new((CLIENT, 40_000), (NODE, 80), SYN);
    let trace = datapath.trace(&dialled.frame()).unwrap();
    assert_eq!(trace.action, TraceAction::ToStack);
    assert_eq!(Segment::read(&trace.frame), Segment { dst: (NODE, 20_000), ttl: 63, ..dialled });
    let reply = Segment { payload: 9, ..Segment::new((NODE, 20_000), (CLIENT, 40_000), SYN | ACK) };
    let (verdict, frame) = datapath.trace_egress(&reply.frame()).unwrap();
    assert_eq!((verdict, Segment::read(&frame)), (TC_NEXT, Segment { src: (NODE, 80), ..reply }));
    for other in [Segment { src: (NODE, 22), ..reply }, Segment { dst: (CLIENT, 40_001), ..reply }] {
        assert_eq!(datapath.trace_egress(&other.frame()).unwrap(), (TC_NEXT, other.frame()), "none of ours");
    }
    datapath.trace(&Segment { flags: RST, ..dialled }.frame()).unwrap();
    assert_eq!(
        datapath.trace_egress(&reply.frame()).unwrap(),
        (TC_NEXT, reply.frame()),
        "the port may be another connection's, which dialled the node itself"
    );
}

/// The segment with an MSS of 1460 in its options.
fn with_mss(segment: &Segment) -> Vec<u8> {
    let mut frame = Segment { payload: 4, ..*segment }.frame();
    frame[46] = 0x60;
    frame[54..58].copy_from_slice(&[2, 4, 5, 180]);
    finish(&mut frame);
    frame
}

#[test]
fn a_host_backend_behind_a_tunnel_answers_by_it_and_leaves_room_for_it() {
    let (_rig, mut datapath) = published(&host_services());
    let dialled = Segment::new((CLIENT, 40_000), ([10, 77, 0, 12], 81), SYN);
    let syn = with_mss(&dialled);
    let outer = tunnelled_frame(PEER, Kind::Forward, (NODE, 20_000), &syn);
    let trace = datapath.trace(&outer).unwrap();
    assert_eq!(trace.action, TraceAction::ToStack);
    assert_eq!(trace.frame[0..12], [2, 0, 0, 0, 0, 11, 2, 0, 0, 0, 0, 11]);
    let got = Segment::read(&trace.frame);
    assert_eq!((got.src, got.dst), ((CLIENT, 40_000), (NODE, 20_000)));
    assert_eq!(trace.frame[54..58], [2, 4, 5, 118], "1500 less the tunnel's 62 and the headers' 40");

    let reply = with_mss(&Segment::new((NODE, 20_000), (CLIENT, 40_000), SYN | ACK));
    let (verdict, frame) = datapath.trace_egress(&reply).unwrap();
    assert_eq!((verdict, packet::inner(&frame[..]).unwrap().kind), (TC_NEXT, Kind::Reply));
    let outer = packet::Ipv4::parse(&frame[..], packet::L3).unwrap();
    assert_eq!((outer.src, outer.dst), (addr(NODE), addr(PEER)));
    let inner = &frame[packet::OUTER..];
    let got = Segment::read(inner);
    assert_eq!((got.src, got.dst, got.ttl), (([10, 77, 0, 12], 81), (CLIENT, 40_000), 64));
    assert_eq!(inner[54..58], [2, 4, 5, 118]);
}

#[test]
fn programs_stay_far_below_what_the_verifier_walks_through() {
    let rig = Rig::new(None);
    let figures = rig.attach().verified_instructions().unwrap();
    println!("verified instructions: {figures:?}");
    assert!(figures.values().all(|n| (1..100_000).contains(n)), "{figures:?}");
}

/// One bucket pair that fills: a table of two buckets.
fn tiny(image: &MapImage) -> (Rig, Datapath) {
    let (rig, datapath) = published(image);
    drop(datapath);
    kernel::detach_all(&rig.config.pin_root, &rig.config.node_id).unwrap();
    let sizes = kernel::Sizes { flows: 8, choices: 8 };
    let mut datapath = Datapath::attach(&kernel::Config { sizes, ..rig.config.clone() }).unwrap();
    datapath.publish(&diff(&MapImage::default(), image)).unwrap();
    (rig, datapath)
}

#[test]
fn floods_of_syns_wash_out_no_connection_and_a_full_table_refuses_new_ones() {
    let (_rig, mut datapath) = tiny(&services());
    let flow = |client: u16, flags: u8| Segment { src: (CLIENT, client), ..segment(80, flags) };
    let establish = |datapath: &mut Datapath, client: u16| {
        datapath.trace(&flow(client, SYN).frame()).unwrap();
        datapath.trace_reply(&Segment::new((LOCAL, 8080), (CLIENT, client), SYN | ACK).frame()).unwrap();
        datapath.trace(&flow(client, ACK).frame()).unwrap().action
    };
    for client in 1..=3 {
        assert_eq!(establish(&mut datapath, client), TraceAction::Redirected);
    }
    for client in 1_000..3_000 {
        assert_eq!(datapath.trace(&flow(client, SYN).frame()).unwrap().action, TraceAction::Redirected);
    }
    let pressure = datapath.flow_pressure();
    assert_eq!((pressure.capacity, pressure.confirmed, pressure.unconfirmed), (8, 3, 5));
    for client in 1..=3 {
        let reply = Segment::new((LOCAL, 8080), (CLIENT, client), ACK).frame();
        assert_eq!(Segment::read(&datapath.trace_reply(&reply).unwrap().1).src, (VIP, 80), "still known");
    }
    for client in 4..=8 {
        assert_eq!(establish(&mut datapath, client), TraceAction::Redirected);
    }
    assert_eq!(datapath.trace(&flow(9, SYN).frame()).unwrap().action, TraceAction::Dropped);
    assert_eq!((count(&datapath, Reason::FlowTableRefused), datapath.flows().len()), (1, 8));
    assert!((datapath.flow_pressure().ratio() - 1.0).abs() < f64::EPSILON);
    datapath.trace(&flow(4, FIN | ACK).frame()).unwrap();
    datapath.trace(&flow(5, RST).frame()).unwrap();
    assert_eq!(datapath.trace(&flow(1, ACK).frame()).unwrap().action, TraceAction::Redirected);
}

#[test]
fn a_rehearsal_says_what_would_happen_and_touches_nothing() {
    let before = services();
    let (_rig, mut datapath) = published(&before);
    let ask = |port: u16, opens: bool| Question {
        src: SocketAddrV4::new(ip(CLIENT), 40_000),
        dst: SocketAddrV4::new(ip(VIP), port),
        proto: TCP,
        opens,
    };
    let to = |address: [u8; 4], port: u16| SocketAddrV4::new(ip(address), port);
    let local = datapath.rehearse(&ask(80, true)).unwrap();
    assert_eq!((local.action, local.tunnel), (TraceAction::Redirected, None));
    assert_eq!(local.ends, Some((to(CLIENT, 40_000), to(LOCAL, 8080))));
    let tunnel = datapath.rehearse(&ask(82, true)).unwrap();
    assert_eq!(tunnel.action, TraceAction::SentBack);
    assert_eq!(tunnel.tunnel, Some(Tunnel { from: ip(NODE), to: ip(PEER), backend: to(REMOTE, 8080) }));
    assert_eq!(tunnel.ends, Some((to(CLIENT, 40_000), to(VIP, 82))));
    let refused = datapath.rehearse(&ask(83, true)).unwrap();
    assert_eq!((refused.reset, refused.reasons), (true, vec![Reason::ResetNoBackend]));
    assert_eq!(datapath.rehearse(&ask(443, true)).unwrap().action, TraceAction::ToStack);
    assert!(datapath.drop_counters().unwrap().values().all(|n| *n == 0));
    assert!(datapath.backend_counters().unwrap().values().all(|counters| counters.packets == 0));

    let unknown = datapath.rehearse(&ask(80, false)).unwrap();
    assert_eq!((unknown.remembered.len(), &unknown.reasons[..]), (0, &[Reason::FlowRecreated, Reason::EntryMiss][..]));
    datapath.trace(&segment(80, SYN).frame()).unwrap();
    let known = datapath.rehearse(&ask(80, false)).unwrap();
    assert_eq!(known.remembered.values().collect::<Vec<_>>(), [&1]);
    assert_eq!((known.flow.is_some(), known.reasons), (true, vec![]));
}

#[test]
fn counters_begin_anew_when_an_id_is_used_again() {
    let before = services();
    let (_rig, mut datapath) = published(&before);
    datapath.trace(&segment(80, SYN).frame()).unwrap();
    assert_eq!(datapath.backend_counters().unwrap()[&1].packets, 1);
    let mut gone = before.clone();
    gone.backends.remove(&1);
    datapath.publish(&diff(&before, &gone)).unwrap();
    datapath.publish(&diff(&gone, &before)).unwrap();
    assert_eq!(datapath.backend_counters().unwrap()[&1], abi::BackendCounters::default());
}

#[test]
fn a_new_agent_adopts_what_the_old_one_left() {
    let image = services();
    let (rig, mut datapath) = published(&image);
    assert!(!datapath.adopted());
    datapath.trace(&segment(80, SYN).frame()).unwrap();
    drop(datapath);
    let mut datapath = rig.attach();
    assert!(datapath.adopted());
    assert_eq!(datapath.load_image().unwrap(), image);
    datapath.trace(&segment(80, ACK).frame()).unwrap();
    assert_eq!(count(&datapath, Reason::EntryMiss), 0, "flows are remembered");
    let counters = datapath.backend_counters().unwrap()[&1];
    assert_eq!((counters.packets, counters.flows), (2, 1));
}

#[test]
fn a_delta_removes_what_is_no_longer_wanted() {
    let image = services();
    let (_rig, mut datapath) = published(&image);
    datapath.publish(&diff(&image, &MapImage::default())).unwrap();
    assert_eq!(datapath.load_image().unwrap(), MapImage::default());
    assert_eq!(datapath.trace(&segment(80, SYN).frame()).unwrap().action, TraceAction::ToStack);
}

#[test]
fn writes_outside_an_array_are_refused() {
    let rig = Rig::new(None);
    let mut datapath = rig.attach();
    let write = dataplane::Write::SetSlots { base: abi::maps::RING_SLOTS_MAX - 1, slots: [1, 2].into() };
    let error = datapath.publish(&dataplane::MapDelta { writes: vec![write] }).unwrap_err();
    assert!(error.to_string().contains("ring_slots"), "{error}");
}

#[test]
fn hostile_frames_neither_crash_nor_abort() {
    let (_rig, mut datapath) = published(&services());
    let mut state = 0x2545_f491_4f6c_dd1d_u64;
    let mut random = move || {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        state
    };
    let seeds = [segment(80, SYN).frame(), tunnelled(PEER, Kind::Forward, (LOCAL, 8080), &segment(82, SYN))];
    for round in 0..20_000 {
        let mut frame = seeds[round % 2].clone();
        for _ in 0..random() % 4 {
            let at = random() as usize % frame.len();
            frame[at] = random() as u8;
        }
        frame.truncate(14 + random() as usize % (frame.len() - 13));
        assert_ne!(datapath.trace(&frame).unwrap().action, TraceAction::Aborted, "{frame:?}");
        if frame.len() < 54 {
            continue; // the kernel makes no packet for TC of a frame this short
        }
        let (verdict, _) = datapath.trace_reply(&frame).unwrap();
        assert!([TC_NEXT, TC_REDIRECT, 2].contains(&verdict), "{verdict} {frame:?}");
    }
}

#[test]
fn detaching_leaves_nothing_behind() {
    let rig = Rig::new(None);
    drop(rig.attach());
    let directory = rig.config.pin_root.join(&rig.config.node_id);
    assert!(directory.exists());
    kernel::detach_all(&rig.config.pin_root, &rig.config.node_id).unwrap();
    assert!(!directory.exists());
    kernel::detach_all(&rig.config.pin_root, &rig.config.node_id).unwrap();
}
