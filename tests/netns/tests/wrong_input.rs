//! What people get wrong, given to the real binary: refused whole, with the place and the remedy, and nothing changed.

use anyhow::{Context, Result, ensure};
use netns::{Cluster, ClusterOptions, Lab, Machine, artifacts, wait_for};
use std::process::Output;
use std::time::Duration;

const LIMIT: Duration = Duration::from_secs(15);

/// Runs the binary and expects it to refuse.
fn refusal(machine: &Machine, words: &[&str]) -> Result<String> {
    let Output { status, stdout, stderr } = machine.command(&[&[&*artifacts::binary()], words].concat()).output()?;
    let said = format!("{}{}", String::from_utf8_lossy(&stdout), String::from_utf8_lossy(&stderr));
    ensure!(!status.success(), "{words:?} was not refused: {said}");
    Ok(said)
}

fn expect(said: &str, parts: &[&str]) -> Result<()> {
    for part in parts {
        ensure!(said.contains(part), "{part:?} is not in what was said:\n{said}");
    }
    Ok(())
}

fn small() -> Result<Cluster> {
    let mut cluster = Cluster::lay("wrong", ClusterOptions { servers: 1, nodes: 2 })?;
    cluster.start_servers()?;
    Ok(cluster)
}

/// An agent's command line on the second node, with some words of the first one's.
fn agent_words<'a>(data_dir: &'a str, pin_root: &'a str, name: &'a str, token: &'a str) -> Vec<&'a str> {
    let fixed = ["agent", "run", "--data-dir", data_dir, "--pin-root", pin_root, "--servers", "10.77.0.21:4647"];
    [&fixed[..], &["--uplink", "eth0", "--name", name, "--token", token]].concat()
}

#[test]
fn job_file_is_refused_whole_with_every_place() -> Result<()> {
    let mut cluster = small()?;
    let file = cluster.lab.dir().join("wrong.nomad.hcl");
    let source = "job \"a\" {\n  group \"g\" {\n    cuont = 2\n    scaling { max = 2 }\n    task \"t\" {\n      driver = \"qemu\"\n    }\n  }\n}\n";
    std::fs::write(&file, source)?;
    let said = refusal(&cluster.servers[0].machine, &["job", "run", &file.to_string_lossy()])?;
    expect(&said, &["wrong.nomad.hcl:3:5", "count", "wrong.nomad.hcl:4:5", "`scaling`", "wrong.nomad.hcl:6:", "qemu"])?;
    let jobs = cluster.meshctl(&["job", "status"])?;
    ensure!(jobs.contains("No running jobs"), "something was registered:\n{jobs}");
    cluster.lab.passed();
    Ok(())
}

#[test]
fn tokens_names_and_authorities_are_checked_at_both_ends() -> Result<()> {
    let mut cluster = small()?;
    let machine = cluster.nodes[1].machine.clone();
    let dir = |name: &str| cluster.lab.dir().join(name).to_string_lossy().into_owned();
    let (spare, pins) = (dir("n2-agent"), cluster.lab.pin_root().to_string_lossy().into_owned());

    let used = cluster.token("agent")?;
    cluster.start_agent(0, Some(&used))?;
    wait_for("the first node", LIMIT, || Ok(cluster.meshctl(&["node", "status"])?.contains("ready").then_some(())))?;

    expect(&refusal(&machine, &agent_words(&spare, &pins, "n2", &used))?, &["token", "used"])?;
    let log = cluster.servers[0].process.as_ref().context("the server runs")?.log();
    expect(&log, &["n2", "used"])?;

    let brief = cluster.meshctl(&["token", "create", "--role", "agent", "--ttl", "1ms"])?;
    std::thread::sleep(Duration::from_millis(20));
    expect(&refusal(&machine, &agent_words(&spare, &pins, "n2", brief.trim()))?, &["token", "expired"])?;

    let server_token = cluster.token("server")?;
    expect(&refusal(&machine, &agent_words(&spare, &pins, "n2", &server_token))?, &["token", "server"])?;

    let taken = cluster.token("agent")?;
    expect(&refusal(&machine, &agent_words(&spare, &pins, "n1", &taken))?, &["n1", "name"])?;

    let foreign = {
        let mut other = small()?;
        other.lab.passed();
        other.token("agent")?
    };
    expect(
        &refusal(&machine, &agent_words(&spare, &pins, "n2", &foreign))?,
        &["does not present the CA", "another cluster"],
    )?;
    expect(&refusal(&machine, &agent_words(&spare, &pins, "n2", "mesh1.zzz"))?, &["token"])?;
    let nodes = cluster.meshctl(&["node", "status"])?;
    ensure!(nodes.lines().count() == 2, "a refused agent became a node:\n{nodes}");
    cluster.lab.passed();
    Ok(())
}

