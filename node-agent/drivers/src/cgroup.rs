//! Control groups of tasks, on v1 hierarchies, on v2, and on machines that have both.
//!
//! A task has one directory `meshctl/<node>/<allocation>/<task>` in every hierarchy that matters: those that limit it, the
//! one that kills it (v2's `cgroup.kill`, else v1's freezer), and those by which systemd would take it for a part of
//! the agent's unit.

use crate::spec::{CpuQuota, Limits};
use nix::errno::Errno;
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use serde::{Deserialize, Serialize};
use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::io;
use std::path::{Path, PathBuf};
use std::thread::sleep;
use std::time::{Duration, Instant};

const TOP: &str = "meshctl";

/// How long the kernel may take to end killed processes; a task in uninterruptible sleep can take for ever.
const EMPTY_WITHIN: Duration = Duration::from_secs(10);

#[derive(Debug, thiserror::Error)]
pub enum CgroupError {
    #[error("{path}: cannot {action}")]
    Io {
        path: PathBuf,
        action: &'static str,
        #[source]
        source: io::Error,
    },
    #[error("no cgroup hierarchy for {name} is mounted; mount cgroup2 on /sys/fs/cgroup")]
    Missing { name: &'static str },
    #[error("{path}: still has processes of an earlier run; stop them first")]
    Busy { path: PathBuf },
    #[error("{path}: processes are left although they were killed; look at their state with `ps`")]
    Unkillable { path: PathBuf },
}

/// Which cgroup file systems are mounted, and where.
#[derive(Clone, Debug, PartialEq, Eq, Default)]
pub struct Hierarchies {
    pub v2: Option<PathBuf>,
    /// What v2 can limit; empty where v1 holds all controllers.
    pub v2_controllers: BTreeSet<String>,
    /// By controller; `name=systemd` is one without any.
    pub v1: BTreeMap<String, PathBuf>,
}

/// The directories of one task. Kept in its state file, so that clearing up does not depend on finding them again.
#[derive(Clone, Debug, PartialEq, Eq, Default, Serialize, Deserialize)]
pub struct Cgroup {
    pub v2: Option<PathBuf>,
    /// By controller; hierarchies that are mounted together share a path.
    pub v1: BTreeMap<String, PathBuf>,
}

impl Hierarchies {
    const V1_WANTED: [&'static str; 7] = ["cpu", "cpuacct", "cpuset", "memory", "pids", "freezer", "name=systemd"];
    const V2_WANTED: [&'static str; 3] = ["cpu", "memory", "pids"];

    pub fn detect() -> Result<Self, CgroupError> {
        let path = Path::new("/proc/self/mountinfo");
        let mut found = Self::parse(&fs::read_to_string(path).map_err(io_error(path, "read it"))?);
        if let Some(top) = &found.v2 {
            let list = top.join("cgroup.controllers");
            let text = fs::read_to_string(&list).map_err(io_error(&list, "read it"))?;
            found.v2_controllers = text.split_whitespace().map(str::to_owned).collect();
        }
        Ok(found)
    }

    /// From the text of /proc/self/mountinfo; the first mount of a hierarchy wins.
    pub fn parse(mountinfo: &str) -> Self {
        let mut found = Self::default();
        for line in mountinfo.lines() {
            let Some((left, right)) = line.split_once(" - ") else { continue };
            let Some(mount) = left.split(' ').nth(4).map(unescape) else { continue };
            let mut right = right.split(' ');
            match (right.next(), right.nth(1)) {
                (Some("cgroup2"), _) => drop(found.v2.get_or_insert(mount)),
                (Some("cgroup"), Some(options)) => found.add_v1(options, &mount),
                _ => {}
            }
        }
        found
    }

    /// The first thing a task needs that no hierarchy offers.
    pub fn missing(&self) -> Option<&'static str> {
        let limited = |name: &&str| self.v1.contains_key(*name) || self.v2_controllers.contains(*name);
        let unlimited = Self::V2_WANTED.into_iter().find(|name| !limited(name));
        let no_killer = self.v2.is_none() && !self.v1.contains_key("freezer");
        unlimited.or(no_killer.then_some("freezer"))
    }

    fn add_v1(&mut self, options: &str, mount: &Path) {
        for name in options.split(',').filter(|name| Self::V1_WANTED.contains(name)) {
            self.v1.entry(name.to_owned()).or_insert_with(|| mount.to_owned());
        }
    }

    /// From the text of `/proc/PID/cgroup`: `number:controllers:path`, v2 with number 0 and no controllers.
    fn parse_membership(&self, text: &str) -> Cgroup {
        let mut found = Cgroup::default();
        for line in text.lines() {
            let mut fields = line.splitn(3, ':').skip(1);
            let (Some(controllers), Some(path)) = (fields.next(), fields.next()) else { continue };
            let path = path.trim_start_matches('/');
            if path.is_empty() {
                // The root: a process that is ending has left its own.
                continue;
            }
            if controllers.is_empty() {
                found.v2 = self.v2.as_ref().map(|mount| mount.join(path));
            }
            for name in controllers.split(',') {
                let mount = self.v1.get(name).map(|mount| (name.to_owned(), mount.join(path)));
                found.v1.extend(mount);
            }
        }
        found
    }

    fn at(&self, path: &Path) -> Cgroup {
        let v1 = self.v1.iter().map(|(name, mount)| (name.clone(), mount.join(path))).collect();
        Cgroup { v2: self.v2.as_ref().map(|mount| mount.join(path)), v1 }
    }

    /// Controllers must be handed down level by level before a v2 leaf has their files.
    fn delegate(&self, path: &Path) -> Result<(), CgroupError> {
        let Some(top) = &self.v2 else { return Ok(()) };
        let wanted: Vec<_> =
            Self::V2_WANTED.into_iter().chain(["cpuset"]).filter(|name| self.v2_controllers.contains(*name)).collect();
        for ancestor in path.ancestors().skip(1).collect::<Vec<_>>().into_iter().rev() {
            let dir = top.join(ancestor);
            make(&dir)?;
            for name in &wanted {
                write(&dir.join("cgroup.subtree_control"), &format!("+{name}"))?;
            }
        }
        Ok(())
    }
}

impl Cgroup {
    /// Names the directories and makes none. Refused when processes of an earlier run are left in them.
    pub fn claim(on: &Hierarchies, path: &Path) -> Result<Self, CgroupError> {
        if let Some(name) = on.missing() {
            return Err(CgroupError::Missing { name });
        }
        let cgroup = on.at(path);
        for dir in cgroup.dirs() {
            if !processes(dir)?.is_empty() {
                return Err(CgroupError::Busy { path: dir.to_owned() });
            }
        }
        Ok(cgroup)
    }

