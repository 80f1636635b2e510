//! Questions with their answers, as bytes in and bytes out.

use crate::{Transport, Zone, respond};
use hickory_proto::op::{Edns, Message, OpCode, Query, ResponseCode};
use hickory_proto::rr::{DNSClass, Name, RData, Record, RecordType};
use model::{
    AllocId, Generation, Health, Index, Instance, InstanceNetwork, JobId, NodeId, NodeStatus, RoutedNode,
    RoutedService, RoutingSnapshot,
};
use proptest::prelude::*;
use std::collections::BTreeSet;
use std::net::{IpAddr, Ipv4Addr};

fn node(number: u8, datacenter: &str) -> RoutedNode {
    RoutedNode {
        id: NodeId::from_random(u128::from(number)),
        name: format!("n{number}"),
        datacenter: datacenter.to_owned(),
        address: IpAddr::V4(Ipv4Addr::new(10, 77, 0, 10 + number)),
        blocks: Vec::new(),
        status: NodeStatus::Ready,
        zone: String::new(),
    }
}

fn instance(on: u8, host: u8, tags: &[&str]) -> Instance {
    let node = node(on, if on == 3 { "dc2" } else { "dc1" });
    Instance {
        service: "web".to_owned(),
        job_id: JobId("web".to_owned()),
        alloc_id: AllocId::from_random(u128::from(host)),
        node_id: node.id,
        node_name: node.name,
        datacenter: node.datacenter,
        address: IpAddr::V4(Ipv4Addr::new(10, 64, on, host)),
        port: 8080,
        vip_port: Some(80),
        tags: tags.iter().map(|tag| (*tag).to_owned()).collect(),
        weight: 1,
        network: InstanceNetwork::Bridge,
        health: Health::Passing,
        draining: false,
        modified_at_index: Index(1),
        steering: model::Steering::default(),
    }
}

fn service(name: &str, vip: u8, instances: Vec<Instance>) -> RoutedService {
    RoutedService { name: name.to_owned(), vip: IpAddr::V4(Ipv4Addr::new(10, 43, 0, vip)), instances }
}

fn zone_of(services: Vec<RoutedService>) -> Zone {
    let mut dotted = node(4, "dc1");
    dotted.name = "rack1.n4".to_owned();
    let nodes = vec![node(1, "dc1"), node(2, "dc1"), node(3, "dc2"), dotted];
    let routing = RoutingSnapshot { generation: Generation(42), nodes, services };
    let zone = Zone::from_routing(&routing, "cluster", "dc1").and_then(|zone| zone.with_alias("consul"));
    zone.expect("two good domains").with_server("10.64.1.1".parse().expect("an address"))
}

fn zone() -> Zone {
    let mut host = instance(2, 0, &[]);
    (host.network, host.address, host.port) =
        (InstanceNetwork::Host, "10.77.0.12".parse().expect("an address"), 20_001);
    let mut critical = instance(1, 9, &["v1"]);
    critical.health = Health::Critical;
    let mut draining = instance(1, 8, &["v1"]);
    draining.draining = true;
    let web =
        vec![instance(1, 2, &["v1", "V1.Primary"]), instance(2, 2, &["v2"]), instance(3, 2, &[]), critical, draining];
    let mut failing = instance(1, 10, &[]);
    failing.health = Health::Critical;
    zone_of(vec![service("failing", 3, vec![failing]), service("host", 2, vec![host]), service("web", 1, web)])
}

fn request(name: &str, kind: RecordType) -> Message {
    let mut request = Message::query();
    request.metadata.recursion_desired = true;
    request.add_query(Query::query(Name::from_ascii(name).expect("a name"), kind));
    request
}

fn send(zone: &Zone, request: &Message, transport: Transport) -> Message {
    let bytes = request.to_vec().expect("encodes");
    let response = respond(&bytes, zone, transport, 7).expect("is answered");
    let response = Message::from_vec(&response).expect("decodes");
    assert_eq!(response.metadata.id, request.metadata.id);
    response
}

fn ask(name: &str, kind: RecordType) -> Message {
    send(&zone(), &request(name, kind), Transport::Udp)
}

fn addresses(records: &[Record]) -> BTreeSet<String> {
    records.iter().filter_map(|record| record.data.ip_addr()).map(|address| address.to_string()).collect()
}

/// The addresses an A question gets; a name that does not exist gives its code.
fn check(name: &str, expect: &[&str]) {
    let response = ask(name, RecordType::A);
    assert_eq!(response.metadata.response_code, ResponseCode::NoError, "{name}");
    assert!(response.metadata.authoritative);
    assert_eq!(addresses(&response.answers), expect.iter().map(|address| (*address).to_owned()).collect(), "{name}");
}

