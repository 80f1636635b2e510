//! Lives of allocations with real tasks: batch work, hooks, what people ask, checks, leaks, servers that are away.

use super::{Bench, Half, healthy, listener, restarts};
use model::{
    AllocUpdate, Allocation, Check, CheckKind, CheckRestart, ClientStatus, ExecConfig, Health, Job, JobKind, Lifecycle,
    LifecycleHook, Task, TaskDriver, TaskPhase,
};
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;
use wire::actions::{AllocAction, AllocAnswer, AllocRequest, RefusalKind};

fn change(alloc: &mut Allocation, change: impl FnOnce(&mut Job)) {
    change(Arc::make_mut(&mut alloc.job));
}

fn script(task: &mut Task, text: &str) {
    let args = vec!["-c".to_owned(), text.to_owned()];
    task.driver = TaskDriver::RawExec(ExecConfig { command: "/bin/sh".to_owned(), args, ..ExecConfig::default() });
}

fn ask(agent: &Half, alloc: &Allocation, action: AllocAction) -> AllocAnswer {
    agent.block_on(agent.allocs.ask(AllocRequest { alloc_id: alloc.id, action }))
}

/// What the tasks of an allocation wrote into the file that they share.
fn shared(bench: &Bench, alloc: &Allocation) -> String {
    let path: PathBuf = bench.data.alloc(alloc.id).join("alloc/data/trace");
    std::fs::read_to_string(path).unwrap_or_default()
}

fn kinds(update: &AllocUpdate, task: &str) -> Vec<String> {
    update.task_states[task].events.iter().map(|event| event.kind.clone()).collect()
}

pub fn batch_work_completes_once_and_fails_by_its_policy(bench: &Bench) {
    let trace = "echo ran >> $NOMAD_ALLOC_DIR/data/trace";
    let (mut good, mut bad) = (bench.alloc(10, trace, 1), bench.alloc(11, &format!("{trace}; exit 3"), 2));
    for alloc in [&mut good, &mut bad] {
        change(alloc, |job| {
            job.kind = JobKind::Batch;
            job.groups[0].services.clear();
            let restart = &mut job.groups[0].restart;
            (restart.attempts, restart.delay) = (1, Duration::from_millis(100));
        });
    }
    let agent = bench.agent();
    agent.push(1, &[good.clone(), bad.clone()]);
    let done = agent.wait_one(&good, "a completion", |update| update.client.is_terminal());
    assert_eq!((done.client, restarts(&done)), (ClientStatus::Complete, 0), "{done:#?}");
    let failed = agent.wait_one(&bad, "a failure", |update| update.client.is_terminal());
    assert_eq!((failed.client, restarts(&failed)), (ClientStatus::Failed, 1), "{failed:#?}");
    drop(agent);

    let agent = bench.agent();
    agent.push(1, &[good.clone(), bad.clone()]);
    agent.settle(Duration::from_millis(300));
    assert_eq!((shared(bench, &good).as_str(), shared(bench, &bad).as_str()), ("ran\n", "ran\nran\n"));
}

pub fn hooks_run_around_the_main_task(bench: &Bench) {
    let say = |word: &str| format!("echo {word} >> $NOMAD_ALLOC_DIR/data/trace");
    let mut alloc = bench.alloc(12, &format!("{}; exec sleep 600", say("main")), 1);
    change(&mut alloc, |job| {
        let group = &mut job.groups[0];
        group.services.clear();
        let hook = |name: &str, hook, sidecar, text: String| {
            let mut task = super::fixtures::task(name);
            task.lifecycle = Some(Lifecycle { hook, sidecar });
            script(&mut task, &text);
            task
        };
        let ends = format!("trap '{}; exit 0' INT; {}; while :; do sleep 0.05; done", say("tail-ends"), say("tail"));
        group.tasks.push(hook("init", LifecycleHook::Prestart, false, format!("sleep 0.2; {}", say("init"))));
        group.tasks.push(hook("warm", LifecycleHook::Poststart, false, say("warm")));
        group.tasks.push(hook("tail", LifecycleHook::Poststart, true, ends));
        group.tasks.push(hook("sweep", LifecycleHook::Poststop, false, say("sweep")));
    });
    let agent = bench.agent();
    agent.push(1, std::slice::from_ref(&alloc));
    agent.wait_one(&alloc, "all of it running", |update| {
        let phase = |task: &str| update.task_states[task].phase;
        phase("server") == TaskPhase::Running && phase("tail") == TaskPhase::Running && phase("warm") == TaskPhase::Dead
    });
    agent.wait_traced(bench, &alloc, "tail");
    agent.push(2, &[Allocation { desired: model::DesiredStatus::Stop, ..alloc.clone() }]);
    let over = agent.wait_one(&alloc, "the end", |update| update.client.is_terminal());
    assert_eq!(over.client, ClientStatus::Complete, "{over:#?}");
    let trace = shared(bench, &alloc);
    let order: Vec<&str> = trace.lines().collect();
    assert_eq!((order[0], order[1]), ("init", "main"), "{order:?}");
    assert_eq!(order[order.len() - 2..], ["tail-ends", "sweep"], "{order:?}");
}

