//! Why allocations are where they are: how every node suits a job's groups, and which allocations would do better
//! elsewhere. Reads only.

use super::answer::{Answer, HttpError, json};
use super::jobs::find;
use super::options::Options;
use crate::member::Member;
use axum::extract::{Path, State};
use catalog::Catalog;
use scheduler::{ClusterState, ClusterView, Move, NodeVerdict, Settings};
use serde_json::{Value, json as json_value};
use std::sync::Arc;

type Shared = State<Arc<Member>>;

/// Moves that one answer names, unless `max` asks for another number.
const MOVES_MAX: usize = 100;

/// By group: every node, the best first, with the parts of its score or every reason against it.
pub(super) async fn scores(State(member): Shared, Path(id): Path<String>, options: Options) -> Answer {
    let catalog = member.snapshot();
    let job = find(&catalog, &id)?;
    let state = state_of(&catalog);
    let view = ClusterView::new(&state, catalog.allocs_of_job(&job.id).map(AsRef::as_ref).collect(), None);
    let of_group = |group: &model::TaskGroup| {
        let verdicts = scheduler::scores(&view, job, group, 0);
        (group.name.clone(), Value::Array(verdicts.iter().map(shown).collect()))
    };
    let groups: serde_json::Map<String, Value> = job.groups.iter().map(of_group).collect();
    Ok(json(&member, &options, catalog.index(), &groups))
}

/// What a rebalance would move now, those that gain most first.
pub(super) async fn rebalance(State(member): Shared, options: Options) -> Answer {
    let most = match options.get("max") {
        Some(text) => text.parse().map_err(|_| HttpError::bad_request("max: write a number, for example 10"))?,
        None => MOVES_MAX,
    };
    let catalog = member.snapshot();
    let jobs: Vec<_> = catalog.jobs().cloned().collect();
    let moves = scheduler::rebalance(&state_of(&catalog), &jobs, &Settings::default(), most, 0);
    let rows: Vec<Value> = moves.iter().filter_map(|step| shown_move(&catalog, step)).collect();
    Ok(json(&member, &options, catalog.index(), &rows))
}

fn state_of(catalog: &Catalog) -> ClusterState {
    ClusterState::of(catalog.index(), catalog.nodes(), catalog.allocs().filter(|alloc| alloc.is_live()))
}

fn shown(verdict: &NodeVerdict) -> Value {
    let parts: serde_json::Map<String, Value> =
        verdict.parts.iter().map(|(name, part)| ((*name).to_owned(), (*part).into())).collect();
    json_value!({
        "NodeID": verdict.node.to_string(),
        "NodeName": verdict.node_name,
        "Scores": parts,
        "NormScore": verdict.score,
        "ConstraintsFiltered": verdict.filtered,
        "DimensionsExhausted": verdict.exhausted,
    })
}

fn shown_move(catalog: &Catalog, step: &Move) -> Option<Value> {
    let alloc = catalog.alloc(step.alloc)?;
    Some(json_value!({
        "AllocID": step.alloc.to_string(),
        "Name": alloc.name(),
        "FromNodeID": step.from.to_string(),
        "FromNodeName": alloc.node_name,
        "ToNodeID": step.to.to_string(),
        "ToNodeName": catalog.node(step.to)?.name,
        "Score": step.now,
        "ScoreThere": step.better,
    }))
}
