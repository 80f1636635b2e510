//! When a flow was last seen, and what is known of it.

/// `seen (24) | state (8)`. Time counts in units of 256 jiffies: a quarter of a second at the fastest tick, 2.56 s at the
/// slowest. A stamp is written once in a unit, so that the cache lines of busy flows stay clean and shared.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Stamp(u32);

impl Stamp {
    const UNIT: u32 = 8;
    const TIME: u32 = 0x00ff_ffff;

    /// The time that `jiffies` is, in units.
    #[inline(always)]
    pub const fn time(jiffies: u64) -> u32 {
        (jiffies >> Self::UNIT) as u32 & Self::TIME
    }

    #[inline(always)]
    pub const fn new(seen: u32, state: u8) -> Self {
        Self(seen << 8 | state as u32)
    }

    #[inline(always)]
    pub const fn from_word(word: u32) -> Self {
        Self(word)
    }

    #[inline(always)]
    pub const fn word(self) -> u32 {
        self.0
    }

    #[inline(always)]
    pub const fn seen(self) -> u32 {
        self.0 >> 8
    }

    #[inline(always)]
    pub const fn state(self) -> u8 {
        self.0 as u8
    }

    /// Units since it was last seen. Time goes round after 49 days at the fastest tick: who was idle for longer looks young.
    #[inline(always)]
    pub const fn idle(self, now: u32) -> u32 {
        now.wrapping_sub(self.seen()) & Self::TIME
    }
}
