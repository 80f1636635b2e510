//! Which keys and blocks may stand in which block, and the answer to all others.

use crate::source::Source;
use hcl_edit::expr::Expression;
use hcl_edit::structure::{Attribute, Block, Body, Structure};

/// The vocabulary of one kind of block.
pub(crate) struct Shape {
    pub(crate) name: &'static str,
    pub(crate) keys: &'static [&'static str],
    pub(crate) blocks: &'static [&'static str],
    /// Known to Nomad and not acted on here yet.
    pub(crate) not_built: &'static [&'static str],
    /// Not acted on either, so that only the value that changes nothing is taken.
    pub(crate) only: &'static [(&'static str, &'static str)],
}

/// A block's content, sorted by name; what does not belong there is reported already.
pub(crate) struct Section<'b> {
    attributes: Vec<&'b Attribute>,
    blocks: Vec<&'b Block>,
}

impl<'b> Section<'b> {
    pub(crate) fn read(body: &'b Body, shape: &Shape, source: &mut Source<'_>) -> Self {
        let mut section = Section { attributes: Vec::new(), blocks: Vec::new() };
        for structure in body {
            match structure {
                Structure::Attribute(attribute) => section.attribute(attribute, shape, source),
                Structure::Block(block) => section.block(block, shape, source),
            }
        }
        section
    }

    pub(crate) fn get(&self, key: &str) -> Option<&'b Expression> {
        self.attribute_named(key).map(|attribute| &attribute.value)
    }

    pub(crate) fn attribute_named(&self, key: &str) -> Option<&'b Attribute> {
        self.attributes.iter().find(|attribute| attribute.key.as_str() == key).copied()
    }

    pub(crate) fn all<'s>(&'s self, name: &'s str) -> impl Iterator<Item = &'b Block> + 's {
        self.blocks.iter().filter(move |block| block.ident.as_str() == name).copied()
    }

    /// A block that may stand once.
    pub(crate) fn one(&self, name: &str, source: &mut Source<'_>) -> Option<&'b Block> {
        let mut found = self.all(name);
        let first = found.next();
        for again in found {
            source.problem(&again.ident, format!("block `{name}` may stand once here"));
        }
        first
    }

    fn attribute(&mut self, attribute: &'b Attribute, shape: &Shape, source: &mut Source<'_>) {
        let key = attribute.key.as_str();
        if shape.keys.contains(&key) {
            self.attributes.push(attribute);
        } else if let Some((_, value)) = shape.only.iter().find(|(name, _)| *name == key) {
            if literal(&attribute.value).as_deref() != Some(*value) {
                let message = format!("key `{key}` is not built yet");
                source.problem_with_hint(
                    &attribute.key,
                    message,
                    format!("leave it out, or give its default, {value}"),
                );
            }
        } else if shape.blocks.contains(&key) {
            source.problem(&attribute.key, format!("`{key}` is a block: write `{key} {{ … }}` without `=`"));
        } else {
            refuse(&attribute.key, "key", key, shape, source);
        }
    }

    fn block(&mut self, block: &'b Block, shape: &Shape, source: &mut Source<'_>) {
        let name = block.ident.as_str();
        if shape.blocks.contains(&name) {
            self.blocks.push(block);
        } else if shape.keys.contains(&name) {
            source.problem(&block.ident, format!("`{name}` is a key: write `{name} = …`"));
        } else {
            refuse(&block.ident, "block", name, shape, source);
        }
    }
}

fn refuse(at: &impl hcl_edit::Span, what: &str, name: &str, shape: &Shape, source: &mut Source<'_>) {
    if name == "dynamic" || shape.not_built.contains(&name) || shape.only.iter().any(|(key, _)| *key == name) {
        return source.problem(at, format!("{what} `{name}` is not built yet"));
    }
    let message = format!("{what} `{name}` is not known in `{}`", shape.name);
    let known = shape.keys.iter().chain(shape.blocks).chain(shape.not_built).copied();
    match nearest(name, known) {
        Some(near) => source.problem_with_hint(at, message, format!("did you mean `{near}`?")),
        None => source.problem(at, message),
    }
}

/// The text of a plain value, for comparing it with a default.
fn literal(value: &Expression) -> Option<String> {
    match value {
        Expression::Bool(value) => Some(value.to_string()),
        Expression::Number(value) => Some(value.to_string()),
        Expression::String(value) => Some(value.as_str().to_owned()),
        _ => None,
    }
}

/// The candidate that differs in few letters, if there is one.
pub(crate) fn nearest<'k>(name: &str, known: impl Iterator<Item = &'k str>) -> Option<&'k str> {
    // Names of blocks are short; a long one is no misspelling, and comparing costs the product of the lengths.
    if name.len() > 64 {
        return None;
    }
    // Two letters swapped count as two changes.
    let letters = name.chars().count();
    let close = (letters / 3).max(if letters > 3 { 2 } else { 1 });
    known.map(|key| (distance(name, key), key)).filter(|(distance, _)| *distance <= close).min().map(|(_, key)| key)
}

/// Levenshtein's distance, row by row.
fn distance(left: &str, right: &str) -> usize {
    let right: Vec<char> = right.chars().collect();
    let mut row: Vec<usize> = (0..=right.len()).collect();
    for (above, letter) in left.chars().enumerate() {
        let mut diagonal = std::mem::replace(&mut row[0], above + 1);
        for (at, other) in right.iter().enumerate() {
            let replaced = diagonal + usize::from(letter != *other);
            diagonal = row[at + 1];
            row[at + 1] = replaced.min(row[at] + 1).min(diagonal + 1);
        }
    }
    row.last().copied().unwrap_or(0)
}
