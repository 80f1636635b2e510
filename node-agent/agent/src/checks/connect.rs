//! Connections of probes: TCP, and TLS as a check's options want it.

use model::CheckTls;
use rustls::client::danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier};
use rustls::crypto::{CryptoProvider, verify_tls12_signature, verify_tls13_signature};
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, ServerName, UnixTime};
use rustls::{ClientConfig, DigitallySignedStruct, RootCertStore, SignatureScheme};
use std::net::SocketAddr;
use std::sync::{Arc, OnceLock};
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::TcpStream;
use tokio_rustls::TlsConnector;

/// Where distributions keep the authorities that they trust.
const AUTHORITIES: [&str; 3] =
    ["/etc/ssl/certs/ca-certificates.crt", "/etc/pki/tls/certs/ca-bundle.crt", "/etc/ssl/cert.pem"];

/// Whatever bytes go over.
pub trait Io: AsyncRead + AsyncWrite + Send + Unpin {}
impl<T: AsyncRead + AsyncWrite + Send + Unpin> Io for T {}

pub async fn tcp(target: SocketAddr) -> Result<TcpStream, String> {
    TcpStream::connect(target).await.map_err(|error| format!("cannot connect to {target}: {error}"))
}

/// Without TLS when the check has none; `protocol` is what ALPN offers.
pub async fn connect(target: SocketAddr, tls: Option<&CheckTls>, protocol: &[u8]) -> Result<Box<dyn Io>, String> {
    let stream = tcp(target).await?;
    let Some(options) = tls else { return Ok(Box::new(stream)) };
    let name = server_name(target, options)?;
    let mut config = if options.skip_verify { trusting() } else { verifying()? };
    config.alpn_protocols = vec![protocol.to_vec()];
    let tls = TlsConnector::from(Arc::new(config)).connect(name, stream).await;
    Ok(Box::new(tls.map_err(|error| format!("no TLS with {target}: {error}"))?))
}

fn server_name(target: SocketAddr, options: &CheckTls) -> Result<ServerName<'static>, String> {
    if options.server_name.is_empty() {
        return Ok(ServerName::IpAddress(target.ip().into()));
    }
    let name = options.server_name.clone();
    ServerName::try_from(name).map_err(|_| format!("tls_server_name: `{}` is no name", options.server_name))
}

fn provider() -> Arc<CryptoProvider> {
    static PROVIDER: OnceLock<Arc<CryptoProvider>> = OnceLock::new();
    Arc::clone(PROVIDER.get_or_init(|| Arc::new(rustls::crypto::ring::default_provider())))
}

/// Trusts whom the machine trusts, read once.
fn verifying() -> Result<ClientConfig, String> {
    static CONFIG: OnceLock<Result<ClientConfig, String>> = OnceLock::new();
    CONFIG.get_or_init(|| client(authorities()?)).clone()
}

fn client(roots: RootCertStore) -> Result<ClientConfig, String> {
    let builder = ClientConfig::builder_with_provider(provider()).with_safe_default_protocol_versions();
    let builder = builder.map_err(|error| error.to_string())?;
    Ok(builder.with_root_certificates(roots).with_no_client_auth())
}

fn authorities() -> Result<RootCertStore, String> {
    let mut roots = RootCertStore::empty();
    let file = AUTHORITIES.into_iter().find(|file| std::path::Path::new(file).exists());
    let file = file.ok_or("this node trusts no authority: install ca-certificates, or set tls_skip_verify")?;
    let found = CertificateDer::pem_file_iter(file).map_err(|error| format!("{file}: {error}"))?;
    roots.add_parsable_certificates(found.filter_map(Result::ok));
    Ok(roots)
}

/// The job said that it does not matter who answers.
fn trusting() -> ClientConfig {
    let mut config = client(RootCertStore::empty()).expect("ring speaks the default protocol versions");
    config.dangerous().set_certificate_verifier(Arc::new(AnyServer));
    config
}

#[derive(Debug)]
struct AnyServer;

impl ServerCertVerifier for AnyServer {
    fn verify_server_cert(
        &self,
        _end_entity: &CertificateDer<'_>,
        _intermediates: &[CertificateDer<'_>],
        _server_name: &ServerName<'_>,
        _ocsp_response: &[u8],
        _now: UnixTime,
    ) -> Result<ServerCertVerified, rustls::Error> {
        Ok(ServerCertVerified::assertion())
    }

    fn verify_tls12_signature(
        &self,
        message: &[u8],
        cert: &CertificateDer<'_>,
        dss: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        verify_tls12_signature(message, cert, dss, &provider().signature_verification_algorithms)
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        cert: &CertificateDer<'_>,
        dss: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        verify_tls13_signature(message, cert, dss, &provider().signature_verification_algorithms)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        provider().signature_verification_algorithms.supported_schemes()
    }
}
