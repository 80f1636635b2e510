use crate::{Inputs, parse_hcl, parse_hcl_with};
use model::{CheckKind, Job, NetworkMode, Operator, RestartMode, TaskDriver};
use std::time::Duration;

const MINIMAL: &str = r#"
job "a" {
  group "g" {
    task "t" {
      driver = "exec"
      config { command = "/bin/true" }
    }
  }
}
"#;

fn good(text: &str) -> Job {
    parse_hcl("test.hcl", text).unwrap_or_else(|refusal| panic!("{refusal}"))
}

/// Each line as `line:column: message`.
fn problems(text: &str) -> Vec<String> {
    let refusal = parse_hcl("test.hcl", text).expect_err("the file should be refused");
    assert!(!refusal.problems.is_empty());
    refusal.problems.iter().map(|p| format!("{}:{}: {}", p.line, p.column, p.message)).collect()
}

/// A job whose group holds `group` and whose task holds `task`, each on a line of its own: 3 and 5.
fn around(group: &str, task: &str) -> String {
    format!(
        "job \"a\" {{\ngroup \"g\" {{\n{group}\ntask \"t\" {{\n{task}\ndriver = \"exec\"\nconfig {{ command = \"x\" }}\n}}\n}}\n}}\n"
    )
}

fn check(text: &str, expected: &[&str]) {
    assert_eq!(problems(text), expected, "in\n{text}");
}

#[test]
fn a_minimal_job_gets_the_documented_defaults() {
    let job = good(MINIMAL);
    assert_eq!((job.id.0.as_str(), job.name.as_str(), job.namespace.as_str()), ("a", "a", "default"));
    assert_eq!((job.region.as_str(), job.node_pool.as_str(), job.priority), ("global", "default", 50));
    assert_eq!(job.datacenters, ["*"]);
    let group = &job.groups[0];
    assert_eq!((group.count, group.disk_mb, &group.network), (1, 300, &None));
    assert_eq!(group.restart, model::RestartPolicy::SERVICE);
    let task = &group.tasks[0];
    assert_eq!((task.kill_timeout, task.kill_signal.as_deref()), (Duration::from_secs(5), None));
    assert_eq!((task.resources.cpu_mhz, task.resources.memory_mb), (100, 300));
    assert_eq!((task.logs.files_max, task.logs.file_size_mb_max), (10, 10));
}

#[test]
fn the_examples_are_taken() {
    let web = good(include_str!("../../../examples/web.nomad.hcl"));
    assert_eq!(web.groups[0].count, 2);
    assert_eq!(web.groups[0].services[0].meta["vip_port"], "80");
    let TaskDriver::Exec(config) = &web.groups[0].tasks[0].driver else { panic!("driver") };
    assert!(config.args[1].starts_with("mkdir -p /local/www\n"), "the heredoc is not dedented: {:?}", config.args[1]);

    let demo = good(include_str!("../../../examples/demo.nomad.hcl"));
    let group = &demo.groups[0];
    assert_eq!((group.count, group.restart.mode), (6, RestartMode::Delay));
    assert_eq!(group.services[0].tags, ["urlprefix-:80 proto=tcp"]);
    assert_eq!(demo.constraints[0].attribute, "${attr.kernel.name}");
    let network = group.network.as_ref().expect("network");
    assert_eq!((network.mode, network.ports[0].to), (NetworkMode::Bridge, Some(8080)));
    let TaskDriver::Exec(config) = &group.tasks[0].driver else { panic!("driver") };
    assert!(config.args[1].contains("listen ${NOMAD_PORT_http};"), "run-time text is lost: {}", config.args[1]);
    assert!(config.args[1].contains("\\$remote_addr"), "backslashes are lost: {}", config.args[1]);
}

#[test]
fn values_are_coerced_as_job_files_rely_on() {
    let text = around(
        "count = \"3\"\nrestart {\nattempts = \"1\"\ninterval = \"1h30m\"\ndelay = \"500ms\"\nmode = \"delay\"\n}",
        "env {\nN = 5\nB = true\n}\nmeta = { a = \"b\" }\nkill_timeout = \"1m\"\nkill_signal = \"hup\"\nleader = false",
    );
    let group = &good(&text).groups[0];
    assert_eq!((group.count, group.restart.attempts), (3, 1));
    assert_eq!((group.restart.interval, group.restart.delay), (Duration::from_secs(5400), Duration::from_millis(500)));
    let task = &group.tasks[0];
    assert_eq!((task.env["N"].as_str(), task.env["B"].as_str(), task.meta["a"].as_str()), ("5", "true", "b"));
    assert_eq!((task.kill_timeout, task.kill_signal.as_deref()), (Duration::from_secs(60), Some("SIGHUP")));
}

