//! `meshctl route`: what this node's kernel does with services, read from its maps by the node's agent.

use crate::client::Endpoint;
use crate::table::{columns, row, short};
use anyhow::Result;
use clap::{Args, Subcommand};
use std::net::SocketAddr;
use wire::routes::{FrontendSource, RouteFrontend, RouteReport, RouteService, TraceReport};

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
    /// Show step by step what this node does with a packet, by running the loaded program on a made-up one
    Trace(TraceOptions),
    /// Show why packets did not go the ordinary way, with counts since the maps were made
    Drops {
        #[arg(long)]
        json: bool,
    },
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
        None => list(endpoint, options),
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

fn list(endpoint: &Endpoint, options: &Options) -> Result<()> {
    let mut report: RouteReport = endpoint.get("/v1/mesh/routes")?;
    if let Some(name) = &options.service {
        report.services.retain(|service| service.name == *name);
        anyhow::ensure!(!report.services.is_empty(), "no service is called {name}; `meshctl route` lists them");
    }
    if options.json {
        println!("{}", serde_json::to_string_pretty(&report)?);
    } else {
        println!("{}", render(&report));
    }
    Ok(())
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
    let mut rows = vec![row(["Alloc", "Node", "Address", "Weight", "State", "Share", "New Flows", "Packets", "Bytes"])];
    for backend in &service.backends {
        rows.push(vec![
            short(&backend.alloc_id),
            backend.node.clone(),
            format!("{}:{}/{}", backend.address, backend.port, backend.proto),
            backend.weight.to_string(),
            backend.state.clone(),
            format!("{:.1}%", backend.ring_share * 100.0),
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
