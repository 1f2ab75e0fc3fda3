//! The packet path on this machine's interfaces: frames from rings that are shared with the kernel,
//! through the engine of `core`, and out again.
//!
//! io_uring says when frames are there (a poll) and tells the kernel that frames are to go (an empty
//! send), on the worker's one ring; as long as frames come, nothing waits.

mod capture;
mod listing;
mod passing;
mod polling;
mod port;
mod program;
mod sending;
mod way;

use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::sync::Arc;
use std::sync::atomic::Ordering::Relaxed;
use std::time::Duration;

use crossbeam_channel::Sender as Reply;
use fairway_core::packet::flow::{FlowTable, Shape};
use fairway_core::packet::{
    Adopted, BURST, Context, EndedFlow, Engine, Frame, Segments, Steering, TransportChecksum,
    protocol,
};
use fairway_core::{BackendId, EndReason, Snapshot, Tick};

pub use self::capture::{Capture, CaptureFilter, Captured};
use self::listing::Listing;
pub use self::passing::Inboxes;
pub use self::polling::Polled;
use self::polling::Rest;
pub use self::port::{PacketPort, PortControl, PortError, open_port};
pub use self::sending::send_frames;
use self::way::{Way, pass};
use crate::SetupError;
use crate::report::{
    Carried, ConnectionFilter, ConnectionRecord, Event, OpenFlow, PacketStats, Shared,
};
use crate::session::{Heaviest, note_talker};
use crate::sys::{After, HEADROOM, Receiver, Region, Ring, Sender, Span};
use crate::token::{Op, Token};

/// Bursts of a port that are worked on before others have their turn.
const BURSTS: usize = 8;
/// Bytes of a frame of our own, and of a segment, at most: jumbo frames with two tags.
const LARGEST: usize = 9216 + 22;
/// Frames of other workers that are taken before others have their turn.
const PASSED: usize = 256;
/// How soon the kernel is told again of what it could not send.
const AGAIN: Duration = Duration::from_millis(1);
/// Bytes of a place for one.
const PLACE: usize = HEADROOM + LARGEST;

/// What a worker's packet path is made with.
#[derive(Debug)]
pub struct PacketSetup {
    /// Flows that it has room for.
    pub flows: Shape,
    /// Keys of the flow table: two random numbers.
    pub seeds: [u64; 2],
    /// Memory for the flows, of [`flow_memory`](crate::flow_memory).
    pub memory: OwnedFd,
    /// Its place among the workers.
    pub steering: Steering,
    /// What it shows of itself.
    pub stats: Arc<PacketStats>,
    /// By which workers pass frames to each other.
    pub inboxes: Arc<Inboxes>,
}

impl PacketSetup {
    /// Memory for the flows.
    pub(crate) fn region(&self) -> io::Result<Region> {
        Region::shared(self.memory.as_fd())
    }
}

/// Flows that a process before this one has left.
#[derive(Debug, Clone)]
pub struct LeftFlows {
    /// The memory of each of its workers.
    pub memory: Arc<Vec<OwnedFd>>,
    /// Packets that came before then were carried there: nanoseconds since 1970.
    pub until: u64,
    /// Services and backends, under the numbers that they had there.
    pub snapshot: Arc<Snapshot>,
}

/// Where the packet path of a worker is in its life.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Stage {
    /// What comes is another process's, or nobody's.
    Early,
    /// What comes waits.
    Holding,
    /// Packets are carried.
    Carrying,
}

/// One interface, as a worker has it.
struct Port {
    receiver: Receiver,
    /// A poll is under way.
    polled: bool,
    /// Frames may be there.
    ready: bool,
}

/// A worker's packets.
pub(crate) struct Packets<'r> {
    engine: Engine<'r>,
    /// By their number.
    ports: Vec<Option<Port>>,
    /// Places for segments and for frames of our own.
    scratch: Box<[u8]>,
    random: u64,
    listings: Vec<Listing>,
    steering: Steering,
    /// Frames of other workers may be there, and a poll for them is under way.
    passed: bool,
    passed_polled: bool,
    rest: Rest,
    way: Way,
    stage: Stage,
    /// The frames that are this process's.
    span: Span,
}

