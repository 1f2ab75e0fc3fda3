use std::collections::{BTreeMap, VecDeque};
use std::net::{IpAddr, Ipv4Addr};
use std::sync::Arc;
use std::time::Duration;

use fairway_core::{IpPrefix, Tick};
use netgauze_bgp_pkt::BgpMessage;
use netgauze_bgp_pkt::path_attribute::{AsPath, MpReach, MpUnreach, PathAttributeValue as Value};
use netgauze_bgp_pkt::update::BgpUpdateMessage;
use netgauze_bgp_pkt::wire::deserializer::BgpParsingContext;
use netgauze_parse_utils::reader::SliceReader;
use netgauze_parse_utils::traits::ParseFromWithOneInput;
use proptest::prelude::*;

use super::message::{self, Attributes, Fault, Heard, Manner, NextHops, Opening, read, update};
use super::routes::{Routes, Wanted};
use super::session::{Action, PeerAs, Session, Settings, Side, State};

const HOPS: NextHops = NextHops {
    ipv4: Some(Ipv4Addr::new(10, 0, 0, 1)),
    ipv6: Some(std::net::Ipv6Addr::new(0x2001, 0xdb8, 0, 0, 0, 0, 0, 1)),
};

fn settings(own_as: u32, peer_as: PeerAs, id: u8) -> Settings {
    Settings {
        own_as,
        peer_as,
        id: [192, 0, 2, id].into(),
        hold: Duration::from_secs(9),
        keepalive: None,
        retry: Duration::from_secs(10),
        passive: false,
        restart: None,
    }
}

fn manner(internal: bool, four_octets: bool) -> Manner {
    Manner { own_as: 4_200_000_001, internal, four_octets, ipv4_over_ipv6: false, hops: HOPS }
}

fn prefix(text: &str) -> IpPrefix {
    text.parse().unwrap()
}

fn decoded(octets: &[u8]) -> BgpUpdateMessage {
    let mut context = BgpParsingContext::default();
    match BgpMessage::parse(&mut SliceReader::new(octets), &mut context).unwrap() {
        BgpMessage::Update(update) => update,
        other => panic!("{other:?}"),
    }
}

fn attributes() -> Attributes {
    Attributes {
        local_pref: Some(250),
        med: Some(7),
        communities: [0x0001_0002, 0xffff_0000].into(),
        large_communities: [[64512, 1, 2]].into(),
    }
}

#[test]
fn a_route_is_told_as_the_rfcs_have_it() {
    // Made by hand: marker, length 61, UPDATE; nothing withdrawn; 34 octets of attributes: origin IGP, the
    // path 4200000001, the next hop, MED 7; 192.0.2.100/32.
    let bare = Attributes { med: Some(7), ..Attributes::default() };
    let octets = update(&[prefix("192.0.2.100")], &bare, &manner(false, true)).unwrap();
    let want = [
        &[0xff; 16][..],
        &[0, 56, 2, 0, 0, 0, 28],
        &[0x40, 1, 1, 0],
        &[0x40, 2, 6, 2, 1, 0xfa, 0x56, 0xea, 0x01],
        &[0x40, 3, 4, 10, 0, 0, 1],
        &[0x80, 4, 4, 0, 0, 0, 7],
        &[32, 192, 0, 2, 100],
    ]
    .concat();
    assert_eq!(
        octets,
        [&want[..17], &[octets[17]], &want[18..22], &[octets[22]], &want[23..]].concat()
    );
    assert_eq!((octets.len(), usize::from(octets[17])), (want.len(), want.len()));
    // To our own system with a preference and without ourselves in the path.
    let octets = update(&[prefix("192.0.2.100")], &attributes(), &manner(true, true)).unwrap();
    let told = decoded(&octets);
    let value = |wanted: &dyn Fn(&Value) -> bool| {
        told.path_attributes().iter().any(|attribute| wanted(attribute.value()))
    };
    assert!(value(&|it| matches!(it, Value::LocalPreference(p) if p.metric() == 250)));
    assert!(value(
        &|it| matches!(it, Value::AsPath(AsPath::As4PathSegments(path)) if path.is_empty())
    ));
    assert!(value(&|it| matches!(it, Value::Communities(all) if all.communities().len() == 2)));
    assert!(value(
        &|it| matches!(it, Value::LargeCommunities(all) if all.communities().len() == 1)
    ));
    // Who knows no numbers of four octets is told the true path beside.
    let octets = update(&[prefix("192.0.2.100")], &attributes(), &manner(false, false)).unwrap();
    let at = octets.windows(4).position(|octets| octets == [2, 1, 0x5b, 0xa0]);
    assert!(at.is_some(), "AS_TRANS: {octets:?}");
    let at = octets.windows(9).position(|it| it == [0xc0, 17, 6, 2, 1, 0xfa, 0x56, 0xea, 0x01]);
    assert!(at.is_some(), "AS4_PATH: {octets:?}");
}

