//! What the blocks of a job file mean. Readers always return a value, so that later problems are found too; a file with
//! problems is refused by the caller whatever was returned.

mod config;
mod files;
mod group;
mod placement;
mod policy;
mod service;
mod task;
mod update;
mod value;

use crate::dynamic;
use crate::eval::Scope;
use crate::section::{Section, Shape};
use crate::source::Source;
use crate::variables::{self, Inputs};
use hcl_edit::expr::Expression;
use hcl_edit::structure::{Attribute, Block, Body, Structure};
use model::{Job, JobKind, ReschedulePolicy, TaskGroup, UpdatePolicy, rules};
use std::collections::BTreeMap;

const FILE: Shape =
    Shape { name: "the file", keys: &[], blocks: &["job", "variable", "locals"], not_built: &["variables"], only: &[] };
const JOB: Shape = Shape {
    name: "job",
    keys: &["id", "name", "namespace", "region", "type", "priority", "datacenters", "node_pool", "meta"],
    blocks: &[
        "group",
        "constraint",
        "affinity",
        "spread",
        "meta",
        "update",
        "migrate",
        "reschedule",
        "periodic",
        "parameterized",
        "depends_on",
        "disruption",
    ],
    not_built: &["multiregion", "ui", "vault", "consul_token", "vault_token", "consul_namespace", "vault_namespace"],
    only: &[("all_at_once", "false")],
};
pub(crate) fn read(body: &Body, inputs: &Inputs, source: &mut Source<'_>) -> Option<Job> {
    let file = Section::read(body, &FILE, source);
    let mut scope = Scope::default();
    variables::read(file.all("variable"), inputs, &mut scope, source);
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
    let expanded = dynamic::expand(&block.body, &mut scope, source);
    let mut block = block.clone();
    block.body = expanded;
    Some(Reader { scope: &mut scope, source }.job(&block))
}

/// What groups take from their job unless they say otherwise.
struct Inherited {
    kind: JobKind,
    update: Option<UpdatePolicy>,
    migrate_max_parallel: u32,
    reschedule: ReschedulePolicy,
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
        let job = Job {
            name: self.text(section.get("name")).unwrap_or_else(|| id.clone()),
            namespace: self.only(section.get("namespace"), "namespace", "default"),
            region: self.only(section.get("region"), "region", "global"),
            kind: inherited.kind,
            priority: self.number(section.get("priority"), 1, u64::from(rules::PRIORITY_MAX), rules::DEFAULT_PRIORITY),
            datacenters: self.datacenters(&section),
            node_pool: self.text(section.get("node_pool")).unwrap_or_else(|| "default".to_owned()),
            constraints: self.constraints(&section),
            affinities: self.affinities(&section),
            spreads: self.spreads(&section),
            meta: self.strings_by_name(&section, "meta"),
            groups,
            periodic: self.periodic(&section),
            parameterized: self.parameterized(&section),
            depends_on: self.dependencies(&section),
            disruption: self.disruption(&section),
            ..Job::named(&id)
        };
        self.rule(&block.ident, "the job:", rules::job(&job));
        self.unbuilt(&section, block, rules::unbuilt_in_job(&job));
        job
    }

    /// Reports what was read and is not acted on, each where it stands.
    fn unbuilt(&mut self, section: &Section<'_>, block: &Block, names: Vec<&'static str>) {
        for name in names {
            let inner = section.all(name).next();
            match (section.attribute_named(name), inner) {
                (Some(key), _) => self.source.problem(&key.key, format!("key `{name}` is not built yet")),
                (_, Some(inner)) => self.source.problem(&inner.ident, format!("block `{name}` is not built yet")),
                _ => self.source.problem(&block.ident, format!("`{name}` other than the default is not built yet")),
            }
        }
    }

    fn inherited(&mut self, section: &Section<'_>) -> Inherited {
        let kind = self.kind(section);
        Inherited {
            kind,
            update: self.update(section, kind, None),
            migrate_max_parallel: self.migrate(section, rules::DEFAULT_MIGRATE_MAX_PARALLEL),
            reschedule: self.reschedule(section, kind, ReschedulePolicy::default_of(kind)),
        }
    }

    fn kind(&mut self, section: &Section<'_>) -> JobKind {
        let Some(expression) = section.get("type") else { return JobKind::Service };
        let Some(text) = self.text(Some(expression)) else { return JobKind::Service };
        JobKind::parse(&text).unwrap_or_else(|| {
            self.source.problem(expression, format!("`{text}` is not a job type; use \"service\""));
            JobKind::Service
        })
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
