//! The product at work: a real job on three servers and three nodes, its traffic, and what it survives. Every line that is
//! printed as `ok` was checked; the first that does not hold ends the demo with an error.

use crate::progress::step;
use crate::{build, setup};
use anyhow::{Context, Result, ensure};
use netns::load::{Load, Tally};
use netns::{Cluster, ClusterOptions, Lab, artifacts, collide, wait_for};
use serde_json::Value;
use std::collections::{BTreeMap, BTreeSet};
use std::net::{Ipv4Addr, SocketAddr, SocketAddrV4};
use std::time::{Duration, Instant};

const JOB: &str = "examples/demo.nomad.hcl";
const JOB_NAME: &str = "demo";
/// Run once more under another name after the leader is gone.
const SECOND_JOB: &str = "examples/web.nomad.hcl";
const SECOND_NAME: &str = "hello";
const INSTANCES: usize = 6;
const CURLS: usize = 1000;
const CLIENT: &str = "10.78.0.2";
const TIME_LIMIT: Duration = Duration::from_secs(100);
/// A dead instance is to be out of every map by then.
const LEAVE_LIMIT: Duration = Duration::from_secs(2);
/// A container start is half a second here; the rest is slack for a busy machine.
const PATIENCE: Duration = Duration::from_secs(30);

pub fn run(keep: bool) -> Result<()> {
    step("prepare the machine", || setup::run().map(|()| String::new()))?;
    step("build the kernel programs and the binary", || {
        build::ebpf().and_then(|()| build::meshctl(false)).map(|()| String::new())
    })?;
    step("remove what killed or kept labs left behind", || {
        let reaped = [Lab::reap_dead()?, Lab::reap_kept()?].concat();
        Ok(if reaped.is_empty() { "nothing was left".to_owned() } else { reaped.join(", ") })
    })?;
    let started = Instant::now();
    let mut demo = Demo::lay()?;
    let result = demo.show();
    match &result {
        Ok(()) => demo.cluster.lab.passed(),
        Err(_) => eprintln!("{}", demo.cluster.logs()),
    }
    let ended = if keep { demo.keep() } else { step("clean up, and nothing is left behind", || demo.end()) };
    let took = started.elapsed();
    println!("the demo took {:.1} s after the build", took.as_secs_f64());
    result.and(ended)?;
    ensure!(took < TIME_LIMIT, "it must take less than {TIME_LIMIT:?}");
    Ok(())
}

struct Demo {
    cluster: Cluster,
}

impl Demo {
    fn lay() -> Result<Demo> {
        let mut cluster = None;
        step("lay out a client, a router, three servers and three nodes", || {
            cluster = Some(Cluster::lay("demo", ClusterOptions { servers: 3, nodes: 3 })?);
            Ok(String::new())
        })?;
        Ok(Demo { cluster: cluster.context("the lab was not laid")? })
    }

    fn show(&mut self) -> Result<()> {
        step("three servers: one makes the CA, two join with one-time tokens", || {
            self.cluster.start_servers()?;
            self.cluster.meshctl(&["server", "members"])
        })?;
        step("three agents join with one-time tokens", || {
            self.cluster.start_agents()?;
            self.cluster.meshctl(&["node", "status"])
        })?;
        step("meshctl job run examples/demo.nomad.hcl", || self.run_job())?;
        step("1,000 curls from the client to one node, port 80", || self.curls())?;
        step("the web servers' own logs show the client's address", || self.client_address())?;
        step("one client port to two node addresses at once, 60 times", || self.same_ports())?;
        step("inside an allocation: names", || self.names())?;
        step("inside an allocation: the VIP is balanced at the socket", || self.socket_hook())?;
        step("meshctl route, from the kernel's maps", || self.route_table())?;
        step("meshctl job status, alloc status", || self.status())?;
        let load = Load::start(&self.cluster.client, self.edge(0)?, 200)?;
        step("200 requests/s for 3 s, nothing broken", || {
            std::thread::sleep(Duration::from_secs(3));
            flawless(load.take())
        })?;
        step("a rolling update, three at a time", || self.roll_out(&load, "rolling", "max_parallel = 3"))?;
        step("an update that starts the new before it stops the old", || {
            self.roll_out(&load, "start-first", "max_parallel = 6\n      order = \"start-first\"")
        })?;
        step("a canary, and its promotion", || self.canary(&load))?;
        step("a batch job runs once to its end", || self.batch())?;
        step("kill -9 one web server", || self.kill_web_server(&load))?;
        step("kill -9 an agent for five seconds", || self.kill_agent(&load))?;
        step("kill -9 the Raft leader", || self.kill_leader(&load))?;
        drop(load);
        Ok(())
    }

