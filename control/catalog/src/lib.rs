//! The replicated state: what the cluster knows, changed by commands alone.
//!
//! [`Catalog::apply`] is the state machine that every server runs over the same log, so it has no clock and no randomness
//! and walks ordered maps only. Its maps are persistent ([`imbl`]): a clone costs a few pointers and is a snapshot that
//! never changes, which is how readers and the scheduler see the state while the next command is applied.
//!
//! ```text
//!   Raft log ──> apply ──> tables ──derive──> service instances ──> routing() to every agent
//!                            └──> image() <──> from_image() for snapshots
//! ```

mod agents;
mod allocs;
mod changes;
mod cluster;
mod deployments;
mod evals;
mod garbage;
mod jobs;
mod plans;
mod restore;
mod services;
mod snapshot;
mod store;
#[cfg(test)]
mod tests;

pub use changes::{Change, Row};

use imbl::{OrdMap, OrdSet};
use model::{
    AllocId, Allocation, Applied, Authority, Autopilot, Command, Deployment, DeploymentId, Envelope, EvalId,
    EvalStatus, Evaluation, Founding, Index, Instance, Job, JobId, JobRecord, JoinToken, KvEntry, Node, NodeId,
    Refusal, ServerId, ServerRecord, Table, Timestamp, Variable, capacity,
};
use std::net::IpAddr;
use std::sync::Arc;

/// The cluster's state as of [`Catalog::index`]. Cloning is cheap and gives an immutable snapshot.
#[derive(Clone, Debug)]
pub struct Catalog {
    index: Index,
    feature_level: u32,
    founding: Option<Arc<Founding>>,
    servers: OrdMap<ServerId, ServerRecord>,
    tokens: OrdMap<[u8; 32], JoinToken>,
    nodes: OrdMap<NodeId, Arc<Node>>,
    jobs: OrdMap<JobId, Arc<StoredJob>>,
    allocs: OrdMap<AllocId, Arc<Allocation>>,
    evals: OrdMap<EvalId, Arc<Evaluation>>,
    deployments: OrdMap<DeploymentId, Arc<Deployment>>,
    vips: OrdMap<String, IpAddr>,
    kv: OrdMap<String, Arc<KvEntry>>,
    kv_deleted: Index,
    /// By namespace and path.
    variables: OrdMap<(String, String), Arc<Variable>>,
    autopilot: Autopilot,
    node_reasons: OrdMap<NodeId, String>,
    tables: OrdMap<Table, Index>,
    routing_modified: Index,
    /// Not part of the image: it says what this process's readers have to read again.
    restored_at: Index,
    // Derived from the tables above.
    allocs_by_job: OrdMap<JobId, OrdSet<AllocId>>,
    allocs_by_node: OrdMap<NodeId, OrdSet<AllocId>>,
    /// What live allocations take from each node.
    usage: OrdMap<NodeId, Arc<capacity::Usage>>,
    evals_by_job: OrdMap<JobId, OrdSet<EvalId>>,
    deployments_by_job: OrdMap<JobId, OrdSet<DeploymentId>>,
    /// Jobs made from a periodic or parameterized one.
    children: OrdMap<JobId, OrdSet<JobId>>,
    periodic: OrdSet<JobId>,
    instances: OrdMap<AllocId, Arc<[Instance]>>,
    instances_modified: OrdMap<AllocId, Index>,
}

/// A job with its versions shared, so that allocations point to them instead of copying them.
#[derive(Clone, Debug, PartialEq)]
struct StoredJob {
    /// Newest first, never empty.
    versions: Vec<Arc<Job>>,
    purge: bool,
    created_at_index: Index,
    modified_at_index: Index,
    job_modified_at_index: Index,
    launched_for: Timestamp,
}

/// Where in the log and when a command is applied.
#[derive(Clone, Copy, Debug)]
struct At {
    index: Index,
    time: Timestamp,
}

impl Default for Catalog {
    fn default() -> Self {
        Self {
            index: Index::default(),
            feature_level: 1,
            founding: None,
            servers: OrdMap::new(),
            tokens: OrdMap::new(),
            nodes: OrdMap::new(),
            jobs: OrdMap::new(),
            allocs: OrdMap::new(),
            evals: OrdMap::new(),
            deployments: OrdMap::new(),
            vips: OrdMap::new(),
            kv: OrdMap::new(),
            kv_deleted: Index::default(),
            variables: OrdMap::new(),
            autopilot: Autopilot::default(),
            node_reasons: OrdMap::new(),
            tables: OrdMap::new(),
            routing_modified: Index::default(),
            restored_at: Index::default(),
            allocs_by_job: OrdMap::new(),
            allocs_by_node: OrdMap::new(),
            usage: OrdMap::new(),
            evals_by_job: OrdMap::new(),
            deployments_by_job: OrdMap::new(),
            children: OrdMap::new(),
            periodic: OrdSet::new(),
            instances: OrdMap::new(),
            instances_modified: OrdMap::new(),
        }
    }
}

