//! What an agent and the leading server say to each other.
//!
//! ```text
//! agent                     server
//!   Hello            ->
//!                    <-     Welcome | NotLeader | Refused
//!   Heartbeat, Allocs, LogChunk  ->
//!                    <-     Allocations, Routing (whole, newest wins), ReadLogs, CancelLogs
//! ```

use crate::actions::{self, AllocAnswer, AllocRequest, ExecInput, ExecOutput, ExecRequest};
use crate::convert::scalar::FromUuid;
use crate::convert::{
    At, ConvertError, Result, ToModel, ToPb, all, enum_pairs, enumeration, from_alloc_set, list, optional, present,
    required, span, to_alloc_set, to_span, to_uuid, uuid,
};
use crate::pb;
use crate::pb::agent_message::Message as PbAgent;
use crate::pb::server_message::Message as PbServer;
use model::{AllocId, AllocUpdate, Allocation, Generation, Node, NodeId, RoutingDelta, RoutingSnapshot};
use std::net::SocketAddr;
use std::time::Duration;

#[derive(Clone, Debug, PartialEq)]
pub enum AgentMessage {
    /// The first message of every session.
    Hello(Box<Hello>),
    Heartbeat,
    Allocs(Vec<AllocUpdate>),
    LogChunk {
        request_id: u64,
        data: Vec<u8>,
        eof: bool,
        error: Option<String>,
    },
    /// What this node knows of the peers that it probes. To servers of feature level 2 and above.
    Probes {
        answering: Vec<NodeId>,
        unreachable: Vec<NodeId>,
    },
    /// To an [`ServerMessage::Ask`].
    Answer {
        request_id: u64,
        answer: AllocAnswer,
    },
    ExecOutput {
        request_id: u64,
        output: ExecOutput,
    },
}

#[derive(Clone, Debug, PartialEq)]
pub struct Hello {
    pub version: String,
    pub feature_level: u32,
    /// With the epoch of this start of the agent.
    pub node: Node,
    /// Everything the node still has, so that a server that knows nothing of it can say what must go.
    pub allocs: Vec<AllocUpdate>,
}

#[derive(Clone, Debug, PartialEq)]
pub enum ServerMessage {
    Welcome {
        feature_level: u32,
        heartbeat_interval: Duration,
        servers: Vec<SocketAddr>,
        /// What the server itself speaks, whatever the cluster does.
        server_level: u32,
    },
    NotLeader {
        leader: Option<SocketAddr>,
    },
    Refused {
        reason: String,
    },
    /// All allocations of the node that are not terminal, and those to stop that it has not yet reported terminal.
    Allocations {
        generation: Generation,
        allocs: Vec<Allocation>,
    },
    Routing(RoutingSnapshot),
    ReadLogs {
        request_id: u64,
        alloc_id: AllocId,
        task: String,
        kind: LogKind,
        offset: u64,
        limit: u64,
        follow: bool,
    },
    CancelLogs {
        request_id: u64,
    },
    /// What became different since the state of generation `base`; to agents of feature level 2 and above.
    RoutingDelta(RoutingDelta),
    AllocationsDelta {
        base: Generation,
        generation: Generation,
        /// New, or different from before.
        allocs: Vec<Allocation>,
        gone: Vec<AllocId>,
    },
    Ask {
        request_id: u64,
        request: AllocRequest,
    },
    /// Runs a program inside a task; what it is fed follows.
    Exec {
        request_id: u64,
        request: ExecRequest,
    },
    ExecInput {
        request_id: u64,
        input: ExecInput,
    },
}

/// What to read of one task's output, as one server asks another.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct LogRange {
    pub alloc_id: AllocId,
    pub task: String,
    pub kind: LogKind,
    pub offset: u64,
    pub limit: u64,
    pub follow: bool,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum LogKind {
    Stdout,
    Stderr,
}

impl LogKind {
    /// The name that Nomad's log API and the files of a task use.
    pub fn as_str(self) -> &'static str {
        match self {
            LogKind::Stdout => "stdout",
            LogKind::Stderr => "stderr",
        }
    }
}

