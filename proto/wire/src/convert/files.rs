//! Artifacts, templates and volumes.

use super::{ConvertError, Problem, Result, ToModel, ToPb, enum_pairs, enumeration, present, span, to_span};
use crate::pb;
use model::{
    Artifact, ArtifactMode, ChangeMode, ChangeScript, Template, TemplateSource, VolumeKind, VolumeMount, VolumeRequest,
};
use std::time::Duration;

impl ToPb<pb::Artifact> for Artifact {
    fn to_pb(&self) -> pb::Artifact {
        pb::Artifact {
            source: self.source.clone(),
            destination: self.destination.clone(),
            mode: self.mode.to_pb().into(),
            options: self.options.clone(),
            headers: self.headers.clone(),
            insecure: self.insecure,
            chown: self.chown,
        }
    }
}

impl ToModel<Artifact> for pb::Artifact {
    fn to_model(self) -> Result<Artifact> {
        Ok(Artifact {
            source: self.source,
            destination: self.destination,
            mode: enumeration::<pb::ArtifactMode, _>(self.mode, "mode")?,
            options: self.options,
            headers: self.headers,
            insecure: self.insecure,
            chown: self.chown,
        })
    }
}

impl ToPb<pb::Template> for Template {
    fn to_pb(&self) -> pb::Template {
        let source = match &self.source {
            TemplateSource::Inline(text) => pb::template::Source::Inline(text.clone()),
            TemplateSource::File(path) => pb::template::Source::File(path.clone()),
        };
        pb::Template {
            source: Some(source),
            destination: self.destination.clone(),
            on_change: Some(self.on_change.to_pb()),
            splay: Some(to_span(self.splay)),
            perms: self.perms,
            uid: self.uid,
            gid: self.gid,
            left_delimiter: self.left_delimiter.clone(),
            right_delimiter: self.right_delimiter.clone(),
            env: self.env,
            once: self.once,
            error_on_missing_key: self.error_on_missing_key,
            wait_min: self.wait.map(|(min, _)| to_span(min)),
            wait_max: self.wait.map(|(_, max)| to_span(max)),
        }
    }
}

impl ToModel<Template> for pb::Template {
    fn to_model(self) -> Result<Template> {
        let source = match present(self.source, "source")? {
            pb::template::Source::Inline(text) => TemplateSource::Inline(text),
            pb::template::Source::File(path) => TemplateSource::File(path),
        };
        Ok(Template {
            source,
            destination: self.destination,
            on_change: present(self.on_change, "on_change")?.to_model()?,
            splay: span(self.splay, "splay")?,
            perms: self.perms,
            uid: self.uid,
            gid: self.gid,
            left_delimiter: self.left_delimiter,
            right_delimiter: self.right_delimiter,
            env: self.env,
            once: self.once,
            error_on_missing_key: self.error_on_missing_key,
            wait: wait(self.wait_min, self.wait_max)?,
        })
    }
}

fn wait(min: Option<pb::Span>, max: Option<pb::Span>) -> Result<Option<(Duration, Duration)>> {
    match (min, max) {
        (None, None) => Ok(None),
        (Some(min), Some(max)) => Ok(Some((span(Some(min), "wait_min")?, span(Some(max), "wait_max")?))),
        _ => Err(ConvertError::new("wait_max", Problem::Missing)),
    }
}

impl ToPb<pb::template::OnChange> for ChangeMode {
    fn to_pb(&self) -> pb::template::OnChange {
        match self {
            ChangeMode::Noop => pb::template::OnChange::Noop(pb::ChangeNoop {}),
            ChangeMode::Restart => pb::template::OnChange::Restart(pb::ChangeRestart {}),
            ChangeMode::Signal(name) => pb::template::OnChange::Signal(name.clone()),
            ChangeMode::Script(script) => pb::template::OnChange::Script(pb::ChangeScript {
                command: script.command.clone(),
                args: script.args.clone(),
                timeout: Some(to_span(script.timeout)),
                fail_on_error: script.fail_on_error,
            }),
        }
    }
}

impl ToModel<ChangeMode> for pb::template::OnChange {
    fn to_model(self) -> Result<ChangeMode> {
        Ok(match self {
            pb::template::OnChange::Noop(_) => ChangeMode::Noop,
            pb::template::OnChange::Restart(_) => ChangeMode::Restart,
            pb::template::OnChange::Signal(name) => ChangeMode::Signal(name),
            pb::template::OnChange::Script(script) => ChangeMode::Script(ChangeScript {
                command: script.command,
                args: script.args,
                timeout: span(script.timeout, "timeout")?,
                fail_on_error: script.fail_on_error,
            }),
        })
    }
}

impl ToPb<pb::VolumeRequest> for VolumeRequest {
    fn to_pb(&self) -> pb::VolumeRequest {
        pb::VolumeRequest {
            name: self.name.clone(),
            kind: self.kind.to_pb().into(),
            source: self.source.clone(),
            read_only: self.read_only,
            per_alloc: self.per_alloc,
        }
    }
}

impl ToModel<VolumeRequest> for pb::VolumeRequest {
    fn to_model(self) -> Result<VolumeRequest> {
        Ok(VolumeRequest {
            name: self.name,
            kind: enumeration::<pb::VolumeKind, _>(self.kind, "kind")?,
            source: self.source,
            read_only: self.read_only,
            per_alloc: self.per_alloc,
        })
    }
}

impl ToPb<pb::VolumeMount> for VolumeMount {
    fn to_pb(&self) -> pb::VolumeMount {
        pb::VolumeMount {
            volume: self.volume.clone(),
            destination: self.destination.clone(),
            read_only: self.read_only,
        }
    }
}

impl ToModel<VolumeMount> for pb::VolumeMount {
    fn to_model(self) -> Result<VolumeMount> {
        Ok(VolumeMount { volume: self.volume, destination: self.destination, read_only: self.read_only })
    }
}

enum_pairs!(ArtifactMode, pb::ArtifactMode, Any, File, Dir);
enum_pairs!(VolumeKind, pb::VolumeKind, Host);
