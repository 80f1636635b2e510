//! How a service's clients are led to its instances, as the service's meta asks.
//!
//! | key | value | means |
//! |---|---|---|
//! | `mesh.zone` | `prefer` | new flows stay in the zone of the node they come in at while an instance there takes them |
//! | `mesh.zone_spill` | 0 to 100 | the percentage of them that goes to other zones all the same |
//! | `mesh.slow_start` | a duration | a new instance's share of new flows grows to its weight in this time |
//! | `mesh.mode` | `via-entry` | replies go back through the node that the flow came in by |

use std::collections::BTreeMap;
use std::time::Duration;

#[derive(Clone, Copy, Debug, PartialEq, Eq, Default)]
pub struct Steering {
    /// The percentage of new flows that leaves a zone which has an instance of its own; `None` has no zones.
    pub zone_spill: Option<u8>,
    /// Zero: a new instance takes its whole share at once.
    pub slow_start: Duration,
}

const PREFIX: &str = "mesh.";
const ZONE: &str = "zone";
const ZONE_SPILL: &str = "zone_spill";
const SLOW_START: &str = "slow_start";
const MODE: &str = "mode";

/// Longer ones are mistakes: the share would hardly grow.
const SLOW_START_MAX: Duration = Duration::from_secs(3600);

impl Steering {
    /// Refuses what is not known under `mesh.`, and what is known and not built yet.
    pub fn parse(meta: &BTreeMap<String, String>) -> Result<Self, String> {
        let mut steering = Self::default();
        let (mut prefers, mut spill) = (false, None);
        for (key, value) in meta.iter().filter_map(|(key, value)| Some((key.strip_prefix(PREFIX)?, value.trim()))) {
            let wrong = |what: &str| Err(format!("{PREFIX}{key}: `{value}` {what}"));
            match (key, value) {
                (ZONE, "prefer") => prefers = true,
                (ZONE, _) => return wrong("is not known; write \"prefer\" or leave it out"),
                (ZONE_SPILL, _) => match value.parse() {
                    Ok(percent @ 0..=100) => spill = Some(percent),
                    _ => return wrong("is no percentage; write a number from 0 to 100"),
                },
                (SLOW_START, _) => match duration(value) {
                    Some(time) if time <= SLOW_START_MAX => steering.slow_start = time,
                    _ => return wrong("is no duration up to an hour; write for example \"30s\""),
                },
                (MODE, "via-entry") => {}
                (MODE, "direct") => return wrong("is not built yet; replies go back \"via-entry\""),
                (MODE, _) => return wrong("is not known; write \"via-entry\" or leave it out"),
                ("affinity" | "allow", _) => {
                    return Err(format!("{PREFIX}{key} is not built yet; leave it out"));
                }
                _ => {
                    return Err(format!(
                        "{PREFIX}{key} is not known; there are {PREFIX}{ZONE}, {PREFIX}{ZONE_SPILL}, {PREFIX}{SLOW_START} and {PREFIX}{MODE}"
                    ));
                }
            }
        }
        match (prefers, spill) {
            (false, Some(_)) => Err(format!("{PREFIX}{ZONE_SPILL} needs {PREFIX}{ZONE} = \"prefer\"")),
            (prefers, spill) => Ok(Self { zone_spill: prefers.then(|| spill.unwrap_or(0)), ..steering }),
        }
    }

    /// Of instances that were registered with different wishes: the widest spill, the longest start.
    pub fn merge(self, other: Self) -> Self {
        Self { zone_spill: self.zone_spill.max(other.zone_spill), slow_start: self.slow_start.max(other.slow_start) }
    }
}

/// A whole number and its unit: what meta says is short.
fn duration(text: &str) -> Option<Duration> {
    let (number, unit) = text.split_at(text.find(|c: char| !c.is_ascii_digit())?);
    let number: u64 = number.parse().ok()?;
    match unit {
        "ms" => Some(Duration::from_millis(number)),
        "s" => Some(Duration::from_secs(number)),
        "m" => Some(Duration::from_secs(number.checked_mul(60)?)),
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parse(pairs: &[(&str, &str)]) -> Result<Steering, String> {
        Steering::parse(&pairs.iter().map(|(key, value)| ((*key).to_owned(), (*value).to_owned())).collect())
    }

    #[test]
    fn known_keys_are_read_and_others_meta_is_not_ours() {
        assert_eq!(parse(&[("vip_port", "80"), ("mesh", "x")]), Ok(Steering::default()));
        let asked = [("mesh.zone", "prefer"), ("mesh.zone_spill", "20"), ("mesh.slow_start", "30s")];
        let wanted = Steering { zone_spill: Some(20), slow_start: Duration::from_secs(30) };
        assert_eq!(parse(&asked), Ok(wanted));
        assert_eq!(parse(&[("mesh.zone", "prefer")]).map(|steering| steering.zone_spill), Ok(Some(0)));
        assert_eq!(parse(&[("mesh.mode", "via-entry")]), Ok(Steering::default()));
    }

    #[test]
    fn what_cannot_be_done_is_refused_by_name() {
        for (key, value) in [
            ("mesh.mode", "direct"),
            ("mesh.mode", "dsr"),
            ("mesh.zone", "only"),
            ("mesh.zone_spill", "20"),
            ("mesh.slow_start", "soon"),
            ("mesh.slow_start", "61m"),
            ("mesh.affinity", "1h"),
            ("mesh.allow", "10.0.0.0/8"),
            ("mesh.colour", "red"),
        ] {
            let said = parse(&[(key, value)]).expect_err(value);
            assert!(said.contains(key), "{said}");
        }
        assert!(parse(&[("mesh.zone", "prefer"), ("mesh.zone_spill", "101")]).is_err());
    }
}
