use std::{vec, vec::Vec};

use abi::{Be16, Be32};
use proptest::prelude::*;

use super::*;

extern crate std;

const CLIENT: Be32 = Be32::from_bytes([10, 78, 0, 2]);
const VIP: Be32 = Be32::from_bytes([10, 43, 0, 1]);
const BACKEND: Be32 = Be32::from_bytes([10, 64, 0, 66]);

fn tcp_frame(flags: u8, payload: &[u8]) -> Vec<u8> {
    let mut f = vec![0; ETHERNET + IPV4 + 20];
    f.extend_from_slice(payload);
    let total = (f.len() - ETHERNET) as u16;
    f[12..14].copy_from_slice(&[8, 0]);
    f[14] = 0x45;
    f[16..18].copy_from_slice(&total.to_be_bytes());
    f[20] = 0x40;
    f[22] = 64;
    f[23] = Ipv4::PROTO_TCP;
    f[26..30].copy_from_slice(&CLIENT.to_bytes());
    f[30..34].copy_from_slice(&VIP.to_bytes());
    f[34..36].copy_from_slice(&40_000_u16.to_be_bytes());
    f[36..38].copy_from_slice(&80_u16.to_be_bytes());
    f[46] = 0x50;
    f[47] = flags;
    set_checksums(&mut f);
    f
}

fn set_checksums(f: &mut [u8]) {
    f[24..26].fill(0);
    let ip = !sum(&f[14..34], 0);
    f[24..26].copy_from_slice(&ip.to_be_bytes());
    f[50..52].fill(0);
    let tcp = !tcp_sum(f);
    f[50..52].copy_from_slice(&tcp.to_be_bytes());
}

fn tcp_sum(f: &[u8]) -> u16 {
    let total = u16::from_be_bytes([f[16], f[17]]) as usize;
    let pseudo = 6 + (total - IPV4) as u32 + sum(&f[26..34], 0) as u32;
    sum(&f[34..14 + total], pseudo)
}

/// The plain RFC 1071 sum: what the incremental one is held against.
fn sum(bytes: &[u8], start: u32) -> u16 {
    let mut sum = start;
    for pair in bytes.chunks(2) {
        sum += u16::from_be_bytes([pair[0], pair.get(1).copied().unwrap_or(0)]) as u32;
    }
    while sum > 0xffff {
        sum = (sum & 0xffff) + (sum >> 16);
    }
    sum as u16
}

fn parse(f: &[u8]) -> (Ipv4, Transport) {
    let ip = Ipv4::parse(f, L3).unwrap();
    (ip, Transport::parse(f, L3, &ip).unwrap())
}

fn outer(kind: Kind) -> Outer {
    let target = Target { addr: BACKEND, port: Be16::new(8080), proto: 6 };
    Outer {
        src_mac: [2; 6],
        dst_mac: [4; 6],
        src: Be32::from_bytes([10, 77, 0, 11]),
        dst: Be32::from_bytes([10, 77, 0, 12]),
        src_port: Be16::new(50_000),
        inner_len: 40,
        kind,
        target,
    }
}

fn tunnelled(kind: Kind) -> Vec<u8> {
    let mut f = outer(kind).bytes().to_vec();
    f.extend(tcp_frame(TCP_SYN, b""));
    f
}

#[test]
fn headers_of_a_segment_are_read() {
    let (ip, tcp) = parse(&tcp_frame(TCP_SYN, b"x"));
    assert_eq!((ip.src, ip.dst, ip.total_len, ip.ttl, ip.proto), (CLIENT, VIP, 41, 64, 6));
    assert_eq!((tcp.src_port.get(), tcp.dst_port.get(), tcp.opens()), (40_000, 80, true));
    assert!(!parse(&tcp_frame(TCP_SYN | TCP_ACK, b"")).1.opens());
}

