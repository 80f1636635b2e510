//! Everything that can be known to be wrong before anything on the machine changes. Every refusal names the key and the remedy.

use crate::config::AgentConfig;
use crate::datadir::{DataDir, DataDirError};
use std::io;
use std::net::{IpAddr, SocketAddr, TcpListener, UdpSocket};
use std::path::{Path, PathBuf};

/// tcx links, which the data path hangs on.
const KERNEL_MIN: (u32, u32) = (6, 6);

#[derive(Debug, thiserror::Error)]
pub enum PreflightError {
    #[error("the agent needs root (CAP_BPF, CAP_NET_ADMIN, cgroups): run it as root")]
    NotRoot,
    #[error("kernel {found} is too old: the data path needs {}.{} or newer", KERNEL_MIN.0, KERNEL_MIN.1)]
    KernelTooOld { found: String },
    #[error("name: `{0}` is not 1 to 63 letters, digits, `-` or `_`; DNS has to answer for it")]
    Name(String),
    #[error(
        "http_bind: {0} is not a loopback address; the API has no TLS and listens on loopback only, e.g. 127.0.0.1:4646"
    )]
    HttpNotLoopback(SocketAddr),
    #[error("{key}: {address} cannot be listened on; choose another address or stop what holds it")]
    PortTaken { key: &'static str, address: SocketAddr, source: io::Error },
    #[error("address: {address} is not an address of this machine; give the one that other nodes reach it at")]
    ForeignAddress { address: std::net::IpAddr, source: io::Error },
    #[error("address: {0} is IPv6, which is not built yet; give an IPv4 address")]
    NotIpv4(std::net::IpAddr),
    #[error("uplink: there is no interface `{0}` here; `ip link` lists them")]
    NoInterface(String),
    #[error(
        "uplink: `{0}` is no Ethernet, which tunnels and clients come in by; name the one that other nodes are behind"
    )]
    NotEthernet(String),
    #[error(
        "address: {address} is not an address of the uplink `{uplink}`; `ip addr` lists those, give one with --advertise"
    )]
    NotOfUplink { address: std::net::IpAddr, uplink: String },
    #[error("no cgroup2 hierarchy is mounted; mount one with `mount -t cgroup2 cgroup2 /sys/fs/cgroup`")]
    NoCgroup2,
    #[error(transparent)]
    Datapath(#[from] kernel::PreflightError),
    #[error("pin_root: {0} is not on a bpffs; mount one: mount -t bpf bpf /sys/fs/bpf")]
    NoBpffs(PathBuf),
    #[error(
        "token: this node has no certificate yet; make a token on a server with `meshctl token create --role agent`"
    )]
    NoToken,
    #[error("servers: name at least one server's RPC address, such as 10.0.0.1:4647")]
    NoServers,
    #[error("supervisor: {0} is not a file; name the meshctl binary")]
    NoSupervisor(PathBuf),
    #[error(transparent)]
    DataDir(#[from] DataDirError),
}

/// Changes nothing.
pub fn check(config: &AgentConfig) -> Result<(), PreflightError> {
    check_values(config)?;
    check_machine(config)?;
    let data_dir = DataDir::inspect(&config.data_dir)?;
    if config.token.is_none() && !data_dir.has_certificate() {
        return Err(PreflightError::NoToken);
    }
    Ok(())
}

fn check_values(config: &AgentConfig) -> Result<(), PreflightError> {
    if !is_label(&config.name) {
        return Err(PreflightError::Name(config.name.clone()));
    }
    if let Some(address) = config.http_bind.filter(|address| !address.ip().is_loopback()) {
        return Err(PreflightError::HttpNotLoopback(address));
    }
    if config.address.is_ipv6() {
        return Err(PreflightError::NotIpv4(config.address));
    }
    if config.servers.is_empty() {
        return Err(PreflightError::NoServers);
    }
    Ok(())
}

fn check_machine(config: &AgentConfig) -> Result<(), PreflightError> {
    if !nix::unistd::geteuid().is_root() {
        return Err(PreflightError::NotRoot);
    }
    check_kernel()?;
    if !config.supervisor.is_file() {
        return Err(PreflightError::NoSupervisor(config.supervisor.clone()));
    }
    check_bpffs(&config.pin_root)?;
    config.uplink.as_deref().map_or(Ok(()), |uplink| check_uplink(uplink, config.address))?;
    check_datapath(config)?;
    check_addresses(config)
}

fn check_uplink(name: &str, address: IpAddr) -> Result<(), PreflightError> {
    let all = nix::ifaddrs::getifaddrs().into_iter().flatten();
    let own: Vec<_> = all.filter(|entry| entry.interface_name == name).filter_map(|entry| entry.address).collect();
    if nix::net::if_::if_nametoindex(name).is_err() {
        return Err(PreflightError::NoInterface(name.to_owned()));
    }
    if !own.iter().filter_map(|found| found.as_link_addr()?.addr()).any(|mac| mac != [0; 6]) {
        return Err(PreflightError::NotEthernet(name.to_owned()));
    }
    if !own.iter().filter_map(|found| found.as_sockaddr_in()).any(|found| IpAddr::V4(found.ip()) == address) {
        return Err(PreflightError::NotOfUplink { address, uplink: name.to_owned() });
    }
    Ok(())
}

