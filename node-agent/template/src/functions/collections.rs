//! Lists and maps.

use super::{Entry, MANY, Outcome, int, list, record_field_of, string};
use crate::exec::{Context, Fault};
use crate::value::Value;
use std::collections::BTreeMap;

const LOOP_MAX: i64 = 100_000;

pub const TABLE: &[Entry] = &[
    ("loop", 1, 2, turns),
    ("contains", 2, 2, |_, args| Ok(Value::Bool(holds(&args[1], &args[0])?))),
    ("in", 2, 2, |_, args| Ok(Value::Bool(holds(&args[0], &args[1])?))),
    ("containsAll", 2, 2, |c, args| Ok(Value::Bool(count(c, args)? == list(&args[0])?.len()))),
    ("containsAny", 2, 2, |c, args| Ok(Value::Bool(count(c, args)? > 0))),
    ("containsNone", 2, 2, |c, args| Ok(Value::Bool(count(c, args)? == 0))),
    ("containsNotAll", 2, 2, |c, args| Ok(Value::Bool(count(c, args)? < list(&args[0])?.len()))),
    ("explode", 1, 1, explode),
    ("explodeMap", 1, 1, explode_map),
    ("list", 0, MANY, |_, args| Ok(Value::list(args.to_vec())?)),
];

/// `loop n` counts from 0; `loop a b` from a, in both cases up to but without the last.
fn turns(context: &mut Context<'_>, args: &[Value]) -> Outcome {
    let (from, to) = match args {
        [to] => (0, int(to)?),
        [from, to, ..] => (int(from)?, int(to)?),
        [] => (0, 0),
    };
    numbers(context, from, to, 1)
}

pub fn numbers(context: &mut Context<'_>, from: i64, to: i64, step: i64) -> Outcome {
    let span = i128::from(to) - i128::from(from);
    let count = if step == 0 { 0 } else { (span + i128::from(step) - i128::from(step.signum())) / i128::from(step) };
    let count = i64::try_from(count).unwrap_or(i64::MAX).max(0);
    if count > LOOP_MAX {
        return Err(Fault::new(format!("more than {LOOP_MAX} turns")));
    }
    context.step(count.unsigned_abs())?;
    Ok(Value::list((0..count).map(|turn| Value::Int(from.saturating_add(turn.saturating_mul(step)))).collect())?)
}

fn holds(whole: &Value, part: &Value) -> Result<bool, Fault> {
    match whole {
        Value::Text(text) => Ok(String::from_utf8_lossy(text).contains(string(part)?.as_ref())),
        Value::Map(map) => Ok(map.entries().contains_key(string(part)?.as_ref())),
        Value::Nil => Ok(false),
        whole => Ok(list(whole)?.iter().any(|item| is_same(item, part))),
    }
}

pub fn is_same(left: &Value, right: &Value) -> bool {
    match (left, right) {
        (Value::Nil, Value::Nil) => true,
        (Value::Bool(left), Value::Bool(right)) => left == right,
        (Value::Int(left), Value::Int(right)) => left == right,
        (Value::Float(left), Value::Float(right)) => left == right,
        (Value::Text(left), Value::Text(right)) => left == right,
        (Value::List(left), Value::List(right)) => {
            left.items().len() == right.items().len()
                && left.items().iter().zip(right.items()).all(|(left, right)| is_same(left, right))
        }
        _ => false,
    }
}

/// How many of the first list the second has.
fn count(context: &mut Context<'_>, args: &[Value]) -> Result<usize, Fault> {
    let wanted = list(&args[0])?;
    let steps = wanted.len().saturating_mul(list(&args[1]).map_or(1, <[Value]>::len));
    context.step(u64::try_from(steps).unwrap_or(u64::MAX))?;
    let mut found = 0;
    for item in wanted {
        found += usize::from(holds(&args[1], item)?);
    }
    Ok(found)
}

/// What `ls` or `tree` gave as maps within maps, by the slashes of the keys.
fn explode(context: &mut Context<'_>, args: &[Value]) -> Outcome {
    let mut root = Tree::default();
    for pair in list(&args[0])? {
        let key = string(record_field_of(pair, "Key")?)?.into_owned();
        context.make(key.len() + 64)?;
        root.put(&key, record_field_of(pair, "Value")?.clone())?;
    }
    root.value()
}

fn explode_map(context: &mut Context<'_>, args: &[Value]) -> Outcome {
    let Value::Map(map) = &args[0] else { return Err(super::wanted("a map", &args[0])) };
    let mut root = Tree::default();
    for (key, value) in map.entries() {
        context.make(key.len() + 64)?;
        root.put(key, value.clone())?;
    }
    root.value()
}

#[derive(Default)]
struct Tree {
    branches: BTreeMap<String, Tree>,
    leaf: Option<Value>,
}

impl Tree {
    fn put(&mut self, key: &str, value: Value) -> Result<(), Fault> {
        let mut place = self;
        let parts: Vec<&str> = key.split('/').filter(|part| !part.is_empty()).collect();
        if parts.len() > 64 {
            return Err(Fault::new("a key has more than 64 parts"));
        }
        for part in parts {
            if place.leaf.is_some() {
                return Err(Fault::new(format!("{key:?} is both a value and a prefix of others")));
            }
            place = place.branches.entry(part.to_owned()).or_default();
        }
        if !place.branches.is_empty() {
            return Err(Fault::new(format!("{key:?} is both a value and a prefix of others")));
        }
        place.leaf = Some(value);
        Ok(())
    }

    fn value(self) -> Outcome {
        if let Some(leaf) = self.leaf {
            return Ok(leaf);
        }
        let entries: Result<BTreeMap<String, Value>, Fault> =
            self.branches.into_iter().map(|(name, tree)| Ok((name, tree.value()?))).collect();
        Ok(Value::map(entries?)?)
    }
}
