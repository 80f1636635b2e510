//! Everything between the wish to start a task and its running: files, the driver's preparation, the supervisor.

use super::Shell;
use super::machine::Event;
use super::runner::{report, task_of};
use crate::datapath::Place;
use crate::files::{self, Unprepared, Wanted};
use drivers::{Launch, StartError, TaskHandle};
use model::{Allocation, Task};
use std::collections::BTreeMap;
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
        let (env, permit) = tokio::select! {
            biased;
            _ = &mut canceled => return Err(Failure::GivenUp),
            prepared = self.prepare(tell) => prepared?,
        };
        let launched = self.launch(env).await;
        drop(permit);
        launched
    }

    /// What may take long and may be given up; its end is a place among those that start processes now.
    async fn prepare<T: Future<Output = ()>>(
        &self,
        tell: impl Fn(Event) -> T,
    ) -> Result<(BTreeMap<String, String>, tokio::sync::OwnedSemaphorePermit), Failure> {
        let task = task_of(&self.told, &self.task);
        let task = task.ok_or_else(|| Failure::fatal("the job has no such task any more"))?;
        let wanted = wanted(&self.shell, &self.told, task, &self.place);
        let note = |(kind, message)| tell(Event::Note { task: self.task.clone(), kind, message });
        let env = files::prepare(&wanted, &self.shell.files, note).await;
        let env = env.map_err(|Unprepared { reason, fatal }| Failure::NotStarted { reason, fatal })?;
        let launches = Arc::clone(&self.shell.launches);
        Ok((env, launches.acquire_owned().await.map_err(|_| Failure::GivenUp)?))
    }

    /// `env` is what templates add to the task's environment.
    async fn launch(&self, env: BTreeMap<String, String>) -> Result<TaskHandle, Failure> {
        let Self { shell, told, place, .. } = self;
        let task = task_of(told, &self.task).ok_or_else(|| Failure::fatal("the job has no such task any more"))?;
        let mut task = task.clone();
        task.env.extend(env);
        let root = shell.data.alloc(told.id);
        let launch = Launch {
            node: &shell.node,
            alloc: told,
            task: &task,
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

/// What the files of a task are made of.
pub fn wanted(shell: &Shell, told: &Allocation, task: &Task, place: &Place) -> Wanted {
    Wanted {
        node: shell.node.clone(),
        alloc: told.clone(),
        task: task.clone(),
        root: shell.data.alloc(told.id),
        address: place.address,
    }
}
