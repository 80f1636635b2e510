//! Which nodes a group may run on at all: datacenter, pool, drivers and constraints, whatever room they have.
//!
//! What does not name anything unique to a node is decided once for a class of nodes.

use crate::constraint::{Checker, JobsHere, NO_JOBS};
use crate::state::{ClassId, NodeState};
use model::{Constraint, Job, Node, NodeStatus, Operator, TaskGroup};
use std::collections::BTreeSet;

/// Everything about a group that a node either meets or not.
pub(crate) struct Feasibility<'a> {
    job: &'a Job,
    of_class: Vec<Checker<'a>>,
    of_node: Vec<Checker<'a>>,
    drivers: BTreeSet<&'static str>,
}

/// What was found out about classes.
#[derive(Default)]
pub(crate) struct Memo {
    by_class: Vec<Option<bool>>,
}

/// Whether a group may run on a node, whatever room it has, whether it takes anything new now, and what runs there.
pub fn may_run(job: &Job, group: &TaskGroup, node: &Node) -> bool {
    Feasibility::new(job, group).allows(node)
}

impl<'a> Feasibility<'a> {
    pub(crate) fn new(job: &'a Job, group: &'a TaskGroup) -> Self {
        let (of_node, of_class) = constraints(job, group).map(Checker::of).partition(Checker::is_of_one_node);
        let drivers = group.tasks.iter().map(|task| task.driver.name()).collect();
        Self { job, of_class, of_node, drivers }
    }

    /// Whether the answer is the same for all nodes of a class.
    pub(crate) fn is_of_class(&self) -> bool {
        self.of_node.is_empty()
    }

    pub(crate) fn allows(&self, node: &Node) -> bool {
        self.class_allows(node) && self.of_node.iter().all(|constraint| constraint.holds(node, NO_JOBS))
    }

    /// Whether nodes of the class may run it, as far as the class tells.
    pub(crate) fn allows_class(&self, memo: &mut Memo, class: ClassId, node: &Node) -> bool {
        let at = class.0 as usize;
        if memo.by_class.len() <= at {
            memo.by_class.resize(at + 1, None);
        }
        *memo.by_class[at].get_or_insert_with(|| self.class_allows(node))
    }

    pub(crate) fn allows_state(&self, memo: &mut Memo, state: &NodeState, jobs: JobsHere<'_>) -> bool {
        self.allows_class(memo, state.class, &state.node) && self.allows_itself(&state.node, jobs)
    }

    /// The part that may change while a plan is made: what runs on the node already.
    pub(crate) fn allows_itself(&self, node: &Node, jobs: JobsHere<'_>) -> bool {
        self.of_node.iter().all(|constraint| constraint.holds(node, jobs))
    }

    /// Every reason why the group may not run there, as placement failures count them; empty when it may.
    pub(crate) fn reasons_against(&self, node: &Node, jobs: JobsHere<'_>) -> Vec<String> {
        let constraints = self.of_class.iter().chain(&self.of_node);
        let unmet = constraints.filter(|constraint| !constraint.holds(node, jobs)).map(Checker::text);
        let lacking =
            self.drivers.iter().filter(|driver| !has_driver(node, driver)).map(|name| format!("driver {name}"));
        self.wrong_place(node).into_iter().chain(lacking).chain(unmet).collect()
    }

    fn class_allows(&self, node: &Node) -> bool {
        self.is_in_datacenter(node)
            && self.is_in_pool(node)
            && self.drivers.iter().all(|driver| has_driver(node, driver))
            && self.of_class.iter().all(|constraint| constraint.holds(node, NO_JOBS))
    }

    fn wrong_place(&self, node: &Node) -> Vec<String> {
        let mut reasons = Vec::new();
        if !self.is_in_datacenter(node) {
            reasons.push(format!("${{node.datacenter}} in {}", self.job.datacenters.join(", ")));
        }
        if !self.is_in_pool(node) {
            reasons.push(format!("${{node.pool}} = {}", pool(&self.job.node_pool)));
        }
        reasons
    }

    fn is_in_datacenter(&self, node: &Node) -> bool {
        self.job.datacenters.iter().any(|glob| glob_matches(glob, &node.datacenter))
    }

    fn is_in_pool(&self, node: &Node) -> bool {
        pool(&self.job.node_pool) == "all" || pool(&self.job.node_pool) == pool(&node.pool)
    }
}

/// All that hold for a group: the job's, its own and its tasks'.
pub(crate) fn constraints<'a>(job: &'a Job, group: &'a TaskGroup) -> impl Iterator<Item = &'a Constraint> {
    job.constraints.iter().chain(of_group(group))
}

pub(crate) fn of_group(group: &TaskGroup) -> impl Iterator<Item = &Constraint> {
    group.constraints.iter().chain(group.tasks.iter().flat_map(|task| &task.constraints))
}

/// Why nothing new may be placed on the node now.
pub(crate) fn reason_not_placeable(node: &Node) -> Option<String> {
    match node.status {
        NodeStatus::Ready if node.is_placeable() => None,
        NodeStatus::Ready => Some("node is ineligible".to_owned()),
        status => Some(format!("node is {}", status.as_str())),
    }
}

/// Whether the job, or this group of it, wants every allocation on a node of its own.
pub(crate) fn distinct_hosts<'a>(mut constraints: impl Iterator<Item = &'a Constraint>) -> bool {
    constraints.any(|constraint| {
        constraint.operator == Operator::DistinctHosts && !matches!(constraint.value.as_str(), "false" | "0")
    })
}

fn has_driver(node: &Node, name: &str) -> bool {
    node.drivers.get(name).is_some_and(|driver| driver.detected && driver.healthy)
}

fn pool(name: &str) -> &str {
    if name.is_empty() { "default" } else { name }
}

/// `*` stands for any text.
fn glob_matches(glob: &str, text: &str) -> bool {
    let Some((prefix, rest)) = glob.split_once('*') else { return glob == text };
    let Some(mut text) = text.strip_prefix(prefix) else { return false };
    let mut parts: Vec<&str> = rest.split('*').collect();
    let suffix = parts.pop().unwrap_or_default();
    for part in parts {
        let Some(at) = text.find(part) else { return false };
        text = &text[at + part.len()..];
    }
    text.ends_with(suffix)
}

#[cfg(test)]
mod tests {
    use super::glob_matches;

    #[test]
    fn stars_stand_for_any_text() {
        for (glob, text) in [("*", ""), ("*", "dc1"), ("eu-*", "eu-west"), ("*-west", "eu-west"), ("e*-w*t", "eu-west")]
        {
            assert!(glob_matches(glob, text), "{glob} {text}");
        }
        for (glob, text) in [("", "dc1"), ("dc1", "dc12"), ("eu-*", "us-west"), ("a*a", "a"), ("*x*", "dc1")] {
            assert!(!glob_matches(glob, text), "{glob} {text}");
        }
    }
}
