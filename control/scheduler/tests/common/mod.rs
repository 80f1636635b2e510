//! A cluster to schedule on: the real catalog, driven by commands, with a clock that moves when told.

use catalog::Catalog;
use model::{
    AllocId, AllocUpdate, Allocation, Applied, Authority, Check, CheckKind, CheckState, ClientStatus, Command,
    DriverStatus, Eligibility, Envelope, Epoch, EvalId, EvalStatus, EvalTrigger, Evaluation, ExecConfig, Health, Index,
    Job, JobId, Network, NetworkMode, Node, NodeId, NodeResources, NodeStatus, Plan, PortRequest, Refusal, Service,
    Task, TaskDriver, TaskGroup, TaskPhase, TaskState, Timestamp,
};
use scheduler::{ClusterState, ClusterView, Settings};
use std::collections::BTreeMap;
use std::net::{IpAddr, Ipv4Addr};
use std::sync::Arc;
use std::time::Duration;

pub struct Cluster {
    pub catalog: Catalog,
    pub now: Timestamp,
    pub seed: u64,
    pub settings: Settings,
    /// What a rebalance wants to move.
    pub moving: Vec<AllocId>,
    evals: u128,
}

impl Cluster {
    pub fn new(seed: u64) -> Self {
        let mut cluster = Self {
            catalog: Catalog::default(),
            now: Timestamp::from_secs(1_700_000_000),
            seed,
            settings: Settings::default(),
            moving: Vec::new(),
            evals: 0,
        };
        cluster.must(Command::Bootstrap {
            authority: Authority { certificate_der: Vec::new(), sealed_key: Vec::new() },
            alloc_range: "10.64.0.0/11".parse().unwrap(),
            vip_range: "10.43.0.0/16".parse().unwrap(),
        });
        cluster
    }

    pub fn apply(&mut self, command: Command) -> Result<Applied, Refusal> {
        let index = Index(self.catalog.index().0 + 1);
        self.catalog.apply(index, &Envelope { proposed_at: self.now, feature_level: 1, command })
    }

    pub fn must(&mut self, command: Command) -> Applied {
        self.apply(command).unwrap()
    }

    pub fn advance(&mut self, time: Duration) {
        self.now = self.now.plus(time);
    }

    pub fn eval(&mut self, job: &str) -> Evaluation {
        self.evals += 1;
        Evaluation {
            id: EvalId::from_random(self.evals),
            job_id: JobId(job.to_owned()),
            priority: 50,
            trigger: EvalTrigger::JobRegister,
            status: EvalStatus::Pending,
            status_description: String::new(),
            wait_until: Timestamp::NEVER,
            failures: BTreeMap::new(),
            queued: BTreeMap::new(),
            snapshot_index: Index(0),
            created_at: self.now,
            modified_at: self.now,
            created_at_index: Index(0),
            modified_at_index: Index(0),
        }
    }

    pub fn register_node(&mut self, mut node: Node) {
        node.epoch = Epoch(self.catalog.node(node.id).map_or(0, |known| known.epoch.0) + 1);
        self.must(Command::RegisterNode(Box::new(node)));
    }

    pub fn set_status(&mut self, name: &str, status: NodeStatus) {
        let node = self.node_named(name);
        self.must(Command::SetNodeStatus { node_id: node.id, epoch: node.epoch, status, evals: Vec::new() });
    }

    pub fn register_job(&mut self, job: Job) {
        let eval = self.eval(&job.id.0);
        self.must(Command::RegisterJob { job: Box::new(job), eval, enforce_index: None });
    }

    pub fn stop_job(&mut self, job: &str, purge: bool) {
        let eval = self.eval(job);
        self.must(Command::DeregisterJob { job_id: JobId(job.to_owned()), purge, eval });
    }

    /// Plans and applies; the plan, what was dropped and the evaluation afterwards.
    pub fn plan_and_apply(&mut self, job: &str) -> (Plan, Applied, Arc<Evaluation>) {
        let eval = self.eval(job);
        self.must(Command::UpsertEvals(vec![eval.clone()]));
        let plan = self.plan(&eval);
        let applied = self.must(Command::ApplyPlan { plan: Box::new(plan.clone()), follow_up: None });
        (plan, applied, self.catalog.eval(eval.id).unwrap().clone())
    }

    pub fn plan(&self, eval: &Evaluation) -> Plan {
        self.plan_on(&self.state(), eval)
    }

    pub fn plan_on(&self, state: &ClusterState, eval: &Evaluation) -> Plan {
        let job = self.catalog.job(&eval.job_id);
        scheduler::plan(&self.view(state, eval), eval, job.map(Arc::as_ref), self.now, self.seed)
    }