    /// Where a process is now, for what is to be read there: such a cgroup is somebody else's.
    pub fn of_process(on: &Hierarchies, pid: i32) -> Self {
        let text = fs::read_to_string(format!("/proc/{pid}/cgroup")).unwrap_or_default();
        on.parse_membership(&text)
    }

    /// Makes the directories and sets the limits.
    pub fn create(&self, on: &Hierarchies, path: &Path, limits: &Limits) -> Result<(), CgroupError> {
        on.delegate(path)?;
        self.dirs().into_iter().try_for_each(make)?;
        self.limit(on, limits)
    }

    /// Moves the calling process out of the agent's groups, into one that all supervisors of the node share.
    pub fn join_supervisors(on: &Hierarchies, node: &str) -> Result<(), CgroupError> {
        let path: PathBuf = [TOP, node, "supervisors"].iter().collect();
        on.delegate(&path)?;
        let cgroup = on.at(&path);
        cgroup.dirs().into_iter().try_for_each(make)?;
        cgroup.v1.get("cpuset").map_or(Ok(()), |dir| limit_cpus_v1(dir, None))?;
        cgroup.enter()
    }

    /// Moves the calling process in. Children follow.
    pub fn enter(&self) -> Result<(), CgroupError> {
        self.dirs().into_iter().try_for_each(|dir| write(&dir.join("cgroup.procs"), "0"))
    }

    /// SIGKILL to every process; returns when none is left.
    pub fn kill_all(&self) -> Result<(), CgroupError> {
        match (&self.v2, self.v1.get("freezer")) {
            (Some(dir), _) if dir.join("cgroup.kill").exists() => {
                write(&dir.join("cgroup.kill"), "1")?;
                await_empty(dir, || Ok(()))
            }
            (_, Some(dir)) => await_empty(dir, || kill_frozen(dir)),
            (Some(dir), None) => await_empty(dir, || kill_each(dir)),
            (None, None) => Ok(()),
        }
    }

