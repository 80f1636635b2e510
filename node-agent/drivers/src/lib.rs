//! Drivers: how a task becomes processes, and how they outlive the agent that started them.
//!
//! ```text
//! agent ── Driver::prepare ──> TaskSpec ── Launcher::start ──> TaskHandle
//!                                 |                               ^
//!                           control directory                     | unix socket, length-prefixed, versioned
//!                                 v                               v
//!                    `meshctl supervise <control>`  one per task, own session and cgroup, survives the agent
//!                                 |  pipes -> rotated log files; exit status on disk before it is told
//!                                 v
//!                    `meshctl task-init`  exec: pid 1 of the task's namespaces; raw_exec: becomes the task
//! ```
//!
//! A killed agent finds its tasks with [`TaskHandle::adopt`]. When a supervisor itself was killed, whoever holds the handle
//! empties the task's cgroup and reports the task lost.

pub mod cgroup;
mod container;
mod desk;
mod docker;
mod driver;
mod enter;
mod env;
mod exec;
mod handle;
pub mod init;
mod java;
mod lock;
mod logs;
pub mod protocol;
mod root;
mod seccomp;
mod spec;
mod state;
pub mod supervisor;
mod users;

pub use docker::{Docker, DockerOptions};
pub use driver::{Driver, Exec, Launch, PrepareError, RawExec, hosts_file, resolv_conf};
pub use env::{EnvInputs, interpolate, node_values, task_env};
pub use exec::{ExecInput, ExecOutput, ExecReceiver, ExecRequest, ExecSender, ExecStreams};
pub use handle::{HandleError, Launcher, StartError, TaskHandle};
pub use java::Java;
pub use spec::{
    ContainerTask, CpuQuota, Directories, Isolation, Limits, LogLimits, RootSpec, SpecError, TaskSpec, parse_signal,
};
pub use state::{ContainerRef, ExitStatus, Outcome, Phase, State};
pub use users::{Identity, UserError, resolve as resolve_user};

use std::ffi::OsString;
use std::path::Path;
use std::process::ExitCode;

/// Runs `supervise <control dir>` or `task-init <stage>` when these are what the process was started for.
///
/// Call it first thing in `main`, before any thread or runtime exists: namespaces are entered by threads.
pub fn hidden_main(args: impl IntoIterator<Item = OsString>) -> Option<ExitCode> {
    let args: Vec<OsString> = args.into_iter().skip(1).collect();
    match (args.first()?.to_str()?, args.get(1)) {
        ("supervise", Some(dir)) => Some(supervisor::main(Path::new(dir))),
        ("task-init", stage) => {
            let stage = stage.and_then(|stage| stage.to_str()).unwrap_or_default();
            Some(init::main(stage, args.get(2).map(Path::new)))
        }
        _ => None,
    }
}
