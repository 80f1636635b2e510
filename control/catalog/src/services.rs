//! Service instances, derived from allocations and their nodes, and the virtual addresses of service names.
//!
//! Instances are never written by a command. They are derived again whenever an allocation or its node changes, and kept
//! only so that the routing generation moves when they differ, not whenever a task writes an event.

use crate::{At, Catalog};
use ipnet::IpNet;
use model::{
    AllocId, Allocation, ClientStatus, DesiredStatus, Generation, Health, Index, Instance, InstanceNetwork, Job,
    NetworkMode, Node, NodeId, Refusal, RoutedNode, RoutedService, RoutingSnapshot, Service, Steering, Table,
    TaskGroup, TaskPhase,
};
use std::collections::{BTreeMap, BTreeSet};
use std::net::{IpAddr, Ipv4Addr};
use std::sync::Arc;

impl Catalog {
    /// What every agent is told: all nodes, all services that are declared or have instances. Its generation is the last
    /// index that changed any of that.
    pub fn routing(&self) -> RoutingSnapshot {
        let mut by_name: BTreeMap<&str, Vec<Instance>> =
            self.declared_services().into_iter().map(|name| (name, Vec::new())).collect();
        for instance in self.instances() {
            by_name.entry(&instance.service).or_default().push(instance.clone());
        }
        RoutingSnapshot {
            generation: self.routing_generation(),
            nodes: self.nodes.values().map(|node| routed_node(node)).collect(),
            services: by_name
                .into_iter()
                .filter_map(|(name, instances)| self.routed_service(name, instances))
                .collect(),
        }
    }

    /// The generation that [`Catalog::routing`] would carry, without building it.
    pub fn routing_generation(&self) -> Generation {
        Generation(self.routing_modified.0)
    }

    /// Every registered instance, ordered by allocation and port.
    pub fn instances(&self) -> impl Iterator<Item = &Instance> {
        self.instances.values().flat_map(|instances| instances.iter())
    }

    /// The instances that one allocation registers.
    pub fn instances_of_alloc(&self, id: AllocId) -> &[Instance] {
        self.instances.get(&id).map_or(&[], |instances| instances)
    }

    /// The service's virtual address, once a job has declared the name.
    pub fn vip(&self, service: &str) -> Option<IpAddr> {
        self.vips.get(service).copied()
    }

    fn routed_service(&self, name: &str, mut instances: Vec<Instance>) -> Option<RoutedService> {
        instances.sort_by_key(|instance| (instance.alloc_id, instance.port));
        Some(RoutedService { name: name.to_owned(), vip: self.vip(name)?, instances })
    }

    /// The service names of jobs that are to run.
    fn declared_services(&self) -> BTreeSet<&str> {
        let running = self.jobs.values().map(|stored| stored.newest()).filter(|job| !job.stopped);
        running.flat_map(|job| service_names(job)).collect()
    }

    /// Gives every service name of the job a virtual address, if it has none yet.
    pub(crate) fn assign_vips(&mut self, job: &Job) -> Result<(), Refusal> {
        let new: BTreeSet<&str> = service_names(job).filter(|name| !self.vips.contains_key(*name)).collect();
        if new.is_empty() {
            return Ok(());
        }
        let mut taken: BTreeSet<IpAddr> = self.vips.values().copied().collect();
        for name in new {
            let vip = match self.free_vip(&taken) {
                Some(vip) => vip,
                None => {
                    self.forget_unused_vips();
                    taken = self.vips.values().copied().collect();
                    self.free_vip(&taken).ok_or_else(|| self.vips_exhausted())?
                }
            };
            taken.insert(vip);
            self.vips.insert(name.to_owned(), vip);
        }
        Ok(())
    }

    /// The lowest host address of the range that no service holds.
    fn free_vip(&self, taken: &BTreeSet<IpAddr>) -> Option<IpAddr> {
        let IpNet::V4(range) = self.founding()?.vip_range else { return None };
        let (first, last) = (u32::from(range.network()) + 1, u32::from(range.broadcast()));
        (first..last).map(|bits| IpAddr::V4(Ipv4Addr::from(bits))).find(|vip| !taken.contains(vip))
    }

    /// Addresses are kept for names that may come back; only a full range makes them worth taking.
    fn forget_unused_vips(&mut self) {
        let jobs = self.jobs.values().flat_map(|stored| &stored.versions);
        let live = self.allocs.values().filter(|alloc| alloc.is_live()).map(|alloc| &alloc.job);
        let used: BTreeSet<String> = jobs.chain(live).flat_map(|job| service_names(job)).map(str::to_owned).collect();
        self.vips = std::mem::take(&mut self.vips).into_iter().filter(|(name, _)| used.contains(name)).collect();
    }

    fn vips_exhausted(&self) -> Refusal {
        let range = self.founding().map(|founding| founding.vip_range.to_string()).unwrap_or_default();
        Refusal::AddressesExhausted { range }
    }

    pub(crate) fn refresh_instances_of_node(&mut self, at: At, id: NodeId) {
        let ids: Vec<AllocId> = self.allocs_by_node.get(&id).into_iter().flatten().copied().collect();
        ids.into_iter().for_each(|id| self.refresh_instances(at, id));
    }

    /// Derives the allocation's instances again and notes when they differ from before.
    pub(crate) fn refresh_instances(&mut self, at: At, id: AllocId) {
        let derived = self.derive_instances(id, at.index);
        if same_instances(self.instances_of_alloc(id), &derived) {
            return;
        }
        self.store_instances(id, derived, at.index);
        self.routing_modified = at.index;
        self.touch(Table::Services, at);
    }

