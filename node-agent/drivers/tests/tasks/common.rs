//! A node with allocations to start real tasks on, cleared away whatever happens.

use crate::engines::{self, IMAGE};
use drivers::{
    Directories, Driver, Exec, Launch, Launcher, PrepareError, RawExec, State, TaskHandle, TaskSpec, cgroup,
};
use model::*;
use std::collections::BTreeMap;
use std::net::IpAddr;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, Instant};

pub const NODE_ADDRESS: IpAddr = IpAddr::V4(std::net::Ipv4Addr::new(10, 77, 0, 11));

/// One node of its own per test, so that tests run beside each other.
pub struct Bench {
    pub dir: tempfile::TempDir,
    pub node: Node,
    pub alloc_id: AllocId,
    /// The allocation's namespace and address; `None` is network mode host.
    pub network: Option<(PathBuf, IpAddr)>,
}

impl Bench {
    pub fn new() -> Self {
        assert!(nix::unistd::geteuid().is_root(), "these tests start real tasks: run them as root");
        let node = node(NodeId(uuid::Uuid::from_bytes(random())));
        Self {
            dir: tempfile::tempdir().expect("dir"),
            node,
            alloc_id: AllocId(uuid::Uuid::from_bytes(random())),
            network: None,
        }
    }

    pub fn launcher(&self) -> Launcher {
        Launcher::new(env!("CARGO_BIN_EXE_meshctl-task"))
    }

    pub fn root(&self) -> PathBuf {
        self.dir.path().join(self.alloc_id.to_string())
    }

    pub fn dirs(&self) -> Directories {
        Directories::under(&self.root(), "t")
    }

    /// The spec that the driver makes of a shell script.
    pub fn script(&self, driver: &dyn Driver, script: &str) -> TaskSpec {
        self.spec(driver, "/bin/sh", &["-c", script])
    }

    pub fn spec(&self, driver: &dyn Driver, command: &str, args: &[&str]) -> TaskSpec {
        self.prepare(driver, task(self.driver_config(driver, command, args))).expect("prepares")
    }

    fn driver_config(&self, driver: &dyn Driver, command: &str, args: &[&str]) -> TaskDriver {
        let words: Vec<String> = args.iter().map(|arg| (*arg).to_owned()).collect();
        let config = ExecConfig { command: command.to_owned(), args: words.clone(), ..ExecConfig::default() };
        match driver.name() {
            "exec" => TaskDriver::Exec(config),
            "raw_exec" => TaskDriver::RawExec(config),
            other => {
                let words = words.into_iter().map(ConfigValue::Text).collect();
                let text = |text: &str| ConfigValue::Text(text.to_owned());
                let pairs = [("image", text(IMAGE)), ("command", text(command)), ("args", ConfigValue::List(words))];
                plugin(Plugin::parse(other).expect("a plugin"), &pairs)
            }
        }
    }

    /// What the driver makes of a task.
    pub fn prepare(&self, driver: &dyn Driver, task: Task) -> Result<TaskSpec, PrepareError> {
        let mode = if self.network.is_some() { NetworkMode::Bridge } else { NetworkMode::Host };
        let alloc = alloc(self.alloc_id, &self.node, task, mode);
        let task = &alloc.job.groups[0].tasks[0];
        let launch = Launch {
            node: &self.node,
            alloc: &alloc,
            task,
            root: &self.root(),
            netns: self.network.as_ref().map(|(netns, _)| netns.clone()),
            address: self.network.as_ref().map(|(_, address)| *address),
            resolver: Some(IpAddr::from([10, 64, 0, 1])),
        };
        driver.prepare(&launch)
    }

    pub async fn start(&self, spec: &TaskSpec) -> TaskHandle {
        let started = self.launcher().start(spec).await;
        assert!(started.is_ok(), "{:?}: {}", started.err(), self.supervisor_log());
        started.expect("was checked")
    }

    /// Runs a script to its end and gives its output.
    pub async fn output(&self, driver: &dyn Driver, script: &str) -> String {
        let task = self.start(&self.script(driver, script)).await;
        let status = task.wait().await.expect("waits");
        let output = self.log("stdout", 0);
        assert!(status.success(), "{status}: {output}{}", self.log("stderr", 0));
        task.forget().await.expect("forgets");
        output
    }

    pub fn log(&self, stream: &str, index: u32) -> String {
        let path = self.dirs().logs.join(format!("t.{stream}.{index}"));
        std::fs::read_to_string(path).unwrap_or_default()
    }

