//! The programs, attached.

use std::{
    collections::{BTreeMap, BTreeSet},
    fs::File,
    path::Path,
};

use abi::{BackendCounters, Be32, Flow, FlowKey, Reason, maps, programs as name};
use aya::{
    Ebpf, EbpfLoader, TestRun, TestRunOptions,
    maps::MapData,
    programs::{
        CgroupAttachMode, CgroupSockAddr, Program, ProgramError, SchedClassifier, TcAttachType, Xdp, XdpMode,
        links::FdLink, tc::TcAttachOptions,
    },
};
use dataplane::{MapDelta, MapImage};
use nix::net::if_::{if_indextoname, if_nametoindex};

use crate::{
    Config, FlowPressure, KernelError, PreflightError, Sizes, config, error, flows,
    maps::Maps,
    pins,
    pins::Pins,
    rehearse::{self, Question, Rehearsal},
};

/// How the uplink's program runs.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum UplinkMode {
    /// In the driver, before the kernel makes a packet of a frame.
    Native,
    /// Behind the driver, several times slower; `reason` says why not in it (empty when that was decided by an agent
    /// before this one).
    Generic { reason: String },
    /// There is no uplink.
    Absent,
}

/// The decision of the uplink's program about one frame.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Trace {
    pub action: TraceAction,
    /// As the program left it.
    pub frame: Vec<u8>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum TraceAction {
    Aborted,
    Dropped,
    ToStack,
    /// Out of the interface it came in by.
    SentBack,
    Redirected,
}

/// The attached programs and their maps. Dropping it leaves both in the kernel.
pub struct Datapath {
    object: Ebpf,
    maps: Maps,
    pins: Pins,
    mode: UplinkMode,
    adopted: bool,
}

impl Datapath {
    /// Says what is missing on this machine; changes nothing.
    pub fn preflight(config: &Config) -> Result<(), PreflightError> {
        config::preflight(config)
    }

    /// Loads the programs over the node's pinned maps, or new ones, and puts them in their places.
    pub fn attach(config: &Config) -> Result<Self, KernelError> {
        config::preflight(config)?;
        let pins = Pins::of(&config.pin_root, &config.node_id);
        let adopted = pins.prepare()?;
        let mut object = load(&pins, config.sizes)?;
        let mut maps = Maps::take(&mut object)?;
        for (index, program) in name::HANDED_ON {
            let xdp: &mut Xdp = self::program(&mut object, program)?;
            maps.set_program(index, xdp.fd().map_err(|e| error::load(program, e))?)?;
        }
        let mut datapath = Self { object, maps, pins, mode: UplinkMode::Absent, adopted };
        for hook in name::SOCKET_HOOKS {
            datapath.attach_hook(hook, &config.cgroup_root)?;
        }
        datapath.reattach_veths()?;
        datapath.mode = match &config.uplink {
            Some(uplink) => {
                datapath.attach_egress(uplink)?;
                datapath.attach_uplink(uplink)?
            }
            None => datapath.detach_uplink()?,
        };
        datapath.pins.remove_other_layouts()?;
        Ok(datapath)
    }

    /// Whether maps of an agent before this one were found and kept.
    pub fn adopted(&self) -> bool {
        self.adopted
    }

    pub fn uplink_mode(&self) -> &UplinkMode {
        &self.mode
    }

    /// After the interface was replaced by another one of its name.
    pub fn follow_uplink(&mut self, interface: &str) -> Result<(), KernelError> {
        self.attach_egress(interface)?;
        self.mode = self.attach_uplink(interface)?;
        Ok(())
    }

    /// Makes the writes in the order they are given; stops at the first that fails.
    pub fn publish(&mut self, delta: &MapDelta) -> Result<(), KernelError> {
        self.maps.publish(delta)
    }

    /// What the kernel holds now, for [`dataplane::diff`].
    pub fn load_image(&self) -> Result<MapImage, KernelError> {
        self.maps.image()
    }

    /// Follows the traffic out of an allocation: `ifindex` is the host side of its veth. Done already is no error.
    pub fn attach_veth(&mut self, ifindex: u32) -> Result<(), KernelError> {
        self.attach_tcx(name::TC_VETH, ifindex, TcAttachType::Ingress, &self.pins.veth(ifindex))
    }

