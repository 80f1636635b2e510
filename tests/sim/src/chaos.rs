//! What goes wrong, and the clients that go on meanwhile.

use std::collections::BTreeSet;

use consensus::MembershipChange;
use rand::Rng;
use rand::seq::IndexedRandom;

use crate::network::Weather;
use crate::world::{Outcome, SERVERS, World};

/// Faults and client requests for `duration` of virtual time.
pub fn rage(world: &mut World, duration: u64) -> Outcome {
    let end = world.now + duration;
    let mut next_fault = world.now;
    while world.now < end {
        let next_request = world.now + world.rng.random_range(1..60);
        while world.advance(next_request)? {}
        request(world)?;
        disturb_election(world)?;
        if world.now >= next_fault {
            fault(world)?;
            world.invariants.on_interval(&world.nodes)?;
            next_fault = world.now + world.rng.random_range(100..1500);
        }
    }
    Ok(())
}

/// Everything works again, and everybody is up.
pub fn heal(world: &mut World) -> Outcome {
    world.cuts.heal();
    world.weather = Weather::CALM;
    world.fsync_max_ms.clear();
    SERVERS.iter().try_for_each(|server| world.start(*server))
}

fn request(world: &mut World) -> Outcome {
    if world.rng.random_bool(0.3) { world.read() } else { world.write() }
}

/// Votes are the promises that a crash is most likely to break, so servers reboot above all while nobody leads.
fn disturb_election(world: &mut World) -> Outcome {
    let reboots = world.leader().is_none() && world.rng.random_bool(0.15);
    let server = SERVERS.choose(&mut world.rng).copied().unwrap_or(1);
    if !reboots || world.node(server).running.is_none() {
        return Ok(());
    }
    world.crash(server);
    world.start(server)
}

fn fault(world: &mut World) -> Outcome {
    let server = SERVERS.choose(&mut world.rng).copied().unwrap_or(1);
    match world.rng.random_range(0..20) {
        0..=3 => crash(world, server),
        4 => SERVERS.iter().for_each(|server| crash(world, *server)),
        5 => crash_leader(world),
        6..=8 => return SERVERS.iter().try_for_each(|server| world.start(*server)),
        9..=11 => split(world),
        12..=13 => world.cuts.heal(),
        14 => world.weather = Weather::drawn(&mut world.rng),
        15 => world.weather = Weather::CALM,
        16 => slow_disk(world, server),
        17 => return world.transfer(server),
        _ => return change(world, server),
    }
    Ok(())
}

fn crash(world: &mut World, server: u64) {
    if world.node(server).running.is_some() {
        world.crash(server);
    }
}

fn crash_leader(world: &mut World) {
    if let Some(leader) = world.leader() {
        world.crash(leader);
    }
}

fn split(world: &mut World) {
    let side: BTreeSet<u64> = SERVERS.into_iter().filter(|_| world.rng.random_bool(0.4)).collect();
    let both_ways = world.rng.random_bool(0.7);
    world.cuts.split(&side, &SERVERS, both_ways);
}

/// From a busy disk to one that hangs for seconds.
fn slow_disk(world: &mut World, server: u64) {
    let max = [8, 60, 400, 5000].choose(&mut world.rng).copied().unwrap_or(8);
    world.fsync_max_ms.insert(server, max);
}

fn change(world: &mut World, server: u64) -> Outcome {
    let change = match world.rng.random_range(0..7) {
        0..=2 => MembershipChange::AddLearner(server),
        3..=5 => MembershipChange::Promote(server),
        _ => MembershipChange::Remove(server),
    };
    world.change(change)
}