/// What a turn of the packet path needs of its worker.
pub(crate) struct Turn<'a> {
    pub(crate) ring: &'a mut Ring,
    pub(crate) snapshot: &'a Snapshot,
    pub(crate) shared: &'a Shared,
    pub(crate) talkers: &'a mut Heaviest,
    pub(crate) now: Tick,
}

impl<'r> Packets<'r> {
    /// The packet path of a worker, whose flows lie in `region`.
    pub(crate) fn new(
        setup: PacketSetup,
        region: &'r mut Region,
        shared: &Shared,
    ) -> Result<Self, SetupError> {
        let PacketSetup { flows, seeds, steering, stats, inboxes, .. } = setup;
        stats.room.store(u64::from(flows.ipv4) + u64::from(flows.ipv6), Relaxed);
        let flows = FlowTable::open(region.bytes(), flows, seeds, false)
            .map_err(|error| SetupError::Resources(io::Error::other(error)))?;
        let counters = Arc::clone(&stats.counters);
        let worker = steering.worker;
        let engine = Engine::new(flows, counters, steering.clone(), shared.settings.hash_seed);
        let count = stats.ports.len();
        Ok(Self {
            engine,
            ports: (0..count).map(|_| None).collect(),
            scratch: vec![0; BURST * PLACE].into(),
            random: 0x9e37_79b9_7f4a_7c15 ^ u64::from(worker),
            listings: Vec::new(),
            steering,
            passed: false,
            passed_polled: false,
            rest: Rest::new(None),
            way: Way {
                polled: None,
                senders: (0..count).map(|_| None).collect(),
                inboxes,
                stats,
                captures: Vec::new(),
                worker,
            },
            stage: Stage::Early,
            span: Span::NEVER,
        })
    }

    /// Takes an interface over, in place of the one that had its number.
    pub(crate) fn attach(&mut self, port: PacketPort, ring: &mut Ring) {
        let PacketPort { number, mut receiver, sender } = port;
        receiver.set_span(self.span);
        self.detach(number, ring);
        let place = usize::from(number);
        if place < self.ports.len() {
            self.ports[place] = Some(Port { receiver, polled: false, ready: true });
            self.way.senders[place] = Some(sender);
        }
    }

    /// Lets go of an interface.
    pub(crate) fn detach(&mut self, number: u16, ring: &mut Ring) {
        let place = usize::from(number);
        if let Some(port) = self.ports.get_mut(place).and_then(Option::take) {
            ring.cancel(port.receiver.as_fd());
            ring.flush();
        }
        if let Some(sender) = self.way.senders.get_mut(place) {
            *sender = None;
        }
    }

    /// Has what comes wait, until it is said from when on it is ours.
    pub(crate) fn hold(&mut self) {
        self.stage = Stage::Holding;
    }

    /// Carries packets, those that come and those that wait; first of all takes over the flows that were
    /// left, if some were.
    pub(crate) fn begin(&mut self, left: Option<&LeftFlows>, turn: &Turn<'_>) -> Adopted {
        let mut all = Adopted::default();
        for memory in left.iter().flat_map(|left| left.memory.iter()) {
            // What cannot be read is as if it were not there: its flows begin anew.
            let Ok(mut region) = Region::copy(memory.as_fd()) else { continue };
            let Some(table) = FlowTable::left(region.bytes()) else { continue };
            let snapshot = left.map_or(turn.snapshot, |left| &left.snapshot);
            let cx = context_in(snapshot, turn.shared, turn.now, &mut self.random);
            let adopted = self.engine.adopt(&table, &cx);
            all.taken += adopted.taken;
            all.dropped += adopted.dropped;
        }
        self.stage = Stage::Carrying;
        self.set_span(Span { from: left.map_or(0, |left| left.until), ..Span::EVER });
        all
    }

    /// Carries what came before `until`, nanoseconds since 1970, and nothing from then on: that waits for
    /// another process, or for [`Self::go_on`]. What other workers pass on is carried until the `last` time.
    pub(crate) fn end(&mut self, until: u64, last: bool, mut turn: Turn<'_>) {
        self.set_span(Span { from: self.span.from, until });
        for number in 0..self.ports.len() {
            while self.ports[number].as_ref().is_some_and(|port| port.ready) {
                self.receive(number, &mut turn);
            }
        }
        self.passed = true;
        while self.passed {
            self.take_passed(&turn);
        }
        self.tell(&mut turn);
        turn.ring.flush();
        self.engine.show();
        if last {
            self.stage = Stage::Holding;
        }
    }

