//! Texts in, texts out.

use super::{Entry, Outcome, int, list, loose, string, text};
use crate::exec::{Context, Fault};
use crate::value::Value;
use regex::{Regex, RegexBuilder};

/// A pattern is the user's: its compiled form is bounded, and matching takes linear time whatever it is.
const REGEX_SIZE_MAX: usize = 1 << 20;

pub const TABLE: &[Entry] = &[
    ("toLower", 1, 1, |_, args| text(string(&args[0])?.to_lowercase())),
    ("toUpper", 1, 1, |_, args| text(string(&args[0])?.to_uppercase())),
    ("toTitle", 1, 1, |_, args| text(title(&string(&args[0])?))),
    ("trim", 2, 2, |_, args| text(trim(&string(&args[1])?, &string(&args[0])?))),
    ("trimSpace", 1, 1, |_, args| text(string(&args[0])?.trim())),
    ("trimPrefix", 2, 2, |_, args| {
        let (prefix, whole) = (string(&args[0])?, string(&args[1])?);
        text(whole.strip_prefix(prefix.as_ref()).unwrap_or(&whole))
    }),
    ("trimSuffix", 2, 2, |_, args| {
        let (suffix, whole) = (string(&args[0])?, string(&args[1])?);
        text(whole.strip_suffix(suffix.as_ref()).unwrap_or(&whole))
    }),
    ("replaceAll", 3, 3, |c, args| replaced(c, &string(&args[2])?, &string(&args[0])?, &string(&args[1])?)),
    ("regexMatch", 2, 2, |_, args| Ok(Value::Bool(pattern(&string(&args[0])?)?.is_match(&string(&args[1])?)))),
    ("regexReplaceAll", 3, 3, |c, args| regex_replaced(c, &string(&args[0])?, &string(&args[1])?, &string(&args[2])?)),
    ("split", 2, 2, |c, args| split(c, &string(&args[1])?, &string(&args[0])?)),
    ("join", 2, 2, |c, args| joined(c, list(&args[1])?, &string(&args[0])?)),
    ("indent", 2, 2, |c, args| indented(c, &string(&args[1])?, int(&args[0])?)),
];

/// Every word with a capital, as Go's strings.Title.
pub fn title(whole: &str) -> String {
    let mut starts = true;
    let mut out = String::with_capacity(whole.len());
    for c in whole.chars() {
        if starts {
            out.extend(c.to_uppercase());
        } else {
            out.push(c);
        }
        starts = !(c.is_alphanumeric() || c == '_' || c == '\'');
    }
    out
}

pub fn trim<'a>(whole: &'a str, set: &str) -> &'a str {
    whole.trim_matches(|c| set.contains(c))
}

pub fn replaced(context: &mut Context<'_>, whole: &str, from: &str, to: &str) -> Outcome {
    let count = if from.is_empty() { whole.chars().count() + 1 } else { whole.matches(from).count() };
    context.make(whole.len().saturating_add(count.saturating_mul(to.len())))?;
    text(whole.replace(from, to))
}

pub fn pattern(text: &str) -> Result<Regex, Fault> {
    let built = RegexBuilder::new(text).size_limit(REGEX_SIZE_MAX).dfa_size_limit(REGEX_SIZE_MAX).build();
    built.map_err(|error| {
        let text = error.to_string();
        let reason = text.lines().last().unwrap_or_default().trim_start_matches("error: ").to_owned();
        Fault::new(format!("not a regular expression: {reason}"))
    })
}

pub fn regex_replaced(context: &mut Context<'_>, from: &str, to: &str, whole: &str) -> Outcome {
    let pattern = pattern(from)?;
    let mut out = String::with_capacity(whole.len());
    let mut done = 0;
    for found in pattern.captures_iter(whole) {
        let Some(all) = found.get(0) else { continue };
        // A replacement of n bytes names at most n/2 groups.
        context.make(to.len().saturating_add(all.len().saturating_mul(to.len() / 2)))?;
        out.push_str(&whole[done..all.start()]);
        found.expand(to, &mut out);
        done = all.end();
    }
    out.push_str(&whole[done..]);
    context.make(out.len())?;
    text(out)
}

pub fn split(context: &mut Context<'_>, whole: &str, separator: &str) -> Outcome {
    context.make(whole.len().saturating_mul(4) + 64)?;
    match (whole, separator) {
        ("", _) => Ok(Value::list(Vec::new())?),
        (whole, "") => Ok(Value::texts(whole.chars().map(String::from))),
        (whole, separator) => Ok(Value::texts(whole.split(separator))),
    }
}

pub fn joined(context: &mut Context<'_>, items: &[Value], separator: &str) -> Outcome {
    let mut parts = Vec::with_capacity(items.len());
    for item in items {
        let part = loose(item);
        context.make(part.len() + separator.len())?;
        parts.push(part);
    }
    let whole = parts.join(separator);
    context.make(whole.len())?;
    text(whole)
}

/// Spaces before every line that is not empty.
pub fn indented(context: &mut Context<'_>, whole: &str, spaces: i64) -> Outcome {
    let spaces = usize::try_from(spaces).map_err(|_| Fault::new("the number of spaces must not be negative"))?;
    let lines = whole.matches('\n').count() + 1;
    context.make(whole.len().saturating_add(lines.saturating_mul(spaces)))?;
    let prefix = " ".repeat(spaces);
    let mut out = String::with_capacity(whole.len());
    for line in whole.split_inclusive('\n') {
        if line != "\n" {
            out.push_str(&prefix);
        }
        out.push_str(line);
    }
    text(out)
}