impl From<&AgentMessage> for pb::AgentMessage {
    fn from(message: &AgentMessage) -> Self {
        Self { message: Some(to_agent_message(message)) }
    }
}

impl From<AgentMessage> for pb::AgentMessage {
    fn from(message: AgentMessage) -> Self {
        Self::from(&message)
    }
}

impl TryFrom<pb::AgentMessage> for AgentMessage {
    type Error = ConvertError;

    fn try_from(message: pb::AgentMessage) -> Result<Self> {
        Ok(match present(message.message, "message")? {
            PbAgent::Hello(hello) => AgentMessage::Hello(Box::new(hello.to_model().at("hello")?)),
            PbAgent::Heartbeat(_) => AgentMessage::Heartbeat,
            PbAgent::Allocs(report) => AgentMessage::Allocs(list(report.updates, "allocs.updates")?),
            PbAgent::LogChunk(pb::SessionLogChunk { request_id, data, eof, error }) => {
                AgentMessage::LogChunk { request_id, data, eof, error }
            }
            PbAgent::Answer(answer) => from_answer(answer).at("answer")?,
            PbAgent::ExecOutput(sent) => from_exec_output(sent).at("exec_output")?,
            PbAgent::Probes(report) => AgentMessage::Probes {
                answering: uuids(&report.answering, "probes.answering")?,
                unreachable: uuids(&report.unreachable, "probes.unreachable")?,
            },
        })
    }
}

fn to_agent_message(message: &AgentMessage) -> PbAgent {
    match message {
        AgentMessage::Hello(hello) => PbAgent::Hello(hello.to_pb()),
        AgentMessage::Heartbeat => PbAgent::Heartbeat(pb::Heartbeat {}),
        AgentMessage::Answer { request_id, answer } => PbAgent::Answer(pb::SessionAllocAnswer {
            request_id: *request_id,
            answer: Some(actions::answer_to_pb(answer)),
        }),
        AgentMessage::ExecOutput { request_id, output } => {
            PbAgent::ExecOutput(pb::SessionExecOutput { request_id: *request_id, output: Some(output.clone().into()) })
        }
        AgentMessage::Probes { answering, unreachable } => PbAgent::Probes(pb::ProbeReport {
            unreachable: unreachable.iter().map(|id| to_uuid(id.0)).collect(),
            answering: answering.iter().map(|id| to_uuid(id.0)).collect(),
        }),
        AgentMessage::Allocs(updates) => PbAgent::Allocs(pb::AllocReport { updates: all(updates) }),
        AgentMessage::LogChunk { request_id, data, eof, error } => PbAgent::LogChunk(pb::SessionLogChunk {
            request_id: *request_id,
            data: data.clone(),
            eof: *eof,
            error: error.clone(),
        }),
    }
}

impl ToPb<pb::Hello> for Hello {
    fn to_pb(&self) -> pb::Hello {
        pb::Hello {
            version: self.version.clone(),
            feature_level: self.feature_level,
            node: Some(self.node.to_pb()),
            allocs: all(&self.allocs),
        }
    }
}

impl ToModel<Hello> for pb::Hello {
    fn to_model(self) -> Result<Hello> {
        Ok(Hello {
            version: self.version,
            feature_level: self.feature_level,
            node: required(self.node, "node")?,
            allocs: list(self.allocs, "allocs")?,
        })
    }
}

impl From<&ServerMessage> for pb::ServerMessage {
    fn from(message: &ServerMessage) -> Self {
        Self { message: Some(to_server_message(message)) }
    }
}

impl From<ServerMessage> for pb::ServerMessage {
    fn from(message: ServerMessage) -> Self {
        Self::from(&message)
    }
}

impl TryFrom<pb::ServerMessage> for ServerMessage {
    type Error = ConvertError;