/// What attaching checks again, once the node has an id.
fn check_datapath(config: &AgentConfig) -> Result<(), PreflightError> {
    let node_id = "unknown".to_owned();
    let (pin_root, uplink) = (config.pin_root.clone(), config.uplink.clone());
    let cgroup_root = crate::net::cgroup2_root().ok_or(PreflightError::NoCgroup2)?;
    Ok(kernel::Datapath::preflight(&kernel::Config {
        pin_root,
        node_id,
        uplink,
        cgroup_root,
        sizes: kernel::Sizes::default(),
    })?)
}

fn check_kernel() -> Result<(), PreflightError> {
    let found = std::fs::read_to_string("/proc/sys/kernel/osrelease").unwrap_or_default();
    match parse_kernel(&found) {
        Some(version) if version < KERNEL_MIN => Err(PreflightError::KernelTooOld { found: found.trim().to_owned() }),
        _ => Ok(()),
    }
}

fn parse_kernel(release: &str) -> Option<(u32, u32)> {
    let mut numbers = release.split(|c: char| !c.is_ascii_digit()).map(|number| number.parse().ok());
    Some((numbers.next()??, numbers.next()??))
}

fn check_bpffs(pin_root: &Path) -> Result<(), PreflightError> {
    let existing = pin_root.ancestors().find(|path| path.is_dir());
    let is_bpffs = existing
        .and_then(|path| nix::sys::statfs::statfs(path).ok())
        .is_some_and(|fs| fs.filesystem_type() == nix::sys::statfs::BPF_FS_MAGIC);
    if is_bpffs { Ok(()) } else { Err(PreflightError::NoBpffs(pin_root.to_owned())) }
}

fn check_addresses(config: &AgentConfig) -> Result<(), PreflightError> {
    let address = config.address;
    UdpSocket::bind((address, 0)).map_err(|source| PreflightError::ForeignAddress { address, source })?;
    let taken = |key, address| move |source| PreflightError::PortTaken { key, address, source };
    if let Some(http_bind) = config.http_bind {
        TcpListener::bind(http_bind).map_err(taken("http_bind", http_bind))?;
    }
    UdpSocket::bind(config.dns_bind).map_err(taken("dns_bind", config.dns_bind))?;
    TcpListener::bind(config.dns_bind).map_err(taken("dns_bind", config.dns_bind))?;
    Ok(())
}

fn is_label(name: &str) -> bool {
    (1..=63).contains(&name.len()) && name.bytes().all(|b| b.is_ascii_alphanumeric() || b == b'-' || b == b'_')
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::net::Ipv4Addr;

    fn config(data_dir: &Path) -> AgentConfig {
        let mut config = AgentConfig::for_address(Ipv4Addr::LOCALHOST.into());
        config.name = "n1".to_owned();
        config.data_dir = data_dir.join("data");
        config.servers = vec![([127, 0, 0, 1], 4647).into()];
        config.token = Some("mesh1.x".to_owned());
        config.http_bind = Some(([127, 0, 0, 1], 0).into());
        config.dns_bind = ([127, 0, 0, 1], 0).into();
        config
    }

    fn refusal(change: impl FnOnce(&mut AgentConfig)) -> String {
        let dir = tempfile::tempdir().unwrap();
        let mut config = config(dir.path());
        change(&mut config);
        let refused = check(&config).unwrap_err().to_string();
        assert!(!config.data_dir.exists(), "nothing may be made before everything was checked");
        refused
    }

    #[test]
    fn every_refusal_names_its_key() {
        let taken = TcpListener::bind("127.0.0.1:0").unwrap();
        let address = taken.local_addr().unwrap();
        assert!(refusal(|config| config.http_bind = Some(address)).starts_with("http_bind: "));
        assert!(refusal(|config| config.http_bind = Some(([0, 0, 0, 0], 4646).into())).contains("loopback only"));
        assert!(refusal(|config| config.dns_bind = address).starts_with("dns_bind: "), "taken on TCP alone");
        assert!(refusal(|config| config.uplink = Some("nosuch0".to_owned())).contains("`nosuch0`"));
        assert!(refusal(|config| config.uplink = Some("lo".to_owned())).contains("no Ethernet"));
        assert!(refusal(|config| config.address = [192, 0, 2, 1].into()).starts_with("address: "));
        assert!(refusal(|config| config.pin_root = "/tmp/pins".into()).starts_with("pin_root: "));
        assert!(refusal(|config| config.token = None).starts_with("token: "));
        assert!(refusal(|config| config.servers.clear()).starts_with("servers: "));
        assert!(refusal(|config| config.name = "no spaces".to_owned()).starts_with("name: "));
    }

    #[test]
    fn kernel_releases_are_read() {
        assert_eq!(parse_kernel("6.18.44-fc-v445\n"), Some((6, 18)));
        assert_eq!(parse_kernel("5.15.0-91-generic"), Some((5, 15)));
        assert_eq!(parse_kernel("garbage"), None);
    }
}
