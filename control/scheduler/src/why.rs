//! How every node suits a group, and what speaks against those that do not: what a user asks when nothing is placed, or
//! placed somewhere unexpected.

use crate::ClusterView;
use crate::fleet::{Fleet, Room};
use crate::place::{Against, Request};
use crate::score::{self, Score};
use model::{Allocation, DesiredStatus, Job, NodeId, TaskGroup};

/// A node and the next allocation of a group.
#[derive(Clone, Debug, PartialEq)]
pub struct NodeVerdict {
    pub node: NodeId,
    pub node_name: String,
    /// Every constraint and state that rules it out.
    pub filtered: Vec<String>,
    /// Every dimension without room, if nothing else rules it out.
    pub exhausted: Vec<String>,
    /// The parts of the score by Nomad's names; their mean is `score`.
    pub parts: Vec<(&'static str, f64)>,
    /// `None` when the group cannot be placed there.
    pub score: Option<f64>,
}

/// All nodes, the best first, those that cannot be taken last.
pub fn scores(view: &ClusterView<'_>, job: &Job, group: &TaskGroup, seed: u64) -> Vec<NodeVerdict> {
    let holds = |alloc: &&&Allocation| alloc.is_live() && alloc.desired == DesiredStatus::Run;
    let kept: Vec<&Allocation> = view.allocs.iter().filter(holds).copied().collect();
    let fleet = Fleet::new(view.state, job, &kept);
    let request = Request::new(&fleet, job, group, view.settings.algorithm, seed);
    let mut balance = request.balance(&fleet);
    for state in view.state.states().filter(|state| request.feasibility.allows(&state.node)) {
        balance.share_of(&state.node);
    }
    balance.refresh();
    let mut verdicts: Vec<NodeVerdict> = view
        .state
        .states()
        .map(|state| {
            let room = fleet.room_of(state);
            let share = balance.share_of(&state.node);
            let boost = balance.has_spreads().then(|| balance.boost(share));
            let against = request.against(&room, Some(&balance));
            verdict(&request, &room, against, boost)
        })
        .collect();
    verdicts.sort_by(|a, b| {
        let rank = |verdict: &NodeVerdict| verdict.score.unwrap_or(f64::NEG_INFINITY);
        rank(b).total_cmp(&rank(a)).then_with(|| a.node_name.cmp(&b.node_name))
    });
    verdicts
}

fn verdict(request: &Request<'_>, room: &Room<'_>, against: Option<Against>, boost: Option<f64>) -> NodeVerdict {
    let mut verdict = NodeVerdict {
        node: room.node().id,
        node_name: room.node().name.clone(),
        filtered: Vec::new(),
        exhausted: Vec::new(),
        parts: Vec::new(),
        score: None,
    };
    match against {
        Some(Against::Filtered(reasons)) => verdict.filtered = reasons,
        Some(Against::Exhausted(misfits)) => verdict.exhausted = misfits.iter().map(ToString::to_string).collect(),
        None => {
            verdict.parts = parts(request, room, boost);
            let score = verdict.parts.iter().fold(Score::NONE, |score, (_, part)| score.with(*part));
            verdict.score = Some(score.mean());
        }
    }
    verdict
}

fn parts(request: &Request<'_>, room: &Room<'_>, boost: Option<f64>) -> Vec<(&'static str, f64)> {
    let used = room.used().plus(request.demand);
    let collisions = room.of_job(request.number);
    let affinity = request.affinities.score(room.node(), &|job| room.of_any_job(job));
    let all = [
        Some((request.algorithm.as_str(), score::room(request.algorithm, used, room.node().resources))),
        (collisions > 0).then(|| ("job-anti-affinity", score::company(collisions, request.group.count))),
        (affinity != 0.0).then_some(("node-affinity", affinity)),
        boost.map(|boost| ("allocation-spread", boost)),
    ];
    all.into_iter().flatten().collect()
}
