//! What single values of a job may be. Job files and JSON are read by different code with different ways to point at a
//! mistake; both ask here, and the answer is the sentence a user reads.

use crate::job::{RestartPolicy, TaskGroup};
use std::time::Duration;

pub const NAME_BYTES_MAX: usize = 128;
pub const ALLOCS_PER_JOB_MAX: u32 = 50_000;
pub const PRIORITY_MAX: u8 = 100;
pub const CPU_MHZ_MIN: u64 = 1;
pub const MEMORY_MB_MIN: u64 = 10;
pub const DEFAULT_DISK_MB: u64 = 300;
pub const DEFAULT_PRIORITY: u8 = 50;
pub const DEFAULT_KILL_TIMEOUT: Duration = Duration::from_secs(5);
pub const CHECK_TIME_MIN: Duration = Duration::from_secs(1);
const RESTART_INTERVAL_MIN: Duration = Duration::from_secs(5);

const SIGNALS: [&str; 17] = [
    "SIGABRT", "SIGALRM", "SIGBUS", "SIGCHLD", "SIGCONT", "SIGHUP", "SIGILL", "SIGINT", "SIGKILL", "SIGPIPE",
    "SIGQUIT", "SIGSTOP", "SIGTERM", "SIGTRAP", "SIGUSR1", "SIGUSR2", "SIGWINCH",
];

type Rule = Result<(), String>;

/// Job ids and names, group names.
pub fn name(text: &str) -> Rule {
    if text.is_empty() {
        return Err("must not be empty".to_owned());
    }
    if text.len() > NAME_BYTES_MAX {
        return Err(format!("is longer than {NAME_BYTES_MAX} bytes"));
    }
    if text.chars().any(|c| c.is_whitespace() || c.is_control()) {
        return Err("must not contain spaces or control characters".to_owned());
    }
    Ok(())
}

/// A task's name is also a directory of its allocation.
pub fn task_name(text: &str) -> Rule {
    name(text)?;
    if text.contains(['/', '\\']) || text == "." || text == ".." || text == "alloc" {
        return Err("is used as a directory: no slashes, and not `.`, `..` or `alloc`".to_owned());
    }
    Ok(())
}

/// Service names are DNS labels.
pub fn service_name(text: &str) -> Rule {
    let label = !text.is_empty()
        && text.len() <= 63
        && text.chars().all(|c| c.is_ascii_alphanumeric() || c == '-')
        && !text.starts_with('-')
        && !text.ends_with('-');
    if label { Ok(()) } else { Err("must be 1 to 63 letters, digits and inner dashes: it is a DNS name".to_owned()) }
}

/// Port labels become part of environment variables.
pub fn port_label(text: &str) -> Rule {
    let fits = !text.is_empty() && text.len() <= 64 && text.chars().all(|c| c.is_ascii_alphanumeric() || c == '_');
    if fits { Ok(()) } else { Err("must be 1 to 64 letters, digits and underscores".to_owned()) }
}

/// A signal by name, with or without `SIG`; the answer is the full name.
pub fn signal(text: &str) -> Result<&'static str, String> {
    let upper = text.to_ascii_uppercase();
    let known = SIGNALS.iter().find(|name| **name == upper || name.strip_prefix("SIG") == Some(upper.as_str()));
    known.copied().ok_or_else(|| "is not a signal's name; use for example \"SIGTERM\"".to_owned())
}

pub fn restart(policy: &RestartPolicy) -> Rule {
    if policy.attempts == 0 {
        return Ok(());
    }
    if policy.interval < RESTART_INTERVAL_MIN {
        return Err(format!("interval must be at least {}s", RESTART_INTERVAL_MIN.as_secs()));
    }
    let spent = policy.delay.saturating_mul(policy.attempts);
    if spent > policy.interval {
        let (attempts, delay, interval) = (policy.attempts, policy.delay, policy.interval);
        return Err(format!(
            "{attempts} attempts with a delay of {delay:?} do not fit into an interval of {interval:?}"
        ));
    }
    Ok(())
}

/// What services may not hold: values that only the node could fill in.
pub fn no_interpolation(text: &str) -> Rule {
    if text.contains("${") {
        return Err("interpolation is not built yet here; write the value itself".to_owned());
    }
    Ok(())
}

/// The default name of a service, before `${…}` in it is replaced.
pub fn default_service_name(job: &str, group: &str, task: Option<&str>) -> String {
    match task {
        Some(task) => format!("{job}-{group}-{task}"),
        None => format!("{job}-{group}"),
    }
}

/// Replaces the variables that Nomad fills in at submission: `${JOB}`, `${TASKGROUP}`, `${TASK}`, `${BASE}`.
pub fn fill_service_name(text: &str, job: &str, group: &str, task: Option<&str>) -> String {
    let base = default_service_name(job, group, task);
    text.replace("${JOB}", job)
        .replace("${TASKGROUP}", group)
        .replace("${TASK}", task.unwrap_or("group"))
        .replace("${BASE}", &base)
}

/// The first name that appears twice.
pub fn duplicate<'a>(names: impl IntoIterator<Item = &'a str>) -> Option<&'a str> {
    let mut seen = std::collections::BTreeSet::new();
    names.into_iter().find(|name| !seen.insert(*name))
}

pub fn alloc_total(groups: &[TaskGroup]) -> Rule {
    let total = groups.iter().fold(0u32, |sum, group| sum.saturating_add(group.count));
    if total > ALLOCS_PER_JOB_MAX {
        return Err(format!("the counts add up to {total}; a job may have {ALLOCS_PER_JOB_MAX} allocations"));
    }
    Ok(())
}
