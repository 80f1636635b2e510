//! The gRPC side: TLS, who may call what, and the services. Join is the only call that goes without a client
//! certificate; the role in the certificate is checked on every other one.

use crate::asks::AskError;
use crate::config::is_name;
use crate::logs::{LogError, LogReader};
use crate::member::{Member, ProposeError};
use crate::pb;
use crate::pb::agents_server::{Agents, AgentsServer};
use crate::pb::join_server::{Join, JoinServer};
use crate::pb::servers_server::{Servers, ServersServer};
use crate::peers::Assembly;
use crate::sessions::{self, Outbound};
use crate::{clock, doors, form, join, lookup, renewal};
use futures::{Stream, stream};
use identity::RPC_MESSAGE_BYTES_MAX;
use model::{NodeId, Role, ServerId};
use std::net::SocketAddr;
use std::pin::Pin;
use std::sync::Arc;
use std::time::Duration;
use tokio::net::TcpListener;
use tokio::sync::watch;
use tokio_rustls::TlsAcceptor;
use tonic::transport::server::{TcpConnectInfo, TlsConnectInfo};
use tonic::{Request, Response, Status, Streaming};
use wire::actions::{AllocRefusal, AllocRequest, answer_to_pb};
use wire::session::LogRange;

/// What calls under way get to end in.
const GRACE: Duration = Duration::from_secs(1);
const PING_INTERVAL: Duration = Duration::from_secs(2);
const PING_TIMEOUT: Duration = Duration::from_secs(3);
/// A join request is a token and a CSR.
const JOIN_BYTES_MAX: usize = 64 * 1024;
const STREAMS_MAX: u32 = 256;

/// Serves until `stop` is set or dropped.
pub(crate) async fn serve(member: Arc<Member>, listener: TcpListener, stop: watch::Receiver<bool>) {
    let acceptor = TlsAcceptor::from(Arc::clone(&member.peers.tls().server));
    let server = tonic::transport::Server::builder()
        .http2_keepalive_interval(Some(PING_INTERVAL))
        .http2_keepalive_timeout(Some(PING_TIMEOUT))
        .max_concurrent_streams(STREAMS_MAX)
        .add_service(JoinServer::new(Service(Arc::clone(&member))).max_decoding_message_size(JOIN_BYTES_MAX))
        .add_service(
            AgentsServer::new(Service(Arc::clone(&member)))
                .max_decoding_message_size(RPC_MESSAGE_BYTES_MAX)
                .max_encoding_message_size(RPC_MESSAGE_BYTES_MAX),
        )
        .add_service(
            ServersServer::new(Service(member))
                .max_decoding_message_size(RPC_MESSAGE_BYTES_MAX)
                .max_encoding_message_size(RPC_MESSAGE_BYTES_MAX),
        )
        .serve_with_incoming_shutdown(doors::incoming(listener, acceptor), until(stop.clone()));
    tokio::select! {
        ended = server => if let Err(error) = ended { tracing::error!(%error, "the RPC listener failed") },
        () = async { until(stop).await; tokio::time::sleep(GRACE).await } => {}
    }
}

pub(crate) async fn until(mut stop: watch::Receiver<bool>) {
    let _ = stop.wait_for(|stop| *stop).await;
}

struct Service(Arc<Member>);

#[tonic::async_trait]
impl Join for Service {
    async fn join(&self, request: Request<pb::JoinRequest>) -> Result<Response<pb::JoinReply>, Status> {
        let from = remote(&request);
        let request = request.into_inner();
        // A stranger's text does not get into the log as it is.
        let name = Some(request.name.clone()).filter(|name| is_name(name));
        let role = request.role().as_str_name();
        match join::admit(&self.0, request).await {
            Ok(reply) => Ok(Response::new(reply)),
            Err(error) => {
                tracing::warn!(?name, role, ?from, reason = %error, "join refused");
                Err(error.into())
            }
        }
    }

    async fn introduce(&self, request: Request<pb::IntroduceRequest>) -> Result<Response<pb::IntroduceReply>, Status> {
        let from = remote(&request);
        let answer = form::receive(&self.0, request.into_inner()).await;
        if let Err(status) = &answer {
            tracing::warn!(?from, reason = status.message(), "introduction refused");
        }
        Ok(Response::new(answer?))
    }
}

#[tonic::async_trait]
impl Agents for Service {
    type SessionStream = Outbound;

    async fn session(&self, request: Request<Streaming<pb::AgentMessage>>) -> Result<Response<Outbound>, Status> {
        let node_id = require_node(&request)?;
        Ok(Response::new(sessions::open(Arc::clone(&self.0), node_id, request.into_inner()).await))
    }

