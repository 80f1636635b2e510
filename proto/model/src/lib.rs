//! The nouns of the platform: typed ids, jobs, nodes, allocations, evaluations, plans, services and replicated commands.
//!
//! Plain values only. No serialisation format, runtime or kernel interface is known here: `wire` owns the formats, and
//! every crate may point to this one. Times are values handed in by whoever observed them.

pub mod alloc;
pub mod capacity;
pub mod command;
pub mod deployment;
pub mod driver;
pub mod eval;
pub mod files;
pub mod garbage;
pub mod ids;
pub mod image;
pub mod job;
pub mod node;
pub mod outcome;
pub mod placement;
pub mod policy;
pub mod routing;
pub mod rules;
pub mod schedule;
pub mod service;
pub mod steering;
pub mod store;
pub mod time;
pub mod version;

pub use alloc::{
    AllocUpdate, AllocatedPort, Allocation, CheckState, ClientStatus, DesiredStatus, Health, TaskEvent, TaskPhase,
    TaskState,
};
pub use command::{Authority, Command, Envelope, JoinToken, Role, ServerRecord};
pub use deployment::{AllocDeployment, Deployment, DeploymentGroup, DeploymentStatus, DeploymentUpdate};
pub use driver::{ConfigKey, ConfigKind, ConfigValue, ExecConfig, Plugin, PluginConfig, TaskDriver};
pub use eval::{EvalStatus, EvalTrigger, Evaluation, PlacementFailure, Plan, PlannedStop};
pub use files::{
    Artifact, ArtifactMode, ChangeMode, ChangeScript, Template, TemplateSource, VolumeKind, VolumeMount, VolumeRequest,
};
pub use garbage::{Garbage, Retention};
pub use ids::{AllocId, DeploymentId, Epoch, EvalId, Generation, Index, JobId, NodeId, ServerId};
pub use image::{CatalogImage, Founding, JobRecord, Table};
pub use job::{
    DnsConfig, Job, JobKind, Lifecycle, LifecycleHook, LogConfig, Network, NetworkMode, PortRequest, Resources, Task,
    TaskGroup,
};
pub use node::{Drain, DriverStatus, Eligibility, Node, NodeResources, NodeStatus};
pub use outcome::{Applied, Refusal};
pub use placement::{Affinity, Constraint, Dependency, DeviceRequest, DisruptionBudget, Operator, Spread};
pub use policy::{
    DelayFunction, DisconnectPolicy, HealthCheck, Reconcile, RescheduleGiven, ReschedulePolicy, RestartMode,
    RestartPolicy, UpdateOrder, UpdatePolicy,
};
pub use routing::{RoutedNode, RoutedService, RoutingDelta, RoutingSnapshot};
pub use schedule::{Parameterized, PayloadRule, Periodic};
pub use service::{Check, CheckKind, CheckRestart, CheckTls, Instance, InstanceNetwork, OnUpdate, Service, Weights};
pub use steering::Steering;
pub use store::{Autopilot, KvChange, KvEntry, Variable, VariableChange};
pub use time::Timestamp;

/// The newest set of replicated commands this build understands; see [`command`].
pub const FEATURE_LEVEL: u32 = 2;

/// The version that hello messages and `Node.Version` carry.
pub const VERSION: &str = env!("CARGO_PKG_VERSION");
