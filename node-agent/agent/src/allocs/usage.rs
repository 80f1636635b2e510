//! What a task uses, from its cgroup: v2's files where it has them, else v1's.

use drivers::cgroup::Cgroup;
use serde_json::{Value, json};
use std::collections::BTreeMap;
use std::fs;
use std::path::Path;
use std::time::Duration;

/// Counters since the task's start, and sizes as of now.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Usage {
    pub cpu: Duration,
    pub cpu_user: Duration,
    pub cpu_system: Duration,
    pub throttled: Duration,
    pub throttled_periods: u64,
    pub memory_bytes: u64,
    pub memory_rss_bytes: u64,
    pub memory_cache_bytes: u64,
    pub memory_max_bytes: u64,
    pub swap_bytes: u64,
    pub pids: u64,
}

/// The sample before, which a rate needs.
#[derive(Clone, Copy, Debug, Default)]
pub struct Meter {
    /// Nanoseconds since 1970, and the processor time used by then.
    last: Option<(u64, Duration)>,
}

impl Meter {
    /// Percent of one core since the last call, or since `started_at_ns` at the first.
    pub fn percent(&mut self, at_ns: u64, started_at_ns: u64, usage: &Usage) -> f64 {
        let (since, cpu) = self.last.replace((at_ns, usage.cpu)).unwrap_or((started_at_ns, Duration::ZERO));
        let elapsed = at_ns.saturating_sub(since);
        if elapsed == 0 { 0.0 } else { usage.cpu.saturating_sub(cpu).as_nanos() as f64 * 100.0 / elapsed as f64 }
    }
}

impl Usage {
    pub fn read(cgroup: &Cgroup) -> Self {
        let file =
            |controller: &str, v1: &str| cgroup.v1.get(controller).map(|dir| dir.join(v1)).filter(|file| file.exists());
        let v2 = |name: &str| cgroup.v2.as_ref().map(|dir| dir.join(name)).filter(|file| file.exists());
        let mut usage = Self::default();
        if let Some(stat) = v2("cpu.stat") {
            usage.read_cpu(&stat);
        }
        if let Some(stat) = file("cpu", "cpu.stat") {
            usage.read_throttling(&table(&stat));
        }
        match (file("memory", "memory.usage_in_bytes"), v2("memory.current")) {
            (Some(current), _) => usage.read_memory_v1(&current),
            (None, Some(current)) => usage.read_memory_v2(&current),
            (None, None) => {}
        }
        usage.pids = file("pids", "pids.current").or_else(|| v2("pids.current")).map_or(0, |path| number(&path));
        usage
    }

    fn read_cpu(&mut self, stat: &Path) {
        let values = table(stat);
        let micros = |name: &str| Duration::from_micros(values.get(name).copied().unwrap_or(0));
        self.cpu = micros("usage_usec");
        self.cpu_user = micros("user_usec");
        self.cpu_system = micros("system_usec");
        self.throttled = micros("throttled_usec");
        self.throttled_periods = values.get("nr_throttled").copied().unwrap_or(0);
    }

    fn read_throttling(&mut self, values: &BTreeMap<String, u64>) {
        let of = |name: &str| values.get(name).copied().unwrap_or(0);
        self.throttled = self.throttled.max(Duration::from_nanos(of("throttled_time")));
        self.throttled_periods = self.throttled_periods.max(of("nr_throttled"));
    }

    fn read_memory_v1(&mut self, current: &Path) {
        let stat = table(&current.with_file_name("memory.stat"));
        let of = |name: &str| stat.get(name).copied().unwrap_or(0);
        self.memory_bytes = number(current);
        self.memory_max_bytes = number(&current.with_file_name("memory.max_usage_in_bytes"));
        (self.memory_rss_bytes, self.memory_cache_bytes, self.swap_bytes) = (of("rss"), of("cache"), of("swap"));
    }