    async fn renew(&self, request: Request<pb::RenewRequest>) -> Result<Response<pb::RenewReply>, Status> {
        let node_id = require_node(&request)?;
        let certificate_pem = renewal::renew_agent(&self.0, node_id, &request.into_inner().csr_pem).await?;
        Ok(Response::new(pb::RenewReply { certificate_pem }))
    }

    async fn watch(&self, request: Request<pb::WatchRequest>) -> Result<Response<pb::WatchReply>, Status> {
        let node_id = require_node(&request)?;
        Ok(Response::new(lookup::watch(&self.0, node_id, request.into_inner()).await?))
    }
}

#[tonic::async_trait]
impl Servers for Service {
    type ReadLogsStream = Pin<Box<dyn Stream<Item = Result<pb::LogChunk, Status>> + Send>>;

    async fn raft(&self, request: Request<Streaming<pb::RaftMessage>>) -> Result<Response<pb::RaftAck>, Status> {
        let sender = self.require_server(&request).await?.0;
        let (mut messages, mut assembly) = (request.into_inner(), Assembly::default());
        let mut stop = std::pin::pin!(until(self.0.stop.clone()));
        loop {
            tokio::select! {
                message = messages.message() => match message? {
                    Some(part) => {
                        if let Some(message) = assembly.add(part)? {
                            self.0.raft.step(sender, message);
                        }
                    }
                    None => break,
                },
                () = &mut stop => break,
            }
        }
        Ok(Response::new(pb::RaftAck {}))
    }

    async fn propose(&self, request: Request<pb::ProposeRequest>) -> Result<Response<pb::ProposeReply>, Status> {
        self.require_server(&request).await?;
        let envelope = request.into_inner().envelope;
        // What no server could read must not get into the log: every server would halt on it.
        let decoded = wire::command::decode(&envelope);
        let decoded = decoded.map_err(|error| Status::invalid_argument(error.to_string()))?;
        let cluster = self.0.catalog.borrow().feature_level();
        if decoded.feature_level > cluster {
            let refusal = ProposeError::FeatureLevel { cluster, needed: decoded.feature_level };
            return Err(Status::invalid_argument(refusal.to_string()));
        }
        crate::member::check_size(&decoded.command, envelope.len())
            .map_err(|error| Status::out_of_range(error.to_string()))?;
        let (index, outcome) = self.0.propose_here(envelope).await.map_err(status_of_propose)?;
        Ok(Response::new(pb::ProposeReply { index, outcome }))
    }

    async fn read_logs(&self, request: Request<pb::ReadLogsRequest>) -> Result<Response<Self::ReadLogsStream>, Status> {
        self.require_server(&request).await?;
        let range = request.into_inner().range.ok_or_else(|| Status::invalid_argument("range: missing"))?;
        let range = LogRange::try_from(range).map_err(|error| Status::invalid_argument(error.to_string()))?;
        let reader = self.0.read_logs_here(range).await.map_err(status_of_logs)?;
        Ok(Response::new(Box::pin(chunks_of(reader))))
    }

    async fn ask_alloc(&self, request: Request<pb::AllocRequest>) -> Result<Response<pb::AllocAnswer>, Status> {
        self.require_server(&request).await?;
        let asked = AllocRequest::try_from(request.into_inner());
        let asked = asked.map_err(|error| Status::invalid_argument(error.to_string()))?;
        let answer = match self.0.ask_here(asked).await {
            Ok(body) => Ok(body),
            Err(AskError::Refused(refusal)) => Err(refusal),
            Err(AskError::UnknownAlloc(id)) => Err(AllocRefusal::not_found(format!("allocation {id} is not known"))),
            Err(error) => return Err(Status::unavailable(error.to_string())),
        };
        Ok(Response::new(answer_to_pb(&answer)))
    }

    async fn remove_server(&self, request: Request<pb::RemoveServerRequest>) -> Result<Response<pb::Done>, Status> {
        self.require_server(&request).await?;
        self.0.remove_server_here(ServerId(request.into_inner().id)).await?;
        Ok(Response::new(pb::Done {}))
    }

    async fn transfer_leadership(
        &self,
        request: Request<pb::TransferLeadershipRequest>,
    ) -> Result<Response<pb::Done>, Status> {
        self.require_server(&request).await?;
        self.0.transfer_leadership_here(request.into_inner().to.map(ServerId)).await?;
        Ok(Response::new(pb::Done {}))
    }

