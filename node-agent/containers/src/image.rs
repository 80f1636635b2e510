//! Images: fetched once however many tasks want them at the same time, recorded when this node fetched them, and removed
//! when nothing has used them for a while.
//!
//! Supervisors are processes of their own, so a lock file for each name is what they share. A record is a file whose time is
//! that of the last use; images without one were there before us and are never removed.

use crate::engine::Engine;
use crate::error::EngineError;
use crate::spec::{Auth, ContainerSpec, Pull};
use bollard::auth::DockerCredentials;
use bollard::models::ImageInspect;
use bollard::query_parameters::{
    CreateImageOptionsBuilder, ImportImageOptions, ListContainersOptionsBuilder, RemoveImageOptions,
};
use bytes::Bytes;
use futures::{Stream, StreamExt};
use nix::errno::Errno;
use nix::fcntl::{Flock, FlockArg};
use std::collections::HashMap;
use std::fs::{self, File, OpenOptions};
use std::io;
use std::path::{Path, PathBuf};
use std::time::{Duration, SystemTime};

const POLL: Duration = Duration::from_millis(50);

/// An image that is there.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Image {
    pub id: String,
    /// Whom its containers run as unless told otherwise; empty is root.
    pub user: String,
}

/// The name as registries know it: with a tag, unless it has one or a digest.
pub fn image_name(text: &str) -> String {
    let (repository, tag) = split(text);
    if tag.starts_with("sha256:") { format!("{repository}@{tag}") } else { format!("{repository}:{tag}") }
}

fn split(text: &str) -> (&str, &str) {
    if let Some((repository, digest)) = text.split_once('@') {
        return (repository, digest);
    }
    match text.rsplit_once(':') {
        // A port is not a tag.
        Some((repository, tag)) if !tag.contains('/') => (repository, tag),
        _ => (text, "latest"),
    }
}

/// Whether a name may mean another image tomorrow although nobody changes the job.
fn moves(text: &str) -> bool {
    split(text).1 == "latest"
}

impl Engine {
    /// The image of a task, fetched if need be.
    pub async fn ensure_image(&self, spec: &ContainerSpec) -> Result<Image, EngineError> {
        let _lock = Lock::wait(&spec.images, &spec.image).await?;
        let there = self.image(&spec.image).await?;
        let image = match there {
            Some(image) if !spec.pull.force && !moves(&spec.image) => image,
            there => self.fetch(spec, there).await?,
        };
        touch(&spec.images, &spec.image);
        Ok(image)
    }

    async fn fetch(&self, spec: &ContainerSpec, there: Option<Image>) -> Result<Image, EngineError> {
        let limit = Duration::from_millis(spec.pull.timeout_ms);
        let fetching = async {
            match &spec.pull.load {
                Some(file) => self.load(file).await,
                None => self.pull(&spec.image, &spec.pull).await,
            }
        };
        let fetched = tokio::time::timeout(limit, fetching).await.unwrap_or_else(|_| {
            let problem = format!("was not fetched within {limit:?}; raise image_pull_timeout or look at the registry");
            Err(EngineError::Image { image: spec.image.clone(), problem })
        });
        match (fetched, there) {
            (Ok(()), there) => {
                let image = self.image(&spec.image).await?;
                let image = image.ok_or_else(|| refused(&spec.image, "is not what was fetched; check its name"))?;
                if there.is_none() {
                    record(&spec.images, &spec.image).map_err(EngineError::io("record the image"))?;
                }
                Ok(image)
            }
            // A tag that moves is looked up where that is possible, and is no reason not to run without a registry.
            (Err(error), Some(image)) if !spec.pull.force => {
                eprintln!("image {}: the one that is there is used: {error}", spec.image);
                Ok(image)
            }
            (Err(error), _) => Err(error),
        }
    }

    /// `None` when the engine has none of that name.
    pub async fn image(&self, name: &str) -> Result<Option<Image>, EngineError> {
        match self.docker.inspect_image(name).await {
            Ok(found) => Ok(Some(image(found))),
            Err(bollard::errors::Error::DockerResponseServerError { status_code: 404, .. }) => Ok(None),
            Err(error) => Err(EngineError::from_engine("look at the image")(error)),
        }
    }

    async fn pull(&self, name: &str, pull: &Pull) -> Result<(), EngineError> {
        let tried = self.pull_as(name, pull.auth.as_ref()).await;
        match tried {
            Err(_) if pull.auth.is_some() && pull.auth_soft_fail => self.pull_as(name, None).await,
            other => other,
        }
    }

    async fn pull_as(&self, name: &str, auth: Option<&Auth>) -> Result<(), EngineError> {
        let (repository, tag) = split(name);
        let options = CreateImageOptionsBuilder::default().from_image(repository).tag(tag).build();
        let steps = self.docker.create_image(Some(options), None, auth.map(credentials));
        finish(steps).await.map_err(|error| {
            refused(name, &format!("cannot be fetched: {}; check its name, the registry and `auth`", explain(&error)))
        })
    }

