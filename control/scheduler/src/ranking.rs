//! Nodes in the order of their scores, kept while a group is placed: finding the best one and putting it back with its new
//! score takes the logarithm of their number.
//!
//! ```text
//!   share of the balance ── lane per number of parts ── heap by the sum of the node's own parts
//! ```
//!
//! The spread is a part of the score that all nodes of a share have in common, so the heaps stay in order whatever it is;
//! and a mean of n parts orders nodes as their sum does only among nodes with n parts, hence a lane for each.

use crate::balance::Balance;
use crate::feasible::Memo;
use crate::fleet::Fleet;
use crate::index::{self, Bucket};
use crate::place::Request;
use crate::random::Random;
use crate::score::{self, Score};
use crate::state::NodeState;
use model::NodeId;
use std::cmp::Ordering;
use std::collections::{BinaryHeap, HashMap};

/// Room, company, affinity.
const LANES: usize = 3;
/// Up to here all nodes are scored: it costs less than choosing some.
const FEW_NODES: usize = 256;
/// Nodes that are looked at beyond two for each allocation.
const SAMPLE: usize = 32;

/// How many times as many nodes as wanted are looked at in a bucket.
const LOOKS: usize = 4;

pub(crate) struct Ranking<'a> {
    candidates: Vec<Candidate<'a>>,
    by_node: HashMap<NodeId, usize>,
    /// [`LANES`] for each share.
    lanes: Vec<BinaryHeap<Entry>>,
    balance: Balance<'a>,
    /// How many of the fleet's changes are in the scores.
    seen: usize,
    complete: bool,
}

struct Candidate<'a> {
    state: &'a NodeState,
    /// Decides between equal scores.
    tie_break: u64,
    affinity: f64,
    share: usize,
    /// Older entries of it are out of date.
    entry: u32,
}

/// A candidate at the score it had when this was pushed.
#[derive(Clone, Copy)]
struct Entry {
    sum: f64,
    tie_break: u64,
    candidate: usize,
    number: u32,
}

/// The best of a lane, as it stands among all.
#[derive(Clone, Copy)]
struct Top {
    score: f64,
    lane: usize,
    entry: Entry,
}

impl<'a> Ranking<'a> {
    /// Of all nodes, or of enough for the group when only their room matters.
    pub(crate) fn new(request: &Request<'a>, fleet: &Fleet<'a>) -> Self {
        let wanted = request.group.count as usize * 2 + SAMPLE;
        if !request.is_plain() || fleet.state.len() <= FEW_NODES || wanted * 2 >= fleet.state.len() {
            return Self::complete(request, fleet);
        }
        let mut ranking = Self::empty(request, fleet);
        let mut memo = Memo::default();
        for state in sample(request, fleet, &mut memo, wanted + fleet.counts(request.number).count()) {
            ranking.enter(request, fleet, state, 0.0);
        }
        ranking
    }

    pub(crate) fn complete(request: &Request<'a>, fleet: &Fleet<'a>) -> Self {
        let mut ranking = Self { complete: true, ..Self::empty(request, fleet) };
        let (mut memo, mut affinities) = (Memo::default(), HashMap::new());
        let of_class = request.affinities.are_of_class();
        for state in fleet.state.states().filter(|state| state.node.is_placeable()) {
            let room = fleet.room_of(state);
            if !request.allows_class(&mut memo, &room) {
                continue;
            }
            let affinity = || request.affinities.score(&state.node, &|job| room.of_any_job(job));
            let affinity = if of_class { *affinities.entry(state.class).or_insert_with(affinity) } else { affinity() };
            ranking.enter(request, fleet, state, affinity);
        }
        ranking.balance.refresh();
        ranking
    }

    pub(crate) fn is_complete(&self) -> bool {
        self.complete
    }

    /// The best node now. `avoid` is where the slot failed before: it counts less there.
    pub(crate) fn best(&mut self, request: &Request<'a>, fleet: &Fleet<'a>, avoid: Option<NodeId>) -> Option<NodeId> {
        self.follow(request, fleet);
        let best = self.top()?;
        let node = self.candidates[best.entry.candidate].id();
        if avoid != Some(node) {
            return Some(node);
        }
        self.lanes[best.lane].pop();
        let second = self.top();
        self.lanes[best.lane].push(best.entry);
        let instead = second.filter(|second| self.avoided(&best) <= second.score);
        Some(instead.map_or(node, |second| self.candidates[second.entry.candidate].id()))
    }

    /// The best node with its score.
    pub(crate) fn best_with_score(&mut self, request: &Request<'a>, fleet: &Fleet<'a>) -> Option<(NodeId, f64)> {
        self.follow(request, fleet);
        self.top().map(|top| (self.candidates[top.entry.candidate].id(), top.score))
    }

    /// What the node scores now; `None` when the group cannot be placed there.
    pub(crate) fn score_of(&mut self, request: &Request<'a>, fleet: &Fleet<'a>, node: NodeId) -> Option<f64> {
        self.follow(request, fleet);
        let candidate = &self.candidates[*self.by_node.get(&node)?];
        let room = fleet.room_of(candidate.state);
        if !request.fits(&room) || !self.balance.is_open(candidate.share) {
            return None;
        }
        let score = request.score(&room, candidate.affinity);
        let spread = self.balance.has_spreads().then(|| self.balance.boost(candidate.share));
        Some(spread.map_or(score, |boost| score.with(boost)).mean())
    }

    fn avoided(&self, top: &Top) -> f64 {
        let parts = self.parts(top.lane);
        Score { sum: top.score * f64::from(parts), parts }.with(score::FAILED_HERE).mean()
    }

