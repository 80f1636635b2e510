//! Counters, and the events that user space acts on.

use abi::{Be32, Reason, Unresolved};

use crate::maps::{BACKEND_COUNTERS, REASONS, UNRESOLVED};

#[inline(always)]
pub fn reason(reason: Reason) {
    if let Some(count) = REASONS.get_ptr_mut(reason as u32) {
        // SAFETY: this CPU's own value; the lookup checked that it is there.
        unsafe { *count += 1 };
    }
}

/// A packet on its way to a backend.
#[inline(always)]
pub fn backend(id: u32, bytes: u16, opens: bool) {
    let Some(counters) = BACKEND_COUNTERS.get_ptr_mut(id) else { return };
    // SAFETY: this CPU's own value; the lookup checked that it is there.
    let counters = unsafe { &mut *counters };
    counters.packets += 1;
    counters.bytes += bytes as u64;
    counters.flows += opens as u64;
}

/// Asks user space to resolve a next hop. A full buffer loses the event: the next packet asks again.
#[inline(always)]
pub fn unresolved(addr: Be32) {
    let _ = UNRESOLVED.output_untyped::<Unresolved>(Unresolved { addr }, 0);
}
