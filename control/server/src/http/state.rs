//! What is there: allocations, nodes, evaluations, services.

use super::answer::{Answer, HttpError, show};
use super::options::Options;
use crate::member::Member;
use axum::extract::{Path, State};
use catalog::Catalog;
use model::{Allocation, Evaluation, Node, Table};
use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use wire::nomad;

type Shared = State<Arc<Member>>;

pub(super) async fn allocations(State(member): Shared, options: Options) -> Answer {
    show(&member, &options, &[Table::Allocs], |catalog| {
        let allocs = catalog.allocs().filter(|alloc| options.admits(&alloc.id.to_string()));
        Ok(allocs.map(|alloc| nomad::AllocationListStub::from(alloc.as_ref())).collect::<Vec<_>>())
    })
    .await
}

pub(super) async fn allocation(State(member): Shared, Path(id): Path<String>, options: Options) -> Answer {
    show(&member, &options, &[Table::Allocs], |catalog| Ok(nomad::Allocation::from(find_alloc(catalog, &id)?.as_ref())))
        .await
}

pub(super) async fn nodes(State(member): Shared, options: Options) -> Answer {
    show(&member, &options, &[Table::Nodes], |catalog| {
        let nodes = catalog.nodes().filter(|node| options.admits(&node.id.to_string()));
        Ok(nodes
            .map(|node| nomad::NodeListStub::from(node.as_ref()).described(catalog.node_reason(node.id)))
            .collect::<Vec<_>>())
    })
    .await
}

pub(super) async fn node(State(member): Shared, Path(id): Path<String>, options: Options) -> Answer {
    show(&member, &options, &[Table::Nodes], |catalog| {
        let node = find_node(catalog, &id)?;
        Ok(nomad::Node::from(node.as_ref()).described(catalog.node_reason(node.id)))
    })
    .await
}

pub(super) async fn node_allocations(State(member): Shared, Path(id): Path<String>, options: Options) -> Answer {
    show(&member, &options, &[Table::Allocs], |catalog| {
        let allocs = catalog.allocs_of_node(find_node(catalog, &id)?.id);
        Ok(allocs.map(|alloc| nomad::Allocation::from(alloc.as_ref())).collect::<Vec<_>>())
    })
    .await
}

pub(super) async fn evaluations(State(member): Shared, options: Options) -> Answer {
    show(&member, &options, &[Table::Evals], |catalog| {
        let wanted = |eval: &&Arc<Evaluation>| {
            options.admits(&eval.id.to_string())
                && options.get("job").is_none_or(|job| eval.job_id.0 == job)
                && options.get("status").is_none_or(|status| eval.status.as_str() == status)
        };
        Ok(catalog.evals().filter(wanted).map(|eval| nomad::Evaluation::from(eval.as_ref())).collect::<Vec<_>>())
    })
    .await
}

pub(super) async fn evaluation(State(member): Shared, Path(id): Path<String>, options: Options) -> Answer {
    show(&member, &options, &[Table::Evals], |catalog| Ok(nomad::Evaluation::from(find_eval(catalog, &id)?.as_ref())))
        .await
}

pub(super) async fn evaluation_allocations(State(member): Shared, Path(id): Path<String>, options: Options) -> Answer {
    show(&member, &options, &[Table::Allocs, Table::Evals], |catalog| {
        let eval = find_eval(catalog, &id)?;
        let allocs = catalog.allocs_of_job(&eval.job_id).filter(|alloc| alloc.eval_id == eval.id);
        Ok(allocs.map(|alloc| nomad::AllocationListStub::from(alloc.as_ref())).collect::<Vec<_>>())
    })
    .await
}

pub(super) async fn services(State(member): Shared, options: Options) -> Answer {
    show(&member, &options, &[Table::Services, Table::Allocs], |catalog| {
        let mut tags: BTreeMap<String, BTreeSet<String>> = BTreeMap::new();
        for instance in catalog.instances() {
            tags.entry(instance.service.clone()).or_default().extend(instance.tags.iter().cloned());
        }
        let stub = |(service_name, tags): (String, BTreeSet<String>)| nomad::ServiceStub {
            service_name,
            tags: tags.into_iter().collect(),
        };
        let services = tags.into_iter().map(stub).collect();
        Ok([nomad::ServiceRegistrationListStub { namespace: "default".to_owned(), services }])
    })
    .await
}

pub(super) async fn service(State(member): Shared, Path(name): Path<String>, options: Options) -> Answer {
    show(&member, &options, &[Table::Services, Table::Allocs], |catalog| {
        let instances = catalog.instances().filter(|instance| instance.service == name);
        Ok(instances.map(nomad::ServiceRegistration::from).collect::<Vec<_>>())
    })
    .await
}

pub(super) fn find_alloc<'a>(catalog: &'a Catalog, id: &str) -> Result<&'a Arc<Allocation>, HttpError> {
    find(catalog.allocs(), |alloc| alloc.id.to_string(), id, "alloc")
}

pub(super) fn find_node<'a>(catalog: &'a Catalog, id: &str) -> Result<&'a Arc<Node>, HttpError> {
    find(catalog.nodes(), |node| node.id.to_string(), id, "node")
}

fn find_eval<'a>(catalog: &'a Catalog, id: &str) -> Result<&'a Arc<Evaluation>, HttpError> {
    find(catalog.evals(), |eval| eval.id.to_string(), id, "eval")
}

/// By the whole id, or by its first characters if there are at least eight and they are nobody else's.
pub(super) fn find<'a, T>(
    rows: impl Iterator<Item = &'a Arc<T>>,
    id_of: impl Fn(&T) -> String,
    wanted: &str,
    noun: &str,
) -> Result<&'a Arc<T>, HttpError> {
    let missing = || HttpError::not_found(format!("{noun} not found"));
    if wanted.len() < 8 {
        return Err(missing());
    }
    let mut matching = rows.filter(|row| id_of(row).starts_with(wanted));
    let first = matching.next().ok_or_else(missing)?;
    match matching.next() {
        Some(_) => {
            Err(HttpError::bad_request(format!("{noun} id `{wanted}` is the start of several; write more of it")))
        }
        None => Ok(first),
    }
}
