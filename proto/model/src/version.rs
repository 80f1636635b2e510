//! Versions and version constraints as job files write them: `>= 5.10, < 7`, `~> 1.2`.
//!
//! The `version` operator is lenient (`v5.10`, `6.1.0-18-amd64`) and takes a pre-release only when the constraint names one
//! of the same release; `semver` wants three numbers and orders pre-releases as semver.org 2.0.0 section 11 says.

use semver::Prerelease;
use std::cmp::Ordering;

#[derive(Clone, Copy, PartialEq, Eq)]
pub enum Rules {
    Lenient,
    Semver,
}

#[derive(Clone, Debug, PartialEq, Eq)]
struct Version {
    segments: Vec<u64>,
    prerelease: Prerelease,
}

/// Whether `version` meets every part of `constraint`; anything unreadable does not.
pub fn matches(version: &str, constraint: &str, rules: Rules) -> bool {
    let Some(version) = Version::parse(version, rules) else { return false };
    constraint.split(',').all(|part| version.meets(part.trim(), rules).unwrap_or(false))
}

/// Whether every part of `constraint` can be read; what cannot would match nothing.
pub fn is_constraint(constraint: &str, rules: Rules) -> bool {
    constraint.split(',').all(|part| {
        let (operator, text) = split_operator(part.trim());
        let known = matches!(operator, "" | "=" | "!=" | ">" | "<" | ">=" | "<=")
            || (operator == "~>" && rules == Rules::Lenient);
        known && Version::parse(text, rules).is_some()
    })
}

impl Version {
    fn parse(text: &str, rules: Rules) -> Option<Self> {
        let text = text.trim();
        let text = if rules == Rules::Lenient { text.strip_prefix('v').unwrap_or(text) } else { text };
        let (text, _build) = text.split_once('+').unwrap_or((text, ""));
        let (numbers, prerelease) = text.split_once('-').unwrap_or((text, ""));
        let segments = numbers.split('.').map(|part| part.parse().ok()).collect::<Option<Vec<u64>>>()?;
        if rules == Rules::Semver && segments.len() != 3 {
            return None;
        }
        Some(Self { segments, prerelease: Self::prerelease(prerelease, rules)? })
    }

    /// Distributions append what semver does not allow (`6.1.0-18_amd64~1`); leniently, such characters count as dots.
    fn prerelease(text: &str, rules: Rules) -> Option<Prerelease> {
        if rules == Rules::Semver {
            return Prerelease::new(text).ok();
        }
        let cleaned: String =
            text.chars().map(|c| if c.is_ascii_alphanumeric() || c == '-' { c } else { '.' }).collect();
        let parts = cleaned.split('.').filter(|part| !part.is_empty()).map(without_leading_zeros);
        Prerelease::new(&parts.collect::<Vec<_>>().join(".")).ok()
    }

    fn meets(&self, part: &str, rules: Rules) -> Option<bool> {
        let (operator, text) = split_operator(part);
        let wanted = Version::parse(text, rules)?;
        let order = self.compare(&wanted);
        let released = rules == Rules::Semver || self.prerelease_allowed(&wanted);
        Some(match operator {
            "" | "=" => order == Ordering::Equal,
            "!=" => order != Ordering::Equal,
            ">" => released && order == Ordering::Greater,
            "<" => released && order == Ordering::Less,
            ">=" => released && order != Ordering::Less,
            "<=" => released && order != Ordering::Greater,
            "~>" if rules == Rules::Lenient => released && order != Ordering::Less && self.shares_parents_with(&wanted),
            _ => return None,
        })
    }

    fn compare(&self, other: &Version) -> Ordering {
        let len = self.segments.len().max(other.segments.len());
        (0..len)
            .map(|i| self.segment(i).cmp(&other.segment(i)))
            .find(|order| order.is_ne())
            .unwrap_or_else(|| self.prerelease.cmp(&other.prerelease))
    }

    fn segment(&self, i: usize) -> u64 {
        self.segments.get(i).copied().unwrap_or(0)
    }

    fn prerelease_allowed(&self, wanted: &Version) -> bool {
        self.prerelease.is_empty() || (!wanted.prerelease.is_empty() && self.same_release(wanted))
    }

    fn same_release(&self, other: &Version) -> bool {
        let len = self.segments.len().max(other.segments.len());
        (0..len).all(|i| self.segment(i) == other.segment(i))
    }

    /// `~> 1.2.3` stays within 1.2, `~> 1.2` within 1.
    fn shares_parents_with(&self, wanted: &Version) -> bool {
        (0..wanted.segments.len().saturating_sub(1)).all(|i| self.segment(i) == wanted.segment(i))
    }
}

fn without_leading_zeros(part: &str) -> String {
    let numeric = part.bytes().all(|byte| byte.is_ascii_digit());
    match part.trim_start_matches('0') {
        "" if numeric => "0".to_owned(),
        trimmed if numeric => trimmed.to_owned(),
        _ => part.to_owned(),
    }
}

fn split_operator(part: &str) -> (&str, &str) {
    let end = part.find(|c: char| !matches!(c, '<' | '>' | '=' | '!' | '~')).unwrap_or(part.len());
    (&part[..end], part[end..].trim())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[track_caller]
    fn check(version: &str, constraint: &str, lenient: bool, semver: bool) {
        assert_eq!(matches(version, constraint, Rules::Lenient), lenient, "version {version} {constraint}");
        assert_eq!(matches(version, constraint, Rules::Semver), semver, "semver {version} {constraint}");
    }

    #[test]
    fn versions_compare_as_in_job_files() {
        check("1.10.0", ">= 1.9.0", true, true);
        check("1.10.0", ">= 1.9.0, < 1.10.0", false, false);
        check("6.1", ">= 5.15", true, false);
        check("v1.2.3", "1.2.3", true, false);
        check("1.3.9", "~> 1.2", true, false);
        check("2.0.0", "~> 1.2", false, false);
        check("1.3.0", "~> 1.2.3", false, false);
        check("1.2.9", "~> 1.2.3", true, false);
        check("2.0.0-rc1", "> 1.0.0", false, true);
        check("2.0.0-rc2", "> 2.0.0-rc1", true, true);
        check("1.0.0-alpha.2", "< 1.0.0-alpha.10", true, true);
        check("6.1.0-018_amd64", "6.1.0-18.amd64", true, false);
    }

    #[test]
    fn unreadable_versions_match_nothing() {
        for text in ["", "x", "1..2", "-", ">", "99999999999999999999"] {
            check(text, ">= 0", false, false);
            check("1.2.3", text, false, false);
            assert!(!is_constraint(text, Rules::Lenient) && !is_constraint(text, Rules::Semver), "{text}");
        }
        assert!(is_constraint(">= 1.2, < 2", Rules::Lenient) && !is_constraint(">= 1.2, < 2", Rules::Semver));
        assert!(is_constraint("~> 1.2.3", Rules::Lenient) && !is_constraint("~> 1.2.3", Rules::Semver));
        assert!(is_constraint(">= 1.2.3-rc1", Rules::Semver) && !is_constraint("=> 1.2.3", Rules::Lenient));
    }
}
