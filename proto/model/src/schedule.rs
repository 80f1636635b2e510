//! Jobs that other jobs are made from: by a calendar, or by a dispatch.

use std::collections::BTreeSet;

/// Nomad's `periodic`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Periodic {
    pub enabled: bool,
    /// Cron expressions: five fields, or `@daily` and its like; never empty.
    pub crons: Vec<String>,
    /// No new job while one of an earlier time still runs.
    pub prohibit_overlap: bool,
    /// An IANA time zone name such as `Europe/Berlin`; `UTC` by default.
    pub time_zone: String,
}

/// Nomad's `parameterized`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Parameterized {
    pub payload: PayloadRule,
    pub meta_required: BTreeSet<String>,
    pub meta_optional: BTreeSet<String>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum PayloadRule {
    Optional,
    Required,
    Forbidden,
}

impl PayloadRule {
    pub const ALL: [PayloadRule; 3] = [PayloadRule::Optional, PayloadRule::Required, PayloadRule::Forbidden];

    pub fn as_str(self) -> &'static str {
        match self {
            PayloadRule::Optional => "optional",
            PayloadRule::Required => "required",
            PayloadRule::Forbidden => "forbidden",
        }
    }

    pub fn parse(text: &str) -> Option<Self> {
        Self::ALL.into_iter().find(|rule| rule.as_str() == text)
    }
}
