//! `docker` and `podman`: the same driver on another socket. Decides what a task's `config` makes of a container; what may
//! reach the node itself is refused unless the agent's configuration allows it.

use crate::container::blocking;
use crate::driver::{
    Driver, Launch, PrepareError, Seen, cpu_quota, hosts_file, limits, other_driver, resolv_conf, status, task_env_of,
    task_spec,
};
use crate::env::{interpolate, node_values};
use crate::spec::{ContainerTask, Directories, Isolation, Limits, TaskSpec};
use containers::{
    Auth, ContainerSpec, Device, Dns, Engine, EngineError, LABEL_ALLOC, LABEL_KIND, LABEL_NODE, LABEL_TASK, Mount,
    MountKind, Network, Published, Pull, SandboxSpec, Ulimit, collect_images, image_name, sandbox_name,
};
use futures::future::BoxFuture;
use model::{AllocId, ConfigValue, DriverStatus, NetworkMode, Plugin, PluginConfig, TaskDriver};
use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};
use std::time::Duration;

const SEEN: [&str; 3] = ["/alloc", "/local", "/secrets"];

/// What Docker itself gives a container, less raw sockets, as Nomad has it.
const CAPABILITIES: [&str; 13] = [
    "AUDIT_WRITE",
    "CHOWN",
    "DAC_OVERRIDE",
    "FOWNER",
    "FSETID",
    "KILL",
    "MKNOD",
    "NET_BIND_SERVICE",
    "SETFCAP",
    "SETGID",
    "SETPCAP",
    "SETUID",
    "SYS_CHROOT",
];

const CFS_PERIOD_US: u64 = 100_000;
const PULL_TIMEOUT: Duration = Duration::from_secs(300);
const FINGERPRINT_WITHIN: Duration = Duration::from_secs(10);

/// What the node's owner allows.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct DockerOptions {
    /// The engine's unix socket.
    pub socket: PathBuf,
    /// Where locks and records of images are kept.
    pub images: PathBuf,
    /// Containers with all rights on the node, its devices and its namespaces.
    pub allow_privileged: bool,
    /// Any directory of the node and named volumes of the engine.
    pub volumes: bool,
    /// Capabilities, as `NET_RAW`, that `cap_add` may name beyond the default set.
    pub allow_capabilities: BTreeSet<String>,
    /// Images that the node fetched go when nothing has used them for this long; `None` keeps them.
    pub image_unused: Option<Duration>,
}

impl DockerOptions {
    /// Nomad's defaults.
    pub fn new(plugin: Plugin, images: impl Into<PathBuf>) -> Self {
        let socket = if plugin == Plugin::Podman { "/run/podman/podman.sock" } else { "/var/run/docker.sock" };
        Self {
            socket: PathBuf::from(socket),
            images: images.into(),
            allow_privileged: false,
            volumes: false,
            allow_capabilities: BTreeSet::new(),
            image_unused: Some(Duration::from_secs(180)),
        }
    }
}

/// Containers of an engine on this machine.
#[derive(Clone, Debug)]
pub struct Docker {
    plugin: Plugin,
    options: DockerOptions,
}

impl Docker {
    /// `docker`, or `podman`, which speaks to podman's service of Docker's API.
    pub fn new(plugin: Plugin, options: DockerOptions) -> Self {
        Self { plugin, options }
    }

    fn version(&self) -> Result<containers::Version, EngineError> {
        let socket = self.options.socket.clone();
        blocking(async move {
            let asked = async { Engine::open(&socket).await?.version().await };
            let late = || EngineError::Broken(format!("the engine at {} does not answer", socket.display()));
            tokio::time::timeout(FINGERPRINT_WITHIN, asked).await.unwrap_or_else(|_| Err(late()))
        })
    }

