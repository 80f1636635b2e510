//! `meshctl job`: register a job file, follow its evaluation, show and stop jobs.

use crate::client::{Endpoint, part};
use crate::job_file::JobFile;
use crate::json::{entries, list, now, number, print_pretty, text};
use crate::table::{ago, block, columns, row, short, time};
use crate::{deployment, plan};
use anyhow::{Context, Result, bail};
use base64::Engine;
use base64::prelude::BASE64_STANDARD;
use clap::Subcommand;
use serde_json::{Value, json};
use std::io::Read;
use std::path::PathBuf;
use std::process::ExitCode;
use std::time::{Duration, SystemTime};

/// `job run`: accepted, but something could not be placed.
const EXIT_UNPLACED: u8 = 2;

const POLL: Duration = Duration::from_millis(200);

#[derive(Subcommand)]
pub enum Command {
    /// Register a job file and follow its evaluation; exit code 2 when something could not be placed
    Run {
        /// Return as soon as the job is registered
        #[arg(long)]
        detach: bool,
        /// Print the job as JSON and register nothing
        #[arg(long)]
        output: bool,
        /// Register only if the job's modify index is still this one, as `job plan` shows it; 0 for a new job
        #[arg(long, value_name = "INDEX")]
        check_index: Option<u64>,
        #[command(flatten)]
        file: JobFile,
    },
    /// Show what `job run` would change; exit code 0 for nothing, 1 for something, 255 for an error
    Plan {
        /// Leave out what differs from the registered job
        #[arg(long)]
        no_diff: bool,
        #[command(flatten)]
        file: JobFile,
    },
    /// Check a job file without registering it
    Validate {
        #[command(flatten)]
        file: JobFile,
    },
    /// List jobs, or show one
    Status {
        #[arg(long)]
        json: bool,
        id: Option<String>,
    },
    /// Print a registered job as JSON
    Inspect { id: String },
    /// List a job's allocations
    Allocs { id: String },
    /// Stop a job's allocations
    Stop {
        /// Forget the job as well
        #[arg(long)]
        purge: bool,
        #[arg(long)]
        detach: bool,
        id: String,
    },
    /// Change the count of a group
    Scale {
        #[arg(long)]
        detach: bool,
        id: String,
        /// The group, if the job has several, and the count
        #[arg(num_args = 1..=2, required = true)]
        group_and_count: Vec<String>,
    },
    /// Register an older version of a job again
    Revert {
        #[arg(long)]
        detach: bool,
        id: String,
        version: u64,
    },
    /// List a job's versions
    History {
        /// Show what each version changed
        #[arg(short)]
        patch: bool,
        #[arg(long)]
        json: bool,
        id: String,
    },
    /// Promote the canaries of a job's newest deployment
    Promote {
        /// Only these groups
        #[arg(long)]
        group: Vec<String>,
        #[arg(long)]
        detach: bool,
        id: String,
    },
    /// Make a job from a parameterized one
    Dispatch {
        /// `key=value` for the new job's meta; may be repeated
        #[arg(long)]
        meta: Vec<String>,
        /// Repeated with the same token, it makes no second job
        #[arg(long, default_value = "")]
        idempotency_token: String,
        /// Stands in the new job's id
        #[arg(long, default_value = "")]
        id_prefix_template: String,
        #[arg(long)]
        detach: bool,
        id: String,
        /// A file with the payload, at most 16 KiB, or `-` for standard input
        payload: Option<PathBuf>,
    },
    /// Launch a periodic job now
    #[command(subcommand)]
    Periodic(Periodic),
    /// Look at a job again
    Eval {
        #[arg(long)]
        detach: bool,
        id: String,
    },
    /// Replace all of a job's allocations by new ones of the same specification, as its update policy says
    Restart {
        #[arg(long)]
        detach: bool,
        id: String,
    },
    /// List a job's deployments
    Deployments {
        #[arg(long)]
        json: bool,
        id: String,
    },
}

#[derive(Subcommand)]
pub enum Periodic {
    /// Launch the job at this moment, whatever its calendar says
    Force {
        #[arg(long)]
        detach: bool,
        id: String,
    },
}

