//! Whole servers in one process: real Raft, real TLS on loopback, agents that only talk.

#![expect(clippy::unwrap_used, reason = "a test fails where it unwraps")]

mod support;

use model::{ClientStatus, NodeId, Role};
use serde_json::{Value, json};
use server::{ClusterSecret, Mode, Server, TokenRequest};
use std::time::Duration;
use support::{
    Events, FakeAgent, channel, config, enrol, eventually, get, init, join, node, put, raw, request, running, token,
};
use tonic::Code;
use wire::pb;
use wire::session::{AgentMessage, ServerMessage};

const JOB: &str = r#"
job "web" {
  datacenters = ["dc1"]
  group "app" {
    count = 2
    network {
      port "http" { to = 8080 }
    }
    service {
      name = "web"
      port = "http"
      provider = "nomad"
    }
    task "server" {
      driver = "raw_exec"
      config { command = "/bin/sleep" }
      resources {
        cpu = 100
        memory = 64
      }
    }
  }
}
"#;

async fn register(server: &Server) -> Value {
    let job = put(server, "/v1/jobs/parse", &json!({ "JobHCL": JOB, "Canonicalize": true })).await.json();
    put(server, "/v1/jobs", &json!({ "Job": job })).await.json()
}

async fn voters(server: &Server) -> Option<usize> {
    let reply = get(server, "/v1/operator/raft/configuration?stale").await;
    let servers = reply.json()["Servers"].as_array()?.clone();
    Some(servers.iter().filter(|server| server["Voter"] == true).count())
}

async fn three(dir: &std::path::Path) -> [Server; 3] {
    let s1 = init(dir).await;
    let s2 = join(dir, "s2", &s1).await;
    let s3 = join(dir, "s3", &s2).await;
    for server in [&s1, &s2, &s3] {
        eventually("three voters", || async { (voters(server).await? == 3).then_some(()) }).await;
    }
    [s1, s2, s3]
}

async fn agent(server: &Server, name: &str) -> (identity::Credentials, NodeId) {
    let id = NodeId::from_random(name.len() as u128 + 77);
    let credentials = enrol(server.rpc_address(), &token(server, Role::Agent).await, name, Some(id)).await.unwrap();
    (credentials, id)
}

fn allocations(message: ServerMessage) -> Option<(u64, Vec<model::Allocation>)> {
    match message {
        ServerMessage::Allocations { generation, allocs } if !allocs.is_empty() => Some((generation.0, allocs)),
        _ => None,
    }
}

async fn node_status(server: &Server, id: NodeId) -> String {
    get(server, &format!("/v1/node/{id}")).await.json()["Status"].as_str().unwrap().to_owned()
}

#[tokio::test]
async fn a_cluster_of_three_places_work_and_survives_its_leader() {
    let dir = tempfile::tempdir().unwrap();
    let [leader, follower, third] = three(dir.path()).await;
    assert!(leader.is_leader());

    // A follower takes the job; with no node it waits for capacity.
    let registered = register(&follower).await;
    let eval = registered["EvalID"].as_str().unwrap().to_owned();
    eventually("the evaluation waits for capacity", || async {
        let eval = get(&third, &format!("/v1/evaluation/{eval}")).await.json();
        (eval["Status"] == "blocked" && eval["FailedTGAllocs"]["app"].is_object()).then_some(())
    })
    .await;

    // An agent that asks a follower is sent to the leader, and gets the allocations there.
    let (credentials, id) = agent(&follower, "n1").await;
    let mut session = FakeAgent::open(follower.rpc_address(), &credentials, node(id, "n1", 1)).await.unwrap();
    let told = session.next().await.unwrap();
    assert_eq!(told, ServerMessage::NotLeader { leader: Some(leader.rpc_address()) });
    let mut session = FakeAgent::open(leader.rpc_address(), &credentials, node(id, "n1", 1)).await.unwrap();
    let welcome = session.next().await.unwrap();
    assert!(matches!(&welcome, ServerMessage::Welcome { servers, .. } if servers.len() == 3), "{welcome:?}");
    let (generation, allocs) = session.expect(|message| allocations(message).filter(|(_, a)| a.len() == 2)).await;
    assert!(allocs.iter().all(|alloc| alloc.node_id == id && alloc.client == ClientStatus::Pending));

    // What it reports shows on every server, and its instances are routed.
    session.send(AgentMessage::Allocs(allocs.iter().map(|alloc| running(alloc.id)).collect())).await;
    eventually("both run, as a follower shows it", || async {
        let summary = get(&third, "/v1/job/web/summary").await.json();
        (summary["Summary"]["app"]["Running"] == 2).then_some(())
    })
    .await;
    let routed = session.expect(|message| match message {
        ServerMessage::Routing(routing) => routing.services.into_iter().find(|service| service.instances.len() == 2),
        _ => None,
    });
    assert_eq!(routed.await.name, "web");
    let instances = get(&follower, "/v1/service/web").await.json();
    assert_eq!(instances.as_array().unwrap().len(), 2);

    // Output is read through whichever server is asked.
    let alloc_id = allocs[0].id;
    let path = format!("/v1/client/fs/logs/{alloc_id}?task=server&type=stdout&plain=true");
    let (reply, ()) = tokio::join!(get(&follower, &path), async {
        let request_id = session.expect(|message| match message {
            ServerMessage::ReadLogs { request_id, alloc_id: asked, .. } if asked == alloc_id => Some(request_id),
            _ => None,
        });
        let request_id = request_id.await;
        let chunk = |data: &str, eof| AgentMessage::LogChunk { request_id, data: data.into(), eof, error: None };
        session.send(chunk("hello from ", false)).await;
        session.send(chunk("the task", true)).await;
    });
    assert_eq!(reply.status, 200);
    assert!(reply.body.contains("hello from") && reply.body.contains("the task"), "{}", reply.body);

    // The leader goes: the next write works, and the agent finds its allocations at the new one.
    leader.shutdown().await;
    assert!(session.expect_end().await);
    let again = put(&follower, "/v1/mesh/tokens", &json!({ "Role": "agent" })).await;
    assert!(again.json()["Token"].as_str().unwrap().starts_with("mesh1."));
    let new_leader = if follower.is_leader() { &follower } else { &third };
    let mut session = FakeAgent::open(new_leader.rpc_address(), &credentials, node(id, "n1", 2)).await.unwrap();
    let (newer, allocs) = session.expect(allocations).await;
    assert!(newer > generation && allocs.len() == 2);
    assert_eq!(node_status(&follower, id).await, "ready");

    // A lost session makes the node suspect at once, and down only later; then its allocations are lost.
    drop(session);
    eventually("the node is suspect", || async { (node_status(&follower, id).await == "disconnected").then_some(()) })
        .await;
    let stubs = get(&follower, "/v1/job/web/allocations").await.json();
    assert!(stubs.as_array().unwrap().iter().all(|stub| stub["ClientStatus"] == "running"), "{stubs}");
    eventually("the node is down", || async { (node_status(&follower, id).await == "down").then_some(()) }).await;
    eventually("its allocations are lost", || async {
        let stubs = get(&third, "/v1/job/web/allocations").await.json();
        stubs.as_array()?.iter().all(|stub| stub["ClientStatus"] == "lost").then_some(())
    })
    .await;
    follower.shutdown().await;
    third.shutdown().await;
}

