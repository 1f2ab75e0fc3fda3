//! Sets of addresses given as prefixes: allow and deny lists.

use alloc::boxed::Box;
use alloc::vec::Vec;
use core::fmt;
use core::net::IpAddr;
use core::str::FromStr;

use crate::hash::octets;

/// An address prefix such as `192.0.2.0/24` or `2001:db8::/32`; an address alone is itself.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct IpPrefix {
    addr: IpAddr,
    len: u8,
}

/// Why a text is no prefix.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum PrefixError {
    /// The part before the slash.
    #[error("not an IP address or prefix (like 192.0.2.0/24)")]
    NotAnAddress,
    /// The part after the slash.
    #[error("the prefix length must be 0 to {0}")]
    Length(u8),
    /// Bits set behind the prefix: one of the two numbers is a slip.
    #[error("the address has bits behind its prefix length; did you mean {0}?")]
    HostBits(IpPrefix),
}

/// One address.
impl From<IpAddr> for IpPrefix {
    fn from(addr: IpAddr) -> Self {
        Self { addr, len: if addr.is_ipv4() { 32 } else { 128 } }
    }
}

impl IpPrefix {
    /// The prefix of this length that `ip` is in.
    #[must_use]
    pub fn containing(ip: IpAddr, length: u8) -> Self {
        let longest = if ip.is_ipv4() { 32 } else { 128 };
        let whole = Self { addr: ip, len: length.min(longest) };
        let bits = whole.first() & mask(whole.mapped_len());
        let addr = match ip {
            IpAddr::V4(_) => IpAddr::V4((bits as u32).into()),
            IpAddr::V6(_) => IpAddr::V6(bits.into()),
        };
        Self { addr, len: whole.len }
    }

    /// Whether it is one address.
    #[must_use]
    pub fn is_host(&self) -> bool {
        self.mapped_len() == 128
    }

    /// Whether `ip` is in it.
    #[must_use]
    pub fn contains(&self, ip: IpAddr) -> bool {
        ip.is_ipv4() == self.is_ipv4() && Self::containing(ip, self.len) == *self
    }

    /// Whether it is a prefix of IPv4 addresses.
    #[must_use]
    pub fn is_ipv4(&self) -> bool {
        self.addr.is_ipv4()
    }

    /// Its first address.
    #[must_use]
    pub fn address(&self) -> IpAddr {
        self.addr
    }

    /// How many leading bits it fixes.
    #[must_use]
    pub fn length(&self) -> u8 {
        self.len
    }

    fn first(&self) -> u128 {
        u128::from_be_bytes(octets(self.addr))
    }

    fn last(&self) -> u128 {
        self.first() | !mask(self.mapped_len())
    }

    /// Length in the 128-bit space that IPv4 is mapped into.
    fn mapped_len(&self) -> u8 {
        if self.addr.is_ipv4() { 96 + self.len } else { self.len }
    }
}

fn mask(len: u8) -> u128 {
    u128::MAX.checked_shl(128 - u32::from(len)).unwrap_or(0)
}

impl FromStr for IpPrefix {
    type Err = PrefixError;

    fn from_str(text: &str) -> Result<Self, PrefixError> {
        let (addr, len) = text.split_once('/').map_or((text, None), |(a, l)| (a, Some(l)));
        let addr: IpAddr = addr.parse().map_err(|_| PrefixError::NotAnAddress)?;
        let longest = if addr.is_ipv4() { 32 } else { 128 };
        let len = match len {
            None => longest,
            Some(len) => len
                .parse::<u8>()
                .ok()
                .filter(|len| *len <= longest)
                .ok_or(PrefixError::Length(longest))?,
        };
        let prefix = Self { addr, len };
        let base = prefix.first() & mask(prefix.mapped_len());
        if base != prefix.first() {
            let addr = match addr {
                IpAddr::V4(_) => IpAddr::V4((base as u32).into()),
                IpAddr::V6(_) => IpAddr::V6(base.into()),
            };
            return Err(PrefixError::HostBits(Self { addr, len }));
        }
        Ok(prefix)
    }
}

/// As it is written; one address without a length.
impl fmt::Display for IpPrefix {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if self.is_host() {
            return self.addr.fmt(f);
        }
        write!(f, "{}/{}", self.addr, self.len)
    }
}

/// A set of addresses, looked up in logarithmic time of its disjoint ranges.
///
/// The families are apart: `::/0` holds no IPv4 address.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct AddrSet {
    v4: Ranges,
    v6: Ranges,
}

