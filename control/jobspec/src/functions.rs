//! The functions of job files: those of HCL2 that need neither files, nor a clock, nor randomness.

use crate::eval::{BYTES_MAX, Value};
use base64::Engine;
use base64::prelude::BASE64_STANDARD as BASE64;
use model::rules;
use std::collections::{BTreeMap, BTreeSet};

/// Lists that a function makes out of numbers are no longer than this.
const RANGE_MAX: f64 = 10_000.0;

pub(crate) const NAMES: [&str; 65] = [
    "abs",
    "base64decode",
    "base64encode",
    "can",
    "ceil",
    "chomp",
    "chunklist",
    "coalesce",
    "coalescelist",
    "compact",
    "concat",
    "contains",
    "distinct",
    "element",
    "endswith",
    "flatten",
    "floor",
    "format",
    "formatlist",
    "indent",
    "index",
    "join",
    "jsondecode",
    "jsonencode",
    "keys",
    "length",
    "lookup",
    "lower",
    "max",
    "merge",
    "min",
    "parseint",
    "range",
    "regex",
    "regex_replace",
    "regexall",
    "replace",
    "reverse",
    "setintersection",
    "setsubtract",
    "setunion",
    "signum",
    "slice",
    "sort",
    "split",
    "startswith",
    "strlen",
    "strrev",
    "substr",
    "sum",
    "title",
    "tobool",
    "tolist",
    "tonumber",
    "toset",
    "tostring",
    "trim",
    "trimprefix",
    "trimspace",
    "trimsuffix",
    "try",
    "upper",
    "urlencode",
    "values",
    "zipmap",
];

/// `None` when the arguments do not fit. What it is asked to build stays below [`BYTES_MAX`].
pub(crate) fn apply(name: &str, args: &[Value]) -> Option<Value> {
    text_function(name, args)
        .or_else(|| number_function(name, args))
        .or_else(|| list_function(name, args))
        .or_else(|| map_function(name, args))
        .or_else(|| conversion(name, args))
}

fn text_function(name: &str, args: &[Value]) -> Option<Value> {
    match (name, args) {
        ("upper", [value]) => text(value.text()?.to_uppercase()),
        ("lower", [value]) => text(value.text()?.to_lowercase()),
        ("title", [value]) => text(title(&value.text()?)),
        ("trimspace", [value]) => text(value.text()?.trim()),
        ("chomp", [value]) => text(value.text()?.trim_end_matches(['\r', '\n'])),
        ("strrev", [value]) => text(value.text()?.chars().rev().collect::<String>()),
        ("strlen", [value]) => number(value.text()?.chars().count() as f64),
        ("trim", [value, cut]) => {
            let cut: Vec<char> = cut.text()?.chars().collect();
            text(value.text()?.trim_matches(cut.as_slice()))
        }
        ("trimprefix", [value, cut]) => {
            let (value, cut) = (value.text()?, cut.text()?);
            text(value.strip_prefix(&cut).unwrap_or(&value))
        }
        ("trimsuffix", [value, cut]) => {
            let (value, cut) = (value.text()?, cut.text()?);
            text(value.strip_suffix(&cut).unwrap_or(&value))
        }
        ("startswith", [value, with]) => Some(Value::Bool(value.text()?.starts_with(&with.text()?))),
        ("endswith", [value, with]) => Some(Value::Bool(value.text()?.ends_with(&with.text()?))),
        ("substr", [value, from, count]) => substr(&value.text()?, from.number()?, count.number()?),
        ("join", [separator, lists @ ..]) => {
            let texts: Option<Vec<String>> = flat(lists)?.iter().map(Value::text).collect();
            text(texts?.join(&separator.text()?))
        }
        ("split", [separator, value]) => {
            let (separator, value) = (separator.text()?, value.text()?);
            Some(Value::List(value.split(&separator).map(|part| Value::Text(part.to_owned())).collect()))
        }
        ("replace", [value, from, to]) => replace(&value.text()?, &from.text()?, &to.text()?),
        ("regex_replace", [value, pattern, to]) => {
            let pattern = rules::regex(&pattern.text()?).ok()?;
            bounded(pattern.replace_all(&value.text()?, to.text()?.as_str()).into_owned())
        }
        ("regex", [pattern, value]) => first_match(&pattern.text()?, &value.text()?),
        ("regexall", [pattern, value]) => {
            let (pattern, value) = (rules::regex(&pattern.text()?).ok()?, value.text()?);
            Some(Value::List(pattern.find_iter(&value).map(|found| Value::Text(found.as_str().to_owned())).collect()))
        }
        ("indent", [spaces, value]) => {
            let spaces = spaces.number().filter(|spaces| (0.0..=1000.0).contains(spaces))? as usize;
            replace(&value.text()?, "\n", &format!("\n{}", " ".repeat(spaces)))
        }
        ("format", [format, values @ ..]) => self::format(&format.text()?, values).map(Value::Text),
        ("formatlist", [format, values @ ..]) => format_list(&format.text()?, values),
        ("base64encode", [value]) => text(BASE64.encode(value.text()?)),
        ("base64decode", [value]) => text(String::from_utf8(BASE64.decode(value.text()?).ok()?).ok()?),
        ("urlencode", [value]) => text(url_encoded(&value.text()?)),
        _ => None,
    }
}

