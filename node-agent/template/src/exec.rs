//! Walks the tree, by the rules of Go's text/template/exec.go.

use crate::data::{Dependency, Fetched};
use crate::functions;
use crate::parse::{Branch, Command, Node, Nodes, Operand, Pipe};
use crate::value::{TooDeep, Value};
use crate::{Inputs, OUTPUT_BYTES_MAX, Outcome, RenderError, Rendering, Template};
use std::collections::BTreeSet;
use std::sync::Arc;

const STEPS_MAX: u64 = 2_000_000;

/// Of all values that a rendering makes, those it throws away included.
const MADE_BYTES_MAX: usize = 64 << 20;

/// Templates, blocks and parentheses within each other while rendering.
const DEPTH_MAX: u32 = 200;

/// What went wrong, without where: whoever walks the tree knows the line.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Fault(pub String);

impl Fault {
    pub fn new(reason: impl Into<String>) -> Self {
        Fault(reason.into())
    }
}

impl From<TooDeep> for Fault {
    fn from(_: TooDeep) -> Self {
        Fault::new("a value is nested too deep, or holds a scratch")
    }
}

/// What functions see of the rendering.
pub struct Context<'a> {
    pub inputs: &'a Inputs<'a>,
    pub dependencies: BTreeSet<Dependency>,
    pub pending: BTreeSet<Dependency>,
    /// One for the whole rendering, however often it is named.
    pub scratch: Value,
    steps: u64,
    made: usize,
}

impl Context<'_> {
    /// Remembers the question. `None` is for what is not there yet: the text will be thrown away, but goes on so as to find
    /// what else is missing.
    pub fn fetch(&mut self, wanted: Dependency) -> Result<Option<Fetched>, Fault> {
        let fetched = self.inputs.data.fetch(&wanted);
        self.dependencies.insert(wanted.clone());
        match fetched {
            Fetched::Pending => {
                self.pending.insert(wanted);
                Ok(None)
            }
            Fetched::Refused(reason) => Err(Fault(reason)),
            fetched => Ok(Some(fetched)),
        }
    }

    pub fn wait_for(&mut self, missing: Dependency) {
        self.pending.insert(missing);
    }

    pub fn step(&mut self, count: u64) -> Result<(), Fault> {
        self.steps = self.steps.saturating_add(count);
        if self.steps > STEPS_MAX {
            return Err(Fault::new(format!("the template takes more than {STEPS_MAX} steps")));
        }
        Ok(())
    }

    /// To be asked before making what may be large.
    pub fn make(&mut self, bytes: usize) -> Result<(), Fault> {
        self.made = self.made.saturating_add(bytes);
        if bytes > OUTPUT_BYTES_MAX || self.made > MADE_BYTES_MAX {
            return Err(Fault::new(format!(
                "the template makes more than {OUTPUT_BYTES_MAX} bytes in one value or {MADE_BYTES_MAX} in all"
            )));
        }
        Ok(())
    }
}

/// How a list of nodes was left.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Flow {
    On,
    Break,
    Continue,
}

struct Walker<'a> {
    template: &'a Template,
    context: Context<'a>,
    out: Vec<u8>,
    variables: Vec<(String, Value)>,
    depth: u32,
    line: u32,
}

pub fn render(template: &Template, inputs: &Inputs<'_>, dot: Value) -> Rendering {
    let context = Context {
        inputs,
        dependencies: BTreeSet::new(),
        pending: BTreeSet::new(),
        scratch: Value::Scratch(Arc::default()),
        steps: 0,
        made: 0,
    };
    let variables = vec![("$".to_owned(), dot.clone())];
    let mut walker = Walker { template, context, out: Vec::new(), variables, depth: 0, line: 1 };
    let walked = walker.nodes(&template.root, &dot);
    let Context { dependencies, pending, .. } = walker.context;
    // What failed for want of data may well succeed with it.
    let outcome = match walked {
        _ if !pending.is_empty() => Outcome::Pending(pending),
        Ok(_) => Outcome::Text(walker.out),
        Err(Fault(reason)) => Outcome::Failed(RenderError { line: walker.line, reason }),
    };
    Rendering { outcome, dependencies }
}

