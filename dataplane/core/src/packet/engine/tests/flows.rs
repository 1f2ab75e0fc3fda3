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
            world.pass(engine, &other[0].frame());
            assert_eq!(engine.counters.dropped[DropReason::NoBackend as usize].get(), 1);
            assert_eq!(engine.flows().len(), 1);
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
    with_engine(|world, engine| {
        world.serve(Protocol::Tcp, "192.0.2.10:80", Mode::Nat, &["10.78.0.11:80"], |_| {});
        world.serve(Protocol::Tcp, "192.0.2.11:80", Mode::Dsr, &["10.78.0.12:80"], |_| {});
        let (nat, dsr) = (addr("192.0.2.10:80"), addr("192.0.2.11:80"));
        let from = |n: u32| SocketAddr::new(ip("203.0.113.7"), 2000 + n as u16);
        for n in 0..SHAPE.ipv4 {
            world.pass(engine, &tcp(from(n), nat, tcp_flags::ACK).frame());
            // Both have spoken, so that it makes no room.
            let reply = tcp(addr("10.78.0.11:80"), from(n), tcp_flags::ACK).frame();
            assert_eq!(world.pass(engine, &reply).0, Verdict::Send(0));
        }
        let more = from(SHAPE.ipv4);
        let full = Verdict::Drop(DropReason::TableFull);
        assert_eq!(world.pass(engine, &tcp(more, nat, tcp_flags::ACK).frame()).0, full);
        let (verdict, frame) = world.pass(engine, &tcp(more, dsr, tcp_flags::ACK).frame());
        assert_eq!((verdict, &frame[..6]), (Verdict::Send(1), &station(ip("10.78.0.12"))[..]));
        assert_eq!(engine.counters.stateless.get(), 1);
        assert_eq!(engine.flows().len(), SHAPE.ipv4 as usize);
        assert_eq!(world.services[0].1.state.active(), SHAPE.ipv4);
        assert_eq!(world.services[1].1.state.active(), 0);
    });
    // Flows that are answered past us make room for others: a flood of them costs nobody else.
    with_engine(|world, engine| {
        world.serve(Protocol::Tcp, "192.0.2.10:80", Mode::Nat, &["10.78.0.11:80"], |_| {});
        world.serve(Protocol::Tcp, "192.0.2.11:80", Mode::Dsr, &["10.78.0.12:80"], |_| {});
        let from = |n: u32| SocketAddr::new(ip("203.0.113.7"), 2000 + n as u16);
        for n in 0..2 * SHAPE.ipv4 {
            let spoofed = tcp(from(n), addr("192.0.2.11:80"), tcp_flags::ACK);
            assert_eq!(world.pass(engine, &spoofed.frame()).0, Verdict::Send(1));
        }
        let first = syn(from(9999), addr("192.0.2.10:80"));
        assert_eq!(world.pass(engine, &first.frame()).0, Verdict::Send(1));
        assert_eq!(world.services[1].1.state.active(), SHAPE.ipv4 - 1);
    });
}

