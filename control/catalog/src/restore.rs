//! An operator's snapshot put in the place of the state, as a command, so that every server does it at the same index.
//!
//! What people decided comes back: jobs with their versions, allocations, evaluations, deployments, virtual addresses. What
//! is a fact stays: the servers, the authority, nodes with their epochs and blocks, and join tokens, of which an older state
//! would give spent uses back.

use crate::{At, Catalog};
use model::{CatalogImage, ClientStatus, Evaluation, Founding, Index, Node, NodeId, Refusal, Table};
use std::collections::BTreeSet;
use std::sync::Arc;

impl Catalog {
    pub(crate) fn restore(&mut self, at: At, image: &CatalogImage, evals: &[Evaluation]) -> Result<(), Refusal> {
        let founding = self.founding.clone().ok_or(Refusal::NotBootstrapped)?;
        check_ranges(&founding, image)?;
        let nodes = self.merged_nodes(at, &image.nodes);
        let known: BTreeSet<NodeId> = nodes.iter().map(|node| node.id).collect();
        let mut restored = Catalog::from_image(as_of(at, CatalogImage { nodes, ..image.clone() }, &known));
        restored.index = at.index;
        restored.restored_at = at.index;
        restored.routing_modified = at.index;
        restored.feature_level = self.feature_level.max(image.feature_level);
        restored.founding = Some(founding);
        restored.servers = self.servers.clone();
        restored.tokens = self.tokens.clone();
        restored.kv_deleted = at.index;
        restored.node_reasons = self.node_reasons.clone();
        Table::ALL.into_iter().for_each(|table| restored.touch(table, at));
        restored.upsert_evals(at, evals);
        *self = restored;
        Ok(())
    }

    /// When a snapshot was restored last in this server's memory: whoever told the state something before must say it again.
    pub fn restored_at(&self) -> Index {
        self.restored_at
    }

    /// The nodes there are, and those of the image that are not known (any more), unless their addresses have gone to others.
    fn merged_nodes(&self, at: At, of_image: &[Node]) -> Vec<Node> {
        let taken: BTreeSet<_> = self.nodes.values().flat_map(|node| node.blocks.iter().copied()).collect();
        let missing =
            |node: &&Node| !self.nodes.contains_key(&node.id) && !node.blocks.iter().any(|block| taken.contains(block));
        let added = of_image.iter().filter(missing).map(|node| Node { modified_at_index: at.index, ..node.clone() });
        let mut nodes: Vec<Node> = self.nodes.values().map(|node| Node::clone(node)).chain(added).collect();
        nodes.sort_by_key(|node| node.id);
        nodes
    }
}

/// Addresses of allocations and services lie in the ranges, which are settled for good.
fn check_ranges(own: &Arc<Founding>, image: &CatalogImage) -> Result<(), Refusal> {
    let refuse = |range: String, reason: &str| Err(Refusal::RangeInvalid { range, reason: reason.to_owned() });
    match &image.founding {
        None => refuse("none".to_owned(), "the snapshot is of a cluster that was never bootstrapped"),
        Some(theirs) if theirs.alloc_range != own.alloc_range || theirs.vip_range != own.vip_range => refuse(
            format!("{} and {}", theirs.alloc_range, theirs.vip_range),
            &format!(
                "the snapshot's ranges are not this cluster's {} and {}; restore into a cluster with the same ranges",
                own.alloc_range, own.vip_range
            ),
        ),
        Some(_) => Ok(()),
    }
}

/// Every row counts as modified by the restore, and none as newer: the snapshot may be of another log.
fn as_of(at: At, mut image: CatalogImage, nodes: &BTreeSet<NodeId>) -> CatalogImage {
    let past = |index: Index| index.min(at.index);
    for record in &mut image.jobs {
        record.created_at_index = past(record.created_at_index);
        record.job_modified_at_index = past(record.job_modified_at_index);
        record.modified_at_index = at.index;
    }
    for alloc in &mut image.allocs {
        alloc.created_at_index = past(alloc.created_at_index);
        alloc.modified_at_index = at.index;
        if alloc.is_live() && !nodes.contains(&alloc.node_id) {
            alloc.client = ClientStatus::Lost;
            alloc.client_description = "its node was gone when the state was restored".to_owned();
        }
    }
    for eval in &mut image.evals {
        eval.created_at_index = past(eval.created_at_index);
        eval.modified_at_index = at.index;
    }
    for deployment in &mut image.deployments {
        deployment.created_at_index = past(deployment.created_at_index);
        deployment.modified_at_index = at.index;
    }
    for entry in &mut image.kv {
        entry.created_at_index = past(entry.created_at_index);
        entry.modified_at_index = at.index;
    }
    for variable in &mut image.variables {
        variable.created_at_index = past(variable.created_at_index);
        variable.modified_at_index = at.index;
    }
    image.autopilot.modified_at_index = at.index;
    image.instances_modified.iter_mut().for_each(|(_, index)| *index = at.index);
    image
}
