//! What user space and the kernel programs share: keys, values, map names, sizes and reasons.
//!
//! Both sides compile this one definition, so a map written by the agent is read by the programs field by field as it
//! was meant. Addresses and ports that come from packets stay in network order and say so in their type.
//!
//! ```text
//! vips[dialled] -> frontend, ring ──> ring_heads[ring] = one word ──> ring_slots[base + hash % size] ──> backends[id]
//!                                                                                                     └> nodes[node]
//! ```
#![no_std]

mod order;
mod reason;
mod ring;
mod stamp;
#[cfg(test)]
mod tests;

pub use order::{Be16, Be32};
pub use reason::{Kind, Reason};
pub use ring::{RingHead, SLAB_SIZES, slab_class_for, slab_size};
pub use stamp::Stamp;

/// IP protocol numbers as they stand in keys.
pub const PROTO_TCP: u8 = 6;
pub const PROTO_UDP: u8 = 17;

/// [`Backend::flags`]: the backend's node is this one.
pub const BACKEND_LOCAL: u8 = 1;
/// [`Backend::flags`]: the backend listens in the node's own network namespace.
pub const BACKEND_HOST: u8 = 2;
/// [`Backend::flags`]: keeps its flows, gets no new ones (it is in no ring any more).
pub const BACKEND_DRAINING: u8 = 4;
/// [`Backend::flags`]: gone; a packet of an old flow is dropped and counted instead of forwarded.
pub const BACKEND_DOWN: u8 = 8;

/// [`VipValue::flags`]: the address belongs to the node's uplink, so other ports of it are the node's own.
pub const VIP_EDGE: u16 = 1;

/// [`Uplink::flags`]: the fields are valid; until it is set every program lets all packets pass.
pub const UPLINK_READY: u32 = 1;

/// The node index that means "this node".
pub const NODE_SELF: u32 = 0;
/// The backend id that no backend has.
pub const BACKEND_NONE: u32 = 0;

/// Nodes own alloc addresses in blocks of this prefix length.
pub const BLOCK_PREFIX_LEN: u32 = 26;

/// The first address of the block that `address` lies in: the key of [`maps::BLOCKS`].
#[inline(always)]
pub const fn block_of(address: Be32) -> Be32 {
    Be32::new(address.get() & (u32::MAX << (32 - BLOCK_PREFIX_LEN)))
}

/// [`Flow::state`]: a FIN went from the client to the backend.
pub const FLOW_FIN_FORWARD: u8 = 1;
/// [`Flow::state`]: a FIN went from the backend to the client.
pub const FLOW_FIN_REPLY: u8 = 2;
/// [`Flow::state`]: a RST went either way; the key may be taken over at once.
pub const FLOW_RST: u8 = 4;
/// [`Flow::state`]: the backend has sent something.
pub const FLOW_REPLIED: u8 = 8;
/// [`Flow::state`], and a [`Way`]'s: after a reply the client sent more; nobody can make a table forget such a flow by opening
/// others. In a way: a packet after the one that made it.
pub const FLOW_CONFIRMED: u8 = 16;
/// [`Flow::state`]: of UDP, else of TCP.
pub const FLOW_UDP: u8 = 32;

/// [`Flow::state`], and a [`Way`]'s: the place is not free.
pub const FLOW_USED: u8 = 64;

