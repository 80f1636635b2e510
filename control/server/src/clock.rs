//! The clock and the dice: everything replicated or planned gets its time and randomness from here, as values.

use model::Timestamp;
use std::time::{SystemTime, UNIX_EPOCH};

pub(crate) fn now() -> Timestamp {
    let since_epoch = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    Timestamp::NEVER.plus(since_epoch)
}

pub(crate) fn random_bits() -> u128 {
    rand::random()
}

/// From 0 up to 1.
pub(crate) fn random_fraction() -> f64 {
    rand::random()
}

pub(crate) fn random_seed() -> u64 {
    rand::random()
}