fn check_unknown(name: &str) {
    let response = ask(name, RecordType::A);
    assert_eq!(response.metadata.response_code, ResponseCode::NXDomain, "{name}");
    assert_eq!(response.authorities[0].record_type(), RecordType::SOA, "{name}");
}

fn check_no_data(name: &str, kind: RecordType) {
    let response = ask(name, kind);
    assert_eq!(response.metadata.response_code, ResponseCode::NoError, "{name}");
    assert!(response.answers.is_empty(), "{name}");
    assert_eq!(response.authorities[0].record_type(), RecordType::SOA, "{name}");
}

#[test]
fn a_service_name_alone_is_its_vip() {
    check("web.cluster.", &["10.43.0.1"]);
    check("failing.cluster.", &["10.43.0.3"]);
    check_unknown("nobody.cluster.");
    check_no_data("web.cluster.", RecordType::AAAA);
}

#[test]
fn instances_that_are_neither_critical_nor_draining_are_named() {
    check("web.service.cluster.", &["10.64.1.2", "10.64.2.2", "10.64.3.2"]);
    check("host.service.cluster.", &["10.77.0.12"]);
    check_unknown("failing.service.cluster.");
    check_unknown("nobody.service.cluster.");
    check_no_data("web.service.cluster.", RecordType::AAAA);
    check_no_data("web.service.cluster.", RecordType::TXT);
}

#[test]
fn a_datacenter_narrows_and_an_unknown_one_is_no_name() {
    check("web.service.dc2.cluster.", &["10.64.3.2"]);
    check("v1.web.service.dc1.cluster.", &["10.64.1.2"]);
    check("n1.node.dc1.cluster.", &["10.77.0.11"]);
    check_unknown("web.service.dc9.cluster.");
    check_unknown("n1.node.dc2.cluster.");
    check_unknown("web.service.dc1.extra.cluster.");
}

#[test]
fn tags_filter_and_may_hold_dots() {
    check("v1.web.service.cluster.", &["10.64.1.2"]);
    check("v1.primary.web.service.cluster.", &["10.64.1.2"]);
    check_unknown("v3.web.service.cluster.");
}

#[test]
fn nodes_are_named_dots_and_all() {
    check("n2.node.cluster.", &["10.77.0.12"]);
    check("rack1.n4.node.cluster.", &["10.77.0.14"]);
    check_unknown("n9.node.cluster.");
}

#[test]
fn case_does_not_matter_and_is_kept() {
    let response = ask("WeB.SerVice.CLUSTER.", RecordType::A);
    assert_eq!(response.answers.len(), 3);
    assert_eq!(response.queries[0].name().to_ascii(), "WeB.SerVice.CLUSTER.");
    assert!(response.answers.iter().all(|record| record.name.to_ascii().to_lowercase() == "web.service.cluster."));
}

#[test]
fn an_alias_domain_answers_in_itself() {
    check("web.service.consul.", &["10.64.1.2", "10.64.2.2", "10.64.3.2"]);
    let response = ask("host.service.consul.", RecordType::SRV);
    let RData::SRV(srv) = &response.answers[0].data else { panic!("an SRV record") };
    assert_eq!(srv.target.to_ascii(), "n2.node.dc1.consul.");
}

/// Every target of an SRV answer, with port and additional address, leads back to the instance.
fn srv(name: &str) -> BTreeSet<(String, u16)> {
    let response = ask(name, RecordType::SRV);
    let lead = response.answers.iter().map(|record| {
        let RData::SRV(srv) = &record.data else { panic!("an SRV record") };
        assert_eq!((srv.priority, srv.weight), (1, 1));
        let glue =
            response.additionals.iter().find(|glue| glue.name == srv.target).and_then(|glue| glue.data.ip_addr());
        let direct = addresses(&ask(&srv.target.to_ascii(), RecordType::A).answers);
        assert_eq!(direct, glue.iter().map(IpAddr::to_string).collect(), "the target resolves to its glue");
        (srv.target.to_ascii(), srv.port)
    });
    lead.collect()
}

