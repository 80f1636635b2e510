//! The root directory of an exec task, built in its own mount namespace: nothing here is ever mounted on the node itself,
//! so that everything is gone with the task's last process.

use crate::spec::{Directories, RootSpec};
use crate::users::Identity;
use nix::mount::{MntFlags, MsFlags, mount, umount2};
use nix::sys::statfs::{TMPFS_MAGIC, statfs};
use nix::unistd::{chdir, pivot_root};
use std::fs::{self, File};
use std::io;
use std::os::unix::fs::symlink;
use std::path::{Component, Path, PathBuf};

#[derive(Debug, thiserror::Error)]
#[error("the task's root: cannot {action} {path}")]
pub struct RootError {
    action: &'static str,
    path: PathBuf,
    #[source]
    source: io::Error,
}

const DEVICES: [&str; 6] = ["null", "zero", "full", "random", "urandom", "tty"];

const DEVICE_LINKS: [(&str, &str); 5] = [
    ("/proc/self/fd", "dev/fd"),
    ("/proc/self/fd/0", "dev/stdin"),
    ("/proc/self/fd/1", "dev/stdout"),
    ("/proc/self/fd/2", "dev/stderr"),
    ("pts/ptmx", "dev/ptmx"),
];

/// What of the kernel's files tells about the node or its other processes; the set that runc hides.
const HIDDEN: [&str; 13] = [
    "proc/acpi",
    "proc/asound",
    "proc/config.gz",
    "proc/interrupts",
    "proc/kcore",
    "proc/keys",
    "proc/latency_stats",
    "proc/timer_list",
    "proc/timer_stats",
    "proc/sched_debug",
    "proc/scsi",
    "sys/devices/virtual/powercap",
    "sys/firmware",
];

/// A task that runs as root could otherwise change the node through these.
const FROZEN: [&str; 5] = ["proc/bus", "proc/fs", "proc/irq", "proc/sys", "proc/sysrq-trigger"];

const SAFE: MsFlags = MsFlags::MS_NOSUID.union(MsFlags::MS_NODEV);
const DATA: MsFlags = SAFE.union(MsFlags::MS_NOEXEC);

/// Builds the root and makes it the caller's. The caller is alone in fresh mount and pid namespaces.
pub fn enter(spec: &RootSpec, dirs: &Directories, owner: &Identity, memory_bytes: u64) -> Result<(), RootError> {
    detach_from_node()?;
    let root = dirs.control.join("root");
    make_dir(&root)?;
    mount_fs("tmpfs", &root, DATA, "mode=0755,size=1m")?;
    for dir in &spec.read_only {
        show_read_only(&root, dir)?;
    }
    mount_own(&root, dirs, owner, memory_bytes)?;
    mount_kernel(&root)?;
    mount_devices(&root)?;
    lay_over(&root, spec)?;
    remount(&root, DATA | MsFlags::MS_RDONLY)?;
    pivot(&root)
}

/// Without this every mount below would appear on the node.
fn detach_from_node() -> Result<(), RootError> {
    let flags = MsFlags::MS_REC | MsFlags::MS_PRIVATE;
    at("detach", Path::new("/"), mount(None::<&str>, "/", None::<&str>, flags, None::<&str>).map_err(io::Error::from))
}

fn pivot(root: &Path) -> Result<(), RootError> {
    let swap = || {
        chdir(root)?;
        // The old root lands on top of the new one, where it is unmounted: no directory for it is needed.
        pivot_root(".", ".")?;
        umount2(".", MntFlags::MNT_DETACH)?;
        chdir("/")
    };
    at("change to", root, swap().map_err(io::Error::from))
}

/// `dir` of the node under the new root. Where it is a link (`/bin` on most systems) the link is repeated.
fn show_read_only(root: &Path, dir: &Path) -> Result<(), RootError> {
    let target = inside(root, dir);
    match fs::symlink_metadata(dir) {
        Ok(meta) if meta.is_symlink() => {
            let link = at("read the link", dir, fs::read_link(dir))?;
            make_dir(target.parent().unwrap_or(root))?;
            at("make the link", &target, symlink(link, &target))
        }
        Ok(meta) if meta.is_dir() => {
            make_dir(&target)?;
            bind(dir, &target, MsFlags::MS_REC)?;
            remount_below(&target)
        }
        _ => Ok(()),
    }
}

