//! Connections whose first backend fails them.

use super::*;

/// How the first backend of a connection fails it.
#[derive(Debug, Clone, Copy, PartialEq)]
enum Failing {
    Refuses,
    Unreachable,
    Silent,
}

#[test]
fn a_connection_whose_backend_fails_it_goes_to_the_next() {
    for failing in [Failing::Refuses, Failing::Unreachable, Failing::Silent] {
        for (case, mode) in [(0, Mode::Nat), (0, Mode::FullNat), (1, Mode::Nat)] {
            with_engine(|world, engine| {
                let (client, vip, _) = CASES[case];
                let backends = match case {
                    0 => ["10.78.0.11:8443", "10.78.0.12:8443"],
                    _ => ["[fd78::11]:8443", "[fd78::12]:8443"],
                };
                world.serve(Protocol::Tcp, vip, mode, &backends, |policy| {
                    policy.retry.syn_timeout = Duration::from_millis(20);
                    policy.retry.deadline = Duration::from_secs(10);
                    policy.passive.failures = 1;
                });
                let (client, vip) = (addr(client), addr(vip));
                let (_, got) = world.pass(engine, &syn(client, vip).frame());
                let first = SocketAddr::new(destination(&got), 8443);
                let Parsed::Ip(sent) = parse(&got).unwrap() else { panic!() };
                let local =
                    SocketAddr::new(sent.addresses.source(), sent.transport.ports().unwrap().0);
                let (verdict, got) = match failing {
                    Failing::Refuses => {
                        let flags = tcp_flags::RST | tcp_flags::ACK;
                        let stranger = tcp(first, local, flags).numbers(0, 77).frame();
                        let (verdict, _) = world.pass(engine, &stranger);
                        assert_eq!(verdict, Verdict::Drop(DropReason::NoFlow), "a guess");
                        world.pass(engine, &tcp(first, local, flags).numbers(0, 1001).frame())
                    }
                    Failing::Unreachable => {
                        let kind = if client.is_ipv4() { (3, 1) } else { (1, 3) };
                        let error = message(first.ip(), local.ip(), kind.0, kind.1, [0; 4]);
                        let about = syn(local, first).packet();
                        world.pass(engine, &error.payload(&about).frame())
                    }
                    Failing::Silent => {
                        assert_eq!(world.replay(engine), None, "not yet");
                        world.now = world.now.plus(Duration::from_millis(20));
                        world.replay(engine).unwrap()
                    }
                };
                assert_eq!(verdict, Verdict::Send(1), "{failing:?} {mode:?}");
                verify(&got);
                let second = SocketAddr::new(destination(&got), 8443);
                assert_ne!(second, first, "{failing:?}");
                let Parsed::Ip(sent) = parse(&got).unwrap() else { panic!() };
                let ours =
                    SocketAddr::new(sent.addresses.source(), sent.transport.ports().unwrap().0);
                let want = syn(ours, second).ttl(63).macs(US[1], station(second.ip())).frame();
                assert_eq!(got, want, "the client's own segment");

                // The first one answers after all: it is reset, and the client hears nothing.
                let both = tcp_flags::SYN | tcp_flags::ACK;
                let late = tcp(first, local, both).numbers(7000, 1001).frame();
                let (verdict, got) = world.pass(engine, &late);
                let Parsed::Ip(reset) = parse(&got).unwrap() else { panic!() };
                assert_eq!(verdict, Verdict::Send(1));
                verify(&got);
                let Transport::Tcp { ports, flags, .. } = reset.transport else { panic!() };
                assert_eq!((ports, flags), ((local.port(), first.port()), tcp_flags::RST));
                let at = usize::from(reset.l4) + 4;
                assert_eq!(got[at..at + 4], 1001_u32.to_be_bytes(), "where the first one is");
                assert_eq!(destination(&got), first.ip());

                // The second one answers, and the client sees the VIP.
                let (verdict, got) = world.pass(engine, &tcp(second, ours, both).frame());
                let want = tcp(vip, client, both).ttl(63).macs(US[0], ROUTER).frame();
                assert_eq!((verdict, got), (Verdict::Send(0), want));
                world.now = world.now.plus(Duration::from_secs(1));
                assert_eq!(world.replay(engine), None, "nothing waits any more");

                let service = &world.services[0].1;
                let retries: u64 = service.state.counters.totals().retries.iter().sum();
                assert_eq!(retries, 1);
                let active = |at: SocketAddr| {
                    let members = service.groups[0].pool.members().iter();
                    let mut found = members.filter(|m| m.backend.addr.ip() == at.ip());
                    found.next().unwrap().backend.active()
                };
                assert_eq!((active(first), active(second)), (0, 1));
                let failures: Vec<_> = engine.failures().collect();
                assert_eq!(failures.len(), 1);
            });
        }
    }
}

