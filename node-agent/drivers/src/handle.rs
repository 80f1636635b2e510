//! The agent's side of a task: starting it, finding it again, and learning how it ended even if its supervisor did not live
//! to tell.

use crate::cgroup::Cgroup;
use crate::lock::Lock;
use crate::protocol::{self, Reply, Request};
use crate::spec::{SpecError, TaskSpec};
use crate::state::{ContainerRef, ExitStatus, Outcome, Phase, State, now_ns};
use std::fs::{self, File};
use std::io;
use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::time::Duration;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::UnixStream;
use tokio::process::{Child, Command};
use tokio::time::{Instant, sleep, timeout};

/// A supervisor that has not come up by then is given up; a loaded machine takes a second at most.
const START_WITHIN: Duration = Duration::from_secs(30);

/// What any request but `Wait` and `AwaitStart` may take.
const ANSWER_WITHIN: Duration = Duration::from_secs(10);

const POLL: Duration = Duration::from_millis(10);

/// Starts supervisors: which program is one.
#[derive(Clone, Debug)]
pub struct Launcher {
    program: PathBuf,
}

/// One task, running or ended, until it is forgotten. Dropping a handle leaves the task alone; handles of one task may be
/// many.
#[derive(Clone, Debug)]
pub struct TaskHandle {
    control: PathBuf,
}

#[derive(Debug, thiserror::Error)]
pub enum StartError {
    #[error(transparent)]
    Spec(#[from] SpecError),
    #[error("{0}: has a task already; adopt it or forget it first")]
    Occupied(PathBuf),
    #[error("{program}: the supervisor cannot be started")]
    Spawn {
        program: PathBuf,
        #[source]
        source: io::Error,
    },
    /// The task itself is at fault, or the node; the text says what to do.
    #[error("{0}")]
    NotStarted(String),
    #[error(transparent)]
    Handle(#[from] HandleError),
}

#[derive(Debug, thiserror::Error)]
pub enum HandleError {
    #[error("{control}: cannot {action}")]
    Io {
        control: PathBuf,
        action: &'static str,
        #[source]
        source: io::Error,
    },
    #[error(
        "the supervisor speaks protocol {theirs}, this agent {ours}; restart the task, or run an agent that speaks it"
    )]
    Version { theirs: u32, ours: u32 },
    #[error("the supervisor refused: {0}")]
    Refused(String),
    #[error("{0}: the supervisor holds its lock but does not answer; look at supervisor.log there")]
    Mute(PathBuf),
    #[error("{control}: the task's cgroup cannot be cleared")]
    Cgroup {
        control: PathBuf,
        #[source]
        source: crate::cgroup::CgroupError,
    },
    #[error("{control}: the task's container cannot be cleared")]
    Container {
        control: PathBuf,
        #[source]
        source: containers::EngineError,
    },
    #[error("the supervisor answered {0:?} to something else")]
    Unexpected(Box<Reply>),
    #[error("the task has ended")]
    Ended(Box<ExitStatus>),
}

impl Launcher {
    /// The running program itself, also after its file was replaced by an upgrade.
    pub fn current() -> Self {
        Self::new("/proc/self/exe")
    }

    /// Another program that calls [`crate::hidden_main`].
    pub fn new(program: impl Into<PathBuf>) -> Self {
        Self { program: program.into() }
    }

    /// Starts the task and returns when it runs. After an error nothing of it does, and its control directory is free; but
    /// after [`StartError::Occupied`] and [`StartError::Handle`] there may be one to adopt.
    pub async fn start(&self, spec: &TaskSpec) -> Result<TaskHandle, StartError> {
        spec.check()?;
        spec.dirs.create()?;
        let control = spec.dirs.control.clone();
        if is_taken(&control)? {
            return Err(StartError::Occupied(control));
        }
        spec.write()?;
        // What never had a supervisor is no task that could be adopted.
        let mut child = self.spawn(&control).inspect_err(|_| drop(fs::remove_dir_all(&control)))?;
        let handle = TaskHandle { control };
        let started = handle.await_start(&mut child).await;
        // Someone must collect the supervisor when it ends, or it stays a zombie of the agent.
        tokio::spawn(async move { child.wait().await });
        match started? {
            Phase::Exited(ExitStatus { outcome: Outcome::NotStarted(reason), .. }) => {
                handle.forget().await?;
                Err(StartError::NotStarted(reason))
            }
            _ => Ok(handle),
        }
    }

