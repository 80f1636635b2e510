//! An array map's memory, shared with the programs.
#![expect(unsafe_code, reason = "shared memory is reached through raw pointers")]

use std::{io, marker::PhantomData, num::NonZeroUsize, os::fd::AsFd, ptr::NonNull};

use aya::Pod;
use nix::sys::mman::{MapFlags, ProtFlags, mmap, munmap};

use crate::KernelError;

/// The kernel rounds every element of an array map up to this.
const ELEMENT: usize = 8;

pub(crate) struct Mapped<T> {
    map: &'static str,
    start: NonNull<std::ffi::c_void>,
    len: u32,
    marker: PhantomData<T>,
}

// SAFETY: the memory belongs to the map and is reached through this handle's methods only.
unsafe impl<T: Send> Send for Mapped<T> {}

impl<T: Pod> Mapped<T> {
    const STRIDE: usize = size_of::<T>().next_multiple_of(ELEMENT);

    /// Maps an mmapable array of `len` elements of `T`.
    pub fn new(map: &'static str, fd: impl AsFd, len: u32) -> Result<Self, KernelError> {
        let error = |source: io::Error| KernelError::Mmap { map, source };
        let size =
            NonZeroUsize::new(len as usize * Self::STRIDE).ok_or_else(|| error(io::ErrorKind::InvalidInput.into()))?;
        let protection = ProtFlags::PROT_READ | ProtFlags::PROT_WRITE;
        // SAFETY: a fresh shared mapping, of no address that is in use.
        let start =
            unsafe { mmap(None, size, protection, MapFlags::MAP_SHARED, fd, 0) }.map_err(|e| error(e.into()))?;
        Ok(Self { map, start, len, marker: PhantomData })
    }

    pub fn get(&self, index: u32) -> Option<T> {
        // SAFETY: `at` checked the index; every bit pattern is a T (Pod); programs do not write user space's maps.
        self.at(index).map(|p| unsafe { p.read_volatile() })
    }

    /// One store. Atomic for an aligned `u64`.
    pub fn set(&mut self, index: u32, value: T) -> Result<(), KernelError> {
        let slot = self.at(index).ok_or_else(|| self.out_of_range(index.into(), u64::from(index) + 1))?;
        // SAFETY: `at` checked the index; elements are aligned to 8 bytes.
        unsafe { slot.write_volatile(value) };
        Ok(())
    }

    /// Fills `first..`, or nothing when it would not fit.
    pub fn fill(&mut self, first: u32, values: &[T]) -> Result<(), KernelError> {
        let end = u64::from(first) + values.len() as u64;
        if end > u64::from(self.len) {
            return Err(self.out_of_range(first.into(), end));
        }
        (first..).zip(values).try_for_each(|(index, value)| self.set(index, *value))
    }

    pub fn len(&self) -> u32 {
        self.len
    }

    fn at(&self, index: u32) -> Option<*mut T> {
        // SAFETY: inside the mapping, which is `len` strides long.
        (index < self.len).then(|| unsafe { self.start.as_ptr().byte_add(index as usize * Self::STRIDE).cast() })
    }

    fn out_of_range(&self, first: u64, end: u64) -> KernelError {
        KernelError::OutOfRange { map: self.map, first, end, len: self.len }
    }
}

impl<T> Drop for Mapped<T> {
    fn drop(&mut self) {
        let size = self.len as usize * size_of::<T>().next_multiple_of(ELEMENT);
        // SAFETY: this handle made the mapping, and no pointer into it outlives a method.
        let _ = unsafe { munmap(self.start, size) };
    }
}
