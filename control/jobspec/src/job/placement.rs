//! Constraints, affinities, spreads, devices, dependencies.

use super::Reader;
use crate::section::{Section, Shape, nearest};
use hcl_edit::expr::Expression;
use hcl_edit::structure::Block;
use model::{Affinity, Constraint, Dependency, DeviceRequest, DisruptionBudget, Operator, Spread, rules};
use std::collections::BTreeMap;

const CONSTRAINT: Shape = Shape {
    name: "constraint",
    keys: &[
        "attribute",
        "operator",
        "value",
        "distinct_property",
        "distinct_hosts",
        "regexp",
        "version",
        "semver",
        "set_contains",
        "set_contains_any",
    ],
    blocks: &[],
    not_built: &[],
    only: &[],
};

const AFFINITY: Shape = Shape {
    name: "affinity",
    keys: &[
        "attribute",
        "operator",
        "value",
        "weight",
        "regexp",
        "version",
        "semver",
        "set_contains",
        "set_contains_any",
        "set_contains_all",
    ],
    blocks: &[],
    not_built: &[],
    only: &[],
};
const SPREAD: Shape =
    Shape { name: "spread", keys: &["attribute", "weight"], blocks: &["target"], not_built: &[], only: &[] };
const TARGET: Shape = Shape { name: "target", keys: &["percent"], blocks: &[], not_built: &["value"], only: &[] };
const DEVICE: Shape =
    Shape { name: "device", keys: &["count"], blocks: &["constraint", "affinity"], not_built: &[], only: &[] };
const DEPENDS_ON: Shape = Shape { name: "depends_on", keys: &["job", "group"], blocks: &[], not_built: &[], only: &[] };
const DISRUPTION: Shape =
    Shape { name: "disruption", keys: &["max_unavailable"], blocks: &[], not_built: &[], only: &[] };

