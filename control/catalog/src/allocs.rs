//! Allocation rows: what nodes report of them, and how many ended ones are remembered.

use crate::{At, Catalog};
use imbl::OrdSet;
use model::capacity::Usage;
use model::{
    AllocId, AllocUpdate, Allocation, CheckState, Epoch, JobId, Node, NodeId, Refusal, Table, TaskGroup, TaskState,
};
use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;
use std::sync::Arc;

/// Ended allocations that a job keeps for its history.
const ENDED_MAX: usize = 64;
const TEXT_LEN_MAX: usize = 4096;

impl Catalog {
    /// Returns the allocations whose reports were left out.
    pub(crate) fn update_allocs(
        &mut self,
        at: At,
        node_id: NodeId,
        epoch: Epoch,
        updates: &[AllocUpdate],
    ) -> Result<Vec<AllocId>, Refusal> {
        let node = self.current_node(node_id, epoch)?.clone();
        let mut dropped = Vec::new();
        let mut ended_jobs = BTreeSet::new();
        for update in updates {
            match self.updatable(&node, update) {
                Some(alloc) => {
                    let merged = merge(&alloc, &node, update);
                    if !merged.is_live() {
                        ended_jobs.insert(alloc.job_id().clone());
                    }
                    self.put_alloc_if_changed(at, &alloc, merged);
                }
                None => dropped.push(update.alloc_id),
            }
        }
        self.after_ends(at, ended_jobs);
        Ok(dropped)
    }

    fn updatable(&self, node: &Node, update: &AllocUpdate) -> Option<Arc<Allocation>> {
        let alloc = self.allocs.get(&update.alloc_id)?;
        (alloc.node_id == node.id && alloc.is_live()).then(|| alloc.clone())
    }

    fn put_alloc_if_changed(&mut self, at: At, before: &Allocation, after: Allocation) {
        if *before != after {
            self.put_alloc(at, after);
        }
    }

    /// Stores a new or changed row and everything derived from it.
    pub(crate) fn put_alloc(&mut self, at: At, mut alloc: Allocation) {
        let id = alloc.id;
        alloc.modified_at = at.time;
        alloc.modified_at_index = at.index;
        self.insert_alloc(Arc::new(alloc));
        self.touch(Table::Allocs, at);
        self.refresh_instances(at, id);
    }

    /// The row and its secondary indices alone.
    pub(crate) fn insert_alloc(&mut self, alloc: Arc<Allocation>) {
        let id = alloc.id;
        match self.allocs.insert(id, alloc.clone()) {
            // An allocation stays on its node and of its job for good.
            Some(before) if takes_the_same(&before, &alloc) => {}
            Some(before) => {
                self.give_back(&before);
                self.take_up(&alloc);
            }
            None => {
                self.allocs_by_job.entry(alloc.job_id().clone()).or_default().insert(id);
                self.allocs_by_node.entry(alloc.node_id).or_default().insert(id);
                self.take_up(&alloc);
            }
        }
    }

    fn take_up(&mut self, alloc: &Allocation) {
        if alloc.is_live() {
            Arc::make_mut(self.usage.entry(alloc.node_id).or_default()).add(alloc);
        }
    }

    fn give_back(&mut self, alloc: &Allocation) {
        let Some(usage) = self.usage.get_mut(&alloc.node_id).filter(|_| alloc.is_live()) else { return };
        let usage = Arc::make_mut(usage);
        usage.remove(alloc);
        if *usage == Usage::default() {
            self.usage.remove(&alloc.node_id);
        }
    }

    pub(crate) fn forget_alloc(&mut self, at: At, id: AllocId) {
        let Some(alloc) = self.allocs.remove(&id) else { return };
        remove_member(&mut self.allocs_by_job, alloc.job_id(), id);
        remove_member(&mut self.allocs_by_node, &alloc.node_id, id);
        self.give_back(&alloc);
        self.touch(Table::Allocs, at);
        self.refresh_instances(at, id);
    }

    /// Ended allocations may be the last that a purge waited for, and must not pile up.
    pub(crate) fn after_ends(&mut self, at: At, jobs: BTreeSet<JobId>) {
        if jobs.is_empty() {
            return;
        }
        for job_id in jobs {
            self.count_deployment_of(at, &job_id);
            self.prune_allocs(at, &job_id);
            self.purge_if_done(at, &job_id);
        }
    }

