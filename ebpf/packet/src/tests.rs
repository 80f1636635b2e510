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

fn parse(f: &[u8]) -> (Ipv4, Tcp) {
    let ip = Ipv4::parse(f, L3).unwrap();
    (ip, Tcp::parse(f, L3, &ip).unwrap())
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
    assert_eq!(Tcp::parse(&short[..], L3, &ip), Err(Skip::Truncated), "no room for a TCP header");
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
    assert_eq!(udp_ports(&f[..], L3, &ip).unwrap().1, GENEVE_PORT);
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

proptest! {
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
        rewrite_tcp(&mut f[..], L3, &ip, &tcp, &to).unwrap();
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
            let _ = udp_ports(&frame[..], at, &ip);
            if let Ok(tcp) = Tcp::parse(&frame[..], at, &ip) {
                let to = Rewrite { src: ip.dst, dst: ip.src, src_port: tcp.dst_port, dst_port: tcp.src_port };
                prop_assert!(rewrite_tcp(&mut frame[..], at, &ip, &tcp, &to).is_some());
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
