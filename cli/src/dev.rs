//! `meshctl dev`: server and agent in one process. Everything is real but the number of machines; what it made goes with it,
//! and what a killed one left goes first.

use crate::serve::{PIN_ROOT, address_of, log_to_stderr, runtime};
use agent::{Agent, AgentConfig};
use anyhow::{Context, Result, ensure};
use clap::Args;
use server::{Mode, Server, ServerConfig, TokenRequest};
use std::fs;
use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::path::{Path, PathBuf};
use std::time::Duration;
use tokio::net::TcpListener;
use tokio::signal::unix::{SignalKind, signal};

/// Marks a directory as one that `dev` may empty.
const MARK: &str = "emptied-by-meshctl-dev";

const TOKEN_TTL: Duration = Duration::from_secs(600);

#[derive(Args)]
pub struct Options {
    /// Emptied at the start and at the end
    #[arg(long, default_value = "/var/lib/meshctl/dev")]
    data_dir: PathBuf,
    /// Also forward what comes in through this interface; without it no real interface is touched
    #[arg(long)]
    uplink: Option<String>,
    #[arg(long, default_value = PIN_ROOT)]
    pin_root: PathBuf,
    /// Where the HTTP API listens; loopback only
    #[arg(long, default_value = "127.0.0.1:4646", value_name = "IP:PORT")]
    http: SocketAddr,
    /// Where the servers' RPC listens; loopback is enough for one machine
    #[arg(long, default_value = "127.0.0.1:4647", value_name = "IP:PORT")]
    rpc: SocketAddr,
    /// Where DNS listens
    #[arg(long, default_value = "127.0.0.1:8600", value_name = "IP:PORT")]
    dns: SocketAddr,
    /// The engine of the docker driver
    #[arg(long, value_name = "SOCKET", default_value = "/var/run/docker.sock")]
    docker_socket: PathBuf,
}

pub fn run(options: &Options) -> Result<()> {
    log_to_stderr();
    runtime()?.block_on(run_until_signal(options))
}

async fn run_until_signal(options: &Options) -> Result<()> {
    ensure!(
        options.http.ip().is_loopback(),
        "http: {} is not a loopback address; TLS for HTTP is not built yet",
        options.http
    );
    let config = agent_config(options)?;
    let listener = TcpListener::bind(options.http).await;
    let listener =
        listener.with_context(|| format!("http: cannot listen on {}; is another one running?", options.http))?;
    claim(&options.data_dir)?;
    clear(&options.data_dir, &config).await?;
    let mut interrupt = signal(SignalKind::interrupt())?;
    let mut terminate = signal(SignalKind::terminate())?;
    let served = tokio::select! {
        served = serve(options, config.clone(), listener) => served,
        _ = interrupt.recv() => Ok(()),
        _ = terminate.recv() => Ok(()),
    };
    println!("meshctl dev: stopping, and removing what it made");
    clear(&options.data_dir, &config).await?;
    served
}

fn agent_config(options: &Options) -> Result<AgentConfig> {
    let address = options.uplink.as_deref().map_or(Ok(IpAddr::V4(Ipv4Addr::LOCALHOST)), address_of)?;
    let defaults = AgentConfig::for_address(address);
    Ok(AgentConfig {
        data_dir: options.data_dir.join("agent"),
        servers: vec![options.rpc],
        uplink: options.uplink.clone(),
        pin_root: options.pin_root.clone(),
        http_bind: None,
        dns_bind: options.dns,
        raw_exec: true,
        docker: agent::DockerOptions { socket: options.docker_socket.clone(), ..defaults.docker },
        ..defaults
    })
}

async fn serve(options: &Options, mut config: AgentConfig, listener: TcpListener) -> Result<()> {
    let server_config = ServerConfig::new(options.data_dir.join("server"), &config.name, Mode::init());
    let server = Server::start(ServerConfig { rpc_bind: options.rpc, http_bind: None, ..server_config }).await?;
    let token = TokenRequest { role: model::Role::Agent, uses: 1, ttl: Some(TOKEN_TTL) };
    config.token = Some(server.create_token(token).await?);
    let agent = Agent::start(config).await?;
    let router = server.router().merge(agent::router(agent.handle()));
    println!(
        "meshctl dev: HTTP on {}, DNS on {}; try `meshctl job run examples/web.nomad.hcl`",
        options.http, options.dns
    );
    Ok(axum::serve(listener, router).await?)
}

/// A directory that something else filled is not `dev`'s to empty.
fn claim(data_dir: &Path) -> Result<()> {
    let is_foreign =
        fs::read_dir(data_dir).is_ok_and(|mut entries| entries.next().is_some()) && !data_dir.join(MARK).exists();
    ensure!(
        !is_foreign,
        "data_dir: {} holds what `meshctl dev` did not make; name another directory",
        data_dir.display()
    );
    fs::create_dir_all(data_dir)
        .and_then(|()| fs::write(data_dir.join(MARK), ""))
        .with_context(|| format!("data_dir: cannot write to {}", data_dir.display()))
}

/// Tasks, namespaces, links and pins, then the files.
async fn clear(data_dir: &Path, config: &AgentConfig) -> Result<()> {
    agent::purge(config).await?;
    for part in ["agent", "server"].map(|part| data_dir.join(part)).iter().filter(|part| part.exists()) {
        fs::remove_dir_all(part).with_context(|| format!("data_dir: could not empty {}", part.display()))?;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn directory_of_something_else_is_not_emptied() {
        let dir = tempfile::tempdir().unwrap();
        claim(dir.path()).unwrap();
        claim(dir.path()).unwrap();
        fs::remove_file(dir.path().join(MARK)).unwrap();
        fs::create_dir(dir.path().join("server")).unwrap();
        assert!(claim(dir.path()).unwrap_err().to_string().starts_with("data_dir: "));
    }
}
