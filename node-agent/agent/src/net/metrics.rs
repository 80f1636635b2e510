//! The data path's counters as Prometheus reads them (text exposition format 0.0.4).

use std::fmt::Write;
use wire::routes::{RouteBackend, RouteReport};

/// Counted since the maps were made, so that a restarted agent goes on where it was.
pub fn prometheus(report: &RouteReport) -> String {
    let mut page = Page::default();
    let backends =
        || report.services.iter().flat_map(|service| service.backends.iter().map(|one| (&*service.name, one)));
    type Counter = fn(&RouteBackend) -> u64;
    let per_backend: [(&str, &str, Counter); 3] = [
        ("packets_total", "Packets that this node sent to a backend.", |backend| backend.packets),
        ("bytes_total", "Bytes of IP packets that this node sent to a backend.", |backend| backend.bytes),
        ("new_flows_total", "Flows that this node gave to a backend.", |backend| backend.flows),
    ];
    for (name, help, value) in per_backend {
        page.family(name, "counter", help);
        backends().for_each(|(service, backend)| page.line(name, &labels(service, backend), value(backend) as f64));
    }
    page.family("ring_share", "gauge", "The part of new flows that a backend gets, 0 to 1.");
    backends().for_each(|(service, backend)| page.line("ring_share", &labels(service, backend), backend.ring_share));
    page.family("problems", "gauge", "What of a service's description was skipped.");
    for service in &report.services {
        page.line("problems", &[("service", &service.name)], service.problems.len() as f64);
    }
    page.reasons(report);
    page.tables(report);
    page.family("generation", "gauge", "Of the routing that the kernel's maps hold.");
    page.line::<&str>("generation", &[], report.generation as f64);
    page.family("notices", "gauge", "What is wrong with the node as a whole.");
    page.line::<&str>("notices", &[], report.notices.len() as f64);
    page.text
}

fn labels<'a>(service: &'a str, backend: &'a RouteBackend) -> Vec<(&'static str, String)> {
    vec![
        ("service", service.to_owned()),
        ("alloc_id", backend.alloc_id.clone()),
        ("node", backend.node.clone()),
        ("address", format!("{}:{}", backend.address, backend.port)),
        ("proto", backend.proto.clone()),
        ("state", backend.state.clone()),
    ]
}

#[derive(Default)]
struct Page {
    text: String,
}

impl Page {
    fn family(&mut self, name: &str, kind: &str, help: &str) {
        // Writing to a string cannot fail.
        let _ = writeln!(self.text, "# HELP meshctl_route_{name} {help}\n# TYPE meshctl_route_{name} {kind}");
    }

    fn line<V: AsRef<str>>(&mut self, name: &str, labels: &[(&str, V)], value: f64) {
        let labels: Vec<String> =
            labels.iter().map(|(key, value)| format!("{key}=\"{}\"", escaped(value.as_ref()))).collect();
        let labels = if labels.is_empty() { String::new() } else { format!("{{{}}}", labels.join(",")) };
        let _ = writeln!(self.text, "meshctl_route_{name}{labels} {value}");
    }

    fn reasons(&mut self, report: &RouteReport) {
        self.family("reasons_total", "counter", "Packets that did not go the ordinary way, and what became of them.");
        let kind = |reason: &str| report.drop_kinds.get(reason).cloned().unwrap_or_default();
        for (reason, count) in &report.drops {
            self.line("reasons_total", &[("reason", reason.clone()), ("kind", kind(reason))], *count as f64);
        }
        let resets: u64 = report.drops.iter().filter(|(reason, _)| kind(reason) == "answered").map(|(_, n)| n).sum();
        self.family("resets_total", "counter", "Connections that led nowhere and were reset.");
        self.line::<&str>("resets_total", &[], resets as f64);
        self.family("reselections_total", "counter", "Packets of connections whose backend had to be chosen again.");
        let reselected = report.drops.get("entry_cache_miss").copied().unwrap_or_default();
        self.line::<&str>("reselections_total", &[], reselected as f64);
    }

    fn tables(&mut self, report: &RouteReport) {
        self.family("table_entries", "gauge", "Entries of a kernel table that are in use.");
        for (table, fill) in &report.tables {
            self.line("table_entries", &[("table", table)], f64::from(fill.used));
        }
        self.family("table_capacity", "gauge", "Entries that a kernel table has room for.");
        for (table, fill) in &report.tables {
            self.line("table_capacity", &[("table", table)], f64::from(fill.capacity));
        }
    }
}

/// What would end a label's value early.
fn escaped(text: &str) -> String {
    text.replace('\\', "\\\\").replace('"', "\\\"").replace('\n', "\\n")
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::collections::BTreeMap;
    use wire::routes::{RouteService, TableFill};

    #[test]
    fn every_line_is_a_comment_or_a_sample_and_names_cannot_break_out() {
        let backend = RouteBackend {
            alloc_id: "a1".to_owned(),
            node: "n1".to_owned(),
            address: std::net::IpAddr::from([10, 64, 0, 2]),
            port: 8080,
            proto: "tcp".to_owned(),
            weight: 1,
            state: "active".to_owned(),
            ring_share: 0.5,
            packets: 7,
            bytes: 700,
            flows: 2,
        };
        let service = RouteService {
            name: "we\"b\n".to_owned(),
            vip: None,
            frontends: Vec::new(),
            backends: vec![backend],
            problems: vec!["x".to_owned()],
        };
        let report = RouteReport {
            services: vec![service],
            drops: BTreeMap::from([("reset_no_backend".to_owned(), 3), ("entry_cache_miss".to_owned(), 2)]),
            drop_kinds: BTreeMap::from([("reset_no_backend".to_owned(), "answered".to_owned())]),
            tables: BTreeMap::from([("backends".to_owned(), TableFill { used: 1, capacity: 65_536 })]),
            ..RouteReport::default()
        };
        let page = prometheus(&report);
        let sample = |line: &str| line.rsplit_once(' ').is_some_and(|(_, value)| value.parse::<f64>().is_ok());
        assert!(page.lines().all(|line| line.starts_with("# ") || sample(line)), "{page}");
        for wanted in [
            "meshctl_route_packets_total{service=\"we\\\"b\\n\",alloc_id=\"a1\",node=\"n1\",address=\"10.64.0.2:8080\",proto=\"tcp\",state=\"active\"} 7",
            "meshctl_route_resets_total 3",
            "meshctl_route_reselections_total 2",
            "meshctl_route_table_capacity{table=\"backends\"} 65536",
        ] {
            assert!(page.lines().any(|line| line == wanted), "{wanted} is not in\n{page}");
        }
    }
}
