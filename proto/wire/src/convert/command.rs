//! The replicated commands.

use super::scalar::{span, time, to_span};
use super::{
    ConvertError, Problem, Result, ToModel, ToPb, all, digest, enum_pairs, enumeration, list, optional, required,
    socket_addr, to_digest, to_endpoint, to_uuid, uuid,
};
use crate::pb;
use crate::pb::envelope::Command as Pb;
use model::{
    Authority, CatalogImage, Command, Epoch, Garbage, Index, JobId, JoinToken, Retention, Role, ServerId, ServerRecord,
};

impl ToPb<Pb> for Command {
    fn to_pb(&self) -> Pb {
        match self {
            Command::Bootstrap { authority, alloc_range, vip_range } => Pb::Bootstrap(pb::Bootstrap {
                authority: Some(authority.to_pb()),
                alloc_range: Some(alloc_range.to_pb()),
                vip_range: Some(vip_range.to_pb()),
            }),
            Command::UpsertServer(server) => Pb::UpsertServer(server.to_pb()),
            Command::RemoveServer { id } => Pb::RemoveServer(pb::RemoveServer { id: id.0 }),
            Command::CreateToken(token) => Pb::CreateToken(token.to_pb()),
            Command::UseToken { digest, role, name } => {
                Pb::UseToken(pb::UseToken { digest: to_digest(digest), role: role.to_pb().into(), name: name.clone() })
            }
            Command::RegisterNode(node) => Pb::RegisterNode(node.to_pb()),
            Command::SetNodeStatus { node_id, epoch, status, evals } => Pb::SetNodeStatus(pb::SetNodeStatus {
                node_id: to_uuid(node_id.0),
                epoch: epoch.0,
                status: status.to_pb().into(),
                evals: all(evals),
            }),
            Command::RegisterJob { job, eval, enforce_index } => Pb::RegisterJob(pb::RegisterJob {
                job: Some(job.to_pb()),
                eval: Some(eval.to_pb()),
                enforce_index: enforce_index.map(|index| index.0),
            }),
            Command::DeregisterJob { job_id, purge, eval } => Pb::DeregisterJob(pb::DeregisterJob {
                job_id: job_id.0.clone(),
                purge: *purge,
                eval: Some(eval.to_pb()),
            }),
            Command::ApplyPlan { plan, follow_up } => Pb::ApplyPlan(pb::ApplyPlan {
                plan: Some(plan.to_pb()),
                follow_up: follow_up.as_ref().map(ToPb::to_pb),
            }),
            Command::UpdateAllocs { node_id, epoch, updates, evals } => Pb::UpdateAllocs(pb::UpdateAllocs {
                node_id: to_uuid(node_id.0),
                epoch: epoch.0,
                updates: all(updates),
                evals: all(evals),
            }),
            Command::RestoreCatalog { image, evals } => {
                Pb::RestoreCatalog(pb::RestoreCatalog { snapshot: crate::snapshot::encode(image), evals: all(evals) })
            }
            Command::DispatchJob { child, eval } => {
                Pb::DispatchJob(pb::DispatchJob { child: Some(child.to_pb()), eval: Some(eval.to_pb()) })
            }
            Command::LaunchPeriodic { parent, launch, child, eval } => Pb::LaunchPeriodic(pb::LaunchPeriodic {
                parent: parent.0.clone(),
                launch: launch.0,
                child: child.as_ref().map(|child| child.to_pb()),
                eval: Some(eval.to_pb()),
            }),
            Command::MarkStable { job_id, version, stable } => {
                Pb::MarkStable(pb::MarkStable { job_id: job_id.0.clone(), version: *version, stable: *stable })
            }
            Command::RestartJob { job_id, eval } => {
                Pb::RestartJob(pb::RestartJob { job_id: job_id.0.clone(), eval: Some(eval.to_pb()) })
            }
            Command::CollectGarbage(garbage) => Pb::CollectGarbage(garbage.to_pb()),
            Command::UpsertEvals(evals) => Pb::UpsertEvals(pb::UpsertEvals { evals: all(evals) }),
            Command::StopAllocs { alloc_ids, evals } => Pb::StopAllocs(pb::StopAllocs {
                alloc_ids: alloc_ids.iter().map(|id| to_uuid(id.0)).collect(),
                evals: all(evals),
            }),
            Command::SetNodeEligibility { node_id, eligibility, evals } => {
                Pb::SetNodeEligibility(pb::SetNodeEligibility {
                    node_id: to_uuid(node_id.0),
                    eligibility: eligibility.to_pb().into(),
                    evals: all(evals),
                })
            }
            Command::SetNodeDrain { node_id, drain, eligibility, evals } => Pb::SetNodeDrain(pb::SetNodeDrain {
                node_id: to_uuid(node_id.0),
                drain: drain.as_ref().map(ToPb::to_pb),
                eligibility: eligibility.to_pb().into(),
                evals: all(evals),
            }),
            Command::UpdateDeployment { update, eval } => {
                Pb::UpdateDeployment(pb::UpdateDeployment { update: Some(update.to_pb()), eval: Some(eval.to_pb()) })
            }
            Command::JudgeNode { node_id, epoch, status, reason, evals } => Pb::JudgeNode(pb::JudgeNode {
                node_id: to_uuid(node_id.0),
                epoch: epoch.0,
                status: status.to_pb().into(),
                reason: reason.clone(),
                evals: all(evals),
            }),
            Command::ChangeKv(change) => Pb::ChangeKv(change.to_pb()),
            Command::ChangeVariable(change) => Pb::ChangeVariable(change.to_pb()),
            Command::SetAutopilot { autopilot, cas } => {
                Pb::SetAutopilot(pb::SetAutopilot { autopilot: Some(autopilot.to_pb()), cas: cas.map(|index| index.0) })
            }
            Command::SetFeatureLevel { level } => Pb::SetFeatureLevel(pb::SetFeatureLevel { level: *level }),
        }
    }
}

