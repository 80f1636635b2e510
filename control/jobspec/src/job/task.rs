//! Tasks: driver, resources, logs, signals.

use super::Reader;
use super::service::Place;
use crate::section::{Section, Shape};
use hcl_edit::expr::Expression;
use hcl_edit::structure::Block;
use model::{
    DeviceRequest, ExecConfig, Lifecycle, LifecycleHook, LogConfig, Plugin, PluginConfig, Resources, Task, TaskDriver,
    rules,
};
use std::time::Duration;

const TASK: Shape = Shape {
    name: "task",
    keys: &["driver", "user", "kill_timeout", "kill_signal", "shutdown_delay", "leader", "env", "meta"],
    blocks: &[
        "config",
        "constraint",
        "affinity",
        "env",
        "service",
        "resources",
        "restart",
        "lifecycle",
        "artifact",
        "template",
        "volume_mount",
        "dispatch_payload",
        "meta",
        "logs",
    ],
    not_built: &["action", "consul", "csi_plugin", "identity", "kind", "scaling", "schedule", "secret", "vault"],
    only: &[],
};
const LIFECYCLE: Shape =
    Shape { name: "lifecycle", keys: &["hook", "sidecar"], blocks: &[], not_built: &[], only: &[] };
const DISPATCH_PAYLOAD: Shape =
    Shape { name: "dispatch_payload", keys: &["file"], blocks: &[], not_built: &[], only: &[] };
const CONFIG: Shape = Shape {
    name: "config",
    keys: &["command", "args", "work_dir", "cap_add", "cap_drop"],
    blocks: &[],
    not_built: &[
        "cgroup_v1_override",
        "cgroup_v2_override",
        "denied_envvars",
        "ipc_mode",
        "oom_score_adj",
        "pid_mode",
        "task_user",
    ],
    only: &[],
};
const RESOURCES: Shape = Shape {
    name: "resources",
    keys: &["cpu", "memory", "memory_max", "cores"],
    blocks: &["device"],
    not_built: &["disk", "iops", "network", "numa", "secrets"],
    only: &[],
};
const LOGS: Shape = Shape {
    name: "logs",
    keys: &["max_files", "max_file_size"],
    blocks: &[],
    not_built: &["destination"],
    only: &[("disabled", "false"), ("enabled", "true")],
};

const DRIVERS_NOT_BUILT: [&str; 2] = ["qemu", "containerd-driver"];

