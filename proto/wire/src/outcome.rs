//! What applying a command answered, as bytes: Raft's response, and what a server tells the one that forwarded a proposal.

use crate::convert::{At, ConvertError, Result, ToModel, ToPb, enumeration, ip, number, present, to_ip, to_uuid, uuid};
use crate::pb;
use crate::pb::refusal::Refusal as Pb;
use model::outcome::{Applied, Refusal};
use model::{AllocId, Epoch, Index, JobId, ServerId};
use prost::Message;
use thiserror::Error;

pub type Outcome = std::result::Result<Applied, Refusal>;

#[derive(Debug, Error)]
pub enum DecodeError {
    #[error("the outcome is not valid protobuf")]
    Malformed(#[source] prost::DecodeError),
    #[error("the outcome cannot be read: {0}")]
    Convert(#[from] ConvertError),
}

pub fn encode(outcome: &Outcome) -> Vec<u8> {
    let outcome = match outcome {
        Ok(applied) => pb::outcome::Outcome::Applied(applied.to_pb()),
        Err(refusal) => pb::outcome::Outcome::Refusal(pb::Refusal { refusal: Some(refusal.to_pb()) }),
    };
    pb::Outcome { outcome: Some(outcome) }.encode_to_vec()
}

pub fn decode(bytes: &[u8]) -> std::result::Result<Outcome, DecodeError> {
    let message = pb::Outcome::decode(bytes).map_err(DecodeError::Malformed)?;
    Ok(match present(message.outcome, "outcome")? {
        pb::outcome::Outcome::Applied(applied) => Ok(applied.to_model().at("applied")?),
        pb::outcome::Outcome::Refusal(refusal) => Err(present(refusal.refusal, "refusal")?.to_model().at("refusal")?),
    })
}

impl ToPb<pb::Applied> for Applied {
    fn to_pb(&self) -> pb::Applied {
        pb::Applied { index: self.index.0, dropped: self.dropped.iter().map(|id| to_uuid(id.0)).collect() }
    }
}

impl ToModel<Applied> for pb::Applied {
    fn to_model(self) -> Result<Applied> {
        let dropped = |(position, id): (usize, &Vec<u8>)| uuid::<AllocId>(id, &format!("dropped[{position}]"));
        let dropped = self.dropped.iter().enumerate().map(dropped).collect::<Result<_>>()?;
        Ok(Applied { index: Index(self.index), dropped })
    }
}

impl ToPb<Pb> for Refusal {
    fn to_pb(&self) -> Pb {
        match self {
            Refusal::OldIndex { applied } => Pb::OldIndex(applied.0),
            Refusal::NotBootstrapped => Pb::NotBootstrapped(pb::Nothing {}),
            Refusal::AlreadyBootstrapped => Pb::AlreadyBootstrapped(pb::Nothing {}),
            Refusal::RangeInvalid { range, reason } => {
                Pb::RangeInvalid(pb::RangeInvalid { range: range.clone(), reason: reason.clone() })
            }
            Refusal::FeatureLevelTooLow { cluster, needed } => {
                Pb::FeatureLevelTooLow(pb::FeatureLevels { cluster: *cluster, other: *needed })
            }
            Refusal::FeatureLevelLowered { cluster, asked } => {
                Pb::FeatureLevelLowered(pb::FeatureLevels { cluster: *cluster, other: *asked })
            }
            Refusal::ServerUnknown { id } => Pb::ServerUnknown(id.0),
            Refusal::TokenUnknown => Pb::TokenUnknown(pb::Nothing {}),
            Refusal::TokenSpent => Pb::TokenSpent(pb::Nothing {}),
            Refusal::TokenExpired => Pb::TokenExpired(pb::Nothing {}),
            Refusal::TokenRole { asked } => Pb::TokenRole(asked.to_pb().into()),
            Refusal::TokenExists => Pb::TokenExists(pb::Nothing {}),
            Refusal::TooManyTokens { max } => Pb::TooManyTokens(*max),
            Refusal::NameTaken { name } => Pb::NameTaken(name.clone()),
            Refusal::AddressTaken { address } => Pb::AddressTaken(to_ip(*address)),
            Refusal::NameInvalid { name } => Pb::NameInvalid(name.clone()),
            Refusal::NodeUnknown { id } => Pb::NodeUnknown(to_uuid(id.0)),
            Refusal::EpochNotNewer { known, got } => Pb::EpochNotNewer(to_epochs(*known, *got)),
            Refusal::EpochStale { known, got } => Pb::EpochStale(to_epochs(*known, *got)),
            Refusal::AddressesExhausted { range } => Pb::AddressesExhausted(range.clone()),
            Refusal::JobUnknown { id } => Pb::JobUnknown(id.0.clone()),
            Refusal::JobInvalid { id, reason } => {
                Pb::JobInvalid(pb::JobInvalid { job_id: id.0.clone(), reason: reason.clone() })
            }
            Refusal::JobIndexConflict { id, expected, current } => Pb::JobIndexConflict(pb::JobIndexConflict {
                job_id: id.0.clone(),
                expected: expected.0,
                current: current.0,
            }),
            Refusal::DeploymentUnknown { id } => Pb::DeploymentUnknown(to_uuid(id.0)),
            Refusal::DeploymentEnded { id, status } => {
                Pb::DeploymentEnded(pb::DeploymentEnded { id: to_uuid(id.0), status: status.to_pb().into() })
            }
            Refusal::NodeDrains { id } => Pb::NodeDrains(to_uuid(id.0)),
            Refusal::NotPromotable { reason } => Pb::NotPromotable(reason.clone()),
            Refusal::CasMismatch { name, expected, current } => {
                Pb::CasMismatch(pb::CasMismatch { name: name.clone(), expected: expected.0, current: current.0 })
            }
            Refusal::StoreInvalid { name, reason } => {
                Pb::StoreInvalid(pb::StoreInvalid { name: name.clone(), reason: reason.clone() })
            }
            Refusal::EvalMismatch { id, job_id } => {
                Pb::EvalMismatch(pb::EvalMismatch { id: to_uuid(id.0), job_id: job_id.0.clone() })
            }
            Refusal::EvalUnknown { id } => Pb::EvalUnknown(to_uuid(id.0)),
            Refusal::EvalNotPending { id, status } => {
                Pb::EvalNotPending(pb::EvalNotPending { id: to_uuid(id.0), status: status.to_pb().into() })
            }
        }
    }
}

impl ToModel<Refusal> for Pb {
    fn to_model(self) -> Result<Refusal> {
        Ok(match self {
            Pb::OldIndex(applied) => Refusal::OldIndex { applied: Index(applied) },
            Pb::NotBootstrapped(_) => Refusal::NotBootstrapped,
            Pb::AlreadyBootstrapped(_) => Refusal::AlreadyBootstrapped,
            Pb::RangeInvalid(pb::RangeInvalid { range, reason }) => Refusal::RangeInvalid { range, reason },
            Pb::FeatureLevelTooLow(pb::FeatureLevels { cluster, other }) => {
                Refusal::FeatureLevelTooLow { cluster, needed: other }
            }
            Pb::FeatureLevelLowered(pb::FeatureLevels { cluster, other }) => {
                Refusal::FeatureLevelLowered { cluster, asked: other }
            }
            Pb::ServerUnknown(id) => Refusal::ServerUnknown { id: ServerId(id) },
            Pb::TokenUnknown(_) => Refusal::TokenUnknown,
            Pb::TokenSpent(_) => Refusal::TokenSpent,
            Pb::TokenExpired(_) => Refusal::TokenExpired,
            Pb::TokenRole(role) => Refusal::TokenRole { asked: enumeration::<pb::Role, _>(role, "token_role")? },
            Pb::TokenExists(_) => Refusal::TokenExists,
            Pb::TooManyTokens(max) => Refusal::TooManyTokens { max: number(max, "too_many_tokens")? },
            Pb::NameTaken(name) => Refusal::NameTaken { name },
            Pb::AddressTaken(address) => Refusal::AddressTaken { address: ip(&address, "address_taken")? },
            Pb::NameInvalid(name) => Refusal::NameInvalid { name },
            Pb::NodeUnknown(id) => Refusal::NodeUnknown { id: uuid(&id, "node_unknown")? },
            Pb::EpochNotNewer(pb::Epochs { known, got }) => {
                Refusal::EpochNotNewer { known: Epoch(known), got: Epoch(got) }
            }
            Pb::EpochStale(pb::Epochs { known, got }) => Refusal::EpochStale { known: Epoch(known), got: Epoch(got) },
            Pb::AddressesExhausted(range) => Refusal::AddressesExhausted { range },
            Pb::JobUnknown(id) => Refusal::JobUnknown { id: JobId(id) },
            Pb::JobInvalid(pb::JobInvalid { job_id, reason }) => Refusal::JobInvalid { id: JobId(job_id), reason },
            Pb::JobIndexConflict(pb::JobIndexConflict { job_id, expected, current }) => {
                Refusal::JobIndexConflict { id: JobId(job_id), expected: Index(expected), current: Index(current) }
            }
            Pb::DeploymentUnknown(id) => Refusal::DeploymentUnknown { id: uuid(&id, "deployment_unknown")? },
            Pb::DeploymentEnded(ended) => Refusal::DeploymentEnded {
                id: uuid(&ended.id, "deployment_ended.id")?,
                status: enumeration::<pb::DeploymentStatus, _>(ended.status, "deployment_ended.status")?,
            },
            Pb::NodeDrains(id) => Refusal::NodeDrains { id: uuid(&id, "node_drains")? },
            Pb::NotPromotable(reason) => Refusal::NotPromotable { reason },
            Pb::CasMismatch(pb::CasMismatch { name, expected, current }) => {
                Refusal::CasMismatch { name, expected: Index(expected), current: Index(current) }
            }
            Pb::StoreInvalid(pb::StoreInvalid { name, reason }) => Refusal::StoreInvalid { name, reason },
            Pb::EvalMismatch(mismatch) => {
                Refusal::EvalMismatch { id: uuid(&mismatch.id, "eval_mismatch.id")?, job_id: JobId(mismatch.job_id) }
            }
            Pb::EvalUnknown(id) => Refusal::EvalUnknown { id: uuid(&id, "eval_unknown")? },
            Pb::EvalNotPending(pb::EvalNotPending { id, status }) => Refusal::EvalNotPending {
                id: uuid(&id, "eval_not_pending.id")?,
                status: enumeration::<pb::EvalStatus, _>(status, "eval_not_pending.status")?,
            },
        })
    }
}

fn to_epochs(known: Epoch, got: Epoch) -> pb::Epochs {
    pb::Epochs { known: known.0, got: got.0 }
}
