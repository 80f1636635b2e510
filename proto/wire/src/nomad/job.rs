//! The job as JSON. Every field is optional because Go's clients write `null` for what they leave out.

use serde::{Deserialize, Serialize};
use serde_json::{Map, Value};
use std::collections::BTreeMap;

/// Keys beyond those of the struct, by name: what is not built, and what nobody knows.
pub type Others = Map<String, Value>;

macro_rules! nomad_struct {
    ($(#[$doc:meta])* $name:ident { $($(#[$field_doc:meta])* $field:ident: $type:ty),* $(,)? }) => {
        $(#[$doc])*
        #[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
        #[serde(default, rename_all = "PascalCase")]
        pub struct $name {
            $($(#[$field_doc])* pub $field: Option<$type>,)*
            #[serde(flatten)]
            pub others: Others,
        }
    };
}

nomad_struct!(Job {
    #[serde(rename = "ID")]
    id: String,
    name: String,
    namespace: String,
    region: String,
    #[serde(rename = "Type")]
    kind: String,
    priority: i64,
    datacenters: Vec<String>,
    node_pool: String,
    constraints: Vec<Constraint>,
    affinities: Vec<Affinity>,
    spreads: Vec<Spread>,
    meta: BTreeMap<String, String>,
    /// The default of its groups; answers carry it there.
    update: UpdateStrategy,
    migrate: MigrateStrategy,
    reschedule: ReschedulePolicy,
    task_groups: Vec<TaskGroup>,
    periodic: PeriodicConfig,
    parameterized_job: ParameterizedJobConfig,
    /// Ours: what has to work first.
    depends_on: Vec<Dependency>,
    /// Ours.
    disruption: Disruption,
    /// The job it was made from; only in answers.
    #[serde(rename = "ParentID")]
    parent_id: String,
    /// Made by a dispatch; only in answers.
    dispatched: bool,
    /// Base64; only in answers.
    payload: String,
    stop: bool,
    version: u64,
    submit_time: i64,
    /// `pending`, `running` or `dead`; only in answers.
    status: String,
    status_description: String,
    stable: bool,
    create_index: u64,
    modify_index: u64,
    job_modify_index: u64,
});

nomad_struct!(TaskGroup {
    name: String,
    count: i64,
    constraints: Vec<Constraint>,
    affinities: Vec<Affinity>,
    spreads: Vec<Spread>,
    restart_policy: RestartPolicy,
    reschedule_policy: ReschedulePolicy,
    disconnect: DisconnectStrategy,
    /// Older clients' words for `Disconnect`.
    max_client_disconnect: i64,
    stop_after_client_disconnect: i64,
    volumes: BTreeMap<String, VolumeRequest>,
    shutdown_delay: i64,
    max_run_duration: i64,
    networks: Vec<NetworkResource>,
    services: Vec<Service>,
    tasks: Vec<Task>,
    meta: BTreeMap<String, String>,
    ephemeral_disk: EphemeralDisk,
    update: UpdateStrategy,
    migrate: MigrateStrategy,
});

nomad_struct!(UpdateStrategy {
    stagger: i64,
    max_parallel: i64,
    health_check: String,
    min_healthy_time: i64,
    healthy_deadline: i64,
    progress_deadline: i64,
    canary: i64,
    auto_revert: bool,
    auto_promote: bool,
    /// Ours: `stop-first` or `start-first`.
    order: String,
});

nomad_struct!(MigrateStrategy {
    max_parallel: i64,
    health_check: String,
    min_healthy_time: i64,
    healthy_deadline: i64,
});

nomad_struct!(Task {
    name: String,
    driver: String,
    user: String,
    config: Map<String, Value>,
    env: BTreeMap<String, String>,
    constraints: Vec<Constraint>,
    affinities: Vec<Affinity>,
    resources: Resources,
    restart_policy: RestartPolicy,
    lifecycle: Lifecycle,
    leader: bool,
    shutdown_delay: i64,
    artifacts: Vec<Artifact>,
    templates: Vec<Template>,
    volume_mounts: Vec<VolumeMount>,
    dispatch_payload: DispatchPayload,
    services: Vec<Service>,
    meta: BTreeMap<String, String>,
    kill_timeout: i64,
    kill_signal: String,
    log_config: LogConfig,
});

nomad_struct!(Constraint {
    #[serde(rename = "LTarget")]
    l_target: String,
    #[serde(rename = "RTarget")]
    r_target: String,
    operand: String,
});

nomad_struct!(Affinity {
    #[serde(rename = "LTarget")]
    l_target: String,
    #[serde(rename = "RTarget")]
    r_target: String,
    operand: String,
    weight: i64,
});

nomad_struct!(Spread { attribute: String, weight: i64, spread_target: Vec<SpreadTarget> });

nomad_struct!(SpreadTarget { value: String, percent: i64 });

nomad_struct!(Dependency { job: String, group: String });

nomad_struct!(Disruption { max_unavailable: i64 });

nomad_struct!(PeriodicConfig {
    enabled: bool,
    spec: String,
    specs: Vec<String>,
    spec_type: String,
    prohibit_overlap: bool,
    time_zone: String,
});

nomad_struct!(ParameterizedJobConfig {
    payload: String,
    meta_required: Vec<String>,
    meta_optional: Vec<String>,
});

nomad_struct!(ReschedulePolicy {
    attempts: i64,
    interval: i64,
    delay: i64,
    delay_function: String,
    max_delay: i64,
    unlimited: bool,
});

nomad_struct!(DisconnectStrategy { lost_after: i64, stop_on_client_after: i64, replace: bool, reconcile: String });

nomad_struct!(VolumeRequest {
    name: String,
    #[serde(rename = "Type")]
    kind: String,
    source: String,
    read_only: bool,
    per_alloc: bool,
});

nomad_struct!(VolumeMount { volume: String, destination: String, read_only: bool, propagation_mode: String });

nomad_struct!(Lifecycle { hook: String, sidecar: bool });

nomad_struct!(DispatchPayload { file: String });

nomad_struct!(Artifact {
    getter_source: String,
    getter_options: BTreeMap<String, String>,
    getter_headers: BTreeMap<String, String>,
    getter_mode: String,
    getter_insecure: bool,
    relative_dest: String,
    chown: bool,
});

nomad_struct!(Template {
    source_path: String,
    embedded_tmpl: String,
    dest_path: String,
    change_mode: String,
    change_signal: String,
    change_script: ChangeScript,
    splay: i64,
    perms: String,
    uid: i64,
    gid: i64,
    left_delim: String,
    right_delim: String,
    envvars: bool,
    once: bool,
    err_missing_key: bool,
    wait: WaitConfig,
});

nomad_struct!(ChangeScript { command: String, args: Vec<String>, timeout: i64, fail_on_error: bool });

nomad_struct!(WaitConfig { min: i64, max: i64 });

nomad_struct!(RequestedDevice {
    name: String,
    count: i64,
    constraints: Vec<Constraint>,
    affinities: Vec<Affinity>,
});

nomad_struct!(RestartPolicy { attempts: i64, interval: i64, delay: i64, mode: String });

nomad_struct!(NetworkResource {
    mode: String,
    dynamic_ports: Vec<Port>,
    reserved_ports: Vec<Port>,
    hostname: String,
    #[serde(rename = "DNS")]
    dns: DnsConfig,
});

nomad_struct!(DnsConfig { servers: Vec<String>, searches: Vec<String>, options: Vec<String> });

nomad_struct!(Port { label: String, value: i64, to: i64, host_network: String });

nomad_struct!(EphemeralDisk {
    #[serde(rename = "SizeMB")]
    size_mb: i64,
    sticky: bool,
    migrate: bool,
});

nomad_struct!(Resources {
    #[serde(rename = "CPU")]
    cpu: i64,
    #[serde(rename = "MemoryMB")]
    memory_mb: i64,
    #[serde(rename = "MemoryMaxMB")]
    memory_max_mb: i64,
    cores: i64,
    devices: Vec<RequestedDevice>,
});

nomad_struct!(LogConfig {
    max_files: i64,
    #[serde(rename = "MaxFileSizeMB")]
    max_file_size_mb: i64,
});

nomad_struct!(Service {
    name: String,
    tags: Vec<String>,
    port_label: String,
    provider: String,
    meta: BTreeMap<String, String>,
    checks: Vec<ServiceCheck>,
    task_name: String,
    canary_tags: Vec<String>,
    canary_meta: BTreeMap<String, String>,
    weights: Weights,
    check_restart: CheckRestart,
    on_update: String,
});

nomad_struct!(Weights { passing: i64, warning: i64 });

nomad_struct!(CheckRestart { limit: i64, grace: i64, ignore_warnings: bool });

nomad_struct!(ServiceCheck {
    name: String,
    #[serde(rename = "Type")]
    kind: String,
    method: String,
    path: String,
    port_label: String,
    interval: i64,
    timeout: i64,
    command: String,
    args: Vec<String>,
    header: BTreeMap<String, Vec<String>>,
    body: String,
    protocol: String,
    #[serde(rename = "TLSServerName")]
    tls_server_name: String,
    #[serde(rename = "TLSSkipVerify")]
    tls_skip_verify: bool,
    #[serde(rename = "GRPCService")]
    grpc_service: String,
    #[serde(rename = "GRPCUseTLS")]
    grpc_use_tls: bool,
    initial_status: String,
    success_before_passing: i64,
    failures_before_critical: i64,
    check_restart: CheckRestart,
    on_update: String,
    task_name: String,
});
