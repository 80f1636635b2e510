//! How what runs is restarted, replaced, updated and given up.

use crate::job::JobKind;
use std::time::Duration;

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct RestartPolicy {
    pub attempts: u32,
    pub interval: Duration,
    pub delay: Duration,
    pub mode: RestartMode,
}

/// What happens when `attempts` restarts were used up within `interval`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum RestartMode {
    /// The task, and with it the allocation, fails.
    Fail,
    /// The next restart waits for the interval to end.
    Delay,
}

/// When an allocation that failed is placed anew (Nomad's `reschedule`).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ReschedulePolicy {
    /// Within `interval`; without meaning when `unlimited`.
    pub attempts: u32,
    pub interval: Duration,
    pub delay: Duration,
    pub delay_function: DelayFunction,
    /// The longest delay that the function may reach.
    pub max_delay: Duration,
    pub unlimited: bool,
}

/// How the delay grows from one attempt to the next.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum DelayFunction {
    Constant,
    /// Doubles.
    Exponential,
    /// Each is the sum of the two before.
    Fibonacci,
}

/// What happens while an allocation's node cannot be reached (Nomad's `disconnect`).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct DisconnectPolicy {
    /// How long a node may be away before its allocation counts as lost; zero: as soon as the node is down.
    pub lost_after: Duration,
    /// How long the node keeps the allocation while it reaches no server; `None` is for ever.
    pub stop_on_client_after: Option<Duration>,
    /// Whether another one is placed meanwhile.
    pub replace: bool,
    /// Which one stays when the node is back.
    pub reconcile: Reconcile,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Reconcile {
    BestScore,
    KeepOriginal,
    KeepReplacement,
    LongestRunning,
}

/// Nomad's `update` block, and our `order`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct UpdatePolicy {
    /// 0 replaces everything at once, without a deployment.
    pub max_parallel: u32,
    pub health_check: HealthCheck,
    pub min_healthy_time: Duration,
    pub healthy_deadline: Duration,
    /// 0: the first unhealthy allocation fails the deployment.
    pub progress_deadline: Duration,
    pub canary: u32,
    pub auto_revert: bool,
    pub auto_promote: bool,
    /// Taken and kept, as Nomad does; deployments pace themselves by health.
    pub stagger: Duration,
    pub order: UpdateOrder,
}

/// What tells that an allocation of a deployment works.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum HealthCheck {
    /// Every task runs and every check passes.
    Checks,
    /// Every task runs.
    TaskStates,
    /// Somebody says so.
    Manual,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum UpdateOrder {
    /// The old allocation stops when the new one is placed: never more than `count`, for a while fewer healthy ones.
    StopFirst,
    /// The old allocation stops when the new one is healthy: never fewer than `count`, at most `max_parallel` more.
    StartFirst,
}

impl HealthCheck {
    pub const ALL: [HealthCheck; 3] = [HealthCheck::Checks, HealthCheck::TaskStates, HealthCheck::Manual];

    pub fn as_str(self) -> &'static str {
        match self {
            HealthCheck::Checks => "checks",
            HealthCheck::TaskStates => "task_states",
            HealthCheck::Manual => "manual",
        }
    }

    pub fn parse(text: &str) -> Option<Self> {
        Self::ALL.into_iter().find(|check| check.as_str() == text)
    }
}

impl UpdateOrder {
    pub const ALL: [UpdateOrder; 2] = [UpdateOrder::StopFirst, UpdateOrder::StartFirst];

    pub fn as_str(self) -> &'static str {
        match self {
            UpdateOrder::StopFirst => "stop-first",
            UpdateOrder::StartFirst => "start-first",
        }
    }

    pub fn parse(text: &str) -> Option<Self> {
        Self::ALL.into_iter().find(|order| order.as_str() == text)
    }
}

impl UpdatePolicy {
    /// Whether a deployment watches over it.
    pub fn deploys(&self) -> bool {
        self.max_parallel > 0
    }
}

impl Default for UpdatePolicy {
    fn default() -> Self {
        Self {
            max_parallel: 1,
            health_check: HealthCheck::Checks,
            min_healthy_time: Duration::from_secs(10),
            healthy_deadline: Duration::from_secs(5 * 60),
            progress_deadline: Duration::from_secs(10 * 60),
            canary: 0,
            auto_revert: false,
            auto_promote: false,
            stagger: Duration::from_secs(30),
            order: UpdateOrder::StopFirst,
        }
    }
}

impl RestartPolicy {
    /// Nomad's default for service jobs.
    pub const SERVICE: RestartPolicy = RestartPolicy {
        attempts: 2,
        interval: Duration::from_secs(30 * 60),
        delay: Duration::from_secs(15),
        mode: RestartMode::Fail,
    };