#[test]
fn each_family_has_its_next_hop() {
    let six = [prefix("2001:db8::64/128")];
    let told = decoded(&update(&six, &attributes(), &manner(false, true)).unwrap());
    let reach = told.path_attributes().iter().find_map(|attribute| match attribute.value() {
        Value::MpReach(MpReach::Ipv6Unicast { next_hop_global, nlri, .. }) => {
            Some((*next_hop_global, nlri.len()))
        }
        _ => None,
    });
    assert_eq!(reach, Some((HOPS.ipv6.unwrap(), 1)));
    let four = [prefix("192.0.2.100")];
    let no_ipv4 = NextHops { ipv4: None, ..HOPS };
    let bare = Manner { hops: no_ipv4, ..manner(false, true) };
    assert_eq!(update(&four, &attributes(), &bare), None);
    assert!(!bare.reaches(true) && bare.reaches(false));
    let over = Manner { ipv4_over_ipv6: true, ..bare };
    let told = decoded(&update(&four, &attributes(), &over).unwrap());
    let over_six = told.path_attributes().iter().any(|attribute| {
        matches!(attribute.value(), Value::MpReach(MpReach::Ipv4Unicast { next_hop, .. })
            if *next_hop == IpAddr::V6(HOPS.ipv6.unwrap()))
    });
    assert!(over_six && told.nlri().is_empty());
}

#[test]
fn a_beginning_says_what_we_can() {
    let opening = Opening {
        own_as: 4_200_000_001,
        id: [192, 0, 2, 1].into(),
        hold_seconds: 90,
        restart_seconds: Some(120),
        restarts: true,
    };
    let Ok(Heard::Open(opened)) = read(&message::open(&opening)) else { panic!("not an OPEN") };
    assert_eq!((opened.number, opened.hold_seconds), (4_200_000_001, 90));
    assert!(opened.four_octets && opened.ipv4 && opened.ipv6 && opened.ipv4_over_ipv6);
    assert!(opened.restarts);
    // Who says nothing of families takes IPv4.
    let old = [&[0xff; 16][..], &[0, 29, 1, 4, 0xfd, 0xe8, 0, 90, 192, 0, 2, 9, 0]].concat();
    let Ok(Heard::Open(opened)) = read(&old) else { panic!("not an OPEN") };
    assert!(opened.ipv4 && !opened.ipv6 && !opened.four_octets && opened.number == 65000);
}

#[test]
fn notifications_are_words() {
    for (fault, want) in [
        (Fault::shutdown("maintenance"), "administrative shutdown: maintenance"),
        (Fault::shutdown(""), "administrative shutdown"),
        (Fault::silence(), "its hold time is over: it has not heard us"),
        (Fault::wrong_number(7, "8"), "bad peer as"),
        (Fault::collision(), "connection collision resolution"),
        (Fault::bfd(), "bfd down"),
    ] {
        assert_eq!(read(&fault.octets()), Ok(Heard::Notification(want.into())));
    }
}

