//! The sandbox: docker joins namespaces of containers only, so one small container stands for an allocation's.
//!
//! It starts in a namespace of its own, enters the one that the agent made (mounted into it as a file), gives up all rights
//! and then only waits. What joins it afterwards is where its process is. The agent's namespace stays the agent's: when the
//! engine restarts, a new sandbox stands in the same one.

use crate::engine::Engine;
use crate::error::EngineError;
use crate::image::Lock;
use crate::spec::{ContainerSpec, LABEL_ALLOC, LABEL_KIND, LABEL_NODE, Limits, Mount, MountKind, Network};
use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;
use std::fs;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant, UNIX_EPOCH};

const REPOSITORY: &str = "meshctl-sandbox";
const NETNS: &str = "/netns";
const STAND_WITHIN: Duration = Duration::from_secs(15);
const POLL: Duration = Duration::from_millis(2);

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct SandboxSpec {
    pub name: String,
    pub node: String,
    pub alloc: String,
    /// The prepared namespace, as a file of the node.
    pub netns: PathBuf,
    /// Those who join it have its host name.
    pub hostname: String,
}

pub fn sandbox_name(alloc: &str) -> String {
    format!("meshctl-sandbox-{alloc}")
}

impl Engine {
    /// Returns when the sandbox stands in the allocation's namespace. Several tasks may ask at once.
    pub async fn ensure_sandbox(&self, wanted: &SandboxSpec, images: &Path) -> Result<(), EngineError> {
        if self.stands(wanted).await? {
            return Ok(());
        }
        let _lock = Lock::wait(images, &wanted.name).await?;
        if self.stands(wanted).await? {
            return Ok(());
        }
        let image = self.sandbox_image(images).await?;
        // One that is there and does not stand in the namespace stands in one that is gone.
        let id = self.create(&container(wanted, image, images)).await?;
        self.start(&id).await?;
        self.await_standing(wanted).await
    }

    async fn await_standing(&self, wanted: &SandboxSpec) -> Result<(), EngineError> {
        let deadline = Instant::now() + STAND_WITHIN;
        while !self.stands(wanted).await? {
            let status = self.status(&wanted.name).await?.unwrap_or_default();
            if !status.running || Instant::now() > deadline {
                let problem = match status.exit_code {
                    _ if status.running => "does not enter the allocation's network".to_owned(),
                    code => {
                        format!("ended with code {code} before it entered the network; the engine must let it setns")
                    }
                };
                return Err(EngineError::Sandbox { problem });
            }
            tokio::time::sleep(POLL).await;
        }
        Ok(())
    }

    async fn stands(&self, wanted: &SandboxSpec) -> Result<bool, EngineError> {
        let Some(status) = self.status(&wanted.name).await?.filter(|status| status.running) else { return Ok(false) };
        let netns =
            fs::metadata(&wanted.netns).map_err(EngineError::io("look at the allocation's network namespace"))?;
        let own = fs::metadata(format!("/proc/{}/ns/net", status.pid));
        Ok(own.is_ok_and(|own| (own.dev(), own.ino()) == (netns.dev(), netns.ino())))
    }

    /// The running program as an image: a static binary needs nothing beside it.
    async fn sandbox_image(&self, images: &Path) -> Result<String, EngineError> {
        let program = Path::new("/proc/self/exe");
        let tag = tag_of(program)?;
        let name = format!("{REPOSITORY}:{tag}");
        let _lock = Lock::wait(images, REPOSITORY).await?;
        if self.image(&name).await?.is_none() {
            self.import_program(program, REPOSITORY, &tag).await?;
        }
        Ok(name)
    }
}

/// Another build is another image.
fn tag_of(program: &Path) -> Result<String, EngineError> {
    let meta = fs::metadata(program).map_err(EngineError::io("look at the program"))?;
    let modified = meta.modified().ok().and_then(|then| then.duration_since(UNIX_EPOCH).ok()).unwrap_or_default();
    Ok(format!("{:x}-{:x}", meta.len(), modified.as_nanos()))
}

fn container(wanted: &SandboxSpec, image: String, images: &Path) -> ContainerSpec {
    let labels = [(LABEL_NODE, &wanted.node), (LABEL_ALLOC, &wanted.alloc)];
    let mut labels: BTreeMap<_, _> = labels.map(|(key, value)| (key.to_owned(), value.clone())).into();
    labels.insert(LABEL_KIND.to_owned(), "sandbox".to_owned());
    let netns = MountKind::Bind { source: wanted.netns.clone(), propagation: None };
    ContainerSpec {
        name: wanted.name.clone(),
        image,
        images: images.to_owned(),
        entrypoint: vec!["/meshctl".to_owned()],
        command: vec!["task-init".to_owned(), "hold".to_owned()],
        user: Some("0:0".to_owned()),
        hostname: Some(wanted.hostname.clone()),
        labels,
        network: Network::None,
        mounts: vec![Mount { kind: netns, target: NETNS.to_owned(), read_only: true }],
        // For setns alone; it gives it up right after.
        capabilities: vec!["SYS_ADMIN".to_owned()],
        readonly_rootfs: true,
        limits: Limits { cpu_shares: 2, pids_max: 16, ..Limits::default() },
        ..ContainerSpec::default()
    }
}
