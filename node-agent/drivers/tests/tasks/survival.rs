//! The agent dies, the supervisor dies: nothing is lost that need not be, and nothing is left behind.

use crate::common::{Bench, drivers, runs, supervisors};
use drivers::cgroup::{Cgroup, Hierarchies};
use drivers::{Limits, Outcome, Phase, TaskHandle};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use std::path::PathBuf;
use std::process::Command;
use std::time::Duration;

#[tokio::test]
async fn a_new_agent_adopts_what_an_old_one_started() {
    for driver in drivers() {
        let bench = Bench::new();
        let mut spec = bench.script(
            &*driver,
            "trap 'echo bye; exit 4' TERM; echo a; read x < $NOMAD_TASK_DIR/go; echo b; while :; do sleep 0.02; done",
        );
        spec.user = Some("root".into());
        std::fs::create_dir_all(&spec.dirs.local).expect("makes");
        nix::unistd::mkfifo(&spec.dirs.local.join("go"), nix::sys::stat::Mode::S_IRWXU).expect("fifo");
        let control = spec.dirs.control.clone();
        // The first agent is a runtime of its own that goes away with all its tasks and connections.
        let first = tokio::task::spawn_blocking({
            let (launcher, spec) = (bench.launcher(), spec.clone());
            move || {
                let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().expect("runtime");
                runtime.block_on(async { launcher.start(&spec).await.map(drop).expect("starts") });
            }
        });
        first.await.expect("first agent");
        bench.saw("a").await;
        std::fs::write(bench.dirs().local.join("go"), "\n").expect("writes");
        bench.saw("b").await;
        let task = TaskHandle::adopt(&control).await.expect("adopts").expect("a task");
        assert!(matches!(task.status().await.expect("status").phase, Phase::Running { .. }));
        assert_eq!(task.spec().expect("reads"), Some(spec));
        let status = task.kill("SIGTERM", Duration::from_secs(5)).await.expect("kills");
        assert_eq!((status.outcome, bench.log("stdout", 0).as_str()), (Outcome::Exited(4), "a\nb\nbye\n"));
    }
}

#[tokio::test]
async fn an_empty_directory_has_nothing_to_adopt() {
    let dir = tempfile::tempdir().expect("dir");
    assert!(TaskHandle::adopt(dir.path()).await.expect("looks").is_none());
    assert!(TaskHandle::adopt(&dir.path().join("none")).await.expect("looks").is_none());
}

#[tokio::test]
async fn a_damaged_task_file_without_a_state_is_no_task_and_stands_in_nobodys_way() {
    let bench = Bench::new();
    let control = bench.dirs().control;
    std::fs::create_dir_all(&control).expect("makes");
    std::fs::write(control.join("spec.json"), "{\"format\": 1, \"no").expect("writes");
    assert!(TaskHandle::adopt(&control).await.expect("looks").is_none());
    let task = bench.start(&bench.script(&*drivers()[1], "exit 3")).await;
    assert_eq!(task.wait().await.expect("waits").outcome, Outcome::Exited(3));
    std::fs::write(control.join("spec.json"), "").expect("writes");
    let task = TaskHandle::adopt(&control).await.expect("adopts by its state").expect("a task");
    assert_eq!(task.wait().await.expect("waits").outcome, Outcome::Exited(3));
    task.forget().await.expect("forgets");
    assert!(!control.exists());
}

#[tokio::test]
async fn a_killed_supervisor_leaves_nothing_running() {
    for (driver, again) in drivers().into_iter().zip([false, true, true, false]) {
        let bench = Bench::new();
        let sleep = format!("86401.{}", std::process::id());
        let task =
            bench.start(&bench.script(&*driver, &format!("setsid sleep {sleep} & echo ready; sleep {sleep}"))).await;
        bench.saw("ready").await;
        let waiting = tokio::spawn({
            let task = task.clone();
            async move { task.wait().await }
        });
        tokio::time::sleep(Duration::from_millis(50)).await;
        for pid in supervisors(task.control()) {
            kill(Pid::from_raw(pid), Signal::SIGKILL).expect("kills");
        }
        let status = waiting.await.expect("joins").expect("settles");
        assert!(matches!(status.outcome, Outcome::Lost(_)), "{status}");
        assert!(!runs(&sleep), "something of the task is left");
        let task =
            if again { TaskHandle::adopt(task.control()).await.expect("adopts").expect("is kept") } else { task };
        assert_eq!(task.wait().await.expect("from disk"), status);
        bench.assert_clean(&task.status().await.expect("from disk"));
        task.forget().await.expect("forgets");
    }
}

#[tokio::test]
async fn an_agent_that_comes_back_after_the_supervisor_died_clears_up() {
    let bench = Bench::new();
    let sleep = format!("86402.{}", std::process::id());
    let raw = &drivers()[1];
    let task = bench.start(&bench.script(&**raw, &format!("echo ready; sleep {sleep}"))).await;
    bench.saw("ready").await;
    let control = task.control().to_owned();
    drop(task);
    for pid in supervisors(&control) {
        kill(Pid::from_raw(pid), Signal::SIGKILL).expect("kills");
    }
    assert!(runs(&sleep), "raw_exec's processes outlive their supervisor");
    let task = TaskHandle::adopt(&control).await.expect("adopts").expect("is kept");
    assert!(!runs(&sleep));
    assert!(matches!(task.wait().await.expect("from disk").outcome, Outcome::Lost(_)));
}

/// The way of machines without v2, and of v2 before `cgroup.kill`.
#[test]
fn the_freezer_kills_what_keeps_forking() {
    let bench = Bench::new();
    let found = Hierarchies::detect().expect("detects");
    if !found.v1.contains_key("freezer") {
        println!("no v1 freezer here: v2 alone is used, and tested by all other tests");
        return;
    }
    let on = Hierarchies { v2: None, ..found };
    let path: PathBuf = ["meshctl", &bench.node.id.short(), "freeze", "t"].iter().collect();
    let cgroup = Cgroup::claim(&on, &path).expect("claims");
    cgroup
        .create(&on, &path, &Limits { cpu_mhz: 100, memory_bytes: 32 << 20, pids_max: 300, ..Limits::default() })
        .expect("creates");
    let enter: String = cgroup.v1.values().map(|dir| format!("echo 0 > {}/cgroup.procs; ", dir.display())).collect();
    let script = format!("{enter} while :; do sleep 30 & sleep 0.02; done");
    let mut child = Command::new("sh").args(["-c", &script]).stderr(std::process::Stdio::null()).spawn().expect("runs");
    let busy = (0..1_000).any(|_| {
        std::thread::sleep(Duration::from_millis(5));
        Cgroup::claim(&on, &path).is_err()
    });
    assert!(busy, "a busy cgroup is not claimed");
    cgroup.kill_all().expect("kills");
    child.wait().expect("waits");
    cgroup.remove().expect("removes");
    assert!(cgroup.is_gone());
}
