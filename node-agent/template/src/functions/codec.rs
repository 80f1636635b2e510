//! Encodings and digests.

use super::{Entry, Outcome, bytes, string, text};
use crate::exec::{Context, Fault};
use crate::value::Value;
use base64::Engine;
use base64::engine::GeneralPurpose;
use base64::engine::general_purpose::{STANDARD, URL_SAFE};
use md5::Digest;
use percent_encoding::percent_decode;

pub const TABLE: &[Entry] = &[
    ("base64Encode", 1, 1, |c, args| encode(c, &STANDARD, &args[0])),
    ("base64Decode", 1, 1, |_, args| decode(&STANDARD, &args[0])),
    ("base64URLEncode", 1, 1, |c, args| encode(c, &URL_SAFE, &args[0])),
    ("base64URLDecode", 1, 1, |_, args| decode(&URL_SAFE, &args[0])),
    ("sha256Hex", 1, 1, |_, args| digest(&ring::digest::SHA256, &args[0])),
    ("md5sum", 1, 1, |_, args| text(hex(&md5::Md5::digest(bytes(&args[0])?)))),
    ("hmacSHA256Hex", 2, 2, |_, args| {
        let key = ring::hmac::Key::new(ring::hmac::HMAC_SHA256, bytes(&args[1])?);
        text(hex(ring::hmac::sign(&key, bytes(&args[0])?).as_ref()))
    }),
    ("urlDecode", 1, 1, |_, args| {
        text(percent_decode(string(&args[0])?.replace('+', " ").as_bytes()).collect::<Vec<u8>>())
    }),
];

pub fn encode(context: &mut Context<'_>, engine: &GeneralPurpose, value: &Value) -> Outcome {
    let plain = bytes(value)?;
    context.make(plain.len() * 2)?;
    text(engine.encode(plain))
}

pub fn decode(engine: &GeneralPurpose, value: &Value) -> Outcome {
    let coded: Vec<u8> = bytes(value)?.iter().copied().filter(|byte| !matches!(byte, b'\r' | b'\n')).collect();
    text(engine.decode(coded).map_err(|error| Fault::new(format!("not base64: {error}")))?)
}

pub fn digest(algorithm: &'static ring::digest::Algorithm, value: &Value) -> Outcome {
    text(hex(ring::digest::digest(algorithm, bytes(value)?).as_ref()))
}

fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}
