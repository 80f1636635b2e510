//! The suite that every driver passes.

use crate::common::{Bench, processes_drivers, runs, supervisors};
use crate::engines;
use drivers::{
    CpuQuota, Driver, ExecInput, ExecOutput, ExecRequest, HandleError, Isolation, Outcome, Phase, StartError,
    TaskHandle,
};
use std::time::{Duration, Instant};

/// Runs the check once for each driver, each on a node of its own: together for those that need no engine.
macro_rules! each_driver {
    ($(#[$doc:meta])* $name:ident, $bench:ident, $driver:ident, $body:block) => {
        $(#[$doc])*
        mod $name {
            use super::*;

            async fn check($bench: Bench, $driver: &dyn Driver) {
                println!("driver {}", $driver.name());
                $body
            }

            #[tokio::test]
            async fn processes() {
                for driver in processes_drivers() {
                    check(Bench::new(), &*driver).await;
                }
            }

            #[tokio::test]
            async fn docker() {
                check(Bench::new(), &engines::docker()).await;
            }

            #[tokio::test]
            #[ignore = "podman takes seconds for a container: cargo test -p drivers -- --ignored"]
            async fn podman() {
                check(Bench::new(), &engines::podman()).await;
            }
        }
    };
}

each_driver!(a_healthy_machine_offers_the_driver, _bench, driver, {
    let status = driver.fingerprint();
    assert!(status.detected && status.healthy, "{status:?}");
});

each_driver!(exit_codes_come_through, bench, driver, {
    for code in [0, 1, 42, 255] {
        let task = bench.start(&bench.script(driver, &format!("exit {code}"))).await;
        let status = task.wait().await.expect("waits");
        assert_eq!((status.outcome, status.oom_killed), (Outcome::Exited(code), false));
        assert!(status.finished_at_ns >= status.started_at_ns && status.started_at_ns > 0);
        bench.assert_clean(&task.status().await.expect("status"));
        let control = task.control().to_owned();
        task.forget().await.expect("forgets");
        assert!(!control.exists());
    }
});

each_driver!(a_signal_that_kills_is_told_from_an_exit_code, bench, driver, {
    // The kernel keeps a container's first process from killing itself.
    let contained = matches!(bench.script(driver, "true").isolation, Isolation::Container(_));
    let script = if contained { "sleep 600" } else { "kill -SEGV $$" };
    let task = bench.start(&bench.script(driver, script)).await;
    if contained {
        task.signal("SIGKILL").await.expect("signals");
    }
    let expect = if contained { 9 } else { 11 };
    assert_eq!(task.wait().await.expect("waits").outcome, Outcome::Signaled(expect));
});

each_driver!(output_and_environment_are_the_tasks, bench, driver, {
    let script = "echo \"$GREETING $NOMAD_PORT_http $NOMAD_META_COLOUR $NOMAD_ALLOC_INDEX\"; \
                  echo problem >&2; touch $NOMAD_TASK_DIR/a $NOMAD_ALLOC_DIR/data/b $NOMAD_SECRETS_DIR/c; \
                  test -z \"$CARGO\" && cat && pwd";
    let output = bench.output(driver, script).await;
    let own = bench.root().join("t").display().to_string();
    let pwd = if driver.name() == "raw_exec" { own } else { "/".to_owned() };
    assert_eq!(output, format!("hi from n1 8080 red 0\n{pwd}\n"));
    assert_eq!(bench.log("stderr", 0), "problem\n");
    assert!(bench.dirs().local.join("a").exists() && bench.dirs().alloc.join("data/b").exists());
});

each_driver!(a_command_that_cannot_run_is_an_error_at_start, bench, driver, {
    let plain = bench.root().join("plain");
    std::fs::create_dir_all(bench.root()).and_then(|()| std::fs::write(&plain, "x")).expect("writes");
    let cases = [("/usr/nothing/here", "does not exist"), ("nothing-of-this-name", "PATH"), ("/etc/passwd", "mode")];
    for (command, hint) in cases {
        let error = bench.launcher().start(&bench.spec(driver, command, &[])).await.expect_err("must not start");
        let text = error.to_string();
        assert!(matches!(error, StartError::NotStarted(_)), "{error:?}");
        assert!(text.contains(command) && text.contains(hint), "{text}");
        assert!(!bench.dirs().control.exists(), "the control directory is left");
    }
    let mut spec = bench.script(driver, "true");
    spec.user = Some("no-such-user".into());
    let error = bench.launcher().start(&spec).await.expect_err("must not start").to_string();
    assert!(error.contains("no-such-user") && error.contains("/etc/passwd"), "{error}");
});

each_driver!(a_missing_network_namespace_is_named, bench, driver, {
    let mut spec = bench.script(driver, "true");
    spec.netns = Some("/run/netns/meshctl-none".into());
    let error = bench.launcher().start(&spec).await.expect_err("must not start").to_string();
    assert!(error.contains("/run/netns/meshctl-none"), "{error}");
});

each_driver!(signals_reach_the_task, bench, driver, {
    let script = "trap 'echo got hup' HUP; trap 'echo got term; exit 3' TERM; echo ready; while :; do sleep 0.02; done";
    let task = bench.start(&bench.script(driver, script)).await;
    bench.saw("ready").await;
    task.signal("SIGHUP").await.expect("signals");
    bench.saw("got hup").await;
    assert!(matches!(task.signal("SIGNONE").await, Err(HandleError::Refused(_))));
    let status = task.kill("SIGTERM", Duration::from_secs(5)).await.expect("kills");
    assert_eq!(status.outcome, Outcome::Exited(3));
    assert!(matches!(task.signal("SIGHUP").await, Err(HandleError::Refused(_) | HandleError::Ended(_))));
});

each_driver!(a_task_that_ignores_its_signal_is_killed_after_the_timeout, bench, driver, {
    let task = bench.start(&bench.script(driver, "trap '' INT TERM; echo ready; while :; do sleep 0.02; done")).await;
    bench.saw("ready").await;
    let begun = Instant::now();
    let status = task.kill("SIGINT", Duration::from_millis(300)).await.expect("kills");
    assert_eq!(status.outcome, Outcome::Signaled(9));
    let took = begun.elapsed();
    assert!(took >= Duration::from_millis(300) && took < Duration::from_secs(3), "{took:?}");
    bench.assert_clean(&task.status().await.expect("status"));
});

each_driver!(children_do_not_outlive_the_task, bench, driver, {
    let sleep = format!("86400.{}", std::process::id());
    let script = format!("setsid sleep {sleep} & (setsid sleep {sleep} &); echo ready; exit 5");
    let task = bench.start(&bench.script(driver, &script)).await;
    assert_eq!(task.wait().await.expect("waits").outcome, Outcome::Exited(5));
    assert!(!runs(&sleep), "a child is left");
});

each_driver!(logs_rotate_by_size_and_count, bench, driver, {
    let mut spec = bench.script(driver, "i=0; while [ $i -lt 1000 ]; do echo 0123456789012345678; i=$((i+1)); done");
    spec.logs = drivers::LogLimits { files_max: 2, file_bytes_max: 6_000 };
    let task = bench.start(&spec).await;
    task.wait().await.expect("waits");
    let sizes: Vec<_> = (0..5).map(|index| bench.log("stdout", index).len()).collect();
    assert_eq!(sizes, [0, 0, 6_000, 2_000, 0]);
});

each_driver!(a_task_never_runs_twice, bench, driver, {
    let spec = bench.script(driver, "echo run; sleep 600");
    let task = bench.start(&spec).await;
    bench.saw("run").await;
    assert!(matches!(bench.launcher().start(&spec).await, Err(StartError::Occupied(_))));
    let second = std::process::Command::new(env!("CARGO_BIN_EXE_meshctl-task"))
        .arg("supervise")
        .arg(task.control())
        .output()
        .expect("runs");
    assert!(!second.status.success() && String::from_utf8_lossy(&second.stderr).contains("another supervisor"));
    assert!(matches!(task.clone().forget().await, Err(HandleError::Refused(_))), "a running task is not forgotten");
    task.kill("SIGKILL", Duration::ZERO).await.expect("kills");
    assert_eq!(bench.log("stdout", 0), "run\n");
});

each_driver!(a_restart_appends_to_the_logs, bench, driver, {
    for _ in 0..2 {
        bench.output(driver, "echo once").await;
    }
    assert_eq!(bench.log("stdout", 0), "once\nonce\n");
});

each_driver!(a_fork_bomb_is_bounded, bench, driver, {
    let mut spec = bench.script(driver, "f() { f & f & }; (f) 2>/dev/null & exec sleep 600");
    spec.limits.pids_max = 30;
    let task = bench.start(&spec).await;
    tokio::time::sleep(Duration::from_millis(300)).await;
    let cgroup = task.status().await.expect("status").cgroup;
    let dir = cgroup.v1.get("pids").or(cgroup.v2.as_ref()).expect("a pids cgroup");
    let now: u64 = std::fs::read_to_string(dir.join("pids.current")).expect("reads").trim().parse().expect("number");
    let held = std::fs::read_to_string(dir.join("pids.events")).expect("reads");
    assert!(now <= 30 && !held.contains("max 0"), "{now} {held}");
    let status = task.kill("SIGKILL", Duration::ZERO).await.expect("kills");
    assert_eq!(status.outcome, Outcome::Signaled(9));
    bench.assert_clean(&task.status().await.expect("status"));
});

each_driver!(too_much_memory_is_reported_as_such, bench, driver, {
    let mut spec = bench.script(driver, "exec tail /dev/zero");
    spec.limits.memory_bytes = 16 << 20;
    let task = bench.start(&spec).await;
    let status = task.wait().await.expect("waits");
    assert_eq!((status.outcome.clone(), status.oom_killed), (Outcome::Signaled(9), true), "{status}");
    assert!(status.to_string().contains("memory limit"), "{status}");
});

each_driver!(the_supervisor_leaves_after_the_end, bench, driver, {
    let task = bench.start(&bench.script(driver, "exit 7")).await;
    task.wait().await.expect("waits");
    let deadline = Instant::now() + Duration::from_secs(8);
    while !supervisors(task.control()).is_empty() {
        assert!(Instant::now() < deadline, "the supervisor lingers");
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
    assert_eq!(task.wait().await.expect("from disk").outcome, Outcome::Exited(7));
    assert!(matches!(task.status().await.expect("from disk").phase, Phase::Exited(_)));
    task.forget().await.expect("forgets");
});

/// Runs a command in a task to its end.
async fn exec(task: &TaskHandle, wanted: ExecRequest, inputs: Vec<ExecInput>) -> (String, String, i32) {
    let (mut sender, mut receiver) = task.exec(&wanted).await.expect("enters").split();
    for input in inputs {
        sender.send(input).await.expect("sends");
    }
    let (mut out, mut err) = (Vec::new(), Vec::new());
    loop {
        match receiver.next().await.expect("an end") {
            ExecOutput::Stdout(bytes) => out.extend(bytes),
            ExecOutput::Stderr(bytes) => err.extend(bytes),
            ExecOutput::Exited(code) => {
                let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
                return (text(&out), text(&err), code);
            }
        }
    }
}

fn shell(script: &str) -> ExecRequest {
    let argv = ["/bin/sh", "-c", script].map(str::to_owned).to_vec();
    ExecRequest { argv, env: [("EXTRA".to_owned(), "more".to_owned())].into(), ..ExecRequest::default() }
}

each_driver!(a_further_command_runs_inside_the_task, bench, driver, {
    let task =
        bench.start(&bench.script(driver, "echo mark > $NOMAD_ALLOC_DIR/data/mark; echo ready; exec sleep 600")).await;
    bench.saw("ready").await;
    let script = "cat $NOMAD_ALLOC_DIR/data/mark; echo \"$GREETING $EXTRA\"; read line; echo \"got $line\"; cat; echo oops >&2; exit 9";
    let inputs = vec![ExecInput::Stdin(b"one\ntwo\n".to_vec()), ExecInput::CloseStdin];
    let (out, err, code) = exec(&task, shell(script), inputs).await;
    assert_eq!((out.as_str(), err.as_str(), code), ("mark\nhi from n1 more\ngot one\ntwo\n", "oops\n", 9));
    let inside = exec(&task, shell("for n in pid mnt uts; do readlink /proc/self/ns/$n; done"), Vec::new()).await.0;
    let pid = match task.status().await.expect("status").phase {
        Phase::Running { pid, .. } => pid,
        Phase::Starting | Phase::Exited(_) => 0,
    };
    assert!(pid > 0, "does not run");
    for name in ["pid", "mnt", "uts"] {
        let own = std::fs::read_link(format!("/proc/{pid}/ns/{name}")).expect("reads");
        assert!(inside.contains(own.to_str().expect("utf-8")), "{name}: {inside}");
    }
    let absent = ExecRequest { argv: vec!["/no/such".into()], ..ExecRequest::default() };
    let (_, _, code) = exec(&task, absent, Vec::new()).await;
    assert!((126..=127).contains(&code), "{code}");
    task.kill("SIGKILL", Duration::ZERO).await.expect("kills");
    assert!(task.exec(&shell("true")).await.is_err());
    bench.assert_clean(&task.status().await.expect("status"));
});

each_driver!(a_terminal_can_be_had_resized_and_hung_up, bench, driver, {
    let sleep = format!("86403.{}", std::process::id());
    let task = bench.start(&bench.script(driver, "exec sleep 600")).await;
    let wanted = ExecRequest { tty: true, ..shell(&format!("read go; test -t 0 && stty size; exec sleep {sleep}")) };
    let (mut sender, mut receiver) = task.exec(&wanted).await.expect("enters").split();
    sender.send(ExecInput::Resize { width: 132, height: 43 }).await.expect("sends");
    sender.send(ExecInput::Stdin(b"\n".to_vec())).await.expect("sends");
    let mut seen = String::new();
    while !seen.contains("43 132") {
        let output = receiver.next().await;
        let Some(ExecOutput::Stdout(bytes)) = &output else {
            assert_eq!(output, None, "after {seen:?}");
            break;
        };
        seen.push_str(&String::from_utf8_lossy(bytes));
    }
    assert!(seen.contains("43 132"), "{seen:?}");
    let deadline = Instant::now() + Duration::from_secs(10);
    while !runs(&format!("sleep\0{sleep}")) {
        assert!(Instant::now() < deadline, "it does not sleep");
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
    drop((sender, receiver));
    while runs(&format!("sleep\0{sleep}")) {
        assert!(Instant::now() < deadline, "the command outlives its asker");
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
    task.kill("SIGKILL", Duration::ZERO).await.expect("kills");
});

each_driver!(a_ceiling_of_cpu_holds_on_an_idle_machine, bench, driver, {
    let mut spec = bench.script(driver, "while :; do :; done");
    spec.limits.cpu_quota = Some(CpuQuota { us: 20_000, period_us: 100_000 });
    let task = bench.start(&spec).await;
    let cgroup = task.status().await.expect("status").cgroup;
    let dir = cgroup.v1.get("cpu").or(cgroup.v2.as_ref()).expect("a cpu cgroup").join("cpu.stat");
    let throttled = || {
        let text = std::fs::read_to_string(&dir).unwrap_or_default();
        text.lines().find_map(|line| line.strip_prefix("nr_throttled ")?.parse::<u64>().ok()).unwrap_or(0)
    };
    let deadline = Instant::now() + Duration::from_secs(10);
    while throttled() < 3 {
        assert!(Instant::now() < deadline, "it is not held back");
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    task.kill("SIGKILL", Duration::ZERO).await.expect("kills");
});