/// Two sessions and what is on its way between them; either may have made a connection.
struct Pair {
    ends: [Session; 2],
    now: Tick,
    /// By who made the connection: what is on the way to each end.
    ways: [Option<[VecDeque<u8>; 2]>; 2],
    changes: [Vec<Action>; 2],
    /// Connections are made only when this says so.
    refuses: bool,
}

impl Pair {
    fn new(ends: [Settings; 2]) -> Self {
        let ends = ends.map(Session::new);
        let changes = [Vec::new(), Vec::new()];
        Self { ends, now: Tick(0), ways: [None, None], changes, refuses: false }
    }

    fn act(&mut self, end: usize, actions: Vec<Action>) {
        for action in actions {
            // A way is named by who made it.
            let maker = |side: Side| if side == Side::Ours { end } else { 1 - end };
            match action {
                Action::Connect if self.refuses => self.ends[end].refused(self.now),
                Action::Connect => {
                    self.ways[end] = Some(Default::default());
                    let ours = self.ends[end].connected(HOPS, self.now);
                    self.act(end, ours);
                    let theirs = self.ends[1 - end].accepted(HOPS, self.now);
                    self.act(1 - end, theirs);
                }
                Action::Send(side, octets) => {
                    if let Some(way) = &mut self.ways[maker(side)] {
                        way[1 - end].extend(octets);
                    }
                }
                Action::Close(side) => {
                    let maker = maker(side);
                    // What was sent arrives before the end does.
                    let Some(way) = self.ways[maker].take() else { continue };
                    let other = 1 - end;
                    let side = if maker == other { Side::Ours } else { Side::Theirs };
                    let rest: Vec<u8> = way[other].iter().copied().collect();
                    let actions = self.ends[other].received(side, &rest, self.now);
                    self.act(other, actions);
                    let actions = self.ends[other].closed(side, "it was closed", self.now);
                    self.act(other, actions);
                }
                change => self.changes[end].push(change),
            }
        }
    }

    /// Delivers `at_most` octets at a time until nothing moves any more.
    fn settle(&mut self, at_most: usize) {
        for _ in 0..10_000 {
            let mut moved = false;
            for end in 0..2 {
                while let Some((side, octets)) = self.ends[end].next_update() {
                    self.act(end, vec![Action::Send(side, octets)]);
                    moved = true;
                }
                for maker in 0..2 {
                    let Some(way) = &mut self.ways[maker] else { continue };
                    let count = way[end].len().min(at_most);
                    if count > 0 {
                        let octets: Vec<u8> = way[end].drain(..count).collect();
                        let side = if maker == end { Side::Ours } else { Side::Theirs };
                        let actions = self.ends[end].received(side, &octets, self.now);
                        self.act(end, actions);
                        moved = true;
                    }
                }
            }
            if !moved {
                return;
            }
        }
        panic!("it goes on for ever");
    }

    fn turn(&mut self, at: u64) {
        self.now = Tick(at);
        for end in 0..2 {
            let actions = self.ends[end].turn(self.now);
            self.act(end, actions);
        }
        self.settle(4096);
    }

    fn start(&mut self) {
        // Both are there before either has connected.
        let actions = [0, 1].map(|end| self.ends[end].start(self.now));
        for (end, actions) in actions.into_iter().enumerate() {
            self.act(end, actions);
        }
        self.settle(7);
    }

    fn states(&self) -> [State; 2] {
        [self.ends[0].state(), self.ends[1].state()]
    }
}

