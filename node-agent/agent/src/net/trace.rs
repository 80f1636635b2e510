//! `meshctl route trace`: the rehearsed decision, step by step, in words of services.

use super::NetError;
use dataplane::{Compilation, MapImage, Observed, Proto, explain};
use kernel::{Question, Rehearsal, TraceAction};
use std::net::{SocketAddr, SocketAddrV4};
use wire::routes::{TraceQuestion, TraceReport, TraceStep};

/// The question as the kernel can be asked it; IPv6 and other protocols are refused by name.
pub fn question(asked: &TraceQuestion) -> Result<Question, NetError> {
    let proto = proto(asked)?;
    let opens = proto == Proto::Tcp && !asked.established;
    Ok(Question { src: v4(asked.src)?, dst: v4(asked.dst)?, proto: proto.number(), opens })
}

fn proto(asked: &TraceQuestion) -> Result<Proto, NetError> {
    match asked.proto.as_str() {
        "tcp" => Ok(Proto::Tcp),
        "udp" => Ok(Proto::Udp),
        other => Err(NetError::Untraceable(format!("`proto={other}`: only tcp and udp can be traced"))),
    }
}

fn v4(address: SocketAddr) -> Result<SocketAddrV4, NetError> {
    match address {
        SocketAddr::V4(address) => Ok(address),
        SocketAddr::V6(address) => Err(NetError::Untraceable(format!("{address}: IPv6 is not built yet"))),
    }
}

/// `compilation` is none before the servers' first word; the maps may be an earlier agent's.
pub fn report(
    node: &str,
    asked: &TraceQuestion,
    question: &Question,
    rehearsal: &Rehearsal,
    image: &MapImage,
    compilation: Option<&Compilation>,
) -> TraceReport {
    let proto = if asked.proto == "udp" { Proto::Udp } else { Proto::Tcp };
    let tracer = Tracer { question, proto, rehearsal, image, compilation };
    let kind = match (asked.proto.as_str(), asked.established) {
        ("tcp", false) => "SYN",
        ("tcp", true) => "segment of an established connection",
        _ => "datagram",
    };
    TraceReport {
        node: node.to_owned(),
        packet: format!("{} {kind} from {} to {}", asked.proto, asked.src, asked.dst),
        steps: tracer.steps(),
        verdict: tracer.verdict(),
        side_effects: "none: the loaded program ran over this node's tables with copies of what it remembers"
            .to_owned(),
    }
}

struct Tracer<'a> {
    question: &'a Question,
    proto: Proto,
    rehearsal: &'a Rehearsal,
    image: &'a MapImage,
    compilation: Option<&'a Compilation>,
}

impl Tracer<'_> {
    fn steps(&self) -> Vec<TraceStep> {
        let Question { dst, opens, .. } = *self.question;
        let Rehearsal { hash, remembered, .. } = self.rehearsal;
        let observed = Observed { dst, proto: self.proto, opens, hash: *hash, remembered: remembered.clone() };
        let explained = explain(&observed, self.image, self.compilation).into_iter();
        let counts = self.rehearsal.reasons.iter().map(|reason| ("counts", reason.name().to_owned()));
        explained.chain(counts).map(|(what, found)| TraceStep { what: what.to_owned(), found }).collect()
    }

    fn verdict(&self) -> String {
        let Rehearsal { action, tunnel, ends, reset, .. } = self.rehearsal;
        let ends = ends.map_or(String::new(), |(src, dst)| format!("{src} -> {dst}"));
        match (action, tunnel) {
            (TraceAction::SentBack, None) if *reset => format!("answered with a reset, {ends}"),
            (TraceAction::SentBack, Some(tunnel)) => {
                format!(
                    "sent through the tunnel from {} to {} for backend {}: {ends}",
                    tunnel.from, tunnel.to, tunnel.backend
                )
            }
            (TraceAction::SentBack, None) => format!("sent out of the uplink: {ends}"),
            (TraceAction::Redirected, _) => format!("delivered to the allocation: {ends}"),
            (TraceAction::ToStack, _) => format!("given to this node's own network stack: {ends}"),
            (TraceAction::Dropped, _) => "dropped".to_owned(),
            (TraceAction::Aborted, _) => "the program failed: please report this".to_owned(),
        }
    }
}
