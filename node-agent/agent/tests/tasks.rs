//! Real tasks under real supervisors: killed, restarted, left alone by an agent that dies, adopted by the next, stopped.
//!
//! This program is its own supervisor (`/proc/self/exe supervise …`), so it has its own `main`. It needs root for cgroups.

#![expect(clippy::unwrap_used, clippy::panic, reason = "a test, though one with its own main")]

#[path = "tasks/crashes.rs"]
mod crashes;
#[path = "tasks/files.rs"]
mod files;
#[path = "../src/allocs/fixtures.rs"]
mod fixtures;
#[path = "tasks/lives.rs"]
mod lives;

use agent::allocs::{Allocs, Reports, Shell};
use agent::checks::CheckPool;
use agent::datadir::DataDir;
use agent::datapath::{DataPath, Place};
use agent::entropy::Jitter;
use agent::files::Sources;
use agent::logs::LogReader;
use agent::store::Store;
use agent::{AgentConfig, fingerprint};
use drivers::{Directories, Launcher, Phase, RawExec, TaskHandle};
use futures::future::BoxFuture;
use model::{
    AllocId, AllocUpdate, AllocatedPort, Allocation, ClientStatus, DesiredStatus, ExecConfig, Generation, Health,
    NodeId, RestartMode, RestartPolicy, RoutingSnapshot, TaskDriver,
};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use std::net::TcpListener;
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::sync::Arc;
use std::time::{Duration, Instant};
use tokio::runtime::{Builder, Runtime};
use tokio::sync::watch;
use wire::routes::RouteReport;
use wire::session::{AgentMessage, LogKind, LogRange};

fn main() -> ExitCode {
    if let Some(code) = drivers::hidden_main(std::env::args_os()) {
        return code;
    }
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    if let [word, dir, node] = arguments.as_slice()
        && word == "half"
    {
        crashes::half(Path::new(dir), node.parse().unwrap());
    }
    assert!(nix::unistd::geteuid().is_root(), "this test starts tasks in cgroups: run it as root");
    let soak = arguments.iter().any(|argument| argument == "--ignored");
    let filter = arguments.iter().find(|argument| !argument.starts_with('-'));
    for (name, test) in if soak { SOAK } else { TESTS } {
        if filter.is_some_and(|filter| !name.contains(filter.as_str())) {
            continue;
        }
        let began = Instant::now();
        test(&Bench::new());
        println!("test {name} ... ok ({:.1} s)", began.elapsed().as_secs_f64());
    }
    ExitCode::SUCCESS
}

const TESTS: &[(&str, Test)] = &[
    ("a_killed_task_is_reported_within_a_second_and_restarted", a_killed_task_is_reported_and_restarted),
    ("tasks_outlive_the_agent_and_are_adopted", tasks_outlive_the_agent_and_are_adopted),
    ("an_end_is_written_down_before_its_supervisor_is_let_go", an_end_is_written_down_before_its_supervisor_is_let_go),
    ("allocations_that_the_servers_left_out_stop", allocations_that_the_servers_left_out_stop),
    ("output_can_be_read_while_the_task_writes", output_can_be_read_while_the_task_writes),
    ("batch_work_completes_once_and_fails_by_its_policy", lives::batch_work_completes_once_and_fails_by_its_policy),
    ("hooks_run_around_the_main_task", lives::hooks_run_around_the_main_task),
    ("people_restart_signal_and_measure_tasks", lives::people_restart_signal_and_measure_tasks),
    ("a_failing_check_restarts_its_task", lives::a_failing_check_restarts_its_task),
    ("a_task_speaks_for_itself_by_a_ttl_check", lives::a_task_speaks_for_itself_by_a_ttl_check),
    ("templates_are_there_at_the_start_and_followed", files::templates_are_there_at_the_start_and_followed),
    ("a_missing_artifact_fails_its_task_by_name", files::a_missing_artifact_fails_its_task_by_name),
    ("what_nobody_owns_goes", lives::what_nobody_owns_goes),
    ("without_servers_a_group_stops_when_it_says_so", lives::without_servers_a_group_stops_when_it_says_so),
    ("an_agent_killed_again_and_again_leaves_what_is_wanted", crashes::twenty_kills),
];

const SOAK: &[(&str, Test)] =
    &[("an_agent_killed_two_hundred_times_leaves_what_is_wanted", crashes::two_hundred_kills)];

