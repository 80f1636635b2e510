//! Broker, workers and plan applier as one model, every interleaving of which is explored: workers that are slow or die,
//! answers that come before or after what the state says, capacity that comes and goes unseen, a change of leader.
//!
//! The broker is the real one. The applier is what the catalog promises: it takes plans one by one, keeps of each what
//! still holds, and cancels the pending evaluations that a concluded plan has covered.

use broker::{Broker, Capacity, Delivery, Done, Interest, Rules};
use model::{EvalId, EvalStatus, EvalTrigger, Evaluation, Index, JobId, NodeId, Timestamp};
use stateright::{Checker, Model, Property};
use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

/// What may happen how often.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
struct Budget {
    submissions: u8,
    releases: u8,
    crashes: u8,
    /// Workers that take longer than the broker waits.
    slow: u8,
    elections: u8,
}

struct World {
    jobs: u8,
    slots: u8,
    workers: usize,
    capacity: u8,
    budget: Budget,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash)]
struct State {
    broker: Broker,
    now: Timestamp,
    catalog: Catalog,
    /// What the leader has yet to tell its broker, oldest first.
    untold: Vec<Event>,
    workers: Vec<Worker>,
    /// Plans in the log, not applied yet.
    plans: Vec<Plan>,
    budget: Budget,
    epoch: u64,
}

#[derive(Clone, Debug, Default, PartialEq, Eq, Hash)]
struct Catalog {
    index: u64,
    evals: BTreeMap<u64, Eval>,
    free: u8,
    /// By job and slot: how many allocations there are.
    placed: BTreeMap<(u8, u8), u8>,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash)]
struct Eval {
    job: u8,
    status: EvalStatusKey,
    created: u64,
    seen: u64,
    wait_until: Timestamp,
}

/// `EvalStatus` with an order for hashing.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
enum EvalStatusKey {
    Pending,
    Blocked,
    Ended,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash)]
enum Event {
    Eval(u64, Eval),
    Capacity(u64),
}

#[derive(Clone, Debug, PartialEq, Eq, Hash)]
enum Worker {
    Idle,
    Planning {
        delivery: Delivery,
        seen: Catalog,
    },
    Waiting {
        delivery: Delivery,
    },
    /// The plan was applied; the broker is to be told.
    Answering {
        delivery: Delivery,
        whole: bool,
    },
}

#[derive(Clone, Debug, PartialEq, Eq, Hash)]
struct Plan {
    worker: Option<usize>,
    eval: u64,
    seen: u64,
    slots: BTreeSet<(u8, u8)>,
    unplaced: bool,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash)]
enum Action {
    Submit(u8),
    Release,
    Tell,
    Dequeue(usize),
    Propose(usize),
    Apply,
    Answer(usize),
    Crash(usize),
    Elect,
    PassTime,
    FollowUp,
}

const RULES: Rules = Rules {
    answer_within: Duration::from_secs(60),
    deliveries_max: 2,
    redeliver_after: [Duration::from_secs(1), Duration::from_secs(20)],
};
const NODE: u128 = 1;

fn eval_id(number: u64) -> EvalId {
    EvalId::from_random(u128::from(number))
}

fn number_of(id: EvalId) -> u64 {
    (1..100).find(|number| eval_id(*number) == id).expect("ids are made from small numbers")
}

fn row(number: u64, eval: &Eval) -> Evaluation {
    Evaluation {
        id: eval_id(number),
        job_id: JobId(format!("job-{}", eval.job)),
        priority: 50,
        trigger: EvalTrigger::JobRegister,
        status: match eval.status {
            EvalStatusKey::Pending => EvalStatus::Pending,
            EvalStatusKey::Blocked => EvalStatus::Blocked,
            EvalStatusKey::Ended => EvalStatus::Complete,
        },
        status_description: String::new(),
        wait_until: eval.wait_until,
        failures: BTreeMap::new(),
        queued: BTreeMap::new(),
        snapshot_index: Index(eval.seen),
        created_at: Timestamp(1),
        modified_at: Timestamp(1),
        created_at_index: Index(eval.created),
        modified_at_index: Index(0),
    }
}

