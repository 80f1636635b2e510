//! How a node becomes a member: token -> CA by digest -> Join with a certificate request -> certificate on disk. Later
//! starts use what is on disk.

use crate::config::AgentConfig;
use crate::datadir::{CertificateFiles, DataDir};
use identity::{
    Credentials, CredentialsError, FirstContactError, KeyAndRequest, PeerError, SERVER_NAME, Token, TokenError,
};
use model::{NodeId, Role};
use std::io;
use std::net::SocketAddr;
use std::time::{Duration, SystemTime};
use tokio::time::Instant;
use tonic::Code;
use wire::pb;

/// Servers may be starting, or electing, while their nodes already join.
const PATIENCE: Duration = Duration::from_secs(60);
const RETRY_EVERY: Duration = Duration::from_millis(500);
const CALL_TIMEOUT: Duration = Duration::from_secs(10);

#[derive(Debug, thiserror::Error)]
pub enum EnrolError {
    #[error("token: it cannot be used")]
    Token(#[from] TokenError),
    #[error("token: it is a token for a {}; make one with `meshctl token create --role agent`", role.as_str())]
    WrongRole { role: Role },
    #[error("the join was refused by {server}: {reason}")]
    Refused { server: SocketAddr, reason: String },
    #[error(transparent)]
    FirstContact(FirstContactError),
    #[error("no server let this node join within {} s: {last}; check `servers` and that a leader is elected", PATIENCE.as_secs())]
    NoServer { last: String },
    #[error(
        "the certificate ran out; move ca.pem, certificate.pem and key.pem in {0} away and start with a fresh token"
    )]
    Expired(String),
    #[error(
        "the certificate is of {found}, this node is {wanted}; move the data directory away and join with a fresh token"
    )]
    OtherNode { found: String, wanted: NodeId },
    #[error("key and request cannot be made")]
    Request(#[from] identity::SignError),
    #[error("the certificate cannot be used")]
    Credentials(#[from] CredentialsError),
    #[error("the certificate cannot be used")]
    Identity(#[from] PeerError),
    #[error("the certificate files in the data directory cannot be read or written")]
    Files(#[from] io::Error),
}

/// What one try against one server came to.
enum Failure {
    /// Another server or a later moment may help.
    Passing(String),
    Final(EnrolError),
}

pub async fn enrol(config: &AgentConfig, data: &DataDir, id: NodeId) -> Result<Credentials, EnrolError> {
    if !data.has_certificate() {
        let files = join(config, id).await?;
        data.write_certificate(&files)?;
    }
    let files = data.read_certificate()?;
    let credentials = Credentials::from_pem(&files.ca, &files.certificate, &files.key)?;
    check(&credentials, data, id)?;
    Ok(credentials)
}

fn check(credentials: &Credentials, data: &DataDir, wanted: NodeId) -> Result<(), EnrolError> {
    if identity::valid_until(&credentials.leaf)? < SystemTime::now() {
        return Err(EnrolError::Expired(data.root().display().to_string()));
    }
    match credentials.identity()? {
        (Role::Agent, found) if found == wanted.to_string() => Ok(()),
        (role, found) => Err(EnrolError::OtherNode { found: format!("{} {found}", role.as_str()), wanted }),
    }
}

async fn join(config: &AgentConfig, id: NodeId) -> Result<CertificateFiles, EnrolError> {
    let text = config.token.as_deref().unwrap_or_default();
    let token = Token::parse(text)?;
    if token.role != Role::Agent {
        return Err(EnrolError::WrongRole { role: token.role });
    }
    let until = Instant::now() + PATIENCE;
    for server in config.servers.iter().cycle() {
        match join_at(*server, &token, config, id).await {
            Ok(files) => return Ok(files),
            Err(Failure::Final(error)) => return Err(error),
            Err(Failure::Passing(last)) if Instant::now() > until => return Err(EnrolError::NoServer { last }),
            Err(Failure::Passing(reason)) => tracing::info!(%server, reason, "cannot join yet"),
        }
        tokio::time::sleep(RETRY_EVERY).await;
    }
    Err(EnrolError::NoServer { last: "no server is configured".to_owned() })
}

async fn join_at(
    server: SocketAddr,
    token: &Token,
    config: &AgentConfig,
    id: NodeId,
) -> Result<CertificateFiles, Failure> {
    let ca = identity::fetch_ca(server, token.ca_digest).await.map_err(of_contact)?;
    let own = KeyAndRequest::generate().map_err(|error| Failure::Final(error.into()))?;
    let tls = identity::anonymous_client_config(&ca).map_err(|error| Failure::Final(error.into()))?;
    let channel = identity::channel(server, SERVER_NAME, tls).map_err(|error| Failure::Passing(error.to_string()))?;
    let mut request = tonic::Request::new(pb::JoinRequest {
        token: token.reveal(),
        csr_pem: own.request_pem,
        name: config.name.clone(),
        role: pb::Role::from(Role::Agent).into(),
        rpc_address: None,
        node_id: Some(id.to_string()),
        feature_level: model::FEATURE_LEVEL,
    });
    request.set_timeout(CALL_TIMEOUT);
    let call = pb::join_client::JoinClient::new(channel).join(request).await;
    let reply = call.map_err(|status| of_status(server, &status))?.into_inner();
    Ok(CertificateFiles { ca: reply.ca_pem, certificate: reply.certificate_pem, key: own.key_pem })
}

fn of_contact(error: FirstContactError) -> Failure {
    match error {
        FirstContactError::Connect { .. } | FirstContactError::Timeout { .. } => Failure::Passing(error.to_string()),
        refused => Failure::Final(EnrolError::FirstContact(refused)),
    }
}

/// A server says with the status code whether it cannot now or will not ever.
fn of_status(server: SocketAddr, status: &tonic::Status) -> Failure {
    let reason = status.message().to_owned();
    match status.code() {
        Code::PermissionDenied | Code::Unauthenticated | Code::InvalidArgument | Code::AlreadyExists => {
            Failure::Final(EnrolError::Refused { server, reason })
        }
        code => Failure::Passing(format!("{server}: {code:?} {reason}")),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    async fn refusal(token: &str) -> EnrolError {
        let dir = tempfile::tempdir().unwrap();
        let data = DataDir::open(&dir.path().join("data")).unwrap();
        let mut config = AgentConfig::for_address([127, 0, 0, 1].into());
        config.servers = vec![([127, 0, 0, 1], 1).into()];
        config.token = Some(token.to_owned());
        let Err(refused) = enrol(&config, &data, NodeId::from_random(1)).await else { panic!("joined with {token}") };
        assert!(!data.has_certificate());
        refused
    }

    #[tokio::test]
    async fn bad_tokens_are_refused_before_any_contact() {
        assert!(matches!(refusal("secret").await, EnrolError::Token(_)));
        let server = Token::create([1; 32], Role::Server).unwrap().reveal();
        let refused = refusal(&server).await;
        assert!(matches!(refused, EnrolError::WrongRole { role: Role::Server }), "{refused}");
        assert!(refused.to_string().contains("--role agent"));
    }
}
