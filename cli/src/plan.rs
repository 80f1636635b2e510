//! `meshctl job plan` and `job history -p`: what differs between two versions of a job, and what the scheduler would do.

use crate::client::{Endpoint, part};
use crate::job::failures;
use crate::job_file::JobFile;
use crate::json::{entries, list, number, print_pretty, text};
use crate::table::{block, time};
use anyhow::Result;
use serde_json::{Value, json};
use std::process::ExitCode;

const EXIT_CHANGES: u8 = 1;
const EXIT_ERROR: u8 = 255;

pub fn run(endpoint: &Endpoint, file: &JobFile, with_diff: bool) -> ExitCode {
    match plan(endpoint, file, with_diff) {
        Ok(false) => ExitCode::SUCCESS,
        Ok(true) => ExitCode::from(EXIT_CHANGES),
        Err(error) => {
            eprintln!("Error: {error:#}");
            ExitCode::from(EXIT_ERROR)
        }
    }
}

/// Whether anything would change.
fn plan(endpoint: &Endpoint, file: &JobFile, with_diff: bool) -> Result<bool> {
    let job = file.read()?;
    let request = json!({ "Job": wire::nomad::Job::from(&job), "Diff": with_diff });
    let answer: Value = endpoint.put(&format!("/v1/job/{}/plan", part(&job.id.0)), &request)?;
    if with_diff {
        println!("{}\n", shown_diff(&answer["Diff"]));
    }
    println!("Scheduler dry-run:\n{}\n", dry_run(&answer));
    let index = number(&answer, "JobModifyIndex");
    println!("Job Modify Index: {index}");
    println!("To submit the job with version verification run:\n");
    println!("meshctl job run -check-index {index} {}\n", file.arguments());
    println!(
        "When running the job with the check-index flag, the job will only be run if the\n\
         job modify index given matches the server-side version. If the index has\n\
         changed, another user has modified the job and the plan's results are\n\
         potentially invalid."
    );
    Ok(changes_something(&answer))
}

fn changes_something(answer: &Value) -> bool {
    let acts = |updates: &Value| entries(updates).any(|(name, count)| name != "Ignore" && count.as_u64() != Some(0));
    let allocs = entries(&answer["Annotations"]["DesiredTGUpdates"]).any(|(_, updates)| acts(updates));
    allocs || !matches!(answer["Diff"]["Type"].as_str(), None | Some("None"))
}

fn dry_run(answer: &Value) -> String {
    match failures(&answer["FailedTGAllocs"]) {
        none if none.is_empty() => "- All tasks successfully allocated.".to_owned(),
        failures => format!("- WARNING: Failed to place all allocations.\n{failures}"),
    }
}

/// The versions of a job, newest first.
pub fn history(endpoint: &Endpoint, id: &str, patch: bool, json: bool) -> Result<()> {
    let answer: Value = endpoint.get(&format!("/v1/job/{}/versions?diffs=true", part(id)))?;
    if json {
        print_pretty(&answer["Versions"]);
        return Ok(());
    }
    for (at, version) in list(&answer["Versions"]).iter().enumerate() {
        let blank = if at == 0 { "" } else { "\n" };
        let pairs = [
            ("Version", text(version, "Version")),
            ("Stable", text(version, "Stable")),
            ("Submit Date", time(number(version, "SubmitTime"))),
        ];
        println!("{blank}{}", block(&pairs));
        match list(&answer["Diffs"]).get(at) {
            Some(diff) if patch => println!("Diff        =\n{}", shown_diff(diff)),
            _ => {}
        }
    }
    Ok(())
}

fn shown_diff(diff: &Value) -> String {
    let mut lines = vec![format!("{}Job: \"{}\"", mark(diff), text(diff, "ID"))];
    lines.extend(body(diff, 1));
    for group in list(&diff["TaskGroups"]) {
        let updates: Vec<String> = entries(&group["Updates"]).map(|(what, count)| format!("{count} {what}")).collect();
        let updates = if updates.is_empty() { String::new() } else { format!(" ({})", updates.join(", ")) };
        lines.push(format!("{}Task Group: \"{}\"{updates}", mark(group), text(group, "Name")));
        lines.extend(body(group, 1));
        for task in list(&group["Tasks"]).iter().filter(|task| task["Type"] != "None") {
            lines.push(format!("  {}Task: \"{}\"", mark(task), text(task, "Name")));
            lines.extend(body(task, 2));
        }
    }
    lines.join("\n")
}

fn body(diff: &Value, depth: usize) -> Vec<String> {
    let indent = "  ".repeat(depth);
    let mut lines: Vec<String> =
        list(&diff["Fields"]).iter().map(|field| format!("{indent}{}", shown_field(field))).collect();
    for object in list(&diff["Objects"]) {
        lines.push(format!("{indent}{}{} {{", mark(object), text(object, "Name")));
        lines.extend(body(object, depth + 1));
        lines.push(format!("{indent}  }}"));
    }
    lines
}

fn shown_field(field: &Value) -> String {
    let (name, old, new) = (text(field, "Name"), text(field, "Old"), text(field, "New"));
    match field["Type"].as_str() {
        Some("Added") => format!("+   {name}: \"{new}\""),
        Some("Deleted") => format!("-   {name}: \"{old}\""),
        _ => format!("+/- {name}: \"{old}\" => \"{new}\""),
    }
}

fn mark(diff: &Value) -> &'static str {
    match diff["Type"].as_str() {
        Some("Added") => "+ ",
        Some("Deleted") => "- ",
        Some("Edited") => "+/- ",
        _ => "",
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_diff_is_shown_as_nomad_shows_it() {
        let diff = json!({
            "Type": "Edited", "ID": "web", "Fields": [], "Objects": [],
            "TaskGroups": [{
                "Type": "Edited", "Name": "api", "Updates": { "create": 2, "in-place update": 1 },
                "Fields": [{ "Type": "Edited", "Name": "Count", "Old": "1", "New": "3" }],
                "Objects": [],
                "Tasks": [{
                    "Type": "Edited", "Name": "t", "Fields": [],
                    "Objects": [{
                        "Type": "Edited", "Name": "Env", "Objects": [],
                        "Fields": [{ "Type": "Added", "Name": "A", "Old": "", "New": "x" }],
                    }],
                }],
            }],
        });
        let expected = "+/- Job: \"web\"\n+/- Task Group: \"api\" (2 create, 1 in-place update)\n  +/- Count: \"1\" => \"3\"\n  \
                        +/- Task: \"t\"\n    +/- Env {\n      +   A: \"x\"\n      }";
        assert_eq!(shown_diff(&diff), expected);
    }

    #[test]
    fn only_what_stays_is_no_change() {
        let answer = |place: u64, kind: &str| {
            let updates = json!({ "DesiredTGUpdates": { "api": { "Ignore": 3, "Place": place } } });
            json!({ "Annotations": updates, "Diff": { "Type": kind } })
        };
        assert!(!changes_something(&answer(0, "None")));
        assert!(changes_something(&answer(1, "None")) && changes_something(&answer(0, "Edited")));
    }
}
