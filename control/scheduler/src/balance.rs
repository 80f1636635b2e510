//! How the allocations of a group lie over the values of attributes: spreads, which are wishes, and `distinct_property`,
//! which is a limit.
//!
//! Nodes with the same values form a share. What one more allocation does to the balance is the same for every node of a
//! share, so it is worked out once per share and not once per node.

use crate::constraint::{NO_JOBS, resolve};
use crate::feasible::of_group;
use model::{Constraint, Job, Node, Operator, Spread, TaskGroup};
use std::collections::HashMap;

pub(crate) struct Balance<'a> {
    rules: Vec<Rule<'a>>,
    /// Of all spreads.
    weights: f64,
    shares: HashMap<Vec<Option<usize>>, usize>,
    members: Vec<Vec<Option<usize>>>,
}

struct Rule<'a> {
    attribute: &'a str,
    kind: Kind<'a>,
    /// Counts allocations of all groups of the job, not of one.
    whole_job: bool,
    numbers: HashMap<String, usize>,
    values: Vec<Value>,
    /// The smallest count among values that may be chosen.
    least: u32,
}

enum Kind<'a> {
    Even { weight: f64 },
    Targets { weight: f64, spread: &'a Spread, count: f64 },
    AtMost { limit: u32, text: String },
}

#[derive(Clone, Default)]
struct Value {
    /// How many are wanted with it; `None` when none should be.
    wanted: Option<f64>,
    used: u32,
    /// Some node that may be chosen has it.
    offered: bool,
}

impl<'a> Balance<'a> {
    pub(crate) fn of(job: &'a Job, group: &'a TaskGroup) -> Self {
        let spreads = job.spreads.iter().chain(&group.spreads).map(|spread| Rule::spread(spread, group.count));
        let limits = |whole_job| move |constraint: &'a Constraint| Rule::limit(constraint, whole_job);
        let of_job = job.constraints.iter().filter_map(limits(true));
        let rules: Vec<Rule<'_>> = spreads.chain(of_job).chain(of_group(group).filter_map(limits(false))).collect();
        let weights = rules.iter().map(Rule::weight).sum();
        Self { rules, weights, shares: HashMap::new(), members: Vec::new() }
    }

    pub(crate) fn is_empty(&self) -> bool {
        self.rules.is_empty()
    }

    pub(crate) fn has_spreads(&self) -> bool {
        self.weights > 0.0
    }

    /// The share of a node that may be chosen.
    pub(crate) fn share_of(&mut self, node: &Node) -> usize {
        let values: Vec<Option<usize>> = self.rules.iter_mut().map(|rule| rule.offer(node)).collect();
        if let Some(known) = self.shares.get(&values) {
            return *known;
        }
        let number = self.members.len();
        self.shares.insert(values.clone(), number);
        self.members.push(values);
        number
    }

    pub(crate) fn shares(&self) -> usize {
        self.members.len()
    }

    /// An allocation more or less; `of_group` tells whether it is of the group itself or of another one of the job.
    pub(crate) fn count(&mut self, node: &Node, of_group: bool, by: i32) {
        for rule in self.rules.iter_mut().filter(|rule| of_group || rule.whole_job) {
            rule.count(node, by);
        }
    }

    pub(crate) fn refresh(&mut self) {
        self.rules.iter_mut().for_each(Rule::refresh);
    }

    /// Whether no limit is reached in the share.
    pub(crate) fn is_open(&self, share: usize) -> bool {
        let members = self.members.get(share).into_iter().flatten();
        self.rules.iter().zip(members).all(|(rule, value)| rule.is_open(*value))
    }

    /// What the spreads think of one more in the share.
    pub(crate) fn boost(&self, share: usize) -> f64 {
        let members = self.members.get(share).into_iter().flatten();
        let weighted = self.rules.iter().zip(members).map(|(rule, value)| rule.weight() * rule.boost(*value));
        if self.weights > 0.0 { weighted.sum::<f64>() / self.weights } else { 0.0 }
    }

