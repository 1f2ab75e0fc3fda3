//! How routers and segments learn of the services' addresses, as it is written. The same fields are those
//! of our objects in a cluster (`fairway.dev/v1alpha1`), whose name is that of the object.

use schemars::JsonSchema;
use serde::Deserialize;

use crate::kubernetes::{LabelSelector, Labels};
use crate::values::{Address, At, CommunityText, Dialled, PeerAsText, Time};

/// How routers and segments learn of the services' addresses.
#[derive(Debug, Deserialize, JsonSchema, Default)]
#[serde(deny_unknown_fields, rename_all = "camelCase", default)]
pub struct AnnounceDoc {
    /// The name of this box among those of `nodeSelectors`, and of its Node in a cluster. Default: its
    /// host name.
    pub node_name: Option<At<String>>,
    /// Labels of this box, beside those of its Node.
    pub node_labels: Labels,
    /// How long this box goes on serving, at its end, after it has taken back what it announced. Default:
    /// 500ms with VRRP, 2s with BGP, 3s with Leases.
    pub withdraw_delay: Option<At<Time>>,
    /// Segments on which this box answers for addresses.
    pub layer2: Vec<At<Layer2Doc>>,
    /// Addresses that one of several boxes has at a time (VRRP, RFC 9568).
    pub vrrp: Vec<At<VrrpGroupDoc>>,
    /// Routers that are told of addresses.
    pub bgp: BgpDoc,
    /// How the ways to routers are watched (BFD, RFC 5880).
    pub bfd_profiles: Vec<At<BfdProfileDoc>>,
}

/// Routers that are told of addresses.
#[derive(Debug, Deserialize, JsonSchema, Default)]
#[serde(deny_unknown_fields, rename_all = "camelCase", default)]
pub struct BgpDoc {
    /// Our AS number, for peers that name none.
    #[serde(rename = "myASN")]
    pub my_asn: Option<At<u32>>,
    /// Our identifier, for peers that name none. Default: the IPv4 address by which a peer is reached.
    #[serde(rename = "routerID")]
    pub router_id: Option<At<Address>>,
    /// Takes connections of the peers at this port, too. Default: none; connections are made from here.
    pub listen_port: Option<At<u16>>,
    /// The routers.
    pub peers: Vec<At<BgpPeerDoc>>,
    /// What they are told.
    pub advertisements: Vec<At<BgpAdvertisementDoc>>,
}

