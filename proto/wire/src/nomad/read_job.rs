//! From JSON to `model::Job`: defaults filled in, every problem found and named by its path.

use super::config::{self, ConfigProblem};
use super::job::*;
use model::{
    CheckKind, CheckTls, ExecConfig, Job as ModelJob, JobKind, NetworkMode, OnUpdate, Plugin, PluginConfig,
    PortRequest, Task as ModelTask, TaskDriver, TaskGroup as ModelGroup, rules,
};
use serde_json::{Value, json};
use std::fmt;
use std::time::Duration;
use thiserror::Error;

/// Why a job was not taken; nothing of it was.
#[derive(Clone, Debug, PartialEq, Eq, Error)]
pub struct JobRefusal {
    pub problems: Vec<JobProblem>,
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub enum JobProblem {
    /// Nomad would act on it, this version does not yet.
    NotBuilt {
        path: String,
    },
    Missing {
        path: String,
    },
    Invalid {
        path: String,
        reason: String,
    },
}

impl fmt::Display for JobRefusal {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("the job is refused:")?;
        self.problems.iter().try_for_each(|problem| write!(f, "\n* {problem}"))
    }
}

impl fmt::Display for JobProblem {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            JobProblem::NotBuilt { path } => write!(f, "{path} is not built yet; leave it out"),
            JobProblem::Missing { path } => write!(f, "{path} is required"),
            JobProblem::Invalid { path, reason } => write!(f, "{path}: {reason}"),
        }
    }
}

impl TryFrom<Job> for ModelJob {
    type Error = JobRefusal;

    fn try_from(job: Job) -> Result<Self, JobRefusal> {
        let mut reader = Reader::default();
        let job = reader.job(job);
        if reader.problems.is_empty() { Ok(job) } else { Err(JobRefusal { problems: reader.problems }) }
    }
}

const JOB_NOT_BUILT: [&str; 2] = ["AllAtOnce", "Multiregion"];
const GROUP_NOT_BUILT: [&str; 3] = ["Consul", "PreventRescheduleOnLost", "Scaling"];
const TASK_NOT_BUILT: [&str; 10] = [
    "Actions",
    "CSIPluginConfig",
    "Consul",
    "Identities",
    "Identity",
    "Kind",
    "ScalingPolicies",
    "Schedule",
    "Secrets",
    "Vault",
];
const RESOURCES_NOT_BUILT: [&str; 5] = ["DiskMB", "IOPS", "NUMA", "Networks", "SecretsMB"];
const NETWORK_NOT_BUILT: [&str; 4] = ["CIDR", "CNI", "IP", "MBits"];
const SERVICE_NOT_BUILT: [&str; 9] =
    ["Address", "AddressMode", "Cluster", "Connect", "EnableTagOverride", "Identity", "Kind", "TaggedAddresses", "Id"];
const CHECK_NOT_BUILT: [&str; 4] = ["AddressMode", "Expose", "FailuresBeforeWarning", "Notes"];

/// What Nomad's clients fill in for a block that the user left out; the same as leaving it out.
fn client_default(name: &str) -> Value {
    match name {
        "Consul" => json!({ "Cluster": "default" }),
        "AddressMode" => json!("auto"),
        "Cluster" => json!("default"),
        _ => Value::Null,
    }
}

/// The JSON name of what job files call `name`.
fn field_name(name: &str) -> String {
    let known = match name {
        "affinity" => "Affinities",
        "spread" => "Spreads",
        "artifact" => "Artifacts",
        "template" => "Templates",
        "volume" => "Volumes",
        "volume_mount" => "VolumeMounts",
        "parameterized" => "ParameterizedJob",
        "restart" => "RestartPolicy",
        "reschedule" => "ReschedulePolicy",
        "network" => "Networks",
        _ => "",
    };
    if !known.is_empty() {
        return known.to_owned();
    }
    let word = |word: &str| word[..1].to_ascii_uppercase() + &word[1..];
    name.split('_').filter(|part| !part.is_empty()).map(word).collect()
}

/// Whether a value says no more than leaving it out.
pub(super) fn says_nothing(value: &Value, default: &Value) -> bool {
    match value {
        Value::Null | Value::Bool(false) => true,
        Value::Array(items) => items.is_empty(),
        // Of a block with known defaults, `0` and `false` are answers like any other.
        Value::Object(fields) => fields.iter().all(|(name, field)| match default.get(name) {
            Some(default) => field.is_null() || field == "" || field == default,
            None => says_nothing(field, &Value::Null),
        }),
        Value::Number(number) => number.as_f64() == Some(0.0) || value == default,
        Value::String(text) => text.is_empty() || value == default,
        Value::Bool(true) => value == default,
    }
}

