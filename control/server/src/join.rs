//! Joining, from both ends: how a server admits whoever shows a token, and how a new server gets admitted.

use crate::config::{ServerConfig, is_name};
use crate::disk::{Papers, Peer, Record, hex};
use crate::member::{Member, ProposeError, ReadUnavailable};
use crate::pb;
use crate::pb::join_client::JoinClient;
use crate::{clock, rpc};
use anyhow::{Context, anyhow, bail};
use catalog::Catalog;
use identity::{CertificateAuthority, KeyAndRequest, SERVER_NAME, SealKey, SignError, Subject, Token, TokenError};
use model::{Command, JoinToken, NodeId, NodeStatus, Refusal, Role, ServerId, ServerRecord, Timestamp};
use rustls_pki_types::CertificateDer;
use std::net::SocketAddr;
use std::time::Duration;
use tonic::Code;

const JOIN_TIMEOUT: Duration = Duration::from_secs(20);
/// Joins that a server works on at once: each may cost a signature and a write.
pub(crate) const JOINS_MAX: usize = 16;

#[derive(Debug, thiserror::Error)]
pub(crate) enum JoinError {
    #[error("{0}")]
    Request(String),
    #[error(transparent)]
    Token(#[from] TokenError),
    #[error("the token is of another cluster; make one here with `meshctl token create`")]
    OtherCluster,
    #[error("the token is for role {token}, the request for role {asked}")]
    TokenRole { token: &'static str, asked: &'static str },
    #[error("name: not usable; choose 1 to 63 letters, digits, `-`, `_` or `.`")]
    Name,
    #[error("the server knows feature level {found}, the cluster is at {cluster}; upgrade the server, then join again")]
    FeatureLevel { cluster: u32, found: u32 },
    #[error("too many joins are under way; try again in a moment")]
    Busy,
    #[error("node {0} is a live member; stop its agent first, or join with an empty data directory")]
    NodeIdTaken(NodeId),
    #[error(transparent)]
    Sign(#[from] SignError),
    #[error(transparent)]
    Propose(#[from] ProposeError),
    #[error(transparent)]
    Read(#[from] ReadUnavailable),
    #[error("the cluster's CA cannot be used here: {0:#}")]
    Authority(anyhow::Error),
}

/// Spends a use of the token and signs the request. What can be refused without spending it is refused first, and what
/// strangers can ask for costs neither a signature nor a word with the other servers, as long as this one knows the token.
pub(crate) async fn admit(member: &Member, request: pb::JoinRequest) -> Result<pb::JoinReply, JoinError> {
    if !is_name(&request.name) {
        return Err(JoinError::Name);
    }
    let _place = member.joins.try_acquire().map_err(|_| JoinError::Busy)?;
    let role = Role::try_from(request.role()).map_err(|error| JoinError::Request(error.to_string()))?;
    let token = Token::parse(&request.token)?;
    let authority = member.authority().await.map_err(JoinError::Authority)?;
    check_token(&token, authority, role)?;
    let rpc_address = server_address(&request, role)?;
    let node_id = agent_id(&request, role)?;
    check_level(&member.snapshot(), role, request.feature_level)?;
    check_known(member, &token).await?;
    let trial = Subject::Agent(node_id.unwrap_or_else(rpc::fresh_node_id));
    authority.sign(&request.csr_pem, trial, member.certificate_validity)?;
    member.read_barrier().await?;
    check_absent(&member.snapshot(), node_id)?;
    let spend = Command::UseToken { digest: token.digest(), role, name: request.name.clone() };
    let spent = member.propose(spend).await?;
    match role {
        // The log index of the spent token is unique for ever, and so is the id.
        Role::Server => admit_server(member, request, ServerId(spent.index.0), rpc_address).await,
        Role::Agent => admit_agent(member, request, node_id.unwrap_or_else(rpc::fresh_node_id)).await,
    }
}

async fn admit_server(
    member: &Member,
    request: pb::JoinRequest,
    id: ServerId,
    rpc_address: Option<SocketAddr>,
) -> Result<pb::JoinReply, JoinError> {
    let rpc_address = rpc_address.ok_or_else(|| JoinError::Request("rpc_address: missing".to_owned()))?;
    let mut reply = sign(member, &request, Subject::Server(id)).await?;
    let record = ServerRecord { id, name: request.name.clone(), rpc_address };
    // The leader's next look at the membership adds it as a learner, and as a voter once it has caught up.
    member.propose(Command::UpsertServer(record)).await?;
    tracing::info!(server = id.0, name = request.name, %rpc_address, "server joined");
    reply.server_id = Some(id.0);
    reply.seal_key = Some(member.seal.as_bytes().to_vec());
    Ok(reply)
}

async fn admit_agent(member: &Member, request: pb::JoinRequest, id: NodeId) -> Result<pb::JoinReply, JoinError> {
    let reply = sign(member, &request, Subject::Agent(id)).await?;
    tracing::info!(node = %id, name = request.name, "agent joined");
    Ok(reply)
}

async fn sign(member: &Member, request: &pb::JoinRequest, subject: Subject) -> Result<pb::JoinReply, JoinError> {
    let authority = member.authority().await.map_err(JoinError::Authority)?;
    Ok(pb::JoinReply {
        certificate_pem: authority.sign(&request.csr_pem, subject, member.certificate_validity)?,
        ca_pem: authority.certificate_pem(),
        server_id: None,
        servers: member.snapshot().servers().map(Into::into).collect(),
        seal_key: None,
    })
}

fn check_token(token: &Token, authority: &CertificateAuthority, role: Role) -> Result<(), JoinError> {
    if token.ca_digest != authority.digest() {
        return Err(JoinError::OtherCluster);
    }
    if token.role != role {
        return Err(JoinError::TokenRole { token: token.role.as_str(), asked: role.as_str() });
    }
    Ok(())
}

/// A server that does not know what the others replicate would halt on it.
fn check_level(catalog: &Catalog, role: Role, found: u32) -> Result<(), JoinError> {
    let cluster = catalog.feature_level();
    match role == Role::Server && found < cluster {
        true => Err(JoinError::FeatureLevel { cluster, found }),
        false => Ok(()),
    }
}

/// A guess at what the log would answer, so that strangers with made-up tokens cause no writes. Only a token that this
/// server has not heard of makes it ask for what is new.
async fn check_known(member: &Member, token: &Token) -> Result<(), JoinError> {
    let digest = token.digest();
    if member.catalog.borrow().token(&digest).is_none() {
        member.read_barrier().await?;
    }
    let catalog = member.snapshot();
    let refuse = |refusal| Err(JoinError::Propose(ProposeError::Refused(refusal)));
    match catalog.token(&digest) {
        None => refuse(Refusal::TokenUnknown),
        Some(known) if known.uses_left == 0 => refuse(Refusal::TokenSpent),
        Some(known) if has_expired(known, clock::now()) => refuse(Refusal::TokenExpired),
        Some(_) => Ok(()),
    }
}

/// Whoever has a token must not get a certificate that speaks for a node which is there.
fn check_absent(catalog: &Catalog, node_id: Option<NodeId>) -> Result<(), JoinError> {
    let alive = |id: &NodeId| catalog.node(*id).is_some_and(|node| node.status != NodeStatus::Down);
    match node_id.filter(alive) {
        Some(id) => Err(JoinError::NodeIdTaken(id)),
        None => Ok(()),
    }
}

fn has_expired(token: &JoinToken, now: Timestamp) -> bool {
    token.expires_at != Timestamp::NEVER && token.expires_at <= now
}

fn server_address(request: &pb::JoinRequest, role: Role) -> Result<Option<SocketAddr>, JoinError> {
    let wrong = |text: &str| JoinError::Request(format!("rpc_address: `{text}` is not an address others can dial"));
    match (role, request.rpc_address.as_deref()) {
        (Role::Agent, _) => Ok(None),
        (Role::Server, None) => Err(JoinError::Request("rpc_address: missing".to_owned())),
        (Role::Server, Some(text)) => match text.parse::<SocketAddr>() {
            Ok(address) if !address.ip().is_unspecified() && address.port() != 0 => Ok(Some(address)),
            _ => Err(wrong(text)),
        },
    }
}

fn agent_id(request: &pb::JoinRequest, role: Role) -> Result<Option<NodeId>, JoinError> {
    let text = request.node_id.as_deref().filter(|_| role == Role::Agent);
    let parsed = text.map(|text| text.parse().map_err(|_| JoinError::Request(format!("node_id: `{text}` is no UUID"))));
    parsed.transpose()
}

/// What a server gets from being admitted.
pub(crate) struct Admission {
    pub record: Record,
    pub papers: Papers,
}

/// Joins through the first of `servers` that answers. A refusal is final: the others would say the same.
pub(crate) async fn request_admission(
    config: &ServerConfig,
    servers: &[SocketAddr],
    token: &str,
    rpc_advertise: SocketAddr,
) -> anyhow::Result<Admission> {
    let mut unreachable = Vec::new();
    for address in servers {
        match request_from(config, *address, token, rpc_advertise).await {
            Ok(admission) => return Ok(admission),
            Err(Unadmitted::Refused(error)) => return Err(error),
            Err(Unadmitted::Unreachable(error)) => unreachable.push(format!("{error:#}")),
        }
    }
    bail!("no server could be asked to join: {}", unreachable.join("; "))
}

enum Unadmitted {
    Refused(anyhow::Error),
    Unreachable(anyhow::Error),
}

async fn request_from(
    config: &ServerConfig,
    address: SocketAddr,
    token: &str,
    rpc_advertise: SocketAddr,
) -> Result<Admission, Unadmitted> {
    let refused = |error: anyhow::Error| Unadmitted::Refused(error);
    let digest = Token::parse(token).map_err(|error| refused(error.into()))?.ca_digest;
    let ca = identity::fetch_ca(address, digest).await.map_err(|error| match error {
        identity::FirstContactError::OtherAuthority { .. } => refused(error.into()),
        _ => Unadmitted::Unreachable(error.into()),
    })?;
    let key = KeyAndRequest::generate().map_err(|error| refused(error.into()))?;
    let request = pb::JoinRequest {
        token: token.trim().to_owned(),
        csr_pem: key.request_pem.clone(),
        name: config.name.clone(),
        role: pb::Role::Server.into(),
        rpc_address: Some(rpc_advertise.to_string()),
        node_id: None,
        feature_level: model::FEATURE_LEVEL,
    };
    let reply = call(address, &ca, request).await?;
    admission(config, reply, key, digest, rpc_advertise).map_err(refused)
}

async fn call(
    address: SocketAddr,
    ca: &CertificateDer<'static>,
    request: pb::JoinRequest,
) -> Result<pb::JoinReply, Unadmitted> {
    let tls = identity::anonymous_client_config(ca).map_err(|error| Unadmitted::Refused(error.into()))?;
    let channel = identity::channel(address, SERVER_NAME, tls).map_err(|error| Unadmitted::Refused(error.into()))?;
    let mut client = JoinClient::new(channel);
    match tokio::time::timeout(JOIN_TIMEOUT, client.join(request)).await {
        Ok(Ok(reply)) => Ok(reply.into_inner()),
        Ok(Err(status)) if status.code() == Code::Unavailable => {
            Err(Unadmitted::Unreachable(anyhow!("{address}: {}", status.message())))
        }
        Ok(Err(status)) => Err(Unadmitted::Refused(anyhow!("{address} refused: {}", status.message()))),
        Err(_) => Err(Unadmitted::Unreachable(anyhow!("{address} did not answer in {} s", JOIN_TIMEOUT.as_secs()))),
    }
}

fn admission(
    config: &ServerConfig,
    reply: pb::JoinReply,
    key: KeyAndRequest,
    digest: [u8; 32],
    rpc_advertise: SocketAddr,
) -> anyhow::Result<Admission> {
    let id = reply.server_id.context("the reply carries no server id; run the same release on every server")?;
    let seal = SealKey::from_bytes(&reply.seal_key.context("the reply carries no seal key")?)?;
    let mut peers = Vec::new();
    for server in reply.servers {
        let server = ServerRecord::try_from(server).context("the reply's list of servers")?;
        peers.push(Peer { id: server.id.0, rpc_address: server.rpc_address });
    }
    let (cluster, name) = (hex(&digest), config.name.clone());
    let papers = Papers { ca_pem: reply.ca_pem, certificate_pem: reply.certificate_pem, key_pem: key.key_pem, seal };
    Ok(Admission { record: Record { cluster, id, name, rpc_advertise, peers }, papers })
}

#[cfg(test)]
mod tests {
    use super::*;
    use model::CatalogImage;

    #[test]
    fn a_server_joins_that_knows_all_that_the_cluster_replicates() {
        let catalog = Catalog::from_image(CatalogImage { feature_level: 2, ..CatalogImage::default() });
        let refused = check_level(&catalog, Role::Server, 1);
        assert!(matches!(refused, Err(JoinError::FeatureLevel { cluster: 2, found: 1 })));
        assert!(check_level(&catalog, Role::Server, 2).is_ok());
        assert!(check_level(&catalog, Role::Agent, 1).is_ok()); // its hello is checked
    }
}
