//! What a supervisor's threads share: the task's state, on disk before anyone is told, and who is to be signalled.

use crate::cgroup::Cgroup;
use crate::container;
use crate::init::explain;
use crate::spec::parse_signal;
use crate::state::{ContainerRef, ExitStatus, Phase, State};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::thread;
use std::time::{Duration, Instant};

/// After the task's end an agent that is connected may still ask; then the state on disk says all there is.
const LINGER: Duration = Duration::from_secs(2);

/// A client that waits is answered by then, so that a vanished one is noticed.
pub(crate) const WAIT_TURN: Duration = Duration::from_secs(30);

pub(crate) const STACK: usize = 256 << 10;

/// What the clients' threads and the task's share.
pub(crate) struct Desk {
    pub control: PathBuf,
    inner: Mutex<Inner>,
    pub changed: Condvar,
}

/// Whom signals go to.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Target {
    Process(Pid),
    Container(ContainerRef),
}

pub(crate) struct Inner {
    pub state: State,
    /// While it exists.
    pub main: Option<Target>,
    /// Asked for while the task was starting: it is sent as soon as there is someone to send it to.
    pending: Option<Signal>,
    /// The time after the kill's signal is over: nothing of the task may live on, or begin.
    struck: bool,
    pub clients: usize,
    pub forgotten: bool,
}

impl Target {
    fn signal(&self, signal: Signal) -> Result<(), String> {
        match self {
            Target::Process(pid) => {
                kill(*pid, signal).map_err(|errno| format!("the signal could not be sent: {errno}"))
            }
            Target::Container(container) => container::signal(container, signal),
        }
    }
}

impl Inner {
    pub fn ended(&self) -> Option<&ExitStatus> {
        match &self.state.phase {
            Phase::Exited(status) => Some(status),
            _ => None,
        }
    }

    /// Its first process has begun and ended.
    fn is_over(&self) -> bool {
        self.main.is_none() && self.state.phase != Phase::Starting
    }
}

impl Desk {
    pub fn open(control: &Path) -> io::Result<Self> {
        let state = State { phase: Phase::Starting, cgroup: Cgroup::default(), container: None };
        state.write(control)?;
        let inner = Inner { state, main: None, pending: None, struck: false, clients: 0, forgotten: false };
        Ok(Self { control: control.to_owned(), inner: Mutex::new(inner), changed: Condvar::new() })
    }

    pub fn lock(&self) -> MutexGuard<'_, Inner> {
        self.inner.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Changes the state on disk, and only then in sight of the agent.
    pub fn record(&self, change: impl FnOnce(&mut State)) -> io::Result<()> {
        let mut inner = self.lock();
        let mut state = inner.state.clone();
        change(&mut state);
        state.write(&self.control)?;
        inner.state = state;
        self.changed.notify_all();
        Ok(())
    }

    pub fn set_main(&self, main: Option<Target>) {
        self.lock().main = main;
        self.changed.notify_all();
    }

    /// An end that is not on disk is not told: a full disk delays it.
    pub fn finish(&self, status: ExitStatus) {
        while let Err(error) = self.record(|state| state.phase = Phase::Exited(status.clone())) {
            eprintln!("the exit status cannot be written: {error}; make room on the disk");
            thread::sleep(Duration::from_secs(1));
        }
    }

    pub fn linger(&self) {
        let mut quiet_since = Instant::now();
        let mut inner = self.lock();
        while !inner.forgotten && quiet_since.elapsed() < LINGER {
            inner = self.wait_turn(inner, LINGER / 4);
            if inner.clients > 0 {
                quiet_since = Instant::now();
            }
        }
    }