type Test = fn(&Bench);

/// Tasks here use the node's own network only.
struct HostOnly;

impl DataPath for HostOnly {
    fn create(&self, _: AllocId, _: Vec<AllocatedPort>) -> BoxFuture<'_, Result<Place, String>> {
        Box::pin(async { Err("network mode bridge is not part of this test".to_owned()) })
    }

    fn remove(&self, _: AllocId) -> BoxFuture<'_, Result<(), String>> {
        Box::pin(async { Ok(()) })
    }

    fn retain(&self, _: Vec<AllocId>) -> BoxFuture<'_, Result<(), String>> {
        Box::pin(async { Ok(()) })
    }

    fn set_routing(&self, _: RoutingSnapshot) -> BoxFuture<'_, Result<(), String>> {
        Box::pin(async { Ok(()) })
    }

    fn report(&self) -> BoxFuture<'_, Result<RouteReport, String>> {
        Box::pin(async { Ok(RouteReport::default()) })
    }
}

/// A data directory, and whatever still runs in it when the test ends, however it ends.
struct Bench {
    dir: tempfile::TempDir,
    data: DataDir,
}

/// One run of the agent's half that owns allocations. Dropping it is a crash: nothing is told, nothing is awaited.
struct Half {
    runtime: Option<Runtime>,
    allocs: Allocs,
}

/// What an agent without servers and without a data path runs tasks with.
fn shell(data: &DataDir, node: NodeId) -> Shell {
    let mut config = AgentConfig::for_address([127, 0, 0, 1].into());
    config.data_dir = data.root().to_owned();
    Shell {
        node: fingerprint::node(&config, node, Default::default()),
        data: data.clone(),
        launcher: Launcher::current(),
        drivers: vec![Box::new(RawExec { enabled: true })],
        data_path: Arc::new(HostOnly),
        drain_grace: Duration::from_millis(100),
        kill_timeout_max: Duration::from_secs(30),
        jitter: Jitter::seeded(1),
        checks: CheckPool::start(),
        launches: Shell::launches(),
        files: Sources { routing: watch::channel(None).1, cluster: None, policy: artifact::Policy::default() },
        rebooted: false,
    }
}

impl Bench {
    fn new() -> Self {
        let dir = tempfile::tempdir().unwrap();
        let data = DataDir::open(&dir.path().join("data")).unwrap();
        Self { dir, data }
    }

    fn agent(&self) -> Half {
        self.agent_with(|_| {})
    }

    fn agent_with(&self, change: impl FnOnce(&mut Shell)) -> Half {
        let runtime = Builder::new_current_thread().enable_all().build().unwrap();
        let allocs = runtime.block_on(async {
            let store = Store::open(&self.data.state_file()).unwrap();
            let mut shell = shell(&self.data, NodeId::from_random(self.bits(0)));
            change(&mut shell);
            Allocs::start(shell, store).await.unwrap()
        });
        Half { runtime: Some(runtime), allocs }
    }

    /// Random bits for an id whose first 32 bits, which cgroups are named by, no other test of this machine has.
    fn bits(&self, number: u128) -> u128 {
        (number << 24 | u128::from(std::process::id())) << 96
    }

    fn control(&self, alloc: &Allocation) -> PathBuf {
        Directories::under(&self.data.alloc(alloc.id), "server").control
    }

    fn alloc(&self, number: u128, script: &str, port: u16) -> Allocation {
        let mut alloc = fixtures::allocation(self.bits(number));
        let group = &mut Arc::make_mut(&mut alloc.job).groups[0];
        let args = vec!["-c".to_owned(), script.to_owned()];
        group.tasks[0].driver =
            TaskDriver::RawExec(ExecConfig { command: "/bin/sh".to_owned(), args, ..ExecConfig::default() });
        group.tasks[0].kill_signal = Some("SIGTERM".to_owned());
        group.restart = RestartPolicy {
            attempts: 5,
            interval: Duration::from_secs(60),
            delay: Duration::from_millis(1500),
            mode: RestartMode::Fail,
        };
        alloc.ports[0].host_port = port;
        alloc
    }
}

impl Drop for Bench {
    fn drop(&mut self) {
        let runtime = Builder::new_current_thread().enable_all().build().unwrap();
        runtime.block_on(async {
            for left in agent::end_tasks(&self.data).await {
                eprintln!("left behind in {}: {left}", self.dir.path().display());
            }
            drivers::cgroup::remove_node(&NodeId::from_random(self.bits(0)).short()).unwrap();
        });
    }
}

