//! Any packet of VRRP and of BFD, and any frame of neighbours, is answered, one that counts says the same when
//! it is written again, and neither machine stops for what it hears.
#![no_main]

use std::net::IpAddr;
use std::time::Duration;

use fairway_core::Tick;
use fairway_core::announce::{bfd, neighbor, vrrp};
use libfuzzer_sys::fuzz_target;

fuzz_target!(|packets: Vec<(u16, bool, Vec<u8>)>| {
    let settings = vrrp::Settings {
        priority: 100,
        interval: Duration::from_millis(200),
        preempts: true,
        preempt_delay: Duration::ZERO,
    };
    let settings_of_bfd = bfd::Settings {
        min_tx: Duration::from_millis(100),
        min_rx: Duration::from_millis(100),
        multiplier: 3,
    };
    let mut now = Tick(0);
    let mut router = vrrp::Router::new(settings, [192, 0, 2, 1].into());
    let mut session = bfd::Session::new(settings_of_bfd, 1, now);
    router.start(now);
    for (later, v6, bytes) in packets {
        now = Tick(now.0 + u64::from(later));
        let ends: (IpAddr, IpAddr) = match v6 {
            true => ([1; 16].into(), [2; 16].into()),
            false => ([192, 0, 2, 2].into(), [224, 0, 0, 18].into()),
        };
        if let Ok(heard) = vrrp::Advertisement::parse(&bytes, ends, vrrp::TTL) {
            let again = heard.bytes(ends.0, ends.1);
            assert_eq!(vrrp::Advertisement::parse(&again, ends, vrrp::TTL).as_ref(), Ok(&heard));
            let was_active = router.is_active();
            let actions = router.hear(&heard, ends.0, now);
            let released = actions.iter().any(|action| matches!(action, vrrp::Action::Release(_)));
            assert_eq!(released, was_active && !router.is_active());
        }
        if let Some(question) = neighbor::hear(&bytes).question {
            let answer = neighbor::answer(&question, [2, 0, 0, 0, 0, 9]);
            assert_eq!(neighbor::hear(&answer).claim, Some((question.ip, [2, 0, 0, 0, 0, 9])));
        }
        router.turn(now);
        assert!(router.due().is_some_and(|due| due > now));
        if let Ok(heard) = bfd::Packet::parse(&bytes) {
            assert_eq!(bfd::Packet::parse(&heard.bytes()), Ok(heard));
            session.hear(&heard, now, later.into());
        }
        session.turn(now, later.into());
        assert!(session.due() > now);
    }
});
