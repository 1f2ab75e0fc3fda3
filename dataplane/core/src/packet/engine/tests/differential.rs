//! The same packets by different ways: the short way and the long one, one worker and four.

use super::*;
use alloc::collections::BTreeMap;

const VIPS: [(&str, Mode, &[&str]); 9] = [
    ("192.0.2.10:80", Mode::Nat, &["10.78.0.11:8080", "10.78.0.12:8080"]),
    ("192.0.2.11:80", Mode::Dsr, &["10.78.0.11:80", "10.78.0.12:80"]),
    ("192.0.2.12:80", Mode::Tunnel(Tunnel::Gue), &["10.78.0.11:80", "fd78::12"]),
    ("[2001:db8::10]:80", Mode::Nat, &["[fd78::11]:8080", "10.78.0.12:8080"]),
    ("192.0.2.13:80", Mode::FullNat, &["10.78.0.11:8080"]),
    ("[2001:db8::11]:80", Mode::FullNat, &["[fd78::11]:8080"]),
    ("[2001:db8::12]:80", Mode::Tunnel(Tunnel::GueWithHeader), &["[fd78::11]:80", "10.78.0.12:80"]),
    ("[2001:db8::13]:80", Mode::Tunnel(Tunnel::Ipip), &["[fd78::11]:80"]),
    ("192.0.2.14:80", Mode::Tunnel(Tunnel::Ipip), &["10.78.0.11:80", "10.78.0.12:80"]),
];

fn serve(world: &mut World) {
    for (vip, mode, backends) in VIPS {
        for protocol in [Protocol::Tcp, Protocol::Udp] {
            let backends: Vec<_> = backends
                .iter()
                .map(|at| if at.ends_with("::12") { "[fd78::12]:80" } else { *at })
                .collect();
            world.serve(protocol, vip, mode, &backends, |policy| {
                policy.retry.on_connect = false;
            });
        }
    }
}

/// A packet of client `n` to one of the VIPs, as a real client would send one there.
fn packet(n: u16, which: usize, step: u8, data: &[u8]) -> Sample {
    let vip = addr(VIPS[which % VIPS.len()].0);
    let client = match vip.is_ipv4() {
        true => SocketAddr::new(ip(&alloc::format!("203.0.113.{}", n % 7 + 1)), 2000 + n),
        false => SocketAddr::new(ip(&alloc::format!("2001:db8:7::{}", n % 7 + 1)), 2000 + n),
    };
    match step {
        0 => syn(client, vip),
        1..=4 => tcp(client, vip, tcp_flags::ACK).payload(data),
        5 => tcp(client, vip, tcp_flags::ACK | tcp_flags::FIN).payload(data),
        6 => tcp(client, vip, tcp_flags::RST),
        7 => tcp(client, vip, tcp_flags::ACK).ttl(1),
        8 => tcp(client, vip, tcp_flags::ACK).payload(&[3; 1500]).whole(),
        9 => udp(client, vip).payload(data).options(if vip.is_ipv4() { &[1; 4] } else { &[] }),
        _ => udp(client, vip).payload(data),
    }
}

/// What the backend, or whoever a packet was sent to, answers; none when that is no packet of a
/// flow that comes back through here.
fn answer(sent: &[u8]) -> Option<Sample> {
    let Ok(Parsed::Ip(packet)) = parse(sent) else { return None };
    let (from, to) = packet.transport.ports()?;
    let here = SocketAddr::new(packet.addresses.destination(), to);
    let there = SocketAddr::new(packet.addresses.source(), from);
    let sample = match packet.transport {
        Transport::Tcp { flags, .. } if flags & tcp_flags::SYN != 0 => {
            tcp(here, there, tcp_flags::SYN | tcp_flags::ACK)
        }
        Transport::Tcp { flags, .. } if flags & tcp_flags::FIN != 0 => {
            tcp(here, there, tcp_flags::FIN | tcp_flags::ACK)
        }
        Transport::Tcp { .. } => tcp(here, there, tcp_flags::ACK).payload(b"answer"),
        _ => udp(here, there).payload(b"answer"),
    };
    Some(sample.macs([9; 6], OUR_MAC))
}

fn engine(region: &mut HeapRegion, steering: Steering) -> Engine<'_> {
    let flows = FlowTable::open(region.bytes(), SHAPE, [1, 2], false).unwrap();
    Engine::new(flows, Arc::default(), steering, 0)
}

