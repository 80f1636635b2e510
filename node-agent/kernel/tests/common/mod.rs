//! What the tests share: a data path with pins of its own, frames, images.
#![allow(dead_code, clippy::allow_attributes, reason = "each test binary uses a part of it")]

use std::{
    fs,
    net::Ipv4Addr,
    path::PathBuf,
    process,
    sync::{
        Arc,
        atomic::{AtomicU32, Ordering},
    },
};

use abi::{Backend, Be16, Be32, Node, Reason, RingHead, UPLINK_READY, Uplink, VipKey, VipValue};
use dataplane::{MapImage, Ring};
use kernel::{Config, Datapath};

pub const TCP: u8 = 6;
pub const NODE: [u8; 4] = [10, 77, 0, 11];
pub const PEER: [u8; 4] = [10, 77, 0, 12];
pub const CLIENT: [u8; 4] = [10, 78, 0, 2];
pub const VIP: [u8; 4] = [10, 43, 0, 1];
pub const LOCAL: [u8; 4] = [10, 64, 0, 2];
pub const REMOTE: [u8; 4] = [10, 64, 0, 66];

static NEXT: AtomicU32 = AtomicU32::new(0);

/// A configuration with pins of its own, removed at the end.
pub struct Rig {
    pub config: Config,
}

impl Rig {
    pub fn new(uplink: Option<&str>) -> Self {
        let n = NEXT.fetch_add(1, Ordering::Relaxed);
        let config = Config {
            pin_root: format!("/sys/fs/bpf/meshctl-test-{}-{n}", process::id()).into(),
            node_id: "node".into(),
            uplink: uplink.map(str::to_owned),
            cgroup_root: cgroup2(),
            sizes: kernel::Sizes::default(),
        };
        Self { config }
    }

    pub fn attach(&self) -> Datapath {
        Datapath::attach(&self.config).expect("these tests need root and a bpffs at /sys/fs/bpf")
    }
}

impl Drop for Rig {
    fn drop(&mut self) {
        let _ = kernel::detach_all(&self.config.pin_root, &self.config.node_id);
        let _ = fs::remove_dir_all(&self.config.pin_root);
    }
}

fn cgroup2() -> PathBuf {
    let mounts = fs::read_to_string("/proc/mounts").unwrap();
    let mount = mounts.lines().find(|line| line.split(' ').nth(2) == Some("cgroup2")).expect("a cgroup2 mount");
    mount.split(' ').nth(1).unwrap().into()
}

pub fn addr(a: [u8; 4]) -> Be32 {
    Be32::from_bytes(a)
}

pub fn key(a: [u8; 4], port: u16) -> VipKey {
    VipKey { addr: addr(a), port: Be16::new(port), proto: TCP, pad: 0 }
}

pub fn backend(a: [u8; 4], port: u16, node: u32) -> Backend {
    let flags = if node == 0 { abi::BACKEND_LOCAL } else { 0 };
    Backend { addr: addr(a), port: Be16::new(port), proto: TCP, flags, node, service: 1 }
}

pub fn ring_of(base: u32, generation: u32, ids: &[u32]) -> Ring {
    if ids.is_empty() {
        return Ring { head: RingHead::new(0, 0, generation), slots: Arc::from([]) };
    }
    let slots: Vec<u32> = (0..251).map(|i| ids[i % ids.len()]).collect();
    Ring { head: RingHead::new(base, 1, generation), slots: slots.into() }
}

/// One node, its peer, and services to fill in.
pub fn image() -> MapImage {
    let uplink = Uplink {
        addr: addr(NODE),
        mesh: addr([10, 64, 0, 1]),
        ifindex: 1,
        flags: UPLINK_READY,
        mac: [2, 0, 0, 0, 0, 11],
        mtu: 1500,
    };
    let mut image = MapImage { uplink, ..MapImage::default() };
    image.nodes.insert(1, Node { addr: addr(PEER), dmac: [2, 0, 0, 0, 0, 12], flags: 0 });
    image.node_by_addr.insert(addr(PEER), 1);
    image.blocks.insert(addr([10, 64, 0, 0]), 0);
    image.blocks.insert(addr([10, 64, 0, 64]), 1);
    image
}

