//! Nodes, their probers and the leader's judge in virtual time: who is lost is off every map and replaced in time, and who
//! is alive is neither, through cuts, crashed agents, lossy networks, paused processes and elections.
//!
//! The world keeps the truth (whose kernel answers, whose agent runs, who is cut off) apart from what the catalog says, and
//! compares the two at every step.

use liveness::{Judge, LinkState, Prober, Report, Ring, Rules, Seen};
use model::{Epoch, NodeId, NodeStatus};
use rand::{Rng, SeedableRng};
use rand_chacha::ChaCha8Rng;
use std::collections::BTreeMap;
use std::time::Duration;

use crate::Violation;

/// Virtual time moves by this many milliseconds.
const STEP: u64 = 50;
const ROUND: u64 = 350;
const HEARTBEAT: u64 = 2000;
const SILENT_AFTER: u64 = 3500;
/// A server ends a session that was silent for this long.
const DROPPED_AFTER: u64 = 8000;
/// What the promises allow: off every load balancer, and down.
const OFF_WITHIN: u64 = 2000;
const DOWN_WITHIN: u64 = 5000;
/// From the end of the last fault until all is as it should be.
const SETTLED_WITHIN: u64 = 12_000;
const RUN_MS: u64 = 60_000;
/// The nodes come first.
const CALM_MS: u64 = 3000;

struct Machine {
    id: NodeId,
    prober: Prober,
    epoch: u64,
    /// The truth.
    kernel_runs: bool,
    agent_runs: bool,
    cut: bool,
    agent_paused_until: u64,
    next_round: u64,
    /// Since when it has been as it is: cut or switched off, or not.
    gone_since: Option<u64>,
    back_since: u64,
    /// Its session as a server has it: open, and when it was heard last.
    session: Option<u64>,
    next_heartbeat: u64,
    may_dial_at: u64,
    told: Option<Report>,
    /// The catalog.
    status: NodeStatus,
    reason: String,
}

/// What a run came to.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Summary {
    pub nodes: usize,
    pub cuts: u64,
    pub downs: u64,
    pub suspects: u64,
    pub elections: u64,
    pub probes: u64,
    pub storms: u64,
}

struct World {
    rng: ChaCha8Rng,
    now: u64,
    machines: Vec<Machine>,
    judge: Judge,
    /// No leader before this.
    leader_since: u64,
    loss_percent: u32,
    summary: Summary,
}

/// One run of `nodes` nodes from one seed.
pub fn run(seed: u64, nodes: usize) -> Result<Summary, Violation> {
    let mut world = World::new(seed, nodes);
    world.run_until(CALM_MS)?;
    while world.now < RUN_MS {
        if world.now < RUN_MS - SETTLED_WITHIN {
            world.cause_trouble();
        } else if world.now == RUN_MS - SETTLED_WITHIN {
            world.end_trouble();
        }
        world.step()?;
    }
    world.check_settled()?;
    Ok(world.summary)
}

/// Most nodes go at once: nothing of theirs may be replaced while the storm holds, and all that is back is ready again.
pub fn run_storm(seed: u64, nodes: usize) -> Result<Summary, Violation> {
    let mut world = World::new(seed, nodes);
    world.run_until(20_000)?;
    for at in 0..nodes * 3 / 5 {
        world.cut(at);
    }
    world.run_until(60_000)?;
    if world.summary.downs > 0 {
        return Err(violation("a storm holds replacement", format!("{} nodes went down", world.summary.downs)));
    }
    let off = world.machines.iter().filter(|machine| machine.cut && machine.status.is_reachable()).count();
    if off > 0 {
        return Err(violation("what is lost in a storm is off the maps", format!("{off} are not")));
    }
    let held = world.machines.iter().filter(|machine| machine.reason.contains("replacement is held")).count();
    if held < nodes * 3 / 5 {
        return Err(violation("a storm is told of", format!("{held} nodes say so")));
    }
    world.end_trouble();
    world.run_until(60_000 + SETTLED_WITHIN)?;
    world.check_settled()?;
    Ok(world.summary)
}

