//! `meshctl node`: the machines and what they run.

use crate::client::{Endpoint, part};
use crate::json::{entries, list, print_pretty, text};
use crate::table::{block, columns, row, short};
use anyhow::{Result, bail};
use clap::Subcommand;
use serde_json::{Value, json};
use std::time::Duration;

#[derive(Subcommand)]
pub enum Command {
    /// List nodes, or show one
    Status {
        #[arg(long)]
        json: bool,
        /// The id, or its first characters
        id: Option<String>,
    },
    /// Move a node's allocations elsewhere, or stop doing so
    #[command(group = clap::ArgGroup::new("switch").required(true).args(["enable", "disable"]))]
    Drain {
        #[arg(long)]
        enable: bool,
        #[arg(long)]
        disable: bool,
        /// What is left then is stopped at once
        #[arg(long, default_value = "1h", value_parser = humantime::parse_duration)]
        deadline: Duration,
        /// Wait without end
        #[arg(long, conflicts_with = "deadline")]
        no_deadline: bool,
        /// Stop everything at once
        #[arg(long, conflicts_with_all = ["deadline", "no_deadline"])]
        force: bool,
        /// Leave allocations of system jobs where they are
        #[arg(long)]
        ignore_system: bool,
        /// With -disable: leave the node ineligible
        #[arg(long)]
        keep_ineligible: bool,
        /// The id, or its first characters
        id: String,
    },
    /// Let new allocations onto a node, or keep them away
    #[command(group = clap::ArgGroup::new("switch").required(true).args(["enable", "disable"]))]
    Eligibility {
        #[arg(long)]
        enable: bool,
        #[arg(long)]
        disable: bool,
        /// The id, or its first characters
        id: String,
    },
}

pub fn run(endpoint: &Endpoint, command: Command) -> Result<()> {
    match command {
        Command::Status { json, id: None } => {
            let nodes: Value = endpoint.get("/v1/nodes")?;
            if json {
                print_pretty(&nodes)
            } else {
                println!("{}", node_table(list(&nodes)))
            }
            Ok(())
        }
        Command::Status { json, id: Some(id) } => show(endpoint, &whole_id(endpoint, &id)?, json),
        Command::Drain { disable: true, keep_ineligible, id, .. } => {
            let request = json!({ "DrainSpec": null, "MarkEligible": !keep_ineligible });
            change(endpoint, &id, "drain", &request, "drain ended")
        }
        Command::Drain { deadline, no_deadline, force, ignore_system, id, .. } => {
            let length = match (force, no_deadline) {
                (true, _) => -1,
                (_, true) => 0,
                _ => i64::try_from(deadline.as_nanos()).unwrap_or(i64::MAX),
            };
            let request = json!({ "DrainSpec": { "Deadline": length, "IgnoreSystemJobs": ignore_system } });
            change(endpoint, &id, "drain", &request, "drain started")
        }
        Command::Eligibility { enable, id, .. } => {
            let eligibility = if enable { "eligible" } else { "ineligible" };
            let done = format!("is {eligibility} for new allocations");
            change(endpoint, &id, "eligibility", &json!({ "Eligibility": eligibility }), &done)
        }
    }
}

fn change(endpoint: &Endpoint, id: &str, what: &str, request: &Value, done: &str) -> Result<()> {
    let id = whole_id(endpoint, id)?;
    let _: Value = endpoint.put(&format!("/v1/node/{}/{what}", part(&id)), request)?;
    println!("Node \"{}\" {done}", short(&id));
    Ok(())
}

fn whole_id(endpoint: &Endpoint, prefix: &str) -> Result<String> {
    let nodes: Value = endpoint.get(&format!("/v1/nodes?prefix={}", part(prefix)))?;
    match list(&nodes) {
        [node] => Ok(text(node, "ID")),
        [] => bail!("no node has an id that begins with {prefix}; `meshctl node status` lists them"),
        several => bail!("{prefix} may be any of these, give more of it:\n{}", node_table(several)),
    }
}

fn node_table(nodes: &[Value]) -> String {
    let mut rows = vec![row(["ID", "Node Pool", "DC", "Name", "Class", "Address", "Drain", "Eligibility", "Status"])];
    for node in nodes {
        let cells =
            ["NodePool", "Datacenter", "Name", "NodeClass", "Address", "Drain", "SchedulingEligibility", "Status"];
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
            ("Drain", text(&node, "Drain")),
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
