//! Files below one directory, reached by handles that follow no link and never leave it: a task may have put anything there.

use nix::dir::Dir;
use nix::errno::Errno;
use nix::fcntl::{AtFlags, OFlag, openat, renameat};
use nix::sys::stat::{FchmodatFlags, Mode, SFlag, fchmod, fchmodat, fstatat, mkdirat};
use nix::unistd::{Gid, Uid, UnlinkatFlags, fchown, fchownat, unlinkat};
use std::fs::File;
use std::io::{self, Read, Write};
use std::os::fd::{AsFd, OwnedFd};
use std::path::{Component, Path, PathBuf};

#[derive(Debug, thiserror::Error)]
pub enum BeneathError {
    #[error("{0:?} leads out of the task's directory; write a relative path without `..`")]
    Outside(PathBuf),
    #[error("{0:?} is a link, which is not followed; name another path, or let the task not make that link")]
    Link(PathBuf),
    #[error("{0:?} is a directory; name a file in it")]
    IsDirectory(PathBuf),
    #[error("{0:?} is larger than {1} bytes")]
    TooLarge(PathBuf, u64),
    #[error("{action} {path:?}")]
    Io {
        action: &'static str,
        path: PathBuf,
        #[source]
        source: io::Error,
    },
}

const DIRECTORY: OFlag = OFlag::O_RDONLY.union(OFlag::O_DIRECTORY).union(OFlag::O_NOFOLLOW).union(OFlag::O_CLOEXEC);

/// A directory that bounds what is done through it.
#[derive(Debug)]
pub struct Beneath {
    root: OwnedFd,
}

impl Beneath {
    pub fn open(root: &Path) -> Result<Self, BeneathError> {
        let opened = nix::fcntl::open(root, DIRECTORY, Mode::empty());
        Ok(Self { root: opened.map_err(|errno| fault("opening", root, errno))? })
    }

    /// Whole or not at all: a reader sees the old content or the new. Directories on the way are made.
    pub fn write(&self, path: &Path, content: &[u8], mode: u32, owner: Option<(u32, u32)>) -> Result<(), BeneathError> {
        let (dir, name) = self.parent(path, true, owner)?;
        if is_kind(&dir, &name, SFlag::S_IFDIR) {
            return Err(BeneathError::IsDirectory(path.to_owned()));
        }
        let scratch = PathBuf::from(format!(".{}.new", name.display()));
        remove(&dir, &scratch, path)?;
        let flags = OFlag::O_WRONLY | OFlag::O_CREAT | OFlag::O_EXCL | OFlag::O_NOFOLLOW | OFlag::O_CLOEXEC;
        let made = openat(&dir, &scratch, flags, Mode::from_bits_truncate(0o600));
        let mut file = File::from(made.map_err(|errno| fault("making", path, errno))?);
        let io = |source| BeneathError::Io { action: "writing", path: path.to_owned(), source };
        file.write_all(content).map_err(io)?;
        if let Some((uid, gid)) = owner {
            fchown(&file, Some(Uid::from_raw(uid)), Some(Gid::from_raw(gid)))
                .map_err(|errno| fault("giving away", path, errno))?;
        }
        // After the owner: that clears bits.
        fchmod(&file, Mode::from_bits_truncate(mode & 0o777))
            .map_err(|errno| fault("setting the mode of", path, errno))?;
        renameat(&dir, &scratch, &dir, &name).map_err(|errno| fault("replacing", path, errno))
    }

    /// A plain file of at most so many bytes; `None` where there is none.
    pub fn read(&self, path: &Path, bytes_max: u64) -> Result<Option<Vec<u8>>, BeneathError> {
        let (dir, name) = match self.parent(path, false, None) {
            Err(BeneathError::Io { source, .. }) if source.kind() == io::ErrorKind::NotFound => return Ok(None),
            found => found?,
        };
        let flags = OFlag::O_RDONLY | OFlag::O_NOFOLLOW | OFlag::O_NONBLOCK | OFlag::O_CLOEXEC;
        let file = match openat(&dir, &name, flags, Mode::empty()) {
            Ok(file) => File::from(file),
            Err(Errno::ENOENT) => return Ok(None),
            Err(errno) => return Err(fault("opening", path, errno)),
        };
        let io = |source| BeneathError::Io { action: "reading", path: path.to_owned(), source };
        if !file.metadata().map_err(io)?.is_file() {
            return Err(BeneathError::IsDirectory(path.to_owned()));
        }
        let mut content = Vec::new();
        file.take(bytes_max.saturating_add(1)).read_to_end(&mut content).map_err(io)?;
        if content.len() as u64 > bytes_max {
            return Err(BeneathError::TooLarge(path.to_owned(), bytes_max));
        }
        Ok(Some(content))
    }

