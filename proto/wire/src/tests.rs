//! What is written is read back, and nothing that is read can make a reader panic.

mod strategies;

use crate::nomad::{self, JobProblem};
use crate::session::{AgentMessage, ServerMessage};
use crate::{command, outcome, pb, snapshot};
use model::{Command, Envelope, FEATURE_LEVEL, Timestamp};
use proptest::prelude::*;
use prost::Message;
use serde_json::{Value, json};
use strategies as any;

proptest! {
    #![proptest_config(ProptestConfig::with_cases(96))]

    #[test]
    fn commands_are_read_as_written(envelope in any::envelope()) {
        let bytes = command::encode(&envelope);
        prop_assert_eq!(command::decode(&bytes).expect("decodes"), envelope);
    }

    #[test]
    fn snapshots_are_read_as_written(image in any::image()) {
        let bytes = snapshot::encode(&image);
        prop_assert_eq!(snapshot::decode(&bytes).expect("decodes"), image);
    }

    #[test]
    fn outcomes_are_read_as_written(outcome in any::outcome()) {
        let bytes = outcome::encode(&outcome);
        prop_assert_eq!(outcome::decode(&bytes).expect("decodes"), outcome);
    }

    #[test]
    fn agent_messages_are_read_as_written(message in any::agent_message()) {
        let bytes = pb::AgentMessage::from(&message).encode_to_vec();
        let read = pb::AgentMessage::decode(bytes.as_slice()).expect("protobuf");
        prop_assert_eq!(AgentMessage::try_from(read).expect("converts"), message);
    }

    #[test]
    fn server_messages_are_read_as_written(message in any::server_message()) {
        let bytes = pb::ServerMessage::from(&message).encode_to_vec();
        let read = pb::ServerMessage::decode(bytes.as_slice()).expect("protobuf");
        prop_assert_eq!(ServerMessage::try_from(read).expect("converts"), message);
    }

    #[test]
    fn damaged_bytes_are_refused_or_read_and_never_panic(
        envelope in any::envelope(),
        image in any::image(),
        flips in prop::collection::vec((any::<prop::sample::Index>(), any::<u8>()), 1..8),
        cut in any::<prop::sample::Index>(),
    ) {
        for mut bytes in [command::encode(&envelope), snapshot::encode(&image)] {
            for (at, with) in &flips {
                let at = at.index(bytes.len());
                bytes[at] ^= with;
            }
            bytes.truncate(cut.index(bytes.len()) + 1);
            let _ = command::decode(&bytes);
            let _ = snapshot::decode(&bytes);
            let _ = outcome::decode(&bytes);
            let _ = pb::ServerMessage::decode(bytes.as_slice()).map(ServerMessage::try_from);
            let _ = pb::AgentMessage::decode(bytes.as_slice()).map(AgentMessage::try_from);
        }
    }

    #[test]
    fn garbage_is_refused_or_read_and_never_panics(bytes in prop::collection::vec(any::<u8>(), 0..256)) {
        let _ = command::decode(&bytes);
        let _ = snapshot::decode(&bytes);
        let _ = outcome::decode(&bytes);
        let _ = pb::ServerMessage::decode(bytes.as_slice()).map(ServerMessage::try_from);
    }

    #[test]
    fn a_job_survives_nomads_json(job in any::valid_job()) {
        let text = serde_json::to_string(&nomad::Job::from(&job)).expect("serialises");
        let read: nomad::Job = serde_json::from_str(&text).expect("parses");
        prop_assert_eq!(model::Job::try_from(read).expect("converts"), model::Job { version: 0, stable: false, submitted_at: Timestamp::NEVER, ..job });
    }
}

#[test]
fn a_command_of_a_newer_level_is_unknown() {
    let newer = Envelope {
        proposed_at: Timestamp(1),
        feature_level: FEATURE_LEVEL + 1,
        command: Command::SetFeatureLevel { level: 9 },
    };
    let refused = command::decode(&command::encode(&newer)).expect_err("refused");
    assert!(
        matches!(refused, command::DecodeError::UnknownCommand { feature_level } if feature_level == FEATURE_LEVEL + 1)
    );

    let bytes = pb::Envelope { proposed_at: 1, feature_level: 1, command: None }.encode_to_vec();
    let refused = command::decode(&bytes).expect_err("refused");
    assert!(matches!(refused, command::DecodeError::UnknownCommand { feature_level: 1 }));
}

