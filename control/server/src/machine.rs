//! The catalog behind Raft's apply thread. Every applied command publishes a clone of the catalog, which costs pointers.

use crate::events::Events;
use catalog::Catalog;
use consensus::{RestoreError, StateMachine};
use model::Index;
use std::sync::Arc;
use tokio::sync::watch;

/// Ends the process: going on would let this server's state differ from the others'.
pub(crate) type Halt = Arc<dyn Fn(&str) + Send + Sync>;

pub(crate) struct Machine {
    catalog: Catalog,
    publish: watch::Sender<Catalog>,
    events: Arc<Events>,
    halt: Halt,
}

impl Machine {
    pub fn new(halt: Halt) -> (Self, watch::Receiver<Catalog>, Arc<Events>) {
        let (publish, watch) = watch::channel(Catalog::default());
        let events = Events::new();
        (Self { catalog: Catalog::default(), publish, events: Arc::clone(&events), halt }, watch, events)
    }
}

impl StateMachine for Machine {
    fn apply(&mut self, index: u64, data: &[u8]) -> Vec<u8> {
        let envelope = match wire::command::decode(data) {
            Ok(envelope) => envelope,
            Err(error) => {
                (self.halt)(&format!(
                    "the committed command at log index {index} cannot be understood ({error}); this server runs {}, \
                     upgrade it to the release that the other servers run",
                    model::VERSION
                ));
                return Vec::new();
            }
        };
        let before = self.catalog.clone();
        let outcome = self.catalog.apply(Index(index), &envelope);
        self.publish.send_replace(self.catalog.clone());
        self.events.record(&before, &self.catalog);
        wire::outcome::encode(&outcome)
    }

    fn snapshot(&self) -> Vec<u8> {
        wire::snapshot::encode(&self.catalog.image())
    }

    fn restore(&mut self, _index: u64, data: &[u8]) -> Result<(), RestoreError> {
        let image = wire::snapshot::decode(data).map_err(|error| RestoreError { reason: error.to_string() })?;
        self.catalog = Catalog::from_image(image);
        self.publish.send_replace(self.catalog.clone());
        self.events.forget(self.catalog.index().0);
        Ok(())
    }
}

/// Prints the reason and aborts at once; unwinding would let other threads answer meanwhile.
pub(crate) fn halt_process(reason: &str) {
    tracing::error!(reason, "this server must not go on");
    eprintln!("meshctl: this server must not go on: {reason}");
    std::process::abort();
}
