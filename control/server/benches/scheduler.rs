//! Scheduling end to end: jobs submitted by HTTP to three servers in this process, with Raft between them and fsync on each,
//! until everything is placed and committed. Nodes are rows that the servers' own RPC registers; no agent runs.
//!
//! Prints a table with the bars and writes target/bench/scheduler-server.json. `quick` leaves out the two million.

#![expect(clippy::unwrap_used, reason = "a benchmark that cannot go on has nothing to report")]

#[path = "../tests/support/mod.rs"]
#[expect(dead_code, reason = "the tests use the rest")]
mod support;

use identity::Credentials;
use model::{Command, Envelope, Node, NodeId, NodeResources, Timestamp};
use serde_json::{Value, json};
use server::{Mode, Server, Timing};
use std::fmt::Write as _;
use std::path::Path;
use std::sync::Arc;
use std::time::{Duration, Instant};
use wire::pb;

const REPORT: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/../../target/bench/scheduler-server.json");
const WHOLE_DAY: Duration = Duration::from_secs(24 * 3600);

fn main() {
    let quick = std::env::args().any(|argument| argument == "quick");
    let runtime = tokio::runtime::Builder::new_multi_thread().enable_all().build().unwrap();
    let mut report = Report::default();
    runtime.block_on(async {
        one_large_job(&mut report).await;
        many_small_jobs(&mut report).await;
        sustained(&mut report, if quick { 10 } else { 60 }).await;
        if !quick {
            two_million(&mut report).await;
        }
    });
    report.write();
}

#[derive(Default)]
struct Report {
    rows: Vec<(String, f64, String)>,
}

impl Report {
    fn row(&mut self, name: &str, value: f64, unit: &str, bar: &str) {
        println!("{name:<62} {value:>12.1} {unit:<14} {bar}");
        self.rows.push((format!("{name} [{unit}]"), value, bar.to_owned()));
    }

    fn write(&self) {
        let mut text = String::from("{\n");
        for (at, (name, value, bar)) in self.rows.iter().enumerate() {
            let comma = if at + 1 < self.rows.len() { "," } else { "" };
            let _ = writeln!(text, "  {name:?}: {{ \"value\": {value:.3}, \"bar\": {bar:?} }}{comma}");
        }
        text.push_str("}\n");
        std::fs::create_dir_all(Path::new(REPORT).parent().unwrap()).unwrap();
        std::fs::write(REPORT, text).unwrap();
        println!("written to {REPORT}");
    }
}

/// Three servers with their nodes, gone when dropped.
struct Cluster {
    servers: Vec<Server>,
    _dir: tempfile::TempDir,
}

impl Cluster {
    async fn with_nodes(count: u32, resources: NodeResources) -> Self {
        let dir = tempfile::tempdir().unwrap();
        let patient = |name: &str, mode: Mode| {
            let mut config = support::config(dir.path(), name, mode);
            // Nodes without a session stay ready for as long as this runs.
            config.timing = Timing { heartbeat_interval: WHOLE_DAY, node_down_after: WHOLE_DAY, ..Timing::default() };
            config
        };
        let first = Server::start(patient("s1", Mode::init())).await.unwrap();
        let mut servers = vec![first];
        for name in ["s2", "s3"] {
            let token = support::token(&servers[0], model::Role::Server).await;
            let mode = Mode::Join { servers: vec![servers[0].rpc_address()], token };
            servers.push(Server::start(patient(name, mode)).await.unwrap());
        }
        support::eventually("three servers vote", || async {
            let peers = support::get(&servers[0], "/v1/operator/raft/configuration").await.json();
            (peers["Servers"].as_array()?.iter().filter(|server| server["Voter"] == true).count() == 3).then_some(())
        })
        .await;
        let cluster = Self { servers, _dir: dir };
        cluster.register(count, resources).await;
        cluster
    }

    fn leader(&self) -> &Server {
        self.servers.iter().find(|server| server.is_leader()).unwrap_or(&self.servers[0])
    }

    async fn register(&self, count: u32, resources: NodeResources) {
        let papers = |file: &str| std::fs::read_to_string(self._dir.path().join("s1").join(file)).unwrap();
        let both = papers("server.pem");
        let credentials = Credentials::from_pem(&papers("ca.pem"), &both, &both).unwrap();
        let channel = support::channel(self.leader().rpc_address(), &credentials);
        let numbers: Vec<u32> = (0..count).collect();
        for chunk in numbers.chunks(256) {
            let proposals = chunk.iter().map(|number| {
                let mut client = pb::servers_client::ServersClient::new(channel.clone());
                let envelope = wire::command::encode(&Envelope {
                    proposed_at: Timestamp::from_secs(1),
                    feature_level: 1,
                    command: Command::RegisterNode(Box::new(node(*number, resources))),
                });
                async move { client.propose(pb::ProposeRequest { envelope }).await.unwrap() }
            });
            futures::future::join_all(proposals).await;
        }
    }

    /// Submits a job and waits until its evaluation has ended; how long that took.
    async fn place(&self, job: &Value) -> Duration {
        let began = Instant::now();
        let answer = support::put(self.leader(), "/v1/jobs", job).await.json();
        let path = format!("/v1/evaluation/{}", answer["EvalID"].as_str().unwrap());
        loop {
            let eval = support::get(self.leader(), &format!("{path}?stale")).await.json();
            match eval["Status"].as_str().unwrap() {
                "pending" => tokio::time::sleep(Duration::from_millis(2)).await,
                "complete" | "canceled" => return began.elapsed(),
                other => unreachable!("the evaluation is {other}: {eval}"),
            }
        }
    }

