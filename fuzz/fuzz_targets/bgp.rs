//! Whatever a peer of BGP sends, in whatever pieces, is answered; a session that ends has said why.
#![no_main]

use std::sync::Arc;
use std::time::Duration;

use fairway::announce::bgp::message::{self, Attributes, NextHops, Opening};
use fairway::announce::bgp::session::{Action, PeerAs, Session, Settings, Side, State};
use fairway_core::Tick;
use libfuzzer_sys::fuzz_target;

fuzz_target!(|pieces: (bool, Vec<(u16, bool, Vec<u8>)>)| {
    let (good_start, pieces) = pieces;
    let mut session = Session::new(Settings {
        own_as: 64512,
        peer_as: PeerAs::External,
        id: [192, 0, 2, 1].into(),
        hold: Duration::from_secs(90),
        keepalive: None,
        retry: Duration::from_secs(10),
        passive: false,
        restart: Some(Duration::from_secs(120)),
    });
    let hops = NextHops { ipv4: Some([192, 0, 2, 1].into()), ipv6: None };
    let mut now = Tick(0);
    session.want([("192.0.2.100".parse().unwrap(), Arc::new(Attributes::default()))].into());
    session.start(now);
    session.connected(hops, now);
    if good_start {
        let opening = Opening {
            own_as: 64513,
            id: [192, 0, 2, 2].into(),
            hold_seconds: 90,
            restart_seconds: None,
            restarts: false,
        };
        session.received(Side::Ours, &message::open(&opening), now);
        session.received(Side::Ours, &message::keepalive(), now);
        assert_eq!(session.state(), State::Established);
    }
    for (later, theirs, bytes) in pieces {
        now = Tick(now.0 + u64::from(later));
        let side = if theirs { Side::Theirs } else { Side::Ours };
        let before = session.state();
        let actions = match theirs && bytes.is_empty() {
            true => session.accepted(hops, now),
            false => session.received(side, &bytes, now),
        };
        let is_down = actions.iter().any(|action| matches!(action, Action::Down(_)));
        if before == State::Established && session.state() != State::Established {
            assert!(is_down);
        }
        while session.next_update().is_some() {}
        session.turn(now);
        if actions.contains(&Action::Connect) {
            session.connected(hops, now);
        }
        assert!(session.due().is_none_or(|due| due > now));
    }
});