    fn run_job(&self) -> Result<String> {
        let monitored = self.cluster.meshctl(&["job", "run", &artifacts::repository_file(JOB)])?;
        let allocations = wait_for("six running, healthy allocations", PATIENCE, || {
            let running = self.running()?;
            Ok((running.len() == INSTANCES && self.active_backends(0)? == INSTANCES).then_some(running))
        })?;
        let addresses: BTreeSet<&str> = allocations.iter().map(|alloc| alloc.address.as_str()).collect();
        ensure!(addresses.len() == INSTANCES, "each allocation has an address of its own, but these are {addresses:?}");
        let namespaces: BTreeSet<u64> =
            allocations.iter().map(|alloc| self.namespace_of(alloc)).collect::<Result<_>>()?;
        ensure!(namespaces.len() == INSTANCES, "each allocation has a network namespace of its own");
        wait_for("every node's maps to hold the six", PATIENCE, || {
            let counts: Vec<usize> = (0..3).map(|node| self.active_backends(node)).collect::<Result<_>>()?;
            Ok(counts.iter().all(|count| *count == INSTANCES).then_some(()))
        })?;
        Ok(monitored)
    }

    /// Which instance answered is in the body: the page names its allocation.
    fn curls(&self) -> Result<String> {
        let before = self.flows(0)?;
        let url = format!("http://{}/?[1-{CURLS}]", self.cluster.nodes[0].address);
        // `Connection: close` gives every transfer a connection, and so a choice, of its own.
        let format = "%{http_code} ";
        let words = ["curl", "-s", "-H", "Connection: close", "--max-time", "5", "-w", format, &url];
        let printed = self.cluster.client.run(&words)?;
        let ok = printed.split_whitespace().filter(|word| *word == "200").count();
        let mut spread: BTreeMap<&str, usize> = BTreeMap::new();
        for alloc in printed.split_whitespace().filter(|word| word.starts_with("alloc=")) {
            *spread.entry(alloc).or_default() += 1;
        }
        ensure!(
            ok == CURLS && spread.len() == INSTANCES,
            "{ok} of {CURLS} were 200, from {} instances: {spread:?}",
            spread.len()
        );
        let after = self.flows(0)?;
        let grown = |(alloc, (node, flows)): (&String, &(String, u64))| {
            (node.clone(), flows - before.get(alloc).map_or(0, |(_, flows)| *flows))
        };
        let flows: Vec<(String, u64)> = after.iter().map(grown).collect();
        let all: u64 = flows.iter().map(|(_, flows)| flows).sum();
        let entry = &self.cluster.nodes[0].name;
        let crossed: u64 = flows.iter().filter(|(node, _)| node != entry).map(|(_, flows)| flows).sum();
        ensure!(all >= CURLS as u64, "the entry's maps counted {all} new flows for {CURLS} connections");
        let share = crossed as f64 / all as f64;
        ensure!(
            (0.5..0.84).contains(&share),
            "{crossed} of {all} flows crossed to another node; two thirds were expected"
        );
        let spread: Vec<String> = spread.values().map(usize::to_string).collect();
        Ok(format!(
            "{ok} answers 200, by instance: {}\n{crossed} of {all} flows crossed to another node through the tunnel",
            spread.join(" ")
        ))
    }

