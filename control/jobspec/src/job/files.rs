//! Artifacts, templates, volumes.

use super::Reader;
use crate::section::{Section, Shape};
use hcl_edit::expr::Expression;
use hcl_edit::structure::Block;
use model::{
    Artifact, ArtifactMode, ChangeMode, ChangeScript, Template, TemplateSource, VolumeKind, VolumeMount, VolumeRequest,
    rules,
};
use std::time::Duration;

const ARTIFACT: Shape = Shape {
    name: "artifact",
    keys: &["source", "destination", "mode", "options", "headers", "insecure", "chown"],
    blocks: &["options", "headers"],
    not_built: &[],
    only: &[],
};
const TEMPLATE: Shape = Shape {
    name: "template",
    keys: &[
        "source",
        "data",
        "destination",
        "change_mode",
        "change_signal",
        "splay",
        "perms",
        "uid",
        "gid",
        "left_delimiter",
        "right_delimiter",
        "env",
        "once",
        "error_on_missing_key",
    ],
    blocks: &["wait", "change_script"],
    not_built: &["vault_grace"],
    only: &[],
};
const WAIT: Shape = Shape { name: "wait", keys: &["min", "max"], blocks: &[], not_built: &[], only: &[] };
const CHANGE_SCRIPT: Shape = Shape {
    name: "change_script",
    keys: &["command", "args", "timeout", "fail_on_error"],
    blocks: &[],
    not_built: &["run_on_first_render"],
    only: &[],
};
const VOLUME: Shape = Shape {
    name: "volume",
    keys: &["type", "source", "read_only", "per_alloc"],
    blocks: &[],
    not_built: &["access_mode", "attachment_mode", "mount_options", "sticky"],
    only: &[],
};
const VOLUME_MOUNT: Shape = Shape {
    name: "volume_mount",
    keys: &["volume", "destination", "read_only"],
    blocks: &[],
    not_built: &["selinux_label"],
    only: &[("propagation_mode", "private")],
};

