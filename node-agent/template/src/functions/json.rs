//! JSON both ways; YAML and TOML out.

use super::{Entry, Outcome, string, text, wanted};
use crate::OUTPUT_BYTES_MAX;
use crate::exec::{Context, Fault};
use crate::format;
use crate::value::Value;
use std::collections::BTreeMap;

pub const TABLE: &[Entry] = &[
    ("parseJSON", 1, 1, parse),
    ("toJSON", 1, 1, |c, args| written(c, &args[0], Style { escape: true, indent: None })),
    ("toJSONPretty", 1, 1, |c, args| written(c, &args[0], Style { escape: true, indent: Some(0) })),
    ("toUnescapedJSON", 1, 1, |c, args| written(c, &args[0], Style { escape: false, indent: None })),
    ("toUnescapedJSONPretty", 1, 1, |c, args| written(c, &args[0], Style { escape: false, indent: Some(0) })),
    ("toYAML", 1, 1, |c, args| {
        let mut out = String::new();
        yaml(&mut out, &args[0], 0)?;
        context_text(c, out.trim_end())
    }),
    ("toTOML", 1, 1, |c, args| {
        let mut out = String::new();
        toml(&mut out, &args[0], &mut Vec::new())?;
        context_text(c, out.trim_end())
    }),
];

/// The empty text is an empty map: data that is not there yet shows as it.
pub fn parse(context: &mut Context<'_>, args: &[Value]) -> Outcome {
    let source = string(&args[0])?;
    if source.is_empty() {
        return Ok(Value::map(BTreeMap::new())?);
    }
    // Values of one byte each take the most room.
    context.make(source.len())?;
    context.step(source.len() as u64)?;
    let parsed = serde_json::from_str(&source).map_err(|error| Fault::new(format!("not JSON: {error}")))?;
    value_of(parsed)
}

/// Numbers become floats, as in Go.
fn value_of(json: serde_json::Value) -> Outcome {
    match json {
        serde_json::Value::Null => Ok(Value::Nil),
        serde_json::Value::Bool(truth) => Ok(Value::Bool(truth)),
        serde_json::Value::Number(number) => Ok(Value::Float(number.as_f64().unwrap_or(f64::NAN))),
        serde_json::Value::String(text) => Ok(Value::text(text)),
        serde_json::Value::Array(items) => {
            let items: Result<Vec<Value>, Fault> = items.into_iter().map(value_of).collect();
            Ok(Value::list(items?)?)
        }
        serde_json::Value::Object(entries) => {
            let entries: Result<BTreeMap<String, Value>, Fault> =
                entries.into_iter().map(|(key, value)| Ok((key, value_of(value)?))).collect();
            Ok(Value::map(entries?)?)
        }
    }
}

fn context_text(context: &mut Context<'_>, made: &str) -> Outcome {
    context.make(made.len())?;
    text(made)
}

#[derive(Clone, Copy)]
struct Style {
    /// `<`, `>` and `&` as `\u003c` and so on, as encoding/json does.
    escape: bool,
    /// The depth so far, two spaces each.
    indent: Option<usize>,
}

impl Style {
    fn deeper(self) -> Self {
        Self { indent: self.indent.map(|depth| depth + 1), ..self }
    }

    fn line(self, out: &mut String) {
        if let Some(depth) = self.indent {
            out.push('\n');
            out.extend(std::iter::repeat_n("  ", depth));
        }
    }
}

fn written(context: &mut Context<'_>, value: &Value, style: Style) -> Outcome {
    let mut out = String::new();
    write(&mut out, value, style)?;
    context_text(context, &out)
}

fn bounded(out: &str) -> Result<(), Fault> {
    if out.len() > OUTPUT_BYTES_MAX {
        return Err(Fault::new(format!("makes more than {OUTPUT_BYTES_MAX} bytes")));
    }
    Ok(())
}

fn write(out: &mut String, value: &Value, style: Style) -> Result<(), Fault> {
    bounded(out)?;
    match value {
        Value::Nil => out.push_str("null"),
        Value::Bool(truth) => out.push_str(&truth.to_string()),
        Value::Int(number) => out.push_str(&number.to_string()),
        Value::Float(number) => out.push_str(&number_text(*number)?),
        Value::Text(text) => quoted(out, &String::from_utf8_lossy(text), style.escape),
        Value::List(list) => {
            let items = list.items().iter().map(|item| (None, item));
            enclosed(out, ('[', ']'), items, style)?;
        }
        Value::Map(map) => {
            let items = map.entries().iter().map(|(key, value)| (Some(key.as_str()), value));
            enclosed(out, ('{', '}'), items, style)?;
        }
        Value::Record(record) => match &record.shown_as {
            Some(shown) => write(out, shown, style)?,
            None => {
                let items = record.fields.iter().map(|(key, value)| (Some(*key), value));
                enclosed(out, ('{', '}'), items, style)?;
            }
        },
        Value::Scratch(_) => return Err(wanted("data", value)),
    }
    Ok(())
}

fn enclosed<'a>(
    out: &mut String,
    (open, close): (char, char),
    items: impl Iterator<Item = (Option<&'a str>, &'a Value)>,
    style: Style,
) -> Result<(), Fault> {
    out.push(open);
    let mut any = false;
    for (key, value) in items {
        if any {
            out.push(',');
        }
        any = true;
        style.deeper().line(out);
        if let Some(key) = key {
            quoted(out, key, style.escape);
            out.push_str(if style.indent.is_some() { ": " } else { ":" });
        }
        write(out, value, style.deeper())?;
    }
    if any {
        style.line(out);
    }
    out.push(close);
    Ok(())
}