impl Reader<'_, '_, '_> {
    pub(super) fn constraints(&mut self, section: &Section<'_>) -> Vec<Constraint> {
        section.all("constraint").filter_map(|block| self.constraint(block)).collect()
    }

    fn constraint(&mut self, block: &Block) -> Option<Constraint> {
        let section = Section::read(&block.body, &CONSTRAINT, self.source);
        let attribute = self.text(section.get("attribute"));
        if let Some(property) = section.get("distinct_property") {
            return self.distinct_property(&section, property);
        }
        let short = CONSTRAINT.keys[4..].iter().find_map(|key| section.attribute_named(key));
        let (operator, value) = match short {
            Some(short) => (Operator::parse(short.key.as_str())?, self.text(Some(&short.value))?),
            None => (self.operator(&section)?, self.text(section.get("value")).unwrap_or_default()),
        };
        if operator == Operator::DistinctHosts {
            return self.distinct_hosts(block, &value);
        }
        let at = short.map(|short| &short.value).or_else(|| section.get("value"));
        if let (Some(at), Err(reason)) = (at, rules::constraint(operator, &value)) {
            self.source.problem(at, reason);
        }
        if attribute.as_deref().unwrap_or_default().is_empty() {
            let message = "a constraint needs `attribute`, for example \"${attr.kernel.name}\"";
            self.source.problem(&block.ident, message);
        }
        let needs_value = !matches!(operator, Operator::IsSet | Operator::IsNotSet | Operator::DistinctProperty);
        if needs_value && short.is_none() && section.get("value").is_none() {
            self.source.problem(&block.ident, format!("a constraint by `{}` needs `value`", operator.as_str()));
        }
        Some(Constraint { attribute: attribute.unwrap_or_default(), operator, value })
    }

    /// At most `value` allocations, or one, for each value of the property.
    fn distinct_property(&mut self, section: &Section<'_>, property: &Expression) -> Option<Constraint> {
        let attribute = self.text(Some(property))?;
        let value = self.text(section.get("value")).unwrap_or_default();
        if let (Some(at), Err(reason)) = (section.get("value"), rules::constraint(Operator::DistinctProperty, &value)) {
            self.source.problem(at, reason);
        }
        Some(Constraint { attribute, operator: Operator::DistinctProperty, value })
    }

    /// `false` asks for nothing.
    fn distinct_hosts(&mut self, block: &Block, value: &str) -> Option<Constraint> {
        match value {
            "false" => return None,
            "" | "true" => {}
            _ => self.source.problem(&block.ident, "`distinct_hosts` is true or false"),
        }
        let (attribute, value) = (String::new(), "true".to_owned());
        Some(Constraint { attribute, operator: Operator::DistinctHosts, value })
    }

    fn operator(&mut self, section: &Section<'_>) -> Option<Operator> {
        let Some(expression) = section.get("operator") else { return Some(Operator::Equal) };
        let text = self.text(Some(expression))?;
        let operator = Operator::parse(&text);
        if operator.is_none() {
            let known = || Operator::ALL.iter().map(|(_, spelling)| *spelling);
            let hint = match nearest(&text, known()) {
                Some(near) => format!("did you mean `{near}`?"),
                None => format!("there are {}", known().collect::<Vec<_>>().join(", ")),
            };
            self.source.problem_with_hint(expression, format!("`{text}` is not an operator"), hint);
        }
        operator
    }

    pub(super) fn affinities(&mut self, section: &Section<'_>) -> Vec<Affinity> {
        section.all("affinity").filter_map(|block| self.affinity(block)).collect()
    }

    fn affinity(&mut self, block: &Block) -> Option<Affinity> {
        let section = Section::read(&block.body, &AFFINITY, self.source);
        let attribute = self.text(section.get("attribute")).unwrap_or_default();
        let short = AFFINITY.keys[4..].iter().find_map(|key| section.attribute_named(key));
        let (operator, at) = match short {
            Some(short) => (Operator::parse(short.key.as_str())?, Some(&short.value)),
            None => (self.operator(&section)?, section.get("value")),
        };
        let value = self.text(at).unwrap_or_default();
        if matches!(operator, Operator::DistinctHosts | Operator::DistinctProperty) {
            let message = format!("`{}` is for constraints, not for affinities", operator.as_str());
            self.source.problem(&block.ident, message);
        }
        if attribute.is_empty() {
            let message = "an affinity needs `attribute`, for example \"${node.datacenter}\"";
            self.source.problem(&block.ident, message);
        }
        if let (Some(at), Err(reason)) = (at, rules::constraint(operator, &value)) {
            self.source.problem(at, reason);
        }
        Some(Affinity { attribute, operator, value, weight: self.affinity_weight(section.get("weight")) })
    }

    fn affinity_weight(&mut self, at: Option<&Expression>) -> i8 {
        const DEFAULT: i8 = rules::DEFAULT_WEIGHT as i8;
        let Some(weight) = at.and_then(|at| self.integer(at)) else { return DEFAULT };
        let weight = rules::affinity_weight(weight);
        if let (Some(at), Err(reason)) = (at, &weight) {
            self.source.problem(at, reason.clone());
        }
        weight.unwrap_or(DEFAULT)
    }

    pub(super) fn spreads(&mut self, section: &Section<'_>) -> Vec<Spread> {
        section.all("spread").map(|block| self.spread(block)).collect()
    }

    fn spread(&mut self, block: &Block) -> Spread {
        let section = Section::read(&block.body, &SPREAD, self.source);
        self.unique(section.all("target"), "target");
        let mut targets = BTreeMap::new();
        for target in section.all("target") {
            let label = self.label(target);
            let inner = Section::read(&target.body, &TARGET, self.source);
            targets.insert(label, self.number(inner.get("percent"), 0, 100, 0));
        }
        let spread = Spread {
            attribute: self.text(section.get("attribute")).unwrap_or_default(),
            weight: self.number(section.get("weight"), 1, 100, rules::DEFAULT_WEIGHT),
            targets,
        };
        self.rule(&block.ident, "spread:", rules::spread(&spread));
        spread
    }

    pub(super) fn devices(&mut self, section: &Section<'_>) -> Vec<DeviceRequest> {
        section.all("device").map(|block| self.device(block)).collect()
    }

    fn device(&mut self, block: &Block) -> DeviceRequest {
        let section = Section::read(&block.body, &DEVICE, self.source);
        DeviceRequest {
            name: self.label(block),
            count: self.number(section.get("count"), 1, u64::from(u16::MAX), 1),
            constraints: self.constraints(&section),
            affinities: self.affinities(&section),
        }
    }

    pub(super) fn dependencies(&mut self, section: &Section<'_>) -> Vec<Dependency> {
        section.all("depends_on").map(|block| self.dependency(block)).collect()
    }

    fn dependency(&mut self, block: &Block) -> Dependency {
        let section = Section::read(&block.body, &DEPENDS_ON, self.source);
        let job = self.text(section.get("job")).unwrap_or_default();
        if job.is_empty() {
            self.source.problem(&block.ident, "`depends_on` needs `job`, the id of the job to wait for");
        }
        Dependency { job, group: self.text(section.get("group")) }
    }

    pub(super) fn disruption(&mut self, section: &Section<'_>) -> Option<DisruptionBudget> {
        let block = section.one("disruption", self.source)?;
        let section = Section::read(&block.body, &DISRUPTION, self.source);
        let most = u64::from(rules::ALLOCS_PER_JOB_MAX);
        Some(DisruptionBudget { max_unavailable: self.number(section.get("max_unavailable"), 0, most, 1) })
    }
}
