//! A child process that is killed when its value is dropped.

use anyhow::{Context, Result};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use std::fs::File;
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Stdio};

pub struct Process {
    name: String,
    child: Child,
    log: PathBuf,
    detached: bool,
}

impl Process {
    pub(crate) fn start(command: &mut Command, name: &str, log: &Path) -> Result<Process> {
        let file = File::options().create(true).append(true).open(log)?;
        let errors = file.try_clone()?;
        let child = command.stdin(Stdio::null()).stdout(file).stderr(errors).process_group(0).spawn();
        let child = child.with_context(|| format!("could not start {name}"))?;
        Ok(Process { name: name.to_owned(), child, log: log.to_owned(), detached: false })
    }

    pub fn name(&self) -> &str {
        &self.name
    }

    /// nsenter replaces itself by the command, so this is the command's own pid.
    pub fn pid(&self) -> u32 {
        self.child.id()
    }

    pub fn log(&self) -> String {
        std::fs::read_to_string(&self.log).unwrap_or_default()
    }

    pub fn signal(&self, signal: Signal) -> Result<()> {
        let pid = i32::try_from(self.child.id()).context("a pid out of range")?;
        kill(Pid::from_raw(pid), signal).with_context(|| format!("could not signal {}", self.name))
    }

    /// SIGKILL, as a power cut would have it, and waits for the end.
    pub fn kill(mut self) -> Result<()> {
        self.child.kill().with_context(|| format!("could not kill {}", self.name))?;
        self.child.wait()?;
        Ok(())
    }

    /// SIGTERM, and waits for the end.
    pub fn stop(mut self) -> Result<ExitStatus> {
        self.signal(Signal::SIGTERM)?;
        self.child.wait().context("lost the child")
    }

    /// The exit status, once it has ended.
    pub fn ended(&mut self) -> Result<Option<ExitStatus>> {
        self.child.try_wait().context("lost the child")
    }

    /// Lets the process outlive this value.
    pub fn detach(&mut self) {
        self.detached = true;
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        if !self.detached {
            self.child.kill().ok();
            self.child.wait().ok();
        }
    }
}
