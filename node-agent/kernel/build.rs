//! Hands the kernel object to `include_bytes!`, and says how to make it when it is not there.

use std::{env, path::PathBuf, process::ExitCode};

const VARIABLE: &str = "MESHCTL_EBPF_OBJECT";

fn main() -> ExitCode {
    println!("cargo::rerun-if-env-changed={VARIABLE}");
    let object = object();
    println!("cargo::rerun-if-changed={}", object.display());
    if !object.is_file() {
        eprintln!("{} is not there: run `cargo xtask ebpf` (or point {VARIABLE} to an object)", object.display());
        return ExitCode::FAILURE;
    }
    println!("cargo::rustc-env={VARIABLE}={}", object.display());
    ExitCode::SUCCESS
}

fn object() -> PathBuf {
    // As it is when the script runs: another checkout may share the target directory, and this script with it.
    let here = env::var_os("CARGO_MANIFEST_DIR").unwrap_or_default();
    let built = || PathBuf::from(here).join("../../target/bpf/meshctl.bpf.o");
    let path = env::var_os(VARIABLE).map_or_else(built, PathBuf::from);
    path.canonicalize().unwrap_or(path)
}
