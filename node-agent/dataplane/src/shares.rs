//! What part of new flows each instance of a ring gets: its weight, how long it has been taking flows, whose zone it is in.
//!
//! Without zones and slow starts a share is the weight itself, so that all nodes have the same ring. With them, nodes of one
//! zone do.

use model::Steering;
use std::time::Duration;

/// An instance that takes new flows.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Candidate {
    pub weight: u16,
    /// Since when it does; `None` for longer than anybody remembers.
    pub age: Option<Duration>,
    /// In this node's zone.
    pub near: bool,
}

/// Steps in which a new instance's share grows.
const STEPS: u128 = 10;

/// The weights that the ring is made with, one for each candidate. One of weight gets some.
pub fn shares(candidates: &[Candidate], steering: Steering) -> Vec<u16> {
    let grown: Vec<u128> = candidates.iter().map(|candidate| candidate.grown(steering.slow_start)).collect();
    let total = |near: bool| -> u128 {
        candidates.iter().zip(&grown).filter(|(candidate, _)| candidate.near == near).map(|(_, weight)| weight).sum()
    };
    let (near, far) = (total(true), total(false));
    let spill = steering.zone_spill.filter(|_| near > 0 && far > 0).map(u128::from);
    let share = |(candidate, weight): (&Candidate, &u128)| match spill {
        None => *weight,
        // Together the near ones weigh to the far ones as what stays does to what spills.
        Some(spill) if candidate.near => weight * far * (100 - spill.min(100)),
        Some(spill) => weight * near * spill.min(100),
    };
    scaled(&candidates.iter().zip(&grown).map(share).collect::<Vec<_>>())
}

/// When the shares change next though nothing else does; `None` when they do not.
pub fn next_step(candidates: &[Candidate], slow_start: Duration) -> Option<Duration> {
    let step = slow_start / STEPS as u32;
    let until = |candidate: &Candidate| {
        let age = candidate.age.filter(|age| *age < slow_start)?;
        let into = age.as_nanos().checked_rem(step.as_nanos())?;
        Some(step - Duration::from_nanos(u64::try_from(into).ok()?))
    };
    candidates.iter().filter(|candidate| candidate.weight > 0).filter_map(until).min()
}

impl Candidate {
    /// Its weight, in tenths where it starts slowly.
    fn grown(&self, slow_start: Duration) -> u128 {
        let steps = match self.age {
            Some(age) if age < slow_start => (age.as_nanos() * STEPS / slow_start.as_nanos() + 1).min(STEPS),
            _ => STEPS,
        };
        // Where nothing starts slowly the weights stay as they were given.
        if slow_start.is_zero() { u128::from(self.weight) } else { u128::from(self.weight) * steps }
    }
}

/// Into 16 bits, by the smallest numbers of the same proportions or close to them.
fn scaled(shares: &[u128]) -> Vec<u16> {
    let divisor = shares.iter().copied().fold(0, gcd).max(1);
    let greatest = shares.iter().copied().max().unwrap_or(0) / divisor;
    let fit = |share: u128| match share / divisor {
        0 => 0,
        share if greatest <= u128::from(u16::MAX) => share as u16,
        share => (share * u128::from(u16::MAX) / greatest).max(1) as u16,
    };
    shares.iter().map(|share| fit(*share)).collect()
}

fn gcd(a: u128, b: u128) -> u128 {
    if b == 0 { a } else { gcd(b, a % b) }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn candidate(weight: u16, near: bool) -> Candidate {
        Candidate { weight, age: None, near }
    }

    fn zoned(spill: u8) -> Steering {
        Steering { zone_spill: Some(spill), ..Steering::default() }
    }

    #[test]
    fn a_zone_keeps_its_flows_but_for_what_spills() {
        let candidates = [candidate(1, true), candidate(1, true), candidate(1, false)];
        assert_eq!(shares(&candidates, Steering::default()), [1, 1, 1]);
        assert_eq!(shares(&candidates, zoned(0)), [1, 1, 0]);
        assert_eq!(shares(&candidates, zoned(20)), [2, 2, 1], "one fifth leaves");
        assert_eq!(shares(&candidates[2..], zoned(0)), [1], "nobody here: it leaves whole");
        let idle = [candidate(0, true), candidate(3, false)];
        assert_eq!(shares(&idle, zoned(0)), [0, 1], "who weighs nothing takes nothing");
    }

    #[test]
    fn a_new_instance_begins_with_a_tenth() {
        let slow = Steering { slow_start: Duration::from_secs(10), ..Steering::default() };
        let at = |seconds: u64| {
            let new = Candidate { age: Some(Duration::from_secs(seconds)), ..candidate(2, false) };
            (shares(&[candidate(2, false), new], slow), next_step(&[new], slow.slow_start))
        };
        assert_eq!(at(0), (vec![10, 1], Some(Duration::from_secs(1))));
        assert_eq!(at(4).0, [2, 1]);
        assert_eq!(at(10), (vec![1, 1], None));
    }

    proptest! {
        #[test]
        fn shares_follow_weights_and_the_spill_is_kept(
            given in prop::collection::vec((1..200_u16, any::<bool>()), 1..12),
            spill in 1..100_u8,
        ) {
            let candidates: Vec<Candidate> = given.iter().map(|(weight, near)| candidate(*weight, *near)).collect();
            let shares = shares(&candidates, zoned(spill));
            prop_assert!(shares.iter().all(|share| *share > 0));
            let sum = |near: bool| -> f64 {
                candidates.iter().zip(&shares).filter(|(c, _)| c.near == near).map(|(_, share)| f64::from(*share)).sum()
            };
            if given.iter().any(|(_, near)| *near) && given.iter().any(|(_, near)| !near) {
                let spilt = sum(false) / (sum(true) + sum(false));
                prop_assert!((spilt - f64::from(spill) / 100.0).abs() < 0.01, "{spilt}");
            }
        }
    }
}
