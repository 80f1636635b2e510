//! Evaluations that wait for capacity, and what wakes them: a node of a class that may run the job, or one of the very
//! nodes it waits for.
//!
//! No wake-up is lost: the last change of every class and node is remembered, and an evaluation that comes to wait is
//! compared with the changes that happened after the state its plan was made from.

use model::{EvalId, Index, JobId, NodeId};
use std::collections::{BTreeMap, BTreeSet};

/// Nodes that are alike in everything that constraints may ask for, but for what is unique to one node.
pub type Class = u64;

/// Changes remembered one by one; beyond it the oldest count as changes of everything.
const CHANGES_MAX: usize = 4096;

/// A node on which something became free: it came up, was made eligible, or an allocation on it ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Capacity {
    pub node: NodeId,
    pub class: Class,
}

/// What a blocked evaluation waits for.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub enum Interest {
    /// Any node but those of classes that are known to be out of the question.
    AnyBut(BTreeSet<Class>),
    /// One of these nodes, each of which is to run an allocation.
    Nodes(BTreeSet<NodeId>),
}

#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub(crate) struct Row {
    pub(crate) job_id: JobId,
    pub(crate) priority: u8,
    pub(crate) created: Index,
    pub(crate) interest: Interest,
}

#[derive(Clone, Debug, Default, PartialEq, Eq, Hash)]
pub(crate) struct Blocked {
    rows: BTreeMap<EvalId, Row>,
    changes: BTreeMap<NodeId, (Index, Class)>,
    /// Changes up to here were forgotten.
    floor: Index,
}

impl Interest {
    /// Whatever becomes free.
    pub fn anything() -> Self {
        Interest::AnyBut(BTreeSet::new())
    }

    fn concerns(&self, capacity: Capacity) -> bool {
        match self {
            Interest::AnyBut(excluded) => !excluded.contains(&capacity.class),
            Interest::Nodes(nodes) => nodes.contains(&capacity.node),
        }
    }
}

impl Blocked {
    pub(crate) fn after(floor: Index) -> Self {
        Self { floor, ..Self::default() }
    }

    pub(crate) fn len(&self) -> usize {
        self.rows.len()
    }

    pub(crate) fn remove(&mut self, id: EvalId) {
        self.rows.remove(&id);
    }

    /// Returns it at once if what it waits for changed after the state at `seen`.
    pub(crate) fn insert(&mut self, id: EvalId, row: Row, seen: Index) -> Option<Row> {
        let missed = |(node, (index, class)): (&NodeId, &(Index, Class))| {
            *index > seen && row.interest.concerns(Capacity { node: *node, class: *class })
        };
        if self.floor > seen || self.changes.iter().any(missed) {
            return Some(row);
        }
        self.rows.insert(id, row);
        None
    }

    pub(crate) fn wake(&mut self, capacity: Capacity, index: Index) -> Vec<(EvalId, Row)> {
        self.changes.insert(capacity.node, (index, capacity.class));
        if self.changes.len() > CHANGES_MAX {
            self.forget_oldest();
        }
        let concerned = self.rows.iter().filter(|(_, row)| row.interest.concerns(capacity));
        let ids: Vec<EvalId> = concerned.map(|(id, _)| *id).collect();
        ids.into_iter().filter_map(|id| self.rows.remove(&id).map(|row| (id, row))).collect()
    }

    fn forget_oldest(&mut self) {
        let mut indices: Vec<Index> = self.changes.values().map(|(index, _)| *index).collect();
        let middle = indices.len() / 2;
        let (_, floor, _) = indices.select_nth_unstable(middle);
        self.floor = self.floor.max(*floor);
        self.changes.retain(|_, (index, _)| *index > self.floor);
    }
}
