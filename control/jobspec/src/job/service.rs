//! Services and their checks.

use super::Reader;
use crate::section::{Section, Shape, nearest};
use hcl_edit::expr::Expression;
use hcl_edit::structure::Block;
use model::{Check, CheckKind, Service, rules};
use std::time::Duration;

const SERVICE: Shape = Shape {
    name: "service",
    keys: &["name", "tags", "port", "meta", "provider"],
    blocks: &["check", "meta"],
    not_built: &[
        "address",
        "canary_meta",
        "canary_tags",
        "check_restart",
        "connect",
        "identity",
        "kind",
        "tagged_addresses",
        "task",
        "weights",
    ],
    only: &[
        ("address_mode", "auto"),
        ("cluster", "default"),
        ("enable_tag_override", "false"),
        ("on_update", "require_healthy"),
    ],
};
const CHECK: Shape = Shape {
    name: "check",
    keys: &["name", "type", "path", "method", "port", "interval", "timeout"],
    blocks: &[],
    not_built: &[
        "address_mode",
        "args",
        "body",
        "check_restart",
        "command",
        "failures_before_critical",
        "failures_before_warning",
        "grpc_service",
        "header",
        "initial_status",
        "notes",
        "success_before_passing",
        "task",
        "tls_server_name",
    ],
    only: &[
        ("expose", "false"),
        ("grpc_use_tls", "false"),
        ("on_update", "require_healthy"),
        ("protocol", "http"),
        ("tls_skip_verify", "false"),
    ],
};

/// Where a service stands.
#[derive(Clone)]
pub(super) struct Place {
    pub(super) job: String,
    pub(super) group: String,
    pub(super) task: Option<String>,
    /// The ports of the group's network.
    pub(super) labels: Vec<String>,
}

