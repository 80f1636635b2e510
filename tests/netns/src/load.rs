//! Steady traffic from inside a namespace, half of it over kept connections and half with a connection each, and what
//! became of every request.

use crate::http::Connection;
use crate::machine::Machine;
use anyhow::Result;
use nix::sched::{CpuSet, sched_setaffinity};
use nix::unistd::Pid;
use std::net::SocketAddr;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

const KEPT_THREADS: u32 = 20;
const FRESH_THREADS: u32 = 20;
const REQUEST_LIMIT: Duration = Duration::from_secs(3);

/// Traffic that runs until [`Load::stop`].
pub struct Load {
    stop: Arc<AtomicBool>,
    threads: Vec<JoinHandle<Option<()>>>,
    tally: Arc<Mutex<Tally>>,
}

/// What happened since the load began or was last read.
#[derive(Clone, Debug, Default)]
pub struct Tally {
    pub requests: u64,
    pub failures: u64,
    /// Kept connections that were gone when the next request was to go over them. The request is then sent once more over
    /// a new one, as every HTTP client does (RFC 9112 section 9.3.1), and counts as failed if that fails too.
    pub connections_lost: u64,
    /// The longest time during which no request was answered.
    pub longest_gap: Duration,
    pub first_error: Option<String>,
    last_success: Option<Instant>,
}

impl Load {
    /// `rate` requests a second in all to `http://<target>/`.
    pub fn start(machine: &Machine, target: SocketAddr, rate: u32) -> Result<Load> {
        let stop = Arc::new(AtomicBool::new(false));
        let tally = Arc::new(Mutex::new(Tally { last_success: Some(Instant::now()), ..Tally::default() }));
        let pause = Duration::from_secs(1) * (KEPT_THREADS + FRESH_THREADS) / rate;
        let mut threads = Vec::new();
        for number in 0..KEPT_THREADS + FRESH_THREADS {
            let (stop, tally) = (Arc::clone(&stop), Arc::clone(&tally));
            let first = pause * number / (KEPT_THREADS + FRESH_THREADS);
            let worker = Worker { target, pause, kept: number < KEPT_THREADS, stop, tally };
            threads.push(machine.enter(move || {
                stay_on_one_cpu(number);
                worker.run(first);
            })?);
        }
        Ok(Load { stop, threads, tally })
    }

    /// Reads what happened since the last reading and begins anew.
    pub fn take(&self) -> Tally {
        let mut tally = lock(&self.tally);
        let fresh = Tally { last_success: tally.last_success, ..Tally::default() };
        std::mem::replace(&mut *tally, fresh).closed()
    }

    /// Ends the traffic and reads the rest.
    pub fn stop(mut self) -> Tally {
        self.halt();
        self.take()
    }

    fn halt(&mut self) {
        self.stop.store(true, Ordering::Relaxed);
        for thread in self.threads.drain(..) {
            thread.join().ok();
        }
    }
}

impl Drop for Load {
    fn drop(&mut self) {
        self.halt();
    }
}

impl Tally {
    fn succeeded(&mut self) {
        self.requests += 1;
        *self = std::mem::take(self).closed();
        self.last_success = Some(Instant::now());
    }

    fn failed(&mut self, error: String) {
        self.requests += 1;
        self.failures += 1;
        self.first_error.get_or_insert(error);
    }

    /// Counts the time since the last answer as a gap, too.
    fn closed(mut self) -> Tally {
        let gap = self.last_success.map(|at| at.elapsed()).unwrap_or_default();
        self.longest_gap = self.longest_gap.max(gap);
        self
    }
}

fn lock(tally: &Mutex<Tally>) -> std::sync::MutexGuard<'_, Tally> {
    tally.lock().unwrap_or_else(std::sync::PoisonError::into_inner)
}

/// A network card hands all packets of a connection to one CPU, and the entry remembers per CPU. In a lab it is the sender's
/// CPU, so that a sender that wanders would look like a card that is set up anew all the time.
fn stay_on_one_cpu(number: u32) {
    let count = std::thread::available_parallelism().map_or(1, std::num::NonZero::get);
    let mut cpus = CpuSet::new();
    if cpus.set(number as usize % count).is_ok() {
        sched_setaffinity(Pid::from_raw(0), &cpus).ok();
    }
}

struct Worker {
    target: SocketAddr,
    pause: Duration,
    kept: bool,
    stop: Arc<AtomicBool>,
    tally: Arc<Mutex<Tally>>,
}

impl Worker {
    fn run(&self, first: Duration) {
        let mut next = Instant::now() + first;
        let mut connection = None;
        while !self.stop.load(Ordering::Relaxed) {
            std::thread::sleep(next.saturating_duration_since(Instant::now()));
            // A slow answer must not lower the rate, nor be followed by a burst.
            next = (next + self.pause).max(Instant::now());
            self.request(&mut connection);
        }
    }

    fn request(&self, connection: &mut Option<Connection>) {
        let had_connection = connection.is_some();
        let mut result = self.exchange(connection);
        if result.is_err() && had_connection {
            lock(&self.tally).connections_lost += 1;
            *connection = None;
            result = self.exchange(connection);
        }
        if result.is_err() || !self.kept {
            *connection = None;
        }
        match result {
            Ok(()) => lock(&self.tally).succeeded(),
            Err(error) => lock(&self.tally).failed(format!("{error:#}")),
        }
    }

    fn exchange(&self, connection: &mut Option<Connection>) -> Result<()> {
        let connection = match connection {
            Some(connection) => connection,
            None => connection.insert(Connection::open(self.target, REQUEST_LIMIT)?),
        };
        let response = connection.get("/")?;
        anyhow::ensure!(response.status == 200, "status {}", response.status);
        Ok(())
    }
}
