//! The backend node's flow table: how replies find back, shared by all CPUs.
//!
//! Two connections may look the same to a backend: a client may use one source port towards two dialled addresses. The
//! second gets another source port (an alias), and replies get the first one back.

use abi::{Alias, AliasKey, Be16, Be32, FLOW_FIN_FORWARD, FLOW_FIN_REPLY, FLOW_RST, Flow, FlowKey, Reason};
use aya_ebpf::bindings::{BPF_ANY, BPF_NOEXIST};
use packet::{FlowHash, TCP_FIN, TCP_RST, Tcp};

use crate::{
    count,
    entry::now,
    maps::{ALIASES, FLOWS},
};

/// How long after both FINs a key may not be taken over. In jiffies: 2 s at the fastest tick, 20 s at the slowest.
const CLOSED: u32 = 2_000;
/// How long an idle flow holds its key: a day at the fastest tick. Replacing a port needlessly does no harm; taking a
/// live flow's key does.
const IDLE: u32 = 86_400_000;
/// Source ports that are tried for a flow whose own is taken.
const PROBES: u16 = 8;

/// A forward packet's flow, as the client sees it, and where it goes.
pub struct Forward {
    pub client: Be32,
    pub client_port: Be16,
    pub dialled: Be32,
    pub dialled_port: Be16,
    pub backend: Be32,
    pub backend_port: Be16,
    /// Zero when the packet came in here.
    pub entry: Be32,
    pub proto: u8,
}

enum Claim {
    /// The key was this flow's already.
    Held,
    /// The key was free and is this flow's now.
    Won,
    /// The key is a live flow's with another dialled address.
    Taken,
    Refused,
}

impl Forward {
    /// Sees to it that replies find back; returns the source port to show the backend.
    #[inline(always)]
    pub fn admit(&self, tcp: &Tcp) -> Result<Be16, Reason> {
        if self.held(self.client_port, tcp) {
            return Ok(self.client_port);
        }
        self.admit_unknown(tcp)
    }

    #[inline(always)]
    fn admit_unknown(&self, tcp: &Tcp) -> Result<Be16, Reason> {
        // An alias goes first: the flow that held its own port may have ended meanwhile.
        // SAFETY: read at once; a torn or replaced port is checked against the flow table.
        if let Some(port) = unsafe { ALIASES.get(self.alias_key()) }.map(|alias| alias.port)
            && matches!(self.claim(port, tcp), Claim::Held | Claim::Won)
        {
            return Ok(port);
        }
        match self.claim(self.client_port, tcp) {
            Claim::Held => Ok(self.client_port),
            Claim::Won => {
                if !tcp.opens() {
                    count::reason(Reason::FlowRecreated);
                }
                Ok(self.client_port)
            }
            Claim::Taken => self.replace_port(tcp),
            Claim::Refused => Err(Reason::FlowTableRefused),
        }
    }

    // The probes depend on the flow alone, so a flow whose alias was lost finds its port again.
    #[inline(always)]
    fn replace_port(&self, tcp: &Tcp) -> Result<Be16, Reason> {
        let start = FlowHash::of(self.dialled, self.dialled_port, self.client, self.client_port).slot() as u16;
        let mut probe = 0;
        while probe < PROBES {
            // 1024..=65535, and never the flow's own port but by chance, which the table then refuses.
            let port = Be16::new(1024 + start.wrapping_add(probe.wrapping_mul(7919)) % 64_512);
            match self.claim(port, tcp) {
                Claim::Held => return self.remember_alias(port),
                Claim::Won => {
                    count::reason(Reason::FlowAliased);
                    return self.remember_alias(port);
                }
                Claim::Taken => probe += 1,
                Claim::Refused => return Err(Reason::FlowTableRefused),
            }
        }
        Err(Reason::AliasExhausted)
    }

    #[inline(always)]
    fn remember_alias(&self, port: Be16) -> Result<Be16, Reason> {
        ALIASES
            .insert(self.alias_key(), Alias { port, pad: 0 }, BPF_ANY as u64)
            .map_err(|_| Reason::FlowTableRefused)?;
        Ok(port)
    }

