//! What operators set for the whole cluster.

use model::JobKind;

#[derive(Clone, Copy, Debug, PartialEq, Eq, Default)]
pub struct Settings {
    pub algorithm: Algorithm,
    pub preemption: Preemption,
}

/// Whether nodes are filled one after the other or kept evenly idle.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Default)]
pub enum Algorithm {
    #[default]
    BinPack,
    Spread,
}

/// Which kinds of jobs may take the place of less important allocations; by default system jobs alone.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Preemption {
    pub service: bool,
    pub batch: bool,
    pub system: bool,
    pub sysbatch: bool,
}

impl Default for Preemption {
    fn default() -> Self {
        Self { service: false, batch: false, system: true, sysbatch: false }
    }
}

impl Preemption {
    pub fn is_allowed(self, kind: JobKind) -> bool {
        match kind {
            JobKind::Service => self.service,
            JobKind::Batch => self.batch,
            JobKind::System => self.system,
            JobKind::Sysbatch => self.sysbatch,
        }
    }
}

impl Algorithm {
    pub const ALL: [Algorithm; 2] = [Algorithm::BinPack, Algorithm::Spread];

    pub fn as_str(self) -> &'static str {
        match self {
            Algorithm::BinPack => "binpack",
            Algorithm::Spread => "spread",
        }
    }

    pub fn parse(text: &str) -> Option<Self> {
        Self::ALL.into_iter().find(|algorithm| algorithm.as_str() == text)
    }
}
