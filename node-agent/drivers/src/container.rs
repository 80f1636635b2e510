//! The life of a task that is a container, in its supervisor: image, sandbox, container, output, end.
//!
//! ```text
//! fetch ─> sandbox ─> create ─> give directories ─> attach ─> start ─> output to files … wait ─> remove ─> end on disk
//! ```
//!
//! The engine may go away in the middle. As long as the container's first process lives it is waited for; when that is gone,
//! too, and no engine comes back to tell how it ended, the task is lost.

use crate::cgroup::{Cgroup, Hierarchies};
use crate::desk::{Desk, Target};
use crate::init::explain;
use crate::logs::Rotator;
use crate::spec::{ContainerTask, Directories, TaskSpec};
use crate::state::{ContainerRef, ExitStatus, Outcome, Phase, now_ns};
use crate::supervisor::{NotStarted, exit_status, step};
use crate::users;
use containers::{ContainerSpec, Engine, EngineError, Frames, Mount, MountKind, Network, Output, Status};
use nix::sys::signal::Signal;
use nix::unistd::{Gid, Pid, Uid, chown};
use std::fs;
use std::future::Future;
use std::io;
use std::os::unix::fs::PermissionsExt;
use std::path::Path;
use std::sync::Arc;
use std::time::{Duration, Instant};
use tokio::time::sleep;

/// How long the end of a container whose engine is gone is not known before it counts as lost.
const ENGINE_AWAY_MAX: Duration = Duration::from_secs(30);

/// After the container's end its last output is on its way.
const LAST_OUTPUT: Duration = Duration::from_secs(2);

const RETRY: Duration = Duration::from_millis(500);
const NOTICE: Duration = Duration::from_millis(20);

/// Runs the container of a task to its end.
pub(crate) fn run(spec: &TaskSpec, task: &ContainerTask, desk: &Arc<Desk>) -> ExitStatus {
    if let Err(error) = Hierarchies::detect().and_then(|on| Cgroup::join_supervisors(&on, &spec.node)) {
        eprintln!("stays in the agent's cgroup: {}", explain(&error));
    }
    let mut oom_killed = false;
    let outcome = runtime().and_then(|runtime| runtime.block_on(live(spec, task, desk, &mut oom_killed)));
    exit_status(outcome, oom_killed, desk)
}

/// Signals a running container; blocks until the engine has done it.
pub(crate) fn signal(container: &ContainerRef, signal: Signal) -> Result<(), String> {
    let container = container.clone();
    let sent =
        blocking(async move { Engine::open(&container.socket).await?.kill(&container.name, signal.as_str()).await });
    sent.map_err(|error| format!("the signal could not be sent: {}", explain(&error)))
}

/// SIGKILL, again and again until the container is over.
pub(crate) fn strike(container: &ContainerRef, is_over: impl Fn() -> bool) {
    while !is_over() {
        if let Err(problem) = signal(container, Signal::SIGKILL) {
            eprintln!("kill: {problem}");
        }
        std::thread::sleep(RETRY);
    }
}

/// Removes what a dead supervisor left.
pub(crate) fn clear(container: &ContainerRef) -> Result<(), EngineError> {
    let container = container.clone();
    blocking(async move { Engine::open(&container.socket).await?.remove(&container.name).await })
}

/// On a thread of its own: callers have small stacks, or a runtime already.
pub(crate) fn blocking<T: Send + 'static>(
    work: impl Future<Output = Result<T, EngineError>> + Send + 'static,
) -> Result<T, EngineError> {
    let broken = |error: &dyn std::fmt::Display| EngineError::Broken(format!("cannot speak to the engine: {error}"));
    let talk = move || tokio::runtime::Builder::new_current_thread().enable_all().build().map(|on| on.block_on(work));
    let thread = std::thread::Builder::new().name("engine".to_owned()).spawn(talk).map_err(|error| broken(&error))?;
    match thread.join() {
        Ok(Ok(done)) => done,
        Ok(Err(error)) => Err(broken(&error)),
        Err(_) => Err(EngineError::Broken("the thread that speaks to the engine failed".to_owned())),
    }
}

fn runtime() -> Result<tokio::runtime::Runtime, NotStarted> {
    step("start a runtime", tokio::runtime::Builder::new_current_thread().enable_all().build())
}

