//! The event loop: virtual time, the queue of what happens next, and what each event does to a server.

use std::collections::BTreeMap;

use consensus::{Applied, Effect, MembershipChange, Standing};
use rand::seq::IndexedRandom;
use rand::{Rng, SeedableRng};
use rand_chacha::ChaCha8Rng;

use crate::invariants::Invariants;
use crate::network::{Cuts, Weather, arrivals};
use crate::node::{Machine, Node, TICK_MS};
use crate::oracle::Oracle;
use crate::{Mutation, Violation};

pub const FOUNDERS: [u64; 3] = [1, 2, 3];
pub const SERVERS: [u64; 5] = [1, 2, 3, 4, 5];

pub struct World {
    pub rng: ChaCha8Rng,
    pub mutation: Mutation,
    pub now: u64,
    pub nodes: Vec<Node>,
    pub weather: Weather,
    pub cuts: Cuts,
    pub oracle: Oracle,
    pub invariants: Invariants,
    /// Per server: how long its fsyncs take at most.
    pub fsync_max_ms: BTreeMap<u64, u64>,
    pub events: u64,
    queue: BTreeMap<(u64, u64), Event>,
    queued: u64,
    /// (server, index) -> (term, command): whom to tell when it is applied there.
    waiting: BTreeMap<(u64, u64), (u64, u64)>,
}

pub enum Event {
    Tick { server: u64, run: u64 },
    Arrive { from: u64, to: u64, message: Vec<u8> },
    Fsync { server: u64, run: u64 },
}

pub type Outcome = Result<(), Violation>;

impl World {
    pub fn new(seed: u64, mutation: Mutation) -> World {
        let mut nodes: Vec<Node> = SERVERS.iter().map(|id| Node::new(*id)).collect();
        nodes.iter_mut().filter(|node| FOUNDERS.contains(&node.id)).for_each(|node| node.found(&FOUNDERS));
        World {
            rng: ChaCha8Rng::seed_from_u64(seed),
            mutation,
            now: 0,
            nodes,
            weather: Weather::CALM,
            cuts: Cuts::default(),
            oracle: Oracle::default(),
            invariants: Invariants::default(),
            fsync_max_ms: BTreeMap::new(),
            events: 0,
            queue: BTreeMap::new(),
            queued: 0,
            waiting: BTreeMap::new(),
        }
    }

    /// Lets the next event happen; false if `until` comes first.
    pub fn advance(&mut self, until: u64) -> Result<bool, Violation> {
        let due = self.queue.first_key_value().map_or(u64::MAX, |((at, _), _)| *at);
        if due > until {
            self.now = until;
            return Ok(false);
        }
        if let Some(((at, _), event)) = self.queue.pop_first() {
            self.now = at;
            self.events += 1;
            self.happen(event)?;
        }
        Ok(true)
    }

    fn happen(&mut self, event: Event) -> Outcome {
        let server = match event {
            Event::Tick { server, run } => self.tick(server, run),
            Event::Arrive { from, to, message } => self.arrive(from, to, &message),
            Event::Fsync { server, run } => self.fsync_ends(server, run),
        };
        match server {
            Some(server) => self.perform_effects(server),
            None => Ok(()),
        }
    }

    fn schedule(&mut self, after: u64, event: Event) {
        self.queued += 1;
        self.queue.insert((self.now + after, self.queued), event);
    }

    pub fn start(&mut self, server: u64) -> Outcome {
        if self.node(server).running.is_some() {
            return Ok(());
        }
        let seed = self.rng.random();
        let node = self.node(server);
        node.start(seed).map_err(|what| Violation { invariant: "a crash leaves a usable disk", what })?;
        let run = node.run;
        let index = node.running.as_ref().map_or(0, |running| running.machine.index);
        self.invariants.on_restore(server, index);
        self.schedule(1, Event::Tick { server, run });
        self.perform_effects(server)
    }

    pub fn crash(&mut self, server: u64) {
        let unsynced = self.node(server).disk.unsynced();
        let kept = self.rng.random_range(0..=unsynced);
        let mutation = self.mutation;
        self.node(server).crash(kept, mutation);
        self.forget_waiting(server);
    }

    pub fn node(&mut self, server: u64) -> &mut Node {
        &mut self.nodes[server as usize - 1]
    }

