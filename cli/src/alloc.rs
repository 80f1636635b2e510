//! `meshctl alloc`: one allocation's state, its tasks' output, and what can be done with it.

use crate::client::{Endpoint, part};
use crate::json::{entries, list, number, print_pretty, text};
use crate::table::{block, columns, row, short, time};
use anyhow::{Context, Result, bail};
use clap::Subcommand;
use serde_json::{Value, json};
use std::io::{Read, Write};

/// What a line of a log is reckoned at when the last ones are asked for.
const LINE_BYTES: u64 = 120;

#[derive(Subcommand)]
pub enum Command {
    /// Show an allocation: addresses, tasks, events, checks
    Status {
        #[arg(long)]
        json: bool,
        /// The id, or its first characters
        id: String,
    },
    /// Print what a task wrote
    Logs {
        /// Go on as it writes
        #[arg(short)]
        follow: bool,
        /// Begin near the end
        #[arg(long)]
        tail: bool,
        /// With -tail: how many lines
        #[arg(short, default_value_t = 10)]
        n: usize,
        /// Standard error instead of standard output
        #[arg(long)]
        stderr: bool,
        id: String,
        /// Needed when the group has several tasks
        task: Option<String>,
    },
    /// Restart its tasks where they are; the restart policy does not count it
    Restart {
        /// Start over with the prestart tasks
        #[arg(long)]
        all_tasks: bool,
        #[arg(long = "task", value_name = "NAME", conflicts_with = "all_tasks")]
        named: Option<String>,
        id: String,
        /// All that run unless named
        task: Option<String>,
    },
    /// Send its tasks a signal
    Signal {
        #[arg(short, default_value = "SIGKILL")]
        s: String,
        #[arg(long = "task", value_name = "NAME")]
        named: Option<String>,
        id: String,
        /// All that run unless named
        task: Option<String>,
    },
    /// Stop it; another one is placed in its stead
    Stop { id: String },
    /// Show what its checks say
    Checks {
        #[arg(long)]
        json: bool,
        id: String,
    },
}

pub fn run(endpoint: &Endpoint, command: Command) -> Result<()> {
    match command {
        Command::Status { json, id } => status(endpoint, &id, json),
        Command::Logs { follow, tail, n, stderr, id, task } => {
            let alloc = resolve(endpoint, &id)?;
            let task = task.map_or_else(|| only_task(&alloc), Ok)?;
            let kind = if stderr { "stderr" } else { "stdout" };
            let origin = if tail { format!("&origin=end&offset={}", n as u64 * LINE_BYTES) } else { String::new() };
            let path = format!(
                "/v1/client/fs/logs/{}?task={}&type={kind}&follow={follow}&plain=true{origin}",
                text(&alloc, "ID"),
                part(&task)
            );
            copy(endpoint.open(&path)?, tail.then_some(n).filter(|_| !follow))
        }
        Command::Restart { all_tasks, named, id, task } => {
            let body = json!({ "TaskName": named.or(task).unwrap_or_default(), "AllTasks": all_tasks });
            act(endpoint, &id, "restart", &body)
        }
        Command::Signal { s, named, id, task } => {
            act(endpoint, &id, "signal", &json!({ "Task": named.or(task).unwrap_or_default(), "Signal": s }))
        }
        Command::Stop { id } => {
            let id = text(&resolve(endpoint, &id)?, "ID");
            let answer: Value = endpoint.put(&format!("/v1/allocation/{id}/stop"), &json!({}))?;
            println!("Allocation {} is to stop; evaluation {}", short(&id), short(&text(&answer, "EvalID")));
            Ok(())
        }
        Command::Checks { json, id } => checks(endpoint, &id, json),
    }
}

fn act(endpoint: &Endpoint, id: &str, action: &str, body: &Value) -> Result<()> {
    let id = text(&resolve(endpoint, id)?, "ID");
    endpoint.put::<Value>(&format!("/v1/client/allocation/{id}/{action}"), body).map(drop)
}

