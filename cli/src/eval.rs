//! `meshctl eval`: what became of requests to reconcile a job.

use crate::client::{Endpoint, part};
use crate::json::{list, print_pretty, text};
use crate::table::{block, columns, row, short};
use anyhow::{Result, bail};
use clap::Subcommand;
use serde_json::Value;

#[derive(Subcommand)]
pub enum Command {
    /// List evaluations
    List {
        #[arg(long)]
        json: bool,
    },
    /// Show an evaluation and why something could not be placed
    Status {
        #[arg(long)]
        json: bool,
        /// The id, or its first characters
        id: String,
    },
}

pub fn run(endpoint: &Endpoint, command: Command) -> Result<()> {
    match command {
        Command::List { json } => {
            let evals: Value = endpoint.get("/v1/evaluations")?;
            if json {
                print_pretty(&evals)
            } else {
                println!("{}", eval_table(list(&evals)))
            }
            Ok(())
        }
        Command::Status { json, id } => status(endpoint, &id, json),
    }
}

fn eval_table(evals: &[Value]) -> String {
    let mut rows = vec![row(["ID", "Priority", "Triggered By", "Job ID", "Status"])];
    for eval in evals {
        let cells = ["Priority", "TriggeredBy", "JobID", "Status"].map(|field| text(eval, field));
        rows.push([vec![short(&text(eval, "ID"))], cells.to_vec()].concat());
    }
    columns(&rows)
}

fn status(endpoint: &Endpoint, id: &str, json: bool) -> Result<()> {
    let evals: Value = endpoint.get(&format!("/v1/evaluations?prefix={}", part(id)))?;
    let eval = match list(&evals) {
        [eval] => eval,
        [] => bail!("no evaluation has an id that begins with {id}; `meshctl eval list` lists them"),
        several => bail!("{id} may be any of these, give more of it:\n{}", eval_table(several)),
    };
    if json {
        print_pretty(eval);
        return Ok(());
    }
    println!(
        "{}",
        block(&[
            ("ID", text(eval, "ID")),
            ("Job ID", text(eval, "JobID")),
            ("Priority", text(eval, "Priority")),
            ("Triggered By", text(eval, "TriggeredBy")),
            ("Status", text(eval, "Status")),
            ("Status Description", text(eval, "StatusDescription")),
        ])
    );
    let failures = crate::job::failures(&eval["FailedTGAllocs"]);
    if !failures.is_empty() {
        println!("\nFailed Placements\n{failures}");
    }
    Ok(())
}
