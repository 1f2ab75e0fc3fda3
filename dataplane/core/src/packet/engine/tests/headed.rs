//! Backends that are told of their clients, within the clients' own connections.

use super::*;
use crate::SendHeader;
use crate::packet::head::Head;
use crate::proxy_header::{self, HeaderFormat};
use alloc::collections::BTreeMap;

/// A connection through a `fullNat` service with `head`, as both of its ends see it.
struct Talk {
    client: SocketAddr,
    vip: SocketAddr,
    backend: SocketAddr,
    /// Ours towards the backend; known from the first segment on.
    local: SocketAddr,
    isn: u32,
}

/// A TCP segment that came out.
struct Segment {
    from: SocketAddr,
    to: SocketAddr,
    sequence: u32,
    acknowledged: u32,
    options: Vec<u8>,
    data: Vec<u8>,
}

fn segment(frame: &[u8]) -> Segment {
    verify(frame);
    let Parsed::Ip(packet) = parse(frame).unwrap() else { panic!() };
    let Transport::Tcp { ports, header, .. } = packet.transport else { panic!() };
    let l4 = usize::from(packet.l4);
    let data = l4 + usize::from(header);
    let number = |at: usize| u32::from_be_bytes(*frame[l4 + at..].first_chunk().unwrap());
    Segment {
        from: SocketAddr::new(packet.addresses.source(), ports.0),
        to: SocketAddr::new(packet.addresses.destination(), ports.1),
        sequence: number(4),
        acknowledged: number(8),
        options: frame[l4 + 20..data].to_vec(),
        data: frame[data..packet.end.into()].to_vec(),
    }
}

const ACK: u8 = tcp_flags::ACK;
const SYN: u8 = tcp_flags::SYN;
/// The backend's first number.
const THEIRS: u32 = 0xffff_ff00;
const TIMES: [u8; 12] = [1, 1, 8, 10, 0, 0, 0, 1, 0, 0, 0, 2];

impl Talk {
    fn with(head: Head, v6: bool, isn: u32, test: impl FnOnce(&mut World, &mut Engine<'_>, Self)) {
        let (client, vip, backend) = CASES[usize::from(v6)];
        with_engine(|world, engine| {
            world.serve(Protocol::Tcp, vip, Mode::FullNat, &[backend], |policy| match head {
                Head::Proxy { crc32c } => {
                    let format = HeaderFormat::V2 { crc32c };
                    policy.proxy_protocol.send = Some(SendHeader { format, unique_id: false });
                }
                Head::Toa => policy.source.toa = true,
            });
            let [client, vip, backend] = [client, vip, backend].map(addr);
            test(world, engine, Self { client, vip, backend, local: vip, isn });
        });
    }

    fn said(&self, world: &mut World, engine: &mut Engine<'_>, sample: &Sample) -> Segment {
        let (verdict, got) = world.pass(engine, &sample.frame());
        assert_eq!(verdict, Verdict::Send(1));
        let segment = segment(&got);
        assert_eq!(segment.to, self.backend);
        segment
    }

    fn answered(&self, world: &mut World, engine: &mut Engine<'_>, sample: &Sample) -> Segment {
        let (verdict, got) = world.pass(engine, &sample.frame());
        assert_eq!(verdict, Verdict::Send(0));
        let segment = segment(&got);
        assert_eq!((segment.from, segment.to), (self.vip, self.client));
        segment
    }

    /// From the client, `offset` bytes into its stream.
    fn data(&self, offset: u32, bytes: &[u8]) -> Sample {
        let sequence = self.isn.wrapping_add(1).wrapping_add(offset);
        let sample = tcp(self.client, self.vip, ACK).numbers(sequence, THEIRS.wrapping_add(1));
        sample.tcp_options(&TIMES).payload(bytes)
    }

    fn reply(&self, flags: u8, acknowledged: u32) -> Sample {
        tcp(self.backend, self.local, flags).numbers(THEIRS, acknowledged)
    }

    /// The first two segments; the options of the first as the backend sees them.
    fn open(&mut self, world: &mut World, engine: &mut Engine<'_>, room: u16) -> Vec<u8> {
        let first = syn(self.client, self.vip).numbers(self.isn, 0);
        let there = self.said(world, engine, &first);
        assert_eq!(there.sequence, self.isn);
        self.local = there.from;
        let second = self.reply(SYN | ACK, self.isn.wrapping_add(1));
        let back = self.answered(world, engine, &second.tcp_options(&[2, 4, 5, 0xb4]));
        assert_eq!(back.acknowledged, self.isn.wrapping_add(1));
        let mss = u16::from_be_bytes([back.options[2], back.options[3]]);
        assert_eq!(mss, 1460 - room, "what the client sends has room for more");
        there.options
    }

    fn header(&self, crc32c: bool) -> Vec<u8> {
        proxy_header::write(HeaderFormat::V2 { crc32c }, Some((self.client, self.vip)), None)
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(64))]

