//! Starting a server: everything that can be refused is refused before anything changes, then the pieces are put
//! together.

use crate::asks::Asks;
use crate::clock;
use crate::config::{Mode, ServerConfig};
use crate::disk::{Disk, FoundingFile, Papers, Record, hex};
use crate::form::{self, Formed};
use crate::http;
use crate::join;
use crate::logs::LogRequests;
use crate::machine::{Halt, Machine, halt_process};
use crate::member::{Member, ProposeError};
use crate::peers::{Peers, RaftTransport};
use crate::sessions::Sessions;
use crate::{leader, membership, renewal, rpc};
use anyhow::{Context, bail};
use consensus::Raft;
use identity::{CertificateAuthority, Credentials, KeyAndRequest, LiveCredentials, SealKey, Subject, Token};
use ipnet::IpNet;
use model::{Command, JoinToken, Refusal, Role, ServerId, ServerRecord, Timestamp};
use nix::sys::resource::{Resource, getrlimit, setrlimit};
use std::collections::HashMap;
use std::net::SocketAddr;
use std::sync::{Arc, Mutex, OnceLock};
use std::time::Duration;
use tokio::net::TcpListener;
use tokio::runtime::Handle;
use tokio::sync::{Semaphore, watch};
use tokio::task::JoinHandle;

/// The id of the server that makes the cluster; every other id is a log index above it.
const FOUNDER: ServerId = ServerId(1);
/// From a start until the cluster must know its authority.
const FOUND_FOR: Duration = Duration::from_secs(30);

/// A running server. Dropping it leaves its tasks running; call [`Server::shutdown`].
pub struct Server {
    member: Arc<Member>,
    stop: watch::Sender<bool>,
    tasks: Vec<JoinHandle<()>>,
    removed: watch::Receiver<Option<String>>,
    http_address: Option<SocketAddr>,
}

/// What kind of token to make.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct TokenRequest {
    pub role: Role,
    pub uses: u32,
    /// `None` is a token that does not expire.
    pub ttl: Option<Duration>,
}

impl Server {
    /// Starts by the configuration's mode and returns when the server serves. An error leaves nothing running.
    pub async fn start(config: ServerConfig) -> anyhow::Result<Server> {
        config.check()?;
        raise_file_limit();
        // A port of 0 is known once it is bound, so forming needs one that is named.
        let early = match config.mode {
            Mode::Form { .. } => None,
            _ => Some(Listeners::bind(&config).await?),
        };
        let bound = early.as_ref().map_or(config.rpc_bind, |listeners| listeners.rpc_address);
        let (disk, record) = settle(&config, config.rpc_advertise.unwrap_or(bound)).await?;
        let listeners = match early {
            Some(listeners) => listeners,
            None => Listeners::bind(&config).await?,
        };
        let papers = disk.papers()?;
        let server = Self::assemble(&config, &disk, &record, papers, listeners)?;
        match server.begin(&disk).await {
            Ok(()) => {
                server.catch_up().await;
                Ok(server)
            }
            Err(error) => {
                server.shutdown().await;
                Err(error)
            }
        }
    }

    /// The HTTP API, for a listener of the caller's own.
    pub fn router(&self) -> axum::Router {
        http::router(Arc::clone(&self.member))
    }

    pub fn id(&self) -> ServerId {
        self.member.id
    }

    /// Where other machines reach the RPC.
    pub fn rpc_address(&self) -> SocketAddr {
        self.member.rpc_address
    }

    pub fn http_address(&self) -> Option<SocketAddr> {
        self.http_address
    }

    pub fn is_leader(&self) -> bool {
        self.member.is_leader()
    }

    /// Makes a join token; the text is not kept anywhere.
    pub async fn create_token(&self, request: TokenRequest) -> Result<String, anyhow::Error> {
        Ok(create_token(&self.member, request).await?.0)
    }

    /// Resolves, with what to tell the operator, when the cluster has removed this server.
    pub async fn removed(&self) -> String {
        let mut removed = self.removed.clone();
        match removed.wait_for(Option::is_some).await.map(|reason| reason.clone()) {
            Ok(Some(reason)) => reason,
            _ => std::future::pending().await,
        }
    }

    /// Hands leadership over, stops serving, then the log. Waits for a write under way.
    pub async fn shutdown(self) {
        self.member.resign().await;
        self.stop.send_replace(true);
        self.member.sessions.close_all();
        for task in self.tasks {
            let _ = task.await;
        }
        let raft = self.member.raft.clone();
        let _ = tokio::task::spawn_blocking(move || raft.shutdown()).await;
    }

