//! The replicated log's entries as bytes.

use crate::convert::{At, ConvertError, ToModel, ToPb};
use crate::pb;
use model::{Envelope, FEATURE_LEVEL, Timestamp};
use prost::Message;
use thiserror::Error;

/// Why bytes are not a command.
#[derive(Debug, Error)]
pub enum DecodeError {
    /// A server that meets this in the committed log must halt: applying nothing would make it differ from the others.
    #[error("the command needs feature level {feature_level} and this version does not know it; upgrade this server")]
    UnknownCommand { feature_level: u32 },
    #[error("the command is not valid protobuf; the log may be damaged")]
    Malformed(#[source] prost::DecodeError),
    #[error("the command cannot be read: {0}")]
    Convert(#[from] ConvertError),
}

pub fn encode(envelope: &Envelope) -> Vec<u8> {
    let message = pb::Envelope {
        proposed_at: envelope.proposed_at.0,
        feature_level: envelope.feature_level,
        command: Some(envelope.command.to_pb()),
    };
    message.encode_to_vec()
}

pub fn decode(bytes: &[u8]) -> Result<Envelope, DecodeError> {
    let message = pb::Envelope::decode(bytes).map_err(DecodeError::Malformed)?;
    let feature_level = message.feature_level;
    // A known command of a newer level may hold fields that this version would drop without noticing.
    if feature_level > FEATURE_LEVEL {
        return Err(DecodeError::UnknownCommand { feature_level });
    }
    let command = message.command.ok_or(DecodeError::UnknownCommand { feature_level })?;
    let proposed_at = Timestamp(message.proposed_at);
    Ok(Envelope { proposed_at, feature_level, command: command.to_model().at("command")? })
}
