//! Connections that share one client port towards several addresses, as a load balancer in front makes them all the time.

use crate::http::Connection;
use crate::machine::Machine;
use anyhow::{Context, Result, ensure};
use nix::sys::socket::{AddressFamily, SockFlag, SockType, SockaddrIn, bind, connect, setsockopt, socket, sockopt};
use std::net::{Ipv4Addr, SocketAddrV4, TcpStream};
use std::time::Duration;

const LIMIT: Duration = Duration::from_secs(3);

/// For each of `ports` opens one connection from that client port to each of `targets`, holds all of them open, and makes
/// two rounds of requests over every one. Returns how many connections it held.
pub fn same_port_to_each(machine: &Machine, ports: std::ops::Range<u16>, targets: Vec<SocketAddrV4>) -> Result<usize> {
    let work = move || -> Result<usize> {
        let mut held = Vec::new();
        for port in ports {
            for target in &targets {
                held.push((port, *target, open(port, *target)?));
            }
        }
        for round in 1..=2 {
            for (port, target, connection) in &mut held {
                let response =
                    connection.get("/").with_context(|| format!("round {round}, port {port} to {target}"))?;
                ensure!(response.status == 200, "round {round}, port {port} to {target}: status {}", response.status);
            }
        }
        Ok(held.len())
    };
    machine.enter(work)?.join().ok().flatten().context("the client's thread ended early")?
}

fn open(port: u16, target: SocketAddrV4) -> Result<Connection> {
    let fd = socket(AddressFamily::Inet, SockType::Stream, SockFlag::SOCK_CLOEXEC, None)?;
    setsockopt(&fd, sockopt::ReuseAddr, &true)?;
    bind(std::os::fd::AsRawFd::as_raw_fd(&fd), &SockaddrIn::from(SocketAddrV4::new(Ipv4Addr::UNSPECIFIED, port)))?;
    connect(std::os::fd::AsRawFd::as_raw_fd(&fd), &SockaddrIn::from(target))
        .with_context(|| format!("port {port} to {target}"))?;
    Ok(Connection::over(TcpStream::from(fd), LIMIT)?)
}
