//! What the blocks of a job file mean. Readers always return a value, so that later problems are found too; a file with
//! problems is refused by the caller whatever was returned.

mod group;
mod service;
mod task;
mod update;
mod value;

use crate::eval::Scope;
use crate::section::{Section, Shape, nearest};
use crate::source::Source;
use hcl_edit::expr::Expression;
use hcl_edit::structure::{Attribute, Block, Body, Structure};
use model::{Constraint, Job, JobKind, Operator, TaskGroup, UpdatePolicy, rules};
use std::collections::BTreeMap;

const FILE: Shape =
    Shape { name: "the file", keys: &[], blocks: &["job", "variable", "locals"], not_built: &["variables"], only: &[] };
const VARIABLE: Shape = Shape {
    name: "variable",
    keys: &["type", "default", "description"],
    blocks: &[],
    not_built: &["validation", "sensitive", "nullable"],
    only: &[],
};
const JOB: Shape = Shape {
    name: "job",
    keys: &["id", "name", "namespace", "region", "type", "priority", "datacenters", "node_pool", "meta"],
    blocks: &["group", "constraint", "meta", "update", "migrate"],
    not_built: &[
        "affinity",
        "multiregion",
        "parameterized",
        "periodic",
        "reschedule",
        "spread",
        "ui",
        "vault",
        "consul_token",
        "vault_token",
        "consul_namespace",
        "vault_namespace",
    ],
    only: &[("all_at_once", "false")],
};
const CONSTRAINT: Shape = Shape {
    name: "constraint",
    keys: &[
        "attribute",
        "operator",
        "value",
        "distinct_hosts",
        "regexp",
        "version",
        "semver",
        "set_contains",
        "set_contains_any",
    ],
    blocks: &[],
    not_built: &["distinct_property"],
    only: &[],
};

pub(crate) fn read(body: &Body, source: &mut Source<'_>) -> Option<Job> {
    let file = Section::read(body, &FILE, source);
    let mut scope = Scope::default();
    for block in file.all("variable") {
        variable(block, &mut scope, source);
    }
    for block in file.all("locals") {
        scope.locals.extend(block.body.attributes().map(|local| (local.key.as_str().to_owned(), &local.value)));
        for inner in block.body.blocks() {
            source.problem(&inner.ident, "`locals` holds only `name = value`");
        }
    }
    let Some(block) = file.one("job", source) else {
        source.missing("there is no `job` block", "write `job \"name\" { … }`");
        return None;
    };
    Some(Reader { scope: &mut scope, source }.job(block))
}

fn variable<'b>(block: &'b Block, scope: &mut Scope<'b>, source: &mut Source<'_>) {
    let section = Section::read(&block.body, &VARIABLE, source);
    let [name] = block.labels.as_slice() else {
        return source.problem(&block.ident, "a variable has one name: write `variable \"name\" { … }`");
    };
    let Some(default) = section.get("default") else {
        let message = format!("variable `{}` has no default", name.as_str());
        return source.problem_with_hint(&block.ident, message, "values from outside are not built yet; add `default`");
    };
    if let Some(value) = scope.value(default, source) {
        scope.variables.insert(name.as_str().to_owned(), value);
    }
}

/// What groups take from their job unless they say otherwise.
struct Inherited {
    kind: JobKind,
    update: Option<UpdatePolicy>,
    migrate_max_parallel: u32,
}

/// The two things every reader needs.
struct Reader<'r, 'b, 't> {
    scope: &'r mut Scope<'b>,
    source: &'r mut Source<'t>,
}

