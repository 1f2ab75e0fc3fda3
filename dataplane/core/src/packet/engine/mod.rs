//! The route of a packet: parse, find its flow, decide, rewrite. Each stage goes over the whole
//! burst, so that what one packet waits for is fetched while others are worked on.

mod adopt;
mod answer;
mod begin;
mod cut;
mod errors;
mod fast;
mod fast6;
mod headed;
mod later;
mod odd;
mod retry;
mod send;
mod split;
mod whole;

pub use adopt::Adopted;
use begin::Newcomer;
use cut::Cutting;
use fast::{Burst, Look};
use odd::is_odd;
pub use retry::BackendFailure;

use alloc::sync::Arc;
use alloc::vec::Vec;

use crate::packet::counters::PacketCounters;
use crate::packet::flow::{Direction, FlowTable, Found, Handle, State, Tuple, step};
use crate::packet::fragments::Fragments;
use crate::packet::frame::Frame;
use crate::packet::held::{EndedFlow, Held};
use crate::packet::parse::{Packet, Parsed, Transport, parse, protocol, tcp_flags};
use crate::packet::pending::Pending;
use crate::packet::reason::DropReason;
use crate::packet::routes::HopCache;
use crate::packet::steer::Steering;
use crate::packet::waiting::Waiting;
use crate::{BackendAddr, Clients, EndReason, FailureCause, Snapshot, Tick};

/// Frames that are worked on together.
pub const BURST: usize = 32;

/// Cells of the flow table that are looked at in a burst.
const TURN: usize = 64;
/// ICMP errors of our own in a second.
const ERRORS_A_SECOND: u32 = 1000;

/// What becomes of a frame.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Verdict {
    /// It goes out of this port, as it stands now.
    Send(u16),
    /// It is left to the kernel, and was not touched but for a checksum that it lacked.
    Punt,
    /// It goes no further.
    Drop(DropReason),
    /// It is kept until somebody knows the station that it goes to, or what its packet's first
    /// fragment says: [`Engine::due`] has it then.
    Wait,
    /// Another worker is to decide.
    Pass(u16),
}

/// What a burst is decided by.
pub struct Context<'a> {
    /// Services, backends, next hops.
    pub snapshot: &'a Snapshot,
    /// What is remembered of clients.
    pub clients: &'a Clients,
    /// The time of the burst.
    pub now: Tick,
    /// The same in microseconds, from any origin.
    pub micros: u64,
    /// A number without pattern, another one each burst.
    pub random: u64,
}

/// The packet path of one worker.
pub struct Engine<'r> {
    flows: FlowTable<'r>,
    held: Held,
    hops: HopCache,
    pending: Pending,
    failures: Vec<BackendFailure>,
    cutting: Vec<Cutting>,
    counters: Arc<PacketCounters>,
    waiting: Waiting,
    fragments: Fragments,
    worker: usize,
    steering: Steering,
    seed: u64,
    /// Errors of our own that may still be sent, and since when: of sizes, of times to live, of those
    /// that are not there.
    errors: [(u32, Tick); 3],
    /// Flows are left whose time may be over.
    behind: bool,
    /// When what was counted is shown next.
    show_at: Tick,
    /// No new flows are let in.
    refusing: bool,
}

impl<'r> Engine<'r> {
    /// The engine of a worker with its flows; `seed` is that of the flow hash.
    #[must_use]
    pub fn new(
        flows: FlowTable<'r>,
        counters: Arc<PacketCounters>,
        steering: Steering,
        seed: u64,
    ) -> Self {
        let errors = [(ERRORS_A_SECOND, Tick(0)); 3];
        Self {
            flows,
            held: Held::default(),
            hops: HopCache::default(),
            pending: Pending::default(),
            failures: Vec::new(),
            cutting: Vec::new(),
            counters,
            waiting: Waiting::default(),
            fragments: Fragments::default(),
            worker: steering.worker.into(),
            steering,
            seed,
            errors,
            behind: false,
            show_at: Tick(0),
            refusing: false,
        }
    }

    /// Packets come otherwise from now on; the worker is the same one.
    pub fn steer(&mut self, steering: Steering) {
        self.steering = steering;
    }

