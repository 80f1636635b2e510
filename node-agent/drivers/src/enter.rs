//! The supervisor's side of a further command: for tasks that are processes, one of theirs in the same namespaces and cgroup;
//! for containers, the engine's.

use crate::container;
use crate::desk::{Desk, STACK, Target};
use crate::exec::{ExecInput, ExecOutput, ExecRequest, read_input, write_output};
use crate::init::JOIN;
use crate::spec::{Isolation, TaskSpec, parse_signal};
use crate::state::ContainerRef;
use crate::supervisor::identity;
use containers::{Engine, EngineError, ExecSession, ExecWanted, Output};
use nix::pty::openpty;
use nix::sched::{CloneFlags, setns};
use nix::sys::signal::{Signal, kill};
use nix::unistd::{Pid, ttyname};
use rustix::termios::{Winsize, tcsetwinsize};
use serde::{Deserialize, Serialize};
use std::fs::{self, File, OpenOptions};
use std::io::{self, Read, Write};
use std::os::fd::OwnedFd;
use std::os::unix::fs::OpenOptionsExt;
use std::os::unix::net::UnixStream;
use std::os::unix::process::{CommandExt, ExitStatusExt};
use std::path::PathBuf;
use std::process::{Child, Command, Stdio};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread;
use std::time::{Duration, Instant};
use tokio::io::AsyncWriteExt;

/// What a command's own children hold open is not waited for.
const LAST_OUTPUT: Duration = Duration::from_secs(1);

/// What `task-init join` needs to know; it removes the file that it reads it from.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub(crate) struct JoinOrder {
    pub spec: TaskSpec,
    pub identity: Option<crate::users::Identity>,
    pub cgroup: crate::cgroup::Cgroup,
    /// A process of the task whose namespaces are to be entered; its pid namespace is entered already.
    pub beside: Option<i32>,
    /// The terminal that becomes the command's, as a path of the node.
    pub tty: Option<PathBuf>,
}

/// A command that has been started, and what is to be done with its connection.
pub(crate) enum Entered {
    Process { child: Child, terminal: Option<File>, leader: Pid },
    Container { container: ContainerRef, wanted: ExecWanted, tty: bool },
}

/// Starts it; the text of a refusal says why.
pub(crate) fn begin(desk: &Desk, wanted: &ExecRequest) -> Result<Entered, String> {
    if wanted.argv.first().is_none_or(String::is_empty) {
        return Err("no command was given".to_owned());
    }
    let target = desk.lock().main.clone().ok_or("the task does not run")?;
    let spec =
        TaskSpec::read(&desk.control).map_err(|error| error.to_string())?.ok_or("the task is not known any more")?;
    match target {
        Target::Container(container) => {
            let env = wanted.env.iter().map(|(key, value)| format!("{key}={value}")).collect();
            let asked = ExecWanted { argv: wanted.argv.clone(), env, user: spec.user.clone(), tty: wanted.tty };
            Ok(Entered::Container { container, wanted: asked, tty: wanted.tty })
        }
        Target::Process(pid) => {
            start(desk, spec, pid, wanted).map_err(|error| format!("the command cannot be started: {error}"))
        }
    }
}

/// On a thread of its own, whose children are in the task's pid namespace.
fn start(desk: &Desk, spec: TaskSpec, main: Pid, wanted: &ExecRequest) -> io::Result<Entered> {
    let isolated = matches!(spec.isolation, Isolation::Exec(_));
    let pids = if isolated { Some(File::open(format!("/proc/{main}/ns/pid"))?) } else { None };
    if desk.lock().main != Some(Target::Process(main)) {
        return Err(io::Error::other("the task has just ended"));
    }
    let pty = if wanted.tty { Some(openpty(None, None)?) } else { None };
    let tty = pty.as_ref().map(|pty| ttyname(&pty.slave)).transpose()?;
    let mut env = spec.env.clone();
    if wanted.tty {
        env.insert("TERM".to_owned(), "xterm".to_owned());
    }
    env.extend(wanted.env.clone());
    let order = JoinOrder {
        identity: identity(&spec).map_err(io::Error::other)?,
        cgroup: desk.lock().state.cgroup.clone(),
        beside: isolated.then_some(main.as_raw()),
        spec: TaskSpec { argv: wanted.argv.clone(), env, ..spec },
        tty,
    };
    let file = write_order(desk, &order)?;
    let mut command = Command::new("/proc/self/exe");
    command.arg0("meshctl").args(["task-init", JOIN]).arg(&file).env_clear();
    match &pty {
        Some(pty) => {
            let side = || pty.slave.try_clone().map(Stdio::from);
            command.stdin(side()?).stdout(side()?).stderr(side()?);
        }
        None => drop(command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped())),
    }
    let spawn = move || {
        pids.map_or(Ok(()), |pids| setns(pids, CloneFlags::CLONE_NEWPID))?;
        command.spawn()
    };
    let spawned = thread::Builder::new().stack_size(STACK).spawn(spawn)?.join();
    let child = spawned.unwrap_or_else(|_| Err(io::Error::other("the thread that starts it failed")));
    let child = child.inspect_err(|_| drop(fs::remove_file(&file)))?;
    let leader = Pid::from_raw(child.id().cast_signed());
    Ok(Entered::Process { child, terminal: pty.map(|pty| File::from(pty.master)), leader })
}

