//! Health checks of the node's allocations: one pool runs them all, thousands of them, from one heap of due times and with
//! a bound on how many probe at once. A waiting check is an entry in a map and costs no task.
//!
//! A probe never outlives its timeout, and what the other side sends is bounded.

mod connect;
mod grpc;
mod http;
mod probe;

pub use probe::probe;

use crate::allocs::CheckPlan;
use drivers::TaskHandle;
use model::{CheckKind, Health};
use std::cmp::Reverse;
use std::collections::{BinaryHeap, HashMap, VecDeque};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;
use tokio::sync::mpsc;
use tokio::task::JoinSet;
use tokio::time::{Instant, sleep_until};

/// Probes under way at a time; the others wait their turn.
const PROBES_MAX: usize = 256;

/// Until a check passes it is repeated at least this often, so that a service is taken in when it is up, not an interval later.
const UNTIL_PASSING: Duration = Duration::from_secs(1);

#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Verdict {
    pub health: Health,
    pub output: String,
}

/// A result, and the run of the check it is of: one of an earlier run says nothing of the task that runs now.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct CheckResult {
    pub id: String,
    pub run: u64,
    pub verdict: Verdict,
}

/// Cheap to clone; the checks of a node run for as long as one of the clones lives.
#[derive(Clone)]
pub struct CheckPool {
    orders: mpsc::UnboundedSender<Order>,
    runs: Arc<AtomicU64>,
}

/// Ends with this value.
pub struct RunningCheck {
    pub plan: CheckPlan,
    pub run: u64,
    orders: mpsc::UnboundedSender<Order>,
}

enum Order {
    Watch { run: u64, entry: Box<Entry>, first: Duration },
    Set { run: u64, verdict: Verdict },
    Drop { run: u64 },
}

struct Entry {
    plan: CheckPlan,
    /// Where scripts run.
    task: Option<TaskHandle>,
    results: mpsc::Sender<CheckResult>,
    /// Its place in the heap; any other there is an old one.
    due: Instant,
}

impl Verdict {
    pub fn passing(output: impl Into<String>) -> Self {
        Self { health: Health::Passing, output: output.into() }
    }

    pub fn critical(output: impl Into<String>) -> Self {
        Self { health: Health::Critical, output: output.into() }
    }
}

impl CheckPool {
    /// Needs a runtime.
    pub fn start() -> Self {
        let (orders, inbox) = mpsc::unbounded_channel();
        tokio::spawn(Pool::new(inbox).run());
        Self { orders, runs: Arc::default() }
    }

    /// `stagger` in 0.0..1.0 spreads the checks of a node over their first interval, or second if that is shorter.
    pub fn watch(
        &self,
        plan: CheckPlan,
        task: Option<TaskHandle>,
        stagger: f64,
        results: mpsc::Sender<CheckResult>,
    ) -> RunningCheck {
        let run = self.runs.fetch_add(1, Ordering::Relaxed) + 1;
        let first = match plan.check.kind {
            CheckKind::Ttl => plan.check.interval,
            _ => plan.check.interval.min(UNTIL_PASSING).mul_f64(stagger.clamp(0.0, 1.0) / 2.0),
        };
        let entry = Box::new(Entry { plan: plan.clone(), task, results, due: Instant::now() });
        let _ = self.orders.send(Order::Watch { run, entry, first });
        RunningCheck { plan, run, orders: self.orders.clone() }
    }
}

impl RunningCheck {
    /// What the task says itself, for a check of type ttl; it holds for an interval.
    pub fn set(&self, health: Health, output: String) {
        let _ = self.orders.send(Order::Set { run: self.run, verdict: Verdict { health, output } });
    }
}

impl Drop for RunningCheck {
    fn drop(&mut self) {
        let _ = self.orders.send(Order::Drop { run: self.run });
    }
}

struct Pool {
    inbox: mpsc::UnboundedReceiver<Order>,
    entries: HashMap<u64, Entry>,
    due: BinaryHeap<Reverse<(Instant, u64)>>,
    /// Due, but too many probe already.
    ready: VecDeque<u64>,
    probes: JoinSet<(u64, Health)>,
}

impl Pool {
    fn new(inbox: mpsc::UnboundedReceiver<Order>) -> Self {
        let (entries, due, ready) = (HashMap::new(), BinaryHeap::new(), VecDeque::new());
        Self { inbox, entries, due, ready, probes: JoinSet::new() }
    }

    async fn run(mut self) {
        loop {
            let next = self.due.peek().map(|Reverse((at, _))| *at);
            tokio::select! {
                order = self.inbox.recv() => match order {
                    Some(order) => self.on_order(order),
                    None => return,
                },
                Some(done) = self.probes.join_next() => {
                    if let Ok((run, health)) = done {
                        self.on_probed(run, health);
                    }
                }
                () = sleep_until(next.unwrap_or_else(Instant::now)), if next.is_some() => self.on_due(Instant::now()),
            }
            self.probe_ready();
        }
    }

    fn on_order(&mut self, order: Order) {
        match order {
            Order::Watch { run, entry, first } => {
                self.entries.insert(run, *entry);
                self.schedule(run, first);
            }
            Order::Set { run, verdict } => {
                let Some(interval) = self.entries.get(&run).map(|entry| entry.plan.check.interval) else { return };
                self.tell(run, verdict);
                self.schedule(run, interval);
            }
            Order::Drop { run } => drop(self.entries.remove(&run)),
        }
    }

    fn schedule(&mut self, run: u64, after: Duration) {
        let at = Instant::now() + after;
        if let Some(entry) = self.entries.get_mut(&run) {
            entry.due = at;
            self.due.push(Reverse((at, run)));
        }
    }

    fn on_due(&mut self, now: Instant) {
        while let Some(Reverse((at, run))) = self.due.peek().copied().filter(|Reverse((at, _))| *at <= now) {
            self.due.pop();
            let Some(entry) = self.entries.get(&run).filter(|entry| entry.due == at) else { continue };
            if entry.plan.check.kind == CheckKind::Ttl {
                let interval = entry.plan.check.interval;
                self.tell(run, Verdict::critical(format!("the task said nothing for {interval:?}")));
                self.schedule(run, interval);
            } else {
                self.ready.push_back(run);
            }
        }
    }

    fn probe_ready(&mut self) {
        while self.probes.len() < PROBES_MAX {
            let Some(run) = self.ready.pop_front() else { return };
            let Some(entry) = self.entries.get(&run) else { continue };
            let (plan, task, results) = (entry.plan.clone(), entry.task.clone(), entry.results.clone());
            self.probes.spawn(async move {
                let verdict = probe(&plan, task.as_ref()).await;
                let health = verdict.health;
                // Whoever wanted it may have gone.
                let _ = results.send(CheckResult { id: plan.id, run, verdict }).await;
                (run, health)
            });
        }
    }

    fn on_probed(&mut self, run: u64, health: Health) {
        if let Some(interval) = self.entries.get(&run).map(|entry| entry.plan.check.interval) {
            self.schedule(run, pause(health, interval));
        }
    }

    /// A runner that takes nothing for so long gets the next result.
    fn tell(&self, run: u64, verdict: Verdict) {
        if let Some(entry) = self.entries.get(&run) {
            let _ = entry.results.try_send(CheckResult { id: entry.plan.id.clone(), run, verdict });
        }
    }
}

fn pause(health: Health, interval: Duration) -> Duration {
    if health == Health::Passing { interval } else { interval.min(UNTIL_PASSING) }
}

#[cfg(test)]
mod tests;
