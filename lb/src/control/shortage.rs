//! Something that flows run out of: how often, and whether people are still to be told.

use std::time::Duration;

use fairway_core::Tick;

/// How long it is told after the last time.
const TOLD: Duration = Duration::from_secs(60);

/// A shortage.
#[derive(Debug, Default)]
pub(super) struct Shortage {
    count: u64,
    until: Option<Tick>,
}

impl Shortage {
    /// Takes note that it has happened `count` times by now; true when a shortage begins.
    pub(super) fn look(&mut self, count: u64, now: Tick) -> bool {
        let was_told = self.until.is_some();
        self.until = match count > self.count {
            true => Some(now.plus(TOLD)),
            false => self.until.filter(|until| now < *until),
        };
        self.count = count;
        !was_told && self.until.is_some()
    }

    /// How often it has happened, while that is to be told.
    pub(super) fn told(&self) -> Option<u64> {
        self.until.map(|_| self.count)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn it_begins_once_and_is_told_for_a_while() {
        let mut shortage = Shortage::default();
        let at = |seconds| Tick(0).plus(Duration::from_secs(seconds));
        assert!(!shortage.look(0, at(0)));
        assert_eq!(shortage.told(), None);
        assert!(shortage.look(2, at(1)));
        assert!(!shortage.look(3, at(50)), "it goes on");
        assert_eq!(shortage.told(), Some(3));
        assert!(!shortage.look(3, at(109)));
        assert_eq!(shortage.told(), Some(3));
        assert!(!shortage.look(3, at(111)));
        assert_eq!(shortage.told(), None);
        assert!(shortage.look(4, at(112)), "again");
    }
}