    async fn shutdown(self) {
        for server in self.servers {
            server.shutdown().await;
        }
    }
}

fn node(number: u32, resources: NodeResources) -> Node {
    let id = NodeId::from_random(u128::from(number) + 1);
    let address = std::net::IpAddr::from(std::net::Ipv4Addr::from(0x0a64_0000 + number + 1));
    Node { address, resources, ..support::node(id, &format!("n{number}"), 1) }
}

fn job(id: &str, count: u32, cpu: u32, memory: u32) -> Value {
    let resources = json!({ "CPU": cpu, "MemoryMB": memory });
    let task = json!({ "Name": "t", "Driver": "exec", "Config": { "command": "/bin/true" }, "Resources": resources });
    let group = json!({ "Name": "g", "Count": count, "Tasks": [task], "EphemeralDisk": { "SizeMB": 1 } });
    json!({ "Job": { "ID": id, "Type": "service", "TaskGroups": [group] } })
}

async fn one_large_job(report: &mut Report) {
    let room = NodeResources { cpu_mhz: 1_000_000, memory_mb: 1_000_000, disk_mb: 100_000 };
    let cluster = Cluster::with_nodes(4, room).await;
    cluster.place(&job("warm", 10, 1, 10)).await;
    let mut best = Duration::MAX;
    for turn in 0..5 {
        best = best.min(cluster.place(&job(&format!("large-{turn}"), 2000, 1, 10)).await);
    }
    report.row("one job of 2,000 on 4 nodes, submit to committed (best of 5)", best.as_secs_f64() * 1e3, "ms", "");
    report.row("  the same", 2000.0 / best.as_secs_f64(), "placements/s", "bar 20000");
    cluster.shutdown().await;
}

async fn many_small_jobs(report: &mut Report) {
    let room = NodeResources { cpu_mhz: 1_000_000, memory_mb: 1_000_000, disk_mb: 100_000 };
    let cluster = Arc::new(Cluster::with_nodes(4, room).await);
    cluster.place(&job("warm", 10, 1, 10)).await;
    let began = Instant::now();
    let submitters = (0..8).map(|submitter| {
        let cluster = Arc::clone(&cluster);
        tokio::spawn(async move {
            for number in 0..25 {
                cluster.place(&job(&format!("small-{submitter}-{number}"), 10, 1, 10)).await;
            }
        })
    });
    for submitter in submitters.collect::<Vec<_>>() {
        submitter.await.unwrap();
    }
    let took = began.elapsed().as_secs_f64();
    report.row("200 jobs of 10, 8 submitters that wait for each", 2000.0 / took, "placements/s", "bar 5000");
    Arc::into_inner(cluster).unwrap().shutdown().await;
}

/// A thousand small jobs a second, each in its own time, whatever became of those before it.
async fn sustained(report: &mut Report, secs: u32) {
    let room = NodeResources { cpu_mhz: 10_000_000, memory_mb: 10_000_000, disk_mb: 1_000_000 };
    let cluster = Arc::new(Cluster::with_nodes(100, room).await);
    cluster.place(&job("warm", 10, 1, 10)).await;
    let began = Instant::now();
    let mut jobs = Vec::new();
    for number in 0..secs * 1000 {
        let due = Duration::from_millis(u64::from(number));
        if let Some(wait) = due.checked_sub(began.elapsed()) {
            tokio::time::sleep(wait).await;
        }
        let cluster = Arc::clone(&cluster);
        jobs.push(tokio::spawn(async move { cluster.place(&job(&format!("steady-{number}"), 1, 1, 10)).await }));
    }
    let mut took = Vec::new();
    for job in jobs {
        took.push(job.await.unwrap().as_secs_f64());
    }
    took.sort_by(f64::total_cmp);
    let at = |share: f64| took[((took.len() - 1) as f64 * share) as usize] * 1e3;
    let rate = f64::from(secs * 1000) / began.elapsed().as_secs_f64();
    report.row(&format!("1,000 jobs a second for {secs} s on 100 nodes: placed"), rate, "jobs/s", "");
    report.row("  submit to placed, median", at(0.5), "ms", "");
    report.row("  submit to placed, p99", at(0.99), "ms", "bar 1000");
    Arc::into_inner(cluster).unwrap().shutdown().await;
}

async fn two_million(report: &mut Report) {
    let room = NodeResources { cpu_mhz: 400_000, memory_mb: 400_000, disk_mb: 100_000 };
    let cluster = Arc::new(Cluster::with_nodes(6100, room).await);
    let before = resident_mb();
    let began = Instant::now();
    let submitters = (0..8).map(|submitter| {
        let cluster = Arc::clone(&cluster);
        tokio::spawn(async move {
            for number in 0..125 {
                cluster.place(&job(&format!("c2m-{submitter}-{number}"), 2000, 1, 10)).await;
            }
        })
    });
    for submitter in submitters.collect::<Vec<_>>() {
        submitter.await.unwrap();
    }
    report.row("two million on 6,100 nodes, 1,000 jobs of 2,000", began.elapsed().as_secs_f64(), "s", "bar 120");
    report.row("  memory a server", (resident_mb() - before) / 3.0, "MiB", "bar 2048");
    Arc::into_inner(cluster).unwrap().shutdown().await;
}

/// Of this process, which is three servers and the submitters.
fn resident_mb() -> f64 {
    let status = std::fs::read_to_string("/proc/self/status").unwrap_or_default();
    let line = status.lines().find(|line| line.starts_with("VmRSS:")).unwrap_or_default();
    line.split_whitespace().nth(1).and_then(|kib| kib.parse::<f64>().ok()).unwrap_or_default() / 1024.0
}