#[test]
fn variables_locals_and_functions_have_values() {
    let head =
        "variable \"n\" { default = 2 }\nlocals {\n  twice = var.n * 2\n  word = upper(\"x-${local.twice}\")\n}\n";
    let text = around("count = local.twice", "env {\nA = local.word\nB = \"${var.n > 1 ? \"many\" : \"one\"}\"\n}");
    let group = &good(&format!("{head}{text}")).groups[0];
    assert_eq!(group.count, 4);
    assert_eq!((group.tasks[0].env["A"].as_str(), group.tasks[0].env["B"].as_str()), ("X-4", "many"));
}

#[test]
fn what_only_the_node_knows_stays_in_the_text() {
    let text = around("", "env {\nA = \"${NOMAD_PORT_http}/${attr.cpu.arch}\"\nB = meta.rack\nC = \"$${x}\"\n}");
    let env = good(&text).groups[0].tasks[0].env.clone();
    assert_eq!(env["A"], "${NOMAD_PORT_http}/${attr.cpu.arch}");
    assert_eq!(env["B"], "${meta.rack}");
    assert_eq!(env["C"], "${x}");
}

#[test]
fn services_and_checks_are_read() {
    let text = around(
        "network {\nmode = \"bridge\"\nport \"http\" {}\nport \"db\" {\nstatic = 5432\nto = -1\n}\n}\nservice {\nport = \"http\"\ncheck {\ntype = \"http\"\npath = \"/h\"\ninterval = \"10s\"\ntimeout = \"2s\"\n}\n}",
        "service {\nname = \"${JOB}-db\"\nprovider = \"nomad\"\nport = \"db\"\ncheck {\ntype = \"tcp\"\ninterval = \"10s\"\ntimeout = \"2s\"\n}\n}",
    );
    let group = &good(&text).groups[0];
    let ports = &group.network.as_ref().expect("network").ports;
    assert_eq!((ports[0].static_port, ports[1].static_port, ports[1].to), (None, Some(5432), None));
    assert_eq!(group.services[0].name, "a-g");
    let http = CheckKind::http("/h");
    assert_eq!(group.services[0].checks[0].kind, http);
    assert_eq!(group.tasks[0].services[0].name, "a-db");
}

#[test]
fn constraints_have_long_and_short_forms() {
    let text = around(
        "constraint {\nattribute = attr.kernel.name\noperator = \"is\"\nvalue = \"linux\"\n}\nconstraint {\nattribute = \"${meta.v}\"\nversion = \">= 1.2\"\n}\nconstraint {\ndistinct_hosts = true\n}\nconstraint {\noperator = \"distinct_hosts\"\nvalue = \"false\"\n}",
        "",
    );
    let constraints = good(&text).groups[0].constraints.clone();
    let seen: Vec<_> = constraints.iter().map(|c| (c.attribute.as_str(), c.operator, c.value.as_str())).collect();
    let expected = [
        ("${attr.kernel.name}", Operator::Equal, "linux"),
        ("${meta.v}", Operator::Version, ">= 1.2"),
        ("", Operator::DistinctHosts, "true"),
    ];
    assert_eq!(seen, expected);
}