#[test]
fn what_is_not_handled_is_told_apart() {
    let edit = |at: usize, value: u8| {
        let mut f = tcp_frame(TCP_SYN, b"");
        f[at] = value;
        f
    };
    assert_eq!(ether_type(&edit(12, 0x81)[..]), Err(Skip::Vlan));
    assert_eq!(ether_type(&edit(13, 0x06)[..]), Err(Skip::NotIpv4));
    assert_eq!(ether_type(&[0; 13][..]), Err(Skip::Truncated));
    assert_eq!(Ipv4::parse(&edit(14, 0x65)[..], L3), Err(Skip::NotIpv4));
    assert_eq!(Ipv4::parse(&edit(14, 0x44)[..], L3), Err(Skip::Truncated));
    assert_eq!(Ipv4::parse(&edit(14, 0x46)[..], L3), Err(Skip::Options));
    assert_eq!(Ipv4::parse(&edit(20, 0x20)[..], L3), Err(Skip::Fragment));
    assert_eq!(Ipv4::parse(&edit(21, 1)[..], L3), Err(Skip::Fragment));
    assert_eq!(Ipv4::parse(&edit(17, 200)[..], L3), Err(Skip::Truncated), "longer than the frame");
    let short = edit(17, 39);
    let ip = Ipv4::parse(&short[..], L3).unwrap();
    assert_eq!(Transport::parse(&short[..], L3, &ip), Err(Skip::Truncated), "no room for a TCP header");
}

#[test]
fn padding_behind_a_short_packet_is_no_error() {
    let mut f = tcp_frame(TCP_SYN, b"");
    f.resize(60, 0xee);
    assert_eq!(parse(&f).0.total_len, 40);
}

#[test]
fn outer_headers_are_a_valid_packet_around_the_inner_one() {
    let f = tunnelled(Kind::Forward);
    let ip = Ipv4::parse(&f[..], L3).unwrap();
    assert_eq!(ip.total_len as usize, f.len() - ETHERNET);
    assert_eq!(sum(&f[14..34], 0), 0xffff, "header checksum");
    assert_eq!(Transport::parse(&f[..], L3, &ip).unwrap().dst_port, GENEVE_PORT);
    assert_eq!(u16::from_be_bytes([f[38], f[39]]) as usize, f.len() - ETHERNET - IPV4);
    assert_eq!(f.len(), 54 + ENCAP);
}

#[test]
fn tunnel_headers_are_read_back() {
    for kind in [Kind::Forward, Kind::Reply, Kind::Plain] {
        let read = inner(&tunnelled(kind)[..]).unwrap();
        assert_eq!(read, Inner { kind, target: outer(kind).target });
    }
}

#[test]
fn foreign_tunnels_are_refused() {
    // Version, control-plane length, inner protocol, network id, option class, option type, option length.
    for (at, value) in [(42, 0x43), (42, 0), (45, 0), (48, 1), (51, 0), (52, 1), (52, 0x84), (53, 3)] {
        let mut f = tunnelled(Kind::Forward);
        f[at] = value;
        assert_eq!(inner(&f[..]), Err(TunnelError::Foreign), "byte {at}");
    }
    assert_eq!(inner(&tunnelled(Kind::Plain)[..61]), Err(TunnelError::Truncated));
}

#[test]
fn hash_spreads_neighbouring_ports_and_dialled_addresses() {
    let mut slots = [0_u32; 64];
    for port in 0..64_000_u16 {
        let hash = FlowHash::of(CLIENT, Be16::new(port), VIP, Be16::new(80));
        slots[(hash.slot() >> 26) as usize] += 1;
    }
    assert!(slots.iter().all(|n| (850..1150).contains(n)), "{slots:?}");
    let of = |vip| FlowHash::of(CLIENT, Be16::new(40_000), Be32::from_bytes([10, 43, 0, vip]), Be16::new(80));
    assert_ne!(of(1).slot(), of(2).slot());
}

#[test]
fn tunnel_ports_are_ephemeral() {
    for port in 0..1000 {
        assert!(FlowHash::of(CLIENT, Be16::new(port), VIP, Be16::new(80)).tunnel_port().get() >= 0xc000);
    }
}

/// A SYN with these options.
fn syn(options: &[u8]) -> Vec<u8> {
    let mut f = tcp_frame(TCP_SYN, options);
    f[46] = (((20 + options.len()) / 4) << 4) as u8;
    set_checksums(&mut f);
    f
}

