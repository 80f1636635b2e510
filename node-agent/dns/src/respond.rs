//! From the bytes of a request to the bytes of its response: what every message needs, whatever it asks.

use crate::answer::{Answer, answer};
use crate::zone::Zone;
use hickory_proto::op::{Edns, Message, MessageType, Metadata, OpCode, ResponseCode};
use hickory_proto::rr::Record;

/// How the request came, which limits the response.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Transport {
    Udp,
    Tcp,
}

/// What a client without EDNS takes (RFC 1035 4.2.1).
const UDP_PLAIN_MAX: usize = 512;
/// The largest datagram sent, whatever a client says it takes; beyond it TCP is the better way.
const UDP_EDNS_MAX: u16 = 4_096;
const TCP_MAX: usize = 65_535;
/// Records beyond this would not fit in any message; not even trying bounds the work.
const ANSWERS_MAX: usize = 4_096;
const HEADER_LEN: usize = 12;

/// The response; `None` for what deserves none: responses and what is shorter than a header.
pub fn respond(request: &[u8], zone: &Zone, transport: Transport, seed: u64) -> Option<Vec<u8>> {
    let is_response = request.get(2)? & 0x80 != 0;
    if request.len() < HEADER_LEN || is_response {
        return None;
    }
    match Message::from_vec(request) {
        Ok(request) => encode(response_to(&request, zone, seed), size_max(&request, transport)),
        Err(_) => header_only(request, ResponseCode::FormErr),
    }
}

fn response_to(request: &Message, zone: &Zone, seed: u64) -> Message {
    let mut response = Message::new(request.metadata.id, MessageType::Response, request.metadata.op_code);
    response.metadata = Metadata::response_from_request(&request.metadata);
    response.queries = request.queries.clone();
    response.edns = request.edns.as_ref().map(echo_edns);
    match refusal(request) {
        Some(code) => response.metadata.response_code = code,
        None => fill(&mut response, answer(&request.queries[0], zone, seed)),
    }
    response
}

/// Why a request is not looked up at all.
fn refusal(request: &Message) -> Option<ResponseCode> {
    if request.edns.as_ref().is_some_and(|edns| edns.version() != 0) {
        return Some(ResponseCode::BADVERS);
    }
    if request.metadata.op_code != OpCode::Query {
        return Some(ResponseCode::NotImp);
    }
    (request.queries.len() != 1).then_some(ResponseCode::FormErr)
}

fn fill(response: &mut Message, answer: Answer) {
    response.metadata.response_code = answer.code;
    response.metadata.authoritative = answer.authoritative;
    response.answers = answer.answers;
    response.authorities = answer.authorities;
    response.additionals = answer.additionals;
}

fn echo_edns(asked: &Edns) -> Edns {
    let mut edns = Edns::new();
    edns.set_version(0).set_max_payload(asked.max_payload().clamp(UDP_PLAIN_MAX as u16, UDP_EDNS_MAX));
    edns
}

fn size_max(request: &Message, transport: Transport) -> usize {
    match (transport, &request.edns) {
        (Transport::Tcp, _) => TCP_MAX,
        (Transport::Udp, None) => UDP_PLAIN_MAX,
        (Transport::Udp, Some(edns)) => usize::from(edns.max_payload().clamp(UDP_PLAIN_MAX as u16, UDP_EDNS_MAX)),
    }
}

/// Fits the message into the limit: first what helps, then what is asked; only the latter sets TC (RFC 2181 9).
fn encode(mut message: Message, limit: usize) -> Option<Vec<u8>> {
    if message.answers.len() > ANSWERS_MAX {
        message.answers.truncate(ANSWERS_MAX);
        message.metadata.truncation = true;
    }
    if let Some(bytes) = encode_within(&message, limit) {
        return Some(bytes);
    }
    message.additionals.clear();
    if !message.answers.is_empty() {
        message.authorities.clear();
    }
    encode_within(&message, limit).or_else(|| encode_truncated(message, limit))
}

/// The most answers that fit, by halving.
fn encode_truncated(mut message: Message, limit: usize) -> Option<Vec<u8>> {
    let answers: Vec<Record> = std::mem::take(&mut message.answers);
    message.metadata.truncation = true;
    message.authorities.clear();
    let mut best = encode_within(&message, limit);
    let (mut fits, mut too_many) = (0, answers.len());
    while too_many - fits > 1 {
        let middle = fits + (too_many - fits) / 2;
        message.answers = answers[..middle].to_vec();
        match encode_within(&message, limit) {
            Some(bytes) => (best, fits) = (Some(bytes), middle),
            None => too_many = middle,
        }
    }
    best
}

/// `None` when it is too long. The encoder itself stops at 64 KiB and says so in the TC bit.
fn encode_within(message: &Message, limit: usize) -> Option<Vec<u8>> {
    const FLAGS_TC: u8 = 0x02;
    let bytes = message.to_vec().ok().filter(|bytes| bytes.len() <= limit)?;
    let cut = bytes.get(2)? & FLAGS_TC != 0 && !message.metadata.truncation;
    (!cut).then_some(bytes)
}

/// For a server that has no zone yet: whoever asks shall ask another or again, and remember nothing.
pub fn unavailable(request: &[u8]) -> Option<Vec<u8>> {
    let is_response = request.get(2)? & 0x80 != 0;
    let whole = request.len() >= HEADER_LEN && !is_response;
    whole.then(|| header_only(request, ResponseCode::ServFail)).flatten()
}

/// The header of something unread, turned around.
fn header_only(request: &[u8], code: ResponseCode) -> Option<Vec<u8>> {
    let id = u16::from_be_bytes([*request.first()?, *request.get(1)?]);
    let op_code = OpCode::from_u8((request.get(2)? >> 3) & 0x0f);
    let mut response = Message::new(id, MessageType::Response, op_code);
    response.metadata.response_code = code;
    response.to_vec().ok()
}
