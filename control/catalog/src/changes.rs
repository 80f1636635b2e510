//! What differs between two states: the substance of events. Tables are shared between states, so finding the difference
//! costs what changed and not what there is.

use crate::{Catalog, StoredJob};
use imbl::OrdMap;
use imbl::ordmap::DiffItem;
use model::{Allocation, Deployment, Evaluation, Instance, Job, Node};
use std::sync::Arc;

/// A row before and after; at least one of them is there.
#[derive(Clone, Debug, PartialEq)]
pub struct Row<T> {
    pub before: Option<T>,
    pub after: Option<T>,
}

#[derive(Clone, Debug, PartialEq)]
pub enum Change {
    Node(Row<Arc<Node>>),
    Job(Row<Arc<Job>>),
    Evaluation(Row<Arc<Evaluation>>),
    Deployment(Row<Arc<Deployment>>),
    Allocation(Row<Arc<Allocation>>),
    /// The instances of one allocation.
    Instances(Row<Arc<[Instance]>>),
}

impl Catalog {
    /// What became different since `older`, in the order in which one thing causes another.
    pub fn changes_since(&self, older: &Catalog) -> Vec<Change> {
        let mut changes = Vec::new();
        rows(&older.nodes, &self.nodes, |row| changes.push(Change::Node(row)));
        rows(&older.jobs, &self.jobs, |row| {
            let newest = |stored: Option<Arc<StoredJob>>| stored.map(|stored| Arc::clone(stored.newest()));
            changes.push(Change::Job(Row { before: newest(row.before), after: newest(row.after) }));
        });
        rows(&older.evals, &self.evals, |row| changes.push(Change::Evaluation(row)));
        rows(&older.deployments, &self.deployments, |row| changes.push(Change::Deployment(row)));
        rows(&older.allocs, &self.allocs, |row| changes.push(Change::Allocation(row)));
        rows(&older.instances, &self.instances, |row| changes.push(Change::Instances(row)));
        changes
    }
}

fn rows<K: Ord, V: Clone + PartialEq>(older: &OrdMap<K, V>, newer: &OrdMap<K, V>, mut found: impl FnMut(Row<V>)) {
    for item in older.diff(newer) {
        found(match item {
            DiffItem::Add(_, after) => Row { before: None, after: Some(after.clone()) },
            DiffItem::Update { old: (_, before), new: (_, after) } => {
                Row { before: Some(before.clone()), after: Some(after.clone()) }
            }
            DiffItem::Remove(_, before) => Row { before: Some(before.clone()), after: None },
        });
    }
}
