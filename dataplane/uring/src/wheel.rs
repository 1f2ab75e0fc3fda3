//! A timing wheel: each session has one timer, set and fired in constant time.
//!
//! A slot is 4 ms, a turn 32 s; timers further away stay in their slot for more turns. Timers are
//! never taken out: a session that no longer wants one ignores it when it fires.
//! Source: Varghese and Lauck, "Hashed and Hierarchical Timing Wheels", SOSP 1987, scheme 6.

use std::time::Duration;

use fairway_core::Tick;

const SLOTS: u64 = 8192;
const SLOT_MS: u64 = 4;

/// A timer that has fired: whose, and for when it was set.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Timer {
    pub(crate) index: u32,
    pub(crate) generation: u32,
    pub(crate) at: Tick,
}

pub(crate) struct Wheel {
    slots: Vec<Vec<Timer>>,
    /// A bit for each slot that holds something.
    filled: Vec<u64>,
    /// The next slot to be looked at, counted from tick zero.
    next: u64,
}

impl Wheel {
    pub(crate) fn new(now: Tick) -> Self {
        Self {
            slots: vec![Vec::new(); SLOTS as usize],
            filled: vec![0; SLOTS as usize / 64],
            next: now.0 / SLOT_MS,
        }
    }

    /// Sets a timer; it fires at `timer.at` or up to 4 ms later.
    pub(crate) fn set(&mut self, timer: Timer) {
        let slot = timer.at.0.div_ceil(SLOT_MS).max(self.next) % SLOTS;
        self.slots[slot as usize].push(timer);
        self.filled[slot as usize / 64] |= 1 << (slot % 64);
    }

    /// Moves the timers that are due at `now` to `due`.
    pub(crate) fn advance(&mut self, now: Tick, due: &mut Vec<Timer>) {
        let last = now.0 / SLOT_MS;
        if last >= self.next + SLOTS {
            // Asleep for more than a turn: every slot once.
            self.next = last - SLOTS + 1;
        }
        while self.next <= last {
            let slot = (self.next % SLOTS) as usize;
            self.next += 1;
            if self.filled[slot / 64] & 1 << (slot % 64) == 0 {
                continue;
            }
            self.slots[slot].retain(|timer| {
                let later = timer.at > now;
                if !later {
                    due.push(*timer);
                }
                later
            });
            if self.slots[slot].is_empty() {
                self.filled[slot / 64] &= !(1 << (slot % 64));
            }
        }
    }

    /// How long the worker may sleep from `now`; none when no timer is set.
    pub(crate) fn sleep(&self, now: Tick) -> Option<Duration> {
        let start = self.next % SLOTS;
        let words = self.filled.len() as u64;
        let mut ahead = 0;
        // The first word counts from `start` on, and once more up to it at the end.
        for n in 0..=words {
            let word = ((start / 64 + n) % words) as usize;
            let mut bits = self.filled[word];
            if n == 0 {
                bits &= u64::MAX << (start % 64);
            }
            if bits != 0 {
                let slot = word as u64 * 64 + u64::from(bits.trailing_zeros());
                ahead = (slot + SLOTS - start) % SLOTS;
                break;
            }
            if n == words {
                return None;
            }
        }
        let at = Tick((self.next + ahead) * SLOT_MS);
        Some(at.since(now).max(Duration::from_millis(1)))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn timer(index: u32, at: u64) -> Timer {
        Timer { index, generation: 0, at: Tick(at) }
    }

    fn due(wheel: &mut Wheel, now: u64) -> Vec<u32> {
        let mut due = Vec::new();
        wheel.advance(Tick(now), &mut due);
        due.iter().map(|timer| timer.index).collect()
    }

    #[test]
    fn timers_fire_once_and_in_time() {
        let mut wheel = Wheel::new(Tick(1000));
        wheel.set(timer(1, 1010));
        wheel.set(timer(2, 1000 + 40_000));
        assert_eq!(due(&mut wheel, 1009), [0; 0]);
        assert_eq!(due(&mut wheel, 1012), [1]);
        assert_eq!(due(&mut wheel, 40_999), [0; 0], "further away than a turn");
        assert_eq!(due(&mut wheel, 41_000), [2]);
        assert_eq!(due(&mut wheel, 500_000), [0; 0]);
        assert_eq!(wheel.sleep(Tick(500_000)), None);
    }

    #[test]
    fn a_timer_in_the_past_fires_next() {
        let mut wheel = Wheel::new(Tick(1000));
        due(&mut wheel, 2000);
        wheel.set(timer(1, 100));
        assert!(wheel.sleep(Tick(2000)).unwrap() <= Duration::from_millis(4));
        assert_eq!(due(&mut wheel, 2004), [1]);
    }

    proptest! {
        /// Sleeping as told and advancing fires each timer no earlier than set, at most 4 ms late.
        #[test]
        fn sleeping_as_told_misses_nothing(times in proptest::collection::vec(0u64..100_000, 1..50)) {
            let mut wheel = Wheel::new(Tick(0));
            for (n, at) in times.iter().enumerate() {
                wheel.set(timer(n as u32, *at));
            }
            let mut now = Tick(0);
            let mut fired = 0;
            while let Some(sleep) = wheel.sleep(now) {
                now = now.plus(sleep);
                let mut due = Vec::new();
                wheel.advance(now, &mut due);
                for timer in due {
                    fired += 1;
                    prop_assert!(timer.at <= now && now.since(timer.at) <= Duration::from_millis(5),
                        "set for {:?}, fired at {:?}", timer.at, now);
                }
            }
            prop_assert_eq!(fired, times.len());
        }
    }
}
