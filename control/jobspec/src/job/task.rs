//! Tasks: driver, resources, logs, signals.

use super::Reader;
use super::service::Place;
use crate::section::{Section, Shape};
use hcl_edit::structure::Block;
use model::{ExecConfig, LogConfig, Resources, Task, TaskDriver, rules};

const TASK: Shape = Shape {
    name: "task",
    keys: &["driver", "user", "kill_timeout", "kill_signal", "env", "meta"],
    blocks: &["config", "constraint", "env", "service", "resources", "meta", "logs"],
    not_built: &[
        "action",
        "affinity",
        "artifact",
        "consul",
        "csi_plugin",
        "dispatch_payload",
        "identity",
        "kind",
        "lifecycle",
        "restart",
        "scaling",
        "schedule",
        "secret",
        "shutdown_delay",
        "template",
        "vault",
        "volume_mount",
    ],
    only: &[("leader", "false")],
};
const CONFIG: Shape = Shape {
    name: "config",
    keys: &["command", "args"],
    blocks: &[],
    not_built: &[
        "cap_add",
        "cap_drop",
        "cgroup_v1_override",
        "cgroup_v2_override",
        "denied_envvars",
        "ipc_mode",
        "oom_score_adj",
        "pid_mode",
        "task_user",
        "work_dir",
    ],
    only: &[],
};
const RESOURCES: Shape = Shape {
    name: "resources",
    keys: &["cpu", "memory"],
    blocks: &[],
    not_built: &["cores", "device", "disk", "iops", "memory_max", "network", "numa", "secrets"],
    only: &[],
};
const LOGS: Shape = Shape {
    name: "logs",
    keys: &["max_files", "max_file_size"],
    blocks: &[],
    not_built: &["destination"],
    only: &[("disabled", "false"), ("enabled", "true")],
};

const DRIVERS_NOT_BUILT: [&str; 5] = ["docker", "java", "podman", "qemu", "containerd-driver"];

impl Reader<'_, '_, '_> {
    pub(super) fn task(&mut self, block: &Block, group: &Place) -> Task {
        let section = Section::read(&block.body, &TASK, self.source);
        let name = self.label(block);
        self.rule(&block.ident, "the task's name", rules::task_name(&name));
        let place = Place { task: Some(name.clone()), ..group.clone() };
        let driver = self.driver(block, &section);
        Task {
            user: self.text(section.get("user")).filter(|user| !user.is_empty()),
            env: self.strings_by_name(&section, "env"),
            constraints: self.constraints(&section),
            resources: self.resources(&section),
            kill_timeout: self.duration(section.get("kill_timeout"), rules::DEFAULT_KILL_TIMEOUT),
            kill_signal: self.signal(&section),
            services: self.services(&section, &place),
            logs: self.logs(&section),
            meta: self.strings_by_name(&section, "meta"),
            ..Task::named(&name, driver)
        }
    }

    fn driver(&mut self, block: &Block, section: &Section<'_>) -> TaskDriver {
        let name = self.text(section.get("driver"));
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
        ExecConfig { command, args: self.texts(section.get("args")), ..ExecConfig::default() }
    }

    fn resources(&mut self, section: &Section<'_>) -> Resources {
        let default = Resources::default();
        let Some(block) = section.one("resources", self.source) else { return default };
        let section = Section::read(&block.body, &RESOURCES, self.source);
        Resources {
            cpu_mhz: self.number(section.get("cpu"), rules::CPU_MHZ_MIN, u64::MAX, default.cpu_mhz),
            memory_mb: self.number(section.get("memory"), rules::MEMORY_MB_MIN, u64::MAX, default.memory_mb),
            ..default
        }
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

    fn signal(&mut self, section: &Section<'_>) -> Option<String> {
        let at = section.get("kill_signal")?;
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
