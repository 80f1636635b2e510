//! What only containers have: images, options of the engine's, networks that are joined by way of a sandbox, and what may
//! not be asked for.

use crate::common::{Bench, plugin, task};
use crate::engines::{self, IMAGE};
use drivers::{Docker, Driver, Outcome, StartError, State, TaskHandle};
use model::{ConfigValue, Plugin};
use std::collections::{BTreeMap, BTreeSet};
use std::path::Path;
use std::process::Command;
use std::time::Duration;

type Pairs<'a> = Vec<(&'a str, ConfigValue)>;

fn text(text: &str) -> ConfigValue {
    ConfigValue::Text(text.to_owned())
}

fn texts(items: &[&str]) -> ConfigValue {
    ConfigValue::List(items.iter().map(|item| text(item)).collect())
}

fn map(pairs: &[(&str, ConfigValue)]) -> ConfigValue {
    ConfigValue::Map(pairs.iter().map(|(key, value)| ((*key).to_owned(), value.clone())).collect())
}

fn shell<'a>(script: &str) -> Pairs<'a> {
    vec![("image", text(IMAGE)), ("command", text("/bin/sh")), ("args", texts(&["-c", script]))]
}

fn docker_config(pairs: Pairs<'_>) -> model::Task {
    task(plugin(Plugin::Docker, &pairs))
}

async fn output(bench: &Bench, driver: &Docker, pairs: Pairs<'_>) -> String {
    let spec = bench.prepare(driver, docker_config(pairs)).expect("prepares");
    let handle = bench.start(&spec).await;
    let status = handle.wait().await.expect("waits");
    assert!(status.success(), "{status}: {} {}", bench.log("stdout", 0), bench.log("stderr", 0));
    bench.log("stdout", 0)
}

#[tokio::test]
async fn options_reach_the_container() {
    let script = "hostname; pwd; id -u; id -G; touch /x 2>/dev/null || echo read-only; ulimit -n; cat /proc/sys/net/ipv4/ip_default_ttl; \
                  grep -c 'searched.example' /etc/resolv.conf; grep -c '10.9.8.7.*other' /etc/hosts; \
                  df -m /dev/shm | tail -1 | sed 's/  */ /g' | cut -d' ' -f2; grep CapEff /proc/self/status; touch /scratch/ok && echo scratch";
    let mut pairs = shell(script);
    pairs.extend([
        ("hostname", text("box-${NOMAD_ALLOC_INDEX}")),
        ("work_dir", text("/tmp")),
        ("readonly_rootfs", ConfigValue::Bool(true)),
        ("ulimit", map(&[("nofile", text("100:200"))])),
        ("sysctl", map(&[("net.ipv4.ip_default_ttl", text("33"))])),
        ("dns_search_domains", texts(&["searched.example"])),
        ("extra_hosts", texts(&["other:10.9.8.7"])),
        ("shm_size", ConfigValue::Integer(32 << 20)),
        ("cap_drop", texts(&["ALL"])),
        ("cap_add", texts(&["chown"])),
        ("group_add", texts(&["77"])),
        ("init", ConfigValue::Bool(true)),
        ("mount", ConfigValue::List(vec![map(&[("type", text("tmpfs")), ("target", text("/scratch"))])])),
    ]);
    let bench = Bench::new();
    let out = output(&bench, &engines::docker(), pairs).await;
    let expect = "box-0\n/tmp\n0\n0 77\nread-only\n100\n33\n1\n1\n32\nCapEff:\t0000000000000001\nscratch\n";
    assert_eq!(out, expect);
}

#[tokio::test]
async fn what_reaches_the_node_is_refused_unless_the_node_allows_it() {
    let bench = Bench::new();
    let device = map(&[("host_path", text("/dev/kmsg"))]);
    let host_mount = map(&[("type", text("bind")), ("source", text("/etc")), ("target", text("/host"))]);
    let cases = [
        ("privileged", ConfigValue::Bool(true)),
        ("devices", ConfigValue::List(vec![device])),
        ("volumes", texts(&["/etc:/host"])),
        ("volumes", texts(&["../../../../etc:/host"])),
        ("volumes", texts(&["one"])),
        ("mount", ConfigValue::List(vec![host_mount])),
        ("cap_add", texts(&["sys_admin"])),
        ("pid_mode", text("host")),
        ("ipc_mode", text("container:x")),
        ("userns_mode", text("host")),
        ("security_opt", texts(&["seccomp=unconfined"])),
        ("network_mode", text("container:other")),
        ("ulimit", map(&[("nofile", text("many"))])),
        ("image_pull_timeout", text("soon")),
        ("ports", texts(&["nope"])),
    ];
    for (key, value) in cases {
        let mut pairs = shell("true");
        pairs.push((key, value));
        let refusal = bench.prepare(&engines::docker(), docker_config(pairs)).expect_err(key).to_string();
        assert!(refusal.contains(key), "{key}: {refusal}");
    }
}

