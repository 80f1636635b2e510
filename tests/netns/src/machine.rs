//! A machine is a network namespace; commands enter only that, so they see the host's /sys/fs/bpf and cgroups.

use crate::run;
use anyhow::{Context, Result};
use nix::sched::{CloneFlags, setns};
use std::fs::File;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::thread::JoinHandle;

#[derive(Clone, Debug)]
pub struct Machine {
    namespace: String,
    name: String,
}

impl Machine {
    pub(crate) fn new(lab: &str, name: &str) -> Machine {
        Machine { namespace: format!("{lab}-{name}"), name: name.to_owned() }
    }

    pub fn name(&self) -> &str {
        &self.name
    }

    /// The name that `ip netns` knows.
    pub fn namespace(&self) -> &str {
        &self.namespace
    }

    pub fn path(&self) -> PathBuf {
        PathBuf::from("/run/netns").join(&self.namespace)
    }

    /// A command that will run inside.
    pub fn command(&self, words: &[&str]) -> Command {
        let mut command = Command::new("nsenter");
        command.arg(format!("--net={}", self.path().display())).arg("--").args(words);
        command
    }

    /// Runs to the end and gives the standard output.
    pub fn run(&self, words: &[&str]) -> Result<String> {
        run(&mut self.command(words))
    }

    /// Splits `line` at white space and runs it.
    pub fn sh(&self, line: &str) -> Result<String> {
        self.run(&line.split_whitespace().collect::<Vec<_>>())
    }

    /// Calls `work` on a thread of its own that lives in this namespace; sockets made there stay in it. The thread ends
    /// with `None` where it could not enter, which the caller is told as an error at once.
    pub fn enter<T: Send + 'static>(&self, work: impl FnOnce() -> T + Send + 'static) -> Result<JoinHandle<Option<T>>> {
        enter(&self.path(), work)
    }
}

/// As [`Machine::enter`], for any namespace that has a path: an allocation's, too.
pub fn enter<T: Send + 'static>(
    path: &Path,
    work: impl FnOnce() -> T + Send + 'static,
) -> Result<JoinHandle<Option<T>>> {
    let namespace = File::open(path).with_context(|| format!("no namespace {}", path.display()))?;
    let (entered, answer) = std::sync::mpsc::channel();
    let handle = std::thread::spawn(move || {
        let result = setns(&namespace, CloneFlags::CLONE_NEWNET);
        let may_work = result.is_ok();
        entered.send(result).ok();
        may_work.then(work)
    });
    answer.recv().context("the thread ended early")?.context("could not enter the namespace")?;
    Ok(handle)
}
