//! What the operator wants of backends while the process runs, against the configuration.

use std::sync::Arc;

use fairway_core::{BackendAddr, Share, Tick};
use serde::{Deserialize, Serialize};

use super::{Control, LiveBackend, names};

/// Orders for one backend. Each holds until it is taken back, until the next reload when that was
/// asked, and not longer than the process.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub(crate) struct Orders {
    /// Takes no new flows and keeps the old.
    pub(crate) drained: Option<Since>,
    /// Takes nothing, as if its checks failed.
    pub(crate) ejected: Option<Since>,
    /// Takes flows whatever checks and traffic say.
    pub(crate) admitted: Option<Since>,
    /// Part of its weight, in hundredths.
    pub(crate) percent: Option<(u32, Since)>,
}

/// When an order was given, and how long it lasts.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Since {
    pub(crate) at: Tick,
    pub(crate) until_reload: bool,
}

impl Orders {
    /// The part of its flows that it may take.
    pub(crate) fn share(&self) -> Share {
        super::backend::percent(self.percent.map(|(percent, _)| percent))
    }

    /// What differs from the configuration, in words; none when nothing does.
    pub(crate) fn words(&self, now: Tick) -> Option<String> {
        let mut words = Vec::new();
        let mut say = |what: &str, since: Option<Since>| {
            let Some(Since { at, until_reload }) = since else { return };
            let ago = std::time::Duration::from_secs(now.since(at).as_secs());
            let ago = humantime::format_duration(ago);
            let end = if until_reload { ", until the next reload" } else { "" };
            words.push(format!("{what} by the operator {ago} ago{end}"));
        };
        say("drained", self.drained);
        say("ejected", self.ejected);
        say("admitted", self.admitted);
        if let Some((percent, since)) = self.percent {
            say(&format!("set to {percent}% of its weight"), Some(since));
        }
        (!words.is_empty()).then(|| words.join("; "))
    }

    /// Ends what was to last until now; false when nothing was.
    pub(super) fn end_with_reload(&mut self) -> bool {
        let before = *self;
        let lasts = |since: &Since| !since.until_reload;
        self.drained = self.drained.filter(lasts);
        self.ejected = self.ejected.filter(lasts);
        self.admitted = self.admitted.filter(lasts);
        self.percent = self.percent.filter(|(_, since)| lasts(since));
        *self != before
    }
}

/// What is ordered.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub(crate) enum Order {
    /// No new flows; the old go on.
    Drain,
    /// New flows again.
    Undrain,
    /// No flows, as if its checks failed; established connections go on.
    Eject,
    /// Flows, whatever checks and traffic say.
    Admit,
    /// A part of its weight, in hundredths.
    Weight(u32),
    /// As the configuration and its checks say.
    Reset,
}

impl Order {
    /// What is then so.
    pub(crate) fn words(self) -> String {
        match self {
            Self::Drain => {
                "drains: no new connections, the open ones may go on for its drainTimeout".into()
            }
            Self::Undrain => "is not drained".into(),
            Self::Eject => "takes nothing new until it is reset or admitted".into(),
            Self::Admit => "takes connections, whatever its checks say".into(),
            Self::Weight(percent) => format!("takes {percent}% of its weight"),
            Self::Reset => "is as configured".into(),
        }
    }

    fn apply(self, orders: &mut Orders, since: Since) {
        match self {
            Self::Drain => {
                orders.drained.get_or_insert(since).until_reload &= since.until_reload;
            }
            Self::Undrain => orders.drained = None,
            Self::Eject => {
                orders.admitted = None;
                orders.ejected.get_or_insert(since).until_reload &= since.until_reload;
            }
            Self::Admit => {
                (orders.ejected, orders.drained) = (None, None);
                orders.admitted.get_or_insert(since).until_reload &= since.until_reload;
            }
            Self::Weight(100) => orders.percent = None,
            Self::Weight(percent) => orders.percent = Some((percent, since)),
            Self::Reset => *orders = Orders::default(),
        }
    }
}

