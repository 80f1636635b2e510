//! What the broker promises, case by case and for any order of events.

use super::*;
use model::{EvalTrigger, NodeId};
use proptest::prelude::*;

const START: Timestamp = Timestamp(1_000_000_000_000);

struct Bench {
    broker: Broker,
    now: Timestamp,
}

impl Bench {
    fn new() -> Self {
        Self { broker: Broker::new(Rules::DEFAULT, 1, Index(0)), now: START }
    }

    fn after(&mut self, secs: u64) -> &mut Self {
        self.now = self.now.plus(Duration::from_secs(secs));
        self.broker.tick(self.now);
        self
    }

    fn pending(&mut self, number: u64, job: &str, priority: u8) {
        self.broker.observe(&eval(number, job, priority), self.now, Interest::anything);
    }

    fn blocked(&mut self, number: u64, seen: u64, interest: Interest) {
        let eval = Evaluation { status: EvalStatus::Blocked, snapshot_index: Index(seen), ..eval(number, "web", 50) };
        self.broker.observe(&eval, self.now, || interest);
    }

    fn next(&mut self) -> Option<Delivery> {
        self.broker.dequeue(self.now)
    }

    /// The numbers of what is handed out now, each acknowledged before the next is asked for.
    fn drain(&mut self) -> Vec<u64> {
        let mut order = Vec::new();
        while let Some(delivery) = self.next() {
            order.push(number_of(delivery.eval_id));
            self.broker.ack(delivery.eval_id, delivery.token, Done::Concluded).unwrap();
        }
        order
    }
}

/// Ids that keep their number readable: random bits but for the version marks.
fn eval_id(number: u64) -> EvalId {
    EvalId::from_random(u128::from(number))
}

fn number_of(id: EvalId) -> u64 {
    (0..10_000).find(|number| eval_id(*number) == id).unwrap()
}

fn eval(number: u64, job: &str, priority: u8) -> Evaluation {
    Evaluation {
        id: eval_id(number),
        job_id: JobId(job.to_owned()),
        priority,
        trigger: EvalTrigger::JobRegister,
        status: EvalStatus::Pending,
        status_description: String::new(),
        wait_until: Timestamp::NEVER,
        failures: BTreeMap::new(),
        queued: BTreeMap::new(),
        snapshot_index: Index(0),
        created_at: START,
        modified_at: START,
        created_at_index: Index(number),
        modified_at_index: Index(number),
    }
}

fn node(number: u128) -> NodeId {
    NodeId::from_random(number)
}

fn capacity(node_number: u128, class: Class) -> Capacity {
    Capacity { node: node(node_number), class }
}

#[test]
fn priority_goes_first_then_age() {
    let mut bench = Bench::new();
    for (number, priority) in [(1, 50), (2, 80), (3, 50), (4, 80)] {
        bench.pending(number, &format!("job-{number}"), priority);
    }
    assert_eq!(bench.drain(), [2, 4, 1, 3]);
}

#[test]
fn a_job_has_one_outstanding_and_its_oldest_goes_with_the_highest_priority() {
    let mut bench = Bench::new();
    bench.pending(1, "web", 20);
    bench.pending(2, "db", 50);
    bench.pending(3, "web", 90);
    let first = bench.next().unwrap();
    assert_eq!(number_of(first.eval_id), 1);
    assert_eq!(number_of(bench.next().unwrap().eval_id), 2);
    assert_eq!(bench.next(), None, "the job has one outstanding");
    bench.broker.ack(first.eval_id, first.token, Done::Concluded).unwrap();
    assert_eq!(number_of(bench.next().unwrap().eval_id), 3);
}

#[test]
fn what_is_not_due_waits() {
    let mut bench = Bench::new();
    let late = Evaluation { wait_until: START.plus(Duration::from_secs(30)), ..eval(1, "web", 50) };
    bench.broker.observe(&late, bench.now, Interest::anything);
    assert_eq!((bench.next(), bench.broker.next_due()), (None, Some(late.wait_until)));
    assert_eq!(bench.after(29).drain(), []);
    assert_eq!(bench.after(1).drain(), [1]);
}

