//! Ports that a worker polls: as long as packets come without a pause, and then less and less.

use std::os::fd::{AsFd, OwnedFd};
use std::sync::Arc;
use std::time::Duration;

use fairway_core::packet::{BURST, Ports, Steering, Toeplitz};

use super::{BURSTS, Packets, Turn, context};
use crate::sys::Ring;
use crate::token::{Op, Token};

/// Turns without a packet after which a worker rests: these are some 100 µs.
const RESTLESS: u32 = 100;
/// Turns after which it sleeps, where ports can wake it: some milliseconds. DPDK's taps have nothing
/// until a signal handler has run, in whichever thread, and that may be later than they wake us.
const DROWSY: u32 = RESTLESS + 40;
/// Turns after which naps are longer: these are some 100 ms.
const IDLE: u32 = RESTLESS + 2000;
/// How long a worker naps that nobody wakes, after a pause in which nothing came.
const NAP: Duration = Duration::from_micros(50);
/// The same after a longer one.
const SLEEP: Duration = Duration::from_micros(500);

/// The longest sleep of one whom ports wake: should one of them forget it, or be late, and so that
/// counters are shown.
const LONGEST: Duration = Duration::from_millis(50);

/// One worker's end of ports that are polled.
#[derive(Debug)]
pub struct Polled {
    /// The ports.
    pub ports: Box<dyn Ports>,
    /// Readable when a packet has come after [`Ports::arm`]. Without it, idle workers look now and
    /// then.
    pub waker: Option<OwnedFd>,
}

/// How a worker rests whose ports have nothing.
#[derive(Debug)]
pub(super) struct Rest {
    state: State,
    waker: Option<OwnedFd>,
    /// A poll of the waker is under way.
    polled: bool,
    /// It has completed.
    woken: bool,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum State {
    /// Looks at the ports itself; for so many turns they have had nothing.
    Awake(u32),
    /// The ports were asked to wake us, and may have had something before.
    Falling,
    /// Nothing has come since they were asked.
    Asleep,
}

impl Rest {
    pub(super) fn new(waker: Option<OwnedFd>) -> Self {
        Self { state: State::Awake(0), waker, polled: false, woken: false }
    }

    /// How long nothing is to be done unless somebody wakes us.
    pub(super) fn sleep(&self) -> Duration {
        match self.state {
            State::Falling | State::Awake(0..RESTLESS) => Duration::ZERO,
            State::Awake(RESTLESS..IDLE) => NAP,
            State::Awake(IDLE..) => SLEEP,
            State::Asleep => LONGEST,
        }
    }

    /// A port has something, or had.
    pub(super) fn woken(&mut self) {
        (self.polled, self.woken) = (false, true);
    }

    /// Before a turn.
    fn rise(&mut self, ports: &mut dyn Ports) {
        if std::mem::take(&mut self.woken) {
            self.stay_awake(ports);
        }
    }

    /// After a turn in which the ports had so many packets.
    fn note(&mut self, packets: usize, ports: &mut dyn Ports, ring: &mut Ring) {
        match (self.state, &self.waker) {
            _ if packets > 0 => self.stay_awake(ports),
            (State::Awake(DROWSY..), Some(_)) => match ports.arm() {
                true => self.state = State::Falling,
                // It naps, then.
                false => {
                    ports.disarm();
                    self.waker = None;
                }
            },
            (State::Awake(idle), _) => self.state = State::Awake(idle.saturating_add(1)),
            (State::Falling, Some(waker)) => {
                self.state = State::Asleep;
                if !std::mem::replace(&mut self.polled, true) {
                    let token = Token { op: Op::PortsReady, index: 0, generation: 0 };
                    ring.poll(waker.as_fd(), libc::POLLIN, token.pack());
                }
            }
            (State::Falling | State::Asleep, _) => {}
        }
    }

    fn stay_awake(&mut self, ports: &mut dyn Ports) {
        if !matches!(self.state, State::Awake(_)) {
            ports.disarm();
        }
        self.state = State::Awake(0);
    }
}

impl Packets<'_> {
    /// Polls these ports from now on; `cards` is how they divide packets among workers, if they do.
    pub(crate) fn attach_cards(&mut self, mut polled: Polled, cards: Option<Arc<Toeplitz>>) {
        polled.ports.enter();
        let Steering { worker, workers, .. } = self.steering;
        let steering = Steering::of(worker, workers);
        self.steering = cards.map_or(steering.clone(), |cards| steering.with_cards(cards));
        self.engine.steer(self.steering.clone());
        self.rest = Rest::new(polled.waker);
        self.way.polled = Some(polled.ports);
    }

    /// Lets go of the ports that are polled.
    pub(crate) fn release_cards(&mut self, ring: &mut Ring) {
        if let Some(mut ports) = self.way.polled.take() {
            ports.disarm();
            // What was decided leaves.
            ports.flush();
        }
        if let Some(waker) = &self.rest.waker {
            ring.cancel(waker.as_fd());
            ring.flush();
        }
        self.rest = Rest::new(None);
    }

    /// Some bursts of each polled port.
    pub(super) fn poll(&mut self, turn: &mut Turn<'_>) {
        let Some(mut ports) = self.way.polled.take() else { return };
        self.rest.rise(&mut *ports);
        let mut any = 0;
        // Those of others first, and as many as may come: others have worked on them already.
        for _ in 0..BURSTS * (self.ports.len() + 1) {
            let cx = context(turn, &mut self.random);
            let (engine, way) = (&mut self.engine, &mut self.way);
            let count = ports.passed(&mut |frames, verdicts| {
                way.decide(engine, frames, verdicts, &cx);
            });
            any += count;
            if count < BURST {
                break;
            }
        }
        for number in 0..self.ports.len() {
            for _ in 0..BURSTS {
                let cx = context(turn, &mut self.random);
                let (engine, way) = (&mut self.engine, &mut self.way);
                let count = ports.burst(number as u16, &mut |frames, verdicts| {
                    way.decide(engine, frames, verdicts, &cx);
                });
                self.way.stats.ports[number].received.add(count as u64);
                any += count;
                if count < BURST {
                    break;
                }
            }
        }
        any += ports.relay();
        self.rest.note(any, &mut *ports, turn.ring);
        self.way.polled = Some(ports);
    }
}
