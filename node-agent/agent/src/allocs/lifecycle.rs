//! When the tasks of an allocation run: hooks, sidecars and the order of stopping, as pure rules.
//!
//! ```text
//!  prestart ──done──┐                                      ┌─ leader ─► all others ─► sidecars ─► poststop
//!  prestart sidecar ┴─runs──► main ──all run──► poststart ─┘  (stopping, one wave after the other)
//! ```

use model::{JobKind, LifecycleHook, Task};

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Role {
    /// Ends before the main tasks start.
    Prestart,
    PrestartSidecar,
    Main,
    /// Starts once all main tasks run, and ends by itself.
    Poststart,
    PoststartSidecar,
    /// Starts when everything else is over.
    Poststop,
}

impl Role {
    pub fn of(task: &Task) -> Self {
        let Some(lifecycle) = task.lifecycle else { return Role::Main };
        match (lifecycle.hook, lifecycle.sidecar) {
            (LifecycleHook::Prestart, false) => Role::Prestart,
            (LifecycleHook::Prestart, true) => Role::PrestartSidecar,
            (LifecycleHook::Poststart, false) => Role::Poststart,
            (LifecycleHook::Poststart, true) => Role::PoststartSidecar,
            (LifecycleHook::Poststop, _) => Role::Poststop,
        }
    }

    /// Whether an end without an error is no reason to rest.
    pub fn restarts_after_success(self, kind: JobKind) -> bool {
        match self {
            Role::Prestart | Role::Poststart | Role::Poststop => false,
            Role::PrestartSidecar | Role::PoststartSidecar => true,
            Role::Main => !kind.ends(),
        }
    }

    /// Lower waves are stopped first, each when the one before is dead; poststop tasks are not stopped at all.
    pub fn stop_wave(self, leader: bool) -> u8 {
        match self {
            _ if leader => 0,
            Role::Prestart | Role::Main | Role::Poststart => 1,
            Role::PrestartSidecar | Role::PoststartSidecar => 2,
            Role::Poststop => u8::MAX,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_work_that_is_to_end_rests_after_a_success() {
        let service = |role: Role| role.restarts_after_success(JobKind::Service);
        assert!(service(Role::Main) && service(Role::PrestartSidecar) && service(Role::PoststartSidecar));
        assert!(!service(Role::Prestart) && !service(Role::Poststart) && !service(Role::Poststop));
        for kind in [JobKind::Batch, JobKind::Sysbatch] {
            assert!(!Role::Main.restarts_after_success(kind));
            assert!(Role::PrestartSidecar.restarts_after_success(kind));
        }
        assert!(Role::Main.restarts_after_success(JobKind::System));
    }
}