#[test]
fn the_mss_is_lowered_wherever_it_stands_and_never_raised() {
    let cases: [(&[u8], Option<u16>); 6] = [
        (&[2, 4, 5, 180], Some(1_398)),
        (&[1, 2, 4, 5, 180, 1, 1, 0], Some(1_398)),
        (&[3, 3, 7, 1, 8, 10, 0, 0, 0, 1, 0, 0, 0, 0, 2, 4, 5, 180, 1, 1], Some(1_398)),
        (&[2, 4, 2, 24], Some(536)),
        (&[], None),
        (&[0, 2, 4, 5, 180, 0, 0, 0], None),
    ];
    for (options, expected) in cases {
        let mut f = syn(options);
        clamp_mss(&mut f[..], L3, 1_398).unwrap();
        assert_eq!(find_mss(&f[..], L3).map(|mss| mss.value.get()), expected, "{options:?}");
        assert_eq!(tcp_sum(&f), 0xffff, "{options:?}");
    }
}

#[test]
fn options_that_make_no_sense_hold_no_mss() {
    for options in [&[3, 0, 2, 4][..], &[3, 1, 2, 4], &[3, 255, 2, 4], &[2, 8, 5, 180], &[1; 40]] {
        assert_eq!(find_mss(&syn(options)[..], L3), None, "{options:?}");
    }
}

#[test]
fn a_reset_answers_what_the_segment_said() {
    let read = |f: &[u8]| {
        let word = |at: usize| u32::from_be_bytes(f[at..at + 4].try_into().unwrap());
        (word(38), word(42), f[47])
    };
    let cases = [
        // Sequence, acknowledged, flags, data: the reset's three.
        (7, 0, TCP_SYN, &b""[..], (0, 8, TCP_RST | TCP_ACK)),
        (7, 99, TCP_ACK, b"data", (99, 0, TCP_RST)),
        (u32::MAX, 0, TCP_FIN, b"xy", (0, 2, TCP_RST | TCP_ACK)),
    ];
    for (sequence, acknowledged, flags, data, expected) in cases {
        let mut f = tcp_frame(flags, data);
        f[38..42].copy_from_slice(&u32::to_be_bytes(sequence));
        f[42..46].copy_from_slice(&u32::to_be_bytes(acknowledged));
        let (ip, segment) = parse(&f);
        reset(&mut f[..], L3, &ip, &segment).unwrap();
        f.truncate(RESET_LEN);
        assert_eq!((sum(&f[14..34], 0), tcp_sum(&f)), (0xffff, 0xffff));
        let (back, answer) = parse(&f);
        assert_eq!((back.src, back.dst, back.total_len), (VIP, CLIENT, 40));
        assert_eq!((answer.src_port.get(), answer.dst_port.get()), (80, 40_000));
        assert_eq!(read(&f), expected);
    }
}

/// A datagram; its checksum is none for `sum` zero.
fn udp_frame(checksummed: bool, payload: &[u8]) -> Vec<u8> {
    let mut f = tcp_frame(0, b"")[..ETHERNET + IPV4 + 4].to_vec();
    let length = (UDP + payload.len()) as u16;
    f.extend(length.to_be_bytes());
    f.extend([0, 0]);
    f.extend(payload);
    f[16..18].copy_from_slice(&(length + IPV4 as u16).to_be_bytes());
    f[23] = Ipv4::PROTO_UDP;
    f[24..26].fill(0);
    let ip = !sum(&f[14..34], 0);
    f[24..26].copy_from_slice(&ip.to_be_bytes());
    if checksummed {
        let sum = match !udp_sum(&f) {
            0 => 0xffff,
            sum => sum,
        };
        f[40..42].copy_from_slice(&sum.to_be_bytes());
    }
    f
}

fn udp_sum(f: &[u8]) -> u16 {
    let total = u16::from_be_bytes([f[16], f[17]]) as usize;
    sum(&f[34..14 + total], 17 + (total - IPV4) as u32 + sum(&f[26..34], 0) as u32)
}

#[test]
fn what_is_neither_tcp_nor_udp_has_no_ports() {
    let mut f = tcp_frame(0, b"");
    f[23] = 1;
    let ip = Ipv4::parse(&f[..], L3).unwrap();
    assert_eq!(Transport::parse(&f[..], L3, &ip), Err(Skip::Transport));
}