#[tokio::test]
async fn a_token_works_as_often_and_as_long_as_it_says() {
    let dir = tempfile::tempdir().unwrap();
    let server = init(dir.path()).await;
    let address = server.rpc_address();
    let refusal = |result: Result<identity::Credentials, tonic::Status>| {
        let status = result.expect_err("the join should be refused");
        (status.code(), status.message().to_owned())
    };

    let once = token(&server, Role::Agent).await;
    let (code, reason) = refusal(enrol(address, &once, "n1\nforged line", None).await);
    assert!(code == Code::InvalidArgument && reason.contains("name"), "{reason}");
    enrol(address, &once, "n1", None).await.unwrap();
    let (code, reason) = refusal(enrol(address, &once, "n2", None).await);
    assert_eq!(code, Code::PermissionDenied);
    assert!(reason.contains("used up"), "{reason}");

    let brief = TokenRequest { role: Role::Agent, uses: 5, ttl: Some(Duration::from_millis(50)) };
    let brief = server.create_token(brief).await.unwrap();
    tokio::time::sleep(Duration::from_millis(60)).await;
    let (_, reason) = refusal(enrol(address, &brief, "n2", None).await);
    assert!(reason.contains("expired"), "{reason}");

    let unknown = identity::Token::create(identity::Token::parse(&once).unwrap().ca_digest, Role::Agent).unwrap();
    let (_, reason) = refusal(enrol(address, &unknown.reveal(), "n2", None).await);
    assert!(reason.contains("unknown"), "{reason}");

    let for_servers = token(&server, Role::Server).await;
    let (_, reason) = refusal(enrol(address, &for_servers, "n2", None).await);
    assert!(reason.contains("role server"), "{reason}");

    // The joining server says why as well, and leaves nothing behind.
    let agent_token = token(&server, Role::Agent).await;
    let wrong = config(dir.path(), "s2", Mode::Join { servers: vec![address], token: agent_token });
    let error = Server::start(wrong).await.err().expect("an agent's token is not for servers");
    assert!(format!("{error:#}").contains("--role server"), "{error:#}");
    let spent = token(&server, Role::Server).await;
    let s2 = Server::start(config(dir.path(), "s2", Mode::Join { servers: vec![address], token: spent.clone() })).await;
    s2.unwrap().shutdown().await;
    let again = config(dir.path(), "s3", Mode::Join { servers: vec![address], token: spent });
    let error = Server::start(again).await.err().expect("the token is spent");
    assert!(format!("{error:#}").contains("used up"), "{error:#}");
    assert!(!dir.path().join("s3").exists());
    server.shutdown().await;
}

#[tokio::test]
async fn roles_are_checked_on_every_call() {
    let dir = tempfile::tempdir().unwrap();
    let server = init(dir.path()).await;
    let address = server.rpc_address();
    let (agent, id) = agent(&server, "n1").await;

    // An agent speaks neither Raft nor for the log.
    let mut servers = pb::servers_client::ServersClient::new(channel(address, &agent));
    let messages = tokio_stream::iter([pb::RaftMessage::default()]);
    assert_eq!(servers.raft(messages).await.unwrap_err().code(), Code::PermissionDenied);
    let propose = pb::ProposeRequest { envelope: Vec::new() };
    let error = servers.propose(propose.clone()).await.unwrap_err();
    assert_eq!(error.code(), Code::PermissionDenied);
    assert!(error.message().contains("role agent"), "{}", error.message());
    let read = servers.read_logs(pb::ReadLogsRequest { range: None }).await.unwrap_err();
    assert_eq!(read.code(), Code::PermissionDenied);

    // Nobody without a certificate does.
    let anonymous = identity::anonymous_client_config(&agent.ca).unwrap();
    let anonymous = identity::channel(address, identity::SERVER_NAME, anonymous).unwrap();
    let mut servers = pb::servers_client::ServersClient::new(anonymous.clone());
    assert_eq!(servers.propose(propose.clone()).await.unwrap_err().code(), Code::Unauthenticated);
    let mut agents = pb::agents_client::AgentsClient::new(anonymous);
    let nothing = tokio_stream::iter(Vec::<pb::AgentMessage>::new());
    assert_eq!(agents.session(nothing).await.unwrap_err().code(), Code::Unauthenticated);

    // A certificate of another CA gets no connection.
    let foreign = identity::CertificateAuthority::create().unwrap();
    let key = identity::KeyAndRequest::generate().unwrap();
    let subject = identity::Subject::Server(model::ServerId(1));
    let leaf = foreign.sign(&key.request_pem, subject, identity::VALIDITY_DEFAULT).unwrap();
    let mut posing = identity::Credentials::from_pem(&foreign.certificate_pem(), &leaf, &key.key_pem).unwrap();
    posing.ca = agent.ca.clone();
    let mut servers = pb::servers_client::ServersClient::new(channel(address, &posing));
    let error = servers.propose(propose).await.unwrap_err();
    assert!(matches!(error.code(), Code::Unavailable | Code::Unknown), "{error:?}");

    // An agent speaks for its own node only, and no token gives it the id of a node that is there.
    let other = NodeId::from_random(1);
    let mut session = FakeAgent::open(address, &agent, node(other, "n1", 1)).await.unwrap();
    let refused = session.next().await.unwrap();
    assert!(matches!(&refused, ServerMessage::Refused { reason } if reason.contains("its own node")), "{refused:?}");
    let mut session = FakeAgent::open(address, &agent, node(id, "n1", 1)).await.unwrap();
    assert!(matches!(session.next().await, Some(ServerMessage::Welcome { .. })));
    let thief = enrol(address, &token(&server, Role::Agent).await, "n9", Some(id)).await.err().unwrap();
    assert_eq!(thief.code(), Code::AlreadyExists);

    // A second start of the agent needs a newer epoch, and takes the place of the first.
    let mut stale = FakeAgent::open(address, &agent, node(id, "n1", 1)).await.unwrap();
    assert!(matches!(stale.next().await, Some(ServerMessage::Refused { .. })));
    let mut newer = FakeAgent::open(address, &agent, node(id, "n1", 2)).await.unwrap();
    assert!(matches!(newer.next().await, Some(ServerMessage::Welcome { .. })));
    assert!(session.expect_end().await);
    assert_eq!(node_status(&server, id).await, "ready");
    server.shutdown().await;
}

#[tokio::test]
async fn silent_connections_keep_nobody_out() {
    let dir = tempfile::tempdir().unwrap();
    let server = init(dir.path()).await;
    let limits = std::fs::read_to_string("/proc/self/limits").unwrap();
    let files: Vec<&str> =
        limits.lines().find(|line| line.starts_with("Max open files")).unwrap().split_whitespace().collect();
    assert_eq!(files[3], files[4], "the soft limit is the hard one");

    let token = token(&server, Role::Agent).await;
    let mut silent = Vec::new();
    for _ in 0..300 {
        silent.push(tokio::net::TcpStream::connect(server.rpc_address()).await.unwrap());
    }
    // Those beyond what one address may have are told at once, and when the others' time is up there is room again.
    let mut told = 0;
    for connection in &silent {
        let closed = tokio::time::timeout(Duration::from_millis(20), connection.readable()).await.is_ok();
        told += usize::from(closed);
    }
    assert!((200..300).contains(&told), "{told}");
    let ca = identity::Token::parse(&token).unwrap().ca_digest;
    let is_let_in = || async { identity::fetch_ca(server.rpc_address(), ca).await.ok() };
    eventually("there is room again", is_let_in).await;
    eventually("an agent joins", || async { enrol(server.rpc_address(), &token, "n1", None).await.ok() }).await;
    server.shutdown().await;
}