pub fn people_restart_signal_and_measure_tasks(bench: &Bench) {
    let text = "echo start >> $NOMAD_ALLOC_DIR/data/trace; trap 'echo hup >> $NOMAD_ALLOC_DIR/data/trace' HUP; \
                while :; do sleep 0.05; done";
    let mut alloc = bench.alloc(13, text, 1);
    change(&mut alloc, |job| job.groups[0].services.clear());
    let agent = bench.agent();
    agent.push(1, std::slice::from_ref(&alloc));
    agent.wait_traced(bench, &alloc, "start");
    agent.settle(Duration::from_millis(100));
    ask(&agent, &alloc, AllocAction::Signal { task: None, signal: "SIGHUP".to_owned() }).unwrap();
    agent.wait_traced(bench, &alloc, "hup");

    let stats = ask(&agent, &alloc, AllocAction::Stats { task: None }).unwrap();
    let stats: serde_json::Value = serde_json::from_slice(&stats).unwrap();
    let used = &stats["Tasks"]["server"];
    assert!(used["Pids"]["Count"].as_u64().unwrap() >= 1, "{stats:#}");
    assert!(used["ResourceUsage"]["MemoryStats"]["Usage"].as_u64().unwrap() > 0, "{stats:#}");
    assert!(used["ResourceUsage"]["CpuStats"]["UserMode"].as_f64().is_some(), "{stats:#}");

    ask(&agent, &alloc, AllocAction::Restart { task: None, whole: false }).unwrap();
    let again = agent.wait_one(&alloc, "a restart", |update| {
        restarts(update) == 1 && update.task_states["server"].phase == TaskPhase::Running
    });
    assert!(kinds(&again, "server").contains(&"Restart Signaled".to_owned()), "{again:#?}");

    let unknown = AllocAction::Signal { task: Some("other".to_owned()), signal: "HUP".to_owned() };
    assert_eq!(ask(&agent, &alloc, unknown).unwrap_err().kind, RefusalKind::NotFound);
    let wrong = AllocAction::Signal { task: None, signal: "SIGNOPE".to_owned() };
    assert_eq!(ask(&agent, &alloc, wrong).unwrap_err().kind, RefusalKind::BadRequest);
    let early = ask(&agent, &alloc, AllocAction::CollectGarbage).unwrap_err();
    assert!(early.reason.contains("has not ended"), "{early:?}");
    agent.push(2, &[Allocation { desired: model::DesiredStatus::Stop, ..alloc.clone() }]);
    agent.wait_one(&alloc, "the end", |update| update.client.is_terminal());
    agent.gone(&bench.control(&alloc));
    ask(&agent, &alloc, AllocAction::CollectGarbage).unwrap();
    assert!(!bench.data.alloc(alloc.id).exists());
}

pub fn a_failing_check_restarts_its_task(bench: &Bench) {
    let (listener, port) = listener();
    let mut alloc = bench.alloc(14, "exec sleep 600", port);
    change(&mut alloc, |job| {
        let check = &mut job.groups[0].services[0].checks[0];
        (check.interval, check.timeout) = (Duration::from_secs(1), Duration::from_secs(1));
        let policy = CheckRestart { limit: 2, grace: Duration::from_millis(100), ignore_warnings: false };
        check.restart = Some(policy);
        job.groups[0].restart.delay = Duration::from_millis(100);
    });
    let agent = bench.agent();
    agent.push(1, std::slice::from_ref(&alloc));
    agent.wait_one(&alloc, "a passing check", healthy);
    drop(listener);
    let again = agent.wait_one(&alloc, "a restart", |update| restarts(update) >= 1);
    assert!(kinds(&again, "server").contains(&"Restart Signaled".to_owned()), "{again:#?}");
}

