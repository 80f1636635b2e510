//! The calls to an engine, one by one; the order in which a task needs them is its supervisor's.

use crate::body::body;
use crate::error::EngineError;
use crate::raw::{Frames, upgrade};
use crate::spec::{ContainerSpec, LABEL_NODE};
use crate::tar;
use bollard::Docker;
use bollard::models::{ContainerInspectResponse, ContainerStateStatusEnum};
use bollard::query_parameters::{
    CreateContainerOptionsBuilder, DownloadFromContainerOptionsBuilder, InspectContainerOptions,
    KillContainerOptionsBuilder, ListContainersOptionsBuilder, RemoveContainerOptionsBuilder, StartContainerOptions,
    WaitContainerOptionsBuilder,
};
use futures::StreamExt;
use std::collections::{BTreeMap, HashMap};
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};
use tokio::net::unix::OwnedWriteHalf;

/// What any answer may take; a loaded engine takes seconds to make a container.
const ANSWER_SECONDS: u64 = 120;

const ASK_AGAIN: Duration = Duration::from_millis(100);
const SETTLE_WITHIN: Duration = Duration::from_secs(5);

/// A name file larger than this is none that we read.
const FILE_BYTES_MAX: usize = 4 << 20;

/// A connection to an engine; each call dials anew.
#[derive(Clone, Debug)]
pub struct Engine {
    pub(crate) docker: Docker,
    pub(crate) socket: PathBuf,
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Version {
    pub name: String,
    pub version: String,
    pub api: String,
}

/// A container as the engine sees it now.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Status {
    pub id: String,
    pub running: bool,
    /// It ran, and all that can be known about its end is known.
    pub exited: bool,
    /// Its first process as the node numbers it; 0 when none runs.
    pub pid: i32,
    pub exit_code: i64,
    pub oom_killed: bool,
    /// Why it could not be started, if so.
    pub error: String,
    pub labels: BTreeMap<String, String>,
}

/// A container found by its labels.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Found {
    pub id: String,
    pub labels: BTreeMap<String, String>,
}

/// Resources in use.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Stats {
    pub containers: u64,
    pub running: u64,
    pub images: u64,
}

impl Engine {
    /// Finds out which version of the API both sides speak.
    pub async fn open(socket: &Path) -> Result<Self, EngineError> {
        let unreachable = |source| EngineError::Unreachable { socket: socket.to_owned(), source };
        // The client's own errors hide why nobody can be reached.
        drop(tokio::net::UnixStream::connect(socket).await.map_err(unreachable)?);
        let path = socket.to_string_lossy();
        let talk = EngineError::from_engine("agree on a version of the API");
        let docker = Docker::connect_with_unix(&path, ANSWER_SECONDS, bollard::API_DEFAULT_VERSION).map_err(&talk)?;
        Ok(Self { docker: docker.negotiate_version().await.map_err(&talk)?, socket: socket.to_owned() })
    }

    pub async fn version(&self) -> Result<Version, EngineError> {
        let told = self.docker.version().await.map_err(EngineError::from_engine("tell its version"))?;
        let names = told.components.unwrap_or_default().into_iter().map(|component| component.name);
        let name = names.into_iter().find(|name| name.contains("Podman")).unwrap_or_else(|| "Docker Engine".to_owned());
        Ok(Version { name, version: told.version.unwrap_or_default(), api: told.api_version.unwrap_or_default() })
    }

    pub async fn stats(&self) -> Result<Stats, EngineError> {
        let info = self.docker.info().await.map_err(EngineError::from_engine("tell about itself"))?;
        let count = |value: Option<i64>| value.and_then(|value| u64::try_from(value).ok()).unwrap_or(0);
        let (containers, running) = (count(info.containers), count(info.containers_running));
        Ok(Stats { containers, running, images: count(info.images) })
    }

    /// The runtimes that `runtime` may name, such as `runc`.
    pub async fn runtimes(&self) -> Result<Vec<String>, EngineError> {
        let info = self.docker.info().await.map_err(EngineError::from_engine("tell about itself"))?;
        let mut names: Vec<_> = info.runtimes.unwrap_or_default().into_keys().collect();
        names.sort();
        Ok(names)
    }

    /// Makes the container of a task. One of the same name that an earlier attempt left is removed first; one that is
    /// another's is not.
    pub async fn create(&self, spec: &ContainerSpec) -> Result<String, EngineError> {
        match self.try_create(spec).await {
            Err(error) if error.status() == Some(409) => {
                self.remove_own(&spec.name, spec.labels.get(LABEL_NODE)).await?;
                self.try_create(spec).await
            }
            other => other,
        }
    }

    async fn try_create(&self, spec: &ContainerSpec) -> Result<String, EngineError> {
        let options = CreateContainerOptionsBuilder::default().name(&spec.name).build();
        let made = self.docker.create_container(Some(options), body(spec)).await;
        made.map(|made| made.id).map_err(EngineError::from_engine("make the container"))
    }

    async fn remove_own(&self, name: &str, node: Option<&String>) -> Result<(), EngineError> {
        let Some(found) = self.status(name).await? else { return Ok(()) };
        if node.is_none() || found.labels.get(LABEL_NODE) != node {
            return Err(EngineError::Broken(format!(
                "a container {name} that is not this node's is in the way; remove it"
            )));
        }
        self.remove(&found.id).await
    }

    pub async fn start(&self, id: &str) -> Result<(), EngineError> {
        let started = self.docker.start_container(id, None::<StartContainerOptions>).await;
        started.map_err(EngineError::from_engine("start the container"))
    }

