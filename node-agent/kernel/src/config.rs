//! What attaching needs, and whether this machine has it.

use std::path::{Path, PathBuf};

use nix::sys::{statfs::statfs, utsname::uname};

use crate::sys;

/// Where and for whom to attach.
#[derive(Clone, Debug)]
pub struct Config {
    /// A directory on a bpffs; it is made when missing.
    pub pin_root: PathBuf,
    /// Several agents may share one kernel: each has its own pins.
    pub node_id: String,
    /// The interface that clients and other nodes are behind. None: only sockets on this node are served.
    pub uplink: Option<String>,
    /// The root of a cgroup2 hierarchy.
    pub cgroup_root: PathBuf,
    pub sizes: Sizes,
}

/// How many flows the tables hold. Both are rounded up to powers of two; maps that are pinned keep the size they have.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Sizes {
    /// Flows to backends of this node: 32 bytes each, for all CPUs together.
    pub flows: u32,
    /// Choices that each CPU remembers for flows that come in here: 16 bytes each. Four times what is expected keeps nearly
    /// all of them.
    pub choices: u32,
}

impl Default for Sizes {
    fn default() -> Self {
        let cpus = aya::util::nr_cpus().unwrap_or(1);
        let share = if cpus > 16 { 4 } else { 1 };
        Self { flows: 4 * abi::maps::FLOW_BUCKETS, choices: 4 * abi::maps::ENTRY_BUCKETS / share }
    }
}

/// Why the data path cannot run here. Nothing was changed.
#[derive(Debug, thiserror::Error)]
pub enum PreflightError {
    #[error("the process lacks {0}: run the agent as root, or with CAP_BPF, CAP_NET_ADMIN and CAP_PERFMON")]
    Capability(&'static str),
    #[error("the kernel is {found}, and tcx links need 6.6: boot a newer kernel (older ones are not supported yet)")]
    KernelTooOld { found: String },
    #[error("`pin_root` {0} is not on a bpffs: run `mount -t bpf bpf /sys/fs/bpf`")]
    NoBpffs(PathBuf),
    #[error("`cgroup_root` {0} is not on a cgroup2 mount: name one (`findmnt -t cgroup2` lists them)")]
    NoCgroup2(PathBuf),
    #[error("`uplink` {0} is not an interface of this network namespace: `ip link` lists those there are")]
    NoInterface(String),
    #[error("`node_id` {0:?} cannot be a directory name: use letters, digits and dashes")]
    BadNodeId(String),
}

const BPFFS_MAGIC: i64 = 0xcafe_4a11;
const CGROUP2_MAGIC: i64 = 0x6367_7270;
const OLDEST_KERNEL: (u32, u32) = (6, 6);

pub(crate) fn preflight(config: &Config) -> Result<(), PreflightError> {
    check_node_id(&config.node_id)?;
    check_capabilities()?;
    check_kernel()?;
    if !on_filesystem(&config.pin_root, BPFFS_MAGIC) {
        return Err(PreflightError::NoBpffs(config.pin_root.clone()));
    }
    if !on_filesystem(&config.cgroup_root, CGROUP2_MAGIC) {
        return Err(PreflightError::NoCgroup2(config.cgroup_root.clone()));
    }
    config.uplink.as_deref().map_or(Ok(()), check_interface)
}

fn check_node_id(id: &str) -> Result<(), PreflightError> {
    let plain = |c: char| c.is_ascii_alphanumeric() || c == '-';
    if id.is_empty() || !id.chars().all(plain) { Err(PreflightError::BadNodeId(id.to_owned())) } else { Ok(()) }
}

// Bits of CapEff (linux/capability.h).
fn check_capabilities() -> Result<(), PreflightError> {
    let effective = sys::effective_capabilities();
    let needed = [(39, "CAP_BPF"), (12, "CAP_NET_ADMIN"), (38, "CAP_PERFMON")];
    match needed.iter().find(|(bit, _)| effective >> bit & 1 == 0) {
        Some((_, name)) => Err(PreflightError::Capability(name)),
        None => Ok(()),
    }
}

fn check_kernel() -> Result<(), PreflightError> {
    let release = uname().map(|name| name.release().to_string_lossy().into_owned()).unwrap_or_default();
    let mut numbers = release.split(['.', '-']).map_while(|part| part.parse::<u32>().ok());
    let found = (numbers.next().unwrap_or(0), numbers.next().unwrap_or(0));
    if found < OLDEST_KERNEL { Err(PreflightError::KernelTooOld { found: release }) } else { Ok(()) }
}

fn check_interface(name: &str) -> Result<(), PreflightError> {
    nix::net::if_::if_nametoindex(name).map(|_| ()).map_err(|_| PreflightError::NoInterface(name.to_owned()))
}

/// Whether the path, or the nearest parent that exists, lies on a filesystem of this kind.
fn on_filesystem(path: &Path, magic: i64) -> bool {
    path.ancestors().find_map(|dir| statfs(dir).ok()).is_some_and(|fs| fs.filesystem_type().0 == magic)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn config() -> Config {
        Config {
            pin_root: "/sys/fs/bpf/meshctl".into(),
            node_id: "n-1".into(),
            uplink: None,
            cgroup_root: "/sys/fs/cgroup".into(),
            sizes: Sizes::default(),
        }
    }

    #[test]
    fn a_pin_root_elsewhere_is_named_with_its_remedy() {
        let error = preflight(&Config { pin_root: "/tmp/pins".into(), ..config() }).unwrap_err();
        let text = error.to_string();
        assert!(text.contains("pin_root") && text.contains("mount -t bpf") || text.contains("run the agent as root"));
    }

    #[test]
    fn node_ids_stay_inside_their_directory() {
        for id in ["", "..", "a/b", "a b"] {
            let refused = preflight(&Config { node_id: id.into(), ..config() });
            assert!(matches!(refused, Err(PreflightError::BadNodeId(_))), "{id:?}");
        }
    }

    #[test]
    fn a_missing_interface_is_named() {
        let error = check_interface("no-such-if").unwrap_err();
        assert!(error.to_string().contains("no-such-if"));
    }
}
