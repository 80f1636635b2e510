use super::*;
use crate::allocs::fixtures;
use model::{
    AllocId, Artifact, ArtifactMode, Generation, Health, Index, Instance, InstanceNetwork, JobId, RoutedService,
    RoutingSnapshot,
};
use std::cell::RefCell;
use std::os::unix::fs::{PermissionsExt, symlink};
use tokio::sync::watch as channel;

struct Bench {
    dir: tempfile::TempDir,
    routing: channel::Sender<Option<RoutingSnapshot>>,
    sources: Sources,
    told: RefCell<Vec<Told>>,
}

impl Drop for Bench {
    fn drop(&mut self) {
        release_ended(self.dir.path(), &BTreeSet::new());
    }
}

fn written(destination: &str, text: &str) -> model::Template {
    model::Template {
        source: TemplateSource::Inline(text.to_owned()),
        destination: destination.to_owned(),
        on_change: ChangeMode::Restart,
        splay: Duration::ZERO,
        perms: 0o640,
        uid: None,
        gid: None,
        left_delimiter: "{{".to_owned(),
        right_delimiter: "}}".to_owned(),
        env: false,
        once: false,
        error_on_missing_key: false,
        wait: None,
    }
}

fn picture(generation: u64, ports: &[u16]) -> RoutingSnapshot {
    let instance = |port: &u16| Instance {
        service: "db".to_owned(),
        job_id: JobId("db".to_owned()),
        alloc_id: AllocId::from_random(u128::from(*port)),
        node_id: model::NodeId::from_random(1),
        node_name: "n1".to_owned(),
        datacenter: "dc1".to_owned(),
        address: [10, 64, 0, 1].into(),
        port: *port,
        vip_port: None,
        tags: Vec::new(),
        weight: 1,
        network: InstanceNetwork::Host,
        health: Health::Passing,
        draining: false,
        modified_at_index: Index(1),
        steering: Default::default(),
    };
    let service = RoutedService {
        name: "db".to_owned(),
        vip: [10, 43, 0, 1].into(),
        instances: ports.iter().map(instance).collect(),
    };
    RoutingSnapshot { generation: Generation(generation), nodes: Vec::new(), services: vec![service] }
}

impl Bench {
    fn new() -> Self {
        let dir = tempfile::tempdir().unwrap();
        let (routing, routes) = channel::channel(None);
        let policy = artifact::Policy { file_roots: vec![dir.path().join("store")], ..artifact::Policy::default() };
        std::fs::create_dir(dir.path().join("store")).unwrap();
        let sources = Sources { routing: routes, cluster: None, policy };
        Self { dir, routing, sources, told: RefCell::default() }
    }

    fn wanted(&self, change: impl FnOnce(&mut Task)) -> Wanted {
        let alloc = fixtures::allocation(7);
        let mut task = fixtures::task("server");
        change(&mut task);
        let (node, root) = (crate::fingerprint::tests::node(), self.dir.path().join("alloc-7"));
        Wanted { node, alloc, task, root, address: None }
    }

    async fn prepare(&self, wanted: &Wanted) -> Result<BTreeMap<String, String>, Unprepared> {
        let tell = |told: Told| async move { self.told.borrow_mut().push(told) };
        let prepared = tokio::time::timeout(Duration::from_secs(20), prepare(wanted, &self.sources, tell)).await;
        prepared.expect("it ends")
    }

    fn read(&self, path: &str) -> String {
        let path = self.dir.path().join("alloc-7/server").join(path);
        std::fs::read_to_string(&path).unwrap_or_else(|error| panic!("{}: {error}", path.display()))
    }
}

#[tokio::test]
async fn templates_wait_for_their_data_and_follow_it() {
    let bench = Bench::new();
    let text = "{{range service \"db\"}}{{.Address}}:{{.Port}} {{end}}{{env \"NOMAD_TASK_NAME\"}}";
    let wanted = bench.wanted(|task| task.templates = vec![written("local/conf/db", text)]);
    let pushed = async {
        tokio::task::yield_now().await;
        bench.routing.send_replace(Some(picture(1, &[5432])));
    };
    let (prepared, ()) = tokio::join!(bench.prepare(&wanted), pushed);
    assert_eq!(prepared, Ok(BTreeMap::new()));
    assert_eq!(bench.read("local/conf/db"), "10.64.0.1:5432 server");
    let mode = std::fs::metadata(bench.dir.path().join("alloc-7/server/local/conf/db")).unwrap().permissions().mode();
    assert_eq!(mode & 0o777, 0o640);

    let mut set = Set::of(&wanted, &bench.sources, wanted.layout()).unwrap();
    let tell = |_: Told| async {};
    assert!(set.rerender(&tell).await.is_empty(), "nothing has changed");
    bench.routing.send_replace(Some(picture(2, &[5432, 5433])));
    set.view.changed().await;
    let changes = set.rerender(&tell).await;
    assert_eq!(changes.iter().map(|change| change.wish.clone()).collect::<Vec<_>>(), [ChangeMode::Restart]);
    assert_eq!(bench.read("local/conf/db"), "10.64.0.1:5432 10.64.0.1:5433 server");
    // A new picture that shows the same is no change.
    bench.routing.send_replace(Some(picture(3, &[5432, 5433])));
    assert!(tokio::time::timeout(Duration::from_millis(100), set.view.changed()).await.is_err());
}

