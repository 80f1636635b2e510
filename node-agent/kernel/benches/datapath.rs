//! What a packet costs at the uplink, by BPF_PROG_TEST_RUN.
//!
//! Prints a table and writes target/bench/datapath.json. A value is the program's own time with the harness taken off
//! and the empty program's time left in, as in the tables of other load balancers; its bar is the best peer's ratio to
//! the empty program on the machine the peers were measured on, because absolute figures do not travel.

use std::{error::Error, fs, path::Path};

use abi::{
    Backend, Be16, Be32, Endpoint, NearEndpoint, Node, RingHead, UPLINK_READY, Uplink, VipKey, VipValue, maps, programs,
};
use aya::{
    Ebpf, EbpfLoader, Pod, TestRun, TestRunOptions,
    maps::{Array, HashMap, MapData, PerCpuArray, ProgramArray},
    programs::Xdp,
};
use nix::{
    sched::{CpuSet, sched_setaffinity},
    unistd::Pid,
};

type Result<T> = std::result::Result<T, Box<dyn Error>>;

const OBJECT: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/../../target/bpf/meshctl-bench.bpf.o");
const REPORT: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/../../target/bench/datapath.json");
const REPEAT: u32 = 400_000;
const SAMPLES: usize = 9;
const CPU: usize = 0;
const ENTRY_BITS: u32 = 16;
const VIP: [u8; 4] = [10, 43, 0, 1];
const LOCAL: [u8; 4] = [10, 64, 0, 2];
const REMOTE: [u8; 4] = [10, 64, 0, 66];
const ACK: u8 = 16;
const SYN: u8 = 2;

/// As in `programs/src/bench.rs`.
#[repr(C)]
#[derive(Clone, Copy)]
struct Plan {
    flows: u32,
    pair: u32,
    headers: [u8; 54],
    pad: [u8; 2],
}

// SAFETY: repr(C), integers only, no padding.
#[expect(unsafe_code, reason = "aya::Pod is an unsafe trait")]
unsafe impl Pod for Plan {}

/// One path through the program.
struct Case {
    name: &'static str,
    dst_port: u16,
    flags: u8,
    flows: u32,
    /// The verdict every run must have.
    action: usize,
    /// A peer, and its published time over that of an empty program, which took 27 ns there.
    peer: Option<(&'static str, f64)>,
}

const PASS: usize = 2;
const TX: usize = 3;
const REDIRECT: usize = 4;

const CASES: &[Case] = &[
    Case {
        name: "not for a VIP, passed",
        dst_port: 443,
        flags: ACK,
        flows: 1,
        action: PASS,
        peer: Some(("Cilium, DSR", 73.0 / 27.0)),
    },
    Case {
        name: "established, 1 flow, to the tunnel",
        dst_port: 80,
        flags: ACK,
        flows: 1,
        action: TX,
        peer: Some(("Katran, IPIP", 159.0 / 27.0)),
    },
    Case {
        name: "established, 64K flows, to the tunnel",
        dst_port: 80,
        flags: ACK,
        flows: 1 << 16,
        action: TX,
        peer: Some(("Katran, IPIP", 278.0 / 27.0)),
    },
    Case {
        name: "new TCP flow, to the tunnel",
        dst_port: 80,
        flags: SYN,
        flows: 1 << 20,
        action: TX,
        peer: Some(("Katran, IPIP", 758.0 / 27.0)),
    },
    Case {
        name: "established, 1 flow, to a local backend",
        dst_port: 81,
        flags: ACK,
        flows: 1,
        action: REDIRECT,
        peer: None,
    },
    Case {
        name: "established, 64K flows, to a local backend",
        dst_port: 81,
        flags: ACK,
        flows: 1 << 16,
        action: REDIRECT,
        peer: None,
    },
    Case {
        name: "new TCP flow, to a local backend",
        dst_port: 81,
        flags: SYN,
        flows: 1 << 20,
        action: REDIRECT,
        peer: None,
    },
];

fn main() -> Result<()> {
    stay_on_one_cpu()?;
    let mut bench = Bench::load()?;
    let rows = CASES.iter().map(|case| bench.measure(case)).collect::<Result<Vec<_>>>()?;
    print(&rows);
    write(&rows)
}

fn stay_on_one_cpu() -> Result<()> {
    let mut cpus = CpuSet::new();
    cpus.set(CPU)?;
    Ok(sched_setaffinity(Pid::from_raw(0), &cpus)?)
}

struct Row {
    name: &'static str,
    value: f64,
    empty: f64,
    peer: Option<(&'static str, f64)>,
}

impl Row {
    fn ratio(&self) -> f64 {
        self.value / self.empty
    }

