//! VRRP version 3: of several boxes one is active, and another takes over when it is silent.
//!
//! Source: RFC 9568. A virtual router is of one family; its advertisements go to a group or, as keepalived
//! has it, to each other router by itself.

use alloc::vec::Vec;
use core::net::IpAddr;
use core::time::Duration;

use crate::Tick;
use crate::packet::checksum::{Sum, fill, pseudo_header};

/// The protocol's number in headers of IP.
pub const PROTOCOL: u8 = 112;
/// The time to live of every advertisement: none has come through a router.
pub const TTL: u8 = 255;
/// Priority of a router whose interface has the addresses by itself.
pub const OWNER: u8 = 255;
/// Most addresses in an advertisement.
const MOST: usize = 255;
/// Bytes before the addresses.
const HEAD: usize = 8;
/// The unit of intervals.
const CENTISECOND: Duration = Duration::from_millis(10);
/// The longest interval, in that unit.
const LONGEST: u16 = 0x0fff;

/// What an active router says.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Advertisement {
    /// The virtual router, 1 to 255.
    pub id: u8,
    /// Of who says it; zero is that it leaves.
    pub priority: u8,
    /// How often it says so, 10 ms to 40.95 s.
    pub interval: Duration,
    /// The addresses, all of one family.
    pub addresses: Vec<IpAddr>,
}

/// Why bytes are no advertisement that counts.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum Malformed {
    /// Fewer bytes than it says that it has.
    #[error("it is cut off")]
    Short,
    /// Another version of the protocol, like 2.
    #[error("it is of version {0}, and not of 3")]
    Version(u8),
    /// Nothing is known of other types.
    #[error("it is of type {0}, and no advertisement")]
    Type(u8),
    /// It was changed on its way, or goes from other addresses.
    #[error("its checksum is wrong")]
    Checksum,
    /// It has come through a router.
    #[error("its time to live is {0}, and not 255")]
    Distance(u8),
    /// No virtual router has this number.
    #[error("its virtual router is 0")]
    Id,
    /// It would be said without a pause.
    #[error("its interval is 0")]
    Interval,
}

impl Advertisement {
    /// Reads what came from `source` to `destination`, of one family, with this time to live.
    pub fn parse(
        bytes: &[u8],
        (source, destination): (IpAddr, IpAddr),
        ttl: u8,
    ) -> Result<Self, Malformed> {
        let (head, rest) = bytes.split_first_chunk::<HEAD>().ok_or(Malformed::Short)?;
        if ttl != TTL {
            return Err(Malformed::Distance(ttl));
        }
        match (head[0] >> 4, head[0] & 0x0f) {
            (3, 1) => {}
            (3, other) => return Err(Malformed::Type(other)),
            (other, _) => return Err(Malformed::Version(other)),
        }
        let size = if source.is_ipv4() { 4 } else { 16 };
        let length = size * usize::from(head[3]);
        let addresses = rest.get(..length).ok_or(Malformed::Short)?;
        let whole = &bytes[..HEAD + length];
        if pseudo(source, destination, whole.len()).bytes(whole).checksum() != 0 {
            return Err(Malformed::Checksum);
        }
        let units = u16::from_be_bytes([head[4], head[5]]) & LONGEST;
        match (head[1], units) {
            (0, _) => return Err(Malformed::Id),
            (_, 0) => return Err(Malformed::Interval),
            _ => {}
        }
        let address = |bytes: &[u8]| match <[u8; 4]>::try_from(bytes) {
            Ok(bytes) => IpAddr::from(bytes),
            Err(_) => IpAddr::from(<[u8; 16]>::try_from(bytes).unwrap_or_default()),
        };
        Ok(Self {
            id: head[1],
            priority: head[2],
            interval: CENTISECOND * u32::from(units),
            addresses: addresses.chunks_exact(size).map(address).collect(),
        })
    }

