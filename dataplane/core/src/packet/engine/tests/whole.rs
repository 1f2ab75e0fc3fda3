//! Super-packets: what is sent whole and cut then is what would have been cut and sent.

use super::*;
use crate::packet::Segments;

/// Sees a client and its backend become acquainted; who the backend spoke to, and from where.
fn establish(
    world: &mut World,
    engine: &mut Engine<'_>,
    protocol: Protocol,
    (client, vip): (SocketAddr, SocketAddr),
) -> (SocketAddr, SocketAddr) {
    let [first, second] = packets(protocol, client, vip);
    let (verdict, got) = world.pass(engine, &first.frame());
    assert_eq!(verdict, Verdict::Send(1));
    let Ok(Parsed::Ip(packet)) = parse(&got) else { panic!("no IP packet") };
    let (from, to) = packet.transport.ports().unwrap();
    let backend = SocketAddr::new(packet.addresses.destination(), to);
    let peer = SocketAddr::new(packet.addresses.source(), from);
    let answer = match protocol {
        Protocol::Tcp => tcp(backend, peer, tcp_flags::SYN | tcp_flags::ACK),
        _ => udp(backend, peer).payload(b"answer"),
    };
    world.pass(engine, &answer.frame());
    world.pass(engine, &second.frame());
    (backend, peer)
}

/// The frame as its sender leaves it to its port.
fn partial(mut frame: Vec<u8>) -> Vec<u8> {
    let Ok(Parsed::Ip(packet)) = parse(&frame) else { panic!("no IP packet") };
    let l4 = usize::from(packet.l4);
    let field = l4 + if packet.protocol == protocol::TCP { 16 } else { 6 };
    let length = usize::from(packet.end) - l4;
    let sum = packet.addresses.pseudo_header(packet.protocol, length).folded();
    frame[field..field + 2].copy_from_slice(&sum.to_be_bytes());
    frame
}

/// What a port makes of a super-packet.
fn cut(frame: &[u8], payload: u16) -> Vec<Vec<u8>> {
    let mut segments = Segments::of(frame, payload).unwrap();
    let mut out = [0; 2048];
    let parts = core::iter::from_fn(|| segments.next_summed(&mut out).map(|n| out[..n].to_vec()));
    let parts: Vec<_> = parts.collect();
    parts.iter().for_each(|part| verify(part));
    parts
}

fn whole(
    world: &World,
    engine: &mut Engine<'_>,
    bytes: &[u8],
    payload: u16,
) -> (Option<u16>, Vec<u8>) {
    let mut bytes = bytes.to_vec();
    let length = bytes.len();
    let mut frame = Frame::new(&mut bytes, 0, length);
    frame.checksum = TransportChecksum::Partial;
    let cx = context(&world.snapshot, &world.clients, world.now);
    let port = engine.whole(&mut frame, payload, &cx);
    assert_eq!(frame.checksum, TransportChecksum::Partial, "it is left to the port");
    (port, frame.bytes().to_vec())
}

fn segment(
    protocol: Protocol,
    (from, to): (SocketAddr, SocketAddr),
    options: bool,
    data: &[u8],
) -> Sample {
    match protocol {
        Protocol::Tcp => {
            let stamps: &[u8] = if options { &[1, 1, 8, 10, 0, 0, 0, 1, 0, 0, 0, 2] } else { &[] };
            tcp(from, to, tcp_flags::ACK | tcp_flags::PSH | tcp_flags::CWR)
                .tcp_options(stamps)
                .payload(data)
        }
        _ => udp(from, to).payload(data),
    }
}

