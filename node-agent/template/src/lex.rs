//! Text into tokens, by the rules of Go's text/template/parse/lex.go.

use crate::{Delimiters, ParseError};

#[derive(Clone, Debug, PartialEq)]
pub enum Token {
    /// Outside of actions.
    Plain(String),
    Open,
    Close,
    Name(String),
    /// Without its dot.
    Field(String),
    /// With its dollar sign.
    Variable(String),
    Text(Vec<u8>),
    Int(i64),
    Float(f64),
    Bool(bool),
    Nil,
    Dot,
    Bar,
    Comma,
    Declare,
    Assign,
    LeftParen,
    RightParen,
    End,
}

#[derive(Clone, Debug)]
pub struct Spot {
    pub token: Token,
    pub line: u32,
    /// White space stands before it.
    pub spaced: bool,
}

pub fn lex(text: &str, delimiters: Delimiters<'_>) -> Result<Vec<Spot>, ParseError> {
    let (left, right) = (delimiters.left, delimiters.right);
    let mut lexer = Lexer { rest: text, line: 1, left, right, out: Vec::new(), parens: 0, spaced: false };
    lexer.outside()?;
    lexer.push(Token::End);
    Ok(lexer.out)
}

struct Lexer<'a> {
    rest: &'a str,
    line: u32,
    left: &'a str,
    right: &'a str,
    out: Vec<Spot>,
    parens: u32,
    spaced: bool,
}

const SPACES: [char; 4] = [' ', '\t', '\r', '\n'];

impl<'a> Lexer<'a> {
    fn fail<T>(&self, reason: impl Into<String>) -> Result<T, ParseError> {
        Err(ParseError { line: self.line, reason: reason.into() })
    }

    fn push(&mut self, token: Token) {
        self.out.push(Spot { token, line: self.line, spaced: std::mem::take(&mut self.spaced) });
    }