fn number_function(name: &str, args: &[Value]) -> Option<Value> {
    match (name, args) {
        ("abs", [value]) => number(value.number()?.abs()),
        ("ceil", [value]) => number(value.number()?.ceil()),
        ("floor", [value]) => number(value.number()?.floor()),
        ("signum", [value]) => number(value.number().map(|value| if value == 0.0 { 0.0 } else { value.signum() })?),
        ("max", [first, rest @ ..]) => fold_numbers(first, rest, f64::max),
        ("min", [first, rest @ ..]) => fold_numbers(first, rest, f64::min),
        ("sum", [Value::List(items)]) => {
            items.iter().try_fold(0.0, |sum, item| Some(sum + item.number()?)).and_then(number)
        }
        ("parseint", [value, base]) => {
            let base = base.number().filter(|base| base.fract() == 0.0 && (2.0..=36.0).contains(base))?;
            number(i64::from_str_radix(&value.text()?, base as u32).ok()? as f64)
        }
        ("range", [end]) => range(0.0, end.number()?, 1.0),
        ("range", [start, end]) => {
            let (start, end) = (start.number()?, end.number()?);
            range(start, end, if end < start { -1.0 } else { 1.0 })
        }
        ("range", [start, end, step]) => range(start.number()?, end.number()?, step.number()?),
        _ => None,
    }
}

