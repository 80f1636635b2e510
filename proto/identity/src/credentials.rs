//! A machine's certificate, key and CA, and the rustls configurations made of them.

use crate::peer::{PeerError, peer_role};
use model::Role;
use rustls::server::{NoServerSessionStorage, WebPkiClientVerifier};
use rustls::{ClientConfig, RootCertStore, ServerConfig};
use rustls_pki_types::pem::PemObject;
use rustls_pki_types::{CertificateDer, PrivateKeyDer};
use std::sync::Arc;

const ALPN: &[u8] = b"h2";

/// Far above any chain of ours; stops a huge file early.
const PEM_BYTES_MAX: usize = 64 * 1024;

#[derive(Debug, thiserror::Error)]
pub enum CredentialsError {
    #[error("the {0} PEM cannot be read; join the cluster again to get a new one")]
    Pem(&'static str, #[source] rustls_pki_types::pem::Error),
    #[error("the {0} PEM has {1} bytes, the most is {PEM_BYTES_MAX}")]
    Size(&'static str, usize),
    #[error("the CA certificate cannot be used as a root")]
    Root(#[source] rustls::Error),
    #[error("the certificate verifier cannot be made")]
    Verifier(#[source] rustls::server::VerifierBuilderError),
    #[error("certificate and key do not belong together; join the cluster again to get new ones")]
    KeyPair(#[source] rustls::Error),
    #[error(transparent)]
    Identity(#[from] PeerError),
}

/// What a machine proves itself with.
#[derive(Debug)]
pub struct Credentials {
    pub ca: CertificateDer<'static>,
    pub leaf: CertificateDer<'static>,
    key: PrivateKeyDer<'static>,
}

/// Both sides of mutual TLS.
#[derive(Clone)]
pub struct MtlsConfigs {
    pub server: Arc<ServerConfig>,
    pub client: Arc<ClientConfig>,
}

impl Credentials {
    pub fn from_pem(ca_pem: &str, certificate_pem: &str, key_pem: &str) -> Result<Self, CredentialsError> {
        Ok(Self {
            ca: certificate_from_pem("CA", ca_pem)?,
            leaf: certificate_from_pem("certificate", certificate_pem)?,
            key: PrivateKeyDer::from_pem_slice(sized("key", key_pem)?).map_err(|e| CredentialsError::Pem("key", e))?,
        })
    }

    /// The role and id that the certificate gives.
    pub fn identity(&self) -> Result<(Role, String), PeerError> {
        peer_role(&self.leaf)
    }

    /// For dialling: presents the leaf, trusts the cluster's CA alone.
    pub fn client_config(&self) -> Result<Arc<ClientConfig>, CredentialsError> {
        let config = self.client_builder()?.with_client_auth_cert(vec![self.leaf.clone()], self.key());
        Ok(finish_client(config.map_err(CredentialsError::KeyPair)?))
    }

    /// For listening: presents leaf and CA (a joiner looks for the CA), and verifies a client's certificate when there is
    /// one. Calls that need one must refuse its absence: only Join goes without.
    pub fn server_config(&self) -> Result<Arc<ServerConfig>, CredentialsError> {
        let config = self.server_builder()?.with_single_cert(vec![self.leaf.clone(), self.ca.clone()], self.key());
        Ok(finish_server(config.map_err(CredentialsError::KeyPair)?))
    }

    pub fn mtls(&self) -> Result<MtlsConfigs, CredentialsError> {
        Ok(MtlsConfigs { server: self.server_config()?, client: self.client_config()? })
    }

    pub(crate) fn key(&self) -> PrivateKeyDer<'static> {
        self.key.clone_key()
    }

    pub(crate) fn client_builder(
        &self,
    ) -> Result<rustls::ConfigBuilder<ClientConfig, rustls::client::WantsClientCert>, CredentialsError> {
        client_builder(&self.ca)
    }

    pub(crate) fn server_builder(
        &self,
    ) -> Result<rustls::ConfigBuilder<ServerConfig, rustls::server::WantsServerCert>, CredentialsError> {
        let verifier = WebPkiClientVerifier::builder_with_provider(Arc::new(roots(&self.ca)?), provider())
            .allow_unauthenticated()
            .build()
            .map_err(CredentialsError::Verifier)?;
        Ok(ServerConfig::builder_with_provider(provider())
            .with_protocol_versions(&[&rustls::version::TLS13])
            .expect("ring's provider has TLS 1.3 suites")
            .with_client_cert_verifier(verifier))
    }
}

/// For the Join call: verifies the server with the CA that [`crate::fetch_ca`] brought, shows no certificate.
pub fn anonymous_client_config(ca: &CertificateDer<'static>) -> Result<Arc<ClientConfig>, CredentialsError> {
    Ok(finish_client(client_builder(ca)?.with_no_client_auth()))
}

pub(crate) fn provider() -> Arc<rustls::crypto::CryptoProvider> {
    Arc::new(rustls::crypto::ring::default_provider())
}

pub(crate) fn roots(ca: &CertificateDer<'static>) -> Result<RootCertStore, CredentialsError> {
    let mut roots = RootCertStore::empty();
    roots.add(ca.clone()).map_err(CredentialsError::Root)?;
    Ok(roots)
}

pub fn certificate_pem(der: &[u8]) -> String {
    use base64::Engine;
    let body = base64::engine::general_purpose::STANDARD.encode(der);
    let lines: Vec<&str> =
        body.as_bytes().chunks(64).map(|line| std::str::from_utf8(line).expect("base64 is ASCII")).collect();
    format!("-----BEGIN CERTIFICATE-----\n{}\n-----END CERTIFICATE-----\n", lines.join("\n"))
}

fn client_builder(
    ca: &CertificateDer<'static>,
) -> Result<rustls::ConfigBuilder<ClientConfig, rustls::client::WantsClientCert>, CredentialsError> {
    Ok(ClientConfig::builder_with_provider(provider())
        .with_protocol_versions(&[&rustls::version::TLS13])
        .expect("ring's provider has TLS 1.3 suites")
        .with_root_certificates(roots(ca)?))
}

pub(crate) fn finish_server(mut config: ServerConfig) -> Arc<ServerConfig> {
    config.alpn_protocols = vec![ALPN.to_vec()];
    // A resumed session would skip the check of the client's expiry.
    config.session_storage = Arc::new(NoServerSessionStorage {});
    config.send_tls13_tickets = 0;
    Arc::new(config)
}

pub(crate) fn finish_client(mut config: ClientConfig) -> Arc<ClientConfig> {
    config.alpn_protocols = vec![ALPN.to_vec()];
    config.resumption = rustls::client::Resumption::disabled();
    Arc::new(config)
}

fn certificate_from_pem(what: &'static str, pem: &str) -> Result<CertificateDer<'static>, CredentialsError> {
    CertificateDer::from_pem_slice(sized(what, pem)?).map_err(|error| CredentialsError::Pem(what, error))
}

fn sized<'a>(what: &'static str, pem: &'a str) -> Result<&'a [u8], CredentialsError> {
    match pem.len() {
        0..=PEM_BYTES_MAX => Ok(pem.as_bytes()),
        len => Err(CredentialsError::Size(what, len)),
    }
}
