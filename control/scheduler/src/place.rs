//! Where one allocation goes: of the nodes that may run it and have room, the one with the best score.

use crate::feasible::{Feasibility, distinct_hosts, reason_not_placeable};
use crate::random::Random;
use model::capacity::{self, DYNAMIC_PORTS, Exhausted, Usage};
use model::{
    AllocatedPort, Allocation, Job, Network, NetworkMode, Node, NodeId, NodeResources, NodeStatus, PlacementFailure,
    PortRequest, TaskGroup,
};
use std::collections::{BTreeMap, BTreeSet};

/// The nodes with what is taken of them; placements of the plan in the making included.
pub(crate) struct Fleet<'a> {
    /// Ordered by id.
    nodes: Vec<NodeState<'a>>,
}

struct NodeState<'a> {
    node: &'a Node,
    usage: Usage,
    /// Allocations of the evaluated job that stay or are placed here, by group.
    of_job: BTreeMap<String, u32>,
    /// Decides between equal scores.
    tie_break: u64,
}

/// A group with everything about it that is the same for all its slots.
pub(crate) struct Request<'a> {
    group: &'a TaskGroup,
    demand: NodeResources,
    ports: &'a [PortRequest],
    statics: Vec<u16>,
    distinct_in_job: bool,
    distinct_in_group: bool,
    /// Why each node of the fleet, by position, is out of the question.
    filtered: Vec<Vec<String>>,
}

pub(crate) struct Spot<'a> {
    pub(crate) node: &'a Node,
    pub(crate) ports: Vec<AllocatedPort>,
}

impl<'a> Fleet<'a> {
    /// `kept` are the evaluated job's allocations that hold a slot.
    pub(crate) fn new(nodes: &[&'a Node], allocs: &[&'a Allocation], kept: &[&'a Allocation], seed: u64) -> Self {
        let mut by_id: BTreeMap<NodeId, NodeState<'a>> = nodes
            .iter()
            .filter(|node| node.status != NodeStatus::Down)
            .map(|node| (node.id, NodeState::new(node, seed)))
            .collect();
        for alloc in allocs.iter().filter(|alloc| alloc.is_live()) {
            by_id.entry(alloc.node_id).and_modify(|state| state.usage.add(alloc));
        }
        for alloc in kept {
            by_id.entry(alloc.node_id).and_modify(|state| state.count(&alloc.group));
        }
        Self { nodes: by_id.into_values().collect() }
    }

    pub(crate) fn request(&self, job: &'a Job, group: &'a TaskGroup) -> Request<'a> {
        let feasibility = Feasibility::new(job, group);
        let reasons = |state: &NodeState<'_>| {
            reason_not_placeable(state.node).into_iter().chain(feasibility.reasons_against(state.node)).collect()
        };
        let ports: &[PortRequest] = group.network.as_ref().map_or(&[], |network: &Network| &network.ports);
        Request {
            group,
            demand: capacity::demand(group),
            ports,
            statics: ports.iter().filter_map(|port| port.static_port).collect(),
            distinct_in_job: distinct_hosts(&job.constraints),
            distinct_in_group: distinct_hosts(&group.constraints)
                || group.tasks.iter().any(|task| distinct_hosts(&task.constraints)),
            filtered: self.nodes.iter().map(reasons).collect(),
        }
    }

    /// The best node with room, and ports on it. `avoid` is where the slot failed before.
    pub(crate) fn find(
        &self,
        request: &Request<'_>,
        avoid: Option<NodeId>,
        random: &mut Random,
    ) -> Result<Spot<'a>, PlacementFailure> {
        self.best_of(0..self.nodes.len(), request, avoid, random)
    }

    /// Room and ports on this node and no other.
    pub(crate) fn find_on(
        &self,
        request: &Request<'_>,
        node: NodeId,
        random: &mut Random,
    ) -> Result<Spot<'a>, PlacementFailure> {
        let at = self.nodes.binary_search_by_key(&node, |state| state.node.id);
        self.best_of(at.map_or(0..0, |at| at..at + 1), request, None, random)
    }

    fn best_of(
        &self,
        range: std::ops::Range<usize>,
        request: &Request<'_>,
        avoid: Option<NodeId>,
        random: &mut Random,
    ) -> Result<Spot<'a>, PlacementFailure> {
        let mut failure = PlacementFailure::default();
        let mut best: Option<(f64, &NodeState<'a>)> = None;
        for (state, filtered) in self.nodes[range.clone()].iter().zip(&request.filtered[range]) {
            failure.nodes_evaluated += 1;
            if note_reasons(&mut failure, state.filtered(request, filtered), state.misfits(request)) {
                continue;
            }
            let score = state.score(request, avoid);
            if best.is_none_or(|(best_score, best)| (score, state.tie_break) > (best_score, best.tie_break)) {
                best = Some((score, state));
            }
        }
        let (_, state) = best.ok_or(failure)?;
        Ok(Spot { node: state.node, ports: state.choose_ports(request, random) })
    }

    /// Whether a place could be found if `leaving` were gone.
    pub(crate) fn would_fit_without(&mut self, request: &Request<'_>, leaving: &Allocation) -> bool {
        let Ok(i) = self.nodes.binary_search_by_key(&leaving.node_id, |state| state.node.id) else { return false };
        self.nodes[i].usage.remove(leaving);
        let state = &self.nodes[i];
        let fits = state.filtered(request, &request.filtered[i]).is_empty() && state.misfits(request).is_empty();
        self.nodes[i].usage.add(leaving);
        fits
    }

    pub(crate) fn add(&mut self, alloc: &Allocation) {
        if let Some(state) = self.state_mut(alloc.node_id) {
            state.usage.add(alloc);
            state.count(&alloc.group);
        }
    }

    /// Gives up the slot of an allocation that is to be replaced; what it uses stays taken until it has ended.
    pub(crate) fn release_slot(&mut self, alloc: &Allocation) {
        if let Some(state) = self.state_mut(alloc.node_id) {
            state.of_job.entry(alloc.group.clone()).and_modify(|count| *count = count.saturating_sub(1));
        }
    }

    pub(crate) fn hold_slot(&mut self, alloc: &Allocation) {
        if let Some(state) = self.state_mut(alloc.node_id) {
            state.count(&alloc.group);
        }
    }

    fn state_mut(&mut self, id: NodeId) -> Option<&mut NodeState<'a>> {
        let at = self.nodes.binary_search_by_key(&id, |state| state.node.id).ok()?;
        self.nodes.get_mut(at)
    }
}

