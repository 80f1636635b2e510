//! From JSON: artifacts, templates, volumes.

use super::job::*;
use super::read_job::{JobProblem, Reader, or_default};
use model::{ArtifactMode, ChangeMode, TemplateSource, VolumeKind, rules};
use std::collections::BTreeMap;
use std::time::Duration;

impl Reader {
    pub(super) fn artifacts(&mut self, artifacts: Option<Vec<Artifact>>, path: &str) -> Vec<model::Artifact> {
        let read = |(at, artifact)| self.artifact(artifact, &format!("{path}[{at}]"));
        artifacts.unwrap_or_default().into_iter().enumerate().map(read).collect()
    }

    fn artifact(&mut self, artifact: Artifact, path: &str) -> model::Artifact {
        let read = model::Artifact {
            source: self.text(artifact.getter_source, &format!("{path}.GetterSource")),
            destination: or_default(artifact.relative_dest, rules::DEFAULT_ARTIFACT_DESTINATION),
            mode: self.choice(
                artifact.getter_mode,
                ArtifactMode::Any,
                ArtifactMode::parse,
                &format!("{path}.GetterMode"),
            ),
            options: artifact.getter_options.unwrap_or_default(),
            headers: artifact.getter_headers.unwrap_or_default(),
            insecure: artifact.getter_insecure.unwrap_or(false),
            chown: artifact.chown.unwrap_or(false),
        };
        self.rule(&format!("{path}.RelativeDest"), rules::inside(&read.destination));
        read
    }

    pub(super) fn templates(&mut self, templates: Option<Vec<Template>>, path: &str) -> Vec<model::Template> {
        let read = |(at, template)| self.template(template, &format!("{path}[{at}]"));
        templates.unwrap_or_default().into_iter().enumerate().filter_map(read).collect()
    }

    fn template(&mut self, template: Template, path: &str) -> Option<model::Template> {
        let at = |field: &str| format!("{path}.{field}");
        let on_change = self.change_mode(&template, path);
        let source = self.template_source(template.source_path, template.embedded_tmpl, path);
        let destination = self.text(template.dest_path, &at("DestPath"));
        self.rule(&at("DestPath"), rules::inside(if destination.is_empty() { "-" } else { &destination }));
        let perms = rules::perms(&or_default(template.perms, rules::DEFAULT_PERMS));
        self.rule(&at("Perms"), perms.clone().map(drop));
        Some(model::Template {
            source: source?,
            destination,
            on_change,
            splay: self.duration(template.splay, rules::DEFAULT_SPLAY, &at("Splay")),
            perms: perms.ok()?,
            uid: self.owner(template.uid, &at("Uid")),
            gid: self.owner(template.gid, &at("Gid")),
            left_delimiter: or_default(template.left_delim, "{{"),
            right_delimiter: or_default(template.right_delim, "}}"),
            env: template.envvars.unwrap_or(false),
            once: template.once.unwrap_or(false),
            error_on_missing_key: template.err_missing_key.unwrap_or(false),
            wait: template.wait.and_then(|wait| self.wait(wait, path)),
        })
    }

    fn template_source(&mut self, file: Option<String>, inline: Option<String>, path: &str) -> Option<TemplateSource> {
        let given = |text: Option<String>| text.filter(|text| !text.is_empty());
        match (given(file), given(inline)) {
            (Some(file), None) => {
                self.rule(&format!("{path}.SourcePath"), rules::inside(&file));
                Some(TemplateSource::File(file))
            }
            (None, Some(text)) => Some(TemplateSource::Inline(text)),
            (Some(_), Some(_)) => {
                self.invalid(path, "has both SourcePath and EmbeddedTmpl; one of them is the template");
                None
            }
            (None, None) => {
                self.missing(format!("{path}.EmbeddedTmpl"));
                None
            }
        }
    }

