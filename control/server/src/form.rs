//! Servers form a cluster by themselves: each knows where some of the others may be, how many are to come, and the secret
//! that they share.
//!
//! ```text
//!   fetch the other's certificate ─> Introduce(who, whom I met, proof over that certificate) ─> who, whom it met, proof
//!     a cluster is there: the reply has a token, and this server joins with it
//!     all have met the same servers, as many as are expected: the first of them by name founds the cluster
//! ```
//!
//! Whoever founds has heard from every one of the others that it has met all the rest, so two groups that do not see each
//! other can only both form when each of them is as large as was asked for.

use crate::config::ServerConfig;
use crate::doors;
use crate::member::Member;
use crate::pb;
use crate::pb::join_client::JoinClient;
use crate::pb::join_server::{Join, JoinServer};
use crate::start::{TokenRequest, create_token};
use anyhow::{Context, anyhow, bail};
use identity::{ClusterSecret, SERVER_NAME};
use model::Role;
use std::collections::{BTreeMap, BTreeSet};
use std::net::SocketAddr;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;
use tokio::net::TcpListener;
use tokio::sync::watch;
use tokio_rustls::TlsAcceptor;
use tonic::{Request, Response, Status};

const RETRY_EVERY: Duration = Duration::from_millis(700);
const CALL_TIMEOUT: Duration = Duration::from_secs(5);
const TOKEN_TTL: Duration = Duration::from_secs(600);
const MET_MAX: usize = 64;

/// What forming came to.
pub(crate) enum Formed {
    /// This server is to found the cluster.
    Found,
    /// There is one; join it here.
    Join { server: SocketAddr, token: String },
}

/// Who a server says it is, and whom it has met.
#[derive(Clone, Debug, PartialEq, Eq)]
struct Introduction {
    name: String,
    rpc_address: String,
    expect: u32,
    met: Vec<String>,
    token: String,
}

/// Waits for as long as it takes; servers may be started hours apart.
pub(crate) async fn form(
    config: &ServerConfig,
    advertise: SocketAddr,
    listener: TcpListener,
    expect: u32,
    others: &[SocketAddr],
) -> anyhow::Result<Formed> {
    let secret = config.cluster_secret.clone().context("cluster_secret: forming a cluster needs one")?;
    if expect == 1 && others.iter().all(|address| *address == advertise) {
        return Ok(Formed::Found);
    }
    let credentials = identity::provisional_credentials()?;
    let desk = Arc::new(Desk {
        secret,
        leaf: identity::sha256(&credentials.leaf),
        own: Introduction {
            name: config.name.clone(),
            rpc_address: advertise.to_string(),
            expect,
            met: Vec::new(),
            token: String::new(),
        },
        met: Mutex::default(),
    });
    let (stop, stopped) = watch::channel(false);
    let acceptor = TlsAcceptor::from(credentials.server_config()?);
    let served = tonic::transport::Server::builder()
        .add_service(JoinServer::new(Reception(Arc::clone(&desk))))
        .serve_with_incoming_shutdown(doors::incoming(listener, acceptor), crate::rpc::until(stopped));
    tracing::info!(name = config.name, expect, "forming a cluster: waiting for the other servers");
    let outcome = tokio::select! {
        outcome = desk.make_acquaintance(advertise, others) => outcome,
        ended = served => match ended {
            Ok(()) => Err(anyhow!("the RPC listener ended")),
            Err(error) => Err(error.into()),
        },
    };
    drop(stop);
    outcome
}

struct Desk {
    secret: ClusterSecret,
    leaf: [u8; 32],
    own: Introduction,
    /// By name: what each has said last.
    met: Mutex<BTreeMap<String, Introduction>>,
}

impl Desk {
    async fn make_acquaintance(&self, advertise: SocketAddr, others: &[SocketAddr]) -> anyhow::Result<Formed> {
        let mut told = BTreeMap::new();
        loop {
            for address in self.addresses(advertise, others) {
                match introduce(&self.secret, address, &self.said()).await {
                    Ok(other) if !other.token.is_empty() => {
                        return Ok(Formed::Join { server: address, token: other.token });
                    }
                    Ok(other) => self.note(other)?,
                    // Each reason once: a server that is not up yet is asked again and again.
                    Err(error) => {
                        let reason = format!("{error:#}");
                        if told.insert(address, reason.clone()).as_ref() != Some(&reason) {
                            tracing::info!(%address, reason, "a server cannot be asked yet");
                        }
                    }
                }
            }
            if founds(&self.said(), &self.met()) {
                return Ok(Formed::Found);
            }
            tokio::time::sleep(RETRY_EVERY).await;
        }
    }