#[test]
fn what_is_not_built_is_refused_by_name() {
    check(&around("scaling {\nmax = 2\n}", ""), &["3:1: block `scaling` is not built yet"]);
    check(&around("", "vault {\nrole = \"x\"\n}"), &["5:1: block `vault` is not built yet"]);
    check(&around("", "kind = \"x\""), &["5:1: key `kind` is not built yet"]);
    check(&around("", "resources {\nnuma {}\n}"), &["6:1: block `numa` is not built yet"]);
    check(
        &around("network { mode = \"cni/mine\" }", ""),
        &["3:18: network mode `cni/mine` is not built yet; use \"bridge\" or \"host\""],
    );
    check(
        &MINIMAL.replace("\"exec\"", "\"qemu\""),
        &["5:16: driver `qemu` is not built yet; use \"exec\" or \"raw_exec\""],
    );
    check(
        &around("", "env { A = env.HOME }"),
        &["5:11: `env` is not built yet; set the variable in the task's `env` block"],
    );
    check(
        &around("dynamic \"service\" {\nfor_each = []\n}", ""),
        &["3:1: `dynamic` needs `for_each` and a `content` block"],
    );
    let strip = "`~` strips nothing around what only the node knows; leave it out";
    check(&around("", "env { A = \"a ${NOMAD_IP_x ~} b\" }"), &[&format!("5:14: {strip}")]);
    check(
        &MINIMAL.replace("  group", "namespace = \"web\"\nregion = \"eu\"\n  group"),
        &[
            "3:13: namespace `web` is not built yet; there is only `default`",
            "4:10: region `eu` is not built yet; there is only `global`",
        ],
    );
}

#[test]
fn what_would_never_match_or_never_be_dialled_is_refused() {
    check(
        &around("constraint {\nattribute = \"${attr.x}\"\nregexp = \"a(\"\n}", ""),
        &["5:10: `a(` is not a regular expression: unclosed group"],
    );
    check(
        &around("constraint {\nattribute = \"${attr.x}\"\noperator = \"version\"\nvalue = \"newest\"\n}", ""),
        &["6:9: `newest` is not a version constraint; write for example \">= 1.2, < 2\""],
    );
    let service =
        |meta: &str| around(&format!("network {{\nport \"p\" {{}}\n}}\nservice {{\nport = \"p\"\n{meta}\n}}"), "");
    let reason = "vip_port: `http` is not a port; write a number from 1 to 65535";
    check(&service("meta {\nvip_port = \"http\"\n}"), &[&format!("9:12: {reason}")]);
    check(&service("meta = { vip_port = \"http\" }"), &[&format!("8:8: {reason}")]);
}

#[test]
fn every_block_that_nomad_knows_is_known_here() {
    for block in ["scaling", "consul", "vault"] {
        check(&around(&format!("{block} {{}}"), ""), &[&format!("3:1: block `{block}` is not built yet")]);
    }
    for block in ["vault", "identity", "action", "csi_plugin"] {
        check(&around("", &format!("{block} {{}}")), &[&format!("5:1: block `{block}` is not built yet")]);
    }
    let text = MINIMAL.replace("  group", "multiregion {}\n  group");
    check(&text, &["3:1: block `multiregion` is not built yet"]);
}

/// The job, though parts of it may not be acted on yet; every other problem fails the test.
fn read(text: &str) -> Job {
    let (job, problems) = crate::read(text);
    let wrong: Vec<_> = problems.iter().filter(|problem| !problem.contains("not built yet")).collect();
    assert!(wrong.is_empty(), "{wrong:#?}");
    job.expect("a job")
}

#[test]
fn every_block_is_read() {
    let job = read(include_str!("tests/everything.nomad.hcl"));
    assert_eq!((job.kind, job.affinities[0].weight, job.spreads[0].targets["dc1"]), (model::JobKind::Batch, -20, 60));
    let periodic = job.periodic.as_ref().expect("periodic");
    assert_eq!(
        (periodic.crons.len(), periodic.prohibit_overlap, periodic.time_zone.as_str()),
        (2, true, "Europe/Berlin")
    );
    assert_eq!((job.depends_on[0].job.as_str(), job.disruption.map(|budget| budget.max_unavailable)), ("db", Some(2)));
    let group = &job.groups[0];
    assert_eq!((group.reschedule.attempts, group.reschedule.unlimited), (3, false));
    assert_eq!(group.disconnect.stop_on_client_after, Some(Duration::from_secs(120)));
    assert!(!group.disconnect.replace);
    assert_eq!(group.disconnect.reconcile, model::Reconcile::KeepOriginal);
    assert_eq!((group.volumes[0].source.as_str(), group.volumes[0].read_only), ("ssd", true));
    assert_eq!((group.disk_mb, group.disk_sticky, group.disk_migrate), (500, true, true));
    assert_eq!(group.max_run_duration, Some(Duration::from_secs(3600)));
    let network = group.network.as_ref().expect("network");
    assert_eq!(
        (network.hostname.as_deref(), network.dns.as_ref().map(|dns| dns.servers.len())),
        (Some("web"), Some(1))
    );
    the_service(&group.services[0]);
    the_tasks(&group.tasks);
}

