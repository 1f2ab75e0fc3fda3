//! The hash by which cards divide packets among their queues: Toeplitz's, of receive-side scaling
//! (Microsoft, "RSS hashing functions"), with a key and a table of queues that we give them.
//!
//! It is linear, so local ports can be chosen whose replies come to the queue that we want.

use alloc::boxed::Box;
use alloc::vec;

use super::flow::Tuple;
use super::parse::{Addresses, protocol};
use crate::hash::mixed;

/// Bytes of a key: enough for both addresses and ports of IPv6.
pub const KEY: usize = 40;
/// Bytes that are hashed at most.
const MOST: usize = 36;
/// Entries of a card's table of queues that are told apart, a power of two; the smallest table.
const ENTRIES: u16 = 64;

/// How cards divide packets of TCP and UDP among queues, one for each worker.
pub struct Toeplitz {
    /// What each byte adds, by its place.
    parts: Box<[[u32; 256]]>,
    queues: u16,
}

impl core::fmt::Debug for Toeplitz {
    fn fmt(&self, f: &mut core::fmt::Formatter<'_>) -> core::fmt::Result {
        f.debug_struct("Toeplitz").field("queues", &self.queues).finish_non_exhaustive()
    }
}

impl Toeplitz {
    /// By that key, among so many queues. Costs 36 KiB.
    #[must_use]
    pub fn new(key: &[u8; KEY], queues: u16) -> Self {
        let bits = |from: usize| {
            let byte = |n: usize| u64::from(key.get(n).copied().unwrap_or(0));
            let word = (0..5).fold(0, |word, n| word << 8 | byte(from / 8 + n));
            (word >> (8 - from % 8)) as u32
        };
        let mut parts = vec![[0; 256]; MOST].into_boxed_slice();
        for (place, part) in parts.iter_mut().enumerate() {
            for (byte, sum) in part.iter_mut().enumerate() {
                let set = (0..8).filter(|bit| byte & (0x80 >> bit) != 0);
                *sum = set.fold(0, |sum, bit| sum ^ bits(place * 8 + bit));
            }
        }
        Self { parts, queues: queues.max(1) }
    }

    /// A key that a seed gives: the same after a restart, so that flows find their ports again.
    #[must_use]
    pub fn key(seed: u64) -> [u8; KEY] {
        let mut key = [0; KEY];
        for (n, part) in (0..).zip(key.chunks_exact_mut(8)) {
            part.copy_from_slice(&mixed(mixed(seed).wrapping_add(n)).to_be_bytes());
        }
        key
    }

    /// The queue in entry `n` of a card's table.
    #[must_use]
    pub fn entry(n: u16, queues: u16) -> u16 {
        n % ENTRIES % queues.max(1)
    }

    /// The queue of packets with that tuple; none when cards do not look at its ports.
    #[must_use]
    pub fn queue(&self, tuple: &Tuple) -> Option<u16> {
        Some(self.queue_of(self.hash_of(tuple)?))
    }

    fn queue_of(&self, hash: u32) -> u16 {
        Self::entry((hash % u32::from(ENTRIES)) as u16, self.queues)
    }

    fn hash_of(&self, tuple: &Tuple) -> Option<u32> {
        if !matches!(tuple.protocol, protocol::TCP | protocol::UDP) {
            return None;
        }
        let ports = [tuple.ports.0.to_be_bytes(), tuple.ports.1.to_be_bytes()];
        let ports = ports.as_flattened();
        Some(match tuple.addresses {
            Addresses::V4(from, to) => self.hash(&[&from.octets(), &to.octets(), ports]),
            Addresses::V6(from, to) => self.hash(&[&from.octets(), &to.octets(), ports]),
        })
    }

    /// The queues of packets with that tuple to one port or another; none as for [`Self::queue`].
    pub(super) fn to_ports(&self, tuple: &Tuple) -> Option<ToPorts<'_>> {
        let tuple = Tuple { ports: (tuple.ports.0, 0), ..*tuple };
        let rest = self.hash_of(&tuple)?;
        // The port comes last.
        let end = match tuple.addresses {
            Addresses::V4(..) => 12,
            Addresses::V6(..) => MOST,
        };
        Some(ToPorts { toeplitz: self, rest, end })
    }

    fn hash(&self, parts: &[&[u8]]) -> u32 {
        let bytes = parts.iter().copied().flatten();
        self.parts.iter().zip(bytes).fold(0, |hash, (part, byte)| hash ^ part[usize::from(*byte)])
    }
}

