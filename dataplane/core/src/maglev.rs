//! Maglev lookup tables: the same backends give the same table on every machine.
//! Pure: no I/O, no clock, no randomness.
//!
//! Source: Eisenbud et al., "Maglev", NSDI 2016, section 3.4. Permutations are
//! `offset = xxh64(key, 0) mod M` and `skip = xxh64(key, 1) mod (M - 1) + 1`; weights give turns
//! as Envoy's Maglev policy gives them: the heaviest backend has every turn, another one its
//! share of turns. Envoy's published tables are this module's vectors.

use alloc::boxed::Box;
use alloc::vec;
use alloc::vec::Vec;
use core::fmt::{self, Write};

use xxhash_rust::xxh64::xxh64;

use crate::Weight;

/// The rungs of automatic table sizes, all prime, each about four times the one before, and one for more. Few, because
/// crossing a rung moves every flow; not fewer, because a table's time and memory go by its size.
pub const TABLE_SIZES: [u32; 6] = [251, 1021, 4093, 16_381, 65_537, 655_373];

/// Marks a slot that no backend has taken yet; also bounds a pool to 65,535 backends.
const FREE: u16 = u16::MAX;

/// Number of slots of a table: a prime.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct TableSize(u32);

/// A table size that cannot serve.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum TableSizeError {
    /// Permutations only cover a table of prime size.
    #[error("table size {given} is not prime; the next prime is {next}")]
    NotPrime {
        /// The refused size.
        given: u32,
        /// The smallest prime above it.
        next: u32,
    },
    /// Too small to spread anything, or too large to build quickly.
    #[error("table size {0} is out of range: {min} to {max}", min = TableSize::MIN, max = TableSize::MAX)]
    OutOfRange(u32),
}

impl TableSize {
    /// The smallest size.
    pub const MIN: u32 = 2;
    /// The largest size: the first prime above five million, as in other systems.
    pub const MAX: u32 = 5_000_011;

    /// Takes a prime between [`TableSize::MIN`] and [`TableSize::MAX`].
    pub fn new(size: u32) -> Result<Self, TableSizeError> {
        if !(Self::MIN..=Self::MAX).contains(&size) {
            return Err(TableSizeError::OutOfRange(size));
        }
        if !is_prime(size) {
            let next = (size..).find(|n| is_prime(*n)).unwrap_or(Self::MAX);
            return Err(TableSizeError::NotPrime { given: size, next });
        }
        Ok(Self(size))
    }

    /// The first rung of [`TABLE_SIZES`] with at least 100 slots a backend, else the last rung.
    #[must_use]
    pub fn for_backends(count: usize) -> Self {
        let wanted = count.saturating_mul(100);
        let rung = TABLE_SIZES.iter().find(|size| **size as usize >= wanted);
        Self(*rung.unwrap_or(&TABLE_SIZES[TABLE_SIZES.len() - 1]))
    }

    /// The number of slots.
    #[must_use]
    pub fn get(self) -> u32 {
        self.0
    }
}

fn is_prime(n: u32) -> bool {
    n >= 2 && (2..).take_while(|d| d * d <= n).all(|d| !n.is_multiple_of(d))
}

/// Owners of hash slots. Backends are numbered by their place in the list they were built from.
pub struct MaglevTable {
    owners: Box<[u16]>,
}

impl MaglevTable {
    /// Builds the table of `backends`, each with the text that seeds its permutation.
    ///
    /// An empty list gives a table without owners. At most 65,535 backends take part. Time is about `size ln size`
    /// steps, `size` mispredicted branches, and a lost turn for each light backend: 1 to 3 ms for 1000 backends in
    /// 65,537 slots.
    #[must_use]
    pub fn build<K: fmt::Display>(backends: &[(K, Weight)], size: TableSize) -> Self {
        let m = size.get();
        let mut key = Text(Vec::with_capacity(48));
        let permutations: Vec<Permutation> = backends
            .iter()
            .take(usize::from(FREE))
            .map(|(backend, weight)| {
                key.0.clear();
                // Writing into a Vec cannot fail.
                let _ = write!(key, "{backend}");
                Permutation::of(&key.0, *weight, m)
            })
            .collect();
        Self { owners: fill(permutations, m) }
    }

