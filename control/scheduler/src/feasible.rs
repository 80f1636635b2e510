//! Which nodes a group may run on at all: datacenter, pool, drivers and constraints, whatever room they have.

use crate::constraint::Checker;
use model::{Job, Node, NodeStatus, Operator, TaskGroup};
use std::collections::BTreeSet;

/// Everything about a group that a node either meets or not.
pub(crate) struct Feasibility<'a> {
    job: &'a Job,
    constraints: Vec<Checker<'a>>,
    drivers: BTreeSet<&'static str>,
}

impl<'a> Feasibility<'a> {
    pub(crate) fn new(job: &'a Job, group: &'a TaskGroup) -> Self {
        let of_tasks = group.tasks.iter().flat_map(|task| &task.constraints);
        let all = job.constraints.iter().chain(&group.constraints).chain(of_tasks);
        Self {
            job,
            constraints: all.map(Checker::new).collect(),
            drivers: group.tasks.iter().map(|task| task.driver.name()).collect(),
        }
    }

    /// Every reason why the group may not run there, as placement failures count them; empty when it may.
    pub(crate) fn reasons_against(&self, node: &Node) -> Vec<String> {
        let unmet = self.constraints.iter().filter(|constraint| !constraint.holds(node)).map(Checker::text);
        let lacking =
            self.drivers.iter().filter(|driver| !has_driver(node, driver)).map(|name| format!("driver {name}"));
        self.wrong_place(node).into_iter().chain(lacking).chain(unmet).collect()
    }

    fn wrong_place(&self, node: &Node) -> Vec<String> {
        let mut reasons = Vec::new();
        if !self.job.datacenters.iter().any(|glob| glob_matches(glob, &node.datacenter)) {
            reasons.push(format!("${{node.datacenter}} in {}", self.job.datacenters.join(", ")));
        }
        if pool(&self.job.node_pool) != "all" && pool(&self.job.node_pool) != pool(&node.pool) {
            reasons.push(format!("${{node.pool}} = {}", pool(&self.job.node_pool)));
        }
        reasons
    }
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
pub(crate) fn distinct_hosts(constraints: &[model::Constraint]) -> bool {
    constraints.iter().any(|constraint| {
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
