//! Randomness of the shell: one seed from the kernel per start, and everything that is spread over time drawn from it.

use std::fs::File;
use std::io::{self, Read};

/// 128 bits from the kernel, for ids and seeds.
pub fn entropy() -> io::Result<u128> {
    let mut bytes = [0; 16];
    File::open("/dev/urandom")?.read_exact(&mut bytes)?;
    Ok(u128::from_le_bytes(bytes))
}

/// A stream of jitter (splitmix64): nothing secret depends on it, and a logged seed repeats it.
#[derive(Clone, Debug)]
pub struct Jitter(u64);

impl Jitter {
    pub fn seeded(seed: u64) -> Self {
        Self(seed)
    }

    /// A stream of its own for whoever `salt` names.
    pub fn fork(&self, salt: u128) -> Self {
        let mut fork = Self(self.0 ^ (salt as u64) ^ ((salt >> 64) as u64));
        fork.next();
        fork
    }

    /// In 0.0..1.0.
    pub fn fraction(&mut self) -> f64 {
        (self.next() >> 11) as f64 / (1u64 << 53) as f64
    }

    fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mixed = (self.0 ^ (self.0 >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        let mixed = (mixed ^ (mixed >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        mixed ^ (mixed >> 31)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn fractions_cover_the_unit_interval_and_repeat_for_a_seed() {
        let draw = || {
            let mut jitter = Jitter::seeded(42).fork(7);
            (0..1000).map(|_| jitter.fraction()).collect::<Vec<_>>()
        };
        let values = draw();
        assert_eq!(values, draw());
        assert!(values.iter().all(|value| (0.0..1.0).contains(value)));
        let mean = values.iter().sum::<f64>() / 1000.0;
        assert!((0.45..0.55).contains(&mean), "{mean}");
    }
}
