//! The values that templates compute with, and how they are shown.
//!
//! Text is bytes, as in Go: `base64Decode` may give any. Containers know how deep they are nested, so that walking or
//! dropping one never exhausts the stack.

use crate::format;
use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, PoisonError};

/// JSON may be nested 128 deep, and some more is built around it.
const DEPTH_MAX: u16 = 160;

#[derive(Clone, Debug)]
pub enum Value {
    Nil,
    Bool(bool),
    Int(i64),
    Float(f64),
    Text(Arc<[u8]>),
    List(Arc<List>),
    Map(Arc<Map>),
    Record(Arc<Record>),
    Scratch(Arc<Scratch>),
}

#[derive(Debug)]
pub struct List {
    items: Vec<Value>,
    depth: u16,
}

#[derive(Debug)]
pub struct Map {
    entries: BTreeMap<String, Value>,
    depth: u16,
    /// Of strings only: a key that is not there is the empty string, as with Go's `map[string]string`.
    texts: bool,
}

/// A struct of Go's: its fields are known, and asking for another is an error.
#[derive(Debug)]
pub struct Record {
    pub name: &'static str,
    pub fields: Vec<(&'static str, Value)>,
    /// How it is shown, where it is not by its fields.
    pub shown_as: Option<Value>,
}

/// The one thing that a template can change.
#[derive(Debug, Default)]
pub struct Scratch {
    values: Mutex<BTreeMap<String, Value>>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct TooDeep;

impl Value {
    pub fn text(text: impl AsRef<[u8]>) -> Self {
        Value::Text(Arc::from(text.as_ref()))
    }

    pub fn list(items: Vec<Value>) -> Result<Self, TooDeep> {
        let depth = depth_over(items.iter())?;
        Ok(Value::List(Arc::new(List { items, depth })))
    }

    pub fn map(entries: BTreeMap<String, Value>) -> Result<Self, TooDeep> {
        let depth = depth_over(entries.values())?;
        Ok(Value::Map(Arc::new(Map { entries, depth, texts: false })))
    }

    pub fn texts<S: AsRef<[u8]>>(items: impl IntoIterator<Item = S>) -> Self {
        let items = items.into_iter().map(Value::text).collect();
        Value::List(Arc::new(List { items, depth: 1 }))
    }

    pub fn text_map(entries: &BTreeMap<String, String>) -> Self {
        let entries = entries.iter().map(|(key, value)| (key.clone(), Value::text(value))).collect();
        Value::Map(Arc::new(Map { entries, depth: 1, texts: true }))
    }

    /// Fields are plain values or lists and maps of plain values.
    pub fn record(name: &'static str, fields: Vec<(&'static str, Value)>) -> Self {
        Value::Record(Arc::new(Record { name, fields, shown_as: None }))
    }

    pub fn is_true(&self) -> bool {
        match self {
            Value::Nil => false,
            Value::Bool(truth) => *truth,
            Value::Int(number) => *number != 0,
            Value::Float(number) => *number != 0.0,
            Value::Text(text) => !text.is_empty(),
            Value::List(list) => !list.items.is_empty(),
            Value::Map(map) => !map.entries.is_empty(),
            Value::Record(_) | Value::Scratch(_) => true,
        }
    }

    /// Go's names, for messages and `%T`.
    pub fn kind(&self) -> &'static str {
        match self {
            Value::Nil => "nil",
            Value::Bool(_) => "bool",
            Value::Int(_) => "int",
            Value::Float(_) => "float64",
            Value::Text(_) => "string",
            Value::List(_) => "[]interface {}",
            Value::Map(map) if map.texts => "map[string]string",
            Value::Map(_) => "map[string]interface {}",
            Value::Record(record) => record.name,
            Value::Scratch(_) => "scratch",
        }
    }

    /// As an action writes it.
    pub fn show(&self) -> Vec<u8> {
        match self {
            Value::Nil => b"<no value>".to_vec(),
            other => other.show_nested(),
        }
    }

    /// As it stands in a list, or in what `print` joins.
    pub fn show_nested(&self) -> Vec<u8> {
        let mut out = Vec::new();
        format::show(&mut out, self);
        out
    }

    pub(crate) fn depth(&self) -> u16 {
        match self {
            Value::List(list) => list.depth,
            Value::Map(map) => map.depth,
            Value::Record(_) => 2,
            _ => 0,
        }
    }

    /// The bytes that it keeps from being freed, roughly; those below it were counted when they were made.
    pub(crate) fn weight(&self) -> usize {
        match self {
            Value::Text(text) => text.len() + 16,
            Value::List(list) => 24 * list.items.len() + 32,
            Value::Map(map) => 96 * map.entries.len() + 32,
            _ => 24,
        }
    }
}

impl List {
    pub fn items(&self) -> &[Value] {
        &self.items
    }
}

impl Map {
    pub fn entries(&self) -> &BTreeMap<String, Value> {
        &self.entries
    }

    /// What a key that is not there stands for.
    pub fn absent(&self) -> Value {
        if self.texts { Value::text("") } else { Value::Nil }
    }
}

impl Record {
    pub fn field(&self, name: &str) -> Option<&Value> {
        self.fields.iter().find(|(field, _)| *field == name).map(|(_, value)| value)
    }
}

impl Scratch {
    pub fn with<T>(&self, change: impl FnOnce(&mut BTreeMap<String, Value>) -> T) -> T {
        change(&mut self.values.lock().unwrap_or_else(PoisonError::into_inner))
    }
}

/// A scratch within a value could be made to hold itself.
fn depth_over<'a>(values: impl Iterator<Item = &'a Value>) -> Result<u16, TooDeep> {
    let mut most = 0;
    for value in values {
        if matches!(value, Value::Scratch(_)) {
            return Err(TooDeep);
        }
        most = most.max(value.depth());
    }
    if most >= DEPTH_MAX { Err(TooDeep) } else { Ok(most + 1) }
}
