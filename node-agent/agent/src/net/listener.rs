//! The DNS sockets: UDP and TCP on one address, answered from the newest zone.
//!
//! They have a thread of their own: compiling rings and setting up veths must not hold up answers.
//!
//! A datagram costs microseconds and is answered in turn. TCP connections are bounded in number, by client, in time and in
//! questions.

use super::NetError;
use dns::{Transport, Zone};
use std::collections::HashMap;
use std::collections::hash_map::RandomState;
use std::hash::BuildHasher;
use std::io;
use std::net::{IpAddr, SocketAddr};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread::JoinHandle;
use std::time::Duration;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream, UdpSocket};
use tokio::sync::{Semaphore, oneshot, watch};
use tokio::task::JoinSet;

const CONNECTIONS_MAX: usize = 256;
const CONNECTIONS_PER_CLIENT_MAX: usize = 32;
const QUESTIONS_PER_CONNECTION_MAX: usize = 1_000;
const IDLE_MAX: Duration = Duration::from_secs(10);
/// Longer datagrams are no questions.
const DATAGRAM_MAX: usize = 4_096;

/// The newest zone; none before the servers have told anything.
pub type ZoneWatch = watch::Receiver<Option<Arc<Zone>>>;

/// Serves until dropped; then the address is free again.
#[derive(Debug)]
pub struct Listener {
    stop: Option<oneshot::Sender<()>>,
    thread: Option<JoinHandle<()>>,
}

impl Listener {
    /// In the calling thread's network namespace.
    pub fn bind(address: SocketAddr, zone: ZoneWatch) -> Result<Self, NetError> {
        let failed = |source| NetError::DnsBind { address, source };
        let sockets = Sockets::bind(address).map_err(failed)?;
        let responder = Responder { zone, seeds: Arc::new(Seeds::default()) };
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().map_err(NetError::Thread)?;
        let (stop, stopped) = oneshot::channel();
        let thread = std::thread::Builder::new().name("dns".to_owned());
        let serve = move || runtime.block_on(serve(sockets, responder, stopped));
        let thread = thread.spawn(serve).map_err(NetError::Thread)?;
        Ok(Self { stop: Some(stop), thread: Some(thread) })
    }
}

impl Drop for Listener {
    fn drop(&mut self) {
        drop(self.stop.take());
        if let Some(thread) = self.thread.take() {
            // It has no result, and a panic of it was printed.
            let _ = thread.join();
        }
    }
}

/// Both transports on one port.
struct Sockets {
    udp: std::net::UdpSocket,
    tcp: std::net::TcpListener,
}

impl Sockets {
    fn bind(address: SocketAddr) -> io::Result<Self> {
        let udp = std::net::UdpSocket::bind(address)?;
        let tcp = std::net::TcpListener::bind(udp.local_addr()?)?;
        udp.set_nonblocking(true)?;
        tcp.set_nonblocking(true)?;
        Ok(Self { udp, tcp })
    }
}

async fn serve(sockets: Sockets, responder: Responder, stopped: oneshot::Receiver<()>) {
    let sockets = UdpSocket::from_std(sockets.udp).and_then(|udp| Ok((udp, TcpListener::from_std(sockets.tcp)?)));
    match sockets {
        Ok((udp, tcp)) => tokio::select! {
            () = serve_udp(udp, responder.clone()) => {}
            () = serve_tcp(tcp, responder) => {}
            _ = stopped => {}
        },
        Err(error) => tracing::error!(%error, "DNS does not serve; restart the agent"),
    }
}

#[derive(Clone)]
struct Responder {
    zone: ZoneWatch,
    seeds: Arc<Seeds>,
}

impl Responder {
    fn respond(&self, request: &[u8], transport: Transport) -> Option<Vec<u8>> {
        let zone = self.zone.borrow().clone();
        match zone {
            Some(zone) => dns::respond(request, &zone, transport, self.seeds.next()),
            None => dns::unavailable(request),
        }
    }
}

/// A sequence that outsiders cannot foresee: a counter under the process's random hash keys.
#[derive(Default)]
struct Seeds {
    counter: AtomicU64,
    keys: RandomState,
}

impl Seeds {
    fn next(&self) -> u64 {
        self.keys.hash_one(self.counter.fetch_add(1, Ordering::Relaxed))
    }
}

async fn serve_udp(socket: UdpSocket, responder: Responder) {
    let mut buffer = vec![0; DATAGRAM_MAX];
    loop {
        match socket.recv_from(&mut buffer).await {
            Ok((length, client)) => answer_datagram(&socket, &buffer[..length], client, &responder).await,
            // An ICMP error of an earlier answer, or no memory: neither ends the service.
            Err(error) => pause_after(&error).await,
        }
    }
}

async fn answer_datagram(socket: &UdpSocket, request: &[u8], client: SocketAddr, responder: &Responder) {
    let Some(response) = responder.respond(request, Transport::Udp) else { return };
    if let Err(error) = socket.send_to(&response, client).await {
        tracing::debug!(%client, %error, "DNS answer not sent");
    }
}

async fn serve_tcp(listener: TcpListener, responder: Responder) {
    let places = Arc::new(Semaphore::new(CONNECTIONS_MAX));
    let clients = Clients::default();
    let mut connections = JoinSet::new();
    loop {
        while connections.try_join_next().is_some() {}
        let Ok(place) = Arc::clone(&places).acquire_owned().await else { return };
        match listener.accept().await {
            Ok((stream, client)) => {
                let Some(entry) = clients.enter(client.ip()) else { continue };
                let responder = responder.clone();
                connections.spawn(async move {
                    let _held = (place, entry);
                    if let Err(error) = serve_connection(stream, &responder).await {
                        tracing::debug!(%client, %error, "DNS connection ended");
                    }
                });
            }
            Err(error) => pause_after(&error).await,
        }
    }
}

