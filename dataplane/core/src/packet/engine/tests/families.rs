//! Packets that change their family, there and back, and errors about them.

use super::*;
use crate::packet::icmp;

/// Client, VIP, backend and our own address towards it.
const ENDS: [(&str, &str, &str, &str); 2] = [
    ("[2001:db8:7::7]:4711", "[2001:db8::10]:443", "10.78.0.11:8443", "10.78.0.1"),
    ("203.0.113.7:4711", "192.0.2.10:443", "[fd78::11]:8443", "fd78::1"),
];

/// What has the same meaning in either family.
fn told(frame: &[u8]) -> (IpAddr, IpAddr, (u16, u16), Vec<u8>) {
    verify(frame);
    let Parsed::Ip(packet) = parse(frame).unwrap() else { panic!() };
    let header = match packet.transport {
        Transport::Tcp { header, .. } => header.into(),
        _ => 8,
    };
    let payload = frame[usize::from(packet.l4) + header..packet.end.into()].to_vec();
    let (from, to) = (packet.addresses.source(), packet.addresses.destination());
    assert_eq!(packet.ttl, 63);
    (from, to, packet.transport.ports().unwrap(), payload)
}

#[test]
fn packets_cross_and_come_back() {
    for (client, vip, backend, own) in ENDS {
        for mode in [Mode::Nat, Mode::FullNat] {
            for protocol in [Protocol::Tcp, Protocol::Udp] {
                with_engine(|world, engine| {
                    world.serve(protocol, vip, mode, &[backend], |_| {});
                    let (client, vip, backend) = (addr(client), addr(vip), addr(backend));
                    let data = b"a payload of odd length";
                    let packet = |from, to| match protocol {
                        Protocol::Tcp => tcp(from, to, tcp_flags::ACK).payload(data),
                        _ => udp(from, to).payload(data),
                    };
                    for _ in 0..2 {
                        let (verdict, got) = world.pass(engine, &packet(client, vip).frame());
                        assert_eq!(verdict, Verdict::Send(1));
                        let (from, to, ports, payload) = told(&got);
                        assert_eq!((from, to), (ip(own), backend.ip()));
                        assert_eq!((ports.1, &payload[..]), (8443, &data[..]));
                        let local = SocketAddr::new(from, ports.0);
                        let (verdict, got) = world.pass(engine, &packet(backend, local).frame());
                        assert_eq!(verdict, Verdict::Send(0));
                        let want = (vip.ip(), client.ip(), (443, 4711), data.to_vec());
                        assert_eq!(told(&got), want);
                    }
                    assert_eq!(engine.flows().len(), 1);
                    let flow = engine.flows().iter().next().unwrap();
                    assert!(flow.bytes > 100, "{flow:?}");
                });
            }
        }
    }
}