impl Half {
    fn block_on<T>(&self, work: impl Future<Output = T>) -> T {
        self.runtime.as_ref().unwrap().block_on(work)
    }

    fn push(&self, generation: u64, allocs: &[Allocation]) {
        self.block_on(self.allocs.push(Generation(generation), allocs.to_vec()));
    }

    /// Waits until the reports are as wanted.
    fn wait(&self, what: &str, mut wanted: impl FnMut(&Reports) -> bool) -> Reports {
        let mut reports = self.allocs.reports();
        let waited = self.block_on(async {
            tokio::time::timeout(Duration::from_secs(20), reports.wait_for(|reports| wanted(reports)))
                .await
                .map(|reports| Arc::clone(&reports.unwrap()))
        });
        waited.unwrap_or_else(|_| panic!("{what} did not come about: {:#?}", self.allocs.reports().borrow()))
    }

    fn wait_one(&self, alloc: &Allocation, what: &str, wanted: impl Fn(&AllocUpdate) -> bool) -> AllocUpdate {
        let all = self.wait(what, |reports| reports.get(&alloc.id).is_some_and(|update| wanted(update)));
        (*all[&alloc.id]).clone()
    }

    fn pid(&self, control: &Path) -> Pid {
        let status =
            self.block_on(async { TaskHandle::adopt(control).await.unwrap().unwrap().status().await.unwrap() });
        let Phase::Running { pid, .. } = status.phase else { panic!("{status:?}") };
        Pid::from_raw(pid)
    }

    /// Waits until nothing is left to adopt.
    fn gone(&self, control: &Path) {
        let deadline = Instant::now() + Duration::from_secs(10);
        while control.exists() {
            assert!(Instant::now() < deadline, "{} is still there", control.display());
            self.settle(Duration::from_millis(1));
        }
    }

    fn settle(&self, duration: Duration) {
        self.block_on(async { tokio::time::sleep(duration).await });
    }
}

impl Drop for Half {
    fn drop(&mut self) {
        if let Some(runtime) = self.runtime.take() {
            runtime.shutdown_timeout(Duration::from_secs(5));
        }
    }
}

fn healthy(update: &AllocUpdate) -> bool {
    update.client == ClientStatus::Running && update.checks["web/alive"].health == Health::Passing
}

fn restarts(update: &AllocUpdate) -> u32 {
    update.task_states["server"].restarts
}

/// What the tasks' checks connect to.
fn listener() -> (TcpListener, u16) {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let port = listener.local_addr().unwrap().port();
    (listener, port)
}

fn a_killed_task_is_reported_and_restarted(bench: &Bench) {
    let (_listener, port) = listener();
    let alloc = bench.alloc(1, "exec sleep 600", port);
    let agent = bench.agent();
    agent.push(1, std::slice::from_ref(&alloc));
    agent.wait_one(&alloc, "a passing check", healthy);
    let first = agent.pid(&bench.control(&alloc));
    let killed_at = Instant::now();
    kill(first, Signal::SIGKILL).unwrap();
    let report = agent.wait_one(&alloc, "the end", |update| update.client == ClientStatus::Pending);
    assert!(killed_at.elapsed() < Duration::from_secs(1), "{:?}", killed_at.elapsed());
    assert_eq!(report.checks["web/alive"].health, Health::Critical);
    let events = &report.task_states["server"].events;
    assert!(events.iter().any(|event| event.kind == "Terminated" && event.message.contains("137")), "{events:?}");
    let report = agent.wait_one(&alloc, "a restart", |update| restarts(update) == 1 && healthy(update));
    assert!(killed_at.elapsed() >= Duration::from_millis(1500), "the restart delay holds");
    assert_ne!(agent.pid(&bench.control(&alloc)), first, "{report:?}");
}

