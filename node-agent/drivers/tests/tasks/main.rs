//! Real tasks with real supervisors, as root: what every driver must do, what exec adds, and what happens when the agent or
//! the supervisor dies.

mod common;
mod conformance;
mod containers;
mod engines;
mod escapes;
mod isolation;
mod java;
mod survival;