async fn serve_connection(mut stream: TcpStream, responder: &Responder) -> io::Result<()> {
    for _ in 0..QUESTIONS_PER_CONNECTION_MAX {
        let Some(request) = within_idle(read_question(&mut stream)).await? else { return Ok(()) };
        let Some(response) = responder.respond(&request, Transport::Tcp) else { return Ok(()) };
        let mut framed = (response.len() as u16).to_be_bytes().to_vec();
        framed.extend(response);
        within_idle(stream.write_all(&framed)).await?;
    }
    Ok(())
}

/// `None` at the end of the stream.
async fn read_question(stream: &mut TcpStream) -> io::Result<Option<Vec<u8>>> {
    let length = match stream.read_u16().await {
        Err(error) if error.kind() == io::ErrorKind::UnexpectedEof => return Ok(None),
        other => other?,
    };
    let mut request = vec![0; usize::from(length)];
    stream.read_exact(&mut request).await?;
    Ok(Some(request))
}

async fn within_idle<T>(work: impl Future<Output = io::Result<T>>) -> io::Result<T> {
    tokio::time::timeout(IDLE_MAX, work).await.map_err(io::Error::from)?
}

async fn pause_after(error: &io::Error) {
    tracing::debug!(%error, "DNS socket");
    tokio::time::sleep(Duration::from_millis(10)).await;
}

/// How many connections each client has.
#[derive(Clone, Default)]
struct Clients(Arc<Mutex<HashMap<IpAddr, usize>>>);

struct Entry {
    clients: Clients,
    client: IpAddr,
}

impl Clients {
    fn enter(&self, client: IpAddr) -> Option<Entry> {
        let mut counts = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let count = counts.entry(client).or_insert(0);
        if *count >= CONNECTIONS_PER_CLIENT_MAX {
            return None;
        }
        *count += 1;
        Some(Entry { clients: self.clone(), client })
    }
}

impl Drop for Entry {
    fn drop(&mut self) {
        let mut counts = self.clients.0.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(count) = counts.get_mut(&self.client) {
            *count -= 1;
            if *count == 0 {
                counts.remove(&self.client);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use hickory_proto::op::{Message, Query, ResponseCode};
    use hickory_proto::rr::{Name, RecordType};
    use model::{Generation, RoutedService, RoutingSnapshot};

    fn zone() -> Arc<Zone> {
        let service = RoutedService { name: "web".into(), vip: IpAddr::from([10, 43, 0, 1]), instances: Vec::new() };
        let routing = RoutingSnapshot { generation: Generation(1), nodes: Vec::new(), services: vec![service] };
        Arc::new(Zone::from_routing(&routing, "cluster", "dc1").expect("a zone"))
    }

    fn question() -> Vec<u8> {
        let mut request = Message::query();
        request.add_query(Query::query(Name::from_ascii("nobody.cluster.").expect("a name"), RecordType::A));
        request.to_vec().expect("encodes")
    }

    fn code(bytes: &[u8]) -> ResponseCode {
        Message::from_vec(bytes).expect("decodes").metadata.response_code
    }

    async fn ask_tcp(stream: &mut TcpStream) -> ResponseCode {
        let question = question();
        stream.write_u16(question.len() as u16).await.expect("writes");
        stream.write_all(&question).await.expect("writes");
        let mut response = vec![0; usize::from(stream.read_u16().await.expect("reads"))];
        stream.read_exact(&mut response).await.expect("reads");
        code(&response)
    }

    #[tokio::test]
    async fn both_transports_answer_from_the_newest_zone() {
        let (newest, watch) = watch::channel(None);
        let (udp, tcp) = loop {
            let udp = UdpSocket::bind("127.0.0.1:0").await.expect("binds");
            if let Ok(tcp) = TcpListener::bind(udp.local_addr().expect("an address")).await {
                break (udp, tcp);
            }
        };
        let address = udp.local_addr().expect("an address");
        let responder = Responder { zone: watch, seeds: Arc::default() };
        let mut tasks = JoinSet::new();
        tasks.spawn(serve_udp(udp, responder.clone()));
        tasks.spawn(serve_tcp(tcp, responder));
        let client = UdpSocket::bind("127.0.0.1:0").await.expect("binds");
        let mut buffer = [0; 512];
        for expected in [ResponseCode::ServFail, ResponseCode::NXDomain] {
            client.send_to(&question(), address).await.expect("sends");
            let (length, _) = client.recv_from(&mut buffer).await.expect("receives");
            assert_eq!(code(&buffer[..length]), expected);
            newest.send_replace(Some(zone()));
        }
        let mut stream = TcpStream::connect(address).await.expect("connects");
        assert_eq!(ask_tcp(&mut stream).await, ResponseCode::NXDomain);
        assert_eq!(ask_tcp(&mut stream).await, ResponseCode::NXDomain);
    }

    #[test]
    fn one_client_cannot_hold_every_connection() {
        let clients = Clients::default();
        let client = IpAddr::from([127, 0, 0, 1]);
        let held: Vec<_> = (0..CONNECTIONS_PER_CLIENT_MAX).map(|_| clients.enter(client)).collect();
        assert!(held.iter().all(Option::is_some) && clients.enter(client).is_none());
        assert!(clients.enter(IpAddr::from([127, 0, 0, 2])).is_some());
        drop(held);
        assert!(clients.enter(client).is_some());
    }
}
