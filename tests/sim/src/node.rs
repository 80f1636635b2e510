//! One server: the core, its disk and its state machine, wired as the shipping shell wires them.

use consensus::{Applied, Core, CoreConfig, Effect, LogStore, MemoryStore, Payload, Write, genesis};

use crate::Mutation;

pub const ELECTION_TICKS: usize = 10;
pub const TICK_MS: u64 = 50;

/// What is left of a server when its power goes.
pub struct Node {
    pub id: u64,
    pub disk: MemoryStore,
    pub running: Option<Running>,
    /// Grows with each start; timers and fsyncs of an earlier run mean nothing.
    pub run: u64,
}

pub struct Running {
    pub core: Core,
    pub machine: Machine,
    /// Reads that wait until the machine has the index.
    pub reads: Vec<(u64, u64)>,
    /// Ids of the writes handed to the disk, oldest first; `fsync` is what the running one covers.
    pub writes: Vec<u64>,
    pub fsync: Option<usize>,
}

/// Numbers in the order applied; two machines that agree are equal.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Machine {
    pub index: u64,
    pub commands: Vec<u64>,
}

impl Machine {
    pub fn encode(&self) -> Vec<u8> {
        std::iter::once(&self.index).chain(&self.commands).flat_map(|number| number.to_le_bytes()).collect()
    }

    pub fn decode(data: &[u8]) -> Machine {
        let mut numbers = data.as_chunks::<8>().0.iter().map(|chunk| u64::from_le_bytes(*chunk));
        Machine { index: numbers.next().unwrap_or_default(), commands: numbers.collect() }
    }

    pub fn apply(&mut self, entry: &Applied) {
        self.index = entry.index;
        if let Payload::Command(data) = &entry.payload {
            self.commands.extend(command(data));
        }
    }
}

/// The number a client wrote.
pub fn command(data: &[u8]) -> Option<u64> {
    data.try_into().map(u64::from_le_bytes).ok()
}

impl Node {
    pub fn new(id: u64) -> Node {
        Node { id, disk: MemoryStore::default(), running: None, run: 0 }
    }

    pub fn found(&mut self, voters: &[u64]) {
        self.write(genesis(voters, Machine { index: 1, commands: Vec::new() }.encode()));
        self.disk.sync_first(usize::MAX);
    }

    /// Starts from what the disk holds.
    pub fn start(&mut self, seed: u64) -> Result<(), String> {
        self.run += 1;
        let loaded = self.disk.durable();
        let machine = loaded.snapshot.as_ref().map(|snapshot| Machine::decode(&snapshot.data)).unwrap_or_default();
        let core = Core::new(config(self.id, seed), loaded).map_err(|error| error.to_string())?;
        self.running = Some(Running { core, machine, reads: Vec::new(), writes: Vec::new(), fsync: None });
        Ok(())
    }

    /// Power goes; the disk keeps the first `kept` writes of those that no fsync covered.
    pub fn crash(&mut self, kept: usize, mutation: Mutation) {
        let vote_before = self.disk.durable().hard_state;
        self.running = None;
        self.disk.crash(kept);
        if mutation == Mutation::ForgetVote {
            let mut forgotten = self.disk.durable().hard_state;
            forgotten.vote = 0;
            debug_assert!(forgotten.term >= vote_before.term);
            self.write(Write { hard_state: Some(forgotten), ..Write::default() });
            self.disk.sync_first(usize::MAX);
        }
    }

    /// Hands a write to the disk.
    pub fn write(&mut self, write: Write) {
        let buffered = self.disk.write(write);
        debug_assert!(buffered.is_ok(), "memory does not fail");
    }

    pub fn leads(&self) -> bool {
        self.running.as_ref().is_some_and(|running| running.core.is_leader())
    }
}

impl Running {
    /// The reads that the machine can now answer, with the numbers it answers from.
    pub fn answerable(&mut self) -> Vec<u64> {
        let index = self.machine.index;
        let (ready, waiting): (Vec<_>, Vec<_>) =
            std::mem::take(&mut self.reads).into_iter().partition(|(_, needs)| *needs <= index);
        self.reads = waiting;
        ready.into_iter().map(|(read, _)| read).collect()
    }

    pub fn take_effects(&mut self) -> Vec<Effect> {
        self.core.take_effects()
    }
}

/// Small numbers, so that snapshots, compaction and lagging followers happen in every run.
fn config(id: u64, seed: u64) -> CoreConfig {
    CoreConfig {
        id,
        seed,
        election_ticks: ELECTION_TICKS,
        heartbeat_ticks: 2,
        snapshot_every: 30,
        trailing: 20,
        log_bytes_max: 16 << 10,
    }
}
