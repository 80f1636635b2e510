//! Nodes.

use super::scalar::{ip, time, to_ip};
use super::{
    Result, ToModel, ToPb, all, all_by_name, enum_pairs, enumeration, list, map, optional, required, to_uuid, uuid,
};
use crate::pb;
use model::{Drain, DriverStatus, Eligibility, Epoch, Index, Node, NodeResources, NodeStatus};

impl ToPb<pb::Node> for Node {
    fn to_pb(&self) -> pb::Node {
        pb::Node {
            id: to_uuid(self.id.0),
            name: self.name.clone(),
            datacenter: self.datacenter.clone(),
            pool: self.pool.clone(),
            class: self.class.clone(),
            address: to_ip(self.address),
            attributes: self.attributes.clone(),
            meta: self.meta.clone(),
            resources: Some(self.resources.to_pb()),
            drivers: all_by_name(&self.drivers),
            status: self.status.to_pb().into(),
            eligibility: self.eligibility.to_pb().into(),
            epoch: self.epoch.0,
            blocks: all(&self.blocks),
            version: self.version.clone(),
            status_changed_at: self.status_changed_at.0,
            created_at_index: self.created_at_index.0,
            modified_at_index: self.modified_at_index.0,
            drain: self.drain.as_ref().map(ToPb::to_pb),
        }
    }
}

impl ToModel<Node> for pb::Node {
    fn to_model(self) -> Result<Node> {
        Ok(Node {
            id: uuid(&self.id, "id")?,
            name: self.name,
            datacenter: self.datacenter,
            pool: self.pool,
            class: self.class,
            address: ip(&self.address, "address")?,
            attributes: self.attributes,
            meta: self.meta,
            resources: required(self.resources, "resources")?,
            drivers: map(self.drivers, "drivers")?,
            status: enumeration::<pb::NodeStatus, _>(self.status, "status")?,
            eligibility: enumeration::<pb::Eligibility, _>(self.eligibility, "eligibility")?,
            drain: optional(self.drain, "drain")?,
            epoch: Epoch(self.epoch),
            blocks: list(self.blocks, "blocks")?,
            version: self.version,
            status_changed_at: time(self.status_changed_at),
            created_at_index: Index(self.created_at_index),
            modified_at_index: Index(self.modified_at_index),
        })
    }
}

impl ToPb<pb::Drain> for Drain {
    fn to_pb(&self) -> pb::Drain {
        let Drain { started_at, deadline, ignore_system } = *self;
        pb::Drain { started_at: started_at.0, deadline: deadline.0, ignore_system }
    }
}

impl ToModel<Drain> for pb::Drain {
    fn to_model(self) -> Result<Drain> {
        let (started_at, deadline) = (time(self.started_at), time(self.deadline));
        Ok(Drain { started_at, deadline, ignore_system: self.ignore_system })
    }
}

impl ToPb<pb::NodeResources> for NodeResources {
    fn to_pb(&self) -> pb::NodeResources {
        pb::NodeResources { cpu_mhz: self.cpu_mhz, memory_mb: self.memory_mb, disk_mb: self.disk_mb }
    }
}

impl ToModel<NodeResources> for pb::NodeResources {
    fn to_model(self) -> Result<NodeResources> {
        Ok(NodeResources { cpu_mhz: self.cpu_mhz, memory_mb: self.memory_mb, disk_mb: self.disk_mb })
    }
}

impl ToPb<pb::DriverStatus> for DriverStatus {
    fn to_pb(&self) -> pb::DriverStatus {
        pb::DriverStatus { detected: self.detected, healthy: self.healthy, description: self.description.clone() }
    }
}

impl ToModel<DriverStatus> for pb::DriverStatus {
    fn to_model(self) -> Result<DriverStatus> {
        Ok(DriverStatus { detected: self.detected, healthy: self.healthy, description: self.description })
    }
}

enum_pairs!(NodeStatus, pb::NodeStatus, Initializing, Ready, Suspect, Disconnected, Down);
enum_pairs!(Eligibility, pb::Eligibility, Eligible, Ineligible);
