//! `meshctl node`: the machines and what they run.

use crate::client::{Endpoint, part};
use crate::json::{entries, list, print_pretty, text};
use crate::table::{block, columns, row, short};
use anyhow::{Result, bail};
use clap::Subcommand;
use serde_json::Value;

#[derive(Subcommand)]
pub enum Command {
    /// List nodes, or show one
    Status {
        #[arg(long)]
        json: bool,
        /// The id, or its first characters
        id: Option<String>,
    },
}

pub fn run(endpoint: &Endpoint, command: Command) -> Result<()> {
    let Command::Status { json, id } = command;
    let prefix = id.as_deref().unwrap_or_default();
    let nodes: Value = endpoint.get(&format!("/v1/nodes?prefix={}", part(prefix)))?;
    match (id.is_some(), list(&nodes)) {
        (false, _) if json => print_pretty(&nodes),
        (false, nodes) => println!("{}", node_table(nodes)),
        (true, [node]) => return show(endpoint, &text(node, "ID"), json),
        (true, []) => bail!("no node has an id that begins with {prefix}; `meshctl node status` lists them"),
        (true, several) => bail!("{prefix} may be any of these, give more of it:\n{}", node_table(several)),
    }
    Ok(())
}

fn node_table(nodes: &[Value]) -> String {
    let mut rows = vec![row(["ID", "Node Pool", "DC", "Name", "Class", "Address", "Eligibility", "Status"])];
    for node in nodes {
        let cells = ["NodePool", "Datacenter", "Name", "NodeClass", "Address", "SchedulingEligibility", "Status"];
        rows.push([vec![short(&text(node, "ID"))], cells.map(|field| text(node, field)).to_vec()].concat());
    }
    columns(&rows)
}

fn show(endpoint: &Endpoint, id: &str, json: bool) -> Result<()> {
    let node: Value = endpoint.get(&format!("/v1/node/{}", part(id)))?;
    if json {
        print_pretty(&node);
        return Ok(());
    }
    let resources = &node["NodeResources"];
    println!(
        "{}\n",
        block(&[
            ("ID", text(&node, "ID")),
            ("Name", text(&node, "Name")),
            ("Node Pool", text(&node, "NodePool")),
            ("Class", text(&node, "NodeClass")),
            ("DC", text(&node, "Datacenter")),
            ("Eligibility", text(&node, "SchedulingEligibility")),
            ("Status", text(&node, "Status")),
            ("CPU", format!("{} MHz", text(&resources["Cpu"], "CpuShares"))),
            ("Memory", format!("{} MiB", text(&resources["Memory"], "MemoryMB"))),
            ("Disk", format!("{} MiB", text(&resources["Disk"], "DiskMB"))),
        ])
    );
    let mut rows = vec![row(["Driver", "Detected", "Healthy", "Message"])];
    for (driver, status) in entries(&node["Drivers"]) {
        let cells = ["Detected", "Healthy", "HealthDescription"].map(|field| text(status, field));
        rows.push([vec![driver.clone()], cells.to_vec()].concat());
    }
    println!("Drivers\n{}\n", columns(&rows));
    let allocs: Value = endpoint.get(&format!("/v1/node/{}/allocations", part(id)))?;
    println!("Allocations\n{}", crate::job::alloc_table(&allocs));
    Ok(())
}
