//! The flow hash: the same flow gives the same number on every box, in proxy and packet mode.
//!
//! xxh3-64 with the configured seed over 37 bytes:
//!
//! | bytes | field |
//! | --- | --- |
//! | 0..16 | source address; IPv4 as `::ffff:a.b.c.d`; bits behind the prefix length are zero |
//! | 16..32 | destination address, likewise, never shortened |
//! | 32..34 | source port, big endian |
//! | 34..36 | destination port, big endian |
//! | 36 | IP protocol number |
//!
//! Fields that the service does not hash are zero. Changing this layout moves every flow of a
//! mixed fleet: the vectors in the tests pin it.

use core::net::{IpAddr, Ipv4Addr, SocketAddr};

use xxhash_rust::xxh3::xxh3_64_with_seed;

use crate::Protocol;

/// Which fields of a flow are hashed.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Default)]
pub enum HashFields {
    /// Source and destination address and port, and the protocol.
    #[default]
    FiveTuple,
    /// Source address.
    Source,
    /// Source address and source port.
    SourcePort,
    /// Destination address and port.
    Destination,
}

/// How a service hashes its flows.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct HashPolicy {
    /// The hashed fields.
    pub fields: HashFields,
    /// Leading bits of an IPv4 source that count, 0 to 32.
    pub ipv4_prefix: u8,
    /// Leading bits of an IPv6 source that count, 0 to 128.
    pub ipv6_prefix: u8,
}

impl Default for HashPolicy {
    fn default() -> Self {
        Self { fields: HashFields::FiveTuple, ipv4_prefix: 32, ipv6_prefix: 128 }
    }
}

/// A flow as its first packet shows it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct FlowKey {
    /// The client.
    pub source: SocketAddr,
    /// The VIP and port that the client dialled.
    pub destination: SocketAddr,
    /// The transport protocol.
    pub protocol: Protocol,
}

impl FlowKey {
    /// The 64-bit flow hash under `policy` and `seed`.
    #[must_use]
    pub fn hash(&self, policy: &HashPolicy, seed: u64) -> u64 {
        let mut bytes = [0u8; 37];
        if policy.fields != HashFields::Destination {
            bytes[..16].copy_from_slice(&masked(self.source.ip(), policy));
        }
        if matches!(policy.fields, HashFields::FiveTuple | HashFields::SourcePort) {
            bytes[32..34].copy_from_slice(&self.source.port().to_be_bytes());
        }
        if matches!(policy.fields, HashFields::FiveTuple | HashFields::Destination) {
            bytes[16..32].copy_from_slice(&octets(self.destination.ip()));
            bytes[34..36].copy_from_slice(&self.destination.port().to_be_bytes());
        }
        if policy.fields == HashFields::FiveTuple {
            bytes[36] = self.protocol.number();
        }
        xxh3_64_with_seed(&bytes, seed)
    }
}

/// `ip` in 16 bytes, IPv4 mapped into IPv6.
pub(crate) fn octets(ip: IpAddr) -> [u8; 16] {
    match ip {
        IpAddr::V4(v4) => v4.to_ipv6_mapped().octets(),
        IpAddr::V6(v6) => v6.octets(),
    }
}

fn masked(ip: IpAddr, policy: &HashPolicy) -> [u8; 16] {
    match ip {
        IpAddr::V4(v4) => {
            let mask = u32::MAX.checked_shl(32 - u32::from(policy.ipv4_prefix.min(32)));
            octets(IpAddr::V4(Ipv4Addr::from(u32::from(v4) & mask.unwrap_or(0))))
        }
        IpAddr::V6(v6) => {
            let mask = u128::MAX.checked_shl(128 - u32::from(policy.ipv6_prefix.min(128)));
            (u128::from(v6) & mask.unwrap_or(0)).to_be_bytes()
        }
    }
}

/// The finaliser of splitmix64: turns consecutive numbers into independent ones.
pub(crate) fn mixed(n: u64) -> u64 {
    let n = n.wrapping_add(0x9e37_79b9_7f4a_7c15);
    let n = (n ^ (n >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    let n = (n ^ (n >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    n ^ (n >> 31)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn key(source: &str, destination: &str) -> FlowKey {
        FlowKey {
            source: source.parse().unwrap(),
            destination: destination.parse().unwrap(),
            protocol: Protocol::Tcp,
        }
    }

    /// Computed with the reference xxHash library 0.8 (`XXH3_64bits_withSeed`) over the layout.
    #[test]
    fn published_vectors() {
        let v4 = key("192.0.2.7:40000", "198.51.100.1:443");
        let v6 = key("[2001:db8::7]:40000", "[2001:db8:1::1]:443");
        for (name, key, fields, seed, want) in [
            ("v4 five-tuple", v4, HashFields::FiveTuple, 0, VECTORS[0]),
            ("v4 five-tuple, seed 42", v4, HashFields::FiveTuple, 42, VECTORS[1]),
            ("v4 source", v4, HashFields::Source, 0, VECTORS[2]),
            ("v4 source and port", v4, HashFields::SourcePort, 0, VECTORS[3]),
            ("v4 destination", v4, HashFields::Destination, 0, VECTORS[4]),
            ("v6 five-tuple", v6, HashFields::FiveTuple, 0, VECTORS[5]),
        ] {
            let policy = HashPolicy { fields, ..HashPolicy::default() };
            assert_eq!(key.hash(&policy, seed), want, "{name}");
        }
    }

    const VECTORS: [u64; 6] = [
        0x1c87_fcbb_4cfa_a391,
        0x86aa_bccf_f89c_26eb,
        0x8190_2935_a444_5d6f,
        0x5d9a_dfe9_d70a_c262,
        0x175a_db35_d739_4bfc,
        0xaf8f_3b77_46b2_a1f6,
    ];

    #[test]
    fn prefixes_join_neighbours() {
        let policy = HashPolicy { fields: HashFields::Source, ipv4_prefix: 24, ipv6_prefix: 64 };
        let hash = |source| key(source, "198.51.100.1:443").hash(&policy, 0);
        assert_eq!(hash("192.0.2.7:1"), hash("192.0.2.200:2"));
        assert_ne!(hash("192.0.2.7:1"), hash("192.0.3.7:1"));
        let hash6 = |source| key(source, "[2001:db8::1]:443").hash(&policy, 0);
        assert_eq!(hash6("[2001:db8::7]:1"), hash6("[2001:db8::ffff:7]:1"));
        assert_ne!(hash6("[2001:db8::7]:1"), hash6("[2001:db8:0:1::7]:1"));
    }

    #[test]
    fn a_prefix_of_zero_joins_everyone() {
        let policy = HashPolicy { fields: HashFields::Source, ipv4_prefix: 0, ipv6_prefix: 0 };
        let hash = |source| key(source, "198.51.100.1:443").hash(&policy, 0);
        assert_eq!(hash("192.0.2.7:1"), hash("10.0.2.200:2"));
    }
}
