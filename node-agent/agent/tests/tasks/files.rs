//! Templates and artifacts of tasks that really run.

use super::*;
use model::{Artifact, ArtifactMode, ChangeMode, RoutedService, Template, TemplateSource};
use std::collections::BTreeMap;

fn template(destination: &str, text: &str, on_change: ChangeMode, env: bool) -> Template {
    Template {
        source: TemplateSource::Inline(text.to_owned()),
        destination: destination.to_owned(),
        on_change,
        splay: Duration::ZERO,
        perms: 0o644,
        uid: None,
        gid: None,
        left_delimiter: "{{".to_owned(),
        right_delimiter: "}}".to_owned(),
        env,
        once: false,
        error_on_missing_key: false,
        wait: None,
    }
}

fn routing(generation: u64, names: &[&str]) -> RoutingSnapshot {
    let service =
        |name: &&str| RoutedService { name: (*name).to_owned(), vip: [10, 43, 0, 1].into(), instances: Vec::new() };
    RoutingSnapshot {
        generation: Generation(generation),
        nodes: Vec::new(),
        services: names.iter().map(service).collect(),
    }
}

fn artifact(source: String) -> Artifact {
    Artifact {
        source,
        destination: "local/".to_owned(),
        mode: ArtifactMode::Any,
        options: BTreeMap::new(),
        headers: BTreeMap::new(),
        insecure: false,
        chown: false,
    }
}

/// The rendered file is there before the command, the environment has its lines, a change restarts the task, and the
/// secrets are unmounted in the end.
pub fn templates_are_there_at_the_start_and_followed(bench: &Bench) {
    std::fs::write(bench.dir.path().join("run.sh"), "cat \"$NOMAD_SECRETS_DIR/conf\"; echo $FROM; exec sleep 600\n")
        .unwrap();
    let (routes, watched) = watch::channel(None);
    let half = bench.agent_with(|shell| {
        shell.files.routing = watched;
        shell.files.policy.file_roots = vec![bench.dir.path().to_owned()];
    });
    let mut alloc = bench.alloc(1, "exec sh \"$NOMAD_TASK_DIR/run.sh\"", 1);
    let group = &mut Arc::make_mut(&mut alloc.job).groups[0];
    group.services.clear();
    group.tasks[0].artifacts = vec![artifact(format!("file://{}/run.sh", bench.dir.path().display()))];
    group.tasks[0].templates = vec![
        template("secrets/conf", "{{with node \"gone\"}}{{else}}{{nodes | len}}{{end}}", ChangeMode::Restart, false),
        template("local/env", "FROM={{env \"NOMAD_TASK_NAME\"}}", ChangeMode::Noop, true),
    ];
    half.push(1, std::slice::from_ref(&alloc));
    let waits = |update: &AllocUpdate| {
        let events = &update.task_states["server"].events;
        events.iter().any(|event| event.message.starts_with("Missing: ") && event.message.contains("node gone"))
    };
    half.wait_one(&alloc, "word of what is missing", waits);
    routes.send_replace(Some(routing(1, &["a"])));
    half.wait_one(&alloc, "a start", |update| update.client == ClientStatus::Running);
    let output = bench.data.logs(alloc.id).join("server.stdout.0");
    let deadline = Instant::now() + Duration::from_secs(10);
    while std::fs::read_to_string(&output).unwrap_or_default() != "0server\n" {
        assert!(Instant::now() < deadline, "{:?}", std::fs::read_to_string(&output));
        half.settle(Duration::from_millis(20));
    }
    let mut more = routing(2, &["a"]);
    more.nodes = vec![model::RoutedNode {
        id: NodeId::from_random(1),
        name: "n1".to_owned(),
        datacenter: "dc1".to_owned(),
        address: [127, 0, 0, 1].into(),
        blocks: Vec::new(),
        status: model::NodeStatus::Ready,
        zone: String::new(),
    }];
    routes.send_replace(Some(more));
    let restarted = |update: &AllocUpdate| {
        let state = &update.task_states["server"];
        state.phase == model::TaskPhase::Running
            && state.events.iter().any(|event| event.message.contains("re-rendered"))
    };
    half.wait_one(&alloc, "a restart", restarted);
    let deadline = Instant::now() + Duration::from_secs(10);
    while std::fs::read_to_string(&output).unwrap_or_default() != "0server\n1server\n" {
        assert!(Instant::now() < deadline, "{:?}", std::fs::read_to_string(&output));
        half.settle(Duration::from_millis(20));
    }
    alloc.desired = model::DesiredStatus::Stop;
    half.push(2, std::slice::from_ref(&alloc));
    half.wait_one(&alloc, "an end", |update| update.client.is_terminal());
    half.gone(&bench.control(&alloc));
    let secrets = bench.data.alloc(alloc.id).join("server/secrets/conf");
    let deadline = Instant::now() + Duration::from_secs(10);
    while secrets.exists() {
        assert!(Instant::now() < deadline, "the secrets are still mounted");
        half.settle(Duration::from_millis(20));
    }
}

/// Nothing starts, and the history names what is missing and what to do.
pub fn a_missing_artifact_fails_its_task_by_name(bench: &Bench) {
    let half = bench.agent();
    let mut alloc = bench.alloc(1, "exec sleep 600", 1);
    let group = &mut Arc::make_mut(&mut alloc.job).groups[0];
    group.services.clear();
    group.restart.attempts = 0;
    group.tasks[0].artifacts = vec![artifact("http://127.0.0.1:1/none.tar.gz".to_owned())];
    half.push(1, std::slice::from_ref(&alloc));
    let update = half.wait_one(&alloc, "a failure", |update| update.client == ClientStatus::Failed);
    let events = &update.task_states["server"].events;
    let named =
        events.iter().any(|event| event.message.contains("none.tar.gz") && event.message.contains("cannot be reached"));
    assert!(named, "{events:#?}");
    let local = bench.data.alloc(alloc.id).join("server/local");
    assert_eq!(std::fs::read_dir(local).unwrap().count(), 0);
}