    /// Those that were named, and those that came by themselves.
    fn addresses(&self, advertise: SocketAddr, others: &[SocketAddr]) -> BTreeSet<SocketAddr> {
        let met = self.met();
        let known = met.values().filter_map(|other| other.rpc_address.parse().ok());
        others.iter().copied().chain(known).filter(|address| *address != advertise).collect()
    }

    fn note(&self, other: Introduction) -> anyhow::Result<()> {
        if other.expect != self.own.expect {
            bail!(
                "bootstrap_expect: this server expects {} servers, {} expects {}; start all with the same number",
                self.own.expect,
                other.name,
                other.expect
            );
        }
        if other.name == self.own.name && other.rpc_address != self.own.rpc_address {
            bail!("name: {} at {} has it as well; give each server its own", other.name, other.rpc_address);
        }
        let mut met = self.met();
        if other.name != self.own.name && (met.len() < MET_MAX || met.contains_key(&other.name)) {
            met.insert(other.name.clone(), other);
        }
        Ok(())
    }

    fn said(&self) -> Introduction {
        let met = self.met().keys().cloned().chain([self.own.name.clone()]).collect::<BTreeSet<_>>();
        Introduction { met: met.into_iter().collect(), ..self.own.clone() }
    }

    fn met(&self) -> MutexGuard<'_, BTreeMap<String, Introduction>> {
        self.met.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Whether `own` is to found the cluster: enough servers, each of which has met all of them, and none before it by name.
fn founds(own: &Introduction, met: &BTreeMap<String, Introduction>) -> bool {
    let everyone: BTreeSet<&String> = own.met.iter().collect();
    let knows_all = |other: &Introduction| everyone.iter().all(|name| other.met.contains(name));
    everyone.len() >= own.expect as usize
        && everyone.first().is_some_and(|first| **first == own.name)
        && met.values().all(knows_all)
}

/// Calls the server at `address`; what it answers has been proven to come from there.
async fn introduce(secret: &ClusterSecret, address: SocketAddr, own: &Introduction) -> anyhow::Result<Introduction> {
    let leaf = identity::fetch_leaf(address).await?;
    let digest = identity::sha256(&leaf);
    let nonce = identity::nonce()?;
    let channel = identity::channel(address, SERVER_NAME, identity::pinned_client_config(&leaf))?;
    let request = pb::IntroduceRequest {
        nonce: nonce.to_vec(),
        name: own.name.clone(),
        rpc_address: own.rpc_address.clone(),
        expect: own.expect,
        met: own.met.clone(),
        mac: prove(secret, "asks", &nonce, &digest, own),
    };
    let reply = tokio::time::timeout(CALL_TIMEOUT, JoinClient::new(channel).introduce(request)).await;
    let reply = reply.map_err(|_| anyhow!("it did not answer"))?.map_err(|status| anyhow!("{}", status.message()))?;
    let pb::IntroduceReply { name, rpc_address, expect, met, token, mac } = reply.into_inner();
    let other = Introduction { name, rpc_address, expect, met, token };
    match check(secret, "answers", &nonce, &digest, &other, &mac) {
        true => Ok(other),
        false => bail!("it does not know the cluster's secret, or somebody answers in its place"),
    }
}

fn prove(secret: &ClusterSecret, side: &str, nonce: &[u8], leaf: &[u8; 32], said: &Introduction) -> Vec<u8> {
    with_parts(side, nonce, leaf, said, |parts| secret.prove(parts))
}

fn check(secret: &ClusterSecret, side: &str, nonce: &[u8], leaf: &[u8; 32], said: &Introduction, mac: &[u8]) -> bool {
    with_parts(side, nonce, leaf, said, |parts| secret.verify(parts, mac))
}

fn with_parts<T>(side: &str, nonce: &[u8], leaf: &[u8; 32], said: &Introduction, of: impl FnOnce(&[&[u8]]) -> T) -> T {
    let (expect, met) = (said.expect.to_be_bytes(), said.met.join("\n"));
    of(&[
        side.as_bytes(),
        nonce,
        leaf,
        said.name.as_bytes(),
        said.rpc_address.as_bytes(),
        &expect,
        met.as_bytes(),
        said.token.as_bytes(),
    ])
}

/// Reads a request that was proven to be for the certificate with this digest.
fn read(
    secret: &ClusterSecret,
    leaf: &[u8; 32],
    request: pb::IntroduceRequest,
) -> Result<(Vec<u8>, Introduction), Status> {
    let pb::IntroduceRequest { nonce, name, rpc_address, expect, met, mac } = request;
    if met.len() > MET_MAX || !crate::config::is_name(&name) || rpc_address.parse::<SocketAddr>().is_err() {
        return Err(Status::invalid_argument("this is no introduction of a server"));
    }
    let said = Introduction { name, rpc_address, expect, met, token: String::new() };
    match nonce.len() == 32 && check(secret, "asks", &nonce, leaf, &said, &mac) {
        true => Ok((nonce, said)),
        false => Err(Status::permission_denied("the caller does not know this cluster's secret")),
    }
}

fn reply(secret: &ClusterSecret, leaf: &[u8; 32], nonce: &[u8], said: Introduction) -> pb::IntroduceReply {
    let mac = prove(secret, "answers", nonce, leaf, &said);
    let Introduction { name, rpc_address, expect, met, token } = said;
    pb::IntroduceReply { name, rpc_address, expect, met, token, mac }
}

/// A running server's answer: a token for the one that asks.
pub(crate) async fn receive(member: &Member, request: pb::IntroduceRequest) -> Result<pb::IntroduceReply, Status> {
    let Some(secret) = &member.cluster_secret else {
        return Err(Status::failed_precondition("this server was started without the cluster's secret"));
    };
    let leaf = identity::sha256(&member.credentials.current().leaf);
    let (nonce, other) = read(secret, &leaf, request)?;
    let _place = member.joins.try_acquire().map_err(|_| Status::unavailable("too many joins are under way"))?;
    let wanted = TokenRequest { role: Role::Server, uses: 1, ttl: Some(TOKEN_TTL) };
    let (token, _) = create_token(member, wanted).await.map_err(|error| Status::unavailable(format!("{error:#}")))?;
    tracing::info!(name = other.name, address = other.rpc_address, "a server that knows the secret may join");
    let (name, rpc_address) = (member.name.clone(), member.rpc_address.to_string());
    let said = Introduction { name, rpc_address, expect: other.expect, met: Vec::new(), token };
    Ok(reply(secret, &leaf, &nonce, said))
}

struct Reception(Arc<Desk>);

#[tonic::async_trait]
impl Join for Reception {
    async fn join(&self, _request: Request<pb::JoinRequest>) -> Result<Response<pb::JoinReply>, Status> {
        Err(Status::unavailable("this server waits for others to form a cluster with; try again"))
    }