impl ToModel<Command> for Pb {
    fn to_model(self) -> Result<Command> {
        Ok(match self {
            Pb::Bootstrap(command) => Command::Bootstrap {
                authority: required(command.authority, "authority")?,
                alloc_range: required(command.alloc_range, "alloc_range")?,
                vip_range: required(command.vip_range, "vip_range")?,
            },
            Pb::UpsertServer(server) => Command::UpsertServer(server.to_model()?),
            Pb::RemoveServer(command) => Command::RemoveServer { id: ServerId(command.id) },
            Pb::CreateToken(token) => Command::CreateToken(token.to_model()?),
            Pb::UseToken(command) => Command::UseToken {
                digest: digest(&command.digest, "digest")?,
                role: enumeration::<pb::Role, _>(command.role, "role")?,
                name: command.name,
            },
            Pb::RegisterNode(node) => Command::RegisterNode(Box::new(node.to_model()?)),
            Pb::SetNodeStatus(command) => Command::SetNodeStatus {
                node_id: uuid(&command.node_id, "node_id")?,
                epoch: Epoch(command.epoch),
                status: enumeration::<pb::NodeStatus, _>(command.status, "status")?,
                evals: list(command.evals, "evals")?,
            },
            Pb::RegisterJob(command) => Command::RegisterJob {
                job: Box::new(required(command.job, "job")?),
                eval: required(command.eval, "eval")?,
                enforce_index: command.enforce_index.map(Index),
            },
            Pb::DeregisterJob(command) => Command::DeregisterJob {
                job_id: JobId(command.job_id),
                purge: command.purge,
                eval: required(command.eval, "eval")?,
            },
            Pb::ApplyPlan(command) => Command::ApplyPlan {
                plan: Box::new(required(command.plan, "plan")?),
                follow_up: optional(command.follow_up, "follow_up")?,
            },
            Pb::UpdateAllocs(command) => Command::UpdateAllocs {
                node_id: uuid(&command.node_id, "node_id")?,
                epoch: Epoch(command.epoch),
                updates: list(command.updates, "updates")?,
                evals: list(command.evals, "evals")?,
            },
            Pb::RestoreCatalog(command) => Command::RestoreCatalog {
                image: Box::new(image(&command.snapshot)?),
                evals: list(command.evals, "evals")?,
            },
            Pb::DispatchJob(command) => Command::DispatchJob {
                child: Box::new(required(command.child, "child")?),
                eval: required(command.eval, "eval")?,
            },
            Pb::LaunchPeriodic(command) => Command::LaunchPeriodic {
                parent: JobId(command.parent),
                launch: time(command.launch),
                child: optional(command.child, "child")?.map(Box::new),
                eval: required(command.eval, "eval")?,
            },
            Pb::MarkStable(command) => {
                Command::MarkStable { job_id: JobId(command.job_id), version: command.version, stable: command.stable }
            }
            Pb::RestartJob(command) => {
                Command::RestartJob { job_id: JobId(command.job_id), eval: required(command.eval, "eval")? }
            }
            Pb::CollectGarbage(garbage) => Command::CollectGarbage(Box::new(garbage.to_model()?)),
            Pb::UpsertEvals(command) => Command::UpsertEvals(list(command.evals, "evals")?),
            Pb::StopAllocs(command) => Command::StopAllocs {
                alloc_ids: command.alloc_ids.iter().map(|id| uuid(id, "alloc_ids")).collect::<Result<_>>()?,
                evals: list(command.evals, "evals")?,
            },
            Pb::SetNodeEligibility(command) => Command::SetNodeEligibility {
                node_id: uuid(&command.node_id, "node_id")?,
                eligibility: enumeration::<pb::Eligibility, _>(command.eligibility, "eligibility")?,
                evals: list(command.evals, "evals")?,
            },
            Pb::SetNodeDrain(command) => Command::SetNodeDrain {
                node_id: uuid(&command.node_id, "node_id")?,
                drain: optional(command.drain, "drain")?,
                eligibility: enumeration::<pb::Eligibility, _>(command.eligibility, "eligibility")?,
                evals: list(command.evals, "evals")?,
            },
            Pb::UpdateDeployment(command) => Command::UpdateDeployment {
                update: required(command.update, "update")?,
                eval: required(command.eval, "eval")?,
            },
            Pb::JudgeNode(command) => Command::JudgeNode {
                node_id: uuid(&command.node_id, "node_id")?,
                epoch: Epoch(command.epoch),
                status: enumeration::<pb::NodeStatus, _>(command.status, "status")?,
                reason: command.reason,
                evals: list(command.evals, "evals")?,
            },
            Pb::ChangeKv(change) => Command::ChangeKv(change.to_model()?),
            Pb::ChangeVariable(change) => Command::ChangeVariable(change.to_model()?),
            Pb::SetAutopilot(command) => Command::SetAutopilot {
                autopilot: required(command.autopilot, "autopilot")?,
                cas: command.cas.map(Index),
            },
            Pb::SetFeatureLevel(command) => Command::SetFeatureLevel { level: command.level },
        })
    }
}

