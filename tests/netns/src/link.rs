//! Links that behave like wires: finished checksums on both ends, and a peer that takes what XDP transmits.

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