#[test]
fn agent_that_cannot_work_here_exits_before_it_changes_anything() -> Result<()> {
    let mut lab = Lab::new("early")?;
    let machine = lab.machine("m")?;
    let data_dir = lab.dir().join("data");
    let (data, pins) = (data_dir.to_string_lossy().into_owned(), lab.pin_root().to_string_lossy().into_owned());
    let base = ["agent", "run", "--data-dir", &data, "--servers", "10.0.0.1:4647", "--token", "x", "--name", "m"];
    let with = |words: &[&'static str]| [&base[..], words].concat();
    let pinned = ["--pin-root", &pins];

    let u0 = "ip link add u0 type veth peer name u1; ip addr add 10.0.0.2/24 dev u0; ip link set u0 up";
    ensure!(machine.command(&["sh", "-ec", u0]).status()?.success(), "no veth");
    let no_interface = [&with(&["--uplink", "eth7", "--advertise", "127.0.0.1"])[..], &pinned].concat();
    expect(&refusal(&machine, &no_interface)?, &["uplink", "eth7", "ip link"])?;
    let loopback = [&with(&["--uplink", "lo"])[..], &pinned].concat();
    expect(&refusal(&machine, &loopback)?, &["uplink", "`lo`", "no Ethernet"])?;
    let foreign = [&with(&["--uplink", "u0", "--advertise", "127.0.0.1"])[..], &pinned].concat();
    expect(&refusal(&machine, &foreign)?, &["address", "127.0.0.1", "`u0`"])?;
    let no_bpffs = with(&["--uplink", "u0", "--pin-root", "/tmp/no-bpffs-here"]);
    expect(&refusal(&machine, &no_bpffs)?, &["pin_root", "mount -t bpf"])?;
    let not_loopback = [&with(&["--uplink", "u0", "--http", "0.0.0.0:4646"])[..], &pinned].concat();
    expect(&refusal(&machine, &not_loopback)?, &["http_bind", "loopback"])?;
    let _holder =
        machine.enter(|| std::net::TcpListener::bind("127.0.0.1:4646"))?.join().ok().flatten().context("thread")??;
    let taken = [&with(&["--uplink", "u0"])[..], &pinned].concat();
    expect(&refusal(&machine, &taken)?, &["http_bind", "127.0.0.1:4646"])?;
    let _dns =
        machine.enter(|| std::net::TcpListener::bind("127.0.0.1:8600"))?.join().ok().flatten().context("thread")??;
    let dns = [&with(&["--uplink", "u0", "--http", "127.0.0.1:5646"])[..], &pinned].concat();
    expect(&refusal(&machine, &dns)?, &["dns_bind", "127.0.0.1:8600"])?;

    let binary = artifacts::binary();
    let unprivileged = ["setpriv", "--reuid", "65534", "--clear-groups", &binary];
    let output = machine.command(&[&unprivileged[..], &taken].concat()).output()?;
    ensure!(!output.status.success(), "it ran without root");
    expect(&String::from_utf8_lossy(&output.stderr), &["root"])?;
    ensure!(!data_dir.exists() && !lab.pin_root().exists(), "a refused start left something behind");
    lab.passed();
    Ok(())
}

#[test]
fn server_refuses_a_taken_port_and_another_clusters_directory() -> Result<()> {
    let mut cluster = small()?;
    let machine = cluster.servers[0].machine.clone();
    let fresh = cluster.lab.dir().join("fresh").to_string_lossy().into_owned();
    let words = ["server", "init", "--name", "s9", "--data-dir", &fresh, "--rpc", "10.77.0.21:4647"];
    expect(&refusal(&machine, &words)?, &["rpc_bind", "10.77.0.21:4647"])?;
    let used = cluster.lab.dir().join("s1-server").to_string_lossy().into_owned();
    let words =
        ["server", "init", "--name", "s9", "--data-dir", &used, "--rpc", "10.77.0.21:5647", "--http", "127.0.0.1:5646"];
    expect(&refusal(&machine, &words)?, &["data_dir"])?;
    cluster.lab.passed();
    Ok(())
}