    /// Forgets the oldest ended allocations beyond [`ENDED_MAX`], but never the newest of a slot: the scheduler reads from
    /// it how long to wait before the slot is filled again.
    fn prune_allocs(&mut self, at: At, job_id: &JobId) {
        let slots: usize = self.job(job_id).map_or(0, |job| job.groups.iter().map(|group| group.count as usize).sum());
        let rows = self.allocs_by_job.get(job_id).map_or(0, OrdSet::len);
        // Looking at every row of a big job at every end would cost more than the rows do.
        if rows <= slots.saturating_mul(2).saturating_add(2 * ENDED_MAX) {
            return;
        }
        let mut ended: Vec<Arc<Allocation>> =
            self.allocs_of_job(job_id).filter(|alloc| !alloc.is_live()).cloned().collect();
        ended.sort_by_key(|alloc| std::cmp::Reverse((alloc.created_at_index, alloc.id)));
        let mut slots_seen = BTreeSet::new();
        for (age, alloc) in ended.iter().enumerate() {
            let node = alloc.job.kind.is_on_every_node().then_some(alloc.node_id);
            let newest_of_slot = self.slot_exists(alloc) && slots_seen.insert((alloc.group.clone(), alloc.slot, node));
            if age >= ENDED_MAX && !newest_of_slot {
                self.forget_alloc(at, alloc.id);
            }
        }
    }

    fn slot_exists(&self, alloc: &Allocation) -> bool {
        let group = self.job(alloc.job_id()).and_then(|job| job.group(&alloc.group));
        group.is_some_and(|group| alloc.slot < group.count)
    }
}

/// Whether neither row's node notices the difference.
fn takes_the_same(before: &Allocation, after: &Allocation) -> bool {
    let alike = before.is_live() == after.is_live();
    alike && (!after.is_live() || (Arc::ptr_eq(&before.job, &after.job) && before.ports == after.ports))
}

pub(crate) fn remove_member<K: Ord + Clone, V: Ord + Clone>(
    index: &mut imbl::OrdMap<K, OrdSet<V>>,
    key: &K,
    member: V,
) {
    let Some(members) = index.get_mut(key) else { return };
    members.remove(&member);
    if members.is_empty() {
        index.remove(key);
    }
}

/// The row as the node reports it, limited to what its job declares.
fn merge(alloc: &Allocation, node: &Node, update: &AllocUpdate) -> Allocation {
    let group = alloc.task_group();
    Allocation {
        client: update.client,
        client_description: shortened(&update.client_description),
        task_states: known_tasks(group, &update.task_states),
        address: update.address.filter(|address| owns(node, *address)).or(alloc.address),
        checks: known_checks(group, &update.checks),
        ..alloc.clone()
    }
}

fn owns(node: &Node, address: IpAddr) -> bool {
    node.blocks.iter().any(|block| block.contains(&address))
}

fn known_tasks(group: Option<&TaskGroup>, reported: &BTreeMap<String, TaskState>) -> BTreeMap<String, TaskState> {
    let names = group.into_iter().flat_map(|group| &group.tasks).map(|task| &task.name);
    names.filter_map(|name| Some((name.clone(), bounded_task(reported.get(name)?)))).collect()
}

fn bounded_task(state: &TaskState) -> TaskState {
    let surplus = state.events.len().saturating_sub(TaskState::EVENTS_MAX);
    let mut events = state.events[surplus..].to_vec();
    for event in &mut events {
        event.kind = shortened(&event.kind);
        event.message = shortened(&event.message);
    }
    TaskState { events, ..state.clone() }
}

fn known_checks(group: Option<&TaskGroup>, reported: &BTreeMap<String, CheckState>) -> BTreeMap<String, CheckState> {
    let services = group.into_iter().flat_map(TaskGroup::all_services);
    let ids = services.flat_map(|service| service.checks.iter().map(|check| check.id(&service.name)));
    ids.filter_map(|id| {
        let state = reported.get(&id)?;
        Some((id, CheckState { output: shortened(&state.output), ..state.clone() }))
    })
    .collect()
}

fn shortened(text: &str) -> String {
    let end = (0..=TEXT_LEN_MAX.min(text.len())).rev().find(|end| text.is_char_boundary(*end)).unwrap_or(0);
    text[..end].to_owned()
}
