//! ICMP, ARP and NDP.

use super::*;
use crate::packet::icmp;

#[test]
fn errors_reach_the_end_that_they_are_for() {
    for (client, vip, backend) in CASES {
        with_engine(|world, engine| {
            world.serve(Protocol::Udp, vip, Mode::Nat, &[backend], |_| {});
            let (client, vip, backend) = (addr(client), addr(vip), addr(backend));
            world.pass(engine, &udp(client, vip).payload(b"x").frame());
            let (kind, code) = if client.is_ipv4() { (3, 4) } else { (2, 0) };
            let router = ip(if client.is_ipv4() { "10.78.0.254" } else { "fd78::254" });
            let about = |from, to| udp(from, to).payload(b"x").ttl(50).packet();
            let rest = 1280_u32.to_be_bytes();
            // A router behind us about a packet to the backend: the client hears of its own.
            for (sender, from) in [(router, router), (backend.ip(), vip.ip())] {
                let error = message(sender, client.ip(), kind, code, rest);
                let sent = error.payload(&about(client, backend)).frame();
                let (verdict, got) = world.pass(engine, &sent);
                let want = message(from, client.ip(), kind, code, rest);
                let want = want.payload(&about(client, vip)).ttl(63).macs(US[0], ROUTER);
                assert_eq!((verdict, got), (Verdict::Send(0), want.frame()), "from {sender}");
            }
            // A router before us about a reply: the backend hears of its own.
            let error = message(router, vip.ip(), kind, code, rest);
            let sent = error.payload(&about(vip, client)).frame();
            let (verdict, got) = world.pass(engine, &sent);
            let want = message(router, backend.ip(), kind, code, rest);
            let want = want.payload(&about(backend, client)).ttl(63);
            let want = want.macs(US[1], station(backend.ip())).frame();
            assert_eq!((verdict, got), (Verdict::Send(1), want));
            let stranger = message(router, vip.ip(), kind, code, rest);
            let sent = stranger.payload(&about(vip, addr("203.0.113.99:1"))).frame();
            if client.is_ipv4() {
                assert_eq!(world.pass(engine, &sent).0, Verdict::Punt);
            }
        });
    }
}

#[test]
fn senders_are_told_of_packets_that_cannot_go_on() {
    for (client, vip, backend) in CASES {
        with_engine(|world, engine| {
            let tunnel = Mode::Tunnel(Tunnel::Ipip);
            let at = SocketAddr::new(addr(backend).ip(), 443).to_string();
            world.serve(Protocol::Tcp, vip, tunnel, &[&at], |_| {});
            let (client, vip) = (addr(client), addr(vip));
            let own = ip(if client.is_ipv4() { "10.77.0.1" } else { "fd77::1" });
            let (outer, header) = if client.is_ipv4() { (20, 20) } else { (40, 40) };
            let large = tcp(client, vip, 0).payload(&[7; 1500 - 20 - 20]);
            let large = large.payload(&alloc::vec![7; 1500 - header - 20]).whole();
            let short = tcp(client, vip, 0).ttl(1);
            let big = if client.is_ipv4() { (3, 4) } else { (2, 0) };
            let late = if client.is_ipv4() { (11, 0) } else { (3, 0) };
            for (sent, (kind, code), rest) in [(large, big, 1500 - outer), (short, late, 0_u32)] {
                let (verdict, got) = world.pass(engine, &sent.frame());
                let most = if client.is_ipv4() { 548 } else { 1232 };
                let quote = sent.packet();
                let want = message(own, client.ip(), kind, code, rest.to_be_bytes());
                let want = want.payload(&quote[..quote.len().min(most)]).macs(US[0], ROUTER);
                let mut want = want.frame();
                if client.is_ipv4() {
                    // Our own header has no id, and may not be fragmented.
                    want[18..22].copy_from_slice(&[0, 0, 0x40, 0]);
                    want[24..26].fill(0);
                    let checksum = Sum::ZERO.bytes(&want[14..34]).checksum().to_be_bytes();
                    want[24..26].copy_from_slice(&checksum);
                }
                assert_eq!((verdict, got), (Verdict::Send(0), want));
            }
            assert_eq!(engine.counters.told.get(), 2);
        });
    }
}