#[test]
fn srv_targets_are_the_address_of_a_bridge_instance_and_the_node_of_a_host_one() {
    let bridge = |hex: &str, dc: &str| (format!("{hex}.addr.{dc}.cluster."), 8080);
    let all = BTreeSet::from([bridge("0a400102", "dc1"), bridge("0a400202", "dc1"), bridge("0a400302", "dc2")]);
    assert_eq!(srv("web.service.cluster."), all);
    assert_eq!(srv("host.service.cluster."), BTreeSet::from([("n2.node.dc1.cluster.".to_owned(), 20_001)]));
}

#[test]
fn rfc_2782_names_filter_by_tag_unless_it_is_a_protocol() {
    let v1 = BTreeSet::from([("0a400102.addr.dc1.cluster.".to_owned(), 8080)]);
    for name in
        ["_web._v1.service.cluster.", "_web._v1.service.dc1.cluster.", "_web._v1.cluster.", "_web._v1.dc1.cluster."]
    {
        assert_eq!(srv(name), v1, "{name}");
    }
    assert_eq!(srv("_web._tcp.service.cluster.").len(), 3);
    check_unknown("extra._web._tcp.service.cluster.");
    check_unknown("_web.service.cluster.");
}

#[test]
fn an_address_name_of_the_other_family_shows_the_address_beside() {
    check("0a400102.addr.cluster.", &["10.64.1.2"]);
    let response = ask("0a400102.addr.dc1.cluster.", RecordType::AAAA);
    assert!(response.answers.is_empty());
    assert_eq!(addresses(&response.additionals), BTreeSet::from(["10.64.1.2".to_owned()]));
    check_unknown("0a4001.addr.cluster.");
    check_unknown("ga400102.addr.cluster.");
}

#[test]
fn the_apex_has_soa_and_ns_and_branches_have_nothing() {
    let soa = ask("cluster.", RecordType::SOA);
    let RData::SOA(data) = &soa.answers[0].data else { panic!("an SOA record") };
    assert_eq!((data.serial, data.minimum, data.mname.to_ascii()), (42, 0, "ns.cluster.".to_owned()));
    let ns = ask("cluster.", RecordType::NS);
    assert_eq!(ns.answers[0].record_type(), RecordType::NS);
    assert_eq!(addresses(&ns.additionals), BTreeSet::from(["10.64.1.1".to_owned()]));
    check("ns.cluster.", &["10.64.1.1"]);
    for branch in ["cluster.", "service.cluster.", "node.cluster.", "service.dc1.cluster."] {
        check_no_data(branch, RecordType::A);
    }
}

#[test]
fn other_zones_classes_and_transfers_are_refused() {
    for (name, kind) in [("example.com.", RecordType::A), (".", RecordType::NS), ("cluster.", RecordType::AXFR)] {
        let response = ask(name, kind);
        assert_eq!(response.metadata.response_code, ResponseCode::Refused, "{name}");
        assert!(!response.metadata.authoritative);
    }
    let mut chaos = request("web.cluster.", RecordType::A);
    chaos.queries[0].set_query_class(DNSClass::CH);
    assert_eq!(send(&zone(), &chaos, Transport::Udp).metadata.response_code, ResponseCode::Refused);
}

#[test]
fn requests_that_ask_nothing_answerable_say_so() {
    let mut two = request("web.cluster.", RecordType::A);
    two.add_query(two.queries[0].clone());
    assert_eq!(send(&zone(), &two, Transport::Udp).metadata.response_code, ResponseCode::FormErr);
    let mut notify = request("web.cluster.", RecordType::A);
    notify.metadata.op_code = OpCode::Notify;
    assert_eq!(send(&zone(), &notify, Transport::Udp).metadata.response_code, ResponseCode::NotImp);
    let mut future = request("web.cluster.", RecordType::A);
    let mut edns = Edns::new();
    edns.set_version(1);
    future.set_edns(edns);
    // BADVERS and BADSIG are both 16; without a signature it is the former (RFC 6891 6.1.3).
    assert_eq!(u16::from(send(&zone(), &future, Transport::Udp).metadata.response_code), 16);
}

#[test]
fn responses_and_scraps_get_no_answer() {
    let response = request("web.cluster.", RecordType::A).into_response().to_vec().expect("encodes");
    assert_eq!(respond(&response, &zone(), Transport::Udp, 0), None);
    assert_eq!(respond(b"short", &zone(), Transport::Udp, 0), None);
}

#[test]
fn without_a_zone_there_is_no_answer_to_remember() {
    let request = request("web.cluster.", RecordType::A).to_vec().expect("encodes");
    let response = crate::unavailable(&request).and_then(|bytes| Message::from_vec(&bytes).ok()).expect("is answered");
    assert_eq!(response.metadata.response_code, ResponseCode::ServFail);
    assert_eq!(crate::unavailable(b"short"), None);
}

