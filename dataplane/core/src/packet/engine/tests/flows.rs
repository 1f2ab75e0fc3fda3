//! How flows begin, move and end.

use super::*;

#[test]
fn datagrams_leave_a_failed_backend_and_connections_stay() {
    for protocol in [Protocol::Udp, Protocol::Tcp] {
        with_engine(|world, engine| {
            let backends = ["10.78.0.11:53", "10.78.0.12:53"];
            world.serve(protocol, "192.0.2.10:53", Mode::Nat, &backends, |_| {});
            let sample = packets(protocol, addr("203.0.113.7:4711"), addr("192.0.2.10:53"));
            let first = destination(&world.pass(engine, &sample[0].frame()).1);
            world.fail(0, &[&first.to_string()]);
            let second = destination(&world.pass(engine, &sample[1].frame()).1);
            assert_eq!(first == second, protocol == Protocol::Tcp);
            assert_eq!(engine.flows().len(), 1);
            world.fail(0, &["10.78.0.11", "10.78.0.12"]);
            let other = packets(protocol, addr("203.0.113.7:4712"), addr("192.0.2.10:53"));
            let (verdict, _) = world.pass(engine, &other[0].frame());
            assert_eq!(verdict, Verdict::Drop(DropReason::NoBackend));
        });
    }
}

#[test]
fn places_are_paid_back_when_flows_end() {
    with_engine(|world, engine| {
        world.serve(Protocol::Tcp, "192.0.2.10:80", Mode::Nat, &["10.78.0.11:80"], |policy| {
            policy.limits.service_connections = Some(2);
            policy.limits.client_connections = Some(1);
        });
        let vip = addr("192.0.2.10:80");
        let from = |n: u8| addr(&alloc::format!("203.0.113.{n}:4711"));
        let again = addr("203.0.113.1:4712");
        let limited = Verdict::Drop(DropReason::Limited);
        for (client, want) in [
            (from(1), Verdict::Send(1)),
            (again, limited),
            (from(2), Verdict::Send(1)),
            (from(3), limited),
        ] {
            assert_eq!(world.pass(engine, &syn(client, vip).frame()).0, want, "{client}");
        }
        let state = Arc::clone(&world.services[0].1.state);
        let backend = Arc::clone(&world.services[0].1.groups[0].pool.members()[0].backend);
        assert_eq!((state.active(), backend.active()), (2, 2));
        // Cut, and over when its time is.
        world.pass(engine, &tcp(from(1), vip, tcp_flags::RST).frame());
        world.now = world.now.plus(LINGER * 8);
        world.pass(engine, &tcp(from(9), addr("192.0.2.99:1"), 0).frame());
        assert_eq!((engine.flows().len(), state.active(), backend.active()), (0, 0, 0));
        assert_eq!(world.pass(engine, &syn(again, vip).frame()).0, Verdict::Send(1));
        let ends = state.counters.totals().ends;
        assert_eq!(ends[EndReason::Client as usize] + ends[EndReason::IdleTimeout as usize], 2);
    });
}

#[test]
fn with_a_full_table_direct_return_goes_on_and_nat_does_not() {
    for (mode, want) in
        [(Mode::Dsr, Verdict::Send(1)), (Mode::Nat, Verdict::Drop(DropReason::NoFlow))]
    {
        with_engine(|world, engine| {
            world.serve(Protocol::Tcp, "192.0.2.10:80", mode, &["10.78.0.11:80"], |_| {});
            let vip = addr("192.0.2.10:80");
            let mut last = Verdict::Punt;
            for n in 0..=SHAPE.ipv4 {
                let client = SocketAddr::new(ip("203.0.113.7"), 2000 + n as u16);
                last = world.pass(engine, &tcp(client, vip, tcp_flags::ACK).frame()).0;
                // Both have spoken, so that it makes no room.
                let reply = tcp(addr("10.78.0.11:80"), client, tcp_flags::ACK).frame();
                if mode == Mode::Nat && n < SHAPE.ipv4 {
                    assert_eq!(world.pass(engine, &reply).0, Verdict::Send(0));
                }
            }
            assert_eq!(last, want);
            assert_eq!(engine.flows().len(), SHAPE.ipv4 as usize);
            assert_eq!(world.services[0].1.state.active(), SHAPE.ipv4);
            assert_eq!(engine.counters.stateless.get(), u64::from(mode == Mode::Dsr));
        });
    }
}

