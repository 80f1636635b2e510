//! What is put into a task's directory before it starts: artifacts, templates, volumes.

use std::collections::BTreeMap;
use std::time::Duration;

/// Something fetched into the task's directory.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Artifact {
    /// A URL in go-getter's forms.
    pub source: String,
    /// Relative to the task's directory; `local/` by default.
    pub destination: String,
    pub mode: ArtifactMode,
    /// `checksum`, `archive`, `ref`, `depth`, ...
    pub options: BTreeMap<String, String>,
    pub headers: BTreeMap<String, String>,
    /// Take any certificate.
    pub insecure: bool,
    /// Give what was fetched to the task's user.
    pub chown: bool,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ArtifactMode {
    /// Archives are unpacked into `destination`, single files put there.
    Any,
    /// `destination` is the file.
    File,
    /// `destination` is the directory.
    Dir,
}

/// A file written from a template, and again whenever what it shows changes.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Template {
    pub source: TemplateSource,
    /// Relative to the task's directory.
    pub destination: String,
    pub on_change: ChangeMode,
    /// A change is acted on after a random part of this.
    pub splay: Duration,
    /// File mode bits, at most 0o777.
    pub perms: u32,
    pub uid: Option<u32>,
    pub gid: Option<u32>,
    pub left_delimiter: String,
    pub right_delimiter: String,
    /// The lines `KEY=value` become environment variables of the task.
    pub env: bool,
    /// Rendered once, never again.
    pub once: bool,
    pub error_on_missing_key: bool,
    /// How long to wait for things to be quiet before rendering again, at least and at most.
    pub wait: Option<(Duration, Duration)>,
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub enum TemplateSource {
    /// The text itself.
    Inline(String),
    /// A file in the task's directory (an artifact brought it).
    File(String),
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub enum ChangeMode {
    Noop,
    Restart,
    /// A signal's full name.
    Signal(String),
    Script(ChangeScript),
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ChangeScript {
    pub command: String,
    pub args: Vec<String>,
    pub timeout: Duration,
    pub fail_on_error: bool,
}

/// A volume that a group asks for.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct VolumeRequest {
    pub name: String,
    pub kind: VolumeKind,
    /// The name of the volume on the node.
    pub source: String,
    pub read_only: bool,
    /// `source` is followed by `[<slot>]`.
    pub per_alloc: bool,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum VolumeKind {
    /// A directory that the node's configuration names.
    Host,
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub struct VolumeMount {
    /// The name of one of the group's volumes.
    pub volume: String,
    /// An absolute path as the task sees it.
    pub destination: String,
    pub read_only: bool,
}

impl ArtifactMode {
    pub const ALL: [ArtifactMode; 3] = [ArtifactMode::Any, ArtifactMode::File, ArtifactMode::Dir];

    pub fn as_str(self) -> &'static str {
        match self {
            ArtifactMode::Any => "any",
            ArtifactMode::File => "file",
            ArtifactMode::Dir => "dir",
        }
    }

    pub fn parse(text: &str) -> Option<Self> {
        Self::ALL.into_iter().find(|mode| mode.as_str() == text)
    }
}
