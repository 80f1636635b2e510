//! Groups: count, restart policy, network, disk.

use super::service::Place;
use super::{Inherited, Reader};
use crate::section::{Section, Shape};
use hcl_edit::structure::Block;
use model::{Network, NetworkMode, PortRequest, ReschedulePolicy, RestartMode, RestartPolicy, TaskGroup, rules};

const GROUP: Shape = Shape {
    name: "group",
    keys: &["count", "meta"],
    blocks: &["constraint", "task", "restart", "ephemeral_disk", "network", "meta", "service", "update", "migrate"],
    not_built: &[
        "affinity",
        "consul",
        "disconnect",
        "max_client_disconnect",
        "max_run_duration",
        "prevent_reschedule_on_lost",
        "reschedule",
        "scaling",
        "shutdown_delay",
        "spread",
        "stop_after_client_disconnect",
        "vault",
        "volume",
    ],
    only: &[],
};
const RESTART: Shape = Shape {
    name: "restart",
    keys: &["attempts", "interval", "delay", "mode"],
    blocks: &[],
    not_built: &[],
    only: &[("render_templates", "false")],
};
const DISK: Shape = Shape {
    name: "ephemeral_disk",
    keys: &["size"],
    blocks: &[],
    not_built: &[],
    only: &[("sticky", "false"), ("migrate", "false")],
};
const NETWORK: Shape = Shape {
    name: "network",
    keys: &["mode"],
    blocks: &["port"],
    not_built: &["cni", "device", "dns", "hostname", "mbits"],
    only: &[],
};
const PORT: Shape = Shape {
    name: "port",
    keys: &["static", "to"],
    blocks: &[],
    not_built: &[],
    only: &[("host_network", "default"), ("ignore_collision", "false")],
};

impl Reader<'_, '_, '_> {
    pub(super) fn group(&mut self, block: &Block, job: &str, inherited: &Inherited) -> TaskGroup {
        let section = Section::read(&block.body, &GROUP, self.source);
        let name = self.label(block);
        self.rule(&block.ident, "the group's name", rules::name(&name));
        let network = section.one("network", self.source).map(|network| self.network(network));
        let labels = network.iter().flat_map(|network| network.ports.iter().map(|port| port.label.clone())).collect();
        let place = Place { job: job.to_owned(), group: name.clone(), task: None, labels };
        if section.all("task").next().is_none() {
            self.source.problem(&block.ident, "a group needs at least one `task` block");
        }
        self.unique(section.all("task"), "task");
        let max = u64::from(rules::ALLOCS_PER_JOB_MAX);
        TaskGroup {
            count: self.number(section.get("count"), 0, max, 1),
            constraints: self.constraints(&section),
            restart: self.restart(&section, RestartPolicy::default_of(inherited.kind)),
            services: self.services(&section, &place),
            tasks: section.all("task").map(|task| self.task(task, &place)).collect(),
            meta: self.strings_by_name(&section, "meta"),
            disk_mb: self.disk(&section),
            update: self.update(&section, inherited.kind, inherited.update),
            migrate_max_parallel: self.migrate(&section, inherited.migrate_max_parallel),
            network,
            reschedule: ReschedulePolicy::default_of(inherited.kind),
            ..TaskGroup::named(&name)
        }
    }

    fn restart(&mut self, section: &Section<'_>, default: RestartPolicy) -> RestartPolicy {
        let Some(block) = section.one("restart", self.source) else { return default };
        let section = Section::read(&block.body, &RESTART, self.source);
        let mode = section.get("mode");
        let policy = RestartPolicy {
            attempts: self.number(section.get("attempts"), 0, u64::from(u32::MAX), default.attempts),
            interval: self.duration(section.get("interval"), default.interval),
            delay: self.duration(section.get("delay"), default.delay),
            mode: match (mode, self.text(mode).as_deref()) {
                (_, Some("fail")) => RestartMode::Fail,
                (_, Some("delay")) => RestartMode::Delay,
                (Some(at), Some(other)) => {
                    self.source.problem(at, format!("`{other}` is not a mode; use \"fail\" or \"delay\""));
                    default.mode
                }
                _ => default.mode,
            },
        };
        self.rule(&block.ident, "restart:", rules::restart(&policy));
        policy
    }

    fn disk(&mut self, section: &Section<'_>) -> u64 {
        let Some(block) = section.one("ephemeral_disk", self.source) else { return rules::DEFAULT_DISK_MB };
        let section = Section::read(&block.body, &DISK, self.source);
        self.number(section.get("size"), 10, u64::MAX, rules::DEFAULT_DISK_MB)
    }

    fn network(&mut self, block: &Block) -> Network {
        let section = Section::read(&block.body, &NETWORK, self.source);
        let mode = section.get("mode");
        let mode = match (mode, self.text(mode).as_deref()) {
            (_, None | Some("host")) => NetworkMode::Host,
            (_, Some("bridge")) => NetworkMode::Bridge,
            (at, Some(other)) => {
                let known = other == "none" || other.starts_with("cni/");
                let state = if known { "is not built yet" } else { "is not known" };
                if let Some(at) = at {
                    let message = format!("network mode `{other}` {state}; use \"bridge\" or \"host\"");
                    self.source.problem(at, message);
                }
                NetworkMode::Host
            }
        };
        self.unique(section.all("port"), "port");
        Network::of(mode, section.all("port").map(|port| self.port_request(port)).collect())
    }

    fn port_request(&mut self, block: &Block) -> PortRequest {
        let section = Section::read(&block.body, &PORT, self.source);
        let label = self.label(block);
        self.rule(&block.ident, "the port's name", rules::port_label(&label));
        PortRequest { label, static_port: self.port(section.get("static")), to: self.port(section.get("to")) }
    }
}
