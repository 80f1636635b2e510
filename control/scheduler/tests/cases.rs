//! Scripts under tests/cases: commands, a line of four dashes, what they print, a blank line. A command that starts with
//! white space continues the line before. `SCHEDULER_CASES=update cargo test -p scheduler --test cases` records anew what
//! is printed; review it as you would review code.
//!
//! ```text
//! new             an empty cluster
//! node NAME [cpu= memory= disk= dc= pool= class= attr.KEY= meta.KEY= driver.NAME=healthy|unhealthy eligible=no]
//! status NODE ready|suspect|disconnected|down
//! eligible NODE yes|no
//! set algorithm|preemption VALUE…     spread or binpack; the kinds that may preempt, or none
//! job NAME [type=system|batch|sysbatch dc=a,b pool= priority= constraint=LEFT|OP|RIGHT affinity=LEFT|OP|RIGHT|WEIGHT
//!           spread=ATTRIBUTE[|WEIGHT[|VALUE:PERCENT,…]] meta.KEY= depends=JOB[/GROUP] budget=N]
//!     group NAME [count= cpu= memory= disk= command= env.KEY= constraint= affinity= spread=
//!                 port.LABEL=dynamic|static:N|to:N network=bridge service=NAME
//!                 update.max_parallel= update.canary= update.order= update.auto_revert=yes update.auto_promote=yes
//!                 reschedule=never|FUNCTION:DELAY[:MAX] attempts=N/INTERVAL lost_after= replace=no reconcile=
//!                 migrate=]…
//! stop JOB [purge]
//! report ALLOC|* pending|running|unhealthy|failed|complete      advance 30s       reboot NODE (a new session)
//! rebalance [N]   which allocations would move and why, N at most
//! move ALLOC…     plans for the job of the first as after a rebalance that chose them
//! scores JOB      how every node suits the next allocation of each group, and why not
//! plan JOB        plans twice: prints and applies the first plan, and says so if the second one would change anything
//! watch JOB       takes the step that is due in the job's deployment and shows how the deployment stands
//! promote JOB     promotes its canaries        pause|resume|fail JOB
//! drain NODE SECONDSs|never|force|off          a node's drain
//! allocs          what is live and where
//! ```
#![cfg(test)]

mod common;

use common::{Cluster, add_port, checked_service, group, job, node};
use model::{
    Affinity, Allocation, ClientStatus, Command, Constraint, DelayFunction, Dependency, DeploymentStatus,
    DeploymentUpdate, DesiredStatus, DisruptionBudget, Drain, DriverStatus, Eligibility, ExecConfig, Health, Job,
    JobId, JobKind, Network, NetworkMode, Node, NodeStatus, Operator, Plan, Reconcile, ReschedulePolicy, Spread,
    TaskDriver, TaskGroup, Timestamp, UpdateOrder, UpdatePolicy,
};
use scheduler::{Algorithm, Preemption};
use std::collections::BTreeMap;
use std::fmt::Write as _;
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

#[test]
fn scripts_print_what_they_recorded() {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/cases");
    let mut files: Vec<_> = std::fs::read_dir(&folder).unwrap().map(|entry| entry.unwrap().path()).collect();
    files.sort();
    assert!(!files.is_empty(), "no scripts in {}", folder.display());
    let update = std::env::var("SCHEDULER_CASES").is_ok_and(|value| value == "update");
    let mut wrong = Vec::new();
    for file in files {
        let script = std::fs::read_to_string(&file).unwrap();
        let printed = run(&script);
        if update {
            std::fs::write(&file, printed).unwrap();
        } else if printed != script {
            wrong.push(format!("=== {}\n{}", file.display(), first_difference(&script, &printed)));
        }
    }
    assert!(wrong.is_empty(), "\n{}", wrong.join("\n"));
}

/// The script with what its commands print now.
fn run(script: &str) -> String {
    let mut cluster = Cluster::new(1);
    let mut stanzas = Vec::new();
    for stanza in script.trim_end().split("\n\n") {
        let commands = stanza.split("\n----").next().unwrap_or_default();
        let mut text = commands.to_owned();
        let joined = commands.replace("\n ", " ");
        let lines = joined.lines().filter(|line| !line.starts_with('#') && !line.is_empty());
        let output: String = lines.map(|line| execute(&mut cluster, line)).collect();
        if !output.is_empty() {
            write!(text, "\n----\n{}", output.trim_end()).unwrap();
        }
        stanzas.push(text);
    }
    stanzas.join("\n\n") + "\n"
}