/// Addresses that do not share bits, so that compression does not hide their size.
fn crowd(count: u8) -> Zone {
    zone_of(vec![service("web", 1, (0..count).map(|host| instance(1, host, &[])).collect())])
}

#[test]
fn a_datagram_keeps_to_512_bytes_without_edns_and_says_when_it_is_cut() {
    let request = request("web.service.cluster.", RecordType::A);
    let bytes = respond(&request.to_vec().expect("encodes"), &crowd(200), Transport::Udp, 1).expect("is answered");
    let response = Message::from_vec(&bytes).expect("decodes");
    assert!(bytes.len() <= 512 && bytes.len() > 480, "{}", bytes.len());
    assert!(response.metadata.truncation);
}

#[test]
fn edns_raises_the_limit_and_is_echoed() {
    let mut request = request("web.service.cluster.", RecordType::A);
    let mut edns = Edns::new();
    edns.set_max_payload(4_000);
    request.set_edns(edns);
    let response = send(&crowd(150), &request, Transport::Udp);
    assert_eq!((response.answers.len(), response.metadata.truncation), (150, false));
    assert_eq!(response.edns.as_ref().map(Edns::max_payload), Some(4_000));
}

#[test]
fn tcp_carries_everything() {
    let response = send(&crowd(250), &request("web.service.cluster.", RecordType::SRV), Transport::Tcp);
    assert_eq!((response.answers.len(), response.additionals.len()), (250, 250));
    assert!(!response.metadata.truncation);
}

#[test]
fn glue_goes_before_answers_and_without_a_truncation_mark() {
    let mut request = request("web.service.cluster.", RecordType::SRV);
    let mut edns = Edns::new();
    edns.set_max_payload(1_232);
    request.set_edns(edns);
    let response = send(&crowd(20), &request, Transport::Udp);
    assert_eq!((response.answers.len(), response.metadata.truncation), (20, false));
    assert!(response.additionals.is_empty());
}

#[test]
fn the_seed_turns_the_order() {
    let bytes = request("web.service.cluster.", RecordType::A).to_vec().expect("encodes");
    let first = |seed| {
        let response = respond(&bytes, &crowd(5), Transport::Udp, seed).expect("is answered");
        Message::from_vec(&response).expect("decodes").answers[0].data.ip_addr()
    };
    let seen: BTreeSet<_> = (0..100).map(first).collect();
    assert_eq!(seen.len(), 5);
    assert_eq!(first(3), first(3));
}

#[test]
fn domains_that_are_none_are_refused() {
    for domain in ["", ".", "a..b", &"x".repeat(70)] {
        assert!(Zone::from_routing(&RoutingSnapshot::default(), domain, "dc1").is_err(), "{domain}");
    }
}

proptest! {
    #[test]
    fn arbitrary_bytes_never_panic(bytes in prop::collection::vec(any::<u8>(), 0..600), tcp: bool, seed: u64) {
        let transport = if tcp { Transport::Tcp } else { Transport::Udp };
        if let Some(response) = respond(&bytes, &zone(), transport, seed) {
            prop_assert!(Message::from_vec(&response).is_ok());
        }
    }

    #[test]
    fn arbitrary_labels_never_panic(
        labels in prop::collection::vec(prop::collection::vec(any::<u8>(), 1..20), 0..6),
        branch in prop::sample::select(vec!["service", "node", "addr", "dc1", "_tcp"]),
        kind: u16,
    ) {
        let Ok(name) = Name::from_labels(labels.iter().map(Vec::as_slice).chain([branch.as_bytes(), b"cluster"])) else {
            return Ok(());
        };
        let mut request = Message::query();
        request.add_query(Query::query(name, RecordType::from(kind)));
        let bytes = request.to_vec();
        let response = bytes.ok().and_then(|bytes| respond(&bytes, &zone(), Transport::Udp, 1));
        prop_assert!(response.is_none_or(|response| response.len() <= 512));
    }

    /// Damaged copies of a good request: one flipped byte, one cut.
    #[test]
    fn damaged_requests_never_panic(at in 0..60_usize, value: u8, cut in 0..60_usize) {
        let mut bytes = request("_web._v1.service.dc1.cluster.", RecordType::SRV).to_vec().expect("encodes");
        if let Some(byte) = bytes.get_mut(at) {
            *byte = value;
        }
        bytes.truncate(bytes.len().saturating_sub(cut));
        respond(&bytes, &zone(), Transport::Udp, 1);
    }
}
