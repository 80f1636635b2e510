//! Compiling: the kernel programs by Debian's rustc, the binary by the toolchain of rust-toolchain.toml.

use anyhow::{Context, Result, ensure};
use std::path::{Path, PathBuf};
use std::process::Command;

const TARGET: &str = "x86_64-unknown-linux-gnu";

pub fn root() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).parent().unwrap_or(Path::new("/")).to_owned()
}

pub fn binary() -> PathBuf {
    root().join("target").join(TARGET).join("debug/meshctl")
}

/// The object with the data path's programs and maps.
pub fn kernel_object() -> PathBuf {
    root().join("target/bpf/meshctl.bpf.o")
}

/// The object with one XDP program that passes everything, for the far ends of lab links.
pub fn pass_object() -> PathBuf {
    root().join("target/bpf/pass.bpf.o")
}

/// Builds both objects. Debian's rustc carries a `core` for bpfel-unknown-none that fits its own LLVM, which is the one
/// bpf-linker was built with; RUSTC_BOOTSTRAP lets it take the unstable features that aya-ebpf needs.
pub fn ebpf() -> Result<()> {
    let flags =
        ["-Clinker=bpf-linker", "--cfg=bpf_target_arch=\"x86_64\"", "-Clink-arg=--btf", "-Cdebuginfo=2"].join("\u{1f}");
    let mut cargo = cargo();
    cargo
        .current_dir(root().join("ebpf/programs"))
        .args(["build", "--quiet", "--locked", "--release", "--target", "bpfel-unknown-none"])
        .env("RUSTC", "/usr/bin/rustc")
        .env("RUSTC_BOOTSTRAP", "1")
        .env("CARGO_ENCODED_RUSTFLAGS", flags)
        .env_remove("RUSTFLAGS");
    run(&mut cargo)?;
    let built = root().join("ebpf/programs/target/bpfel-unknown-none/release");
    std::fs::create_dir_all(root().join("target/bpf"))?;
    for (name, object) in [("meshctl", kernel_object()), ("pass", pass_object())] {
        copy_if_changed(&built.join(name), &object)?;
    }
    Ok(())
}

/// An untouched file keeps its time, so that nothing that embeds it is built again.
fn copy_if_changed(from: &Path, to: &Path) -> Result<()> {
    let fresh = std::fs::read(from).with_context(|| format!("no {}", from.display()))?;
    if std::fs::read(to).ok().as_ref() != Some(&fresh) {
        std::fs::write(to, fresh)?;
    }
    Ok(())
}

pub fn meshctl(release: bool) -> Result<()> {
    let mut cargo = cargo();
    cargo.args(["build", "--quiet", "--locked", "--package", "meshctl"]);
    if release {
        cargo.arg("--release");
    }
    run(&mut cargo)
}

pub fn cargo() -> Command {
    let mut command = Command::new(std::env::var_os("CARGO").unwrap_or_else(|| "cargo".into()));
    command.current_dir(root());
    command
}

/// Runs with inherited output.
pub fn run(command: &mut Command) -> Result<()> {
    let status = command.status().with_context(|| format!("could not start {command:?}"))?;
    ensure!(status.success(), "{command:?} ended with {status}");
    Ok(())
}