#[test]
fn errors_cross_with_what_they_quote() {
    for (client, vip, backend, own) in ENDS {
        with_engine(|world, engine| {
            world.serve(Protocol::Udp, vip, Mode::Nat, &[backend], |_| {});
            let (client, vip, backend) = (addr(client), addr(vip), addr(backend));
            let asks = udp(client, vip).payload(&[7; 900]);
            let (_, there) = world.pass(engine, &asks.frame());
            let Parsed::Ip(sent) = parse(&there).unwrap() else { panic!() };
            let quote = &there[usize::from(sent.l3)..usize::from(sent.end)];
            let to_v6 = backend.is_ipv4();
            // Nobody is at the port; the way is too narrow; the time to live is over.
            let cases = match to_v6 {
                true => {
                    [((3, 3, 0), (1, 4, 0)), ((3, 4, 1400), (2, 0, 1420)), ((11, 0, 0), (3, 0, 0))]
                }
                false => {
                    [((1, 4, 0), (3, 3, 0)), ((2, 0, 1400), (3, 4, 1380)), ((3, 0, 0), (11, 0, 0))]
                }
            };
            for ((kind, code, rest), want) in cases {
                let rest = u32::to_be_bytes(rest);
                let about = message(backend.ip(), ip(own), kind, code, rest);
                let (verdict, got) =
                    world.pass(engine, &about.payload(&quote[..quote.len().min(500)]).frame());
                assert_eq!(verdict, Verdict::Send(0), "{kind} {code}");
                let Parsed::Ip(packet) = parse(&got).unwrap() else { panic!() };
                verify(&got);
                assert_eq!(packet.addresses.source(), vip.ip(), "it speaks as the VIP");
                assert_eq!(packet.addresses.destination(), client.ip());
                let l4 = usize::from(packet.l4);
                let rest = u32::from_be_bytes(*got[l4 + 4..].first_chunk().unwrap());
                assert_eq!((got[l4], got[l4 + 1], rest), want);
                // It quotes what the client has sent.
                let quoted = icmp::quoted(&got, &packet).unwrap();
                let tuple = Tuple::new(client, vip, protocol::UDP).unwrap();
                assert_eq!(quoted.tuple, tuple);
                assert_eq!(quoted.body(&got), Some(908));
            }
            // And an error about a reply goes to the backend, as one about what that has sent.
            let about = udp(vip, client).payload(b"answer").packet();
            let (kind, code) = if to_v6 { (1, 4) } else { (3, 3) };
            let error = message(client.ip(), vip.ip(), kind, code, [0; 4]).payload(&about);
            let (verdict, got) = world.pass(engine, &error.frame());
            assert_eq!(verdict, Verdict::Send(1));
            verify(&got);
            let Parsed::Ip(packet) = parse(&got).unwrap() else { panic!() };
            assert_eq!(packet.addresses.source(), ip(own));
            assert_eq!(packet.addresses.destination(), backend.ip());
            let quoted = icmp::quoted(&got, &packet).unwrap();
            assert_eq!(quoted.tuple.addresses.source(), backend.ip());
        });
    }
}

#[test]
fn sizes_follow_the_family() {
    // An IPv4 packet grows by 20 bytes: 1480 are too many for a link of 1500, less 20.
    let (client, vip, backend, _) = ENDS[1];
    with_engine(|world, engine| {
        world.serve(Protocol::Udp, vip, Mode::Nat, &[backend], |_| {});
        let (client, vip) = (addr(client), addr(vip));
        let fits = udp(client, vip).payload(&[1; 1452]).whole();
        assert_eq!(world.pass(engine, &fits.frame()).0, Verdict::Send(1));
        let large = udp(client, vip).payload(&[1; 1453]).whole();
        let (verdict, got) = world.pass(engine, &large.frame());
        assert_eq!(verdict, Verdict::Send(0));
        let Parsed::Ip(packet) = parse(&got).unwrap() else { panic!() };
        let l4 = usize::from(packet.l4);
        assert_eq!(got[l4..l4 + 2], [3, 4]);
        assert_eq!(got[l4 + 6..l4 + 8], 1480_u16.to_be_bytes());
        // One that may be fragmented goes in parts, each with its extension header.
        let parts = udp(client, vip).payload(&[1; 1453]);
        let (verdict, first) = world.pass(engine, &parts.frame());
        assert_eq!(verdict, Verdict::Send(1));
        let (verdict, second) = world.replay(engine).unwrap();
        assert_eq!(verdict, Verdict::Send(1));
        let mut length = 0;
        for part in [first, second] {
            let Parsed::Ip(packet) = parse(&part).unwrap() else { panic!() };
            assert!(packet.fragment.is_some() && part.len() <= 14 + 1500);
            length += usize::from(packet.end - packet.l4);
        }
        assert_eq!(length, 1461);
    });
    // Datagrams without a checksum get one.
    with_engine(|world, engine| {
        world.serve(Protocol::Udp, ENDS[1].1, Mode::Nat, &[backend], |_| {});
        let mut frame = udp(addr(client), addr(vip)).payload(b"unsummed").frame();
        frame[40..42].fill(0);
        let (verdict, got) = world.pass(engine, &frame);
        assert_eq!(verdict, Verdict::Send(1));
        verify(&got);
        let Parsed::Ip(packet) = parse(&got).unwrap() else { panic!() };
        assert_ne!(got[usize::from(packet.l4) + 6..usize::from(packet.l4) + 8], [0, 0]);
    });
}