    pub fn leader(&self) -> Option<u64> {
        let term = |node: &&Node| node.running.as_ref().map(|running| running.core.term());
        self.nodes.iter().filter(|node| node.leads()).max_by_key(term).map(|node| node.id)
    }

    /// A client writes one to three numbers, mostly through a leader.
    pub fn write(&mut self) -> Outcome {
        let leaders: Vec<u64> = self.nodes.iter().filter(|node| node.leads()).map(|node| node.id).collect();
        let anyone = self.rng.random_bool(0.05);
        let candidates = if anyone || leaders.is_empty() { SERVERS.to_vec() } else { leaders };
        let server = candidates.choose(&mut self.rng).copied().unwrap_or(1);
        let count = self.rng.random_range(1..=3);
        let commands: Vec<u64> = (0..count).map(|_| self.oracle.new_command()).collect();
        self.propose(server, &commands)
    }

    pub fn propose(&mut self, server: u64, commands: &[u64]) -> Outcome {
        let encoded = commands.iter().map(|command| command.to_le_bytes().to_vec()).collect();
        let Some(running) = self.node(server).running.as_mut() else { return Ok(()) };
        match running.core.propose(encoded) {
            Ok(position) => {
                for (index, command) in (position.index..).zip(commands) {
                    self.waiting.insert((server, index), (position.term, *command));
                }
            }
            Err(_) => commands.iter().for_each(|command| self.oracle.refused(*command)),
        }
        self.perform_effects(server)
    }

    pub fn read(&mut self) -> Outcome {
        let server = SERVERS.choose(&mut self.rng).copied().unwrap_or(1);
        if self.node(server).running.is_none() {
            return Ok(());
        }
        let read = self.oracle.read_begins();
        let skips_quorum = self.mutation == Mutation::ReadWithoutQuorum && self.node(server).leads();
        if let Some(running) = self.node(server).running.as_mut() {
            if skips_quorum {
                running.reads.push((read, 0));
            } else {
                running.core.read_index(read);
            }
        }
        self.answer_reads(server)?;
        self.perform_effects(server)
    }

    pub fn change(&mut self, change: MembershipChange) -> Outcome {
        let Some(leader) = self.leader() else { return Ok(()) };
        if let Some(running) = self.node(leader).running.as_mut() {
            // A refusal is an answer too; what is accepted is judged by the invariants.
            let _ = running.core.change(change);
        }
        self.perform_effects(leader)
    }

    pub fn transfer(&mut self, to: u64) -> Outcome {
        let Some(leader) = self.leader() else { return Ok(()) };
        if let Some(running) = self.node(leader).running.as_mut() {
            running.core.transfer_leader(to);
        }
        self.perform_effects(leader)
    }

    fn tick(&mut self, server: u64, run: u64) -> Option<u64> {
        // Each server's clock has its own pace, a tenth off at most.
        let pace = TICK_MS - TICK_MS / 10 + server * TICK_MS / 25;
        let node = self.node(server);
        if node.run != run {
            return None;
        }
        node.running.as_mut()?.core.tick();
        self.schedule(pace, Event::Tick { server, run });
        Some(server)
    }

    fn arrive(&mut self, from: u64, to: u64, message: &[u8]) -> Option<u64> {
        if !self.cuts.carries(from, to) {
            return None;
        }
        // Peers send nothing that is refused; if they did, convergence would show it.
        let _ = self.node(to).running.as_mut()?.core.step(from, message);
        Some(to)
    }

    fn fsync_ends(&mut self, server: u64, run: u64) -> Option<u64> {
        let ack = self.mutation != Mutation::AckBeforeFsync;
        let node = self.node(server);
        if node.run != run {
            return None;
        }
        let running = node.running.as_mut()?;
        let covered = running.fsync.take()?;
        node.disk.sync_first(covered);
        let last = running.writes.drain(..covered).next_back()?;
        if ack {
            running.core.persisted(last);
        }
        self.begin_fsync(server);
        Some(server)
    }

    fn begin_fsync(&mut self, server: u64) {
        let max = self.fsync_max_ms.get(&server).copied().unwrap_or(8);
        let takes = self.rng.random_range(1..=max);
        let node = self.node(server);
        let run = node.run;
        let Some(running) = node.running.as_mut() else { return };
        if running.fsync.is_none() && !running.writes.is_empty() {
            running.fsync = Some(running.writes.len());
            self.schedule(takes, Event::Fsync { server, run });
        }
    }

