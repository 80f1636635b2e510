//! Which evaluation is worked on next, by whom, and what becomes of it when nobody answers: a state machine without clock
//! or IO. The leader's shell tells it what the replicated state says and what workers answer, and asks what to do.
//!
//! ```text
//!  catalog rows ── pending ──> delayed ──due──> waiting (per job, by age) ──head──> ready (by priority, then age)
//!              └── blocked ──> blocked ──capacity──┘        ▲                          │ dequeue: token, deadline
//!                                                           └── nack, deadline ──── outstanding ── ack ──> gone
//!                                                               too often: failed, for the shell to follow up
//! ```
//!
//! What it holds follows from the replicated evaluations and from deliveries under way, so a new leader starts with an
//! empty one and tells it every evaluation that is pending or blocked: none is lost. Those that were blocked by an older
//! state are looked at once more, for nobody knows what became free in between. An evaluation is delivered at least
//! once. That it takes effect once is the catalog's work, which checks every plan.

mod blocked;
#[cfg(test)]
mod tests;

pub use blocked::{Capacity, Class, Interest};

use blocked::Blocked;
use model::{EvalId, EvalStatus, Evaluation, Index, JobId, Timestamp};
use std::cmp::Reverse;
use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

/// How patient the broker is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Rules {
    /// An outstanding evaluation that nobody answered for is delivered again after this.
    pub answer_within: Duration,
    /// Deliveries of one evaluation before it is given up.
    pub deliveries_max: u32,
    /// Wait before the second delivery, and before every later one.
    pub redeliver_after: [Duration; 2],
}

/// Names one delivery: answers that carry an older one come too late.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Token {
    epoch: u64,
    number: u64,
}

/// An evaluation handed to a worker.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct Delivery {
    pub eval_id: EvalId,
    pub job_id: JobId,
    pub token: Token,
    /// 1 for the first.
    pub attempt: u32,
}

/// What a worker made of an evaluation.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Done {
    /// The replicated state says how it ended, or soon will.
    Concluded,
    /// It was blocked and still is, by the state at this index: nothing was written.
    StillBlocked(Index),
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("evaluation {id} was delivered again or has ended; this answer comes too late")]
pub struct Stale {
    pub id: EvalId,
}

/// How many evaluations are where.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Counts {
    /// To be worked on as soon as a worker is free and their jobs have nothing outstanding.
    pub waiting: usize,
    pub delayed: usize,
    pub outstanding: usize,
    pub blocked: usize,
    pub failed: usize,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct Broker {
    rules: Rules,
    rows: BTreeMap<EvalId, Row>,
    /// Jobs with something waiting or outstanding.
    jobs: BTreeMap<JobId, Queue>,
    /// The first waiting evaluation of every job that has none outstanding.
    ready: BTreeSet<Rank>,
    delayed: BTreeSet<(Timestamp, EvalId)>,
    deadlines: BTreeSet<(Timestamp, EvalId)>,
    blocked: Blocked,
    last_token: Token,
}

/// An evaluation that is anywhere but among the blocked.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
struct Row {
    job_id: JobId,
    priority: u8,
    created: Index,
    deliveries: u32,
    /// What it waited for before it was woken, in case it comes to wait for that again.
    interest: Option<Interest>,
    place: Place,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash)]
enum Place {
    Delayed(Timestamp),
    Waiting,
    /// `became` is what the replicated state has said of it since.
    Outstanding {
        token: Token,
        deadline: Timestamp,
        became: Option<Became>,
    },
    /// Delivered too often; the shell is to write a follow-up.
    Failed,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash)]
enum Became {
    Ended,
    Blocked { interest: Interest, seen: Index },
}

