//! Answers for the cluster's zone, as a pure function of a question and the pushed routing.
//!
//! ```text
//! bytes ─ respond ─┬─ message checks, EDNS, size limits ─> bytes
//!                  └─ answer(question, zone, seed) ─> Answer: code and records
//! ```
//!
//! Names are Consul's: `<service>.service[.<dc>]`, `<tag>.<service>.service`, `_service._tag.service`, `<node>.node`,
//! `<hex>.addr`; besides them `<service>` alone is the service's virtual address.

mod answer;
mod name;
mod respond;
#[cfg(test)]
mod tests;
mod zone;

pub use answer::{Answer, answer};
pub use respond::{Transport, respond, unavailable};
pub use zone::{Zone, ZoneError};