macro_rules! shared {
    ($($(#[$doc:meta])* $name:ident { $($(#[$field_doc:meta])* $field:ident: $type:ty),+ $(,)? })+) => {
        $(
            $(#[$doc])*
            #[repr(C)]
            #[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
            pub struct $name { $($(#[$field_doc])* pub $field: $type),+ }

            // Padding would hold whatever was on the stack: keys would not match and the verifier refuses it.
            const _: () = assert!(size_of::<$name>() == 0 $(+ size_of::<$type>())+);

            // SAFETY: repr(C), every field is Pod, and there is no padding (asserted above).
            #[cfg(feature = "user")]
            #[expect(unsafe_code, reason = "aya::Pod is an unsafe trait")]
            unsafe impl aya::Pod for $name {}
        )+

        const TYPES: &str = concat!($(stringify!($name), "{", $(stringify!($field), ":", stringify!($type), ";",)+ "}",)+);
    };
}

shared! {
    /// A dialled address and port: key of [`maps::VIPS`].
    VipKey { addr: Be32, port: Be16, proto: u8, pad: u8 }

    /// What is behind a dialled address.
    VipValue {
        /// Unique per [`VipKey`] while the key exists: stands for it in the entry's flow cache.
        frontend: u16,
        flags: u16,
        /// Index into [`maps::RING_HEADS`].
        ring: u32,
    }

    /// One instance, at its id in [`maps::BACKENDS`].
    Backend {
        addr: Be32,
        port: Be16,
        proto: u8,
        flags: u8,
        /// Index into [`maps::NODES`]; [`NODE_SELF`] when the instance is here.
        node: u32,
        /// The agent's index of the service, for counters per service. Programs do not read it.
        service: u32,
    }

    /// A peer, at its index in [`maps::NODES`].
    Node {
        /// The address tunnels go to. Zero: there is no such node.
        addr: Be32,
        /// The MAC of the next hop towards it. All zero: not resolved yet.
        dmac: [u8; 6],
        flags: u16,
    }

    /// A local allocation, by its address in [`maps::ENDPOINTS`].
    Endpoint {
        /// Of the host side of its veth.
        ifindex: u32,
        /// Of the side inside the allocation.
        mac: [u8; 6],
        /// Of the host side.
        host_mac: [u8; 6],
    }

    /// An [`Endpoint`] where its address's low byte leads, in [`maps::NEAR_ENDPOINTS`]: found without hashing. Another
    /// address with that byte may hold the place.
    NearEndpoint { addr: Be32, ifindex: u32, mac: [u8; 6], host_mac: [u8; 6] }

    /// What the programs must know about this node: the only entry of [`maps::UPLINK`].
    Uplink {
        /// Source of tunnels.
        addr: Be32,
        /// The node's own address inside the mesh.
        mesh: Be32,
        ifindex: u32,
        flags: u32,
        mac: [u8; 6],
        /// Largest IP packet the uplink takes.
        mtu: u16,
    }

    /// One remembered choice at the entry.
    Way {
        /// Client address, client port, frontend: [`Way::key_of`].
        key: u64,
        /// Its id in [`maps::BACKENDS`], which holds no more than 16 bits can name.
        backend: u16,
        /// The source port that a local backend sees. Good for as long as the stamp's time is now: the flow table was asked
        /// within this unit. Zero: not asked yet.
        port: Be16,
        /// A [`Stamp`].
        stamp: u32,
    }

    /// One cache line of the entry's flow cache.
    Bucket { ways: [Way; 4] }

    /// Four flows of [`maps::FLOWS`], field by field: what is searched and aged lies in the first cache line, what is read of
    /// a flow that was found in the second.
    FlowBucket {
        /// Client address, client port, backend port: [`FlowKey::ends`].
        ends: [u64; 4],
        backend: [Be32; 4],
        /// [`Stamp`]s, whose state says the protocol, too, and whether the place is free.
        stamps: [u32; 4],
        dialled: [Be32; 4],
        entry: [Be32; 4],
        /// The dialled port, and the client's own, in their order in memory.
        ports: [[Be16; 2]; 4],
        /// Odd while a CPU writes the bucket; two more after it.
        sequence: u32,
        /// Not zero: flows that belong here went to their second bucket.
        overflowed: u32,
        pad: [u32; 2],
    }

    /// A connection as the backend sees it: what [`maps::FLOWS`] is searched for.
    #[repr(align(8))]
    FlowKey { client: Be32, backend: Be32, client_port: Be16, backend_port: Be16, proto: u8, pad: [u8; 3] }

    /// How replies of a connection find back: what a [`FlowBucket`] says of one flow.
    #[repr(align(8))]
    Flow {
        dialled: Be32,
        /// The node that the client's packets came in by; zero when that is this one.
        entry: Be32,
        dialled_port: Be16,
        /// What the client used; differs from the key's port when that one was taken (see [`AliasKey`]).
        original_port: Be16,
        /// Of its last packet, in units of a [`Stamp`].
        seen: u32,
        state: u8,
        pad: [u8; 7],
    }

    /// A connection as the client sees it, for those whose source port had to be replaced: key of [`maps::ALIASES`].
    AliasKey {
        client: Be32,
        dialled: Be32,
        backend: Be32,
        client_port: Be16,
        dialled_port: Be16,
        backend_port: Be16,
        proto: u8,
        pad: u8,
    }

    /// The source port the backend sees instead.
    Alias { port: Be16, pad: u16 }

    /// A dialled address that a socket was led away from, and where to.
    Peer { dialled: Be32, backend: Be32, dialled_port: Be16, backend_port: Be16 }

    /// What a socket dialled, newest last, around: in the storage of the socket itself.
    Peers { peers: [Peer; 4], next: u32 }

    /// Traffic towards one backend, at its id in [`maps::BACKEND_COUNTERS`], per CPU.
    BackendCounters { packets: u64, bytes: u64, flows: u64 }

    /// What the uplink's first program leaves for the one it hands a frame on to, in [`maps::PARKED`].
    Parked {
        /// The packet's ends.
        client: Be32,
        dialled: Be32,
        client_port: Be16,
        dialled_port: Be16,
        proto: u8,
        /// TCP's.
        flags: u8,
        /// Where the frame goes, when `answer` is zero.
        target_port: Be16,
        target: Be32,
        /// The source port to show the backend, once the flow was admitted; and whether the flow was confirmed.
        source_port: Be16,
        confirmed: u16,
        /// A [`Reason`] and one, when the frame is to be answered instead.
        answer: u32,
        /// The node it came in by; zero when that is this one.
        entry: Be32,
        /// The MAC of the neighbour that sent a tunnelled frame, in the low bytes.
        neighbour: u64,
        /// The backend's id, when this node chose it; and whether the flow is new.
        backend: u32,
        opens: u32,
        /// Where this node's choice is remembered: index into [`maps::ENTRY_FLOWS`], and the way's key.
        bucket: u32,
        /// How many source ports were tried for the flow and found taken.
        tries: u32,
        way: u64,
    }

    /// Ring buffer event: a next hop has no link-layer address yet.
    Unresolved { addr: Be32 }
}

impl Way {
    /// The exact key of a client's connection to a frontend. Never zero: port 0 is no source port of TCP.
    #[inline(always)]
    pub const fn key_of(client: Be32, client_port: Be16, frontend: u16) -> u64 {
        (client.get() as u64) << 32 | (client_port.get() as u64) << 16 | frontend as u64
    }
}

impl FlowKey {
    /// Its client's and backend's ends but for the backend's address, as one word. Zero for nobody's flow alone.
    #[inline(always)]
    pub const fn ends(&self) -> u64 {
        (self.client.get() as u64) << 32 | (self.client_port.get() as u64) << 16 | self.backend_port.get() as u64
    }
}

/// Names and sizes of the maps. A name is also its pin's file name.
pub mod maps {
    macro_rules! maps {
        ($($(#[$doc:meta])* $konst:ident $name:literal $kind:ident<$($type:tt),*> $size:ident = $max:expr;)+) => {
            $(
                $(#[$doc])*
                pub const $konst: &str = $name;
                #[doc = concat!("Entries of `", $name, "`.")]
                pub const $size: u32 = $max;
            )+
            /// Every map that is pinned.
            pub const NAMES: &[&str] = &[$($name),+];
            pub(crate) const DEFINITIONS: &str =
                concat!($($name, "=", stringify!($kind), "<", $(stringify!($type), ",",)* ">", stringify!($max), ";",)+);
        };
    }

    maps! {
        /// `VipKey -> VipValue`.
        VIPS "vips" Hash<VipKey, VipValue> VIPS_MAX = 16_384;
        /// `ring -> RingHead`, mmapable.
        RING_HEADS "ring_heads" Array<u64> RING_HEADS_MAX = 16_384;
        /// Slabs of backend ids, mmapable. The kernel gives every element 8 bytes.
        RING_SLOTS "ring_slots" Array<u32> RING_SLOTS_MAX = 2_097_152;
        /// `id -> Backend`, mmapable.
        BACKENDS "backends" Array<Backend> BACKENDS_MAX = 65_536;
        /// `node index -> Node`, mmapable.
        NODES "nodes" Array<Node> NODES_MAX = 8_192;
        /// `node address -> node index`.
        NODE_BY_ADDR "node_by_addr" Hash<Be32, u32> NODE_BY_ADDR_MAX = 8_192;
        /// `block -> node index`, this node's own blocks included (as `NODE_SELF`).
        BLOCKS "blocks" Hash<Be32, u32> BLOCKS_MAX = 65_536;
        /// `alloc address -> Endpoint`.
        ENDPOINTS "endpoints" Hash<Be32, Endpoint> ENDPOINTS_MAX = 4_096;
        /// `low byte of an alloc address -> NearEndpoint`, mmapable.
        NEAR_ENDPOINTS "near_endpoints" Array<NearEndpoint> NEAR_ENDPOINTS_MAX = 256;
        /// `0 -> Uplink`.
        UPLINK "uplink" Array<Uplink> UPLINK_MAX = 1;
        /// The entry's flow cache: one slice of `ENTRY_BUCKETS` buckets for each CPU.
        ENTRY_FLOWS "entry_flows" Array<Bucket> ENTRY_BUCKETS = 65_536;
        /// Flows to backends of this node, shared by all CPUs, mmapable. The loader sets the number of buckets; this is the default.
        FLOWS "flows" Array<FlowBucket> FLOW_BUCKETS = 65_536;
        /// `AliasKey -> Alias`.
        ALIASES "aliases" LruHash<AliasKey, Alias> ALIASES_MAX = 16_384;
        /// When an alias was last made or used, in jiffies, by the low bits of the flow's hash. Zero: never, so that nearly
        /// every flow need not look for one.
        ALIAS_HINTS "alias_hints" Array<u32> ALIAS_HINTS_MAX = 4_096;
        /// What sockets dialled: socket storage, which goes with its socket.
        PEERS "peers" SkStorage<Peers> PEERS_MAX = 0;
        /// `id -> BackendCounters`.
        BACKEND_COUNTERS "backend_counters" PerCpuArray<BackendCounters> BACKEND_COUNTERS_MAX = 65_536;
        /// `Reason -> u64`.
        REASONS "reasons" PerCpuArray<u64> REASONS_MAX = 64;
        /// Programs that others hand a frame on to, by the indices in [`crate::programs`].
        PROGRAMS "programs" ProgramArray<u32> PROGRAMS_MAX = 8;
        /// `0 -> Parked`, per CPU.
        PARKED "parked" PerCpuArray<Parked> PARKED_MAX = 1;
        /// `netns cookie -> 1`: the namespaces whose sockets are translated.
        SCOPE "scope" Hash<u64, u32> SCOPE_MAX = 4_096;
        /// Ring buffer of `Unresolved`, in bytes.
        UNRESOLVED "unresolved" RingBuf<Unresolved> UNRESOLVED_BYTES = 65_536;
    }
}

/// Names of the programs in the object.
pub mod programs {
    /// XDP at the uplink.
    pub const XDP_UPLINK: &str = "xdp_uplink";
    /// XDP that tells the flow table of a packet for one of this node's backends.
    pub const XDP_ADMIT: &str = "xdp_admit";
    /// XDP that delivers what was admitted, and answers what leads nowhere.
    pub const XDP_DELIVER: &str = "xdp_deliver";
    /// Index of [`XDP_ADMIT`].
    pub const ADMIT: u32 = 0;
    /// Index of [`XDP_DELIVER`].
    pub const DELIVER: u32 = 1;
    /// The programs that others hand a frame on to, with their indices in [`super::maps::PROGRAMS`].
    pub const HANDED_ON: [(u32, &str); 2] = [(ADMIT, XDP_ADMIT), (DELIVER, XDP_DELIVER)];
    /// TC ingress at the host side of an allocation's veth.
    pub const TC_VETH: &str = "tc_veth";
    /// TC egress at the uplink.
    pub const TC_UPLINK: &str = "tc_uplink";
    /// cgroup `connect4`.
    pub const CONNECT4: &str = "connect4";
    /// cgroup `sendmsg4`.
    pub const SENDMSG4: &str = "sendmsg4";
    /// cgroup `recvmsg4`.
    pub const RECVMSG4: &str = "recvmsg4";
    /// cgroup `getpeername4`.
    pub const GETPEERNAME4: &str = "getpeername4";
    /// All that are attached to the cgroup hierarchy's root.
    pub const SOCKET_HOOKS: [&str; 4] = [CONNECT4, SENDMSG4, RECVMSG4, GETPEERNAME4];
    /// XDP that passes everything: a veth peer needs one before frames may be sent into it.
    pub const XDP_PASS: &str = "xdp_pass";
}

/// Everything whose change makes pinned maps unreadable for a new program, as text.
pub const LAYOUT: &[&str] = &[TYPES, maps::DEFINITIONS, ring::SIZES_TEXT, "semantics=3"];

/// FNV-1a over [`LAYOUT`]: names the directory that maps of this layout are pinned in.
pub const LAYOUT_HASH: u64 = fnv(LAYOUT);

const fn fnv(parts: &[&str]) -> u64 {
    let mut hash = 0xcbf2_9ce4_8422_2325_u64;
    let mut part = 0;
    while part < parts.len() {
        let bytes = parts[part].as_bytes();
        let mut i = 0;
        while i < bytes.len() {
            hash = (hash ^ bytes[i] as u64).wrapping_mul(0x0000_0100_0000_01b3);
            i += 1;
        }
        part += 1;
    }
    hash
}
