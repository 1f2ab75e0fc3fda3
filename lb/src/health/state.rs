//! When checks take a backend out and bring it back: counting, with nothing else around it.

use fairway_config::CheckSpec;

/// How a check ended.
pub(crate) type ProbeResult = Result<(), ProbeError>;

/// Why a check failed, for people: `HTTP 503, expected 200-399`.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{0}")]
pub(crate) struct ProbeError(pub(crate) String);

/// A change of health.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Transition {
    /// Enough good checks in a row.
    Up {
        /// How many.
        good: u32,
    },
    /// Enough failed checks in a row.
    Down {
        /// What the last one said.
        cause: ProbeError,
        /// How many.
        failed: u32,
    },
    /// It is down as before, for another reason.
    StillDown {
        /// What the last one said.
        cause: ProbeError,
    },
}

/// The health of one checked address.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct HealthState {
    up: bool,
    /// Results in a row that speak against `up`.
    against: u32,
    rise: u32,
    fall: u32,
    /// What was said of it last, while it is down.
    said: Option<ProbeError>,
}

impl HealthState {
    /// The state before the first check.
    #[must_use]
    pub(crate) fn new(spec: &CheckSpec, up: bool) -> Self {
        Self { up, against: 0, rise: spec.rise, fall: spec.fall, said: None }
    }

    /// Whether the last result spoke against the state: the next one is wanted soon.
    #[must_use]
    pub(crate) fn is_changing(&self) -> bool {
        self.against > 0
    }

    /// Takes a result in; says when it tipped the scale.
    pub(crate) fn on_result(&mut self, result: &ProbeResult) -> Option<Transition> {
        if result.is_ok() == self.up {
            self.against = 0;
            return self.other_cause(result);
        }
        self.against += 1;
        let needed = if self.up { self.fall } else { self.rise };
        if self.against < needed {
            return None;
        }
        let count = std::mem::take(&mut self.against);
        self.up = !self.up;
        self.said = result.as_ref().err().cloned();
        Some(match result {
            Ok(()) => Transition::Up { good: count },
            Err(cause) => Transition::Down { cause: cause.clone(), failed: count },
        })
    }

    fn other_cause(&mut self, result: &ProbeResult) -> Option<Transition> {
        let cause = result.as_ref().err().filter(|cause| self.said.as_ref() != Some(cause))?;
        self.said = Some(cause.clone());
        Some(Transition::StillDown { cause: cause.clone() })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use fairway_config::Probe;
    use std::time::Duration;

    fn spec(rise: u32, fall: u32, initially_up: bool) -> CheckSpec {
        CheckSpec {
            probe: Probe::Icmp,
            port: None,
            interval: Duration::from_secs(2),
            jitter_percent: 10,
            timeout: Duration::from_secs(1),
            rise,
            fall,
            initially_up,
            header: None,
            fast_interval: Duration::from_secs(1),
            source: None,
        }
    }

    /// `+` is a good check, `-` a failed one; the answer names the transitions in order.
    fn run(spec: &CheckSpec, checks: &str) -> String {
        let mut state = HealthState::new(spec, spec.initially_up);
        let failed = || Err(ProbeError("refused".into()));
        let answers = checks.chars().map(|check| {
            match state.on_result(&if check == '+' { Ok(()) } else { failed() }) {
                None => '.',
                Some(Transition::Up { .. }) => 'U',
                Some(Transition::Down { .. }) => 'D',
                Some(_) => 's',
            }
        });
        answers.collect()
    }

    #[test]
    fn only_results_in_a_row_count() {
        for (name, spec, checks, want) in [
            ("fall", spec(2, 3, true), "---", "..D"),
            ("a good one between", spec(2, 3, true), "--+--+---", "........D"),
            ("rise", spec(2, 3, false), "++", ".U"),
            ("starts down", spec(2, 3, false), "-+-++", "s...U"),
            ("one is enough", spec(1, 1, true), "-+-", "DUD"),
            ("stays", spec(2, 3, true), "++++", "...."),
            ("down and up", spec(2, 2, true), "---++--", ".D..U.D"),
        ] {
            assert_eq!(run(&spec, checks), want, "{name}");
        }
    }
}
