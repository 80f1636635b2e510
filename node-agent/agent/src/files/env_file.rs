//! `KEY=value` lines of a template with `env = true`.

use std::collections::BTreeMap;

pub fn parse(text: &[u8]) -> Result<BTreeMap<String, String>, String> {
    let text = std::str::from_utf8(text).map_err(|_| "its text is no UTF-8".to_owned())?;
    let mut env = BTreeMap::new();
    for (number, line) in text.lines().enumerate() {
        let line = line.trim();
        if line.is_empty() || line.starts_with('#') {
            continue;
        }
        let wrong = |reason: &str| format!("line {}: {reason}", number + 1);
        let line = line.strip_prefix("export ").unwrap_or(line);
        let (key, value) = line.split_once('=').ok_or_else(|| wrong("has no `=`; write KEY=value"))?;
        let key = key.trim();
        let is_name = !key.is_empty() && !key.contains(|c: char| c.is_whitespace() || c.is_control());
        if !is_name {
            return Err(wrong("has no name before `=`"));
        }
        env.insert(key.to_owned(), value_of(value.trim()).map_err(wrong)?);
    }
    Ok(env)
}

/// Double quotes know escapes, single ones none; without quotes it is the rest of the line.
fn value_of(text: &str) -> Result<String, &'static str> {
    let value = if let Some(quoted) = text.strip_prefix('\'') {
        quoted.strip_suffix('\'').ok_or("has a quote that is not closed")?.to_owned()
    } else if let Some(quoted) = text.strip_prefix('"') {
        unescaped(quoted)?
    } else {
        text.to_owned()
    };
    if value.contains('\0') { Err("has a zero byte") } else { Ok(value) }
}

fn unescaped(quoted: &str) -> Result<String, &'static str> {
    let mut out = String::new();
    let mut chars = quoted.chars();
    while let Some(c) = chars.next() {
        match c {
            '"' if chars.as_str().trim().is_empty() || chars.as_str().trim().starts_with('#') => return Ok(out),
            '"' => return Err("goes on after its closing quote"),
            '\\' => match chars.next() {
                Some('n') => out.push('\n'),
                Some('r') => out.push('\r'),
                Some('t') => out.push('\t'),
                Some(same) => out.push(same),
                None => break,
            },
            c => out.push(c),
        }
    }
    Err("has a quote that is not closed")
}