#[test]
fn a_reset_that_neither_end_has_sent_ends_nothing() {
    with_engine(|world, engine| {
        let backends = ["10.78.0.11:80", "10.78.0.12:80"];
        world.serve(Protocol::Tcp, "192.0.2.10:80", Mode::Nat, &backends, |policy| {
            policy.scheduler = Scheduler::RoundRobin;
        });
        let (client, vip) = (addr("203.0.113.7:4711"), addr("192.0.2.10:80"));
        let (_, there) = world.pass(engine, &syn(client, vip).frame());
        let backend = SocketAddr::new(destination(&there), 80);
        world.pass(engine, &tcp(backend, client, tcp_flags::SYN | tcp_flags::ACK).frame());
        world.pass(engine, &tcp(client, vip, tcp_flags::ACK).frame());
        let state = |engine: &Engine<'_>| engine.flows().iter().next().unwrap().state;
        // From somebody who knows the addresses: a reset, then a new first segment.
        world.pass(engine, &tcp(client, vip, tcp_flags::RST).frame());
        assert_eq!(state(engine), State::Reset);
        let (_, again) = world.pass(engine, &syn(client, vip).frame());
        assert_eq!(destination(&again), backend.ip(), "it stays where it is");
        let (verdict, _) = world.pass(engine, &tcp(backend, client, tcp_flags::ACK).frame());
        assert_eq!((verdict, state(engine)), (Verdict::Send(0), State::Established));
        assert_eq!(world.services[0].1.state.active(), 1);
        // A real one is followed by nothing.
        world.pass(engine, &tcp(backend, client, tcp_flags::RST | tcp_flags::ACK).frame());
        world.now = world.now.plus(LINGER * 8);
        world.pass(engine, &tcp(client, addr("192.0.2.99:1"), 0).frame());
        assert_eq!((engine.flows().len(), world.services[0].1.state.active()), (0, 0));
    });
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

#[test]
fn cut_flows_give_their_places_back_and_both_ends_hear_of_it() {
    for (client, vip, backend) in CASES {
        with_engine(|world, engine| {
            world.serve(Protocol::Tcp, vip, Mode::Nat, &[backend], |_| {});
            let (client, vip, backend) = (addr(client), addr(vip), addr(backend));
            world.pass(engine, &syn(client, vip).frame());
            let answer = tcp(backend, client, tcp_flags::SYN | tcp_flags::ACK).frame();
            world.pass(engine, &answer);
            world.pass(engine, &tcp(client, vip, tcp_flags::ACK).frame());
            let member = world.services[0].1.groups[0].pool.members()[0].backend.clone();
            let state = Arc::clone(&world.services[0].1.state);
            assert_eq!((state.active(), member.active()), (1, 1));
            engine.cut(alloc::vec![member.id], EndReason::DrainTimeout);
            world.pass(engine, &tcp(client, addr("192.0.2.99:1"), 0).frame());
            assert_eq!((state.active(), member.active()), (0, 0));
            let ends = state.counters.totals().ends;
            assert_eq!(ends[EndReason::DrainTimeout as usize], 1);
            for (from, to) in [(client, vip), (backend, client)] {
                let says = tcp(from, to, tcp_flags::ACK).numbers(7000, 9000).payload(b"x");
                let (verdict, frame) = world.pass(engine, &says.frame());
                assert!(matches!(verdict, Verdict::Send(_)), "{verdict:?}");
                verify(&frame);
                let Parsed::Ip(packet) = parse(&frame).unwrap() else { panic!() };
                let l4 = usize::from(packet.l4);
                assert_eq!(packet.addresses.source(), to.ip());
                assert_eq!(packet.addresses.destination(), from.ip());
                assert_eq!(frame[l4 + 13], tcp_flags::RST);
                assert_eq!(frame[l4 + 4..l4 + 8], 9000_u32.to_be_bytes(), "where it is awaited");
            }
            // Nobody answers a reset with one, and the client may begin anew.
            let reset = tcp(client, vip, tcp_flags::RST | tcp_flags::ACK).frame();
            assert_eq!(world.pass(engine, &reset).0, Verdict::Drop(DropReason::Cut));
            assert!(matches!(world.pass(engine, &syn(client, vip).frame()).0, Verdict::Send(_)));
            assert_eq!((state.active(), member.active()), (1, 1));
        });
    }
}

#[test]
fn what_waits_for_a_neighbour_goes_when_that_is_known() {
    with_engine(|world, engine| {
        world.serve(Protocol::Udp, "192.0.2.10:53", Mode::Nat, &["10.78.0.21:53"], |_| {});
        let (client, vip) = (addr("203.0.113.7:4711"), addr("192.0.2.10:53"));
        let asks = |n: u8| udp(client, vip).payload(&[n]).frame();
        for n in 0..20 {
            let want =
                if n < 8 { Verdict::Wait } else { Verdict::Drop(DropReason::NeighbourQueue) };
            assert_eq!(world.pass(engine, &asks(n)).0, want, "{n}");
        }
        let wanted: Vec<_> = engine.unresolved().collect();
        assert_eq!(wanted, [Unresolved { interface: 1, station: ip("10.78.0.21") }], "asked once");
        assert_eq!(world.replay(engine), None);
        let mut neighbours = routes();
        neighbours.know(1, ip("10.78.0.21"), station(ip("10.78.0.21")));
        world.route(neighbours);
        for n in 0..8 {
            let (verdict, frame) = world.replay(engine).unwrap();
            assert_eq!(verdict, Verdict::Send(1));
            assert_eq!(frame[..6], station(ip("10.78.0.21")));
            assert_eq!(frame.last(), Some(&n), "in order");
            verify(&frame);
        }
        assert_eq!(world.replay(engine), None);
        // Nobody ever answers.
        world.route(routes());
        assert_eq!(world.pass(engine, &asks(9)).0, Verdict::Wait);
        world.now = world.now.plus(Duration::from_secs(3));
        let (verdict, _) = world.replay(engine).unwrap();
        assert_eq!(verdict, Verdict::Drop(DropReason::NoNeighbour));
    });
}

/// Where segments of connections that nobody knows go, by the client's port.
fn resumed(world: &mut World, engine: &mut Engine<'_>, flags: u8) -> Vec<IpAddr> {
    let vip = addr("192.0.2.10:80");
    let from = |n: u16| SocketAddr::new(ip("203.0.113.7"), 3000 + n);
    let go = |n: u16| {
        let (verdict, frame) = world.pass(engine, &tcp(from(n), vip, flags).frame());
        assert_eq!(verdict, Verdict::Send(1));
        destination(&frame)
    };
    (0..30).map(go).collect()
}

#[test]
fn connections_without_state_go_where_they_were() {
    let service = |world: &mut World, backends: &[&str]| {
        world.serve(Protocol::Tcp, "192.0.2.10:80", Mode::Nat, backends, |policy| {
            policy.limits.service_connections = Some(3);
        });
    };
    let two = ["10.78.0.11:80", "10.78.0.12:80"];
    let mut before = Vec::new();
    with_engine(|world, engine| {
        service(world, &two);
        before = resumed(world, engine, tcp_flags::ACK);
        assert!(before.contains(&ip("10.78.0.11")) && before.contains(&ip("10.78.0.12")));
        // More than the limit: they were let in before.
        assert_eq!(world.services[0].1.state.active(), 30);
    });
    // Another box, or this one after a restart. One backend drains, and keeps its own.
    with_engine(|world, engine| {
        service(world, &two);
        let group = &mut world.services[0].1.groups[0];
        group.admission = group.pool.admission(|backend| Standing {
            draining: backend.addr.ip() == ip("10.78.0.11"),
            ..Standing::GOOD
        });
        world.publish();
        assert_eq!(resumed(world, engine, tcp_flags::ACK), before);
        let new = addr("203.0.113.9:4711");
        let vip = addr("192.0.2.10:80");
        let limited = Verdict::Drop(DropReason::Limited);
        assert_eq!(world.pass(engine, &syn(new, vip).frame()).0, limited, "new ones are not");
    });
    // One backend is gone from the configuration: the table before still says whose they are.
    for (until, remembered) in [(Tick(5000), true), (Tick(0), false)] {
        with_engine(|world, engine| {
            service(world, &two);
            let pools = [Arc::clone(&world.services[0].1.groups[0].pool)].into();
            world.services.clear();
            service(world, &two[1..]);
            world.services[0].1.previous = Some(crate::Previous { pools, until });
            world.publish();
            let now = resumed(world, engine, tcp_flags::ACK);
            match remembered {
                true => assert_eq!(now, before),
                false => assert!(now.iter().all(|to| *to == ip("10.78.0.12"))),
            }
        });
    }
}

#[test]
fn sctp_is_carried_and_summed() {
    for (client, vip, backend) in CASES {
        with_engine(|world, engine| {
            world.serve(Protocol::Sctp, vip, Mode::Nat, &[backend], |_| {});
            let (client, vip, backend) = (addr(client), addr(vip), addr(backend));
            let (verdict, frame) = world.pass(engine, &sctp(client, vip).frame());
            assert_eq!((verdict, destination(&frame)), (Verdict::Send(1), backend.ip()));
            let Parsed::Ip(packet) = parse(&frame).unwrap() else { panic!() };
            let mut body = frame[packet.l4.into()..packet.end.into()].to_vec();
            assert_eq!(body[2..4], backend.port().to_be_bytes());
            let sum = u32::from_le_bytes(*body[8..].first_chunk().unwrap());
            body[8..12].fill(0);
            assert_eq!(sum, crate::proxy_header::crc32c(body.iter()));
            let (verdict, frame) = world.pass(engine, &sctp(backend, client).frame());
            assert_eq!((verdict, destination(&frame)), (Verdict::Send(0), client.ip()));
        });
    }
}