fn list_function(name: &str, args: &[Value]) -> Option<Value> {
    match (name, args) {
        ("concat", lists) => flat(lists).map(Value::List),
        ("length", [Value::List(items)]) => number(items.len() as f64),
        ("length", [Value::Map(fields)]) => number(fields.len() as f64),
        ("length", [Value::Text(text)]) => number(text.chars().count() as f64),
        ("coalesce", values) => {
            values.iter().find(|value| !matches!(value, Value::Null) && **value != Value::Text(String::new())).cloned()
        }
        ("coalescelist", lists) => {
            lists.iter().find(|list| matches!(list, Value::List(items) if !items.is_empty())).cloned()
        }
        ("compact", [Value::List(items)]) => {
            let filled = |item: &&Value| !matches!(item, Value::Null) && **item != Value::Text(String::new());
            Some(Value::List(items.iter().filter(filled).cloned().collect()))
        }
        ("contains", [Value::List(items), value]) => Some(Value::Bool(items.contains(value))),
        ("distinct" | "toset", [Value::List(items)]) => Some(Value::List(distinct(items))),
        ("tolist", [Value::List(items)]) => Some(Value::List(items.clone())),
        ("element", [Value::List(items), at]) if !items.is_empty() => {
            let at = at.number().filter(|at| at.fract() == 0.0 && *at >= 0.0)?;
            items.get(at as usize % items.len()).cloned()
        }
        ("index", [Value::List(items), value]) => number(items.iter().position(|item| item == value)? as f64),
        ("flatten", [Value::List(items)]) => {
            let mut all = Vec::new();
            flatten(items, &mut all);
            Some(Value::List(all))
        }
        ("reverse", [Value::List(items)]) => Some(Value::List(items.iter().rev().cloned().collect())),
        ("slice", [Value::List(items), from, to]) => {
            let at = |value: &Value| value.number().filter(|at| at.fract() == 0.0 && *at >= 0.0).map(|at| at as usize);
            items.get(at(from)?..at(to)?).map(|part| Value::List(part.to_vec()))
        }
        ("sort", [Value::List(items)]) => {
            let mut texts = items.iter().map(Value::text).collect::<Option<Vec<_>>>()?;
            texts.sort();
            Some(Value::List(texts.into_iter().map(Value::Text).collect()))
        }
        ("chunklist", [Value::List(items), size]) => {
            let size = size.number().filter(|size| *size >= 1.0 && size.fract() == 0.0)? as usize;
            Some(Value::List(items.chunks(size).map(|chunk| Value::List(chunk.to_vec())).collect()))
        }
        ("setunion", lists) => Some(Value::List(distinct(&flat(lists)?))),
        ("setintersection", [Value::List(first), rest @ ..]) => {
            let in_all = |item: &&Value| rest.iter().all(|list| matches!(list, Value::List(l) if l.contains(item)));
            Some(Value::List(distinct(&first.iter().filter(in_all).cloned().collect::<Vec<_>>())))
        }
        ("setsubtract", [Value::List(first), Value::List(without)]) => {
            let kept: Vec<Value> = first.iter().filter(|item| !without.contains(item)).cloned().collect();
            Some(Value::List(distinct(&kept)))
        }
        _ => None,
    }
}

fn map_function(name: &str, args: &[Value]) -> Option<Value> {
    match (name, args) {
        ("merge", maps) => {
            let mut merged = BTreeMap::new();
            for map in maps {
                let Value::Map(fields) = map else { return None };
                merged.extend(fields.clone());
            }
            Some(Value::Map(merged))
        }
        ("keys", [Value::Map(fields)]) => Some(Value::List(fields.keys().cloned().map(Value::Text).collect())),
        ("values", [Value::Map(fields)]) => Some(Value::List(fields.values().cloned().collect())),
        ("lookup", [Value::Map(fields), key]) => fields.get(&key.text()?).cloned(),
        ("lookup", [Value::Map(fields), key, default]) => fields.get(&key.text()?).or(Some(default)).cloned(),
        ("contains", [Value::Map(fields), value]) => Some(Value::Bool(fields.values().any(|field| field == value))),
        ("zipmap", [Value::List(keys), Value::List(values)]) if keys.len() == values.len() => {
            let pairs = keys.iter().zip(values).map(|(key, value)| Some((key.text()?, value.clone())));
            pairs.collect::<Option<BTreeMap<_, _>>>().map(Value::Map)
        }
        _ => None,
    }
}

fn conversion(name: &str, args: &[Value]) -> Option<Value> {
    match (name, args) {
        ("tostring", [value]) => value.text().map(Value::Text),
        ("tonumber", [value]) => value.number().map(Value::Number),
        ("tobool", [value]) => value.bool().map(Value::Bool),
        ("jsonencode", [value]) => bounded(to_json(value).to_string()),
        ("jsondecode", [value]) => serde_json::from_str(&value.text()?).ok().map(|json| from_json(&json)),
        _ => None,
    }
}

fn text(value: impl Into<String>) -> Option<Value> {
    Some(Value::Text(value.into()))
}

fn bounded(value: String) -> Option<Value> {
    (value.len() <= BYTES_MAX).then_some(Value::Text(value))
}

fn number(value: f64) -> Option<Value> {
    value.is_finite().then_some(Value::Number(value))
}

fn title(text: &str) -> String {
    let mut starts = true;
    let raise = |c: char| {
        let raised: String = if starts { c.to_uppercase().collect() } else { c.to_string() };
        starts = !c.is_alphanumeric();
        raised
    };
    text.chars().map(raise).collect()
}

