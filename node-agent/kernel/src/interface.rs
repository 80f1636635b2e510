//! Settings of interfaces and namespaces that the data path depends on, in any network namespace.

use std::{
    fs::File,
    io,
    net::UdpSocket,
    path::{Path, PathBuf},
    thread,
};

use aya::{
    EbpfLoader,
    programs::{Xdp, XdpMode, links::FdLink},
};
use nix::sched::{CloneFlags, setns};

use crate::{KernelError, error, sys};

#[derive(Debug, thiserror::Error)]
pub enum InterfaceError {
    #[error("cannot enter the network namespace {path}")]
    Netns {
        path: PathBuf,
        #[source]
        source: io::Error,
    },
    #[error("cannot read the cookie of the network namespace: SO_NETNS_COOKIE needs kernel 5.14")]
    Cookie(#[source] io::Error),
    #[error("cannot set {setting} of {interface}")]
    Setting {
        setting: &'static str,
        interface: String,
        #[source]
        source: io::Error,
    },
}

// linux/ethtool.h
const ETHTOOL_SET_TX_CHECKSUM: u32 = 0x17;
const ETHTOOL_SET_GRO: u32 = 0x2c;

/// The number by which programs tell network namespaces apart.
pub fn netns_cookie(netns: &Path) -> Result<u64, InterfaceError> {
    within(netns, || socket().and_then(sys::socket_netns_cookie).map_err(InterfaceError::Cookie))?
}

/// Frames redirected to a veth arrive only when its peer polls for them: GRO makes it.
pub fn set_gro(netns: &Path, interface: &str, on: bool) -> Result<(), InterfaceError> {
    set(netns, interface, "generic receive offload", ETHTOOL_SET_GRO, on)
}

/// Without the offload packets leave with finished checksums, which rewriting under XDP needs.
pub fn set_tx_checksum_offload(netns: &Path, interface: &str, on: bool) -> Result<(), InterfaceError> {
    set(netns, interface, "transmit checksum offload", ETHTOOL_SET_TX_CHECKSUM, on)
}

/// Attaches a program that passes everything: without one on its peer a veth loses what XDP sends out of it. Real
/// network cards need nothing of the kind. The pin keeps it; it goes with the interface.
pub fn attach_pass(netns: &Path, interface: &str, pin: &Path) -> Result<(), KernelError> {
    let path = || netns.to_path_buf();
    within(netns, || attach_pass_here(interface, pin)).map_err(|error| match error {
        InterfaceError::Netns { source, .. } => KernelError::Path { path: path(), source },
        other => KernelError::Path { path: path(), source: io::Error::other(other) },
    })?
}

fn attach_pass_here(interface: &str, pin: &Path) -> Result<(), KernelError> {
    let name = abi::programs::XDP_PASS;
    // Only the maps that a program uses matter to it, but the loader makes them all: make them small.
    let mut loader = EbpfLoader::new();
    for map in [abi::maps::RING_SLOTS, abi::maps::FLOWS, abi::maps::ENTRY_FLOWS, abi::maps::BACKEND_COUNTERS] {
        loader.map_max_entries(map, 64);
    }
    let mut programs = loader.load(crate::object())?;
    let program = programs.program_mut(name).ok_or(KernelError::Missing { what: "program", name })?;
    let program: &mut Xdp = program.try_into().map_err(|e| error::load(name, e))?;
    program.load().map_err(|e| error::load(name, e))?;
    let link = program.attach(interface, XdpMode::Driver).map_err(|e| error::attach(name, interface, e))?;
    let link = program.take_link(link).map_err(|e| error::attach(name, interface, e))?;
    let link: FdLink = link.try_into().map_err(|_| KernelError::NoLink(name))?;
    link.pin(pin).map(drop).map_err(|source| KernelError::Pin { path: pin.to_path_buf(), source })
}

fn set(netns: &Path, interface: &str, setting: &'static str, command: u32, on: bool) -> Result<(), InterfaceError> {
    let change = || socket().and_then(|socket| sys::ethtool_set(socket, interface, command, on.into()));
    within(netns, change)?.map_err(|source| InterfaceError::Setting {
        setting,
        interface: interface.to_owned(),
        source,
    })
}

// Any socket does: it is the namespace's, which is all these calls look at.
fn socket() -> io::Result<UdpSocket> {
    UdpSocket::bind("0.0.0.0:0")
}

/// Runs in another network namespace, on a thread of its own that no other work ever sees.
fn within<T: Send>(netns: &Path, work: impl FnOnce() -> T + Send) -> Result<T, InterfaceError> {
    let failed = |source: io::Error| InterfaceError::Netns { path: netns.to_path_buf(), source };
    let target = File::open(netns).map_err(failed)?;
    let entered = thread::scope(|scope| {
        let thread = scope.spawn(|| setns(target, CloneFlags::CLONE_NEWNET).map(|()| work()));
        thread.join().map_err(|_| io::Error::other("the work in it panicked"))
    });
    entered.and_then(|result| result.map_err(io::Error::from)).map_err(failed)
}