#[test]
fn refusals_name_the_field() {
    let convert = |command| {
        let bytes = pb::Envelope { proposed_at: 1, feature_level: 1, command: Some(command) }.encode_to_vec();
        command::decode(&bytes).expect_err("refused").to_string()
    };
    use pb::envelope::Command as C;
    let role = C::UseToken(pb::UseToken { digest: vec![0; 32], role: 9, name: String::new() });
    assert!(convert(role).contains("command.role: has the unknown value 9"));
    let unset = C::UseToken(pb::UseToken { digest: vec![0; 32], role: 0, name: String::new() });
    assert!(convert(unset).contains("command.role: has the unknown value 0"));
    let digest = C::UseToken(pb::UseToken { digest: vec![0; 31], role: 1, name: String::new() });
    assert!(convert(digest).contains("command.digest: cannot be 31 bytes long"));
    let eval = C::RegisterJob(pb::RegisterJob { job: None, eval: None, enforce_index: None });
    assert!(convert(eval).contains("command.job: is required and absent"));
    let port = pb::PortRequest { static_port: Some(70_000), ..Default::default() };
    let network = pb::Network { mode: 1, ports: vec![port], ..Default::default() };
    let restart =
        pb::RestartPolicy { mode: 1, interval: Some(Default::default()), delay: Some(Default::default()), attempts: 0 };
    let group = pb::TaskGroup { restart: Some(restart), network: Some(network), ..Default::default() };
    let job = pb::Job { kind: 1, groups: vec![group], ..Default::default() };
    let deep = C::RegisterJob(pb::RegisterJob { job: Some(job), eval: None, enforce_index: None });
    assert!(convert(deep).contains("command.job.groups[0].network.ports[0].static_port: 70000 is out of range"));
    let alloc =
        pb::Allocation { id: vec![0; 16], eval_id: vec![0; 16], node_id: vec![0; 16], job: 4, ..Default::default() };
    let placements = pb::AllocationSet { jobs: Vec::new(), allocations: vec![alloc] };
    let plan = pb::Plan { eval_id: vec![0; 16], placements: Some(placements), ..Default::default() };
    let dangling = C::ApplyPlan(pb::ApplyPlan { plan: Some(plan), follow_up: None });
    assert!(convert(dangling).contains("placements.allocations[0].job: points at position 4"));
}

#[test]
fn a_snapshot_of_another_format_is_refused() {
    let bytes = pb::Snapshot { format: 2, ..Default::default() }.encode_to_vec();
    assert!(matches!(snapshot::decode(&bytes), Err(snapshot::DecodeError::UnknownFormat(2))));
    assert!(matches!(snapshot::decode(&[]), Err(snapshot::DecodeError::UnknownFormat(0))));
}

#[test]
fn allocations_of_one_job_share_it_after_the_journey() {
    let job = std::sync::Arc::new(any::fixed_job());
    let allocs = (0..3).map(|slot| any::fixed_alloc(slot, job.clone())).collect::<Vec<_>>();
    let set = crate::convert::to_alloc_set(&allocs);
    assert_eq!(set.jobs.len(), 1);
    let read = crate::convert::from_alloc_set(set).expect("converts");
    assert_eq!(read, allocs);
    assert!(std::sync::Arc::ptr_eq(&read[0].job, &read[2].job));
}

/// Later versions must read what this one wrote. `MESHCTL_WRITE_FIXTURES=1` writes fixtures that are missing.
#[test]
fn fixtures_of_format_1_are_read() {
    let golden = |name: &str, bytes: Vec<u8>| {
        let path = format!("{}/tests/fixtures/{name}", env!("CARGO_MANIFEST_DIR"));
        if std::env::var_os("MESHCTL_WRITE_FIXTURES").is_some() && !std::path::Path::new(&path).exists() {
            std::fs::write(&path, &bytes).expect("the fixture is written");
        }
        let held = std::fs::read(&path).expect("the fixture is there");
        assert_eq!(held, bytes, "{name}: the encoding of format 1 changed");
        held
    };
    for (name, envelope) in any::fixed_commands() {
        let held = golden(&format!("command-1-{name}.bin"), command::encode(&envelope));
        assert_eq!(command::decode(&held).expect("decodes"), envelope, "{name}");
    }
    let image = any::fixed_image();
    let held = golden("snapshot-1.bin", snapshot::encode(&image));
    assert_eq!(snapshot::decode(&held).expect("decodes"), image);
}