fn the_service(service: &model::Service) {
    assert_eq!((service.weights.passing, service.weights.warning), (10, 2));
    assert_eq!(service.canary_tags.as_deref(), Some(&["canary".to_owned()][..]));
    let CheckKind::Http { headers, body, tls, .. } = &service.checks[0].kind else { panic!("http") };
    assert_eq!((headers["X-A"].len(), body.as_str()), (2, "ping"));
    assert_eq!(tls.as_ref().map(|tls| (tls.server_name.as_str(), tls.skip_verify)), Some(("web.example", true)));
    assert_eq!(service.checks[0].restart.map(|restart| restart.limit), Some(3));
    assert_eq!(service.checks[1].kind, CheckKind::Grpc { service: "web".to_owned(), tls: None });
    assert_eq!(service.checks[1].restart.map(|restart| restart.limit), Some(9));
    assert_eq!(service.checks[2].task.as_deref(), Some("server"));
    assert_eq!(service.checks[3].kind, CheckKind::Ttl);
}

fn the_tasks(tasks: &[model::Task]) {
    let [server, helper] = tasks else { panic!("two tasks") };
    assert_eq!((server.resources.cores, server.resources.memory_max_mb, server.devices[0].count), (2, 256, 1));
    assert_eq!((server.leader, server.restart.map(|restart| restart.attempts)), (true, Some(7)));
    assert_eq!((server.artifacts[0].options["checksum"].as_str(), server.artifacts[0].chown), ("md5:00", true));
    let [first, second] = server.templates.as_slice() else { panic!("two templates") };
    assert_eq!(
        (first.perms, first.uid, first.env, &first.on_change),
        (0o600, Some(1000), true, &model::ChangeMode::Noop)
    );
    assert!(matches!(&second.on_change, model::ChangeMode::Script(script) if script.command == "/bin/reload"));
    assert_eq!(server.volume_mounts[0].destination, "/data");
    assert_eq!(server.payload_file.as_deref(), Some("input.json"));
    assert_eq!(helper.lifecycle.map(|lifecycle| lifecycle.sidecar), Some(true));
    let TaskDriver::Plugin(plugin) = &helper.driver else { panic!("plugin") };
    assert_eq!((plugin.text("image"), plugin.texts("ports")), (Some("busybox:1"), vec!["http"]));
    assert_eq!((plugin.map("labels"), plugin.flag("init")), (vec![("a", "b")], true));
}

#[test]
fn a_drivers_config_is_checked_by_its_schema() {
    let task = |config: &str| {
        MINIMAL.replace("\"exec\"", "\"docker\"").replace("{ command = \"/bin/true\" }", &format!("{{\n{config}\n}}"))
    };
    let has = |config: &str, expected: &str| {
        let found = problems(&task(config));
        assert!(found.iter().any(|problem| problem.contains(expected)), "{expected} in {found:?}");
    };
    has("command = \"x\"", "6:7: `config` needs `image`");
    has("image = \"a\"\nargs = \"x\"", "8:8: must be a list of strings");
    has("image = \"a\"\nimagee = \"x\"", "8:1: `imagee` is not known in this driver's `config`");
    has("image = \"a\"\nlogging = \"host\"", "8:1: `logging` is not built yet");
    has("image = \"a\"\nmount {\nsource = \"x\"\n}", "8:1: `mount` needs `target`");
    has("image = \"a\"\nprivileged = \"maybe\"", "8:14: must be true or false");
}