    fn client_address(&self) -> Result<String> {
        let mut seen = 0;
        for alloc in self.running()? {
            let log = self.cluster.meshctl(&["alloc", "logs", "-tail", "-n", "200", &alloc.id])?;
            ensure!(log.contains(CLIENT), "the log of {} does not name {CLIENT}:\n{log}", alloc.id);
            seen += log.lines().filter(|line| line.contains(CLIENT)).count();
        }
        Ok(format!("{CLIENT} in {seen} of the newest lines of six logs"))
    }

    fn same_ports(&self) -> Result<String> {
        let targets = (0..2).map(|node| self.edge_v4(node)).collect::<Result<Vec<_>>>()?;
        // Below the ephemeral range: the curls' own ports are not free again yet.
        let held = collide::same_port_to_each(&self.cluster.client, 21000..21060, targets)?;
        let aliased = self.report(0)?["drops"]["flow_aliased"].as_u64().unwrap_or(0)
            + self.report(1)?["drops"]["flow_aliased"].as_u64().unwrap_or(0)
            + self.report(2)?["drops"]["flow_aliased"].as_u64().unwrap_or(0);
        ensure!(aliased > 0, "no two of {held} connections looked the same to a backend, so nothing was shown");
        Ok(format!("{held} connections held open, two rounds of requests over each; {aliased} had their port replaced"))
    }

    fn names(&self) -> Result<String> {
        let alloc = self.running()?.into_iter().next().context("no allocation runs")?;
        let vip = self.inside(&alloc, &["dig", "+short", "web.cluster"])?;
        let vip_address: Ipv4Addr = vip.trim().parse().with_context(|| format!("web.cluster gave {vip:?}"))?;
        ensure!(vip_address.octets()[..2] == [10, 43], "the VIP {vip_address} is not of the service range");
        let instances = self.inside(&alloc, &["dig", "+short", "web.service.cluster"])?;
        let asked: BTreeSet<String> = instances.split_whitespace().map(str::to_owned).collect();
        let known: BTreeSet<String> = self.running()?.into_iter().map(|alloc| alloc.address).collect();
        ensure!(asked == known, "web.service.cluster gave {asked:?}, the catalog has {known:?}");
        Ok(format!(
            "web.cluster is {vip_address}; web.service.cluster is {}",
            instances.split_whitespace().collect::<Vec<_>>().join(" ")
        ))
    }

    /// What programs see is the VIP they dialled; what the kernel speaks to are instances. Each curl ends its connection
    /// itself, so the allocation's own table of sockets remembers whom each one spoke to.
    fn socket_hook(&self) -> Result<String> {
        let alloc = self.running()?.into_iter().next().context("no allocation runs")?;
        let curls = r#"for i in 1 2 3 4 5 6; do for j in 1 2 3 4 5 6 7 8 9 10; do
            curl -s -o /dev/null -w '%{remote_ip}\n' http://web.cluster/; done; done"#;
        let seen = self.inside(&alloc, &["sh", "-c", curls])?;
        let seen: BTreeSet<&str> = seen.split_whitespace().collect();
        let vip = self.inside(&alloc, &["dig", "+short", "web.cluster"])?;
        ensure!(seen == BTreeSet::from([vip.trim()]), "the sockets' peers are shown as {seen:?}, dialled was {vip}");
        let sockets = self.inside(&alloc, &["cat", "/proc/net/tcp"])?;
        let peers: BTreeSet<String> = sockets.lines().filter_map(ended_peer).collect();
        let known: BTreeSet<String> = self.running()?.into_iter().map(|alloc| alloc.address).collect();
        ensure!(known.is_subset(&peers), "60 connections spoke to {peers:?}, the instances are {known:?}");
        ensure!(!peers.contains(vip.trim()), "a socket speaks to the VIP itself");
        Ok("60 connections to web.cluster show the VIP and speak to the six instances: no packet was rewritten"
            .to_owned())
    }