fn minimal() -> Value {
    json!({
        "ID": "a",
        "TaskGroups": [{
            "Name": "g",
            "Tasks": [{ "Name": "t", "Driver": "exec", "Config": { "command": "/bin/true" } }],
        }],
    })
}

fn read(job: Value) -> Result<model::Job, Vec<String>> {
    let job: nomad::Job = serde_json::from_value(job).expect("parses");
    model::Job::try_from(job).map_err(|refusal| refusal.problems.iter().map(JobProblem::to_string).collect())
}

#[test]
fn a_minimal_json_job_gets_the_defaults() {
    let job = read(minimal()).expect("taken");
    assert_eq!((job.name.as_str(), job.priority, job.datacenters.len()), ("a", 50, 1));
    assert_eq!((job.groups[0].count, job.groups[0].restart), (1, model::RestartPolicy::SERVICE));
}

/// What `nomad job run` sends of a job without any of these blocks.
#[test]
fn what_clients_fill_in_is_taken_as_absent() {
    let mut job = minimal();
    job["Update"] = json!({
        "Stagger": 30_000_000_000u64, "MaxParallel": 1, "HealthCheck": "checks", "MinHealthyTime": 10_000_000_000u64,
        "HealthyDeadline": 300_000_000_000u64, "ProgressDeadline": 600_000_000_000u64, "AutoRevert": false, "Canary": 0,
    });
    job["Affinities"] = json!(null);
    job["AllAtOnce"] = json!(false);
    let group = &mut job["TaskGroups"][0];
    group["ReschedulePolicy"] = json!({
        "Attempts": 0, "Interval": 0, "Delay": 30_000_000_000u64, "DelayFunction": "exponential",
        "MaxDelay": 3_600_000_000_000u64, "Unlimited": true,
    });
    group["Consul"] = json!({ "Namespace": "", "Cluster": "default" });
    group["RestartPolicy"] =
        json!({ "Attempts": 1, "Interval": 60_000_000_000u64, "Delay": 1_000_000_000, "Mode": "fail" });
    let restart = group["RestartPolicy"].clone();
    group["Tasks"][0]["RestartPolicy"] = restart;
    group["Tasks"][0]["Leader"] = json!(false);
    group["Tasks"][0]["Templates"] = json!([]);
    job["SomethingOfALaterVersion"] = json!({ "A": 1 });
    assert_eq!(read(job).expect("taken").groups[0].restart.attempts, 1);
}

#[test]
fn a_job_that_says_everything_is_read_as_written() {
    let job = any::full_job();
    let eval = any::fixed_eval();
    let command = Command::RegisterJob { job: Box::new(job.clone()), eval, enforce_index: None };
    let envelope = Envelope { proposed_at: Timestamp(1), feature_level: FEATURE_LEVEL, command };
    assert_eq!(command::decode(&command::encode(&envelope)).expect("decodes"), envelope);
    let json = serde_json::to_value(nomad::Job::from(&job)).expect("serialises");
    match model::Job::try_from(serde_json::from_value::<nomad::Job>(json).expect("a job")) {
        Ok(read) => assert_eq!(model::Job { version: 3, submitted_at: job.submitted_at, ..read }, job),
        // Until all of it is built.
        Err(refusal) => {
            let built = |problem: &&JobProblem| !matches!(problem, JobProblem::NotBuilt { .. });
            assert_eq!(refusal.problems.iter().find(built), None);
        }
    }
}