/// A read-only remount reaches one mount only, so each below the directory has its own.
fn remount_below(top: &Path) -> Result<(), RootError> {
    let list = Path::new("/proc/self/mountinfo");
    let text = at("read", list, fs::read_to_string(list))?;
    for (path, flags) in text.lines().filter_map(mount_of) {
        if path.starts_with(top) {
            remount(&path, flags | SAFE | MsFlags::MS_RDONLY)?;
        }
    }
    Ok(())
}

/// Mount point and the flags that a remount must repeat.
fn mount_of(line: &str) -> Option<(PathBuf, MsFlags)> {
    let mut fields = line.split(' ').skip(4);
    let path = crate::cgroup::unescape(fields.next()?);
    let flags = fields.next()?.split(',').map(|option| match option {
        "noexec" => MsFlags::MS_NOEXEC,
        "noatime" => MsFlags::MS_NOATIME,
        "nodiratime" => MsFlags::MS_NODIRATIME,
        _ => MsFlags::empty(),
    });
    Some((path, flags.fold(MsFlags::empty(), MsFlags::union)))
}

fn mount_own(root: &Path, dirs: &Directories, owner: &Identity, memory_bytes: u64) -> Result<(), RootError> {
    let names = ["alloc", "local", "secrets", "tmp", "proc", "sys", "dev", "run"];
    names.iter().try_for_each(|name| make_dir(&root.join(name)))?;
    for (dir, name, flags) in [
        (&dirs.alloc, "alloc", SAFE),
        // The supervisor appends there as root: a task must not be able to plant links.
        (&dirs.logs, "alloc/logs", SAFE | MsFlags::MS_RDONLY),
        (&dirs.local, "local", SAFE),
    ] {
        bind(dir, &root.join(name), MsFlags::empty())?;
        remount(&root.join(name), flags)?;
    }
    let Identity { uid, gid, .. } = owner;
    let secrets = root.join("secrets");
    if holds_prepared_secrets(&dirs.secrets) {
        bind(&dirs.secrets, &secrets, MsFlags::empty())?;
        remount(&secrets, DATA)?;
    } else {
        mount_fs("tmpfs", &secrets, DATA, &format!("mode=0700,size=1m,uid={uid},gid={gid}"))?;
    }
    mount_fs("tmpfs", &root.join("tmp"), SAFE, &format!("mode=1777,size={memory_bytes}"))
}

/// The agent mounts a tmpfs of the task's own where it has put something into the secrets before the start.
fn holds_prepared_secrets(dir: &Path) -> bool {
    let device = |path: &Path| fs::metadata(path).map(|meta| std::os::unix::fs::MetadataExt::dev(&meta)).ok();
    let is_mount = dir.parent().is_some_and(|parent| device(parent) != device(dir));
    is_mount && statfs(dir).is_ok_and(|found| found.filesystem_type() == TMPFS_MAGIC)
}

fn mount_kernel(root: &Path) -> Result<(), RootError> {
    mount_fs("proc", &root.join("proc"), DATA, "")?;
    mount_fs("sysfs", &root.join("sys"), DATA | MsFlags::MS_RDONLY, "")?;
    FROZEN.iter().map(|name| root.join(name)).filter(|path| path.exists()).try_for_each(|path| {
        bind(&path, &path, MsFlags::MS_REC)?;
        remount(&path, DATA | MsFlags::MS_RDONLY)
    })?;
    HIDDEN.iter().map(|name| root.join(name)).try_for_each(|path| hide(&path))
}

fn hide(path: &Path) -> Result<(), RootError> {
    match fs::metadata(path) {
        Ok(meta) if meta.is_dir() => mount_fs("tmpfs", path, DATA | MsFlags::MS_RDONLY, "size=0"),
        Ok(_) => bind(Path::new("/dev/null"), path, MsFlags::empty()),
        Err(_) => Ok(()),
    }
}

fn mount_devices(root: &Path) -> Result<(), RootError> {
    let dev = root.join("dev");
    mount_fs("tmpfs", &dev, DATA, "mode=0755,size=64k")?;
    for name in DEVICES {
        let target = dev.join(name);
        at("make", &target, File::create(&target))?;
        bind(&Path::new("/dev").join(name), &target, MsFlags::empty())?;
    }
    make_dir(&dev.join("pts"))?;
    make_dir(&dev.join("shm"))?;
    let terminals = MsFlags::MS_NOSUID | MsFlags::MS_NOEXEC;
    mount_fs("devpts", &dev.join("pts"), terminals, "newinstance,ptmxmode=0666,mode=0620,gid=5")?;
    mount_fs("tmpfs", &dev.join("shm"), DATA, "mode=1777,size=64m")?;
    for (to, name) in DEVICE_LINKS {
        at("make the link", &root.join(name), symlink(to, root.join(name)))?;
    }
    remount(&dev, DATA | MsFlags::MS_RDONLY)
}

