//! Commands and rows to test with, and a log that counts its own indices.

use crate::Catalog;
use model::{
    AllocId, AllocUpdate, Allocation, Applied, Authority, Check, CheckKind, CheckState, ClientStatus, Command,
    DesiredStatus, DriverStatus, Eligibility, Envelope, Epoch, EvalId, EvalStatus, EvalTrigger, Evaluation, ExecConfig,
    Health, Index, Job, JobId, Network, NetworkMode, Node, NodeId, NodeResources, NodeStatus, PortRequest, Refusal,
    Resources, Service, Task, TaskDriver, TaskGroup, TaskPhase, TaskState, Timestamp,
};
use std::collections::BTreeMap;
use std::net::IpAddr;
use std::time::Duration;

/// A catalog with the log that leads to it.
#[derive(Clone, Debug)]
pub(super) struct Log {
    pub(super) state: Catalog,
    pub(super) now: u64,
    evals: u128,
}

impl Default for Log {
    fn default() -> Self {
        Self { state: Catalog::default(), now: 10, evals: 1 << 64 }
    }
}

impl Log {
    pub(super) fn ready() -> Self {
        let mut log = Self::default();
        log.must(bootstrap("10.64.0.0/11", "10.43.0.0/16"));
        log
    }

    pub(super) fn apply(&mut self, command: Command) -> Result<Applied, Refusal> {
        self.state.apply(Index(self.state.index().0 + 1), &at(self.now, command))
    }

    #[track_caller]
    pub(super) fn must(&mut self, command: Command) -> Applied {
        self.apply(command).unwrap()
    }

    /// The refusal, which must have changed nothing.
    #[track_caller]
    pub(super) fn refused(&mut self, command: Command) -> Refusal {
        let mut before = self.state.image();
        let refusal = self.apply(command).unwrap_err();
        before.index = self.state.index();
        assert_eq!(self.state.image(), before);
        refusal
    }

    pub(super) fn new_eval(&mut self, job: &str) -> Evaluation {
        self.evals += 1;
        eval(self.evals, job)
    }

    pub(super) fn register(&mut self, job: Job) {
        let eval = self.new_eval(&job.id.0);
        self.must(Command::RegisterJob { job: Box::new(job), eval, enforce_index: None });
    }

    pub(super) fn deregister(&mut self, job: &str, purge: bool) {
        let eval = self.new_eval(job);
        self.must(Command::DeregisterJob { job_id: JobId(job.to_owned()), purge, eval });
    }

    pub(super) fn placement(&self, job: &str, slot: u32, id: AllocId) -> Allocation {
        let job = self.state.job(&JobId(job.to_owned())).unwrap().clone();
        Allocation {
            id,
            eval_id: EvalId::from_random(0),
            node_id: node_id(1),
            node_name: "n1".to_owned(),
            job,
            group: "main".to_owned(),
            slot,
            ports: Vec::new(),
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

    /// A healthy report, but for `client`.
    pub(super) fn update_of(&self, id: AllocId, client: ClientStatus) -> AllocUpdate {
        let alloc = self.state.alloc(id).unwrap();
        let phase = if client == ClientStatus::Running { TaskPhase::Running } else { TaskPhase::Dead };
        let passing = CheckState { health: Health::Passing, output: String::new(), changed_at: Timestamp::NEVER };
        AllocUpdate {
            alloc_id: id,
            client,
            client_description: String::new(),
            task_states: BTreeMap::from([("main".to_owned(), TaskState { phase, ..TaskState::default() })]),
            address: Some(IpAddr::from([10, 64, 0, 5])),
            checks: BTreeMap::from([(format!("{}/alive", alloc.job_id()), passing)]),
        }
    }
}

pub(super) fn at(now: u64, command: Command) -> Envelope {
    Envelope { proposed_at: Timestamp::from_secs(now), feature_level: 1, command }
}

pub(super) fn node_id(n: u128) -> NodeId {
    NodeId::from_random(n)
}

pub(super) fn alloc_id(n: u128) -> AllocId {
    AllocId::from_random(n)
}

pub(super) fn bootstrap(alloc_range: &str, vip_range: &str) -> Command {
    Command::Bootstrap {
        authority: Authority { certificate_der: vec![1], sealed_key: vec![2] },
        alloc_range: alloc_range.parse().unwrap(),
        vip_range: vip_range.parse().unwrap(),
    }
}

pub(super) fn status(node: u128, epoch: u64, status: NodeStatus) -> Command {
    Command::SetNodeStatus { node_id: node_id(node), epoch: Epoch(epoch), status, evals: Vec::new() }
}

pub(super) fn eval(n: u128, job: &str) -> Evaluation {
    Evaluation {
        id: EvalId::from_random(n),
        job_id: JobId(job.to_owned()),
        priority: 50,
        trigger: EvalTrigger::JobRegister,
        status: EvalStatus::Pending,
        status_description: String::new(),
        wait_until: Timestamp::NEVER,
        failures: BTreeMap::new(),
        queued: BTreeMap::new(),
        snapshot_index: Index(0),
        created_at: Timestamp::NEVER,
        modified_at: Timestamp::NEVER,
        created_at_index: Index(0),
        modified_at_index: Index(0),
    }
}

pub(super) fn node(n: u128, name: &str) -> Node {
    Node {
        id: node_id(n),
        name: name.to_owned(),
        datacenter: "dc1".to_owned(),
        pool: "default".to_owned(),
        class: String::new(),
        address: IpAddr::from([10, 77, 0, 10 + n as u8]),
        attributes: BTreeMap::new(),
        meta: BTreeMap::new(),
        resources: NodeResources { cpu_mhz: 4000, memory_mb: 8000, disk_mb: 8000 },
        drivers: BTreeMap::from([(
            "exec".to_owned(),
            DriverStatus { detected: true, healthy: true, description: String::new() },
        )]),
        status: NodeStatus::Initializing,
        eligibility: Eligibility::Eligible,
        drain: None,
        epoch: Epoch(1),
        blocks: Vec::new(),
        version: "0.1.0".to_owned(),
        status_changed_at: Timestamp::NEVER,
        created_at_index: Index(0),
        modified_at_index: Index(0),
    }
}

/// A group `main` with a task `main`, and a service of the job's name with a check.
pub(super) fn job(name: &str, count: u32) -> Job {
    let second = Duration::from_secs(1);
    let check = Check::named("alive", CheckKind::Tcp, second, second);
    let service = Service { checks: vec![check], ..Service::named(name, Some("http")) };
    let port = PortRequest { label: "http".to_owned(), static_port: None, to: Some(8080) };
    let group = TaskGroup {
        count,
        network: Some(Network::of(NetworkMode::Bridge, vec![port])),
        services: vec![service],
        tasks: vec![task()],
        disk_mb: 10,
        ..TaskGroup::named("main")
    };
    Job { groups: vec![group], ..Job::named(name) }
}

fn task() -> Task {
    let config = ExecConfig { command: "/bin/true".to_owned(), ..ExecConfig::default() };
    let resources = Resources { cpu_mhz: 200, memory_mb: 64, ..Resources::default() };
    Task { resources, ..Task::named("main", TaskDriver::Exec(config)) }
}
