//! The one way this crate reaches a frame.

/// A frame that may end anywhere.
///
/// `N` is a constant so that the kernel's verifier can tie the check to the access.
pub trait Bytes {
    /// `N` bytes at `offset`; none when the frame ends before.
    fn get<const N: usize>(&self, offset: usize) -> Option<[u8; N]>;

    /// Overwrites `N` bytes at `offset`; none, and nothing written, when the frame ends before.
    fn put<const N: usize>(&mut self, offset: usize, bytes: [u8; N]) -> Option<()>;

    /// Length of the frame.
    fn len(&self) -> usize;

    fn is_empty(&self) -> bool {
        self.len() == 0
    }
}

impl Bytes for [u8] {
    #[inline(always)]
    fn get<const N: usize>(&self, offset: usize) -> Option<[u8; N]> {
        self.get(offset..)?.first_chunk::<N>().copied()
    }

    #[inline(always)]
    fn put<const N: usize>(&mut self, offset: usize, bytes: [u8; N]) -> Option<()> {
        *self.get_mut(offset..)?.first_chunk_mut::<N>()? = bytes;
        Some(())
    }

    #[inline(always)]
    fn len(&self) -> usize {
        <[u8]>::len(self)
    }
}
