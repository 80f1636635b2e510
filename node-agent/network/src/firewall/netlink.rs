//! nf_tables as netlink messages (linux/netfilter/nf_tables.h, nfnetlink.h): attributes, batches that hold whole or not at
//! all, and the list of chains. Nothing here knows what the rules are for.

use rtnetlink::packet_core::{Emitable, NetlinkBuffer, NetlinkHeader, NlaBuffer, NlasIterator};
use rtnetlink::sys::{Socket, SocketAddr, protocols::NETLINK_NETFILTER};
use std::io;

// Message types: the subsystem in the high byte.
const SUBSYSTEM: u16 = 10;
const NEW_TABLE: u16 = SUBSYSTEM << 8;
const DEL_TABLE: u16 = SUBSYSTEM << 8 | 2;
const NEW_CHAIN: u16 = SUBSYSTEM << 8 | 3;
const GET_CHAIN: u16 = SUBSYSTEM << 8 | 4;
const NEW_RULE: u16 = SUBSYSTEM << 8 | 6;
const BATCH_BEGIN: u16 = 0x10;
const BATCH_END: u16 = 0x11;
const ERROR: u16 = 2;
const DONE: u16 = 3;

// linux/netlink.h
const REQUEST: u16 = 1;
const ACK: u16 = 4;
const DUMP: u16 = 0x300;
const CREATE: u16 = 0x400;
const APPEND: u16 = 0x800;
const NESTED: u16 = 0x8000;

const HEADER: usize = 16;
/// `struct nfgenmsg`
const FAMILY_HEADER: usize = 4;
const NFPROTO_IPV4: u8 = 2;

// Attributes of tables, chains and rules.
const NAME_OF_TABLE: u16 = 1;
const CHAIN_TABLE: u16 = 1;
const CHAIN_NAME: u16 = 3;
const CHAIN_HOOK: u16 = 4;
const CHAIN_POLICY: u16 = 5;
const CHAIN_TYPE: u16 = 7;
const HOOK_NUMBER: u16 = 1;
const HOOK_PRIORITY: u16 = 2;
const RULE_TABLE: u16 = 1;
const RULE_CHAIN: u16 = 2;
const RULE_EXPRESSIONS: u16 = 4;
const LIST_ELEMENT: u16 = 1;
const EXPRESSION_NAME: u16 = 1;
const EXPRESSION_DATA: u16 = 2;

/// A run of attributes as they go over the wire.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Attributes(Vec<u8>);

impl Attributes {
    pub fn bytes(mut self, kind: u16, value: &[u8]) -> Self {
        let length = (4 + value.len()) as u16;
        self.0.extend(length.to_ne_bytes());
        self.0.extend(kind.to_ne_bytes());
        self.0.extend(value);
        self.0.resize(self.0.len().next_multiple_of(4), 0);
        self
    }

    pub fn text(self, kind: u16, value: &str) -> Self {
        self.bytes(kind, &[value.as_bytes(), &[0]].concat())
    }

    pub fn number(self, kind: u16, value: u32) -> Self {
        self.bytes(kind, &value.to_be_bytes())
    }

    pub fn nested(self, kind: u16, inner: Self) -> Self {
        self.bytes(kind | NESTED, &inner.0)
    }
}

/// One step of a rule: its name in the kernel and its parameters.
pub type Expression = (&'static str, Attributes);

/// Where a base chain is asked.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Hook {
    pub number: u32,
    pub priority: i32,
    /// `filter` or `nat`.
    pub kind: &'static str,
}

/// IPv4.
pub const FORWARD: u32 = 2;
pub const POSTROUTING: u32 = 4;

/// Changes that the kernel makes together or not at all.
#[derive(Debug)]
pub struct Batch {
    bytes: Vec<u8>,
    messages: u32,
}

impl Batch {
    pub fn begin() -> Self {
        let mut batch = Self { bytes: Vec::new(), messages: 0 };
        batch.push(BATCH_BEGIN, REQUEST, 0, SUBSYSTEM, Attributes::default());
        batch
    }

    pub fn add_table(&mut self, table: &str) {
        self.change(NEW_TABLE, CREATE, Attributes::default().text(NAME_OF_TABLE, table));
    }

    pub fn remove_table(&mut self, table: &str) {
        self.change(DEL_TABLE, 0, Attributes::default().text(NAME_OF_TABLE, table));
    }

    /// Without a hook it is never asked.
    pub fn add_chain(&mut self, table: &str, name: &str, hook: Option<Hook>) {
        let mut chain = Attributes::default().text(CHAIN_TABLE, table).text(CHAIN_NAME, name);
        if let Some(Hook { number, priority, kind }) = hook {
            let place =
                Attributes::default().number(HOOK_NUMBER, number).number(HOOK_PRIORITY, priority.cast_unsigned());
            chain = chain.nested(CHAIN_HOOK, place).text(CHAIN_TYPE, kind);
        }
        self.change(NEW_CHAIN, CREATE, chain);
    }

    pub fn add_rule(&mut self, table: &str, chain: &str, steps: Vec<Expression>) {
        let elements = steps.into_iter().fold(Attributes::default(), |elements, (name, parameters)| {
            let step = Attributes::default().text(EXPRESSION_NAME, name).nested(EXPRESSION_DATA, parameters);
            elements.nested(LIST_ELEMENT, step)
        });
        let rule = Attributes::default().text(RULE_TABLE, table).text(RULE_CHAIN, chain);
        self.change(NEW_RULE, CREATE | APPEND, rule.nested(RULE_EXPRESSIONS, elements));
    }

