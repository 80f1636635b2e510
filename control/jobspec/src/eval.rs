//! Expressions to values: literals, templates, `var`, `local`, a few functions.
//!
//! What only the node knows (`${NOMAD_…}`, `${attr.…}` …) stays as text. Everything that could grow without bound on
//! hostile input is bounded: the syntax tree by the parser's depth, chains of locals by [`DEPTH_MAX`], values by
//! [`BYTES_MAX`].

use crate::source::Source;
use hcl_edit::Span;
use hcl_edit::expr::{BinaryOperator, Expression, FuncCall, ObjectKey, Traversal, TraversalOperator, UnaryOperator};
use hcl_edit::template::{Element, Strip};
use std::collections::BTreeMap;
use std::ops::Range;

/// How deep expressions may lead into one another, through locals too: evaluation recurses.
const DEPTH_MAX: usize = 128;
/// What all values of one file may add up to.
const BYTES_MAX: usize = 8 << 20;

#[derive(Clone, Debug, PartialEq)]
pub(crate) enum Value {
    Null,
    Bool(bool),
    Number(f64),
    Text(String),
    List(Vec<Value>),
    Map(BTreeMap<String, Value>),
}

impl Value {
    pub(crate) fn kind(&self) -> &'static str {
        match self {
            Value::Null => "null",
            Value::Bool(_) => "a boolean",
            Value::Number(_) => "a number",
            Value::Text(_) => "a string",
            Value::List(_) => "a list",
            Value::Map(_) => "a map",
        }
    }

    /// As text, the way HCL converts where a string is wanted.
    pub(crate) fn text(&self) -> Option<String> {
        match self {
            Value::Bool(value) => Some(value.to_string()),
            Value::Number(value) => Some(value.to_string()),
            Value::Text(value) => Some(value.clone()),
            Value::Null | Value::List(_) | Value::Map(_) => None,
        }
    }

    fn bool(&self) -> Option<bool> {
        match self {
            Value::Bool(value) => Some(*value),
            Value::Text(text) => text.parse().ok(),
            _ => None,
        }
    }

    pub(crate) fn number(&self) -> Option<f64> {
        match self {
            Value::Number(value) => Some(*value),
            Value::Text(text) => text.trim().parse().ok().filter(|number: &f64| number.is_finite()),
            _ => None,
        }
    }

    fn bytes(&self) -> usize {
        let content = match self {
            Value::Text(text) => text.len(),
            Value::List(items) => items.iter().map(Value::bytes).sum(),
            Value::Map(fields) => fields.iter().map(|(key, value)| key.len() + value.bytes()).sum(),
            Value::Null | Value::Bool(_) | Value::Number(_) => 0,
        };
        content + std::mem::size_of::<Value>()
    }
}

/// Why an expression has no value, and where.
struct Failure {
    span: Option<Range<usize>>,
    message: String,
}

impl Span for Failure {
    fn span(&self) -> Option<Range<usize>> {
        self.span.clone()
    }
}

type Evaluated = Result<Value, Failure>;

fn fail<T>(at: &impl Span, message: impl Into<String>) -> Result<T, Failure> {
    Err(Failure { span: at.span(), message: message.into() })
}

/// Where `var.…` and `local.…` find their values.
#[derive(Default)]
pub(crate) struct Scope<'b> {
    pub(crate) variables: BTreeMap<String, Value>,
    pub(crate) locals: BTreeMap<String, &'b Expression>,
    known: BTreeMap<String, Value>,
    chain: Vec<String>,
    bytes: usize,
    depth: usize,
}

impl<'b> Scope<'b> {
    /// The value, or `None` after reporting why there is none.
    pub(crate) fn value(&mut self, expression: &Expression, source: &mut Source<'_>) -> Option<Value> {
        match self.evaluate(expression, source) {
            Ok(value) => Some(value),
            Err(failure) => {
                source.problem(&failure, failure.message.clone());
                None
            }
        }
    }

    fn evaluate(&mut self, expression: &Expression, source: &Source<'_>) -> Evaluated {
        if self.depth >= DEPTH_MAX {
            return fail(expression, format!("more than {DEPTH_MAX} expressions lead into one another"));
        }
        self.depth += 1;
        let value = self.try_evaluate(expression, source);
        self.depth -= 1;
        let value = value?;
        self.bytes = self.bytes.saturating_add(value.bytes());
        if self.bytes > BYTES_MAX {
            return fail(expression, format!("the file's values add up to more than {BYTES_MAX} bytes"));
        }
        Ok(value)
    }