#[test]
fn echo_requests_to_a_vip_are_answered() {
    for (client, vip, backend) in CASES {
        with_engine(|world, engine| {
            world.serve(Protocol::Tcp, vip, Mode::Nat, &[backend], |_| {});
            let (client, vip) = (addr(client).ip(), addr(vip).ip());
            let (asks, answers) = if client.is_ipv4() { (8, 0) } else { (128, 129) };
            let rest = [0, 7, 0, 1];
            let zeros = message(client, vip, asks, 0, [0; 4]);
            verify(&world.pass(engine, &zeros.frame()).1);
            let request = message(client, vip, asks, 0, rest).payload(b"there?").ttl(3);
            let (verdict, got) = world.pass(engine, &request.frame());
            let want = message(vip, client, answers, 0, rest).payload(b"there?");
            assert_eq!((verdict, got), (Verdict::Send(0), want.macs(US[0], ROUTER).frame()));
            let stranger = if client.is_ipv4() { "192.0.2.99" } else { "2001:db8::99" };
            let other = message(client, ip(stranger), asks, 0, rest);
            assert_eq!(world.pass(engine, &other.frame()).0, Verdict::Punt);
        });
    }
}

#[test]
fn stations_of_vips_are_told() {
    with_engine(|world, engine| {
        world.serve(Protocol::Tcp, CASES[0].1, Mode::Nat, &["10.78.0.11:80"], |_| {});
        world.serve(Protocol::Tcp, CASES[1].1, Mode::Nat, &["[fd78::11]:80"], |_| {});
        world.serve(Protocol::Tcp, "192.0.2.77:80", Mode::Proxy, &["10.78.0.11:80"], |_| {});
        let arp = |asked: [u8; 4]| {
            let head = [&[0xff; 6][..], &ROUTER, &[8, 6, 0, 1, 8, 0, 6, 4, 0, 1], &ROUTER].concat();
            [&head[..], &[10, 77, 0, 9], &[0; 6], &asked].concat()
        };
        let (verdict, got) = world.pass(engine, &arp([192, 0, 2, 10]));
        let head = [&ROUTER[..], &US[0], &[8, 6, 0, 1, 8, 0, 6, 4, 0, 2], &US[0]].concat();
        let want = [&head[..], &[192, 0, 2, 10], &ROUTER, &[10, 77, 0, 9]].concat();
        assert_eq!((verdict, got), (Verdict::Send(0), want));
        for other in [[192, 0, 2, 11], [192, 0, 2, 77], [10, 77, 0, 1]] {
            assert_eq!(world.pass(engine, &arp(other)).0, Verdict::Punt, "{other:?}");
        }
        let vip: core::net::Ipv6Addr = "2001:db8::10".parse().unwrap();
        let ask = |from: &str, target: core::net::Ipv6Addr, ttl: u8| {
            let group = ip("ff02::1:ff00:10");
            let body = [&target.octets()[..], &[1, 1], &ROUTER].concat();
            let ask = message(ip(from), group, 135, 0, [0; 4]).payload(&body).ttl(ttl);
            ask.macs(ROUTER, [0x33, 0x33, 0xff, 0, 0, 0x10]).frame()
        };
        let told = [&vip.octets()[..], &[2, 1], &US[0]].concat();
        for (from, to, flags, station) in [
            ("fd77::9", "fd77::9", 0x60, ROUTER),
            ("::", "ff02::1", 0x20, [0x33, 0x33, 0, 0, 0, 1]),
        ] {
            let (verdict, got) = world.pass(engine, &ask(from, vip, 255));
            let want = message(vip.into(), ip(to), 136, 0, [flags, 0, 0, 0]).payload(&told);
            let want = want.ttl(255).macs(US[0], station).frame();
            assert_eq!((verdict, got), (Verdict::Send(0), want), "{from}");
        }
        let far = world.pass(engine, &ask("fd77::9", vip, 254)).0;
        assert_eq!(far, Verdict::Drop(DropReason::BadTransport), "it has passed a router");
        let stranger = "2001:db8::99".parse().unwrap();
        assert_eq!(world.pass(engine, &ask("fd77::9", stranger, 255)).0, Verdict::Punt);
        // While another box has an address, or on other ports than it is announced on, nobody is told.
        let asked = [arp([192, 0, 2, 10]), ask("fd77::9", vip, 255)];
        for (ports, want) in
            [(0, Verdict::Punt), (2, Verdict::Punt), (1, Verdict::Send(0)), (3, Verdict::Send(0))]
        {
            world.tell(["192.0.2.10/32", "2001:db8::10/128"].map(|net| (net, ports)));
            for frame in &asked {
                assert_eq!(world.pass(engine, frame).0, want, "{ports}");
            }
        }
        world.tell([("192.0.2.0/24", 0), ("2001:db8::/64", 0)]);
        assert_eq!(world.pass(engine, &asked[0]).0, Verdict::Send(0), "the network is another's");
    });
}

