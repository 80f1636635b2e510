//! The query parameters that most routes share, and the waiting they ask for.

use super::answer::{HttpError, newest};
use crate::member::{Member, shown_index};
use axum::extract::{FromRequestParts, Query};
use axum::http::request::Parts;
use catalog::Catalog;
use model::{Index, Table};
use std::collections::BTreeMap;
use std::time::Duration;
use tokio::time::Instant;

const WAIT_DEFAULT: Duration = Duration::from_secs(300);
const WAIT_MAX: Duration = Duration::from_secs(300);

/// Known ones that would change the answer if they were built, with the value that changes nothing.
const NOT_BUILT: [(&str, &str); 8] = [
    ("filter", ""),
    ("per_page", "0"),
    ("next_token", ""),
    ("region", "global"),
    ("reverse", "false"),
    ("resources", "false"),
    ("eval_priority", "0"),
    ("no_shutdown_delay", "false"),
];

/// Those that are true or false, as Go's clients write it.
const BOOLEANS: [&str; 7] = ["reverse", "resources", "no_shutdown_delay", "purge", "follow", "plain", "stale"];

pub(crate) struct Options {
    /// Answer once the index is greater.
    index: u64,
    wait: Duration,
    stale: bool,
    pub pretty: bool,
    parameters: BTreeMap<String, String>,
}

impl<S: Send + Sync> FromRequestParts<S> for Options {
    type Rejection = HttpError;

    async fn from_request_parts(parts: &mut Parts, state: &S) -> Result<Self, HttpError> {
        let query = Query::<Vec<(String, String)>>::from_request_parts(parts, state).await;
        let Query(pairs) = query.map_err(|error| HttpError::bad_request(error.body_text()))?;
        Self::read(pairs.into_iter().collect())
    }
}

impl Options {
    fn read(parameters: BTreeMap<String, String>) -> Result<Self, HttpError> {
        for name in BOOLEANS {
            if let Some(value) = parameters.get(name).filter(|value| !value.is_empty() && go_bool(value).is_none()) {
                return Err(HttpError::bad_request(format!("{name}: `{value}` is neither true nor false")));
            }
        }
        let asks = |name: &str, default: &str| match parameters.get(name).map(String::as_str) {
            None | Some("") => false,
            Some(value) if default == "false" => go_bool(value) != Some(false),
            Some(value) => value != default,
        };
        if let Some((name, _)) = NOT_BUILT.iter().find(|(name, default)| asks(name, default)) {
            return Err(HttpError::not_built(format!("the parameter `{name}` is not built yet; leave it out")));
        }
        if let Some(name) = parameters.get("namespace").filter(|name| !matches!(name.as_str(), "" | "default" | "*")) {
            let text = format!("namespace `{name}`: namespaces are not built yet; there is only `default`");
            return Err(HttpError::not_built(text));
        }
        let index = match parameters.get("index").filter(|text| !text.is_empty()) {
            Some(text) => text.parse().map_err(|_| HttpError::bad_request(format!("Invalid index `{text}`")))?,
            None => 0,
        };
        let wait = match parameters.get("wait").filter(|text| !text.is_empty()) {
            Some(text) => parse_duration(text)
                .ok_or_else(|| HttpError::bad_request(format!("Invalid wait time `{text}`; write for example 30s")))?,
            None => WAIT_DEFAULT,
        };
        let is_set = |name: &str| parameters.get(name).is_some_and(|value| go_bool(value) != Some(false));
        let (stale, pretty) = (is_set("stale"), is_set("pretty"));
        Ok(Self { index, wait: wait.min(WAIT_MAX), stale, pretty, parameters })
    }

    /// The parameter's value; an empty one counts as absent.
    pub fn get(&self, name: &str) -> Option<&str> {
        self.parameters.get(name).map(String::as_str).filter(|value| !value.is_empty())
    }

    /// Whether the parameter is there, with a value or without.
    pub fn has(&self, name: &str) -> bool {
        self.parameters.contains_key(name)
    }

    pub fn is_true(&self, name: &str) -> bool {
        self.get(name).and_then(go_bool) == Some(true)
    }

    /// Whether `text` starts with what `?prefix` asks for.
    pub fn admits(&self, text: &str) -> bool {
        self.get("prefix").is_none_or(|prefix| text.starts_with(prefix))
    }

    /// The catalog to answer from: no older than the request unless `?stale`, and newer than `?index` unless the wait ran
    /// out.
    pub async fn settle(&self, member: &Member, tables: &[Table]) -> Result<Catalog, HttpError> {
        self.settle_by(member, |catalog| newest(catalog, tables)).await
    }

