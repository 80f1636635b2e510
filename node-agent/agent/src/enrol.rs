//! How a node becomes a member: token -> CA by digest -> Join with a certificate request -> certificate on disk. Later
//! starts use what is on disk, and a running agent has it renewed at half life.

use crate::config::AgentConfig;
use crate::datadir::{CertificateFiles, DataDir};
use crate::entropy::Jitter;
use crate::session::LinkStatus;
use identity::{
    Credentials, CredentialsError, FirstContactError, KeyAndRequest, LiveCredentials, PeerError, ReplaceError,
    SERVER_NAME, Token, TokenError,
};
use model::{NodeId, Role};
use std::io;
use std::net::SocketAddr;
use std::time::{Duration, SystemTime};
use tokio::sync::watch;
use tokio::time::Instant;
use tonic::Code;
use tonic::transport::Channel;
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
        "this node's certificate ran out while no server could renew it; make a token on a server with \
         `meshctl token create -role agent` and start the agent with `-token`: tasks and data path go on meanwhile"
    )]
    Expired,
    #[error(
        "the certificate is of {found}, this node is {wanted}; move the data directory away and join with a fresh token"
    )]
    OtherNode { found: String, wanted: NodeId },
    #[error(transparent)]
    Address(#[from] identity::BadName),
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

/// Why a certificate was not renewed this time.
#[derive(Debug, thiserror::Error)]
enum RenewError {
    #[error("{0}")]
    Server(String),
    #[error(transparent)]
    Request(#[from] identity::SignError),
    #[error(transparent)]
    Credentials(#[from] CredentialsError),
    #[error(transparent)]
    Replace(#[from] ReplaceError),
    #[error("the renewed certificate is in use, but could not be written: {0}")]
    Write(#[from] io::Error),
}

/// This node's membership: what it proves itself with, in memory and on disk.
#[derive(Clone, Debug)]
pub struct Enrolment {
    live: LiveCredentials,
    data: DataDir,
}

pub async fn enrol(config: &AgentConfig, data: &DataDir, id: NodeId) -> Result<Enrolment, EnrolError> {
    if !data.has_certificate() {
        data.write_certificate(&join(config, id).await?)?;
    }
    let mut credentials = load(data)?;
    if has_expired(&credentials)? {
        if config.token.is_none() {
            return Err(EnrolError::Expired);
        }
        tracing::warn!("this node's certificate ran out; it joins again with the token");
        data.write_certificate(&join(config, id).await?)?;
        credentials = load(data)?;
    }
    check(&credentials, id)?;
    Ok(Enrolment { live: LiveCredentials::new(credentials)?, data: data.clone() })
}

impl Enrolment {
    /// To a server. Refuses once the certificate has run out: no server would talk to us, nor say why as well.
    pub fn channel(&self, server: SocketAddr) -> Result<Channel, EnrolError> {
        match has_expired(&self.live.current())? {
            true => Err(EnrolError::Expired),
            false => Ok(identity::channel(server, SERVER_NAME, self.live.mtls()?.client)?),
        }
    }

    /// Has the certificate renewed at half life, again and again; ends only with an error that no retry heals.
    pub async fn keep_fresh(self, link: watch::Receiver<LinkStatus>, mut jitter: Jitter) {
        loop {
            let leaf = self.live.current().leaf.clone();
            wait_until_due(&leaf, jitter.fraction()).await;
            let servers = candidates(&link.borrow());
            match self.renew(&servers).await {
                Ok(server) => tracing::info!(%server, "this node's certificate was renewed"),
                Err(error) => {
                    tracing::warn!(%error, "this node's certificate is not renewed yet");
                    tokio::time::sleep(identity::retry_renewal_in(&leaf, SystemTime::now())).await;
                }
            }
        }
    }

    /// Asks the servers in turn until one signs.
    async fn renew(&self, servers: &[SocketAddr]) -> Result<SocketAddr, RenewError> {
        let own = KeyAndRequest::generate()?;
        let mut last = "no server is known".to_owned();
        for server in servers {
            match self.ask(*server, &own.request_pem).await {
                Ok(certificate) => {
                    self.take(certificate, own.key_pem).await?;
                    return Ok(*server);
                }
                Err(reason) => last = format!("{server}: {reason}"),
            }
        }
        Err(RenewError::Server(last))
    }

    async fn ask(&self, server: SocketAddr, request_pem: &str) -> Result<String, String> {
        let channel = self.channel(server).map_err(|error| error.to_string())?;
        let mut request = tonic::Request::new(pb::RenewRequest { csr_pem: request_pem.to_owned() });
        request.set_timeout(CALL_TIMEOUT);
        let call = pb::agents_client::AgentsClient::new(channel).renew(request).await;
        call.map(|reply| reply.into_inner().certificate_pem).map_err(|status| status.message().to_owned())
    }

    /// Into use first, which checks it, then onto the disk.
    async fn take(&self, certificate: String, key: String) -> Result<(), RenewError> {
        let ca = identity::certificate_pem(&self.live.current().ca);
        self.live.replace(Credentials::from_pem(&ca, &certificate, &key)?)?;
        let data = self.data.clone();
        let files = CertificateFiles { ca, certificate, key };
        let written = tokio::task::spawn_blocking(move || data.write_certificate(&files)).await;
        Ok(written.map_err(io::Error::other)??)
    }
}

/// The wall clock is looked at twice a minute at least: machines sleep, and clocks jump.
async fn wait_until_due(leaf: &[u8], jitter: f64) {
    let due = identity::renew_at(leaf, jitter).unwrap_or(SystemTime::UNIX_EPOCH);
    while let Ok(wait) = due.duration_since(SystemTime::now()) {
        tokio::time::sleep(wait.clamp(Duration::from_millis(1), Duration::from_secs(30))).await;
    }
}

/// The server of the session first.
fn candidates(link: &LinkStatus) -> Vec<SocketAddr> {
    let others = link.servers.iter().copied().filter(|server| Some(*server) != link.connected_to);
    link.connected_to.into_iter().chain(others).collect()
}

fn load(data: &DataDir) -> Result<Credentials, EnrolError> {
    let files = data.read_certificate()?;
    Ok(Credentials::from_pem(&files.ca, &files.certificate, &files.key)?)
}

fn has_expired(credentials: &Credentials) -> Result<bool, PeerError> {
    Ok(identity::valid_until(&credentials.leaf)? < SystemTime::now())
}

fn check(credentials: &Credentials, wanted: NodeId) -> Result<(), EnrolError> {
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
    async fn a_certificate_that_ran_out_asks_for_a_token() {
        let dir = tempfile::tempdir().unwrap();
        let data = DataDir::open(&dir.path().join("data")).unwrap();
        let (ca, key) = (identity::CertificateAuthority::create().unwrap(), KeyAndRequest::generate().unwrap());
        let id = NodeId::from_random(1);
        let subject = identity::Subject::Agent(id);
        let settle = |validity| {
            let certificate = ca.sign(&key.request_pem, subject, validity).unwrap();
            let files = CertificateFiles { ca: ca.certificate_pem(), certificate, key: key.key_pem.clone() };
            data.write_certificate(&files).unwrap();
        };
        let config = AgentConfig::for_address([127, 0, 0, 1].into());
        settle(Duration::from_secs(60));
        let enrolment = enrol(&config, &data, id).await.unwrap();
        assert!(enrolment.channel(([127, 0, 0, 1], 1).into()).is_ok());
        settle(Duration::ZERO);
        tokio::time::sleep(Duration::from_millis(1100)).await;
        let refused = enrol(&config, &data, id).await.unwrap_err();
        assert!(matches!(refused, EnrolError::Expired), "{refused}");
        assert!(refused.to_string().contains("meshctl token create -role agent"));
    }

    #[test]
    fn the_server_of_the_session_is_asked_first() {
        let [a, b, c] = [1, 2, 3].map(|number: u8| SocketAddr::from(([10, 0, 0, number], 4647)));
        let link = |connected_to| LinkStatus { connected_to, servers: vec![a, b, c], last_error: None };
        assert_eq!(candidates(&link(Some(b))), [b, a, c]);
        assert_eq!(candidates(&link(None)), [a, b, c]);
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
