//! Fragments, in every order, of packets that came in parts and of those that leave in parts.

use super::*;
use crate::packet::parse::ETHERNET;
use crate::packet::steer::Steering;

/// A datagram of 3000 bytes in three parts, as `from` sends it.
fn parts(from: SocketAddr, to: SocketAddr, id: u16) -> [Vec<u8>; 3] {
    let data: Vec<u8> = (0..3000_u32).map(|n| n as u8).collect();
    let whole = udp(from, to).payload(&data);
    let packet = whole.packet();
    let l4 = parse_ip(&packet, 0).unwrap().l4.into();
    let body = &packet[l4..];
    let cut = |start: usize, end: usize| &body[start..end.min(body.len())];
    // The first part as it is: ports, length and checksum of the whole.
    let first = udp(from, to).id(id).raw(cut(0, 1440)).part(0, true);
    let second = udp(from, to).id(id).part(1440, true).payload(cut(1440, 2880));
    let third = udp(from, to).id(id).part(2880, false).payload(cut(2880, body.len()));
    [first, second, third].map(|part| part.frame())
}

/// Puts parts together, and asserts that the datagram is whole and summed right.
fn whole(parts: &[Vec<u8>]) -> (IpAddr, IpAddr, (u16, u16)) {
    let mut pieces: Vec<(u16, Vec<u8>)> = Vec::new();
    let mut ends = None;
    for part in parts {
        let Parsed::Ip(packet) = parse(part).unwrap() else { panic!() };
        let fragment = packet.fragment.unwrap();
        pieces.push((fragment.offset, part[packet.l4.into()..packet.end.into()].to_vec()));
        ends = Some(packet.addresses);
    }
    pieces.sort();
    let body: Vec<u8> = pieces.into_iter().flat_map(|(_, bytes)| bytes).collect();
    assert_eq!(body.len(), 3008);
    assert!(body[8..].iter().enumerate().all(|(n, byte)| *byte == n as u8));
    let ends = ends.unwrap();
    let sum = ends.pseudo_header(protocol::UDP, body.len()).bytes(&body).folded();
    assert_eq!(sum, 0xffff);
    let port = |at: usize| u16::from_be_bytes([body[at], body[at + 1]]);
    (ends.source(), ends.destination(), (port(0), port(2)))
}

const ENDS: [(&str, &str, &str); 2] = [
    ("203.0.113.7:4711", "192.0.2.10:53", "10.78.0.11:5353"),
    ("[2001:db8:7::7]:4711", "[2001:db8::10]:53", "[fd78::11]:5353"),
];

#[test]
fn fragments_follow_their_first_in_every_order_and_both_directions() {
    for (client, vip, backend) in ENDS {
        let (client, vip) = (addr(client), addr(vip));
        for order in [[0, 1, 2], [1, 0, 2], [2, 1, 0], [1, 2, 0], [0, 2, 1], [2, 0, 1]] {
            with_engine(|world, engine| {
                world.serve(
                    Protocol::Udp,
                    ENDS[usize::from(vip.is_ipv6())].1,
                    Mode::Nat,
                    &[backend],
                    |_| {},
                );
                for (n, (from, to, port)) in
                    [(client, vip, 1), (addr(backend), client, 0)].into_iter().enumerate()
                {
                    let parts = parts(from, to, 77 + n as u16);
                    let mut sent = Vec::new();
                    for n in order {
                        let (verdict, frame) = world.pass(engine, &parts[n]);
                        match verdict {
                            Verdict::Send(out) => {
                                assert_eq!(out, port);
                                sent.push(frame);
                            }
                            verdict => assert_eq!(verdict, Verdict::Wait),
                        }
                        while let Some((verdict, frame)) = world.replay(engine) {
                            assert_eq!(verdict, Verdict::Send(port));
                            sent.push(frame);
                        }
                    }
                    let (source, destination, ports) = whole(&sent);
                    match n {
                        0 => assert_eq!((source, destination), (client.ip(), addr(backend).ip())),
                        _ => assert_eq!((source, destination), (vip.ip(), client.ip())),
                    }
                    assert_eq!(ports, if n == 0 { (4711, 5353) } else { (53, 4711) });
                }
                assert_eq!(engine.flows().len(), 1);
            });
        }
    }
}

