//! What templates use most of sprig: as `sprig_<name>`, and by its bare name where consul-template has none of its own.

use super::{Entry, MANY, Outcome, codec, collections, int, json, list, loose, math, string, text, wanted};
use crate::exec::{Context, Fault};
use crate::format;
use crate::value::Value;
use base64::engine::general_purpose::STANDARD;
use std::collections::{BTreeMap, BTreeSet};

pub const TABLE: &[Entry] = &[
    ("default", 1, 2, |_, args| Ok(args.get(1).filter(|given| given.is_true()).unwrap_or(&args[0]).clone())),
    ("empty", 1, 1, |_, args| Ok(Value::Bool(!args[0].is_true()))),
    ("coalesce", 0, MANY, |_, args| Ok(args.iter().find(|arg| arg.is_true()).cloned().unwrap_or(Value::Nil))),
    ("ternary", 3, 3, |_, args| Ok(args[usize::from(!args[2].is_true())].clone())),
    ("fail", 1, 1, |_, args| Err(Fault(string(&args[0])?.into_owned()))),
    ("quote", 0, MANY, |c, args| each(c, args, |text| format::quote(text.as_bytes(), false))),
    ("squote", 0, MANY, |c, args| each(c, args, |text| format!("'{text}'"))),
    ("cat", 0, MANY, |c, args| each(c, args, str::to_owned)),
    ("trim", 1, 1, |_, args| text(string(&args[0])?.trim())),
    ("trimAll", 2, 2, |_, args| text(super::text::trim(&string(&args[1])?, &string(&args[0])?))),
    ("trimPrefix", 2, 2, |_, args| {
        let (prefix, whole) = (string(&args[0])?, string(&args[1])?);
        text(whole.strip_prefix(prefix.as_ref()).unwrap_or(&whole))
    }),
    ("trimSuffix", 2, 2, |_, args| {
        let (suffix, whole) = (string(&args[0])?, string(&args[1])?);
        text(whole.strip_suffix(suffix.as_ref()).unwrap_or(&whole))
    }),
    ("upper", 1, 1, |_, args| text(string(&args[0])?.to_uppercase())),
    ("lower", 1, 1, |_, args| text(string(&args[0])?.to_lowercase())),
    ("title", 1, 1, |_, args| text(super::text::title(&string(&args[0])?))),
    ("nospace", 1, 1, |_, args| text(string(&args[0])?.split_whitespace().collect::<String>())),
    ("contains", 2, 2, |_, args| Ok(Value::Bool(string(&args[1])?.contains(string(&args[0])?.as_ref())))),
    ("hasPrefix", 2, 2, |_, args| Ok(Value::Bool(string(&args[1])?.starts_with(string(&args[0])?.as_ref())))),
    ("hasSuffix", 2, 2, |_, args| Ok(Value::Bool(string(&args[1])?.ends_with(string(&args[0])?.as_ref())))),
    ("replace", 3, 3, |c, args| super::text::replaced(c, &string(&args[2])?, &string(&args[0])?, &string(&args[1])?)),
    ("repeat", 2, 2, repeat),
    ("substr", 3, 3, |_, args| substr(int(&args[0])?, int(&args[1])?, &string(&args[2])?)),
    ("trunc", 2, 2, |_, args| trunc(int(&args[0])?, &string(&args[1])?)),
    ("indent", 2, 2, |c, args| indent(c, args, "")),
    ("nindent", 2, 2, |c, args| indent(c, args, "\n")),
    ("splitList", 2, 2, |c, args| super::text::split(c, &string(&args[1])?, &string(&args[0])?)),
    ("join", 2, 2, |c, args| super::text::joined(c, list(&args[1])?, &string(&args[0])?)),
    ("regexMatch", 2, 2, |_, args| {
        Ok(Value::Bool(super::text::pattern(&string(&args[0])?)?.is_match(&string(&args[1])?)))
    }),
    ("regexReplaceAll", 3, 3, |c, args| {
        super::text::regex_replaced(c, &string(&args[0])?, &string(&args[2])?, &string(&args[1])?)
    }),
    ("list", 0, MANY, |_, args| Ok(Value::list(args.to_vec())?)),
    ("first", 1, 1, |_, args| Ok(list(&args[0])?.first().cloned().unwrap_or(Value::Nil))),
    ("last", 1, 1, |_, args| Ok(list(&args[0])?.last().cloned().unwrap_or(Value::Nil))),
    ("rest", 1, 1, |_, args| Ok(Value::list(list(&args[0])?.iter().skip(1).cloned().collect())?)),
    ("initial", 1, 1, |_, args| {
        let items = list(&args[0])?;
        Ok(Value::list(items[..items.len().saturating_sub(1)].to_vec())?)
    }),
    ("append", 2, 2, |_, args| Ok(Value::list(list(&args[0])?.iter().chain([&args[1]]).cloned().collect())?)),
    ("prepend", 2, 2, |_, args| Ok(Value::list(std::iter::once(&args[1]).chain(list(&args[0])?).cloned().collect())?)),
    ("reverse", 1, 1, |_, args| Ok(Value::list(list(&args[0])?.iter().rev().cloned().collect())?)),
    ("has", 2, 2, |_, args| Ok(Value::Bool(list(&args[1])?.iter().any(|item| collections::is_same(item, &args[0]))))),
    ("compact", 1, 1, |_, args| {
        Ok(Value::list(list(&args[0])?.iter().filter(|item| item.is_true()).cloned().collect())?)
    }),
    ("uniq", 1, 1, uniq),
    ("sortAlpha", 1, 1, sort_alpha),
    ("dict", 0, MANY, dict),
    ("get", 2, 2, |_, args| Ok(entries(&args[0])?.get(string(&args[1])?.as_ref()).cloned().unwrap_or(Value::text("")))),
    ("hasKey", 2, 2, |_, args| Ok(Value::Bool(entries(&args[0])?.contains_key(string(&args[1])?.as_ref())))),
    ("keys", 1, 1, |_, args| Ok(Value::texts(entries(&args[0])?.keys()))),
    ("values", 1, 1, |_, args| Ok(Value::list(entries(&args[0])?.values().cloned().collect())?)),
    ("pick", 1, MANY, |_, args| chosen(args, true)),
    ("omit", 1, MANY, |_, args| chosen(args, false)),
    ("int", 1, 1, |_, args| Ok(Value::Int(whole(&args[0])))),
    ("int64", 1, 1, |_, args| Ok(Value::Int(whole(&args[0])))),
    ("atoi", 1, 1, |_, args| Ok(Value::Int(string(&args[0])?.parse().unwrap_or(0)))),
    ("float64", 1, 1, |_, args| Ok(Value::Float(loose(&args[0]).parse().unwrap_or(0.0)))),
    ("toString", 1, 1, |_, args| text(loose(&args[0]))),
    ("sub", 2, 2, |_, args| math::two(&[args[1].clone(), args[0].clone()], i64::checked_sub, |a, b| a - b)),
    ("mul", 2, 2, |_, args| math::two(args, i64::checked_mul, |a, b| a * b)),
    ("div", 2, 2, |_, args| math::two(&[args[1].clone(), args[0].clone()], i64::checked_div, |a, b| a / b)),
    ("mod", 2, 2, |_, args| math::two(&[args[1].clone(), args[0].clone()], i64::checked_rem, |a, b| a % b)),
    ("max", 2, 2, |_, args| math::two(args, |a, b| Some(a.max(b)), f64::max)),
    ("min", 2, 2, |_, args| math::two(args, |a, b| Some(a.min(b)), f64::min)),
    ("ceil", 1, 1, |_, args| Ok(Value::Float(math::float(&args[0])?.ceil()))),
    ("floor", 1, 1, |_, args| Ok(Value::Float(math::float(&args[0])?.floor()))),
    ("until", 1, 1, |c, args| collections::numbers(c, 0, int(&args[0])?, if int(&args[0])? < 0 { -1 } else { 1 })),
    ("untilStep", 3, 3, |c, args| collections::numbers(c, int(&args[0])?, int(&args[1])?, int(&args[2])?)),
    ("b64enc", 1, 1, |c, args| codec::encode(c, &STANDARD, &args[0])),
    ("b64dec", 1, 1, |_, args| codec::decode(&STANDARD, &args[0])),
    ("sha1sum", 1, 1, |_, args| codec::digest(&ring::digest::SHA1_FOR_LEGACY_USE_ONLY, &args[0])),
    ("sha256sum", 1, 1, |_, args| codec::digest(&ring::digest::SHA256, &args[0])),
    ("sha512sum", 1, 1, |_, args| codec::digest(&ring::digest::SHA512, &args[0])),
    ("fromJson", 1, 1, json::parse),
    ("toJson", 1, 1, |c, args| super::call(c, "toJSON", args)),
    ("toPrettyJson", 1, 1, |c, args| super::call(c, "toJSONPretty", args)),
    ("toRawJson", 1, 1, |c, args| super::call(c, "toUnescapedJSON", args)),
    ("kindOf", 1, 1, |_, args| {
        text(match &args[0] {
            Value::Nil => "invalid",
            Value::List(_) => "slice",
            Value::Map(_) => "map",
            Value::Record(_) | Value::Scratch(_) => "struct",
            plain => plain.kind(),
        })
    }),
    ("typeOf", 1, 1, |_, args| text(args[0].kind())),
];