    fn try_evaluate(&mut self, expression: &Expression, source: &Source<'_>) -> Evaluated {
        match expression {
            Expression::Null(_) => Ok(Value::Null),
            Expression::Bool(value) => Ok(Value::Bool(*value.value())),
            Expression::Number(number) => Ok(Value::Number(number.value().as_f64().unwrap_or(f64::NAN))),
            Expression::String(text) => Ok(Value::Text(text.as_str().to_owned())),
            Expression::Array(items) => {
                let items: Result<_, _> = items.iter().map(|item| self.evaluate(item, source)).collect();
                Ok(Value::List(items?))
            }
            Expression::Object(object) => {
                let mut fields = BTreeMap::new();
                for (key, value) in object.iter() {
                    fields.insert(self.key(key, source)?, self.evaluate(value.expr(), source)?);
                }
                Ok(Value::Map(fields))
            }
            Expression::StringTemplate(template) => self.template(template.iter(), source),
            Expression::HeredocTemplate(heredoc) => self.template(heredoc.template.iter(), source),
            Expression::Parenthesis(inner) => self.evaluate(inner.inner(), source),
            Expression::Variable(name) if is_run_time(name.as_str()) => {
                Ok(Value::Text(format!("${{{}}}", name.as_str())))
            }
            Expression::Variable(name) => fail(name, format!("`{}` is not known here", name.as_str())),
            Expression::Traversal(traversal) => self.traversal(traversal, source),
            Expression::Conditional(conditional) => {
                let condition = self.evaluate(&conditional.cond_expr, source)?;
                match condition.bool() {
                    Some(true) => self.evaluate(&conditional.true_expr, source),
                    Some(false) => self.evaluate(&conditional.false_expr, source),
                    None => {
                        fail(&conditional.cond_expr, format!("a condition is true or false, not {}", condition.kind()))
                    }
                }
            }
            Expression::FuncCall(call) => self.call(call, source),
            Expression::UnaryOp(operation) => {
                let value = self.evaluate(&operation.expr, source)?;
                let result = match operation.operator.value() {
                    UnaryOperator::Neg => value.number().map(|number| Value::Number(-number)),
                    UnaryOperator::Not => value.bool().map(|value| Value::Bool(!value)),
                };
                result.map_or_else(|| fail(&operation.expr, format!("does not apply to {}", value.kind())), Ok)
            }
            Expression::BinaryOp(operation) => {
                let left = self.evaluate(&operation.lhs_expr, source)?;
                let right = self.evaluate(&operation.rhs_expr, source)?;
                let operator = *operation.operator.value();
                let kinds = format!("`{}` does not apply to {} and {}", operator.as_str(), left.kind(), right.kind());
                operate(operator, &left, &right).map_or_else(|| fail(operation.as_ref(), kinds), Ok)
            }
            Expression::ForExpr(_) => fail(expression, "`for` expressions are not built yet"),
        }
    }

    fn key(&mut self, key: &ObjectKey, source: &Source<'_>) -> Result<String, Failure> {
        match key {
            ObjectKey::Ident(name) => Ok(name.as_str().to_owned()),
            ObjectKey::Expression(expression) => {
                let value = self.evaluate(expression, source)?;
                value.text().map_or_else(|| fail(expression, format!("{} cannot be a key", value.kind())), Ok)
            }
        }
    }