#[test]
fn blocks_that_contradict_themselves_are_refused() {
    let has = |text: &str, expected: &str| {
        let found = problems(text);
        assert!(found.iter().any(|problem| problem.contains(expected)), "{expected} in {found:?}");
    };
    has(&around("", "template {\ndata = \"x\"\nsource = \"y\"\n}"), "`source` and `data` exclude each other");
    has(&around("", "template {\ndata = \"x\"\ndestination = \"../x\"\n}"), "leads out of the task's directory");
    has(&around("", "artifact {\ndestination = \"x\"\n}"), "5:1: `artifact` needs `source`");
    has(&around("reschedule {\nattempts = 2\nunlimited = true\n}", ""), "exclude each other");
    has(&around("reschedule {\ndelay = \"1s\"\n}", ""), "delay must be at least 5s");
    has(
        &around("spread {\nattribute = \"a\"\ntarget \"x\" {\npercent = 60\n}\ntarget \"y\" {\npercent = 60\n}\n}", ""),
        "120 percent",
    );
    has(&around("affinity {\nattribute = \"a\"\nvalue = \"b\"\nweight = 200\n}", ""), "-100 to 100");
    has(&around("max_run_duration = \"1h\"", ""), "batch and sysbatch");
    has(&around("", "lifecycle {\nhook = \"prestart\"\n}"), "needs a task without `lifecycle`");
    has(&around("", "volume_mount {\nvolume = \"x\"\ndestination = \"/x\"\n}"), "`x` is not a volume of the group");
    let periodic = MINIMAL.replace("  group", "periodic {\ncrons = [\"@daily\"]\n}\n  group");
    has(&periodic, "only batch and sysbatch jobs can be periodic");
}

/// The task's environment variable `A` after reading it as this expression.
fn evaluated(expression: &str) -> String {
    good(&around("", &format!("env {{\nA = {expression}\n}}"))).groups[0].tasks[0].env["A"].clone()
}

#[test]
fn loops_and_conditions() {
    assert_eq!(evaluated("join(\",\", [for i, x in [\"a\", \"b\", \"c\"] : \"${i}${x}\" if x != \"b\"])"), "0a,2c");
    assert_eq!(evaluated("join(\",\", keys({for k, v in {a = 1, b = 2} : upper(k) => v if v > 1}))"), "B");
    assert_eq!(
        evaluated("jsonencode({for x in [\"ab\", \"ac\"] : substr(x, 0, 1) => x...})"),
        "{\"a\":[\"ab\",\"ac\"]}"
    );
    assert_eq!(evaluated("join(\",\", [{n = \"a\"}, {n = \"b\"}][*].n)"), "a,b");
    assert_eq!(evaluated("\"x%{ if 1 > 2 }no%{ else }yes%{ endif }\""), "xyes");
    assert_eq!(evaluated("\"%{ for x in [1, 2] }<${x}>%{ endfor }\""), "<1><2>");
    assert_eq!(evaluated("\"a ${~ 1 ~} b\""), "a1b");
    assert_eq!(evaluated("\"a %{~ if true ~} b %{~ endif ~} c\""), "abc");
    assert_eq!(evaluated("try([1][3], \"none\")"), "none");
    assert_eq!(evaluated("max([3, 5]...)"), "5");
    assert_eq!(evaluated("join(\"\", [for x in [1] : \"${NOMAD_TASK_NAME}\"])"), "${NOMAD_TASK_NAME}");
}

#[test]
fn dynamic_blocks_stand_for_blocks() {
    let ports = "network {\ndynamic \"port\" {\nfor_each = { http = 80, admin = 8080 }\nlabels = [port.key]\ncontent {\nto = port.value\n}\n}\n}";
    let services = "dynamic \"service\" {\nfor_each = [\"http\", \"admin\"]\niterator = it\ncontent {\nname = \"s-${it.value}\"\nport = it.value\ntags = [for n in range(it.key) : \"t${n}\"]\ndynamic \"check\" {\nfor_each = [1]\ncontent {\nname = \"${it.value}-${check.value}\"\ntype = \"tcp\"\ninterval = \"5s\"\ntimeout = \"1s\"\n}\n}\n}\n}";
    let group = good(&around(&format!("{ports}\n{services}"), "")).groups[0].clone();
    let network = group.network.expect("network");
    let seen: Vec<_> = network.ports.iter().map(|port| (port.label.as_str(), port.to)).collect();
    assert_eq!(seen, [("admin", Some(8080)), ("http", Some(80))]);
    let names: Vec<_> = group.services.iter().map(|service| (service.name.as_str(), service.tags.len())).collect();
    assert_eq!(names, [("s-http", 0), ("s-admin", 1)]);
    assert_eq!(group.services[1].checks[0].name, "admin-1");
    let many = "dynamic \"service\" {\nfor_each = range(2000)\ncontent {}\n}";
    assert!(problems(&around(many, "")).iter().any(|problem| problem.contains("more than 1000 blocks")));
}

