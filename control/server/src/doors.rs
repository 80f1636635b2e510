//! Who gets in at the RPC port: handshakes under way and connections without a client certificate are counted, by peer
//! address and overall, so that strangers cannot keep members out.

use futures::Stream;
use std::collections::HashMap;
use std::future::Future;
use std::io;
use std::net::{IpAddr, SocketAddr};
use std::pin::Pin;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::task::{Context, Poll};
use std::time::Duration;
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::net::{TcpListener, TcpStream};
use tokio::task::JoinSet;
use tokio::time::{Instant, Sleep};
use tokio_rustls::TlsAcceptor;
use tokio_rustls::server::TlsStream;
use tonic::transport::server::Connected;

const HANDSHAKE_TIMEOUT: Duration = Duration::from_secs(5);
const HANDSHAKES_MAX: usize = 256;
const HANDSHAKES_PER_PEER_MAX: usize = 64;
/// All that may be done without a certificate is to join.
const GUEST_TIME: Duration = Duration::from_secs(30);
const GUESTS_MAX: usize = 256;
const GUESTS_PER_PEER_MAX: usize = 64;
const COMPLAINT_INTERVAL: Duration = Duration::from_secs(10);

/// Connections whose handshake is over. A slow or hostile one holds up no other.
pub(crate) fn incoming(
    listener: TcpListener,
    acceptor: TlsAcceptor,
) -> impl Stream<Item = io::Result<Connection>> + Send {
    let doors = Doors {
        listener,
        acceptor,
        handshakes: JoinSet::new(),
        shaking: Tally::new(HANDSHAKES_PER_PEER_MAX, HANDSHAKES_MAX),
        guests: Tally::new(GUESTS_PER_PEER_MAX, GUESTS_MAX),
        complained: None,
    };
    futures::stream::unfold(doors, |mut doors| async move { Some((Ok(doors.next().await), doors)) })
}

struct Doors {
    listener: TcpListener,
    acceptor: TlsAcceptor,
    handshakes: JoinSet<Option<Connection>>,
    shaking: Tally,
    guests: Tally,
    complained: Option<Instant>,
}

impl Doors {
    async fn next(&mut self) -> Connection {
        loop {
            tokio::select! {
                accepted = self.listener.accept() => match accepted {
                    Ok((tcp, address)) => self.admit(tcp, address),
                    Err(error) => {
                        self.complain(None, &format!("cannot accept connections: {error}"));
                        tokio::time::sleep(Duration::from_millis(50)).await; // out of file descriptors, most likely
                    }
                },
                Some(done) = self.handshakes.join_next() => if let Ok(Some(connection)) = done { return connection },
            }
        }
    }

    /// Drops the connection when too many are under way: the peer is told at once instead of waiting for its own timeout.
    fn admit(&mut self, tcp: TcpStream, address: SocketAddr) {
        let Some(place) = self.shaking.enter(address.ip()) else {
            return self.complain(Some(address), "connection dropped: too many handshakes are under way");
        };
        let (acceptor, guests) = (self.acceptor.clone(), self.guests.clone());
        self.handshakes.spawn(async move {
            let _place = place;
            let _ = tcp.set_nodelay(true);
            welcome(handshake(acceptor, tcp, address).await?, address, &guests)
        });
    }

    /// A flood of connections must not become a flood of lines.
    fn complain(&mut self, address: Option<SocketAddr>, reason: &str) {
        if self.complained.is_none_or(|last| last.elapsed() >= COMPLAINT_INTERVAL) {
            self.complained = Some(Instant::now());
            tracing::warn!(?address, reason, "RPC port");
        }
    }
}

async fn handshake(acceptor: TlsAcceptor, tcp: TcpStream, address: SocketAddr) -> Option<TlsStream<TcpStream>> {
    match tokio::time::timeout(HANDSHAKE_TIMEOUT, acceptor.accept(tcp)).await {
        Ok(Ok(tls)) => Some(tls),
        Ok(Err(error)) => {
            tracing::warn!(%address, %error, "TLS handshake refused");
            None
        }
        Err(_) => {
            tracing::warn!(%address, "TLS handshake took too long");
            None
        }
    }
}