/// A service with its own ring of backends.
pub fn add_service(image: &mut MapImage, vip: VipKey, ring: u32, ids: &[u32]) {
    image.vips.insert(vip, VipValue { frontend: ring as u16, flags: 0, ring });
    image.rings.insert(ring, ring_of(ring * 1000, 1, ids));
}

pub fn count(datapath: &Datapath, reason: Reason) -> u64 {
    datapath.drop_counters().unwrap()[&reason]
}

/// A TCP segment in a frame, with right checksums.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Segment {
    pub src: ([u8; 4], u16),
    pub dst: ([u8; 4], u16),
    pub flags: u8,
    pub ttl: u8,
    pub payload: usize,
}

pub const FIN: u8 = 1;
pub const SYN: u8 = 2;
pub const ACK: u8 = 16;
pub const RST: u8 = 4;

impl Segment {
    pub fn new(src: ([u8; 4], u16), dst: ([u8; 4], u16), flags: u8) -> Self {
        Self { src, dst, flags, ttl: 64, payload: 0 }
    }

    pub fn frame(&self) -> Vec<u8> {
        let mut f = vec![0_u8; 54 + self.payload];
        f[0..14].copy_from_slice(&[2, 0, 0, 0, 0, 11, 2, 0, 0, 0, 0, 1, 8, 0]);
        f[14] = 0x45;
        let total = (f.len() - 14) as u16;
        f[16..18].copy_from_slice(&total.to_be_bytes());
        f[20] = 0x40;
        f[22] = self.ttl;
        f[23] = TCP;
        f[26..30].copy_from_slice(&self.src.0);
        f[30..34].copy_from_slice(&self.dst.0);
        f[34..36].copy_from_slice(&self.src.1.to_be_bytes());
        f[36..38].copy_from_slice(&self.dst.1.to_be_bytes());
        f[46] = 0x50;
        f[47] = self.flags;
        finish(&mut f);
        f
    }

    /// Reads a frame back; fails on wrong checksums.
    pub fn read(f: &[u8]) -> Self {
        assert_eq!(sum(&f[14..34], 0), 0xffff, "IPv4 header checksum");
        assert_eq!(tcp_sum(f), 0xffff, "TCP checksum");
        let quad = |at: usize| [f[at], f[at + 1], f[at + 2], f[at + 3]];
        let port = |at: usize| u16::from_be_bytes([f[at], f[at + 1]]);
        let payload = u16::from_be_bytes([f[16], f[17]]) as usize - 40;
        Self { src: (quad(26), port(34)), dst: (quad(30), port(36)), flags: f[47], ttl: f[22], payload }
    }
}

/// Sets both checksums.
pub fn finish(f: &mut [u8]) {
    f[24..26].fill(0);
    let ip = !sum(&f[14..34], 0);
    f[24..26].copy_from_slice(&ip.to_be_bytes());
    f[50..52].fill(0);
    let tcp = !tcp_sum(f);
    f[50..52].copy_from_slice(&tcp.to_be_bytes());
}

fn tcp_sum(f: &[u8]) -> u16 {
    let total = u16::from_be_bytes([f[16], f[17]]) as usize;
    sum(&f[34..14 + total], 6 + (total - 20) as u32 + u32::from(sum(&f[26..34], 0)))
}

fn sum(bytes: &[u8], start: u32) -> u16 {
    let mut sum = start;
    for pair in bytes.chunks(2) {
        sum += u32::from(u16::from_be_bytes([pair[0], pair.get(1).copied().unwrap_or(0)]));
    }
    while sum > 0xffff {
        sum = (sum & 0xffff) + (sum >> 16);
    }
    sum as u16
}

pub fn ip(a: [u8; 4]) -> Ipv4Addr {
    a.into()
}