impl Walker<'_> {
    fn deeper<T>(&mut self, walk: impl FnOnce(&mut Self) -> Result<T, Fault>) -> Result<T, Fault> {
        self.depth += 1;
        if self.depth > DEPTH_MAX {
            return Err(Fault::new(format!("templates and blocks are nested more than {DEPTH_MAX} deep")));
        }
        let walked = walk(self)?;
        self.depth -= 1;
        Ok(walked)
    }

    fn write(&mut self, bytes: &[u8]) -> Result<(), Fault> {
        if self.out.len() + bytes.len() > OUTPUT_BYTES_MAX {
            return Err(Fault::new(format!("the rendered text is larger than {OUTPUT_BYTES_MAX} bytes")));
        }
        self.out.extend_from_slice(bytes);
        Ok(())
    }

    fn nodes(&mut self, nodes: &Nodes, dot: &Value) -> Result<Flow, Fault> {
        for node in nodes.iter() {
            self.context.step(1)?;
            let flow = self.node(node, dot)?;
            if flow != Flow::On {
                return Ok(flow);
            }
        }
        Ok(Flow::On)
    }

    fn node(&mut self, node: &Node, dot: &Value) -> Result<Flow, Fault> {
        match node {
            Node::Plain(text) => self.write(text).map(|()| Flow::On),
            Node::Action(pipe) => {
                let value = self.pipe(pipe, dot)?;
                // Setting a variable shows nothing.
                if pipe.names.is_empty() {
                    self.write(&value.show())?;
                }
                Ok(Flow::On)
            }
            Node::If(branch) => self.deeper(|walker| walker.branch(branch, dot, false)),
            Node::With(branch) => self.deeper(|walker| walker.branch(branch, dot, true)),
            Node::Range(branch) => self.deeper(|walker| walker.range(branch, dot)),
            Node::Break => Ok(Flow::Break),
            Node::Continue => Ok(Flow::Continue),
            Node::Template { name, dot: pipe, line } => {
                self.line = *line;
                let inner = pipe.as_ref().map_or(Ok(Value::Nil), |pipe| self.pipe(pipe, dot))?;
                self.line = *line;
                self.template(name, inner)
            }
        }
    }

    fn template(&mut self, name: &str, dot: Value) -> Result<Flow, Fault> {
        let nodes = self.template.defined.get(name).cloned();
        let nodes = nodes.ok_or_else(|| Fault::new(format!("there is no template {name:?}; add a define for it")))?;
        let outer = std::mem::replace(&mut self.variables, vec![("$".to_owned(), dot.clone())]);
        self.deeper(|walker| walker.nodes(&nodes, &dot))?;
        self.variables = outer;
        Ok(Flow::On)
    }

    fn branch(&mut self, branch: &Branch, dot: &Value, sets_dot: bool) -> Result<Flow, Fault> {
        let variables = self.variables.len();
        let value = self.pipe(&branch.pipe, dot)?;
        let flow = match value.is_true() {
            true if sets_dot => self.nodes(&branch.then, &value)?,
            true => self.nodes(&branch.then, dot)?,
            false => self.nodes(&branch.otherwise, dot)?,
        };
        self.variables.truncate(variables);
        Ok(flow)
    }

    fn range(&mut self, branch: &Branch, dot: &Value) -> Result<Flow, Fault> {
        let variables = self.variables.len();
        let over = self.commands(&branch.pipe, dot)?;
        if !branch.pipe.assigns {
            self.variables.extend(branch.pipe.names.iter().map(|name| (name.clone(), over.clone())));
        }
        let count = self.iterate(branch, &over)?;
        let flow = match count {
            0 => self.nodes(&branch.otherwise, dot)?,
            _ => Flow::On,
        };
        self.variables.truncate(variables);
        Ok(flow)
    }

    fn iterate(&mut self, branch: &Branch, over: &Value) -> Result<usize, Fault> {
        match over {
            Value::Nil => Ok(0),
            Value::List(list) => self.turns(branch, list.items().iter().enumerate().map(index_and_item)),
            Value::Map(map) => {
                let pairs = map.entries().iter().map(|(key, value)| (Value::text(key), value.clone()));
                self.turns(branch, pairs)
            }
            Value::Int(_) if branch.pipe.names.len() > 1 => {
                Err(Fault::new("a range over a number sets one variable only"))
            }
            Value::Int(count) => self.turns(branch, (0..*count).map(|number| (Value::Nil, Value::Int(number)))),
            other => Err(Fault::new(format!("range can't iterate over {}", preview(other)))),
        }
    }

    fn turns(&mut self, branch: &Branch, items: impl Iterator<Item = (Value, Value)>) -> Result<usize, Fault> {
        let variables = self.variables.len();
        let mut count = 0;
        for (index, item) in items {
            count += 1;
            self.context.step(1)?;
            self.set_turn(&branch.pipe, index, &item);
            let flow = self.nodes(&branch.then, &item)?;
            self.variables.truncate(variables);
            if flow == Flow::Break {
                break;
            }
        }
        Ok(count)
    }

    fn set_turn(&mut self, pipe: &Pipe, index: Value, item: &Value) {
        match pipe.names.as_slice() {
            [] => {}
            [only] => self.set(only, item.clone()),
            [first, second, ..] => {
                self.set(first, index);
                self.set(second, item.clone());
            }
        }
    }

    /// The nearest variable of that name; the parser has seen that there is one.
    fn set(&mut self, name: &str, value: Value) {
        if let Some((_, slot)) = self.variables.iter_mut().rev().find(|(known, _)| known == name) {
            *slot = value;
        }
    }

    fn pipe(&mut self, pipe: &Pipe, dot: &Value) -> Result<Value, Fault> {
        let value = self.commands(pipe, dot)?;
        for name in &pipe.names {
            match pipe.assigns {
                true => self.set(name, value.clone()),
                false => self.variables.push((name.clone(), value.clone())),
            }
        }
        Ok(value)
    }

    fn commands(&mut self, pipe: &Pipe, dot: &Value) -> Result<Value, Fault> {
        self.line = pipe.line;
        let mut passed = None;
        for command in &pipe.commands {
            self.context.step(1)?;
            passed = Some(self.command(command, dot, passed)?);
        }
        passed.ok_or_else(|| Fault::new("an empty pipeline"))
    }

    fn command(&mut self, command: &Command, dot: &Value, passed: Option<Value>) -> Result<Value, Fault> {
        let takes_nothing = command.args.is_empty() && passed.is_none();
        match &command.first {
            Operand::Function(name) => self.call(name, &command.args, dot, passed),
            Operand::Chain(of, fields) if !takes_nothing => self.method(of, fields, command, dot, passed),
            Operand::Nil => Err(Fault::new("nil is not a command")),
            first if takes_nothing => self.operand(first, dot),
            first => {
                let shown = self.operand(first, dot)?;
                Err(Fault::new(format!("{} takes no arguments: it is not a function", preview(&shown))))
            }
        }
    }

    /// Only a scratch has methods.
    fn method(
        &mut self,
        of: &Operand,
        fields: &[String],
        command: &Command,
        dot: &Value,
        passed: Option<Value>,
    ) -> Result<Value, Fault> {
        let target = self.operand(of, dot)?;
        let args = self.args(&command.args, dot, passed)?;
        match (&target, fields) {
            (Value::Scratch(scratch), [name]) => functions::scratch(&mut self.context, scratch, name, &args),
            _ => Err(Fault::new(format!("`.{}` takes no arguments: it is not a function", fields.join(".")))),
        }
    }

    fn args(&mut self, operands: &[Operand], dot: &Value, passed: Option<Value>) -> Result<Vec<Value>, Fault> {
        let mut args = Vec::with_capacity(operands.len() + 1);
        for operand in operands {
            args.push(self.operand(operand, dot)?);
        }
        args.extend(passed);
        Ok(args)
    }

    fn call(&mut self, name: &str, operands: &[Operand], dot: &Value, passed: Option<Value>) -> Result<Value, Fault> {
        if let "and" | "or" = name {
            return self.short_circuit(name == "or", operands, dot, passed);
        }
        let args = self.args(operands, dot, passed)?;
        let line = self.line;
        let fault = |Fault(reason)| Fault(format!("{name}: {reason}"));
        if name == "executeTemplate" {
            return self.template_text(&args).map_err(fault);
        }
        let value = functions::call(&mut self.context, name, &args).map_err(fault)?;
        self.line = line;
        self.context.make(value.weight())?;
        Ok(value)
    }

    /// The first argument that settles it, or the last.
    fn short_circuit(
        &mut self,
        until: bool,
        operands: &[Operand],
        dot: &Value,
        passed: Option<Value>,
    ) -> Result<Value, Fault> {
        let mut last = None;
        for operand in operands {
            let value = self.operand(operand, dot)?;
            if value.is_true() == until {
                return Ok(value);
            }
            last = Some(value);
        }
        let word = if until { "or" } else { "and" };
        passed.or(last).ok_or_else(|| Fault::new(format!("{word}: needs at least one argument")))
    }

    /// A defined template's text as a value.
    fn template_text(&mut self, args: &[Value]) -> Result<Value, Fault> {
        let (name, dot) = match args {
            [Value::Text(name)] => (name, Value::Nil),
            [Value::Text(name), dot] => (name, dot.clone()),
            _ => return Err(Fault::new("takes a template's name and what is to be its `.`")),
        };
        let outer = std::mem::take(&mut self.out);
        self.template(&String::from_utf8_lossy(name), dot)?;
        let text = std::mem::replace(&mut self.out, outer);
        self.context.make(text.len())?;
        Ok(Value::text(text))
    }

    fn operand(&mut self, operand: &Operand, dot: &Value) -> Result<Value, Fault> {
        match operand {
            Operand::Dot => Ok(dot.clone()),
            Operand::Nil => Ok(Value::Nil),
            Operand::Bool(truth) => Ok(Value::Bool(*truth)),
            Operand::Int(number) => Ok(Value::Int(*number)),
            Operand::Float(number) => Ok(Value::Float(*number)),
            Operand::Text(text) => Ok(Value::Text(Arc::clone(text))),
            Operand::Field(fields) => self.fields(dot.clone(), fields),
            Operand::Variable(name, fields) => {
                let found = self.variables.iter().rev().find(|(known, _)| known == name);
                let value = found.map(|(_, value)| value.clone());
                let value = value.ok_or_else(|| Fault::new(format!("{name} is not defined")))?;
                self.fields(value, fields)
            }
            Operand::Function(name) => self.deeper(|walker| walker.call(name, &[], dot, None)),
            Operand::Pipe(pipe) => self.deeper(|walker| {
                let variables = walker.variables.len();
                let value = walker.pipe(pipe, dot)?;
                walker.variables.truncate(variables);
                Ok(value)
            }),
            Operand::Chain(of, fields) => {
                let value = self.deeper(|walker| walker.operand(of, dot))?;
                self.fields(value, fields)
            }
        }
    }

    fn fields(&mut self, mut value: Value, fields: &[String]) -> Result<Value, Fault> {
        for name in fields {
            value = self.field(&value, name)?;
        }
        Ok(value)
    }

    fn field(&mut self, value: &Value, name: &str) -> Result<Value, Fault> {
        match value {
            Value::Map(map) => match map.entries().get(name) {
                Some(value) => Ok(value.clone()),
                None if self.context.inputs.error_on_missing_key => {
                    Err(Fault::new(format!("map has no entry for key {name:?}")))
                }
                None => Ok(map.absent()),
            },
            Value::Record(record) => {
                let known = || record.fields.iter().map(|(name, _)| *name).collect::<Vec<_>>().join(", ");
                let found = record.field(name).cloned();
                found.ok_or_else(|| Fault::new(format!("{} has no field {name}; it has {}", record.name, known())))
            }
            Value::Scratch(scratch) => functions::scratch(&mut self.context, scratch, name, &[]),
            Value::Nil if self.context.inputs.error_on_missing_key => {
                Err(Fault::new(format!("nil data; no entry for key {name:?}")))
            }
            Value::Nil => Ok(Value::Nil),
            other => Err(Fault::new(format!("can't take field {name} of a {}", other.kind()))),
        }
    }
}

fn index_and_item((index, item): (usize, &Value)) -> (Value, Value) {
    (Value::Int(i64::try_from(index).unwrap_or(i64::MAX)), item.clone())
}

/// Short enough for a message.
fn preview(value: &Value) -> String {
    let shown = value.show();
    let text = String::from_utf8_lossy(&shown[..shown.len().min(60)]).into_owned();
    format!("{text:?} ({})", value.kind())
}
