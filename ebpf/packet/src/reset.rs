//! The reset that answers a segment nobody takes (RFC 9293, section 3.10.7.1).

use abi::{Be16, Be32};

use crate::{Bytes, ETHERNET, IPV4, Ipv4, TCP, TCP_ACK, TCP_FIN, TCP_RST, TCP_SYN, Transport, checksum};

/// Length of the frame that [`reset`] makes; what was behind it is to be cut off.
pub const RESET_LEN: usize = ETHERNET + IPV4 + TCP;

/// Turns the segment behind the option-less IPv4 header at `at` into the reset that answers it, from what was dialled to
/// who dialled. The caller knows that it is no reset itself: resets are not answered.
#[inline(always)]
pub fn reset<B: Bytes + ?Sized>(frame: &mut B, at: usize, ip: &Ipv4, segment: &Transport) -> Option<()> {
    let h = frame.get::<TCP>(at + IPV4)?;
    let sequence = Be32::from_bytes([h[4], h[5], h[6], h[7]]);
    let acknowledged = Be32::from_bytes([h[8], h[9], h[10], h[11]]);
    let (seq, ack, flags) = if segment.flags & TCP_ACK != 0 {
        (acknowledged, Be32::default(), TCP_RST)
    } else {
        let next = sequence.get().wrapping_add(length(ip, segment, h[12]));
        (Be32::default(), Be32::new(next), TCP_RST | TCP_ACK)
    };
    let mut tcp = [0; TCP];
    put(&mut tcp, 0, segment.dst_port.to_bytes());
    put(&mut tcp, 2, segment.src_port.to_bytes());
    put(&mut tcp, 4, seq.to_bytes());
    put(&mut tcp, 8, ack.to_bytes());
    put(&mut tcp, 12, [((TCP / 4) << 4) as u8, flags]);
    let sum = checksum::of_tcp(ip.dst, ip.src, &tcp);
    put(&mut tcp, 16, sum.to_bytes());
    frame.put(at, ipv4(ip))?;
    frame.put(at + IPV4, tcp)
}

/// What the segment takes of the sequence space.
#[inline(always)]
fn length(ip: &Ipv4, segment: &Transport, offset: u8) -> u32 {
    let headers = IPV4 as u32 + (offset >> 4) as u32 * 4;
    let syn = (segment.flags & TCP_SYN != 0) as u32;
    let fin = (segment.flags & TCP_FIN != 0) as u32;
    (ip.total_len as u32).saturating_sub(headers) + syn + fin
}

#[inline(always)]
fn ipv4(ip: &Ipv4) -> [u8; IPV4] {
    let mut h = [0; IPV4];
    put(&mut h, 0, [0x45, 0]);
    put(&mut h, 2, Be16::new((IPV4 + TCP) as u16).to_bytes());
    put(&mut h, 6, [0x40, 0]);
    put(&mut h, 8, [64, Ipv4::PROTO_TCP]);
    put(&mut h, 12, ip.dst.to_bytes());
    put(&mut h, 16, ip.src.to_bytes());
    let sum = checksum::of_ipv4(&h);
    put(&mut h, 10, sum.to_bytes());
    h
}

#[inline(always)]
fn put<const N: usize, const M: usize>(out: &mut [u8; M], at: usize, bytes: [u8; N]) {
    let mut i = 0;
    while i < N {
        out[at + i] = bytes[i];
        i += 1;
    }
}