/// Those that are not nil, with a space between.
fn each(context: &mut Context<'_>, args: &[Value], show: fn(&str) -> String) -> Outcome {
    let given = args.iter().filter(|arg| !matches!(arg, Value::Nil)).map(loose);
    let shown: Vec<String> = given.map(|text| show(&text)).collect();
    context.make(shown.iter().map(String::len).sum())?;
    text(shown.join(" "))
}

fn repeat(context: &mut Context<'_>, args: &[Value]) -> Outcome {
    let (count, whole) = (usize::try_from(int(&args[0])?).unwrap_or(0), string(&args[1])?);
    context.make(whole.len().saturating_mul(count))?;
    text(whole.repeat(count))
}

fn substr(from: i64, to: i64, whole: &str) -> Outcome {
    let bytes = whole.as_bytes();
    let end = usize::try_from(to).unwrap_or(bytes.len()).min(bytes.len());
    let start = usize::try_from(from).unwrap_or(0).min(end);
    text(&bytes[start..end])
}

/// The first so many bytes, or the last ones where the count is negative.
fn trunc(count: i64, whole: &str) -> Outcome {
    let length = usize::try_from(count.unsigned_abs()).unwrap_or(usize::MAX).min(whole.len());
    let bytes = whole.as_bytes();
    text(if count < 0 { &bytes[bytes.len() - length..] } else { &bytes[..length] })
}

