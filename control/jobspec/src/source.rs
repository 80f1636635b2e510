//! The text with its lines, and the problems found so far.

use crate::Problem;
use hcl_edit::Span;
use std::ops::Range;

/// More problems than this help nobody; a hostile file could make millions.
const PROBLEMS_MAX: usize = 100;

pub(crate) struct Source<'a> {
    text: &'a str,
    line_starts: Vec<usize>,
    pub(crate) problems: Vec<Problem>,
}

impl<'a> Source<'a> {
    pub(crate) fn new(text: &'a str) -> Self {
        let starts = text.match_indices('\n').map(|(at, _)| at + 1);
        Self { text, line_starts: std::iter::once(0).chain(starts).collect(), problems: Vec::new() }
    }

    /// The text of a node of the syntax tree.
    pub(crate) fn slice(&self, range: Range<usize>) -> &'a str {
        self.text.get(range).unwrap_or_default()
    }

    pub(crate) fn problem(&mut self, at: &impl Span, message: impl Into<String>) {
        self.push(at, message.into(), None);
    }

    pub(crate) fn problem_with_hint(&mut self, at: &impl Span, message: impl Into<String>, hint: impl Into<String>) {
        self.push(at, message.into(), Some(hint.into()));
    }

    /// At the start of the file: something is missing altogether.
    pub(crate) fn missing(&mut self, message: &str, hint: &str) {
        let (message, hint) = (message.to_owned(), Some(hint.to_owned()));
        self.problems.push(Problem { line: 1, column: 1, message, hint });
    }

    pub(crate) fn into_problems(mut self) -> Vec<Problem> {
        self.problems.sort();
        self.problems.dedup();
        self.problems
    }

    fn push(&mut self, at: &impl Span, message: String, hint: Option<String>) {
        if self.problems.len() >= PROBLEMS_MAX {
            return;
        }
        let (line, column) = self.place(at.span().map_or(0, |span| span.start));
        self.problems.push(Problem { line, column, message, hint });
    }

    fn place(&self, offset: usize) -> (usize, usize) {
        let line = self.line_starts.partition_point(|start| *start <= offset);
        let start = self.line_starts.get(line.wrapping_sub(1)).copied().unwrap_or(0);
        (line, self.slice(start..offset).chars().count() + 1)
    }
}