    async fn hello(&self, request: Request<pb::ServerHello>) -> Result<Response<pb::ServerHello>, Status> {
        self.require_server(&request).await?;
        Ok(Response::new(self.0.hello()))
    }
}

impl Service {
    /// The calling server's id. A certificate outlives a removal, so the catalog is asked as well.
    async fn require_server<T>(&self, request: &Request<T>) -> Result<ServerId, Status> {
        let id = require(request, Role::Server)?;
        let id = id.parse().map(ServerId).map_err(|_| Status::permission_denied("the certificate names no server"))?;
        self.0.check_server(id).await?;
        Ok(id)
    }
}

fn chunks_of(reader: LogReader) -> impl Stream<Item = Result<pb::LogChunk, Status>> + Send {
    stream::unfold(reader, |mut reader| async move {
        let chunk = reader.next().await?;
        Some((Ok(pb::LogChunk { data: chunk.data, eof: chunk.eof, error: chunk.error }), reader))
    })
}

/// The id in the caller's certificate, if it has the role and is still valid.
fn require<T>(request: &Request<T>, role: Role) -> Result<String, Status> {
    let info = request.extensions().get::<TlsConnectInfo<TcpConnectInfo>>();
    let certificates = info.and_then(TlsConnectInfo::peer_certs);
    let leaf = certificates.as_ref().and_then(|chain| chain.first());
    let leaf = leaf.ok_or_else(|| {
        Status::unauthenticated("this call needs a client certificate; join the cluster with a token to get one")
    })?;
    let (found, id) = identity::peer_role(leaf).map_err(|error| Status::unauthenticated(error.to_string()))?;
    // The handshake checked it once; a connection may outlive the certificate.
    if identity::valid_until(leaf).map_or(true, |end| end < std::time::SystemTime::now()) {
        return Err(Status::unauthenticated("the client certificate has expired; join the cluster again"));
    }
    match found == role {
        true => Ok(id),
        false => {
            let (found, asked) = (found.as_str(), role.as_str());
            tracing::warn!(from = ?remote(request), found, asked, id, "call refused: wrong role");
            Err(Status::permission_denied(format!("this call is for role {asked}, the certificate has role {found}")))
        }
    }
}

fn require_node<T>(request: &Request<T>) -> Result<NodeId, Status> {
    let id = require(request, Role::Agent)?;
    id.parse().map_err(|_| Status::permission_denied("the certificate names no node"))
}

fn remote<T>(request: &Request<T>) -> Option<SocketAddr> {
    let info = request.extensions().get::<TlsConnectInfo<TcpConnectInfo>>()?;
    info.get_ref().remote_addr()
}

/// [`Member::propose`] of the forwarding server reads these codes.
fn status_of_propose(error: consensus::ProposeError) -> Status {
    use consensus::ProposeError as Cause;
    let text = error.to_string();
    match error {
        Cause::NotLeader { .. } => Status::failed_precondition(text),
        Cause::Overloaded => Status::resource_exhausted(text),
        Cause::TooLarge { .. } => Status::out_of_range(text),
        Cause::Dropped => Status::aborted(text),
        Cause::Stopped => Status::unavailable(text),
    }
}

fn status_of_logs(error: LogError) -> Status {
    let text = error.to_string();
    match error {
        LogError::UnknownAlloc(_) => Status::not_found(text),
        LogError::NoSession(_) | LogError::NoLeader | LogError::Leader(_) => Status::unavailable(text),
    }
}

impl From<join::JoinError> for Status {
    fn from(error: join::JoinError) -> Self {
        let text = error.to_string();
        match error {
            join::JoinError::Request(_) | join::JoinError::Name | join::JoinError::Sign(_) => {
                Status::invalid_argument(text)
            }
            join::JoinError::FeatureLevel { .. } => Status::failed_precondition(text),
            // Whoever joins goes on to the next server.
            join::JoinError::Busy => Status::unavailable(text),
            join::JoinError::Token(_) | join::JoinError::OtherCluster | join::JoinError::TokenRole { .. } => {
                Status::permission_denied(text)
            }
            join::JoinError::NodeIdTaken(_) => Status::already_exists(text),
            join::JoinError::Propose(ProposeError::Refused(_)) => Status::permission_denied(text),
            join::JoinError::Propose(_) | join::JoinError::Read(_) => Status::unavailable(text),
            join::JoinError::Authority(_) => Status::internal(text),
        }
    }
}

/// A node id for an agent that did not choose one.
pub(crate) fn fresh_node_id() -> NodeId {
    NodeId::from_random(clock::random_bits())
}
