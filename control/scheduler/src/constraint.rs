//! Constraints against a node, with the comparison rules of Nomad's job specification.

use model::version::{self, Rules};
use model::{Constraint, Node, Operator, rules};
use regex::Regex;
use std::cmp::Ordering;
use std::collections::BTreeSet;

/// Whether the node meets the constraint. `distinct_hosts` is no matter of one node and always holds here.
pub fn satisfies(node: &Node, constraint: &Constraint) -> bool {
    Checker::new(constraint).holds(node)
}

/// A constraint with its pattern compiled once for all nodes.
pub(crate) struct Checker<'a> {
    constraint: &'a Constraint,
    regex: Option<Regex>,
}

impl<'a> Checker<'a> {
    pub(crate) fn new(constraint: &'a Constraint) -> Self {
        let literal = constraint.operator == Operator::Regexp && reference(&constraint.value).is_none();
        Self { constraint, regex: if literal { rules::regex(&constraint.value).ok() } else { None } }
    }

    pub(crate) fn holds(&self, node: &Node) -> bool {
        let left = resolve(node, &self.constraint.attribute);
        let right = resolve(node, &self.constraint.value);
        match self.constraint.operator {
            Operator::DistinctHosts | Operator::DistinctProperty => true,
            Operator::NotEqual => left != right,
            Operator::IsSet => left.is_some(),
            Operator::IsNotSet => left.is_none(),
            _ => left.zip(right).is_some_and(|(left, right)| self.compares(&left, &right)),
        }
    }

    fn compares(&self, left: &str, right: &str) -> bool {
        match self.constraint.operator {
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
        let Constraint { attribute, operator, value } = self.constraint;
        match operator {
            Operator::IsSet | Operator::IsNotSet => format!("{attribute} {}", operator.as_str()),
            Operator::DistinctHosts => operator.as_str().to_owned(),
            _ => format!("{attribute} {} {value}", operator.as_str()),
        }
    }
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
fn resolve(node: &Node, text: &str) -> Option<String> {
    match reference(text) {
        Some(name) => lookup(node, name),
        None => Some(text.to_owned()),
    }
}

fn reference(text: &str) -> Option<&str> {
    text.strip_prefix("${")?.strip_suffix('}').map(str::trim)
}

fn lookup(node: &Node, name: &str) -> Option<String> {
    if let Some(key) = name.strip_prefix("attr.") {
        return node.attributes.get(key).cloned();
    }
    if let Some(key) = name.strip_prefix("meta.").or_else(|| name.strip_prefix("node.meta.")) {
        return node.meta.get(key).cloned();
    }
    match name {
        "node.unique.id" => Some(node.id.to_string()),
        "node.unique.name" => Some(node.name.clone()),
        "node.datacenter" => Some(node.datacenter.clone()),
        "node.pool" => Some(node.pool.clone()),
        "node.class" => Some(node.class.clone()),
        _ => None,
    }
}