    fn take(&mut self, count: usize) -> &'a str {
        let (taken, rest) = self.rest.split_at(count);
        self.line += u32::try_from(taken.matches('\n').count()).unwrap_or(0);
        self.rest = rest;
        taken
    }

    fn outside(&mut self) -> Result<(), ParseError> {
        while let Some(start) = self.rest.find(self.left) {
            let trims = is_left_trim(&self.rest[start + self.left.len()..]);
            let plain = self.take(start);
            let plain = if trims { plain.trim_end_matches(SPACES) } else { plain };
            self.push_plain(plain);
            self.take(self.left.len());
            if trims {
                self.take(2);
            }
            if self.rest.starts_with("/*") {
                self.comment()?;
            } else {
                self.push(Token::Open);
                self.inside()?;
            }
        }
        let plain = self.take(self.rest.len());
        self.push_plain(plain);
        Ok(())
    }

    fn push_plain(&mut self, plain: &str) {
        if !plain.is_empty() {
            self.push(Token::Plain(plain.to_owned()));
        }
    }

    fn comment(&mut self) -> Result<(), ParseError> {
        let Some(end) = self.rest.find("*/") else { return self.fail("a comment does not end; close it with */") };
        self.take(end + 2);
        let Some(trims) = self.right_delimiter() else {
            return self.fail("a comment must fill its action: put the closing delimiter right after */");
        };
        self.close(trims);
        Ok(())
    }

    /// Whether the action ends here, and then whether it trims what follows.
    fn right_delimiter(&self) -> Option<bool> {
        if let Some(rest) = self.rest.strip_prefix(SPACES).and_then(|rest| rest.strip_prefix('-'))
            && rest.starts_with(self.right)
        {
            return Some(true);
        }
        self.rest.starts_with(self.right).then_some(false)
    }

    fn close(&mut self, trims: bool) {
        let marker = if trims { 2 } else { 0 };
        self.take(marker + self.right.len());
        if trims {
            let spaces = self.rest.len() - self.rest.trim_start_matches(SPACES).len();
            self.take(spaces);
        }
    }

    fn inside(&mut self) -> Result<(), ParseError> {
        self.parens = 0;
        loop {
            if let Some(trims) = self.right_delimiter() {
                if self.parens > 0 {
                    return self.fail("a parenthesis is not closed");
                }
                self.push(Token::Close);
                self.close(trims);
                return Ok(());
            }
            let Some(first) = self.rest.chars().next() else {
                return self.fail(format!("an action is not closed; end it with {}", self.right));
            };
            self.token(first)?;
        }
    }

    fn token(&mut self, first: char) -> Result<(), ParseError> {
        let one = first.len_utf8();
        match first {
            space if SPACES.contains(&space) => {
                self.take(one);
                self.spaced = true;
            }
            '=' => self.simple(1, Token::Assign),
            ':' if self.rest.starts_with(":=") => self.simple(2, Token::Declare),
            ':' => return self.fail("expected :="),
            '|' => self.simple(1, Token::Bar),
            ',' => self.simple(1, Token::Comma),
            '(' => {
                self.parens += 1;
                self.simple(1, Token::LeftParen);
            }
            ')' if self.parens == 0 => return self.fail("a closing parenthesis without its opening one"),
            ')' => {
                self.parens -= 1;
                self.simple(1, Token::RightParen);
            }
            '"' => return self.quoted(),
            '`' => return self.raw(),
            '\'' => return self.character(),
            '$' => {
                self.take(1);
                let name = self.word();
                self.push(Token::Variable(format!("${name}")));
                return self.terminated();
            }
            '.' if !self.rest[1..].starts_with(|c: char| c.is_ascii_digit()) => {
                self.take(1);
                match self.word() {
                    "" => self.push(Token::Dot),
                    name => self.push(Token::Field(name.to_owned())),
                }
                return self.terminated();
            }
            '.' | '+' | '-' | '0'..='9' => return self.number(),
            letter if is_word(letter) => return self.name(),
            other => return self.fail(format!("unexpected character {other:?} in an action")),
        }
        Ok(())
    }

    fn simple(&mut self, count: usize, token: Token) {
        self.take(count);
        self.push(token);
    }

    fn word(&mut self) -> &'a str {
        let end = self.rest.find(|c| !is_word(c)).unwrap_or(self.rest.len());
        self.take(end)
    }

    /// Names must not run into what follows.
    fn terminated(&self) -> Result<(), ParseError> {
        let ends = |c: char| SPACES.contains(&c) || ['.', ',', '|', ':', ')', '('].contains(&c);
        match self.rest.chars().next() {
            None => Ok(()),
            Some(next) if ends(next) || self.rest.starts_with(self.right) => Ok(()),
            Some(next) => self.fail(format!("unexpected character {next:?} after a name; put a space between")),
        }
    }

    fn name(&mut self) -> Result<(), ParseError> {
        let token = match self.word() {
            "true" => Token::Bool(true),
            "false" => Token::Bool(false),
            "nil" => Token::Nil,
            name => Token::Name(name.to_owned()),
        };
        self.push(token);
        self.terminated()
    }

    fn number(&mut self) -> Result<(), ParseError> {
        let sign = usize::from(self.rest.starts_with(['+', '-']));
        let body = &self.rest[sign..];
        let is_hex = body.starts_with("0x") || body.starts_with("0X");
        let mut end = 0;
        let mut previous = ' ';
        for c in body.chars() {
            let exponent_sign =
                (c == '+' || c == '-') && (if is_hex { ['p', 'P'] } else { ['e', 'E'] }).contains(&previous);
            if !(is_word(c) || c == '.' || exponent_sign) {
                break;
            }
            end += c.len_utf8();
            previous = c;
        }
        let text = self.take(sign + end);
        match crate::number::literal(text) {
            Some(token) => {
                self.push(token);
                Ok(())
            }
            None => self.fail(format!("{text:?} is not a number")),
        }
    }

    fn quoted(&mut self) -> Result<(), ParseError> {
        let mut escaped = false;
        for (at, c) in self.rest.char_indices().skip(1) {
            match c {
                '\n' => break,
                _ if escaped => escaped = false,
                '\\' => escaped = true,
                '"' => {
                    let body = self.take(at + 1);
                    let text = crate::number::unescape(&body[1..at], '"');
                    let Some(text) = text else { return self.fail(format!("{body} has an escape that is none")) };
                    self.push(Token::Text(text));
                    return Ok(());
                }
                _ => {}
            }
        }
        self.fail("a quoted string does not end on its line")
    }

    fn raw(&mut self) -> Result<(), ParseError> {
        let Some(end) = self.rest[1..].find('`') else { return self.fail("a raw string does not end") };
        let line = self.line;
        let body = self.take(end + 2);
        let text = body[1..=end].replace('\r', "");
        self.out.push(Spot { token: Token::Text(text.into_bytes()), line, spaced: std::mem::take(&mut self.spaced) });
        Ok(())
    }

    /// A character is its number.
    fn character(&mut self) -> Result<(), ParseError> {
        let mut escaped = false;
        let end = self.rest.char_indices().skip(1).find_map(|(at, c)| {
            let ends = c == '\'' && !escaped;
            escaped = c == '\\' && !escaped;
            ends.then_some(at)
        });
        let Some(end) = end else { return self.fail("a character constant does not end") };
        let body = self.take(end + 1);
        let bytes = crate::number::unescape(&body[1..end], '\'');
        let text = bytes.as_deref().and_then(|bytes| std::str::from_utf8(bytes).ok());
        let mut chars = text.unwrap_or_default().chars();
        match (chars.next(), chars.next()) {
            (Some(only), None) => {
                self.push(Token::Int(i64::from(u32::from(only))));
                Ok(())
            }
            _ => self.fail(format!("{body} is not one character")),
        }
    }
}

fn is_left_trim(after: &str) -> bool {
    after.strip_prefix('-').is_some_and(|rest| rest.starts_with(SPACES))
}

fn is_word(c: char) -> bool {
    c == '_' || c.is_alphanumeric()
}