impl Reader<'_, '_, '_> {
    fn job(&mut self, block: &Block) -> Job {
        let section = Section::read(&block.body, &JOB, self.source);
        let label = self.label(block);
        let id = self.text(section.get("id")).unwrap_or(label);
        self.rule(&block.ident, "the job's id", rules::name(&id));
        let inherited = self.inherited(&section);
        let groups: Vec<TaskGroup> = section.all("group").map(|group| self.group(group, &id, &inherited)).collect();
        if groups.is_empty() {
            self.source.problem(&block.ident, "a job needs at least one `group` block");
        }
        self.unique(section.all("group"), "group");
        self.rule(&block.ident, "the job", rules::alloc_total(&groups));
        Job {
            name: self.text(section.get("name")).unwrap_or_else(|| id.clone()),
            namespace: self.only(section.get("namespace"), "namespace", "default"),
            region: self.only(section.get("region"), "region", "global"),
            kind: inherited.kind,
            priority: self.number(section.get("priority"), 1, u64::from(rules::PRIORITY_MAX), rules::DEFAULT_PRIORITY),
            datacenters: self.datacenters(&section),
            node_pool: self.text(section.get("node_pool")).unwrap_or_else(|| "default".to_owned()),
            constraints: self.constraints(&section),
            meta: self.strings_by_name(&section, "meta"),
            groups,
            ..Job::named(&id)
        }
    }

    fn inherited(&mut self, section: &Section<'_>) -> Inherited {
        let kind = self.kind(section);
        Inherited {
            kind,
            update: self.update(section, kind, None),
            migrate_max_parallel: self.migrate(section, rules::DEFAULT_MIGRATE_MAX_PARALLEL),
        }
    }

    fn kind(&mut self, section: &Section<'_>) -> JobKind {
        let Some(expression) = section.get("type") else { return JobKind::Service };
        let Some(text) = self.text(Some(expression)) else { return JobKind::Service };
        let reason = match rules::job_kind(&text) {
            Ok(kind) => return kind,
            Err(rules::KindRefusal::NotBuilt) => format!("job type `{text}` is not built yet; use \"service\""),
            Err(rules::KindRefusal::Unknown) => format!("`{text}` is not a job type; use \"service\""),
        };
        self.source.problem(expression, reason);
        JobKind::Service
    }

    /// The one value that is built.
    fn only(&mut self, at: Option<&Expression>, key: &str, built: &str) -> String {
        let text = self.text(at);
        if let (Some(at), Some(other)) = (at, text.filter(|text| text != built)) {
            let message = format!("{key} `{other}` is not built yet; there is only `{built}`");
            self.source.problem(at, message);
        }
        built.to_owned()
    }

    fn datacenters(&mut self, section: &Section<'_>) -> Vec<String> {
        let everywhere = || vec!["*".to_owned()];
        let Some(expression) = section.get("datacenters") else { return everywhere() };
        let names = self.texts(Some(expression));
        if names.is_empty() {
            self.source.problem(expression, "name at least one datacenter, or \"*\" for all");
            return everywhere();
        }
        names
    }

    fn constraints(&mut self, section: &Section<'_>) -> Vec<Constraint> {
        section.all("constraint").filter_map(|block| self.constraint(block)).collect()
    }

    fn constraint(&mut self, block: &Block) -> Option<Constraint> {
        let section = Section::read(&block.body, &CONSTRAINT, self.source);
        let attribute = self.text(section.get("attribute"));
        let short = CONSTRAINT.keys[3..].iter().find_map(|key| section.attribute_named(key));
        let (operator, value) = match short {
            Some(short) => (Operator::parse(short.key.as_str())?, self.text(Some(&short.value))?),
            None => (self.operator(&section)?, self.text(section.get("value")).unwrap_or_default()),
        };
        if operator == Operator::DistinctHosts {
            return self.distinct_hosts(block, &value);
        }
        let at = short.map(|short| &short.value).or_else(|| section.get("value"));
        if let (Some(at), Err(reason)) = (at, rules::constraint(operator, &value)) {
            self.source.problem(at, reason);
        }
        if attribute.as_deref().unwrap_or_default().is_empty() {
            let message = "a constraint needs `attribute`, for example \"${attr.kernel.name}\"";
            self.source.problem(&block.ident, message);
        }
        let needs_value = !matches!(operator, Operator::IsSet | Operator::IsNotSet);
        if needs_value && short.is_none() && section.get("value").is_none() {
            self.source.problem(&block.ident, format!("a constraint by `{}` needs `value`", operator.as_str()));
        }
        Some(Constraint { attribute: attribute.unwrap_or_default(), operator, value })
    }

    /// `false` asks for nothing.
    fn distinct_hosts(&mut self, block: &Block, value: &str) -> Option<Constraint> {
        match value {
            "false" => return None,
            "" | "true" => {}
            _ => self.source.problem(&block.ident, "`distinct_hosts` is true or false"),
        }
        let (attribute, value) = (String::new(), "true".to_owned());
        Some(Constraint { attribute, operator: Operator::DistinctHosts, value })
    }

    fn operator(&mut self, section: &Section<'_>) -> Option<Operator> {
        let Some(expression) = section.get("operator") else { return Some(Operator::Equal) };
        let text = self.text(Some(expression))?;
        let operator = Operator::parse(&text);
        if text == "distinct_property" {
            self.source.problem(expression, "operator `distinct_property` is not built yet");
        } else if operator.is_none() {
            let known = || Operator::ALL.iter().map(|(_, spelling)| *spelling);
            let hint = match nearest(&text, known()) {
                Some(near) => format!("did you mean `{near}`?"),
                None => format!("there are {}", known().collect::<Vec<_>>().join(", ")),
            };
            self.source.problem_with_hint(expression, format!("`{text}` is not an operator"), hint);
        }
        operator
    }

    /// The one label that names a block.
    fn label(&mut self, block: &Block) -> String {
        if let [label] = block.labels.as_slice() {
            return label.as_str().to_owned();
        }
        let name = block.ident.as_str();
        self.source.problem(&block.ident, format!("`{name}` needs one name: write `{name} \"name\" {{ … }}`"));
        "-".to_owned()
    }

    /// Reports blocks whose label was used before.
    fn unique<'b>(&mut self, blocks: impl Iterator<Item = &'b Block>, what: &str) {
        let mut seen = std::collections::BTreeSet::new();
        for block in blocks {
            let label = block.labels.first().map(|label| label.as_str().to_owned()).unwrap_or_default();
            if !seen.insert(label.clone()) {
                self.source.problem(&block.ident, format!("there is a {what} `{label}` already"));
            }
        }
    }

    fn rule(&mut self, at: &impl hcl_edit::Span, what: &str, outcome: Result<(), String>) {
        if let Err(reason) = outcome {
            self.source.problem(at, format!("{what} {reason}"));
        }
    }

    /// A block of `name = "text"`, or the same as a map.
    fn strings_by_name(&mut self, section: &Section<'_>, name: &str) -> BTreeMap<String, String> {
        let mut texts = BTreeMap::new();
        for block in section.all(name) {
            texts.extend(self.strings_of(&block.body, name));
        }
        if let Some(expression) = section.get(name) {
            texts.extend(self.text_map(expression));
        }
        texts
    }

    fn strings_of(&mut self, body: &Body, name: &str) -> BTreeMap<String, String> {
        let mut texts = BTreeMap::new();
        for structure in body {
            match structure {
                Structure::Attribute(Attribute { key, value, .. }) => {
                    texts.extend(self.text(Some(value)).map(|text| (key.as_str().to_owned(), text)));
                }
                Structure::Block(block) => {
                    self.source.problem(&block.ident, format!("`{name}` holds only `key = \"value\"`"));
                }
            }
        }
        texts
    }
}