/// A frame by the long way alone.
fn long_way(world: &World, engine: &mut Engine<'_>, bytes: &[u8]) -> (Verdict, Vec<u8>) {
    let mut buffer = alloc::vec![0xee; 128];
    buffer.extend(bytes);
    let end = buffer.len();
    buffer.extend([0xdd; 64]);
    let mut frame = Frame::new(&mut buffer, 128, end);
    let cx = context(&world.snapshot, &world.clients, world.now);
    let verdict = engine.one(&mut frame, &cx);
    engine.turn(&cx);
    (verdict, frame.bytes().to_vec())
}

/// Frames by client and VIP.
type Sent = BTreeMap<(u16, usize), Vec<Vec<u8>>>;

fn steps() -> impl Strategy<Value = Vec<(u16, usize, u8, Vec<u8>)>> {
    let data = prop::collection::vec(any::<u8>(), 0..60);
    prop::collection::vec((0_u16..12, 0..VIPS.len(), 0_u8..14, data), 1..120)
}

proptest! {
    #[test]
    fn the_short_way_makes_of_a_packet_what_the_long_one_makes(steps in steps()) {
        let (mut first, mut second) = (HeapRegion::new(SHAPE.bytes()), HeapRegion::new(SHAPE.bytes()));
        let mut short = engine(&mut first, Steering::ALONE);
        let mut long = engine(&mut second, Steering::ALONE);
        // Two worlds: places are counted in each.
        let mut worlds = [World::new(), World::new()];
        worlds.iter_mut().for_each(serve);
        let mut both = |bytes: &[u8]| {
            let [a, b] = &mut worlds;
            let want = long_way(b, &mut long, bytes);
            let got = a.pass(&mut short, bytes);
            // Hop limits may be low, and padding may follow.
            (got, want)
        };
        for (n, which, step, data) in steps {
            let mut bytes = packet(n, which, step, &data).frame();
            bytes.extend(&[0; 6][..usize::from(n % 3)]);
            let (got, want) = both(&bytes);
            prop_assert_eq!(&got, &want, "{} {} {}", n, which, step);
            if let Some(answer) = (got.0 == Verdict::Send(1)).then(|| answer(&got.1)).flatten() {
                let (got, want) = both(&answer.frame());
                prop_assert_eq!(got, want, "answer to {} {} {}", n, which, step);
            }
        }
        let flows = |engine: &Engine<'_>| {
            let mut flows: Vec<_> = engine.flows().iter().map(|v| alloc::format!("{v:?}")).collect();
            flows.sort();
            flows
        };
        prop_assert_eq!(flows(&short), flows(&long));
    }

    #[test]
    fn one_worker_and_four_send_the_same_packets_of_a_flow(steps in steps()) {
        let mut outputs: Vec<Sent> = Vec::new();
        for workers in [1, 4] {
            let mut regions: Vec<_> = (0..workers).map(|_| HeapRegion::new(SHAPE.bytes())).collect();
            let mut engines: Vec<_> = (0..)
                .zip(&mut regions)
                .map(|(worker, region)| engine(region, Steering::of(worker, workers)))
                .collect();
            let mut world = World::new();
            serve(&mut world);
            // A port that does not divide packets brings them to anybody, who knows whose they are.
            let mut deliver = |world: &mut World, at: usize, bytes: &[u8]| {
                let (verdict, frame) = world.pass(&mut engines[at % usize::from(workers)], bytes);
                let Verdict::Pass(home) = verdict else { return (verdict, frame) };
                let (verdict, frame) = world.pass(&mut engines[usize::from(home)], bytes);
                assert!(!matches!(verdict, Verdict::Pass(_)), "it is passed on once");
                (verdict, frame)
            };
            let mut sent = Sent::new();
            for (at, (n, which, step, data)) in steps.iter().enumerate() {
                // Ports of our own are the worker's, and differ by right.
                let which = which % 4;
                let bytes = packet(*n, which, *step, data).frame();
                let (verdict, frame) = deliver(&mut world, at, &bytes);
                let crossed = which == 3 && frame.get(12..14) == Some(&[8, 0][..]);
                if crossed {
                    continue;
                }
                let of_flow = sent.entry((*n, which)).or_default();
                if verdict == Verdict::Send(1) && let Some(answer) = answer(&frame) {
                    of_flow.push(deliver(&mut world, at / 4, &answer.frame()).1);
                }
                of_flow.push(frame);
            }
            outputs.push(sent);
        }
        prop_assert_eq!(&outputs[0], &outputs[1]);
    }
}