    fn spawn(&self, control: &Path) -> Result<Child, StartError> {
        let fail = |source| StartError::Spawn { program: self.program.clone(), source };
        let log = File::create(control.join("supervisor.log")).map_err(fail)?;
        Command::new(&self.program)
            .arg0("meshctl")
            .arg("supervise")
            .arg(control)
            .env_clear()
            .current_dir("/")
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(log)
            .spawn()
            .map_err(fail)
    }
}

impl TaskHandle {
    /// The task of a control directory, whatever became of it: `None` when there is none. A task whose supervisor died is
    /// cleared away first, so that nothing of it runs on unseen.
    pub async fn adopt(control: &Path) -> Result<Option<Self>, HandleError> {
        let handle = Self { control: control.to_owned() };
        match is_taken(control) {
            Ok(true) => handle.status().await.map(|_| Some(handle)),
            Ok(false) => Ok(None),
            Err(error) => Err(handle.io("read its task")(io::Error::other(error))),
        }
    }

    pub fn control(&self) -> &Path {
        &self.control
    }

    /// What the task was started with.
    pub fn spec(&self) -> Result<Option<TaskSpec>, SpecError> {
        TaskSpec::read(&self.control)
    }

    pub async fn status(&self) -> Result<State, HandleError> {
        match self.ask(&Request::Status, ANSWER_WITHIN).await? {
            Answer::Live(Reply::Status(state)) => Ok(state),
            Answer::Live(other) => Err(unexpected(other)),
            Answer::Ended(_) => self.ended_state(),
        }
    }

    /// Returns when the task has ended and its end is on disk; any number of times.
    pub async fn wait(&self) -> Result<ExitStatus, HandleError> {
        loop {
            match self.ask(&Request::Wait, Duration::from_secs(60)).await? {
                Answer::Live(Reply::Exited(status)) | Answer::Ended(status) => return Ok(status),
                Answer::Live(Reply::StillRunning) => {}
                Answer::Live(other) => return Err(unexpected(other)),
            }
        }
    }

    /// Sends a signal, such as `SIGHUP`, to the task's first process.
    pub async fn signal(&self, signal: &str) -> Result<(), HandleError> {
        self.demand(&Request::Signal { signal: signal.to_owned() }).await
    }

    /// Sends the signal, after the timeout SIGKILL to all that is left, and returns how the task ended. The supervisor
    /// carries it through even if this agent does not live to see it.
    pub async fn kill(&self, signal: &str, timeout: Duration) -> Result<ExitStatus, HandleError> {
        let timeout_ms = u64::try_from(timeout.as_millis()).unwrap_or(u64::MAX);
        match self.demand(&Request::Kill { signal: signal.to_owned(), timeout_ms }).await {
            Ok(()) => self.wait().await,
            Err(HandleError::Ended(status)) => Ok(*status),
            Err(error) => Err(error),
        }
    }

    /// Ends the supervisor of a task that has ended and removes the control directory; logs and data stay.
    pub async fn forget(self) -> Result<(), HandleError> {
        match self.ask(&Request::Forget, ANSWER_WITHIN).await? {
            Answer::Live(Reply::Done) | Answer::Ended(_) => {}
            Answer::Live(other) => return Err(unexpected(other)),
        }
        let deadline = Instant::now() + ANSWER_WITHIN;
        loop {
            let lock = Lock::try_acquire(&self.control).map_err(self.io("lock it"))?;
            if lock.is_some() {
                return fs::remove_dir_all(&self.control).map_err(self.io("remove it"));
            }
            if Instant::now() > deadline {
                return Err(HandleError::Mute(self.control));
            }
            sleep(POLL).await;
        }
    }