    /// The owner of `slot`, or `None` when the table was built from no backends.
    ///
    /// `slot` is taken modulo the size. One cache line.
    #[must_use]
    pub fn owner(&self, slot: u64) -> Option<u16> {
        let index = usize::try_from(slot).ok()? % self.owners.len();
        self.owners.get(index).copied().filter(|owner| *owner != FREE)
    }

    /// Number of slots.
    #[must_use]
    pub fn size(&self) -> u32 {
        // Built from a TableSize, which is a u32.
        self.owners.len() as u32
    }

    /// Owners by slot.
    #[must_use]
    pub fn owners(&self) -> &[u16] {
        &self.owners
    }
}

struct Text(Vec<u8>);

impl Write for Text {
    fn write_str(&mut self, text: &str) -> fmt::Result {
        self.0.extend_from_slice(text.as_bytes());
        Ok(())
    }
}

struct Permutation {
    next: u32,
    skip: u32,
    weight: u64,
    /// Turn number times weight at which the next turn is due.
    due: u64,
}

impl Permutation {
    fn of(key: &[u8], weight: Weight, m: u32) -> Self {
        let size = u64::from(m);
        Self {
            next: (xxh64(key, 0) % size) as u32,
            skip: (xxh64(key, 1) % (size - 1)) as u32 + 1,
            weight: u64::from(weight.get()),
            due: 0,
        }
    }

    /// The next slot of the permutation. Both numbers stay below `m`.
    fn advance(&mut self, m: u32) -> u32 {
        let slot = self.next;
        self.next += self.skip;
        if self.next >= m {
            self.next -= m;
        }
        slot
    }
}

fn fill(mut permutations: Vec<Permutation>, m: u32) -> Box<[u16]> {
    let mut owners = vec![FREE; m as usize];
    let heaviest = permutations.iter().map(|p| p.weight).max().unwrap_or(0);
    let mut left = if permutations.is_empty() { 0 } else { m };
    let mut turn = 0;
    while left > 0 {
        turn += 1;
        for (index, permutation) in permutations.iter_mut().enumerate() {
            if turn * permutation.weight < permutation.due {
                continue;
            }
            permutation.due += heaviest;
            let mut slot = permutation.advance(m) as usize;
            while owners[slot] != FREE {
                slot = permutation.advance(m) as usize;
            }
            owners[slot] = index as u16;
            left -= 1;
            if left == 0 {
                break;
            }
        }
    }
    owners.into_boxed_slice()
}

#[cfg(test)]
mod tests {
    use super::*;
    use alloc::format;
    use alloc::string::String;

    use proptest::prelude::*;

    fn table(keys: &[(&str, u32)], m: u32) -> Vec<u16> {
        let backends: Vec<_> =
            keys.iter().map(|(key, weight)| (*key, Weight::new(*weight).unwrap())).collect();
        MaglevTable::build(&backends, TableSize::new(m).unwrap()).owners.into_vec()
    }

    /// Tables 1 and 2 of the paper: permutations are given there, hashes play no part.
    #[test]
    fn the_papers_example() {
        let permutation = |next, skip| Permutation { next, skip, weight: 1, due: 0 };
        let before = fill(vec![permutation(3, 4), permutation(0, 2), permutation(3, 1)], 7);
        assert_eq!(*before, [1, 0, 1, 0, 2, 2, 0]);
        let after = fill(vec![permutation(3, 4), permutation(3, 1)], 7);
        assert_eq!(*after, [0, 0, 0, 0, 1, 1, 1], "B2 is number 1 once B1 is gone");
    }

    /// Tables of envoyproxy/envoy `maglev_lb_test.cc` (Apache-2.0).
    #[test]
    fn envoys_tables() {
        let ports = ["90", "91", "92", "93", "94", "95"];
        let addrs = ports.map(|port| format!("127.0.0.1:{port}"));
        let equal = |keys: &[String]| keys.iter().map(|k| (k.clone(), 1)).collect::<Vec<_>>();
        let pair = |a, b| vec![(addrs[0].clone(), a), (addrs[1].clone(), b)];
        for (name, keys, want) in [
            ("Basic", equal(&addrs), vec![2, 4, 0, 1, 5, 0, 3]),
            ("BasicWithHostName", equal(&ports.map(String::from)), vec![2, 5, 0, 3, 4, 1, 0]),
            ("Weighted", pair(1, 2), vec![1, 0, 0, 1, 0, 1, 1, 0, 1, 1, 1, 1, 1, 0, 1, 0, 1]),
            (
                "LocalityWeightedSameLocalityWeights",
                pair(1, 1),
                vec![1, 0, 0, 1, 0, 1, 1, 0, 0, 1, 0, 1, 0, 0, 1, 0, 1],
            ),
            (
                "LocalityWeightedDifferentLocalityWeights",
                pair(8, 2),
                vec![1, 0, 0, 0, 0, 0, 1, 0, 0, 1, 0, 1, 0, 0, 0, 0, 0],
            ),
        ] {
            let keys: Vec<_> = keys.iter().map(|(k, w)| (k.as_str(), *w)).collect();
            assert_eq!(table(&keys, want.len() as u32), want, "{name}");
        }
    }

