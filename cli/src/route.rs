//! `meshctl route`: what this node's kernel does with services, read from its maps by the node's agent.

use crate::client::Endpoint;
use crate::table::{columns, row, short};
use anyhow::Result;
use clap::{Args, Subcommand};
use serde::Serialize;
use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::time::{Duration, Instant};
use wire::routes::{FrontendSource, RouteBackend, RouteFrontend, RouteReport, RouteService, TraceReport};

#[derive(Args)]
#[command(args_conflicts_with_subcommands = true)]
pub struct Options {
    #[command(subcommand)]
    command: Option<Command>,
    #[arg(long)]
    json: bool,
    /// Show one service only
    service: Option<String>,
}

#[derive(Subcommand)]
enum Command {
    /// List the services, a line for each
    List {
        #[arg(long)]
        json: bool,
    },
    /// Show one service: where it is dialled, its instances, their share of new flows beside the one their weights give
    Show {
        #[arg(long)]
        json: bool,
        service: String,
    },
    /// Show again and again what each service gets a second
    Watch(Repeat),
    /// Show again and again the busiest instances first
    Top(Repeat),
    /// Show step by step what this node does with a packet, by running the loaded program on a made-up one
    Trace(TraceOptions),
    /// Show why packets did not go the ordinary way, with counts since the maps were made
    Drops {
        #[arg(long)]
        json: bool,
    },
}

#[derive(Args)]
struct Repeat {
    /// Time between two looks
    #[arg(long, default_value = "1s", value_parser = humantime::parse_duration)]
    interval: Duration,
    /// Stop after so many; 0 goes on until interrupted
    #[arg(long, default_value_t = 0)]
    count: u32,
    /// A line of JSON for each look
    #[arg(long)]
    json: bool,
    /// Of one service only
    service: Option<String>,
}

#[derive(Args)]
struct TraceOptions {
    /// Who sends it
    #[arg(long, value_name = "IP:PORT")]
    src: SocketAddr,
    /// What it dials
    #[arg(long, value_name = "IP:PORT")]
    dst: SocketAddr,
    /// tcp or udp
    #[arg(long, default_value = "tcp")]
    proto: String,
    /// A packet of a connection that is there already, in place of a SYN
    #[arg(long)]
    established: bool,
    #[arg(long)]
    json: bool,
}

pub fn run(endpoint: &Endpoint, options: &Options) -> Result<()> {
    match &options.command {
        None => whole(endpoint, options.service.as_deref(), options.json),
        Some(Command::List { json }) => list(endpoint, *json),
        Some(Command::Show { json, service }) => whole(endpoint, Some(service), *json),
        Some(Command::Watch(repeat)) => repeated(endpoint, repeat, by_service),
        Some(Command::Top(repeat)) => repeated(endpoint, repeat, by_instance),
        Some(Command::Trace(asked)) => trace(endpoint, asked),
        Some(Command::Drops { json }) => drops(endpoint, *json),
    }
}

fn trace(endpoint: &Endpoint, asked: &TraceOptions) -> Result<()> {
    let TraceOptions { src, dst, proto, established, .. } = asked;
    anyhow::ensure!(["tcp", "udp"].contains(&proto.as_str()), "-proto={proto}: only tcp and udp can be traced");
    let query = format!("src={src}&dst={dst}&proto={proto}&established={established}");
    let report: TraceReport = endpoint.get(&format!("/v1/mesh/trace?{query}"))?;
    if asked.json {
        println!("{}", serde_json::to_string_pretty(&report)?);
    } else {
        println!("{}", render_trace(&report));
    }
    Ok(())
}

fn render_trace(report: &TraceReport) -> String {
    let steps: Vec<Vec<String>> = report.steps.iter().map(|step| vec![step.what.clone(), step.found.clone()]).collect();
    format!(
        "Node {}: {}\n{}\nverdict: {}\nchanged by asking: {}",
        report.node,
        report.packet,
        columns(&steps),
        report.verdict,
        report.side_effects
    )
}

fn drops(endpoint: &Endpoint, json: bool) -> Result<()> {
    let report: RouteReport = endpoint.get("/v1/mesh/routes")?;
    if json {
        println!("{}", serde_json::to_string_pretty(&report.drops)?);
    } else {
        println!("Node {}\n{}", report.node, render_drops(&report));
    }
    Ok(())
}

fn render_drops(report: &RouteReport) -> String {
    let counted: Vec<_> = report.drops.iter().filter(|(_, count)| **count > 0).collect();
    if counted.is_empty() {
        return "every packet went the ordinary way".to_owned();
    }
    let kind = |reason: &str| report.drop_kinds.get(reason).cloned().unwrap_or_default();
    let mut rows = vec![row(["Reason", "Packets Were", "Packets"])];
    rows.extend(counted.iter().map(|(reason, count)| vec![(*reason).clone(), kind(reason), count.to_string()]));
    columns(&rows)
}

