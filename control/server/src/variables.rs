//! Variables' items: sealed under the servers' key, each bound to its own path so that none can be put in the place of another.

use identity::SealKey;
use model::Variable;
use std::collections::BTreeMap;

/// What a variable's items are sealed for.
pub(crate) fn purpose(namespace: &str, path: &str) -> Vec<u8> {
    format!("meshctl variable 1\0{namespace}\0{path}").into_bytes()
}

/// The error is a sentence for people.
pub(crate) fn open(seal: &SealKey, variable: &Variable) -> Result<BTreeMap<String, String>, String> {
    let bytes = seal.open_as(&purpose(&variable.namespace, &variable.path), &variable.sealed);
    let bytes = bytes.map_err(|error| format!("variable {}: {error}", variable.path))?;
    serde_json::from_slice(&bytes)
        .map_err(|_| format!("variable {}: its items are damaged; set it again", variable.path))
}

#[cfg(test)]
mod tests {
    use super::*;
    use model::{Index, Timestamp};

    #[test]
    fn items_open_under_their_own_path_alone() {
        let seal = SealKey::generate().unwrap();
        let sealed = seal.seal_as(&purpose("default", "a"), br#"{"k":"v"}"#).unwrap();
        let at = |path: &str| Variable {
            namespace: "default".to_owned(),
            path: path.to_owned(),
            sealed: sealed.clone(),
            created_at: Timestamp(1),
            modified_at: Timestamp(1),
            created_at_index: Index(1),
            modified_at_index: Index(1),
        };
        assert_eq!(open(&seal, &at("a")).unwrap()["k"], "v");
        assert!(open(&seal, &at("b")).unwrap_err().contains("unsealed"));
        assert!(open(&SealKey::generate().unwrap(), &at("a")).is_err());
    }
}
