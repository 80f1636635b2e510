//! What the servers answer about nodes, allocations, evaluations, services and themselves.

use super::diff::JobDiff;
use super::job::{Job, NetworkResource, Port};
use model::{Allocation as ModelAlloc, Evaluation as ModelEval, Instance, Node as ModelNode};
use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;
use std::net::IpAddr;

macro_rules! view {
    ($(#[$doc:meta])* $name:ident { $($(#[$field_doc:meta])* $field:ident: $type:ty),* $(,)? }) => {
        $(#[$doc])*
        #[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
        #[serde(default, rename_all = "PascalCase")]
        pub struct $name {
            $($(#[$field_doc])* pub $field: $type,)*
        }
    };
}

view!(
    /// `PUT /v1/jobs` and `/v1/job/<id>`.
    JobRegisterRequest {
    job: Option<Job>,
    enforce_index: bool,
    job_modify_index: u64,
    preserve_counts: bool,
    #[serde(skip_serializing_if = "Option::is_none")]
    submission: Option<JobSubmission>,
});
view!(JobSubmission { source: String, format: String });
view!(JobRegisterResponse {
    #[serde(rename = "EvalID")]
    eval_id: String,
    eval_create_index: u64,
    job_modify_index: u64,
    warnings: String,
    index: u64,
    last_contact: u64,
    known_leader: bool,
});
view!(
    /// `PUT /v1/job/<id>/plan`.
    JobPlanRequest { job: Option<Job>, diff: bool, });
view!(JobPlanResponse {
    annotations: PlanAnnotations,
    #[serde(rename = "FailedTGAllocs")]
    failed_tg_allocs: Option<BTreeMap<String, AllocationMetric>>,
    created_evals: Vec<Evaluation>,
    diff: Option<JobDiff>,
    job_modify_index: u64,
    next_periodic_launch: Option<String>,
    warnings: String,
});
view!(PlanAnnotations {
    #[serde(rename = "DesiredTGUpdates")]
    desired_tg_updates: BTreeMap<String, DesiredUpdates>,
});
view!(DesiredUpdates {
    ignore: u32,
    place: u32,
    migrate: u32,
    stop: u32,
    in_place_update: u32,
    destructive_update: u32,
    canary: u32,
    preemptions: u32,
});
view!(
    /// `PUT /v1/job/<id>/scale`.
    JobScaleRequest {
    count: Option<i64>,
    target: BTreeMap<String, String>,
    message: String,
});
view!(
    /// `PUT /v1/job/<id>/revert`.
    JobRevertRequest {
    #[serde(rename = "JobID")]
    job_id: String,
    job_version: u64,
    enforce_prior_version: Option<u64>,
});
view!(
    /// `PUT /v1/node/<id>/drain`: no `DrainSpec` ends the drain.
    NodeDrainRequest { drain_spec: Option<DrainSpec>, mark_eligible: bool, });
view!(
    /// Nanoseconds; 0 is no deadline, -1 is at once.
    DrainSpec { deadline: i64, ignore_system_jobs: bool, });
view!(
    /// `PUT /v1/node/<id>/eligibility`.
    NodeEligibilityRequest { eligibility: String, });
view!(
    /// `PUT /v1/deployment/promote/<id>`.
    DeploymentPromoteRequest { all: bool, groups: Option<Vec<String>>, });
view!(
    /// `PUT /v1/deployment/pause/<id>`.
    DeploymentPauseRequest { pause: bool, });
view!(
    /// `PUT /v1/deployment/allocation-health/<id>`.
    DeploymentHealthRequest {
    #[serde(rename = "HealthyAllocationIDs")]
    healthy_allocation_ids: Option<Vec<String>>,
    #[serde(rename = "UnhealthyAllocationIDs")]
    unhealthy_allocation_ids: Option<Vec<String>>,
});
view!(
    /// What a change of a deployment answers.
    DeploymentUpdateResponse {
    #[serde(rename = "EvalID")]
    eval_id: String,
    eval_create_index: u64,
    deployment_modify_index: u64,
    reverted_job_version: Option<u64>,
});
view!(JobDeregisterResponse {
    #[serde(rename = "EvalID")]
    eval_id: String,
    eval_create_index: u64,
    job_modify_index: u64,
    index: u64,
    last_contact: u64,
    known_leader: bool,
});
view!(
    /// `PUT /v1/jobs/parse`.
    JobsParseRequest {
    #[serde(rename = "JobHCL")]
    job_hcl: String,
    canonicalize: bool,
    variables: String,
});
view!(JobListStub {
    #[serde(rename = "ID")]
    id: String,
    #[serde(rename = "ParentID")]
    parent_id: String,
    name: String,
    namespace: String,
    datacenters: Vec<String>,
    node_pool: String,
    #[serde(rename = "Type")]
    kind: String,
    priority: i64,
    periodic: bool,
    parameterized_job: bool,
    stop: bool,
    status: String,
    status_description: String,
    version: u64,
    job_summary: Option<JobSummary>,
    create_index: u64,
    modify_index: u64,
    job_modify_index: u64,
    submit_time: u64,
    meta: Option<BTreeMap<String, String>>,
});
view!(JobSummary {
    #[serde(rename = "JobID")]
    job_id: String,
    namespace: String,
    summary: BTreeMap<String, TaskGroupSummary>,
    children: JobChildrenSummary,
    create_index: u64,
    modify_index: u64,
});
view!(JobChildrenSummary { pending: i64, running: i64, dead: i64 });
view!(TaskGroupSummary {
    queued: u32,
    complete: u32,
    failed: u32,
    running: u32,
    starting: u32,
    lost: u32,
    unknown: u32,
});
view!(Evaluation {
    #[serde(rename = "ID")]
    id: String,
    priority: i64,
    #[serde(rename = "Type")]
    kind: String,
    triggered_by: String,
    namespace: String,
    #[serde(rename = "JobID")]
    job_id: String,
    job_modify_index: u64,
    #[serde(rename = "NodeID")]
    node_id: String,
    #[serde(rename = "DeploymentID")]
    deployment_id: String,
    status: String,
    status_description: String,
    wait: u64,
    next_eval: String,
    previous_eval: String,
    blocked_eval: String,
    #[serde(rename = "FailedTGAllocs")]
    failed_tg_allocs: Option<BTreeMap<String, AllocationMetric>>,
    class_eligibility: Option<BTreeMap<String, bool>>,
    queued_allocations: BTreeMap<String, u32>,
    snapshot_index: u64,
    create_index: u64,
    modify_index: u64,
    create_time: u64,
    modify_time: u64,
});
view!(AllocationMetric {
    nodes_evaluated: u32,
    nodes_filtered: u32,
    nodes_in_pool: u32,
    nodes_available: BTreeMap<String, u32>,
    class_filtered: Option<BTreeMap<String, u32>>,
    constraint_filtered: Option<BTreeMap<String, u32>>,
    nodes_exhausted: u32,
    class_exhausted: Option<BTreeMap<String, u32>>,
    dimension_exhausted: Option<BTreeMap<String, u32>>,
    coalesced_failures: u32,
    allocation_time: u64,
});
view!(Allocation {
    #[serde(rename = "ID")]
    id: String,
    #[serde(rename = "EvalID")]
    eval_id: String,
    name: String,
    namespace: String,
    #[serde(rename = "NodeID")]
    node_id: String,
    node_name: String,
    #[serde(rename = "JobID")]
    job_id: String,
    job: Option<Job>,
    task_group: String,
    allocated_resources: Option<AllocatedResources>,
    desired_status: String,
    desired_description: String,
    client_status: String,
    client_description: String,
    task_states: BTreeMap<String, TaskState>,
    previous_allocation: String,
    next_allocation: String,
    #[serde(rename = "DeploymentID")]
    deployment_id: String,
    deployment_status: Option<serde_json::Value>,
    network_status: Option<AllocNetworkStatus>,
    reschedule_tracker: Option<RescheduleTracker>,
    followup_eval_id: String,
    create_index: u64,
    modify_index: u64,
    alloc_modify_index: u64,
    create_time: u64,
    modify_time: u64,
});
view!(AllocationListStub {
    #[serde(rename = "ID")]
    id: String,
    #[serde(rename = "EvalID")]
    eval_id: String,
    name: String,
    namespace: String,
    #[serde(rename = "NodeID")]
    node_id: String,
    node_name: String,
    #[serde(rename = "JobID")]
    job_id: String,
    job_type: String,
    job_version: u64,
    task_group: String,
    allocated_resources: Option<AllocatedResources>,
    desired_status: String,
    desired_description: String,
    client_status: String,
    client_description: String,
    task_states: BTreeMap<String, TaskState>,
    deployment_status: Option<serde_json::Value>,
    reschedule_tracker: Option<RescheduleTracker>,
    preempted_allocations: Option<Vec<String>>,
    preempted_by_allocation: String,
    followup_eval_id: String,
    create_index: u64,
    modify_index: u64,
    create_time: u64,
    modify_time: u64,
});
view!(AllocNetworkStatus { interface_name: String, address: String });
view!(RescheduleTracker { events: Vec<serde_json::Value>, });
view!(AllocatedResources {
    tasks: BTreeMap<String, AllocatedTaskResources>,
    shared: AllocatedSharedResources,
});
view!(AllocatedTaskResources { cpu: AllocatedCpu, memory: AllocatedMemory });
view!(AllocatedCpu { cpu_shares: u64 });
view!(AllocatedMemory {
    #[serde(rename = "MemoryMB")]
    memory_mb: u64,
    #[serde(rename = "MemoryMaxMB")]
    memory_max_mb: u64,
});
view!(AllocatedSharedResources {
    #[serde(rename = "DiskMB")]
    disk_mb: u64,
    networks: Option<Vec<NetworkResource>>,
    ports: Vec<PortMapping>,
});
view!(PortMapping {
    label: String,
    value: u16,
    to: u16,
    #[serde(rename = "HostIP")]
    host_ip: String,
});
view!(TaskState {
    state: String,
    failed: bool,
    restarts: u32,
    last_restart: Option<String>,
    started_at: Option<String>,
    finished_at: Option<String>,
    events: Vec<TaskEvent>,
});
view!(TaskEvent {
    #[serde(rename = "Type")]
    kind: String,
    time: u64,
    display_message: String,
    message: String,
    details: BTreeMap<String, String>,
});
view!(NodeListStub {
    #[serde(rename = "ID")]
    id: String,
    address: String,
    attributes: Option<BTreeMap<String, String>>,
    datacenter: String,
    name: String,
    node_class: String,
    node_pool: String,
    version: String,
    drain: bool,
    scheduling_eligibility: String,
    status: String,
    status_description: String,
    drivers: BTreeMap<String, DriverInfo>,
    create_index: u64,
    modify_index: u64,
});
view!(DriverInfo { detected: bool, healthy: bool, health_description: String });
view!(Node {
    #[serde(rename = "ID")]
    id: String,
    name: String,
    datacenter: String,
    node_class: String,
    node_pool: String,
    #[serde(rename = "HTTPAddr")]
    http_addr: String,
    attributes: BTreeMap<String, String>,
    meta: BTreeMap<String, String>,
    drivers: BTreeMap<String, DriverInfo>,
    node_resources: NodeResources,
    drain: bool,
    drain_strategy: Option<serde_json::Value>,
    scheduling_eligibility: String,
    status: String,
    status_description: String,
    status_updated_at: u64,
    create_index: u64,
    modify_index: u64,
});
view!(NodeResources { cpu: NodeCpu, memory: NodeMemory, disk: NodeDisk });
view!(NodeCpu { cpu_shares: u64 });
view!(NodeMemory {
    #[serde(rename = "MemoryMB")]
    memory_mb: u64,
});
view!(NodeDisk {
    #[serde(rename = "DiskMB")]
    disk_mb: u64,
});
view!(
    /// `GET /v1/services`: one entry per namespace.
    ServiceRegistrationListStub { namespace: String, services: Vec<ServiceStub>, });
view!(ServiceStub { service_name: String, tags: Vec<String>, });
view!(
    /// `GET /v1/service/<name>`: one entry per instance.
    ServiceRegistration {
    #[serde(rename = "ID")]
    id: String,
    service_name: String,
    namespace: String,
    #[serde(rename = "NodeID")]
    node_id: String,
    datacenter: String,
    #[serde(rename = "JobID")]
    job_id: String,
    #[serde(rename = "AllocID")]
    alloc_id: String,
    tags: Vec<String>,
    address: String,
    port: u16,
    create_index: u64,
    modify_index: u64,
});
view!(
    /// `GET /v1/agent/members`.
    AgentMembers { server_name: String, server_region: String, #[serde(rename = "ServerDC")] server_dc: String, members: Vec<AgentMember>, });
view!(AgentMember {
    name: String,
    addr: String,
    port: u16,
    tags: BTreeMap<String, String>,
    status: String,
    protocol_min: u8,
    protocol_max: u8,
    protocol_cur: u8,
    delegate_min: u8,
    delegate_max: u8,
    delegate_cur: u8,
});
view!(RaftConfiguration { servers: Vec<RaftServer>, index: u64, });
view!(RaftServer {
    #[serde(rename = "ID")]
    id: String,
    node: String,
    address: String,
    leader: bool,
    voter: bool,
    raft_protocol: String,
});

view!(
    /// `GET /v1/deployments` and `/v1/deployment/<id>`.
    Deployment {
    #[serde(rename = "ID")]
    id: String,
    namespace: String,
    #[serde(rename = "JobID")]
    job_id: String,
    job_version: u64,
    job_modify_index: u64,
    job_spec_modify_index: u64,
    job_create_index: u64,
    is_multiregion: bool,
    task_groups: BTreeMap<String, DeploymentState>,
    status: String,
    status_description: String,
    create_index: u64,
    modify_index: u64,
    create_time: u64,
    modify_time: u64,
});
view!(DeploymentState {
    auto_revert: bool,
    auto_promote: bool,
    progress_deadline: u64,
    require_progress_by: Option<String>,
    promoted: bool,
    placed_canaries: Vec<String>,
    desired_canaries: u32,
    desired_total: u32,
    placed_allocs: u32,
    healthy_allocs: u32,
    unhealthy_allocs: u32,
});

impl From<&model::Deployment> for Deployment {
    fn from(deployment: &model::Deployment) -> Self {
        let groups = deployment.groups.iter().map(|(name, group)| (name.clone(), group.into()));
        Self {
            id: deployment.id.to_string(),
            namespace: "default".to_owned(),
            job_id: deployment.job_id.0.clone(),
            job_version: deployment.job_version,
            task_groups: groups.collect(),
            status: deployment.status.as_str().to_owned(),
            status_description: deployment.status_description.clone(),
            create_index: deployment.created_at_index.0,
            modify_index: deployment.modified_at_index.0,
            create_time: deployment.created_at.0,
            modify_time: deployment.modified_at.0,
            ..Self::default()
        }
    }
}

impl From<&model::DeploymentGroup> for DeploymentState {
    fn from(group: &model::DeploymentGroup) -> Self {
        Self {
            auto_revert: group.auto_revert,
            auto_promote: group.auto_promote,
            progress_deadline: u64::try_from(group.progress_deadline.as_nanos()).unwrap_or(u64::MAX),
            require_progress_by: rfc3339(group.require_progress_by),
            promoted: group.promoted,
            placed_canaries: group.placed_canaries.iter().map(ToString::to_string).collect(),
            desired_canaries: group.desired_canaries,
            desired_total: group.desired_total,
            placed_allocs: group.placed,
            healthy_allocs: group.healthy,
            unhealthy_allocs: group.unhealthy,
        }
    }
}

impl From<&ModelEval> for Evaluation {
    fn from(eval: &ModelEval) -> Self {
        let failures = || eval.failures.iter().map(|(group, failure)| (group.clone(), failure.into())).collect();
        Self {
            id: eval.id.to_string(),
            priority: i64::from(eval.priority),
            kind: "service".to_owned(),
            triggered_by: eval.trigger.as_str().to_owned(),
            namespace: "default".to_owned(),
            job_id: eval.job_id.0.clone(),
            status: match eval.status {
                // Go spells the word so.
                model::EvalStatus::Canceled => "canceled",
                other => other.as_str(),
            }
            .to_owned(),
            status_description: eval.status_description.clone(),
            failed_tg_allocs: (!eval.failures.is_empty()).then(failures),
            queued_allocations: eval.queued.clone(),
            create_index: eval.created_at_index.0,
            modify_index: eval.modified_at_index.0,
            create_time: eval.created_at.0,
            modify_time: eval.modified_at.0,
            ..Self::default()
        }
    }
}

impl From<&model::PlacementFailure> for AllocationMetric {
    fn from(failure: &model::PlacementFailure) -> Self {
        Self {
            nodes_evaluated: failure.nodes_evaluated,
            nodes_filtered: failure.nodes_filtered,
            nodes_exhausted: failure.nodes_exhausted,
            constraint_filtered: Some(failure.constraints_filtered.clone()),
            dimension_exhausted: Some(failure.dimensions_exhausted.clone()),
            coalesced_failures: failure.coalesced,
            ..Self::default()
        }
    }
}

impl From<&ModelAlloc> for Allocation {
    fn from(alloc: &ModelAlloc) -> Self {
        Self {
            id: alloc.id.to_string(),
            eval_id: alloc.eval_id.to_string(),
            name: alloc.name(),
            namespace: alloc.job.namespace.clone(),
            node_id: alloc.node_id.to_string(),
            node_name: alloc.node_name.clone(),
            job_id: alloc.job.id.0.clone(),
            job: Some(alloc.job.as_ref().into()),
            task_group: alloc.group.clone(),
            allocated_resources: Some(allocated_resources(alloc)),
            desired_status: alloc.desired.as_str().to_owned(),
            desired_description: alloc.desired_description.clone(),
            client_status: alloc.client.as_str().to_owned(),
            client_description: alloc.client_description.clone(),
            task_states: task_states(alloc),
            previous_allocation: alloc.previous.map(|id| id.to_string()).unwrap_or_default(),
            deployment_id: alloc.deployment.as_ref().map(|part| part.id.to_string()).unwrap_or_default(),
            deployment_status: alloc.deployment.as_ref().map(deployment_status),
            network_status: alloc.address.map(network_status),
            create_index: alloc.created_at_index.0,
            modify_index: alloc.modified_at_index.0,
            alloc_modify_index: alloc.modified_at_index.0,
            create_time: alloc.created_at.0,
            modify_time: alloc.modified_at.0,
            ..Self::default()
        }
    }
}

impl From<&ModelAlloc> for AllocationListStub {
    fn from(alloc: &ModelAlloc) -> Self {
        Self {
            id: alloc.id.to_string(),
            eval_id: alloc.eval_id.to_string(),
            name: alloc.name(),
            namespace: alloc.job.namespace.clone(),
            node_id: alloc.node_id.to_string(),
            node_name: alloc.node_name.clone(),
            job_id: alloc.job.id.0.clone(),
            job_type: alloc.job.kind.as_str().to_owned(),
            job_version: alloc.job.version,
            task_group: alloc.group.clone(),
            allocated_resources: Some(allocated_resources(alloc)),
            desired_status: alloc.desired.as_str().to_owned(),
            desired_description: alloc.desired_description.clone(),
            client_status: alloc.client.as_str().to_owned(),
            client_description: alloc.client_description.clone(),
            task_states: task_states(alloc),
            deployment_status: alloc.deployment.as_ref().map(deployment_status),
            create_index: alloc.created_at_index.0,
            modify_index: alloc.modified_at_index.0,
            create_time: alloc.created_at.0,
            modify_time: alloc.modified_at.0,
            ..Self::default()
        }
    }
}

fn deployment_status(part: &model::AllocDeployment) -> serde_json::Value {
    serde_json::json!({
        "Healthy": part.healthy,
        "Timestamp": rfc3339(part.changed_at),
        "Canary": part.canary,
        "ModifyIndex": 0,
    })
}

fn network_status(address: IpAddr) -> AllocNetworkStatus {
    AllocNetworkStatus { interface_name: "eth0".to_owned(), address: address.to_string() }
}

fn task_states(alloc: &ModelAlloc) -> BTreeMap<String, TaskState> {
    alloc.task_states.iter().map(|(name, state)| (name.clone(), state.into())).collect()
}

fn allocated_resources(alloc: &ModelAlloc) -> AllocatedResources {
    let group = alloc.task_group();
    let tasks =
        group.into_iter().flat_map(|group| &group.tasks).map(|task| (task.name.clone(), (&task.resources).into()));
    let networks = group.and_then(|group| group.network.as_ref()).map(|network| vec![placed_network(alloc, network)]);
    let shared = AllocatedSharedResources {
        disk_mb: group.map_or(0, |group| group.disk_mb),
        networks,
        ports: alloc.ports.iter().map(PortMapping::from).collect(),
    };
    AllocatedResources { tasks: tasks.collect(), shared }
}

/// The group's network with the ports it was given.
fn placed_network(alloc: &ModelAlloc, network: &model::Network) -> NetworkResource {
    let mut placed = NetworkResource::from(network);
    let ports = placed.dynamic_ports.iter_mut().chain(placed.reserved_ports.iter_mut()).flatten();
    for port in ports {
        fill_port(alloc, port);
    }
    placed
}

fn fill_port(alloc: &ModelAlloc, port: &mut Port) {
    if let Some(given) = port.label.as_deref().and_then(|label| alloc.port(label)) {
        port.value = Some(i64::from(given.host_port));
        port.to = Some(i64::from(given.to));
    }
}

impl From<&model::Resources> for AllocatedTaskResources {
    fn from(resources: &model::Resources) -> Self {
        Self {
            cpu: AllocatedCpu { cpu_shares: resources.cpu_mhz },
            memory: AllocatedMemory { memory_mb: resources.memory_mb, memory_max_mb: 0 },
        }
    }
}

impl From<&model::AllocatedPort> for PortMapping {
    fn from(port: &model::AllocatedPort) -> Self {
        Self { label: port.label.clone(), value: port.host_port, to: port.to, host_ip: String::new() }
    }
}

impl From<&model::TaskState> for TaskState {
    fn from(state: &model::TaskState) -> Self {
        Self {
            state: state.phase.as_str().to_owned(),
            failed: state.failed,
            restarts: state.restarts,
            last_restart: rfc3339(state.last_restart),
            started_at: rfc3339(state.started_at),
            finished_at: rfc3339(state.finished_at),
            events: state.events.iter().map(TaskEvent::from).collect(),
        }
    }
}

impl From<&model::TaskEvent> for TaskEvent {
    fn from(event: &model::TaskEvent) -> Self {
        Self {
            kind: event.kind.clone(),
            time: event.at.0,
            display_message: event.message.clone(),
            message: event.message.clone(),
            details: BTreeMap::new(),
        }
    }
}

/// `None` for never, else as Go writes a time in UTC.
pub fn rfc3339(at: model::Timestamp) -> Option<String> {
    if at == model::Timestamp::NEVER {
        return None;
    }
    let (secs, nanos) = (at.0 / 1_000_000_000, at.0 % 1_000_000_000);
    let (year, month, day) = civil_date(secs / 86_400);
    let (hour, minute, second) = (secs / 3600 % 24, secs / 60 % 60, secs % 60);
    let fraction = if nanos == 0 { String::new() } else { format!(".{nanos:09}").trim_end_matches('0').to_owned() };
    Some(format!("{year:04}-{month:02}-{day:02}T{hour:02}:{minute:02}:{second:02}{fraction}Z"))
}

/// Days since 1970-01-01 as a date of the Gregorian calendar, by counting in years that start on the first of March, so
/// that the leap day comes last.
fn civil_date(days: u64) -> (u64, u64, u64) {
    const DAYS_TO_1970_FROM_MARCH_0000: u64 = 719_468;
    let days = days + DAYS_TO_1970_FROM_MARCH_0000;
    let (era, day_of_era) = (days / 146_097, days % 146_097);
    let year_of_era = (day_of_era - day_of_era / 1_460 + day_of_era / 36_524 - day_of_era / 146_096) / 365;
    let day_of_year = day_of_era - (365 * year_of_era + year_of_era / 4 - year_of_era / 100);
    let march_month = (5 * day_of_year + 2) / 153;
    let day = day_of_year - (153 * march_month + 2) / 5 + 1;
    let month = if march_month < 10 { march_month + 3 } else { march_month - 9 };
    (era * 400 + year_of_era + u64::from(month <= 2), month, day)
}

impl From<&ModelNode> for NodeListStub {
    fn from(node: &ModelNode) -> Self {
        Self {
            id: node.id.to_string(),
            address: node.address.to_string(),
            attributes: None,
            datacenter: node.datacenter.clone(),
            name: node.name.clone(),
            node_class: node.class.clone(),
            node_pool: node.pool.clone(),
            version: node.version.clone(),
            drain: node.drain.is_some(),
            scheduling_eligibility: node.eligibility.as_str().to_owned(),
            status: node_status(node.status),
            status_description: status_description(node.status),
            drivers: drivers(node),
            create_index: node.created_at_index.0,
            modify_index: node.modified_at_index.0,
        }
    }
}

impl From<&ModelNode> for Node {
    fn from(node: &ModelNode) -> Self {
        Self {
            id: node.id.to_string(),
            name: node.name.clone(),
            datacenter: node.datacenter.clone(),
            node_class: node.class.clone(),
            node_pool: node.pool.clone(),
            http_addr: format!("{}:4646", bracketed(node.address)),
            attributes: node.attributes.clone(),
            meta: node.meta.clone(),
            drivers: drivers(node),
            node_resources: (&node.resources).into(),
            drain: node.drain.is_some(),
            drain_strategy: node.drain.as_ref().map(drain_strategy),
            scheduling_eligibility: node.eligibility.as_str().to_owned(),
            status: node_status(node.status),
            status_description: status_description(node.status),
            status_updated_at: node.status_changed_at.0 / 1_000_000_000,
            create_index: node.created_at_index.0,
            modify_index: node.modified_at_index.0,
        }
    }
}

fn bracketed(address: IpAddr) -> String {
    match address {
        IpAddr::V4(v4) => v4.to_string(),
        IpAddr::V6(v6) => format!("[{v6}]"),
    }
}

fn drivers(node: &ModelNode) -> BTreeMap<String, DriverInfo> {
    let info = |status: &model::DriverStatus| DriverInfo {
        detected: status.detected,
        healthy: status.healthy,
        health_description: status.description.clone(),
    };
    node.drivers.iter().map(|(name, status)| (name.clone(), info(status))).collect()
}

/// A deadline that has no end is zero there, one that has passed already is negative.
fn drain_strategy(drain: &model::Drain) -> serde_json::Value {
    let forced = drain.deadline != model::Timestamp::NEVER && drain.deadline <= drain.started_at;
    let length = i64::try_from(drain.deadline.since(drain.started_at).as_nanos()).unwrap_or(i64::MAX);
    serde_json::json!({
        "Deadline": if forced { -1 } else { length },
        "IgnoreSystemJobs": drain.ignore_system,
        "ForceDeadline": rfc3339(drain.deadline).unwrap_or_else(|| "0001-01-01T00:00:00Z".to_owned()),
        "StartedAt": rfc3339(drain.started_at),
    })
}

/// Nomad has no word for a suspect node; `disconnected` is its nearest: the node is out of touch and keeps its work.
fn node_status(status: model::NodeStatus) -> String {
    match status {
        model::NodeStatus::Initializing => "initializing",
        model::NodeStatus::Ready => "ready",
        model::NodeStatus::Suspect | model::NodeStatus::Disconnected => "disconnected",
        model::NodeStatus::Down => "down",
    }
    .to_owned()
}

impl Node {
    /// With the reason that the servers have for its status.
    pub fn described(mut self, reason: &str) -> Self {
        describe(&mut self.status_description, reason);
        self
    }
}

impl NodeListStub {
    /// As [`Node::described`].
    pub fn described(mut self, reason: &str) -> Self {
        describe(&mut self.status_description, reason);
        self
    }
}

fn describe(description: &mut String, reason: &str) {
    if !reason.is_empty() {
        *description = reason.to_owned();
    }
}

fn status_description(status: model::NodeStatus) -> String {
    match status {
        model::NodeStatus::Suspect => "suspect: the agent's session is lost; flows and allocations stay".to_owned(),
        model::NodeStatus::Disconnected => "disconnected: neither its agent nor its kernel answers".to_owned(),
        _ => String::new(),
    }
}

impl From<&model::NodeResources> for NodeResources {
    fn from(resources: &model::NodeResources) -> Self {
        Self {
            cpu: NodeCpu { cpu_shares: resources.cpu_mhz },
            memory: NodeMemory { memory_mb: resources.memory_mb },
            disk: NodeDisk { disk_mb: resources.disk_mb },
        }
    }
}

impl From<&Instance> for ServiceRegistration {
    fn from(instance: &Instance) -> Self {
        Self {
            id: instance.id(),
            service_name: instance.service.clone(),
            namespace: "default".to_owned(),
            node_id: instance.node_id.to_string(),
            datacenter: instance.datacenter.clone(),
            job_id: instance.job_id.0.clone(),
            alloc_id: instance.alloc_id.to_string(),
            tags: instance.tags.clone(),
            address: instance.address.to_string(),
            port: instance.port,
            create_index: instance.modified_at_index.0,
            modify_index: instance.modified_at_index.0,
        }
    }
}
