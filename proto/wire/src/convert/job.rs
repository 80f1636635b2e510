//! Jobs, groups and tasks.

use super::{At, Result, ToModel, ToPb, all, enum_pairs, enumeration, list, number, optional, present, required, span};
use super::{port, span_or_zero, to_span, to_span_unless_zero};
use crate::pb;
use model::rules::DEFAULT_MIGRATE_MAX_PARALLEL;
use model::{
    DisconnectPolicy, DisruptionBudget, DnsConfig, Job, JobId, JobKind, Lifecycle, LifecycleHook, LogConfig, Network,
    NetworkMode, Parameterized, PayloadRule, Periodic, PortRequest, ReschedulePolicy, Resources, Task, TaskGroup,
    Timestamp,
};

impl ToPb<pb::Job> for Job {
    fn to_pb(&self) -> pb::Job {
        let default = ReschedulePolicy::default_of(self.kind);
        let group = |group: &TaskGroup| pb::TaskGroup {
            reschedule: (group.reschedule != default).then(|| group.reschedule.to_pb()),
            ..group.to_pb()
        };
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
            groups: self.groups.iter().map(group).collect(),
            affinities: all(&self.affinities),
            spreads: all(&self.spreads),
            periodic: self.periodic.as_ref().map(ToPb::to_pb),
            parameterized: self.parameterized.as_ref().map(ToPb::to_pb),
            parent: self.parent.as_ref().map(|parent| parent.0.clone()),
            payload: self.payload.clone(),
            dispatch_token: self.dispatch_token.clone(),
            restarts: self.restarts,
            depends_on: all(&self.depends_on),
            max_unavailable: self.disruption.map(|budget| budget.max_unavailable),
            version: self.version,
            stopped: self.stopped,
            submitted_at: self.submitted_at.0,
            stable: self.stable,
        }
    }
}

impl ToModel<Job> for pb::Job {
    fn to_model(mut self) -> Result<Job> {
        let kind = enumeration::<pb::JobKind, _>(self.kind, "kind")?;
        for group in &mut self.groups {
            group.reschedule.get_or_insert_with(|| ReschedulePolicy::default_of(kind).to_pb());
        }
        Ok(Job {
            id: JobId(self.id),
            name: self.name,
            namespace: self.namespace,
            region: self.region,
            kind,
            priority: number(self.priority, "priority")?,
            datacenters: self.datacenters,
            node_pool: self.node_pool,
            constraints: list(self.constraints, "constraints")?,
            meta: self.meta,
            groups: list(self.groups, "groups")?,
            affinities: list(self.affinities, "affinities")?,
            spreads: list(self.spreads, "spreads")?,
            periodic: optional(self.periodic, "periodic")?,
            parameterized: optional(self.parameterized, "parameterized")?,
            parent: self.parent.map(JobId),
            payload: self.payload,
            dispatch_token: self.dispatch_token,
            restarts: self.restarts,
            depends_on: list(self.depends_on, "depends_on")?,
            disruption: self.max_unavailable.map(|max_unavailable| DisruptionBudget { max_unavailable }),
            version: self.version,
            stopped: self.stopped,
            stable: self.stable,
            submitted_at: Timestamp(self.submitted_at),
        })
    }
}

impl ToPb<pb::Periodic> for Periodic {
    fn to_pb(&self) -> pb::Periodic {
        pb::Periodic {
            enabled: self.enabled,
            crons: self.crons.clone(),
            prohibit_overlap: self.prohibit_overlap,
            time_zone: self.time_zone.clone(),
        }
    }
}

impl ToModel<Periodic> for pb::Periodic {
    fn to_model(self) -> Result<Periodic> {
        Ok(Periodic {
            enabled: self.enabled,
            crons: self.crons,
            prohibit_overlap: self.prohibit_overlap,
            time_zone: self.time_zone,
        })
    }
}

impl ToPb<pb::Parameterized> for Parameterized {
    fn to_pb(&self) -> pb::Parameterized {
        pb::Parameterized {
            payload: self.payload.to_pb().into(),
            meta_required: self.meta_required.iter().cloned().collect(),
            meta_optional: self.meta_optional.iter().cloned().collect(),
        }
    }
}

impl ToModel<Parameterized> for pb::Parameterized {
    fn to_model(self) -> Result<Parameterized> {
        Ok(Parameterized {
            payload: enumeration::<pb::PayloadRule, _>(self.payload, "payload")?,
            meta_required: self.meta_required.into_iter().collect(),
            meta_optional: self.meta_optional.into_iter().collect(),
        })
    }
}