    fn template<'e>(&mut self, elements: impl Iterator<Item = &'e Element>, source: &Source<'_>) -> Evaluated {
        let mut text = String::new();
        for element in elements {
            match element {
                Element::Literal(literal) => text.push_str(literal.as_str()),
                Element::Directive(_) => return fail(element, "`%{ … }` in strings is not built yet"),
                Element::Interpolation(inner) if inner.strip != Strip::None => {
                    return fail(element, "`~`, which strips spaces around `${ … }`, is not built yet; leave it out");
                }
                Element::Interpolation(inner) if root(&inner.expr).is_some_and(is_run_time) => {
                    text.push_str(source.slice(element.span().unwrap_or_default()));
                }
                Element::Interpolation(inner) => {
                    let value = self.evaluate(&inner.expr, source)?;
                    let Some(part) = value.text() else {
                        return fail(&inner.expr, format!("{} cannot be part of a string", value.kind()));
                    };
                    text.push_str(&part);
                }
            }
            if text.len() > BYTES_MAX {
                return fail(element, format!("the string grows beyond {BYTES_MAX} bytes"));
            }
        }
        Ok(Value::Text(text))
    }

    fn traversal(&mut self, traversal: &Traversal, source: &Source<'_>) -> Evaluated {
        let mut operators = traversal.operators.iter();
        let mut value = match root(&traversal.expr) {
            Some("env") => {
                return fail(traversal, "`env` is not built yet; set the variable in the task's `env` block");
            }
            Some(name) if is_run_time(name) => {
                let text = source.slice(traversal.span().unwrap_or_default()).trim();
                return Ok(Value::Text(format!("${{{text}}}")));
            }
            Some(space @ ("var" | "local")) => {
                let name = operators.next().map(|operator| operator.value());
                let Some(TraversalOperator::GetAttr(name)) = name else {
                    return fail(traversal, format!("write `{space}.<name>`"));
                };
                self.named(space, name.as_str(), traversal, source)?
            }
            Some(other) => return fail(traversal, format!("`{other}` is not known here")),
            None => self.evaluate(&traversal.expr, source)?,
        };
        for operator in operators {
            value = self.step(value, operator.value(), traversal, source)?;
        }
        Ok(value)
    }

    fn step(&mut self, value: Value, by: &TraversalOperator, at: &Traversal, source: &Source<'_>) -> Evaluated {
        let key = match by {
            TraversalOperator::GetAttr(name) => Value::Text(name.as_str().to_owned()),
            TraversalOperator::Index(index) => self.evaluate(index, source)?,
            TraversalOperator::LegacyIndex(index) => Value::Text(index.value().to_string()),
            TraversalOperator::AttrSplat(_) | TraversalOperator::FullSplat(_) => {
                return fail(at, "`*` is not built yet; index one element");
            }
        };
        let found = match value {
            Value::Map(mut fields) => key.text().and_then(|key| fields.remove(&key)),
            Value::List(mut items) => {
                let index =
                    key.number().filter(|index| *index >= 0.0 && index.fract() == 0.0 && *index < items.len() as f64);
                index.map(|index| items.swap_remove(index as usize))
            }
            _ => None,
        };
        found.map_or_else(|| fail(at, "has no such element"), Ok)
    }

    fn named(&mut self, space: &str, name: &str, at: &Traversal, source: &Source<'_>) -> Evaluated {
        if space == "var" {
            let known = || self.variables.keys().map(String::as_str);
            let near = crate::section::nearest(name, known()).map(|near| format!("; did you mean `{near}`?"));
            let unknown = format!("no variable `{name}` with a default{}", near.unwrap_or_default());
            return self.variables.get(name).cloned().map_or_else(|| fail(at, unknown), Ok);
        }
        if let Some(value) = self.known.get(name) {
            return Ok(value.clone());
        }
        let Some(expression) = self.locals.get(name).copied() else {
            return fail(at, format!("no local `{name}`"));
        };
        if self.chain.iter().any(|link| link == name) {
            return fail(at, format!("local `{name}` depends on itself"));
        }
        self.chain.push(name.to_owned());
        let value = self.evaluate(expression, source);
        self.chain.pop();
        let value = value?;
        self.known.insert(name.to_owned(), value.clone());
        Ok(value)
    }

    fn call(&mut self, call: &FuncCall, source: &Source<'_>) -> Evaluated {
        let name = call.name.name.as_str();
        if !FUNCTIONS.contains(&name) || call.name.is_namespaced() {
            return fail(call, format!("function `{name}` is not built yet; there are {}", FUNCTIONS.join(", ")));
        }
        let args: Result<Vec<_>, _> = call.args.iter().map(|arg| self.evaluate(arg, source)).collect();
        apply(name, &args?).map_or_else(|| fail(call, format!("`{name}` does not take these arguments")), Ok)
    }
}

const FUNCTIONS: [&str; 14] = [
    "coalesce",
    "concat",
    "join",
    "length",
    "lower",
    "max",
    "merge",
    "min",
    "replace",
    "split",
    "tonumber",
    "tostring",
    "trimspace",
    "upper",
];