impl Control {
    /// Gives an order for a backend, in one service or in all that have it. Returns the services
    /// and addresses that it reached; none when there is no such service.
    pub(crate) fn order(
        &mut self,
        service: Option<&str>,
        backend: &str,
        order: Order,
        until_reload: bool,
    ) -> Option<Vec<String>> {
        let now = self.clock.now();
        let mut found = Vec::new();
        let mut known = false;
        for (key, live) in &mut self.services {
            if service.is_some_and(|name| !names(key, name)) {
                continue;
            }
            known = true;
            let timeout = live.spec.policy.drain_timeout;
            let (mut hit, mut back, mut draining) = (Vec::new(), Vec::new(), Vec::new());
            for live in live.all_mut().filter(|live| is_it(live, backend)) {
                let admitted = live.standing().admits();
                order.apply(&mut live.orders, Since { at: now, until_reload });
                if live.standing().admits() && !admitted {
                    back.push(live.backend.id);
                }
                if live.orders.drained.is_some() {
                    draining.push(Arc::clone(&live.backend));
                }
                hit.push(Arc::clone(&live.backend));
            }
            if hit.is_empty() {
                continue;
            }
            live.start_slowly(now, |live| back.contains(&live.backend.id));
            self.starting.extend(live.is_starting().then(|| key.clone()));
            tracing::info!(service = %key, backend, "backend {}, by order of the operator", order.words());
            found.extend(hit.iter().map(|backend| format!("{key} {}", backend.addr)));
            hit.retain(|backend| draining.iter().all(|other| other.id != backend.id));
            self.retiring.undrain(&hit);
            self.retiring.drain(key, draining, timeout, now);
            self.dirty.insert(key.clone());
        }
        (known || service.is_none()).then_some(found)
    }

    /// Ends the orders that were to last until now.
    pub(super) fn end_orders(&mut self) {
        for (key, live) in &mut self.services {
            let mut ended = Vec::new();
            live.end_absent_orders();
            for live in live.all_mut() {
                if live.orders.end_with_reload() {
                    ended.push((Arc::clone(&live.backend), live.orders.drained.is_some()));
                }
            }
            if !ended.is_empty() {
                let free = ended.into_iter().filter(|(_, drained)| !drained);
                self.retiring.undrain(&free.map(|(backend, _)| backend).collect::<Vec<_>>());
                self.dirty.insert(key.clone());
            }
        }
    }

    /// The addresses of the backends that `word` means, in any service.
    pub(crate) fn backends_named(&self, word: &str) -> Vec<BackendAddr> {
        let all = self.services.values().flat_map(|live| live.all());
        let mut found: Vec<_> =
            all.filter(|live| is_it(live, word)).map(|live| live.backend.addr).collect();
        found.sort_unstable();
        found.dedup();
        found
    }

    /// Every difference from the configuration that an order made, in words.
    pub(crate) fn order_words(&self) -> Vec<String> {
        let now = self.clock.now();
        let services = self.services.iter();
        let words = services.flat_map(|(key, live)| {
            live.all().filter_map(move |live| {
                let words = live.orders.words(now)?;
                Some(format!("{key} {}: {words}", live.backend.addr))
            })
        });
        words.collect()
    }
}

fn is_it(live: &LiveBackend, word: &str) -> bool {
    is_backend(live.backend.addr, live.name.as_deref(), word)
}

/// Whether `word` means this backend: by address with or without port, or by name.
pub(crate) fn is_backend(addr: BackendAddr, name: Option<&str>, word: &str) -> bool {
    addr.to_string() == word || addr.ip().to_string() == word || name == Some(word)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn orders_replace_and_end_each_other() {
        let at = |at| Since { at: Tick(at), until_reload: false };
        let briefly = Since { at: Tick(2000), until_reload: true };
        let mut orders = Orders::default();
        assert_eq!(orders.words(Tick(0)), None);
        Order::Eject.apply(&mut orders, at(1000));
        Order::Eject.apply(&mut orders, at(9000));
        let words = orders.words(Tick(61_000)).unwrap();
        assert_eq!(words, "ejected by the operator 1m ago", "counted from the first order");
        Order::Drain.apply(&mut orders, at(2000));
        Order::Admit.apply(&mut orders, at(2000));
        assert!(orders.ejected.is_none() && orders.drained.is_none(), "it takes connections");
        Order::Weight(30).apply(&mut orders, briefly);
        Order::Drain.apply(&mut orders, at(2000));
        Order::Drain.apply(&mut orders, briefly);
        let words = orders.words(Tick(2000)).unwrap();
        for part in [
            "drained by the operator 0s ago;",
            "admitted",
            "30% of its weight by",
            "until the next reload",
        ] {
            assert!(words.contains(part), "{part} in {words}");
        }
        assert_eq!(orders.share(), Share::of(0.3));
        assert!(orders.end_with_reload() && !orders.end_with_reload());
        assert!(orders.percent.is_none() && orders.drained.is_some(), "the lasting one lasts");
        Order::Undrain.apply(&mut orders, at(0));
        Order::Reset.apply(&mut orders, at(0));
        assert_eq!(orders, Orders::default());
    }
}
