//! Keys as Consul's KV answers them, and variables as Nomad's: whose items this server seals and opens.

use super::answer::{Answer, HttpError, json};
use super::jobs::read_body;
use super::options::Options;
use crate::member::{Member, ProposeError, shown_index};
use axum::body::Bytes;
use axum::extract::{Path, State};
use axum::http::{HeaderValue, StatusCode, header};
use axum::response::{IntoResponse, Response};
use base64::Engine as _;
use base64::engine::general_purpose::STANDARD as BASE64;
use catalog::Catalog;
use model::store::VARIABLE_BYTES_MAX;
use model::{Command, Index, KvChange, KvEntry, Refusal, Table, Variable, VariableChange};
use serde::Deserialize;
use serde_json::{Value, json as json_value};
use std::collections::BTreeMap;
use std::sync::Arc;

type Shared = State<Arc<Member>>;

/// There is only this one yet.
const NAMESPACE: &str = "default";
/// Of Consul's parameters, those that need sessions or other clusters.
const KV_UNBUILT: [&str; 4] = ["acquire", "release", "dc", "partition"];

pub(super) async fn key(State(member): Shared, Path(key): Path<String>, options: Options) -> Answer {
    check_kv(&options)?;
    if is_flag(&options, "recurse") || is_flag(&options, "keys") {
        return list(&member, &key, &options).await;
    }
    let index_of = |catalog: &Catalog| match catalog.kv(&key) {
        Some(entry) => entry.modified_at_index,
        None => catalog.kv_prefix_index(&key),
    };
    let catalog = options.settle_by(&member, index_of).await?;
    let index = index_of(&catalog);
    match catalog.kv(&key) {
        None => Ok(with_index(StatusCode::NOT_FOUND.into_response(), index)),
        Some(entry) if is_flag(&options, "raw") => {
            let body = ([(header::CONTENT_TYPE, "application/octet-stream")], entry.value.clone());
            Ok(with_index(body.into_response(), index))
        }
        Some(entry) => Ok(with_index(json(&member, &options, index, &[shown(entry)]), index)),
    }
}

/// `/v1/kv/?keys` and `/v1/kv/?recurse`.
pub(super) async fn keys(State(member): Shared, options: Options) -> Answer {
    check_kv(&options)?;
    match is_flag(&options, "recurse") || is_flag(&options, "keys") {
        true => list(&member, "", &options).await,
        false => Err(HttpError::bad_request("Missing key name; add ?keys or ?recurse to list all")),
    }
}

async fn list(member: &Member, prefix: &str, options: &Options) -> Answer {
    let catalog = options.settle_by(member, |catalog| catalog.kv_prefix_index(prefix)).await?;
    let index = catalog.kv_prefix_index(prefix);
    let entries = || catalog.kv_prefix(prefix);
    if entries().next().is_none() {
        return Ok(with_index(StatusCode::NOT_FOUND.into_response(), index));
    }
    let answer = match is_flag(options, "keys") {
        true => json(member, options, index, &folded(prefix, options.get("separator"), entries())),
        false => json(member, options, index, &entries().map(|entry| shown(entry)).collect::<Vec<_>>()),
    };
    Ok(with_index(answer, index))
}

/// Keys up to the first separator behind the prefix, each once: as a directory lists its own entries.
fn folded<'a>(prefix: &str, separator: Option<&str>, entries: impl Iterator<Item = &'a Arc<KvEntry>>) -> Vec<&'a str> {
    let cut = |key: &'a str| {
        let end =
            separator.and_then(|separator| Some(prefix.len() + key[prefix.len()..].find(separator)? + separator.len()));
        &key[..end.unwrap_or(key.len())]
    };
    let mut keys: Vec<&str> = entries.map(|entry| cut(&entry.key)).collect();
    keys.dedup();
    keys
}

fn shown(entry: &KvEntry) -> Value {
    let value = if entry.value.is_empty() { Value::Null } else { Value::String(BASE64.encode(&entry.value)) };
    json_value!({
        "Key": entry.key,
        "Value": value,
        "Flags": entry.flags,
        "LockIndex": 0,
        "CreateIndex": entry.created_at_index.0,
        "ModifyIndex": entry.modified_at_index.0,
    })
}