#[test]
fn a_connection_that_nobody_takes_hears_of_it_in_the_end() {
    with_engine(|world, engine| {
        let backends = ["10.78.0.11:80", "10.78.0.12:80"];
        world.serve(Protocol::Tcp, "192.0.2.10:80", Mode::Nat, &backends, |policy| {
            policy.retry.deadline = Duration::from_secs(10);
        });
        let (client, vip) = (addr("203.0.113.7:4711"), addr("192.0.2.10:80"));
        let refuse = |got: &[u8]| {
            let from = SocketAddr::new(destination(got), 80);
            tcp(from, client, tcp_flags::RST | tcp_flags::ACK).numbers(0, 1001).frame()
        };
        let (_, first) = world.pass(engine, &syn(client, vip).frame());
        let (verdict, second) = world.pass(engine, &refuse(&first));
        assert_eq!(verdict, Verdict::Send(1));
        let (verdict, last) = world.pass(engine, &refuse(&second));
        let want = tcp(vip, client, tcp_flags::RST | tcp_flags::ACK).numbers(0, 1001);
        assert_eq!((verdict, last), (Verdict::Send(0), want.ttl(63).macs(US[0], ROUTER).frame()));
        let totals = world.services[0].1.state.counters.totals();
        assert_eq!(totals.retries[RetryCause::Refused as usize], 1);
    });
}

#[test]
fn a_third_first_segment_moves_a_connection_that_is_answered_past_us() {
    for mode in [Mode::Dsr, Mode::Tunnel(Tunnel::Ipip)] {
        with_engine(|world, engine| {
            let backends = ["10.78.0.11:80", "10.78.0.12:80"];
            world.serve(Protocol::Tcp, "192.0.2.10:80", mode, &backends, |_| {});
            let (client, vip) = (addr("203.0.113.7:4711"), addr("192.0.2.10:80"));
            let mut backend = |frame: Vec<u8>| {
                let (verdict, got) = world.pass(engine, &frame);
                assert_eq!(verdict, Verdict::Send(1));
                got[5]
            };
            let asks: Vec<u8> = (0..3).map(|_| backend(syn(client, vip).frame())).collect();
            assert!(asks[0] == asks[1] && asks[1] != asks[2], "{asks:?}");
            let later = tcp(client, vip, tcp_flags::ACK).frame();
            assert_eq!(backend(later), asks[2], "and there it stays");
            let state = &world.services[0].1.state;
            assert_eq!(state.counters.totals().retries[RetryCause::Timeout as usize], 1);
            assert_eq!((engine.flows().len(), state.active()), (1, 1));
        });
    }
}

/// Has one of two backends say nothing to a client, and the other one say no: the first, and what
/// becomes of that.
fn slow_and_refused(
    world: &mut World,
    engine: &mut Engine<'_>,
    attempts: Option<u16>,
) -> (SocketAddr, (Verdict, Vec<u8>)) {
    let (client, vip, _) = CASES[0];
    let backends = ["10.78.0.11:8443", "10.78.0.12:8443"];
    world.serve(Protocol::Tcp, vip, Mode::Nat, &backends, |policy| {
        policy.retry.syn_timeout = Duration::from_millis(20);
        policy.retry.deadline = Duration::from_secs(10);
        policy.retry.attempts = attempts;
    });
    let (client, vip) = (addr(client), addr(vip));
    let (_, got) = world.pass(engine, &syn(client, vip).frame());
    let slow = SocketAddr::new(destination(&got), 8443);
    world.now = world.now.plus(Duration::from_millis(20));
    let (_, got) = world.replay(engine).unwrap();
    let refusing = SocketAddr::new(destination(&got), 8443);
    assert_ne!(slow, refusing);
    let reset = tcp(refusing, client, tcp_flags::RST | tcp_flags::ACK).numbers(0, 1001);
    (slow, world.pass(engine, &reset.frame()))
}

#[test]
fn a_second_chance_is_an_attempt() {
    for (attempts, verdict) in [(2, Verdict::Send(0)), (3, Verdict::Send(1))] {
        with_engine(|world, engine| {
            let (_, (got, _)) = slow_and_refused(world, engine, Some(attempts));
            assert_eq!(got, verdict, "{attempts} attempts");
        });
    }
}

#[test]
fn before_a_client_is_refused_slow_backends_are_asked_again() {
    with_engine(|world, engine| {
        let client = addr(CASES[0].0);
        // The other one has said no: the first may have been busy.
        let (slow, (verdict, got)) = slow_and_refused(world, engine, None);
        assert_eq!((verdict, destination(&got)), (Verdict::Send(1), slow.ip()));
        world.now = world.now.plus(Duration::from_millis(100));
        assert_eq!(world.replay(engine), None, "it has more time now");
        let both = tcp_flags::SYN | tcp_flags::ACK;
        let (verdict, got) = world.pass(engine, &tcp(slow, client, both).numbers(1, 1001).frame());
        assert_eq!((verdict, destination(&got)), (Verdict::Send(0), client.ip()));
    });
}
