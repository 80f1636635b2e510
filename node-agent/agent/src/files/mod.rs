//! What a task finds in its directory when it starts: artifacts, a dispatch's payload, files from templates; and templates
//! rendered again while it runs.
//!
//! ```text
//!  prepare ─► directories, secrets (tmpfs) ─► artifacts, once ─► payload ─► templates, waiting for their data ─► environment
//!  watch   ─► routing or looked-up data changes ─► render ─► other text? write it, then restart, signal or nothing
//! ```
//! A failure names what and why, and leaves no half of a file behind: the task does not start.

mod data;
mod dirs;
mod env_file;
#[cfg(test)]
mod tests;

pub use data::Sources;
pub use dirs::{release, release_ended};

use crate::allocs::report;
use artifact::{Beneath, Request};
use data::View;
use dirs::{Layout, Spot};
use drivers::{ExecOutput, ExecRequest, TaskHandle};
use model::{Allocation, ChangeMode, ChangeScript, Node, Task, TemplateSource};
use std::collections::{BTreeMap, BTreeSet};
use std::future::Future;
use std::net::IpAddr;
use std::path::{Path, PathBuf};
use std::time::Duration;
use template::{Delimiters, Dependency, Inputs, Outcome, SOURCE_BYTES_MAX, Template};
use tokio::time::{Instant, sleep, sleep_until};

/// Changes that come together are rendered together, unless the template says how long to wait.
const QUIET: (Duration, Duration) = (Duration::from_millis(200), Duration::from_secs(2));

/// After this the task's history tells what a template waits for.
const TELL_AFTER: Duration = Duration::from_secs(3);

const RENDERED_BYTES_MAX: u64 = 4 << 20;

/// One task of one allocation, and where its things are.
#[derive(Clone, Debug)]
pub struct Wanted {
    pub node: Node,
    pub alloc: Allocation,
    pub task: Task,
    /// The allocation's directory.
    pub root: PathBuf,
    pub address: Option<IpAddr>,
}

/// Why a task cannot start.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Unprepared {
    pub reason: String,
    /// The same job would fail the same way again.
    pub fatal: bool,
}

fn fatal(reason: impl Into<String>) -> Unprepared {
    Unprepared { reason: reason.into(), fatal: true }
}

fn passing(reason: impl Into<String>) -> Unprepared {
    Unprepared { reason: reason.into(), fatal: false }
}