impl Catalog {
    /// Applies the command at `index` of the log. A refusal changes nothing but [`Catalog::index`].
    pub fn apply(&mut self, index: Index, envelope: &Envelope) -> Result<Applied, Refusal> {
        if index <= self.index {
            return Err(Refusal::OldIndex { applied: self.index });
        }
        self.index = index;
        if envelope.feature_level > self.feature_level {
            return Err(Refusal::FeatureLevelTooLow { cluster: self.feature_level, needed: envelope.feature_level });
        }
        // Tried on a clone, which costs pointers only, so that a refusal half-way leaves nothing behind.
        let mut next = self.clone();
        let dropped = next.change(At { index, time: envelope.proposed_at }, &envelope.command)?;
        *self = next;
        Ok(Applied { index, dropped })
    }

    fn change(&mut self, at: At, command: &Command) -> Result<Vec<AllocId>, Refusal> {
        if self.founding.is_none() && !matches!(command, Command::Bootstrap { .. }) {
            return Err(Refusal::NotBootstrapped);
        }
        match command {
            Command::Bootstrap { authority, alloc_range, vip_range } => {
                self.bootstrap(at, authority, *alloc_range, *vip_range)?
            }
            Command::UpsertServer(server) => self.upsert_server(at, server)?,
            Command::RemoveServer { id } => self.remove_server(at, *id)?,
            Command::CreateToken(token) => self.create_token(at, token)?,
            Command::UseToken { digest, role, name } => self.use_token(at, digest, *role, name)?,
            Command::SetFeatureLevel { level } => self.set_feature_level(at, *level)?,
            Command::RegisterNode(node) => self.register_node(at, node)?,
            Command::SetNodeStatus { node_id, epoch, status, evals } => {
                self.set_node_status(at, *node_id, *epoch, *status, "")?;
                self.upsert_evals(at, evals);
            }
            Command::JudgeNode { node_id, epoch, status, reason, evals } => {
                self.set_node_status(at, *node_id, *epoch, *status, reason)?;
                self.upsert_evals(at, evals);
            }
            Command::ChangeKv(change) => self.change_kv(at, change)?,
            Command::ChangeVariable(change) => self.change_variable(at, change)?,
            Command::SetAutopilot { autopilot, cas } => self.set_autopilot(at, autopilot, *cas)?,
            Command::RegisterJob { job, eval, enforce_index } => {
                self.check_job_index(&job.id, *enforce_index)?;
                self.register_job(at, job, eval)?;
            }
            Command::DeregisterJob { job_id, purge, eval } => self.deregister_job(at, job_id, *purge, eval)?,
            Command::ApplyPlan { plan, follow_up } => return self.apply_plan(at, plan, follow_up.as_ref()),
            Command::UpdateAllocs { node_id, epoch, updates, evals } => {
                let dropped = self.update_allocs(at, *node_id, *epoch, updates)?;
                self.upsert_evals(at, evals);
                return Ok(dropped);
            }
            Command::RestoreCatalog { image, evals } => self.restore(at, image, evals)?,
            Command::UpsertEvals(evals) => self.upsert_evals(at, evals),
            Command::DispatchJob { child, eval } => self.dispatch_job(at, child, eval)?,
            Command::LaunchPeriodic { parent, launch, child, eval } => {
                self.launch_periodic(at, parent, *launch, child.as_deref(), eval)?
            }
            Command::MarkStable { job_id, version, stable } => self.mark_version(at, job_id, *version, *stable)?,
            Command::RestartJob { job_id, eval } => self.restart_job(at, job_id, eval)?,
            Command::CollectGarbage(garbage) => self.collect_garbage(at, garbage),
            Command::StopAllocs { alloc_ids, evals } => {
                alloc_ids.iter().for_each(|id| self.stop_for_user(at, *id));
                self.upsert_evals(at, evals);
            }
            Command::SetNodeEligibility { node_id, eligibility, evals } => {
                self.set_node_eligibility(at, *node_id, *eligibility)?;
                self.upsert_evals(at, evals);
            }
            Command::SetNodeDrain { node_id, drain, eligibility, evals } => {
                self.set_node_drain(at, *node_id, *drain, *eligibility)?;
                self.upsert_evals(at, evals);
            }
            Command::UpdateDeployment { update, eval } => self.update_deployment(at, update, eval)?,
        }
        Ok(Vec::new())
    }

    /// The newest log index that was applied.
    pub fn index(&self) -> Index {
        self.index
    }

    pub fn feature_level(&self) -> u32 {
        self.feature_level
    }

    /// The authority and address ranges; `None` before the cluster is bootstrapped.
    pub fn founding(&self) -> Option<&Founding> {
        self.founding.as_deref()
    }

    pub fn authority(&self) -> Option<&Authority> {
        self.founding().map(|founding| &founding.authority)
    }

    pub fn server(&self, id: ServerId) -> Option<&ServerRecord> {
        self.servers.get(&id)
    }

    pub fn servers(&self) -> impl Iterator<Item = &ServerRecord> {
        self.servers.values()
    }

    pub fn token(&self, digest: &[u8; 32]) -> Option<&JoinToken> {
        self.tokens.get(digest)
    }

