//! The one thread that writes vote and log, in order. It takes everything that is waiting into one fsync.

use std::sync::mpsc::{Receiver, Sender};

use crate::api::{OnFatal, StoreError};
use crate::driver::Input;
use crate::store::{LogStore, Write};

/// Ends when nobody can send writes any more. After an error nothing more is acknowledged: what is on disk is unknown.
pub(crate) fn run(mut store: Box<dyn LogStore>, writes: Receiver<Write>, driver: Sender<Input>, on_fatal: OnFatal) {
    while let Ok(first) = writes.recv() {
        match write_all(store.as_mut(), first, &writes) {
            Ok(last) => drop(driver.send(Input::Persisted(last))),
            Err(error) => {
                on_fatal(&describe(&error));
                return drop(driver.send(Input::Stop));
            }
        }
    }
}

/// Returns the last write that is now on disk.
fn write_all(store: &mut dyn LogStore, first: Write, writes: &Receiver<Write>) -> Result<u64, StoreError> {
    let mut last = first.id;
    store.write(first)?;
    for write in writes.try_iter() {
        last = write.id;
        store.write(write)?;
    }
    store.sync()?;
    Ok(last)
}

fn describe(error: &StoreError) -> String {
    let cause = std::error::Error::source(error).map(|cause| format!(": {cause}")).unwrap_or_default();
    format!("{error}{cause}. The log on disk is in doubt; the server reads it anew when it is started again")
}