    /// How often the kernel killed a process in here for want of memory.
    pub fn oom_kills(&self) -> u64 {
        let v1 = self.v1.get("memory").map(|dir| dir.join("memory.oom_control"));
        let file = v1.or_else(|| self.v2.as_ref().map(|dir| dir.join("memory.events")));
        let text = file.and_then(|file| fs::read_to_string(file).ok()).unwrap_or_default();
        let count = text.lines().find_map(|line| line.strip_prefix("oom_kill "));
        count.and_then(|count| count.trim().parse().ok()).unwrap_or(0)
    }

    /// Removes the directories and, with its last task, the allocation's. They must be empty.
    pub fn remove(&self) -> Result<(), CgroupError> {
        for dir in self.dirs() {
            remove_dir(dir)?;
            if let Some(alloc) = dir.parent() {
                // Fails while other tasks of the allocation are in it, which then remove it.
                let _ = fs::remove_dir(alloc);
            }
        }
        Ok(())
    }

    pub fn is_gone(&self) -> bool {
        self.dirs().into_iter().all(|dir| !dir.exists())
    }

    fn dirs(&self) -> BTreeSet<&Path> {
        self.v1.values().chain(&self.v2).map(PathBuf::as_path).collect()
    }

    fn limit(&self, on: &Hierarchies, limits: &Limits) -> Result<(), CgroupError> {
        let shares = limits.cpu_mhz.clamp(2, 262_144);
        match (self.v1.get("cpu"), &self.v2) {
            (Some(dir), _) => limit_cpu_v1(dir, shares, limits.cpu_quota)?,
            (None, Some(dir)) => limit_cpu_v2(dir, shares, limits.cpu_quota)?,
            (None, None) => {}
        }
        match (self.v1.get("memory"), &self.v2) {
            (Some(dir), _) => limit_memory_v1(dir, limits)?,
            (None, Some(dir)) => limit_memory_v2(dir, limits)?,
            (None, None) => {}
        }
        match (self.v1.get("cpuset"), &self.v2, &limits.cpuset) {
            (Some(dir), _, _) => limit_cpus_v1(dir, limits.cpuset.as_deref())?,
            (None, Some(dir), Some(cpus)) => write(&dir.join("cpuset.cpus"), cpus)?,
            _ => {}
        }
        let pids = self.v1.get("pids").or(self.v2.as_ref().filter(|_| on.v2_controllers.contains("pids")));
        pids.map_or(Ok(()), |dir| write(&dir.join("pids.max"), &limits.pids_max.to_string()))
    }
}

/// Removes what is left of a node's groups once nothing of it runs: the supervisors' group and the node's own directory.
pub fn remove_node(node: &str) -> Result<(), CgroupError> {
    let on = Hierarchies::detect()?;
    for path in [[TOP, node, "supervisors"].iter().collect::<PathBuf>(), [TOP, node].iter().collect()] {
        on.at(&path).dirs().into_iter().try_for_each(remove_dir)?;
    }
    for top in on.at(Path::new(TOP)).dirs() {
        // Fails while other nodes of this machine are in it.
        let _ = fs::remove_dir(top);
    }
    Ok(())
}

/// The kernel's v1 range 2-262144 onto v2's 1-10000, as systemd and runc convert it.
fn weight(shares: u64) -> u64 {
    1 + (shares - 2) * 9_999 / 262_142
}

fn limit_cpu_v1(dir: &Path, shares: u64, quota: Option<CpuQuota>) -> Result<(), CgroupError> {
    write(&dir.join("cpu.shares"), &shares.to_string())?;
    let Some(quota) = quota else { return Ok(()) };
    write(&dir.join("cpu.cfs_period_us"), &quota.period_us.to_string())?;
    write(&dir.join("cpu.cfs_quota_us"), &quota.us.to_string())
}

fn limit_cpu_v2(dir: &Path, shares: u64, quota: Option<CpuQuota>) -> Result<(), CgroupError> {
    write(&dir.join("cpu.weight"), &weight(shares).to_string())?;
    let Some(quota) = quota else { return Ok(()) };
    write(&dir.join("cpu.max"), &format!("{} {}", quota.us, quota.period_us))
}

/// A v1 cpuset takes no process before both of its lists are filled, level by level from the top.
fn limit_cpus_v1(dir: &Path, cpus: Option<&str>) -> Result<(), CgroupError> {
    let above: Vec<_> = dir.ancestors().take_while(|dir| dir.join("cpuset.cpus").exists()).collect();
    for pair in above.windows(2).rev() {
        for file in ["cpuset.cpus", "cpuset.mems"] {
            let (own, parents) = (pair[0].join(file), pair[1].join(file));
            let text = fs::read_to_string(&own).map_err(io_error(&own, "read it"))?;
            if text.trim().is_empty() {
                let inherited = fs::read_to_string(&parents).map_err(io_error(&parents, "read it"))?;
                write(&own, inherited.trim())?;
            }
        }
    }
    cpus.map_or(Ok(()), |cpus| write(&dir.join("cpuset.cpus"), cpus))
}

fn limit_memory_v1(dir: &Path, limits: &Limits) -> Result<(), CgroupError> {
    let most = limits.memory_ceiling().to_string();
    write(&dir.join("memory.limit_in_bytes"), &most)?;
    if limits.memory_max_bytes.is_some() {
        write(&dir.join("memory.soft_limit_in_bytes"), &limits.memory_bytes.to_string())?;
    }
    // Present where swap accounting is built in: without it the task could swap instead of failing.
    write_if_present(&dir.join("memory.memsw.limit_in_bytes"), &most)
}

fn limit_memory_v2(dir: &Path, limits: &Limits) -> Result<(), CgroupError> {
    write(&dir.join("memory.max"), &limits.memory_ceiling().to_string())?;
    if limits.memory_max_bytes.is_some() {
        write(&dir.join("memory.low"), &limits.memory_bytes.to_string())?;
    }
    write_if_present(&dir.join("memory.swap.max"), "0")?;
    write_if_present(&dir.join("memory.oom.group"), "1")
}

fn await_empty(dir: &Path, mut strike: impl FnMut() -> Result<(), CgroupError>) -> Result<(), CgroupError> {
    let deadline = Instant::now() + EMPTY_WITHIN;
    while !processes(dir)?.is_empty() {
        if Instant::now() > deadline {
            return Err(CgroupError::Unkillable { path: dir.to_owned() });
        }
        strike()?;
        sleep(Duration::from_millis(2));
    }
    Ok(())
}

/// Frozen processes neither fork nor exit, so that the list is complete and no number in it is reused.
fn kill_frozen(dir: &Path) -> Result<(), CgroupError> {
    let state = dir.join("freezer.state");
    write(&state, "FROZEN")?;
    let deadline = Instant::now() + Duration::from_millis(500);
    while fs::read_to_string(&state).is_ok_and(|now| now.trim() != "FROZEN") && Instant::now() < deadline {
        sleep(Duration::from_millis(1));
    }
    let struck = kill_each(dir);
    write(&state, "THAWED")?;
    struck
}

fn kill_each(dir: &Path) -> Result<(), CgroupError> {
    for pid in processes(dir)? {
        match kill(Pid::from_raw(pid), Signal::SIGKILL) {
            Ok(()) | Err(Errno::ESRCH) => {}
            Err(errno) => return Err(io_error(dir, "kill its processes")(errno.into())),
        }
    }
    Ok(())
}

/// Zombies are left out by the kernel's own list on v2 but not on v1, where they leave when they are reaped.
fn processes(dir: &Path) -> Result<Vec<i32>, CgroupError> {
    match fs::read_to_string(dir.join("cgroup.procs")) {
        // A number of 0 is a process of another pid namespace, which no signal of ours reaches.
        Ok(text) => Ok(text.lines().filter_map(|pid| pid.parse().ok()).filter(|pid| *pid > 0).collect()),
        Err(error) if is_gone(&error) => Ok(Vec::new()),
        Err(source) => Err(io_error(dir, "list its processes")(source)),
    }
}

fn make(dir: &Path) -> Result<(), CgroupError> {
    // A parent may be removed by a sibling's end between its making and ours.
    let made = (0..5).find_map(|_| fs::create_dir_all(dir).ok());
    made.map_or_else(|| fs::create_dir_all(dir).map_err(io_error(dir, "make it")), Ok)
}

/// The kernel may still count a process that is gone from the list for a moment.
/// A dead process keeps its cgroup busy until it was reaped, which for orphans is up to the machine's init.
fn remove_dir(dir: &Path) -> Result<(), CgroupError> {
    let deadline = Instant::now() + EMPTY_WITHIN;
    loop {
        match fs::remove_dir(dir) {
            Err(error) if error.raw_os_error() == Some(Errno::EBUSY as i32) && Instant::now() < deadline => {
                sleep(Duration::from_millis(2));
            }
            Err(error) if !is_gone(&error) => return Err(io_error(dir, "remove it")(error)),
            _ => return Ok(()),
        }
    }
}

/// ENODEV is what reads of a directory give that is being removed.
fn is_gone(error: &io::Error) -> bool {
    error.kind() == io::ErrorKind::NotFound || error.raw_os_error() == Some(Errno::ENODEV as i32)
}

fn write(file: &Path, text: &str) -> Result<(), CgroupError> {
    fs::write(file, text).map_err(io_error(file, "write to it"))
}

fn write_if_present(file: &Path, text: &str) -> Result<(), CgroupError> {
    if file.exists() { write(file, text) } else { Ok(()) }
}

fn io_error(path: &Path, action: &'static str) -> impl FnOnce(io::Error) -> CgroupError {
    let path = path.to_owned();
    move |source| CgroupError::Io { path, action, source }
}

/// mountinfo writes blanks and backslashes as three octal digits.
pub(crate) fn unescape(text: &str) -> PathBuf {
    PathBuf::from(text.replace("\\040", " ").replace("\\011", "\t").replace("\\012", "\n").replace("\\134", "\\"))
}

#[cfg(test)]
mod tests {
    use super::*;