    fn route_table(&self) -> Result<String> {
        let table = self.cluster.meshctl_on(&self.cluster.nodes[0].machine, &["route"])?;
        for (instance, backend) in self.running()?.iter().zip(self.backends(0)?) {
            ensure!(table.contains(&format!("{}:8080", instance.address)), "{} is missing:\n{table}", instance.address);
            ensure!(backend["packets"].as_u64() > Some(0), "a backend without packets:\n{table}");
        }
        Ok(table)
    }

    fn status(&self) -> Result<String> {
        let alloc = self.running()?.into_iter().next().context("no allocation runs")?;
        let job = self.cluster.meshctl(&["job", "status", JOB_NAME])?;
        let status = self.cluster.meshctl(&["alloc", "status", &alloc.id])?;
        ensure!(
            job.contains("running") && status.contains(&alloc.address),
            "the status does not fit:\n{job}\n{status}"
        );
        Ok(format!("{job}\n{status}"))
    }

    fn kill_web_server(&self, load: &Load) -> Result<String> {
        let alloc = self.running()?.into_iter().next().context("no allocation runs")?;
        let pid = self.main_pid(&alloc)?;
        load.take();
        netns::sh(&format!("kill -9 {pid}"))?;
        let killed = Instant::now();
        wait_for("the instance to leave the maps", PATIENCE, || {
            Ok((self.active_backends(0)? < INSTANCES).then_some(()))
        })?;
        let left = killed.elapsed();
        ensure!(left < LEAVE_LIMIT, "the dead instance was in the maps for {left:?}");
        wait_for("the instance to come back", PATIENCE, || Ok((self.active_backends(0)? == INSTANCES).then_some(())))?;
        let back = killed.elapsed();
        std::thread::sleep(Duration::from_secs(1));
        let tally = load.take();
        ensure!(tally.longest_gap < Duration::from_secs(1), "nothing was answered for {:?}", tally.longest_gap);
        Ok(format!("left the maps after {left:.1?}, back after {back:.1?}\n{}", describe(&tally)))
    }

    /// Registers the demo job with another environment and this update policy, and follows its deployment to the end.
    fn roll_out(&self, load: &Load, name: &str, policy: &str) -> Result<String> {
        load.take();
        let began = Instant::now();
        let followed = self.cluster.meshctl(&["job", "run", &self.version(name, policy)?])?;
        ensure!(followed.contains("successful"), "the deployment was not followed to its end:\n{followed}");
        self.settled(load, began)
    }

    fn canary(&self, load: &Load) -> Result<String> {
        load.take();
        let began = Instant::now();
        let file = self.version("canary", "max_parallel = 6\n      order = \"start-first\"\n      canary = 1")?;
        self.cluster.meshctl(&["job", "run", "-detach", &file])?;
        wait_for("a healthy canary", PATIENCE, || {
            let latest = self.api(&format!("/v1/job/{JOB_NAME}/deployment"))?;
            let web = &latest["TaskGroups"]["web"];
            let waits = web["DesiredCanaries"] == 1 && web["Promoted"] == false && latest["Status"] == "running";
            Ok((waits && web["HealthyAllocs"].as_u64() >= Some(1)).then_some(()))
        })?;
        ensure!(self.of_newest_version()? == 1, "only the canary is to be of the new version before its promotion");
        self.cluster.meshctl(&["job", "promote", JOB_NAME])?;
        wait_for("the promoted version to take over", PATIENCE, || {
            let latest = self.api(&format!("/v1/job/{JOB_NAME}/deployment"))?;
            Ok((latest["Status"] == "successful").then_some(()))
        })?;
        self.settled(load, began)
    }

    /// All of the newest version, and not one request failed on the way.
    fn settled(&self, load: &Load, began: Instant) -> Result<String> {
        wait_for("all instances to be of the new version", PATIENCE, || {
            let settled = self.running()?.len() == INSTANCES && self.of_newest_version()? == INSTANCES;
            Ok((settled && self.active_backends(0)? == INSTANCES).then_some(()))
        })?;
        let took = began.elapsed();
        // An old instance closes the connections it had kept, between requests.
        answered(load.take()).map(|said| format!("done after {took:.1?}\n{said}"))
    }