    /// Not attached is no error: the interface may be gone.
    pub fn detach_veth(&mut self, ifindex: u32) -> Result<(), KernelError> {
        pins::remove(&self.pins.veth(ifindex))
    }

    /// Translates connects of sockets in a network namespace.
    pub fn allow_netns(&mut self, cookie: u64) -> Result<(), KernelError> {
        self.maps.allow_netns(cookie)
    }

    pub fn forbid_netns(&mut self, cookie: u64) -> Result<(), KernelError> {
        self.maps.forbid_netns(cookie)
    }

    /// The namespaces allowed now: a restarted agent forbids those it no longer knows.
    pub fn allowed_netns(&self) -> Result<BTreeSet<u64>, KernelError> {
        self.maps.allowed_netns()
    }

    /// What went to each backend since it got its id.
    pub fn backend_counters(&self) -> Result<BTreeMap<u32, BackendCounters>, KernelError> {
        self.maps.backend_counters()
    }

    /// Why packets did not go the ordinary way; every reason, with those that never happened.
    pub fn drop_counters(&self) -> Result<BTreeMap<Reason, u64>, KernelError> {
        self.maps.reasons()
    }

    /// How full the table of flows to this node's backends is.
    pub fn flow_pressure(&self) -> FlowPressure {
        flows::pressure(self.maps.flows())
    }

    /// The flows to this node's backends.
    pub fn flows(&self) -> BTreeMap<FlowKey, Flow> {
        flows::all(self.maps.flows())
    }

    /// Next hops that packets were dropped for since the last call, because nobody had resolved them.
    pub fn take_unresolved(&mut self) -> BTreeSet<Be32> {
        self.maps.take_unresolved()
    }

    /// Runs the uplink's program itself on a frame. Counters count it and flows remember it, as any other.
    pub fn trace(&mut self, frame: &[u8]) -> Result<Trace, KernelError> {
        let program: &mut Xdp = program(&mut self.object, name::XDP_UPLINK)?;
        let (value, frame) = run(program, frame)?;
        Ok(Trace { action: action_of(value), frame })
    }

    /// What the uplink's program would do with a packet; no flow, counter or event of the node is touched.
    pub fn rehearse(&self, question: &Question) -> Result<Rehearsal, KernelError> {
        rehearse::rehearse(&self.pins.maps(), question)
    }

    /// Runs the veths' program on a frame; returns its verdict (linux/pkt_cls.h) and the frame as it left it.
    pub fn trace_reply(&mut self, frame: &[u8]) -> Result<(u32, Vec<u8>), KernelError> {
        let program: &mut SchedClassifier = program(&mut self.object, name::TC_VETH)?;
        run(program, frame)
    }

    /// Runs the uplink's egress program on a frame, as [`Self::trace_reply`] does.
    pub fn trace_egress(&mut self, frame: &[u8]) -> Result<(u32, Vec<u8>), KernelError> {
        let program: &mut SchedClassifier = program(&mut self.object, name::TC_UPLINK)?;
        run(program, frame)
    }