fn image(bytes: &[u8]) -> Result<CatalogImage> {
    use crate::snapshot::DecodeError;
    crate::snapshot::decode(bytes).map_err(|error| match error {
        DecodeError::Convert(error) => error.within("snapshot"),
        DecodeError::UnknownFormat(_) => {
            ConvertError::new("snapshot", Problem::Invalid("is of a format not known here"))
        }
        DecodeError::Malformed(_) => ConvertError::new("snapshot", Problem::Invalid("is no snapshot")),
    })
}

impl ToPb<pb::Garbage> for Garbage {
    fn to_pb(&self) -> pb::Garbage {
        pb::Garbage {
            retention: Some(self.retention.to_pb()),
            evals: self.evals.iter().map(|id| to_uuid(id.0)).collect(),
            allocs: self.allocs.iter().map(|id| to_uuid(id.0)).collect(),
            deployments: self.deployments.iter().map(|id| to_uuid(id.0)).collect(),
            jobs: self.jobs.iter().map(|id| id.0.clone()).collect(),
            nodes: self.nodes.iter().map(|id| to_uuid(id.0)).collect(),
        }
    }
}

impl ToModel<Garbage> for pb::Garbage {
    fn to_model(self) -> Result<Garbage> {
        Ok(Garbage {
            retention: required(self.retention, "retention")?,
            evals: uuids(&self.evals, "evals")?,
            allocs: uuids(&self.allocs, "allocs")?,
            deployments: uuids(&self.deployments, "deployments")?,
            jobs: self.jobs.into_iter().map(JobId).collect(),
            nodes: uuids(&self.nodes, "nodes")?,
        })
    }
}

