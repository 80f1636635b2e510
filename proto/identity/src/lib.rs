//! Who is who on the wire: the cluster's certificate authority, certificates that carry role and id, join tokens, the
//! verified first contact, and the TLS that every RPC runs over.
//!
//! ```text
//!   token  mesh1.<ca digest | role | secret>
//!     |
//!   fetch_ca(addr, digest)     TLS whose verifier looks for exactly that CA in the presented chain
//!     |
//!   Join(token, CSR)           ordinary verification with that CA and the name server.mesh
//!     |
//!   Credentials                leaf (mesh://server/<id> or mesh://agent/<node id>) + CA: mTLS from here on
//! ```
//!
//! Only TLS 1.3, only the ring provider. Certificates are short-lived and renewed at half life ([`renew_at`]); handshakes
//! present the newest one ([`LiveCredentials`]). A machine that was away for longer than [`VALIDITY_DEFAULT`] joins again.

mod authority;
mod credentials;
mod first_contact;
mod peer;
mod renewal;
mod rpc;
mod seal;
mod secret;
mod token;

pub use authority::{CertificateAuthority, KeyAndRequest, SignError, Subject, VALIDITY_DEFAULT};
pub use credentials::{Credentials, CredentialsError, MtlsConfigs, anonymous_client_config, certificate_pem};
pub use first_contact::{FirstContactError, fetch_ca};
pub use peer::{PeerError, peer_role, valid_until};
pub use renewal::{LiveCredentials, ReplaceError, renew_at, retry_renewal_in};
pub use rpc::{BadName, RPC_MESSAGE_BYTES_MAX, channel};
pub use seal::{SealError, SealKey};
pub use secret::{
    ClusterSecret, ProvisionalError, SecretError, fetch_leaf, nonce, pinned_client_config, provisional_credentials,
};
pub use token::{Token, TokenError};

use model::ServerId;

/// The DNS name that every server's certificate carries.
pub const SERVER_NAME: &str = "server.mesh";

/// The DNS name of one server: dialling a peer by it refuses every other server, though the CA signed that one as well.
pub fn server_name(id: ServerId) -> String {
    format!("{id}.{SERVER_NAME}")
}

/// SHA-256, the digest that tokens carry of the CA and that the catalog keeps of a token's secret.
pub fn sha256(data: &[u8]) -> [u8; 32] {
    let mut out = [0; 32];
    out.copy_from_slice(ring::digest::digest(&ring::digest::SHA256, data).as_ref());
    out
}

fn random<const N: usize>() -> Result<[u8; N], NoRandomness> {
    let mut bytes = [0; N];
    ring::rand::SecureRandom::fill(&ring::rand::SystemRandom::new(), &mut bytes).map_err(|_| NoRandomness)?;
    Ok(bytes)
}

/// The kernel gave no random bytes (getrandom failed): nothing secret can be made on this machine now.
#[derive(Debug, thiserror::Error)]
#[error("the system gives no random bytes; check that getrandom(2) is not blocked by a seccomp filter")]
pub struct NoRandomness;

#[cfg(test)]
mod tests;
