//! Where allocations may, should and should not run.

use std::collections::BTreeMap;

/// `attribute` and `value` may hold `${attr.…}`, `${node.…}`, `${meta.…}`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Constraint {
    pub attribute: String,
    pub operator: Operator,
    pub value: String,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Operator {
    Equal,
    NotEqual,
    Less,
    LessOrEqual,
    Greater,
    GreaterOrEqual,
    Regexp,
    Version,
    Semver,
    SetContains,
    SetContainsAny,
    IsSet,
    IsNotSet,
    DistinctHosts,
    /// At most `value` (1 by default) allocations per value of `attribute`.
    DistinctProperty,
}

impl Operator {
    /// Every operator with the spelling that status output and JSON use.
    pub const ALL: [(Operator, &'static str); 15] = [
        (Operator::Equal, "="),
        (Operator::NotEqual, "!="),
        (Operator::Less, "<"),
        (Operator::LessOrEqual, "<="),
        (Operator::Greater, ">"),
        (Operator::GreaterOrEqual, ">="),
        (Operator::Regexp, "regexp"),
        (Operator::Version, "version"),
        (Operator::Semver, "semver"),
        (Operator::SetContains, "set_contains"),
        (Operator::SetContainsAny, "set_contains_any"),
        (Operator::IsSet, "is_set"),
        (Operator::IsNotSet, "is_not_set"),
        (Operator::DistinctHosts, "distinct_hosts"),
        (Operator::DistinctProperty, "distinct_property"),
    ];

    pub fn as_str(self) -> &'static str {
        Self::ALL.iter().find(|(op, _)| *op == self).map_or("", |(_, text)| text)
    }

    /// Reads any spelling that job files use: `==` and `is` mean `=`, `not` means `!=`, `set_contains_all` is `set_contains`.
    pub fn parse(text: &str) -> Option<Self> {
        let text = match text {
            "" | "==" | "is" => "=",
            "not" => "!=",
            "set_contains_all" => "set_contains",
            other => other,
        };
        Self::ALL.iter().find(|(_, spelling)| *spelling == text).map(|(op, _)| *op)
    }
}

/// A wish: nodes that match score higher, or lower for a negative weight.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Affinity {
    pub attribute: String,
    pub operator: Operator,
    pub value: String,
    /// -100 to 100, not 0.
    pub weight: i8,
}

/// A wish to be spread over the values of an attribute.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Spread {
    pub attribute: String,
    /// 1 to 100.
    pub weight: u8,
    /// By value: percent of the allocations, together at most 100. Empty is an even spread.
    pub targets: BTreeMap<String, u8>,
}

/// A device of a node: `vendor/type/name`, `type/name` or `type`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct DeviceRequest {
    pub name: String,
    /// At least 1.
    pub count: u32,
    pub constraints: Vec<Constraint>,
    pub affinities: Vec<Affinity>,
}

/// Another job, or one group of it, that has to be healthy first.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Dependency {
    pub job: String,
    /// `None` is every group.
    pub group: Option<String>,
}

/// How many allocations of a job may be taken away at once by drains, preemption and rebalancing.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct DisruptionBudget {
    pub max_unavailable: u32,
}