fn welcome(tls: TlsStream<TcpStream>, address: SocketAddr, guests: &Tally) -> Option<Connection> {
    if tls.get_ref().1.peer_certificates().is_some() {
        return Some(Connection { tls, guest: None });
    }
    let place = guests.enter(address.ip());
    if place.is_none() {
        tracing::debug!(%address, "connection dropped: too many without a certificate");
    }
    let guest = Guest { time_up: Box::pin(tokio::time::sleep(GUEST_TIME)), _place: place? };
    Some(Connection { tls, guest: Some(guest) })
}

/// A TLS connection, which without a client certificate ends after [`GUEST_TIME`].
pub(crate) struct Connection {
    tls: TlsStream<TcpStream>,
    guest: Option<Guest>,
}

struct Guest {
    time_up: Pin<Box<Sleep>>,
    _place: Place,
}

impl Connection {
    fn time_is_up(&mut self, context: &mut Context<'_>) -> bool {
        self.guest.as_mut().is_some_and(|guest| guest.time_up.as_mut().poll(context).is_ready())
    }
}

impl AsyncRead for Connection {
    fn poll_read(mut self: Pin<&mut Self>, context: &mut Context<'_>, into: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        match self.time_is_up(context) {
            true => Poll::Ready(Err(io::ErrorKind::TimedOut.into())),
            false => Pin::new(&mut self.tls).poll_read(context, into),
        }
    }
}

impl AsyncWrite for Connection {
    fn poll_write(mut self: Pin<&mut Self>, context: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        match self.time_is_up(context) {
            true => Poll::Ready(Err(io::ErrorKind::TimedOut.into())),
            false => Pin::new(&mut self.tls).poll_write(context, bytes),
        }
    }

    fn poll_flush(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.tls).poll_flush(context)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.tls).poll_shutdown(context)
    }
}

impl Connected for Connection {
    type ConnectInfo = <TlsStream<TcpStream> as Connected>::ConnectInfo;

    fn connect_info(&self) -> Self::ConnectInfo {
        self.tls.connect_info()
    }
}

/// Counts by peer address, with a bound for each and one for all.
#[derive(Clone)]
pub(crate) struct Tally {
    counts: Arc<Mutex<HashMap<IpAddr, usize>>>,
    per_peer_max: usize,
    total_max: usize,
}

/// A counted place; dropping it gives it back.
pub(crate) struct Place {
    counts: Arc<Mutex<HashMap<IpAddr, usize>>>,
    peer: IpAddr,
}

impl Tally {
    pub fn new(per_peer_max: usize, total_max: usize) -> Self {
        Self { counts: Arc::default(), per_peer_max, total_max }
    }

    /// `None` when there are too many already.
    pub fn enter(&self, peer: IpAddr) -> Option<Place> {
        let mut counts = lock(&self.counts);
        let total: usize = counts.values().sum();
        let of_peer = counts.get(&peer).copied().unwrap_or(0);
        if total >= self.total_max || of_peer >= self.per_peer_max {
            return None;
        }
        counts.insert(peer, of_peer + 1);
        Some(Place { counts: Arc::clone(&self.counts), peer })
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        let mut counts = lock(&self.counts);
        if let Some(count) = counts.get_mut(&self.peer) {
            *count -= 1;
            if *count == 0 {
                counts.remove(&self.peer);
            }
        }
    }
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn places_are_bounded_for_each_peer_and_overall_and_come_back() {
        let tally = Tally::new(2, 3);
        let peer = |last| IpAddr::from([10, 0, 0, last]);
        let first = tally.enter(peer(1)).unwrap();
        let _second = tally.enter(peer(1)).unwrap();
        assert!(tally.enter(peer(1)).is_none());
        let _other = tally.enter(peer(2)).unwrap();
        assert!(tally.enter(peer(3)).is_none());
        drop(first);
        assert!(tally.enter(peer(3)).is_some());
        assert!(tally.enter(peer(1)).is_some());
    }
}
