//! The certificate authority and what it signs. A signer takes nothing from a request but its public key: role, id and
//! names are the signer's decision.

use crate::{NoRandomness, SERVER_NAME, random, server_name, sha256};
use model::{NodeId, Role, ServerId};
use rcgen::{
    BasicConstraints, CertificateParams, CertificateSigningRequestParams, DistinguishedName, DnType,
    ExtendedKeyUsagePurpose, IsCa, Issuer, KeyPair, KeyUsagePurpose, PKCS_ECDSA_P256_SHA256, SanType, SerialNumber,
};
use rustls_pki_types::{CertificateDer, PrivatePkcs8KeyDer};
use std::time::Duration;
use time::OffsetDateTime;

/// How long a node's or server's certificate is good for unless configured otherwise.
pub const VALIDITY_DEFAULT: Duration = Duration::from_secs(72 * 3600);

const CA_VALIDITY: Duration = Duration::from_secs(10 * 365 * 24 * 3600);

/// Clocks of a fleet differ; a certificate made just now is good on a machine that lags by this much.
pub(crate) const CLOCK_SKEW: Duration = Duration::from_secs(3600);

/// A P-256 request is about 500 bytes; nothing larger is worth parsing.
const REQUEST_BYTES_MAX: usize = 16 * 1024;

/// Whom a certificate names.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Subject {
    Server(ServerId),
    Agent(NodeId),
}

#[derive(Debug, thiserror::Error)]
pub enum SignError {
    #[error("the certificate request cannot be read; send a PKCS#10 request in PEM, signed with its own P-256 key")]
    Request(#[source] rcgen::Error),
    #[error("the certificate request has {0} bytes, the most is {REQUEST_BYTES_MAX}")]
    RequestSize(usize),
    #[error("the certificate request's key is of another kind than ECDSA P-256")]
    KeyKind,
    #[error("the CA's certificate or key cannot be used")]
    Authority(#[source] rcgen::Error),
    #[error("signing failed")]
    Sign(#[source] rcgen::Error),
    #[error(transparent)]
    Randomness(#[from] NoRandomness),
}

/// The cluster's CA: lives in the memory of servers, and sealed in the replicated state.
pub struct CertificateAuthority {
    certificate: CertificateDer<'static>,
    key: KeyPair,
}

impl CertificateAuthority {
    /// A new CA, good for ten years.
    pub fn create() -> Result<Self, SignError> {
        let key = KeyPair::generate_for(&PKCS_ECDSA_P256_SHA256).map_err(SignError::Authority)?;
        let mut params = base_params("meshctl cluster CA", CA_VALIDITY)?;
        params.is_ca = IsCa::Ca(BasicConstraints::Constrained(0));
        params.key_usages = vec![KeyUsagePurpose::KeyCertSign, KeyUsagePurpose::CrlSign];
        let certificate = params.self_signed(&key).map_err(SignError::Authority)?;
        Ok(Self { certificate: certificate.into(), key })
    }

    /// The CA from its stored certificate and its unsealed key (PKCS#8).
    pub fn load(certificate_der: &[u8], key_der: &[u8]) -> Result<Self, SignError> {
        let key = KeyPair::from_pkcs8_der_and_sign_algo(&PrivatePkcs8KeyDer::from(key_der), &PKCS_ECDSA_P256_SHA256)
            .map_err(SignError::Authority)?;
        let authority = Self { certificate: CertificateDer::from(certificate_der.to_vec()), key };
        authority.issuer()?;
        Ok(authority)
    }

    pub fn certificate_der(&self) -> &CertificateDer<'static> {
        &self.certificate
    }

    pub fn certificate_pem(&self) -> String {
        crate::credentials::certificate_pem(&self.certificate)
    }

    /// PKCS#8, for sealing only.
    pub fn key_der(&self) -> &[u8] {
        self.key.serialized_der()
    }

    /// What join tokens carry.
    pub fn digest(&self) -> [u8; 32] {
        sha256(&self.certificate)
    }

    /// Signs the request's public key for `subject`; every other field of the request is ignored. PEM.
    pub fn sign(&self, request_pem: &str, subject: Subject, validity: Duration) -> Result<String, SignError> {
        if request_pem.len() > REQUEST_BYTES_MAX {
            return Err(SignError::RequestSize(request_pem.len()));
        }
        let request = CertificateSigningRequestParams::from_pem(request_pem).map_err(SignError::Request)?;
        if *rcgen::PublicKeyData::algorithm(&request.public_key) != PKCS_ECDSA_P256_SHA256 {
            return Err(SignError::KeyKind);
        }
        let certificate =
            leaf_params(subject, validity)?.signed_by(&request.public_key, &self.issuer()?).map_err(SignError::Sign)?;
        Ok(certificate.pem())
    }

    fn issuer(&self) -> Result<Issuer<'_, &KeyPair>, SignError> {
        Issuer::from_ca_cert_der(&self.certificate, &self.key).map_err(SignError::Authority)
    }
}

/// A fresh key and the request for its certificate; the key never leaves the machine that made it.
pub struct KeyAndRequest {
    pub key_pem: String,
    pub request_pem: String,
}

impl KeyAndRequest {
    pub fn generate() -> Result<Self, SignError> {
        let key = KeyPair::generate_for(&PKCS_ECDSA_P256_SHA256).map_err(SignError::Sign)?;
        let request = CertificateParams::default().serialize_request(&key).map_err(SignError::Sign)?;
        Ok(Self { key_pem: key.serialize_pem(), request_pem: request.pem().map_err(SignError::Sign)? })
    }
}

impl Subject {
    pub fn role(self) -> Role {
        match self {
            Subject::Server(_) => Role::Server,
            Subject::Agent(_) => Role::Agent,
        }
    }

    /// `mesh://<role>/<id>`.
    pub fn uri(self) -> String {
        match self {
            Subject::Server(id) => format!("mesh://server/{id}"),
            Subject::Agent(id) => format!("mesh://agent/{id}"),
        }
    }
}

/// Only a server's certificate can be presented by a listener; agents have no DNS name and no server usage.
fn leaf_params(subject: Subject, validity: Duration) -> Result<CertificateParams, SignError> {
    let uri = subject.uri();
    let mut params = base_params(&uri, validity)?;
    params.subject_alt_names = vec![SanType::URI(ia5(&uri)?)];
    params.key_usages = vec![KeyUsagePurpose::DigitalSignature];
    params.extended_key_usages = vec![ExtendedKeyUsagePurpose::ClientAuth];
    params.use_authority_key_identifier_extension = true;
    if let Subject::Server(id) = subject {
        params.subject_alt_names.push(SanType::DnsName(ia5(SERVER_NAME)?));
        params.subject_alt_names.push(SanType::DnsName(ia5(&server_name(id))?));
        params.extended_key_usages.push(ExtendedKeyUsagePurpose::ServerAuth);
    }
    Ok(params)
}

fn base_params(name: &str, validity: Duration) -> Result<CertificateParams, SignError> {
    let now = OffsetDateTime::now_utc();
    let mut serial: [u8; 16] = random()?;
    serial[0] = serial[0] & 0x7f | 0x40; // positive and of full length in DER
    let mut params = CertificateParams::default();
    params.distinguished_name = DistinguishedName::new();
    params.distinguished_name.push(DnType::CommonName, name);
    params.serial_number = Some(SerialNumber::from_slice(&serial));
    params.not_before = now - CLOCK_SKEW;
    params.not_after = now + validity;
    Ok(params)
}

fn ia5(text: &str) -> Result<rcgen::string::Ia5String, SignError> {
    text.try_into().map_err(SignError::Sign)
}