    /// Moves what `tree` holds to `destination`: into that directory, or as that file. What is there is replaced file by file.
    pub fn take_in(
        &self,
        tree: &Path,
        destination: &str,
        is_one_file: bool,
        owner: Option<(u32, u32)>,
    ) -> Result<crate::Placed, BeneathError> {
        let target = PathBuf::from(destination);
        let mut placed = crate::Placed::default();
        if is_one_file || !tree.is_dir() {
            let source = only_file(tree)?;
            let target = if is_one_file { target } else { target.join(source.file_name().unwrap_or_default()) };
            let (dir, name) = self.parent(&target, true, owner)?;
            move_one(&source, &dir, &name, &target, owner, &mut placed)?;
            return Ok(placed);
        }
        let dir = self.directory(&target, true, owner)?;
        merge(tree, &dir, &target, owner, &mut placed)?;
        Ok(placed)
    }

    /// The directory of `path`, part by part, and its last name.
    fn parent(&self, path: &Path, make: bool, owner: Option<(u32, u32)>) -> Result<(OwnedFd, PathBuf), BeneathError> {
        let parts = parts(path)?;
        let (name, dirs) = parts.split_last().ok_or_else(|| BeneathError::IsDirectory(path.to_owned()))?;
        let dirs: PathBuf = dirs.iter().collect();
        Ok((self.directory(&dirs, make, owner)?, PathBuf::from(name)))
    }

    pub fn directory(&self, path: &Path, make: bool, owner: Option<(u32, u32)>) -> Result<OwnedFd, BeneathError> {
        let mut dir = self.root.try_clone().map_err(|source| BeneathError::Io {
            action: "opening",
            path: path.to_owned(),
            source,
        })?;
        for part in parts(path)? {
            dir = step(&dir, &part, path, make, owner)?;
        }
        Ok(dir)
    }
}

fn parts(path: &Path) -> Result<Vec<PathBuf>, BeneathError> {
    let mut parts = Vec::new();
    for part in path.components() {
        match part {
            Component::Normal(name) => parts.push(PathBuf::from(name)),
            Component::CurDir => {}
            _ => return Err(BeneathError::Outside(path.to_owned())),
        }
    }
    Ok(parts)
}

fn step(
    dir: &OwnedFd,
    name: &Path,
    whole: &Path,
    make: bool,
    owner: Option<(u32, u32)>,
) -> Result<OwnedFd, BeneathError> {
    match openat(dir, name, DIRECTORY, Mode::empty()) {
        Err(Errno::ENOENT) if make => {}
        Err(Errno::ENOTDIR | Errno::ELOOP) if is_kind(dir, name, SFlag::S_IFLNK) => {
            return Err(BeneathError::Link(whole.to_owned()));
        }
        opened => return opened.map_err(|errno| fault("opening", whole, errno)),
    }
    match mkdirat(dir, name, Mode::from_bits_truncate(0o755)) {
        Ok(()) => own(dir, name, whole, owner)?,
        Err(Errno::EEXIST) => {}
        Err(errno) => return Err(fault("making", whole, errno)),
    }
    openat(dir, name, DIRECTORY, Mode::empty()).map_err(|errno| fault("opening", whole, errno))
}

fn own(dir: &OwnedFd, name: &Path, whole: &Path, owner: Option<(u32, u32)>) -> Result<(), BeneathError> {
    let Some((uid, gid)) = owner else { return Ok(()) };
    let given = fchownat(dir, name, Some(Uid::from_raw(uid)), Some(Gid::from_raw(gid)), AtFlags::AT_SYMLINK_NOFOLLOW);
    given.map_err(|errno| fault("giving away", whole, errno))
}

fn is_kind(dir: &OwnedFd, name: &Path, kind: SFlag) -> bool {
    let found = fstatat(dir, name, AtFlags::AT_SYMLINK_NOFOLLOW);
    found.is_ok_and(|meta| SFlag::from_bits_truncate(meta.st_mode) & SFlag::S_IFMT == kind)
}

fn remove(dir: &OwnedFd, name: &Path, whole: &Path) -> Result<(), BeneathError> {
    match unlinkat(dir, name, UnlinkatFlags::NoRemoveDir) {
        Ok(()) | Err(Errno::ENOENT) => Ok(()),
        Err(errno) => Err(fault("removing", whole, errno)),
    }
}