/// `reschedule` is the job's to leave out where it is the default of its kind.
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
            affinities: all(&self.affinities),
            spreads: all(&self.spreads),
            reschedule: None,
            disconnect: (self.disconnect != DisconnectPolicy::default()).then(|| self.disconnect.to_pb()),
            volumes: all(&self.volumes),
            disk_sticky: self.disk_sticky,
            disk_migrate: self.disk_migrate,
            shutdown_delay: to_span_unless_zero(self.shutdown_delay),
            max_run_duration: self.max_run_duration.map(to_span),
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
            affinities: list(self.affinities, "affinities")?,
            spreads: list(self.spreads, "spreads")?,
            reschedule: required(self.reschedule, "reschedule")?,
            disconnect: optional(self.disconnect, "disconnect")?.unwrap_or_default(),
            volumes: list(self.volumes, "volumes")?,
            disk_sticky: self.disk_sticky,
            disk_migrate: self.disk_migrate,
            shutdown_delay: span_or_zero(self.shutdown_delay, "shutdown_delay")?,
            max_run_duration: self.max_run_duration.map(|time| span(Some(time), "max_run_duration")).transpose()?,
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
            affinities: all(&self.affinities),
            devices: all(&self.devices),
            restart: self.restart.as_ref().map(ToPb::to_pb),
            lifecycle: self.lifecycle.as_ref().map(ToPb::to_pb),
            leader: self.leader,
            shutdown_delay: to_span_unless_zero(self.shutdown_delay),
            artifacts: all(&self.artifacts),
            templates: all(&self.templates),
            volume_mounts: all(&self.volume_mounts),
            payload_file: self.payload_file.clone(),
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
            affinities: list(self.affinities, "affinities")?,
            devices: list(self.devices, "devices")?,
            restart: optional(self.restart, "restart")?,
            lifecycle: optional(self.lifecycle, "lifecycle")?,
            leader: self.leader,
            shutdown_delay: span_or_zero(self.shutdown_delay, "shutdown_delay")?,
            artifacts: list(self.artifacts, "artifacts")?,
            templates: list(self.templates, "templates")?,
            volume_mounts: list(self.volume_mounts, "volume_mounts")?,
            payload_file: self.payload_file,
        })
    }
}

impl ToPb<pb::Resources> for Resources {
    fn to_pb(&self) -> pb::Resources {
        pb::Resources {
            cpu_mhz: self.cpu_mhz,
            memory_mb: self.memory_mb,
            memory_max_mb: self.memory_max_mb,
            cores: self.cores,
        }
    }
}

impl ToModel<Resources> for pb::Resources {
    fn to_model(self) -> Result<Resources> {
        Ok(Resources {
            cpu_mhz: self.cpu_mhz,
            memory_mb: self.memory_mb,
            memory_max_mb: self.memory_max_mb,
            cores: self.cores,
        })
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

impl ToPb<pb::Network> for Network {
    fn to_pb(&self) -> pb::Network {
        let dns = |dns: &DnsConfig| pb::DnsConfig {
            servers: dns.servers.clone(),
            searches: dns.searches.clone(),
            options: dns.options.clone(),
        };
        pb::Network {
            mode: self.mode.to_pb().into(),
            ports: all(&self.ports),
            hostname: self.hostname.clone(),
            dns: self.dns.as_ref().map(dns),
        }
    }
}

impl ToModel<Network> for pb::Network {
    fn to_model(self) -> Result<Network> {
        let dns = |dns: pb::DnsConfig| DnsConfig { servers: dns.servers, searches: dns.searches, options: dns.options };
        Ok(Network {
            mode: enumeration::<pb::NetworkMode, _>(self.mode, "mode")?,
            ports: list(self.ports, "ports")?,
            hostname: self.hostname,
            dns: self.dns.map(dns),
        })
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

impl ToPb<pb::Lifecycle> for Lifecycle {
    fn to_pb(&self) -> pb::Lifecycle {
        pb::Lifecycle { hook: self.hook.to_pb().into(), sidecar: self.sidecar }
    }
}

impl ToModel<Lifecycle> for pb::Lifecycle {
    fn to_model(self) -> Result<Lifecycle> {
        Ok(Lifecycle { hook: enumeration::<pb::LifecycleHook, _>(self.hook, "hook")?, sidecar: self.sidecar })
    }
}

enum_pairs!(JobKind, pb::JobKind, Service, Batch, System, Sysbatch);
enum_pairs!(PayloadRule, pb::PayloadRule, Optional, Required, Forbidden);
enum_pairs!(LifecycleHook, pb::LifecycleHook, Prestart, Poststart, Poststop);
enum_pairs!(NetworkMode, pb::NetworkMode, Host, Bridge, None);
