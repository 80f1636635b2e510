//! Tokens into a tree, by the grammar of Go's text/template/parse/parse.go.

use crate::functions;
use crate::lex::{Spot, Token, lex};
use crate::{Delimiters, ParseError, SOURCE_BYTES_MAX, Template};
use std::collections::BTreeMap;
use std::sync::Arc;

/// Blocks and parentheses within each other.
const DEPTH_MAX: u32 = 64;

pub type Nodes = Arc<[Node]>;

#[derive(Clone, Debug)]
pub enum Node {
    Plain(Arc<[u8]>),
    Action(Pipe),
    If(Branch),
    With(Branch),
    Range(Branch),
    Break,
    Continue,
    Template { name: String, dot: Option<Pipe>, line: u32 },
}

#[derive(Clone, Debug)]
pub struct Branch {
    pub pipe: Pipe,
    pub then: Nodes,
    pub otherwise: Nodes,
}

#[derive(Clone, Debug, Default)]
pub struct Pipe {
    pub line: u32,
    /// Variables that it sets, with their dollar signs.
    pub names: Vec<String>,
    /// `=` rather than `:=`.
    pub assigns: bool,
    pub commands: Vec<Command>,
}

#[derive(Clone, Debug)]
pub struct Command {
    pub first: Operand,
    pub args: Vec<Operand>,
}

#[derive(Clone, Debug)]
pub enum Operand {
    Dot,
    Nil,
    Bool(bool),
    Int(i64),
    Float(f64),
    Text(Arc<[u8]>),
    Field(Vec<String>),
    Variable(String, Vec<String>),
    Function(String),
    Pipe(Box<Pipe>),
    /// Fields of what an operand gives.
    Chain(Box<Operand>, Vec<String>),
}

/// How a list of nodes ends.
enum Ending {
    End,
    Else,
    Eof,
}

pub fn parse(text: &str, delimiters: Delimiters<'_>) -> Result<Template, ParseError> {
    if text.len() > SOURCE_BYTES_MAX {
        return Err(ParseError { line: 1, reason: format!("the template is larger than {SOURCE_BYTES_MAX} bytes") });
    }
    if delimiters.left.is_empty() || delimiters.right.is_empty() {
        return Err(ParseError { line: 1, reason: "a delimiter is empty".to_owned() });
    }
    let tokens = lex(text, delimiters)?;
    let mut parser = Parser {
        tokens: tokens.into_iter().peekable(),
        line: 1,
        depth: 0,
        ranges: 0,
        variables: vec!["$".to_owned()],
        defined: BTreeMap::new(),
        is_top: true,
    };
    let (root, ending) = parser.nodes()?;
    match ending {
        Ending::Eof => Ok(Template { root, defined: parser.defined }),
        Ending::End => parser.fail("`end` without anything to end"),
        Ending::Else => parser.fail("`else` without its `if`, `with` or `range`"),
    }
}

struct Parser {
    tokens: std::iter::Peekable<std::vec::IntoIter<Spot>>,
    line: u32,
    depth: u32,
    /// Loops around this place.
    ranges: u32,
    variables: Vec<String>,
    defined: BTreeMap<String, Nodes>,
    is_top: bool,
}

type Parsed<T> = Result<T, ParseError>;

impl Parser {
    fn fail<T>(&self, reason: impl Into<String>) -> Parsed<T> {
        Err(ParseError { line: self.line, reason: reason.into() })
    }

    fn next(&mut self) -> Token {
        match self.tokens.next() {
            Some(spot) => {
                self.line = spot.line;
                spot.token
            }
            None => Token::End,
        }
    }

    fn peek(&mut self) -> &Token {
        self.tokens.peek().map_or(&Token::End, |spot| &spot.token)
    }

    fn is_spaced(&mut self) -> bool {
        self.tokens.peek().is_some_and(|spot| spot.spaced)
    }

    fn peek_name(&mut self) -> Option<String> {
        match self.peek() {
            Token::Name(name) => Some(name.clone()),
            _ => None,
        }
    }