    async fn tidy_up(&self, node: &str, living: &BTreeSet<AllocId>) -> Result<Vec<String>, EngineError> {
        let engine = Engine::open(&self.options.socket).await?;
        let ids: BTreeSet<_> = living.iter().map(AllocId::to_string).collect();
        let mut done = Vec::new();
        for found in engine.list(node).await? {
            let alloc = found.labels.get(LABEL_ALLOC).cloned().unwrap_or_default();
            if !ids.contains(&alloc) {
                engine.remove(&found.id).await?;
                done.push(format!("removed container {} of allocation {alloc}, which is not here", found.id));
            }
        }
        if let Some(unused_for) = self.options.image_unused {
            let gone = collect_images(&engine, &self.options.images, unused_for).await?;
            done.extend(gone.into_iter().map(|image| format!("removed image {image}, which nothing uses")));
        }
        Ok(done)
    }
}

impl Driver for Docker {
    fn name(&self) -> &'static str {
        self.plugin.as_str()
    }

    fn fingerprint(&self) -> DriverStatus {
        match self.version() {
            Ok(found) => status(None, &format!("{} {}", found.name, found.version)),
            Err(error) => status(Some(crate::init::explain(&error)), ""),
        }
    }

    fn attributes(&self) -> BTreeMap<String, String> {
        let name = self.name();
        let flag = |key: &str, on: bool| on.then(|| (format!("driver.{name}.{key}"), "true".to_owned()));
        let version = self.version().ok().map(|found| (format!("driver.{name}.version"), found.version));
        let flags =
            [flag("privileged.enabled", self.options.allow_privileged), flag("volumes.enabled", self.options.volumes)];
        // What an engine that is not there would allow is of no use to anybody.
        version.into_iter().flat_map(|version| flags.clone().into_iter().flatten().chain([version])).collect()
    }

    fn prepare(&self, launch: &Launch<'_>) -> Result<TaskSpec, PrepareError> {
        let TaskDriver::Plugin(config) = &launch.task.driver else { return Err(other_driver(self, launch)) };
        if config.driver != self.plugin {
            return Err(other_driver(self, launch));
        }
        let [alloc, local, secrets] = SEEN.map(PathBuf::from);
        let seen = Seen { alloc, local, secrets };
        let env = task_env_of(launch, &seen);
        let values = node_values(launch.node);
        let reader =
            Reader { launch, options: &self.options, plugin: self.plugin, config, env: &env.clone(), values: &values };
        let (task, limits) = (reader.task()?, reader.limits()?);
        let argv = task.container.entrypoint.iter().chain(&task.container.command).cloned().collect();
        let mut spec = task_spec(launch, argv, env, "SIGTERM", Isolation::Container(Box::new(task)));
        spec.limits = limits;
        spec.check()?;
        Ok(spec)
    }

    fn release(&self, alloc: AllocId) -> BoxFuture<'_, Result<(), String>> {
        Box::pin(async move {
            let removed = async {
                let engine = Engine::open(&self.options.socket).await?;
                engine.remove(&sandbox_name(&alloc.to_string())).await
            };
            removed.await.map_err(|error| crate::init::explain(&error))
        })
    }

    fn tidy<'a>(&'a self, node: &'a str, living: &'a BTreeSet<AllocId>) -> BoxFuture<'a, Vec<String>> {
        Box::pin(async move {
            if !self.options.socket.exists() {
                return Vec::new();
            }
            self.tidy_up(node, living).await.unwrap_or_else(|error| vec![crate::init::explain(&error)])
        })
    }
}

/// Reads a task's `config` with its references resolved.
struct Reader<'a> {
    launch: &'a Launch<'a>,
    options: &'a DockerOptions,
    plugin: Plugin,
    config: &'a PluginConfig,
    env: &'a BTreeMap<String, String>,
    values: &'a BTreeMap<String, String>,
}

type Read<T> = Result<T, PrepareError>;