impl Reader<'_, '_, '_> {
    pub(super) fn artifacts(&mut self, section: &Section<'_>) -> Vec<Artifact> {
        section.all("artifact").map(|block| self.artifact(block)).collect()
    }

    fn artifact(&mut self, block: &Block) -> Artifact {
        let section = Section::read(&block.body, &ARTIFACT, self.source);
        let known = ArtifactMode::ALL.map(|mode| (mode, mode.as_str()));
        Artifact {
            source: self.needed(block, &section, "source"),
            destination: self.inside(section.get("destination"), rules::DEFAULT_ARTIFACT_DESTINATION),
            mode: self.choice(section.get("mode"), ArtifactMode::Any, &known),
            options: self.strings_by_name(&section, "options"),
            headers: self.strings_by_name(&section, "headers"),
            insecure: self.flag(section.get("insecure"), false),
            chown: self.flag(section.get("chown"), false),
        }
    }

    pub(super) fn templates(&mut self, section: &Section<'_>) -> Vec<Template> {
        section.all("template").map(|block| self.template(block)).collect()
    }

    fn template(&mut self, block: &Block) -> Template {
        let section = Section::read(&block.body, &TEMPLATE, self.source);
        if section.get("destination").is_none() {
            self.source.problem(&block.ident, "`template` needs `destination`");
        }
        let id_max = u64::from(u32::MAX);
        let text = |text: Option<String>, default: &str| text.unwrap_or_else(|| default.to_owned());
        Template {
            source: self.template_source(block, &section),
            destination: self.inside(section.get("destination"), "local/"),
            on_change: self.change_mode(&section),
            splay: self.duration(section.get("splay"), rules::DEFAULT_SPLAY),
            perms: self.perms(section.get("perms")),
            uid: section.get("uid").map(|at| self.number(Some(at), 0, id_max, 0)),
            gid: section.get("gid").map(|at| self.number(Some(at), 0, id_max, 0)),
            left_delimiter: text(self.text(section.get("left_delimiter")), "{{"),
            right_delimiter: text(self.text(section.get("right_delimiter")), "}}"),
            env: self.flag(section.get("env"), false),
            once: self.flag(section.get("once"), false),
            error_on_missing_key: self.flag(section.get("error_on_missing_key"), false),
            wait: self.wait(&section),
        }
    }

    fn template_source(&mut self, block: &Block, section: &Section<'_>) -> TemplateSource {
        match (section.get("source"), section.get("data")) {
            (Some(_), None) => TemplateSource::File(self.inside(section.get("source"), "")),
            (None, Some(at)) => TemplateSource::Inline(self.text(Some(at)).unwrap_or_default()),
            (Some(at), Some(_)) => {
                self.source.problem(at, "`source` and `data` exclude each other");
                TemplateSource::Inline(String::new())
            }
            (None, None) => {
                self.source.problem(&block.ident, "`template` needs `data`, or `source` for a file of the task");
                TemplateSource::Inline(String::new())
            }
        }
    }

    fn change_mode(&mut self, section: &Section<'_>) -> ChangeMode {
        let at = section.get("change_mode");
        let known = [("restart", "restart"), ("noop", "noop"), ("signal", "signal"), ("script", "script")];
        match self.choice(at, "restart", &known) {
            "noop" => ChangeMode::Noop,
            "signal" => ChangeMode::Signal(self.signal(section.get("change_signal")).unwrap_or("SIGHUP".to_owned())),
            "script" => self.change_script(at, section),
            _ => ChangeMode::Restart,
        }
    }

    fn change_script(&mut self, mode: Option<&Expression>, section: &Section<'_>) -> ChangeMode {
        let Some(block) = section.one("change_script", self.source) else {
            if let Some(mode) = mode {
                self.source.problem(mode, "change_mode \"script\" needs a `change_script` block");
            }
            return ChangeMode::Restart;
        };
        let section = Section::read(&block.body, &CHANGE_SCRIPT, self.source);
        ChangeMode::Script(ChangeScript {
            command: self.needed(block, &section, "command"),
            args: self.texts(section.get("args")),
            timeout: self.duration(section.get("timeout"), rules::DEFAULT_CHANGE_SCRIPT_TIMEOUT),
            fail_on_error: self.flag(section.get("fail_on_error"), false),
        })
    }

    fn wait(&mut self, section: &Section<'_>) -> Option<(Duration, Duration)> {
        let block = section.one("wait", self.source)?;
        let section = Section::read(&block.body, &WAIT, self.source);
        let min = self.duration(section.get("min"), Duration::ZERO);
        let max = self.duration(section.get("max"), min.saturating_mul(4));
        if max < min {
            self.source.problem(&block.ident, "`max` must not be less than `min`");
        }
        (!max.is_zero()).then_some((min, max))
    }

    fn perms(&mut self, at: Option<&Expression>) -> u32 {
        let text = self.text(at).unwrap_or_else(|| rules::DEFAULT_PERMS.to_owned());
        rules::perms(&text).unwrap_or_else(|reason| {
            if let Some(at) = at {
                self.source.problem(at, reason);
            }
            0
        })
    }

    /// A text that has to be there.
    fn needed(&mut self, block: &Block, section: &Section<'_>, key: &str) -> String {
        let text = self.text(section.get(key)).unwrap_or_default();
        match section.get(key) {
            None => self.source.problem(&block.ident, format!("`{}` needs `{key}`", block.ident.as_str())),
            Some(at) if text.is_empty() => self.source.problem(at, format!("`{key}` must not be empty")),
            Some(_) => {}
        }
        text
    }

    /// A path below the task's directory.
    pub(super) fn inside(&mut self, at: Option<&Expression>, default: &str) -> String {
        let Some(path) = self.text(at) else { return default.to_owned() };
        if let (Some(at), Err(reason)) = (at, rules::inside(&path)) {
            self.source.problem(at, reason);
        }
        path
    }

    pub(super) fn volumes(&mut self, section: &Section<'_>) -> Vec<VolumeRequest> {
        self.unique(section.all("volume"), "volume");
        section.all("volume").map(|block| self.volume(block)).collect()
    }

    fn volume(&mut self, block: &Block) -> VolumeRequest {
        let section = Section::read(&block.body, &VOLUME, self.source);
        let kind = section.get("type");
        match (kind, self.text(kind).as_deref()) {
            (_, Some("host")) => {}
            (Some(at), Some("csi")) => self.source.problem(at, "volume type `csi` is not built yet; use \"host\""),
            (Some(at), Some(other)) => {
                self.source.problem(at, format!("`{other}` is not a volume type; use \"host\""));
            }
            _ => self.source.problem(&block.ident, "`volume` needs `type`; use \"host\""),
        }
        VolumeRequest {
            name: self.label(block),
            kind: VolumeKind::Host,
            source: self.needed(block, &section, "source"),
            read_only: self.flag(section.get("read_only"), false),
            per_alloc: self.flag(section.get("per_alloc"), false),
        }
    }

    pub(super) fn volume_mounts(&mut self, section: &Section<'_>) -> Vec<VolumeMount> {
        section.all("volume_mount").map(|block| self.volume_mount(block)).collect()
    }

    fn volume_mount(&mut self, block: &Block) -> VolumeMount {
        let section = Section::read(&block.body, &VOLUME_MOUNT, self.source);
        let destination = self.needed(block, &section, "destination");
        if let (Some(at), Err(reason)) = (section.get("destination"), rules::absolute(&destination)) {
            self.source.problem(at, reason);
        }
        VolumeMount {
            volume: self.needed(block, &section, "volume"),
            destination,
            read_only: self.flag(section.get("read_only"), false),
        }
    }
}
