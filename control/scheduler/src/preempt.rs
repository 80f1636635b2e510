//! Room by taking it from what matters less: which allocations have to go so that another one may be placed.
//!
//! Victims are at least [`GAP`] priority points below, so nothing that was put aside can put its successor aside: it never
//! goes round in circles. They keep their room until they have ended; the one that needs it waits till then, and what is
//! about to end already is waited for before anybody else has to go.

use crate::fleet::{Fleet, Room};
use crate::place::{Against, Request};
use crate::random::Random;
use crate::score;
use model::{AllocId, Allocation, DesiredStatus, JobId, Node, NodeId, capacity};
use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

pub(crate) const GAP: u8 = 10;
/// Distance that each victim adds beyond what its group's `migrate` lets go at once.
const TOO_MANY_AT_ONCE: f64 = 50.0;
/// Nodes that are looked at for one allocation.
const NODES_MAX: usize = 1024;

/// Whom this plan has sent away already.
#[derive(Default)]
pub(crate) struct Victims {
    ids: BTreeSet<AllocId>,
    by_job: BTreeMap<JobId, u32>,
    by_group: BTreeMap<(JobId, String), u32>,
}

/// Who would have to leave a node.
pub(crate) struct Choice {
    pub(crate) node: NodeId,
    pub(crate) victims: Vec<Arc<Allocation>>,
}

impl Victims {
    pub(crate) fn add(&mut self, alloc: &Allocation) {
        self.ids.insert(alloc.id);
        *self.by_job.entry(alloc.job_id().clone()).or_default() += 1;
        *self.by_group.entry((alloc.job_id().clone(), alloc.group.clone())).or_default() += 1;
    }

    /// Whether it may be sent away for an allocation of that priority, whatever for.
    fn may_take(&self, alloc: &Allocation, priority: u8, working: u32) -> bool {
        alloc.desired == DesiredStatus::Run
            && alloc.job.priority.saturating_add(GAP) <= priority
            && !self.ids.contains(&alloc.id)
            && self.budget_allows(alloc, working)
    }

    /// What does not work is not missed.
    fn budget_allows(&self, alloc: &Allocation, working: u32) -> bool {
        let Some(budget) = alloc.job.disruption.filter(|_| alloc.is_healthy()) else { return true };
        let wanted: u32 = alloc.job.groups.iter().map(|group| group.count).sum();
        let taken = self.by_job.get(alloc.job_id()).copied().unwrap_or(0);
        wanted.saturating_sub(working) + taken < budget.max_unavailable
    }

    fn distance(&self, request: &Request<'_>, alloc: &Allocation) -> f64 {
        let (asked, has) = (request.demand, capacity::demand_of(alloc));
        let apart = |asked: u64, has: u64| match asked {
            0 => 0.0,
            asked => (asked as f64 - has as f64) / asked as f64,
        };
        let parts = [
            apart(asked.cpu_mhz, has.cpu_mhz),
            apart(asked.memory_mb, has.memory_mb),
            apart(asked.disk_mb, has.disk_mb),
        ];
        let taken = self.by_group.get(&(alloc.job_id().clone(), alloc.group.clone())).copied().unwrap_or(0);
        let at_once = alloc.task_group().map_or(1, |group| group.migrate_max_parallel);
        let extra = (taken + 1).saturating_sub(at_once);
        parts.iter().map(|part| part * part).sum::<f64>().sqrt() + f64::from(extra) * TOO_MANY_AT_ONCE
    }
}

/// Of all nodes, or of the one named, where the least important allocations have to go.
pub(crate) fn choose(
    fleet: &mut Fleet<'_>,
    request: &Request<'_>,
    only: Option<NodeId>,
    victims: &Victims,
) -> Option<Choice> {
    let nodes: Vec<NodeId> = match only {
        Some(node) => vec![node],
        None => exhausted(fleet, request),
    };
    let choices = nodes.into_iter().filter_map(|node| {
        let chosen = on_node(fleet, request, node, victims)?;
        let score = suitability(request, fleet.node(node)?, &chosen);
        Some((score, tie_break(request, node), Choice { node, victims: chosen }))
    });
    choices.max_by(|a, b| a.0.total_cmp(&b.0).then(a.1.cmp(&b.1))).map(|(.., choice)| choice)
}