pub(super) async fn set_key(State(member): Shared, Path(key): Path<String>, options: Options, body: Bytes) -> Answer {
    check_kv(&options)?;
    let (flags, cas) = (number(&options, "flags")?.unwrap_or(0), cas(&options)?);
    change_kv(&member, &options, KvChange::Set { key, value: body.to_vec(), flags, cas }).await
}

pub(super) async fn delete_key(State(member): Shared, Path(key): Path<String>, options: Options) -> Answer {
    check_kv(&options)?;
    let change = match is_flag(&options, "recurse") {
        true => KvChange::DeletePrefix { prefix: key },
        false => KvChange::Delete { key, cas: cas(&options)? },
    };
    change_kv(&member, &options, change).await
}

pub(super) async fn delete_all_keys(State(member): Shared, options: Options) -> Answer {
    check_kv(&options)?;
    match is_flag(&options, "recurse") {
        true => change_kv(&member, &options, KvChange::DeletePrefix { prefix: String::new() }).await,
        false => Err(HttpError::bad_request("Missing key name; add ?recurse to delete every key")),
    }
}

/// True, or false where `?cas` did not hold: as Consul's clients expect.
async fn change_kv(member: &Member, options: &Options, change: KvChange) -> Answer {
    match member.propose(Command::ChangeKv(change)).await {
        Ok(applied) => Ok(with_index(json(member, options, applied.index, &true), applied.index)),
        Err(ProposeError::Refused(Refusal::CasMismatch { current, .. })) => {
            Ok(with_index(json(member, options, current, &false), current))
        }
        Err(error) => Err(error.into()),
    }
}

fn check_kv(options: &Options) -> Result<(), HttpError> {
    match KV_UNBUILT.iter().find(|name| options.get(name).is_some()) {
        Some(name) => Err(HttpError::not_built(format!("the parameter `{name}` is not built yet; leave it out"))),
        None => Ok(()),
    }
}

/// Consul's flags are there or not, whatever their value.
fn is_flag(options: &Options, name: &str) -> bool {
    options.has(name)
}

fn number(options: &Options, name: &str) -> Result<Option<u64>, HttpError> {
    let wrong = |text: &str| HttpError::bad_request(format!("{name}: `{text}` is no number"));
    options.get(name).map(|text| text.parse().map_err(|_| wrong(text))).transpose()
}

fn cas(options: &Options) -> Result<Option<Index>, HttpError> {
    Ok(number(options, "cas")?.map(Index))
}

fn with_index(mut response: Response, index: Index) -> Response {
    let index = HeaderValue::from(shown_index(index));
    response.headers_mut().insert("X-Consul-Index", index.clone());
    response.headers_mut().insert("X-Nomad-Index", index);
    response
}

pub(super) async fn variables(State(member): Shared, options: Options) -> Answer {
    super::answer::show(&member, &options, &[Table::Variables], |catalog| {
        let listed = catalog.variables().filter(|variable| options.admits(&variable.path));
        Ok(listed.map(|variable| metadata(variable)).collect::<Vec<_>>())
    })
    .await
}

pub(super) async fn variable(State(member): Shared, Path(path): Path<String>, options: Options) -> Answer {
    let catalog = options.settle(&member, &[Table::Variables]).await?;
    let found = catalog.variable(NAMESPACE, &path).ok_or_else(|| HttpError::not_found("variable not found"))?;
    Ok(json(&member, &options, found.modified_at_index, &opened(&member, found)?))
}

#[derive(Deserialize)]
#[serde(rename_all = "PascalCase")]
struct VariableBody {
    #[serde(default)]
    namespace: Option<String>,
    #[serde(default)]
    path: Option<String>,
    items: BTreeMap<String, String>,
}