impl Reader<'_> {
    fn task(&self) -> Read<ContainerTask> {
        let network = self.network()?;
        let files = self.files(&network);
        let own_names = matches!(network, Network::Sandbox(_) | Network::Namespace(_));
        let dns = if own_names { Dns::default() } else { self.dns() };
        let extra_hosts = if own_names { Vec::new() } else { self.texts("extra_hosts") };
        let capabilities = self.capabilities()?;
        let privileged = self.allowed("privileged", self.config.flag("privileged"))?;
        let container = ContainerSpec {
            socket: self.options.socket.clone(),
            name: format!("meshctl-{}-{}", self.launch.task.name, self.launch.alloc.id),
            image: image_name(&self.text("image").unwrap_or_default()),
            pull: self.pull()?,
            images: self.options.images.clone(),
            entrypoint: self.texts("entrypoint"),
            command: self.text("command").into_iter().chain(self.texts("args")).collect(),
            work_dir: self.text("work_dir"),
            hostname: self.hostname(&network)?,
            labels: self.labels(),
            dns,
            extra_hosts,
            mounts: self.mounts()?,
            devices: self.devices()?,
            capabilities,
            privileged,
            readonly_rootfs: self.config.flag("readonly_rootfs"),
            init: self.config.flag("init"),
            tty: self.config.flag("tty"),
            interactive: self.config.flag("interactive"),
            security_opt: self.security_opt()?,
            sysctls: self.map("sysctl"),
            ulimits: self.ulimits()?,
            storage_opt: self.map("storage_opt"),
            group_add: self.texts("group_add"),
            shm_bytes: self.count("shm_size")?,
            ipc_mode: self.namespace("ipc_mode")?,
            pid_mode: self.namespace("pid_mode")?,
            uts_mode: self.namespace("uts_mode")?,
            userns_mode: self.namespace("userns_mode")?,
            cgroupns: self.namespace("cgroupns")?,
            runtime: self.text("runtime"),
            oom_score_adj: self.config.integer("oom_score_adj"),
            network,
            // Whom it runs as, its environment and limits are the task's and come with it.
            ..ContainerSpec::default()
        };
        Ok(ContainerTask { container, files })
    }

    fn pull(&self) -> Read<Pull> {
        let timeout = match self.text("image_pull_timeout") {
            Some(text) => {
                model_duration(&text).ok_or_else(|| self.wrong("image_pull_timeout", "write for example \"5m\""))?
            }
            None => PULL_TIMEOUT,
        };
        let load = self.text("load").map(|file| self.below_task("load", &file)).transpose()?;
        Ok(Pull {
            force: self.config.flag("force_pull"),
            timeout_ms: u64::try_from(timeout.as_millis()).unwrap_or(u64::MAX),
            auth: self.block("auth").map(|auth| Auth {
                username: self.field(auth, "username"),
                password: self.field(auth, "password"),
                email: self.field(auth, "email"),
                server: self.field(auth, "server_address"),
            }),
            auth_soft_fail: self.config.flag("auth_soft_fail"),
            load,
        })
    }

    fn network(&self) -> Read<Network> {
        let group = self.launch.alloc.task_group().map_or(NetworkMode::Host, |group| group.network_mode());
        let asked = self.text("network_mode");
        if let (Some(mode), true) = (&asked, group != NetworkMode::Host) {
            return Err(self.wrong(
                "network_mode",
                &format!("{mode:?} and the group's network exclude each other; leave one out"),
            ));
        }
        match (group, &self.launch.netns) {
            (NetworkMode::None, _) => Ok(Network::None),
            (NetworkMode::Bridge, Some(netns)) if self.plugin == Plugin::Podman => {
                Ok(Network::Namespace(netns.clone()))
            }
            (NetworkMode::Bridge, Some(netns)) => Ok(Network::Sandbox(self.sandbox(netns))),
            (NetworkMode::Bridge, None) => Err(self.wrong("network", "the allocation's network is not there")),
            (NetworkMode::Host, _) => self.own_network(asked.as_deref()),
        }
    }

    fn sandbox(&self, netns: &Path) -> SandboxSpec {
        let alloc = self.launch.alloc.id;
        SandboxSpec {
            name: sandbox_name(&alloc.to_string()),
            node: self.launch.node.id.short(),
            alloc: alloc.to_string(),
            netns: netns.to_owned(),
            hostname: self.alloc_hostname(),
        }
    }

    fn own_network(&self, mode: Option<&str>) -> Read<Network> {
        match mode {
            Some("host") => Ok(Network::Host),
            Some("none") => Ok(Network::None),
            None | Some("default" | "bridge") => Ok(Network::Engine(self.published()?)),
            Some(mode) if mode.starts_with("container:") || mode.starts_with("ns:") => {
                let problem = format!("{mode:?} would join what is not the task's; use a group network of mode bridge");
                Err(self.wrong("network_mode", &problem))
            }
            Some(name) => Ok(Network::Named(name.to_owned(), self.published()?)),
        }
    }

    fn published(&self) -> Read<Vec<Published>> {
        let address = self.launch.node.address.to_string();
        let publish = |label: String| {
            let port = self.launch.alloc.ports.iter().find(|port| port.label == label);
            let port =
                port.ok_or_else(|| self.wrong("ports", &format!("the group's network has no port {label:?}")))?;
            Ok(Published { address: address.clone(), host_port: port.host_port, to: port.to })
        };
        self.texts("ports").into_iter().map(publish).collect()
    }

    fn alloc_hostname(&self) -> String {
        let asked = self.launch.alloc.task_group().and_then(|group| group.network.as_ref()?.hostname.clone());
        asked.map_or_else(|| self.launch.alloc.id.short(), |name| self.resolve(&name))
    }

    /// Who joins a namespace has its host name, too.
    fn hostname(&self, network: &Network) -> Read<Option<String>> {
        match (network, self.text("hostname")) {
            (Network::Sandbox(_), Some(_)) => {
                Err(self.wrong("hostname", "set it in the group's network block: tasks in one network share it"))
            }
            (Network::Sandbox(_) | Network::Host, None) => Ok(None),
            (_, asked) => Ok(Some(asked.unwrap_or_else(|| self.alloc_hostname()))),
        }
    }

    fn dns(&self) -> Dns {
        let group =
            self.launch.alloc.task_group().and_then(|group| group.network.as_ref()?.dns.clone()).unwrap_or_default();
        let or = |own: Vec<String>, groups: Vec<String>| if own.is_empty() { groups } else { own };
        Dns {
            servers: or(self.texts("dns_servers"), group.servers),
            searches: or(self.texts("dns_search_domains"), group.searches),
            options: or(self.texts("dns_options"), group.options),
        }
    }

    /// In the allocation's network names are the agent's to say, not the engine's.
    fn files(&self, network: &Network) -> BTreeMap<String, String> {
        if !matches!(network, Network::Sandbox(_) | Network::Namespace(_)) {
            return BTreeMap::new();
        }
        let mut hosts = hosts_file(&self.alloc_hostname(), self.launch.address);
        for line in self.texts("extra_hosts") {
            if let Some((name, address)) = line.split_once(':') {
                hosts.push_str(&format!("{address} {name}\n"));
            }
        }
        let dns = self.dns();
        let mut files = BTreeMap::from([("/etc/hosts".to_owned(), hosts)]);
        let mut lines: String = dns.servers.iter().map(|server| format!("nameserver {server}\n")).collect();
        if let (true, Some(resolver)) = (lines.is_empty(), self.launch.resolver) {
            lines = resolv_conf(resolver);
        }
        if !dns.searches.is_empty() {
            lines.push_str(&format!("search {}\n", dns.searches.join(" ")));
        }
        if !dns.options.is_empty() {
            lines.push_str(&format!("options {}\n", dns.options.join(" ")));
        }
        if !lines.is_empty() {
            files.insert("/etc/resolv.conf".to_owned(), lines);
        }
        files
    }

    /// Ours last, so that nobody's label makes a container look like another's.
    fn labels(&self) -> BTreeMap<String, String> {
        let alloc = self.launch.alloc.id.to_string();
        let own = [
            (LABEL_NODE, self.launch.node.id.short()),
            (LABEL_ALLOC, alloc.clone()),
            (LABEL_TASK, self.launch.task.name.clone()),
            (LABEL_KIND, "task".to_owned()),
            // What log collectors of the old stack look for.
            ("com.hashicorp.nomad.alloc_id", alloc),
        ];
        let mut labels = self.map("labels");
        labels.extend(own.map(|(key, value)| (key.to_owned(), value)));
        labels
    }

    fn mounts(&self) -> Read<Vec<Mount>> {
        let dirs = Directories::under(self.launch.root, &self.launch.task.name);
        let bind = |source: PathBuf, target: &str, read_only| Mount {
            kind: MountKind::Bind { source, propagation: None },
            target: target.to_owned(),
            read_only,
        };
        let mut mounts = vec![
            bind(dirs.alloc, SEEN[0], false),
            // The supervisor appends there as root: a container must not be able to plant links.
            bind(dirs.logs, "/alloc/logs", true),
            bind(dirs.local, SEEN[1], false),
            bind(dirs.secrets, SEEN[2], false),
        ];
        for text in self.texts("volumes") {
            mounts.push(self.volume(&text)?);
        }
        for block in self.blocks("mount") {
            mounts.push(self.mount(block)?);
        }
        Ok(mounts)
    }

    /// `source:target[:options]`; a source without a leading `/` or `.` is a volume of the engine's where the node allows those.
    fn volume(&self, text: &str) -> Read<Mount> {
        let parts: Vec<_> = text.split(':').collect();
        let (source, target, options) = match parts[..] {
            [source, target] => (source, target, ""),
            [source, target, options] => (source, target, options),
            _ => return Err(self.wrong("volumes", &format!("{text:?}: write source:target or source:target:ro"))),
        };
        let read_only = options.split(',').any(|option| option == "ro");
        let named = self.options.volumes && !source.contains('/') && !source.starts_with('.');
        let kind = match named {
            true => MountKind::Volume { name: source.to_owned() },
            false => MountKind::Bind { source: self.source("volumes", source)?, propagation: None },
        };
        Ok(Mount { kind, target: target.to_owned(), read_only })
    }

    fn mount(&self, block: &Block) -> Read<Mount> {
        let (source, target) = (self.field(block, "source"), self.field(block, "target"));
        let read_only = block.get("readonly") == Some(&ConfigValue::Bool(true));
        let inner = |name: &str| match block.get(name) {
            Some(ConfigValue::Map(inner)) => Some(inner),
            _ => None,
        };
        let kind = match self.field(block, "type").as_str() {
            "bind" => MountKind::Bind {
                source: self.source("mount", &source)?,
                propagation: inner("bind_options")
                    .map(|inner| self.field(inner, "propagation"))
                    .filter(|text| !text.is_empty()),
            },
            "" | "volume" => {
                self.allowed_volumes("mount", !source.is_empty())?;
                MountKind::Volume { name: source }
            }
            "tmpfs" => {
                let options = inner("tmpfs_options");
                let number = |name: &str| options.and_then(|inner| inner.get(name)).and_then(integer);
                let mode = number("mode").and_then(|mode| u32::try_from(mode).ok());
                MountKind::Tmpfs { bytes: number("size").and_then(|size| u64::try_from(size).ok()), mode }
            }
            other => return Err(self.wrong("mount", &format!("type {other:?}: write bind, volume or tmpfs"))),
        };
        Ok(Mount { kind, target, read_only })
    }

    /// A path below the task's own directory, or any where the node allows that.
    fn source(&self, key: &'static str, source: &str) -> Read<PathBuf> {
        if source.starts_with('/') {
            self.allowed_volumes(key, true)?;
            return Ok(PathBuf::from(source));
        }
        self.below_task(key, source)
    }

    fn below_task(&self, key: &'static str, path: &str) -> Read<PathBuf> {
        use std::path::Component::{CurDir, Normal};
        let path = Path::new(path);
        if !path.components().all(|part| matches!(part, Normal(_) | CurDir)) {
            return Err(self.wrong(key, &format!("{} leaves the task's directory", path.display())));
        }
        let dirs = Directories::under(self.launch.root, &self.launch.task.name);
        // The control directory beside it is the supervisor's alone.
        match path.components().find(|part| matches!(part, Normal(_))).map(|part| part.as_os_str().to_owned()) {
            Some(first) if first == "local" || first == "secrets" => {
                Ok(dirs.local.parent().unwrap_or(self.launch.root).join(path))
            }
            _ => Ok(dirs.local.join(path)),
        }
    }

    fn allowed_volumes(&self, key: &'static str, asked: bool) -> Read<()> {
        match asked && !self.options.volumes {
            true => Err(self.wrong(key, "directories of the node and named volumes are off here; set volumes.enabled of the driver in the agent's configuration, or use a path below the task's directory")),
            false => Ok(()),
        }
    }

    fn devices(&self) -> Read<Vec<Device>> {
        let blocks = self.blocks("devices");
        self.allowed("devices", !blocks.is_empty())?;
        let device = |block: &Block| {
            let host = self.field(block, "host_path");
            let or = |text: String, default: &str| if text.is_empty() { default.to_owned() } else { text };
            let container = or(self.field(block, "container_path"), &host);
            Device { host, container, permissions: or(self.field(block, "cgroup_permissions"), "rwm") }
        };
        Ok(blocks.into_iter().map(device).collect())
    }

    fn capabilities(&self) -> Read<Vec<String>> {
        let name = |text: String| text.to_ascii_uppercase().trim_start_matches("CAP_").to_owned();
        let mut set: BTreeSet<String> = CAPABILITIES.map(str::to_owned).into();
        let dropped: BTreeSet<String> = self.texts("cap_drop").into_iter().map(name).collect();
        set.retain(|cap| !dropped.contains(cap) && !dropped.contains("ALL"));
        for cap in self.texts("cap_add").into_iter().map(name) {
            let known = CAPABILITIES.contains(&cap.as_str()) || self.options.allow_capabilities.contains(&cap);
            if !known && !self.options.allow_privileged {
                let problem =
                    format!("{cap} is not allowed here; an agent started with --docker-allow-privileged allows it");
                return Err(self.wrong("cap_add", &problem));
            }
            set.insert(cap);
        }
        Ok(set.into_iter().collect())
    }

    /// Options that take protection away count as privileges.
    fn security_opt(&self) -> Read<Vec<String>> {
        let options = self.texts("security_opt");
        let weaker = options.iter().any(|option| option.contains("unconfined") || option.contains("disable"));
        self.allowed("security_opt", weaker)?;
        Ok(options)
    }

    fn ulimits(&self) -> Read<Vec<Ulimit>> {
        let parse = |(name, text): (String, String)| {
            let (soft, hard) = text.split_once(':').unwrap_or((&text, &text));
            let (soft, hard) = (soft.parse(), hard.parse());
            match (soft, hard) {
                (Ok(soft), Ok(hard)) => Ok(Ulimit { name, soft, hard }),
                _ => Err(self.wrong("ulimit", &format!("{name} = {text:?}: write a number, or soft:hard"))),
            }
        };
        self.map("ulimit").into_iter().map(parse).collect()
    }

    /// The node's own namespaces, and another container's, are privileges.
    fn namespace(&self, key: &'static str) -> Read<Option<String>> {
        let mode = self.text(key);
        let shared = mode.as_deref().is_some_and(|mode| mode == "host" || mode.starts_with("container:"));
        self.allowed(key, shared)?;
        Ok(mode)
    }

    fn limits(&self) -> Read<Limits> {
        let task = limits(self.launch.task);
        let hard = self.count("memory_hard_limit")?.map(|mb| mb << 20).filter(|bytes| *bytes > task.memory_bytes);
        let period = self.count("cpu_cfs_period")?.unwrap_or(CFS_PERIOD_US);
        let quota = || cpu_quota(self.launch.node, task.cpu_mhz, period);
        Ok(Limits {
            cpu_quota: self.config.flag("cpu_hard_limit").then(quota),
            cpuset: self.text("cpuset_cpus"),
            memory_max_bytes: hard.or(task.memory_max_bytes),
            pids_max: self.count("pids_limit")?.unwrap_or(task.pids_max),
            ..task
        })
    }

    fn allowed(&self, key: &'static str, asked: bool) -> Read<bool> {
        match asked && !self.options.allow_privileged {
            true => Err(self.wrong(key, "reaches the node itself, which is off here; set allow_privileged of the driver in the agent's configuration, or do without")),
            false => Ok(asked),
        }
    }

    fn wrong(&self, key: &'static str, problem: &str) -> PrepareError {
        let (task, driver) = (self.launch.task.name.clone(), self.plugin.as_str());
        PrepareError::Config { task, driver, key, problem: problem.to_owned() }
    }

    fn resolve(&self, text: &str) -> String {
        interpolate(text, self.env, self.values)
    }

    fn text(&self, key: &str) -> Option<String> {
        self.config.text(key).map(|text| self.resolve(text)).filter(|text| !text.is_empty())
    }

    fn texts(&self, key: &str) -> Vec<String> {
        self.config.texts(key).into_iter().map(|text| self.resolve(text)).collect()
    }

    fn map(&self, key: &str) -> BTreeMap<String, String> {
        self.config.map(key).into_iter().map(|(name, value)| (name.to_owned(), self.resolve(value))).collect()
    }

    fn count(&self, key: &'static str) -> Read<Option<u64>> {
        let value = self.config.integer(key).filter(|value| *value != 0);
        value.map(|value| u64::try_from(value).map_err(|_| self.wrong(key, "must not be negative"))).transpose()
    }

    fn block(&self, key: &str) -> Option<&Block> {
        match self.config.config.get(key) {
            Some(ConfigValue::Map(block)) => Some(block),
            _ => None,
        }
    }

    fn blocks(&self, key: &str) -> Vec<&Block> {
        let Some(ConfigValue::List(items)) = self.config.config.get(key) else {
            return self.block(key).into_iter().collect();
        };
        items.iter().filter_map(|item| if let ConfigValue::Map(block) = item { Some(block) } else { None }).collect()
    }

    fn field(&self, block: &Block, key: &str) -> String {
        block.get(key).and_then(ConfigValue::as_text).map(|text| self.resolve(text)).unwrap_or_default()
    }
}