    pub(crate) fn store_instances(&mut self, id: AllocId, derived: Vec<Instance>, modified: Index) {
        if derived.is_empty() {
            self.instances.remove(&id);
            self.instances_modified.remove(&id);
        } else {
            self.instances.insert(id, derived.into());
            self.instances_modified.insert(id, modified);
        }
    }

    pub(crate) fn derive_instances(&self, id: AllocId, modified: Index) -> Vec<Instance> {
        let alloc = self.allocs.get(&id);
        let derived = alloc.and_then(|alloc| Some(instances_of(alloc, self.nodes.get(&alloc.node_id)?, modified)));
        derived.unwrap_or_default()
    }

    /// A change of the declared services alone, without any instance.
    pub(crate) fn note_services_changed(&mut self, at: At) {
        self.routing_modified = at.index;
        self.touch(Table::Services, at);
    }
}

pub(crate) fn routed_node(node: &Node) -> RoutedNode {
    RoutedNode {
        id: node.id,
        name: node.name.clone(),
        datacenter: node.datacenter.clone(),
        address: node.address,
        blocks: node.blocks.clone(),
        status: node.status,
        zone: node.meta.get("zone").cloned().unwrap_or_default(),
    }
}

pub(crate) fn service_names(job: &Job) -> impl Iterator<Item = &str> {
    job.groups.iter().flat_map(TaskGroup::all_services).map(|service| service.name.as_str())
}

fn same_instances(before: &[Instance], after: &[Instance]) -> bool {
    let same = |a: &Instance, b: &Instance| *a == Instance { modified_at_index: a.modified_at_index, ..b.clone() };
    before.len() == after.len() && before.iter().zip(after).all(|(a, b)| same(a, b))
}

fn instances_of(alloc: &Arc<Allocation>, node: &Node, modified: Index) -> Vec<Instance> {
    let Some(group) = alloc.task_group() else { return Vec::new() };
    if !node.status.is_reachable() || alloc.client != ClientStatus::Running {
        return Vec::new();
    }
    let whole = group.tasks.iter().filter(|task| task.stays()).all(|task| is_running(alloc, &task.name));
    let of_group = group.services.iter().filter(|_| whole);
    let running_tasks = group.tasks.iter().filter(|task| is_running(alloc, &task.name));
    let services = of_group.chain(running_tasks.flat_map(|task| &task.services));
    let mut instances: Vec<Instance> =
        services.filter_map(|service| instance(alloc, node, group, service, modified)).collect();
    instances.sort_by(|a, b| (a.port, &a.service).cmp(&(b.port, &b.service)));
    instances
}

fn is_running(alloc: &Allocation, task: &str) -> bool {
    alloc.task_states.get(task).is_some_and(|state| state.phase == TaskPhase::Running)
}

/// `None` while its address or port is not known.
fn instance(
    alloc: &Allocation,
    node: &Node,
    group: &TaskGroup,
    service: &Service,
    modified: Index,
) -> Option<Instance> {
    let (address, network) = match group.network_mode() {
        NetworkMode::Bridge => (alloc.address?, InstanceNetwork::Bridge),
        NetworkMode::Host => (node.address, InstanceNetwork::Host),
        // Nothing can reach it.
        NetworkMode::None => return None,
    };
    let health = alloc.service_health(service);
    let (tags, meta) = marks(alloc, service);
    Some(Instance {
        service: service.name.clone(),
        job_id: alloc.job_id().clone(),
        alloc_id: alloc.id,
        node_id: node.id,
        node_name: node.name.clone(),
        datacenter: node.datacenter.clone(),
        address,
        port: backend_port(alloc, service, network)?,
        vip_port: vip_port(group, service, meta),
        tags: tags.to_vec(),
        weight: weight(service, health),
        network,
        health,
        draining: alloc.desired == DesiredStatus::Stop,
        modified_at_index: modified,
        // A job of before it was checked may hold anything.
        steering: Steering::parse(meta).unwrap_or_default(),
    })
}

/// Tags and meta, which canaries may have of their own.
fn marks<'a>(alloc: &Allocation, service: &'a Service) -> (&'a [String], &'a BTreeMap<String, String>) {
    let canary = alloc.is_canary();
    let tags = service.canary_tags.as_ref().filter(|_| canary).unwrap_or(&service.tags);
    let own_meta = canary && !service.canary_meta.is_empty();
    (tags, if own_meta { &service.canary_meta } else { &service.meta })
}

/// One that does not pass its checks gets no flows whatever it weighs.
fn weight(service: &Service, health: Health) -> u16 {
    match health {
        Health::Warning => service.weights.warning,
        Health::Passing | Health::Critical => service.weights.passing,
    }
}

/// Zero for a service that registers no port.
fn backend_port(alloc: &Allocation, service: &Service, network: InstanceNetwork) -> Option<u16> {
    let Some(label) = &service.port_label else { return Some(0) };
    let port = alloc.port(label)?;
    Some(match network {
        InstanceNetwork::Bridge => port.to,
        InstanceNetwork::Host => port.host_port,
    })
}

/// The service's meta `vip_port`, else the label's `to`, else its static port.
fn vip_port(group: &TaskGroup, service: &Service, meta: &BTreeMap<String, String>) -> Option<u16> {
    let label = service.port_label.as_ref()?;
    let request = group.network.as_ref()?.ports.iter().find(|port| port.label == *label)?;
    let asked = meta.get("vip_port").and_then(|text| text.parse().ok()).filter(|port| *port != 0);
    asked.or(request.to).or(request.static_port)
}