async fn live(
    spec: &TaskSpec,
    task: &ContainerTask,
    desk: &Arc<Desk>,
    oom_killed: &mut bool,
) -> Result<Outcome, NotStarted> {
    let container = ContainerRef { socket: task.container.socket.clone(), name: task.container.name.clone() };
    step("write the state", desk.record(|state| state.container = Some(container.clone())))?;
    let mut logs = step("open the task's logs", Logs::open(spec))?;
    let engine = Engine::open(&container.socket).await?;
    let made = unless_killed(desk, make(&engine, spec, task)).await;
    let started = match made {
        Ok(id) => begin(&engine, &id, spec, task).await.map(|frames| (id, frames)),
        Err(error) => Err(error),
    };
    let (id, frames) = match started {
        Ok(started) => started,
        Err(error) => {
            remove(&engine, &container.name).await;
            return Err(error);
        }
    };
    let pid = announce(&engine, &id, container, desk).await?;
    let mut life = Life { engine, id, tty: task.container.tty, pid, frames: Some(frames), logs: &mut logs };
    let end = life.follow().await;
    desk.set_main(None);
    life.engine.note_use(&task.container);
    remove(&life.engine, &life.id).await;
    Ok(end.map_or_else(Outcome::Lost, |status| {
        *oom_killed = status.oom_killed;
        outcome(status.exit_code)
    }))
}

/// Fails when a kill comes first: nothing of the task may begin any more.
async fn unless_killed<T>(desk: &Desk, work: impl Future<Output = Result<T, NotStarted>>) -> Result<T, NotStarted> {
    let killed = async {
        while !desk.is_to_die() {
            sleep(NOTICE).await;
        }
    };
    tokio::select! {
        done = work => if desk.is_to_die() { Err(killed_before()) } else { done },
        () = killed => Err(killed_before()),
    }
}

fn killed_before() -> NotStarted {
    NotStarted::Reported("it was killed before it began".to_owned())
}

/// Everything up to a container that could be started.
async fn make(engine: &Engine, spec: &TaskSpec, task: &ContainerTask) -> Result<String, NotStarted> {
    if let Some(netns) = &spec.netns {
        step("find its network namespace", fs::metadata(netns)).map_err(|error| named(error, netns))?;
    }
    let image = engine.ensure_image(&task.container).await?;
    if let Network::Sandbox(sandbox) = &task.container.network {
        engine.ensure_sandbox(sandbox, &task.container.images).await?;
    }
    let files = step("write the container's files", write_files(&spec.dirs, task))?;
    let mut container = ContainerSpec {
        env: spec.env.clone(),
        user: spec.user.clone(),
        limits: limits(&spec.limits),
        ..task.container.clone()
    };
    container.mounts.extend(files);
    let id = engine.create(&container).await?;
    let user = container.user.as_deref().unwrap_or(&image.user);
    give_directories(engine, &id, user, &spec.dirs).await?;
    Ok(id)
}

fn named(error: NotStarted, path: &Path) -> NotStarted {
    NotStarted::Reported(format!("{}: {}", path.display(), explain(&error)))
}

fn limits(limits: &crate::spec::Limits) -> containers::Limits {
    containers::Limits {
        cpu_shares: limits.cpu_mhz.max(2),
        cpu_quota_us: limits.cpu_quota.map(|quota| quota.us),
        cpu_period_us: limits.cpu_quota.map(|quota| quota.period_us),
        cpuset: limits.cpuset.clone(),
        memory_bytes: limits.memory_ceiling(),
        memory_reserved_bytes: limits.memory_max_bytes.map(|_| limits.memory_bytes),
        pids_max: limits.pids_max,
    }
}

/// Attached before it starts, so that its first word is not lost.
async fn begin(engine: &Engine, id: &str, spec: &TaskSpec, task: &ContainerTask) -> Result<Frames, NotStarted> {
    // Podman makes the processes when it is attached to, and fails there.
    let refused = |error| why_not(error, spec, &task.container);
    let (frames, _) = engine.attach(id, task.container.tty).await.map_err(refused)?;
    engine.start(id).await.map_err(refused)?;
    Ok(frames)
}

