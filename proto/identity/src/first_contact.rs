//! The first contact of a machine that knows nothing but a token: it connects, looks for the CA whose digest the token
//! carries in the chain that the server presents, and checks that the server's certificate is that CA's.

use crate::SERVER_NAME;
use crate::credentials::{provider, roots};
use rustls::client::WebPkiServerVerifier;
use rustls::client::danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier};
use rustls::{CertificateError, ClientConfig, DigitallySignedStruct, SignatureScheme};
use rustls_pki_types::{CertificateDer, ServerName, UnixTime};
use std::net::SocketAddr;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;
use tokio::net::TcpStream;
use tokio_rustls::TlsConnector;

const TIMEOUT: Duration = Duration::from_secs(10);

#[derive(Debug, thiserror::Error)]
pub enum FirstContactError {
    #[error("no connection to {address}; check the address, and that a server listens there")]
    Connect { address: SocketAddr, source: std::io::Error },
    #[error("{address} did not answer within {} s; check that it is a server's RPC address", TIMEOUT.as_secs())]
    Timeout { address: SocketAddr },
    #[error(
        "{address} does not present the CA that the token names; the token is of another cluster, or someone \
        answers in the server's place: ask for a fresh token and check the address"
    )]
    OtherAuthority { address: SocketAddr },
    #[error("{address} is not a server that the token's CA vouches for")]
    Handshake { address: SocketAddr, source: std::io::Error },
}

/// Fetches the CA certificate with this SHA-256 digest from the server at `address`, which must prove to hold a
/// certificate of that CA for [`SERVER_NAME`].
pub async fn fetch_ca(address: SocketAddr, digest: [u8; 32]) -> Result<CertificateDer<'static>, FirstContactError> {
    let verifier = Arc::new(DigestVerifier { digest, found: Mutex::default() });
    let handshake = tokio::time::timeout(TIMEOUT, connect(address, Arc::clone(&verifier)));
    let outcome = handshake.await.map_err(|_| FirstContactError::Timeout { address })?;
    let found = verifier.found.lock().unwrap_or_else(PoisonError::into_inner).take();
    outcome?;
    found.ok_or(FirstContactError::OtherAuthority { address })
}

async fn connect(address: SocketAddr, verifier: Arc<DigestVerifier>) -> Result<(), FirstContactError> {
    let tcp = TcpStream::connect(address).await.map_err(|source| FirstContactError::Connect { address, source })?;
    let mut config = ClientConfig::builder_with_provider(provider())
        .with_protocol_versions(&[&rustls::version::TLS13])
        .expect("ring's provider has TLS 1.3 suites")
        .dangerous()
        .with_custom_certificate_verifier(verifier)
        .with_no_client_auth();
    config.alpn_protocols = vec![b"h2".to_vec()];
    let name = ServerName::try_from(SERVER_NAME).expect("a constant DNS name");
    let outcome = TlsConnector::from(Arc::new(config)).connect(name, tcp).await;
    outcome.map(drop).map_err(|source| match is_unknown_issuer(&source) {
        true => FirstContactError::OtherAuthority { address },
        false => FirstContactError::Handshake { address, source },
    })
}

fn is_unknown_issuer(error: &std::io::Error) -> bool {
    let tls = error.get_ref().and_then(|inner| inner.downcast_ref::<rustls::Error>());
    matches!(tls, Some(rustls::Error::InvalidCertificate(CertificateError::UnknownIssuer)))
}

/// Trusts the presented CA with the right digest, and only as the ordinary verifier would trust a configured root.
#[derive(Debug)]
struct DigestVerifier {
    digest: [u8; 32],
    found: Mutex<Option<CertificateDer<'static>>>,
}

impl ServerCertVerifier for DigestVerifier {
    fn verify_server_cert(
        &self,
        end_entity: &CertificateDer<'_>,
        intermediates: &[CertificateDer<'_>],
        server_name: &ServerName<'_>,
        ocsp_response: &[u8],
        now: UnixTime,
    ) -> Result<ServerCertVerified, rustls::Error> {
        let named = intermediates.iter().find(|certificate| crate::sha256(certificate) == self.digest);
        let ca = named.ok_or(rustls::Error::InvalidCertificate(CertificateError::UnknownIssuer))?.clone().into_owned();
        let roots = roots(&ca).map_err(|_| rustls::Error::InvalidCertificate(CertificateError::BadEncoding))?;
        let ordinary = WebPkiServerVerifier::builder_with_provider(Arc::new(roots), provider())
            .build()
            .map_err(|error| rustls::Error::General(error.to_string()))?;
        let verified = ordinary.verify_server_cert(end_entity, &[], server_name, ocsp_response, now)?;
        *self.found.lock().unwrap_or_else(PoisonError::into_inner) = Some(ca);
        Ok(verified)
    }

    fn verify_tls12_signature(
        &self,
        _message: &[u8],
        _certificate: &CertificateDer<'_>,
        _signature: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        Err(rustls::Error::General("TLS 1.2 is not spoken here".to_owned()))
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signature: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        let algorithms = provider().signature_verification_algorithms;
        rustls::crypto::verify_tls13_signature(message, certificate, signature, &algorithms)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        provider().signature_verification_algorithms.supported_schemes()
    }
}