    fn deeper<T>(&mut self, parse: impl FnOnce(&mut Self) -> Parsed<T>) -> Parsed<T> {
        self.depth += 1;
        if self.depth > DEPTH_MAX {
            return self.fail(format!("nested more than {DEPTH_MAX} deep"));
        }
        let parsed = parse(self);
        self.depth -= 1;
        parsed
    }

    /// Up to and with the `end` or `else` that is not its own.
    fn nodes(&mut self) -> Parsed<(Nodes, Ending)> {
        let mut nodes = Vec::new();
        loop {
            match self.next() {
                Token::End => return Ok((nodes.into(), Ending::Eof)),
                Token::Plain(text) => nodes.push(Node::Plain(Arc::from(text.as_bytes()))),
                Token::Open => match self.peek_name().as_deref() {
                    Some("end") => {
                        self.next();
                        self.close("end")?;
                        return Ok((nodes.into(), Ending::End));
                    }
                    Some("else") => {
                        self.next();
                        return Ok((nodes.into(), Ending::Else));
                    }
                    keyword => {
                        let keyword = keyword.map(str::to_owned);
                        nodes.extend(self.deeper(|parser| parser.action(keyword.as_deref()))?);
                    }
                },
                other => return self.fail(format!("unexpected {}", describe(&other))),
            }
        }
    }

    fn close(&mut self, what: &str) -> Parsed<()> {
        match self.next() {
            Token::Close => Ok(()),
            other => self.fail(format!("unexpected {} in {what}", describe(&other))),
        }
    }

    fn action(&mut self, keyword: Option<&str>) -> Parsed<Option<Node>> {
        match keyword {
            Some("if") => self.branch("if").map(|branch| Some(Node::If(branch))),
            Some("with") => self.branch("with").map(|branch| Some(Node::With(branch))),
            Some("range") => self.branch("range").map(|branch| Some(Node::Range(branch))),
            Some(word @ ("break" | "continue")) => self.jump(word).map(Some),
            Some("template") => self.template().map(Some),
            Some("block") => self.block().map(Some),
            Some("define") => self.define().map(|()| None),
            _ => {
                let pipe = self.pipe("an action", &Token::Close)?;
                Ok(Some(Node::Action(pipe)))
            }
        }
    }

    fn branch(&mut self, word: &str) -> Parsed<Branch> {
        self.next();
        let variables = self.variables.len();
        let pipe = self.pipe(word, &Token::Close)?;
        let is_loop = u32::from(word == "range");
        self.ranges += is_loop;
        let body = self.nodes();
        self.ranges -= is_loop;
        let (then, ending) = body?;
        let otherwise = self.otherwise(word, ending)?;
        self.variables.truncate(variables);
        Ok(Branch { pipe, then, otherwise })
    }

    /// `else if` and `else with` stand for a block of their own that shares the `end`.
    fn otherwise(&mut self, word: &str, ending: Ending) -> Parsed<Nodes> {
        match ending {
            Ending::Eof => self.fail(format!("`{word}` is not closed; add its `end`")),
            Ending::End => Ok(Arc::from([])),
            Ending::Else => match self.peek_name().as_deref() {
                Some(again) if again == word && word != "range" => {
                    let nested = self.deeper(|parser| parser.branch(word))?;
                    Ok(Arc::from([if word == "if" { Node::If(nested) } else { Node::With(nested) }]))
                }
                _ => {
                    self.close("else")?;
                    match self.nodes()? {
                        (nodes, Ending::End) => Ok(nodes),
                        (_, Ending::Else) => self.fail(format!("`{word}` has a second `else`")),
                        (_, Ending::Eof) => self.fail(format!("`{word}` is not closed; add its `end`")),
                    }
                }
            },
        }
    }

    fn jump(&mut self, word: &str) -> Parsed<Node> {
        self.next();
        if self.ranges == 0 {
            return self.fail(format!("`{word}` outside of a `range`"));
        }
        self.close(word)?;
        Ok(if word == "break" { Node::Break } else { Node::Continue })
    }

    fn name_of_template(&mut self, word: &str) -> Parsed<String> {
        self.next();
        match self.next() {
            Token::Text(name) => Ok(String::from_utf8_lossy(&name).into_owned()),
            other => self.fail(format!("`{word}` needs a name in quotes, not {}", describe(&other))),
        }
    }

