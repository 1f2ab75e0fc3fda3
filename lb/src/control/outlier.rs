//! Outliers: backends whose connections fail, or take far longer than the others'. Pure.
//!
//! Counters are compared from one window to the next. A backend is judged by its own rate of
//! failures, by how far that lies from the pool's, and by the median of the pool's connect times:
//! one slow backend does not move that.

use std::time::Duration;

use fairway_config::Outliers;
use fairway_core::{BackendTotals, FailureCause};

/// What a backend did within a window.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub(crate) struct Sample {
    /// Connections that were made.
    connected: u64,
    /// Attempts that failed, and connections that were reset before a reply.
    failed: u64,
    /// Attempts.
    attempts: u64,
    /// Time that connecting took, in microseconds, over all connections.
    connect_us: u64,
}

impl Sample {
    /// What happened from `before` to `now`.
    pub(crate) fn between(before: &BackendTotals, now: &BackendTotals) -> Self {
        let failures = |cause: FailureCause| {
            let n = cause as usize;
            now.failures[n].saturating_sub(before.failures[n])
        };
        let unreached = failures(FailureCause::Refused)
            + failures(FailureCause::Unreachable)
            + failures(FailureCause::Timeout);
        let connected = now.connections.saturating_sub(before.connections);
        Self {
            connected,
            failed: unreached + failures(FailureCause::ResetBeforeReply),
            attempts: connected + unreached,
            connect_us: now.connect_us.saturating_sub(before.connect_us),
        }
    }

    /// Share of its attempts that came to something.
    fn good(&self) -> f64 {
        1.0 - (self.failed as f64 / self.attempts.max(1) as f64).min(1.0)
    }

    /// Mean time of a connect; none without connections.
    fn mean(&self) -> Option<Duration> {
        self.connect_us.checked_div(self.connected).map(Duration::from_micros)
    }
}

/// Why a backend is an outlier.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(crate) enum Verdict {
    /// This many hundredths of its connections failed.
    Failing(u64),
    /// So many hundredths of its connections are good, and of the pool's that.
    Worse(f64, f64),
    /// Its connects take this long, and those of the pool that.
    Slow(Duration, Duration),
}

impl std::fmt::Display for Verdict {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::Failing(percent) => write!(f, "{percent}% of its connections failed"),
            Self::Worse(own, mean) => {
                write!(f, "{own:.1}% of its connections are good, of its pool's {mean:.1}%")
            }
            Self::Slow(mean, median) => {
                write!(f, "connects take {mean:.1?}, the pool's median is {median:.1?}")
            }
        }
    }
}

/// Backends whose rates make a mean that says something (as Envoy has it).
const COMPARABLE: usize = 5;

/// The mean share of good connections, and the least that is no outlier.
fn usual(rule: &Outliers, rates: &[f64]) -> Option<(f64, f64)> {
    let factor = f64::from(rule.deviation_percent?) / 100.0;
    if rates.len() < COMPARABLE {
        return None;
    }
    let mean_of = |values: &mut dyn Iterator<Item = f64>| values.sum::<f64>() / rates.len() as f64;
    let mean = mean_of(&mut rates.iter().copied());
    let variance = mean_of(&mut rates.iter().map(|rate| (rate - mean) * (rate - mean)));
    // Equal rates may differ by rounding.
    Some((mean, mean - factor * variance.sqrt() - 1e-9))
}

/// Judges the backends of a pool.
pub(crate) fn judge(rule: &Outliers, samples: &[Sample]) -> Vec<Option<Verdict>> {
    let enough = |sample: &Sample| sample.attempts >= u64::from(rule.min_samples);
    let mut means: Vec<Duration> =
        samples.iter().filter(|sample| enough(sample)).filter_map(Sample::mean).collect();
    means.sort_unstable();
    // With two, the median is the quicker one: the slower is slow compared with it.
    let median = means.get(means.len().saturating_sub(1) / 2).copied();
    let rates: Vec<f64> = samples.iter().filter(|s| enough(s)).map(Sample::good).collect();
    let usual = usual(rule, &rates);
    let verdict = |sample: &Sample| {
        if !enough(sample) {
            return None;
        }
        let percent = sample.failed * 100 / sample.attempts.max(1);
        if rule.failure_percent.is_some_and(|most| percent >= u64::from(most)) {
            return Some(Verdict::Failing(percent.min(100)));
        }
        if let Some((mean, least)) = usual
            && sample.good() < least
        {
            return Some(Verdict::Worse(sample.good() * 100.0, mean * 100.0));
        }
        let (mean, median) = (sample.mean()?, median?);
        let most = median.saturating_mul(rule.slow_factor?).max(rule.slow_above);
        (mean > most).then_some(Verdict::Slow(mean, median))
    };
    samples.iter().map(verdict).collect()
}