    #[inline(always)]
    fn held(&self, port: Be16, tcp: &Tcp) -> bool {
        let Some(flow) = FLOWS.get_ptr_mut(self.key(port)) else { return false };
        // SAFETY: a checked lookup; other CPUs may write the same fields, each of which is right alone.
        let flow = unsafe { &mut *flow };
        let own = self.owns(flow);
        if own {
            self.touch(flow, tcp);
        }
        own
    }

    #[inline(always)]
    fn claim(&self, port: Be16, tcp: &Tcp) -> Claim {
        if let Some(flow) = FLOWS.get_ptr_mut(self.key(port)) {
            // SAFETY: as in `held`.
            let flow = unsafe { &mut *flow };
            if self.owns(flow) {
                self.touch(flow, tcp);
                return Claim::Held;
            }
            if live(flow) {
                return Claim::Taken;
            }
            *flow = self.flow(tcp);
            return Claim::Won;
        }
        match FLOWS.insert(self.key(port), self.flow(tcp), BPF_NOEXIST as u64) {
            Ok(()) => Claim::Won,
            // Another CPU was faster, perhaps with a packet of this very flow.
            Err(_) if self.held(port, tcp) => Claim::Held,
            Err(_) => Claim::Refused,
        }
    }

    #[inline(always)]
    fn owns(&self, flow: &Flow) -> bool {
        flow.dialled == self.dialled && flow.dialled_port == self.dialled_port && flow.original_port == self.client_port
    }

    // The entry may change under a connection: its replies follow.
    #[inline(always)]
    fn touch(&self, flow: &mut Flow, tcp: &Tcp) {
        let state = if tcp.opens() { 0 } else { flow.state } | ending(tcp, FLOW_FIN_FORWARD);
        if flow.state != state {
            flow.state = state;
        }
        if flow.entry != self.entry {
            flow.entry = self.entry;
        }
        let now = now();
        if flow.seen != now {
            flow.seen = now;
        }
    }

    #[inline(always)]
    fn flow(&self, tcp: &Tcp) -> Flow {
        Flow {
            dialled: self.dialled,
            entry: self.entry,
            dialled_port: self.dialled_port,
            original_port: self.client_port,
            seen: now(),
            state: ending(tcp, FLOW_FIN_FORWARD),
            pad: [0; 3],
        }
    }

    #[inline(always)]
    fn key(&self, port: Be16) -> FlowKey {
        FlowKey {
            client: self.client,
            backend: self.backend,
            client_port: port,
            backend_port: self.backend_port,
            proto: self.proto,
            pad: [0; 3],
        }
    }

    #[inline(always)]
    fn alias_key(&self) -> AliasKey {
        AliasKey {
            client: self.client,
            dialled: self.dialled,
            backend: self.backend,
            client_port: self.client_port,
            dialled_port: self.dialled_port,
            backend_port: self.backend_port,
            proto: self.proto,
            pad: 0,
        }
    }
}

/// The flow that a packet from a backend replies to.
#[inline(always)]
pub fn of_reply(key: FlowKey, tcp: &Tcp) -> Option<Flow> {
    let flow = FLOWS.get_ptr_mut(key)?;
    // SAFETY: as in `Forward::held`.
    let flow = unsafe { &mut *flow };
    let state = flow.state | ending(tcp, FLOW_FIN_REPLY);
    if flow.state != state {
        flow.state = state;
    }
    let now = now();
    if flow.seen != now {
        flow.seen = now;
    }
    Some(*flow)
}

#[inline(always)]
fn ending(tcp: &Tcp, fin: u8) -> u8 {
    let fin = if tcp.flags & TCP_FIN != 0 { fin } else { 0 };
    fin | if tcp.flags & TCP_RST != 0 { FLOW_RST } else { 0 }
}

#[inline(always)]
fn live(flow: &Flow) -> bool {
    let idle = now().wrapping_sub(flow.seen);
    let both = FLOW_FIN_FORWARD | FLOW_FIN_REPLY;
    let closed = flow.state & both == both && idle > CLOSED;
    flow.state & FLOW_RST == 0 && !closed && idle < IDLE
}
