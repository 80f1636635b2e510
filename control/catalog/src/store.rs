//! Keys, variables and the settings of autopilot: what changes only at the word of a person or a task.

use crate::{At, Catalog};
use model::store::{KV_VALUE_BYTES_MAX, VARIABLE_BYTES_MAX, key_problem, path_problem};
use model::{Autopilot, Index, KvChange, KvEntry, Refusal, Table, Variable, VariableChange};
use std::sync::Arc;

/// What sealing adds to a variable's items.
const SEAL_BYTES_MAX: usize = 256;
/// So that one command of a runaway script cannot fill every server's memory.
const KEYS_MAX: usize = 1 << 20;

impl Catalog {
    pub fn kv(&self, key: &str) -> Option<&Arc<KvEntry>> {
        self.kv.get(key)
    }

    /// Every entry whose key begins with `prefix`, in the order of keys.
    pub fn kv_prefix<'a>(&'a self, prefix: &'a str) -> impl Iterator<Item = &'a Arc<KvEntry>> + 'a {
        let from = self.kv.range(prefix.to_owned()..);
        from.take_while(move |(key, _)| key.starts_with(prefix)).map(|(_, entry)| entry)
    }

    /// The index that changed last what [`Catalog::kv_prefix`] shows. A deletion moves it for every prefix.
    pub fn kv_prefix_index(&self, prefix: &str) -> Index {
        let newest = self.kv_prefix(prefix).map(|entry| entry.modified_at_index).max();
        newest.unwrap_or_default().max(self.kv_deleted)
    }

    pub fn variable(&self, namespace: &str, path: &str) -> Option<&Arc<Variable>> {
        self.variables.get(&(namespace.to_owned(), path.to_owned()))
    }

    /// In the order of namespace and path.
    pub fn variables(&self) -> impl Iterator<Item = &Arc<Variable>> {
        self.variables.values()
    }

    pub fn autopilot(&self) -> &Autopilot {
        &self.autopilot
    }

    pub(crate) fn change_kv(&mut self, at: At, change: &KvChange) -> Result<(), Refusal> {
        match change {
            KvChange::Set { key, value, flags, cas } => self.set_key(at, key, value, *flags, *cas)?,
            KvChange::Delete { key, cas } => {
                check_cas(key, *cas, self.kv.get(key).map(|entry| entry.modified_at_index))?;
                self.delete_keys(at, vec![key.clone()]);
            }
            KvChange::DeletePrefix { prefix } => {
                let keys = self.kv_prefix(prefix).map(|entry| entry.key.clone()).collect();
                self.delete_keys(at, keys);
            }
        }
        Ok(())
    }

    fn set_key(&mut self, at: At, key: &str, value: &[u8], flags: u64, cas: Option<Index>) -> Result<(), Refusal> {
        if let Some(problem) = key_problem(key) {
            return Err(invalid(key, problem));
        }
        if value.len() > KV_VALUE_BYTES_MAX {
            return Err(invalid(key, "has a value of more than 512 KiB"));
        }
        let known = self.kv.get(key);
        check_cas(key, cas, known.map(|entry| entry.modified_at_index))?;
        if known.is_none() && self.kv.len() >= KEYS_MAX {
            return Err(invalid(key, "is one key too many: 1048576 are kept at most; delete some first"));
        }
        let created_at_index = known.map_or(at.index, |entry| entry.created_at_index);
        let modified_at_index = at.index;
        let entry = KvEntry { key: key.to_owned(), value: value.to_vec(), flags, created_at_index, modified_at_index };
        self.kv.insert(key.to_owned(), Arc::new(entry));
        self.touch(Table::Kv, at);
        Ok(())
    }

    fn delete_keys(&mut self, at: At, keys: Vec<String>) {
        let before = self.kv.len();
        keys.iter().for_each(|key| drop(self.kv.remove(key)));
        if self.kv.len() < before {
            self.kv_deleted = at.index;
            self.touch(Table::Kv, at);
        }
    }

    pub(crate) fn change_variable(&mut self, at: At, change: &VariableChange) -> Result<(), Refusal> {
        let (VariableChange::Set { namespace, path, cas, .. } | VariableChange::Delete { namespace, path, cas }) =
            change;
        let key = (namespace.clone(), path.clone());
        let known = self.variables.get(&key);
        check_cas(path, *cas, known.map(|variable| variable.modified_at_index))?;
        match change {
            VariableChange::Set { sealed, .. } => {
                let variable = written(at, &key, sealed, known.map(AsRef::as_ref))?;
                self.variables.insert(key, Arc::new(variable));
            }
            VariableChange::Delete { .. } if known.is_none() => return Ok(()),
            VariableChange::Delete { .. } => drop(self.variables.remove(&key)),
        }
        self.touch(Table::Variables, at);
        Ok(())
    }

    pub(crate) fn set_autopilot(&mut self, at: At, wanted: &Autopilot, cas: Option<Index>) -> Result<(), Refusal> {
        check_cas("autopilot", cas, Some(self.autopilot.modified_at_index))?;
        self.autopilot = Autopilot { modified_at_index: at.index, ..wanted.clone() };
        self.touch(Table::Cluster, at);
        Ok(())
    }
}

pub(crate) fn keyed(variable: Variable) -> ((String, String), Arc<Variable>) {
    ((variable.namespace.clone(), variable.path.clone()), Arc::new(variable))
}

fn written(at: At, key: &(String, String), sealed: &[u8], known: Option<&Variable>) -> Result<Variable, Refusal> {
    let (namespace, path) = key;
    if let Some(problem) = key_problem(namespace) {
        return Err(invalid(namespace, problem));
    }
    if let Some(problem) = path_problem(path) {
        return Err(invalid(path, problem));
    }
    if sealed.len() > VARIABLE_BYTES_MAX + SEAL_BYTES_MAX {
        return Err(invalid(path, "has items of more than 64 KiB"));
    }
    Ok(Variable {
        namespace: namespace.clone(),
        path: path.clone(),
        sealed: sealed.to_vec(),
        created_at: known.map_or(at.time, |known| known.created_at),
        modified_at: at.time,
        created_at_index: known.map_or(at.index, |known| known.created_at_index),
        modified_at_index: at.index,
    })
}

/// `current` is absent for what does not exist, which counts as 0.
fn check_cas(name: &str, cas: Option<Index>, current: Option<Index>) -> Result<(), Refusal> {
    let current = current.unwrap_or_default();
    match cas {
        Some(expected) if expected != current => Err(Refusal::CasMismatch { name: name.to_owned(), expected, current }),
        _ => Ok(()),
    }
}

fn invalid(name: &str, reason: &str) -> Refusal {
    let shown = name.chars().take(80).collect();
    Refusal::StoreInvalid { name: shown, reason: reason.to_owned() }
}
