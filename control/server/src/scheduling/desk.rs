//! What workers share: the broker and the view, both kept up with the catalog.

use super::view::View;
use crate::clock;
use crate::member::Member;
use broker::{Broker, Delivery, Done, Rules};
use catalog::{Catalog, Change, Row};
use model::{Allocation, EvalId, Evaluation, Index};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, RwLock, RwLockReadGuard, RwLockWriteGuard};
use std::time::Duration;
use tokio::sync::{Notify, Semaphore};

pub(super) struct Desk {
    pub(super) member: Arc<Member>,
    /// Locked after the view where both are.
    broker: Mutex<Broker>,
    view: RwLock<View>,
    /// The index of the view's catalog.
    seen: AtomicU64,
    ready: Notify,
    /// Threads that plan at once.
    pub(super) planning: Semaphore,
}

impl Desk {
    pub(super) fn open(member: Arc<Member>, term: u64) -> Self {
        let view = View::of(member.snapshot());
        let mut broker = Broker::new(Rules::DEFAULT, term, view.catalog.index());
        tell_all(&mut broker, &view);
        let cores = std::thread::available_parallelism().map_or(1, usize::from);
        Self {
            member,
            broker: Mutex::new(broker),
            seen: AtomicU64::new(view.catalog.index().0),
            view: RwLock::new(view),
            ready: Notify::new(),
            planning: Semaphore::new(cores.max(2)),
        }
    }

    /// Brings view and broker up to the newest state. Whoever needs that may call it.
    pub(super) async fn sync(self: &Arc<Self>) {
        let desk = Arc::clone(self);
        // It waits for plans that are being made, which is nothing for a thread that others share.
        if tokio::task::spawn_blocking(move || desk.sync_here()).await.is_err() {
            tracing::error!("following the state failed; this is a defect");
        }
    }

    /// [`Desk::sync`], unless the view holds the state at `index` already.
    pub(super) async fn sync_to(self: &Arc<Self>, index: Index) {
        if self.seen.load(Ordering::Acquire) < index.0 {
            self.sync().await;
        }
    }

    /// Gives back room that was reserved.
    pub(super) async fn release(self: &Arc<Self>, placements: Vec<Arc<Allocation>>) {
        if placements.is_empty() {
            return;
        }
        let desk = Arc::clone(self);
        let released = tokio::task::spawn_blocking(move || desk.view_mut().release(&placements));
        if released.await.is_err() {
            tracing::error!("giving back room failed; this is a defect");
        }
    }

    fn sync_here(&self) {
        let mut view = self.view_mut();
        let newest = self.member.snapshot();
        let mut broker = self.broker();
        if newest.index() > view.catalog.index() {
            self.follow(&mut view, &mut broker, newest);
            self.seen.store(view.catalog.index().0, Ordering::Release);
        }
        broker.tick(clock::now());
        let anything = broker.has_ready();
        drop((broker, view));
        if anything {
            self.ready.notify_one();
        }
    }

    fn follow(&self, view: &mut View, broker: &mut Broker, newest: Catalog) {
        if newest.restored_at() != view.catalog.restored_at() {
            *view = View::of(newest);
            *broker = Broker::new(Rules::DEFAULT, self.member.status.borrow().term, view.catalog.index());
            return tell_all(broker, view);
        }
        let changes = newest.changes_since(&view.catalog);
        view.follow(newest, &changes);
        let (index, now) = (view.catalog.index(), clock::now());
        for change in &changes {
            if let Some(capacity) = view.capacity_in(change) {
                broker.capacity_changed(capacity, index);
            }
            match change {
                Change::Evaluation(Row { after: Some(eval), .. }) => broker.observe(eval, now, || view.interest(eval)),
                Change::Evaluation(Row { before: Some(eval), .. }) => broker.observe_end(eval.id),
                _ => {}
            }
        }
    }

    /// Waits for something to do.
    pub(super) async fn next(&self) -> Delivery {
        loop {
            let ready = self.ready.notified();
            if let Some(delivery) = self.dequeue() {
                return delivery;
            }
            ready.await;
        }
    }

    fn dequeue(&self) -> Option<Delivery> {
        let mut broker = self.broker();
        let delivery = broker.dequeue(clock::now());
        if broker.has_ready() {
            self.ready.notify_one();
        }
        delivery
    }

    pub(super) fn ack(&self, delivery: &Delivery, done: Done) {
        let mut broker = self.broker();
        if let Err(stale) = broker.ack(delivery.eval_id, delivery.token, done) {
            tracing::info!(%stale, "a worker was slow");
        }
        if broker.has_ready() {
            self.ready.notify_one();
        }
    }

    pub(super) fn nack(&self, delivery: &Delivery) {
        // The broker may have given the delivery up already: then there is nothing to give back.
        let _ = self.broker().nack(delivery.eval_id, delivery.token, clock::now());
    }

    /// Whether the delivery still counts.
    pub(super) fn extend(&self, delivery: &Delivery) -> bool {
        self.broker().extend(delivery.eval_id, delivery.token, clock::now()).is_ok()
    }

    pub(super) fn failed(&self) -> Vec<Evaluation> {
        let failed: Vec<EvalId> = self.broker().failed().collect();
        let catalog = self.member.snapshot();
        failed.into_iter().filter_map(|id| catalog.eval(id)).map(|eval| Evaluation::clone(eval)).collect()
    }

    pub(super) fn until_next_due(&self) -> Duration {
        let due = self.broker().next_due();
        due.map_or(Duration::MAX, |due| due.since(clock::now()))
    }

    pub(super) fn view(&self) -> RwLockReadGuard<'_, View> {
        self.view.read().unwrap_or_else(PoisonError::into_inner)
    }

    pub(super) fn view_mut(&self) -> RwLockWriteGuard<'_, View> {
        self.view.write().unwrap_or_else(PoisonError::into_inner)
    }

    fn broker(&self) -> MutexGuard<'_, Broker> {
        self.broker.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

fn tell_all(broker: &mut Broker, view: &View) {
    let now = clock::now();
    view.catalog.evals().for_each(|eval| broker.observe(eval, now, || view.interest(eval)));
}