#[test]
fn what_is_not_built_is_refused_by_its_path() {
    let mut job = minimal();
    job["Multiregion"] = json!({ "Regions": [{ "Name": "eu" }] });
    job["TaskGroups"][0]["Scaling"] = json!({ "Max": 3 });
    job["TaskGroups"][0]["Tasks"][0]["Vault"] = json!({ "Role": "a" });
    job["TaskGroups"][0]["Networks"] = json!([{ "Mode": "cni/mine" }]);
    job["TaskGroups"][0]["Tasks"][0]["Driver"] = json!("qemu");
    let expected = [
        "Job.Multiregion is not built yet; leave it out",
        "Job.TaskGroups[0].Networks[0].Mode \"cni/mine\" is not built yet; leave it out",
        "Job.TaskGroups[0].Scaling is not built yet; leave it out",
        "Job.TaskGroups[0].Tasks[0].Driver \"qemu\" is not built yet; leave it out",
        "Job.TaskGroups[0].Tasks[0].Vault is not built yet; leave it out",
    ];
    let mut problems = read(job).expect_err("refused");
    problems.sort_by_key(|problem| expected.iter().position(|known| known == problem));
    assert_eq!(problems, expected);
}

#[test]
fn a_drivers_config_is_read_by_its_schema() {
    let mut job = minimal();
    let task = &mut job["TaskGroups"][0]["Tasks"][0];
    task["Driver"] = json!("docker");
    task["Config"] = json!({
        "args": "one", "privileged": "yes", "imagee": "x", "logging": "host", "auth": [{ "user": "a" }],
        "mount": [{ "source": "/a" }],
    });
    let at = |problem: &str| format!("Job.TaskGroups[0].Tasks[0].Config.{problem}");
    let problems = read(job).expect_err("refused");
    for expected in [
        "image is required",
        "args: must be a list of strings",
        "privileged: must be true or false",
        "imagee: is not a key of this driver",
        "logging is not built yet; leave it out",
        "auth.user: is not a key of this driver",
        "mount.target is required",
    ] {
        assert!(problems.contains(&at(expected)), "{expected} in {problems:?}");
    }
}

#[test]
fn zeros_that_switch_something_off_are_not_taken_for_silence() {
    let mut job = minimal();
    let given = model::RescheduleGiven { attempts: Some(0), unlimited: Some(false), ..Default::default() };
    let off = given.over(model::ReschedulePolicy::SERVICE);
    assert_eq!((off.attempts, off.unlimited), (0, false));
    job["TaskGroups"][0]["ReschedulePolicy"] = json!({ "Attempts": 0, "Unlimited": false });
    match read(job) {
        Ok(job) => assert_eq!(job.groups[0].reschedule, off),
        Err(problems) => {
            assert_eq!(problems, ["Job.TaskGroups[0].ReschedulePolicy is not built yet; leave it out"]);
        }
    }
    let mut job = minimal();
    job["Update"] = json!({ "MaxParallel": 0 });
    let update = read(job.clone()).expect("taken").groups[0].update;
    assert_eq!(update.map(|update| update.max_parallel), Some(0));
    job["Update"] = json!({
        "Stagger": 0, "MaxParallel": 0, "HealthCheck": "", "MinHealthyTime": 0, "HealthyDeadline": 0,
        "ProgressDeadline": 0, "AutoRevert": false, "AutoPromote": false, "Canary": 0,
    });
    assert_eq!(read(job).expect("taken").groups[0].update, None);
}

#[test]
fn other_namespaces_and_regions_are_refused_by_name() {
    let mut job = minimal();
    (job["Namespace"], job["Region"]) = (json!("default"), json!("global"));
    assert!(read(job.clone()).is_ok());
    (job["Namespace"], job["Region"]) = (json!("web"), json!("eu"));
    let expected =
        ["Job.Namespace \"web\" is not built yet; leave it out", "Job.Region \"eu\" is not built yet; leave it out"];
    assert_eq!(read(job).expect_err("refused"), expected);
}