    fn assemble(
        config: &ServerConfig,
        disk: &Disk,
        record: &Record,
        papers: Papers,
        listeners: Listeners,
    ) -> anyhow::Result<Server> {
        let (stop, stopped) = watch::channel(false);
        let member = Arc::new(member(config, disk, record, papers, stopped.clone())?);
        let (tell_removed, removed) = watch::channel(None);
        let mut tasks = vec![
            tokio::spawn(rpc::serve(Arc::clone(&member), listeners.rpc, stopped.clone())),
            tokio::spawn(leader::supervise(Arc::clone(&member), stopped.clone())),
            tokio::spawn(renewal::keep_fresh(Arc::clone(&member), stopped.clone())),
            tokio::spawn(membership::watch(Arc::clone(&member), stopped.clone(), tell_removed)),
        ];
        let http_address = listeners.http.as_ref().map(TcpListener::local_addr).transpose()?;
        if let Some(listener) = listeners.http {
            tasks.push(tokio::spawn(http::serve(Arc::clone(&member), listener, stopped)));
        }
        tracing::info!(id = record.id, name = record.name, rpc = %member.rpc_address, http = ?http_address, "serving");
        Ok(Server { member, stop, tasks, removed, http_address })
    }

    /// A server that has just joined is of use once the leader has told it what there is. Without a leader it keeps on
    /// waiting while it serves.
    async fn catch_up(&self) {
        let mut catalog = self.member.catalog.clone();
        let known = catalog.wait_for(|catalog| catalog.founding().is_some());
        if tokio::time::timeout(FOUND_FOR, known).await.is_err() {
            tracing::warn!("no leader has sent the cluster's state yet; check that a majority of the servers runs");
        }
    }

    async fn begin(&self, disk: &Disk) -> anyhow::Result<()> {
        renewal::revive(&self.member).await?;
        self.found(disk).await?;
        self.forget_lost(disk).await
    }

    /// After a recovery, the servers that are lost for ever are off the list, or the leader would wait for them again.
    async fn forget_lost(&self, disk: &Disk) -> anyhow::Result<()> {
        if !disk.was_recovered() {
            return Ok(());
        }
        tokio::time::timeout(FOUND_FOR, self.member.read_barrier())
            .await
            .context("this server does not lead, though it is the only voter")??;
        let catalog = self.member.snapshot();
        let lost: Vec<ServerId> =
            catalog.servers().map(|server| server.id).filter(|id| *id != self.member.id).collect();
        for id in lost {
            match self.member.propose(Command::RemoveServer { id }).await {
                Ok(_) | Err(ProposeError::Refused(Refusal::ServerUnknown { .. })) => {}
                Err(error) => return Err(error.into()),
            }
        }
        Ok(disk.forget_recovery()?)
    }

    /// The founder tells the new cluster who it is and what its authority is, also if an earlier start did not get to it.
    async fn found(&self, disk: &Disk) -> anyhow::Result<()> {
        let Some(founding) = disk.founding()? else { return Ok(()) };
        tokio::time::timeout(FOUND_FOR, self.member.read_barrier())
            .await
            .context("the new cluster elected no leader")??;
        let (alloc_range, vip_range) = (founding.alloc_range.parse()?, founding.vip_range.parse()?);
        let bootstrap = Command::Bootstrap { authority: founding.authority(), alloc_range, vip_range };
        match self.member.propose(bootstrap).await {
            Ok(_) | Err(ProposeError::Refused(Refusal::AlreadyBootstrapped)) => {}
            Err(error) => return Err(error.into()),
        }
        let Member { id, name, rpc_address, .. } = &*self.member;
        let record = ServerRecord { id: *id, name: name.clone(), rpc_address: *rpc_address };
        self.member.propose(Command::UpsertServer(record)).await?;
        // Nobody else is there to speak an older level.
        match self.member.propose(Command::SetFeatureLevel { level: model::FEATURE_LEVEL }).await {
            Ok(_) | Err(ProposeError::Refused(_)) => Ok(disk.forget_founding()?),
            Err(error) => Err(error.into()),
        }
    }
}

