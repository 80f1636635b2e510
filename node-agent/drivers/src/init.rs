//! `task-init`: the last steps between a supervisor and a task, each in the process that they change.
//!
//! - `isolate` is pid 1 of an exec task's pid namespace. It enters the cgroup and the namespaces, builds the root, gives
//!   up rights, starts `enter`, then only forwards signals and collects children until the task's first process ends.
//! - `enter` becomes the user and then the task's program.
//! - `join` becomes a further command of a task that runs; its three streams are the command's, and an error is told on them.
//! - `hold` is all that runs in a sandbox container: it enters the allocation's network namespace and waits.
//!
//! Orders come and reports go over the socket that is standard input; the task's own standard input is /dev/null.

use crate::cgroup::{Cgroup, CgroupError};
use crate::enter::JoinOrder;
use crate::protocol::{read_frame, write_frame};
use crate::root::{self, RootError};
use crate::spec::{Isolation, RootSpec, TaskSpec};
use crate::users::Identity;
use caps::{CapSet, Capability, CapsHashSet};
use nix::errno::Errno;
use nix::sched::{CloneFlags, setns, unshare};
use nix::sys::prctl;
use nix::sys::resource::{Resource, getrlimit, setrlimit};
use nix::sys::signal::{SigSet, Signal, kill};
use nix::sys::stat::{Mode, umask};
use nix::sys::wait::{WaitPidFlag, WaitStatus, waitpid};
use nix::unistd::{Gid, Pid, Uid, chdir, setgid, setgroups, sethostname, setsid, setuid};
use serde::{Deserialize, Serialize};
use std::fs::{self, File};
use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::fs::PermissionsExt;
use std::os::unix::net::UnixStream;
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Command, ExitCode, Stdio};

pub(crate) const ISOLATE: &str = "isolate";
pub(crate) const ENTER: &str = "enter";
pub(crate) const JOIN: &str = "join";
const HOLD: &str = "hold";

/// Where a sandbox container sees the namespace that it is to enter.
const HELD_NETNS: &str = "/netns";

const DEFAULT_PATH: &str = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin";

/// What Nomad leaves to a task that runs as root; other users have none of them.
pub(crate) const DEFAULT_CAPABILITIES: [Capability; 13] = [
    Capability::CAP_AUDIT_WRITE,
    Capability::CAP_CHOWN,
    Capability::CAP_DAC_OVERRIDE,
    Capability::CAP_FOWNER,
    Capability::CAP_FSETID,
    Capability::CAP_KILL,
    Capability::CAP_MKNOD,
    Capability::CAP_NET_BIND_SERVICE,
    Capability::CAP_SETFCAP,
    Capability::CAP_SETGID,
    Capability::CAP_SETPCAP,
    Capability::CAP_SETUID,
    Capability::CAP_SYS_CHROOT,
];

#[derive(Clone, Debug, Serialize, Deserialize)]
pub(crate) struct Order {
    pub spec: TaskSpec,
    /// `None` keeps the agent's own user.
    pub identity: Option<Identity>,
    pub cgroup: Cgroup,
}

/// `enter` says nothing when all is well: its end of the socket closes as the task's program takes its place.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) enum Report {
    Started,
    Failed(String),
    Exited(i32),
    Signaled(i32),
}

