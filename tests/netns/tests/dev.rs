//! `meshctl dev` on a machine as it is: one command, one job, and the service answers on its address and by name.

use anyhow::{Context, Result, ensure};
use netns::{Lab, Machine, artifacts, wait_for};
use std::time::Duration;

const LIMIT: Duration = Duration::from_secs(30);

struct Dev {
    machine: Machine,
    data_dir: String,
    pin_root: String,
    lab: Lab,
}

impl Dev {
    fn lay() -> Result<Dev> {
        let lab = Lab::new("dev")?;
        let machine = lab.machine("m")?;
        let data_dir = lab.dir().join("m-dev").to_string_lossy().into_owned();
        let pin_root = lab.pin_root().to_string_lossy().into_owned();
        Ok(Dev { machine, data_dir, pin_root, lab })
    }

    fn start(&self) -> Result<netns::Process> {
        let binary = artifacts::binary();
        let words = [&*binary, "dev", "--data-dir", &self.data_dir, "--pin-root", &self.pin_root];
        self.lab.spawn(&self.machine, "dev", &words)
    }

    fn meshctl(&self, words: &[&str]) -> Result<String> {
        self.machine.run(&[&[&*artifacts::binary()], words].concat())
    }

    fn run_web(&self) -> Result<String> {
        wait_for("the node", LIMIT, || Ok(self.meshctl(&["node", "status"])?.contains("ready").then_some(())))?;
        self.meshctl(&["job", "run", &artifacts::repository_file("examples/web.nomad.hcl")])?;
        wait_for("two active backends", LIMIT, || {
            Ok((self.meshctl(&["route"])?.matches(" active ").count() == 2).then_some(()))
        })?;
        let vip = self.machine.run(&["dig", "+short", "-p", "8600", "@127.0.0.1", "web.cluster"])?;
        Ok(vip.trim().to_owned())
    }

    /// What the machine must not keep.
    fn left_behind(&self) -> Result<String> {
        let pins = if std::path::Path::new(&self.pin_root).exists() {
            netns::sh(&format!("find {}", self.pin_root))?
        } else {
            String::new()
        };
        let links = self.machine.sh("ip -o link")?.lines().filter(|line| !line.contains(": lo")).collect::<String>();
        let pinned = pins.lines().filter(|line| *line != self.pin_root).collect::<String>();
        Ok(format!("{pinned}{links}"))
    }
}

#[test]
fn service_answers_on_its_address_and_by_name_and_leaves_nothing() -> Result<()> {
    let mut dev = Dev::lay()?;
    let process = dev.start()?;
    let vip = dev.run_web()?;
    ensure!(vip.starts_with("10.43."), "web.cluster gave {vip:?}");
    let mut answers = std::collections::BTreeSet::new();
    for _ in 0..20 {
        answers.insert(dev.machine.run(&["curl", "-s", "--max-time", "3", &format!("http://{vip}/")])?);
    }
    ensure!(answers.len() == 2, "20 connections to the virtual address gave {answers:?}");
    let instances = dev.machine.run(&["dig", "+short", "-p", "8600", "@127.0.0.1", "web.service.cluster"])?;
    ensure!(instances.lines().count() == 2, "web.service.cluster gave {instances:?}");
    dev.meshctl(&["job", "stop", "web"])?;
    wait_for("the instances to leave", LIMIT, || Ok((!dev.meshctl(&["route"])?.contains(" active ")).then_some(())))?;
    let status = process.stop().context("dev did not stop")?;
    ensure!(status.success(), "dev ended with {status}");
    let left = dev.left_behind()?;
    ensure!(left.is_empty(), "left behind: {left}");
    dev.lab.passed();
    Ok(())
}

#[test]
fn killed_dev_is_cleared_by_the_next() -> Result<()> {
    let mut dev = Dev::lay()?;
    let first = dev.start()?;
    dev.run_web()?;
    first.kill()?;
    let second = dev.start()?;
    wait_for("the fresh node", LIMIT, || Ok(dev.meshctl(&["node", "status"])?.contains("ready").then_some(())))?;
    ensure!(dev.meshctl(&["job", "status"])?.contains("No running jobs"), "the killed one's job is still there");
    second.stop()?;
    let left = dev.left_behind()?;
    ensure!(left.is_empty(), "left behind: {left}");
    dev.lab.passed();
    Ok(())
}
