//! Join tokens: `mesh1.<base64url(CA digest 32 | role 1 | secret 16)>`.

use crate::{NoRandomness, random, sha256};
use base64::Engine;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use model::Role;
use std::fmt;

const PREFIX: &str = "mesh1.";
const BODY_LEN: usize = 32 + 1 + 16;
const TEXT_LEN_MAX: usize = 256;

/// The right to join once (or as often as the catalog's record of it says), and the CA that a joiner must find.
#[derive(Clone, PartialEq, Eq)]
pub struct Token {
    pub ca_digest: [u8; 32],
    pub role: Role,
    secret: [u8; 16],
}

#[derive(Debug, thiserror::Error, PartialEq, Eq)]
pub enum TokenError {
    #[error("a join token starts with `{PREFIX}`; make one with `meshctl token create`")]
    NoToken,
    #[error("the token has version `{0}`, this build knows `mesh1`; use the same release on both sides")]
    Version(String),
    #[error("the token is not base64url: it was changed in transit; copy it again whole")]
    Garbled,
    #[error("the token has {found} of {BODY_LEN} bytes; copy it again whole")]
    Length { found: usize },
    #[error("the token names an unknown role ({0}); use the same release on both sides")]
    Role(u8),
}

impl Token {
    pub fn create(ca_digest: [u8; 32], role: Role) -> Result<Self, NoRandomness> {
        Ok(Self { ca_digest, role, secret: random()? })
    }

    pub fn parse(text: &str) -> Result<Self, TokenError> {
        let text = text.trim();
        let body = text.strip_prefix(PREFIX).ok_or_else(|| wrong_prefix(text))?;
        if body.len() > TEXT_LEN_MAX {
            return Err(TokenError::Length { found: body.len() / 4 * 3 });
        }
        let bytes = URL_SAFE_NO_PAD.decode(body).map_err(|_| TokenError::Garbled)?;
        let bytes: [u8; BODY_LEN] = bytes.try_into().map_err(|b: Vec<u8>| TokenError::Length { found: b.len() })?;
        let mut token = Self { ca_digest: [0; 32], role: role_of(bytes[32])?, secret: [0; 16] };
        token.ca_digest.copy_from_slice(&bytes[..32]);
        token.secret.copy_from_slice(&bytes[33..]);
        Ok(token)
    }

    /// The whole token; shown once to whoever asked for it.
    pub fn reveal(&self) -> String {
        let mut bytes = Vec::with_capacity(BODY_LEN);
        bytes.extend_from_slice(&self.ca_digest);
        bytes.push(role_byte(self.role));
        bytes.extend_from_slice(&self.secret);
        format!("{PREFIX}{}", URL_SAFE_NO_PAD.encode(bytes))
    }

    /// What the catalog keeps: the secret has 128 random bits, so a plain digest cannot be searched.
    pub fn digest(&self) -> [u8; 32] {
        sha256(&self.secret)
    }
}

impl fmt::Debug for Token {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Token({}, secret hidden)", self.role.as_str())
    }
}

fn wrong_prefix(text: &str) -> TokenError {
    match text.split_once('.') {
        Some((version, _)) if is_version(version) => TokenError::Version(version.to_owned()),
        _ => TokenError::NoToken,
    }
}

fn is_version(text: &str) -> bool {
    let digits = text.strip_prefix("mesh").unwrap_or_default();
    (1..=4).contains(&digits.len()) && digits.bytes().all(|byte| byte.is_ascii_digit())
}

fn role_byte(role: Role) -> u8 {
    match role {
        Role::Server => 1,
        Role::Agent => 2,
    }
}

fn role_of(byte: u8) -> Result<Role, TokenError> {
    match byte {
        1 => Ok(Role::Server),
        2 => Ok(Role::Agent),
        other => Err(TokenError::Role(other)),
    }
}
