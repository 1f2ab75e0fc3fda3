//! What was applied before, so that it can be brought back.

use std::collections::VecDeque;
use std::time::{SystemTime, UNIX_EPOCH};

use fairway_config::{ChangeSet, Desired};
use serde::{Deserialize, Serialize};

use super::{Answers, Control};

/// Configurations that are kept. Services that did not change are shared between them.
const KEPT: usize = 10;

/// The newest configurations that were applied, oldest first.
#[derive(Default)]
pub(crate) struct History {
    entries: VecDeque<Entry>,
    last: u64,
}

struct Entry {
    number: u64,
    at: SystemTime,
    origin: String,
    desired: Desired,
}

/// A configuration that was applied, for people.
#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub(crate) struct Applied {
    /// Counts up with every configuration that is applied, from 1.
    pub(crate) number: u64,
    /// Seconds since 1970.
    pub(crate) applied_at: u64,
    /// The file, or what it was rolled back to.
    pub(crate) origin: String,
    pub(crate) services: usize,
    /// Services that differ from the one before.
    pub(crate) changed: usize,
    pub(crate) current: bool,
}

impl History {
    /// Remembers what is applied now; the same again is no news.
    pub(super) fn push(&mut self, desired: Desired, origin: String) {
        let same = self
            .entries
            .back()
            .is_some_and(|last| ChangeSet::between(&last.desired, &desired).is_empty());
        if same {
            return;
        }
        self.last += 1;
        let entry = Entry { number: self.last, at: SystemTime::now(), origin, desired };
        self.entries.push_back(entry);
        if self.entries.len() > KEPT {
            self.entries.pop_front();
        }
    }

    /// What is kept, oldest first.
    pub(crate) fn list(&self) -> Vec<Applied> {
        let mut before: Option<&Desired> = None;
        let mut list = Vec::new();
        for entry in &self.entries {
            let changed = before.map_or(entry.desired.len(), |before| {
                let change = ChangeSet::between(before, &entry.desired);
                change.upserts.len() + change.removals.len()
            });
            before = Some(&entry.desired);
            list.push(Applied {
                number: entry.number,
                applied_at: entry.at.duration_since(UNIX_EPOCH).map_or(0, |time| time.as_secs()),
                origin: entry.origin.clone(),
                services: entry.desired.len(),
                changed,
                current: entry.number == self.last,
            });
        }
        list
    }

    /// What configuration `number` had, or the newest one before `running` when none is named.
    fn find(&self, number: Option<u64>, running: u64) -> Option<(u64, Desired)> {
        let entry = match number {
            Some(number) => self.entries.iter().find(|entry| entry.number == number)?,
            None => self.entries.iter().rev().find(|entry| entry.number < running)?,
        };
        Some((entry.number, entry.desired.clone()))
    }
}

impl Control {
    /// Applies an earlier configuration; the next change of the file applies the file again. An
    /// error says why not.
    pub(crate) fn roll_back(&mut self, number: Option<u64>) -> Result<u64, String> {
        if self.is_stopping() {
            return Err("the process is stopping".into());
        }
        let Some((number, desired)) =
            self.history.find(number, self.rolled_back.unwrap_or(self.history.last))
        else {
            return Err(match number {
                Some(number) => format!(
                    "configuration {number} is not kept; `fairway history` lists those that are"
                ),
                None => "there is no earlier configuration".into(),
            });
        };
        let change = ChangeSet::between(&self.desired, &desired);
        self.desired = desired.clone();
        self.history.push(desired, format!("rollback to {number}"));
        self.rolled_back = Some(number);
        self.end_orders();
        self.apply(change, &Answers::new());
        tracing::warn!(configuration = number, "rolled back by order of the operator");
        Ok(number)
    }
}
