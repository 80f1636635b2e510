//! What holds the slots of a group, and when an empty one may be filled.
//!
//! A slot is a number from 0 to count - 1 within a group. One allocation that is to run holds it; while a newer version is
//! tried out (a canary, or a start-first update) a second one, of the newest version, stands beside it.

use crate::change::{GroupChange, group_change};
use model::{
    AllocId, Allocation, ClientStatus, DelayFunction, DesiredStatus, Job, JobKind, NodeId, ReschedulePolicy, TaskGroup,
    Timestamp,
};
use std::collections::BTreeMap;
use std::time::Duration;

/// Allocations of one slot that stay.
#[derive(Clone, Copy, Default)]
pub(crate) struct Slot<'a> {
    /// Of the newest version, or to adopt it as it runs.
    pub(crate) current: Option<&'a Allocation>,
    /// To be replaced.
    pub(crate) outdated: Option<&'a Allocation>,
    /// The plan in the making has placed something in it.
    pub(crate) busy: bool,
}

/// A slot that nothing holds, with what may be known from its last allocation.
pub(crate) struct EmptySlot<'a> {
    pub(crate) slot: u32,
    pub(crate) last: Option<&'a Allocation>,
    /// How often its allocation will have been rescheduled.
    pub(crate) reschedules: u32,
    pub(crate) avoid: Option<NodeId>,
}

/// What an empty slot waits for.
pub(crate) enum Refill<'a> {
    Now(EmptySlot<'a>),
    NotBefore(Timestamp),
    /// Its work is done, or has failed for good.
    Never,
}

impl<'a> Slot<'a> {
    pub(crate) fn is_empty(&self) -> bool {
        self.current.is_none() && self.outdated.is_none() && !self.busy
    }

    /// The outdated allocation that nothing newer stands beside.
    pub(crate) fn outdated_alone(&self) -> Option<&'a Allocation> {
        self.outdated.filter(|_| self.current.is_none() && !self.busy)
    }

    /// The one allocation in it.
    pub(crate) fn alone(&self) -> Option<&'a Allocation> {
        match (self.current, self.outdated) {
            (Some(alloc), None) | (None, Some(alloc)) if !self.busy => Some(alloc),
            _ => None,
        }
    }

    pub(crate) fn holders(&self) -> impl Iterator<Item = &'a Allocation> + use<'a> {
        self.current.into_iter().chain(self.outdated)
    }
}

/// Ended allocations by id: what a slot went through is a chain of them.
pub(crate) type History<'a> = BTreeMap<AllocId, &'a Allocation>;

/// How the slot is to be filled now, or when it may be.
pub(crate) fn refill<'a>(
    slot: u32,
    last: Option<&'a Allocation>,
    job: &Job,
    history: &History<'_>,
    now: Timestamp,
) -> Refill<'a> {
    let anew = |reschedules| Refill::Now(EmptySlot { slot, last, reschedules, avoid: None });
    let same_work = |last: &&Allocation| group_change(&last.job, job, &last.group) == GroupChange::InPlace;
    let Some(of_this_work) = last.filter(same_work) else { return anew(0) };
    let ended_by_itself = of_this_work.desired == DesiredStatus::Run
        && matches!(of_this_work.client, ClientStatus::Failed | ClientStatus::Complete);
    match of_this_work.client {
        ClientStatus::Complete if job.kind.ends() && ended_by_itself => Refill::Never,
        _ if !ended_by_itself => anew(of_this_work.reschedules),
        _ => after_failure(slot, of_this_work, &policy(job, &of_this_work.group), history, now),
    }
}

/// Nomad never places a failed system allocation again by itself; we do, or a node would stay without.
fn policy(job: &Job, group: &str) -> ReschedulePolicy {
    match job.kind {
        JobKind::System => ReschedulePolicy::SERVICE,
        _ => job.group(group).map_or(ReschedulePolicy::default_of(job.kind), |group| group.reschedule),
    }
}

fn after_failure<'a>(
    slot: u32,
    failed: &'a Allocation,
    policy: &ReschedulePolicy,
    history: &History<'_>,
    now: Timestamp,
) -> Refill<'a> {
    if !policy.unlimited && attempts_within(policy.interval, failed, history, now) >= policy.attempts {
        return Refill::Never;
    }
    let failures = failures_in_a_row(failed, policy);
    let not_before = ended_at(failed).plus(delay(policy, failures));
    if now < not_before {
        return Refill::NotBefore(not_before);
    }
    let (reschedules, avoid) = (failures.saturating_add(1), Some(failed.node_id));
    Refill::Now(EmptySlot { slot, last: Some(failed), reschedules, avoid })
}

/// How often the slot was filled anew after a failure, in the interval that ends now.
fn attempts_within(interval: Duration, failed: &Allocation, history: &History<'_>, now: Timestamp) -> u32 {
    let before = |alloc: &&Allocation| alloc.previous.and_then(|id| history.get(&id)).copied();
    let chain = std::iter::successors(Some(failed), before).take_while(|alloc| alloc.reschedules > 0);
    let recent = chain.filter(|alloc| now.since(alloc.created_at) < interval);
    u32::try_from(recent.count()).unwrap_or(u32::MAX)
}

/// The wait after the `failures`-th failure in a row, counted from 0.
fn delay(policy: &ReschedulePolicy, failures: u32) -> Duration {
    let factor = match policy.delay_function {
        DelayFunction::Constant => return policy.delay,
        DelayFunction::Exponential => 1u32.checked_shl(failures).unwrap_or(u32::MAX),
        DelayFunction::Fibonacci => fibonacci(failures),
    };
    let grown = policy.delay.saturating_mul(factor);
    if policy.max_delay.is_zero() { grown } else { grown.min(policy.max_delay) }
}

/// 1, 1, 2, 3, 5, …
fn fibonacci(number: u32) -> u32 {
    let step = |(a, b): (u32, u32), _| (b, a.saturating_add(b));
    (0..number.min(u32::BITS * 2)).fold((1, 1), step).0
}

/// One that ran for longer than the longest delay starts the count anew.
fn failures_in_a_row(alloc: &Allocation, policy: &ReschedulePolicy) -> u32 {
    let ran_for = ended_at(alloc).since(alloc.created_at);
    let grows = policy.delay_function != DelayFunction::Constant;
    if policy.unlimited && grows && ran_for > policy.max_delay { 0 } else { alloc.reschedules }
}

/// A node whose clock is ahead must not put its slots off: nothing ended after it was reported.
fn ended_at(alloc: &Allocation) -> Timestamp {
    let finished = alloc.task_states.values().map(|state| state.finished_at).max();
    let finished = finished.filter(|time| *time != Timestamp::NEVER);
    finished.map_or(alloc.modified_at, |time| time.min(alloc.modified_at))
}

/// The newest allocation of every key, whatever became of it.
pub(crate) fn newest_by<'a, K: Ord>(
    allocs: &[&'a Allocation],
    job: &Job,
    group: &TaskGroup,
    key: impl Fn(&Allocation) -> K,
) -> BTreeMap<K, &'a Allocation> {
    let mut of_group: Vec<&Allocation> =
        allocs.iter().copied().filter(|alloc| *alloc.job_id() == job.id && alloc.group == group.name).collect();
    of_group.sort_by_key(|alloc| (alloc.created_at_index, alloc.created_at, alloc.id));
    of_group.into_iter().map(|alloc| (key(alloc), alloc)).collect()
}
