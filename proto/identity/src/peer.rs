//! Reading role and id out of a certificate that TLS has already verified.

use model::{NodeId, Role};
use std::time::{Duration, SystemTime};
use x509_parser::prelude::{FromDer, GeneralName, X509Certificate};

#[derive(Debug, thiserror::Error, PartialEq, Eq)]
pub enum PeerError {
    #[error("the peer's certificate cannot be parsed")]
    Certificate,
    #[error("the peer's certificate names no mesh:// identity; join the cluster again to get one")]
    NoIdentity,
    #[error("the peer's certificate names more than one mesh:// identity")]
    ManyIdentities,
    #[error("the peer's certificate names `{0}`, which is neither mesh://server/<id> nor mesh://agent/<node id>")]
    Identity(String),
}

/// The role and id that the certificate's only `mesh://` URI names.
pub fn peer_role(certificate_der: &[u8]) -> Result<(Role, String), PeerError> {
    let certificate = parse(certificate_der)?;
    let names = certificate.subject_alternative_name().map_err(|_| PeerError::Certificate)?;
    let names = names.map(|extension| extension.value.general_names.as_slice()).unwrap_or_default();
    let mut identities = names.iter().filter_map(|name| match name {
        GeneralName::URI(uri) if uri.starts_with("mesh://") => Some(*uri),
        _ => None,
    });
    let uri = identities.next().ok_or(PeerError::NoIdentity)?;
    match identities.next() {
        Some(_) => Err(PeerError::ManyIdentities),
        None => parse_identity(uri).ok_or_else(|| PeerError::Identity(uri.to_owned())),
    }
}

/// When the certificate runs out.
pub fn valid_until(certificate_der: &[u8]) -> Result<SystemTime, PeerError> {
    validity(certificate_der).map(|(_, not_after)| not_after)
}

/// From when until when.
pub(crate) fn validity(certificate_der: &[u8]) -> Result<(SystemTime, SystemTime), PeerError> {
    let certificate = parse(certificate_der)?;
    let at = |seconds: i64| SystemTime::UNIX_EPOCH + Duration::from_secs(u64::try_from(seconds).unwrap_or(0));
    let validity = certificate.validity();
    Ok((at(validity.not_before.timestamp()), at(validity.not_after.timestamp())))
}

fn parse(der: &[u8]) -> Result<X509Certificate<'_>, PeerError> {
    match X509Certificate::from_der(der) {
        Ok(([], certificate)) => Ok(certificate),
        _ => Err(PeerError::Certificate),
    }
}

fn parse_identity(uri: &str) -> Option<(Role, String)> {
    let (role, id) = uri.strip_prefix("mesh://")?.split_once('/')?;
    let role = match role {
        "server" if id.parse::<u64>().is_ok_and(|number| number > 0) => Role::Server,
        "agent" if id.parse::<NodeId>().is_ok() => Role::Agent,
        _ => return None,
    };
    Some((role, id.to_owned()))
}
