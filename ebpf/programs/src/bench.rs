//! Wrappers that measure `xdp_uplink`: each run writes a fresh packet of another flow, because BPF_PROG_TEST_RUN hands
//! the packet of one run to the next as the program left it.

use aya_ebpf::{
    bindings::xdp_action::{XDP_PASS, XDP_TX},
    btf_maps::{Array, PerCpuArray},
    macros::{btf_map, xdp},
    programs::XdpContext,
};
use packet::{Bytes, OUTER};

use crate::{frame::Frame, xdp_uplink};

const HEADERS: usize = 54;
const SRC_ADDR: usize = 26;
const SRC_PORT: usize = 34;

/// What the wrappers send. `kernel/benches/datapath.rs` has the same definition.
#[repr(C)]
pub struct Plan {
    /// Flows less one: a mask over the run's number.
    flows: u32,
    /// Whether the wrapper alone makes and undoes the tunnel's room.
    pair: u32,
    headers: [u8; HEADERS],
    pad: [u8; 2],
}

#[btf_map(name = "bench_plan")]
static PLAN: Array<Plan, 1> = Array::new();
#[btf_map(name = "bench_runs")]
static RUNS: PerCpuArray<u64, 1> = PerCpuArray::new();
/// How often each action was returned: a measurement of the wrong path shows here.
#[btf_map(name = "bench_actions")]
static ACTIONS: PerCpuArray<u64, 8> = PerCpuArray::new();

#[xdp]
pub fn bench_empty(_: XdpContext) -> u32 {
    XDP_PASS
}

#[xdp]
pub fn bench_wrapper(ctx: XdpContext) -> u32 {
    let pair = PLAN.get(0).is_some_and(|plan| plan.pair != 0);
    wrap(&ctx, |ctx| nothing(ctx, pair))
}

#[xdp]
pub fn bench_uplink(ctx: XdpContext) -> u32 {
    wrap(&ctx, uplink)
}

// Functions that are called: a program that is handed a frame on returns to the caller of the one that did it.
#[inline(never)]
fn uplink(ctx: &XdpContext) -> u32 {
    xdp_uplink::run(ctx)
}

#[inline(never)]
fn nothing(ctx: &XdpContext, pair: bool) -> u32 {
    if pair && Frame::new(ctx).move_start(-(OUTER as i32)).is_some() { XDP_TX } else { XDP_PASS }
}

#[inline(always)]
fn wrap(ctx: &XdpContext, inner: impl Fn(&XdpContext) -> u32) -> u32 {
    if renew(ctx).is_none() {
        return 0;
    }
    let action = inner(ctx);
    if let Some(count) = ACTIONS.get_ptr_mut(action) {
        // SAFETY: this CPU's own value; the lookup checked that it is there.
        unsafe { *count += 1 };
    }
    if action == XDP_TX && Frame::new(ctx).move_start(OUTER as i32).is_none() {
        return 0;
    }
    action
}

#[inline(always)]
fn renew(ctx: &XdpContext) -> Option<()> {
    let plan = PLAN.get(0)?;
    let run = RUNS.get_ptr_mut(0)?;
    // SAFETY: this CPU's own value; the lookup checked that it is there.
    let flow = unsafe {
        *run += 1;
        *run as u32 & plan.flows
    };
    let mut frame = Frame::new(ctx);
    frame.put(0, plan.headers)?;
    let host = (flow >> 16) as u16;
    frame.put(SRC_ADDR + 2, host.to_be_bytes())?;
    frame.put(SRC_PORT, (flow as u16).to_be_bytes())
}
