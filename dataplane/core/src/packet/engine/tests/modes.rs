//! Each mode, there and back.

use super::*;

#[test]
fn nat_rewrites_the_destination_and_replies_come_from_the_vip() {
    for protocol in [Protocol::Tcp, Protocol::Udp] {
        for (client, vip, backend) in CASES {
            with_engine(|world, engine| {
                world.serve(protocol, vip, Mode::Nat, &[backend], |_| {});
                let (client, vip, backend) = (addr(client), addr(vip), addr(backend));
                let to = packets(protocol, client, vip);
                let want = packets(protocol, client, backend);
                for (sent, want) in to.iter().zip(want) {
                    let (verdict, got) = world.pass(engine, &sent.frame());
                    let want = want.ttl(63).macs(US[1], station(backend.ip())).frame();
                    assert_eq!((verdict, got), (Verdict::Send(1), want));
                }
                let reply = packets(protocol, backend, client)[1].clone();
                let (verdict, got) = world.pass(engine, &reply.frame());
                let want = packets(protocol, vip, client)[1].clone();
                let want = want.ttl(63).macs(US[0], ROUTER).frame();
                assert_eq!((verdict, got), (Verdict::Send(0), want));
                assert_eq!(engine.flows().len(), 1);
            });
        }
    }
}

#[test]
fn full_nat_speaks_for_itself_from_a_port_of_its_own() {
    for protocol in [Protocol::Tcp, Protocol::Udp] {
        for (client, vip, backend) in CASES {
            with_engine(|world, engine| {
                world.serve(protocol, vip, Mode::FullNat, &[backend], |policy| {
                    policy.source.ports = Some((30_000, 30_003));
                });
                let (client, vip, backend) = (addr(client), addr(vip), addr(backend));
                let own = if client.is_ipv4() { "10.78.0.1" } else { "fd78::1" };
                let (verdict, got) = world.pass(engine, &packets(protocol, client, vip)[0].frame());
                assert_eq!(verdict, Verdict::Send(1));
                verify(&got);
                let Parsed::Ip(packet) = parse(&got).unwrap() else { panic!() };
                let local = SocketAddr::new(ip(own), packet.transport.ports().unwrap().0);
                assert!((30_000..=30_003).contains(&local.port()));
                assert_eq!(packet.addresses.source(), local.ip());
                let reply = packets(protocol, backend, local)[1].clone();
                let (verdict, got) = world.pass(engine, &reply.frame());
                let want = packets(protocol, vip, client)[1].clone();
                assert_eq!(verdict, Verdict::Send(0));
                assert_eq!(got, want.ttl(63).macs(US[0], ROUTER).frame());
                // Four ports are four flows to one backend, and no more.
                let others = (1..=4).map(|n| {
                    let other = SocketAddr::new(client.ip(), 5000 + n);
                    world.pass(engine, &packets(protocol, other, vip)[0].frame()).0
                });
                let sent = others.filter(|verdict| *verdict == Verdict::Send(1)).count();
                assert_eq!(sent, 3);
                assert_eq!(engine.counters.dropped[DropReason::NoPort as usize].get(), 1);
            });
        }
    }
}

#[test]
fn direct_return_changes_the_station_alone() {
    for (client, vip, backend) in CASES {
        with_engine(|world, engine| {
            let backend = addr(backend);
            let at = SocketAddr::new(backend.ip(), 443).to_string();
            world.serve(Protocol::Tcp, vip, Mode::Dsr, &[&at], |_| {});
            for sent in packets(Protocol::Tcp, addr(client), addr(vip)) {
                let (verdict, got) = world.pass(engine, &sent.frame());
                let want = sent.ttl(63).macs(US[1], station(backend.ip())).frame();
                assert_eq!((verdict, got), (Verdict::Send(1), want));
            }
        });
    }
}

