//! The cluster as plans are made from: a catalog and what follows from it, changed as the catalog changes, with the
//! placements of plans that are under way.

use crate::sessions::new_eval;
use broker::{Capacity, Class, Interest};
use catalog::{Catalog, Change, Row};
use model::{
    Allocation, Constraint, EvalStatus, EvalTrigger, Evaluation, Job, JobId, Node, NodeId, Plan, TaskGroup, Timestamp,
};
use scheduler::{ClusterState, ClusterView, GroupChanges};
use std::collections::{BTreeMap, BTreeSet};
use std::hash::{DefaultHasher, Hash, Hasher};
use std::sync::Arc;

pub(super) struct View {
    pub(super) catalog: Catalog,
    state: ClusterState,
    classes: Classes,
}

/// Which nodes are alike.
#[derive(Default)]
struct Classes {
    of_node: BTreeMap<NodeId, Class>,
    nodes: BTreeMap<Class, BTreeSet<NodeId>>,
}

impl View {
    pub(super) fn of(catalog: Catalog) -> Self {
        let state = state_of(&catalog);
        let mut classes = Classes::default();
        catalog.nodes().for_each(|node| classes.set(node.id, Some(node)));
        Self { catalog, state, classes }
    }

    /// Takes over what is different in `newest`.
    pub(super) fn follow(&mut self, newest: Catalog, changes: &[Change]) {
        for change in changes {
            match change {
                Change::Node(Row { before, after }) => {
                    let Some(id) = after.as_ref().or(before.as_ref()).map(|node| node.id) else { continue };
                    self.state.set_node(id, after.as_ref());
                    self.classes.set(id, after.as_deref());
                }
                Change::Allocation(Row { before, after }) => self.state.change_alloc(before.as_ref(), after.as_ref()),
                _ => {}
            }
        }
        self.state.index = newest.index();
        self.catalog = newest;
    }

    /// Whether the change made room that somebody may wait for.
    pub(super) fn capacity_in(&self, change: &Change) -> Option<Capacity> {
        let node = match change {
            Change::Node(Row { before, after: Some(after) }) if after.is_placeable() => {
                let same_room = |before: &Arc<Node>| before.is_placeable() && offers(before) == offers(after);
                (!before.as_ref().is_some_and(same_room)).then_some(after.id)
            }
            Change::Allocation(Row { before: Some(before), after }) if before.is_live() => {
                (!after.as_ref().is_some_and(|after| after.is_live())).then_some(before.node_id)
            }
            _ => None,
        }?;
        Some(Capacity { node, class: self.classes.of_node.get(&node).copied()? })
    }

    /// The evaluation to plan for in the place of `id`: the newest one of its job knows of everything that the older ones do.
    pub(super) fn representative(&self, id: model::EvalId, now: Timestamp) -> Option<Arc<Evaluation>> {
        let eval =
            self.catalog.eval(id).filter(|eval| matches!(eval.status, EvalStatus::Pending | EvalStatus::Blocked))?;
        let due = |other: &&Arc<Evaluation>| other.status == EvalStatus::Pending && other.wait_until <= now;
        let newest =
            self.catalog.evals_of_job(&eval.job_id).filter(due).max_by_key(|eval| (eval.created_at_index, eval.id));
        Some(newest.unwrap_or(eval).clone())
    }

    pub(super) fn plan(&self, eval: &Evaluation, now: Timestamp, seed: u64) -> Plan {
        let plan = plan_from(&self.state, &self.catalog, eval, now, seed).0;
        Plan { victims: self.evals_of_victims(&plan), ..plan }
    }

    /// Jobs of which the plan stops something have to find another place for it.
    fn evals_of_victims(&self, plan: &Plan) -> Vec<Evaluation> {
        let stopped = plan.stops.iter().filter_map(|stop| self.catalog.alloc(stop.alloc_id));
        let others: BTreeSet<&JobId> = stopped.map(|alloc| alloc.job_id()).filter(|id| **id != plan.job_id).collect();
        let jobs = others.into_iter().filter_map(|id| self.catalog.job(id));
        jobs.map(|job| new_eval(job.id.clone(), job.priority, EvalTrigger::Preemption)).collect()
    }

    /// Placements of a plan that is on its way: others are not to count on the same room.
    pub(super) fn reserve(&mut self, placements: &[Arc<Allocation>]) {
        placements.iter().for_each(|alloc| self.state.change_alloc(None, Some(alloc)));
    }

    /// Goes back to what the state says of placements that did not come about, or not as they were planned.
    pub(super) fn release(&mut self, placements: &[Arc<Allocation>]) {
        for alloc in placements {
            self.state.change_alloc(Some(alloc), self.catalog.alloc(alloc.id));
        }
    }

