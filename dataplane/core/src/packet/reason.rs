//! Why a packet went no further.

use crate::counters::reasons;

reasons! {
    /// Why a packet was dropped.
    DropReason {
        /// Shorter than the headers that it names.
        Truncated = "truncated",
        /// An IP header that cannot be: its version, lengths or checksum.
        BadIp = "bad_ip_header",
        /// A transport header that cannot be.
        BadTransport = "bad_transport_header",
        /// More IPv6 extension headers, or other ones, than a service's packets have.
        BadExtension = "bad_extension_header",
        /// Source and destination that no packet on a wire may have.
        BadAddress = "bad_address",
        /// A first fragment that leaves out part of the transport header (RFC 1858, RFC 8200).
        TinyFragment = "tiny_fragment",
        /// Its time to live was over.
        TtlExceeded = "ttl_exceeded",
        /// An allow or deny list refuses the client.
        Denied = "denied",
        /// A limit refuses the flow.
        Limited = "limited",
        /// The process is stopping, and lets no new flows in.
        Stopping = "stopping",
        /// No backend is admitted.
        NoBackend = "no_backend",
        /// It belongs to no flow, and nothing says whose it is.
        NoFlow = "no_flow",
        /// The table has no room for its flow.
        TableFull = "flow_table_full",
        /// Its flow was cut on purpose; its sender was told.
        Cut = "flow_cut",
        /// A late answer of a backend that the flow has left.
        Abandoned = "abandoned_backend",
        /// No local port is free for the backend.
        NoPort = "no_local_port",
        /// No route, or nobody answers at the next hop.
        NoNeighbour = "no_neighbour",
        /// Too many packets wait for that next hop.
        NeighbourQueue = "neighbour_queue_full",
        /// A tunnel makes it too large; its sender was told.
        TooBig = "too_big",
        /// No room in the buffer for the headers that it needs.
        NoRoom = "no_room",
        /// A fragment whose first one did not come in time, or for which there was no room.
        Fragment = "fragment_lost",
        /// An ICMP error about a packet that is none of ours.
        IcmpUnknown = "icmp_unknown",
        /// It cannot be said in the other family (RFC 7915).
        Untranslatable = "untranslatable",
    }
}
