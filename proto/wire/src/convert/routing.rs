//! What agents are told about services and nodes.

use super::scalar::{ip, to_ip};
use super::{Result, ToModel, ToPb, all, enumeration, list, to_uuid, uuid};
use crate::pb;
use model::{Generation, RoutedNode, RoutedService, RoutingDelta, RoutingSnapshot};

impl ToPb<pb::RoutingSnapshot> for RoutingSnapshot {
    fn to_pb(&self) -> pb::RoutingSnapshot {
        pb::RoutingSnapshot { generation: self.generation.0, nodes: all(&self.nodes), services: all(&self.services) }
    }
}

impl ToModel<RoutingSnapshot> for pb::RoutingSnapshot {
    fn to_model(self) -> Result<RoutingSnapshot> {
        Ok(RoutingSnapshot {
            generation: Generation(self.generation),
            nodes: list(self.nodes, "nodes")?,
            services: list(self.services, "services")?,
        })
    }
}

impl ToPb<pb::RoutingDelta> for RoutingDelta {
    fn to_pb(&self) -> pb::RoutingDelta {
        pb::RoutingDelta {
            base: self.base.0,
            generation: self.generation.0,
            nodes: all(&self.nodes),
            nodes_gone: self.nodes_gone.iter().map(|id| to_uuid(id.0)).collect(),
            services: all(&self.services),
            services_gone: self.services_gone.clone(),
        }
    }
}

impl ToModel<RoutingDelta> for pb::RoutingDelta {
    fn to_model(self) -> Result<RoutingDelta> {
        Ok(RoutingDelta {
            base: Generation(self.base),
            generation: Generation(self.generation),
            nodes: list(self.nodes, "nodes")?,
            nodes_gone: self.nodes_gone.iter().map(|id| uuid(id, "nodes_gone")).collect::<Result<_>>()?,
            services: list(self.services, "services")?,
            services_gone: self.services_gone,
        })
    }
}

impl ToPb<pb::RoutedNode> for RoutedNode {
    fn to_pb(&self) -> pb::RoutedNode {
        pb::RoutedNode {
            id: to_uuid(self.id.0),
            name: self.name.clone(),
            datacenter: self.datacenter.clone(),
            address: to_ip(self.address),
            blocks: all(&self.blocks),
            status: self.status.to_pb().into(),
            zone: self.zone.clone(),
        }
    }
}

impl ToModel<RoutedNode> for pb::RoutedNode {
    fn to_model(self) -> Result<RoutedNode> {
        Ok(RoutedNode {
            id: uuid(&self.id, "id")?,
            name: self.name,
            datacenter: self.datacenter,
            address: ip(&self.address, "address")?,
            blocks: list(self.blocks, "blocks")?,
            status: enumeration::<pb::NodeStatus, _>(self.status, "status")?,
            zone: self.zone,
        })
    }
}

impl ToPb<pb::RoutedService> for RoutedService {
    fn to_pb(&self) -> pb::RoutedService {
        pb::RoutedService { name: self.name.clone(), vip: to_ip(self.vip), instances: all(&self.instances) }
    }
}

impl ToModel<RoutedService> for pb::RoutedService {
    fn to_model(self) -> Result<RoutedService> {
        Ok(RoutedService { name: self.name, vip: ip(&self.vip, "vip")?, instances: list(self.instances, "instances")? })
    }
}
