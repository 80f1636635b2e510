//! What people and tasks keep in the cluster: keys with values as Consul's KV has them, and variables as Nomad's, whose items
//! are sealed before they are proposed so that neither log nor snapshot holds a secret in the clear.

use crate::ids::Index;
use crate::time::Timestamp;

/// Consul's limit for a value.
pub const KV_VALUE_BYTES_MAX: usize = 512 << 10;
/// Keys and paths are walked by prefix and shown in lists.
pub const KEY_BYTES_MAX: usize = 512;
/// Nomad's limit for a variable's items.
pub const VARIABLE_BYTES_MAX: usize = 64 << 10;

/// A key's value.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct KvEntry {
    pub key: String,
    pub value: Vec<u8>,
    /// Opaque to the cluster.
    pub flags: u64,
    pub created_at_index: Index,
    pub modified_at_index: Index,
}

/// A change of keys. `cas`: refused unless the key changed last at this index; 0 is for a key that does not exist.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum KvChange {
    Set {
        key: String,
        value: Vec<u8>,
        flags: u64,
        cas: Option<Index>,
    },
    Delete {
        key: String,
        cas: Option<Index>,
    },
    /// Every key that begins with this.
    DeletePrefix {
        prefix: String,
    },
}

/// A variable as it rests: who reads it needs the servers' seal key.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Variable {
    pub namespace: String,
    pub path: String,
    pub sealed: Vec<u8>,
    pub created_at: Timestamp,
    pub modified_at: Timestamp,
    pub created_at_index: Index,
    pub modified_at_index: Index,
}

/// A change of one variable. `cas` as for keys.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum VariableChange {
    Set { namespace: String, path: String, sealed: Vec<u8>, cas: Option<Index> },
    Delete { namespace: String, path: String, cas: Option<Index> },
}

/// How the leader looks after the servers; names and defaults as Nomad's autopilot.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Autopilot {
    /// Servers that are dead for `dead_server_after` are removed, if enough are left to agree on it.
    pub cleanup_dead_servers: bool,
    /// A server not heard of for this long is not healthy.
    pub last_contact_ms_max: u64,
    /// A server that lacks more entries than this is not healthy.
    pub trailing_logs_max: u64,
    /// Never fewer voters than this by clean-up.
    pub quorum_min: u32,
    /// A learner has to be healthy for this long before it votes.
    pub stabilization_ms: u64,
    /// A server not heard of for this long is dead.
    pub dead_server_after_ms: u64,
    pub modified_at_index: Index,
}

impl Default for Autopilot {
    fn default() -> Self {
        Self {
            cleanup_dead_servers: true,
            last_contact_ms_max: 200,
            trailing_logs_max: 250,
            quorum_min: 0,
            stabilization_ms: 10_000,
            dead_server_after_ms: 600_000,
            modified_at_index: Index(0),
        }
    }
}

/// Why a key or path cannot be used, if it cannot. `/` separates; the empty string is no key.
pub fn key_problem(key: &str) -> Option<&'static str> {
    if key.is_empty() {
        Some("is empty")
    } else if key.len() > KEY_BYTES_MAX {
        Some("is longer than 512 bytes")
    } else if key.chars().any(char::is_control) {
        Some("has control characters")
    } else {
        None
    }
}

/// As [`key_problem`], for a variable's path: Nomad takes letters, digits and `-_~/` only.
pub fn path_problem(path: &str) -> Option<&'static str> {
    let usable = |byte: u8| byte.is_ascii_alphanumeric() || matches!(byte, b'-' | b'_' | b'~' | b'/');
    match key_problem(path) {
        Some(problem) => Some(problem),
        None if path.len() > 128 => Some("is longer than 128 bytes"),
        None if !path.bytes().all(usable) => Some("has other characters than letters, digits and `-_~/`"),
        None if path.starts_with('/') || path.ends_with('/') || path.contains("//") => Some("has an empty part"),
        None if path == "nomad"
            || path.starts_with("nomad/") && path != "nomad/jobs" && !path.starts_with("nomad/jobs/") =>
        {
            Some("is reserved; below `nomad/`, only `nomad/jobs` is open")
        }
        None => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn paths_are_as_nomads() {
        for good in ["a", "app/db", "nomad/jobs", "nomad/jobs/web/group", "A-1_~z"] {
            assert_eq!(path_problem(good), None, "{good}");
        }
        for bad in ["", "/a", "a/", "a//b", "a b", "nomad", "nomad/x", "nomad/jobsx", "ä", "a.b"] {
            assert!(path_problem(bad).is_some(), "{bad}");
        }
        assert!(path_problem(&"a".repeat(129)).is_some());
        assert!(key_problem("any key, really").is_none() && key_problem("a\nb").is_some());
    }
}
