//! Who takes flows: a few bits beside the table, changed without touching it.

use alloc::boxed::Box;
use alloc::vec::Vec;

use crate::hash::mixed;

/// The part of its flows that a backend takes: less than all in slow start, or when an agent on
/// the backend asks for less.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Share(u32);

impl Share {
    /// Everything that falls to it.
    pub const FULL: Self = Self(1 << 16);

    /// Nothing.
    pub const NONE: Self = Self(0);

    /// The least that is not nothing: flows that nobody else takes.
    pub const LEAST: Self = Self(1);

    /// `part` of 1.0; what lies outside 0 to 1 is cut off. Exact to 1/65536.
    #[must_use]
    pub fn of(part: f64) -> Self {
        Self((part.clamp(0.0, 1.0) * f64::from(Self::FULL.0)) as u32)
    }

    /// The part, 0.0 to 1.0.
    #[must_use]
    pub fn part(self) -> f64 {
        f64::from(self.0) / f64::from(Self::FULL.0)
    }

    /// A share of this share.
    #[must_use]
    pub fn times(self, other: Self) -> Self {
        Self(((u64::from(self.0) * u64::from(other.0)) >> 16) as u32)
    }

    /// Whether `draw`, a number without pattern, falls into this part of all draws.
    pub(crate) fn has(self, draw: u64) -> bool {
        draw >> 48 < u64::from(self.0)
    }

    /// In 65536ths, to weigh loads with.
    pub(crate) fn parts(self) -> u64 {
        u64::from(self.0)
    }

    /// This share as one of the largest.
    fn relative_to(self, largest: Self) -> Self {
        Self(((u64::from(self.0) << 16) / u64::from(largest.0.max(1))) as u32)
    }
}

/// How a backend stands with health checking and the operator.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct Standing {
    /// Failed its checks: takes nothing.
    pub failed: bool,
    /// Ejected for what its traffic showed: takes a flow only when nobody else can.
    pub ejected: bool,
    /// Drains: takes no new flows and keeps the old.
    pub draining: bool,
    /// The part of the flows that fall to it which it takes.
    pub share: Share,
}

impl Standing {
    /// Takes new flows.
    pub const GOOD: Self =
        Self { failed: false, ejected: false, draining: false, share: Share::FULL };

    /// Whether a new flow may come here.
    #[must_use]
    pub fn admits(self) -> bool {
        !self.failed && !self.ejected && !self.draining && self.share > Share(0)
    }

    /// Whether a new flow may come here when nobody admits it: ejection is a guess from traffic.
    #[must_use]
    pub fn is_last_resort(self) -> bool {
        self.ejected && !self.failed && !self.draining
    }
}

impl Default for Standing {
    fn default() -> Self {
        Self::GOOD
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
        /// By member. Shares are relative to the largest among the admitted: when all take a
        /// half, all take everything.
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
    pub fn new(members: impl ExactSizeIterator<Item = (u16, Standing)> + Clone) -> Self {
        let count = members.len();
        let admitting = || members.clone().filter(|(_, state)| state.admits());
        let weight = admitting().map(|(weight, _)| u32::from(weight)).sum();
        let largest = admitting().map(|(_, state)| state.share).max().unwrap_or(Share::FULL);
        let good = |state: Standing| state.admits() && state.share == largest;
        if members.clone().all(|(_, state)| good(state)) {
            return Self::All { members: count as u16, weight };
        }
        let standing: Box<[Standing]> = members
            .map(|(_, state)| Standing { share: state.share.relative_to(largest), ..state })
            .collect();
        let places = standing.iter().enumerate().filter(|(_, state)| state.admits());
        let admitted: Vec<u16> = places.map(|(place, _)| place as u16).collect();
        Self::Some { admitted: admitted.into(), standing, weight }
    }

    /// Whether `member` takes new flows. Constant time.
    #[must_use]
    pub fn admits(&self, member: u16) -> bool {
        self.standing(member).admits()
    }

    /// Whether `member`, the backend with this [`crate::Backend::key`], takes the flow that starts
    /// at `flow`: all that fall to it, but for the part that its share leaves out. As a share
    /// grows, flows come to it and none leaves it.
    #[must_use]
    pub fn takes(&self, member: u16, key: u64, flow: u64) -> bool {
        let state = self.standing(member);
        state.admits() && (state.share == Share::FULL || state.share.has(mixed(flow ^ key)))
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

    const KEY: u64 = 0x1234_5678_9abc_def0;
    const BAD: Standing = Standing { failed: true, ..Standing::GOOD };
    const DRAINING: Standing = Standing { draining: true, ..Standing::GOOD };
    const GOOD: Standing = Standing::GOOD;

    fn starting(part: f64) -> Standing {
        Standing { share: Share::of(part), ..GOOD }
    }

    #[test]
    fn admitted_are_counted_and_listed() {
        for (name, states, want) in [
            ("nobody", &[][..], &[][..]),
            ("all", &[GOOD, GOOD], &[0, 1]),
            ("first failed", &[BAD, GOOD, GOOD], &[1, 2]),
            ("last drains", &[GOOD, GOOD, DRAINING], &[0, 1]),
            ("middle", &[GOOD, BAD, GOOD], &[0, 2]),
            ("none left", &[BAD, DRAINING], &[]),
            ("one starts", &[GOOD, starting(0.5)], &[0, 1]),
            ("one is told to take nothing", &[GOOD, starting(0.0)], &[0]),
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

    #[test]
    fn shares_are_relative_to_the_largest() {
        let admission = |states: &[Standing]| Admission::new(states.iter().map(|s| (1, *s)));
        assert_eq!(
            admission(&[starting(0.5), starting(0.5)]),
            Admission::All { members: 2, weight: 2 }
        );
        let half = admission(&[starting(0.25), starting(0.5), BAD]);
        assert_eq!(half.standing(0).share, Share::of(0.5));
        assert_eq!(half.standing(1).share, Share::FULL);
    }

    #[test]
    fn a_growing_share_takes_flows_and_gives_none_back() {
        let at = |part| Admission::new([GOOD, starting(part)].into_iter().map(|s| (1, s)));
        let taken = |part: f64| -> Vec<u64> {
            let admission = at(part);
            (0..20_000).filter(|flow| admission.takes(1, KEY, mixed(*flow))).collect()
        };
        let (tenth, half) = (taken(0.1), taken(0.5));
        assert!(tenth.iter().all(|flow| half.contains(flow)), "a flow left as the share grew");
        assert!((1800..2200).contains(&tenth.len()), "{}", tenth.len());
        assert!((9700..10_300).contains(&half.len()), "{}", half.len());
        assert!((0..100).all(|flow| at(0.1).takes(0, KEY, flow)), "the others take all of theirs");
    }
}
