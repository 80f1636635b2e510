//! A lab's life: its name, its record on disk, and the removal of everything it made, also after its process was killed.

use crate::artifacts;
use crate::machine::Machine;
use crate::process::Process;
use crate::{run, sh};
use anyhow::{Context, Result};
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::atomic::{AtomicU32, Ordering};

/// Where labs keep their records, data directories and logs; on a tmpfs, so a reboot forgets them.
pub const LABS: &str = "/run/meshctl-labs";

/// Set in the environment of every process of a lab, so that strays can be told from other people's.
const MARK: &str = "MESHCTL_LAB";

/// Owns namespaces, processes and files; dropping it removes them.
///
/// Whoever made it says [`Lab::passed`] at the end; without that, logs and captures are copied to `target/netns/<lab>/` first.
pub struct Lab {
    name: String,
    dir: PathBuf,
    kept: bool,
    passed: bool,
}

impl Lab {
    /// A fresh lab. `purpose` shows in its name; six letters at most are used, so that interface names fit in 15.
    pub fn new(purpose: &str) -> Result<Lab> {
        static COUNTER: AtomicU32 = AtomicU32::new(0);
        let purpose: String = purpose.chars().filter(char::is_ascii_alphanumeric).take(6).collect();
        let name = format!("{purpose}{}x{}", std::process::id(), COUNTER.fetch_add(1, Ordering::Relaxed));
        let dir = Path::new(LABS).join(&name);
        // Renamed once it names its owner: a lab without one would pass for dead.
        let unowned = Path::new(LABS).join(format!(".{name}"));
        fs::create_dir_all(&unowned).with_context(|| format!("could not make {} (labs need root)", dir.display()))?;
        fs::write(unowned.join("owner"), owner_record(std::process::id()))?;
        fs::rename(&unowned, &dir)?;
        Ok(Lab { name, dir, kept: false, passed: false })
    }

    pub fn name(&self) -> &str {
        &self.name
    }

    /// Where processes of the lab log and keep their data.
    pub fn dir(&self) -> &Path {
        &self.dir
    }

    /// Where the lab's agents pin their maps and links.
    pub fn pin_root(&self) -> PathBuf {
        pin_root(&self.name)
    }

    /// A namespace with loopback up.
    pub fn machine(&self, name: &str) -> Result<Machine> {
        let machine = Machine::new(&self.name, name);
        sh(&format!("ip netns add {}", machine.namespace()))?;
        machine.sh("ip link set lo up")?;
        machine.sh("sysctl -qw net.ipv6.conf.all.disable_ipv6=1 net.ipv6.conf.default.disable_ipv6=1")?;
        Ok(machine)
    }

    /// Starts a process inside `machine`; its output goes to `<name>.log` in the lab's directory.
    pub fn spawn(&self, machine: &Machine, name: &str, command: &[&str]) -> Result<Process> {
        let log = self.dir.join(format!("{name}.log"));
        Process::start(machine.command(command).env(MARK, &self.name), name, &log)
    }

    /// Records the heads of what an interface of `machine` carries into `<name>.pcap`, the newest 40 MB, until the returned
    /// process is dropped. Frames that an XDP program takes are not seen on the interface that runs it: capture at the other
    /// end of the link.
    pub fn capture(&self, machine: &Machine, interface: &str, name: &str) -> Result<Process> {
        let file = self.dir.join(format!("{name}.pcap"));
        let file = file.to_string_lossy();
        let bounds = ["-s", "160", "-C", "20", "-W", "2", "-Z", "root"];
        let words = [&["tcpdump", "-U", "-n", "-i", interface, "-w", &file][..], &bounds].concat();
        self.spawn(machine, &format!("tcpdump-{name}"), &words)
    }

    /// What it was made for has worked: its logs are of no interest.
    pub fn passed(&mut self) {
        self.passed = true;
    }

    /// Leaves everything in place when this value goes; the next [`Lab::reap_dead`] leaves it alone, too.
    pub fn keep(&mut self) -> Result<()> {
        self.kept = true;
        fs::write(self.dir.join("kept"), "").context("could not mark the lab as kept")
    }

    /// Removes the labs whose owners are gone and which were not kept on purpose; returns their names.
    pub fn reap_dead() -> Result<Vec<String>> {
        Self::reap(|dir| !dir.join("kept").exists())
    }

    /// Removes every lab whose owner is gone, kept ones too.
    pub fn reap_kept() -> Result<Vec<String>> {
        Self::reap(|_| true)
    }

    fn reap(wanted: impl Fn(&Path) -> bool) -> Result<Vec<String>> {
        let mut reaped = Vec::new();
        let Ok(entries) = fs::read_dir(LABS) else { return Ok(reaped) };
        for dir in entries.flatten().map(|entry| entry.path()) {
            let name = dir.file_name().unwrap_or_default().to_string_lossy().into_owned();
            if !name.starts_with('.') && wanted(&dir) && !owner_lives(&dir) {
                remove(&name, &dir);
                reaped.push(name);
            }
        }
        Ok(reaped)
    }
}

impl Drop for Lab {
    fn drop(&mut self) {
        if self.kept {
            return;
        }
        if !self.passed {
            report(preserve(&self.name, &self.dir));
        }
        remove(&self.name, &self.dir);
    }
}

