//! Attempts to get out of exec's isolation, as nobody and as the task's root. Each must fail; docs/security.md lists them.

use crate::common::{Bench, runs};
use drivers::{Exec, LogLimits, Outcome};
use std::os::unix::fs::PermissionsExt;
use std::path::Path;

/// Both as whom tasks run by default and as root, who has capabilities left.
const USERS: [&str; 2] = ["nobody", "root"];

async fn attempt(bench: &Bench, user: &str, script: &str) -> String {
    let mut spec = bench.script(&Exec, script);
    spec.user = Some(user.to_owned());
    let task = bench.start(&spec).await;
    task.wait().await.expect("waits");
    let output = bench.log("stdout", 0);
    // What the shell says of refusals.
    println!("{}", bench.log("stderr", 0));
    bench.assert_clean(&task.status().await.expect("status"));
    output
}

/// Calls the kernel by number, as no C library would.
fn calls(calls: &[(&str, i64, &str)]) -> String {
    let lines: String = calls
        .iter()
        .map(|(name, number, args)| {
            format!(
                "$r = syscall({number}, {args}); print \"{name} \", ($r == -1 ? \"refused $!\" : \"DONE\"), \"\\n\";\n"
            )
        })
        .collect();
    format!("perl -e 'my $s = \"/tmp/x\";\n{}'", lines.replace('\'', ""))
}

#[tokio::test]
#[cfg(target_arch = "x86_64")]
async fn calls_that_administer_the_machine_or_reach_into_others_are_refused() {
    let script = calls(&[
        ("mount", 165, "$s, $s, $s, 0, 0"),
        ("umount", 166, "$s, 2"),
        ("fsopen", 430, "$s, 0"),
        ("open_tree", 428, "-100, $s, 1"),
        ("pivot_root", 155, "$s, $s"),
        ("unshare", 272, "0x10000000"),
        ("clone of a user namespace", 56, "0x10000011, 0, 0, 0, 0"),
        ("setns", 308, "0, 0"),
        ("ptrace", 101, "16, 1, 0, 0"),
        ("process_vm_readv", 310, "1, 0, 0, 0, 0, 0"),
        ("pidfd_getfd", 438, "0, 0, 0"),
        ("open_by_handle_at", 304, "-100, 0, 0"),
        ("bpf", 321, "0, 0, 0"),
        ("perf_event_open", 298, "0, 0, -1, -1, 0"),
        ("keyctl", 250, "0, -3, 1"),
        ("io_uring_setup", 425, "8, 0"),
        ("userfaultfd", 323, "0"),
        ("init_module", 175, "0, 0, $s"),
        ("kexec_load", 246, "0, 0, 0, 0"),
        ("reboot", 169, "0, 0, 0, 0"),
        ("settimeofday", 164, "0, 0"),
        ("swapon", 167, "$s, 0"),
        ("syslog", 103, "10, 0, 0"),
        ("iopl", 172, "3"),
        ("vsock", 41, "40, 1, 0"),
        ("typing into a terminal", 16, "0, 0x5412, $s"),
        ("x32", 0x4000_0000 + 165, "0, 0, 0, 0, 0"),
    ]);
    for user in USERS {
        let output = attempt(&Bench::new(), user, &script).await;
        assert_eq!(output.lines().count(), 27, "{output}");
        for line in output.lines() {
            assert!(line.ends_with("refused Operation not permitted"), "{user}: {line}");
        }
    }
    let fallback = calls(&[("clone3", 435, "0, 0"), ("a call of the future", 580, "0")]);
    let output = attempt(&Bench::new(), "nobody", &fallback).await;
    assert_eq!(output.matches("refused Function not implemented").count(), 2, "{output}");
}

#[tokio::test]
async fn other_tasks_cannot_be_read() {
    let other = Bench::new();
    let marker = format!("77001.{}", std::process::id());
    let mut spec = other.script(
        &Exec,
        &format!("umask 077; echo s3cret > /local/f; echo s3cret > /secrets/f; echo ready; exec sleep {marker}"),
    );
    spec.env.insert("TOKEN".into(), "s3cret".into());
    let victim = other.start(&spec).await;
    other.saw("ready").await;
    let (files, pid) = (other.root().display().to_string(), std::process::id());
    let script = format!(
        "cat {files}/t/local/f {files}/t/secrets/f {files}/t/control/spec.json /secrets/f; \
         cat /proc/*/environ | tr '\\0' '\\n' | grep s3cret; m=77001; m=$m.{pid}; grep -l $m /proc/[0-9]*/cmdline; \
         ls -d {files}; ls /proc/1/root/ /proc/1/cwd/; cat /proc/1/environ /proc/1/maps; cat /proc/1/fd/*; \
         for pid in $(seq 1 40000); do test -d /proc/$pid && grep -q $m /proc/$pid/cmdline && echo found $pid; done"
    );
    for user in USERS {
        assert_eq!(attempt(&Bench::new(), user, &script).await, "", "{user}");
    }
    assert!(runs(&marker));
    victim.kill("SIGKILL", std::time::Duration::ZERO).await.expect("kills");
}