/// It holds the task's environment, so nobody else may read it.
fn write_order(desk: &Desk, order: &JoinOrder) -> io::Result<PathBuf> {
    static NEXT: AtomicU64 = AtomicU64::new(0);
    let path = desk.control.join(format!("exec-{}.json", NEXT.fetch_add(1, Ordering::Relaxed)));
    let mut file = OpenOptions::new().write(true).create(true).truncate(true).mode(0o600).open(&path)?;
    file.write_all(&serde_json::to_vec(order).map_err(io::Error::other)?)?;
    Ok(path)
}

/// Carries the streams until the command has ended or its asker has hung up, which ends it.
pub(crate) fn carry(entered: Entered, stream: &UnixStream) -> io::Result<()> {
    stream.set_read_timeout(None)?;
    match entered {
        Entered::Process { child, terminal, leader } => carry_process(child, terminal, leader, stream),
        Entered::Container { container, wanted, tty } => {
            let stream = stream.try_clone()?;
            let done = container::blocking(async move { carry_container(&container, &wanted, tty, stream).await });
            done.map_err(io::Error::other)
        }
    }
}

fn carry_process(mut child: Child, terminal: Option<File>, leader: Pid, stream: &UnixStream) -> io::Result<()> {
    let out = Arc::new(Mutex::new(stream.try_clone()?));
    let mut readers: Vec<(Box<dyn Read + Send>, Kind)> = Vec::new();
    if let Some(terminal) = &terminal {
        readers.push((Box::new(terminal.try_clone()?), ExecOutput::Stdout));
    }
    readers
        .extend(child.stdout.take().map(|from| (Box::new(from) as Box<dyn Read + Send>, ExecOutput::Stdout as Kind)));
    readers
        .extend(child.stderr.take().map(|from| (Box::new(from) as Box<dyn Read + Send>, ExecOutput::Stderr as Kind)));
    let mut pumps = Vec::new();
    for (from, kind) in readers {
        let out = Arc::clone(&out);
        pumps.push(thread::Builder::new().stack_size(STACK).spawn(move || pump(from, kind, &out))?);
    }
    let stdin = match &terminal {
        Some(terminal) => Some(OwnedFd::from(terminal.try_clone()?)),
        None => child.stdin.take().map(OwnedFd::from),
    };
    let commands = stream.try_clone()?;
    let feeder = thread::Builder::new()
        .stack_size(STACK)
        .spawn(move || feed(&commands, stdin.map(File::from), terminal, leader))?;
    let status = child.wait()?;
    let deadline = Instant::now() + LAST_OUTPUT;
    while pumps.iter().any(|pump| !pump.is_finished()) && Instant::now() < deadline {
        thread::sleep(Duration::from_millis(1));
    }
    let code = status.code().or(status.signal().map(|signal| 128 + signal)).unwrap_or(-1);
    let told = write_output(&*out.lock().unwrap_or_else(PoisonError::into_inner), ExecOutput::Exited(code));
    let _ = stream.shutdown(std::net::Shutdown::Both);
    let _ = feeder.join();
    told
}

type Kind = fn(Vec<u8>) -> ExecOutput;

fn pump(mut from: impl Read, kind: Kind, out: &Mutex<UnixStream>) {
    let mut buffer = vec![0; 16 << 10];
    // A terminal whose last process has gone reads as an error.
    while let Ok(count) = from.read(&mut buffer) {
        let told =
            |bytes: &[u8]| write_output(&*out.lock().unwrap_or_else(PoisonError::into_inner), kind(bytes.to_vec()));
        if count == 0 || told(&buffer[..count]).is_err() {
            return;
        }
    }
}