#[test]
fn what_nobody_answers_for_comes_again_a_little_later_and_the_late_answer_is_told_so() {
    let mut bench = Bench::new();
    bench.pending(1, "web", 50);
    let lost = bench.next().unwrap();
    assert_eq!(bench.after(59).next(), None);
    assert_eq!(bench.after(1).next(), None);
    let again = bench.after(1).next().unwrap();
    assert_eq!((again.attempt, again.eval_id), (2, lost.eval_id));
    assert_eq!(bench.broker.ack(lost.eval_id, lost.token, Done::Concluded), Err(Stale { id: lost.eval_id }));
    assert_eq!(bench.broker.nack(lost.eval_id, lost.token, bench.now), Err(Stale { id: lost.eval_id }));
    assert_eq!(bench.broker.extend(lost.eval_id, lost.token, bench.now), Err(Stale { id: lost.eval_id }));
    assert_eq!(bench.broker.ack(again.eval_id, again.token, Done::Concluded), Ok(()));
    assert_eq!(bench.broker.counts(), Counts::default());
}

#[test]
fn who_is_still_at_it_is_left_alone() {
    let mut bench = Bench::new();
    bench.pending(1, "web", 50);
    let slow = bench.next().unwrap();
    for _ in 0..5 {
        bench.after(50);
        bench.broker.extend(slow.eval_id, slow.token, bench.now).unwrap();
    }
    assert_eq!(bench.broker.counts().outstanding, 1);
    assert_eq!(bench.broker.ack(slow.eval_id, slow.token, Done::Concluded), Ok(()));
}

#[test]
fn after_three_deliveries_it_has_failed_until_the_state_says_so() {
    let mut bench = Bench::new();
    bench.pending(1, "web", 50);
    for wait in [0, 1, 20] {
        let delivery = bench.after(wait).next().expect("another try");
        bench.broker.nack(delivery.eval_id, delivery.token, bench.now).unwrap();
    }
    assert_eq!(bench.after(100).next(), None);
    assert_eq!(bench.broker.failed().map(number_of).collect::<Vec<_>>(), [1]);
    // The job is not held up by it.
    bench.pending(2, "web", 50);
    assert_eq!(bench.drain(), [2]);
    bench.broker.observe_end(eval_id(1));
    assert_eq!(bench.broker.counts(), Counts::default());
}

#[test]
fn what_ends_while_it_waits_is_not_delivered() {
    let mut bench = Bench::new();
    bench.pending(1, "web", 50);
    bench.pending(2, "web", 50);
    bench.broker.observe_end(eval_id(1));
    assert_eq!(bench.drain(), [2]);
}

#[test]
fn the_job_of_a_canceled_delivery_is_free_only_when_its_worker_is() {
    let mut bench = Bench::new();
    bench.pending(1, "web", 50);
    let delivery = bench.next().unwrap();
    bench.pending(2, "web", 50);
    bench.broker.observe_end(eval_id(1));
    assert_eq!(bench.next(), None);
    bench.broker.nack(delivery.eval_id, delivery.token, bench.now).unwrap();
    assert_eq!(bench.drain(), [2]);
    assert_eq!(bench.broker.counts(), Counts::default());
}

#[test]
fn blocked_ones_are_woken_by_class_or_node_and_by_nothing_else() {
    let mut bench = Bench::new();
    bench.blocked(1, 10, Interest::AnyBut(BTreeSet::from([7])));
    bench.broker.capacity_changed(capacity(1, 7), Index(11));
    assert_eq!(bench.drain(), []);
    bench.broker.capacity_changed(capacity(2, 8), Index(12));
    assert_eq!(bench.drain(), [1]);
    bench.blocked(2, 20, Interest::Nodes(BTreeSet::from([node(5)])));
    bench.broker.capacity_changed(capacity(4, 7), Index(21));
    assert_eq!(bench.drain(), []);
    bench.broker.capacity_changed(capacity(5, 7), Index(22));
    assert_eq!(bench.drain(), [2]);
}

#[test]
fn capacity_that_came_after_the_plans_state_is_not_missed() {
    let mut bench = Bench::new();
    bench.broker.capacity_changed(capacity(1, 7), Index(15));
    bench.blocked(1, 14, Interest::anything());
    assert_eq!(bench.drain(), [1]);
    bench.blocked(2, 15, Interest::anything());
    assert_eq!(bench.drain(), []);
    bench.blocked(3, 14, Interest::AnyBut(BTreeSet::from([7])));
    assert_eq!(bench.drain(), []);
}

#[test]
fn what_is_still_blocked_waits_for_the_same_again() {
    let mut bench = Bench::new();
    bench.blocked(1, 10, Interest::AnyBut(BTreeSet::from([7])));
    bench.broker.capacity_changed(capacity(1, 8), Index(11));
    let delivery = bench.next().unwrap();
    // More becomes free while the worker looks at state 11.
    bench.broker.capacity_changed(capacity(2, 8), Index(13));
    bench.broker.ack(delivery.eval_id, delivery.token, Done::StillBlocked(Index(11))).unwrap();
    let again = bench.next().expect("the newer capacity was not seen");
    bench.broker.ack(again.eval_id, again.token, Done::StillBlocked(Index(13))).unwrap();
    bench.broker.capacity_changed(capacity(1, 7), Index(14));
    assert_eq!((bench.next(), bench.broker.counts().blocked), (None, 1));
}