    /// How many instructions the kernel's verifier walked through for each program.
    pub fn verified_instructions(&self) -> Result<BTreeMap<&'static str, u32>, KernelError> {
        let handed_on = name::HANDED_ON.map(|(_, name)| name);
        let attached = [name::XDP_UPLINK, name::TC_VETH, name::TC_UPLINK];
        let names = attached.into_iter().chain(handed_on).chain(name::SOCKET_HOOKS);
        let verified = |name: &'static str| {
            let program = self.object.program(name).ok_or(KernelError::Missing { what: "program", name })?;
            let info = program.info().map_err(|e| error::load(name, e))?;
            Ok((name, info.verified_instruction_count().unwrap_or(0)))
        };
        names.map(verified).collect()
    }

    fn attach_hook(&mut self, hook: &'static str, cgroup_root: &Path) -> Result<(), KernelError> {
        let path = self.pins.link(hook);
        let program: &mut CgroupSockAddr = program(&mut self.object, hook)?;
        if let Some(link) = pins::existing(&path)? {
            let fd = program.fd().map_err(|e| error::load(hook, e))?;
            return pins::replace(&path, link, fd);
        }
        let to = cgroup_root.display().to_string();
        let failed = |e: ProgramError| error::attach(hook, &to, e);
        let cgroup = File::open(cgroup_root).map_err(|e| failed(ProgramError::IOError(e)))?;
        // Links of several agents stack at one cgroup in this mode; the kernel refuses the other modes for links.
        let link = program.attach(cgroup, CgroupAttachMode::Single).map_err(failed)?;
        let link = program.take_link(link).map_err(failed)?;
        pins::pin(link.try_into().map_err(|_| KernelError::NoLink(hook))?, &path)
    }

    // What leaves the node's own stack; an uplink of before may have been another interface.
    fn attach_egress(&mut self, interface: &str) -> Result<(), KernelError> {
        let ifindex = if_nametoindex(interface).map_err(|_| PreflightError::NoInterface(interface.to_owned()))?;
        self.attach_tcx(name::TC_UPLINK, ifindex, TcAttachType::Egress, &self.pins.link(UPLINK_EGRESS))
    }

    /// Done already is no error.
    fn attach_tcx(
        &mut self,
        name: &'static str,
        ifindex: u32,
        direction: TcAttachType,
        path: &Path,
    ) -> Result<(), KernelError> {
        let program: &mut SchedClassifier = program(&mut self.object, name)?;
        let fd = program.fd().map_err(|e| error::load(name, e))?;
        if pins::replace_at(path, ifindex, fd)? {
            return Ok(());
        }
        let interface = if_indextoname(ifindex).map_err(|_| KernelError::NoInterface(ifindex))?;
        let interface = interface.to_string_lossy().into_owned();
        let failed = |e| error::attach(name, &interface, e);
        let options = TcAttachOptions::TcxOrder(aya::programs::LinkOrder::default());
        let link = program.attach_with_options(&interface, direction, options).map_err(failed)?;
        let link = program.take_link(link).map_err(failed)?;
        pins::pin(link.try_into().map_err(|_| KernelError::NoLink(name))?, path)
    }

    // Links whose interface vanished while no agent ran go away here.
    fn reattach_veths(&mut self) -> Result<(), KernelError> {
        let program: &mut SchedClassifier = program(&mut self.object, name::TC_VETH)?;
        let fd = program.fd().map_err(|e| error::load(name::TC_VETH, e))?;
        for ifindex in self.pins.veths()? {
            pins::replace_at(&self.pins.veth(ifindex), ifindex, fd)?;
        }
        Ok(())
    }

    // An agent before this one may have had an uplink.
    fn detach_uplink(&mut self) -> Result<UplinkMode, KernelError> {
        for mode in [UplinkMode::Native, UplinkMode::Generic { reason: String::new() }] {
            pins::remove(&self.pins.link(mode.pin()))?;
        }
        pins::remove(&self.pins.link(UPLINK_EGRESS))?;
        Ok(UplinkMode::Absent)
    }

    fn attach_uplink(&mut self, interface: &str) -> Result<UplinkMode, KernelError> {
        let ifindex = if_nametoindex(interface).map_err(|_| PreflightError::NoInterface(interface.to_owned()))?;
        let program: &mut Xdp = program(&mut self.object, name::XDP_UPLINK)?;
        for mode in [UplinkMode::Native, UplinkMode::Generic { reason: String::new() }] {
            let fd = program.fd().map_err(|e| error::load(name::XDP_UPLINK, e))?;
            if pins::replace_at(&self.pins.link(mode.pin()), ifindex, fd)? {
                return Ok(mode);
            }
        }
        let (mode, link) = match attach_xdp(program, ifindex, interface, XdpMode::Driver) {
            Ok(link) => (UplinkMode::Native, link),
            Err(refused) => {
                let reason = chain(&refused);
                (UplinkMode::Generic { reason }, attach_xdp(program, ifindex, interface, XdpMode::Skb)?)
            }
        };
        pins::pin(link, &self.pins.link(mode.pin()))?;
        Ok(mode)
    }
}

const UPLINK_EGRESS: &str = "uplink-egress";

