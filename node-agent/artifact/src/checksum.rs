//! Whether a file is the one that the job means.

use crate::ArtifactError;
use crate::source::{Checksum, Digest};
use md5::Digest as _;
use std::fs::File;
use std::io::Read;
use std::path::Path;

pub fn verify(path: &Path, wanted: &Checksum) -> Result<(), ArtifactError> {
    let found = digest(path, wanted.kind).map_err(|source| ArtifactError::Io {
        action: "reading",
        path: path.to_owned(),
        source,
    })?;
    if found == wanted.hex {
        return Ok(());
    }
    Err(ArtifactError::Checksum { wanted: wanted.hex.clone(), found })
}

fn digest(path: &Path, kind: Digest) -> std::io::Result<String> {
    let mut file = File::open(path)?;
    let mut buffer = vec![0; 128 << 10];
    let algorithm = match kind {
        Digest::Md5 => return md5_of(&mut file, &mut buffer),
        Digest::Sha1 => &ring::digest::SHA1_FOR_LEGACY_USE_ONLY,
        Digest::Sha256 => &ring::digest::SHA256,
        Digest::Sha512 => &ring::digest::SHA512,
    };
    let mut context = ring::digest::Context::new(algorithm);
    loop {
        match file.read(&mut buffer)? {
            0 => return Ok(hex(context.finish().as_ref())),
            count => context.update(&buffer[..count]),
        }
    }
}

fn md5_of(file: &mut File, buffer: &mut [u8]) -> std::io::Result<String> {
    let mut context = md5::Md5::new();
    loop {
        match file.read(buffer)? {
            0 => return Ok(hex(&context.finalize())),
            count => context.update(&buffer[..count]),
        }
    }
}

fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}