impl State {
    fn commit_eval(&mut self, number: u64, eval: Eval) {
        self.catalog.evals.insert(number, eval.clone());
        self.untold.push(Event::Eval(number, eval));
    }

    fn add_eval(&mut self, job: u8, wait_until: Timestamp) {
        self.catalog.index += 1;
        let number = self.catalog.evals.len() as u64 + 1;
        let created = self.catalog.index;
        self.commit_eval(number, Eval { job, status: EvalStatusKey::Pending, created, seen: 0, wait_until });
    }

    fn tell(&mut self, event: Event) {
        match event {
            Event::Eval(number, eval) => self.broker.observe(&row(number, &eval), self.now, Interest::anything),
            Event::Capacity(index) => {
                self.broker.capacity_changed(Capacity { node: NodeId::from_random(NODE), class: 1 }, Index(index))
            }
        }
    }

    /// A new leader reads the state and knows nothing of deliveries; the old one's workers are gone, not their plans.
    fn elect(&mut self) {
        self.epoch += 1;
        self.broker = Broker::new(RULES, self.epoch, Index(self.catalog.index));
        self.untold.clear();
        let open: Vec<(u64, Eval)> = self.catalog.evals.clone().into_iter().collect();
        open.into_iter()
            .filter(|(_, eval)| eval.status != EvalStatusKey::Ended)
            .for_each(|(number, eval)| self.tell(Event::Eval(number, eval)));
        self.workers.iter_mut().for_each(|worker| *worker = Worker::Idle);
        self.plans.iter_mut().for_each(|plan| plan.worker = None);
    }

    fn propose(&mut self, world: &World, at: usize) {
        let Worker::Planning { delivery, seen } = self.workers[at].clone() else { return };
        let eval = number_of(delivery.eval_id);
        let Some(job) = seen.evals.get(&eval).map(|eval| eval.job) else { return };
        let missing: Vec<(u8, u8)> =
            (0..world.slots).map(|slot| (job, slot)).filter(|slot| !seen.placed.contains_key(slot)).collect();
        let slots: BTreeSet<(u8, u8)> = missing.iter().copied().take(usize::from(seen.free)).collect();
        let unplaced = slots.len() < missing.len();
        self.plans.push(Plan { worker: Some(at), eval, seen: seen.index, slots, unplaced });
        self.workers[at] = Worker::Waiting { delivery };
    }

    /// What the catalog does with a plan.
    fn apply(&mut self) {
        let plan = self.plans.remove(0);
        self.catalog.index += 1;
        let known = self.catalog.evals.get(&plan.eval).cloned();
        let open = known.filter(|eval| eval.status != EvalStatusKey::Ended);
        let mut whole = true;
        if let Some(eval) = open {
            for slot in &plan.slots {
                let fits = self.catalog.free > 0 && !self.catalog.placed.contains_key(slot);
                if fits {
                    self.catalog.free -= 1;
                    *self.catalog.placed.entry(*slot).or_default() += 1;
                }
                whole &= fits;
            }
            self.conclude(&plan, eval, whole);
        }
        let Some(at) = plan.worker else { return };
        if let Worker::Waiting { delivery } = self.workers[at].clone() {
            self.workers[at] = Worker::Answering { delivery, whole };
        }
    }

    fn conclude(&mut self, plan: &Plan, eval: Eval, whole: bool) {
        let status = match (whole, plan.unplaced) {
            (false, _) => EvalStatusKey::Pending,
            (true, true) => EvalStatusKey::Blocked,
            (true, false) => EvalStatusKey::Ended,
        };
        self.commit_eval(plan.eval, Eval { status, seen: plan.seen, ..eval.clone() });
        if !whole {
            return;
        }
        let covered = |(number, other): &(&u64, &Eval)| {
            let by_plan = other.status == EvalStatusKey::Pending && other.created <= plan.seen;
            **number != plan.eval && other.job == eval.job && (by_plan || other.status == EvalStatusKey::Blocked)
        };
        let covered: Vec<(u64, Eval)> =
            self.catalog.evals.iter().filter(covered).map(|(number, other)| (*number, other.clone())).collect();
        for (number, other) in covered {
            self.commit_eval(number, Eval { status: EvalStatusKey::Ended, ..other });
        }
    }