    /// Waits for the supervisor to come up and for the task to run or fail.
    async fn await_start(&self, child: &mut Child) -> Result<Phase, HandleError> {
        let deadline = Instant::now() + START_WITHIN;
        loop {
            let exited = child.try_wait().map_err(self.io("wait for its supervisor"))?.is_some();
            match self.exchange(&Request::AwaitStart, 2 * START_WITHIN).await {
                // An image may take minutes to come; the supervisor sets the limit.
                Ok(Reply::Status(State { phase: Phase::Starting, .. })) => {}
                Ok(Reply::Status(state)) => return Ok(state.phase),
                Ok(other) => return Err(unexpected(other)),
                Err(error) if is_absence(&error) && exited => return self.ended_state().map(|state| state.phase),
                Err(error) if is_absence(&error) && Instant::now() < deadline => sleep(POLL / 5).await,
                Err(error) if is_absence(&error) => return Err(HandleError::Mute(self.control.clone())),
                Err(error) => return Err(error),
            }
        }
    }

    async fn demand(&self, request: &Request) -> Result<(), HandleError> {
        match self.ask(request, ANSWER_WITHIN).await? {
            Answer::Live(Reply::Done) => Ok(()),
            Answer::Live(other) => Err(unexpected(other)),
            Answer::Ended(status) => Err(HandleError::Ended(Box::new(status))),
        }
    }

    /// Asks the supervisor, or settles what became of the task when there is none any more.
    async fn ask(&self, request: &Request, within: Duration) -> Result<Answer, HandleError> {
        let deadline = Instant::now() + ANSWER_WITHIN;
        loop {
            match self.exchange(request, within).await {
                Err(error) if is_absence(&error) => {}
                other => return other.map(Answer::Live),
            }
            if let Some(state) = self.settle().await? {
                return Ok(Answer::Ended(state));
            }
            // It lives but has no socket: it is coming up, or just about to end.
            if Instant::now() > deadline {
                return Err(HandleError::Mute(self.control.clone()));
            }
            sleep(POLL).await;
        }
    }

    /// A connection that the supervisor has made over to what was asked for.
    pub(crate) async fn hand_over(&self, request: &Request) -> Result<UnixStream, HandleError> {
        let talk = async {
            let (_dir, path) = protocol::socket_path(&self.control)?;
            let mut stream = UnixStream::connect(path).await?;
            match call(&mut stream, &Request::Hello { version: protocol::VERSION }).await? {
                Reply::Hello { version } if version == protocol::VERSION => {
                    let reply = call(&mut stream, request).await?;
                    Ok((stream, reply))
                }
                other => Ok((stream, other)),
            }
        };
        let (stream, reply) = match timeout(ANSWER_WITHIN, talk).await {
            Ok(answer) => answer.map_err(self.io("talk to its supervisor"))?,
            Err(_) => return Err(HandleError::Mute(self.control.clone())),
        };
        match reply {
            Reply::Done => Ok(stream),
            Reply::Refused { reason } => Err(HandleError::Refused(reason)),
            Reply::Hello { version } => Err(HandleError::Version { theirs: version, ours: protocol::VERSION }),
            other => Err(unexpected(other)),
        }
    }

    async fn exchange(&self, request: &Request, within: Duration) -> Result<Reply, HandleError> {
        let talk = async {
            let (_dir, path) = protocol::socket_path(&self.control)?;
            let mut stream = UnixStream::connect(path).await?;
            let hello = call(&mut stream, &Request::Hello { version: protocol::VERSION }).await?;
            match hello {
                Reply::Hello { version } if version == protocol::VERSION => call(&mut stream, request).await,
                other => Ok(other),
            }
        };
        let reply = match timeout(within, talk).await {
            Ok(reply) => reply.map_err(self.io("talk to its supervisor"))?,
            Err(_) => return Err(HandleError::Mute(self.control.clone())),
        };
        match reply {
            Reply::Hello { version } => Err(HandleError::Version { theirs: version, ours: protocol::VERSION }),
            Reply::Refused { reason } => Err(HandleError::Refused(reason)),
            reply => Ok(reply),
        }
    }

