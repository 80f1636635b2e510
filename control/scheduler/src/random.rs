//! Randomness as arithmetic on the seed (SplitMix64): enough to spread choices, reproducible everywhere.

use model::AllocId;

/// A stream of numbers that depends on the seed and on what it is for.
#[derive(Clone, Debug)]
pub(crate) struct Random {
    state: u64,
}

impl Random {
    /// `purpose` keeps streams of one seed apart.
    pub(crate) fn new(seed: u64, purpose: &[u128]) -> Self {
        let mut random = Self { state: seed };
        for part in purpose {
            random.state = random.next() ^ (*part as u64);
            random.state = random.next() ^ ((*part >> 64) as u64);
        }
        random
    }

    pub(crate) fn next(&mut self) -> u64 {
        self.state = self.state.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut bits = self.state;
        bits = (bits ^ (bits >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        bits = (bits ^ (bits >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        bits ^ (bits >> 31)
    }

    pub(crate) fn bits(&mut self) -> u128 {
        (u128::from(self.next()) << 64) | u128::from(self.next())
    }

    pub(crate) fn alloc_id(&mut self) -> AllocId {
        AllocId::from_random(self.bits())
    }
}
