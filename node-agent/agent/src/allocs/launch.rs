//! Everything between the wish to start a task and its running: files, the driver's preparation, the supervisor.

use super::Shell;
use super::machine::Event;
use super::runner::{report, task_of};
use crate::datapath::Place;
use drivers::{Launch, StartError, TaskHandle};
use model::Allocation;
use std::future::Future;
use std::sync::Arc;
use tokio::sync::oneshot;

/// One start of one task, with what it needs.
pub struct Job {
    pub shell: Arc<Shell>,
    pub told: Allocation,
    pub task: String,
    pub place: Place,
}

/// Why a task did not start, if it did not.
pub enum Failure {
    /// `fatal` when the same job would fail the same way again.
    NotStarted { reason: String, fatal: bool },
    /// There is a supervisor, which has to be asked.
    Unknown(String),
    /// The start was not wanted any more, and nothing of it was begun.
    GivenUp,
}

impl Failure {
    fn fatal(reason: &str) -> Self {
        Self::NotStarted { reason: reason.to_owned(), fatal: true }
    }
}

impl From<StartError> for Failure {
    fn from(error: StartError) -> Self {
        let reason = report(&error);
        match error {
            StartError::Occupied(_) | StartError::Handle(_) => Self::Unknown(reason),
            StartError::Spec(_) => Self::NotStarted { reason, fatal: true },
            StartError::Spawn { .. } | StartError::NotStarted(_) => Self::NotStarted { reason, fatal: false },
        }
    }
}

impl Job {
    /// Given up when `canceled` comes before there is a supervisor; from then on it is seen through.
    pub async fn run<T: Future<Output = ()>>(
        self,
        mut canceled: oneshot::Receiver<()>,
        tell: impl Fn(Event) -> T,
    ) -> Result<TaskHandle, Failure> {
        let permit = tokio::select! {
            biased;
            _ = &mut canceled => return Err(Failure::GivenUp),
            prepared = self.prepare(tell) => prepared?,
        };
        let launched = self.launch().await;
        drop(permit);
        launched
    }

    /// What may take long and may be given up; its end is a place among those that start processes now.
    async fn prepare<T: Future<Output = ()>>(
        &self,
        _tell: impl Fn(Event) -> T,
    ) -> Result<tokio::sync::OwnedSemaphorePermit, Failure> {
        let launches = Arc::clone(&self.shell.launches);
        launches.acquire_owned().await.map_err(|_| Failure::GivenUp)
    }

    async fn launch(&self) -> Result<TaskHandle, Failure> {
        let Self { shell, told, place, .. } = self;
        let task = task_of(told, &self.task).ok_or_else(|| Failure::fatal("the job has no such task any more"))?;
        let root = shell.data.alloc(told.id);
        let launch = Launch {
            node: &shell.node,
            alloc: told,
            task,
            root: &root,
            netns: place.netns.clone(),
            address: place.address,
            resolver: place.resolver,
        };
        let driver = shell.driver(task.driver.name());
        let driver =
            driver.ok_or_else(|| Failure::fatal(&format!("this node has no driver {}", task.driver.name())))?;
        let spec = driver.prepare(&launch).map_err(|error| Failure::fatal(&error.to_string()))?;
        Ok(shell.launcher.start(&spec).await?)
    }
}
