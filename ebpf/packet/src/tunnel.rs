//! Geneve (RFC 8926) as nodes speak it to each other: one option that says what the frame inside is for.

use abi::{Be16, Be32};

use crate::{Bytes, ETHERNET, IPV4, Ipv4, Skip, UDP, checksum};

/// The registered port.
pub const GENEVE_PORT: Be16 = Be16::new(6081);
/// Length of everything in front of the inner frame.
pub const OUTER: usize = ETHERNET + IPV4 + UDP + GENEVE + OPTION;
/// What an inner IP packet grows by on the wire's MTU: everything outer but the Ethernet header, and the inner one.
pub const ENCAP: usize = OUTER;

const GENEVE: usize = 8;
const OPTION: usize = 12;
const GENEVE_AT: usize = ETHERNET + IPV4 + UDP;
const OPTION_AT: usize = GENEVE_AT + GENEVE;

/// Experimental class (RFC 8926, section 7: 0xFF00..0xFFFF).
const CLASS: u16 = 0xff4d;
/// The option type's bit "drop the packet unless you know me", and the header's bit that announces one.
const CRITICAL: u8 = 0x80;
const HEADER_CRITICAL: u8 = 0x40;
/// Transparent Ethernet bridging.
const INNER_ETHERNET: u16 = 0x6558;

/// What the inner frame is for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u8)]
pub enum Kind {
    /// From a client to the backend that the entry node chose; still addressed to what the client dialled.
    Forward = 1,
    /// To a client, finished but for the last hop.
    Reply = 2,
    /// Between allocations, addressed to the receiver.
    Plain = 3,
}

impl Kind {
    #[inline(always)]
    const fn option_type(self) -> u8 {
        match self {
            Self::Forward => CRITICAL | self as u8,
            Self::Reply | Self::Plain => self as u8,
        }
    }

    #[inline(always)]
    const fn header_flags(self) -> u8 {
        match self {
            Self::Forward => HEADER_CRITICAL,
            Self::Reply | Self::Plain => 0,
        }
    }

    #[inline(always)]
    const fn from_option_type(value: u8) -> Option<Self> {
        match value {
            0x81 => Some(Self::Forward),
            2 => Some(Self::Reply),
            3 => Some(Self::Plain),
            _ => None,
        }
    }
}

/// The backend that the entry chose. Addresses, not ids: ids are each agent's own. Zero for other kinds.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[repr(align(8))]
pub struct Target {
    pub addr: Be32,
    pub port: Be16,
    pub proto: u8,
}

/// Everything that goes in front of an inner frame.
#[derive(Clone, Copy, Debug)]
pub struct Outer {
    pub src_mac: [u8; 6],
    pub dst_mac: [u8; 6],
    pub src: Be32,
    pub dst: Be32,
    pub src_port: Be16,
    /// Total length of the inner IP packet.
    pub inner_len: u16,
    pub kind: Kind,
    pub target: Target,
}

impl Outer {
    /// The headers' bytes. The UDP checksum is 0, which RFC 8926, section 3.3, allows over IPv4; recomputing it would
    /// mean summing the whole frame.
    #[inline(always)]
    pub fn bytes(&self) -> [u8; OUTER] {
        let mut out = [0; OUTER];
        put(&mut out, 0, self.dst_mac);
        put(&mut out, 6, self.src_mac);
        put(&mut out, 12, [0x08, 0x00]);
        put(&mut out, ETHERNET, self.ipv4());
        put(&mut out, ETHERNET + IPV4, self.src_port.to_bytes());
        put(&mut out, ETHERNET + IPV4 + 2, GENEVE_PORT.to_bytes());
        put(&mut out, ETHERNET + IPV4 + 4, self.udp_len().to_be_bytes());
        put(&mut out, GENEVE_AT, [(OPTION / 4) as u8, self.kind.header_flags()]);
        put(&mut out, GENEVE_AT + 2, INNER_ETHERNET.to_be_bytes());
        put(&mut out, OPTION_AT, CLASS.to_be_bytes());
        put(&mut out, OPTION_AT + 2, [self.kind.option_type(), 2]);
        put(&mut out, OPTION_AT + 4, self.target.addr.to_bytes());
        put(&mut out, OPTION_AT + 8, self.target.port.to_bytes());
        put(&mut out, OPTION_AT + 10, [self.target.proto, 0]);
        out
    }

    // Lengths wrap for a frame that is cut into segments after this: segmentation writes them again.
    #[inline(always)]
    const fn udp_len(&self) -> u16 {
        self.inner_len.wrapping_add((UDP + GENEVE + OPTION + ETHERNET) as u16)
    }

    #[inline(always)]
    fn ipv4(&self) -> [u8; IPV4] {
        let mut h = [0; IPV4];
        put(&mut h, 0, [0x45, 0]);
        put(&mut h, 2, self.udp_len().wrapping_add(IPV4 as u16).to_be_bytes());
        put(&mut h, 6, [0x40, 0]); // don't fragment: sizes were checked before
        put(&mut h, 8, [64, Ipv4::PROTO_UDP]);
        put(&mut h, 12, self.src.to_bytes());
        put(&mut h, 16, self.dst.to_bytes());
        let sum = checksum::of_ipv4(&h);
        put(&mut h, 10, sum.to_bytes());
        h
    }
}

#[inline(always)]
fn put<const N: usize, const M: usize>(out: &mut [u8; M], at: usize, bytes: [u8; N]) {
    let mut i = 0;
    while i < N {
        out[at + i] = bytes[i];
        i += 1;
    }
}

/// What a tunnelled frame carries.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Inner {
    pub kind: Kind,
    pub target: Target,
}

/// Why a frame for the tunnel port is none of ours.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum TunnelError {
    Truncated,
    /// Another version, inner protocol, network or set of options than nodes use.
    Foreign,
}

impl From<Skip> for TunnelError {
    fn from(_: Skip) -> Self {
        Self::Truncated
    }
}

/// Reads the tunnel headers of a frame that is IPv4, option-less, whole, and UDP to the tunnel port.
#[inline(always)]
pub fn inner<B: Bytes + ?Sized>(frame: &B) -> Result<Inner, TunnelError> {
    let g = frame.get::<{ GENEVE + OPTION }>(GENEVE_AT).ok_or(TunnelError::Truncated)?;
    let known = g[0] == (OPTION / 4) as u8
        && g[2..4] == INNER_ETHERNET.to_be_bytes()
        && g[4] | g[5] | g[6] == 0
        && g[8..10] == CLASS.to_be_bytes()
        && g[11] & 0x1f == 2;
    if !known {
        return Err(TunnelError::Foreign);
    }
    let kind = Kind::from_option_type(g[10]).ok_or(TunnelError::Foreign)?;
    let target = Target {
        addr: Be32::from_bytes([g[12], g[13], g[14], g[15]]),
        port: Be16::from_bytes([g[16], g[17]]),
        proto: g[18],
    };
    Ok(Inner { kind, target })
}
