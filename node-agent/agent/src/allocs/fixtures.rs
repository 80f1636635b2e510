//! One small service job and allocations of it, for tests.

use model::*;
use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

pub fn task(name: &str) -> Task {
    let config = ExecConfig { command: "/bin/sleep".to_owned(), args: vec!["600".to_owned()], ..ExecConfig::default() };
    Task {
        resources: Resources { cpu_mhz: 50, memory_mb: 32, ..Resources::default() },
        kill_timeout: Duration::from_secs(2),
        logs: LogConfig { files_max: 2, file_size_mb_max: 1 },
        ..Task::named(name, TaskDriver::RawExec(config))
    }
}

pub fn service(name: &str, checks: &[&str]) -> Service {
    let check = |name: &&str| Check::named(name, CheckKind::Tcp, Duration::from_secs(10), Duration::from_secs(1));
    Service { checks: checks.iter().map(check).collect(), ..Service::named(name, Some("http")) }
}

pub fn job(tasks: Vec<Task>, services: Vec<Service>) -> Job {
    let group = TaskGroup {
        restart: RestartPolicy {
            attempts: 1,
            interval: Duration::from_secs(60),
            delay: Duration::from_secs(4),
            mode: RestartMode::Fail,
        },
        services,
        tasks,
        ..TaskGroup::named("web")
    };
    Job { groups: vec![group], submitted_at: Timestamp::from_secs(1), ..Job::named("shop") }
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
