//! How many writes a second one server commits to disk, beside what the bare disk does: `cargo run --release -p consensus
//! --example writes [directory] [seconds]`.

use std::fs::File;
use std::io::Write as _;
use std::path::{Path, PathBuf};
use std::pin::pin;
use std::sync::Arc;
use std::task::{Context, Poll, Wake, Waker};
use std::thread::{self, Thread};
use std::time::{Duration, Instant};

use consensus::{Config, Raft, RestoreError, Role, StateMachine, Transport};

struct Alone;

impl Transport for Alone {
    fn send(&self, _to: u64, _message: Vec<u8>) {}
}

struct Counter(u64);

impl StateMachine for Counter {
    fn apply(&mut self, _index: u64, _data: &[u8]) -> Vec<u8> {
        self.0 += 1;
        Vec::new()
    }

    fn snapshot(&self) -> Vec<u8> {
        self.0.to_le_bytes().to_vec()
    }

    fn restore(&mut self, _index: u64, _data: &[u8]) -> Result<(), RestoreError> {
        Ok(())
    }
}

struct Unpark(Thread);

impl Wake for Unpark {
    fn wake(self: Arc<Self>) {
        self.0.unpark();
    }
}

fn wait<F: Future>(future: F) -> F::Output {
    let mut future = pin!(future);
    let waker = Waker::from(Arc::new(Unpark(thread::current())));
    loop {
        match future.as_mut().poll(&mut Context::from_waker(&waker)) {
            Poll::Ready(output) => return output,
            Poll::Pending => thread::park(),
        }
    }
}

fn main() -> Result<(), Box<dyn std::error::Error>> {
    let mut arguments = std::env::args().skip(1);
    let directory = arguments.next().map(PathBuf::from).unwrap_or_else(|| std::env::temp_dir().join("meshctl-writes"));
    let seconds = arguments.next().and_then(|seconds| seconds.parse().ok()).unwrap_or(3);
    let duration = Duration::from_secs(seconds);
    std::fs::create_dir(&directory)?;
    let measured = measure(&directory, duration);
    std::fs::remove_dir_all(&directory)?;
    measured
}

fn measure(directory: &Path, duration: Duration) -> Result<(), Box<dyn std::error::Error>> {
    println!("raw append and fdatasync: {:.0}/s", raw(&directory.join("raw"), duration)?);
    let config = Config { bootstrap: Some(vec![1]), ..Config::new(1, directory.join("raft"), 1) };
    let raft = Raft::start(config, Arc::new(Alone), Box::new(Counter(0)))?;
    while raft.status().role != Role::Leader {
        thread::sleep(Duration::from_millis(5));
    }
    for writers in [1, 16, 256] {
        println!("{writers} writers: {:.0} writes/s", commits(&raft, writers, duration));
    }
    raft.shutdown();
    Ok(())
}

fn raw(path: &Path, duration: Duration) -> std::io::Result<f64> {
    let mut file = File::create(path)?;
    let begun = Instant::now();
    let mut count = 0_u32;
    while begun.elapsed() < duration {
        file.write_all(&[7; 128])?;
        file.sync_data()?;
        count += 1;
    }
    Ok(f64::from(count) / begun.elapsed().as_secs_f64())
}

fn commits(raft: &Raft, writers: usize, duration: Duration) -> f64 {
    let begun = Instant::now();
    let write_on = || (0_u32..).take_while(|_| begun.elapsed() < duration && wait(raft.propose(vec![7; 128])).is_ok());
    let total: usize = thread::scope(|scope| {
        let threads: Vec<_> = (0..writers).map(|_| scope.spawn(|| write_on().count())).collect();
        threads.into_iter().filter_map(|thread| thread.join().ok()).sum()
    });
    total as f64 / begun.elapsed().as_secs_f64()
}