    fn perform_effects(&mut self, server: u64) -> Outcome {
        loop {
            let Some(running) = self.node(server).running.as_mut() else { return Ok(()) };
            let effects = running.take_effects();
            if effects.is_empty() {
                return self.invariants.on_event(&self.nodes[server as usize - 1], &self.oracle);
            }
            effects.into_iter().try_for_each(|effect| self.perform(server, effect))?;
        }
    }

    fn perform(&mut self, server: u64, effect: Effect) -> Outcome {
        match effect {
            Effect::Persist(write) => self.persist(server, write),
            Effect::Send { to, message } => self.send(server, to, message),
            Effect::Apply(entries) => return self.apply(server, &entries),
            Effect::Restore { index, data } => return self.restore(server, index, &data),
            Effect::TakeSnapshot { index } => self.take_snapshot(server, index),
            Effect::ReadReady { reads, index } => return self.read_ready(server, &reads, index),
            Effect::ReadFailed { .. } => {}
            Effect::Changed(standing) => self.on_changed(server, &standing),
            Effect::Halt { reason } => return Err(Violation { invariant: "no server halts", what: reason }),
        }
        Ok(())
    }

    fn persist(&mut self, server: u64, write: consensus::Write) {
        let early = self.mutation == Mutation::AckBeforeFsync;
        let id = write.id;
        let node = self.node(server);
        node.write(write);
        if let Some(running) = node.running.as_mut() {
            running.writes.push(id);
            if early {
                running.core.persisted(id);
            }
        }
        self.begin_fsync(server);
    }

    fn send(&mut self, from: u64, to: u64, message: Vec<u8>) {
        for after in arrivals(&mut self.rng, &self.weather) {
            self.schedule(after, Event::Arrive { from, to, message: message.clone() });
        }
    }

    fn apply(&mut self, server: u64, entries: &[Applied]) -> Outcome {
        self.invariants.on_apply(server, entries)?;
        for entry in entries {
            let twice = self.mutation == Mutation::ApplyTwice && self.rng.random_bool(0.001);
            if let Some(running) = self.node(server).running.as_mut() {
                running.machine.apply(entry);
                if twice {
                    running.machine.apply(entry);
                }
            }
            self.acknowledge(server, entry);
        }
        self.answer_reads(server)
    }

    fn acknowledge(&mut self, server: u64, entry: &Applied) {
        match self.waiting.remove(&(server, entry.index)) {
            Some((term, command)) if term == entry.term => self.oracle.acknowledged(command, entry.index),
            _ => {}
        }
    }

    fn restore(&mut self, server: u64, index: u64, data: &[u8]) -> Outcome {
        let machine = Machine::decode(data);
        if machine.index != index {
            let what = format!("the snapshot said to be at {index} is at {}", machine.index);
            return Err(Violation { invariant: "snapshots are what they say", what });
        }
        self.invariants.on_restore(server, index);
        if let Some(running) = self.node(server).running.as_mut() {
            running.machine = machine;
        }
        self.answer_reads(server)
    }

    fn take_snapshot(&mut self, server: u64, index: u64) {
        if let Some(running) = self.node(server).running.as_mut() {
            let data = running.machine.encode();
            running.core.snapshot_taken(index, data);
        }
    }

    fn read_ready(&mut self, server: u64, reads: &[u64], index: u64) -> Outcome {
        if let Some(running) = self.node(server).running.as_mut() {
            running.reads.extend(reads.iter().map(|read| (*read, index)));
        }
        self.answer_reads(server)
    }

    fn answer_reads(&mut self, server: u64) -> Outcome {
        let Some(running) = self.node(server).running.as_mut() else { return Ok(()) };
        let (reads, applied) = (running.answerable(), running.machine.index);
        reads.into_iter().try_for_each(|read| self.oracle.read_answered(read, applied))
    }

    fn on_changed(&mut self, server: u64, standing: &Standing) {
        let leads = standing.role == Some(consensus::Role::Leader);
        self.waiting.retain(|(at, _), (term, _)| *at != server || (leads && *term == standing.term));
    }

    fn forget_waiting(&mut self, server: u64) {
        self.waiting.retain(|(at, _), _| *at != server);
    }
}