fn first_difference(expected: &str, printed: &str) -> String {
    let lines = expected.lines().map(Some).chain(std::iter::repeat(None));
    let differing = lines.zip(printed.lines()).enumerate().find(|(_, (expected, printed))| *expected != Some(*printed));
    match differing {
        Some((i, (expected, _))) => {
            let shown: Vec<&str> = printed.lines().skip(i).take(12).collect();
            format!("line {}: expected {expected:?}, printed:\n{}", i + 1, shown.join("\n"))
        }
        None => "the script expects more than was printed".to_owned(),
    }
}

fn execute(cluster: &mut Cluster, line: &str) -> String {
    let words: Vec<&str> = line.split_whitespace().collect();
    match words.as_slice() {
        ["node", name, settings @ ..] => {
            let described = described_node(name, settings);
            let eligible = described.eligibility;
            cluster.register_node(described);
            assert_eq!(cluster.node_named(name).eligibility, eligible);
        }
        ["reboot", name] => {
            let again = Node::clone(&cluster.node_named(name));
            cluster.register_node(again);
        }
        ["status", name, status] => cluster.set_status(name, node_status(status)),
        ["job", name, settings @ ..] => return register(cluster, described_job(name, settings)),
        ["stop", name] => cluster.stop_job(name, false),
        ["stop", name, "purge"] => cluster.stop_job(name, true),
        ["report", name, status] => report(cluster, name, status),
        ["advance", time] => {
            cluster.advance(Duration::from_secs(time.strip_suffix('s').unwrap().parse().unwrap()));
        }
        ["watch", name] => return watch(cluster, name),
        ["promote", name] => return step(cluster, name, |update| update.promote = vec!["api".to_owned()]),
        ["pause", name] => return step(cluster, name, |update| update.status = Some(DeploymentStatus::Paused)),
        ["resume", name] => return step(cluster, name, |update| update.status = Some(DeploymentStatus::Running)),
        ["fail", name] => return step(cluster, name, |update| update.status = Some(DeploymentStatus::Failed)),
        ["eligible", name, value] => {
            let node_id = cluster.node_named(name).id;
            let eligibility = if *value == "yes" { Eligibility::Eligible } else { Eligibility::Ineligible };
            cluster.must(Command::SetNodeEligibility { node_id, eligibility, evals: Vec::new() });
        }
        ["drain", name, deadline] => drain(cluster, name, deadline),
        ["plan", name] => return plan(cluster, name),
        ["allocs"] => return allocs(cluster),
        ["new"] => *cluster = Cluster::new(1),
        ["set", what, values @ ..] => set(cluster, what, values),
        ["rebalance"] => return rebalance(cluster, 100),
        ["rebalance", most] => return rebalance(cluster, most.parse().unwrap()),
        ["move", names @ ..] => return moved(cluster, names),
        ["scores", job] => return scores(cluster, job),
        _ => panic!("what is {line:?}?"),
    }
    String::new()
}

fn described_node(name: &str, settings: &[&str]) -> Node {
    let mut node = node(name);
    for (key, value) in settings.iter().map(|setting| setting.split_once('=').unwrap()) {
        match key.split_once('.') {
            Some(("attr", key)) => drop(node.attributes.insert(key.to_owned(), value.to_owned())),
            Some(("meta", key)) => drop(node.meta.insert(key.to_owned(), value.to_owned())),
            Some(("driver", name)) => {
                let healthy = value == "healthy";
                let status = DriverStatus { detected: true, healthy, description: String::new() };
                node.drivers.insert(name.to_owned(), status);
            }
            _ => set_node(&mut node, key, value),
        }
    }
    node
}

fn set_node(node: &mut Node, key: &str, value: &str) {
    match key {
        "cpu" => node.resources.cpu_mhz = value.parse().unwrap(),
        "memory" => node.resources.memory_mb = value.parse().unwrap(),
        "disk" => node.resources.disk_mb = value.parse().unwrap(),
        "dc" => node.datacenter = value.to_owned(),
        "pool" => node.pool = value.to_owned(),
        "class" => node.class = value.to_owned(),
        "eligible" if value == "no" => node.eligibility = Eligibility::Ineligible,
        _ => panic!("what is {key}={value} of a node?"),
    }
}