#[test]
fn what_becomes_blocked_may_be_heard_of_before_or_after_the_answer() {
    for heard_first in [true, false] {
        let mut bench = Bench::new();
        bench.pending(1, "web", 50);
        let delivery = bench.next().unwrap();
        if heard_first {
            bench.blocked(1, 5, Interest::anything());
        }
        bench.broker.ack(delivery.eval_id, delivery.token, Done::Concluded).unwrap();
        if !heard_first {
            bench.blocked(1, 5, Interest::anything());
        }
        assert_eq!(bench.broker.counts(), Counts { blocked: 1, ..Counts::default() });
    }
}

#[test]
fn forgotten_changes_wake_rather_than_get_lost() {
    let mut bench = Bench::new();
    for number in 0..5_000 {
        bench.broker.capacity_changed(capacity(number, 1), Index(100 + number as u64));
    }
    bench.blocked(1, 50, Interest::Nodes(BTreeSet::from([node(9_999)])));
    assert_eq!(bench.drain(), [1]);
    bench.blocked(2, 5_100, Interest::anything());
    assert_eq!(bench.drain(), []);
}

#[derive(Clone, Debug)]
enum Step {
    Enqueue { job: u8, priority: u8, delay: u8 },
    Dequeue,
    Answer { which: u8, good: bool },
    Wait(u8),
    Capacity(u8),
}

fn step() -> impl Strategy<Value = Step> {
    prop_oneof![
        (0..4u8, 1..100u8, 0..20u8).prop_map(|(job, priority, delay)| Step::Enqueue { job, priority, delay }),
        Just(Step::Dequeue),
        (any::<u8>(), any::<bool>()).prop_map(|(which, good)| Step::Answer { which, good }),
        (0..90u8).prop_map(Step::Wait),
        (0..3u8).prop_map(Step::Capacity),
    ]
}

proptest! {
    /// Whatever happens, no job has two outstanding, and in the end everything was delivered, or given up as failed.
    #[test]
    fn nothing_is_lost_and_no_job_has_two(steps in proptest::collection::vec(step(), 0..80)) {
        let mut bench = Bench::new();
        let (mut number, mut out, mut open) = (0, Vec::<Delivery>::new(), BTreeSet::new());
        for step in steps {
            match step {
                Step::Enqueue { job, priority, delay } => {
                    number += 1;
                    let wait_until = bench.now.plus(Duration::from_secs(u64::from(delay)));
                    let eval = Evaluation { wait_until, ..eval(number, &format!("job-{job}"), priority) };
                    bench.broker.observe(&eval, bench.now, Interest::anything);
                    open.insert(eval.id);
                }
                Step::Dequeue => out.extend(bench.next()),
                Step::Answer { which, good } if !out.is_empty() => {
                    let delivery = out.swap_remove(usize::from(which) % out.len());
                    let answered = match good {
                        true => bench.broker.ack(delivery.eval_id, delivery.token, Done::Concluded),
                        false => bench.broker.nack(delivery.eval_id, delivery.token, bench.now),
                    };
                    if good && answered.is_ok() {
                        open.remove(&delivery.eval_id);
                    }
                }
                Step::Answer { .. } => {}
                Step::Wait(secs) => drop(bench.after(u64::from(secs))),
                Step::Capacity(class) => bench.broker.capacity_changed(capacity(1, u64::from(class)), Index(number)),
            }
            let jobs: Vec<&JobId> = bench.broker.jobs.iter().filter(|(_, q)| q.outstanding.is_some()).map(|(j, _)| j).collect();
            prop_assert_eq!(jobs.len(), bench.broker.counts().outstanding);
        }
        for _ in 0..1000 {
            bench.after(61);
            while let Some(delivery) = bench.next() {
                bench.broker.ack(delivery.eval_id, delivery.token, Done::Concluded).unwrap();
                open.remove(&delivery.eval_id);
            }
        }
        let failed: BTreeSet<EvalId> = bench.broker.failed().collect();
        prop_assert_eq!(open, failed);
        prop_assert!(bench.broker.ready.is_empty() && bench.broker.delayed.is_empty() && bench.broker.jobs.is_empty());
    }
}
