//! Laboratories: machines as network namespaces, links between them, real processes inside, faults, captures.
//!
//! ```text
//!   client 10.78.0.2 ── router 10.78.0.1 │ bridge 10.77.0.1 ─┬─ s1..s3  10.77.0.21..23
//!                                                            └─ n1..n3  10.77.0.11..13
//! ```
//!
//! A [`Lab`] owns everything it makes and removes it when dropped. What a killed run left behind is found by the next
//! one through the lab's record under [`LABS`] and removed first ([`Lab::reap_dead`]). Names are unique per lab, so labs
//! may run side by side.

pub mod artifacts;
pub mod cluster;
pub mod collide;
pub mod echo;
pub mod http;
mod lab;
mod link;
pub mod load;
mod machine;
mod process;

pub use cluster::{Cluster, ClusterOptions};
pub use lab::{LABS, Lab};
pub use machine::{Machine, enter};
pub use process::Process;

use anyhow::{Context, Result, bail};
use std::process::Command;
use std::time::{Duration, Instant};

/// Runs a command to its end and returns its standard output; a failure carries the command and its standard error.
pub fn run(command: &mut Command) -> Result<String> {
    let output = command.output().with_context(|| format!("could not start {command:?}"))?;
    if !output.status.success() {
        bail!("{command:?} ended with {}: {}", output.status, String::from_utf8_lossy(&output.stderr).trim());
    }
    Ok(String::from_utf8_lossy(&output.stdout).into_owned())
}

/// Splits `line` at white space and runs it.
pub fn sh(line: &str) -> Result<String> {
    let mut words = line.split_whitespace();
    let program = words.next().context("an empty command")?;
    run(Command::new(program).args(words))
}

/// Calls `check` every 50 ms until it gives a value, and says what was waited for when `limit` has passed.
pub fn wait_for<T>(what: &str, limit: Duration, mut check: impl FnMut() -> Result<Option<T>>) -> Result<T> {
    let started = Instant::now();
    let mut last = None;
    while started.elapsed() < limit {
        match check() {
            Ok(Some(value)) => return Ok(value),
            Ok(None) => {}
            Err(error) => last = Some(error),
        }
        std::thread::sleep(Duration::from_millis(50));
    }
    match last {
        Some(error) => Err(error.context(format!("waited {limit:?} for {what}"))),
        None => bail!("waited {limit:?} for {what}"),
    }
}

/// The processes whose title or an argument holds `text`.
pub fn pids_with_argument(text: &str) -> Result<Vec<u32>> {
    let entries = std::fs::read_dir("/proc").context("could not read /proc")?;
    let pids = entries.flatten().filter_map(|entry| entry.file_name().to_string_lossy().parse().ok());
    let holds = |pid: &u32| {
        let line = std::fs::read(format!("/proc/{pid}/cmdline")).unwrap_or_default();
        String::from_utf8_lossy(&line).contains(text)
    };
    Ok(pids.filter(holds).collect())
}

/// Whether a process is in a cgroup whose path holds `text`.
pub fn in_cgroup(pid: u32, text: &str) -> bool {
    std::fs::read_to_string(format!("/proc/{pid}/cgroup")).is_ok_and(|cgroups| cgroups.contains(text))
}
