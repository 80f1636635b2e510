//! Integers that are kept in network order.

macro_rules! big_endian {
    ($name:ident, $int:ident) => {
        /// An integer whose bytes in memory are in network order.
        #[repr(transparent)]
        #[derive(Clone, Copy, Default, PartialEq, Eq, Hash)]
        pub struct $name($int);

        impl $name {
            #[inline(always)]
            pub const fn new(value: $int) -> Self {
                Self(value.to_be())
            }

            #[inline(always)]
            pub const fn get(self) -> $int {
                $int::from_be(self.0)
            }

            #[inline(always)]
            pub const fn from_bytes(bytes: [u8; size_of::<$int>()]) -> Self {
                Self($int::from_ne_bytes(bytes))
            }

            #[inline(always)]
            pub const fn to_bytes(self) -> [u8; size_of::<$int>()] {
                self.0.to_ne_bytes()
            }

            /// The memory as one word, for kernel interfaces that take network order in a plain integer.
            #[inline(always)]
            pub const fn raw(self) -> $int {
                self.0
            }

            /// From a word of a kernel interface that gives network order in a plain integer.
            #[inline(always)]
            pub const fn from_raw(raw: $int) -> Self {
                Self(raw)
            }

            #[inline(always)]
            pub const fn is_zero(self) -> bool {
                self.0 == 0
            }
        }

        impl PartialOrd for $name {
            fn partial_cmp(&self, other: &Self) -> Option<core::cmp::Ordering> {
                Some(self.cmp(other))
            }
        }

        impl Ord for $name {
            fn cmp(&self, other: &Self) -> core::cmp::Ordering {
                self.get().cmp(&other.get())
            }
        }

        // SAFETY: transparent over an integer.
        #[cfg(feature = "user")]
        #[expect(unsafe_code, reason = "aya::Pod is an unsafe trait")]
        unsafe impl aya::Pod for $name {}
    };
}

big_endian!(Be16, u16);
big_endian!(Be32, u32);

impl core::fmt::Debug for Be16 {
    fn fmt(&self, f: &mut core::fmt::Formatter<'_>) -> core::fmt::Result {
        write!(f, "{}", self.get())
    }
}

impl core::fmt::Debug for Be32 {
    fn fmt(&self, f: &mut core::fmt::Formatter<'_>) -> core::fmt::Result {
        core::fmt::Debug::fmt(&core::net::Ipv4Addr::from(self.get()), f)
    }
}

impl From<core::net::Ipv4Addr> for Be32 {
    fn from(address: core::net::Ipv4Addr) -> Self {
        Self::from_bytes(address.octets())
    }
}

impl From<Be32> for core::net::Ipv4Addr {
    fn from(address: Be32) -> Self {
        Self::from(address.to_bytes())
    }
}
