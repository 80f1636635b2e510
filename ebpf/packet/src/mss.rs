//! The largest segment a TCP end offers to take, in its SYN (RFC 9293, section 3.7.1).

use abi::Be16;

use crate::{Bytes, Checksum, IPV4, TCP};

/// Options a SYN may have in front of its MSS; every stack in use sends the MSS first.
const OPTIONS_MAX: usize = 5;
const END: u8 = 0;
const NO_OPERATION: u8 = 1;
const MSS: u8 = 2;

/// Where a segment's MSS stands in the frame, and what it says.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Mss {
    pub at: usize,
    pub value: Be16,
    /// The field begins at an odd byte of the segment: a checksum sees its bytes swapped.
    odd: bool,
}

impl Mss {
    /// The old and the new value as the segment's checksum counts them.
    #[inline(always)]
    pub const fn words(&self, new: Be16) -> (Be16, Be16) {
        (self.word(self.value), self.word(new))
    }

    #[inline(always)]
    const fn word(&self, value: Be16) -> Be16 {
        if self.odd { Be16::from_raw(value.raw().swap_bytes()) } else { value }
    }
}

/// The MSS option of the segment behind the option-less IPv4 header at `at`.
#[inline(always)]
pub fn find_mss<B: Bytes + ?Sized>(frame: &B, at: usize) -> Option<Mss> {
    let [offset] = frame.get::<1>(at + IPV4 + 12)?;
    let end = (offset >> 4) as usize * 4;
    let mut option = TCP;
    let mut turn = 0;
    while turn < OPTIONS_MAX {
        if option > 56 || option + 4 > end {
            return None;
        }
        let [kind, len, high, low] = frame.get::<4>(at + IPV4 + option)?;
        option += match kind {
            MSS if len == 4 => {
                let value = Be16::from_bytes([high, low]);
                return Some(Mss { at: at + IPV4 + option + 2, value, odd: option & 1 != 0 });
            }
            NO_OPERATION => 1,
            END | MSS => return None,
            _ if len < 2 => return None,
            _ => len as usize,
        };
        turn += 1;
    }
    None
}

/// Lowers the MSS of the SYN at `at` to `max`. A segment without the option is left alone: its sender takes 536 bytes.
#[inline(always)]
pub fn clamp_mss<B: Bytes + ?Sized>(frame: &mut B, at: usize, max: u16) -> Option<()> {
    let Some(mss) = find_mss(frame, at).filter(|mss| mss.value.get() > max) else { return Some(()) };
    let (old, new) = mss.words(Be16::new(max));
    let sum = Be16::from_bytes(frame.get::<2>(at + IPV4 + 16)?);
    frame.put(at + IPV4 + 16, Checksum::unchanged().replace16(old, new).apply(sum).to_bytes())?;
    frame.put(mss.at, max.to_be_bytes())
}