#[tokio::test]
async fn an_owner_can_allow_what_is_refused() {
    let bench = Bench::new();
    let mut options = engines::options(Plugin::Docker, &engines::docker_socket());
    (options.allow_privileged, options.volumes) = (true, true);
    let driver = Docker::new(Plugin::Docker, options);
    let shared = bench.dir.path().join("shared");
    std::fs::create_dir(&shared).expect("makes");
    let mut pairs = shell("echo there > /host/file; test -c /dev/mine && echo device; grep CapEff /proc/self/status");
    let volume = format!("{}:/host", shared.display());
    let device = map(&[("host_path", text("/dev/null")), ("container_path", text("/dev/mine"))]);
    pairs.extend([
        ("volumes", texts(&[&volume])),
        ("devices", ConfigValue::List(vec![device])),
        ("cap_drop", texts(&["all"])),
        ("cap_add", texts(&["cap_net_raw"])),
    ]);
    assert_eq!(output(&bench, &driver, pairs).await, "device\nCapEff:\t0000000000002000\n");
    assert_eq!(std::fs::read_to_string(shared.join("file")).expect("reads"), "there\n");
}

#[tokio::test]
async fn containers_have_the_tasks_directories_and_cannot_plant_logs() {
    let bench = Bench::new();
    let script = "id -u; touch /local/a /alloc/data/b /secrets/c && stat -c %u /local /secrets; touch /alloc/logs/x 2>/dev/null || echo kept; \
                  cat /given/inside";
    let mut pairs = shell(script);
    let local = bench.dirs().local.join("given");
    std::fs::create_dir_all(&local).expect("makes");
    std::fs::write(local.join("inside"), "inside\n").expect("writes");
    pairs.push(("volumes", texts(&["local/given:/given:ro"])));
    let mut wanted = docker_config(pairs);
    wanted.user = Some("web".to_owned());
    let spec = bench.prepare(&engines::docker(), wanted).expect("prepares");
    let handle = bench.start(&spec).await;
    assert!(handle.wait().await.expect("waits").success(), "{}", bench.log("stderr", 0));
    assert_eq!(bench.log("stdout", 0), "33\n33\n33\nkept\ninside\n");
    assert!(bench.dirs().alloc.join("data/b").exists());
}

#[tokio::test]
async fn a_terminals_output_is_one_stream() {
    let mut pairs = shell("test -t 1 && echo terminal; echo problem >&2");
    pairs.push(("tty", ConfigValue::Bool(true)));
    let bench = Bench::new();
    assert_eq!(output(&bench, &engines::docker(), pairs).await, "terminal\r\nproblem\r\n");
}

#[tokio::test]
async fn an_image_that_cannot_be_had_is_named() {
    let bench = Bench::new();
    let pairs = vec![("image", text("localhost:1/none:7")), ("command", text("true"))];
    let spec = bench.prepare(&engines::docker(), docker_config(pairs)).expect("prepares");
    let error = bench.launcher().start(&spec).await.expect_err("must not start");
    let words = error.to_string();
    assert!(matches!(error, StartError::NotStarted(_)), "{error:?}");
    assert!(words.contains("localhost:1/none:7") && words.contains("registry"), "{words}");
    assert!(!bench.dirs().control.exists());
}

#[tokio::test]
async fn an_engine_that_is_not_there_is_named() {
    let bench = Bench::new();
    let driver = Docker::new(Plugin::Docker, engines::options(Plugin::Docker, Path::new("/nowhere/docker.sock")));
    assert!(!driver.fingerprint().detected && driver.fingerprint().description.contains("/nowhere/docker.sock"));
    let spec = bench.prepare(&driver, docker_config(shell("true"))).expect("prepares");
    let error = bench.launcher().start(&spec).await.expect_err("must not start").to_string();
    assert!(error.contains("/nowhere/docker.sock") && error.contains("start it"), "{error}");
}

/// A network namespace by name, removed whatever happens.
struct Netns(String);

impl Netns {
    fn make(tag: &str) -> Self {
        let name = format!("mctl-{tag}-{}", std::process::id());
        assert!(Command::new("ip").args(["netns", "add", &name]).status().expect("runs").success());
        Self(name)
    }

    fn path(&self) -> String {
        format!("/run/netns/{}", self.0)
    }
}

impl Drop for Netns {
    fn drop(&mut self) {
        let _ = Command::new("ip").args(["netns", "del", &self.0]).status();
    }
}

