//! The project's own commands. `setup` prepares a machine, `demo` shows the product at work, `test` runs every test there
//! is, `ci` is what CI runs. Only `fix` changes the tree; all but `tidy` and `fix` prepare the machine first, as `setup` does.

mod build;
mod ci;
mod demo;
mod progress;
mod setup;
mod tidy;

use anyhow::Result;
use clap::{Parser, Subcommand};

#[derive(Parser)]
#[command(name = "cargo xtask", about = "meshctl's build, test and demo commands")]
struct Options {
    #[command(subcommand)]
    command: Command,
}

#[derive(Subcommand)]
enum Command {
    /// Install what building and running needs: Debian packages, bpf-linker, the bpffs mount. Run twice it does nothing.
    Setup,
    /// Compile the kernel programs to target/bpf/.
    Ebpf,
    /// Compile the meshctl binary.
    Build {
        /// Optimised, as users get it.
        #[arg(long)]
        release: bool,
    },
    /// Lay out a lab, run a real job on three servers and three nodes, show the traffic, break things, clean up.
    Demo {
        /// Leave the lab up and print how to enter it; the next demo removes it.
        #[arg(long)]
        keep: bool,
    },
    /// Run every test there is, with everything real that they need.
    Test {
        /// Passed on to `cargo test`, e.g. `-p scheduler`.
        #[arg(trailing_var_arg = true, allow_hyphen_values = true)]
        arguments: Vec<String>,
    },
    /// Measure against a baseline of the same run; writes target/bench/NAME.json.
    Bench { name: String },
    /// Check the rules that no compiler checks: who may depend on whom, where `unsafe`, clocks and IO may stand.
    Tidy,
    /// Format, lints, docs, rules and licences.
    Check,
    /// What CI runs: `check`, `test`, `demo`.
    Ci,
    /// Format, and apply what clippy can mend by itself.
    Fix,
}

fn main() -> Result<()> {
    std::env::set_current_dir(build::root())?;
    match Options::parse().command {
        Command::Setup => setup::run(),
        Command::Ebpf => setup::run().and_then(|()| build::ebpf()),
        Command::Build { release } => setup::run().and_then(|()| build::ebpf()).and_then(|()| build::meshctl(release)),
        Command::Demo { keep } => demo::run(keep),
        Command::Test { arguments } => ci::test(&arguments),
        Command::Bench { name } => ci::bench(&name),
        Command::Tidy => tidy::run(),
        Command::Ci => ci::run_all(),
        Command::Check => ci::check(),
        Command::Fix => ci::fix(),
    }
}
