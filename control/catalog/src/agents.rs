//! Nodes: registration with epochs, address blocks and liveness.

use crate::cluster::{BLOCK_PREFIX, check_name};
use crate::{At, Catalog};
use ipnet::{IpNet, Ipv4Net};
use model::{Drain, Eligibility, Epoch, Node, NodeId, NodeStatus, Refusal, Table};
use std::collections::BTreeSet;
use std::net::Ipv4Addr;
use std::sync::Arc;

impl Catalog {
    pub(crate) fn register_node(&mut self, at: At, asked: &Node) -> Result<(), Refusal> {
        check_name(&asked.name)?;
        self.check_node_place(asked)?;
        let known = self.nodes.get(&asked.id).cloned();
        let mut node = match &known {
            Some(known) => renewed(known, asked)?,
            None => Node { blocks: vec![self.free_block()?], created_at_index: at.index, drain: None, ..asked.clone() },
        };
        node.status = NodeStatus::Ready;
        self.set_node_reason(asked.id, "");
        let was_ready = known.as_ref().is_some_and(|known| known.status == NodeStatus::Ready);
        node.status_changed_at = match &known {
            Some(known) if was_ready => known.status_changed_at,
            _ => at.time,
        };
        self.put_node(at, node);
        Ok(())
    }

    pub(crate) fn set_node_status(
        &mut self,
        at: At,
        id: NodeId,
        epoch: Epoch,
        status: NodeStatus,
        reason: &str,
    ) -> Result<(), Refusal> {
        let known = self.current_node(id, epoch)?.clone();
        if known.status == status && self.node_reason(id) == reason {
            return Ok(());
        }
        self.set_node_reason(id, reason);
        if known.status == NodeStatus::Down {
            self.check_node_place(&known)?;
        }
        let status_changed_at = if known.status == status { known.status_changed_at } else { at.time };
        self.put_node(at, Node { status, status_changed_at, ..Node::clone(&known) });
        Ok(())
    }

    pub(crate) fn set_node_eligibility(&mut self, at: At, id: NodeId, eligibility: Eligibility) -> Result<(), Refusal> {
        let known = self.known_node(id)?.clone();
        if eligibility == Eligibility::Eligible && known.drain.is_some() {
            return Err(Refusal::NodeDrains { id });
        }
        self.change_node(at, Node { eligibility, ..Node::clone(&known) });
        Ok(())
    }

    pub(crate) fn set_node_drain(
        &mut self,
        at: At,
        id: NodeId,
        drain: Option<Drain>,
        eligibility: Eligibility,
    ) -> Result<(), Refusal> {
        let known = self.known_node(id)?.clone();
        let eligibility = if drain.is_some() { Eligibility::Ineligible } else { eligibility };
        self.change_node(at, Node { drain, eligibility, ..Node::clone(&known) });
        Ok(())
    }

    /// Why the node has its status; empty when there is nothing to say.
    pub fn node_reason(&self, id: NodeId) -> &str {
        self.node_reasons.get(&id).map_or("", String::as_str)
    }

    fn set_node_reason(&mut self, id: NodeId, reason: &str) {
        if reason.is_empty() {
            self.node_reasons.remove(&id);
        } else {
            self.node_reasons.insert(id, reason.to_owned());
        }
    }

    fn change_node(&mut self, at: At, node: Node) {
        self.put_node(at, node);
    }

    fn known_node(&self, id: NodeId) -> Result<&Arc<Node>, Refusal> {
        self.nodes.get(&id).ok_or(Refusal::NodeUnknown { id })
    }

    /// The node, if `epoch` is of its newest agent.
    pub(crate) fn current_node(&self, id: NodeId, epoch: Epoch) -> Result<&Arc<Node>, Refusal> {
        let node = self.known_node(id)?;
        if node.epoch != epoch {
            return Err(Refusal::EpochStale { known: node.epoch, got: epoch });
        }
        Ok(node)
    }

    /// Names answer DNS questions and addresses end tunnels: of the nodes that are not down, each has its own.
    fn check_node_place(&self, asked: &Node) -> Result<(), Refusal> {
        let others = || self.nodes.values().filter(|node| node.id != asked.id && node.status != NodeStatus::Down);
        if others().any(|node| node.name == asked.name) {
            return Err(Refusal::NameTaken { name: asked.name.clone() });
        }
        if others().any(|node| node.address == asked.address) {
            return Err(Refusal::AddressTaken { address: asked.address });
        }
        Ok(())
    }

    fn put_node(&mut self, at: At, mut node: Node) {
        node.modified_at_index = at.index;
        let routed_before = self.nodes.get(&node.id).map(|known| crate::services::routed_node(known));
        if routed_before.as_ref() != Some(&crate::services::routed_node(&node)) {
            self.routing_modified = at.index;
        }
        let id = node.id;
        self.nodes.insert(id, Arc::new(node));
        self.touch(Table::Nodes, at);
        self.refresh_instances_of_node(at, id);
    }

    /// The lowest block of the allocation range that no node holds.
    fn free_block(&self) -> Result<IpNet, Refusal> {
        let Some(IpNet::V4(range)) = self.founding().map(|founding| founding.alloc_range) else {
            return Err(Refusal::NotBootstrapped);
        };
        let taken: BTreeSet<IpNet> = self.nodes.values().flat_map(|node| node.blocks.iter().copied()).collect();
        blocks_of(range)
            .find(|block| !taken.contains(block))
            .ok_or(Refusal::AddressesExhausted { range: range.to_string() })
    }
}

/// The node as its agent describes it now, with what the catalog decides about it kept.
fn renewed(known: &Node, asked: &Node) -> Result<Node, Refusal> {
    if asked.epoch <= known.epoch {
        return Err(Refusal::EpochNotNewer { known: known.epoch, got: asked.epoch });
    }
    Ok(Node {
        blocks: known.blocks.clone(),
        eligibility: known.eligibility,
        drain: known.drain,
        created_at_index: known.created_at_index,
        ..asked.clone()
    })
}

fn blocks_of(range: Ipv4Net) -> impl Iterator<Item = IpNet> {
    let (first, last) = (u32::from(range.network()), u32::from(range.broadcast()));
    let blocks = (first..=last).step_by(1 << (32 - BLOCK_PREFIX));
    blocks.filter_map(|start| Ipv4Net::new(Ipv4Addr::from(start), BLOCK_PREFIX).ok()).map(IpNet::V4)
}