pub(super) async fn set_variable(
    State(member): Shared,
    Path(path): Path<String>,
    options: Options,
    body: Bytes,
) -> Answer {
    let body: VariableBody = read_body(&body)?;
    check_variable(&path, &body)?;
    let items = serde_json::to_vec(&body.items).map_err(|error| HttpError::internal(error.to_string()))?;
    if items.len() > VARIABLE_BYTES_MAX {
        let text = format!("Items: they have {} bytes, the limit is {VARIABLE_BYTES_MAX}; split them", items.len());
        return Err(HttpError::new(StatusCode::PAYLOAD_TOO_LARGE, text));
    }
    let sealed = member.seal.seal_as(&purpose(NAMESPACE, &path), &items);
    let sealed = sealed.map_err(|error| HttpError::internal(error.to_string()))?;
    let (namespace, cas) = (NAMESPACE.to_owned(), cas(&options)?);
    let set = VariableChange::Set { namespace, path: path.clone(), sealed, cas };
    match change_variable(&member, &options, &path, set).await? {
        Some(refused) => Ok(refused),
        None => {
            let catalog = member.snapshot();
            let found = catalog.variable(NAMESPACE, &path);
            let found = found.ok_or_else(|| HttpError::not_found("variable not found: it has just been deleted"))?;
            Ok(json(&member, &options, found.modified_at_index, &opened(&member, found)?))
        }
    }
}

pub(super) async fn delete_variable(State(member): Shared, Path(path): Path<String>, options: Options) -> Answer {
    let (namespace, cas) = (NAMESPACE.to_owned(), cas(&options)?);
    let delete = VariableChange::Delete { namespace, path: path.clone(), cas };
    let refused = change_variable(&member, &options, &path, delete).await?;
    Ok(refused.unwrap_or_else(|| StatusCode::NO_CONTENT.into_response()))
}

/// `Some` is what to answer where `?cas` did not hold: the variable as it is, with 409.
async fn change_variable(
    member: &Member,
    options: &Options,
    path: &str,
    change: VariableChange,
) -> Result<Option<Response>, HttpError> {
    match member.propose(Command::ChangeVariable(change)).await {
        Ok(_) => Ok(None),
        Err(ProposeError::Refused(Refusal::CasMismatch { current, .. })) => {
            let catalog = member.snapshot();
            let value = match catalog.variable(NAMESPACE, path) {
                Some(found) => opened(member, found)?,
                None => json_value!({ "Namespace": NAMESPACE, "Path": path, "ModifyIndex": 0, "CreateIndex": 0 }),
            };
            let mut response = json(member, options, current, &value);
            *response.status_mut() = StatusCode::CONFLICT;
            Ok(Some(response))
        }
        Err(error) => Err(error.into()),
    }
}

fn check_variable(path: &str, body: &VariableBody) -> Result<(), HttpError> {
    if body.namespace.as_deref().is_some_and(|name| !matches!(name, "" | NAMESPACE)) {
        return Err(HttpError::not_built("Namespace: namespaces are not built yet; there is only `default`"));
    }
    if body.path.as_deref().is_some_and(|named| !named.is_empty() && named != path) {
        return Err(HttpError::bad_request("Path: it is not the path of the request"));
    }
    if body.items.is_empty() {
        return Err(HttpError::bad_request("variable missing required Items object"));
    }
    Ok(())
}

fn metadata(variable: &Variable) -> Value {
    json_value!({
        "Namespace": variable.namespace,
        "Path": variable.path,
        "CreateIndex": variable.created_at_index.0,
        "CreateTime": variable.created_at.0,
        "ModifyIndex": variable.modified_at_index.0,
        "ModifyTime": variable.modified_at.0,
    })
}

fn opened(member: &Member, variable: &Variable) -> Result<Value, HttpError> {
    let items = crate::variables::open(&member.seal, variable).map_err(HttpError::internal)?;
    let mut value = metadata(variable);
    value["Items"] = json_value!(items);
    Ok(value)
}

fn purpose(namespace: &str, path: &str) -> Vec<u8> {
    crate::variables::purpose(namespace, path)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn keys_are_listed_as_a_directory_lists_its_own() {
        let entries: Vec<Arc<KvEntry>> = ["a/b/1", "a/b/2", "a/c", "a/d/e/f"]
            .iter()
            .map(|key| {
                let (created_at_index, modified_at_index) = (Index(1), Index(2));
                Arc::new(KvEntry {
                    key: (*key).to_owned(),
                    value: vec![],
                    flags: 0,
                    created_at_index,
                    modified_at_index,
                })
            })
            .collect();
        assert_eq!(folded("a/", Some("/"), entries.iter()), ["a/b/", "a/c", "a/d/"]);
        assert_eq!(folded("a/", None, entries.iter()).len(), 4);
        assert_eq!(shown(&entries[0])["Value"], Value::Null);
    }
}
