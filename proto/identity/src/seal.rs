//! Sealing of the CA's key: AES-256-GCM under a key that only servers hold, so that a copy of the replicated state (a
//! snapshot, a backup) is not a copy of the CA.

use crate::{NoRandomness, random};
use ring::aead::{AES_256_GCM, Aad, LessSafeKey, NONCE_LEN, Nonce, UnboundKey};
use std::fmt;

/// Bound to every sealed value, so that nothing else sealed under the key is ever taken for the CA.
const PURPOSE: &[u8] = b"meshctl ca key 1";

#[derive(Clone)]
pub struct SealKey([u8; 32]);

#[derive(Debug, thiserror::Error)]
pub enum SealError {
    #[error("a seal key has 32 bytes, this one has {0}; copy seal.key from another server's data directory")]
    KeyLength(usize),
    #[error("it cannot be unsealed: wrong seal key or damaged state; copy seal.key from another server")]
    Open,
    #[error("sealing failed")]
    Seal,
    #[error(transparent)]
    Randomness(#[from] NoRandomness),
}

impl SealKey {
    pub fn generate() -> Result<Self, SealError> {
        Ok(Self(random()?))
    }

    pub fn from_bytes(bytes: &[u8]) -> Result<Self, SealError> {
        bytes.try_into().map(Self).map_err(|_| SealError::KeyLength(bytes.len()))
    }

    pub fn as_bytes(&self) -> &[u8; 32] {
        &self.0
    }

    /// `nonce | ciphertext | tag`.
    pub fn seal(&self, plain: &[u8]) -> Result<Vec<u8>, SealError> {
        self.seal_as(PURPOSE, plain)
    }

    pub fn open(&self, sealed: &[u8]) -> Result<Vec<u8>, SealError> {
        self.open_as(PURPOSE, sealed)
    }

    /// As [`SealKey::seal`], for something else than the CA's key: opened only by who names the same purpose.
    pub fn seal_as(&self, purpose: &[u8], plain: &[u8]) -> Result<Vec<u8>, SealError> {
        let nonce: [u8; NONCE_LEN] = random()?;
        let mut body = plain.to_vec();
        self.cipher()?
            .seal_in_place_append_tag(Nonce::assume_unique_for_key(nonce), Aad::from(purpose), &mut body)
            .map_err(|_| SealError::Seal)?;
        Ok([nonce.as_slice(), &body].concat())
    }

    pub fn open_as(&self, purpose: &[u8], sealed: &[u8]) -> Result<Vec<u8>, SealError> {
        let (nonce, body) = sealed.split_at_checked(NONCE_LEN).ok_or(SealError::Open)?;
        let nonce = Nonce::try_assume_unique_for_key(nonce).map_err(|_| SealError::Open)?;
        let mut body = body.to_vec();
        let plain = self.cipher()?.open_in_place(nonce, Aad::from(purpose), &mut body).map_err(|_| SealError::Open)?;
        Ok(plain.to_vec())
    }

    fn cipher(&self) -> Result<LessSafeKey, SealError> {
        UnboundKey::new(&AES_256_GCM, &self.0).map(LessSafeKey::new).map_err(|_| SealError::KeyLength(self.0.len()))
    }
}

impl fmt::Debug for SealKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("SealKey(hidden)")
    }
}
