//! From JSON: how what runs is restarted, rescheduled, updated and given up.

use super::job::*;
use super::read_job::{JobProblem, Policies, Reader, says_nothing};
use model::{
    DelayFunction, DisconnectPolicy, HealthCheck, PayloadRule, Reconcile, RescheduleGiven, RestartMode, UpdateOrder,
    UpdatePolicy, rules,
};
use serde_json::{Value, json};
use std::time::Duration;

impl Reader {
    pub(super) fn restart(
        &mut self,
        policy: Option<RestartPolicy>,
        default: model::RestartPolicy,
        path: &str,
    ) -> model::RestartPolicy {
        let Some(policy) = policy else { return default };
        self.not_built(path, &["RenderTemplates"], &policy.others);
        let mode = match policy.mode.as_deref() {
            None | Some("") => default.mode,
            Some("fail") => RestartMode::Fail,
            Some("delay") => RestartMode::Delay,
            Some(other) => {
                self.invalid(&format!("{path}.Mode"), format!("{other:?} is not a mode; use \"fail\" or \"delay\""));
                default.mode
            }
        };
        let attempts = &format!("{path}.Attempts");
        let policy = model::RestartPolicy {
            attempts: self.number(policy.attempts, default.attempts, 0, i64::from(u32::MAX), attempts),
            interval: self.duration(policy.interval, default.interval, &format!("{path}.Interval")),
            delay: self.duration(policy.delay, default.delay, &format!("{path}.Delay")),
            mode,
        };
        self.rule(path, rules::restart(&policy));
        policy
    }

    /// The group's values before the job's before the defaults; `None` when neither says anything.
    pub(super) fn update(
        &mut self,
        group: Option<UpdateStrategy>,
        of_job: &Policies,
        path: &str,
    ) -> Option<UpdatePolicy> {
        let of_group = group.filter(|update| !is_empty(update));
        let of_job = (of_job.update.clone().filter(|update| !is_empty(update)), of_job.kind);
        let (update, kind) = match (of_group, of_job) {
            (None, (None, _)) => return None,
            (Some(update), (None, kind)) | (None, (Some(update), kind)) => (update, kind),
            (Some(group), (Some(job), kind)) => (group.or(job), kind),
        };
        let policy = self.update_policy(update, path);
        self.rule(path, rules::update(&policy, kind));
        Some(policy)
    }

    pub(super) fn update_policy(&mut self, update: UpdateStrategy, path: &str) -> UpdatePolicy {
        let default = UpdatePolicy::default();
        let max = i64::from(rules::ALLOCS_PER_JOB_MAX);
        let at = |field: &str| format!("{path}.{field}");
        UpdatePolicy {
            max_parallel: self.number(update.max_parallel, default.max_parallel, 0, max, &at("MaxParallel")),
            health_check: self.choice(
                update.health_check,
                default.health_check,
                HealthCheck::parse,
                &at("HealthCheck"),
            ),
            min_healthy_time: self.duration(update.min_healthy_time, default.min_healthy_time, &at("MinHealthyTime")),
            healthy_deadline: self.duration(update.healthy_deadline, default.healthy_deadline, &at("HealthyDeadline")),
            progress_deadline: self.duration(
                update.progress_deadline,
                default.progress_deadline,
                &at("ProgressDeadline"),
            ),
            canary: self.number(update.canary, default.canary, 0, max, &at("Canary")),
            auto_revert: update.auto_revert.unwrap_or(default.auto_revert),
            auto_promote: update.auto_promote.unwrap_or(default.auto_promote),
            stagger: self.duration(update.stagger, default.stagger, &at("Stagger")),
            order: self.choice(update.order, default.order, UpdateOrder::parse, &at("Order")),
        }
    }

    pub(super) fn choice<T>(
        &mut self,
        text: Option<String>,
        default: T,
        parse: fn(&str) -> Option<T>,
        path: &str,
    ) -> T {
        let Some(text) = text.filter(|text| !text.is_empty()) else { return default };
        parse(&text).unwrap_or_else(|| {
            self.invalid(path, format!("{text:?} is not one of the values it may have"));
            default
        })
    }

    pub(super) fn migrate(&mut self, group: Option<MigrateStrategy>, of_job: &Policies, path: &str) -> u32 {
        let default = rules::DEFAULT_MIGRATE_MAX_PARALLEL;
        let Some(migrate) = group.or_else(|| of_job.migrate.clone()) else { return default };
        let given = [
            ("HealthCheck", migrate.health_check.map(Value::from), json!("checks")),
            ("MinHealthyTime", migrate.min_healthy_time.map(Value::from), json!(10_000_000_000_u64)),
            ("HealthyDeadline", migrate.healthy_deadline.map(Value::from), json!(300_000_000_000_u64)),
        ];
        for (field, value, default) in given {
            if value.is_some_and(|value| !says_nothing(&value, &default)) {
                let path = format!("{path}.{field} other than the default");
                self.problems.push(JobProblem::NotBuilt { path });
            }
        }
        let max = i64::from(rules::ALLOCS_PER_JOB_MAX);
        self.number(migrate.max_parallel.filter(|most| *most != 0), default, 1, max, &format!("{path}.MaxParallel"))
    }

