//! Keys, variables, settings and what level 2 adds to nodes.

use super::fixtures::*;
use crate::Catalog;
use model::{Autopilot, Command, Envelope, Epoch, Index, KvChange, NodeStatus, Refusal, Timestamp, VariableChange};

#[test]
fn keys_are_set_compared_listed_and_deleted() {
    let mut log = Log::ready();
    log.must(Command::SetFeatureLevel { level: 2 });
    let set = |key: &str, value: &str, cas: Option<u64>| {
        let (key, value) = (key.to_owned(), value.as_bytes().to_vec());
        Command::ChangeKv(KvChange::Set { key, value, flags: 7, cas: cas.map(Index) })
    };
    log.must(set("app/a", "1", None));
    log.must(set("app/b", "2", Some(0)));
    log.must(set("other", "3", None));
    let first = log.state.kv("app/a").unwrap().modified_at_index;
    assert!(
        matches!(log.refused(set("app/a", "x", Some(0))), Refusal::CasMismatch { current, .. } if current == first)
    );
    log.must(set("app/a", "4", Some(first.0)));
    let entry = log.state.kv("app/a").unwrap();
    assert_eq!((entry.value.as_slice(), entry.created_at_index, entry.flags), (b"4".as_slice(), first, 7));
    let keys = |log: &Log, prefix: &str| log.state.kv_prefix(prefix).map(|e| e.key.clone()).collect::<Vec<_>>();
    assert_eq!(keys(&log, "app/"), ["app/a", "app/b"]);
    let before = log.state.kv_prefix_index("app/");
    log.must(Command::ChangeKv(KvChange::DeletePrefix { prefix: "app/".to_owned() }));
    assert!(keys(&log, "app/").is_empty() && keys(&log, "") == ["other"]);
    assert!(log.state.kv_prefix_index("app/") > before, "whoever waits for the prefix hears of its end");
    for bad in ["", "a\nb"] {
        assert!(matches!(log.refused(set(bad, "", None)), Refusal::StoreInvalid { .. }), "{bad:?}");
    }
    assert_eq!(Catalog::from_image(log.state.image()).image(), log.state.image());
}

#[test]
fn variables_keep_their_birth_and_are_compared_before_they_change() {
    let mut log = Log::ready();
    log.must(Command::SetFeatureLevel { level: 2 });
    let (namespace, path) = ("default".to_owned(), "app/db".to_owned());
    let change = |sealed: Option<&[u8]>, cas: Option<Index>| {
        let (namespace, path) = (namespace.clone(), path.clone());
        Command::ChangeVariable(match sealed {
            Some(sealed) => VariableChange::Set { namespace, path, sealed: sealed.to_vec(), cas },
            None => VariableChange::Delete { namespace, path, cas },
        })
    };
    log.must(change(Some(b"one"), Some(Index(0))));
    let born = log.state.variable("default", "app/db").unwrap().modified_at_index;
    log.must(change(Some(b"two"), Some(born)));
    let variable = log.state.variable("default", "app/db").unwrap().clone();
    assert_eq!((variable.created_at_index, variable.sealed.as_slice()), (born, b"two".as_slice()));
    assert!(matches!(log.refused(change(None, Some(born))), Refusal::CasMismatch { .. }));
    assert_eq!(Catalog::from_image(log.state.image()).variable("default", "app/db"), Some(&variable));
    log.must(change(None, None));
    assert_eq!(log.state.variables().count(), 0);
}

#[test]
fn commands_of_level_2_wait_for_the_cluster_to_reach_it() {
    let mut log = Log::ready();
    let autopilot = Command::SetAutopilot { autopilot: Autopilot::default(), cas: None };
    let envelope = Envelope { proposed_at: Timestamp(1), feature_level: autopilot.feature_level(), command: autopilot };
    let index = Index(log.state.index().0 + 1);
    let refused = log.state.apply(index, &envelope).unwrap_err();
    assert_eq!(refused, Refusal::FeatureLevelTooLow { cluster: 1, needed: 2 });
}

#[test]
fn a_disconnected_node_keeps_its_allocations_and_has_no_instances() {
    let mut log = Log::running();
    assert!(log.state.instances().count() > 0);
    let judge = |status, reason: &str| Command::JudgeNode {
        node_id: node_id(1),
        epoch: Epoch(1),
        status,
        reason: reason.to_owned(),
        evals: Vec::new(),
    };
    log.must(Command::SetFeatureLevel { level: 2 });
    log.must(judge(NodeStatus::Disconnected, "2 of 2 peers get no answer"));
    assert_eq!(log.state.instances().count(), 0);
    assert_eq!(log.state.node_reason(node_id(1)), "2 of 2 peers get no answer");
    assert!(log.state.allocs().all(|alloc| alloc.is_live()));
    log.must(judge(NodeStatus::Ready, ""));
    assert!(log.state.instances().count() > 0 && log.state.node_reason(node_id(1)).is_empty());
}
