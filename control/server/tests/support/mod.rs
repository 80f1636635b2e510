//! Servers on loopback ports in this process, an HTTP client of few lines, and an agent that only talks.

use identity::{Credentials, KeyAndRequest, SERVER_NAME, Token};
use model::{
    AllocUpdate, ClientStatus, DriverStatus, Eligibility, Epoch, Index, Node, NodeId, NodeResources, NodeStatus, Role,
    TaskPhase, TaskState, Timestamp,
};
use serde_json::Value;
use server::{Mode, Server, ServerConfig, Timing, TokenRequest};
use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio::sync::mpsc;
use tokio_stream::wrappers::ReceiverStream;
use tonic::transport::Channel;
use tonic::{Status, Streaming};
use wire::pb;
use wire::session::{AgentMessage, Hello, ServerMessage};

pub const PATIENCE: Duration = Duration::from_secs(15);

pub fn config(dir: &Path, name: &str, mode: Mode) -> ServerConfig {
    let mut config = ServerConfig::new(dir.join(name), name, mode);
    config.rpc_bind = "127.0.0.1:0".parse().unwrap();
    config.http_bind = Some("127.0.0.1:0".parse().unwrap());
    config.timing = Timing {
        heartbeat_interval: Duration::from_millis(200),
        node_down_after: Duration::from_secs(2),
        ..Timing::default()
    };
    config
}

pub async fn init(dir: &Path) -> Server {
    Server::start(config(dir, "s1", Mode::init())).await.unwrap()
}

pub async fn join(dir: &Path, name: &str, through: &Server) -> Server {
    let token = token(through, Role::Server).await;
    Server::start(config(dir, name, Mode::Join { servers: vec![through.rpc_address()], token })).await.unwrap()
}

pub async fn token(server: &Server, role: Role) -> String {
    let request = TokenRequest { role, uses: 1, ttl: Some(Duration::from_secs(60)) };
    server.create_token(request).await.unwrap()
}