    const HYBRID: &str = "\
31 23 0:28 / /sys/fs/cgroup rw,relatime - tmpfs tmpfs rw,mode=755
32 31 0:29 / /sys/fs/cgroup/cpu,cpuacct rw,relatime shared:9 - cgroup cgroup rw,cpu,cpuacct
36 31 0:33 / /sys/fs/cgroup/devices rw,relatime - cgroup cgroup rw,devices
35 31 0:32 / /sys/fs/cgroup/memory rw,relatime - cgroup cgroup rw,memory
37 31 0:34 / /sys/fs/cgroup/freezer rw,relatime - cgroup cgroup rw,freezer
39 31 0:36 / /sys/fs/cgroup/pids rw,relatime - cgroup cgroup rw,pids
40 31 0:37 / /sys/fs/cgroup/systemd rw,relatime - cgroup cgroup rw,xattr,name=systemd
41 31 0:38 / /sys/fs/cgroup/unified rw,relatime - cgroup2 cgroup2 rw
";

    #[test]
    fn hybrid_mounts_are_told_apart() {
        let found = Hierarchies::parse(HYBRID);
        assert_eq!(found.v2.as_deref(), Some(Path::new("/sys/fs/cgroup/unified")));
        assert_eq!(
            found.v1.keys().collect::<Vec<_>>(),
            ["cpu", "cpuacct", "freezer", "memory", "name=systemd", "pids"]
        );
        assert_eq!(found.v1["cpu"], Path::new("/sys/fs/cgroup/cpu,cpuacct"));
        assert_eq!(found.missing(), None);
    }

