//! `supervise`: one process per task that outlives the agent, owns the task's cgroup, namespaces, pipes and log files, and
//! keeps its exit status on disk before anyone is told.
//!
//! ```text
//! main thread    cgroup, log threads ─> waits for keeper ─> clears up ─> writes the end ─> lingers for a moment
//! keeper         makes the pid namespace, starts task-init, waits for its end (it must live as long as the task: the
//!                kernel ends task-init with the thread that started it)
//! log threads    pipe -> rotated files
//! clients        one thread for each connection of the agent
//! ```

use crate::cgroup::{Cgroup, CgroupError, Hierarchies};
use crate::container;
use crate::desk::{Desk, Inner, STACK, Target, WAIT_TURN};
use crate::enter;
use crate::init::{ENTER, ISOLATE, Order, Report, explain};
use crate::lock::Lock;
use crate::logs::{Rotator, pump};
use crate::protocol::{self, Reply, Request, read_frame, write_frame};
use crate::spec::{Isolation, SpecError, TaskSpec};
use crate::state::{ExitStatus, Outcome, Phase, State, now_ns};
use crate::users::{self, Identity, UserError};
use nix::sched::{CloneFlags, unshare};
use nix::sys::wait::{Id, WaitPidFlag, waitid};
use nix::unistd::{Gid, Pid, Uid, chown, setsid};
use std::fs;
use std::io::{self, PipeWriter};
use std::os::fd::OwnedFd;
use std::os::unix::net::{UnixListener, UnixStream};
use std::os::unix::process::{CommandExt, ExitStatusExt};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitCode, Stdio};
use std::sync::Arc;
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};

const CLIENTS_MAX: usize = 64;