pub fn run(endpoint: &Endpoint, command: Command) -> Result<ExitCode> {
    let done = |result: Result<()>| result.map(|()| ExitCode::SUCCESS);
    match command {
        Command::Run { detach, output, check_index, file } => register(endpoint, &file, detach, output, check_index),
        Command::Plan { no_diff, file } => Ok(plan::run(endpoint, &file, !no_diff)),
        Command::Scale { detach, id, group_and_count } => scale(endpoint, &id, &group_and_count, detach),
        Command::Revert { detach, id, version } => revert(endpoint, &id, version, detach),
        Command::History { patch, json, id } => done(plan::history(endpoint, &id, patch, json)),
        Command::Promote { group, detach, id } => promote(endpoint, &id, &group, detach),
        Command::Dispatch { meta, idempotency_token, id_prefix_template, detach, id, payload } => {
            let request = dispatch_request(&meta, &id_prefix_template, payload.as_deref())?;
            dispatch(endpoint, &id, &request, &idempotency_token, detach)
        }
        Command::Periodic(Periodic::Force { detach, id }) => ask(endpoint, &id, "/periodic/force", detach),
        Command::Eval { detach, id } => ask(endpoint, &id, "/evaluate", detach),
        Command::Restart { detach, id } => restart(endpoint, &id, detach),
        Command::Deployments { json, id } => done(deployment::list_of_job(endpoint, &id, json)),
        Command::Validate { file } => done(validate(&file)),
        Command::Status { json, id: Some(id) } => done(show(endpoint, &id, json)),
        Command::Status { json, id: None } => done(status(endpoint, json)),
        Command::Inspect { id } => done(inspect(endpoint, &id)),
        Command::Allocs { id } => done(allocs(endpoint, &id)),
        Command::Stop { purge, detach, id } => stop(endpoint, &id, purge, detach),
    }
}

fn register(
    endpoint: &Endpoint,
    file: &JobFile,
    detach: bool,
    output: bool,
    check_index: Option<u64>,
) -> Result<ExitCode> {
    let job = wire::nomad::Job::from(&file.read()?);
    if output {
        print_pretty(&json!({ "Job": job }));
        return Ok(ExitCode::SUCCESS);
    }
    let (enforce, index) = (check_index.is_some(), check_index.unwrap_or(0));
    let request = json!({ "Job": job, "EnforceIndex": enforce, "JobModifyIndex": index });
    let answer: Value = endpoint.put("/v1/jobs", &request)?;
    match text(&answer, "EvalID").as_str() {
        "" => {
            println!("Job registration successful: jobs are made from it when its time comes or it is dispatched");
            Ok(ExitCode::SUCCESS)
        }
        eval => follow_to_the_end(endpoint, eval, detach),
    }
}

/// Asks something of a job that makes an evaluation.
fn ask(endpoint: &Endpoint, id: &str, what: &str, detach: bool) -> Result<ExitCode> {
    let answer: Value = endpoint.put(&format!("/v1/job/{}{what}", part(id)), &json!({ "JobID": id }))?;
    follow(endpoint, &text(&answer, "EvalID"), detach)
}

fn restart(endpoint: &Endpoint, id: &str, detach: bool) -> Result<ExitCode> {
    let answer: Value = endpoint.put(&format!("/v1/mesh/job/{}/restart", part(id)), &json!({}))?;
    follow_to_the_end(endpoint, &text(&answer, "EvalID"), detach)
}

fn dispatch_request(meta: &[String], id_prefix: &str, payload: Option<&std::path::Path>) -> Result<Value> {
    let pair = |text: &String| match text.split_once('=') {
        Some((key, value)) => Ok((key.to_owned(), value.to_owned())),
        None => Err(anyhow::anyhow!("--meta {text}: write it as key=value")),
    };
    let meta: std::collections::BTreeMap<String, String> = meta.iter().map(pair).collect::<Result<_>>()?;
    let payload = BASE64_STANDARD.encode(payload.map(read_payload).transpose()?.unwrap_or_default());
    Ok(json!({ "Payload": payload, "Meta": meta, "IdPrefixTemplate": id_prefix }))
}