#[derive(Debug, thiserror::Error)]
enum InitError {
    #[error("task-init: cannot {action}")]
    System {
        action: &'static str,
        #[source]
        source: io::Error,
    },
    #[error(transparent)]
    Cgroup(#[from] CgroupError),
    #[error(transparent)]
    Root(#[from] RootError),
    #[error("network namespace {path}: cannot be entered")]
    Netns {
        path: PathBuf,
        #[source]
        source: io::Error,
    },
    #[error(transparent)]
    Seccomp(#[from] crate::seccomp::SeccompError),
    #[error("capabilities cannot be given up: {0}")]
    Capabilities(#[from] caps::errors::CapsError),
    #[error("command {program:?} {problem}")]
    Command { program: String, problem: String },
    #[error("{0}")]
    Reported(String),
}

/// Runs a stage; started by a supervisor only.
pub fn main(stage: &str, order: Option<&Path>) -> ExitCode {
    if let (JOIN, Some(order)) = (stage, order) {
        return join(order);
    }
    let Ok(supervisor) = io::stdin().as_fd().try_clone_to_owned().map(UnixStream::from) else {
        return ExitCode::FAILURE;
    };
    let done = match stage {
        ISOLATE => isolate(&supervisor),
        ENTER => enter(&supervisor).map(|never| match never {}),
        HOLD => return hold().unwrap_or(ExitCode::from(3)),
        _ => {
            eprintln!("task-init is started by `meshctl supervise` only");
            return ExitCode::from(2);
        }
    };
    done.unwrap_or_else(|error| {
        // Nobody listens when the supervisor is gone, and then nobody needs to.
        let _ = write_frame(&supervisor, &Report::Failed(explain(&error)));
        ExitCode::FAILURE
    })
}

/// An error with its causes, in one line.
pub(crate) fn explain(error: &dyn std::error::Error) -> String {
    let causes = std::iter::successors(error.source(), |cause| cause.source());
    causes.fold(error.to_string(), |text, cause| format!("{text}: {cause}"))
}

fn isolate(supervisor: &UnixStream) -> Result<ExitCode, InitError> {
    // The supervisor's death is the task's. If it died before this line, reading the order fails.
    system("follow the supervisor", prctl::set_pdeathsig(Signal::SIGKILL))?;
    let order = read_order(supervisor)?;
    let Isolation::Exec(root) = &order.spec.isolation else {
        return Err(InitError::Reported("the task is not to be isolated".to_owned()));
    };
    enter_namespaces(&order, root)?;
    let owner = order.identity.clone().unwrap_or(Identity { uid: 0, gid: 0, groups: Vec::new() });
    root::enter(root, &order.spec.dirs, &owner, order.spec.limits.memory_bytes)?;
    give_up_rights(&kept_capabilities(root))?;
    system("follow the supervisor", prctl::set_pdeathsig(Signal::SIGKILL))?;
    let signals = SigSet::all();
    system("block signals", signals.thread_block())?;
    let task = start_task(&order)?;
    system_io("report", write_frame(supervisor, &Report::Started))?;
    let end = reap_until(task, &signals);
    let _ = write_frame(supervisor, &end);
    Ok(exit_code(&end))
}

fn join(order: &Path) -> ExitCode {
    let error = match try_join(order) {
        Ok(never) => match never {},
        Err(error) => error,
    };
    eprintln!("{}", explain(&error));
    ExitCode::from(if matches!(error, InitError::Command { .. }) { 127 } else { 126 })
}

fn try_join(file: &Path) -> Result<Never, InitError> {
    let text = system_io("read the order", fs::read(file))?;
    system_io("remove the order", fs::remove_file(file))?;
    let order: JoinOrder = system_io("understand the order", serde_json::from_slice(&text).map_err(io::Error::other))?;
    // What leads a session and opens a terminal has it for its own.
    system("make a session", setsid())?;
    let terminal = order.tty.as_ref().map(|tty| File::options().read(true).write(true).open(tty)).transpose();
    drop(system_io("open the terminal", terminal)?);
    order.cgroup.enter()?;
    match (&order.spec.isolation, order.beside) {
        (Isolation::Exec(root), Some(beside)) => {
            enter_beside(beside)?;
            give_up_rights(&kept_capabilities(root))?;
        }
        _ => join_netns(order.spec.netns.as_deref())?,
    }
    become_program(&order.spec, order.identity.as_ref())
}

/// The namespaces of a process of the task; that of its pids is this one's already.
fn enter_beside(pid: i32) -> Result<(), InitError> {
    let names = [
        ("cgroup", CloneFlags::CLONE_NEWCGROUP),
        ("ipc", CloneFlags::CLONE_NEWIPC),
        ("uts", CloneFlags::CLONE_NEWUTS),
        ("net", CloneFlags::CLONE_NEWNET),
        ("mnt", CloneFlags::CLONE_NEWNS),
    ];
    let open = |(name, kind)| Ok((File::open(format!("/proc/{pid}/ns/{name}"))?, kind));
    let all: io::Result<Vec<_>> = names.into_iter().map(open).collect();
    // Opened before the first is entered: afterwards /proc is another.
    for (namespace, kind) in system_io("find the task's namespaces", all)? {
        system("enter the task's namespaces", setns(namespace, kind))?;
    }
    Ok(())
}

/// Pid 1 of a sandbox: signals that nobody handles do not reach it, so it waits for them.
fn hold() -> Result<ExitCode, InitError> {
    join_netns(Some(Path::new(HELD_NETNS)))?;
    let signals = SigSet::all();
    system("block signals", signals.thread_block())?;
    // It has no right to narrow its bounding set, and with no new privileges it needs none.
    for set in [CapSet::Ambient, CapSet::Inheritable, CapSet::Effective, CapSet::Permitted] {
        caps::clear(None, set)?;
    }
    system("forbid new privileges", prctl::set_no_new_privs())?;
    loop {
        if let Ok(Signal::SIGTERM | Signal::SIGINT) = signals.wait() {
            return Ok(ExitCode::SUCCESS);
        }
    }
}

fn enter_namespaces(order: &Order, root: &RootSpec) -> Result<(), InitError> {
    order.cgroup.enter()?;
    join_netns(order.spec.netns.as_deref())?;
    let fresh =
        CloneFlags::CLONE_NEWNS | CloneFlags::CLONE_NEWIPC | CloneFlags::CLONE_NEWUTS | CloneFlags::CLONE_NEWCGROUP;
    system("make namespaces", unshare(fresh))?;
    system("set the host name", sethostname(&root.hostname))
}

fn join_netns(path: Option<&Path>) -> Result<(), InitError> {
    let Some(path) = path else { return Ok(()) };
    let fail = |source| InitError::Netns { path: path.to_owned(), source };
    let netns = File::open(path).map_err(fail)?;
    setns(netns, CloneFlags::CLONE_NEWNET).map_err(|errno| fail(errno.into()))
}

fn kept_capabilities(root: &RootSpec) -> CapsHashSet {
    match &root.capabilities {
        Some(names) => names.iter().filter_map(|name| name.parse().ok()).collect(),
        None => DEFAULT_CAPABILITIES.into(),
    }
}

/// Nothing this process or a child of it executes can gain them again. It stays undumpable, so that not even a task that
/// runs as root reaches the node's files through /proc/1.
fn give_up_rights(kept: &CapsHashSet) -> Result<(), InitError> {
    for capability in caps::read(None, CapSet::Bounding)?.difference(kept) {
        caps::drop(None, CapSet::Bounding, *capability)?;
    }
    let own: CapsHashSet = caps::read(None, CapSet::Permitted)?.intersection(kept).copied().collect();
    caps::clear(None, CapSet::Ambient)?;
    caps::clear(None, CapSet::Inheritable)?;
    caps::set(None, CapSet::Effective, &own)?;
    caps::set(None, CapSet::Permitted, &own)?;
    system("forbid new privileges", prctl::set_no_new_privs())?;
    system("become undumpable", prctl::set_dumpable(false))
}

/// Starts `enter`, which is already where it belongs, and waits until it has become the task's program.
fn start_task(order: &Order) -> Result<Pid, InitError> {
    let (ours, theirs) = system_io("make a socket", UnixStream::pair())?;
    let child = Command::new("/proc/self/exe")
        .arg0("meshctl")
        .args(["task-init", ENTER])
        .env_clear()
        .stdin(Stdio::from(OwnedFd::from(theirs)))
        .spawn();
    let child = system_io("start a process", child)?;
    let spec = TaskSpec { netns: None, ..order.spec.clone() };
    let rest = Order { spec, identity: order.identity.clone(), cgroup: Cgroup::default() };
    system_io("hand on the order", write_frame(&ours, &rest))?;
    match read_frame(&ours) {
        Ok(Report::Failed(reason)) => Err(InitError::Reported(reason)),
        _ => Ok(Pid::from_raw(child.id().cast_signed())),
    }
}

/// Collects every orphan of the namespace and forwards every signal, until the task itself has ended.
fn reap_until(task: Pid, signals: &SigSet) -> Report {
    loop {
        match signals.wait() {
            Ok(Signal::SIGCHLD) => {
                if let Some(end) = reap(task) {
                    return end;
                }
            }
            // A task that has just ended is collected at the next turn.
            Ok(signal) => drop(kill(task, signal)),
            Err(_) => {}
        }
    }
}

fn reap(task: Pid) -> Option<Report> {
    let mut end = None;
    loop {
        match waitpid(None, Some(WaitPidFlag::WNOHANG)) {
            Ok(WaitStatus::Exited(pid, code)) if pid == task => end = Some(Report::Exited(code)),
            Ok(WaitStatus::Signaled(pid, signal, _)) if pid == task => end = Some(Report::Signaled(signal as i32)),
            Ok(WaitStatus::StillAlive) | Err(Errno::ECHILD) => return end,
            _ => {}
        }
    }
}

fn exit_code(end: &Report) -> ExitCode {
    match end {
        Report::Exited(code) => ExitCode::from(code.to_le_bytes()[0]),
        Report::Signaled(signal) => ExitCode::from(signal.to_le_bytes()[0] | 128),
        Report::Started | Report::Failed(_) => ExitCode::FAILURE,
    }
}

enum Never {}

fn enter(parent: &UnixStream) -> Result<Never, InitError> {
    let order = read_order(parent)?;
    order.cgroup.enter()?;
    join_netns(order.spec.netns.as_deref())?;
    system("make a session", setsid())?;
    let mut program = program(&order.spec, order.identity.as_ref())?;
    execute(program.stdin(Stdio::null()), &order.spec)
}

fn become_program(spec: &TaskSpec, identity: Option<&Identity>) -> Result<Never, InitError> {
    execute(&mut program(spec, identity)?, spec)
}

/// Becomes the task's user and finds what is to be run; all that is left is to run it.
fn program(spec: &TaskSpec, identity: Option<&Identity>) -> Result<Command, InitError> {
    // Pid 1 blocks all signals, and children inherit that.
    system("unblock signals", SigSet::all().thread_unblock())?;
    umask(Mode::from_bits_truncate(0o022));
    limit_resources();
    system("change to the task's directory", chdir(working_dir(spec)))?;
    identity.map_or(Ok(()), become_user)?;
    spec.work_dir.as_deref().map_or(Ok(()), change_to)?;
    let path = spec.env.get("PATH").map_or(DEFAULT_PATH, String::as_str);
    let program = find_program(&spec.argv[0], path, &local_dir(spec))?;
    let mut command = Command::new(&program);
    command.arg0(&spec.argv[0]).args(&spec.argv[1..]).env_clear().env("PATH", path).envs(&spec.env);
    Ok(command)
}

fn execute(command: &mut Command, spec: &TaskSpec) -> Result<Never, InitError> {
    if let Isolation::Exec(root) = &spec.isolation {
        // Last, so that none of the steps before needs to be allowed.
        crate::seccomp::apply(&kept_capabilities(root))?;
    }
    let error = command.exec();
    let program = PathBuf::from(command.get_program());
    Err(InitError::Command { program: spec.argv[0].clone(), problem: why_not(&program, &error) })
}

/// Where Nomad's tasks start: relative names like `local/run.sh` work in both.
fn working_dir(spec: &TaskSpec) -> &Path {
    match spec.isolation {
        Isolation::Exec(_) => Path::new("/"),
        Isolation::Raw | Isolation::Container(_) => spec.dirs.local.parent().unwrap_or(Path::new("/")),
    }
}

/// As the task's user, who must be able to be there.
fn change_to(work_dir: &str) -> Result<(), InitError> {
    let refused =
        |errno| InitError::Reported(format!("work_dir {work_dir:?}: {errno}; it must be there for the task's user"));
    chdir(work_dir).map_err(refused)
}

fn local_dir(spec: &TaskSpec) -> PathBuf {
    match spec.isolation {
        Isolation::Exec(_) => PathBuf::from("/local"),
        Isolation::Raw | Isolation::Container(_) => spec.dirs.local.clone(),
    }
}

/// Core files of a crash loop would fill the disk. The agent raises its own limit of open files as far as it can; a task
/// gets what is usual, since programs that close or select on every possible file would crawl. Raising a limit can be
/// refused, and then it stays.
fn limit_resources() {
    let _ = setrlimit(Resource::RLIMIT_CORE, 0, 0);
    if let Ok((_, hard)) = getrlimit(Resource::RLIMIT_NOFILE) {
        let _ = setrlimit(Resource::RLIMIT_NOFILE, hard.min(65_536), hard);
    }
}

fn become_user(identity: &Identity) -> Result<(), InitError> {
    let groups: Vec<Gid> = identity.groups.iter().copied().map(Gid::from_raw).collect();
    system("set the task's groups", setgroups(&groups))?;
    system("set the task's group", setgid(Gid::from_raw(identity.gid)))?;
    system("set the task's user", setuid(Uid::from_raw(identity.uid)))
}

fn find_program(name: &str, path: &str, local: &Path) -> Result<PathBuf, InitError> {
    if name.contains('/') {
        return Ok(PathBuf::from(name));
    }
    let dirs = std::iter::once(local).chain(path.split(':').filter(|dir| !dir.is_empty()).map(Path::new));
    let found = dirs.map(|dir| dir.join(name)).find(|file| is_program(file));
    found.ok_or_else(|| {
        let problem = format!("is neither in the task's local directory nor in PATH ({path}); give its full path");
        InitError::Command { program: name.to_owned(), problem }
    })
}

fn is_program(file: &Path) -> bool {
    file.metadata().is_ok_and(|meta| meta.is_file() && meta.permissions().mode() & 0o111 != 0)
}

fn why_not(program: &Path, error: &io::Error) -> String {
    match error.kind() {
        io::ErrorKind::NotFound if program.exists() => {
            "exists, but the interpreter or loader that it names does not; install that too".to_owned()
        }
        io::ErrorKind::NotFound => {
            "does not exist where the task runs; exec tasks see /usr, /bin, /lib*, /etc, /alloc and /local".to_owned()
        }
        io::ErrorKind::PermissionDenied => {
            "may not be executed by the task's user; check its mode, and that of its directories".to_owned()
        }
        _ => format!("cannot be executed: {error}"),
    }
}

fn read_order(from: &UnixStream) -> Result<Order, InitError> {
    system_io("read the supervisor's order", read_frame(from))
}

fn system<T>(action: &'static str, done: nix::Result<T>) -> Result<T, InitError> {
    system_io(action, done.map_err(Into::into))
}

fn system_io<T>(action: &'static str, done: io::Result<T>) -> Result<T, InitError> {
    done.map_err(|source| InitError::System { action, source })
}