#[test]
fn clients_hear_that_their_packets_are_too_large_for_a_tunnels_way() {
    for (client, vip, backend) in CASES {
        for tunnel in [Tunnel::Ipip, Tunnel::Gue, Tunnel::GueWithHeader] {
            for outer in ["10.78.0.11", "fd78::11"] {
                with_engine(|world, engine| {
                    let at = SocketAddr::new(ip(outer), 443).to_string();
                    world.serve(Protocol::Tcp, vip, Mode::Tunnel(tunnel), &[&at], |_| {});
                    let (client, vip) = (addr(client), addr(vip));
                    let large = tcp(client, vip, tcp_flags::ACK).payload(&[7; 1300]);
                    let (verdict, there) = world.pass(engine, &large.frame());
                    assert_eq!(verdict, Verdict::Send(1), "{tunnel:?} to {backend}");
                    // A router behind the first hop has a smaller link, and quotes 128 bytes.
                    let own = ip(if outer.contains(':') { "fd78::1" } else { "10.78.0.1" });
                    let router = ip(if outer.contains(':') { "fd78::99" } else { "10.78.0.99" });
                    let (kind, code) = if own.is_ipv4() { (3, 4) } else { (2, 0) };
                    let error = message(router, own, kind, code, 1300_u32.to_be_bytes());
                    let error = error.payload(&there[14..14 + 128]);
                    let (verdict, told) = world.pass(engine, &error.frame());
                    assert_eq!(verdict, Verdict::Send(0));
                    verify(&told);
                    let Parsed::Ip(packet) = parse(&told).unwrap() else { panic!() };
                    assert_eq!(packet.addresses.destination(), client.ip());
                    let l4 = usize::from(packet.l4);
                    let want = if client.is_ipv4() { [3, 4] } else { [2, 0] };
                    assert_eq!(told[l4..l4 + 2], want);
                    let mtu = u32::from_be_bytes(*told[l4 + 4..].first_chunk().unwrap());
                    assert_eq!(mtu as usize, 1300 - tunnel.overhead(ip(outer)));
                    let quoted = icmp::quoted(&told, &packet).unwrap();
                    assert_eq!(quoted.tuple, Tuple::new(client, vip, protocol::TCP).unwrap());
                });
            }
        }
    }
}

#[test]
fn clients_of_services_without_backends_are_told_so() {
    for (client, dialled, backend) in CASES {
        let (client, vip) = (addr(client), addr(dialled));
        let failed = addr(backend).ip().to_string();
        with_engine(|world, engine| {
            world.serve(Protocol::Tcp, dialled, Mode::Nat, &[backend], |_| {});
            world.fail(0, &[&failed]);
            let asks = syn(client, vip).numbers(77, 0).payload(b"early");
            let (verdict, got) = world.pass(engine, &asks.frame());
            let reset = tcp(vip, client, tcp_flags::RST | tcp_flags::ACK).numbers(0, 77 + 1 + 5);
            assert_eq!(verdict, Verdict::Send(0));
            verify(&got);
            let l4 = if client.is_ipv4() { 34 } else { 54 };
            let want = reset.macs(US[0], ROUTER).frame();
            assert_eq!(got[l4..l4 + 14], want[l4..l4 + 14], "ports, numbers and flags");
            // A connection that is under way may go on elsewhere, and hears nothing.
            world.services.clear();
            world.serve(Protocol::Tcp, dialled, Mode::Nat, &[], |_| {});
            let later = tcp(client, vip, tcp_flags::ACK).numbers(78, 5);
            let (verdict, _) = world.pass(engine, &later.frame());
            assert_eq!(verdict, Verdict::Drop(DropReason::NoBackend));
        });
        with_engine(|world, engine| {
            world.serve(Protocol::Udp, dialled, Mode::Nat, &[backend], |_| {});
            world.fail(0, &[&failed]);
            let asks = udp(client, vip).payload(b"anybody?");
            let (verdict, got) = world.pass(engine, &asks.frame());
            assert_eq!(verdict, Verdict::Send(0));
            verify(&got);
            let Parsed::Ip(packet) = parse(&got).unwrap() else { panic!() };
            let ends = (packet.addresses.source(), packet.addresses.destination());
            assert_eq!(ends, (vip.ip(), client.ip()));
            let (kind, code) = if client.is_ipv4() { (3, 3) } else { (1, 4) };
            assert_eq!(packet.transport, Transport::Icmp { kind, code });
            let quoted = icmp::quoted(&got, &packet).unwrap();
            assert_eq!(quoted.tuple, Tuple::new(client, vip, protocol::UDP).unwrap());
        });
    }
}