    /// The output of a container from now on; attached before it starts, all of it. With `interactive`, its input too.
    pub async fn attach(&self, id: &str, tty: bool) -> Result<(Frames, OwnedWriteHalf), EngineError> {
        let path = format!("/containers/{id}/attach?stream=1&stdout=1&stderr=1");
        upgrade(&self.socket, "attach to the container", &path, "", tty).await
    }

    /// `None` when there is no such container.
    pub async fn status(&self, id: &str) -> Result<Option<Status>, EngineError> {
        match self.docker.inspect_container(id, None::<InspectContainerOptions>).await {
            Ok(found) => Ok(Some(status(found))),
            Err(bollard::errors::Error::DockerResponseServerError { status_code: 404, .. }) => Ok(None),
            Err(error) => Err(EngineError::from_engine("look at the container")(error)),
        }
    }

    /// Returns when the container does not run any more; `None` when it is gone.
    pub async fn wait(&self, id: &str) -> Result<Option<Status>, EngineError> {
        loop {
            let options = WaitContainerOptionsBuilder::default().condition("not-running").build();
            let code = match self.docker.wait_container(id, Some(options)).next().await {
                Some(Ok(end)) => Some(end.status_code),
                Some(Err(bollard::errors::Error::DockerContainerWaitError { code, .. })) => Some(code),
                _ => None,
            };
            match self.settled(id).await? {
                Some(status) if status.running => tokio::time::sleep(ASK_AGAIN).await,
                other => {
                    let told = |status: Status| match code {
                        // It has not been noted down, but was told.
                        Some(exit_code) if !status.exited => Status { exit_code, ..status },
                        _ => status,
                    };
                    return Ok(other.map(told));
                }
            }
        }
    }

    /// Podman says that a container has stopped some time before it knows how.
    async fn settled(&self, id: &str) -> Result<Option<Status>, EngineError> {
        let deadline = Instant::now() + SETTLE_WITHIN;
        loop {
            match self.status(id).await? {
                Some(status) if !status.running && !status.exited && Instant::now() < deadline => {
                    tokio::time::sleep(ASK_AGAIN / 5).await;
                }
                other => return Ok(other),
            }
        }
    }

    /// A container that does not run, or is gone, has nothing to be signalled.
    pub async fn kill(&self, id: &str, signal: &str) -> Result<(), EngineError> {
        let options = KillContainerOptionsBuilder::default().signal(signal).build();
        let killed = self.docker.kill_container(id, Some(options)).await;
        match killed.map_err(EngineError::from_engine("signal the container")) {
            Err(EngineError::Refused { status: 404 | 409, .. }) => Ok(()),
            // Podman's words for a container that has just ended.
            Err(EngineError::Refused { status: 500, message, .. }) if message.contains("state improper") => Ok(()),
            other => other,
        }
    }

    /// With whatever runs in it and its unnamed volumes; one that is gone is fine.
    pub async fn remove(&self, id: &str) -> Result<(), EngineError> {
        let options = RemoveContainerOptionsBuilder::default().force(true).v(true).build();
        for _ in 0..100 {
            let removed = self.docker.remove_container(id, Some(options.clone())).await;
            match removed.map_err(EngineError::from_engine("remove the container")) {
                Err(EngineError::Refused { status: 404, .. }) => return Ok(()),
                // Somebody else is at it: until it is gone, its name is taken.
                Err(EngineError::Refused { status: 409, .. }) => tokio::time::sleep(ASK_AGAIN).await,
                other => return other,
            }
        }
        Err(EngineError::Broken(format!("container {id} cannot be removed; look at the engine's log")))
    }

    /// All of a node's containers, running or not.
    pub async fn list(&self, node: &str) -> Result<Vec<Found>, EngineError> {
        let filters = HashMap::from([("label", vec![format!("{LABEL_NODE}={node}")])]);
        let options = ListContainersOptionsBuilder::default().all(true).filters(&filters).build();
        let found = self.docker.list_containers(Some(options)).await;
        let found = found.map_err(EngineError::from_engine("list its containers"))?;
        let known = found.into_iter().filter_map(|container| {
            Some(Found { id: container.id?, labels: container.labels.unwrap_or_default().into_iter().collect() })
        });
        Ok(known.collect())
    }

    /// A file of a container, running or not; `None` when it has none of that name.
    pub async fn file(&self, id: &str, path: &str) -> Result<Option<String>, EngineError> {
        let options = DownloadFromContainerOptionsBuilder::default().path(path).build();
        let mut parts = Box::pin(self.docker.download_from_container(id, Some(options)));
        let mut archive = Vec::new();
        while let Some(part) = parts.next().await {
            match part.map_err(EngineError::from_engine("copy a file out of the container")) {
                Ok(part) if archive.len() + part.len() <= FILE_BYTES_MAX => archive.extend_from_slice(&part),
                Ok(_) => return Ok(None),
                Err(EngineError::Refused { status: 404, .. }) => return Ok(None),
                Err(error) => return Err(error),
            }
        }
        Ok(tar::first_file(&archive).map(|text| String::from_utf8_lossy(text).into_owned()))
    }
}

fn status(found: ContainerInspectResponse) -> Status {
    let state = found.state.unwrap_or_default();
    Status {
        id: found.id.unwrap_or_default(),
        running: state.running.unwrap_or(false),
        exited: matches!(state.status, Some(ContainerStateStatusEnum::EXITED | ContainerStateStatusEnum::DEAD)),
        pid: state.pid.and_then(|pid| i32::try_from(pid).ok()).unwrap_or(0),
        exit_code: state.exit_code.unwrap_or(-1),
        oom_killed: state.oom_killed.unwrap_or(false),
        error: state.error.unwrap_or_default(),
        labels: found.config.and_then(|config| config.labels).unwrap_or_default().into_iter().collect(),
    }
}
