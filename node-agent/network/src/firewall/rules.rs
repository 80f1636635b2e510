//! The rules as values, and how each becomes the kernel's steps.

use super::netlink::{Attributes, Expression};
use std::ops::RangeInclusive;

/// What a packet must be for a rule to act on it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Match {
    /// The interface it came in by has, or has not, a name that starts so.
    From { prefix: String, holds: bool },
    /// The same of the interface it leaves by.
    To { prefix: String, holds: bool },
    /// It came in by exactly this interface.
    FromLink(String),
    /// Its connection is in one of these states.
    State(State),
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum State {
    /// Of a connection that was let through before, or an error about one.
    Known,
    /// Of none that could be followed.
    Invalid,
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Action {
    Accept,
    Drop,
    /// Gets the address of the interface it leaves by, and a source port of these.
    Masquerade(RangeInclusive<u16>),
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Rule {
    pub matches: Vec<Match>,
    pub action: Action,
}

// linux/netfilter/nf_tables.h
const VERDICT_REGISTER: u32 = 0;
const REGISTER: u32 = 1;
const SECOND_REGISTER: u32 = 2;
const META_DESTINATION: u16 = 1;
const META_KEY: u16 = 2;
const IIFNAME: u32 = 6;
const OIFNAME: u32 = 7;
const COMPARE_SOURCE: u16 = 1;
const COMPARE_OPERATION: u16 = 2;
const COMPARE_DATA: u16 = 3;
const EQUAL: u32 = 0;
const NOT_EQUAL: u32 = 1;
const DATA_VALUE: u16 = 1;
const DATA_VERDICT: u16 = 2;
const VERDICT_CODE: u16 = 1;
const CT_DESTINATION: u16 = 1;
const CT_KEY: u16 = 2;
const CT_STATE: u32 = 0;
const BITWISE_SOURCE: u16 = 1;
const BITWISE_DESTINATION: u16 = 2;
const BITWISE_LENGTH: u16 = 3;
const BITWISE_MASK: u16 = 4;
const BITWISE_XOR: u16 = 5;
const IMMEDIATE_DESTINATION: u16 = 1;
const IMMEDIATE_DATA: u16 = 2;
const MASQUERADE_FLAGS: u16 = 1;
const MASQUERADE_PORT_MIN: u16 = 2;
const MASQUERADE_PORT_MAX: u16 = 3;
/// `NF_NAT_RANGE_PROTO_SPECIFIED`
const WITH_PORTS: u32 = 2;
const NF_DROP: u32 = 0;
const NF_ACCEPT: u32 = 1;

// Bits of a connection's state, in the host's byte order.
const INVALID: u32 = 1;
const ESTABLISHED: u32 = 2;
const RELATED: u32 = 4;

/// `IFNAMSIZ`
const NAME_MAX: usize = 16;

impl Rule {
    pub fn steps(&self) -> Vec<Expression> {
        let mut steps: Vec<Expression> = self.matches.iter().flat_map(Match::steps).collect();
        steps.push(("counter", Attributes::default()));
        steps.extend(self.action.steps());
        steps
    }
}

impl Match {
    fn steps(&self) -> Vec<Expression> {
        match self {
            Self::From { prefix, holds } => name(IIFNAME, prefix.as_bytes(), *holds),
            Self::To { prefix, holds } => name(OIFNAME, prefix.as_bytes(), *holds),
            Self::FromLink(link) => {
                let mut whole = link.clone().into_bytes();
                whole.resize(NAME_MAX, 0);
                name(IIFNAME, &whole, true)
            }
            Self::State(State::Known) => state(ESTABLISHED | RELATED),
            Self::State(State::Invalid) => state(INVALID),
        }
    }
}

impl Action {
    fn steps(&self) -> Vec<Expression> {
        match self {
            Self::Accept => vec![verdict(NF_ACCEPT)],
            Self::Drop => vec![verdict(NF_DROP)],
            Self::Masquerade(ports) => vec![
                immediate(REGISTER, value(&ports.start().to_be_bytes())),
                immediate(SECOND_REGISTER, value(&ports.end().to_be_bytes())),
                ("masq", masquerade()),
            ],
        }
    }
}

/// Compares the start of an interface's name.
fn name(key: u32, start: &[u8], holds: bool) -> Vec<Expression> {
    let load = Attributes::default().number(META_KEY, key).number(META_DESTINATION, REGISTER);
    vec![("meta", load), compare(if holds { EQUAL } else { NOT_EQUAL }, start)]
}

fn state(bits: u32) -> Vec<Expression> {
    let load = Attributes::default().number(CT_KEY, CT_STATE).number(CT_DESTINATION, REGISTER);
    let mask = Attributes::default()
        .number(BITWISE_SOURCE, REGISTER)
        .number(BITWISE_DESTINATION, REGISTER)
        .number(BITWISE_LENGTH, 4)
        .nested(BITWISE_MASK, value(&bits.to_ne_bytes()))
        .nested(BITWISE_XOR, value(&[0; 4]));
    vec![("ct", load), ("bitwise", mask), compare(NOT_EQUAL, &[0; 4])]
}

fn compare(operation: u32, with: &[u8]) -> Expression {
    let parameters = Attributes::default()
        .number(COMPARE_SOURCE, REGISTER)
        .number(COMPARE_OPERATION, operation)
        .nested(COMPARE_DATA, value(with));
    ("cmp", parameters)
}

fn verdict(code: u32) -> Expression {
    let code = Attributes::default().number(VERDICT_CODE, code);
    immediate(VERDICT_REGISTER, Attributes::default().nested(DATA_VERDICT, code))
}

fn immediate(register: u32, data: Attributes) -> Expression {
    ("immediate", Attributes::default().number(IMMEDIATE_DESTINATION, register).nested(IMMEDIATE_DATA, data))
}

fn value(bytes: &[u8]) -> Attributes {
    Attributes::default().bytes(DATA_VALUE, bytes)
}

fn masquerade() -> Attributes {
    Attributes::default()
        .number(MASQUERADE_FLAGS, WITH_PORTS)
        .number(MASQUERADE_PORT_MIN, REGISTER)
        .number(MASQUERADE_PORT_MAX, SECOND_REGISTER)
}
