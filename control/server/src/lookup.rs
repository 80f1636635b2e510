//! What agents look up for the templates of their tasks: keys, and the variables of the jobs that run on them.

use crate::member::{Member, shown_index};
use crate::pb::watch_request::What;
use crate::{pb, variables};
use catalog::Catalog;
use model::{AllocId, Index, NodeId, Variable};
use std::time::Duration;
use tokio::time::{Instant, timeout_at};
use tonic::Status;

const NAMESPACE: &str = "default";
const WAIT_MAX: Duration = Duration::from_secs(300);
/// What one answer carries; a prefix with more is for several templates.
const BYTES_MAX: usize = 2 << 20;

/// Answers at once, or when what was asked for has changed, or when the wait is over.
pub(crate) async fn watch(
    member: &Member,
    node_id: NodeId,
    request: pb::WatchRequest,
) -> Result<pb::WatchReply, Status> {
    let what = request.what.ok_or_else(|| Status::invalid_argument("what: missing"))?;
    member.read_barrier().await.map_err(|error| Status::unavailable(error.to_string()))?;
    let mut watch = member.catalog.clone();
    let deadline = Instant::now() + Duration::from_millis(request.wait_ms).min(WAIT_MAX);
    loop {
        let catalog = watch.borrow_and_update().clone();
        check(&catalog, node_id, &what)?;
        let index = shown_index(index_of(&catalog, &what));
        // A state that was restored may be older than what the caller has seen.
        if request.index == 0 || index != request.index {
            return answer(member, &catalog, &what, index);
        }
        match timeout_at(deadline, watch.changed()).await {
            Ok(Ok(())) => {}
            Ok(Err(_)) | Err(_) => return answer(member, &catalog, &what, index),
        }
    }
}

/// A task reads what is for all jobs, for its own job, and below that.
fn check(catalog: &Catalog, node_id: NodeId, what: &What) -> Result<(), Status> {
    let What::Variable(asked) = what else { return Ok(()) };
    let id = uuid::Uuid::from_slice(&asked.alloc_id).map_err(|_| Status::invalid_argument("alloc_id: is no UUID"))?;
    let alloc = catalog.alloc(AllocId(id)).filter(|alloc| alloc.node_id == node_id && alloc.is_live());
    let alloc = alloc.ok_or_else(|| Status::permission_denied(format!("no allocation {id} runs on this node")))?;
    match may_read(&asked.path, &alloc.job_id().0) {
        true => Ok(()),
        false => Err(Status::permission_denied(format!(
            "job {:?} may not read {:?}; a task reads nomad/jobs, nomad/jobs/{} and what is below that",
            alloc.job_id().0,
            asked.path,
            alloc.job_id().0
        ))),
    }
}

fn may_read(path: &str, job: &str) -> bool {
    let Some(rest) = path.strip_prefix("nomad/jobs") else { return false };
    let Some(rest) = rest.strip_prefix('/') else { return rest.is_empty() };
    rest.strip_prefix(job).is_some_and(|below| below.is_empty() || below.starts_with('/'))
}

fn index_of(catalog: &Catalog, what: &What) -> Index {
    match what {
        What::Key(key) => match catalog.kv(key) {
            Some(entry) => entry.modified_at_index,
            None => catalog.kv_prefix_index(key),
        },
        What::Prefix(prefix) => catalog.kv_prefix_index(prefix),
        What::Variable(asked) => match catalog.variable(NAMESPACE, &asked.path) {
            Some(variable) => variable.modified_at_index,
            None => catalog.table_index(model::Table::Variables),
        },
    }
}

fn answer(member: &Member, catalog: &Catalog, what: &What, index: u64) -> Result<pb::WatchReply, Status> {
    let pair = |key: &str, value: &[u8]| pb::KeyValue { key: key.to_owned(), value: value.to_vec() };
    let entries = match what {
        What::Key(key) => catalog.kv(key).map(|entry| vec![pair(&entry.key, &entry.value)]),
        What::Prefix(prefix) => {
            let entries: Vec<_> = catalog.kv_prefix(prefix).map(|entry| pair(&entry.key, &entry.value)).collect();
            Some(entries).filter(|entries| !entries.is_empty())
        }
        What::Variable(asked) => {
            let found = catalog.variable(NAMESPACE, &asked.path);
            found.map(|variable| items(member, variable)).transpose()?
        }
    };
    let bytes: usize = entries.iter().flatten().map(|entry| entry.key.len() + entry.value.len()).sum();
    if bytes > BYTES_MAX {
        return Err(Status::out_of_range(format!("{bytes} bytes are asked for, the limit is {BYTES_MAX}")));
    }
    Ok(pb::WatchReply { index, found: entries.is_some(), entries: entries.unwrap_or_default() })
}

fn items(member: &Member, variable: &Variable) -> Result<Vec<pb::KeyValue>, Status> {
    let items = variables::open(&member.seal, variable).map_err(Status::internal)?;
    Ok(items.into_iter().map(|(key, value)| pb::KeyValue { key, value: value.into_bytes() }).collect())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_task_reads_what_is_of_its_job() {
        for path in ["nomad/jobs", "nomad/jobs/web", "nomad/jobs/web/main/task"] {
            assert!(may_read(path, "web"), "{path}");
        }
        for path in ["nomad/jobs/webx", "nomad/jobs/we", "nomad/jobsx", "app/db", "", "nomad/jobs/other/web"] {
            assert!(!may_read(path, "web"), "{path}");
        }
    }
}
