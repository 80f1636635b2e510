//! Delivery to a backend of this node. What the flow table knows already is delivered at once; what it has to learn goes by
//! [`xdp_admit`], then [`xdp_deliver`], which also answers what leads nowhere: their work would not fit beside the uplink's on
//! one stack.

use abi::{Be16, Be32, Endpoint, Parked, Reason, Uplink, programs};
use aya_ebpf::{
    bindings::xdp_action::{XDP_DROP, XDP_PASS, XDP_TX},
    macros::xdp,
    programs::XdpContext,
};
use packet::{
    FlowHash, Ipv4, Kind, L3, Outer, Rewrite, TCP_RST, Target, Transport, clamp_mss, rewrite, set_macs, swap_macs,
};

use crate::{
    count,
    entry::{self, Choice},
    flow::{Admitted, Forward},
    frame::Frame,
    maps::PARKED,
    tc_uplink::mss_max,
    xdp_uplink::{call, endpoint, hand_on, redirect, uplink, wrap},
};

/// A packet for a backend of this node.
pub struct Delivery {
    pub ip: Ipv4,
    pub l4: Transport,
    pub target: Target,
    pub uplink: &'static Uplink,
    /// The node it came in by, and the neighbour that sent it; zero when it came in here. A word, because the verifier wants
    /// the stack read at its alignment.
    pub entry: Be32,
    pub neighbour: u64,
    pub from: From,
}

/// Who chose the backend.
pub enum From {
    Node,
    /// This node, just now.
    Choice(Choice),
    /// One of them, in a program before.
    Parked,
}

impl Delivery {
    /// At once what the flow table knows; else by the other programs.
    #[inline(always)]
    pub fn deliver(&self, frame: &mut Frame<'_>) -> Result<u32, Reason> {
        let Some(endpoint) = self.endpoint() else {
            return hand_on(frame, programs::DELIVER, &self.parked(Reason::NotOurEndpoint as u32 + 1));
        };
        let Some(admitted) = self.known() else {
            return hand_on(frame, programs::ADMIT, &self.parked(0));
        };
        if let From::Choice(choice) = &self.from {
            count::backend(choice.id, self.ip.total_len, choice.opens);
        }
        self.finish(frame, endpoint, admitted.port)
    }

    #[inline(always)]
    fn parked(&self, answer: u32) -> Parked {
        let mut parked = Parked {
            client: self.ip.src,
            dialled: self.ip.dst,
            client_port: self.l4.src_port,
            dialled_port: self.l4.dst_port,
            proto: self.l4.proto,
            flags: self.l4.flags,
            target: self.target.addr,
            target_port: self.target.port,
            answer,
            entry: self.entry,
            neighbour: self.neighbour,
            ..Parked::default()
        };
        if let From::Choice(choice) = &self.from {
            choice.park(&mut parked);
        }
        parked
    }

    /// What was admitted.
    #[inline(always)]
    fn deliver_parked(&self, frame: &mut Frame<'_>, parked: &Parked) -> Result<u32, Reason> {
        let endpoint = self.endpoint().ok_or(Reason::NotOurEndpoint)?;
        if self.to_host() && self.tunnelled() && self.l4.opens() {
            clamp_mss(frame, L3, mss_max(self.uplink)).ok_or(Reason::Truncated)?;
        }
        if parked.backend != abi::BACKEND_NONE {
            count::backend(parked.backend, self.ip.total_len, parked.opens != 0);
            entry::remember_port(parked);
        }
        self.finish(frame, endpoint, parked.source_port)
    }

    /// Into the allocation that holds the backend, or to the node's own stack. What comes to the stack through a tunnel is told
    /// to leave room for it: the node's own packets would be as large as the uplink takes.
    #[inline(always)]
    fn finish(&self, frame: &mut Frame<'_>, endpoint: Endpoint, src_port: Be16) -> Result<u32, Reason> {
        let Self { ip, l4, target, uplink, .. } = self;
        let ends = Rewrite { src: ip.src, dst: target.addr, src_port, dst_port: target.port };
        rewrite(frame, L3, ip, l4, &ends).ok_or(Reason::Truncated)?;
        if !self.to_host() {
            set_macs(frame, endpoint.mac, endpoint.host_mac).ok_or(Reason::Truncated)?;
            return Ok(redirect(endpoint.ifindex));
        }
        if self.tunnelled() {
            set_macs(frame, uplink.mac, uplink.mac).ok_or(Reason::Truncated)?;
        }
        Ok(XDP_PASS)
    }

    /// What the backend sees as the client's port, when the table need not be told. It is asked once a unit of time for each
    /// confirmed flow of this node's choice.
    #[inline(always)]
    fn known(&self) -> Option<Admitted> {
        if let From::Choice(choice) = &self.from
            && !choice.port.is_zero()
            && !self.l4.changes_state()
        {
            return Some(Admitted { port: choice.port, confirmed: true });
        }
        self.forward().known(&self.l4)
    }

    #[inline(always)]
    fn forward(&self) -> Forward {
        Forward {
            client: self.ip.src,
            client_port: self.l4.src_port,
            dialled: self.ip.dst,
            dialled_port: self.l4.dst_port,
            backend: self.target.addr,
            backend_port: self.target.port,
            entry: self.entry,
            proto: self.l4.proto,
        }
    }

    #[inline(always)]
    fn to_host(&self) -> bool {
        self.target.addr == self.uplink.addr
    }

    #[inline(always)]
    fn tunnelled(&self) -> bool {
        !self.entry.is_zero()
    }