/// A storm that does not end is believed after its hold.
pub fn run_lasting_storm(seed: u64, nodes: usize) -> Result<Summary, Violation> {
    let mut world = World::new(seed, nodes);
    world.run_until(20_000)?;
    for at in 0..nodes * 3 / 5 {
        world.cut(at);
    }
    world.run_until(20_000 + 60_000 + 10_000)?;
    match world.machines.iter().filter(|machine| machine.cut && machine.status != NodeStatus::Down).count() {
        0 => Ok(world.summary),
        left => Err(violation("a storm is believed in the end", format!("{left} nodes are still held"))),
    }
}

fn violation(invariant: &'static str, what: String) -> Violation {
    Violation { invariant, what }
}

impl World {
    fn new(seed: u64, nodes: usize) -> World {
        let mut rng = ChaCha8Rng::seed_from_u64(seed);
        let machines = (0..nodes).map(|_| Machine::new(&mut rng)).collect();
        let judge = Judge::new(Rules::default(), Duration::ZERO);
        let summary = Summary { nodes, ..Summary::default() };
        World { rng, now: 0, machines, judge, leader_since: 0, loss_percent: 0, summary }
    }

    fn run_until(&mut self, until: u64) -> Result<(), Violation> {
        while self.now < until {
            self.step()?;
        }
        Ok(())
    }

    fn step(&mut self) -> Result<(), Violation> {
        self.now += STEP;
        self.probe();
        self.talk();
        self.judge();
        self.check()
    }

    fn cause_trouble(&mut self) {
        if !self.rng.random_ratio(1, 40) {
            return;
        }
        let at = self.rng.random_range(0..self.machines.len());
        let gone = self.machines.iter().filter(|machine| machine.is_gone()).count();
        match self.rng.random_range(0..8) {
            // Few enough that it is no storm.
            0 | 1 if gone < 2 => self.cut(at),
            2 if gone < 2 => self.machines[at].switch_off(self.now),
            3 => self.machines[at].agent_runs = false,
            4 => self.machines[at].agent_paused_until = self.now + self.rng.random_range(500..6000),
            5 => self.elect(),
            6 => self.loss_percent = self.rng.random_range(0..4),
            _ => {
                self.machines[at].heal(self.now, self.rng.random_range(0..1500));
            }
        }
    }

    fn end_trouble(&mut self) {
        self.loss_percent = 0;
        for machine in &mut self.machines {
            machine.agent_paused_until = 0;
            machine.heal(self.now, self.rng.random_range(0..1500));
        }
    }

    fn cut(&mut self, at: usize) {
        let machine = &mut self.machines[at];
        machine.cut = true;
        machine.gone_since.get_or_insert(self.now);
        self.summary.cuts += 1;
    }

    /// A new leader knows nothing, and agents need a while to find it.
    fn elect(&mut self) {
        self.summary.elections += 1;
        self.leader_since = self.now + self.rng.random_range(300..1500);
        self.judge = Judge::new(Rules::default(), Duration::from_millis(self.leader_since));
        for machine in &mut self.machines {
            machine.session = None;
            machine.told = None;
            machine.may_dial_at = self.leader_since + self.rng.random_range(0..3000);
        }
    }

    /// Whoever has a round sends its probes; what answers does so at once.
    fn probe(&mut self) {
        let ring = Ring::new(self.machines.iter().map(|machine| (machine.id, machine.status)));
        let answering: BTreeMap<NodeId, bool> =
            self.machines.iter().map(|machine| (machine.id, machine.kernel_runs && !machine.cut)).collect();
        for machine in &mut self.machines {
            if !machine.thinks(self.now) || self.now < machine.next_round {
                continue;
            }
            machine.next_round = self.now + ROUND;
            machine.prober.set_targets(&ring.targets(machine.id));
            for probe in machine.prober.round(Duration::from_millis(self.now)) {
                self.summary.probes += 1;
                let lost = self.rng.random_range(0..100) < self.loss_percent * 2;
                if !lost && !machine.cut && answering.get(&probe.target) == Some(&true) {
                    machine.prober.on_answer(probe.nonce);
                }
            }
        }
    }

