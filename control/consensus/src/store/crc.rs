//! Records carry a checksum over their key and value: redb's page checksums are verified at open only, and a record that
//! ended up under another key would pass them.

/// `crc32(key, value) | value`.
pub(super) fn seal(key: &[u8], value: &[u8]) -> Vec<u8> {
    let mut record = checksum(key, value).to_le_bytes().to_vec();
    record.extend_from_slice(value);
    record
}

/// The value, or `None` if it is not what was sealed under this key.
pub(super) fn open<'a>(key: &[u8], record: &'a [u8]) -> Option<&'a [u8]> {
    let (sum, value) = record.split_first_chunk::<4>()?;
    (u32::from_le_bytes(*sum) == checksum(key, value)).then_some(value)
}

fn checksum(key: &[u8], value: &[u8]) -> u32 {
    let mut hasher = crc32fast::Hasher::new();
    hasher.update(key);
    hasher.update(value);
    hasher.finalize()
}