fn read_payload(file: &std::path::Path) -> Result<Vec<u8>> {
    let most = model::rules::PAYLOAD_BYTES_MAX;
    let reader: Box<dyn Read> = match file.to_str() {
        Some("-") => Box::new(std::io::stdin()),
        _ => Box::new(std::fs::File::open(file).with_context(|| format!("could not open {}", file.display()))?),
    };
    let mut payload = Vec::new();
    reader.take(most as u64 + 1).read_to_end(&mut payload).context("could not read the payload")?;
    if payload.len() > most {
        bail!("the payload is larger than {most} bytes; hand over where to find it instead");
    }
    Ok(payload)
}

fn dispatch(endpoint: &Endpoint, id: &str, request: &Value, token: &str, detach: bool) -> Result<ExitCode> {
    let path = format!("/v1/job/{}/dispatch?idempotency_token={}", part(id), part(token));
    let answer: Value = endpoint.put(&path, request)?;
    let eval = text(&answer, "EvalID");
    println!(
        "{}\n",
        block(&[("Dispatched Job ID", text(&answer, "DispatchedJobID")), ("Evaluation ID", short(&eval))])
    );
    match eval.is_empty() {
        // The token had made it before.
        true => Ok(ExitCode::SUCCESS),
        false if detach => Ok(ExitCode::SUCCESS),
        false => follow(endpoint, &eval, false),
    }
}

fn scale(endpoint: &Endpoint, id: &str, group_and_count: &[String], detach: bool) -> Result<ExitCode> {
    let (group, count) = match group_and_count {
        [group, count] => (Some(group), count),
        [count] => (None, count),
        _ => bail!("give the count, or the group and the count"),
    };
    let count: u32 = count.parse().with_context(|| format!("{count} is not a count"))?;
    let target: std::collections::BTreeMap<&str, &String> = group.into_iter().map(|group| ("Group", group)).collect();
    let request = json!({ "Count": count, "Target": target });
    let answer: Value = endpoint.put(&format!("/v1/job/{}/scale", part(id)), &request)?;
    follow(endpoint, &text(&answer, "EvalID"), detach)
}

fn revert(endpoint: &Endpoint, id: &str, version: u64, detach: bool) -> Result<ExitCode> {
    let request = json!({ "JobID": id, "JobVersion": version });
    let answer: Value = endpoint.put(&format!("/v1/job/{}/revert", part(id)), &request)?;
    follow(endpoint, &text(&answer, "EvalID"), detach)
}

fn promote(endpoint: &Endpoint, id: &str, groups: &[String], detach: bool) -> Result<ExitCode> {
    let latest: Value = endpoint.get(&format!("/v1/job/{}/deployment", part(id)))?;
    if latest.is_null() {
        bail!("job {id} has no deployment to promote");
    }
    let eval = deployment::promote(endpoint, &text(&latest, "ID"), groups)?;
    follow(endpoint, &eval, detach)
}

fn validate(file: &JobFile) -> Result<()> {
    file.read()?;
    println!("Job validation successful");
    Ok(())
}

fn stop(endpoint: &Endpoint, id: &str, purge: bool, detach: bool) -> Result<ExitCode> {
    let answer: Value = endpoint.delete(&format!("/v1/job/{}?purge={purge}", part(id)))?;
    follow(endpoint, &text(&answer, "EvalID"), detach)
}

/// Prints what becomes of an evaluation, and then of the deployment that it began or went on with.
fn follow_to_the_end(endpoint: &Endpoint, eval_id: &str, detach: bool) -> Result<ExitCode> {
    let code = follow(endpoint, eval_id, detach)?;
    if detach || code == ExitCode::FAILURE {
        return Ok(code);
    }
    let eval: Value = endpoint.get(&format!("/v1/evaluation/{eval_id}"))?;
    let id = text(&eval, "JobID");
    let job: Value = endpoint.get(&format!("/v1/job/{}", part(&id)))?;
    let latest: Value = endpoint.get(&format!("/v1/job/{}/deployment", part(&id)))?;
    if latest.is_null() || latest["JobVersion"] != job["Version"] {
        return Ok(code);
    }
    match deployment::follow(endpoint, &text(&latest, "ID"))? {
        true => Ok(code),
        false => Ok(ExitCode::FAILURE),
    }
}

