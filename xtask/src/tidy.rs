//! Rules that no compiler checks. Each breach is one line that names the rule and the place.

use crate::build;
use anyhow::{Context, Result, bail};
use serde_json::Value;
use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};

/// Crates that decide: values in, values out.
const PURE: [&str; 11] =
    ["model", "abi", "packet", "broker", "jobspec", "catalog", "liveness", "scheduler", "dataplane", "dns", "template"];

/// What a pure crate may not reach by any path of normal dependencies: runtimes, the kernel, sockets, logs.
const IMPURE: [&str; 9] =
    ["tokio", "aya", "aya-ebpf", "tonic", "hyper", "axum", "rtnetlink", "redb", "tracing-subscriber"];

/// `abi` gives aya's marker trait to its types under a feature that `kernel` alone turns on; the graph joins all features.
const POD_IMPLEMENTATIONS: (&str, &str) = ("abi", "aya");

/// What the sources of a pure crate may not say, tests excepted.
const IMPURE_WORDS: [&str; 10] = [
    "std::fs",
    "std::env",
    "std::process",
    "std::thread",
    "TcpStream",
    "UdpSocket",
    "SystemTime::now",
    "Instant::now",
    "tracing::",
    "println!",
];

/// Crates whose dependency on each other's dependants would turn the picture upside down: only these may use them.
const USERS_ONLY: [(&str, &[&str]); 4] =
    [("server", &["meshctl"]), ("agent", &["meshctl"]), ("kernel", &["agent"]), ("netns", &["xtask"])];

/// Packages that must not be anywhere in the tree.
const BANNED: [(&str, &str); 3] = [
    ("aws-lc-sys", "takes minutes to build; rustls runs on ring"),
    ("openssl-sys", "a C library that a static binary would have to carry; rustls does TLS"),
    ("bincode", "unmaintained (RUSTSEC-2025-0141)"),
];

/// Directories whose sources may hold `unsafe`.
const UNSAFE_ALLOWED: [&str; 3] = ["ebpf/abi", "ebpf/programs", "node-agent/kernel"];

/// Directories whose sources may name the generated protobuf types.
const PROTOBUF_ALLOWED: [&str; 3] = ["proto/wire", "control/server", "node-agent/agent"];

pub fn run() -> Result<()> {
    let metadata = metadata()?;
    let mut breaches = dependency_breaches(&Graph::read(&metadata)?);
    for file in sources()? {
        let text = std::fs::read_to_string(build::root().join(&file))?;
        breaches.extend(source_breaches(&file, &text));
    }
    breaches.extend(manifest_breaches()?);
    if breaches.is_empty() {
        println!("tidy: every rule holds");
        return Ok(());
    }
    bail!("tidy:\n  {}", breaches.join("\n  "))
}

/// Who depends on whom, by package name; normal dependencies only.
struct Graph {
    edges: BTreeMap<String, BTreeSet<String>>,
    members: BTreeSet<String>,
}

impl Graph {
    fn read(metadata: &Value) -> Result<Graph> {
        let name_of = |id: &str| -> Option<String> {
            let package = metadata["packages"].as_array()?.iter().find(|package| package["id"] == id)?;
            package["name"].as_str().map(str::to_owned)
        };
        let names: BTreeMap<String, String> = array(&metadata["packages"])
            .iter()
            .filter_map(|package| Some((package["id"].as_str()?.to_owned(), package["name"].as_str()?.to_owned())))
            .collect();
        let mut edges: BTreeMap<String, BTreeSet<String>> = BTreeMap::new();
        for node in array(&metadata["resolve"]["nodes"]) {
            let name = node["id"].as_str().and_then(|id| names.get(id)).context("a node without a package")?;
            let normal = array(&node["deps"]).iter().filter(is_normal);
            let targets = normal.filter_map(|dep| dep["pkg"].as_str().and_then(|id| names.get(id)).cloned());
            let targets = targets.filter(|target| (name.as_str(), target.as_str()) != POD_IMPLEMENTATIONS);
            edges.entry(name.clone()).or_default().extend(targets);
        }
        let members = array(&metadata["workspace_members"]).iter().filter_map(|id| name_of(id.as_str()?)).collect();
        Ok(Graph { edges, members })
    }