#[tokio::test]
async fn a_server_goes_on_with_what_it_had_and_refuses_what_it_cannot_use() {
    let dir = tempfile::tempdir().unwrap();
    let server = init(dir.path()).await;
    register(&server).await;
    let (rpc, http) = (server.rpc_address(), server.http_address());

    let refused = |config| async {
        let error = Server::start(config).await.err().expect("the start should be refused");
        format!("{error:#}")
    };
    let mut taken = config(dir.path(), "s2", Mode::init());
    taken.rpc_bind = rpc;
    let error = refused(taken).await;
    assert!(error.contains("rpc_bind") && !dir.path().join("s2").exists(), "{error}");
    server.shutdown().await;

    let error = refused(config(dir.path(), "s1", Mode::init())).await;
    assert!(error.contains("data_dir") && error.contains("s1"), "{error}");
    let error = refused(config(dir.path(), "s2", Mode::Resume)).await;
    assert!(error.contains("data_dir") && error.contains("meshctl server init"), "{error}");
    let mut open = config(dir.path(), "s2", Mode::init());
    open.http_bind = Some("0.0.0.0:0".parse().unwrap());
    let error = refused(open).await;
    assert!(error.contains("http_bind") && error.contains("TLS for HTTP is not built yet"), "{error}");
    let mut lost = config(dir.path(), "s2", Mode::init());
    lost.rpc_bind = "0.0.0.0:0".parse().unwrap();
    assert!(refused(lost).await.contains("rpc_advertise"));
    let garbled = Mode::Join { servers: vec![rpc], token: "mesh1.%%%".to_owned() };
    assert!(refused(config(dir.path(), "s2", garbled)).await.contains("token"));

    let error = refused(config(dir.path(), "s1", Mode::Resume)).await;
    assert!(error.contains("rpc_advertise") && error.contains(&rpc.to_string()), "{error}");
    let mut resume = config(dir.path(), "s1", Mode::Resume);
    (resume.rpc_bind, resume.http_bind) = (rpc, http);
    let server = Server::start(resume.clone()).await.unwrap();
    assert_eq!(get(&server, "/v1/job/web").await.json()["ID"], "web");
    token(&server, Role::Agent).await;
    server.shutdown().await;

    std::fs::write(dir.path().join("s1/format"), "meshctl server 9").unwrap();
    let error = refused(resume).await;
    assert!(error.contains("meshctl server 9"), "{error}");
}

#[tokio::test]
async fn http_keeps_nomads_manners() {
    let dir = tempfile::tempdir().unwrap();
    let server = init(dir.path()).await;
    let check = |reply: support::Reply, status: u16, text: &str| {
        assert_eq!(reply.status, status, "{}", reply.body);
        assert!(reply.body.contains(text), "{}", reply.body);
        assert!(reply.header("content-type").unwrap().starts_with("text/plain"));
    };
    check(get(&server, "/v1/nonsense").await, 404, "no such route");
    check(get(&server, "/v1/volumes").await, 501, "not built yet");
    check(put(&server, "/v1/job/web/dispatch", &json!({})).await, 404, "job not found");
    check(get(&server, "/v1/job/web").await, 404, "job not found");
    check(get(&server, "/v1/allocation/00000000-0000-0000-0000-000000000000").await, 404, "alloc not found");
    check(put(&server, "/v1/jobs", &json!({})).await, 400, "Job must be specified");
    check(
        put(&server, "/v1/jobs", &json!({ "Job": { "ID": "x", "Periodic": { "Spec": "* * * * *" } } })).await,
        400,
        "periodic",
    );
    check(put(&server, "/v1/jobs", &json!({ "Job": { "ID": "x", "Stop": true } })).await, 501, "Job.Stop");
    check(get(&server, "/v1/jobs?region=eu").await, 501, "region");
    check(request(&server, "PUT", "/v1/jobs", "{", "127.0.0.1").await, 400, "JSON");
    check(request(&server, "PATCH", "/v1/jobs", "", "127.0.0.1").await, 405, "Invalid method");
    check(request(&server, "GET", "/v1/jobs", "", "evil.example").await, 403, "localhost");
    check(put(&server, "/v1/mesh/tokens", &json!({ "Role": "king" })).await, 400, "neither server nor agent");
    check(put(&server, "/v1/jobs/parse", &json!({ "JobHCL": "job \"x\" {" })).await, 400, "job:");
    assert_eq!(request(&server, "PUT", "/v1/jobs", &"x".repeat(2 << 20), "127.0.0.1").await.status, 413);

    let empty = get(&server, "/v1/jobs?pretty").await;
    assert_eq!(empty.json(), json!([]));
    assert_eq!(empty.header("x-nomad-index"), Some("1"));
    assert_eq!(empty.header("x-nomad-knownleader"), Some("true"));
    assert_eq!(empty.header("x-nomad-lastcontact"), Some("0"));
    let leader = get(&server, "/v1/status/leader").await.json();
    assert_eq!(leader, json!(server.rpc_address().to_string()));
    assert_eq!(get(&server, "/v1/agent/members").await.json()["Members"][0]["Status"], "alive");

    // A blocking query returns at the change, and not before.
    let (listed, ()) = tokio::join!(get(&server, "/v1/jobs?index=1&wait=10s"), async {
        tokio::time::sleep(Duration::from_millis(200)).await;
        register(&server).await;
    });
    assert_eq!(listed.json()[0]["ID"], "web");
    let index: u64 = listed.header("x-nomad-index").unwrap().parse().unwrap();
    let started = tokio::time::Instant::now();
    get(&server, &format!("/v1/jobs?index={}&wait=300ms", index + 1000)).await.json();
    assert!(started.elapsed() >= Duration::from_millis(300));
    assert_eq!(get(&server, "/v1/jobs?prefix=nope").await.json(), json!([]));
    let stale_index = json!({ "Job": { "ID": "web" }, "EnforceIndex": true, "JobModifyIndex": 1 });
    assert!(matches!(put(&server, "/v1/jobs", &stale_index).await.status, 400 | 409));

    let stopped = request(&server, "DELETE", "/v1/job/web?purge=true", "", "localhost").await.json();
    assert!(stopped["EvalID"].is_string());
    eventually("the purged job is gone", || async { (get(&server, "/v1/job/web").await.status == 404).then_some(()) })
        .await;
    server.shutdown().await;
}

/// What `meshctl server` has on disk to prove itself with.
fn papers(dir: &std::path::Path, name: &str) -> String {
    std::fs::read_to_string(dir.join(name).join("server.pem")).unwrap()
}

