//! Changes in place, checksums kept right.

use abi::{Be16, Be32};

use crate::{Bytes, Checksum, IPV4, Ipv4, Transport};

/// Both ends of a TCP segment or UDP datagram as they shall be.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(align(8))]
pub struct Rewrite {
    pub src: Be32,
    pub dst: Be32,
    pub src_port: Be16,
    pub dst_port: Be16,
}

/// Gives the packet at `at` other ends and takes one hop off its TTL, which the caller has checked.
#[inline(always)]
pub fn rewrite<B: Bytes + ?Sized>(frame: &mut B, at: usize, ip: &Ipv4, l4: &Transport, to: &Rewrite) -> Option<()> {
    let addresses = Checksum::unchanged().replace32(ip.src, to.src).replace32(ip.dst, to.dst);
    let ports = addresses.replace16(l4.src_port, to.src_port).replace16(l4.dst_port, to.dst_port);

    let sum_at = at + IPV4 + checksum_at(l4);
    let sum = Be16::from_bytes(frame.get::<2>(sum_at)?);
    if l4.is_tcp() || !sum.is_zero() {
        frame.put(sum_at, written(l4, ports.apply(sum)).to_bytes())?;
    }
    frame.put(at + IPV4, pair(to.src_port, to.dst_port))?;

    age(frame, at, ip, addresses)?;
    frame.put(at + 12, to.src.to_bytes())?;
    frame.put(at + 16, to.dst.to_bytes())
}

/// Where in its header a transport keeps its checksum.
#[inline(always)]
pub const fn checksum_at(l4: &Transport) -> usize {
    if l4.is_tcp() { 16 } else { 6 }
}

// UDP writes all ones for a sum of zero: zero means that there is none (RFC 768).
#[inline(always)]
const fn written(l4: &Transport, sum: Be16) -> Be16 {
    if !l4.is_tcp() && sum.is_zero() { Be16::new(0xffff) } else { sum }
}

/// Takes one hop off the TTL, which the caller has checked.
#[inline(always)]
pub fn age_ipv4<B: Bytes + ?Sized>(frame: &mut B, at: usize, ip: &Ipv4) -> Option<()> {
    age(frame, at, ip, Checksum::unchanged())
}

#[inline(always)]
fn age<B: Bytes + ?Sized>(frame: &mut B, at: usize, ip: &Ipv4, also: Checksum) -> Option<()> {
    let older = [ip.ttl.wrapping_sub(1), ip.proto];
    let change = also.replace16(Be16::from_bytes([ip.ttl, ip.proto]), Be16::from_bytes(older));
    let sum = Be16::from_bytes(frame.get::<2>(at + 10)?);
    frame.put(at + 10, change.apply(sum).to_bytes())?;
    frame.put(at + 8, older)
}

/// Destination and source MAC of the frame.
#[inline(always)]
pub fn set_macs<B: Bytes + ?Sized>(frame: &mut B, dst: [u8; 6], src: [u8; 6]) -> Option<()> {
    frame.put(0, dst)?;
    frame.put(6, src)
}

/// Sends the frame back to whom it came from.
#[inline(always)]
pub fn swap_macs<B: Bytes + ?Sized>(frame: &mut B) -> Option<()> {
    let (dst, src) = (frame.get::<6>(0)?, frame.get::<6>(6)?);
    set_macs(frame, src, dst)
}

#[inline(always)]
fn pair(a: Be16, b: Be16) -> [u8; 4] {
    let ([a0, a1], [b0, b1]) = (a.to_bytes(), b.to_bytes());
    [a0, a1, b0, b1]
}
