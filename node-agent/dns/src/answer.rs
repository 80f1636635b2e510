//! The answer to one question.

use crate::name::{self, Target};
use crate::zone::{InstanceEntry, NodeEntry, Zone};
use hickory_proto::op::{Query, ResponseCode};
use hickory_proto::rr::rdata::{A, AAAA, NS, SOA, SRV};
use hickory_proto::rr::{DNSClass, Name, RData, Record, RecordType};
use model::InstanceNetwork;
use std::collections::BTreeSet;
use std::net::IpAddr;

/// Instances come and go: their records are for the asking transaction alone, as Consul's are.
const INSTANCE_TTL: u32 = 0;
/// A virtual address stays for as long as its service is known.
const VIP_TTL: u32 = 5;
const SOA_REFRESH: i32 = 3_600;
const SOA_RETRY: i32 = 600;
const SOA_EXPIRE: i32 = 86_400;
/// Also how long "there is none" may be remembered: not at all.
const SOA_MINIMUM: u32 = 0;

#[derive(Clone, Debug, PartialEq)]
pub struct Answer {
    pub code: ResponseCode,
    pub authoritative: bool,
    pub answers: Vec<Record>,
    pub authorities: Vec<Record>,
    pub additionals: Vec<Record>,
}

/// Answers out of the zone; the seed decides the order of instances.
pub fn answer(question: &Query, zone: &Zone, seed: u64) -> Answer {
    let Some(origin) = zone.origin_of(question.name()) else { return Answer::refused() };
    let transfer = matches!(question.query_type(), RecordType::AXFR | RecordType::IXFR);
    if transfer || !matches!(question.query_class(), DNSClass::IN | DNSClass::ANY) {
        return Answer::refused();
    }
    let mut asked = Asked { question, zone, origin, answer: Answer::found() };
    match asked.fill(name::parse(question.name(), origin, zone), seed) {
        Existence::Exists => asked.no_data_unless_filled(),
        Existence::Unknown => asked.no_such_name(),
    }
    asked.answer
}

enum Existence {
    Exists,
    Unknown,
}

struct Asked<'a> {
    question: &'a Query,
    zone: &'a Zone,
    origin: &'a Name,
    answer: Answer,
}

