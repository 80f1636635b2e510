//! The frame under XDP, as `packet` reads it.

use aya_ebpf::{
    helpers::{bpf_xdp_adjust_head, bpf_xdp_adjust_tail},
    programs::XdpContext,
};
use packet::Bytes;

pub struct Frame<'a> {
    ctx: &'a XdpContext,
}

impl<'a> Frame<'a> {
    #[inline(always)]
    pub fn new(ctx: &'a XdpContext) -> Self {
        Self { ctx }
    }

    /// For helpers that want the program's context.
    #[inline(always)]
    pub fn ctx(&self) -> &XdpContext {
        self.ctx
    }

    #[inline(always)]
    pub fn ifindex(&self) -> u32 {
        self.ctx.ingress_ifindex() as u32
    }

    /// Moves the frame's start: negative makes room in front.
    #[inline(always)]
    pub fn move_start(&mut self, by: i32) -> Option<()> {
        // SAFETY: the context is the one the program was called with; every access reads its pointers anew.
        (unsafe { bpf_xdp_adjust_head(self.ctx.ctx, by) } == 0).then_some(())
    }

    /// Cuts off what is behind the first `len` bytes. A frame that is shorter stays as it is.
    #[inline(always)]
    pub fn truncate(&mut self, len: usize) -> Option<()> {
        let more = Bytes::len(self) as i32 - len as i32;
        // SAFETY: as in `move_start`.
        (more <= 0 || unsafe { bpf_xdp_adjust_tail(self.ctx.ctx, -more) } == 0).then_some(())
    }

    #[inline(always)]
    fn at<const N: usize>(&self, offset: usize) -> Option<*mut [u8; N]> {
        let start = self.ctx.data() + offset;
        (start + N <= self.ctx.data_end()).then_some(start as *mut [u8; N])
    }
}

impl Bytes for Frame<'_> {
    #[inline(always)]
    fn get<const N: usize>(&self, offset: usize) -> Option<[u8; N]> {
        // SAFETY: the N bytes lie inside the frame, checked just above; byte arrays need no alignment.
        self.at::<N>(offset).map(|p| unsafe { *p })
    }

    #[inline(always)]
    fn put<const N: usize>(&mut self, offset: usize, bytes: [u8; N]) -> Option<()> {
        // SAFETY: as in `get`; XDP owns the frame while the program runs.
        self.at::<N>(offset).map(|p| unsafe { *p = bytes })
    }

    #[inline(always)]
    fn len(&self) -> usize {
        self.ctx.data_end() - self.ctx.data()
    }
}
