//! What may be forgotten, and after how long.

use crate::ids::{AllocId, DeploymentId, EvalId, JobId, NodeId};
use std::time::Duration;

/// How long what has ended stays.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Retention {
    /// Evaluations, and ended allocations that no slot needs to remember.
    pub eval: Duration,
    /// The same of batch jobs.
    pub batch_eval: Duration,
    /// Jobs that are dead, with all that is theirs.
    pub job: Duration,
    pub deployment: Duration,
    /// Nodes that are down and hold nothing.
    pub node: Duration,
}

/// What is to be forgotten now. The catalog looks at each again and keeps what `retention` protects.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Garbage {
    pub retention: Retention,
    pub evals: Vec<EvalId>,
    pub allocs: Vec<AllocId>,
    pub deployments: Vec<DeploymentId>,
    pub jobs: Vec<JobId>,
    pub nodes: Vec<NodeId>,
}

impl Retention {
    /// Nomad's.
    pub const DEFAULT: Retention = Retention {
        eval: Duration::from_secs(3600),
        batch_eval: Duration::from_secs(24 * 3600),
        job: Duration::from_secs(4 * 3600),
        deployment: Duration::from_secs(3600),
        node: Duration::from_secs(24 * 3600),
    };

    /// Whatever has ended goes at once: `system gc`.
    pub const NONE: Retention = Retention {
        eval: Duration::ZERO,
        batch_eval: Duration::ZERO,
        job: Duration::ZERO,
        deployment: Duration::ZERO,
        node: Duration::ZERO,
    };
}

impl Garbage {
    pub fn none(retention: Retention) -> Self {
        let (evals, allocs, deployments, jobs, nodes) = Default::default();
        Self { retention, evals, allocs, deployments, jobs, nodes }
    }

    pub fn len(&self) -> usize {
        self.evals.len() + self.allocs.len() + self.deployments.len() + self.jobs.len() + self.nodes.len()
    }

    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }
}
