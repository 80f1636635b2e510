//! Allocations: one placed group each, what is wanted of it and what its node reports.

use crate::deployment::AllocDeployment;
use crate::ids::{AllocId, EvalId, Index, JobId, NodeId};
use crate::job::{Job, TaskGroup};
use crate::service::{Check, OnUpdate, Service};
use crate::time::Timestamp;
use std::collections::BTreeMap;
use std::net::IpAddr;
use std::sync::Arc;

#[derive(Clone, Debug, PartialEq)]
pub struct Allocation {
    pub id: AllocId,
    pub eval_id: EvalId,
    pub node_id: NodeId,
    pub node_name: String,
    /// The job as it was when this was placed.
    pub job: Arc<Job>,
    pub group: String,
    /// The slot within the group, 0 to count - 1; live allocations of a group never share one.
    pub slot: u32,
    pub ports: Vec<AllocatedPort>,
    /// The allocation this one takes the place of.
    pub previous: Option<AllocId>,
    /// How often the slot was rescheduled after a failure.
    pub reschedules: u32,
    pub desired: DesiredStatus,
    pub desired_description: String,
    pub client: ClientStatus,
    pub client_description: String,
    pub task_states: BTreeMap<String, TaskState>,
    /// The allocation's own mesh address (network mode bridge), once the node has chosen it.
    pub address: Option<IpAddr>,
    /// By check id: `<service>/<check name>`.
    pub checks: BTreeMap<String, CheckState>,
    /// The deployment it is part of.
    pub deployment: Option<AllocDeployment>,
    pub created_at: Timestamp,
    pub modified_at: Timestamp,
    pub created_at_index: Index,
    pub modified_at_index: Index,
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub struct AllocatedPort {
    pub label: String,
    /// The node's port.
    pub host_port: u16,
    /// The port that the task listens on: inside the namespace for bridge, `host_port` for host.
    pub to: u16,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum DesiredStatus {
    Run,
    Stop,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ClientStatus {
    Pending,
    Running,
    Complete,
    Failed,
    /// Its node went down.
    Lost,
}

#[derive(Clone, Debug, PartialEq, Eq, Default)]
pub struct TaskState {
    pub phase: TaskPhase,
    pub failed: bool,
    pub restarts: u32,
    pub last_restart: Timestamp,
    pub started_at: Timestamp,
    pub finished_at: Timestamp,
    /// The newest ones, oldest first; at most [`TaskState::EVENTS_MAX`].
    pub events: Vec<TaskEvent>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Default)]
pub enum TaskPhase {
    #[default]
    Pending,
    Running,
    Dead,
}

/// `kind` is one of Nomad's event types: `Received`, `Started`, `Terminated`, `Restarting`, `Killing`, `Killed`, …
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct TaskEvent {
    pub at: Timestamp,
    pub kind: String,
    pub message: String,
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub struct CheckState {
    pub health: Health,
    /// At most 4 KiB.
    pub output: String,
    pub changed_at: Timestamp,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Health {
    Passing,
    Warning,
    Critical,
}

/// What a node reports of one of its allocations; always the whole state, so that a repeated or merged report is harmless.
#[derive(Clone, Debug, PartialEq)]
pub struct AllocUpdate {
    pub alloc_id: AllocId,
    pub client: ClientStatus,
    pub client_description: String,
    pub task_states: BTreeMap<String, TaskState>,
    pub address: Option<IpAddr>,
    pub checks: BTreeMap<String, CheckState>,
}

impl Allocation {
    pub fn job_id(&self) -> &JobId {
        &self.job.id
    }

    /// `<job>.<group>[<slot>]`, as Nomad names allocations.
    pub fn name(&self) -> String {
        format!("{}.{}[{}]", self.job.id, self.group, self.slot)
    }

    /// The group's specification at the time of placement.
    pub fn task_group(&self) -> Option<&TaskGroup> {
        self.job.group(&self.group)
    }

    /// Whether it holds resources on its node: it is to run or still runs.
    pub fn is_live(&self) -> bool {
        !self.client.is_terminal()
    }

    /// Not yet promoted or never to be: it runs beside the allocation that holds its slot.
    pub fn is_canary(&self) -> bool {
        self.deployment.as_ref().is_some_and(|deployment| deployment.canary)
    }

    pub fn port(&self, label: &str) -> Option<&AllocatedPort> {
        self.ports.iter().find(|port| port.label == label)
    }

    /// Running, and every check of its services says what it has to say for an update to go on.
    pub fn is_healthy(&self) -> bool {
        self.client == ClientStatus::Running
            && self.desired == DesiredStatus::Run
            && self.task_group().is_some_and(|group| {
                let checks = |service: &'_ Service| service.checks.iter().all(|check| self.suffices(service, check));
                group.all_services().all(checks)
            })
    }

    fn suffices(&self, service: &Service, check: &Check) -> bool {
        let health = self.checks.get(&check.id(&service.name)).map_or(Health::Critical, |state| state.health);
        match check.on_update {
            OnUpdate::RequireHealthy => health == Health::Passing,
            OnUpdate::IgnoreWarnings => health != Health::Critical,
            OnUpdate::Ignore => true,
        }
    }

    /// The worst of the service's checks: critical while one has not reported, passing when it has none.
    pub fn service_health(&self, service: &Service) -> Health {
        let reported =
            |check: &Check| self.checks.get(&check.id(&service.name)).map_or(Health::Critical, |state| state.health);
        service.checks.iter().map(reported).max().unwrap_or(Health::Passing)
    }
}

impl ClientStatus {
    pub fn is_terminal(self) -> bool {
        matches!(self, ClientStatus::Complete | ClientStatus::Failed | ClientStatus::Lost)
    }

    pub fn as_str(self) -> &'static str {
        match self {
            ClientStatus::Pending => "pending",
            ClientStatus::Running => "running",
            ClientStatus::Complete => "complete",
            ClientStatus::Failed => "failed",
            ClientStatus::Lost => "lost",
        }
    }
}

impl DesiredStatus {
    pub fn as_str(self) -> &'static str {
        match self {
            DesiredStatus::Run => "run",
            DesiredStatus::Stop => "stop",
        }
    }
}

impl TaskPhase {
    pub fn as_str(self) -> &'static str {
        match self {
            TaskPhase::Pending => "pending",
            TaskPhase::Running => "running",
            TaskPhase::Dead => "dead",
        }
    }
}

impl Health {
    pub fn as_str(self) -> &'static str {
        match self {
            Health::Passing => "passing",
            Health::Warning => "warning",
            Health::Critical => "critical",
        }
    }
}

impl TaskState {
    pub const EVENTS_MAX: usize = 10;

    /// Adds an event, forgetting the oldest beyond [`TaskState::EVENTS_MAX`].
    pub fn push_event(&mut self, event: TaskEvent) {
        self.events.push(event);
        if self.events.len() > Self::EVENTS_MAX {
            self.events.remove(0);
        }
    }
}
