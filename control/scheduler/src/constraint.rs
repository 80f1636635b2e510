//! Constraints against a node, with the comparison rules of Nomad's job specification.
//!
//! Beside what a node is they may read what runs on it: `${node.jobs.db}` is the number of allocations of the job `db` that
//! are to run there, and is not set when there is none. So a constraint with `is_not_set` keeps two jobs apart, `is_set`
//! joins them, and an affinity does either as a wish.

use model::version::{self, Rules};
use model::{Constraint, Node, Operator, rules};
use regex::Regex;
use std::borrow::Cow;
use std::cmp::Ordering;
use std::collections::BTreeSet;

/// How many allocations of a job are to run on a node: what `${node.jobs.<job>}` reads.
pub(crate) type JobsHere<'n> = &'n dyn Fn(&str) -> u32;

pub(crate) const NO_JOBS: JobsHere<'static> = &|_| 0;

/// Whether the node meets the constraint. `distinct_hosts` and `distinct_property` are no matter of one node and always
/// hold here; no job runs on the node.
pub fn satisfies(node: &Node, constraint: &Constraint) -> bool {
    Checker::of(constraint).holds(node, NO_JOBS)
}

/// A comparison with its pattern compiled once for all nodes.
pub(crate) struct Checker<'a> {
    attribute: &'a str,
    operator: Operator,
    value: &'a str,
    regex: Option<Regex>,
}

impl<'a> Checker<'a> {
    pub(crate) fn of(constraint: &'a Constraint) -> Self {
        Self::new(&constraint.attribute, constraint.operator, &constraint.value)
    }

    pub(crate) fn new(attribute: &'a str, operator: Operator, value: &'a str) -> Self {
        let literal = operator == Operator::Regexp && reference(value).is_none();
        Self { attribute, operator, value, regex: if literal { rules::regex(value).ok() } else { None } }
    }

    /// Whether the answer may differ between two nodes of one class.
    pub(crate) fn is_of_one_node(&self) -> bool {
        is_of_one_node(self.attribute) || is_of_one_node(self.value)
    }

    pub(crate) fn holds(&self, node: &Node, jobs: JobsHere<'_>) -> bool {
        let left = resolve(node, jobs, self.attribute);
        let right = resolve(node, jobs, self.value);
        match self.operator {
            Operator::DistinctHosts | Operator::DistinctProperty => true,
            Operator::NotEqual => left != right,
            Operator::IsSet => left.is_some(),
            Operator::IsNotSet => left.is_none(),
            _ => left.zip(right).is_some_and(|(left, right)| self.compares(&left, &right)),
        }
    }

    fn compares(&self, left: &str, right: &str) -> bool {
        match self.operator {
            Operator::Equal => left == right,
            Operator::Less => order(left, right).is_lt(),
            Operator::LessOrEqual => order(left, right).is_le(),
            Operator::Greater => order(left, right).is_gt(),
            Operator::GreaterOrEqual => order(left, right).is_ge(),
            Operator::Regexp => self.finds(left, right),
            Operator::Version => version::matches(left, right, Rules::Lenient),
            Operator::Semver => version::matches(left, right, Rules::Semver),
            Operator::SetContains => members(left).is_superset(&members(right)),
            Operator::SetContainsAny => !members(left).is_disjoint(&members(right)),
            Operator::NotEqual
            | Operator::IsSet
            | Operator::IsNotSet
            | Operator::DistinctHosts
            | Operator::DistinctProperty => false,
        }
    }

    fn finds(&self, text: &str, pattern: &str) -> bool {
        match &self.regex {
            Some(regex) => regex.is_match(text),
            None => rules::regex(pattern).is_ok_and(|regex| regex.is_match(text)),
        }
    }

    /// As placement failures name it.
    pub(crate) fn text(&self) -> String {
        let Self { attribute, operator, value, .. } = self;
        match operator {
            Operator::IsSet | Operator::IsNotSet => format!("{attribute} {}", operator.as_str()),
            Operator::DistinctHosts => operator.as_str().to_owned(),
            _ => format!("{attribute} {} {value}", operator.as_str()),
        }
    }
}

/// Whether the text reads something that nodes alike in everything else differ in.
fn is_of_one_node(text: &str) -> bool {
    reference(text).is_some_and(|name| name.contains("unique.") || name.starts_with(JOBS))
}

/// As integers if both are, else as numbers, else as text.
fn order(left: &str, right: &str) -> Ordering {
    let integers = left.parse::<i64>().ok().zip(right.parse::<i64>().ok());
    let floats = || left.parse::<f64>().ok().zip(right.parse::<f64>().ok());
    match integers {
        Some((left, right)) => left.cmp(&right),
        None => floats().and_then(|(left, right)| left.partial_cmp(&right)).unwrap_or_else(|| left.cmp(right)),
    }
}

fn members(text: &str) -> BTreeSet<&str> {
    text.split(',').map(str::trim).collect()
}

/// The value of `${…}`, `None` when the node does not have it; any other text stands for itself.
pub(crate) fn resolve<'n>(node: &'n Node, jobs: JobsHere<'_>, text: &'n str) -> Option<Cow<'n, str>> {
    match reference(text) {
        Some(name) => lookup(node, jobs, name),
        None => Some(Cow::Borrowed(text)),
    }
}

const JOBS: &str = "node.jobs.";

pub(crate) fn reference(text: &str) -> Option<&str> {
    text.strip_prefix("${")?.strip_suffix('}').map(str::trim)
}

fn lookup<'n>(node: &'n Node, jobs: JobsHere<'_>, name: &str) -> Option<Cow<'n, str>> {
    if let Some(key) = name.strip_prefix("attr.") {
        return node.attributes.get(key).map(|value| Cow::Borrowed(value.as_str()));
    }
    if let Some(key) = name.strip_prefix("meta.").or_else(|| name.strip_prefix("node.meta.")) {
        return node.meta.get(key).map(|value| Cow::Borrowed(value.as_str()));
    }
    if let Some(job) = name.strip_prefix(JOBS) {
        let count = jobs(job);
        return (count > 0).then(|| Cow::Owned(count.to_string()));
    }
    match name {
        "node.unique.id" => Some(Cow::Owned(node.id.to_string())),
        "node.unique.name" => Some(Cow::Borrowed(&node.name)),
        "node.datacenter" => Some(Cow::Borrowed(&node.datacenter)),
        "node.pool" => Some(Cow::Borrowed(&node.pool)),
        "node.class" => Some(Cow::Borrowed(&node.class)),
        _ => None,
    }
}
