//! Unpacks into an empty directory of ours, and refuses by name what could reach out of it.

use crate::source::{Archive, Plan, inside};
use crate::{ArtifactError, Policy};
use flate2::read::MultiGzDecoder;
use std::fs::{self, File, OpenOptions, Permissions};
use std::io::{self, Read};
use std::os::unix::fs::{DirBuilderExt, OpenOptionsExt, PermissionsExt};
use std::path::{Component, Path, PathBuf};

pub fn unpack(plan: &Plan, download: &Path, tree: &Path, policy: &Policy) -> Result<(), ArtifactError> {
    let mut out = Unpacker::new(tree, policy)?;
    let open = || {
        File::open(download).map_err(|source| ArtifactError::Io {
            action: "opening",
            path: download.to_owned(),
            source,
        })
    };
    match plan.archive {
        None => out.single(&name_of(plan), &mut open()?)?,
        Some(Archive::Gz) => {
            let name = name_of(plan);
            let name = name.strip_suffix(".gz").filter(|name| !name.is_empty()).unwrap_or(&name).to_owned();
            out.single(&name, &mut MultiGzDecoder::new(open()?))?;
        }
        Some(Archive::Tar) => out.tar(&mut open()?)?,
        Some(Archive::TarGz) => out.tar(&mut MultiGzDecoder::new(io::BufReader::new(open()?)))?,
        Some(Archive::Zip) => out.zip(open()?)?,
    }
    out.links()
}

/// Where the destination is the file, what it was called does not matter.
fn name_of(plan: &Plan) -> String {
    if plan.file_name.is_empty() { "download".to_owned() } else { plan.file_name.clone() }
}

/// A tree that somebody else made: only plain files, directories, and links that stay inside.
pub fn check_tree(tree: &Path, policy: &Policy) -> Result<(), ArtifactError> {
    let mut open = vec![tree.to_owned()];
    let (mut files, mut bytes) = (0, 0u64);
    while let Some(dir) = open.pop() {
        let fail = |source| ArtifactError::Io { action: "reading", path: dir.clone(), source };
        for entry in fs::read_dir(&dir).map_err(fail)? {
            let path = entry.map_err(fail)?.path();
            let meta = path.symlink_metadata().map_err(fail)?;
            let name = path.strip_prefix(tree).unwrap_or(&path).to_owned();
            files += 1;
            bytes = bytes.saturating_add(meta.len());
            if files > policy.files_max {
                return Err(ArtifactError::TooMany(policy.files_max));
            }
            if bytes > policy.bytes_max {
                return Err(ArtifactError::TooLarge { what: "what was unpacked", bytes: policy.bytes_max });
            }
            if meta.is_symlink() {
                let target = fs::read_link(&path).map_err(fail)?;
                check_link(&name, &target)?;
            } else if meta.is_dir() {
                open.push(path);
            } else if !meta.is_file() {
                return Err(entry_error(&name, "is neither a file nor a directory; leave it out"));
            }
        }
    }
    Ok(())
}

fn entry_error(name: &Path, problem: &'static str) -> ArtifactError {
    ArtifactError::Entry { name: name.display().to_string(), problem }
}

/// Steps up only at its beginning, and no more of them than the link is deep: then neither it nor a chain of such links
/// leads out, whatever order they are followed in.
fn check_link(name: &Path, target: &Path) -> Result<(), ArtifactError> {
    let depth = name.components().count().saturating_sub(1);
    let mut ups = 0;
    let mut descended = false;
    for part in target.components() {
        match part {
            Component::RootDir | Component::Prefix(_) => {
                return Err(entry_error(name, "is a link to an absolute path; make it relative"));
            }
            Component::ParentDir if descended => {
                return Err(entry_error(name, "is a link with `..` after a name; write it the short way"));
            }
            Component::ParentDir => ups += 1,
            Component::CurDir => {}
            Component::Normal(_) => descended = true,
        }
    }
    if ups > depth {
        return Err(entry_error(name, "is a link that leads out of the archive"));
    }
    Ok(())
}

