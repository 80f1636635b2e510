//! What the machine needs and does not have yet: said with its reason, then installed. A second run finds nothing to do.

use crate::build::run as call;
use anyhow::{Context, Result, bail, ensure};
use std::path::Path;
use std::process::{Command, Stdio};

/// Debian packages, each with what needs it.
const PACKAGES: [(&str, &str); 21] = [
    ("rustc-web", "compiles the kernel programs: rustup's toolchain has no core for bpfel-unknown-none"),
    ("libstd-rust-web-dev-bpf", "that core"),
    ("llvm-22-dev", "bpf-linker links with the LLVM of that compiler"),
    ("libpolly-22-dev", "part of that LLVM"),
    ("zlib1g-dev", "LLVM links to it"),
    ("libzstd-dev", "LLVM links to it"),
    ("libxml2-dev", "LLVM links to it"),
    ("gcc", "links Rust programs and builds the assembly of the ring library"),
    ("libc6-dev", "the static C library"),
    ("protobuf-compiler", "compiles the wire format"),
    ("libprotobuf-dev", "its well-known types"),
    ("iproute2", "lab networks"),
    ("ethtool", "lab links that finish checksums"),
    ("procps", "sysctl for lab machines"),
    ("tcpdump", "captures of failed lab runs"),
    ("nginx-light", "the web server that the demo's job runs"),
    ("busybox-static", "the web server of examples/web.nomad.hcl"),
    ("curl", "the demo's client"),
    ("docker.io", "the engine that the docker driver's tests start"),
    ("openjdk-17-jdk-headless", "the compiler and runtime of the java driver's tests"),
    ("git", "artifacts that are repositories"),
];

/// `dig` for the demo; its package has had several names.
const DIG: (&str, &str) = ("bind9-dnsutils", "dig, with which the demo asks for names");

const BPF_LINKER: &str = "0.13.0";

fn install_missing() -> Result<Vec<String>> {
    ensure!(is_root()?, "setup installs packages and labs make namespaces: run it as root");
    check_kernel()?;
    let mut done = Vec::new();
    let missing = missing_packages()?;
    if !missing.is_empty() {
        install(&missing)?;
        done.push(format!("{} Debian packages", missing.len()));
    }
    if bpf_linker_version().as_deref() != Some(BPF_LINKER) {
        install_bpf_linker()?;
        done.push(format!("bpf-linker {BPF_LINKER}"));
    }
    if !is_bpffs("/sys/fs/bpf")? {
        println!(
            "mounting bpffs at /sys/fs/bpf: maps and links are pinned there, so that forwarding outlives the agent"
        );
        call(Command::new("mount").args(["-t", "bpf", "bpf", "/sys/fs/bpf"]))?;
        done.push("bpffs".to_owned());
    }
    Ok(done)
}

pub fn run() -> Result<()> {
    let done = install_missing()?;
    match done.as_slice() {
        [] => println!("setup: everything is there"),
        done => println!("setup: installed {}", done.join(", ")),
    }
    Ok(())
}

/// The data path hangs on tcx links; better said now than after the build.
fn check_kernel() -> Result<()> {
    let release =
        std::fs::read_to_string("/proc/sys/kernel/osrelease").context("could not read the kernel's version")?;
    let mut numbers = release.split(|c: char| !c.is_ascii_digit()).filter_map(|number| number.parse::<u32>().ok());
    let version = (numbers.next().unwrap_or(0), numbers.next().unwrap_or(0));
    ensure!(
        version >= (6, 6),
        "kernel {} is too old, 6.6 is needed: apt-get install -t bookworm-backports linux-image-amd64, and boot it",
        release.trim()
    );
    Ok(())
}

fn missing_packages() -> Result<Vec<(&'static str, &'static str)>> {
    let mut missing = Vec::new();
    for package in PACKAGES.into_iter().chain([DIG]) {
        if !is_installed(package.0)? {
            missing.push(package);
        }
    }
    Ok(missing)
}

fn is_installed(package: &str) -> Result<bool> {
    let output = Command::new("dpkg-query").args(["-W", "-f", "${db:Status-Status}", package]).output();
    let output = output.context("no dpkg-query: setup knows Debian 12 only; elsewhere see docs/building.md")?;
    Ok(output.stdout == b"installed")
}

fn install(missing: &[(&str, &str)]) -> Result<()> {
    println!("installing Debian packages:");
    for (package, reason) in missing {
        println!("  {package:<24} {reason}");
    }
    let apt = |arguments: &[&str]| {
        let mut command = Command::new("apt-get");
        call(command.args(arguments).env("DEBIAN_FRONTEND", "noninteractive").stdout(Stdio::null()))
    };
    apt(&["update", "-qq"])?;
    let names = missing.iter().map(|(package, _)| *package);
    let install = ["install", "-y", "-qq", "--no-install-recommends"].into_iter().chain(names);
    without_services(|| apt(&install.collect::<Vec<_>>()))
}

/// Debian starts what it installs; a web server that a lab needs must not open port 80 of the machine. What forbids it is
/// policy-rc.d (invoke-rc.d(8)).
fn without_services(install: impl FnOnce() -> Result<()>) -> Result<()> {
    let policy = Path::new("/usr/sbin/policy-rc.d");
    if policy.exists() {
        return install();
    }
    std::fs::write(policy, "#!/bin/sh\nexit 101\n").context("could not forbid the start of services")?;
    std::fs::set_permissions(policy, std::os::unix::fs::PermissionsExt::from_mode(0o755))?;
    let result = install();
    std::fs::remove_file(policy).context("could not allow the start of services again")?;
    result
}

fn bpf_linker_version() -> Option<String> {
    let output = Command::new("bpf-linker").arg("--version").output().ok()?;
    String::from_utf8(output.stdout).ok()?.split_whitespace().nth(1).map(str::to_owned)
}

fn install_bpf_linker() -> Result<()> {
    println!("installing bpf-linker {BPF_LINKER}: links the kernel programs (about a minute)");
    let mut cargo = crate::build::cargo();
    cargo
        .args(["install", "bpf-linker", "--quiet", "--force", "--version", BPF_LINKER])
        .args(["--no-default-features", "--features", "llvm-22"])
        .current_dir("/")
        .env("LLVM_PREFIX", "/usr/lib/llvm-22")
        .env_remove("CARGO_ENCODED_RUSTFLAGS");
    call(&mut cargo)
}

fn is_bpffs(path: &str) -> Result<bool> {
    if !Path::new(path).is_dir() {
        bail!("no {path}: the kernel lacks BPF (CONFIG_BPF_SYSCALL) or sysfs is not mounted");
    }
    let mounts = std::fs::read_to_string("/proc/mounts").context("could not read /proc/mounts")?;
    Ok(mounts.lines().any(|line| line.split(' ').nth(1) == Some(path) && line.split(' ').nth(2) == Some("bpf")))
}

fn is_root() -> Result<bool> {
    let status = std::fs::read_to_string("/proc/self/status").context("could not read /proc/self/status")?;
    let uid = status.lines().find_map(|line| line.strip_prefix("Uid:"));
    Ok(uid.and_then(|ids| ids.split_whitespace().nth(1)) == Some("0"))
}