    fn holds(&self) -> Option<bool> {
        self.peer.map(|(_, bar)| self.ratio() <= bar)
    }
}

struct Bench {
    object: Ebpf,
}

impl Bench {
    fn load() -> Result<Self> {
        let bytes =
            fs::read(OBJECT).map_err(|e| format!("{OBJECT}: {e}: run `cargo xtask ebpf` with the feature `bench`"))?;
        let cpus = aya::util::nr_cpus().map_err(|(_, e)| e)? as u32;
        let mut loader = EbpfLoader::new();
        loader.map_max_entries(maps::ENTRY_FLOWS, cpus << ENTRY_BITS);
        let mut bench = Self { object: loader.load(&bytes)? };
        for (index, name) in programs::HANDED_ON {
            let program = bench.program(name)?;
            program.load()?;
            let fd = program.fd()?.try_clone()?;
            let mut handed_on: ProgramArray<_> =
                bench.object.map_mut(maps::PROGRAMS).ok_or("a map is missing")?.try_into()?;
            handed_on.set(index, &fd, 0)?;
        }
        for name in ["bench_empty", "bench_wrapper", "bench_uplink"] {
            bench.program(name)?.load()?;
        }
        bench.fill()?;
        Ok(bench)
    }

    fn program(&mut self, name: &str) -> Result<&mut Xdp> {
        Ok(self.object.program_mut(name).ok_or("a program is missing")?.try_into()?)
    }

    fn array<V: Pod>(&mut self, name: &str) -> Result<Array<&mut MapData, V>> {
        Ok(self.object.map_mut(name).ok_or("a map is missing")?.try_into()?)
    }

    fn hash<K: Pod, V: Pod>(&mut self, name: &str) -> Result<HashMap<&mut MapData, K, V>> {
        Ok(self.object.map_mut(name).ok_or("a map is missing")?.try_into()?)
    }

    fn fill(&mut self) -> Result<()> {
        let addr = Be32::from_bytes;
        let uplink = Uplink {
            addr: addr([10, 77, 0, 11]),
            mesh: addr([10, 64, 0, 1]),
            ifindex: 1,
            flags: UPLINK_READY,
            mac: [2; 6],
            mtu: 1500,
        };
        self.array(maps::UPLINK)?.set(0, uplink, 0)?;
        self.array(maps::NODES)?.set(1, Node { addr: addr([10, 77, 0, 12]), dmac: [4; 6], flags: 0 }, 0)?;
        let (ifindex, mac, host_mac) = (1, [6; 6], [8; 6]);
        self.hash(maps::ENDPOINTS)?.insert(addr(LOCAL), Endpoint { ifindex, mac, host_mac }, 0)?;
        let near = NearEndpoint { addr: addr(LOCAL), ifindex, mac, host_mac };
        self.array(maps::NEAR_ENDPOINTS)?.set(u32::from(LOCAL[3]), near, 0)?;
        for (id, to, node, port) in [(1_u32, REMOTE, 1, 80), (2, LOCAL, 0, 81)] {
            let backend = Backend { addr: addr(to), port: Be16::new(8080), proto: 6, flags: 0, node, service: id };
            self.array(maps::BACKENDS)?.set(id, backend, 0)?;
            let key = VipKey { addr: addr(VIP), port: Be16::new(port), proto: 6, pad: 0 };
            self.hash(maps::VIPS)?.insert(key, VipValue { frontend: id as u16, flags: 0, ring: id }, 0)?;
            // The largest ring, so that the table's cache misses are in the figure.
            let (base, class) = (id * 70_000, 5);
            self.array(maps::RING_HEADS)?.set(id, RingHead::new(base, class, 1).word(), 0)?;
            let mut slots = self.array(maps::RING_SLOTS)?;
            (base..base + abi::slab_size(class)).try_for_each(|slot| slots.set(slot, id, 0))?;
        }
        Ok(())
    }