struct Unpacker<'a> {
    tree: &'a Path,
    policy: &'a Policy,
    files: usize,
    bytes: u64,
    /// Made last: nothing is ever written through one.
    links: Vec<(PathBuf, PathBuf)>,
}

impl<'a> Unpacker<'a> {
    fn new(tree: &'a Path, policy: &'a Policy) -> Result<Self, ArtifactError> {
        fs::DirBuilder::new().mode(0o755).create(tree).map_err(|source| ArtifactError::Io {
            action: "making",
            path: tree.to_owned(),
            source,
        })?;
        Ok(Self { tree, policy, files: 0, bytes: 0, links: Vec::new() })
    }

    fn count(&mut self) -> Result<(), ArtifactError> {
        self.files += 1;
        if self.files > self.policy.files_max { Err(ArtifactError::TooMany(self.policy.files_max)) } else { Ok(()) }
    }

    fn io(path: &Path) -> impl Fn(io::Error) -> ArtifactError {
        let path = path.to_owned();
        move |source| ArtifactError::Io { action: "unpacking", path: path.clone(), source }
    }

    /// Something downloaded that is a program may be run: there is no other way to say so.
    fn single(&mut self, name: &str, content: &mut impl Read) -> Result<(), ArtifactError> {
        let name = checked(Path::new(name))?;
        let mut head = Vec::new();
        content.by_ref().take(4).read_to_end(&mut head).map_err(|error| ArtifactError::Archive(error.to_string()))?;
        let is_program = head.starts_with(b"#!") || head.starts_with(b"\x7fELF");
        let mode = if is_program { 0o755 } else { 0o644 };
        self.file(&name, mode, &mut head.as_slice().chain(content))
    }

    fn file(&mut self, name: &Path, mode: u32, content: &mut impl Read) -> Result<(), ArtifactError> {
        self.count()?;
        let path = self.tree.join(name);
        self.directory(name.parent().unwrap_or(Path::new("")), 0o755)?;
        let fail = Self::io(name);
        let mut file = OpenOptions::new().write(true).create_new(true).mode(0o600).open(&path).map_err(&fail)?;
        let left = self.policy.bytes_max.saturating_sub(self.bytes);
        let written = io::copy(&mut content.take(left.saturating_add(1)), &mut file)
            .map_err(|error| ArtifactError::Archive(format!("{}: {error}", name.display())))?;
        if written > left {
            return Err(ArtifactError::TooLarge { what: "what was unpacked", bytes: self.policy.bytes_max });
        }
        self.bytes += written;
        file.set_permissions(Permissions::from_mode(mode & 0o777)).map_err(&fail)
    }

    /// Each part of its own: a part that is a file is an error, and links do not exist yet.
    fn directory(&mut self, name: &Path, mode: u32) -> Result<(), ArtifactError> {
        let mut path = self.tree.to_owned();
        for part in name.components() {
            path.push(part);
            match fs::DirBuilder::new().mode(0o755).create(&path) {
                Ok(()) => {
                    self.count()?;
                    fs::set_permissions(&path, Permissions::from_mode(mode & 0o777 | 0o700)).map_err(Self::io(name))?;
                }
                Err(error) if error.kind() == io::ErrorKind::AlreadyExists && path.is_dir() => {}
                Err(error) => return Err(Self::io(name)(error)),
            }
        }
        Ok(())
    }

    fn links(self) -> Result<(), ArtifactError> {
        for (name, target) in &self.links {
            std::os::unix::fs::symlink(target, self.tree.join(name)).map_err(Self::io(name))?;
        }
        Ok(())
    }

    fn link(&mut self, name: PathBuf, target: PathBuf) -> Result<(), ArtifactError> {
        self.count()?;
        check_link(&name, &target)?;
        self.directory(name.parent().unwrap_or(Path::new("")), 0o755)?;
        self.links.push((name, target));
        Ok(())
    }