#[derive(Clone, Debug, Default, PartialEq, Eq, Hash)]
struct Queue {
    /// Oldest first.
    waiting: BTreeSet<(Index, EvalId)>,
    outstanding: Option<EvalId>,
    /// What `ready` holds for this job.
    ready: Option<Rank>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
struct Rank {
    priority: Reverse<u8>,
    created: Index,
    id: EvalId,
}

impl Rules {
    /// Nomad's: three deliveries, a minute each, a second and then 20 between them.
    pub const DEFAULT: Rules = Rules {
        answer_within: Duration::from_secs(60),
        deliveries_max: 3,
        redeliver_after: [Duration::from_secs(1), Duration::from_secs(20)],
    };

    /// When a failed evaluation's job is looked at again: one to six minutes later, so that many do not come at once.
    pub fn follow_up_after(seed: u64) -> Duration {
        Duration::from_secs(60 + seed % 300)
    }
}

impl Broker {
    /// `epoch` tells the deliveries of one leader from those of another: its term. `seen` is the state that the leader
    /// starts from: what became free before it, nobody has told this broker.
    pub fn new(rules: Rules, epoch: u64, seen: Index) -> Self {
        Self {
            rules,
            rows: BTreeMap::new(),
            jobs: BTreeMap::new(),
            ready: BTreeSet::new(),
            delayed: BTreeSet::new(),
            deadlines: BTreeSet::new(),
            blocked: Blocked::after(seen),
            last_token: Token { epoch, number: 0 },
        }
    }

    /// What the replicated state says of an evaluation now. `interest` is asked for when it is blocked.
    pub fn observe(&mut self, eval: &Evaluation, now: Timestamp, interest: impl FnOnce() -> Interest) {
        match eval.status {
            EvalStatus::Pending => self.observe_pending(eval, now),
            EvalStatus::Blocked => self.observe_blocked(eval, interest()),
            EvalStatus::Complete | EvalStatus::Failed | EvalStatus::Canceled => self.observe_end(eval.id),
        }
    }

    /// The evaluation has ended or is known no more.
    pub fn observe_end(&mut self, id: EvalId) {
        self.blocked.remove(id);
        match self.rows.get_mut(&id).map(|row| &mut row.place) {
            // Its worker still holds the job: nobody else is to plan for it meanwhile.
            Some(Place::Outstanding { became, .. }) => *became = Some(Became::Ended),
            Some(_) => drop(self.take(id)),
            None => {}
        }
    }

    /// Something became free at `index`: who waits for it is worked on again.
    pub fn capacity_changed(&mut self, capacity: Capacity, index: Index) {
        for (id, woken) in self.blocked.wake(capacity, index) {
            self.insert(id, Row::woken(woken));
        }
    }

    /// The next evaluation for a worker that is free.
    pub fn dequeue(&mut self, now: Timestamp) -> Option<Delivery> {
        let id = self.ready.first()?.id;
        self.last_token.number += 1;
        let (token, deadline) = (self.last_token, now.plus(self.rules.answer_within));
        let row = self.rows.get_mut(&id)?;
        row.deliveries += 1;
        row.place = Place::Outstanding { token, deadline, became: None };
        let delivery = Delivery { eval_id: id, job_id: row.job_id.clone(), token, attempt: row.deliveries };
        let (job_id, created) = (row.job_id.clone(), row.created);
        self.deadlines.insert((deadline, id));
        let queue = self.jobs.entry(job_id.clone()).or_default();
        queue.waiting.remove(&(created, id));
        queue.outstanding = Some(id);
        self.rank(&job_id);
        Some(delivery)
    }

    /// The worker is done with it.
    pub fn ack(&mut self, id: EvalId, token: Token, done: Done) -> Result<(), Stale> {
        let row = self.answered(id, token)?;
        match (row.became().cloned(), done, row.interest.clone()) {
            (Some(Became::Blocked { interest, seen }), _, _) => self.block(id, &row, interest, seen),
            (None, Done::StillBlocked(seen), Some(interest)) => self.block(id, &row, interest, seen),
            _ => {}
        }
        Ok(())
    }

