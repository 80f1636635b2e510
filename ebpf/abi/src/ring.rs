//! Where a ring is: one word that a single store publishes.

/// Slots of a slab by class. Primes, so that Maglev's skips visit every slot; class 0 is the empty ring.
pub const SLAB_SIZES: [u32; 6] = [0, 251, 1021, 4093, 16381, 65537];

/// Part of the layout: programs and agent must mean the same size by a class.
pub(crate) const SIZES_TEXT: &str = "slabs=0,251,1021,4093,16381,65537";

/// Slots of a slab of `class`; none for a class nobody defined.
#[inline(always)]
pub const fn slab_size(class: u8) -> u32 {
    match class {
        1 => 251,
        2 => 1021,
        3 => 4093,
        4 => 16381,
        5 => 65537,
        _ => 0,
    }
}

/// The smallest class in which each of `backends` equal backends has at least 50 slots (the largest one when none
/// does), so that shares differ by a few per cent at most.
pub const fn slab_class_for(backends: u32) -> u8 {
    if backends == 0 {
        return 0;
    }
    let mut class = 1;
    while class < 5 && slab_size(class) / 50 < backends {
        class += 1;
    }
    class
}

/// `slab base (32) | size class (8) | generation (24)`, stored as one aligned word in `ring_heads`.
#[repr(transparent)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub struct RingHead(u64);

impl RingHead {
    /// A ring without backends: packets for it are counted drops.
    pub const EMPTY: Self = Self(0);

    #[inline(always)]
    pub const fn new(base: u32, class: u8, generation: u32) -> Self {
        Self((base as u64) << 32 | (class as u64) << 24 | (generation & 0x00ff_ffff) as u64)
    }

    #[inline(always)]
    pub const fn from_word(word: u64) -> Self {
        Self(word)
    }

    #[inline(always)]
    pub const fn word(self) -> u64 {
        self.0
    }

    #[inline(always)]
    pub const fn base(self) -> u32 {
        (self.0 >> 32) as u32
    }

    #[inline(always)]
    pub const fn class(self) -> u8 {
        (self.0 >> 24) as u8
    }

    #[inline(always)]
    pub const fn generation(self) -> u32 {
        (self.0 & 0x00ff_ffff) as u32
    }

    #[inline(always)]
    pub const fn size(self) -> u32 {
        slab_size(self.class())
    }

    /// The index into `ring_slots` for a flow's hash. Meaningless when [`Self::size`] is zero.
    #[inline(always)]
    pub const fn slot(self, hash: u32) -> u32 {
        self.base().wrapping_add(((hash as u64 * self.size() as u64) >> 32) as u32)
    }
}