    fn template(&mut self) -> Parsed<Node> {
        let name = self.name_of_template("template")?;
        let line = self.line;
        if *self.peek() == Token::Close {
            self.next();
            return Ok(Node::Template { name, dot: None, line });
        }
        let dot = self.pipe("template", &Token::Close)?;
        Ok(Node::Template { name, dot: Some(dot), line })
    }

    fn block(&mut self) -> Parsed<Node> {
        let name = self.name_of_template("block")?;
        let line = self.line;
        let dot = self.pipe("block", &Token::Close)?;
        self.body(name.clone())?;
        Ok(Node::Template { name, dot: Some(dot), line })
    }

    fn define(&mut self) -> Parsed<()> {
        if !self.is_top || self.depth > 1 {
            return self.fail("`define` stands at the top level only");
        }
        let name = self.name_of_template("define")?;
        self.close("define")?;
        self.body(name)
    }

    /// A template's own text: it sees none of the variables and loops around it.
    fn body(&mut self, name: String) -> Parsed<()> {
        let variables = std::mem::replace(&mut self.variables, vec!["$".to_owned()]);
        let (ranges, is_top) = (std::mem::take(&mut self.ranges), std::mem::replace(&mut self.is_top, false));
        let (nodes, ending) = self.nodes()?;
        if !matches!(ending, Ending::End) {
            return self.fail(format!("the template {name:?} is not closed; add its `end`"));
        }
        (self.variables, self.ranges, self.is_top) = (variables, ranges, is_top);
        self.keep(name, nodes)
    }

    /// As in Go, an empty definition does not replace one that says something.
    fn keep(&mut self, name: String, nodes: Nodes) -> Parsed<()> {
        let says =
            |nodes: &Nodes| nodes.iter().any(|node| !matches!(node, Node::Plain(text) if text.trim_ascii().is_empty()));
        match self.defined.get(&name) {
            Some(old) if says(old) && says(&nodes) => self.fail(format!("the template {name:?} is defined twice")),
            Some(old) if says(old) => Ok(()),
            _ => {
                self.defined.insert(name, nodes);
                Ok(())
            }
        }
    }

    fn pipe(&mut self, context: &str, end: &Token) -> Parsed<Pipe> {
        let mut pipe = Pipe { line: self.line, ..Pipe::default() };
        let mut bare = self.declarations(context, &mut pipe)?;
        loop {
            match bare.take() {
                Some(variable) => {
                    let operand = self.fields_after(variable)?;
                    let command = self.command(operand)?;
                    pipe.commands.push(command);
                }
                None if self.peek() == end => break,
                None => {
                    let operand = self.operand(context)?;
                    let command = self.command(operand)?;
                    pipe.commands.push(command);
                }
            }
            match self.next() {
                Token::Bar if self.peek() == end => return self.fail("something must follow `|`"),
                Token::Bar => {}
                token if token == *end => return self.checked(context, pipe),
                other => return self.fail(format!("unexpected {} in {context}", describe(&other))),
            }
        }
        self.next();
        self.checked(context, pipe)
    }

    fn checked(&mut self, context: &str, pipe: Pipe) -> Parsed<Pipe> {
        if pipe.commands.is_empty() {
            return self.fail(format!("{context} is empty"));
        }
        if pipe.commands.iter().skip(1).any(|command| is_constant(&command.first)) {
            return self.fail(format!("{context} passes a value on to something that takes none"));
        }
        for name in &pipe.names {
            if pipe.assigns && !self.variables.contains(name) {
                return self.fail(format!("{name} is not defined; set it with := first"));
            }
        }
        Ok(pipe)
    }

    /// `$a :=`, `$a =`, `$i, $e :=`; a variable that is not set here is handed back.
    fn declarations(&mut self, context: &str, pipe: &mut Pipe) -> Parsed<Option<Operand>> {
        let Token::Variable(name) = self.peek().clone() else { return Ok(None) };
        self.next();
        match self.peek() {
            Token::Declare | Token::Assign => {
                pipe.names.push(name);
            }
            Token::Comma if context == "range" => {
                self.next();
                let Token::Variable(second) = self.next() else {
                    return self.fail("`range` can only set variables");
                };
                pipe.names.extend([name, second]);
                if !matches!(self.peek(), Token::Declare | Token::Assign) {
                    return self.fail("two variables of `range` need := or = after them");
                }
            }
            Token::Comma => return self.fail(format!("too many variables in {context}")),
            _ => return self.variable(name).map(Some),
        }
        pipe.assigns = self.next() == Token::Assign;
        if !pipe.assigns {
            self.variables.extend(pipe.names.iter().cloned());
        }
        Ok(None)
    }