    /// Carries packets again.
    pub(crate) fn go_on(&mut self) {
        self.stage = Stage::Carrying;
        self.set_span(Span { from: self.span.from, ..Span::EVER });
    }

    fn set_span(&mut self, span: Span) {
        self.span = span;
        for port in self.ports.iter_mut().flatten() {
            port.receiver.set_span(span);
            // What waits is looked at.
            port.ready = true;
        }
    }

    /// Copies frames for somebody.
    pub(crate) fn capture(&mut self, capture: Capture) {
        self.way.captures.push(capture);
    }

    /// Lets no new flows in.
    pub(crate) fn refuse(&mut self) {
        self.engine.refuse();
    }

    /// Lists flows, a part each turn.
    pub(crate) fn list(&mut self, filter: ConnectionFilter, reply: Reply<Vec<OpenFlow>>) {
        self.listings.push(Listing::new(filter, reply));
    }

    /// Ends the flows on `backends`, some each turn.
    pub(crate) fn cut(&mut self, backends: Vec<BackendId>, reason: EndReason) {
        self.engine.cut(backends, reason);
    }

    /// A request about a port has completed.
    pub(crate) fn complete(&mut self, token: Token, failed: bool) {
        let place = token.index as usize;
        match token.op {
            Op::FramesPassed => {
                (self.passed, self.passed_polled) = (true, false);
            }
            Op::PortsReady => self.rest.woken(),
            Op::FramesReady => {
                if let Some(Some(port)) = self.ports.get_mut(place) {
                    (port.polled, port.ready) = (false, true);
                    port.receiver.clear_error();
                }
            }
            _ if failed => {
                if let Some(stats) = self.way.stats.ports.get(place) {
                    stats.send_failures.inc();
                }
                if let Some(Some(sender)) = self.way.senders.get_mut(place) {
                    sender.again = true;
                }
            }
            _ => {}
        }
    }

    /// Works on what has come and on what is due; tells the kernel of what is to go.
    pub(crate) fn turn(&mut self, mut turn: Turn<'_>) {
        if self.stage == Stage::Holding {
            return;
        }
        for number in 0..self.ports.len() {
            self.receive(number, &mut turn);
        }
        if self.stage == Stage::Early {
            return self.poll_ports(&mut turn);
        }
        self.poll(&mut turn);
        self.take_passed(&turn);
        self.tend(&turn);
        self.way.polled.iter_mut().for_each(|ports| ports.flush());
        self.note_ended(&mut turn);
        let Turn { snapshot, now, .. } = turn;
        self.listings.retain_mut(|listing| !listing.go_on(&self.engine, snapshot, now));
        self.poll_ports(&mut turn);
        if !self.passed_polled && self.steering.workers > 1 {
            self.passed_polled = true;
            let token = Token { op: Op::FramesPassed, index: 0, generation: 0 };
            let wake = self.way.inboxes.wake(self.steering.worker);
            turn.ring.poll(wake, libc::POLLIN, token.pack());
        }
        self.tell(&mut turn);
        self.way.stats.flows.store(self.engine.flows().len() as u64, Relaxed);
        self.way.stats.open.store(self.engine.open_flows(), Relaxed);
    }

    /// Has the kernel say when frames come by ports that have none.
    fn poll_ports(&mut self, turn: &mut Turn<'_>) {
        for (index, port) in self.ports.iter_mut().enumerate() {
            let Some(port) = port else { continue };
            if !port.ready && !port.polled {
                port.polled = true;
                let token = Token { op: Op::FramesReady, index: index as u32, generation: 0 };
                turn.ring.poll(port.receiver.as_fd(), libc::POLLIN, token.pack());
            }
        }
    }

    /// How long nothing is to be done unless a frame comes; none is for ever.
    pub(crate) fn sleep(&self, now: Tick) -> Option<Duration> {
        if self.stage == Stage::Holding {
            return None;
        }
        if self.passed
            || !self.listings.is_empty()
            || self.ports.iter().flatten().any(|port| port.ready)
        {
            return Some(Duration::ZERO);
        }
        let again = self.way.senders.iter().flatten().any(|sender| sender.again);
        let poll = self.way.polled.as_ref().map(|_| self.rest.sleep());
        self.engine.sleep(now).into_iter().chain(again.then_some(AGAIN)).chain(poll).min()
    }