#[test]
fn a_vip_may_be_silent_while_nobody_serves() {
    with_engine(|world, engine| {
        let (client, vip) = (ip("203.0.113.7"), ip("192.0.2.10"));
        let asks = message(client, vip, 8, 0, [0, 7, 0, 1]);
        let wishes = |policy: &mut Policy| policy.echo_while_healthy = true;
        world.serve(Protocol::Tcp, "192.0.2.10:80", Mode::Nat, &["10.78.0.11:80"], wishes);
        world.serve(Protocol::Tcp, "192.0.2.10:81", Mode::Nat, &["10.78.0.12:80"], wishes);
        let mut answer = |world: &mut World| world.pass(engine, &asks.frame()).0;
        assert_eq!(answer(world), Verdict::Send(0));
        world.fail(0, &["10.78.0.11"]);
        assert_eq!(answer(world), Verdict::Send(0), "the other one serves");
        world.fail(1, &["10.78.0.12"]);
        assert_eq!(answer(world), Verdict::Drop(DropReason::NoBackend));
        world.serve(Protocol::Tcp, "192.0.2.10:82", Mode::Nat, &[], |_| {});
        assert_eq!(answer(world), Verdict::Send(0), "one that answers whatever happens");
        world.services.pop();
        world.fail(0, &[]);
        assert_eq!(answer(world), Verdict::Send(0));
    });
}

#[test]
fn clients_hear_that_nobody_is_at_a_tunnels_end() {
    for (client, vip, _) in CASES {
        for outer in ["10.78.0.11", "fd78::11"] {
            with_engine(|world, engine| {
                let at = SocketAddr::new(ip(outer), 443).to_string();
                let tunnel = Mode::Tunnel(Tunnel::Ipip);
                world.serve(Protocol::Tcp, vip, tunnel, &[&at], |_| {});
                let (client, vip) = (addr(client), addr(vip));
                let sent = tcp(client, vip, tcp_flags::ACK).payload(&[7; 64]);
                let (_, there) = world.pass(engine, &sent.frame());
                let own = ip(if outer.contains(':') { "fd78::1" } else { "10.78.0.1" });
                let router = ip(if outer.contains(':') { "fd78::99" } else { "10.78.0.99" });
                for (kind, code) in if own.is_ipv4() { [(3, 1), (11, 0)] } else { [(1, 3), (3, 0)] }
                {
                    let error = message(router, own, kind, code, [0; 4]).payload(&there[14..]);
                    let (verdict, told) = world.pass(engine, &error.frame());
                    assert_eq!(verdict, Verdict::Send(0));
                    verify(&told);
                    let Parsed::Ip(packet) = parse(&told).unwrap() else { panic!() };
                    let (kind, code) = if client.is_ipv4() { (3, 1) } else { (1, 3) };
                    assert_eq!(packet.transport, Transport::Icmp { kind, code });
                    assert_eq!(packet.addresses.destination(), client.ip());
                }
            });
        }
    }
}

#[test]
fn packets_quoted_with_extension_headers_are_known() {
    with_engine(|world, engine| {
        let (client, vip, backend) = CASES[1];
        world.serve(Protocol::Udp, vip, Mode::Nat, &[backend], |_| {});
        let (client, vip, backend) = (addr(client), addr(vip), addr(backend));
        world.pass(engine, &udp(client, vip).payload(b"x").frame());
        // Hop-by-hop options, then a first fragment.
        let options = [protocol::FRAGMENT, 0, 1, 4, 0, 0, 0, 0, protocol::UDP, 0, 0, 1, 0, 0, 0, 9];
        let about = udp(client, backend).payload(b"x").options(&options).packet();
        let error = message(ip("fd78::254"), client.ip(), 1, 0, [0; 4]).payload(&about);
        let (verdict, got) = world.pass(engine, &error.frame());
        assert_eq!(verdict, Verdict::Send(0));
        verify(&got);
        let Parsed::Ip(packet) = parse(&got).unwrap() else { panic!() };
        let quoted = icmp::quoted(&got, &packet).unwrap();
        assert_eq!(quoted.tuple, Tuple::new(client, vip, protocol::UDP).unwrap());
    });
}
