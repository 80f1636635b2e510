//! The catalog as an image of plain values, and back.

use crate::{Catalog, StoredJob};
use model::{Allocation, CatalogImage, Deployment, Evaluation, Job, JobId, JobRecord, KvEntry, Node, Variable};
use std::collections::BTreeMap;
use std::sync::Arc;

impl Catalog {
    /// Everything that cannot be derived, in the order of its keys.
    pub fn image(&self) -> CatalogImage {
        CatalogImage {
            index: self.index,
            feature_level: self.feature_level,
            founding: self.founding().cloned(),
            servers: self.servers.values().cloned().collect(),
            tokens: self.tokens.values().cloned().collect(),
            nodes: self.nodes.values().map(|node| Node::clone(node)).collect(),
            jobs: self.jobs.values().map(|stored| stored.to_record()).collect(),
            allocs: self.allocs.values().map(|alloc| Allocation::clone(alloc)).collect(),
            evals: self.evals.values().map(|eval| Evaluation::clone(eval)).collect(),
            deployments: self.deployments.values().map(|deployment| Deployment::clone(deployment)).collect(),
            vips: self.vips.iter().map(|(name, vip)| (name.clone(), *vip)).collect(),
            tables: self.tables.iter().map(|(table, index)| (*table, *index)).collect(),
            instances_modified: self.instances_modified.iter().map(|(id, index)| (*id, *index)).collect(),
            routing_modified: self.routing_modified,
            kv: self.kv.values().map(|entry| KvEntry::clone(entry)).collect(),
            kv_deleted: self.kv_deleted,
            variables: self.variables.values().map(|variable| Variable::clone(variable)).collect(),
            autopilot: self.autopilot.clone(),
            node_reasons: self.node_reasons.iter().map(|(id, reason)| (*id, reason.clone())).collect(),
        }
    }

    /// The catalog of an image; what is derived is derived again.
    pub fn from_image(image: CatalogImage) -> Self {
        let mut catalog = Catalog {
            index: image.index,
            feature_level: image.feature_level.max(1),
            founding: image.founding.map(Arc::new),
            servers: image.servers.into_iter().map(|server| (server.id, server)).collect(),
            tokens: image.tokens.into_iter().map(|token| (token.digest, token)).collect(),
            nodes: image.nodes.into_iter().map(|node| (node.id, Arc::new(node))).collect(),
            vips: image.vips.into_iter().collect(),
            tables: image.tables.into_iter().collect(),
            routing_modified: image.routing_modified,
            kv: image.kv.into_iter().map(|entry| (entry.key.clone(), Arc::new(entry))).collect(),
            kv_deleted: image.kv_deleted,
            variables: image.variables.into_iter().map(crate::store::keyed).collect(),
            autopilot: image.autopilot,
            node_reasons: image.node_reasons.into_iter().collect(),
            ..Catalog::default()
        };
        // A record without versions names no job; nothing could refer to it.
        let records = image.jobs.into_iter().filter(|record| !record.versions.is_empty());
        records.map(StoredJob::from_record).for_each(|stored| catalog.insert_job(Arc::new(stored)));
        catalog.restore_allocs(image.allocs);
        image.evals.into_iter().for_each(|eval| catalog.insert_eval(Arc::new(eval)));
        image.deployments.into_iter().for_each(|deployment| catalog.insert_deployment(Arc::new(deployment)));
        for (id, modified) in image.instances_modified {
            let derived = catalog.derive_instances(id, modified);
            catalog.store_instances(id, derived, modified);
        }
        catalog
    }

    /// Shares equal jobs among allocations and stored versions: thousands of allocations have one job.
    fn restore_allocs(&mut self, allocs: Vec<Allocation>) {
        let mut shared = SharedJobs::default();
        self.jobs.values().flat_map(|stored| &stored.versions).for_each(|job| drop(shared.share(job.clone())));
        for mut alloc in allocs {
            alloc.job = shared.share(alloc.job);
            self.insert_alloc(Arc::new(alloc));
        }
    }
}

impl StoredJob {
    fn from_record(record: JobRecord) -> Self {
        StoredJob {
            versions: record.versions.into_iter().map(Arc::new).collect(),
            purge: record.purge,
            created_at_index: record.created_at_index,
            modified_at_index: record.modified_at_index,
            job_modified_at_index: record.job_modified_at_index,
            launched_for: record.launched_for,
        }
    }
}

#[derive(Default)]
struct SharedJobs {
    by_version: BTreeMap<(JobId, u64), Vec<Arc<Job>>>,
}

impl SharedJobs {
    /// The first job seen that equals `job`. A version may occur twice, as stopped and as running.
    fn share(&mut self, job: Arc<Job>) -> Arc<Job> {
        let same_version = self.by_version.entry((job.id.clone(), job.version)).or_default();
        if let Some(known) = same_version.iter().find(|known| ***known == *job) {
            return known.clone();
        }
        same_version.push(job.clone());
        job
    }
}
