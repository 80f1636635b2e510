//! An agent that is killed (-9) at any moment while allocations start, stop and are updated: in the end exactly what is
//! wanted runs, nothing else is left, and what was wanted all along never restarted.

use super::{Bench, shell};
use agent::allocs::Allocs;
use agent::datadir::DataDir;
use agent::entropy::Jitter;
use agent::store::Store;
use drivers::TaskHandle;
use model::{AllocId, Allocation, DesiredStatus, Generation, NodeId};
use prost::Message;
use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::Arc;
use std::time::{Duration, Instant};
use tokio::runtime::Builder;
use wire::pb;
use wire::session::ServerMessage;

const SETTLES_WITHIN: Duration = Duration::from_secs(60);

pub fn twenty_kills(bench: &Bench) {
    kills(bench, 20, 12);
}

pub fn two_hundred_kills(bench: &Bench) {
    kills(bench, 200, 50);
}

fn kills(bench: &Bench, kills: u64, allocs: usize) {
    let seed = u64::from(std::process::id());
    println!("seed {seed}");
    let mut servers =
        Servers { bench, jitter: Jitter::seeded(seed), wanted: BTreeMap::new(), generation: 0, number: 100 };
    let steady: BTreeSet<AllocId> = (0..allocs / 2).map(|_| servers.add()).collect();
    for _ in allocs / 2..allocs {
        servers.add();
    }
    servers.tell();
    let mut agent = Killed::start(bench);
    for _ in 0..kills {
        std::thread::sleep(Duration::from_millis(servers.jitter.fraction_of(400)));
        servers.shuffle(&steady);
        std::thread::sleep(Duration::from_millis(servers.jitter.fraction_of(150)));
        agent.kill();
        agent = Killed::start(bench);
    }
    servers.settle(&mut agent);
    let starts: BTreeMap<AllocId, usize> = servers.wanted.keys().map(|id| (*id, servers.starts(*id))).collect();
    assert!(steady.iter().all(|id| starts[id] == 1), "what was wanted all along restarted: {starts:?}");
    assert!(starts.values().all(|starts| *starts == 1), "something ran twice: {starts:?}");
    agent.kill();
}