    fn of_newest_version(&self) -> Result<usize> {
        let version = self.api(&format!("/v1/job/{JOB_NAME}"))?["Version"].clone();
        let stubs = self.api(&format!("/v1/job/{JOB_NAME}/allocations"))?;
        let stubs = stubs.as_array().context("allocations are not a list")?;
        let newest = |stub: &&Value| {
            stub["JobVersion"] == version && stub["ClientStatus"] == "running" && stub["DesiredStatus"] == "run"
        };
        Ok(stubs.iter().filter(newest).count())
    }

    fn version(&self, name: &str, policy: &str) -> Result<String> {
        let text = std::fs::read_to_string(artifacts::repository_file(JOB))?;
        let update = format!(
            "count = var.instances\n\n    update {{\n      min_healthy_time = \"1s\"\n      \
             healthy_deadline = \"20s\"\n      progress_deadline = \"30s\"\n      {policy}\n    }}"
        );
        let text = text
            .replace("count = var.instances", &update)
            .replace("DEMO = \"web\"", &format!("DEMO = {name:?}"))
            .replace("interval = \"2s\"", "interval = \"1s\"");
        let file = self.cluster.lab.dir().join(format!("{name}.nomad.hcl"));
        std::fs::write(&file, text)?;
        Ok(file.to_string_lossy().into_owned())
    }

    fn batch(&self) -> Result<String> {
        let text = r#"
            job "once" {
              type = "batch"
              group "work" {
                task "say" {
                  driver = "exec"
                  config {
                    command = "/bin/echo"
                    args    = ["done"]
                  }
                  resources {
                    memory = 32
                  }
                }
              }
            }
        "#;
        let file = self.cluster.lab.dir().join("once.nomad.hcl");
        std::fs::write(&file, text)?;
        self.cluster.meshctl(&["job", "run", &file.to_string_lossy()])?;
        wait_for("the job to have ended", PATIENCE, || {
            let job = self.api("/v1/job/once")?;
            Ok((job["Status"] == "dead").then_some(()))
        })?;
        self.cluster.meshctl(&["job", "eval", "once"])?;
        let allocs = self.api("/v1/job/once/allocations")?;
        let states: Vec<&str> =
            allocs.as_array().into_iter().flatten().filter_map(|stub| stub["ClientStatus"].as_str()).collect();
        ensure!(states == ["complete"], "it is to run once and to succeed, but its allocations are {states:?}");
        self.cluster.meshctl(&["job", "status", "once"])
    }

    fn kill_agent(&mut self, load: &Load) -> Result<String> {
        let before = (self.task_pids()?, self.pins()?);
        load.take();
        let agent = self.cluster.nodes[0].agent.take().context("no agent runs")?;
        agent.kill()?;
        std::thread::sleep(Duration::from_secs(5));
        self.cluster.start_agent(0, None)?;
        wait_for("the agent to be ready again", PATIENCE, || {
            let status = self.cluster.meshctl(&["node", "status"])?;
            let ready = status.lines().filter(|line| line.contains("ready")).count() == 3;
            Ok((ready && self.active_backends(0)? == INSTANCES).then_some(()))
        })?;
        std::thread::sleep(Duration::from_secs(1));
        ensure!(self.task_pids()? == before.0, "the agent came back with other processes than it had");
        ensure!(self.pins()? == before.1, "the agent came back with other maps or links than it had");
        let tally = load.take();
        flawless(tally)
            .map(|said| format!("the same six processes, {} pinned maps and links, adopted\n{said}", before.1.len()))
    }

    fn kill_leader(&mut self, load: &Load) -> Result<String> {
        let leader = self.cluster.leader()?;
        load.take();
        let killed = Instant::now();
        self.cluster.servers[leader].process.take().context("the leader does not run")?.kill()?;
        wait_for("a new leader", PATIENCE, || Ok(self.cluster.leader().ok().filter(|new| *new != leader)))?;
        let elected = killed.elapsed();
        self.cluster.meshctl(&["job", "run", &self.second_job()?])?;
        let accepted = killed.elapsed();
        wait_for("the second job to run", PATIENCE, || {
            Ok((self.instance_addresses(SECOND_NAME)?.len() == 2).then_some(()))
        })?;
        let tally = load.take();
        flawless(tally)
            .map(|said| format!("a new leader after {elected:.1?}, the next job run done after {accepted:.1?}\n{said}"))
    }

