//! The cluster as the scheduler sees it, kept from one evaluation to the next: what every node is, what it holds and how
//! much room it has, changed one allocation at a time instead of summed up anew for every plan.

use crate::index::FreeIndex;
use model::capacity::Usage;
use model::{AllocId, Allocation, ClientStatus, DesiredStatus, Index, JobId, Node, NodeId};
use std::collections::{BTreeMap, HashMap};
use std::hash::{DefaultHasher, Hash, Hasher};
use std::sync::Arc;

/// Nodes with their live allocations. Planning borrows it and changes nothing; a clone costs a pointer per node.
#[derive(Clone, Debug, Default)]
pub struct ClusterState {
    /// The catalog's index it stands for; plans carry it on.
    pub index: Index,
    nodes: BTreeMap<NodeId, Arc<NodeState>>,
    /// Live allocations of nodes that nobody has named yet.
    strays: BTreeMap<NodeId, Held>,
    classes: Classes,
    free: FreeIndex,
    /// Live allocations that run and whose checks pass, by job.
    working: BTreeMap<JobId, u32>,
}

#[derive(Clone, Debug)]
pub(crate) struct NodeState {
    pub(crate) node: Arc<Node>,
    /// Nodes of one class meet the same constraints, but for those that name what is unique to a node.
    pub(crate) class: ClassId,
    pub(crate) held: Held,
}

/// What lives on a node.
#[derive(Clone, Debug, Default)]
pub(crate) struct Held {
    pub(crate) usage: Usage,
    pub(crate) allocs: Vec<Arc<Allocation>>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub(crate) struct ClassId(pub(crate) u32);

/// What nodes have in common, numbered as they appear; a number is used again when its last node has gone.
#[derive(Clone, Debug, Default)]
struct Classes {
    by_hash: HashMap<u64, Vec<ClassId>>,
    members: Vec<Option<(Arc<Node>, usize)>>,
    free: Vec<ClassId>,
}

impl ClusterState {
    pub fn of<'a>(
        index: Index,
        nodes: impl IntoIterator<Item = &'a Arc<Node>>,
        allocs: impl IntoIterator<Item = &'a Arc<Allocation>>,
    ) -> Self {
        let mut state = Self { index, ..Self::default() };
        nodes.into_iter().for_each(|node| state.set_node(node.id, Some(node)));
        allocs.into_iter().for_each(|alloc| state.change_alloc(None, Some(alloc)));
        state
    }

    /// The node as it is now; `None` when it is gone. Its allocations stay known either way.
    pub fn set_node(&mut self, id: NodeId, node: Option<&Arc<Node>>) {
        let before = self.nodes.remove(&id);
        if let Some(before) = &before {
            self.free.remove(before);
            self.classes.leave(before.class, &before.node);
        }
        let held = before.map(|before| Arc::unwrap_or_clone(before).held).or_else(|| self.strays.remove(&id));
        match node {
            Some(node) => {
                let class = self.classes.enter(node);
                let state = NodeState { node: Arc::clone(node), class, held: held.unwrap_or_default() };
                self.free.insert(&state);
                self.nodes.insert(id, Arc::new(state));
            }
            None => drop(held.filter(|held| !held.allocs.is_empty()).map(|held| self.strays.insert(id, held))),
        }
    }

    /// An allocation that was added, changed (`before` and `after`) or forgotten. Ended ones hold nothing and are not kept.
    pub fn change_alloc(&mut self, before: Option<&Arc<Allocation>>, after: Option<&Arc<Allocation>>) {
        if let (Some(before), Some(after)) = (before, after)
            && self.replaced_alike(before, after)
        {
            return;
        }
        for (node, id) in [before, after].into_iter().flatten().map(|alloc| (alloc.node_id, alloc.id)) {
            if let Some(known) = self.change_held(node, |held| held.remove(id)) {
                self.count(&known, -1);
            }
        }
        if let Some(alloc) = after.filter(|alloc| alloc.is_live()) {
            self.change_held(alloc.node_id, |held| held.add(alloc));
            self.count(alloc, 1);
        }
    }

    pub fn nodes(&self) -> impl ExactSizeIterator<Item = &Arc<Node>> {
        self.nodes.values().map(|state| &state.node)
    }

    pub fn node(&self, id: NodeId) -> Option<&Arc<Node>> {
        self.nodes.get(&id).map(|state| &state.node)
    }

    /// The live allocations of a node.
    pub fn allocs_of_node(&self, id: NodeId) -> &[Arc<Allocation>] {
        let held = self.nodes.get(&id).map(|state| &state.held).or_else(|| self.strays.get(&id));
        held.map_or(&[], |held| &held.allocs)
    }

    /// What a node's live allocations take.
    pub fn usage_of_node(&self, id: NodeId) -> Option<&Usage> {
        self.nodes.get(&id).map(|state| &state.held.usage)
    }

    /// How many allocations of a job run and pass their checks.
    pub fn working(&self, job: &JobId) -> u32 {
        self.working.get(job).copied().unwrap_or(0)
    }

