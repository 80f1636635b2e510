//! Where one allocation goes: of the nodes that may run it and have room, the one with the best score.
//!
//! A [`Request`] holds what is the same for all slots of a group: scores are worked out once, and after each placement anew
//! for the one node that it changed.

use crate::balance::Balance;
use crate::feasible::{Feasibility, Memo, constraints, distinct_hosts, of_group, reason_not_placeable};
use crate::fleet::{Fleet, Room};
use crate::ports::{PortDemand, Ports};
use crate::random::Random;
use crate::ranking::Ranking;
use crate::score::{self, Affinities, Score};
use crate::settings::Algorithm;
use model::capacity::{self, Exhausted};
use model::{AllocatedPort, Allocation, Job, Node, NodeId, NodeResources, PlacementFailure, TaskGroup};

/// A group with everything about it that is the same for all its slots.
pub(crate) struct Request<'a> {
    pub(crate) job: &'a Job,
    pub(crate) group: &'a TaskGroup,
    pub(crate) number: Option<usize>,
    pub(crate) demand: NodeResources,
    pub(crate) feasibility: Feasibility<'a>,
    pub(crate) affinities: Affinities<'a>,
    pub(crate) algorithm: Algorithm,
    pub(crate) seed: u64,
    needs_address: bool,
    ports: PortDemand<'a>,
    distinct_in_job: bool,
    distinct_in_group: bool,
    ranking: Option<Ranking<'a>>,
    /// Why nothing was found, and after how many changes of the fleet.
    failure: Option<(usize, PlacementFailure)>,
}

pub(crate) struct Spot<'a> {
    pub(crate) node: &'a Node,
    pub(crate) ports: Vec<AllocatedPort>,
}

/// Why a node is not taken.
pub(crate) enum Against {
    Filtered(Vec<String>),
    Exhausted(Vec<Exhausted>),
}

impl<'a> Request<'a> {
    pub(crate) fn new(fleet: &Fleet<'_>, job: &'a Job, group: &'a TaskGroup, algorithm: Algorithm, seed: u64) -> Self {
        Self {
            job,
            group,
            number: fleet.group_number(&group.name),
            demand: capacity::demand(group),
            feasibility: Feasibility::new(job, group),
            affinities: Affinities::of(job, group),
            algorithm,
            seed,
            needs_address: capacity::needs_address(group),
            ports: PortDemand::of(group),
            distinct_in_job: distinct_hosts(job.constraints.iter()),
            distinct_in_group: distinct_hosts(of_group(group)),
            ranking: None,
            failure: None,
        }
    }