#[test]
fn two_that_connect_at_once_keep_one_connection() {
    let (one, two) =
        (settings(64512, PeerAs::External, 1), settings(64513, PeerAs::Number(64512), 2));
    let mut pair = Pair::new([one, two]);
    pair.start();
    assert_eq!(pair.states(), [State::Established; 2]);
    assert_eq!(pair.ways.iter().flatten().count(), 1);
    for changes in &pair.changes {
        assert_eq!(changes, &[Action::Up], "a connection less is no news");
    }
    // They speak, and stay.
    for at in (0..60_000).step_by(500) {
        pair.turn(at);
    }
    assert_eq!(pair.states(), [State::Established; 2]);
    // One that is stopped says so; the other one tries again, later and later.
    let stopped = pair.ends[0].stop(&Fault::shutdown("maintenance"));
    pair.act(0, stopped);
    pair.settle(4096);
    let want = "the peer ends it: administrative shutdown: maintenance";
    assert!(pair.changes[1].contains(&Action::Down(want.into())), "{:?}", pair.changes[1]);
    assert_eq!(pair.states(), [State::Idle, State::Active]);
    pair.refuses = true;
    let mut tries = Vec::new();
    for at in (60_000..100_000).step_by(100) {
        let before = pair.ends[1].due();
        pair.turn(at);
        if pair.ends[1].due() != before {
            tries.push(at);
        }
    }
    let waits: Vec<u64> = tries.windows(2).map(|pair| pair[1] - pair[0]).collect();
    assert_eq!(waits[..4], [2000, 4000, 8000, 10_000], "{tries:?}");
}

#[test]
fn who_is_not_meant_is_told() {
    for (peer_as, theirs, id, want) in [
        (PeerAs::Number(64999), 64513, 2, "its AS number is 64513, and not 64999"),
        (PeerAs::Internal, 64513, 2, "its AS number is 64513, and not ours, 64512"),
        (PeerAs::External, 64512, 2, "its AS number is 64512, and not another than ours"),
        (PeerAs::Internal, 64512, 1, "its router id is ours, 192.0.2.1; set another `routerID`"),
    ] {
        let one = settings(64512, peer_as, 1);
        let two = Settings { passive: true, ..settings(theirs, PeerAs::Number(64512), id) };
        let mut pair = Pair::new([one, two]);
        pair.start();
        let said = pair.changes[0].contains(&Action::Down(want.into()));
        let refuses_itself =
            pair.changes[1].iter().any(|it| matches!(it, Action::Down(why) if why == want));
        assert!(said || refuses_itself, "{want}: {:?}", pair.changes);
        assert_ne!(pair.states()[0], State::Established);
    }
}

#[test]
fn silence_ends_a_session() {
    let one = settings(64512, PeerAs::External, 1);
    let two = Settings { hold: Duration::from_secs(90), ..settings(64513, PeerAs::External, 2) };
    let mut pair = Pair::new([one, two]);
    pair.start();
    assert_eq!(pair.states(), [State::Established; 2]);
    // The shorter hold time is that of both.
    let actions = pair.ends[1].turn(Tick(8_999));
    assert!(!actions.iter().any(|action| matches!(action, Action::Down(_))));
    let actions = pair.ends[1].turn(Tick(9_000));
    let want = Action::Down("nothing was heard for the hold time".into());
    assert_eq!(actions.last(), Some(&want));
    // Without a hold time nobody waits.
    let patient = |id: u32| Settings {
        hold: Duration::ZERO,
        ..settings(64511 + id, PeerAs::External, id as u8)
    };
    let mut pair = Pair::new([patient(1), patient(2)]);
    pair.start();
    assert_eq!(pair.ends[0].due(), None);
}