    /// Its bytes from `source` to `destination`; of more than 255 addresses the first.
    #[must_use]
    pub fn bytes(&self, source: IpAddr, destination: IpAddr) -> Vec<u8> {
        let addresses = &self.addresses[..self.addresses.len().min(MOST)];
        let units = units(self.interval).to_be_bytes();
        let mut bytes = Vec::with_capacity(HEAD + 16 * addresses.len());
        bytes.extend([0x31, self.id, self.priority, addresses.len() as u8]);
        bytes.extend([units[0], units[1], 0, 0]);
        for ip in addresses {
            match ip {
                IpAddr::V4(ip) => bytes.extend(ip.octets()),
                IpAddr::V6(ip) => bytes.extend(ip.octets()),
            }
        }
        let length = bytes.len();
        fill(&mut bytes, 6, pseudo(source, destination, length));
        bytes
    }
}

/// Both addresses are of one family, or nothing agrees.
fn pseudo(source: IpAddr, destination: IpAddr, length: usize) -> Sum {
    match (source, destination) {
        (IpAddr::V4(from), IpAddr::V4(to)) => {
            pseudo_header(&from.octets(), &to.octets(), PROTOCOL, length as u32)
        }
        (IpAddr::V6(from), IpAddr::V6(to)) => {
            pseudo_header(&from.octets(), &to.octets(), PROTOCOL, length as u32)
        }
        _ => Sum::ZERO,
    }
}

fn units(interval: Duration) -> u16 {
    let units = interval.as_millis().div_ceil(CENTISECOND.as_millis());
    units.clamp(1, LONGEST.into()) as u16
}

/// What a router is set to.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Settings {
    /// Priority, 1 to 254; [`OWNER`] is active at once.
    pub priority: u8,
    /// How often it speaks when it is active.
    pub interval: Duration,
    /// Whether it takes over from a router of lower priority that is active.
    pub preempts: bool,
    /// Since its start, how long it leaves such a router alone.
    pub preempt_delay: Duration,
}

/// What is to be done, in this order.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Action {
    /// The addresses are ours from now on: say so to the network.
    Take(Cause),
    /// They are no longer.
    Release(Cause),
    /// Say that we are active, with this priority.
    Advertise(u8),
}

/// Why a router becomes active, or ceases to be.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Cause {
    /// Nothing was heard of an active router.
    Silence,
    /// The active router has said that it leaves.
    Left,
    /// The active router was of lower priority.
    Preempted,
    /// It owns the addresses.
    Owner,
    /// Another router of higher priority is active.
    Outranked,
    /// It is stopped, or may not be active now.
    Stopped,
    /// This box stood still for so long that another has taken over.
    Stalled,
}

/// How a router stands.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum State {
    Stopped,
    Backup {
        /// When the active one counts as gone.
        down_at: Tick,
        /// The cause then.
        cause: Cause,
    },
    Active {
        speak_at: Tick,
    },
}

/// A virtual router of one box: RFC 9568, section 6.4.
#[derive(Debug)]
pub struct Router {
    settings: Settings,
    /// Our own address, which decides between equals.
    own: IpAddr,
    state: State,
    /// The interval of the active router.
    active_interval: Duration,
    /// From when on it takes over from others.
    preempts_at: Tick,
}

impl Router {
    /// One that is stopped; `own` is the address from which it speaks.
    #[must_use]
    pub fn new(settings: Settings, own: IpAddr) -> Self {
        let active_interval = settings.interval;
        let state = State::Stopped;
        Self { settings, own, state, active_interval, preempts_at: Tick(0) }
    }

    /// Whether the addresses are ours.
    #[must_use]
    pub fn is_active(&self) -> bool {
        matches!(self.state, State::Active { .. })
    }

    /// Whether it takes part.
    #[must_use]
    pub fn is_running(&self) -> bool {
        self.state != State::Stopped
    }

    /// When [`Router::turn`] is due; none while it is stopped.
    #[must_use]
    pub fn due(&self) -> Option<Tick> {
        match self.state {
            State::Stopped => None,
            State::Backup { down_at, .. } => Some(down_at),
            State::Active { speak_at } => Some(speak_at),
        }
    }

