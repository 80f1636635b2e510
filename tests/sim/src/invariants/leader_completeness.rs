//! Whoever leads holds every acknowledged write at the place it was acknowledged for.

use std::collections::BTreeSet;

use crate::Violation;
use crate::node::{Node, Running, command};
use crate::oracle::Oracle;

#[derive(Debug, Default)]
pub struct LeaderCompleteness {
    checked: BTreeSet<(u64, u64)>,
}

impl LeaderCompleteness {
    /// Looks once at each leader of each term, at the moment it wins.
    pub fn check(&mut self, node: &Node, oracle: &Oracle) -> Result<(), Violation> {
        let Some(running) = node.running.as_ref().filter(|running| running.core.is_leader()) else { return Ok(()) };
        if !self.checked.insert((running.core.term(), node.id)) {
            return Ok(());
        }
        let base = running.core.log_base().index;
        let held: std::collections::BTreeMap<u64, Option<u64>> =
            running.core.log().map(|(index, _, data)| (index, command(data))).collect();
        let missing = oracle
            .acked()
            .range(base + 1..)
            .find(|(index, written)| held.get(index).copied().flatten() != Some(**written));
        match missing {
            Some((index, written)) => Err(violation(node.id, running, *index, *written)),
            None => Ok(()),
        }
    }
}

fn violation(id: u64, running: &Running, index: u64, written: u64) -> Violation {
    let term = running.core.term();
    let what = format!("server {id} leads in term {term} without the acknowledged {written} at index {index}");
    Violation { invariant: "leader completeness", what }
}
