//! What happens to a message on its way.

use std::collections::BTreeSet;

use rand::Rng;
use rand_chacha::ChaCha8Rng;

/// How bad the network is; a fault-free one still delays and so reorders.
#[derive(Clone, Copy, Debug)]
pub struct Weather {
    pub loss: f64,
    pub duplicates: f64,
    pub delay_max_ms: u64,
    /// Some messages take this much longer, as if a route had flapped.
    pub straggle_max_ms: u64,
}

impl Weather {
    pub const CALM: Weather = Weather { loss: 0.0, duplicates: 0.0, delay_max_ms: 10, straggle_max_ms: 0 };

    pub fn drawn(rng: &mut ChaCha8Rng) -> Weather {
        Weather {
            loss: rng.random_range(0.0..0.2),
            duplicates: rng.random_range(0.0..0.1),
            delay_max_ms: rng.random_range(5..60),
            straggle_max_ms: rng.random_range(0..4000),
        }
    }
}

/// Directed links that carry nothing.
#[derive(Debug, Default)]
pub struct Cuts(BTreeSet<(u64, u64)>);

impl Cuts {
    /// Nothing passes between the two sides, or only in one direction.
    pub fn split(&mut self, side: &BTreeSet<u64>, all: &[u64], both_ways: bool) {
        for from in all.iter().filter(|id| side.contains(id)) {
            for to in all.iter().filter(|id| !side.contains(id)) {
                self.0.insert((*from, *to));
                if both_ways {
                    self.0.insert((*to, *from));
                }
            }
        }
    }

    pub fn heal(&mut self) {
        self.0.clear();
    }

    pub fn carries(&self, from: u64, to: u64) -> bool {
        !self.0.contains(&(from, to))
    }
}

/// After how many milliseconds each copy of a message arrives; none if it is lost.
pub fn arrivals(rng: &mut ChaCha8Rng, weather: &Weather) -> Vec<u64> {
    if rng.random_bool(weather.loss) {
        return Vec::new();
    }
    let copies = 1 + usize::from(rng.random_bool(weather.duplicates));
    (0..copies).map(|_| delay(rng, weather)).collect()
}

fn delay(rng: &mut ChaCha8Rng, weather: &Weather) -> u64 {
    let usual = rng.random_range(1..=weather.delay_max_ms);
    let straggles = weather.straggle_max_ms > 0 && rng.random_bool(0.02);
    usual + if straggles { rng.random_range(0..=weather.straggle_max_ms) } else { 0 }
}