    /// Takes part from now on.
    pub fn start(&mut self, now: Tick) -> Vec<Action> {
        if self.is_running() {
            return Vec::new();
        }
        self.preempts_at = now.plus(self.settings.preempt_delay);
        self.active_interval = self.settings.interval;
        if self.settings.priority == OWNER {
            return self.activate(now, Cause::Owner);
        }
        self.back_up(now, Cause::Silence);
        Vec::new()
    }

    /// Goes on as the active one, as another process of this box has been until now.
    pub fn go_on(&mut self, now: Tick) -> Vec<Action> {
        self.preempts_at = now;
        self.active_interval = self.settings.interval;
        self.speak(now)
    }

    /// Takes no part any more: another may be active at once.
    pub fn stop(&mut self) -> Vec<Action> {
        let was_active = self.is_active();
        self.state = State::Stopped;
        match was_active {
            true => alloc::vec![Action::Advertise(0), Action::Release(Cause::Stopped)],
            false => Vec::new(),
        }
    }

    /// This box stood still: what it has heard is old. One that was active looks first whether another has
    /// taken over.
    pub fn resume(&mut self, now: Tick) -> Vec<Action> {
        let was_active = self.is_active();
        if self.is_running() {
            self.back_up(now, Cause::Silence);
        }
        match was_active {
            true => alloc::vec![Action::Release(Cause::Stalled)],
            false => Vec::new(),
        }
    }

    /// Is set otherwise from now on, but for the priority; who is active stays so.
    pub fn configure(&mut self, settings: &Settings) {
        let priority = self.settings.priority;
        self.settings = Settings { priority, ..settings.clone() };
    }

    /// How long this box may stand still without another one taking over.
    #[must_use]
    pub fn patience(&self) -> Duration {
        self.settings.interval * 3
    }

    /// Its priority now.
    #[must_use]
    pub fn priority(&self) -> u8 {
        self.settings.priority
    }

    /// Has another priority from now on, as what it tracks is well or not. One that is active says so at
    /// once, for others to judge.
    pub fn set_priority(&mut self, priority: u8, now: Tick) -> Vec<Action> {
        if self.settings.priority == priority {
            return Vec::new();
        }
        self.settings.priority = priority;
        match self.state {
            State::Active { .. } => self.speak(now),
            State::Backup { .. } | State::Stopped => Vec::new(),
        }
    }

    /// Does what is due.
    pub fn turn(&mut self, now: Tick) -> Vec<Action> {
        match self.state {
            State::Backup { down_at, cause } if down_at <= now => self.activate(now, cause),
            State::Active { speak_at } if speak_at <= now => self.speak(now),
            _ => Vec::new(),
        }
    }

    /// Hears what the router at `from` says of the same virtual router.
    pub fn hear(&mut self, heard: &Advertisement, from: IpAddr, now: Tick) -> Vec<Action> {
        match self.state {
            State::Stopped => {}
            State::Backup { .. } if heard.priority == 0 => {
                let down_at = now.plus(self.skew());
                self.state = State::Backup { down_at, cause: Cause::Left };
            }
            State::Backup { down_at, .. } => {
                let preempts = self.settings.preempts && self.preempts_at <= now;
                if preempts && heard.priority < self.settings.priority {
                    // It is not heard: its time runs out.
                    self.state = State::Backup { down_at, cause: Cause::Preempted };
                } else {
                    self.active_interval = heard.interval;
                    self.back_up(now, Cause::Silence);
                }
            }
            State::Active { .. } if heard.priority == 0 => return self.speak(now),
            State::Active { .. } => {
                let (theirs, ours) = ((heard.priority, from), (self.settings.priority, self.own));
                if theirs > ours {
                    self.active_interval = heard.interval;
                    self.back_up(now, Cause::Silence);
                    return alloc::vec![Action::Release(Cause::Outranked)];
                }
                // It and the switches on its way are told at once who is active.
                return self.speak(now);
            }
        }
        Vec::new()
    }