pub fn a_task_speaks_for_itself_by_a_ttl_check(bench: &Bench) {
    let mut alloc = bench.alloc(15, "exec sleep 600", 1);
    change(&mut alloc, |job| {
        let second = Duration::from_secs(1);
        job.groups[0].services[0].checks[0] = Check::named("alive", CheckKind::Ttl, second, second);
    });
    let agent = bench.agent();
    agent.push(1, std::slice::from_ref(&alloc));
    agent.wait_one(&alloc, "running", |update| update.client == ClientStatus::Running);
    let say = |check: &str| {
        let (check, output) = (check.to_owned(), "all well".to_owned());
        ask(&agent, &alloc, AllocAction::SetCheck { check, health: Health::Passing, output })
    };
    assert_eq!(say("web/other").unwrap_err().kind, RefusalKind::NotFound);
    say("web/alive").unwrap();
    let told = agent.wait_one(&alloc, "its own word", healthy);
    assert_eq!(told.checks["web/alive"].output, "all well");
    agent.wait_one(&alloc, "silence", |update| update.checks["web/alive"].health == Health::Critical);
}

pub fn what_nobody_owns_goes(bench: &Bench) {
    let alloc = bench.alloc(16, "exec sleep 600", 1);
    let agent = bench.agent();
    agent.push(1, std::slice::from_ref(&alloc));
    agent.wait_one(&alloc, "running", |update| update.client == ClientStatus::Running);
    let pid = agent.pid(&bench.control(&alloc));
    drop(agent);
    // As after the loss of the state file's last writes: the task is there, its record is not.
    agent::store::Store::open(&bench.data.state_file()).unwrap().forget(alloc.id).unwrap();
    let agent = bench.agent();
    agent.gone(&bench.control(&alloc));
    assert!(nix::sys::signal::kill(pid, None).is_err(), "the task of a forgotten allocation runs on");
    agent.wait("no allocation", |reports| reports.is_empty());
    let cgroup = format!("/meshctl/{}/{}/", model::NodeId::from_random(bench.bits(0)).short(), alloc.id);
    let processes = std::fs::read_dir("/proc").unwrap().flatten();
    let inside = |entry: std::fs::DirEntry| std::fs::read_to_string(entry.path().join("cgroup")).unwrap_or_default();
    assert!(processes.map(inside).all(|groups| !groups.contains(&cgroup)));
}

pub fn without_servers_a_group_stops_when_it_says_so(bench: &Bench) {
    let (mut careful, steady) = (bench.alloc(17, "exec sleep 600", 1), bench.alloc(18, "exec sleep 600", 2));
    change(&mut careful, |job| job.groups[0].disconnect.stop_on_client_after = Some(Duration::from_secs(1)));
    let agent = bench.agent();
    agent.allocs.set_contact(true);
    agent.push(1, &[careful.clone(), steady.clone()]);
    for alloc in [&careful, &steady] {
        agent.wait_one(alloc, "running", |update| update.client == ClientStatus::Running);
    }
    agent.settle(Duration::from_millis(2500));
    agent.wait_one(&careful, "still running", |update| update.client == ClientStatus::Running);
    agent.allocs.set_contact(false);
    let over = agent.wait_one(&careful, "the end", |update| update.client.is_terminal());
    assert!(over.client_description.contains("stop_on_client_after"), "{over:#?}");
    agent.wait_one(&steady, "still running", |update| update.client == ClientStatus::Running);
}

impl Half {
    fn wait_traced(&self, bench: &Bench, alloc: &Allocation, word: &str) {
        let deadline = std::time::Instant::now() + Duration::from_secs(10);
        while !shared(bench, alloc).lines().any(|line| line == word) {
            assert!(std::time::Instant::now() < deadline, "no {word} in {:?}", shared(bench, alloc));
            self.settle(Duration::from_millis(10));
        }
    }
}
