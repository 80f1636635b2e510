//! The job as JSON. Every field is optional because Go's clients write `null` for what they leave out.

use model::CheckKind;
use serde::{Deserialize, Serialize};
use serde_json::{Map, Value};
use std::collections::BTreeMap;
use std::time::Duration;

/// Keys beyond those of the struct, by name: what is not built, and what nobody knows.
pub type Others = Map<String, Value>;

macro_rules! nomad_struct {
    ($(#[$doc:meta])* $name:ident { $($(#[$field_doc:meta])* $field:ident: $type:ty),* $(,)? }) => {
        $(#[$doc])*
        #[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
        #[serde(default, rename_all = "PascalCase")]
        pub struct $name {
            $($(#[$field_doc])* pub $field: Option<$type>,)*
            #[serde(flatten)]
            pub others: Others,
        }
    };
}

nomad_struct!(Job {
    #[serde(rename = "ID")]
    id: String,
    name: String,
    namespace: String,
    region: String,
    #[serde(rename = "Type")]
    kind: String,
    priority: i64,
    datacenters: Vec<String>,
    node_pool: String,
    constraints: Vec<Constraint>,
    meta: BTreeMap<String, String>,
    /// The default of its groups; answers carry it there.
    update: UpdateStrategy,
    migrate: MigrateStrategy,
    task_groups: Vec<TaskGroup>,
    stop: bool,
    version: u64,
    submit_time: i64,
    /// `pending`, `running` or `dead`; only in answers.
    status: String,
    status_description: String,
    stable: bool,
    create_index: u64,
    modify_index: u64,
    job_modify_index: u64,
});

nomad_struct!(TaskGroup {
    name: String,
    count: i64,
    constraints: Vec<Constraint>,
    restart_policy: RestartPolicy,
    networks: Vec<NetworkResource>,
    services: Vec<Service>,
    tasks: Vec<Task>,
    meta: BTreeMap<String, String>,
    ephemeral_disk: EphemeralDisk,
    update: UpdateStrategy,
    migrate: MigrateStrategy,
});

nomad_struct!(UpdateStrategy {
    stagger: i64,
    max_parallel: i64,
    health_check: String,
    min_healthy_time: i64,
    healthy_deadline: i64,
    progress_deadline: i64,
    canary: i64,
    auto_revert: bool,
    auto_promote: bool,
    /// Ours: `stop-first` or `start-first`.
    order: String,
});

nomad_struct!(MigrateStrategy {
    max_parallel: i64,
    health_check: String,
    min_healthy_time: i64,
    healthy_deadline: i64,
});

nomad_struct!(Task {
    name: String,
    driver: String,
    user: String,
    config: Map<String, Value>,
    env: BTreeMap<String, String>,
    constraints: Vec<Constraint>,
    resources: Resources,
    restart_policy: RestartPolicy,
    services: Vec<Service>,
    meta: BTreeMap<String, String>,
    kill_timeout: i64,
    kill_signal: String,
    log_config: LogConfig,
});

nomad_struct!(Constraint {
    #[serde(rename = "LTarget")]
    l_target: String,
    #[serde(rename = "RTarget")]
    r_target: String,
    operand: String,
});

nomad_struct!(RestartPolicy { attempts: i64, interval: i64, delay: i64, mode: String });

nomad_struct!(NetworkResource {
    mode: String,
    dynamic_ports: Vec<Port>,
    reserved_ports: Vec<Port>,
});

nomad_struct!(Port { label: String, value: i64, to: i64, host_network: String });

nomad_struct!(EphemeralDisk {
    #[serde(rename = "SizeMB")]
    size_mb: i64,
});

nomad_struct!(Resources {
    #[serde(rename = "CPU")]
    cpu: i64,
    #[serde(rename = "MemoryMB")]
    memory_mb: i64,
});

nomad_struct!(LogConfig {
    max_files: i64,
    #[serde(rename = "MaxFileSizeMB")]
    max_file_size_mb: i64,
});

nomad_struct!(Service {
    name: String,
    tags: Vec<String>,
    port_label: String,
    provider: String,
    meta: BTreeMap<String, String>,
    checks: Vec<ServiceCheck>,
    task_name: String,
});

nomad_struct!(ServiceCheck {
    name: String,
    #[serde(rename = "Type")]
    kind: String,
    method: String,
    path: String,
    port_label: String,
    interval: i64,
    timeout: i64,
});

fn nanos(duration: Duration) -> Option<i64> {
    Some(i64::try_from(duration.as_nanos()).unwrap_or(i64::MAX))
}

fn int(value: u64) -> Option<i64> {
    Some(i64::try_from(value).unwrap_or(i64::MAX))
}

fn each<'a, M, N: From<&'a M>>(values: &'a [M]) -> Option<Vec<N>> {
    Some(values.iter().map(N::from).collect())
}

/// What every client may expect of a job and this version never has, so that none of them stumbles over its absence.
fn absent(names: &[&str]) -> Others {
    names.iter().map(|name| ((*name).to_owned(), Value::Null)).collect()
}

impl From<&model::Job> for Job {
    fn from(job: &model::Job) -> Self {
        Self {
            id: Some(job.id.0.clone()),
            name: Some(job.name.clone()),
            namespace: Some(job.namespace.clone()),
            region: Some(job.region.clone()),
            kind: Some(job.kind.as_str().to_owned()),
            priority: int(u64::from(job.priority)),
            datacenters: Some(job.datacenters.clone()),
            node_pool: Some(job.node_pool.clone()),
            constraints: each(&job.constraints),
            meta: Some(job.meta.clone()),
            update: None,
            migrate: None,
            task_groups: each(&job.groups),
            stop: Some(job.stopped),
            version: Some(job.version),
            submit_time: int(job.submitted_at.0),
            status: None,
            status_description: None,
            stable: Some(job.stable),
            create_index: None,
            modify_index: None,
            job_modify_index: None,
            others: absent(&["Affinities", "Spreads", "Periodic", "ParameterizedJob", "Multiregion"]),
        }
    }
}

impl From<&model::TaskGroup> for TaskGroup {
    fn from(group: &model::TaskGroup) -> Self {
        Self {
            name: Some(group.name.clone()),
            count: int(u64::from(group.count)),
            constraints: each(&group.constraints),
            restart_policy: Some((&group.restart).into()),
            networks: Some(group.network.iter().map(NetworkResource::from).collect()),
            services: each(&group.services),
            tasks: each(&group.tasks),
            meta: Some(group.meta.clone()),
            ephemeral_disk: Some(EphemeralDisk { size_mb: int(group.disk_mb), others: Others::new() }),
            update: group.update.as_ref().map(UpdateStrategy::from),
            migrate: Some(MigrateStrategy::of(group.migrate_max_parallel)),
            others: absent(&["Affinities", "Spreads", "Scaling", "Volumes"]),
        }
    }
}

impl From<&model::UpdatePolicy> for UpdateStrategy {
    fn from(policy: &model::UpdatePolicy) -> Self {
        Self {
            stagger: nanos(policy.stagger),
            max_parallel: int(u64::from(policy.max_parallel)),
            health_check: Some(policy.health_check.as_str().to_owned()),
            min_healthy_time: nanos(policy.min_healthy_time),
            healthy_deadline: nanos(policy.healthy_deadline),
            progress_deadline: nanos(policy.progress_deadline),
            canary: int(u64::from(policy.canary)),
            auto_revert: Some(policy.auto_revert),
            auto_promote: Some(policy.auto_promote),
            order: Some(policy.order.as_str().to_owned()),
            others: Others::new(),
        }
    }
}

impl MigrateStrategy {
    /// With the defaults of what is not built.
    fn of(max_parallel: u32) -> Self {
        Self {
            max_parallel: int(u64::from(max_parallel)),
            health_check: Some("checks".to_owned()),
            min_healthy_time: nanos(Duration::from_secs(10)),
            healthy_deadline: nanos(Duration::from_secs(300)),
            others: Others::new(),
        }
    }
}

impl From<&model::Task> for Task {
    fn from(task: &model::Task) -> Self {
        Self {
            name: Some(task.name.clone()),
            driver: Some(task.driver.name().to_owned()),
            user: Some(task.user.clone().unwrap_or_default()),
            config: Some(super::config::of_driver(&task.driver)),
            env: Some(task.env.clone()),
            constraints: each(&task.constraints),
            resources: Some((&task.resources).into()),
            restart_policy: None,
            services: each(&task.services),
            meta: Some(task.meta.clone()),
            kill_timeout: nanos(task.kill_timeout),
            kill_signal: Some(task.kill_signal.clone().unwrap_or_default()),
            log_config: Some((&task.logs).into()),
            others: absent(&["Affinities", "Artifacts", "Lifecycle", "Templates", "Vault", "VolumeMounts"]),
        }
    }
}

impl From<&model::Constraint> for Constraint {
    fn from(constraint: &model::Constraint) -> Self {
        Self {
            l_target: Some(constraint.attribute.clone()),
            r_target: Some(constraint.value.clone()),
            operand: Some(constraint.operator.as_str().to_owned()),
            others: Others::new(),
        }
    }
}

impl From<&model::RestartPolicy> for RestartPolicy {
    fn from(policy: &model::RestartPolicy) -> Self {
        let mode = match policy.mode {
            model::RestartMode::Fail => "fail",
            model::RestartMode::Delay => "delay",
        };
        Self {
            attempts: int(u64::from(policy.attempts)),
            interval: nanos(policy.interval),
            delay: nanos(policy.delay),
            mode: Some(mode.to_owned()),
            others: Others::new(),
        }
    }
}

impl From<&model::Network> for NetworkResource {
    fn from(network: &model::Network) -> Self {
        let mode = match network.mode {
            model::NetworkMode::Host => "host",
            model::NetworkMode::Bridge => "bridge",
            model::NetworkMode::None => "none",
        };
        let (reserved, dynamic): (Vec<_>, Vec<_>) = network.ports.iter().partition(|port| port.static_port.is_some());
        Self {
            mode: Some(mode.to_owned()),
            dynamic_ports: Some(dynamic.into_iter().map(Port::from).collect()),
            reserved_ports: Some(reserved.into_iter().map(Port::from).collect()),
            others: Others::new(),
        }
    }
}

impl From<&model::PortRequest> for Port {
    fn from(port: &model::PortRequest) -> Self {
        Self {
            label: Some(port.label.clone()),
            value: Some(port.static_port.map_or(0, i64::from)),
            to: Some(port.to.map_or(0, i64::from)),
            host_network: Some("default".to_owned()),
            others: Others::new(),
        }
    }
}

impl From<&model::Resources> for Resources {
    fn from(resources: &model::Resources) -> Self {
        Self { cpu: int(resources.cpu_mhz), memory_mb: int(resources.memory_mb), others: Others::new() }
    }
}

impl From<&model::LogConfig> for LogConfig {
    fn from(logs: &model::LogConfig) -> Self {
        Self {
            max_files: int(u64::from(logs.files_max)),
            max_file_size_mb: int(u64::from(logs.file_size_mb_max)),
            others: Others::new(),
        }
    }
}

impl From<&model::Service> for Service {
    fn from(service: &model::Service) -> Self {
        Self {
            name: Some(service.name.clone()),
            tags: Some(service.tags.clone()),
            port_label: Some(service.port_label.clone().unwrap_or_default()),
            provider: Some("nomad".to_owned()),
            meta: Some(service.meta.clone()),
            checks: each(&service.checks),
            task_name: Some(String::new()),
            others: Others::new(),
        }
    }
}

impl From<&model::Check> for ServiceCheck {
    fn from(check: &model::Check) -> Self {
        let (kind, method, path) = match &check.kind {
            CheckKind::Http { method, path, .. } => ("http", method.as_str(), path.as_str()),
            CheckKind::Tcp => ("tcp", "", ""),
            CheckKind::Grpc { .. } => ("grpc", "", ""),
            CheckKind::Script { .. } => ("script", "", ""),
            CheckKind::Ttl => ("ttl", "", ""),
        };
        Self {
            name: Some(check.name.clone()),
            kind: Some(kind.to_owned()),
            method: Some(method.to_owned()),
            path: Some(path.to_owned()),
            port_label: Some(check.port_label.clone().unwrap_or_default()),
            interval: nanos(check.interval),
            timeout: nanos(check.timeout),
            others: Others::new(),
        }
    }
}