fn apply(name: &str, args: &[Value]) -> Option<Value> {
    match (name, args) {
        ("upper", [value]) => Some(Value::Text(value.text()?.to_uppercase())),
        ("lower", [value]) => Some(Value::Text(value.text()?.to_lowercase())),
        ("trimspace", [value]) => Some(Value::Text(value.text()?.trim().to_owned())),
        ("tostring", [value]) => value.text().map(Value::Text),
        ("tonumber", [value]) => value.number().map(Value::Number),
        ("join", [separator, lists @ ..]) => {
            let texts: Option<Vec<String>> = flat(lists)?.iter().map(Value::text).collect();
            Some(Value::Text(texts?.join(&separator.text()?)))
        }
        ("concat", lists) => flat(lists).map(Value::List),
        ("split", [separator, text]) => {
            let (separator, text) = (separator.text()?, text.text()?);
            Some(Value::List(text.split(&separator).map(|part| Value::Text(part.to_owned())).collect()))
        }
        // An empty needle would multiply the text.
        ("replace", [text, from, to]) if from.text().is_some_and(|from| !from.is_empty()) => {
            Some(Value::Text(bounded_replace(&text.text()?, &from.text()?, &to.text()?)?))
        }
        ("length", [Value::List(items)]) => Some(Value::Number(items.len() as f64)),
        ("length", [Value::Map(fields)]) => Some(Value::Number(fields.len() as f64)),
        ("length", [Value::Text(text)]) => Some(Value::Number(text.chars().count() as f64)),
        ("coalesce", values) => {
            values.iter().find(|value| !matches!(value, Value::Null) && **value != Value::Text(String::new())).cloned()
        }
        ("max", [first, rest @ ..]) => fold_numbers(first, rest, f64::max),
        ("min", [first, rest @ ..]) => fold_numbers(first, rest, f64::min),
        ("merge", maps) => {
            let mut merged = BTreeMap::new();
            for map in maps {
                let Value::Map(fields) = map else { return None };
                merged.extend(fields.clone());
            }
            Some(Value::Map(merged))
        }
        _ => None,
    }
}

fn bounded_replace(text: &str, from: &str, to: &str) -> Option<String> {
    let found = text.matches(from).count();
    (text.len() + found.saturating_mul(to.len()) <= BYTES_MAX).then(|| text.replace(from, to))
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

fn operate(operator: BinaryOperator, left: &Value, right: &Value) -> Option<Value> {
    let numbers = || Some((left.number()?, right.number()?));
    let finite = |number: f64| number.is_finite().then_some(Value::Number(number));
    match operator {
        BinaryOperator::Eq => Some(Value::Bool(left == right)),
        BinaryOperator::NotEq => Some(Value::Bool(left != right)),
        BinaryOperator::And => Some(Value::Bool(left.bool()? && right.bool()?)),
        BinaryOperator::Or => Some(Value::Bool(left.bool()? || right.bool()?)),
        BinaryOperator::Less => numbers().map(|(a, b)| Value::Bool(a < b)),
        BinaryOperator::LessEq => numbers().map(|(a, b)| Value::Bool(a <= b)),
        BinaryOperator::Greater => numbers().map(|(a, b)| Value::Bool(a > b)),
        BinaryOperator::GreaterEq => numbers().map(|(a, b)| Value::Bool(a >= b)),
        BinaryOperator::Plus => numbers().and_then(|(a, b)| finite(a + b)),
        BinaryOperator::Minus => numbers().and_then(|(a, b)| finite(a - b)),
        BinaryOperator::Mul => numbers().and_then(|(a, b)| finite(a * b)),
        BinaryOperator::Div => numbers().and_then(|(a, b)| finite(a / b)),
        BinaryOperator::Mod => numbers().and_then(|(a, b)| finite(a % b)),
    }
}

/// The name an expression starts with, if it is one.
fn root(expression: &Expression) -> Option<&str> {
    match expression {
        Expression::Variable(name) => Some(name.as_str()),
        Expression::Traversal(traversal) => root(&traversal.expr),
        _ => None,
    }
}

/// Names whose values only the node, or the name of the service, can fill in.
fn is_run_time(name: &str) -> bool {
    name.starts_with("NOMAD_")
        || matches!(name, "attr" | "device" | "node" | "meta" | "JOB" | "TASKGROUP" | "TASK" | "BASE")
}
