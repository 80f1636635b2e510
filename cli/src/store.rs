//! `meshctl kv` and `meshctl var`: what people and tasks keep in the cluster.

use crate::client::{Endpoint, part};
use crate::json::{entries, list, print_pretty, text};
use crate::table::{block, columns, row};
use anyhow::{Context, Result, bail, ensure};
use clap::Subcommand;
use serde_json::{Map, Value, json};
use std::io::{Read, Write};

#[derive(Subcommand)]
pub enum KvCommand {
    /// Print a key's value, as it is
    Get { key: String },
    /// Set a key; `-` reads the value from standard input, `@file` from a file
    Put {
        key: String,
        #[arg(default_value = "")]
        value: String,
        /// Only if the key changed last at this index; 0: only if there is none
        #[arg(long, value_name = "INDEX")]
        cas: Option<u64>,
        /// A number that is kept with the value
        #[arg(long, default_value_t = 0)]
        flags: u64,
    },
    /// Delete a key
    Delete {
        #[arg(default_value = "")]
        key: String,
        /// Every key that begins with it
        #[arg(long)]
        recurse: bool,
        /// Only if the key changed last at this index
        #[arg(long, value_name = "INDEX", conflicts_with = "recurse")]
        cas: Option<u64>,
    },
    /// List keys
    List {
        #[arg(default_value = "")]
        prefix: String,
        /// With indices and flags
        #[arg(long)]
        detailed: bool,
    },
}

#[derive(Subcommand)]
pub enum VarCommand {
    /// Show a variable with its items
    Get {
        path: String,
        /// Print one item's value alone
        #[arg(long, value_name = "NAME")]
        item: Option<String>,
        #[arg(long)]
        json: bool,
    },
    /// Set a variable's items, in the place of those it had
    Put {
        path: String,
        #[arg(value_name = "NAME=VALUE", required = true)]
        items: Vec<String>,
        /// Only if the variable changed last at this index; 0: only if there is none
        #[arg(long, value_name = "INDEX")]
        check_index: Option<u64>,
        /// Add to the items it has
        #[arg(long)]
        merge: bool,
    },
    /// List variables
    List {
        #[arg(default_value = "")]
        prefix: String,
        #[arg(long)]
        json: bool,
    },
    /// Delete a variable
    Purge {
        path: String,
        /// Only if the variable changed last at this index
        #[arg(long, value_name = "INDEX")]
        check_index: Option<u64>,
    },
}

pub fn kv(endpoint: &Endpoint, command: KvCommand) -> Result<()> {
    match command {
        KvCommand::Get { key } => {
            let mut value = Vec::new();
            let mut body =
                endpoint.open(&format!("{}?raw", key_path(&key))).with_context(|| format!("no key {key:?}"))?;
            body.read_to_end(&mut value).context("the answer broke off")?;
            std::io::stdout().write_all(&value)?;
            if std::io::IsTerminal::is_terminal(&std::io::stdout()) {
                println!();
            }
        }
        KvCommand::Put { key, value, cas, flags } => {
            ensure!(!key.is_empty(), "key: it is empty");
            let query = query(cas, "cas");
            let path = format!("{}?flags={flags}{}", key_path(&key), query.replacen('?', "&", 1));
            let done: Value = endpoint.put_bytes(&path, &value_of(&value)?)?;
            ensure!(done == true, "{key:?} has changed since that index; read it again");
            println!("Success! Data written to: {key}");
        }
        KvCommand::Delete { key, recurse, cas } => {
            ensure!(recurse || !key.is_empty(), "key: it is empty; -recurse deletes every key");
            let query = if recurse { "?recurse".to_owned() } else { query(cas, "cas") };
            let done: Value = endpoint.delete(&format!("{}{query}", key_path(&key)))?;
            ensure!(done == true, "{key:?} has changed since that index; read it again");
            println!("Success! Deleted {}: {key}", if recurse { "keys with prefix" } else { "key" });
        }
        KvCommand::List { prefix, detailed: false } => {
            let keys = endpoint.get::<Value>(&format!("{}?keys", key_path(&prefix))).unwrap_or(json!([]));
            list(&keys).iter().filter_map(Value::as_str).for_each(|key| println!("{key}"));
        }
        KvCommand::List { prefix, detailed: true } => {
            let found = endpoint.get::<Value>(&format!("{}?recurse", key_path(&prefix))).unwrap_or(json!([]));
            let mut rows = vec![row(["Key", "Flags", "Create Index", "Modify Index"])];
            for entry in list(&found) {
                rows.push(["Key", "Flags", "CreateIndex", "ModifyIndex"].map(|field| text(entry, field)).to_vec());
            }
            println!("{}", columns(&rows));
        }
    }
    Ok(())
}

