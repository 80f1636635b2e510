//! The backend node's flow table: how replies find back, shared by all CPUs.
//!
//! Two connections may look the same to a backend: a client may use one source port towards two dialled addresses. The
//! second gets another source port (an alias), and replies get the first one back.

use abi::{Alias, AliasKey, Be16, Be32, FLOW_FIN_FORWARD, FLOW_FIN_REPLY, FLOW_RST, Flow, FlowKey, PROTO_UDP, Reason};
use aya_ebpf::bindings::{BPF_ANY, BPF_NOEXIST};
use packet::{FlowHash, TCP_FIN, TCP_RST, Transport};

use crate::{
    count,
    entry::now,
    maps::{ALIAS_HINTS, ALIASES, FLOWS},
};

/// How long after both FINs a key may not be taken over. In jiffies: 2 s at the fastest tick, 20 s at the slowest.
const CLOSED: u32 = 2_000;
/// How long an idle flow holds its key: a day at the fastest tick. Replacing a port needlessly does no harm; taking a
/// live flow's key does.
const IDLE: u32 = 86_400_000;
/// The same for UDP, whose flows have no end that could be seen: three minutes at the fastest tick.
const UDP_IDLE: u32 = 180_000;
/// Source ports that are tried for a flow whose own is taken. A client with 2,000 live flows to one backend finds none of
/// them free once in a million collisions; each costs the verifier another walk.
const PROBES: u16 = 4;

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
    pub fn admit(&self, l4: &Transport) -> Result<Be16, Reason> {
        if let Some(hint) = self.alias_hint() {
            if self.held(self.client_port, l4) {
                return Ok(self.client_port);
            }
            // An alias goes before the own port: the flow that held that one may have ended meanwhile.
            if let Some(port) = self.by_alias(l4) {
                // SAFETY: a checked lookup; any CPU's value is right.
                unsafe { *hint = now() | 1 };
                return Ok(port);
            }
        } else if l4.opens() && self.insert(self.client_port, l4) {
            return Ok(self.client_port); // nearly every new connection: one operation
        }
        match self.claim(self.client_port, l4) {
            Claim::Held => Ok(self.client_port),
            Claim::Won => {
                if l4.is_tcp() && !l4.opens() {
                    count::reason(Reason::FlowRecreated);
                }
                Ok(self.client_port)
            }
            Claim::Taken => self.replace_port(l4),
            Claim::Refused => Err(Reason::FlowTableRefused),
        }
    }

    /// The flow's hint, when it may have an alias.
    #[inline(always)]
    fn alias_hint(&self) -> Option<*mut u32> {
        let hint = ALIAS_HINTS.get_ptr_mut(self.hint_index())?;
        // SAFETY: a checked lookup; the word is written whole.
        let used = unsafe { *hint };
        (used != 0 && now().wrapping_sub(used) < IDLE).then_some(hint)
    }

    #[inline(always)]
    fn hint_index(&self) -> u32 {
        let hash = FlowHash::of(self.client, self.client_port, self.dialled, self.dialled_port);
        hash.bucket() & (abi::maps::ALIAS_HINTS_MAX - 1)
    }

    #[inline(always)]
    fn by_alias(&self, l4: &Transport) -> Option<Be16> {
        // SAFETY: read at once; a torn or replaced port is checked against the flow table.
        let port = unsafe { ALIASES.get(self.alias_key()) }?.port;
        matches!(self.claim(port, l4), Claim::Held | Claim::Won).then_some(port)
    }

    // The probes depend on the flow alone, so a flow whose alias was lost finds its port again.
    #[inline(always)]
    fn replace_port(&self, l4: &Transport) -> Result<Be16, Reason> {
        let start = FlowHash::of(self.dialled, self.dialled_port, self.client, self.client_port).slot() as u16;
        let mut probe = 0;
        while probe < PROBES {
            // 1024..=65535, and never the flow's own port but by chance, which the table then refuses.
            let port = Be16::new(1024 + start.wrapping_add(probe.wrapping_mul(7919)) % 64_512);
            match self.claim(port, l4) {
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
        if let Some(hint) = ALIAS_HINTS.get_ptr_mut(self.hint_index()) {
            // SAFETY: a checked lookup; any CPU's value is right.
            unsafe { *hint = now() | 1 };
        }
        Ok(port)
    }

    #[inline(always)]
    fn held(&self, port: Be16, l4: &Transport) -> bool {
        let Some(flow) = FLOWS.get_ptr_mut(self.key(port)) else { return false };
        // SAFETY: a checked lookup; other CPUs may write the same fields, each of which is right alone.
        let flow = unsafe { &mut *flow };
        let own = self.owns(flow);
        if own {
            self.touch(flow, l4);
        }
        own
    }

    #[inline(always)]
    fn claim(&self, port: Be16, l4: &Transport) -> Claim {
        if let Some(flow) = FLOWS.get_ptr_mut(self.key(port)) {
            // SAFETY: as in `held`.
            let flow = unsafe { &mut *flow };
            if self.owns(flow) {
                self.touch(flow, l4);
                return Claim::Held;
            }
            if live(flow, self.proto) {
                return Claim::Taken;
            }
            *flow = self.flow(l4);
            return Claim::Won;
        }
        if self.insert(port, l4) {
            Claim::Won
        } else if self.held(port, l4) {
            Claim::Held // another CPU was faster, with a packet of this very flow
        } else {
            Claim::Refused
        }
    }

    /// Makes the entry unless there is one.
    #[inline(always)]
    fn insert(&self, port: Be16, l4: &Transport) -> bool {
        FLOWS.insert(self.key(port), self.flow(l4), BPF_NOEXIST as u64).is_ok()
    }

    #[inline(always)]
    fn owns(&self, flow: &Flow) -> bool {
        let address = flow.dialled.raw() ^ self.dialled.raw();
        let ports =
            (flow.dialled_port.raw() ^ self.dialled_port.raw()) | (flow.original_port.raw() ^ self.client_port.raw());
        address | ports as u32 == 0
    }

    // The entry may change under a connection: its replies follow.
    #[inline(always)]
    fn touch(&self, flow: &mut Flow, l4: &Transport) {
        let state = if l4.opens() { 0 } else { flow.state } | ending(l4, FLOW_FIN_FORWARD);
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
    fn flow(&self, l4: &Transport) -> Flow {
        Flow {
            dialled: self.dialled,
            entry: self.entry,
            dialled_port: self.dialled_port,
            original_port: self.client_port,
            seen: now(),
            state: ending(l4, FLOW_FIN_FORWARD),
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
pub fn of_reply(key: FlowKey, l4: &Transport) -> Option<Flow> {
    let flow = FLOWS.get_ptr_mut(key)?;
    // SAFETY: as in `Forward::held`.
    let flow = unsafe { &mut *flow };
    let state = flow.state | ending(l4, FLOW_FIN_REPLY);
    if flow.state != state {
        flow.state = state;
    }
    let now = now();
    if flow.seen != now {
        flow.seen = now;
    }
    Some(*flow)
}

/// As [`of_reply`], of a flow that has not ended: the node's own sockets also speak to clients that dialled them directly.
#[inline(always)]
pub fn of_live_reply(key: FlowKey, l4: &Transport) -> Option<Flow> {
    let flow = FLOWS.get_ptr(key)?;
    // SAFETY: a checked lookup; other CPUs may write the same fields, each of which is right alone.
    if live(unsafe { &*flow }, key.proto) { of_reply(key, l4) } else { None }
}

#[inline(always)]
fn ending(l4: &Transport, fin: u8) -> u8 {
    let fin = if l4.flags & TCP_FIN != 0 { fin } else { 0 };
    fin | if l4.flags & TCP_RST != 0 { FLOW_RST } else { 0 }
}

#[inline(always)]
fn live(flow: &Flow, proto: u8) -> bool {
    let idle = now().wrapping_sub(flow.seen);
    let both = FLOW_FIN_FORWARD | FLOW_FIN_REPLY;
    let closed = (flow.state & both == both) & (idle > CLOSED);
    let idle_max = if proto == PROTO_UDP { UDP_IDLE } else { IDLE };
    (flow.state & FLOW_RST == 0) & !closed & (idle < idle_max)
}