    /// The limits that the node's values have reached.
    pub(crate) fn reasons_against(&self, node: &Node) -> Vec<String> {
        let against = |rule: &Rule<'_>| match &rule.kind {
            Kind::AtMost { text, .. } if !rule.is_open(rule.number_of(node)) => Some(text.clone()),
            _ => None,
        };
        self.rules.iter().filter_map(against).collect()
    }
}

impl<'a> Rule<'a> {
    fn new(attribute: &'a str, kind: Kind<'a>, whole_job: bool) -> Self {
        Self { attribute, kind, whole_job, numbers: HashMap::new(), values: Vec::new(), least: 0 }
    }

    fn spread(spread: &'a Spread, count: u32) -> Self {
        let (weight, count) = (f64::from(spread.weight), f64::from(count));
        let kind = match spread.targets.is_empty() {
            true => Kind::Even { weight },
            false => Kind::Targets { weight, spread, count },
        };
        Rule::new(&spread.attribute, kind, false)
    }

    fn limit(constraint: &'a Constraint, whole_job: bool) -> Option<Self> {
        if constraint.operator != Operator::DistinctProperty {
            return None;
        }
        let limit = constraint.value.parse().unwrap_or(1);
        let text = format!("distinct_property {} {limit}", constraint.attribute);
        Some(Rule::new(&constraint.attribute, Kind::AtMost { limit, text }, whole_job))
    }

    fn weight(&self) -> f64 {
        match self.kind {
            Kind::Even { weight } | Kind::Targets { weight, .. } => weight,
            Kind::AtMost { .. } => 0.0,
        }
    }

    fn number_of(&self, node: &Node) -> Option<usize> {
        let value = resolve(node, NO_JOBS, self.attribute)?;
        self.numbers.get(value.as_ref()).copied()
    }

    fn number_or_new(&mut self, node: &Node) -> Option<usize> {
        let value = resolve(node, NO_JOBS, self.attribute)?;
        if let Some(known) = self.numbers.get(value.as_ref()) {
            return Some(*known);
        }
        let number = self.values.len();
        self.values.push(Value { wanted: self.kind.wanted(&value), ..Value::default() });
        self.numbers.insert(value.into_owned(), number);
        Some(number)
    }

    fn offer(&mut self, node: &Node) -> Option<usize> {
        let number = self.number_or_new(node)?;
        self.values[number].offered = true;
        Some(number)
    }

    fn count(&mut self, node: &Node, by: i32) {
        let Some(number) = self.number_or_new(node) else { return };
        let value = &mut self.values[number];
        value.used = value.used.saturating_add_signed(by);
    }

    fn refresh(&mut self) {
        let offered = self.values.iter().filter(|value| value.offered);
        self.least = offered.map(|value| value.used).min().unwrap_or(0);
    }

    /// A node without the property cannot be told from others by it.
    fn is_open(&self, value: Option<usize>) -> bool {
        match self.kind {
            Kind::AtMost { limit, .. } => value.is_some_and(|number| self.values[number].used < limit),
            Kind::Even { .. } | Kind::Targets { .. } => true,
        }
    }

    /// 1 where most is missing, below 0 where there are too many already or none are wanted.
    fn boost(&self, value: Option<usize>) -> f64 {
        let Some(value) = value.map(|number| &self.values[number]) else { return -1.0 };
        match self.kind {
            Kind::Even { .. } if value.used == self.least => 1.0,
            Kind::Even { .. } => -f64::from(value.used.saturating_sub(self.least)) / f64::from(self.least.max(1)),
            Kind::Targets { .. } => value.wanted.map_or(-1.0, |wanted| (wanted - f64::from(value.used)) / wanted),
            Kind::AtMost { .. } => 0.0,
        }
    }
}

impl Kind<'_> {
    /// What no target names shares the percent that are left.
    fn wanted(&self, value: &str) -> Option<f64> {
        let Kind::Targets { spread, count, .. } = self else { return None };
        let named: u32 = spread.targets.values().map(|percent| u32::from(*percent)).sum();
        let percent = spread.targets.get(value).map_or(100u32.saturating_sub(named), |percent| u32::from(*percent));
        (percent > 0).then(|| f64::from(percent) * count / 100.0)
    }
}
