//! Alive, suspect, disconnected, down: who probes whom, and what links and probes say of a node.
//!
//! ```text
//!  agents:  Ring::targets ─> Prober ── probe ──> the peer's kernel program, which answers without its agent
//!                              └ report, when it changes ─> the server that holds the session
//!  leader:  links and reports of all servers ─> Judge ─> verdicts, which are proposed as commands
//! ```
//!
//! Values in, values out: times are durations on the caller's monotonic clock, so wall clocks may jump, and `tests/sim` runs
//! the same code through partitions, crashes and elections.

mod judge;
mod prober;
mod ring;

pub use judge::{Judge, LinkState, Rules, Seen, Storm, Verdict};
pub use prober::{Prober, Report, Sent};
pub use ring::{PROBERS, Ring};