    /// Every pin of the lab's agents with its inode: a map or link that was made anew has another.
    fn pins(&self) -> Result<BTreeSet<(u64, String)>> {
        let root = self.cluster.lab.pin_root().to_string_lossy().into_owned();
        let listing = netns::run(std::process::Command::new("find").args([&root, "-type", "f", "-printf", "%i %P\n"]))?;
        let pin =
            |line: &str| line.split_once(' ').and_then(|(inode, path)| Some((inode.parse().ok()?, path.to_owned())));
        Ok(listing.lines().filter_map(pin).collect())
    }

    /// Ends the lab and looks whether anything of it is still on the machine.
    fn end(self) -> Result<String> {
        let (name, pin_root) = (self.cluster.lab.name().to_owned(), self.cluster.lab.pin_root());
        let nodes: Vec<String> = self
            .api("/v1/nodes")?
            .as_array()
            .into_iter()
            .flatten()
            .filter_map(|node| Some(node["ID"].as_str()?[..8].to_owned()))
            .collect();
        drop(self);
        let namespaces = netns::sh("ip netns list")?;
        let cgroups = netns::sh("find /sys/fs/cgroup -type d -path */meshctl/*")?;
        let processes = netns::sh("ps -eo args")?;
        for mark in nodes.iter().chain([&name]) {
            ensure!(!namespaces.contains(mark.as_str()), "a namespace of {mark} is left:\n{namespaces}");
            ensure!(!cgroups.contains(mark.as_str()), "a cgroup of {mark} is left:\n{cgroups}");
            ensure!(!processes.contains(mark.as_str()), "a process of {mark} is left:\n{processes}");
        }
        ensure!(!pin_root.exists(), "{} is left", pin_root.display());
        Ok(String::new())
    }

    fn second_job(&self) -> Result<String> {
        let text = std::fs::read_to_string(artifacts::repository_file(SECOND_JOB))?
            .replace("\"web\"", &format!("{SECOND_NAME:?}"));
        let file = self.cluster.lab.dir().join("second.nomad.hcl");
        std::fs::write(&file, text)?;
        Ok(file.to_string_lossy().into_owned())
    }

    fn keep(&mut self) -> Result<()> {
        self.cluster.keep()?;
        println!("the lab stays up; enter a machine with");
        for machine in self.cluster.machines() {
            println!("  nsenter --net={} bash   # {}", machine.path().display(), machine.name());
        }
        println!("the binary is {}; the next demo removes the lab", artifacts::binary());
        Ok(())
    }

    fn edge(&self, node: usize) -> Result<SocketAddr> {
        Ok(self.edge_v4(node)?.into())
    }

    fn edge_v4(&self, node: usize) -> Result<SocketAddrV4> {
        Ok(SocketAddrV4::new(self.cluster.nodes[node].address.parse()?, 80))
    }

    fn api(&self, path: &str) -> Result<Value> {
        serde_json::from_str(&self.cluster.meshctl(&["operator", "api", path])?)
            .with_context(|| format!("{path} is no JSON"))
    }

    fn running(&self) -> Result<Vec<Alloc>> {
        let stubs = self.api(&format!("/v1/job/{JOB_NAME}/allocations"))?;
        let stubs = stubs.as_array().context("allocations are not a list")?;
        let running = stubs.iter().filter(|stub| stub["ClientStatus"] == "running" && stub["DesiredStatus"] == "run");
        let addresses = self.instance_addresses("web")?;
        let alloc = |stub: &Value| {
            let id = stub["ID"].as_str()?.to_owned();
            Some(Alloc { address: addresses.get(&id).cloned().unwrap_or_default(), id })
        };
        Ok(running.filter_map(alloc).collect())
    }