    #[test]
    fn a_process_is_found_in_every_hierarchy() {
        let found = Hierarchies::parse(HYBRID)
            .parse_membership("7:memory:/docker/ab\n3:cpu,cpuacct:/x\n5:pids:/\n0::/y\nnonsense\n");
        assert_eq!(found.v2.as_deref(), Some(Path::new("/sys/fs/cgroup/unified/y")));
        assert_eq!(found.v1["memory"], Path::new("/sys/fs/cgroup/memory/docker/ab"));
        assert_eq!((found.v1["cpu"].as_path(), found.v1.len()), (Path::new("/sys/fs/cgroup/cpu,cpuacct/x"), 3));
    }

    #[test]
    fn v2_alone_needs_its_controllers() {
        let mut found = Hierarchies::parse("29 23 0:26 / /sys/fs/cgroup rw - cgroup2 cgroup2 rw,nsdelegate\n");
        assert_eq!((found.v1.len(), found.missing()), (0, Some("cpu")));
        found.v2_controllers = ["cpu", "io", "memory", "pids"].map(str::to_owned).into();
        assert_eq!(found.missing(), None);
        assert_eq!(found.at(Path::new("meshctl/n")).dirs().len(), 1);
    }

    #[test]
    fn garbage_and_nothing_at_all_are_no_hierarchies() {
        for text in ["", "\n\n", " - ", "1 2 - cgroup", "a b c d e - cgroup cgroup"] {
            assert_eq!(Hierarchies::parse(text), Hierarchies::default(), "{text:?}");
        }
        assert_eq!(Hierarchies::default().missing(), Some("cpu"));
    }

    #[test]
    fn cpu_weight_spans_the_range() {
        assert_eq!((weight(2), weight(262_144)), (1, 10_000));
        assert!((1..=10_000).contains(&weight(1_024)));
    }
}