fn checks(endpoint: &Endpoint, id: &str, json: bool) -> Result<()> {
    let id = text(&resolve(endpoint, id)?, "ID");
    let found: Value = endpoint.get(&format!("/v1/client/allocation/{id}/checks"))?;
    if json {
        print_pretty(&found);
        return Ok(());
    }
    println!("{}", checks_text(&found));
    Ok(())
}

fn checks_text(found: &Value) -> String {
    let mut rows = vec![row(["Service", "Task", "Check", "Status", "Since", "Output"])];
    for (_, check) in entries(found) {
        let first_line = text(check, "Output").lines().next().unwrap_or_default().to_owned();
        let since = time(number(check, "Timestamp").saturating_mul(1_000_000_000));
        let task = Some(text(check, "Task")).filter(|task| !task.is_empty()).unwrap_or_else(|| "(group)".to_owned());
        rows.push(vec![text(check, "Service"), task, text(check, "Check"), text(check, "Health"), since, first_line]);
    }
    if rows.len() == 1 { "No checks".to_owned() } else { columns(&rows) }
}

/// The whole allocation for an id or the first characters of one.
fn resolve(endpoint: &Endpoint, id: &str) -> Result<Value> {
    let stubs: Value = endpoint.get(&format!("/v1/allocations?prefix={}", part(id)))?;
    match list(&stubs) {
        [] => bail!("no allocation has an id that begins with {id}; `meshctl job status NAME` lists a job's"),
        [stub] => endpoint.get(&format!("/v1/allocation/{}", text(stub, "ID"))),
        several => {
            let ids: Vec<String> = several.iter().map(|stub| text(stub, "ID")).collect();
            bail!("{id} may be any of these, give more of it:\n{}", ids.join("\n"))
        }
    }
}

fn only_task(alloc: &Value) -> Result<String> {
    let tasks: Vec<&String> = entries(&alloc["TaskStates"]).map(|(task, _)| task).collect();
    match tasks.as_slice() {
        [] => bail!("the allocation has not started a task yet; `meshctl alloc status` tells why"),
        [task] => Ok((*task).clone()),
        several => {
            bail!("name one of the tasks: {}", several.iter().map(|task| task.as_str()).collect::<Vec<_>>().join(", "))
        }
    }
}

/// Streams, or keeps only the last `lines`.
fn copy(mut body: Box<dyn Read>, lines: Option<usize>) -> Result<()> {
    let mut out = std::io::stdout().lock();
    let Some(lines) = lines else {
        let mut buffer = [0; 16 << 10];
        loop {
            let count = body.read(&mut buffer).context("the log stream broke off")?;
            if count == 0 {
                return Ok(());
            }
            out.write_all(&buffer[..count])?;
            out.flush()?;
        }
    };
    let mut whole = Vec::new();
    body.read_to_end(&mut whole).context("the log stream broke off")?;
    let whole = String::from_utf8_lossy(&whole);
    let all: Vec<&str> = whole.lines().collect();
    for line in &all[all.len().saturating_sub(lines)..] {
        writeln!(out, "{line}")?;
    }
    Ok(())
}