/// The agent's half that owns allocations, in a process of its own: takes what is wanted from a file, until it is killed.
pub fn half(dir: &Path, node: NodeId) -> ! {
    let runtime = Builder::new_current_thread().enable_all().build().unwrap();
    runtime.block_on(async {
        let data = DataDir::open(dir).unwrap();
        let store = Store::open(&data.state_file()).unwrap();
        let allocs = Allocs::start(shell(&data, node), store).await.unwrap();
        let mut seen = Generation(0);
        loop {
            if let Some((generation, wanted)) = read(&dir.with_extension("wanted"))
                && generation > seen
            {
                seen = generation;
                allocs.push(generation, wanted).await;
            }
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
    })
}

fn read(path: &Path) -> Option<(Generation, Vec<Allocation>)> {
    let message = pb::ServerMessage::decode(&fs::read(path).ok()?[..]).unwrap();
    match ServerMessage::try_from(message).unwrap() {
        ServerMessage::Allocations { generation, allocs } => Some((generation, allocs)),
        other => panic!("{other:?}"),
    }
}

/// Such a process; killed also when the test fails.
struct Killed(Child);

impl Killed {
    fn start(bench: &Bench) -> Self {
        let node = NodeId::from_random(bench.bits(0)).to_string();
        let mut command = Command::new("/proc/self/exe");
        command.arg("half").arg(bench.data.root()).arg(node).stdout(Stdio::null());
        Self(command.spawn().unwrap())
    }

    fn kill(&mut self) {
        self.0.kill().unwrap();
        self.0.wait().unwrap();
    }
}

impl Drop for Killed {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

/// What the servers want, and how they tell it.
struct Servers<'a> {
    bench: &'a Bench,
    jitter: Jitter,
    wanted: BTreeMap<AllocId, Allocation>,
    generation: u64,
    number: u128,
}

impl Servers<'_> {
    fn add(&mut self) -> AllocId {
        self.number += 1;
        let text = "echo start >> $NOMAD_ALLOC_DIR/data/starts; exec sleep 600";
        let mut alloc = self.bench.alloc(self.number, text, 1);
        let group = &mut Arc::make_mut(&mut alloc.job).groups[0];
        group.services.clear();
        let id = alloc.id;
        self.wanted.insert(id, alloc);
        id
    }

    /// One goes, one comes, and one is updated in place.
    fn shuffle(&mut self, steady: &BTreeSet<AllocId>) {
        let going =
            self.wanted.values().find(|alloc| !steady.contains(&alloc.id) && alloc.desired == DesiredStatus::Run);
        if let Some(id) = going.map(|alloc| alloc.id) {
            // A server that is restored from an older state simply leaves allocations out.
            match self.jitter.fraction() < 0.5 {
                true => drop(self.wanted.remove(&id)),
                false => self.wanted.get_mut(&id).unwrap().desired = DesiredStatus::Stop,
            }
        }
        self.add();
        if let Some(alloc) = self.wanted.values_mut().find(|alloc| alloc.desired == DesiredStatus::Run) {
            let job = Arc::make_mut(&mut alloc.job);
            (job.version, job.priority) = (job.version + 1, 51);
        }
        self.tell();
    }

    fn tell(&mut self) {
        self.generation += 1;
        let generation = Generation(self.generation);
        let message = ServerMessage::Allocations { generation, allocs: self.wanted.values().cloned().collect() };
        let path = self.bench.data.root().with_extension("wanted");
        let fresh = path.with_extension("fresh");
        fs::write(&fresh, pb::ServerMessage::from(message).encode_to_vec()).unwrap();
        fs::rename(fresh, path).unwrap();
    }

    /// Waits until exactly what is wanted runs.
    fn settle(&mut self, agent: &mut Killed) {
        self.wanted.retain(|_, alloc| alloc.desired == DesiredStatus::Run);
        self.tell();
        let deadline = Instant::now() + SETTLES_WITHIN;
        loop {
            let (running, left) = (self.running(), self.left_over());
            if left.is_empty() && running.len() == self.wanted.len() {
                return;
            }
            assert!(agent.0.try_wait().unwrap().is_none(), "the agent ended by itself");
            let (running, wanted) = (running.len(), self.wanted.len());
            assert!(Instant::now() < deadline, "{running} of {wanted} run, and these are left: {left:?}");
            std::thread::sleep(Duration::from_millis(50));
        }
    }

    fn running(&self) -> BTreeSet<AllocId> {
        let runtime = Builder::new_current_thread().enable_all().build().unwrap();
        let runs = |alloc: &Allocation| {
            let control = self.bench.control(alloc);
            runtime.block_on(async {
                let Ok(Some(handle)) = TaskHandle::adopt(&control).await else { return false };
                let running =
                    handle.status().await.is_ok_and(|state| matches!(state.phase, drivers::Phase::Running { .. }));
                running && self.starts(alloc.id) > 0
            })
        };
        self.wanted.values().filter(|alloc| runs(alloc)).map(|alloc| alloc.id).collect()
    }

    /// Supervisors' directories and cgroups of allocations that are not wanted.
    fn left_over(&self) -> Vec<PathBuf> {
        let node = NodeId::from_random(self.bench.bits(0)).short();
        let mounts = drivers::cgroup::Hierarchies::detect().unwrap();
        let groups =
            mounts.v1.values().chain(&mounts.v2).flat_map(|mount| children(&mount.join("meshctl").join(&node)));
        let groups = groups.filter(|path| path.is_dir() && !path.ends_with("supervisors"));
        let controls =
            children(&self.bench.data.allocs()).into_iter().filter(|dir| dir.join("server/control").exists());
        let wanted: BTreeSet<String> = self.wanted.keys().map(ToString::to_string).collect();
        let is_wanted = |path: &PathBuf| path.file_name().is_some_and(|name| wanted.contains(&*name.to_string_lossy()));
        groups.chain(controls).filter(|path| !is_wanted(path)).collect()
    }

    fn starts(&self, id: AllocId) -> usize {
        let trace = self.bench.data.alloc(id).join("alloc/data/starts");
        fs::read_to_string(trace).unwrap_or_default().lines().count()
    }
}

fn children(dir: &Path) -> Vec<PathBuf> {
    fs::read_dir(dir).into_iter().flatten().flatten().map(|entry| entry.path()).collect()
}

trait FractionOf {
    fn fraction_of(&mut self, millis: u32) -> u64;
}

impl FractionOf for Jitter {
    fn fraction_of(&mut self, millis: u32) -> u64 {
        (self.fraction() * f64::from(millis)) as u64
    }
}
