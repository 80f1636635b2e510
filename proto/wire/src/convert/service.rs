//! Services, their checks and instances.

use super::scalar::{ip, to_ip};
use super::{At, Result, ToModel, ToPb, all, enum_pairs, enumeration, list, number, port, present, span, to_span};
use super::{to_uuid, uuid};
use crate::pb;
use model::{Check, CheckKind, Health, Index, Instance, InstanceNetwork, JobId, Service};

impl ToPb<pb::Service> for Service {
    fn to_pb(&self) -> pb::Service {
        pb::Service {
            name: self.name.clone(),
            tags: self.tags.clone(),
            port_label: self.port_label.clone(),
            checks: all(&self.checks),
            meta: self.meta.clone(),
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
        })
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
        })
    }
}

impl ToPb<pb::check::Kind> for CheckKind {
    fn to_pb(&self) -> pb::check::Kind {
        match self {
            CheckKind::Http { method, path } => {
                pb::check::Kind::Http(pb::HttpCheck { method: method.clone(), path: path.clone() })
            }
            CheckKind::Tcp => pb::check::Kind::Tcp(pb::TcpCheck {}),
        }
    }
}

impl ToModel<CheckKind> for pb::check::Kind {
    fn to_model(self) -> Result<CheckKind> {
        Ok(match self {
            pb::check::Kind::Http(http) => CheckKind::Http { method: http.method, path: http.path },
            pb::check::Kind::Tcp(_) => CheckKind::Tcp,
        })
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
        })
    }
}

enum_pairs!(InstanceNetwork, pb::InstanceNetwork, Bridge, Host);
enum_pairs!(Health, pb::Health, Passing, Warning, Critical);
