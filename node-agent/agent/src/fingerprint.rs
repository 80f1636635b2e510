//! What this machine is: read once at start and told to the servers in Hello.

use crate::config::AgentConfig;
use model::{DriverStatus, Eligibility, Epoch, Index, Node, NodeId, NodeResources, NodeStatus, Timestamp};
use std::collections::BTreeMap;
use std::fs;
use std::path::Path;

/// What the node keeps for itself, so that tasks never starve the agent and the system.
const KEPT_MEMORY_MB: u64 = 128;

/// The node as Hello describes it. The session numbers its epochs; blocks, status and indices are the catalog's to fill.
pub fn node(config: &AgentConfig, id: NodeId, drivers: BTreeMap<String, DriverStatus>) -> Node {
    let mut attributes = system_attributes();
    attributes.extend(driver_attributes(&drivers));
    attributes.insert("unique.hostname".to_owned(), hostname());
    attributes.insert("unique.network.ip-address".to_owned(), config.address.to_string());
    Node {
        id,
        name: config.name.clone(),
        datacenter: config.datacenter.clone(),
        pool: "default".to_owned(),
        class: config.class.clone(),
        address: config.address,
        attributes,
        meta: config.meta.clone(),
        resources: resources(&config.data_dir),
        drivers,
        status: NodeStatus::Initializing,
        eligibility: Eligibility::Eligible,
        drain: None,
        epoch: Epoch(0),
        blocks: Vec::new(),
        version: model::VERSION.to_owned(),
        status_changed_at: Timestamp::NEVER,
        created_at_index: Index(0),
        modified_at_index: Index(0),
    }
}

fn system_attributes() -> BTreeMap<String, String> {
    let cpu = cpu();
    let os = parse_os_release(&read("/etc/os-release"));
    let pairs = [
        ("kernel.name", "linux".to_owned()),
        ("kernel.version", read("/proc/sys/kernel/osrelease").trim().to_owned()),
        ("kernel.arch", std::env::consts::ARCH.to_owned()),
        ("arch", nomad_arch().to_owned()),
        ("cpu.arch", std::env::consts::ARCH.to_owned()),
        ("cpu.numcores", cpu.cores.to_string()),
        ("cpu.frequency", cpu.mhz.to_string()),
        ("cpu.totalcompute", cpu.total_mhz().to_string()),
        ("memory.totalbytes", (memory_mb(&read("/proc/meminfo")) << 20).to_string()),
        ("os.name", os.name),
        ("os.version", os.version),
        ("nomad.version", model::VERSION.to_owned()),
    ];
    pairs.into_iter().map(|(key, value)| (key.to_owned(), value)).collect()
}

fn driver_attributes(drivers: &BTreeMap<String, DriverStatus>) -> impl Iterator<Item = (String, String)> {
    drivers.iter().filter(|(_, status)| status.healthy).map(|(name, _)| (format!("driver.{name}"), "1".to_owned()))
}

fn resources(data_dir: &Path) -> NodeResources {
    NodeResources {
        cpu_mhz: cpu().total_mhz(),
        memory_mb: memory_mb(&read("/proc/meminfo")).saturating_sub(KEPT_MEMORY_MB),
        disk_mb: free_disk_mb(data_dir),
    }
}

fn free_disk_mb(path: &Path) -> u64 {
    let existing = path.ancestors().find(|path| path.exists()).unwrap_or(Path::new("/"));
    nix::sys::statvfs::statvfs(existing).map_or(0, |fs| fs.blocks_available().saturating_mul(fs.fragment_size()) >> 20)
}

/// Go's names, which job files compare `${attr.cpu.arch}`'s sibling `${attr.arch}` with.
fn nomad_arch() -> &'static str {
    match std::env::consts::ARCH {
        "x86_64" => "amd64",
        "aarch64" => "arm64",
        other => other,
    }
}

pub fn hostname() -> String {
    read("/proc/sys/kernel/hostname").trim().to_owned()
}