/// Prints what becomes of an evaluation until it has ended.
pub(crate) fn follow(endpoint: &Endpoint, eval_id: &str, detach: bool) -> Result<ExitCode> {
    if detach {
        println!("Evaluation ID: {eval_id}");
        return Ok(ExitCode::SUCCESS);
    }
    println!("==> {}: Monitoring evaluation \"{}\"", stamp(), short(eval_id));
    let mut last = String::new();
    let eval = loop {
        let eval: Value = endpoint.get(&format!("/v1/evaluation/{eval_id}"))?;
        let status = text(&eval, "Status");
        if status != last && !last.is_empty() {
            println!("    Evaluation status changed: \"{last}\" -> \"{status}\"");
        }
        if status != "pending" {
            break eval;
        }
        last = status;
        std::thread::sleep(POLL);
    };
    for alloc in list(&endpoint.get(&format!("/v1/evaluation/{eval_id}/allocations"))?) {
        let (id, node, group) = (text(alloc, "ID"), text(alloc, "NodeID"), text(alloc, "TaskGroup"));
        println!("    Allocation \"{}\" created: node \"{}\", group \"{group}\"", short(&id), short(&node));
    }
    println!("==> {}: Evaluation \"{}\" finished with status \"{}\"", stamp(), short(eval_id), text(&eval, "Status"));
    Ok(ended(&eval))
}

fn ended(eval: &Value) -> ExitCode {
    let failures = failures(&eval["FailedTGAllocs"]);
    if !failures.is_empty() {
        println!("{failures}");
        println!("    Evaluation waiting for additional capacity to place remainder");
        return ExitCode::from(EXIT_UNPLACED);
    }
    match eval["Status"].as_str() {
        Some("complete") => ExitCode::SUCCESS,
        _ => {
            println!("    {}", text(eval, "StatusDescription"));
            ExitCode::FAILURE
        }
    }
}

/// The reasons as Nomad words them, one line each.
pub fn failures(failed: &Value) -> String {
    let mut lines = Vec::new();
    for (group, metric) in entries(failed) {
        let count = number(metric, "CoalescedFailures") + 1;
        let plural = if count == 1 { "" } else { "s" };
        lines.push(format!("    Task Group \"{group}\" (failed to place {count} allocation{plural}):"));
        if number(metric, "NodesEvaluated") == 0 {
            lines.push("      * No nodes were eligible for evaluation".to_owned());
        }
        for (constraint, nodes) in entries(&metric["ConstraintFiltered"]) {
            lines.push(format!("      * Constraint \"{constraint}\" filtered {nodes} nodes"));
        }
        if number(metric, "NodesExhausted") > 0 {
            lines.push(format!("      * Resources exhausted on {} nodes", number(metric, "NodesExhausted")));
        }
        for (dimension, nodes) in entries(&metric["DimensionExhausted"]) {
            lines.push(format!("      * Dimension \"{dimension}\" exhausted on {nodes} nodes"));
        }
    }
    lines.join("\n")
}

pub(crate) fn stamp() -> String {
    humantime::format_rfc3339_seconds(SystemTime::now()).to_string()
}

fn status(endpoint: &Endpoint, json: bool) -> Result<()> {
    let jobs: Value = endpoint.get("/v1/jobs")?;
    if json {
        print_pretty(&jobs);
        return Ok(());
    }
    if list(&jobs).is_empty() {
        println!("No running jobs");
        return Ok(());
    }
    let mut rows = vec![row(["ID", "Type", "Priority", "Status", "Submit Date"])];
    for job in list(&jobs) {
        let cells = ["ID", "Type", "Priority", "Status"].map(|field| text(job, field));
        rows.push([cells.to_vec(), vec![time(number(job, "SubmitTime"))]].concat());
    }
    println!("{}", columns(&rows));
    Ok(())
}

