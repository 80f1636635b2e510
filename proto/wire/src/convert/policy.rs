//! Restart, reschedule, disconnect and update policies.

use super::{Result, ToModel, ToPb, enum_pairs, enumeration, span, to_span};
use crate::pb;
use model::{
    DelayFunction, DisconnectPolicy, HealthCheck, Reconcile, ReschedulePolicy, RestartMode, RestartPolicy, UpdateOrder,
    UpdatePolicy,
};

impl ToPb<pb::RestartPolicy> for RestartPolicy {
    fn to_pb(&self) -> pb::RestartPolicy {
        pb::RestartPolicy {
            attempts: self.attempts,
            interval: Some(to_span(self.interval)),
            delay: Some(to_span(self.delay)),
            mode: self.mode.to_pb().into(),
        }
    }
}

impl ToModel<RestartPolicy> for pb::RestartPolicy {
    fn to_model(self) -> Result<RestartPolicy> {
        Ok(RestartPolicy {
            attempts: self.attempts,
            interval: span(self.interval, "interval")?,
            delay: span(self.delay, "delay")?,
            mode: enumeration::<pb::RestartMode, _>(self.mode, "mode")?,
        })
    }
}

impl ToPb<pb::ReschedulePolicy> for ReschedulePolicy {
    fn to_pb(&self) -> pb::ReschedulePolicy {
        pb::ReschedulePolicy {
            attempts: self.attempts,
            interval: Some(to_span(self.interval)),
            delay: Some(to_span(self.delay)),
            delay_function: self.delay_function.to_pb().into(),
            max_delay: Some(to_span(self.max_delay)),
            unlimited: self.unlimited,
        }
    }
}

impl ToModel<ReschedulePolicy> for pb::ReschedulePolicy {
    fn to_model(self) -> Result<ReschedulePolicy> {
        Ok(ReschedulePolicy {
            attempts: self.attempts,
            interval: span(self.interval, "interval")?,
            delay: span(self.delay, "delay")?,
            delay_function: enumeration::<pb::DelayFunction, _>(self.delay_function, "delay_function")?,
            max_delay: span(self.max_delay, "max_delay")?,
            unlimited: self.unlimited,
        })
    }
}

impl ToPb<pb::DisconnectPolicy> for DisconnectPolicy {
    fn to_pb(&self) -> pb::DisconnectPolicy {
        pb::DisconnectPolicy {
            lost_after: Some(to_span(self.lost_after)),
            stop_on_client_after: self.stop_on_client_after.map(to_span),
            replace: self.replace,
            reconcile: self.reconcile.to_pb().into(),
        }
    }
}

impl ToModel<DisconnectPolicy> for pb::DisconnectPolicy {
    fn to_model(self) -> Result<DisconnectPolicy> {
        let stop = self.stop_on_client_after.map(|time| span(Some(time), "stop_on_client_after"));
        Ok(DisconnectPolicy {
            lost_after: span(self.lost_after, "lost_after")?,
            stop_on_client_after: stop.transpose()?,
            replace: self.replace,
            reconcile: enumeration::<pb::Reconcile, _>(self.reconcile, "reconcile")?,
        })
    }
}

impl ToPb<pb::UpdatePolicy> for UpdatePolicy {
    fn to_pb(&self) -> pb::UpdatePolicy {
        pb::UpdatePolicy {
            max_parallel: self.max_parallel,
            health_check: self.health_check.to_pb().into(),
            min_healthy_time: Some(to_span(self.min_healthy_time)),
            healthy_deadline: Some(to_span(self.healthy_deadline)),
            progress_deadline: Some(to_span(self.progress_deadline)),
            canary: self.canary,
            auto_revert: self.auto_revert,
            auto_promote: self.auto_promote,
            stagger: Some(to_span(self.stagger)),
            order: self.order.to_pb().into(),
        }
    }
}

impl ToModel<UpdatePolicy> for pb::UpdatePolicy {
    fn to_model(self) -> Result<UpdatePolicy> {
        Ok(UpdatePolicy {
            max_parallel: self.max_parallel,
            health_check: enumeration::<pb::HealthCheck, _>(self.health_check, "health_check")?,
            min_healthy_time: span(self.min_healthy_time, "min_healthy_time")?,
            healthy_deadline: span(self.healthy_deadline, "healthy_deadline")?,
            progress_deadline: span(self.progress_deadline, "progress_deadline")?,
            canary: self.canary,
            auto_revert: self.auto_revert,
            auto_promote: self.auto_promote,
            stagger: span(self.stagger, "stagger")?,
            order: enumeration::<pb::UpdateOrder, _>(self.order, "order")?,
        })
    }
}

enum_pairs!(DelayFunction, pb::DelayFunction, Constant, Exponential, Fibonacci);
enum_pairs!(Reconcile, pb::Reconcile, BestScore, KeepOriginal, KeepReplacement, LongestRunning);
enum_pairs!(HealthCheck, pb::HealthCheck, Checks, TaskStates, Manual);
enum_pairs!(UpdateOrder, pb::UpdateOrder, StopFirst, StartFirst);
enum_pairs!(RestartMode, pb::RestartMode, Fail, Delay);