/// A negative count takes the rest; a negative start counts from the end.
fn substr(text: &str, from: f64, count: f64) -> Option<Value> {
    let chars: Vec<char> = text.chars().collect();
    let from = if from < 0.0 { chars.len() as f64 + from } else { from };
    let from = (from.max(0.0) as usize).min(chars.len());
    let rest = &chars[from..];
    let count = if count < 0.0 { rest.len() } else { (count as usize).min(rest.len()) };
    Some(Value::Text(rest[..count].iter().collect()))
}

/// A needle between slashes is a pattern. An empty one would multiply the text.
fn replace(text: &str, from: &str, to: &str) -> Option<Value> {
    if let Some(pattern) = from.strip_prefix('/').and_then(|rest| rest.strip_suffix('/')).filter(|p| !p.is_empty()) {
        return bounded(rules::regex(pattern).ok()?.replace_all(text, to).into_owned());
    }
    let found = if from.is_empty() { return None } else { text.matches(from).count() };
    let size = text.len().saturating_add(found.saturating_mul(to.len()));
    (size <= BYTES_MAX).then(|| Value::Text(text.replace(from, to)))
}

/// The match, or its groups: a map when they have names.
fn first_match(pattern: &str, text: &str) -> Option<Value> {
    let pattern = rules::regex(pattern).ok()?;
    let found = pattern.captures(text)?;
    let group = |at: usize| Value::Text(found.get(at).map_or("", |group| group.as_str()).to_owned());
    let names: Vec<Option<&str>> = pattern.capture_names().skip(1).collect();
    if names.is_empty() {
        return Some(group(0));
    }
    if names.iter().all(Option::is_some) {
        let named = names.iter().enumerate().filter_map(|(at, name)| Some(((*name)?.to_owned(), group(at + 1))));
        return Some(Value::Map(named.collect()));
    }
    Some(Value::List((1..=names.len()).map(group).collect()))
}

fn range(start: f64, end: f64, step: f64) -> Option<Value> {
    let steps = ((end - start) / step).ceil();
    if step == 0.0 || !steps.is_finite() || steps > RANGE_MAX {
        return None;
    }
    let steps = steps.max(0.0) as u32;
    Some(Value::List((0..steps).map(|at| Value::Number(start + f64::from(at) * step)).collect()))
}

fn fold_numbers(first: &Value, rest: &[Value], choose: fn(f64, f64) -> f64) -> Option<Value> {
    rest.iter().try_fold(first.number()?, |best, value| Some(choose(best, value.number()?))).map(Value::Number)
}

fn flat(lists: &[Value]) -> Option<Vec<Value>> {
    let mut all = Vec::new();
    for list in lists {
        let Value::List(items) = list else { return None };
        all.extend(items.iter().cloned());
    }
    Some(all)
}

fn flatten(items: &[Value], all: &mut Vec<Value>) {
    for item in items {
        match item {
            Value::List(inner) => flatten(inner, all),
            other => all.push(other.clone()),
        }
    }
}

/// In the order of their first appearance.
fn distinct(items: &[Value]) -> Vec<Value> {
    let mut seen = BTreeSet::new();
    items.iter().filter(|item| seen.insert(to_json(item).to_string())).cloned().collect()
}

/// Go's verbs: `%s %v %q %d %f %t %x %%`, with width and precision for numbers.
fn format(format: &str, values: &[Value]) -> Option<String> {
    let mut values = values.iter();
    let mut result = String::new();
    let mut rest = format;
    while let Some(at) = rest.find('%') {
        result.push_str(&rest[..at]);
        let (flags, verb, after) = verb(&rest[at + 1..])?;
        rest = after;
        if verb == '%' {
            result.push('%');
            continue;
        }
        result.push_str(&formatted(flags, verb, values.next()?)?);
        if result.len() > BYTES_MAX {
            return None;
        }
    }
    result.push_str(rest);
    values.next().is_none().then_some(result)
}

fn verb(text: &str) -> Option<(&str, char, &str)> {
    let end = text.find(|c: char| !(c.is_ascii_digit() || matches!(c, '.' | '-' | '+' | '0' | ' ')))?;
    let verb = text[end..].chars().next()?;
    Some((&text[..end], verb, &text[end + verb.len_utf8()..]))
}

