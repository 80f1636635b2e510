//! The harness itself: labs do not clash, and what a killed one left is found and removed.

use anyhow::{Context, Result, ensure};
use netns::{LABS, Lab, wait_for};
use std::process::Command;
use std::time::Duration;

/// In this variable's presence the test below is the lab that will be killed.
const VICTIM: &str = "NETNS_TEST_VICTIM";

#[test]
fn lab_of_a_killed_process_is_removed_by_the_next() -> Result<()> {
    if std::env::var_os(VICTIM).is_some() {
        return victim();
    }
    let own = std::env::current_exe()?;
    let mut child = Command::new(own)
        .args(["--exact", "lab_of_a_killed_process_is_removed_by_the_next", "--nocapture"])
        .env(VICTIM, "1")
        .spawn()?;
    let name = wait_for("the victim's lab", Duration::from_secs(10), || Ok(lab_of(child.id())))?;
    wait_for("its process", Duration::from_secs(10), || Ok(sleepers(&name)?.then_some(())))?;
    ensure!(!Lab::reap_dead()?.contains(&name), "a lab whose owner lives was removed");
    child.kill()?;
    child.wait()?;
    ensure!(Lab::reap_dead()?.contains(&name), "the dead lab was not found");
    ensure!(!namespaces()?.contains(&name), "a namespace is left");
    ensure!(!sleepers(&name)?, "a process is left");
    ensure!(!std::path::Path::new(LABS).join(&name).exists(), "files are left");
    Ok(())
}

fn victim() -> Result<()> {
    let lab = Lab::new("victim")?;
    let machine = lab.machine("m")?;
    let _sleeper = lab.spawn(&machine, "sleeper", &["sleep", "60"])?;
    std::thread::sleep(Duration::from_secs(60));
    Ok(())
}

fn lab_of(pid: u32) -> Option<String> {
    let names = std::fs::read_dir(LABS).ok()?.flatten().map(|entry| entry.file_name().to_string_lossy().into_owned());
    names.into_iter().find(|name| name.contains(&format!("{pid}x")))
}

fn namespaces() -> Result<String> {
    netns::sh("ip netns list")
}

fn sleepers(lab: &str) -> Result<bool> {
    let mark = format!("MESHCTL_LAB={lab}");
    let sleeping = netns::pids_with_argument("sleep")?;
    let marked = |pid: &u32| std::fs::read(format!("/proc/{pid}/environ")).unwrap_or_default();
    Ok(sleeping.iter().any(|pid| String::from_utf8_lossy(&marked(pid)).contains(&mark)))
}

#[test]
fn labs_of_one_process_have_names_of_their_own() -> Result<()> {
    let (mut one, mut two) = (Lab::new("same")?, Lab::new("same")?);
    let (a, b) = (one.machine("m")?, two.machine("m")?);
    ensure!(a.namespace() != b.namespace());
    a.sh("ip link add name left type veth peer name right").context("in one")?;
    b.sh("ip link add name left type veth peer name right").context("in the other")?;
    one.passed();
    two.passed();
    Ok(())
}
