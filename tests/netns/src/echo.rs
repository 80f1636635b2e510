//! A server that tells each client who serves it and as whom it sees the client, over TCP (a line for a line) and UDP, and
//! its clients. Both live in any network namespace: a machine's or an allocation's.

use crate::enter;
use anyhow::{Context, Result};
use nix::sys::socket::{AddressFamily, SockFlag, SockType, SockaddrIn, bind, connect, setsockopt, socket, sockopt};
use std::io::{BufRead, BufReader, Write};
use std::net::{Ipv4Addr, SocketAddr, SocketAddrV4, TcpListener, TcpStream, UdpSocket};
use std::os::fd::AsRawFd;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

const LIMIT: Duration = Duration::from_secs(2);
const LOOK: Duration = Duration::from_millis(100);

/// Serves until dropped.
pub struct Echo {
    stop: Arc<AtomicBool>,
}

impl Drop for Echo {
    fn drop(&mut self) {
        self.stop.store(true, Ordering::Relaxed);
    }
}

/// What a client was told.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Told {
    /// The server's name.
    pub by: String,
    /// The client as the server sees it.
    pub client: SocketAddr,
    /// Where the answer came from, as the client sees it.
    pub from: SocketAddr,
}

impl Echo {
    /// Both transports on one port of every address of a namespace.
    pub fn serve(namespace: &Path, port: u16, name: &str) -> Result<Echo> {
        let stop = Arc::new(AtomicBool::new(false));
        let sockets = enter(namespace, move || {
            let tcp = TcpListener::bind((Ipv4Addr::UNSPECIFIED, port))?;
            let udp = UdpSocket::bind((Ipv4Addr::UNSPECIFIED, port))?;
            tcp.set_nonblocking(true)?;
            udp.set_read_timeout(Some(LOOK))?;
            Ok::<_, std::io::Error>((tcp, udp))
        })?;
        let (tcp, udp) = sockets.join().ok().flatten().context("the server's thread ended early")??;
        let (name, stops) = (name.to_owned(), (Arc::clone(&stop), Arc::clone(&stop)));
        let named = name.clone();
        std::thread::spawn(move || datagrams(&udp, &named, &stops.0));
        std::thread::spawn(move || connections(&tcp, &name, &stops.1));
        Ok(Echo { stop })
    }
}

fn datagrams(socket: &UdpSocket, name: &str, stop: &AtomicBool) {
    let mut buffer = [0; 2048];
    while !stop.load(Ordering::Relaxed) {
        if let Ok((_, client)) = socket.recv_from(&mut buffer) {
            socket.send_to(format!("{name} {client}").as_bytes(), client).ok();
        }
    }
}

fn connections(listener: &TcpListener, name: &str, stop: &AtomicBool) {
    while !stop.load(Ordering::Relaxed) {
        match listener.accept() {
            Ok((stream, client)) => {
                let name = name.to_owned();
                std::thread::spawn(move || lines(stream, &format!("{name} {client}\n")));
            }
            Err(_) => std::thread::sleep(LOOK / 10),
        }
    }
}

fn lines(stream: TcpStream, answer: &str) -> Option<()> {
    stream.set_nonblocking(false).ok()?;
    let mut reader = BufReader::new(stream);
    let mut line = String::new();
    while reader.read_line(&mut line).ok()? > 0 {
        reader.get_mut().write_all(answer.as_bytes()).ok()?;
        line.clear();
    }
    Some(())
}

/// A connection to such a server.
pub struct Line {
    reader: BufReader<TcpStream>,
}

impl Line {
    /// From a port of the client's choice, or any when that is 0.
    pub fn open(namespace: &Path, port: u16, target: SocketAddrV4) -> Result<Line> {
        let dialled = enter(namespace, move || dial(port, target))?;
        let stream = dialled.join().ok().flatten().context("the client's thread ended early")??;
        Ok(Line { reader: BufReader::new(stream) })
    }

    pub fn ask(&mut self) -> Result<Told> {
        let from = self.reader.get_ref().peer_addr()?;
        self.reader.get_mut().write_all(b"who?\n")?;
        let mut answer = String::new();
        self.reader.read_line(&mut answer).context("no answer")?;
        told(&answer, from)
    }
}

/// The kernel's own tries take a second and more: the limit is on the whole.
fn dial(port: u16, target: SocketAddrV4) -> Result<TcpStream> {
    let fd = socket(AddressFamily::Inet, SockType::Stream, SockFlag::SOCK_CLOEXEC, None)?;
    setsockopt(&fd, sockopt::ReuseAddr, &true)?;
    setsockopt(&fd, sockopt::SendTimeout, &nix::sys::time::TimeVal::new(2, 0))?;
    bind(fd.as_raw_fd(), &SockaddrIn::from(SocketAddrV4::new(Ipv4Addr::UNSPECIFIED, port)))?;
    connect(fd.as_raw_fd(), &SockaddrIn::from(target)).with_context(|| format!("port {port} to {target}"))?;
    let stream = TcpStream::from(fd);
    stream.set_read_timeout(Some(LIMIT))?;
    Ok(stream)
}

/// One question over a connection of its own.
pub fn by_tcp(namespace: &Path, port: u16, target: SocketAddrV4) -> Result<Told> {
    Line::open(namespace, port, target)?.ask()
}

/// One question in a datagram; the socket is not connected, so that the answer's sender is seen.
pub fn by_udp(namespace: &Path, port: u16, target: SocketAddrV4) -> Result<Told> {
    let namespace: PathBuf = namespace.to_owned();
    let asked = enter(&namespace, move || {
        let socket = UdpSocket::bind((Ipv4Addr::UNSPECIFIED, port))?;
        socket.set_read_timeout(Some(LIMIT))?;
        socket.send_to(b"who?", target)?;
        let mut buffer = [0; 2048];
        let (length, from) = socket.recv_from(&mut buffer).with_context(|| format!("no answer from {target}"))?;
        told(&String::from_utf8_lossy(&buffer[..length]), from)
    })?;
    asked.join().ok().flatten().context("the client's thread ended early")?
}

fn told(answer: &str, from: SocketAddr) -> Result<Told> {
    let (by, client) = answer.trim().split_once(' ').with_context(|| format!("not an answer: {answer:?}"))?;
    Ok(Told { by: by.to_owned(), client: client.parse()?, from })
}
