//! The drivers of a node, as its configuration has them, and what is done for all of them.

use crate::config::AgentConfig;
use drivers::{Docker, DockerOptions, Driver, Exec, Java, RawExec};
use model::{AllocId, Allocation, Plugin};
use std::collections::{BTreeMap, BTreeSet};

pub type Drivers = Vec<Box<dyn Driver>>;

pub fn of(config: &AgentConfig) -> Drivers {
    let images = config.data_dir.join("images");
    let engine = |options: &DockerOptions| DockerOptions { images: images.clone(), ..options.clone() };
    vec![
        Box::new(Exec),
        Box::new(RawExec { enabled: config.raw_exec }),
        Box::new(Docker::new(Plugin::Docker, engine(&config.docker))),
        Box::new(Docker::new(Plugin::Podman, engine(&config.podman))),
        Box::new(Java),
    ]
}

/// What the drivers that work here add to the node's attributes.
pub fn attributes(drivers: &[Box<dyn Driver>]) -> BTreeMap<String, String> {
    drivers.iter().flat_map(|driver| driver.attributes()).collect()
}

/// Removes what is kept for an allocation beyond its tasks, which have ended.
pub async fn release(drivers: &[Box<dyn Driver>], alloc: &Allocation) {
    let names: BTreeSet<_> =
        alloc.task_group().into_iter().flat_map(|group| &group.tasks).map(|task| task.driver.name()).collect();
    for driver in drivers.iter().filter(|driver| names.contains(driver.name())) {
        if let Err(error) = driver.release(alloc.id).await {
            tracing::warn!(alloc = %alloc.id, driver = driver.name(), error, "what the driver kept for an ended allocation is left; it is removed later");
        }
    }
}

/// Removes what no allocation of these owns; gives lines for the log.
pub async fn tidy(drivers: &[Box<dyn Driver>], node: &str, living: &BTreeSet<AllocId>) -> Vec<String> {
    let mut lines = Vec::new();
    for driver in drivers {
        lines.extend(driver.tidy(node, living).await);
    }
    lines
}