/// How many of `total` backends may be ejected at a time.
pub(crate) fn most_ejected(rule: &Outliers, total: usize) -> usize {
    (total * rule.max_ejected_percent as usize / 100).max(1)
}

#[cfg(test)]
mod tests {
    use super::*;

    const RULE: Outliers = Outliers {
        max_ejected_percent: 50,
        window: Duration::from_secs(10),
        min_samples: 10,
        failure_percent: Some(50),
        deviation_percent: None,
        slow_factor: Some(3),
        slow_above: Duration::from_millis(2),
    };

    fn sample(connected: u64, failed: u64, millis: u64) -> Sample {
        Sample {
            connected,
            failed,
            attempts: connected + failed,
            connect_us: connected * millis * 1000,
        }
    }

    fn outliers(rule: &Outliers, samples: &[Sample]) -> Vec<usize> {
        let verdicts = judge(rule, samples);
        verdicts.iter().enumerate().filter(|(_, v)| v.is_some()).map(|(n, _)| n).collect()
    }

    #[test]
    fn outliers_are_told_by_rate_and_by_latency() {
        for (name, samples, want) in [
            ("nobody", &[][..], &[][..]),
            ("all alike", &[sample(100, 0, 1), sample(100, 0, 1)], &[]),
            ("half fails", &[sample(10, 10, 1), sample(100, 0, 1)], &[0]),
            ("just below half", &[sample(11, 10, 1), sample(100, 0, 1)], &[]),
            ("too few to say", &[sample(0, 9, 1), sample(9, 0, 900)], &[]),
            ("one slow of three", &[sample(50, 0, 1), sample(50, 0, 9), sample(50, 0, 1)], &[1]),
            ("one slow of two", &[sample(50, 0, 1), sample(50, 0, 9)], &[1]),
            ("slow, but under the floor", &[sample(50, 0, 0), sample(50, 0, 2)], &[]),
            ("alone", &[sample(50, 0, 900)], &[]),
            ("all slow", &[sample(50, 0, 900), sample(50, 0, 800)], &[]),
        ] {
            assert_eq!(outliers(&RULE, samples), want, "{name}");
        }
    }

    #[test]
    fn a_backend_far_below_its_pool_is_an_outlier() {
        let rule = Outliers { deviation_percent: Some(190), ..RULE };
        let pool = |bad: u64, others: &[u64]| -> Vec<Sample> {
            let failed = std::iter::once(&bad).chain(others);
            failed.map(|failed| sample(100 - failed, *failed, 1)).collect()
        };
        for (name, samples, want) in [
            ("one of five", pool(20, &[0, 1, 0, 1]), &[0][..]),
            ("too few to compare", pool(20, &[0, 1, 0]), &[]),
            ("all alike", pool(3, &[3, 3, 3, 3]), &[]),
            ("all bad", pool(30, &[31, 29, 30, 32]), &[]),
            ("two of six: neither is alone", pool(20, &[20, 0, 0, 0, 0]), &[]),
        ] {
            assert_eq!(outliers(&rule, &samples), want, "{name}");
        }
        assert!(outliers(&RULE, &pool(20, &[0, 1, 0, 1])).is_empty(), "when nobody asks for it");
    }

    #[test]
    fn samples_are_differences() {
        let mut before = BackendTotals { connections: 10, connect_us: 500, ..Default::default() };
        before.failures[FailureCause::Refused as usize] = 3;
        let mut now = BackendTotals { connections: 30, connect_us: 2500, ..before };
        now.failures[FailureCause::Refused as usize] = 5;
        now.failures[FailureCause::ResetBeforeReply as usize] = 4;
        now.failures[FailureCause::Local as usize] = 100;
        let sample = Sample::between(&before, &now);
        assert_eq!((sample.connected, sample.failed, sample.attempts), (20, 6, 22));
        assert_eq!(sample.mean(), Some(Duration::from_micros(100)));
        assert_eq!(Sample::between(&now, &before), Sample::default(), "counters never go back");
    }

    #[test]
    fn a_part_of_the_pool_and_one_at_least() {
        assert_eq!([1, 2, 3, 10].map(|n| most_ejected(&RULE, n)), [1, 1, 1, 5]);
        let none = Outliers { max_ejected_percent: 0, ..RULE };
        assert_eq!(most_ejected(&none, 10), 1);
    }
}