/// Makes a server that is stopped the only one of its cluster. Returns the ids of those that belong no more.
pub fn recover(data_dir: &std::path::Path, name: &str) -> anyhow::Result<Vec<u64>> {
    let (disk, record) = Disk::inhabited(data_dir, name)?;
    let recovered = consensus::recover(&disk.raft_dir(), record.id)?;
    disk.note_recovery()?;
    Ok(recovered.removed)
}

/// Shells start processes with 1024 open files at most; every agent and every blocking query holds one.
fn raise_file_limit() {
    let raised =
        getrlimit(Resource::RLIMIT_NOFILE).and_then(|(_, hard)| setrlimit(Resource::RLIMIT_NOFILE, hard, hard));
    if let Err(error) = raised {
        tracing::warn!(%error, "cannot raise the limit of open files");
    }
}

/// The token's text and what the catalog keeps of it.
pub(crate) async fn create_token(member: &Member, request: TokenRequest) -> anyhow::Result<(String, JoinToken)> {
    if request.uses == 0 {
        bail!("uses: a token needs at least one use");
    }
    let token = Token::create(member.authority().await?.digest(), request.role)?;
    let record = JoinToken {
        digest: token.digest(),
        role: request.role,
        uses_left: request.uses,
        expires_at: request.ttl.map_or(Timestamp::NEVER, |ttl| clock::now().plus(ttl)),
    };
    member.propose(Command::CreateToken(record.clone())).await?;
    Ok((token.reveal(), record))
}

struct Listeners {
    rpc: TcpListener,
    rpc_address: SocketAddr,
    http: Option<TcpListener>,
}

impl Listeners {
    async fn bind(config: &ServerConfig) -> anyhow::Result<Self> {
        let rpc = bind("rpc_bind", config.rpc_bind).await?;
        let http = match config.http_bind {
            Some(address) => Some(bind("http_bind", address).await?),
            None => None,
        };
        Ok(Self { rpc_address: rpc.local_addr()?, rpc, http })
    }
}

async fn bind(key: &str, address: SocketAddr) -> anyhow::Result<TcpListener> {
    let remedy = "another process may hold the port: stop it, or choose another address";
    TcpListener::bind(address).await.with_context(|| format!("{key}: cannot listen on {address}; {remedy}"))
}

/// Finds or makes the server's data directory.
async fn settle(config: &ServerConfig, advertise: SocketAddr) -> anyhow::Result<(Disk, Record)> {
    match &config.mode {
        Mode::Resume => {
            let (disk, record) = Disk::inhabited(&config.data_dir, &config.name)?;
            check_address(&record, advertise)?;
            Ok((disk, record))
        }
        Mode::Init { alloc_range, vip_range } => {
            let disk = Disk::vacant(&config.data_dir)?;
            let record = found(config, &disk, advertise, *alloc_range, *vip_range)?;
            Ok((disk, record))
        }
        Mode::Join { servers, token } => {
            let disk = Disk::vacant(&config.data_dir)?;
            let _trial = disk.try_out()?;
            join(config, disk, servers, token, advertise).await
        }
        Mode::Form { expect, servers, alloc_range, vip_range } => {
            if let Ok((disk, record)) = Disk::inhabited(&config.data_dir, &config.name) {
                check_address(&record, advertise)?;
                return Ok((disk, record));
            }
            let disk = Disk::vacant(&config.data_dir)?;
            let _trial = disk.try_out()?;
            let listener = bind("rpc_bind", config.rpc_bind).await?;
            match form::form(config, advertise, listener, *expect, servers).await? {
                Formed::Found => {
                    let record = found(config, &disk, advertise, *alloc_range, *vip_range)?;
                    Ok((disk, record))
                }
                Formed::Join { server, token } => join(config, disk, &[server], &token, advertise).await,
            }
        }
    }
}

async fn join(
    config: &ServerConfig,
    disk: Disk,
    servers: &[SocketAddr],
    token: &str,
    advertise: SocketAddr,
) -> anyhow::Result<(Disk, Record)> {
    let admission = join::request_admission(config, servers, token, advertise).await?;
    credentials(&admission.papers)?;
    disk.settle(&admission.record, &admission.papers, None)?;
    Ok((disk, admission.record))
}

fn check_address(record: &Record, advertise: SocketAddr) -> anyhow::Result<()> {
    let known = record.rpc_advertise;
    match known == advertise {
        true => Ok(()),
        false => bail!(
            "rpc_advertise: the cluster knows this server at {known}, not at {advertise}; a change of address is not built \
             yet: start it at {known}, or join with an empty data directory under another name"
        ),
    }
}

