//! Time as an argument.

use core::time::Duration;

/// A point in time, in milliseconds since an origin that the caller chose.
///
/// Monotonic, and the same origin for everything that one process compares.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Default, Hash)]
pub struct Tick(pub u64);

impl Tick {
    /// The tick `after` this one, rounded up to a whole millisecond; saturates.
    #[must_use]
    pub fn plus(self, after: Duration) -> Self {
        let millis = after.as_nanos().div_ceil(1_000_000);
        Self(self.0.saturating_add(u64::try_from(millis).unwrap_or(u64::MAX)))
    }

    /// Time from `earlier` to this tick; zero when `earlier` is later.
    #[must_use]
    pub fn since(self, earlier: Self) -> Duration {
        Duration::from_millis(self.0.saturating_sub(earlier.0))
    }
}
