//! BFD: whether the station at the other end of a way still hears and speaks, within a fraction of a second.
//!
//! Source: RFC 5880, asynchronous mode without echo and authentication; RFC 5881 for one hop, RFC 5883 for
//! several.

use core::time::Duration;

use crate::Tick;

/// The port of control packets over one hop (RFC 5881).
pub const PORT: u16 = 3784;
/// The same over several (RFC 5883).
pub const MULTIHOP_PORT: u16 = 4784;
/// Bytes of a packet without authentication.
pub const LENGTH: usize = 24;
/// How often a session speaks that is not up, at most (section 6.8.3).
const SLOW: Duration = Duration::from_secs(1);

/// How a session stands.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum State {
    /// Somebody wants it down.
    AdminDown,
    /// Nothing is heard.
    Down,
    /// Something is heard; whether we are is not known.
    Init,
    /// Both hear each other.
    Up,
}

/// Why a session went down last (section 4.1).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Diagnostic {
    /// It has not.
    None,
    /// Nothing was heard for too long.
    Expired,
    /// The other end says that it is down.
    NeighborDown,
    /// Somebody wants it down.
    AdminDown,
    /// Another reason, by its number.
    Other(u8),
}

impl Diagnostic {
    fn of(number: u8) -> Self {
        match number {
            0 => Self::None,
            1 => Self::Expired,
            3 => Self::NeighborDown,
            7 => Self::AdminDown,
            other => Self::Other(other),
        }
    }

    fn number(self) -> u8 {
        match self {
            Self::None => 0,
            Self::Expired => 1,
            Self::NeighborDown => 3,
            Self::AdminDown => 7,
            Self::Other(number) => number & 0x1f,
        }
    }
}

/// A control packet.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Packet {
    /// Why the sender's session went down last.
    pub diagnostic: Diagnostic,
    /// The sender's state.
    pub state: State,
    /// The sender wants an answer at once.
    pub poll: bool,
    /// This is that answer.
    pub last: bool,
    /// The sender's session goes on while its control plane starts anew.
    pub independent: bool,
    /// The sender speaks only when it is asked.
    pub demand: bool,
    /// Packets that the receiver may miss in a row.
    pub multiplier: u8,
    /// The sender's number of the session, not zero.
    pub mine: u32,
    /// The receiver's, if the sender knows it.
    pub yours: u32,
    /// How often the sender would speak, at most.
    pub min_tx: Duration,
    /// How often it can hear, at most; zero is never.
    pub min_rx: Duration,
    /// How often it can return echoes, at most; zero is never.
    pub min_echo_rx: Duration,
}

/// Why bytes are no packet that counts (section 6.8.6).
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum Malformed {
    /// Fewer bytes than it says that it has, or than there must be.
    #[error("it is cut off")]
    Short,
    /// Another version of the protocol.
    #[error("it is of version {0}, and not of 1")]
    Version(u8),
    /// No packet at all would be too few.
    #[error("its multiplier is 0")]
    Multiplier,
    /// Reserved for later.
    #[error("it is for several stations")]
    Multipoint,
    /// Nobody knows its session.
    #[error("its sender has no number for the session")]
    Discriminator,
    /// There is no key that it could agree with.
    #[error("it is authenticated, and this session is not")]
    Authenticated,
}