fn status(endpoint: &Endpoint, id: &str, json: bool) -> Result<()> {
    let alloc = resolve(endpoint, id)?;
    if json {
        print_pretty(&alloc);
        return Ok(());
    }
    println!(
        "{}",
        block(&[
            ("ID", text(&alloc, "ID")),
            ("Eval ID", short(&text(&alloc, "EvalID"))),
            ("Name", text(&alloc, "Name")),
            ("Node ID", short(&text(&alloc, "NodeID"))),
            ("Node Name", text(&alloc, "NodeName")),
            ("Job ID", text(&alloc, "JobID")),
            ("Job Version", text(&alloc["Job"], "Version")),
            ("Client Status", text(&alloc, "ClientStatus")),
            ("Client Description", text(&alloc, "ClientDescription")),
            ("Desired Status", text(&alloc, "DesiredStatus")),
            ("Desired Description", text(&alloc, "DesiredDescription")),
            ("Created", time(number(&alloc, "CreateTime"))),
            ("Modified", time(number(&alloc, "ModifyTime"))),
        ])
    );
    println!("{}", addresses(&alloc));
    for (task, state) in entries(&alloc["TaskStates"]) {
        println!("\n{}", task_text(task, state));
    }
    let id = text(&alloc, "ID");
    let found: Value = endpoint.get(&format!("/v1/client/allocation/{id}/checks"))?;
    if entries(&found).next().is_some() {
        println!("\nChecks:\n{}", checks_text(&found));
    }
    if text(&alloc, "ClientStatus") == "running" {
        // A node that cannot be asked now is no reason to show nothing.
        match endpoint.get::<Value>(&format!("/v1/client/allocation/{id}/stats")) {
            Ok(stats) => println!("\nUsage:\n{}", usage_text(&stats)),
            Err(error) => println!("\nUsage: not known ({error:#})"),
        }
    }
    Ok(())
}

fn usage_text(stats: &Value) -> String {
    let mut rows = vec![row(["Task", "CPU", "Throttled", "Memory", "Peak", "Processes"])];
    let mib = |value: &Value, key: &str| format!("{:.1} MiB", number(value, key) as f64 / 1_048_576.0);
    for (task, used) in entries(&stats["Tasks"]) {
        let (cpu, memory) = (&used["ResourceUsage"]["CpuStats"], &used["ResourceUsage"]["MemoryStats"]);
        let allowed = &used["Allowed"];
        let ticks = cpu["TotalTicks"].as_f64().unwrap_or_default();
        let (mhz, limit) = (text(allowed, "CpuMhz"), text(allowed, "MemoryMaxMB"));
        rows.push(vec![
            task.clone(),
            format!("{ticks:.0}/{mhz} MHz"),
            format!("{} periods", text(cpu, "ThrottledPeriods")),
            format!("{} of {limit} MiB", mib(memory, "Usage")),
            mib(memory, "MaxUsage"),
            text(&used["Pids"], "Count"),
        ]);
    }
    columns(&rows)
}

fn addresses(alloc: &Value) -> String {
    let network = &alloc["NetworkStatus"];
    let own = text(network, "Address");
    let mut rows = vec![row(["Label", "Node Port", "Port", "Address"])];
    for port in list(&alloc["AllocatedResources"]["Shared"]["Ports"]) {
        let (host, to) = (text(port, "Value"), text(port, "To"));
        let address = if own.is_empty() { format!("{}:{host}", text(port, "HostIP")) } else { format!("{own}:{to}") };
        rows.push(vec![text(port, "Label"), host, to, address]);
    }
    match (rows.len(), own.as_str()) {
        (1, "") => String::new(),
        (1, own) => format!("\nAllocation Address = {own}"),
        _ => format!("\nAllocation Addresses:\n{}", columns(&rows)),
    }
}

fn task_text(task: &str, state: &Value) -> String {
    let facts = block(&[
        ("Started At", text(state, "StartedAt")),
        ("Finished At", text(state, "FinishedAt")),
        ("Total Restarts", text(state, "Restarts")),
        ("Last Restart", text(state, "LastRestart")),
    ]);
    let mut rows = vec![row(["Time", "Type", "Description"])];
    for event in list(&state["Events"]).iter().rev() {
        rows.push(vec![time(number(event, "Time")), text(event, "Type"), text(event, "DisplayMessage")]);
    }
    format!(
        "Task \"{task}\" is \"{}\"\nTask Events:\n{facts}\n\nRecent Events:\n{}",
        text(state, "State"),
        columns(&rows)
    )
}
