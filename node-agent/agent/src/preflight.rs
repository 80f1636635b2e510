//! Everything that can be known to be wrong before anything on the machine changes. Every refusal names the key and the remedy.

use crate::config::AgentConfig;
use crate::datadir::{DataDir, DataDirError};
use std::io;
use std::net::{SocketAddr, TcpListener, UdpSocket};
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
    check_addresses(config)
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
    if let Some(uplink) = &config.uplink {
        nix::net::if_::if_nametoindex(uplink.as_str()).map_err(|_| PreflightError::NoInterface(uplink.clone()))?;
    }
    let taken = |key, address| move |source| PreflightError::PortTaken { key, address, source };
    if let Some(http_bind) = config.http_bind {
        TcpListener::bind(http_bind).map_err(taken("http_bind", http_bind))?;
    }
    UdpSocket::bind(config.dns_bind).map_err(taken("dns_bind", config.dns_bind))?;
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
        assert!(refusal(|config| config.uplink = Some("nosuch0".to_owned())).contains("`nosuch0`"));
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