    fn tar(&mut self, content: &mut impl Read) -> Result<(), ArtifactError> {
        let broken = |error: io::Error| ArtifactError::Archive(error.to_string());
        let mut archive = tar::Archive::new(content);
        for entry in archive.entries().map_err(broken)? {
            let mut entry = entry.map_err(broken)?;
            let kind = entry.header().entry_type();
            if kind.is_pax_global_extensions() {
                continue;
            }
            let name = checked(&entry.path().map_err(broken)?)?;
            let mode = entry.header().mode().map_err(broken)?;
            if mode & 0o7000 != 0 && !kind.is_symlink() && !(kind.is_dir() && mode & 0o6000 == 0) {
                return Err(entry_error(&name, "has a setuid, setgid or sticky bit; clear it"));
            }
            if name.as_os_str().is_empty() {
                continue;
            }
            match kind {
                tar::EntryType::Directory => self.directory(&name, mode)?,
                tar::EntryType::Regular | tar::EntryType::Continuous | tar::EntryType::GNUSparse => {
                    self.file(&name, mode, &mut entry)?;
                }
                tar::EntryType::Symlink => {
                    let target = entry.link_name().map_err(broken)?.unwrap_or_default().into_owned();
                    self.link(name, target)?;
                }
                tar::EntryType::Link => return Err(entry_error(&name, "is a hard link; pack the file itself")),
                tar::EntryType::Block | tar::EntryType::Char => {
                    return Err(entry_error(&name, "is a device; leave it out"));
                }
                tar::EntryType::Fifo => return Err(entry_error(&name, "is a pipe; leave it out")),
                _ => return Err(entry_error(&name, "is of a kind that is not unpacked")),
            }
        }
        Ok(())
    }

    fn zip(&mut self, file: File) -> Result<(), ArtifactError> {
        let broken = |error: zip::result::ZipError| ArtifactError::Archive(error.to_string());
        let mut archive = zip::ZipArchive::new(io::BufReader::new(file)).map_err(broken)?;
        if archive.len() > self.policy.files_max {
            return Err(ArtifactError::TooMany(self.policy.files_max));
        }
        for index in 0..archive.len() {
            let mut entry = archive.by_index(index).map_err(broken)?;
            let name = checked(Path::new(entry.name()))?;
            let mode = entry.unix_mode();
            if mode.is_some_and(|mode| mode & 0o6000 != 0) {
                return Err(entry_error(&name, "has a setuid or setgid bit; clear it"));
            }
            let kind = mode.unwrap_or(0) & 0o170_000;
            if name.as_os_str().is_empty() {
                continue;
            } else if entry.is_dir() {
                self.directory(&name, mode.unwrap_or(0o755))?;
            } else if kind == 0o120_000 {
                let mut target = String::new();
                entry
                    .by_ref()
                    .take(4096)
                    .read_to_string(&mut target)
                    .map_err(|error| ArtifactError::Archive(error.to_string()))?;
                self.link(name, PathBuf::from(target))?;
            } else if kind == 0 || kind == 0o100_000 {
                self.file(&name, mode.filter(|mode| mode & 0o777 != 0).unwrap_or(0o644), &mut entry)?;
            } else {
                return Err(entry_error(&name, "is neither a file nor a directory; leave it out"));
            }
        }
        Ok(())
    }
}

/// An entry's name, below the archive's root.
fn checked(name: &Path) -> Result<PathBuf, ArtifactError> {
    let text = name.to_str().ok_or_else(|| entry_error(name, "has a name that is not UTF-8"))?;
    if name.is_absolute() {
        return Err(entry_error(name, "has an absolute path; pack it relative"));
    }
    if inside(text).is_err() {
        return Err(entry_error(name, "leads out of the archive with `..`"));
    }
    Ok(name.components().filter(|part| matches!(part, Component::Normal(_))).collect())
}