#[test]
fn bytes_that_are_no_message_end_a_session_with_a_word() {
    let (one, two) = (settings(64512, PeerAs::External, 1), settings(64513, PeerAs::External, 2));
    for spoiled in [
        vec![0; 19],
        [&[0xff; 16][..], &[0, 18, 4]].concat(),
        [&[0xff; 16][..], &[0xff, 0xff, 2]].concat(),
        [&[0xff; 16][..], &[0, 19, 9]].concat(),
        message::open(&Opening {
            own_as: 64513,
            id: [192, 0, 2, 2].into(),
            hold_seconds: 90,
            restart_seconds: None,
            restarts: false,
        }),
    ] {
        let mut pair = Pair::new([one.clone(), two.clone()]);
        pair.start();
        let side = if pair.ways[0].is_some() { Side::Ours } else { Side::Theirs };
        let actions = pair.ends[0].received(side, &spoiled, Tick(5));
        let Some(Action::Send(_, octets)) = actions.first() else { panic!("{actions:?}") };
        assert!(matches!(read(octets), Ok(Heard::Notification(_))));
        assert!(matches!(actions.last(), Some(Action::Down(_))));
    }
    // An UPDATE is not looked at, whatever is in it.
    let mut pair = Pair::new([one, two]);
    pair.start();
    let side = if pair.ways[0].is_some() { Side::Ours } else { Side::Theirs };
    let odd = [&[0xff; 16][..], &[0, 23, 2, 0xff, 0xff, 0xff, 0xff]].concat();
    assert!(pair.ends[0].received(side, &odd, Tick(5)).is_empty());
    assert_eq!(pair.ends[0].state(), State::Established);
}

/// As it comes to another process.
fn handed<T: serde::Serialize + serde::de::DeserializeOwned>(value: &T) -> T {
    serde_json::from_str(&serde_json::to_string(value).unwrap()).unwrap()
}

#[test]
fn another_process_goes_on_in_the_middle_of_a_message() {
    let ends = [settings(64512, PeerAs::External, 1), settings(64513, PeerAs::Number(64512), 2)];
    let mut pair = Pair::new(ends.clone());
    assert!(pair.ends[0].keep().is_none());
    pair.start();
    pair.ends[0].want(wanted(&[(2, 0), (3, 1)]));
    pair.settle(4096);
    let told = pair.ends[0].routes().told().clone();
    assert_eq!(told.len(), 2);
    // Half a message has come, and another process hears the rest.
    let side = if pair.ways[0].is_some() { Side::Ours } else { Side::Theirs };
    let keepalive = message::keepalive();
    pair.now = Tick(2000);
    assert!(pair.ends[0].received(side, &keepalive[..10], pair.now).is_empty());
    let kept = handed(&pair.ends[0].keep().unwrap());
    let (next, by) = Session::go_on(ends[0].clone(), kept, pair.now);
    assert_eq!((next.state(), by), (State::Established, side));
    assert_eq!(next.up_since(), pair.ends[0].up_since());
    pair.ends[0] = next;
    assert!(pair.ends[0].received(side, &keepalive[10..], pair.now).is_empty());
    // What the peer has is not told again; what is new is, and what is gone.
    pair.ends[0].want(told);
    assert_eq!(pair.ends[0].next_update(), None);
    pair.ends[0].want(wanted(&[(3, 1), (4, 0)]));
    assert!(pair.ends[0].next_update().is_some() && pair.ends[0].next_update().is_some());
    assert_eq!(pair.ends[0].next_update(), None);
    for at in (2000..60_000).step_by(500) {
        pair.turn(at);
    }
    assert_eq!(pair.states(), [State::Established; 2]);
    assert_eq!(pair.changes[1], [Action::Up], "the peer has noticed nothing");
}

/// What a peer has after messages.
fn learn(table: &mut BTreeMap<IpPrefix, Vec<u32>>, octets: &[u8]) {
    let told = decoded(octets);
    let four = |net: ipnet::Ipv4Net| IpPrefix::containing(net.addr().into(), net.prefix_len());
    let six = |net: ipnet::Ipv6Net| IpPrefix::containing(net.addr().into(), net.prefix_len());
    let mut new: Vec<IpPrefix> =
        told.nlri().iter().map(|it| four(it.network().address())).collect();
    let mut communities = Vec::new();
    for gone in told.withdraw_routes() {
        assert!(table.remove(&four(gone.network().address())).is_some(), "it was told before");
    }
    for attribute in told.path_attributes() {
        match attribute.value() {
            Value::MpReach(MpReach::Ipv6Unicast { nlri, .. }) => {
                new.extend(nlri.iter().map(|it| six(it.network().address())));
            }
            Value::MpUnreach(MpUnreach::Ipv6Unicast { nlri }) => {
                for gone in nlri {
                    assert!(table.remove(&six(gone.network().address())).is_some());
                }
            }
            Value::Communities(all) => {
                communities = all.communities().iter().map(|it| it.value()).collect();
            }
            _ => {}
        }
    }
    table.extend(new.into_iter().map(|prefix| (prefix, communities.clone())));
}