/// The engine's words for what cannot be executed, and what to do about it.
fn why_not(error: EngineError, spec: &TaskSpec, container: &ContainerSpec) -> NotStarted {
    let EngineError::Refused { message, .. } = &error else { return error.into() };
    let program = container.entrypoint.first().or(container.command.first()).or(spec.argv.first());
    let program = program.map_or("", String::as_str);
    let hint = if message.contains("no such file") || message.contains("not found") {
        format!("does not exist in image {} or along its PATH; give its full path there", container.image)
    } else if message.contains("permission denied") {
        format!("may not be executed by the container's user; check its mode in image {}", container.image)
    } else {
        return error.into();
    };
    NotStarted::Reported(format!("command {program:?} {hint} ({message})"))
}

/// Tells everyone that it runs, and does what was asked for meanwhile.
async fn announce(engine: &Engine, id: &str, container: ContainerRef, desk: &Arc<Desk>) -> Result<i32, NotStarted> {
    let pid = engine.status(id).await.ok().flatten().map_or(0, |status| status.pid);
    let cgroup = Hierarchies::detect().map(|on| Cgroup::of_process(&on, pid)).unwrap_or_default();
    desk.set_main(Some(Target::Container(container)));
    let running = desk.record(|state| {
        state.phase = Phase::Running { pid, started_at_ns: now_ns() };
        state.cgroup = cgroup;
    });
    if let Err(error) = running {
        desk.set_main(None);
        remove(engine, id).await;
        return step("write the state", Err(error));
    }
    let desk = Arc::clone(desk);
    // It speaks to the engine in its own time.
    let _ = tokio::task::spawn_blocking(move || desk.catch_up_kill(&Cgroup::default())).await;
    Ok(pid)
}

struct Life<'a> {
    engine: Engine,
    id: String,
    tty: bool,
    pid: i32,
    /// `None` while nothing is attached.
    frames: Option<Frames>,
    logs: &'a mut Logs,
}

impl Life<'_> {
    /// How it ended, or why that is not known.
    async fn follow(&mut self) -> Result<Status, String> {
        let mut away_since = None;
        loop {
            let waited = {
                let wait = self.engine.wait(&self.id);
                let copy = copy(&mut self.frames, self.logs);
                tokio::pin!(wait);
                tokio::select! {
                    waited = &mut wait => waited,
                    () = copy => tokio::time::timeout(RETRY, wait).await.unwrap_or(Ok(Some(still_running()))),
                }
            };
            match waited {
                Ok(Some(status)) if !status.running => {
                    let _ = tokio::time::timeout(LAST_OUTPUT, copy(&mut self.frames, self.logs)).await;
                    return Ok(status);
                }
                Ok(Some(_)) => away_since = None,
                Ok(None) => return Err("its container was removed by somebody else".to_owned()),
                Err(error) => {
                    eprintln!("waiting for the container: {}", explain(&error));
                    let since = *away_since.get_or_insert_with(Instant::now);
                    if since.elapsed() > ENGINE_AWAY_MAX && !is_alive(self.pid) {
                        return Err(format!("the container engine is gone, and the container with it: {error}"));
                    }
                    sleep(RETRY).await;
                }
            }
            self.attach_again().await;
        }
    }

    async fn attach_again(&mut self) {
        if self.frames.is_none() {
            self.frames = self.engine.attach(&self.id, self.tty).await.ok().map(|(frames, _)| frames);
        }
    }
}

fn still_running() -> Status {
    Status { running: true, ..Status::default() }
}

/// Output to files, until there is no more.
async fn copy(frames: &mut Option<Frames>, logs: &mut Logs) {
    let Some(open) = frames else { return std::future::pending().await };
    while let Ok(Some(chunk)) = open.next().await {
        logs.write(chunk.from, &chunk.bytes);
    }
    *frames = None;
}

fn is_alive(pid: i32) -> bool {
    pid > 0 && nix::sys::signal::kill(Pid::from_raw(pid), None) != Err(nix::errno::Errno::ESRCH)
}

async fn remove(engine: &Engine, id: &str) {
    if let Err(error) = engine.remove(id).await {
        eprintln!("{}", explain(&error));
    }
}