    /// By allocation id, what the catalog's service list says.
    fn instance_addresses(&self, service: &str) -> Result<BTreeMap<String, String>> {
        let instances = self.api(&format!("/v1/service/{service}"))?;
        let pair = |instance: &Value| {
            Some((instance["AllocID"].as_str()?.to_owned(), instance["Address"].as_str()?.to_owned()))
        };
        Ok(instances.as_array().into_iter().flatten().filter_map(pair).collect())
    }

    fn report(&self, node: usize) -> Result<Value> {
        let report = self.cluster.meshctl_on(&self.cluster.nodes[node].machine, &["route", "-json"])?;
        serde_json::from_str(&report).context("meshctl route -json printed no JSON")
    }

    fn backends(&self, node: usize) -> Result<Vec<Value>> {
        let report = self.report(node)?;
        let services = report["services"].as_array().context("no services in the report")?;
        let web = services.iter().find(|service| service["name"] == "web");
        Ok(web.and_then(|web| web["backends"].as_array()).cloned().unwrap_or_default())
    }

    fn active_backends(&self, node: usize) -> Result<usize> {
        Ok(self.backends(node)?.iter().filter(|backend| backend["ring_share"].as_f64() > Some(0.0)).count())
    }

    /// By allocation id: its node's name and the new flows this node's programs have given it.
    fn flows(&self, node: usize) -> Result<BTreeMap<String, (String, u64)>> {
        let flows = |backend: &Value| {
            let node = backend["node"].as_str()?.to_owned();
            Some((backend["alloc_id"].as_str()?.to_owned(), (node, backend["flows"].as_u64()?)))
        };
        Ok(self.backends(node)?.iter().filter_map(flows).collect())
    }

    /// Runs a command where the allocation's main process lives: its network, its root.
    fn inside(&self, alloc: &Alloc, words: &[&str]) -> Result<String> {
        let pid = self.main_pid(alloc)?;
        let mut command = std::process::Command::new("nsenter");
        netns::run(command.args(["-t", &pid.to_string(), "-n", "-m", "-p", "--"]).args(words))
    }

    fn main_pid(&self, alloc: &Alloc) -> Result<u32> {
        let pids = netns::pids_with_argument("nginx: master")?;
        let own = pids.into_iter().find(|pid| netns::in_cgroup(*pid, &format!("/{}/", alloc.id)));
        own.with_context(|| format!("no web server of allocation {}", alloc.id))
    }

    fn namespace_of(&self, alloc: &Alloc) -> Result<u64> {
        use std::os::unix::fs::MetadataExt;
        Ok(std::fs::metadata(format!("/proc/{}/ns/net", self.main_pid(alloc)?))?.ino())
    }

    fn task_pids(&self) -> Result<BTreeSet<u32>> {
        self.running()?.iter().map(|alloc| self.main_pid(alloc)).collect()
    }
}

struct Alloc {
    id: String,
    address: String,
}

/// The peer of a socket in TIME_WAIT, from a line of /proc/net/tcp.
fn ended_peer(line: &str) -> Option<String> {
    let mut fields = line.split_whitespace().skip(2);
    let (peer, state) = (fields.next()?, fields.next()?);
    let address = u32::from_str_radix(peer.split(':').next()?, 16).ok()?;
    (state == "06").then(|| Ipv4Addr::from(address.to_ne_bytes()).to_string())
}

/// Every request was answered, over the connections there were.
fn flawless(tally: Tally) -> Result<String> {
    ensure!(tally.connections_lost == 0, "{}", describe(&tally));
    answered(tally)
}

fn answered(tally: Tally) -> Result<String> {
    let said = describe(&tally);
    ensure!(tally.failures == 0, "{said}; the first: {}", tally.first_error.unwrap_or_default());
    Ok(said)
}

fn describe(tally: &Tally) -> String {
    format!(
        "{} requests, {} failures, {} kept connections opened anew, longest gap {:.0?}",
        tally.requests, tally.failures, tally.connections_lost, tally.longest_gap
    )
}
