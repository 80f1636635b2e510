//! The hash that chooses a backend.

use abi::{Be16, Be32};

/// Over what the client chose: its address and port, the address and port it dialled.
///
/// Unkeyed and the same on every node, so that a connection whose packets move to another entry node keeps its
/// backend. The dialled address takes part: connections that share a source port towards two addresses spread.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct FlowHash(u64);

impl FlowHash {
    #[inline(always)]
    pub const fn of(client: Be32, client_port: Be16, dialled: Be32, dialled_port: Be16) -> Self {
        let ports = (client_port.get() as u64) << 16 | dialled_port.get() as u64;
        let key = (client.get() as u64) << 32 | ports;
        let mixed = key ^ (dialled.get() as u64).wrapping_mul(0x9e37_79b9_7f4a_7c15);
        let mixed = (mixed ^ mixed >> 33).wrapping_mul(0xff51_afd7_ed55_8ccd);
        let mixed = (mixed ^ mixed >> 33).wrapping_mul(0xc4ce_b9fe_1a85_ec53);
        Self(mixed ^ mixed >> 33)
    }

    /// Chooses the ring's slot.
    #[inline(always)]
    pub const fn slot(self) -> u32 {
        (self.0 >> 32) as u32
    }

    /// Chooses the entry cache's bucket; independent of [`Self::slot`].
    #[inline(always)]
    pub const fn bucket(self) -> u32 {
        self.0 as u32
    }

    /// The flow table's two buckets, of `1 << bits`: never the same one, but in a table of one.
    #[inline(always)]
    pub const fn buckets(self, bits: u32) -> (u32, u32) {
        let mask = (1 << bits) - 1;
        let first = self.0 as u32 & mask;
        (first, first ^ ((self.0 >> 32) as u32 | 1) & mask)
    }

    /// The tunnel's source port, so that networks spread flows over paths and queues (RFC 8926, section 3.3).
    #[inline(always)]
    pub const fn tunnel_port(self) -> Be16 {
        Be16::new(0xc000 | (self.0 >> 16) as u16 & 0x3fff)
    }
}
