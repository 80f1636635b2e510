//! Groups: count, restart policy, network, disk.

use super::service::Place;
use super::{Inherited, Reader};
use crate::section::{Section, Shape};
use hcl_edit::structure::Block;
use model::{DnsConfig, JobKind, Network, NetworkMode, PortRequest, RestartMode, RestartPolicy, TaskGroup, rules};
use std::time::Duration;

const GROUP: Shape = Shape {
    name: "group",
    keys: &[
        "count",
        "meta",
        "shutdown_delay",
        "max_run_duration",
        "max_client_disconnect",
        "stop_after_client_disconnect",
    ],
    blocks: &[
        "constraint",
        "affinity",
        "spread",
        "task",
        "restart",
        "reschedule",
        "disconnect",
        "ephemeral_disk",
        "network",
        "meta",
        "service",
        "update",
        "migrate",
        "volume",
    ],
    not_built: &["consul", "prevent_reschedule_on_lost", "scaling", "vault"],
    only: &[],
};
const RESTART: Shape = Shape {
    name: "restart",
    keys: &["attempts", "interval", "delay", "mode"],
    blocks: &[],
    not_built: &[],
    only: &[("render_templates", "false")],
};
const DISK: Shape =
    Shape { name: "ephemeral_disk", keys: &["size", "sticky", "migrate"], blocks: &[], not_built: &[], only: &[] };
const NETWORK: Shape = Shape {
    name: "network",
    keys: &["mode", "hostname"],
    blocks: &["port", "dns"],
    not_built: &["cni", "device", "mbits"],
    only: &[],
};
const DNS: Shape =
    Shape { name: "dns", keys: &["servers", "searches", "options"], blocks: &[], not_built: &[], only: &[] };
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
        let restart = self.restart(&section, RestartPolicy::default_of(inherited.kind));
        let place = Place { job: job.to_owned(), group: name.clone(), task: None, labels, restart };
        if section.all("task").next().is_none() {
            self.source.problem(&block.ident, "a group needs at least one `task` block");
        }
        self.unique(section.all("task"), "task");
        let max = u64::from(rules::ALLOCS_PER_JOB_MAX);
        let (disk_mb, disk_sticky, disk_migrate) = self.disk(&section);
        let group = TaskGroup {
            count: self.number(section.get("count"), 0, max, 1),
            constraints: self.constraints(&section),
            affinities: self.affinities(&section),
            spreads: self.spreads(&section),
            restart,
            reschedule: self.reschedule(&section, inherited.kind, inherited.reschedule),
            disconnect: self.disconnect(&section),
            volumes: self.volumes(&section),
            shutdown_delay: self.duration(section.get("shutdown_delay"), Duration::ZERO),
            max_run_duration: self.max_run_duration(&section, inherited.kind),
            services: self.services(&section, &place),
            tasks: section.all("task").map(|task| self.task(task, &place)).collect(),
            meta: self.strings_by_name(&section, "meta"),
            disk_mb,
            disk_sticky,
            disk_migrate,
            update: self.update(&section, inherited.kind, inherited.update),
            migrate_max_parallel: self.migrate(&section, inherited.migrate_max_parallel),
            network,
            ..TaskGroup::named(&name)
        };
        self.rule(&block.ident, "group:", rules::tasks(&group));
        self.unbuilt(&section, block, rules::unbuilt_in_group(&group, inherited.kind));
        group
    }

    fn max_run_duration(&mut self, section: &Section<'_>, kind: JobKind) -> Option<Duration> {
        let at = section.get("max_run_duration")?;
        self.rule(at, "max_run_duration", rules::max_run_duration(kind));
        Some(self.duration(Some(at), Duration::ZERO))
    }

    pub(super) fn restart(&mut self, section: &Section<'_>, default: RestartPolicy) -> RestartPolicy {
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

    /// Size in MiB, sticky, migrate.
    fn disk(&mut self, section: &Section<'_>) -> (u64, bool, bool) {
        let default = rules::DEFAULT_DISK_MB;
        let Some(block) = section.one("ephemeral_disk", self.source) else { return (default, false, false) };
        let section = Section::read(&block.body, &DISK, self.source);
        let size = self.number(section.get("size"), 10, u64::MAX, default);
        (size, self.flag(section.get("sticky"), false), self.flag(section.get("migrate"), false))
    }

    fn network(&mut self, block: &Block) -> Network {
        let section = Section::read(&block.body, &NETWORK, self.source);
        let mode = section.get("mode");
        let mode = match (mode, self.text(mode).as_deref()) {
            (_, None | Some("host")) => NetworkMode::Host,
            (_, Some("bridge")) => NetworkMode::Bridge,
            (_, Some("none")) => NetworkMode::None,
            (at, Some(other)) => {
                let known = other.starts_with("cni/");
                let state = if known { "is not built yet" } else { "is not known" };
                if let Some(at) = at {
                    let message = format!("network mode `{other}` {state}; use \"bridge\" or \"host\"");
                    self.source.problem(at, message);
                }
                NetworkMode::Host
            }
        };
        self.unique(section.all("port"), "port");
        Network {
            hostname: self.text(section.get("hostname")),
            dns: self.dns(&section),
            ..Network::of(mode, section.all("port").map(|port| self.port_request(port)).collect())
        }
    }

    fn dns(&mut self, section: &Section<'_>) -> Option<DnsConfig> {
        let block = section.one("dns", self.source)?;
        let section = Section::read(&block.body, &DNS, self.source);
        let mut texts = |key| self.texts(section.get(key));
        Some(DnsConfig { servers: texts("servers"), searches: texts("searches"), options: texts("options") })
    }

    fn port_request(&mut self, block: &Block) -> PortRequest {
        let section = Section::read(&block.body, &PORT, self.source);
        let label = self.label(block);
        self.rule(&block.ident, "the port's name", rules::port_label(&label));
        PortRequest { label, static_port: self.port(section.get("static")), to: self.port(section.get("to")) }
    }
}