proptest! {
    #[test]
    fn rewritten_datagrams_have_right_checksums_or_none(
        payload in proptest::collection::vec(any::<u8>(), 0..64), checksummed in any::<bool>(),
        src in any::<[u8; 4]>(), dst in any::<[u8; 4]>(), ports in any::<(u16, u16)>(),
    ) {
        let mut f = udp_frame(checksummed, &payload);
        let (ip, udp) = parse(&f);
        prop_assert!(!udp.opens() && !udp.changes_state());
        let to = Rewrite {
            src: Be32::from_bytes(src), dst: Be32::from_bytes(dst),
            src_port: Be16::new(ports.0), dst_port: Be16::new(ports.1),
        };
        rewrite(&mut f[..], L3, &ip, &udp, &to).unwrap();
        prop_assert_eq!(sum(&f[14..34], 0), 0xffff);
        match checksummed {
            true => prop_assert_eq!((udp_sum(&f), f[40..42] != [0, 0]), (0xffff, true)),
            false => prop_assert_eq!(&f[40..42], &[0, 0]),
        }
    }

    #[test]
    fn rewritten_segments_have_right_checksums(
        payload in proptest::collection::vec(any::<u8>(), 0..64),
        src in any::<[u8; 4]>(), dst in any::<[u8; 4]>(), ports in any::<(u16, u16)>(), ttl in 2..=255_u8,
    ) {
        let mut f = tcp_frame(TCP_ACK, &payload);
        f[22] = ttl;
        set_checksums(&mut f);
        let (ip, tcp) = parse(&f);
        let to = Rewrite {
            src: Be32::from_bytes(src), dst: Be32::from_bytes(dst),
            src_port: Be16::new(ports.0), dst_port: Be16::new(ports.1),
        };
        rewrite(&mut f[..], L3, &ip, &tcp, &to).unwrap();
        prop_assert_eq!(sum(&f[14..34], 0), 0xffff);
        prop_assert_eq!(tcp_sum(&f), 0xffff);
        let (ip, tcp) = parse(&f);
        prop_assert_eq!((ip.src, ip.dst, ip.ttl), (to.src, to.dst, ttl - 1));
        prop_assert_eq!((tcp.src_port, tcp.dst_port), (to.src_port, to.dst_port));
    }

    #[test]
    fn hostile_frames_never_panic_and_stay_in_bounds(
        mut frame in proptest::collection::vec(any::<u8>(), 0..160), at in 0..80_usize, looks_right in any::<bool>(),
    ) {
        if looks_right && frame.len() > at + 1 {
            frame[at] = 0x45;
        }
        let before = frame.len();
        let _ = (ether_type(&frame[..]), inner(&frame[..]));
        if let Ok(ip) = Ipv4::parse(&frame[..], at) {
            prop_assert!(at + ip.total_len as usize <= before);
            if let Ok(tcp) = Transport::parse(&frame[..], at, &ip) {
                let to = Rewrite { src: ip.dst, dst: ip.src, src_port: tcp.dst_port, dst_port: tcp.src_port };
                prop_assert!(rewrite(&mut frame[..], at, &ip, &tcp, &to).is_some());
                if tcp.is_tcp() {
                    let _ = clamp_mss(&mut frame[..], at, 536);
                    prop_assert!(reset(&mut frame[..], at, &ip, &tcp).is_some());
                }
            }
            let _ = age_ipv4(&mut frame[..], at, &ip);
        }
        prop_assert_eq!(frame.len(), before);
    }

    #[test]
    fn checksum_of_a_changed_word_is_that_of_the_whole(words in proptest::collection::vec(any::<u16>(), 2..20), new in any::<u16>()) {
        let bytes: Vec<u8> = words.iter().flat_map(|w| w.to_be_bytes()).collect();
        let field = Be16::new(!sum(&bytes, 0));
        let mut changed = bytes.clone();
        changed[0..2].copy_from_slice(&new.to_be_bytes());
        let updated = Checksum::unchanged().replace16(Be16::new(words[0]), Be16::new(new)).apply(field);
        // Either zero is right: RFC 1624, section 3.
        prop_assert!(sum(&changed, updated.get() as u32) == 0xffff);
    }
}

