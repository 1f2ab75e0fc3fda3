//! The heaviest clients in bounded memory: counts that are at most a known error too high.
//!
//! Source: Metwally, Agrawal and El Abbadi, "Efficient Computation of Frequent and Top-k Elements in
//! Data Streams", ICDT 2005 (Space-Saving). A client above the k-th part of everything is listed,
//! whatever the order in which clients came.

use alloc::vec::Vec;
use core::net::{IpAddr, Ipv6Addr};

/// Clients that a list remembers.
pub const REMEMBERED: usize = 64;

/// A client's network, by which clients are counted: /32 for IPv4, /64 for IPv6, which a single
/// client has as a whole.
#[must_use]
pub fn network_of(client: IpAddr) -> IpAddr {
    match client.to_canonical() {
        IpAddr::V4(ip) => IpAddr::V4(ip),
        IpAddr::V6(ip) => IpAddr::V6(Ipv6Addr::from(u128::from(ip) >> 64 << 64)),
    }
}

/// A client and what was counted of it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Talker {
    /// Its network.
    pub client: IpAddr,
    /// The count; at most `error` too high.
    pub count: u64,
    /// What the client may have inherited from the one whose place it took.
    pub error: u64,
}

/// The heaviest clients by some count.
#[derive(Debug, Clone, Default)]
pub struct Talkers(Vec<Talker>);

impl Talkers {
    /// Adds `count` to `client`. Looks at every remembered client: for once a connection.
    pub fn add(&mut self, client: IpAddr, count: u64) {
        if let Some(known) = self.0.iter_mut().find(|talker| talker.client == client) {
            known.count += count;
            return;
        }
        if self.0.len() < REMEMBERED {
            self.0.push(Talker { client, count, error: 0 });
            return;
        }
        if let Some(least) = self.0.iter_mut().min_by_key(|talker| talker.count) {
            let error = least.count;
            *least = Talker { client, count: error + count, error };
        }
    }

    /// Those remembered, in no order.
    #[must_use]
    pub fn list(&self) -> &[Talker] {
        &self.0
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use alloc::collections::BTreeMap;
    use core::net::Ipv4Addr;
    use proptest::prelude::*;

    fn client(n: u32) -> IpAddr {
        IpAddr::V4(Ipv4Addr::from(n))
    }

    #[test]
    fn a_heavy_client_is_found_among_many_light_ones() {
        let mut talkers = Talkers::default();
        for n in 0..10_000 {
            talkers.add(client(n % 5000 + 1000), 1);
            if n % 20 == 0 {
                talkers.add(client(7), 1);
            }
        }
        let heavy = talkers.list().iter().find(|talker| talker.client == client(7)).unwrap();
        assert!(heavy.count >= 500 && heavy.count - heavy.error <= 500, "{heavy:?}");
        assert_eq!(talkers.list().len(), REMEMBERED);
    }

    #[test]
    fn an_ipv6_client_is_its_network() {
        let network = |text: &str| network_of(text.parse().unwrap()).to_string();
        assert_eq!(network("2001:db8:1:2:3:4:5:6"), "2001:db8:1:2::");
        assert_eq!(network("::ffff:192.0.2.7"), "192.0.2.7");
    }

    proptest! {
        #[test]
        fn counts_are_too_high_by_the_error_at_most(
            stream in proptest::collection::vec((0u32..200, 1u64..100), 0..2000),
        ) {
            let (mut talkers, mut exact) = (Talkers::default(), BTreeMap::new());
            for (n, count) in &stream {
                talkers.add(client(*n), *count);
                *exact.entry(client(*n)).or_insert(0) += count;
            }
            let total: u64 = exact.values().sum();
            for talker in talkers.list() {
                let real = exact[&talker.client];
                prop_assert!(talker.count >= real && talker.count - talker.error <= real);
            }
            for (client, count) in exact {
                if count > total / REMEMBERED as u64 {
                    prop_assert!(talkers.list().iter().any(|talker| talker.client == client));
                }
            }
        }
    }
}