    async fn load(&self, file: &Path) -> Result<(), EngineError> {
        let content = file_stream(file, Vec::new(), Vec::new()).map_err(EngineError::io("read the image's file"))?;
        let body = bollard::body_try_stream(content);
        let steps = self.docker.import_image(ImportImageOptions::default(), body, None);
        finish(steps).await.map_err(EngineError::from_engine("load the image"))
    }

    /// Makes an image of a program alone.
    pub(crate) async fn import_program(&self, program: &Path, repo: &str, tag: &str) -> Result<(), EngineError> {
        let failed = EngineError::io("read the program");
        let bytes = fs::metadata(program).map_err(&failed)?.len();
        let header = crate::tar::header("meshctl", bytes).map_err(&failed)?.to_vec();
        let content = file_stream(program, header, crate::tar::tail(bytes)).map_err(&failed)?;
        let options = CreateImageOptionsBuilder::default().from_src("-").repo(repo).tag(tag).build();
        let steps = self.docker.create_image(Some(options), Some(bollard::body_try_stream(content)), None);
        finish(steps).await.map_err(EngineError::from_engine("import the sandbox's image"))
    }

    /// Whether any container, running or not, was made of the image by this name.
    async fn is_used(&self, image: &Image, name: &str) -> Result<bool, EngineError> {
        let filters = HashMap::from([("ancestor", vec![image.id.clone()])]);
        let options = ListContainersOptionsBuilder::default().all(true).filters(&filters).build();
        let found = self.docker.list_containers(Some(options)).await;
        let found = found.map_err(EngineError::from_engine("list its containers"))?;
        Ok(found.into_iter().any(|container| container.image.is_none_or(|used| used == name || used == image.id)))
    }

    /// Takes the name away, and with the last name the image.
    pub async fn remove_image(&self, name: &str) -> Result<(), EngineError> {
        let removed = self.docker.remove_image(name, None::<RemoveImageOptions>, None).await;
        match removed.map_err(EngineError::from_engine("remove the image")) {
            Err(EngineError::Refused { status: 404, .. }) => Ok(()),
            other => other.map(drop),
        }
    }
}

/// Removes images that this node fetched and nothing used for as long as `unused_for`. Gives the names of those that went.
pub async fn collect_images(engine: &Engine, images: &Path, unused_for: Duration) -> Result<Vec<String>, EngineError> {
    let mut gone = Vec::new();
    for name in records(images) {
        let Some(_lock) = Lock::attempt(images, &name).map_err(EngineError::io("lock an image"))? else { continue };
        let path = record_path(images, &name);
        if !is_older(&path, unused_for) {
            continue;
        }
        match engine.image(&name).await? {
            Some(image) if engine.is_used(&image, &name).await? => continue,
            Some(_) => match engine.remove_image(&name).await {
                // The engine knows of a use that we do not.
                Err(EngineError::Refused { status: 409, .. }) => continue,
                removed => removed?,
            },
            None => {}
        }
        fs::remove_file(&path).map_err(EngineError::io("forget an image"))?;
        gone.push(name);
    }
    Ok(gone)
}

fn image(found: ImageInspect) -> Image {
    let user = found.config.and_then(|config| config.user).unwrap_or_default();
    Image { id: found.id.unwrap_or_default(), user }
}

fn credentials(auth: &Auth) -> DockerCredentials {
    let given = |text: &String| (!text.is_empty()).then(|| text.clone());
    DockerCredentials {
        username: given(&auth.username),
        password: given(&auth.password),
        email: given(&auth.email),
        serveraddress: given(&auth.server),
        ..DockerCredentials::default()
    }
}

async fn finish<T>(steps: impl Stream<Item = Result<T, bollard::errors::Error>>) -> Result<(), bollard::errors::Error> {
    let mut steps = std::pin::pin!(steps);
    while let Some(step) = steps.next().await {
        step?;
    }
    Ok(())
}

fn explain(error: &bollard::errors::Error) -> String {
    use bollard::errors::Error;
    match error {
        Error::DockerResponseServerError { message, .. } => message.clone(),
        Error::DockerStreamError { error } => error.clone(),
        other => other.to_string(),
    }
}

fn refused(image: &str, problem: &str) -> EngineError {
    EngineError::Image { image: image.to_owned(), problem: problem.to_owned() }
}

/// A file in pieces, between what goes before and after it.
fn file_stream(
    path: &Path,
    before: Vec<u8>,
    after: Vec<u8>,
) -> io::Result<impl Stream<Item = io::Result<Bytes>> + Send + 'static> {
    use std::io::Read;
    let mut file = File::open(path)?;
    let pieces = std::iter::from_fn(move || {
        let mut buffer = vec![0; 256 << 10];
        match file.read(&mut buffer) {
            Ok(0) => None,
            Ok(count) => {
                buffer.truncate(count);
                Some(Ok(Bytes::from(buffer)))
            }
            Err(error) => Some(Err(error)),
        }
    });
    let all = std::iter::once(Ok(Bytes::from(before))).chain(pieces).chain(std::iter::once(Ok(Bytes::from(after))));
    Ok(futures::stream::iter(all.filter(|piece| !matches!(piece, Ok(bytes) if bytes.is_empty()))))
}

