//! Why a packet did not go the ordinary way.

/// What became of a packet that a [`Reason`] was counted for.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Kind {
    /// Left to the network stack, untouched.
    Passed,
    /// Gone.
    Dropped,
    /// Gone, and its sender was told so by a reset.
    Answered,
    /// Forwarded; something worth knowing happened.
    Noted,
}

macro_rules! reasons {
    ($($(#[$doc:meta])* $variant:ident = $value:literal, $name:literal, $kind:ident;)+) => {
        /// Index into the `reasons` map. Values are part of the pinned layout: add at the end.
        #[repr(u32)]
        #[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
        pub enum Reason { $($(#[$doc])* $variant = $value),+ }

        impl Reason {
            pub const ALL: &'static [Self] = &[$(Self::$variant),+];

            /// As it is shown to people and in metrics.
            pub const fn name(self) -> &'static str {
                match self { $(Self::$variant => $name),+ }
            }

            #[inline(always)]
            pub const fn kind(self) -> Kind {
                match self { $(Self::$variant => Kind::$kind),+ }
            }
        }
    };
}

reasons! {
    /// The dialled address has no backend in its ring.
    NoBackend = 0, "no_backend", Dropped;
    /// The flow's backend is gone.
    BackendDown = 1, "backend_down", Dropped;
    /// The backend's node is unknown or its MAC is not resolved.
    NodeUnresolved = 2, "node_unresolved", Dropped;
    /// A reset: the dialled address has no backend.
    ResetNoBackend = 3, "reset_no_backend", Answered;
    /// Too big for the tunnel.
    TooBig = 4, "too_big_for_tunnel", Dropped;
    /// TTL would reach zero.
    TtlExpired = 5, "ttl_expired", Dropped;
    /// A tunnelled frame from an address that is no node.
    TunnelPeerUnknown = 6, "tunnel_peer_unknown", Dropped;
    /// A tunnelled frame that is not one of ours.
    TunnelMalformed = 7, "tunnel_malformed", Dropped;
    /// A tunnelled frame for an address that is not here.
    NotOurEndpoint = 8, "not_our_endpoint", Dropped;
    /// A tunnelled reply whose next hop has no MAC yet.
    NeighbourUnresolved = 9, "neighbour_unresolved", Dropped;
    /// A tunnelled reply to an address that the node has no route to.
    NoRoute = 10, "no_route", Dropped;
    /// No free source port for a flow that collides with another one.
    AliasExhausted = 11, "alias_exhausted", Dropped;
    /// The kernel refused to make room for, or remove, the outer headers.
    HeadroomRefused = 12, "headroom_refused", Dropped;
    /// No place in the flow table: all that could hold the flow are connections in use.
    FlowTableRefused = 13, "flow_table_refused", Dropped;
    /// A ring points outside its slots, or to a backend that is not there.
    RingDamaged = 14, "ring_damaged", Dropped;

    /// A VLAN tag.
    Vlan = 15, "vlan_tagged", Passed;
    /// IPv4 options.
    Ipv4Options = 16, "ipv4_options", Passed;
    /// A fragment.
    Fragment = 17, "fragment", Passed;
    /// Headers that end before they should.
    Truncated = 18, "truncated", Passed;

    /// The client's source port was replaced because the tuple was taken.
    FlowAliased = 19, "flow_aliased", Noted;
    /// A flow's entry was missing in the middle of a connection and was written again.
    FlowRecreated = 20, "flow_recreated", Noted;
    /// An established flow was not in the entry's cache and went by the ring.
    EntryMiss = 21, "entry_cache_miss", Noted;
    /// A connect to an address whose ring is empty was refused at the socket.
    ConnectRefused = 22, "connect_refused", Noted;
    /// An inner destination that is the node's own went to the stack.
    TunnelToHost = 23, "tunnel_to_host", Noted;

    /// The interface does not forward: its `net.ipv4.conf.<interface>.forwarding` is off.
    ForwardingDisabled = 24, "forwarding_disabled", Dropped;
    /// A reset: the backend of the connection is gone.
    ResetBackendGone = 25, "reset_backend_gone", Answered;
    /// A reset: the connection leads to an address that is not here any more.
    ResetNotOurEndpoint = 26, "reset_not_our_endpoint", Answered;
    /// Other CPUs held a part of the flow table for too long.
    FlowTableBusy = 27, "flow_table_busy", Dropped;
    /// The entry's cache had no place for a flow's choice: until it has, the ring decides.
    EntryFull = 28, "entry_cache_full", Noted;
    /// A program that frames are handed on to is not loaded.
    ProgramMissing = 29, "program_missing", Dropped;
}