/// Saves what tells why a run failed.
fn preserve(name: &str, dir: &Path) -> Result<()> {
    let kept = PathBuf::from(artifacts::failures()).join(name);
    fs::create_dir_all(&kept)?;
    for file in list(&dir.to_string_lossy()).iter().filter(|file| file.ends_with(".log") || file.contains(".pcap")) {
        fs::copy(dir.join(file), kept.join(file))?;
    }
    eprintln!("the lab's logs and captures are in {}", kept.display());
    Ok(())
}

fn pin_root(lab: &str) -> PathBuf {
    Path::new("/sys/fs/bpf").join(format!("meshctl-{lab}"))
}

/// A pid alone may be reused; together with the start time it may not.
fn owner_record(pid: u32) -> String {
    format!("{pid} {}", start_time(pid).unwrap_or_default())
}

fn owner_lives(dir: &Path) -> bool {
    let record = fs::read_to_string(dir.join("owner")).unwrap_or_default();
    let pid = record.split(' ').next().and_then(|pid| pid.parse().ok());
    pid.is_some_and(|pid| start_time(pid).is_some() && owner_record(pid) == record)
}

/// Field 22 of /proc/pid/stat (proc(5)), counted after the command name, which may itself hold spaces.
fn start_time(pid: u32) -> Option<String> {
    let stat = fs::read_to_string(format!("/proc/{pid}/stat")).ok()?;
    let (_, fields) = stat.rsplit_once(')')?;
    fields.split_whitespace().nth(19).map(str::to_owned)
}

/// Best effort, every step whether or not the one before worked: processes, then what the agents made (through the
/// product's own removal), then namespaces, pins and files. The record stays while an agent's things could not be removed,
/// so that the next run tries again.
fn remove(name: &str, dir: &Path) {
    kill_marked(name);
    let purged = purge_agents(name, dir);
    kill_marked(name);
    let prefix = format!("{name}-");
    for namespace in list("/run/netns").into_iter().filter(|ns| ns.starts_with(&prefix)) {
        report(sh(&format!("ip netns del {namespace}")));
    }
    remove_pins(&pin_root(name));
    match purged {
        Ok(()) => report(fs::remove_dir_all(dir).context("could not remove the lab's directory")),
        failed => report(failed),
    }
}

/// `agent purge` stops an agent's tasks and removes its namespaces, cgroups and pins.
fn purge_agents(name: &str, dir: &Path) -> Result<()> {
    let (binary, pin_root) = (artifacts::binary(), pin_root(name).to_string_lossy().into_owned());
    for (machine, data_dir) in agents(dir) {
        let machine = Machine::new(name, &machine);
        let data_dir = data_dir.to_string_lossy();
        let words = [binary.as_str(), "agent", "purge", "--data-dir", &data_dir, "--pin-root", &pin_root];
        run(&mut machine.command(&words))?;
    }
    Ok(())
}

/// Machines and their agents' data directories: `<machine>-agent`, or `<machine>-dev/agent` where `dev` runs.
fn agents(dir: &Path) -> Vec<(String, PathBuf)> {
    let agent = |entry: &String| {
        let own = entry.strip_suffix("-agent").map(|machine| (machine.to_owned(), dir.join(entry)));
        own.or_else(|| Some((entry.strip_suffix("-dev")?.to_owned(), dir.join(entry).join("agent"))))
    };
    list(&dir.to_string_lossy()).iter().filter_map(agent).filter(|(_, data_dir)| data_dir.exists()).collect()
}

/// Kills every process whose environment carries the lab's mark, until none is left.
fn kill_marked(name: &str) {
    let mark = format!("{MARK}={name}");
    for _ in 0..20 {
        let pids = marked(&mark);
        if pids.is_empty() {
            return;
        }
        for pid in pids {
            report(
                nix::sys::signal::kill(pid, nix::sys::signal::Signal::SIGKILL)
                    .context("could not kill a stray process"),
            );
        }
        std::thread::sleep(std::time::Duration::from_millis(50));
    }
}

fn marked(mark: &str) -> Vec<nix::unistd::Pid> {
    let own = std::process::id().to_string();
    let carries = |pid: &str| {
        let environ = fs::read(format!("/proc/{pid}/environ")).unwrap_or_default();
        environ.split(|byte| *byte == 0).any(|variable| variable == mark.as_bytes())
    };
    let pids = list("/proc").into_iter().filter(|pid| *pid != own && carries(pid));
    pids.filter_map(|pid| pid.parse().ok()).map(nix::unistd::Pid::from_raw).collect()
}

/// Unlinking a pinned link detaches it once nobody else holds it.
fn remove_pins(root: &Path) {
    if root.exists() {
        report(run(Command::new("rm").arg("-r").arg(root)));
    }
}

fn list(dir: &str) -> Vec<String> {
    let entries = fs::read_dir(dir).into_iter().flatten().flatten();
    entries.map(|entry| entry.file_name().to_string_lossy().into_owned()).collect()
}

fn report<T>(result: Result<T>) {
    if let Err(error) = result {
        eprintln!("lab clean-up: {error:#}");
    }
}
