//! Real threads, real disks, messages passed in memory: the handle as the server uses it.
#![expect(clippy::unwrap_used, clippy::panic, reason = "a test stops at the first surprise")]

use std::collections::BTreeMap;
use std::future::Future;
use std::pin::pin;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex};
use std::task::{Context, Poll, Wake, Waker};
use std::thread::{self, Thread};
use std::time::{Duration, Instant};

use consensus::{
    ChangeError, Committed, Config, LogStore, MembershipChange, MemoryStore, ProposeError, Raft, ReadError,
    RestoreError, Role, StateMachine, StoreError, Transport, Write,
};

/// Delivers to whoever is registered and not cut off.
#[derive(Clone, Default)]
struct Network {
    servers: Arc<Mutex<BTreeMap<u64, Raft>>>,
    cut: Arc<Mutex<Vec<u64>>>,
}

struct Link {
    from: u64,
    network: Network,
}

impl Transport for Link {
    fn send(&self, to: u64, message: Vec<u8>) {
        let cut = self.network.cut.lock().unwrap().clone();
        let target = self.network.servers.lock().unwrap().get(&to).cloned();
        if let (false, Some(raft)) = (cut.contains(&to) || cut.contains(&self.from), target) {
            raft.step(self.from, message);
        }
    }
}

/// Remembers every command in order.
#[derive(Clone, Default)]
struct Journal(Arc<Mutex<Vec<Vec<u8>>>>);

impl StateMachine for Journal {
    fn apply(&mut self, index: u64, data: &[u8]) -> Vec<u8> {
        self.0.lock().unwrap().push(data.to_vec());
        index.to_string().into_bytes()
    }

    fn snapshot(&self) -> Vec<u8> {
        self.0.lock().unwrap().join(&b'\n')
    }

    fn restore(&mut self, _index: u64, data: &[u8]) -> Result<(), RestoreError> {
        let lines = data.split(|byte| *byte == b'\n').filter(|line| !line.is_empty());
        *self.0.lock().unwrap() = lines.map(<[u8]>::to_vec).collect();
        Ok(())
    }
}

struct Server {
    raft: Raft,
    journal: Journal,
    directory: tempfile::TempDir,
}

fn config(id: u64, directory: &tempfile::TempDir, seed: u64) -> Config {
    Config {
        tick: Duration::from_millis(20),
        on_fatal: Arc::new(|reason| panic!("fatal: {reason}")),
        ..Config::new(id, directory.path(), seed)
    }
}

fn start(network: &Network, config: Config, directory: tempfile::TempDir) -> Server {
    let journal = Journal::default();
    let link = Arc::new(Link { from: config.id, network: network.clone() });
    let id = config.id;
    let raft = Raft::start(config, link, Box::new(journal.clone())).unwrap();
    network.servers.lock().unwrap().insert(id, raft.clone());
    Server { raft, journal, directory }
}

fn group(network: &Network, ids: &[u64]) -> Vec<Server> {
    let start_one = |id: &u64| {
        let directory = tempfile::tempdir().unwrap();
        let config = Config { bootstrap: Some(ids.to_vec()), ..config(*id, &directory, *id) };
        start(network, config, directory)
    };
    ids.iter().map(start_one).collect()
}

fn stop(network: &Network, server: &Server) {
    network.servers.lock().unwrap().remove(&server.raft.status().id);
    server.raft.shutdown();
}

fn leader(servers: &[Server]) -> usize {
    let position = || servers.iter().position(|server| server.raft.status().role == Role::Leader);
    eventually("a leader", || position().is_some());
    position().unwrap()
}

fn eventually(what: &str, condition: impl Fn() -> bool) {
    let deadline = Instant::now() + Duration::from_secs(20);
    while !condition() {
        assert!(Instant::now() < deadline, "never: {what}");
        thread::sleep(Duration::from_millis(5));
    }
}

struct Unpark(Thread);

impl Wake for Unpark {
    fn wake(self: Arc<Self>) {
        self.0.unpark();
    }
}

fn wait<F: Future>(future: F) -> F::Output {
    let mut future = pin!(future);
    let waker = Waker::from(Arc::new(Unpark(thread::current())));
    loop {
        match future.as_mut().poll(&mut Context::from_waker(&waker)) {
            Poll::Ready(output) => return output,
            Poll::Pending => thread::park(),
        }
    }
}

