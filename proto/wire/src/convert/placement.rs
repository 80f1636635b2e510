//! Constraints, affinities, spreads, devices and dependencies.

use super::{Result, ToModel, ToPb, all, enum_pairs, enumeration, list, number};
use crate::convert::{ConvertError, Problem};
use crate::pb;
use model::{Affinity, Constraint, Dependency, DeviceRequest, Operator, Spread};
use std::collections::BTreeMap;

impl ToPb<pb::Constraint> for Constraint {
    fn to_pb(&self) -> pb::Constraint {
        pb::Constraint {
            attribute: self.attribute.clone(),
            operator: self.operator.to_pb().into(),
            value: self.value.clone(),
        }
    }
}

impl ToModel<Constraint> for pb::Constraint {
    fn to_model(self) -> Result<Constraint> {
        Ok(Constraint {
            attribute: self.attribute,
            operator: enumeration::<pb::Operator, _>(self.operator, "operator")?,
            value: self.value,
        })
    }
}

impl ToPb<pb::Affinity> for Affinity {
    fn to_pb(&self) -> pb::Affinity {
        pb::Affinity {
            attribute: self.attribute.clone(),
            operator: self.operator.to_pb().into(),
            value: self.value.clone(),
            weight: i32::from(self.weight),
        }
    }
}

impl ToModel<Affinity> for pb::Affinity {
    fn to_model(self) -> Result<Affinity> {
        let too_far = |_| ConvertError::new("weight", Problem::Invalid("is not within -100 to 100"));
        Ok(Affinity {
            attribute: self.attribute,
            operator: enumeration::<pb::Operator, _>(self.operator, "operator")?,
            value: self.value,
            weight: i8::try_from(self.weight).map_err(too_far)?,
        })
    }
}

impl ToPb<pb::Spread> for Spread {
    fn to_pb(&self) -> pb::Spread {
        pb::Spread {
            attribute: self.attribute.clone(),
            weight: u32::from(self.weight),
            targets: self.targets.iter().map(|(value, percent)| (value.clone(), u32::from(*percent))).collect(),
        }
    }
}

impl ToModel<Spread> for pb::Spread {
    fn to_model(self) -> Result<Spread> {
        let target = |(value, percent): (String, u32)| Ok((value, number(percent, "targets")?));
        Ok(Spread {
            attribute: self.attribute,
            weight: number(self.weight, "weight")?,
            targets: self.targets.into_iter().map(target).collect::<Result<BTreeMap<_, _>>>()?,
        })
    }
}

impl ToPb<pb::DeviceRequest> for DeviceRequest {
    fn to_pb(&self) -> pb::DeviceRequest {
        pb::DeviceRequest {
            name: self.name.clone(),
            count: self.count,
            constraints: all(&self.constraints),
            affinities: all(&self.affinities),
        }
    }
}

impl ToModel<DeviceRequest> for pb::DeviceRequest {
    fn to_model(self) -> Result<DeviceRequest> {
        Ok(DeviceRequest {
            name: self.name,
            count: self.count,
            constraints: list(self.constraints, "constraints")?,
            affinities: list(self.affinities, "affinities")?,
        })
    }
}

impl ToPb<pb::Dependency> for Dependency {
    fn to_pb(&self) -> pb::Dependency {
        pb::Dependency { job: self.job.clone(), group: self.group.clone() }
    }
}

impl ToModel<Dependency> for pb::Dependency {
    fn to_model(self) -> Result<Dependency> {
        Ok(Dependency { job: self.job, group: self.group })
    }
}

enum_pairs!(
    Operator,
    pb::Operator,
    Equal,
    NotEqual,
    Less,
    LessOrEqual,
    Greater,
    GreaterOrEqual,
    Regexp,
    Version,
    Semver,
    SetContains,
    SetContainsAny,
    IsSet,
    IsNotSet,
    DistinctHosts,
    DistinctProperty,
);
