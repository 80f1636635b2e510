//! Jobs, groups and tasks.

use super::{At, Result, ToModel, ToPb, all, enum_pairs, enumeration, list, number, optional, present, required, span};
use super::{port, to_span};
use crate::pb;
use model::rules::DEFAULT_MIGRATE_MAX_PARALLEL;
use model::{
    Constraint, ExecConfig, HealthCheck, Job, JobId, JobKind, LogConfig, Network, NetworkMode, Operator, PortRequest,
    Resources, RestartMode, RestartPolicy, Task, TaskDriver, TaskGroup, Timestamp, UpdateOrder, UpdatePolicy,
};

impl ToPb<pb::Job> for Job {
    fn to_pb(&self) -> pb::Job {
        pb::Job {
            id: self.id.0.clone(),
            name: self.name.clone(),
            namespace: self.namespace.clone(),
            region: self.region.clone(),
            kind: self.kind.to_pb().into(),
            priority: u32::from(self.priority),
            datacenters: self.datacenters.clone(),
            node_pool: self.node_pool.clone(),
            constraints: all(&self.constraints),
            meta: self.meta.clone(),
            groups: all(&self.groups),
            version: self.version,
            stopped: self.stopped,
            submitted_at: self.submitted_at.0,
            stable: self.stable,
        }
    }
}

impl ToModel<Job> for pb::Job {
    fn to_model(self) -> Result<Job> {
        Ok(Job {
            id: JobId(self.id),
            name: self.name,
            namespace: self.namespace,
            region: self.region,
            kind: enumeration::<pb::JobKind, _>(self.kind, "kind")?,
            priority: number(self.priority, "priority")?,
            datacenters: self.datacenters,
            node_pool: self.node_pool,
            constraints: list(self.constraints, "constraints")?,
            meta: self.meta,
            groups: list(self.groups, "groups")?,
            version: self.version,
            stopped: self.stopped,
            stable: self.stable,
            submitted_at: Timestamp(self.submitted_at),
        })
    }
}

impl ToPb<pb::TaskGroup> for TaskGroup {
    fn to_pb(&self) -> pb::TaskGroup {
        pb::TaskGroup {
            name: self.name.clone(),
            count: self.count,
            constraints: all(&self.constraints),
            restart: Some(self.restart.to_pb()),
            network: self.network.as_ref().map(ToPb::to_pb),
            services: all(&self.services),
            tasks: all(&self.tasks),
            meta: self.meta.clone(),
            disk_mb: self.disk_mb,
            update: self.update.as_ref().map(ToPb::to_pb),
            migrate_max_parallel: Some(self.migrate_max_parallel).filter(|most| *most != DEFAULT_MIGRATE_MAX_PARALLEL),
        }
    }
}

impl ToModel<TaskGroup> for pb::TaskGroup {
    fn to_model(self) -> Result<TaskGroup> {
        Ok(TaskGroup {
            name: self.name,
            count: self.count,
            constraints: list(self.constraints, "constraints")?,
            restart: required(self.restart, "restart")?,
            network: optional(self.network, "network")?,
            services: list(self.services, "services")?,
            tasks: list(self.tasks, "tasks")?,
            meta: self.meta,
            disk_mb: self.disk_mb,
            update: optional(self.update, "update")?,
            migrate_max_parallel: self.migrate_max_parallel.unwrap_or(DEFAULT_MIGRATE_MAX_PARALLEL),
        })
    }
}

impl ToPb<pb::UpdatePolicy> for UpdatePolicy {
    fn to_pb(&self) -> pb::UpdatePolicy {
        pb::UpdatePolicy {
            max_parallel: self.max_parallel,
            health_check: self.health_check.to_pb().into(),
            min_healthy_time: Some(to_span(self.min_healthy_time)),
            healthy_deadline: Some(to_span(self.healthy_deadline)),
            progress_deadline: Some(to_span(self.progress_deadline)),
            canary: self.canary,
            auto_revert: self.auto_revert,
            auto_promote: self.auto_promote,
            stagger: Some(to_span(self.stagger)),
            order: self.order.to_pb().into(),
        }
    }
}

impl ToModel<UpdatePolicy> for pb::UpdatePolicy {
    fn to_model(self) -> Result<UpdatePolicy> {
        Ok(UpdatePolicy {
            max_parallel: self.max_parallel,
            health_check: enumeration::<pb::HealthCheck, _>(self.health_check, "health_check")?,
            min_healthy_time: span(self.min_healthy_time, "min_healthy_time")?,
            healthy_deadline: span(self.healthy_deadline, "healthy_deadline")?,
            progress_deadline: span(self.progress_deadline, "progress_deadline")?,
            canary: self.canary,
            auto_revert: self.auto_revert,
            auto_promote: self.auto_promote,
            stagger: span(self.stagger, "stagger")?,
            order: enumeration::<pb::UpdateOrder, _>(self.order, "order")?,
        })
    }
}

impl ToPb<pb::Task> for Task {
    fn to_pb(&self) -> pb::Task {
        pb::Task {
            name: self.name.clone(),
            driver: Some(self.driver.to_pb()),
            user: self.user.clone(),
            env: self.env.clone(),
            constraints: all(&self.constraints),
            resources: Some(self.resources.to_pb()),
            kill_timeout: Some(to_span(self.kill_timeout)),
            kill_signal: self.kill_signal.clone(),
            services: all(&self.services),
            logs: Some(self.logs.to_pb()),
            meta: self.meta.clone(),
        }
    }
}