impl Packet {
    /// Reads a packet.
    pub fn parse(bytes: &[u8]) -> Result<Self, Malformed> {
        let head: &[u8; LENGTH] = bytes.first_chunk().ok_or(Malformed::Short)?;
        let word =
            |at: usize| u32::from_be_bytes([head[at], head[at + 1], head[at + 2], head[at + 3]]);
        let time = |at: usize| Duration::from_micros(word(at).into());
        let has = |bit: u8| head[1] & bit != 0;
        match head[0] >> 5 {
            1 => {}
            other => return Err(Malformed::Version(other)),
        }
        let length = usize::from(head[3]);
        if length < LENGTH || length > bytes.len() {
            return Err(Malformed::Short);
        }
        if head[2] == 0 {
            return Err(Malformed::Multiplier);
        }
        if has(0x01) {
            return Err(Malformed::Multipoint);
        }
        if word(4) == 0 {
            return Err(Malformed::Discriminator);
        }
        if has(0x04) {
            return Err(Malformed::Authenticated);
        }
        let state = match head[1] >> 6 {
            0 => State::AdminDown,
            1 => State::Down,
            2 => State::Init,
            _ => State::Up,
        };
        // Whoever is further along than the beginning knows our number.
        if word(8) == 0 && !matches!(state, State::Down | State::AdminDown) {
            return Err(Malformed::Discriminator);
        }
        Ok(Self {
            diagnostic: Diagnostic::of(head[0] & 0x1f),
            state,
            poll: has(0x20),
            last: has(0x10),
            independent: has(0x08),
            demand: has(0x02),
            multiplier: head[2],
            mine: word(4),
            yours: word(8),
            min_tx: time(12),
            min_rx: time(16),
            min_echo_rx: time(20),
        })
    }

    /// Its bytes.
    #[must_use]
    pub fn bytes(&self) -> [u8; LENGTH] {
        let state = match self.state {
            State::AdminDown => 0,
            State::Down => 1,
            State::Init => 2,
            State::Up => 3,
        };
        let flag = |is_set: bool, bit: u8| if is_set { bit } else { 0 };
        let mut bytes = [0; LENGTH];
        bytes[0] = 0x20 | self.diagnostic.number();
        bytes[1] = state << 6
            | flag(self.poll, 0x20)
            | flag(self.last, 0x10)
            | flag(self.independent, 0x08)
            | flag(self.demand, 0x02);
        bytes[2] = self.multiplier;
        bytes[3] = LENGTH as u8;
        let micros = |time: Duration| u32::try_from(time.as_micros()).unwrap_or(u32::MAX);
        let words = [
            self.mine,
            self.yours,
            micros(self.min_tx),
            micros(self.min_rx),
            micros(self.min_echo_rx),
        ];
        for (word, at) in words.into_iter().zip((4..).step_by(4)) {
            bytes[at..at + 4].copy_from_slice(&word.to_be_bytes());
        }
        bytes
    }
}

/// What a session is set to.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Settings {
    /// How often it speaks when it is up, at most.
    pub min_tx: Duration,
    /// How often it can hear, at most.
    pub min_rx: Duration,
    /// Packets that the other end may miss in a row, 1 to 255.
    pub multiplier: u8,
}

/// What has happened, and what is to be sent.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Outcome {
    /// Up, or down and why.
    pub change: Option<Result<(), Diagnostic>>,
    /// A packet for the other end.
    pub send: Option<Packet>,
}

/// A session with one station: RFC 5880, section 6.
#[derive(Debug, Clone)]
pub struct Session {
    settings: Settings,
    /// Our number of it, not zero.
    own: u32,
    state: State,
    diagnostic: Diagnostic,
    /// Its number of it; zero while that is not known.
    theirs: u32,
    their_min_tx: Duration,
    their_min_rx: Duration,
    their_multiplier: u8,
    /// It speaks only when it is asked.
    their_demand: bool,
    /// We have changed how often we speak, and wait until it has heard that.
    polls: bool,
    speak_at: Tick,
    /// When it counts as gone; none while nothing was heard.
    gone_at: Option<Tick>,
}

impl Session {
    /// A session that is down; `own` is our number of it, other than that of any other, and not zero.
    #[must_use]
    pub fn new(settings: Settings, own: u32, now: Tick) -> Self {
        Self {
            settings,
            own,
            state: State::Down,
            diagnostic: Diagnostic::None,
            theirs: 0,
            their_min_tx: Duration::ZERO,
            // As section 6.8.1 begins.
            their_min_rx: Duration::from_micros(1),
            their_multiplier: 0,
            their_demand: false,
            polls: false,
            speak_at: now,
            gone_at: None,
        }
    }

