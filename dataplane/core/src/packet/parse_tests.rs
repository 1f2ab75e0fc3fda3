use super::*;
use crate::packet::sample::{Sample, icmp, sctp, syn, tcp, udp};
use alloc::vec::Vec;
use core::net::SocketAddr;
use proptest::prelude::*;

fn addr(text: &str) -> SocketAddr {
    text.parse().unwrap()
}

fn pairs() -> [(SocketAddr, SocketAddr); 2] {
    [
        (addr("203.0.113.7:4711"), addr("192.0.2.10:443")),
        (addr("[2001:db8::7]:4711"), addr("[2001:db8::10]:443")),
    ]
}

fn packet(sample: &Sample) -> Result<Packet, DropReason> {
    match parse(&sample.frame())? {
        Parsed::Ip(packet) => Ok(packet),
        other => panic!("{other:?}"),
    }
}

#[test]
fn every_protocol_of_both_families_is_read() {
    for (client, vip) in pairs() {
        let header = if client.is_ipv4() { 20 } else { 40 };
        let read = |sample: Sample| packet(&sample).unwrap();
        let first = read(syn(client, vip).payload(b"x"));
        assert_eq!((first.l3, first.l4), (14, 14 + header));
        assert_eq!(first.end, first.l4 + 24 + 1);
        assert_eq!(first.addresses.source(), client.ip());
        assert_eq!(first.addresses.destination(), vip.ip());
        assert_eq!((first.ttl, first.fragment), (64, None));
        let ports = (4711, 443);
        assert_eq!(first.transport, Transport::Tcp { ports, flags: tcp_flags::SYN, header: 24 });
        for sample in [udp(client, vip), sctp(client, vip)] {
            assert_eq!(read(sample).transport, Transport::Datagram { ports });
        }
        let echo = icmp(client.ip(), vip.ip(), 8, 0, [0, 1, 0, 2]);
        assert_eq!(read(echo).transport, Transport::Icmp { kind: 8, code: 0 });
        let tagged = read(udp(client, vip).tags(&[100, 200]));
        assert_eq!((tagged.l3, tagged.transport.ports()), (22, Some(ports)));
    }
}

#[test]
fn options_and_extension_headers_are_passed() {
    let [(client4, vip4), (client6, vip6)] = pairs();
    let options = packet(&udp(client4, vip4).options(&[1; 8])).unwrap();
    assert_eq!((options.l4, options.transport.ports()), (14 + 28, Some((4711, 443))));
    // Hop by hop, then destination options, then UDP.
    let extensions = [[60, 0, 1, 4, 0, 0, 0, 0], [17, 0, 1, 4, 0, 0, 0, 0]].concat();
    let extended = packet(&udp(client6, vip6).options(&extensions)).unwrap();
    assert_eq!((extended.l4, extended.protocol), (14 + 40 + 16, 17));
    assert_eq!(extended.transport.ports(), Some((4711, 443)));
    let endless = [[0, 0, 1, 4, 0, 0, 0, 0]; 8].concat();
    let endless = packet(&udp(client6, vip6).options(&endless));
    assert_eq!(endless, Err(DropReason::BadExtension));
    let routed = [[43, 0, 1, 4, 0, 0, 0, 0], [17, 0, 0, 1, 0, 0, 0, 0]].concat();
    let routed = packet(&udp(client6, vip6).options(&routed));
    assert_eq!(routed, Err(DropReason::BadExtension), "a stop on the way");
}

#[test]
fn fragments_are_told_apart() {
    for (client, vip) in pairs() {
        let first = packet(&udp(client, vip).payload(&[1; 8]).part(0, true)).unwrap();
        let fragment = first.fragment.unwrap();
        assert!(fragment.is_first() && fragment.more);
        assert_eq!((fragment.id, first.transport.ports()), (0x1234, Some((4711, 443))));
        let last = packet(&udp(client, vip).payload(&[1; 8]).part(1480, false)).unwrap();
        let want = Fragment { id: 0x1234, offset: 1480, more: false };
        assert_eq!((last.fragment, last.transport), (Some(want), Transport::Unseen));
        let frame = tcp(client, vip, 0).part(0, true).frame();
        let mut tiny = tcp(client, vip, 0).part(0, true).frame();
        tiny.truncate(frame.len() - 12);
        // The packet says so itself: nothing is missing but the rest of its header.
        if client.is_ipv4() {
            let length = (tiny.len() as u16 - 14).to_be_bytes();
            tiny[16..18].copy_from_slice(&length);
            tiny[24..26].fill(0);
            let checksum = Sum::ZERO.bytes(&tiny[14..34]).checksum().to_be_bytes();
            tiny[24..26].copy_from_slice(&checksum);
        } else {
            let length = (tiny.len() as u16 - 54).to_be_bytes();
            tiny[18..20].copy_from_slice(&length);
        }
        assert_eq!(parse(&tiny), Err(DropReason::TinyFragment));
    }
}

