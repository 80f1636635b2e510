//! `dynamic` blocks: replaced by the blocks they stand for before anything is read.

use crate::eval::{Scope, Value};
use crate::section::{Section, Shape};
use crate::source::Source;
use hcl_edit::expr::{Expression, Traversal};
use hcl_edit::structure::{Block, BlockLabel, Body, Structure};
use hcl_edit::visit_mut::{VisitMut, visit_expr_mut, visit_traversal_mut};
use hcl_edit::{Decorated, Ident};
use std::collections::BTreeMap;

/// What all `dynamic` blocks of a file may come to.
const BLOCKS_MAX: usize = 1000;

const DYNAMIC: Shape = Shape {
    name: "dynamic",
    keys: &["for_each", "iterator", "labels"],
    blocks: &["content"],
    not_built: &[],
    only: &[],
};

/// The body with every `dynamic` block replaced. What a loop's variable holds is bound in the scope under a name that no
/// file can write.
pub(crate) fn expand(body: &Body, scope: &mut Scope<'_>, source: &mut Source<'_>) -> Body {
    Expansion { scope, source, made: 0 }.body(body)
}

struct Expansion<'e, 'b, 't> {
    scope: &'e mut Scope<'b>,
    source: &'e mut Source<'t>,
    made: usize,
}

impl Expansion<'_, '_, '_> {
    fn body(&mut self, body: &Body) -> Body {
        let mut expanded = Vec::new();
        for structure in body {
            match structure {
                Structure::Attribute(attribute) => expanded.push(Structure::Attribute(attribute.clone())),
                Structure::Block(block) if block.ident.as_str() == "dynamic" => {
                    expanded.extend(self.dynamic(block).into_iter().map(Structure::Block));
                }
                Structure::Block(block) => {
                    let inner = self.body(&block.body);
                    expanded.push(Structure::Block(with_body(block, inner)));
                }
            }
        }
        Body::from(expanded)
    }

    fn dynamic(&mut self, block: &Block) -> Vec<Block> {
        let section = Section::read(&block.body, &DYNAMIC, self.source);
        let [label] = block.labels.as_slice() else {
            self.source.problem(&block.ident, "`dynamic` needs the name of the block: write `dynamic \"name\" { … }`");
            return Vec::new();
        };
        let (Some(each), Some(content)) = (section.get("for_each"), section.one("content", self.source)) else {
            self.source.problem(&block.ident, "`dynamic` needs `for_each` and a `content` block");
            return Vec::new();
        };
        let Ok(items) = self.scope.items(each, self.source).map_err(|failure| {
            let message = failure.message.clone();
            self.source.problem(&failure, message);
        }) else {
            return Vec::new();
        };
        let name = label.as_str().to_owned();
        let iterator = section.get("iterator").and_then(plain_name).unwrap_or(name.clone());
        let mut blocks = Vec::new();
        for (key, value) in items {
            self.made += 1;
            if self.made > BLOCKS_MAX {
                self.source.problem(&block.ident, format!("`dynamic` makes more than {BLOCKS_MAX} blocks"));
                break;
            }
            blocks.extend(self.turn(&name, &iterator, content, section.get("labels"), (key, value)));
        }
        blocks
    }

    /// The block of one turn.
    fn turn(
        &mut self,
        name: &str,
        iterator: &str,
        content: &Block,
        labels: Option<&Expression>,
        (key, value): (Value, Value),
    ) -> Option<Block> {
        let bound = format!("{iterator} {}", self.made);
        let fields = BTreeMap::from([("key".to_owned(), key), ("value".to_owned(), value)]);
        self.scope.bound.push((bound.clone(), Value::Map(fields)));
        let mut rename = Rename { from: iterator, to: &bound };
        let mut inner = content.body.clone();
        rename.visit_body_mut(&mut inner);
        let mut block = with_body(content, self.body(&inner));
        block.ident = Decorated::new(Ident::new_unchecked(name));
        block.labels = Vec::new();
        if let Some(labels) = labels {
            let mut labels = labels.clone();
            rename.visit_expr_mut(&mut labels);
            let Some(Value::List(names)) = self.scope.value(&labels, self.source) else { return None };
            let texts = names.iter().filter_map(Value::text);
            block.labels = texts.map(|text| BlockLabel::String(Decorated::new(text))).collect();
        }
        Some(block)
    }
}

fn with_body(block: &Block, body: Body) -> Block {
    let mut copy = block.clone();
    copy.body = body;
    copy
}

fn plain_name(expression: &Expression) -> Option<String> {
    match expression {
        Expression::Variable(name) => Some(name.as_str().to_owned()),
        Expression::String(text) => Some(text.as_str().to_owned()),
        _ => None,
    }
}

/// Gives a loop's variable the name that its turn is bound under.
struct Rename<'r> {
    from: &'r str,
    to: &'r str,
}

impl VisitMut for Rename<'_> {
    fn visit_expr_mut(&mut self, expression: &mut Expression) {
        self.rename(expression);
        visit_expr_mut(self, expression);
    }

    fn visit_traversal_mut(&mut self, traversal: &mut Traversal) {
        self.rename(&mut traversal.expr);
        visit_traversal_mut(self, traversal);
    }
}

impl Rename<'_> {
    fn rename(&self, expression: &mut Expression) {
        if let Expression::Variable(name) = expression
            && name.as_str() == self.from
        {
            *name = Decorated::new(Ident::new_unchecked(self.to));
        }
    }
}
