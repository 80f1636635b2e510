//! Network namespaces kept by a bind mount. Entering one changes a thread for good, so each visit has a thread of its own.

use crate::error::Error;
use nix::mount::{MntFlags, MsFlags};
use nix::sched::CloneFlags;
use std::fs::{self, File, OpenOptions};
use std::io;
use std::path::Path;

/// Makes the namespace unless the file already stands for one. Says whether it was made.
pub(crate) fn make(path: &Path) -> Result<bool, Error> {
    if is_namespace(path) {
        return Ok(false);
    }
    let made = make_file(path).and_then(|()| {
        let path = path.to_owned();
        on_thread(move || {
            nix::sched::unshare(CloneFlags::CLONE_NEWNET)?;
            let own = Path::new("/proc/thread-self/ns/net");
            Ok(nix::mount::mount(Some(own), &path, None::<&str>, MsFlags::MS_BIND, None::<&str>)?)
        })
    });
    made.map(|()| true).map_err(|source| Error::MakeNamespace { path: path.to_owned(), source })
}

/// Unmounts and removes the file; the namespace goes when its last process does. Nothing to do is fine.
pub(crate) fn remove(path: &Path) -> Result<(), Error> {
    let failed = |source| Error::RemoveNamespace { path: path.to_owned(), source };
    while is_namespace(path) {
        nix::mount::umount2(path, MntFlags::MNT_DETACH).map_err(|errno| failed(errno.into()))?;
    }
    match fs::remove_file(path) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => Err(failed(error)),
        _ => Ok(()),
    }
}

/// A mount of the kernel's namespace file system, not just a file that a crash left behind.
pub(crate) fn is_namespace(path: &Path) -> bool {
    nix::sys::statfs::statfs(path).is_ok_and(|stat| stat.filesystem_type() == nix::sys::statfs::NSFS_MAGIC)
}

/// Runs the closure on a thread inside the namespace, on a runtime of its own.
pub(crate) fn visit<T: Send + 'static>(
    path: &Path,
    visitor: impl FnOnce(&tokio::runtime::Runtime) -> T + Send + 'static,
) -> Result<T, Error> {
    let failed = |source| Error::EnterNamespace { path: path.to_owned(), source };
    let file = File::open(path).map_err(failed)?;
    let visit = move || {
        nix::sched::setns(file, CloneFlags::CLONE_NEWNET)?;
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
        Ok(visitor(&runtime))
    };
    on_thread(visit).map_err(failed)
}

fn make_file(path: &Path) -> io::Result<()> {
    path.parent().map_or(Ok(()), fs::create_dir_all)?;
    OpenOptions::new().create(true).append(true).open(path).map(drop)
}

fn on_thread<T: Send + 'static>(work: impl FnOnce() -> io::Result<T> + Send + 'static) -> io::Result<T> {
    let thread = std::thread::Builder::new().name("netns".to_owned()).spawn(work)?;
    thread.join().unwrap_or_else(|_| Err(io::Error::other("the namespace thread panicked")))
}
