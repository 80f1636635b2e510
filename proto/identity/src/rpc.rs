//! The gRPC channel that servers and agents dial servers with.

use hyper_util::rt::TokioIo;
use rustls::ClientConfig;
use rustls_pki_types::ServerName;
use std::future::Future;
use std::io;
use std::net::SocketAddr;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::Duration;
use tokio::net::TcpStream;
use tokio_rustls::TlsConnector;
use tokio_rustls::client::TlsStream;
use tonic::codegen::Service;
use tonic::codegen::http::Uri;
use tonic::transport::{Channel, Endpoint};

/// The most bytes of one gRPC message, on both ends: a catalog snapshot must fit.
pub const RPC_MESSAGE_BYTES_MAX: usize = 64 * 1024 * 1024;

const CONNECT_TIMEOUT: Duration = Duration::from_secs(3);
const PING_INTERVAL: Duration = Duration::from_secs(2);
const PING_TIMEOUT: Duration = Duration::from_secs(3);

/// A channel to the server at `address`, which must prove to be `name` ([`crate::SERVER_NAME`] for any server,
/// [`crate::server_name`] for one). Connects at first use and again after a loss; pings notice a dead peer within 5 s.
pub fn channel(address: SocketAddr, name: &str, config: Arc<ClientConfig>) -> Result<Channel, BadName> {
    let name = ServerName::try_from(name.to_owned()).map_err(|_| BadName(name.to_owned()))?;
    let endpoint = Endpoint::from_shared(format!("http://{address}"))
        .map_err(|_| BadName(address.to_string()))?
        .connect_timeout(CONNECT_TIMEOUT)
        .tcp_nodelay(true)
        .http2_keep_alive_interval(PING_INTERVAL)
        .keep_alive_timeout(PING_TIMEOUT)
        .keep_alive_while_idle(true);
    Ok(endpoint.connect_with_connector_lazy(Connector { address, name, tls: TlsConnector::from(config) }))
}

#[derive(Debug, thiserror::Error)]
#[error("`{0}` is not a name or address that can be dialled")]
pub struct BadName(String);

/// TCP, then TLS by our own configuration: tonic's would also speak TLS 1.2.
struct Connector {
    address: SocketAddr,
    name: ServerName<'static>,
    tls: TlsConnector,
}

impl Service<Uri> for Connector {
    type Response = TokioIo<TlsStream<TcpStream>>;
    type Error = io::Error;
    type Future = Pin<Box<dyn Future<Output = io::Result<Self::Response>> + Send>>;

    fn poll_ready(&mut self, _context: &mut Context<'_>) -> Poll<io::Result<()>> {
        Poll::Ready(Ok(()))
    }

    fn call(&mut self, _uri: Uri) -> Self::Future {
        let (address, name, tls) = (self.address, self.name.clone(), self.tls.clone());
        Box::pin(async move {
            let tcp = TcpStream::connect(address).await?;
            tcp.set_nodelay(true)?;
            Ok(TokioIo::new(tls.connect(name, tcp).await?))
        })
    }
}
