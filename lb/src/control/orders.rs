//! What the operator wants of backends while the process runs, against the configuration.

use std::sync::Arc;

use fairway_core::{Share, Tick};
use serde::{Deserialize, Serialize};

use super::{Control, LiveBackend, names};

/// Orders for one backend. Each holds until it is taken back, or until the next reload.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub(crate) struct Orders {
    /// Takes no new flows and keeps the old, since then.
    pub(crate) drained: Option<Tick>,
    /// Takes nothing, as if its checks failed, since then.
    pub(crate) ejected: Option<Tick>,
    /// Takes flows whatever checks and traffic say, since then.
    pub(crate) admitted: Option<Tick>,
    /// Part of its weight, in hundredths.
    pub(crate) percent: Option<u32>,
    /// They end with the next configuration that is applied.
    pub(crate) until_reload: bool,
}

impl Orders {
    /// The part of its flows that it may take.
    pub(crate) fn share(&self) -> Share {
        super::live::percent(self.percent)
    }

    /// What differs from the configuration, in words; none when nothing does.
    pub(crate) fn words(&self, now: Tick) -> Option<String> {
        let mut words = Vec::new();
        let mut since = |what: &str, since: Option<Tick>| {
            if let Some(since) = since {
                let ago = std::time::Duration::from_secs(now.since(since).as_secs());
                words.push(format!("{what} by the operator {ago:?} ago"));
            }
        };
        since("drained", self.drained);
        since("ejected", self.ejected);
        since("admitted", self.admitted);
        if let Some(percent) = self.percent {
            words.push(format!("{percent}% of its weight by order of the operator"));
        }
        if words.is_empty() {
            return None;
        }
        if self.until_reload {
            words.push("until the next reload".into());
        }
        Some(words.join(", "))
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
    /// What a backend then does.
    pub(crate) fn words(self) -> String {
        match self {
            Self::Drain => "drains".into(),
            Self::Undrain => "takes new connections again".into(),
            Self::Eject => "takes nothing until it is reset or admitted".into(),
            Self::Admit => "takes connections, whatever its checks say".into(),
            Self::Weight(percent) => format!("takes {percent}% of its weight"),
            Self::Reset => "is as configured".into(),
        }
    }

    fn apply(self, orders: &mut Orders, now: Tick) {
        match self {
            Self::Drain => {
                orders.drained.get_or_insert(now);
            }
            Self::Undrain => orders.drained = None,
            Self::Eject => {
                orders.admitted = None;
                orders.ejected.get_or_insert(now);
            }
            Self::Admit => {
                orders.ejected = None;
                orders.admitted.get_or_insert(now);
            }
            Self::Weight(100) => orders.percent = None,
            Self::Weight(percent) => orders.percent = Some(percent),
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
            for live in live.all_mut().filter(|live| is_backend(live, backend)) {
                let admitted = live.standing().admits();
                order.apply(&mut live.orders, now);
                live.orders.until_reload = until_reload;
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
            for live in live.all_mut().filter(|live| live.orders.until_reload) {
                live.orders = Orders::default();
                ended.push(Arc::clone(&live.backend));
            }
            if !ended.is_empty() {
                self.retiring.undrain(&ended);
                self.dirty.insert(key.clone());
            }
        }
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

/// Whether `word` means this backend: by address with or without port, or by name.
fn is_backend(live: &LiveBackend, word: &str) -> bool {
    let addr = live.backend.addr;
    addr.to_string() == word || addr.ip().to_string() == word || live.name.as_deref() == Some(word)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn orders_replace_and_end_each_other() {
        let mut orders = Orders::default();
        assert_eq!(orders.words(Tick(0)), None);
        Order::Eject.apply(&mut orders, Tick(1000));
        Order::Eject.apply(&mut orders, Tick(9000));
        let words = orders.words(Tick(61_000)).unwrap();
        assert_eq!(words, "ejected by the operator 60s ago", "counted from the first order");
        Order::Admit.apply(&mut orders, Tick(2000));
        assert!(orders.ejected.is_none() && orders.admitted.is_some());
        Order::Weight(30).apply(&mut orders, Tick(2000));
        Order::Drain.apply(&mut orders, Tick(2000));
        orders.until_reload = true;
        let words = orders.words(Tick(2000)).unwrap();
        for part in ["drained", "admitted", "30% of its weight", "until the next reload"] {
            assert!(words.contains(part), "{words}");
        }
        assert_eq!(orders.share(), Share::of(0.3));
        Order::Weight(100).apply(&mut orders, Tick(0));
        Order::Undrain.apply(&mut orders, Tick(0));
        Order::Reset.apply(&mut orders, Tick(0));
        assert_eq!(orders, Orders::default());
    }
}
