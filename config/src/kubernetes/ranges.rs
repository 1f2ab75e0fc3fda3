//! Ranges of addresses.

use std::fmt;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::str::FromStr;

use fairway_core::IpPrefix;
use serde::de::Deserializer;
use serde::{Deserialize, Serialize, Serializer};

/// Consecutive addresses of one family.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub struct AddressRange {
    first: IpAddr,
    last: IpAddr,
}

impl AddressRange {
    /// From the first to the last, both included; none when they are of two families, or the wrong way
    /// round.
    #[must_use]
    pub fn new(first: IpAddr, last: IpAddr) -> Option<Self> {
        (first.is_ipv4() == last.is_ipv4() && first <= last).then_some(Self { first, last })
    }

    /// The first address.
    #[must_use]
    pub fn first(&self) -> IpAddr {
        self.first
    }

    /// Whether its addresses are of IPv4.
    #[must_use]
    pub fn is_ipv4(&self) -> bool {
        self.first.is_ipv4()
    }

    /// Whether an address is one of them.
    #[must_use]
    pub fn contains(&self, ip: IpAddr) -> bool {
        self.is_ipv4() == ip.is_ipv4() && self.first <= ip && ip <= self.last
    }

    /// Whether an address is in both.
    #[must_use]
    pub fn overlaps(&self, other: &Self) -> bool {
        self.is_ipv4() == other.is_ipv4() && self.first <= other.last && other.first <= self.last
    }

    /// Number of addresses; the largest number when there are more.
    #[must_use]
    pub fn count(&self) -> u128 {
        (number(self.last) - number(self.first)).saturating_add(1)
    }

    /// The address so many behind the first, if it is one of them.
    #[must_use]
    pub fn at(&self, behind: u128) -> Option<IpAddr> {
        let number = number(self.first).checked_add(behind)?;
        (number <= self::number(self.last)).then(|| address(number, self.is_ipv4()))
    }

    /// How far behind the first the next address is that is not in `other`; none when there is none.
    #[must_use]
    pub fn behind(&self, other: &Self) -> Option<u128> {
        (other.last < self.last).then(|| number(other.last) + 1 - number(self.first))
    }

    /// The addresses that are in both, if there are any.
    #[must_use]
    pub fn common(&self, other: &Self) -> Option<Self> {
        let (first, last) = (self.first.max(other.first), self.last.min(other.last));
        self.overlaps(other).then_some(Self { first, last })
    }

    /// Whether it has all of another's addresses.
    #[must_use]
    pub fn covers(&self, other: &Self) -> bool {
        self.contains(other.first) && self.contains(other.last)
    }

    /// Number of its addresses of IPv4 that end in .0 and .255.
    #[must_use]
    pub fn buggy(&self) -> u128 {
        // How many there are up to a number, itself included.
        let up_to = |number: u128| number / 256 + 1 + (number + 1) / 256;
        match (self.is_ipv4(), number(self.first)) {
            (false, _) => 0,
            (true, 0) => up_to(number(self.last)),
            (true, first) => up_to(number(self.last)) - up_to(first - 1),
        }
    }
}

fn number(ip: IpAddr) -> u128 {
    match ip {
        IpAddr::V4(ip) => ip.to_bits().into(),
        IpAddr::V6(ip) => ip.to_bits(),
    }
}

fn address(number: u128, is_ipv4: bool) -> IpAddr {
    match is_ipv4 {
        true => IpAddr::V4(Ipv4Addr::from_bits(number as u32)),
        false => IpAddr::V6(Ipv6Addr::from_bits(number)),
    }
}

impl From<IpPrefix> for AddressRange {
    fn from(prefix: IpPrefix) -> Self {
        let first = prefix.address();
        let free = if prefix.is_ipv4() { 32 } else { 128 } - u32::from(prefix.length());
        let behind = u128::MAX.checked_shr(128 - free).unwrap_or(0);
        Self { first, last: address(number(first) | behind, prefix.is_ipv4()) }
    }
}

/// A prefix, one address, or two with `-` between them.
impl FromStr for AddressRange {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let Some((first, last)) = text.split_once('-') else {
            let prefix: IpPrefix = text.parse().map_err(|error| format!("{error}"))?;
            return Ok(prefix.into());
        };
        let end = |text: &str| {
            let text = text.trim();
            text.parse::<IpAddr>().map_err(|_| format!("`{text}` is no IP address"))
        };
        let (first, last) = (end(first)?, end(last)?);
        Self::new(first, last).ok_or_else(|| match first.is_ipv4() == last.is_ipv4() {
            true => format!("it ends before it starts; did you mean {last}-{first}?"),
            false => "it starts in one family and ends in the other".into(),
        })
    }
}

impl Serialize for AddressRange {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(self)
    }
}

impl<'de> Deserialize<'de> for AddressRange {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        String::deserialize(deserializer)?.parse().map_err(serde::de::Error::custom)
    }
}

impl fmt::Display for AddressRange {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}-{}", self.first, self.last)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ranges_are_read_as_they_are_written() {
        for (text, first, count) in [
            ("192.0.2.0/30", "192.0.2.0", 4),
            ("192.0.2.7", "192.0.2.7", 1),
            ("192.0.2.10-192.0.2.20", "192.0.2.10", 11),
            ("192.0.2.10 - 192.0.2.20", "192.0.2.10", 11),
            ("2001:db8::/126", "2001:db8::", 4),
            ("2001:db8::5-2001:db8::6", "2001:db8::5", 2),
            ("::/0", "::", u128::MAX),
        ] {
            let range: AddressRange = text.parse().unwrap();
            assert_eq!(
                (range.first().to_string().as_str(), range.count()),
                (first, count),
                "{text}"
            );
            assert_eq!(range.at(0), Some(range.first()));
            assert!(range.at(count - 1).is_some(), "{text}");
            assert!(range.at(count).is_none() || count == u128::MAX, "{text}");
        }
        for (text, why) in [
            ("192.0.2.20-192.0.2.10", "did you mean 192.0.2.10-192.0.2.20?"),
            ("192.0.2.1-2001:db8::", "starts in one family"),
            ("192.0.2.1-there", "`there` is no IP address"),
            ("192.0.2.1/24", "did you mean 192.0.2.0/24?"),
            ("somewhere", "not an IP address"),
        ] {
            let error = text.parse::<AddressRange>().unwrap_err();
            assert!(error.contains(why), "{text}: {error}");
        }
    }

    #[test]
    fn parts_are_counted() {
        let range = |text: &str| text.parse::<AddressRange>().unwrap();
        for (text, buggy) in [
            ("192.0.2.0/24", 2),
            ("192.0.2.1-192.0.2.254", 0),
            ("192.0.2.255", 1),
            ("192.0.2.255-192.0.3.0", 2),
            ("0.0.0.0/0", 1 << 25),
            ("2001:db8::/64", 0),
        ] {
            assert_eq!(range(text).buggy(), buggy, "{text}");
        }
        let pool = range("192.0.2.10-192.0.2.19");
        for (other, common, behind) in [
            ("192.0.2.0/28", 6, Some(6)),
            ("192.0.2.12", 1, Some(3)),
            ("192.0.2.16/28", 4, None),
            ("192.0.2.32/28", 0, None),
        ] {
            let other = range(other);
            let both = pool.common(&other).map_or(0, |both| both.count());
            assert_eq!((both, pool.behind(&other)), (common, behind), "{other}");
            assert_eq!(pool.covers(&other), both == other.count(), "{other}");
        }
    }
}
