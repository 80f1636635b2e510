//! The catalog's image as bytes, with a format version of its own.

use crate::convert::scalar::{ip, to_ip};
use crate::convert::{
    At, ConvertError, Problem, ToModel, ToPb, all, enum_pairs, enumeration, from_alloc_set, list, optional, present,
    required, to_alloc_set, to_uuid, uuid,
};
use crate::pb;
use model::image::{CatalogImage, Founding, JobRecord, Table};
use model::{AllocId, Index, Timestamp};
use prost::Message;
use std::net::IpAddr;
use thiserror::Error;

/// The format that [`encode`] writes. Older ones stay readable.
pub const FORMAT: u32 = 1;

/// Why bytes are not a catalog's image.
#[derive(Debug, Error)]
pub enum DecodeError {
    #[error("the snapshot has format {0} and this version reads up to {FORMAT}; upgrade this server")]
    UnknownFormat(u32),
    #[error(
        "the snapshot is not valid protobuf; it may be damaged: let this server join again with an empty directory"
    )]
    Malformed(#[source] prost::DecodeError),
    #[error("the snapshot cannot be read: {0}")]
    Convert(#[from] ConvertError),
}

pub fn encode(image: &CatalogImage) -> Vec<u8> {
    let message = pb::Snapshot {
        format: FORMAT,
        index: image.index.0,
        feature_level: image.feature_level,
        founding: image.founding.as_ref().map(ToPb::to_pb),
        servers: all(&image.servers),
        tokens: all(&image.tokens),
        nodes: all(&image.nodes),
        jobs: all(&image.jobs),
        allocs: Some(to_alloc_set(&image.allocs)),
        evals: all(&image.evals),
        vips: all(&image.vips),
        tables: all(&image.tables),
        instances_modified: all(&image.instances_modified),
        routing_modified: image.routing_modified.0,
        deployments: all(&image.deployments),
        kv: all(&image.kv),
        kv_deleted: image.kv_deleted.0,
        variables: all(&image.variables),
        autopilot: (image.autopilot != model::Autopilot::default()).then(|| image.autopilot.to_pb()),
        node_reasons: all(&image.node_reasons),
    };
    message.encode_to_vec()
}

pub fn decode(bytes: &[u8]) -> Result<CatalogImage, DecodeError> {
    let format = FormatOnly::decode(bytes).map_err(DecodeError::Malformed)?.format;
    if format != FORMAT {
        return Err(DecodeError::UnknownFormat(format));
    }
    let snapshot = pb::Snapshot::decode(bytes).map_err(DecodeError::Malformed)?;
    Ok(snapshot.to_model()?)
}

/// The one field that every format shares: read alone, so that fields of a newer format cannot make it unreadable.
#[derive(Clone, PartialEq, Message)]
struct FormatOnly {
    #[prost(uint32, tag = "1")]
    format: u32,
}

impl ToModel<CatalogImage> for pb::Snapshot {
    fn to_model(self) -> crate::convert::Result<CatalogImage> {
        Ok(CatalogImage {
            index: Index(self.index),
            feature_level: self.feature_level,
            founding: optional(self.founding, "founding")?,
            servers: list(self.servers, "servers")?,
            tokens: list(self.tokens, "tokens")?,
            nodes: list(self.nodes, "nodes")?,
            jobs: list(self.jobs, "jobs")?,
            allocs: from_alloc_set(present(self.allocs, "allocs")?).at("allocs")?,
            evals: list(self.evals, "evals")?,
            deployments: list(self.deployments, "deployments")?,
            vips: list(self.vips, "vips")?,
            tables: list(self.tables, "tables")?,
            instances_modified: list(self.instances_modified, "instances_modified")?,
            routing_modified: Index(self.routing_modified),
            kv: list(self.kv, "kv")?,
            kv_deleted: Index(self.kv_deleted),
            variables: list(self.variables, "variables")?,
            autopilot: optional(self.autopilot, "autopilot")?.unwrap_or_default(),
            node_reasons: list(self.node_reasons, "node_reasons")?,
        })
    }
}

impl ToPb<pb::Founding> for Founding {
    fn to_pb(&self) -> pb::Founding {
        pb::Founding {
            authority: Some(self.authority.to_pb()),
            alloc_range: Some(self.alloc_range.to_pb()),
            vip_range: Some(self.vip_range.to_pb()),
        }
    }
}

impl ToModel<Founding> for pb::Founding {
    fn to_model(self) -> crate::convert::Result<Founding> {
        Ok(Founding {
            authority: required(self.authority, "authority")?,
            alloc_range: required(self.alloc_range, "alloc_range")?,
            vip_range: required(self.vip_range, "vip_range")?,
        })
    }
}

impl ToPb<pb::JobRecord> for JobRecord {
    fn to_pb(&self) -> pb::JobRecord {
        pb::JobRecord {
            versions: all(&self.versions),
            purge: self.purge,
            created_at_index: self.created_at_index.0,
            modified_at_index: self.modified_at_index.0,
            job_modified_at_index: self.job_modified_at_index.0,
            launched_for: self.launched_for.0,
        }
    }
}

impl ToModel<JobRecord> for pb::JobRecord {
    fn to_model(self) -> crate::convert::Result<JobRecord> {
        if self.versions.is_empty() {
            return Err(ConvertError::new("versions", Problem::Missing));
        }
        Ok(JobRecord {
            versions: list(self.versions, "versions")?,
            purge: self.purge,
            created_at_index: Index(self.created_at_index),
            modified_at_index: Index(self.modified_at_index),
            job_modified_at_index: Index(self.job_modified_at_index),
            launched_for: Timestamp(self.launched_for),
        })
    }
}

impl ToPb<pb::NamedAddress> for (String, IpAddr) {
    fn to_pb(&self) -> pb::NamedAddress {
        pb::NamedAddress { name: self.0.clone(), address: to_ip(self.1) }
    }
}

impl ToModel<(String, IpAddr)> for pb::NamedAddress {
    fn to_model(self) -> crate::convert::Result<(String, IpAddr)> {
        Ok((self.name, ip(&self.address, "address")?))
    }
}

impl ToPb<pb::TableIndex> for (Table, Index) {
    fn to_pb(&self) -> pb::TableIndex {
        pb::TableIndex { table: self.0.to_pb().into(), index: self.1.0 }
    }
}

impl ToModel<(Table, Index)> for pb::TableIndex {
    fn to_model(self) -> crate::convert::Result<(Table, Index)> {
        Ok((enumeration::<pb::Table, _>(self.table, "table")?, Index(self.index)))
    }
}

impl ToPb<pb::InstanceIndex> for (AllocId, Index) {
    fn to_pb(&self) -> pb::InstanceIndex {
        pb::InstanceIndex { alloc_id: to_uuid(self.0.0), index: self.1.0 }
    }
}

impl ToModel<(AllocId, Index)> for pb::InstanceIndex {
    fn to_model(self) -> crate::convert::Result<(AllocId, Index)> {
        Ok((uuid(&self.alloc_id, "alloc_id")?, Index(self.index)))
    }
}

enum_pairs!(
    Table,
    pb::Table,
    Cluster,
    Servers,
    Tokens,
    Nodes,
    Jobs,
    Allocs,
    Evals,
    Services,
    Deployments,
    Kv,
    Variables
);
