//! A node's own part: it sends each target a probe per round and counts rounds without an answer.

use model::NodeId;
use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

/// Rounds without an answer until a target counts as unreachable.
const MISSES_MAX: u32 = 3;

/// What this node knows of its targets. One that has never answered, as it may not know probes, is in neither set.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Report {
    pub answering: BTreeSet<NodeId>,
    pub unreachable: BTreeSet<NodeId>,
}

/// A probe to send.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Sent {
    pub target: NodeId,
    /// Comes back in the answer: an old or made-up answer proves nothing.
    pub nonce: u64,
}

#[derive(Clone, Debug)]
pub struct Prober {
    interval: Duration,
    last_round: Option<Duration>,
    last_nonce: u64,
    targets: BTreeMap<NodeId, Target>,
}

#[derive(Clone, Copy, Debug, Default)]
struct Target {
    waits_for: Option<u64>,
    misses: u32,
    has_answered: bool,
}

impl Prober {
    /// Sends a round each `interval`; `seed` differs between starts.
    pub fn new(interval: Duration, seed: u64) -> Prober {
        Prober { interval, last_round: None, last_nonce: seed, targets: BTreeMap::new() }
    }

    /// What is known of a target that stays one is kept.
    pub fn set_targets(&mut self, wanted: &[NodeId]) {
        self.targets.retain(|id, _| wanted.contains(id));
        for id in wanted {
            self.targets.entry(*id).or_default();
        }
    }

    /// Closes the last round and begins the next. A prober that was itself held up has not listened, so the round that it
    /// slept through counts for nothing.
    pub fn round(&mut self, now: Duration) -> Vec<Sent> {
        let slept = self.last_round.is_some_and(|last| now.saturating_sub(last) > self.interval * 2);
        self.last_round = Some(now);
        let mut nonce = self.last_nonce;
        let mut probes = Vec::with_capacity(self.targets.len());
        for (id, target) in &mut self.targets {
            if target.waits_for.is_some() && !slept {
                target.misses = target.misses.saturating_add(1);
            }
            nonce = nonce.wrapping_mul(0x5851_f42d_4c95_7f2d).wrapping_add(0x1405_7b7e_f767_814f);
            target.waits_for = Some(nonce);
            probes.push(Sent { target: *id, nonce });
        }
        self.last_nonce = nonce;
        probes
    }

    /// An answer with this nonce has come.
    pub fn on_answer(&mut self, nonce: u64) {
        if let Some(target) = self.targets.values_mut().find(|target| target.waits_for == Some(nonce)) {
            *target = Target { waits_for: None, misses: 0, has_answered: true };
        }
    }

    pub fn report(&self) -> Report {
        let known = || self.targets.iter().filter(|(_, target)| target.has_answered);
        let select = |unreachable: bool| {
            known().filter(|(_, target)| (target.misses >= MISSES_MAX) == unreachable).map(|(id, _)| *id).collect()
        };
        Report { answering: select(false), unreachable: select(true) }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const INTERVAL: Duration = Duration::from_millis(350);

    fn id(number: u128) -> NodeId {
        NodeId::from_random(number)
    }

    /// Rounds at the given times; the target answers those marked.
    fn after(rounds: &[(u64, bool)]) -> Report {
        let mut prober = Prober::new(INTERVAL, 1);
        prober.set_targets(&[id(1)]);
        for (at_ms, answers) in rounds {
            for probe in prober.round(Duration::from_millis(*at_ms)) {
                if *answers {
                    prober.on_answer(probe.nonce);
                }
            }
        }
        prober.report()
    }

    #[test]
    fn three_rounds_without_an_answer_are_enough_and_one_answer_ends_it() {
        let lost = |report: Report| !report.unreachable.is_empty();
        let silent: Vec<(u64, bool)> = (0..5).map(|n| (n * 350, n == 0)).collect();
        assert!(!lost(after(&silent[..4])));
        assert!(lost(after(&silent)));
        assert!(!lost(after(&[&silent[..], &[(1750, true)]].concat())));
        assert!(silent[4].0 <= 1600, "in time for two seconds in all");
    }

    #[test]
    fn who_never_answered_is_not_known_to_be_gone() {
        let never: Vec<(u64, bool)> = (0..9).map(|n| (n * 350, false)).collect();
        assert_eq!(after(&never), Report::default());
    }

    #[test]
    fn a_round_slept_through_counts_for_nothing() {
        let held_up: Vec<(u64, bool)> = (0..9).map(|n| (n * 3000, n == 0)).collect();
        assert!(after(&held_up).unreachable.is_empty());
    }

    #[test]
    fn a_late_or_made_up_answer_proves_nothing() {
        let mut prober = Prober::new(INTERVAL, 1);
        prober.set_targets(&[id(1), id(2)]);
        let first = prober.round(Duration::ZERO);
        assert_ne!(first[0].nonce, first[1].nonce);
        prober.round(INTERVAL);
        prober.on_answer(first[0].nonce);
        prober.on_answer(12345);
        assert_eq!(prober.report(), Report::default());
        prober.set_targets(&[]);
        assert!(prober.round(INTERVAL * 2).is_empty());
    }
}