/// Makes the CA and the founder's own certificate.
fn found(
    config: &ServerConfig,
    disk: &Disk,
    rpc_advertise: SocketAddr,
    alloc_range: IpNet,
    vip_range: IpNet,
) -> anyhow::Result<Record> {
    let authority = CertificateAuthority::create()?;
    let seal = SealKey::generate()?;
    let key = KeyAndRequest::generate()?;
    let certificate_pem = authority.sign(&key.request_pem, Subject::Server(FOUNDER), config.certificate_validity)?;
    let founding = FoundingFile {
        certificate_der: authority.certificate_der().to_vec(),
        sealed_key: seal.seal(authority.key_der())?,
        alloc_range: alloc_range.to_string(),
        vip_range: vip_range.to_string(),
    };
    let papers = Papers { ca_pem: authority.certificate_pem(), certificate_pem, key_pem: key.key_pem, seal };
    let (cluster, name) = (hex(&authority.digest()), config.name.clone());
    let record = Record { cluster, id: FOUNDER.0, name, rpc_advertise, peers: Vec::new() };
    disk.settle(&record, &papers, Some(&founding))?;
    Ok(record)
}

fn credentials(papers: &Papers) -> anyhow::Result<Credentials> {
    let credentials = Credentials::from_pem(&papers.ca_pem, &papers.certificate_pem, &papers.key_pem)?;
    credentials.mtls()?;
    Ok(credentials)
}

fn member(
    config: &ServerConfig,
    disk: &Disk,
    record: &Record,
    papers: Papers,
    stop: watch::Receiver<bool>,
) -> anyhow::Result<Member> {
    let credentials = credentials(&papers)?;
    check_papers(&credentials, record)?;
    let credentials = LiveCredentials::new(credentials)?;
    let (machine, catalog, events) = Machine::new(Arc::new(halt_process) as Halt);
    let seeds: HashMap<ServerId, SocketAddr> =
        record.peers.iter().map(|peer| (ServerId(peer.id), peer.rpc_address)).collect();
    let peers = Arc::new(Peers::new(credentials.mtls()?, catalog.clone(), seeds));
    let transport = Arc::new(RaftTransport::new(Arc::clone(&peers), Handle::current()));
    let mut consensus = consensus::Config::new(record.id, disk.raft_dir(), clock::random_seed());
    // Only until the cluster is founded: a founder that lost its log must not start a second cluster of its own.
    consensus.bootstrap = disk.founding()?.map(|_| vec![record.id]);
    // Other commands are bounded where they are proposed; a restored snapshot is one command as well.
    consensus.proposal_bytes_max = identity::RPC_MESSAGE_BYTES_MAX - (1 << 20);
    let raft = Raft::start(consensus, Arc::clone(&transport) as _, Box::new(machine))?;
    transport.attach(raft.clone());
    Ok(Member {
        id: record.server_id(),
        name: record.name.clone(),
        region: config.region.clone(),
        datacenter: config.datacenter.clone(),
        rpc_address: record.rpc_advertise,
        status: watch_status(&raft),
        raft,
        catalog,
        events,
        peers,
        sessions: Sessions::default(),
        routing: crate::routing::RoutingFeed::default(),
        logs: LogRequests::default(),
        asks: Asks::default(),
        seal: papers.seal,
        credentials,
        disk: disk.clone(),
        certificate_validity: config.certificate_validity,
        cluster_secret: config.cluster_secret.clone(),
        autopilot: Mutex::default(),
        timing: config.timing,
        authority: OnceLock::new(),
        joins: Semaphore::new(join::JOINS_MAX),
        stop,
    })
}

fn check_papers(credentials: &Credentials, record: &Record) -> anyhow::Result<()> {
    let (role, id) = credentials.identity()?;
    if role != Role::Server || id != record.id.to_string() {
        bail!("data_dir: server.pem is of {} {id}, server.json of server {}; restore both", role.as_str(), record.id);
    }
    let cluster = hex(&identity::sha256(&credentials.ca));
    if cluster != record.cluster {
        bail!("data_dir: ca.pem is of cluster {cluster}, server.json of cluster {}; restore both", record.cluster);
    }
    Ok(())
}

fn watch_status(raft: &Raft) -> watch::Receiver<consensus::Status> {
    let (sender, receiver) = watch::channel(raft.status());
    raft.subscribe(Box::new(move |status| drop(sender.send_replace(status.clone()))));
    receiver
}
