//! How a task is run: the drivers and what their `config` may say.

use std::collections::BTreeMap;

/// A driver with its own configuration, already checked.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum TaskDriver {
    /// Isolated: own pid, mount, ipc and uts namespaces, own root, cgroup, no new privileges.
    Exec(ExecConfig),
    /// A plain process in a cgroup of its own.
    RawExec(ExecConfig),
    /// A driver whose `config` is kept as written and checked against its [`Plugin::schema`].
    Plugin(PluginConfig),
}

impl TaskDriver {
    pub fn name(&self) -> &'static str {
        match self {
            TaskDriver::Exec(_) => "exec",
            TaskDriver::RawExec(_) => "raw_exec",
            TaskDriver::Plugin(plugin) => plugin.driver.as_str(),
        }
    }
}

/// `command` and `args` may hold `${NOMAD_…}`, `${env["…"]}`-free interpolations that the agent resolves at start.
#[derive(Clone, Debug, PartialEq, Eq, Default)]
pub struct ExecConfig {
    pub command: String,
    pub args: Vec<String>,
    /// Where the process starts, as it sees it; `None` is the task's directory.
    pub work_dir: Option<String>,
    /// Capabilities beyond the driver's default set, without `CAP_`, lower case.
    pub cap_add: Vec<String>,
    pub cap_drop: Vec<String>,
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PluginConfig {
    pub driver: Plugin,
    /// Only keys of the driver's schema, each with a value of its kind.
    pub config: BTreeMap<String, ConfigValue>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Plugin {
    Docker,
    Podman,
    Java,
}

/// A value of a driver's `config`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum ConfigValue {
    Bool(bool),
    Integer(i64),
    Text(String),
    List(Vec<ConfigValue>),
    Map(BTreeMap<String, ConfigValue>),
}

/// What a key of a driver's `config` takes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ConfigKind {
    Bool,
    Integer,
    Text,
    TextList,
    TextMap,
    /// A block, once.
    Block(&'static [ConfigKey]),
    /// A block, any number of times.
    Blocks(&'static [ConfigKey]),
    /// Known, and refused by name.
    NotBuilt,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ConfigKey {
    pub name: &'static str,
    pub kind: ConfigKind,
    pub required: bool,
}

const fn key(name: &'static str, kind: ConfigKind) -> ConfigKey {
    ConfigKey { name, kind, required: false }
}

const fn required(name: &'static str, kind: ConfigKind) -> ConfigKey {
    ConfigKey { name, kind, required: true }
}

const DOCKER: &[ConfigKey] = &[
    required("image", ConfigKind::Text),
    key("command", ConfigKind::Text),
    key("args", ConfigKind::TextList),
    key("entrypoint", ConfigKind::TextList),
    key("ports", ConfigKind::TextList),
    key("work_dir", ConfigKind::Text),
    key("force_pull", ConfigKind::Bool),
    key("image_pull_timeout", ConfigKind::Text),
    key("auth_soft_fail", ConfigKind::Bool),
    key("auth", ConfigKind::Block(DOCKER_AUTH)),
    key("volumes", ConfigKind::TextList),
    key("mount", ConfigKind::Blocks(DOCKER_MOUNT)),
    key("mounts", ConfigKind::NotBuilt),
    key("devices", ConfigKind::Blocks(DOCKER_DEVICE)),
    key("cap_add", ConfigKind::TextList),
    key("cap_drop", ConfigKind::TextList),
    key("privileged", ConfigKind::Bool),
    key("hostname", ConfigKind::Text),
    key("network_mode", ConfigKind::Text),
    key("network_aliases", ConfigKind::NotBuilt),
    key("ipv4_address", ConfigKind::NotBuilt),
    key("ipv6_address", ConfigKind::NotBuilt),
    key("mac_address", ConfigKind::NotBuilt),
    key("dns_servers", ConfigKind::TextList),
    key("dns_search_domains", ConfigKind::TextList),
    key("dns_options", ConfigKind::TextList),
    key("extra_hosts", ConfigKind::TextList),
    key("labels", ConfigKind::TextMap),
    key("sysctl", ConfigKind::TextMap),
    key("ulimit", ConfigKind::TextMap),
    key("security_opt", ConfigKind::TextList),
    key("shm_size", ConfigKind::Integer),
    key("storage_opt", ConfigKind::TextMap),
    key("group_add", ConfigKind::TextList),
    key("init", ConfigKind::Bool),
    key("interactive", ConfigKind::Bool),
    key("tty", ConfigKind::Bool),
    key("ipc_mode", ConfigKind::Text),
    key("pid_mode", ConfigKind::Text),
    key("uts_mode", ConfigKind::Text),
    key("userns_mode", ConfigKind::Text),
    key("cgroupns", ConfigKind::Text),
    key("runtime", ConfigKind::Text),
    key("isolation", ConfigKind::NotBuilt),
    key("pids_limit", ConfigKind::Integer),
    key("cpu_hard_limit", ConfigKind::Bool),
    key("cpu_cfs_period", ConfigKind::Integer),
    key("cpuset_cpus", ConfigKind::Text),
    key("memory_hard_limit", ConfigKind::Integer),
    key("oom_score_adj", ConfigKind::Integer),
    key("readonly_rootfs", ConfigKind::Bool),
    key("container_exists_attempts", ConfigKind::Integer),
    key("disable_entrypoint", ConfigKind::NotBuilt),
    key("advertise_ipv6_address", ConfigKind::NotBuilt),
    key("healthchecks", ConfigKind::NotBuilt),
    key("load", ConfigKind::Text),
    key("logging", ConfigKind::NotBuilt),
    key("port_map", ConfigKind::NotBuilt),
    key("volume_driver", ConfigKind::NotBuilt),
];

const DOCKER_AUTH: &[ConfigKey] = &[
    key("username", ConfigKind::Text),
    key("password", ConfigKind::Text),
    key("email", ConfigKind::Text),
    key("server_address", ConfigKind::Text),
];

const DOCKER_MOUNT: &[ConfigKey] = &[
    key("type", ConfigKind::Text),
    required("target", ConfigKind::Text),
    key("source", ConfigKind::Text),
    key("readonly", ConfigKind::Bool),
    key("bind_options", ConfigKind::Block(&[key("propagation", ConfigKind::Text)])),
    key("tmpfs_options", ConfigKind::Block(&[key("mode", ConfigKind::Integer), key("size", ConfigKind::Integer)])),
    key("volume_options", ConfigKind::NotBuilt),
];

const DOCKER_DEVICE: &[ConfigKey] = &[
    required("host_path", ConfigKind::Text),
    key("container_path", ConfigKind::Text),
    key("cgroup_permissions", ConfigKind::Text),
];

const JAVA: &[ConfigKey] = &[
    key("jar_path", ConfigKind::Text),
    key("class", ConfigKind::Text),
    key("class_path", ConfigKind::Text),
    key("args", ConfigKind::TextList),
    key("jvm_options", ConfigKind::TextList),
    key("cap_add", ConfigKind::NotBuilt),
    key("cap_drop", ConfigKind::NotBuilt),
    key("ipc_mode", ConfigKind::NotBuilt),
    key("pid_mode", ConfigKind::NotBuilt),
    key("work_dir", ConfigKind::NotBuilt),
];

impl Plugin {
    pub const ALL: [Plugin; 3] = [Plugin::Docker, Plugin::Podman, Plugin::Java];

    pub fn as_str(self) -> &'static str {
        match self {
            Plugin::Docker => "docker",
            Plugin::Podman => "podman",
            Plugin::Java => "java",
        }
    }

    pub fn parse(text: &str) -> Option<Self> {
        Self::ALL.into_iter().find(|plugin| plugin.as_str() == text)
    }

    /// Every key that the driver's `config` may hold.
    pub fn schema(self) -> &'static [ConfigKey] {
        match self {
            Plugin::Docker | Plugin::Podman => DOCKER,
            Plugin::Java => JAVA,
        }
    }
}

impl PluginConfig {
    pub fn text(&self, key: &str) -> Option<&str> {
        self.config.get(key).and_then(ConfigValue::as_text)
    }

    pub fn integer(&self, key: &str) -> Option<i64> {
        match self.config.get(key) {
            Some(ConfigValue::Integer(value)) => Some(*value),
            _ => None,
        }
    }

    /// False when it is absent.
    pub fn flag(&self, key: &str) -> bool {
        matches!(self.config.get(key), Some(ConfigValue::Bool(true)))
    }

    pub fn texts(&self, key: &str) -> Vec<&str> {
        match self.config.get(key) {
            Some(ConfigValue::List(items)) => items.iter().filter_map(ConfigValue::as_text).collect(),
            _ => Vec::new(),
        }
    }

    pub fn map(&self, key: &str) -> Vec<(&str, &str)> {
        match self.config.get(key) {
            Some(ConfigValue::Map(fields)) => {
                fields.iter().filter_map(|(name, value)| Some((name.as_str(), value.as_text()?))).collect()
            }
            _ => Vec::new(),
        }
    }
}

impl ConfigValue {
    pub fn as_text(&self) -> Option<&str> {
        match self {
            ConfigValue::Text(text) => Some(text),
            _ => None,
        }
    }
}
