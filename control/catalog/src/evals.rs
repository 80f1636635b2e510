//! Evaluations: at most two immediate ones, one delayed and one blocked per job, and a short history.

use crate::allocs::remove_member;
use crate::{At, Catalog};
use imbl::OrdSet;
use model::{EvalId, EvalStatus, Evaluation, Index, JobId, Table, Timestamp};
use std::collections::BTreeSet;
use std::sync::Arc;
use std::time::Duration;

/// Finished evaluations that a job keeps.
const FINISHED_MAX: usize = 32;
/// How long finished evaluations of a job that was purged can still be asked for.
const ORPHANS_KEPT_FOR: Duration = Duration::from_secs(3600);

impl Catalog {
    pub(crate) fn upsert_evals(&mut self, at: At, evals: &[Evaluation]) {
        evals.iter().for_each(|eval| self.upsert_eval(at, eval));
    }

    /// Stores the evaluation; a pending one cancels those of its job that it makes superfluous.
    pub(crate) fn upsert_eval(&mut self, at: At, asked: &Evaluation) {
        let known = self.evals.get(&asked.id);
        // An id belongs to one job for good; anything else would leave the index by job wrong.
        if known.is_some_and(|known| known.job_id != asked.job_id) {
            return;
        }
        let created_at_index = known.map_or(at.index, |known| known.created_at_index);
        self.put_eval(at, Evaluation { created_at_index, ..asked.clone() });
        if asked.status == EvalStatus::Pending {
            self.cancel_superfluous(at, asked);
        }
        self.prune_evals(at, &asked.job_id);
    }

    pub(crate) fn put_eval(&mut self, at: At, mut eval: Evaluation) {
        eval.modified_at = at.time;
        eval.modified_at_index = at.index;
        self.insert_eval(Arc::new(eval));
        self.touch(Table::Evals, at);
    }

    pub(crate) fn insert_eval(&mut self, eval: Arc<Evaluation>) {
        self.evals_by_job.entry(eval.job_id.clone()).or_default().insert(eval.id);
        self.evals.insert(eval.id, eval);
    }

    /// A delayed one takes the place of older delayed ones. Of the immediate ones the oldest may be worked on at this moment
    /// and the newest knows of everything: those in between are superfluous.
    fn cancel_superfluous(&mut self, at: At, newer: &Evaluation) {
        let delayed = is_delayed(newer, at);
        let pending =
            |other: &&Arc<Evaluation>| other.status == EvalStatus::Pending && is_delayed(other, at) == delayed;
        let others = self.evals_of_job(&newer.job_id).filter(|other| other.id != newer.id).filter(pending);
        let oldest = others.map(|other| (other.created_at_index, other.id)).min().filter(|_| !delayed);
        let kept = oldest.map(|(_, id)| id);
        self.cancel_others(at, newer, |other| pending(other) && Some(other.id) != kept);
    }

    /// Cancels the job's other evaluations that a plan made from the state at `seen` has answered: pending ones that were
    /// there already, and blocked ones, for the newest knows best what could not be placed.
    pub(crate) fn cancel_covered(&mut self, at: At, newer: &Evaluation, seen: Index) {
        self.cancel_others(at, newer, |other| match other.status {
            EvalStatus::Pending => !is_delayed(other, at) && other.created_at_index <= seen,
            EvalStatus::Blocked => true,
            _ => false,
        });
    }

    fn cancel_others(&mut self, at: At, newer: &Evaluation, covered: impl Fn(&&Arc<Evaluation>) -> bool) {
        let older = self.evals_of_job(&newer.job_id).filter(|other| other.id != newer.id);
        let canceled: Vec<Arc<Evaluation>> = older.filter(covered).cloned().collect();
        for eval in canceled {
            let status_description = format!("canceled: evaluation {} covers it", newer.id);
            self.put_eval(
                at,
                Evaluation { status: EvalStatus::Canceled, status_description, ..Evaluation::clone(&eval) },
            );
        }
    }

    fn prune_evals(&mut self, at: At, job_id: &JobId) {
        if self.evals_by_job.get(job_id).map_or(0, OrdSet::len) <= 2 * FINISHED_MAX {
            return;
        }
        let finished = self.evals_of_job(job_id).filter(|eval| is_finished(eval));
        let mut finished: Vec<_> = finished.map(|eval| (eval.modified_at_index, eval.id)).collect();
        finished.sort();
        let surplus = finished.len().saturating_sub(FINISHED_MAX);
        finished[..surplus].iter().for_each(|(_, id)| self.forget_eval(at, *id));
    }

    /// Drops what is left of jobs that were purged a while ago.
    pub(crate) fn forget_orphaned_evals(&mut self, at: At) {
        let orphaned: BTreeSet<&JobId> = self.evals_by_job.keys().filter(|id| !self.jobs.contains_key(*id)).collect();
        let evals = orphaned.into_iter().flat_map(|id| self.evals_of_job(id)).filter(|eval| is_finished(eval));
        let old: Vec<EvalId> =
            evals.filter(|eval| at.time.since(eval.modified_at) >= ORPHANS_KEPT_FOR).map(|eval| eval.id).collect();
        old.into_iter().for_each(|id| self.forget_eval(at, id));
    }

    pub(crate) fn forget_eval(&mut self, at: At, id: EvalId) {
        let Some(eval) = self.evals.remove(&id) else { return };
        remove_member(&mut self.evals_by_job, &eval.job_id, id);
        self.touch(Table::Evals, at);
    }
}

fn is_delayed(eval: &Evaluation, at: At) -> bool {
    eval.wait_until != Timestamp::NEVER && eval.wait_until > at.time
}

fn is_finished(eval: &Evaluation) -> bool {
    matches!(eval.status, EvalStatus::Complete | EvalStatus::Failed | EvalStatus::Canceled)
}