    /// Whatever is lost, repeated or late: the backend reads the header and what the client wrote,
    /// and the client learns what of its own has arrived.
    #[test]
    fn a_header_comes_before_what_the_client_writes(
        isn in any::<u32>(),
        v6 in any::<bool>(),
        crc32c in any::<bool>(),
        steps in prop::collection::vec((0_usize..600, 0_usize..80, any::<bool>(), any::<bool>()), 1..80),
    ) {
        let text: Vec<u8> = (0..600_u32).map(|n| (n % 251) as u8).collect();
        Talk::with(Head::Proxy { crc32c }, v6, isn, |world, engine, mut talk| {
            let header = talk.header(crc32c);
            talk.open(world, engine, header.len() as u16);
            let stream = [&header[..], &text].concat();
            // What the backend has, by place.
            let mut has: BTreeMap<usize, u8> = BTreeMap::new();
            let mut next = 0;
            let everything = (0..600).step_by(100).map(|at| (at, 100, false, false));
            for (at, length, lost, unheard) in steps.into_iter().chain(everything) {
                let at = at.min(next);
                let end = (at + length).min(text.len());
                next = next.max(end);
                let got = talk.said(world, engine, &talk.data(at as u32, &text[at..end]));
                if !lost {
                    let place = got.sequence.wrapping_sub(isn.wrapping_add(1)) as usize;
                    assert!(place + got.data.len() <= stream.len());
                    has.extend(got.data.iter().enumerate().map(|(n, byte)| (place + n, *byte)));
                }
                let all = (0..).find(|place| !has.contains_key(place)).unwrap();
                if unheard {
                    continue;
                }
                // What lies behind the next gap is acknowledged selectively.
                let from = (all..stream.len()).find(|place| has.contains_key(place));
                let number = |place: usize| isn.wrapping_add(1).wrapping_add(place as u32);
                let acks = talk.reply(ACK, number(all));
                let acks = match from {
                    Some(from) => {
                        let edges = [number(from), number(from + 1)].map(u32::to_be_bytes);
                        acks.tcp_options(&[&[1, 1, 5, 10][..], edges.as_flattened()].concat())
                    }
                    None => acks,
                };
                let back = talk.answered(world, engine, &acks);
                let known = |place: usize| number(place.saturating_sub(header.len()));
                assert_eq!(back.acknowledged, known(all));
                if let Some(from) = from {
                    let edges = [known(from), known(from + 1)].map(u32::to_be_bytes);
                    assert_eq!(&back.options[4..], edges.as_flattened());
                }
            }
            let read: Vec<u8> = has.into_values().collect();
            assert_eq!(read, stream);
        });
    }
}

#[test]
fn an_option_tells_of_the_client_until_it_is_answered() {
    for v6 in [false, true] {
        Talk::with(Head::Toa, v6, 77, |world, engine, mut talk| {
            let mut option = alloc::vec![254, 8, 0, 0];
            option[2..].copy_from_slice(&talk.client.port().to_be_bytes());
            match talk.client.ip() {
                IpAddr::V4(ip) => option.extend(ip.octets()),
                IpAddr::V6(ip) => option.extend(ip.octets()),
            }
            option[1] = option.len() as u8;
            let length = option.len();
            let options = talk.open(world, engine, length as u16);
            assert_eq!(options, [&option[..], &[2, 4, 5, 0xb4]].concat());
            let third = talk.said(world, engine, &talk.data(0, b""));
            assert_eq!(third.options, [&option[..], &TIMES].concat());
            let later = talk.said(world, engine, &talk.data(5, b"later"));
            assert_eq!((later.sequence, &later.options[..]), (83, &TIMES[..]));
            let first = talk.said(world, engine, &talk.data(0, b"first"));
            assert_eq!((first.options.len(), &first.data[..]), (length + 12, &b"first"[..]));
            // The backend has it: it acknowledges what came with it.
            let back = talk.answered(world, engine, &talk.reply(ACK, 83));
            assert_eq!(back.acknowledged, 83);
            let again = talk.said(world, engine, &talk.data(0, b"first"));
            assert_eq!(again.options, TIMES);
            let flow = engine.flows().iter().next().unwrap();
            assert!(flow.bytes < 2000, "{} bytes", flow.bytes);
        });
        // No room among the options: the connection goes on without it.
        Talk::with(Head::Toa, v6, 77, |world, engine, talk| {
            let full = tcp(talk.client, talk.vip, SYN).numbers(77, 0).tcp_options(&[1; 40]);
            let there = talk.said(world, engine, &full);
            assert_eq!(there.options, [1; 40]);
        });
    }
}

#[test]
fn first_segments_carry_no_data_past_the_header() {
    let head = Head::Proxy { crc32c: false };
    Talk::with(head, false, 900, |world, engine, talk| {
        let eager = syn(talk.client, talk.vip).numbers(900, 0).payload(b"too early");
        let there = talk.said(world, engine, &eager);
        assert_eq!((there.sequence, there.data.len()), (900, 0));
        // Parts of a segment have no room for it.
        let part = tcp(talk.client, talk.vip, ACK).numbers(901, 1).payload(&[1; 8]).part(0, true);
        let (verdict, _) = world.pass(engine, &part.frame());
        assert_eq!(verdict, Verdict::Drop(DropReason::Untranslatable));
        // Nor is there anything to say to a connection that ends.
        let reset = tcp(talk.client, talk.vip, tcp_flags::RST).numbers(901, 0);
        let there = talk.said(world, engine, &reset);
        assert_eq!((there.sequence, there.data.len()), (901, 0));
    });
}

#[test]
fn errors_quote_what_the_client_has_sent() {
    let head = Head::Proxy { crc32c: false };
    Talk::with(head, false, 900, |world, engine, mut talk| {
        talk.open(world, engine, 28);
        for (offset, acknowledged) in [(0, 901), (5, 901), (5, 934), (0, 934)] {
            talk.answered(world, engine, &talk.reply(ACK, acknowledged));
            let (_, there) = world.pass(engine, &talk.data(offset, b"bytes").frame());
            let about = message(talk.backend.ip(), talk.local.ip(), 3, 4, [0, 0, 5, 0]);
            let (verdict, got) = world.pass(engine, &about.payload(&there[14..]).frame());
            assert_eq!(verdict, Verdict::Send(0));
            let quoted = u32::from_be_bytes(*got[14 + 20 + 8 + 20 + 4..].first_chunk().unwrap());
            assert_eq!(quoted, 901 + offset, "{offset} after {acknowledged}");
        }
    });
}
