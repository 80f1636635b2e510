//! Services, their checks and instances.

use super::scalar::{ip, to_ip};
use super::{At, Result, ToModel, ToPb, all, enum_pairs, enumeration, list, number, optional, port, present, span};
use super::{to_span, to_uuid, uuid};
use crate::pb;
use model::{
    Check, CheckKind, CheckRestart, CheckTls, Health, Index, Instance, InstanceNetwork, JobId, OnUpdate, Service,
    Steering, Weights,
};
use std::time::Duration;

impl ToPb<pb::Service> for Service {
    fn to_pb(&self) -> pb::Service {
        pb::Service {
            name: self.name.clone(),
            tags: self.tags.clone(),
            port_label: self.port_label.clone(),
            checks: all(&self.checks),
            meta: self.meta.clone(),
            canary_tags: self.canary_tags.as_ref().map(|tags| pb::TextList { items: tags.clone() }),
            canary_meta: self.canary_meta.clone(),
            weights: (self.weights != Weights::default()).then(|| self.weights.to_pb()),
        }
    }
}

impl ToModel<Service> for pb::Service {
    fn to_model(self) -> Result<Service> {
        Ok(Service {
            name: self.name,
            tags: self.tags,
            port_label: self.port_label,
            checks: list(self.checks, "checks")?,
            meta: self.meta,
            canary_tags: self.canary_tags.map(|tags| tags.items),
            canary_meta: self.canary_meta,
            weights: optional(self.weights, "weights")?.unwrap_or_default(),
        })
    }
}

impl ToPb<pb::Weights> for Weights {
    fn to_pb(&self) -> pb::Weights {
        pb::Weights { passing: u32::from(self.passing), warning: u32::from(self.warning) }
    }
}

impl ToModel<Weights> for pb::Weights {
    fn to_model(self) -> Result<Weights> {
        Ok(Weights { passing: number(self.passing, "passing")?, warning: number(self.warning, "warning")? })
    }
}

impl ToPb<pb::Check> for Check {
    fn to_pb(&self) -> pb::Check {
        pb::Check {
            name: self.name.clone(),
            kind: Some(self.kind.to_pb()),
            interval: Some(to_span(self.interval)),
            timeout: Some(to_span(self.timeout)),
            port_label: self.port_label.clone(),
            initial: self.initial.map_or(pb::Health::Unspecified, |health| health.to_pb()).into(),
            successes_before_passing: self.successes_before_passing,
            failures_before_critical: self.failures_before_critical,
            on_update: match self.on_update {
                OnUpdate::RequireHealthy => pb::OnUpdate::Unspecified.into(),
                other => other.to_pb().into(),
            },
            restart: self.restart.as_ref().map(ToPb::to_pb),
            task: self.task.clone(),
        }
    }
}

impl ToModel<Check> for pb::Check {
    fn to_model(self) -> Result<Check> {
        Ok(Check {
            name: self.name,
            kind: present(self.kind, "kind")?.to_model().at("kind")?,
            interval: span(self.interval, "interval")?,
            timeout: span(self.timeout, "timeout")?,
            port_label: self.port_label,
            initial: match self.initial {
                0 => None,
                number => Some(enumeration::<pb::Health, _>(number, "initial")?),
            },
            successes_before_passing: self.successes_before_passing,
            failures_before_critical: self.failures_before_critical,
            on_update: match self.on_update {
                0 => OnUpdate::RequireHealthy,
                number => enumeration::<pb::OnUpdate, _>(number, "on_update")?,
            },
            restart: optional(self.restart, "restart")?,
            task: self.task,
        })
    }
}

impl ToPb<pb::check::Kind> for CheckKind {
    fn to_pb(&self) -> pb::check::Kind {
        match self {
            CheckKind::Http { method, path, headers, body, tls } => pb::check::Kind::Http(pb::HttpCheck {
                method: method.clone(),
                path: path.clone(),
                headers: headers
                    .iter()
                    .map(|(name, values)| (name.clone(), pb::TextList { items: values.clone() }))
                    .collect(),
                body: body.clone(),
                tls: tls.as_ref().map(ToPb::to_pb),
            }),
            CheckKind::Tcp => pb::check::Kind::Tcp(pb::TcpCheck {}),
            CheckKind::Grpc { service, tls } => {
                pb::check::Kind::Grpc(pb::GrpcCheck { service: service.clone(), tls: tls.as_ref().map(ToPb::to_pb) })
            }
            CheckKind::Script { command, args } => {
                pb::check::Kind::Script(pb::ScriptCheck { command: command.clone(), args: args.clone() })
            }
            CheckKind::Ttl => pb::check::Kind::Ttl(pb::TtlCheck {}),
        }
    }
}