    /// Sessions: dialled, kept by heartbeats, told of probes, and dropped by a server that hears nothing.
    fn talk(&mut self) {
        let led = self.now >= self.leader_since;
        for machine in &mut self.machines {
            let speaks = machine.thinks(self.now) && !machine.cut;
            if !machine.agent_runs && !machine.cut {
                machine.session = None; // its sockets are closed by its kernel
            }
            if machine.session.is_some_and(|heard| self.now - heard > DROPPED_AFTER) {
                machine.session = None;
            }
            if !speaks || !led {
                continue;
            }
            if machine.session.is_none() && self.now >= machine.may_dial_at {
                machine.open_session(self.now);
            }
            if machine.session.is_some() {
                machine.converse(self.now);
            }
        }
    }

    fn judge(&mut self) {
        if self.now < self.leader_since {
            return;
        }
        let seen: Vec<Seen> = self.machines.iter().map(|machine| machine.seen(self.now)).collect();
        let now = Duration::from_millis(self.now);
        let stormy = self.judge.storm(now).is_some();
        for verdict in self.judge.judge(now, &seen) {
            let Some(machine) = self.machines.iter_mut().find(|machine| machine.id == verdict.id) else { continue };
            self.summary.downs += u64::from(verdict.status == NodeStatus::Down);
            self.summary.suspects += u64::from(verdict.status == NodeStatus::Suspect);
            machine.status = verdict.status;
            machine.reason = verdict.reason;
        }
        self.summary.storms += u64::from(!stormy && self.judge.storm(now).is_some());
    }

    fn check(&self) -> Result<(), Violation> {
        let led_for = self.now.saturating_sub(self.leader_since);
        for machine in &self.machines {
            let unreachable = !machine.status.is_reachable();
            match machine.gone_since {
                Some(since) => {
                    // A leader that has just come needs the agents' reports first.
                    let known_for = (self.now - since).min(led_for.saturating_sub(SETTLING));
                    self.check_gone(machine, known_for, unreachable)?;
                }
                None if unreachable && self.now - machine.back_since > SETTLED_WITHIN => {
                    return Err(self.broken("who is alive is not given up", machine));
                }
                None => self.check_alive(machine)?,
            }
        }
        Ok(())
    }

    fn check_gone(&self, machine: &Machine, known_for: u64, unreachable: bool) -> Result<(), Violation> {
        let able = self.able_probers(machine);
        let gone = self.machines.iter().filter(|machine| machine.is_gone()).count();
        let stormy = gone >= 3 && gone * 3 > self.machines.len();
        if able < 2 || stormy || self.judge.storm(Duration::from_millis(self.now)).is_some() {
            return Ok(());
        }
        if !unreachable && known_for > OFF_WITHIN {
            return Err(self.broken("who is gone is off the maps within 2 s", machine));
        }
        if machine.status != NodeStatus::Down && known_for > DOWN_WITHIN {
            return Err(self.broken("who is gone is down within 5 s", machine));
        }
        Ok(())
    }

    /// A node that has answered all along and is declared lost.
    fn check_alive(&self, machine: &Machine) -> Result<(), Violation> {
        match machine.status {
            NodeStatus::Down if machine.back_since == 0 => {
                Err(self.broken("who is alive is not declared lost", machine))
            }
            _ => Ok(()),
        }
    }