    /// The best node with room, and ports on it. `avoid` is where the slot failed before.
    pub(crate) fn find(
        &mut self,
        fleet: &Fleet<'a>,
        avoid: Option<NodeId>,
        random: &mut Random,
    ) -> Result<Spot<'a>, PlacementFailure> {
        if let Some((_, failure)) = self.failure.as_ref().filter(|(seen, _)| *seen == fleet.changes()) {
            return Err(failure.clone());
        }
        match self.best(fleet, avoid).and_then(|id| self.spot(fleet, id, random)) {
            Some(spot) => Ok(spot),
            None => {
                let failure = self.failure_on(fleet, fleet.state.states().map(|state| fleet.room_of(state)));
                self.failure = Some((fleet.changes(), failure.clone()));
                Err(failure)
            }
        }
    }

    /// Room and ports on this node and no other.
    pub(crate) fn find_on<'f>(
        &self,
        fleet: &Fleet<'f>,
        node: NodeId,
        random: &mut Random,
    ) -> Result<Spot<'f>, PlacementFailure> {
        let room = fleet.room(node);
        match room.filter(|room| self.against(room, None).is_none()) {
            Some(_) => self.spot(fleet, node, random).ok_or_else(PlacementFailure::default),
            None => Err(self.failure_on(fleet, room.into_iter())),
        }
    }

    /// Whether a place could be found if `leaving` were gone.
    pub(crate) fn would_fit_without(&self, fleet: &mut Fleet<'_>, leaving: &Allocation) -> bool {
        fleet.give_up(leaving);
        let fits = fleet.room(leaving.node_id).is_some_and(|room| self.against(&room, None).is_none());
        fleet.take_back(leaving);
        fits
    }

    fn best(&mut self, fleet: &Fleet<'a>, avoid: Option<NodeId>) -> Option<NodeId> {
        let mut ranking = self.ranking.take().unwrap_or_else(|| Ranking::new(self, fleet));
        let mut best = ranking.best(self, fleet, avoid);
        if best.is_none() && !ranking.is_complete() {
            ranking = Ranking::complete(self, fleet);
            best = ranking.best(self, fleet, avoid);
        }
        self.ranking = Some(ranking);
        best
    }

    fn spot<'f>(&self, fleet: &Fleet<'f>, id: NodeId, random: &mut Random) -> Option<Spot<'f>> {
        let ports = self.ports.choose(&fleet.room(id)?, random);
        Some(Spot { node: fleet.node(id)?, ports })
    }

    /// Whether the node would do but for the class that it is of and the balance over all nodes.
    pub(crate) fn fits(&self, room: &Room<'_>) -> bool {
        room.node().is_placeable()
            && !self.is_distinct_from(room)
            && room.used().plus(self.demand).fits_in(room.node().resources)
            && !self.ports.statics.iter().any(|port| room.is_taken(*port))
            && self.ports.asks_for_the_same_twice().is_none()
            && !self.ports.exceeds_dynamic(room)
            && !self.lacks_address(room)
            && (self.feasibility.is_of_class()
                || self.feasibility.allows_itself(room.node(), &|job| room.of_any_job(job)))
    }

    /// All of the score that depends on the node alone.
    pub(crate) fn score(&self, room: &Room<'_>, affinity: f64) -> Score {
        let used = room.used().plus(self.demand);
        let collisions = room.of_job(self.number);
        let mut score = Score::NONE.with(score::room(self.algorithm, used, room.node().resources));
        if collisions > 0 {
            score = score.with(score::company(collisions, self.group.count));
        }
        if affinity != 0.0 {
            score = score.with(affinity);
        }
        score
    }

    /// Every reason why nothing of the group may be placed on the node now.
    pub(crate) fn against(&self, room: &Room<'_>, balance: Option<&Balance<'_>>) -> Option<Against> {
        let fixed = reason_not_placeable(room.node())
            .into_iter()
            .chain(self.feasibility.reasons_against(room.node(), &|job| room.of_any_job(job)));
        let distinct = self.is_distinct_from(room).then(|| "distinct_hosts".to_owned());
        let limits = balance.map(|balance| balance.reasons_against(room.node())).unwrap_or_default();
        let filtered: Vec<String> = fixed.chain(distinct).chain(limits).collect();
        if !filtered.is_empty() {
            return Some(Against::Filtered(filtered));
        }
        let misfits = self.misfits(room);
        (!misfits.is_empty()).then_some(Against::Exhausted(misfits))
    }

    pub(crate) fn misfits(&self, room: &Room<'_>) -> Vec<Exhausted> {
        let resources = capacity::exceeded(room.used().plus(self.demand), room.node().resources);
        let statics = self.ports.statics.iter().filter(|port| room.is_taken(**port));
        let ports = statics.copied().chain(self.ports.asks_for_the_same_twice()).map(Exhausted::Port);
        let dynamic = self.ports.exceeds_dynamic(room).then_some(Exhausted::DynamicPorts);
        let address = self.lacks_address(room).then_some(Exhausted::Addresses);
        resources.chain(ports).chain(dynamic).chain(address).collect()
    }

    pub(crate) fn balance(&self, fleet: &Fleet<'_>) -> Balance<'a> {
        let mut balance = Balance::of(self.job, self.group);
        if !balance.is_empty() {
            for (id, all) in fleet.counts(None) {
                let Some(node) = fleet.node(id) else { continue };
                let own = fleet.room(id).map_or(0, |room| room.of_job(self.number));
                balance.count(node, true, own as i32);
                balance.count(node, false, (all - own) as i32);
            }
        }
        balance.refresh();
        balance
    }

    fn failure_on<'r>(&self, fleet: &Fleet<'_>, rooms: impl Iterator<Item = Room<'r>>) -> PlacementFailure {
        let balance = self.balance(fleet);
        let mut failure = PlacementFailure::default();
        for room in rooms {
            failure.nodes_evaluated += 1;
            note(&mut failure, self.against(&room, Some(&balance)));
        }
        failure
    }

    /// Whether it stands where nothing but its going makes room.
    pub(crate) fn holds_static_port(&self, alloc: &Allocation) -> bool {
        alloc.ports.iter().any(|port| self.ports.statics.contains(&port.host_port))
    }

    fn is_distinct_from(&self, room: &Room<'_>) -> bool {
        (self.distinct_in_job && room.of_job(None) > 0) || (self.distinct_in_group && room.of_job(self.number) > 0)
    }

    fn lacks_address(&self, room: &Room<'_>) -> bool {
        self.needs_address && room.addresses_used() >= capacity::addresses_of(room.node())
    }

    /// Whether any few nodes with room will do: nothing is compared but the room.
    pub(crate) fn is_plain(&self) -> bool {
        self.feasibility.is_of_class() && self.affinities.is_empty() && !self.is_balanced()
    }

    fn is_balanced(&self) -> bool {
        let limits = constraints(self.job, self.group).any(|one| one.operator == model::Operator::DistinctProperty);
        limits || !self.job.spreads.is_empty() || !self.group.spreads.is_empty()
    }

    /// Feasibility that was asked for class by class.
    pub(crate) fn allows_class(&self, memo: &mut Memo, room: &Room<'_>) -> bool {
        self.feasibility.allows_class(memo, room.state.class, room.node())
    }
}

/// Counts why a node is not taken.
fn note(failure: &mut PlacementFailure, against: Option<Against>) {
    match against {
        Some(Against::Filtered(reasons)) => {
            failure.nodes_filtered += 1;
            reasons.into_iter().for_each(|reason| *failure.constraints_filtered.entry(reason).or_default() += 1);
        }
        Some(Against::Exhausted(misfits)) => {
            failure.nodes_exhausted += 1;
            let names = misfits.into_iter().map(|dimension| dimension.to_string());
            names.for_each(|name| *failure.dimensions_exhausted.entry(name).or_default() += 1);
        }
        None => {}
    }
}
