//! Keys, variables and what belongs to the care of servers.

use super::scalar::time;
use super::{Result, ToModel, ToPb, present, to_uuid, uuid};
use crate::pb;
use model::{Autopilot, Index, KvChange, KvEntry, NodeId, Variable, VariableChange};

impl ToPb<pb::KvEntry> for KvEntry {
    fn to_pb(&self) -> pb::KvEntry {
        pb::KvEntry {
            key: self.key.clone(),
            value: self.value.clone(),
            flags: self.flags,
            created_at_index: self.created_at_index.0,
            modified_at_index: self.modified_at_index.0,
        }
    }
}

impl ToModel<KvEntry> for pb::KvEntry {
    fn to_model(self) -> Result<KvEntry> {
        Ok(KvEntry {
            key: self.key,
            value: self.value,
            flags: self.flags,
            created_at_index: Index(self.created_at_index),
            modified_at_index: Index(self.modified_at_index),
        })
    }
}

impl ToPb<pb::KvChange> for KvChange {
    fn to_pb(&self) -> pb::KvChange {
        use pb::kv_change::Change;
        let change = match self.clone() {
            KvChange::Set { key, value, flags, cas } => {
                Change::Set(pb::KvSet { key, value, flags, cas: cas.map(|index| index.0) })
            }
            KvChange::Delete { key, cas } => Change::Delete(pb::KvDelete { key, cas: cas.map(|index| index.0) }),
            KvChange::DeletePrefix { prefix } => Change::DeletePrefix(prefix),
        };
        pb::KvChange { change: Some(change) }
    }
}

impl ToModel<KvChange> for pb::KvChange {
    fn to_model(self) -> Result<KvChange> {
        use pb::kv_change::Change;
        Ok(match present(self.change, "change")? {
            Change::Set(pb::KvSet { key, value, flags, cas }) => {
                KvChange::Set { key, value, flags, cas: cas.map(Index) }
            }
            Change::Delete(pb::KvDelete { key, cas }) => KvChange::Delete { key, cas: cas.map(Index) },
            Change::DeletePrefix(prefix) => KvChange::DeletePrefix { prefix },
        })
    }
}

impl ToPb<pb::Variable> for Variable {
    fn to_pb(&self) -> pb::Variable {
        pb::Variable {
            namespace: self.namespace.clone(),
            path: self.path.clone(),
            sealed: self.sealed.clone(),
            created_at: self.created_at.0,
            modified_at: self.modified_at.0,
            created_at_index: self.created_at_index.0,
            modified_at_index: self.modified_at_index.0,
        }
    }
}

impl ToModel<Variable> for pb::Variable {
    fn to_model(self) -> Result<Variable> {
        Ok(Variable {
            namespace: self.namespace,
            path: self.path,
            sealed: self.sealed,
            created_at: time(self.created_at),
            modified_at: time(self.modified_at),
            created_at_index: Index(self.created_at_index),
            modified_at_index: Index(self.modified_at_index),
        })
    }
}

impl ToPb<pb::VariableChange> for VariableChange {
    fn to_pb(&self) -> pb::VariableChange {
        let (namespace, path, sealed, cas) = match self.clone() {
            VariableChange::Set { namespace, path, sealed, cas } => (namespace, path, Some(sealed), cas),
            VariableChange::Delete { namespace, path, cas } => (namespace, path, None, cas),
        };
        pb::VariableChange { namespace, path, cas: cas.map(|index| index.0), sealed }
    }
}

impl ToModel<VariableChange> for pb::VariableChange {
    fn to_model(self) -> Result<VariableChange> {
        let pb::VariableChange { namespace, path, cas, sealed } = self;
        let cas = cas.map(Index);
        Ok(match sealed {
            Some(sealed) => VariableChange::Set { namespace, path, sealed, cas },
            None => VariableChange::Delete { namespace, path, cas },
        })
    }
}

impl ToPb<pb::Autopilot> for Autopilot {
    fn to_pb(&self) -> pb::Autopilot {
        pb::Autopilot {
            cleanup_dead_servers: self.cleanup_dead_servers,
            last_contact_ms_max: self.last_contact_ms_max,
            trailing_logs_max: self.trailing_logs_max,
            quorum_min: self.quorum_min,
            stabilization_ms: self.stabilization_ms,
            dead_server_after_ms: self.dead_server_after_ms,
            modified_at_index: self.modified_at_index.0,
        }
    }
}

impl ToModel<Autopilot> for pb::Autopilot {
    fn to_model(self) -> Result<Autopilot> {
        Ok(Autopilot {
            cleanup_dead_servers: self.cleanup_dead_servers,
            last_contact_ms_max: self.last_contact_ms_max,
            trailing_logs_max: self.trailing_logs_max,
            quorum_min: self.quorum_min,
            stabilization_ms: self.stabilization_ms,
            dead_server_after_ms: self.dead_server_after_ms,
            modified_at_index: Index(self.modified_at_index),
        })
    }
}

impl ToPb<pb::NodeReason> for (NodeId, String) {
    fn to_pb(&self) -> pb::NodeReason {
        pb::NodeReason { node_id: to_uuid(self.0.0), reason: self.1.clone() }
    }
}

impl ToModel<(NodeId, String)> for pb::NodeReason {
    fn to_model(self) -> Result<(NodeId, String)> {
        Ok((uuid(&self.node_id, "node_id")?, self.reason))
    }
}
