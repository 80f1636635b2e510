//! Rescheduling, disconnection, and the calendars and dispatches that jobs are made by.

use super::Reader;
use crate::section::{Section, Shape};
use hcl_edit::structure::Block;
use model::{
    DelayFunction, DisconnectPolicy, JobKind, Parameterized, PayloadRule, Periodic, Reconcile, RescheduleGiven,
    ReschedulePolicy, rules,
};
use std::time::Duration;

const RESCHEDULE: Shape = Shape {
    name: "reschedule",
    keys: &["attempts", "interval", "delay", "delay_function", "max_delay", "unlimited"],
    blocks: &[],
    not_built: &[],
    only: &[],
};
const DISCONNECT: Shape = Shape {
    name: "disconnect",
    keys: &["lost_after", "stop_on_client_after", "replace", "reconcile"],
    blocks: &[],
    not_built: &[],
    only: &[],
};
const PERIODIC: Shape = Shape {
    name: "periodic",
    keys: &["cron", "crons", "enabled", "prohibit_overlap", "time_zone"],
    blocks: &[],
    not_built: &[],
    only: &[],
};
const PARAMETERIZED: Shape = Shape {
    name: "parameterized",
    keys: &["payload", "meta_required", "meta_optional"],
    blocks: &[],
    not_built: &[],
    only: &[],
};

impl Reader<'_, '_, '_> {
    /// What the block sets, over what is inherited.
    pub(super) fn reschedule(
        &mut self,
        section: &Section<'_>,
        kind: JobKind,
        inherited: ReschedulePolicy,
    ) -> ReschedulePolicy {
        let Some(block) = section.one("reschedule", self.source) else { return inherited };
        let section = Section::read(&block.body, &RESCHEDULE, self.source);
        let function = section.get("delay_function");
        let mut time = |key: &str| section.get(key).map(|at| self.duration(Some(at), Duration::ZERO));
        let (interval, delay, max_delay) = (time("interval"), time("delay"), time("max_delay"));
        let attempts = section.get("attempts");
        let unlimited = section.get("unlimited");
        let given = RescheduleGiven {
            attempts: attempts.map(|at| self.number(Some(at), 0, u64::from(u32::MAX), 0)),
            interval,
            delay,
            max_delay,
            delay_function: function.map(|at| {
                let known = DelayFunction::ALL.map(|function| (function, function.as_str()));
                self.choice(Some(at), inherited.delay_function, &known)
            }),
            unlimited: unlimited.map(|at| self.flag(Some(at), false)),
        };
        let policy = given.over(inherited);
        self.rule(&block.ident, "reschedule:", rules::reschedule(&policy, kind));
        policy
    }

    /// The block, or what older job files say instead of it.
    pub(super) fn disconnect(&mut self, group: &Section<'_>) -> DisconnectPolicy {
        let default = DisconnectPolicy::default();
        let of_older = DisconnectPolicy {
            lost_after: self.duration(group.get("max_client_disconnect"), default.lost_after),
            stop_on_client_after: self.some_duration(group, "stop_after_client_disconnect"),
            ..default
        };
        let Some(block) = group.one("disconnect", self.source) else { return of_older };
        if of_older != default {
            self.source.problem(&block.ident, "`disconnect` says it all; leave out the older keys beside it");
        }
        let section = Section::read(&block.body, &DISCONNECT, self.source);
        DisconnectPolicy {
            lost_after: self.duration(section.get("lost_after"), default.lost_after),
            stop_on_client_after: self.some_duration(&section, "stop_on_client_after"),
            replace: self.flag(section.get("replace"), default.replace),
            reconcile: self.choice(
                section.get("reconcile"),
                default.reconcile,
                &Reconcile::ALL.map(|strategy| (strategy, strategy.as_str())),
            ),
        }
    }

    pub(super) fn some_duration(&mut self, section: &Section<'_>, key: &str) -> Option<Duration> {
        section.get(key).map(|at| self.duration(Some(at), Duration::ZERO))
    }

    pub(super) fn periodic(&mut self, section: &Section<'_>) -> Option<Periodic> {
        let block = section.one("periodic", self.source)?;
        let section = Section::read(&block.body, &PERIODIC, self.source);
        Some(Periodic {
            enabled: self.flag(section.get("enabled"), true),
            crons: self.crons(block, &section),
            prohibit_overlap: self.flag(section.get("prohibit_overlap"), false),
            time_zone: self.text(section.get("time_zone")).unwrap_or_else(|| "UTC".to_owned()),
        })
    }

    fn crons(&mut self, block: &Block, section: &Section<'_>) -> Vec<String> {
        let mut crons = self.texts(section.get("crons"));
        let one = self.text(section.get("cron"));
        if let (Some(at), false) = (section.get("cron"), crons.is_empty()) {
            self.source.problem(at, "`cron` and `crons` exclude each other");
        }
        crons.extend(one);
        if crons.is_empty() {
            self.source.problem(&block.ident, "`periodic` needs `crons`, for example [\"*/15 * * * *\"]");
        }
        crons
    }

    pub(super) fn parameterized(&mut self, section: &Section<'_>) -> Option<Parameterized> {
        let block = section.one("parameterized", self.source)?;
        let section = Section::read(&block.body, &PARAMETERIZED, self.source);
        let known = PayloadRule::ALL.map(|rule| (rule, rule.as_str()));
        Some(Parameterized {
            payload: self.choice(section.get("payload"), PayloadRule::Optional, &known),
            meta_required: self.texts(section.get("meta_required")).into_iter().collect(),
            meta_optional: self.texts(section.get("meta_optional")).into_iter().collect(),
        })
    }
}
