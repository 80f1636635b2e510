//! This node's share in finding out which nodes answer: each round it sends its targets a probe to the tunnel's port, which the
//! target's kernel program answers by itself, whether or not an agent runs there.
//!
//! A node whose program has never answered (none is attached, or an older one) is knocked at by TCP instead: its kernel's
//! refusal proves the machine and the way to it, and nothing about the program. Once the program has answered, only that counts.

use liveness::{Prober, Report, Ring};
use model::{NodeId, RoutingSnapshot};
use std::collections::{BTreeMap, BTreeSet};
use std::io::ErrorKind;
use std::net::{IpAddr, SocketAddr};
use std::time::Duration;
use tokio::net::{TcpStream, UdpSocket};
use tokio::sync::{mpsc, watch};
use tokio::time::{Instant, MissedTickBehavior, interval, timeout};

/// Three rounds without an answer must leave time to tell everybody within two seconds.
const INTERVAL: Duration = Duration::from_millis(350);
/// Where nodes take each other's frames: Geneve, RFC 8926.
const TUNNEL_PORT: u16 = 6081;
const PROBE_BYTES: usize = 20;
/// A header of one option of twelve bytes, of the class that our tunnel uses; the type says probe or answer.
const PROBE: [u8; 12] = [3, 0, 0x65, 0x58, 0, 0, 0, 0, 0xff, 0x4d, 4, 2];
const ANSWER_TYPE: u8 = 5;

/// Probes whom the routing state says, for as long as that is followed; the report changes when what it says does.
pub(crate) fn start(
    own: NodeId,
    address: IpAddr,
    routing: watch::Receiver<Option<RoutingSnapshot>>,
    seed: u64,
) -> watch::Receiver<Report> {
    let (publish, report) = watch::channel(Report::default());
    tokio::spawn(async move {
        match UdpSocket::bind(SocketAddr::new(address, 0)).await {
            Ok(socket) => Round::new(own, socket, routing, publish, seed).run().await,
            Err(error) => {
                tracing::error!(%address, %error, "this node cannot probe its peers; others do, and the servers know")
            }
        }
    });
    report
}

struct Round {
    own: NodeId,
    socket: UdpSocket,
    routing: watch::Receiver<Option<RoutingSnapshot>>,
    publish: watch::Sender<Report>,
    prober: Prober,
    began: Instant,
    targets: BTreeMap<NodeId, IpAddr>,
    /// Whose kernel program answers probes.
    programs: BTreeSet<IpAddr>,
    /// Of this round: whose answer a nonce would be.
    expected: BTreeMap<u64, IpAddr>,
    knocked: (mpsc::Sender<u64>, mpsc::Receiver<u64>),
}

impl Round {
    fn new(
        own: NodeId,
        socket: UdpSocket,
        routing: watch::Receiver<Option<RoutingSnapshot>>,
        publish: watch::Sender<Report>,
        seed: u64,
    ) -> Self {
        let prober = Prober::new(INTERVAL, seed);
        let (targets, programs, expected) = Default::default();
        let knocked = mpsc::channel(2 * liveness::PROBERS);
        Self { own, socket, routing, publish, prober, began: Instant::now(), targets, programs, expected, knocked }
    }

    async fn run(mut self) {
        let mut rounds = interval(INTERVAL);
        rounds.set_missed_tick_behavior(MissedTickBehavior::Delay);
        let mut datagram = [0; PROBE_BYTES + 1];
        loop {
            tokio::select! {
                _ = rounds.tick() => self.next_round().await,
                changed = self.routing.changed() => match changed {
                    Ok(()) => self.choose_targets(),
                    Err(_) => return,
                },
                received = self.socket.recv_from(&mut datagram) => {
                    if let Ok((length, from)) = received {
                        self.on_datagram(&datagram[..length], from);
                    }
                }
                Some(nonce) = self.knocked.1.recv() => self.prober.on_answer(nonce),
            }
        }
    }

    fn choose_targets(&mut self) {
        let routing = self.routing.borrow_and_update();
        let Some(routing) = routing.as_ref() else { return };
        let addresses: BTreeMap<NodeId, IpAddr> = routing.nodes.iter().map(|node| (node.id, node.address)).collect();
        let targets = Ring::new(routing.nodes.iter().map(|node| (node.id, node.status))).targets(self.own);
        self.targets = targets.into_iter().filter_map(|id| Some((id, *addresses.get(&id)?))).collect();
        let ids: Vec<NodeId> = self.targets.keys().copied().collect();
        self.prober.set_targets(&ids);
    }

    async fn next_round(&mut self) {
        let probes = self.prober.round(self.began.elapsed());
        self.tell();
        self.expected.clear();
        for probe in probes {
            let Some(address) = self.targets.get(&probe.target).copied() else { continue };
            self.expected.insert(probe.nonce, address);
            // A send that fails is a probe without an answer, and the report says so.
            let _ = self.socket.send_to(&datagram(probe.nonce), SocketAddr::new(address, TUNNEL_PORT)).await;
            if !self.programs.contains(&address) {
                knock(address, probe.nonce, self.knocked.0.clone());
            }
        }
    }

    fn on_datagram(&mut self, bytes: &[u8], from: SocketAddr) {
        let Some(nonce) = answered(bytes) else { return };
        if from.port() == TUNNEL_PORT && self.expected.get(&nonce) == Some(&from.ip()) {
            self.programs.insert(from.ip());
            self.prober.on_answer(nonce);
        }
    }

    fn tell(&self) {
        let report = self.prober.report();
        self.publish.send_if_modified(|told| {
            let news = *told != report;
            *told = report;
            news
        });
    }
}

fn datagram(nonce: u64) -> [u8; PROBE_BYTES] {
    let mut bytes = [0; PROBE_BYTES];
    bytes[..PROBE.len()].copy_from_slice(&PROBE);
    bytes[PROBE.len()..].copy_from_slice(&nonce.to_be_bytes());
    bytes
}

/// The nonce of an answer.
fn answered(bytes: &[u8]) -> Option<u64> {
    let (header, nonce) = bytes.split_at_checked(PROBE.len())?;
    let mut expected = PROBE;
    expected[10] = ANSWER_TYPE;
    (header == expected).then_some(())?;
    nonce.try_into().ok().map(u64::from_be_bytes)
}

/// Nobody listens at the tunnel's port for TCP: the kernel refuses, and that is the answer.
fn knock(address: IpAddr, nonce: u64, answered: mpsc::Sender<u64>) {
    tokio::spawn(async move {
        let refused = match timeout(INTERVAL, TcpStream::connect(SocketAddr::new(address, TUNNEL_PORT))).await {
            Ok(Ok(_)) => true,
            Ok(Err(error)) => error.kind() == ErrorKind::ConnectionRefused,
            Err(_) => false,
        };
        if refused {
            let _ = answered.send(nonce).await;
        }
    });
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_answer_is_the_probe_with_another_type() {
        let mut bytes = datagram(0x0102_0304_0506_0708);
        assert_eq!(answered(&bytes), None, "a probe is no answer");
        bytes[10] = ANSWER_TYPE;
        assert_eq!(answered(&bytes), Some(0x0102_0304_0506_0708));
        assert_eq!(answered(&bytes[..19]), None);
        assert_eq!(answered(&[&bytes[..], &[0]].concat()), None);
        assert_eq!(answered(&[]), None);
    }
}