/// Of one service or all.
fn fetch(endpoint: &Endpoint, service: Option<&str>) -> Result<RouteReport> {
    let mut report: RouteReport = endpoint.get("/v1/mesh/routes")?;
    if let Some(name) = service {
        report.services.retain(|service| service.name == *name);
        anyhow::ensure!(!report.services.is_empty(), "no service is called {name}; `meshctl route list` has them");
    }
    Ok(report)
}

fn whole(endpoint: &Endpoint, service: Option<&str>, json: bool) -> Result<()> {
    let report = fetch(endpoint, service)?;
    if json {
        println!("{}", serde_json::to_string_pretty(&report)?);
    } else {
        println!("{}", render(&report));
    }
    Ok(())
}

fn list(endpoint: &Endpoint, json: bool) -> Result<()> {
    let report = fetch(endpoint, None)?;
    if json {
        println!("{}", serde_json::to_string_pretty(&report.services)?);
    } else {
        println!("{}", render_list(&report));
    }
    Ok(())
}

fn render_list(report: &RouteReport) -> String {
    let mut rows =
        vec![row(["Service", "VIP", "Dialled At", "Active", "Instances", "New Flows", "Packets", "Problems"])];
    for service in &report.services {
        let active = service.backends.iter().filter(|backend| backend.ring_share > 0.0).count();
        let sum = |value: fn(&RouteBackend) -> u64| service.backends.iter().map(value).sum::<u64>().to_string();
        rows.push(vec![
            service.name.clone(),
            service.vip.map_or("<none>".to_owned(), |vip| vip.to_string()),
            service.frontends.len().to_string(),
            active.to_string(),
            service.backends.len().to_string(),
            sum(|backend| backend.flows),
            sum(|backend| backend.packets),
            service.problems.len().to_string(),
        ]);
    }
    columns(&rows)
}

/// What one line of `watch` and `top` tells, per second.
#[derive(Clone, Debug, PartialEq, Serialize)]
struct Rate {
    service: String,
    /// Empty for a service as a whole.
    backend: String,
    packets: f64,
    bytes: f64,
    new_flows: f64,
}

type Counts = BTreeMap<(String, String), [u64; 3]>;

/// A look tells what happened since the one before.
fn repeated(endpoint: &Endpoint, repeat: &Repeat, count: fn(&RouteReport) -> Counts) -> Result<()> {
    let look = || Ok::<_, anyhow::Error>((Instant::now(), count(&fetch(endpoint, repeat.service.as_deref())?)));
    let mut before = look()?;
    for number in 1_u32.. {
        std::thread::sleep(repeat.interval);
        let now = look()?;
        let rates = rates(&before.1, &now.1, now.0 - before.0);
        if repeat.json {
            println!("{}", serde_json::to_string(&rates)?);
        } else {
            println!("{}\n", render_rates(&rates));
        }
        before = now;
        if number == repeat.count {
            break;
        }
    }
    Ok(())
}

fn by_service(report: &RouteReport) -> Counts {
    let mut counts = Counts::new();
    for ((service, _), [packets, bytes, flows]) in by_instance(report) {
        let sum = counts.entry((service, String::new())).or_default();
        *sum = [sum[0] + packets, sum[1] + bytes, sum[2] + flows];
    }
    counts
}

fn by_instance(report: &RouteReport) -> Counts {
    let counted = |service: &RouteService, backend: &RouteBackend| {
        let name = format!("{}:{}/{} on {}", backend.address, backend.port, backend.proto, backend.node);
        ((service.name.clone(), name), [backend.packets, backend.bytes, backend.flows])
    };
    let services = report.services.iter();
    services.flat_map(|service| service.backends.iter().map(move |backend| counted(service, backend))).collect()
}

/// Busiest first. What was not there before, or began anew, counts from nothing.
fn rates(before: &Counts, now: &Counts, elapsed: Duration) -> Vec<Rate> {
    let seconds = elapsed.as_secs_f64().max(0.001);
    let rate = |(key, counts): (&(String, String), &[u64; 3])| {
        let held = before.get(key).copied().unwrap_or_default();
        let grown = |index: usize| counts[index].saturating_sub(held[index]) as f64 / seconds;
        Rate { service: key.0.clone(), backend: key.1.clone(), packets: grown(0), bytes: grown(1), new_flows: grown(2) }
    };
    let mut rates: Vec<Rate> = now.iter().map(rate).collect();
    rates.sort_by(|a, b| {
        b.packets.total_cmp(&a.packets).then_with(|| (&a.service, &a.backend).cmp(&(&b.service, &b.backend)))
    });
    rates
}

fn render_rates(rates: &[Rate]) -> String {
    let mut rows = vec![row(["Service", "Instance", "Packets/s", "Bytes/s", "New Flows/s"])];
    rows.extend(rates.iter().map(|rate| {
        let number = |value: f64| format!("{value:.0}");
        let backend = if rate.backend.is_empty() { "<all>".to_owned() } else { rate.backend.clone() };
        vec![rate.service.clone(), backend, number(rate.packets), number(rate.bytes), format!("{:.1}", rate.new_flows)]
    }));
    columns(&rows)
}