/// Held while an image is fetched or removed; the kernel lets go of it with the process.
pub(crate) struct Lock {
    _held: Flock<File>,
}

impl Lock {
    pub(crate) async fn wait(dir: &Path, name: &str) -> Result<Self, EngineError> {
        loop {
            match Self::attempt(dir, name).map_err(EngineError::io("lock the image"))? {
                Some(lock) => return Ok(lock),
                None => tokio::time::sleep(POLL).await,
            }
        }
    }

    fn attempt(dir: &Path, name: &str) -> io::Result<Option<Self>> {
        fs::create_dir_all(dir)?;
        let file = OpenOptions::new().write(true).create(true).truncate(false).open(dir.join(safe(name) + ".lock"))?;
        match Flock::lock(file, FlockArg::LockExclusiveNonblock) {
            Ok(held) => Ok(Some(Self { _held: held })),
            Err((_, Errno::EWOULDBLOCK)) => Ok(None),
            Err((_, errno)) => Err(errno.into()),
        }
    }
}

/// A file name of its own for each image name; engines take no names that are too long for one.
fn safe(name: &str) -> String {
    const LENGTH_MAX: usize = 240;
    let plain = |c: char| c.is_ascii_alphanumeric() || matches!(c, '.' | '-');
    let mut file = String::new();
    for c in name.chars() {
        let part = if plain(c) { c.to_string() } else { format!("_{:x}_", u32::from(c)) };
        if file.len() + part.len() > LENGTH_MAX {
            break;
        }
        file.push_str(&part);
    }
    file
}

fn record_path(dir: &Path, name: &str) -> PathBuf {
    dir.join(safe(name) + ".image")
}

fn record(dir: &Path, name: &str) -> io::Result<()> {
    fs::write(record_path(dir, name), name)
}

/// Notes a use; an image that was not fetched by this node has no record, and gets none.
pub(crate) fn touch(dir: &Path, name: &str) {
    if let Ok(file) = OpenOptions::new().write(true).open(record_path(dir, name)) {
        let _ = file.set_modified(SystemTime::now());
    }
}

fn records(dir: &Path) -> Vec<String> {
    let entries = fs::read_dir(dir).into_iter().flatten().flatten().map(|entry| entry.path());
    let records = entries.filter(|path| path.extension().is_some_and(|end| end == "image"));
    records.filter_map(|path| fs::read_to_string(path).ok()).collect()
}

fn is_older(path: &Path, age: Duration) -> bool {
    let modified = fs::metadata(path).and_then(|meta| meta.modified());
    modified.is_ok_and(|then| then.elapsed().is_ok_and(|passed| passed >= age))
}

impl Engine {
    /// Notes that a task of this image has just ended.
    pub fn note_use(&self, spec: &ContainerSpec) {
        touch(&spec.images, &spec.image);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_get_the_tag_that_registries_assume() {
        for (text, expect) in [
            ("redis", "redis:latest"),
            ("redis:7", "redis:7"),
            ("reg.example:5000/a/b", "reg.example:5000/a/b:latest"),
            ("reg.example:5000/a/b:v1", "reg.example:5000/a/b:v1"),
            ("a@sha256:00ff", "a@sha256:00ff"),
        ] {
            assert_eq!(image_name(text), expect);
        }
        assert!(moves("redis") && moves("a/b:latest") && !moves("a:1") && !moves("a@sha256:00"));
    }

    #[test]
    fn file_names_of_images_differ_and_stay_in_their_directory() {
        assert_eq!(safe("a/b:1"), "a_2f_b_3a_1");
        assert_ne!(safe("a/b"), safe("a_b"));
        assert!(!safe("../../etc/passwd").contains('/'));
        assert!(safe(&"x/".repeat(500)).len() < 250);
    }

    #[test]
    fn only_recorded_images_have_a_last_use() {
        let dir = tempfile::tempdir().expect("dir");
        touch(dir.path(), "a:1");
        assert!(records(dir.path()).is_empty());
        record(dir.path(), "a:1").expect("writes");
        assert_eq!(records(dir.path()), ["a:1"]);
        assert!(is_older(&record_path(dir.path(), "a:1"), Duration::ZERO));
        assert!(!is_older(&record_path(dir.path(), "a:1"), Duration::from_secs(60)));
    }

    #[tokio::test]
    async fn a_lock_is_one_processs_at_a_time() {
        let dir = tempfile::tempdir().expect("dir");
        let held = Lock::wait(dir.path(), "a").await.expect("locks");
        assert!(Lock::attempt(dir.path(), "a").expect("tries").is_none());
        assert!(Lock::attempt(dir.path(), "b").expect("tries").is_some());
        drop(held);
        assert!(Lock::attempt(dir.path(), "a").expect("tries").is_some());
    }
}
