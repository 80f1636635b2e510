//! What CI runs, in parts that a developer can call one by one.

use crate::build::{self, cargo, run};
use crate::{demo, setup, tidy};
use anyhow::{Result, bail};

/// Everything, in the order in which it fails fastest.
pub fn run_all() -> Result<()> {
    check()?;
    test(&[])?;
    demo::run(false)
}

/// Format, lints, docs and rules.
pub fn check() -> Result<()> {
    setup::run()?;
    run(cargo().args(["fmt", "--all", "--check"]))?;
    run(cargo().args(["fmt", "--check"]).current_dir(build::root().join("ebpf/programs")))?;
    tidy::run()?;
    build::ebpf()?;
    run(cargo().args(["clippy", "--quiet", "--workspace", "--all-targets", "--locked", "--", "-D", "warnings"]))?;
    let docs = ["doc", "--quiet", "--workspace", "--no-deps", "--locked", "--document-private-items"];
    run(cargo().args(docs).env("RUSTDOCFLAGS", "-D warnings"))?;
    deny()
}

/// Licences, sources and bans of deny.toml, where cargo-deny is at hand: building it takes longer than all other checks.
fn deny() -> Result<()> {
    if !cargo().args(["deny", "--version"]).output().is_ok_and(|output| output.status.success()) {
        println!("skipped 1 check: cargo-deny is not installed (cargo install cargo-deny)");
        return Ok(());
    }
    run(cargo().args(["deny", "check", "--hide-inclusion-graph", "bans", "licenses", "sources"]))
}

/// Every test; `arguments` narrow them as for `cargo test`.
pub fn test(arguments: &[String]) -> Result<()> {
    setup::run()?;
    build::ebpf()?;
    build::meshctl(false)?;
    let mut tests = cargo();
    tests.args(["test", "--locked"]);
    if !arguments.iter().any(|argument| argument == "-p" || argument == "--package") {
        tests.arg("--workspace");
    }
    run(tests.args(arguments))
}

pub fn fix() -> Result<()> {
    run(cargo().args(["fmt", "--all"]))?;
    run(cargo().args(["fmt"]).current_dir(build::root().join("ebpf/programs")))?;
    run(cargo().args(["clippy", "--workspace", "--all-targets", "--fix", "--allow-dirty", "--allow-staged"]))
}

/// The benchmarks by name, with the crate that holds each.
const BENCHES: [(&str, &str); 3] = [("datapath", "kernel"), ("publish", "dataplane"), ("scheduler", "scheduler")];

pub fn bench(name: &str) -> Result<()> {
    let Some((_, package)) = BENCHES.iter().find(|(known, _)| *known == name) else {
        bail!("no bench {name}; there are: {}", BENCHES.map(|(known, _)| known).join(", "));
    };
    setup::run()?;
    if name == "datapath" {
        build::bench_ebpf()?;
        build::ebpf()?;
    }
    run(cargo().args(["bench", "--quiet", "--locked", "--package", package, "--bench", name]))?;
    if name == "scheduler" {
        // The same through broker, workers, Raft and HTTP.
        run(cargo().args(["bench", "--quiet", "--locked", "--package", "server", "--bench", name]))?;
    }
    Ok(())
}