fn described_job(name: &str, settings: &[&str]) -> Job {
    let mut parts = settings.split(|word| *word == "group");
    let mut job = job(name, Vec::new());
    for (key, value) in parts.next().unwrap_or_default().iter().map(|setting| setting.split_once('=').unwrap()) {
        match key {
            "dc" => job.datacenters = value.split(',').map(str::to_owned).collect(),
            "pool" => job.node_pool = value.to_owned(),
            "type" => job.kind = JobKind::parse(value).unwrap(),
            "priority" => job.priority = value.parse().unwrap(),
            "constraint" => job.constraints.push(constraint(value)),
            "affinity" => job.affinities.push(affinity(value)),
            "spread" => job.spreads.push(spread(value)),
            "depends" => job.depends_on.push(dependency(value)),
            "budget" => job.disruption = Some(DisruptionBudget { max_unavailable: value.parse().unwrap() }),
            _ => drop(job.meta.insert(key.strip_prefix("meta.").unwrap().to_owned(), value.to_owned())),
        }
    }
    job.groups = parts.map(|words| described_group(words, job.kind)).collect();
    job
}

fn described_group(words: &[&str], kind: JobKind) -> TaskGroup {
    let mut group = TaskGroup { reschedule: ReschedulePolicy::default_of(kind), ..group(words[0], 1) };
    for (key, value) in words[1..].iter().map(|setting| setting.split_once('=').unwrap()) {
        match key.split_once('.') {
            Some(("update", key)) => set_update(group.update.get_or_insert_default(), key, value),
            Some(("env", key)) => drop(group.tasks[0].env.insert(key.to_owned(), value.to_owned())),
            Some(("port", label)) => match value.split_once(':') {
                Some(("static", port)) => add_port(&mut group, label, Some(port.parse().unwrap()), None),
                Some(("to", port)) => add_port(&mut group, label, None, Some(port.parse().unwrap())),
                _ => add_port(&mut group, label, None, None),
            },
            _ => set_group(&mut group, key, value),
        }
    }
    group
}

fn set_update(policy: &mut UpdatePolicy, key: &str, value: &str) {
    match key {
        "max_parallel" => policy.max_parallel = value.parse().unwrap(),
        "canary" => policy.canary = value.parse().unwrap(),
        "order" => policy.order = UpdateOrder::parse(value).unwrap(),
        "auto_revert" => policy.auto_revert = value == "yes",
        "auto_promote" => policy.auto_promote = value == "yes",
        _ => panic!("what is update.{key}={value}?"),
    }
}

fn drain(cluster: &mut Cluster, name: &str, deadline: &str) {
    let deadline = match deadline {
        "off" => None,
        "never" => Some(Timestamp::NEVER),
        "force" => Some(cluster.now),
        secs => Some(cluster.now.plus(Duration::from_secs(secs.strip_suffix('s').unwrap().parse().unwrap()))),
    };
    let drain = deadline.map(|deadline| Drain { started_at: cluster.now, deadline, ignore_system: false });
    let node_id = cluster.node_named(name).id;
    let eligibility = Eligibility::Eligible;
    cluster.must(Command::SetNodeDrain { node_id, drain, eligibility, evals: Vec::new() });
}

fn watch(cluster: &mut Cluster, job: &str) -> String {
    let id = JobId(job.to_owned());
    let deployment = cluster.catalog.latest_deployment(&id).unwrap().clone();
    let allocs = cluster.catalog.allocs_of_job(&id).map(Arc::as_ref);
    let update = scheduler::watch(&deployment, cluster.catalog.job_versions(&id), allocs, cluster.now);
    step(cluster, job, |next| *next = update)
}

