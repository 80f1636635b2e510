//! The `meshctl` binary: servers, agents, and every client command, under Nomad's names.

mod alloc;
mod args;
mod client;
mod deployment;
mod dev;
mod eval;
mod job;
mod job_file;
mod json;
mod node;
mod operator;
mod plan;
mod route;
mod serve;
mod service;
mod store;
mod table;
mod unbuilt;

use anyhow::Result;
use clap::{Parser, Subcommand};
use client::Endpoint;
use std::process::ExitCode;

#[derive(Parser)]
#[command(name = "meshctl", version, about = "A fleet of Linux machines as one platform", max_term_width = 100)]
struct Options {
    #[command(flatten)]
    endpoint: Endpoint,
    #[command(subcommand)]
    command: Command,
}

#[derive(Subcommand)]
enum Command {
    /// Register, show and stop jobs
    #[command(subcommand)]
    Job(job::Command),
    /// Show allocations and read their logs
    #[command(subcommand)]
    Alloc(alloc::Command),
    /// Follow rollouts of new job versions, promote, pause and fail them
    #[command(subcommand)]
    Deployment(deployment::Command),
    /// Show nodes, empty them, and keep new work away
    #[command(subcommand)]
    Node(node::Command),
    /// Show evaluations
    #[command(subcommand)]
    Eval(eval::Command),
    /// Show services and their instances
    #[command(subcommand)]
    Service(service::Command),
    /// Show what this node's kernel does with services: frontends, backends, shares, counters, drops
    Route(route::Options),
    /// Read and write keys
    #[command(subcommand)]
    Kv(store::KvCommand),
    /// Read and write variables, whose items only servers can unseal
    #[command(subcommand)]
    Var(store::VarCommand),
    /// Make join tokens
    #[command(subcommand)]
    Token(operator::TokenCommand),
    /// Ask the servers about themselves
    #[command(subcommand)]
    Operator(operator::Command),
    /// Forget what has ended
    #[command(subcommand)]
    System(operator::SystemCommand),
    /// Run a server, or list the servers
    #[command(subcommand)]
    Server(serve::ServerCommand),
    /// Run a node's agent, or remove what it made
    #[command(subcommand)]
    Agent(serve::AgentCommand),
    /// Run a server and an agent in one process on this machine, for trying things out
    Dev(dev::Options),
    /// Print the version
    Version,
}

fn main() -> ExitCode {
    // Supervisors and task inits are this binary, too; they enter namespaces, so they go first, before any thread exists.
    if let Some(code) = drivers::hidden_main(std::env::args_os()) {
        return code;
    }
    let arguments = args::normalise(std::env::args());
    if let Some(refusal) = unbuilt::refusal(&arguments) {
        eprintln!("{refusal}");
        return ExitCode::FAILURE;
    }
    let options = Options::parse_from(arguments);
    match run(options) {
        Ok(code) => code,
        Err(error) => {
            eprintln!("Error: {error:#}");
            ExitCode::FAILURE
        }
    }
}

fn run(options: Options) -> Result<ExitCode> {
    let endpoint = options.endpoint;
    let done = |result: Result<()>| result.map(|()| ExitCode::SUCCESS);
    match options.command {
        Command::Job(command) => job::run(&endpoint, command),
        Command::Alloc(command) => done(alloc::run(&endpoint, command)),
        Command::Deployment(command) => deployment::run(&endpoint, command),
        Command::Node(command) => done(node::run(&endpoint, command)),
        Command::Eval(command) => done(eval::run(&endpoint, command)),
        Command::Service(command) => done(service::run(&endpoint, command)),
        Command::Route(options) => done(route::run(&endpoint, &options)),
        Command::Kv(command) => done(store::kv(&endpoint, command)),
        Command::Var(command) => done(store::var(&endpoint, command)),
        Command::Token(command) => done(operator::run_token(&endpoint, &command)),
        Command::Operator(command) => done(operator::run(&endpoint, command)),
        Command::System(command) => done(operator::run_system(&endpoint, &command)),
        Command::Server(command) => done(serve::server(&endpoint, command)),
        Command::Agent(command) => done(serve::agent(command)),
        Command::Dev(options) => done(dev::run(&options)),
        Command::Version => {
            println!("meshctl v{}", model::VERSION);
            Ok(ExitCode::SUCCESS)
        }
    }
}
