//! A task's driver and its `Config`, to JSON and back.

use super::job::Others;
use model::{ConfigKey, ConfigKind, ConfigValue, ExecConfig, Plugin, PluginConfig, TaskDriver};
use serde_json::{Map, Value, json};
use std::collections::BTreeMap;

/// The `Config` of a task as clients read it.
pub(super) fn of_driver(driver: &TaskDriver) -> Map<String, Value> {
    match driver {
        TaskDriver::Exec(config) | TaskDriver::RawExec(config) => of_exec(config),
        TaskDriver::Plugin(plugin) => plugin.config.iter().map(|(key, value)| (key.clone(), to_json(value))).collect(),
    }
}

fn of_exec(config: &ExecConfig) -> Map<String, Value> {
    let optional = [
        ("work_dir", config.work_dir.as_ref().map(|dir| json!(dir))),
        ("cap_add", (!config.cap_add.is_empty()).then(|| json!(config.cap_add))),
        ("cap_drop", (!config.cap_drop.is_empty()).then(|| json!(config.cap_drop))),
    ];
    let always = [("command", json!(config.command)), ("args", json!(config.args))];
    let given = optional.into_iter().filter_map(|(key, value)| Some((key, value?)));
    always.into_iter().chain(given).map(|(key, value)| (key.to_owned(), value)).collect()
}

fn to_json(value: &ConfigValue) -> Value {
    match value {
        ConfigValue::Bool(value) => json!(value),
        ConfigValue::Integer(value) => json!(value),
        ConfigValue::Text(text) => json!(text),
        ConfigValue::List(items) => items.iter().map(to_json).collect(),
        ConfigValue::Map(fields) => {
            Value::Object(fields.iter().map(|(key, value)| (key.clone(), to_json(value))).collect())
        }
    }
}

/// What is wrong with a driver's `Config`, by the path below it.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum ConfigProblem {
    NotBuilt(String),
    Missing(String),
    Invalid(String, &'static str),
}

/// Reads a plugin's `Config` by its schema; every problem is told.
pub(super) fn plugin(driver: Plugin, config: &Others, problems: &mut Vec<ConfigProblem>) -> PluginConfig {
    PluginConfig { driver, config: fields(config, driver.schema(), "", problems) }
}

fn fields(
    config: &Others,
    schema: &[ConfigKey],
    path: &str,
    problems: &mut Vec<ConfigProblem>,
) -> BTreeMap<String, ConfigValue> {
    for key in schema.iter().filter(|key| key.required && config.get(key.name).is_none_or(Value::is_null)) {
        problems.push(ConfigProblem::Missing(format!("{path}{}", key.name)));
    }
    let mut read = BTreeMap::new();
    for (name, value) in config.iter().filter(|(_, value)| !value.is_null()) {
        let at = format!("{path}{name}");
        match schema.iter().find(|key| key.name == name) {
            None => problems.push(ConfigProblem::Invalid(at, "is not a key of this driver")),
            Some(key) => {
                if let Some(value) = self::value(value, key.kind, &at, problems) {
                    read.insert(name.clone(), value);
                }
            }
        }
    }
    read
}

fn value(value: &Value, kind: ConfigKind, at: &str, problems: &mut Vec<ConfigProblem>) -> Option<ConfigValue> {
    let wrong = |what| ConfigProblem::Invalid(at.to_owned(), what);
    let plain = match (kind, value) {
        (ConfigKind::NotBuilt, _) => Err(ConfigProblem::NotBuilt(at.to_owned())),
        (ConfigKind::Block(schema), _) => return block(value, schema, at, problems),
        (ConfigKind::Blocks(schema), _) => return Some(blocks(value, schema, at, problems)),
        (ConfigKind::Bool, Value::Bool(flag)) => Ok(ConfigValue::Bool(*flag)),
        (ConfigKind::Bool, _) => Err(wrong("must be true or false")),
        (ConfigKind::Integer, value) => value.as_i64().map(ConfigValue::Integer).ok_or(wrong("must be a whole number")),
        (ConfigKind::Text, value) => text(value).ok_or(wrong("must be a string")),
        (ConfigKind::TextList, value) => text_list(value).ok_or(wrong("must be a list of strings")),
        (ConfigKind::TextMap, value) => text_map(value).ok_or(wrong("must be a map of strings")),
    };
    plain.map_err(|problem| problems.push(problem)).ok()
}

/// A block that clients of Nomad's HCL send as a list of one.
fn block(value: &Value, schema: &[ConfigKey], at: &str, problems: &mut Vec<ConfigProblem>) -> Option<ConfigValue> {
    let only = match value {
        Value::Array(items) if items.len() == 1 => items.first(),
        other => Some(other),
    };
    match only {
        Some(Value::Object(inner)) => Some(ConfigValue::Map(fields(inner, schema, &format!("{at}."), problems))),
        _ => {
            problems.push(ConfigProblem::Invalid(at.to_owned(), "must be one block"));
            None
        }
    }
}

fn blocks(value: &Value, schema: &[ConfigKey], at: &str, problems: &mut Vec<ConfigProblem>) -> ConfigValue {
    let items = match value {
        Value::Array(items) => items.as_slice(),
        other => std::slice::from_ref(other),
    };
    let read = |item: &Value| block(item, schema, at, problems);
    ConfigValue::List(items.iter().filter_map(read).collect())
}

/// Numbers and booleans where a string is wanted are taken as HCL takes them.
fn text(value: &Value) -> Option<ConfigValue> {
    match value {
        Value::String(text) => Some(ConfigValue::Text(text.clone())),
        Value::Number(_) | Value::Bool(_) => Some(ConfigValue::Text(value.to_string())),
        _ => None,
    }
}

fn text_list(value: &Value) -> Option<ConfigValue> {
    value.as_array()?.iter().map(text).collect::<Option<Vec<_>>>().map(ConfigValue::List)
}

/// `[{a = "1"}, {b = "2"}]` is what HCL1 made of a block of keys.
fn text_map(value: &Value) -> Option<ConfigValue> {
    let objects = match value {
        Value::Array(items) => items.iter().map(Value::as_object).collect::<Option<Vec<_>>>()?,
        other => vec![other.as_object()?],
    };
    let pairs = objects.into_iter().flatten().map(|(key, value)| Some((key.clone(), text(value)?)));
    pairs.collect::<Option<BTreeMap<_, _>>>().map(ConfigValue::Map)
}
