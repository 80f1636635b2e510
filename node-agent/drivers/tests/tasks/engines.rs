//! Container engines of this test run's own: started when the first test wants one, in a scratch directory, and gone with the
//! run.

use drivers::{Docker, DockerOptions};
use model::Plugin;
use std::fs;
use std::os::unix::fs::symlink;
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::sync::OnceLock;
use std::time::{Duration, Instant};

/// The image that the tests' containers are of.
pub const IMAGE: &str = "localhost/lab:1";

const APPLETS: [&str; 37] = [
    "cat", "chroot", "cp", "cut", "dd", "df", "echo", "env", "expr", "false", "grep", "head", "hostname", "id", "kill",
    "ls", "mkdir", "mknod", "mount", "nproc", "printf", "ps", "pwd", "readlink", "sed", "seq", "setsid", "sh", "sleep",
    "stat", "stty", "tail", "test", "touch", "true", "wc", "yes",
];

pub fn docker() -> Docker {
    Docker::new(Plugin::Docker, options(Plugin::Docker, &docker_socket()))
}

pub fn docker_socket() -> PathBuf {
    static SOCKET: OnceLock<PathBuf> = OnceLock::new();
    let socket = SOCKET.get_or_init(|| {
        let dir = scratch("docker");
        let at = |name: &str| dir.join(name).display().to_string();
        let socket = dir.join("sock");
        let host = format!("unix://{}", socket.display());
        let (data, exec, pid) = (at("data"), at("exec"), at("pid"));
        let daemon = [
            "dockerd",
            "--data-root",
            &data,
            "--exec-root",
            &exec,
            "-p",
            &pid,
            "-H",
            &host,
            "--iptables=false",
            "--bridge=none",
        ];
        start(&dir, &daemon, &socket);
        import(&["docker", "-H", &host, "import", "-", IMAGE]);
        socket
    });
    socket.clone()
}

pub fn podman() -> Docker {
    static SOCKET: OnceLock<PathBuf> = OnceLock::new();
    let socket = SOCKET.get_or_init(|| {
        let dir = scratch("podman");
        let socket = dir.join("sock");
        let (root, run) = (dir.join("root").display().to_string(), dir.join("run").display().to_string());
        let (address, tmp) = (format!("unix://{}", socket.display()), dir.join("tmp").display().to_string());
        // Its default raises limits, which not every machine that runs tests may do.
        fs::write(
            dir.join("containers.conf"),
            "[containers]\ndefault_ulimits = [\"nofile=1024:1024\", \"nproc=4096:4096\"]\n",
        )
        .expect("writes");
        let podman = [
            "podman",
            "--root",
            &root,
            "--runroot",
            &run,
            "--tmpdir",
            &tmp,
            "--cgroup-manager",
            "cgroupfs",
            "--runtime",
            "runc",
        ];
        let service = ["system", "service", "--time", "0", &address];
        start(&dir, &[&podman[..], &service].concat(), &socket);
        import(&[&podman[..], &["import", "-", IMAGE]].concat());
        socket
    });
    Docker::new(Plugin::Podman, options(Plugin::Podman, socket))
}

pub fn options(plugin: Plugin, socket: &Path) -> DockerOptions {
    let images = socket.with_file_name("images");
    DockerOptions { socket: socket.to_owned(), ..DockerOptions::new(plugin, images) }
}

/// Named by this process; what an earlier run that was killed left is cleared first.
fn scratch(engine: &str) -> PathBuf {
    let top = std::env::temp_dir();
    let prefix = format!("meshctl-{engine}-");
    for entry in fs::read_dir(&top).expect("lists").flatten() {
        let name = entry.file_name().into_string().unwrap_or_default();
        let owner = name.strip_prefix(&prefix).and_then(|pid| pid.parse::<u32>().ok());
        if owner.is_some_and(|pid| !Path::new(&format!("/proc/{pid}")).exists()) {
            let _ = fs::remove_dir_all(entry.path());
        }
    }
    let dir = top.join(format!("{prefix}{}", std::process::id()));
    fs::create_dir_all(&dir).expect("makes");
    dir
}

/// A shell stands between, which the kernel tells of this process's end, and which then ends the engine and clears up.
fn start(dir: &Path, daemon: &[&str], socket: &Path) {
    let script = "dir=$1; shift; trap : TERM; \"$@\" >$dir/log 2>&1 & pid=$!; wait $pid; kill $pid; wait $pid; \
                  for m in $(grep -o \"$dir[^ ]*\" /proc/self/mounts | sort -r); do umount -l $m; done; rm -rf \"$dir\"";
    let mut command = Command::new("setpriv");
    command.args(["--pdeathsig", "TERM", "sh", "-c", script, "sh"]).arg(dir).args(daemon);
    command
        .env("CONTAINERS_CONF", dir.join("containers.conf"))
        .env_remove("CARGO")
        .stdin(Stdio::null())
        .stdout(Stdio::null())
        .stderr(Stdio::null());
    // The kernel means the thread that starts a process, so this one lives as long as the tests.
    std::thread::spawn(move || {
        let mut engine = command.spawn().expect("setpriv of util-linux");
        let _ = engine.wait();
    });
    let deadline = Instant::now() + Duration::from_secs(30);
    while UnixStream::connect(socket).is_err() {
        let log = || fs::read_to_string(dir.join("log")).unwrap_or_default();
        assert!(
            Instant::now() < deadline,
            "{} does not start (apt-get install docker.io podman): {}",
            daemon[0],
            log()
        );
        std::thread::sleep(Duration::from_millis(20));
    }
}

/// Debian's static busybox under its names, and users.
fn import(command: &[&str]) {
    let dir = tempfile::tempdir().expect("dir");
    let root = dir.path();
    for name in ["bin", "etc", "tmp", "root"] {
        fs::create_dir(root.join(name)).expect("makes");
    }
    fs::copy("/bin/busybox", root.join("bin/busybox")).expect("busybox-static is installed");
    for name in APPLETS {
        symlink("busybox", root.join("bin").join(name)).expect("links");
    }
    let passwd = "root:x:0:0::/root:/bin/sh\ndaemon:x:1:1::/:/bin/sh\nweb:x:33:34::/:/bin/sh\n";
    fs::write(root.join("etc/passwd"), passwd).expect("writes");
    fs::write(root.join("etc/group"), "root:x:0:\n").expect("writes");
    let mut tar =
        Command::new("tar").arg("-C").arg(root).args(["-c", "."]).stdout(Stdio::piped()).spawn().expect("tar");
    let from = tar.stdout.take().expect("is piped");
    let done = Command::new(command[0]).args(&command[1..]).stdin(from).output().expect("runs");
    assert!(done.status.success() && tar.wait().expect("waits").success(), "{}", String::from_utf8_lossy(&done.stderr));
}
