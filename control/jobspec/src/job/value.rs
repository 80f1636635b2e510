//! Values as the keys of a job file want them, with the conversions that Nomad's users rely on.

use super::Reader;
use crate::eval::Value;
use hcl_edit::expr::Expression;
use std::collections::BTreeMap;
use std::time::Duration;

impl Reader<'_, '_, '_> {
    pub(super) fn value(&mut self, expression: &Expression) -> Option<Value> {
        self.scope.value(expression, self.source).filter(|value| *value != Value::Null)
    }

    /// A string; numbers and booleans are taken as their text.
    pub(super) fn text(&mut self, expression: Option<&Expression>) -> Option<String> {
        let expression = expression?;
        let value = self.value(expression)?;
        let text = value.text();
        if text.is_none() {
            self.source.problem(expression, format!("must be a string, not {}", value.kind()));
        }
        text
    }

    pub(super) fn texts(&mut self, expression: Option<&Expression>) -> Vec<String> {
        let Some(expression) = expression else { return Vec::new() };
        let Some(value) = self.value(expression) else { return Vec::new() };
        let texts = match &value {
            Value::List(items) => items.iter().map(Value::text).collect::<Option<Vec<_>>>(),
            _ => None,
        };
        texts.unwrap_or_else(|| {
            self.source.problem(
                expression,
                format!("must be a list of strings, such as [\"a\", \"b\"], not {}", value.kind()),
            );
            Vec::new()
        })
    }

    pub(super) fn text_map(&mut self, expression: &Expression) -> BTreeMap<String, String> {
        let Some(value) = self.value(expression) else { return BTreeMap::new() };
        let texts = match &value {
            Value::Map(fields) => fields.iter().map(|(key, value)| Some((key.clone(), value.text()?))).collect(),
            _ => None,
        };
        texts.unwrap_or_else(|| {
            self.source.problem(expression, format!("must be a map of strings, not {}", value.kind()));
            BTreeMap::new()
        })
    }

    /// A whole number within `min..=max`; text such as "5" counts.
    pub(super) fn number<T: TryFrom<u64>>(
        &mut self,
        expression: Option<&Expression>,
        min: u64,
        max: u64,
        default: T,
    ) -> T {
        let Some(expression) = expression else { return default };
        let Some(value) = self.value(expression) else { return default };
        match whole(&value).filter(|number| (min..=max).contains(number)).map(T::try_from) {
            Some(Ok(number)) => number,
            _ => {
                let is = value.text().unwrap_or_else(|| value.kind().to_owned());
                let wanted = if max >= i64::MAX as u64 { format!("{min} or more") } else { format!("{min} to {max}") };
                self.source.problem(expression, format!("must be a whole number, {wanted}, not {is}"));
                default
            }
        }
    }

    /// A port: as a number, but -1 and 0 mean none.
    pub(super) fn port(&mut self, expression: Option<&Expression>) -> Option<u16> {
        let expression = expression?;
        let value = self.value(expression)?;
        if value.number().is_some_and(|number| number == 0.0 || number == -1.0) {
            return None;
        }
        Some(self.number(Some(expression), 1, 65_535, 1))
    }

    /// "30s", "1h30m", "500ms" and so on.
    pub(super) fn duration(&mut self, expression: Option<&Expression>, default: Duration) -> Duration {
        let Some(expression) = expression else { return default };
        let Some(value) = self.value(expression) else { return default };
        let parsed = match &value {
            Value::Text(text) => duration(text),
            _ => None,
        };
        parsed.unwrap_or_else(|| {
            let is = value.text().map_or_else(|| value.kind().to_owned(), |text| format!("{text:?}"));
            self.source
                .problem(expression, format!("must be a duration with a unit, such as \"30s\" or \"1h30m\", not {is}"));
            default
        })
    }
}

fn whole(value: &Value) -> Option<u64> {
    // Beyond 2^53 a float no longer holds every whole number.
    const EXACT_MAX: f64 = 9_007_199_254_740_992.0;
    let number = value.number()?;
    (number.fract() == 0.0 && (0.0..=EXACT_MAX).contains(&number)).then_some(number as u64)
}

/// Go's notation: decimal numbers, each with a unit, added up.
pub(super) fn duration(text: &str) -> Option<Duration> {
    const UNITS: [(&str, f64); 7] =
        [("ns", 1.0), ("us", 1e3), ("µs", 1e3), ("ms", 1e6), ("s", 1e9), ("m", 60e9), ("h", 3600e9)];
    if text == "0" {
        return Some(Duration::ZERO);
    }
    let mut rest = text;
    let mut nanos = 0.0;
    while !rest.is_empty() {
        let digits = rest.find(|c: char| !c.is_ascii_digit() && c != '.')?;
        let (number, after) = rest.split_at(digits);
        let end = after.find(|c: char| c.is_ascii_digit() || c == '.').unwrap_or(after.len());
        let (unit, next) = after.split_at(end);
        let (_, factor) = UNITS.iter().find(|(name, _)| *name == unit)?;
        nanos += number.parse::<f64>().ok()? * factor;
        rest = next;
    }
    // Go's durations end at 2^63 nanoseconds.
    (!text.is_empty() && nanos < i64::MAX as f64).then_some(Duration::from_nanos(nanos as u64))
}