    pub(crate) fn len(&self) -> usize {
        self.nodes.len()
    }

    pub(crate) fn states(&self) -> impl Iterator<Item = &NodeState> {
        self.nodes.values().map(Arc::as_ref)
    }

    pub(crate) fn state(&self, id: NodeId) -> Option<&NodeState> {
        self.nodes.get(&id).map(Arc::as_ref)
    }

    pub(crate) fn free(&self) -> &FreeIndex {
        &self.free
    }

    /// What reports bring most often: the same share of the same node, with another status.
    fn replaced_alike(&mut self, before: &Arc<Allocation>, after: &Arc<Allocation>) -> bool {
        let alike = before.id == after.id
            && before.node_id == after.node_id
            && Arc::ptr_eq(&before.job, &after.job)
            && before.ports == after.ports
            && after.is_live();
        let Some(state) = self.nodes.get_mut(&before.node_id).filter(|_| alike) else { return false };
        let Some(at) = state.held.position(before.id) else { return false };
        let known = std::mem::replace(&mut Arc::make_mut(state).held.allocs[at], Arc::clone(after));
        self.count(&known, -1);
        self.count(after, 1);
        true
    }

    fn change_held<T>(&mut self, node: NodeId, change: impl FnOnce(&mut Held) -> T) -> T {
        let Some(state) = self.nodes.get_mut(&node) else {
            return change(self.strays.entry(node).or_default());
        };
        let state = Arc::make_mut(state);
        let before = self.free.bucket_of(state);
        let result = change(&mut state.held);
        self.free.moved(before, state);
        result
    }

    fn count(&mut self, alloc: &Allocation, by: i32) {
        if !works(alloc) {
            return;
        }
        let count = self.working.entry(alloc.job_id().clone()).or_default();
        *count = count.saturating_add_signed(by);
        if *count == 0 {
            self.working.remove(alloc.job_id());
        }
    }
}

fn works(alloc: &Allocation) -> bool {
    alloc.client == ClientStatus::Running && alloc.desired == DesiredStatus::Run && alloc.is_healthy()
}

impl Held {
    fn add(&mut self, alloc: &Arc<Allocation>) {
        self.usage.add(alloc);
        self.allocs.push(Arc::clone(alloc));
    }

    fn remove(&mut self, id: AllocId) -> Option<Arc<Allocation>> {
        let known = self.allocs.swap_remove(self.position(id)?);
        self.usage.remove(&known);
        Some(known)
    }

    /// From the end: what changes is mostly what came last.
    fn position(&self, id: AllocId) -> Option<usize> {
        self.allocs.iter().rposition(|alloc| alloc.id == id)
    }
}

impl Classes {
    fn enter(&mut self, node: &Arc<Node>) -> ClassId {
        let alike = self.by_hash.entry(hash_of_class(node)).or_default();
        for id in alike.iter() {
            let member = self.members.get_mut(id.0 as usize).and_then(Option::as_mut);
            if let Some((_, count)) = member.filter(|(representative, _)| same_class(representative, node)) {
                *count += 1;
                return *id;
            }
        }
        let id = self.free.pop().unwrap_or_else(|| {
            self.members.push(None);
            ClassId((self.members.len() - 1) as u32)
        });
        self.members[id.0 as usize] = Some((Arc::clone(node), 1));
        alike.push(id);
        id
    }

    fn leave(&mut self, id: ClassId, node: &Node) {
        let Some((_, count)) = self.members.get_mut(id.0 as usize).and_then(Option::as_mut) else { return };
        *count -= 1;
        if *count > 0 {
            return;
        }
        self.members[id.0 as usize] = None;
        self.free.push(id);
        let hash = hash_of_class(node);
        if let Some(alike) = self.by_hash.get_mut(&hash) {
            alike.retain(|other| *other != id);
            if alike.is_empty() {
                self.by_hash.remove(&hash);
            }
        }
    }
}

/// Everything a constraint may compare that is not, by its name, unique to a node.
fn class_parts(node: &Node) -> (&str, &str, &str) {
    (&node.datacenter, &node.pool, &node.class)
}

fn shared(values: &BTreeMap<String, String>) -> impl Iterator<Item = (&String, &String)> {
    values.iter().filter(|(key, _)| !key.starts_with("unique."))
}

fn working_drivers(node: &Node) -> impl Iterator<Item = &String> {
    node.drivers.iter().filter(|(_, driver)| driver.detected && driver.healthy).map(|(name, _)| name)
}

fn same_class(a: &Node, b: &Node) -> bool {
    class_parts(a) == class_parts(b)
        && shared(&a.attributes).eq(shared(&b.attributes))
        && shared(&a.meta).eq(shared(&b.meta))
        && working_drivers(a).eq(working_drivers(b))
}

fn hash_of_class(node: &Node) -> u64 {
    let mut hasher = DefaultHasher::new();
    class_parts(node).hash(&mut hasher);
    shared(&node.attributes).chain(shared(&node.meta)).for_each(|pair| pair.hash(&mut hasher));
    working_drivers(node).for_each(|name| name.hash(&mut hasher));
    hasher.finish()
}