/// Queues by destination port: the hash is linear, so each costs two look-ups.
pub(super) struct ToPorts<'t> {
    toeplitz: &'t Toeplitz,
    /// The hash with port 0.
    rest: u32,
    /// Bytes that are hashed.
    end: usize,
}

impl ToPorts<'_> {
    /// The queue of packets to a port.
    pub(super) fn queue(&self, port: u16) -> u16 {
        let [high, low] = port.to_be_bytes().map(usize::from);
        let parts = &self.toeplitz.parts;
        self.toeplitz.queue_of(self.rest ^ parts[self.end - 2][high] ^ parts[self.end - 1][low])
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The key and values of Microsoft's verification suite for RSS.
    const PUBLISHED: [u8; KEY] = [
        0x6d, 0x5a, 0x56, 0xda, 0x25, 0x5b, 0x0e, 0xc2, 0x41, 0x67, 0x25, 0x3d, 0x43, 0xa3, 0x8f,
        0xb0, 0xd0, 0xca, 0x2b, 0xcb, 0xae, 0x7b, 0x30, 0xb4, 0x77, 0xcb, 0x2d, 0xa3, 0x80, 0x30,
        0xf2, 0x0c, 0x6a, 0x42, 0xb7, 0x3b, 0xbe, 0xac, 0x01, 0xfa,
    ];

    const VECTORS: [(&str, &str, u32, u32); 8] = [
        ("66.9.149.187:2794", "161.142.100.80:1766", 0x323e8fc2, 0x51ccc178),
        ("199.92.111.2:14230", "65.69.140.83:4739", 0xd718262a, 0xc626b0ea),
        ("24.19.198.95:12898", "12.22.207.184:38024", 0xd2d0a5de, 0x5c2b394a),
        ("38.27.205.30:48228", "209.142.163.6:2217", 0x82989176, 0xafc7327f),
        ("153.39.163.191:44251", "202.188.127.2:1303", 0x5d1809c5, 0x10e828a2),
        ("[3ffe:2501:200:1fff::7]:2794", "[3ffe:2501:200:3::1]:1766", 0x2cc18cd5, 0x40207d3d),
        ("[3ffe:501:8::260:97ff:fe40:efab]:14230", "[ff02::1]:4739", 0x0f0c461c, 0xdde51bbf),
        (
            "[3ffe:1900:4545:3:200:f8ff:fe21:67cf]:44251",
            "[fe80::200:f8ff:fe21:67cf]:38024",
            0x4b61e985,
            0x02d1feef,
        ),
    ];

    #[test]
    fn each_queue_has_its_share_of_ports() {
        for seed in 0..20 {
            let toeplitz = Toeplitz::new(&Toeplitz::key(seed), 4);
            for (backend, own) in
                [("10.78.0.11:80", "10.99.1.1:0"), ("[fd78::11]:80", "[fd99::1]:0")]
            {
                let [backend, own] = [backend, own].map(|at| at.parse().unwrap());
                let to = Tuple::new(backend, own, protocol::TCP).unwrap();
                let to = toeplitz.to_ports(&to).unwrap();
                let mut counts = [0; 4];
                (0..=u16::MAX).for_each(|port| counts[usize::from(to.queue(port))] += 1);
                assert_eq!(counts, [1 << 14; 4], "a quarter, seed {seed}");
            }
        }
    }

    #[test]
    fn hashes_are_the_published_ones() {
        let toeplitz = Toeplitz::new(&PUBLISHED, 4);
        for (source, destination, alone, with_ports) in VECTORS {
            let ends: [std::net::SocketAddr; 2] =
                [source, destination].map(|at| at.parse().unwrap());
            let octets = ends.map(|end| match end.ip() {
                std::net::IpAddr::V4(ip) => ip.octets().to_vec(),
                std::net::IpAddr::V6(ip) => ip.octets().to_vec(),
            });
            let ports = ends.map(|end| end.port().to_be_bytes());
            let ports = ports.as_flattened();
            assert_eq!(toeplitz.hash(&[&octets[0], &octets[1]]), alone, "{source}");
            assert_eq!(toeplitz.hash(&[&octets[0], &octets[1], ports]), with_ports, "{source}");
            let tuple = Tuple::new(ends[0], ends[1], protocol::UDP).unwrap();
            assert_eq!(toeplitz.queue(&tuple), Some((with_ports % 64 % 4) as u16));
            let to = toeplitz.to_ports(&Tuple { ports: (tuple.ports.0, 7), ..tuple }).unwrap();
            assert_eq!(to.queue(tuple.ports.1), (with_ports % 64 % 4) as u16);
            assert_eq!(toeplitz.queue(&Tuple { protocol: protocol::SCTP, ..tuple }), None);
        }
    }
}
