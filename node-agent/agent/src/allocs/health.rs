//! What the results of one check add up to: thresholds, and when a check that goes on failing restarts its task.

use model::{Check, CheckState, Health, Timestamp};
use std::time::Duration;

/// A check's output never takes more than this of a report.
pub const CHECK_OUTPUT_BYTES_MAX: usize = 4096;

const NO_RESULT_YET: &str = "no result yet";
const NOT_RUNNING: &str = "not all tasks of the service are running";

/// One check of one allocation.
#[derive(Clone, Debug, PartialEq)]
pub struct CheckRun {
    pub state: CheckState,
    phase: Phase,
    /// Results in a row that are better, or worse, than what the check says.
    streak: u32,
    failing_since: Option<Timestamp>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Phase {
    /// Its tasks do not all run.
    Off,
    /// They run, and nothing was seen yet.
    Unknown,
    Known,
}

impl CheckRun {
    pub fn new(check: &Check, runs: bool, now: Timestamp) -> Self {
        let mut run = Self { state: off(now), phase: Phase::Off, streak: 0, failing_since: None };
        if runs {
            run.turn_on(check, now);
        }
        run
    }

    /// As an earlier start of the agent reported it.
    pub fn restore(state: CheckState) -> Self {
        let phase = match state.output.as_str() {
            NOT_RUNNING => Phase::Off,
            NO_RESULT_YET => Phase::Unknown,
            _ => Phase::Known,
        };
        Self { state, phase, streak: 0, failing_since: None }
    }

    /// A check whose tasks do not all run is critical at once: its instance has to leave the maps before the next probe.
    pub fn refresh(&mut self, check: &Check, runs: bool, now: Timestamp) {
        match (runs, self.phase) {
            (true, Phase::Off) => self.turn_on(check, now),
            (false, Phase::Unknown | Phase::Known) => {
                *self = Self { state: off(now), phase: Phase::Off, streak: 0, failing_since: None };
            }
            _ => {}
        }
    }

    fn turn_on(&mut self, check: &Check, now: Timestamp) {
        let health = check.initial.unwrap_or(Health::Critical);
        self.phase = Phase::Unknown;
        self.state = CheckState { health, output: NO_RESULT_YET.to_owned(), changed_at: now };
    }

    /// Takes a result in; the state changes with the health only, and with the first result.
    pub fn on_result(&mut self, check: &Check, now: Timestamp, health: Health, mut output: String) {
        let first = std::mem::replace(&mut self.phase, Phase::Known) == Phase::Unknown;
        let needed = match health.cmp(&self.state.health) {
            std::cmp::Ordering::Less => check.successes_before_passing.max(1),
            std::cmp::Ordering::Equal => 0,
            std::cmp::Ordering::Greater => check.failures_before_critical.saturating_add(1),
        };
        self.streak = if needed == 0 { 0 } else { self.streak.saturating_add(1) };
        let turns = needed > 0 && self.streak >= needed;
        if turns || (first && needed == 0) {
            output.truncate(output.floor_char_boundary(CHECK_OUTPUT_BYTES_MAX));
            self.state = CheckState { health, output, changed_at: now };
            self.streak = 0;
        }
    }

    /// Whether the check has failed for so long, since its task started, that the task is to be restarted: counted in time,
    /// as `limit` results at the check's interval, because a check that fails is repeated more often.
    pub fn wants_restart(&mut self, check: &Check, now: Timestamp, started_at: Timestamp) -> Option<Duration> {
        let policy = check.restart?;
        let failing = match self.state.health {
            Health::Passing => false,
            Health::Warning => !policy.ignore_warnings,
            Health::Critical => true,
        };
        if !failing || self.phase != Phase::Known || now.since(started_at) < policy.grace {
            self.failing_since = None;
            return None;
        }
        let since = *self.failing_since.get_or_insert(now);
        let patience = check.interval.saturating_mul(policy.limit.saturating_sub(1));
        let failed_for = now.since(since);
        (policy.limit > 0 && failed_for >= patience).then(|| {
            self.failing_since = None;
            failed_for
        })
    }
}

fn off(now: Timestamp) -> CheckState {
    CheckState { health: Health::Critical, output: NOT_RUNNING.to_owned(), changed_at: now }
}

#[cfg(test)]
mod tests {
    use super::*;
    use model::{CheckKind, CheckRestart};

    const PASS: Health = Health::Passing;
    const WARN: Health = Health::Warning;
    const CRIT: Health = Health::Critical;

    fn check() -> Check {
        Check::named("alive", CheckKind::Tcp, Duration::from_secs(10), Duration::from_secs(1))
    }

    fn at(secs: u64) -> Timestamp {
        Timestamp::from_secs(1_000 + secs)
    }

    fn healths(check: &Check, results: &[Health]) -> Vec<Health> {
        let mut run = CheckRun::new(check, true, at(0));
        let after = |(number, health): (usize, &Health)| {
            run.on_result(check, at(number as u64), *health, "result".to_owned());
            run.state.health
        };
        results.iter().enumerate().map(after).collect()
    }

    #[test]
    fn without_thresholds_every_result_counts() {
        assert_eq!(healths(&check(), &[PASS, CRIT, WARN, PASS]), [PASS, CRIT, WARN, PASS]);
    }

    #[test]
    fn thresholds_ask_for_results_in_a_row() {
        let slow = Check { successes_before_passing: 3, failures_before_critical: 2, ..check() };
        assert_eq!(healths(&slow, &[PASS, PASS, CRIT, PASS, PASS, PASS]), [CRIT, CRIT, CRIT, CRIT, CRIT, PASS]);
        let up = [PASS, PASS, PASS];
        assert_eq!(
            healths(&slow, &[&up[..], &[CRIT, CRIT, PASS, CRIT, CRIT, CRIT]].concat())[3..],
            [PASS, PASS, PASS, PASS, PASS, CRIT]
        );
    }

    #[test]
    fn the_initial_status_holds_until_the_first_result() {
        let hopeful = Check { initial: Some(PASS), ..check() };
        let mut run = CheckRun::new(&hopeful, true, at(0));
        assert_eq!(run.state.health, PASS);
        run.on_result(&hopeful, at(1), CRIT, "refused".to_owned());
        assert_eq!((run.state.health, run.state.output.as_str()), (CRIT, "refused"));
        run.refresh(&hopeful, false, at(2));
        assert_eq!(run.state.health, CRIT);
        run.refresh(&hopeful, true, at(3));
        assert_eq!(run.state.health, PASS);
    }

    #[test]
    fn failures_restart_after_grace_and_limit() {
        let policy = CheckRestart { limit: 3, grace: Duration::from_secs(30), ignore_warnings: true };
        let restarting = Check { restart: Some(policy), ..check() };
        let mut run = CheckRun::new(&restarting, true, at(0));
        let mut wants = |secs: u64, health| {
            run.on_result(&restarting, at(secs), health, String::new());
            run.wants_restart(&restarting, at(secs), at(0)).is_some()
        };
        let failing: Vec<bool> = [10, 29, 31, 41, 50].map(|secs| wants(secs, CRIT)).into();
        assert_eq!(failing, [false; 5], "the grace ends at 30 s, and the limit is two intervals later");
        assert!(wants(51, CRIT));
        assert!(!wants(52, CRIT), "counted anew");
        assert!(!wants(60, WARN) && !wants(100, WARN), "a warning is no failure here, and forgives");
        assert!(!wants(101, CRIT));
    }
}
