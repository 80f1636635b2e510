//! `meshctl service`: what the catalog knows under which name.

use crate::client::{Endpoint, part};
use crate::json::{joined, list, print_pretty, text};
use crate::table::{columns, row, short};
use anyhow::Result;
use clap::Subcommand;
use serde_json::Value;

#[derive(Subcommand)]
pub enum Command {
    /// List services
    List {
        #[arg(long)]
        json: bool,
    },
    /// List a service's instances
    Info {
        #[arg(long)]
        json: bool,
        name: String,
    },
}

pub fn run(endpoint: &Endpoint, command: Command) -> Result<()> {
    match command {
        Command::List { json } => {
            let spaces: Value = endpoint.get("/v1/services")?;
            if json { print_pretty(&spaces) } else { println!("{}", services(&spaces)) }
        }
        Command::Info { json, name } => {
            let instances: Value = endpoint.get(&format!("/v1/service/{}", part(&name)))?;
            if json { print_pretty(&instances) } else { println!("{}", instance_table(&instances)) }
        }
    }
    Ok(())
}

fn services(spaces: &Value) -> String {
    let mut rows = vec![row(["Service Name", "Tags"])];
    for service in list(spaces).iter().flat_map(|space| list(&space["Services"])) {
        rows.push(vec![text(service, "ServiceName"), format!("[{}]", joined(&service["Tags"]))]);
    }
    columns(&rows)
}

fn instance_table(instances: &Value) -> String {
    let mut rows = vec![row(["Job ID", "Address", "Tags", "Node ID", "Alloc ID"])];
    for instance in list(instances) {
        rows.push(vec![
            text(instance, "JobID"),
            format!("{}:{}", text(instance, "Address"), text(instance, "Port")),
            format!("[{}]", joined(&instance["Tags"])),
            short(&text(instance, "NodeID")),
            short(&text(instance, "AllocID")),
        ]);
    }
    columns(&rows)
}
