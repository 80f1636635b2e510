//! What the data path does, in the words of `meshctl route`.

use dataplane::{
    BackendRoute, BackendState, Compilation, FrontendRoute, FrontendSource, MapImage, RouteProblem, ServiceRoutes,
};
use std::collections::BTreeMap;
use wire::routes;

/// Traffic by backend id.
pub type Counters = BTreeMap<u32, kernel::BackendCounters>;

pub fn report(
    node: &str,
    generation: u64,
    compilation: Option<&Compilation>,
    counters: &Counters,
    drops: &BTreeMap<kernel::Reason, u64>,
) -> routes::RouteReport {
    let services = compilation.map(|compilation| services(compilation, counters)).unwrap_or_default();
    let named = |(reason, count): (&kernel::Reason, &u64)| (reason.name().to_owned(), *count);
    let kind = |reason: &kernel::Reason| (reason.name().to_owned(), kind_name(reason.kind()).to_owned());
    routes::RouteReport {
        node: node.to_owned(),
        generation,
        services,
        drops: drops.iter().map(named).collect(),
        drop_kinds: drops.keys().map(kind).collect(),
        notices: Vec::new(),
        tables: compilation.map(|compilation| tables(compilation.image())).unwrap_or_default(),
    }
}

fn tables(image: &MapImage) -> BTreeMap<String, routes::TableFill> {
    let filled = image.fill().into_iter();
    filled.map(|(table, used, capacity)| (table.to_owned(), routes::TableFill { used, capacity })).collect()
}

fn kind_name(kind: kernel::ReasonKind) -> &'static str {
    match kind {
        kernel::ReasonKind::Passed => "passed",
        kernel::ReasonKind::Dropped => "dropped",
        kernel::ReasonKind::Answered => "answered",
        kernel::ReasonKind::Noted => "noted",
    }
}

fn services(compilation: &Compilation, counters: &Counters) -> Vec<routes::RouteService> {
    let known = compilation.services.iter().map(|service| report_service(service, compilation, counters));
    known.chain(orphans(compilation)).collect()
}

fn report_service(service: &ServiceRoutes, compilation: &Compilation, counters: &Counters) -> routes::RouteService {
    let backend = |backend| report_backend(service, backend, compilation, counters);
    routes::RouteService {
        name: service.name.clone(),
        vip: Some(service.vip),
        frontends: service.frontends.iter().map(report_frontend).collect(),
        backends: service.backends.iter().map(backend).collect(),
        problems: problems_of(&compilation.problems, &service.name),
    }
}

fn report_frontend(frontend: &FrontendRoute) -> routes::RouteFrontend {
    let source = match frontend.source {
        FrontendSource::Vip => routes::FrontendSource::Vip,
        FrontendSource::Edge => routes::FrontendSource::Edge,
        FrontendSource::HostPort => routes::FrontendSource::Port,
    };
    routes::RouteFrontend {
        address: frontend.address,
        port: frontend.port,
        proto: frontend.proto.as_str().to_owned(),
        source,
    }
}

fn report_backend(
    service: &ServiceRoutes,
    backend: &BackendRoute,
    compilation: &Compilation,
    counters: &Counters,
) -> routes::RouteBackend {
    let counted = counters.get(&backend.id).copied().unwrap_or_default();
    let state = match backend.state {
        BackendState::Passing | BackendState::Warning => "active",
        BackendState::Critical => "critical",
        BackendState::Draining => "draining",
    };
    routes::RouteBackend {
        alloc_id: backend.alloc_id.to_string(),
        node: backend.node.clone(),
        address: backend.address,
        port: backend.port,
        proto: backend.proto.as_str().to_owned(),
        weight: backend.weight,
        state: state.to_owned(),
        ring_share: service.ring_share(backend, compilation.image()),
        packets: counted.packets,
        bytes: counted.bytes,
        flows: counted.flows,
    }
}

/// Problems of what is no registered service, such as an allocation whose port found no place.
fn orphans(compilation: &Compilation) -> Vec<routes::RouteService> {
    let registered = |name: &str| compilation.services.iter().any(|service| service.name == name);
    let mut names: Vec<&str> = compilation.problems.iter().map(|problem| problem.service.as_str()).collect();
    names.sort_unstable();
    names.dedup();
    let orphan = |name: &str| routes::RouteService {
        name: name.to_owned(),
        vip: None,
        frontends: Vec::new(),
        backends: Vec::new(),
        problems: problems_of(&compilation.problems, name),
    };
    names.into_iter().filter(|name| !registered(name)).map(orphan).collect()
}

fn problems_of(problems: &[RouteProblem], service: &str) -> Vec<String> {
    problems.iter().filter(|problem| problem.service == service).map(|problem| problem.kind.to_string()).collect()
}
