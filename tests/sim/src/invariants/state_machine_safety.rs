//! All servers apply the same entry at each index, each index once and in order.

use std::collections::BTreeMap;

use consensus::Applied;

use crate::Violation;

#[derive(Debug, Default)]
pub struct StateMachineSafety {
    applied: BTreeMap<u64, Applied>,
    last: BTreeMap<u64, u64>,
}

impl StateMachineSafety {
    pub fn check(&mut self, server: u64, entry: &Applied) -> Result<(), Violation> {
        let last = self.last.entry(server).or_default();
        if entry.index != *last + 1 {
            return Err(violation(format!("server {server} applies {} after {last}", entry.index)));
        }
        *last = entry.index;
        let first = self.applied.entry(entry.index).or_insert_with(|| entry.clone());
        if first == entry {
            return Ok(());
        }
        Err(violation(format!("server {server} applies {entry:?}, another applied {first:?}")))
    }

    pub fn restart_at(&mut self, server: u64, index: u64) {
        self.last.insert(server, index);
    }
}

fn violation(what: String) -> Violation {
    Violation { invariant: "state machine safety", what }
}