    /// Notes what the kernel, or a card, has counted.
    pub(crate) fn gather(&mut self) {
        if let Some(ports) = &mut self.way.polled {
            for (number, stats) in (0..).zip(&self.way.stats.ports) {
                let counts = ports.counts(number);
                stats.sent.add(counts.sent);
                stats.full.add(counts.full);
                stats.cut.add(counts.cut);
                stats.lost.add(counts.without_memory);
                self.way.stats.unpassed.add(counts.unpassed);
            }
        }
        for (port, stats) in self.ports.iter_mut().zip(&self.way.stats.ports) {
            if let Some(port) = port {
                stats.lost.add(port.receiver.lost());
                stats.cut.add(std::mem::take(&mut port.receiver.cut));
            }
        }
    }

    /// Counts and logs the flows that have ended.
    fn note_ended(&mut self, turn: &mut Turn<'_>) {
        for EndedFlow { view, service, backend, reason } in self.engine.ended() {
            let (client, port) = (view.flow.client, view.flow.client.port());
            note_talker(turn.talkers, view.flow.service, client, view.bytes);
            let in_order = match view.flow.protocol {
                // Who answers past us finishes unseen.
                protocol::TCP if !view.flow.mode.is_two_way() => {
                    matches!(reason, EndReason::Client | EndReason::HalfClosedTimeout)
                }
                protocol::TCP => matches!(reason, EndReason::Client | EndReason::Backend),
                _ => reason == EndReason::IdleTimeout,
            };
            turn.shared.connection_ended(in_order, port.into(), || ConnectionRecord {
                service,
                client,
                vip: view.flow.vip,
                backend: Some(backend),
                reason,
                attempts: None,
                carried: Carried::Packets(view.bytes),
                connect: None,
                first_byte: None,
                duration: turn.now.since(view.began),
            });
        }
    }

    /// Some bursts of a port.
    fn receive(&mut self, number: usize, turn: &mut Turn<'_>) {
        for _ in 0..BURSTS {
            if self.way.senders.iter().flatten().any(Sender::is_filling) {
                self.tell(turn);
                turn.ring.flush();
            }
            let Some(port) = self.ports[number].as_mut().filter(|port| port.ready) else { return };
            let mut frames = std::array::from_fn(|_| Frame::empty());
            let (count, after) = port.receiver.take(&mut frames);
            let frames = &mut frames[..count];
            frames.iter_mut().for_each(|frame| frame.port = number as u16);
            if count > 0 {
                let cx = context(turn, &mut self.random);
                pass(&mut self.engine, &mut self.way, frames, &cx);
                self.way.stats.ports[number].received.add(count as u64);
            }
            port.receiver.give_back();
            match after {
                After::More => {}
                After::Large => self.receive_large(number, turn),
                After::Nothing => {
                    port.ready = false;
                    return;
                }
            }
        }
    }