    /// The worker could not work it off: somebody is to try again, a little later.
    pub fn nack(&mut self, id: EvalId, token: Token, now: Timestamp) -> Result<(), Stale> {
        let row = self.answered(id, token)?;
        self.put_back(id, row, now);
        Ok(())
    }

    /// The worker is still at it.
    pub fn extend(&mut self, id: EvalId, token: Token, now: Timestamp) -> Result<(), Stale> {
        let until = now.plus(self.rules.answer_within);
        match self.rows.get_mut(&id).map(|row| &mut row.place) {
            Some(Place::Outstanding { token: current, deadline, .. }) if *current == token => {
                self.deadlines.remove(&(*deadline, id));
                self.deadlines.insert((until, id));
                *deadline = until;
                Ok(())
            }
            _ => Err(Stale { id }),
        }
    }

    /// Lets time pass: what was delayed becomes due, what nobody answered for goes back.
    pub fn tick(&mut self, now: Timestamp) {
        while let Some((_, id)) = self.delayed.first().copied().filter(|(due, _)| *due <= now) {
            if let Some(row) = self.take(id) {
                self.insert(id, Row { place: Place::Waiting, ..row });
            }
        }
        while let Some((_, id)) = self.deadlines.first().copied().filter(|(deadline, _)| *deadline <= now) {
            if let Some(row) = self.take(id) {
                self.put_back(id, row, now);
            }
        }
    }

    /// When [`Broker::tick`] has something to do next.
    pub fn next_due(&self) -> Option<Timestamp> {
        let first = [self.delayed.first(), self.deadlines.first()];
        first.into_iter().flatten().map(|(due, _)| *due).min()
    }

    /// Evaluations delivered too often. They stay listed until the replicated state says that they have ended.
    pub fn failed(&self) -> impl Iterator<Item = EvalId> {
        self.rows.iter().filter(|(_, row)| row.place == Place::Failed).map(|(id, _)| *id)
    }

    pub fn counts(&self) -> Counts {
        let of = |wanted: fn(&Place) -> bool| self.rows.values().filter(|row| wanted(&row.place)).count();
        Counts {
            waiting: of(|place| matches!(place, Place::Waiting)),
            delayed: self.delayed.len(),
            outstanding: self.deadlines.len(),
            blocked: self.blocked.len(),
            failed: of(|place| matches!(place, Place::Failed)),
        }
    }

    /// Whether a worker that asks would get something.
    pub fn has_ready(&self) -> bool {
        !self.ready.is_empty()
    }

    fn observe_pending(&mut self, eval: &Evaluation, now: Timestamp) {
        self.blocked.remove(eval.id);
        if let Some(row) = self.rows.get_mut(&eval.id) {
            // It is where it belongs already: a plan that fitted in parts leaves it pending.
            if let Place::Outstanding { became, .. } = &mut row.place {
                *became = None;
            }
            return;
        }
        let is_due = eval.wait_until <= now;
        let place = if is_due { Place::Waiting } else { Place::Delayed(eval.wait_until) };
        self.insert(eval.id, Row::of(eval, place));
    }

    fn observe_blocked(&mut self, eval: &Evaluation, interest: Interest) {
        let seen = eval.snapshot_index;
        match self.rows.get_mut(&eval.id).map(|row| &mut row.place) {
            Some(Place::Outstanding { became, .. }) => *became = Some(Became::Blocked { interest, seen }),
            // Woken, and nobody has looked at it yet.
            Some(_) => {}
            None => self.block(eval.id, &Row::of(eval, Place::Waiting), interest, seen),
        }
    }

    /// What became free after the state that the plan was made from would otherwise be missed.
    fn block(&mut self, id: EvalId, row: &Row, interest: Interest, seen: Index) {
        let blocked =
            blocked::Row { job_id: row.job_id.clone(), priority: row.priority, created: row.created, interest };
        if let Some(woken) = self.blocked.insert(id, blocked, seen) {
            self.insert(id, Row::woken(woken));
        }
    }

