//! What must hold after every event; one file for each.

mod election_safety;
mod leader_completeness;
mod log_matching;
mod state_machine_safety;

use consensus::Applied;

use crate::Violation;
use crate::node::Node;
use crate::oracle::Oracle;

#[derive(Debug, Default)]
pub struct Invariants {
    elections: election_safety::ElectionSafety,
    completeness: leader_completeness::LeaderCompleteness,
    machines: state_machine_safety::StateMachineSafety,
}

impl Invariants {
    /// After an event on one server.
    pub fn on_event(&mut self, node: &Node, oracle: &Oracle) -> Result<(), Violation> {
        self.elections.check(node)?;
        self.completeness.check(node, oracle)
    }

    pub fn on_apply(&mut self, server: u64, entries: &[Applied]) -> Result<(), Violation> {
        entries.iter().try_for_each(|entry| self.machines.check(server, entry))
    }

    /// A server took over the state of another, or restarted from its own.
    pub fn on_restore(&mut self, server: u64, index: u64) {
        self.machines.restart_at(server, index);
    }

    /// Now and then, for it looks at every log.
    pub fn on_interval(&self, nodes: &[Node]) -> Result<(), Violation> {
        log_matching::check(nodes)
    }
}