    /// Sends it to the calling thread's network namespace.
    pub fn commit(mut self) -> io::Result<()> {
        self.push(BATCH_END, REQUEST, 0, SUBSYSTEM, Attributes::default());
        let socket = connect()?;
        socket.send(&self.bytes, 0)?;
        // The kernel has answered for every message by the time that sending returns.
        socket.set_non_blocking(true)?;
        let mut answered = false;
        loop {
            match socket.recv_from_full() {
                Ok((datagram, _)) => each_message(&datagram, |kind, payload| {
                    answered = true;
                    if kind == ERROR { refusal(payload) } else { Ok(()) }
                })?,
                Err(error) if error.kind() == io::ErrorKind::WouldBlock && answered => return Ok(()),
                Err(error) => return Err(error),
            }
        }
    }

    fn change(&mut self, kind: u16, flags: u16, attributes: Attributes) {
        self.push(kind, REQUEST | ACK | flags, NFPROTO_IPV4, 0, attributes);
    }

    fn push(&mut self, kind: u16, flags: u16, family: u8, resource: u16, attributes: Attributes) {
        self.messages += 1;
        self.bytes.extend(message(kind, flags, self.messages, family, resource, &attributes));
    }
}

/// A chain as the kernel lists it.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Chain {
    /// Of the table, as in linux/netfilter.h.
    pub family: u8,
    pub table: String,
    pub name: String,
    /// The hook's number, for a base chain.
    pub hook: Option<u32>,
    /// Whether what reaches its end is dropped.
    pub drops: bool,
}

/// Every chain of every table in the calling thread's network namespace.
pub fn chains() -> io::Result<Vec<Chain>> {
    let socket = connect()?;
    socket.send(&message(GET_CHAIN, REQUEST | DUMP, 1, 0, 0, &Attributes::default()), 0)?;
    let (mut found, mut done) = (Vec::new(), false);
    while !done {
        let (datagram, _) = socket.recv_from_full()?;
        each_message(&datagram, |kind, payload| {
            match kind {
                DONE => done = true,
                ERROR => refusal(payload)?,
                NEW_CHAIN => found.extend(chain(payload)),
                _ => {}
            }
            Ok(())
        })?;
    }
    Ok(found)
}

fn connect() -> io::Result<Socket> {
    let mut socket = Socket::new(NETLINK_NETFILTER)?;
    socket.bind_auto()?;
    socket.connect(&SocketAddr::new(0, 0))?;
    Ok(socket)
}

fn message(kind: u16, flags: u16, sequence: u32, family: u8, resource: u16, attributes: &Attributes) -> Vec<u8> {
    let mut header = NetlinkHeader::default();
    let length = HEADER + FAMILY_HEADER + attributes.0.len();
    (header.length, header.message_type, header.flags) = (length as u32, kind, flags);
    header.sequence_number = sequence;
    let mut bytes = vec![0; HEADER];
    header.emit(&mut bytes);
    let [high, low] = resource.to_be_bytes();
    bytes.extend([family, 0, high, low]);
    bytes.extend(&attributes.0);
    bytes
}

fn each_message(mut datagram: &[u8], mut visit: impl FnMut(u16, &[u8]) -> io::Result<()>) -> io::Result<()> {
    while datagram.len() >= HEADER {
        let message = NetlinkBuffer::new_checked(datagram).map_err(io::Error::other)?;
        visit(message.message_type(), message.payload())?;
        let length = (message.length() as usize).next_multiple_of(4);
        datagram = datagram.get(length..).unwrap_or_default();
    }
    Ok(())
}

/// `struct nlmsgerr` begins with the negative error number, 0 for an acknowledgement.
fn refusal(payload: &[u8]) -> io::Result<()> {
    match payload.first_chunk().map(|bytes| i32::from_ne_bytes(*bytes)) {
        Some(0) => Ok(()),
        Some(number) => Err(io::Error::from_raw_os_error(-number)),
        None => Err(io::ErrorKind::UnexpectedEof.into()),
    }
}

fn chain(payload: &[u8]) -> Option<Chain> {
    let (header, attributes) = payload.split_at_checked(FAMILY_HEADER)?;
    let mut chain = Chain { family: header[0], ..Chain::default() };
    for attribute in NlasIterator::new(attributes).map_while(Result::ok) {
        match attribute.kind() {
            CHAIN_TABLE => chain.table = text(&attribute),
            CHAIN_NAME => chain.name = text(&attribute),
            CHAIN_POLICY => chain.drops = number(attribute.value()) == Some(0),
            CHAIN_HOOK => {
                let mut inner = NlasIterator::new(attribute.value()).map_while(Result::ok);
                chain.hook = inner.find(|inner| inner.kind() == HOOK_NUMBER).and_then(|hook| number(hook.value()));
            }
            _ => {}
        }
    }
    Some(chain)
}

fn text(attribute: &NlaBuffer<&[u8]>) -> String {
    String::from_utf8_lossy(attribute.value()).trim_end_matches('\0').to_owned()
}

fn number(value: &[u8]) -> Option<u32> {
    value.first_chunk().map(|bytes| u32::from_be_bytes(*bytes))
}
