//! Which allocations would do better elsewhere: after nodes joined, drains ended or attributes changed. Only says so; whoever
//! acts on it plans for the job with [`crate::ClusterView::moving`].
//!
//! Only what works is moved, of service jobs alone, and never more of a job at once than its disruption budget (one, if it
//! has none) leaves. A move has to gain [`GAIN_MIN`], or the next look would move it back.

use crate::fleet::Fleet;
use crate::place::Request;
use crate::ranking::Ranking;
use crate::settings::Settings;
use crate::state::ClusterState;
use model::{AllocId, Allocation, DesiredStatus, DisruptionBudget, Job, JobKind, NodeId};
use std::collections::BTreeMap;
use std::sync::Arc;

/// What a score has to rise by.
pub const GAIN_MIN: f64 = 0.1;

#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Move {
    pub alloc: AllocId,
    pub from: NodeId,
    pub to: NodeId,
    /// The score where it is.
    pub now: f64,
    /// The score where it would be.
    pub better: f64,
}

/// At most `most` moves, those that gain most first. `jobs` are the newest versions.
pub fn rebalance(state: &ClusterState, jobs: &[Arc<Job>], settings: &Settings, most: usize, seed: u64) -> Vec<Move> {
    let mut by_job: BTreeMap<&model::JobId, Vec<&Allocation>> = BTreeMap::new();
    let running = state.states().flat_map(|node| &node.held.allocs).filter(|alloc| alloc.desired == DesiredStatus::Run);
    running.for_each(|alloc| by_job.entry(alloc.job_id()).or_default().push(alloc));
    let movable = jobs.iter().filter(|job| job.kind == JobKind::Service && !job.stopped);
    let mut moves: Vec<Move> = movable
        .filter_map(|job| Some((job, by_job.get(&job.id)?)))
        .flat_map(|(job, allocs)| of_job(state, job, allocs, settings, seed))
        .collect();
    moves.sort_by(|a, b| (b.better - b.now).total_cmp(&(a.better - a.now)).then(a.alloc.cmp(&b.alloc)));
    moves.truncate(most);
    moves
}

fn of_job(state: &ClusterState, job: &Job, allocs: &[&Allocation], settings: &Settings, seed: u64) -> Vec<Move> {
    let spare = spare(state, job);
    // Two versions at once are a rollout; it places by itself.
    if spare == 0 || allocs.iter().any(|alloc| alloc.job.version != job.version) {
        return Vec::new();
    }
    let mut fleet = Fleet::new(state, job, allocs);
    let mut moves = Vec::new();
    for group in &job.groups {
        let request = Request::new(&fleet, job, group, settings.algorithm, seed);
        let mut ranking = Ranking::complete(&request, &fleet);
        let mut of_group: Vec<&&Allocation> =
            allocs.iter().filter(|alloc| alloc.group == group.name && alloc.is_healthy()).collect();
        of_group.sort_by_key(|alloc| (alloc.slot, alloc.id));
        for alloc in of_group {
            if moves.len() >= spare {
                return moves;
            }
            fleet.release_slot(alloc);
            fleet.give_up(alloc);
            let now = ranking.score_of(&request, &fleet, alloc.node_id).unwrap_or(f64::MIN);
            let best = ranking.best_with_score(&request, &fleet);
            fleet.take_back(alloc);
            match best.filter(|(to, better)| *to != alloc.node_id && better - now.max(-1.0) >= GAIN_MIN) {
                Some((to, better)) => {
                    moves.push(Move { alloc: alloc.id, from: alloc.node_id, to, now: now.max(-1.0), better });
                    fleet.add(&Allocation { node_id: to, ports: Vec::new(), ..Allocation::clone(alloc) });
                }
                None => fleet.hold_slot(alloc),
            }
        }
    }
    moves
}

fn spare(state: &ClusterState, job: &Job) -> usize {
    let budget = job.disruption.unwrap_or(DisruptionBudget { max_unavailable: 1 });
    let wanted: u32 = job.groups.iter().map(|group| group.count).sum();
    budget.max_unavailable.saturating_sub(wanted.saturating_sub(state.working(&job.id))) as usize
}
