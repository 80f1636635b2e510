//! One small service job and allocations of it, for tests.

use model::*;
use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

pub fn task(name: &str) -> Task {
    Task {
        name: name.to_owned(),
        driver: TaskDriver::RawExec(ExecConfig { command: "/bin/sleep".to_owned(), args: vec!["600".to_owned()] }),
        user: None,
        env: BTreeMap::new(),
        constraints: Vec::new(),
        resources: Resources { cpu_mhz: 50, memory_mb: 32 },
        kill_timeout: Duration::from_secs(2),
        kill_signal: None,
        services: Vec::new(),
        logs: LogConfig { files_max: 2, file_size_mb_max: 1 },
        meta: BTreeMap::new(),
    }
}

pub fn service(name: &str, checks: &[&str]) -> Service {
    let check = |name: &&str| Check {
        name: (*name).to_owned(),
        kind: CheckKind::Tcp,
        interval: Duration::from_secs(10),
        timeout: Duration::from_secs(1),
        port_label: None,
    };
    Service {
        name: name.to_owned(),
        tags: Vec::new(),
        port_label: Some("http".to_owned()),
        checks: checks.iter().map(check).collect(),
        meta: BTreeMap::new(),
    }
}

pub fn job(tasks: Vec<Task>, services: Vec<Service>) -> Job {
    let group = TaskGroup {
        name: "web".to_owned(),
        count: 1,
        constraints: Vec::new(),
        restart: RestartPolicy {
            attempts: 1,
            interval: Duration::from_secs(60),
            delay: Duration::from_secs(4),
            mode: RestartMode::Fail,
        },
        network: None,
        services,
        tasks,
        meta: BTreeMap::new(),
        disk_mb: 300,
        update: None,
        migrate_max_parallel: 1,
    };
    Job {
        id: JobId("shop".to_owned()),
        name: "shop".to_owned(),
        namespace: "default".to_owned(),
        region: "global".to_owned(),
        kind: JobKind::Service,
        priority: 50,
        datacenters: vec!["*".to_owned()],
        node_pool: "default".to_owned(),
        constraints: Vec::new(),
        meta: BTreeMap::new(),
        groups: vec![group],
        version: 0,
        stopped: false,
        stable: false,
        submitted_at: Timestamp::from_secs(1),
    }
}

pub fn allocation_of(number: u128, job: Job) -> Allocation {
    Allocation {
        id: AllocId::from_random(number),
        eval_id: EvalId::from_random(1),
        node_id: NodeId::from_random(1),
        node_name: "n1".to_owned(),
        group: job.groups[0].name.clone(),
        job: Arc::new(job),
        slot: 0,
        ports: vec![AllocatedPort { label: "http".to_owned(), host_port: 20_001, to: 8080 }],
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
        created_at: Timestamp::from_secs(1),
        modified_at: Timestamp::from_secs(1),
        created_at_index: Index(1),
        modified_at_index: Index(1),
    }
}

pub fn allocation(number: u128) -> Allocation {
    allocation_of(number, job(vec![task("server")], vec![service("web", &["alive"])]))
}
