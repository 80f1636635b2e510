//! Services and their checks.

use super::Reader;
use crate::section::{Section, Shape, nearest};
use hcl_edit::expr::Expression;
use hcl_edit::structure::Block;
use model::{Check, CheckKind, CheckRestart, CheckTls, Health, OnUpdate, RestartPolicy, Service, Weights, rules};
use std::collections::BTreeMap;
use std::time::Duration;

const SERVICE: Shape = Shape {
    name: "service",
    keys: &["name", "tags", "port", "meta", "provider", "canary_tags", "canary_meta", "on_update"],
    blocks: &["check", "meta", "canary_meta", "weights", "check_restart"],
    not_built: &["address", "connect", "identity", "kind", "tagged_addresses", "task"],
    only: &[("address_mode", "auto"), ("cluster", "default"), ("enable_tag_override", "false")],
};
const WEIGHTS: Shape = Shape { name: "weights", keys: &["passing", "warning"], blocks: &[], not_built: &[], only: &[] };
const CHECK_RESTART: Shape = Shape {
    name: "check_restart",
    keys: &["limit", "grace", "ignore_warnings"],
    blocks: &[],
    not_built: &[],
    only: &[],
};
const CHECK: Shape = Shape {
    name: "check",
    keys: &[
        "name",
        "type",
        "path",
        "method",
        "port",
        "interval",
        "timeout",
        "command",
        "args",
        "header",
        "body",
        "protocol",
        "tls_server_name",
        "tls_skip_verify",
        "grpc_service",
        "grpc_use_tls",
        "initial_status",
        "success_before_passing",
        "failures_before_critical",
        "on_update",
        "task",
    ],
    blocks: &["header", "check_restart"],
    not_built: &["address_mode", "failures_before_warning", "notes"],
    only: &[("expose", "false")],
};

/// Where a service stands.
#[derive(Clone)]
pub(super) struct Place {
    pub(super) job: String,
    pub(super) group: String,
    pub(super) task: Option<String>,
    /// The ports of the group's network.
    pub(super) labels: Vec<String>,
    /// The group's.
    pub(super) restart: RestartPolicy,
}

