//! The internet checksum, whole (RFC 1071) and incremental (RFC 1624, equation 3).

use abi::{Be16, Be32};

/// A change to a checksum: the sum of what went out, complemented, and what came in.
///
/// Words are summed in memory order. The one's complement sum does not care, as long as the result is stored the same
/// way (RFC 1071, section 2 (B)).
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Checksum(u32);

impl Checksum {
    #[inline(always)]
    pub const fn unchanged() -> Self {
        Self(0)
    }

    /// One 16-bit word was replaced.
    #[inline(always)]
    pub const fn replace16(self, old: Be16, new: Be16) -> Self {
        Self(self.0 + !old.raw() as u32 + new.raw() as u32)
    }

    /// One 32-bit word was replaced.
    #[inline(always)]
    pub const fn replace32(self, old: Be32, new: Be32) -> Self {
        let (old, new) = (old.raw(), new.raw());
        Self(self.0 + !old as u16 as u32 + (!old >> 16) + new as u16 as u32 + (new >> 16))
    }

    /// The checksum field after the change.
    #[inline(always)]
    pub const fn apply(self, field: Be16) -> Be16 {
        Be16::from_raw(!fold(self.0 + !field.raw() as u32))
    }
}

/// The header checksum of an option-less IPv4 header whose checksum field is zero.
#[inline(always)]
pub(crate) fn of_ipv4(header: &[u8; 20]) -> Be16 {
    let mut sum = 0;
    let mut i = 0;
    while i < 20 {
        sum += u16::from_ne_bytes([header[i], header[i + 1]]) as u32;
        i += 2;
    }
    Be16::from_raw(!fold(sum))
}

/// The checksum of a TCP header without options and data, whose checksum field is zero.
#[inline(always)]
pub(crate) fn of_tcp(src: Be32, dst: Be32, header: &[u8; 20]) -> Be16 {
    let half = |address: Be32| (address.raw() & 0xffff) + (address.raw() >> 16);
    let mut sum = half(src) + half(dst) + Be16::new(6).raw() as u32 + Be16::new(20).raw() as u32;
    let mut i = 0;
    while i < 20 {
        sum += u16::from_ne_bytes([header[i], header[i + 1]]) as u32;
        i += 2;
    }
    Be16::from_raw(!fold(sum))
}

// Two folds are enough for any sum of fewer than 2^16 words.
#[inline(always)]
const fn fold(sum: u32) -> u16 {
    let sum = (sum & 0xffff) + (sum >> 16);
    ((sum & 0xffff) + (sum >> 16)) as u16
}