fn uuids<T: super::scalar::FromUuid>(ids: &[Vec<u8>], field: &str) -> Result<Vec<T>> {
    ids.iter().map(|id| uuid(id, field)).collect()
}

impl ToPb<pb::Retention> for Retention {
    fn to_pb(&self) -> pb::Retention {
        let Retention { eval, batch_eval, job, deployment, node } = self;
        let [eval, batch_eval, job, deployment, node] =
            [eval, batch_eval, job, deployment, node].map(|span| Some(to_span(*span)));
        pb::Retention { eval, batch_eval, job, deployment, node }
    }
}

impl ToModel<Retention> for pb::Retention {
    fn to_model(self) -> Result<Retention> {
        Ok(Retention {
            eval: span(self.eval, "eval")?,
            batch_eval: span(self.batch_eval, "batch_eval")?,
            job: span(self.job, "job")?,
            deployment: span(self.deployment, "deployment")?,
            node: span(self.node, "node")?,
        })
    }
}

impl ToPb<pb::Authority> for Authority {
    fn to_pb(&self) -> pb::Authority {
        pb::Authority { certificate_der: self.certificate_der.clone(), sealed_key: self.sealed_key.clone() }
    }
}

impl ToModel<Authority> for pb::Authority {
    fn to_model(self) -> Result<Authority> {
        Ok(Authority { certificate_der: self.certificate_der, sealed_key: self.sealed_key })
    }
}

impl ToPb<pb::ServerRecord> for ServerRecord {
    fn to_pb(&self) -> pb::ServerRecord {
        let rpc_address = Some(to_endpoint(&self.rpc_address));
        pb::ServerRecord { id: self.id.0, name: self.name.clone(), rpc_address }
    }
}

impl ToModel<ServerRecord> for pb::ServerRecord {
    fn to_model(self) -> Result<ServerRecord> {
        let rpc_address = socket_addr(self.rpc_address, "rpc_address")?;
        Ok(ServerRecord { id: ServerId(self.id), name: self.name, rpc_address })
    }
}

impl ToPb<pb::JoinToken> for JoinToken {
    fn to_pb(&self) -> pb::JoinToken {
        pb::JoinToken {
            digest: to_digest(&self.digest),
            role: self.role.to_pb().into(),
            uses_left: self.uses_left,
            expires_at: self.expires_at.0,
        }
    }
}

impl ToModel<JoinToken> for pb::JoinToken {
    fn to_model(self) -> Result<JoinToken> {
        Ok(JoinToken {
            digest: digest(&self.digest, "digest")?,
            role: enumeration::<pb::Role, _>(self.role, "role")?,
            uses_left: self.uses_left,
            expires_at: time(self.expires_at),
        })
    }
}

enum_pairs!(Role, pb::Role, Server, Agent);