    /// Zeros are answers like any other: they switch it off.
    pub(super) fn reschedule(
        &mut self,
        policy: Option<ReschedulePolicy>,
        inherited: model::ReschedulePolicy,
        path: &str,
    ) -> model::ReschedulePolicy {
        let Some(policy) = policy else { return inherited };
        let at = |field: &str| format!("{path}.{field}");
        let attempts =
            policy.attempts.map(|value| self.number(Some(value), 0, 0, i64::from(u32::MAX), &at("Attempts")));
        let mut time =
            |value: Option<i64>, field| value.map(|value| self.duration(Some(value), Duration::ZERO, &at(field)));
        let (interval, delay) = (time(policy.interval, "Interval"), time(policy.delay, "Delay"));
        let max_delay = time(policy.max_delay, "MaxDelay");
        let function = policy.delay_function.filter(|text| !text.is_empty());
        let delay_function = function
            .map(|text| self.choice(Some(text), inherited.delay_function, DelayFunction::parse, &at("DelayFunction")));
        let given =
            RescheduleGiven { attempts, interval, delay, delay_function, max_delay, unlimited: policy.unlimited };
        given.over(inherited)
    }

    pub(super) fn disconnect(
        &mut self,
        strategy: Option<DisconnectStrategy>,
        (lost_after, stop_after): (Option<i64>, Option<i64>),
        path: &str,
    ) -> DisconnectPolicy {
        let default = DisconnectPolicy::default();
        let given = |nanos: Option<i64>| nanos.filter(|nanos| *nanos != 0);
        let strategy = strategy.unwrap_or_default();
        let stop = given(strategy.stop_on_client_after).or(given(stop_after));
        DisconnectPolicy {
            lost_after: self.duration(
                given(strategy.lost_after).or(given(lost_after)),
                default.lost_after,
                &format!("{path}.LostAfter"),
            ),
            stop_on_client_after: stop
                .map(|nanos| self.duration(Some(nanos), Duration::ZERO, &format!("{path}.StopOnClientAfter"))),
            replace: strategy.replace.unwrap_or(default.replace),
            reconcile: self.choice(
                strategy.reconcile,
                default.reconcile,
                Reconcile::parse,
                &format!("{path}.Reconcile"),
            ),
        }
    }

    pub(super) fn periodic(&mut self, periodic: PeriodicConfig) -> Option<model::Periodic> {
        let path = "Job.Periodic";
        let one = periodic.spec.filter(|spec| !spec.is_empty());
        let mut crons = periodic.specs.unwrap_or_default();
        crons.extend(one.filter(|_| crons.is_empty()));
        if !matches!(periodic.spec_type.as_deref(), None | Some("" | "cron")) {
            self.invalid(&format!("{path}.SpecType"), "use \"cron\"");
        }
        if crons.is_empty() {
            self.missing(format!("{path}.Specs"));
        }
        Some(model::Periodic {
            enabled: periodic.enabled.unwrap_or(true),
            crons,
            prohibit_overlap: periodic.prohibit_overlap.unwrap_or(false),
            time_zone: periodic.time_zone.filter(|zone| !zone.is_empty()).unwrap_or_else(|| "UTC".to_owned()),
        })
    }

    pub(super) fn parameterized(&mut self, config: ParameterizedJobConfig) -> Option<model::Parameterized> {
        let payload =
            self.choice(config.payload, PayloadRule::Optional, PayloadRule::parse, "Job.ParameterizedJob.Payload");
        Some(model::Parameterized {
            payload,
            meta_required: config.meta_required.unwrap_or_default().into_iter().collect(),
            meta_optional: config.meta_optional.unwrap_or_default().into_iter().collect(),
        })
    }
}

impl UpdateStrategy {
    /// What is not set here is as in `other`.
    fn or(self, other: Self) -> Self {
        Self {
            stagger: self.stagger.or(other.stagger),
            max_parallel: self.max_parallel.or(other.max_parallel),
            health_check: self.health_check.or(other.health_check),
            min_healthy_time: self.min_healthy_time.or(other.min_healthy_time),
            healthy_deadline: self.healthy_deadline.or(other.healthy_deadline),
            progress_deadline: self.progress_deadline.or(other.progress_deadline),
            canary: self.canary.or(other.canary),
            auto_revert: self.auto_revert.or(other.auto_revert),
            auto_promote: self.auto_promote.or(other.auto_promote),
            order: self.order.or(other.order),
            others: self.others,
        }
    }
}

/// Clients send a block of zeros where there was none, and then all of it: a lone `MaxParallel: 0` switches updates off.
fn is_empty(update: &UpdateStrategy) -> bool {
    let alone = update.max_parallel.is_some() && update.health_check.is_none();
    !alone && serde_json::to_value(update).is_ok_and(|value| says_nothing(&value, &Value::Null))
}