#[test]
fn one_server_leads_at_once_and_keeps_its_log_over_a_restart() {
    let network = Network::default();
    let servers = group(&network, &[1]);
    leader(&servers);
    let Committed { index, response } = wait(servers[0].raft.propose(b"first".to_vec())).unwrap();
    assert_eq!(response, index.to_string().into_bytes());
    stop(&network, &servers[0]);
    let Some(Server { directory, .. }) = servers.into_iter().next() else { unreachable!() };

    let again = start(&network, config(1, &directory, 2), directory);
    eventually("the command is replayed", || *again.journal.0.lock().unwrap() == [b"first".to_vec()]);
    assert!(wait(again.raft.read_index()).unwrap() >= index);
    stop(&network, &again);
}

#[test]
fn loss_of_the_leader_heals_and_keeps_what_was_acknowledged() {
    let network = Network::default();
    let mut servers = group(&network, &[1, 2, 3]);
    let first = leader(&servers);
    for command in 0..50_u8 {
        wait(servers[first].raft.propose(vec![command + 100])).unwrap();
    }
    stop(&network, &servers[first]);
    servers.remove(first);
    let second = leader(&servers);
    wait(servers[second].raft.propose(b"after".to_vec())).unwrap();
    let expected: Vec<Vec<u8>> = (0..50_u8).map(|command| vec![command + 100]).chain([b"after".to_vec()]).collect();
    for server in &servers {
        eventually("both survivors agree", || *server.journal.0.lock().unwrap() == expected);
    }
    servers.iter().for_each(|server| stop(&network, server));
}

#[test]
fn followers_refuse_with_a_hint_and_read_through_the_leader() {
    let network = Network::default();
    let servers = group(&network, &[1, 2, 3]);
    let leading = leader(&servers);
    let leader_id = servers[leading].raft.status().id;
    let Committed { index, .. } = wait(servers[leading].raft.propose(b"x".to_vec())).unwrap();
    let follower = &servers[(leading + 1) % 3];
    eventually("the follower knows", || follower.raft.status().leader == Some(leader_id));
    let refusal = wait(follower.raft.propose(b"y".to_vec())).unwrap_err();
    assert_eq!(refusal, ProposeError::NotLeader { leader: Some(leader_id) });
    assert!(wait(follower.raft.read_index()).unwrap() >= index);
    assert!(follower.raft.status().applied >= index);
    servers.iter().for_each(|server| stop(&network, server));
}

#[test]
fn a_cut_off_leader_steps_down_and_neither_writes_nor_reads() {
    let network = Network::default();
    let servers = group(&network, &[1, 2, 3]);
    let old = leader(&servers);
    let old_id = servers[old].raft.status().id;
    network.cut.lock().unwrap().push(old_id);
    let written = servers[old].raft.propose(b"lost".to_vec());
    let read = servers[old].raft.read_index();
    assert_eq!(wait(written).unwrap_err(), ProposeError::Dropped);
    assert_eq!(wait(read).unwrap_err(), ReadError::NoLeader { leader: None });
    eventually("the others elect", || {
        servers.iter().any(|server| server.raft.status().role == Role::Leader && server.raft.status().id != old_id)
    });
    network.cut.lock().unwrap().clear();
    eventually("the old leader follows", || servers[old].raft.status().leader.is_some_and(|id| id != old_id));
    servers.iter().for_each(|server| stop(&network, server));
}

#[test]
fn a_server_joins_by_snapshot_and_is_promoted_and_removed() {
    let network = Network::default();
    let directory = tempfile::tempdir().unwrap();
    let first = Config { bootstrap: Some(vec![1]), snapshot_every: 20, trailing: 5, ..config(1, &directory, 1) };
    let first = start(&network, first, directory);
    leader(std::slice::from_ref(&first));
    for command in 0..100_u8 {
        wait(first.raft.propose(vec![command + 100])).unwrap();
    }
    let directory = tempfile::tempdir().unwrap();
    let second = start(&network, config(2, &directory, 2), directory);
    let promote = || wait(first.raft.change(MembershipChange::Promote(2)));
    assert_eq!(promote().unwrap_err(), ChangeError::Refused { reason: "only a learner can be promoted" });
    wait(first.raft.change(MembershipChange::AddLearner(2))).unwrap();
    eventually("the learner has the state", || second.journal.0.lock().unwrap().len() == 100);
    assert_eq!(second.raft.status().role, Role::Learner);
    eventually("the leader knows and promotes", || promote().is_ok());
    eventually("both vote", || second.raft.status().voters == [1, 2] && second.raft.status().role == Role::Follower);
    wait(first.raft.propose(b"with two".to_vec())).unwrap();
    eventually("the second follows", || second.journal.0.lock().unwrap().len() == 101);
    assert!(matches!(wait(first.raft.change(MembershipChange::Remove(1))), Err(ChangeError::Refused { .. })));
    first.raft.transfer_leader(2);
    eventually("the second leads", || second.raft.status().role == Role::Leader);
    eventually("the first is removed", || wait(second.raft.change(MembershipChange::Remove(1))).is_ok());
    stop(&network, &first);
    wait(second.raft.propose(b"alone".to_vec())).unwrap();
    assert_eq!(second.raft.status().voters, [2]);
    stop(&network, &second);
}