/// The allocation's own name, hosts and resolver over the node's read-only /etc.
fn lay_over(root: &Path, spec: &RootSpec) -> Result<(), RootError> {
    let hostname = Some(format!("{}\n", spec.hostname));
    let files = [("resolv.conf", &spec.resolv_conf), ("hosts", &spec.hosts), ("hostname", &hostname)];
    let own = root.join(".etc");
    make_dir(&own)?;
    for (name, text) in files {
        let Some(text) = text else { continue };
        let source = own.join(name);
        at("write", &source, fs::write(&source, text))?;
        let target = follow(root, &Path::new("/etc").join(name))?;
        if !target.exists() {
            // Where a link of the node's leads to a place that the task does not see.
            make_dir(target.parent().unwrap_or(root))?;
            at("make (an empty file of that name on the node would do)", &target, File::create(&target))?;
        }
        bind(&source, &target, MsFlags::empty())?;
        remount(&target, DATA | MsFlags::MS_RDONLY)?;
    }
    Ok(())
}

/// Follows links as the task will see them; mount(2) would follow them on the node.
fn follow(root: &Path, path: &Path) -> Result<PathBuf, RootError> {
    let mut path = path.to_owned();
    for _ in 0..8 {
        let real = inside(root, &path);
        match fs::read_link(&real) {
            Ok(link) => path = path.parent().unwrap_or(Path::new("/")).join(link),
            Err(_) => return Ok(real),
        }
    }
    at("follow", &path, Err(io::Error::other("too many links")))
}

/// `path` below `root`, whatever `..` it holds.
fn inside(root: &Path, path: &Path) -> PathBuf {
    path.components().fold(root.to_owned(), |mut all, part| {
        match part {
            Component::Normal(name) => all.push(name),
            Component::ParentDir if all != root => drop(all.pop()),
            _ => {}
        }
        all
    })
}

fn make_dir(path: &Path) -> Result<(), RootError> {
    at("make", path, fs::create_dir_all(path))
}

fn mount_fs(kind: &str, target: &Path, flags: MsFlags, options: &str) -> Result<(), RootError> {
    at("mount", target, mount(Some(kind), target, Some(kind), flags, Some(options)).map_err(io::Error::from))
}

fn bind(source: &Path, target: &Path, more: MsFlags) -> Result<(), RootError> {
    let bound = mount(Some(source), target, None::<&str>, MsFlags::MS_BIND | more, None::<&str>);
    at("bind to", target, bound.map_err(io::Error::from))
}

fn remount(target: &Path, flags: MsFlags) -> Result<(), RootError> {
    let flags = MsFlags::MS_BIND | MsFlags::MS_REMOUNT | flags;
    at("set the flags of", target, mount(None::<&str>, target, None::<&str>, flags, None::<&str>).map_err(Into::into))
}

fn at<T>(action: &'static str, path: &Path, done: io::Result<T>) -> Result<T, RootError> {
    done.map_err(|source| RootError { action, path: path.to_owned(), source })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn paths_stay_inside_the_root() {
        let check = |path: &str, expect: &str| assert_eq!(inside(Path::new("/r"), Path::new(path)), Path::new(expect));
        check("/etc/../run/x", "/r/run/x");
        check("/../../../x", "/r/x");
        check("etc/./hosts", "/r/etc/hosts");
    }

    #[test]
    fn links_are_followed_below_the_root() {
        let dir = tempfile::tempdir().expect("dir");
        fs::create_dir(dir.path().join("etc")).expect("makes");
        symlink("/run/stub", dir.path().join("etc/a")).expect("links");
        symlink("../run/x", dir.path().join("etc/b")).expect("links");
        symlink("c", dir.path().join("etc/c")).expect("links");
        let check = |path: &str| follow(dir.path(), Path::new(path)).ok();
        assert_eq!(check("/etc/a"), Some(dir.path().join("run/stub")));
        assert_eq!(check("/etc/b"), Some(dir.path().join("run/x")));
        assert_eq!(check("/etc/c"), None);
    }

    #[test]
    fn remounts_keep_what_was_set() {
        let line = "36 35 98:0 /m /mnt/a\\040b rw,noexec,noatime shared:1 - ext3 /dev/root rw";
        let expect = (PathBuf::from("/mnt/a b"), MsFlags::MS_NOEXEC | MsFlags::MS_NOATIME);
        assert_eq!(mount_of(line), Some(expect));
    }
}