#[test]
fn tunnels_carry_the_packet_as_it_is() {
    for tunnel in [Tunnel::Ipip, Tunnel::Gue, Tunnel::GueWithHeader] {
        for (client, vip, _) in CASES {
            for (backend, own) in [("10.78.0.11:443", "10.78.0.1"), ("[fd78::11]:443", "fd78::1")] {
                with_engine(|world, engine| {
                    world.serve(Protocol::Tcp, vip, Mode::Tunnel(tunnel), &[backend], |_| {});
                    for sent in packets(Protocol::Tcp, addr(client), addr(vip)) {
                        let (verdict, got) = world.pass(engine, &sent.frame());
                        assert_eq!(verdict, Verdict::Send(1));
                        verify(&got);
                        let Parsed::Ip(outer) = parse(&got).unwrap() else { panic!() };
                        assert_eq!(outer.addresses.source(), ip(own));
                        assert_eq!(outer.addresses.destination(), addr(backend).ip());
                        let skip = match tunnel {
                            Tunnel::Ipip => 0,
                            Tunnel::Gue => 8,
                            Tunnel::GueWithHeader => 12,
                        };
                        assert_eq!(got[usize::from(outer.l4) + skip..], sent.ttl(63).packet());
                    }
                });
            }
        }
    }
}

#[test]
fn two_vips_over_one_backend_never_collide() {
    with_engine(|world, engine| {
        let (client, backend) = (addr("203.0.113.7:4711"), addr("10.78.0.11:8443"));
        let vips = ["192.0.2.10:443", "192.0.2.11:443"];
        for vip in vips {
            world.serve(Protocol::Tcp, vip, Mode::Nat, &["10.78.0.11:8443"], |_| {});
        }
        let mut ports = Vec::new();
        for vip in vips {
            let (_, got) = world.pass(engine, &syn(client, addr(vip)).frame());
            let Parsed::Ip(packet) = parse(&got).unwrap() else { panic!() };
            assert_eq!(packet.addresses.source(), client.ip());
            ports.push(packet.transport.ports().unwrap().0);
        }
        assert_ne!(ports[0], ports[1]);
        for (port, vip) in ports.iter().zip(vips) {
            let local = SocketAddr::new(client.ip(), *port);
            let reply = tcp(backend, local, tcp_flags::SYN | tcp_flags::ACK);
            let (_, got) = world.pass(engine, &reply.frame());
            let want = tcp(addr(vip), client, tcp_flags::SYN | tcp_flags::ACK);
            assert_eq!(got, want.ttl(63).macs(US[0], ROUTER).frame(), "{vip}");
        }
    });
}

#[test]
fn what_is_not_ours_is_left_alone() {
    with_engine(|world, engine| {
        let allowed = |policy: &mut Policy| {
            policy.deny = ["203.0.113.0/28".parse().unwrap()].into_iter().collect();
        };
        world.serve(Protocol::Tcp, "192.0.2.10:80", Mode::Nat, &["10.78.0.11:80"], allowed);
        world.serve(Protocol::Tcp, "192.0.2.10:81", Mode::Proxy, &["10.78.0.11:80"], |_| {});
        let client = addr("203.0.113.99:4711");
        for (name, frame, want) in [
            ("another port", syn(client, addr("192.0.2.10:82")).frame(), Verdict::Punt),
            ("a proxied service", syn(client, addr("192.0.2.10:81")).frame(), Verdict::Punt),
            ("another protocol", udp(client, addr("192.0.2.10:80")).frame(), Verdict::Punt),
            (
                "a client who may not",
                syn(addr("203.0.113.1:1"), addr("192.0.2.10:80")).frame(),
                Verdict::Drop(DropReason::Denied),
            ),
            ("too short", alloc::vec![0; 20], Verdict::Punt),
            ("cut off", alloc::vec![8; 14], Verdict::Punt),
        ] {
            let (verdict, got) = world.pass(engine, &frame);
            assert_eq!((verdict, got), (want, frame), "{name}");
        }
        assert!(engine.flows().is_empty());
    });
}

#[test]
fn sums_that_a_sender_left_to_its_port_are_filled_in() {
    for (client, vip, backend) in CASES {
        with_engine(|world, engine| {
            world.serve(Protocol::Tcp, vip, Mode::Nat, &[backend], |_| {});
            let (client, vip, backend) = (addr(client), addr(vip), addr(backend));
            let mut frame = syn(client, vip).payload(b"hello").frame();
            let field = frame.len() - 5 - 24 + 16;
            frame[field..field + 2].copy_from_slice(&[0x12, 0x34]);
            let (verdict, got) = world.pass_as(engine, &frame, TransportChecksum::Partial);
            let want = syn(client, backend).payload(b"hello").ttl(63);
            let want = want.macs(US[1], station(backend.ip())).frame();
            assert_eq!((verdict, got), (Verdict::Send(1), want));
        });
    }
}

