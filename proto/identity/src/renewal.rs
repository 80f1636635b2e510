//! Certificates that change while connections live: every handshake presents the newest one, and connections made with an
//! older one go on.

use crate::authority::CLOCK_SKEW;
use crate::credentials::{Credentials, CredentialsError, MtlsConfigs, finish_client, finish_server, provider};
use crate::peer::{PeerError, validity};
use rustls::SignatureScheme;
use rustls::client::ResolvesClientCert;
use rustls::server::{ClientHello, ResolvesServerCert};
use rustls::sign::CertifiedKey;
use std::sync::{Arc, PoisonError, RwLock};
use std::time::{Duration, SystemTime};

/// A machine's credentials, replaceable. Clones share them.
#[derive(Clone, Debug)]
pub struct LiveCredentials {
    shared: Arc<RwLock<Held>>,
}

/// `dialling` shows the leaf alone; `listening` the CA as well, which a joiner looks for.
#[derive(Debug)]
struct Held {
    credentials: Arc<Credentials>,
    dialling: Arc<CertifiedKey>,
    listening: Arc<CertifiedKey>,
}

#[derive(Debug, thiserror::Error)]
pub enum ReplaceError {
    #[error("the new certificate is of {new}, the machine is {own}")]
    OtherIdentity { own: String, new: String },
    #[error("the new certificate comes with another CA")]
    OtherAuthority,
    #[error(transparent)]
    Credentials(#[from] CredentialsError),
    #[error(transparent)]
    Identity(#[from] PeerError),
}

impl LiveCredentials {
    pub fn new(credentials: Credentials) -> Result<Self, CredentialsError> {
        Ok(Self { shared: Arc::new(RwLock::new(Held::new(credentials)?)) })
    }

    /// What handshakes present from now on. A certificate of another machine or cluster changes nothing.
    pub fn replace(&self, credentials: Credentials) -> Result<(), ReplaceError> {
        let old = self.current();
        let ((role, own), (new_role, new)) = (old.identity()?, credentials.identity()?);
        if (role, &own) != (new_role, &new) {
            let name = |role: model::Role, id: &str| format!("{} {id}", role.as_str());
            return Err(ReplaceError::OtherIdentity { own: name(role, &own), new: name(new_role, &new) });
        }
        if old.ca != credentials.ca {
            return Err(ReplaceError::OtherAuthority);
        }
        let held = Held::new(credentials)?;
        *self.shared.write().unwrap_or_else(PoisonError::into_inner) = held;
        Ok(())
    }

    pub fn current(&self) -> Arc<Credentials> {
        Arc::clone(&self.read().credentials)
    }

    /// Both sides of mutual TLS, made once: they follow every replacement.
    pub fn mtls(&self) -> Result<MtlsConfigs, CredentialsError> {
        let credentials = self.current();
        let client = credentials.client_builder()?.with_client_cert_resolver(Arc::new(self.clone()));
        let server = credentials.server_builder()?.with_cert_resolver(Arc::new(self.clone()));
        Ok(MtlsConfigs { server: finish_server(server), client: finish_client(client) })
    }

    fn read(&self) -> std::sync::RwLockReadGuard<'_, Held> {
        self.shared.read().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Held {
    fn new(credentials: Credentials) -> Result<Self, CredentialsError> {
        let certified = |chain| {
            CertifiedKey::from_der(chain, credentials.key(), &provider())
                .map(Arc::new)
                .map_err(CredentialsError::KeyPair)
        };
        let dialling = certified(vec![credentials.leaf.clone()])?;
        let listening = certified(vec![credentials.leaf.clone(), credentials.ca.clone()])?;
        Ok(Self { credentials: Arc::new(credentials), dialling, listening })
    }
}

impl ResolvesServerCert for LiveCredentials {
    fn resolve(&self, _hello: ClientHello<'_>) -> Option<Arc<CertifiedKey>> {
        Some(Arc::clone(&self.read().listening))
    }
}

impl ResolvesClientCert for LiveCredentials {
    fn resolve(&self, _roots: &[&[u8]], _schemes: &[SignatureScheme]) -> Option<Arc<CertifiedKey>> {
        Some(Arc::clone(&self.read().dialling))
    }

    fn has_certs(&self) -> bool {
        true
    }
}

/// When to ask for the next certificate: at half of its life, and up to a tenth later by `jitter` (0 to 1), so that a
/// fleet that joined in one moment does not renew in one.
pub fn renew_at(certificate_der: &[u8], jitter: f64) -> Result<SystemTime, PeerError> {
    let (not_before, not_after) = validity(certificate_der)?;
    // The signer dates certificates back for the sake of lagging clocks.
    let issued = not_before + CLOCK_SKEW;
    let life = not_after.duration_since(issued).unwrap_or_default();
    Ok(issued + life.mul_f64(0.5 + jitter.clamp(0.0, 1.0) / 10.0))
}

/// How long to wait after a renewal that failed: a fifth of what is left, so that a short outage costs one try and a long
/// one no storm. Once it has run out only people can help, and a try a minute tells them.
pub fn retry_renewal_in(certificate_der: &[u8], now: SystemTime) -> Duration {
    let left = validity(certificate_der).ok().and_then(|(_, end)| end.duration_since(now).ok()).unwrap_or_default();
    match left {
        Duration::ZERO => Duration::from_secs(60),
        left => (left / 5).clamp(Duration::from_millis(200), Duration::from_secs(600)),
    }
}
