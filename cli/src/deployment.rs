//! `meshctl deployment`: how far a new version of a job has got, and a word to it.

use crate::client::{Endpoint, part};
use crate::json::{entries, list, number, print_pretty, text};
use crate::table::{block, columns, row, short};
use anyhow::{Result, bail};
use clap::Subcommand;
use serde_json::{Value, json};
use std::process::ExitCode;
use std::time::Duration;

/// Between two looks at a deployment that is followed.
const POLL: Duration = Duration::from_millis(500);

#[derive(Subcommand)]
pub enum Command {
    /// List deployments
    List {
        #[arg(long)]
        json: bool,
    },
    /// Show a deployment
    Status {
        #[arg(long)]
        json: bool,
        /// The id, or its first characters
        id: String,
    },
    /// Let the canaries' version take over
    Promote {
        /// Only these groups
        #[arg(long)]
        group: Vec<String>,
        #[arg(long)]
        detach: bool,
        id: String,
    },
    /// End a deployment as failed; with auto_revert the job goes back to its newest stable version
    Fail {
        #[arg(long)]
        detach: bool,
        id: String,
    },
    /// Place and replace nothing until it is resumed
    Pause { id: String },
    /// Go on with a paused deployment
    Resume { id: String },
}

pub fn run(endpoint: &Endpoint, command: Command) -> Result<ExitCode> {
    let done = |result: Result<()>| result.map(|()| ExitCode::SUCCESS);
    match command {
        Command::List { json } => done(show_list(&endpoint.get("/v1/deployments")?, json)),
        Command::Status { json, id } => done(status(endpoint, &id, json)),
        Command::Promote { group, detach, id } => {
            let eval = promote(endpoint, &whole_id(endpoint, &id)?, &group)?;
            crate::job::follow(endpoint, &eval, detach)
        }
        Command::Fail { detach, id } => {
            let eval = change(endpoint, "fail", &whole_id(endpoint, &id)?, &json!({}))?;
            crate::job::follow(endpoint, &eval, detach)
        }
        Command::Pause { id } => done(pause(endpoint, &id, true)),
        Command::Resume { id } => done(pause(endpoint, &id, false)),
    }
}

pub fn list_of_job(endpoint: &Endpoint, id: &str, json: bool) -> Result<()> {
    show_list(&endpoint.get(&format!("/v1/job/{}/deployments", part(id)))?, json)
}

/// The evaluation that follows. No group means all of them.
pub fn promote(endpoint: &Endpoint, id: &str, groups: &[String]) -> Result<String> {
    change(endpoint, "promote", id, &json!({ "All": groups.is_empty(), "Groups": groups }))
}

/// Prints how far the deployment has got until it has ended; whether it succeeded.
pub fn follow(endpoint: &Endpoint, id: &str) -> Result<bool> {
    println!("==> {}: Monitoring deployment \"{}\"", crate::job::stamp(), short(id));
    let mut shown = String::new();
    loop {
        let deployment: Value = endpoint.get(&format!("/v1/deployment/{}", part(id)))?;
        let table = described(&deployment);
        if table != shown {
            println!("\n{}", table.lines().map(|line| format!("    {line}\n")).collect::<String>());
            shown = table;
        }
        match deployment["Status"].as_str() {
            Some("running" | "paused" | "pending") => std::thread::sleep(POLL),
            status => return Ok(status == Some("successful")),
        }
    }
}

fn pause(endpoint: &Endpoint, id: &str, pause: bool) -> Result<()> {
    let id = whole_id(endpoint, id)?;
    change(endpoint, "pause", &id, &json!({ "Pause": pause }))?;
    println!("Deployment \"{}\" {}", short(&id), if pause { "paused" } else { "resumed" });
    Ok(())
}

fn change(endpoint: &Endpoint, verb: &str, id: &str, request: &Value) -> Result<String> {
    let answer: Value = endpoint.put(&format!("/v1/deployment/{verb}/{}", part(id)), request)?;
    Ok(text(&answer, "EvalID"))
}

