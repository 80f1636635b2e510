//! What Go's text/template itself has: comparison, logic, indexing, printing and escaping.

use super::{Entry, MANY, Outcome, int, wanted};
use crate::exec::{Context, Fault};
use crate::format;
use crate::value::Value;
use std::cmp::Ordering;

pub const TABLE: &[Entry] = &[
    ("eq", 1, MANY, eq),
    ("ne", 2, 2, |c, args| Ok(Value::Bool(!eq(c, args)?.is_true()))),
    ("lt", 2, 2, |_, args| Ok(Value::Bool(order(&args[0], &args[1])? == Ordering::Less))),
    ("le", 2, 2, |_, args| Ok(Value::Bool(order(&args[0], &args[1])? != Ordering::Greater && !is_nan(args)))),
    ("gt", 2, 2, |_, args| Ok(Value::Bool(order(&args[0], &args[1])? == Ordering::Greater && !is_nan(args)))),
    ("ge", 2, 2, |_, args| Ok(Value::Bool(order(&args[0], &args[1])? != Ordering::Less && !is_nan(args)))),
    ("not", 1, 1, not),
    ("len", 1, 1, len),
    ("index", 1, MANY, index),
    ("slice", 1, 4, slice),
    ("print", 0, MANY, |_, args| Ok(Value::text(format::sprint(args)))),
    ("println", 0, MANY, println),
    ("printf", 1, MANY, printf),
    ("html", 0, MANY, |c, args| escaped(c, args, html)),
    ("js", 0, MANY, |c, args| escaped(c, args, js)),
    ("urlquery", 0, MANY, |c, args| escaped(c, args, urlquery)),
];

fn not(_: &mut Context<'_>, args: &[Value]) -> Outcome {
    Ok(Value::Bool(!args[0].is_true()))
}

fn eq(_: &mut Context<'_>, args: &[Value]) -> Outcome {
    let [first, others @ ..] = args else { return Err(Fault::new("needs something to compare")) };
    if others.is_empty() {
        return Err(Fault::new("needs something to compare with"));
    }
    for other in others {
        if same(first, other)? {
            return Ok(Value::Bool(true));
        }
    }
    Ok(Value::Bool(false))
}

fn same(left: &Value, right: &Value) -> Result<bool, Fault> {
    match (plain(left), plain(right)) {
        (Value::Nil, Value::Nil) => Ok(true),
        (Value::Nil, _) | (_, Value::Nil) => Ok(false),
        (Value::Bool(left), Value::Bool(right)) => Ok(left == right),
        (Value::Int(left), Value::Int(right)) => Ok(left == right),
        (Value::Float(left), Value::Float(right)) => Ok(left == right),
        (Value::Text(left), Value::Text(right)) => Ok(left == right),
        (left, right) => {
            Err(Fault::new(format!("incompatible types for comparison: {} and {}", left.kind(), right.kind())))
        }
    }
}

/// A variable's item stands for its value.
fn plain(value: &Value) -> &Value {
    match value {
        Value::Record(record) => record.shown_as.as_ref().unwrap_or(value),
        other => other,
    }
}

fn order(left: &Value, right: &Value) -> Result<Ordering, Fault> {
    match (plain(left), plain(right)) {
        (Value::Int(left), Value::Int(right)) => Ok(left.cmp(right)),
        (Value::Float(left), Value::Float(right)) => Ok(left.partial_cmp(right).unwrap_or(Ordering::Equal)),
        (Value::Text(left), Value::Text(right)) => Ok(left.cmp(right)),
        (left, right) => {
            Err(Fault::new(format!("incompatible types for comparison: {} and {}", left.kind(), right.kind())))
        }
    }
}

fn is_nan(args: &[Value]) -> bool {
    args.iter().any(|arg| matches!(arg, Value::Float(number) if number.is_nan()))
}

fn len(_: &mut Context<'_>, args: &[Value]) -> Outcome {
    let count = match plain(&args[0]) {
        Value::Text(text) => text.len(),
        Value::List(list) => list.items().len(),
        Value::Map(map) => map.entries().len(),
        other => return Err(wanted("a string, list or map", other)),
    };
    Ok(Value::Int(i64::try_from(count).unwrap_or(i64::MAX)))
}

fn index(context: &mut Context<'_>, args: &[Value]) -> Outcome {
    let mut value = args[0].clone();
    for key in &args[1..] {
        value = element(context, &value, key)?;
    }
    Ok(value)
}

