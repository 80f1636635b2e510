//! What `cargo xtask ebpf` and `cargo xtask build` leave behind, as paths.

use std::path::Path;

fn built(path: &str) -> String {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../../target").join(path).to_string_lossy().into_owned()
}

/// The `meshctl` binary under test.
pub fn binary() -> String {
    built("x86_64-unknown-linux-gnu/debug/meshctl")
}

/// An object with one XDP program that passes everything.
pub fn pass_object() -> String {
    built("bpf/pass.bpf.o")
}

/// Where the logs and captures of failed labs go.
pub fn failures() -> String {
    built("netns")
}

/// A file of the repository.
pub fn repository_file(path: &str) -> String {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../..").join(path).to_string_lossy().into_owned()
}
