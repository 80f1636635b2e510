//! Servers built wrong on purpose: each must be found out, or the invariants prove nothing.
#![expect(clippy::panic, reason = "a test stops at the first surprise")]

use sim::Mutation;
use sim::runs::run_many;

fn assert_found(mutation: Mutation, seeds: u64) {
    // Raft's own assertions fire on lost promises, by the hundred; their text is in the violation.
    std::panic::set_hook(Box::new(|_| {}));
    let found = run_many(0, seeds, mutation);
    let _ = std::panic::take_hook();
    let (seed, violation) = found.unwrap_or_else(|| panic!("{mutation:?} passes {seeds} seeds"));
    println!("{mutation:?} found with seed {seed}: {}: {}", violation.invariant, violation.what);
}

#[test]
fn acknowledging_before_the_fsync_is_found() {
    assert_found(Mutation::AckBeforeFsync, 200);
}

#[test]
#[ignore = "needs some hundred seeds, up to a minute: cargo test -p sim --test mutations -- --ignored"]
fn forgetting_the_vote_is_found() {
    assert_found(Mutation::ForgetVote, 2000);
}

#[test]
fn reading_without_asking_a_quorum_is_found() {
    assert_found(Mutation::ReadWithoutQuorum, 200);
}

#[test]
fn applying_twice_is_found() {
    assert_found(Mutation::ApplyTwice, 200);
}