    fn try_from(message: pb::ServerMessage) -> Result<Self> {
        Ok(match present(message.message, "message")? {
            PbServer::Welcome(welcome) => from_welcome(welcome).at("welcome")?,
            PbServer::NotLeader(reply) => ServerMessage::NotLeader { leader: optional(reply.leader, "leader")? },
            PbServer::Refused(refused) => ServerMessage::Refused { reason: refused.reason },
            PbServer::Allocations(push) => from_push(push).at("allocations")?,
            PbServer::Routing(routing) => ServerMessage::Routing(routing.to_model().at("routing")?),
            PbServer::ReadLogs(read) => from_read_logs(read).at("read_logs")?,
            PbServer::RoutingDelta(delta) => ServerMessage::RoutingDelta(delta.to_model().at("routing_delta")?),
            PbServer::AllocationsDelta(delta) => from_delta(delta).at("allocations_delta")?,
            PbServer::CancelLogs(cancel) => ServerMessage::CancelLogs { request_id: cancel.request_id },
            PbServer::Ask(ask) => ServerMessage::Ask {
                request_id: ask.request_id,
                request: present(ask.request, "request").and_then(AllocRequest::try_from).at("ask")?,
            },
            PbServer::Exec(exec) => ServerMessage::Exec {
                request_id: exec.request_id,
                request: present(exec.request, "request").and_then(ExecRequest::try_from).at("exec")?,
            },
            PbServer::ExecInput(sent) => ServerMessage::ExecInput {
                request_id: sent.request_id,
                input: present(sent.input, "input").and_then(ExecInput::try_from).at("exec_input")?,
            },
        })
    }
}

fn to_server_message(message: &ServerMessage) -> PbServer {
    match message {
        ServerMessage::Welcome { feature_level, heartbeat_interval, servers, server_level } => {
            PbServer::Welcome(pb::Welcome {
                feature_level: *feature_level,
                heartbeat_interval: Some(to_span(*heartbeat_interval)),
                servers: all(servers),
                server_level: *server_level,
            })
        }
        ServerMessage::NotLeader { leader } => {
            PbServer::NotLeader(pb::NotLeader { leader: leader.as_ref().map(ToPb::to_pb) })
        }
        ServerMessage::Refused { reason } => PbServer::Refused(pb::Refused { reason: reason.clone() }),
        ServerMessage::Allocations { generation, allocs } => {
            PbServer::Allocations(pb::AllocationsPush { generation: generation.0, allocs: Some(to_alloc_set(allocs)) })
        }
        ServerMessage::Routing(routing) => PbServer::Routing(routing.to_pb()),
        ServerMessage::ReadLogs { request_id, alloc_id, task, kind, offset, limit, follow } => {
            let (alloc_id, task, kind) = (*alloc_id, task.clone(), *kind);
            let range = LogRange { alloc_id, task, kind, offset: *offset, limit: *limit, follow: *follow };
            PbServer::ReadLogs(pb::SessionReadLogs { request_id: *request_id, range: Some(range.to_pb()) })
        }
        ServerMessage::RoutingDelta(delta) => PbServer::RoutingDelta(delta.to_pb()),
        ServerMessage::AllocationsDelta { base, generation, allocs, gone } => {
            PbServer::AllocationsDelta(pb::AllocationsDelta {
                base: base.0,
                generation: generation.0,
                allocs: Some(to_alloc_set(allocs)),
                gone: gone.iter().map(|id| to_uuid(id.0)).collect(),
            })
        }
        ServerMessage::CancelLogs { request_id } => PbServer::CancelLogs(pb::CancelLogs { request_id: *request_id }),
        ServerMessage::Ask { request_id, request } => {
            PbServer::Ask(pb::SessionAllocRequest { request_id: *request_id, request: Some(request.into()) })
        }
        ServerMessage::Exec { request_id, request } => {
            PbServer::Exec(pb::SessionExec { request_id: *request_id, request: Some(request.into()) })
        }
        ServerMessage::ExecInput { request_id, input } => {
            PbServer::ExecInput(pb::SessionExecInput { request_id: *request_id, input: Some(input.clone().into()) })
        }
    }
}