fn formatted(flags: &str, verb: char, value: &Value) -> Option<String> {
    let (width, precision) = flags.split_once('.').map_or((flags, None), |(width, precision)| (width, Some(precision)));
    let precision =
        precision.map(|digits| digits.parse::<usize>().ok().filter(|digits| *digits <= 100)).unwrap_or(Some(6))?;
    let plain = match verb {
        's' => value.text()?,
        'v' => value.text().unwrap_or_else(|| to_json(value).to_string()),
        'q' => serde_json::Value::from(value.text()?).to_string(),
        't' => value.bool()?.to_string(),
        'd' => value.number().filter(|number| number.fract() == 0.0).map(|number| format!("{number:.0}"))?,
        'x' => format!("{:x}", value.number().filter(|number| number.fract() == 0.0 && *number >= 0.0)? as u64),
        'f' => format!("{:.precision$}", value.number()?),
        _ => return None,
    };
    let left = width.starts_with('-');
    let zeros = width.starts_with('0');
    let digits = width.trim_start_matches(['-', '+', '0', ' ']);
    let width = if digits.is_empty() { 0 } else { digits.parse::<usize>().ok().filter(|width| *width <= 1000)? };
    Some(match (left, zeros) {
        (true, _) => format!("{plain:<width$}"),
        (false, true) => "0".repeat(width.saturating_sub(plain.chars().count())) + &plain,
        (false, false) => format!("{plain:>width$}"),
    })
}

fn format_list(text: &str, values: &[Value]) -> Option<Value> {
    let lengths = values.iter().filter_map(|value| match value {
        Value::List(items) => Some(items.len()),
        _ => None,
    });
    let lengths: BTreeSet<usize> = lengths.collect();
    let count = if lengths.is_empty() { 1 } else { lengths.first().copied().filter(|_| lengths.len() == 1)? };
    let row = |at: usize| {
        let args = values.iter().map(|value| match value {
            Value::List(items) => items.get(at).cloned(),
            other => Some(other.clone()),
        });
        format(text, &args.collect::<Option<Vec<_>>>()?).map(Value::Text)
    };
    (0..count).map(row).collect::<Option<Vec<_>>>().map(Value::List)
}

fn url_encoded(text: &str) -> String {
    let plain = |byte: u8| byte.is_ascii_alphanumeric() || matches!(byte, b'-' | b'_' | b'.' | b'~');
    let encode = |byte: u8| match byte {
        b' ' => "+".to_owned(),
        byte if plain(byte) => char::from(byte).to_string(),
        byte => format!("%{byte:02X}"),
    };
    text.bytes().map(encode).collect()
}

fn to_json(value: &Value) -> serde_json::Value {
    match value {
        Value::Null => serde_json::Value::Null,
        Value::Bool(value) => (*value).into(),
        Value::Number(value) if value.fract() == 0.0 && value.abs() < 9e15 => (*value as i64).into(),
        Value::Number(value) => (*value).into(),
        Value::Text(text) => text.as_str().into(),
        Value::List(items) => items.iter().map(to_json).collect(),
        Value::Map(fields) => {
            serde_json::Value::Object(fields.iter().map(|(key, value)| (key.clone(), to_json(value))).collect())
        }
    }
}