fn indent(context: &mut Context<'_>, args: &[Value], before: &str) -> Outcome {
    let spaces = usize::try_from(int(&args[0])?).unwrap_or(0);
    let whole = string(&args[1])?;
    let lines = whole.matches('\n').count() + 1;
    context.make(whole.len().saturating_add(lines.saturating_mul(spaces)))?;
    let pad = " ".repeat(spaces);
    text(format!("{before}{pad}{}", whole.replace('\n', &format!("\n{pad}"))))
}

fn uniq(_: &mut Context<'_>, args: &[Value]) -> Outcome {
    let mut seen = BTreeSet::new();
    let kept = list(&args[0])?.iter().filter(|item| seen.insert((item.kind(), loose(item)))).cloned().collect();
    Ok(Value::list(kept)?)
}

fn sort_alpha(_: &mut Context<'_>, args: &[Value]) -> Outcome {
    let mut texts: Vec<String> = list(&args[0])?.iter().map(loose).collect();
    texts.sort();
    Ok(Value::texts(texts))
}

fn dict(_: &mut Context<'_>, args: &[Value]) -> Outcome {
    let pairs = args.chunks(2).map(|pair| (loose(&pair[0]), pair.get(1).cloned().unwrap_or(Value::text(""))));
    Ok(Value::map(pairs.collect())?)
}

fn entries(value: &Value) -> Result<&BTreeMap<String, Value>, Fault> {
    match value {
        Value::Map(map) => Ok(map.entries()),
        other => Err(wanted("a map", other)),
    }
}

fn chosen(args: &[Value], named: bool) -> Outcome {
    let names: Result<BTreeSet<String>, Fault> = args[1..].iter().map(|arg| Ok(string(arg)?.into_owned())).collect();
    let names = names?;
    let kept = entries(&args[0])?.iter().filter(|(key, _)| names.contains(*key) == named);
    Ok(Value::map(kept.map(|(key, value)| (key.clone(), value.clone())).collect())?)
}

fn whole(value: &Value) -> i64 {
    match value {
        Value::Int(number) => *number,
        #[expect(clippy::cast_possible_truncation, reason = "saturates, as is wanted")]
        Value::Float(number) => *number as i64,
        Value::Bool(truth) => i64::from(*truth),
        other => loose(other).trim().parse().unwrap_or(0),
    }
}