    /// Takes the row of a delivery that is still the newest.
    fn answered(&mut self, id: EvalId, token: Token) -> Result<Row, Stale> {
        let place = self.rows.get(&id).map(|row| &row.place);
        let current = matches!(place, Some(Place::Outstanding { token: newest, .. }) if *newest == token);
        let row = if current { self.take(id) } else { None };
        row.ok_or(Stale { id })
    }

    /// After a delivery that came to nothing.
    fn put_back(&mut self, id: EvalId, row: Row, now: Timestamp) {
        match row.became().cloned() {
            Some(Became::Blocked { interest, seen }) => return self.block(id, &row, interest, seen),
            Some(Became::Ended) => return,
            None => {}
        }
        let [second, later] = self.rules.redeliver_after;
        let place = match row.deliveries {
            delivered if delivered >= self.rules.deliveries_max => Place::Failed,
            1 => Place::Delayed(now.plus(second)),
            _ => Place::Delayed(now.plus(later)),
        };
        self.insert(id, Row { place, ..row });
    }

    fn insert(&mut self, id: EvalId, row: Row) {
        let job_id = row.job_id.clone();
        match row.place {
            Place::Delayed(until) => drop(self.delayed.insert((until, id))),
            Place::Waiting => drop(self.jobs.entry(job_id.clone()).or_default().waiting.insert((row.created, id))),
            Place::Outstanding { .. } | Place::Failed => {}
        }
        self.rows.insert(id, row);
        self.rank(&job_id);
    }

    fn take(&mut self, id: EvalId) -> Option<Row> {
        let row = self.rows.remove(&id)?;
        match &row.place {
            Place::Delayed(until) => drop(self.delayed.remove(&(*until, id))),
            Place::Outstanding { deadline, .. } => drop(self.deadlines.remove(&(*deadline, id))),
            Place::Waiting | Place::Failed => {}
        }
        if let Some(queue) = self.jobs.get_mut(&row.job_id) {
            queue.waiting.remove(&(row.created, id));
            queue.outstanding = queue.outstanding.filter(|outstanding| *outstanding != id);
        }
        self.rank(&row.job_id);
        Some(row)
    }

    /// Settles what of the job is ready: its oldest evaluation, with the highest priority that any of them has.
    fn rank(&mut self, job_id: &JobId) {
        let Some(queue) = self.jobs.get_mut(job_id) else { return };
        let first = queue.waiting.first().filter(|_| queue.outstanding.is_none());
        let rank = first.map(|(created, id)| {
            let waiting = queue.waiting.iter().filter_map(|(_, id)| self.rows.get(id));
            let priority = waiting.map(|row| row.priority).max().unwrap_or_default();
            Rank { priority: Reverse(priority), created: *created, id: *id }
        });
        if queue.ready != rank {
            if let Some(old) = &queue.ready {
                self.ready.remove(old);
            }
            self.ready.extend(rank);
            queue.ready = rank;
        }
        if queue.waiting.is_empty() && queue.outstanding.is_none() {
            self.jobs.remove(job_id);
        }
    }
}

impl Row {
    fn of(eval: &Evaluation, place: Place) -> Self {
        let Evaluation { job_id, priority, created_at_index: created, .. } = eval;
        let (job_id, priority, created) = (job_id.clone(), *priority, *created);
        Self { job_id, priority, created, deliveries: 0, interest: None, place }
    }

    fn woken(blocked: blocked::Row) -> Self {
        let blocked::Row { job_id, priority, created, interest } = blocked;
        Self { job_id, priority, created, deliveries: 0, interest: Some(interest), place: Place::Waiting }
    }

    fn became(&self) -> Option<&Became> {
        match &self.place {
            Place::Outstanding { became, .. } => became.as_ref(),
            _ => None,
        }
    }
}
