//! Captured frames as a file: pcapng (draft-ietf-opsawg-pcapng), with the verdict as a comment.

use std::time::UNIX_EPOCH;

use fairway_uring::Captured;

/// Blocks and options that are written.
const SECTION: u32 = 0x0a0d_0d0a;
const INTERFACE: u32 = 1;
const PACKET: u32 = 6;
const COMMENT: u16 = 1;
const FLAGS: u16 = 2;
const NAME: u16 = 2;
const APPLICATION: u16 = 4;
/// Ethernet.
const LINK: u16 = 1;

fn option(block: &mut Vec<u8>, code: u16, value: &[u8]) {
    block.extend(code.to_le_bytes());
    block.extend((value.len() as u16).to_le_bytes());
    block.extend(value);
    block.resize(block.len().next_multiple_of(4), 0);
}

/// A block with its length at both ends.
fn block(kind: u32, body: &[u8]) -> Vec<u8> {
    let length = (body.len() as u32 + 12).to_le_bytes();
    [&kind.to_le_bytes(), &length, body, &length].concat()
}

/// The beginning of a file about these interfaces.
pub(super) fn beginning<'n>(interfaces: impl Iterator<Item = &'n String>) -> Vec<u8> {
    let mut body = Vec::new();
    body.extend(0x1a2b_3c4d_u32.to_le_bytes());
    body.extend([1, 0, 0, 0]);
    body.extend(u64::MAX.to_le_bytes());
    option(&mut body, APPLICATION, concat!("fairway ", env!("CARGO_PKG_VERSION")).as_bytes());
    option(&mut body, 0, &[]);
    let mut file = block(SECTION, &body);
    for name in interfaces {
        let mut body = Vec::new();
        body.extend(LINK.to_le_bytes());
        body.extend([0; 2]);
        body.extend(0_u32.to_le_bytes());
        option(&mut body, NAME, name.as_bytes());
        option(&mut body, 0, &[]);
        file.extend(block(INTERFACE, &body));
    }
    file
}

/// A frame.
pub(super) fn packet(captured: &Captured) -> Vec<u8> {
    let since = captured.at.duration_since(UNIX_EPOCH).unwrap_or_default();
    let micros = since.as_micros() as u64;
    let mut body = Vec::new();
    body.extend(u32::from(captured.port).to_le_bytes());
    body.extend(((micros >> 32) as u32).to_le_bytes());
    body.extend((micros as u32).to_le_bytes());
    body.extend((captured.bytes.len() as u32).to_le_bytes());
    body.extend((captured.length as u32).to_le_bytes());
    body.extend(&captured.bytes);
    body.resize(body.len().next_multiple_of(4), 0);
    option(&mut body, COMMENT, captured.comment.as_bytes());
    // Inbound or outbound.
    option(&mut body, FLAGS, &if captured.outgoing { 2_u32 } else { 1 }.to_le_bytes());
    option(&mut body, 0, &[]);
    block(PACKET, &body)
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::time::Duration;

    #[test]
    fn blocks_are_aligned_and_say_their_length_twice() {
        let captured = Captured {
            at: UNIX_EPOCH + Duration::from_micros(0x1_0000_0002),
            port: 1,
            outgoing: true,
            bytes: vec![7; 61],
            length: 1500,
            comment: "worker 0: sent".into(),
        };
        let names = ["eth0".to_owned(), "eth1".to_owned()];
        let file = [beginning(names.iter()), packet(&captured)].concat();
        let word = |at: usize| u32::from_le_bytes(*file[at..].first_chunk().unwrap());
        let (mut at, mut kinds) = (0, Vec::new());
        while at < file.len() {
            let length = word(at + 4) as usize;
            assert_eq!(length % 4, 0);
            assert_eq!(word(at + length - 4) as usize, length);
            kinds.push(word(at));
            if word(at) == PACKET {
                let fields: Vec<u32> = (0..5).map(|n| word(at + 8 + 4 * n)).collect();
                assert_eq!(fields, [1, 1, 2, 61, 1500]);
            }
            at += length;
        }
        assert_eq!(kinds, [SECTION, INTERFACE, INTERFACE, PACKET]);
    }
}