    /// Nomad's default for batch and system jobs.
    pub const BATCH: RestartPolicy = RestartPolicy {
        attempts: 3,
        interval: Duration::from_secs(24 * 3600),
        delay: Duration::from_secs(15),
        mode: RestartMode::Fail,
    };

    pub fn default_of(kind: JobKind) -> Self {
        match kind {
            JobKind::Service => Self::SERVICE,
            JobKind::Batch | JobKind::System | JobKind::Sysbatch => Self::BATCH,
        }
    }
}

impl ReschedulePolicy {
    /// Nomad's default for service jobs.
    pub const SERVICE: ReschedulePolicy = ReschedulePolicy {
        attempts: 0,
        interval: Duration::ZERO,
        delay: Duration::from_secs(30),
        delay_function: DelayFunction::Exponential,
        max_delay: Duration::from_secs(3600),
        unlimited: true,
    };

    /// Nomad's default for batch jobs.
    pub const BATCH: ReschedulePolicy = ReschedulePolicy {
        attempts: 1,
        interval: Duration::from_secs(24 * 3600),
        delay: Duration::from_secs(5),
        delay_function: DelayFunction::Constant,
        max_delay: Duration::ZERO,
        unlimited: false,
    };

    /// What failed stays where it is: jobs that run on every node have nowhere else to go.
    pub const NEVER: ReschedulePolicy = ReschedulePolicy {
        attempts: 0,
        interval: Duration::ZERO,
        delay: Duration::ZERO,
        delay_function: DelayFunction::Constant,
        max_delay: Duration::ZERO,
        unlimited: false,
    };

    pub fn default_of(kind: JobKind) -> Self {
        match kind {
            JobKind::Service => Self::SERVICE,
            JobKind::Batch => Self::BATCH,
            JobKind::System | JobKind::Sysbatch => Self::NEVER,
        }
    }
}

/// What a `reschedule` block says; the rest is inherited.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Default)]
pub struct RescheduleGiven {
    pub attempts: Option<u32>,
    pub interval: Option<Duration>,
    pub delay: Option<Duration>,
    pub delay_function: Option<DelayFunction>,
    pub max_delay: Option<Duration>,
    pub unlimited: Option<bool>,
}

impl RescheduleGiven {
    /// Attempts and unlimited exclude each other: the one that is given unsets the other.
    pub fn over(self, inherited: ReschedulePolicy) -> ReschedulePolicy {
        let delay_function = self.delay_function.unwrap_or(inherited.delay_function);
        let grows = delay_function != DelayFunction::Constant;
        let longest = if grows && inherited.max_delay.is_zero() { ReschedulePolicy::SERVICE } else { inherited };
        let by_attempts = self.attempts.map(|attempts| attempts == 0 && inherited.unlimited);
        let unlimited = self.unlimited.or(by_attempts).unwrap_or(inherited.unlimited);
        let attempts = self.attempts.unwrap_or(if unlimited { 0 } else { inherited.attempts });
        ReschedulePolicy {
            attempts,
            interval: self.interval.unwrap_or(inherited.interval),
            delay: self.delay.unwrap_or(inherited.delay),
            delay_function,
            max_delay: self.max_delay.unwrap_or(longest.max_delay),
            unlimited,
        }
    }
}

impl Default for DisconnectPolicy {
    fn default() -> Self {
        Self { lost_after: Duration::ZERO, stop_on_client_after: None, replace: true, reconcile: Reconcile::BestScore }
    }
}

impl DelayFunction {
    pub const ALL: [DelayFunction; 3] = [DelayFunction::Constant, DelayFunction::Exponential, DelayFunction::Fibonacci];

    pub fn as_str(self) -> &'static str {
        match self {
            DelayFunction::Constant => "constant",
            DelayFunction::Exponential => "exponential",
            DelayFunction::Fibonacci => "fibonacci",
        }
    }

    pub fn parse(text: &str) -> Option<Self> {
        Self::ALL.into_iter().find(|function| function.as_str() == text)
    }
}

impl Reconcile {
    pub const ALL: [Reconcile; 4] =
        [Reconcile::BestScore, Reconcile::KeepOriginal, Reconcile::KeepReplacement, Reconcile::LongestRunning];

    pub fn as_str(self) -> &'static str {
        match self {
            Reconcile::BestScore => "best_score",
            Reconcile::KeepOriginal => "keep_original",
            Reconcile::KeepReplacement => "keep_replacement",
            Reconcile::LongestRunning => "longest_running",
        }
    }

    pub fn parse(text: &str) -> Option<Self> {
        Self::ALL.into_iter().find(|strategy| strategy.as_str() == text)
    }
}