/// How the deployment stands after the step, or why there was none.
fn step(cluster: &mut Cluster, job: &str, change: impl FnOnce(&mut DeploymentUpdate)) -> String {
    let id = JobId(job.to_owned());
    let mut update = DeploymentUpdate::of(cluster.catalog.latest_deployment(&id).unwrap().id);
    change(&mut update);
    if !update.changes_nothing() {
        let eval = cluster.eval(job);
        if let Err(refusal) = cluster.apply(Command::UpdateDeployment { update, eval }) {
            return format!("{refusal}\n");
        }
    }
    let deployment = cluster.catalog.latest_deployment(&id).unwrap();
    let mut out =
        format!("v{} {}: {}\n", deployment.job_version, deployment.status.as_str(), deployment.status_description);
    for (name, group) in &deployment.groups {
        let (placed, healthy, unhealthy) = (group.placed, group.healthy, group.unhealthy);
        let canaries = if group.desired_canaries > 0 {
            format!(", {} canaries, promoted {}", group.desired_canaries, group.promoted)
        } else {
            String::new()
        };
        let total = group.desired_total;
        writeln!(out, "  {name}: {placed} placed, {healthy} of {total} healthy, {unhealthy} unhealthy{canaries}")
            .unwrap();
    }
    out
}

fn set_group(group: &mut TaskGroup, key: &str, value: &str) {
    match key {
        "migrate" => group.migrate_max_parallel = value.parse().unwrap(),
        "count" => group.count = value.parse().unwrap(),
        "cpu" => group.tasks[0].resources.cpu_mhz = value.parse().unwrap(),
        "memory" => group.tasks[0].resources.memory_mb = value.parse().unwrap(),
        "disk" => group.disk_mb = value.parse().unwrap(),
        "command" => {
            group.tasks[0].driver = TaskDriver::Exec(ExecConfig { command: value.to_owned(), ..ExecConfig::default() })
        }
        "constraint" => group.constraints.push(constraint(value)),
        "affinity" => group.affinities.push(affinity(value)),
        "spread" => group.spreads.push(spread(value)),
        "network" => {
            group.network.get_or_insert_with(|| Network::of(NetworkMode::Bridge, Vec::new())).mode = NetworkMode::Bridge
        }
        "reschedule" => group.reschedule = reschedule(value),
        "attempts" => {
            let (attempts, interval) = value.split_once('/').unwrap();
            let (attempts, interval) = (attempts.parse().unwrap(), seconds(interval));
            group.reschedule = ReschedulePolicy { attempts, interval, unlimited: false, ..group.reschedule };
        }
        "lost_after" => group.disconnect.lost_after = seconds(value),
        "replace" => group.disconnect.replace = value != "no",
        "reconcile" => group.disconnect.reconcile = Reconcile::parse(value).unwrap(),
        "service" => group.services.push(checked_service(value)),
        _ => panic!("what is {key}={value} of a group?"),
    }
}

fn constraint(text: &str) -> Constraint {
    let parts: Vec<&str> = text.splitn(3, '|').collect();
    Constraint {
        attribute: parts[0].to_owned(),
        operator: Operator::parse(parts[1]).unwrap(),
        value: parts.get(2).copied().unwrap_or_default().to_owned(),
    }
}

fn affinity(text: &str) -> Affinity {
    let parts: Vec<&str> = text.split('|').collect();
    let operator = Operator::parse(parts[1]).unwrap();
    Affinity { attribute: parts[0].to_owned(), operator, value: parts[2].to_owned(), weight: parts[3].parse().unwrap() }
}

fn spread(text: &str) -> Spread {
    let mut parts = text.split('|');
    let attribute = parts.next().unwrap().to_owned();
    let weight = parts.next().map_or(100, |weight| weight.parse().unwrap());
    let target = |text: &str| {
        let (value, percent) = text.split_once(':').unwrap();
        (value.to_owned(), percent.parse().unwrap())
    };
    Spread {
        attribute,
        weight,
        targets: parts.next().map_or_else(BTreeMap::new, |all| all.split(',').map(target).collect()),
    }
}

fn dependency(text: &str) -> Dependency {
    let (job, group) = text.split_once('/').map_or((text, None), |(job, group)| (job, Some(group.to_owned())));
    Dependency { job: job.to_owned(), group }
}

