//! How far a task has come, as kept on disk: what is told was written and synced before.

use crate::cgroup::Cgroup;
use serde::{Deserialize, Serialize};
use std::fmt;
use std::fs::{self, File};
use std::io::{self, Write};
use std::path::{Path, PathBuf};
use std::time::{SystemTime, UNIX_EPOCH};

const FILE: &str = "state.json";

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct State {
    pub phase: Phase,
    /// Everything the task could have left processes in.
    pub cgroup: Cgroup,
    /// The task is a container: its cgroup is the engine's to make and remove, and this is what to clear away.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub container: Option<ContainerRef>,
}

/// Where a container is to be found, also by those who did not start it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct ContainerRef {
    pub socket: PathBuf,
    pub name: String,
}

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Phase {
    Starting,
    Running {
        /// The task's first process as the node numbers it; for display, never for killing.
        pid: i32,
        started_at_ns: u64,
    },
    Exited(ExitStatus),
}

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct ExitStatus {
    pub outcome: Outcome,
    /// The kernel killed a process of the task because of its memory limit.
    pub oom_killed: bool,
    /// 0 when it never ran.
    pub started_at_ns: u64,
    pub finished_at_ns: u64,
}

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Outcome {
    Exited(i32),
    Signaled(i32),
    /// Nothing of the task ever ran; the text says why and what to do.
    NotStarted(String),
    /// Its supervisor died; how it ended is not known.
    Lost(String),
}

impl ExitStatus {
    pub fn success(&self) -> bool {
        self.outcome == Outcome::Exited(0) && !self.oom_killed
    }

    /// As Nomad counts it: 128 and the signal's number for a signal.
    pub fn exit_code(&self) -> i32 {
        match self.outcome {
            Outcome::Exited(code) => code,
            Outcome::Signaled(signal) => 128 + signal,
            Outcome::NotStarted(_) | Outcome::Lost(_) => -1,
        }
    }
}

impl fmt::Display for ExitStatus {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match &self.outcome {
            Outcome::Exited(code) => write!(f, "Exit Code: {code}")?,
            Outcome::Signaled(signal) => write!(f, "Exit Code: {}, Signal: {signal}", 128 + signal)?,
            Outcome::NotStarted(reason) => write!(f, "not started: {reason}")?,
            Outcome::Lost(reason) => write!(f, "lost: {reason}")?,
        }
        if self.oom_killed { f.write_str(", out of memory: raise the task's memory limit") } else { Ok(()) }
    }
}

impl State {
    /// Durable when it returns: readers see the old file or the new one, also after a power cut.
    pub(crate) fn write(&self, control: &Path) -> io::Result<()> {
        let fresh = control.join("state.json.new");
        let mut file = File::create(&fresh)?;
        file.write_all(&serde_json::to_vec(self).map_err(io::Error::other)?)?;
        file.sync_all()?;
        fs::rename(&fresh, control.join(FILE))?;
        File::open(control)?.sync_all()
    }

    /// `None` when no supervisor ever got as far as writing it.
    pub fn read(control: &Path) -> io::Result<Option<Self>> {
        match fs::read(control.join(FILE)) {
            Ok(text) => serde_json::from_slice(&text).map(Some).map_err(io::Error::other),
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
            Err(error) => Err(error),
        }
    }
}

pub(crate) fn now_ns() -> u64 {
    let since = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    u64::try_from(since.as_nanos()).unwrap_or(u64::MAX)
}