#[tokio::test]
async fn certificates_are_renewed_under_traffic_and_nothing_fails() {
    const VALIDITY: Duration = Duration::from_secs(3);
    let dir = tempfile::tempdir().unwrap();
    let brief = |name: &str, mode| {
        let mut config = config(dir.path(), name, mode);
        config.certificate_validity = VALIDITY;
        config
    };
    let s1 = Server::start(brief("s1", Mode::init())).await.unwrap();
    let mut others = Vec::new();
    for name in ["s2", "s3"] {
        let token = token(&s1, Role::Server).await;
        let mode = Mode::Join { servers: vec![s1.rpc_address()], token };
        others.push(Server::start(brief(name, mode)).await.unwrap());
    }
    eventually("three voters", || async { (voters(&s1).await? == 3).then_some(()) }).await;
    let (credentials, id) = agent(&s1, "n1").await;
    let live = identity::LiveCredentials::new(credentials).unwrap();
    let mut session = FakeAgent::open(s1.rpc_address(), &live.current(), node(id, "n1", 1)).await.unwrap();
    assert!(matches!(session.next().await, Some(ServerMessage::Welcome { .. })));

    // Writes through a follower, reads with a quorum, and an agent that renews at every server, for three validities.
    let mut seen: Vec<std::collections::BTreeSet<String>> = vec![Default::default(); 3];
    let until = tokio::time::Instant::now() + 3 * VALIDITY;
    let (mut calls, mut renewals) = (0, 0);
    while tokio::time::Instant::now() < until {
        let written = put(&others[calls % 2], "/v1/mesh/tokens", &json!({ "Role": "agent", "TTL": "1s" })).await;
        assert_eq!(written.status, 200, "after {calls} calls: {}", written.body);
        assert_eq!(get(&others[calls % 2], "/v1/jobs").await.status, 200);
        calls += 1;
        if identity::renew_at(&live.current().leaf, 0.0).unwrap() <= std::time::SystemTime::now() {
            let own = identity::KeyAndRequest::generate().unwrap();
            let server = [&s1, &others[0], &others[1]][renewals % 3].rpc_address();
            let mut agents = pb::agents_client::AgentsClient::new(channel(server, &live.current()));
            let reply = agents.renew(pb::RenewRequest { csr_pem: own.request_pem }).await.unwrap().into_inner();
            let ca = identity::certificate_pem(&live.current().ca);
            let new = identity::Credentials::from_pem(&ca, &reply.certificate_pem, &own.key_pem).unwrap();
            assert_eq!(new.identity().unwrap(), (Role::Agent, id.to_string()));
            live.replace(new).unwrap();
            renewals += 1;
        }
        for (name, seen) in ["s1", "s2", "s3"].into_iter().zip(&mut seen) {
            seen.insert(papers(dir.path(), name));
        }
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
    let certificates: Vec<usize> = seen.iter().map(|seen| seen.len()).collect();
    println!(
        "{calls} writes and as many reads, {renewals} renewals of the agent, certificates of servers: {certificates:?}"
    );
    assert!(renewals >= 3 && certificates.iter().all(|count| *count >= 4), "{renewals} {certificates:?}");
    // The session of the first certificate is still the node's, and is pushed what changes.
    assert!(s1.is_leader());
    assert_eq!(node_status(&s1, id).await, "ready");
    register(&others[0]).await;
    session.expect(allocations).await;

    let mode = std::fs::metadata(dir.path().join("s1/server.pem")).unwrap();
    assert_eq!(std::os::unix::fs::PermissionsExt::mode(&mode.permissions()) & 0o777, 0o600);

    // A lone server that was away until its certificate ran out signs itself a new one.
    let alone = Server::start(brief("t1", Mode::init())).await.unwrap();
    let (rpc, http) = (alone.rpc_address(), alone.http_address());
    alone.shutdown().await;
    let before = papers(dir.path(), "t1");
    for server in others {
        server.shutdown().await;
    }
    s1.shutdown().await;
    tokio::time::sleep(VALIDITY + Duration::from_millis(1100)).await;
    let mut resume = brief("t1", Mode::Resume);
    (resume.rpc_bind, resume.http_bind) = (rpc, http);
    let again = Server::start(resume).await.unwrap();
    assert_ne!(papers(dir.path(), "t1"), before);
    enrol(rpc, &token(&again, Role::Agent).await, "n2", None).await.unwrap();
    again.shutdown().await;
}

async fn delete(server: &Server, path: &str) -> support::Reply {
    request(server, "DELETE", path, "", "127.0.0.1").await
}

#[tokio::test]
async fn leadership_is_handed_over_and_servers_are_removed_without_a_failed_write() {
    let dir = tempfile::tempdir().unwrap();
    let [s1, s2, s3] = three(dir.path()).await;
    let transfer = |to: String| put_empty(&s3, format!("/v1/operator/raft/transfer-leadership{to}"));
    assert!(transfer("?id=99".to_owned()).await.body.contains("no voter"));
    assert!(transfer("?address=10.9.9.9:1".to_owned()).await.body.contains("no server is at"));
    assert!(delete(&s2, "/v1/operator/raft/peer").await.body.contains("?id"));
    assert_eq!(delete(&s2, "/v1/operator/raft/peer?id=99").await.status, 404);

    // Ten hand-overs while somebody writes through a follower: no write fails, and none waits for long.
    let (mut writes, mut longest) = (0, Duration::ZERO);
    let (done, mut is_done) = tokio::sync::watch::channel(false);
    let (moved, ()) = tokio::join!(
        async {
            let mut moved = 0;
            for round in 0..10 {
                let to = [&s2, &s1][round % 2].id();
                let reply = transfer(format!("?id={to}")).await;
                assert_eq!(reply.status, 200, "{}", reply.body);
                eventually("it leads", || async { [&s2, &s1][round % 2].is_leader().then_some(()) }).await;
                moved += 1;
                tokio::time::sleep(Duration::from_millis(100)).await;
            }
            done.send_replace(true);
            moved
        },
        async {
            while !*is_done.borrow_and_update() {
                let started = tokio::time::Instant::now();
                let reply = put(&s3, "/v1/mesh/tokens", &json!({ "Role": "agent", "TTL": "1s" })).await;
                assert_eq!(reply.status, 200, "{}", reply.body);
                (writes, longest) = (writes + 1, longest.max(started.elapsed()));
            }
        }
    );
    println!("{moved} hand-overs during {writes} writes, the longest took {longest:?}");
    assert!(writes >= 10 && longest < Duration::from_secs(3), "{writes} {longest:?}");

    // The leader is told to go: it hands over first, ends, and is refused when it comes back.
    assert!(s1.is_leader());
    let gone = s1.rpc_address();
    let reply = delete(&s1, &format!("/v1/operator/raft/peer?address={gone}")).await;
    assert_eq!(reply.status, 200, "{}", reply.body);
    eventually("two voters", || async { (voters(&s2).await? == 2).then_some(()) }).await;
    let told = tokio::time::timeout(Duration::from_secs(10), s1.removed()).await.expect("it is told");
    assert!(told.contains("was removed") && told.contains("meshctl token create -role server"), "{told}");
    let http = s1.http_address();
    s1.shutdown().await;
    let mut back = config(dir.path(), "s1", Mode::Resume);
    (back.rpc_bind, back.http_bind) = (gone, http);
    let s1 = Server::start(back).await.unwrap();
    tokio::time::timeout(Duration::from_secs(10), s1.removed()).await.expect("it is told again");
    s1.shutdown().await;
    assert_eq!(voters(&s2).await, Some(2));

    // Down to one, which cannot go; a leader that stops cleanly is not waited for.
    let (leader, other) = if s2.is_leader() { (s2, s3) } else { (s3, s2) };
    let reply = put(&other, "/v1/mesh/tokens", &json!({ "Role": "agent" })).await;
    assert_eq!(reply.status, 200);
    let reply = delete(&other, &format!("/v1/operator/raft/peer?id={}", other.id())).await;
    assert_eq!(reply.status, 200, "{}", reply.body);
    let reply = delete(&leader, &format!("/v1/operator/raft/peer?id={}", leader.id())).await;
    assert!(reply.status == 400 && reply.body.contains("nobody else can lead"), "{}", reply.body);
    register(&leader).await;
    other.shutdown().await;
    leader.shutdown().await;
}

#[tokio::test]
async fn of_two_servers_either_can_be_removed_though_both_have_to_agree() {
    let dir = tempfile::tempdir().unwrap();
    for round in 0..4 {
        let dir = dir.path().join(round.to_string());
        let s1 = init(&dir).await;
        let s2 = join(&dir, "s2", &s1).await;
        eventually("two voters", || async { (voters(&s1).await? == 2).then_some(()) }).await;
        // The one that goes leads in every other round, and is asked itself or the other one.
        let (goes, stays) = if round % 2 == 0 { (&s1, &s2) } else { (&s2, &s1) };
        let asked = if round < 2 { goes } else { stays };
        let reply = delete(asked, &format!("/v1/operator/raft/peer?id={}", goes.id())).await;
        assert_eq!(reply.status, 200, "round {round}: {}", reply.body);
        tokio::time::timeout(Duration::from_secs(10), goes.removed()).await.expect("it is told");
        register(stays).await;
        assert_eq!(voters(stays).await, Some(1));
        s1.shutdown().await;
        s2.shutdown().await;
    }
}

async fn put_empty(server: &Server, path: String) -> support::Reply {
    put(server, &path, &json!({})).await
}

#[tokio::test]
async fn a_leader_that_stops_cleanly_hands_over() {
    let dir = tempfile::tempdir().unwrap();
    let [leader, second, third] = three(dir.path()).await;
    let (gap, ()) = tokio::join!(
        async {
            tokio::time::sleep(Duration::from_millis(20)).await;
            let mut longest = Duration::ZERO;
            for _ in 0..40 {
                let started = tokio::time::Instant::now();
                let reply = put(&second, "/v1/mesh/tokens", &json!({ "Role": "agent", "TTL": "1s" })).await;
                assert_eq!(reply.status, 200, "{}", reply.body);
                longest = longest.max(started.elapsed());
            }
            longest
        },
        leader.shutdown()
    );
    println!("the longest write across a clean stop took {gap:?}");
    assert!(second.is_leader() || third.is_leader());
    second.shutdown().await;
    third.shutdown().await;
}

#[tokio::test]
async fn a_saved_state_comes_back_everywhere_and_watchers_and_agents_notice() {
    let dir = tempfile::tempdir().unwrap();
    let [leader, follower, third] = three(dir.path()).await;
    let (credentials, id) = agent(&leader, "n1").await;
    let mut session = FakeAgent::open(leader.rpc_address(), &credentials, node(id, "n1", 1)).await.unwrap();
    register(&follower).await;
    let (_, allocs) = session.expect(|message| allocations(message).filter(|(_, a)| a.len() == 2)).await;
    session.send(AgentMessage::Allocs(allocs.iter().map(|alloc| running(alloc.id)).collect())).await;
    eventually("both run", || async {
        let summary = get(&follower, "/v1/job/web/summary").await.json();
        (summary["Summary"]["app"]["Running"] == 2).then_some(())
    })
    .await;

    let (status, file) = raw(&follower, "GET", "/v1/operator/snapshot", b"").await;
    assert_eq!(status, 200);
    let (meta, image) = server::read_snapshot(&file).unwrap();
    assert_eq!((meta.rows["Jobs"], meta.rows["Allocations"], image.jobs.len()), (1, 2, 1));

    // Afterwards everything goes wrong.
    request(&leader, "DELETE", "/v1/job/web?purge=true", "", "localhost").await.json();
    let late = JOB.replace("\"web\"", "\"late\"");
    let late = put(&leader, "/v1/jobs/parse", &json!({ "JobHCL": late, "Canonicalize": true })).await.json();
    put(&leader, "/v1/jobs", &json!({ "Job": late })).await.json();
    let (before, allocs) = session.expect(|m| allocations(m).filter(|(_, a)| a.iter().any(is_of_late))).await;
    let stopped =
        |alloc: &model::Allocation| model::AllocUpdate { client: ClientStatus::Complete, ..running(alloc.id) };
    let webs = allocs.iter().filter(|alloc| !is_of_late(alloc)).map(stopped).collect();
    session.send(AgentMessage::Allocs(webs)).await;
    eventually("the job is gone", || async { (get(&third, "/v1/job/web").await.status == 404).then_some(()) }).await;

    let mut damaged = file.clone();
    damaged[file.len() / 2] ^= 1;
    for wrong in [&damaged[..], b"PK\x03\x04", &file[..file.len() - 1]] {
        let (status, reason) = raw(&follower, "PUT", "/v1/operator/snapshot", wrong).await;
        assert_eq!(status, 400, "{}", String::from_utf8_lossy(&reason));
    }

    let index = get(&third, "/v1/jobs").await.header("x-nomad-index").unwrap().parse::<u64>().unwrap();
    let mut events = Events::open(&third, "topic=Job").await;
    let path = format!("/v1/jobs?index={index}&wait=10s");
    let (watched, (status, reply)) =
        tokio::join!(get(&third, &path), raw(&follower, "PUT", "/v1/operator/snapshot", &file));
    assert_eq!(status, 200, "{}", String::from_utf8_lossy(&reply));
    assert!(watched.header("x-nomad-index").unwrap().parse::<u64>().unwrap() > index);
    for server in [&leader, &follower, &third] {
        eventually("the snapshot's jobs and no others", || async {
            let jobs = get(server, "/v1/jobs").await.json();
            (jobs.as_array()?.len() == 1 && jobs[0]["ID"] == "web").then_some(())
        })
        .await;
        assert_eq!(voters(server).await, Some(3));
    }
    let mut last = None;
    while let Some(line) = events.next().await {
        last = Some(line);
    }
    assert!(last.unwrap()["Error"].as_str().unwrap().contains("restored"));

    // The agent has to say hello again, and is given what the snapshot says under a newer generation.
    assert!(session.expect_end().await);
    let mut session = FakeAgent::open(leader.rpc_address(), &credentials, node(id, "n1", 2)).await.unwrap();
    let (after, allocs) = session.expect(|m| allocations(m).filter(|(_, a)| a.len() == 2)).await;
    assert!(after > before && !allocs.iter().any(is_of_late), "{before} {after}");
    for server in [follower, third, leader] {
        server.shutdown().await;
    }
}

fn is_of_late(alloc: &model::Allocation) -> bool {
    alloc.job.id.0 == "late"
}

#[tokio::test]
async fn events_are_streamed_in_order_filtered_and_resumed() {
    let dir = tempfile::tempdir().unwrap();
    let server = init(dir.path()).await;
    let mut all = Events::open(&server, "").await;
    let mut evals = Events::open(&server, "topic=Evaluation:web&topic=Node").await;
    tokio::time::sleep(Duration::from_millis(100)).await;
    register(&server).await;
    let kind = |topic: &str, kind: &str, key: &str| (topic.to_owned(), kind.to_owned(), key.to_owned());
    let (first, events) = all.batch().await;
    assert!(events.contains(&kind("Job", "JobRegistered", "web")), "{events:?}");
    assert!(
        events.iter().any(|(topic, kind, _)| (topic.as_str(), kind.as_str()) == ("Evaluation", "EvaluationUpdated"))
    );
    let (index, events) = evals.batch().await;
    assert_eq!((index, events.len()), (first, 1));
    let (second, _) = all.batch().await;
    assert!(second > first);

    // With a node: its registration, the plan, and what the agent reports, each under the index of its command.
    let (credentials, id) = agent(&server, "n1").await;
    let mut session = FakeAgent::open(server.rpc_address(), &credentials, node(id, "n1", 1)).await.unwrap();
    let (_, allocs) = session.expect(|message| allocations(message).filter(|(_, a)| a.len() == 2)).await;
    session.send(AgentMessage::Allocs(allocs.iter().map(|alloc| running(alloc.id)).collect())).await;
    let mut seen = Vec::new();
    let mut last = second;
    while !seen
        .iter()
        .any(|(topic, kind, _): &(String, String, String)| topic == "Service" && kind == "ServiceRegistration")
        || !seen.iter().any(|(_, kind, _)| kind == "AllocationUpdated")
    {
        let (index, events) = all.batch().await;
        assert!(index > last);
        (last, seen) = (index, [seen, events].concat());
    }
    assert!(seen.contains(&kind("Node", "NodeRegistration", &id.to_string())), "{seen:?}");
    assert_eq!(seen.iter().filter(|(_, kind, _)| kind == "PlanResult").count(), 2, "{seen:?}");
    let alloc = allocs[0].id.to_string();
    assert!(seen.contains(&kind("Allocation", "AllocationUpdated", &alloc)), "{seen:?}");

    // From an index on it is the same again.
    let mut again = Events::open(&server, &format!("index={first}")).await;
    assert_eq!(again.batch().await.0, first);
    assert_eq!(again.batch().await.0, second);
    let wrong = get(&server, "/v1/event/stream?topic=Jobs").await;
    assert!(wrong.status == 400 && wrong.body.contains("Allocation"), "{}", wrong.body);
    server.shutdown().await;
    while all.next().await.is_some() {}
}

fn forming(
    dir: &std::path::Path,
    name: &str,
    port: u16,
    ports: &[u16],
    secret: &ClusterSecret,
) -> server::ServerConfig {
    let at = |port: u16| std::net::SocketAddr::from(([127, 0, 0, 1], port));
    let Mode::Init { alloc_range, vip_range } = Mode::init() else { unreachable!("it is the mode of init") };
    let servers = ports.iter().map(|port| at(*port)).collect();
    let mut config = config(dir, name, Mode::Form { expect: 3, servers, alloc_range, vip_range });
    config.rpc_bind = at(port);
    config.cluster_secret = Some(secret.clone());
    config
}

/// Ports that were free a moment ago: servers that form a cluster have to name theirs before they listen.
fn free_ports<const N: usize>() -> [u16; N] {
    let listeners = [(); N].map(|()| std::net::TcpListener::bind("127.0.0.1:0").unwrap());
    listeners.map(|listener| listener.local_addr().unwrap().port())
}

#[tokio::test]
async fn servers_form_a_cluster_by_themselves_and_later_ones_join_it() {
    let dir = tempfile::tempdir().unwrap();
    let ports: [u16; 5] = free_ports();
    let secret = ClusterSecret::generate().unwrap();
    let start =
        |name: &'static str, at: usize| Server::start(forming(dir.path(), name, ports[at], &ports[..3], &secret));
    let (s1, s2, s3) = tokio::join!(start("s1", 0), start("s2", 1), start("s3", 2));
    let (s1, s2, s3) = (s1.unwrap(), s2.unwrap(), s3.unwrap());
    assert_eq!(s1.id().0, 1, "the first by name founds");
    for server in [&s1, &s2, &s3] {
        eventually("three voters", || async { (voters(server).await? == 3).then_some(()) }).await;
    }

    // One that comes later finds a cluster; one without the secret finds nobody.
    let s4 = start("s4", 3).await.unwrap();
    eventually("the fourth belongs", || async {
        let servers = get(&s1, "/v1/operator/raft/configuration").await.json()["Servers"].as_array()?.len();
        (servers == 4).then_some(())
    })
    .await;
    let stranger = forming(dir.path(), "s5", ports[4], &ports[..3], &ClusterSecret::generate().unwrap());
    let waits = tokio::time::timeout(Duration::from_secs(3), Server::start(stranger)).await;
    assert!(waits.is_err(), "it must not get in, nor found a cluster of its own");

    // The same command starts a server again.
    s4.shutdown().await;
    let s4 = start("s4", 3).await.unwrap();
    register(&s4).await;
    for server in [s4, s3, s2, s1] {
        server.shutdown().await;
    }
}

#[tokio::test]
async fn keys_and_variables_are_kept_compared_and_watched_on_every_server() {
    let dir = tempfile::tempdir().unwrap();
    let [leader, follower, third] = three(dir.path()).await;
    eventually("the cluster knows of keys", || async {
        (raw(&follower, "PUT", "/v1/kv/app/a", b"one").await.0 == 200).then_some(())
    })
    .await;
    assert_eq!(raw(&third, "GET", "/v1/kv/app/a?raw", b"").await, (200, b"one".to_vec()));
    let entry = get(&third, "/v1/kv/app/a").await;
    let index = entry.json()[0]["ModifyIndex"].as_u64().unwrap();
    assert_eq!(entry.header("X-Consul-Index").unwrap(), index.to_string());
    assert_eq!(entry.json()[0]["Value"], "b25l");
    assert_eq!(raw(&follower, "PUT", "/v1/kv/app/a?cas=0", b"two").await.1, b"false");
    assert_eq!(raw(&follower, "PUT", &format!("/v1/kv/app/a?cas={index}"), b"two").await.1, b"true");

    // A watcher of one key sleeps through changes of another.
    let index = get(&third, "/v1/kv/app/a").await.json()[0]["ModifyIndex"].as_u64().unwrap();
    let path = format!("/v1/kv/app/a?index={index}&wait=10s");
    let began = std::time::Instant::now();
    let (answer, ()) = tokio::join!(get(&third, &path), async {
        raw(&leader, "PUT", "/v1/kv/other", b"x").await;
        tokio::time::sleep(Duration::from_millis(300)).await;
        raw(&leader, "PUT", "/v1/kv/app/a", b"three").await;
    });
    assert!(began.elapsed() >= Duration::from_millis(300), "it was woken by another key");
    assert_eq!(answer.json()[0]["Value"], "dGhyZWU=");
    raw(&leader, "PUT", "/v1/kv/app/b/c", b"").await;
    assert_eq!(get(&follower, "/v1/kv/app/?keys&separator=/").await.json(), json!(["app/a", "app/b/"]));
    assert_eq!(raw(&leader, "PUT", "/v1/kv/app/a?acquire=x", b"").await.0, 501);
    assert_eq!(raw(&leader, "DELETE", "/v1/kv/app/?recurse", b"").await.1, b"true");
    assert_eq!(raw(&third, "GET", "/v1/kv/app/?keys", b"").await.0, 404);

    let body = json!({ "Items": { "user": "root", "password": "s3cret-of-nobody" } });
    let set = put(&follower, "/v1/var/nomad/jobs/web?cas=0", &body).await.json();
    assert_eq!(set["Items"]["password"], "s3cret-of-nobody");
    let conflict = put(&leader, "/v1/var/nomad/jobs/web?cas=0", &body).await;
    assert_eq!(conflict.status, 409, "{}", conflict.body);
    assert!(put(&leader, "/v1/var/nomad/other", &body).await.body.contains("reserved"));
    let listed = get(&third, "/v1/vars?prefix=nomad/").await;
    assert_eq!(listed.json()[0]["Path"], "nomad/jobs/web");
    assert!(!listed.body.contains("s3cret"), "a list shows no items");
    let (status, snapshot) = raw(&third, "GET", "/v1/operator/snapshot", b"").await;
    let shows = snapshot.windows(6).any(|part| part == b"s3cret");
    assert!(status == 200 && !shows, "a snapshot holds no items in the clear");
    assert_eq!(raw(&leader, "DELETE", "/v1/var/nomad/jobs/web", b"").await.0, 204);
    assert_eq!(get(&third, "/v1/var/nomad/jobs/web").await.status, 404);
    for server in [third, follower, leader] {
        server.shutdown().await;
    }
}

#[tokio::test]
async fn agents_look_up_keys_and_only_their_own_jobs_variables() {
    let dir = tempfile::tempdir().unwrap();
    let server = init(dir.path()).await;
    eventually("keys", || async { (raw(&server, "PUT", "/v1/kv/k", b"v").await.0 == 200).then_some(()) }).await;
    for path in ["nomad/jobs/web", "nomad/jobs/other"] {
        put(&server, &format!("/v1/var/{path}"), &json!({ "Items": { "a": "b" } })).await.json();
    }
    let (credentials, id) = agent(&server, "n1").await;
    let mut session = FakeAgent::open(server.rpc_address(), &credentials, node(id, "n1", 1)).await.unwrap();
    register(&server).await;
    let (_, allocs) = session.expect(|message| allocations(message).filter(|(_, a)| a.len() == 2)).await;
    let mut client = pb::agents_client::AgentsClient::new(channel(server.rpc_address(), &credentials));
    let alloc_id = allocs[0].id.0.as_bytes().to_vec();
    let variable = |path: &str, alloc_id: Vec<u8>| {
        let what = pb::watch_request::What::Variable(pb::VariablePath { path: path.to_owned(), alloc_id });
        pb::WatchRequest { index: 0, wait_ms: 0, what: Some(what) }
    };
    let own = client.watch(variable("nomad/jobs/web", alloc_id.clone())).await.unwrap().into_inner();
    assert_eq!((own.found, own.entries[0].value.as_slice()), (true, b"b".as_slice()));
    for (path, alloc) in [("nomad/jobs/other", alloc_id.clone()), ("nomad/jobs/web", vec![7; 16])] {
        let refused = client.watch(variable(path, alloc)).await.unwrap_err();
        assert_eq!(refused.code(), Code::PermissionDenied, "{path}");
    }
    let key = |index, wait_ms| {
        let what = pb::watch_request::What::Key("k".to_owned());
        pb::WatchRequest { index, wait_ms, what: Some(what) }
    };
    let first = client.watch(key(0, 0)).await.unwrap().into_inner();
    let (second, _) = tokio::join!(client.watch(key(first.index, 10_000)), raw(&server, "PUT", "/v1/kv/k", b"w"));
    assert_eq!(second.unwrap().into_inner().entries[0].value, b"w");
    drop(session);
    server.shutdown().await;
}

#[tokio::test]
async fn a_node_that_its_peers_get_no_answer_from_is_off_the_maps_and_then_down() {
    let dir = tempfile::tempdir().unwrap();
    let server = init(dir.path()).await;
    let mut agents = Vec::new();
    for (number, name) in ["a", "bb", "ccc"].into_iter().enumerate() {
        let (credentials, id) = agent(&server, name).await;
        let mut node = node(id, name, 1);
        node.address = std::net::IpAddr::from([127, 0, 0, number as u8 + 1]);
        let mut session = FakeAgent::open(server.rpc_address(), &credentials, node).await.unwrap();
        assert!(matches!(session.next().await, Some(ServerMessage::Welcome { server_level: 2.., .. })));
        agents.push((id, session));
    }
    let ids: Vec<NodeId> = agents.iter().map(|(id, _)| *id).collect();
    let report = |own: usize, lost: Option<usize>| AgentMessage::Probes {
        answering: (0..3).filter(|at| *at != own && Some(*at) != lost).map(|at| ids[at]).collect(),
        unreachable: lost.into_iter().map(|at| ids[at]).collect(),
    };
    for (own, (_, session)) in agents.iter().enumerate() {
        session.send(report(own, None)).await;
    }
    // One peer alone proves nothing while the agent speaks; both of them do.
    agents[0].1.send(report(0, Some(2))).await;
    tokio::time::sleep(Duration::from_millis(500)).await;
    assert_eq!(node_status(&server, ids[2]).await, "ready");
    agents[1].1.send(report(1, Some(2))).await;
    let began = std::time::Instant::now();
    eventually("it is off the maps", || async { (node_status(&server, ids[2]).await == "disconnected").then_some(()) })
        .await;
    assert!(began.elapsed() < Duration::from_millis(1500), "{:?}", began.elapsed());
    let shown = get(&server, &format!("/v1/node/{}", ids[2])).await.json();
    assert!(shown["StatusDescription"].as_str().unwrap().contains("2 of 2 peers"), "{shown}");
    // Its agent still speaks, so it is not given up; without it, it is.
    let (_, session) = agents.pop().unwrap();
    drop(session);
    eventually("it is down", || async { (node_status(&server, ids[2]).await == "down").then_some(()) }).await;
    assert_eq!(node_status(&server, ids[0]).await, "ready");
    drop(agents);
    server.shutdown().await;
}

#[tokio::test]
async fn autopilot_removes_a_dead_server_and_says_how_the_others_are() {
    let dir = tempfile::tempdir().unwrap();
    let [leader, follower, third] = three(dir.path()).await;
    let settings = json!({ "DeadServerThreshold": "2s", "CleanupDeadServers": true });
    eventually("settings can be changed", || async {
        (put(&follower, "/v1/operator/autopilot/configuration", &settings).await.status == 200).then_some(())
    })
    .await;
    let shown = get(&follower, "/v1/operator/autopilot/configuration").await.json();
    assert_eq!((&shown["DeadServerThreshold"], &shown["MaxTrailingLogs"]), (&json!("2000ms"), &json!(250)));
    let wrong =
        put(&leader, "/v1/operator/autopilot/configuration", &json!({ "ServerStabilizationTime": "soon" })).await;
    assert!(wrong.status == 400 && wrong.body.contains("soon"), "{}", wrong.body);
    eventually("all are healthy", || async {
        let health = get(&leader, "/v1/operator/autopilot/health").await.json();
        (health["Healthy"] == true && health["FailureTolerance"] == 1).then_some(())
    })
    .await;
    third.shutdown().await;
    eventually("the dead server is removed", || async { (voters(&leader).await? == 2).then_some(()) }).await;
    for server in [follower, leader] {
        server.shutdown().await;
    }
}

/// Jobs that other jobs are made from, and what is asked of jobs beside registering them.
#[tokio::test]
async fn jobs_are_made_from_jobs_restarted_and_forgotten() {
    let dir = tempfile::tempdir().unwrap();
    let server = init(dir.path()).await;
    let task = json!({ "Name": "t", "Driver": "exec", "Config": { "command": "/bin/true" } });
    let job = |id: &str, more: serde_json::Value| {
        let mut job = json!({ "ID": id, "Type": "batch", "TaskGroups": [{ "Name": "g", "Tasks": [task] }] });
        more.as_object().unwrap().iter().for_each(|(key, value)| job[key] = value.clone());
        json!({ "Job": job })
    };
    let rule = json!({ "Payload": "required", "MetaRequired": ["day"] });
    let registered = put(&server, "/v1/jobs", &job("etl", json!({ "ParameterizedJob": rule }))).await;
    assert_eq!((registered.status, registered.json()["EvalID"].as_str()), (200, Some("")), "{}", registered.body);
    let dispatch = |token: &str, meta: serde_json::Value| {
        let path = format!("/v1/job/etl/dispatch?idempotency_token={token}");
        let body = json!({ "Payload": "aGVsbG8=", "Meta": meta });
        let server = &server;
        async move { put(server, &path, &body).await }
    };
    let refused = dispatch("", json!({})).await;
    assert!(refused.status == 400 && refused.body.contains("day"), "{}", refused.body);
    let first = dispatch("a", json!({ "day": "monday" })).await.json();
    let again = dispatch("a", json!({ "day": "monday" })).await.json();
    let other = dispatch("b", json!({ "day": "tuesday" })).await.json();
    assert_eq!(first["DispatchedJobID"], again["DispatchedJobID"]);
    assert_ne!(first["DispatchedJobID"], other["DispatchedJobID"]);
    let id = first["DispatchedJobID"].as_str().unwrap().replace('/', "%2F");
    let child = get(&server, &format!("/v1/job/{id}")).await.json();
    assert_eq!((child["ParentID"].as_str(), child["Meta"]["day"].as_str()), (Some("etl"), Some("monday")), "{child}");
    // Without a node their evaluations wait.
    eventually("both wait for a node", || async {
        let summary = get(&server, "/v1/job/etl/summary").await.json();
        (summary["Children"]["Pending"] == 2).then_some(())
    })
    .await;

    let wrong =
        put(&server, "/v1/jobs", &job("cron", json!({ "Periodic": { "Enabled": true, "Specs": ["61 * * * *"] } })))
            .await;
    assert!(wrong.status == 400 && wrong.body.contains("crons"), "{}", wrong.body);
    let every_second = json!({ "Enabled": true, "Specs": ["* * * * * * *"], "TimeZone": "Europe/Berlin" });
    let registered = put(&server, "/v1/jobs", &job("cron", json!({ "Periodic": every_second }))).await;
    assert_eq!(registered.status, 200, "{}", registered.body);
    eventually("the calendar launches it", || async {
        let jobs = get(&server, "/v1/jobs?prefix=cron%2Fperiodic-").await.json();
        (jobs.as_array()?.len() >= 2).then_some(())
    })
    .await;
    let forced = put(&server, "/v1/job/cron/periodic/force", &json!({})).await;
    assert!(forced.status == 200 && forced.json()["EvalID"].is_string(), "{}", forced.body);
    request(&server, "DELETE", "/v1/job/cron", "", "localhost").await.json();

    register(&server).await;
    let restarted = put(&server, "/v1/mesh/job/web/restart", &json!({})).await;
    assert_eq!(restarted.status, 200, "{}", restarted.body);
    assert_eq!(get(&server, "/v1/job/web").await.json()["Version"], 1);
    assert_eq!(put(&server, "/v1/job/web/stable", &json!({ "JobVersion": 0, "Stable": true })).await.status, 200);
    assert_eq!(put(&server, "/v1/job/web/evaluate", &json!({ "JobID": "web" })).await.status, 200);
    assert_eq!(put(&server, "/v1/job/etl/evaluate", &json!({ "JobID": "etl" })).await.status, 400);

    // What is stopped and over goes when somebody asks, with its children; what waits stays.
    request(&server, "DELETE", "/v1/job/etl", "", "localhost").await.json();
    request(&server, "DELETE", &format!("/v1/job/{id}"), "", "localhost").await.json();
    eventually("the dispatched job is forgotten", || async {
        put(&server, "/v1/system/gc", &json!({})).await;
        (get(&server, &format!("/v1/job/{id}")).await.status == 404).then_some(())
    })
    .await;
    assert_eq!(get(&server, "/v1/job/web").await.status, 200);
    server.shutdown().await;
}

#[tokio::test]
async fn agents_get_changes_that_lead_to_the_same_state_as_the_whole() {
    let dir = tempfile::tempdir().unwrap();
    let server = init(dir.path()).await;
    let (credentials, id) = agent(&server, "n1").await;
    let at = server.rpc_address();
    let mut session = FakeAgent::open_at_level(2, at, &credentials, node(id, "n1", 1)).await.unwrap();
    let (mut held, mut generation, mut deltas) = (std::collections::BTreeMap::new(), None, 0);
    register(&server).await;
    loop {
        match session.next().await.unwrap() {
            ServerMessage::Allocations { generation: new, allocs } => {
                held = allocs.into_iter().map(|alloc| (alloc.id, alloc)).collect();
                generation = Some(new);
            }
            ServerMessage::AllocationsDelta { base, generation: new, allocs, gone } => {
                assert_eq!(Some(base), generation, "a change of what was told last");
                gone.iter().for_each(|id| drop(held.remove(id)));
                held.extend(allocs.into_iter().map(|alloc| (alloc.id, alloc)));
                (generation, deltas) = (Some(new), deltas + 1);
            }
            _ => {}
        }
        if deltas == 1 && held.len() == 2 {
            let ids: Vec<_> = held.keys().copied().collect();
            session.send(AgentMessage::Allocs(ids.into_iter().map(running).collect())).await;
        }
        if held.len() == 2 && held.values().all(|alloc: &model::Allocation| alloc.client == ClientStatus::Running) {
            break;
        }
    }
    assert!(deltas >= 2, "{deltas}");
    drop(session);
    server.shutdown().await;
}

#[tokio::test]
async fn one_server_that_is_left_goes_on_alone_when_told() {
    let dir = tempfile::tempdir().unwrap();
    let [s1, s2, s3] = three(dir.path()).await;
    register(&s1).await;
    let rpc = s2.rpc_address();
    eventually("the second has the job", || async {
        (get(&s2, "/v1/job/web?stale").await.status == 200).then_some(())
    })
    .await;
    for server in [s1, s2, s3] {
        server.shutdown().await;
    }
    assert!(server::recover(&dir.path().join("s2"), "other").is_err(), "the name must fit");
    let removed = server::recover(&dir.path().join("s2"), "s2").unwrap();
    assert_eq!(removed.len(), 2);
    let mut alone = config(dir.path(), "s2", Mode::Resume);
    alone.rpc_bind = rpc;
    let alone = Server::start(alone).await.unwrap();
    eventually("it leads alone", || async { (voters(&alone).await? == 1).then_some(()) }).await;
    assert_eq!(get(&alone, "/v1/job/web").await.status, 200, "what it knew is kept");
    eventually("the others are off the list", || async {
        let servers = get(&alone, "/v1/operator/raft/configuration").await.json()["Servers"].as_array()?.len();
        (servers == 1).then_some(())
    })
    .await;
    let s4 = join(dir.path(), "s4", &alone).await;
    eventually("a new one joins", || async { (voters(&alone).await? == 2).then_some(()) }).await;
    for server in [s4, alone] {
        server.shutdown().await;
    }
}