/// `never`, or for example `exponential:30s:1h` without a limit of attempts.
fn reschedule(text: &str) -> ReschedulePolicy {
    if text == "never" {
        return ReschedulePolicy::NEVER;
    }
    let mut parts = text.split(':');
    let delay_function = DelayFunction::parse(parts.next().unwrap()).unwrap();
    let delay = seconds(parts.next().unwrap());
    let max_delay = parts.next().map_or(Duration::ZERO, seconds);
    ReschedulePolicy { delay_function, delay, max_delay, ..ReschedulePolicy::SERVICE }
}

fn seconds(text: &str) -> Duration {
    Duration::from_secs(text.strip_suffix('s').unwrap().parse().unwrap())
}

fn set(cluster: &mut Cluster, what: &str, values: &[&str]) {
    match what {
        "algorithm" => cluster.settings.algorithm = Algorithm::parse(values[0]).unwrap(),
        "preemption" => {
            let allowed = |kind: JobKind| values.contains(&kind.as_str());
            cluster.settings.preemption = Preemption {
                service: allowed(JobKind::Service),
                batch: allowed(JobKind::Batch),
                system: allowed(JobKind::System),
                sysbatch: allowed(JobKind::Sysbatch),
            };
        }
        _ => panic!("what is {what:?}?"),
    }
}

fn rebalance(cluster: &Cluster, most: usize) -> String {
    let jobs: Vec<_> = cluster.catalog.jobs().cloned().collect();
    let moves = scheduler::rebalance(&cluster.state(), &jobs, &cluster.settings, most, cluster.seed);
    let line = |step: &scheduler::Move| {
        let alloc = cluster.catalog.alloc(step.alloc).unwrap();
        let to = cluster.catalog.node(step.to).unwrap();
        format!(
            "{} from {} to {}: {:.2} instead of {:.2}\n",
            alloc.name(),
            alloc.node_name,
            to.name,
            step.better,
            step.now
        )
    };
    if moves.is_empty() { "nothing to move\n".to_owned() } else { moves.iter().map(line).collect() }
}

fn moved(cluster: &mut Cluster, names: &[&str]) -> String {
    let chosen: Vec<_> = names.iter().map(|name| newest_named(cluster, name)).collect();
    cluster.moving = chosen.iter().map(|alloc| alloc.id).collect();
    let text = plan(cluster, &chosen[0].job_id().0.clone());
    cluster.moving.clear();
    text
}

fn scores(cluster: &mut Cluster, job: &str) -> String {
    let eval = cluster.eval(job);
    let state = cluster.state();
    let spec = cluster.catalog.job(&eval.job_id).unwrap();
    let view = cluster.view(&state, &eval);
    let mut out = String::new();
    for group in &spec.groups {
        for verdict in scheduler::scores(&view, spec, group, cluster.seed) {
            write!(out, "{} {}:", group.name, verdict.node_name).unwrap();
            let parts = verdict.parts.iter().map(|(name, part)| format!(" {name} {part:.2}"));
            let reasons = verdict.filtered.iter().map(|reason| format!(" [{reason}]"));
            let exhausted = verdict.exhausted.iter().map(|dimension| format!(" {dimension} exhausted"));
            let all: String = parts.chain(reasons).chain(exhausted).collect();
            let total = verdict.score.map_or(String::new(), |score| format!(" = {score:.2}"));
            writeln!(out, "{all}{total}").unwrap();
        }
    }
    out
}

fn node_status(text: &str) -> NodeStatus {
    match text {
        "ready" => NodeStatus::Ready,
        "suspect" => NodeStatus::Suspect,
        "disconnected" => NodeStatus::Disconnected,
        "down" => NodeStatus::Down,
        _ => panic!("what is status {text:?}?"),
    }
}

fn register(cluster: &mut Cluster, job: Job) -> String {
    let id = job.id.clone();
    cluster.register_job(job);
    format!("{id} version {}\n", cluster.catalog.job(&id).unwrap().version)
}

fn report(cluster: &mut Cluster, name: &str, status: &str) {
    let (client, health) = match status {
        "pending" => (ClientStatus::Pending, Health::Critical),
        "running" => (ClientStatus::Running, Health::Passing),
        "unhealthy" => (ClientStatus::Running, Health::Critical),
        "failed" => (ClientStatus::Failed, Health::Critical),
        "complete" => (ClientStatus::Complete, Health::Critical),
        _ => panic!("what is status {status:?}?"),
    };
    let wanted: Vec<_> = match name {
        "*" => cluster.live().iter().map(|alloc| alloc.id).collect(),
        "stopping" => {
            let stopping = |alloc: &&Arc<Allocation>| alloc.desired == DesiredStatus::Stop;
            cluster.live().iter().filter(stopping).map(|alloc| alloc.id).collect()
        }
        name => vec![newest_named(cluster, name).id],
    };
    wanted.into_iter().for_each(|id| cluster.report(id, client, health));
}