    /// Waits until the condition holds or the time is up.
    pub fn wait_until(&self, within: Duration, holds: impl Fn(&Inner) -> bool) -> MutexGuard<'_, Inner> {
        let deadline = Instant::now() + within;
        let mut inner = self.lock();
        while !holds(&inner) {
            let left = deadline.saturating_duration_since(Instant::now());
            if left.is_zero() {
                break;
            }
            inner = self.wait_turn(inner, left);
        }
        inner
    }

    fn wait_turn<'a>(&self, inner: MutexGuard<'a, Inner>, within: Duration) -> MutexGuard<'a, Inner> {
        self.changed.wait_timeout(inner, within).unwrap_or_else(PoisonError::into_inner).0
    }

    pub fn signal(&self, signal: &str) -> Result<(), String> {
        let known = sendable(signal)?;
        let inner = self.wait_until(Duration::from_secs(5), |inner| inner.state.phase != Phase::Starting);
        let main = inner.main.clone().ok_or("the task has ended")?;
        match main {
            // Its number is its own for as long as the lock is held.
            Target::Process(_) => main.signal(known),
            Target::Container(_) => {
                drop(inner);
                main.signal(known)
            }
        }
    }

    /// Returns at once; a thread of its own sees to it. A task that is starting gets its signal once it has started.
    pub fn kill(self: &Arc<Self>, signal: &str, timeout: Duration) -> Result<(), String> {
        let known = sendable(signal)?;
        let desk = Arc::clone(self);
        let begun = Instant::now();
        let mut inner = self.lock();
        let target = inner.main.clone();
        if inner.state.phase == Phase::Starting {
            inner.pending = Some(known);
        }
        if let Some(Target::Process(pid)) = target {
            // Its number is its own for as long as the lock is held.
            let _ = kill(pid, known);
        }
        drop(inner);
        self.changed.notify_all();
        let see_to_it = move || {
            if let Some(container @ Target::Container(_)) = target
                && let Err(problem) = container.signal(known)
            {
                eprintln!("kill: {problem}");
            }
            desk.strike_after(timeout.saturating_sub(begun.elapsed()));
        };
        let thread = thread::Builder::new().stack_size(STACK).spawn(see_to_it);
        thread.map(drop).map_err(|error| format!("no thread for it: {error}"))
    }

    fn strike_after(&self, timeout: Duration) {
        let mut inner = self.wait_until(timeout, Inner::is_over);
        if inner.is_over() {
            return;
        }
        inner.struck = true;
        let (cgroup, container) = (inner.state.cgroup.clone(), inner.state.container.clone());
        drop(inner);
        self.changed.notify_all();
        match container {
            Some(container) => container::strike(&container, || self.lock().is_over()),
            None => {
                if let Err(error) = cgroup.kill_all() {
                    eprintln!("kill: {}", explain(&error));
                }
            }
        }
    }

    /// Whether a kill came while nothing of the task ran.
    pub fn is_to_die(&self) -> bool {
        let inner = self.lock();
        inner.struck || inner.pending.is_some()
    }

    /// Does to a task that has just started what was asked for while it started.
    pub fn catch_up_kill(&self, cgroup: &Cgroup) {
        let mut inner = self.lock();
        let (main, pending, struck) = (inner.main.clone(), inner.pending.take(), inner.struck);
        drop(inner);
        if let (Some(main), Some(signal)) = (main, pending)
            && let Err(problem) = main.signal(signal)
        {
            eprintln!("kill: {problem}");
        }
        if struck && let Err(error) = cgroup.kill_all() {
            eprintln!("kill: {}", explain(&error));
        }
    }
}

/// Reads a signal that a task may be sent.
pub(crate) fn sendable(signal: &str) -> Result<Signal, String> {
    match parse_signal(signal) {
        None => Err(format!("{signal:?} is no signal; write for example SIGTERM")),
        Some(Signal::SIGSTOP) => Err("SIGSTOP would stop the task's guardian, not the task; send SIGTSTP".to_owned()),
        Some(known) => Ok(known),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::unix::process::ExitStatusExt;
    use std::process::Command;

    #[test]
    fn a_kill_while_the_task_starts_is_remembered_and_struck() {
        let dir = tempfile::tempdir().unwrap();
        let desk = Arc::new(Desk::open(dir.path()).unwrap());
        assert!(!desk.is_to_die());
        desk.kill("SIGTERM", Duration::from_millis(20)).unwrap();
        assert_eq!(desk.lock().pending, Some(Signal::SIGTERM));
        assert!(desk.is_to_die(), "it must not begin any more");
        let deadline = Instant::now() + Duration::from_secs(5);
        while !desk.lock().struck && Instant::now() < deadline {
            thread::sleep(Duration::from_millis(5));
        }
        assert!(desk.lock().struck, "the timeout holds for what is starting too");
    }

    #[test]
    fn a_task_that_began_meanwhile_gets_the_remembered_signal() {
        let dir = tempfile::tempdir().unwrap();
        let desk = Arc::new(Desk::open(dir.path()).unwrap());
        let mut child = Command::new("sleep").arg("60").spawn().unwrap();
        let pid = child.id().cast_signed();
        desk.kill("SIGTERM", Duration::from_secs(60)).unwrap();
        desk.set_main(Some(Target::Process(Pid::from_raw(pid))));
        desk.record(|state| state.phase = Phase::Running { pid, started_at_ns: 1 }).unwrap();
        desk.catch_up_kill(&Cgroup::default());
        assert_eq!(child.wait().unwrap().signal(), Some(Signal::SIGTERM as i32));
        desk.set_main(None);
        assert!(!desk.is_to_die());
    }
}