    /// Probers that have been up and undisturbed for so long that they must have an opinion.
    fn able_probers(&self, of: &Machine) -> usize {
        let ring = Ring::new(self.machines.iter().map(|machine| (machine.id, machine.status)));
        let undisturbed = |id: &NodeId| {
            let found = self.machines.iter().find(|machine| machine.id == *id);
            found.is_some_and(|machine| {
                machine.thinks(self.now)
                    && !machine.is_gone()
                    && machine.session.is_some()
                    && machine.agent_paused_until + SETTLED_WITHIN < self.now
                    && (machine.back_since == 0 || self.now - machine.back_since > SETTLED_WITHIN)
                    && machine
                        .told
                        .as_ref()
                        .is_some_and(|report| report.answering.contains(&of.id) || report.unreachable.contains(&of.id))
            })
        };
        ring.probers(of.id).iter().filter(|id| undisturbed(id)).count()
    }

    fn check_settled(&self) -> Result<(), Violation> {
        match self.machines.iter().find(|machine| machine.status != NodeStatus::Ready) {
            Some(machine) => Err(self.broken("after the last fault, every node is ready again", machine)),
            None => Ok(()),
        }
    }

    fn broken(&self, invariant: &'static str, machine: &Machine) -> Violation {
        let what = format!(
            "at {} ms node {} is {} ({}); gone since {:?}, back since {}, session {:?}, leader since {}",
            self.now,
            machine.id,
            machine.status.as_str(),
            machine.reason,
            machine.gone_since,
            machine.back_since,
            machine.session,
            self.leader_since
        );
        violation(invariant, what)
    }
}

/// From an election until the agents have found the leader and told it what they know.
const SETTLING: u64 = 3500;

impl Machine {
    fn new(rng: &mut ChaCha8Rng) -> Machine {
        Machine {
            id: NodeId::from_random(rng.random()),
            prober: Prober::new(Duration::from_millis(ROUND), rng.random()),
            epoch: 0,
            kernel_runs: true,
            agent_runs: true,
            cut: false,
            agent_paused_until: 0,
            next_round: rng.random_range(0..ROUND),
            gone_since: None,
            back_since: 0,
            session: None,
            next_heartbeat: 0,
            may_dial_at: rng.random_range(0..500),
            told: None,
            status: NodeStatus::Initializing,
            reason: String::new(),
        }
    }

    fn is_gone(&self) -> bool {
        self.gone_since.is_some()
    }

    fn thinks(&self, now: u64) -> bool {
        self.kernel_runs && self.agent_runs && now >= self.agent_paused_until
    }

    fn switch_off(&mut self, now: u64) {
        (self.kernel_runs, self.agent_runs) = (false, false);
        self.gone_since.get_or_insert(now);
    }

    fn heal(&mut self, now: u64, dials_after: u64) {
        if !self.kernel_runs || !self.agent_runs {
            // What a process knew goes with it.
            self.prober = Prober::new(Duration::from_millis(ROUND), now);
            self.told = None;
        }
        if self.is_gone() || !self.agent_runs {
            self.back_since = now;
            self.may_dial_at = now + dials_after;
            self.session = None;
        }
        (self.kernel_runs, self.agent_runs, self.cut) = (true, true, false);
        self.gone_since = None;
    }

    /// Registers anew, as a hello does.
    fn open_session(&mut self, now: u64) {
        self.epoch += 1;
        (self.session, self.next_heartbeat, self.told) = (Some(now), now + HEARTBEAT, None);
        (self.status, self.reason) = (NodeStatus::Ready, String::new());
    }

    fn converse(&mut self, now: u64) {
        let report = self.prober.report();
        if now >= self.next_heartbeat || self.told.as_ref() != Some(&report) {
            (self.session, self.told) = (Some(now), Some(report));
            self.next_heartbeat = now + HEARTBEAT;
        }
    }

    fn seen(&self, now: u64) -> Seen {
        let state = |heard: u64| if now - heard < SILENT_AFTER { LinkState::Live } else { LinkState::Silent };
        Seen {
            id: self.id,
            epoch: Epoch(self.epoch),
            status: self.status,
            reason: self.reason.clone(),
            link: self.session.map(state),
            report: self.told.clone(),
        }
    }
}