async fn joins_the_allocations_network(driver: &Docker, kind: Plugin, tag: &str) {
    let netns = Netns::make(tag);
    let veth = format!("mv{}", std::process::id() % 100_000);
    let args = ["-n", &netns.0, "link", "add", &veth, "type", "veth", "peer", "name", "eth0"];
    assert!(Command::new("ip").args(args).status().expect("runs").success());
    let mut bench = Bench::new();
    bench.network = Some((netns.path().into(), [10, 64, 0, 9].into()));
    let script = "grep -o eth0 /proc/net/dev; cat /etc/resolv.conf; grep 10.64.0.9 /etc/hosts; hostname";
    let spec = bench.prepare(driver, task(plugin(kind, &shell(script)))).expect("prepares");
    for _ in 0..2 {
        let handle = bench.start(&spec).await;
        let status = handle.wait().await.expect("waits");
        assert!(status.success(), "{status} {}", bench.log("stderr", 0));
        handle.forget().await.expect("forgets");
    }
    let short = bench.alloc_id.short();
    let once = format!("eth0\nnameserver 10.64.0.1\n10.64.0.9 {short}\n{short}\n");
    assert_eq!(bench.log("stdout", 0), once.repeat(2));
    driver.release(bench.alloc_id).await.expect("releases");
    assert_eq!(
        driver.tidy(&bench.node.id.short(), &BTreeSet::new()).await,
        Vec::<String>::new(),
        "a container is left"
    );
}

#[tokio::test]
async fn docker_joins_the_allocations_network() {
    joins_the_allocations_network(&engines::docker(), Plugin::Docker, "dk").await;
}

#[tokio::test]
#[ignore = "podman takes seconds for a container: cargo test -p drivers -- --ignored"]
async fn podman_joins_the_allocations_network() {
    joins_the_allocations_network(&engines::podman(), Plugin::Podman, "pm").await;
}

#[tokio::test]
async fn what_nobody_owns_is_removed_and_what_somebody_owns_is_not() {
    let bench = Bench::new();
    let driver = engines::docker();
    let spec = bench.prepare(&driver, docker_config(shell("sleep 600"))).expect("prepares");
    let handle = bench.start(&spec).await;
    let node = bench.node.id.short();
    let living = BTreeSet::from([bench.alloc_id]);
    assert_eq!(driver.tidy(&node, &living).await, Vec::<String>::new());
    assert_eq!(driver.tidy(&node, &BTreeSet::new()).await.len(), 1);
    let status = handle.wait().await.expect("waits");
    assert!(!status.success(), "{status}");
}

#[tokio::test]
async fn an_image_from_a_file_is_loaded_once_and_collected_when_unused() {
    let bench = Bench::new();
    let socket = engines::docker_socket();
    let host = format!("unix://{}", socket.display());
    let docker =
        |args: &[&str]| Command::new("docker").args(["-H", &host]).args(args).status().expect("runs").success();
    let name = format!("localhost/loaded-{}:1", std::process::id());
    std::fs::create_dir_all(bench.dirs().local).expect("makes");
    let file = bench.dirs().local.join("image.tar").display().to_string();
    assert!(docker(&["tag", IMAGE, &name]) && docker(&["save", "-o", &file, &name]) && docker(&["rmi", &name]));
    let pairs = vec![("image", text(&name)), ("load", text("image.tar")), ("command", text("true"))];
    let mut options = engines::options(Plugin::Docker, &socket);
    options.images = bench.dir.path().join("images");
    options.image_unused = Some(Duration::ZERO);
    let driver = Docker::new(Plugin::Docker, options);
    let spec = bench.prepare(&driver, docker_config(pairs)).expect("prepares");
    let handle = bench.start(&spec).await;
    assert_eq!(handle.wait().await.expect("waits").outcome, Outcome::Exited(0));
    assert!(docker(&["image", "inspect", "--format", ".", &name]));
    let gone = driver.tidy(&bench.node.id.short(), &BTreeSet::from([bench.alloc_id])).await;
    assert_eq!(gone.len(), 1, "{gone:?}");
    assert!(
        !docker(&["image", "inspect", "--format", ".", &name]) && docker(&["image", "inspect", "--format", ".", IMAGE])
    );
}

#[tokio::test]
async fn a_kill_ends_a_start_that_waits_for_its_image() {
    let bench = Bench::new();
    // A registry that takes connections and says nothing.
    let registry = std::net::TcpListener::bind("127.0.0.1:0").expect("binds");
    let image = format!("127.0.0.1:{}/slow:1", registry.local_addr().expect("address").port());
    let spec = bench.prepare(&engines::docker(), docker_config(vec![("image", text(&image))])).expect("prepares");
    let starting = tokio::spawn({
        let (launcher, spec) = (bench.launcher(), spec.clone());
        async move { launcher.start(&spec).await.map(drop) }
    });
    let control = bench.dirs().control;
    while !matches!(State::read(&control), Ok(Some(_))) {
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
    let handle = TaskHandle::adopt(&control).await.expect("adopts").expect("a task");
    let status = handle.kill("SIGTERM", Duration::from_secs(60)).await.expect("kills");
    assert!(matches!(status.outcome, Outcome::NotStarted(_)), "{status}");
    assert!(starting.await.expect("joins").is_err());
}

#[test]
fn the_engine_is_found_with_its_version() {
    let driver = engines::docker();
    let attributes = driver.attributes();
    assert!(attributes.contains_key("driver.docker.version"), "{attributes:?}");
    assert_eq!(attributes.get("driver.docker.privileged.enabled"), None);
    let _: BTreeMap<String, String> = attributes;
}