mod flow_rules {
    use abi::{
        FLOW_CONFIRMED, FLOW_FIN_FORWARD, FLOW_FIN_REPLY, FLOW_RST, FLOW_UDP, FLOW_USED, FlowBucket, FlowKey, Stamp,
        Way,
    };

    use super::*;
    use crate::flows::{self, NONE, WAYS};

    const NOW: u32 = 5_000_000;
    const USED: u8 = FLOW_USED;
    const OPEN: u8 = FLOW_USED | FLOW_CONFIRMED;

    fn key(port: u16, proto: u8) -> FlowKey {
        let (client_port, backend_port) = (Be16::new(port), Be16::new(8080));
        FlowKey { client: CLIENT, backend: BACKEND, client_port, backend_port, proto, pad: [0; 3] }
    }

    fn stamp(idle: u32, state: u8) -> Stamp {
        Stamp::new(NOW.wrapping_sub(idle) & 0x00ff_ffff, state)
    }

    fn bucket(stamps: [Stamp; WAYS]) -> FlowBucket {
        FlowBucket { stamps: stamps.map(Stamp::word), ..FlowBucket::default() }
    }

    fn packet(flags: u8) -> Transport {
        Transport { src_port: Be16::new(1), dst_port: Be16::new(2), proto: 6, flags }
    }

    #[test]
    fn a_flow_is_found_by_its_whole_key_in_every_place() {
        for way in 0..WAYS {
            let mut held = FlowBucket::default();
            let key_of_one = key(7, 6);
            (held.ends[way], held.backend[way]) = (key_of_one.ends(), BACKEND);
            assert_eq!(flows::find(&held, &key_of_one), NONE, "a free place holds nobody");
            held.stamps[way] = stamp(0, USED).word();
            assert_eq!(flows::find(&held, &key_of_one), way);
            let others = [key(8, 6), key(7, 17), FlowKey { backend: VIP, ..key_of_one }];
            assert!(others.iter().all(|other| flows::find(&held, other) == NONE));
            held.stamps[way] = stamp(0, USED | FLOW_UDP).word();
            assert_eq!(flows::find(&held, &key(7, 17)), way);
        }
    }

    #[test]
    fn who_can_best_be_spared_gives_way() {
        let both = FLOW_FIN_FORWARD | FLOW_FIN_REPLY;
        let (free, fresh, old) = (Stamp::default(), stamp(0, USED), stamp(50, USED));
        let (open, closed) = (stamp(1_000, OPEN), stamp(9, OPEN | both));
        let cases = [
            ([open, free, old, closed], 1, "a free place"),
            ([open, fresh, old, closed], 3, "an ended flow"),
            (
                [open, fresh, old, stamp(8, OPEN | both)],
                2,
                "of half-open ones the oldest, before late segments lose their flow",
            ),
            ([open, open, open, fresh], 3, "a half-open one, however young"),
            ([open, stamp(345_601, OPEN), open, open], 1, "a connection idle for a day"),
            ([open, open, stamp(721, OPEN | FLOW_UDP), open], 2, "a UDP flow idle for minutes"),
            ([open, open, open, stamp(1_201, OPEN | FLOW_FIN_REPLY)], 3, "a connection closed on one side only"),
            ([stamp(9, OPEN | FLOW_RST), open, open, open], 0, "a reset one"),
            (
                [open, stamp(345_600, OPEN), stamp(720, OPEN | FLOW_UDP), stamp(1_200, OPEN | FLOW_FIN_REPLY)],
                NONE,
                "nobody",
            ),
        ];
        for (stamps, expected, who) in cases {
            assert_eq!(flows::spare(&bucket(stamps), NOW), expected, "{who}");
        }
    }

