//! Slow start: how much of its flows a backend takes, by the time since it came. Pure.

use fairway_config::SlowStart;
use fairway_config::document::CurveDoc;
use fairway_core::{Share, Tick};

/// Steps in which a share grows: each is a snapshot.
const STEPS: u64 = 64;

/// A backend that came a while ago.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Ramp {
    /// When it came.
    pub(crate) since: Tick,
}

impl Ramp {
    /// What it takes at `now`; nothing is said any more once it takes everything.
    pub(crate) fn share(self, rule: &SlowStart, now: Tick) -> Option<Share> {
        let window = u64::try_from(rule.window.as_millis()).unwrap_or(u64::MAX).max(1);
        let passed = u64::try_from(now.since(self.since).as_millis()).unwrap_or(u64::MAX);
        if passed >= window {
            return None;
        }
        let time = (passed * STEPS / window) as f64 / STEPS as f64;
        let grown = match rule.curve {
            CurveDoc::Linear => time,
            CurveDoc::Quadratic => time * time,
        };
        Some(Share::of(grown.max(f64::from(rule.from_percent) / 100.0)))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::time::Duration;

    #[test]
    fn shares_grow_by_the_curve_and_end() {
        let rule = |curve, from_percent| SlowStart {
            window: Duration::from_secs(64),
            curve,
            from_percent,
        };
        let ramp = Ramp { since: Tick(1000) };
        for (curve, from, seconds, want) in [
            (CurveDoc::Linear, 10, 0, Some(0.1)),
            (CurveDoc::Linear, 10, 16, Some(0.25)),
            (CurveDoc::Linear, 10, 63, Some(63.0 / 64.0)),
            (CurveDoc::Linear, 10, 64, None),
            (CurveDoc::Quadratic, 1, 16, Some(0.0625)),
            (CurveDoc::Quadratic, 20, 16, Some(0.2)),
            (CurveDoc::Linear, 100, 1, Some(1.0)),
        ] {
            let share = ramp.share(&rule(curve, from), Tick(1000 + seconds * 1000));
            assert_eq!(share, want.map(Share::of), "{curve:?} from {from}% after {seconds} s");
        }
        let small = SlowStart { window: Duration::from_millis(1), ..rule(CurveDoc::Linear, 10) };
        assert_eq!(ramp.share(&small, Tick(u64::MAX)), None, "a clock far ahead ends it");
    }
}