    /// Waits for the text to appear in the first stdout file.
    pub async fn saw(&self, text: &str) {
        let deadline = Instant::now() + Duration::from_secs(10);
        while !self.log("stdout", 0).contains(text) {
            assert!(Instant::now() < deadline, "no {text:?} in {:?}", self.log("stdout", 0));
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    }

    /// Nothing of the task is left in the kernel: no cgroup, no mount, no process.
    pub fn assert_clean(&self, state: &State) {
        assert!(state.cgroup.is_gone(), "{:?}", state.cgroup);
        let mounts = std::fs::read_to_string("/proc/self/mountinfo").expect("reads");
        let dir = self.dir.path().display().to_string();
        assert!(!mounts.contains(&dir), "{mounts}");
    }

    fn supervisor_log(&self) -> String {
        std::fs::read_to_string(self.dirs().control.join("supervisor.log")).unwrap_or_default()
    }
}

impl Drop for Bench {
    fn drop(&mut self) {
        if let Ok(Some(state)) = State::read(&self.dirs().control) {
            for pid in supervisors(&self.dirs().control) {
                let _ = nix::sys::signal::kill(nix::unistd::Pid::from_raw(pid), nix::sys::signal::Signal::SIGKILL);
            }
            if state.container.is_none() {
                let _ = state.cgroup.kill_all().and_then(|()| state.cgroup.remove());
            }
        }
        // The last supervisor may be on its way out.
        let deadline = Instant::now() + Duration::from_secs(3);
        let mut gone = false;
        while !gone && Instant::now() < deadline {
            gone = cgroup::remove_node(&self.node.id.short()).is_ok();
        }
        assert!(gone || std::thread::panicking(), "the node's cgroups are left");
    }
}

/// The supervisors of a control directory, by their command line.
pub fn supervisors(control: &Path) -> Vec<i32> {
    let entries = std::fs::read_dir("/proc").expect("lists").flatten();
    let pids = entries.filter_map(|entry| entry.file_name().to_str()?.parse::<i32>().ok());
    let wanted = format!("meshctl\0supervise\0{}\0", control.display());
    pids.filter(|pid| std::fs::read(format!("/proc/{pid}/cmdline")).is_ok_and(|line| line == wanted.as_bytes()))
        .collect()
}

/// Whether any process of the machine has the text in its command line.
pub fn runs(text: &str) -> bool {
    let entries = std::fs::read_dir("/proc").expect("lists").flatten();
    let lines = entries.filter_map(|entry| std::fs::read(entry.path().join("cmdline")).ok());
    lines.into_iter().any(|line| String::from_utf8_lossy(&line).contains(text))
}

pub fn processes_drivers() -> Vec<Box<dyn Driver>> {
    vec![Box::new(Exec), Box::new(RawExec { enabled: true })]
}

pub fn drivers() -> Vec<Box<dyn Driver>> {
    vec![Box::new(Exec), Box::new(RawExec { enabled: true }), Box::new(engines::docker())]
}

pub fn plugin(driver: Plugin, pairs: &[(&str, ConfigValue)]) -> TaskDriver {
    let config = pairs.iter().map(|(key, value)| ((*key).to_owned(), value.clone())).collect();
    TaskDriver::Plugin(PluginConfig { driver, config })
}

fn random() -> [u8; 16] {
    use std::io::Read;
    let mut bytes = [0; 16];
    std::fs::File::open("/dev/urandom").and_then(|mut file| file.read_exact(&mut bytes)).expect("random");
    bytes
}

pub fn task(driver: TaskDriver) -> Task {
    Task {
        env: BTreeMap::from([("GREETING".into(), "hi from ${node.unique.name}".into())]),
        resources: Resources { cpu_mhz: 100, memory_mb: 64, ..Resources::default() },
        logs: LogConfig { files_max: 3, file_size_mb_max: 1 },
        ..Task::named("t", driver)
    }
}

fn alloc(id: AllocId, node: &Node, task: Task, mode: NetworkMode) -> Allocation {
    let group = TaskGroup {
        tasks: vec![task],
        network: Some(Network::of(mode, Vec::new())),
        meta: BTreeMap::from([("colour".into(), "red".into())]),
        disk_mb: 10,
        ..TaskGroup::named("g")
    };
    let job = Job { groups: vec![group], ..Job::named("j") };
    Allocation {
        id,
        eval_id: EvalId::from_random(1),
        node_id: node.id,
        node_name: node.name.clone(),
        job: Arc::new(job),
        group: "g".into(),
        slot: 0,
        ports: vec![AllocatedPort { label: "http".into(), host_port: 20_001, to: 8080 }],
        previous: None,
        reschedules: 0,
        desired: DesiredStatus::Run,
        desired_description: String::new(),
        client: ClientStatus::Pending,
        client_description: String::new(),
        task_states: BTreeMap::new(),
        address: None,
        checks: BTreeMap::new(),
        deployment: None,
        created_at: Timestamp::NEVER,
        modified_at: Timestamp::NEVER,
        created_at_index: Index(0),
        modified_at_index: Index(0),
    }
}

fn node(id: NodeId) -> Node {
    Node {
        id,
        name: "n1".into(),
        datacenter: "dc1".into(),
        pool: "default".into(),
        class: String::new(),
        address: NODE_ADDRESS,
        attributes: BTreeMap::new(),
        meta: BTreeMap::new(),
        resources: NodeResources::default(),
        drivers: BTreeMap::new(),
        status: NodeStatus::Ready,
        eligibility: Eligibility::Eligible,
        drain: None,
        epoch: Epoch(1),
        blocks: Vec::new(),
        version: VERSION.into(),
        status_changed_at: Timestamp::NEVER,
        created_at_index: Index(0),
        modified_at_index: Index(0),
    }
}
