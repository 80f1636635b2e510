//! Compiling: the kernel programs by Debian's rustc, the binary by the toolchain of rust-toolchain.toml.

use anyhow::{Context, Result, ensure};
use std::path::{Path, PathBuf};
use std::process::Command;

pub fn root() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).parent().unwrap_or(Path::new("/")).to_owned()
}

/// Instruction set 3 (kernel 5.12) has compare-and-exchange. Packets lie at odd addresses: without the feature each of
/// their words is read byte by byte.
const FLAGS: [&str; 6] = [
    "-Clinker=bpf-linker",
    "--cfg=bpf_target_arch=\"x86_64\"",
    "-Ctarget-cpu=v3",
    "-Clink-arg=--cpu-features=+allows-misaligned-mem-access",
    "-Clink-arg=--btf",
    "-Cdebuginfo=2",
];

/// Builds both objects into target/bpf/: the data path's, and the one that lab links are ended with. Debian's rustc carries a `core` for bpfel-unknown-none that fits its own LLVM, which is the one
/// bpf-linker was built with; RUSTC_BOOTSTRAP lets it take the unstable features that aya-ebpf needs.
pub fn ebpf() -> Result<()> {
    compile_objects(&[], &["meshctl", "pass"], ".bpf.o")
}

/// The data path's object with the wrappers that measure its programs.
pub fn bench_ebpf() -> Result<()> {
    compile_objects(&["--features", "bench"], &["meshctl"], "-bench.bpf.o")
}

fn compile_objects(arguments: &[&str], names: &[&str], suffix: &str) -> Result<()> {
    let flags = FLAGS.join("\u{1f}");
    let mut cargo = cargo();
    cargo
        .current_dir(root().join("ebpf/programs"))
        .args(["build", "--quiet", "--locked", "--release", "--target", "bpfel-unknown-none"])
        .args(arguments)
        .env("RUSTC", "/usr/bin/rustc")
        .env("RUSTC_BOOTSTRAP", "1")
        .env("CARGO_ENCODED_RUSTFLAGS", flags)
        .env_remove("RUSTFLAGS");
    run(&mut cargo)?;
    let built = root().join("ebpf/programs/target/bpfel-unknown-none/release");
    let objects = root().join("target/bpf");
    std::fs::create_dir_all(&objects)?;
    for name in names {
        copy_if_changed(&built.join(name), &objects.join(format!("{name}{suffix}")))?;
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
