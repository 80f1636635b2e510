//! Liveness under faults: the promises of two and five seconds, and nobody given up who is alive.
#![expect(clippy::panic, reason = "a test stops at the first surprise")]

use sim::liveness::{Summary, run, run_lasting_storm, run_storm};
use sim::runs::seeds;

fn each_seed(count: u64, one: impl Fn(u64) -> Result<Summary, sim::Violation>) -> Vec<Summary> {
    let (first, count) = seeds(count);
    let judge = |seed| {
        one(seed).unwrap_or_else(|found| {
            panic!("{}: {}\nrepeat with: SEED={seed} cargo test -p sim --test liveness", found.invariant, found.what)
        })
    };
    (first..first + count).map(judge).collect()
}

#[test]
fn who_is_gone_is_off_in_two_seconds_and_who_is_alive_is_not() {
    let done = each_seed(24, |seed| run(seed, 3 + (seed as usize * 7) % 30));
    let total = |of: fn(&Summary) -> u64| done.iter().map(of).sum::<u64>();
    let (cuts, downs, suspects) = (total(|s| s.cuts), total(|s| s.downs), total(|s| s.suspects));
    assert!(
        done.len() == 1 || cuts > 20 && downs > 10 && suspects > 10,
        "{cuts} cuts, {downs} downs, {suspects} suspects"
    );
}

#[test]
fn it_is_the_same_with_thousands_of_nodes_and_each_sends_as_few_probes() {
    for nodes in [5, 50, 500] {
        let probes_a_node = run(1, nodes).unwrap().probes as f64 / nodes as f64;
        assert!(probes_a_node < 3.2 * 60_000.0 / 350.0, "{probes_a_node} probes a node of {nodes}");
    }
}

#[test]
fn a_storm_holds_replacement_and_says_so() {
    let storms: u64 = each_seed(8, |seed| run_storm(seed, 10 + seed as usize)).iter().map(|s| s.storms).sum();
    assert!(storms > 0);
    each_seed(2, |seed| run_lasting_storm(seed, 10));
}

#[test]
fn a_seed_repeats_its_run() {
    assert_eq!(run(3, 12).unwrap(), run(3, 12).unwrap());
}
