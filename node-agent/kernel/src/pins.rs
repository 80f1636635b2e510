//! Where things are pinned, and links that outlive the process.

use std::{
    fs, io,
    os::fd::{AsFd, OwnedFd},
    path::{Path, PathBuf},
};

use aya::programs::{ProgramFd, links::FdLink};

use crate::{KernelError, sys};

/// The directories of one node.
#[derive(Clone, Debug)]
pub(crate) struct Pins {
    node: PathBuf,
}

impl Pins {
    pub fn of(pin_root: &Path, node_id: &str) -> Self {
        Self { node: pin_root.join(node_id) }
    }

    /// Makes the directories; says whether maps of this layout were there before.
    pub fn prepare(&self) -> Result<bool, KernelError> {
        let adopted = self.maps().join(abi::maps::VIPS).exists();
        for dir in [self.maps(), self.links()] {
            fs::create_dir_all(&dir).map_err(|source| KernelError::Path { path: dir, source })?;
        }
        Ok(adopted)
    }

    pub fn maps(&self) -> PathBuf {
        self.node.join(format!("{:016x}", abi::LAYOUT_HASH))
    }

    pub fn link(&self, name: &str) -> PathBuf {
        self.links().join(name)
    }

    pub fn veth(&self, ifindex: u32) -> PathBuf {
        self.link(&format!("veth-{ifindex}"))
    }

    /// Removes the maps of other layouts, once no program uses them any more.
    pub fn remove_other_layouts(&self) -> Result<(), KernelError> {
        let (maps, links) = (self.maps(), self.links());
        for dir in entries(&self.node)?.into_iter().filter(|dir| *dir != maps && *dir != links) {
            fs::remove_dir_all(&dir).map_err(|source| KernelError::Path { path: dir, source })?;
        }
        Ok(())
    }

    /// The interfaces that veth links are pinned for.
    pub fn veths(&self) -> Result<Vec<u32>, KernelError> {
        let number = |path: PathBuf| path.file_name()?.to_str()?.strip_prefix("veth-")?.parse().ok();
        Ok(entries(&self.links())?.into_iter().filter_map(number).collect())
    }

    fn links(&self) -> PathBuf {
        self.node.join("links")
    }
}

/// Detaches every program of a node and forgets its maps. Nothing there is no error.
pub fn detach_all(pin_root: &Path, node_id: &str) -> Result<(), KernelError> {
    let path = Pins::of(pin_root, node_id).node;
    match fs::remove_dir_all(&path) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => Err(KernelError::Path { path, source: error }),
        _ => Ok(()),
    }
}

/// The link pinned at `path`, when there is one.
pub(crate) fn existing(path: &Path) -> Result<Option<OwnedFd>, KernelError> {
    match sys::pinned(path) {
        Ok(link) => Ok(Some(link)),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
        Err(source) => Err(KernelError::Path { path: path.to_path_buf(), source }),
    }
}

/// Puts `program` behind the link pinned at `path`, if it is attached to `ifindex`. A link whose interface is gone, or
/// is another one by now, is removed.
pub(crate) fn replace_at(path: &Path, ifindex: u32, program: &ProgramFd) -> Result<bool, KernelError> {
    let Some(link) = existing(path)? else { return Ok(false) };
    let attached = sys::link_ifindex(&link).map_err(|source| KernelError::Path { path: path.to_path_buf(), source })?;
    if attached != ifindex {
        remove(path)?;
        return Ok(false);
    }
    replace(path, link, program).map(|()| true)
}

pub(crate) fn replace(path: &Path, link: OwnedFd, program: &ProgramFd) -> Result<(), KernelError> {
    sys::update_link(link, program.as_fd()).map_err(|source| KernelError::Replace { path: path.to_path_buf(), source })
}

pub(crate) fn pin(link: FdLink, path: &Path) -> Result<(), KernelError> {
    link.pin(path).map(drop).map_err(|source| KernelError::Pin { path: path.to_path_buf(), source })
}

pub(crate) fn remove(path: &Path) -> Result<(), KernelError> {
    match fs::remove_file(path) {
        Err(source) if source.kind() != io::ErrorKind::NotFound => {
            Err(KernelError::Path { path: path.to_path_buf(), source })
        }
        _ => Ok(()),
    }
}

fn entries(dir: &Path) -> Result<Vec<PathBuf>, KernelError> {
    let list = || fs::read_dir(dir)?.map(|entry| Ok(entry?.path())).collect::<io::Result<Vec<_>>>();
    list().map_err(|source| KernelError::Path { path: dir.to_path_buf(), source })
}
