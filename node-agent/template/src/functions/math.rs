//! Numbers. As in consul-template the piped number comes last and is computed from: `5 | subtract 2` is 3.

use super::{Entry, Outcome, string, wanted};
use crate::exec::{Context, Fault};
use crate::value::Value;

pub const TABLE: &[Entry] = &[
    ("add", 2, 2, |_, args| two(args, i64::checked_add, |a, b| a + b)),
    ("subtract", 2, 2, |_, args| two(args, i64::checked_sub, |a, b| a - b)),
    ("multiply", 2, 2, |_, args| two(args, i64::checked_mul, |a, b| a * b)),
    ("divide", 2, 2, |_, args| two(args, i64::checked_div, |a, b| a / b)),
    ("modulo", 2, 2, modulo),
    ("minimum", 2, 2, |_, args| two(args, |a, b| Some(a.min(b)), f64::min)),
    ("maximum", 2, 2, |_, args| two(args, |a, b| Some(a.max(b)), f64::max)),
    ("parseBool", 1, 1, parse_bool),
    ("parseFloat", 1, 1, |_, args| parsed(args, Value::Float(0.0), |text| text.parse().ok().map(Value::Float))),
    ("parseInt", 1, 1, |_, args| parsed(args, Value::Int(0), |text| text.parse().ok().map(Value::Int))),
    ("parseUint", 1, 1, |_, args| {
        parsed(args, Value::Int(0), |text| text.parse().ok().filter(|number: &i64| *number >= 0).map(Value::Int))
    }),
];

/// Of whole numbers a whole number, else a float. `a` is the last argument.
pub fn two(args: &[Value], ints: fn(i64, i64) -> Option<i64>, floats: fn(f64, f64) -> f64) -> Outcome {
    let (b, a) = (&args[0], &args[1]);
    match (a, b) {
        (Value::Int(_), Value::Int(0)) if ints(1, 0).is_none() => Err(Fault::new("division by zero")),
        (Value::Int(a), Value::Int(b)) => {
            ints(*a, *b).map(Value::Int).ok_or_else(|| Fault::new("the result does not fit into 64 bits"))
        }
        _ => Ok(Value::Float(floats(float(a)?, float(b)?))),
    }
}

pub fn float(value: &Value) -> Result<f64, Fault> {
    match value {
        #[expect(clippy::cast_precision_loss, reason = "as Go's float64(int) does")]
        Value::Int(number) => Ok(*number as f64),
        Value::Float(number) => Ok(*number),
        other => Err(wanted("a number", other)),
    }
}

fn modulo(_: &mut Context<'_>, args: &[Value]) -> Outcome {
    match (&args[1], &args[0]) {
        (Value::Int(_), Value::Int(0)) => Err(Fault::new("division by zero")),
        (Value::Int(a), Value::Int(b)) => Ok(Value::Int(a.checked_rem(*b).unwrap_or(0))),
        (a, _) => Err(wanted("whole numbers", a)),
    }
}

fn parse_bool(_: &mut Context<'_>, args: &[Value]) -> Outcome {
    parsed(args, Value::Bool(false), |text| match text {
        "1" | "t" | "T" | "true" | "TRUE" | "True" => Some(Value::Bool(true)),
        "0" | "f" | "F" | "false" | "FALSE" | "False" => Some(Value::Bool(false)),
        _ => None,
    })
}

/// The empty text is the zero value: data that is not there yet shows as it.
fn parsed(args: &[Value], zero: Value, parse: fn(&str) -> Option<Value>) -> Outcome {
    let text = string(&args[0])?;
    if text.is_empty() {
        return Ok(zero);
    }
    parse(&text).ok_or_else(|| Fault::new(format!("{text:?} is not a {}", zero.kind())))
}
