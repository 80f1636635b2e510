//! Go's text/template language with the functions of consul-template: what `template` blocks of job files are written in.
//!
//! ```text
//!   text ──parse──► Template ──render(inputs)──► Rendering { outcome, dependencies }
//!                                 │ asks
//!                                 ▼
//!                       Data::fetch(dependency) ──► Found | Absent | Pending | Refused
//! ```
//! A rendering asks for everything through [`Data`] and says what it asked for, so that its owner knows when to render
//! again. What is not there yet makes it [`Outcome::Pending`] on all of that at once, as consul-template waits. No clock, no
//! files, no network: time and environment are inputs.
//!
//! Texts come from job files and values from anywhere, so everything is bounded: nesting, steps, bytes made, bytes written.
//! Own code and not the crate `gtmpl`: that one bounds none of it, knows neither `break` nor `else with`, and cannot tell a
//! value that is missing from one that is not there yet.

mod data;
mod exec;
mod format;
mod functions;
mod lex;
mod number;
mod parse;
mod value;

#[cfg(test)]
mod tests;

pub use data::{Content, Data, Dependency, Fetched, KeyValue, NodeEntry, ServiceEntry};
pub use value::Value;

use std::collections::{BTreeMap, BTreeSet};

/// The most bytes that a template may have, and a rendering may write.
pub const SOURCE_BYTES_MAX: usize = 1 << 20;
pub const OUTPUT_BYTES_MAX: usize = 4 << 20;

/// A text that was understood; renders any number of times.
#[derive(Clone, Debug)]
pub struct Template {
    pub(crate) root: std::sync::Arc<[parse::Node]>,
    pub(crate) defined: BTreeMap<String, std::sync::Arc<[parse::Node]>>,
}

/// What opens and closes an action: `{{` and `}}` unless the job says otherwise.
#[derive(Clone, Copy, Debug)]
pub struct Delimiters<'a> {
    pub left: &'a str,
    pub right: &'a str,
}

impl Default for Delimiters<'_> {
    fn default() -> Self {
        Self { left: "{{", right: "}}" }
    }
}

#[derive(Clone, Copy)]
pub struct Inputs<'a> {
    /// What `env` shows: the task's environment.
    pub env: &'a BTreeMap<String, String>,
    /// What `timestamp` shows.
    pub now: model::Timestamp,
    pub data: &'a dyn Data,
    /// A field that a map does not have is an error rather than `<no value>`.
    pub error_on_missing_key: bool,
}

#[derive(Clone, Debug, PartialEq)]
pub struct Rendering {
    pub outcome: Outcome,
    /// Everything it asked for, found or not.
    pub dependencies: BTreeSet<Dependency>,
}

#[derive(Clone, Debug, PartialEq)]
pub enum Outcome {
    /// Bytes, since `base64Decode` may give any.
    Text(Vec<u8>),
    /// These are not there yet.
    Pending(BTreeSet<Dependency>),
    Failed(RenderError),
}

#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("line {line}: {reason}")]
pub struct ParseError {
    pub line: u32,
    pub reason: String,
}

#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("line {line}: {reason}")]
pub struct RenderError {
    pub line: u32,
    pub reason: String,
}

impl Template {
    pub fn parse(text: &str, delimiters: Delimiters<'_>) -> Result<Self, ParseError> {
        parse::parse(text, delimiters)
    }

    /// With nothing as `.`, as job files have it.
    pub fn render(&self, inputs: &Inputs<'_>) -> Rendering {
        self.render_with(inputs, Value::Nil)
    }

    pub fn render_with(&self, inputs: &Inputs<'_>, dot: Value) -> Rendering {
        exec::render(self, inputs, dot)
    }
}
