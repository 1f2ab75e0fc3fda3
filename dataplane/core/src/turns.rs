//! Turns of weighted round robin, smooth: a heavy backend's turns are spread over the round.
//!
//! The order is that of nginx's smooth weighted round robin: each step adds every backend's
//! weight to its credit, the largest credit takes the turn and pays the sum of all weights.

use alloc::boxed::Box;
use alloc::vec;
use alloc::vec::Vec;

use crate::Weight;

/// Longest round that is laid out; heavier sums are scaled down to it.
const LONGEST_ROUND: u64 = 16_384;

/// One round of turns: backend numbers in the order in which they serve.
pub struct Turns(Box<[u16]>);

impl Turns {
    /// Lays out one round. Every backend has at least one turn.
    ///
    /// Cost: turns × backends, off the workers. Above 16,384 turns a round, weights are divided
    /// by a common number and rounded, so that shares are true to within a turn.
    #[must_use]
    pub fn build(weights: &[Weight]) -> Self {
        let weights = reduced(weights);
        if weights.iter().all(|w| *w == 1) {
            return Self((0..weights.len()).map(|n| n as u16).collect());
        }
        let sum: i64 = weights.iter().sum();
        let mut credit = vec![0i64; weights.len()];
        let turns = (0..sum).map(|_| {
            let mut best = 0;
            for (n, weight) in weights.iter().enumerate() {
                credit[n] += weight;
                if credit[n] > credit[best] {
                    best = n;
                }
            }
            credit[best] -= sum;
            best as u16
        });
        Self(turns.collect())
    }

    /// Who serves at `turn`, counted on from round to round; `None` when there are no backends.
    #[must_use]
    pub fn at(&self, turn: u64) -> Option<u16> {
        let len = self.0.len() as u64;
        (len > 0).then(|| self.0[(turn % len) as usize])
    }

    /// Number of turns in a round.
    #[must_use]
    pub fn len(&self) -> usize {
        self.0.len()
    }

    /// Whether there is nobody to serve.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }
}

fn reduced(weights: &[Weight]) -> Vec<i64> {
    let gcd = weights.iter().fold(0, |a, w| gcd(a, u64::from(w.get()))).max(1);
    let sum: u64 = weights.iter().map(|w| u64::from(w.get()) / gcd).sum();
    let scale = |w: u64| {
        if sum > LONGEST_ROUND { (w * LONGEST_ROUND / sum).max(1) } else { w }
    };
    weights.iter().map(|w| scale(u64::from(w.get()) / gcd) as i64).collect()
}

fn gcd(a: u64, b: u64) -> u64 {
    if b == 0 { a } else { gcd(b, a % b) }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn round(weights: &[u32]) -> Vec<u16> {
        let weights: Vec<_> = weights.iter().map(|w| Weight::new(*w).unwrap()).collect();
        Turns::build(&weights).0.into_vec()
    }

    #[test]
    fn turns_are_smooth() {
        for (name, weights, want) in [
            ("nobody", &[][..], &[][..]),
            ("equal", &[7, 7, 7], &[0, 1, 2]),
            ("nginx's example 5 1 1", &[5, 1, 1], &[0, 0, 1, 0, 2, 0, 0]),
            ("common factor", &[10, 20], &[1, 0, 1]),
        ] {
            assert_eq!(round(weights), want, "{name}");
        }
    }

    #[test]
    fn long_rounds_are_scaled() {
        let weights: Vec<u32> = (0..100).map(|n| 901 + n).collect();
        let turns = round(&weights);
        assert!(turns.len() as u64 <= LONGEST_ROUND);
        assert!((0..100).all(|n| turns.contains(&n)));
    }
}
