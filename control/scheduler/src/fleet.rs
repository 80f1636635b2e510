//! The cluster with what the plan in the making has taken and given up: a thin layer over the state that it was made from.

use crate::ports::Ports;
use crate::state::{ClusterState, NodeState};
use model::capacity::{self, DYNAMIC_PORTS};
use model::{Allocation, DesiredStatus, Job, JobId, Node, NodeId, NodeResources};
use std::collections::HashMap;

#[derive(Clone)]
pub(crate) struct Fleet<'a> {
    pub(crate) state: &'a ClusterState,
    job: &'a JobId,
    /// The evaluated job's groups; their places are how they are counted.
    groups: Vec<&'a str>,
    touched: HashMap<NodeId, Touched>,
    changes: Vec<Change>,
}

/// One allocation more or less on a node; requests follow these to keep their scores.
#[derive(Clone, Copy)]
pub(crate) struct Change {
    pub(crate) node: NodeId,
    /// The evaluated job's group it belongs to.
    pub(crate) group: Option<usize>,
    pub(crate) by: i32,
}

#[derive(Clone, Default)]
struct Touched {
    taken: Share,
    freed: Share,
    /// Allocations that stay or are placed here, by group.
    of_group: Vec<u32>,
}

#[derive(Clone, Default)]
struct Share {
    resources: NodeResources,
    addresses: u64,
    ports: Vec<u16>,
}

/// A node with its room.
#[derive(Clone, Copy)]
pub(crate) struct Room<'f> {
    pub(crate) state: &'f NodeState,
    touched: Option<&'f Touched>,
    job: &'f JobId,
}

impl<'a> Fleet<'a> {
    /// `kept` are the evaluated job's allocations that hold a slot.
    pub(crate) fn new(state: &'a ClusterState, job: &'a Job, kept: &[&'a Allocation]) -> Self {
        let groups = job.groups.iter().map(|group| group.name.as_str()).collect();
        let mut fleet = Self { state, job: &job.id, groups, touched: HashMap::new(), changes: Vec::new() };
        kept.iter().for_each(|alloc| fleet.count(alloc.node_id, &alloc.group, 1));
        fleet
    }

    pub(crate) fn node(&self, id: NodeId) -> Option<&'a Node> {
        self.state.state(id).map(|state| state.node.as_ref())
    }

    pub(crate) fn room(&self, id: NodeId) -> Option<Room<'_>> {
        self.state.state(id).map(|state| self.room_of(state))
    }

    pub(crate) fn room_of<'f>(&'f self, state: &'f NodeState) -> Room<'f> {
        Room { state, touched: self.touched.get(&state.node.id), job: self.job }
    }

    pub(crate) fn group_number(&self, name: &str) -> Option<usize> {
        self.groups.iter().position(|group| *group == name)
    }

    /// What happened since `seen` changes.
    pub(crate) fn changes_after(&self, seen: usize) -> &[Change] {
        self.changes.get(seen..).unwrap_or_default()
    }

    pub(crate) fn changes(&self) -> usize {
        self.changes.len()
    }

    /// Nodes with allocations of the job, and how many of the group (of all groups for `None`) each has.
    pub(crate) fn counts(&self, group: Option<usize>) -> impl Iterator<Item = (NodeId, u32)> {
        self.touched.iter().map(move |(id, touched)| (*id, touched.count(group))).filter(|(_, count)| *count > 0)
    }

    pub(crate) fn add(&mut self, alloc: &Allocation) {
        self.touched.entry(alloc.node_id).or_default().taken.add(alloc);
        self.count(alloc.node_id, &alloc.group, 1);
    }

    /// Gives up the slot of an allocation that is to be replaced; what it uses stays taken until it has ended.
    pub(crate) fn release_slot(&mut self, alloc: &Allocation) {
        self.count(alloc.node_id, &alloc.group, -1);
    }

    pub(crate) fn hold_slot(&mut self, alloc: &Allocation) {
        self.count(alloc.node_id, &alloc.group, 1);
    }

    /// Counts the room of an allocation as free; [`Fleet::take_back`] undoes it.
    pub(crate) fn give_up(&mut self, alloc: &Allocation) {
        self.touched.entry(alloc.node_id).or_default().freed.add(alloc);
        self.note(alloc.node_id);
    }

    pub(crate) fn take_back(&mut self, alloc: &Allocation) {
        if let Some(touched) = self.touched.get_mut(&alloc.node_id) {
            touched.freed.remove(alloc);
        }
        self.note(alloc.node_id);
    }

    fn note(&mut self, node: NodeId) {
        self.changes.push(Change { node, group: None, by: 0 });
    }

    fn count(&mut self, node: NodeId, group: &str, by: i32) {
        let group = self.group_number(group);
        if let Some(number) = group {
            let counts = &mut self.touched.entry(node).or_default().of_group;
            if counts.len() <= number {
                counts.resize(number + 1, 0);
            }
            counts[number] = counts[number].saturating_add_signed(by);
        }
        self.changes.push(Change { node, group, by });
    }
}