fn wanted(sets: &[(u8, u8)]) -> Wanted {
    let of = |(n, community): &(u8, u8)| {
        let ip: IpAddr = match n % 2 {
            0 => [192, 0, 2, *n].into(),
            _ => format!("2001:db8::{n:x}").parse().unwrap(),
        };
        let communities = [u32::from(*community)].into();
        (ip.into(), Arc::new(Attributes { communities, ..Attributes::default() }))
    };
    sets.iter().map(of).collect()
}

proptest! {
    /// Whatever is wanted, in whatever steps, the peer has it in the end, and nothing else.
    #[test]
    fn a_peer_has_what_is_wanted(
        steps in prop::collection::vec((prop::collection::vec((any::<u8>(), 0_u8..3), 0..40), 0_usize..4, any::<bool>(), any::<bool>()), 1..12),
    ) {
        let mut routes = Routes::default();
        routes.begin(true, true);
        let mut table = BTreeMap::new();
        let told = |routes: &mut Routes| routes.next(&manner(false, true), |_| true);
        for (sets, messages, again, other_process) in &steps {
            if *other_process {
                routes = Routes::go_on(handed(&routes.keep()));
            }
            routes.want(wanted(sets));
            if *again {
                routes.tell_again();
            }
            for _ in 0..*messages {
                told(&mut routes).into_iter().for_each(|octets| learn(&mut table, &octets));
            }
        }
        while let Some(octets) = told(&mut routes) {
            prop_assert!(octets.len() <= 4096);
            learn(&mut table, &octets);
        }
        let last = wanted(&steps[steps.len() - 1].0);
        let last: BTreeMap<_, Vec<u32>> =
            last.into_iter().map(|(at, it)| (at, it.communities.iter().copied().collect())).collect();
        prop_assert_eq!(table, last);
        prop_assert!(routes.is_settled());
    }

    #[test]
    fn any_bytes_are_answered(chunks: Vec<Vec<u8>>, good_start: bool) {
        let mut session = Session::new(settings(64512, PeerAs::External, 1));
        session.start(Tick(0));
        session.connected(HOPS, Tick(0));
        if good_start {
            let opening = Opening {
                own_as: 64513, id: [192, 0, 2, 2].into(), hold_seconds: 90,
                restart_seconds: None, restarts: false,
            };
            session.received(Side::Ours, &message::open(&opening), Tick(0));
            session.received(Side::Ours, &message::keepalive(), Tick(0));
            prop_assert_eq!(session.state(), State::Established);
        }
        for chunk in chunks {
            session.received(Side::Ours, &chunk, Tick(1));
        }
    }

    /// Many prefixes with many communities still fit.
    #[test]
    fn messages_are_short_enough(count in 1_u32..400, communities in 0_u32..64) {
        let attributes = Arc::new(Attributes {
            communities: (0..communities).collect(),
            large_communities: (0..communities / 2).map(|n| [n, n, n]).collect(),
            ..attributes()
        });
        let of = |n: u32| (IpAddr::from((u128::from(n)).to_be_bytes()).into(), Arc::clone(&attributes));
        let mut routes = Routes::default();
        routes.want((0..count).map(of).collect());
        routes.begin(true, true);
        let mut all = 0;
        while let Some(octets) = routes.next(&manner(false, true), |_| true) {
            prop_assert!(octets.len() <= 4096, "{}", octets.len());
            all += 1;
        }
        prop_assert!(all > 2);
    }
}