/// The newest allocation of a name such as `web.api[0]`.
fn newest_named(cluster: &Cluster, name: &str) -> Arc<Allocation> {
    let named = cluster.catalog.allocs().filter(|alloc| alloc.name() == name);
    named.max_by_key(|alloc| (alloc.created_at_index, alloc.id)).unwrap_or_else(|| panic!("no {name}")).clone()
}

fn plan(cluster: &mut Cluster, job: &str) -> String {
    let names: Vec<_> = cluster.catalog.allocs().map(|alloc| (alloc.id, alloc.clone())).collect();
    let name = |id| names.iter().find(|(known, _)| *known == id).map(|(_, alloc)| alloc).unwrap();
    let (plan, applied, eval) = cluster.plan_and_apply(job);
    let mut out = String::new();
    for stop in &plan.stops {
        let (alloc, how) =
            (name(stop.alloc_id), stop.client.map_or(String::new(), |client| format!(", {}", client.as_str())));
        writeln!(out, "stop {} on {}{how}: {}", alloc.name(), alloc.node_name, stop.reason).unwrap();
    }
    for id in &plan.in_place {
        writeln!(out, "in place {} on {}", name(*id).name(), name(*id).node_name).unwrap();
    }
    for alloc in &plan.placements {
        write!(out, "place {} v{} on {}", alloc.name(), alloc.job.version, alloc.node_name).unwrap();
        let dynamic =
            |port: u16| if (20_000..=32_000).contains(&port) { "dynamic".to_owned() } else { port.to_string() };
        alloc.ports.iter().for_each(|port| write!(out, " {}={}", port.label, dynamic(port.host_port)).unwrap());
        let again = if alloc.reschedules > 0 { format!(" reschedule {}", alloc.reschedules) } else { String::new() };
        writeln!(out, "{again}").unwrap();
    }
    out + &unplaced(cluster, &plan) + &conclusion(cluster, job, &applied, &eval)
}

fn unplaced(cluster: &Cluster, plan: &Plan) -> String {
    let mut out = String::new();
    for (group, failure) in &plan.failures {
        let counts = (failure.nodes_evaluated, failure.nodes_filtered, failure.nodes_exhausted);
        writeln!(out, "no place for {group}: {} nodes, {} filtered, {} exhausted", counts.0, counts.1, counts.2)
            .unwrap();
        let reasons = failure.constraints_filtered.iter().chain(&failure.dimensions_exhausted);
        reasons.for_each(|(reason, nodes)| writeln!(out, "  {nodes} {reason}").unwrap());
        writeln!(out, "  queued {}, {} failed alike", plan.queued[group], failure.coalesced).unwrap();
    }
    if let Some(time) = plan.follow_up_at {
        writeln!(out, "again in {}s", time.since(cluster.now).as_secs()).unwrap();
    }
    out
}

fn conclusion(cluster: &mut Cluster, job: &str, applied: &model::Applied, eval: &model::Evaluation) -> String {
    let mut out = format!("{}\n", eval.status.as_str());
    if !applied.dropped.is_empty() {
        writeln!(out, "dropped {}", applied.dropped.len()).unwrap();
    }
    let again = cluster.eval(job);
    if !cluster.plan(&again).is_noop() {
        writeln!(out, "a second plan is not empty: {:?}", cluster.plan(&again)).unwrap();
    }
    out
}

fn allocs(cluster: &Cluster) -> String {
    let mut lines: Vec<String> = cluster
        .live()
        .iter()
        .map(|alloc| {
            let (desired, client) = (alloc.desired.as_str(), alloc.client.as_str());
            format!("{} v{} on {} {desired} {client}\n", alloc.name(), alloc.job.version, alloc.node_name)
        })
        .collect();
    lines.sort();
    lines.concat()
}