impl<'a> NodeState<'a> {
    fn new(node: &'a Node, seed: u64) -> Self {
        let tie_break = Random::new(seed, &[node.id.0.as_u128()]).next();
        Self { node, usage: Usage::default(), of_job: BTreeMap::new(), tie_break }
    }

    fn count(&mut self, group: &str) {
        *self.of_job.entry(group.to_owned()).or_default() += 1;
    }

    fn collisions(&self, group: &str) -> u32 {
        self.of_job.get(group).copied().unwrap_or(0)
    }

    fn filtered(&self, request: &Request<'_>, fixed: &[String]) -> Vec<String> {
        let in_job = request.distinct_in_job && self.of_job.values().any(|count| *count > 0);
        let in_group = request.distinct_in_group && self.collisions(&request.group.name) > 0;
        let distinct = (in_job || in_group).then(|| "distinct_hosts".to_owned());
        fixed.iter().cloned().chain(distinct).collect()
    }

    fn misfits(&self, request: &Request<'_>) -> Vec<Exhausted> {
        let mut misfits = self.usage.misfits(self.node, request.demand, &request.statics);
        let asked = request.statics.iter().filter(|port| DYNAMIC_PORTS.contains(port)).count();
        let free = DYNAMIC_PORTS.len().saturating_sub(self.usage.ports.range(DYNAMIC_PORTS).count() + asked);
        if request.ports.len() - request.statics.len() > free {
            misfits.push(Exhausted::DynamicPorts);
        }
        misfits.extend(self.usage.lacks_address(self.node, request.group));
        misfits
    }

    /// The mean of the parts that apply, each at most 1.
    fn score(&self, request: &Request<'_>, avoid: Option<NodeId>) -> f64 {
        let collisions = self.collisions(&request.group.name);
        let parts = [
            Some(self.bin_pack(request.demand)),
            (collisions > 0).then(|| -f64::from(collisions + 1) / f64::from(request.group.count.max(1))),
            (avoid == Some(self.node.id)).then_some(-1.0),
        ];
        let parts: Vec<f64> = parts.into_iter().flatten().collect();
        parts.iter().sum::<f64>() / parts.len() as f64
    }

    /// 0 for an idle node to 1 for a full one: fuller nodes first, so that whole ones stay free for what is big.
    fn bin_pack(&self, demand: NodeResources) -> f64 {
        let total = self.usage.resources.plus(demand);
        let cpu = free_share(total.cpu_mhz, self.node.resources.cpu_mhz);
        let memory = free_share(total.memory_mb, self.node.resources.memory_mb);
        (20.0 - (10f64.powf(cpu) + 10f64.powf(memory))).clamp(0.0, 18.0) / 18.0
    }

    fn choose_ports(&self, request: &Request<'_>, random: &mut Random) -> Vec<AllocatedPort> {
        let mut taken = self.usage.ports.clone();
        taken.extend(&request.statics);
        let mut ports = Vec::new();
        for asked in request.ports {
            let Some(host_port) = asked.static_port.or_else(|| free_dynamic_port(&taken, random)) else { continue };
            taken.insert(host_port);
            ports.push(allocated(asked, host_port, request.group.network_mode()));
        }
        ports
    }
}