#[test]
fn variables_get_values_from_outside() {
    let declared = "variable \"n\" {\ntype = number\n}\nvariable \"names\" {\ntype = list(string)\ndefault = []\n}\n";
    let text = format!("{declared}{}", around("count = var.n", "env { A = join(\",\", var.names) }"));
    let read = |inputs: &Inputs| parse_hcl_with("f.hcl", &text, inputs).map_err(|refusal| refusal.to_string());
    assert!(read(&Inputs::default()).expect_err("refused").contains("variable `n` has no default and no value"));
    let mut inputs = Inputs::default();
    inputs.read_file("v.hcl", "n = 2\nnames = [\"x\"]\n").expect("taken");
    inputs.set("names=[\"a\", \"b\"]").expect("taken");
    let job = read(&inputs).expect("taken");
    assert_eq!((job.groups[0].count, job.groups[0].tasks[0].env["A"].as_str()), (2, "a,b"));
    inputs.set("n=many").expect("an assignment");
    assert!(read(&inputs).expect_err("refused").contains("variable `n` is to be of type number, not a string"));
    inputs.set("m=1").expect("an assignment");
    assert!(read(&inputs).expect_err("refused").contains("`m`, which is not a variable"));
    assert!(inputs.set("novalue").is_err());
    assert_eq!(
        inputs.read_file("v.hcl", "a {\n}").expect_err("refused").to_string(),
        "v.hcl: 1:1: holds only `name = value`"
    );
}

#[test]
fn mistakes_are_named_with_their_places_and_what_would_be_right() {
    check(&around("cuont = 2", ""), &["3:1: key `cuont` is not known in `group`"]);
    let refusal = parse_hcl("f.hcl", &around("cuont = 2", "")).expect_err("refused").to_string();
    assert_eq!(refusal, "f.hcl:3:1: key `cuont` is not known in `group`\n  did you mean `count`?");
    check(&around("count = \"many\"", ""), &["3:9: must be a whole number, 0 to 50000, not many"]);
    check(
        &around("", "kill_timeout = 5"),
        &["5:16: must be a duration with a unit, such as \"30s\" or \"1h30m\", not \"5\""],
    );
    check(
        &around("", "kill_signal = \"SIGFOO\""),
        &["5:15: `SIGFOO` is not a signal's name; use for example \"SIGTERM\""],
    );
    check(&around("constraint = 5", ""), &["3:1: `constraint` is a block: write `constraint { … }` without `=`"]);
    check(
        &around("service {\nport = \"htpp\"\n}\nnetwork {\nport \"http\" {}\n}", ""),
        &["4:8: `htpp` is not a port of the group's network"],
    );
    check(
        &around("task \"t\" {\ndriver = \"raw_exec\"\nconfig { command = \"x\" }\n}", ""),
        &["7:1: there is a task `t` already"],
    );
    check("", &["1:1: there is no `job` block"]);
    check(
        &around("restart {\nattempts = 9\ninterval = \"10s\"\ndelay = \"5s\"\n}", ""),
        &["3:1: restart: 9 attempts with a delay of 5s do not fit into an interval of 10s"],
    );
    check(&around("", "env { A = var.x }"), &["5:11: no variable `x` with a default"]);
    check(
        &around("", "env { A = sha512(\"x\") }").replace("\n\n", "\n"),
        &["4:11: function `sha512` is not built yet"],
    );
}

#[test]
fn all_problems_are_told_at_once_in_order() {
    let text = around("cuont = 2\nscaling {}", "driver = 5\nenv { A = [1] }\nresources { cpu = 0 }");
    let lines: Vec<String> = problems(&text.replace("driver = 5\n", "")).into_iter().collect();
    let expected = [
        "3:1: key `cuont` is not known in `group`",
        "4:1: block `scaling` is not built yet",
        "6:11: must be a string, not a list",
        "7:19: must be a whole number, 1 or more, not 0",
    ];
    assert_eq!(lines, expected);
}

#[test]
fn syntax_errors_have_a_place() {
    let refusal = parse_hcl("f.hcl", "job \"a\" {\n  group = = 3\n}\n").expect_err("refused");
    let problem = &refusal.problems[0];
    assert_eq!((refusal.problems.len(), problem.line, problem.column), (1, 2, 11), "{refusal}");
}

