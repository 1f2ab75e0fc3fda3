//! Addresses and numbers by role: a type for what clients dial, another for what we dial.

use core::fmt;
use core::net::{IpAddr, SocketAddr};
use core::num::{NonZeroU16, NonZeroU32};

/// Address that clients dial; never an address that we dial.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct VipAddr(pub SocketAddr);

impl fmt::Display for VipAddr {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

/// Transport protocol of a service.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Protocol {
    /// TCP, IP protocol 6.
    Tcp,
    /// UDP, IP protocol 17.
    Udp,
    /// SCTP, IP protocol 132; in packet modes.
    Sctp,
}

impl Protocol {
    /// The number in the IP header.
    #[must_use]
    pub fn number(self) -> u8 {
        match self {
            Self::Tcp => 6,
            Self::Udp => 17,
            Self::Sctp => 132,
        }
    }
}

impl fmt::Display for Protocol {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Tcp => "TCP",
            Self::Udp => "UDP",
            Self::Sctp => "SCTP",
        })
    }
}

/// Address that we dial; never one that clients dial.
///
/// Ordered by family, address bytes, port: the order in which tables are built on every box.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct BackendAddr {
    ip: IpAddr,
    port: Option<NonZeroU16>,
}

impl BackendAddr {
    /// A backend at `ip`; no `port` means the port that the client dialled.
    #[must_use]
    pub fn new(ip: IpAddr, port: Option<NonZeroU16>) -> Self {
        Self { ip, port }
    }

    /// The address without its port.
    #[must_use]
    pub fn ip(&self) -> IpAddr {
        self.ip
    }

    /// The fixed port, if it has one.
    #[must_use]
    pub fn port(&self) -> Option<NonZeroU16> {
        self.port
    }

    /// Where to connect for a client that dialled `dialled_port`.
    #[must_use]
    pub fn target(&self, dialled_port: u16) -> SocketAddr {
        SocketAddr::new(self.ip, self.port.map_or(dialled_port, NonZeroU16::get))
    }

    /// A hash of the address, the same on every box: xxh64 of its text with seed 2 (seeds 0 and 1
    /// give the permutations of the tables).
    #[must_use]
    pub(crate) fn key(&self) -> u64 {
        xxhash_rust::xxh64::xxh64(alloc::format!("{self}").as_bytes(), 2)
    }
}

/// RFC 5952 text, `ip:port`; port 0 stands for "the port that the client dialled".
/// This text is the backend's key in Maglev permutations.
impl fmt::Display for BackendAddr {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.target(0).fmt(f)
    }
}

/// Share of new flows within a pool, 1 to 1000. Zero is no weight: that is a drain.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Weight(NonZeroU16);

/// A weight outside its range.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("weight {0} is out of range: 1 to {max}", max = Weight::MAX)]
pub struct WeightError(pub u32);

impl Weight {
    /// The weight of a backend that names none.
    pub const ONE: Self = Self(NonZeroU16::MIN);
    /// The largest weight. It bounds the work of a table build, which goes with the heaviest.
    pub const MAX: u16 = 1000;

    /// Takes a weight from 1 to [`Weight::MAX`].
    pub fn new(weight: u32) -> Result<Self, WeightError> {
        u16::try_from(weight)
            .ok()
            .filter(|w| *w <= Self::MAX)
            .and_then(NonZeroU16::new)
            .map(Self)
            .ok_or(WeightError(weight))
    }

    /// The number itself.
    #[must_use]
    pub fn get(self) -> u16 {
        self.0.get()
    }
}

/// Consecutive ports, both ends included.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct PortRange {
    first: NonZeroU16,
    last: NonZeroU16,
}

/// A range whose end lies before its start.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("port range {0}-{1} ends before it starts")]
pub struct PortRangeError(pub u16, pub u16);

impl PortRange {
    /// The range `first` to `last`.
    pub fn new(first: NonZeroU16, last: NonZeroU16) -> Result<Self, PortRangeError> {
        if last < first {
            return Err(PortRangeError(first.get(), last.get()));
        }
        Ok(Self { first, last })
    }

    /// A range of one port.
    #[must_use]
    pub fn single(port: NonZeroU16) -> Self {
        Self { first: port, last: port }
    }

    /// The lowest port.
    #[must_use]
    pub fn first(&self) -> u16 {
        self.first.get()
    }

    /// The highest port.
    #[must_use]
    pub fn last(&self) -> u16 {
        self.last.get()
    }

    /// Number of ports, 1 to 65535.
    #[must_use]
    #[expect(clippy::len_without_is_empty, reason = "a range is never empty")]
    pub fn len(&self) -> u32 {
        u32::from(self.last()) - u32::from(self.first()) + 1
    }

    /// Whether `port` lies in the range.
    #[must_use]
    pub fn contains(&self, port: u16) -> bool {
        (self.first()..=self.last()).contains(&port)
    }

    /// Whether the two share a port.
    #[must_use]
    pub fn overlaps(&self, other: &Self) -> bool {
        self.first <= other.last && other.first <= self.last
    }

    /// Every port, lowest first.
    pub fn iter(&self) -> impl Iterator<Item = u16> + use<> {
        self.first()..=self.last()
    }
}

impl fmt::Display for PortRange {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if self.first == self.last {
            write!(f, "{}", self.first)
        } else {
            write!(f, "{}-{}", self.first, self.last)
        }
    }
}

/// A backend of a service for as long as its address stands in it.
///
/// The slot indexes workers' arrays; the epoch tells apart two backends that held the same slot
/// one after the other.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct BackendId {
    /// Dense index, used again only after no worker counts a flow on it.
    pub slot: u32,
    /// How often the slot was given out, from 1.
    pub epoch: NonZeroU32,
}

/// A service (one port of one document entry) for as long as its name and port stand.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct ServiceId(pub u32);

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn backends_are_ordered_by_family_address_port() {
        let parse = |text: &str| {
            let at: SocketAddr = text.parse().unwrap();
            BackendAddr::new(at.ip(), NonZeroU16::new(at.port()))
        };
        let mut addrs: alloc::vec::Vec<_> =
            ["[::1]:1", "10.0.0.10:80", "10.0.0.9:81", "10.0.0.9:80", "9.0.0.1:1"]
                .map(parse)
                .into();
        addrs.sort();
        let text: alloc::vec::Vec<_> =
            addrs.iter().map(alloc::string::ToString::to_string).collect();
        assert_eq!(text, ["9.0.0.1:1", "10.0.0.9:80", "10.0.0.9:81", "10.0.0.10:80", "[::1]:1"]);
    }

    #[test]
    fn weights_keep_their_range() {
        for (given, fits) in [(0, false), (1, true), (1000, true), (1001, false), (65_537, false)] {
            assert_eq!(Weight::new(given).is_ok(), fits, "{given}");
        }
    }
}
