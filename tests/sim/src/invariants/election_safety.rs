//! No term has two leaders.

use std::collections::BTreeMap;

use crate::Violation;
use crate::node::Node;

#[derive(Debug, Default)]
pub struct ElectionSafety {
    leaders: BTreeMap<u64, u64>,
}

impl ElectionSafety {
    pub fn check(&mut self, node: &Node) -> Result<(), Violation> {
        let Some(running) = node.running.as_ref().filter(|running| running.core.is_leader()) else { return Ok(()) };
        let term = running.core.term();
        let first = *self.leaders.entry(term).or_insert(node.id);
        if first == node.id {
            return Ok(());
        }
        let what = format!("servers {first} and {} both lead in term {term}", node.id);
        Err(Violation { invariant: "election safety", what })
    }
}
