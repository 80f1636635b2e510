//! The hidden subcommands `supervise` and `task-init` without the rest of `meshctl`.

use std::process::ExitCode;

fn main() -> ExitCode {
    drivers::hidden_main(std::env::args_os()).unwrap_or_else(|| {
        eprintln!("usage: meshctl-task supervise <control dir> (normally started by the agent)");
        ExitCode::from(2)
    })
}