    /// A frame that is larger than a slot: a super-packet as a rule.
    fn receive_large(&mut self, number: usize, turn: &mut Turn<'_>) {
        let Some(port) = &mut self.ports[number] else { return };
        let Some(large) = port.receiver.large() else { return };
        let all = Arc::clone(&self.way.stats);
        let stats = &all.ports[number];
        stats.received.inc();
        let Some(place) = self.scratch.first_chunk_mut::<PLACE>() else { return };
        let cx = context(turn, &mut self.random);
        let Some(payload) = large.offloads.segment() else {
            // Larger than the interface's frames were when it was opened.
            let end = HEADROOM + large.frame.len();
            if end > place.len() {
                stats.cut.inc();
                return;
            }
            place[HEADROOM..end].copy_from_slice(large.frame);
            let mut frame = Frame::new(place, HEADROOM, end);
            (frame.port, frame.tag) = (number as u16, large.tag);
            if large.offloads.is_partial() {
                frame.checksum = TransportChecksum::Partial;
            }
            let frames = std::slice::from_mut(&mut frame);
            return pass(&mut self.engine, &mut self.way, frames, &cx);
        };
        // Polled ports have their own memory, whose frames are one packet each.
        if self.way.polled.is_none() && large.offloads.are_of(large.frame) {
            let end = large.frame.len();
            let mut frame = Frame::new(large.frame, 0, end);
            (frame.port, frame.tag) = (number as u16, large.tag);
            frame.checksum = TransportChecksum::Partial;
            if let Some(port) = self.way.decide_whole(&mut self.engine, &mut frame, payload, &cx) {
                // What was before it leaves before it.
                if tell(&mut self.way, port, turn.ring) {
                    turn.ring.flush();
                }
                return self.way.send_whole(port, &frame, large.offloads, place);
            }
        }
        let Some(mut segments) = Segments::of(large.frame, payload) else {
            stats.cut.inc();
            return;
        };
        loop {
            let mut frames: [Frame<'_>; BURST] = std::array::from_fn(|_| Frame::empty());
            let mut count = 0;
            for place in self.scratch.chunks_exact_mut(PLACE) {
                let Some(length) = segments.next(&mut place[HEADROOM..]) else { break };
                let mut frame = Frame::new(place, HEADROOM, HEADROOM + length);
                (frame.port, frame.tag) = (number as u16, large.tag);
                frame.checksum = TransportChecksum::Partial;
                frames[count] = frame;
                count += 1;
            }
            if count == 0 {
                return;
            }
            stats.segments.add(count as u64);
            let frames = &mut frames[..count];
            pass(&mut self.engine, &mut self.way, frames, &cx);
        }
    }

    /// What other workers have passed on.
    fn take_passed(&mut self, turn: &Turn<'_>) {
        if !std::mem::take(&mut self.passed) {
            return;
        }
        self.way.inboxes.heard(self.steering.worker);
        for _ in 0..PASSED {
            let mut frame = Frame::new(&mut self.scratch[..PLACE], HEADROOM, HEADROOM);
            if !self.way.inboxes.take(self.steering.worker, &mut frame) {
                return;
            }
            let cx = context(turn, &mut self.random);
            pass(&mut self.engine, &mut self.way, std::slice::from_mut(&mut frame), &cx);
        }
        self.passed = true;
    }

    /// What is due without a frame.
    fn tend(&mut self, turn: &Turn<'_>) {
        let cx = context(turn, &mut self.random);
        self.engine.process(&mut [], &mut [], &cx);
        loop {
            let mut frame = Frame::new(&mut self.scratch[..PLACE], HEADROOM, HEADROOM);
            let Some(verdict) = self.engine.due(&mut frame, &cx) else { break };
            self.way.copy(None, &frame, verdict);
            self.way.carry_out(&frame, verdict);
        }
        for failure in self.engine.failures() {
            turn.shared.backend_failed(
                failure.service,
                failure.backend,
                failure.cause,
                failure.streak,
            );
        }
        for unresolved in self.engine.unresolved() {
            turn.shared.send(Event::Unresolved(unresolved));
        }
    }

    /// Tells the kernel of frames that are to go.
    fn tell(&mut self, turn: &mut Turn<'_>) {
        for port in 0..self.way.senders.len() {
            tell(&mut self.way, port, turn.ring);
        }
    }
}

/// Tells the kernel of the frames that are to go by a port, if there are some.
fn tell(way: &mut Way, port: usize, ring: &mut Ring) -> bool {
    let waits = |sender: &&mut Sender| sender.queued > 0 || sender.again;
    let sender = way.senders.get_mut(port).and_then(Option::as_mut).filter(waits);
    let Some(sender) = sender else { return false };
    way.stats.ports[port].sent.add(std::mem::take(&mut sender.queued) as u64);
    sender.again = false;
    let token = Token { op: Op::FramesSent, index: port as u32, generation: 0 };
    ring.tell(sender.as_fd(), token.pack());
    true
}

fn context<'a>(turn: &Turn<'a>, random: &mut u64) -> Context<'a> {
    context_in(turn.snapshot, turn.shared, turn.now, random)
}

fn context_in<'a>(
    snapshot: &'a Snapshot,
    shared: &'a Shared,
    now: Tick,
    random: &mut u64,
) -> Context<'a> {
    // xorshift64: no secret hangs on it.
    *random ^= *random << 13;
    *random ^= *random >> 7;
    *random ^= *random << 17;
    let micros = shared.clock.micros();
    Context { snapshot, clients: &shared.clients, now, micros, random: *random }
}
