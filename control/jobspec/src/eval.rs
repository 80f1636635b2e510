//! Expressions to values: literals, templates, loops, `var`, `local`, functions.
//!
//! What only the node knows (`${NOMAD_…}`, `${attr.…}` …) stays as text. Everything that could grow without bound on
//! hostile input is bounded: the syntax tree by the parser's depth, chains of locals by [`DEPTH_MAX`], values by
//! [`BYTES_MAX`].

use crate::functions;
use crate::section::nearest;
use crate::source::Source;
use hcl_edit::Span;
use hcl_edit::expr::{
    BinaryOperator, Expression, ForExpr, FuncCall, ObjectKey, Traversal, TraversalOperator, UnaryOperator,
};
use hcl_edit::template::{Directive, Element, Strip};
use std::collections::BTreeMap;
use std::ops::Range;

/// How deep expressions may lead into one another, through locals too: evaluation recurses.
const DEPTH_MAX: usize = 128;
/// What all values of one file may add up to.
pub(crate) const BYTES_MAX: usize = 8 << 20;

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

    pub(crate) fn bool(&self) -> Option<bool> {
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
pub(crate) struct Failure {
    span: Option<Range<usize>>,
    pub(crate) message: String,
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
    /// The variables of the loops around, innermost last.
    pub(crate) bound: Vec<(String, Value)>,
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
            Expression::Variable(name) => self
                .loop_variable(name.as_str())
                .map_or_else(|| fail(name, format!("`{}` is not known here", name.as_str())), Ok),
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
            Expression::ForExpr(each) => self.for_expression(each, source),
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
        self.render(elements, false, source).map(|(text, _)| Value::Text(text))
    }

    /// The text, and whether what follows it is to lose its leading space. `strip` takes the leading space of this one.
    fn render<'e>(
        &mut self,
        elements: impl Iterator<Item = &'e Element>,
        mut strip: bool,
        source: &Source<'_>,
    ) -> Result<(String, bool), Failure> {
        let mut text = String::new();
        for element in elements {
            match element {
                Element::Literal(literal) => {
                    text.push_str(if strip { literal.as_str().trim_start() } else { literal.as_str() });
                    strip = false;
                }
                Element::Directive(directive) => strip = self.directive(directive, &mut text, source)?,
                Element::Interpolation(inner) if root(&inner.expr).is_some_and(is_run_time) => {
                    if inner.strip != Strip::None {
                        return fail(element, "`~` strips nothing around what only the node knows; leave it out");
                    }
                    text.push_str(source.slice(element.span().unwrap_or_default()));
                    strip = false;
                }
                Element::Interpolation(inner) => {
                    let value = self.evaluate(&inner.expr, source)?;
                    let Some(part) = value.text() else {
                        return fail(&inner.expr, format!("{} cannot be part of a string", value.kind()));
                    };
                    strip = stripped(&mut text, inner.strip);
                    text.push_str(&part);
                }
            }
            if text.len() > BYTES_MAX {
                return fail(element, format!("the string grows beyond {BYTES_MAX} bytes"));
            }
        }
        Ok((text, strip))
    }

    /// `%{ if … }` and `%{ for … }`.
    fn directive(&mut self, directive: &Directive, text: &mut String, source: &Source<'_>) -> Result<bool, Failure> {
        match directive {
            Directive::If(branch) => {
                let condition = self.evaluate(&branch.if_expr.cond_expr, source)?;
                let Some(holds) = condition.bool() else {
                    let message = format!("a condition is true or false, not {}", condition.kind());
                    return fail(&branch.if_expr.cond_expr, message);
                };
                let lead = stripped(text, branch.if_expr.strip);
                let (lead, template, end) = match (&branch.else_expr, holds) {
                    (Some(other), true) => (lead, &branch.if_expr.template, other.strip),
                    (None, true) => (lead, &branch.if_expr.template, branch.endif_expr.strip),
                    (Some(other), false) => (strips_after(other.strip), &other.template, branch.endif_expr.strip),
                    (None, false) => return Ok(strips_after(branch.endif_expr.strip)),
                };
                let (mut part, _) = self.render(template.iter(), lead, source)?;
                stripped(&mut part, end);
                text.push_str(&part);
                Ok(strips_after(branch.endif_expr.strip))
            }
            Directive::For(directive) => {
                let each = &directive.for_expr;
                let lead = stripped(text, each.strip);
                let key = each.key_var.as_ref().map(|name| name.as_str());
                for (at, item) in self.items(&each.collection_expr, source)? {
                    self.bind(key, each.value_var.as_str(), at, item);
                    let part = self.render(each.template.iter(), lead, source);
                    self.unbind(key);
                    let (mut part, _) = part?;
                    stripped(&mut part, directive.endfor_expr.strip);
                    text.push_str(&part);
                    if text.len() > BYTES_MAX {
                        return fail(&each.collection_expr, format!("the string grows beyond {BYTES_MAX} bytes"));
                    }
                }
                Ok(strips_after(directive.endfor_expr.strip))
            }
        }
    }

    /// What a loop goes over: positions or keys, with the values.
    pub(crate) fn items(
        &mut self,
        collection: &Expression,
        source: &Source<'_>,
    ) -> Result<Vec<(Value, Value)>, Failure> {
        match self.evaluate(collection, source)? {
            Value::List(items) => {
                Ok(items.into_iter().enumerate().map(|(at, item)| (Value::Number(at as f64), item)).collect())
            }
            Value::Map(fields) => Ok(fields.into_iter().map(|(key, value)| (Value::Text(key), value)).collect()),
            other => fail(collection, format!("a loop goes over a list or a map, not {}", other.kind())),
        }
    }

    fn bind(&mut self, key: Option<&str>, value_name: &str, key_value: Value, value: Value) {
        self.bound.extend(key.map(|name| (name.to_owned(), key_value)));
        self.bound.push((value_name.to_owned(), value));
    }

    fn unbind(&mut self, key: Option<&str>) {
        let kept = self.bound.len().saturating_sub(1 + usize::from(key.is_some()));
        self.bound.truncate(kept);
    }

    fn loop_variable(&self, name: &str) -> Option<Value> {
        self.bound.iter().rev().find(|(known, _)| known == name).map(|(_, value)| value.clone())
    }

    fn for_expression(&mut self, each: &ForExpr, source: &Source<'_>) -> Evaluated {
        let key = each.intro.key_var.as_ref().map(|name| name.as_str());
        let (mut list, mut map) = (Vec::new(), BTreeMap::new());
        for (at, item) in self.items(&each.intro.collection_expr, source)? {
            self.bind(key, each.intro.value_var.as_str(), at, item);
            let turn = self.for_turn(each, source);
            self.unbind(key);
            match turn? {
                None => {}
                Some((None, value)) => list.push(value),
                Some((Some(key), value)) if each.grouping => {
                    match map.entry(key).or_insert_with(|| Value::List(Vec::new())) {
                        Value::List(group) => group.push(value),
                        _ => return fail(&each.value_expr, "cannot be grouped"),
                    }
                }
                Some((Some(key), _)) if map.contains_key(&key) => {
                    let message = format!("the key `{key}` comes up twice; write `...` after the value to group");
                    return fail(&each.value_expr, message);
                }
                Some((Some(key), value)) => {
                    map.insert(key, value);
                }
            }
        }
        Ok(if each.key_expr.is_some() { Value::Map(map) } else { Value::List(list) })
    }

    /// One turn of a `for` expression: its key and value, unless the condition leaves it out.
    fn for_turn(&mut self, each: &ForExpr, source: &Source<'_>) -> Result<Option<(Option<String>, Value)>, Failure> {
        if let Some(condition) = &each.cond {
            match self.evaluate(&condition.expr, source)?.bool() {
                Some(true) => {}
                Some(false) => return Ok(None),
                None => return fail(&condition.expr, "a condition is true or false"),
            }
        }
        let key = match &each.key_expr {
            None => None,
            Some(at) => match self.evaluate(at, source)?.text() {
                Some(key) => Some(key),
                None => return fail(at, "cannot be a key"),
            },
        };
        Ok(Some((key, self.evaluate(&each.value_expr, source)?)))
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
            Some(other) => match self.loop_variable(other) {
                Some(value) => value,
                None => return fail(traversal, format!("`{other}` is not known here")),
            },
            None => self.evaluate(&traversal.expr, source)?,
        };
        while let Some(operator) = operators.next() {
            if let TraversalOperator::AttrSplat(_) | TraversalOperator::FullSplat(_) = operator.value() {
                let rest: Vec<&TraversalOperator> = operators.map(|operator| operator.value()).collect();
                return self.splat(value, &rest, traversal, source);
            }
            value = self.step(value, operator.value(), traversal, source)?;
        }
        Ok(value)
    }

    /// `list[*].name`: the rest of the path for every element.
    fn splat(&mut self, value: Value, rest: &[&TraversalOperator], at: &Traversal, source: &Source<'_>) -> Evaluated {
        let items = match value {
            Value::List(items) => items,
            Value::Null => Vec::new(),
            one => vec![one],
        };
        let walk = |item| rest.iter().try_fold(item, |value, by| self.step(value, by, at, source));
        items.into_iter().map(walk).collect::<Result<Vec<_>, _>>().map(Value::List)
    }

    fn step(&mut self, value: Value, by: &TraversalOperator, at: &Traversal, source: &Source<'_>) -> Evaluated {
        let key = match by {
            TraversalOperator::GetAttr(name) => Value::Text(name.as_str().to_owned()),
            TraversalOperator::Index(index) => self.evaluate(index, source)?,
            TraversalOperator::LegacyIndex(index) => Value::Text(index.value().to_string()),
            TraversalOperator::AttrSplat(_) | TraversalOperator::FullSplat(_) => {
                return fail(at, "one `*` is enough in a path");
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
            let near = nearest(name, known()).map(|near| format!("; did you mean `{near}`?"));
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
        let outside = std::mem::take(&mut self.bound);
        let value = self.evaluate(expression, source);
        self.bound = outside;
        self.chain.pop();
        let value = value?;
        self.known.insert(name.to_owned(), value.clone());
        Ok(value)
    }

    fn call(&mut self, call: &FuncCall, source: &Source<'_>) -> Evaluated {
        let name = call.name.name.as_str();
        if !functions::NAMES.contains(&name) || call.name.is_namespaced() {
            let near = nearest(name, functions::NAMES.iter().copied()).map(|near| format!("; did you mean `{near}`?"));
            return fail(call, format!("function `{name}` is not built yet{}", near.unwrap_or_default()));
        }
        if matches!(name, "try" | "can") {
            return self.attempt(name, call, source);
        }
        let args: Result<Vec<_>, _> = call.args.iter().map(|arg| self.evaluate(arg, source)).collect();
        let mut args = args?;
        if call.args.expand_final() {
            match args.pop() {
                Some(Value::List(last)) => args.extend(last),
                _ => return fail(call, "`...` spreads a list"),
            }
        }
        functions::apply(name, &args).map_or_else(|| fail(call, format!("`{name}` does not take these arguments")), Ok)
    }

    /// The first argument that has a value; or whether there is one.
    fn attempt(&mut self, name: &str, call: &FuncCall, source: &Source<'_>) -> Evaluated {
        let found = call.args.iter().find_map(|arg| self.evaluate(arg, source).ok());
        match (name, found) {
            ("can", found) => Ok(Value::Bool(found.is_some())),
            (_, Some(value)) => Ok(value),
            (_, None) => fail(call, "none of the arguments has a value"),
        }
    }
}

/// Takes the trailing space of the text if the marker says so; whether it takes the leading space of what follows.
fn stripped(text: &mut String, strip: Strip) -> bool {
    if matches!(strip, Strip::Start | Strip::Both) {
        text.truncate(text.trim_end().len());
    }
    strips_after(strip)
}

fn strips_after(strip: Strip) -> bool {
    matches!(strip, Strip::End | Strip::Both)
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