    fn parts(&self, lane: usize) -> u32 {
        (lane % LANES) as u32 + 1 + u32::from(self.balance.has_spreads())
    }

    fn top(&mut self) -> Option<Top> {
        let mut best: Option<Top> = None;
        for share in (0..self.lanes.len() / LANES).filter(|share| self.balance.is_open(*share)) {
            let boost = if self.balance.has_spreads() { self.balance.boost(share) } else { 0.0 };
            for lane in share * LANES..(share + 1) * LANES {
                let Some(entry) = newest(&mut self.lanes[lane], &self.candidates) else { continue };
                let score = (entry.sum + boost) / f64::from(self.parts(lane));
                let better = |best: Top| (score, entry.tie_break) > (best.score, best.entry.tie_break);
                if best.is_none_or(better) {
                    best = Some(Top { score, lane, entry });
                }
            }
        }
        best
    }

    fn empty(request: &Request<'a>, fleet: &Fleet<'a>) -> Self {
        Self {
            candidates: Vec::new(),
            by_node: HashMap::new(),
            lanes: Vec::new(),
            balance: request.balance(fleet),
            seen: fleet.changes(),
            complete: false,
        }
    }

    fn enter(&mut self, request: &Request<'a>, fleet: &Fleet<'a>, state: &'a NodeState, affinity: f64) {
        let share = self.balance.share_of(&state.node);
        self.lanes.resize_with(self.balance.shares() * LANES, BinaryHeap::new);
        let tie_break = Random::new(request.seed, &[state.node.id.0.as_u128()]).next();
        self.by_node.insert(state.node.id, self.candidates.len());
        self.candidates.push(Candidate { state, tie_break, affinity, share, entry: 0 });
        self.rescore(request, fleet, self.candidates.len() - 1);
    }

    /// Works in what has changed since.
    fn follow(&mut self, request: &Request<'a>, fleet: &Fleet<'a>) {
        let changes = fleet.changes_after(self.seen);
        self.seen = fleet.changes();
        for change in changes {
            if let (Some(group), Some(node)) = (change.group, fleet.node(change.node))
                && change.by != 0
            {
                self.balance.count(node, Some(group) == request.number, change.by);
            }
            if let Some(candidate) = self.by_node.get(&change.node) {
                self.rescore(request, fleet, *candidate);
            }
        }
        if !changes.is_empty() {
            self.balance.refresh();
        }
    }

    fn rescore(&mut self, request: &Request<'a>, fleet: &Fleet<'a>, number: usize) {
        let candidate = &mut self.candidates[number];
        candidate.entry += 1;
        let room = fleet.room_of(candidate.state);
        if !request.fits(&room) {
            return;
        }
        if !request.affinities.are_of_class() {
            candidate.affinity = request.affinities.score(room.node(), &|job| room.of_any_job(job));
        }
        let score = request.score(&room, candidate.affinity);
        let lane = candidate.share * LANES + score.parts as usize - 1;
        let entry =
            Entry { sum: score.sum, tie_break: candidate.tie_break, candidate: number, number: candidate.entry };
        self.lanes[lane].push(entry);
    }
}

/// The lane's best entry that is up to date.
fn newest(lane: &mut BinaryHeap<Entry>, candidates: &[Candidate<'_>]) -> Option<Entry> {
    while let Some(entry) = lane.peek() {
        if candidates[entry.candidate].entry == entry.number {
            return Some(*entry);
        }
        lane.pop();
    }
    None
}

/// Nodes that score about best, at least `wanted` if there are as many, from the buckets that promise most.
fn sample<'a>(request: &Request<'a>, fleet: &Fleet<'a>, memo: &mut Memo, wanted: usize) -> Vec<&'a NodeState> {
    let start = NodeId::from_random(Random::new(request.seed, &[]).bits());
    let promise = |bucket: &Bucket| {
        let (used, room) = bucket.middle();
        score::room(request.algorithm, used.plus(request.demand), room)
    };
    let buckets = fleet.state.free().buckets().filter(|(bucket, _)| bucket.may_hold(request.demand));
    let mut buckets: Vec<_> = buckets.map(|(bucket, nodes)| (promise(&bucket), bucket, nodes)).collect();
    buckets.sort_by(|a, b| b.0.total_cmp(&a.0).then(a.1.cmp(&b.1)));
    let mut found = Vec::with_capacity(wanted);
    for (.., nodes) in buckets {
        let looked_at = index::from(nodes, start).take(LOOKS * wanted).filter_map(|id| fleet.state.state(id));
        let suits = |state: &&NodeState| {
            let room = fleet.room_of(state);
            request.allows_class(memo, &room) && request.fits(&room)
        };
        found.extend(looked_at.filter(suits).take(wanted - found.len()));
        if found.len() >= wanted {
            break;
        }
    }
    found
}

impl Candidate<'_> {
    fn id(&self) -> NodeId {
        self.state.node.id
    }
}

impl Ord for Entry {
    fn cmp(&self, other: &Self) -> Ordering {
        self.sum.total_cmp(&other.sum).then(self.tie_break.cmp(&other.tie_break)).then(self.number.cmp(&other.number))
    }
}

impl PartialOrd for Entry {
    fn partial_cmp(&self, other: &Self) -> Option<Ordering> {
        Some(self.cmp(other))
    }
}

impl PartialEq for Entry {
    fn eq(&self, other: &Self) -> bool {
        self.cmp(other).is_eq()
    }
}

impl Eq for Entry {}