/// As encoding/json: without an exponent from 1e-6 to 1e21.
fn number_text(number: f64) -> Result<String, Fault> {
    if !number.is_finite() {
        return Err(Fault::new("JSON has no such number"));
    }
    let magnitude = number.abs();
    if magnitude != 0.0 && !(1e-6..1e21).contains(&magnitude) {
        let text = format!("{number:e}");
        return Ok(if text.contains("e-") { text } else { text.replace('e', "e+") });
    }
    Ok(format!("{number}"))
}

fn quoted(out: &mut String, text: &str, escape: bool) {
    out.push('"');
    for c in text.chars() {
        match c {
            '"' => out.push_str("\\\""),
            '\\' => out.push_str("\\\\"),
            '\n' => out.push_str("\\n"),
            '\r' => out.push_str("\\r"),
            '\t' => out.push_str("\\t"),
            '\u{8}' => out.push_str("\\b"),
            '\u{c}' => out.push_str("\\f"),
            '<' | '>' | '&' if escape => out.push_str(&format!("\\u{:04x}", u32::from(c))),
            '\u{2028}' | '\u{2029}' => out.push_str(&format!("\\u{:04x}", u32::from(c))),
            c if u32::from(c) < 0x20 => out.push_str(&format!("\\u{:04x}", u32::from(c))),
            c => out.push(c),
        }
    }
    out.push('"');
}

/// Block style. Texts that would read as something else are quoted as JSON, which YAML reads.
fn yaml(out: &mut String, value: &Value, depth: usize) -> Result<(), Fault> {
    bounded(out)?;
    let pad = |out: &mut String| out.extend(std::iter::repeat_n("  ", depth));
    match value {
        Value::List(list) if !list.items().is_empty() => {
            for item in list.items() {
                pad(out);
                out.push_str("- ");
                let mut inner = String::new();
                yaml(&mut inner, item, depth + 1)?;
                out.push_str(inner.trim_start_matches(' '));
            }
        }
        Value::Map(map) if !map.entries().is_empty() => {
            for (key, item) in map.entries() {
                pad(out);
                yaml_text(out, key);
                let nested = matches!(item, Value::List(list) if !list.items().is_empty())
                    || matches!(item, Value::Map(map) if !map.entries().is_empty());
                out.push_str(if nested { ":\n" } else { ": " });
                yaml(out, item, depth + 1)?;
            }
        }
        Value::Text(text) => {
            yaml_text(out, &String::from_utf8_lossy(text));
            out.push('\n');
        }
        other => {
            write(out, other, Style { escape: false, indent: None })?;
            out.push('\n');
        }
    }
    Ok(())
}

fn yaml_text(out: &mut String, text: &str) {
    let starts = text.starts_with(|c: char| c.is_ascii_alphabetic() || c == '/' || c == '_');
    let inside = text.chars().all(|c| c.is_ascii_alphanumeric() || "/_-. ".contains(c)) && !text.ends_with(' ');
    let word =
        ["true", "false", "null", "yes", "no", "on", "off", "y", "n"].contains(&text.to_ascii_lowercase().as_str());
    match starts && inside && !word {
        true => out.push_str(text),
        false => quoted(out, text, false),
    }
}

/// Plain values first, then a table for each map.
fn toml(out: &mut String, value: &Value, path: &mut Vec<String>) -> Result<(), Fault> {
    bounded(out)?;
    let Value::Map(map) = value else { return Err(wanted("a map", value)) };
    for (key, item) in map.entries().iter().filter(|(_, item)| !matches!(item, Value::Map(_) | Value::Nil)) {
        toml_key(out, key);
        out.push_str(" = ");
        toml_value(out, item)?;
        out.push('\n');
    }
    for (key, item) in map.entries().iter().filter(|(_, item)| matches!(item, Value::Map(_))) {
        path.push(key.clone());
        if !out.is_empty() {
            out.push('\n');
        }
        out.push('[');
        for (number, part) in path.iter().enumerate() {
            out.push_str(if number > 0 { "." } else { "" });
            toml_key(out, part);
        }
        out.push_str("]\n");
        toml(out, item, path)?;
        path.pop();
    }
    Ok(())
}

fn toml_key(out: &mut String, key: &str) {
    let bare = !key.is_empty() && key.chars().all(|c| c.is_ascii_alphanumeric() || c == '_' || c == '-');
    if bare { out.push_str(key) } else { quoted(out, key, false) }
}

fn toml_value(out: &mut String, value: &Value) -> Result<(), Fault> {
    bounded(out)?;
    match value {
        Value::Float(number) if number.is_finite() => {
            let text = format::float_general(*number, None);
            let whole = !text.contains(['.', 'e']);
            out.push_str(&text);
            out.push_str(if whole { ".0" } else { "" });
        }
        Value::List(list) => {
            out.push('[');
            for (number, item) in list.items().iter().enumerate() {
                out.push_str(if number > 0 { ", " } else { "" });
                toml_value(out, item)?;
            }
            out.push(']');
        }
        Value::Map(_) | Value::Nil => return Err(Fault::new("a list of maps has no place in this TOML")),
        plain => write(out, plain, Style { escape: false, indent: None })?,
    }
    Ok(())
}