    fn answer(&mut self, at: usize) {
        let Worker::Answering { delivery, whole } = self.workers[at].clone() else { return };
        if whole {
            // Too late an answer changes nothing, and that is all there is to it.
            let _ = self.broker.ack(delivery.eval_id, delivery.token, Done::Concluded);
            self.workers[at] = Worker::Idle;
        } else {
            self.workers[at] = Worker::Planning { delivery, seen: self.catalog.clone() };
        }
    }

    fn follow_up(&mut self) {
        let Some(id) = self.broker.failed().next() else { return };
        let number = number_of(id);
        let Some(eval) = self.catalog.evals.get(&number).cloned() else { return };
        self.catalog.index += 1;
        self.commit_eval(number, Eval { status: EvalStatusKey::Ended, ..eval.clone() });
        self.add_eval(eval.job, self.now.plus(Duration::from_secs(60)));
    }

    /// Whether the next thing to happen by time alone would catch a worker that is still at it.
    fn is_held(&self) -> bool {
        let mut later = self.broker.clone();
        self.broker.next_due().into_iter().for_each(|due| later.tick(due));
        self.workers.iter().any(|worker| match worker {
            Worker::Idle => false,
            Worker::Planning { delivery, .. } | Worker::Waiting { delivery } | Worker::Answering { delivery, .. } => {
                let current =
                    |broker: &Broker| broker.clone().extend(delivery.eval_id, delivery.token, self.now).is_ok();
                current(&self.broker) && !current(&later)
            }
        })
    }

    fn has_unanswered_failures(&self) -> bool {
        let open =
            |id: &EvalId| self.catalog.evals.get(&number_of(*id)).is_some_and(|e| e.status != EvalStatusKey::Ended);
        self.broker.failed().any(|id| open(&id))
    }
}

impl Model for World {
    type State = State;
    type Action = Action;

    fn init_states(&self) -> Vec<State> {
        vec![State {
            broker: Broker::new(RULES, 1, Index(0)),
            now: Timestamp(1_000_000_000),
            catalog: Catalog { free: self.capacity, ..Catalog::default() },
            untold: Vec::new(),
            workers: vec![Worker::Idle; self.workers],
            plans: Vec::new(),
            budget: self.budget,
            epoch: 1,
        }]
    }

    fn actions(&self, state: &State, actions: &mut Vec<Action>) {
        if state.budget.submissions > 0 {
            actions.extend((0..self.jobs).map(Action::Submit));
        }
        if state.budget.releases > 0 {
            actions.push(Action::Release);
        }
        if !state.untold.is_empty() {
            actions.push(Action::Tell);
        }
        if state.broker.has_ready()
            && let Some(at) = state.workers.iter().position(|worker| *worker == Worker::Idle)
        {
            actions.push(Action::Dequeue(at));
        }
        for (at, worker) in state.workers.iter().enumerate() {
            match worker {
                Worker::Idle => continue,
                Worker::Planning { .. } => actions.push(Action::Propose(at)),
                Worker::Waiting { .. } => {}
                Worker::Answering { .. } => actions.push(Action::Answer(at)),
            }
            if state.budget.crashes > 0 {
                actions.push(Action::Crash(at));
            }
        }
        if !state.plans.is_empty() {
            actions.push(Action::Apply);
        }
        if state.budget.elections > 0 {
            actions.push(Action::Elect);
        }
        if state.broker.next_due().is_some() && (state.budget.slow > 0 || !state.is_held()) {
            actions.push(Action::PassTime);
        }
        if state.has_unanswered_failures() {
            actions.push(Action::FollowUp);
        }
    }

