//! Reads that wait for an index: many share one round to the quorum, and rounds that got lost are repeated.

use std::collections::BTreeMap;

pub(crate) struct Reads {
    /// Keeps answers to an earlier run of this server from matching.
    nonce: u64,
    election_ticks: u64,
    rounds_sent: u64,
    /// Not in any round yet.
    fresh: Vec<u64>,
    /// Every unanswered read and when it was asked.
    asked: BTreeMap<u64, u64>,
    rounds: BTreeMap<u64, Round>,
}

struct Round {
    reads: Vec<u64>,
    sent: u64,
}

impl Reads {
    pub(crate) fn new(nonce: u64, election_ticks: u64) -> Reads {
        Reads {
            nonce,
            election_ticks,
            rounds_sent: 0,
            fresh: Vec::new(),
            asked: BTreeMap::new(),
            rounds: BTreeMap::new(),
        }
    }

    pub(crate) fn ask(&mut self, read: u64, now: u64) {
        self.asked.insert(read, now);
        self.fresh.push(read);
    }

    /// The context of a round that is to be sent now, for reads that are in none.
    pub(crate) fn next_round(&mut self, now: u64) -> Option<Vec<u8>> {
        if self.fresh.is_empty() {
            return None;
        }
        self.rounds_sent += 1;
        self.rounds.insert(self.rounds_sent, Round { reads: std::mem::take(&mut self.fresh), sent: now });
        Some([self.nonce.to_le_bytes(), self.rounds_sent.to_le_bytes()].concat())
    }

    /// The reads that this answer serves; none if they have been served, given up or were never ours.
    pub(crate) fn answer(&mut self, context: &[u8]) -> Vec<u64> {
        let Some(round) = self.round(context).and_then(|number| self.rounds.remove(&number)) else { return Vec::new() };
        round.reads.into_iter().filter(|read| self.asked.remove(read).is_some()).collect()
    }

    /// Puts the reads of rounds without an answer into a new one, and returns those that have waited too long.
    pub(crate) fn tick(&mut self, now: u64) -> Vec<u64> {
        let retry_after = self.election_ticks / 2 + 1;
        let late: Vec<u64> = self
            .rounds
            .iter()
            .filter(|(_, round)| now - round.sent >= retry_after)
            .map(|(number, _)| *number)
            .collect();
        for round in late.iter().filter_map(|number| self.rounds.remove(number)) {
            self.fresh.extend(round.reads.iter().filter(|read| self.asked.contains_key(read)));
        }
        self.give_up(now)
    }

    fn give_up(&mut self, now: u64) -> Vec<u64> {
        let patience = 6 * self.election_ticks;
        let failed: Vec<u64> =
            self.asked.iter().filter(|(_, asked)| now - **asked > patience).map(|(read, _)| *read).collect();
        for read in &failed {
            self.asked.remove(read);
        }
        self.fresh.retain(|read| self.asked.contains_key(read));
        failed
    }

    fn round(&self, context: &[u8]) -> Option<u64> {
        let (nonce, number) = context.split_first_chunk::<8>()?;
        (u64::from_le_bytes(*nonce) == self.nonce).then_some(())?;
        Some(u64::from_le_bytes(number.try_into().ok()?))
    }
}
