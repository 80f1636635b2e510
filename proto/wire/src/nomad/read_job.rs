//! From JSON to `model::Job`: defaults filled in, every problem found and named by its path.

use super::job::*;
use model::{
    CheckKind, Constraint as ModelConstraint, ExecConfig, HealthCheck, Job as ModelJob, JobKind, NetworkMode, Operator,
    PortRequest, RestartMode, Task as ModelTask, TaskDriver, TaskGroup as ModelGroup, UpdateOrder, UpdatePolicy, rules,
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

const JOB_NOT_BUILT: [&str; 9] = [
    "Affinities",
    "AllAtOnce",
    "Dispatched",
    "Multiregion",
    "ParameterizedJob",
    "Payload",
    "Periodic",
    "Reschedule",
    "Spreads",
];
const GROUP_NOT_BUILT: [&str; 12] = [
    "Affinities",
    "Consul",
    "Disconnect",
    "MaxClientDisconnect",
    "MaxRunDuration",
    "PreventRescheduleOnLost",
    "ReschedulePolicy",
    "Scaling",
    "ShutdownDelay",
    "Spreads",
    "StopAfterClientDisconnect",
    "Volumes",
];
const TASK_NOT_BUILT: [&str; 18] = [
    "Actions",
    "Affinities",
    "Artifacts",
    "CSIPluginConfig",
    "Consul",
    "DispatchPayload",
    "Identities",
    "Identity",
    "Kind",
    "Leader",
    "Lifecycle",
    "ScalingPolicies",
    "Schedule",
    "Secrets",
    "ShutdownDelay",
    "Templates",
    "Vault",
    "VolumeMounts",
];
const RESOURCES_NOT_BUILT: [&str; 8] =
    ["Cores", "Devices", "DiskMB", "IOPS", "MemoryMaxMB", "NUMA", "Networks", "SecretsMB"];
const NETWORK_NOT_BUILT: [&str; 6] = ["CIDR", "CNI", "DNS", "Hostname", "IP", "MBits"];
const SERVICE_NOT_BUILT: [&str; 14] = [
    "Address",
    "AddressMode",
    "CanaryMeta",
    "CanaryTags",
    "CheckRestart",
    "Cluster",
    "Connect",
    "EnableTagOverride",
    "Identity",
    "Kind",
    "OnUpdate",
    "TaggedAddresses",
    "Weights",
    "Id",
];
const CHECK_NOT_BUILT: [&str; 19] = [
    "AddressMode",
    "Args",
    "Body",
    "CheckRestart",
    "Command",
    "Expose",
    "FailuresBeforeCritical",
    "FailuresBeforeWarning",
    "GRPCService",
    "GRPCUseTLS",
    "Header",
    "InitialStatus",
    "Notes",
    "OnUpdate",
    "Protocol",
    "SuccessBeforePassing",
    "TLSServerName",
    "TLSSkipVerify",
    "TaskName",
];

/// What Nomad's clients fill in for a block that the user left out; the same as leaving it out.
fn client_default(name: &str) -> Value {
    const SECOND: u64 = 1_000_000_000;
    match name {
        "Reschedule" | "ReschedulePolicy" => json!({
            "Delay": 30 * SECOND, "DelayFunction": "exponential", "MaxDelay": 3600 * SECOND, "Unlimited": true,
        }),
        "Consul" => json!({ "Cluster": "default" }),
        "AddressMode" => json!("auto"),
        "Cluster" => json!("default"),
        "OnUpdate" => json!("require_healthy"),
        "Protocol" => json!("http"),
        "Weights" => json!({ "Passing": 1, "Warning": 1 }),
        _ => Value::Null,
    }
}

/// Whether a value says no more than leaving it out.
fn says_nothing(value: &Value, default: &Value) -> bool {
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
struct Reader {
    problems: Vec<JobProblem>,
}

impl Reader {
    fn invalid(&mut self, path: &str, reason: impl Into<String>) {
        self.problems.push(JobProblem::Invalid { path: path.to_owned(), reason: reason.into() });
    }

    fn rule(&mut self, path: &str, outcome: Result<(), String>) {
        if let Err(reason) = outcome {
            self.invalid(path, reason);
        }
    }

    fn not_built(&mut self, path: &str, names: &[&str], others: &Others) {
        for name in names {
            if others.get(*name).is_some_and(|value| !says_nothing(value, &client_default(name))) {
                self.problems.push(JobProblem::NotBuilt { path: format!("{path}.{name}") });
            }
        }
    }

    fn text(&mut self, value: Option<String>, path: &str) -> String {
        match value {
            Some(text) if !text.is_empty() => text,
            _ => {
                self.problems.push(JobProblem::Missing { path: path.to_owned() });
                String::new()
            }
        }
    }

    /// An integer within `min..=max`, or the default when absent.
    fn number<T: TryFrom<i64>>(&mut self, value: Option<i64>, default: T, min: i64, max: i64, path: &str) -> T {
        let Some(value) = value else { return default };
        match T::try_from(value) {
            Ok(number) if (min..=max).contains(&value) => number,
            _ => {
                self.invalid(path, format!("{value} is not within {min} to {max}"));
                default
            }
        }
    }

    fn duration(&mut self, value: Option<i64>, default: Duration, path: &str) -> Duration {
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
        let policies = Policies { kind, update: job.update, migrate: job.migrate };
        let groups: Vec<TaskGroup> = job.task_groups.unwrap_or_default();
        if groups.is_empty() {
            self.problems.push(JobProblem::Missing { path: "Job.TaskGroups".to_owned() });
        }
        let read = |(at, group)| self.group(group, &id, &policies, &format!("Job.TaskGroups[{at}]"));
        let groups: Vec<ModelGroup> = groups.into_iter().enumerate().map(read).collect();
        self.unique("Job.TaskGroups", groups.iter().map(|group| group.name.as_str()));
        self.rule("Job.TaskGroups", rules::alloc_total(&groups));
        ModelJob {
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
            meta: job.meta.unwrap_or_default(),
            groups,
            stopped: job.stop.unwrap_or(false),
            ..ModelJob::named(&id)
        }
    }

    /// The one value that is built.
    fn only(&mut self, value: Option<String>, built: &str, path: &str) -> String {
        if let Some(other) = value.filter(|value| !value.is_empty() && value != built) {
            self.problems.push(JobProblem::NotBuilt { path: format!("{path} {other:?}") });
        }
        built.to_owned()
    }

    fn unique<'a>(&mut self, path: &str, names: impl Iterator<Item = &'a str>) {
        if let Some(name) = rules::duplicate(names) {
            self.invalid(path, format!("the name {name:?} is used twice"));
        }
    }

    fn kind(&mut self, text: Option<&str>) -> JobKind {
        let text = text.filter(|text| !text.is_empty()).unwrap_or("service");
        match rules::job_kind(text) {
            Ok(kind) => kind,
            Err(rules::KindRefusal::NotBuilt) => {
                self.problems.push(JobProblem::NotBuilt { path: format!("Job.Type \"{text}\"") });
                JobKind::Service
            }
            Err(rules::KindRefusal::Unknown) => {
                self.invalid("Job.Type", format!("{text:?} is not a job type; use \"service\""));
                JobKind::Service
            }
        }
    }

    fn group(&mut self, mut group: TaskGroup, job: &str, of_job: &Policies, path: &str) -> ModelGroup {
        // For system jobs, a policy of zeros is what clients fill in.
        if of_job.kind == JobKind::System {
            group.others.retain(|name, value| name != "ReschedulePolicy" || !says_nothing(value, &Value::Null));
        }
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
        ModelGroup {
            count: self.number(group.count, 1, 0, i64::from(rules::ALLOCS_PER_JOB_MAX), &format!("{path}.Count")),
            constraints: self.constraints(group.constraints, &format!("{path}.Constraints")),
            restart,
            services: self.services(group.services, &scope, None, path),
            tasks,
            meta: group.meta.unwrap_or_default(),
            disk_mb: self.disk(group.ephemeral_disk, path),
            update: self.update(group.update, of_job, &format!("{path}.Update")),
            migrate_max_parallel: self.migrate(group.migrate, of_job, &format!("{path}.Migrate")),
            network,
            reschedule: model::ReschedulePolicy::default_of(of_job.kind),
            ..ModelGroup::named(&name)
        }
    }

    /// The group's values before the job's before the defaults; `None` when neither says anything.
    fn update(&mut self, group: Option<UpdateStrategy>, of_job: &Policies, path: &str) -> Option<UpdatePolicy> {
        let of_group = group.filter(|update| !is_empty(update));
        let of_job = (of_job.update.clone().filter(|update| !is_empty(update)), of_job.kind);
        let (update, kind) = match (of_group, of_job) {
            (None, (None, _)) => return None,
            (Some(update), (None, kind)) | (None, (Some(update), kind)) => (update, kind),
            (Some(group), (Some(job), kind)) => (group.or(job), kind),
        };
        let policy = self.update_policy(update, path);
        self.rule(path, rules::update(&policy, kind));
        Some(policy)
    }

    fn update_policy(&mut self, update: UpdateStrategy, path: &str) -> UpdatePolicy {
        let default = UpdatePolicy::default();
        let max = i64::from(rules::ALLOCS_PER_JOB_MAX);
        let at = |field: &str| format!("{path}.{field}");
        UpdatePolicy {
            max_parallel: self.number(update.max_parallel, default.max_parallel, 0, max, &at("MaxParallel")),
            health_check: self.choice(
                update.health_check,
                default.health_check,
                HealthCheck::parse,
                &at("HealthCheck"),
            ),
            min_healthy_time: self.duration(update.min_healthy_time, default.min_healthy_time, &at("MinHealthyTime")),
            healthy_deadline: self.duration(update.healthy_deadline, default.healthy_deadline, &at("HealthyDeadline")),
            progress_deadline: self.duration(
                update.progress_deadline,
                default.progress_deadline,
                &at("ProgressDeadline"),
            ),
            canary: self.number(update.canary, default.canary, 0, max, &at("Canary")),
            auto_revert: update.auto_revert.unwrap_or(default.auto_revert),
            auto_promote: update.auto_promote.unwrap_or(default.auto_promote),
            stagger: self.duration(update.stagger, default.stagger, &at("Stagger")),
            order: self.choice(update.order, default.order, UpdateOrder::parse, &at("Order")),
        }
    }

    fn choice<T>(&mut self, text: Option<String>, default: T, parse: fn(&str) -> Option<T>, path: &str) -> T {
        let Some(text) = text.filter(|text| !text.is_empty()) else { return default };
        parse(&text).unwrap_or_else(|| {
            self.invalid(path, format!("{text:?} is not one of the values it may have"));
            default
        })
    }

    fn migrate(&mut self, group: Option<MigrateStrategy>, of_job: &Policies, path: &str) -> u32 {
        let default = rules::DEFAULT_MIGRATE_MAX_PARALLEL;
        let Some(migrate) = group.or_else(|| of_job.migrate.clone()) else { return default };
        let given = [
            ("HealthCheck", migrate.health_check.map(Value::from), json!("checks")),
            ("MinHealthyTime", migrate.min_healthy_time.map(Value::from), json!(10_000_000_000_u64)),
            ("HealthyDeadline", migrate.healthy_deadline.map(Value::from), json!(300_000_000_000_u64)),
        ];
        for (field, value, default) in given {
            if value.is_some_and(|value| !says_nothing(&value, &default)) {
                let path = format!("{path}.{field} other than the default");
                self.problems.push(JobProblem::NotBuilt { path });
            }
        }
        let max = i64::from(rules::ALLOCS_PER_JOB_MAX);
        self.number(migrate.max_parallel.filter(|most| *most != 0), default, 1, max, &format!("{path}.MaxParallel"))
    }

    fn disk(&mut self, disk: Option<EphemeralDisk>, path: &str) -> u64 {
        let disk = disk.unwrap_or_default();
        self.not_built(&format!("{path}.EphemeralDisk"), &["Sticky", "Migrate"], &disk.others);
        self.number(disk.size_mb, rules::DEFAULT_DISK_MB, 10, i64::MAX, &format!("{path}.EphemeralDisk.SizeMB"))
    }

    fn restart(
        &mut self,
        policy: Option<RestartPolicy>,
        default: model::RestartPolicy,
        path: &str,
    ) -> model::RestartPolicy {
        let Some(policy) = policy else { return default };
        self.not_built(path, &["RenderTemplates"], &policy.others);
        let mode = match policy.mode.as_deref() {
            None | Some("") => default.mode,
            Some("fail") => RestartMode::Fail,
            Some("delay") => RestartMode::Delay,
            Some(other) => {
                self.invalid(&format!("{path}.Mode"), format!("{other:?} is not a mode; use \"fail\" or \"delay\""));
                default.mode
            }
        };
        let attempts = &format!("{path}.Attempts");
        let policy = model::RestartPolicy {
            attempts: self.number(policy.attempts, default.attempts, 0, i64::from(u32::MAX), attempts),
            interval: self.duration(policy.interval, default.interval, &format!("{path}.Interval")),
            delay: self.duration(policy.delay, default.delay, &format!("{path}.Delay")),
            mode,
        };
        self.rule(path, rules::restart(&policy));
        policy
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
        Some(model::Network::of(mode, ports))
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

    fn constraints(&mut self, constraints: Option<Vec<Constraint>>, path: &str) -> Vec<ModelConstraint> {
        let read = |(at, constraint)| self.constraint(constraint, &format!("{path}[{at}]"));
        constraints.unwrap_or_default().into_iter().enumerate().filter_map(read).collect()
    }

    fn constraint(&mut self, constraint: Constraint, path: &str) -> Option<ModelConstraint> {
        let operand = constraint.operand.unwrap_or_default();
        if operand == "distinct_property" {
            self.problems.push(JobProblem::NotBuilt { path: format!("{path}.Operand \"distinct_property\"") });
            return None;
        }
        let Some(operator) = Operator::parse(&operand) else {
            self.invalid(&format!("{path}.Operand"), format!("{operand:?} is not an operator; use for example \"=\""));
            return None;
        };
        let (attribute, value) = (constraint.l_target.unwrap_or_default(), constraint.r_target.unwrap_or_default());
        if operator == Operator::DistinctHosts && value == "false" {
            return None;
        }
        if attribute.is_empty() && operator != Operator::DistinctHosts {
            self.problems.push(JobProblem::Missing { path: format!("{path}.LTarget") });
        }
        self.rule(&format!("{path}.RTarget"), rules::constraint(operator, &value));
        Some(ModelConstraint { attribute, operator, value })
    }

    fn task(&mut self, task: Task, scope: &Scope<'_>, path: &str) -> ModelTask {
        self.not_built(path, &TASK_NOT_BUILT, &task.others);
        let name = self.text(task.name.clone(), &format!("{path}.Name"));
        if !name.is_empty() {
            self.rule(&format!("{path}.Name"), rules::task_name(&name));
        }
        // Nomad's own client copies the group's policy into every task.
        let restart = self.restart(task.restart_policy.clone(), scope.restart, &format!("{path}.RestartPolicy"));
        if restart != scope.restart {
            self.problems.push(JobProblem::NotBuilt { path: format!("{path}.RestartPolicy other than the group's") });
        }
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
        ModelTask {
            user: task.user.filter(|user| !user.is_empty()),
            env: task.env.unwrap_or_default(),
            constraints: self.constraints(task.constraints, &format!("{path}.Constraints")),
            resources: self.resources(task.resources, path),
            kill_timeout: self.duration(kill_timeout, rules::DEFAULT_KILL_TIMEOUT, &format!("{path}.KillTimeout")),
            kill_signal,
            services: self.services(task.services, scope, Some(&name), path),
            logs: self.logs(task.log_config, path),
            meta: task.meta.unwrap_or_default(),
            ..ModelTask::named(&name, driver)
        }
    }

    fn driver(&mut self, task: &Task, path: &str) -> TaskDriver {
        let config = task.config.clone().unwrap_or_default();
        let command = config.get("command").and_then(Value::as_str).unwrap_or_default().to_owned();
        let driver = task.driver.as_deref().unwrap_or_default();
        if !matches!(driver, "exec" | "raw_exec") {
            self.problems.push(match driver {
                "" => JobProblem::Missing { path: format!("{path}.Driver") },
                other => JobProblem::NotBuilt { path: format!("{path}.Driver {other:?}") },
            });
        } else if command.is_empty() {
            self.problems.push(JobProblem::Missing { path: format!("{path}.Config.command") });
        }
        let path = format!("{path}.Config");
        let args = self.args(config.get("args"), &path);
        if matches!(driver, "exec" | "raw_exec") {
            let others = config.iter().filter(|(name, value)| {
                !matches!(name.as_str(), "command" | "args") && !says_nothing(value, &Value::Null)
            });
            self.problems.extend(others.map(|(name, _)| JobProblem::NotBuilt { path: format!("{path}.{name}") }));
        }
        let config = ExecConfig { command, args, ..ExecConfig::default() };
        if driver == "raw_exec" { TaskDriver::RawExec(config) } else { TaskDriver::Exec(config) }
    }

    fn args(&mut self, args: Option<&Value>, path: &str) -> Vec<String> {
        let Some(args) = args.filter(|args| !args.is_null()) else { return Vec::new() };
        let texts = args.as_array().map(|args| args.iter().map(|arg| arg.as_str().map(str::to_owned)).collect());
        texts.unwrap_or(None).unwrap_or_else(|| {
            self.invalid(&format!("{path}.args"), "must be a list of strings");
            Vec::new()
        })
    }

    fn resources(&mut self, resources: Option<Resources>, path: &str) -> model::Resources {
        let default = model::Resources::default();
        let resources = resources.unwrap_or_default();
        let path = format!("{path}.Resources");
        self.not_built(&path, &RESOURCES_NOT_BUILT, &resources.others);
        model::Resources {
            cpu_mhz: self.number(resources.cpu, default.cpu_mhz, 1, i64::MAX, &format!("{path}.CPU")),
            memory_mb: self.number(resources.memory_mb, default.memory_mb, 10, i64::MAX, &format!("{path}.MemoryMB")),
            ..default
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
        let read = |(at, check)| self.check(check, scope, (&name, has_port), &format!("{path}.Checks[{at}]"));
        let checks: Vec<_> = service.checks.unwrap_or_default().into_iter().enumerate().map(read).collect();
        self.unique(&format!("{path}.Checks"), checks.iter().map(|check| check.name.as_str()));
        model::Service { tags, checks, meta, ..model::Service::named(&name, port_label.as_deref()) }
    }

    fn label(&mut self, label: Option<String>, scope: &Scope<'_>, path: &str) -> Option<String> {
        let label = label.filter(|label| !label.is_empty())?;
        if !scope.labels.contains(&label) {
            self.invalid(path, format!("{label:?} is not a port of the group's network"));
        }
        Some(label)
    }

    fn check(
        &mut self,
        check: ServiceCheck,
        scope: &Scope<'_>,
        (service, has_port): (&str, bool),
        path: &str,
    ) -> model::Check {
        self.not_built(path, &CHECK_NOT_BUILT, &check.others);
        let kind = match check.kind.as_deref().unwrap_or_default() {
            "tcp" => CheckKind::Tcp,
            "http" => CheckKind::Http {
                method: or_default(check.method, "GET"),
                path: self.text(check.path, &format!("{path}.Path")),
                headers: Default::default(),
                body: String::new(),
                tls: None,
            },
            "" => {
                self.problems.push(JobProblem::Missing { path: format!("{path}.Type") });
                CheckKind::Tcp
            }
            other => {
                self.problems.push(JobProblem::NotBuilt { path: format!("{path}.Type {other:?}") });
                CheckKind::Tcp
            }
        };
        let port_label = self.label(check.port_label, scope, &format!("{path}.PortLabel"));
        if port_label.is_none() && !has_port {
            self.problems.push(JobProblem::Missing { path: format!("{path}.PortLabel") });
        }
        let default = || format!("service: {service:?} check");
        let name = check.name.filter(|name| !name.is_empty()).unwrap_or_else(default);
        let interval = self.check_time(check.interval, &format!("{path}.Interval"));
        let timeout = self.check_time(check.timeout, &format!("{path}.Timeout"));
        model::Check { port_label, ..model::Check::named(&name, kind, interval, timeout) }
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
struct Policies {
    kind: JobKind,
    update: Option<UpdateStrategy>,
    migrate: Option<MigrateStrategy>,
}

impl UpdateStrategy {
    /// What is not set here is as in `other`.
    fn or(self, other: Self) -> Self {
        Self {
            stagger: self.stagger.or(other.stagger),
            max_parallel: self.max_parallel.or(other.max_parallel),
            health_check: self.health_check.or(other.health_check),
            min_healthy_time: self.min_healthy_time.or(other.min_healthy_time),
            healthy_deadline: self.healthy_deadline.or(other.healthy_deadline),
            progress_deadline: self.progress_deadline.or(other.progress_deadline),
            canary: self.canary.or(other.canary),
            auto_revert: self.auto_revert.or(other.auto_revert),
            auto_promote: self.auto_promote.or(other.auto_promote),
            order: self.order.or(other.order),
            others: self.others,
        }
    }
}

/// Clients send a block of zeros where there was none, and then all of it: a lone `MaxParallel: 0` switches updates off.
fn is_empty(update: &UpdateStrategy) -> bool {
    let alone = update.max_parallel.is_some() && update.health_check.is_none();
    !alone && serde_json::to_value(update).is_ok_and(|value| says_nothing(&value, &Value::Null))
}

/// What a task or service needs to know of the group around it.
struct Scope<'a> {
    job: &'a str,
    group: &'a str,
    labels: &'a [String],
    restart: model::RestartPolicy,
}

fn or_default(value: Option<String>, default: &str) -> String {
    value.filter(|text| !text.is_empty()).unwrap_or_else(|| default.to_owned())
}
