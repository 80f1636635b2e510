//! One run from one seed, and many of them.

use std::panic::{AssertUnwindSafe, catch_unwind};
use std::thread;

use crate::node::Machine;
use crate::world::{FOUNDERS, Outcome, World};
use crate::{Mutation, Violation, chaos};

/// What a run came to; equal for equal seeds.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Summary {
    pub events: u64,
    pub acknowledged: usize,
    pub reads: u64,
    pub machine: Machine,
}

const CHAOS_MS: u64 = 20_000;
const CONVERGENCE_MS_MAX: u64 = 60_000;

/// Faults, then healing, then convergence. A panic inside Raft counts as a violation.
pub fn run(seed: u64, mutation: Mutation) -> Result<Summary, Violation> {
    let caught = catch_unwind(AssertUnwindSafe(|| attempt(seed, mutation)));
    caught.unwrap_or_else(|panic| Err(Violation { invariant: "raft's own assertions", what: text(&*panic) }))
}

/// Runs `count` seeds from `first` on two threads; the first violation by seed, if any.
pub fn run_many(first: u64, count: u64, mutation: Mutation) -> Option<(u64, Violation)> {
    let lane = |offset: u64| {
        let seeds = (first + offset..first + count).step_by(2);
        move || seeds.map(|seed| (seed, run(seed, mutation))).find_map(|(seed, run)| run.err().map(|v| (seed, v)))
    };
    thread::scope(|scope| {
        let lanes = [scope.spawn(lane(0)), scope.spawn(lane(1))];
        // A lane that is lost has proven nothing: the caller must not read its silence as "no violation".
        let found = |lane: thread::ScopedJoinHandle<'_, _>| lane.join().expect("`run` catches what a run panics with");
        lanes.into_iter().filter_map(found).min_by_key(|(seed, _)| *seed)
    })
}

/// `SEED=n` runs that one, `SEEDS=n` as many as asked; otherwise `count` from 0.
pub fn seeds(count: u64) -> (u64, u64) {
    let number = |name: &str| std::env::var(name).ok().and_then(|value| value.parse().ok());
    match number("SEED") {
        Some(seed) => (seed, 1),
        None => (0, number("SEEDS").unwrap_or(count)),
    }
}

fn attempt(seed: u64, mutation: Mutation) -> Result<Summary, Violation> {
    let mut world = World::new(seed, mutation);
    FOUNDERS.iter().try_for_each(|server| world.start(*server))?;
    chaos::rage(&mut world, CHAOS_MS)?;
    chaos::heal(&mut world)?;
    let machine = converge(&mut world)?;
    world.invariants.on_interval(&world.nodes)?;
    world.oracle.check_final(&machine.commands)?;
    Ok(Summary {
        events: world.events,
        acknowledged: world.oracle.acked().len(),
        reads: world.oracle.reads_answered,
        machine,
    })
}

/// Writes until one write is acknowledged and all members hold the same; the time for that is bounded.
fn converge(world: &mut World) -> Result<Machine, Violation> {
    let end = world.now + CONVERGENCE_MS_MAX;
    let acked_before = world.oracle.acked().len();
    while world.now < end {
        let step = world.now + 500;
        while world.advance(step)? {}
        if world.oracle.acked().len() > acked_before
            && let Some(machine) = agreement(world)?
        {
            return Ok(machine);
        }
        // One write at a time, or the members would never be seen at rest.
        if world.oracle.acked().len() == acked_before {
            probe(world)?;
        }
    }
    Err(Violation { invariant: "convergence", what: format!("no agreement after healing: {}", describe(world)) })
}

fn probe(world: &mut World) -> Outcome {
    let Some(leader) = world.leader() else { return Ok(()) };
    let command = world.oracle.new_command();
    world.propose(leader, &[command])
}

/// The machine that all members hold, once they have applied what the leader has.
fn agreement(world: &World) -> Result<Option<Machine>, Violation> {
    let Some(leader) = world.leader() else { return Ok(None) };
    let leader = &world.nodes[leader as usize - 1];
    let Some(leading) = leader.running.as_ref() else { return Ok(None) };
    let standing = leading.core.current_standing();
    for id in standing.voters.iter().chain(&standing.learners) {
        let Some(member) = world.nodes[*id as usize - 1].running.as_ref() else { return Ok(None) };
        if member.machine.index != leading.machine.index {
            return Ok(None);
        }
        if member.machine != leading.machine {
            let what = format!("servers {} and {id} hold different states at {}", leader.id, member.machine.index);
            return Err(Violation { invariant: "state machine safety", what });
        }
    }
    Ok(Some(leading.machine.clone()))
}

fn describe(world: &World) -> String {
    let one = |node: &crate::node::Node| {
        let running = node.running.as_ref()?;
        let core = &running.core;
        Some(format!("{}: {:?} commit {} applied {}", node.id, core.current_standing(), core.commit(), core.applied()))
    };
    world.nodes.iter().filter_map(one).collect::<Vec<_>>().join("; ")
}

fn text(panic: &(dyn std::any::Any + Send)) -> String {
    let known = panic.downcast_ref::<String>().cloned();
    known.or_else(|| panic.downcast_ref::<&str>().map(|text| (*text).to_owned())).unwrap_or_default()
}