    fn variable(&mut self, name: String) -> Parsed<Operand> {
        if self.variables.contains(&name) {
            return Ok(Operand::Variable(name, Vec::new()));
        }
        self.fail(format!("{name} is not defined"))
    }

    fn command(&mut self, first: Operand) -> Parsed<Command> {
        let mut args = Vec::new();
        while !matches!(self.peek(), Token::Bar | Token::Close | Token::RightParen | Token::End) {
            if !self.is_spaced() {
                let token = self.next();
                return self.fail(format!("unexpected {}; put a space before it", describe(&token)));
            }
            args.push(self.operand("an action")?);
        }
        Ok(Command { first, args })
    }

    fn operand(&mut self, context: &str) -> Parsed<Operand> {
        let operand = match self.next() {
            Token::Dot => Operand::Dot,
            Token::Nil => Operand::Nil,
            Token::Bool(truth) => Operand::Bool(truth),
            Token::Int(number) => Operand::Int(number),
            Token::Float(number) => Operand::Float(number),
            Token::Text(text) => Operand::Text(text.into()),
            Token::Field(name) => Operand::Field(vec![name]),
            Token::Variable(name) => self.variable(name)?,
            Token::Name(name) => match functions::refusal(&name) {
                None => Operand::Function(name),
                Some(reason) => return self.fail(reason),
            },
            Token::LeftParen => {
                let pipe = self.deeper(|parser| parser.pipe("parentheses", &Token::RightParen))?;
                Operand::Pipe(Box::new(pipe))
            }
            other => return self.fail(format!("unexpected {} in {context}", describe(&other))),
        };
        self.fields_after(operand)
    }

    /// Fields that follow without a space.
    fn fields_after(&mut self, operand: Operand) -> Parsed<Operand> {
        let mut fields = Vec::new();
        while !self.is_spaced() && matches!(self.peek(), Token::Field(_)) {
            if let Token::Field(name) = self.next() {
                fields.push(name);
            }
        }
        if fields.is_empty() {
            return Ok(operand);
        }
        match operand {
            Operand::Field(mut names) => {
                names.append(&mut fields);
                Ok(Operand::Field(names))
            }
            Operand::Variable(name, _) => Ok(Operand::Variable(name, fields)),
            constant if is_constant(&constant) => self.fail("unexpected . after a value"),
            Operand::Dot => self.fail("unexpected . after `.`"),
            other => Ok(Operand::Chain(Box::new(other), fields)),
        }
    }
}

fn is_constant(operand: &Operand) -> bool {
    use Operand::{Bool, Dot, Float, Int, Nil, Text};
    matches!(operand, Bool(_) | Dot | Nil | Int(_) | Float(_) | Text(_))
}

fn describe(token: &Token) -> String {
    match token {
        Token::Plain(_) => "text".to_owned(),
        Token::Open => "the opening delimiter".to_owned(),
        Token::Close => "the closing delimiter".to_owned(),
        Token::Name(name) => format!("`{name}`"),
        Token::Field(name) => format!("`.{name}`"),
        Token::Variable(name) => format!("`{name}`"),
        Token::Text(_) => "a string".to_owned(),
        Token::Int(_) | Token::Float(_) => "a number".to_owned(),
        Token::Bool(_) => "a truth value".to_owned(),
        Token::Nil => "`nil`".to_owned(),
        Token::Dot => "`.`".to_owned(),
        Token::Bar => "`|`".to_owned(),
        Token::Comma => "`,`".to_owned(),
        Token::Declare => "`:=`".to_owned(),
        Token::Assign => "`=`".to_owned(),
        Token::LeftParen => "`(`".to_owned(),
        Token::RightParen => "`)`".to_owned(),
        Token::End => "the end of the text".to_owned(),
    }
}
