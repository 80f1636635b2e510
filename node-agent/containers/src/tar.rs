//! As much of the tar format (POSIX.1-1988 ustar) as images and copied files need.

use std::io;

const BLOCK: usize = 512;

/// The header of a regular file, executable for all.
pub(crate) fn header(name: &str, bytes: u64) -> io::Result<[u8; BLOCK]> {
    let too_long = || io::Error::new(io::ErrorKind::InvalidInput, "a name or size too long for tar");
    let mut block = [0; BLOCK];
    let mut put = |at: usize, text: &[u8]| block[at..at + text.len()].copy_from_slice(text);
    if name.len() > 99 || bytes >= 1 << 33 {
        return Err(too_long());
    }
    put(0, name.as_bytes());
    put(100, b"0000755\0");
    put(108, b"0000000\0");
    put(116, b"0000000\0");
    put(124, format!("{bytes:011o}\0").as_bytes());
    put(136, b"00000000000\0");
    // The checksum counts itself as blanks.
    put(148, b"        ");
    put(156, b"0");
    put(257, b"ustar\x0000");
    let sum: u32 = block.iter().map(|byte| u32::from(*byte)).sum();
    block[148..156].copy_from_slice(format!("{sum:06o}\0 ").as_bytes());
    Ok(block)
}

/// What fills a file's last block, and the two empty blocks that end an archive.
pub(crate) fn tail(bytes: u64) -> Vec<u8> {
    let rest = usize::try_from(bytes % BLOCK as u64).unwrap_or(0);
    vec![0; (BLOCK - rest) % BLOCK + 2 * BLOCK]
}

/// The content of an archive's first regular file.
pub(crate) fn first_file(archive: &[u8]) -> Option<&[u8]> {
    let mut rest = archive;
    while rest.len() >= BLOCK && rest[0] != 0 {
        let digits = std::str::from_utf8(&rest[124..136]).ok()?;
        let size = usize::from_str_radix(digits.trim_matches(['\0', ' ']), 8).ok()?;
        let padded = size.checked_next_multiple_of(BLOCK)?;
        if matches!(rest[156], b'0' | 0) {
            return rest.get(BLOCK..BLOCK.checked_add(size)?);
        }
        rest = rest.get(BLOCK.checked_add(padded)?..)?;
    }
    None
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_written_is_read_back() {
        let mut archive = header("pause", 5).expect("fits").to_vec();
        archive.extend_from_slice(b"hello");
        archive.extend(tail(5));
        assert_eq!(archive.len() % BLOCK, 0);
        assert_eq!(first_file(&archive), Some(&b"hello"[..]));
    }

    #[test]
    fn broken_archives_have_no_file() {
        let mut block = header("a", 600).expect("fits").to_vec();
        assert_eq!(first_file(&block), None);
        block[124..136].copy_from_slice(b"zzzzzzzzzzzz");
        assert_eq!(first_file(&block), None);
        assert_eq!(first_file(&[]), None);
        assert_eq!(first_file(&[1; 100]), None);
    }
}
