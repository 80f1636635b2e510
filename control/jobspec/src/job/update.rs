//! `update` and `migrate`: of a job, and of a group where it says more.

use super::Reader;
use crate::section::{Section, Shape};
use hcl_edit::expr::Expression;
use model::{HealthCheck, JobKind, UpdateOrder, UpdatePolicy, rules};

const UPDATE: Shape = Shape {
    name: "update",
    keys: &[
        "max_parallel",
        "health_check",
        "min_healthy_time",
        "healthy_deadline",
        "progress_deadline",
        "canary",
        "auto_revert",
        "auto_promote",
        "stagger",
        "order",
    ],
    blocks: &[],
    not_built: &[],
    only: &[],
};
const MIGRATE: Shape = Shape {
    name: "migrate",
    keys: &["max_parallel"],
    blocks: &[],
    not_built: &[],
    only: &[("health_check", "checks"), ("min_healthy_time", "10s"), ("healthy_deadline", "5m")],
};

impl Reader<'_, '_, '_> {
    /// What the block sets, over what is inherited, over the defaults.
    pub(super) fn update(
        &mut self,
        section: &Section<'_>,
        kind: JobKind,
        inherited: Option<UpdatePolicy>,
    ) -> Option<UpdatePolicy> {
        let Some(block) = section.one("update", self.source) else { return inherited };
        let default = inherited.unwrap_or_default();
        let section = Section::read(&block.body, &UPDATE, self.source);
        let max = u64::from(rules::ALLOCS_PER_JOB_MAX);
        let policy = UpdatePolicy {
            max_parallel: self.number(section.get("max_parallel"), 0, max, default.max_parallel),
            health_check: self.choice(
                section.get("health_check"),
                default.health_check,
                &HealthCheck::ALL.map(|check| (check, check.as_str())),
            ),
            min_healthy_time: self.duration(section.get("min_healthy_time"), default.min_healthy_time),
            healthy_deadline: self.duration(section.get("healthy_deadline"), default.healthy_deadline),
            progress_deadline: self.duration(section.get("progress_deadline"), default.progress_deadline),
            canary: self.number(section.get("canary"), 0, max, default.canary),
            auto_revert: self.flag(section.get("auto_revert"), default.auto_revert),
            auto_promote: self.flag(section.get("auto_promote"), default.auto_promote),
            stagger: self.duration(section.get("stagger"), default.stagger),
            order: self.choice(
                section.get("order"),
                default.order,
                &UpdateOrder::ALL.map(|order| (order, order.as_str())),
            ),
        };
        self.rule(&block.ident, "update:", rules::update(&policy, kind));
        Some(policy)
    }

    pub(super) fn migrate(&mut self, section: &Section<'_>, default: u32) -> u32 {
        let Some(block) = section.one("migrate", self.source) else { return default };
        let section = Section::read(&block.body, &MIGRATE, self.source);
        self.number(section.get("max_parallel"), 1, u64::from(rules::ALLOCS_PER_JOB_MAX), default)
    }

    pub(super) fn flag(&mut self, expression: Option<&Expression>, default: bool) -> bool {
        self.choice(expression, default, &[(true, "true"), (false, "false")])
    }

    /// One of a few words.
    pub(super) fn choice<T: Copy>(&mut self, expression: Option<&Expression>, default: T, known: &[(T, &str)]) -> T {
        let Some(expression) = expression else { return default };
        let Some(text) = self.text(Some(expression)) else { return default };
        match known.iter().find(|(_, word)| *word == text) {
            Some((value, _)) => *value,
            None => {
                let words: Vec<String> = known.iter().map(|(_, word)| format!("\"{word}\"")).collect();
                self.source.problem(expression, format!("`{text}` must be {}", words.join(" or ")));
                default
            }
        }
    }
}