impl ToModel<Task> for pb::Task {
    fn to_model(self) -> Result<Task> {
        Ok(Task {
            name: self.name,
            driver: present(self.driver, "driver")?.to_model().at("driver")?,
            user: self.user,
            env: self.env,
            constraints: list(self.constraints, "constraints")?,
            resources: required(self.resources, "resources")?,
            kill_timeout: span(self.kill_timeout, "kill_timeout")?,
            kill_signal: self.kill_signal,
            services: list(self.services, "services")?,
            logs: required(self.logs, "logs")?,
            meta: self.meta,
        })
    }
}

impl ToPb<pb::task::Driver> for TaskDriver {
    fn to_pb(&self) -> pb::task::Driver {
        match self {
            TaskDriver::Exec(config) => pb::task::Driver::Exec(config.to_pb()),
            TaskDriver::RawExec(config) => pb::task::Driver::RawExec(config.to_pb()),
        }
    }
}

impl ToModel<TaskDriver> for pb::task::Driver {
    fn to_model(self) -> Result<TaskDriver> {
        Ok(match self {
            pb::task::Driver::Exec(config) => TaskDriver::Exec(config.to_model()?),
            pb::task::Driver::RawExec(config) => TaskDriver::RawExec(config.to_model()?),
        })
    }
}

impl ToPb<pb::ExecConfig> for ExecConfig {
    fn to_pb(&self) -> pb::ExecConfig {
        pb::ExecConfig { command: self.command.clone(), args: self.args.clone() }
    }
}

impl ToModel<ExecConfig> for pb::ExecConfig {
    fn to_model(self) -> Result<ExecConfig> {
        Ok(ExecConfig { command: self.command, args: self.args })
    }
}

impl ToPb<pb::Resources> for Resources {
    fn to_pb(&self) -> pb::Resources {
        pb::Resources { cpu_mhz: self.cpu_mhz, memory_mb: self.memory_mb }
    }
}

impl ToModel<Resources> for pb::Resources {
    fn to_model(self) -> Result<Resources> {
        Ok(Resources { cpu_mhz: self.cpu_mhz, memory_mb: self.memory_mb })
    }
}

impl ToPb<pb::LogConfig> for LogConfig {
    fn to_pb(&self) -> pb::LogConfig {
        pb::LogConfig { files_max: self.files_max, file_size_mb_max: self.file_size_mb_max }
    }
}

impl ToModel<LogConfig> for pb::LogConfig {
    fn to_model(self) -> Result<LogConfig> {
        Ok(LogConfig { files_max: self.files_max, file_size_mb_max: self.file_size_mb_max })
    }
}

impl ToPb<pb::RestartPolicy> for RestartPolicy {
    fn to_pb(&self) -> pb::RestartPolicy {
        pb::RestartPolicy {
            attempts: self.attempts,
            interval: Some(to_span(self.interval)),
            delay: Some(to_span(self.delay)),
            mode: self.mode.to_pb().into(),
        }
    }
}

impl ToModel<RestartPolicy> for pb::RestartPolicy {
    fn to_model(self) -> Result<RestartPolicy> {
        Ok(RestartPolicy {
            attempts: self.attempts,
            interval: span(self.interval, "interval")?,
            delay: span(self.delay, "delay")?,
            mode: enumeration::<pb::RestartMode, _>(self.mode, "mode")?,
        })
    }
}

impl ToPb<pb::Network> for Network {
    fn to_pb(&self) -> pb::Network {
        pb::Network { mode: self.mode.to_pb().into(), ports: all(&self.ports) }
    }
}

impl ToModel<Network> for pb::Network {
    fn to_model(self) -> Result<Network> {
        Ok(Network { mode: enumeration::<pb::NetworkMode, _>(self.mode, "mode")?, ports: list(self.ports, "ports")? })
    }
}

impl ToPb<pb::PortRequest> for PortRequest {
    fn to_pb(&self) -> pb::PortRequest {
        pb::PortRequest {
            label: self.label.clone(),
            static_port: self.static_port.map(u32::from),
            to: self.to.map(u32::from),
        }
    }
}

impl ToModel<PortRequest> for pb::PortRequest {
    fn to_model(self) -> Result<PortRequest> {
        Ok(PortRequest {
            label: self.label,
            static_port: self.static_port.map(|value| port(value, "static_port")).transpose()?,
            to: self.to.map(|value| port(value, "to")).transpose()?,
        })
    }
}

impl ToPb<pb::Constraint> for Constraint {
    fn to_pb(&self) -> pb::Constraint {
        pb::Constraint {
            attribute: self.attribute.clone(),
            operator: self.operator.to_pb().into(),
            value: self.value.clone(),
        }
    }
}

impl ToModel<Constraint> for pb::Constraint {
    fn to_model(self) -> Result<Constraint> {
        Ok(Constraint {
            attribute: self.attribute,
            operator: enumeration::<pb::Operator, _>(self.operator, "operator")?,
            value: self.value,
        })
    }
}

enum_pairs!(JobKind, pb::JobKind, Service, Batch, System);
enum_pairs!(HealthCheck, pb::HealthCheck, Checks, TaskStates, Manual);
enum_pairs!(UpdateOrder, pb::UpdateOrder, StopFirst, StartFirst);
enum_pairs!(RestartMode, pb::RestartMode, Fail, Delay);
enum_pairs!(NetworkMode, pb::NetworkMode, Host, Bridge);
enum_pairs!(
    Operator,
    pb::Operator,
    Equal,
    NotEqual,
    Less,
    LessOrEqual,
    Greater,
    GreaterOrEqual,
    Regexp,
    Version,
    Semver,
    SetContains,
    SetContainsAny,
    IsSet,
    IsNotSet,
    DistinctHosts,
);