fn read(path: &str) -> String {
    fs::read_to_string(path).unwrap_or_default()
}

#[derive(Debug, PartialEq, Eq)]
struct Cpu {
    cores: u64,
    mhz: u64,
}

impl Cpu {
    fn total_mhz(&self) -> u64 {
        self.cores * self.mhz
    }
}

/// The rated frequency where the kernel tells it, else the present one; 1,000 MHz where it tells nothing (virtual Arm machines).
fn cpu() -> Cpu {
    let rated =
        read("/sys/devices/system/cpu/cpu0/cpufreq/cpuinfo_max_freq").trim().parse().ok().map(|khz: u64| khz / 1000);
    let present = parse_cpuinfo(&read("/proc/cpuinfo"));
    Cpu { cores: present.cores.max(1), mhz: rated.unwrap_or(present.mhz).max(1) }
}

fn parse_cpuinfo(text: &str) -> Cpu {
    let values = |key: &'static str| {
        text.lines()
            .filter_map(move |line| line.split_once(':').filter(|(name, _)| name.trim() == key))
            .map(|(_, v)| v.trim())
    };
    let mhz = values("cpu MHz").filter_map(|value| value.parse::<f64>().ok()).fold(0.0, f64::max);
    Cpu { cores: values("processor").count() as u64, mhz: if mhz > 0.0 { mhz as u64 } else { 1000 } }
}

fn memory_mb(meminfo: &str) -> u64 {
    let total = meminfo.lines().find_map(|line| line.strip_prefix("MemTotal:"));
    let kib =
        total.and_then(|rest| rest.trim().strip_suffix("kB")).and_then(|number| number.trim().parse::<u64>().ok());
    kib.unwrap_or(0) >> 10
}

#[derive(Debug, PartialEq, Eq)]
struct Os {
    name: String,
    version: String,
}

fn parse_os_release(text: &str) -> Os {
    let value = |key: &str| {
        let line = text.lines().find_map(|line| line.strip_prefix(key)?.strip_prefix('='));
        line.unwrap_or("unknown").trim_matches('"').to_owned()
    };
    Os { name: value("ID"), version: value("VERSION_ID") }
}

#[cfg(test)]
pub mod tests {
    use super::*;

    pub fn node() -> Node {
        let mut config = AgentConfig::for_address([10, 77, 0, 11].into());
        config.name = "n1".to_owned();
        let mut node = super::node(&config, NodeId::from_random(1), BTreeMap::new());
        node.attributes.insert("cpu.arch".to_owned(), "x86_64".to_owned());
        node
    }

    #[test]
    fn cpu_frequency_times_cores_is_what_can_be_given_out() {
        let text = "processor\t: 0\ncpu MHz\t\t: 2445.422\n\nprocessor\t: 1\ncpu MHz\t\t: 1200.000\n";
        assert_eq!(parse_cpuinfo(text), Cpu { cores: 2, mhz: 2445 });
        assert_eq!(parse_cpuinfo("processor : 0\n"), Cpu { cores: 1, mhz: 1000 });
    }

    #[test]
    fn memory_and_os_are_read_from_the_kernels_and_the_distributions_text() {
        assert_eq!(memory_mb("MemTotal:        8151212 kB\nMemFree: 1 kB\n"), 7960);
        assert_eq!(memory_mb("garbage"), 0);
        let os = parse_os_release("PRETTY_NAME=\"Debian\"\nID=debian\nVERSION_ID=\"12\"\n");
        assert_eq!((os.name.as_str(), os.version.as_str()), ("debian", "12"));
    }

    #[test]
    fn this_machine_has_something_to_give() {
        let node = node();
        assert!(node.resources.cpu_mhz > 0 && node.resources.memory_mb > 0 && node.resources.disk_mb > 0, "{node:?}");
        assert_eq!(node.attributes["kernel.name"], "linux");
    }
}