mod hostile {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn a_source_that_is_too_long_is_refused_unread() {
        let refusal = parse_hcl("f.hcl", &" ".repeat(crate::SOURCE_BYTES_MAX + 1)).expect_err("refused");
        assert!(refusal.to_string().contains("1048577 bytes"));
    }

    #[test]
    fn deep_nesting_is_refused_and_does_not_overflow_the_stack() {
        for (open, close) in [("[", "]"), ("(", ")"), ("{a=", "}"), ("!", ""), ("\"${", "}\""), ("upper(", ")")] {
            let deep = format!("{}1{}", open.repeat(50_000), close.repeat(50_000));
            problems(&around("", &format!("env {{ A = {deep} }}")));
        }
        problems(&"a {\n".repeat(50_000));
        problems(&around("", &format!("env {{ A = {}1 }}", "1 + ".repeat(50_000))));
        problems(&around("", &format!("env {{ A = {}1 }}", "true ? 1 : ".repeat(20_000))));
    }

    #[test]
    fn locals_that_lead_far_or_in_circles_are_refused() {
        let chain: String = (0..20_000).map(|n| format!("l{n} = \"${{local.l{}}}\"\n", n + 1)).collect();
        let text = format!("locals {{\n{chain}l20000 = 1\n}}\n{}", around("", "env { A = local.l0 }"));
        assert!(problems(&text)[0].contains("more than 128 expressions lead into one another"));
        let circle = format!("locals {{\na = local.b\nb = local.a\n}}\n{}", around("", "env { A = local.a }"));
        assert!(problems(&circle)[0].contains("depends on itself"), "{:?}", problems(&circle));
    }

    #[test]
    fn values_that_double_and_double_are_refused() {
        let doubling: String =
            (0..40).map(|n| format!("l{n} = \"${{local.l{}}}${{local.l{}}}\"\n", n + 1, n + 1)).collect();
        let text = format!("locals {{\n{doubling}l40 = \"xxxxxxxx\"\n}}\n{}", around("", "env { A = local.l0 }"));
        assert!(problems(&text)[0].contains("add up to more than"), "{:?}", problems(&text));
    }

    proptest! {
        #[test]
        fn any_text_is_answered(text in "\\PC*") {
            let _ = parse_hcl("f.hcl", &text);
        }

        #[test]
        fn a_cut_or_changed_example_is_answered(at in 0usize..3000, len in 0usize..40, with in "[\\PC\n]{0,8}") {
            let example = include_str!("../../../examples/demo.nomad.hcl");
            let chars: Vec<char> = example.chars().collect();
            let (start, end) = (at.min(chars.len()), (at + len).min(chars.len()));
            let text: String = chars[..start].iter().copied().chain(with.chars()).chain(chars[end..].iter().copied()).collect();
            if let Err(refusal) = parse_hcl("f.hcl", &text) {
                prop_assert!(!refusal.problems.is_empty());
                prop_assert!(refusal.problems.iter().all(|problem| problem.line > 0 && problem.column > 0));
            }
        }
    }
}

#[test]
fn updates_are_inherited_from_the_job_and_checked() {
    let text = MINIMAL.replace(
        "group \"g\" {",
        "update {\nmax_parallel = 2\ncanary = 1\n}\nmigrate {\nmax_parallel = 3\n}\ngroup \"g\" {\nupdate {\norder = \"start-first\"\nauto_promote = \"true\"\n}",
    );
    let group = &good(&text).groups[0];
    let policy = group.update.expect("a policy");
    assert_eq!((policy.max_parallel, policy.canary, policy.auto_promote), (2, 1, true));
    assert_eq!((policy.order, group.migrate_max_parallel), (model::UpdateOrder::StartFirst, 3));
    assert_eq!(good(MINIMAL).groups[0].update, None);
    check(
        &around("update {\nauto_promote = true\n}", ""),
        &["3:1: update: auto_promote needs canary to be more than 0"],
    );
    check(&around("update {\norder = \"first\"\n}", ""), &["4:9: `first` must be \"stop-first\" or \"start-first\""]);
}

#[test]
fn system_jobs_have_the_restart_policy_of_their_kind() {
    let job = good(&MINIMAL.replace("group", "type = \"system\"\n  group"));
    assert_eq!((job.kind, job.groups[0].restart), (model::JobKind::System, model::RestartPolicy::BATCH));
}
