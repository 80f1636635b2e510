//! When a task that ended is started again: Nomad's restart policy as a value that is asked.

use model::{RestartMode, RestartPolicy, Timestamp};
use std::time::Duration;

/// Counts the ends of one task within the policy's interval.
#[derive(Clone, Debug, PartialEq)]
pub struct RestartTracker {
    policy: RestartPolicy,
    count: RestartCount,
}

/// What an agent's restart must not forget of a task, lest a crashing task be restarted forever.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct RestartCount {
    pub ends: u32,
    pub interval_from: Timestamp,
    /// When the pending restart is to happen; never when none is.
    pub due: Timestamp,
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Verdict {
    Restart { after: Duration, reason: String },
    Fail { reason: String },
}

impl RestartTracker {
    pub fn new(policy: RestartPolicy) -> Self {
        Self { policy, count: RestartCount::default() }
    }

    pub fn count(&self) -> RestartCount {
        self.count
    }

    pub fn restore(&mut self, count: RestartCount) {
        self.count = count;
    }

    /// The restart happens.
    pub fn begin(&mut self) {
        self.count.due = Timestamp::NEVER;
    }

    /// How long a pending restart still has to wait; not for longer than the policy ever does, whatever the clock did.
    pub fn remaining(&self, now: Timestamp) -> Option<Duration> {
        let longest = jittered(self.policy.interval.max(self.policy.delay), 1.0);
        let left = self.count.due.since(now).min(longest);
        (!left.is_zero()).then_some(left)
    }

    /// A job update may change the policy while the task runs; what was counted stays.
    pub fn set_policy(&mut self, policy: RestartPolicy) {
        self.policy = policy;
    }

    /// `jitter` in 0.0..1.0 lengthens the delay by up to a quarter, so that tasks that died together start apart.
    pub fn on_end(&mut self, now: Timestamp, jitter: f64) -> Verdict {
        if self.policy.attempts == 0 && self.policy.mode == RestartMode::Fail {
            return Verdict::Fail { reason: "the restart policy allows no restart".to_owned() };
        }
        if now.since(self.count.interval_from) >= self.policy.interval {
            self.count = RestartCount { interval_from: now, ..RestartCount::default() };
        }
        self.count.ends = self.count.ends.saturating_add(1);
        let verdict =
            if self.count.ends <= self.policy.attempts { self.restart(jitter) } else { self.exceeded(now, jitter) };
        if let Verdict::Restart { after, .. } = &verdict {
            self.count.due = now.plus(*after);
        }
        verdict
    }

    fn restart(&self, jitter: f64) -> Verdict {
        Verdict::Restart { after: jittered(self.policy.delay, jitter), reason: "within the restart policy".to_owned() }
    }

    fn exceeded(&self, now: Timestamp, jitter: f64) -> Verdict {
        let RestartPolicy { attempts, interval, mode, .. } = self.policy;
        let reason = format!("{attempts} restarts within {interval:?} are used up");
        match mode {
            RestartMode::Fail => Verdict::Fail { reason },
            RestartMode::Delay => {
                let rest = interval.saturating_sub(now.since(self.count.interval_from));
                Verdict::Restart { after: jittered(rest.max(self.policy.delay), jitter), reason }
            }
        }
    }
}

fn jittered(delay: Duration, jitter: f64) -> Duration {
    delay + delay.mul_f64(jitter.clamp(0.0, 1.0) / 4.0)
}

#[cfg(test)]
mod tests {
    use super::*;

    const POLICY: RestartPolicy = RestartPolicy {
        attempts: 2,
        interval: Duration::from_secs(60),
        delay: Duration::from_secs(8),
        mode: RestartMode::Fail,
    };

    fn verdicts(policy: RestartPolicy, at_secs: &[u64], jitter: f64) -> Vec<Option<u64>> {
        let mut tracker = RestartTracker::new(policy);
        at_secs
            .iter()
            .map(|secs| match tracker.on_end(Timestamp::from_secs(1_000 + secs), jitter) {
                Verdict::Restart { after, .. } => Some(after.as_secs()),
                Verdict::Fail { .. } => None,
            })
            .collect()
    }

    #[test]
    fn attempts_within_the_interval_are_followed_by_failure() {
        assert_eq!(verdicts(POLICY, &[0, 10, 20], 0.0), [Some(8), Some(8), None]);
    }

    #[test]
    fn a_new_interval_forgives() {
        assert_eq!(verdicts(POLICY, &[0, 10, 60, 70, 80], 0.0), [Some(8), Some(8), Some(8), Some(8), None]);
    }

    #[test]
    fn delay_mode_waits_for_the_end_of_the_interval() {
        let policy = RestartPolicy { mode: RestartMode::Delay, ..POLICY };
        assert_eq!(verdicts(policy, &[0, 10, 20], 0.0), [Some(8), Some(8), Some(40)]);
    }

    #[test]
    fn jitter_adds_at_most_a_quarter() {
        assert_eq!(verdicts(POLICY, &[0], 1.0), [Some(10)]);
    }

    #[test]
    fn no_attempts_means_the_first_end_is_final_unless_delayed() {
        let none = RestartPolicy { attempts: 0, ..POLICY };
        assert_eq!(verdicts(none, &[0], 0.0), [None]);
        assert_eq!(verdicts(RestartPolicy { mode: RestartMode::Delay, ..none }, &[0], 0.0), [Some(60)]);
    }
}