/// What to tell the task's history: an event's kind and its message.
pub type Told = (&'static str, String);

impl Wanted {
    fn has_files(&self) -> bool {
        let task = &self.task;
        !task.artifacts.is_empty() || !task.templates.is_empty() || task.payload_file.is_some()
    }

    fn layout(&self) -> Layout {
        Layout::of(self)
    }
}

/// Everything before the start. The answer is what templates add to the task's environment. Dropping it gives up.
pub async fn prepare<T: Future<Output = ()>>(
    wanted: &Wanted,
    sources: &Sources,
    tell: impl Fn(Told) -> T,
) -> Result<BTreeMap<String, String>, Unprepared> {
    if !wanted.has_files() {
        return Ok(BTreeMap::new());
    }
    let layout = wanted.layout();
    layout.create()?;
    write_payload(wanted, &layout)?;
    fetch_artifacts(wanted, sources, &layout, &tell).await?;
    render_all(wanted, sources, &layout, &tell).await
}

fn write_payload(wanted: &Wanted, layout: &Layout) -> Result<(), Unprepared> {
    let Some(file) = &wanted.task.payload_file else { return Ok(()) };
    let spot = layout.spot(&format!("local/{file}")).map_err(|reason| fatal(format!("dispatch_payload: {reason}")))?;
    spot.write(&wanted.alloc.job.payload, 0o644, None).map_err(|error| passing(format!("dispatch_payload: {error}")))
}

/// Once for an allocation: a task that restarts finds them as it left them.
async fn fetch_artifacts<T: Future<Output = ()>>(
    wanted: &Wanted,
    sources: &Sources,
    layout: &Layout,
    tell: &impl Fn(Told) -> T,
) -> Result<(), Unprepared> {
    let artifacts = &wanted.task.artifacts;
    if artifacts.is_empty() || layout.has_fetched(artifacts) {
        return Ok(());
    }
    tell(("Downloading Artifacts", "Client is downloading artifacts".to_owned())).await;
    for written in artifacts {
        let mut own = written.clone();
        own.source = layout.filled(&written.source);
        own.options.values_mut().chain(own.headers.values_mut()).for_each(|text| *text = layout.filled(text));
        let fetched = match layout.spot(&layout.filled(&written.destination)) {
            Err(reason) => Err(fatal(reason)),
            Ok(Spot { root, path }) => {
                own.destination = path.display().to_string();
                let staging = layout.staging();
                let owner = if own.chown { Some(layout.owner()?) } else { None };
                let policy = &sources.policy;
                let request = Request { artifact: &own, task_dir: &root, staging: &staging, owner, policy };
                let fetched = artifact::fetch(request).await;
                fetched.map_err(|error| Unprepared { fatal: error.is_final(), reason: report(&error) })
            }
        };
        if let Err(failure) = fetched {
            let reason = format!("artifact {:?}: {}", written.source, failure.reason);
            tell(("Failed Artifact Download", reason.clone())).await;
            return Err(Unprepared { reason, ..failure });
        }
    }
    layout.note_fetched(artifacts).map_err(|error| passing(format!("artifacts: {error}")))
}

/// Until all are written, however long their data takes.
async fn render_all<T: Future<Output = ()>>(
    wanted: &Wanted,
    sources: &Sources,
    layout: &Layout,
    tell: &impl Fn(Told) -> T,
) -> Result<BTreeMap<String, String>, Unprepared> {
    let mut set = Set::of(wanted, sources, layout.clone())?;
    let began = Instant::now();
    let mut told = false;
    loop {
        let rendered = set.render().await?;
        let missing: BTreeSet<Dependency> =
            rendered.iter().flat_map(|(_, text)| text.as_ref().err()).flatten().cloned().collect();
        if missing.is_empty() {
            let texts: Vec<Vec<u8>> = rendered.into_iter().filter_map(|(_, text)| text.ok()).collect();
            return set.write_all(&texts);
        }
        let next_telling = began + TELL_AFTER;
        tokio::select! {
            () = set.view.changed() => {}
            () = sleep_until(next_telling), if !told => {
                told = true;
                let list: Vec<String> = missing.iter().map(ToString::to_string).collect();
                tell(("Template", format!("Missing: {}", list.join(", ")))).await;
            }
        }
    }
}

/// For as long as the task runs: ends with a reason when a change asks for its restart. `fraction` of a template's splay is
/// waited before acting.
pub async fn watch<T: Future<Output = ()>>(
    wanted: Wanted,
    sources: Sources,
    handle: TaskHandle,
    fraction: f64,
    tell: impl Fn(Told) -> T,
) -> Option<String> {
    if wanted.task.templates.iter().all(|template| template.once) {
        return None;
    }
    let layout = wanted.layout();
    let mut set = match Set::of(&wanted, &sources, layout) {
        Ok(set) => set,
        Err(Unprepared { reason, .. }) => {
            // It was understood before: what the task did to its files since is its own.
            tell(("Template", reason)).await;
            return None;
        }
    };
    loop {
        for change in set.rerender(&tell).await {
            sleep(change.splay.mul_f64(fraction)).await;
            match change.wish {
                ChangeMode::Noop => {}
                ChangeMode::Restart => return Some("Template with change_mode restart re-rendered".to_owned()),
                ChangeMode::Signal(signal) => {
                    let sent = handle.signal(&signal).await;
                    let message = match sent {
                        Ok(()) => format!("Template re-rendered: the task was sent {signal}"),
                        Err(error) => {
                            format!("Template re-rendered, but {signal} could not be sent: {}", report(&error))
                        }
                    };
                    tell(("Signaling", message)).await;
                }
                ChangeMode::Script(script) => {
                    let ran = run_script(&handle, &script, &set).await;
                    let failed = ran.is_err() && script.fail_on_error;
                    let message = match ran {
                        Ok(()) => format!("Template re-rendered: ran {}", script.command),
                        Err(reason) => format!("Template re-rendered, but its change_script failed: {reason}"),
                    };
                    tell(("Template", message.clone())).await;
                    if failed {
                        return Some(message);
                    }
                }
            }
        }
        set.view.changed().await;
        set.settle().await;
    }
}

/// Inside the task; ends with its time.
async fn run_script(handle: &TaskHandle, script: &ChangeScript, set: &Set) -> Result<(), String> {
    let filled = |text: &String| set.view.filled(text);
    let argv = std::iter::once(&script.command).chain(&script.args).map(filled).collect();
    let run = async {
        let wanted = ExecRequest { argv, tty: false, env: BTreeMap::new() };
        let (sender, mut output) = handle.exec(&wanted).await.map_err(|error| report(&error))?.split();
        let mut last = Vec::new();
        loop {
            match output.next().await {
                Some(ExecOutput::Exited(0)) => break,
                Some(ExecOutput::Exited(code)) => {
                    return Err(format!(
                        "{} ended with {code}: {}",
                        script.command,
                        String::from_utf8_lossy(&last).trim()
                    ));
                }
                Some(ExecOutput::Stderr(bytes)) => last = bytes,
                Some(ExecOutput::Stdout(_)) => {}
                None => return Err(format!("{} went away", script.command)),
            }
        }
        drop(sender);
        Ok(())
    };
    let limit = script.timeout;
    tokio::time::timeout(limit, run)
        .await
        .unwrap_or_else(|_| Err(format!("{} took longer than {limit:?}", script.command)))
}

struct Ready {
    template: Template,
    model: model::Template,
    spot: Spot,
}

/// What changed of a running task's files and what that asks for.
struct Changed {
    wish: ChangeMode,
    splay: Duration,
}

/// A task's templates, understood.
struct Set {
    templates: Vec<Ready>,
    view: View,
    env: BTreeMap<String, String>,
}

type Text = Result<Vec<u8>, BTreeSet<Dependency>>;

impl Set {
    fn of(wanted: &Wanted, sources: &Sources, layout: Layout) -> Result<Self, Unprepared> {
        let mut templates = Vec::new();
        for model in &wanted.task.templates {
            let named = |reason: String| fatal(format!("template {:?}: {reason}", model.destination));
            let spot = layout.spot(&layout.filled(&model.destination)).map_err(named)?;
            let text = match &model.source {
                TemplateSource::Inline(text) => text.clone(),
                TemplateSource::File(path) => {
                    let source = layout.spot(&layout.filled(path)).map_err(named)?;
                    let found = source.read(SOURCE_BYTES_MAX as u64).map_err(|error| named(report(&error)))?;
                    let found =
                        found.ok_or_else(|| named(format!("there is no file {path:?}; fetch it with an artifact")))?;
                    String::from_utf8(found).map_err(|_| named(format!("{path:?} is no UTF-8 text")))?
                }
            };
            let delimiters = Delimiters { left: &model.left_delimiter, right: &model.right_delimiter };
            let template = Template::parse(&text, delimiters).map_err(|error| named(error.to_string()))?;
            templates.push(Ready { template, model: model.clone(), spot });
        }
        let env = layout.env().clone();
        Ok(Self { templates, view: View::new(sources, wanted, layout), env })
    }

    /// All of them against one state of the data. What they newly ask for is looked up until nothing new comes.
    async fn render(&mut self) -> Result<Vec<(usize, Text)>, Unprepared> {
        loop {
            let mut asked = BTreeSet::new();
            let mut texts = Vec::new();
            for (number, ready) in self.templates.iter().enumerate() {
                let now = crate::allocs::now();
                let error_on_missing_key = ready.model.error_on_missing_key;
                let inputs = Inputs { env: &self.env, now, data: &self.view, error_on_missing_key };
                let rendering = ready.template.render(&inputs);
                asked.extend(rendering.dependencies);
                match rendering.outcome {
                    Outcome::Text(text) => texts.push((number, Ok(text))),
                    Outcome::Pending(missing) => texts.push((number, Err(missing))),
                    Outcome::Failed(error) => {
                        return Err(passing(format!("template {:?}: {error}", ready.model.destination)));
                    }
                }
            }
            if !self.view.look_up(&asked).await {
                return Ok(texts);
            }
        }
    }

    fn write_all(&self, texts: &[Vec<u8>]) -> Result<BTreeMap<String, String>, Unprepared> {
        let mut env = BTreeMap::new();
        for (ready, text) in self.templates.iter().zip(texts) {
            let named = |reason: String| format!("template {:?}: {reason}", ready.model.destination);
            if ready.model.env {
                env.extend(env_file::parse(text).map_err(|reason| fatal(named(reason)))?);
            }
            ready.write(text).map_err(|reason| passing(named(reason)))?;
        }
        Ok(env)
    }

    /// Writes what has another text than its file, and says what that asks for, the strongest wish first.
    async fn rerender<T: Future<Output = ()>>(&mut self, tell: &impl Fn(Told) -> T) -> Vec<Changed> {
        let rendered = match self.render().await {
            Ok(rendered) => rendered,
            Err(Unprepared { reason, .. }) => {
                tell(("Template", format!("{reason}; the file stays as it is"))).await;
                return Vec::new();
            }
        };
        let mut changes: Vec<Changed> = Vec::new();
        for (number, text) in rendered {
            let (ready, Ok(text)) = (&self.templates[number], text) else { continue };
            if ready.model.once || ready.is_written(&text) {
                continue;
            }
            match ready.write(&text) {
                Err(reason) => tell(("Template", format!("{:?}: {reason}", ready.model.destination))).await,
                Ok(()) => changes.push(Changed { wish: ready.model.on_change.clone(), splay: ready.model.splay }),
            }
        }
        changes.sort_by_key(|change| change.wish != ChangeMode::Restart);
        changes.dedup_by(|a, b| a.wish == b.wish);
        changes
    }

    /// Until nothing has changed for the shortest wait, or the longest is over.
    async fn settle(&mut self) {
        let waits = self.templates.iter().map(|ready| ready.model.wait.unwrap_or(QUIET));
        let (quiet, most) = waits.reduce(|a, b| (a.0.max(b.0), a.1.max(b.1))).unwrap_or(QUIET);
        let end = Instant::now() + most;
        loop {
            tokio::select! {
                () = sleep(quiet) => return,
                () = sleep_until(end) => return,
                () = self.view.changed() => {}
            }
        }
    }
}

impl Ready {
    fn write(&self, text: &[u8]) -> Result<(), String> {
        let owner = match (self.model.uid, self.model.gid) {
            (None, None) => None,
            (uid, gid) => Some((uid.unwrap_or(0), gid.unwrap_or(0))),
        };
        self.spot.write(text, self.model.perms, owner)
    }

    fn is_written(&self, text: &[u8]) -> bool {
        self.spot.read(RENDERED_BYTES_MAX).is_ok_and(|found| found.as_deref() == Some(text))
    }
}

impl Spot {
    fn write(&self, content: &[u8], mode: u32, owner: Option<(u32, u32)>) -> Result<(), String> {
        let written = Beneath::open(&self.root).and_then(|root| root.write(&self.path, content, mode, owner));
        written.map_err(|error| report(&error))
    }

    fn read(&self, bytes_max: u64) -> Result<Option<Vec<u8>>, artifact::BeneathError> {
        Beneath::open(&self.root)?.read(&self.path, bytes_max)
    }
}

/// Where templates may read files: the task's own and the allocation's shared ones.
fn read_file(layout: &Layout, path: &str) -> template::Fetched {
    use template::{Content, Fetched};
    match layout.spot(path).map(|spot| spot.read(RENDERED_BYTES_MAX)) {
        Err(reason) => Fetched::Refused(reason),
        Ok(Err(error)) => Fetched::Refused(report(&error)),
        Ok(Ok(None)) => Fetched::Absent,
        Ok(Ok(Some(bytes))) => Fetched::Found(Content::Bytes(bytes)),
    }
}

/// A file's name as its task knows it.
fn shown(path: &Path) -> String {
    path.display().to_string()
}
