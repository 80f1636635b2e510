//! Job files: HCL as Nomad's users write it, to `model::Job`.
//!
//! ```text
//! text -> hcl-edit (syntax, spans) -> section (which keys may stand where) -> job (meaning) -> model::Job
//!                                        eval (var, local, functions, templates)
//! ```
//!
//! A file is taken whole or refused whole, with every problem at its line and column. What Nomad would act on and this
//! version does not is refused by name; nothing is ignored. `provider` of a service may be `nomad`, `consul` or absent: all
//! of them mean the one catalog there is. `${NOMAD_…}`, `${attr.…}`, `${node.…}` and `${meta.…}` stay in the text and are
//! filled in on the node.

mod dynamic;
mod eval;
mod functions;
mod job;
mod section;
mod source;
mod variables;

pub use variables::{InputError, Inputs};

#[cfg(test)]
mod tests;

use std::fmt;
use thiserror::Error;

/// Longer sources are refused unread, as Nomad's servers do.
pub const SOURCE_BYTES_MAX: usize = 1 << 20;

/// Why a job file was not taken. Problems are in the order of their places.
#[derive(Clone, Debug, PartialEq, Eq, Error)]
pub struct Refusal {
    pub file: String,
    pub problems: Vec<Problem>,
}

/// Lines and columns count from 1, columns in characters.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Problem {
    pub line: usize,
    pub column: usize,
    pub message: String,
    pub hint: Option<String>,
}

impl fmt::Display for Refusal {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (position, problem) in self.problems.iter().enumerate() {
            let separator = if position == 0 { "" } else { "\n" };
            write!(f, "{separator}{}:{}:{}: {}", self.file, problem.line, problem.column, problem.message)?;
            if let Some(hint) = &problem.hint {
                write!(f, "\n  {hint}")?;
            }
        }
        Ok(())
    }
}

/// Reads a job file; `file_name` only appears in the refusal.
pub fn parse_hcl(file_name: &str, text: &str) -> Result<model::Job, Refusal> {
    parse_hcl_with(file_name, text, &Inputs::default())
}

/// Reads a job file whose variables are given from outside.
pub fn parse_hcl_with(file_name: &str, text: &str, inputs: &Inputs) -> Result<model::Job, Refusal> {
    let refuse = |problems| Refusal { file: file_name.to_owned(), problems };
    if text.len() > SOURCE_BYTES_MAX {
        let message = format!("the file has {} bytes; a job file may have {SOURCE_BYTES_MAX}", text.len());
        return Err(refuse(vec![Problem { line: 1, column: 1, message, hint: None }]));
    }
    let body = hcl_edit::parser::parse_body(text).map_err(|error| refuse(vec![syntax_problem(&error)]))?;
    let mut source = source::Source::new(text);
    let job = job::read(&body, inputs, &mut source);
    match job {
        Some(job) if source.problems.is_empty() => Ok(job),
        _ => Err(refuse(source.into_problems())),
    }
}

fn syntax_problem(error: &hcl_edit::parser::Error) -> Problem {
    let place = error.location();
    Problem { line: place.line(), column: place.column(), message: error.message().to_owned(), hint: None }
}

/// The job with the sentences of its problems, for tests of what is read but not built.
#[cfg(test)]
fn read(text: &str) -> (Option<model::Job>, Vec<String>) {
    let body = hcl_edit::parser::parse_body(text).expect("the syntax is right");
    let mut source = source::Source::new(text);
    let job = job::read(&body, &Inputs::default(), &mut source);
    let sentence = |problem: Problem| format!("{}:{}: {}", problem.line, problem.column, problem.message);
    (job, source.into_problems().into_iter().map(sentence).collect())
}
