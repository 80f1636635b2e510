//! `variable` blocks, and the values that they get from outside the file.

use crate::eval::{Scope, Value};
use crate::section::{Section, Shape, nearest};
use crate::source::Source;
use hcl_edit::expr::Expression;
use hcl_edit::structure::{Block, Structure};
use std::collections::BTreeMap;
use thiserror::Error;

const VARIABLE: Shape = Shape {
    name: "variable",
    keys: &["type", "default", "description", "sensitive"],
    blocks: &[],
    not_built: &["validation", "nullable"],
    only: &[],
};

/// Values for the variables of a job file. What is set later wins.
#[derive(Clone, Debug, Default)]
pub struct Inputs {
    values: BTreeMap<String, Input>,
}

#[derive(Clone, Debug)]
enum Input {
    /// As a person wrote it: text, or an expression where the variable's type is a list or a map.
    Written(String),
    Value(Value),
}

/// Why the values of variables are not taken.
#[derive(Clone, Debug, PartialEq, Eq, Error)]
#[error("{place}: {reason}")]
pub struct InputError {
    pub place: String,
    pub reason: String,
}

impl Inputs {
    /// `name=value`.
    pub fn set(&mut self, assignment: &str) -> Result<(), InputError> {
        let problem = || InputError {
            place: assignment.to_owned(),
            reason: "is not an assignment; write `name=value`".to_owned(),
        };
        let (name, value) = assignment.split_once('=').filter(|(name, _)| !name.is_empty()).ok_or_else(problem)?;
        self.values.insert(name.to_owned(), Input::Written(value.to_owned()));
        Ok(())
    }

    /// A file of `name = value` lines.
    pub fn read_file(&mut self, name: &str, text: &str) -> Result<(), InputError> {
        let problem = |reason: String| InputError { place: name.to_owned(), reason };
        let body = hcl_edit::parser::parse_body(text).map_err(|error| {
            let place = error.location();
            problem(format!("{}:{}: {}", place.line(), place.column(), error.message()))
        })?;
        let mut source = Source::new(text);
        let mut scope = Scope::default();
        for structure in &body {
            match structure {
                Structure::Attribute(attribute) => {
                    if let Some(value) = scope.value(&attribute.value, &mut source) {
                        self.values.insert(attribute.key.as_str().to_owned(), Input::Value(value));
                    }
                }
                Structure::Block(block) => source.problem(&block.ident, "holds only `name = value`"),
            }
        }
        match source.into_problems().into_iter().next() {
            None => Ok(()),
            Some(first) => Err(problem(format!("{}:{}: {}", first.line, first.column, first.message))),
        }
    }
}

/// Declares every variable of the file with its value.
pub(crate) fn read<'b>(
    blocks: impl Iterator<Item = &'b Block>,
    inputs: &Inputs,
    scope: &mut Scope<'b>,
    source: &mut Source<'_>,
) {
    let mut declared: Vec<&str> = Vec::new();
    for block in blocks {
        declared.extend(block.labels.first().map(|label| label.as_str()));
        variable(block, inputs, scope, source);
    }
    for name in inputs.values.keys().filter(|name| !declared.contains(&name.as_str())) {
        let near = nearest(name, declared.iter().copied()).map(|near| format!("did you mean `{near}`?"));
        let hint = near.unwrap_or_else(|| format!("declare it: `variable \"{name}\" {{}}`"));
        source.missing(&format!("a value is given for `{name}`, which is not a variable of this file"), &hint);
    }
}

fn variable<'b>(block: &'b Block, inputs: &Inputs, scope: &mut Scope<'b>, source: &mut Source<'_>) {
    let section = Section::read(&block.body, &VARIABLE, source);
    let [name] = block.labels.as_slice() else {
        return source.problem(&block.ident, "a variable has one name: write `variable \"name\" { … }`");
    };
    let name = name.as_str();
    let kind = section.get("type").and_then(type_name).unwrap_or("any");
    let value = match (inputs.values.get(name), section.get("default")) {
        (Some(Input::Value(value)), _) => Some(value.clone()),
        (Some(Input::Written(text)), _) => written(text, kind, block, scope, source),
        (None, Some(default)) => scope.value(default, source),
        (None, None) => {
            let message = format!("variable `{name}` has no default and no value");
            let hint = format!("give it one with -var {name}=…, or add `default`");
            return source.problem_with_hint(&block.ident, message, hint);
        }
    };
    let Some(value) = value else { return };
    match converted(&value, kind) {
        Some(value) => {
            scope.variables.insert(name.to_owned(), value);
        }
        None => {
            let message = format!("variable `{name}` is to be of type {kind}, not {}", value.kind());
            source.problem(&block.ident, message);
        }
    }
}

/// A value that was written where the variable's type is known: collections as expressions, all else as text.
fn written(text: &str, kind: &str, block: &Block, scope: &mut Scope<'_>, source: &mut Source<'_>) -> Option<Value> {
    if !is_collection(kind) {
        return Some(Value::Text(text.to_owned()));
    }
    match hcl_edit::parser::parse_expr(text) {
        Ok(expression) => scope.value(&expression, source),
        Err(error) => {
            source.problem(&block.ident, format!("the given value is not an expression: {}", error.message()));
            None
        }
    }
}

/// `string`, `list(string)`, `object({…})`: the outermost word.
fn type_name(expression: &Expression) -> Option<&str> {
    match expression {
        Expression::Variable(name) => Some(name.as_str()),
        Expression::FuncCall(call) => Some(call.name.name.as_str()),
        Expression::String(text) => Some(text.as_str()),
        _ => None,
    }
}

fn is_collection(kind: &str) -> bool {
    matches!(kind, "list" | "set" | "tuple" | "map" | "object")
}

fn converted(value: &Value, kind: &str) -> Option<Value> {
    match (kind, value) {
        (_, Value::Null) => Some(Value::Null),
        ("string", value) => value.text().map(Value::Text),
        ("number", value) => value.number().map(Value::Number),
        ("bool", value) => value.bool().map(Value::Bool),
        ("list" | "set" | "tuple", Value::List(_)) | ("map" | "object", Value::Map(_)) => Some(value.clone()),
        (kind, value) if !is_collection(kind) => Some(value.clone()),
        _ => None,
    }
}