impl UplinkMode {
    fn pin(&self) -> &'static str {
        match self {
            Self::Generic { .. } => "uplink-generic",
            Self::Native | Self::Absent => "uplink-native",
        }
    }
}

fn load(pins: &Pins, sizes: Sizes) -> Result<Ebpf, KernelError> {
    let directory = pins.maps();
    let cpus = aya::util::nr_cpus().unwrap_or(1) as u32;
    let entry_bits = bits(&directory.join(maps::ENTRY_FLOWS), cpus, sizes.choices);
    let flow_bits = bits(&directory.join(maps::FLOWS), 1, sizes.flows);
    let mut loader = EbpfLoader::new();
    loader.map_max_entries(maps::ENTRY_FLOWS, cpus << entry_bits).map_max_entries(maps::FLOWS, 1 << flow_bits);
    loader.override_global("ENTRY_BITS", &entry_bits, true).override_global("FLOW_BITS", &flow_bits, true);
    for map in maps::NAMES {
        loader.map_pin_path(map, directory.join(map));
    }
    let mut object = loader.load(crate::object())?;
    for name in name::HANDED_ON.map(|(_, name)| name).into_iter().chain([name::XDP_UPLINK]) {
        program::<&mut Xdp>(&mut object, name)?.load().map_err(|e| error::load(name, e))?;
    }
    for name in [name::TC_VETH, name::TC_UPLINK] {
        program::<&mut SchedClassifier>(&mut object, name)?.load().map_err(|e| error::load(name, e))?;
    }
    for name in name::SOCKET_HOOKS {
        program::<&mut CgroupSockAddr>(&mut object, name)?.load().map_err(|e| error::load(name, e))?;
    }
    Ok(object)
}

/// Buckets of each of `parts` as a power of two: those of the pinned map, else enough for `entries`.
fn bits(pin: &Path, parts: u32, entries: u32) -> u32 {
    match MapData::from_pin(pin).and_then(|map| map.info()) {
        Ok(info) => (info.max_entries() / parts.max(1)).max(1).ilog2(),
        Err(_) => (entries / packet::flows::WAYS as u32).clamp(1, 1 << BITS_MAX).next_power_of_two().ilog2(),
    }
}

/// 64 million flows.
const BITS_MAX: u32 = 24;

fn program<'a, P>(object: &'a mut Ebpf, name: &'static str) -> Result<P, KernelError>
where
    P: TryFrom<&'a mut Program, Error = ProgramError>,
{
    let program = object.program_mut(name).ok_or(KernelError::Missing { what: "program", name })?;
    P::try_from(program).map_err(|e| error::load(name, e))
}

fn attach_xdp(program: &mut Xdp, ifindex: u32, interface: &str, mode: XdpMode) -> Result<FdLink, KernelError> {
    let failed = |e| error::attach(name::XDP_UPLINK, interface, e);
    let link = program.attach_to_if_index(ifindex, mode).map_err(failed)?;
    let link = program.take_link(link).map_err(failed)?;
    link.try_into().map_err(|_| KernelError::NoLink(name::XDP_UPLINK))
}

pub(crate) fn action_of(value: u32) -> TraceAction {
    match value {
        1 => TraceAction::Dropped,
        2 => TraceAction::ToStack,
        3 => TraceAction::SentBack,
        4 => TraceAction::Redirected,
        _ => TraceAction::Aborted,
    }
}

pub(crate) fn run<P>(program: &P, frame: &[u8]) -> Result<(u32, Vec<u8>), KernelError>
where
    P: for<'a> TestRun<Opts<'a> = TestRunOptions<'a>, Result = aya::TestRunResult>,
{
    let mut out = vec![0; frame.len() + 256];
    let options = TestRunOptions { data_in: Some(frame), data_out: Some(&mut out), ..TestRunOptions::new() };
    let result = program.test_run(options).map_err(|e| KernelError::Trace(Box::new(e)))?;
    out.truncate(result.data_size_out as usize);
    Ok((result.return_value, out))
}

fn chain(error: &dyn std::error::Error) -> String {
    let causes = std::iter::successors(Some(error), |error| error.source());
    causes.map(ToString::to_string).collect::<Vec<_>>().join(": ")
}