    /// `None` while a supervisor lives. Otherwise how the task ended; what a dead supervisor left running is killed first.
    async fn settle(&self) -> Result<Option<ExitStatus>, HandleError> {
        let handle = self.clone();
        let settled = tokio::task::spawn_blocking(move || handle.settle_now());
        settled.await.map_err(|error| self.io("settle it")(io::Error::other(error)))?
    }

    fn settle_now(&self) -> Result<Option<ExitStatus>, HandleError> {
        let Some(_lock) = Lock::try_acquire(&self.control).map_err(self.io("lock it"))? else { return Ok(None) };
        let state = State::read(&self.control).map_err(self.io("read its state"))?;
        let (cgroup, container, started_at_ns) = match state {
            Some(State { phase: Phase::Exited(status), .. }) => return Ok(Some(status)),
            Some(State { phase: Phase::Running { started_at_ns, .. }, cgroup, container }) => {
                (cgroup, container, started_at_ns)
            }
            Some(State { phase: Phase::Starting, cgroup, container }) => (cgroup, container, 0),
            None => (Cgroup::default(), None, 0),
        };
        self.clear(&cgroup, container.as_ref())?;
        let outcome = Outcome::Lost("its supervisor died; what was left of the task was killed".to_owned());
        let status = ExitStatus { outcome, oom_killed: false, started_at_ns, finished_at_ns: now_ns() };
        let state = State { phase: Phase::Exited(status.clone()), cgroup, container };
        state.write(&self.control).map_err(self.io("write its state"))?;
        Ok(Some(status))
    }

    fn clear(&self, cgroup: &Cgroup, container: Option<&ContainerRef>) -> Result<(), HandleError> {
        let control = self.control.clone();
        match container {
            Some(container) => {
                crate::container::clear(container).map_err(|source| HandleError::Container { control, source })
            }
            None => {
                let cleared = cgroup.kill_all().and_then(|()| cgroup.remove());
                cleared.map_err(|source| HandleError::Cgroup { control, source })
            }
        }
    }

    fn ended_state(&self) -> Result<State, HandleError> {
        self.settle_now()?;
        let state = State::read(&self.control).map_err(self.io("read its state"))?;
        state.ok_or_else(|| self.io("find its state")(io::ErrorKind::NotFound.into()))
    }

    fn io(&self, action: &'static str) -> impl Fn(io::Error) -> HandleError {
        let control = self.control.clone();
        move |source| HandleError::Io { control: control.clone(), action, source }
    }
}

/// Whether a task was ever prepared there. A supervisor writes its state before it does anything, and does nothing with a
/// damaged task: such a file alone stands for none.
fn is_taken(control: &Path) -> Result<bool, SpecError> {
    match TaskSpec::read(control) {
        Err(SpecError::Damaged { .. }) => Ok(!matches!(State::read(control), Ok(None))),
        other => other.map(|spec| spec.is_some()),
    }
}

enum Answer {
    Live(Reply),
    /// There is no supervisor any more.
    Ended(ExitStatus),
}

async fn call(stream: &mut UnixStream, request: &Request) -> io::Result<Reply> {
    stream.write_all(&protocol::encode(request)?).await?;
    let mut header = [0; 4];
    stream.read_exact(&mut header).await?;
    let mut body = vec![0; protocol::frame_length(header)?];
    stream.read_exact(&mut body).await?;
    protocol::decode(&body)
}

/// Whether the error means that no supervisor is there, or no longer.
fn is_absence(error: &HandleError) -> bool {
    use io::ErrorKind::{BrokenPipe, ConnectionRefused, ConnectionReset, NotFound, UnexpectedEof};
    let HandleError::Io { source, .. } = error else { return false };
    matches!(source.kind(), BrokenPipe | ConnectionRefused | ConnectionReset | NotFound | UnexpectedEof)
}

fn unexpected(reply: Reply) -> HandleError {
    HandleError::Unexpected(Box::new(reply))
}
