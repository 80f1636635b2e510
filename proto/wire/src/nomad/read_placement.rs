//! From JSON: where allocations may and should run.

use super::job::*;
use super::read_job::{JobProblem, Reader};
use model::{Constraint as ModelConstraint, DisruptionBudget, Operator, rules};

impl Reader {
    pub(super) fn constraints(&mut self, constraints: Option<Vec<Constraint>>, path: &str) -> Vec<ModelConstraint> {
        let read = |(at, constraint)| self.constraint(constraint, &format!("{path}[{at}]"));
        constraints.unwrap_or_default().into_iter().enumerate().filter_map(read).collect()
    }

    fn constraint(&mut self, constraint: Constraint, path: &str) -> Option<ModelConstraint> {
        let operand = constraint.operand.unwrap_or_default();
        let Some(operator) = Operator::parse(&operand) else {
            self.invalid(&format!("{path}.Operand"), format!("{operand:?} is not an operator; use for example \"=\""));
            return None;
        };
        let (attribute, value) = (constraint.l_target.unwrap_or_default(), constraint.r_target.unwrap_or_default());
        if operator == Operator::DistinctHosts && value == "false" {
            return None;
        }
        if attribute.is_empty() && operator != Operator::DistinctHosts {
            self.problems.push(JobProblem::Missing { path: format!("{path}.LTarget") });
        }
        self.rule(&format!("{path}.RTarget"), rules::constraint(operator, &value));
        Some(ModelConstraint { attribute, operator, value })
    }

    pub(super) fn affinities(&mut self, affinities: Option<Vec<Affinity>>, path: &str) -> Vec<model::Affinity> {
        let read = |(at, affinity)| self.affinity(affinity, &format!("{path}[{at}]"));
        affinities.unwrap_or_default().into_iter().enumerate().filter_map(read).collect()
    }

    fn affinity(&mut self, affinity: Affinity, path: &str) -> Option<model::Affinity> {
        let operand = affinity.operand.unwrap_or_default();
        let distinct = |operator: &Operator| matches!(operator, Operator::DistinctHosts | Operator::DistinctProperty);
        let Some(operator) = Operator::parse(&operand).filter(|operator| !distinct(operator)) else {
            let reason = format!("{operand:?} is not an operator of affinities; use for example \"=\"");
            self.invalid(&format!("{path}.Operand"), reason);
            return None;
        };
        let weight = rules::affinity_weight(affinity.weight.unwrap_or(i64::from(rules::DEFAULT_WEIGHT)));
        let (attribute, value) = (affinity.l_target.unwrap_or_default(), affinity.r_target.unwrap_or_default());
        if attribute.is_empty() {
            self.missing(format!("{path}.LTarget"));
        }
        self.rule(&format!("{path}.RTarget"), rules::constraint(operator, &value));
        self.rule(&format!("{path}.Weight"), weight.clone().map(drop));
        Some(model::Affinity { attribute, operator, value, weight: weight.ok()? })
    }

    pub(super) fn spreads(&mut self, spreads: Option<Vec<Spread>>, path: &str) -> Vec<model::Spread> {
        let read = |(at, spread)| self.spread(spread, &format!("{path}[{at}]"));
        spreads.unwrap_or_default().into_iter().enumerate().map(read).collect()
    }

    fn spread(&mut self, spread: Spread, path: &str) -> model::Spread {
        let targets = spread.spread_target.unwrap_or_default();
        let mut percent = |target: SpreadTarget| {
            let percent = self.number(target.percent, 0, 0, 100, &format!("{path}.SpreadTarget.Percent"));
            (target.value.unwrap_or_default(), percent)
        };
        let targets = targets.into_iter().map(&mut percent).collect();
        let weight = spread.weight.filter(|weight| *weight != 0);
        let read = model::Spread {
            attribute: spread.attribute.unwrap_or_default(),
            weight: self.number(weight, rules::DEFAULT_WEIGHT, 1, 100, &format!("{path}.Weight")),
            targets,
        };
        self.rule(path, rules::spread(&read));
        read
    }

    pub(super) fn devices(&mut self, devices: Option<Vec<RequestedDevice>>, path: &str) -> Vec<model::DeviceRequest> {
        let read = |(at, device)| self.device(device, &format!("{path}[{at}]"));
        devices.unwrap_or_default().into_iter().enumerate().map(read).collect()
    }

    fn device(&mut self, device: RequestedDevice, path: &str) -> model::DeviceRequest {
        model::DeviceRequest {
            name: self.text(device.name, &format!("{path}.Name")),
            count: self.number(device.count, 1, 1, i64::from(u16::MAX), &format!("{path}.Count")),
            constraints: self.constraints(device.constraints, &format!("{path}.Constraints")),
            affinities: self.affinities(device.affinities, &format!("{path}.Affinities")),
        }
    }

    pub(super) fn dependencies(&mut self, dependencies: Option<Vec<Dependency>>) -> Vec<model::Dependency> {
        let read = |(at, dependency): (usize, Dependency)| model::Dependency {
            job: self.text(dependency.job, &format!("Job.DependsOn[{at}].Job")),
            group: dependency.group.filter(|group| !group.is_empty()),
        };
        dependencies.unwrap_or_default().into_iter().enumerate().map(read).collect()
    }

    pub(super) fn disruption(&mut self, disruption: Option<Disruption>) -> Option<DisruptionBudget> {
        let most = i64::from(rules::ALLOCS_PER_JOB_MAX);
        let max_unavailable = disruption?.max_unavailable;
        let max_unavailable = self.number(max_unavailable, 1, 0, most, "Job.Disruption.MaxUnavailable");
        Some(DisruptionBudget { max_unavailable })
    }
}
