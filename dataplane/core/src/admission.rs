//! Who takes flows: a few bits beside the table, changed without touching it.

use alloc::boxed::Box;
use alloc::vec::Vec;

/// How a backend stands with health checking and the operator.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Default)]
pub struct Standing {
    /// Failed its checks: takes nothing.
    pub failed: bool,
    /// Ejected by failed connects: takes a flow only when nobody else can.
    pub ejected: bool,
    /// Drains: takes no new flows and keeps the old.
    pub draining: bool,
}

impl Standing {
    /// Takes new flows.
    pub const GOOD: Self = Self { failed: false, ejected: false, draining: false };

    /// Whether a new flow may come here.
    #[must_use]
    pub fn admits(self) -> bool {
        !self.failed && !self.ejected && !self.draining
    }

    /// Whether a new flow may come here when nobody admits it: ejection is a guess from traffic.
    #[must_use]
    pub fn is_last_resort(self) -> bool {
        self.ejected && !self.failed && !self.draining
    }
}

/// The standing of a pool's members.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Admission {
    /// Every member is in good standing: no memory, no look-up.
    All {
        /// Number of members.
        members: u16,
        /// Sum of their weights.
        weight: u32,
    },
    /// Some are not.
    Some {
        /// By member.
        standing: Box<[Standing]>,
        /// Members that admit new flows, in order.
        admitted: Box<[u16]>,
        /// Sum of the weights of the admitted.
        weight: u32,
    },
}

impl Admission {
    /// The admission of members with these weights and standings, in table order.
    #[must_use]
    pub fn new(members: impl ExactSizeIterator<Item = (u16, Standing)>) -> Self {
        let count = members.len();
        let mut weight = 0;
        let mut standing = Vec::new();
        let mut admitted = Vec::new();
        for (n, (share, state)) in members.enumerate() {
            if !state.admits() && standing.is_empty() {
                standing.reserve_exact(count);
                standing.resize(n, Standing::GOOD);
                admitted.extend(0..n as u16);
            }
            let partial = !standing.is_empty() || !state.admits();
            if partial {
                standing.push(state);
            }
            if state.admits() {
                weight += u32::from(share);
                if partial {
                    admitted.push(n as u16);
                }
            }
        }
        if standing.is_empty() {
            return Self::All { members: count as u16, weight };
        }
        Self::Some { standing: standing.into(), admitted: admitted.into(), weight }
    }

    /// Whether `member` takes new flows. Constant time.
    #[must_use]
    pub fn admits(&self, member: u16) -> bool {
        self.standing(member).admits()
    }

    /// How `member` stands.
    #[must_use]
    pub fn standing(&self, member: u16) -> Standing {
        match self {
            Self::All { .. } => Standing::GOOD,
            Self::Some { standing, .. } => {
                standing.get(usize::from(member)).copied().unwrap_or_default()
            }
        }
    }

    /// Number of members that take new flows.
    #[must_use]
    pub fn admitted(&self) -> usize {
        match self {
            Self::All { members, .. } => usize::from(*members),
            Self::Some { admitted, .. } => admitted.len(),
        }
    }

    /// The admitted member at `position`, counted round and round; `None` when there is none.
    #[must_use]
    pub fn nth(&self, position: u64) -> Option<u16> {
        let count = self.admitted() as u64;
        if count == 0 {
            return None;
        }
        let place = (position % count) as usize;
        Some(match self {
            Self::All { .. } => place as u16,
            Self::Some { admitted, .. } => admitted[place],
        })
    }

    /// Sum of the weights of the admitted members.
    #[must_use]
    pub fn weight(&self) -> u32 {
        match self {
            Self::All { weight, .. } | Self::Some { weight, .. } => *weight,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const BAD: Standing = Standing { failed: true, ..Standing::GOOD };
    const DRAINING: Standing = Standing { draining: true, ..Standing::GOOD };

    #[test]
    fn admitted_are_counted_and_listed() {
        for (name, states, want) in [
            ("nobody", &[][..], &[][..]),
            ("all", &[Standing::GOOD, Standing::GOOD], &[0, 1]),
            ("first failed", &[BAD, Standing::GOOD, Standing::GOOD], &[1, 2]),
            ("last drains", &[Standing::GOOD, Standing::GOOD, DRAINING], &[0, 1]),
            ("middle", &[Standing::GOOD, BAD, Standing::GOOD], &[0, 2]),
            ("none left", &[BAD, DRAINING], &[]),
        ] {
            let admission = Admission::new(states.iter().map(|s| (3, *s)));
            let listed: Vec<_> =
                (0..admission.admitted() as u64).filter_map(|n| admission.nth(n)).collect();
            assert_eq!(listed, want, "{name}");
            assert_eq!(admission.weight() as usize, 3 * want.len(), "{name}");
            for (n, state) in states.iter().enumerate() {
                assert_eq!(admission.standing(n as u16), *state, "{name}");
            }
        }
    }
}
