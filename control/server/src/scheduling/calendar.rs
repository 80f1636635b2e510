//! When a periodic job is due: cron expressions in a time zone.
//!
//! A clock that is set forward skips an hour: what lies in it runs when the gap ends. One that is set back repeats an hour:
//! what names a fixed time in it runs once. What an absence of leaders made a job miss is made up for once, for the newest of
//! the missed times; one that is registered does not run for times before that.

use croner::Cron;
use croner::parser::{CronParser, Seconds, Year};
use jiff::tz::TimeZone;
use jiff::{Timestamp as Instant, Zoned};
use model::{Job, Periodic, Timestamp};

/// Missed times that are looked through for the newest; a job that missed more runs for a later one then.
const MISSED_MAX: usize = 100_000;

pub(crate) struct Calendar {
    crons: Vec<Cron>,
    zone: TimeZone,
}

impl Calendar {
    /// Every fault is a sentence that names the field.
    pub(crate) fn read(periodic: &Periodic) -> Result<Self, String> {
        let zone = TimeZone::get(&periodic.time_zone).map_err(|_| {
            let name = &periodic.time_zone;
            format!("periodic.time_zone: {name:?} is no time zone; write one like \"Europe/Berlin\" or \"UTC\"")
        })?;
        if periodic.crons.is_empty() {
            return Err("periodic.crons: at least one cron expression is needed".to_owned());
        }
        let crons: Result<Vec<Cron>, String> = periodic.crons.iter().map(|cron| read_cron(cron)).collect();
        Ok(Self { crons: crons?, zone })
    }

    /// The first time after `after`; `None` when there is none any more.
    pub(crate) fn next(&self, after: Timestamp) -> Option<Timestamp> {
        let after = self.zoned(after)?;
        let next = self.crons.iter().filter_map(|cron| cron.find_next_occurrence(&after, false).ok());
        next.map(|time| to_timestamp(&time)).min()
    }

    /// The newest time after `after` and not after `now`.
    pub(crate) fn due(&self, after: Timestamp, now: Timestamp) -> Option<Timestamp> {
        let next = |time: &Timestamp| self.next(*time).filter(|next| *next <= now && next > time);
        std::iter::successors(next(&after), next).take(MISSED_MAX).last()
    }

    fn zoned(&self, time: Timestamp) -> Option<Zoned> {
        let nanos = i128::from(time.0);
        Instant::from_nanosecond(nanos).ok().map(|instant| instant.to_zoned(self.zone.clone()))
    }
}

/// From which time on a job's calendar counts.
pub(crate) fn counts_from(job: &Job, launched_for: Timestamp) -> Timestamp {
    launched_for.max(job.submitted_at)
}

fn read_cron(text: &str) -> Result<Cron, String> {
    let parser = CronParser::builder().seconds(Seconds::Optional).year(Year::Optional).build();
    let fields = text.split_whitespace().count();
    let parsed = match (fields, text.starts_with('@')) {
        // Nomad counts six fields as five and a year, and seven as seconds first.
        (6, false) => parser.parse(&format!("0 {text}")),
        _ => parser.parse(text),
    };
    parsed.map_err(|error| {
        format!("periodic.crons: {text:?} is no cron expression ({error}); write for example \"*/15 * * * *\"")
    })
}

fn to_timestamp(time: &Zoned) -> Timestamp {
    Timestamp(u64::try_from(time.timestamp().as_nanosecond()).unwrap_or_default())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn calendar(crons: &[&str], zone: &str) -> Result<Calendar, String> {
        Calendar::read(&Periodic {
            enabled: true,
            crons: crons.iter().map(|cron| (*cron).to_owned()).collect(),
            prohibit_overlap: false,
            time_zone: zone.to_owned(),
        })
    }

    fn at(text: &str) -> Timestamp {
        to_timestamp(&text.parse().unwrap())
    }

    #[track_caller]
    fn check(crons: &[&str], zone: &str, after: &str, expected: &[&str]) {
        let calendar = calendar(crons, zone).unwrap();
        let times = std::iter::successors(calendar.next(at(after)), |time| calendar.next(*time));
        let expected: Vec<Timestamp> = expected.iter().map(|text| at(text)).collect();
        assert_eq!(times.take(expected.len()).collect::<Vec<_>>(), expected);
    }

    #[test]
    fn times_are_of_the_jobs_zone_and_of_any_of_its_expressions() {
        check(
            &["*/15 * * * *"],
            "UTC",
            "2026-11-23T10:07:00Z[UTC]",
            &["2026-11-23T10:15:00Z[UTC]", "2026-11-23T10:30:00Z[UTC]"],
        );
        check(
            &["0 9 * * MON-FRI", "30 9 * * *"],
            "Europe/Berlin",
            "2026-11-27T09:00:00+01:00[Europe/Berlin]",
            &[
                "2026-11-27T09:30:00+01:00[Europe/Berlin]",
                "2026-11-28T09:30:00+01:00[Europe/Berlin]",
                "2026-11-29T09:30:00+01:00[Europe/Berlin]",
                "2026-11-30T09:00:00+01:00[Europe/Berlin]",
            ],
        );
        check(&["@daily"], "America/New_York", "2026-11-23T10:00:00Z[UTC]", &["2026-11-24T05:00:00Z[UTC]"]);
        check(&["0 0 1 1 * 2030"], "UTC", "2026-11-23T10:00:00Z[UTC]", &["2030-01-01T00:00:00Z[UTC]"]);
    }

    #[test]
    fn a_clock_that_is_set_forward_or_back_makes_it_run_once() {
        // 2027-03-28: 02:30 does not exist in Berlin. 2026-10-25: it comes twice.
        let calendar = calendar(&["30 2 * * *"], "Europe/Berlin").unwrap();
        let days = |from: &str, to: &str| {
            let times = std::iter::successors(calendar.next(at(from)), |time| calendar.next(*time));
            times.take_while(|time| *time <= at(to)).count()
        };
        assert_eq!(days("2027-03-27T12:00:00Z[UTC]", "2027-03-29T12:00:00Z[UTC]"), 2);
        assert_eq!(days("2026-10-24T12:00:00Z[UTC]", "2026-10-26T12:00:00Z[UTC]"), 2);
    }

    #[test]
    fn of_missed_times_the_newest_is_due_and_of_none_nothing() {
        let calendar = calendar(&["0 * * * *"], "UTC").unwrap();
        let due = |after, now| calendar.due(at(after), at(now));
        assert_eq!(due("2026-11-23T10:00:00Z[UTC]", "2026-11-23T10:59:59Z[UTC]"), None);
        assert_eq!(
            due("2026-11-23T10:00:00Z[UTC]", "2026-11-23T14:20:00Z[UTC]"),
            Some(at("2026-11-23T14:00:00Z[UTC]"))
        );
    }

    #[test]
    fn what_cannot_be_read_is_refused_by_field() {
        let fault = |crons: &[&str], zone: &str| calendar(crons, zone).err().unwrap();
        assert!(fault(&["* * *"], "UTC").starts_with("periodic.crons: \"* * *\""));
        assert!(fault(&["61 * * * *"], "UTC").contains("periodic.crons"));
        assert!(fault(&[], "UTC").contains("at least one"));
        assert!(fault(&["* * * * *"], "Mars/Base").starts_with("periodic.time_zone: \"Mars/Base\""));
    }
}