#[test]
fn what_never_gets_a_first_fragment_goes_and_is_counted() {
    with_engine(|world, engine| {
        world.serve(Protocol::Udp, "192.0.2.10:53", Mode::Nat, &["10.78.0.11:5353"], |_| {});
        let (client, vip) = (addr("203.0.113.7:4711"), addr("192.0.2.10:53"));
        let [_, second, _] = parts(client, vip, 5);
        assert_eq!(world.pass(engine, &second).0, Verdict::Wait);
        assert_eq!(world.replay(engine), None);
        world.now = world.now.plus(Duration::from_secs(1));
        assert_eq!(world.replay(engine).unwrap().0, Verdict::Drop(DropReason::Fragment));
        assert_eq!(world.replay(engine), None);
        let mut last = Verdict::Punt;
        for _ in 0..46 {
            last = world.pass(engine, &second).0;
        }
        assert_eq!(last, Verdict::Drop(DropReason::Fragment), "what waits is bounded");
        // Fragments that are none of ours are left to the kernel.
        let [first, second, _] = parts(client, addr("192.0.2.99:53"), 6);
        assert_eq!(world.pass(engine, &first).0, Verdict::Punt);
        assert_eq!(world.pass(engine, &second).0, Verdict::Punt);
    });
}

#[test]
fn packets_that_may_be_fragmented_leave_in_parts() {
    for mode in [Mode::Nat, Mode::Tunnel(Tunnel::Ipip), Mode::Tunnel(Tunnel::Gue)] {
        with_engine(|world, engine| {
            world.serve(Protocol::Udp, "192.0.2.10:53", mode, &["10.78.0.11:53"], |_| {});
            let (client, vip) = (addr("203.0.113.7:4711"), addr("192.0.2.10:53"));
            let data: Vec<u8> = (0..3000_u32).map(|n| n as u8).collect();
            // A jumbo frame; its sender lets it be fragmented.
            let (verdict, frame) = world.pass(engine, &udp(client, vip).payload(&data).frame());
            assert_eq!(verdict, Verdict::Send(1), "{mode:?}");
            let mut sent = alloc::vec![frame];
            while let Some((verdict, frame)) = world.replay(engine) {
                assert_eq!(verdict, Verdict::Send(1));
                sent.push(frame);
            }
            assert_eq!(sent.len(), 3, "{mode:?}");
            assert!(sent.iter().all(|frame| frame.len() <= ETHERNET + 1500));
            let overhead = match mode {
                Mode::Tunnel(tunnel) => tunnel.overhead(ip("10.78.0.11")),
                _ => 0,
            };
            let inner: Vec<Vec<u8>> = sent
                .iter()
                .map(|frame| [&frame[..ETHERNET], &frame[ETHERNET + overhead..]].concat())
                .collect();
            let (source, _, ports) = whole(&inner);
            assert_eq!((source, ports), (client.ip(), (4711, 53)));
        });
    }
}

#[test]
fn parts_come_to_the_worker_that_has_the_flow() {
    let mut regions: Vec<_> = (0..2).map(|_| HeapRegion::new(SHAPE.bytes())).collect();
    let mut engines: Vec<_> = (0..)
        .zip(&mut regions)
        .map(|(worker, region)| {
            let flows = FlowTable::open(region.bytes(), SHAPE, [1, 2], false).unwrap();
            Engine::new(flows, Arc::default(), Steering::of(worker, 2), 0)
        })
        .collect();
    let mut world = World::new();
    world.serve(Protocol::Udp, "192.0.2.10:53", Mode::Nat, &["10.78.0.11:53"], |_| {});
    let (vip, backend) = (addr("192.0.2.10:53"), addr("10.78.0.11:53"));
    let two = Steering::of(0, 2);
    for port in 4000..4020 {
        let client = SocketAddr::new(ip("203.0.113.7"), port);
        let home = usize::from(two.home(client.ip(), port));
        for (from, to) in [(client, vip), (backend, client)] {
            let parts = parts(from, to, port);
            let arrives = usize::from(two.home(client.ip(), 0));
            let mut sent = Vec::new();
            for n in [0, 2, 1] {
                let (verdict, frame) = world.pass(&mut engines[arrives], &parts[n]);
                let (verdict, frame) = match verdict {
                    Verdict::Pass(other) => {
                        assert_eq!(usize::from(other), home);
                        assert_eq!(frame, parts[n], "untouched");
                        world.pass(&mut engines[home], &frame)
                    }
                    verdict => (verdict, frame),
                };
                assert!(matches!(verdict, Verdict::Send(_)), "{verdict:?}");
                sent.push(frame);
            }
            whole(&sent);
        }
        assert!(engines[home].flows().iter().any(|view| view.flow.client == client));
    }
    assert_eq!(engines.iter().map(|engine| engine.flows().len()).sum::<usize>(), 20);
}
