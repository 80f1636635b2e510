//! Java programs: found, started from a class or a jar, held to their memory.

use crate::common::{Bench, plugin, task};
use drivers::{Driver, Java};
use model::{ConfigValue, Plugin, Resources, Task};
use std::path::Path;
use std::process::Command;

fn text(text: &str) -> ConfigValue {
    ConfigValue::Text(text.to_owned())
}

fn java(pairs: &[(&str, ConfigValue)]) -> Task {
    let resources = Resources { cpu_mhz: 500, memory_mb: 256, ..Resources::default() };
    Task { resources, ..task(plugin(Plugin::Java, pairs)) }
}

/// A class that says what it sees, compiled into the task's directory.
fn compile(local: &Path) {
    let program = r#"public class Hello {
        public static void main(String[] args) throws Exception {
            System.out.println(String.join(",", args) + " " + System.getProperty("colour") + " " + System.getenv("NOMAD_TASK_NAME"));
            System.out.println(new java.io.File("/root").exists() + " " + (Runtime.getRuntime().maxMemory() >> 20 <= 256));
            System.exit(7);
        }
    }"#;
    std::fs::create_dir_all(local).expect("makes");
    std::fs::write(local.join("Hello.java"), program).expect("writes");
    let run = |program: &str, args: &[&str]| {
        let done = Command::new(program).args(args).current_dir(local).status();
        assert!(done.is_ok_and(|status| status.success()), "{program} failed; apt-get install openjdk-17-jdk-headless");
    };
    run("javac", &["Hello.java"]);
    run("jar", &["--create", "--file", "hello.jar", "--main-class", "Hello", "Hello.class"]);
}

#[tokio::test]
async fn classes_and_jars_run_isolated_and_sized_by_their_limits() {
    let args = ConfigValue::List(vec![text("a"), text("${NOMAD_ALLOC_INDEX}")]);
    let options = ConfigValue::List(vec![text("-Dcolour=red"), text("-Xshare:auto")]);
    let class = [("class", text("Hello")), ("class_path", text("/local"))];
    let jar = [("jar_path", text("local/hello.jar"))];
    for way in [&class[..], &jar[..]] {
        let bench = Bench::new();
        compile(&bench.dirs().local);
        let pairs = [way, &[("args", args.clone()), ("jvm_options", options.clone())]].concat();
        let spec = bench.prepare(&Java, java(&pairs)).expect("prepares");
        let handle = bench.start(&spec).await;
        let status = handle.wait().await.expect("waits");
        assert_eq!(status.exit_code(), 7, "{status}: {}", bench.log("stderr", 0));
        assert_eq!(bench.log("stdout", 0), "a,0 red t\nfalse true\n");
        bench.assert_clean(&handle.status().await.expect("status"));
    }
}

#[test]
fn a_task_without_a_program_is_refused() {
    let refusal = Bench::new().prepare(&Java, java(&[])).expect_err("must be refused").to_string();
    assert!(refusal.contains("jar_path") && refusal.contains("class_path"), "{refusal}");
}

#[test]
fn the_runtime_is_found_with_its_version() {
    let status = Java.fingerprint();
    assert!(status.healthy, "{status:?}");
    let version = Java.attributes().remove("driver.java.version").expect("has one");
    assert!(version.chars().next().is_some_and(|c| c.is_ascii_digit()), "{version}");
}
