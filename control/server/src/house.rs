//! The leader's care for members: which nodes are alive, and which servers belong to Raft.
//!
//! Links and probe reports come in by sessions; what they mean is decided by [`liveness::Judge`], which starts anew with every
//! leader: what an earlier one believed is in the catalog, and nothing else of it counts.

use crate::autopilot::Caretaker;
use crate::member::{Member, ProposeError};
use crate::sessions::{Link, new_eval};
use catalog::Catalog;
use consensus::{ChangeError, MembershipChange};
use futures::future::join_all;
use liveness::{Judge, Rules, Seen, Storm, Verdict};
use model::{Command, EvalTrigger, Evaluation, JobId, NodeId, NodeStatus, ServerId};
use std::collections::{BTreeMap, BTreeSet};
use std::sync::{Arc, PoisonError};
use std::time::Duration;
use tokio::time::Instant;

/// How often nodes are judged when nothing new comes in: only time has passed.
const NODES_TICK: Duration = Duration::from_millis(250);
/// Between two looks at the nodes, however much news there is.
const NODES_PAUSE: Duration = Duration::from_millis(20);
const SERVERS_TICK: Duration = Duration::from_millis(500);
/// Verdicts under way at once, when many nodes are lost together.
const VERDICTS_AT_ONCE: usize = 64;
/// A node's session is silent when one heartbeat and three quarters of another are overdue.
const SILENT_AFTER_HEARTBEATS: f64 = 1.75;

/// For as long as this server leads.
pub(crate) async fn keep(member: Arc<Member>) {
    while member.read_barrier().await.is_err() {}
    tokio::join!(keep_nodes(&member), keep_servers(&member));
}

async fn keep_nodes(member: &Member) {
    let began = Instant::now();
    let mut judge = Judge::new(rules(member), Duration::ZERO);
    let mut told: Option<Storm> = None;
    loop {
        let catalog = member.snapshot();
        judge.learn_disconnected(catalog.feature_level() >= 2);
        let verdicts = judge.judge(began.elapsed(), &seen(member, &catalog));
        tell_storm(&mut told, judge.storm(began.elapsed()));
        for some in verdicts.chunks(VERDICTS_AT_ONCE) {
            join_all(some.iter().map(|verdict| pronounce(member, &catalog, verdict))).await;
        }
        tokio::time::sleep(NODES_PAUSE).await;
        let _ = tokio::time::timeout(NODES_TICK, member.sessions.news()).await;
    }
}

fn rules(member: &Member) -> Rules {
    let timing = &member.timing;
    Rules {
        down_after: timing.node_down_after,
        storm_share: timing.storm_share,
        storm_hold: timing.storm_hold,
        ..Rules::default()
    }
}

fn seen(member: &Member, catalog: &Catalog) -> Vec<Seen> {
    let silent_after = member.timing.heartbeat_interval.mul_f64(SILENT_AFTER_HEARTBEATS);
    let links: BTreeMap<NodeId, Link> = member.sessions.links(silent_after);
    let see = |node: &Arc<model::Node>| {
        let link = links.get(&node.id).filter(|link| link.epoch == node.epoch);
        Seen {
            id: node.id,
            epoch: node.epoch,
            status: node.status,
            reason: catalog.node_reason(node.id).to_owned(),
            link: link.map(|link| link.state),
            report: link.and_then(|link| link.report.clone()),
        }
    };
    catalog.nodes().map(see).collect()
}

/// An operator hears of a storm when it begins and when it ends.
fn tell_storm(told: &mut Option<Storm>, now: Option<Storm>) {
    match (told.is_some(), now) {
        (false, Some(Storm { lost, nodes, .. })) => tracing::error!(
            lost,
            nodes,
            "many nodes were lost at once: their work is not replaced for now; `meshctl operator nodes` shows them"
        ),
        (true, None) => tracing::warn!("replacement of lost work is not held any more"),
        _ => {}
    }
    *told = now;
}

async fn pronounce(member: &Member, catalog: &Catalog, verdict: &Verdict) {
    let was = catalog.node(verdict.id).map(|node| node.status);
    let evals = match verdict.status {
        // Some jobs say what is to be done while a node is only disconnected, and when it is back.
        NodeStatus::Down | NodeStatus::Disconnected if was != Some(verdict.status) => {
            evals_of_node(catalog, verdict.id)
        }
        NodeStatus::Ready | NodeStatus::Suspect if was == Some(NodeStatus::Disconnected) => {
            evals_of_node(catalog, verdict.id)
        }
        _ => Vec::new(),
    };
    let Verdict { id: node_id, epoch, status, reason } = verdict.clone();
    let name = catalog.node(node_id).map(|node| node.name.as_str()).unwrap_or_default();
    tracing::warn!(node = name, id = %node_id, status = status.as_str(), reason, "a node's status changes");
    let judge = Command::JudgeNode { node_id, epoch, status, reason, evals: evals.clone() };
    let told = match member.propose(judge).await {
        // Servers of the first level know neither the command nor this status.
        Err(ProposeError::FeatureLevel { .. }) if status != NodeStatus::Disconnected => {
            member.propose(Command::SetNodeStatus { node_id, epoch, status, evals }).await
        }
        told => told,
    };
    if let Err(error) = told {
        tracing::warn!(node = name, %error, "could not change the node's status");
    }
}

