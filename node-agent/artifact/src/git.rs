//! Git repositories, by the node's own `git`: it runs with none of the node's settings and none of the repository's hooks.

use crate::ArtifactError;
use std::path::Path;
use std::process::Stdio;
use tokio::process::Command;

/// Dropping the future kills git.
pub async fn clone(url: &str, reference: Option<&str>, depth: Option<u32>, tree: &Path) -> Result<(), ArtifactError> {
    let depth = depth.filter(|depth| *depth > 0).map(|depth| format!("--depth={depth}"));
    let mut clone = git();
    clone.args(["clone", "--quiet", "--no-checkout", "--no-recurse-submodules"]).args(depth.as_deref());
    clone.arg("--").arg(url).arg(tree);
    run(url, clone).await?;
    let wanted = match reference {
        None => "HEAD".to_owned(),
        Some(reference) => {
            // A branch, a tag or a commit: whatever of it the server gives.
            let mut fetch = git();
            fetch
                .arg("-C")
                .arg(tree)
                .args(["fetch", "--quiet"])
                .args(depth.as_deref())
                .args(["origin", "--", reference]);
            run(url, fetch).await?;
            "FETCH_HEAD".to_owned()
        }
    };
    let mut checkout = git();
    checkout.arg("-C").arg(tree).args(["checkout", "--quiet", "--force", "--detach", &wanted]);
    run(url, checkout).await?;
    std::fs::remove_dir_all(tree.join(".git")).map_err(|source| ArtifactError::Io {
        action: "removing",
        path: tree.join(".git"),
        source,
    })
}

fn git() -> Command {
    let mut git = Command::new("git");
    git.env_clear().env("PATH", "/usr/local/bin:/usr/bin:/bin").env("HOME", "/root");
    git.env("GIT_CONFIG_NOSYSTEM", "1").env("GIT_CONFIG_GLOBAL", "/dev/null").env("GIT_TERMINAL_PROMPT", "0");
    git.env("GIT_ALLOW_PROTOCOL", "https:http:ssh").env("GIT_SSH_COMMAND", "ssh -oBatchMode=yes");
    git.args(["-c", "core.hooksPath=/dev/null", "-c", "core.fsmonitor=false", "-c", "protocol.file.allow=never"]);
    git.stdin(Stdio::null()).kill_on_drop(true);
    git
}

async fn run(url: &str, mut git: Command) -> Result<(), ArtifactError> {
    let fail = |reason: String| ArtifactError::Get { url: url.to_owned(), reason };
    let output = git.output().await;
    let output = output.map_err(|error| fail(format!("git cannot be run on this node ({error}); install it")))?;
    if output.status.success() {
        return Ok(());
    }
    let text = String::from_utf8_lossy(&output.stderr);
    let lines: Vec<&str> = text.lines().filter(|line| !line.trim().is_empty()).take(3).collect();
    Err(fail(format!("git: {}", lines.join("; "))))
}
