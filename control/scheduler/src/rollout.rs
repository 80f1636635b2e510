//! How many allocations may be replaced now: the arithmetic of `max_parallel`, with its floor.

/// A group as a rollout sees it; every slot counts once.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Tally {
    pub(crate) slots: usize,
    /// Slots in which something works, of whatever version.
    pub(crate) working: usize,
    /// Slots that are empty or whose newest allocation has yet to prove itself.
    pub(crate) in_flight: usize,
}

/// How many to replace of those that do not work anyway and of those that do.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Room {
    pub(crate) broken: usize,
    pub(crate) working: usize,
}

impl Tally {
    /// Never more than `max_parallel` in flight, and never fewer than `slots - max_parallel` that work by our own doing.
    pub(crate) fn room(&self, max_parallel: usize, broken: usize) -> Room {
        let free = max_parallel.saturating_sub(self.in_flight);
        let broken = broken.min(free);
        let above_floor = self.working.saturating_sub(self.slots.saturating_sub(max_parallel));
        Room { broken, working: above_floor.min(free - broken) }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[track_caller]
    fn check(tally: (usize, usize, usize), max_parallel: usize, broken: usize, expected: (usize, usize)) {
        let tally = Tally { slots: tally.0, working: tally.1, in_flight: tally.2 };
        assert_eq!(tally.room(max_parallel, broken), Room { broken: expected.0, working: expected.1 });
    }

    #[test]
    fn what_works_is_replaced_down_to_the_floor() {
        check((6, 6, 0), 2, 0, (0, 2));
        check((6, 5, 1), 2, 0, (0, 1));
        check((6, 4, 2), 2, 0, (0, 0));
        check((2, 2, 0), 5, 0, (0, 2));
    }

    #[test]
    fn what_does_not_work_goes_first_and_does_not_lower_the_floor() {
        check((6, 3, 0), 2, 3, (2, 0));
        check((6, 5, 0), 2, 1, (1, 1));
        check((6, 4, 0), 1, 2, (1, 0));
    }
}
