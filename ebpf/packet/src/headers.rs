//! Ethernet, IPv4, TCP and UDP, as far as the data path reads them.

use abi::{Be16, Be32};

use crate::Bytes;

/// Length of an Ethernet header.
pub const ETHERNET: usize = 14;
/// Length of an IPv4 header without options.
pub const IPV4: usize = 20;
/// Length of a TCP header without options.
pub const TCP: usize = 20;
/// Length of a UDP header.
pub const UDP: usize = 8;

pub const TCP_FIN: u8 = 0x01;
pub const TCP_SYN: u8 = 0x02;
pub const TCP_RST: u8 = 0x04;
pub const TCP_ACK: u8 = 0x10;

const ETHER_IPV4: u16 = 0x0800;
const ETHER_VLAN: [u16; 2] = [0x8100, 0x88a8];

/// Why a frame is none the data path handles.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Skip {
    /// ARP, IPv6 and all else that is not IPv4.
    NotIpv4,
    Vlan,
    /// The headers promise more than the frame holds, or contradict themselves.
    Truncated,
    Options,
    Fragment,
    /// Neither TCP nor UDP.
    Transport,
}

/// Tells IPv4 from the rest.
#[inline(always)]
pub fn ether_type<B: Bytes + ?Sized>(frame: &B) -> Result<(), Skip> {
    let kind = u16::from_be_bytes(frame.get::<2>(12).ok_or(Skip::Truncated)?);
    if kind == ETHER_IPV4 {
        return Ok(());
    }
    Err(if kind == ETHER_VLAN[0] || kind == ETHER_VLAN[1] { Skip::Vlan } else { Skip::NotIpv4 })
}

/// An IPv4 header without options, of a packet that is no fragment.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(align(8))]
pub struct Ipv4 {
    pub src: Be32,
    pub dst: Be32,
    pub total_len: u16,
    pub ttl: u8,
    pub proto: u8,
}

impl Ipv4 {
    pub const PROTO_TCP: u8 = 6;
    pub const PROTO_UDP: u8 = 17;

    /// Reads the header at `at`.
    #[inline(always)]
    pub fn parse<B: Bytes + ?Sized>(frame: &B, at: usize) -> Result<Self, Skip> {
        let header = Self::parse_any(frame, at)?;
        let [version, ..] = frame.get::<1>(at).ok_or(Skip::Truncated)?;
        if version != 0x45 {
            return Err(Skip::Options);
        }
        // All but "don't fragment": the reserved bit must be zero (RFC 791), and is treated as a fragment's.
        let [high, low] = frame.get::<2>(at + 6).ok_or(Skip::Truncated)?;
        if high & 0xbf != 0 || low != 0 {
            return Err(Skip::Fragment);
        }
        Ok(header)
    }

    /// Reads the header at `at`, with options or of a fragment too: for what needs the addresses alone.
    #[inline(always)]
    pub fn parse_any<B: Bytes + ?Sized>(frame: &B, at: usize) -> Result<Self, Skip> {
        let h = frame.get::<IPV4>(at).ok_or(Skip::Truncated)?;
        if h[0] >> 4 != 4 {
            return Err(Skip::NotIpv4);
        }
        let header_len = (h[0] & 0x0f) as usize * 4;
        let total_len = u16::from_be_bytes([h[2], h[3]]);
        if header_len < IPV4 || (total_len as usize) < header_len || frame.len() < at + total_len as usize {
            return Err(Skip::Truncated);
        }
        Ok(Self {
            src: Be32::from_bytes([h[12], h[13], h[14], h[15]]),
            dst: Be32::from_bytes([h[16], h[17], h[18], h[19]]),
            total_len,
            ttl: h[8],
            proto: h[9],
        })
    }
}

/// What of a TCP or UDP header chooses and follows a flow.
///
/// As other parsed values that live on the kernel's stack it has the alignment of a long word: compilers copy neighbouring
/// fields as one, and the verifier allows no such copy at an odd place of the stack.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(align(8))]
pub struct Transport {
    pub src_port: Be16,
    pub dst_port: Be16,
    pub proto: u8,
    /// TCP's; UDP has none.
    pub flags: u8,
}

impl Transport {
    /// Reads the header behind the option-less IPv4 header at `at`.
    #[inline(always)]
    pub fn parse<B: Bytes + ?Sized>(frame: &B, at: usize, ip: &Ipv4) -> Result<Self, Skip> {
        match ip.proto {
            Ipv4::PROTO_TCP => Self::parse_tcp(frame, at, ip),
            Ipv4::PROTO_UDP => Self::parse_udp(frame, at, ip),
            _ => Err(Skip::Transport),
        }
    }

    #[inline(always)]
    fn parse_tcp<B: Bytes + ?Sized>(frame: &B, at: usize, ip: &Ipv4) -> Result<Self, Skip> {
        if (ip.total_len as usize) < IPV4 + TCP {
            return Err(Skip::Truncated);
        }
        let h = frame.get::<TCP>(at + IPV4).ok_or(Skip::Truncated)?;
        Ok(Self { flags: h[13], ..Self::of([h[0], h[1], h[2], h[3]], ip.proto) })
    }

    #[inline(always)]
    fn parse_udp<B: Bytes + ?Sized>(frame: &B, at: usize, ip: &Ipv4) -> Result<Self, Skip> {
        if (ip.total_len as usize) < IPV4 + UDP {
            return Err(Skip::Truncated);
        }
        let h = frame.get::<UDP>(at + IPV4).ok_or(Skip::Truncated)?;
        Ok(Self::of([h[0], h[1], h[2], h[3]], ip.proto))
    }

    #[inline(always)]
    const fn of(ports: [u8; 4], proto: u8) -> Self {
        let [s0, s1, d0, d1] = ports;
        Self { src_port: Be16::from_bytes([s0, s1]), dst_port: Be16::from_bytes([d0, d1]), proto, flags: 0 }
    }

    #[inline(always)]
    pub const fn is_tcp(&self) -> bool {
        self.proto == Ipv4::PROTO_TCP
    }

    /// Opens a connection: chooses anew, whatever is remembered.
    #[inline(always)]
    pub const fn opens(&self) -> bool {
        self.flags & (TCP_SYN | TCP_ACK) == TCP_SYN
    }

    /// Opens, ends or breaks a connection.
    #[inline(always)]
    pub const fn changes_state(&self) -> bool {
        self.flags & (TCP_SYN | TCP_FIN | TCP_RST) != 0
    }
}