fn element(context: &Context<'_>, value: &Value, key: &Value) -> Outcome {
    let at = |length: usize| -> Result<usize, Fault> {
        let index = int(key)?;
        let found = usize::try_from(index).ok().filter(|index| *index < length);
        found.ok_or_else(|| Fault::new(format!("index out of range: {index}")))
    };
    match value {
        Value::List(list) => Ok(list.items()[at(list.items().len())?].clone()),
        Value::Text(text) => Ok(Value::Int(i64::from(text[at(text.len())?]))),
        Value::Map(map) => {
            let Value::Text(key) = plain(key) else { return Err(wanted("a string as the map's key", key)) };
            let key = String::from_utf8_lossy(key);
            match map.entries().get(key.as_ref()) {
                Some(value) => Ok(value.clone()),
                None if context.inputs.error_on_missing_key => {
                    Err(Fault::new(format!("map has no entry for key {key:?}")))
                }
                None => Ok(map.absent()),
            }
        }
        Value::Nil => Err(Fault::new("index of nil")),
        other => Err(Fault::new(format!("can't index a {}", other.kind()))),
    }
}

fn slice(_: &mut Context<'_>, args: &[Value]) -> Outcome {
    let length = match &args[0] {
        Value::Text(text) => text.len(),
        Value::List(list) => list.items().len(),
        other => return Err(Fault::new(format!("can't slice a {}", other.kind()))),
    };
    if matches!(args[0], Value::Text(_)) && args.len() == 4 {
        return Err(Fault::new("a string is sliced by two indexes at most"));
    }
    let mut bounds = [0, length, length];
    for (slot, arg) in bounds.iter_mut().zip(&args[1..]) {
        let index = int(arg)?;
        let found = usize::try_from(index).ok().filter(|index| *index <= length);
        *slot = found.ok_or_else(|| Fault::new(format!("index out of range: {index}")))?;
    }
    let [from, to, _] = bounds;
    if from > to {
        return Err(Fault::new(format!("invalid slice index: {from} > {to}")));
    }
    match &args[0] {
        Value::Text(text) => Ok(Value::text(&text[from..to])),
        Value::List(list) => Ok(Value::list(list.items()[from..to].to_vec())?),
        _ => Err(Fault::new("cannot be sliced")),
    }
}

fn println(_: &mut Context<'_>, args: &[Value]) -> Outcome {
    let shown: Vec<Vec<u8>> = args.iter().map(Value::show_nested).collect();
    Ok(Value::text([shown.join(&b' '), b"\n".to_vec()].concat()))
}

fn printf(context: &mut Context<'_>, args: &[Value]) -> Outcome {
    let Value::Text(pattern) = &args[0] else { return Err(wanted("a string as the format", &args[0])) };
    Ok(Value::text(format::sprintf(context, pattern, &args[1..])?))
}

/// Escaping makes text at most six times as long.
fn escaped(context: &mut Context<'_>, args: &[Value], escape: fn(&str) -> String) -> Outcome {
    let plain = format::sprint(args);
    context.make(plain.len() * 6)?;
    Ok(Value::text(escape(&String::from_utf8_lossy(&plain))))
}

fn html(text: &str) -> String {
    let mut out = String::with_capacity(text.len());
    for c in text.chars() {
        match c {
            '"' => out.push_str("&#34;"),
            '\'' => out.push_str("&#39;"),
            '&' => out.push_str("&amp;"),
            '<' => out.push_str("&lt;"),
            '>' => out.push_str("&gt;"),
            '\0' => out.push(char::REPLACEMENT_CHARACTER),
            c => out.push(c),
        }
    }
    out
}

fn js(text: &str) -> String {
    let mut out = String::with_capacity(text.len());
    for c in text.chars() {
        match c {
            '\\' => out.push_str("\\\\"),
            '\'' => out.push_str("\\'"),
            '"' => out.push_str("\\\""),
            '<' | '>' | '&' | '=' => out.push_str(&format!("\\u{:04X}", u32::from(c))),
            c if u32::from(c) < 0x20 => out.push_str(&format!("\\u{:04X}", u32::from(c))),
            c if c.is_ascii() || format::is_printable(c) => out.push(c),
            c => out.push_str(&format!("\\u{:04X}", u32::from(c))),
        }
    }
    out
}

fn urlquery(text: &str) -> String {
    let mut out = String::with_capacity(text.len());
    for byte in text.bytes() {
        match byte {
            b' ' => out.push('+'),
            b'-' | b'_' | b'.' | b'~' => out.push(char::from(byte)),
            byte if byte.is_ascii_alphanumeric() => out.push(char::from(byte)),
            byte => out.push_str(&format!("%{byte:02X}")),
        }
    }
    out
}