    /// As [`Options::settle`], for what has an index of its own.
    pub async fn settle_by(&self, member: &Member, index: impl Fn(&Catalog) -> Index) -> Result<Catalog, HttpError> {
        if !self.stale {
            member.read_barrier().await?;
        }
        let mut watch = member.catalog.clone();
        let deadline = Instant::now() + self.wait;
        loop {
            let catalog = watch.borrow_and_update().clone();
            // Index 0 asks for no waiting, and no answer shows an index below 1.
            if self.index == 0 || shown_index(index(&catalog)) > self.index {
                return Ok(catalog);
            }
            match tokio::time::timeout_at(deadline, watch.changed()).await {
                Ok(Ok(())) => {}
                Ok(Err(_)) | Err(_) => return Ok(catalog),
            }
        }
    }
}

/// What Go's `strconv.ParseBool` takes.
fn go_bool(text: &str) -> Option<bool> {
    match text {
        "1" | "t" | "T" | "TRUE" | "true" | "True" => Some(true),
        "0" | "f" | "F" | "FALSE" | "false" | "False" => Some(false),
        _ => None,
    }
}

/// Durations as Go writes them: `1h30m`, `1.5s`, `300ms`; a bare number is nanoseconds.
pub(crate) fn parse_duration(text: &str) -> Option<Duration> {
    if let Ok(nanos) = text.parse::<u64>() {
        return Some(Duration::from_nanos(nanos));
    }
    let mut rest = text;
    let mut total = Duration::ZERO;
    while !rest.is_empty() {
        let unit_at = rest.find(|c: char| !c.is_ascii_digit() && c != '.')?;
        let number: f64 = rest[..unit_at].parse().ok()?;
        let after = &rest[unit_at..];
        let unit_len = after.find(|c: char| c.is_ascii_digit() || c == '.').unwrap_or(after.len());
        let seconds = number * unit_seconds(&after[..unit_len])?;
        total = total.checked_add(Duration::try_from_secs_f64(seconds).ok()?)?;
        rest = &after[unit_len..];
    }
    (!text.is_empty()).then_some(total)
}

fn unit_seconds(unit: &str) -> Option<f64> {
    Some(match unit {
        "ns" => 1e-9,
        "us" | "µs" => 1e-6,
        "ms" => 1e-3,
        "s" => 1.0,
        "m" => 60.0,
        "h" => 3600.0,
        _ => return None,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn durations_are_read_as_go_writes_them() {
        let check = |text: &str, millis: Option<u64>| {
            assert_eq!(parse_duration(text), millis.map(Duration::from_millis), "{text}");
        };
        check("30s", Some(30_000));
        check("1h30m", Some(5_400_000));
        check("1.5s", Some(1_500));
        check("300ms", Some(300));
        check("1000000", Some(1));
        for text in ["", "s", "5 minutes", "5x", "-1s", "1..2s", "1e999s", "99999999999999999999h"] {
            check(text, None);
        }
    }

    #[test]
    fn what_would_change_the_answer_is_refused_rather_than_ignored() {
        let read = |name: &str, value: &str| Options::read([(name.to_owned(), value.to_owned())].into());
        for (name, value) in
            [("filter", "Name == x"), ("per_page", "5"), ("namespace", "web"), ("index", "-1"), ("wait", "x")]
        {
            assert!(read(name, value).is_err(), "{name}={value}");
        }
        for (name, value) in [
            ("region", "eu"),
            ("reverse", "T"),
            ("resources", "true"),
            ("eval_priority", "80"),
            ("no_shutdown_delay", "1"),
            ("purge", "yes"),
        ] {
            assert!(read(name, value).is_err(), "{name}={value}");
        }
        for (name, value) in [("region", "global"), ("reverse", "F"), ("resources", ""), ("eval_priority", "0")] {
            assert!(read(name, value).is_ok(), "{name}={value}");
        }
        for value in ["1", "t", "T", "TRUE", "true", "True"] {
            assert!(read("purge", value).unwrap().is_true("purge"), "{value}");
        }
        assert!(!read("purge", "f").unwrap().is_true("purge"));
        assert!(read("namespace", "*").is_ok());
        assert!(read("pretty", "").unwrap().pretty);
        assert!(!read("stale", "false").unwrap().stale);
        assert_eq!(read("wait", "10h").unwrap().wait, WAIT_MAX);
    }
}