type Block = BTreeMap<String, ConfigValue>;

fn integer(value: &ConfigValue) -> Option<i64> {
    if let ConfigValue::Integer(number) = value { Some(*number) } else { None }
}

/// `90s`, `5m`, `1h30m`.
fn model_duration(text: &str) -> Option<Duration> {
    let mut total = Duration::ZERO;
    let mut rest = text.trim();
    while !rest.is_empty() {
        let digits = rest.find(|c: char| !c.is_ascii_digit())?;
        let number: u32 = rest[..digits].parse().ok()?;
        let after = &rest[digits..];
        let unit = after.find(|c: char| c.is_ascii_digit()).unwrap_or(after.len());
        let one = match &after[..unit] {
            "ms" => Duration::from_millis(1),
            "s" => Duration::from_secs(1),
            "m" => Duration::from_secs(60),
            "h" => Duration::from_secs(3600),
            _ => return None,
        };
        total = total.checked_add(one.checked_mul(number)?)?;
        rest = &after[unit..];
    }
    (!total.is_zero()).then_some(total)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn durations_are_read_as_job_files_write_them() {
        assert_eq!(model_duration("1h30m"), Some(Duration::from_secs(5400)));
        assert_eq!(model_duration("250ms"), Some(Duration::from_millis(250)));
        for text in ["", "5", "m", "5x", "-1s", "0s", "99999999999s"] {
            assert_eq!(model_duration(text), None, "{text}");
        }
    }
}
