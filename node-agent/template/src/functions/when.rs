//! The time, which is an input: in UTC, by Go's layouts.

use super::{Entry, Outcome, string, text};
use crate::exec::{Context, Fault};
use crate::value::Value;
use time::OffsetDateTime;

pub const TABLE: &[Entry] = &[("timestamp", 0, 1, timestamp)];

const MONTHS: [&str; 12] = [
    "January",
    "February",
    "March",
    "April",
    "May",
    "June",
    "July",
    "August",
    "September",
    "October",
    "November",
    "December",
];
const DAYS: [&str; 7] = ["Monday", "Tuesday", "Wednesday", "Thursday", "Friday", "Saturday", "Sunday"];

/// The parts of a layout, those that begin like a longer one after it.
const PARTS: [&str; 26] = [
    "2006", "January", "Jan", "Monday", "Mon", "MST", "Z07:00", "Z0700", "-07:00", "-0700", "-07", "01", "02", "_2",
    "03", "04", "05", "06", "15", "PM", "pm", "1", "2", "3", "4", "5",
];

fn timestamp(context: &mut Context<'_>, args: &[Value]) -> Outcome {
    let nanos = i128::from(context.inputs.now.0);
    let now = OffsetDateTime::from_unix_timestamp_nanos(nanos).map_err(|_| Fault::new("the time is out of range"))?;
    let layout = args.first().map(string).transpose()?;
    match layout.as_deref() {
        Some("unix") => text(now.unix_timestamp().to_string()),
        Some(layout) => text(format(now, layout)),
        None => text(format(now, "2006-01-02T15:04:05Z07:00")),
    }
}

fn format(now: OffsetDateTime, layout: &str) -> String {
    let mut out = String::new();
    let mut rest = layout;
    while !rest.is_empty() {
        if let Some(fraction) = rest.strip_prefix(".000").map(|_| zeroes(rest)) {
            out.push_str(&format!("{:09}", now.nanosecond())[..fraction.min(9)].replacen("", ".", 1));
            rest = &rest[1 + fraction..];
            continue;
        }
        match PARTS.iter().find(|part| rest.starts_with(**part)) {
            Some(part) => {
                out.push_str(&value_of(now, part));
                rest = &rest[part.len()..];
            }
            None => {
                let next = rest.chars().next().map_or(1, char::len_utf8);
                out.push_str(&rest[..next]);
                rest = &rest[next..];
            }
        }
    }
    out
}

fn zeroes(text: &str) -> usize {
    text[1..].chars().take_while(|c| *c == '0').count()
}

fn value_of(now: OffsetDateTime, part: &str) -> String {
    let month = MONTHS[usize::from(u8::from(now.month())) - 1];
    let day = DAYS[usize::from(now.weekday().number_days_from_monday())];
    let hour = match now.hour() % 12 {
        0 => 12,
        hour => hour,
    };
    match part {
        "2006" => format!("{:04}", now.year()),
        "06" => format!("{:02}", now.year().rem_euclid(100)),
        "January" => month.to_owned(),
        "Jan" => month[..3].to_owned(),
        "01" => format!("{:02}", u8::from(now.month())),
        "1" => u8::from(now.month()).to_string(),
        "Monday" => day.to_owned(),
        "Mon" => day[..3].to_owned(),
        "02" => format!("{:02}", now.day()),
        "_2" => format!("{:2}", now.day()),
        "2" => now.day().to_string(),
        "15" => format!("{:02}", now.hour()),
        "03" => format!("{hour:02}"),
        "3" => hour.to_string(),
        "04" => format!("{:02}", now.minute()),
        "4" => now.minute().to_string(),
        "05" => format!("{:02}", now.second()),
        "5" => now.second().to_string(),
        "PM" => (if now.hour() < 12 { "AM" } else { "PM" }).to_owned(),
        "pm" => (if now.hour() < 12 { "am" } else { "pm" }).to_owned(),
        "MST" => "UTC".to_owned(),
        "-07:00" => "+00:00".to_owned(),
        "-0700" => "+0000".to_owned(),
        "-07" => "+00".to_owned(),
        _ => "Z".to_owned(),
    }
}
