//! Ids, addresses and times.

use super::{At, ConvertError, Problem, Result, ToModel, ToPb, present};
use crate::pb;
use ipnet::IpNet;
use model::{AllocId, DeploymentId, EvalId, NodeId, Timestamp};
use std::net::{IpAddr, SocketAddr};
use std::time::Duration;
use uuid::Uuid;

pub(crate) fn to_uuid(id: Uuid) -> Vec<u8> {
    id.as_bytes().to_vec()
}

pub(crate) fn uuid<T: FromUuid>(bytes: &[u8], field: &str) -> Result<T> {
    let length = || ConvertError::new(field, Problem::Length(bytes.len()));
    Uuid::from_slice(bytes).map(T::from_uuid).map_err(|_| length())
}

pub(crate) trait FromUuid {
    fn from_uuid(id: Uuid) -> Self;
}

macro_rules! from_uuid {
    ($($id:ident),+) => {
        $(impl FromUuid for $id {
            fn from_uuid(id: Uuid) -> Self {
                Self(id)
            }
        })+
    };
}
from_uuid!(AllocId, DeploymentId, EvalId, NodeId);

pub(crate) fn to_ip(address: IpAddr) -> Vec<u8> {
    match address {
        IpAddr::V4(v4) => v4.octets().to_vec(),
        IpAddr::V6(v6) => v6.octets().to_vec(),
    }
}

pub(crate) fn ip(bytes: &[u8], field: &str) -> Result<IpAddr> {
    if let Ok(v4) = <[u8; 4]>::try_from(bytes) {
        return Ok(IpAddr::from(v4));
    }
    let v6 = <[u8; 16]>::try_from(bytes).map_err(|_| ConvertError::new(field, Problem::Length(bytes.len())))?;
    Ok(IpAddr::from(v6))
}

pub(crate) fn port(value: u32, field: &str) -> Result<u16> {
    super::number(value, field)
}

pub(crate) fn to_endpoint(address: &SocketAddr) -> pb::Endpoint {
    pb::Endpoint { address: to_ip(address.ip()), port: u32::from(address.port()) }
}

pub(crate) fn socket_addr(value: Option<pb::Endpoint>, field: &str) -> Result<SocketAddr> {
    super::required(value, field)
}

impl ToModel<SocketAddr> for pb::Endpoint {
    fn to_model(self) -> Result<SocketAddr> {
        Ok(SocketAddr::new(ip(&self.address, "address")?, port(self.port, "port")?))
    }
}

impl ToPb<pb::Endpoint> for SocketAddr {
    fn to_pb(&self) -> pb::Endpoint {
        to_endpoint(self)
    }
}

impl ToPb<pb::Prefix> for IpNet {
    fn to_pb(&self) -> pb::Prefix {
        pb::Prefix { address: to_ip(self.addr()), length: u32::from(self.prefix_len()) }
    }
}

impl ToModel<IpNet> for pb::Prefix {
    fn to_model(self) -> Result<IpNet> {
        let out_of_range = || ConvertError::new("length", Problem::OutOfRange(u64::from(self.length)));
        let length = u8::try_from(self.length).map_err(|_| out_of_range())?;
        IpNet::new(ip(&self.address, "address")?, length).map_err(|_| out_of_range())
    }
}

pub(crate) fn to_span(duration: Duration) -> pb::Span {
    pb::Span { seconds: duration.as_secs(), nanos: duration.subsec_nanos() }
}

pub(crate) fn span(value: Option<pb::Span>, field: &str) -> Result<Duration> {
    let value = present(value, field)?;
    if value.nanos >= 1_000_000_000 {
        return Err(ConvertError::new("nanos", Problem::OutOfRange(u64::from(value.nanos)))).at(field);
    }
    Ok(Duration::new(value.seconds, value.nanos))
}

/// For fields whose absence means none.
pub(crate) fn to_span_unless_zero(duration: Duration) -> Option<pb::Span> {
    (!duration.is_zero()).then(|| to_span(duration))
}

pub(crate) fn span_or_zero(value: Option<pb::Span>, field: &str) -> Result<Duration> {
    value.map_or(Ok(Duration::ZERO), |value| span(Some(value), field))
}

pub(crate) fn to_digest(digest: &[u8; 32]) -> Vec<u8> {
    digest.to_vec()
}

pub(crate) fn digest(bytes: &[u8], field: &str) -> Result<[u8; 32]> {
    <[u8; 32]>::try_from(bytes).map_err(|_| ConvertError::new(field, Problem::Length(bytes.len())))
}

pub(crate) fn time(nanos: u64) -> Timestamp {
    Timestamp(nanos)
}