    async fn introduce(&self, request: Request<pb::IntroduceRequest>) -> Result<Response<pb::IntroduceReply>, Status> {
        let desk = &self.0;
        let (nonce, other) = read(&desk.secret, &desk.leaf, request.into_inner())?;
        desk.note(other).map_err(|error| Status::failed_precondition(error.to_string()))?;
        Ok(Response::new(reply(&desk.secret, &desk.leaf, &nonce, desk.said())))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn server(name: &str, met: &[&str]) -> Introduction {
        Introduction {
            name: name.to_owned(),
            rpc_address: "10.0.0.1:4647".to_owned(),
            expect: 3,
            met: met.iter().map(|name| (*name).to_owned()).collect(),
            token: String::new(),
        }
    }

    fn met(others: &[Introduction]) -> BTreeMap<String, Introduction> {
        others.iter().map(|other| (other.name.clone(), other.clone())).collect()
    }

    #[test]
    fn one_founds_and_only_when_all_have_met_all() {
        let all = ["a", "b", "c"];
        let everyone = |own: &str| -> Vec<Introduction> {
            all.iter().filter(|name| **name != own).map(|name| server(name, &all)).collect()
        };
        assert!(founds(&server("a", &all), &met(&everyone("a"))));
        for other in ["b", "c"] {
            assert!(!founds(&server(other, &all), &met(&everyone(other))), "{other}");
        }
        let half = [server("b", &all), server("c", &["b", "c"])];
        assert!(!founds(&server("a", &all), &met(&half)), "c has not met a");
        assert!(!founds(&server("a", &["a", "b"]), &met(&[server("b", &["a", "b"])])), "one is missing");
    }

    #[test]
    fn a_proof_is_for_one_certificate_one_side_and_one_content() {
        let secret = ClusterSecret::generate().unwrap();
        let (nonce, leaf) = ([1; 32], [2; 32]);
        let said = server("a", &["a"]);
        let mac = prove(&secret, "asks", &nonce, &leaf, &said);
        assert!(check(&secret, "asks", &nonce, &leaf, &said, &mac));
        assert!(!check(&secret, "answers", &nonce, &leaf, &said, &mac));
        assert!(!check(&secret, "asks", &nonce, &[3; 32], &said, &mac), "somebody in between");
        assert!(!check(&secret, "asks", &nonce, &leaf, &Introduction { token: "x".to_owned(), ..said }, &mac));
    }
}
