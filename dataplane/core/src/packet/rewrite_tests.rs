use super::*;
use crate::packet::parse::{Parsed, parse};
use crate::packet::sample::{sctp, udp};
use alloc::vec::Vec;

fn ends(source: SocketAddr, destination: SocketAddr) -> Ends {
    Ends::of(source, destination).unwrap()
}

fn addr(text: &str) -> SocketAddr {
    text.parse().unwrap()
}

fn changed(bytes: Vec<u8>, change: impl FnOnce(&mut Frame<'_>, &Packet)) -> Vec<u8> {
    let mut bytes = bytes;
    let Parsed::Ip(packet) = parse(&bytes).unwrap() else { panic!() };
    let end = bytes.len();
    let mut frame = Frame::new(&mut bytes, 0, end);
    change(&mut frame, &packet);
    frame.bytes().to_vec()
}

#[test]
fn sctp_is_summed_when_its_ports_change_and_left_alone_otherwise() {
    let (client, vip) = (addr("203.0.113.7:5000"), addr("192.0.2.10:36412"));
    let body = |frame: &[u8]| frame[34..].to_vec();
    let sent = sctp(client, vip).frame();
    let same = changed(sent.clone(), |frame, packet| {
        translate(frame, packet, &ends(client, addr("10.0.0.1:36412")));
    });
    assert_eq!(body(&same), body(&sent), "CRC32c covers no addresses");
    let other = changed(sent, |frame, packet| {
        translate(frame, packet, &ends(client, addr("10.0.0.1:36413")));
    });
    let mut want = body(&other);
    want[8..12].fill(0);
    let sum = crc32c(want.iter()).to_le_bytes();
    assert_eq!(body(&other)[8..12], sum);
    // RFC 3720, appendix B.4: 32 bytes of zeros.
    assert_eq!(crc32c([0; 32].iter()), 0x8a91_36aa);
}

#[test]
fn datagrams_without_a_checksum_stay_without() {
    let (client, vip) = (addr("203.0.113.7:5000"), addr("192.0.2.10:53"));
    let mut sent = udp(client, vip).payload(b"x").frame();
    sent[40..42].fill(0);
    let got =
        changed(sent, |frame, packet| translate(frame, packet, &ends(client, addr("10.0.0.1:54"))));
    assert_eq!(got[40..42], [0, 0]);
}