#[test]
fn more_than_the_bound_is_refused_as_overloaded() {
    let network = Network::default();
    let directory = tempfile::tempdir().unwrap();
    // No second voter answers, so that nothing commits and everything waits.
    let config = Config { bootstrap: Some(vec![1, 2]), pending_max: 3, ..config(1, &directory, 1) };
    let server = start(&network, config, directory);
    let waiting: Vec<_> = (0..3).map(|_| server.raft.read_index()).collect();
    assert_eq!(wait(server.raft.propose(b"x".to_vec())).unwrap_err(), ProposeError::Overloaded);
    server.raft.shutdown();
    for read in waiting {
        assert_eq!(wait(read).unwrap_err(), ReadError::Stopped);
    }
}

#[test]
fn removing_a_server_must_leave_a_majority_that_answers() {
    let network = Network::default();
    let mut servers = group(&network, &[1, 2, 3]);
    let first = leader(&servers);
    let leading = servers.remove(first);
    let active = || wait(leading.raft.peers()).unwrap().iter().filter(|peer| peer.is_active && peer.is_voter).count();
    eventually("everybody answers", || active() == 3);
    let [alive, dead] = [&servers[0], &servers[1]];
    let (alive_id, dead_id) = (alive.raft.status().id, dead.raft.status().id);
    stop(&network, dead);
    eventually("the loss is noticed", || active() == 2);
    let refusal = wait(leading.raft.may_change(MembershipChange::Remove(alive_id))).unwrap_err();
    assert!(refusal.to_string().contains("too few of the other voters"), "{refusal}");
    assert_eq!(wait(leading.raft.change(MembershipChange::Remove(alive_id))).unwrap_err(), refusal);
    wait(leading.raft.change(MembershipChange::Remove(dead_id))).unwrap();
    wait(leading.raft.propose(b"with two".to_vec())).unwrap();
    stop(&network, alive);
    stop(&network, &leading);
}

/// Applies nothing while its gate is shut.
#[derive(Clone, Default)]
struct Gated {
    journal: Journal,
    shut: Arc<AtomicBool>,
}

impl StateMachine for Gated {
    fn apply(&mut self, index: u64, data: &[u8]) -> Vec<u8> {
        while self.shut.load(Ordering::Relaxed) {
            thread::sleep(Duration::from_millis(1));
        }
        self.journal.apply(index, data)
    }

    fn snapshot(&self) -> Vec<u8> {
        self.journal.snapshot()
    }

    fn restore(&mut self, index: u64, data: &[u8]) -> Result<(), RestoreError> {
        self.journal.restore(index, data)
    }
}

#[test]
fn a_follower_that_applies_slowly_holds_a_bounded_backlog_and_catches_up() {
    let network = Network::default();
    let directories: Vec<_> = (0..3).map(|_| tempfile::tempdir().unwrap()).collect();
    let machines: Vec<Gated> = (0..3).map(|_| Gated::default()).collect();
    let start_one = |id: u64| {
        let at = id as usize - 1;
        let config =
            Config { bootstrap: Some(vec![1, 2, 3]), apply_bytes_max: 64 << 10, ..config(id, &directories[at], id) };
        let link = Arc::new(Link { from: id, network: network.clone() });
        let raft = Raft::start(config, link, Box::new(machines[at].clone())).unwrap();
        network.servers.lock().unwrap().insert(id, raft.clone());
        raft
    };
    let rafts: Vec<Raft> = (1..=3).map(start_one).collect();
    eventually("a leader", || rafts.iter().any(|raft| raft.status().role == Role::Leader));
    let leading = rafts.iter().position(|raft| raft.status().role == Role::Leader).unwrap();
    let slow = (leading + 1) % 3;
    machines[slow].shut.store(true, Ordering::Relaxed);
    let mut most = 0;
    for _ in 0..400 {
        wait(rafts[leading].propose(vec![b'x'; 4 << 10])).unwrap();
        most = most.max(rafts[slow].apply_backlog());
    }
    assert!(most > 64 << 10 && most < 400 << 10, "1.6 MiB were written, {most} bytes waited");
    assert_eq!(rafts[leading].status().role, Role::Leader);
    machines[slow].shut.store(false, Ordering::Relaxed);
    eventually("it catches up", || machines[slow].journal.0.lock().unwrap().len() == 400);
    rafts.iter().for_each(Raft::shutdown);
}

/// A disk whose syncs hang or fail on demand.
#[derive(Clone, Default)]
struct BadDisk {
    store: MemoryStore,
    hangs: Arc<AtomicBool>,
    fails: Arc<AtomicBool>,
}