    fn direct(&self, name: &str) -> impl Iterator<Item = &String> {
        self.edges.get(name).into_iter().flatten()
    }

    fn reach(&self, name: &str) -> BTreeSet<&str> {
        let mut seen = BTreeSet::new();
        let mut open = vec![name];
        while let Some(next) = open.pop() {
            for target in self.direct(next) {
                if seen.insert(target.as_str()) {
                    open.push(target);
                }
            }
        }
        seen
    }
}

fn array(value: &Value) -> &[Value] {
    value.as_array().map_or(&[], Vec::as_slice)
}

fn is_normal(dep: &&Value) -> bool {
    array(&dep["dep_kinds"]).iter().any(|kind| kind["kind"].is_null())
}

fn metadata() -> Result<Value> {
    let mut cargo = build::cargo();
    let output = cargo.args(["metadata", "--format-version", "1", "--locked"]).output().context("cargo metadata")?;
    serde_json::from_slice(&output.stdout).context("cargo metadata printed no JSON (is Cargo.lock up to date?)")
}

fn dependency_breaches(graph: &Graph) -> Vec<String> {
    let mut breaches = Vec::new();
    for pure in PURE {
        let reach = graph.reach(pure);
        for impure in IMPURE.iter().filter(|impure| reach.contains(**impure)) {
            breaches.push(format!("{pure} decides and must not reach {impure}"));
        }
    }
    for serializer in ["serde", "prost"].into_iter().filter(|crate_| graph.direct("model").any(|dep| dep == crate_)) {
        breaches.push(format!("model knows no format, but depends on {serializer}"));
    }
    for member in &graph.members {
        let knows = |name: &str| graph.direct(member).any(|dep| dep == name);
        if knows("model") && knows("abi") && member != "dataplane" {
            breaches.push(format!("{member} knows both model and abi; only dataplane may"));
        }
        for (owned, _) in USERS_ONLY.iter().filter(|(owned, users)| knows(owned) && !users.contains(&member.as_str())) {
            breaches.push(format!("{member} must not depend on {owned}"));
        }
    }
    for (banned, reason) in BANNED.iter().filter(|(banned, _)| graph.edges.contains_key(*banned)) {
        breaches.push(format!("{banned} is in the tree: {reason}"));
    }
    breaches
}

/// Every Rust source of ours, relative to the root.
fn sources() -> Result<Vec<PathBuf>> {
    let mut cargo = std::process::Command::new("git");
    let listing =
        cargo.args(["ls-files", "--cached", "--others", "--exclude-standard", "*.rs"]).current_dir(build::root());
    let listing = String::from_utf8(listing.output().context("git ls-files")?.stdout)?;
    Ok(listing.lines().map(PathBuf::from).filter(|file| build::root().join(file).exists()).collect())
}

fn source_breaches(file: &Path, text: &str) -> Vec<String> {
    let mut breaches = Vec::new();
    let within = |dirs: &[&str]| dirs.iter().any(|dir| file.starts_with(dir));
    let is_own_rule_book = file == Path::new("xtask/src/tidy.rs");
    let is_test =
        file.components().any(|part| part.as_os_str() == "tests") || file.to_string_lossy().ends_with("tests.rs");
    if is_own_rule_book {
        return breaches;
    }
    if !is_test && !text.starts_with("//!") && !text.starts_with("#![") {
        breaches.push(format!("{}: begins without saying what the file owns (//!)", file.display()));
    }
    if !within(&UNSAFE_ALLOWED)
        && code_lines(text).any(|(_, line)| line.contains("unsafe {") || line.contains("unsafe impl"))
    {
        breaches.push(format!("{}: unsafe stands in {} only", file.display(), UNSAFE_ALLOWED.join(", ")));
    }
    if !within(&PROTOBUF_ALLOWED) && code_lines(text).any(|(_, line)| line.contains("wire::pb")) {
        breaches.push(format!("{}: generated protobuf types stop at wire and the gRPC handlers", file.display()));
    }
    if !is_test && is_in_pure_crate(file) {
        for (number, line) in code_lines(text) {
            for word in IMPURE_WORDS.iter().filter(|word| line.contains(**word)) {
                breaches.push(format!("{}:{number}: a crate that decides says `{word}`", file.display()));
            }
        }
    }
    breaches
}

