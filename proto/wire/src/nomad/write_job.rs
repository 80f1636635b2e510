//! From `model::Job` to JSON.

use super::config;
use super::job::*;
use base64::Engine;
use base64::prelude::BASE64_STANDARD as BASE64;
use model::{ChangeMode, CheckKind, CheckTls, TemplateSource};
use serde_json::Value;
use std::collections::BTreeMap;
use std::time::Duration;

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
            affinities: each(&job.affinities),
            spreads: each(&job.spreads),
            meta: Some(job.meta.clone()),
            update: None,
            migrate: None,
            reschedule: None,
            task_groups: each(&job.groups),
            periodic: job.periodic.as_ref().map(PeriodicConfig::from),
            parameterized_job: job.parameterized.as_ref().map(ParameterizedJobConfig::from),
            depends_on: (!job.depends_on.is_empty()).then(|| job.depends_on.iter().map(Dependency::from).collect()),
            disruption: job.disruption.map(Disruption::from),
            parent_id: Some(job.parent.as_ref().map(|parent| parent.0.clone()).unwrap_or_default()),
            dispatched: Some(job.parent.is_some() && job.id.0.contains("/dispatch-")),
            payload: (!job.payload.is_empty()).then(|| BASE64.encode(&job.payload)),
            stop: Some(job.stopped),
            version: Some(job.version),
            submit_time: int(job.submitted_at.0),
            status: None,
            status_description: None,
            stable: Some(job.stable),
            create_index: None,
            modify_index: None,
            job_modify_index: None,
            others: absent(&["Multiregion"]),
        }
    }
}

