//! The shipping core under faults: no invariant breaks, and after healing the group goes on.

use std::time::Instant;

use sim::Mutation;
use sim::runs::{run, run_many, seeds};

#[test]
fn invariants_hold_under_faults_and_the_group_recovers() {
    let (first, count) = seeds(240);
    let begun = Instant::now();
    if let Some((seed, violation)) = run_many(first, count, Mutation::None) {
        panic!("{}: {}\nrepeat with: SEED={seed} cargo test -p sim --test faults", violation.invariant, violation.what);
    }
    println!("{count} seeds from {first} in {:?}", begun.elapsed());
}

#[test]
fn a_seed_repeats_its_run() {
    let (first, _) = seeds(1);
    assert_eq!(run(first, Mutation::None).unwrap(), run(first, Mutation::None).unwrap());
}

/// A simulator in which nothing gets through would find nothing wrong.
#[test]
fn runs_get_work_done() {
    let summaries: Vec<_> = (0..10).map(|seed| run(seed, Mutation::None).unwrap()).collect();
    let acknowledged: usize = summaries.iter().map(|summary| summary.acknowledged).sum();
    let reads: u64 = summaries.iter().map(|summary| summary.reads).sum();
    assert!(acknowledged > 500 && reads > 300, "{acknowledged} writes, {reads} reads");
}
