//! Why a packet goes where it goes, read from an image as the programs read their maps.

use crate::compile::Compilation;
use crate::image::MapImage;
use crate::routes::{BackendRoute, FrontendRoute, ServiceRoutes};
use crate::tags::Proto;
use abi::{Be16, VipKey};
use std::collections::BTreeMap;
use std::net::{IpAddr, SocketAddrV4};

/// A packet, and what the kernel was seen to know of its flow.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Observed {
    pub dst: SocketAddrV4,
    pub proto: Proto,
    /// A SYN.
    pub opens: bool,
    /// Chooses the ring's slot.
    pub hash: u32,
    /// The backend's id by the CPU that remembers the flow.
    pub remembered: BTreeMap<u32, u32>,
}

/// Steps of the decision: what was asked, and what was found.
pub fn explain(
    observed: &Observed,
    image: &MapImage,
    compilation: Option<&Compilation>,
) -> Vec<(&'static str, String)> {
    let explainer = Explainer { observed, image, compilation };
    let (dst, proto) = (observed.dst, observed.proto.number());
    let key = VipKey { addr: (*dst.ip()).into(), port: Be16::new(dst.port()), proto, pad: 0 };
    let mut steps = vec![("frontend", explainer.frontend(&key))];
    if let Some(vip) = image.vips.get(&key) {
        steps.push(("memory", explainer.memory()));
        steps.push(("ring", explainer.ring(vip.ring)));
        steps.extend(explainer.chosen(vip.ring).map(|id| ("backend", explainer.backend(id))));
    }
    steps
}

struct Explainer<'a> {
    observed: &'a Observed,
    image: &'a MapImage,
    compilation: Option<&'a Compilation>,
}

impl Explainer<'_> {
    fn frontend(&self, key: &VipKey) -> String {
        let (address, port) = (IpAddr::V4(key.addr.into()), key.port.get());
        if !self.image.vips.contains_key(key) {
            return format!("{address}:{port} is none of this node's: the packet is the stack's");
        }
        let named = |service: &ServiceRoutes| {
            let same = |frontend: &&FrontendRoute| {
                (frontend.address, frontend.port, frontend.proto.number()) == (address, port, key.proto)
            };
            let found = service.frontends.iter().find(same)?;
            Some(format!("{} ({})", service.name, found.source.as_str()))
        };
        let services: Vec<String> = self.services().iter().filter_map(named).collect();
        match services.is_empty() {
            true => format!("{address}:{port} is a frontend of no service that the servers told of"),
            false => format!("{address}:{port} belongs to {}", services.join(", ")),
        }
    }

    fn memory(&self) -> String {
        let held = |(cpu, id): (&u32, &u32)| format!("CPU {cpu} remembers backend {id}");
        let held: Vec<String> = self.observed.remembered.iter().map(held).collect();
        match (held.is_empty(), self.observed.opens) {
            (true, _) => "this flow is not remembered".to_owned(),
            (false, true) => format!("{}; a SYN is a new connection and does not ask", held.join(", ")),
            (false, false) => held.join(", "),
        }
    }

    fn ring(&self, index: u32) -> String {
        let Some(ring) = self.image.rings.get(&index).filter(|ring| ring.head.size() > 0) else {
            return format!("ring {index} is empty: no backend takes new flows");
        };
        let slot = ring.head.slot(self.observed.hash).wrapping_sub(ring.head.base());
        let (size, generation) = (ring.head.size(), ring.head.generation());
        format!("ring {index}, generation {generation}: hash {:08x}, slot {slot} of {size}", self.observed.hash)
    }

    fn chosen(&self, ring: u32) -> Option<u32> {
        let remembered = self.observed.remembered.values().next().filter(|_| !self.observed.opens);
        remembered.copied().or_else(|| {
            let ring = self.image.rings.get(&ring).filter(|ring| ring.head.size() > 0)?;
            let slot = ring.head.slot(self.observed.hash).wrapping_sub(ring.head.base());
            ring.slots.get(slot as usize).copied()
        })
    }

    fn backend(&self, id: u32) -> String {
        let Some(backend) = self.image.backends.get(&id) else { return format!("{id} is gone") };
        let of = |service: &ServiceRoutes| service.backends.iter().find(|route| route.id == id).cloned();
        let route: Option<BackendRoute> = self.services().iter().find_map(of);
        let place = match (backend.node == abi::NODE_SELF, backend.flags & abi::BACKEND_HOST != 0) {
            (true, true) => "in this node's own network",
            (true, false) => "on this node",
            (false, _) => "on another node",
        };
        let state = [(abi::BACKEND_DOWN, ", gone"), (abi::BACKEND_DRAINING, ", draining")];
        let state = state.iter().find(|(flag, _)| backend.flags & flag != 0).map_or("", |(_, text)| text);
        let alloc =
            route.map_or(String::new(), |route| format!(" (allocation {}, {})", route.alloc_id.short(), route.node));
        format!("{id}: {:?}:{:?}{alloc}, {place}{state}", backend.addr, backend.port)
    }

    fn services(&self) -> &[ServiceRoutes] {
        self.compilation.map(|compilation| compilation.services.as_slice()).unwrap_or_default()
    }
}