    #[test]
    fn states_follow_both_sides() {
        let opened = flows::opened(&packet(TCP_SYN));
        assert_eq!(opened, USED);
        assert_eq!(flows::forwarded(opened, &packet(TCP_ACK)), USED, "without a reply nothing is confirmed");
        let replied = flows::replied(opened, &packet(TCP_SYN | TCP_ACK));
        let confirmed = flows::forwarded(replied, &packet(TCP_ACK));
        assert_eq!(confirmed & FLOW_CONFIRMED, FLOW_CONFIRMED);
        assert_eq!(flows::forwarded(confirmed, &packet(TCP_SYN)), confirmed, "a forged SYN changes nothing");
        let closing =
            flows::replied(flows::forwarded(confirmed, &packet(TCP_FIN | TCP_ACK)), &packet(TCP_FIN | TCP_ACK));
        assert!(flows::is_live(Stamp::new(NOW, closing), NOW) && !flows::is_live(stamp(9, closing), NOW));
        assert_eq!(flows::forwarded(closing, &packet(TCP_SYN)), USED, "the ports are used again");
        let reset = flows::replied(confirmed, &packet(TCP_RST));
        assert!(!flows::is_live(Stamp::new(NOW, reset), NOW));
        let datagram = Transport { proto: 17, flags: 0, ..packet(0) };
        assert_eq!(flows::opened(&datagram), USED | FLOW_UDP);
    }

    #[test]
    fn a_half_open_flow_is_taken_over_after_a_minute_and_a_confirmed_one_after_a_day() {
        for (state, idle_max) in [(USED, 240), (OPEN, 345_600), (OPEN | FLOW_UDP, 720)] {
            assert!(flows::is_live(stamp(idle_max, state), NOW));
            assert!(!flows::is_live(stamp(idle_max + 1, state), NOW));
        }
    }

    #[test]
    fn the_entry_forgets_what_nobody_confirmed_first() {
        let way = |idle, state| Way { key: 1, stamp: stamp(idle, state).word(), ..Way::default() };
        let spare = |ways| flows::spare_way(&ways, NOW);
        let open = way(0, OPEN);
        assert_eq!(spare([open, Way::default(), way(9, USED), open]), Some(1));
        assert_eq!(spare([open, way(3, USED), way(9, USED), open]), Some(2));
        assert_eq!(spare([open, way(1_201, OPEN), way(1_300, OPEN), way(0, USED)]), Some(3));
        assert_eq!(spare([open, way(1_201, OPEN), way(1_300, OPEN), open]), Some(2));
        assert_eq!(spare([way(1_200, OPEN); WAYS]), None);
    }

    proptest! {
        /// The rule as it would be written down, against the one without branches.
        #[test]
        fn ranks_are_what_the_rule_says(idle in 0..0x00ff_ffff_u32, state in 0..128_u8) {
            let has = |mask: u8| state & mask == mask;
            let any_fin = state & (FLOW_FIN_FORWARD | FLOW_FIN_REPLY) != 0;
            let idle_max = if has(FLOW_UDP) { 720 } else if any_fin { 1_200 } else { 345_600 };
            let class = if !has(FLOW_USED) {
                8
            } else if (has(FLOW_RST) || has(FLOW_FIN_FORWARD | FLOW_FIN_REPLY)) && idle > 8 {
                4
            } else if !has(FLOW_CONFIRMED) {
                2
            } else {
                u32::from(idle > idle_max)
            };
            let rank = flows::rank(stamp(idle, state), NOW);
            let highest = 31_u32.saturating_sub((rank >> 24).leading_zeros());
            match class {
                0 => prop_assert_eq!(rank, 0),
                class => prop_assert_eq!((1 << highest, rank & 0x00ff_ffff), (class, idle)),
            }
        }

        #[test]
        fn the_one_spared_has_the_highest_rank(stamps in proptest::array::uniform4(any::<u32>()), now in 0..0x00ff_ffff_u32) {
            let stamps = stamps.map(|word| Stamp::from_word(word & 0xffff_ff7f));
            let best = stamps.iter().map(|stamp| flows::rank(*stamp, now)).max().unwrap();
            match flows::spare(&bucket(stamps), now) {
                NONE => prop_assert_eq!(best, 0),
                way => prop_assert_eq!(flows::rank(stamps[way], now), best),
            }
        }

        #[test]
        fn a_flow_has_two_buckets(hash in any::<(u32, u16, u32, u16)>(), bits in 1..20_u32) {
            let (client, port, backend, backend_port) = hash;
            let hash = FlowHash::of(Be32::new(client), Be16::new(port), Be32::new(backend), Be16::new(backend_port));
            let (first, second) = hash.buckets(bits);
            prop_assert!(first != second && first < 1 << bits && second < 1 << bits);
        }
    }
}