pub fn var(endpoint: &Endpoint, command: VarCommand) -> Result<()> {
    match command {
        VarCommand::Get { path, item, json } => {
            let found: Value = endpoint.get(&var_path(&path))?;
            match item {
                Some(name) => match &found["Items"][&name] {
                    Value::String(value) => println!("{value}"),
                    _ => bail!("{path} has no item {name:?}"),
                },
                None if json => print_pretty(&found),
                None => println!("{}", described(&found)),
            }
        }
        VarCommand::Put { path, items, check_index, merge } => {
            let mut all = match merge {
                true => items_of(endpoint, &path),
                false => Map::new(),
            };
            for item in &items {
                let (name, value) =
                    item.split_once('=').with_context(|| format!("`{item}` has no `=`; write NAME=VALUE"))?;
                all.insert(name.to_owned(), Value::String(value.to_owned()));
            }
            let body = json!({ "Namespace": "default", "Path": path, "Items": all });
            let target = format!("{}{}", var_path(&path), query(check_index, "cas"));
            let set: Value = endpoint.put(&target, &body)?;
            println!("{}", described(&set));
        }
        VarCommand::List { prefix, json } => {
            let found: Value = endpoint.get(&format!("/v1/vars?prefix={}", part(&prefix)))?;
            if json { print_pretty(&found) } else { println!("{}", variables(&found)) }
        }
        VarCommand::Purge { path, check_index } => {
            endpoint.delete_silently(&format!("{}{}", var_path(&path), query(check_index, "cas")))?;
            println!("Successfully purged variable \"{path}\"!");
        }
    }
    Ok(())
}

fn items_of(endpoint: &Endpoint, path: &str) -> Map<String, Value> {
    let found = endpoint.get::<Value>(&var_path(path)).ok();
    found.and_then(|found| found["Items"].as_object().cloned()).unwrap_or_default()
}

fn described(variable: &Value) -> String {
    let fields = ["Namespace", "Path", "CreateIndex", "ModifyIndex"];
    let head: Vec<(&str, String)> = fields.iter().map(|field| (*field, text(variable, field))).collect();
    let items: Vec<(&str, String)> =
        entries(&variable["Items"]).map(|(name, _)| (name.as_str(), text(&variable["Items"], name))).collect();
    format!("{}\n\nItems\n{}", block(&head), block(&items))
}

fn variables(found: &Value) -> String {
    let mut rows = vec![row(["Namespace", "Path", "Modify Index"])];
    for variable in list(found) {
        rows.push(["Namespace", "Path", "ModifyIndex"].map(|field| text(variable, field)).to_vec());
    }
    columns(&rows)
}

/// Slashes part a key's path; all else in it is the key's own.
fn key_path(key: &str) -> String {
    format!("/v1/kv/{}", segments(key))
}

fn var_path(path: &str) -> String {
    format!("/v1/var/{}", segments(path))
}

fn segments(path: &str) -> String {
    path.split('/').map(|segment| part(segment).to_string()).collect::<Vec<_>>().join("/")
}

fn query(value: Option<u64>, name: &str) -> String {
    value.map(|value| format!("?{name}={value}")).unwrap_or_default()
}

fn value_of(argument: &str) -> Result<Vec<u8>> {
    match argument.strip_prefix('@') {
        Some(file) => std::fs::read(file).with_context(|| format!("cannot read {file}")),
        None if argument == "-" => {
            let mut value = Vec::new();
            std::io::stdin().read_to_end(&mut value).context("cannot read standard input")?;
            Ok(value)
        }
        None => Ok(argument.as_bytes().to_vec()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_key_keeps_its_slashes_and_nothing_else_of_a_url() {
        assert_eq!(key_path("app/a b?c#d"), "/v1/kv/app/a%20b%3Fc%23d");
        assert_eq!(query(Some(7), "cas"), "?cas=7");
        assert_eq!(query(None, "cas"), "");
    }
}