fn is_in_pure_crate(file: &Path) -> bool {
    let parts: Vec<_> = file.iter().map(|part| part.to_string_lossy()).collect();
    parts.len() > 2 && parts[2] == "src" && PURE.contains(&parts[1].as_ref())
}

/// Lines before an inline test module, comments left out, numbered from 1.
fn code_lines(text: &str) -> impl Iterator<Item = (usize, &str)> {
    let lines = text.lines().enumerate().map(|(number, line)| (number + 1, line));
    lines.take_while(|(_, line)| line.trim() != "#[cfg(test)]").filter(|(_, line)| !line.trim_start().starts_with("//"))
}

/// Every member inherits the lints, and no dependency is declared twice.
fn manifest_breaches() -> Result<Vec<String>> {
    let mut breaches = Vec::new();
    let mut git = std::process::Command::new("git");
    let listing = git.args(["ls-files", "*/Cargo.toml"]).current_dir(build::root()).output().context("git ls-files")?;
    for file in String::from_utf8(listing.stdout)?.lines().filter(|file| !file.starts_with("ebpf/programs")) {
        let text = std::fs::read_to_string(build::root().join(file))?;
        if !text.contains("[lints]\nworkspace = true") {
            breaches.push(format!("{file}: does not inherit the workspace's lints"));
        }
        if text.contains("features = [\"user\"]") && file != "node-agent/kernel/Cargo.toml" {
            breaches.push(format!("{file}: only kernel may ask abi for its user-space half"));
        }
        if text.lines().any(|line| line.contains(" = \"") && line.contains("version = \"")) {
            breaches.push(format!("{file}: versions stand in the root's [workspace.dependencies]"));
        }
    }
    Ok(breaches)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn graph(edges: &[(&str, &str)]) -> Graph {
        let mut graph = Graph { edges: BTreeMap::new(), members: BTreeSet::new() };
        for (from, to) in edges {
            graph.members.insert((*from).to_owned());
            graph.edges.entry((*from).to_owned()).or_default().insert((*to).to_owned());
            graph.edges.entry((*to).to_owned()).or_default();
        }
        graph
    }

    #[test]
    fn pure_crate_that_gains_a_runtime_by_a_detour_is_named() {
        let breaches = dependency_breaches(&graph(&[("scheduler", "helper"), ("helper", "tokio")]));
        assert_eq!(breaches, ["scheduler decides and must not reach tokio"]);
    }

    #[test]
    fn only_dataplane_may_know_model_and_abi() {
        let both = [("dataplane", "model"), ("dataplane", "abi"), ("dns", "model"), ("dns", "abi")];
        assert_eq!(dependency_breaches(&graph(&both)), ["dns knows both model and abi; only dataplane may"]);
    }

    #[test]
    fn clock_in_a_pure_source_is_named_and_its_tests_are_free() {
        let text = "//! Owns it.\nfn f() { std::time::Instant::now(); }\n#[cfg(test)]\nmod tests { use std::fs; }\n";
        let breaches = source_breaches(Path::new("control/scheduler/src/lib.rs"), text);
        assert_eq!(breaches, ["control/scheduler/src/lib.rs:2: a crate that decides says `Instant::now`"]);
    }

    #[test]
    fn unsafe_outside_its_places_is_named() {
        let text = "//! Owns it.\nfn f() { unsafe { g() } }\n";
        assert_eq!(source_breaches(Path::new("control/server/src/lib.rs"), text).len(), 1);
        assert!(source_breaches(Path::new("node-agent/kernel/src/sys.rs"), text).is_empty());
    }
}