    fn activate(&mut self, now: Tick, cause: Cause) -> Vec<Action> {
        let mut actions = alloc::vec![Action::Take(cause)];
        actions.extend(self.speak(now));
        actions
    }

    fn speak(&mut self, now: Tick) -> Vec<Action> {
        self.state = State::Active { speak_at: now.plus(self.settings.interval) };
        alloc::vec![Action::Advertise(self.settings.priority)]
    }

    fn back_up(&mut self, now: Tick, cause: Cause) {
        let down_at = now.plus(self.active_interval * 3 + self.skew());
        self.state = State::Backup { down_at, cause };
    }

    /// The lower the priority, the longer a router waits, so that the highest is first.
    fn skew(&self) -> Duration {
        self.active_interval * (256 - u32::from(self.settings.priority)) / 256
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn who_goes_on_takes_nothing_and_speaks_at_once() {
        let settings = Settings {
            priority: 100,
            interval: Duration::from_millis(200),
            preempts: true,
            preempt_delay: Duration::from_secs(60),
        };
        let now = Tick(5_000_000_000);
        let mut router = Router::new(settings, ip(1));
        assert_eq!(router.go_on(now), [Action::Advertise(100)]);
        assert!(router.is_active() && router.start(now).is_empty());
        // A box of higher priority still decides.
        let actions = router.hear(&said(150), ip(2), now);
        assert_eq!(actions, [Action::Release(Cause::Outranked)]);
    }

    const GROUP: IpAddr = IpAddr::V4(core::net::Ipv4Addr::new(224, 0, 0, 18));

    fn ip(n: u8) -> IpAddr {
        [192, 0, 2, n].into()
    }

    fn said(priority: u8) -> Advertisement {
        let interval = Duration::from_millis(200);
        Advertisement { id: 51, priority, interval, addresses: alloc::vec![ip(100)] }
    }

    /// Made by hand from RFC 9568, section 5: version 3, type 1, router 51, priority 100, one address,
    /// one second, and the sum of all of it.
    const PACKET: [u8; 12] = [0x31, 51, 100, 1, 0, 100, 0, 0, 192, 0, 2, 100];

    #[test]
    fn bytes_are_as_the_rfc_has_them() {
        let said = Advertisement { interval: Duration::from_secs(1), ..said(100) };
        let bytes = said.bytes(ip(1), GROUP);
        assert_eq!((&bytes[..6], &bytes[8..]), (&PACKET[..6], &PACKET[8..]));
        // 3133+6401+0064+c000+0264, c000+0201, e000+0012, 0070, 000c: folded, turned round.
        let words = [
            0x3133_u32, 0x6401, 0x0064, 0xc000, 0x0264, 0xc000, 0x0201, 0xe000, 0x0012, 0x0070,
            0x000c,
        ];
        let sum: u32 = words.iter().sum();
        let folded = (sum & 0xffff) + (sum >> 16);
        assert_eq!(u32::from(u16::from_be_bytes([bytes[6], bytes[7]])), !folded & 0xffff);
        assert_eq!(Advertisement::parse(&bytes, (ip(1), GROUP), 255), Ok(said));
    }

    #[test]
    fn what_does_not_count_is_told_apart() {
        let good = said(100).bytes(ip(1), GROUP);
        let parse = |bytes: &[u8], ttl| Advertisement::parse(bytes, (ip(1), GROUP), ttl);
        let with = |at: usize, byte: u8| {
            let mut bytes = good.clone();
            bytes[at] = byte;
            fill(&mut bytes, 6, pseudo(ip(1), GROUP, good.len()));
            parse(&bytes, 255)
        };
        assert_eq!(parse(&good[..7], 255), Err(Malformed::Short));
        assert_eq!(parse(&good[..11], 255), Err(Malformed::Short));
        assert_eq!(parse(&good, 254), Err(Malformed::Distance(254)));
        assert_eq!(with(0, 0x21), Err(Malformed::Version(2)));
        assert_eq!(with(0, 0x32), Err(Malformed::Type(2)));
        assert_eq!(with(1, 0), Err(Malformed::Id));
        assert_eq!(with(5, 0), Err(Malformed::Interval));
        let mut spoiled = good.clone();
        spoiled[2] ^= 1;
        assert_eq!(parse(&spoiled, 255), Err(Malformed::Checksum));
        let other = Advertisement::parse(&good, (ip(2), GROUP), 255);
        assert_eq!(other, Err(Malformed::Checksum), "it says from where it comes");
        // What is behind it is no part of it.
        assert!(parse(&[&good[..], &[0; 6]].concat(), 255).is_ok());
    }

    proptest! {
        #[test]
        fn what_is_written_is_read(
            id in 1_u8.., priority: u8, units in 1_u16..=LONGEST, v6: bool,
            octets in prop::collection::vec(any::<[u8; 16]>(), 0..9),
        ) {
            let of = |octets: &[u8; 16]| match v6 {
                true => IpAddr::from(*octets),
                false => IpAddr::from([octets[0], octets[1], octets[2], octets[3]]),
            };
            let addresses = octets.iter().map(of).collect();
            let interval = CENTISECOND * u32::from(units);
            let said = Advertisement { id, priority, interval, addresses };
            let ends = (of(&[7; 16]), of(&[9; 16]));
            prop_assert_eq!(Advertisement::parse(&said.bytes(ends.0, ends.1), ends, 255), Ok(said));
        }

        #[test]
        fn any_bytes_are_answered(bytes: Vec<u8>, ttl: u8) {
            let _ = Advertisement::parse(&bytes, (ip(1), GROUP), ttl);
        }
    }

    fn settings(priority: u8) -> Settings {
        let interval = Duration::from_millis(200);
        Settings { priority, interval, preempts: true, preempt_delay: Duration::ZERO }
    }

    #[test]
    fn the_first_one_waits_and_is_active() {
        let mut router = Router::new(settings(100), ip(1));
        assert!(router.start(Tick(0)).is_empty() && router.start(Tick(5)).is_empty());
        // Three intervals, and 156/256 of one.
        assert_eq!(router.due(), Some(Tick(722)));
        assert!(router.turn(Tick(721)).is_empty());
        let taken = [Action::Take(Cause::Silence), Action::Advertise(100)];
        assert_eq!(router.turn(Tick(722)), taken);
        assert_eq!(router.due(), Some(Tick(922)));
        assert_eq!(router.turn(Tick(922)), [Action::Advertise(100)]);
        assert_eq!(router.stop(), [Action::Advertise(0), Action::Release(Cause::Stopped)]);
        assert!(router.stop().is_empty() && router.due().is_none());
        let mut owner = Router::new(settings(OWNER), ip(1));
        let taken = [Action::Take(Cause::Owner), Action::Advertise(OWNER)];
        assert_eq!(owner.start(Tick(0)), taken);
    }

    #[test]
    fn who_is_heard_decides() {
        let backup = |preempts: bool, delay: u64| {
            let preempt_delay = Duration::from_millis(delay);
            let settings = Settings { preempts, preempt_delay, ..settings(100) };
            let mut router = Router::new(settings, ip(1));
            router.start(Tick(0));
            router
        };
        // It has the interval of the active one.
        let mut router = backup(true, 0);
        let slow = Advertisement { interval: Duration::from_secs(1), ..said(200) };
        assert!(router.hear(&slow, ip(2), Tick(100)).is_empty());
        assert_eq!(router.due(), Some(Tick(100 + 3000 + 610)));
        // One that leaves is followed after the skew alone.
        assert!(router.hear(&said(0), ip(2), Tick(200)).is_empty());
        assert_eq!(router.turn(Tick(200 + 610))[0], Action::Take(Cause::Left));
        // A lower one is not heard, unless it is to be left alone.
        let mut router = backup(true, 0);
        router.hear(&said(50), ip(2), Tick(700));
        assert_eq!(router.turn(Tick(722))[0], Action::Take(Cause::Preempted));
        let mut router = backup(false, 0);
        router.hear(&said(50), ip(2), Tick(700));
        assert!(router.turn(Tick(722)).is_empty());
        let mut router = backup(true, 1000);
        router.hear(&said(50), ip(2), Tick(700));
        assert!(router.turn(Tick(722)).is_empty());
        router.hear(&said(50), ip(2), Tick(1100));
        assert_eq!(router.due(), Some(Tick(1422)), "the time of what was heard last runs out");
        assert_eq!(router.turn(Tick(1422))[0], Action::Take(Cause::Preempted));
        // Of two that are active, the higher one stays; of equals that of the higher address.
        for (priority, from, stays) in
            [(101, 2, false), (99, 2, true), (100, 2, false), (100, 0, true), (0, 2, true)]
        {
            router.state = State::Active { speak_at: Tick(9000) };
            let got = router.hear(&said(priority), ip(from), Tick(8000));
            let want = match stays {
                true => Action::Advertise(100),
                false => Action::Release(Cause::Outranked),
            };
            assert_eq!((got, router.is_active()), (alloc::vec![want], stays), "{priority} {from}");
        }
        // Who stood still while he was active looks first.
        let mut frozen = Router::new(settings(200), ip(1));
        frozen.start(Tick(0));
        frozen.turn(Tick(9_000));
        assert!(frozen.is_active());
        assert_eq!(frozen.resume(Tick(20_000)), [Action::Release(Cause::Stalled)]);
        assert!(frozen.turn(Tick(20_643)).is_empty());
        assert_eq!(frozen.turn(Tick(20_644))[0], Action::Take(Cause::Silence));
        // What is tracked decides as well.
        router.state = State::Active { speak_at: Tick(9000) };
        assert_eq!(router.set_priority(80, Tick(8000)), [Action::Advertise(80)]);
        assert!(router.set_priority(80, Tick(8000)).is_empty());
    }

    proptest! {
        /// Three boxes on a segment that loses what it likes for a while: when it is well again, one
        /// is active, the best of those that run.
        #[test]
        fn one_is_active_in_the_end(
            priorities in prop::array::uniform3(1_u8..=254),
            losses in prop::collection::vec(0_u8..8, 0..400),
            stops: bool,
        ) {
            let mut routers: Vec<Router> = (0..3)
                .map(|n| Router::new(settings(priorities[n]), ip(n as u8 + 1)))
                .collect();
            for router in &mut routers {
                router.start(Tick(0));
            }
            let mut losses = losses.into_iter();
            for at in (0..20_000).step_by(5) {
                let now = Tick(at);
                let mut spoken = Vec::new();
                for (n, router) in routers.iter_mut().enumerate() {
                    let mut actions = router.turn(now);
                    if stops && at == 10_000 && n == 0 {
                        actions.extend(router.stop());
                    }
                    spoken.extend(actions.iter().filter_map(|action| match action {
                        Action::Advertise(priority) => Some((n, *priority)),
                        _ => None,
                    }));
                }
                // Answers may be answered, which ends: of two, one gives way.
                let mut rounds = 0;
                while let Some((n, priority)) = spoken.pop() {
                    rounds += 1;
                    prop_assert!(rounds < 50);
                    let lost = losses.next().filter(|_| at < 8_000).unwrap_or(0);
                    for m in (0..3).filter(|m| *m != n && lost & (1 << m) == 0) {
                        let heard = said(priority);
                        for action in routers[m].hear(&heard, ip(n as u8 + 1), now) {
                            if let Action::Advertise(priority) = action {
                                spoken.push((m, priority));
                            }
                        }
                    }
                }
            }
            let best = (0..3).filter(|n| !stops || *n != 0).max_by_key(|n| (priorities[*n], *n));
            let active: Vec<usize> = (0..3).filter(|n| routers[*n].is_active()).collect();
            prop_assert_eq!(active, Vec::from_iter(best));
        }
    }
}
