//! The packet path.

use schemars::JsonSchema;
use serde::Deserialize;

use crate::values::{At, Count, Size};

/// The packet path.
#[derive(Debug, Deserialize, JsonSchema, Default)]
#[serde(deny_unknown_fields, rename_all = "camelCase", default)]
pub struct PacketDoc {
    /// What brings packets here. Default: `raw`.
    pub driver: Option<DriverDoc>,
    /// With `driver: raw`: interfaces that packets of clients and backends come and go by. VLANs on
    /// them are theirs.
    pub interfaces: Vec<At<String>>,
    /// With `driver: dpdk`: cards that packets of clients and backends come and go by.
    pub ports: Vec<At<DpdkPortDoc>>,
    /// With `driver: dpdk`: how DPDK is started.
    pub dpdk: Option<At<DpdkDoc>>,
    /// IPv4 flows that each worker remembers, 96 bytes each. Default: 256k.
    pub flows: Option<At<Count>>,
    /// Flows with IPv6 addresses, 160 bytes each. Default: a quarter of `flows`.
    #[serde(rename = "flowsIPv6")]
    pub flows_ipv6: Option<At<Count>>,
}

/// What brings packets to the packet path.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize, JsonSchema, Default)]
#[serde(rename_all = "camelCase")]
pub enum DriverDoc {
    /// Packet sockets on the kernel's interfaces: on any machine.
    #[default]
    Raw,
    /// DPDK, which has its cards for itself. In builds with the feature `dpdk`.
    Dpdk,
}

/// A card that DPDK has.
#[derive(Debug, Clone, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, rename_all = "camelCase")]
pub struct DpdkPortDoc {
    /// Its PCI address, like `0000:3b:00.0`, or a virtual device as DPDK writes it, like
    /// `net_af_packet0,iface=eth0`.
    pub device: At<String>,
    /// Name of the kernel's end of its link, which Fairway makes: it has the addresses and routes of
    /// the link, and gets what is not for VIPs.
    pub interface: At<String>,
    /// The largest IP packet of the link; jumbo frames need more memory. Default: 1500.
    pub mtu: Option<At<u16>>,
}

/// How DPDK is started.
#[derive(Debug, Deserialize, JsonSchema, Default)]
#[serde(deny_unknown_fields, rename_all = "camelCase", default)]
pub struct DpdkDoc {
    /// Memory for packets. Default: 256MiB.
    pub memory: Option<At<Size>>,
    /// A mounted hugetlbfs to take it from. Default: huge pages without files.
    pub huge_dir: Option<At<String>>,
    /// Takes ordinary pages: for virtual devices, on machines without huge pages. Default: false.
    pub no_huge: Option<At<bool>>,
    /// What the kernel's ends of links are. Default: `tap`.
    pub kernel_end: Option<KernelEndDoc>,
    /// Further arguments for DPDK's EAL, as they are: the last resort.
    pub eal_arguments: Vec<String>,
}

/// The kernel's end of a link of DPDK's.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize, JsonSchema, Default)]
#[serde(rename_all = "camelCase")]
pub enum KernelEndDoc {
    /// A tap: a system call a packet.
    #[default]
    Tap,
    /// A virtio device by /dev/vhost-net: a thread of the kernel's copies packets.
    Vhost,
}