    fn next_state(&self, before: &State, action: Action) -> Option<State> {
        let mut state = before.clone();
        match action {
            Action::Submit(job) => {
                state.budget.submissions -= 1;
                state.add_eval(job, Timestamp::NEVER);
            }
            Action::Release => {
                state.budget.releases -= 1;
                state.catalog.index += 1;
                state.catalog.free += 1;
                state.untold.push(Event::Capacity(state.catalog.index));
            }
            Action::Tell => {
                let event = state.untold.remove(0);
                state.tell(event);
            }
            Action::Dequeue(at) => {
                let delivery = state.broker.dequeue(state.now)?;
                state.workers[at] = Worker::Planning { delivery, seen: state.catalog.clone() };
            }
            Action::Propose(at) => state.propose(self, at),
            Action::Apply => state.apply(),
            Action::Answer(at) => state.answer(at),
            Action::Crash(at) => {
                state.budget.crashes -= 1;
                state.workers[at] = Worker::Idle;
                state.plans.iter_mut().filter(|plan| plan.worker == Some(at)).for_each(|plan| plan.worker = None);
            }
            Action::Elect => {
                state.budget.elections -= 1;
                state.elect();
            }
            Action::PassTime => {
                state.now = state.broker.next_due()?;
                state.budget.slow -= u8::from(state.is_held());
                state.broker.tick(state.now);
            }
            Action::FollowUp => state.follow_up(),
        }
        (state != *before).then_some(state)
    }

    fn properties(&self) -> Vec<Property<Self>> {
        vec![
            Property::always("no slot is filled twice", |_, state: &State| {
                state.catalog.placed.values().all(|allocs| *allocs == 1)
            }),
            Property::always("no room is given away twice", |world: &World, state: &State| {
                let released = world.budget.releases - state.budget.releases;
                state.catalog.placed.len() + usize::from(state.catalog.free) == usize::from(world.capacity + released)
            }),
            Property::always("no evaluation is lost", |world: &World, state: &State| {
                let mut actions = Vec::new();
                world.actions(state, &mut actions);
                !actions.is_empty() || is_settled(state)
            }),
            Property::sometimes("all there is to place is placed", |world: &World, state: &State| {
                state.catalog.placed.len() == usize::from(world.jobs * world.slots)
            }),
        ]
    }
}

/// Where nothing more can happen: what was asked for is there, or waits for room that there is not.
fn is_settled(state: &State) -> bool {
    let open = state.catalog.evals.values().filter(|eval| eval.status != EvalStatusKey::Ended);
    let blocked_for_a_reason = |eval: &Eval| eval.status == EvalStatusKey::Blocked && state.catalog.free == 0;
    open.into_iter().all(blocked_for_a_reason)
}

#[track_caller]
fn explore(world: World) {
    let checker = world.checker().threads(2).spawn_bfs().join();
    println!("{} states, {} distinct", checker.state_count(), checker.unique_state_count());
    checker.assert_properties();
}

#[test]
fn every_interleaving_of_two_workers_and_scarce_room() {
    let budget = Budget { submissions: 2, releases: 1, crashes: 0, slow: 0, elections: 0 };
    explore(World { jobs: 2, slots: 1, workers: 2, capacity: 1, budget });
}

#[test]
fn every_interleaving_around_a_worker_that_dies() {
    let budget = Budget { submissions: 2, releases: 1, crashes: 1, slow: 0, elections: 0 };
    explore(World { jobs: 1, slots: 2, workers: 2, capacity: 1, budget });
}

#[test]
fn every_interleaving_around_a_worker_that_is_slow() {
    let budget = Budget { submissions: 1, releases: 1, crashes: 0, slow: 1, elections: 0 };
    explore(World { jobs: 1, slots: 2, workers: 2, capacity: 1, budget });
}

#[test]
fn every_interleaving_around_a_change_of_leader() {
    let budget = Budget { submissions: 2, releases: 1, crashes: 0, slow: 0, elections: 1 };
    explore(World { jobs: 1, slots: 2, workers: 2, capacity: 1, budget });
}
