//! `meshctl route`: what this node's kernel does with services, read from its maps by the node's agent.

use crate::client::Endpoint;
use crate::table::{columns, row, short};
use anyhow::Result;
use clap::Args;
use wire::routes::{FrontendSource, RouteFrontend, RouteReport, RouteService};

#[derive(Args)]
pub struct Options {
    #[arg(long)]
    json: bool,
    /// Show one service only
    service: Option<String>,
}

pub fn run(endpoint: &Endpoint, options: &Options) -> Result<()> {
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
    parts.extend(report.services.iter().map(service));
    let drops: Vec<_> = report.drops.iter().filter(|(_, count)| **count > 0).collect();
    if !drops.is_empty() {
        let mut rows = vec![row(["Passed or Dropped", "Packets"])];
        rows.extend(drops.iter().map(|(reason, count)| vec![(*reason).clone(), count.to_string()]));
        parts.push(columns(&rows));
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
            format!("{}:{}", backend.address, backend.port),
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
