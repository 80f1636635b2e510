//! One service compiled again in the place of its old self, when nothing else can be touched by what changed in it.

use super::{Compilation, Compiler, be32};
use crate::image::MapDelta;
use crate::problem::RouteProblemKind;
use crate::routes::{FrontendRoute, FrontendSource, ServiceRoutes};
use crate::snapshot::Snapshot;
use model::{AllocId, NodeId, RoutedNode};
use std::collections::{BTreeMap, BTreeSet};

/// Brings `held`, a compilation of the same snapshot but for this service's instances, up to date; returns what must be
/// written. `None`, and nothing has changed, where more than the service is concerned: then all must be compiled.
pub fn recompile(snapshot: &Snapshot, held: &mut Compilation, name: &str) -> Option<MapDelta> {
    let services = &snapshot.routing.services;
    let at = services.binary_search_by(|service| service.name.as_str().cmp(name)).ok()?;
    let service = &services[at];
    let old = held.services.get(at).filter(|old| old.name == name && old.vip == service.vip)?;
    if held.services.len() != services.len() || held.problems.iter().any(|problem| concerns_others(&problem.kind)) {
        return None;
    }
    let mut compiler = Compiler::new(snapshot, &held.indices);
    compiler.nodes = known_nodes(snapshot, held)?;
    let placed = compiler.place_instances(service);
    let mut frontends = compiler.add_vips(service, &placed);
    frontends.extend(compiler.add_edges(service, &placed, &mut BTreeMap::new()));
    let backends = placed.iter().map(|placed| placed.route()).collect();
    let mut new = ServiceRoutes { name: service.name.clone(), vip: service.vip, frontends, backends };
    let told = compiler.problems.iter().any(|problem| concerns_others(&problem.kind));
    if told || new.frontends != own_frontends(old) || touches_host_ports(snapshot, old, &new) {
        return None;
    }
    new.frontends.extend(old.frontends.iter().filter(|frontend| is_host_port(frontend)).cloned());
    let numbers: BTreeSet<u32> = old.backends.iter().map(|backend| backend.id).collect();
    let Compiler { image, assigner, problems, next_change, .. } = compiler;
    let part = assigner.part(image.backends);
    let writes = held.indices.replace(&numbers, part);
    held.problems.retain(|problem| problem.service != name);
    held.problems.extend(problems);
    held.services[at] = new;
    held.next_change = held.next_change.into_iter().chain(next_change).min();
    Some(MapDelta { writes })
}

/// Problems that another service's change may solve or make.
fn concerns_others(kind: &RouteProblemKind) -> bool {
    use RouteProblemKind::{AddressTaken, HostPortHidden, PortTaken, TableFull};
    matches!(kind, AddressTaken { .. } | HostPortHidden { .. } | PortTaken { .. } | TableFull { .. })
}

/// The numbers that nodes have; none when one has none yet.
fn known_nodes(snapshot: &Snapshot, held: &Compilation) -> Option<BTreeMap<NodeId, u32>> {
    let numbers = &held.image().node_by_addr;
    let number = |node: &RoutedNode| match node.id == snapshot.node_id {
        true => Some((node.id, abi::NODE_SELF)),
        false => Some((node.id, *numbers.get(&be32(node.address)?)?)),
    };
    let up = |node: &&RoutedNode| node.status.is_reachable() || node.id == snapshot.node_id;
    snapshot.routing.nodes.iter().filter(up).map(number).collect()
}

fn is_host_port(frontend: &FrontendRoute) -> bool {
    frontend.source == FrontendSource::HostPort
}

fn own_frontends(service: &ServiceRoutes) -> Vec<FrontendRoute> {
    service.frontends.iter().filter(|frontend| !is_host_port(frontend)).cloned().collect()
}

/// Host ports of this node's allocations are shown on their services, and hidden by the ports that services open.
fn touches_host_ports(snapshot: &Snapshot, old: &ServiceRoutes, new: &ServiceRoutes) -> bool {
    let with_ports = || snapshot.endpoints.values().filter(|endpoint| !endpoint.ports.is_empty());
    let opens = |port: u16| new.frontends.iter().any(|one| one.source == FrontendSource::Edge && one.port == port);
    let hidden = with_ports().any(|endpoint| endpoint.ports.iter().any(|port| opens(port.host_port)));
    let shown = |service: &ServiceRoutes| -> BTreeSet<(AllocId, u16)> {
        let here = |alloc: AllocId| with_ports().any(|endpoint| endpoint.alloc_id == alloc);
        let ends = service.backends.iter().map(|backend| (backend.alloc_id, backend.port));
        ends.filter(|(alloc, _)| here(*alloc)).collect()
    };
    hidden || shown(old) != shown(new)
}