    fn read_memory_v2(&mut self, current: &Path) {
        let stat = table(&current.with_file_name("memory.stat"));
        let of = |name: &str| stat.get(name).copied().unwrap_or(0);
        self.memory_bytes = number(current);
        self.memory_max_bytes = number(&current.with_file_name("memory.peak"));
        (self.memory_rss_bytes, self.memory_cache_bytes) = (of("anon"), of("file"));
        self.swap_bytes = number(&current.with_file_name("memory.swap.current"));
    }

    /// The sum, for a whole allocation.
    pub fn add(&mut self, other: &Self) {
        self.cpu += other.cpu;
        self.cpu_user += other.cpu_user;
        self.cpu_system += other.cpu_system;
        self.throttled += other.throttled;
        self.throttled_periods += other.throttled_periods;
        self.memory_bytes += other.memory_bytes;
        self.memory_rss_bytes += other.memory_rss_bytes;
        self.memory_cache_bytes += other.memory_cache_bytes;
        self.memory_max_bytes += other.memory_max_bytes;
        self.swap_bytes += other.swap_bytes;
        self.pids += other.pids;
    }

    /// Nomad's `ResourceUsage`.
    pub fn to_json(self, percent: f64, core_mhz: f64) -> Value {
        let nanos = |span: Duration| u64::try_from(span.as_nanos()).unwrap_or(u64::MAX);
        json!({
            "CpuStats": {
                "SystemMode": self.cpu_system.as_secs_f64(),
                "UserMode": self.cpu_user.as_secs_f64(),
                "TotalTicks": percent / 100.0 * core_mhz,
                "Percent": percent,
                "ThrottledPeriods": self.throttled_periods,
                "ThrottledTime": nanos(self.throttled),
                "Measured": ["System Mode", "User Mode", "Percent", "Throttled Periods", "Throttled Time"],
            },
            "MemoryStats": {
                "RSS": self.memory_rss_bytes,
                "Cache": self.memory_cache_bytes,
                "Swap": self.swap_bytes,
                "Usage": self.memory_bytes,
                "MaxUsage": self.memory_max_bytes,
                "Measured": ["RSS", "Cache", "Swap", "Usage", "Max Usage"],
            },
            "DeviceStats": [],
        })
    }
}

fn number(path: &Path) -> u64 {
    fs::read_to_string(path).ok().and_then(|text| text.trim().parse().ok()).unwrap_or(0)
}

/// Lines of a name and a number.
fn table(path: &Path) -> BTreeMap<String, u64> {
    let text = fs::read_to_string(path).unwrap_or_default();
    let line = |line: &str| {
        let (name, value) = line.split_once(' ')?;
        Some((name.to_owned(), value.trim().parse().ok()?))
    };
    text.lines().filter_map(line).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn v2_files_are_read_and_rates_are_of_the_time_between() {
        let dir = tempfile::tempdir().unwrap();
        let write = |name: &str, text: &str| fs::write(dir.path().join(name), text).unwrap();
        write(
            "cpu.stat",
            "usage_usec 1500000\nuser_usec 1000000\nsystem_usec 500000\nnr_throttled 3\nthrottled_usec 20\n",
        );
        write("memory.current", "4096\n");
        write("memory.stat", "anon 1000\nfile 3000\n");
        write("pids.current", "2\n");
        let cgroup = Cgroup { v2: Some(dir.path().to_owned()), v1: BTreeMap::new() };
        let usage = Usage::read(&cgroup);
        assert_eq!((usage.cpu.as_millis(), usage.throttled_periods, usage.pids), (1500, 3, 2));
        assert_eq!((usage.memory_bytes, usage.memory_rss_bytes, usage.memory_cache_bytes), (4096, 1000, 3000));
        let mut meter = Meter::default();
        assert_eq!(meter.percent(3_000_000_000, 0, &usage), 50.0);
        let later = Usage { cpu: Duration::from_millis(2500), ..usage };
        assert_eq!(meter.percent(4_000_000_000, 0, &later), 100.0);
    }

    #[test]
    fn a_cgroup_that_is_gone_uses_nothing() {
        let cgroup = Cgroup { v2: Some("/nowhere".into()), v1: BTreeMap::new() };
        assert_eq!(Usage::read(&cgroup), Usage::default());
    }
}
