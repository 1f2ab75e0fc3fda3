//! A backend as the control loop knows it: what is configured, what checks, traffic, agents and the
//! operator say of it, and how it stands by all that.

use std::sync::Arc;
use std::time::Duration;

use fairway_config::{BackendSpec, Serving};
use fairway_core::{Backend, BackendTotals, PassiveEjection, Protocol, Share, Standing, Tick};

use super::orders::Orders;
use super::ramp::Ramp;
use crate::health::agent::AgentState;

/// A configured backend and how it stands.
pub(crate) struct LiveBackend {
    pub(crate) backend: Arc<Backend>,
    pub(crate) name: Option<Box<str>>,
    pub(crate) zone: Option<Box<str>>,
    pub(crate) weight: u16,
    /// Whether it takes new flows, by its source.
    pub(crate) serving: Serving,
    /// Whether its flows are datagrams: nothing holds them to one that is about to go.
    moves: bool,
    /// Why its checks took it out; none while they are good or there are none.
    pub(crate) down: Option<Box<str>>,
    pub(crate) ejection: Ejection,
    /// Its counters at the start of the window.
    pub(super) seen: BackendTotals,
    /// What its agent asks for.
    pub(crate) agent: AgentState,
    /// What the operator wants of it, against the configuration.
    pub(crate) orders: Orders,
    /// Set while it takes a part of its flows only.
    pub(crate) ramp: Option<Ramp>,
    /// The part that it takes.
    pub(crate) share: Share,
}

/// Ejection for what traffic showed.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub(crate) struct Ejection {
    /// Out until then.
    pub(crate) until: Option<Tick>,
    /// What its traffic showed.
    pub(crate) cause: Option<Box<str>>,
    /// Ejections in a row.
    pub(super) times: u32,
    /// When the last one ended.
    pub(super) ended: Tick,
}

impl Ejection {
    /// Ejects from `now` on; the n-th time in a row takes n times as long. None when it is out
    /// already, or nobody is ever ejected.
    pub(super) fn begin(&mut self, rule: &PassiveEjection, now: Tick) -> Option<Duration> {
        if self.until.is_some() || rule.failures == 0 {
            return None;
        }
        // A good time as long as the longest ejection makes a clean slate.
        if now.since(self.ended) > rule.max {
            self.times = 0;
        }
        self.times += 1;
        let length = rule.base.saturating_mul(self.times).min(rule.max);
        self.until = Some(now.plus(length));
        Some(length)
    }

    /// Ends the ejection before its time: good checks say more than old failures.
    pub(crate) fn lift(&mut self, now: Tick) {
        if self.until.take().is_some() {
            self.ended = now;
        }
    }

    /// Ends the ejection when its time is over; true when that changed something.
    pub(super) fn expire(&mut self, now: Tick) -> bool {
        if self.until.is_none_or(|until| until > now) {
            return false;
        }
        self.until = None;
        self.ended = now;
        true
    }
}

impl LiveBackend {
    /// How it stands, panic mode aside. Orders of the operator come before checks and traffic.
    pub(crate) fn standing(&self) -> Standing {
        self.standing_in(false)
    }

    /// How it stands, with all backends in use that only checks and traffic take out, when
    /// `panic`.
    pub(super) fn standing_in(&self, panic: bool) -> Standing {
        let trusted = panic || self.orders.admitted.is_some();
        let agent = match self.orders.admitted {
            Some(_) => Share::FULL,
            None => percent(self.agent.percent),
        };
        let ramp = if panic { Share::FULL } else { self.share };
        let maintained = self.agent.maintenance && self.orders.admitted.is_none();
        Standing {
            failed: self.orders.ejected.is_some()
                || maintained
                || (self.is_down() && !trusted)
                || (self.leaves() && self.moves),
            ejected: self.ejection.until.is_some() && !trusted,
            draining: self.orders.drained.is_some()
                || self.leaves()
                || (self.serving == Serving::NotReady && self.orders.admitted.is_none())
                || (self.agent.drain && self.orders.admitted.is_none()),
            share: ramp.times(self.orders.share()).times(agent),
        }
    }

    /// Whether its source says that it goes.
    fn leaves(&self) -> bool {
        self.serving == Serving::Leaving && self.orders.admitted.is_none()
    }

    /// Whether its checks or its agent take it out.
    pub(super) fn is_down(&self) -> bool {
        self.down.is_some() || self.agent.down.is_some() || self.agent.maintenance
    }

    /// The same backend, as it is configured now.
    pub(super) fn described_by(self, spec: &BackendSpec) -> Self {
        Self {
            name: spec.name.clone(),
            zone: spec.zone.clone(),
            weight: spec.weight.get(),
            serving: spec.serving,
            ..self
        }
    }

    pub(super) fn new(spec: &BackendSpec, backend: Arc<Backend>, protocol: Protocol) -> Self {
        Self {
            backend,
            name: spec.name.clone(),
            zone: spec.zone.clone(),
            weight: spec.weight.get(),
            serving: spec.serving,
            moves: protocol == Protocol::Udp,
            down: None,
            ejection: Ejection::default(),
            seen: BackendTotals::default(),
            agent: AgentState::default(),
            orders: Orders::default(),
            ramp: None,
            share: Share::FULL,
        }
    }
}

/// A share of so many hundredths; none is all.
pub(crate) fn percent(percent: Option<u32>) -> Share {
    percent.map_or(Share::FULL, |percent| Share::of(f64::from(percent) / 100.0))
}