    fn measure(&mut self, case: &Case) -> Result<Row> {
        self.plan(case, false)?;
        let empty = self.time("bench_empty", SAMPLES)?;
        let wrapper = self.time("bench_wrapper", SAMPLES)?;
        self.plan(case, true)?;
        let undo = (self.time("bench_wrapper", SAMPLES)? - wrapper) / 2.0;
        self.time("bench_uplink", (case.flows / REPEAT) as usize + 1)?; // every flow is known, every table warm
        let before = self.actions(case.action)?;
        let whole = self.time("bench_uplink", SAMPLES)?;
        let right = self.actions(case.action)? - before;
        let runs = SAMPLES as u64 * u64::from(REPEAT);
        if right < runs {
            return Err(format!("{}: {right} of {runs} packets took the path", case.name).into());
        }
        let value = whole - wrapper - if case.action == TX { undo } else { 0.0 } + empty;
        Ok(Row { name: case.name, value, empty, peer: case.peer })
    }

    fn plan(&mut self, case: &Case, pair: bool) -> Result<()> {
        let plan = Plan { flows: case.flows - 1, pair: pair.into(), headers: headers(case), pad: [0; 2] };
        Ok(self.array("bench_plan")?.set(0, plan, 0)?)
    }

    /// The quickest of some runs, in nanoseconds for one packet: what else the machine does can only add.
    fn time(&mut self, program: &str, samples: usize) -> Result<f64> {
        let program = self.program(program)?;
        let frame = [0_u8; 60];
        let mut times = (0..samples)
            .map(|_| {
                let options = TestRunOptions { data_in: Some(&frame), repeat: REPEAT, ..TestRunOptions::new() };
                Ok(program.test_run(options)?.duration.as_nanos() as f64)
            })
            .collect::<Result<Vec<_>>>()?;
        times.sort_by(f64::total_cmp);
        Ok(times[0])
    }

    fn actions(&self, action: usize) -> Result<u64> {
        let map = self.object.map("bench_actions").ok_or("a map is missing")?;
        let actions: PerCpuArray<&MapData, u64> = map.try_into()?;
        Ok(actions.get(&(action as u32), 0)?.iter().sum())
    }
}

fn headers(case: &Case) -> [u8; 54] {
    let mut f = [0; 54];
    f[12] = 8;
    f[14] = 0x45;
    f[17] = 40;
    f[20] = 0x40;
    f[22] = 64;
    f[23] = 6;
    f[26..30].copy_from_slice(&[10, 78, 0, 0]);
    f[30..34].copy_from_slice(&VIP);
    f[36..38].copy_from_slice(&case.dst_port.to_be_bytes());
    f[46] = 0x50;
    f[47] = case.flags;
    f
}

fn print(rows: &[Row]) {
    println!("{:<44} {:>8} {:>8} {:>7} {:>7}", "packet", "ns", "empty", "ratio", "bar");
    for row in rows {
        let bar = row.peer.map_or("-".to_owned(), |(_, bar)| format!("{bar:.1}"));
        println!("{:<44} {:>8.1} {:>8.1} {:>7.1} {:>7}", row.name, row.value, row.empty, row.ratio(), bar);
    }
}

fn write(rows: &[Row]) -> Result<()> {
    let rows: Vec<_> = rows
        .iter()
        .map(|row| {
            serde_json::json!({
                "name": row.name, "value": row.value, "unit": "ns",
                "baseline": { "name": "empty program, same run", "value": row.empty },
                "ratio": row.ratio(),
                "bar": row.peer.map(|(name, ratio)| serde_json::json!({ "name": name, "ratio_max": ratio })),
                "holds": row.holds(),
            })
        })
        .collect();
    fs::create_dir_all(Path::new(REPORT).parent().ok_or("no directory for the report")?)?;
    fs::write(REPORT, serde_json::to_vec_pretty(&rows)?)?;
    println!("written: target/bench/datapath.json");
    Ok(())
}
