//! Links that behave like wires: finished checksums on both ends, and a peer that takes what XDP transmits.

use crate::artifacts;
use crate::machine::Machine;
use crate::sh;
use anyhow::Result;

/// Connects `inside` of `machine` with `port` of `switch`, both up.
pub(crate) fn wire(machine: &Machine, inside: &str, switch: &Machine, port: &str) -> Result<()> {
    sh(&format!(
        "ip link add {port} netns {} type veth peer name {inside} netns {}",
        switch.namespace(),
        machine.namespace()
    ))?;
    for (end, name) in [(machine, inside), (switch, port)] {
        // A veth leaves checksums to hardware that is not there; a rewritten packet would be dropped by its receiver.
        end.sh(&format!("ethtool -K {name} tx off gro on"))?;
        end.sh(&format!("ip link set {name} up"))?;
    }
    Ok(())
}

/// Attaches a program that passes everything: a veth takes XDP_TX frames only from a peer whose other end has a program.
/// The loader makes directories in the bpffs it finds, so it is given one of its own, which goes with its mount namespace.
pub(crate) fn pass_everything(machine: &Machine, interface: &str) -> Result<()> {
    let object = artifacts::pass_object();
    let attach = format!("mount -t bpf bpf /sys/fs/bpf && ip link set dev {interface} xdp object {object} section xdp");
    machine.run(&["unshare", "--mount", "sh", "-c", &attach]).map(drop)
}
