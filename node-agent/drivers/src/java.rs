//! `java`: a jar or a class in the isolation of exec.

use crate::driver::{
    Driver, Exec, Launch, PrepareError, Seen, other_driver, root_spec, status, task_env_of, task_spec,
};
use crate::env::{interpolate, node_values};
use crate::spec::{Isolation, RootSpec, TaskSpec};
use model::{DriverStatus, Plugin, PluginConfig, TaskDriver};
use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};

/// The runtime as tasks will find it: along the PATH that they get, below what they see of the node.
const PLACES: [&str; 4] = ["/usr/local/bin/java", "/usr/bin/java", "/bin/java", "/usr/lib/jvm/default-java/bin/java"];

/// Java programs, isolated as [`Exec`] isolates.
#[derive(Clone, Copy, Debug, Default)]
pub struct Java;

struct Runtime {
    program: PathBuf,
    version: String,
    implementor: String,
}

impl Driver for Java {
    fn name(&self) -> &'static str {
        Plugin::Java.as_str()
    }

    fn fingerprint(&self) -> DriverStatus {
        let exec = Exec.fingerprint();
        match runtime() {
            Some(_) if !exec.healthy => exec,
            Some(found) => status(None, &format!("Java {} at {}", found.version, found.program.display())),
            None => status(
                Some("no Java runtime in the usual places; install one such as openjdk-17-jre-headless".to_owned()),
                "",
            ),
        }
    }

    fn attributes(&self) -> BTreeMap<String, String> {
        let Some(found) = runtime() else { return BTreeMap::new() };
        let pairs = [("driver.java.version", found.version), ("driver.java.runtime", found.implementor)];
        pairs.into_iter().filter(|(_, value)| !value.is_empty()).map(|(key, value)| (key.to_owned(), value)).collect()
    }

    fn prepare(&self, launch: &Launch<'_>) -> Result<TaskSpec, PrepareError> {
        let config = match &launch.task.driver {
            TaskDriver::Plugin(config) if config.driver == Plugin::Java => config,
            _ => return Err(other_driver(self, launch)),
        };
        let seen = Seen { alloc: "/alloc".into(), local: "/local".into(), secrets: "/secrets".into() };
        let (env, values) = (task_env_of(launch, &seen), node_values(launch.node));
        let resolve = |text: &str| interpolate(text, &env, &values);
        let argv = argv(launch, config, &resolve)?;
        let root: RootSpec = root_spec(launch);
        let spec = task_spec(launch, argv, env.clone(), "SIGINT", Isolation::Exec(root));
        spec.check()?;
        Ok(spec)
    }
}

fn argv(
    launch: &Launch<'_>,
    config: &PluginConfig,
    resolve: &dyn Fn(&str) -> String,
) -> Result<Vec<String>, PrepareError> {
    let texts = |key: &str| config.texts(key).into_iter().map(resolve).collect::<Vec<_>>();
    let text = |key: &str| config.text(key).map(resolve).filter(|text| !text.is_empty());
    let options = texts("jvm_options");
    let program = runtime().map_or_else(|| "java".to_owned(), |found| found.program.display().to_string());
    let mut argv = vec![program];
    argv.extend(sized(launch, &options));
    argv.extend(options);
    argv.extend(text("class_path").into_iter().flat_map(|path| ["-cp".to_owned(), path]));
    match (text("jar_path"), text("class")) {
        (Some(jar), _) => argv.extend(["-jar".to_owned(), jar]),
        (None, Some(class)) => argv.push(class),
        (None, None) => {
            let problem = "a Java task runs a jar or a class; set jar_path, or class and class_path".to_owned();
            return Err(PrepareError::Config {
                task: launch.task.name.clone(),
                driver: "java",
                key: "jar_path",
                problem,
            });
        }
    }
    argv.extend(texts("args"));
    Ok(argv)
}

/// The virtual machine sees the node's memory and cores, not the task's, and would size its heap and pools by them.
fn sized(launch: &Launch<'_>, options: &[String]) -> Vec<String> {
    let given = |names: &[&str]| options.iter().any(|option| names.iter().any(|name| option.starts_with(name)));
    let limits = crate::driver::limits(launch.task);
    let memory =
        (!given(&["-Xmx", "-XX:MaxRAM", "-XX:MaxHeapSize"])).then(|| format!("-XX:MaxRAM={}", limits.memory_ceiling()));
    let cores = launch.task.resources.cores;
    let counted = cores > 0 && !given(&["-XX:ActiveProcessorCount"]);
    memory.into_iter().chain(counted.then(|| format!("-XX:ActiveProcessorCount={cores}"))).collect()
}

/// What the runtime's own `release` file says: nothing is started to ask it.
fn runtime() -> Option<Runtime> {
    PLACES.into_iter().map(Path::new).find_map(|place| {
        let program = fs::canonicalize(place).ok()?;
        let release = program.parent()?.parent()?.join("release");
        let text = fs::read_to_string(release).unwrap_or_default();
        let value = |key: &str| {
            let found = text.lines().find_map(|line| line.strip_prefix(key)?.strip_prefix('='));
            found.unwrap_or_default().trim_matches('"').to_owned()
        };
        let version =
            Some(value("JAVA_VERSION")).filter(|version| !version.is_empty()).unwrap_or_else(|| "unknown".to_owned());
        Some(Runtime { program: place.to_owned(), version, implementor: value("IMPLEMENTOR") })
    })
}