impl Reader<'_, '_, '_> {
    pub(super) fn task(&mut self, block: &Block, group: &Place) -> Task {
        let section = Section::read(&block.body, &TASK, self.source);
        let name = self.label(block);
        self.rule(&block.ident, "the task's name", rules::task_name(&name));
        let place = Place { task: Some(name.clone()), ..group.clone() };
        let driver = self.driver(block, &section);
        let (resources, devices) = self.resources(&section);
        let restart = section.all("restart").next().map(|_| self.restart(&section, group.restart));
        let task = Task {
            user: self.text(section.get("user")).filter(|user| !user.is_empty()),
            env: self.strings_by_name(&section, "env"),
            constraints: self.constraints(&section),
            affinities: self.affinities(&section),
            resources,
            devices,
            restart: restart.filter(|restart| *restart != group.restart),
            lifecycle: self.lifecycle(&section),
            leader: self.flag(section.get("leader"), false),
            shutdown_delay: self.duration(section.get("shutdown_delay"), Duration::ZERO),
            artifacts: self.artifacts(&section),
            templates: self.templates(&section),
            volume_mounts: self.volume_mounts(&section),
            payload_file: self.payload_file(&section),
            kill_timeout: self.duration(section.get("kill_timeout"), rules::DEFAULT_KILL_TIMEOUT),
            kill_signal: self.signal(section.get("kill_signal")),
            services: self.services(&section, &place),
            logs: self.logs(&section),
            meta: self.strings_by_name(&section, "meta"),
            ..Task::named(&name, driver)
        };
        self.unbuilt(&section, block, rules::unbuilt_in_task(&task));
        task
    }

    fn lifecycle(&mut self, section: &Section<'_>) -> Option<Lifecycle> {
        let block = section.one("lifecycle", self.source)?;
        let section = Section::read(&block.body, &LIFECYCLE, self.source);
        if section.get("hook").is_none() {
            let message = "`lifecycle` needs `hook`: \"prestart\", \"poststart\" or \"poststop\"";
            self.source.problem(&block.ident, message);
        }
        let known = LifecycleHook::ALL.map(|hook| (hook, hook.as_str()));
        let hook = self.choice(section.get("hook"), LifecycleHook::Prestart, &known);
        Some(Lifecycle { hook, sidecar: self.flag(section.get("sidecar"), false) })
    }

    fn payload_file(&mut self, section: &Section<'_>) -> Option<String> {
        let block = section.one("dispatch_payload", self.source)?;
        let section = Section::read(&block.body, &DISPATCH_PAYLOAD, self.source);
        if section.get("file").is_none() {
            self.source.problem(&block.ident, "`dispatch_payload` needs `file`, a name below local/");
        }
        Some(self.inside(section.get("file"), "payload"))
    }

    fn driver(&mut self, block: &Block, section: &Section<'_>) -> TaskDriver {
        let name = self.text(section.get("driver"));
        if let Some(plugin) = name.as_deref().and_then(Plugin::parse) {
            return self.plugin(plugin, block, section);
        }
        match (section.get("driver"), name.as_deref()) {
            (_, Some("exec" | "raw_exec")) => {}
            (Some(at), Some(other)) => {
                let known = DRIVERS_NOT_BUILT.contains(&other);
                let state = if known { "is not built yet" } else { "is not known" };
                self.source.problem(at, format!("driver `{other}` {state}; use \"exec\" or \"raw_exec\""));
                // Its config is another driver's: nothing to say about it.
                return TaskDriver::Exec(ExecConfig::default());
            }
            _ => self.source.problem(&block.ident, "a task needs `driver`; use \"exec\" or \"raw_exec\""),
        }
        let config = self.config(block, section);
        if name.as_deref() == Some("raw_exec") { TaskDriver::RawExec(config) } else { TaskDriver::Exec(config) }
    }

    fn plugin(&mut self, driver: Plugin, task: &Block, section: &Section<'_>) -> TaskDriver {
        let config = section.one("config", self.source);
        TaskDriver::Plugin(match config {
            Some(block) => self.plugin_config(driver, block),
            None => {
                self.source.problem(&task.ident, "a task needs a `config` block");
                PluginConfig { driver, config: Default::default() }
            }
        })
    }

    fn config(&mut self, task: &Block, section: &Section<'_>) -> ExecConfig {
        let Some(block) = section.one("config", self.source) else {
            self.source.problem(&task.ident, "a task needs a `config` block with `command`");
            return ExecConfig::default();
        };
        let section = Section::read(&block.body, &CONFIG, self.source);
        let command = self.text(section.get("command")).unwrap_or_default();
        if command.is_empty() && section.get("command").is_none() {
            self.source.problem(&block.ident, "`config` needs `command`, the program to run");
        } else if let Some(at) = section.get("command").filter(|_| command.is_empty()) {
            self.source.problem(at, "must name the program to run");
        }
        ExecConfig {
            command,
            args: self.texts(section.get("args")),
            work_dir: self.text(section.get("work_dir")).filter(|dir| !dir.is_empty()),
            cap_add: self.texts(section.get("cap_add")),
            cap_drop: self.texts(section.get("cap_drop")),
        }
    }

    fn resources(&mut self, section: &Section<'_>) -> (Resources, Vec<DeviceRequest>) {
        let default = Resources::default();
        let Some(block) = section.one("resources", self.source) else { return (default, Vec::new()) };
        let section = Section::read(&block.body, &RESOURCES, self.source);
        let resources = Resources {
            cpu_mhz: self.number(section.get("cpu"), rules::CPU_MHZ_MIN, u64::MAX, default.cpu_mhz),
            memory_mb: self.number(section.get("memory"), rules::MEMORY_MB_MIN, u64::MAX, default.memory_mb),
            memory_max_mb: self.number(section.get("memory_max"), 0, u64::MAX, default.memory_max_mb),
            cores: self.number(section.get("cores"), 0, 1024, default.cores),
        };
        (resources, self.devices(&section))
    }

    fn logs(&mut self, section: &Section<'_>) -> LogConfig {
        let default = LogConfig::default();
        let Some(block) = section.one("logs", self.source) else { return default };
        let section = Section::read(&block.body, &LOGS, self.source);
        LogConfig {
            files_max: self.number(section.get("max_files"), 1, 10_000, default.files_max),
            file_size_mb_max: self.number(section.get("max_file_size"), 1, 1 << 20, default.file_size_mb_max),
        }
    }

    pub(super) fn signal(&mut self, at: Option<&Expression>) -> Option<String> {
        let at = at?;
        let text = self.text(Some(at))?;
        match rules::signal(&text) {
            Ok(name) => Some(name.to_owned()),
            Err(reason) => {
                self.source.problem(at, format!("`{text}` {reason}"));
                None
            }
        }
    }
}