impl Reader<'_, '_, '_> {
    pub(super) fn services(&mut self, section: &Section<'_>, place: &Place) -> Vec<Service> {
        section.all("service").map(|block| self.service(block, place)).collect()
    }

    fn service(&mut self, block: &Block, place: &Place) -> Service {
        let section = Section::read(&block.body, &SERVICE, self.source);
        self.provider(section.get("provider"));
        let name = self.service_name(block, &section, place);
        let tags = self.texts(section.get("tags"));
        if let (Some(at), Some(Err(reason))) =
            (section.get("tags"), tags.iter().map(|tag| rules::no_interpolation(tag)).find(Result::is_err))
        {
            self.source.problem(at, reason);
        }
        let meta = self.strings_by_name(&section, "meta");
        if let Some(Err(reason)) = meta.values().map(|value| rules::no_interpolation(value)).find(Result::is_err) {
            self.source.problem(&block.ident, format!("meta: {reason}"));
        }
        if let Err(reason) = rules::vip_port(&meta) {
            let written = section.all("meta").flat_map(|block| block.body.attributes());
            let of_block = written.filter(|attribute| attribute.key.as_str() == "vip_port").map(|port| &port.value);
            match of_block.last().or_else(|| section.get("meta")) {
                Some(at) => self.source.problem(at, reason),
                None => self.source.problem(&block.ident, reason),
            }
        }
        let port_label = self.port_label(section.get("port"), place);
        let checks: Vec<Check> =
            section.all("check").map(|check| self.check(check, &name, port_label.is_some(), place)).collect();
        if let Some(twice) = rules::duplicate(checks.iter().map(|check| check.name.as_str())) {
            self.source.problem(&block.ident, format!("two checks have the name `{twice}`; give each its own `name`"));
        }
        Service { tags, checks, meta, ..Service::named(&name, port_label.as_deref()) }
    }

    fn provider(&mut self, at: Option<&Expression>) {
        let provider = self.text(at);
        if let (Some(at), Some(other)) = (at, provider.as_deref().filter(|name| !matches!(*name, "nomad" | "consul"))) {
            let message = format!("`{other}` is not a provider; use \"nomad\" or \"consul\", both mean this catalog");
            self.source.problem(at, message);
        }
    }

    fn service_name(&mut self, block: &Block, section: &Section<'_>, place: &Place) -> String {
        let task = place.task.as_deref();
        let default = || rules::default_service_name(&place.job, &place.group, task);
        let name = self.text(section.get("name")).unwrap_or_else(default);
        let name = rules::fill_service_name(&name, &place.job, &place.group, task);
        let what = format!("the service's name `{name}`");
        match section.get("name") {
            Some(at) => self.rule(at, &what, rules::service_name(&name)),
            None => self.rule(&block.ident, &what, rules::service_name(&name)),
        }
        name
    }

    fn port_label(&mut self, at: Option<&Expression>, place: &Place) -> Option<String> {
        let label = self.text(at)?;
        if let Some(at) = at.filter(|_| !place.labels.contains(&label)) {
            let message = format!("`{label}` is not a port of the group's network");
            let hint = match nearest(&label, place.labels.iter().map(String::as_str)) {
                Some(near) => format!("did you mean `{near}`?"),
                None => format!("add `port \"{label}\" {{}}` to the group's `network` block"),
            };
            self.source.problem_with_hint(at, message, hint);
        }
        Some(label)
    }

    fn check(&mut self, block: &Block, service: &str, has_port: bool, place: &Place) -> Check {
        let section = Section::read(&block.body, &CHECK, self.source);
        let port_label = self.port_label(section.get("port"), place);
        if port_label.is_none() && !has_port {
            self.source.problem(&block.ident, "a check needs `port`, here or in its service");
        }
        let name = self.text(section.get("name")).unwrap_or_else(|| format!("service: \"{service}\" check"));
        let kind = self.check_kind(block, &section);
        let interval = self.check_time(block, &section, "interval");
        let timeout = self.check_time(block, &section, "timeout");
        Check { port_label, ..Check::named(&name, kind, interval, timeout) }
    }

    fn check_kind(&mut self, block: &Block, section: &Section<'_>) -> CheckKind {
        let kind = self.text(section.get("type"));
        match (section.get("type"), kind.as_deref()) {
            (_, Some("tcp")) => CheckKind::Tcp,
            (_, Some("http")) => self.http_check(block, section),
            (Some(at), Some(other)) => {
                let known = matches!(other, "grpc" | "script" | "docker" | "ttl");
                let state = if known { "is not built yet" } else { "is not known" };
                self.source.problem(at, format!("check type `{other}` {state}; use \"http\" or \"tcp\""));
                CheckKind::Tcp
            }
            _ => {
                self.source.problem(&block.ident, "a check needs `type`; use \"http\" or \"tcp\"");
                CheckKind::Tcp
            }
        }
    }

    fn http_check(&mut self, block: &Block, section: &Section<'_>) -> CheckKind {
        let path = self.text(section.get("path")).unwrap_or_default();
        match section.get("path") {
            None => self.source.problem(&block.ident, "an http check needs `path`, for example \"/\""),
            Some(at) if !path.starts_with('/') => self.source.problem(at, "must start with `/`"),
            Some(at) => self.rule(at, "path:", rules::no_interpolation(&path)),
        }
        let method = self.text(section.get("method")).unwrap_or_else(|| "GET".to_owned()).to_ascii_uppercase();
        if let Some(at) = section.get("method").filter(|_| !method.chars().all(|c| c.is_ascii_uppercase())) {
            self.source.problem(at, "must be an HTTP method, for example \"GET\"");
        }
        CheckKind::Http { method, path, headers: Default::default(), body: String::new(), tls: None }
    }

    fn check_time(&mut self, block: &Block, section: &Section<'_>, key: &str) -> Duration {
        let Some(at) = section.get(key) else {
            self.source.problem(&block.ident, format!("a check needs `{key}`, for example \"5s\""));
            return rules::CHECK_TIME_MIN;
        };
        let time = self.duration(Some(at), rules::CHECK_TIME_MIN);
        if time < rules::CHECK_TIME_MIN {
            self.source.problem(at, format!("`{key}` must be at least 1s"));
        }
        time
    }
}