    fn change_mode(&mut self, template: &Template, path: &str) -> ChangeMode {
        match template.change_mode.as_deref().unwrap_or_default() {
            "" | "restart" => ChangeMode::Restart,
            "noop" => ChangeMode::Noop,
            "signal" => self.change_signal(template.change_signal.as_deref(), path),
            "script" => self.change_script(template.change_script.clone().unwrap_or_default(), path),
            other => {
                let reason = format!("{other:?} is not one; use \"restart\", \"noop\", \"signal\" or \"script\"");
                self.invalid(&format!("{path}.ChangeMode"), reason);
                ChangeMode::Restart
            }
        }
    }

    fn change_signal(&mut self, signal: Option<&str>, path: &str) -> ChangeMode {
        let signal = signal.filter(|signal| !signal.is_empty()).unwrap_or("SIGHUP");
        match rules::signal(signal) {
            Ok(name) => ChangeMode::Signal(name.to_owned()),
            Err(reason) => {
                self.invalid(&format!("{path}.ChangeSignal"), format!("{signal:?} {reason}"));
                ChangeMode::Restart
            }
        }
    }

    fn change_script(&mut self, script: ChangeScript, path: &str) -> ChangeMode {
        ChangeMode::Script(model::ChangeScript {
            command: self.text(script.command, &format!("{path}.ChangeScript.Command")),
            args: script.args.unwrap_or_default(),
            timeout: self.duration(
                script.timeout,
                rules::DEFAULT_CHANGE_SCRIPT_TIMEOUT,
                &format!("{path}.ChangeScript.Timeout"),
            ),
            fail_on_error: script.fail_on_error.unwrap_or(false),
        })
    }

    /// -1 leaves it as it is.
    fn owner(&mut self, id: Option<i64>, path: &str) -> Option<u32> {
        let id = id.filter(|id| *id != -1)?;
        Some(self.number(Some(id), 0, 0, i64::from(u32::MAX), path))
    }

    fn wait(&mut self, wait: WaitConfig, path: &str) -> Option<(Duration, Duration)> {
        let path = format!("{path}.Wait");
        let min = self.duration(wait.min, Duration::ZERO, &format!("{path}.Min"));
        let max = self.duration(wait.max, min.saturating_mul(4), &format!("{path}.Max"));
        if max < min {
            self.invalid(&path, "Max must not be less than Min");
        }
        (!max.is_zero()).then_some((min, max))
    }

    pub(super) fn volumes(
        &mut self,
        volumes: Option<BTreeMap<String, VolumeRequest>>,
        path: &str,
    ) -> Vec<model::VolumeRequest> {
        let read = |(name, volume)| self.volume(name, volume, path);
        volumes.unwrap_or_default().into_iter().map(read).collect()
    }

    fn volume(&mut self, name: String, volume: VolumeRequest, path: &str) -> model::VolumeRequest {
        let path = format!("{path}[{name:?}]");
        match volume.kind.as_deref() {
            None | Some("" | "host") => {}
            Some(other) => self.problems.push(JobProblem::NotBuilt { path: format!("{path}.Type {other:?}") }),
        }
        model::VolumeRequest {
            name,
            kind: VolumeKind::Host,
            source: self.text(volume.source, &format!("{path}.Source")),
            read_only: volume.read_only.unwrap_or(false),
            per_alloc: volume.per_alloc.unwrap_or(false),
        }
    }

    pub(super) fn volume_mounts(&mut self, mounts: Option<Vec<VolumeMount>>, path: &str) -> Vec<model::VolumeMount> {
        let read = |(at, mount)| self.volume_mount(mount, &format!("{path}[{at}]"));
        mounts.unwrap_or_default().into_iter().enumerate().map(read).collect()
    }

    fn volume_mount(&mut self, mount: VolumeMount, path: &str) -> model::VolumeMount {
        if !matches!(mount.propagation_mode.as_deref(), None | Some("" | "private")) {
            self.problems.push(JobProblem::NotBuilt { path: format!("{path}.PropagationMode other than \"private\"") });
        }
        let destination = self.text(mount.destination, &format!("{path}.Destination"));
        self.rule(
            &format!("{path}.Destination"),
            rules::absolute(if destination.is_empty() { "/" } else { &destination }),
        );
        model::VolumeMount {
            volume: self.text(mount.volume, &format!("{path}.Volume")),
            destination,
            read_only: mount.read_only.unwrap_or(false),
        }
    }
}