proptest! {
    #[test]
    fn what_is_sent_whole_and_cut_is_what_is_cut_and_sent(
        case in 0..2_usize,
        mode in prop::sample::select(&[Mode::Nat, Mode::FullNat, Mode::Dsr][..]),
        is_tcp in any::<bool>(),
        replies in any::<bool>(),
        options in any::<bool>(),
        payload in 100_u16..=1428,
        data in prop::collection::vec(any::<u8>(), 1500..5000),
    ) {
        let protocol = if is_tcp { Protocol::Tcp } else { Protocol::Udp };
        let (client, vip, backend) = CASES[case];
        let (client, vip) = (addr(client), addr(vip));
        with_engine(|world, engine| {
            let port = if mode == Mode::Dsr { vip.port() } else { addr(backend).port() };
            let backend = SocketAddr::new(addr(backend).ip(), port).to_string();
            world.serve(protocol, &alloc::format!("{vip}"), mode, &[&backend], |_| {});
            let back = establish(world, engine, protocol, (client, vip));
            let ends = match replies && mode != Mode::Dsr {
                true => back,
                false => (client, vip),
            };
            let frame = partial(segment(protocol, ends, options, &data).frame());
            let parts: Vec<_> = cut(&frame, payload)
                .iter()
                .map(|part| world.pass(engine, part))
                .collect();
            let (port, sent) = whole(world, engine, &frame, payload);
            // Who answers past us is never known to have answered.
            if mode == Mode::Dsr && port.is_none() {
                assert_eq!((protocol, sent), (Protocol::Udp, frame));
                return;
            }
            let sent_by = Verdict::Send(port.expect("nothing but its addresses changes"));
            let got: Vec<_> = cut(&sent, payload).into_iter().map(|part| (sent_by, part)).collect();
            assert_eq!(got, parts);
            // Who cuts goes by the sum that it finds there.
            assert_eq!(partial(sent.clone()), sent);
        });
    }
}

#[test]
fn what_is_more_than_addresses_is_left_to_be_cut() {
    let data = [7; 4000];
    for (client, vip, backend) in CASES {
        let ends = (addr(client), addr(vip));
        let is_left = |world: &World, engine: &mut Engine<'_>, frame: &[u8], payload: u16| {
            let (port, sent) = whole(world, engine, frame, payload);
            assert_eq!((port, &sent[..]), (None, frame));
        };
        let plain = partial(segment(Protocol::Tcp, ends, false, &data).frame());
        with_engine(|world, engine| {
            world.serve(Protocol::Tcp, vip, Mode::Nat, &[backend], |_| {});
            is_left(world, engine, &plain, 1000);
            assert_eq!(engine.flows().len(), 0, "no flow begins with one");
            establish(world, engine, Protocol::Tcp, ends);
            let header = if ends.0.is_ipv4() { 40 } else { 60 };
            is_left(world, engine, &plain, 1501 - header);
            let sent = engine.counters.sent.get();
            assert_eq!(whole(world, engine, &plain, 1500 - header).0, Some(1));
            assert_eq!(engine.counters.sent.get(), sent + 1);
            let last = tcp(ends.0, ends.1, tcp_flags::ACK | tcp_flags::FIN).payload(&data);
            is_left(world, engine, &partial(last.frame()), 1000);
            let worn = segment(Protocol::Tcp, ends, false, &data).ttl(1);
            is_left(world, engine, &partial(worn.frame()), 1000);
            let mut short = plain.clone();
            short.truncate(50);
            is_left(world, engine, &short, 1000);
            // Without a partial sum nobody would know what to put in.
            let mut bytes = plain.clone();
            let length = bytes.len();
            let mut frame = Frame::new(&mut bytes, 0, length);
            let cx = context(&world.snapshot, &world.clients, world.now);
            assert_eq!(engine.whole(&mut frame, 1000, &cx), None);
            world.now.0 += 700_000;
            is_left(world, engine, &plain, 1000);
        });
        for tunnel in [Tunnel::Ipip, Tunnel::Gue] {
            with_engine(|world, engine| {
                let to = SocketAddr::new(addr(backend).ip(), ends.1.port()).to_string();
                world.serve(Protocol::Tcp, vip, Mode::Tunnel(tunnel), &[&to], |_| {});
                for sample in packets(Protocol::Tcp, ends.0, ends.1) {
                    world.pass(engine, &sample.frame());
                }
                is_left(world, engine, &plain, 1000);
            });
        }
        with_engine(|world, engine| {
            world.serve(Protocol::Tcp, vip, Mode::Nat, &[backend], |policy| {
                policy.source.toa = true;
            });
            establish(world, engine, Protocol::Tcp, ends);
            is_left(world, engine, &plain, 1000);
        });
    }
}