    #[inline(always)]
    fn endpoint(&self) -> Option<Endpoint> {
        if self.to_host() { Some(Endpoint::default()) } else { endpoint(self.target.addr) }
    }
}

#[xdp]
pub fn xdp_deliver(ctx: XdpContext) -> u32 {
    match try_xdp_deliver(&ctx) {
        Ok(action) => action,
        Err(reason) => {
            count::reason(reason);
            XDP_DROP
        }
    }
}

#[inline(always)]
fn try_xdp_deliver(ctx: &XdpContext) -> Result<u32, Reason> {
    let mut frame = Frame::new(ctx);
    let parked = PARKED.get(0).ok_or(Reason::ProgramMissing)?;
    let uplink = uplink().ok_or(Reason::ProgramMissing)?;
    // The program before has parsed it: all that can be wrong here is that another one wrote the place.
    let ip = Ipv4::parse(&frame, L3).map_err(|_| Reason::Truncated)?;
    let l4 = Transport::parse(&frame, L3, &ip).map_err(|_| Reason::Truncated)?;
    let target = Target { addr: parked.target, port: parked.target_port, proto: l4.proto };
    let (entry, neighbour) = (parked.entry, parked.neighbour);
    let delivery = Delivery { ip, l4, target, uplink, entry, neighbour, from: From::Parked };
    if parked.answer == 0 {
        return delivery.deliver_parked(&mut frame, parked);
    }
    let reason = match parked.answer - 1 {
        r if r == Reason::NoBackend as u32 => Reason::NoBackend,
        r if r == Reason::BackendDown as u32 => Reason::BackendDown,
        r if r == Reason::NotOurEndpoint as u32 => Reason::NotOurEndpoint,
        _ => return Err(Reason::RingDamaged),
    };
    answer_to_sender(&mut frame, &delivery, reason)
}

/// The flow table's own program. It looks at no frame, so that all it knows are numbers: from each other way into it the
/// verifier would walk through the whole table's code again.
#[xdp]
pub fn xdp_admit(ctx: XdpContext) -> u32 {
    match try_xdp_admit(&ctx) {
        Ok(action) => action,
        Err(reason) => {
            count::reason(reason);
            XDP_DROP
        }
    }
}

#[inline(always)]
fn try_xdp_admit(ctx: &XdpContext) -> Result<u32, Reason> {
    // SAFETY: this CPU's own value, which no other program reaches before this one ends.
    let parked = unsafe { &mut *PARKED.get_ptr_mut(0).ok_or(Reason::ProgramMissing)? };
    let forward = Forward {
        client: parked.client,
        client_port: parked.client_port,
        dialled: parked.dialled,
        dialled_port: parked.dialled_port,
        backend: parked.target,
        backend_port: parked.target_port,
        entry: parked.entry,
        proto: parked.proto,
    };
    let l4 = Transport {
        src_port: parked.client_port,
        dst_port: parked.dialled_port,
        proto: parked.proto,
        flags: parked.flags,
    };
    let next = match forward.admit(&l4, parked.tries)? {
        Some(admitted) => {
            parked.source_port = admitted.port;
            parked.confirmed = admitted.confirmed as u16;
            programs::DELIVER
        }
        None => {
            parked.tries += 1;
            programs::ADMIT
        }
    };
    call(&Frame::new(ctx), next)
}

/// A connection that leads nowhere is reset, so that the client need not wait to find out. The reset goes back as any reply
/// does.
#[inline(always)]
fn answer_to_sender(frame: &mut Frame<'_>, to: &Delivery, reason: Reason) -> Result<u32, Reason> {
    let Delivery { ip, l4, uplink, .. } = to;
    let answer = answer_to(l4, reason).ok_or(reason)?;
    packet::reset(frame, L3, ip, l4).ok_or(Reason::Truncated)?;
    frame.truncate(packet::RESET_LEN).ok_or(Reason::HeadroomRefused)?;
    count::reason(answer);
    if !to.tunnelled() {
        swap_macs(frame).ok_or(Reason::Truncated)?;
        return Ok(XDP_TX);
    }
    let outer = Outer {
        src_mac: uplink.mac,
        dst_mac: mac_of_word(to.neighbour),
        src: uplink.addr,
        dst: to.entry,
        src_port: FlowHash::of(ip.src, l4.src_port, ip.dst, l4.dst_port).tunnel_port(),
        inner_len: (packet::RESET_LEN - packet::ETHERNET) as u16,
        kind: Kind::Reply,
        target: Target::default(),
    };
    wrap(frame, &outer)
}

/// A SYN that met a ring or a node in the moment of a change gets none: sent again, it finds the new ring.
#[inline(always)]
fn answer_to(l4: &Transport, reason: Reason) -> Option<Reason> {
    if !l4.is_tcp() || l4.flags & TCP_RST != 0 {
        return None;
    }
    match reason {
        Reason::NoBackend => Some(Reason::ResetNoBackend),
        Reason::BackendDown if !l4.opens() => Some(Reason::ResetBackendGone),
        Reason::NotOurEndpoint if !l4.opens() => Some(Reason::ResetNotOurEndpoint),
        _ => None,
    }
}

#[inline(always)]
pub const fn word_of_mac([a, b, c, d, e, f]: [u8; 6]) -> u64 {
    u64::from_le_bytes([a, b, c, d, e, f, 0, 0])
}

#[inline(always)]
const fn mac_of_word(word: u64) -> [u8; 6] {
    let [a, b, c, d, e, f, ..] = word.to_le_bytes();
    [a, b, c, d, e, f]
}