    /// One that another process of this box has had until now, by our number of it and what
    /// [`Session::heard`] said there: it is up.
    #[must_use]
    pub fn go_on(settings: Settings, own: u32, heard: &Packet, now: Tick) -> Self {
        let mut session = Self {
            state: State::Up,
            theirs: heard.mine,
            their_min_tx: heard.min_tx,
            their_min_rx: heard.min_rx,
            their_multiplier: heard.multiplier,
            their_demand: heard.demand,
            // Whether the last question was answered is not known.
            polls: true,
            ..Self::new(settings, own, now)
        };
        session.gone_at = Some(now.plus(session.detection()));
        session
    }

    /// What the other end says of itself, while this session is up.
    #[must_use]
    pub fn heard(&self) -> Option<Packet> {
        (self.state == State::Up).then_some(Packet {
            diagnostic: Diagnostic::None,
            state: State::Up,
            poll: false,
            last: false,
            independent: false,
            demand: self.their_demand,
            multiplier: self.their_multiplier,
            mine: self.theirs,
            yours: self.own,
            min_tx: self.their_min_tx,
            min_rx: self.their_min_rx,
            min_echo_rx: Duration::ZERO,
        })
    }

    /// How it stands.
    #[must_use]
    pub fn state(&self) -> State {
        self.state
    }

    /// Our number of it.
    #[must_use]
    pub fn number(&self) -> u32 {
        self.own
    }

    /// For how long nothing may be heard; zero while nothing was.
    #[must_use]
    pub fn detection(&self) -> Duration {
        self.settings.min_rx.max(self.their_min_tx) * self.their_multiplier.into()
    }

    /// When [`Session::turn`] is due.
    #[must_use]
    pub fn due(&self) -> Tick {
        self.gone_at.map_or(self.speak_at, |gone_at| gone_at.min(self.speak_at))
    }

    /// Does what is due. `chance` is any number: stations do not speak in step.
    pub fn turn(&mut self, now: Tick, chance: u32) -> Outcome {
        let mut outcome = Outcome::default();
        if self.gone_at.is_some_and(|at| at <= now) {
            outcome.change = self.fall(Diagnostic::Expired);
            // Whoever comes there again has another number.
            (self.theirs, self.gone_at) = (0, None);
        }
        if self.speak_at <= now || outcome.change.is_some() {
            outcome.send = self.speak(now, chance);
        }
        outcome
    }

    /// Hears a packet that is for this session.
    pub fn hear(&mut self, heard: &Packet, now: Tick, chance: u32) -> Outcome {
        let mut outcome = Outcome::default();
        if heard.yours != 0 && heard.yours != self.own {
            return outcome;
        }
        self.theirs = heard.mine;
        (self.their_min_tx, self.their_min_rx) = (heard.min_tx, heard.min_rx);
        (self.their_multiplier, self.their_demand) = (heard.multiplier, heard.demand);
        if heard.last {
            self.polls = false;
        }
        if self.state == State::AdminDown {
            return outcome;
        }
        self.gone_at = Some(now.plus(self.detection()));
        let was = self.state;
        match (self.state, heard.state) {
            (State::Down, State::Down) => self.state = State::Init,
            (State::Down, State::Init) | (State::Init, State::Init | State::Up) => {
                (self.state, self.diagnostic) = (State::Up, Diagnostic::None);
                // From now on we speak more often, which is to be heard.
                self.polls = true;
                outcome.change = Some(Ok(()));
            }
            (State::Up, State::Down) => outcome.change = self.fall(Diagnostic::NeighborDown),
            // Somebody has switched it off there: nothing is known of the way (RFC 5882, section 3.2).
            (State::Up | State::Init, State::AdminDown) => {
                let fell = self.fall(Diagnostic::NeighborDown);
                outcome.change = fell.map(|_| Err(Diagnostic::AdminDown));
            }
            _ => {}
        }
        // Whoever changes speaks at once, and from then on as often as its state has it.
        if self.state != was {
            outcome.send = self.speak(now, chance);
        }
        if heard.poll {
            let answer = self.packet();
            outcome.send = Some(Packet { last: true, poll: false, ..answer });
        }
        // The other end may want to hear more often than when this was planned.
        self.speak_at = self.speak_at.min(now.plus(self.interval()));
        outcome
    }