fn show(endpoint: &Endpoint, id: &str, json: bool) -> Result<()> {
    let job: Value = endpoint.get(&format!("/v1/job/{}", part(id)))?;
    if json {
        print_pretty(&job);
        return Ok(());
    }
    println!(
        "{}\n",
        block(&[
            ("ID", text(&job, "ID")),
            ("Name", text(&job, "Name")),
            ("Submit Date", time(number(&job, "SubmitTime"))),
            ("Type", text(&job, "Type")),
            ("Priority", text(&job, "Priority")),
            ("Datacenters", crate::json::joined(&job["Datacenters"])),
            ("Namespace", text(&job, "Namespace")),
            ("Node Pool", text(&job, "NodePool")),
            ("Status", text(&job, "Status")),
        ])
    );
    let summary: Value = endpoint.get(&format!("/v1/job/{}/summary", part(id)))?;
    if !job["Periodic"].is_null() || !job["ParameterizedJob"].is_null() {
        println!("Children Job Summary\n{}", children_table(&summary["Children"]));
        return Ok(());
    }
    println!("Summary\n{}\n", summary_table(&summary));
    let evals: Value = endpoint.get(&format!("/v1/job/{}/evaluations", part(id)))?;
    if let Some(blocked) = list(&evals).iter().find(|eval| eval["Status"] == "blocked") {
        println!("Placement Failure\n{}\n", failures(&blocked["FailedTGAllocs"]));
    }
    let latest: Value = endpoint.get(&format!("/v1/job/{}/deployment", part(id)))?;
    if !latest.is_null() {
        println!("Latest Deployment\n{}\n", deployment::described(&latest));
    }
    println!("Allocations");
    allocs(endpoint, id)
}

fn summary_table(summary: &Value) -> String {
    let counts = ["Queued", "Starting", "Running", "Failed", "Complete", "Lost"];
    let mut rows = vec![row(["Task Group", "Queued", "Starting", "Running", "Failed", "Complete", "Lost"])];
    for (group, count) in entries(&summary["Summary"]) {
        rows.push([vec![group.clone()], counts.map(|field| number(count, field).to_string()).to_vec()].concat());
    }
    columns(&rows)
}

fn children_table(children: &Value) -> String {
    let counts = ["Pending", "Running", "Dead"];
    columns(&[row(counts), counts.map(|field| number(children, field).to_string()).to_vec()])
}

fn allocs(endpoint: &Endpoint, id: &str) -> Result<()> {
    let allocs: Value = endpoint.get(&format!("/v1/job/{}/allocations", part(id)))?;
    if list(&allocs).is_empty() {
        println!("No allocations placed");
        return Ok(());
    }
    println!("{}", alloc_table(&allocs));
    Ok(())
}

/// The newest first.
pub fn alloc_table(allocs: &Value) -> String {
    let mut sorted: Vec<&Value> = list(allocs).iter().collect();
    sorted.sort_by_key(|alloc| std::cmp::Reverse(number(alloc, "CreateIndex")));
    let heading = ["ID", "Node ID", "Task Group", "Version", "Desired", "Status", "Created", "Modified"];
    let mut rows = vec![row(heading)];
    for alloc in sorted {
        rows.push(vec![
            short(&text(alloc, "ID")),
            short(&text(alloc, "NodeID")),
            text(alloc, "TaskGroup"),
            text(alloc, "JobVersion"),
            text(alloc, "DesiredStatus"),
            text(alloc, "ClientStatus"),
            ago(number(alloc, "CreateTime"), now()),
            ago(number(alloc, "ModifyTime"), now()),
        ]);
    }
    columns(&rows)
}

fn inspect(endpoint: &Endpoint, id: &str) -> Result<()> {
    let job: Value = endpoint.get(&format!("/v1/job/{}", part(id)))?;
    print_pretty(&json!({ "Job": job }));
    Ok(())
}
