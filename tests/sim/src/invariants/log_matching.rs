//! Two logs that agree on an entry's index and term agree on it and on all before it.

use std::collections::BTreeMap;

use crate::Violation;
use crate::node::{Node, Running};

pub fn check(nodes: &[Node]) -> Result<(), Violation> {
    let running: Vec<(u64, &Running)> =
        nodes.iter().filter_map(|node| node.running.as_ref().map(|running| (node.id, running))).collect();
    for (at, (left_id, left)) in running.iter().enumerate() {
        let left: BTreeMap<u64, (u64, &[u8])> = entries(left);
        for (right_id, right) in &running[at + 1..] {
            compare(&left, &entries(right)).map_err(|index| violation(*left_id, *right_id, index))?;
        }
    }
    Ok(())
}

fn entries(running: &Running) -> BTreeMap<u64, (u64, &[u8])> {
    running.core.log().map(|(index, term, data)| (index, (term, data))).collect()
}

/// From the last common (index, term) downwards everything must be equal.
fn compare(left: &BTreeMap<u64, (u64, &[u8])>, right: &BTreeMap<u64, (u64, &[u8])>) -> Result<(), u64> {
    let mut agreed = false;
    for (index, here) in left.iter().rev() {
        let Some(there) = right.get(index) else { continue };
        agreed |= here.0 == there.0;
        if agreed && here != there {
            return Err(*index);
        }
    }
    Ok(())
}

fn violation(left: u64, right: u64, index: u64) -> Violation {
    Violation {
        invariant: "log matching",
        what: format!("servers {left} and {right} differ at {index} below agreement"),
    }
}