impl Touched {
    fn count(&self, group: Option<usize>) -> u32 {
        match group {
            Some(number) => self.of_group.get(number).copied().unwrap_or(0),
            None => self.of_group.iter().sum(),
        }
    }
}

impl Share {
    fn add(&mut self, alloc: &Allocation) {
        self.resources = self.resources.plus(capacity::demand_of(alloc));
        self.addresses += u64::from(alloc.task_group().is_some_and(capacity::needs_address));
        self.ports.extend(alloc.ports.iter().map(|port| port.host_port));
    }

    fn remove(&mut self, alloc: &Allocation) {
        self.resources = self.resources.minus(capacity::demand_of(alloc));
        let addresses = u64::from(alloc.task_group().is_some_and(capacity::needs_address));
        self.addresses = self.addresses.saturating_sub(addresses);
        self.ports.retain(|port| alloc.ports.iter().all(|own| own.host_port != *port));
    }
}

impl<'f> Room<'f> {
    pub(crate) fn node(&self) -> &'f Node {
        &self.state.node
    }

    pub(crate) fn used(&self) -> NodeResources {
        let used = self.state.held.usage.resources;
        self.touched.map_or(used, |touched| used.plus(touched.taken.resources).minus(touched.freed.resources))
    }

    pub(crate) fn addresses_used(&self) -> u64 {
        let used = self.state.held.usage.addresses;
        self.touched.map_or(used, |touched| (used + touched.taken.addresses).saturating_sub(touched.freed.addresses))
    }

    /// Allocations of the evaluated job; of one group, or of all for `None`.
    pub(crate) fn of_job(&self, group: Option<usize>) -> u32 {
        self.touched.map_or(0, |touched| touched.count(group))
    }

    /// How many allocations of a job, or of jobs made from it, are to run here.
    pub(crate) fn of_any_job(&self, name: &str) -> u32 {
        if self.job.0 == name {
            return self.of_job(None);
        }
        let is_it = |job: &Job| job.id.0 == name || job.parent.as_ref().is_some_and(|parent| parent.0 == name);
        let running = self.state.held.allocs.iter().filter(|alloc| alloc.desired == DesiredStatus::Run);
        let count = running.filter(|alloc| is_it(&alloc.job)).count();
        u32::try_from(count).unwrap_or(u32::MAX)
    }
}

impl Ports for Room<'_> {
    fn is_taken(&self, port: u16) -> bool {
        let taken = self.state.held.usage.ports.contains(&port);
        self.touched.map_or(taken, |touched| {
            touched.taken.ports.contains(&port) || (taken && !touched.freed.ports.contains(&port))
        })
    }

    fn dynamic_taken(&self) -> usize {
        let taken = self.state.held.usage.dynamic_ports;
        let in_range = |ports: &[u16]| ports.iter().filter(|port| DYNAMIC_PORTS.contains(port)).count();
        self.touched.map_or(taken, |touched| {
            (taken + in_range(&touched.taken.ports)).saturating_sub(in_range(&touched.freed.ports))
        })
    }
}