impl Asked<'_> {
    fn fill(&mut self, target: Target, seed: u64) -> Existence {
        match target {
            Target::Apex => self.fill_apex(),
            Target::Branch => Existence::Exists,
            Target::Server => self.fill_server(),
            Target::Vip(service) => self.fill_vip(&service),
            Target::Service { name, tag, datacenter } => self.fill_service(&name, tag, datacenter, seed),
            Target::Node { name, datacenter } => self.fill_node(&name, datacenter),
            Target::Address(address) => self.fill_address(address),
            Target::Unknown => Existence::Unknown,
        }
    }

    fn fill_apex(&mut self) -> Existence {
        if self.asks(RecordType::SOA) {
            self.answer.answers.push(self.soa());
        }
        if self.asks(RecordType::NS) {
            let server = self.in_zone(&["ns"]);
            self.answer.answers.push(self.record(RData::NS(NS(server.clone())), INSTANCE_TTL));
            self.answer
                .additionals
                .extend(self.zone.server.map(|address| address_record(server, address, INSTANCE_TTL)));
        }
        Existence::Exists
    }

    fn fill_server(&mut self) -> Existence {
        let Some(address) = self.zone.server else { return Existence::Unknown };
        self.push_address(address, INSTANCE_TTL);
        Existence::Exists
    }

    /// A service whose instances have no port on the VIP has no VIP either.
    fn fill_vip(&mut self, service: &str) -> Existence {
        let Some(entry) = self.zone.services.get(service) else { return Existence::Unknown };
        if entry.has_vip_port {
            self.push_address(entry.vip, VIP_TTL);
        }
        Existence::Exists
    }

    fn fill_service(&mut self, name: &str, tag: Option<String>, datacenter: Option<String>, seed: u64) -> Existence {
        let Some(entry) = self.zone.services.get(name) else { return Existence::Unknown };
        let matches = |instance: &&InstanceEntry| {
            tag.as_ref().is_none_or(|tag| instance.tags.contains(tag))
                && datacenter.as_ref().is_none_or(|datacenter| instance.datacenter == *datacenter)
        };
        let mut instances: Vec<&InstanceEntry> = entry.instances.iter().filter(matches).collect();
        if instances.is_empty() {
            return Existence::Unknown;
        }
        shuffle(&mut instances, seed);
        match self.question.query_type() {
            RecordType::SRV => self.push_services(&instances),
            _ => self.push_addresses(&instances),
        }
        Existence::Exists
    }

    fn fill_node(&mut self, name: &str, datacenter: Option<String>) -> Existence {
        let here = |node: &&NodeEntry| datacenter.as_ref().is_none_or(|datacenter| node.datacenter == *datacenter);
        let Some(node) = self.zone.nodes.get(name).filter(here) else { return Existence::Unknown };
        self.push_address(node.address, INSTANCE_TTL);
        Existence::Exists
    }

    fn fill_address(&mut self, address: IpAddr) -> Existence {
        self.push_address(address, INSTANCE_TTL);
        if self.answer.answers.is_empty() {
            self.answer.additionals.push(address_record(self.question.name().clone(), address, INSTANCE_TTL));
        }
        Existence::Exists
    }

    fn push_addresses(&mut self, instances: &[&InstanceEntry]) {
        let mut seen = BTreeSet::new();
        for instance in instances.iter().filter(|instance| seen.insert(instance.address)) {
            self.push_address(instance.address, INSTANCE_TTL);
        }
    }

    fn push_services(&mut self, instances: &[&InstanceEntry]) {
        let mut seen = BTreeSet::new();
        for instance in instances.iter().filter(|instance| seen.insert((instance.address, instance.port))) {
            let target = self.srv_target(instance);
            let data = SRV::new(1, instance.weight, instance.port, target.clone());
            self.answer.answers.push(self.record(RData::SRV(data), INSTANCE_TTL));
            let glue = address_record(target, instance.address, INSTANCE_TTL);
            if !self.answer.additionals.contains(&glue) {
                self.answer.additionals.push(glue);
            }
        }
    }

    /// An instance at its node's address is found by the node's name, one with an address of its own by that.
    fn srv_target(&self, instance: &InstanceEntry) -> Name {
        match instance.network {
            InstanceNetwork::Bridge => self.in_zone(&[&name::hex(instance.address), "addr", &instance.datacenter]),
            InstanceNetwork::Host => {
                let labels: Vec<&str> = instance.node_name.split('.').chain(["node", &instance.datacenter]).collect();
                self.in_zone(&labels)
            }
        }
    }

    fn push_address(&mut self, address: IpAddr, ttl: u32) {
        let data = address_data(address);
        if self.asks(data.record_type()) {
            self.answer.answers.push(self.record(data, ttl));
        }
    }

    fn asks(&self, kind: RecordType) -> bool {
        let asked = self.question.query_type();
        asked == kind || asked == RecordType::ANY
    }

    fn no_data_unless_filled(&mut self) {
        if self.answer.answers.is_empty() {
            self.answer.authorities.push(self.soa());
        }
    }

    fn no_such_name(&mut self) {
        self.answer.code = ResponseCode::NXDomain;
        self.answer.authorities.push(self.soa());
    }

    /// A record of the name as it was asked, case and all.
    fn record(&self, data: RData, ttl: u32) -> Record {
        Record::from_rdata(self.question.name().clone(), ttl, data)
    }

    fn soa(&self) -> Record {
        let (server, person) = (self.in_zone(&["ns"]), self.in_zone(&["hostmaster"]));
        let data = SOA::new(server, person, self.zone.serial, SOA_REFRESH, SOA_RETRY, SOA_EXPIRE, SOA_MINIMUM);
        Record::from_rdata(self.origin.clone(), SOA_MINIMUM, RData::SOA(data))
    }

    /// A name below the asked domain; the domain itself when a label cannot be one (a node name of 64 letters, say).
    fn in_zone(&self, labels: &[&str]) -> Name {
        let relative = Name::from_labels(labels.iter().map(|label| label.as_bytes()));
        relative.and_then(|name| name.append_domain(self.origin)).unwrap_or_else(|_| self.origin.clone())
    }
}

impl Answer {
    fn found() -> Self {
        let (answers, authorities, additionals) = (Vec::new(), Vec::new(), Vec::new());
        Self { code: ResponseCode::NoError, authoritative: true, answers, authorities, additionals }
    }

    pub(crate) fn refused() -> Self {
        Self { code: ResponseCode::Refused, authoritative: false, ..Self::found() }
    }
}

fn address_record(name: Name, address: IpAddr, ttl: u32) -> Record {
    Record::from_rdata(name, ttl, address_data(address))
}

fn address_data(address: IpAddr) -> RData {
    match address {
        IpAddr::V4(address) => RData::A(A(address)),
        IpAddr::V6(address) => RData::AAAA(AAAA(address)),
    }
}

/// Fisher and Yates, by a SplitMix64 sequence of the seed.
fn shuffle<T>(items: &mut [T], seed: u64) {
    let mut state = seed;
    for end in (1..items.len()).rev() {
        state = state.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mixed = (state ^ (state >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        let mixed = (mixed ^ (mixed >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        items.swap(end, ((mixed ^ (mixed >> 31)) % (end as u64 + 1)) as usize);
    }
}