impl ToModel<CheckKind> for pb::check::Kind {
    fn to_model(self) -> Result<CheckKind> {
        Ok(match self {
            pb::check::Kind::Http(http) => CheckKind::Http {
                method: http.method,
                path: http.path,
                headers: http.headers.into_iter().map(|(name, values)| (name, values.items)).collect(),
                body: http.body,
                tls: optional(http.tls, "tls")?,
            },
            pb::check::Kind::Tcp(_) => CheckKind::Tcp,
            pb::check::Kind::Grpc(grpc) => CheckKind::Grpc { service: grpc.service, tls: optional(grpc.tls, "tls")? },
            pb::check::Kind::Script(script) => CheckKind::Script { command: script.command, args: script.args },
            pb::check::Kind::Ttl(_) => CheckKind::Ttl,
        })
    }
}

impl ToPb<pb::CheckTls> for CheckTls {
    fn to_pb(&self) -> pb::CheckTls {
        pb::CheckTls { server_name: self.server_name.clone(), skip_verify: self.skip_verify }
    }
}

impl ToModel<CheckTls> for pb::CheckTls {
    fn to_model(self) -> Result<CheckTls> {
        Ok(CheckTls { server_name: self.server_name, skip_verify: self.skip_verify })
    }
}

impl ToPb<pb::CheckRestart> for CheckRestart {
    fn to_pb(&self) -> pb::CheckRestart {
        pb::CheckRestart { limit: self.limit, grace: Some(to_span(self.grace)), ignore_warnings: self.ignore_warnings }
    }
}

impl ToModel<CheckRestart> for pb::CheckRestart {
    fn to_model(self) -> Result<CheckRestart> {
        Ok(CheckRestart { limit: self.limit, grace: span(self.grace, "grace")?, ignore_warnings: self.ignore_warnings })
    }
}

impl ToPb<pb::Instance> for Instance {
    fn to_pb(&self) -> pb::Instance {
        pb::Instance {
            service: self.service.clone(),
            job_id: self.job_id.0.clone(),
            alloc_id: to_uuid(self.alloc_id.0),
            node_id: to_uuid(self.node_id.0),
            node_name: self.node_name.clone(),
            datacenter: self.datacenter.clone(),
            address: to_ip(self.address),
            port: u32::from(self.port),
            vip_port: self.vip_port.map(u32::from),
            tags: self.tags.clone(),
            weight: u32::from(self.weight),
            network: self.network.to_pb().into(),
            health: self.health.to_pb().into(),
            draining: self.draining,
            modified_at_index: self.modified_at_index.0,
            steering: (self.steering != Steering::default()).then(|| self.steering.to_pb()),
        }
    }
}

impl ToModel<Instance> for pb::Instance {
    fn to_model(self) -> Result<Instance> {
        Ok(Instance {
            service: self.service,
            job_id: JobId(self.job_id),
            alloc_id: uuid(&self.alloc_id, "alloc_id")?,
            node_id: uuid(&self.node_id, "node_id")?,
            node_name: self.node_name,
            datacenter: self.datacenter,
            address: ip(&self.address, "address")?,
            port: port(self.port, "port")?,
            vip_port: self.vip_port.map(|value| port(value, "vip_port")).transpose()?,
            tags: self.tags,
            weight: number(self.weight, "weight")?,
            network: enumeration::<pb::InstanceNetwork, _>(self.network, "network")?,
            health: enumeration::<pb::Health, _>(self.health, "health")?,
            draining: self.draining,
            modified_at_index: Index(self.modified_at_index),
            steering: optional(self.steering, "steering")?.unwrap_or_default(),
        })
    }
}

impl ToPb<pb::Steering> for Steering {
    fn to_pb(&self) -> pb::Steering {
        pb::Steering {
            zone_spill: self.zone_spill.map(u32::from),
            slow_start_ms: u64::try_from(self.slow_start.as_millis()).unwrap_or(u64::MAX),
        }
    }
}

impl ToModel<Steering> for pb::Steering {
    fn to_model(self) -> Result<Steering> {
        let zone_spill = self.zone_spill.map(|percent| number(percent, "zone_spill")).transpose()?;
        Ok(Steering { zone_spill, slow_start: Duration::from_millis(self.slow_start_ms) })
    }
}

enum_pairs!(OnUpdate, pb::OnUpdate, RequireHealthy, IgnoreWarnings, Ignore);
enum_pairs!(InstanceNetwork, pb::InstanceNetwork, Bridge, Host);
enum_pairs!(Health, pb::Health, Passing, Warning, Critical);