fn allocated(asked: &PortRequest, host_port: u16, mode: NetworkMode) -> AllocatedPort {
    let to = match mode {
        NetworkMode::Bridge => asked.to.unwrap_or(host_port),
        NetworkMode::Host | NetworkMode::None => host_port,
    };
    AllocatedPort { label: asked.label.clone(), host_port, to }
}

/// The first free port from a random one on: ports are not reused soon, which spares clients stale connections.
fn free_dynamic_port(taken: &BTreeSet<u16>, random: &mut Random) -> Option<u16> {
    let len = DYNAMIC_PORTS.len();
    let start = (random.next() % len as u64) as usize;
    let from_start = DYNAMIC_PORTS.skip(start).chain(DYNAMIC_PORTS.take(start));
    from_start.into_iter().find(|port| !taken.contains(port))
}

fn free_share(used: u64, total: u64) -> f64 {
    if total == 0 { 0.0 } else { 1.0 - used as f64 / total as f64 }
}

/// Counts why a node is not taken; whether there was a reason.
fn note_reasons(failure: &mut PlacementFailure, filtered: Vec<String>, misfits: Vec<Exhausted>) -> bool {
    if !filtered.is_empty() {
        failure.nodes_filtered += 1;
        filtered.into_iter().for_each(|reason| *failure.constraints_filtered.entry(reason).or_default() += 1);
        return true;
    }
    if misfits.is_empty() {
        return false;
    }
    failure.nodes_exhausted += 1;
    misfits
        .into_iter()
        .for_each(|dimension| *failure.dimensions_exhausted.entry(dimension.to_string()).or_default() += 1);
    true
}

#[cfg(test)]
mod tests {
    use super::*;
    use model::{Eligibility, Epoch, Index, Timestamp};
    use std::net::IpAddr;

    const FREE: [u16; 3] = [20_000, 25_000, 32_000];

    fn node() -> Node {
        Node {
            id: NodeId::from_random(1),
            name: "n1".to_owned(),
            datacenter: "dc1".to_owned(),
            pool: "default".to_owned(),
            class: String::new(),
            address: IpAddr::from([10, 77, 0, 11]),
            attributes: BTreeMap::new(),
            meta: BTreeMap::new(),
            resources: NodeResources::default(),
            drivers: BTreeMap::new(),
            status: NodeStatus::Ready,
            eligibility: Eligibility::Eligible,
            drain: None,
            epoch: Epoch(1),
            blocks: Vec::new(),
            version: String::new(),
            status_changed_at: Timestamp::NEVER,
            created_at_index: Index(0),
            modified_at_index: Index(0),
        }
    }

    fn group() -> TaskGroup {
        TaskGroup { disk_mb: 0, ..TaskGroup::named("api") }
    }

    /// The ports chosen on a node that has only [`FREE`] left, or what is exhausted.
    fn choose(asked: &[Option<u16>], seed: u64) -> Result<Vec<u16>, Vec<Exhausted>> {
        let (node, group) = (node(), group());
        let mut state = NodeState::new(&node, seed);
        state.usage.ports = DYNAMIC_PORTS.filter(|port| !FREE.contains(port)).collect();
        let ports: Vec<PortRequest> = asked
            .iter()
            .map(|static_port| PortRequest { label: String::new(), static_port: *static_port, to: None })
            .collect();
        let request = Request {
            group: &group,
            demand: NodeResources::default(),
            ports: &ports,
            statics: asked.iter().copied().flatten().collect(),
            distinct_in_job: false,
            distinct_in_group: false,
            filtered: Vec::new(),
        };
        match state.misfits(&request) {
            misfits if misfits.is_empty() => Ok(state
                .choose_ports(&request, &mut Random::new(seed, &[]))
                .iter()
                .map(|port| port.host_port)
                .collect()),
            misfits => Err(misfits),
        }
    }

    #[test]
    fn the_last_free_ports_are_found_and_none_is_given_twice() {
        for seed in 0..50 {
            let all = choose(&[None, None, None], seed).unwrap();
            assert_eq!(all.into_iter().collect::<BTreeSet<_>>(), FREE.into());
            let beside_static = choose(&[None, Some(25_000), None], seed).unwrap();
            assert_eq!(beside_static.into_iter().collect::<BTreeSet<_>>(), FREE.into());
        }
    }

    #[test]
    fn more_dynamic_ports_than_are_free_do_not_fit() {
        assert_eq!(choose(&[None, None, None, None], 1), Err(vec![Exhausted::DynamicPorts]));
        assert_eq!(choose(&[None, None, None, Some(20_000)], 1), Err(vec![Exhausted::DynamicPorts]));
        assert_eq!(choose(&[Some(20_001)], 1), Err(vec![Exhausted::Port(20_001)]));
    }
}