fn from_answer(sent: pb::SessionAllocAnswer) -> Result<AgentMessage> {
    let answer = actions::answer_from_pb(present(sent.answer, "answer")?)?;
    Ok(AgentMessage::Answer { request_id: sent.request_id, answer })
}

fn from_exec_output(sent: pb::SessionExecOutput) -> Result<AgentMessage> {
    let output = ExecOutput::try_from(present(sent.output, "output")?)?;
    Ok(AgentMessage::ExecOutput { request_id: sent.request_id, output })
}

fn from_welcome(welcome: pb::Welcome) -> Result<ServerMessage> {
    Ok(ServerMessage::Welcome {
        feature_level: welcome.feature_level,
        heartbeat_interval: span(welcome.heartbeat_interval, "heartbeat_interval")?,
        servers: list(welcome.servers, "servers")?,
        server_level: welcome.server_level.max(1),
    })
}

fn from_push(push: pb::AllocationsPush) -> Result<ServerMessage> {
    let allocs = from_alloc_set(present(push.allocs, "allocs")?).at("allocs")?;
    Ok(ServerMessage::Allocations { generation: Generation(push.generation), allocs })
}

fn from_delta(delta: pb::AllocationsDelta) -> Result<ServerMessage> {
    Ok(ServerMessage::AllocationsDelta {
        base: Generation(delta.base),
        generation: Generation(delta.generation),
        allocs: from_alloc_set(present(delta.allocs, "allocs")?).at("allocs")?,
        gone: uuids(&delta.gone, "gone")?,
    })
}

fn uuids<T: FromUuid>(ids: &[Vec<u8>], field: &str) -> Result<Vec<T>> {
    ids.iter().map(|id| uuid(id, field)).collect()
}

fn from_read_logs(read: pb::SessionReadLogs) -> Result<ServerMessage> {
    let range: LogRange = required(read.range, "range")?;
    let LogRange { alloc_id, task, kind, offset, limit, follow } = range;
    Ok(ServerMessage::ReadLogs { request_id: read.request_id, alloc_id, task, kind, offset, limit, follow })
}

impl From<&LogRange> for pb::LogRange {
    fn from(range: &LogRange) -> Self {
        range.to_pb()
    }
}

impl TryFrom<pb::LogRange> for LogRange {
    type Error = ConvertError;

    fn try_from(range: pb::LogRange) -> Result<Self> {
        range.to_model()
    }
}

impl ToPb<pb::LogRange> for LogRange {
    fn to_pb(&self) -> pb::LogRange {
        pb::LogRange {
            alloc_id: to_uuid(self.alloc_id.0),
            task: self.task.clone(),
            kind: self.kind.to_pb().into(),
            offset: self.offset,
            limit: self.limit,
            follow: self.follow,
        }
    }
}

impl ToModel<LogRange> for pb::LogRange {
    fn to_model(self) -> Result<LogRange> {
        Ok(LogRange {
            alloc_id: uuid(&self.alloc_id, "alloc_id")?,
            task: self.task,
            kind: enumeration::<pb::LogKind, _>(self.kind, "kind")?,
            offset: self.offset,
            limit: self.limit,
            follow: self.follow,
        })
    }
}

enum_pairs!(LogKind, pb::LogKind, Stdout, Stderr);

/// Conversions that gRPC handlers need of values outside the session's own messages.
impl From<&model::ServerRecord> for pb::ServerRecord {
    fn from(server: &model::ServerRecord) -> Self {
        server.to_pb()
    }
}

impl TryFrom<pb::ServerRecord> for model::ServerRecord {
    type Error = ConvertError;

    fn try_from(server: pb::ServerRecord) -> Result<Self> {
        server.to_model()
    }
}

impl From<model::Role> for pb::Role {
    fn from(role: model::Role) -> Self {
        role.to_pb()
    }
}

impl TryFrom<pb::Role> for model::Role {
    type Error = ConvertError;

    fn try_from(role: pb::Role) -> Result<Self> {
        role.to_model()
    }
}
