//! Conversions between `pb` and `model`, one module per area, all through two small traits.
//!
//! Into protobuf nothing can fail. Out of it everything can: [`ConvertError`] says where and why.

mod alloc;
mod command;
mod deployment;
mod driver;
mod eval;
mod files;
mod job;
mod node;
mod placement;
mod policy;
mod routing;
pub(crate) mod scalar;
mod service;
mod store;

use std::collections::BTreeMap;
use std::fmt;
use thiserror::Error;

pub(crate) use alloc::{from_alloc_set, to_alloc_set};
pub(crate) use scalar::{digest, ip, port, socket_addr, span, span_or_zero, to_digest, to_endpoint, to_ip, to_span};
pub(crate) use scalar::{to_span_unless_zero, to_uuid, uuid};

/// What a message held that the model cannot.
#[derive(Clone, Debug, PartialEq, Eq, Error)]
#[error("{path}: {problem}")]
pub struct ConvertError {
    /// Field names and positions from the message's root, e.g. `plan.placements.allocations[3].client`.
    pub path: String,
    pub problem: Problem,
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Problem {
    /// A required field is absent.
    Missing,
    /// An enum's number that this version does not know; 0 is never valid.
    UnknownEnum(i32),
    OutOfRange(u64),
    /// Bytes of a length that the field cannot have.
    Length(usize),
    /// A position that points at nothing.
    Dangling(u32),
    Invalid(&'static str),
}

impl fmt::Display for Problem {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Problem::Missing => f.write_str("is required and absent"),
            Problem::UnknownEnum(number) => write!(f, "has the unknown value {number}; is the sender newer?"),
            Problem::OutOfRange(number) => write!(f, "{number} is out of range"),
            Problem::Length(bytes) => write!(f, "cannot be {bytes} bytes long"),
            Problem::Dangling(position) => write!(f, "points at position {position}, where nothing is"),
            Problem::Invalid(why) => f.write_str(why),
        }
    }
}

pub(crate) type Result<T> = std::result::Result<T, ConvertError>;

/// A value that can be written as `P`.
pub(crate) trait ToPb<P> {
    fn to_pb(&self) -> P;
}

/// A message that may hold a `M`.
pub(crate) trait ToModel<M> {
    fn to_model(self) -> Result<M>;
}

impl ConvertError {
    pub(crate) fn new(field: &str, problem: Problem) -> Self {
        Self { path: field.to_owned(), problem }
    }

    fn within(mut self, outer: &str) -> Self {
        let joint = if self.path.is_empty() || self.path.starts_with('[') { "" } else { "." };
        self.path = format!("{outer}{joint}{}", self.path);
        self
    }
}

/// Says which field a conversion failed in.
pub(crate) trait At<T> {
    fn at(self, field: &str) -> Result<T>;
}

impl<T> At<T> for Result<T> {
    fn at(self, field: &str) -> Result<T> {
        self.map_err(|error| error.within(field))
    }
}

/// A required message field.
pub(crate) fn required<P, M>(value: Option<P>, field: &str) -> Result<M>
where
    P: ToModel<M>,
{
    present(value, field)?.to_model().at(field)
}

pub(crate) fn optional<P, M>(value: Option<P>, field: &str) -> Result<Option<M>>
where
    P: ToModel<M>,
{
    value.map(|value| value.to_model().at(field)).transpose()
}

pub(crate) fn present<T>(value: Option<T>, field: &str) -> Result<T> {
    value.ok_or_else(|| ConvertError::new(field, Problem::Missing))
}

pub(crate) fn list<P, M>(values: Vec<P>, field: &str) -> Result<Vec<M>>
where
    P: ToModel<M>,
{
    let convert =
        |(position, value): (usize, P)| value.to_model().map_err(|e| e.within(&format!("{field}[{position}]")));
    values.into_iter().enumerate().map(convert).collect()
}

pub(crate) fn map<P, M>(values: BTreeMap<String, P>, field: &str) -> Result<BTreeMap<String, M>>
where
    P: ToModel<M>,
{
    let convert = |(key, value): (String, P)| match value.to_model() {
        Ok(value) => Ok((key, value)),
        Err(error) => Err(error.within(&format!("{field}[{key:?}]"))),
    };
    values.into_iter().map(convert).collect()
}

/// An enum field, which arrives as a number.
pub(crate) fn enumeration<P, M>(number: i32, field: &str) -> Result<M>
where
    P: TryFrom<i32> + ToModel<M>,
{
    let unknown = || ConvertError::new(field, Problem::UnknownEnum(number));
    P::try_from(number).map_err(|_| unknown())?.to_model().map_err(|_| unknown())
}

pub(crate) fn number<T: TryFrom<u64>>(value: impl Into<u64>, field: &str) -> Result<T> {
    let value = value.into();
    T::try_from(value).map_err(|_| ConvertError::new(field, Problem::OutOfRange(value)))
}

pub(crate) fn all<M: ToPb<P>, P>(values: &[M]) -> Vec<P> {
    values.iter().map(ToPb::to_pb).collect()
}

pub(crate) fn all_by_name<M: ToPb<P>, P>(values: &BTreeMap<String, M>) -> BTreeMap<String, P> {
    values.iter().map(|(name, value)| (name.clone(), value.to_pb())).collect()
}

/// Pairs the variants of a model enum with those of its protobuf twin.
macro_rules! enum_pairs {
    ($model:ty, $pb:ty, $($variant:ident),+ $(,)?) => {
        impl $crate::convert::ToPb<$pb> for $model {
            fn to_pb(&self) -> $pb {
                match self {
                    $(Self::$variant => <$pb>::$variant,)+
                }
            }
        }

        impl $crate::convert::ToModel<$model> for $pb {
            fn to_model(self) -> $crate::convert::Result<$model> {
                match self {
                    $(Self::$variant => Ok(<$model>::$variant),)+
                    Self::Unspecified => {
                        Err($crate::convert::ConvertError::new("", $crate::convert::Problem::UnknownEnum(0)))
                    }
                }
            }
        }
    };
}
pub(crate) use enum_pairs;
