//! What holds the slots of a group, and when an empty one may be filled.
//!
//! A slot is a number from 0 to count - 1 within a group. One allocation that is to run holds it; while a newer version is
//! tried out (a canary, or a start-first update) a second one, of the newest version, stands beside it.

use crate::change::{GroupChange, group_change};
use model::{Allocation, ClientStatus, DesiredStatus, Job, JobKind, NodeId, TaskGroup, Timestamp};
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

/// Nomad's default `reschedule` of each kind of job.
struct Reschedule {
    attempts_max: Option<u32>,
    delay: Duration,
    delay_max: Duration,
}

fn reschedule(kind: JobKind) -> Reschedule {
    match kind {
        // Nomad never places a failed system allocation again by itself; we do, or a node would stay without.
        JobKind::Service | JobKind::System | JobKind::Sysbatch => {
            Reschedule { attempts_max: None, delay: Duration::from_secs(30), delay_max: Duration::from_secs(3600) }
        }
        JobKind::Batch => {
            let delay = Duration::from_secs(5);
            Reschedule { attempts_max: Some(1), delay, delay_max: delay }
        }
    }
}

/// How the slot is to be filled now, or when it may be.
pub(crate) fn refill<'a>(slot: u32, last: Option<&'a Allocation>, job: &Job, now: Timestamp) -> Refill<'a> {
    let anew = |reschedules| Refill::Now(EmptySlot { slot, last, reschedules, avoid: None });
    let same_work = |last: &&Allocation| group_change(&last.job, job, &last.group) == GroupChange::InPlace;
    let Some(of_this_work) = last.filter(same_work) else { return anew(0) };
    let ended_by_itself = of_this_work.desired == DesiredStatus::Run
        && matches!(of_this_work.client, ClientStatus::Failed | ClientStatus::Complete);
    match of_this_work.client {
        _ if !ended_by_itself => anew(of_this_work.reschedules),
        ClientStatus::Complete if job.kind == JobKind::Batch => Refill::Never,
        _ => after_failure(slot, of_this_work, job.kind, now),
    }
}

fn after_failure<'a>(slot: u32, failed: &'a Allocation, kind: JobKind, now: Timestamp) -> Refill<'a> {
    let policy = reschedule(kind);
    let failures = failures_in_a_row(failed, &policy);
    if policy.attempts_max.is_some_and(|most| failures >= most) {
        return Refill::Never;
    }
    let factor = 1u32.checked_shl(failures).unwrap_or(u32::MAX);
    let not_before = ended_at(failed).plus(policy.delay.saturating_mul(factor).min(policy.delay_max));
    if now < not_before {
        return Refill::NotBefore(not_before);
    }
    let (reschedules, avoid) = (failures.saturating_add(1), Some(failed.node_id));
    Refill::Now(EmptySlot { slot, last: Some(failed), reschedules, avoid })
}

/// A service that ran for longer than the longest delay starts the count anew.
fn failures_in_a_row(alloc: &Allocation, policy: &Reschedule) -> u32 {
    let ran_for = ended_at(alloc).since(alloc.created_at);
    if policy.attempts_max.is_none() && ran_for > policy.delay_max { 0 } else { alloc.reschedules }
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