/// Asks again until `check` finds what it looks for.
pub async fn eventually<T, F: Future<Output = Option<T>>>(what: &str, mut check: impl FnMut() -> F) -> T {
    let deadline = tokio::time::Instant::now() + PATIENCE;
    loop {
        if let Some(found) = check().await {
            return found;
        }
        assert!(tokio::time::Instant::now() < deadline, "did not happen in time: {what}");
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
}

pub struct Reply {
    pub status: u16,
    pub head: String,
    pub body: String,
}

impl Reply {
    pub fn json(&self) -> Value {
        assert_eq!(self.status, 200, "{}", self.body);
        serde_json::from_str(&self.body).unwrap()
    }

    pub fn header(&self, name: &str) -> Option<&str> {
        let wanted = format!("{}:", name.to_lowercase());
        self.head.lines().find(|line| line.to_lowercase().starts_with(&wanted)).map(|line| line[wanted.len()..].trim())
    }
}

pub async fn get(server: &Server, path: &str) -> Reply {
    request(server, "GET", path, "", "127.0.0.1").await
}

pub async fn put(server: &Server, path: &str, body: &Value) -> Reply {
    request(server, "PUT", path, &body.to_string(), "127.0.0.1").await
}

pub async fn request(server: &Server, method: &str, path: &str, body: &str, host: &str) -> Reply {
    let mut tcp = TcpStream::connect(server.http_address().unwrap()).await.unwrap();
    let head = format!(
        "{method} {path} HTTP/1.1\r\nHost: {host}\r\nConnection: close\r\nContent-Length: {}\r\n\r\n",
        body.len()
    );
    tcp.write_all(head.as_bytes()).await.unwrap();
    let _ = tcp.write_all(body.as_bytes()).await;
    let mut raw = Vec::new();
    let _ = tcp.read_to_end(&mut raw).await;
    let text = String::from_utf8_lossy(&raw).into_owned();
    let (head, body) = text.split_once("\r\n\r\n").unwrap_or((&text, ""));
    let status = head.split(' ').nth(1).unwrap_or("0").parse().unwrap();
    Reply { status, head: head.to_owned(), body: body.to_owned() }
}

pub fn node(id: NodeId, name: &str, epoch: u64) -> Node {
    let healthy = DriverStatus { detected: true, healthy: true, description: String::new() };
    Node {
        id,
        name: name.to_owned(),
        datacenter: "dc1".to_owned(),
        pool: "default".to_owned(),
        class: String::new(),
        address: "127.0.0.1".parse().unwrap(),
        attributes: BTreeMap::from([("kernel.name".to_owned(), "linux".to_owned())]),
        meta: BTreeMap::new(),
        resources: NodeResources { cpu_mhz: 4000, memory_mb: 4000, disk_mb: 10_000 },
        drivers: BTreeMap::from([("exec".to_owned(), healthy.clone()), ("raw_exec".to_owned(), healthy)]),
        status: NodeStatus::Initializing,
        eligibility: Eligibility::Eligible,
        drain: None,
        epoch: Epoch(epoch),
        blocks: Vec::new(),
        version: model::VERSION.to_owned(),
        status_changed_at: Timestamp::NEVER,
        created_at_index: Index(0),
        modified_at_index: Index(0),
    }
}

/// Joins as an agent; the error is what the server answered.
pub async fn enrol(server: SocketAddr, token: &str, name: &str, id: Option<NodeId>) -> Result<Credentials, Status> {
    let digest = Token::parse(token).unwrap().ca_digest;
    let ca = identity::fetch_ca(server, digest).await.unwrap();
    let key = KeyAndRequest::generate().unwrap();
    let channel = identity::channel(server, SERVER_NAME, identity::anonymous_client_config(&ca).unwrap()).unwrap();
    let request = pb::JoinRequest {
        token: token.to_owned(),
        csr_pem: key.request_pem,
        name: name.to_owned(),
        role: pb::Role::Agent.into(),
        rpc_address: None,
        node_id: id.map(|id| id.to_string()),
        feature_level: 1,
    };
    let reply = pb::join_client::JoinClient::new(channel).join(request).await?.into_inner();
    Ok(Credentials::from_pem(&reply.ca_pem, &reply.certificate_pem, &key.key_pem).unwrap())
}

pub fn channel(server: SocketAddr, credentials: &Credentials) -> Channel {
    identity::channel(server, SERVER_NAME, credentials.client_config().unwrap()).unwrap()
}

/// An open stream with a server, hello sent.
pub struct FakeAgent {
    outbox: mpsc::Sender<pb::AgentMessage>,
    inbox: Streaming<pb::ServerMessage>,
    _heart: Arc<()>,
}

impl FakeAgent {
    /// One of the release before this: it gets whole states.
    pub async fn open(server: SocketAddr, credentials: &Credentials, node: Node) -> Result<Self, Status> {
        Self::open_at_level(1, server, credentials, node).await
    }

    pub async fn open_at_level(
        feature_level: u32,
        server: SocketAddr,
        credentials: &Credentials,
        node: Node,
    ) -> Result<Self, Status> {
        let (outbox, receiver) = mpsc::channel(16);
        let hello = Hello { version: model::VERSION.to_owned(), feature_level, node, allocs: Vec::new() };
        outbox.send(AgentMessage::Hello(Box::new(hello)).into()).await.unwrap();
        let mut client = pb::agents_client::AgentsClient::new(channel(server, credentials));
        let inbox = client.session(ReceiverStream::new(receiver)).await?.into_inner();
        let heart = Arc::new(());
        let (alive, beats) = (Arc::downgrade(&heart), outbox.clone());
        tokio::spawn(async move {
            while alive.upgrade().is_some() && beats.send(AgentMessage::Heartbeat.into()).await.is_ok() {
                tokio::time::sleep(Duration::from_millis(100)).await;
            }
        });
        Ok(Self { outbox, inbox, _heart: heart })
    }

    pub async fn send(&self, message: AgentMessage) {
        self.outbox.send(message.into()).await.unwrap();
    }

    /// The next message; `None` when the server ended the stream.
    pub async fn next(&mut self) -> Option<ServerMessage> {
        let message = tokio::time::timeout(PATIENCE, self.inbox.message()).await.expect("no message came in time");
        message.ok().flatten().map(|message| ServerMessage::try_from(message).unwrap())
    }

    /// Whether the server ends the stream, after whatever it had still to say.
    pub async fn expect_end(&mut self) -> bool {
        for _ in 0..100 {
            if self.next().await.is_none() {
                return true;
            }
        }
        false
    }

    /// The first message that `pick` takes; others are passed over.
    pub async fn expect<T>(&mut self, pick: impl Fn(ServerMessage) -> Option<T>) -> T {
        loop {
            let message = self.next().await.expect("the session ended");
            if let Some(picked) = pick(message) {
                return picked;
            }
        }
    }
}

/// The report of an allocation whose task `server` runs.
pub fn running(alloc_id: model::AllocId) -> AllocUpdate {
    let state = TaskState { phase: TaskPhase::Running, ..TaskState::default() };
    AllocUpdate {
        alloc_id,
        client: ClientStatus::Running,
        client_description: String::new(),
        task_states: BTreeMap::from([("server".to_owned(), state)]),
        address: None,
        checks: BTreeMap::new(),
    }
}

/// As [`request`], for bodies that are no text.
pub async fn raw(server: &Server, method: &str, path: &str, body: &[u8]) -> (u16, Vec<u8>) {
    let mut tcp = TcpStream::connect(server.http_address().unwrap()).await.unwrap();
    let length = body.len();
    let head =
        format!("{method} {path} HTTP/1.1\r\nHost: 127.0.0.1\r\nConnection: close\r\nContent-Length: {length}\r\n\r\n");
    tcp.write_all(head.as_bytes()).await.unwrap();
    let _ = tcp.write_all(body).await;
    let mut raw = Vec::new();
    let _ = tcp.read_to_end(&mut raw).await;
    let end = raw.windows(4).position(|four| four == b"\r\n\r\n").unwrap();
    let status = String::from_utf8_lossy(&raw[..end]).split(' ').nth(1).unwrap().parse().unwrap();
    (status, raw[end + 4..].to_vec())
}

/// An open event stream; the lines that are JSON are its lines.
pub struct Events(tokio::io::Lines<tokio::io::BufReader<TcpStream>>);

impl Events {
    pub async fn open(server: &Server, query: &str) -> Self {
        use tokio::io::AsyncBufReadExt;
        let mut tcp = TcpStream::connect(server.http_address().unwrap()).await.unwrap();
        let head = format!("GET /v1/event/stream?{query} HTTP/1.1\r\nHost: 127.0.0.1\r\n\r\n");
        tcp.write_all(head.as_bytes()).await.unwrap();
        Self(tokio::io::BufReader::new(tcp).lines())
    }

    /// The next line; `None` at the end.
    pub async fn next(&mut self) -> Option<Value> {
        loop {
            let line = tokio::time::timeout(PATIENCE, self.0.next_line()).await.expect("no event came in time");
            match line.ok().flatten()? {
                line if line.starts_with('{') => return Some(serde_json::from_str(&line).unwrap()),
                line if line == "0" => return None,
                _ => {}
            }
        }
    }

    /// Topic, type and key of the next events, with their index.
    pub async fn batch(&mut self) -> (u64, Vec<(String, String, String)>) {
        let value = self.next().await.expect("the stream ended");
        let text = |event: &Value, field: &str| event[field].as_str().unwrap().to_owned();
        let events = value["Events"].as_array().expect("an array of events").iter();
        let events = events.map(|event| (text(event, "Topic"), text(event, "Type"), text(event, "Key"))).collect();
        (value["Index"].as_u64().unwrap(), events)
    }
}