#[tokio::test]
async fn devices_are_those_of_every_program() {
    let script = "cd /tmp; for d in 'sda b 8 0' 'vda b 254 0' 'mem c 1 1' 'kmsg c 1 11' 'tun c 10 200' 'fuse c 10 229'; do \
                  set -- $d; mknod /tmp/$1 $2 $3 $4 2>/dev/null; for at in /tmp/$1 /local/$1 /dev/$1; do \
                  head -c 1 $at >/dev/null 2>&1 && echo read $at; done; done; \
                  echo b > /proc/sysrq-trigger; echo x > /dev/kmsg; dd if=/dev/mem count=1 2>/dev/null | wc -c";
    for user in USERS {
        assert_eq!(attempt(&Bench::new(), user, script).await, "0\n", "{user}");
    }
}

#[tokio::test]
async fn set_user_id_programs_give_nothing() {
    let bench = Bench::new();
    // The node's owner has put one there, and the task makes another.
    std::fs::create_dir_all(bench.dirs().local).expect("makes");
    let planted = bench.dirs().local.join("planted");
    std::fs::copy("/bin/busybox", &planted).expect("copies");
    std::fs::set_permissions(&planted, std::fs::Permissions::from_mode(0o6755)).expect("marks");
    let script = "/local/planted id -u; cp /bin/busybox /tmp/own && chmod 6755 /tmp/own && /tmp/own id -u; \
                  for p in /usr/bin/su /bin/su /usr/bin/passwd /usr/bin/newgrp; do test -u $p && $p -c 'id -u' </dev/null 2>/dev/null; done; id -u";
    let output = attempt(&bench, "daemon", script).await;
    assert!(output.lines().all(|line| line == "1"), "{output}");
}

#[tokio::test]
async fn the_nodes_knobs_are_out_of_reach() {
    let script = "for f in /proc/sys/kernel/core_pattern /proc/sys/kernel/hostname /proc/sys/vm/panic_on_oom /sys/kernel/uevent_helper \
                  /sys/power/state /proc/sysrq-trigger; do (echo x > $f) 2>/dev/null && echo wrote $f; done; \
                  ls /sys/fs/cgroup /sys/fs/bpf /sys/kernel/debug /sys/firmware 2>/dev/null | grep -v : | grep . ; \
                  cat /proc/kcore 2>/dev/null | head -c 9 | wc -c; cat /proc/keys 2>/dev/null; \
                  mount -o remount,rw / 2>/dev/null && echo remounted; touch /usr/x /etc/x 2>/dev/null && echo wrote; \
                  ln -s /etc/shadow /alloc/logs/t.stdout.1 2>/dev/null && echo planted; hostname other 2>/dev/null && echo renamed; exit 0";
    for user in USERS {
        assert_eq!(attempt(&Bench::new(), user, script).await, "0\n", "{user}");
    }
}

#[tokio::test]
async fn endless_output_takes_no_more_disk_than_was_asked_for() {
    let bench = Bench::new();
    let mut spec = bench.script(&Exec, "head -c 268435456 /dev/zero; echo end >&2");
    spec.logs = LogLimits { files_max: 2, file_bytes_max: 1 << 20 };
    let task = bench.start(&spec).await;
    assert_eq!(task.wait().await.expect("waits").outcome, Outcome::Exited(0));
    let used = |dir: &Path| -> u64 {
        std::fs::read_dir(dir)
            .expect("lists")
            .flatten()
            .filter_map(|entry| entry.metadata().ok())
            .map(|meta| meta.len())
            .sum()
    };
    let bytes = used(&bench.dirs().logs);
    assert!(bytes <= (2 << 20) + 16, "{bytes}");
    assert_eq!(bench.log("stderr", 0), "end\n");
}