#[test]
fn wrong_json_values_are_refused_by_their_path() {
    let mut job = minimal();
    job["ID"] = json!("a b");
    job["TaskGroups"][0]["Count"] = json!(-1);
    job["TaskGroups"][0]["Services"] = json!([{ "PortLabel": "http", "Checks": [{ "Type": "tcp", "Interval": 5 }] }]);
    let expected = [
        "Job.ID: must not contain spaces or control characters",
        "Job.TaskGroups[0].Count: -1 is not within 0 to 50000",
        "Job.TaskGroups[0].Services[0].Name: must be 1 to 63 letters, digits and inner dashes: it is a DNS name",
        "Job.TaskGroups[0].Services[0].PortLabel: \"http\" is not a port of the group's network",
        "Job.TaskGroups[0].Services[0].Checks[0].Interval: must be at least one second (1000000000)",
        "Job.TaskGroups[0].Services[0].Checks[0].Timeout: must be at least one second (1000000000)",
    ];
    assert_eq!(read(job).expect_err("refused"), expected);
}

#[test]
fn answers_carry_the_names_that_clients_read() {
    let alloc = any::fixed_alloc(1, std::sync::Arc::new(any::fixed_job()));
    let stub = serde_json::to_value(nomad::AllocationListStub::from(&alloc)).expect("serialises");
    assert_eq!(
        (&stub["Name"], &stub["JobVersion"], &stub["ClientStatus"]),
        (&json!("web.web[1]"), &json!(3), &json!("running"))
    );
    assert_eq!(stub["TaskStates"]["httpd"]["StartedAt"], json!("2001-09-09T01:46:40.5Z"));
    assert_eq!(stub["TaskStates"]["httpd"]["Events"][0]["Type"], json!("Started"));
    assert_eq!(stub["DeploymentStatus"], Value::Null);
    let full = serde_json::to_value(nomad::Allocation::from(&alloc)).expect("serialises");
    assert_eq!(
        full["AllocatedResources"]["Shared"]["Ports"][0],
        json!({ "Label": "http", "Value": 20001, "To": 80, "HostIP": "" })
    );
    assert_eq!(full["Job"]["TaskGroups"][0]["Tasks"][0]["Driver"], json!("exec"));

    let instance = any::fixed_instance();
    let registration = serde_json::to_value(nomad::ServiceRegistration::from(&instance)).expect("serialises");
    for name in
        ["ID", "ServiceName", "Namespace", "NodeID", "Datacenter", "JobID", "AllocID", "Tags", "Address", "Port"]
    {
        assert!(registration.get(name).is_some(), "{name} is absent");
    }
    let node = serde_json::to_value(nomad::NodeListStub::from(&any::fixed_node())).expect("serialises");
    assert_eq!((&node["Status"], &node["SchedulingEligibility"]), (&json!("disconnected"), &json!("eligible")));
}

#[test]
fn dates_are_those_of_the_calendar() {
    let date = |secs| nomad::rfc3339(Timestamp::from_secs(secs));
    assert_eq!(date(0), None);
    assert_eq!(date(1).as_deref(), Some("1970-01-01T00:00:01Z"));
    assert_eq!(date(951_782_400).as_deref(), Some("2000-02-29T00:00:00Z"));
    assert_eq!(date(1_735_689_599).as_deref(), Some("2024-12-31T23:59:59Z"));
    assert_eq!(date(4_107_542_400).as_deref(), Some("2100-03-01T00:00:00Z"));
}

#[test]
fn an_update_of_the_job_holds_for_groups_that_say_nothing_else() {
    let mut job = minimal();
    job["Update"] = json!({ "MaxParallel": 2, "MinHealthyTime": 1_000_000_000, "Canary": 0 });
    job["TaskGroups"][0]["Update"] = json!({ "Canary": 1, "Order": "start-first" });
    let policy = read(job).expect("taken").groups[0].update.expect("a policy");
    assert_eq!((policy.max_parallel, policy.canary, policy.min_healthy_time.as_secs()), (2, 1, 1));
    assert_eq!((policy.order, policy.health_check), (model::UpdateOrder::StartFirst, model::HealthCheck::Checks));
    let mut job = minimal();
    job["Update"] = json!({ "MinHealthyTime": 600_000_000_000u64 });
    let refused = read(job).expect_err("refused");
    assert_eq!(refused, ["Job.TaskGroups[0].Update: min_healthy_time must be less than healthy_deadline"]);
    let mut job = minimal();
    job["Update"] = json!({ "MaxParallel": 0, "Stagger": 0, "HealthCheck": "" });
    assert_eq!(read(job).expect("taken").groups[0].update, None);
}