/// `tree` is ours: nobody else writes there.
fn merge(
    tree: &Path,
    dir: &OwnedFd,
    whole: &Path,
    owner: Option<(u32, u32)>,
    placed: &mut crate::Placed,
) -> Result<(), BeneathError> {
    let io = |source| BeneathError::Io { action: "reading", path: tree.to_owned(), source };
    for entry in std::fs::read_dir(tree).map_err(io)? {
        let entry = entry.map_err(io)?;
        let (name, target) = (PathBuf::from(entry.file_name()), whole.join(entry.file_name()));
        let meta = entry.metadata().map_err(io)?;
        if meta.is_dir() {
            let inner = step(dir, &name, &target, true, owner)?;
            merge(&entry.path(), &inner, &target, owner, placed)?;
            let mode = std::os::unix::fs::PermissionsExt::mode(&meta.permissions());
            let changed = fchmodat(dir, &name, Mode::from_bits_truncate(mode & 0o777), FchmodatFlags::FollowSymlink);
            changed.map_err(|errno| fault("setting the mode of", &target, errno))?;
        } else {
            move_one(&entry.path(), dir, &name, &target, owner, placed)?;
        }
    }
    Ok(())
}

fn move_one(
    source: &Path,
    dir: &OwnedFd,
    name: &Path,
    whole: &Path,
    owner: Option<(u32, u32)>,
    placed: &mut crate::Placed,
) -> Result<(), BeneathError> {
    let bytes = source
        .symlink_metadata()
        .map_err(|source| BeneathError::Io { action: "reading", path: whole.to_owned(), source })?
        .len();
    if is_kind(dir, name, SFlag::S_IFDIR) {
        return Err(BeneathError::IsDirectory(whole.to_owned()));
    }
    let here = nix::fcntl::AT_FDCWD;
    match renameat(here, source, dir.as_fd(), name) {
        Ok(()) => {}
        // The secrets directory is a file system of its own.
        Err(Errno::EXDEV) => copy_over(source, dir, name, whole)?,
        Err(errno) => return Err(fault("placing", whole, errno)),
    }
    own(dir, name, whole, owner)?;
    *placed = crate::Placed { files: placed.files + 1, bytes: placed.bytes + bytes };
    Ok(())
}

fn copy_over(source: &Path, dir: &OwnedFd, name: &Path, whole: &Path) -> Result<(), BeneathError> {
    let io = |source| BeneathError::Io { action: "placing", path: whole.to_owned(), source };
    remove(dir, name, whole)?;
    let meta = source.symlink_metadata().map_err(io)?;
    if meta.is_symlink() {
        let target = std::fs::read_link(source).map_err(io)?;
        return nix::unistd::symlinkat(&target, dir, name).map_err(|errno| fault("placing", whole, errno));
    }
    let flags = OFlag::O_WRONLY | OFlag::O_CREAT | OFlag::O_EXCL | OFlag::O_NOFOLLOW | OFlag::O_CLOEXEC;
    let made =
        openat(dir, name, flags, Mode::from_bits_truncate(0o600)).map_err(|errno| fault("making", whole, errno))?;
    let mut out = File::from(made);
    io::copy(&mut File::open(source).map_err(io)?, &mut out).map_err(io)?;
    out.set_permissions(meta.permissions()).map_err(io)
}

/// Of a tree that is to become one file.
fn only_file(tree: &Path) -> Result<PathBuf, BeneathError> {
    let io = |source| BeneathError::Io { action: "reading", path: tree.to_owned(), source };
    if !tree.is_dir() {
        return Ok(tree.to_owned());
    }
    let entries: Vec<_> = std::fs::read_dir(tree).map_err(io)?.collect::<Result<_, _>>().map_err(io)?;
    match entries.as_slice() {
        [only] if only.path().is_file() => Ok(only.path()),
        _ => {
            let reason = "mode \"file\" takes what holds exactly one file; use mode \"dir\"";
            Err(io(io::Error::other(reason)))
        }
    }
}

fn fault(action: &'static str, path: &Path, errno: Errno) -> BeneathError {
    match errno {
        Errno::ELOOP => BeneathError::Link(path.to_owned()),
        errno => BeneathError::Io { action, path: path.to_owned(), source: errno.into() },
    }
}

/// Names in a directory, for those that list.
pub fn names(dir: OwnedFd) -> io::Result<Vec<String>> {
    let mut dir = Dir::from_fd(dir)?;
    let mut names: Vec<String> = Vec::new();
    for entry in dir.iter() {
        let name = entry?.file_name().to_string_lossy().into_owned();
        if name != "." && name != ".." {
            names.push(name);
        }
    }
    names.sort();
    Ok(names)
}