#[tokio::test]
async fn secrets_lie_in_memory_and_environment_templates_are_read() {
    let bench = Bench::new();
    let text = "# db\nexport USER=me\nPASS=\"a \\\"b\\\"\"\nRAW='x=y'\n\nID={{env \"NOMAD_ALLOC_INDEX\"}}\n";
    let template = model::Template { env: true, ..written("${NOMAD_SECRETS_DIR}/db.env", text) };
    let wanted = bench.wanted(|task| task.templates = vec![template]);
    let env = bench.prepare(&wanted).await.unwrap();
    let expect = [("ID", "0"), ("PASS", "a \"b\""), ("RAW", "x=y"), ("USER", "me")];
    assert_eq!(env, expect.map(|(key, value)| (key.to_owned(), value.to_owned())).into());
    assert!(bench.read("secrets/db.env").contains("RAW="));
    let on_disk = nix::sys::statfs::statfs(&bench.dir.path().join("alloc-7/server/secrets")).unwrap();
    assert_eq!(on_disk.filesystem_type(), nix::sys::statfs::TMPFS_MAGIC);
    // Once more, as for a restart, and then all of it can be removed.
    bench.prepare(&wanted).await.unwrap();
    release_ended(bench.dir.path(), &BTreeSet::new());
    std::fs::remove_dir_all(bench.dir.path().join("alloc-7")).unwrap();
}

#[tokio::test]
async fn artifacts_are_fetched_once_and_templates_may_come_with_them() {
    let bench = Bench::new();
    let store = bench.dir.path().join("store/web.tpl");
    std::fs::write(&store, "{{file \"local/x/name\"}}").unwrap();
    std::fs::write(bench.dir.path().join("store/name"), "told").unwrap();
    let artifact = |name: &str, destination: &str| Artifact {
        source: format!("file://{}/store/{name}", bench.dir.path().display()),
        destination: destination.to_owned(),
        mode: ArtifactMode::Any,
        options: BTreeMap::new(),
        headers: BTreeMap::new(),
        insecure: false,
        chown: false,
    };
    let template = model::Template {
        source: TemplateSource::File("local/web.tpl".to_owned()),
        ..written("${NOMAD_ALLOC_DIR}/data/out", "")
    };
    let wanted = bench.wanted(|task| {
        task.artifacts = vec![artifact("web.tpl", "local/"), artifact("name", "${NOMAD_TASK_DIR}/x")];
        task.templates = vec![template];
    });
    bench.prepare(&wanted).await.unwrap();
    assert_eq!(bench.read("../alloc/data/out"), "told");
    assert_eq!(bench.told.borrow().len(), 1, "{:?}", bench.told);
    std::fs::remove_file(&store).unwrap();
    bench.prepare(&wanted).await.unwrap();
    assert_eq!(bench.told.borrow().len(), 1, "a restart fetches nothing");

    let gone = bench.wanted(|task| task.artifacts = vec![artifact("none", "local/")]);
    let failure = bench.prepare(&gone).await.unwrap_err();
    assert!(
        !failure.fatal && failure.reason.contains("none") && failure.reason.contains("cannot be read"),
        "{failure:?}"
    );
    assert_eq!(bench.told.borrow().last().unwrap().0, "Failed Artifact Download");
}

#[tokio::test]
async fn wrong_templates_and_places_fail_the_task_by_name() {
    let bench = Bench::new();
    bench.routing.send_replace(Some(picture(1, &[])));
    let check = async |destination: &str, text: &str, reason: &str| {
        let wanted = bench.wanted(|task| task.templates = vec![written(destination, text)]);
        let failure = bench.prepare(&wanted).await.expect_err(reason);
        assert!(failure.reason.contains(reason) && failure.reason.contains(destination), "{failure:?}");
    };
    check("local/a", "{{nope}}", "function \"nope\" is not defined").await;
    check("local/a", "x\n{{index (service \"none\") 3}}", "line 2: index: index out of range").await;
    check("local/a", "{{key \"x\"}}", "no servers to ask").await;
    check("local/a", "{{file \"/etc/passwd\"}}", "outside of what the task sees").await;
    check("local/a", "{{file \"control/state\"}}", "outside of what the task sees").await;
    check("../x", "", "outside of what the task sees").await;
    check("/etc/x", "", "outside of what the task sees").await;
    check("control/x", "", "outside of what the task sees").await;
    check("local/../control/x", "", "leave `..` out").await;
    check("${NOMAD_ALLOC_DIR}/logs/x", "", "output is kept").await;
    check("secrets", "x", "is a directory").await;

    // What a task that ran before planted.
    let local = bench.dir.path().join("alloc-7/server/local");
    symlink("/etc", local.join("out")).unwrap();
    symlink("/etc/hostname", local.join("name")).unwrap();
    check("local/out/x", "x", "is a link, which is not followed").await;
    check("local/a", "{{file \"local/name\"}}", "is a link, which is not followed").await;
    let wanted = bench.wanted(|task| task.templates = vec![written("local/name", "mine")]);
    bench.prepare(&wanted).await.unwrap();
    assert_eq!(bench.read("local/name"), "mine");
    assert!(!local.join("name").is_symlink());
}

#[tokio::test]
async fn a_dispatch_brings_its_payload() {
    let bench = Bench::new();
    let mut wanted = bench.wanted(|task| task.payload_file = Some("in/put.json".to_owned()));
    std::sync::Arc::make_mut(&mut wanted.alloc.job).payload = b"{}".to_vec();
    bench.prepare(&wanted).await.unwrap();
    assert_eq!(bench.read("local/in/put.json"), "{}");
}

#[test]
fn environment_lines_are_refused_by_number() {
    let check = |text: &str, reason: &str| {
        let error = env_file::parse(text.as_bytes()).expect_err(reason);
        assert!(error.contains(reason), "{error}");
    };
    check("A=1\nB", "line 2: has no `=`");
    check("=1", "line 1: has no name");
    check("A=\"x", "not closed");
    check("A='x", "not closed");
    check("A=\"x\" y", "goes on");
    check("A=\0", "zero byte");
}