proptest! {
    #[test]
    fn there_and_back_is_the_same_packet(
        port in 1024u16.., payload in prop::collection::vec(any::<u8>(), 0..200),
        v6 in any::<bool>(), datagram in any::<bool>(), full in any::<bool>(),
    ) {
        let (client, vip, backend) = CASES[usize::from(v6)];
        let protocol = if datagram { Protocol::Udp } else { Protocol::Tcp };
        let mode = if full { Mode::FullNat } else { Mode::Nat };
        with_engine(|world, engine| {
            world.serve(protocol, vip, mode, &[backend], |_| {});
            let (client, vip) = (SocketAddr::new(addr(client).ip(), port), addr(vip));
            let sample = |from, to| match protocol {
                Protocol::Tcp => tcp(from, to, tcp_flags::ACK).payload(&payload),
                Protocol::Udp => udp(from, to).payload(&payload),
                Protocol::Sctp => sctp(from, to),
            };
            let (_, there) = world.pass(engine, &sample(client, vip).frame());
            verify(&there);
            let Parsed::Ip(packet) = parse(&there).unwrap() else { panic!() };
            // A server that sends back what it gets.
            let ports = packet.transport.ports().unwrap();
            let from = SocketAddr::new(packet.addresses.destination(), ports.1);
            let to = SocketAddr::new(packet.addresses.source(), ports.0);
            let (_, back) = world.pass(engine, &sample(from, to).macs([9; 6], OUR_MAC).frame());
            let want = sample(vip, client).ttl(63).macs(US[0], ROUTER).frame();
            assert_eq!(back, want);
        });
    }

    #[test]
    fn no_bytes_make_it_panic_and_frames_stay_within_bounds(
        at in 0usize..120, bytes in prop::collection::vec(any::<u8>(), 0..60),
        v6 in any::<bool>(), quotes in any::<bool>(),
    ) {
        let (client, vip, backend) = CASES[usize::from(v6)];
        with_engine(|world, engine| {
            world.serve(Protocol::Udp, vip, Mode::Nat, &[backend], |_| {});
            let (client, vip, backend) = (addr(client), addr(vip), addr(backend));
            let first = udp(client, vip).payload(&[1; 40]);
            world.pass(engine, &first.frame());
            let about = udp(client, backend).payload(&[1; 40]).packet();
            let kind = if v6 { 1 } else { 3 };
            let mut frame = match quotes {
                true => message(backend.ip(), client.ip(), kind, 1, [0; 4]).payload(&about).frame(),
                false => first.frame(),
            };
            let end = frame.len().min(at + bytes.len());
            if at < end {
                frame[at..end].copy_from_slice(&bytes[..end - at]);
            }
            let (_, got) = world.pass(engine, &frame);
            assert!(got.len() <= frame.len() + 100);
        });
    }
}

/// The largest segment that a first segment offers to take.
fn offered(frame: &[u8]) -> u16 {
    verify(frame);
    let Parsed::Ip(packet) = parse(frame).unwrap() else { panic!() };
    let options = &frame[usize::from(packet.l4) + 20..packet.end.into()];
    let at = options.windows(2).position(|pair| pair == [2, 4]).unwrap();
    u16::from_be_bytes([options[at + 2], options[at + 3]])
}

#[test]
fn segments_are_bounded_when_asked_for() {
    for (client, vip, backend) in CASES {
        for (clamp, want) in [
            (None, [1460, 9000]),
            (Some(MssClamp::Auto), if vip.starts_with('[') { [1440; 2] } else { [1460; 2] }),
            (Some(MssClamp::To(1300)), [1300; 2]),
            (Some(MssClamp::To(1480)), [1460, 1480]),
        ] {
            with_engine(|world, engine| {
                world.serve(Protocol::Tcp, vip, Mode::Nat, &[backend], |policy| {
                    policy.mss_clamp = clamp;
                });
                let (client, vip, backend) = (addr(client), addr(vip), addr(backend));
                let (_, there) = world.pass(engine, &syn(client, vip).frame());
                assert_eq!(offered(&there), want[0]);
                // Where the option starts at an odd place.
                let answer = tcp(backend, client, tcp_flags::SYN | tcp_flags::ACK)
                    .tcp_options(&[1, 2, 4, 0x23, 0x28, 1, 1, 0]);
                let (_, back) = world.pass(engine, &answer.frame());
                assert_eq!(offered(&back), want[1]);
            });
        }
    }
}
