//! What agents are told of services and nodes, made once for all of them: the state of the newest generation, and the step to
//! it from the one before. A session holds what it has sent, so a slow one takes a longer step and nothing waits for it.

use catalog::Catalog;
use model::{NodeStatus, RoutingDelta, RoutingSnapshot};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

#[derive(Default)]
pub(crate) struct RoutingFeed {
    made: Mutex<Made>,
}

#[derive(Default)]
struct Made {
    newest: Option<Arc<RoutingSnapshot>>,
    /// The step that was asked for last: most sessions are at the same place.
    step: Option<Arc<RoutingDelta>>,
}

impl RoutingFeed {
    /// The state of the catalog's generation.
    pub fn state(&self, catalog: &Catalog) -> Arc<RoutingSnapshot> {
        let mut made = self.lock();
        let generation = catalog.routing_generation();
        match &made.newest {
            Some(newest) if newest.generation == generation => Arc::clone(newest),
            _ => Arc::clone(made.newest.insert(Arc::new(catalog.routing()))),
        }
    }

    /// What leads from one state to another; `None` when the whole is not much larger.
    pub fn step(&self, from: &RoutingSnapshot, to: &RoutingSnapshot) -> Option<Arc<RoutingDelta>> {
        let mut made = self.lock();
        let known = made.step.clone();
        let fits = |step: &Arc<RoutingDelta>| step.base == from.generation && step.generation == to.generation;
        let step = match known.filter(fits) {
            Some(step) => step,
            None => Arc::clone(made.step.insert(Arc::new(from.delta_to(to)))),
        };
        let parts = |nodes: usize, services: usize| nodes + services;
        let whole = parts(to.nodes.len(), to.services.len());
        (parts(step.nodes.len() + step.nodes_gone.len(), step.services.len() + step.services_gone.len()) * 2 < whole)
            .then_some(step)
    }

    fn lock(&self) -> MutexGuard<'_, Made> {
        self.made.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// As agents of the first level understand it.
pub(crate) fn in_old_words(state: &RoutingSnapshot) -> RoutingSnapshot {
    let mut state = state.clone();
    for node in &mut state.nodes {
        if node.status == NodeStatus::Disconnected {
            node.status = NodeStatus::Down;
        }
    }
    state
}
