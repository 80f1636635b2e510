//! What clients were told, and so what must be true for ever.

use std::collections::{BTreeMap, BTreeSet};

use crate::Violation;

/// Writes that were acknowledged stay; those whose fate is unknown may have happened, once; refused ones must not.
#[derive(Debug, Default)]
pub struct Oracle {
    next: u64,
    acked: BTreeMap<u64, u64>,
    refused: BTreeSet<u64>,
    reads: BTreeMap<u64, u64>,
    pub reads_answered: u64,
}

impl Oracle {
    /// A number nobody has written yet.
    pub fn new_command(&mut self) -> u64 {
        self.next += 1;
        self.next
    }

    pub fn acknowledged(&mut self, command: u64, index: u64) {
        self.acked.insert(index, command);
    }

    pub fn refused(&mut self, command: u64) {
        self.refused.insert(command);
    }

    pub fn acked(&self) -> &BTreeMap<u64, u64> {
        &self.acked
    }

    /// A read must see everything that was acknowledged before it began.
    pub fn read_begins(&mut self) -> u64 {
        let read = self.new_command();
        self.reads.insert(read, self.acked.last_key_value().map_or(0, |(index, _)| *index));
        read
    }

    pub fn read_answered(&mut self, read: u64, applied: u64) -> Result<(), Violation> {
        self.reads_answered += 1;
        match self.reads.remove(&read) {
            Some(must_see) if applied < must_see => Err(Violation {
                invariant: "linearizable reads",
                what: format!("a read begun after index {must_see} was acknowledged saw only {applied}"),
            }),
            _ => Ok(()),
        }
    }

    /// At the end: each acknowledged write is there exactly once, each refused one is not.
    pub fn check_final(&self, commands: &[u64]) -> Result<(), Violation> {
        let present: BTreeSet<u64> = commands.iter().copied().collect();
        let lost: Vec<_> = self.acked.values().filter(|command| !present.contains(command)).collect();
        let wrong: Vec<_> = self.refused.intersection(&present).collect();
        let what = if !lost.is_empty() {
            format!("acknowledged and lost: {lost:?}")
        } else if !wrong.is_empty() {
            format!("refused and yet applied: {wrong:?}")
        } else if present.len() != commands.len() {
            "a command was applied twice".to_owned()
        } else {
            return Ok(());
        };
        Err(Violation { invariant: "acknowledged writes stay", what })
    }
}
