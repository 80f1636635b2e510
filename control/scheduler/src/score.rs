//! How well a node suits an allocation: parts of at most 1 each, of which the mean is taken.

use crate::constraint::{Checker, JobsHere};
use crate::settings::Algorithm;
use model::{Affinity, Job, Node, NodeResources, TaskGroup};

/// The sum of the parts that apply, and how many they are.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(crate) struct Score {
    pub(crate) sum: f64,
    pub(crate) parts: u32,
}

impl Score {
    pub(crate) const NONE: Score = Score { sum: 0.0, parts: 0 };

    pub(crate) fn with(self, part: f64) -> Self {
        Self { sum: self.sum + part, parts: self.parts + 1 }
    }

    pub(crate) fn mean(self) -> f64 {
        if self.parts == 0 { 0.0 } else { self.sum / f64::from(self.parts) }
    }
}

/// 0 to 1, by what would be used. Packing fills nodes up, so that whole ones stay free for what is big; spreading keeps
/// them evenly idle.
pub(crate) fn room(algorithm: Algorithm, used: NodeResources, total: NodeResources) -> f64 {
    let free = power_of_ten(free_share(used.cpu_mhz, total.cpu_mhz))
        + power_of_ten(free_share(used.memory_mb, total.memory_mb));
    match algorithm {
        Algorithm::BinPack => (20.0 - free).clamp(0.0, 18.0) / 18.0,
        Algorithm::Spread => (free - 2.0).clamp(0.0, 18.0) / 18.0,
    }
}

/// Against others of the same group on the node.
pub(crate) fn company(collisions: u32, count: u32) -> f64 {
    -f64::from(collisions + 1) / f64::from(count.max(1))
}

pub(crate) const FAILED_HERE: f64 = -1.0;

fn power_of_ten(share: f64) -> f64 {
    (share * std::f64::consts::LOG2_10).exp2()
}

fn free_share(used: u64, total: u64) -> f64 {
    if total == 0 { 0.0 } else { 1.0 - used as f64 / total as f64 }
}

/// The affinities of a group: its job's, its own and its tasks'.
pub(crate) struct Affinities<'a> {
    wishes: Vec<(Checker<'a>, f64)>,
    total: f64,
}

impl<'a> Affinities<'a> {
    pub(crate) fn of(job: &'a Job, group: &'a TaskGroup) -> Self {
        let of_tasks = group.tasks.iter().flat_map(|task| &task.affinities);
        let all = job.affinities.iter().chain(&group.affinities).chain(of_tasks);
        let checker = |wish: &'a Affinity| Checker::new(&wish.attribute, wish.operator, &wish.value);
        let wishes: Vec<_> = all.map(|wish| (checker(wish), f64::from(wish.weight))).collect();
        let total = wishes.iter().map(|(_, weight)| weight.abs()).sum();
        Self { wishes, total }
    }

    pub(crate) fn is_empty(&self) -> bool {
        self.wishes.is_empty()
    }

    pub(crate) fn are_of_class(&self) -> bool {
        !self.wishes.iter().any(|(checker, _)| checker.is_of_one_node())
    }

    /// From -1 to 1; 0 when none matches, and then no part of the score.
    pub(crate) fn score(&self, node: &Node, jobs: JobsHere<'_>) -> f64 {
        if self.total == 0.0 {
            return 0.0;
        }
        let matching = self.wishes.iter().filter(|(checker, _)| checker.holds(node, jobs));
        matching.map(|(_, weight)| weight).sum::<f64>() / self.total
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn packing_and_spreading_go_opposite_ways() {
        let total = NodeResources { cpu_mhz: 1000, memory_mb: 1000, disk_mb: 0 };
        let at = |algorithm, used| room(algorithm, NodeResources { cpu_mhz: used, memory_mb: used, disk_mb: 0 }, total);
        let close = |value: f64, expected: f64| assert!((value - expected).abs() < 1e-9, "{value} for {expected}");
        close(at(Algorithm::BinPack, 0), 0.0);
        close(at(Algorithm::BinPack, 1000), 1.0);
        close(at(Algorithm::Spread, 0), 1.0);
        close(at(Algorithm::Spread, 1000), 0.0);
        close(at(Algorithm::BinPack, 500) + at(Algorithm::Spread, 500), 1.0);
    }
}