type Ranges = Box<[(u128, u128)]>;

impl AddrSet {
    /// Whether `ip` is in the set. IPv4 in IPv6 (`::ffff:a.b.c.d`) counts as IPv4.
    #[must_use]
    pub fn contains(&self, ip: IpAddr) -> bool {
        let ip = ip.to_canonical();
        let ranges = if ip.is_ipv4() { &self.v4 } else { &self.v6 };
        let ip = u128::from_be_bytes(octets(ip));
        let after = ranges.partition_point(|(first, _)| *first <= ip);
        after > 0 && ranges[after - 1].1 >= ip
    }

    /// Whether the set holds nothing.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.v4.is_empty() && self.v6.is_empty()
    }
}

impl FromIterator<IpPrefix> for AddrSet {
    fn from_iter<I: IntoIterator<Item = IpPrefix>>(prefixes: I) -> Self {
        let (v4, v6) = prefixes.into_iter().partition(|prefix| prefix.addr.is_ipv4());
        Self { v4: merged(v4), v6: merged(v6) }
    }
}

fn merged(prefixes: Vec<IpPrefix>) -> Ranges {
    let mut ranges: Vec<_> = prefixes.iter().map(|p| (p.first(), p.last())).collect();
    ranges.sort_unstable();
    let mut merged: Vec<(u128, u128)> = Vec::with_capacity(ranges.len());
    for (first, last) in ranges {
        match merged.last_mut() {
            Some(previous) if first <= previous.1.saturating_add(1) => {
                previous.1 = previous.1.max(last);
            }
            _ => merged.push((first, last)),
        }
    }
    merged.into_boxed_slice()
}

#[cfg(test)]
mod tests {
    use super::*;
    use alloc::string::{String, ToString};

    use proptest::prelude::*;

    fn prefix(text: &str) -> IpPrefix {
        text.parse().unwrap()
    }

    #[test]
    fn texts() {
        for (text, want) in [
            ("192.0.2.0/24", Ok("192.0.2.0/24")),
            ("192.0.2.7", Ok("192.0.2.7")),
            ("::/0", Ok("::/0")),
            ("0.0.0.0/0", Ok("0.0.0.0/0")),
            ("2001:db8::1", Ok("2001:db8::1")),
            ("2001:db8::1/128", Ok("2001:db8::1")),
            ("192.0.2.7/24", Err(PrefixError::HostBits(prefix("192.0.2.0/24")))),
            ("2001:db8::1/32", Err(PrefixError::HostBits(prefix("2001:db8::/32")))),
            ("192.0.2.0/33", Err(PrefixError::Length(32))),
            ("::/129", Err(PrefixError::Length(128))),
            ("192.0.2/24", Err(PrefixError::NotAnAddress)),
            ("", Err(PrefixError::NotAnAddress)),
        ] {
            let got = text.parse::<IpPrefix>().map(|p| p.to_string());
            assert_eq!(got, want.map(String::from), "{text}");
        }
    }

    #[test]
    fn families_are_apart() {
        let v6: AddrSet = [prefix("::/0")].into_iter().collect();
        assert!(!v6.contains("203.0.113.9".parse().unwrap()));
        let v4: AddrSet = [prefix("0.0.0.0/0")].into_iter().collect();
        assert!(v4.contains("203.0.113.9".parse().unwrap()));
        assert!(!v4.contains("2001:db8::1".parse().unwrap()));
        assert!(v4.contains("::ffff:203.0.113.9".parse().unwrap()), "mapped IPv4 is IPv4");
    }

    proptest! {
        /// The merged ranges answer as the prefixes one by one would.
        #[test]
        fn same_as_a_linear_search(
            prefixes in proptest::collection::vec((0u32..64, 20u8..=32), 0..12),
            probes in proptest::collection::vec(0u32..1 << 20, 40),
        ) {
            let prefixes: Vec<IpPrefix> = prefixes.into_iter().map(|(n, len)| {
                let addr = (n << 14) & (u32::MAX << (32 - u32::from(len)));
                IpPrefix { addr: IpAddr::V4(addr.into()), len }
            }).collect();
            let set: AddrSet = prefixes.iter().copied().collect();
            for probe in probes {
                let ip = IpAddr::V4(probe.into());
                let linear = prefixes.iter().any(|p| {
                    probe & (u32::MAX << (32 - u32::from(p.len))) == p.first() as u32
                });
                prop_assert_eq!(set.contains(ip), linear, "{}", ip);
            }
        }
    }
}