fn tasks_outlive_the_agent_and_are_adopted(bench: &Bench) {
    let (_listener, port) = listener();
    let alloc = bench.alloc(2, "exec sleep 600", port);
    let agent = bench.agent();
    agent.push(1, std::slice::from_ref(&alloc));
    let before = agent.wait_one(&alloc, "a passing check", healthy);
    let pid = agent.pid(&bench.control(&alloc));
    drop(agent);

    let agent = bench.agent();
    agent.wait_one(&alloc, "a passing check after adoption", healthy);
    agent.settle(Duration::from_millis(500));
    let after = agent.wait_one(&alloc, "an adopted task", |_| true);
    assert_eq!(after.task_states, before.task_states, "nothing restarted");
    assert_eq!(agent.pid(&bench.control(&alloc)), pid);
    drop(agent);

    kill(pid, Signal::SIGKILL).unwrap();
    let agent = bench.agent();
    agent.wait_one(&alloc, "a restart of what died meanwhile", |update| restarts(update) == 1 && healthy(update));
    drop(agent);

    let agent = bench.agent();
    let stop = Allocation { desired: DesiredStatus::Stop, ..alloc.clone() };
    agent.push(2, &[stop]);
    let report = agent.wait_one(&alloc, "the end", |update| update.client.is_terminal());
    assert_eq!(report.client, ClientStatus::Complete);
    agent.gone(&bench.control(&alloc));
    agent.push(3, &[]);
    agent.wait("forgetting", |reports| reports.is_empty());
    drop(agent);
    bench.agent().wait("an empty memory", |reports| reports.is_empty());
}

fn an_end_is_written_down_before_its_supervisor_is_let_go(bench: &Bench) {
    let mut alloc = bench.alloc(6, "exit 7", 1);
    Arc::make_mut(&mut alloc.job).groups[0].restart.delay = Duration::from_secs(30);
    let agent = bench.agent();
    agent.push(1, std::slice::from_ref(&alloc));
    agent.wait_one(&alloc, "an end", |update| update.task_states["server"].finished_at.0 > 0);
    agent.gone(&bench.control(&alloc));
    drop(agent);
    let kept = Store::open(&bench.data.state_file()).unwrap().allocs().unwrap().remove(&alloc.id).unwrap();
    let events = &kept.reported.unwrap().task_states["server"].events;
    assert!(events.iter().any(|event| event.message.contains("Exit Code: 7")), "{events:?}");
    assert_eq!(kept.memory.restarts["server"].ends, 1);
    assert!(kept.memory.restarts["server"].due.0 > 0);

    let agent = bench.agent();
    agent.settle(Duration::from_millis(500));
    agent.wait_one(&alloc, "still waiting for its restart", |update| restarts(update) == 0);
}

fn allocations_that_the_servers_left_out_stop(bench: &Bench) {
    let (kept, gone) = (bench.alloc(3, "exec sleep 600", 1), bench.alloc(4, "trap '' TERM; sleep 600", 2));
    let agent = bench.agent();
    agent.push(5, &[kept.clone(), gone.clone()]);
    for alloc in [&kept, &gone] {
        agent.wait_one(alloc, "running", |update| update.client == ClientStatus::Running);
    }
    agent.push(4, &[]);
    agent.settle(Duration::from_millis(300));
    assert_eq!(agent.allocs.reports().borrow().len(), 2, "an older generation is refused");
    let began = Instant::now();
    agent.push(6, std::slice::from_ref(&kept));
    agent.wait("one allocation only", |reports| reports.len() == 1);
    assert!(began.elapsed() >= Duration::from_secs(2), "it ignores SIGTERM and has 2 s until SIGKILL");
    agent.wait_one(&kept, "still running", |update| update.client == ClientStatus::Running && restarts(update) == 0);
}

fn output_can_be_read_while_the_task_writes(bench: &Bench) {
    let alloc = bench.alloc(5, "echo started $NOMAD_TASK_NAME; sleep 0.5; echo later; sleep 600", 1);
    let agent = bench.agent();
    agent.push(1, std::slice::from_ref(&alloc));
    let (outbound, mut inbox) = tokio::sync::mpsc::channel(4);
    let text = agent.block_on(async {
        let mut logs = LogReader::new(bench.data.clone()).for_session(outbound);
        let (task, kind) = ("server".to_owned(), LogKind::Stdout);
        logs.open(1, LogRange { alloc_id: alloc.id, task, kind, offset: 0, limit: 21, follow: true });
        let mut text = Vec::new();
        loop {
            let message = inbox.recv().await.unwrap().try_into().unwrap();
            let AgentMessage::LogChunk { data, eof, error, .. } = message else { panic!("{message:?}") };
            assert_eq!(error, None);
            text.extend(data);
            if eof {
                return String::from_utf8(text).unwrap();
            }
        }
    });
    assert_eq!(text, "started server\nlater\n");
}
