//! Takes away everything an agent left on its machine: tasks, their cgroups, networks, links and pins. For `dev` when it ends,
//! for laboratories, and for a node that leaves for good.
//!
//! It works from what lies on the machine, not from the state file, so that a damaged one does not stand in the way.

use crate::allocs::report;
use crate::config::AgentConfig;
use crate::datadir::{DataDir, DataDirError};
use crate::store::{Store, StoreError};
use drivers::TaskHandle;
use identity::Credentials;
use model::NodeId;
use std::collections::BTreeSet;
use std::fs;
use std::io;
use std::path::{Path, PathBuf};
use std::time::Duration;
use tokio::time::{Instant, sleep};

const AGENT_ENDS_WITHIN: Duration = Duration::from_secs(3);
const POLL: Duration = Duration::from_millis(50);

#[derive(Debug, thiserror::Error)]
pub enum PurgeError {
    #[error(transparent)]
    DataDir(#[from] DataDirError),
    #[error(transparent)]
    InUse(StoreError),
    #[error("these are still there: {}; remove what holds them and purge again", .0.join(", "))]
    Left(Vec<String>),
}

/// Needs `data_dir` and `pin_root` of the configuration; the agent must not run. Every step is tried whether or not the one
/// before worked.
pub async fn purge(config: &AgentConfig) -> Result<(), PurgeError> {
    let data = DataDir::inspect(&config.data_dir)?;
    await_end_of_agent(&data).await?;
    let mut left = end_tasks(&data).await;
    if let Some(id) = node_id(&data) {
        let network = crate::net::purge(id, &config.pin_root).await;
        left.extend(network.err().map(|error| format!("the network of node {id} ({})", report(&error))));
        let cgroups = drivers::cgroup::remove_node(&id.short());
        left.extend(cgroups.err().map(|error| format!("cgroups of node {id} ({})", report(&error))));
    }
    if left.is_empty() {
        left.extend(forget(&data).err().map(|error| format!("files in {} ({error})", data.root().display())));
    }
    if left.is_empty() { Ok(()) } else { Err(PurgeError::Left(left)) }
}

/// Takes a stopped agent's data path off the machine, and the networks of its allocations with it: programs, maps,
/// interfaces, addresses, firewall rules. Tasks, files and the node's identity stay; the next agent builds it all again.
pub async fn detach(config: &AgentConfig) -> Result<(), PurgeError> {
    let data = DataDir::inspect(&config.data_dir)?;
    await_end_of_agent(&data).await?;
    let Some(id) = node_id(&data) else { return Ok(()) };
    let outcome = crate::net::purge(id, &config.pin_root).await;
    outcome.map_err(|error| PurgeError::Left(vec![format!("the network of node {id} ({})", report(&error))]))
}

/// An agent that was dropped or killed just now may hold the state a moment longer.
async fn await_end_of_agent(data: &DataDir) -> Result<(), PurgeError> {
    let until = Instant::now() + AGENT_ENDS_WITHIN;
    loop {
        match Store::open_existing(&data.state_file()) {
            Err(StoreError::InUse { .. }) if Instant::now() < until => sleep(POLL).await,
            Err(error @ StoreError::InUse { .. }) => return Err(PurgeError::InUse(error)),
            _ => return Ok(()),
        }
    }
}

/// Kills every task of the data directory and clears its supervisor and cgroup away; returns what could not be.
pub async fn end_tasks(data: &DataDir) -> Vec<String> {
    let mut left = Vec::new();
    for control in control_directories(&data.allocs()) {
        if let Err(reason) = end_task(&control).await {
            left.push(format!("the task of {} ({reason})", control.display()));
        }
    }
    left
}

/// From the state, or from the certificate where the state is damaged; `None` for a node that never started.
fn node_id(data: &DataDir) -> Option<NodeId> {
    let from_state = || Store::open_existing(&data.state_file()).ok()?.known_node_id().ok()?;
    let from_certificate = || {
        let files = data.read_certificate().ok()?;
        let credentials = Credentials::from_pem(&files.ca, &files.certificate, &files.key).ok()?;
        credentials.identity().ok()?.1.parse().ok()
    };
    from_state().or_else(from_certificate)
}

/// `alloc/<id>/<task>/control`, whatever the ids and names are.
fn control_directories(allocs: &Path) -> Vec<PathBuf> {
    let children = |dir: &Path| -> Vec<PathBuf> {
        fs::read_dir(dir).into_iter().flatten().flatten().map(|entry| entry.path()).collect()
    };
    let tasks = children(allocs).into_iter().flat_map(|alloc| children(&alloc));
    tasks.map(|task| task.join("control")).filter(|control| control.is_dir()).collect()
}

async fn end_task(control: &Path) -> Result<(), String> {
    let Some(handle) = TaskHandle::adopt(control).await.map_err(|error| report(&error))? else { return Ok(()) };
    handle.kill("SIGKILL", Duration::ZERO).await.map_err(|error| report(&error))?;
    handle.forget().await.map_err(|error| report(&error))
}

/// The allocations' files and their records: what is left is a node with its id and certificate that runs nothing. A damaged
/// state stays as it is; it is of no use but for looking at.
fn forget(data: &DataDir) -> io::Result<()> {
    if let Ok(store) = Store::open_existing(&data.state_file()) {
        store.forget_all().map_err(io::Error::other)?;
    }
    crate::files::release_ended(&data.allocs(), &BTreeSet::new());
    match fs::remove_dir_all(data.allocs()) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(()),
        outcome => outcome,
    }
}