    /// Its flows.
    #[must_use]
    pub fn flows(&self) -> &FlowTable<'r> {
        &self.flows
    }

    /// Flows that are open: they hold places.
    #[must_use]
    pub fn open_flows(&self) -> u64 {
        self.held.flows
    }

    /// Flows that have ended since this was asked last; of many at once some are left out.
    pub fn ended(&mut self) -> impl Iterator<Item = EndedFlow> + '_ {
        self.held.ended.drain(..)
    }

    /// Lets no new flows in from now on; those that there are go on.
    pub fn refuse(&mut self) {
        self.refusing = true;
    }

    /// The backend of a flow, while it holds a place there.
    #[must_use]
    pub fn backend_of(&self, handle: Handle) -> Option<BackendAddr> {
        self.held.backend(self.flows.flow(handle).id).map(|backend| backend.addr)
    }

    /// Shows what was counted: others are to know now.
    pub fn show(&mut self) {
        self.held.show(self.worker);
    }

    /// Decides what becomes of each of `frames`, and changes them accordingly; `verdicts` has a
    /// place for each. Ends flows whose time is over, a few each burst.
    pub fn process(
        &mut self,
        frames: &mut [Frame<'_>],
        verdicts: &mut [Verdict],
        cx: &Context<'_>,
    ) {
        for (frames, verdicts) in frames.chunks_mut(BURST).zip(verdicts.chunks_mut(BURST)) {
            self.burst(frames, verdicts, cx);
        }
        self.turn(cx);
    }

    fn burst(&mut self, frames: &mut [Frame<'_>], verdicts: &mut [Verdict], cx: &Context<'_>) {
        let mut looks = [Look::NONE; BURST];
        for (frame, look) in frames.iter().zip(&mut looks) {
            *look = self.look(frame);
            if look.hash != 0 {
                self.flows.prefetch(look.hash);
            }
        }
        for look in &mut looks[..frames.len()] {
            if look.hash != 0 {
                look.guess = self.flows.guess(look.hash);
            }
        }
        let burst = Burst::of(cx);
        // Those that do not go the fast way; nothing has happened to them.
        let mut rest = 0_u32;
        for (n, (frame, verdict)) in frames.iter_mut().zip(&mut *verdicts).enumerate() {
            match self.fast(frame, &looks[n], &burst, None, cx) {
                Some(sent) => *verdict = sent,
                None => rest |= 1 << n,
            }
        }
        let count = frames.len().min(verdicts.len()) as u64;
        self.counters.sent.add(count - u64::from(rest.count_ones()));
        if rest != 0 {
            self.rest(rest, frames, (&looks, &burst), verdicts, cx);
        }
    }

    /// The frames of a burst whose bits are set in `rest`. One that begins a flow waits for the first
    /// half of the next.
    #[inline(never)]
    fn rest(
        &mut self,
        mut rest: u32,
        frames: &mut [Frame<'_>],
        (looks, burst): (&[Look; BURST], &Burst),
        verdicts: &mut [Verdict],
        cx: &Context<'_>,
    ) {
        let mut begun: [Option<(usize, Newcomer<'_>)>; 2] = [None, None];
        let mut newest = 0;
        while rest != 0 {
            let n = rest.trailing_zeros() as usize;
            rest &= rest - 1;
            let (frame, look) = (&mut frames[n], &looks[n]);
            if let Some(sent) = self.fast6(frame, look, burst, cx) {
                verdicts[n] = sent;
                self.counters.count(sent);
                continue;
            }
            let last = newest;
            newest = 1 - last;
            let same = begun[last].as_ref().is_some_and(|(_, before)| before.hash == look.hash);
            if !same && let Some(newcomer) = self.arrive(frame, look, cx) {
                begun[newest] = Some((n, newcomer));
            }
            self.settle_one(&mut begun[last], frames, verdicts, cx);
            if begun[newest].is_none() {
                verdicts[n] = self.one(&mut frames[n], cx);
                self.counters.count(verdicts[n]);
            }
        }
        self.settle_one(&mut begun[newest], frames, verdicts, cx);
    }

    /// The second half of a packet that begins a flow.
    fn settle_one(
        &mut self,
        begun: &mut Option<(usize, Newcomer<'_>)>,
        frames: &mut [Frame<'_>],
        verdicts: &mut [Verdict],
        cx: &Context<'_>,
    ) {
        if let Some((n, newcomer)) = begun {
            let n = *n;
            verdicts[n] = self.settle(&mut frames[n], newcomer, cx);
            self.counters.count(verdicts[n]);
            *begun = None;
        }
    }

    /// A frame by itself.
    fn one(&mut self, frame: &mut Frame<'_>, cx: &Context<'_>) -> Verdict {
        let packet = match parse(frame.bytes()) {
            Err(reason) => return Verdict::Drop(reason),
            Ok(Parsed::Arp(at)) => return self.arp(frame, at, cx),
            Ok(Parsed::Other(_)) => return Verdict::Punt,
            Ok(Parsed::Ip(packet)) => packet,
        };
        if is_odd(&packet) {
            return self.odd(frame, &packet, cx);
        }
        let Some(tuple) = Tuple::of(&packet) else { return self.icmp(frame, &packet, cx) };
        let hash = self.flows.hash(&tuple);
        let found = self.flows.find(&tuple, hash);
        self.flow(frame, &packet, (&tuple, hash), found, cx)
    }

    fn flow(
        &mut self,
        frame: &mut Frame<'_>,
        packet: &Packet,
        (tuple, hash): (&Tuple, u64),
        found: Option<Found>,
        cx: &Context<'_>,
    ) -> Verdict {
        if let Some(found) = found {
            match self.goes_on(found, packet, cx) {
                Ok(State::Cut) => return self.of_cut(frame, packet, cx),
                Ok(_) => return self.pass(frame, packet, found, cx),
                Err(reason) => self.end(found.handle, reason, cx),
            }
        } else if let Some(verdict) = self.of_abandoned(frame, packet, hash, cx) {
            return verdict;
        } else if let Some(home) = self.elsewhere(tuple, cx) {
            return Verdict::Pass(home);
        }
        let newcomer = self.newcomer(*packet, tuple, hash, cx);
        self.settle(frame, &newcomer, cx)
    }

    /// The worker that has the flow of a packet, or would have, if it is another one. Ports that
    /// divide packets as this does never bring one to us; others leave it to chance.
    fn elsewhere(&self, tuple: &Tuple, cx: &Context<'_>) -> Option<u16> {
        if self.steering.workers == 1 {
            return None;
        }
        let to_vip = || cx.snapshot.is_vip(tuple.addresses.destination());
        let home = self.steering.home_of(tuple, to_vip);
        (home != self.steering.worker).then_some(home)
    }

    /// Passes a packet of a flow on, unless it says that a backend takes no connections.
    fn pass(
        &mut self,
        frame: &mut Frame<'_>,
        packet: &Packet,
        found: Found,
        cx: &Context<'_>,
    ) -> Verdict {
        if found.direction == Direction::Reply
            && let Transport::Tcp { flags, .. } = packet.transport
            && self.flows.brief(found.handle).state == State::Opening
        {
            if flags & tcp_flags::RST != 0 {
                // Anybody may claim to be the backend; it alone knows what it was sent.
                let at = usize::from(packet.l4) + 8;
                if !self.is_about(found.handle, frame.bytes(), at, 1) {
                    return Verdict::Drop(DropReason::NoFlow);
                }
                let elsewhere = self.refused(found.handle, frame, FailureCause::Refused, cx);
                if let Some(verdict) = elsewhere {
                    return verdict;
                }
            } else {
                self.answered(found.handle, cx);
            }
        }
        self.forward(frame, packet, found, cx)
    }

    /// The state of the flow that has a packet's addresses, if the packet still belongs to it; an
    /// error says how that has ended.
    fn goes_on(
        &mut self,
        found: Found,
        packet: &Packet,
        cx: &Context<'_>,
    ) -> Result<State, EndReason> {
        let Found { handle, direction } = found;
        let brief = self.flows.brief(handle);
        if brief.expires < step(cx.now) {
            return Err(over(brief.state));
        }
        if direction == Direction::Reply {
            return Ok(brief.state);
        }
        if let Transport::Tcp { flags, .. } = packet.transport {
            // The client uses its port again.
            let begins = flags & (tcp_flags::SYN | tcp_flags::ACK) == tcp_flags::SYN;
            let alone = !brief.mode.is_two_way() && brief.state == State::ClientDone;
            if begins && (matches!(brief.state, State::Closed | State::Cut) || alone) {
                return Err(EndReason::Client);
            }
            // Nobody answers there: the client has begun anew.
            if begins && brief.state > State::Answered && !self.stays(handle, cx) {
                return Err(EndReason::Backend);
            }
        }
        let generation = cx.snapshot.generation as u32;
        if brief.generation == generation {
            return Ok(brief.state);
        }
        self.flows.set_generation(handle, generation);
        // A connection is its two ends': it goes on while they wish. Datagrams move at once.
        match packet.protocol == protocol::TCP || self.stays(handle, cx) {
            true => Ok(brief.state),
            false => Err(EndReason::Backend),
        }
    }

    /// Whether the backend of a flow still takes it.
    fn stays(&self, handle: Handle, cx: &Context<'_>) -> bool {
        let flow = self.flows.flow(handle);
        let (service, backend) = (cx.snapshot.service(flow.service), self.held.backend(flow.id));
        service.zip(backend).is_some_and(|(service, backend)| service.keeps(flow.id, backend.addr))
    }

    fn end(&mut self, handle: Handle, reason: EndReason, cx: &Context<'_>) {
        let view = self.flows.view(handle);
        self.pending.end(handle);
        self.held.end(&view, reason, cx.clients, self.worker);
        self.flows.remove(handle);
    }
}

/// How a flow has ended whose time was over in `state`.
fn over(state: State) -> EndReason {
    match state {
        State::Closed | State::Reset => EndReason::Client,
        State::ClientDone | State::BackendDone => EndReason::HalfClosedTimeout,
        _ => EndReason::IdleTimeout,
    }
}

#[cfg(test)]
mod tests;