    /// What has to change before a blocked evaluation is worth another look.
    pub(super) fn interest(&self, eval: &Evaluation) -> Interest {
        let Some(job) = self.catalog.job(&eval.job_id) else { return Interest::anything() };
        let groups: Vec<&TaskGroup> = eval.failures.keys().filter_map(|name| job.group(name)).collect();
        if groups.is_empty() || names_single_nodes(job, &groups) {
            return Interest::anything();
        }
        if job.kind.is_on_every_node() {
            return Interest::Nodes(self.nodes_without(job, &groups));
        }
        let out_of_the_question = |nodes: &BTreeSet<NodeId>| {
            let alike = nodes.first().and_then(|id| self.catalog.node(*id));
            !alike.is_some_and(|node| groups.iter().any(|group| scheduler::may_run(job, group, node)))
        };
        let excluded = self.classes.nodes.iter().filter(|(_, nodes)| out_of_the_question(nodes));
        Interest::AnyBut(excluded.map(|(class, _)| *class).collect())
    }

    fn nodes_without(&self, job: &Job, groups: &[&TaskGroup]) -> BTreeSet<NodeId> {
        let held: BTreeSet<(NodeId, &str)> = self
            .catalog
            .allocs_of_job(&job.id)
            .filter(|alloc| alloc.is_live())
            .map(|alloc| (alloc.node_id, alloc.group.as_str()))
            .collect();
        let wants = |node: &&Arc<Node>| {
            let lacks = |group: &&&TaskGroup| !held.contains(&(node.id, group.name.as_str()));
            groups.iter().filter(lacks).any(|group| scheduler::may_run(job, group, node))
        };
        self.catalog.nodes().filter(wants).map(|node| node.id).collect()
    }
}

/// The plan, and what it means for each group: for dry runs on any server.
pub(crate) fn explain(
    catalog: &Catalog,
    eval: &Evaluation,
    now: Timestamp,
    seed: u64,
) -> (Plan, BTreeMap<String, GroupChanges>) {
    plan_from(&state_of(catalog), catalog, eval, now, seed)
}

fn state_of(catalog: &Catalog) -> ClusterState {
    ClusterState::of(catalog.index(), catalog.nodes(), catalog.allocs().filter(|alloc| alloc.is_live()))
}

fn plan_from(
    state: &ClusterState,
    catalog: &Catalog,
    eval: &Evaluation,
    now: Timestamp,
    seed: u64,
) -> (Plan, BTreeMap<String, GroupChanges>) {
    let allocs = catalog.allocs_of_job(&eval.job_id).map(AsRef::as_ref).collect();
    let deployment = catalog.latest_deployment(&eval.job_id).map(AsRef::as_ref);
    let job = catalog.job(&eval.job_id).map(AsRef::as_ref);
    let unmet = job.map(|job| unmet(catalog, job)).unwrap_or_default();
    let view = ClusterView { unmet, ..ClusterView::new(state, allocs, deployment) };
    scheduler::explain(&view, eval, job, now, seed)
}

/// What the job waits for, in words.
fn unmet(catalog: &Catalog, job: &Job) -> Vec<String> {
    if job.depends_on.is_empty() {
        return Vec::new();
    }
    scheduler::unmet(job, |id| {
        Some((catalog.job(id)?.as_ref(), catalog.allocs_of_job(id).map(AsRef::as_ref).collect()))
    })
}

impl Classes {
    fn set(&mut self, id: NodeId, node: Option<&Node>) {
        let class = node.map(class_of);
        if self.of_node.get(&id).copied() == class {
            return;
        }
        if let Some(old) = self.of_node.remove(&id)
            && let Some(nodes) = self.nodes.get_mut(&old)
        {
            nodes.remove(&id);
            if nodes.is_empty() {
                self.nodes.remove(&old);
            }
        }
        if let Some(class) = class {
            self.of_node.insert(id, class);
            self.nodes.entry(class).or_default().insert(id);
        }
    }
}

/// Everything that a job may ask for and that is not one node's alone.
fn class_of(node: &Node) -> Class {
    let mut hasher = DefaultHasher::new();
    (&node.datacenter, &node.pool, &node.class).hash(&mut hasher);
    let shared = |(key, _): &(&String, &String)| !key.starts_with("unique.");
    node.attributes.iter().filter(shared).for_each(|pair| pair.hash(&mut hasher));
    node.meta.iter().filter(shared).for_each(|pair| pair.hash(&mut hasher));
    for (name, driver) in &node.drivers {
        (name, driver.detected, driver.healthy).hash(&mut hasher);
    }
    hasher.finish()
}

/// What a node has to offer, whatever it holds.
fn offers(node: &Node) -> impl PartialEq + use<> {
    (class_of(node), node.resources.cpu_mhz, node.resources.memory_mb, node.resources.disk_mb)
}

/// Whether a constraint asks for what tells one node from all others: then a class says nothing.
fn names_single_nodes(job: &Job, groups: &[&TaskGroup]) -> bool {
    let unique = |constraint: &Constraint| {
        [&constraint.attribute, &constraint.value].iter().any(|text| text.contains("unique."))
    };
    let of_groups = groups
        .iter()
        .flat_map(|group| group.constraints.iter().chain(group.tasks.iter().flat_map(|task| &task.constraints)));
    job.constraints.iter().chain(of_groups).any(unique)
}