/// What a check takes from its service.
struct OfService {
    name: String,
    has_port: bool,
    restart: Option<CheckRestart>,
    on_update: OnUpdate,
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
        let of_service = OfService {
            name: name.clone(),
            has_port: port_label.is_some(),
            restart: self.check_restart(&section),
            on_update: self.on_update(section.get("on_update"), OnUpdate::RequireHealthy),
        };
        let checks: Vec<Check> = section.all("check").map(|check| self.check(check, &of_service, place)).collect();
        if let Some(twice) = rules::duplicate(checks.iter().map(|check| check.name.as_str())) {
            self.source.problem(&block.ident, format!("two checks have the name `{twice}`; give each its own `name`"));
        }
        let service = Service {
            tags,
            checks,
            meta,
            canary_tags: section.get("canary_tags").map(|at| self.texts(Some(at))),
            canary_meta: self.strings_by_name(&section, "canary_meta"),
            weights: self.weights(&section),
            ..Service::named(&name, port_label.as_deref())
        };
        self.unbuilt(&section, block, rules::unbuilt_in_service(&service));
        service
    }

    fn weights(&mut self, section: &Section<'_>) -> Weights {
        let default = Weights::default();
        let Some(block) = section.one("weights", self.source) else { return default };
        let section = Section::read(&block.body, &WEIGHTS, self.source);
        let most = u64::from(rules::WEIGHT_MAX);
        Weights {
            passing: self.number(section.get("passing"), 0, most, default.passing),
            warning: self.number(section.get("warning"), 0, most, default.warning),
        }
    }

    fn on_update(&mut self, at: Option<&Expression>, inherited: OnUpdate) -> OnUpdate {
        self.choice(at, inherited, &OnUpdate::ALL.map(|rule| (rule, rule.as_str())))
    }

    fn check_restart(&mut self, section: &Section<'_>) -> Option<CheckRestart> {
        let block = section.one("check_restart", self.source)?;
        let section = Section::read(&block.body, &CHECK_RESTART, self.source);
        let limit = self.number(section.get("limit"), 0, u64::from(u32::MAX), 0);
        let restart = CheckRestart {
            limit,
            grace: self.duration(section.get("grace"), Duration::from_secs(1)),
            ignore_warnings: self.flag(section.get("ignore_warnings"), false),
        };
        (limit > 0).then_some(restart)
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

    fn check(&mut self, block: &Block, service: &OfService, place: &Place) -> Check {
        let section = Section::read(&block.body, &CHECK, self.source);
        let port_label = self.port_label(section.get("port"), place);
        let kind = self.check_kind(block, &section, place);
        let dials = !matches!(kind, CheckKind::Script { .. } | CheckKind::Ttl);
        if dials && port_label.is_none() && !service.has_port {
            self.source.problem(&block.ident, "a check needs `port`, here or in its service");
        }
        let name = self.text(section.get("name")).unwrap_or_else(|| format!("service: \"{}\" check", service.name));
        let interval = self.check_time(block, &section, "interval");
        let timeout = match kind {
            CheckKind::Ttl => interval,
            _ => self.check_time(block, &section, "timeout"),
        };
        let most = u64::from(u16::MAX);
        let check = Check {
            port_label,
            initial: self.initial(section.get("initial_status")),
            successes_before_passing: self.number(section.get("success_before_passing"), 0, most, 0),
            failures_before_critical: self.number(section.get("failures_before_critical"), 0, most, 0),
            on_update: self.on_update(section.get("on_update"), service.on_update),
            restart: self.check_restart(&section).or(service.restart),
            task: self.text(section.get("task")),
            ..Check::named(&name, kind, interval, timeout)
        };
        self.unbuilt(&section, block, rules::unbuilt_in_check(&check));
        check
    }

    fn initial(&mut self, at: Option<&Expression>) -> Option<Health> {
        let known = [(Some(Health::Passing), "passing"), (Some(Health::Warning), "warning"), (None, "critical")];
        self.choice(at, None, &known)
    }

    fn check_kind(&mut self, block: &Block, section: &Section<'_>, place: &Place) -> CheckKind {
        let kind = self.text(section.get("type"));
        match (section.get("type"), kind.as_deref()) {
            (_, Some("tcp")) => CheckKind::Tcp,
            (_, Some("http")) => self.http_check(block, section),
            (_, Some("grpc")) => CheckKind::Grpc {
                service: self.text(section.get("grpc_service")).unwrap_or_default(),
                tls: self.flag(section.get("grpc_use_tls"), false).then(|| self.check_tls(section)),
            },
            (_, Some("script")) => {
                if section.get("command").is_none() {
                    self.source.problem(&block.ident, "a script check needs `command`");
                }
                if place.task.is_none() && section.get("task").is_none() {
                    let message = "a script check of a group's service needs `task`, the task it runs in";
                    self.source.problem(&block.ident, message);
                }
                CheckKind::Script {
                    command: self.text(section.get("command")).unwrap_or_default(),
                    args: self.texts(section.get("args")),
                }
            }
            (_, Some("ttl")) => CheckKind::Ttl,
            (Some(at), Some(other)) => {
                let message = format!(
                    "check type `{other}` is not known; use \"http\", \"tcp\", \"grpc\", \"script\" or \"ttl\""
                );
                self.source.problem(at, message);
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
        let https = self.choice(section.get("protocol"), false, &[(false, "http"), (true, "https")]);
        CheckKind::Http {
            method,
            path,
            headers: self.headers(section),
            body: self.text(section.get("body")).unwrap_or_default(),
            tls: https.then(|| self.check_tls(section)),
        }
    }

    fn check_tls(&mut self, section: &Section<'_>) -> CheckTls {
        CheckTls {
            server_name: self.text(section.get("tls_server_name")).unwrap_or_default(),
            skip_verify: self.flag(section.get("tls_skip_verify"), false),
        }
    }

    /// `header { Name = ["value"] }`.
    fn headers(&mut self, section: &Section<'_>) -> BTreeMap<String, Vec<String>> {
        let mut headers = BTreeMap::new();
        for block in section.all("header") {
            for attribute in block.body.attributes() {
                headers.insert(attribute.key.as_str().to_owned(), self.texts(Some(&attribute.value)));
            }
            for inner in block.body.blocks() {
                self.source.problem(&inner.ident, "`header` holds only `Name = [\"value\"]`");
            }
        }
        if let Some(at) = section.get("header") {
            let fields = self.text_map(at).into_iter();
            headers.extend(fields.map(|(name, value)| (name, vec![value])));
        }
        headers
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
