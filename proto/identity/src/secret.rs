//! The cluster's secret: what servers share before there is a CA. It never goes over the wire. Each side proves that it knows
//! it, over the certificate that the answering side presents, so whoever stands between the two can neither pass the proofs
//! on nor make its own.

use crate::credentials::provider;
use crate::{CertificateAuthority, Credentials, CredentialsError, FirstContactError, KeyAndRequest, SERVER_NAME};
use crate::{NoRandomness, SignError, Subject, random, sha256};
use ring::hmac;
use rustls::client::danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier};
use rustls::{CertificateError, ClientConfig, DigitallySignedStruct, SignatureScheme};
use rustls_pki_types::{CertificateDer, ServerName, UnixTime};
use std::net::SocketAddr;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;
use tokio::net::TcpStream;
use tokio_rustls::TlsConnector;

const BYTES: usize = 32;
const TIMEOUT: Duration = Duration::from_secs(5);
/// A server that forms a cluster has its provisional certificate for as long as it waits for the others.
const PROVISIONAL_VALIDITY: Duration = Duration::from_secs(30 * 24 * 3600);

#[derive(Clone)]
pub struct ClusterSecret([u8; BYTES]);

#[derive(Debug, thiserror::Error)]
#[error("the cluster's secret is 64 hexadecimal digits; make one with `meshctl server secret`")]
pub struct SecretError;

impl ClusterSecret {
    pub fn generate() -> Result<Self, NoRandomness> {
        Ok(Self(random()?))
    }

    pub fn parse(text: &str) -> Result<Self, SecretError> {
        let digits = text.trim().as_bytes();
        let mut bytes = [0; BYTES];
        if digits.len() != BYTES * 2 {
            return Err(SecretError);
        }
        for (byte, pair) in bytes.iter_mut().zip(digits.chunks(2)) {
            let text = std::str::from_utf8(pair).map_err(|_| SecretError)?;
            *byte = u8::from_str_radix(text, 16).map_err(|_| SecretError)?;
        }
        Ok(Self(bytes))
    }

    /// For the operator's file; shown by nothing else.
    pub fn reveal(&self) -> String {
        self.0.iter().map(|byte| format!("{byte:02x}")).collect()
    }

    /// A proof over `parts`, each with its length, so that none can be moved into another.
    pub fn prove(&self, parts: &[&[u8]]) -> Vec<u8> {
        hmac::sign(&self.key(), &joined(parts)).as_ref().to_vec()
    }

    /// In constant time.
    pub fn verify(&self, parts: &[&[u8]], mac: &[u8]) -> bool {
        hmac::verify(&self.key(), &joined(parts), mac).is_ok()
    }

    fn key(&self) -> hmac::Key {
        hmac::Key::new(hmac::HMAC_SHA256, &self.0)
    }
}

impl std::fmt::Debug for ClusterSecret {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("ClusterSecret")
    }
}

/// 32 random bytes that a proof is made for.
pub fn nonce() -> Result<[u8; 32], NoRandomness> {
    random()
}

fn joined(parts: &[&[u8]]) -> Vec<u8> {
    let mut bytes = b"meshctl introduction 1".to_vec();
    for part in parts {
        bytes.extend((part.len() as u64).to_be_bytes());
        bytes.extend(*part);
    }
    bytes
}

/// Papers of an authority that nobody else knows: what a server listens with while there is no cluster.
pub fn provisional_credentials() -> Result<Credentials, ProvisionalError> {
    let authority = CertificateAuthority::create()?;
    let key = KeyAndRequest::generate()?;
    let subject = Subject::Server(model::ServerId(0));
    let certificate = authority.sign(&key.request_pem, subject, PROVISIONAL_VALIDITY)?;
    Ok(Credentials::from_pem(&authority.certificate_pem(), &certificate, &key.key_pem)?)
}

#[derive(Debug, thiserror::Error)]
pub enum ProvisionalError {
    #[error(transparent)]
    Sign(#[from] SignError),
    #[error(transparent)]
    Credentials(#[from] CredentialsError),
}

/// The certificate that `address` presents, whoever that is: what the proofs are then made over.
pub async fn fetch_leaf(address: SocketAddr) -> Result<CertificateDer<'static>, FirstContactError> {
    let verifier = Arc::new(Pin { expected: None, seen: Mutex::default() });
    let dial = async {
        let tcp = TcpStream::connect(address).await.map_err(|source| FirstContactError::Connect { address, source })?;
        let name = ServerName::try_from(SERVER_NAME).expect("a constant DNS name");
        let connector = TlsConnector::from(client_config(Arc::clone(&verifier)));
        connector.connect(name, tcp).await.map_err(|source| FirstContactError::Handshake { address, source })
    };
    let outcome = tokio::time::timeout(TIMEOUT, dial).await.map_err(|_| FirstContactError::Timeout { address })?;
    outcome?;
    let seen = verifier.seen.lock().unwrap_or_else(PoisonError::into_inner).take();
    seen.ok_or(FirstContactError::OtherAuthority { address })
}

/// For calls to whoever presents exactly this certificate.
pub fn pinned_client_config(leaf: &CertificateDer<'_>) -> Arc<ClientConfig> {
    client_config(Arc::new(Pin { expected: Some(sha256(leaf)), seen: Mutex::default() }))
}

fn client_config(verifier: Arc<Pin>) -> Arc<ClientConfig> {
    let mut config = ClientConfig::builder_with_provider(provider())
        .with_protocol_versions(&[&rustls::version::TLS13])
        .expect("ring's provider has TLS 1.3 suites")
        .dangerous()
        .with_custom_certificate_verifier(verifier)
        .with_no_client_auth();
    config.alpn_protocols = vec![b"h2".to_vec()];
    Arc::new(config)
}

/// Takes one certificate, or any, and remembers it. That its holder has the key is checked by the handshake's signature.
#[derive(Debug)]
struct Pin {
    expected: Option<[u8; 32]>,
    seen: Mutex<Option<CertificateDer<'static>>>,
}

impl ServerCertVerifier for Pin {
    fn verify_server_cert(
        &self,
        end_entity: &CertificateDer<'_>,
        _intermediates: &[CertificateDer<'_>],
        _server_name: &ServerName<'_>,
        _ocsp_response: &[u8],
        _now: UnixTime,
    ) -> Result<ServerCertVerified, rustls::Error> {
        if self.expected.is_some_and(|expected| expected != sha256(end_entity)) {
            return Err(rustls::Error::InvalidCertificate(CertificateError::UnknownIssuer));
        }
        *self.seen.lock().unwrap_or_else(PoisonError::into_inner) = Some(end_entity.clone().into_owned());
        Ok(ServerCertVerified::assertion())
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_secret_is_read_as_it_is_shown_and_proves_what_it_was_given() {
        let secret = ClusterSecret::generate().unwrap();
        let again = ClusterSecret::parse(&format!(" {}\n", secret.reveal())).unwrap();
        let mac = secret.prove(&[b"a", b"bc"]);
        assert!(again.verify(&[b"a", b"bc"], &mac));
        assert!(!again.verify(&[b"ab", b"c"], &mac), "a part does not run into the next");
        assert!(!ClusterSecret::generate().unwrap().verify(&[b"a", b"bc"], &mac));
        for wrong in ["", "abc", &"g".repeat(64), &"é".repeat(32)] {
            assert!(ClusterSecret::parse(wrong).is_err(), "{wrong}");
        }
        assert!(!format!("{secret:?}").contains(&secret.reveal()));
    }
}