    pub fn view<'a>(&'a self, state: &'a ClusterState, eval: &Evaluation) -> ClusterView<'a> {
        let allocs = self.catalog.allocs_of_job(&eval.job_id).map(Arc::as_ref).collect();
        let deployment = self.catalog.latest_deployment(&eval.job_id).map(Arc::as_ref);
        let lookup = |id: &JobId| {
            Some((self.catalog.job(id)?.as_ref(), self.catalog.allocs_of_job(id).map(Arc::as_ref).collect()))
        };
        let unmet = self.catalog.job(&eval.job_id).map(|job| scheduler::unmet(job, lookup)).unwrap_or_default();
        let (settings, moving) = (self.settings, self.moving.clone());
        ClusterView { settings, unmet, moving, ..ClusterView::new(state, allocs, deployment) }
    }

    pub fn state(&self) -> ClusterState {
        ClusterState::of(self.catalog.index(), self.catalog.nodes(), self.catalog.allocs())
    }

    /// What the allocation's node would report.
    pub fn report(&mut self, id: AllocId, client: ClientStatus, health: Health) {
        let alloc = self.catalog.alloc(id).unwrap().clone();
        let node = self.catalog.node(alloc.node_id).unwrap().clone();
        let update = update(&alloc, client, health, self.now);
        self.must(Command::UpdateAllocs {
            node_id: node.id,
            epoch: node.epoch,
            updates: vec![update],
            evals: Vec::new(),
        });
    }

    pub fn node_named(&self, name: &str) -> Arc<Node> {
        self.catalog.nodes().find(|node| node.name == name).unwrap_or_else(|| panic!("no node {name}")).clone()
    }

    pub fn live(&self) -> Vec<Arc<Allocation>> {
        self.catalog.allocs().filter(|alloc| alloc.is_live()).cloned().collect()
    }
}

pub fn update(alloc: &Allocation, client: ClientStatus, health: Health, now: Timestamp) -> AllocUpdate {
    let group = alloc.task_group().unwrap();
    let (phase, finished_at) = match client {
        ClientStatus::Pending => (TaskPhase::Pending, Timestamp::NEVER),
        ClientStatus::Running => (TaskPhase::Running, Timestamp::NEVER),
        _ => (TaskPhase::Dead, now),
    };
    let state = TaskState { phase, finished_at, started_at: alloc.created_at, ..TaskState::default() };
    let checks = group.all_services().flat_map(|service| service.checks.iter().map(|check| check.id(&service.name)));
    AllocUpdate {
        alloc_id: alloc.id,
        client,
        client_description: String::new(),
        task_states: group.tasks.iter().map(|task| (task.name.clone(), state.clone())).collect(),
        address: None,
        checks: checks
            .map(|id| (id, CheckState { health, output: String::new(), changed_at: Timestamp::NEVER }))
            .collect(),
    }
}

/// Ready to register; everything but the name is alike.
pub fn node(name: &str) -> Node {
    let number = name.bytes().fold(7u128, |bits, byte| bits.wrapping_mul(31).wrapping_add(u128::from(byte)));
    let healthy = DriverStatus { detected: true, healthy: true, description: String::new() };
    Node {
        id: NodeId::from_random(number),
        name: name.to_owned(),
        datacenter: "dc1".to_owned(),
        pool: "default".to_owned(),
        class: String::new(),
        address: IpAddr::V4(Ipv4Addr::from(0x0a4d_0000 | (number as u32 & 0xffff))),
        attributes: BTreeMap::from([("kernel.name".to_owned(), "linux".to_owned())]),
        meta: BTreeMap::new(),
        resources: NodeResources { cpu_mhz: 4000, memory_mb: 4096, disk_mb: 10_000 },
        drivers: BTreeMap::from([("exec".to_owned(), healthy)]),
        status: NodeStatus::Initializing,
        eligibility: Eligibility::Eligible,
        drain: None,
        epoch: Epoch(0),
        blocks: Vec::new(),
        version: "0.1.0".to_owned(),
        status_changed_at: Timestamp::NEVER,
        created_at_index: Index(0),
        modified_at_index: Index(0),
    }
}

pub fn job(name: &str, groups: Vec<TaskGroup>) -> Job {
    Job { groups, ..Job::named(name) }
}

pub fn group(name: &str, count: u32) -> TaskGroup {
    TaskGroup { count, tasks: vec![task("main")], ..TaskGroup::named(name) }
}

pub fn task(name: &str) -> Task {
    let config = ExecConfig { command: "/bin/true".to_owned(), ..ExecConfig::default() };
    Task::named(name, TaskDriver::Exec(config))
}

pub fn add_port(group: &mut TaskGroup, label: &str, static_port: Option<u16>, to: Option<u16>) {
    let network = group.network.get_or_insert_with(|| Network::of(NetworkMode::Host, Vec::new()));
    network.ports.push(PortRequest { label: label.to_owned(), static_port, to });
}

pub fn checked_service(name: &str) -> Service {
    let second = Duration::from_secs(1);
    let check = Check::named("alive", CheckKind::Tcp, second, second);
    Service { checks: vec![check], ..Service::named(name, None) }
}