/// Engines tell a signal as 128 and its number, as shells do.
fn outcome(code: i64) -> Outcome {
    let code = i32::try_from(code).unwrap_or(-1);
    match Signal::try_from(code - 128) {
        Ok(signal) => Outcome::Signaled(signal as i32),
        Err(_) => Outcome::Exited(code),
    }
}

struct Logs {
    stdout: Rotator,
    stderr: Rotator,
    losing: bool,
}

impl Logs {
    fn open(spec: &TaskSpec) -> io::Result<Self> {
        let open = |stream: &str| Rotator::open(&spec.dirs.logs, &format!("{}.{stream}", spec.task), spec.logs);
        Ok(Self { stdout: open("stdout")?, stderr: open("stderr")?, losing: false })
    }

    /// A full disk costs log lines, never the task's progress.
    fn write(&mut self, from: Output, bytes: &[u8]) {
        let to = match from {
            Output::Stdout => &mut self.stdout,
            Output::Stderr => &mut self.stderr,
        };
        let failed = to.write(bytes).err();
        if let Some(error) = failed.as_ref().filter(|_| !self.losing) {
            eprintln!("output is being lost: {error}; make room on the disk");
        }
        self.losing = failed.is_some();
    }
}

/// Below the control directory, which goes with the task.
fn write_files(dirs: &Directories, task: &ContainerTask) -> io::Result<Vec<Mount>> {
    let dir = dirs.control.join("files");
    fs::create_dir_all(&dir)?;
    let write = |(index, (target, text)): (usize, (&String, &String))| {
        let source = dir.join(index.to_string());
        fs::write(&source, text)?;
        fs::set_permissions(&source, fs::Permissions::from_mode(0o644))?;
        Ok(Mount { kind: MountKind::Bind { source, propagation: None }, target: target.clone(), read_only: true })
    };
    task.files.iter().enumerate().map(write).collect()
}

/// `local` and `secrets` belong to whom the container runs as; who that is stands in its own files where it is a name.
async fn give_directories(engine: &Engine, id: &str, user: &str, dirs: &Directories) -> Result<(), NotStarted> {
    let (uid, gid) = match numbers(user) {
        Some(numbers) => numbers,
        None => {
            let passwd = engine.file(id, "/etc/passwd").await?.unwrap_or_default();
            let group = engine.file(id, "/etc/group").await?.unwrap_or_default();
            let name = user.split(':').next().unwrap_or(user);
            let found = users::find(name, &passwd, &group);
            let missing =
                || NotStarted::Reported(format!("user {user:?} is not in the image's /etc/passwd; give a number"));
            found.map(|found| (found.uid, found.gid)).ok_or_else(missing)?
        }
    };
    for dir in [&dirs.local, &dirs.secrets] {
        let given = chown(dir, Some(Uid::from_raw(uid)), Some(Gid::from_raw(gid)));
        step("give the task its directories", given.map_err(Into::into))?;
    }
    Ok(())
}

/// Root when nobody is named; a user without a group is in root's.
fn numbers(user: &str) -> Option<(u32, u32)> {
    let mut parts = user.splitn(2, ':');
    match (parts.next().unwrap_or(""), parts.next()) {
        ("" | "root", None) => Some((0, 0)),
        (uid, None) => Some((uid.parse().ok()?, 0)),
        (uid, Some(gid)) => Some((uid.parse().ok()?, gid.parse().ok()?)),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn codes_of_signals_are_told_from_others() {
        for (code, expect) in [
            (0, Outcome::Exited(0)),
            (42, Outcome::Exited(42)),
            (128, Outcome::Exited(128)),
            (137, Outcome::Signaled(9)),
            (139, Outcome::Signaled(11)),
            (255, Outcome::Exited(255)),
        ] {
            assert_eq!(outcome(code), expect);
        }
    }

    #[test]
    fn numbers_need_no_image() {
        assert_eq!(
            [numbers(""), numbers("root"), numbers("7"), numbers("7:8")],
            [Some((0, 0)), Some((0, 0)), Some((7, 0)), Some((7, 8))]
        );
        assert_eq!([numbers("web"), numbers("web:8"), numbers("7:staff")], [None, None, None]);
    }
}
