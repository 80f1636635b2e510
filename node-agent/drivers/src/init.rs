//! `task-init`.
use std::process::ExitCode;
pub fn main(_stage: &str) -> ExitCode {
    ExitCode::FAILURE
}