    #[test]
    fn an_empty_pool_is_a_state() {
        let none: [(&str, Weight); 0] = [];
        let table = MaglevTable::build(&none, TableSize::for_backends(0));
        assert_eq!(table.owner(12), None);
    }

    #[test]
    fn sizes_are_rungs() {
        for (backends, want) in [
            (0, 251),
            (2, 251),
            (3, 1021),
            (10, 1021),
            (11, 4093),
            (40, 4093),
            (41, 16_381),
            (163, 16_381),
            (164, 65_537),
            (655, 65_537),
            (656, 655_373),
            (60_000, 655_373),
        ] {
            assert_eq!(TableSize::for_backends(backends).get(), want, "{backends} backends");
        }
    }

    #[test]
    fn sizes_are_prime_and_in_range() {
        assert_eq!(
            TableSize::new(65_536),
            Err(TableSizeError::NotPrime { given: 65_536, next: 65_537 })
        );
        assert_eq!(TableSize::new(1), Err(TableSizeError::OutOfRange(1)));
        assert!(TableSize::new(TableSize::MAX).is_ok());
    }

    fn thousand(seed: u32, without: Option<usize>) -> Vec<(String, Weight)> {
        (0..1000u32)
            .filter(|n| Some(*n as usize) != without)
            .map(|n| (format!("10.{}.{}.{}:8080", seed % 200, n / 250, n % 250), Weight::ONE))
            .collect()
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(12))]

        /// The paper's balance: with M above 65 N, no share is over 1 % above the fair one...
        #[test]
        fn a_thousand_backends_share_fairly(seed in 0u32..200) {
            let size = TableSize::new(65_537).unwrap();
            let table = MaglevTable::build(&thousand(seed, None), size);
            let mut shares = [0u32; 1000];
            for owner in table.owners() {
                shares[usize::from(*owner)] += 1;
            }
            let largest = f64::from(*shares.iter().max().unwrap());
            let fair = 65_537.0 / 1000.0;
            // Turns are whole: the bound is the fair share rounded up.
            prop_assert!(largest <= fair * 1.01, "largest share {largest} of {fair}");
        }

        /// ...and removing one moves at most 0.7 % of the slots of the others.
        #[test]
        fn removing_one_moves_few_others(seed in 0u32..200, gone in 0usize..1000) {
            let size = TableSize::new(65_537).unwrap();
            let before = MaglevTable::build(&thousand(seed, None), size);
            let after = MaglevTable::build(&thousand(seed, Some(gone)), size);
            let renumbered = |owner: u16| if usize::from(owner) > gone { owner - 1 } else { owner };
            let moved = before.owners().iter().zip(after.owners())
                .filter(|(b, a)| usize::from(**b) != gone && renumbered(**b) != **a)
                .count();
            let share = moved as f64 / 65_537.0;
            prop_assert!(share <= 0.007, "{share} of the slots moved");
        }

        /// Weights divide the slots in proportion, to within a turn a backend.
        #[test]
        fn weights_divide_slots(weights in proptest::collection::vec(1u32..=20, 1..12)) {
            let backends: Vec<_> = weights.iter().enumerate()
                .map(|(n, w)| (format!("10.0.0.{n}:80"), Weight::new(*w).unwrap())).collect();
            let table = MaglevTable::build(&backends, TableSize::new(4093).unwrap());
            let total: u32 = weights.iter().sum();
            for (n, weight) in weights.iter().enumerate() {
                let share = table.owners().iter().filter(|o| usize::from(**o) == n).count() as f64;
                let fair = 4093.0 * f64::from(*weight) / f64::from(total);
                prop_assert!((share - fair).abs() <= fair * 0.02 + 22.0, "{share} for {fair}");
            }
        }
    }
}
