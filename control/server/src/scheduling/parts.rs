//! Plans as commands: one that is too large for the log goes in parts, of which the last concludes the evaluation.

use crate::sessions::new_eval;
use model::{Command, EvalTrigger, Evaluation, Plan};

/// Stops, updates in place and placements that one command carries: some hundred kilobytes.
pub(super) const PARTS_MAX: usize = 4000;

/// The plan in pieces of at most `parts_max` changes, in the order in which they have to take effect: a placement may need
/// the slot that a stop gives up.
pub(super) fn split(plan: Plan, parts_max: usize) -> Vec<Plan> {
    let mut rest = plan;
    let mut pieces = Vec::new();
    while size(&rest) > parts_max {
        let piece = take(&mut rest, parts_max);
        pieces.push(piece);
    }
    pieces.push(rest);
    pieces
}

pub(super) fn size(plan: &Plan) -> usize {
    plan.stops.len() + plan.in_place.len() + plan.placements.len()
}

fn take(rest: &mut Plan, mut room: usize) -> Plan {
    let stops = front(&mut rest.stops, &mut room);
    let in_place = front(&mut rest.in_place, &mut room);
    let placements = front(&mut rest.placements, &mut room);
    Plan {
        goes_on: true,
        victims: std::mem::take(&mut rest.victims),
        stops,
        in_place,
        placements,
        // Placements and updates in place join the deployment, so it has to be there before them.
        deployment: rest.deployment.take(),
        failures: Default::default(),
        queued: Default::default(),
        follow_up_at: None,
        eval_id: rest.eval_id,
        job_id: rest.job_id.clone(),
        snapshot_index: rest.snapshot_index,
    }
}

fn front<T>(items: &mut Vec<T>, room: &mut usize) -> Vec<T> {
    let rest = items.split_off(items.len().min(*room));
    let front = std::mem::replace(items, rest);
    *room -= front.len();
    front
}

pub(super) fn command(plan: Plan, eval: &Evaluation) -> Command {
    let follow_up = plan.follow_up_at.map(|wait_until| Evaluation {
        wait_until,
        ..new_eval(eval.job_id.clone(), eval.priority, EvalTrigger::AllocUpdate)
    });
    Command::ApplyPlan { plan: Box::new(plan), follow_up }
}

#[cfg(test)]
mod tests {
    use super::*;
    use model::{AllocId, EvalId, Index, JobId, PlannedStop, Timestamp};

    fn plan(stops: u128, in_place: u128) -> Plan {
        let id = AllocId::from_random;
        Plan {
            eval_id: EvalId::from_random(1),
            job_id: JobId("big".to_owned()),
            snapshot_index: Index(7),
            goes_on: false,
            victims: Vec::new(),
            stops: (0..stops).map(|n| PlannedStop { alloc_id: id(n), reason: String::new(), client: None }).collect(),
            placements: Vec::new(),
            in_place: (0..in_place).map(|n| id(1000 + n)).collect(),
            failures: Default::default(),
            queued: [("web".to_owned(), 3)].into(),
            deployment: None,
            follow_up_at: Some(Timestamp(9)),
        }
    }

    #[test]
    fn a_plan_that_no_command_carries_goes_in_parts() {
        let parts = |stops, in_place| {
            let pieces = split(plan(stops, in_place), 10);
            let (last, others) = pieces.split_last().unwrap();
            assert!(
                others.iter().all(|piece| piece.goes_on && piece.queued.is_empty() && piece.follow_up_at.is_none())
            );
            assert!(!last.goes_on && last.queued.len() == 1 && last.follow_up_at.is_some());
            pieces.iter().map(|piece| (piece.stops.len(), piece.in_place.len())).collect::<Vec<_>>()
        };
        assert_eq!(parts(10, 0), [(10, 0)]);
        assert_eq!(parts(10, 1), [(10, 0), (0, 1)]);
        assert_eq!(parts(13, 12), [(10, 0), (3, 7), (0, 5)]);
        assert_eq!(parts(0, 0), [(0, 0)]);
    }
}