#[derive(Default)]
pub(super) struct Reader {
    pub(super) problems: Vec<JobProblem>,
}

impl Reader {
    /// What was read and is not acted on.
    pub(super) fn unbuilt(&mut self, path: &str, names: Vec<&'static str>) {
        let problem = |name| JobProblem::NotBuilt { path: format!("{path}.{}", field_name(name)) };
        self.problems.extend(names.into_iter().map(problem));
    }

    pub(super) fn missing(&mut self, path: String) {
        self.problems.push(JobProblem::Missing { path });
    }

    pub(super) fn invalid(&mut self, path: &str, reason: impl Into<String>) {
        self.problems.push(JobProblem::Invalid { path: path.to_owned(), reason: reason.into() });
    }

    pub(super) fn rule(&mut self, path: &str, outcome: Result<(), String>) {
        if let Err(reason) = outcome {
            self.invalid(path, reason);
        }
    }

    pub(super) fn not_built(&mut self, path: &str, names: &[&str], others: &Others) {
        for name in names {
            if others.get(*name).is_some_and(|value| !says_nothing(value, &client_default(name))) {
                self.problems.push(JobProblem::NotBuilt { path: format!("{path}.{name}") });
            }
        }
    }

    pub(super) fn text(&mut self, value: Option<String>, path: &str) -> String {
        match value {
            Some(text) if !text.is_empty() => text,
            _ => {
                self.problems.push(JobProblem::Missing { path: path.to_owned() });
                String::new()
            }
        }
    }

    /// An integer within `min..=max`, or the default when absent.
    pub(super) fn number<T: TryFrom<i64>>(
        &mut self,
        value: Option<i64>,
        default: T,
        min: i64,
        max: i64,
        path: &str,
    ) -> T {
        let Some(value) = value else { return default };
        match T::try_from(value) {
            Ok(number) if (min..=max).contains(&value) => number,
            _ => {
                self.invalid(path, format!("{value} is not within {min} to {max}"));
                default
            }
        }
    }

    pub(super) fn duration(&mut self, value: Option<i64>, default: Duration, path: &str) -> Duration {
        let Some(value) = value else { return default };
        u64::try_from(value).map(Duration::from_nanos).unwrap_or_else(|_| {
            self.invalid(path, "a duration cannot be negative");
            default
        })
    }

    fn job(&mut self, job: Job) -> ModelJob {
        self.not_built("Job", &JOB_NOT_BUILT, &job.others);
        let id = self.text(job.id, "Job.ID");
        self.rule("Job.ID", rules::name(if id.is_empty() { "-" } else { &id }));
        let kind = self.kind(job.kind.as_deref());
        let reschedule = self.reschedule(job.reschedule, model::ReschedulePolicy::default_of(kind), "Job.Reschedule");
        let policies = Policies { kind, update: job.update, migrate: job.migrate, reschedule };
        let groups: Vec<TaskGroup> = job.task_groups.unwrap_or_default();
        if groups.is_empty() {
            self.problems.push(JobProblem::Missing { path: "Job.TaskGroups".to_owned() });
        }
        let read = |(at, group)| self.group(group, &id, &policies, &format!("Job.TaskGroups[{at}]"));
        let groups: Vec<ModelGroup> = groups.into_iter().enumerate().map(read).collect();
        self.unique("Job.TaskGroups", groups.iter().map(|group| group.name.as_str()));
        self.rule("Job.TaskGroups", rules::alloc_total(&groups));
        let read = ModelJob {
            name: job.name.filter(|name| !name.is_empty()).unwrap_or_else(|| id.clone()),
            namespace: self.only(job.namespace, "default", "Job.Namespace"),
            region: self.only(job.region, "global", "Job.Region"),
            kind,
            priority: self.number(
                job.priority.filter(|priority| *priority != 0),
                rules::DEFAULT_PRIORITY,
                1,
                i64::from(rules::PRIORITY_MAX),
                "Job.Priority",
            ),
            datacenters: job.datacenters.filter(|list| !list.is_empty()).unwrap_or_else(|| vec!["*".to_owned()]),
            node_pool: or_default(job.node_pool, "default"),
            constraints: self.constraints(job.constraints, "Job.Constraints"),
            affinities: self.affinities(job.affinities, "Job.Affinities"),
            spreads: self.spreads(job.spreads, "Job.Spreads"),
            meta: job.meta.unwrap_or_default(),
            groups,
            periodic: job.periodic.and_then(|periodic| self.periodic(periodic)),
            parameterized: job.parameterized_job.and_then(|parameterized| self.parameterized(parameterized)),
            depends_on: self.dependencies(job.depends_on),
            disruption: self.disruption(job.disruption),
            stopped: job.stop.unwrap_or(false),
            ..ModelJob::named(&id)
        };
        self.rule("Job", rules::job(&read));
        self.unbuilt("Job", rules::unbuilt_in_job(&read));
        read
    }