    /// This box stood still: what has come meanwhile was not heard yet.
    pub fn resume(&mut self, now: Tick) {
        if self.gone_at.is_some() {
            self.gone_at = Some(now.plus(self.detection()));
        }
    }

    /// Somebody wants it down, or up again.
    pub fn administer(&mut self, wants_up: bool, now: Tick, chance: u32) -> Outcome {
        let mut outcome = Outcome::default();
        match (self.state, wants_up) {
            (State::AdminDown, true) => self.state = State::Down,
            (State::AdminDown, false) | (_, true) => return outcome,
            (_, false) => {
                outcome.change = self.fall(Diagnostic::AdminDown);
                (self.state, self.gone_at) = (State::AdminDown, None);
            }
        }
        outcome.send = self.speak(now, chance);
        outcome
    }

    /// Goes down; that is news only for one that was up.
    fn fall(&mut self, why: Diagnostic) -> Option<Result<(), Diagnostic>> {
        let was_up = self.state == State::Up;
        (self.state, self.diagnostic, self.polls) = (State::Down, why, false);
        was_up.then_some(Err(why))
    }

    fn speak(&mut self, now: Tick, chance: u32) -> Option<Packet> {
        let interval = self.interval();
        // A quarter less, by chance, and a tenth at least where none may be missed (section 6.8.7).
        let least = if self.settings.multiplier == 1 { 10 } else { 0 };
        let less = least + chance % (26 - least);
        self.speak_at = now.plus((interval * (100 - less) / 100).max(Duration::from_millis(1)));
        // It cannot hear, or has not asked.
        let is_quiet = self.their_min_rx.is_zero()
            || (self.their_demand && self.state == State::Up && !self.polls);
        (!is_quiet).then(|| self.packet())
    }

    /// The longest time between two words.
    fn interval(&self) -> Duration {
        self.min_tx().max(self.their_min_rx)
    }

    fn packet(&self) -> Packet {
        Packet {
            diagnostic: self.diagnostic,
            state: self.state,
            poll: self.polls,
            last: false,
            independent: false,
            demand: false,
            multiplier: self.settings.multiplier,
            mine: self.own,
            yours: self.theirs,
            min_tx: self.min_tx(),
            min_rx: self.settings.min_rx,
            min_echo_rx: Duration::ZERO,
        }
    }