fn whole_id(endpoint: &Endpoint, prefix: &str) -> Result<String> {
    let known: Value = endpoint.get(&format!("/v1/deployments?prefix={}", part(prefix)))?;
    match list(&known) {
        [one] => Ok(text(one, "ID")),
        [] => bail!("no deployment has an id that begins with {prefix}; `meshctl deployment list` lists them"),
        several => bail!("{prefix} may be any of these, give more of it:\n{}", table(several)),
    }
}

fn show_list(deployments: &Value, json: bool) -> Result<()> {
    match list(deployments) {
        _ if json => print_pretty(deployments),
        [] => println!("No deployments found"),
        some => println!("{}", table(some)),
    }
    Ok(())
}

fn table(deployments: &[Value]) -> String {
    let mut rows = vec![row(["ID", "Job ID", "Job Version", "Status", "Description"])];
    for deployment in deployments {
        let cells = ["JobID", "JobVersion", "Status", "StatusDescription"].map(|field| text(deployment, field));
        rows.push([vec![short(&text(deployment, "ID"))], cells.to_vec()].concat());
    }
    columns(&rows)
}

fn status(endpoint: &Endpoint, id: &str, json: bool) -> Result<()> {
    let deployment: Value = endpoint.get(&format!("/v1/deployment/{}", part(&whole_id(endpoint, id)?)))?;
    if json {
        print_pretty(&deployment);
        return Ok(());
    }
    println!("{}", described(&deployment));
    Ok(())
}

/// The block and the table that `job status` shows as well.
pub fn described(deployment: &Value) -> String {
    let pairs = [
        ("ID", short(&text(deployment, "ID"))),
        ("Job ID", text(deployment, "JobID")),
        ("Job Version", text(deployment, "JobVersion")),
        ("Status", text(deployment, "Status")),
        ("Description", text(deployment, "StatusDescription")),
    ];
    format!("{}\n\nDeployed\n{}", block(&pairs), groups_table(&deployment["TaskGroups"]))
}

/// Columns about reverting and canaries stand only where some group has them.
fn groups_table(groups: &Value) -> String {
    let some = |field: &str| entries(groups).any(|(_, group)| group[field] == true || number(group, field) > 0);
    let (reverts, canaries) = (some("AutoRevert"), some("DesiredCanaries"));
    let columns_of: Vec<(&str, &str)> = [
        (reverts, ("Auto Revert", "AutoRevert")),
        (canaries, ("Promoted", "Promoted")),
        (true, ("Desired", "DesiredTotal")),
        (canaries, ("Canaries", "DesiredCanaries")),
        (true, ("Placed", "PlacedAllocs")),
        (true, ("Healthy", "HealthyAllocs")),
        (true, ("Unhealthy", "UnhealthyAllocs")),
        (true, ("Progress Deadline", "RequireProgressBy")),
    ]
    .into_iter()
    .filter_map(|(shown, column)| shown.then_some(column))
    .collect();
    let heading = columns_of.iter().map(|(title, _)| (*title).to_owned());
    let mut rows = vec![std::iter::once("Task Group".to_owned()).chain(heading).collect::<Vec<_>>()];
    for (name, group) in entries(groups) {
        let cells = columns_of.iter().map(|(_, field)| text(group, field));
        rows.push(std::iter::once(name.clone()).chain(cells).collect());
    }
    columns(&rows)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn columns_appear_where_they_mean_something() {
        let group =
            |canaries: u64| json!({ "api": { "DesiredTotal": 3, "DesiredCanaries": canaries, "Promoted": false } });
        let heading = |canaries| groups_table(&group(canaries)).lines().next().unwrap_or_default().to_owned();
        assert!(!heading(0).contains("Canaries") && !heading(0).contains("Auto Revert"));
        assert!(heading(1).contains("Promoted") && heading(1).contains("Canaries"));
    }
}
