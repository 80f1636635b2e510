//! The JSON that Nomad's clients write and read: names in PascalCase, durations in nanoseconds.
//!
//! Reading a job is strict where it matters: a field that Nomad acts on and this version does not is refused by its path
//! ([`JobProblem::NotBuilt`]) unless it holds what it would have by default. Keys that Nomad does not know either are
//! ignored, as Nomad's own decoder ignores them: clients of other versions send them.

mod config;
mod diff;
mod job;
mod read_files;
mod read_job;
mod read_placement;
mod read_policy;
mod views;
mod write_job;

pub use diff::{DiffType, FieldDiff, GroupDiff, JobDiff, ObjectDiff, TaskDiff, diff_jobs};
pub use job::*;
pub use read_job::{JobProblem, JobRefusal};
pub use views::*;
