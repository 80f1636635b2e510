//! What happened lately: a bounded ring of changes, filled as commands are applied and read by whoever follows at their
//! own pace. A reader holds a place in the ring and no queue of its own; one that the ring has overtaken is told so.

use catalog::{Catalog, Change};
use std::collections::VecDeque;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use tokio::sync::watch;

/// Changes kept. Each is two pointers to rows, of which the newer is the state's own.
const CHANGES_MAX: usize = 8192;

/// What one command changed.
pub(crate) struct Batch {
    pub index: u64,
    pub changes: Vec<Change>,
}

pub(crate) struct Events {
    ring: Mutex<Ring>,
    newest: watch::Sender<u64>,
    changes_max: usize,
}

#[derive(Default)]
struct Ring {
    batches: VecDeque<Arc<Batch>>,
    changes: usize,
    /// Everything up to here is not in the ring any more, or never was.
    floor: u64,
}

/// A place in the ring.
pub(crate) struct Reader {
    events: Arc<Events>,
    newest: watch::Receiver<u64>,
    seen: u64,
}

/// The ring went on without the reader, or the state was replaced.
#[derive(Debug, PartialEq, Eq, thiserror::Error)]
#[error(
    "events after index {seen} are gone: the reader was too slow, or the state was restored; list what you follow again, \
     then go on from the index of that answer"
)]
pub(crate) struct Overtaken {
    pub seen: u64,
}

impl Events {
    pub fn new() -> Arc<Self> {
        Self::with_room(CHANGES_MAX)
    }

    fn with_room(changes_max: usize) -> Arc<Self> {
        Arc::new(Self { ring: Mutex::default(), newest: watch::Sender::new(0), changes_max })
    }

    /// The command at `newer.index()` made `newer` out of `older`.
    pub fn record(&self, older: &Catalog, newer: &Catalog) {
        let index = newer.index().0;
        if newer.restored_at() != older.restored_at() {
            return self.forget(index);
        }
        let changes = newer.changes_since(older);
        if changes.is_empty() {
            return;
        }
        let mut ring = self.lock();
        ring.changes += changes.len();
        ring.batches.push_back(Arc::new(Batch { index, changes }));
        while ring.changes > self.changes_max
            && let Some(oldest) = ring.batches.pop_front()
        {
            ring.changes -= oldest.changes.len();
            ring.floor = oldest.index;
        }
        drop(ring);
        self.newest.send_replace(index);
    }

    /// The state at `index` did not come about by commands that this server applied.
    pub fn forget(&self, index: u64) {
        *self.lock() = Ring { floor: index, ..Ring::default() };
        self.newest.send_replace(index);
    }

    /// From `index` on, or from the oldest that is left; 0 is from now on.
    pub fn read_from(self: &Arc<Self>, index: u64) -> Reader {
        let newest = self.newest.subscribe();
        let seen = match index {
            0 => *newest.borrow(),
            index => (index - 1).max(self.lock().floor),
        };
        Reader { events: Arc::clone(self), newest, seen }
    }

    fn lock(&self) -> MutexGuard<'_, Ring> {
        self.ring.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Reader {
    /// The next batch; waits for one. Nothing is lost when the wait is given up.
    pub async fn next(&mut self) -> Result<Arc<Batch>, Overtaken> {
        loop {
            self.newest.borrow_and_update();
            if let Some(batch) = self.take()? {
                return Ok(batch);
            }
            if self.newest.changed().await.is_err() {
                return std::future::pending().await;
            }
        }
    }

    fn take(&mut self) -> Result<Option<Arc<Batch>>, Overtaken> {
        let ring = self.events.lock();
        if ring.floor > self.seen {
            return Err(Overtaken { seen: self.seen });
        }
        let at = ring.batches.partition_point(|batch| batch.index <= self.seen);
        let batch = ring.batches.get(at).cloned();
        drop(ring);
        self.seen = batch.as_ref().map_or(self.seen, |batch| batch.index);
        Ok(batch)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use model::{CatalogImage, Index};

    fn states(count: u64) -> Vec<Catalog> {
        let eval = |number: u64| model::Evaluation {
            id: model::EvalId::from_random(u128::from(number)),
            ..crate::sessions::new_eval(model::JobId("web".to_owned()), 50, model::EvalTrigger::JobRegister)
        };
        let state = |index: u64| {
            let evals = (1..=index).map(eval).collect();
            Catalog::from_image(CatalogImage { index: Index(index), evals, ..CatalogImage::default() })
        };
        (0..=count).map(state).collect()
    }

    fn indices(reader: &mut Reader) -> Result<Vec<u64>, Overtaken> {
        std::iter::from_fn(|| reader.take().map(|batch| batch.map(|batch| batch.index)).transpose()).collect()
    }

    #[test]
    fn readers_see_every_batch_once_in_order_or_hear_that_they_missed_some() {
        let states = states(20);
        let events = Events::with_room(100);
        let mut from_start = events.read_from(1);
        let mut from_now = events.read_from(0);
        // Each state has every evaluation anew, for their times differ: batch n has n changes.
        for pair in states[..=10].windows(2) {
            events.record(&pair[0], &pair[1]);
        }
        assert_eq!(indices(&mut from_start).unwrap(), (1..=10).collect::<Vec<_>>());
        assert!(indices(&mut from_start).unwrap().is_empty());
        assert_eq!(indices(&mut from_now).unwrap().len(), 10);
        assert_eq!(indices(&mut events.read_from(7)).unwrap(), [7, 8, 9, 10]);
        assert!(indices(&mut events.read_from(0)).unwrap().is_empty());
        for pair in states[10..].windows(2) {
            events.record(&pair[0], &pair[1]);
        }
        assert!(events.lock().changes <= 100);
        assert_eq!(indices(&mut from_now), Err(Overtaken { seen: 10 }));
        // Resuming from what is gone starts at the oldest that is left.
        assert_eq!(indices(&mut events.read_from(3)).unwrap(), [16, 17, 18, 19, 20]);
        let mut reader = events.read_from(20);
        events.forget(30);
        assert_eq!(indices(&mut reader), Err(Overtaken { seen: 19 }));
    }
}