impl From<&model::TaskGroup> for TaskGroup {
    fn from(group: &model::TaskGroup) -> Self {
        Self {
            name: Some(group.name.clone()),
            count: int(u64::from(group.count)),
            constraints: each(&group.constraints),
            affinities: each(&group.affinities),
            spreads: each(&group.spreads),
            restart_policy: Some((&group.restart).into()),
            reschedule_policy: Some((&group.reschedule).into()),
            disconnect: (group.disconnect != model::DisconnectPolicy::default()).then(|| (&group.disconnect).into()),
            max_client_disconnect: None,
            stop_after_client_disconnect: None,
            volumes: (!group.volumes.is_empty()).then(|| volumes(&group.volumes)),
            shutdown_delay: nanos(group.shutdown_delay),
            max_run_duration: group.max_run_duration.and_then(nanos),
            networks: Some(group.network.iter().map(NetworkResource::from).collect()),
            services: each(&group.services),
            tasks: each(&group.tasks),
            meta: Some(group.meta.clone()),
            ephemeral_disk: Some(EphemeralDisk {
                size_mb: int(group.disk_mb),
                sticky: Some(group.disk_sticky),
                migrate: Some(group.disk_migrate),
                others: Others::new(),
            }),
            update: group.update.as_ref().map(UpdateStrategy::from),
            migrate: Some(MigrateStrategy::of(group.migrate_max_parallel)),
            others: absent(&["Scaling"]),
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
            config: Some(config::of_driver(&task.driver)),
            env: Some(task.env.clone()),
            constraints: each(&task.constraints),
            affinities: each(&task.affinities),
            resources: Some(Resources::of(task)),
            restart_policy: task.restart.as_ref().map(RestartPolicy::from),
            lifecycle: task.lifecycle.map(Lifecycle::from),
            leader: Some(task.leader),
            shutdown_delay: nanos(task.shutdown_delay),
            artifacts: each(&task.artifacts),
            templates: each(&task.templates),
            volume_mounts: each(&task.volume_mounts),
            dispatch_payload: task
                .payload_file
                .as_ref()
                .map(|file| DispatchPayload { file: Some(file.clone()), others: Others::new() }),
            services: each(&task.services),
            meta: Some(task.meta.clone()),
            kill_timeout: nanos(task.kill_timeout),
            kill_signal: Some(task.kill_signal.clone().unwrap_or_default()),
            log_config: Some((&task.logs).into()),
            others: absent(&["Vault"]),
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
            hostname: network.hostname.clone(),
            dns: network.dns.as_ref().map(DnsConfig::from),
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

impl Resources {
    fn of(task: &model::Task) -> Self {
        let resources = task.resources;
        Self {
            cpu: int(resources.cpu_mhz),
            memory_mb: int(resources.memory_mb),
            memory_max_mb: int(resources.memory_max_mb),
            cores: int(u64::from(resources.cores)),
            devices: (!task.devices.is_empty()).then(|| task.devices.iter().map(RequestedDevice::from).collect()),
            others: Others::new(),
        }
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
            canary_tags: service.canary_tags.clone(),
            canary_meta: (!service.canary_meta.is_empty()).then(|| service.canary_meta.clone()),
            weights: Some(Weights {
                passing: Some(i64::from(service.weights.passing)),
                warning: Some(i64::from(service.weights.warning)),
                others: Others::new(),
            }),
            check_restart: None,
            on_update: Some("require_healthy".to_owned()),
            others: Others::new(),
        }
    }
}

impl From<&model::Check> for ServiceCheck {
    fn from(check: &model::Check) -> Self {
        Self {
            name: Some(check.name.clone()),
            port_label: Some(check.port_label.clone().unwrap_or_default()),
            interval: nanos(check.interval),
            timeout: nanos(check.timeout),
            initial_status: check.initial.map(|health| health.as_str().to_owned()),
            success_before_passing: int(u64::from(check.successes_before_passing)),
            failures_before_critical: int(u64::from(check.failures_before_critical)),
            check_restart: check.restart.map(CheckRestart::from),
            on_update: Some(check.on_update.as_str().to_owned()),
            task_name: check.task.clone(),
            ..ServiceCheck::of_kind(&check.kind)
        }
    }
}

impl ServiceCheck {
    /// What only checks of this kind say.
    fn of_kind(kind: &CheckKind) -> Self {
        let named = |kind: &str| Some(kind.to_owned());
        match kind {
            CheckKind::Http { method, path, headers, body, tls } => Self {
                kind: named("http"),
                method: Some(method.clone()),
                path: Some(path.clone()),
                header: (!headers.is_empty()).then(|| headers.clone()),
                body: (!body.is_empty()).then(|| body.clone()),
                protocol: Some(if tls.is_some() { "https" } else { "http" }.to_owned()),
                ..Self::of_tls(tls.as_ref())
            },
            CheckKind::Tcp => Self { kind: named("tcp"), method: named(""), path: named(""), ..Self::default() },
            CheckKind::Grpc { service, tls } => Self {
                kind: named("grpc"),
                grpc_service: Some(service.clone()),
                grpc_use_tls: Some(tls.is_some()),
                ..Self::of_tls(tls.as_ref())
            },
            CheckKind::Script { command, args } => Self {
                kind: named("script"),
                command: Some(command.clone()),
                args: Some(args.clone()),
                ..Self::default()
            },
            CheckKind::Ttl => Self { kind: named("ttl"), ..Self::default() },
        }
    }

    fn of_tls(tls: Option<&CheckTls>) -> Self {
        let Some(tls) = tls else { return Self::default() };
        Self {
            tls_server_name: Some(tls.server_name.clone()),
            tls_skip_verify: Some(tls.skip_verify),
            ..Self::default()
        }
    }
}

impl From<model::CheckRestart> for CheckRestart {
    fn from(restart: model::CheckRestart) -> Self {
        Self {
            limit: int(u64::from(restart.limit)),
            grace: nanos(restart.grace),
            ignore_warnings: Some(restart.ignore_warnings),
            others: Others::new(),
        }
    }
}

impl From<&model::Affinity> for Affinity {
    fn from(affinity: &model::Affinity) -> Self {
        Self {
            l_target: Some(affinity.attribute.clone()),
            r_target: Some(affinity.value.clone()),
            operand: Some(affinity.operator.as_str().to_owned()),
            weight: Some(i64::from(affinity.weight)),
            others: Others::new(),
        }
    }
}

impl From<&model::Spread> for Spread {
    fn from(spread: &model::Spread) -> Self {
        let target = |(value, percent): (&String, &u8)| SpreadTarget {
            value: Some(value.clone()),
            percent: Some(i64::from(*percent)),
            others: Others::new(),
        };
        Self {
            attribute: Some(spread.attribute.clone()),
            weight: Some(i64::from(spread.weight)),
            spread_target: Some(spread.targets.iter().map(target).collect()),
            others: Others::new(),
        }
    }
}

impl From<&model::DeviceRequest> for RequestedDevice {
    fn from(device: &model::DeviceRequest) -> Self {
        Self {
            name: Some(device.name.clone()),
            count: int(u64::from(device.count)),
            constraints: each(&device.constraints),
            affinities: each(&device.affinities),
            others: Others::new(),
        }
    }
}

impl From<&model::Dependency> for Dependency {
    fn from(dependency: &model::Dependency) -> Self {
        Self { job: Some(dependency.job.clone()), group: dependency.group.clone(), others: Others::new() }
    }
}

impl From<model::DisruptionBudget> for Disruption {
    fn from(budget: model::DisruptionBudget) -> Self {
        Self { max_unavailable: int(u64::from(budget.max_unavailable)), others: Others::new() }
    }
}

impl From<&model::Periodic> for PeriodicConfig {
    fn from(periodic: &model::Periodic) -> Self {
        Self {
            enabled: Some(periodic.enabled),
            spec: Some(String::new()),
            specs: Some(periodic.crons.clone()),
            spec_type: Some("cron".to_owned()),
            prohibit_overlap: Some(periodic.prohibit_overlap),
            time_zone: Some(periodic.time_zone.clone()),
            others: Others::new(),
        }
    }
}

impl From<&model::Parameterized> for ParameterizedJobConfig {
    fn from(parameterized: &model::Parameterized) -> Self {
        Self {
            payload: Some(parameterized.payload.as_str().to_owned()),
            meta_required: Some(parameterized.meta_required.iter().cloned().collect()),
            meta_optional: Some(parameterized.meta_optional.iter().cloned().collect()),
            others: Others::new(),
        }
    }
}

impl From<&model::ReschedulePolicy> for ReschedulePolicy {
    fn from(policy: &model::ReschedulePolicy) -> Self {
        Self {
            attempts: int(u64::from(policy.attempts)),
            interval: nanos(policy.interval),
            delay: nanos(policy.delay),
            delay_function: Some(policy.delay_function.as_str().to_owned()),
            max_delay: nanos(policy.max_delay),
            unlimited: Some(policy.unlimited),
            others: Others::new(),
        }
    }
}

impl From<&model::DisconnectPolicy> for DisconnectStrategy {
    fn from(policy: &model::DisconnectPolicy) -> Self {
        Self {
            lost_after: nanos(policy.lost_after),
            stop_on_client_after: policy.stop_on_client_after.and_then(nanos),
            replace: Some(policy.replace),
            reconcile: Some(policy.reconcile.as_str().to_owned()),
            others: Others::new(),
        }
    }
}

impl From<model::Lifecycle> for Lifecycle {
    fn from(lifecycle: model::Lifecycle) -> Self {
        Self { hook: Some(lifecycle.hook.as_str().to_owned()), sidecar: Some(lifecycle.sidecar), others: Others::new() }
    }
}

impl From<&model::Artifact> for Artifact {
    fn from(artifact: &model::Artifact) -> Self {
        Self {
            getter_source: Some(artifact.source.clone()),
            getter_options: Some(artifact.options.clone()),
            getter_headers: Some(artifact.headers.clone()),
            getter_mode: Some(artifact.mode.as_str().to_owned()),
            getter_insecure: Some(artifact.insecure),
            relative_dest: Some(artifact.destination.clone()),
            chown: Some(artifact.chown),
            others: Others::new(),
        }
    }
}

impl From<&model::Template> for Template {
    fn from(template: &model::Template) -> Self {
        let (source_path, embedded_tmpl) = match &template.source {
            TemplateSource::File(path) => (path.clone(), String::new()),
            TemplateSource::Inline(text) => (String::new(), text.clone()),
        };
        Self {
            source_path: Some(source_path),
            embedded_tmpl: Some(embedded_tmpl),
            dest_path: Some(template.destination.clone()),
            splay: nanos(template.splay),
            perms: Some(format!("{:04o}", template.perms)),
            uid: template.uid.map(i64::from),
            gid: template.gid.map(i64::from),
            left_delim: Some(template.left_delimiter.clone()),
            right_delim: Some(template.right_delimiter.clone()),
            envvars: Some(template.env),
            once: Some(template.once),
            err_missing_key: Some(template.error_on_missing_key),
            wait: template.wait.map(|(min, max)| WaitConfig {
                min: nanos(min),
                max: nanos(max),
                others: Others::new(),
            }),
            ..Template::of_change(&template.on_change)
        }
    }
}

impl Template {
    fn of_change(change: &ChangeMode) -> Self {
        let mode = |mode: &str| Some(mode.to_owned());
        match change {
            ChangeMode::Noop => Self { change_mode: mode("noop"), ..Self::default() },
            ChangeMode::Restart => Self { change_mode: mode("restart"), ..Self::default() },
            ChangeMode::Signal(signal) => {
                Self { change_mode: mode("signal"), change_signal: Some(signal.clone()), ..Self::default() }
            }
            ChangeMode::Script(script) => {
                let script = ChangeScript {
                    command: Some(script.command.clone()),
                    args: Some(script.args.clone()),
                    timeout: nanos(script.timeout),
                    fail_on_error: Some(script.fail_on_error),
                    others: Others::new(),
                };
                Self { change_mode: mode("script"), change_script: Some(script), ..Self::default() }
            }
        }
    }
}

fn volumes(volumes: &[model::VolumeRequest]) -> BTreeMap<String, VolumeRequest> {
    volumes.iter().map(|volume| (volume.name.clone(), volume.into())).collect()
}

impl From<&model::VolumeRequest> for VolumeRequest {
    fn from(volume: &model::VolumeRequest) -> Self {
        let model::VolumeKind::Host = volume.kind;
        Self {
            name: Some(volume.name.clone()),
            kind: Some("host".to_owned()),
            source: Some(volume.source.clone()),
            read_only: Some(volume.read_only),
            per_alloc: Some(volume.per_alloc),
            others: Others::new(),
        }
    }
}

impl From<&model::VolumeMount> for VolumeMount {
    fn from(mount: &model::VolumeMount) -> Self {
        Self {
            volume: Some(mount.volume.clone()),
            destination: Some(mount.destination.clone()),
            read_only: Some(mount.read_only),
            propagation_mode: Some("private".to_owned()),
            others: Others::new(),
        }
    }
}

impl From<&model::DnsConfig> for DnsConfig {
    fn from(dns: &model::DnsConfig) -> Self {
        Self {
            servers: Some(dns.servers.clone()),
            searches: Some(dns.searches.clone()),
            options: Some(dns.options.clone()),
            others: Others::new(),
        }
    }
}