fn render(report: &RouteReport) -> String {
    let mut parts = vec![format!("Node {}, generation {}", report.node, report.generation)];
    parts.extend(report.notices.iter().map(|notice| format!("notice: {notice}")));
    parts.extend(report.services.iter().map(service));
    if report.drops.values().any(|count| *count > 0) {
        parts.push(render_drops(report));
    }
    parts.join("\n\n")
}

/// What its weight alone would give it: zones and slow starts make the difference.
fn by_weight(service: &RouteService, backend: &RouteBackend) -> f64 {
    let active = |other: &&RouteBackend| other.proto == backend.proto && other.ring_share > 0.0;
    let total: f64 = service.backends.iter().filter(active).map(|other| f64::from(other.weight)).sum();
    if backend.ring_share > 0.0 && total > 0.0 { f64::from(backend.weight) / total } else { 0.0 }
}

fn service(service: &RouteService) -> String {
    let frontend = |frontend: &RouteFrontend| {
        let source = match frontend.source {
            FrontendSource::Vip => "vip",
            FrontendSource::Edge => "edge",
            FrontendSource::Port => "port",
        };
        format!("{}:{}/{} ({source})", frontend.address, frontend.port, frontend.proto)
    };
    let frontends: Vec<String> = service.frontends.iter().map(frontend).collect();
    let heading =
        ["Alloc", "Node", "Address", "Weight", "State", "Share", "By Weight", "New Flows", "Packets", "Bytes"];
    let mut rows = vec![row(heading)];
    for backend in &service.backends {
        rows.push(vec![
            short(&backend.alloc_id),
            backend.node.clone(),
            format!("{}:{}/{}", backend.address, backend.port, backend.proto),
            backend.weight.to_string(),
            backend.state.clone(),
            format!("{:.1}%", backend.ring_share * 100.0),
            format!("{:.1}%", by_weight(service, backend) * 100.0),
            backend.flows.to_string(),
            backend.packets.to_string(),
            backend.bytes.to_string(),
        ]);
    }
    let problems = service.problems.iter().map(|problem| format!("\nproblem: {problem}"));
    format!(
        "{}  VIP {}  {}\n{}{}",
        service.name,
        service.vip.map_or("<none>".to_owned(), |vip| vip.to_string()),
        frontends.join("  "),
        columns(&rows),
        problems.collect::<String>()
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    fn report(packets: &[(&str, u8, u64)]) -> RouteReport {
        let mut report = RouteReport::default();
        for (name, host, packets) in packets {
            let backend = RouteBackend {
                alloc_id: String::new(),
                node: "n1".to_owned(),
                address: std::net::IpAddr::from([10, 64, 0, *host]),
                port: 80,
                proto: "tcp".to_owned(),
                weight: 1,
                state: "active".to_owned(),
                ring_share: 0.5,
                packets: *packets,
                bytes: packets * 100,
                flows: packets / 10,
            };
            let empty = || RouteService {
                name: (*name).to_owned(),
                vip: None,
                frontends: Vec::new(),
                backends: Vec::new(),
                problems: Vec::new(),
            };
            match report.services.iter_mut().find(|service| service.name == *name) {
                Some(service) => service.backends.push(backend),
                None => report.services.push(RouteService { backends: vec![backend], ..empty() }),
            }
        }
        report
    }

    #[test]
    fn rates_are_of_the_time_between_two_looks_and_the_busiest_is_first() {
        let before = report(&[("a", 1, 100), ("b", 2, 100), ("b", 3, 900)]);
        let now = report(&[("a", 1, 120), ("b", 2, 300), ("b", 3, 10)]);
        let told = rates(&by_instance(&before), &by_instance(&now), Duration::from_secs(2));
        let told: Vec<(&str, f64)> = told.iter().map(|rate| (rate.backend.as_str(), rate.packets)).collect();
        assert_eq!(told[0], ("10.64.0.2:80/tcp on n1", 100.0));
        assert_eq!(told[1], ("10.64.0.1:80/tcp on n1", 10.0));
        assert_eq!(told[2].1, 0.0, "a counter that began anew goes down for nobody");
        let services = rates(&by_service(&before), &by_service(&report(&[("b", 2, 300)])), Duration::from_secs(1));
        assert_eq!((services.len(), services[0].service.as_str()), (1, "b"));
    }

    #[test]
    fn a_list_has_a_line_for_each_service() {
        let list = render_list(&report(&[("a", 1, 100), ("b", 2, 100), ("b", 3, 900)]));
        let lines: Vec<&str> = list.lines().collect();
        assert_eq!(lines.len(), 3);
        assert_eq!(lines[2].split_whitespace().collect::<Vec<_>>(), ["b", "<none>", "0", "2", "2", "100", "1000", "0"]);
    }
}
