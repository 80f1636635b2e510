//! The compiled routes in words of services, for reports. Shares and counters are read by `ring` and `id`.

use crate::image::MapImage;
use crate::tags::Proto;
use model::{AllocId, Health, Instance};
use std::net::IpAddr;

#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ServiceRoutes {
    pub name: String,
    pub vip: IpAddr,
    pub frontends: Vec<FrontendRoute>,
    pub backends: Vec<BackendRoute>,
}

/// A dialled address of the service.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct FrontendRoute {
    pub address: IpAddr,
    pub port: u16,
    pub proto: Proto,
    pub source: FrontendSource,
    pub ring: u32,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum FrontendSource {
    Vip,
    Edge,
    HostPort,
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub struct BackendRoute {
    pub id: u32,
    pub alloc_id: AllocId,
    pub node: String,
    pub address: IpAddr,
    pub port: u16,
    pub proto: Proto,
    pub weight: u16,
    pub state: BackendState,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum BackendState {
    Passing,
    Warning,
    Critical,
    Draining,
}

impl ServiceRoutes {
    /// The share of new flows that a backend gets on the service's first frontend of its protocol: VIP before edge.
    pub fn ring_share(&self, backend: &BackendRoute, image: &MapImage) -> f64 {
        let frontend = self.frontends.iter().find(|frontend| frontend.proto == backend.proto);
        let ring = frontend.and_then(|frontend| image.rings.get(&frontend.ring));
        let Some(slots) = ring.map(|ring| &ring.slots).filter(|slots| !slots.is_empty()) else { return 0.0 };
        slots.iter().filter(|slot| **slot == backend.id).count() as f64 / slots.len() as f64
    }
}

impl FrontendSource {
    pub fn as_str(self) -> &'static str {
        match self {
            FrontendSource::Vip => "vip",
            FrontendSource::Edge => "edge",
            FrontendSource::HostPort => "port",
        }
    }
}

impl BackendState {
    pub fn of(instance: &Instance) -> Self {
        match instance.health {
            _ if instance.draining => BackendState::Draining,
            Health::Passing => BackendState::Passing,
            Health::Warning => BackendState::Warning,
            Health::Critical => BackendState::Critical,
        }
    }

    pub fn as_str(self) -> &'static str {
        match self {
            BackendState::Passing => "passing",
            BackendState::Warning => "warning",
            BackendState::Critical => "critical",
            BackendState::Draining => "draining",
        }
    }
}
