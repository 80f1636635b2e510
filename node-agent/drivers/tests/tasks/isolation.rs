//! What only exec promises: a task that sees little of the node and can change less.

use crate::common::Bench;
use drivers::{Driver, Exec, RawExec};

async fn shell(script: &str) -> String {
    Bench::new().output(&Exec, script).await
}

#[tokio::test]
async fn the_task_is_nobody_without_rights() {
    let output =
        shell("id -u; id -g; id -G; grep -E '^(NoNewPrivs|CapPrm|CapEff|CapAmb|Seccomp):' /proc/self/status").await;
    let none = "0000000000000000";
    let lines: Vec<_> = output.lines().map(|line| line.replace('\t', "")).collect();
    assert_eq!(lines[..3], ["65534", "65534", "65534"], "{output}");
    for expect in ["NoNewPrivs:1", &format!("CapPrm:{none}"), &format!("CapEff:{none}"), &format!("CapAmb:{none}")] {
        assert!(lines.iter().any(|line| line == expect), "{expect}: {output}");
    }
}

#[tokio::test]
async fn root_keeps_only_the_listed_capabilities() {
    let bench = Bench::new();
    let mut spec = bench.script(
        &Exec,
        "id -u; grep -E '^Cap(Bnd|Prm|Eff):' /proc/self/status; mount -t tmpfs x /tmp; \
         echo 1 > /proc/sys/kernel/panic; echo b > /proc/sysrq-trigger; chroot / true && echo chroot; \
         cat /proc/1/environ; ls /proc/1/root; : > /alloc/logs/planted; mknod /tmp/d b 254 0 && dd if=/tmp/d count=1",
    );
    spec.user = Some("root".into());
    let task = bench.start(&spec).await;
    task.wait().await.expect("waits");
    let output = bench.log("stdout", 0);
    // chown dac_override fowner fsetid kill setgid setuid setpcap net_bind_service sys_chroot mknod audit_write setfcap
    let set = "00000000a80405fb";
    assert_eq!(output, format!("0\nCapPrm:\t{set}\nCapEff:\t{set}\nCapBnd:\t{set}\nchroot\n"));
    assert!(!bench.dirs().logs.join("planted").exists());
}

#[tokio::test]
async fn the_task_sees_only_its_own_processes() {
    let output = shell("cat /proc/1/comm; ls /proc | grep -c '^[0-9]'; ls -l /proc/self/ns/pid").await;
    let own = std::fs::read_link("/proc/self/ns/pid").expect("reads");
    let lines: Vec<_> = output.lines().collect();
    assert!(lines[1].parse::<u32>().expect("number") <= 5, "{output}");
    assert!(!output.contains(own.to_str().expect("utf-8")), "{output}");
}

#[tokio::test]
async fn names_are_the_allocations_own() {
    let output = shell(
        "cat /proc/sys/kernel/hostname /etc/hostname /etc/resolv.conf; grep -c $(cat /etc/hostname) /etc/hosts; \
                        echo $NOMAD_SHORT_ALLOC_ID; echo x 2>/dev/null >/etc/resolv.conf || echo fixed",
    )
    .await;
    let lines: Vec<_> = output.lines().collect();
    assert_eq!(lines[0], lines[1]);
    assert_eq!(lines[2..4], ["nameserver 10.64.0.1", "1"]);
    assert_eq!([lines[0], "fixed"], lines[4..]);
}

#[tokio::test]
async fn the_node_is_read_only_and_mostly_absent() {
    let script = "for f in /usr/x /etc/x /bin/x /x /dev/x /proc/sys/x /sys/x; do touch $f 2>/dev/null && echo wrote $f; done; \
                  for f in /root /home /var /srv /boot /old_root; do test -e $f && echo sees $f; done; \
                  for f in /tmp/x /local/x /secrets/x /alloc/data/x /alloc/tmp/x /dev/shm/x; do touch $f || echo cannot $f; done; \
                  echo hello > /dev/null; head -c 3 /dev/zero | wc -c; test -c /dev/ptmx && echo ptmx; ls /dev | tr '\\n' ' '; \
                  ls /proc/self/fd | wc -l";
    let expect = "3\nptmx\nfd full null ptmx pts random shm stderr stdin stdout tty urandom zero 4\n";
    assert_eq!(shell(script).await, expect);
}

#[tokio::test]
async fn a_root_task_cannot_write_the_nodes_files_either() {
    let bench = Bench::new();
    let mut spec =
        bench.script(&Exec, "for f in /usr/x /etc/x /x /dev/x /sys/x; do touch $f && echo wrote $f; done; exit 0");
    spec.user = Some("0".into());
    let task = bench.start(&spec).await;
    assert!(task.wait().await.expect("waits").success());
    assert_eq!(bench.log("stdout", 0), "");
}

#[tokio::test]
async fn pid_1_collects_orphans() {
    // Twenty grandchildren lose their parents and end; a zombie would be listed.
    let script = "i=0; while [ $i -lt 20 ]; do (true &); i=$((i+1)); done; sleep 0.2; grep -l 'State:.Z' /proc/[0-9]*/status | wc -l";
    assert_eq!(shell(script).await, "0\n");
}

#[tokio::test]
async fn users_come_from_etc_passwd() {
    let bench = Bench::new();
    let mut spec = bench.script(&Exec, "id -u; stat -c %u /local /secrets");
    spec.user = Some("daemon".into());
    let task = bench.start(&spec).await;
    assert!(task.wait().await.expect("waits").success());
    assert_eq!(bench.log("stdout", 0), "1\n1\n1\n");
}

#[tokio::test]
async fn a_prepared_network_namespace_is_joined() {
    let name = format!("mctl-drv-{}", std::process::id());
    let ip = |args: &[&str]| std::process::Command::new("ip").args(args).status().expect("runs").success();
    assert!(ip(&["netns", "add", &name]), "`ip netns add` failed");
    for driver in [&Exec as &dyn Driver, &RawExec { enabled: true }] {
        let bench = Bench::new();
        let mut spec = bench.script(driver, "tail -n +3 /proc/net/dev | wc -l; cat /proc/net/dev");
        spec.netns = Some(format!("/run/netns/{name}").into());
        let task = bench.start(&spec).await;
        task.wait().await.expect("waits");
        let output = bench.log("stdout", 0);
        assert!(output.contains("lo:") && !output.contains("eth0"), "{output}");
    }
    assert!(ip(&["netns", "del", &name]));
}

#[test]
fn raw_exec_is_off_unless_enabled() {
    assert!(!RawExec::default().fingerprint().detected);
}