#[test]
fn places_and_flows_agree_when_a_full_table_stops_a_move() {
    with_engine(|world, engine| {
        let backends = ["10.78.0.11:80", "10.78.0.12:80"];
        world.serve(Protocol::Tcp, "192.0.2.10:80", Mode::Dsr, &backends, |_| {});
        let vip = addr("192.0.2.10:80");
        let from = |n: u32| SocketAddr::new(ip("203.0.113.7"), 2000 + n as u16);
        for n in 0..SHAPE.ipv4 {
            world.pass(engine, &syn(from(n), vip).frame());
            if n % 20 != 0 {
                world.pass(engine, &tcp(from(n), vip, tcp_flags::ACK).frame());
            }
        }
        for n in (0..SHAPE.ipv4).step_by(20) {
            for _ in 0..4 {
                world.pass(engine, &syn(from(n), vip).frame());
                let state = &world.services[0].1.state;
                assert_eq!(engine.flows().len(), state.active() as usize, "client {n}");
            }
        }
        world.now = world.now.plus(Duration::from_secs(100_000));
        for _ in 0..100 {
            world.pass(engine, &udp(from(0), addr("192.0.2.99:1")).frame());
        }
        let service = &world.services[0].1;
        let active = service.groups[0].pool.members().iter().map(|m| m.backend.active());
        assert_eq!((engine.flows().len(), service.state.active()), (0, 0));
        assert_eq!(active.sum::<u32>(), 0);
    });
}

#[test]
fn a_client_that_begins_anew_leaves_a_failed_backend() {
    with_engine(|world, engine| {
        let backends = ["10.78.0.11:80", "10.78.0.12:80"];
        world.serve(Protocol::Tcp, "192.0.2.10:80", Mode::Nat, &backends, |_| {});
        let (client, vip) = (addr("203.0.113.7:4711"), addr("192.0.2.10:80"));
        let first = destination(&world.pass(engine, &syn(client, vip).frame()).1);
        let both = tcp_flags::SYN | tcp_flags::ACK;
        world.pass(engine, &tcp(SocketAddr::new(first, 80), client, both).frame());
        world.pass(engine, &tcp(client, vip, tcp_flags::ACK).frame());
        let again = destination(&world.pass(engine, &syn(client, vip).frame()).1);
        assert_eq!(again, first, "while that is well");
        world.fail(0, &[&first.to_string()]);
        let later = destination(&world.pass(engine, &tcp(client, vip, 0).frame()).1);
        assert_eq!(later, first, "a connection goes on while its ends wish");
        let anew = destination(&world.pass(engine, &syn(client, vip).frame()).1);
        assert_ne!(anew, first);
    });
}

#[test]
fn without_routes_nothing_is_sent_and_nothing_breaks() {
    with_engine(|world, engine| {
        world.serve(Protocol::Tcp, "192.0.2.10:80", Mode::Nat, &["10.78.0.11:80"], |_| {});
        world.route(Routes::default());
        let echo = message(ip("0.0.0.0"), ip("192.0.2.10"), 8, 0, [0; 4]);
        let first = syn(addr("203.0.113.7:4711"), addr("192.0.2.10:80"));
        for frame in [echo.frame(), first.frame()] {
            let (verdict, _) = world.pass(engine, &frame);
            assert_eq!(verdict, Verdict::Drop(DropReason::NoNeighbour));
        }
    });
}