    fn min_tx(&self) -> Duration {
        match self.state {
            State::Up => self.settings.min_tx,
            _ => self.settings.min_tx.max(SLOW),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use alloc::vec::Vec;
    use proptest::prelude::*;

    const SETTINGS: Settings = Settings {
        min_tx: Duration::from_millis(100),
        min_rx: Duration::from_millis(100),
        multiplier: 3,
    };

    fn packet(state: State, yours: u32) -> Packet {
        Packet { state, mine: 7, yours, ..Session::new(SETTINGS, 7, Tick(0)).packet() }
    }

    #[test]
    fn bytes_are_as_the_rfc_has_them() {
        // Section 4.1: version 1, diagnostic 3; up, poll; 3 times; 24 bytes; 1 and 2; 100 ms, 50 ms, none.
        let bytes = [
            0x23, 0xe0, 3, 24, 0, 0, 0, 1, 0, 0, 0, 2, 0, 1, 0x86, 0xa0, 0, 0, 0xc3, 0x50, 0, 0, 0,
            0,
        ];
        let packet = Packet {
            diagnostic: Diagnostic::NeighborDown,
            state: State::Up,
            poll: true,
            last: false,
            independent: false,
            demand: false,
            multiplier: 3,
            mine: 1,
            yours: 2,
            min_tx: Duration::from_millis(100),
            min_rx: Duration::from_millis(50),
            min_echo_rx: Duration::ZERO,
        };
        assert_eq!(packet.bytes(), bytes);
        assert_eq!(Packet::parse(&bytes), Ok(packet));
        for (at, byte, want) in [
            (0, 0x43, Malformed::Version(2)),
            (2, 0, Malformed::Multiplier),
            (3, 23, Malformed::Short),
            (3, 25, Malformed::Short),
            (1, 0xe1, Malformed::Multipoint),
            (1, 0xe4, Malformed::Authenticated),
            (7, 0, Malformed::Discriminator),
            (11, 0, Malformed::Discriminator),
        ] {
            let mut odd = bytes;
            odd[at] = byte;
            assert_eq!(Packet::parse(&odd), Err(want), "{at}");
        }
        assert_eq!(Packet::parse(&bytes[..23]), Err(Malformed::Short));
    }

    proptest! {
        #[test]
        fn any_bytes_are_answered(bytes: Vec<u8>) {
            if let Ok(packet) = Packet::parse(&bytes) {
                prop_assert_eq!(Packet::parse(&packet.bytes()), Ok(packet));
            }
        }
    }

    #[test]
    fn each_state_hears_each_word() {
        use State::{AdminDown, Down, Init, Up};
        for (state, heard, want) in [
            (Down, Down, Init),
            (Down, Init, Up),
            (Down, Up, Down),
            (Down, AdminDown, Down),
            (Init, Down, Init),
            (Init, Init, Up),
            (Init, Up, Up),
            (Init, AdminDown, Down),
            (Up, Down, Down),
            (Up, Init, Up),
            (Up, Up, Up),
            (Up, AdminDown, Down),
            (AdminDown, Up, AdminDown),
        ] {
            let mut session = Session::new(SETTINGS, 9, Tick(0));
            session.state = state;
            let outcome = session.hear(&packet(heard, 9), Tick(5), 0);
            assert_eq!(session.state(), want, "{state:?} hears {heard:?}");
            let change = match (state == Up, want == Up) {
                (true, false) if heard == AdminDown => Some(Err(Diagnostic::AdminDown)),
                (true, false) => Some(Err(Diagnostic::NeighborDown)),
                (false, true) => Some(Ok(())),
                _ => None,
            };
            assert_eq!(outcome.change, change, "{state:?} hears {heard:?}");
        }
        // What is for another session is not heard.
        let mut session = Session::new(SETTINGS, 9, Tick(0));
        assert_eq!(session.hear(&packet(Init, 8), Tick(5), 0), Outcome::default());
        assert_eq!(session.state(), Down);
    }

    #[test]
    fn silence_is_noticed_in_time() {
        let mut session = Session::new(SETTINGS, 9, Tick(0));
        session.hear(&packet(State::Down, 0), Tick(0), 0);
        assert_eq!(session.detection(), Duration::from_secs(3), "it speaks slowly until it is up");
        let outcome = session.hear(&packet(State::Init, 9), Tick(100), 0);
        assert_eq!(outcome.change, Some(Ok(())));
        let said = outcome.send.unwrap();
        assert!(said.poll && said.min_tx == SETTINGS.min_tx, "{said:?}");
        let quick = Packet { min_tx: SETTINGS.min_tx, last: true, ..packet(State::Up, 9) };
        session.hear(&quick, Tick(150), 0);
        assert_eq!(session.detection(), Duration::from_millis(300));
        assert!(!session.packet().poll);
        // Who stood still himself listens first.
        let mut still = session.clone();
        still.resume(Tick(2000));
        assert_eq!(still.turn(Tick(2299), 0).change, None);
        assert_eq!(still.turn(Tick(2300), 0).change, Some(Err(Diagnostic::Expired)));
        assert_eq!(session.turn(Tick(449), 0).change, None);
        let outcome = session.turn(Tick(450), 0);
        assert_eq!(outcome.change, Some(Err(Diagnostic::Expired)));
        let said = outcome.send.unwrap();
        assert_eq!((said.state, said.yours, said.min_tx), (State::Down, 0, SLOW));
        assert_eq!(session.turn(Tick(460), 0).change, None, "it is said once");
        // Who asks is answered at once.
        let asks = Packet { poll: true, ..packet(State::Down, 0) };
        assert!(session.hear(&asks, Tick(500), 0).send.unwrap().last);
    }

    #[test]
    fn another_process_goes_on_with_a_session_that_is_up() {
        let mut session = Session::new(SETTINGS, 9, Tick(0));
        session.hear(&packet(State::Down, 0), Tick(0), 0);
        assert_eq!(session.heard(), None);
        session.hear(&packet(State::Init, 9), Tick(100), 0);
        let quick = Packet { min_tx: SETTINGS.min_tx, multiplier: 5, ..packet(State::Up, 9) };
        session.hear(&quick, Tick(150), 0);
        let heard = Packet::parse(&session.heard().unwrap().bytes()).unwrap();
        let mut next = Session::go_on(SETTINGS, 9, &heard, Tick(200));
        assert_eq!((next.state(), next.number()), (State::Up, 9));
        assert_eq!(next.detection(), session.detection());
        let said = next.turn(Tick(200), 0).send.unwrap();
        assert_eq!((said.state, said.mine, said.yours), (State::Up, 9, 7));
        assert_eq!(next.turn(Tick(699), 0).change, None, "it listens for a whole detection time");
        assert_eq!(next.turn(Tick(700), 0).change, Some(Err(Diagnostic::Expired)));
    }

    #[test]
    fn it_speaks_as_often_as_it_is_heard_and_never_in_step() {
        let mut session = Session::new(SETTINGS, 9, Tick(0));
        (session.state, session.their_min_rx) = (State::Up, Duration::from_millis(200));
        for chance in 0..200 {
            session.speak(Tick(1000), chance);
            assert!((1150..=1200).contains(&session.speak_at.0), "{}", session.speak_at.0);
        }
        session.settings.multiplier = 1;
        for chance in 0..200 {
            session.speak(Tick(1000), chance);
            assert!((1150..=1180).contains(&session.speak_at.0), "{}", session.speak_at.0);
        }
        session.their_min_rx = Duration::ZERO;
        assert_eq!(session.speak(Tick(1000), 0), None);
        let outcome = session.administer(false, Tick(2000), 0);
        assert_eq!(outcome.change, Some(Err(Diagnostic::AdminDown)));
        assert_eq!(session.hear(&packet(State::Up, 9), Tick(2100), 0).change, None);
        session.administer(true, Tick(2200), 0);
        assert_eq!(session.state(), State::Down);
    }

    proptest! {
        /// Two ends whose way loses what it likes for a while come up when it is well, and stay so.
        #[test]
        fn two_ends_find_each_other(losses in prop::collection::vec(any::<bool>(), 0..100), seed: u32) {
            let mut ends = [1, 2].map(|own| Session::new(SETTINGS, own, Tick(0)));
            let mut losses = losses.into_iter();
            let mut chance = seed;
            let (mut rest, mut changed_at) = (None, 0);
            for at in 0..130_000_u64 {
                let now = Tick(at);
                if losses.len() == 0 && rest.is_none() {
                    rest = Some(at);
                }
                if rest.is_some_and(|rest| at > rest + 5_000) {
                    break;
                }
                for n in 0..2 {
                    chance = chance.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
                    let outcome = ends[n].turn(now, chance >> 16);
                    changed_at = if outcome.change.is_some() { at } else { changed_at };
                    let mut send = outcome.send.map(|packet| (n, packet));
                    while let Some((from, packet)) = send.take() {
                        if losses.next().unwrap_or(false) {
                            break;
                        }
                        let read = Packet::parse(&packet.bytes()).unwrap();
                        let outcome = ends[1 - from].hear(&read, now, chance >> 16);
                        changed_at = if outcome.change.is_some() { at } else { changed_at };
                        send = outcome.send.map(|packet| (1 - from, packet));
                    }
                }
            }
            prop_assert!(ends.iter().all(|end| end.state() == State::Up), "{ends:?}");
            let rest = rest.unwrap_or(0);
            prop_assert!(changed_at < rest + 4_000, "they came up at {changed_at}, {rest} the first time");
        }
    }
}