impl LogStore for BadDisk {
    fn load(&mut self) -> Result<consensus::Loaded, StoreError> {
        self.store.load()
    }

    fn write(&mut self, write: Write) -> Result<(), StoreError> {
        self.store.write(write)
    }

    fn sync(&mut self) -> Result<(), StoreError> {
        while self.hangs.load(Ordering::Relaxed) {
            thread::sleep(Duration::from_millis(5));
        }
        if self.fails.load(Ordering::Relaxed) {
            let source = std::io::Error::other("input/output error");
            return Err(StoreError::Io { operation: "syncing", path: "raft.redb".into(), source });
        }
        self.store.sync()
    }
}

fn start_on(disk: &BadDisk, network: &Network, config: Config) -> (Raft, Journal) {
    let journal = Journal::default();
    let link = Arc::new(Link { from: config.id, network: network.clone() });
    let id = config.id;
    let raft = Raft::start_on(Box::new(disk.clone()), config, link, Box::new(journal.clone())).unwrap();
    network.servers.lock().unwrap().insert(id, raft.clone());
    (raft, journal)
}

#[test]
fn a_hung_disk_costs_leadership_and_not_the_group() {
    let network = Network::default();
    let directory = tempfile::tempdir().unwrap();
    let disks: Vec<BadDisk> = (0..3).map(|_| BadDisk::default()).collect();
    let rafts: Vec<Raft> = (1..=3)
        .map(|id| {
            let config = Config { bootstrap: Some(vec![1, 2, 3]), ..config(id, &directory, id) };
            start_on(&disks[id as usize - 1], &network, config).0
        })
        .collect();
    let leading = || rafts.iter().position(|raft| raft.status().role == Role::Leader);
    eventually("a leader", || leading().is_some());
    let hung = leading().unwrap();
    disks[hung].hangs.store(true, Ordering::Relaxed);
    let lost = rafts[hung].propose(b"stuck".to_vec());
    let others = || rafts.iter().enumerate().filter(|(at, _)| *at != hung).map(|(_, raft)| raft);
    eventually("another one leads", || others().any(|raft| raft.status().role == Role::Leader));
    let next = others().find(|raft| raft.status().role == Role::Leader).unwrap();
    wait(next.propose(b"goes on".to_vec())).unwrap();
    assert_eq!(wait(lost).unwrap_err(), ProposeError::Dropped);
    disks[hung].hangs.store(false, Ordering::Relaxed);
    eventually("the hung one catches up", || rafts[hung].status().applied >= next.status().applied);
    rafts.iter().for_each(Raft::shutdown);
}

#[test]
fn a_failed_fsync_ends_the_server_before_it_answers() {
    let network = Network::default();
    let directory = tempfile::tempdir().unwrap();
    let disk = BadDisk::default();
    let said: Arc<Mutex<Vec<String>>> = Arc::default();
    let hear = said.clone();
    let config = Config {
        bootstrap: Some(vec![1]),
        on_fatal: Arc::new(move |reason| hear.lock().unwrap().push(reason.to_owned())),
        ..config(1, &directory, 1)
    };
    let (raft, journal) = start_on(&disk, &network, config);
    wait(raft.propose(b"good".to_vec())).unwrap();
    disk.fails.store(true, Ordering::Relaxed);
    assert_eq!(wait(raft.propose(b"bad".to_vec())).unwrap_err(), ProposeError::Stopped);
    assert_eq!(*journal.0.lock().unwrap(), [b"good".to_vec()]);
    assert!(said.lock().unwrap()[0].contains("input/output error"));
    raft.shutdown();
}

#[test]
fn garbage_from_a_peer_is_dropped() {
    let network = Network::default();
    let servers = group(&network, &[1]);
    leader(&servers);
    for garbage in [vec![], vec![0xff; 40], b"\x08\x03\x10\x01\x18\x02".to_vec()] {
        servers[0].raft.step(2, garbage);
    }
    wait(servers[0].raft.propose(b"fine".to_vec())).unwrap();
    stop(&network, &servers[0]);
}

#[test]
fn a_server_speaks_for_itself_alone() {
    let network = Network::default();
    let servers = group(&network, &[1]);
    leader(&servers);
    let raft = &servers[0].raft;
    // A heartbeat of server 2 in term 99.
    let message = b"\x08\x08\x10\x01\x18\x02\x20\x63".to_vec();
    raft.step(3, message.clone());
    wait(raft.propose(b"fine".to_vec())).unwrap();
    assert!(raft.status().term < 99);
    raft.step(2, message);
    eventually("its own message is taken in", || raft.status().term >= 99);
    stop(&network, &servers[0]);
}