/// Nodes that lack nothing but room, in an order of the seed's.
fn exhausted(fleet: &Fleet<'_>, request: &Request<'_>) -> Vec<NodeId> {
    let balance = request.balance(fleet);
    let lacks_room = |room: &Room<'_>| matches!(request.against(room, Some(&balance)), Some(Against::Exhausted(_)));
    let rooms = fleet.state.states().map(|state| fleet.room_of(state)).filter(lacks_room);
    let mut nodes: Vec<NodeId> = rooms.map(|room| room.node().id).collect();
    nodes.sort_by_key(|node| (tie_break(request, *node), *node));
    nodes.truncate(NODES_MAX);
    nodes
}

fn tie_break(request: &Request<'_>, node: NodeId) -> u64 {
    Random::new(request.seed, &[node.0.as_u128()]).next()
}

/// Lowest priority first, among equals the one nearest in size; then whoever need not go after all stays.
fn on_node(
    fleet: &mut Fleet<'_>,
    request: &Request<'_>,
    node: NodeId,
    victims: &Victims,
) -> Option<Vec<Arc<Allocation>>> {
    let state = fleet.state.state(node)?;
    let working = |alloc: &Allocation| fleet.state.working(alloc.job_id());
    let may_go = |alloc: &&Arc<Allocation>| {
        *alloc.job_id() != request.job.id && victims.may_take(alloc, request.job.priority, working(alloc))
    };
    let mut candidates: Vec<&Arc<Allocation>> = state.held.allocs.iter().filter(may_go).collect();
    candidates.sort_by(|a, b| {
        let distances = victims.distance(request, a).total_cmp(&victims.distance(request, b));
        let in_the_way = request.holds_static_port(b).cmp(&request.holds_static_port(a));
        in_the_way.then(a.job.priority.cmp(&b.job.priority)).then(distances).then(a.id.cmp(&b.id))
    });
    let mut chosen: Vec<Arc<Allocation>> = Vec::new();
    let mut budget = Victims { by_job: victims.by_job.clone(), ..Victims::default() };
    for alloc in candidates {
        if fits(fleet, request, node) {
            break;
        }
        if budget.budget_allows(alloc, fleet.state.working(alloc.job_id())) {
            budget.add(alloc);
            fleet.give_up(alloc);
            chosen.push(Arc::clone(alloc));
        }
    }
    let enough = fits(fleet, request, node);
    let needed = if enough { without_superfluous(fleet, request, node, chosen.clone()) } else { Vec::new() };
    chosen
        .iter()
        .filter(|alloc| !enough || needed.iter().any(|kept| kept.id == alloc.id))
        .for_each(|alloc| fleet.take_back(alloc));
    enough.then_some(needed)
}

/// The most important ones are spared first. Those spared are taken back here.
fn without_superfluous(
    fleet: &mut Fleet<'_>,
    request: &Request<'_>,
    node: NodeId,
    mut chosen: Vec<Arc<Allocation>>,
) -> Vec<Arc<Allocation>> {
    chosen.sort_by_key(|alloc| std::cmp::Reverse((alloc.job.priority, alloc.id)));
    let mut needed = Vec::new();
    for alloc in chosen {
        fleet.take_back(&alloc);
        if !fits(fleet, request, node) {
            fleet.give_up(&alloc);
            needed.push(alloc);
        }
    }
    needed
}

fn fits(fleet: &Fleet<'_>, request: &Request<'_>, node: NodeId) -> bool {
    fleet.room(node).is_some_and(|room| request.against(&room, None).is_none())
}

/// The mean of how little the victims matter and how well the node suits.
fn suitability(request: &Request<'_>, node: &Node, victims: &[Arc<Allocation>]) -> f64 {
    let priorities = victims.iter().map(|alloc| f64::from(alloc.job.priority));
    let highest = priorities.clone().fold(1.0, f64::max);
    let together = highest + priorities.sum::<f64>() / highest;
    let spared = 1.0 / (1.0 + (0.0048 * (together - 2048.0)).exp());
    (spared + score::room(request.algorithm, request.demand, node.resources)) / 2.0
}