    /// The one value that is built.
    fn only(&mut self, value: Option<String>, built: &str, path: &str) -> String {
        if let Some(other) = value.filter(|value| !value.is_empty() && value != built) {
            self.problems.push(JobProblem::NotBuilt { path: format!("{path} {other:?}") });
        }
        built.to_owned()
    }

    pub(super) fn unique<'a>(&mut self, path: &str, names: impl Iterator<Item = &'a str>) {
        if let Some(name) = rules::duplicate(names) {
            self.invalid(path, format!("the name {name:?} is used twice"));
        }
    }

    fn kind(&mut self, text: Option<&str>) -> JobKind {
        let text = text.filter(|text| !text.is_empty()).unwrap_or("service");
        JobKind::parse(text).unwrap_or_else(|| {
            self.invalid("Job.Type", format!("{text:?} is not a job type; use \"service\""));
            JobKind::Service
        })
    }

    fn group(&mut self, group: TaskGroup, job: &str, of_job: &Policies, path: &str) -> ModelGroup {
        self.not_built(path, &GROUP_NOT_BUILT, &group.others);
        let name = self.text(group.name, &format!("{path}.Name"));
        self.rule(&format!("{path}.Name"), rules::name(if name.is_empty() { "-" } else { &name }));
        let network = self.network(group.networks.unwrap_or_default(), path);
        let labels: Vec<String> = network.iter().flat_map(|n| n.ports.iter().map(|p| p.label.clone())).collect();
        let default_restart = model::RestartPolicy::default_of(of_job.kind);
        let restart = self.restart(group.restart_policy, default_restart, &format!("{path}.RestartPolicy"));
        let scope = Scope { job, group: &name, labels: &labels, restart };
        if group.tasks.as_ref().is_none_or(Vec::is_empty) {
            self.problems.push(JobProblem::Missing { path: format!("{path}.Tasks") });
        }
        let read = |(at, task)| self.task(task, &scope, &format!("{path}.Tasks[{at}]"));
        let tasks: Vec<ModelTask> = group.tasks.unwrap_or_default().into_iter().enumerate().map(read).collect();
        self.unique(&format!("{path}.Tasks"), tasks.iter().map(|task| task.name.as_str()));
        let disk = group.ephemeral_disk.unwrap_or_default();
        let reschedule =
            self.reschedule(group.reschedule_policy, of_job.reschedule, &format!("{path}.ReschedulePolicy"));
        self.rule(&format!("{path}.ReschedulePolicy"), rules::reschedule(&reschedule, of_job.kind));
        let legacy = (group.max_client_disconnect, group.stop_after_client_disconnect);
        let read = ModelGroup {
            count: self.number(group.count, 1, 0, i64::from(rules::ALLOCS_PER_JOB_MAX), &format!("{path}.Count")),
            constraints: self.constraints(group.constraints, &format!("{path}.Constraints")),
            affinities: self.affinities(group.affinities, &format!("{path}.Affinities")),
            spreads: self.spreads(group.spreads, &format!("{path}.Spreads")),
            restart,
            reschedule,
            disconnect: self.disconnect(group.disconnect, legacy, &format!("{path}.Disconnect")),
            volumes: self.volumes(group.volumes, &format!("{path}.Volumes")),
            shutdown_delay: self.duration(group.shutdown_delay, Duration::ZERO, &format!("{path}.ShutdownDelay")),
            max_run_duration: self.run_duration(group.max_run_duration, of_job.kind, path),
            services: self.services(group.services, &scope, None, path),
            tasks,
            meta: group.meta.unwrap_or_default(),
            disk_sticky: disk.sticky.unwrap_or(false),
            disk_migrate: disk.migrate.unwrap_or(false),
            disk_mb: self.disk(disk, path),
            update: self.update(group.update, of_job, &format!("{path}.Update")),
            migrate_max_parallel: self.migrate(group.migrate, of_job, &format!("{path}.Migrate")),
            network,
            ..ModelGroup::named(&name)
        };
        self.rule(path, rules::tasks(&read));
        self.unbuilt(path, rules::unbuilt_in_group(&read, of_job.kind));
        read
    }

    fn run_duration(&mut self, value: Option<i64>, kind: JobKind, path: &str) -> Option<Duration> {
        let value = value.filter(|nanos| *nanos != 0)?;
        let path = format!("{path}.MaxRunDuration");
        self.rule(&path, rules::max_run_duration(kind));
        Some(self.duration(Some(value), Duration::ZERO, &path))
    }

    fn disk(&mut self, disk: EphemeralDisk, path: &str) -> u64 {
        self.number(disk.size_mb, rules::DEFAULT_DISK_MB, 10, i64::MAX, &format!("{path}.EphemeralDisk.SizeMB"))
    }

    fn network(&mut self, networks: Vec<NetworkResource>, path: &str) -> Option<model::Network> {
        if networks.len() > 1 {
            self.invalid(&format!("{path}.Networks"), "a group may have one network");
        }
        let network = networks.into_iter().next()?;
        let path = format!("{path}.Networks[0]");
        self.not_built(&path, &NETWORK_NOT_BUILT, &network.others);
        let mode = match network.mode.as_deref() {
            None | Some("" | "host") => NetworkMode::Host,
            Some("bridge") => NetworkMode::Bridge,
            Some("none") => NetworkMode::None,
            Some(other) => {
                self.problems.push(JobProblem::NotBuilt { path: format!("{path}.Mode {other:?}") });
                NetworkMode::Host
            }
        };
        let dynamic = network.dynamic_ports.unwrap_or_default().into_iter().map(|port| (port, false));
        let reserved = network.reserved_ports.unwrap_or_default().into_iter().map(|port| (port, true));
        let read = |(port, reserved)| self.port(port, reserved, &path);
        let ports: Vec<PortRequest> = reserved.chain(dynamic).map(read).collect();
        self.unique(&path, ports.iter().map(|port| port.label.as_str()));
        let dns = network.dns.map(|dns| model::DnsConfig {
            servers: dns.servers.unwrap_or_default(),
            searches: dns.searches.unwrap_or_default(),
            options: dns.options.unwrap_or_default(),
        });
        let hostname = network.hostname.filter(|name| !name.is_empty());
        Some(model::Network { mode, ports, hostname, dns: dns.filter(|dns| *dns != model::DnsConfig::default()) })
    }

    fn port(&mut self, port: Port, reserved: bool, path: &str) -> PortRequest {
        let label = self.text(port.label, &format!("{path} port label"));
        let path = format!("{path} port {label:?}");
        if !label.is_empty() {
            self.rule(&path, rules::port_label(&label));
        }
        self.not_built(&path, &["IgnoreCollision"], &port.others);
        if !matches!(port.host_network.as_deref(), None | Some("" | "default")) {
            self.problems.push(JobProblem::NotBuilt { path: format!("{path}.HostNetwork") });
        }
        let value = port.value.filter(|value| reserved && *value != 0);
        if reserved && value.is_none() {
            self.problems.push(JobProblem::Missing { path: format!("{path}.Value") });
        }
        let static_port = value.map(|value| self.number(Some(value), 1, 1, 65_535, &format!("{path}.Value")));
        // -1 asks for the same number as the node's port, which is what absence means here.
        let to = port.to.filter(|to| *to != 0 && *to != -1);
        let to = to.map(|to| self.number(Some(to), 1, 1, 65_535, &format!("{path}.To")));
        PortRequest { label, static_port, to }
    }

    fn task(&mut self, task: Task, scope: &Scope<'_>, path: &str) -> ModelTask {
        self.not_built(path, &TASK_NOT_BUILT, &task.others);
        let name = self.text(task.name.clone(), &format!("{path}.Name"));
        if !name.is_empty() {
            self.rule(&format!("{path}.Name"), rules::task_name(&name));
        }
        // Nomad's own client copies the group's policy into every task.
        let restart = self.restart(task.restart_policy.clone(), scope.restart, &format!("{path}.RestartPolicy"));
        let signal = task.kill_signal.as_deref().filter(|signal| !signal.is_empty());
        let kill_signal = signal.and_then(|signal| match rules::signal(signal) {
            Ok(name) => Some(name.to_owned()),
            Err(reason) => {
                self.invalid(&format!("{path}.KillSignal"), format!("{signal:?} {reason}"));
                None
            }
        });
        let kill_timeout = task.kill_timeout.filter(|nanos| *nanos != 0);
        let driver = self.driver(&task, path);
        let resources = task.resources.unwrap_or_default();
        let devices = resources.devices.clone();
        let read = ModelTask {
            user: task.user.filter(|user| !user.is_empty()),
            env: task.env.unwrap_or_default(),
            constraints: self.constraints(task.constraints, &format!("{path}.Constraints")),
            affinities: self.affinities(task.affinities, &format!("{path}.Affinities")),
            resources: self.resources(resources, path),
            devices: self.devices(devices, &format!("{path}.Resources.Devices")),
            restart: (restart != scope.restart).then_some(restart),
            lifecycle: task.lifecycle.and_then(|lifecycle| self.lifecycle(lifecycle, path)),
            leader: task.leader.unwrap_or(false),
            shutdown_delay: self.duration(task.shutdown_delay, Duration::ZERO, &format!("{path}.ShutdownDelay")),
            artifacts: self.artifacts(task.artifacts, &format!("{path}.Artifacts")),
            templates: self.templates(task.templates, &format!("{path}.Templates")),
            volume_mounts: self.volume_mounts(task.volume_mounts, &format!("{path}.VolumeMounts")),
            payload_file: self.payload_file(task.dispatch_payload, path),
            kill_timeout: self.duration(kill_timeout, rules::DEFAULT_KILL_TIMEOUT, &format!("{path}.KillTimeout")),
            kill_signal,
            services: self.services(task.services, scope, Some(&name), path),
            logs: self.logs(task.log_config, path),
            meta: task.meta.unwrap_or_default(),
            ..ModelTask::named(&name, driver)
        };
        self.unbuilt(path, rules::unbuilt_in_task(&read));
        read
    }

    fn lifecycle(&mut self, lifecycle: Lifecycle, path: &str) -> Option<model::Lifecycle> {
        let hook = lifecycle.hook.filter(|hook| !hook.is_empty())?;
        let sidecar = lifecycle.sidecar.unwrap_or(false);
        let hook = model::LifecycleHook::parse(&hook).or_else(|| {
            let reason = format!("{hook:?} is not a hook; use \"prestart\", \"poststart\" or \"poststop\"");
            self.invalid(&format!("{path}.Lifecycle.Hook"), reason);
            None
        })?;
        Some(model::Lifecycle { hook, sidecar })
    }

    fn payload_file(&mut self, payload: Option<DispatchPayload>, path: &str) -> Option<String> {
        let file = payload?.file.filter(|file| !file.is_empty())?;
        self.rule(&format!("{path}.DispatchPayload.File"), rules::inside(&file));
        Some(file)
    }

    fn driver(&mut self, task: &Task, path: &str) -> TaskDriver {
        let config = task.config.clone().unwrap_or_default();
        let driver = task.driver.as_deref().unwrap_or_default();
        match (driver, Plugin::parse(driver)) {
            ("exec", _) => TaskDriver::Exec(self.exec_config(&config, path)),
            ("raw_exec", _) => TaskDriver::RawExec(self.exec_config(&config, path)),
            (_, Some(plugin)) => TaskDriver::Plugin(self.plugin_config(plugin, &config, path)),
            ("", _) => {
                self.missing(format!("{path}.Driver"));
                TaskDriver::Exec(ExecConfig::default())
            }
            (other, None) => {
                self.problems.push(JobProblem::NotBuilt { path: format!("{path}.Driver {other:?}") });
                TaskDriver::Exec(ExecConfig::default())
            }
        }
    }

    fn plugin_config(&mut self, plugin: Plugin, config: &Others, path: &str) -> PluginConfig {
        let mut problems = Vec::new();
        let read = config::plugin(plugin, config, &mut problems);
        if problems.is_empty() {
            self.rule(&format!("{path}.Config"), rules::plugin(&read));
        }
        let at = |key| format!("{path}.Config.{key}");
        self.problems.extend(problems.into_iter().map(|problem| match problem {
            ConfigProblem::NotBuilt(key) => JobProblem::NotBuilt { path: at(key) },
            ConfigProblem::Missing(key) => JobProblem::Missing { path: at(key) },
            ConfigProblem::Invalid(key, reason) => JobProblem::Invalid { path: at(key), reason: reason.to_owned() },
        }));
        read
    }

    fn exec_config(&mut self, config: &Others, path: &str) -> ExecConfig {
        const KEYS: [&str; 5] = ["command", "args", "work_dir", "cap_add", "cap_drop"];
        let path = format!("{path}.Config");
        let text = |key: &str| config.get(key).and_then(Value::as_str).filter(|text| !text.is_empty());
        if text("command").is_none() {
            self.missing(format!("{path}.command"));
        }
        let others =
            config.iter().filter(|(name, value)| !KEYS.contains(&name.as_str()) && !says_nothing(value, &Value::Null));
        self.problems.extend(others.map(|(name, _)| JobProblem::NotBuilt { path: format!("{path}.{name}") }));
        ExecConfig {
            command: text("command").unwrap_or_default().to_owned(),
            args: self.texts(config.get("args"), &format!("{path}.args")),
            work_dir: text("work_dir").map(str::to_owned),
            cap_add: self.texts(config.get("cap_add"), &format!("{path}.cap_add")),
            cap_drop: self.texts(config.get("cap_drop"), &format!("{path}.cap_drop")),
        }
    }

    fn texts(&mut self, value: Option<&Value>, path: &str) -> Vec<String> {
        let Some(value) = value.filter(|value| !value.is_null()) else { return Vec::new() };
        let texts = value.as_array().map(|items| items.iter().map(|item| item.as_str().map(str::to_owned)).collect());
        texts.unwrap_or(None).unwrap_or_else(|| {
            self.invalid(path, "must be a list of strings");
            Vec::new()
        })
    }

    fn resources(&mut self, resources: Resources, path: &str) -> model::Resources {
        let default = model::Resources::default();
        let path = format!("{path}.Resources");
        self.not_built(&path, &RESOURCES_NOT_BUILT, &resources.others);
        model::Resources {
            cpu_mhz: self.number(resources.cpu, default.cpu_mhz, 1, i64::MAX, &format!("{path}.CPU")),
            memory_mb: self.number(resources.memory_mb, default.memory_mb, 10, i64::MAX, &format!("{path}.MemoryMB")),
            memory_max_mb: self.number(resources.memory_max_mb, 0, 0, i64::MAX, &format!("{path}.MemoryMaxMB")),
            cores: self.number(resources.cores, 0, 0, 1024, &format!("{path}.Cores")),
        }
    }

    fn logs(&mut self, logs: Option<LogConfig>, path: &str) -> model::LogConfig {
        let default = model::LogConfig::default();
        let logs = logs.unwrap_or_default();
        let path = format!("{path}.LogConfig");
        self.not_built(&path, &["Disabled"], &logs.others);
        let max = i64::from(u32::MAX);
        let size = &format!("{path}.MaxFileSizeMB");
        model::LogConfig {
            files_max: self.number(logs.max_files, default.files_max, 1, max, &format!("{path}.MaxFiles")),
            file_size_mb_max: self.number(logs.max_file_size_mb, default.file_size_mb_max, 1, max, size),
        }
    }

    fn services(
        &mut self,
        services: Option<Vec<Service>>,
        scope: &Scope<'_>,
        task: Option<&str>,
        path: &str,
    ) -> Vec<model::Service> {
        let read = |(at, service)| self.service(service, scope, task, &format!("{path}.Services[{at}]"));
        services.unwrap_or_default().into_iter().enumerate().map(read).collect()
    }

    fn service(&mut self, service: Service, scope: &Scope<'_>, task: Option<&str>, path: &str) -> model::Service {
        self.not_built(path, &SERVICE_NOT_BUILT, &service.others);
        if !matches!(service.provider.as_deref(), None | Some("" | "nomad" | "consul")) {
            self.invalid(&format!("{path}.Provider"), "use \"nomad\" or \"consul\"; both mean this catalog");
        }
        let bound = service.task_name.as_deref().filter(|name| !name.is_empty());
        if bound.is_some() && bound != task {
            self.problems.push(JobProblem::NotBuilt { path: format!("{path}.TaskName") });
        }
        let default = || rules::default_service_name(scope.job, scope.group, task);
        let name = service.name.filter(|name| !name.is_empty()).unwrap_or_else(default);
        let name = rules::fill_service_name(&name, scope.job, scope.group, task);
        self.rule(&format!("{path}.Name"), rules::service_name(&name));
        let (tags, meta) = (service.tags.unwrap_or_default(), service.meta.unwrap_or_default());
        for (what, text) in tags.iter().map(|tag| ("Tags", tag)).chain(meta.values().map(|value| ("Meta", value))) {
            self.rule(&format!("{path}.{what}"), rules::no_interpolation(text));
        }
        self.rule(&format!("{path}.Meta"), rules::vip_port(&meta));
        let port_label = self.label(service.port_label, scope, &format!("{path}.PortLabel"));
        let has_port = port_label.is_some();
        let of_service = CheckScope {
            service: &name,
            has_port,
            restart: self.check_restart(service.check_restart, &format!("{path}.CheckRestart")),
            on_update: self.on_update(service.on_update, OnUpdate::RequireHealthy, path),
        };
        let read = |(at, check)| self.check(check, scope, &of_service, &format!("{path}.Checks[{at}]"));
        let checks: Vec<_> = service.checks.unwrap_or_default().into_iter().enumerate().map(read).collect();
        self.unique(&format!("{path}.Checks"), checks.iter().map(|check| check.name.as_str()));
        let read = model::Service {
            tags,
            checks,
            meta,
            canary_tags: service.canary_tags.filter(|tags| !tags.is_empty()),
            canary_meta: service.canary_meta.unwrap_or_default(),
            weights: self.weights(service.weights, path),
            ..model::Service::named(&name, port_label.as_deref())
        };
        self.unbuilt(path, rules::unbuilt_in_service(&read));
        read
    }

    fn label(&mut self, label: Option<String>, scope: &Scope<'_>, path: &str) -> Option<String> {
        let label = label.filter(|label| !label.is_empty())?;
        if !scope.labels.contains(&label) {
            self.invalid(path, format!("{label:?} is not a port of the group's network"));
        }
        Some(label)
    }

    fn weights(&mut self, weights: Option<Weights>, path: &str) -> model::Weights {
        let Some(weights) = weights else { return model::Weights::default() };
        let mut weight =
            |value, name| self.number(value, 1, 0, i64::from(rules::WEIGHT_MAX), &format!("{path}.Weights.{name}"));
        model::Weights { passing: weight(weights.passing, "Passing"), warning: weight(weights.warning, "Warning") }
    }

    fn on_update(&mut self, text: Option<String>, inherited: OnUpdate, path: &str) -> OnUpdate {
        self.choice(text, inherited, OnUpdate::parse, &format!("{path}.OnUpdate"))
    }

    fn check_restart(&mut self, restart: Option<CheckRestart>, path: &str) -> Option<model::CheckRestart> {
        let restart = restart.filter(|restart| restart.limit.unwrap_or(0) != 0)?;
        Some(model::CheckRestart {
            limit: self.number(restart.limit, 0, 1, i64::from(u32::MAX), &format!("{path}.Limit")),
            grace: self.duration(restart.grace, Duration::from_secs(1), &format!("{path}.Grace")),
            ignore_warnings: restart.ignore_warnings.unwrap_or(false),
        })
    }

    fn check(&mut self, check: ServiceCheck, scope: &Scope<'_>, service: &CheckScope<'_>, path: &str) -> model::Check {
        self.not_built(path, &CHECK_NOT_BUILT, &check.others);
        let kind = self.check_kind(&check, path);
        let port_label = self.label(check.port_label, scope, &format!("{path}.PortLabel"));
        let dials = !matches!(kind, CheckKind::Script { .. } | CheckKind::Ttl);
        if dials && port_label.is_none() && !service.has_port {
            self.missing(format!("{path}.PortLabel"));
        }
        let name = check.name.filter(|name| !name.is_empty());
        let name = name.unwrap_or_else(|| format!("service: {:?} check", service.service));
        let interval = self.check_time(check.interval, &format!("{path}.Interval"));
        let timeout = match kind {
            CheckKind::Ttl => interval,
            _ => self.check_time(check.timeout, &format!("{path}.Timeout")),
        };
        let most = i64::from(u16::MAX);
        let read = model::Check {
            port_label,
            initial: check
                .initial_status
                .filter(|status| !status.is_empty())
                .and_then(|status| self.initial(&status, path)),
            successes_before_passing: self.number(
                check.success_before_passing,
                0,
                0,
                most,
                &format!("{path}.SuccessBeforePassing"),
            ),
            failures_before_critical: self.number(
                check.failures_before_critical,
                0,
                0,
                most,
                &format!("{path}.FailuresBeforeCritical"),
            ),
            on_update: self.on_update(check.on_update, service.on_update, path),
            restart: self.check_restart(check.check_restart, &format!("{path}.CheckRestart")).or(service.restart),
            task: check.task_name.filter(|task| !task.is_empty()),
            ..model::Check::named(&name, kind, interval, timeout)
        };
        self.unbuilt(path, rules::unbuilt_in_check(&read));
        read
    }

    fn initial(&mut self, status: &str, path: &str) -> Option<model::Health> {
        let health = match status {
            "passing" => model::Health::Passing,
            "warning" => model::Health::Warning,
            "critical" | "pending" => return None,
            other => {
                self.invalid(&format!("{path}.InitialStatus"), format!("{other:?} is not a status; use \"passing\""));
                return None;
            }
        };
        Some(health)
    }

    fn check_kind(&mut self, check: &ServiceCheck, path: &str) -> CheckKind {
        match check.kind.as_deref().unwrap_or_default() {
            "tcp" => CheckKind::Tcp,
            "http" => self.http_check(check, path),
            "grpc" => CheckKind::Grpc {
                service: check.grpc_service.clone().unwrap_or_default(),
                tls: check.grpc_use_tls.unwrap_or(false).then(|| check_tls(check)),
            },
            "script" => CheckKind::Script {
                command: self.text(check.command.clone(), &format!("{path}.Command")),
                args: check.args.clone().unwrap_or_default(),
            },
            "ttl" => CheckKind::Ttl,
            "" => {
                self.missing(format!("{path}.Type"));
                CheckKind::Tcp
            }
            other => {
                self.problems.push(JobProblem::NotBuilt { path: format!("{path}.Type {other:?}") });
                CheckKind::Tcp
            }
        }
    }

    fn http_check(&mut self, check: &ServiceCheck, path: &str) -> CheckKind {
        let https = match check.protocol.as_deref() {
            None | Some("" | "http") => false,
            Some("https") => true,
            Some(other) => {
                self.invalid(&format!("{path}.Protocol"), format!("{other:?} must be \"http\" or \"https\""));
                false
            }
        };
        CheckKind::Http {
            method: or_default(check.method.clone(), "GET"),
            path: self.text(check.path.clone(), &format!("{path}.Path")),
            headers: check.header.clone().unwrap_or_default(),
            body: check.body.clone().unwrap_or_default(),
            tls: https.then(|| check_tls(check)),
        }
    }

    fn check_time(&mut self, value: Option<i64>, path: &str) -> Duration {
        let time = self.duration(Some(value.unwrap_or(0)), Duration::ZERO, path);
        if time < rules::CHECK_TIME_MIN {
            self.invalid(path, "must be at least one second (1000000000)");
        }
        time
    }
}

/// What a group inherits from its job.
pub(super) struct Policies {
    pub(super) kind: JobKind,
    pub(super) update: Option<UpdateStrategy>,
    pub(super) migrate: Option<MigrateStrategy>,
    reschedule: model::ReschedulePolicy,
}

/// What a check takes from its service.
struct CheckScope<'a> {
    service: &'a str,
    has_port: bool,
    restart: Option<model::CheckRestart>,
    on_update: OnUpdate,
}

/// What a task or service needs to know of the group around it.
struct Scope<'a> {
    job: &'a str,
    group: &'a str,
    labels: &'a [String],
    restart: model::RestartPolicy,
}

fn check_tls(check: &ServiceCheck) -> CheckTls {
    CheckTls {
        server_name: check.tls_server_name.clone().unwrap_or_default(),
        skip_verify: check.tls_skip_verify.unwrap_or(false),
    }
}

pub(super) fn or_default(value: Option<String>, default: &str) -> String {
    value.filter(|text| !text.is_empty()).unwrap_or_else(|| default.to_owned())
}