/// Whoever hangs up does not want the command any more: it leads a session, all of which ends.
fn feed(from: &UnixStream, mut stdin: Option<File>, terminal: Option<File>, leader: Pid) {
    while let Ok(input) = read_input(from) {
        match input {
            ExecInput::Stdin(bytes) => {
                if stdin.as_mut().is_some_and(|stdin| stdin.write_all(&bytes).is_err()) {
                    stdin = None;
                }
            }
            // The character that ends input, where there is a terminal to say it to.
            ExecInput::CloseStdin if terminal.is_some() => drop(stdin.as_mut().map(|stdin| stdin.write_all(&[4]))),
            ExecInput::CloseStdin => stdin = None,
            ExecInput::Resize { width, height } => {
                let size = Winsize { ws_col: width, ws_row: height, ws_xpixel: 0, ws_ypixel: 0 };
                let _ = terminal.as_ref().map(|terminal| tcsetwinsize(terminal, size));
            }
            ExecInput::Signal(name) => drop(parse_signal(&name).map(|signal| kill(leader, signal))),
        }
    }
    let _ = kill(Pid::from_raw(-leader.as_raw()), Signal::SIGKILL);
    let _ = kill(leader, Signal::SIGKILL);
}

async fn carry_container(
    container: &ContainerRef,
    wanted: &ExecWanted,
    tty: bool,
    stream: UnixStream,
) -> Result<(), EngineError> {
    let engine = Engine::open(&container.socket).await?;
    let ExecSession { id, mut output, input } = engine.exec(&container.name, wanted).await?;
    let broken = |error: io::Error| EngineError::Broken(error.to_string());
    let out = stream.try_clone().map_err(broken)?;
    // Reading blocks, so it has a thread; the channel closes when the asker hangs up.
    let (told, mut asked) = tokio::sync::mpsc::channel(16);
    let reader = thread::Builder::new().stack_size(STACK).spawn(move || {
        while let Ok(input) = read_input(&stream) {
            if told.blocking_send(input).is_err() {
                return;
            }
        }
    });
    reader.map_err(broken)?;
    let mut input = Some(input);
    loop {
        tokio::select! {
            chunk = output.next() => match chunk {
                Ok(Some(chunk)) => {
                    let kind: Kind = if chunk.from == Output::Stderr { ExecOutput::Stderr } else { ExecOutput::Stdout };
                    write_output(&out, kind(chunk.bytes.to_vec())).map_err(broken)?;
                }
                _ => break,
            },
            asked = asked.recv() => match asked {
                Some(asked) => obey(&engine, &id, asked, &mut input, tty).await,
                None => {
                    end(&engine, &id, Signal::SIGKILL).await;
                    break;
                }
            },
        }
    }
    let code = exit_code(&engine, &id).await;
    let told = write_output(&out, ExecOutput::Exited(code)).map_err(broken);
    let _ = out.shutdown(std::net::Shutdown::Both);
    told
}

async fn obey(
    engine: &Engine,
    id: &str,
    asked: ExecInput,
    input: &mut Option<tokio::net::unix::OwnedWriteHalf>,
    tty: bool,
) {
    match (asked, input.as_mut()) {
        (ExecInput::Stdin(bytes), Some(to)) => drop(to.write_all(&bytes).await),
        (ExecInput::CloseStdin, Some(to)) if tty => drop(to.write_all(&[4]).await),
        (ExecInput::CloseStdin, Some(to)) => {
            let _ = to.shutdown().await;
            *input = None;
        }
        (ExecInput::Resize { width, height }, _) => drop(engine.exec_resize(id, width, height).await),
        (ExecInput::Signal(name), _) => {
            if let Some(signal) = parse_signal(&name) {
                end(engine, id, signal).await;
            }
        }
        (ExecInput::Stdin(_) | ExecInput::CloseStdin, None) => {}
    }
}

/// Engines have no call for it; the process is one of this machine's.
async fn end(engine: &Engine, id: &str, signal: Signal) {
    if let Ok(Some(pid)) = engine.exec_pid(id).await {
        let _ = kill(Pid::from_raw(pid), signal);
    }
}

/// Output ends a moment before the engine knows the code.
async fn exit_code(engine: &Engine, id: &str) -> i32 {
    let deadline = Instant::now() + Duration::from_secs(5);
    loop {
        match engine.exec_code(id).await {
            Ok(None) if Instant::now() < deadline => tokio::time::sleep(Duration::from_millis(10)).await,
            Ok(Some(code)) => return i32::try_from(code).unwrap_or(-1),
            _ => return -1,
        }
    }
}