/// A struct with the fields that choose addresses and boxes.
macro_rules! chooses {
    ($(#[$doc:meta])* $name:ident { $($(#[$field_doc:meta])* $field:ident: $type:ty,)* }) => {
        $(#[$doc])*
        #[derive(Debug, Deserialize, JsonSchema)]
        #[serde(deny_unknown_fields, rename_all = "camelCase")]
        pub struct $name {
            /// Its name, unique.
            pub name: At<String>,
            /// Chooses these addresses, and those in these networks. Default: all.
            #[serde(default)]
            pub addresses: Vec<At<Dialled>>,
            /// Of these, addresses of pools of these names. Default: all.
            #[serde(default)]
            pub address_pools: Vec<At<String>>,
            /// Of these, addresses of these services. Default: all.
            #[serde(default)]
            pub services: Vec<At<String>>,
            /// Of these, addresses of services with such labels. Default: all.
            #[serde(default)]
            pub service_selectors: Vec<LabelSelector>,
            /// Holds on boxes with such labels. Default: on all.
            #[serde(default)]
            pub node_selectors: Vec<LabelSelector>,
            $($(#[$field_doc])* #[serde(default)] pub $field: $type,)*
        }

        impl $name {
            /// What it chooses.
            #[must_use]
            pub fn choice(&self) -> Choice<'_> {
                Choice {
                    name: &self.name,
                    addresses: &self.addresses,
                    address_pools: &self.address_pools,
                    services: &self.services,
                    service_selectors: &self.service_selectors,
                    node_selectors: &self.node_selectors,
                }
            }
        }
    };
}

/// What an entry chooses: fields that several kinds of entries have.
#[derive(Debug, Clone, Copy)]
#[expect(missing_docs, reason = "as the fields of the entries")]
pub struct Choice<'d> {
    pub name: &'d At<String>,
    pub addresses: &'d [At<Dialled>],
    pub address_pools: &'d [At<String>],
    pub services: &'d [At<String>],
    pub service_selectors: &'d [LabelSelector],
    pub node_selectors: &'d [LabelSelector],
}

chooses! {
    /// Segments on which this box answers for addresses.
    Layer2Doc {
        /// The interfaces. Default: `dataplane.vip.interface`, and those of `dataplane.packet`.
        interfaces: Vec<At<String>>,
        /// Whether addresses of proxied services are added to the first interface; otherwise stations
        /// that ask for them are answered, and the kernel is to take their packets all the same. Default:
        /// true with `listen: perAddress`.
        add_addresses: Option<At<bool>>,
        /// How boxes agree on who answers. Default: `lease` with an API server, else `none`.
        election: Option<At<ElectionDoc>>,
    }
}

/// How boxes agree on who answers for an address.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub enum ElectionDoc {
    /// They do not: this one does.
    None,
    /// By Leases of the API server, spread over the boxes by their healthy backends.
    Lease,
}

chooses! {
    /// Addresses that one of several boxes has at a time.
    VrrpGroupDoc {
        /// The interface that has the addresses, and by which the boxes hear each other.
        interface: Option<At<String>>,
        /// Number of the virtual router on its segment, 1 to 255; the same on all boxes.
        virtual_router_id: Option<At<u16>>,
        /// The highest has the addresses, 1 to 254; 255 takes them without asking. Default: 100.
        priority: Option<At<u16>>,
        /// How often the one that has them says so, in steps of 10ms up to 40950ms. Default: 200ms.
        advert_interval: Option<At<Time>>,
        /// Whether a higher priority takes the addresses from a lower one. Default: true.
        preempt: Option<bool>,
        /// How long after its start it leaves them to a lower priority. Default: 0s.
        preempt_delay: Option<At<Time>>,
        /// The other boxes, spoken to one by one. Default: all on the segment, by multicast.
        unicast_peers: Vec<At<Address>>,
        /// From which address it speaks. Default: the first of the interface.
        source_address: Option<At<Address>>,
        /// What lowers the priority.
        track: TrackDoc,
        /// Whether addresses of proxied services are added to the interface. Default: true with
        /// `listen: perAddress`.
        add_addresses: Option<At<bool>>,
    }
}

/// What lowers a priority.
#[derive(Debug, Clone, Deserialize, JsonSchema, Default)]
#[serde(deny_unknown_fields, rename_all = "camelCase", default)]
pub struct TrackDoc {
    /// Services without a backend that takes flows: all of them, any, or none counts. Default: `all`.
    pub services: Option<TrackServicesDoc>,
    /// Interfaces that are down.
    pub interfaces: Vec<At<String>>,
    /// By how much; 1 is the least that is left. Default: 100.
    pub weight: Option<At<u16>>,
}

/// Which services without a backend lower a priority.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize, JsonSchema, Default)]
#[serde(rename_all = "camelCase")]
pub enum TrackServicesDoc {
    /// When all have none.
    #[default]
    All,
    /// When one has none.
    Any,
    /// Never.
    None,
}

/// A router that is told of addresses.
#[derive(Debug, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, rename_all = "camelCase")]
pub struct BgpPeerDoc {
    /// Its name, unique.
    pub name: At<String>,
    /// Its address.
    pub peer_address: At<Address>,
    /// Its AS number, or `external` or `internal` for any that is not, or is, ours.
    #[serde(rename = "peerASN")]
    pub peer_asn: At<PeerAsText>,
    /// Our AS number. Default: that of `bgp`.
    #[serde(default, rename = "myASN")]
    pub my_asn: Option<At<u32>>,
    /// Its port. Default: 179.
    #[serde(default)]
    pub peer_port: Option<At<u16>>,
    /// Our address. Default: the one that the kernel chooses.
    #[serde(default)]
    pub source_address: Option<At<Address>>,
    /// Our identifier. Default: that of `bgp`.
    #[serde(default, rename = "routerID")]
    pub router_id: Option<At<Address>>,
    /// Silence that ends the session, 3s at least; 0s is never. Default: 90s.
    #[serde(default)]
    pub hold_time: Option<At<Time>>,
    /// How often we speak. Default: a third of the hold time.
    #[serde(default)]
    pub keepalive_time: Option<At<Time>>,
    /// The longest time between two tries to connect. Default: 10s.
    #[serde(default)]
    pub connect_time: Option<At<Time>>,
    /// Whether the router is several hops away; BFD then is, too. Default: false: one of another AS is on a
    /// link of ours.
    #[serde(default)]
    pub ebgp_multi_hop: Option<bool>,
    /// A file with the key that signs the session (TCP MD5, RFC 2385).
    #[serde(default)]
    pub password_file: Option<At<String>>,
    /// The same as a credential of systemd (`LoadCredential=`).
    #[serde(default)]
    pub password_credential: Option<At<String>>,
    /// How the way to it is watched. Default: by the hold time alone.
    #[serde(default)]
    pub bfd_profile: Option<At<String>>,
    /// Has it keep our routes for a while after this process has gone without a word. Default: false.
    #[serde(default)]
    pub enable_graceful_restart: Option<bool>,
    /// How long. Default: 120s.
    #[serde(default)]
    pub restart_time: Option<At<Time>>,
    /// Lets the router connect, and waits. Default: false. Needs `listenPort` of `bgp`.
    #[serde(default)]
    pub passive: Option<At<bool>>,
    /// Where it is to send what is for the addresses of IPv4. Default: our address of the session, or of
    /// its interface.
    #[serde(default, rename = "nextHopIPv4")]
    pub next_hop_ipv4: Option<At<Address>>,
    /// The same of IPv6.
    #[serde(default, rename = "nextHopIPv6")]
    pub next_hop_ipv6: Option<At<Address>>,
    /// Is a peer of boxes with such labels. Default: of all.
    #[serde(default)]
    pub node_selectors: Vec<LabelSelector>,
}

chooses! {
    /// What routers are told.
    BgpAdvertisementDoc {
        /// Names of the peers. Default: all.
        peers: Vec<At<String>>,
        /// Communities, like `64512:100`, `64512:1:2`, or `no-export`.
        communities: Vec<At<CommunityText>>,
        /// How much routers of our own AS prefer the route. Default: 100.
        local_pref: Option<u32>,
        /// How little routers of other ASes prefer it. Default: they are not told.
        med: Option<u32>,
        /// Tells of the network of this length that an address is in. Default: 32.
        aggregation_length: Option<At<u8>>,
        /// The same of IPv6. Default: 128.
        aggregation_length_v6: Option<At<u8>>,
        /// Also tells of addresses without a backend that takes flows. Default: false.
        without_backends: Option<bool>,
    }
}

/// How the way to a router is watched.
#[derive(Debug, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, rename_all = "camelCase")]
pub struct BfdProfileDoc {
    /// Its name, unique.
    pub name: At<String>,
    /// How often we can hear. Default: 300ms.
    #[serde(default)]
    pub receive_interval: Option<At<Time>>,
    /// How often we speak. Default: 300ms.
    #[serde(default)]
    pub transmit_interval: Option<At<Time>>,
    /// So many missed in a row are silence. Default: 3.
    #[serde(default)]
    pub detect_multiplier: Option<At<u8>>,
    /// With several hops: packets that have taken more are not heard; a time to live. Default: 254.
    #[serde(default, rename = "minimumTTL")]
    pub minimum_ttl: Option<At<u8>>,
}