#[test]
fn each_malformation_has_its_reason() {
    let [(client4, vip4), (client6, vip6)] = pairs();
    let change = |sample: &Sample, at: usize, byte: u8| {
        let mut frame = sample.frame();
        frame[at] = byte;
        // An IPv4 header that is otherwise right.
        if frame[12] == 8 && (14..34).contains(&at) && at != 24 {
            frame[24..26].fill(0);
            let header = usize::from(frame[14] & 0xf) * 4;
            let checksum = Sum::ZERO.bytes(&frame[14..14 + header.max(20)]).checksum();
            frame[24..26].copy_from_slice(&checksum.to_be_bytes());
        }
        parse(&frame)
    };
    let (udp4, udp6) = (udp(client4, vip4), udp(client6, vip6));
    let mapped = udp(addr("[::ffff:203.0.113.7]:1"), vip6).frame();
    for (name, result, want) in [
        ("IPv4: version", change(&udp4, 14, 0x55), DropReason::BadIp),
        ("IPv4: header length", change(&udp4, 14, 0x44), DropReason::BadIp),
        ("IPv4: total length below", change(&udp4, 17, 10), DropReason::BadIp),
        ("IPv4: total length above", change(&udp4, 17, 99), DropReason::Truncated),
        ("IPv4: checksum", change(&udp4, 24, 0xaa), DropReason::BadIp),
        ("IPv4: multicast source", change(&udp4, 26, 224), DropReason::BadAddress),
        ("IPv4: loopback", change(&udp4, 30, 127), DropReason::BadAddress),
        ("IPv6: version", change(&udp6, 14, 0x40), DropReason::BadIp),
        ("IPv6: length", change(&udp6, 19, 99), DropReason::Truncated),
        ("IPv6: multicast source", change(&udp6, 22, 0xff), DropReason::BadAddress),
        ("IPv6: mapped", parse(&mapped), DropReason::BadAddress),
        ("UDP: length below", change(&udp4, 39, 7), DropReason::BadTransport),
        ("UDP: length above", change(&udp4, 39, 9), DropReason::BadTransport),
        ("TCP: header length", change(&tcp(client4, vip4, 0), 46, 0x40), DropReason::BadTransport),
        (
            "TCP: header beyond the packet",
            change(&tcp(client4, vip4, 0), 46, 0x60),
            DropReason::Truncated,
        ),
    ] {
        assert_eq!(result, Err(want), "{name}");
    }
    let arp = [&[0xff; 12][..], &[8, 6], &[0; 28]].concat();
    assert_eq!(parse(&arp), Ok(Parsed::Arp(14)));
    let other = [&[0xff; 12][..], &[0x88, 0xcc], &[0; 28]].concat();
    assert_eq!(parse(&other), Ok(Parsed::Other(0x88cc)));
}

#[test]
fn no_prefix_of_a_frame_reads_beyond_its_end() {
    for (client, vip) in pairs() {
        let frame = syn(client, vip).tags(&[1]).payload(b"payload").frame();
        for length in 0..frame.len() {
            assert!(parse(&frame[..length]).is_err(), "{length} of {} bytes", frame.len());
        }
        // Padding is no part of the packet.
        let padded: Vec<u8> = frame.iter().copied().chain([0; 20]).collect();
        assert_eq!(parse(&padded), parse(&frame));
    }
}

proptest! {
    #[test]
    fn whatever_is_read_lies_within_the_frame(
        at in 0usize..80, bytes in prop::collection::vec(any::<u8>(), 0..24), v6 in any::<bool>(),
    ) {
        let (client, vip) = pairs()[usize::from(v6)];
        let mut frame = tcp(client, vip, 0).payload(&[7; 40]).frame();
        let end = frame.len().min(at + bytes.len());
        if at < end {
            frame[at..end].copy_from_slice(&bytes[..end - at]);
        }
        if let Ok(Parsed::Ip(packet)) = parse(&frame) {
            prop_assert!(packet.l3 < packet.l4 && packet.l4 <= packet.end);
            prop_assert!(usize::from(packet.end) <= frame.len());
            if let Transport::Tcp { header, .. } = packet.transport {
                prop_assert!(packet.l4 + u16::from(header) <= packet.end);
            }
        }
    }
}
