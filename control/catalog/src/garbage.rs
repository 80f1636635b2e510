//! What has ended and nobody needs any more. The leader looks for it from time to time; each is looked at again when the
//! command is applied, so that nothing goes that has come to matter in between.

use crate::{At, Catalog, StoredJob};
use model::{
    AllocId, Allocation, Deployment, EvalStatus, Evaluation, Garbage, Index, JobId, Node, NodeStatus, Retention, Table,
    Timestamp,
};
use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::time::Duration;

impl Catalog {
    /// What may be forgotten at `now`, at most `most` of it. Looks at every row.
    pub fn garbage(&self, now: Timestamp, retention: Retention, most: usize) -> Garbage {
        let jobs: Vec<JobId> = self
            .jobs
            .iter()
            .filter(|(_, stored)| self.is_dead(stored, now, retention))
            .map(|(id, _)| id.clone())
            .collect();
        let gone: BTreeSet<&JobId> = jobs.iter().take(most).collect();
        let of_others = |id: &JobId| !gone.contains(id);
        let evals =
            self.evals.values().filter(|eval| of_others(&eval.job_id) && self.is_old_eval(eval, now, retention));
        let mut slots = Slots::default();
        let mut old = |alloc: &&Arc<Allocation>| {
            of_others(alloc.job_id()) && self.is_old_alloc(alloc, &mut slots, now, retention)
        };
        let deployments = self.deployments.values();
        let nodes = self.nodes.values().filter(|node| self.is_gone(node, now, retention));
        Garbage {
            evals: evals.take(most).map(|eval| eval.id).collect(),
            allocs: self.allocs.values().filter(|alloc| old(alloc)).take(most).map(|alloc| alloc.id).collect(),
            deployments: deployments
                .filter(|deployment| {
                    of_others(&deployment.job_id) && self.is_old_deployment(deployment, now, retention)
                })
                .take(most)
                .map(|deployment| deployment.id)
                .collect(),
            nodes: nodes.take(most).map(|node| node.id).collect(),
            jobs: jobs.iter().take(most).cloned().collect(),
            retention,
        }
    }

    pub(crate) fn collect_garbage(&mut self, at: At, garbage: &Garbage) {
        let (now, retention) = (at.time, garbage.retention);
        for id in &garbage.jobs {
            if self.jobs.get(id).is_some_and(|stored| self.is_dead(stored, now, retention)) {
                let evals: Vec<_> = self.evals_of_job(id).map(|eval| eval.id).collect();
                self.forget_job(at, id);
                evals.into_iter().for_each(|id| self.forget_eval(at, id));
            }
        }
        for id in &garbage.evals {
            if self.evals.get(id).is_some_and(|eval| self.is_old_eval(eval, now, retention)) {
                self.forget_eval(at, *id);
            }
        }
        let mut slots = Slots::default();
        let old = |id: &&AllocId| {
            let known = self.allocs.get(*id);
            known.is_some_and(|alloc| self.is_old_alloc(alloc, &mut slots, now, retention))
        };
        let allocs: Vec<AllocId> = garbage.allocs.iter().filter(old).copied().collect();
        allocs.into_iter().for_each(|id| self.forget_alloc(at, id));
        for id in &garbage.deployments {
            if self.deployments.get(id).is_some_and(|known| self.is_old_deployment(known, now, retention)) {
                self.forget_deployment(at, *id);
            }
        }
        for id in &garbage.nodes {
            if self.nodes.get(id).is_some_and(|node| self.is_gone(node, now, retention)) {
                self.nodes.remove(id);
                self.routing_modified = at.index;
                self.touch(Table::Nodes, at);
            }
        }
    }

    /// Stopped, or of a kind that ends and at its end, and nobody has touched it for long.
    fn is_dead(&self, stored: &StoredJob, now: Timestamp, retention: Retention) -> bool {
        let job = stored.newest();
        let ends = job.kind.ends() && !job.is_template();
        if !(job.stopped || ends) || !self.is_over(job) || self.children(&job.id).next().is_some() {
            return false;
        }
        // One that ends and of which nothing was ever looked at has yet to begin.
        let (evals, allocs) = (self.evals_of_job(&job.id), self.allocs_of_job(&job.id));
        let touched = evals.map(|eval| eval.modified_at).chain(allocs.map(|alloc| alloc.modified_at)).max();
        is_older(touched.unwrap_or_default().max(job.submitted_at), now, retention.job)
    }

    fn is_old_eval(&self, eval: &Evaluation, now: Timestamp, retention: Retention) -> bool {
        let ended = matches!(eval.status, EvalStatus::Complete | EvalStatus::Failed | EvalStatus::Canceled);
        ended && is_older(eval.modified_at, now, self.eval_retention(&eval.job_id, retention))
    }

    /// Ended, and not the newest of a slot: from that one follows whether and when the slot is filled again.
    fn is_old_alloc(&self, alloc: &Allocation, slots: &mut Slots, now: Timestamp, retention: Retention) -> bool {
        let patience = self.eval_retention(alloc.job_id(), retention);
        !alloc.is_live()
            && is_older(alloc.modified_at, now, patience)
            && !slots.of(self, alloc.job_id()).contains(&alloc.id)
    }

    /// The newest one of a job tells whether its version has been rolled out.
    fn is_old_deployment(&self, deployment: &Deployment, now: Timestamp, retention: Retention) -> bool {
        let latest = self.latest_deployment(&deployment.job_id).map(|latest| latest.id);
        let needed = latest == Some(deployment.id) && self.jobs.contains_key(&deployment.job_id);
        !deployment.is_active() && !needed && is_older(deployment.modified_at, now, retention.deployment)
    }

    fn is_gone(&self, node: &Node, now: Timestamp, retention: Retention) -> bool {
        node.status == NodeStatus::Down
            && is_older(node.status_changed_at, now, retention.node)
            && !self.allocs_of_node(node.id).any(|alloc| alloc.is_live())
    }

    fn eval_retention(&self, job_id: &JobId, retention: Retention) -> Duration {
        let ends = self.job(job_id).is_some_and(|job| job.kind.ends());
        if ends { retention.batch_eval } else { retention.eval }
    }
}

/// The newest allocation of every slot that jobs have, found once per job.
#[derive(Default)]
struct Slots {
    known: BTreeMap<JobId, BTreeSet<AllocId>>,
}

impl Slots {
    fn of(&mut self, catalog: &Catalog, id: &JobId) -> &BTreeSet<AllocId> {
        if !self.known.contains_key(id) {
            self.known.insert(id.clone(), newest_of_slots(catalog, id));
        }
        &self.known[id]
    }
}

fn newest_of_slots(catalog: &Catalog, id: &JobId) -> BTreeSet<AllocId> {
    let Some(job) = catalog.job(id).filter(|job| !job.stopped) else { return BTreeSet::new() };
    let everywhere = job.kind.is_on_every_node();
    let mut newest = BTreeMap::new();
    for alloc in catalog.allocs_of_job(id) {
        let exists = job.group(&alloc.group).is_some_and(|group| everywhere || alloc.slot < group.count);
        if exists {
            let slot = (alloc.group.as_str(), alloc.slot, everywhere.then_some(alloc.node_id));
            let age = (alloc.created_at_index, alloc.id);
            newest.entry(slot).and_modify(|known: &mut (Index, AllocId)| *known = age.max(*known)).or_insert(age);
        }
    }
    newest.into_values().map(|(_, id)| id).collect()
}

fn is_older(than: Timestamp, now: Timestamp, by: Duration) -> bool {
    now >= than.plus(by)
}