async fn keep_servers(member: &Member) {
    let mut ticks = tokio::time::interval(SERVERS_TICK);
    ticks.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
    let (began, mut caretaker) = (Instant::now(), Caretaker::default());
    loop {
        ticks.tick().await;
        let catalog = member.snapshot();
        raise_feature_level(member, &catalog).await;
        let Ok(peers) = member.raft.peers().await else { continue };
        let (health, care) = caretaker.look(began.elapsed(), member.id.0, &peers, catalog.autopilot());
        *member.autopilot.lock().unwrap_or_else(PoisonError::into_inner) = health;
        if let Some(dead) = care.remove.map(ServerId).filter(|id| catalog.server(*id).is_some()) {
            tracing::warn!(server = dead.0, "a server has been dead for long: autopilot removes it");
            if let Err(error) = member.remove_server_here(dead).await {
                tracing::warn!(server = dead.0, %error, "the dead server stays");
            }
        }
        admit_servers(member, &catalog, &care.promote).await;
    }
}

/// New commands are for clusters of which every server understands them. One that does not answer may be of an older release.
async fn raise_feature_level(member: &Member, catalog: &Catalog) {
    let level = catalog.feature_level();
    if level >= model::FEATURE_LEVEL || catalog.founding().is_none() {
        return;
    }
    let others = catalog.servers().filter(|server| server.id != member.id);
    let levels = join_all(others.map(|server| member.level_of(server.id))).await;
    let Some(common) = levels.into_iter().chain([Some(model::FEATURE_LEVEL)]).min().flatten() else { return };
    if common > level {
        match member.propose(Command::SetFeatureLevel { level: common }).await {
            Ok(_) => tracing::info!(level = common, "every server speaks the new feature level"),
            Err(error) => tracing::warn!(%error, "the feature level stays"),
        }
    }
}

/// One for each job that has something live on the node.
pub(crate) fn evals_of_node(catalog: &Catalog, id: NodeId) -> Vec<Evaluation> {
    let live = catalog.allocs_of_node(id).filter(|alloc| alloc.is_live());
    let jobs: BTreeSet<&JobId> = live.map(|alloc| alloc.job_id()).collect();
    let known = jobs.into_iter().filter_map(|job_id| catalog.job(job_id));
    known.map(|job| new_eval(job.id.clone(), job.priority, EvalTrigger::NodeUpdate)).collect()
}

/// One step per tick: a server that the catalog knows and Raft does not becomes a learner, one that has caught up a voter,
/// and one that the catalog knows no more is removed.
async fn admit_servers(member: &Member, catalog: &Catalog, ripe: &[u64]) {
    let status = member.raft.status();
    let known = |id: &u64| status.voters.contains(id) || status.learners.contains(id);
    let newcomer = catalog.servers().map(|server| server.id.0).find(|id| !known(id));
    if let Some(id) = newcomer {
        return change_membership(member, MembershipChange::AddLearner(id)).await;
    }
    for id in status.learners.iter().filter(|id| catalog.server(ServerId(**id)).is_some() && ripe.contains(id)) {
        change_membership(member, MembershipChange::Promote(*id)).await;
    }
    dismiss_servers(member, catalog, &status).await;
}

/// Members of Raft that the catalog does not list any more. Whoever founds a cluster is a member before it is listed.
async fn dismiss_servers(member: &Member, catalog: &Catalog, status: &consensus::Status) {
    let is_listed = |id: u64| catalog.server(ServerId(id)).is_some();
    let mut members = status.voters.iter().chain(&status.learners).copied();
    match members.find(|id| !is_listed(*id) && catalog.servers().next().is_some()) {
        Some(id) if id == member.id.0 => member.resign().await,
        Some(id) => change_membership(member, MembershipChange::Remove(id)).await,
        None => {}
    }
}

async fn change_membership(member: &Member, change: MembershipChange) {
    // A change waits for a quorum; the next tick must not wait with it for ever.
    match tokio::time::timeout(Duration::from_secs(5), member.raft.change(change)).await {
        Ok(Ok(_)) => tracing::info!(?change, "membership changed"),
        Ok(Err(ChangeError::NotCaughtUp { id, behind })) => tracing::debug!(id, behind, "learner has not caught up"),
        Ok(Err(error)) => tracing::warn!(?change, %error, "membership not changed"),
        Err(_) => tracing::warn!(?change, "membership change takes long"),
    }
}