    pub fn node(&self, id: NodeId) -> Option<&Arc<Node>> {
        self.nodes.get(&id)
    }

    pub fn nodes(&self) -> impl Iterator<Item = &Arc<Node>> {
        self.nodes.values()
    }

    /// The job's newest version, stopped or not.
    pub fn job(&self, id: &JobId) -> Option<&Arc<Job>> {
        self.jobs.get(id).map(|stored| stored.newest())
    }

    /// The newest version of every job.
    pub fn jobs(&self) -> impl Iterator<Item = &Arc<Job>> {
        self.jobs.values().map(|stored| stored.newest())
    }

    /// The kept versions, newest first.
    pub fn job_versions(&self, id: &JobId) -> &[Arc<Job>] {
        self.jobs.get(id).map_or(&[], |stored| &stored.versions)
    }

    /// The jobs that were made from a periodic or parameterized one and are still known.
    pub fn children(&self, id: &JobId) -> impl Iterator<Item = &Arc<Job>> {
        self.children.get(id).into_iter().flatten().filter_map(|id| self.job(id))
    }

    /// Every periodic job that is not stopped, with the newest time it was launched for.
    pub fn periodic_jobs(&self) -> impl Iterator<Item = (&Arc<Job>, Timestamp)> {
        let stored = self.periodic.iter().filter_map(|id| self.jobs.get(id));
        stored.map(|stored| (stored.newest(), stored.launched_for)).filter(|(job, _)| !job.stopped)
    }

    /// Whether anything of the job is alive or may yet come to be.
    pub fn is_over(&self, job: &Job) -> bool {
        let open = |eval: &Arc<Evaluation>| matches!(eval.status, EvalStatus::Pending | EvalStatus::Blocked);
        let stays = job.is_template() && !job.stopped;
        !stays && !self.allocs_of_job(&job.id).any(|alloc| alloc.is_live()) && !self.evals_of_job(&job.id).any(open)
    }

    /// When the job was created, last changed in any way, and last changed in its specification or stop mark.
    pub fn job_indices(&self, id: &JobId) -> Option<JobIndices> {
        self.jobs.get(id).map(|stored| JobIndices {
            created: stored.created_at_index,
            modified: stored.modified_at_index,
            job_modified: stored.job_modified_at_index,
        })
    }

    pub fn alloc(&self, id: AllocId) -> Option<&Arc<Allocation>> {
        self.allocs.get(&id)
    }

    pub fn allocs(&self) -> impl Iterator<Item = &Arc<Allocation>> {
        self.allocs.values()
    }

    pub fn allocs_of_job(&self, id: &JobId) -> impl Iterator<Item = &Arc<Allocation>> {
        self.allocs_by_job.get(id).into_iter().flatten().filter_map(|id| self.allocs.get(id))
    }

    pub fn allocs_of_node(&self, id: NodeId) -> impl Iterator<Item = &Arc<Allocation>> {
        self.allocs_by_node.get(&id).into_iter().flatten().filter_map(|id| self.allocs.get(id))
    }

    pub fn eval(&self, id: EvalId) -> Option<&Arc<Evaluation>> {
        self.evals.get(&id)
    }

    pub fn evals(&self) -> impl Iterator<Item = &Arc<Evaluation>> {
        self.evals.values()
    }

    pub fn evals_of_job(&self, id: &JobId) -> impl Iterator<Item = &Arc<Evaluation>> {
        self.evals_by_job.get(id).into_iter().flatten().filter_map(|id| self.evals.get(id))
    }

    pub fn deployment(&self, id: DeploymentId) -> Option<&Arc<Deployment>> {
        self.deployments.get(&id)
    }

    pub fn deployments(&self) -> impl Iterator<Item = &Arc<Deployment>> {
        self.deployments.values()
    }

    pub fn deployments_of_job(&self, id: &JobId) -> impl Iterator<Item = &Arc<Deployment>> {
        self.deployments_by_job.get(id).into_iter().flatten().filter_map(|id| self.deployments.get(id))
    }

    /// The newest one, whatever became of it.
    pub fn latest_deployment(&self, id: &JobId) -> Option<&Arc<Deployment>> {
        self.deployments_of_job(id).max_by_key(|deployment| (deployment.created_at_index, deployment.id))
    }

    /// The log index that changed the table last; zero when nothing did.
    pub fn table_index(&self, table: Table) -> Index {
        self.tables.get(&table).copied().unwrap_or_default()
    }

    fn touch(&mut self, table: Table, at: At) {
        self.tables.insert(table, at.index);
    }
}

/// Log indices of a job's row.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct JobIndices {
    pub created: Index,
    pub modified: Index,
    pub job_modified: Index,
}

impl StoredJob {
    fn newest(&self) -> &Arc<Job> {
        &self.versions[0]
    }

    fn to_record(&self) -> JobRecord {
        JobRecord {
            versions: self.versions.iter().map(|job| Job::clone(job)).collect(),
            purge: self.purge,
            created_at_index: self.created_at_index,
            modified_at_index: self.modified_at_index,
            job_modified_at_index: self.job_modified_at_index,
            launched_for: self.launched_for,
        }
    }
}