fn from_json(json: &serde_json::Value) -> Value {
    match json {
        serde_json::Value::Null => Value::Null,
        serde_json::Value::Bool(value) => Value::Bool(*value),
        serde_json::Value::Number(number) => Value::Number(number.as_f64().unwrap_or(f64::NAN)),
        serde_json::Value::String(text) => Value::Text(text.clone()),
        serde_json::Value::Array(items) => Value::List(items.iter().map(from_json).collect()),
        serde_json::Value::Object(fields) => {
            Value::Map(fields.iter().map(|(key, value)| (key.clone(), from_json(value))).collect())
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn t(text: &str) -> Value {
        Value::Text(text.to_owned())
    }

    fn n(value: f64) -> Value {
        Value::Number(value)
    }

    fn l(items: &[Value]) -> Value {
        Value::List(items.to_vec())
    }

    #[track_caller]
    fn check(name: &str, args: &[Value], expected: Value) {
        assert!(NAMES.contains(&name), "{name}");
        assert_eq!(apply(name, args), Some(expected), "{name}");
    }

    #[test]
    fn texts() {
        check("title", &[t("hello big world")], t("Hello Big World"));
        check("trim", &[t("--a--"), t("-")], t("a"));
        check("trimprefix", &[t("v1.2"), t("v")], t("1.2"));
        check("substr", &[t("hello"), n(1.0), n(3.0)], t("ell"));
        check("substr", &[t("hello"), n(-2.0), n(-1.0)], t("lo"));
        check("replace", &[t("a-b-c"), t("/[bc]/"), t("x")], t("a-x-x"));
        check("regex", &[t("(?P<major>[0-9]+)\\.([0-9]+)"), t("v12.3")], l(&[t("12"), t("3")]));
        check("regex", &[t("[0-9]+"), t("v12.3")], t("12"));
        check("indent", &[n(2.0), t("a\nb")], t("a\n  b"));
        check("base64decode", &[t("aGk=")], t("hi"));
        check("urlencode", &[t("a b/ü")], t("a+b%2F%C3%BC"));
        assert_eq!(apply("replace", &[t("aaa"), t(""), t("x")]), None);
    }

    #[test]
    fn formats_follow_gos_verbs() {
        check(
            "format",
            &[
                t("%s-%03d|%-4s|%.2f|%q|%%|%t|%v"),
                t("a"),
                n(7.0),
                t("b"),
                n(1.5),
                t("c"),
                Value::Bool(true),
                l(&[n(1.0)]),
            ],
            t("a-007|b   |1.50|\"c\"|%|true|[1]"),
        );
        check("formatlist", &[t("%s:%d"), l(&[t("a"), t("b")]), n(80.0)], l(&[t("a:80"), t("b:80")]));
        for wrong in [&[t("%d"), t("x")][..], &[t("%s")], &[t("a"), t("b")], &[t("%1000000s"), t("a")], &[t("%")]] {
            assert_eq!(apply("format", wrong), None, "{wrong:?}");
        }
    }

    #[test]
    fn lists_and_maps() {
        check("flatten", &[l(&[l(&[n(1.0), l(&[n(2.0)])]), n(3.0)])], l(&[n(1.0), n(2.0), n(3.0)]));
        check("distinct", &[l(&[t("b"), t("a"), t("b")])], l(&[t("b"), t("a")]));
        check("element", &[l(&[t("a"), t("b")]), n(3.0)], t("b"));
        check("slice", &[l(&[n(1.0), n(2.0), n(3.0)]), n(1.0), n(3.0)], l(&[n(2.0), n(3.0)]));
        check("range", &[n(3.0)], l(&[n(0.0), n(1.0), n(2.0)]));
        check("range", &[n(3.0), n(0.0), n(-2.0)], l(&[n(3.0), n(1.0)]));
        check("chunklist", &[l(&[n(1.0), n(2.0), n(3.0)]), n(2.0)], l(&[l(&[n(1.0), n(2.0)]), l(&[n(3.0)])]));
        check("setintersection", &[l(&[n(1.0), n(2.0)]), l(&[n(2.0)])], l(&[n(2.0)]));
        let map = Value::Map(BTreeMap::from([("a".to_owned(), n(1.0)), ("b".to_owned(), n(2.0))]));
        check("keys", std::slice::from_ref(&map), l(&[t("a"), t("b")]));
        check("lookup", &[map.clone(), t("c"), t("none")], t("none"));
        check("zipmap", &[l(&[t("a"), t("b")]), l(&[n(1.0), n(2.0)])], map.clone());
        check("jsonencode", std::slice::from_ref(&map), t("{\"a\":1,\"b\":2}"));
        check("jsondecode", &[t("{\"a\": 1, \"b\": 2}")], map);
        for hostile in [[n(0.0), n(1e12), n(1.0)], [n(0.0), n(1.0), n(0.0)], [n(0.0), n(1.0), n(1e-12)]] {
            assert_eq!(apply("range", &hostile), None);
        }
    }
}
