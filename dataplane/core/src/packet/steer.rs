//! Which worker a packet comes to, so that both directions of a flow come to the same one.
//!
//! A flow is known by its end that both directions have: the client's address and port, or our own
//! towards the backend. That end is the source of packets to a VIP and the destination of all
//! others. Its hash is simple enough for a filter in the kernel, which steers packets by it; local
//! ports are chosen so that replies hash to the worker that chose.
//!
//! Cards divide packets by all of their addresses and ports. Where they do, so do we, and local ports
//! are chosen so that the card brings replies to the worker that chose.

use alloc::sync::Arc;
use core::net::IpAddr;

use super::flow::Tuple;
use super::toeplitz::{ToPorts, Toeplitz};

/// The worker of an engine, among all workers.
#[derive(Debug, Clone)]
pub struct Steering {
    /// Its number.
    pub worker: u16,
    /// How many there are, one at least.
    pub workers: u16,
    /// How cards divide packets, if they do.
    cards: Option<Arc<Toeplitz>>,
}

/// Local ports whose replies come to a worker.
pub(super) enum LocalPorts<'s> {
    ByCards(ToPorts<'s>, u16),
    ByEnd(&'s Steering, IpAddr),
}

impl LocalPorts<'_> {
    /// Whether replies to a port do.
    pub(super) fn come_home(&self, port: u16) -> bool {
        match self {
            Self::ByCards(to, worker) => to.queue(port) == *worker,
            Self::ByEnd(steering, ip) => steering.home(*ip, port) == steering.worker,
        }
    }
}

/// Odd numbers of the finalisers of MurmurHash3, and the golden ratio in 32 bits.
pub const FACTORS: [u32; 3] = [0x9e37_79b1, 0x85eb_ca6b, 0xc2b2_ae35];

impl Steering {
    /// A worker without others.
    pub const ALONE: Self = Self::of(0, 1);

    /// A worker among so many.
    #[must_use]
    pub const fn of(worker: u16, workers: u16) -> Self {
        Self { worker, workers, cards: None }
    }

    /// The same where cards divide packets, among as many queues.
    #[must_use]
    pub fn with_cards(self, cards: Arc<Toeplitz>) -> Self {
        Self { cards: Some(cards), ..self }
    }

    /// The worker that packets with a tuple come to; `to_vip` says whether they are to a VIP.
    pub(super) fn home_of(&self, tuple: &Tuple, to_vip: impl FnOnce() -> bool) -> u16 {
        if self.workers == 1 {
            return 0;
        }
        if let Some(queue) = self.cards.as_ref().and_then(|cards| cards.queue(tuple)) {
            return queue;
        }
        match to_vip() {
            true => self.home(tuple.addresses.source(), tuple.ports.0),
            false => self.home(tuple.addresses.destination(), tuple.ports.1),
        }
    }

    /// The local ports by which packets of a backend come to this worker, where `reply` is the tuple
    /// of one of them to any port.
    pub(super) fn local_ports(&self, reply: &Tuple) -> LocalPorts<'_> {
        let cards = self.cards.as_deref().filter(|_| self.workers > 1);
        match cards.and_then(|cards| cards.to_ports(reply)) {
            Some(to) => LocalPorts::ByCards(to, self.worker),
            None => LocalPorts::ByEnd(self, reply.addresses.destination()),
        }
    }

    /// The worker of flows whose known end is this address and port, where cards divide nothing.
    #[must_use]
    pub fn home(&self, ip: IpAddr, port: u16) -> u16 {
        if self.workers == 1 {
            return 0;
        }
        (hash(ip, port) % u32::from(self.workers)) as u16
    }
}

/// In words of 32 bits throughout: what the kernel's filters count with.
fn hash(ip: IpAddr, port: u16) -> u32 {
    let word = match ip {
        IpAddr::V4(ip) => u32::from(ip),
        IpAddr::V6(ip) => {
            let bits = u128::from(ip);
            (bits >> 96) as u32 ^ (bits >> 64) as u32 ^ (bits >> 32) as u32 ^ bits as u32
        }
    };
    let mut sum = word.wrapping_add(u32::from(port).wrapping_mul(FACTORS[0]));
    sum = (sum ^ (sum >> 15)).wrapping_mul(FACTORS[1]);
    sum = (sum ^ (sum >> 13)).wrapping_mul(FACTORS[2]);
    sum >> 16
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn flows_are_spread_over_workers_by_address_and_by_port() {
        let four = Steering::of(3, 4);
        let spread = |ends: &mut dyn Iterator<Item = (IpAddr, u16)>| {
            let mut counts = [0_u32; 4];
            ends.for_each(|(ip, port)| counts[usize::from(four.home(ip, port))] += 1);
            counts
        };
        let one: IpAddr = [10, 0, 0, 1].into();
        let by_port = spread(&mut (1024..9216).map(|port| (one, port)));
        let v4 = |n: u32| IpAddr::from(core::net::Ipv4Addr::from(0x0a00_0000 | n));
        let by_v4 = spread(&mut (0..8192).map(|n| (v4(n), 4711)));
        let v6 = |n: u128| IpAddr::from(core::net::Ipv6Addr::from(0x2001_0db8 << 96 | n));
        let by_v6 = spread(&mut (0..8192).map(|n| (v6(n), 0)));
        for counts in [by_port, by_v4, by_v6] {
            assert!(counts.iter().all(|count| (1850..2250).contains(count)), "{counts:?}");
        }
        assert_eq!(Steering::ALONE.home(one, 7), 0);
    }
}