#[derive(Debug, thiserror::Error)]
enum SuperviseError {
    #[error("{0}: another supervisor has it")]
    Locked(PathBuf),
    #[error("{0}: there is no task; the agent writes it before it starts a supervisor")]
    NoTask(PathBuf),
    #[error("{0}: its task was started before and never runs twice; forget it first")]
    StartedBefore(PathBuf),
    #[error(transparent)]
    Spec(#[from] SpecError),
    #[error("cannot {action}")]
    Io {
        action: &'static str,
        #[source]
        source: io::Error,
    },
}

/// Why nothing of a task ran.
#[derive(Debug, thiserror::Error)]
pub(crate) enum NotStarted {
    #[error(transparent)]
    Cgroup(#[from] CgroupError),
    #[error(transparent)]
    User(#[from] UserError),
    #[error("cannot {action}")]
    Io {
        action: &'static str,
        #[source]
        source: io::Error,
    },
    #[error(transparent)]
    Engine(#[from] containers::EngineError),
    #[error("{0}")]
    Reported(String),
}

/// Runs the task of a control directory to its end.
pub fn main(control: &Path) -> ExitCode {
    match run(control) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("{}", explain(&error));
            ExitCode::FAILURE
        }
    }
}

fn run(control: &Path) -> Result<(), SuperviseError> {
    close_inherited();
    // Fails for a leader of a process group, which then was started by hand.
    let _ = setsid();
    let lock = act("lock the control directory", Lock::try_acquire(control))?;
    let _lock = lock.ok_or_else(|| SuperviseError::Locked(control.to_owned()))?;
    let spec = TaskSpec::read(control)?.ok_or_else(|| SuperviseError::NoTask(control.to_owned()))?;
    if act("read the state", State::read(control))?.is_some() {
        return Err(SuperviseError::StartedBefore(control.to_owned()));
    }
    let desk = Arc::new(act("write the state", Desk::open(control))?);
    act("serve the agent", serve(&desk))?;
    let status = match &spec.isolation {
        Isolation::Container(task) => container::run(&spec, task, &desk),
        Isolation::Exec(_) | Isolation::Raw => run_task(&spec, &desk),
    };
    desk.finish(status);
    desk.linger();
    let _ = fs::remove_file(control.join(protocol::SOCKET));
    Ok(())
}

/// What the agent itself inherited without close-on-exec would reach every task.
fn close_inherited() {
    let open: Vec<i32> = fs::read_dir("/proc/self/fd")
        .map(|dir| dir.flatten().filter_map(|entry| entry.file_name().to_str()?.parse().ok()).collect())
        .unwrap_or_default();
    for fd in open.into_iter().filter(|fd| *fd > 2) {
        // The directory's own is closed by now.
        let _ = nix::unistd::close(fd);
    }
}

/// The cgroup is on disk before the first process enters it: whoever finds this supervisor dead knows what to clear.
fn run_task(spec: &TaskSpec, desk: &Arc<Desk>) -> ExitStatus {
    let outcome = prepare(spec, desk).and_then(|made| supervise(made, desk));
    let cgroup = desk.lock().state.cgroup.clone();
    let oom_killed = cgroup.oom_kills() > 0;
    if let Err(error) = cgroup.kill_all().and_then(|()| cgroup.remove()) {
        eprintln!("{}", explain(&error));
    }
    exit_status(outcome, oom_killed, desk)
}

pub(crate) fn exit_status(outcome: Result<Outcome, NotStarted>, oom_killed: bool, desk: &Desk) -> ExitStatus {
    let outcome = outcome.unwrap_or_else(|error| Outcome::NotStarted(explain(&error)));
    let started_at_ns = match desk.lock().state.phase {
        Phase::Running { started_at_ns, .. } => started_at_ns,
        _ => 0,
    };
    ExitStatus { outcome, oom_killed, started_at_ns, finished_at_ns: now_ns() }
}

struct Prepared {
    order: Order,
    stdout: PipeWriter,
    stderr: PipeWriter,
    pumps: [JoinHandle<()>; 2],
}

fn prepare(spec: &TaskSpec, desk: &Desk) -> Result<Prepared, NotStarted> {
    let identity = identity(spec)?;
    let on = Hierarchies::detect()?;
    if let Err(error) = Cgroup::join_supervisors(&on, &spec.node) {
        eprintln!("stays in the agent's cgroup: {}", explain(&error));
    }
    let path = spec.cgroup_path();
    let cgroup = Cgroup::claim(&on, &path)?;
    step("write the state", desk.record(|state| state.cgroup = cgroup.clone()))?;
    cgroup.create(&on, &path, &spec.limits)?;
    if let Some(Identity { uid, gid, .. }) = &identity {
        for dir in [&spec.dirs.local, &spec.dirs.secrets] {
            let given = chown(dir, Some(Uid::from_raw(*uid)), Some(Gid::from_raw(*gid)));
            step("give the task its directories", given.map_err(Into::into))?;
        }
    }
    let (stdout, first) = step("open the task's stdout log", log(spec, "stdout"))?;
    let (stderr, second) = step("open the task's stderr log", log(spec, "stderr"))?;
    let order = Order { spec: spec.clone(), identity, cgroup };
    Ok(Prepared { order, stdout, stderr, pumps: [first, second] })
}

pub(crate) fn identity(spec: &TaskSpec) -> Result<Option<Identity>, UserError> {
    let default = match spec.isolation {
        Isolation::Exec(_) => Some("nobody"),
        Isolation::Raw | Isolation::Container(_) => None,
    };
    spec.user.as_deref().or(default).map(users::resolve).transpose()
}

fn log(spec: &TaskSpec, stream: &str) -> io::Result<(PipeWriter, JoinHandle<()>)> {
    let to = Rotator::open(&spec.dirs.logs, &format!("{}.{stream}", spec.task), spec.logs)?;
    let (reader, writer) = io::pipe()?;
    Ok((writer, pump(reader, to)?))
}

fn supervise(made: Prepared, desk: &Arc<Desk>) -> Result<Outcome, NotStarted> {
    let Prepared { order, stdout, stderr, pumps } = made;
    let keeper = {
        let (desk, order) = (Arc::clone(desk), order.clone());
        thread::Builder::new().stack_size(STACK).spawn(move || keep(&order, stdout, stderr, &desk))
    };
    let outcome = step("start a thread", keeper)?.join();
    let outcome = outcome.unwrap_or_else(|_| Err(NotStarted::Reported("the supervisor's keeper failed".to_owned())));
    // What the task left behind would keep the pipes open.
    if let Err(error) = order.cgroup.kill_all() {
        eprintln!("{}", explain(&error));
    }
    drain(pumps);
    outcome
}

/// Waits for the last output, but not for a process that left the cgroup and still holds the pipe.
fn drain(pumps: [JoinHandle<()>; 2]) {
    let deadline = Instant::now() + Duration::from_secs(2);
    while pumps.iter().any(|pump| !pump.is_finished()) && Instant::now() < deadline {
        thread::sleep(Duration::from_millis(1));
    }
}

/// The life of the task's first process, from start to end.
fn keep(order: &Order, stdout: PipeWriter, stderr: PipeWriter, desk: &Desk) -> Result<Outcome, NotStarted> {
    if desk.is_to_die() {
        return Err(NotStarted::Reported("it was killed before it began".to_owned()));
    }
    let isolated = matches!(order.spec.isolation, Isolation::Exec(_));
    if isolated {
        // From here on this thread's children are in a new pid namespace, the first of them as its pid 1.
        step("make a pid namespace", unshare(CloneFlags::CLONE_NEWPID).map_err(Into::into))?;
    }
    let (reports, theirs) = step("make a socket", UnixStream::pair())?;
    let stage = if isolated { ISOLATE } else { ENTER };
    let mut child = step("start task-init", spawn_init(stage, theirs, stdout, stderr))?;
    if let Err(error) = await_task(order, &reports, isolated) {
        // It has failed by itself, or its order never reached it.
        let _ = child.kill();
        let _ = child.wait();
        return Err(error);
    }
    let pid = child.id().cast_signed();
    desk.set_main(Some(Target::Process(Pid::from_raw(pid))));
    if let Err(error) = desk.record(|state| state.phase = Phase::Running { pid, started_at_ns: now_ns() }) {
        // A task of which no one would know after this supervisor's death must not run.
        desk.set_main(None);
        let _ = order.cgroup.kill_all();
        let _ = child.wait();
        return step("write the state", Err(error));
    }
    desk.catch_up_kill(&order.cgroup);
    let told = if isolated { read_frame(&reports).ok() } else { None };
    step("wait for the task", collect(&mut child, told, desk))
}

fn spawn_init(stage: &str, orders: UnixStream, stdout: PipeWriter, stderr: PipeWriter) -> io::Result<Child> {
    Command::new("/proc/self/exe")
        .arg0("meshctl")
        .args(["task-init", stage])
        .env_clear()
        .stdin(Stdio::from(OwnedFd::from(orders)))
        .stdout(stdout)
        .stderr(stderr)
        .spawn()
}

fn await_task(order: &Order, reports: &UnixStream, isolated: bool) -> Result<(), NotStarted> {
    step("give task-init its order", write_frame(reports, order))?;
    match read_frame(reports) {
        Ok(Report::Failed(reason)) => Err(NotStarted::Reported(reason)),
        Ok(Report::Started) if isolated => Ok(()),
        Err(error) if error.kind() == io::ErrorKind::UnexpectedEof && !isolated => Ok(()),
        _ => Err(NotStarted::Reported(
            "task-init ended before the task began; if it was out of memory, raise the task's memory limit".to_owned(),
        )),
    }
}

/// The process stays a zombie, and its number its own, until no one can signal it any more.
fn collect(child: &mut Child, told: Option<Report>, desk: &Desk) -> io::Result<Outcome> {
    let pid = Pid::from_raw(child.id().cast_signed());
    while let Err(errno) = waitid(Id::Pid(pid), WaitPidFlag::WEXITED | WaitPidFlag::WNOWAIT) {
        if errno != nix::errno::Errno::EINTR {
            return Err(errno.into());
        }
    }
    desk.set_main(None);
    let status = child.wait()?;
    Ok(match (told, status.signal(), status.code()) {
        (Some(Report::Exited(code)), ..) => Outcome::Exited(code),
        (Some(Report::Signaled(signal)), ..) | (_, Some(signal), _) => Outcome::Signaled(signal),
        (_, _, code) => Outcome::Exited(code.unwrap_or(-1)),
    })
}

fn serve(desk: &Arc<Desk>) -> io::Result<()> {
    let (_dir, path) = protocol::socket_path(&desk.control)?;
    let listener = UnixListener::bind(path)?;
    let desk = Arc::clone(desk);
    let accept = move || {
        for stream in listener.incoming() {
            match stream {
                Ok(stream) => admit(stream, &desk),
                // Out of descriptors or memory: the agent tries again.
                Err(_) => thread::sleep(Duration::from_millis(100)),
            }
        }
    };
    thread::Builder::new().stack_size(STACK).spawn(accept).map(drop)
}

fn admit(stream: UnixStream, desk: &Arc<Desk>) {
    if desk.lock().clients >= CLIENTS_MAX {
        return;
    }
    desk.lock().clients += 1;
    let client = Arc::clone(desk);
    let started = thread::Builder::new().stack_size(STACK).spawn(move || {
        // A client that breaks off or talks nonsense only loses its connection.
        let _ = converse(&stream, &client);
        client.lock().clients -= 1;
        client.changed.notify_all();
    });
    if started.is_err() {
        desk.lock().clients -= 1;
    }
}

fn converse(stream: &UnixStream, desk: &Arc<Desk>) -> io::Result<()> {
    stream.set_read_timeout(Some(WAIT_TURN))?;
    stream.set_write_timeout(Some(Duration::from_secs(10)))?;
    let greeting: Request = read_frame(stream)?;
    write_frame(stream, &Reply::Hello { version: protocol::VERSION })?;
    if greeting != (Request::Hello { version: protocol::VERSION }) {
        return Ok(());
    }
    loop {
        let request = read_frame(stream)?;
        if let Request::Exec(wanted) = &request {
            let entered = enter::begin(desk, wanted);
            let reply =
                entered.as_ref().map_or_else(|reason| Reply::Refused { reason: reason.clone() }, |_| Reply::Done);
            write_frame(stream, &reply)?;
            return entered.map_or(Ok(()), |entered| enter::carry(entered, stream));
        }
        let reply = answer(&request, desk);
        write_frame(stream, &reply)?;
        if request == Request::Forget && reply == Reply::Done {
            desk.lock().forgotten = true;
            desk.changed.notify_all();
            return Ok(());
        }
    }
}

fn answer(request: &Request, desk: &Arc<Desk>) -> Reply {
    match request {
        Request::Hello { .. } => Reply::Hello { version: protocol::VERSION },
        Request::Status => Reply::Status(desk.lock().state.clone()),
        Request::AwaitStart => {
            let started = |inner: &Inner| inner.state.phase != Phase::Starting;
            Reply::Status(desk.wait_until(WAIT_TURN, started).state.clone())
        }
        Request::Signal { signal } => done(desk.signal(signal)),
        Request::Kill { signal, timeout_ms } => done(desk.kill(signal, Duration::from_millis(*timeout_ms))),
        Request::Wait => {
            let inner = desk.wait_until(WAIT_TURN, |inner| inner.ended().is_some());
            inner.ended().cloned().map_or(Reply::StillRunning, Reply::Exited)
        }
        Request::Exec(_) => Reply::Refused { reason: "not in the middle of something else".to_owned() },
        Request::Forget if desk.lock().ended().is_some() => Reply::Done,
        Request::Forget => Reply::Refused { reason: "the task still runs; kill it first".to_owned() },
    }
}

fn done(result: Result<(), String>) -> Reply {
    result.map_or_else(|reason| Reply::Refused { reason }, |()| Reply::Done)
}

fn act<T>(action: &'static str, done: io::Result<T>) -> Result<T, SuperviseError> {
    done.map_err(|source| SuperviseError::Io { action, source })
}

pub(crate) fn step<T>(action: &'static str, done: io::Result<T>) -> Result<T, NotStarted> {
    done.map_err(|source| NotStarted::Io { action, source })
}
