//! Text as Nomad prints it: blocks of `Key = value`, tables of columns two spaces apart.

use std::time::{Duration, UNIX_EPOCH};

/// Columns as wide as their widest cell, two spaces apart; the first row is the heading.
pub fn columns(rows: &[Vec<String>]) -> String {
    let count = rows.iter().map(Vec::len).max().unwrap_or(0);
    let width = |column: usize| rows.iter().filter_map(|row| row.get(column)).map(|cell| cell.chars().count()).max();
    let widths: Vec<usize> = (0..count).map(|column| width(column).unwrap_or(0)).collect();
    let line = |row: &Vec<String>| {
        let cells = row.iter().zip(&widths).map(|(cell, width)| format!("{cell:<width$}"));
        cells.collect::<Vec<_>>().join("  ").trim_end().to_owned()
    };
    rows.iter().map(line).collect::<Vec<_>>().join("\n")
}

/// `Key = value` lines with the equals signs below each other.
pub fn block(pairs: &[(&str, String)]) -> String {
    let width = pairs.iter().map(|(key, _)| key.len()).max().unwrap_or(0);
    let lines = pairs.iter().map(|(key, value)| format!("{key:<width$} = {value}").trim_end().to_owned());
    lines.collect::<Vec<_>>().join("\n")
}

/// A heading row.
pub fn row<const N: usize>(cells: [&str; N]) -> Vec<String> {
    cells.iter().map(|cell| (*cell).to_owned()).collect()
}

/// The first eight characters of an id.
pub fn short(id: &str) -> String {
    id.chars().take(8).collect()
}

/// `3m12s ago`, from nanoseconds since the epoch to `now` in the same unit; `<none>` for zero.
pub fn ago(nanos: u64, now: u64) -> String {
    if nanos == 0 {
        return "<none>".to_owned();
    }
    let secs = now.saturating_sub(nanos) / 1_000_000_000;
    match secs {
        0..60 => format!("{secs}s ago"),
        60..3600 => format!("{}m{}s ago", secs / 60, secs % 60),
        3600..86_400 => format!("{}h{}m ago", secs / 3600, secs / 60 % 60),
        _ => format!("{}d{}h ago", secs / 86_400, secs / 3600 % 24),
    }
}

/// UTC as `2026-01-31T23:59:59Z`; `N/A` for zero.
pub fn time(nanos: u64) -> String {
    match nanos {
        0 => "N/A".to_owned(),
        nanos => humantime::format_rfc3339_seconds(UNIX_EPOCH + Duration::from_nanos(nanos)).to_string(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn columns_line_up_without_trailing_spaces() {
        let rows = [row(["ID", "Status"]), row(["web-front", "up"])];
        assert_eq!(columns(&rows), "ID         Status\nweb-front  up");
    }

    #[test]
    fn equals_signs_stand_below_each_other() {
        assert_eq!(block(&[("ID", "a".into()), ("Node Name", "n1".into())]), "ID        = a\nNode Name = n1");
    }

    #[test]
    fn times_are_utc_dates() {
        assert_eq!(time(1_767_225_599_000_000_000), "2025-12-31T23:59:59Z");
        assert_eq!(ago(1_000_000_000, 193_000_000_000), "3m12s ago");
    }
}
